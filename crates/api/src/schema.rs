//! The types of the API: which fields exist, what they hold, how lists and maps merge.
//!
//! The facts are a text table made by `cargo xtask types` and embedded in the binary. A line `=NAME` opens a type, with
//! `type=` for a named scalar, `map=atomic` and `union=DISCRIMINATOR:FIELD,…` where they apply. Each following line is a
//! field, tab-separated: name, protobuf number, type, then any of `required`, `list=atomic|set|map:KEY,KEY`,
//! `map=atomic|granular`, `patch=STRATEGY,…`, `key=MERGEKEY`. A protobuf number `2.4` is number 4 of the message embedded
//! as number 2; `0` is none. A type is written `string`, `string/byte`, `boolean`, `integer/int32`, `integer/int64`,
//! `number/double`, `any`, `object`, the name of another type, `[]TYPE` or `map:TYPE`. Types are parsed when they are
//! first used and borrow from the embedded text, so the table costs next to nothing until somebody needs it.
//!
//! Custom resources bring structural schemas instead; those become the same [`Type`]s in a later part.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use serde_json::Value;

use crate::decode::{DecodeError, Strictness};
use crate::field::Errors;
use crate::structural::Structural;

const TABLE: &str = include_str!("../data/types.tsv");

/// The type of a kind's documents.
#[derive(Clone, Debug)]
pub enum Schema {
    /// A type of the table, by name.
    Table(&'static str),
    /// Of a custom resource.
    Custom(Arc<CustomSchema>),
}

/// The type of a custom resource's version.
#[derive(Debug)]
pub struct CustomSchema {
    /// Name in published schemas: `com.example.v1.Widget`.
    pub name: String,
    /// What the definition says.
    pub structural: Structural,
}

impl Schema {
    /// Name in the table of types; custom resources have none.
    pub fn type_name(&self) -> Option<&'static str> {
        match self {
            Self::Table(name) => Some(name),
            Self::Custom(_) => None,
        }
    }

    /// Fits a document to the type, see [`crate::decode::conform`].
    pub fn conform(&self, document: &mut Value, strictness: &mut Strictness) -> Result<(), DecodeError> {
        match self {
            Self::Table(name) => crate::decode::conform(name, document, strictness),
            Self::Custom(custom) => custom.structural.prune(document, strictness),
        }
    }

    /// Fills in the constant defaults, see [`crate::defaults`].
    pub fn fill_in_defaults(&self, document: &mut Value) {
        match self {
            Self::Table(name) => crate::defaults::apply(name, document),
            Self::Custom(custom) => custom.structural.default(document),
        }
    }

    /// What a schema says beyond types. Built-in kinds have their rules in [`crate::kind::Strategy`].
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> Errors {
        match self {
            Self::Table(_) => Errors::new(),
            Self::Custom(custom) => custom.structural.validate(new, old),
        }
    }
}

impl From<&'static str> for Schema {
    fn from(name: &'static str) -> Self {
        Self::Table(name)
    }
}

/// What a field holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FieldType {
    /// Text.
    String,
    /// Base64 text of bytes.
    Bytes,
    /// True or false.
    Boolean,
    /// Whole number of 32 bits.
    Int32,
    /// Whole number of 64 bits.
    Int64,
    /// Any number.
    Double,
    /// RFC 3339 time in whole seconds.
    Time,
    /// RFC 3339 time in microseconds, of which all six digits are written.
    MicroTime,
    /// Text or whole number.
    IntOrString,
    /// Resource quantity: text or number.
    Quantity,
    /// Any JSON value, kept as it is.
    Any,
    /// Any JSON object, kept as it is.
    Object,
    /// A structure of the table.
    Struct(&'static str),
    /// A list.
    List(Box<FieldType>),
    /// An object with free keys.
    Map(Box<FieldType>),
}

/// How two writers share a list (KEP-555, `x-kubernetes-list-type`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ListType {
    /// One owner for the whole list.
    #[default]
    Atomic,
    /// Every value has its owners.
    Set,
    /// Every element, found by these fields, has its owners.
    Map(Vec<&'static str>),
}

/// How a strategic merge patch treats a list or map (`x-kubernetes-patch-strategy`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PatchStrategy {
    /// Lists merge by [`Field::merge_key`], or as sets of scalars, instead of being replaced.
    pub merge: bool,
    /// Keys that the patch does not name are cleared when `$retainKeys` stands in it.
    pub retain_keys: bool,
}

