//! ReplicaSets: so many pods of one template.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, set, text};
use super::{pod, rules, workload};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::table;

const COLUMNS: &[Column] = &[
    Column::name(),
    Column::new("Desired", "Pods that are wanted.").of_type("integer"),
    Column::new("Current", "Pods that exist.").of_type("integer"),
    Column::new("Ready", "Pods that are ready.").of_type("integer"),
    Column::age(),
    Column::new("Containers", "Names of the containers of the template.").wide(),
    Column::new("Images", "Images of the containers of the template.").wide(),
    Column::new("Selector", "Labels by which the pods are found.").wide(),
];

/// ReplicaSets.
pub static REPLICA_SET: Row = Row {
    group: "apps",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    schema: "io.k8s.api.apps.v1.ReplicaSet",
    columns: COLUMNS,
    table_row,
    field_selectors: &[("status.replicas", "/status/replicas")],
    generation: true,
    strategy: Strategy {
        default: workload::default_template,
        prepare_create,
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

fn prepare_create(replica_set: &mut Value) {
    set(replica_set, "status", json!({"replicas": 0}));
}

fn validate(replica_set: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &replica_set["spec"]);
    rules::non_negative(&mut errors, &path.child("replicas"), &spec["replicas"]);
    rules::non_negative(&mut errors, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    // The word of the message is upstream's, not a slip here.
    workload::validate_selector(&mut errors, &path, spec, "deployment");
    match &spec["template"] {
        Value::Null => errors.required(&path.child("template"), ""),
        template => {
            let path = path.child("template");
            pod::spec::validate_replaced_template(&mut errors, &path, template, "ReplicaSet");
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec").child("selector");
    rules::immutable(&mut errors, &path, &new["spec"]["selector"], &old["spec"]["selector"]);
    errors
}

fn table_row(replica_set: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&replica_set["spec"], &replica_set["status"]);
    let [containers, images] = workload::container_cells(&spec["template"]["spec"]);
    vec![
        json!(text(&replica_set["metadata"]["name"])),
        json!(int(&spec["replicas"])),
        json!(int(&status["replicas"])),
        json!(int(&status["readyReplicas"])),
        table::age(replica_set, now),
        containers,
        images,
        json!(workload::format_selector(&spec["selector"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation_and_cells() {
        let mut replica_set = json!({
            "metadata": {"name": "web-1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                        "containers": [{"name": "c", "image": "a:1", "terminationMessagePolicy": "File"}],
                    },
                },
            },
        });
        workload::default_template(&mut replica_set);
        prepare_create(&mut replica_set);
        expect("good", &validate(&replica_set), &[]);
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = [
            json!("web-1"),
            json!(3),
            json!(0),
            json!(0),
            json!("60s"),
            json!("c"),
            json!("a:1"),
            json!("app=web"),
        ];
        assert_eq!(table_row(&replica_set, now), expected);
        let mut changed = replica_set.clone();
        changed["spec"]["selector"]["matchLabels"]["app"] = json!("x");
        assert_eq!(validate_update(&changed, &replica_set).0.len(), 1);
        changed["spec"]["template"] = Value::Null;
        assert!(validate(&changed).0.iter().any(|e| e.to_string() == "spec.template: Required value"));
    }
}
