//! PodDisruptionBudgets: how many pods of a group may be taken away at once.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::table;

/// PodDisruptionBudgets.
pub static POD_DISRUPTION_BUDGET: Row = Row {
    group: "policy",
    kind: "PodDisruptionBudget",
    plural: "poddisruptionbudgets",
    singular: "poddisruptionbudget",
    short_names: &["pdb"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.policy.v1.PodDisruptionBudget",
    columns: &[
        Column::name(),
        Column::new("Min Available", "Pods that must stay."),
        Column::new("Max Unavailable", "Pods that may be missing."),
        Column::new("Allowed Disruptions", "Pods that may be taken away now.").of_type("integer"),
        Column::age(),
    ],
    table_row,
    generation: true,
    strategy: Strategy { prepare_create, validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn prepare_create(budget: &mut Value) {
    let status =
        json!({"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0});
    set(budget, "status", status);
}

fn validate(budget: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &budget["spec"]);
    if !spec["minAvailable"].is_null() && !spec["maxUnavailable"].is_null() {
        errors.invalid(&path, spec.clone(), "minAvailable and maxUnavailable cannot be both set");
    }
    for field in ["minAvailable", "maxUnavailable"] {
        rules::int_or_percent(&mut errors, &path.child(field), &spec[field]);
        rules::at_most_all(&mut errors, &path.child(field), &spec[field]);
    }
    rules::label_selector(&mut errors, &path.child("selector"), &spec["selector"]);
    let policy = &spec["unhealthyPodEvictionPolicy"];
    let path = path.child("unhealthyPodEvictionPolicy");
    rules::optional_one_of(&mut errors, &path, policy, &["AlwaysAllow", "IfHealthyBudget"]);
    errors
}

fn table_row(budget: &Value, now: Timestamp) -> Vec<Value> {
    let bound = |field: &str| match &budget["spec"][field] {
        Value::Null => json!("N/A"),
        Value::String(percent) => json!(percent),
        number => json!(number.to_string()),
    };
    vec![
        json!(text(&budget["metadata"]["name"])),
        bound("minAvailable"),
        bound("maxUnavailable"),
        json!(int(&budget["status"]["disruptionsAllowed"])),
        table::age(budget, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation() {
        expect("good", &validate(&json!({"spec": {"maxUnavailable": "50%"}})), &[]);
        expect(
            "wrong",
            &validate(&json!({"spec": {"maxUnavailable": "150%", "minAvailable": -1}})),
            &[
                "spec: Invalid value: {\"maxUnavailable\":\"150%\",\"minAvailable\":-1}: minAvailable and \
                 maxUnavailable cannot be both set",
                "spec.minAvailable: Invalid value: -1: must be greater than or equal to 0",
                "spec.maxUnavailable: Invalid value: \"150%\": must not be greater than 100%",
            ],
        );
    }
}
