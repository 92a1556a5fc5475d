//! From bytes to a typed document: JSON of the right shape, unknown fields found, nulls gone.
//!
//! Kubernetes decodes into structures and forgets what it does not know; field validation (KEP-2885) asks to be told.
//! Here a document stays JSON, and one walk along its type drops unknown fields, reports them, and refuses wrong types.

use serde::de::{self, DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::schema::{FieldType, Type, Types};

/// Deeper documents are refused: upstream's decoders stop at 10,000, far beyond what any type needs and too deep for a
/// recursive walk on a small stack.
const MAX_DEPTH: usize = 128;
/// Longer lists are refused: rules and merges compare elements with each other, and no honest object comes near.
const MAX_ITEMS: usize = 8192;
/// At most this many problems are reported one by one.
const MAX_PROBLEMS: usize = 100;

/// Why bytes are not a document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON at all.
    #[error("{0}")]
    Syntax(String),
    /// A field holds a value of another type than its own.
    #[error("{0}")]
    Type(String),
    /// Nested deeper than the server reads.
    #[error("exceeded max depth")]
    Depth,
}

/// What a lenient reader would not notice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strictness {
    /// `unknown field "spec.foo"`, `duplicate field "spec.replicas"`.
    pub problems: Vec<String>,
}

impl Strictness {
    fn add(&mut self, problem: String) {
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }
}

/// Parses JSON; of duplicate fields the last one counts and each is reported.
pub fn parse_json(bytes: &[u8], strictness: &mut Strictness) -> Result<Value, DecodeError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Document { place: Place::Root, strictness };
    let value = seed.deserialize(&mut deserializer).map_err(syntax)?;
    deserializer.end().map_err(syntax)?;
    Ok(value)
}

/// What a list longer than [`MAX_ITEMS`] is answered with.
const TOO_MANY_ITEMS: &str = "a list has more than 8192 elements";

fn syntax(error: serde_json::Error) -> DecodeError {
    // serde_json's own recursion limit is MAX_DEPTH as well.
    if error.to_string().starts_with("recursion limit") {
        return DecodeError::Depth;
    }
    DecodeError::Syntax(error.to_string())
}

/// Where a value stands. It is written out only when there is something to say about the value, which is almost never.
#[derive(Clone, Copy)]
enum Place<'a> {
    Root,
    Field(&'a Place<'a>, &'a str),
    Item(&'a Place<'a>, usize),
}

impl std::fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Root => Ok(()),
            Self::Field(Self::Root, name) => f.write_str(name),
            Self::Field(parent, name) => write!(f, "{parent}.{name}"),
            Self::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

struct Document<'a> {
    place: Place<'a>,
    strictness: &'a mut Strictness,
}

impl<'de> DeserializeSeed<'de> for Document<'_> {
    type Value = Value;
    fn deserialize<D: de::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }
    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_f64<E>(self, v: f64) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(v.into())
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            if items.len() > MAX_ITEMS {
                return Err(de::Error::custom(TOO_MANY_ITEMS));
            }
            let place = Place::Item(&self.place, items.len());
            match seq.next_element_seed(Document { place, strictness: self.strictness })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let place = Place::Field(&self.place, &key);
            if object.contains_key(&key) {
                self.strictness.add(format!("duplicate field \"{place}\""));
            }
            let value = map.next_value_seed(Document { place, strictness: self.strictness })?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// Fits a document to a type: removes unknown fields (reported) and nulls, refuses values of the wrong type.
pub fn conform(
    type_name: &str,
    document: &mut Value,
    strictness: &mut Strictness,
) -> Result<(), DecodeError> {
    let Some(type_) = Types::get().type_(type_name) else { return Ok(()) };
    Walk { strictness }.structure(type_, document, Place::Root, 0)
}

struct Walk<'a> {
    strictness: &'a mut Strictness,
}

