//! Kubernetes' protobuf form of objects, read into the same JSON documents as everything else, and written from them.
//!
//! client-go's typed clients, and with them `kubectl create`, speak it. The envelope is four magic bytes and a
//! `runtime.Unknown` with the object inside; field numbers come from the table of types, so there is no code per kind.
//! A structure that is embedded in JSON is a message of its own here, so a field has a path of numbers. The schemas of
//! custom resources have three places where one thing or another may stand; those are [`SchemaOr`].
//!
//! One thing the wire does not tell: upstream writes every field that is no pointer, zero or not, and a zero that means
//! "not given" must not become a value. Empty texts, zero times and zero numbers are therefore left out, but for the
//! fields named in [`POINTERS`], where zero is something a client said.

use base64::Engine as _;
use serde_json::{Map, Value, json};

use crate::decode::time_text;
use crate::schema::{Field, FieldType, Type, Types};

mod write;

pub use write::{ListWriter, PARTIAL_METADATA, encode, knows, watch_frame};

const MAGIC: &[u8] = b"k8s\0";
/// Deeper messages are refused, as for JSON.
const MAX_DEPTH: usize = 128;

/// Optional numbers of the API: zero is not the same as nothing.
const POINTERS: &[&str] = &[
    "activeDeadlineSeconds",
    "backoffLimit",
    "completions",
    "defaultMode",
    "deletionGracePeriodSeconds",
    "expirationSeconds",
    "failedJobsHistoryLimit",
    "fsGroup",
    "gracePeriodSeconds",
    "intVal",
    "minReplicas",
    "mode",
    "parallelism",
    "partition",
    "priority",
    "progressDeadlineSeconds",
    "replicas",
    "revisionHistoryLimit",
    "runAsGroup",
    "runAsUser",
    "successfulJobsHistoryLimit",
    "terminationGracePeriodSeconds",
    "tolerationSeconds",
    "ttlSecondsAfterFinished",
    "value",
];

/// Why bytes are no object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// The magic bytes are missing.
    #[error("provided data does not appear to be a protobuf message, expected prefix 'k8s\\0'")]
    NoMagic,
    /// Ends in the middle or holds an impossible tag.
    #[error("malformed protobuf message")]
    Malformed,
    /// Nested deeper than the server reads.
    #[error("exceeded max depth")]
    Depth,
    /// A type the table does not know.
    #[error("no type {0}")]
    UnknownType(String),
    /// A value of another type than its field's.
    #[error("the value of {0} has the wrong type")]
    Value(String),
}

impl ProtobufError {
    /// Names the field, if nobody has yet.
    fn at(self, named: impl FnOnce() -> Self) -> Self {
        match self {
            Self::Value(name) if name.is_empty() => named(),
            other => other,
        }
    }
}

const SCHEMA_PROPS: &str = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.JSONSchemaProps";

/// What may stand in the place of a schema within a schema. In JSON these are told apart by what they are; the table
/// knows them as any value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SchemaOr {
    /// `JSONSchemaPropsOrArray`: a schema is field 1, schemas are field 2.
    Array,
    /// `JSONSchemaPropsOrBool`: the truth value is field 1, a schema field 2.
    Bool,
    /// `JSONSchemaPropsOrStringArray`: a schema is field 1, texts are field 2.
    StringArray,
}

impl SchemaOr {
    fn of(type_: &Type, field: &Field) -> Option<Self> {
        if type_.name != SCHEMA_PROPS {
            return None;
        }
        match field.name {
            "items" => Some(Self::Array),
            "additionalItems" | "additionalProperties" => Some(Self::Bool),
            "dependencies" => Some(Self::StringArray),
            _ => None,
        }
    }

    fn read(self, bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
        let (mut schema, mut many, mut allows) = (None, Vec::new(), false);
        for item in Wire(bytes) {
            match (self, item?) {
                (Self::Bool, (1, Wired::Varint(n))) => allows = n != 0,
                (Self::Bool, (2, wired)) | (_, (1, wired)) => {
                    schema = value(&FieldType::Struct(SCHEMA_PROPS), &wired, depth)?
                }
                (Self::Array, (2, wired)) => {
                    many.extend(value(&FieldType::Struct(SCHEMA_PROPS), &wired, depth)?)
                }
                (Self::StringArray, (2, wired)) => many.extend(value(&FieldType::String, &wired, depth)?),
                _ => {}
            }
        }
        Ok(match (self, schema) {
            (_, Some(schema)) => schema,
            (Self::Bool, None) => allows.into(),
            (_, None) => many.into(),
        })
    }
}

