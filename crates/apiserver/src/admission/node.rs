//! Nodes: a node touches only itself, its heartbeat and the pods bound to it (NodeRestriction), and gets no pods before it
//! is ready (TaintNodesByCondition).
//!
//! What a node may read is the authorizer's business (`auth/node.rs`); here is what may be in what it writes.

use serde_json::{Map, Value, json};

use super::Admission;
use crate::auth::User;
use crate::auth::node::references;
use crate::certificates;
use crate::error::ApiError;
use crate::view::View;

/// Group of the nodes' own users.
const NODES: &str = "system:nodes";
/// Marks the API's picture of a pod that the node has from elsewhere.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// Labels below this are set by administrators, who can rely on no node taking them for itself.
const RESTRICTED: &str = "node-restriction.kubernetes.io";
/// Labels of Kubernetes' own that a node sets about itself.
const OWN_LABELS: &[&str] = &[
    "beta.kubernetes.io/arch",
    "beta.kubernetes.io/instance-type",
    "beta.kubernetes.io/os",
    "failure-domain.beta.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.kubernetes.io/region",
    "failure-domain.kubernetes.io/zone",
    "kubernetes.io/arch",
    "kubernetes.io/hostname",
    "kubernetes.io/instance-type",
    "kubernetes.io/os",
    "node.kubernetes.io/instance-type",
    "topology.kubernetes.io/region",
    "topology.kubernetes.io/zone",
];
/// Domains in which a node may set any label about itself.
const OWN_DOMAINS: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];

/// The node a user is, if it is one.
pub(crate) fn node_of(user: &User) -> Option<&str> {
    user.name.strip_prefix("system:node:").filter(|name| !name.is_empty() && user.is_in(NODES))
}

/// Whether a pod is the picture of one that its node has from elsewhere.
pub(super) fn is_mirror(pod: &Value) -> bool {
    pod["metadata"]["annotations"][MIRROR].is_string()
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
    let checked = match (&*admission.kind.group, &*admission.kind.plural) {
        ("", "nodes") if name != node => {
            return refuse(format!("node \"{node}\" is not allowed to modify node \"{name}\""));
        }
        ("coordination.k8s.io", "leases") if name != node || admission.namespace != "kube-node-lease" => {
            return refuse(format!("node \"{node}\" can only access its own node lease"));
        }
        ("storage.k8s.io", "csinodes") if name != node => {
            return refuse(format!("node \"{node}\" is not allowed to modify CSINode \"{name}\""));
        }
        ("resource.k8s.io", "resourceslices") if object["spec"]["nodeName"] != node => {
            return refuse(format!("node \"{node}\" can only modify its own resource slices"));
        }
        ("", "nodes") => node_itself(admission.old, object),
        ("", "pods") if admission.old.is_none() => new_pod(admission, node, object),
        ("", "pods") => pod_status(node, admission.view, admission.old, object),
        ("", "persistentvolumeclaims") if admission.view != View::Status => {
            Err("can only change the status of claims".to_owned())
        }
        ("", "persistentvolumeclaims") => claim_status(admission.old, object),
        ("" | "events.k8s.io", "events")
        | ("coordination.k8s.io", "leases")
        | ("storage.k8s.io", "csinodes")
        | ("resource.k8s.io", "resourceslices")
        // Whom a request is for is looked at with the request.
        | (certificates::GROUP, certificates::REQUESTS) => Ok(()),
        (_, plural) => Err(format!("cannot modify {plural}")),
    };
    checked.or_else(|why| refuse(format!("node \"{node}\" {why}")))
}

