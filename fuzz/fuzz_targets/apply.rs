//! Server-side apply: any configuration on any object. Applying twice is applying once, in fields and in owners, and what
//! one manager alone applied it can take away again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::kind::Row;
use sampan_api::patch::PatchError;
use sampan_api::patch::apply::{Applied, Manager, apply, track_update};
use sampan_api::schema::Schema;
use sampan_fuzz::{Input, conform};
use serde_json::{Map, Value, json};

const UPDATER: Manager<'_> = manager("updater");
const APPLIER: Manager<'_> = manager("applier");
const OTHER: Manager<'_> = manager("other");

const fn manager(name: &str) -> Manager<'_> {
    Manager { name, api_version: "v1", subresource: "", time: "2024-01-01T00:00:00Z" }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let Some(row) = input.row() else { return };
    let live = object(&mut input, row, true);
    let (Some(live), Some(configuration)) = (live, object(&mut input, row, false)) else { return };
    let other = object(&mut input, row, false);
    // An error is an answer.
    let _ = check(&Schema::Table(row.schema), live, &configuration, other.as_ref());
});

fn check(
    schema: &Schema,
    mut live: Value,
    configuration: &Value,
    other: Option<&Value>,
) -> Result<(), PatchError> {
    track_update(schema, None, &mut live, &UPDATER);
    if let Some(other) = other {
        live = applied(schema, Some(&live), other, &OTHER)?;
    }
    let once = applied(schema, Some(&live), configuration, &APPLIER)?;
    let twice = applied(schema, Some(&once), configuration, &APPLIER)?;
    assert_eq!(once, twice, "applied twice: {configuration}");
    if let Applied::Conflicts(conflicts) = apply(schema, Some(&once), configuration, &APPLIER, false)? {
        panic!("what was applied conflicts: {conflicts:?}");
    }

    let alone = applied(schema, None, configuration, &APPLIER)?;
    let left = applied(schema, Some(&alone), &identity(), &APPLIER)?;
    assert_eq!(identity(), without_books(left), "left of {configuration}");

    // A change by another writer moves what it changed; then the configuration is applied or conflicts.
    let mut changed = live;
    track_update(schema, Some(&once), &mut changed, &UPDATER);
    let _ = apply(schema, Some(&changed), configuration, &APPLIER, false)?;
    Ok(())
}

/// Applies by force, as the pipeline does without defaults.
///
/// # Errors
/// When the configuration names an element twice.
fn applied(
    schema: &Schema,
    live: Option<&Value>,
    configuration: &Value,
    manager: &Manager<'_>,
) -> Result<Value, PatchError> {
    let Applied::Merged(merged) = apply(schema, live, configuration, manager, true)? else {
        panic!("a forced apply conflicts")
    };
    let mut object = merged.object.clone();
    merged.track(&mut object, manager);
    Ok(object)
}

/// An object as the pipeline hands it to apply: of its type, with a name, without a status. A live one may have
/// managed fields, as its writers sent them.
fn object(input: &mut Input<'_>, row: &'static Row, is_live: bool) -> Option<Value> {
    let mut object = conform(row, input.document_of(row.schema)?)?;
    let fields = object.as_object_mut()?;
    fields.remove("status");
    fields.insert("apiVersion".to_owned(), "v1".into());
    fields.insert("kind".to_owned(), "Thing".into());
    let metadata = fields.entry("metadata").or_insert_with(|| Value::Object(Map::new())).as_object_mut()?;
    metadata.insert("name".to_owned(), "x".into());
    if !is_live {
        metadata.remove("managedFields");
    }
    Some(object)
}

fn identity() -> Value {
    json!({"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "x"}})
}

/// Without what the server decides and nobody owns.
fn without_books(mut object: Value) -> Value {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for name in [
            "managedFields",
            "namespace",
            "creationTimestamp",
            "selfLink",
            "uid",
            "generation",
            "resourceVersion",
            "deletionTimestamp",
            "deletionGracePeriodSeconds",
        ] {
            metadata.remove(name);
        }
    }
    object
}
