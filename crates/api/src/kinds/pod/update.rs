//! What may change once a pod exists.
//!
//! A pod is a promise to run these containers; nearly everything in its spec stays as it was created. The subresources
//! `binding`, `ephemeralcontainers` and `resize` change parts that an ordinary update may not, and have their own rules
//! here.

use serde_json::{Map, Value};

use super::super::json::{copy_field, int, is_empty, list, list_mut, same, set, text};
use super::super::rules;
use super::spec;
use crate::field::{Errors, Path};

const SPEC_CHANGED: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
                            `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only \
                            additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set \
                            to 1 if it was previously negative)";

/// Checks an ordinary update `(new, old)`.
pub(super) fn validate(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (new, old) = (&new["spec"], &old["spec"]);
    for field in ["containers", "initContainers"] {
        if list(&new[field]).len() != list(&old[field]).len() {
            errors.forbidden(&path.child(field), "pod updates may not add or remove containers");
            return errors;
        }
    }
    validate_deadline(&mut errors, &path.child("activeDeadlineSeconds"), new, old);
    validate_gates(&mut errors, &path.child("schedulingGates"), new, old);
    validate_tolerations(&mut errors, &path.child("tolerations"), new, old);
    if !same(&without_mutable_parts(new, old), old) {
        errors.forbidden(&path, SPEC_CHANGED);
    }
    errors
}

/// The new spec with everything that may change put back to what it was.
fn without_mutable_parts(new: &Value, old: &Value) -> Value {
    let mut spec = new.clone();
    for field in ["activeDeadlineSeconds", "tolerations", "schedulingGates"] {
        copy_field(&mut spec, old, field);
    }
    for field in ["containers", "initContainers"] {
        for (container, before) in list_mut(&mut spec, &format!("/{field}")).zip(list(&old[field])) {
            copy_field(container, before, "image");
        }
    }
    if int(&old["terminationGracePeriodSeconds"]) < 0 && int(&new["terminationGracePeriodSeconds"]) == 1 {
        copy_field(&mut spec, old, "terminationGracePeriodSeconds");
    }
    if !is_empty(&old["schedulingGates"]) {
        relax_placement_of_gated(&mut spec, old);
    }
    spec
}

/// Pods that wait at a gate may be steered more narrowly (KEP-3838): labels may be added to the node selector, terms to
/// an absent affinity, and expressions to present terms.
fn relax_placement_of_gated(spec: &mut Value, old: &Value) {
    let widened = |new: &Value, old: &Value| {
        old.as_object().into_iter().flatten().any(|(key, value)| new.get(key) != Some(value))
    };
    if !widened(&spec["nodeSelector"], &old["nodeSelector"]) {
        copy_field(spec, old, "nodeSelector");
    }
    let pointer = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let terms = |spec: &Value| spec.pointer(pointer).cloned().unwrap_or_default();
    let (new_terms, old_terms) = (terms(spec), terms(old));
    let narrowed = list(&old_terms).is_empty()
        || (list(&new_terms).len() == list(&old_terms).len()
            && list(&new_terms).iter().zip(list(&old_terms)).all(|(new, old)| {
                ["matchExpressions", "matchFields"].iter().all(|field| {
                    let (new, old) = (list(&new[*field]), list(&old[*field]));
                    new.len() >= old.len() && new.iter().zip(old).all(|(n, o)| n == o)
                })
            }));
    if narrowed {
        let old_node_affinity = old["affinity"]["nodeAffinity"].clone();
        match spec.pointer_mut("/affinity") {
            Some(affinity) if affinity.is_object() => set(affinity, "nodeAffinity", old_node_affinity),
            _ => {}
        }
    }
}

fn validate_deadline(errors: &mut Errors, path: &Path, new: &Value, old: &Value) {
    let (new, old) = (new["activeDeadlineSeconds"].as_i64(), old["activeDeadlineSeconds"].as_i64());
    match (new, old) {
        (Some(new), Some(old)) if new > old => {
            errors.invalid(path, new, "must be less than or equal to previous value");
        }
        (None, Some(_)) => {
            errors.invalid(path, Value::Null, "must not update from a positive integer to nil value")
        }
        _ => {}
    }
}

fn validate_gates(errors: &mut Errors, path: &Path, new: &Value, old: &Value) {
    let before: Vec<&str> = list(&old["schedulingGates"]).iter().map(|gate| text(&gate["name"])).collect();
    for (index, gate) in list(&new["schedulingGates"]).iter().enumerate() {
        let name = text(&gate["name"]);
        if !before.contains(&name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(&path.index(index), detail);
        }
    }
}

fn validate_tolerations(errors: &mut Errors, path: &Path, new: &Value, old: &Value) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        super::super::json::remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let present: Vec<Value> = list(&new["tolerations"]).iter().map(without_seconds).collect();
    let kept = |toleration: &Value| present.iter().any(|p| same(p, &without_seconds(toleration)));
    if !list(&old["tolerations"]).iter().all(kept) {
        errors.forbidden(path, "existing toleration can not be modified except its tolerationSeconds");
    }
}

/// Checks an update through `ephemeralcontainers`: containers may be added, none may change or go.
pub fn validate_ephemeral_containers(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec").child("ephemeralContainers");
    spec::validate(&mut errors, &Path::new("spec"), &new["spec"]);
    let (new, old) = (list(&new["spec"]["ephemeralContainers"]), list(&old["spec"]["ephemeralContainers"]));
    for before in old {
        let name = text(&before["name"]);
        match new.iter().position(|container| text(&container["name"]) == name) {
            None => errors
                .forbidden(&path, format!("existing ephemeral containers \"{name}\" may not be removed")),
            Some(index) if !same(&new[index], before) => errors.forbidden(
                &path.index(index),
                format!("existing ephemeral containers \"{name}\" may not be changed"),
            ),
            Some(_) => {}
        }
    }
    errors
}

/// Checks an update through `resize`: only CPU and memory of containers may change, and not the class of the pod.
pub fn validate_resize(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    spec::validate(&mut errors, &path, &new["spec"]);
    if super::qos::class(&new["spec"]) != super::qos::class(&old["spec"]) {
        errors.invalid(
            &path,
            super::qos::class(&new["spec"]),
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    let mut spec = new["spec"].clone();
    for field in ["containers", "initContainers"] {
        for (container, before) in list_mut(&mut spec, &format!("/{field}")).zip(list(&old["spec"][field])) {
            restore_resizable(container, before);
        }
    }
    if !same(&spec, &old["spec"]) {
        errors.forbidden(&path, "only cpu and memory resources are mutable");
    }
    errors
}

fn restore_resizable(container: &mut Value, before: &Value) {
    for list in ["limits", "requests"] {
        for resource in ["cpu", "memory"] {
            let amount = before["resources"][list][resource].clone();
            let Some(resources) = container.get_mut("resources").filter(|r| r.is_object()) else {
                continue;
            };
            if resources[list].is_null() {
                set(resources, list, Map::new());
            }
            if let Some(amounts) = resources.get_mut(list) {
                if amount.is_null() {
                    super::super::json::remove(amounts, resource);
                } else {
                    set(amounts, resource, amount);
                }
            }
        }
    }
}

/// Checks a `Binding` for a pod: a node must be named, the pod must be free and not waiting at a gate.
pub fn validate_binding(binding: &Value, pod: &Value) -> Errors {
    let mut errors = Errors::new();
    let target = Path::new("target");
    let kind = text(&binding["target"]["kind"]);
    if !matches!(kind, "" | "Node") {
        errors.not_supported(&target.child("kind"), kind, &["Node", "<empty>"]);
    }
    rules::required(&mut errors, &target.child("name"), &binding["target"]["name"]);
    if !is_empty(&pod["spec"]["schedulingGates"]) {
        errors.forbidden(
            &Path::new("spec").child("schedulingGates"),
            "cannot be bound until all schedulingGates have been cleared",
        );
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::super::super::rules::testing::{expect, with};
    use super::super::tests::good;
    use super::*;
    use serde_json::json;

    #[test]
    fn updates() {
        let forbidden: &str = &format!("spec: Forbidden: {SPEC_CHANGED}");
        let row = |what: &str, old: &[(&str, Value)], new: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good(), new), &with(good(), old)), expected);
        };
        row("image", &[], &[("/spec/containers/0/image", json!("nginx:2"))], &[]);
        row(
            "nothing that counts",
            &[],
            &[("/spec/hostNetwork", json!(false)), ("/spec/volumes", json!([]))],
            &[],
        );
        row("command", &[], &[("/spec/containers/0/command", json!(["sh"]))], &[forbidden]);
        row("node", &[], &[("/spec/nodeName", json!("n2"))], &[forbidden]);
        row("user 0", &[], &[("/spec/securityContext", json!({"runAsUser": 0}))], &[forbidden]);
        row(
            "container",
            &[],
            &[("/spec/containers/1", json!({"name": "b"}))],
            &["spec.containers: Forbidden: pod updates may not add or remove containers"],
        );
        let toleration =
            |seconds: i64| json!([{"key": "a", "operator": "Exists", "tolerationSeconds": seconds}]);
        row("toleration added", &[], &[("/spec/tolerations", toleration(1))], &[]);
        row(
            "toleration prolonged",
            &[("/spec/tolerations", toleration(1))],
            &[("/spec/tolerations", toleration(2))],
            &[],
        );
        row(
            "toleration gone",
            &[("/spec/tolerations", toleration(1))],
            &[],
            &[
                "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds",
            ],
        );
        row("deadline set", &[], &[("/spec/activeDeadlineSeconds", json!(9))], &[]);
        row(
            "deadline later",
            &[("/spec/activeDeadlineSeconds", json!(8))],
            &[("/spec/activeDeadlineSeconds", json!(9))],
            &["spec.activeDeadlineSeconds: Invalid value: 9: must be less than or equal to previous value"],
        );
        row(
            "grace from below zero",
            &[("/spec/terminationGracePeriodSeconds", json!(-5))],
            &[("/spec/terminationGracePeriodSeconds", json!(1))],
            &[],
        );
        let gate = json!([{"name": "a.b/c"}]);
        row("gate opened", &[("/spec/schedulingGates", gate.clone())], &[], &[]);
        row(
            "gated pod steered",
            &[("/spec/schedulingGates", gate.clone())],
            &[("/spec/schedulingGates", gate.clone()), ("/spec/nodeSelector", json!({"disk": "ssd"}))],
            &[],
        );
        row(
            "gate added",
            &[],
            &[("/spec/schedulingGates", gate)],
            &[
                "spec.schedulingGates[0]: Forbidden: only deletion is allowed, but found new scheduling gate 'a.b/c'",
            ],
        );
    }

    #[test]
    fn subresources() {
        let debug = |image: &str| {
            json!([{
                "name": "debug", "image": image, "imagePullPolicy": "Always", "terminationMessagePolicy": "File",
            }])
        };
        let with_debug = |image: &str| with(good(), &[("/spec/ephemeralContainers", debug(image))]);
        expect("added", &validate_ephemeral_containers(&with_debug("a"), &good()), &[]);
        expect(
            "changed",
            &validate_ephemeral_containers(&with_debug("b"), &with_debug("a")),
            &[
                "spec.ephemeralContainers[0]: Forbidden: existing ephemeral containers \"debug\" may not be changed",
            ],
        );
        let sized = |cpu: &str| {
            let resources = json!({"requests": {"cpu": cpu, "memory": "1Gi"}, "limits": {"cpu": "4"}});
            with(good(), &[("/spec/containers/0/resources", resources)])
        };
        expect("resized", &validate_resize(&sized("2"), &sized("1")), &[]);
        let other = with(sized("2"), &[("/spec/containers/0/image", json!("b"))]);
        expect(
            "more than resized",
            &validate_resize(&other, &sized("1")),
            &["spec: Forbidden: only cpu and memory resources are mutable"],
        );
    }
}
