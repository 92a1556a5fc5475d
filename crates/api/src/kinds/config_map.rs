//! ConfigMaps: texts for programs.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{entries, is_true, same, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy};
use crate::table;

/// Keys and values of one ConfigMap or Secret together: objects live in memory, on every node that uses them.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// ConfigMaps.
pub static CONFIG_MAP: Row = Row {
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    schema: "io.k8s.api.core.v1.ConfigMap",
    columns: &[Column::name(), Column::new("Data", "Number of entries."), Column::age()],
    table_row,
    strategy: Strategy { validate, validate_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn validate(config_map: &Value) -> Errors {
    let mut errors = Errors::new();
    let (data, binary) = (&config_map["data"], &config_map["binaryData"]);
    let mut size = 0;
    for (key, value) in entries(data) {
        rules::name(&mut errors, &Path::new("data").key(key), key, rules::config_key);
        if !binary[key].is_null() {
            errors.invalid(&Path::new("data").key(key), key, "duplicate of key present in binaryData");
        }
        size += text(value).len();
    }
    for (key, value) in entries(binary) {
        rules::name(&mut errors, &Path::new("binaryData").key(key), key, rules::config_key);
        size += decoded_len(text(value));
    }
    if size > MAX_BYTES {
        // Upstream names no field here, which its errors write as empty brackets.
        errors.too_long(&Path::new("[]"), MAX_BYTES);
    }
    errors
}

/// Bytes that a base64 text stands for.
pub(super) fn decoded_len(base64: &str) -> usize {
    let padding = base64.bytes().rev().take_while(|b| *b == b'=').count();
    (base64.len() / 4 * 3).saturating_sub(padding)
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    validate_immutable(&mut errors, new, old, &["data", "binaryData"]);
    errors
}

/// Once `immutable` is set, neither it nor the data may change; nodes stop watching such objects.
pub(super) fn validate_immutable(errors: &mut Errors, new: &Value, old: &Value, fields: &[&str]) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !is_true(&old["immutable"]) {
        return;
    }
    if !is_true(&new["immutable"]) {
        errors.forbidden(&Path::new("immutable"), DETAIL);
    }
    for field in fields.iter().filter(|field| !same(&new[**field], &old[**field])) {
        errors.forbidden(&Path::new(field), DETAIL);
    }
}

fn table_row(config_map: &Value, now: Timestamp) -> Vec<Value> {
    let count = entries(&config_map["data"]).count() + entries(&config_map["binaryData"]).count();
    vec![json!(text(&config_map["metadata"]["name"])), json!(count), table::age(config_map, now)]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation() {
        let row =
            |what: &str, config_map: Value, expected: &[&str]| expect(what, &validate(&config_map), expected);
        row("good", json!({"data": {"a.b": "x"}, "binaryData": {"c": "AAAA"}}), &[]);
        row(
            "twice",
            json!({"data": {"a": "x"}, "binaryData": {"a": "AAAA"}}),
            &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
        );
        row("dots", json!({"data": {"..": "x"}}), &["data[..]: Invalid value: \"..\": must not be '..'"]);
        row(
            "large",
            json!({"data": {"a": "x".repeat(MAX_BYTES + 1)}}),
            &["[]: Too long: may not be more than 1048576 bytes"],
        );
        assert!(!validate(&json!({"data": {"a/b": "x"}})).is_empty());
    }

    #[test]
    fn immutable_means_immutable() {
        let old = json!({"immutable": true, "data": {"a": "1"}});
        let row =
            |what: &str, new: Value, expected: &[&str]| expect(what, &validate_update(&new, &old), expected);
        row("nothing changed", old.clone(), &[]);
        row(
            "all changed",
            json!({"data": {"a": "2"}}),
            &[
                "immutable: Forbidden: field is immutable when `immutable` is set",
                "data: Forbidden: field is immutable when `immutable` is set",
            ],
        );
    }

    #[test]
    fn decoded_lengths() {
        for (text, length) in [("", 0), ("AA==", 1), ("AAA=", 2), ("AAAA", 3)] {
            assert_eq!(decoded_len(text), length, "{text}");
        }
    }
}
