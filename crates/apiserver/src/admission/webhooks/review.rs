//! What is sent to a webhook and what its answer means: `admission.k8s.io/v1`, all pure.
//!
//! Source: KEP-492 and `k8s.io/apiserver/pkg/admission/plugin/webhook/request`, whose words errors have here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use sampan_api::decode::{self, Strictness};
use sampan_api::patch::{PatchError, json_patch};
use serde_json::{Value, json};

use crate::admission::intercepted::{Intercepted, Seen};
use crate::error::{ApiError, known_reason};
use crate::outbound::Answer;

/// Characters of one audit annotation that are kept.
const MAX_ANNOTATION: usize = 4 * 1024;

/// The `AdmissionReview` for a webhook that is shown these documents.
pub(super) fn request(intercepted: &Intercepted<'_>, seen: &Seen<'_>, uid: &str) -> Value {
    let mut request = intercepted.description(seen.kind);
    request["uid"] = uid.into();
    request["object"] = seen.object.as_deref().cloned().unwrap_or_default();
    request["oldObject"] = seen.old.as_deref().cloned().unwrap_or_default();
    if let Some(fields) = request.as_object_mut() {
        let optional = ["subResource", "requestSubResource", "name", "namespace"];
        fields.retain(|field, value| *value != "" || !optional.contains(&field.as_str()));
    }
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "request": request})
}

/// What a webhook says.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    pub(super) refusal: Option<ApiError>,
    /// A JSON patch with at least one operation.
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
    /// Keys carry the webhook's name.
    pub(super) annotations: Vec<(String, String)>,
}

/// Reads the answer to the review `uid`. An error is one that the failure policy decides about.
pub(super) fn verdict(name: &str, mutating: bool, uid: &str, answer: &Answer) -> Result<Verdict, String> {
    let review = read(answer).map_err(|why| format!("failed to call webhook: {why}"))?;
    let response =
        verify(&review, mutating, uid).map_err(|why| format!("received invalid webhook response: {why}"))?;
    let texts = |field: &str| response[field].as_array().into_iter().flatten().filter_map(Value::as_str);
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    let mut verdict = Verdict {
        warnings: texts("warnings").map(str::to_owned).collect(),
        annotations: annotations
            .filter_map(|(key, value)| {
                Some((format!("{name}/{key}"), value.as_str()?.chars().take(MAX_ANNOTATION).collect()))
            })
            .collect(),
        ..Verdict::default()
    };
    if response["allowed"] != true {
        verdict.refusal = Some(refusal(name, &response["status"]));
        return Ok(verdict);
    }
    verdict.patch = patch(response)?;
    Ok(verdict)
}

/// The review in an answer that says that all went well.
fn read(answer: &Answer) -> Result<Value, String> {
    if !answer.status.is_success() {
        let status: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let message = status["message"].as_str().filter(|_| status["kind"] == "Status");
        return Err(message.map_or_else(|| in_words(answer.status), str::to_owned));
    }
    // The parser of request bodies: what a webhook says has the same bounds of depth and the same checks.
    decode::parse_json(&answer.body, &mut Strictness::default())
        .map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))
}

/// What a code of an answer without a `Status` means.
pub(crate) fn in_words(code: StatusCode) -> String {
    match code.as_u16() {
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => "the server does not allow access to the requested resource".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        429 => "the server has received too many requests and has asked us to try again later".to_owned(),
        code @ 500.. => {
            format!("an error on the server (code {code}) has prevented the request from succeeding")
        }
        code => format!("the server rejected our request for an unknown reason (code {code})"),
    }
}

fn verify<'a>(review: &'a Value, mutating: bool, uid: &str) -> Result<&'a Value, String> {
    let response = &review["response"];
    if !response.is_object() {
        return Err("webhook response was absent".to_owned());
    }
    let found = response["uid"].as_str().unwrap_or_default();
    if found != uid {
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let text = |field: &str| review[field].as_str().unwrap_or_default();
    if (text("apiVersion"), text("kind")) != ("admission.k8s.io/v1", "AdmissionReview") {
        return Err(format!(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {}, Kind={}",
            text("apiVersion"),
            text("kind")
        ));
    }
    let has_patch = response["patch"].as_str().is_some_and(|p| !p.is_empty());
    let patch_type = response["patchType"].as_str();
    match (mutating, has_patch, patch_type) {
        (true, true, None) => Err("webhook returned response.patch but not response.patchType".to_owned()),
        (true, false, Some(_)) => {
            Err("webhook returned response.patchType but not response.patch".to_owned())
        }
        (true, true, Some("")) => Err("webhook returned invalid response.patchType of \"\"".to_owned()),
        (false, true, _) => Err("validating webhook may not return response.patch".to_owned()),
        (false, _, Some(_)) => Err("validating webhook may not return response.patchType".to_owned()),
        _ => Ok(response),
    }
}

