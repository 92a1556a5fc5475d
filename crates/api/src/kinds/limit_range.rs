//! LimitRanges: bounds and defaults of what single objects of a namespace may ask for.
//!
//! What they do to a pod is admission's business; here is what a range may say, and what follows from what it says.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{copy_field, default_field, entries, is_empty, list, list_mut, text};
use super::rules::{self, quantity};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy};
use crate::names;
use crate::quantity::Quantity;

/// LimitRanges.
pub static LIMIT_RANGE: Row = Row {
    kind: "LimitRange",
    plural: "limitranges",
    singular: "limitrange",
    short_names: &["limits"],
    schema: "io.k8s.api.core.v1.LimitRange",
    columns: &[Column::name(), Column::new("Created At", "Time the object was created.").of_type("date")],
    table_row,
    strategy: Strategy { default, validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

/// The kinds of objects a range may bound without a prefix.
const TYPES: [&str; 3] = ["Pod", "Container", "PersistentVolumeClaim"];
/// The bounds of an item, in the order in which upstream checks their names.
const BOUNDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

/// A container that says nothing gets the most it may have as its limit, and asks for as much as it gets.
fn default(range: &mut Value) {
    for item in list_mut(range, "/spec/limits").filter(|item| text(&item["type"]) == "Container") {
        for (to, from) in [("default", "max"), ("defaultRequest", "default"), ("defaultRequest", "min")] {
            fill(item, to, from);
        }
    }
}

/// Gives the bound `to` an amount of each resource for which only `from` has one.
fn fill(item: &mut Value, to: &str, from: &str) {
    let known = item[from].clone();
    if is_empty(&known) {
        return;
    }
    default_field(item, to, json!({}));
    let Some(target) = item.get_mut(to) else {
        return;
    };
    for (resource, _) in entries(&known) {
        if target[resource].is_null() {
            copy_field(target, &known, resource);
        }
    }
}

fn validate(range: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, item) in list(&range["spec"]["limits"]).iter().enumerate() {
        let path = Path::new("spec").child("limits").index(index);
        let type_ = text(&item["type"]);
        validate_type(&mut errors, &path.child("type"), type_);
        if !seen.insert(type_) {
            errors.duplicate(&path.child("type"), type_);
        }
        validate_amounts(&mut errors, &path, item, type_);
        let resources: BTreeSet<&str> =
            BOUNDS.iter().flat_map(|bound| entries(&item[*bound])).map(|(resource, _)| resource).collect();
        for resource in resources {
            validate_order(&mut errors, &path, item, resource);
        }
    }
    errors
}

fn validate_type(errors: &mut Errors, path: &Path, type_: &str) {
    rules::name(errors, path, type_, names::qualified_name);
    if !type_.contains('/') && !TYPES.contains(&type_) {
        errors.invalid(path, type_, "must be a standard limit type or fully qualified");
    }
}

fn validate_amounts(errors: &mut Errors, path: &Path, item: &Value, type_: &str) {
    for bound in BOUNDS {
        let path = path.child(bound);
        if type_ == "Pod" && matches!(bound, "default" | "defaultRequest") && !is_empty(&item[bound]) {
            errors.forbidden(&path, "may not be specified when `type` is 'Pod'");
            continue;
        }
        for (resource, amount) in entries(&item[bound]) {
            validate_resource(errors, &path.key(resource), resource, type_);
            rules::quantity_not_negative(errors, &path.key(resource), amount);
        }
    }
    let storage = |bound: &str| &item[bound]["storage"];
    if type_ == "PersistentVolumeClaim" && storage("min").is_null() && storage("max").is_null() {
        errors.required(
            &path.child("limits"),
            "either minimum or maximum storage value is required, but neither was provided",
        );
    }
}

fn validate_resource(errors: &mut Errors, path: &Path, resource: &str, type_: &str) {
    rules::name(errors, path, resource, names::qualified_name);
    let standard =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if matches!(type_, "Pod" | "Container") && !resource.contains('/') && !standard {
        errors.invalid(path, resource, "must be a standard resource for containers");
    }
}

/// The bounds of a resource in their order: least, default request, default limit, most.
fn validate_order(errors: &mut Errors, path: &Path, item: &Value, resource: &str) {
    let amount = |bound: &str| quantity(&item[bound][resource]);
    let (min, max) = (amount("min"), amount("max"));
    let (request, limit) = (amount("defaultRequest"), amount("default"));
    let mut check = |bound: &str, less: Option<Quantity>, more: Option<Quantity>, names: (&str, &str)| {
        if let (Some(less), Some(more)) = (less, more)
            && less > more
        {
            let shown = item[bound][resource].clone();
            let detail = format!("{} value {less} is greater than {} value {more}", names.0, names.1);
            errors.invalid(&path.child(bound).key(resource), shown, detail);
        }
    };
    check("min", min, max, ("min", "max"));
    check("defaultRequest", min, request, ("min", "default request"));
    check("defaultRequest", request, max, ("default request", "max"));
    check("defaultRequest", request, limit, ("default request", "default limit"));
    check("default", min, limit, ("min", "default"));
    check("default", limit, max, ("default", "max"));
    validate_ratio(errors, path, item, resource);
    if let (Some(limit), Some(request)) = (limit, request)
        && limit != request
        && !may_overcommit(resource)
    {
        errors.invalid(
            &path.child("defaultRequest").key(resource),
            item["defaultRequest"][resource].clone(),
            format!("default value {limit} must equal to defaultRequest value {request} in {resource}"),
        );
    }
}

fn validate_ratio(errors: &mut Errors, path: &Path, item: &Value, resource: &str) {
    let Some(ratio) = quantity(&item["maxLimitRequestRatio"][resource]) else {
        return;
    };
    let shown = item["maxLimitRequestRatio"][resource].clone();
    let path = path.child("maxLimitRequestRatio").key(resource);
    if ratio < Quantity::from_units(1) {
        errors.invalid(&path, shown.clone(), format!("ratio {ratio} is less than 1"));
    }
    if let (Some(min), Some(max)) = (quantity(&item["min"][resource]), quantity(&item["max"][resource]))
        && !min.is_zero()
    {
        // Ratios are for people to compare, so the precision of a double is enough.
        let most = max.milli() as f64 / min.milli() as f64;
        if ratio.milli() as f64 / 1000.0 > most {
            errors.invalid(&path, shown, format!("ratio {ratio} is greater than max/min = {most:.6}"));
        }
    }
}

fn may_overcommit(resource: &str) -> bool {
    !resource.contains('/') && !resource.starts_with("hugepages-")
}

fn table_row(range: &Value, _: Timestamp) -> Vec<Value> {
    let created = text(&range["metadata"]["creationTimestamp"]);
    vec![json!(text(&range["metadata"]["name"])), json!(created)]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    fn range(item: Value) -> Value {
        json!({"spec": {"limits": [item]}})
    }

    #[test]
    fn defaults() {
        let rows = [
            (
                json!({"type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Gi"}}),
                json!({
                    "type": "Container", "max": {"cpu": "2"}, "min": {"memory": "1Gi"},
                    "default": {"cpu": "2"}, "defaultRequest": {"cpu": "2", "memory": "1Gi"},
                }),
            ),
            (json!({"type": "Pod", "max": {"cpu": "2"}}), json!({"type": "Pod", "max": {"cpu": "2"}})),
        ];
        for (item, expected) in rows {
            let mut defaulted = range(item);
            default(&mut defaulted);
            assert_eq!(defaulted, range(expected));
        }
    }

    #[test]
    fn validation() {
        let row =
            |what: &str, item: Value, expected: &[&str]| expect(what, &validate(&range(item)), expected);
        row("good", json!({"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1"}}), &[]);
        row("claims", json!({"type": "PersistentVolumeClaim", "min": {"storage": "1Gi"}}), &[]);
        row(
            "claims without bounds",
            json!({"type": "PersistentVolumeClaim"}),
            &[
                "spec.limits[0].limits: Required value: either minimum or maximum storage value is required, but neither \
               was provided",
            ],
        );
        row(
            "type",
            json!({"type": "Node"}),
            &[
                "spec.limits[0].type: Invalid value: \"Node\": must be a standard limit type or fully qualified",
            ],
        );
        row(
            "order",
            json!({"type": "Container", "max": {"cpu": "1"}, "min": {"cpu": "2"}, "defaultRequest": {"cpu": "3"}}),
            &[
                "spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1",
                "spec.limits[0].defaultRequest[cpu]: Invalid value: \"3\": default request value 3 is greater than max \
                 value 1",
            ],
        );
        row(
            "pods have no defaults",
            json!({"type": "Pod", "default": {"cpu": "1"}}),
            &["spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"],
        );
        row(
            "ratio",
            json!({"type": "Pod", "max": {"cpu": "2"}, "min": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "3"}}),
            &[
                "spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: \"3\": ratio 3 is greater than max/min = 2.000000",
            ],
        );
        row(
            "resource",
            json!({"type": "Container", "max": {"storage": "1"}}),
            &[
                "spec.limits[0].max[storage]: Invalid value: \"storage\": must be a standard resource for containers",
            ],
        );
        row(
            "devices are not shared",
            json!({"type": "Container", "default": {"a.b/gpu": "2"}, "defaultRequest": {"a.b/gpu": "1"}}),
            &["spec.limits[0].defaultRequest[a.b/gpu]: Invalid value: \"1\": default value 2 must equal to \
               defaultRequest value 1 in a.b/gpu"],
        );
        let twice = json!({"spec": {"limits": [{"type": "Pod"}, {"type": "Pod"}]}});
        expect("twice", &validate(&twice), &["spec.limits[1].type: Duplicate value: \"Pod\""]);
    }
}
