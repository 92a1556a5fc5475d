//! JSON patch and merge patch: any patch on any document is applied or refused, and the result can still be read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::decode::{Strictness, parse_json};
use sampan_api::patch::json_patch;
use sampan_fuzz::{Input, Source};
use serde_json::{Value, json};

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let Some(mut document) = input.document() else { return };
    let patch = match &mut input {
        Input::Text(_) => input.document(),
        Input::Decisions(source) => Some(decided(source, &document)),
    };
    let Some(patch) = patch else { return };
    if json_patch(&mut document, patch).is_ok() {
        let text = document.to_string();
        let again = parse_json(text.as_bytes(), &mut Strictness::default()).expect("the result can be read");
        assert_eq!(document, again);
    }
});

/// Operations on paths most of which exist.
fn decided(source: &mut Source<'_>, document: &Value) -> Value {
    (0..source.byte() % 12)
        .map(|_| {
            let op = source.pick(&["add", "remove", "replace", "move", "copy", "test"]);
            json!({"op": op, "path": path(source, document), "from": path(source, document), "value": source.value(4)})
        })
        .collect()
}

fn path(source: &mut Source<'_>, document: &Value) -> String {
    let mut out = String::new();
    let mut at = document;
    for _ in 0..source.byte() % 6 {
        let step = match at {
            Value::Object(fields) if !fields.is_empty() && !source.one_in(8) => {
                let name = fields.keys().nth(source.below(fields.len())).cloned();
                name.unwrap_or_default()
            }
            Value::Array(items) if !source.one_in(8) => source.below(items.len() + 1).to_string(),
            _ => source
                .pick(&["-", "", "a", "0", "01", "-1", "~0", "~1", "~2", "99999999999999999999"])
                .to_owned(),
        };
        out.push('/');
        out.push_str(&step.replace('~', "~0").replace('/', "~1"));
        at = match at {
            Value::Array(items) => {
                step.parse().ok().and_then(|index: usize| items.get(index)).unwrap_or(&Value::Null)
            }
            other => other.get(&step).unwrap_or(&Value::Null),
        };
    }
    out
}