fn patch(response: &Value) -> Result<Option<Value>, String> {
    let Some(text) = response["patch"].as_str().filter(|p| !p.is_empty()) else { return Ok(None) };
    match response["patchType"].as_str() {
        Some("JSONPatch") => {}
        other => return Err(format!("unsupported patch type {:?}", other.unwrap_or_default())),
    }
    let bytes = STANDARD
        .decode(text)
        .map_err(|e| format!("failed to call webhook: response.patch is not base64: {e}"))?;
    let patch = decode::parse_json(&bytes, &mut Strictness::default())
        .map_err(|e| format!("received invalid webhook response: response.patch: {e}"))?;
    Ok(Some(patch).filter(|p| p.as_array().is_none_or(|operations| !operations.is_empty())))
}

/// The error of a request that a webhook does not allow; `result` is the `status` of its response.
fn refusal(name: &str, result: &Value) -> ApiError {
    let denied = format!("admission webhook {name:?} denied the request");
    let text = |field: &str| result[field].as_str().filter(|t| !t.is_empty());
    let message = match text("message").or(text("reason")) {
        Some(why) => format!("{denied}: {why}"),
        None => format!("{denied} without explanation"),
    };
    let code = result["code"].as_u64().and_then(|code| u16::try_from(code).ok()).filter(|code| *code >= 400);
    let code = code.and_then(|code| StatusCode::from_u16(code).ok()).unwrap_or(StatusCode::BAD_REQUEST);
    let mut error = ApiError::new(code, known_reason(text("reason").unwrap_or_default()), message);
    error.details = Some(result["details"].clone()).filter(Value::is_object);
    error
}

