//! OpenAPI documents, made from the table of types when somebody asks and forgotten afterwards.
//!
//! kubectl reads version 3 for `explain` and to learn which options a verb takes; version 2 is for older clients.

use std::collections::BTreeSet;

use http::StatusCode;
use http::header::{ACCEPT, HeaderMap};
use sampan_api::registry::{Kind, Registry};
use sampan_api::schema::{Field, FieldType, ListType, Types};
use serde_json::{Map, Value, json};

use crate::error::ApiError;
use crate::respond::{self, ApiResponse};

mod gnostic;

/// Where schemas stand in a document.
#[derive(Clone, Copy)]
enum Dialect {
    V2,
    V3,
}

impl Dialect {
    fn reference(self, name: &str) -> Value {
        match self {
            Self::V2 => json!({"$ref": format!("#/definitions/{name}")}),
            // A reference beside other keys must be wrapped in version 3.0.
            Self::V3 => json!({"allOf": [{"$ref": format!("#/components/schemas/{name}")}]}),
        }
    }
}

/// `/openapi/v2`.
pub(crate) fn v2(registry: &Registry, headers: &HeaderMap) -> ApiResponse {
    let accept = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("*/*");
    if accept.contains(gnostic::MEDIA_TYPE) {
        return gnostic::answer(registry);
    }
    if !accept.contains("json") && !accept.contains("*/*") {
        let error =
            ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", "only application/json is served");
        return respond::error(&error);
    }
    let kinds: Vec<&Kind> = registry.kinds().iter().map(|k| &**k).collect();
    let document = json!({
        "swagger": "2.0",
        "info": {"title": "Kubernetes", "version": sampan_api::schema::version()},
        "paths": paths(&kinds, Dialect::V2),
        "definitions": schemas(&kinds, Dialect::V2),
    });
    respond::json_value(StatusCode::OK, &document)
}

/// `/openapi/v3` and below.
pub(crate) fn v3(registry: &Registry, rest: &[&str]) -> Result<ApiResponse, ApiError> {
    let (group, version) = match rest {
        [] => return Ok(respond::json_value(StatusCode::OK, &index(registry))),
        ["api", version] => ("", *version),
        ["apis", group, version] => (*group, *version),
        _ => return Err(ApiError::no_such_path()),
    };
    let kinds: Vec<&Kind> = registry.of_version(group, version).map(|k| &**k).collect();
    if kinds.is_empty() {
        return Err(ApiError::no_such_path());
    }
    let document = json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": sampan_api::schema::version()},
        "paths": paths(&kinds, Dialect::V3),
        "components": {"schemas": schemas(&kinds, Dialect::V3)},
    });
    Ok(respond::json_value(StatusCode::OK, &document))
}

fn index(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for group in registry.groups() {
        for version in &group.versions {
            let path = if group.name.is_empty() {
                format!("api/{version}")
            } else {
                format!("apis/{}/{version}", group.name)
            };
            // Built-in schemas change with the program only.
            let hash = format!("{}-{}", sampan_api::schema::version(), env!("CARGO_PKG_VERSION"));
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({"serverRelativeURL": url}));
        }
    }
    json!({"paths": paths})
}

fn gvk(kind: &Kind) -> Value {
    json!({"group": kind.group, "version": kind.version, "kind": kind.kind})
}

/// Query parameters by verb.
const WRITE_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "pretty"];
const LIST_PARAMETERS: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
    "pretty",
];
const DELETE_PARAMETERS: &[&str] =
    &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy", "pretty"];

fn parameters(names: &[&str], dialect: Dialect) -> Vec<Value> {
    names
        .iter()
        .map(|name| {
            let type_ = match *name {
                "limit" | "timeoutSeconds" | "gracePeriodSeconds" => "integer",
                "watch" | "allowWatchBookmarks" | "sendInitialEvents" | "orphanDependents" => "boolean",
                _ => "string",
            };
            match dialect {
                Dialect::V2 => json!({"name": name, "in": "query", "type": type_, "uniqueItems": true}),
                Dialect::V3 => {
                    json!({"name": name, "in": "query", "schema": {"type": type_, "uniqueItems": true}})
                }
            }
        })
        .collect()
}

fn operation(kind: &Kind, action: &str, names: &[&str], dialect: Dialect) -> Value {
    let schema = dialect.reference(&kind.schema_name());
    let response = match dialect {
        Dialect::V2 => json!({"description": "OK", "schema": schema}),
        Dialect::V3 => json!({"description": "OK", "content": {"application/json": {"schema": schema}}}),
    };
    json!({
        "operationId": format!("{action}{}", kind.kind),
        "parameters": parameters(names, dialect),
        "responses": {"200": response},
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": gvk(kind),
    })
}

