//! Event objects about pods and the node, with the words users know from the kubelet.
//!
//! The recorder of the client crate aggregates and sends; this module only knows whom an event is about.

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use sampan_client::EventRecorder;

/// Records events; never blocks.
pub(crate) struct Events {
    recorder: EventRecorder,
    node: String,
}

impl Events {
    /// Events of the component `kubelet`, as scripts filter for them.
    pub(crate) fn new(client: kube::Client, node: &str) -> Self {
        Self { recorder: EventRecorder::new(client, "kubelet", node), node: node.to_string() }
    }

    /// Something normal about a pod.
    pub(crate) fn pod(&self, pod: &Pod, reason: &str, message: &str) {
        self.recorder.record(&pod_reference(pod, None), "Normal", reason, message);
    }

    /// Something wrong with a pod.
    pub(crate) fn pod_warning(&self, pod: &Pod, reason: &str, message: &str) {
        self.recorder.record(&pod_reference(pod, None), "Warning", reason, message);
    }

    /// Something normal about a container; `path` as from [`container_path`].
    pub(crate) fn container(&self, pod: &Pod, path: &str, reason: &str, message: &str) {
        self.recorder.record(&pod_reference(pod, Some(path)), "Normal", reason, message);
    }

    /// Something wrong with a container.
    pub(crate) fn container_warning(&self, pod: &Pod, path: &str, reason: &str, message: &str) {
        self.recorder.record(&pod_reference(pod, Some(path)), "Warning", reason, message);
    }

    /// Something normal about the node.
    pub(crate) fn node(&self, reason: &str, message: &str) {
        let reference = ObjectReference {
            kind: Some("Node".into()),
            name: Some(self.node.clone()),
            // The kubelet uses the name as uid here, and `kubectl describe node` searches for it.
            uid: Some(self.node.clone()),
            ..ObjectReference::default()
        };
        self.recorder.record(&reference, "Normal", reason, message);
    }
}

fn pod_reference(pod: &Pod, field_path: Option<&str>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".into()),
        kind: Some("Pod".into()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: field_path.map(Into::into),
    }
}
