//! Writes JSON documents in Kubernetes' protobuf form.
//!
//! What the document says is written, also zeros and empty texts; what it does not say is not. Upstream's writers also
//! write zeros that nobody said, which readers cannot tell from absent ones. Fields stand in the order of their numbers.

use base64::Engine as _;
use serde_json::{Map, Value};

use super::{MAGIC, MAX_DEPTH, ProtobufError, SCHEMA_PROPS, SchemaOr};
use crate::schema::{Field, FieldType, Type, Types};

/// Projections to metadata have no entry in the table of types; their only field is number 1.
pub const PARTIAL_METADATA: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata";
const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

/// Whether a type has a protobuf form. Custom resources have none.
pub fn knows(type_name: &str) -> bool {
    type_name == PARTIAL_METADATA
        || Types::get().type_(type_name).is_some_and(|type_| type_.fields.iter().any(|f| !f.proto.is_empty()))
}

/// Writes an object of `type_name` in its envelope.
pub fn encode(
    type_name: &str,
    api_version: &str,
    kind: &str,
    object: &Value,
) -> Result<Vec<u8>, ProtobufError> {
    let mut raw = Vec::with_capacity(512);
    message(&mut raw, type_name, object, 0)?;
    Ok(envelope(api_version, kind, &raw))
}

/// A list of a kind, written item by item.
pub struct ListWriter {
    raw: Vec<u8>,
}

impl ListWriter {
    /// Begins a list with its `metav1.ListMeta`.
    pub fn new(metadata: &Value) -> Result<Self, ProtobufError> {
        let mut list_meta = Vec::new();
        message(&mut list_meta, LIST_META, metadata, 1)?;
        let mut raw = Vec::with_capacity(64 * 1024);
        bytes(&mut raw, 1, &list_meta);
        Ok(Self { raw })
    }

    /// Adds an object.
    pub fn push(&mut self, type_name: &str, object: &Value) -> Result<(), ProtobufError> {
        let mut item = Vec::with_capacity(512);
        message(&mut item, type_name, object, 1)?;
        bytes(&mut self.raw, 2, &item);
        Ok(())
    }

    /// The enveloped list; `kind` is the list's, for example `PodList`.
    pub fn finish(self, api_version: &str, kind: &str) -> Vec<u8> {
        envelope(api_version, kind, &self.raw)
    }
}

/// One frame of a watch stream: four bytes of length, then a bare `metav1.WatchEvent` around an enveloped object.
pub fn watch_frame(event_type: &str, enveloped: &[u8]) -> Vec<u8> {
    let mut raw_extension = Vec::with_capacity(enveloped.len() + 8);
    bytes(&mut raw_extension, 1, enveloped);
    let mut event = Vec::with_capacity(raw_extension.len() + 24);
    bytes(&mut event, 1, event_type.as_bytes());
    bytes(&mut event, 2, &raw_extension);
    // Objects are bounded far below the four gigabytes a length can name.
    let length = u32::try_from(event.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &event].concat()
}

/// Magic bytes and `runtime.Unknown`.
fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut type_meta = Vec::with_capacity(64);
    bytes(&mut type_meta, 1, api_version.as_bytes());
    bytes(&mut type_meta, 2, kind.as_bytes());
    let mut out = Vec::with_capacity(raw.len() + 96);
    out.extend_from_slice(MAGIC);
    bytes(&mut out, 1, &type_meta);
    bytes(&mut out, 2, raw);
    // Encoding and type of the content: said to be the usual ones by being empty.
    bytes(&mut out, 3, b"");
    bytes(&mut out, 4, b"");
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn tag(out: &mut Vec<u8>, number: u32, wire_type: u64) {
    varint(out, u64::from(number) << 3 | wire_type);
}

fn bytes(out: &mut Vec<u8>, number: u32, content: &[u8]) {
    tag(out, number, 2);
    varint(out, content.len() as u64);
    out.extend_from_slice(content);
}

