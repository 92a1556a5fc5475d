//! Rules that many kinds share: names, numbers, ports, labels, selectors, fields that stay as they are.
//!
//! The phrases are those of Kubernetes (`k8s.io/apimachinery/pkg/api/validation` and `pkg/apis/*/validation`), because
//! people and programs look for them.

use serde_json::Value;

use super::json::{int, is_empty, list, same, text};
use crate::field::{Errors, Path};
use crate::quantity::Quantity;
use crate::selector::LabelSelector;
use crate::{metadata, names};

/// Below zero where that makes no sense.
const NOT_NEGATIVE: &str = "must be greater than or equal to 0";
/// Zero or less where that makes no sense.
pub(crate) const POSITIVE: &str = "must be greater than zero";
/// A change where none is allowed.
pub(crate) const IMMUTABLE: &str = "field is immutable";
/// Labels that the selector of the same object does not select.
pub(crate) const SELECTOR_MISMATCH: &str = "`selector` does not match template `labels`";

/// One of the functions of [`names`].
pub(crate) type NameCheck = fn(&str) -> Vec<String>;

/// Reports everything that is wrong with a name.
pub(crate) fn name(errors: &mut Errors, path: &Path, value: &str, check: NameCheck) {
    for problem in check(value) {
        errors.invalid(path, value, problem);
    }
}

/// The same for a name that must be there.
pub(crate) fn required_name(errors: &mut Errors, path: &Path, value: &str, check: NameCheck) {
    if value.is_empty() { errors.required(path, "") } else { name(errors, path, value, check) }
}

/// The same for a name that may be absent.
pub(crate) fn optional_name(errors: &mut Errors, path: &Path, value: &str, check: NameCheck) {
    if !value.is_empty() {
        name(errors, path, value, check);
    }
}

/// A text that must be there.
pub(crate) fn required(errors: &mut Errors, path: &Path, value: &Value) {
    if is_empty(value) {
        errors.required(path, "");
    }
}

/// A word that must be there and be one of a list.
pub(crate) fn one_of(errors: &mut Errors, path: &Path, value: &Value, supported: &[&str]) {
    match text(value) {
        "" => errors.required(path, ""),
        word if supported.contains(&word) => {}
        word => errors.not_supported(path, word, supported),
    }
}

/// A word that is one of a list when it is there.
pub(crate) fn optional_one_of(errors: &mut Errors, path: &Path, value: &Value, supported: &[&str]) {
    if !text(value).is_empty() {
        one_of(errors, path, value, supported);
    }
}

/// A number that is not below zero; absent is fine.
pub(crate) fn non_negative(errors: &mut Errors, path: &Path, value: &Value) {
    if int(value) < 0 {
        errors.invalid(path, int(value), NOT_NEGATIVE);
    }
}

/// A number within bounds; absent is fine.
pub(crate) fn in_range(errors: &mut Errors, path: &Path, value: &Value, low: i64, high: i64) {
    if let Some(number) = value.as_i64()
        && !(low..=high).contains(&number)
    {
        errors.invalid(path, number, format!("must be between {low} and {high}, inclusive"));
    }
}

/// A port number.
pub(crate) fn port(errors: &mut Errors, path: &Path, value: &Value) {
    in_range(errors, path, &Value::from(int(value)), 1, 65535);
}

/// A port given as number or as the name of a container's port.
pub(crate) fn port_or_name(errors: &mut Errors, path: &Path, value: &Value) {
    match value.as_str() {
        Some(word) => name(errors, path, word, port_name),
        None => port(errors, path, value),
    }
}

/// What is wrong with the name of a port (RFC 6335, section 5.1).
pub(crate) fn port_name(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut problem = |wrong: bool, text: &str| {
        if wrong {
            problems.push(text.to_owned());
        }
    };
    problem(value.len() > 15, "must be no more than 15 characters");
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    problem(
        !value.bytes().all(allowed),
        "must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)",
    );
    problem(!value.bytes().any(|b| b.is_ascii_lowercase()), "must contain at least one letter (a-z)");
    problem(value.contains("--"), "must not contain consecutive hyphens");
    problem(value.starts_with('-') || value.ends_with('-'), "must not begin or end with a hyphen");
    problems
}

/// A field that may not change: `new` and `old` are the field's values.
pub(crate) fn immutable(errors: &mut Errors, path: &Path, new: &Value, old: &Value) {
    if !same(new, old) {
        errors.invalid(path, new.clone(), IMMUTABLE);
    }
}

/// Labels, or a selector that is written like labels.
pub(crate) fn labels(errors: &mut Errors, path: &Path, value: &Value) {
    errors.extend(metadata::validate_labels(value, path));
}

