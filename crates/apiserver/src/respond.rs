//! How an answer looks: which form the client accepts, and the projections made on demand.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WARNING};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use jiff::Timestamp;
use sampan_api::registry::Kind;
use serde_json::{Value, json};

use crate::error::ApiError;

/// Any failure of a body stream.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of every request and answer.
pub type ApiBody = UnsyncBoxBody<Bytes, BodyError>;
/// A body could not be read to its end. A type of its own, because hyper's client wants to turn errors into boxed ones
/// of any lifetime, which a boxed error itself cannot promise.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the body")]
pub struct BodyError(#[source] BoxError);

impl BodyError {
    /// Wraps the failure of a body.
    pub fn new(error: impl Into<BoxError>) -> Self {
        Self(error.into())
    }
}

/// Every answer.
pub type ApiResponse = Response<ApiBody>;

/// A body of known bytes.
pub(crate) fn full(bytes: impl Into<Bytes>) -> ApiBody {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// The form of an object in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it is.
    Object,
    /// `meta.k8s.io/v1.Table`, for `kubectl get`.
    Table,
    /// `meta.k8s.io/v1.PartialObjectMetadata`.
    Metadata,
}

/// What the client accepts, best first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) form: Form,
    pub(crate) yaml: bool,
}

/// Finds the first form this server speaks. 406 when there is none, for instance for a client that insists on protobuf.
pub(crate) fn negotiate(headers: &HeaderMap) -> Result<Accepted, ApiError> {
    let mut found_any = false;
    for header in headers.get_all(ACCEPT) {
        for range in header.to_str().unwrap_or_default().split(',').map(str::trim).filter(|r| !r.is_empty()) {
            found_any = true;
            let mut parts = range.split(';').map(str::trim);
            let yaml = match parts.next().unwrap_or_default() {
                "application/json" | "*/*" | "application/*" => false,
                "application/yaml" | "application/x-yaml" | "text/yaml" => true,
                _ => continue,
            };
            let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
            let parameter = |name: &str| parameters.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
            let form = match parameter("as") {
                None => Form::Object,
                Some("Table") => Form::Table,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Form::Metadata,
                Some(_) => continue,
            };
            return Ok(Accepted { form, yaml });
        }
    }
    if found_any {
        return Err(ApiError::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml",
        ));
    }
    Ok(Accepted { form: Form::Object, yaml: false })
}

