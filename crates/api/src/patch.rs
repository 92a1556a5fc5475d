//! The four ways to change an object: JSON patch, merge patch, strategic merge patch, server-side apply.
//!
//! All work on JSON documents. The first two know nothing of types; [`strategic`] and [`apply`] ask the table of types
//! how lists and maps merge. Nothing here validates the result: that is the pipeline's next step.

pub mod apply;
mod atomics;
pub mod field_set;
mod shape;
pub mod strategic;

pub use atomics::atomics;
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

/// Bytes that all copies of one JSON patch may add: a patch of a few lines can otherwise double a document at every
/// step.
const MAX_COPIED: usize = 3 << 20;
/// Deeper documents are refused, as when they are read: everything that walks a document recurses.
const MAX_DEPTH: usize = 128;

/// Applies a JSON patch (RFC 6902).
pub fn json_patch(document: &mut Value, patch: Value) -> Result<(), PatchError> {
    let operations = patch.as_array().map_or(0, Vec::len);
    if operations > MAX_JSON_PATCH_OPERATIONS {
        return Err(PatchError::TooManyOperations(operations));
    }
    let patch: json_patch::Patch = serde_json::from_value(patch)
        .map_err(|e| PatchError::Malformed(format!("error decoding patch: {e}")))?;
    let mut copied = 0;
    for operation in &patch.0 {
        copied += check_growth(document, operation)?;
        if copied > MAX_COPIED {
            return Err(PatchError::Malformed(format!(
                "the copies of the patch exceed the limit of {MAX_COPIED} bytes"
            )));
        }
        if tests_absence(document, operation) {
            continue;
        }
        // The document is the caller's own copy: a failed patch needs no undoing.
        json_patch::patch_unsafe(document, std::slice::from_ref(operation))
            .map_err(|e| PatchError::DoesNotApply(e.to_string()))?;
    }
    Ok(())
}

/// Whether an operation tests a member that its object has not for null. The RFC would let that fail; Kubernetes lets it
/// pass, and clients add the first element of a list of finalizers on this condition.
fn tests_absence(document: &Value, operation: &json_patch::PatchOperation) -> bool {
    let json_patch::PatchOperation::Test(test) = operation else { return false };
    let path = test.path.as_str();
    let parent = path.rsplit_once('/').and_then(|(parent, _)| document.pointer(parent));
    test.value.is_null() && document.pointer(path).is_none() && parent.is_some_and(Value::is_object)
}

/// Refuses an operation that would make the document too deep; bytes that it copies.
fn check_growth(document: &Value, operation: &json_patch::PatchOperation) -> Result<usize, PatchError> {
    use json_patch::PatchOperation as Op;
    let (path, value) = match operation {
        Op::Add(add) => (&add.path, Some(&add.value)),
        Op::Replace(replace) => (&replace.path, Some(&replace.value)),
        Op::Move(from) => (&from.path, document.pointer(from.from.as_str())),
        Op::Copy(from) => (&from.path, document.pointer(from.from.as_str())),
        Op::Remove(_) | Op::Test(_) => return Ok(0),
    };
    let Some(value) = value else { return Ok(0) };
    let levels = path.as_str().matches('/').count();
    if levels + depth(value) > MAX_DEPTH {
        return Err(PatchError::Malformed("exceeded max depth".to_owned()));
    }
    Ok(if matches!(operation, Op::Copy(_)) { size(value) } else { 0 })
}

/// Levels below a value. Both walks are bounded because no document is ever deeper than [`MAX_DEPTH`].
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Bytes of a value, about as JSON writes them.
fn size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(size).sum::<usize>() + items.len() + 2,
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| key.len() + 4 + size(value)).sum::<usize>() + 2
        }
        _ => 8,
    }
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
    fn absent_members_pass_a_test_for_null() {
        let rows = [
            ("/b", json!(null), true),
            ("/b", json!([]), false),
            ("/a", json!(null), false),
            ("/none", json!(null), true),
            ("/b/c", json!(null), false),
            ("/a/7", json!(null), false),
        ];
        for (path, value, passes) in rows {
            let mut document = json!({"a": [1], "none": null});
            let patch = json!([{"op": "test", "path": path, "value": value}]);
            assert_eq!(json_patch(&mut document, patch).is_ok(), passes, "{path} {value}");
        }
    }

    #[test]
    fn patches_do_not_grow_without_bound() {
        let deeper = json!([{"op": "copy", "from": "/a", "path": "/a/x"}]);
        let mut document = json!({"a": {}});
        let mut refused = false;
        for _ in 0..200 {
            refused |= json_patch(&mut document, deeper.clone()).is_err();
        }
        assert!(refused && depth(&document) <= MAX_DEPTH);
        let mut document = json!({"a": "x".repeat(1 << 20)});
        let doubling: Vec<Value> =
            (0..30).map(|i| json!({"op": "copy", "from": "", "path": format!("/b{i}")})).collect();
        assert!(matches!(json_patch(&mut document, Value::Array(doubling)), Err(PatchError::Malformed(_))));
        assert!(size(&document) < 8 * MAX_COPIED);
    }

    #[test]
    fn merge_patches() {
        let mut document = json!({"a": {"b": 1, "c": 2}});
        merge_patch(&mut document, &json!({"a": {"b": null, "d": 3}})).expect("applies");
        assert_eq!(document, json!({"a": {"c": 2, "d": 3}}));
        assert!(merge_patch(&mut document, &json!([])).is_err());
    }
}
