//! Unknown fields go, defaults come.
//!
//! Source of the rules: `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/{pruning,defaulting}`.

use serde_json::{Map, Value};

use super::{Additional, Node, OBJECT_FIELDS};
use crate::decode::{self, DecodeError, Strictness};

/// At most this many unknown fields are reported one by one.
const MAX_PROBLEMS: usize = 100;
/// Type of the metadata of every object, embedded ones included.
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// Fits a whole object to its schema.
pub(super) fn prune(
    root: &Node,
    document: &mut Value,
    strictness: &mut Strictness,
) -> Result<(), DecodeError> {
    object_fields(document, "", strictness)?;
    Walk { strictness }.value(root, document, "", true)
}

/// Drops what a schema does not know, of a value that stands inside an object; tells whether anything went.
pub(super) fn prune_value(node: &Node, value: &mut Value) -> bool {
    let mut strictness = Strictness::default();
    let result = Walk { strictness: &mut strictness }.value(node, value, "", false);
    result.is_err() || !strictness.problems.is_empty()
}

struct Walk<'a> {
    strictness: &'a mut Strictness,
}

impl Walk<'_> {
    fn value(
        &mut self,
        node: &Node,
        value: &mut Value,
        path: &str,
        is_resource: bool,
    ) -> Result<(), DecodeError> {
        if node.embedded_resource && !is_resource && value.is_object() {
            object_fields(value, path, self.strictness)?;
        }
        match value {
            Value::Object(fields) => self.object(node, fields, path, is_resource || node.embedded_resource),
            Value::Array(items) => match node.items() {
                Some(element) => {
                    for (index, item) in items.iter_mut().enumerate() {
                        self.value(element, item, &format!("{path}[{index}]"), false)?;
                    }
                    Ok(())
                }
                None => Ok(()),
            },
            _ => Ok(()),
        }
    }

    fn object(
        &mut self,
        node: &Node,
        fields: &mut Map<String, Value>,
        path: &str,
        is_resource: bool,
    ) -> Result<(), DecodeError> {
        let mut unknown = Vec::new();
        for (name, value) in fields.iter_mut() {
            if is_resource && OBJECT_FIELDS.contains(&name.as_str()) {
                continue;
            }
            match node.field(name) {
                Some(child) => self.value(child, value, &join(path, name), false)?,
                None if node.preserve_unknown || matches!(node.additional, Additional::Anything) => {}
                None => unknown.push(name.clone()),
            }
        }
        for name in unknown {
            self.report(&join(path, &name));
            fields.remove(&name);
        }
        Ok(())
    }

    fn report(&mut self, path: &str) {
        if self.strictness.problems.len() < MAX_PROBLEMS {
            self.strictness.problems.push(format!("unknown field \"{path}\""));
        }
    }
}

/// `apiVersion`, `kind` and `metadata` have the types every object has, whatever the schema says.
fn object_fields(value: &mut Value, path: &str, strictness: &mut Strictness) -> Result<(), DecodeError> {
    for name in ["apiVersion", "kind"] {
        if let Some(field) = value.get(name)
            && !field.is_string()
        {
            return Err(wrong_type(&join(path, name), "string", field));
        }
    }
    let Some(metadata) = value.get_mut("metadata") else { return Ok(()) };
    if !metadata.is_object() {
        return Err(wrong_type(&join(path, "metadata"), "object", metadata));
    }
    let mut found = Strictness::default();
    decode::conform(OBJECT_META, metadata, &mut found)?;
    let prefix = join(path, "metadata");
    for problem in found.problems {
        if strictness.problems.len() < MAX_PROBLEMS {
            strictness.problems.push(problem.replacen('"', &format!("\"{prefix}."), 1));
        }
    }
    Ok(())
}

fn wrong_type(path: &str, wanted: &str, value: &Value) -> DecodeError {
    let found = super::validate::type_name(value);
    DecodeError::Type(format!("json: cannot unmarshal {found} into field .{path} of type {wanted}"))
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

/// Fills in the defaults below a value. Objects that are whole resources keep their `metadata` as it is.
pub(super) fn default(node: &Node, value: &mut Value, is_resource: bool) {
    match value {
        Value::Object(fields) => default_object(node, fields, is_resource || node.embedded_resource),
        Value::Array(items) => {
            if let Some(element) = node.items() {
                items.iter_mut().for_each(|item| default_in_place(element, item));
            }
        }
        _ => {}
    }
}

fn default_object(node: &Node, fields: &mut Map<String, Value>, is_resource: bool) {
    let skip = |name: &str| is_resource && OBJECT_FIELDS.contains(&name);
    for (name, child) in &node.properties {
        if let Some(default) = &child.default
            && !skip(name)
            && fields.get(name).is_none_or(|value| is_wrong_null(child, value))
        {
            fields.insert(name.clone(), default.clone());
        }
    }
    for (name, value) in fields.iter_mut() {
        if skip(name) {
            continue;
        }
        if let Some(child) = node.field(name) {
            default_in_place(child, value);
        }
    }
}

fn default_in_place(node: &Node, value: &mut Value) {
    if let Some(default) = &node.default
        && is_wrong_null(node, value)
    {
        *value = default.clone();
    }
    self::default(node, value, false);
}

/// A null where none may stand and a default exists counts as absent.
fn is_wrong_null(node: &Node, value: &Value) -> bool {
    value.is_null() && !node.nullable
}
