//! From `openAPIV3Schema` to nodes, with everything that may be wrong about it.
//!
//! Source of the rules: `k8s.io/apiextensions-apiserver/pkg/apiserver/schema/validation.go` and
//! `pkg/apis/apiextensions/validation/validation.go`.

use std::collections::BTreeMap;

use regex::Regex;
use serde_json::Value;

use super::cost::Estimates;
use super::{Additional, Checks, ListType, Node, NodeType, OBJECT_FIELDS, Pattern, prune, rules, validate};
use crate::field::{Errors, Path};
use crate::pattern;

/// Deeper schemas are refused: each level of properties takes two levels of JSON, of which the server reads 128.
const MAX_DEPTH: usize = 64;
/// Schemas with more places than this are refused; the largest in use have some ten thousand.
const MAX_NODES: usize = 50_000;

/// Different patterns of a schema; each may take up to a megabyte when it is compiled.
const MAX_PATTERNS: usize = 1000;

/// Keywords of JSON schema that no structural schema has.
const UNSUPPORTED: [&str; 6] =
    ["$ref", "definitions", "dependencies", "id", "patternProperties", "additionalItems"];

/// Keywords that shape a value; a schema below `allOf`, `anyOf`, `oneOf` or `not` only judges one.
const SHAPING: [&str; 12] = [
    "title",
    "description",
    "default",
    "additionalProperties",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-map-type",
    "x-kubernetes-validations",
    "nullable",
];

/// Reads the schema of a whole object.
pub(super) fn root(schema: &Value, preserve_unknown_fields: bool, path: &Path) -> Result<Node, Errors> {
    let mut parser = Parser::default();
    if !schema.is_object() {
        parser.errors.required(path, "schemas are required");
        return Err(parser.errors);
    }
    let mut node = parser.node(
        schema,
        path,
        Place { depth: 0, is_root: true, count: 1, default: false, is_correlatable: true },
    );
    node.preserve_unknown |= preserve_unknown_fields;
    parser.root_rules(schema, &node, path);
    if parser.nodes > MAX_NODES {
        parser.errors.forbidden(path, format!("must not have more than {MAX_NODES} places"));
    }
    parser.estimates.finish(&mut parser.errors, path);
    if parser.errors.is_empty() { Ok(node) } else { Err(parser.errors) }
}

/// Where a schema stands.
#[derive(Clone, Copy)]
struct Place {
    depth: usize,
    is_root: bool,
    /// How often this place may be there in one object, at most.
    count: u64,
    /// Whether a schema above has a default: defaults inside of it are checked with it.
    default: bool,
    /// Whether the value has an identity that outlives a change: no list above is a set or one value.
    is_correlatable: bool,
}

impl Place {
    fn below(self, count: u64, has_default: bool) -> Self {
        Self {
            depth: self.depth + 1,
            is_root: false,
            count: self.count.saturating_mul(count),
            default: self.default || has_default,
            is_correlatable: self.is_correlatable,
        }
    }

    /// The place of an element of a list.
    fn element(mut self, list_type: ListType) -> Self {
        self.is_correlatable &= list_type == ListType::Map;
        self
    }
}

#[derive(Default)]
struct Parser {
    errors: Errors,
    nodes: usize,
    /// Compiled patterns: schemas repeat the same few (quantities, names) at many places.
    patterns: BTreeMap<String, Regex>,
    estimates: Estimates,
}

impl Parser {
    /// Counts a place; false when there are too many or they are too deep.
    fn enter(&mut self, path: &Path, depth: usize) -> bool {
        self.nodes += 1;
        if depth > MAX_DEPTH {
            self.errors.forbidden(path, format!("must not be nested deeper than {MAX_DEPTH} levels"));
        }
        depth <= MAX_DEPTH && self.nodes <= MAX_NODES
    }

