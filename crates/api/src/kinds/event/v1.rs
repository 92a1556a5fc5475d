//! Events of `events.k8s.io/v1`: the same objects as the `v1` ones under names of their own.
//!
//! Nothing is lost in either direction: every field has a partner. Source of the pairs:
//! `pkg/apis/events/v1/conversion.go`.

use jiff::Timestamp;
use serde_json::Value;

use super::super::json::{int, is_empty, remove, set, text};
use super::super::rules;
use super::{EVENT, table_row as core_row, validate as validate_core};
use crate::field::{Errors, Path};
use crate::kind::{Conversion, Row, Strategy};

/// Events of the newer group.
pub static EVENTS_EVENT: Row = Row {
    group: "events.k8s.io",
    schema: "io.k8s.api.events.v1.Event",
    table_row,
    field_selectors: &[
        ("reason", "/reason"),
        ("regarding.kind", "/regarding/kind"),
        ("regarding.namespace", "/regarding/namespace"),
        ("regarding.name", "/regarding/name"),
        ("regarding.uid", "/regarding/uid"),
        ("regarding.apiVersion", "/regarding/apiVersion"),
        ("regarding.resourceVersion", "/regarding/resourceVersion"),
        ("regarding.fieldPath", "/regarding/fieldPath"),
        ("reportingController", "/reportingController"),
        ("type", "/type"),
    ],
    stored_as: Some(Conversion { resource: "events", to_storage, from_storage }),
    strategy: Strategy { validate, validate_update, ..Strategy::PLAIN },
    ..EVENT
};

/// Fields that have another name in `v1`: here, there.
const RENAMED: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

fn to_storage(event: &mut Value) {
    for (here, there) in RENAMED {
        rename(event, here, there);
    }
    if event.get("apiVersion").is_some() {
        set(event, "apiVersion", "v1");
    }
}

fn from_storage(event: &mut Value) {
    for (here, there) in RENAMED {
        rename(event, there, here);
    }
    if event.get("apiVersion").is_some() {
        set(event, "apiVersion", "events.k8s.io/v1");
    }
}

fn rename(object: &mut Value, from: &str, to: &str) {
    if let Some(value) = remove(object, from) {
        set(object, to, value);
    }
}

fn as_core(event: &Value) -> Value {
    let mut event = event.clone();
    to_storage(&mut event);
    event
}

/// Names of fields in messages are those of the kept form, as upstream's are.
fn validate(event: &Value) -> Errors {
    let event = as_core(event);
    let mut errors = validate_core(&event);
    // What was made by the older version stays as it is.
    if rules::is_new(&event) {
        validate_new(&mut errors, &event);
    }
    errors
}

fn validate_new(errors: &mut Errors, event: &Value) {
    validate_series(errors, &event["series"]);
    if event["eventTime"].is_null() {
        errors.required(&Path::new("eventTime"), "");
    }
    let type_ = text(&event["type"]);
    if !matches!(type_, "Normal" | "Warning") {
        errors.invalid(&Path::new("type"), "", format!("has invalid value: {type_}"));
    }
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        let value = &event[field];
        if !is_empty(value) && value.as_i64() != Some(0) {
            errors.invalid(&Path::new(field), "", "needs to be unset");
        }
    }
}

fn validate_series(errors: &mut Errors, series: &Value) {
    if series.is_null() {
        return;
    }
    let path = Path::new("series");
    if int(&series["count"]) < 2 {
        errors.invalid(&path.child("count"), "", "should be at least 2");
    }
    rules::required(errors, &path.child("lastObservedTime"), &series["lastObservedTime"]);
}

/// Something that happened does not change; that it happened again is told by the series.
fn validate_update(new: &Value, old: &Value) -> Errors {
    const FIXED: [&str; 13] = [
        "involvedObject",
        "reason",
        "message",
        "source",
        "firstTimestamp",
        "lastTimestamp",
        "count",
        "type",
        "eventTime",
        "action",
        "related",
        "reportingComponent",
        "reportingInstance",
    ];
    let (new, old) = (as_core(new), as_core(old));
    let mut errors = Errors::new();
    if new["series"] != old["series"] {
        validate_series(&mut errors, &new["series"]);
    }
    for field in FIXED {
        let shown = if field == "reportingComponent" { "reportingController" } else { field };
        rules::immutable(&mut errors, &Path::new(shown), &new[field], &old[field]);
    }
    errors
}

