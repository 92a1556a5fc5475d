//! Lists, maps and structures in a configuration that have one owner as a whole.
//!
//! Whoever sets one sets all of it: what is not named is gone. Server-side apply allows that, mutating admission policies
//! do not, because their author names some fields and means those.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/policy/mutating/patch/smd.go`, which looks into fields of structures
//! and elements of lists, but not into entries of maps.

use serde_json::Value;

use super::shape::{self, Shape};
use crate::schema::Schema;

/// Paths of what is set as a whole: `.spec.containers[0].args`.
pub fn atomics(schema: &Schema, configuration: &Value) -> Vec<String> {
    let mut found = Vec::new();
    find("", Shape::of_schema(schema), configuration, &mut found);
    found
}

fn find(path: &str, shape: Shape<'_>, value: &Value, found: &mut Vec<String>) {
    match (value, shape) {
        (Value::Object(_), Shape::Atomic) | (Value::Array(_), Shape::Atomic | Shape::Deduced) => {
            found.push(path.to_owned());
        }
        (Value::Object(fields), shape) => {
            for (name, value) in fields {
                if let Some(shape) = shape::of_known_field(shape, name) {
                    find(&format!("{path}.{name}"), shape, value, found);
                }
            }
        }
        (Value::Array(items), Shape::Keyed(keyed)) => {
            for (place, item) in items.iter().enumerate() {
                find(&format!("{path}[{place}]"), keyed.element(), item, found);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_set_as_a_whole_is_found() {
        let rows: [(&str, Value, &[&str]); 10] = [
            ("a map", json!({"metadata": {"labels": {"a": "b"}}}), &[]),
            ("a set", json!({"metadata": {"finalizers": ["a"]}}), &[]),
            ("a list by key", json!({"spec": {"containers": [{"name": "a", "image": "b"}]}}), &[]),
            (
                "a list in it",
                json!({"spec": {"containers": [{"name": "a", "args": ["x"]}, {"name": "b", "command": []}]}}),
                &[".spec.containers[0].args", ".spec.containers[1].command"],
            ),
            ("a plain list", json!({"spec": {"tolerations": [{"key": "a"}]}}), &[".spec.tolerations"]),
            ("a map that is one", json!({"spec": {"nodeSelector": {"a": "b"}}}), &[".spec.nodeSelector"]),
            (
                "a structure that is one",
                json!({"spec": {"volumes": [{"name": "v", "configMap": {"name": "x"}}], "affinity": {
                    "podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": []}}}}),
                &[".spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution"],
            ),
            (
                "a reference",
                json!({"spec": {"containers": [{"name": "a", "env": [
                    {"name": "e", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}]}}),
                &[".spec.containers[0].env[0].valueFrom.secretKeyRef"],
            ),
            ("null", json!({"spec": {"tolerations": null}}), &[]),
            ("nobody knows it", json!({"spec": {"unknown": [1]}}), &[]),
        ];
        for (what, part, expected) in rows {
            assert_eq!(atomics(&Schema::Table("io.k8s.api.core.v1.Pod"), &part), expected, "{what}");
        }
    }
}
