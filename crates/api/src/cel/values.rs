//! Values of CEL and of JSON.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::objects::{Key, Map, Opaque, OptionalValue};
use kube_cel::cel::{self, Value};
use serde_json::json;

use super::{authorizer, url};

/// A value of CEL. Cheap to clone.
#[derive(Clone, Debug, PartialEq)]
pub struct CelValue(pub(crate) Value);

impl CelValue {
    /// What JSON says, without types: numbers with a fraction are doubles, other numbers ints, texts are texts.
    pub fn from_json(value: &serde_json::Value) -> Self {
        Self(from_json(value))
    }
    /// The value as JSON; nothing where JSON has no such value (a type, an optional without value is null), or where it is
    /// larger or deeper than any object.
    pub fn to_json(&self) -> Option<serde_json::Value> {
        to_json(&self.0)
    }
    /// The text, when it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.0 {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

/// The type of a value as CEL sees it: `type(x)`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TypeValue(pub(super) String);

impl Opaque for TypeValue {
    fn runtime_type_name(&self) -> &str {
        "type"
    }
}

pub(crate) fn text(text: impl Into<String>) -> Value {
    Value::String(Arc::new(text.into()))
}

pub(crate) fn map(entries: impl IntoIterator<Item = (String, Value)>) -> Value {
    let map: HashMap<Key, Value> =
        entries.into_iter().map(|(key, value)| (Key::String(Arc::new(key)), value)).collect();
    Value::Map(Map { map: Arc::new(map) })
}

pub(super) fn optional(value: Option<Value>) -> Value {
    Value::Opaque(Arc::new(value.map_or_else(OptionalValue::none, OptionalValue::of)))
}

/// What an optional holds; nothing for other values.
pub(super) fn as_optional(value: &Value) -> Option<&OptionalValue> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<OptionalValue>(),
        _ => None,
    }
}