/// An answer of JSON bytes.
pub(crate) fn json_bytes(code: StatusCode, bytes: impl Into<Bytes>) -> ApiResponse {
    let mut response = Response::new(full(bytes));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// An answer of bytes of another type.
pub(crate) fn bytes_of(media_type: &'static str, bytes: Vec<u8>) -> ApiResponse {
    let mut response = json_bytes(StatusCode::OK, bytes);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

/// An answer of a JSON value.
pub(crate) fn json_value(code: StatusCode, value: &Value) -> ApiResponse {
    json_bytes(code, value.to_string())
}

/// An answer of plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> ApiResponse {
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An answer of an error.
pub(crate) fn error(error: &ApiError) -> ApiResponse {
    let mut response = json_value(error.code, &error.status());
    if let Some(seconds) = error.details.as_ref().and_then(|d| d["retryAfterSeconds"].as_u64()) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning` headers (RFC 7234, code 299), which kubectl shows.
pub(crate) fn add_warnings(response: &mut ApiResponse, warnings: &[String]) {
    for warning in warnings {
        let text: String =
            warning.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).collect();
        let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
        if let Ok(value) = HeaderValue::from_str(&format!("299 - \"{quoted}\"")) {
            response.headers_mut().append(WARNING, value);
        }
    }
}

/// Turns the JSON of a finished answer into YAML.
pub(crate) fn to_yaml(value: &Value) -> Result<String, ApiError> {
    serde_saphyr::to_string(value).map_err(|e| ApiError::internal(format!("cannot write YAML: {e}")))
}

/// Makes the projections of a kind's objects.
#[derive(Clone)]
pub(crate) struct Projection {
    pub(crate) kind: Arc<Kind>,
    pub(crate) form: Form,
    /// `includeObject` of a table request.
    pub(crate) include: Include,
}

/// What a table row carries of its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Include {
    /// Nothing.
    None,
    /// Its metadata: the default.
    Metadata,
    /// All of it.
    Object,
}

impl Include {
    /// Reads the query parameter.
    pub(crate) fn parse(text: Option<&str>) -> Self {
        match text {
            Some("None") => Self::None,
            Some("Object") => Self::Object,
            _ => Self::Metadata,
        }
    }
}

fn parse(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap_or_default()
}

fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

impl Projection {
    /// One object.
    pub(crate) fn object(&self, bytes: &Bytes) -> Bytes {
        match self.form {
            Form::Object => bytes.clone(),
            Form::Metadata => partial(&parse(bytes)).to_string().into(),
            Form::Table => {
                let object = parse(bytes);
                let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
                self.table(vec![self.row(object)], json!({"resourceVersion": revision}), true)
                    .to_string()
                    .into()
            }
        }
    }

    /// One object of a watch; only the first table of a stream needs its columns.
    pub(crate) fn watched(&self, bytes: &Bytes, first: bool) -> Bytes {
        if self.form != Form::Table {
            return self.object(bytes);
        }
        let object = parse(bytes);
        let revision = object["metadata"]["resourceVersion"].as_str().unwrap_or_default().to_owned();
        self.table(vec![self.row(object)], json!({"resourceVersion": revision}), first).to_string().into()
    }

    /// A list.
    pub(crate) fn list<'a>(&self, items: impl Iterator<Item = &'a Bytes>, metadata: &Value) -> Bytes {
        match self.form {
            Form::Object => {
                let head = format!(
                    "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    self.kind.list_kind,
                    self.kind.api_version()
                );
                let mut out = Vec::with_capacity(64 * 1024);
                out.extend_from_slice(head.as_bytes());
                for (i, item) in items.enumerate() {
                    if i > 0 {
                        out.push(b',');
                    }
                    out.extend_from_slice(item);
                }
                out.extend_from_slice(b"]}");
                out.into()
            }
            Form::Metadata => {
                let items: Vec<Value> = items.map(|bytes| partial(&parse(bytes))).collect();
                json!({
                    "kind": "PartialObjectMetadataList",
                    "apiVersion": "meta.k8s.io/v1",
                    "metadata": metadata,
                    "items": items,
                })
                .to_string()
                .into()
            }
            Form::Table => {
                let rows = items.map(|bytes| self.row(parse(bytes))).collect();
                self.table(rows, metadata.clone(), true).to_string().into()
            }
        }
    }

    fn row(&self, object: Value) -> Value {
        let cells = self.kind.cells(&object, Timestamp::now());
        match self.include {
            Include::None => json!({"cells": cells}),
            Include::Metadata => json!({"cells": cells, "object": partial(&object)}),
            Include::Object => json!({"cells": cells, "object": object}),
        }
    }

    fn table(&self, rows: Vec<Value>, metadata: Value, columns: bool) -> Value {
        let columns: Vec<Value> = self
            .kind
            .columns
            .iter()
            .filter(|_| columns)
            .map(|c| {
                json!({
                    "name": c.name,
                    "type": c.type_,
                    "format": c.format,
                    "description": c.description,
                    "priority": c.priority,
                })
            })
            .collect();
        json!({
            "kind": "Table",
            "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata,
            "columnDefinitions": columns,
            "rows": rows,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negotiation() {
        let check = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a header"));
            negotiate(&headers).map(|a| (a.form, a.yaml)).map_err(|e| e.code.as_u16())
        };
        assert_eq!(check("application/json"), Ok((Form::Object, false)));
        assert_eq!(check("application/vnd.kubernetes.protobuf, application/json"), Ok((Form::Object, false)));
        assert_eq!(
            check("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"),
            Ok((Form::Table, false))
        );
        assert_eq!(check("application/json;as=Nonsense, */*"), Ok((Form::Object, false)));
        assert_eq!(check("application/yaml"), Ok((Form::Object, true)));
        assert_eq!(check("application/cbor"), Err(406));
        assert_eq!(negotiate(&HeaderMap::new()).map(|a| a.form).ok(), Some(Form::Object));
    }
}
