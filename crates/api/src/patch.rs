//! The four ways to change an object: JSON patch, merge patch, strategic merge patch, server-side apply.
//!
//! All work on JSON documents. The first two know nothing of types; [`strategic`] and [`apply`] ask the table of types
//! how lists and maps merge. Nothing here validates the result: that is the pipeline's next step.

pub mod apply;
pub mod field_set;
mod shape;
pub mod strategic;

use serde_json::Value;

/// More operations in one JSON patch are refused, as upstream does.
const MAX_JSON_PATCH_OPERATIONS: usize = 10_000;

/// Why a patch cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch is not of its own form.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the object: a failed test, a missing path.
    #[error("{0}")]
    DoesNotApply(String),
    /// More operations than the server takes.
    #[error("The allowed maximum operations in a JSON patch is {MAX_JSON_PATCH_OPERATIONS}, got {0}")]
    TooManyOperations(usize),
}

/// Applies a JSON patch (RFC 6902).
pub fn json_patch(document: &mut Value, patch: Value) -> Result<(), PatchError> {
    let operations = patch.as_array().map_or(0, Vec::len);
    if operations > MAX_JSON_PATCH_OPERATIONS {
        return Err(PatchError::TooManyOperations(operations));
    }
    let patch: json_patch::Patch = serde_json::from_value(patch)
        .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
    json_patch::patch(document, &patch).map_err(|e| PatchError::DoesNotApply(e.to_string()))
}

/// Applies a merge patch (RFC 7386).
pub fn merge_patch(document: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::Malformed("a merge patch must be a JSON object".to_owned()));
    }
    json_patch::merge(document, patch);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_patches() {
        let mut document = json!({"a": [1, 2]});
        json_patch(&mut document, json!([{"op": "add", "path": "/a/-", "value": 3}])).expect("applies");
        assert_eq!(document, json!({"a": [1, 2, 3]}));
        let failing = json!([{"op": "test", "path": "/a", "value": 1}]);
        assert!(matches!(json_patch(&mut document, failing), Err(PatchError::DoesNotApply(_))));
        assert!(matches!(json_patch(&mut document, json!({"a": 1})), Err(PatchError::Malformed(_))));
        let many = vec![json!({"op": "remove", "path": "/a"}); MAX_JSON_PATCH_OPERATIONS + 1];
        assert!(matches!(
            json_patch(&mut document, Value::Array(many)),
            Err(PatchError::TooManyOperations(_))
        ));
    }

    #[test]
    fn merge_patches() {
        let mut document = json!({"a": {"b": 1, "c": 2}});
        merge_patch(&mut document, &json!({"a": {"b": null, "d": 3}})).expect("applies");
        assert_eq!(document, json!({"a": {"c": 2, "d": 3}}));
        assert!(merge_patch(&mut document, &json!([])).is_err());
    }
}
