//! HorizontalPodAutoscalers of `autoscaling/v1`: one number instead of metrics.
//!
//! What the small form has no fields for stands in annotations, as text in JSON, so that a client of this version can
//! read an object and write it back without loss. Those annotations exist in this form only. Source of the pairs:
//! `pkg/apis/autoscaling/v1/conversion.go`.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::json::{default_field, is_empty, list, remove, set, text};
use super::{DEFAULT_CPU_PERCENT, HORIZONTAL_POD_AUTOSCALER, cpu_metric};
use crate::field::Errors;
use crate::kind::{Conversion, Row, Strategy};

/// HorizontalPodAutoscalers in the older form.
pub static HORIZONTAL_POD_AUTOSCALER_V1: Row = Row {
    version: "v1",
    schema: "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler",
    table_row,
    stored_as: Some(Conversion {
        resource: "horizontalpodautoscalers.autoscaling",
        to_storage,
        from_storage,
    }),
    strategy: Strategy {
        default: |_| {},
        prepare_create: |autoscaler| {
            set(autoscaler, "status", json!({"currentReplicas": 0, "desiredReplicas": 0}))
        },
        validate,
        ..Strategy::PLAIN
    },
    ..HORIZONTAL_POD_AUTOSCALER
};

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";

/// How the fields of a metric are called in the annotations: where in the newer form, which name in the older.
type Names = &'static [(&'static str, &'static str)];

const RESOURCE: Names = &[
    ("/name", "name"),
    ("/container", "container"),
    ("/target/averageUtilization", "targetAverageUtilization"),
    ("/target/averageValue", "targetAverageValue"),
    ("/current/averageUtilization", "currentAverageUtilization"),
    ("/current/averageValue", "currentAverageValue"),
];
const PODS: Names = &[
    ("/metric/name", "metricName"),
    ("/metric/selector", "selector"),
    ("/target/averageValue", "targetAverageValue"),
    ("/current/averageValue", "currentAverageValue"),
];
const OBJECT: Names = &[
    ("/describedObject", "target"),
    ("/metric/name", "metricName"),
    ("/metric/selector", "selector"),
    ("/target/value", "targetValue"),
    ("/target/averageValue", "averageValue"),
    ("/current/value", "currentValue"),
    ("/current/averageValue", "averageValue"),
];
const EXTERNAL: Names = &[
    ("/metric/name", "metricName"),
    ("/metric/selector", "metricSelector"),
    ("/target/value", "targetValue"),
    ("/target/averageValue", "targetAverageValue"),
    ("/current/value", "currentValue"),
    ("/current/averageValue", "currentAverageValue"),
];
const SOURCES: [(&str, Names); 5] = [
    ("resource", RESOURCE),
    ("containerResource", RESOURCE),
    ("pods", PODS),
    ("object", OBJECT),
    ("external", EXTERNAL),
];

/// Whether a metric is of the target of a spec or of the current value in a status.
#[derive(Clone, Copy)]
enum Part {
    Target,
    Current,
}

impl Part {
    fn field(self) -> &'static str {
        match self {
            Self::Target => "target",
            Self::Current => "current",
        }
    }

    /// Whether a place in the newer form belongs to the other part.
    fn excludes(self, pointer: &str) -> bool {
        match self {
            Self::Target => pointer.starts_with("/current/"),
            Self::Current => pointer.starts_with("/target/"),
        }
    }
}

fn metric_to_older(metric: &Value, part: Part) -> Value {
    let mut older = json!({"type": metric["type"]});
    for (field, names) in SOURCES {
        let Some(source) = metric.get(field) else {
            continue;
        };
        let mut flat = json!({});
        for (pointer, name) in names.iter().filter(|(pointer, _)| !part.excludes(pointer)) {
            if let Some(value) = source.pointer(pointer) {
                set(&mut flat, name, value.clone());
            }
        }
        // The older structures have these behind no pointer, so their readers expect a number.
        let number = match (field, part) {
            ("object", Part::Target) => Some("targetValue"),
            ("object" | "external", Part::Current) => Some("currentValue"),
            _ => None,
        };
        if let Some(number) = number {
            default_field(&mut flat, number, "0");
        }
        set(&mut older, field, flat);
    }
    older
}

