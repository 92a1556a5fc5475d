//! Strategic merge patch: any patch on any object of a built-in kind is applied or refused; a second time, a patch
//! without directives changes nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::patch::strategic::strategic_merge_patch;
use sampan_api::schema::Schema;
use sampan_fuzz::{Input, Source, conform};
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let Some(row) = input.row() else { return };
    let Some(mut document) = input.document_of(row.schema).and_then(|document| conform(row, document)) else {
        return;
    };
    let Some(mut patch) = input.document_of(row.schema) else { return };
    if let Input::Decisions(source) = &mut input
        && source.one_in(2)
    {
        directives(source, &mut patch, 0);
    }
    let schema = Schema::Table(row.schema);
    if strategic_merge_patch(&schema, &mut document, &patch).is_err() {
        return;
    }
    if patch.to_string().contains('$') {
        return;
    }
    let once = document.clone();
    strategic_merge_patch(&schema, &mut document, &patch).expect("what applied applies again");
    assert_eq!(once, document, "patch {patch}");
});

/// Sprinkles directives over a patch.
fn directives(source: &mut Source<'_>, patch: &mut Value, depth: usize) {
    match patch {
        Value::Object(fields) => {
            fields.values_mut().for_each(|value| directives(source, value, depth + 1));
            let names: Vec<String> = fields.keys().cloned().collect();
            let name =
                if names.is_empty() { String::new() } else { names[source.below(names.len())].clone() };
            match source.byte() % 10 {
                0 => fields
                    .insert("$patch".to_owned(), source.pick(&["delete", "replace", "merge", "x"]).into()),
                1 => fields.insert("$retainKeys".to_owned(), json!([name, source.text()])),
                2 => fields.insert(format!("$deleteFromPrimitiveList/{name}"), json!([source.text()])),
                3 => fields.insert(format!("$setElementOrder/{name}"), source.value(4)),
                4 => fields.insert(name, Value::Null),
                _ => None,
            };
        }
        Value::Array(items) => items.iter_mut().for_each(|item| directives(source, item, depth + 1)),
        _ => {}
    }
}