/// What a node may not say about itself.
fn node_itself(old: Option<&Value>, new: &Value) -> Result<(), String> {
    let empty = Value::Null;
    let old_or_nothing = old.unwrap_or(&empty);
    let forbidden = forbidden_labels(&old_or_nothing["metadata"]["labels"], &new["metadata"]["labels"]);
    if !forbidden.is_empty() {
        let verb = if old.is_some() { "modify" } else { "set" };
        return Err(format!("is not allowed to {verb} labels: {}", forbidden.join(", ")));
    }
    let changed = |pointer: &str| {
        let part = |object: &Value| object.pointer(pointer).filter(|part| !is_empty(part)).cloned();
        old.is_some_and(|old| part(old) != part(new))
    };
    if changed("/spec/taints") {
        return Err("is not allowed to modify taints".to_owned());
    }
    // An owner that does not exist would have the node collected, with whatever is known of it (CVE-2025-5187).
    if changed("/metadata/ownerReferences") {
        return Err("is not allowed to modify ownerReferences".to_owned());
    }
    Ok(())
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value.as_array().is_some_and(Vec::is_empty)
}

/// Labels that change and are not a node's to change, in order.
fn forbidden_labels(old: &Value, new: &Value) -> Vec<String> {
    let none = Map::new();
    let (old, new) = (old.as_object().unwrap_or(&none), new.as_object().unwrap_or(&none));
    let mut changed: Vec<&String> =
        old.keys().chain(new.keys()).filter(|key| old.get(*key) != new.get(*key)).collect();
    changed.sort();
    changed.dedup();
    changed.into_iter().filter(|key| !is_own_label(key)).cloned().collect()
}

fn is_own_label(key: &str) -> bool {
    let Some((domain, _)) = key.split_once('/') else { return true };
    let below = |parent: &str| domain == parent || domain.ends_with(&format!(".{parent}"));
    if below(RESTRICTED) {
        return false;
    }
    let of_kubernetes = below("kubernetes.io") || below("k8s.io");
    !of_kubernetes || OWN_LABELS.contains(&key) || OWN_DOMAINS.iter().any(|own| below(own))
}

/// A node makes only pictures of pods it has from elsewhere, and they need nothing of the cluster's.
fn new_pod(admission: &Admission<'_>, node: &str, pod: &Value) -> Result<(), String> {
    if !is_mirror(pod) {
        return Err("can only create mirror pods".to_owned());
    }
    if pod["spec"]["nodeName"] != node {
        return Err("can only create pods with spec.nodeName set to itself".to_owned());
    }
    if !references(pod).is_empty() {
        return Err(
            "can not create pods that reference secrets, config maps, claims or service accounts".to_owned()
        );
    }
    let owners = pod["metadata"]["ownerReferences"].as_array().map_or(&[][..], Vec::as_slice);
    let [owner] = owners else {
        return Err("can only create pods with one owner reference, set to itself".to_owned());
    };
    let key = format!("/nodes/{node}");
    let itself = admission.server.cache.resource("nodes").get(&key);
    let itself = itself.is_some_and(|item| owner["uid"] == item.field("/metadata/uid").as_str());
    if !itself || owner["kind"] != "Node" || owner["apiVersion"] != "v1" || owner["name"] != node {
        return Err("can only create pods with an owner reference set to itself".to_owned());
    }
    if owner["controller"] != true || owner["blockOwnerDeletion"] == true {
        return Err("can only create pods that it controls, and that do not hold it".to_owned());
    }
    Ok(())
}

fn pod_status(node: &str, view: View, old: Option<&Value>, new: &Value) -> Result<(), String> {
    if view != View::Status {
        return Err("can only change the status of pods".to_owned());
    }
    let none = Value::Null;
    let old = old.unwrap_or(&none);
    if old["spec"]["nodeName"] != node {
        return Err("can only update pod status for pods with spec.nodeName set to itself".to_owned());
    }
    if old["metadata"]["labels"] != new["metadata"]["labels"] {
        return Err("cannot update labels through pod status".to_owned());
    }
    Ok(())
}

/// A node says how large a claim is, and neither renames nor holds it.
fn claim_status(old: Option<&Value>, new: &Value) -> Result<(), String> {
    let fields = ["labels", "annotations", "finalizers", "ownerReferences"];
    let same = |old: &Value| fields.iter().all(|field| old["metadata"][field] == new["metadata"][field]);
    if old.is_some_and(same) {
        return Ok(());
    }
    Err("is not allowed to update metadata of persistentvolumeclaims".to_owned())
}

