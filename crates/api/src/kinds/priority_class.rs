//! PriorityClasses: whose pods go first.
//!
//! The two classes of the system are made by the server when it starts.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, is_true, same, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Scope, Strategy};
use crate::table;

/// Above this only the system's own classes stand.
pub const HIGHEST_USER_PRIORITY: i64 = 1_000_000_000;
/// The system's classes and their values.
pub const SYSTEM_CLASSES: [(&str, i64); 2] = [
    ("system-cluster-critical", 2 * HIGHEST_USER_PRIORITY),
    ("system-node-critical", 2 * HIGHEST_USER_PRIORITY + 1000),
];

/// PriorityClasses.
pub static PRIORITY_CLASS: Row = Row {
    group: "scheduling.k8s.io",
    kind: "PriorityClass",
    plural: "priorityclasses",
    singular: "priorityclass",
    short_names: &["pc"],
    scope: Scope::Cluster,
    schema: "io.k8s.api.scheduling.v1.PriorityClass",
    columns: &[
        Column::name(),
        Column::new("Value", "Priority of the pods of the class.").of_type("integer"),
        Column::new("Global-Default", "Whether pods without a class get this one.").of_type("boolean"),
        Column::age(),
        Column::new("PreemptionPolicy", "Whether pods of the class push others aside."),
    ],
    table_row,
    generation: true,
    strategy: Strategy { validate, validate_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let (name, value) = (text(&class["metadata"]["name"]), int(&class["value"]));
    if name.starts_with("system-") {
        let known = SYSTEM_CLASSES.contains(&(name, value)) && !is_true(&class["globalDefault"]);
        if !known {
            errors.forbidden(
                &Path::new("metadata").child("name"),
                "priority class names with 'system-' prefix are reserved for system use only",
            );
        }
    } else if value > HIGHEST_USER_PRIORITY {
        errors.forbidden(
            &Path::new("value"),
            format!("maximum allowed value of a user defined priority is {HIGHEST_USER_PRIORITY}"),
        );
    }
    rules::optional_one_of(
        &mut errors,
        &Path::new("preemptionPolicy"),
        &class["preemptionPolicy"],
        &["Never", "PreemptLowerPriority"],
    );
    errors
}

/// The value is copied into pods when they are created, so a change would lie about those that exist.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if int(&new["value"]) != int(&old["value"]) {
        errors.forbidden(&Path::new("value"), "may not be changed in an update.");
    }
    if !same(&new["preemptionPolicy"], &old["preemptionPolicy"]) {
        let policy = new["preemptionPolicy"].clone();
        errors.invalid(&Path::new("preemptionPolicy"), policy, rules::IMMUTABLE);
    }
    errors
}

fn table_row(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&class["metadata"]["name"])),
        json!(int(&class["value"])),
        json!(is_true(&class["globalDefault"])),
        table::age(class, now),
        json!(text(&class["preemptionPolicy"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation() {
        let class = |name: &str, value: i64| json!({"metadata": {"name": name}, "value": value});
        expect("good", &validate(&class("a", 5)), &[]);
        for (name, value) in SYSTEM_CLASSES {
            expect(name, &validate(&class(name, value)), &[]);
        }
        expect(
            "high",
            &validate(&class("a", HIGHEST_USER_PRIORITY + 1)),
            &["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"],
        );
        expect(
            "reserved",
            &validate(&class("system-a", 5)),
            &[
                "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only",
            ],
        );
        expect(
            "changed",
            &validate_update(&class("a", 6), &class("a", 5)),
            &["value: Forbidden: may not be changed in an update."],
        );
    }
}
