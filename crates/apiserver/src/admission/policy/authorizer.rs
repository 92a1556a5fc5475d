//! Who answers `authorizer` in policies and conditions: RBAC and what nodes may, for the user of the request or a service
//! account.

use sampan_api::cel::{Authorizer, Decision, Question};
use sampan_api::selector::{FieldSelector, LabelSelector};

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
            // A namespace is in itself.
            namespace: if admission.is("", "namespaces") { self.name } else { admission.namespace }
                .to_owned(),
            name: self.name.to_owned(),
            ..Question::default()
        }
    }

    /// Label selectors grant nothing here, as in RBAC; of field selectors nodes are asked for what is theirs.
    fn decide(&self, question: &Question) -> Decision {
        let account = question.account.as_ref().map(|(namespace, name)| account(namespace, name));
        let user = account.as_ref().unwrap_or(self.admission.user);
        let error = selector_error(question);
        // What is no selector grants nothing.
        let fields = if error.is_none() { fields_of(&question.field_selector) } else { Vec::new() };
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
        Decision { allowed: decision.allowed, reason: decision.reason, error }
    }
}

/// What is wrong with the selectors of a question.
fn selector_error(question: &Question) -> Option<String> {
    let fields = FieldSelector::parse(&question.field_selector, |_| true).map(|_| ());
    let labels = LabelSelector::parse(&question.label_selector).map(|_| ());
    fields.and(labels).err().map(|error| error.to_string())
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
    fn selectors_must_be_some() {
        // Of fields, of labels, whether they are selectors.
        let rows = [
            ("", "", true),
            ("spec.nodeName=a,metadata.name!=b", "app in (x,y),!z", true),
            ("spec.nodeName", "", false),
            ("", "app in x", false),
            ("=", "=", false),
        ];
        for (field_selector, label_selector, fine) in rows {
            let question = Question {
                field_selector: field_selector.to_owned(),
                label_selector: label_selector.to_owned(),
                ..Question::default()
            };
            let error = selector_error(&question);
            assert_eq!(error.is_none(), fine, "{field_selector:?} {label_selector:?}: {error:?}");
        }
    }

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
