//! What Deployments, ReplicaSets and their kin share: a number of pods made from a template and found by a selector.

use serde_json::{Value, json};

use super::json::{entries, is_empty, list, text};
use super::pod::default_template_spec;
use super::rules;
use crate::field::{Errors, Path};

/// Fills in the conditional defaults of the template at `/spec/template`.
pub(crate) fn default_template(object: &mut Value) {
    if let Some(spec) = object.pointer_mut("/spec/template/spec") {
        default_template_spec(spec);
    }
}

/// Checks `spec.selector`, and that it selects the pods of `spec.template`. `kind` is the word of the message.
pub(crate) fn validate_selector(errors: &mut Errors, path: &Path, spec: &Value, kind: &str) {
    let (selector, selector_path) = (&spec["selector"], path.child("selector"));
    if selector.is_null() {
        return errors.required(&selector_path, "");
    }
    rules::label_selector(errors, &selector_path, selector);
    if is_empty(&selector["matchLabels"]) && is_empty(&selector["matchExpressions"]) {
        errors.invalid(&selector_path, selector.clone(), format!("empty selector is invalid for {kind}"));
        return;
    }
    let labels = &spec["template"]["metadata"]["labels"];
    if !rules::selects(selector, labels) {
        let path = path.child("template").child("metadata").child("labels");
        let shown = if labels.is_null() { json!({}) } else { labels.clone() };
        errors.invalid(&path, shown, rules::SELECTOR_MISMATCH);
    }
}

/// The cells Containers and Images.
pub(crate) fn container_cells(pod_spec: &Value) -> [Value; 2] {
    ["name", "image"].map(|field| {
        let all: Vec<&str> = list(&pod_spec["containers"]).iter().map(|c| text(&c[field])).collect();
        json!(all.join(","))
    })
}

/// A label selector in one line: `app=web,tier in (a,b),!old`; `<none>` when it selects everything.
pub(crate) fn format_selector(selector: &Value) -> String {
    let mut parts: Vec<(String, String)> = entries(&selector["matchLabels"])
        .map(|(key, value)| (key.to_owned(), format!("{key}={}", text(value))))
        .collect();
    for requirement in list(&selector["matchExpressions"]) {
        let key = text(&requirement["key"]);
        let mut values: Vec<&str> = list(&requirement["values"]).iter().map(text).collect();
        values.sort_unstable();
        let shown = match text(&requirement["operator"]) {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        };
        parts.push((key.to_owned(), shown));
    }
    parts.sort();
    if parts.is_empty() {
        return "<none>".to_owned();
    }
    parts.into_iter().map(|(_, shown)| shown).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_in_one_line() {
        let rows = [
            (json!({}), "<none>"),
            (json!({"matchLabels": {"b": "2", "a": "1"}}), "a=1,b=2"),
            (
                json!({
                    "matchLabels": {"z": "1"},
                    "matchExpressions": [
                        {"key": "b", "operator": "In", "values": ["y", "x"]},
                        {"key": "a", "operator": "DoesNotExist"},
                        {"key": "c", "operator": "NotIn", "values": ["x"]},
                        {"key": "d", "operator": "Exists"},
                    ],
                }),
                "!a,b in (x,y),c notin (x),d,z=1",
            ),
        ];
        for (selector, expected) in rows {
            assert_eq!(format_selector(&selector), expected);
        }
    }
}