/// Applies the patch of a webhook. It is the webhook's mistake when it does not fit, whatever its failure policy.
pub(super) fn apply(name: &str, document: Option<&Value>, patch: Value) -> Result<Value, ApiError> {
    let Some(document) = document else {
        return Err(ApiError::internal(format!(
            "admission webhook {name:?} attempted to modify the object, which is not supported for this operation"
        )));
    };
    let mut document = document.clone();
    json_patch(&mut document, patch).map_err(|error| match error {
        PatchError::TooManyOperations(_) => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", error.to_string())
        }
        error => {
            ApiError::internal(format!("the patch of admission webhook {name:?} does not apply: {error}"))
        }
    })?;
    Ok(document)
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::admission::Operation;
    use crate::admission::intercepted::Shown;
    use crate::admission::intercepted::tests::request as intercepted;
    use crate::auth::User;
    use sampan_api::registry::Registry;

    #[test]
    fn every_field_is_filled() {
        let registry = Registry::built_in();
        let find = |group: &str, version: &str, plural: &str| {
            registry.find(group, version, plural).expect("a kind").clone()
        };
        let (scalers, user) =
            (find("autoscaling", "v2", "horizontalpodautoscalers"), User::known("bob", &["g"]));
        let older = find("autoscaling", "v1", "horizontalpodautoscalers");
        let mut call = intercepted(&scalers, &user, Operation::Update, "", "ns");
        call.options = json!({"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"});
        call.dry_run = true;
        let (object, old) = (json!({"a": 2}), json!({"a": 1}));
        let seen = Seen { kind: &older, object: Some(Shown::Own(&object)), old: Some(Shown::Own(&old)) };
        let expected = json!({
            "kind": "AdmissionReview",
            "apiVersion": "admission.k8s.io/v1",
            "request": {
                "uid": "u",
                "kind": {"group": "autoscaling", "version": "v1", "kind": "HorizontalPodAutoscaler"},
                "resource": {"group": "autoscaling", "version": "v1", "resource": "horizontalpodautoscalers"},
                "requestKind": {"group": "autoscaling", "version": "v2", "kind": "HorizontalPodAutoscaler"},
                "requestResource": {"group": "autoscaling", "version": "v2", "resource": "horizontalpodautoscalers"},
                "name": "x",
                "namespace": "ns",
                "operation": "UPDATE",
                "userInfo": {"username": "bob", "groups": ["g", "system:authenticated"]},
                "object": {"a": 2},
                "oldObject": {"a": 1},
                "dryRun": true,
                "options": {"kind": "UpdateOptions", "apiVersion": "meta.k8s.io/v1"},
            },
        });
        assert_eq!(request(&call, &seen, "u"), expected);
        let deployments = find("apps", "v1", "deployments");
        let mut scale = intercepted(&deployments, &user, Operation::Update, "scale", "ns");
        scale.document = ("autoscaling".to_owned(), "v1".to_owned(), "Scale".to_owned());
        let seen = Seen { kind: &deployments, object: Some(Shown::Own(&object)), old: None };
        let sent = request(&scale, &seen, "u");
        assert_eq!(
            sent["request"]["kind"],
            json!({"group": "autoscaling", "version": "v1", "kind": "Scale"})
        );
        assert_eq!(sent["request"]["subResource"], "scale");
        assert_eq!(sent["request"]["requestSubResource"], "scale");
        assert_eq!(sent["request"]["oldObject"], Value::Null);
    }

    fn answer(status: u16, body: impl ToString) -> Answer {
        let status = StatusCode::from_u16(status).expect("a code");
        Answer { status, body: body.to_string().into() }
    }

    fn review(response: Value) -> Value {
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response})
    }

    #[test]
    fn answers_that_cannot_be_used() {
        let patch = STANDARD.encode("[{\"op\":\"remove\",\"path\":\"/a\"}]");
        let other_version = json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1beta1", "response": {"uid": "u"}});
        let status = json!({"kind": "Status", "message": "over there"});
        let rows: Vec<(bool, Answer, &str)> = vec![
            (
                true,
                answer(200, "garbage"),
                "failed to call webhook: couldn't get version/kind; json parse error",
            ),
            (true, answer(200, "[".repeat(100_000)), "json parse error"),
            (
                true,
                answer(404, "nothing here"),
                "failed to call webhook: the server could not find the requested resource",
            ),
            (true, answer(500, status), "failed to call webhook: over there"),
            (true, answer(302, ""), "unknown reason (code 302)"),
            (true, answer(200, json!({})), "received invalid webhook response: webhook response was absent"),
            (true, answer(200, review(json!({"uid": "v"}))), "expected response.uid=\"u\", got \"v\""),
            (true, answer(200, other_version), "got admission.k8s.io/v1beta1, Kind=AdmissionReview"),
            (
                true,
                answer(200, review(json!({"uid": "u", "allowed": true, "patch": patch}))),
                "response.patch but not response.patchType",
            ),
            (
                true,
                answer(200, review(json!({"uid": "u", "allowed": true, "patchType": "JSONPatch"}))),
                "response.patchType but not response.patch",
            ),
            (
                true,
                answer(
                    200,
                    review(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "Merge"})),
                ),
                "unsupported patch type \"Merge\"",
            ),
            (
                true,
                answer(
                    200,
                    review(json!({"uid": "u", "allowed": true, "patch": "%", "patchType": "JSONPatch"})),
                ),
                "not base64",
            ),
            (
                false,
                answer(
                    200,
                    review(json!({"uid": "u", "allowed": true, "patch": patch, "patchType": "JSONPatch"})),
                ),
                "validating webhook may not return response.patch",
            ),
        ];
        for (mutating, answer, expected) in rows {
            let found = verdict("w", mutating, "u", &answer).expect_err(expected);
            assert!(found.contains(expected), "{found}, expected {expected}");
        }
    }

    #[test]
    fn refusals_are_explained() {
        let rows = [
            (json!({}), 400, "", "admission webhook \"w\" denied the request without explanation"),
            (json!({"message": "no"}), 400, "", "admission webhook \"w\" denied the request: no"),
            (
                json!({"reason": "Forbidden"}),
                400,
                "Forbidden",
                "admission webhook \"w\" denied the request: Forbidden",
            ),
            (
                json!({"code": 403, "message": "no"}),
                403,
                "",
                "admission webhook \"w\" denied the request: no",
            ),
            (
                json!({"code": 200, "message": "no"}),
                400,
                "",
                "admission webhook \"w\" denied the request: no",
            ),
            (
                json!({"code": 70000, "message": "no"}),
                400,
                "",
                "admission webhook \"w\" denied the request: no",
            ),
            (
                json!({"reason": "made up", "message": "no"}),
                400,
                "",
                "admission webhook \"w\" denied the request: no",
            ),
        ];
        for (status, code, reason, message) in rows {
            let response = review(json!({"uid": "u", "allowed": false, "status": status, "warnings": ["x"]}));
            let verdict = verdict("w", false, "u", &answer(200, response)).expect("an answer");
            let error = verdict.refusal.expect("a refusal");
            assert_eq!((error.code.as_u16(), error.reason, error.message.as_str()), (code, reason, message));
            assert_eq!(verdict.warnings, ["x"]);
        }
    }

    #[test]
    fn patches_and_annotations_are_read() {
        let operations = json!([{"op": "add", "path": "/a", "value": 1}]);
        let response = json!({
            "uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string()),
            "auditAnnotations": {"k": "v"},
        });
        let found = verdict("w", true, "u", &answer(200, review(response))).expect("an answer");
        assert_eq!((found.patch.as_ref(), found.refusal), (Some(&operations), None));
        assert_eq!(found.annotations, [("w/k".to_owned(), "v".to_owned())]);
        let empty =
            json!({"uid": "u", "allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode("[]")});
        assert_eq!(verdict("w", true, "u", &answer(200, review(empty))).expect("an answer").patch, None);
        let patched = apply("w", Some(&json!({"b": 2})), operations.clone()).expect("applies");
        assert_eq!(patched, json!({"a": 1, "b": 2}));
        let none = apply("w", None, operations).expect_err("nothing to patch");
        assert!(none.message.contains("attempted to modify the object"), "{none}");
        let misfit = json!([{"op": "remove", "path": "/zzz"}]);
        assert_eq!(apply("w", Some(&json!({})), misfit).expect_err("does not fit").code.as_u16(), 500);
    }
}