fn metric_from_older(older: &Value, part: Part) -> Value {
    let mut metric = json!({"type": older["type"]});
    for (field, names) in SOURCES {
        let Some(flat) = older.get(field) else {
            continue;
        };
        let mut source = json!({});
        for (pointer, name) in names.iter().filter(|(pointer, _)| !part.excludes(pointer)) {
            if let Some(value) = flat.get(*name) {
                put(&mut source, pointer, value.clone());
            }
        }
        drop_padding(&mut source, part);
        set(&mut metric, field, source);
    }
    metric
}

/// Puts a value at a pointer of one or two steps.
fn put(object: &mut Value, pointer: &str, value: Value) {
    let mut steps = pointer.trim_start_matches('/').splitn(2, '/');
    let (first, second) = (steps.next().unwrap_or_default(), steps.next());
    match second {
        None => set(object, first, value),
        Some(second) => {
            default_field(object, first, json!({}));
            if let Some(inner) = object.get_mut(first) {
                set(inner, second, value);
            }
        }
    }
}

/// A zero beside an average is the older form's way to say nothing; the type of a target follows from what is there.
fn drop_padding(source: &mut Value, part: Part) {
    let Some(amounts) = source.get_mut(part.field()).filter(|amounts| amounts.is_object()) else {
        return;
    };
    if !amounts["averageValue"].is_null() && text(&amounts["value"]) == "0" {
        remove(amounts, "value");
    }
    if let Part::Target = part {
        let type_ = match (&amounts["averageUtilization"], &amounts["averageValue"]) {
            (Value::Null, Value::Null) => "Value",
            (Value::Null, _) => "AverageValue",
            _ => "Utilization",
        };
        set(amounts, "type", type_);
    }
}

/// The percentage of a metric that the older form has a field for.
fn cpu_percent(metric: &Value, part: Part) -> Option<&Value> {
    let resource = &metric["resource"];
    let is_cpu = text(&metric["type"]) == "Resource" && text(&resource["name"]) == "cpu";
    let percent = &resource[part.field()]["averageUtilization"];
    (is_cpu && !percent.is_null()).then_some(percent)
}

fn from_storage(autoscaler: &mut Value) {
    let mut annotations: Vec<(&str, Value)> = Vec::new();
    if let Some(spec) = autoscaler.get_mut("spec").filter(|spec| spec.is_object()) {
        let metrics = remove(spec, "metrics").unwrap_or_default();
        if let Some(percent) = list(&metrics).iter().find_map(|metric| cpu_percent(metric, Part::Target)) {
            set(spec, "targetCPUUtilizationPercentage", percent.clone());
        }
        let others: Vec<Value> = list(&metrics)
            .iter()
            .filter(|metric| cpu_percent(metric, Part::Target).is_none())
            .map(|metric| metric_to_older(metric, Part::Target))
            .collect();
        annotations.push((METRICS, json!(others)));
        annotations.push((BEHAVIOR, remove(spec, "behavior").unwrap_or_default()));
    }
    if let Some(status) = autoscaler.get_mut("status").filter(|status| status.is_object()) {
        let metrics = remove(status, "currentMetrics").unwrap_or_default();
        if let Some(percent) = list(&metrics).iter().find_map(|metric| cpu_percent(metric, Part::Current)) {
            set(status, "currentCPUUtilizationPercentage", percent.clone());
        }
        let older: Vec<Value> =
            list(&metrics).iter().map(|metric| metric_to_older(metric, Part::Current)).collect();
        annotations.push((CURRENT_METRICS, json!(older)));
        annotations.push((CONDITIONS, remove(status, "conditions").unwrap_or_default()));
        default_field(status, "currentReplicas", 0);
    }
    for (name, value) in annotations.into_iter().filter(|(_, value)| !is_empty(value)) {
        annotate(autoscaler, name, value.to_string());
    }
    if autoscaler.get("apiVersion").is_some() {
        set(autoscaler, "apiVersion", "autoscaling/v1");
    }
}

