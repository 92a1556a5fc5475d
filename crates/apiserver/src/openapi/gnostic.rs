//! OpenAPI version 2 in the protobuf form of gnostic, as far as kubectl still reads it.
//!
//! For a kind it cannot find in version 3, a typing error for instance, kubectl looks here whether the server checks
//! fields itself. So the document says which options a patch of each kind takes, and nothing more. Field numbers are
//! those of gnostic's `OpenAPIv2.proto`.

use sampan_api::registry::{Kind, Registry};

use super::WRITE_PARAMETERS;
use crate::respond::{self, ApiResponse};

/// What clients ask for.
pub(super) const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// What the answer says: '@' is not allowed in a media type, and clients that parse it stumble.
const ANSWERED_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The document.
pub(super) fn answer(registry: &Registry) -> ApiResponse {
    let info = [text(1, "Kubernetes"), text(2, sampan_api::schema::version())].concat();
    let paths: Vec<u8> = registry
        .kinds()
        .iter()
        .filter(|kind| kind.stored())
        .flat_map(|kind| message(2, &path(kind)))
        .collect();
    let document = [text(1, "2.0"), message(2, &info), message(8, &paths)].concat();
    respond::bytes_of(ANSWERED_TYPE, document)
}

/// `NamedPathItem` of a kind's objects, with a patch operation.
fn path(kind: &Kind) -> Vec<u8> {
    let root = if kind.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", kind.group) };
    let scope = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
    let name = format!("{root}/{}{scope}/{}/{{name}}", kind.version, kind.plural);
    let parameters: Vec<u8> =
        WRITE_PARAMETERS.iter().flat_map(|parameter| message(8, &query_parameter(parameter))).collect();
    let operation = [parameters, message(13, &group_version_kind(kind))].concat();
    [text(1, &name), message(2, &message(8, &operation))].concat()
}

/// `ParametersItem` › `Parameter` › `NonBodyParameter` › `QueryParameterSubSchema`.
fn query_parameter(name: &str) -> Vec<u8> {
    let schema = [text(2, "query"), text(4, name), text(6, "string")].concat();
    message(1, &message(2, &message(3, &schema)))
}

/// The extension `x-kubernetes-group-version-kind`, a `NamedAny` in YAML.
fn group_version_kind(kind: &Kind) -> Vec<u8> {
    let yaml = format!("group: \"{}\"\nkind: {}\nversion: {}\n", kind.group, kind.kind, kind.version);
    [text(1, "x-kubernetes-group-version-kind"), message(2, &text(2, &yaml))].concat()
}

fn text(number: u8, value: &str) -> Vec<u8> {
    message(number, value.as_bytes())
}

/// A field of wire type 2: tag, length, bytes.
fn message(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![number << 3 | 2];
    let mut length = bytes.len();
    while length >= 0x80 {
        out.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.push(length as u8);
    out.extend_from_slice(bytes);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_varints() {
        assert_eq!(text(1, "ab"), [10, 2, b'a', b'b']);
        let long = message(13, &[0; 300]);
        assert_eq!((&long[..3], long.len()), (&[106, 0xac, 2][..], 303));
    }
}
