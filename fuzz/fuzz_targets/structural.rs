//! Structural schemas of custom resources: any schema is taken or refused; with one that is taken, any document can be
//! pruned, completed and checked, and pruning and defaulting are done once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::decode::Strictness;
use sampan_api::field::Path;
use sampan_api::patch::apply::{Applied, Manager, apply, track_update};
use sampan_api::schema::{CustomSchema, Schema};
use sampan_api::structural::Structural;
use sampan_fuzz::{Input, Source};
use serde_json::{Map, Value};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let Some(source) = input.schema() else { return };
    let Ok(structural) = Structural::parse(&source, false, &Path::new("schema")) else { return };
    let Some(old) = document(&mut input, &source).and_then(|document| completed(&structural, document))
    else {
        return;
    };
    let _ = structural.validate(&old, None);
    let Some(new) = document(&mut input, &source).and_then(|document| completed(&structural, document))
    else {
        return;
    };
    let _ = structural.validate(&new, Some(&old));
    apply_twice(structural, old, &new);
});

fn completed(structural: &Structural, mut document: Value) -> Option<Value> {
    structural.prune(&mut document, &mut Strictness::default()).ok()?;
    let once = document.clone();
    let mut second = Strictness::default();
    structural.prune(&mut document, &mut second).expect("what was pruned can be pruned");
    assert_eq!(once, document, "pruned twice");
    assert!(second.problems.is_empty(), "{:?}", second.problems);
    structural.default(&mut document);
    let once = document.clone();
    structural.default(&mut document);
    assert_eq!(once, document, "completed twice");
    structural.prune(&mut document, &mut second).expect("defaults can be pruned");
    assert_eq!(once, document, "defaults are pruned");
    document.is_object().then_some(document)
}

/// Custom resources merge by their schema.
fn apply_twice(structural: Structural, mut live: Value, configuration: &Value) {
    let manager = Manager { name: "a", api_version: "v1", subresource: "", time: "2024-01-01T00:00:00Z" };
    let schema = Schema::Custom(std::sync::Arc::new(CustomSchema { name: "x".to_owned(), structural }));
    track_update(&schema, None, &mut live, &Manager { name: "b", ..manager });
    let applied = |live: &Value| match apply(&schema, Some(live), configuration, &manager, true) {
        Ok(Applied::Merged(merged)) => {
            let mut object = merged.object.clone();
            merged.track(&mut object, &manager);
            Some(object)
        }
        Ok(Applied::Conflicts(conflicts)) => panic!("a forced apply conflicts: {conflicts:?}"),
        Err(_) => None,
    };
    if let Some(once) = applied(&live) {
        assert_eq!(Some(&once), applied(&once).as_ref(), "applied twice: {configuration}");
    }
}

fn document(input: &mut Input<'_>, schema: &Value) -> Option<Value> {
    match input {
        Input::Text(_) => input.document(),
        Input::Decisions(source) => Some(decided(source, schema, 0)),
    }
}

/// A document along a schema, with an error here and there.
fn decided(source: &mut Source<'_>, schema: &Value, depth: usize) -> Value {
    if source.one_in(16) || depth > 10 {
        return source.value(4);
    }
    match schema["type"].as_str() {
        Some("object") => {
            let mut out = Map::new();
            for (name, below) in schema["properties"].as_object().into_iter().flatten() {
                if !source.one_in(4) {
                    out.insert(name.clone(), decided(source, below, depth + 1));
                }
            }
            for _ in 0..source.byte() % 3 {
                let below = if schema["additionalProperties"].is_object() {
                    &schema["additionalProperties"]
                } else {
                    &Value::Null
                };
                out.insert(source.text(), decided(source, below, depth + 1));
            }
            Value::Object(out)
        }
        Some("array") => {
            (0..source.byte() % 4).map(|_| decided(source, &schema["items"], depth + 1)).collect()
        }
        Some("string") => source.text().into(),
        Some("integer") => source.integer().into(),
        Some("boolean") => Value::Bool(source.byte() & 1 == 1),
        _ => source.value(4),
    }
}
