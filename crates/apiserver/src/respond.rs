//! How an answer looks: which form the client accepts, and the projections made on demand.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, IF_NONE_MATCH, RETRY_AFTER, VARY, WARNING,
};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use jiff::Timestamp;
use sampan_api::kind::Storage;
use sampan_api::registry::Kind;
use serde_json::{Value, json};

use crate::cache;
use crate::error::ApiError;

pub(crate) mod compress;
pub(crate) mod wire;

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

/// How an answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// The form everything has in the store.
    Json,
    /// For people.
    Yaml,
    /// Kubernetes' protobuf, which built-in kinds have besides.
    Protobuf,
}

/// What the client accepts, best first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    pub(crate) form: Form,
    pub(crate) encoding: Encoding,
}

/// In which forms an answer can be had.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    /// Built-in kinds speak protobuf.
    pub(crate) protobuf: bool,
    /// What is kept can be shown as a table or as metadata alone; the answer to a question cannot.
    pub(crate) projections: bool,
}

impl Offer {
    /// Before it is known what is asked for.
    pub(crate) const ALL: Self = Self { protobuf: true, projections: true };

    /// What there is of a kind.
    pub(crate) fn of(kind: &Kind) -> Self {
        Self { protobuf: wire::speaks(kind), projections: kind.storage != Storage::Virtual }
    }
}