fn annotate(autoscaler: &mut Value, name: &str, value: String) {
    let Some(metadata) = autoscaler.get_mut("metadata").filter(|metadata| metadata.is_object()) else {
        return;
    };
    default_field(metadata, "annotations", json!({}));
    if let Some(annotations) = metadata.get_mut("annotations") {
        set(annotations, name, value);
    }
}

/// Takes an annotation of this form away and reads it; one that is no JSON of the right shape says nothing.
fn take(autoscaler: &mut Value, name: &str) -> Value {
    let Some(metadata) = autoscaler.get_mut("metadata") else {
        return Value::Null;
    };
    let Some(annotations) = metadata.get_mut("annotations") else {
        return Value::Null;
    };
    let value = remove(annotations, name);
    if is_empty(annotations) {
        remove(metadata, "annotations");
    }
    value.and_then(|value| serde_json::from_str(text(&value)).ok()).unwrap_or_default()
}

fn to_storage(autoscaler: &mut Value) {
    let (metrics, behavior) = (take(autoscaler, METRICS), take(autoscaler, BEHAVIOR));
    let (current, conditions) = (take(autoscaler, CURRENT_METRICS), take(autoscaler, CONDITIONS));
    if let Some(spec) = autoscaler.get_mut("spec").filter(|spec| spec.is_object()) {
        let mut all: Vec<Value> =
            objects(&metrics).map(|metric| metric_from_older(metric, Part::Target)).collect();
        all.extend(remove(spec, "targetCPUUtilizationPercentage").map(cpu_metric));
        if all.is_empty() {
            all.push(cpu_metric(DEFAULT_CPU_PERCENT));
        }
        set(spec, "metrics", all);
        if behavior.is_object() {
            set(spec, "behavior", behavior);
        }
    }
    if let Some(status) = autoscaler.get_mut("status").filter(|status| status.is_object()) {
        let percent = remove(status, "currentCPUUtilizationPercentage");
        let mut all: Vec<Value> =
            objects(&current).map(|metric| metric_from_older(metric, Part::Current)).collect();
        if let Some(percent) = percent.filter(|_| all.is_empty()) {
            let current = json!({"averageUtilization": percent});
            all.push(json!({"type": "Resource", "resource": {"name": "cpu", "current": current}}));
        }
        if !all.is_empty() {
            set(status, "currentMetrics", all);
        }
        let conditions: Vec<Value> = objects(&conditions).cloned().collect();
        if !conditions.is_empty() {
            set(status, "conditions", conditions);
        }
        // The newer form leaves out a count of none.
        if status["currentReplicas"].as_i64() == Some(0) {
            remove(status, "currentReplicas");
        }
    }
    if autoscaler.get("apiVersion").is_some() {
        set(autoscaler, "apiVersion", "autoscaling/v2");
    }
}

fn objects(values: &Value) -> impl Iterator<Item = &Value> {
    list(values).iter().filter(|value| value.is_object())
}

fn as_newer(autoscaler: &Value) -> Value {
    let mut autoscaler = autoscaler.clone();
    to_storage(&mut autoscaler);
    autoscaler
}

/// Names of fields in messages are those of the kept form, as upstream's are.
fn validate(autoscaler: &Value) -> Errors {
    (HORIZONTAL_POD_AUTOSCALER.strategy.validate)(&as_newer(autoscaler))
}

fn table_row(autoscaler: &Value, now: Timestamp) -> Vec<Value> {
    (HORIZONTAL_POD_AUTOSCALER.table_row)(&as_newer(autoscaler), now)
}

#[cfg(test)]
mod tests {
    use super::super::super::rules::testing::{expect, with};
    use super::*;