    /// A schema that shapes a value.
    fn node(&mut self, schema: &Value, path: &Path, place: Place) -> Node {
        if !self.enter(path, place.depth) {
            return Node::default();
        }
        if !schema.is_object() {
            self.errors.invalid(path, schema.clone(), "must be a schema object");
            return Node::default();
        }
        self.unsupported(schema, path);
        let mut node = Node {
            type_: self.type_(schema, path),
            nullable: is_true(schema, "nullable"),
            int_or_string: is_true(schema, "x-kubernetes-int-or-string"),
            preserve_unknown: is_true(schema, "x-kubernetes-preserve-unknown-fields"),
            embedded_resource: is_true(schema, "x-kubernetes-embedded-resource"),
            list_map_keys: strings(&schema["x-kubernetes-list-map-keys"]),
            default: schema.get("default").cloned(),
            ..Node::default()
        };
        node.list_type = self.list_type(schema, path);
        node.map_atomic = self.map_atomic(schema, path);
        self.children(schema, path, place, &mut node);
        node.checks = self.checks(schema, path, place.depth, node.int_or_string);
        self.extension_rules(schema, path, place, &node);
        self.judges_known_fields(&node, path);
        self.list_rules(&node, path);
        self.rules(schema, path, place, &mut node);
        self.default_holds(path, place, &node);
        node
    }

    fn unsupported(&mut self, schema: &Value, path: &Path) {
        for keyword in UNSUPPORTED {
            if schema.get(keyword).is_some_and(|value| !is_nothing(value)) {
                self.errors.forbidden(&path.child(keyword), format!("{keyword} is not supported"));
            }
        }
        if is_true(schema, "uniqueItems") {
            self.errors.forbidden(
                &path.child("uniqueItems"),
                "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
            );
        }
    }

    fn type_(&mut self, schema: &Value, path: &Path) -> NodeType {
        match schema["type"].as_str().unwrap_or_default() {
            "" => NodeType::Any,
            "object" => NodeType::Object,
            "array" => NodeType::Array,
            "string" => NodeType::String,
            "integer" => NodeType::Integer,
            "number" => NodeType::Number,
            "boolean" => NodeType::Boolean,
            "null" => {
                let path = path.child("type");
                self.errors.forbidden(&path, "type cannot be set to null, use nullable as an alternative");
                NodeType::Any
            }
            other => {
                let supported = ["array", "boolean", "integer", "number", "object", "string"];
                self.errors.not_supported(&path.child("type"), other, &supported);
                NodeType::Any
            }
        }
    }

    fn list_type(&mut self, schema: &Value, path: &Path) -> ListType {
        match schema["x-kubernetes-list-type"].as_str() {
            None | Some("atomic") => ListType::Atomic,
            Some("set") => ListType::Set,
            Some("map") => ListType::Map,
            Some(other) => {
                let path = path.child("x-kubernetes-list-type");
                self.errors.not_supported(&path, other, &["atomic", "map", "set"]);
                ListType::Atomic
            }
        }
    }

    fn map_atomic(&mut self, schema: &Value, path: &Path) -> bool {
        match schema["x-kubernetes-map-type"].as_str() {
            None | Some("granular") => false,
            Some("atomic") => true,
            Some(other) => {
                let path = path.child("x-kubernetes-map-type");
                self.errors.not_supported(&path, other, &["atomic", "granular"]);
                false
            }
        }
    }

