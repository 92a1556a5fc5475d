//! The smallest patch from the status the API has to the one that is true, and how it is sent.
//!
//! Strategic merge: conditions of others stay, lists of containers are replaced. The patch names the pod's uid, so that
//! a pod of the same name made since is never touched.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Map, Value, json};

use super::model::PodModel;
use crate::context::Context;

/// Fields this node owns: one that it no longer sets is taken away.
const OWN: &[&str] = &[
    "phase",
    "reason",
    "message",
    "containerStatuses",
    "initContainerStatuses",
    "ephemeralContainerStatuses",
    "hostIP",
    "hostIPs",
    "podIP",
    "podIPs",
    "startTime",
    "qosClass",
    "observedGeneration",
];

/// The patch, or `None` when nothing differs.
pub(crate) fn patch(pod: &Pod, desired: &PodStatus) -> Option<Value> {
    let before = pod.status.as_ref().and_then(|status| serde_json::to_value(status).ok()).unwrap_or_default();
    let desired = serde_json::to_value(desired).ok()?;
    let mut changes = Map::new();
    for field in OWN {
        let (old, new) = (before.get(field), desired.get(field));
        match (old, new) {
            (old, new) if old.map(plain) == new.map(plain) => {}
            (_, Some(new)) => drop(changes.insert((*field).to_string(), replaced(field, old, new))),
            (_, None) => drop(changes.insert((*field).to_string(), Value::Null)),
        }
    }
    let conditions = changed_conditions(before.get("conditions"), desired.get("conditions"));
    if !conditions.is_empty() {
        changes.insert("conditions".to_string(), Value::Array(conditions));
    }
    if changes.is_empty() {
        return None;
    }
    Some(json!({ "metadata": { "uid": pod.metadata.uid }, "status": changes }))
}

/// A value without what means nothing (null, empty text, empty objects and lists): a server may drop or add such things,
/// and that must not make a difference for ever.
fn plain(value: &Value) -> Value {
    let says_something = |value: &Value| match value {
        Value::Null => false,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
        _ => true,
    };
    match value {
        Value::Object(map) => {
            let fields = map.iter().map(|(key, value)| (key.clone(), plain(value)));
            Value::Object(fields.filter(|(_, value)| says_something(value)).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(plain).collect()),
        other => other.clone(),
    }
}

/// `podIPs` and `hostIPs` merge by address: an old address goes only when the patch says that the list is replaced.
fn replaced(field: &str, old: Option<&Value>, new: &Value) -> Value {
    match (field, new.as_array()) {
        ("podIPs" | "hostIPs", Some(list)) if old.is_some() => {
            let mut list = list.clone();
            list.insert(0, json!({ "$patch": "replace" }));
            Value::Array(list)
        }
        _ => new.clone(),
    }
}

fn changed_conditions(before: Option<&Value>, desired: Option<&Value>) -> Vec<Value> {
    let before = before.and_then(Value::as_array);
    let desired = desired.and_then(Value::as_array);
    let mut changed = Vec::new();
    for condition in desired.into_iter().flatten() {
        let old = before.into_iter().flatten().find(|old| old["type"] == condition["type"]);
        if old == Some(condition) {
            continue;
        }
        let mut condition = condition.clone();
        // Merged by type: what the new one does not say has to be taken away explicitly.
        if let (Some(old), Some(new)) = (old.and_then(Value::as_object), condition.as_object_mut()) {
            for key in ["reason", "message"] {
                if old.contains_key(key) && !new.contains_key(key) {
                    new.insert(key.to_string(), Value::Null);
                }
            }
        }
        if old.map(plain) != Some(plain(&condition)) {
            changed.push(condition);
        }
    }
    changed
}

/// Sends the patch; the answer is the pod as it is now.
pub(crate) async fn send(
    context: Arc<Context>,
    model: Arc<PodModel>,
    patch: Value,
) -> Result<Pod, kube::Error> {
    let api: Api<Pod> = Api::namespaced(context.client.clone(), model.namespace());
    let parameters = PatchParams { field_manager: Some("kubelet".to_string()), ..PatchParams::default() };
    api.patch_status(model.name(), &parameters, &Patch::Strategic(patch)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodCondition, PodIP};

    fn condition(type_: &str, status: &str, reason: Option<&str>) -> PodCondition {
        PodCondition {
            type_: type_.into(),
            status: status.into(),
            reason: reason.map(Into::into),
            ..PodCondition::default()
        }
    }

    #[test]
    fn only_differences_are_sent() {
        let before = PodStatus {
            phase: Some("Pending".into()),
            message: Some("m".into()),
            conditions: Some(vec![
                condition("PodScheduled", "True", None),
                condition("Ready", "False", Some("r")),
                condition("Initialized", "True", None),
            ]),
            pod_ips: Some(vec![PodIP { ip: "1".into() }]),
            ..PodStatus::default()
        };
        let desired = PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![condition("Ready", "True", None), condition("Initialized", "True", None)]),
            pod_ips: Some(vec![PodIP { ip: "2".into() }]),
            ..PodStatus::default()
        };
        let pod = Pod { status: Some(before), ..Pod::default() };
        let patch = patch(&pod, &desired).unwrap_or_default();
        assert_eq!(
            patch["status"],
            json!({
                "phase": "Running",
                "message": null,
                "podIPs": [{ "$patch": "replace" }, { "ip": "2" }],
                "conditions": [{ "type": "Ready", "status": "True", "reason": null }],
            })
        );
    }

    #[test]
    fn nothing_is_sent_when_nothing_differs() {
        let status = PodStatus { phase: Some("Running".into()), ..PodStatus::default() };
        let pod = Pod { status: Some(status.clone()), ..Pod::default() };
        assert_eq!(patch(&pod, &status), None);
    }
}
