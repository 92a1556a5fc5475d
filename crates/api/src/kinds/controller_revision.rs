//! ControllerRevisions: what the template of a DaemonSet or StatefulSet once was, so that it can be so again.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, is_true, list, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy};
use crate::table;

/// ControllerRevisions.
pub static CONTROLLER_REVISION: Row = Row {
    group: "apps",
    kind: "ControllerRevision",
    plural: "controllerrevisions",
    singular: "controllerrevision",
    schema: "io.k8s.api.apps.v1.ControllerRevision",
    columns: &[
        Column::name(),
        Column::new("Controller", "Whose history it is."),
        Column::new("Revision", "Place in the history.").of_type("integer"),
        Column::age(),
    ],
    table_row,
    strategy: Strategy { validate, validate_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn validate(revision: &Value) -> Errors {
    let mut errors = Errors::new();
    if revision["data"].is_null() {
        errors.required(&Path::new("data"), "data is mandatory");
    }
    rules::non_negative(&mut errors, &Path::new("revision"), &revision["revision"]);
    errors
}

/// The number may change: what is returned to becomes the newest revision.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    rules::immutable(&mut errors, &Path::new("data"), &new["data"], &old["data"]);
    errors
}

fn table_row(revision: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&revision["metadata"]["name"])),
        json!(controller(revision)),
        json!(int(&revision["revision"])),
        table::age(revision, now),
    ]
}

/// `statefulset.apps/db`
fn controller(revision: &Value) -> String {
    let owners = list(&revision["metadata"]["ownerReferences"]);
    let Some(owner) = owners.iter().find(|owner| is_true(&owner["controller"])) else {
        return "<none>".to_owned();
    };
    let kind = text(&owner["kind"]).to_lowercase();
    let name = text(&owner["name"]);
    match text(&owner["apiVersion"]).split_once('/') {
        Some((group, _)) => format!("{kind}.{}/{name}", group.to_lowercase()),
        None => format!("{kind}/{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation_and_cells() {
        let revision = json!({
            "metadata": {
                "name": "db-1", "creationTimestamp": "2026-01-01T00:00:00Z",
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "controller": true}],
            },
            "data": {"spec": {}}, "revision": 1,
        });
        expect("good", &validate(&revision), &[]);
        expect(
            "wrong",
            &validate(&json!({"revision": -1})),
            &[
                "data: Required value: data is mandatory",
                "revision: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
        let mut moved = revision.clone();
        moved["revision"] = json!(5);
        expect("moved", &validate_update(&moved, &revision), &[]);
        moved["data"] = json!({"spec": {"a": 1}});
        expect(
            "changed",
            &validate_update(&moved, &revision),
            &["data: Invalid value: {\"spec\":{\"a\":1}}: field is immutable"],
        );
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = [json!("db-1"), json!("statefulset.apps/db"), json!(1), json!("60s")];
        assert_eq!(table_row(&revision, now), expected);
        assert_eq!(controller(&json!({})), "<none>");
    }
}