fn number(out: &mut Vec<u8>, field: u32, value: i64) {
    tag(out, field, 0);
    // Negative numbers are written as 64-bit two's complement.
    varint(out, value.cast_unsigned());
}

/// Writes a nested message whose length is not known before.
fn nested(
    out: &mut Vec<u8>,
    number: u32,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), ProtobufError>,
) -> Result<(), ProtobufError> {
    let mut inner = Vec::new();
    write(&mut inner)?;
    bytes(out, number, &inner);
    Ok(())
}

fn message(out: &mut Vec<u8>, type_name: &str, value: &Value, depth: usize) -> Result<(), ProtobufError> {
    let object = value.as_object().ok_or_else(|| ProtobufError::Value(type_name.to_owned()))?;
    if type_name == PARTIAL_METADATA {
        return match object.get("metadata") {
            Some(metadata) => nested(out, 1, |inner| message(inner, OBJECT_META, metadata, depth + 1)),
            None => Ok(()),
        };
    }
    let type_ =
        Types::get().type_(type_name).ok_or_else(|| ProtobufError::UnknownType(type_name.to_owned()))?;
    structure(out, type_, object, depth)
}

/// A field that is there, with the way to it.
type Said<'a> = (&'static [u32], &'static Field, &'a Value);

fn structure(
    out: &mut Vec<u8>,
    type_: &'static Type,
    object: &Map<String, Value>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Depth);
    }
    let mut said: Vec<Said<'_>> = object
        .iter()
        .filter(|(_, value)| !value.is_null())
        .filter_map(|(name, value)| type_.field(name).map(|field| (&*field.proto, field, value)))
        .filter(|(path, _, _)| !path.is_empty())
        .collect();
    said.sort_by_key(|(path, _, _)| *path);
    fields(out, type_, &said, depth)
}