/// A field of a structure.
#[derive(Clone, Debug)]
pub struct Field {
    /// JSON name.
    pub name: &'static str,
    /// Protobuf field number, with those of the messages it is embedded in before it; empty when the type has no
    /// protobuf form.
    pub proto: Vec<u32>,
    /// What it holds.
    pub type_: FieldType,
    /// Whether the published schema lists it as required.
    pub required: bool,
    /// Apply semantics of a list.
    pub list: ListType,
    /// Whether the whole map or structure has one owner.
    pub atomic: bool,
    /// Strategic merge semantics.
    pub patch: PatchStrategy,
    /// Key by which a strategic merge patch finds list elements.
    pub merge_key: Option<&'static str>,
}

/// A structure: its fields in alphabetical order.
#[derive(Clone, Debug)]
pub struct Type {
    /// Name in the table.
    pub name: &'static str,
    /// Fields.
    pub fields: Vec<Field>,
    /// Whether the whole structure has one owner (`x-kubernetes-map-type: atomic`).
    pub atomic: bool,
    /// Groups of fields of which an object sets at most one (`x-kubernetes-unions`).
    pub unions: Vec<Union>,
}

/// Fields of which at most one is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Union {
    /// The field that says which one; its values are the fields' names with a capital.
    pub discriminator: Option<&'static str>,
    /// The fields.
    pub fields: Vec<&'static str>,
}

impl Type {
    /// Finds a field.
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.fields.binary_search_by(|f| f.name.cmp(name)).ok().map(|i| &self.fields[i])
    }
}

/// The table.
pub struct Types {
    index: HashMap<&'static str, Entry>,
}

struct Entry {
    header: &'static str,
    body: &'static str,
    parsed: OnceLock<Type>,
}

impl Types {
    /// The table of built-in types.
    pub fn get() -> &'static Self {
        static TYPES: OnceLock<Types> = OnceLock::new();
        TYPES.get_or_init(|| Types { index: index(TABLE) })
    }

    /// A structure by its name, for example `io.k8s.api.core.v1.Pod`.
    pub fn type_(&'static self, name: &str) -> Option<&'static Type> {
        let (name, entry) = self.index.get_key_value(name)?;
        Some(entry.parsed.get_or_init(|| self.parse_type(name, entry)))
    }

    /// Names of all types of the table, in no particular order.
    pub fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.index.keys().copied()
    }

    fn parse_type(&self, name: &'static str, entry: &Entry) -> Type {
        let mut fields: Vec<Field> = entry.body.lines().filter_map(|line| self.parse_field(line)).collect();
        fields.sort_by_key(|f| f.name);
        let unions = entry.header.split('\t').filter_map(|part| part.strip_prefix("union="));
        Type {
            name,
            fields,
            atomic: attribute(entry.header, "map=") == Some("atomic"),
            unions: unions.filter_map(parse_union).collect(),
        }
    }

    fn parse_field(&self, line: &'static str) -> Option<Field> {
        let mut parts = line.split('\t');
        let (name, proto, type_) = (parts.next()?, parts.next()?, parts.next()?);
        let type_ = self.parse_field_type(type_);
        let mut field = Field {
            name,
            proto: proto.split('.').filter_map(|n| n.parse().ok()).filter(|n| *n > 0).collect(),
            atomic: false,
            required: false,
            list: ListType::Atomic,
            patch: PatchStrategy::default(),
            merge_key: None,
            type_,
        };
        for attribute in parts {
            match attribute.split_once('=') {
                Some(("list", value)) => field.list = parse_list(value),
                Some(("map", value)) => field.atomic = value == "atomic",
                Some(("patch", value)) => {
                    field.patch.merge = value.split(',').any(|s| s == "merge");
                    field.patch.retain_keys = value.split(',').any(|s| s == "retainKeys");
                }
                Some(("key", value)) => field.merge_key = Some(value),
                _ => field.required |= attribute == "required",
            }
        }
        Some(field)
    }

    fn parse_field_type(&self, text: &'static str) -> FieldType {
        if let Some(element) = text.strip_prefix("[]") {
            return FieldType::List(Box::new(self.parse_field_type(element)));
        }
        if let Some(value) = text.strip_prefix("map:") {
            return FieldType::Map(Box::new(self.parse_field_type(value)));
        }
        match text {
            "string" => FieldType::String,
            "string/byte" => FieldType::Bytes,
            "string/date-time" => FieldType::Time,
            "string/int-or-string" => FieldType::IntOrString,
            "boolean" => FieldType::Boolean,
            "integer/int32" => FieldType::Int32,
            "integer/int64" => FieldType::Int64,
            "number/double" => FieldType::Double,
            "any" => FieldType::Any,
            "object" => FieldType::Object,
            "io.k8s.apimachinery.pkg.api.resource.Quantity" => FieldType::Quantity,
            "io.k8s.apimachinery.pkg.apis.meta.v1.MicroTime" => FieldType::MicroTime,
            named => match self.index.get(named).and_then(|e| attribute(e.header, "type=")) {
                Some(scalar) => self.parse_field_type(scalar),
                None if self.index.contains_key(named) => FieldType::Struct(named),
                None => FieldType::Any,
            },
        }
    }
}