/// Reads an enveloped object of `type_name`; `apiVersion` and `kind` come from the envelope.
pub fn decode(bytes: &[u8], type_name: &str) -> Result<Value, ProtobufError> {
    let body = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::NoMagic)?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    for item in Wire(body) {
        match item? {
            (1, Wired::Bytes(type_meta)) => {
                for item in Wire(type_meta) {
                    match item? {
                        (1, Wired::Bytes(text)) => api_version = utf8(text),
                        (2, Wired::Bytes(text)) => kind = utf8(text),
                        _ => {}
                    }
                }
            }
            (2, Wired::Bytes(object)) => raw = object,
            _ => {}
        }
    }
    let type_ =
        Types::get().type_(type_name).ok_or_else(|| ProtobufError::UnknownType(type_name.to_owned()))?;
    let mut object = message(type_, raw, 0)?;
    for (field, value) in [("apiVersion", api_version), ("kind", kind)] {
        if !value.is_empty() {
            object.insert(field.to_owned(), value.into());
        }
    }
    Ok(Value::Object(object))
}

/// A field as it stands on the wire.
enum Wired<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

/// Walks the fields of a message.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn varint(&mut self) -> Result<u64, ProtobufError> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or(ProtobufError::Malformed)?;
            self.0 = rest;
            value |= u64::from(first & 0x7f).checked_shl(shift).unwrap_or(0);
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(ProtobufError::Malformed)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], ProtobufError> {
        let (head, rest) = self.0.split_at_checked(count).ok_or(ProtobufError::Malformed)?;
        self.0 = rest;
        Ok(head)
    }

    fn field(&mut self) -> Result<(u32, Wired<'a>), ProtobufError> {
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| ProtobufError::Malformed)?;
        let fixed = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |sum, b| sum << 8 | u64::from(*b));
        let wired = match tag & 7 {
            0 => Wired::Varint(self.varint()?),
            1 => Wired::Fixed64(fixed(self.take(8)?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| ProtobufError::Malformed)?;
                Wired::Bytes(self.take(length)?)
            }
            5 => Wired::Fixed32(u32::try_from(fixed(self.take(4)?)).unwrap_or(0)),
            _ => return Err(ProtobufError::Malformed),
        };
        Ok((number, wired))
    }
}

