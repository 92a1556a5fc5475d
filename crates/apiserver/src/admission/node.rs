//! Nodes: a node touches only itself, its heartbeat and the pods bound to it (NodeRestriction), and gets no pods before it
//! is ready (TaintNodesByCondition).

use serde_json::{Value, json};

use super::Admission;
use crate::auth::User;
use crate::error::ApiError;
use crate::view::View;

/// Group of the nodes' own users.
const NODES: &str = "system:nodes";

/// The node a user is, if it is one.
pub(crate) fn node_of(user: &User) -> Option<&str> {
    user.name.strip_prefix("system:node:").filter(|_| user.is_in(NODES))
}

pub(super) fn restriction(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let Some(node) = node_of(admission.user) else {
        return if admission.user.is_in(NODES) {
            Err(admission.forbidden(object, "unknown node"))
        } else {
            Ok(())
        };
    };
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let refuse = |why: String| Err(admission.forbidden(object, why));
    match (&*admission.kind.group, &*admission.kind.plural) {
        ("", "nodes") if name != node => {
            refuse(format!("node \"{node}\" is not allowed to modify node \"{name}\""))
        }
        ("coordination.k8s.io", "leases") if name != node || admission.namespace != "kube-node-lease" => {
            refuse(format!("node \"{node}\" can only access its own node lease"))
        }
        ("", "pods") => pod(admission, object, node),
        ("" | "events.k8s.io", "events" | "nodes") | ("coordination.k8s.io", "leases") => Ok(()),
        _ => refuse(format!("node \"{node}\" cannot modify {}", admission.kind.plural)),
    }
}

fn pod(admission: &Admission<'_>, object: &Value, node: &str) -> Result<(), ApiError> {
    let bound = admission.old.map_or("", |old| old["spec"]["nodeName"].as_str().unwrap_or_default());
    if admission.old.is_none() || admission.view != View::Status {
        return Err(
            admission.forbidden(object, format!("node \"{node}\" can only change the status of pods"))
        );
    }
    if bound != node {
        let why =
            format!("node \"{node}\" can only update pod status for pods with spec.nodeName set to itself");
        return Err(admission.forbidden(object, why));
    }
    Ok(())
}

/// A node may delete the pods bound to it and its own heartbeat.
pub(super) fn restrict_delete(admission: &Admission<'_>, old: &Value) -> Result<(), ApiError> {
    let Some(node) = node_of(admission.user) else { return Ok(()) };
    let allowed = match (&*admission.kind.group, &*admission.kind.plural) {
        ("", "pods") => old["spec"]["nodeName"] == node,
        ("coordination.k8s.io", "leases") => {
            old["metadata"]["name"] == node && admission.namespace == "kube-node-lease"
        }
        ("", "events") => true,
        _ => false,
    };
    if allowed {
        return Ok(());
    }
    Err(admission.forbidden(old, format!("node \"{node}\" can only delete what belongs to it")))
}

const NOT_READY: &str = "node.kubernetes.io/not-ready";

/// A new node that does not say that it is ready gets no pods. Our own node agent registers when it is ready and comes
/// with that condition; a kubelet does not. The taint goes when a loop that follows the conditions of nodes takes it off.
pub(super) fn new_taint(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    if admission.creates("", "nodes") && !is_ready(object) {
        taint(object);
    }
    Ok(())
}

fn is_ready(node: &Value) -> bool {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn taint(node: &mut Value) {
    if !node["spec"].is_object() {
        node["spec"] = json!({});
    }
    let taints = &mut node["spec"]["taints"];
    if !taints.is_array() {
        *taints = json!([]);
    }
    if let Some(taints) = taints.as_array_mut() {
        let present = |taint: &Value| taint["key"] == NOT_READY && taint["effect"] == "NoSchedule";
        if !taints.iter().any(present) {
            taints.push(json!({"key": NOT_READY, "effect": "NoSchedule"}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_is_not_ready_is_tainted_once() {
        let ready = |status: &str| json!({"status": {"conditions": [{"type": "Ready", "status": status}]}});
        for (node, expected) in [(ready("True"), true), (ready("False"), false), (json!({}), false)] {
            assert_eq!(is_ready(&node), expected, "{node}");
        }
        let mut node = json!({"spec": {"taints": [{"key": "own", "effect": "NoExecute"}]}});
        taint(&mut node);
        taint(&mut node);
        let expected = json!([
            {"key": "own", "effect": "NoExecute"},
            {"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"},
        ]);
        assert_eq!(node["spec"]["taints"], expected);
    }
}