impl Walk<'_> {
    fn structure(
        &mut self,
        type_: &Type,
        value: &mut Value,
        place: Place<'_>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        if depth > MAX_DEPTH {
            return Err(DecodeError::Depth);
        }
        let Some(object) = value.as_object_mut() else {
            return Err(mismatch(value, place, type_.name.rsplit('.').next().unwrap_or(type_.name)));
        };
        // A type without fields in the table takes anything.
        if type_.fields.is_empty() {
            return Ok(());
        }
        let mut unknown = Vec::new();
        for (key, value) in object.iter_mut() {
            match type_.field(key) {
                Some(field) if !value.is_null() => {
                    self.field(&field.type_, value, Place::Field(&place, key), depth + 1)?
                }
                Some(_) => {}
                None => unknown.push(key.clone()),
            }
        }
        for key in unknown {
            self.strictness.add(format!("unknown field \"{}\"", Place::Field(&place, &key)));
            object.remove(&key);
        }
        object.retain(|_, value| !value.is_null());
        Ok(())
    }

    fn field(
        &mut self,
        type_: &FieldType,
        value: &mut Value,
        place: Place<'_>,
        depth: usize,
    ) -> Result<(), DecodeError> {
        let fits = match type_ {
            FieldType::Any => true,
            FieldType::Object => value.is_object(),
            FieldType::String => value.is_string(),
            FieldType::Boolean => value.is_boolean(),
            FieldType::Double => value.is_number(),
            FieldType::Int32 => value.as_i64().is_some_and(|n| i32::try_from(n).is_ok()),
            FieldType::Int64 => value.as_i64().is_some(),
            FieldType::IntOrString => {
                value.is_string() || value.as_i64().is_some_and(|n| i32::try_from(n).is_ok())
            }
            FieldType::Bytes => match value.as_str() {
                Some(text) => return check_base64(text, place),
                None => false,
            },
            FieldType::Time | FieldType::MicroTime if value.is_string() => {
                return normalise_time(value, *type_ == FieldType::MicroTime, place);
            }
            FieldType::Time | FieldType::MicroTime => false,
            FieldType::Quantity => return normalise_quantity(value, place),
            FieldType::Struct(name) => {
                return match Types::get().type_(name) {
                    Some(type_) => self.structure(type_, value, place, depth),
                    None => Ok(()),
                };
            }
            FieldType::List(element) => match value.as_array_mut() {
                Some(items) if items.len() > MAX_ITEMS => {
                    return Err(DecodeError::Type(TOO_MANY_ITEMS.to_owned()));
                }
                Some(items) => {
                    for (i, item) in items.iter_mut().enumerate() {
                        self.field(element, item, Place::Item(&place, i), depth + 1)?;
                    }
                    true
                }
                None => false,
            },
            FieldType::Map(element) => match value.as_object_mut() {
                Some(object) => {
                    object.retain(|_, value| !value.is_null());
                    for (key, value) in object.iter_mut() {
                        self.field(element, value, Place::Field(&place, key), depth + 1)?;
                    }
                    true
                }
                None => false,
            },
        };
        if fits { Ok(()) } else { Err(mismatch(value, place, go_type(type_))) }
    }
}

fn go_type(type_: &FieldType) -> &'static str {
    match type_ {
        FieldType::String | FieldType::Bytes => "string",
        FieldType::Boolean => "bool",
        FieldType::Int32 => "int32",
        FieldType::Int64 => "int64",
        FieldType::Double => "float64",
        FieldType::Time | FieldType::MicroTime => "time.Time",
        FieldType::IntOrString => "intstr.IntOrString",
        FieldType::Quantity => "resource.Quantity",
        FieldType::List(_) => "slice",
        FieldType::Map(_) | FieldType::Object | FieldType::Any => "map",
        FieldType::Struct(name) => name.rsplit_once('.').map_or(name, |(_, short)| short),
    }
}