impl<'a> Iterator for Wire<'a> {
    type Item = Result<(u32, Wired<'a>), ProtobufError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

fn utf8(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn message(type_: &'static Type, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, ProtobufError> {
    let mut object = Map::new();
    embedded(&mut object, type_, bytes, &mut Vec::new(), depth)?;
    Ok(object)
}

/// Reads the fields below a path of numbers: none for the message itself, some for a structure embedded in it.
fn embedded(
    object: &mut Map<String, Value>,
    type_: &'static Type,
    bytes: &[u8],
    path: &mut Vec<u32>,
    depth: usize,
) -> Result<(), ProtobufError> {
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Depth);
    }
    for item in Wire(bytes) {
        let (number, wired) = item?;
        path.push(number);
        if let Some(field) = type_.fields.iter().find(|f| *f.proto == **path) {
            add(object, type_, field, &wired, depth)?;
        } else if let Wired::Bytes(inner) = wired
            && type_.fields.iter().any(|f| f.proto.starts_with(path))
        {
            embedded(object, type_, inner, path, depth + 1)?;
        }
        // A field of a newer version is dropped, as any protobuf reader does.
        path.pop();
    }
    Ok(())
}

fn add(
    object: &mut Map<String, Value>,
    type_: &Type,
    field: &Field,
    wired: &Wired<'_>,
    depth: usize,
) -> Result<(), ProtobufError> {
    let choice = SchemaOr::of(type_, field);
    if let (Some(choice), FieldType::Any) = (choice, &field.type_) {
        let Wired::Bytes(bytes) = wired else { return Err(ProtobufError::Malformed) };
        object.insert(field.name.to_owned(), choice.read(bytes, depth)?);
        return Ok(());
    }
    match &field.type_ {
        FieldType::List(element) => {
            let mut items = Vec::new();
            match wired {
                // Numbers may come packed.
                Wired::Bytes(packed)
                    if matches!(**element, FieldType::Int32 | FieldType::Int64 | FieldType::Boolean) =>
                {
                    let mut wire = Wire(packed);
                    while !wire.0.is_empty() {
                        items.extend(value(element, &Wired::Varint(wire.varint()?), depth)?);
                    }
                }
                one => items.push(value(element, one, depth)?.unwrap_or(Value::Null)),
            }
            if let Some(list) = object.entry(field.name).or_insert_with(|| json!([])).as_array_mut() {
                list.extend(items);
            }
        }
        FieldType::Map(entry) => {
            let Wired::Bytes(pair) = wired else { return Err(ProtobufError::Malformed) };
            let (key, entry) = map_entry(entry, choice, pair, depth)?;
            if let Some(map) = object.entry(field.name).or_insert_with(|| json!({})).as_object_mut() {
                map.insert(key, entry);
            }
        }
        type_ => {
            let Some(value) = value(type_, wired, depth)? else { return Ok(()) };
            let said_nothing = match &value {
                Value::String(text) => text.is_empty(),
                Value::Number(number) => number.as_f64() == Some(0.0) && !POINTERS.contains(&field.name),
                _ => false,
            };
            if !said_nothing {
                object.insert(field.name.to_owned(), value);
            }
        }
    }
    Ok(())
}

fn map_entry(
    type_: &FieldType,
    choice: Option<SchemaOr>,
    pair: &[u8],
    depth: usize,
) -> Result<(String, Value), ProtobufError> {
    let (mut key, mut found) = (String::new(), None);
    for item in Wire(pair) {
        match item? {
            (1, Wired::Bytes(text)) => key = utf8(text),
            (2, Wired::Bytes(bytes)) if choice.is_some() => {
                found = choice.map(|choice| choice.read(bytes, depth)).transpose()?;
            }
            (2, Wired::Bytes(items)) if matches!(type_, FieldType::List(_)) => {
                // A list as the value of a map is a message of its own, with the items as field 1.
                let texts = Wire(items).filter_map(|item| match item {
                    Ok((1, Wired::Bytes(text))) => Some(Value::from(utf8(text))),
                    _ => None,
                });
                found = Some(Value::Array(texts.collect()));
            }
            (2, wired) => found = value(type_, &wired, depth)?,
            _ => {}
        }
    }
    let empty = if *type_ == FieldType::String { Value::from("") } else { Value::Null };
    Ok((key, found.unwrap_or(empty)))
}

/// One value; `None` when the wire holds the zero of a type that has no JSON zero.
fn value(type_: &FieldType, wired: &Wired<'_>, depth: usize) -> Result<Option<Value>, ProtobufError> {
    Ok(match (type_, wired) {
        (FieldType::String, Wired::Bytes(text)) => Some(utf8(text).into()),
        (FieldType::Bytes, Wired::Bytes(bytes)) => {
            Some(base64::engine::general_purpose::STANDARD.encode(bytes).into())
        }
        (FieldType::Boolean, Wired::Varint(n)) => Some((*n != 0).into()),
        // Negative numbers are written as 64-bit two's complement.
        (FieldType::Int32 | FieldType::Int64, Wired::Varint(n)) => Some((n.cast_signed()).into()),
        (FieldType::Double, Wired::Fixed64(bits)) => Some(f64::from_bits(*bits).into()),
        (FieldType::Double, Wired::Fixed32(bits)) => Some(f64::from(f32::from_bits(*bits)).into()),
        (FieldType::Time, Wired::Bytes(bytes)) => time(bytes, false)?,
        (FieldType::MicroTime, Wired::Bytes(bytes)) => time(bytes, true)?,
        (FieldType::Quantity, Wired::Bytes(bytes)) => Some(text_field(bytes)?.into()),
        (FieldType::IntOrString, Wired::Bytes(bytes)) => Some(int_or_string(bytes)?),
        (FieldType::Any | FieldType::Object, Wired::Bytes(bytes)) => raw_json(bytes)?,
        (FieldType::Struct(name), Wired::Bytes(bytes)) => {
            let type_ =
                Types::get().type_(name).ok_or_else(|| ProtobufError::UnknownType((*name).to_owned()))?;
            Some(Value::Object(message(type_, bytes, depth + 1)?))
        }
        _ => return Err(ProtobufError::Malformed),
    })
}

/// `Timestamp`: seconds and nanoseconds; the empty message is no time.
fn time(bytes: &[u8], micro: bool) -> Result<Option<Value>, ProtobufError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (mut seconds, mut nanos) = (0, 0);
    for item in Wire(bytes) {
        match item? {
            (1, Wired::Varint(n)) => seconds = n.cast_signed(),
            (2, Wired::Varint(n)) => nanos = i32::try_from(n).map_err(|_| ProtobufError::Malformed)?,
            _ => {}
        }
    }
    // Parts of a second are no part of other times, whoever sends them.
    let time = jiff::Timestamp::new(seconds, if micro { nanos } else { 0 });
    let time = time.map_err(|_| ProtobufError::Malformed)?;
    Ok(Some(time_text(time, micro).into()))
}

/// A message whose field 1 is a text.
fn text_field(bytes: &[u8]) -> Result<String, ProtobufError> {
    let mut text = String::new();
    for item in Wire(bytes) {
        if let (1, Wired::Bytes(found)) = item? {
            text = utf8(found);
        }
    }
    Ok(text)
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let (mut is_text, mut number, mut text) = (false, 0, String::new());
    for item in Wire(bytes) {
        match item? {
            (1, Wired::Varint(n)) => is_text = n != 0,
            (2, Wired::Varint(n)) => number = n.cast_signed(),
            (3, Wired::Bytes(found)) => text = utf8(found),
            _ => {}
        }
    }
    Ok(if is_text { text.into() } else { number.into() })
}