fn paths(kinds: &[&Kind], dialect: Dialect) -> Value {
    let mut paths = Map::new();
    for kind in kinds {
        let root = if kind.group.is_empty() {
            format!("/api/{}", kind.version)
        } else {
            format!("/apis/{}/{}", kind.group, kind.version)
        };
        let scope = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
        let collection = format!("{root}{scope}/{}", kind.plural);
        let mut verbs = Map::new();
        verbs.insert("post".into(), operation(kind, "post", WRITE_PARAMETERS, dialect));
        if kind.stored() {
            verbs.insert("get".into(), operation(kind, "list", LIST_PARAMETERS, dialect));
            verbs.insert("delete".into(), operation(kind, "deletecollection", DELETE_PARAMETERS, dialect));
            let patch: Vec<&str> = WRITE_PARAMETERS.iter().copied().chain(["force"]).collect();
            paths.insert(
                format!("{collection}/{{name}}"),
                json!({
                    "get": operation(kind, "get", &["pretty"], dialect),
                    "put": operation(kind, "put", WRITE_PARAMETERS, dialect),
                    "patch": operation(kind, "patch", &patch, dialect),
                    "delete": operation(kind, "delete", DELETE_PARAMETERS, dialect),
                }),
            );
            if kind.namespaced() {
                paths.insert(
                    format!("{root}/{}", kind.plural),
                    json!({"get": operation(kind, "list", LIST_PARAMETERS, dialect)}),
                );
            }
        }
        paths.insert(collection, Value::Object(verbs));
    }
    Value::Object(paths)
}

/// Schemas of kinds, their lists, and everything they refer to.
fn schemas(kinds: &[&Kind], dialect: Dialect) -> Value {
    let mut out = Map::new();
    let mut waiting: Vec<String> = Vec::new();
    for kind in kinds {
        waiting.extend([kind.schema_name().into_owned(), format!("{}List", kind.schema_name())]);
    }
    waiting.push("io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions".to_owned());
    waiting.push("io.k8s.apimachinery.pkg.apis.meta.v1.Status".to_owned());
    let mut seen: BTreeSet<String> = BTreeSet::new();
    while let Some(name) = waiting.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let Some(type_) = Types::get().type_(&name) else { continue };
        let mut properties = Map::new();
        let mut required = Vec::new();
        for field in &type_.fields {
            let mut schema = field_schema(&field.type_, dialect, &mut waiting);
            extensions(field, &mut schema);
            properties.insert(field.name.to_owned(), schema);
            if field.required {
                required.push(field.name);
            }
        }
        let mut schema = json!({"type": "object", "properties": properties});
        if !required.is_empty() {
            schema["required"] = json!(required);
        }
        if type_.atomic {
            schema["x-kubernetes-map-type"] = "atomic".into();
        }
        let of_kind: Vec<Value> = kinds.iter().filter(|k| k.schema_name() == name).map(|k| gvk(k)).collect();
        if !of_kind.is_empty() {
            schema["x-kubernetes-group-version-kind"] = json!(of_kind);
        }
        out.insert(name, schema);
    }
    Value::Object(out)
}

fn field_schema(type_: &FieldType, dialect: Dialect, waiting: &mut Vec<String>) -> Value {
    match type_ {
        FieldType::String | FieldType::Quantity => json!({"type": "string"}),
        FieldType::Bytes => json!({"type": "string", "format": "byte"}),
        FieldType::Boolean => json!({"type": "boolean"}),
        FieldType::Int32 => json!({"type": "integer", "format": "int32"}),
        FieldType::Int64 => json!({"type": "integer", "format": "int64"}),
        FieldType::Double => json!({"type": "number", "format": "double"}),
        FieldType::Time => json!({"type": "string", "format": "date-time"}),
        FieldType::IntOrString => json!({"type": "string", "format": "int-or-string"}),
        FieldType::Any => json!({"x-kubernetes-preserve-unknown-fields": true}),
        FieldType::Object => json!({"type": "object"}),
        FieldType::Struct(name) => {
            waiting.push((*name).to_owned());
            dialect.reference(name)
        }
        FieldType::List(element) => {
            json!({"type": "array", "items": field_schema(element, dialect, waiting)})
        }
        FieldType::Map(entry) => {
            json!({"type": "object", "additionalProperties": field_schema(entry, dialect, waiting)})
        }
    }
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
