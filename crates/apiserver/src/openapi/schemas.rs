//! The schemas of a document: the kinds asked for, their lists, and everything these refer to.

use std::collections::BTreeSet;

use sampan_api::defaults;
use sampan_api::enums::Enums;
use sampan_api::registry::Kind;
use sampan_api::schema::{Field, FieldType, ListType, Schema, Type, Types, Union};
use serde_json::{Map, Value, json};

use super::Dialect;
use super::descriptions::Descriptions;
use super::operations;

pub(super) const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
pub(super) const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
pub(super) const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";
pub(super) const WATCH_EVENT: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.WatchEvent";
pub(super) const STATUS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
pub(super) const PATCH: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.Patch";
pub(super) const LIST_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ListMeta";

const OBJECT_META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";
/// A type that has the fields every object has.
const POD: &str = "io.k8s.api.core.v1.Pod";

/// Takes out what version 2 of OpenAPI does not know.
fn drop_newer_keywords(schema: &mut Value) {
    match schema {
        Value::Object(keywords) => {
            keywords.retain(|keyword, _| !["anyOf", "oneOf", "not", "nullable"].contains(&keyword.as_str()));
            keywords.values_mut().for_each(drop_newer_keywords);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_newer_keywords),
        _ => {}
    }
}

/// Hands out schemas one by one, so that a document never exists as a whole tree.
pub(super) struct Schemas<'a> {
    kinds: &'a [&'a Kind],
    dialect: Dialect,
    descriptions: &'a Descriptions,
    enums: Enums,
    waiting: Vec<String>,
    seen: BTreeSet<String>,
}

impl<'a> Schemas<'a> {
    /// Schemas of these kinds.
    pub(super) fn new(kinds: &'a [&'a Kind], dialect: Dialect, descriptions: &'a Descriptions) -> Self {
        let mut waiting: Vec<String> =
            [DELETE_OPTIONS, WATCH_EVENT, STATUS, PATCH].map(str::to_owned).to_vec();
        for kind in kinds {
            waiting.push(kind.schema_name().to_owned());
            if kind.stored() {
                waiting.push(list_name(kind.schema_name()));
            }
            waiting.extend(kind.subresources.iter().filter_map(|s| operations::body_schema(*s)));
        }
        Self { kinds, dialect, descriptions, enums: Enums::read(), waiting, seen: BTreeSet::new() }
    }

    fn schema(&mut self, name: &str) -> Option<Value> {
        let mut schema = match (name, Types::get().type_(name)) {
            (QUANTITY | INT_OR_STRING, _) => self.scalar(name),
            (PATCH, _) => json!({"type": "object"}),
            (_, Some(type_)) => self.structure(type_),
            // Kinds that exist only as rows, and custom resources, have lists all the same.
            (_, None) => self.custom(name).or_else(|| self.list(name))?,
        };
        if let Some(text) = self.descriptions.of_type(name) {
            schema["description"] = text.into();
        }
        let of_kind = self.group_version_kinds(name);
        if !of_kind.is_empty() {
            schema["x-kubernetes-group-version-kind"] = of_kind.into();
        }
        Some(schema)
    }

    fn scalar(&self, name: &str) -> Value {
        let other = if name == QUANTITY { "number" } else { "integer" };
        let mut schema = match self.dialect {
            Dialect::V2 => json!({"type": "string"}),
            Dialect::V3 => json!({"oneOf": [{"type": "string"}, {"type": other}]}),
        };
        if name == INT_OR_STRING {
            schema["format"] = "int-or-string".into();
        }
        schema
    }

    /// The schema of a custom resource: what its definition says, and what every object has.
    fn custom(&mut self, name: &str) -> Option<Value> {
        let kind = self.kinds.iter().find(|kind| kind.schema_name() == name)?;
        let Schema::Custom(custom) = &kind.schema else { return None };
        let mut schema = custom.structural.source().clone();
        if matches!(self.dialect, Dialect::V2) {
            drop_newer_keywords(&mut schema);
        }
        self.waiting.push(OBJECT_META.to_owned());
        for field in ["apiVersion", "kind"] {
            let text = self.descriptions.of_field(POD, field);
            schema["properties"][field] = json!({"type": "string", "description": text});
        }
        schema["properties"]["metadata"] = self.dialect.reference(OBJECT_META);
        Some(schema)
    }

    fn list(&mut self, name: &str) -> Option<Value> {
        let kind = self.kinds.iter().find(|kind| list_name(kind.schema_name()) == name)?;
        self.waiting.push(LIST_META.to_owned());
        let items = self.dialect.reference(kind.schema_name());
        Some(json!({
            "type": "object",
            "required": ["items"],
            "properties": {
                "apiVersion": {"type": "string", "description": self.descriptions.of_field(name, "apiVersion")},
                "kind": {"type": "string", "description": self.descriptions.of_field(name, "kind")},
                "metadata": self.dialect.reference(LIST_META),
                "items": {"type": "array", "items": items, "description": self.descriptions.of_field(name, "items")},
            },
        }))
    }

    fn structure(&mut self, type_: &'static Type) -> Value {
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in &type_.fields {
            let mut schema = self.field(&field.type_);
            if let Some(text) = self.descriptions.of_field(type_.name, field.name) {
                schema["description"] = text.into();
            }
            if let (Dialect::V3, Some(default)) = (self.dialect, defaults::of(type_.name, field.name)) {
                schema["default"] = default.clone();
            }
            extensions(field, &mut schema);
            if let Some(values) = self.enums.of(type_.name, field.name) {
                element(&mut schema)["enum"] = json!(values);
            }
            properties.insert(field.name.to_owned(), schema);
            if field.required {
                required.push(field.name);
            }
        }
        let mut schema = json!({"type": "object"});
        if !properties.is_empty() {
            schema["properties"] = properties.into();
        }
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if type_.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        if !type_.unions.is_empty() {
            schema["x-kubernetes-unions"] = type_.unions.iter().map(union).collect();
        }
        schema
    }

    fn field(&mut self, type_: &FieldType) -> Value {
        match type_ {
            FieldType::String => json!({"type": "string"}),
            FieldType::Quantity => self.refer(QUANTITY),
            FieldType::IntOrString => self.refer(INT_OR_STRING),
            FieldType::Bytes => json!({"type": "string", "format": "byte"}),
            FieldType::Boolean => json!({"type": "boolean"}),
            FieldType::Int32 => json!({"type": "integer", "format": "int32"}),
            FieldType::Int64 => json!({"type": "integer", "format": "int64"}),
            FieldType::Double => json!({"type": "number", "format": "double"}),
            FieldType::Time | FieldType::MicroTime => json!({"type": "string", "format": "date-time"}),
            FieldType::Any => json!({"x-kubernetes-preserve-unknown-fields": true}),
            FieldType::Object => json!({"type": "object"}),
            FieldType::Struct(name) => self.refer(name),
            FieldType::List(element) => json!({"type": "array", "items": self.field(element)}),
            FieldType::Map(entry) => json!({"type": "object", "additionalProperties": self.field(entry)}),
        }
    }

    fn refer(&mut self, name: &str) -> Value {
        self.waiting.push(name.to_owned());
        self.dialect.reference(name)
    }

    /// Which kinds a type is the schema of. Options and events belong to every group that has a kind here.
    fn group_version_kinds(&self, name: &str) -> Vec<Value> {
        let shared = match name {
            DELETE_OPTIONS => Some("DeleteOptions"),
            WATCH_EVENT => Some("WatchEvent"),
            _ => None,
        };
        if let Some(shared) = shared {
            let versions: BTreeSet<(&str, &str)> =
                self.kinds.iter().map(|kind| (&*kind.group, &*kind.version)).collect();
            return versions
                .iter()
                .map(|(group, version)| json!({"group": group, "version": version, "kind": shared}))
                .collect();
        }
        if name == STATUS {
            return vec![json!({"group": "", "version": "v1", "kind": "Status"})];
        }
        let own = self.kinds.iter().filter(|kind| kind.schema_name() == name).map(|kind| super::gvk(kind));
        let lists = self
            .kinds
            .iter()
            .filter(|kind| kind.stored() && list_name(kind.schema_name()) == name)
            .map(|kind| json!({"group": kind.group, "version": kind.version, "kind": &kind.list_kind}));
        own.chain(lists).collect()
    }
}