/// A node may delete the pods bound to it and its own heartbeat.
pub(super) fn restrict_delete(admission: &Admission<'_>, old: &Value) -> Result<(), ApiError> {
    let Some(node) = node_of(admission.user) else { return Ok(()) };
    let allowed = match (&*admission.kind.group, &*admission.kind.plural) {
        ("", "pods") => old["spec"]["nodeName"] == node,
        ("coordination.k8s.io", "leases") => {
            old["metadata"]["name"] == node && admission.namespace == "kube-node-lease"
        }
        ("storage.k8s.io", "csinodes") => old["metadata"]["name"] == node,
        ("resource.k8s.io", "resourceslices") => old["spec"]["nodeName"] == node,
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

    #[test]
    fn status_is_all_a_node_says_of_pods_and_claims() {
        let old = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"nodeName": "n"}});
        let rows = [
            (json!({"status": {"phase": "x"}}), true, true),
            (json!({"metadata": {"labels": {"a": "c"}}}), false, false),
            (json!({"metadata": {"labels": {"a": "b"}, "finalizers": ["x/y"]}}), true, false),
            (json!({"metadata": {"labels": {"a": "b"}, "annotations": {"x": "y"}}}), true, false),
        ];
        for (change, of_pod, of_claim) in rows {
            let mut new = old.clone();
            for (field, value) in change.as_object().into_iter().flatten() {
                new[field] = value.clone();
            }
            assert_eq!(pod_status("n", View::Status, Some(&old), &new).is_ok(), of_pod, "{change}");
            assert_eq!(claim_status(Some(&old), &new).is_ok(), of_claim, "{change}");
        }
    }

    #[test]
    fn labels() {
        let rows = [
            ("kubernetes.io/hostname", true),
            ("topology.kubernetes.io/zone", true),
            ("node.kubernetes.io/anything", true),
            ("example.kubelet.kubernetes.io/x", true),
            ("example.com/x", true),
            ("plain", true),
            ("node-restriction.kubernetes.io/fips", false),
            ("example.com.node-restriction.kubernetes.io/x", false),
            ("node-role.kubernetes.io/control-plane", false),
            ("kubernetes.io/role", false),
            ("app.k8s.io/x", false),
            ("notkubernetes.io/x", true),
        ];
        for (key, expected) in rows {
            assert_eq!(is_own_label(key), expected, "{key}");
        }
        let old = json!({"node-restriction.kubernetes.io/a": "1", "k8s.io/same": "x", "mine": "1"});
        let new = json!({"k8s.io/same": "x", "mine": "2", "kubernetes.io/new": "1"});
        assert_eq!(forbidden_labels(&old, &new), ["kubernetes.io/new", "node-restriction.kubernetes.io/a"]);
    }

    #[test]
    fn what_a_node_says_of_itself() {
        let node = |taints: Value, owners: Value| json!({"metadata": {"ownerReferences": owners}, "spec": {"taints": taints}});
        let taint = json!([{"key": "a", "effect": "NoSchedule"}]);
        let plain = node(Value::Null, Value::Null);
        let rows = [
            ("nothing", Some(&plain), node(json!([]), json!([])), true),
            ("a new node with a taint", None, node(taint.clone(), Value::Null), true),
            ("a taint", Some(&plain), node(taint, Value::Null), false),
            ("an owner", Some(&plain), node(Value::Null, json!([{"name": "x"}])), false),
        ];
        for (what, old, new, expected) in rows {
            assert_eq!(node_itself(old, &new).is_ok(), expected, "{what}");
        }
    }

    #[test]
    fn status_of_pods() {
        let pod = |node: &str, label: &str| json!({"metadata": {"labels": {"a": label}}, "spec": {"nodeName": node}});
        let rows = [
            ("own", View::Status, pod("n", "1"), pod("n", "1"), true),
            ("the pod", View::Object, pod("n", "1"), pod("n", "1"), false),
            ("another's", View::Status, pod("m", "1"), pod("m", "1"), false),
            ("labels", View::Status, pod("n", "1"), pod("n", "2"), false),
        ];
        for (what, view, old, new, expected) in rows {
            assert_eq!(pod_status("n", view, Some(&old), &new).is_ok(), expected, "{what}");
        }
    }
}