    fn children(&mut self, schema: &Value, path: &Path, place: Place, node: &mut Node) {
        let has_default = node.default.is_some();
        if let Some(properties) = schema["properties"].as_object() {
            for (name, child) in properties {
                let at = path.child("properties").key(name);
                let child = self.node(child, &at, place.below(1, has_default));
                node.properties.insert(name.clone(), child);
            }
        }
        match schema.get("additionalProperties") {
            None | Some(Value::Null) => {}
            Some(Value::Bool(true)) => {
                node.additional = Additional::Anything;
                node.most_elements = Estimates::most_values(schema, &Value::Null);
            }
            Some(Value::Bool(false)) => self.errors.forbidden(
                &path.child("additionalProperties"),
                "additionalProperties cannot be set to false",
            ),
            Some(child) => {
                let count = Estimates::most_values(schema, child);
                node.most_elements = count;
                let at = path.child("additionalProperties");
                let child = self.node(child, &at, place.below(count, has_default));
                node.additional = Additional::Schema(Box::new(child));
            }
        }
        match schema.get("items") {
            None | Some(Value::Null) => {}
            Some(Value::Array(_)) => {
                self.errors.forbidden(&path.child("items"), "items must be a schema object and not an array")
            }
            Some(child) => {
                let count = Estimates::most_items(schema, child);
                node.most_elements = count;
                let place = place.below(count, has_default).element(node.list_type);
                let child = self.node(child, &path.child("items"), place);
                node.items = Some(Box::new(child));
            }
        }
        if !node.properties.is_empty() && !matches!(node.additional, Additional::None) {
            self.errors.forbidden(
                &path.child("additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            );
        }
    }

    /// The keywords that judge; those of `allOf` and its kin are read here too.
    fn checks(&mut self, schema: &Value, path: &Path, depth: usize, int_or_string: bool) -> Checks {
        let number = |name: &str| schema[name].as_number().cloned();
        let mut bound = |name: &str| {
            let value = &schema[name];
            if value.as_i64().is_some_and(|n| n < 0) {
                let at = path.child(name);
                self.errors.invalid(&at, value.clone(), "must be greater than or equal to 0");
            }
            value.as_u64()
        };
        let mut checks = Checks {
            format: schema["format"].as_str().map(str::to_owned),
            choices: schema["enum"].as_array().cloned().unwrap_or_default(),
            minimum: number("minimum"),
            exclusive_minimum: is_true(schema, "exclusiveMinimum"),
            maximum: number("maximum"),
            exclusive_maximum: is_true(schema, "exclusiveMaximum"),
            multiple_of: number("multipleOf").filter(|n| n.as_f64().is_some_and(|n| n != 0.0)),
            min_length: bound("minLength"),
            max_length: bound("maxLength"),
            min_items: bound("minItems"),
            max_items: bound("maxItems"),
            min_properties: bound("minProperties"),
            max_properties: bound("maxProperties"),
            required: strings(&schema["required"]),
            ..Checks::default()
        };
        if let Some(text) = schema["pattern"].as_str().filter(|text| !text.is_empty()) {
            match self.pattern(text) {
                Ok(regex) => checks.pattern = Some(Pattern { text: text.to_owned(), regex }),
                Err(error) => self.errors.invalid(
                    &path.child("pattern"),
                    text,
                    format!("must be a valid regular expression, but isn't: {error}"),
                ),
            }
        }
        checks.all_of = self.nested_list(schema, path, "allOf", depth, int_or_string);
        checks.any_of = self.nested_list(schema, path, "anyOf", depth, int_or_string);
        checks.one_of = self.nested_list(schema, path, "oneOf", depth, false);
        if schema["not"].is_object() {
            checks.not =
                Some(Box::new(self.nested(&schema["not"], &path.child("not"), depth + 1, Types::None)));
        }
        checks
    }

    fn pattern(&mut self, text: &str) -> Result<Regex, String> {
        if let Some(regex) = self.patterns.get(text) {
            return Ok(regex.clone());
        }
        if self.patterns.len() >= MAX_PATTERNS {
            return Err(format!("a schema may not have more than {MAX_PATTERNS} different ones"));
        }
        let regex = pattern::compile(text)?;
        self.patterns.insert(text.to_owned(), regex.clone());
        Ok(regex)
    }

    fn nested_list(
        &mut self,
        schema: &Value,
        path: &Path,
        keyword: &str,
        depth: usize,
        int_or_string: bool,
    ) -> Vec<Node> {
        let mut out = Vec::new();
        for (index, nested) in schema[keyword].as_array().into_iter().flatten().enumerate() {
            // `x-kubernetes-int-or-string` may repeat its types in `anyOf`, or in the `anyOf` of the first `allOf`.
            let types = match keyword {
                "anyOf" if int_or_string => Types::Here,
                "allOf" if int_or_string && index == 0 => Types::Below,
                _ => Types::None,
            };
            out.push(self.nested(nested, &path.child(keyword).index(index), depth + 1, types));
        }
        out
    }

    /// A schema that only judges.
    fn nested(&mut self, schema: &Value, path: &Path, depth: usize, types: Types) -> Node {
        if !self.enter(path, depth) {
            return Node::default();
        }
        self.unsupported(schema, path);
        for keyword in SHAPING {
            if schema.get(keyword).is_some_and(|value| !is_nothing(value) || keyword == "default") {
                self.errors.forbidden(&path.child(keyword), not_structural(keyword));
            }
        }
        let type_ = self.type_(schema, path);
        if type_ != NodeType::Any && types != Types::Here {
            self.errors.forbidden(&path.child("type"), not_structural("type"));
        }
        let mut node = Node { type_, ..Node::default() };
        if let Some(properties) = schema["properties"].as_object() {
            for (name, child) in properties {
                let at = path.child("properties").key(name);
                let child = self.nested(child, &at, depth + 1, Types::None);
                node.properties.insert(name.clone(), child);
            }
        }
        if schema["items"].is_object() {
            let child = self.nested(&schema["items"], &path.child("items"), depth + 1, Types::None);
            node.items = Some(Box::new(child));
        }
        // What stands below an `additionalProperties` here is forbidden above.
        node.additional = Additional::Anything;
        node.checks = self.checks(schema, path, depth, types == Types::Below);
        node
    }

    fn extension_rules(&mut self, schema: &Value, path: &Path, place: Place, node: &Node) {
        let errors = &mut self.errors;
        let type_path = path.child("type");
        let type_ = node.type_;
        if schema["x-kubernetes-preserve-unknown-fields"].as_bool() == Some(false) {
            let at = path.child("x-kubernetes-preserve-unknown-fields");
            errors.invalid(&at, false, "must be true or undefined");
        }
        if node.int_or_string && type_ != NodeType::Any {
            let detail = "must be empty if x-kubernetes-int-or-string is specified";
            errors.invalid(&type_path, type_.as_str(), detail);
        }
        let free = node.int_or_string || node.preserve_unknown;
        if type_ == NodeType::Any && !free && schema["type"].as_str().unwrap_or_default().is_empty() {
            let what = match place.is_root {
                true => "must not be empty at the root",
                false if path.to_string().ends_with(".items") => {
                    "must not be empty for specified array items"
                }
                false => "must not be empty for specified object fields",
            };
            errors.required(&type_path, what);
        }
        if place.is_root && !matches!(type_, NodeType::Any | NodeType::Object) {
            errors.invalid(&type_path, type_.as_str(), "must be object at the root");
        }
        if type_ == NodeType::Array && node.items.is_none() {
            errors.required(&path.child("items"), "must be specified");
        }
        if node.embedded_resource {
            if type_ != NodeType::Object {
                let detail = "must be object if x-kubernetes-embedded-resource is true";
                errors.invalid(&type_path, type_.as_str(), detail);
            }
            if !node.preserve_unknown && node.properties.is_empty() {
                errors.required(
                    &path.child("properties"),
                    "must not be empty if x-kubernetes-embedded-resource is true without \
                     x-kubernetes-preserve-unknown-fields",
                );
            }
        }
        if schema["x-kubernetes-map-type"].is_string() && type_ != NodeType::Object {
            let detail = "must be object if x-kubernetes-map-type is specified";
            errors.invalid(&type_path, type_.as_str(), detail);
        }
        if schema["x-kubernetes-list-type"].is_string() && type_ != NodeType::Array {
            let detail = "must be array if x-kubernetes-list-type is specified";
            errors.invalid(&type_path, type_.as_str(), detail);
        }
        if node.embedded_resource || place.is_root {
            self.object_field_rules(schema, path);
        }
    }

    /// `metadata` has a schema of its own, to which a definition may add rules for the name only.
    fn object_field_rules(&mut self, schema: &Value, path: &Path) {
        let path = path.child("properties");
        let Some(properties) = schema["properties"].as_object() else { return };
        for name in ["apiVersion", "kind"] {
            if let Some(type_) = properties.get(name).and_then(|field| field["type"].as_str())
                && type_ != "string"
            {
                self.errors.invalid(&path.key(name).child("type"), type_, "must be string");
            }
        }
        let Some(metadata) = properties.get("metadata") else { return };
        let path = path.key("metadata");
        if metadata["type"].as_str().is_some_and(|type_| type_ != "object") {
            self.errors.invalid(&path.child("type"), metadata["type"].clone(), "must be object");
        }
        let only_names = metadata["properties"]
            .as_object()
            .into_iter()
            .flatten()
            .all(|(name, _)| matches!(name.as_str(), "name" | "generateName"));
        let only_properties = metadata
            .as_object()
            .into_iter()
            .flatten()
            .all(|(keyword, _)| matches!(keyword.as_str(), "type" | "properties" | "description"));
        if !only_names || !only_properties {
            self.errors.forbidden(
                &path,
                "must not specify anything other than name and generateName, but metadata is implicitly \
                 specified",
            );
        }
    }

    fn root_rules(&mut self, schema: &Value, node: &Node, path: &Path) {
        if node.nullable {
            self.errors.forbidden(&path.child("nullable"), "nullable cannot be true at the root");
        }
        if schema.get("default").is_some() && !node.properties.is_empty() {
            // Kubernetes only allows defaults of fields.
            self.errors.forbidden(&path.child("default"), "must not be set at the root");
        }
    }

    /// A field that is judged must also be known, or pruning would remove what is judged.
    fn judges_known_fields(&mut self, node: &Node, path: &Path) {
        let checks = &node.checks;
        let lists = [("allOf", &checks.all_of), ("anyOf", &checks.any_of), ("oneOf", &checks.one_of)];
        for (keyword, list) in lists {
            for (index, nested) in list.iter().enumerate() {
                self.covered(node, nested, path, &path.child(keyword).index(index));
            }
        }
        if let Some(nested) = &checks.not {
            self.covered(node, nested, path, &path.child("not"));
        }
    }

    fn covered(&mut self, core: &Node, nested: &Node, core_path: &Path, nested_path: &Path) {
        for (name, child) in &nested.properties {
            let at = nested_path.child("properties").key(name);
            let core_at = core_path.child("properties").key(name);
            match core.field(name) {
                Some(core) => self.covered(core, child, &core_at, &at),
                // A field of every object is known without being named.
                None if OBJECT_FIELDS.contains(&name.as_str()) => {}
                None => self.errors.required(&core_at, format!("because it is defined in {at}")),
            }
        }
        if let Some(child) = &nested.items {
            let (at, core_at) = (nested_path.child("items"), core_path.child("items"));
            match core.items() {
                Some(core) => self.covered(core, child, &core_at, &at),
                None => self.errors.required(&core_at, format!("because it is defined in {at}")),
            }
        }
        let checks = &nested.checks;
        let all =
            checks.all_of.iter().chain(&checks.any_of).chain(&checks.one_of).chain(checks.not.as_deref());
        for deeper in all {
            self.covered(core, deeper, core_path, nested_path);
        }
    }

    fn list_rules(&mut self, node: &Node, path: &Path) {
        let keys = &node.list_map_keys;
        let keys_path = path.child("x-kubernetes-list-map-keys");
        if node.list_type == ListType::Map {
            if keys.is_empty() {
                self.errors.required(&keys_path, "must not be empty if x-kubernetes-list-type is map");
            }
            if let Some(items) = node.items() {
                self.map_items(items, keys, path);
            }
        } else if !keys.is_empty() {
            let at = path.child("x-kubernetes-list-type");
            let found = if node.list_type == ListType::Set { "set" } else { "atomic" };
            self.errors.invalid(&at, found, "must be map if x-kubernetes-list-map-keys is non-empty");
        }
        for (index, key) in keys.iter().enumerate() {
            if keys[..index].contains(key) {
                self.errors.duplicate(&keys_path.index(index), key.as_str());
            }
        }
        if node.list_type == ListType::Set
            && let Some(items) = node.items()
        {
            self.set_items(items, path);
        }
    }

    fn map_items(&mut self, items: &Node, keys: &[String], path: &Path) {
        let path = path.child("items");
        if items.type_ != NodeType::Object {
            let detail = "must be object if parent array's x-kubernetes-list-type is map";
            self.errors.invalid(&path.child("type"), items.type_.as_str(), detail);
            return;
        }
        if items.nullable {
            self.errors.forbidden(&path.child("nullable"), NULLABLE_ITEMS);
        }
        for key in keys {
            let at = path.child("properties").key(key);
            let Some(property) = items.property(key) else {
                let detail = "must be defined in properties if it is listed in x-kubernetes-list-map-keys";
                self.errors.required(&at, detail);
                continue;
            };
            if matches!(property.type_, NodeType::Object | NodeType::Array) {
                let detail = "must be a scalar type if parent array's x-kubernetes-list-type is map";
                self.errors.invalid(&at.child("type"), property.type_.as_str(), detail);
            }
            if property.nullable {
                self.errors.forbidden(&at.child("nullable"), NULLABLE_ITEMS);
            }
            if property.default.is_none() && !items.checks.required.contains(key) {
                self.errors.required(
                    &at.child("default"),
                    "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required \
                     property",
                );
            }
        }
    }

    fn set_items(&mut self, items: &Node, path: &Path) {
        let path = path.child("items");
        if items.nullable {
            self.errors.forbidden(&path.child("nullable"), NULLABLE_ITEMS);
        }
        match items.type_ {
            NodeType::Object if !items.map_atomic => self.errors.invalid(
                &path.child("x-kubernetes-map-type"),
                "granular",
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            ),
            NodeType::Array if items.list_type != ListType::Atomic => self.errors.invalid(
                &path.child("x-kubernetes-list-type"),
                if items.list_type == ListType::Set { "set" } else { "map" },
                "must be atomic as item of a list with x-kubernetes-list-type=set",
            ),
            _ => {}
        }
    }

    fn rules(&mut self, schema: &Value, path: &Path, place: Place, node: &mut Node) {
        let raw = schema["x-kubernetes-validations"].as_array().map_or(&[][..], Vec::as_slice);
        let context = rules::Place {
            path,
            is_root: place.is_root,
            count: place.count,
            is_correlatable: place.is_correlatable,
        };
        let compiled = rules::compile(node, raw, &context, &mut self.estimates, &mut self.errors);
        node.rules = compiled;
        let additional = match &node.additional {
            Additional::Schema(node) => Some(&**node),
            Additional::None | Additional::Anything => None,
        };
        let below = node.properties.values().chain(node.items.as_deref()).chain(additional);
        node.has_rules = !node.rules.is_empty() || below.into_iter().any(|child| child.has_rules);
    }

    /// A default must be what an object may hold: known, and valid.
    fn default_holds(&mut self, path: &Path, place: Place, node: &Node) {
        let Some(default) = &node.default else { return };
        let path = path.child("default");
        if default.is_null() && node.nullable {
            return;
        }
        let mut pruned = default.clone();
        if prune::prune_value(node, &mut pruned) {
            self.errors.invalid(&path, default.clone(), "must not have unknown fields");
            return;
        }
        // A default that stands inside another one is completed with it.
        let mut complete = default.clone();
        prune::default(node, &mut complete, false);
        let mut problems = validate::validate(node, &complete, None);
        if problems.is_empty() && !place.default {
            problems = rules::validate(node, &complete, None);
        }
        for problem in problems.0 {
            let at = if problem.field.is_empty() || problem.field == "<nil>" {
                path.clone()
            } else {
                path.child(&problem.field)
            };
            self.errors.invalid(&at, default.clone(), problem.message());
        }
    }
}

const NULLABLE_ITEMS: &str =
    "cannot be nullable when x-kubernetes-list-type is map or set, or when it is a key of such a list";

/// Where a judging schema may name types.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Types {
    None,
    Here,
    Below,
}

fn not_structural(keyword: &str) -> &'static str {
    match keyword {
        "additionalProperties" | "default" => "must be undefined to be structural",
        "nullable" => "must be false to be structural",
        keyword if keyword.starts_with("x-kubernetes-list") || keyword.starts_with("x-kubernetes-map") => {
            "must be undefined to be structural"
        }
        keyword if keyword.starts_with("x-kubernetes-") && keyword != "x-kubernetes-validations" => {
            "must be false to be structural"
        }
        _ => "must be empty to be structural",
    }
}

fn is_true(schema: &Value, keyword: &str) -> bool {
    schema[keyword].as_bool().unwrap_or(false)
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}
