//! Writes the table of API types that `sampan-api` embeds.
//!
//! Input: a JSON document with facts of every type (field names, types, protobuf numbers, list and patch semantics).
//! Output: one text file; a type is a line `=name`, its fields are the lines that follow. The format is described where
//! it is read, in `crates/api/src/schema.rs`.

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
        write_type(&mut out, name, definition);
    }
    let parent = Path::new(OUTPUT).parent().expect("a file has a folder");
    std::fs::create_dir_all(parent).map_err(|e| format!("cannot make {}: {e}", parent.display()))?;
    std::fs::write(OUTPUT, out).map_err(|e| format!("cannot write {OUTPUT}: {e}"))
}

fn write_type(out: &mut String, name: &str, definition: &Value) {
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
        let _ = write!(
            out,
            "{field}\t{}\t{}",
            facts["proto"].as_u64().unwrap_or(0),
            facts["type"].as_str().unwrap_or("object")
        );
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
