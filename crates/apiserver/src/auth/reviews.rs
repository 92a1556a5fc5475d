//! Kinds that are questions: access reviews, token reviews, who am I.

use std::sync::Arc;

use http::StatusCode;
use sampan_api::registry::Kind;
use serde_json::{Value, json};

use super::User;
use super::authorize::fields_of;
use super::rbac::Attributes;
use crate::error::ApiError;
use crate::respond::{self, ApiResponse};
use crate::server::ApiServer;

type Answer = fn(&ApiServer, &Value, &str, &User) -> Result<Value, ApiError>;

/// The answer to each virtual kind but TokenReview, which may have to wait: what goes into its status.
const ANSWERS: &[(&str, Answer)] = &[
    ("SelfSubjectAccessReview", self_access),
    ("SubjectAccessReview", subject_access),
    ("LocalSubjectAccessReview", subject_access),
    ("SelfSubjectRulesReview", self_rules),
    ("SelfSubjectReview", self_review),
];

/// Answers a question.
pub(crate) async fn answer(
    server: &ApiServer,
    kind: &Arc<Kind>,
    namespace: &str,
    mut question: Value,
    user: &User,
) -> Result<ApiResponse, ApiError> {
    let errors = (kind.strategy.validate)(&question);
    if !errors.is_empty() {
        return Err(ApiError::invalid(kind, "", &errors));
    }
    question["status"] = if kind.kind == "TokenReview" {
        token_review(server, &question["spec"]).await
    } else {
        let answer = ANSWERS.iter().find(|(name, _)| *name == kind.kind);
        let (_, answer) = answer.ok_or_else(ApiError::method_not_allowed)?;
        answer(server, &question, namespace, user)?
    };
    question["kind"] = kind.kind.clone().into();
    question["apiVersion"] = kind.api_version().into();
    if !question["metadata"].is_object() {
        question["metadata"] = json!({});
    }
    Ok(respond::json_value(StatusCode::CREATED, &question))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

fn allowed(server: &ApiServer, spec: &Value, user: &User) -> Result<Value, ApiError> {
    let resource = &spec["resourceAttributes"];
    let path = spec["nonResourceAttributes"]["path"].as_str();
    let none = String::new();
    let fields = match path {
        Some(_) => [
            text(&spec["nonResourceAttributes"]["verb"]),
            none.clone(),
            none.clone(),
            none.clone(),
            none.clone(),
            none,
        ],
        None => ["verb", "group", "resource", "subresource", "namespace", "name"]
            .map(|field| text(&resource[field])),
    };
    let selected = selected(&resource["fieldSelector"], "fieldSelector")?;
    // Label selectors narrow nothing that an authorizer here asks for; they must make sense all the same.
    self::selected(&resource["labelSelector"], "labelSelector")?;
    let [verb, group, resource, subresource, namespace, name] = &fields;
    let question =
        Attributes { verb, group, resource, subresource, namespace, name, fields: &selected, path };
    let decision = server.decide(user, &question);
    let mut status = json!({"allowed": decision.allowed});
    if !decision.reason.is_empty() {
        status["reason"] = decision.reason.into();
    }
    Ok(status)
}

/// What a selector of resource attributes demands to be equal.
fn selected(selector: &Value, field: &str) -> Result<Vec<(String, String)>, ApiError> {
    let raw = selector["rawSelector"].as_str().unwrap_or_default();
    let requirements = selector["requirements"].as_array().map_or(&[][..], Vec::as_slice);
    match (raw.is_empty(), requirements.is_empty(), selector.is_null()) {
        (_, _, true) => Ok(Vec::new()),
        (false, true, _) => Ok(fields_of(raw)),
        (true, false, _) => Ok(requirements
            .iter()
            .filter(|requirement| requirement["operator"] == "In")
            .filter_map(|requirement| {
                let [value] = requirement["values"].as_array()?.as_slice() else { return None };
                Some((requirement["key"].as_str()?.to_owned(), value.as_str()?.to_owned()))
            })
            .collect()),
        (true, true, _) => Err(ApiError::bad_request(format!(
            "spec.resourceAttributes.{field}: exactly one of rawSelector and requirements must be specified"
        ))),
        (false, false, _) => Err(ApiError::bad_request(format!(
            "spec.resourceAttributes.{field}: rawSelector and requirements exclude each other"
        ))),
    }
}

fn self_access(server: &ApiServer, question: &Value, _: &str, user: &User) -> Result<Value, ApiError> {
    allowed(server, &question["spec"], user)
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
    let extra = spec["extra"].as_object().into_iter().flatten();
    let subject = User {
        name: text(&spec["user"]),
        uid: text(&spec["uid"]),
        groups: texts(&spec["groups"]),
        extra: extra.map(|(key, values)| (key.to_lowercase(), texts(values))).collect(),
    };
    allowed(server, spec, &subject)
}

fn self_rules(server: &ApiServer, question: &Value, _: &str, user: &User) -> Result<Value, ApiError> {
    let namespace = question["spec"]["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("no namespace on request"));
    }
    Ok(server.rbac.rules_of(user, namespace))
}

/// The same list of authenticators as for requests.
async fn token_review(server: &ApiServer, spec: &Value) -> Value {
    let audiences = texts(&spec["audiences"]);
    let token = spec["token"].as_str().unwrap_or_default();
    let now = jiff::Timestamp::now().as_second();
    match server.authenticators.review(token, &audiences, now).await {
        Ok(Some(found)) => {
            json!({"authenticated": true, "user": found.user.info(), "audiences": found.audiences})
        }
        Ok(None) => json!({"authenticated": false, "error": "the token is not valid"}),
        Err(why) => {
            tracing::debug!(%why, "a reviewed token is not valid");
            json!({"authenticated": false, "error": format!("the token is not valid: {why}")})
        }
    }
}

fn self_review(_: &ApiServer, _: &Value, _: &str, user: &User) -> Result<Value, ApiError> {
    Ok(json!({"userInfo": user.info()}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_in_questions() {
        let rows: [(Value, Option<&[(&str, &str)]>); 6] = [
            (Value::Null, Some(&[])),
            (json!({"rawSelector": "spec.nodeName=n"}), Some(&[("spec.nodeName", "n")])),
            (
                json!({"requirements": [
                    {"key": "spec.nodeName", "operator": "In", "values": ["n"]},
                    {"key": "a", "operator": "In", "values": ["b", "c"]},
                    {"key": "d", "operator": "Exists"},
                ]}),
                Some(&[("spec.nodeName", "n")]),
            ),
            (json!({"requirements": [{"operator": "In", "values": [5]}]}), Some(&[])),
            (json!({}), None),
            (json!({"rawSelector": "a=b", "requirements": [{"key": "a"}]}), None),
        ];
        for (selector, expected) in rows {
            let found = selected(&selector, "fieldSelector").ok();
            let expected = expected
                .map(|list| list.iter().map(|(f, v)| ((*f).to_owned(), (*v).to_owned())).collect::<Vec<_>>());
            assert_eq!(found, expected, "{selector}");
        }
    }
}
