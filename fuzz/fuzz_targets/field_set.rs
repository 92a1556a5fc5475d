//! The FieldsV1 form of managed fields: anything is read, what was read is written and read as the same, and the
//! algebra of sets holds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::patch::field_set::FieldSet;
use sampan_fuzz::{Input, Source};
use serde_json::{Map, Value, json};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let (Some(a), Some(b)) = (document(&mut input), document(&mut input)) else { return };
    let (a, b) = (FieldSet::from_json(&a), FieldSet::from_json(&b));
    assert_eq!(a, FieldSet::from_json(&a.to_json()));
    let (both, common, rest) = (a.union(&b), a.intersection(&b), a.difference(&b));
    assert_eq!(both, b.union(&a));
    assert_eq!(common, b.intersection(&a));
    assert_eq!(a, rest.union(&common), "{} without {}", a.to_json(), b.to_json());
    assert!(rest.intersection(&b).is_empty());
    for set in [&both, &common, &rest] {
        assert_eq!(*set, FieldSet::from_json(&set.to_json()));
        let _ = set.paths();
    }
});

fn document(input: &mut Input<'_>) -> Option<Value> {
    match input {
        Input::Text(_) => input.document(),
        Input::Decisions(source) => Some(decided(source, 0)),
    }
}

fn decided(source: &mut Source<'_>, depth: usize) -> Value {
    let mut fields = Map::new();
    for _ in 0..if depth > 8 { 0 } else { source.byte() % 5 } {
        let edge = match source.byte() % 8 {
            0..=3 => format!("f:{}", source.text()),
            4 => format!("k:{}", json!({"name": source.text()})),
            5 => format!("v:{}", source.value(5)),
            6 => ".".to_owned(),
            _ => source.text(),
        };
        fields.insert(edge, decided(source, depth + 1));
    }
    if source.one_in(32) { source.value(4) } else { Value::Object(fields) }
}
