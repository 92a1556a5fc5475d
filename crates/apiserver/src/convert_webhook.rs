//! Conversion webhooks: a custom resource's objects in another of its versions (`apiextensions.k8s.io/v1`,
//! `ConversionReview`).
//!
//! Writing the question and checking the answer is pure. The checks and their words are those of
//! `k8s.io/apiextensions-apiserver/pkg/apiserver/conversion`: a webhook may change how an object is written down, not
//! which object it is.

use std::time::Duration;

use http::StatusCode;
use sampan_api::decode::{self, Strictness};
use serde_json::{Value, json};
use tracing::Instrument as _;

use crate::admission::webhooks::in_words;
use crate::error::ApiError;
use crate::outbound::{Answer, Target};
use crate::server::ApiServer;
use crate::traces::part;

/// Upstream's patience.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of objects in one question. Answers are bounded at three times that, and converted objects may grow.
const MAX_QUESTION: usize = 1024 * 1024;

impl ApiServer {
    /// Converts objects to `desired_api_version` by the webhook of `client_config` (`spec.conversion.webhook.clientConfig`
    /// of a definition). Objects that are in that version already are not sent. The order stays.
    pub(crate) async fn convert_by_webhook(
        &self,
        client_config: &Value,
        mut objects: Vec<Value>,
        desired_api_version: &str,
    ) -> Result<Vec<Value>, ApiError> {
        let waiting: Vec<usize> =
            (0..objects.len()).filter(|i| objects[*i]["apiVersion"] != desired_api_version).collect();
        for places in questions(&waiting, &objects) {
            let question: Vec<&Value> = places.iter().map(|place| &objects[*place]).collect();
            let span = part!("conversion webhook", objects = question.len(), desired = desired_api_version);
            let converted =
                self.convert_some(client_config, &question, desired_api_version).instrument(span).await;
            let converted = converted.map_err(|why| failure(question.first().copied(), &why))?;
            for (place, object) in places.into_iter().zip(converted) {
                objects[place] = object;
            }
        }
        Ok(objects)
    }

    async fn convert_some(
        &self,
        client_config: &Value,
        objects: &[&Value],
        desired: &str,
    ) -> Result<Vec<Value>, String> {
        let failed = |why: String| format!("failed: {why}");
        let target = Target::from_client_config(client_config).map_err(failed)?;
        let target = target.with_parameter(&format!("timeout={}s", PATIENCE.as_secs()));
        let uid = uuid::Uuid::new_v4().to_string();
        let review = request(&uid, objects, desired);
        let answer = self.outbound.post(&target, review.to_string().into(), PATIENCE).await;
        let answer = answer.map_err(|e| failed(format!("Post {:?}: {e}", target.url())))?;
        let converted = read(&answer, &uid).map_err(failed)?;
        check(objects, converted, desired)
    }
}

/// Splits what is to be converted into questions of a bounded size.
fn questions(waiting: &[usize], objects: &[Value]) -> Vec<Vec<usize>> {
    let mut questions: Vec<Vec<usize>> = Vec::new();
    let mut room = 0;
    for place in waiting {
        let size = objects[*place].to_string().len();
        match questions.last_mut().filter(|_| size <= room) {
            Some(question) => question.push(*place),
            None => {
                questions.push(vec![*place]);
                room = MAX_QUESTION;
            }
        }
        room = room.saturating_sub(size);
    }
    questions
}

fn failure(object: Option<&Value>, why: &str) -> ApiError {
    let text = |field: &str| object.and_then(|o| o[field].as_str()).unwrap_or_default();
    let message = format!("conversion webhook for {}, Kind={} {why}", text("apiVersion"), text("kind"));
    tracing::warn!(
        error = message,
        api_version = text("apiVersion"),
        kind = text("kind"),
        "conversion failed"
    );
    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "InternalError", message)
}

