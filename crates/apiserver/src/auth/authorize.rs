//! Whether somebody may: the chain of authorizers, and a request as they see it.
//!
//! In order: members of `system:masters` may do everything; a node may what its pods need ([`super::node`]); the rest is
//! in roles ([`super::rbac`]). The first that allows decides; nothing here forbids what another one allows.

use super::rbac::Attributes;
use super::{ANONYMOUS, MASTERS, User};
use crate::error::ApiError;
use crate::request::RequestInfo;
use crate::server::ApiServer;

/// Requirements of one field selector that are looked at.
const MAX_FIELDS: usize = 16;

/// An answer, with the reason for whoever asks why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Decision {
    pub(crate) allowed: bool,
    pub(crate) reason: String,
}

impl ApiServer {
    /// Whether `user` may.
    pub(crate) fn decide(&self, user: &User, question: &Attributes<'_>) -> Decision {
        let allowed = |reason: String| Decision { allowed: true, reason };
        if user.is_in(MASTERS) {
            return allowed(String::new());
        }
        let reason = match self.node_authorizer.decide(user, question) {
            Some(Ok(())) => return allowed(String::new()),
            Some(Err(why)) => why,
            None => String::new(),
        };
        match self.rbac.granted_by(user, question) {
            Some(reason) => allowed(reason),
            None => Decision { allowed: false, reason },
        }
    }

    /// Whether the sender of a request may; the reason is for the audit log.
    pub(crate) fn authorize(&self, user: &User, info: &RequestInfo) -> Result<String, ApiError> {
        let fields = fields_of(info.query.get("fieldSelector").unwrap_or_default());
        let question = question(info, &fields);
        let decision = self.decide(user, &question);
        if decision.allowed { Ok(decision.reason) } else { Err(forbidden(user, &question, &decision.reason)) }
    }
}

fn question<'a>(info: &'a RequestInfo, fields: &'a [(String, String)]) -> Attributes<'a> {
    let Some(path) = &info.resource else {
        return Attributes { verb: info.verb, path: Some(&info.path), ..Attributes::default() };
    };
    let mut name = path.name.as_str();
    // Who selects one object by its name asks for that object.
    if name.is_empty() && ["list", "watch", "deletecollection"].contains(&info.verb) {
        name = fields.iter().find(|(field, _)| field == "metadata.name").map_or("", |(_, name)| name);
    }
    Attributes {
        verb: info.verb,
        group: &path.group,
        resource: &path.resource,
        subresource: &path.subresource,
        // A namespace is authorised by its own name.
        namespace: if path.resource == "namespaces" { &path.name } else { &path.namespace },
        name,
        fields,
        path: None,
    }
}

/// What a field selector demands to be equal. Other requirements only narrow a selection and are left out.
pub(crate) fn fields_of(selector: &str) -> Vec<(String, String)> {
    let requirement = |text: &str| {
        let (field, value) = text.split_once("==").or_else(|| text.split_once('='))?;
        // `!=` is no equality; a value with escapes is none that names could have.
        let plain = !field.ends_with('!') && !value.contains(['\\', '=']) && !value.is_empty();
        plain.then(|| (field.trim().to_owned(), value.to_owned()))
    };
    selector.split(',').take(MAX_FIELDS).filter_map(requirement).collect()
}

/// The sentence of a refused request, in upstream's words.
pub(crate) fn forbidden(user: &User, question: &Attributes<'_>, reason: &str) -> ApiError {
    let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
    if let Some(path) = question.path {
        let message =
            format!("forbidden: User \"{}\" cannot {} path \"{path}\"{because}", user.name, question.verb);
        return ApiError::new(http::StatusCode::FORBIDDEN, "Forbidden", message);
    }
    let resource = if question.subresource.is_empty() {
        question.resource.to_owned()
    } else {
        format!("{}/{}", question.resource, question.subresource)
    };
    let place = if question.namespace.is_empty() || question.resource == "namespaces" {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace \"{}\"", question.namespace)
    };
    let why = format!(
        "User \"{}\" cannot {} resource \"{resource}\" in API group \"{}\" {place}{because}",
        if user.name.is_empty() { ANONYMOUS } else { &user.name },
        question.verb,
        question.group,
    );
    ApiError::forbidden(question.group, question.resource, question.name, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_that_name_something() {
        let rows: [(&str, &[(&str, &str)]); 6] = [
            ("", &[]),
            ("metadata.name=a", &[("metadata.name", "a")]),
            ("spec.nodeName==n,status.phase!=Failed", &[("spec.nodeName", "n")]),
            ("a=b\\,c", &[]),
            ("a=", &[]),
            ("a=b=c", &[]),
        ];
        for (selector, expected) in rows {
            let expected: Vec<_> = expected.iter().map(|(f, v)| ((*f).to_owned(), (*v).to_owned())).collect();
            assert_eq!(fields_of(selector), expected, "{selector}");
        }
    }

    #[test]
    fn requests_as_questions() {
        let rows = [
            ("/api/v1/namespaces/d/secrets?watch=true&fieldSelector=metadata.name%3Da", "watch", "a"),
            ("/api/v1/namespaces/d/secrets?fieldSelector=metadata.name%3Da", "list", "a"),
            ("/api/v1/namespaces/d/secrets/b?fieldSelector=metadata.name%3Da", "get", "b"),
            ("/api/v1/namespaces/d/secrets?fieldSelector=metadata.name!%3Da", "list", ""),
        ];
        for (uri, verb, name) in rows {
            let info = RequestInfo::parse(&http::Method::GET, &uri.parse().expect("an address"));
            let fields = fields_of(info.query.get("fieldSelector").unwrap_or_default());
            let question = question(&info, &fields);
            assert_eq!((question.verb, question.name), (verb, name), "{uri}");
        }
    }
}
