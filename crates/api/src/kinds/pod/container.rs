//! Containers of a pod: the ordinary ones, initialisation steps, and those added for debugging.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::json::{entries, int, is_empty, is_true, list, text};
use super::super::rules::{self, name, one_of, optional_one_of, required, required_name};
use super::{probe, resources, security, spec as pod_spec};
use crate::field::{Errors, Path};
use crate::names;

/// Fields of a pod that a container may read by their names.
const FIELD_PATHS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

const RESOURCE_PATHS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// Everything about the pod that a container's rules look at.
struct Context<'a> {
    spec: &'a Value,
    volumes: &'a BTreeSet<String>,
}

/// What sort of container a rule looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    Main,
    Init,
    Ephemeral,
}

/// Checks all containers of a pod's spec. `volumes` are the names that mounts may use.
pub(super) fn validate_all(errors: &mut Errors, path: &Path, spec: &Value, volumes: &BTreeSet<String>) {
    let context = Context { spec, volumes };
    let mut seen = BTreeSet::new();
    if list(&spec["containers"]).is_empty() {
        errors.required(&path.child("containers"), "");
    }
    for (field, role) in
        [("containers", Role::Main), ("initContainers", Role::Init), ("ephemeralContainers", Role::Ephemeral)]
    {
        for (index, container) in list(&spec[field]).iter().enumerate() {
            let path = path.child(field).index(index);
            let own = text(&container["name"]);
            validate_container(errors, &path, container, role, &context);
            if !own.is_empty() && !seen.insert(own) {
                errors.duplicate(&path.child("name"), own);
            }
        }
        validate_host_ports(errors, &path.child(field), &spec[field], pod_spec::is_host_network(spec));
    }
    for (index, container) in list(&spec["ephemeralContainers"]).iter().enumerate() {
        let target = text(&container["targetContainerName"]);
        if !target.is_empty() && !seen.contains(target) {
            errors.not_found(
                &path.child("ephemeralContainers").index(index).child("targetContainerName"),
                target,
            );
        }
    }
}

fn validate_container(
    errors: &mut Errors,
    path: &Path,
    container: &Value,
    role: Role,
    context: &Context<'_>,
) {
    required_name(errors, &path.child("name"), text(&container["name"]), names::dns1123_label);
    let image = text(&container["image"]);
    if image.is_empty() {
        errors.required(&path.child("image"), "");
    } else if image.trim() != image {
        errors.invalid(&path.child("image"), image, "must not have leading or trailing whitespace");
    }
    one_of(
        errors,
        &path.child("terminationMessagePolicy"),
        &container["terminationMessagePolicy"],
        &["File", "FallbackToLogsOnError"],
    );
    validate_ports(errors, &path.child("ports"), &container["ports"]);
    validate_env(errors, &path.child("env"), &container["env"]);
    validate_env_from(errors, &path.child("envFrom"), &container["envFrom"]);
    validate_mounts(errors, &path.child("volumeMounts"), container, context);
    validate_devices(errors, &path.child("volumeDevices"), container, context);
    one_of(
        errors,
        &path.child("imagePullPolicy"),
        &container["imagePullPolicy"],
        &["Always", "IfNotPresent", "Never"],
    );
    resources::validate(errors, &path.child("resources"), &container["resources"]);
    validate_claims(errors, &path.child("resources").child("claims"), container, context);
    security::validate_container(errors, &path.child("securityContext"), &container["securityContext"]);
    validate_restart_policy(errors, path, container, role);
    validate_lifecycle_and_probes(errors, path, container, role);
}

fn validate_restart_policy(errors: &mut Errors, path: &Path, container: &Value, role: Role) {
    let (policy, path) = (&container["restartPolicy"], path.child("restartPolicy"));
    match role {
        Role::Ephemeral if !is_empty(policy) => {
            errors.forbidden(&path, "cannot be set for an Ephemeral Container")
        }
        _ => optional_one_of(errors, &path, policy, &["Always", "OnFailure", "Never"]),
    }
}

/// Initialisation steps end before anybody could ask how they are; only those that keep running may be probed.
fn validate_lifecycle_and_probes(errors: &mut Errors, path: &Path, container: &Value, role: Role) {
    let refusal = match role {
        Role::Main => None,
        Role::Init if text(&container["restartPolicy"]) == "Always" => None,
        Role::Init => Some("may not be set for init containers without restartPolicy=Always"),
        Role::Ephemeral => Some("cannot be set for an Ephemeral Container"),
    };
    for field in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
        let (path, value) = (path.child(field), &container[field]);
        match refusal {
            _ if value.is_null() => {}
            Some(detail) => errors.forbidden(&path, detail),
            None if field == "lifecycle" => probe::validate_lifecycle(errors, &path, value),
            None => probe::validate(errors, &path, value, field),
        }
    }
    for field in ["ports", "resources"] {
        if role == Role::Ephemeral && !is_empty(&container[field]) {
            errors.forbidden(&path.child(field), "cannot be set for an Ephemeral Container");
        }
    }
}

