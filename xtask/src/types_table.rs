//! Writes the table of API types that `sampan-api` embeds.
//!
//! Input: a JSON document with facts of every type (field names, types, protobuf numbers, list and patch semantics).
//! Output: one text file; a type is a line `=name`, its fields are the lines that follow. The format is described where
//! it is read, in `crates/api/src/schema.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

const OUTPUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/api/data/types.tsv");

/// Reads `facts`, writes the table.
pub(crate) fn write(facts: &str) -> Result<(), String> {
    let text = std::fs::read(facts).map_err(|e| format!("cannot read {facts}: {e}"))?;
    let facts: Value = serde_json::from_slice(&text).map_err(|e| format!("{facts} is not JSON: {e}"))?;
    let types = facts["types"].as_object().ok_or("the facts have no \"types\"")?;
    let mut out = format!("#{}\n", facts["version"].as_str().unwrap_or_default());
    for (name, definition) in types {
        write_type(&mut out, name, definition, &protobuf_numbers(&facts, name));
    }
    let parent = Path::new(OUTPUT).parent().expect("a file has a folder");
    std::fs::create_dir_all(parent).map_err(|e| format!("cannot make {}: {e}", parent.display()))?;
    std::fs::write(OUTPUT, out).map_err(|e| format!("cannot write {OUTPUT}: {e}"))
}

/// A field's protobuf number after those of the messages it is embedded in.
type Numbers = BTreeMap<String, Vec<u64>>;

/// Protobuf numbers of a type's fields. The facts of a type have those that JSON and protobuf agree on; the others stand
/// with the messages, under names without dashes, where a structure embedded in JSON is a message of its own.
fn protobuf_numbers(facts: &Value, name: &str) -> Numbers {
    let message = &facts["protoOnly"][name.replace('-', "_")];
    let messages = message.as_object().into_iter().flatten();
    let messages =
        messages.filter_map(|(field, facts)| Some((field, facts[0].as_u64()?, facts[2].as_str()?)));
    let mut numbers: Numbers =
        messages.clone().map(|(field, number, _)| (field.clone(), vec![number])).collect();
    let Some(fields) = facts["types"][name]["fields"].as_object() else { return numbers };
    for (field, facts) in fields {
        numbers.extend(facts["proto"].as_u64().map(|number| (protobuf_name(field), vec![number])));
    }
    let in_json: BTreeSet<String> = fields.keys().map(|field| protobuf_name(field)).collect();
    for (_, number, type_) in messages.filter(|(field, _, _)| !in_json.contains(*field)) {
        for (inner, path) in protobuf_numbers(facts, &full_name(name, type_)) {
            numbers.entry(inner).or_insert_with(|| [vec![number], path].concat());
        }
    }
    numbers
}

/// `$ref` is `ref`, `x-kubernetes-map-type` is `xKubernetesMapType`.
fn protobuf_name(field: &str) -> String {
    let mut parts = field.trim_start_matches('$').split('-');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let mut letters = part.chars();
        name.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        name.extend(letters);
    }
    name
}

/// The name of a message as a message of another package says it.
fn full_name(owner: &str, type_: &str) -> String {
    match type_.strip_prefix(".k8s.io.") {
        Some(rest) => format!("io.k8s.{rest}"),
        None => format!("{}.{type_}", owner.rsplit_once('.').map_or("", |(package, _)| package)),
    }
}

fn write_type(out: &mut String, name: &str, definition: &Value, numbers: &Numbers) {
    let _ = write!(out, "={name}");
    if let Some(scalar) = definition["type"].as_str() {
        let _ = write!(out, "\ttype={scalar}");
    }
    if let Some(map_type) = definition["x-kubernetes-map-type"].as_str() {
        let _ = write!(out, "\tmap={map_type}");
    }
    for union in definition["x-kubernetes-unions"].as_array().into_iter().flatten() {
        // What a field is called in the discriminator is its own name with a capital, so the names are enough.
        let fields = union["fields-to-discriminateBy"].as_object().into_iter().flatten();
        let fields: Vec<&str> = fields.map(|(field, _)| field.as_str()).collect();
        let discriminator = union["discriminator"].as_str().unwrap_or_default();
        let _ = write!(out, "\tunion={discriminator}:{}", fields.join(","));
    }
    out.push('\n');
    for (field, facts) in definition["fields"].as_object().into_iter().flatten() {
        let number = match numbers.get(&protobuf_name(field)) {
            Some(path) => path.iter().map(u64::to_string).collect::<Vec<_>>().join("."),
            None => "0".to_owned(),
        };
        let _ = write!(out, "{field}\t{number}\t{}", facts["type"].as_str().unwrap_or("object"));
        if facts["required"].as_bool() == Some(true) {
            out.push_str("\trequired");
        }
        if let Some(list) = facts["listType"].as_str() {
            let keys: Vec<&str> =
                facts["listMapKeys"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let _ = write!(out, "\tlist={list}");
            if !keys.is_empty() {
                let _ = write!(out, ":{}", keys.join(","));
            }
        }
        if let Some(map) = facts["mapType"].as_str() {
            let _ = write!(out, "\tmap={map}");
        }
        if let Some(strategy) = facts["patchStrategy"].as_str() {
            let _ = write!(out, "\tpatch={strategy}");
        }
        if let Some(key) = facts["patchMergeKey"].as_str() {
            let _ = write!(out, "\tkey={key}");
        }
        out.push('\n');
    }
}
