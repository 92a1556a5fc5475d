//! Structural schemas: what the objects of a custom resource look like (`openAPIV3Schema` of a
//! CustomResourceDefinition, KEP "Structural Schema").
//!
//! A schema is read once into a tree of [`Node`]s ([`Structural::parse`] says what is wrong with it) and then walked
//! along each object, in the order of the pipeline: [`Structural::prune`] drops what the schema does not know,
//! [`Structural::default`] fills in what the user left out, [`Structural::validate`] checks the result, and its CEL
//! rules when the types hold. Server-side apply asks the same nodes how lists and maps merge.
//!
//! | file          | what it does                                                           |
//! |---------------|------------------------------------------------------------------------|
//! | `parse.rs`    | JSON to nodes, the rules of structural schemas                          |
//! | `prune.rs`    | unknown fields, defaults                                                |
//! | `validate.rs` | the keywords of JSON schema, lists that are sets or maps, ratcheting    |
//! | `format.rs`   | what `format` knows                                                     |
//! | `rules.rs`    | `x-kubernetes-validations`: compiling, typing of values, running        |
//! | `cost.rs`     | how expensive a rule may become, told from the limits in the schema     |
//!
//! The metadata of the root object is checked elsewhere; an embedded resource's is checked here, lightly.

mod cost;
mod format;
mod parse;
mod prune;
mod rules;
#[cfg(test)]
mod tests;
mod validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::{Number, Value};

use crate::decode::{DecodeError, Strictness};
use crate::field;

/// Fields every object has; pruning keeps them and schemas may say little about them.
const OBJECT_FIELDS: [&str; 3] = ["apiVersion", "kind", "metadata"];

/// A structural schema, ready to be used. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Structural {
    root: Arc<Node>,
    source: Arc<Value>,
}

impl Structural {
    /// Reads and checks the `openAPIV3Schema` of a version; errors stand at `path`.
    pub fn parse(
        schema: &Value,
        preserve_unknown_fields: bool,
        path: &field::Path,
    ) -> Result<Self, field::Errors> {
        let root = parse::root(schema, preserve_unknown_fields, path)?;
        Ok(Self { root: Arc::new(root), source: Arc::new(schema.clone()) })
    }

    /// Drops fields the schema does not know and reports each as `unknown field "spec.foo"`.
    ///
    /// `apiVersion`, `kind` and `metadata` stay, at the root and in embedded resources; a wrong type of one of them is
    /// the only error. A null of a field that has a default and may not be null is dropped, so that the default counts.
    pub fn prune(&self, document: &mut Value, strictness: &mut Strictness) -> Result<(), DecodeError> {
        prune::prune(&self.root, document, strictness)
    }

    /// Fills in defaults.
    pub fn default(&self, document: &mut Value) {
        prune::default(&self.root, document, true);
    }

    /// Checks an object against the schema and, when its shape holds, against the CEL rules. With `old`, transition
    /// rules run too and what did not change is not refused again (KEP-4008).
    pub fn validate(&self, new: &Value, old: Option<&Value>) -> field::Errors {
        let mut errors = validate::validate(&self.root, new, old);
        if errors.is_empty() {
            errors.extend(rules::validate(&self.root, new, old));
        }
        errors
    }

    /// The place of the whole object.
    pub fn root(&self) -> &Node {
        &self.root
    }

    /// The schema as its author wrote it: what `/openapi/v3` publishes (`metadata` is added by the caller).
    pub fn source(&self) -> &Value {
        &self.source
    }
}

/// How a list merges (`x-kubernetes-list-type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListKind<'a> {
    /// As one value.
    Atomic,
    /// Element by element; each stands once.
    Set,
    /// Element by element, told apart by the values of these fields.
    Map(&'a [String]),
}

/// `type` of a schema; absent where anything may stand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum NodeType {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

impl NodeType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Any => "",
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ListType {
    #[default]
    Atomic,
    Set,
    Map,
}

/// `additionalProperties`.
#[derive(Clone, Debug, Default)]
enum Additional {
    #[default]
    None,
    /// `true`: any value under any key.
    Anything,
    Schema(Box<Node>),
}

/// `pattern`, as written and ready to run.
#[derive(Clone, Debug)]
struct Pattern {
    text: String,
    regex: Regex,
}