fn request(uid: &str, objects: &[&Value], desired: &str) -> Value {
    json!({
        "kind": "ConversionReview",
        "apiVersion": "apiextensions.k8s.io/v1",
        "request": {"uid": uid, "desiredAPIVersion": desired, "objects": objects},
    })
}

/// The converted objects of an answer.
fn read(answer: &Answer, uid: &str) -> Result<Vec<Value>, String> {
    if !answer.status.is_success() {
        return Err(in_words(answer.status));
    }
    let mut review = decode::parse_json(&answer.body, &mut Strictness::default())
        .map_err(|e| format!("couldn't get version/kind; json parse error: {e}"))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (api_version, kind) = (text(&review["apiVersion"]), text(&review["kind"]));
    if (api_version.as_str(), kind.as_str()) != ("apiextensions.k8s.io/v1", "ConversionReview") {
        return Err(format!(
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {api_version}, Kind={kind}"
        ));
    }
    let response = &review["response"];
    if !response.is_object() {
        return Err("no response provided".to_owned());
    }
    let found = text(&response["uid"]);
    if found != uid {
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let status = text(&response["result"]["status"]);
    if status != "Success" {
        let message = text(&response["result"]["message"]);
        return Err(if message.is_empty() {
            format!("response.result.status was '{status}', not 'Success'")
        } else {
            message
        });
    }
    match review["response"]["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// The objects after all checks: each is still the same object, and of its metadata only labels and annotations are the
/// webhook's.
fn check(originals: &[&Value], converted: Vec<Value>, desired: &str) -> Result<Vec<Value>, String> {
    if converted.len() != originals.len() {
        return Err(format!("returned {} objects, expected {}", converted.len(), originals.len()));
    }
    let pairs = originals.iter().zip(converted).enumerate();
    pairs
        .map(|(index, (original, converted))| {
            let invalid = |why: String| format!("returned invalid converted object at index {index}: {why}");
            check_identity(original, &converted, desired).map_err(invalid)?;
            restore_metadata(original, converted).map_err(|why| format!("returned invalid metadata: {why}"))
        })
        .collect()
}

fn check_identity(original: &Value, converted: &Value, desired: &str) -> Result<(), String> {
    let text = |object: &'_ Value, pointer: &str| {
        object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let version = text(converted, "/apiVersion");
    if version != desired {
        return Err(format!("invalid groupVersion (expected: {desired}, received: {version})"));
    }
    for (what, pointer) in [
        ("kind", "/kind"),
        ("name", "/metadata/name"),
        ("namespace", "/metadata/namespace"),
        ("UID", "/metadata/uid"),
    ] {
        let (before, after) = (text(original, pointer), text(converted, pointer));
        if before != after {
            return Err(format!("must have the same {what}: {before} != {after}"));
        }
    }
    Ok(())
}

fn restore_metadata(original: &Value, mut converted: Value) -> Result<Value, String> {
    let Some(metadata) = converted["metadata"].as_object() else {
        return Err("missing metadata in converted object".to_owned());
    };
    let mut restored = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let value = metadata.get(field).filter(|value| !value.is_null()).cloned();
        let texts = value
            .as_ref()
            .is_none_or(|map| map.as_object().is_some_and(|m| m.values().all(Value::is_string)));
        if !texts {
            return Err(format!("metadata.{field} must be a map of strings"));
        }
        match (restored.as_object_mut(), value) {
            (Some(restored), Some(value)) => restored.insert(field.to_owned(), value),
            (Some(restored), None) => restored.remove(field),
            (None, _) => return Err("missing metadata in original object".to_owned()),
        };
    }
    converted["metadata"] = restored;
    Ok(converted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str, extra: Value) -> Value {
        let mut metadata =
            json!({"name": "a", "namespace": "n", "uid": "1", "labels": {"l": "1"}, "generation": 2});
        for (key, value) in extra.as_object().into_iter().flatten() {
            metadata[key] = value.clone();
        }
        json!({"apiVersion": format!("g/{version}"), "kind": "Foo", "metadata": metadata})
    }

    #[test]
    fn only_labels_and_annotations_are_the_webhooks() {
        let original = object("v1", json!({}));
        let changed = object("v2", json!({"labels": {"l": "2"}, "annotations": {"x": "y"}, "generation": 9}));
        let found = check(&[&original], vec![changed], "g/v2").expect("fits");
        let expected = object("v2", json!({"labels": {"l": "2"}, "annotations": {"x": "y"}}));
        assert_eq!(found, [expected]);
        let bare = object("v2", json!({"labels": null}));
        let found = check(&[&original], vec![bare], "g/v2").expect("fits");
        assert_eq!(found[0]["metadata"].get("labels"), None);
    }

    #[test]
    fn another_object_is_refused() {
        let original = object("v1", json!({}));
        let mut other_kind = object("v2", json!({}));
        other_kind["kind"] = "Bar".into();
        let mut bare = object("v2", json!({}));
        bare["metadata"] = Value::Null;
        let rows = [
            (vec![], "returned 0 objects, expected 1"),
            (vec![object("v1", json!({}))], "index 0: invalid groupVersion (expected: g/v2, received: g/v1)"),
            (vec![other_kind], "must have the same kind: Foo != Bar"),
            (vec![object("v2", json!({"name": "b"}))], "must have the same name: a != b"),
            (vec![object("v2", json!({"namespace": "m"}))], "must have the same namespace: n != m"),
            (vec![object("v2", json!({"uid": "2"}))], "must have the same UID: 1 != 2"),
            (vec![bare], "must have the same name: a != "),
            (vec![object("v2", json!({"labels": {"l": 1}}))], "returned invalid metadata"),
            (vec![json!(5)], "invalid groupVersion"),
        ];
        for (converted, expected) in rows {
            let found = check(&[&original], converted.clone(), "g/v2").expect_err(expected);
            assert!(found.contains(expected), "{converted:?}: {found}");
        }
    }

    #[test]
    fn answers() {
        let review = |response: Value| json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
        let good = json!({"uid": "u", "result": {"status": "Success"}, "convertedObjects": [{"a": 1}]});
        let failed = json!({"uid": "u", "result": {"status": "Failure", "message": "no such field"}});
        let rows: Vec<(u16, String, Result<usize, &str>)> = vec![
            (200, review(good).to_string(), Ok(1)),
            (200, review(failed).to_string(), Err("no such field")),
            (
                200,
                review(json!({"uid": "u"})).to_string(),
                Err("response.result.status was '', not 'Success'"),
            ),
            (200, review(json!({"uid": "v"})).to_string(), Err("expected response.uid=\"u\", got \"v\"")),
            (200, review(Value::Null).to_string(), Err("no response provided")),
            (200, "{}".to_owned(), Err("expected webhook response of")),
            (200, "<html>".to_owned(), Err("json parse error")),
            (503, String::new(), Err("an error on the server (code 503)")),
        ];
        for (status, body, expected) in rows {
            let status = StatusCode::from_u16(status).expect("a code");
            match (read(&Answer { status, body: body.clone().into() }, "u"), expected) {
                (Ok(found), Ok(count)) => assert_eq!(found.len(), count),
                (Err(why), Err(part)) => assert!(why.contains(part), "{body}: {why}"),
                (found, _) => panic!("{body}: {found:?}"),
            }
        }
    }

    #[test]
    fn questions_are_bounded() {
        let large = json!({"x": "y".repeat(MAX_QUESTION / 2)});
        let objects = vec![json!({}), large.clone(), json!({}), large.clone(), large];
        let waiting = [0, 1, 3, 4];
        assert_eq!(questions(&waiting, &objects), [vec![0, 1], vec![3], vec![4]]);
        assert!(questions(&[], &objects).is_empty());
    }
}