/// `RawExtension`, `FieldsV1`, `JSON`: a message whose field 1 is JSON text.
fn raw_json(bytes: &[u8]) -> Result<Option<Value>, ProtobufError> {
    let text = text_field(bytes)?;
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&text).map(Some).map_err(|_| ProtobufError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(bytes.len()).expect("short")];
        out.extend_from_slice(bytes);
        out
    }

    fn enveloped(api_version: &str, kind: &str, object: &[u8]) -> Vec<u8> {
        let type_meta = [field(1, api_version.as_bytes()), field(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), field(1, &type_meta), field(2, object)].concat()
    }

    #[test]
    fn a_config_map() {
        let metadata = [field(1, b"a"), field(2, b""), field(8, b"")].concat();
        let pair = [field(1, b"k"), field(2, b"v")].concat();
        let object = [field(1, &metadata), field(2, &pair)].concat();
        let decoded = decode(&enveloped("v1", "ConfigMap", &object), "io.k8s.api.core.v1.ConfigMap");
        let expected =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}});
        assert_eq!(decoded, Ok(expected));
    }

    #[test]
    fn numbers_times_and_nested_types() {
        // replicas 0 is said, minReadySeconds 0 is not; maxSurge is 25%.
        let surge = [vec![8, 1], field(3, b"25%")].concat();
        let rolling = field(2, &surge);
        let strategy = [field(1, b"RollingUpdate"), field(2, &rolling)].concat();
        let spec = [vec![8, 0], vec![5 << 3, 0], field(4, &strategy)].concat();
        let decoded =
            decode(&enveloped("apps/v1", "Deployment", &field(2, &spec)), "io.k8s.api.apps.v1.Deployment");
        let spec = json!({
            "replicas": 0,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%"}},
        });
        assert_eq!(decoded.map(|d| d["spec"].clone()), Ok(spec));
        let created = field(1, &field(8, &[8, 1]));
        let decoded = decode(&enveloped("v1", "Pod", &created), "io.k8s.api.core.v1.Pod");
        assert_eq!(
            decoded.map(|d| d["metadata"].clone()),
            Ok(json!({"creationTimestamp": "1970-01-01T00:00:01Z"}))
        );
    }

    #[test]
    fn times_have_the_digits_of_their_type() {
        // Field, seconds and nanoseconds, and what is read.
        let time = |seconds: u8, nanos: &[u8]| [vec![8, seconds], vec![16], nanos.to_vec()].concat();
        let half = [0x80, 0xca, 0xb5, 0xee, 0x01]; // 500,000,000
        let odd = [0x87, 0xca, 0xb5, 0xee, 0x01]; // 500,000,007
        let rows: [(u8, Vec<u8>, Value); 6] = [
            (4, time(1, &[0]), json!("1970-01-01T00:00:01.000000Z")),
            (4, vec![8, 1], json!("1970-01-01T00:00:01.000000Z")),
            (4, time(1, &half), json!("1970-01-01T00:00:01.500000Z")),
            (4, time(1, &odd), json!("1970-01-01T00:00:01.500000Z")),
            (4, time(0, &[0]), json!("1970-01-01T00:00:00.000000Z")),
            (4, vec![], Value::Null),
        ];
        for (number, bytes, expected) in rows {
            let spec = field(2, &field(number, &bytes));
            let decoded = decode(
                &enveloped("coordination.k8s.io/v1", "Lease", &spec),
                "io.k8s.api.coordination.v1.Lease",
            );
            assert_eq!(decoded.map(|d| d["spec"]["renewTime"].clone()), Ok(expected), "{bytes:?}");
        }
        let created = field(1, &field(8, &time(1, &half)));
        let decoded = decode(&enveloped("v1", "Pod", &created), "io.k8s.api.core.v1.Pod");
        assert_eq!(
            decoded.map(|d| d["metadata"]["creationTimestamp"].clone()),
            Ok(json!("1970-01-01T00:00:01Z"))
        );
    }

    #[test]
    fn damage_is_refused() {
        let pod = "io.k8s.api.core.v1.Pod";
        assert_eq!(decode(b"{}", pod), Err(ProtobufError::NoMagic));
        let whole = enveloped("v1", "Pod", &field(1, &field(1, b"name")));
        for end in MAGIC.len() + 1..whole.len() {
            // Every cut is either noticed or falls between two fields; none panics.
            let _ = decode(&whole[..end], pod);
        }
        assert_eq!(decode(&[MAGIC, &[0xff; 20]].concat(), pod), Err(ProtobufError::Malformed));
    }
}
