//! Kinds that are questions: access reviews, token reviews, who am I.

use std::sync::Arc;

use http::StatusCode;
use sampan_api::registry::Kind;
use serde_json::{Value, json};

use super::User;
use super::rbac::Attributes;
use crate::error::ApiError;
use crate::respond::{self, ApiResponse};
use crate::server::ApiServer;

type Answer = fn(&ApiServer, &Value, &str, &User) -> Result<Value, ApiError>;

/// The answer to each virtual kind: what goes into its status.
const ANSWERS: &[(&str, Answer)] = &[
    ("SelfSubjectAccessReview", self_access),
    ("SubjectAccessReview", subject_access),
    ("LocalSubjectAccessReview", subject_access),
    ("SelfSubjectRulesReview", self_rules),
    ("TokenReview", token_review),
    ("SelfSubjectReview", self_review),
];

/// Answers a question.
pub(crate) fn answer(
    server: &ApiServer,
    kind: &Arc<Kind>,
    namespace: &str,
    mut question: Value,
    user: &User,
) -> Result<ApiResponse, ApiError> {
    let (_, answer) =
        ANSWERS.iter().find(|(name, _)| *name == kind.kind).ok_or_else(ApiError::method_not_allowed)?;
    let errors = (kind.strategy.validate)(&question);
    if !errors.is_empty() {
        return Err(ApiError::invalid(kind, "", &errors));
    }
    question["status"] = answer(server, &question, namespace, user)?;
    question["kind"] = kind.kind.clone().into();
    question["apiVersion"] = kind.api_version().into();
    if !question["metadata"].is_object() {
        question["metadata"] = json!({});
    }
    Ok(respond::json_value(StatusCode::CREATED, &question))
}

fn allowed(server: &ApiServer, spec: &Value, user: &User) -> Value {
    let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
    let resource = &spec["resourceAttributes"];
    let path = spec["nonResourceAttributes"]["path"].as_str();
    let fields = match path {
        Some(_) => [
            text(&spec["nonResourceAttributes"]["verb"]),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
            String::new(),
        ],
        None => ["verb", "group", "resource", "subresource", "namespace", "name"]
            .map(|field| text(&resource[field])),
    };
    let [verb, group, resource, subresource, namespace, name] = &fields;
    let question = Attributes { verb, group, resource, subresource, namespace, name, path };
    if server.rbac.allows(user, &question) { json!({"allowed": true}) } else { json!({"allowed": false}) }
}

fn self_access(server: &ApiServer, question: &Value, _: &str, user: &User) -> Result<Value, ApiError> {
    Ok(allowed(server, &question["spec"], user))
}

fn subject_access(
    server: &ApiServer,
    question: &Value,
    namespace: &str,
    _: &User,
) -> Result<Value, ApiError> {
    let spec = &question["spec"];
    if !namespace.is_empty() && spec["resourceAttributes"]["namespace"] != namespace {
        return Err(ApiError::bad_request(
            "the namespace of the review and of its resource attributes must be the same",
        ));
    }
    let groups: Vec<String> = spec["groups"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let subject = User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: String::new(),
        groups,
        extra: Vec::new(),
    };
    Ok(allowed(server, spec, &subject))
}

fn self_rules(server: &ApiServer, question: &Value, _: &str, user: &User) -> Result<Value, ApiError> {
    let namespace = question["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    Ok(server.rbac.rules_of(user, namespace))
}

fn token_review(server: &ApiServer, question: &Value, _: &str, _: &User) -> Result<Value, ApiError> {
    let spec = &question["spec"];
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let token = spec["token"].as_str().unwrap_or_default();
    let now = jiff::Timestamp::now().as_second();
    Ok(match server.tokens.check(token, &audiences, now) {
        Some((user, audiences)) => {
            json!({"authenticated": true, "user": user.info(), "audiences": audiences})
        }
        None => json!({"authenticated": false, "error": "the token is not valid"}),
    })
}

fn self_review(_: &ApiServer, _: &Value, _: &str, user: &User) -> Result<Value, ApiError> {
    Ok(json!({"userInfo": user.info()}))
}