pub(crate) fn from_json(value: &serde_json::Value) -> Value {
    match value {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::Number(number) => match number.as_i64() {
            Some(whole) => Value::Int(whole),
            None => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        serde_json::Value::String(value) => text(value.as_str()),
        serde_json::Value::Array(items) => Value::List(Arc::new(items.iter().map(from_json).collect())),
        serde_json::Value::Object(fields) => {
            map(fields.iter().map(|(key, value)| (key.clone(), from_json(value))))
        }
    }
}

/// Largest document that a value becomes, in bytes of JSON, as far as they are counted; no request is larger. Values share
/// their parts: a few calls of `map` stand for a document that fills the memory.
const MAX_JSON: usize = 3 << 20;
/// Deepest document, as in [`crate::decode`].
const MAX_JSON_DEPTH: usize = 128;

fn to_json(value: &Value) -> Option<serde_json::Value> {
    JsonWriter { left: MAX_JSON }.value(value, 0)
}

struct JsonWriter {
    left: usize,
}

impl JsonWriter {
    /// Takes the place of a value, or of a text of `length` bytes.
    fn take(&mut self, length: usize) -> Option<()> {
        self.left = self.left.checked_sub(length.saturating_add(8))?;
        Some(())
    }

    fn value(&mut self, value: &Value, depth: usize) -> Option<serde_json::Value> {
        if depth > MAX_JSON_DEPTH {
            return None;
        }
        self.take(0)?;
        Some(match value {
            Value::Null => serde_json::Value::Null,
            Value::Bool(value) => json!(value),
            Value::Int(value) => json!(value),
            Value::UInt(value) => json!(value),
            Value::Float(value) => json!(value),
            Value::String(value) => {
                self.take(value.len())?;
                json!(value.as_str())
            }
            Value::Bytes(bytes) => {
                use base64::Engine as _;
                self.take(bytes.len() / 3 * 4)?;
                json!(base64::engine::general_purpose::STANDARD.encode(bytes.as_slice()))
            }
            Value::Timestamp(_) | Value::Duration(_) => json!(as_text(value)?),
            Value::List(items) => {
                let items = items.iter().map(|item| self.value(item, depth + 1));
                serde_json::Value::Array(items.collect::<Option<_>>()?)
            }
            Value::Map(map) => {
                let entries = map.map.iter().map(|(key, value)| {
                    let key = key.to_string();
                    self.take(key.len())?;
                    Some((key, self.value(value, depth + 1)?))
                });
                serde_json::Value::Object(entries.collect::<Option<_>>()?)
            }
            Value::Opaque(_) => match as_optional(value)?.value() {
                Some(inner) => self.value(inner, depth + 1)?,
                None => serde_json::Value::Null,
            },
            Value::Function(..) => return None,
        })
    }
}

/// What `string(x)` gives.
pub(super) fn as_text(value: &Value) -> Option<String> {
    Some(match value {
        Value::String(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::Int(value) => value.to_string(),
        Value::UInt(value) => value.to_string(),
        Value::Float(value) => value.to_string(),
        Value::Bytes(bytes) => String::from_utf8(bytes.to_vec()).ok()?,
        Value::Timestamp(time) => {
            let text = time.to_rfc3339();
            text.strip_suffix("+00:00").map_or(text.clone(), |short| format!("{short}Z"))
        }
        // Seconds, as in `cel-go`; a fraction only where there is one.
        Value::Duration(duration) => {
            let nanos =
                i128::from(duration.num_seconds()) * 1_000_000_000 + i128::from(duration.subsec_nanos());
            let (sign, nanos) = if nanos < 0 { ("-", -nanos) } else { ("", nanos) };
            let (whole, rest) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
            match rest {
                0 => format!("{sign}{whole}s"),
                _ => format!("{sign}{whole}.{}s", format!("{rest:09}").trim_end_matches('0')),
            }
        }
        _ => return None,
    })
}

/// What `type(x)` says.
pub(super) fn type_name(value: &Value) -> String {
    match value {
        Value::List(_) => "list",
        Value::Map(_) => "map",
        Value::Int(_) => "int",
        Value::UInt(_) => "uint",
        Value::Float(_) => "double",
        Value::String(_) => "string",
        Value::Bytes(_) => "bytes",
        Value::Bool(_) => "bool",
        Value::Duration(_) => "google.protobuf.Duration",
        Value::Timestamp(_) => "google.protobuf.Timestamp",
        Value::Null => "null_type",
        Value::Function(..) => "function",
        Value::Opaque(opaque) => return opaque.runtime_type_name().to_owned(),
    }
    .to_owned()
}

/// Characters, bytes and elements of a value with all it holds: what a walk over it costs, before the tenth is taken.
/// Stops counting at `limit`, so that asking is never dearer than the answer.
pub(crate) fn deep_size(value: &Value, limit: u64) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Bytes(bytes) => bytes.len() as u64,
        Value::List(items) => {
            let mut size = 1;
            for item in items.iter() {
                if size > limit {
                    break;
                }
                size += 1 + deep_size(item, limit - size);
            }
            size
        }
        Value::Map(map) => {
            let mut size = 1;
            for (key, value) in map.map.iter() {
                if size > limit {
                    break;
                }
                let key = if let Key::String(key) = key { key.len() as u64 } else { 1 };
                size += 1 + key + deep_size(value, limit.saturating_sub(size));
            }
            size
        }
        Value::Opaque(_) => match as_optional(value).and_then(OptionalValue::value) {
            Some(inner) => 1 + deep_size(inner, limit),
            None => 1 + url::length(value) + authorizer::length(value),
        },
        _ => 1,
    }
}

/// A time given as RFC 3339; in UTC, because `getHours()` and its kin speak of UTC.
pub(crate) fn timestamp(text: &str) -> Option<Value> {
    let time: jiff::Timestamp = text.parse().ok()?;
    cel::functions::timestamp(Arc::new(time.to_string())).ok()
}

/// A duration as Go writes it.
pub(crate) fn duration(text: &str) -> Option<Value> {
    cel::functions::duration(Arc::new(text.to_owned())).ok()
}
