//! Life of namespaces: nothing new in what is going away, and the label every namespace carries.

use http::StatusCode;
use serde_json::{Value, json};

use super::Admission;
use crate::error::ApiError;
use crate::write::{namespace_key, namespace_missing, parse};

/// Namespaces that cannot be deleted.
pub(crate) const IMMORTAL: &[&str] = &["default", "kube-system", "kube-public"];

/// Every namespace carries its name as the label `kubernetes.io/metadata.name` (KEP-2161).
pub(super) fn name_label(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    if admission.is("", "namespaces")
        && let Some(name) = object["metadata"]["name"].as_str().map(str::to_owned)
    {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
    }
    Ok(())
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

/// No object is created in a namespace that does not exist or is being deleted.
/// The store is asked, not the cache: a namespace made a moment ago counts.
pub(super) async fn lifecycle(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    if admission.old.is_some() || !admission.kind.namespaced() {
        return Ok(());
    }
    let namespace = admission.server.store.get(&namespace_key(admission.namespace)).await?;
    let namespace = namespace.ok_or_else(|| namespace_missing(admission.namespace))?;
    // The plug-ins after this one see the namespace as the store has it.
    admission.namespace_bytes.get_or_init(|| namespace.value.clone());
    // Every create comes by here; what does not even contain the word need not be read.
    if !contains(&namespace.value, b"\"deletionTimestamp\"") {
        return Ok(());
    }
    let namespace = parse(&namespace)?;
    if namespace["metadata"]["deletionTimestamp"].is_null() {
        return Ok(());
    }
    let why = format!(
        "unable to create new content in namespace {} because it is being terminated",
        admission.namespace
    );
    let mut error = admission.forbidden(object, why);
    error.code = StatusCode::FORBIDDEN;
    if let Some(details) = &mut error.details {
        details["causes"] = json!([{
            "reason": "NamespaceTerminating",
            "message": format!("namespace {} is being terminated", admission.namespace),
            "field": "metadata.namespace",
        }]);
    }
    Err(error)
}
