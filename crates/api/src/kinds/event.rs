//! Events: what happened, told to people; kept for an hour and lost without harm.
//!
//! Two versions are served of the same objects: `v1`, in whose form they are kept and whose rules are here, and
//! `events.k8s.io/v1` of [`v1`], whose writers are held to more.

mod v1;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, is_empty, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Storage, Strategy};
use crate::{names, table};

pub use v1::EVENTS_EVENT;

const COLUMNS: &[Column] = &[
    Column::new("Last Seen", "Time since it happened last."),
    Column::new("Type", "Whether it is as it should be."),
    Column::new("Reason", "What happened, in one word."),
    Column::new("Object", "To what it happened."),
    Column::new("Subobject", "To what part of it.").wide(),
    Column::new("Source", "Who reports it.").wide(),
    Column::new("Message", "What happened, in a sentence."),
    Column::new("First Seen", "Time since it happened first.").wide(),
    Column::new("Count", "How often it happened.").wide(),
    Column::name().wide(),
];

/// Events.
pub static EVENT: Row = Row {
    kind: "Event",
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    storage: Storage::Lazy,
    schema: "io.k8s.api.core.v1.Event",
    columns: COLUMNS,
    table_row,
    field_selectors: &[
        ("involvedObject.kind", "/involvedObject/kind"),
        ("involvedObject.namespace", "/involvedObject/namespace"),
        ("involvedObject.name", "/involvedObject/name"),
        ("involvedObject.uid", "/involvedObject/uid"),
        ("involvedObject.apiVersion", "/involvedObject/apiVersion"),
        ("involvedObject.resourceVersion", "/involvedObject/resourceVersion"),
        ("involvedObject.fieldPath", "/involvedObject/fieldPath"),
        ("reason", "/reason"),
        ("reportingComponent", "/reportingComponent"),
        ("source", "/source/component"),
        ("type", "/type"),
    ],
    strategy: Strategy { validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

/// Longest word of an event, and longest message.
const MAX_WORD: usize = 128;
const MAX_MESSAGE: usize = 1024;

/// What an event of either version must obey (`ValidateEventCreate` of `pkg/apis/core/validation/events.go`).
fn validate(event: &Value) -> Errors {
    let mut errors = Errors::new();
    let namespace = text(&event["metadata"]["namespace"]);
    let of_object = text(&event["involvedObject"]["namespace"]);
    // Events of the newer clients carry a time of their own and obey stricter rules.
    let newer = !event["eventTime"].is_null();
    // Events about things without a namespace live in `default`; those of the system may be in `kube-system`.
    let fits = match of_object {
        "" => matches!(namespace, "" | "default") || (newer && namespace == "kube-system"),
        _ => newer || of_object == namespace,
    };
    if !fits {
        let path = Path::new("involvedObject").child("namespace");
        errors.invalid(&path, of_object, "does not match event.namespace");
    }
    if newer {
        validate_newer(&mut errors, event);
    }
    errors
}

fn validate_newer(errors: &mut Errors, event: &Value) {
    let controller = Path::new("reportingController");
    rules::required_name(errors, &controller, text(&event["reportingComponent"]), names::qualified_name);
    for (field, max, needed) in [
        ("reportingInstance", MAX_WORD, true),
        ("action", MAX_WORD, true),
        ("reason", MAX_WORD, true),
        ("message", MAX_MESSAGE, false),
    ] {
        let (path, value) = (Path::new(field), text(&event[field]));
        if needed && value.is_empty() {
            errors.required(&path, "");
        }
        if value.len() > max {
            errors.invalid(&path, "", format!("can have at most {max} characters"));
        }
    }
}

fn table_row(event: &Value, now: Timestamp) -> Vec<Value> {
    let or =
        |first: &Value, second: &Value| table::since(text(if is_empty(first) { second } else { first }), now);
    let first = or(&event["firstTimestamp"], &event["eventTime"]);
    let series = &event["series"];
    let last = match text(&event["lastTimestamp"]) {
        _ if series.is_object() => table::since(text(&series["lastObservedTime"]), now),
        "" => first.clone(),
        time => table::since(time, now),
    };
    let count = if series.is_object() { int(&series["count"]) } else { int(&event["count"]).max(1) };
    let object = &event["involvedObject"];
    let (kind, name) = (text(&object["kind"]).to_lowercase(), text(&object["name"]));
    vec![
        json!(last),
        json!(text(&event["type"])),
        json!(text(&event["reason"])),
        json!(if name.is_empty() { kind } else { format!("{kind}/{name}") }),
        json!(text(&object["fieldPath"])),
        json!(source(event)),
        json!(text(&event["message"]).trim()),
        json!(first),
        json!(count),
        json!(text(&event["metadata"]["name"])),
    ]
}

fn source(event: &Value) -> String {
    let pick = |old: &Value, new: &Value| text(if is_empty(old) { new } else { old }).to_owned();
    let component = pick(&event["source"]["component"], &event["reportingComponent"]);
    let instance = pick(&event["source"]["host"], &event["reportingInstance"]);
    if instance.is_empty() { component } else { format!("{component}, {instance}") }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation() {
        let event = |namespace: &str, of_object: &str| json!({"metadata": {"namespace": namespace}, "involvedObject": {"namespace": of_object}});
        for (namespace, of_object) in [("a", "a"), ("default", "")] {
            expect(namespace, &validate(&event(namespace, of_object)), &[]);
        }
        expect(
            "elsewhere",
            &validate(&event("a", "b")),
            &["involvedObject.namespace: Invalid value: \"b\": does not match event.namespace"],
        );
        expect(
            "of the system",
            &validate(&event("kube-system", "")),
            &["involvedObject.namespace: Invalid value: \"\": does not match event.namespace"],
        );
        let mut newer = event("kube-system", "");
        newer["eventTime"] = json!("2026-01-01T00:00:00.000000Z");
        expect(
            "newer",
            &validate(&newer),
            &[
                "reportingController: Required value",
                "reportingInstance: Required value",
                "action: Required value",
                "reason: Required value",
            ],
        );
    }

    #[test]
    fn cells() {
        let event = json!({
            "metadata": {"name": "a.1"},
            "involvedObject": {"kind": "Pod", "name": "a", "fieldPath": "spec.containers{c}"},
            "source": {"component": "kubelet", "host": "n1"},
            "type": "Normal", "reason": "Started", "message": "Started it\n", "count": 2,
            "firstTimestamp": "2026-01-01T00:00:00Z", "lastTimestamp": "2026-01-01T00:00:30Z",
        });
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = [
            json!("30s"),
            json!("Normal"),
            json!("Started"),
            json!("pod/a"),
            json!("spec.containers{c}"),
            json!("kubelet, n1"),
            json!("Started it"),
            json!("60s"),
            json!(2),
            json!("a.1"),
        ];
        assert_eq!(table_row(&event, now), expected);
    }
}
