//! RuntimeClass: what a class of runtimes adds to its pods: the overhead that is counted, and where they can run.
//!
//! Source of the rules and of the words: `plugin/pkg/admission/runtimeclass`.

use serde_json::{Value, json};

use super::Admission;
use crate::error::ApiError;

const CLASSES: &str = "runtimeclasses.node.k8s.io";

/// The class of a new pod: `None` when it names none, an error when there is none of that name.
fn class_of(admission: &Admission<'_>, pod: &Value) -> Result<Option<Value>, ApiError> {
    let Some(name) = pod["spec"]["runtimeClassName"].as_str().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    match admission.cached(CLASSES, &format!("/{CLASSES}/{name}")) {
        Some(class) => Ok(Some(class)),
        None => Err(admission.forbidden(pod, format!("pod rejected: RuntimeClass \"{name}\" not found"))),
    }
}

pub(super) fn merge(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    if !admission.creates("", "pods") {
        return Ok(());
    }
    let Some(class) = class_of(admission, object)? else { return Ok(()) };
    merge_into(&class, object).map_err(|why| admission.forbidden(object, why))
}

pub(super) fn validate(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    if !admission.creates("", "pods") {
        return Ok(());
    }
    let class = class_of(admission, object)?;
    match overhead_problem(class.as_ref(), object) {
        Some(why) => Err(admission.forbidden(object, why)),
        None => Ok(()),
    }
}

const MISMATCH: &str = "pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead";

fn has_any(map: &Value) -> bool {
    map.as_object().is_some_and(|map| !map.is_empty())
}

fn merge_into(class: &Value, pod: &mut Value) -> Result<(), String> {
    let overhead = &class["overhead"]["podFixed"];
    let spec = &mut pod["spec"];
    if has_any(overhead) {
        if has_any(&spec["overhead"]) && spec["overhead"] != *overhead {
            return Err(MISMATCH.to_owned());
        }
        spec["overhead"] = overhead.clone();
    }
    let scheduling = &class["scheduling"];
    for (key, value) in scheduling["nodeSelector"].as_object().into_iter().flatten() {
        if !spec["nodeSelector"].is_object() {
            spec["nodeSelector"] = json!({});
        }
        let own = &mut spec["nodeSelector"][key];
        if !own.is_null() && *own != *value {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(value),
                text(own)
            ));
        }
        *own = value.clone();
    }
    for toleration in scheduling["tolerations"].as_array().into_iter().flatten() {
        if !spec["tolerations"].is_array() {
            spec["tolerations"] = json!([]);
        }
        if let Some(list) = spec["tolerations"].as_array_mut()
            && !list.contains(toleration)
        {
            list.push(toleration.clone());
        }
    }
    Ok(())
}

/// Overhead is what the class says, and nothing without a class that says so: it is taken off a node's room.
fn overhead_problem(class: Option<&Value>, pod: &Value) -> Option<&'static str> {
    let overhead = &pod["spec"]["overhead"];
    let of_class = class.map(|class| &class["overhead"]["podFixed"]).filter(|map| has_any(map));
    match of_class {
        Some(of_class) if overhead != of_class => Some(MISMATCH),
        None if has_any(overhead) => {
            Some("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_merged() {
        let class = json!({
            "overhead": {"podFixed": {"cpu": "250m"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
        });
        let mut pod = json!({"spec": {"tolerations": [{"key": "other"}], "nodeSelector": {"zone": "a"}}});
        assert_eq!(merge_into(&class, &mut pod), Ok(()));
        let once = pod.clone();
        assert_eq!(merge_into(&class, &mut pod), Ok(()));
        assert_eq!(pod, once);
        let expected = json!({"spec": {
            "overhead": {"cpu": "250m"},
            "nodeSelector": {"zone": "a", "vm": "yes"},
            "tolerations": [{"key": "other"}, {"key": "vm", "operator": "Exists"}],
        }});
        assert_eq!(pod, expected);
    }

    #[test]
    fn conflicts_are_refused() {
        let class = json!({
            "overhead": {"podFixed": {"cpu": "250m"}}, "scheduling": {"nodeSelector": {"vm": "yes"}},
        });
        let mut pod = json!({"spec": {"nodeSelector": {"vm": "no"}}});
        assert_eq!(
            merge_into(&class, &mut pod),
            Err("conflict: runtimeClass.scheduling.nodeSelector[vm] = yes; pod.spec.nodeSelector[vm] = no"
                .to_owned())
        );
        let mut pod = json!({"spec": {"overhead": {"cpu": "1"}}});
        assert_eq!(merge_into(&class, &mut pod), Err(MISMATCH.to_owned()));
        assert_eq!(overhead_problem(Some(&class), &pod), Some(MISMATCH));
        assert!(overhead_problem(None, &pod).is_some());
        assert_eq!(overhead_problem(None, &json!({"spec": {}})), None);
    }
}