/// Finds the first form the server has. 406 when there is none, for instance for a client that insists on CBOR.
pub(crate) fn negotiate(headers: &HeaderMap, offer: Offer) -> Result<Accepted, ApiError> {
    let Offer { protobuf, projections } = offer;
    let mut found_any = false;
    for header in headers.get_all(ACCEPT) {
        for range in header.to_str().unwrap_or_default().split(',').map(str::trim).filter(|r| !r.is_empty()) {
            found_any = true;
            let mut parts = range.split(';').map(str::trim);
            let encoding = match parts.next().unwrap_or_default() {
                "application/json" | "*/*" | "application/*" => Encoding::Json,
                "application/yaml" | "application/x-yaml" | "text/yaml" => Encoding::Yaml,
                wire::MEDIA_TYPE if protobuf => Encoding::Protobuf,
                _ => continue,
            };
            let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
            let parameter = |name: &str| parameters.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
            let form = match parameter("as") {
                None => Form::Object,
                Some(_) if !projections => continue,
                // Rows carry cells of any type, which is more than protobuf can say.
                Some("Table") if encoding != Encoding::Protobuf => Form::Table,
                Some("PartialObjectMetadata" | "PartialObjectMetadataList") => Form::Metadata,
                Some(_) => continue,
            };
            return Ok(Accepted { form, encoding });
        }
    }
    if found_any {
        let types = if protobuf {
            "application/json, application/yaml, application/vnd.kubernetes.protobuf"
        } else {
            "application/json, application/yaml"
        };
        return Err(ApiError::new(
            StatusCode::NOT_ACCEPTABLE,
            "NotAcceptable",
            format!("only the following media types are accepted: {types}"),
        ));
    }
    Ok(Accepted { form: Form::Object, encoding: Encoding::Json })
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

/// A streaming answer that holds something until its stream ends.
pub(crate) fn holding(response: ApiResponse, held: impl Send + 'static) -> ApiResponse {
    response.map(|body| {
        body.map_frame(move |frame| {
            let _held = &held;
            frame
        })
        .boxed_unsync()
    })
}

/// An answer of plain text.
pub(crate) fn text(code: StatusCode, text: impl Into<Bytes>) -> ApiResponse {
    let mut response = Response::new(full(text));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// A short name of some bytes, the same for the same bytes.
pub(crate) fn hash(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02X}")).collect()
}

/// An answer with its hash as `ETag`; for a client that has it already, only that (RFC 9110, 304).
pub(crate) fn unless_known(
    request: &HeaderMap,
    hash: &str,
    answer: impl FnOnce() -> ApiResponse,
) -> ApiResponse {
    let tag = format!("\"{hash}\"");
    let known = request.get_all(IF_NONE_MATCH).iter().filter_map(|v| v.to_str().ok()).any(|tags| {
        tags.split(',').map(|t| t.trim().trim_start_matches("W/")).any(|known| known == "*" || known == tag)
    });
    let mut response = if known {
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        answer()
    };
    // A hash is hexadecimal digits.
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(ETAG, tag);
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

/// An answer of an error, in the encoding the client asked for.
pub(crate) fn error_in(encoding: Encoding, error: &ApiError) -> ApiResponse {
    let wire = (encoding == Encoding::Protobuf).then(|| wire::status(error)).flatten();
    let mut response = match wire {
        Some(bytes) => {
            let mut response = json_bytes(error.code, bytes);
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(wire::MEDIA_TYPE));
            response
        }
        None => json_value(error.code, &error.status()),
    };
    if let Some(seconds) = error.details.as_ref().and_then(|d| d["retryAfterSeconds"].as_u64()) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// An answer of an error.
pub(crate) fn error(error: &ApiError) -> ApiResponse {
    error_in(Encoding::Json, error)
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
    pub(crate) encoding: Encoding,
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

    /// A line or frame of a watch stream around the bytes of a projection.
    pub(crate) fn frame(&self, event_type: &str, bytes: &[u8]) -> Bytes {
        match self.encoding {
            Encoding::Protobuf => wire::frame(&self.kind, event_type, &parse(bytes)),
            _ => cache::frame(event_type, bytes),
        }
    }

    /// A line or frame of a watch stream around a document.
    pub(crate) fn frame_of(&self, event_type: &str, document: &Value) -> Bytes {
        match self.encoding {
            Encoding::Protobuf => wire::frame(&self.kind, event_type, document),
            _ => cache::frame(event_type, document.to_string().as_bytes()),
        }
    }

    /// A list, encoded as the client wants it.
    pub(crate) fn list<'a>(
        &self,
        items: impl Iterator<Item = &'a Bytes> + Clone,
        metadata: &Value,
    ) -> Result<Bytes, ApiError> {
        if self.encoding == Encoding::Protobuf {
            return wire::list(&self.kind, self.form, items, metadata);
        }
        Ok(self.json_list(items, metadata))
    }

    fn json_list<'a>(&self, items: impl Iterator<Item = &'a Bytes> + Clone, metadata: &Value) -> Bytes {
        match self.form {
            Form::Object => {
                let head = format!(
                    "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                    self.kind.list_kind,
                    self.kind.api_version()
                );
                // One allocation of the right size: growing would copy a large list several times.
                let total: usize = items.clone().map(|item| item.len() + 1).sum();
                let mut out = Vec::with_capacity(head.len() + total + 2);
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
        let check = |accept: &str, protobuf: bool| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a header"));
            negotiate(&headers, Offer { protobuf, ..Offer::ALL })
                .map(|a| (a.form, a.encoding))
                .map_err(|e| e.code.as_u16())
        };
        use Encoding::{Json, Protobuf, Yaml};
        let both = "application/vnd.kubernetes.protobuf, application/json";
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        let wire_table = "application/vnd.kubernetes.protobuf;as=Table;v=v1;g=meta.k8s.io,application/json";
        let wire_metadata =
            "application/vnd.kubernetes.protobuf;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
        let rows = [
            ("application/json", true, Ok((Form::Object, Json))),
            (both, true, Ok((Form::Object, Protobuf))),
            (both, false, Ok((Form::Object, Json))),
            ("application/vnd.kubernetes.protobuf", false, Err(406)),
            ("application/vnd.kubernetes.protobuf;stream=watch", true, Ok((Form::Object, Protobuf))),
            (table, true, Ok((Form::Table, Json))),
            (wire_table, true, Ok((Form::Object, Json))),
            (wire_metadata, true, Ok((Form::Metadata, Protobuf))),
            ("application/json;as=Nonsense, */*", true, Ok((Form::Object, Json))),
            ("application/yaml", true, Ok((Form::Object, Yaml))),
            ("application/cbor", true, Err(406)),
            ("application/cbor, application/vnd.kubernetes.protobuf", true, Ok((Form::Object, Protobuf))),
        ];
        for (accept, protobuf, expected) in rows {
            assert_eq!(check(accept, protobuf), expected, "{accept}");
        }
        assert_eq!(negotiate(&HeaderMap::new(), Offer::ALL).map(|a| a.encoding).ok(), Some(Json));
    }
}
