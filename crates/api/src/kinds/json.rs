//! Reading and changing JSON documents without asking at every step whether a field is there.
//!
//! A field that is missing or has another type reads as nothing: the schema has already refused wrong types, so the
//! rules of a kind may look past them. Reading a path is `object["spec"]["replicas"]`, which is null when it is absent.

use serde_json::Value;

/// Elements of a list; none when there is no list.
pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Elements of the list at a JSON pointer.
pub(crate) fn list_mut<'a>(
    value: &'a mut Value,
    pointer: &str,
) -> impl Iterator<Item = &'a mut Value> + use<'a> {
    value.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
}

/// Text; empty when there is none.
pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// Whole number; 0 when there is none.
pub(crate) fn int(value: &Value) -> i64 {
    value.as_i64().unwrap_or_default()
}

/// Keys and values of an object, in the order of the keys.
pub(crate) fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

/// Whether the value is `true`.
pub(crate) fn is_true(value: &Value) -> bool {
    value.as_bool().unwrap_or(false)
}

/// Whether there is nothing: absent, empty text, empty list or empty object.
pub(crate) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Gives a field of an object a value when it has none.
pub(crate) fn default_field(object: &mut Value, field: &str, value: impl Into<Value>) {
    if object[field].is_null() {
        set(object, field, value);
    }
}

/// Gives a field of an object a value; does nothing when `object` is no object.
pub(crate) fn set(object: &mut Value, field: &str, value: impl Into<Value>) {
    if let Some(fields) = object.as_object_mut() {
        fields.insert(field.to_owned(), value.into());
    }
}

/// Takes a field out of an object.
pub(crate) fn remove(object: &mut Value, field: &str) -> Option<Value> {
    object.as_object_mut().and_then(|fields| fields.remove(field))
}

/// Makes a field what it is in another object, also when it is absent there.
pub(crate) fn copy_field(to: &mut Value, from: &Value, field: &str) {
    match from.get(field) {
        Some(value) => set(to, field, value.clone()),
        None => drop(remove(to, field)),
    }
}

/// Whether two values mean the same: an absent field equals one that is null, `false` or empty. Numbers are compared
/// as they are, because an absent number often is not zero (`runAsUser`).
pub(crate) fn same(a: &Value, b: &Value) -> bool {
    let nothing = |v: &Value| is_empty(v) || *v == Value::Bool(false);
    match (a, b) {
        (Value::Object(left), Value::Object(right)) => {
            left.iter().all(|(key, value)| same(value, &b[key.as_str()]))
                && right.iter().all(|(key, value)| left.contains_key(key) || same(&Value::Null, value))
        }
        (Value::Null, Value::Object(fields)) | (Value::Object(fields), Value::Null) => {
            fields.values().all(|value| same(&Value::Null, value))
        }
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same(l, r))
        }
        _ => a == b || (nothing(a) && nothing(b)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absent_means_empty() {
        let rows = [
            (json!({"a": 1}), json!({"a": 1, "b": [], "c": {}, "d": null, "e": false, "f": ""}), true),
            (json!({"a": {"b": {}}}), json!({}), true),
            (json!({}), json!({"a": {"b": false}}), true),
            (json!({"a": 0}), json!({}), false),
            (json!({"a": [1]}), json!({"a": [1, 2]}), false),
            (json!({"a": true}), json!({"a": false}), false),
        ];
        for (a, b, expected) in rows {
            assert_eq!(same(&a, &b), expected, "{a} {b}");
            assert_eq!(same(&b, &a), expected, "{b} {a}");
        }
    }

    #[test]
    fn fields_are_copied_with_their_absence() {
        let mut to = json!({"a": 1, "b": 2});
        let from = json!({"b": 3});
        copy_field(&mut to, &from, "a");
        copy_field(&mut to, &from, "b");
        assert_eq!(to, json!({"b": 3}));
    }
}
