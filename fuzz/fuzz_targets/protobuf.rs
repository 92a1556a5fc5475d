//! The protobuf form of built-in kinds: what is read is written so that it reads the same, and what fits its type
//! survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sampan_api::decode::Strictness;
use sampan_api::kinds::ROWS;
use sampan_api::protobuf;
use sampan_fuzz::{Input, conform};

const MAGIC: &[u8] = b"k8s\0";

fuzz_target!(|data: &[u8]| {
    if data.starts_with(MAGIC) {
        let choice = data.last().copied().unwrap_or(0);
        let row = ROWS[usize::from(choice) % ROWS.len()];
        let body = &data[..data.len() - 1];
        if let Ok(document) = protobuf::decode(body, row.schema) {
            agrees(row.schema, &document);
        }
        return;
    }
    let mut input = Input::new(data);
    let Some(row) = input.row() else { return };
    let Some(document) = input.document_of(row.schema).and_then(|document| conform(row, document)) else {
        return;
    };
    let Ok(bytes) = protobuf::encode(row.schema, row.version, row.kind, &document) else { return };
    let read = protobuf::decode(&bytes, row.schema).expect("what was written can be read");
    agrees(row.schema, &read);
    let mut fitted = read.clone();
    let mut strictness = Strictness::default();
    sampan_api::decode::conform(row.schema, &mut fitted, &mut strictness)
        .expect("what was read fits its type");
    assert!(strictness.problems.is_empty(), "{:?}", strictness.problems);
});

fn agrees(type_name: &str, document: &serde_json::Value) {
    let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    let Ok(bytes) = protobuf::encode(type_name, &text("apiVersion"), &text("kind"), document) else { return };
    let again = protobuf::decode(&bytes, type_name).expect("what was written can be read");
    assert_eq!(*document, again, "{type_name}");
}