fn table_row(event: &Value, now: Timestamp) -> Vec<Value> {
    core_row(&as_core(event), now)
}

#[cfg(test)]
mod tests {
    use super::super::super::rules::testing::{expect, with};
    use super::*;
    use serde_json::json;

    fn newer() -> Value {
        json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": "a.1", "namespace": "a"},
            "regarding": {"kind": "Pod", "name": "a", "namespace": "a"},
            "related": {"kind": "Node", "name": "n1"},
            "note": "Started it", "reason": "Started", "action": "Starting", "type": "Normal",
            "eventTime": "2026-01-01T00:00:00.000000Z",
            "series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:30.000000Z"},
            "reportingController": "example.com/agent", "reportingInstance": "agent-1",
        })
    }

    #[test]
    fn round_trips() {
        let older = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "b.1", "namespace": "a"},
            "involvedObject": {"kind": "Pod", "name": "b"}, "message": "m", "reason": "r", "type": "Warning",
            "source": {"component": "kubelet", "host": "n1"}, "count": 3,
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:30Z",
            "reportingComponent": "kubelet", "reportingInstance": "n1",
        });
        let mut event = older.clone();
        from_storage(&mut event);
        assert_eq!(event["apiVersion"], "events.k8s.io/v1");
        assert_eq!((&event["deprecatedCount"], &event["note"]), (&json!(3), &json!("m")));
        assert!(event.get("message").is_none() && event.get("source").is_none());
        to_storage(&mut event);
        assert_eq!(event, older);

        let mut event = newer();
        to_storage(&mut event);
        assert_eq!(
            (&event["involvedObject"]["name"], &event["message"]),
            (&json!("a"), &json!("Started it"))
        );
        assert_eq!(event["reportingComponent"], "example.com/agent");
        from_storage(&mut event);
        assert_eq!(event, newer());
    }

    #[test]
    fn every_field_has_a_partner() {
        let fields = |name: &str| {
            let type_ = crate::schema::Types::get().type_(name).expect("in the table");
            type_.fields.iter().map(|field| field.name).collect::<Vec<_>>()
        };
        let stored = fields("io.k8s.api.core.v1.Event");
        for field in fields("io.k8s.api.events.v1.Event") {
            let there = RENAMED.iter().find(|(here, _)| *here == field).map_or(field, |(_, there)| *there);
            assert!(stored.contains(&there), "{field}");
        }
    }

    #[test]
    fn validation() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(newer(), changes)), expected);
        };
        row("good", &[], &[]);
        row("no time", &[("/eventTime", Value::Null)], &["eventTime: Required value"]);
        row(
            "old fields",
            &[("/deprecatedCount", json!(1)), ("/deprecatedSource", json!({"component": "a"}))],
            &[
                "count: Invalid value: \"\": needs to be unset",
                "source: Invalid value: \"\": needs to be unset",
            ],
        );
        row("type", &[("/type", json!("Odd"))], &["type: Invalid value: \"\": has invalid value: Odd"]);
        let kept =
            with(newer(), &[("/metadata/resourceVersion", json!("5")), ("/deprecatedCount", json!(1))]);
        expect("made by the older version", &validate(&kept), &[]);
        row(
            "series",
            &[("/series", json!({"count": 1}))],
            &[
                "series.count: Invalid value: \"\": should be at least 2",
                "series.lastObservedTime: Required value",
            ],
        );
        let more = with(newer(), &[("/series/count", json!(3))]);
        expect("series", &validate_update(&more, &newer()), &[]);
        expect(
            "note",
            &validate_update(&with(newer(), &[("/note", json!("x"))]), &newer()),
            &["message: Invalid value: \"x\": field is immutable"],
        );
    }
}
