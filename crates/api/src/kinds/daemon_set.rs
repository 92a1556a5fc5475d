//! DaemonSets: one pod on every node that fits.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{default_field, int, set, text};
use super::{pod, rules, workload};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::table;

/// DaemonSets.
pub static DAEMON_SET: Row = Row {
    group: "apps",
    kind: "DaemonSet",
    plural: "daemonsets",
    singular: "daemonset",
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.apps.v1.DaemonSet",
    columns: &[
        Column::name(),
        Column::new("Desired", "Nodes that should run a pod.").of_type("integer"),
        Column::new("Current", "Nodes that run a pod and should.").of_type("integer"),
        Column::new("Ready", "Nodes whose pod is ready.").of_type("integer"),
        Column::new("Up-to-date", "Nodes whose pod is of the present template.").of_type("integer"),
        Column::new("Available", "Nodes whose pod has been ready for long enough.").of_type("integer"),
        Column::new("Node Selector", "Labels of the nodes."),
        Column::age(),
        Column::new("Containers", "Names of the containers of the template.").wide(),
        Column::new("Images", "Images of the containers of the template.").wide(),
        Column::new("Selector", "Labels by which the pods are found.").wide(),
    ],
    table_row,
    generation: true,
    strategy: Strategy { default, prepare_create, validate, validate_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn default(object: &mut Value) {
    workload::default_template(object);
    let Some(spec) = object.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    default_field(spec, "updateStrategy", json!({}));
    let Some(strategy) = spec.get_mut("updateStrategy") else {
        return;
    };
    default_field(strategy, "type", "RollingUpdate");
    if text(&strategy["type"]) == "RollingUpdate" {
        default_field(strategy, "rollingUpdate", json!({}));
        if let Some(rolling) = strategy.get_mut("rollingUpdate") {
            default_field(rolling, "maxUnavailable", 1);
            default_field(rolling, "maxSurge", 0);
        }
    }
}

fn prepare_create(object: &mut Value) {
    set(
        object,
        "status",
        json!({"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}),
    );
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &object["spec"]);
    workload::validate_selector(&mut errors, &path, spec, "daemonset");
    pod::spec::validate_replaced_template(
        &mut errors,
        &path.child("template"),
        &spec["template"],
        "DaemonSet",
    );
    for field in ["minReadySeconds", "revisionHistoryLimit"] {
        rules::non_negative(&mut errors, &path.child(field), &spec[field]);
    }
    let (path, strategy) = (path.child("updateStrategy"), &spec["updateStrategy"]);
    rules::one_of(&mut errors, &path.child("type"), &strategy["type"], &["OnDelete", "RollingUpdate"]);
    for field in ["maxUnavailable", "maxSurge"] {
        let path = path.child("rollingUpdate").child(field);
        rules::int_or_percent(&mut errors, &path, &strategy["rollingUpdate"][field]);
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec").child("selector");
    rules::immutable(&mut errors, &path, &new["spec"]["selector"], &old["spec"]["selector"]);
    errors
}

fn table_row(object: &Value, now: Timestamp) -> Vec<Value> {
    let (template, status) = (&object["spec"]["template"]["spec"], &object["status"]);
    let [containers, images] = workload::container_cells(template);
    let mut cells = vec![json!(text(&object["metadata"]["name"]))];
    cells.extend(
        [
            "desiredNumberScheduled",
            "currentNumberScheduled",
            "numberReady",
            "updatedNumberScheduled",
            "numberAvailable",
        ]
        .map(|field| json!(int(&status[field]))),
    );
    cells.extend([
        json!(table::format_labels(template.get("nodeSelector"))),
        table::age(object, now),
        containers,
        images,
        json!(workload::format_selector(&object["spec"]["selector"])),
    ]);
    cells
}
