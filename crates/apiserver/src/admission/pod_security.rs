//! Pod Security: what the pods of a namespace may do to their node, by the labels of the namespace.
//!
//! [`labels`] reads a namespace's policy, [`checks`] is the table of the standards. This file decides when to look: at new
//! pods and at changes of what the standards look at, at the templates of workloads (told, never refused: their pods
//! will be), and at the pods that are there when a namespace becomes stricter.
//!
//! Source of the rules and of the words: `k8s.io/pod-security-admission`. Nobody is exempt.

mod checks;
mod labels;

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Admission, Operation};
use crate::error::ApiError;
use crate::view::View;
use checks::{Subject, Violations};
use labels::{Level, Policy};

/// Pods looked at when a namespace becomes stricter.
const MAX_PODS: usize = 3000;

/// `…/pod` and `container.…/NAME` are annotations that were the seccomp profile once.
const SECCOMP: &str = "seccomp.security.alpha.kubernetes.io";

/// Workloads with a template of pods, and where it stands.
const TEMPLATES: &[(&str, &str, &str)] = &[
    ("", "podtemplates", "/template"),
    ("", "replicationcontrollers", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
    ("batch", "jobs", "/spec/template"),
];

pub(super) fn validate(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    if !matches!(admission.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    if admission.is("", "namespaces") {
        return if admission.view == View::Object { namespace(admission, object) } else { Ok(()) };
    }
    if admission.is("", "pods") {
        let looked_at = matches!(admission.view, View::Object | View::Resize | View::EphemeralContainers);
        let changed = admission.old.is_none_or(|old| is_significant(object, old));
        return if looked_at && changed { pod(admission, object) } else { Ok(()) };
    }
    let (group, plural) = (&*admission.kind.group, &*admission.kind.plural);
    let place = TEMPLATES.iter().find(|(g, p, _)| (*g, *p) == (group, plural));
    if let Some(template) = place.and_then(|(_, _, pointer)| object.pointer(pointer))
        && admission.view == View::Object
    {
        let (policy, _) = Policy::of(admission.namespace_object());
        tell(admission, &policy, &Subject::of(template));
    }
    Ok(())
}

fn pod(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let (policy, _) = Policy::of(admission.namespace_object());
    let subject = Subject::of(object);
    let violations = checks::violations(policy.enforce, &subject);
    if !violations.is_empty() {
        let why = format!("violates PodSecurity \"{}\": {violations}", policy.enforce);
        audit(admission, &policy, &subject);
        return Err(admission.forbidden(object, why));
    }
    tell(admission, &policy, &subject);
    Ok(())
}

/// Warns and notes, without refusing.
fn tell(admission: &Admission<'_>, policy: &Policy, subject: &Subject<'_>) {
    audit(admission, policy, subject);
    let violations = checks::violations(policy.warn, subject);
    if !violations.is_empty() {
        admission.notes.warn(&format!("would violate PodSecurity \"{}\": {violations}", policy.warn));
    }
}

fn audit(admission: &Admission<'_>, policy: &Policy, subject: &Subject<'_>) {
    let violations = checks::violations(policy.audit, subject);
    if !violations.is_empty() {
        let note = format!("would violate PodSecurity \"{}\": {violations}", policy.audit);
        admission.notes.annotate("pod-security.kubernetes.io/audit-violations".to_owned(), note);
    }
}

/// Whether an update of a pod changes anything the standards look at. The rest of a pod does not change.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let annotation = |pod: &Value, key: &str| pod["metadata"]["annotations"][key].clone();
    let key = format!("{SECCOMP}/pod");
    if annotation(pod, &key) != annotation(old, &key) {
        return true;
    }
    ["containers", "initContainers", "ephemeralContainers"].iter().any(|field| {
        let list = |pod: &Value| pod["spec"][*field].as_array().cloned().unwrap_or_default();
        let (new, old_list) = (list(pod), list(old));
        new.len() != old_list.len()
            || new.iter().any(|container| {
                let name = container["name"].as_str().unwrap_or_default();
                let key = format!("container.{SECCOMP}/{name}");
                let before = old_list.iter().find(|before| before["name"] == name);
                before.is_none_or(|before| before["image"] != container["image"])
                    || annotation(pod, &key) != annotation(old, &key)
            })
    })
}

/// The labels of a namespace must be readable; whoever makes it stricter is told of the pods that would be refused.
fn namespace(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let (policy, errors) = Policy::of(object);
    let before = admission.old.map(Policy::of);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if !errors.is_empty() && before.as_ref().is_none_or(|(_, old)| *old != errors) {
        return Err(ApiError::invalid(admission.kind, name, &errors));
    }
    let Some((before, _)) = before else { return Ok(()) };
    let (new, old) = (policy.enforce, before.enforce);
    let relaxed = new.version == old.version && new.level <= old.level;
    if new == old || new.level == Level::Privileged || relaxed {
        return Ok(());
    }
    let pods = admission.cached_list("pods", &format!("/pods/{name}/"));
    for warning in existing_pods(&pods, name, &policy) {
        admission.notes.warn(&warning);
    }
    Ok(())
}

/// What is wrong with pods that are there: one line for all pods with the same faults.
fn existing_pods(pods: &[Value], namespace: &str, policy: &Policy) -> Vec<String> {
    let mut faults: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in pods.iter().take(MAX_PODS) {
        let violations: Violations = checks::violations(policy.enforce, &Subject::of(pod));
        if !violations.is_empty() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            faults.entry(violations.reasons()).or_default().push(name);
        }
    }
    let mut warnings = Vec::new();
    if pods.len() > MAX_PODS {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {MAX_PODS} of {} existing pods",
            pods.len()
        ));
    }
    if !faults.is_empty() {
        warnings.push(format!(
            "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{}\"",
            policy.enforce
        ));
    }
    let mut lines: Vec<String> = faults
        .into_iter()
        .map(|(reasons, names)| {
            let first = names.iter().min().copied().unwrap_or_default();
            match names.len() {
                0 | 1 => format!("{first}: {reasons}"),
                2 => format!("{first} (and 1 other pod): {reasons}"),
                many => format!("{first} (and {} other pods): {reasons}", many - 1),
            }
        })
        .collect();
    lines.sort_unstable();
    warnings.extend(lines);
    warnings
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn which_updates_are_looked_at() {
        let old = json!({"metadata": {}, "spec": {"containers": [{"name": "a", "image": "i:1"}]}});
        let rows: [(&str, Value, bool); 5] = [
            ("/metadata/labels", json!({"x": "y"}), false),
            ("/spec/containers/0/image", json!("i:2"), true),
            ("/spec/activeDeadlineSeconds", json!(5), false),
            ("/spec/ephemeralContainers", json!([{"name": "e", "image": "i"}]), true),
            ("/metadata/annotations", json!({"container.seccomp.security.alpha.kubernetes.io/a": "x"}), true),
        ];
        for (pointer, value, expected) in rows {
            let mut new = old.clone();
            let (parent, field) = pointer.rsplit_once('/').expect("a field");
            let parent = new.pointer_mut(parent).expect("a parent");
            parent[field] = value;
            assert_eq!(is_significant(&new, &old), expected, "{pointer}");
        }
    }

    #[test]
    fn pods_of_a_stricter_namespace() {
        let labels = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
        let (policy, _) = Policy::of(&labels);
        let pod = |name: &str, spec: Value| json!({"metadata": {"name": name}, "spec": spec});
        let pods = [
            pod("b", json!({"hostNetwork": true})),
            pod("a", json!({"hostNetwork": true})),
            pod("c", json!({"hostPID": true})),
            pod("d", json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]})),
            pod("good", json!({"containers": [{"name": "c"}]})),
        ];
        assert_eq!(
            existing_pods(&pods, "n", &policy),
            [
                "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
                "a (and 2 other pods): host namespaces",
                "d: privileged",
            ]
        );
        assert!(existing_pods(&pods[4..], "n", &policy).is_empty());
    }
}
