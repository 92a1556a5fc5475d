//! Deployments: a template rolled out by ReplicaSets.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{copy_field, default_field, int, set, text};
use super::workload;
use super::{pod, rules};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::table;

const COLUMNS: &[Column] = &[
    Column::name(),
    Column::new("Ready", "Pods that are ready, of all pods that are wanted."),
    Column::new("Up-to-date", "Pods made from the present template."),
    Column::new("Available", "Pods that have been ready for long enough."),
    Column::age(),
    Column::new("Containers", "Names of the containers of the template.").wide(),
    Column::new("Images", "Images of the containers of the template.").wide(),
    Column::new("Selector", "Labels by which the pods are found.").wide(),
];

/// Deployments.
pub static DEPLOYMENT: Row = Row {
    group: "apps",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[Subresource::Scale, Subresource::Status],
    status_keeps: &["labels"],
    schema: "io.k8s.api.apps.v1.Deployment",
    columns: COLUMNS,
    table_row,
    generation: true,
    strategy: Strategy {
        default,
        prepare_create,
        prepare_update,
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// The annotation by which the deployment's loop counts its rollouts.
const REVISION: &str = "deployment.kubernetes.io/revision";

fn default(deployment: &mut Value) {
    workload::default_template(deployment);
    let Some(spec) = deployment.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    default_field(spec, "strategy", json!({}));
    let Some(strategy) = spec.get_mut("strategy") else {
        return;
    };
    default_field(strategy, "type", "RollingUpdate");
    if text(&strategy["type"]) == "RollingUpdate" {
        default_field(strategy, "rollingUpdate", json!({}));
        if let Some(rolling) = strategy.get_mut("rollingUpdate") {
            default_field(rolling, "maxUnavailable", "25%");
            default_field(rolling, "maxSurge", "25%");
        }
    }
}

fn prepare_create(deployment: &mut Value) {
    set(deployment, "status", json!({}));
}

/// Whoever sends back an older copy must not turn back the rollout's counter.
fn prepare_update(new: &mut Value, old: &Value) {
    if old["metadata"]["annotations"][REVISION].is_null()
        || !new["metadata"]["annotations"][REVISION].is_null()
    {
        return;
    }
    let Some(metadata) = new.get_mut("metadata").filter(|metadata| metadata.is_object()) else {
        return;
    };
    default_field(metadata, "annotations", json!({}));
    if let Some(annotations) = metadata.get_mut("annotations") {
        copy_field(annotations, &old["metadata"]["annotations"], REVISION);
    }
}

fn validate(deployment: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &deployment["spec"]);
    rules::non_negative(&mut errors, &path.child("replicas"), &spec["replicas"]);
    workload::validate_selector(&mut errors, &path, spec, "deployment");
    pod::spec::validate_replaced_template(
        &mut errors,
        &path.child("template"),
        &spec["template"],
        "ReplicaSet",
    );
    validate_strategy(&mut errors, &path.child("strategy"), &spec["strategy"]);
    for field in ["minReadySeconds", "revisionHistoryLimit"] {
        rules::non_negative(&mut errors, &path.child(field), &spec[field]);
    }
    if let Some(deadline) = spec["progressDeadlineSeconds"].as_i64() {
        rules::non_negative(
            &mut errors,
            &path.child("progressDeadlineSeconds"),
            &spec["progressDeadlineSeconds"],
        );
        if deadline <= int(&spec["minReadySeconds"]) {
            errors.invalid(
                &path.child("progressDeadlineSeconds"),
                deadline,
                "must be greater than minReadySeconds",
            );
        }
    }
    errors
}

fn validate_strategy(errors: &mut Errors, path: &Path, strategy: &Value) {
    let rolling_path = path.child("rollingUpdate");
    let rolling = &strategy["rollingUpdate"];
    rules::one_of(errors, &path.child("type"), &strategy["type"], &["Recreate", "RollingUpdate"]);
    match text(&strategy["type"]) {
        "Recreate" if !rolling.is_null() => {
            errors.forbidden(&rolling_path, "may not be specified when strategy `type` is 'Recreate'");
        }
        "RollingUpdate" if rolling.is_null() => {
            errors.required(&rolling_path, "this should be defaulted and never be nil");
        }
        "RollingUpdate" => validate_rolling_update(errors, &rolling_path, rolling),
        _ => {}
    }
}

fn validate_rolling_update(errors: &mut Errors, path: &Path, rolling: &Value) {
    let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
    rules::int_or_percent(errors, &path.child("maxUnavailable"), unavailable);
    rules::int_or_percent(errors, &path.child("maxSurge"), surge);
    if rules::is_zero(unavailable) && rules::is_zero(surge) {
        errors.invalid(
            &path.child("maxUnavailable"),
            unavailable.clone(),
            "may not be 0 when `maxSurge` is 0",
        );
    }
    rules::at_most_all(errors, &path.child("maxUnavailable"), unavailable);
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec").child("selector");
    rules::immutable(&mut errors, &path, &new["spec"]["selector"], &old["spec"]["selector"]);
    errors
}

fn table_row(deployment: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&deployment["spec"], &deployment["status"]);
    let [containers, images] = workload::container_cells(&spec["template"]["spec"]);
    vec![
        json!(text(&deployment["metadata"]["name"])),
        json!(format!("{}/{}", int(&status["readyReplicas"]), int(&spec["replicas"]))),
        json!(int(&status["updatedReplicas"])),
        json!(int(&status["availableReplicas"])),
        table::age(deployment, now),
        containers,
        images,
        json!(workload::format_selector(&spec["selector"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let mut deployment = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {
                        "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "securityContext": {},
                        "containers": [{"name": "web", "image": "nginx", "terminationMessagePolicy": "File"}],
                    },
                },
            },
        });
        default(&mut deployment);
        deployment
    }

    #[test]
    fn defaults() {
        let deployment = good();
        assert_eq!(
            deployment["spec"]["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}})
        );
        assert_eq!(deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"], "Always");
        let mut twice = deployment.clone();
        default(&mut twice);
        assert_eq!(twice, deployment);
        let mut recreate = with(good(), &[("/spec/strategy", json!({"type": "Recreate"}))]);
        default(&mut recreate);
        assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
    }

    #[test]
    fn validation() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good(), changes)), expected);
        };
        row("good", &[], &[]);
        row(
            "negative replicas",
            &[("/spec/replicas", json!(-1))],
            &["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        );
        row(
            "other labels",
            &[("/spec/template/metadata/labels", json!({"app": "db"}))],
            &[
                "spec.template.metadata.labels: Invalid value: {\"app\":\"db\"}: `selector` does not match template \
               `labels`",
            ],
        );
        row("no selector", &[("/spec/selector", json!(null))], &["spec.selector: Required value"]);
        row(
            "empty selector",
            &[("/spec/selector", json!({}))],
            &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        );
        row(
            "restart policy",
            &[("/spec/template/spec/restartPolicy", json!("Never"))],
            &["spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\""],
        );
        row(
            "no room to roll",
            &[("/spec/strategy/rollingUpdate", json!({"maxSurge": "0%", "maxUnavailable": 0}))],
            &[
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ],
        );
        row(
            "recreate and roll",
            &[("/spec/strategy/type", json!("Recreate"))],
            &[
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ],
        );
        row(
            "deadline",
            &[("/spec/progressDeadlineSeconds", json!(5)), ("/spec/minReadySeconds", json!(5))],
            &["spec.progressDeadlineSeconds: Invalid value: 5: must be greater than minReadySeconds"],
        );
    }

    #[test]
    fn selectors_stay() {
        let new = with(good(), &[("/spec/selector", json!({"matchLabels": {"app": "x"}}))]);
        expect(
            "selector",
            &validate_update(&new, &good()),
            &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"x\"}}: field is immutable"],
        );
        expect("scale", &validate_update(&with(good(), &[("/spec/replicas", json!(9))]), &good()), &[]);
    }

    #[test]
    fn the_rollout_counter_is_kept() {
        let old = with(good(), &[("/metadata/annotations", json!({REVISION: "3"}))]);
        let mut new = good();
        prepare_update(&mut new, &old);
        assert_eq!(new["metadata"]["annotations"][REVISION], "3");
    }

    #[test]
    fn cells() {
        let status = json!({"readyReplicas": 1, "updatedReplicas": 2, "availableReplicas": 1});
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = [
            json!("web"),
            json!("1/2"),
            json!(2),
            json!(1),
            json!("60s"),
            json!("web"),
            json!("nginx"),
            json!("app=web"),
        ];
        assert_eq!(table_row(&with(good(), &[("/status", status)]), now), expected);
    }
}
