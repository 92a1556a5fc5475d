//! PodTopologyLabels (KEP-4742): a pod carries the zone and the region of its node as labels, so that programs in it can
//! learn where they run by the downward API.

use serde_json::{Value, json};

use super::Admission;
use crate::error::ApiError;
use crate::server::ApiServer;

const LABELS: &[&str] = &["topology.kubernetes.io/region", "topology.kubernetes.io/zone"];

/// For a pod that is being bound.
pub(crate) fn copy_labels(server: &ApiServer, node: &str, pod: &mut Value) {
    if let Some(item) = server.cache.resource("nodes").get(&format!("/nodes/{node}"))
        && let Ok(node) = serde_json::from_slice(&item.bytes)
    {
        copy(&node, pod);
    }
}

/// For a pod that comes with its node.
pub(super) fn labels_of_bound_pod(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    if admission.creates("", "pods")
        && let Some(node) = object["spec"]["nodeName"].as_str().filter(|node| !node.is_empty())
    {
        let node = node.to_owned();
        copy_labels(admission.server, &node, object);
    }
    Ok(())
}

/// What the node says replaces what the pod said.
fn copy(node: &Value, pod: &mut Value) {
    for label in LABELS {
        let value = &node["metadata"]["labels"][*label];
        if value.is_string() {
            let labels = &mut pod["metadata"]["labels"];
            if !labels.is_object() {
                *labels = json!({});
            }
            labels[*label] = value.clone();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_copied() {
        let node = json!({"metadata": {"labels": {"topology.kubernetes.io/zone": "z", "other": "x"}}});
        let mut pod = json!({"metadata": {}});
        copy(&node, &mut pod);
        assert_eq!(pod["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
        let mut pod = json!({"metadata": {"labels": {"app": "a", "topology.kubernetes.io/zone": "lie"}}});
        copy(&node, &mut pod);
        assert_eq!(pod["metadata"]["labels"], json!({"app": "a", "topology.kubernetes.io/zone": "z"}));
        let mut pod = json!({"metadata": {}});
        copy(&json!({"metadata": {}}), &mut pod);
        assert_eq!(pod, json!({"metadata": {}}));
    }
}
