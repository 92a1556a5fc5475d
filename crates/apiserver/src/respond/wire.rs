//! Answers in Kubernetes' protobuf form.
//!
//! Objects are stored and handed out as JSON; this form is made on demand, of finished answers. Which message an answer
//! is, is told by the `apiVersion` and `kind` in it. Custom resources have no such form.

use bytes::Bytes;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body_util::BodyExt as _;
use sampan_api::protobuf::{self, ListWriter, PARTIAL_METADATA};
use sampan_api::registry::Kind;
use serde_json::Value;

use super::{ApiResponse, Form, full};
use crate::error::ApiError;

/// Media type of an object.
pub(crate) const MEDIA_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// Media type of a watch.
pub(crate) const STREAM_TYPE: &str = "application/vnd.kubernetes.protobuf;stream=watch";

/// Whether objects of a kind have this form.
pub(crate) fn speaks(kind: &Kind) -> bool {
    kind.schema.type_name().is_some_and(protobuf::knows)
}

/// The type of a document.
fn schema(kind: &Kind, document: &Value) -> Option<String> {
    let (api_version, name) = (document["apiVersion"].as_str()?, document["kind"].as_str()?);
    if api_version == kind.api_version() {
        if name == kind.kind {
            return Some(kind.schema_name().to_owned());
        }
        if name.strip_suffix("List") == Some(&*kind.kind) {
            return Some(format!("{}List", kind.schema_name()));
        }
    }
    let known = match (api_version, name) {
        ("v1", "Status") => "io.k8s.apimachinery.pkg.apis.meta.v1.Status",
        ("meta.k8s.io/v1", "PartialObjectMetadata") => PARTIAL_METADATA,
        ("autoscaling/v1", "Scale") => "io.k8s.api.autoscaling.v1.Scale",
        ("authentication.k8s.io/v1", "TokenRequest") => "io.k8s.api.authentication.v1.TokenRequest",
        ("policy/v1", "Eviction") => "io.k8s.api.policy.v1.Eviction",
        ("v1", "Binding") => "io.k8s.api.core.v1.Binding",
        _ => return None,
    };
    Some(known.to_owned())
}

/// One document.
pub(crate) fn document(kind: &Kind, document: &Value) -> Result<Bytes, ApiError> {
    let text = |field: &str| document[field].as_str().unwrap_or_default();
    let schema = schema(kind, document).ok_or_else(|| {
        let what = format!("{} {} has no protobuf form", text("apiVersion"), text("kind"));
        ApiError::new(StatusCode::NOT_ACCEPTABLE, "NotAcceptable", what)
    })?;
    protobuf::encode(&schema, text("apiVersion"), text("kind"), document).map(Bytes::from).map_err(unwritable)
}

/// A list of objects or of their metadata.
pub(crate) fn list<'a>(
    kind: &Kind,
    form: Form,
    items: impl Iterator<Item = &'a Bytes>,
    metadata: &Value,
) -> Result<Bytes, ApiError> {
    let (schema, api_version, name) = match form {
        Form::Metadata => (PARTIAL_METADATA, "meta.k8s.io/v1", "PartialObjectMetadataList"),
        _ => (kind.schema_name(), kind.api_version(), &*kind.list_kind),
    };
    let mut list = ListWriter::new(metadata).map_err(unwritable)?;
    for item in items {
        list.push(schema, &super::parse(item)).map_err(unwritable)?;
    }
    Ok(list.finish(api_version, name).into())
}

/// One frame of a watch stream around a document.
pub(crate) fn frame(kind: &Kind, event_type: &str, object: &Value) -> Bytes {
    match document(kind, object) {
        Ok(enveloped) => protobuf::watch_frame(event_type, &enveloped).into(),
        // The cause has been logged; the watcher hears of it and lists again.
        Err(error) => match document(kind, &error.status()) {
            Ok(status) => protobuf::watch_frame("ERROR", &status).into(),
            Err(_) => Bytes::new(),
        },
    }
}

/// A finished JSON answer about a kind. One that is in this form already only gets its name.
pub(crate) async fn answer(kind: &Kind, response: ApiResponse) -> Result<ApiResponse, ApiError> {
    let (mut parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|e| ApiError::internal(e.to_string()))?.to_bytes();
    let bytes = if bytes.starts_with(b"{") { document(kind, &super::parse(&bytes))? } else { bytes };
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    Ok(http::Response::from_parts(parts, full(bytes)))
}

/// The `Status` of an error.
pub(crate) fn status(error: &ApiError) -> Option<Bytes> {
    let status = "io.k8s.apimachinery.pkg.apis.meta.v1.Status";
    protobuf::encode(status, "v1", "Status", &error.status()).ok().map(Bytes::from)
}

/// Stored objects have been checked against their types, so this is a defect of one of the two.
fn unwritable(error: protobuf::ProtobufError) -> ApiError {
    ApiError::internal(format!("cannot write protobuf: {error}"))
}
