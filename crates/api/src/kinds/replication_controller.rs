//! ReplicationControllers: the first kind that kept a number of pods running; ReplicaSets have taken their place.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{default_field, int, is_empty, set, text};
use super::{pod, rules, workload};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::table;

/// ReplicationControllers.
pub static REPLICATION_CONTROLLER: Row = Row {
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    schema: "io.k8s.api.core.v1.ReplicationController",
    columns: &[
        Column::name(),
        Column::new("Desired", "Pods that are wanted.").of_type("integer"),
        Column::new("Current", "Pods that exist.").of_type("integer"),
        Column::new("Ready", "Pods that are ready.").of_type("integer"),
        Column::age(),
        Column::new("Containers", "Names of the containers of the template.").wide(),
        Column::new("Images", "Images of the containers of the template.").wide(),
        Column::new("Selector", "Labels by which the pods are found.").wide(),
    ],
    table_row,
    field_selectors: &[("status.replicas", "/status/replicas")],
    generation: true,
    strategy: Strategy {
        default,
        prepare_create: |controller| set(controller, "status", json!({"replicas": 0})),
        validate,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// The labels of the template say what belongs to a controller that does not say it itself.
fn default(controller: &mut Value) {
    workload::default_template(controller);
    let labels = controller["spec"]["template"]["metadata"]["labels"].clone();
    if is_empty(&labels) {
        return;
    }
    if let Some(spec) = controller.get_mut("spec")
        && is_empty(&spec["selector"])
    {
        set(spec, "selector", labels.clone());
    }
    if let Some(metadata) = controller.get_mut("metadata").filter(|metadata| metadata.is_object()) {
        default_field(metadata, "labels", labels);
    }
}

fn validate(controller: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &controller["spec"]);
    rules::non_negative(&mut errors, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    rules::required(&mut errors, &path.child("selector"), &spec["selector"]);
    rules::non_negative(&mut errors, &path.child("replicas"), &spec["replicas"]);
    let (path, template) = (path.child("template"), &spec["template"]);
    if template.is_null() {
        errors.required(&path, "");
        return errors;
    }
    let labels = &template["metadata"]["labels"];
    if !is_empty(&spec["selector"]) && !rules::selects(&json!({"matchLabels": spec["selector"]}), labels) {
        let path = path.child("metadata").child("labels");
        errors.invalid(&path, labels.clone(), rules::SELECTOR_MISMATCH);
    }
    pod::spec::validate_replaced_template(&mut errors, &path, template, "ReplicationController");
    errors
}

fn table_row(controller: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&controller["spec"], &controller["status"]);
    let [containers, images] = workload::container_cells(&spec["template"]["spec"]);
    vec![
        json!(text(&controller["metadata"]["name"])),
        json!(int(&spec["replicas"])),
        json!(int(&status["replicas"])),
        json!(int(&status["readyReplicas"])),
        table::age(controller, now),
        containers,
        images,
        json!(table::format_labels(spec.get("selector"))),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let mut controller = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "replicas": 2,
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
                        "containers": [{"name": "c", "image": "a:1", "terminationMessagePolicy": "File"}],
                    },
                },
            },
        });
        default(&mut controller);
        controller
    }

    #[test]
    fn the_template_names_the_pods() {
        assert_eq!(good()["spec"]["selector"], json!({"app": "web"}));
        assert_eq!(good()["metadata"]["labels"], json!({"app": "web"}));
        let mut own =
            with(good(), &[("/spec/selector", json!({"a": "b"})), ("/metadata/labels", json!({"c": "d"}))]);
        let before = own.clone();
        default(&mut own);
        assert_eq!(own, before);
    }

    #[test]
    fn validation() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good(), changes)), expected);
        };
        row("good", &[], &[]);
        row("no template", &[("/spec/template", Value::Null)], &["spec.template: Required value"]);
        row("no selector", &[("/spec/selector", json!({}))], &["spec.selector: Required value"]);
        row(
            "other pods",
            &[("/spec/selector", json!({"app": "db"}))],
            &[
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ],
        );
        row(
            "restart policy",
            &[("/spec/template/spec/restartPolicy", json!("Never"))],
            &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
        );
    }

    #[test]
    fn cells() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let object = with(good(), &[("/status", json!({"replicas": 2, "readyReplicas": 1}))]);
        let expected = [
            json!("web"),
            json!(2),
            json!(2),
            json!(1),
            json!("60s"),
            json!("c"),
            json!("a:1"),
            json!("app=web"),
        ];
        assert_eq!(table_row(&object, now), expected);
    }
}
