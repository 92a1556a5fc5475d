//! How a value is shared between writers, seen from its place in the table of types.

use serde_json::{Map, Value};

use crate::schema::{Field, FieldType, ListType, Schema, Type, Types};
use crate::structural::{ListKind, Node};

/// What two writers of a value share.
#[derive(Clone, Copy)]
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
    Keyed(Keyed<'a>),
    /// Each field of an object that a custom resource's schema describes.
    Custom(&'a Node),
    /// No type known: objects by field, everything else whole.
    Deduced,
}

/// A list whose elements are found by some of their fields.
#[derive(Clone, Copy)]
pub(super) enum Keyed<'a> {
    /// Of a built-in type: names of the keys, type of the elements.
    Table(&'a [&'static str], &'a FieldType),
    /// Of a custom resource: names of the keys, schema of the elements.
    Custom(&'a [String], &'a Node),
}

impl<'a> Keyed<'a> {
    /// The name of an element among its siblings, as `managedFields` writes it: `k:{"name":"x"}`.
    pub(super) fn key(self, element: &Value) -> String {
        match self {
            Self::Table(keys, _) => element_key(keys.iter().copied(), element, |key| {
                KEY_DEFAULTS.iter().find(|(name, _)| *name == key).map(|(_, value)| Value::from(*value))
            }),
            Self::Custom(keys, items) => element_key(keys.iter().map(String::as_str), element, |key| {
                items.property(key).and_then(Node::default_value).cloned()
            }),
        }
    }

    /// The shape of the elements.
    pub(super) fn element(self) -> Shape<'a> {
        match self {
            Self::Table(_, type_) => of_value(type_),
            Self::Custom(_, items) => of_node(items),
        }
    }
}

impl Shape<'_> {
    /// Whether objects of the shape are shared field by field.
    pub(super) fn has_fields(self) -> bool {
        matches!(self, Self::Struct(_) | Self::Map(_) | Self::Custom(_) | Self::Deduced)
    }

    /// The shape of a whole object of a kind.
    pub(super) fn of_schema(schema: &Schema) -> Shape<'_> {
        match schema {
            Schema::Table(name) => Shape::of_table_type(name),
            Schema::Custom(custom) => Shape::Custom(custom.structural.root()),
        }
    }

    fn of_table_type(name: &str) -> Shape<'static> {
        Types::get().type_(name).map_or(Shape::Deduced, Shape::Struct)
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
        (FieldType::List(element), ListType::Map(keys)) => Shape::Keyed(Keyed::Table(keys, element)),
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
        Shape::Custom(node) => of_property(node, key),
        _ => Shape::Deduced,
    }
}

/// The shape of a field that a type names; nothing for entries of maps and for what nobody knows.
pub(super) fn of_known_field<'a>(shape: Shape<'a>, name: &str) -> Option<Shape<'a>> {
    match shape {
        Shape::Struct(type_) => type_.field(name).map(of_field),
        Shape::Custom(node) if name == "metadata" => Some(of_property(node, name)),
        Shape::Custom(node) => node.property(name).map(of_node),
        _ => None,
    }
}

/// The shape of a property of a custom resource. Metadata is described by the schema of no definition.
fn of_property<'a>(node: &'a Node, key: &str) -> Shape<'a> {
    match node.property(key).or_else(|| node.additional()) {
        Some(property) => of_node(property),
        None if key == "metadata" => Shape::of_table_type(OBJECT_META),
        None => Shape::Deduced,
    }
}

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// The shape of a place in a custom resource's schema.
fn of_node(node: &Node) -> Shape<'_> {
    if node.is_array() {
        return match (node.list_type(), node.items()) {
            (ListKind::Set, _) => Shape::Set,
            (ListKind::Map(keys), Some(items)) => Shape::Keyed(Keyed::Custom(keys, items)),
            _ => Shape::Atomic,
        };
    }
    if node.is_object() {
        return if node.is_map_atomic() { Shape::Atomic } else { Shape::Custom(node) };
    }
    if node.preserves_unknown() { Shape::Deduced } else { Shape::Atomic }
}

/// Key fields that may be left out and then have this value. The published schemas give a default to this one only.
const KEY_DEFAULTS: &[(&str, &str)] = &[("protocol", "TCP")];

fn element_key<'k>(
    keys: impl Iterator<Item = &'k str>,
    element: &Value,
    default: impl Fn(&str) -> Option<Value>,
) -> String {
    let mut identity = Map::new();
    for key in keys {
        if let Some(value) = element.get(key).cloned().or_else(|| default(key)) {
            identity.insert(key.to_owned(), value);
        }
    }
    format!("k:{}", Value::Object(identity))
}

/// The name of a value of a set: `v:"x"`.
pub(super) fn value_key(value: &Value) -> String {
    format!("v:{value}")
}
