//! Namespaces: rooms for objects, emptied before they go.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{copy_field, default_field, set, text};
use crate::kind::{Column, NameRule, Row, Scope, Strategy, Subresource};
use crate::table;

/// The label that lets selectors choose a namespace by its name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Namespaces.
pub static NAMESPACE: Row = Row {
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Finalize, Subresource::Status],
    schema: "io.k8s.api.core.v1.Namespace",
    columns: &[
        Column::name(),
        Column::new("Status", "Whether the namespace is in use or going away."),
        Column::age(),
    ],
    table_row,
    field_selectors: &[("status.phase", "/status/phase"), ("name", "/metadata/name")],
    name_rule: NameRule::DnsLabel,
    strategy: Strategy { default, prepare_create, prepare_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn default(namespace: &mut Value) {
    let name = text(&namespace["metadata"]["name"]).to_owned();
    // A name that the server still has to make up is labelled when it is known: this function runs again then.
    if name.is_empty() {
        return;
    }
    let Some(metadata) = namespace.get_mut("metadata") else {
        return;
    };
    default_field(metadata, "labels", json!({}));
    if let Some(labels) = metadata.get_mut("labels") {
        set(labels, NAME_LABEL, name);
    }
}

/// The finalizer keeps a deleted namespace until everything in it is gone.
fn prepare_create(namespace: &mut Value) {
    default_field(namespace, "spec", json!({}));
    let Some(spec) = namespace.get_mut("spec") else {
        return;
    };
    default_field(spec, "finalizers", json!([]));
    let kubernetes = json!("kubernetes");
    if let Some(finalizers) = spec.get_mut("finalizers").and_then(Value::as_array_mut)
        && !finalizers.contains(&kubernetes)
    {
        finalizers.push(kubernetes);
    }
    set(namespace, "status", json!({"phase": "Active"}));
}

/// Finalizers change through `finalize` only.
fn prepare_update(new: &mut Value, old: &Value) {
    default_field(new, "spec", json!({}));
    if let Some(spec) = new.get_mut("spec") {
        copy_field(spec, &old["spec"], "finalizers");
    }
}

fn table_row(namespace: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&namespace["metadata"]["name"])),
        json!(text(&namespace["status"]["phase"])),
        table::age(namespace, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_begins_active() {
        let mut namespace = json!({"metadata": {"name": "a"}});
        default(&mut namespace);
        prepare_create(&mut namespace);
        prepare_create(&mut namespace);
        let expected = json!({
            "metadata": {"name": "a", "labels": {"kubernetes.io/metadata.name": "a"}},
            "spec": {"finalizers": ["kubernetes"]},
            "status": {"phase": "Active"},
        });
        assert_eq!(namespace, expected);
        let mut new = json!({"metadata": {"name": "a"}, "spec": {"finalizers": []}});
        prepare_update(&mut new, &namespace);
        assert_eq!(new["spec"]["finalizers"], json!(["kubernetes"]));
    }
}
