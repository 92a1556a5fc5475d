//! Rules of `metadata`, the same for every kind.

use serde_json::Value;

use crate::field::{Errors, Path};
use crate::kind::{NameRule, Scope};
use crate::names;

/// All annotations of an object together, keys and values.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

/// Checks `metadata` of a complete object.
pub fn validate(object: &Value, scope: Scope, rule: NameRule) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("metadata");
    let metadata = &object["metadata"];
    match metadata["name"].as_str() {
        Some(name) if !name.is_empty() => {
            for problem in check_name(rule, name) {
                errors.invalid(&path.child("name"), name, problem);
            }
        }
        _ => errors.required(&path.child("name"), "name or generateName is required"),
    }
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    match (scope, namespace.is_empty()) {
        (Scope::Cluster, false) => errors.forbidden(&path.child("namespace"), "not allowed on this type"),
        (Scope::Namespaced, true) => errors.required(&path.child("namespace"), ""),
        (Scope::Namespaced, false) => {
            for problem in names::dns1123_label(namespace) {
                errors.invalid(&path.child("namespace"), namespace, problem);
            }
        }
        (Scope::Cluster, true) => {}
    }
    errors.extend(validate_labels(&metadata["labels"], &path.child("labels")));
    validate_annotations(&metadata["annotations"], &path.child("annotations"), &mut errors);
    validate_owners(&metadata["ownerReferences"], &path.child("ownerReferences"), &mut errors);
    for finalizer in metadata["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        for problem in names::qualified_name(finalizer) {
            errors.invalid(&path.child("finalizers"), finalizer, problem);
        }
    }
    errors
}

/// Problems of a name under a rule.
pub fn check_name(rule: NameRule, name: &str) -> Vec<String> {
    match rule {
        NameRule::DnsSubdomain => names::dns1123_subdomain(name),
        NameRule::DnsLabel => names::dns1123_label(name),
        NameRule::Dns1035Label => names::dns1035_label(name),
        NameRule::PathSegment => names::path_segment(name),
    }
}

/// Checks a map of labels.
pub fn validate_labels(labels: &Value, path: &Path) -> Errors {
    let mut errors = Errors::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        for problem in names::qualified_name(key) {
            errors.invalid(path, key.as_str(), problem);
        }
        let value = value.as_str().unwrap_or_default();
        for problem in names::label_value(value) {
            errors.invalid(path, value, problem);
        }
    }
    errors
}

fn validate_annotations(annotations: &Value, path: &Path, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in annotations.as_object().into_iter().flatten() {
        for problem in names::qualified_name(&key.to_lowercase()) {
            errors.invalid(path, key.as_str(), problem);
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX_BYTES {
        errors.too_long(path, ANNOTATIONS_MAX_BYTES);
    }
}

fn validate_owners(owners: &Value, path: &Path, errors: &mut Errors) {
    let mut controllers = 0;
    for (i, owner) in owners.as_array().into_iter().flatten().enumerate() {
        let path = path.index(i);
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().is_none_or(str::is_empty) {
                errors.invalid(
                    &path.child(field),
                    owner[field].as_str().unwrap_or_default(),
                    "must not be empty",
                );
            }
        }
        controllers += usize::from(owner["controller"].as_bool() == Some(true));
        if controllers == 2 {
            errors.invalid(
                &path,
                owner["name"].as_str().unwrap_or_default(),
                "Only one reference can have Controller set to true",
            );
        }
    }
}

/// Fields of `metadata` that no update may change.
pub fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("metadata");
    for field in ["name", "namespace", "uid", "creationTimestamp"] {
        let (new, old) = (&new["metadata"][field], &old["metadata"][field]);
        if new != old {
            errors.invalid(&path.child(field), new.clone(), "field is immutable");
        }
    }
    if !old["metadata"]["deletionTimestamp"].is_null() {
        let held = |object: &Value| -> Vec<String> {
            let finalizers = object["metadata"]["finalizers"].as_array();
            finalizers.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let before = held(old);
        let added: Vec<String> = held(new).into_iter().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            errors.forbidden(
                &path.child("finalizers"),
                format!("no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"),
            );
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rules() {
        let check = |metadata: Value, expected: &[&str]| {
            let found = validate(&json!({ "metadata": metadata }), Scope::Namespaced, NameRule::DnsSubdomain);
            let found: Vec<String> = found.0.iter().map(ToString::to_string).collect();
            assert_eq!(found.len(), expected.len(), "{found:?}");
            for (found, expected) in found.iter().zip(expected) {
                assert!(found.starts_with(expected), "{found}");
            }
        };
        check(json!({"name": "a", "namespace": "b"}), &[]);
        check(json!({"namespace": "b"}), &["metadata.name: Required value"]);
        check(
            json!({"name": "A", "namespace": "b"}),
            &["metadata.name: Invalid value: \"A\": a lowercase RFC 1123"],
        );
        check(json!({"name": "a"}), &["metadata.namespace: Required value"]);
        check(
            json!({"name": "a", "namespace": "b", "labels": {"x": "y z"}}),
            &["metadata.labels: Invalid value: \"y z\": a valid label"],
        );
        check(
            json!({"name": "a", "namespace": "b", "annotations": {"x": "y".repeat(300_000)}}),
            &["metadata.annotations: Too long"],
        );
    }

    #[test]
    fn dying_objects_get_no_finalizers() {
        let old = json!({"metadata": {"name": "a", "deletionTimestamp": "2020-01-01T00:00:00Z", "finalizers": ["x/y"]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!([]);
        assert!(validate_update(&new, &old).is_empty());
        new["metadata"]["finalizers"] = json!(["x/y", "a/b"]);
        assert_eq!(validate_update(&new, &old).0.len(), 1);
        new["metadata"]["name"] = json!("b");
        assert_eq!(validate_update(&new, &old).0.len(), 2);
    }
}