impl Iterator for Schemas<'_> {
    type Item = (String, Value);
    fn next(&mut self) -> Option<Self::Item> {
        while let Some(name) = self.waiting.pop() {
            if !self.seen.insert(name.clone()) {
                continue;
            }
            if let Some(schema) = self.schema(&name) {
                return Some((name, schema));
            }
        }
        None
    }
}

/// Name of the schema of a kind's list.
pub(super) fn list_name(schema: &str) -> String {
    format!("{schema}List")
}

fn union(union: &Union) -> Value {
    let named: Map<String, Value> =
        union.fields.iter().map(|field| ((*field).to_owned(), capitalised(field).into())).collect();
    let mut out = json!({"fields-to-discriminateBy": named});
    if let Some(discriminator) = union.discriminator {
        out["discriminator"] = discriminator.into();
    }
    out
}

/// The schema of what a list or map holds, or the schema itself.
fn element(schema: &mut Value) -> &mut Value {
    let inner = ["items", "additionalProperties"].into_iter().find(|inner| schema[*inner].is_object());
    match inner {
        Some(inner) => element(&mut schema[inner]),
        None => schema,
    }
}

/// With the first letter as a capital.
pub(super) fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map(|first| first.to_uppercase().chain(characters).collect()).unwrap_or_default()
}

fn extensions(field: &Field, schema: &mut Value) {
    if matches!(field.type_, FieldType::List(_)) {
        let list = match &field.list {
            ListType::Atomic => "atomic",
            ListType::Set => "set",
            ListType::Map(keys) => {
                schema["x-kubernetes-list-map-keys"] = json!(keys);
                "map"
            }
        };
        schema["x-kubernetes-list-type"] = list.into();
    }
    if field.atomic {
        schema["x-kubernetes-map-type"] = "atomic".into();
    }
    let strategies: Vec<&str> = [(field.patch.merge, "merge"), (field.patch.retain_keys, "retainKeys")]
        .iter()
        .filter(|(on, _)| *on)
        .map(|(_, name)| *name)
        .collect();
    if !strategies.is_empty() {
        schema["x-kubernetes-patch-strategy"] = strategies.join(",").into();
    }
    if let Some(key) = field.merge_key {
        schema["x-kubernetes-patch-merge-key"] = key.into();
    }
}
