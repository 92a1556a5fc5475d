//! JSONPath of columns and selectable fields: any text is a path or is refused, and a path finds a bounded number of
//! values.
#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use sampan_api::json_path::{JsonPath, cell};
use serde_json::json;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(path) = JsonPath::parse(text) else { return };
    let document = json!({
        "a": [{"b": 1, "c": "x"}, {"b": 2.5, "c": null}, [[1, 2], [3]]], "metadata": {"name": "n", "x.y/z": "1"},
        "t": "2024-01-01T00:00:00Z", "s": "é", "": {"": []},
    });
    let found = path.find(&document);
    assert!(found.len() <= 1024);
    for column_type in ["string", "integer", "number", "boolean", "date"] {
        let _ = cell(&found, column_type, Timestamp::UNIX_EPOCH);
    }
    if let Some(fields) = path.fields() {
        assert!(fields.iter().map(String::len).sum::<usize>() <= text.len());
        assert!(found.len() <= 1);
    }
});