fn parse_list(value: &'static str) -> ListType {
    match value.split_once(':') {
        Some(("map", keys)) => ListType::Map(keys.split(',').collect()),
        _ if value == "set" => ListType::Set,
        _ => ListType::Atomic,
    }
}

fn parse_union(value: &'static str) -> Option<Union> {
    let (discriminator, fields) = value.split_once(':')?;
    let discriminator = (!discriminator.is_empty()).then_some(discriminator);
    Some(Union { discriminator, fields: fields.split(',').collect() })
}

fn attribute(header: &'static str, name: &str) -> Option<&'static str> {
    header.split('\t').find_map(|part| part.strip_prefix(name))
}

fn index(table: &'static str) -> HashMap<&'static str, Entry> {
    let mut index = HashMap::with_capacity(800);
    // Every type begins at a line start with '='; the text before the first one is the version.
    for chunk in table.split("\n=").skip(1) {
        let (header, body) = chunk.split_once('\n').unwrap_or((chunk, ""));
        let name = header.split('\t').next().unwrap_or(header);
        index.insert(name, Entry { header, body, parsed: OnceLock::new() });
    }
    index
}

/// The version of Kubernetes whose types these are, for example `v1.36.2`.
pub fn version() -> &'static str {
    TABLE.lines().next().unwrap_or_default().trim_start_matches('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_parses_and_refers_to_known_types() {
        let types = Types::get();
        for name in types.names() {
            let type_ = types.type_(name).expect("the name is from the table");
            for field in &type_.fields {
                assert!(!field.name.is_empty(), "{name} has a field without a name");
                let mut inner = &field.type_;
                while let FieldType::List(element) | FieldType::Map(element) = inner {
                    inner = element;
                }
                if let FieldType::Struct(target) = inner {
                    assert!(types.type_(target).is_some(), "{name}.{} refers to nothing", field.name);
                }
            }
        }
    }

    #[test]
    fn facts_of_known_fields() {
        let container = Types::get().type_("io.k8s.api.core.v1.Container").expect("in the table");
        let ports = container.field("ports").expect("a field");
        assert_eq!(ports.list, ListType::Map(vec!["containerPort", "protocol"]));
        assert_eq!(ports.merge_key, Some("containerPort"));
        assert!(ports.patch.merge);
        let args = container.field("args").expect("a field");
        assert_eq!(args.type_, FieldType::List(Box::new(FieldType::String)));
        let selector =
            Types::get().type_("io.k8s.apimachinery.pkg.apis.meta.v1.LabelSelector").expect("in the table");
        assert!(selector.atomic);
        let meta =
            Types::get().type_("io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta").expect("in the table");
        assert_eq!(meta.field("creationTimestamp").map(|f| &f.type_), Some(&FieldType::Time));
        let lease = Types::get().type_("io.k8s.api.coordination.v1.LeaseSpec").expect("in the table");
        assert_eq!(lease.field("renewTime").map(|f| &f.type_), Some(&FieldType::MicroTime));
        let subject = Types::get().type_("io.k8s.api.flowcontrol.v1.Subject").expect("in the table");
        let union = Union { discriminator: Some("kind"), fields: vec!["group", "serviceAccount", "user"] };
        assert_eq!(subject.unions, [union]);
        assert!(version().starts_with("v1."));
    }
}
