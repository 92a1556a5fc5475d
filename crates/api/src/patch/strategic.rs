//! Strategic merge patch: a merge patch that knows lists by key (Kubernetes' own form, `kubectl patch`, `kubectl apply`).
//!
//! Directives inside a patch: `$patch: replace|delete|merge` on an object or list element, `$retainKeys`,
//! `$deleteFromPrimitiveList/FIELD`, `$setElementOrder/FIELD`. Everything else is data.

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{Field, FieldType, Schema, Type, Types};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Applies `patch` to `document`. Custom resources know no merge keys; for them this is a merge patch with directives.
pub fn strategic_merge_patch(schema: &Schema, document: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let (Some(object), Some(patch)) = (document.as_object_mut(), patch.as_object()) else {
        return Err(PatchError::Malformed("a strategic merge patch must be a JSON object".to_owned()));
    };
    merge_object(object, patch, schema.type_name().and_then(|name| Types::get().type_(name)))
}

/// What `$patch` asks for.
#[derive(PartialEq)]
enum Directive {
    Merge,
    Replace,
    Delete,
}

fn directive(patch: &Map<String, Value>) -> Result<Directive, PatchError> {
    match patch.get(PATCH).map(Value::as_str) {
        None | Some(Some("merge")) => Ok(Directive::Merge),
        Some(Some("replace")) => Ok(Directive::Replace),
        Some(Some("delete")) => Ok(Directive::Delete),
        Some(other) => Err(PatchError::Malformed(format!("unrecognized type of $patch: {other:?}"))),
    }
}

/// A patch as data: directives taken out, at every depth.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(object) => Value::Object(
            object
                .iter()
                .filter(|(key, value)| !key.starts_with('$') && !value.is_null())
                .map(|(key, value)| (key.clone(), plain(value)))
                .collect(),
        ),
        Value::Array(items) => {
            Value::Array(items.iter().filter(|item| item.get(PATCH).is_none()).map(plain).collect())
        }
        other => other.clone(),
    }
}

fn merge_object(
    object: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    type_: Option<&'static Type>,
) -> Result<(), PatchError> {
    match directive(patch)? {
        Directive::Delete => {
            object.clear();
            return Ok(());
        }
        Directive::Replace => {
            *object = match plain(&Value::Object(patch.clone())) {
                Value::Object(new) => new,
                _ => Map::new(),
            };
            return Ok(());
        }
        Directive::Merge => {}
    }
    if let Some(keep) = patch.get(RETAIN_KEYS).and_then(Value::as_array) {
        object.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE_FROM) {
            delete_values(object, field, value)?;
        } else if !key.starts_with('$') {
            merge_entry(object, key, value, type_)?;
        }
    }
    for (key, order) in patch {
        if let Some(field) = key.strip_prefix(ELEMENT_ORDER) {
            let merge_key = type_.and_then(|t| t.field(field)).and_then(|f| f.merge_key);
            set_element_order(object, patch, field, order, merge_key)?;
        }
    }
    Ok(())
}

fn merge_entry(
    object: &mut Map<String, Value>,
    key: &str,
    value: &Value,
    type_: Option<&'static Type>,
) -> Result<(), PatchError> {
    if value.is_null() {
        object.remove(key);
        return Ok(());
    }
    let field = type_.and_then(|t| t.field(key));
    match (value, object.get_mut(key)) {
        (Value::Object(patch), Some(Value::Object(current))) => {
            if directive(patch)? == Directive::Delete {
                object.remove(key);
                return Ok(());
            }
            merge_object(current, patch, field.and_then(|f| struct_of(&f.type_)))
        }
        (Value::Object(patch), _) => {
            let mut fresh = Map::new();
            if directive(patch)? != Directive::Delete {
                merge_object(&mut fresh, patch, field.and_then(|f| struct_of(&f.type_)))?;
                object.insert(key.to_owned(), Value::Object(fresh));
            }
            Ok(())
        }
        (Value::Array(patch), current) if field.is_some_and(|f| f.patch.merge) => {
            let mut items = current.and_then(Value::as_array_mut).map(std::mem::take).unwrap_or_default();
            if let Some(field) = field {
                merge_list(&mut items, patch, field)?;
            }
            object.insert(key.to_owned(), Value::Array(items));
            Ok(())
        }
        (value, _) => {
            object.insert(key.to_owned(), plain(value));
            Ok(())
        }
    }
}