    fn newer(metrics: Value) -> Value {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "web", "annotations": {"own": "yes"}},
            "spec": {
                "minReplicas": 1, "maxReplicas": 5, "metrics": metrics,
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            },
            "status": {"desiredReplicas": 2, "currentReplicas": 2},
        })
    }

    fn every_source() -> Value {
        let described = json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "name": "main"});
        let selector = json!({"matchLabels": {"verb": "GET"}});
        json!([
            {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}},
            {"type": "ContainerResource", "containerResource": {
                "name": "cpu", "container": "app", "target": {"type": "Utilization", "averageUtilization": 60},
            }},
            {"type": "Pods", "pods": {
                "metric": {"name": "packets", "selector": selector}, "target": {"type": "AverageValue", "averageValue": "1k"},
            }},
            {"type": "Object", "object": {
                "describedObject": described, "metric": {"name": "requests"}, "target": {"type": "Value", "value": "2k"},
            }},
            {"type": "Object", "object": {
                "describedObject": described, "metric": {"name": "requests"},
                "target": {"type": "AverageValue", "averageValue": "2k"},
            }},
            {"type": "External", "external": {
                "metric": {"name": "queue", "selector": selector}, "target": {"type": "AverageValue", "averageValue": "30"},
            }},
            {"type": "External", "external": {"metric": {"name": "queue"}, "target": {"type": "Value", "value": "30"}}},
            cpu_metric(80),
        ])
    }

    #[test]
    fn nothing_is_lost() {
        let mut full = newer(every_source());
        full["spec"]["behavior"] = json!({"scaleDown": {"selectPolicy": "Disabled"}});
        full["status"]["currentMetrics"] = json!([
            {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 40, "averageValue": "10m"}}},
            {"type": "External", "external": {"metric": {"name": "queue"}, "current": {"value": "3"}}},
        ]);
        full["status"]["conditions"] = json!([{"type": "AbleToScale", "status": "True"}]);
        let cases = [full, newer(json!([cpu_metric(50)])), newer(every_source())];
        for stored in cases {
            let mut older = stored.clone();
            from_storage(&mut older);
            assert_eq!(older["apiVersion"], "autoscaling/v1");
            assert!(older["spec"].get("metrics").is_none() && older["spec"].get("behavior").is_none());
            to_storage(&mut older);
            assert_eq!(older, stored);
        }
    }

    #[test]
    fn the_older_form() {
        let mut autoscaler = newer(json!([
            {"type": "Pods", "pods": {"metric": {"name": "a"}, "target": {"type": "AverageValue", "averageValue": "1"}}},
            cpu_metric(70),
        ]));
        from_storage(&mut autoscaler);
        assert_eq!(autoscaler["spec"]["targetCPUUtilizationPercentage"], 70);
        let expected = json!([{"type": "Pods", "pods": {"metricName": "a", "targetAverageValue": "1"}}]);
        assert_eq!(autoscaler["metadata"]["annotations"][METRICS], expected.to_string());
        let schema = "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler";
        let mut problems = crate::decode::Strictness::default();
        let before = autoscaler.clone();
        assert_eq!(crate::decode::conform(schema, &mut autoscaler, &mut problems), Ok(()));
        assert_eq!((autoscaler, problems.problems), (before, Vec::new()));
    }

    #[test]
    fn from_the_older_form() {
        let older = json!({"metadata": {"name": "a"}, "spec": {"maxReplicas": 3}});
        let rows = [
            ("nothing said", older.clone(), json!([cpu_metric(80)])),
            (
                "percentage",
                with(older.clone(), &[("/spec/targetCPUUtilizationPercentage", json!(5))]),
                json!([cpu_metric(5)]),
            ),
            (
                "damaged",
                with(older.clone(), &[("/metadata/annotations", json!({METRICS: "{"}))]),
                json!([cpu_metric(80)]),
            ),
        ];
        for (what, mut autoscaler, metrics) in rows {
            to_storage(&mut autoscaler);
            assert_eq!(autoscaler["spec"]["metrics"], metrics, "{what}");
            assert!(autoscaler["metadata"].get("annotations").is_none(), "{what}");
        }
        expect(
            "validation",
            &validate(&older),
            &["spec.scaleTargetRef.kind: Required value", "spec.scaleTargetRef.name: Required value"],
        );
    }
}