/// Writes fields whose paths begin at this message; those that share a longer path go into one embedded message.
fn fields(out: &mut Vec<u8>, type_: &Type, said: &[Said<'_>], depth: usize) -> Result<(), ProtobufError> {
    for group in said.chunk_by(|a, b| a.0.first() == b.0.first()) {
        match group {
            [([number], field, value)] => any_field(out, type_, *number, field, value, depth)?,
            [([number, ..], _, _), ..] => {
                let inner: Vec<Said<'_>> =
                    group.iter().map(|(path, field, value)| (&path[1..], *field, *value)).collect();
                nested(out, *number, |out| fields(out, type_, &inner, depth + 1))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn any_field(
    out: &mut Vec<u8>,
    type_: &Type,
    number: u32,
    field: &Field,
    value: &Value,
    depth: usize,
) -> Result<(), ProtobufError> {
    let wrong = || ProtobufError::Value(format!("{}.{}", type_.name, field.name));
    if let Some(choice) = SchemaOr::of(type_, field) {
        return match (&field.type_, value) {
            (FieldType::Map(_), Value::Object(entries)) => entries.iter().try_for_each(|(key, entry)| {
                map_entry(out, number, key, |out| nested(out, 2, |out| schema_or(out, choice, entry, depth)))
            }),
            (FieldType::Map(_), _) => Err(wrong()),
            _ => nested(out, number, |out| schema_or(out, choice, value, depth)),
        };
    }
    match (&field.type_, value) {
        (FieldType::List(element), Value::Array(items)) => items
            .iter()
            .try_for_each(|item| single(out, number, element, item, depth).map_err(|e| e.at(wrong))),
        (FieldType::Map(element), Value::Object(entries)) => entries.iter().try_for_each(|(key, entry)| {
            map_entry(out, number, key, |out| match (&**element, entry) {
                // A list as the value of a map is a message of its own, with the items as field 1.
                (FieldType::List(element), Value::Array(items)) => nested(out, 2, |out| {
                    items.iter().try_for_each(|item| single(out, 1, element, item, depth))
                }),
                (element, entry) => single(out, 2, element, entry, depth),
            })
            .map_err(|e| e.at(wrong))
        }),
        (FieldType::List(_) | FieldType::Map(_), _) => Err(wrong()),
        (type_, value) => single(out, number, type_, value, depth).map_err(|e| e.at(wrong)),
    }
}

fn map_entry(
    out: &mut Vec<u8>,
    number: u32,
    key: &str,
    value: impl FnOnce(&mut Vec<u8>) -> Result<(), ProtobufError>,
) -> Result<(), ProtobufError> {
    nested(out, number, |out| {
        bytes(out, 1, key.as_bytes());
        value(out)
    })
}

/// One value that is neither list nor map.
fn single(
    out: &mut Vec<u8>,
    field: u32,
    type_: &FieldType,
    value: &Value,
    depth: usize,
) -> Result<(), ProtobufError> {
    let wrong = || ProtobufError::Value(String::new());
    let text = || value.as_str().ok_or_else(wrong);
    match type_ {
        FieldType::String => bytes(out, field, text()?.as_bytes()),
        FieldType::Bytes => {
            let decoded = base64::engine::general_purpose::STANDARD.decode(text()?).map_err(|_| wrong())?;
            bytes(out, field, &decoded);
        }
        FieldType::Boolean => number(out, field, value.as_bool().ok_or_else(wrong)?.into()),
        FieldType::Int32 | FieldType::Int64 => number(out, field, value.as_i64().ok_or_else(wrong)?),
        FieldType::Double => {
            tag(out, field, 1);
            out.extend_from_slice(&value.as_f64().ok_or_else(wrong)?.to_le_bytes());
        }
        FieldType::Time | FieldType::MicroTime => {
            let time: jiff::Timestamp = text()?.parse().map_err(|_| wrong())?;
            nested(out, field, |out| timestamp(out, time, *type_ == FieldType::MicroTime))?;
        }
        FieldType::Quantity => {
            let quantity = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            nested(out, field, |out| {
                bytes(out, 1, quantity.as_bytes());
                Ok(())
            })?;
        }
        FieldType::IntOrString => nested(out, field, |out| int_or_string(out, value).ok_or_else(wrong))?,
        FieldType::Any | FieldType::Object => nested(out, field, |out| {
            bytes(out, 1, value.to_string().as_bytes());
            Ok(())
        })?,
        FieldType::Struct(name) => nested(out, field, |out| message(out, name, value, depth + 1))?,
        // Lists of lists and maps of maps do not exist in the table.
        FieldType::List(_) | FieldType::Map(_) => return Err(wrong()),
    }
    Ok(())
}

/// Seconds, and of a micro time what there is of the next one.
fn timestamp(out: &mut Vec<u8>, time: jiff::Timestamp, micro: bool) -> Result<(), ProtobufError> {
    const NANOS: i128 = 1_000_000_000;
    let nanos = time.as_nanosecond();
    let seconds =
        i64::try_from(nanos.div_euclid(NANOS)).map_err(|_| ProtobufError::Value(time.to_string()))?;
    number(out, 1, seconds);
    let rest = i64::try_from(nanos.rem_euclid(NANOS)).unwrap_or(0);
    number(out, 2, if micro { rest - rest % 1000 } else { 0 });
    Ok(())
}

fn int_or_string(out: &mut Vec<u8>, value: &Value) -> Option<()> {
    match value {
        Value::String(text) => {
            number(out, 1, 1);
            number(out, 2, 0);
            bytes(out, 3, text.as_bytes());
        }
        other => {
            number(out, 1, 0);
            number(out, 2, other.as_i64()?);
            bytes(out, 3, b"");
        }
    }
    Some(())
}

/// A schema of a custom resource, or what may stand in its place.
fn schema_or(out: &mut Vec<u8>, choice: SchemaOr, value: &Value, depth: usize) -> Result<(), ProtobufError> {
    let wrong = || ProtobufError::Value(SCHEMA_PROPS.to_owned());
    let schema = |out: &mut Vec<u8>, number, value: &Value| {
        nested(out, number, |out| message(out, SCHEMA_PROPS, value, depth + 1))
    };
    match (choice, value) {
        (SchemaOr::Bool, Value::Bool(allows)) => number(out, 1, (*allows).into()),
        (SchemaOr::Bool, value) => {
            number(out, 1, 1);
            schema(out, 2, value)?;
        }
        (SchemaOr::Array, Value::Array(schemas)) => {
            schemas.iter().try_for_each(|value| schema(out, 2, value))?
        }
        (SchemaOr::StringArray, Value::Array(texts)) => {
            for text in texts {
                bytes(out, 2, text.as_str().ok_or_else(wrong)?.as_bytes());
            }
        }
        (SchemaOr::Array | SchemaOr::StringArray, value) => schema(out, 1, value)?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::decode;
    use super::*;
    use serde_json::json;

    /// A document with something in every field, three structures deep; every structure is also a document of its own.
    fn sample(type_: &'static Type, depth: usize) -> Value {
        let mut object = Map::new();
        for (i, field) in type_.fields.iter().enumerate().filter(|(_, f)| !f.proto.is_empty()) {
            if let Some(choice) = SchemaOr::of(type_, field) {
                let value = match choice {
                    SchemaOr::Bool if i.is_multiple_of(2) => json!(true),
                    SchemaOr::Array if depth.is_multiple_of(2) => {
                        json!([{"type": "string"}, {"type": "integer"}])
                    }
                    SchemaOr::StringArray => json!(["a", "b"]),
                    _ => json!({"type": "object", "title": "t"}),
                };
                let mapped = matches!(field.type_, FieldType::Map(_));
                object.insert(field.name.to_owned(), if mapped { json!({"k": value}) } else { value });
            } else if let Some(value) = sample_of(&field.type_, i, depth) {
                object.insert(field.name.to_owned(), value);
            }
        }
        Value::Object(object)
    }

    fn sample_of(type_: &FieldType, i: usize, depth: usize) -> Option<Value> {
        let number = i64::try_from(i).unwrap_or(0) + 1;
        Some(match type_ {
            FieldType::String => json!(format!("text {i}")),
            FieldType::Bytes => json!("AAECAwQ="),
            FieldType::Boolean => json!(i.is_multiple_of(2)),
            FieldType::Int32 => json!(if i.is_multiple_of(2) { number } else { -number }),
            FieldType::Int64 => json!(i64::MIN + number),
            FieldType::Double => json!(number as f64 + 0.5),
            FieldType::Time => json!("2024-05-06T07:08:09Z"),
            FieldType::MicroTime if i.is_multiple_of(2) => json!("2024-05-06T07:08:09.123456Z"),
            FieldType::MicroTime => json!("2024-05-06T07:08:09.000000Z"),
            FieldType::IntOrString if i.is_multiple_of(2) => json!("25%"),
            FieldType::IntOrString => json!(number),
            FieldType::Quantity => json!("100m"),
            FieldType::Any => json!({"any": [1, "x", null]}),
            FieldType::Object => json!({"f:a": {}}),
            FieldType::Struct(name) => {
                let type_ = Types::get().type_(name).filter(|_| depth < 3)?;
                sample(type_, depth + 1)
            }
            FieldType::List(element) => {
                json!([sample_of(element, i, depth)?, sample_of(element, i + 1, depth)?])
            }
            FieldType::Map(element) => {
                json!({"a": sample_of(element, i, depth)?, "b/c": sample_of(element, i, depth)?})
            }
        })
    }

    #[test]
    fn every_type_comes_back_as_it_was() {
        let mut count = 0;
        for name in Types::get().names().filter(|name| knows(name)) {
            let type_ = Types::get().type_(name).expect("from the table");
            let document = sample(type_, 0);
            let bytes = encode(name, "g/v1", "K", &document).unwrap_or_else(|e| panic!("{name}: {e}"));
            let mut back = decode(&bytes, name).unwrap_or_else(|e| panic!("{name}: {e}"));
            // Types may have fields of these names; else they are the envelope's.
            for (field, value) in [("apiVersion", "g/v1"), ("kind", "K")] {
                assert_eq!(back[field], value, "{name}");
                match document.get(field) {
                    Some(own) => back[field] = own.clone(),
                    None => drop(back.as_object_mut().and_then(|o| o.remove(field))),
                }
            }
            assert_eq!(back, document, "{name}");
            count += 1;
        }
        assert!(count > 700, "only {count} types have a protobuf form");
    }

    #[test]
    fn damaged_documents_are_read_or_refused() {
        let mut random = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |limit: usize| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // The remainder is below the limit.
            (random % limit as u64) as usize
        };
        let mut refused = 0;
        for name in Types::get().names().filter(|name| knows(name)) {
            let type_ = Types::get().type_(name).expect("from the table");
            let whole = encode(name, "v1", "K", &sample(type_, 2)).expect("writes");
            for _ in 0..50 {
                let mut bytes = whole.clone();
                for _ in 0..=below(3) {
                    let at = MAGIC.len() + below(bytes.len() - MAGIC.len());
                    bytes[at] = below(256) as u8;
                }
                refused += usize::from(decode(&bytes, name).is_err());
            }
        }
        assert!(refused > 1000, "only {refused} were refused");
    }

    #[test]
    fn lists_and_projections() {
        let mut list = ListWriter::new(&json!({"resourceVersion": "7"})).expect("writes");
        for name in ["a", "b"] {
            let map = json!({"kind": "ConfigMap", "metadata": {"name": name}, "data": {"k": name}});
            list.push("io.k8s.api.core.v1.ConfigMap", &map).expect("writes");
        }
        let bytes = list.finish("v1", "ConfigMapList");
        let expected = json!({
            "apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "7"},
            "items": [
                {"metadata": {"name": "a"}, "data": {"k": "a"}},
                {"metadata": {"name": "b"}, "data": {"k": "b"}},
            ],
        });
        assert_eq!(decode(&bytes, "io.k8s.api.core.v1.ConfigMapList"), Ok(expected));
        let partial = encode(
            PARTIAL_METADATA,
            "meta.k8s.io/v1",
            "PartialObjectMetadata",
            &json!({"metadata": {"name": "x"}}),
        );
        // The same field number as in any object.
        let back = decode(&partial.expect("writes"), "io.k8s.api.core.v1.ConfigMap");
        assert_eq!(back.map(|b| b["metadata"]["name"].clone()), Ok(json!("x")));
    }

    #[test]
    fn known_bytes() {
        // As client-go writes them, but for the zeros nobody said.
        let bytes =
            encode("io.k8s.api.core.v1.ConfigMap", "v1", "ConfigMap", &json!({"metadata": {"name": "n"}}));
        let expected = b"k8s\0\x0a\x0f\x0a\x02v1\x12\x09ConfigMap\x12\x05\x0a\x03\x0a\x01n\x1a\x00\x22\x00";
        assert_eq!(bytes.as_deref(), Ok(&expected[..]));
        let frame = watch_frame("ADDED", b"x");
        assert_eq!(frame, b"\0\0\0\x0c\x0a\x05ADDED\x12\x03\x0a\x01x");
        // An embedded structure is a message of its own: VolumeSource is field 2 of Volume, emptyDir field 2 of that.
        let volume = encode("io.k8s.api.core.v1.Volume", "", "", &json!({"name": "v", "emptyDir": {}}))
            .expect("writes");
        assert!(volume.windows(9).any(|w| w == b"\x0a\x01v\x12\x02\x12\x00\x1a\x00"), "{volume:?}");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let rows = [
            (json!({"spec": {"replicas": "x"}}), "io.k8s.api.apps.v1.DeploymentSpec.replicas"),
            (json!({"metadata": {"labels": []}}), "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta.labels"),
            (json!({"metadata": {"creationTimestamp": "yesterday"}}), "ObjectMeta.creationTimestamp"),
        ];
        for (document, expected) in rows {
            let error = encode("io.k8s.api.apps.v1.Deployment", "apps/v1", "Deployment", &document);
            let error = error.expect_err("does not fit").to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert!(!knows("no.such.Type") && knows("io.k8s.api.core.v1.Pod"));
    }
}
