//! Reviews: questions put to the server as objects. They are answered and never stored.

use serde_json::Value;

use super::json::{is_empty, text};
use crate::field::{Errors, Path};
use crate::kind::{Row, Scope, Storage, Strategy};

const AUTHORIZATION: Row =
    Row { group: "authorization.k8s.io", scope: Scope::Cluster, storage: Storage::Virtual, ..Row::PLAIN };
const AUTHENTICATION: Row =
    Row { group: "authentication.k8s.io", scope: Scope::Cluster, storage: Storage::Virtual, ..Row::PLAIN };

/// May this user do that?
pub static SUBJECT_ACCESS_REVIEW: Row = Row {
    kind: "SubjectAccessReview",
    plural: "subjectaccessreviews",
    singular: "subjectaccessreview",
    schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
    strategy: Strategy { validate: validate_subject, ..Strategy::PLAIN },
    ..AUTHORIZATION
};

/// May I do that?
pub static SELF_SUBJECT_ACCESS_REVIEW: Row = Row {
    kind: "SelfSubjectAccessReview",
    plural: "selfsubjectaccessreviews",
    singular: "selfsubjectaccessreview",
    schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
    strategy: Strategy { validate: validate_self, ..Strategy::PLAIN },
    ..AUTHORIZATION
};

/// May this user do that here? For those who may ask about one namespace only.
pub static LOCAL_SUBJECT_ACCESS_REVIEW: Row = Row {
    kind: "LocalSubjectAccessReview",
    plural: "localsubjectaccessreviews",
    singular: "localsubjectaccessreview",
    scope: Scope::Namespaced,
    schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
    strategy: Strategy { validate: validate_local, ..Strategy::PLAIN },
    ..AUTHORIZATION
};

/// What may I do here?
pub static SELF_SUBJECT_RULES_REVIEW: Row = Row {
    kind: "SelfSubjectRulesReview",
    plural: "selfsubjectrulesreviews",
    singular: "selfsubjectrulesreview",
    schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
    ..AUTHORIZATION
};

/// Whose token is this?
pub static TOKEN_REVIEW: Row = Row {
    kind: "TokenReview",
    plural: "tokenreviews",
    singular: "tokenreview",
    schema: "io.k8s.api.authentication.v1.TokenReview",
    strategy: Strategy { validate: validate_token, ..Strategy::PLAIN },
    ..AUTHENTICATION
};

/// Who am I?
pub static SELF_SUBJECT_REVIEW: Row = Row {
    kind: "SelfSubjectReview",
    plural: "selfsubjectreviews",
    singular: "selfsubjectreview",
    schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
    ..AUTHENTICATION
};

fn validate_self(review: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (resource, path_asked) =
        (&review["spec"]["resourceAttributes"], &review["spec"]["nonResourceAttributes"]);
    match (resource.is_null(), path_asked.is_null()) {
        (false, false) => errors.invalid(
            &path.child("nonResourceAttributes"),
            path_asked.clone(),
            "cannot be specified in combination with resourceAttributes",
        ),
        (true, true) => errors.invalid(
            &path.child("resourceAttributes"),
            Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        ),
        _ => {}
    }
    errors
}

fn validate_subject(review: &Value) -> Errors {
    let mut errors = validate_self(review);
    let spec = &review["spec"];
    if is_empty(&spec["user"]) && is_empty(&spec["groups"]) {
        let path = Path::new("spec").child("user");
        errors.invalid(&path, text(&spec["user"]), "at least one of user or group must be specified");
    }
    errors
}

fn validate_local(review: &Value) -> Errors {
    let mut errors = validate_subject(review);
    let (namespace, asked) =
        (text(&review["metadata"]["namespace"]), &review["spec"]["resourceAttributes"]["namespace"]);
    if text(asked) != namespace {
        let path = Path::new("spec").child("resourceAttributes").child("namespace");
        errors.invalid(&path, text(asked), "must match metadata.namespace");
    }
    if !review["spec"]["nonResourceAttributes"].is_null() {
        let path = Path::new("spec").child("nonResourceAttributes");
        errors.forbidden(&path, "disallowed on this kind of request");
    }
    errors
}

fn validate_token(review: &Value) -> Errors {
    let mut errors = Errors::new();
    if is_empty(&review["spec"]["token"]) {
        errors.required(&Path::new("spec").child("token"), "");
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;
    use serde_json::json;

    #[test]
    fn validation() {
        let review = |spec: Value| json!({"metadata": {"namespace": "a"}, "spec": spec});
        let asked = json!({"verb": "get", "resource": "pods", "namespace": "a"});
        expect("self", &validate_self(&review(json!({ "resourceAttributes": asked }))), &[]);
        expect(
            "nothing asked",
            &validate_self(&review(json!({}))),
            &["spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or \
               resourceAttributes must be specified"],
        );
        expect(
            "nobody",
            &validate_subject(&review(json!({ "resourceAttributes": asked }))),
            &["spec.user: Invalid value: \"\": at least one of user or group must be specified"],
        );
        expect("local", &validate_local(&review(json!({"user": "ann", "resourceAttributes": asked}))), &[]);
        expect(
            "elsewhere",
            &validate_local(&review(json!({"user": "ann", "resourceAttributes": {"namespace": "b"}}))),
            &["spec.resourceAttributes.namespace: Invalid value: \"b\": must match metadata.namespace"],
        );
        expect("token", &validate_token(&review(json!({}))), &["spec.token: Required value"]);
    }
}