/// The structure a field or its elements hold.
fn struct_of(type_: &FieldType) -> Option<&'static Type> {
    match type_ {
        FieldType::Struct(name) => Types::get().type_(name),
        FieldType::List(element) => struct_of(element),
        _ => None,
    }
}

fn merge_list(items: &mut Vec<Value>, patch: &[Value], field: &Field) -> Result<(), PatchError> {
    let Some(merge_key) = field.merge_key else {
        for value in patch {
            if !items.contains(value) {
                items.push(value.clone());
            }
        }
        return Ok(());
    };
    if patch.iter().any(|p| p.get(PATCH).and_then(Value::as_str) == Some("replace")) {
        *items = patch.iter().filter(|p| p.get(PATCH).is_none()).map(plain).collect();
        return Ok(());
    }
    let element_type = struct_of(&field.type_);
    for element in patch {
        let element = element.as_object().ok_or_else(|| {
            PatchError::Malformed(format!(
                "elements of {} must be objects in a strategic merge patch",
                field.name
            ))
        })?;
        // A null takes a field away, and no list or object is a name.
        let is_name = |key: &&Value| key.is_string() || key.is_number() || key.is_boolean();
        let key = element.get(merge_key).filter(is_name).ok_or_else(|| {
            PatchError::Malformed(format!(
                "map: {} does not contain declared merge key: {merge_key}",
                Value::Object(element.clone())
            ))
        })?;
        if directive(element)? == Directive::Delete {
            items.retain(|item| item.get(merge_key) != Some(key));
            continue;
        }
        match items.iter_mut().find(|item| item.get(merge_key) == Some(key)).and_then(Value::as_object_mut) {
            Some(current) => merge_object(current, element, element_type)?,
            None => {
                let mut fresh = Map::new();
                merge_object(&mut fresh, element, element_type)?;
                items.push(Value::Object(fresh));
            }
        }
    }
    Ok(())
}

fn delete_values(object: &mut Map<String, Value>, field: &str, values: &Value) -> Result<(), PatchError> {
    let values = values
        .as_array()
        .ok_or_else(|| PatchError::Malformed(format!("{DELETE_FROM}{field} must hold a list")))?;
    if let Some(items) = object.get_mut(field).and_then(Value::as_array_mut) {
        items.retain(|item| !values.contains(item));
    }
    Ok(())
}