/// Keywords that judge a value without shaping it.
#[derive(Clone, Debug, Default)]
struct Checks {
    format: Option<String>,
    choices: Vec<Value>,
    minimum: Option<Number>,
    exclusive_minimum: bool,
    maximum: Option<Number>,
    exclusive_maximum: bool,
    multiple_of: Option<Number>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    pattern: Option<Pattern>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    required: Vec<String>,
    all_of: Vec<Node>,
    any_of: Vec<Node>,
    one_of: Vec<Node>,
    not: Option<Box<Node>>,
}

/// One place of a structural schema.
#[derive(Clone, Debug, Default)]
pub struct Node {
    type_: NodeType,
    nullable: bool,
    int_or_string: bool,
    preserve_unknown: bool,
    embedded_resource: bool,
    properties: BTreeMap<String, Node>,
    additional: Additional,
    items: Option<Box<Node>>,
    list_type: ListType,
    list_map_keys: Vec<String>,
    map_atomic: bool,
    default: Option<Value>,
    checks: Checks,
    /// Elements of a list or values of a map, at most.
    most_elements: u64,
    rules: Vec<rules::Rule>,
    /// Whether a rule stands here or below: validation walks only where one does.
    has_rules: bool,
}

impl Node {
    /// The place of a field with a schema of its own.
    pub fn property(&self, name: &str) -> Option<&Node> {
        self.properties.get(name)
    }
    /// The place of every value of a map.
    pub fn additional(&self) -> Option<&Node> {
        match &self.additional {
            Additional::Schema(node) => Some(node),
            Additional::None | Additional::Anything => None,
        }
    }
    /// The place of every element of a list.
    pub fn items(&self) -> Option<&Node> {
        self.items.as_deref()
    }
    /// How a list at this place merges.
    pub fn list_type(&self) -> ListKind<'_> {
        match self.list_type {
            ListType::Atomic => ListKind::Atomic,
            ListType::Set => ListKind::Set,
            ListType::Map => ListKind::Map(&self.list_map_keys),
        }
    }
    /// Whether a map or object at this place merges as one value.
    pub fn is_map_atomic(&self) -> bool {
        self.map_atomic
    }
    /// Whether fields without a schema stay.
    pub fn preserves_unknown(&self) -> bool {
        self.preserve_unknown
    }
    /// What stands here when the user says nothing.
    pub fn default_value(&self) -> Option<&Value> {
        self.default.as_ref()
    }
    /// Whether a default stands here or anywhere below.
    pub fn has_defaults(&self) -> bool {
        let below = self.properties.values().chain(self.additional()).chain(self.items());
        self.default.is_some() || below.into_iter().any(Self::has_defaults)
    }
    /// Whether an object stands here.
    pub fn is_object(&self) -> bool {
        self.type_ == NodeType::Object
    }
    /// Whether a list stands here.
    pub fn is_array(&self) -> bool {
        self.type_ == NodeType::Array
    }

    /// Whether a field selector may name this place: a text, a whole number or a truth value.
    pub fn is_selectable(&self) -> bool {
        matches!(self.type_, NodeType::String | NodeType::Integer | NodeType::Boolean)
    }

    /// The place of a field of an object or a value of a map.
    fn field(&self, name: &str) -> Option<&Node> {
        self.property(name).or_else(|| self.additional())
    }
}

/// The element of an old list that means the same thing as `item`: the one with the same keys.
///
/// Only lists that are maps can be told apart that way; elements of other lists have no identity (KEP-4008).
fn correlated<'a>(node: &Node, item: &Value, old: Option<&'a Value>) -> Option<&'a Value> {
    let ListKind::Map(_) = node.list_type() else { return None };
    let key = map_key(node, item);
    old?.as_array()?.iter().find(|candidate| map_key(node, candidate) == key)
}

/// The values of the key fields of an element, defaults included.
fn map_key(node: &Node, item: &Value) -> Vec<Value> {
    let default = |key: &String| node.items().and_then(|n| n.property(key)).and_then(Node::default_value);
    let value = |key: &String| item.get(key).or_else(|| default(key)).cloned().unwrap_or_default();
    node.list_map_keys.iter().map(value).collect()
}
