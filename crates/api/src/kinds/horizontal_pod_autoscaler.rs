//! HorizontalPodAutoscalers: how many pods there are, decided by measurements.
//!
//! Objects are kept in the form of `autoscaling/v2`, whose rules are here; [`v1`] is the older, smaller form of the same
//! objects.

mod v1;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{copy_field, default_field, int, is_empty, list, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::quantity::Quantity;
use crate::{names, table};

pub use v1::HORIZONTAL_POD_AUTOSCALER_V1;

/// HorizontalPodAutoscalers.
pub static HORIZONTAL_POD_AUTOSCALER: Row = Row {
    group: "autoscaling",
    version: "v2",
    kind: "HorizontalPodAutoscaler",
    plural: "horizontalpodautoscalers",
    singular: "horizontalpodautoscaler",
    short_names: &["hpa"],
    categories: &["all"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
    columns: &[
        Column::name(),
        Column::new("Reference", "What is scaled."),
        Column::new("Targets", "What is measured, of what is wanted."),
        Column::new("MinPods", "Fewest pods."),
        Column::new("MaxPods", "Most pods."),
        Column::new("Replicas", "Pods there are."),
        Column::age(),
    ],
    table_row,
    strategy: Strategy {
        default,
        prepare_create: |autoscaler| set(autoscaler, "status", json!({"desiredReplicas": 0})),
        validate,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// Share of its CPU request that a pod should use when nobody says what to measure.
const DEFAULT_CPU_PERCENT: i64 = 80;
/// A cell shows this many metrics.
const SHOWN: usize = 2;
/// One hour.
const MAX_STABILIZATION_SECONDS: i64 = 3600;
/// Half an hour.
const MAX_PERIOD_SECONDS: i64 = 1800;
/// Sources of metrics, and the fields that hold them.
const SOURCES: [(&str, &str); 5] = [
    ("ContainerResource", "containerResource"),
    ("External", "external"),
    ("Object", "object"),
    ("Pods", "pods"),
    ("Resource", "resource"),
];

fn cpu_metric(percent: impl Into<Value>) -> Value {
    let target = json!({"type": "Utilization", "averageUtilization": percent.into()});
    json!({"type": "Resource", "resource": {"name": "cpu", "target": target}})
}

fn default(autoscaler: &mut Value) {
    let Some(spec) = autoscaler.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    if is_empty(&spec["metrics"]) {
        set(spec, "metrics", json!([cpu_metric(DEFAULT_CPU_PERCENT)]));
    }
    let Some(behavior) = spec.get_mut("behavior").filter(|behavior| behavior.is_object()) else {
        return;
    };
    let policy = |type_: &str, value: i64| json!({"type": type_, "value": value, "periodSeconds": 15});
    // Up at once, by four pods or by half of what there will be; down as far as the window allows, whose length is the
    // control loop's own when nothing is said.
    let up = json!({
        "stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [policy("Pods", 4), policy("Percent", 100)],
    });
    let down = json!({"selectPolicy": "Max", "policies": [policy("Percent", 100)]});
    for (field, rules) in [("scaleUp", up), ("scaleDown", down)] {
        default_field(behavior, field, json!({}));
        let Some(given) = behavior.get_mut(field) else {
            continue;
        };
        for name in ["stabilizationWindowSeconds", "selectPolicy", "policies"] {
            if given[name].is_null() && !rules[name].is_null() {
                copy_field(given, &rules, name);
            }
        }
    }
}

fn validate(autoscaler: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &autoscaler["spec"]);
    let min = spec["minReplicas"].as_i64();
    if let Some(min) = min
        && min < 1
    {
        errors.invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1");
    }
    let max = int(&spec["maxReplicas"]);
    if max < 1 {
        errors.invalid(&path.child("maxReplicas"), max, "must be greater than 0");
    }
    if min.is_some_and(|min| max < min) {
        errors.invalid(&path.child("maxReplicas"), max, "must be greater than or equal to `minReplicas`");
    }
    validate_reference(&mut errors, &path.child("scaleTargetRef"), &spec["scaleTargetRef"]);
    for (index, metric) in list(&spec["metrics"]).iter().enumerate() {
        validate_metric(&mut errors, &path.child("metrics").index(index), metric);
    }
    let path = path.child("behavior");
    for field in ["scaleUp", "scaleDown"] {
        let rules = &spec["behavior"][field];
        if !rules.is_null() {
            validate_scaling(&mut errors, &path.child(field), rules);
        }
    }
    errors
}

fn validate_reference(errors: &mut Errors, path: &Path, reference: &Value) {
    for field in ["kind", "name"] {
        rules::required_name(errors, &path.child(field), text(&reference[field]), names::path_segment);
    }
    let version = text(&reference["apiVersion"]);
    if version.matches('/').count() > 1 {
        let detail = format!("unexpected GroupVersion string: {version}");
        errors.invalid(&path.child("apiVersion"), version, detail);
    }
}

fn validate_metric(errors: &mut Errors, path: &Path, metric: &Value) {
    let type_ = text(&metric["type"]);
    if type_.is_empty() {
        errors.required(&path.child("type"), "must specify a metric source type");
    }
    let wanted = SOURCES.iter().find(|(name, _)| *name == type_).map(|(_, field)| *field);
    if wanted.is_none() {
        errors.not_supported(&path.child("type"), type_, &SOURCES.map(|(name, _)| name));
    }
    let present = SOURCES.iter().map(|(_, field)| *field).find(|field| !metric[*field].is_null());
    if let Some(first) = present {
        validate_source(errors, &path.child(first), first, &metric[first]);
    }
    if let Some(wanted) = wanted {
        if metric[wanted].is_null() {
            errors.required(&path.child(wanted), "must populate information for the given metric source");
        }
        for (_, other) in SOURCES {
            if other != wanted && !metric[other].is_null() {
                errors.forbidden(&path.child(other), "must populate the given metric source only");
            }
        }
    }
}

fn validate_source(errors: &mut Errors, path: &Path, field: &str, source: &Value) {
    let target = &source["target"];
    let target_path = path.child("target");
    match field {
        "resource" | "containerResource" => {
            if is_empty(&source["name"]) {
                errors.required(&path.child("name"), "must specify a resource name");
            }
            if field == "containerResource" {
                let container = text(&source["container"]);
                if container.is_empty() {
                    errors.required(&path.child("container"), "must specify a container");
                }
                rules::name(errors, &path.child("container"), container, names::path_segment);
            }
        }
        _ => validate_identifier(errors, &path.child("metric"), &source["metric"]),
    }
    if field == "object" {
        validate_reference(errors, &path.child("describedObject"), &source["describedObject"]);
    }
    validate_target(errors, &target_path, target);
    validate_choice(errors, &target_path, field, target);
}

/// Which of the ways to say a target a source understands, and that exactly one of them is used.
fn validate_choice(errors: &mut Errors, path: &Path, field: &str, target: &Value) {
    let given = |name: &str| !target[name].is_null();
    let average = path.child("averageValue");
    match field {
        "pods" if !is_positive(&target["averageValue"]) => {
            errors.required(&average, "must specify a positive target averageValue");
        }
        "pods" => {}
        "object" | "external" => {
            if !given("value") && !given("averageValue") {
                errors.required(&average, "must set either a target value for metric or a per-pod target");
            }
            if field == "external" && given("value") && given("averageValue") {
                let detail = "may not set both a target value for metric and a per-pod target";
                errors.forbidden(&path.child("value"), detail);
            }
        }
        _ => {
            if !given("averageUtilization") && !given("averageValue") {
                let detail = "must set either a target raw value or a target utilization";
                errors.required(&path.child("averageUtilization"), detail);
            }
            if given("averageUtilization") && given("averageValue") {
                errors.forbidden(&average, "may not set both a target raw value and a target utilization");
            }
        }
    }
}

fn validate_identifier(errors: &mut Errors, path: &Path, metric: &Value) {
    let name = text(&metric["name"]);
    if name.is_empty() {
        errors.required(&path.child("name"), "must specify a metric name");
    }
    rules::name(errors, &path.child("name"), name, names::path_segment);
    rules::label_selector(errors, &path.child("selector"), &metric["selector"]);
}

fn is_positive(value: &Value) -> bool {
    rules::quantity(value).is_some_and(|amount| amount > Quantity::ZERO)
}

fn validate_target(errors: &mut Errors, path: &Path, target: &Value) {
    let type_ = text(&target["type"]);
    if type_.is_empty() {
        errors.required(&path.child("type"), "must specify a metric target type");
    }
    if !matches!(type_, "Utilization" | "Value" | "AverageValue") {
        errors.invalid(&path.child("type"), type_, "must be either Utilization, Value, or AverageValue");
    }
    for field in ["value", "averageValue"] {
        if !target[field].is_null() && !is_positive(&target[field]) {
            errors.invalid(&path.child(field), target[field].clone(), "must be positive");
        }
    }
    if let Some(percent) = target["averageUtilization"].as_i64()
        && percent < 1
    {
        errors.invalid(&path.child("averageUtilization"), percent, "must be greater than 0");
    }
}

fn validate_scaling(errors: &mut Errors, path: &Path, scaling: &Value) {
    if let Some(seconds) = scaling["stabilizationWindowSeconds"].as_i64() {
        let path = path.child("stabilizationWindowSeconds");
        if seconds < 0 {
            errors.invalid(&path, seconds, "must be greater than or equal to zero");
        }
        validate_most(errors, &path, seconds, MAX_STABILIZATION_SECONDS);
    }
    let select = &scaling["selectPolicy"];
    rules::optional_one_of(errors, &path.child("selectPolicy"), select, &["Disabled", "Max", "Min"]);
    let (policies, policies_path) = (list(&scaling["policies"]), path.child("policies"));
    if policies.is_empty() {
        errors.required(&policies_path, "must specify at least one Policy");
    }
    for (index, policy) in policies.iter().enumerate() {
        let path = policies_path.index(index);
        rules::one_of(errors, &path.child("type"), &policy["type"], &["Percent", "Pods"]);
        for field in ["value", "periodSeconds"] {
            let number = int(&policy[field]);
            if number <= 0 {
                errors.invalid(&path.child(field), number, rules::POSITIVE);
            }
        }
        validate_most(
            errors,
            &path.child("periodSeconds"),
            int(&policy["periodSeconds"]),
            MAX_PERIOD_SECONDS,
        );
    }
    rules::quantity_not_negative(errors, &path.child("tolerance"), &scaling["tolerance"]);
}

fn validate_most(errors: &mut Errors, path: &Path, number: i64, most: i64) {
    if number > most {
        errors.invalid(path, number, format!("must be less than or equal to {most}"));
    }
}

fn table_row(autoscaler: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&autoscaler["spec"], &autoscaler["status"]);
    let target = &spec["scaleTargetRef"];
    let min = spec["minReplicas"].as_i64().map_or_else(|| "<unset>".to_owned(), |min| min.to_string());
    vec![
        json!(text(&autoscaler["metadata"]["name"])),
        json!(format!("{}/{}", text(&target["kind"]), text(&target["name"]))),
        json!(metrics(list(&spec["metrics"]), list(&status["currentMetrics"]))),
        json!(min),
        json!(int(&spec["maxReplicas"])),
        json!(int(&status["currentReplicas"])),
        table::age(autoscaler, now),
    ]
}

fn metrics(wanted: &[Value], measured: &[Value]) -> String {
    if wanted.is_empty() {
        return "<none>".to_owned();
    }
    let cells: Vec<String> = wanted
        .iter()
        .take(SHOWN)
        .enumerate()
        .map(|(index, metric)| metric_cell(metric, measured.get(index).unwrap_or(&Value::Null)))
        .collect();
    let cells = cells.join(", ");
    if wanted.len() > SHOWN { format!("{cells} + {} more...", wanted.len() - SHOWN) } else { cells }
}

fn metric_cell(wanted: &Value, measured: &Value) -> String {
    let type_ = text(&wanted["type"]);
    let Some((_, field)) = SOURCES.iter().find(|(name, _)| *name == type_) else {
        return "<unknown type>".to_owned();
    };
    let (source, target, current) =
        (&wanted[*field], &wanted[*field]["target"], &measured[*field]["current"]);
    let amount = |value: &Value| match value {
        Value::Null => "<unknown>".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let per_pod = !target["averageValue"].is_null();
    let pair = |name: &str| format!("{}/{}", amount(&current[name]), amount(&target[name]));
    let percent = |value: &Value, otherwise: &str| {
        value.as_i64().map_or_else(|| otherwise.to_owned(), |percent| format!("{percent}%"))
    };
    match type_ {
        "Resource" | "ContainerResource" if per_pod => {
            format!("{}: {}", text(&source["name"]), pair("averageValue"))
        }
        "Resource" | "ContainerResource" => format!(
            "{}: {}/{}",
            text(&source["name"]),
            percent(&current["averageUtilization"], "<unknown>"),
            percent(&target["averageUtilization"], "<auto>"),
        ),
        "Pods" => pair("averageValue"),
        _ if per_pod => format!("{} (avg)", pair("averageValue")),
        _ => pair("value"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let mut autoscaler = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "minReplicas": 1, "maxReplicas": 5,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
                "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
            },
        });
        default(&mut autoscaler);
        autoscaler
    }

    #[test]
    fn defaults() {
        let spec = &good()["spec"];
        assert_eq!(spec["metrics"], json!([cpu_metric(80)]));
        let down = json!({
            "stabilizationWindowSeconds": 60, "selectPolicy": "Max",
            "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}],
        });
        assert_eq!(spec["behavior"]["scaleDown"], down);
        assert_eq!(spec["behavior"]["scaleUp"]["policies"][0]["value"], 4);
        let mut plain = json!({"spec": {"metrics": [cpu_metric(50)]}});
        default(&mut plain);
        assert_eq!(plain, json!({"spec": {"metrics": [cpu_metric(50)]}}));
    }

    #[test]
    fn validation() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good(), changes)), expected);
        };
        row("good", &[], &[]);
        row(
            "bounds",
            &[("/spec/minReplicas", json!(0)), ("/spec/maxReplicas", json!(-1))],
            &[
                "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1",
                "spec.maxReplicas: Invalid value: -1: must be greater than 0",
                "spec.maxReplicas: Invalid value: -1: must be greater than or equal to `minReplicas`",
            ],
        );
        row(
            "target",
            &[("/spec/scaleTargetRef", json!({"apiVersion": "a/b/c", "name": "a/b"}))],
            &[
                "spec.scaleTargetRef.kind: Required value",
                "spec.scaleTargetRef.name: Invalid value: \"a/b\": may not contain '/'",
                "spec.scaleTargetRef.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
            ],
        );
        let metric = |metric: Value| [("/spec/metrics", json!([metric]))];
        row(
            "no source",
            &metric(json!({"type": "Pods"})),
            &["spec.metrics[0].pods: Required value: must populate information for the given metric source"],
        );
        let pods = json!({"metric": {"name": "a"}, "target": {"type": "AverageValue", "averageValue": "1"}});
        row("pods", &metric(json!({"type": "Pods", "pods": pods})), &[]);
        row(
            "two sources",
            &metric(json!({"type": "Pods", "pods": pods, "resource": {}})),
            &["spec.metrics[0].resource: Forbidden: must populate the given metric source only"],
        );
        row(
            "both targets",
            &metric(json!({"type": "External", "external": {
                "metric": {"name": "a"}, "target": {"type": "Value", "value": "1", "averageValue": "0"},
            }})),
            &[
                "spec.metrics[0].external.target.averageValue: Invalid value: \"0\": must be positive",
                "spec.metrics[0].external.target.value: Forbidden: may not set both a target value for metric and a \
                 per-pod target",
            ],
        );
        row(
            "behaviour",
            &[(
                "/spec/behavior/scaleUp",
                json!({
                    "stabilizationWindowSeconds": 3601, "selectPolicy": "Most",
                    "policies": [{"type": "Pods", "value": 0, "periodSeconds": 1801}],
                }),
            )],
            &[
                "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or equal to 3600",
                "spec.behavior.scaleUp.selectPolicy: Unsupported value: \"Most\": supported values: \"Disabled\", \
                 \"Max\", \"Min\"",
                "spec.behavior.scaleUp.policies[0].value: Invalid value: 0: must be greater than zero",
                "spec.behavior.scaleUp.policies[0].periodSeconds: Invalid value: 1801: must be less than or equal to 1800",
            ],
        );
    }

    #[test]
    fn cells() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = [
            json!("web"),
            json!("Deployment/web"),
            json!("cpu: <unknown>/80%"),
            json!("1"),
            json!(5),
            json!(0),
            json!("60s"),
        ];
        assert_eq!(table_row(&good(), now), expected);
        let external = |target: Value, current: Value| {
            let wanted = json!({"type": "External", "external": {"target": target}});
            metrics(&[wanted], &[json!({"type": "External", "external": {"current": current}})])
        };
        assert_eq!(external(json!({"averageValue": "5"}), json!({"averageValue": "2"})), "2/5 (avg)");
        assert_eq!(external(json!({"value": "5"}), json!({})), "<unknown>/5");
        let three = [cpu_metric(1), cpu_metric(2), cpu_metric(3)];
        assert_eq!(metrics(&three, &[]), "cpu: <unknown>/1%, cpu: <unknown>/2% + 1 more...");
    }
}
