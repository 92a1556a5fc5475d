//! Defaults of pods that depend on other fields; the constant ones are in [`crate::defaults`].

use serde_json::{Value, json};

use super::super::json::{copy_field, default_field, entries, int, is_empty, is_true, list_mut, set, text};
use super::Amount;

const CONTAINER_LISTS: [&str; 3] = ["/containers", "/initContainers", "/ephemeralContainers"];

/// Defaults of a pod. Templates get [`default_template_spec`] only, so that what a template says stays short.
pub(super) fn default_pod(pod: &mut Value) {
    let Some(spec) = pod.get_mut("spec") else { return };
    default_template_spec(spec);
    for pointer in ["/containers", "/initContainers"] {
        for container in list_mut(spec, pointer) {
            default_requests_to_limits(container);
        }
    }
    default_pod_level_requests(spec);
    default_field(spec, "enableServiceLinks", true);
    if is_true(&spec["hostNetwork"]) {
        for pointer in ["/containers", "/initContainers"] {
            for port in list_mut(spec, pointer).flat_map(|container| list_mut(container, "/ports")) {
                if int(&port["hostPort"]) == 0 {
                    let number = port["containerPort"].clone();
                    set(port, "hostPort", number);
                }
            }
        }
    }
}

/// Defaults of a pod's spec wherever it stands.
pub(crate) fn default_template_spec(spec: &mut Value) {
    for pointer in CONTAINER_LISTS {
        for container in list_mut(spec, pointer) {
            default_container(container);
        }
    }
    for volume in list_mut(spec, "/volumes") {
        default_volume(volume);
    }
    // `serviceAccount` is the old name of `serviceAccountName`; both are served, the new one wins.
    if is_empty(&spec["serviceAccountName"]) && !is_empty(&spec["serviceAccount"]) {
        let name = spec["serviceAccount"].clone();
        set(spec, "serviceAccountName", name);
    }
    if !is_empty(&spec["serviceAccountName"]) {
        let name = spec["serviceAccountName"].clone();
        set(spec, "serviceAccount", name);
    }
}

fn default_container(container: &mut Value) {
    if is_empty(&container["imagePullPolicy"]) {
        let policy = pull_policy(text(&container["image"]));
        set(container, "imagePullPolicy", policy);
    }
}

/// `Always` for images whose tag is (or becomes) `latest`, else `IfNotPresent`.
pub(super) fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let tag = name.rsplit('/').next().and_then(|last| last.split_once(':')).map(|(_, tag)| tag);
    match (tag, digest) {
        (Some("latest"), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

fn default_volume(volume: &mut Value) {
    let has_source = entries(volume).any(|(field, value)| field != "name" && !value.is_null());
    if !has_source {
        set(volume, "emptyDir", json!({}));
    }
    if let Some(image) = volume.get_mut("image")
        && is_empty(&image["pullPolicy"])
    {
        let policy = pull_policy(text(&image["reference"]));
        set(image, "pullPolicy", policy);
    }
}

/// A container that names only a limit asks for as much.
fn default_requests_to_limits(container: &mut Value) {
    let Some(resources) = container.get_mut("resources") else {
        return;
    };
    let limits = resources["limits"].clone();
    if is_empty(&limits) {
        return;
    }
    default_field(resources, "requests", json!({}));
    let Some(requests) = resources.get_mut("requests") else {
        return;
    };
    for (name, _) in entries(&limits) {
        if requests[name].is_null() {
            copy_field(requests, &limits, name);
        }
    }
}

/// A pod with limits of its own (KEP-2837) asks for what its containers ask for, or else for its limits.
fn default_pod_level_requests(spec: &mut Value) {
    let limits = spec["resources"]["limits"].clone();
    if is_empty(&limits) {
        return;
    }
    let mut requests = spec["resources"]["requests"].clone();
    if requests.is_null() {
        requests = json!({});
    }
    for resource in ["cpu", "memory"] {
        let of_containers = super::qos::of_containers(spec, Amount::Request, resource);
        if requests[resource].is_null() && !of_containers.is_zero() {
            set(&mut requests, resource, of_containers.to_string());
        }
    }
    for (name, _) in entries(&limits) {
        if requests[name].is_null() {
            copy_field(&mut requests, &limits, name);
        }
    }
    if let Some(resources) = spec.get_mut("resources") {
        set(resources, "requests", requests);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_policies() {
        let rows = [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("localhost:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:1@sha256:0123", "IfNotPresent"),
        ];
        for (image, expected) in rows {
            assert_eq!(pull_policy(image), expected, "{image}");
        }
    }

    #[test]
    fn of_a_pod() {
        let rows = [
            (
                "requests from limits",
                json!({"containers": [{"image": "a:1", "resources": {"limits": {"cpu": "1"}, "requests": {"memory": "1Gi"}}}]}),
                "/containers/0/resources/requests",
                json!({"cpu": "1", "memory": "1Gi"}),
            ),
            (
                "host ports",
                json!({"hostNetwork": true, "containers": [{"image": "a:1", "ports": [{"containerPort": 80}]}]}),
                "/containers/0/ports/0/hostPort",
                json!(80),
            ),
            (
                "a volume without source",
                json!({"containers": [], "volumes": [{"name": "a"}]}),
                "/volumes/0",
                json!({"name": "a", "emptyDir": {}}),
            ),
            ("old name", json!({"serviceAccount": "a"}), "/serviceAccountName", json!("a")),
            (
                "new name",
                json!({"serviceAccount": "a", "serviceAccountName": "b"}),
                "/serviceAccount",
                json!("b"),
            ),
            ("links", json!({}), "/enableServiceLinks", json!(true)),
            (
                "pod requests from containers and limits",
                json!({
                    "containers": [{"image": "a:1", "resources": {"requests": {"cpu": "100m"}}}],
                    "resources": {"limits": {"cpu": "1", "memory": "1Gi"}},
                }),
                "/resources/requests",
                json!({"cpu": "100m", "memory": "1Gi"}),
            ),
        ];
        for (what, spec, pointer, expected) in rows {
            let mut pod = json!({ "spec": spec });
            default_pod(&mut pod);
            assert_eq!(pod["spec"].pointer(pointer), Some(&expected), "{what}");
            let once = pod.clone();
            default_pod(&mut pod);
            assert_eq!(pod, once, "{what}: twice");
        }
    }
}
