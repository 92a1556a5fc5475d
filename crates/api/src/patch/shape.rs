//! How a value is shared between writers, seen from its place in the table of types.

use serde_json::{Map, Value};

use crate::schema::{Field, FieldType, ListType, Schema, Type, Types};

/// What two writers of a value share.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape<'a> {
    /// Nothing: one owner for the whole value.
    Atomic,
    /// Each field of a structure.
    Struct(&'static Type),
    /// Each entry of a map.
    Map(&'a FieldType),
    /// Each value of a list.
    Set,
    /// Each element of a list, found by its key fields.
    Keyed(&'a [&'static str], &'a FieldType),
    /// No type known: objects by field, everything else whole.
    Deduced,
}

impl Shape<'_> {
    /// The shape of a whole object of a kind.
    pub(super) fn of_schema(schema: &Schema) -> Shape<'_> {
        match schema {
            Schema::Table(name) => Types::get().type_(name).map_or(Shape::Deduced, Shape::Struct),
        }
    }
}

/// The shape of a field of a structure.
pub(super) fn of_field(field: &Field) -> Shape<'_> {
    if field.atomic {
        return Shape::Atomic;
    }
    match (&field.type_, &field.list) {
        (FieldType::List(_), ListType::Atomic) => Shape::Atomic,
        (FieldType::List(_), ListType::Set) => Shape::Set,
        (FieldType::List(element), ListType::Map(keys)) => Shape::Keyed(keys, element),
        (type_, _) => of_value(type_),
    }
}

/// The shape of a value that is an element or entry: nothing but its type is known.
pub(super) fn of_value(type_: &FieldType) -> Shape<'_> {
    match type_ {
        FieldType::Struct(name) => match Types::get().type_(name) {
            Some(type_) if type_.atomic => Shape::Atomic,
            Some(type_) if type_.fields.is_empty() => Shape::Deduced,
            Some(type_) => Shape::Struct(type_),
            None => Shape::Deduced,
        },
        FieldType::Map(entry) => Shape::Map(entry),
        FieldType::Any | FieldType::Object => Shape::Deduced,
        _ => Shape::Atomic,
    }
}

/// The shape of entry `key` of an object of shape `shape`.
pub(super) fn of_entry<'a>(shape: Shape<'a>, key: &str) -> Shape<'a> {
    match shape {
        Shape::Struct(type_) => type_.field(key).map_or(Shape::Deduced, of_field),
        Shape::Map(entry) => of_value(entry),
        _ => Shape::Deduced,
    }
}

/// Key fields that may be left out and then have this value. The published schemas give a default to this one only.
const KEY_DEFAULTS: &[(&str, &str)] = &[("protocol", "TCP")];

/// The name of a list element among its siblings, as `managedFields` writes it: `k:{"name":"x"}`.
pub(super) fn element_key(keys: &[&str], element: &Value) -> String {
    let mut identity = Map::new();
    for key in keys {
        let value = match element.get(key) {
            Some(value) => value.clone(),
            None => match KEY_DEFAULTS.iter().find(|(name, _)| name == key) {
                Some((_, default)) => Value::from(*default),
                None => continue,
            },
        };
        identity.insert((*key).to_owned(), value);
    }
    format!("k:{}", Value::Object(identity))
}

/// The name of a value of a set: `v:"x"`.
pub(super) fn value_key(value: &Value) -> String {
    format!("v:{value}")
}