/// Sorts the elements that `order` names into that order. The others keep their place relative to their neighbour
/// before: they are what the patch's author did not know of.
fn set_element_order(
    object: &mut Map<String, Value>,
    patch: &Map<String, Value>,
    field: &str,
    order: &Value,
    merge_key: Option<&'static str>,
) -> Result<(), PatchError> {
    let order = order
        .as_array()
        .ok_or_else(|| PatchError::Malformed(format!("{ELEMENT_ORDER}{field} must hold a list")))?;
    let identity = |item: &Value| merge_key.map_or_else(|| Some(item.clone()), |key| item.get(key).cloned());
    for item in patch.get(field).and_then(Value::as_array).into_iter().flatten() {
        let known = item.get(PATCH).is_some() || order.iter().any(|o| identity(o) == identity(item));
        if !known {
            return Err(PatchError::Malformed(format!(
                "The order in patch list of {field} doesn't match the {ELEMENT_ORDER}{field} list"
            )));
        }
    }
    let Some(items) = object.get_mut(field).and_then(Value::as_array_mut) else { return Ok(()) };
    let rank = |item: &Value| order.iter().position(|o| identity(o) == identity(item));
    let mut named: Vec<Value> = items.iter().filter(|item| rank(item).is_some()).cloned().collect();
    named.sort_by_key(rank);
    let mut named = named.into_iter();
    for slot in items.iter_mut().filter(|item| rank(item).is_some()) {
        if let Some(next) = named.next() {
            *slot = next;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn check(name: &str, type_name: &'static str, document: Value, patch: Value, expected: Value) {
        let mut document = document;
        strategic_merge_patch(&type_name.into(), &mut document, &patch)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(document, expected, "{name}");
    }

    #[test]
    fn rows() {
        const POD: &str = "io.k8s.api.core.v1.Pod";
        let containers = |list: Value| json!({"spec": {"containers": list}});
        check(
            "elements merge by name",
            POD,
            containers(json!([{"name": "a", "image": "1"}, {"name": "b", "image": "1"}])),
            containers(json!([{"name": "b", "image": "2"}, {"name": "c", "image": "3"}])),
            containers(
                json!([{"name": "a", "image": "1"}, {"name": "b", "image": "2"}, {"name": "c", "image": "3"}]),
            ),
        );
        check(
            "an element is deleted",
            POD,
            containers(json!([{"name": "a"}, {"name": "b"}])),
            containers(json!([{"$patch": "delete", "name": "a"}])),
            containers(json!([{"name": "b"}])),
        );
        check(
            "a list is replaced",
            POD,
            containers(json!([{"name": "a"}, {"name": "b"}])),
            containers(json!([{"$patch": "replace"}, {"name": "c"}])),
            containers(json!([{"name": "c"}])),
        );
        check(
            "atomic lists are replaced",
            POD,
            containers(json!([{"name": "a", "args": ["1", "2"]}])),
            containers(json!([{"name": "a", "args": ["3"]}])),
            containers(json!([{"name": "a", "args": ["3"]}])),
        );
        check(
            "null deletes",
            POD,
            json!({"metadata": {"labels": {"a": "1", "b": "2"}}}),
            json!({"metadata": {"labels": {"a": null}}}),
            json!({"metadata": {"labels": {"b": "2"}}}),
        );
        check(
            "sets of scalars merge",
            POD,
            json!({"metadata": {"finalizers": ["a/b"]}}),
            json!({"metadata": {"finalizers": ["c/d"], "$deleteFromPrimitiveList/finalizers": ["a/b"]}}),
            json!({"metadata": {"finalizers": ["c/d"]}}),
        );
        check(
            "retain keys",
            "io.k8s.api.apps.v1.Deployment",
            json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}}),
            json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}}),
            json!({"spec": {"strategy": {"type": "Recreate"}}}),
        );
        check(
            "element order",
            POD,
            containers(json!([{"name": "a"}, {"name": "x"}, {"name": "b"}])),
            json!({"spec": {"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}]}}),
            containers(json!([{"name": "b"}, {"name": "x"}, {"name": "a"}])),
        );
        check(
            "an object is replaced",
            POD,
            json!({"metadata": {"labels": {"a": "1"}}}),
            json!({"metadata": {"labels": {"$patch": "replace", "b": "2"}}}),
            json!({"metadata": {"labels": {"b": "2"}}}),
        );
    }

    #[test]
    fn malformed_patches() {
        let rows = [
            json!([]),
            json!({"spec": {"containers": [{"image": "x"}]}}),
            json!({"spec": {"containers": ["x"]}}),
            json!({"spec": {"containers": [{"name": null, "image": "x"}]}}),
            json!({"spec": {"containers": [{"name": [{"x": null}], "image": "x"}]}}),
            json!({"spec": {"$patch": "explode"}}),
            json!({"metadata": {"$deleteFromPrimitiveList/finalizers": "x"}}),
        ];
        for patch in rows {
            let mut document = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]}});
            let result = strategic_merge_patch(&"io.k8s.api.core.v1.Pod".into(), &mut document, &patch);
            assert!(matches!(result, Err(PatchError::Malformed(_))), "{patch}");
        }
    }
}