fn validate_ports(errors: &mut Errors, path: &Path, ports: &Value) {
    let mut seen = BTreeSet::new();
    for (index, port) in list(ports).iter().enumerate() {
        let path = path.index(index);
        let own = text(&port["name"]);
        if !own.is_empty() {
            let problems = rules::port_name(own);
            if problems.is_empty() && !seen.insert(own) {
                errors.duplicate(&path.child("name"), own);
            }
            for problem in problems {
                errors.invalid(&path.child("name"), own, problem);
            }
        }
        match int(&port["containerPort"]) {
            0 => errors.required(&path.child("containerPort"), ""),
            _ => rules::port(errors, &path.child("containerPort"), &port["containerPort"]),
        }
        if int(&port["hostPort"]) != 0 {
            rules::port(errors, &path.child("hostPort"), &port["hostPort"]);
        }
        one_of(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    }
}

fn validate_host_ports(errors: &mut Errors, path: &Path, containers: &Value, host_network: bool) {
    let mut seen = BTreeSet::new();
    for (index, container) in list(containers).iter().enumerate() {
        for (at, port) in list(&container["ports"]).iter().enumerate() {
            let path = path.index(index).child("ports").index(at);
            let (inner, outer) = (int(&port["containerPort"]), int(&port["hostPort"]));
            // Zero is left alone: templates get their host ports only when a pod is made from them.
            if host_network && outer != 0 && inner != outer {
                errors.invalid(
                    &path.child("containerPort"),
                    inner,
                    "must match `hostPort` when `hostNetwork` is true",
                );
            }
            let key = format!("{}/{}/{outer}", text(&port["protocol"]), text(&port["hostIP"]));
            if outer != 0 && !seen.insert(key.clone()) {
                errors.duplicate(&path.child("hostPort"), key);
            }
        }
    }
}

/// Names of environment variables: anything printable without `=` (KEP-4369).
fn env_name(value: &str) -> Vec<String> {
    let allowed = |b: u8| (b' '..=b'~').contains(&b) && b != b'=';
    if value.bytes().all(allowed) {
        return Vec::new();
    }
    vec![
        "a valid environment variable name must consist only of printable ASCII characters other than '='"
            .to_owned(),
    ]
}

fn validate_env(errors: &mut Errors, path: &Path, env: &Value) {
    for (index, variable) in list(env).iter().enumerate() {
        let path = path.index(index);
        required_name(errors, &path.child("name"), text(&variable["name"]), env_name);
        if let Some(source) = variable.get("valueFrom").filter(|source| !source.is_null()) {
            let plain = !is_empty(&variable["value"]);
            validate_env_source(errors, &path.child("valueFrom"), source, plain);
        }
    }
}

fn validate_env_source(errors: &mut Errors, path: &Path, source: &Value, has_value: bool) {
    let given: Vec<(&str, &Value)> = entries(source).filter(|(_, value)| !value.is_null()).collect();
    if given.is_empty() {
        errors.invalid(
            path,
            "",
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
        );
    } else if has_value {
        errors.invalid(path, "", "may not be specified when `value` is not empty");
    } else if given.len() > 1 {
        errors.invalid(path, "", "may not have more than one field specified at a time");
    }
    for (field, source) in given {
        let path = path.child(field);
        match field {
            "fieldRef" => validate_field_ref(errors, &path, source, FIELD_PATHS),
            "resourceFieldRef" => validate_resource_ref(errors, &path, source),
            "configMapKeyRef" | "secretKeyRef" => {
                required_name(errors, &path.child("name"), text(&source["name"]), names::dns1123_subdomain);
                required_name(errors, &path.child("key"), text(&source["key"]), rules::config_key);
            }
            _ => {}
        }
    }
}

/// Checks the selection of a field of the pod; `supported` are the plain paths, besides single labels and annotations.
pub(super) fn validate_field_ref(errors: &mut Errors, path: &Path, source: &Value, supported: &[&str]) {
    if text(&source["apiVersion"]) != "v1" && !is_empty(&source["apiVersion"]) {
        errors.invalid(&path.child("apiVersion"), source["apiVersion"].clone(), "must be v1");
    }
    let field = text(&source["fieldPath"]);
    let path = path.child("fieldPath");
    match field.strip_suffix("']").and_then(|f| f.split_once("['")) {
        Some(("metadata.labels" | "metadata.annotations", key)) => {
            name(errors, &path, key, names::qualified_name)
        }
        Some(_) => errors.invalid(&path, field, "does not support subscript"),
        None => one_of(errors, &path, &source["fieldPath"], supported),
    }
}

/// Checks the selection of an amount of a container's resources.
pub(super) fn validate_resource_ref(errors: &mut Errors, path: &Path, source: &Value) {
    let resource = text(&source["resource"]);
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if !huge {
        one_of(errors, &path.child("resource"), &source["resource"], RESOURCE_PATHS);
    }
}

fn validate_env_from(errors: &mut Errors, path: &Path, sources: &Value) {
    for (index, source) in list(sources).iter().enumerate() {
        let path = path.index(index);
        name(errors, &path.child("prefix"), text(&source["prefix"]), env_name);
        let given: Vec<&str> =
            ["configMapRef", "secretRef"].into_iter().filter(|field| !source[*field].is_null()).collect();
        match given.as_slice() {
            [] => errors.invalid(&path, "", "must specify one of: `configMapRef` or `secretRef`"),
            [field] => {
                let own = text(&source[*field]["name"]);
                required_name(errors, &path.child(field).child("name"), own, names::dns1123_subdomain);
            }
            _ => errors.invalid(&path, "", "may not have more than one field specified at a time"),
        }
    }
}

fn validate_mounts(errors: &mut Errors, path: &Path, container: &Value, context: &Context<'_>) {
    let mut seen = BTreeSet::new();
    for (index, mount) in list(&container["volumeMounts"]).iter().enumerate() {
        let path = path.index(index);
        let (volume, target) = (text(&mount["name"]), text(&mount["mountPath"]));
        match volume {
            "" => errors.required(&path.child("name"), ""),
            _ if !context.volumes.contains(volume) => errors.not_found(&path.child("name"), volume),
            _ => {}
        }
        if target.is_empty() {
            errors.required(&path.child("mountPath"), "");
        }
        if !seen.insert(target) {
            errors.invalid(&path.child("mountPath"), target, "must be unique");
        }
        let (sub, expression) = (text(&mount["subPath"]), text(&mount["subPathExpr"]));
        rules::descending_path(errors, &path.child("subPath"), sub);
        rules::descending_path(errors, &path.child("subPathExpr"), expression);
        if !sub.is_empty() && !expression.is_empty() {
            errors.invalid(
                &path.child("subPathExpr"),
                expression,
                "subPathExpr and subPath are mutually exclusive",
            );
        }
        validate_propagation(errors, &path, mount, container);
    }
}

fn validate_propagation(errors: &mut Errors, path: &Path, mount: &Value, container: &Value) {
    let propagation = &mount["mountPropagation"];
    let path_of_propagation = path.child("mountPropagation");
    optional_one_of(errors, &path_of_propagation, propagation, &["Bidirectional", "HostToContainer", "None"]);
    if text(propagation) == "Bidirectional" && !is_true(&container["securityContext"]["privileged"]) {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.forbidden(&path_of_propagation, detail);
    }
    let recursive = &mount["recursiveReadOnly"];
    let path = path.child("recursiveReadOnly");
    optional_one_of(errors, &path, recursive, &["Disabled", "Enabled", "IfPossible"]);
    if matches!(text(recursive), "Enabled" | "IfPossible") {
        if !is_true(&mount["readOnly"]) {
            errors.forbidden(&path, "may only be specified when readOnly is true");
        }
        if !matches!(text(propagation), "" | "None") {
            errors.forbidden(&path, "may only be specified when mountPropagation is None or not specified");
        }
    }
}

fn validate_devices(errors: &mut Errors, path: &Path, container: &Value, context: &Context<'_>) {
    for (index, device) in list(&container["volumeDevices"]).iter().enumerate() {
        let path = path.index(index);
        let volume = text(&device["name"]);
        match volume {
            "" => errors.required(&path.child("name"), ""),
            _ if !context.volumes.contains(volume) => errors.not_found(&path.child("name"), volume),
            _ => {}
        }
        required(errors, &path.child("devicePath"), &device["devicePath"]);
        rules::no_backsteps(errors, &path.child("devicePath"), text(&device["devicePath"]));
    }
}

fn validate_claims(errors: &mut Errors, path: &Path, container: &Value, context: &Context<'_>) {
    for (index, claim) in list(&container["resources"]["claims"]).iter().enumerate() {
        let own = json!(text(&claim["name"]));
        if !list(&context.spec["resourceClaims"]).iter().any(|c| c["name"] == own) {
            errors.not_found(&path.index(index).child("name"), own);
        }
    }
}
