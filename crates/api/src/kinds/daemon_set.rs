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
    if text(&strategy["type"]) == "RollingUpdate" {
        validate_rolling_update(&mut errors, &path.child("rollingUpdate"), &strategy["rollingUpdate"]);
    }
    errors
}

/// A node has either no pod for a while or two of them.
fn validate_rolling_update(errors: &mut Errors, path: &Path, rolling: &Value) {
    if rolling.is_null() {
        return errors.required(path, "");
    }
    for field in ["maxUnavailable", "maxSurge"] {
        rules::int_or_percent(errors, &path.child(field), &rolling[field]);
        rules::at_most_all(errors, &path.child(field), &rolling[field]);
    }
    let (unavailable, surge) =
        (!rules::is_zero(&rolling["maxUnavailable"]), !rules::is_zero(&rolling["maxSurge"]));
    if unavailable && surge {
        let detail = "may not be set when maxUnavailable is non-zero";
        errors.invalid(&path.child("maxSurge"), rolling["maxSurge"].clone(), detail);
    } else if !unavailable && !surge {
        errors.required(&path.child("maxUnavailable"), "cannot be 0 when maxSurge is 0");
    }
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

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let mut set = json!({
            "metadata": {"name": "agent", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "selector": {"matchLabels": {"app": "agent"}},
                "template": {
                    "metadata": {"labels": {"app": "agent"}},
                    "spec": {
                        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "nodeSelector": {"disk": "ssd"},
                        "containers": [{"name": "c", "image": "a:1", "terminationMessagePolicy": "File"}],
                    },
                },
            },
        });
        default(&mut set);
        set
    }

    #[test]
    fn validation() {
        let row = |what: &str, rolling: Value, expected: &[&str]| {
            let changed = with(good(), &[("/spec/updateStrategy/rollingUpdate", rolling)]);
            expect(what, &validate(&changed), expected);
        };
        expect("good", &validate(&good()), &[]);
        row("two at a time", json!({"maxUnavailable": 0, "maxSurge": "10%"}), &[]);
        row(
            "both",
            json!({"maxUnavailable": 1, "maxSurge": 1}),
            &[
                "spec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero",
            ],
        );
        row(
            "neither",
            json!({"maxUnavailable": 0, "maxSurge": "0%"}),
            &[
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0",
            ],
        );
        row(
            "more than all",
            json!({"maxUnavailable": "101%", "maxSurge": 0}),
            &[
                "spec.updateStrategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
            ],
        );
        let other = with(good(), &[("/spec/selector", json!({"matchLabels": {"app": "x"}}))]);
        assert_eq!(validate_update(&other, &good()).0.len(), 1);
    }

    #[test]
    fn cells() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let set = with(good(), &[("/status", json!({"desiredNumberScheduled": 3, "numberReady": 2}))]);
        let expected = [
            json!("agent"),
            json!(3),
            json!(0),
            json!(2),
            json!(0),
            json!(0),
            json!("disk=ssd"),
            json!("60s"),
            json!("c"),
            json!("a:1"),
            json!("app=agent"),
        ];
        assert_eq!(table_row(&set, now), expected);
    }
}