/// A `metav1.LabelSelector`.
pub(crate) fn label_selector(errors: &mut Errors, path: &Path, selector: &Value) {
    labels(errors, &path.child("matchLabels"), &selector["matchLabels"]);
    for (index, requirement) in list(&selector["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let values = list(&requirement["values"]);
        match text(&requirement["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                errors.required(&path.child("values"), "must be specified when `operator` is 'In' or 'NotIn'")
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => errors.forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            ),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        name(errors, &path.child("key"), text(&requirement["key"]), names::qualified_name);
        for (index, value) in values.iter().enumerate() {
            name(errors, &path.child("values").index(index), text(value), names::label_value);
        }
    }
}

/// Whether a `metav1.LabelSelector` selects a set of labels.
pub(crate) fn selects(selector: &Value, labels: &Value) -> bool {
    LabelSelector::from_object(Some(selector)).matches_value(Some(labels))
}

/// Reads a quantity that stands in a document as text or as a number.
pub(crate) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// A quantity that is not below zero.
pub(crate) fn quantity_not_negative(errors: &mut Errors, path: &Path, value: &Value) {
    if quantity(value).is_some_and(Quantity::is_negative) {
        errors.invalid(path, value.clone(), NOT_NEGATIVE);
    }
}

/// A whole number or a percentage (`25%`), not negative.
pub(crate) fn int_or_percent(errors: &mut Errors, path: &Path, value: &Value) {
    match value.as_str() {
        Some(text) if percent(text).is_none() => errors.invalid(
            path,
            text,
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex \
             used for validation is '[0-9]+%')",
        ),
        Some(_) => {}
        None => non_negative(errors, path, value),
    }
}

/// The number before the `%`.
pub(crate) fn percent(text: &str) -> Option<i64> {
    let digits = text.strip_suffix('%')?;
    if digits.bytes().all(|b| b.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// A path below some directory: relative, and without steps upwards.
pub(crate) fn descending_path(errors: &mut Errors, path: &Path, value: &str) {
    if value.starts_with('/') {
        errors.invalid(path, value, "must be a relative path");
    }
    no_backsteps(errors, path, value);
}

/// A path without `..`.
pub(crate) fn no_backsteps(errors: &mut Errors, path: &Path, value: &str) {
    if value.split('/').any(|part| part == "..") {
        errors.invalid(path, value, "must not contain '..'");
    }
}

/// An IP address of either family.
pub(crate) fn ip_address(errors: &mut Errors, path: &Path, value: &str) {
    if value.parse::<std::net::IpAddr>().is_err() {
        errors.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

/// Keys of the data of ConfigMaps and Secrets.
pub(crate) fn config_key(value: &str) -> Vec<String> {
    let mut problems = Vec::new();
    if value.len() > 253 {
        problems.push("must be no more than 253 characters".to_owned());
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if value.is_empty() || !value.bytes().all(allowed) {
        problems.push(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
             'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
                .to_owned(),
        );
    }
    match value {
        "." => problems.push("must not be '.'".to_owned()),
        ".." => problems.push("must not be '..'".to_owned()),
        _ if value.starts_with("..") => problems.push("must not start with '..'".to_owned()),
        _ => {}
    }
    problems
}

/// Checks of rules, shared by the tests of all kinds.
#[cfg(test)]
pub(crate) mod testing {
    use super::*;

    /// Compares what a rule found with the expected lines; `what` names the row of the test.
    #[track_caller]
    pub(crate) fn expect(what: &str, errors: &Errors, expected: &[&str]) {
        let found: Vec<String> = errors.0.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{what}");
    }

    /// A good object with some fields replaced, each named by its JSON pointer; null takes a field away.
    pub(crate) fn with(mut object: Value, changes: &[(&str, Value)]) -> Value {
        for (pointer, value) in changes {
            let (parent, field) = pointer.rsplit_once('/').expect("a pointer has a slash");
            let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("nothing at {parent}"));
            match parent {
                Value::Array(items) => {
                    let index: usize = field.parse().expect("an index");
                    if index == items.len() {
                        items.push(value.clone())
                    } else {
                        items[index] = value.clone()
                    }
                }
                _ if value.is_null() => drop(super::super::json::remove(parent, field)),
                _ => super::super::json::set(parent, field, value.clone()),
            }
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn port_names() {
        let rows = [("http", true), ("a-1", true), ("", false), ("1", false), ("a--b", false), ("-a", false)];
        for (text, fine) in rows {
            assert_eq!(port_name(text).is_empty(), fine, "{text}");
        }
        assert!(!port_name("sixteencharacter").is_empty());
    }

    #[test]
    fn wrong_selectors() {
        let mut errors = Errors::new();
        let selector =
            json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Maybe"}]});
        label_selector(&mut errors, &Path::new("selector"), &selector);
        testing::expect(
            "operators",
            &errors,
            &[
                "selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
                "selector.matchExpressions[1].operator: Invalid value: \"Maybe\": not a valid selector operator",
            ],
        );
    }

    #[test]
    fn percentages() {
        assert_eq!(percent("25%"), Some(25));
        assert_eq!(percent("25"), None);
        assert_eq!(percent("%"), None);
        assert_eq!(percent("+5%"), None);
    }
}
