//! Who answers `authorizer` in policies and conditions: RBAC and what nodes may, for the user of the request or a service
//! account.

use sampan_api::cel::{Authorizer, Decision, Question};

use crate::admission::Admission;
use crate::auth::User;
use crate::auth::authorize::fields_of;
use crate::auth::rbac::Attributes;

/// The server, asked about a request.
pub(in crate::admission) struct Asked<'a> {
    pub(in crate::admission) admission: &'a Admission<'a>,
    /// Name of the object.
    pub(in crate::admission) name: &'a str,
}

impl Authorizer for Asked<'_> {
    fn request_resource(&self) -> Question {
        let admission = self.admission;
        Question {
            group: admission.kind.group.to_string(),
            resource: admission.kind.plural.to_string(),
            subresource: admission.subresource.to_owned(),
            namespace: admission.namespace.to_owned(),
            name: self.name.to_owned(),
            ..Question::default()
        }
    }

    /// Label selectors grant nothing here, as in RBAC; of field selectors nodes are asked for what is theirs.
    fn decide(&self, question: &Question) -> Decision {
        let account = question.account.as_ref().map(|(namespace, name)| account(namespace, name));
        let user = account.as_ref().unwrap_or(self.admission.user);
        let fields = fields_of(&question.field_selector);
        let attributes = Attributes {
            verb: &question.verb,
            group: &question.group,
            resource: &question.resource,
            subresource: &question.subresource,
            namespace: &question.namespace,
            name: &question.name,
            fields: &fields,
            path: question.path.as_deref(),
        };
        let decision = self.admission.server.decide(user, &attributes);
        Decision { allowed: decision.allowed, reason: decision.reason, error: None }
    }
}

fn account(namespace: &str, name: &str) -> User {
    let of_namespace = format!("system:serviceaccounts:{namespace}");
    User::known(
        &format!("system:serviceaccount:{namespace}:{name}"),
        &["system:serviceaccounts", &of_namespace],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_in_their_groups() {
        let user = account("ns", "sa");
        assert_eq!(user.name, "system:serviceaccount:ns:sa");
        assert_eq!(
            user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
    }
}
