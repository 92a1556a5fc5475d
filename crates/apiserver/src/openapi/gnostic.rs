//! OpenAPI version 2 in the protobuf form of gnostic.
//!
//! client-go's discovery reads version 2 in this form only: kubectl asks here which options a patch takes when it does
//! not find a kind in version 3, and Helm and older kubectl check manifests with the definitions. So the document has
//! the schemas, and for each kind the patch of an object; other operations nobody reads from here. Field numbers are
//! those of gnostic's `OpenAPIv2.proto`.

use sampan_api::registry::Kind;
use serde_json::Value;

use super::descriptions::Descriptions;
use super::operations::WRITE_PARAMETERS;
use super::schemas::Schemas;
use super::{Dialect, gvk};
use crate::respond::{self, ApiResponse};

/// What clients ask for.
pub(super) const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// What the answer says: '@' is not allowed in a media type, and clients that parse it stumble.
const ANSWERED_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The document.
pub(super) fn answer(kinds: &[&Kind]) -> ApiResponse {
    let descriptions = Descriptions::unpack();
    let info = [text(1, "Kubernetes"), text(2, sampan_api::schema::version())].concat();
    let paths: Vec<u8> =
        kinds.iter().filter(|kind| kind.stored()).flat_map(|kind| message(2, &path(kind))).collect();
    let definitions: Vec<u8> = Schemas::new(kinds, Dialect::V2, &descriptions)
        .flat_map(|(name, value)| message(1, &named_schema(&name, &value)))
        .collect();
    let document = [text(1, "2.0"), message(2, &info), message(8, &paths), message(9, &definitions)].concat();
    respond::bytes_of(ANSWERED_TYPE, document)
}

/// `NamedPathItem` of a kind's objects, with a patch operation.
fn path(kind: &Kind) -> Vec<u8> {
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let scope = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
    let name = format!("{root}/{}{scope}/{}/{{name}}", kind.version, kind.plural);
    let parameters: Vec<u8> =
        WRITE_PARAMETERS.iter().flat_map(|parameter| message(8, &query_parameter(parameter))).collect();
    let extension = message(13, &named_any("x-kubernetes-group-version-kind", &gvk(kind)));
    let operation = [parameters, extension].concat();
    [text(1, &name), message(2, &message(8, &operation))].concat()
}

/// `ParametersItem` › `Parameter` › `NonBodyParameter` › `QueryParameterSubSchema`.
fn query_parameter(name: &str) -> Vec<u8> {
    let schema = [text(2, "query"), text(4, name), text(6, "string")].concat();
    message(1, &message(2, &message(3, &schema)))
}

fn named_schema(name: &str, value: &Value) -> Vec<u8> {
    [text(1, name), message(2, &schema(value))].concat()
}

/// `Schema` of what [`Schemas`] makes for version 2.
fn schema(value: &Value) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, key) in [(1, "$ref"), (2, "format"), (4, "description")] {
        if let Some(value) = value[key].as_str() {
            out.extend(text(number, value));
        }
    }
    for required in value["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        out.extend(text(19, required));
    }
    if let Some(entry) = value.get("additionalProperties") {
        out.extend(message(21, &message(1, &schema(entry))));
    }
    if let Some(type_) = value["type"].as_str() {
        out.extend(message(22, &text(1, type_)));
    }
    if let Some(items) = value.get("items") {
        out.extend(message(23, &message(1, &schema(items))));
    }
    if let Some(properties) = value["properties"].as_object() {
        let properties: Vec<u8> =
            properties.iter().flat_map(|(name, value)| message(1, &named_schema(name, value))).collect();
        out.extend(message(25, &properties));
    }
    for (name, value) in value.as_object().into_iter().flatten().filter(|(name, _)| name.starts_with("x-")) {
        out.extend(message(31, &named_any(name, value)));
    }
    out
}

/// An extension, a `NamedAny` in YAML; JSON is YAML.
fn named_any(name: &str, value: &Value) -> Vec<u8> {
    [text(1, name), message(2, &text(2, &format!("{value}\n")))].concat()
}

fn text(number: u8, value: &str) -> Vec<u8> {
    message(number, value.as_bytes())
}

/// A field of wire type 2: tag, length, bytes.
fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len() + 8);
    varint(&mut out, usize::from(number) << 3 | 2);
    varint(&mut out, bytes.len());
    out.extend_from_slice(bytes);
    out
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tags_and_lengths_are_varints() {
        assert_eq!(text(1, "ab"), [10, 2, b'a', b'b']);
        let long = message(13, &[0; 300]);
        assert_eq!((&long[..3], long.len()), (&[106, 0xac, 2][..], 303));
        assert_eq!(text(31, "")[..], [0xfa, 1, 0]);
    }

    #[test]
    fn a_schema() {
        let bytes = schema(&json!({"type": "array", "items": {"type": "string"}, "x-a": 1}));
        let type_ = |name: &str| message(22, &text(1, name));
        let expected = [
            type_("array"),
            message(23, &message(1, &type_("string"))),
            message(31, &[text(1, "x-a"), message(2, &text(2, "1\n"))].concat()),
        ]
        .concat();
        assert_eq!(bytes, expected);
    }
}
