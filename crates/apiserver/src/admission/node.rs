//! NodeRestriction: a node touches only itself, its heartbeat and the pods bound to it.

use serde_json::Value;

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