fn mismatch(value: &Value, place: Place<'_>, wanted: &str) -> DecodeError {
    let found = match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(n) => format!("number {n}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    };
    let field = match place {
        Place::Root => "value".to_owned(),
        place => format!("Go struct field .{place}"),
    };
    DecodeError::Type(format!("json: cannot unmarshal {found} into {field} of type {wanted}"))
}

fn check_base64(text: &str, place: Place<'_>) -> Result<(), DecodeError> {
    use base64::Engine as _;
    match base64::engine::general_purpose::STANDARD.decode(text) {
        Ok(_) => Ok(()),
        Err(_) => Err(DecodeError::Type(format!("illegal base64 data in field {place}"))),
    }
}

/// A time as upstream writes it (`metav1.Time`, `metav1.MicroTime`), because typed clients read nothing else: in UTC, in
/// whole seconds or with all six digits of the microseconds. What is more precise is cut off.
pub(crate) fn time_text(time: jiff::Timestamp, micro: bool) -> String {
    match micro {
        true => format!("{time:.6}"),
        false => format!("{time:.0}"),
    }
}

fn normalise_time(value: &mut Value, micro: bool, place: Place<'_>) -> Result<(), DecodeError> {
    let text = value.as_str().unwrap_or_default();
    let time = text.parse::<jiff::Timestamp>().map_err(|_| {
        DecodeError::Type(format!("parsing time \"{text}\" of field {place}: not an RFC 3339 time"))
    })?;
    let normal = time_text(time, micro);
    if normal != text {
        *value = normal.into();
    }
    Ok(())
}

fn normalise_quantity(value: &mut Value, place: Place<'_>) -> Result<(), DecodeError> {
    let text = match &*value {
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        other => return Err(mismatch(other, place, "resource.Quantity")),
    };
    match crate::quantity::Quantity::parse(&text) {
        Ok(quantity) => *value = Value::String(quantity.to_string()),
        Err(error) => return Err(DecodeError::Type(format!("{error} (field {place})"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn conformed(document: Value) -> Result<(Value, Vec<String>), DecodeError> {
        let mut strictness = Strictness::default();
        let mut document = document;
        conform("io.k8s.api.apps.v1.Deployment", &mut document, &mut strictness)?;
        Ok((document, strictness.problems))
    }

    #[test]
    fn numbers_are_read_to_the_last_bit() {
        for text in ["1.1111111111111111e+21", "1.26e+302", "4.1e+301", "0.1"] {
            let value = parse_json(text.as_bytes(), &mut Strictness::default()).expect("a number");
            assert_eq!(value.to_string(), text);
        }
    }

    #[test]
    fn unknown_fields_are_dropped_and_reported() {
        let (document, problems) =
            conformed(json!({"spec": {"replicas": 1, "foo": {}, "paused": null}, "bar": 1})).expect("fits");
        assert_eq!(document, json!({"spec": {"replicas": 1}}));
        assert_eq!(problems, ["unknown field \"spec.foo\"", "unknown field \"bar\""]);
    }

    #[test]
    fn wrong_types_are_refused() {
        let rows = [
            (
                json!({"spec": {"replicas": "x"}}),
                "cannot unmarshal string into Go struct field .spec.replicas of type int32",
            ),
            (json!({"spec": {"replicas": 1.5}}), "number 1.5"),
            (json!({"spec": {"replicas": 3_000_000_000_i64}}), "int32"),
            (json!({"spec": []}), "array"),
            (json!({"metadata": {"creationTimestamp": "yesterday"}}), "time"),
            (json!([]), "array"),
        ];
        for (document, expected) in rows {
            let error = conformed(document.clone()).expect_err("must be refused").to_string();
            assert!(error.contains(expected), "{document}: {error}");
        }
    }

    #[test]
    fn times_are_written_as_typed_clients_read_them() {
        // As sent, as a micro time, as another time.
        let rows = [
            ("2020-01-01T00:00:00Z", "2020-01-01T00:00:00.000000Z", "2020-01-01T00:00:00Z"),
            ("2020-01-01T00:00:00.000000Z", "2020-01-01T00:00:00.000000Z", "2020-01-01T00:00:00Z"),
            ("2020-01-01T01:00:00.1234567+01:00", "2020-01-01T00:00:00.123456Z", "2020-01-01T00:00:00Z"),
        ];
        for (sent, micro, whole) in rows {
            let mut lease = json!({"metadata": {"creationTimestamp": sent}, "spec": {"renewTime": sent}});
            conform("io.k8s.api.coordination.v1.Lease", &mut lease, &mut Strictness::default())
                .expect("fits");
            assert_eq!(
                (&lease["spec"]["renewTime"], &lease["metadata"]["creationTimestamp"]),
                (&json!(micro), &json!(whole)),
                "{sent}"
            );
        }
    }

    #[test]
    fn duplicate_fields() {
        let mut strictness = Strictness::default();
        let value = parse_json(br#"{"a":{"b":1,"b":2},"l":[{"x":1,"x":1}]}"#, &mut strictness);
        assert_eq!(value, Ok(json!({"a": {"b": 2}, "l": [{"x": 1}]})));
        assert_eq!(strictness.problems, ["duplicate field \"a.b\"", "duplicate field \"l[0].x\""]);
    }

    #[test]
    fn depth_and_syntax() {
        let mut strictness = Strictness::default();
        assert_eq!(parse_json(&b"[".repeat(100_000), &mut strictness), Err(DecodeError::Depth));
        let long = format!("[{}0]", "0,".repeat(MAX_ITEMS + 1));
        assert!(
            matches!(parse_json(long.as_bytes(), &mut strictness), Err(DecodeError::Syntax(m)) if m.contains("8192"))
        );
        for bytes in [&b"{"[..], b"{} x", b"\xff", b"", b"{\"a\":}"] {
            assert!(matches!(parse_json(bytes, &mut strictness), Err(DecodeError::Syntax(_))), "{bytes:?}");
        }
    }
}
