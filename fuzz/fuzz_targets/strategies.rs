//! The rules of every kind: any document that fits its type can be completed, checked, shown and counted, and any
//! document can be made another. Completing is done once.
#![no_main]

use jiff::Timestamp;
use libfuzzer_sys::fuzz_target;
use sampan_api::kind::Row;
use sampan_api::{defaults, metadata, quota};
use sampan_fuzz::{Input, conform};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let mut input = Input::new(data);
    let Some(row) = input.row() else { return };
    let Some(mut old) = input.document_of(row.schema).and_then(|document| conform(row, document)) else {
        return;
    };
    (row.strategy.prepare_create)(&mut old);
    complete(row, &mut old);
    check(row, &old);
    if row.kind == "CustomResourceDefinition" {
        let _ = sampan_api::custom::kinds(&old, 1);
    }
    let Some(mut new) = input.document_of(row.schema).and_then(|document| conform(row, document)) else {
        return;
    };
    (row.strategy.prepare_update)(&mut new, &old);
    complete(row, &mut new);
    check(row, &new);
    let _ = metadata::validate_update(&new, &old).to_string();
    let _ = (row.strategy.validate_update)(&new, &old).to_string();
    if let Some(conversion) = &row.stored_as {
        (conversion.to_storage)(&mut new);
        (conversion.from_storage)(&mut new);
    }
});

fn complete(row: &'static Row, object: &mut Value) {
    let run = |object: &mut Value| {
        defaults::apply(row.schema, object);
        (row.strategy.default)(object);
    };
    run(object);
    let once = object.clone();
    run(object);
    assert_eq!(once, *object, "{} completed twice", row.kind);
    assert!(conform(row, once).is_some(), "{} does not fit its type when it is completed", row.kind);
}

fn check(row: &Row, object: &Value) {
    let _ = metadata::validate(object, row.scope, row.name_rule).to_string();
    let _ = (row.strategy.validate)(object).to_string();
    let cells = (row.table_row)(object, Timestamp::UNIX_EPOCH);
    assert_eq!(cells.len(), row.columns.len(), "cells of {}", row.kind);
    let _ = quota::usage(row.group, row.plural, object, Timestamp::UNIX_EPOCH);
}
