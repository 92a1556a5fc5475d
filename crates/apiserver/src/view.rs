//! Views of an object that have an address of their own and take writes: status, scale, finalize, resize,
//! approval.
//!
//! A view knows which document the client sees and how a changed document goes back into the object; the write path is
//! the same for all.

use bytes::Bytes;
use sampan_api::kind::{STATUS_METADATA, Subresource};
use sampan_api::registry::{Kind, ScalePaths};
use sampan_api::schema::Schema;
use serde_json::{Value, json};

use crate::books::copy_field;

/// Which part of an object a write is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The object itself.
    Object,
    /// `.status` only.
    Status,
    /// `autoscaling/v1.Scale`: how many of it.
    Scale,
    /// `.spec.finalizers` of a namespace.
    Finalize,
    /// Container resources of a pod.
    Resize,
    /// Ephemeral containers of a pod.
    EphemeralContainers,
    /// The node of a pod. Written by the server for `/binding`, which is an action and no document.
    Binding,
    /// `.status.conditions` of a certificate signing request.
    Approval,
}

/// Type, `apiVersion` and `kind` of a view's documents.
#[derive(Clone, Copy)]
pub(crate) struct DocumentType<'a> {
    pub(crate) schema: &'a Schema,
    pub(crate) api_version: &'a str,
    pub(crate) kind: &'a str,
}

static SCALE_SCHEMA: Schema = Schema::Table("io.k8s.api.autoscaling.v1.Scale");

impl View {
    /// The view behind a subresource, if it is one.
    pub(crate) fn of_subresource(subresource: Subresource) -> Option<Self> {
        match subresource {
            Subresource::Status => Some(Self::Status),
            Subresource::Scale => Some(Self::Scale),
            Subresource::Finalize => Some(Self::Finalize),
            Subresource::Resize => Some(Self::Resize),
            Subresource::EphemeralContainers => Some(Self::EphemeralContainers),
            Subresource::Approval => Some(Self::Approval),
            _ => None,
        }
    }

    /// Name for `managedFields`.
    pub(crate) fn subresource(self) -> &'static str {
        match self {
            Self::Object => "",
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
            Self::Resize => "resize",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Binding => "binding",
            Self::Approval => "approval",
        }
    }

    /// What kind of document it is.
    pub(crate) fn document(self, kind: &Kind) -> DocumentType<'_> {
        match self {
            Self::Scale => {
                DocumentType { schema: &SCALE_SCHEMA, api_version: "autoscaling/v1", kind: "Scale" }
            }
            _ => DocumentType { schema: &kind.schema, api_version: kind.api_version(), kind: &kind.kind },
        }
    }

    /// The document a client sees.
    pub(crate) fn of(self, kind: &Kind, object: &Value) -> Value {
        match self {
            Self::Scale => scale_of(&kind.scale, object),
            _ => object.clone(),
        }
    }

    /// The bytes a client gets for an object's bytes.
    pub(crate) fn bytes(self, kind: &Kind, bytes: Bytes) -> Bytes {
        match self {
            Self::Scale => {
                let object = serde_json::from_slice(&bytes).unwrap_or_default();
                self.of(kind, &object).to_string().into()
            }
            _ => bytes,
        }
    }

    /// The object with a changed document put back into it.
    pub(crate) fn merge_into(self, kind: &Kind, old: &Value, document: Value) -> Value {
        if matches!(self, Self::Object | Self::Binding) {
            return document;
        }
        let mut new = old.clone();
        match self {
            Self::Object | Self::Binding => {}
            // Of an approval, the row of the kind keeps what is none of its business.
            Self::Status | Self::Approval => {
                for field in STATUS_METADATA.iter().filter(|field| !kind.status_keeps.contains(field)) {
                    copy_field(&mut new["metadata"], &document["metadata"], field);
                }
                copy_field(&mut new, &document, "status");
            }
            Self::Scale => {
                let replicas = document["spec"]["replicas"].as_i64().unwrap_or(0);
                set_pointer(&mut new, &kind.scale.spec_replicas, replicas.into());
            }
            Self::Finalize => copy_field(&mut new["spec"], &document["spec"], "finalizers"),
            Self::EphemeralContainers => {
                copy_field(&mut new["spec"], &document["spec"], "ephemeralContainers")
            }
            Self::Resize => {
                for list in ["containers", "initContainers"] {
                    if let Some(containers) = new.pointer_mut(&format!("/spec/{list}")) {
                        copy_resources(containers, &document["spec"][list]);
                    }
                }
            }
        }
        new
    }
}

/// Sets the value at a JSON pointer of plain fields, making the objects on the way.
fn set_pointer(document: &mut Value, pointer: &str, value: Value) {
    let mut place = document;
    for field in pointer.split('/').skip(1) {
        if !place.is_object() {
            *place = json!({});
        }
        place = &mut place[field.replace("~1", "/").replace("~0", "~")];
    }
    *place = value;
}

fn copy_resources(to: &mut Value, from: &Value) {
    for container in to.as_array_mut().into_iter().flatten() {
        let same = from.as_array().into_iter().flatten().find(|c| c["name"] == container["name"]);
        if let Some(same) = same {
            for field in ["resources", "resizePolicy"] {
                copy_field(container, same, field);
            }
        }
    }
}

/// The `autoscaling/v1.Scale` of a workload.
fn scale_of(paths: &ScalePaths, object: &Value) -> Value {
    let count = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": count(&paths.spec_replicas)},
        "status": {"replicas": count(&paths.status_replicas)},
    });
    let selector = match &paths.selector {
        Some(pointer) => object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned(),
        None => selector_text(&object["spec"]["selector"]),
    };
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// A label selector object in the form of query parameters; a replication controller's is a map of labels.
fn selector_text(selector: &Value) -> String {
    let mut parts: Vec<String> = Vec::new();
    let is_map = selector.get("matchLabels").or(selector.get("matchExpressions")).is_none();
    for (key, value) in selector.as_object().into_iter().flatten().filter(|_| is_map) {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for (key, value) in selector["matchLabels"].as_object().into_iter().flatten() {
        parts.push(format!("{key}={}", value.as_str().unwrap_or_default()));
    }
    for expression in selector["matchExpressions"].as_array().into_iter().flatten() {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> =
            expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        parts.push(match expression["operator"].as_str() {
            Some("In") => format!("{key} in ({})", values.join(",")),
            Some("NotIn") => format!("{key} notin ({})", values.join(",")),
            Some("DoesNotExist") => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}
