//! Rules that many kinds share: names, numbers, ports, labels, selectors, fields that stay as they are.
//!
//! The phrases are those of Kubernetes (`k8s.io/apimachinery/pkg/api/validation` and `pkg/apis/*/validation`), because
//! people and programs look for them.

use std::net::IpAddr;

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

/// Whether an object is being created: the server gives it its first revision afterwards. For the few rules that must
/// not trouble objects which exist already.
pub(crate) fn is_new(object: &Value) -> bool {
    is_empty(&object["metadata"]["resourceVersion"])
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

/// A percentage, if it is one, of at most everything.
pub(crate) fn at_most_all(errors: &mut Errors, path: &Path, value: &Value) {
    if value.as_str().and_then(percent).is_some_and(|percent| percent > 100) {
        errors.invalid(path, value.clone(), "must not be greater than 100%");
    }
}

/// Whether a whole number or a percentage is none; absent is none.
pub(crate) fn is_zero(value: &Value) -> bool {
    match value.as_str() {
        Some(text) => percent(text) == Some(0),
        None => int(value) == 0,
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
    if value.parse::<IpAddr>().is_err() {
        errors.invalid(path, value, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)");
    }
}

/// An address range in the form in which it is kept: a network and the length of its mask, nothing beyond the mask.
pub(crate) fn cidr(errors: &mut Errors, path: &Path, value: &str) {
    const EXAMPLE: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let Some((address, bits)) = parse_cidr(value) else {
        return errors.invalid(path, value, EXAMPLE);
    };
    let network = network_of(address, bits);
    let canonical = format!("{network}/{bits}");
    if network != address {
        errors.invalid(path, value, "must not have bits set beyond the prefix length");
    } else if canonical != value {
        errors.invalid(path, value, format!("must be in canonical form (\"{canonical}\")"));
    }
}

/// Address and mask length of a range; bits beyond the mask are kept.
pub(crate) fn parse_cidr(value: &str) -> Option<(IpAddr, u32)> {
    let (address, bits) = value.split_once('/')?;
    let address: IpAddr = address.parse().ok()?;
    let bits: u32 = bits.parse().ok().filter(|_| bits.bytes().all(|b| b.is_ascii_digit()))?;
    (bits <= width(address)).then_some((address, bits))
}

fn width(address: IpAddr) -> u32 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The address with everything beyond the mask cleared.
pub(crate) fn network_of(address: IpAddr, bits: u32) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            IpAddr::V4((u32::from(address) & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            IpAddr::V6((u128::from(address) & mask).into())
        }
    }
}

/// A host name whose first label may be `*`.
pub(crate) fn host_name(errors: &mut Errors, path: &Path, value: &str) {
    match value.strip_prefix("*.") {
        Some(rest) if names::dns1123_subdomain(rest).is_empty() => {}
        _ if value.contains('*') => errors.invalid(
            path,
            value,
            "a wildcard DNS-1123 subdomain must start with '*.', followed by a valid DNS subdomain, which must consist of \
             lower case alphanumeric characters, '-' or '.' and end with an alphanumeric character (e.g. \
             '*.example.com', regex used for validation is \
             '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')",
        ),
        _ => name(errors, path, value, names::dns1123_subdomain),
    }
}

/// A domain and a path below it: `example.com/controller`.
pub(crate) fn domain_prefixed_path(errors: &mut Errors, path: &Path, value: &str) {
    let example = "must be a domain-prefixed path (such as \"acme.io/foo\")";
    let Some((domain, rest)) = value.split_once('/') else {
        return errors.invalid(path, value, example);
    };
    if domain.is_empty() || rest.is_empty() {
        return errors.invalid(path, value, example);
    }
    for problem in names::dns1123_subdomain(domain) {
        errors.invalid(path, domain, problem);
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"/%!$&'()*+,;=:@-._~".contains(&b);
    if !rest.bytes().all(allowed) {
        errors.invalid(path, rest, "Invalid path");
    }
}

/// Names of CSI and resource drivers.
pub(crate) fn driver_name(errors: &mut Errors, path: &Path, value: &str) {
    const LONGEST: usize = 63;
    if value.is_empty() {
        return errors.required(path, "");
    }
    if value.len() > LONGEST {
        errors.too_long(path, LONGEST);
    }
    for problem in names::dns1123_subdomain(&value.to_lowercase()) {
        errors.invalid(path, value, problem);
    }
}

/// A `metav1.LabelSelector` that must be there.
pub(crate) fn required_label_selector(errors: &mut Errors, path: &Path, selector: &Value) {
    if selector.is_null() { errors.required(path, "") } else { label_selector(errors, path, selector) }
}

/// Words that must be there, and a wildcard among them that stands alone; `what` ends the sentence about it.
pub(crate) fn wildcard_list(errors: &mut Errors, path: &Path, value: &Value, what: &str, missing: &str) {
    let items = list(value);
    if items.is_empty() {
        errors.required(path, missing);
    } else if items.len() > 1 && items.iter().any(|item| text(item) == "*") {
        errors.invalid(path, value.clone(), format!("if '*' is present, must not specify other {what}"));
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
    fn ranges_and_hosts() {
        let rows: &[(fn(&mut Errors, &Path, &str), &str, bool)] = &[
            (cidr, "10.0.0.0/8", true),
            (cidr, "0.0.0.0/0", true),
            (cidr, "2001:db8::/64", true),
            (cidr, "::1/128", true),
            (cidr, "10.0.0.1/8", false),
            (cidr, "10.0.0.0/33", false),
            (cidr, "10.0.0.0/+8", false),
            (cidr, "2001:DB8::/64", false),
            (cidr, "10.0.0.0", false),
            (host_name, "example.com", true),
            (host_name, "*.example.com", true),
            (host_name, "*", false),
            (host_name, "a.*.com", false),
            (host_name, "a_b", false),
            (domain_prefixed_path, "example.com/a/b", true),
            (domain_prefixed_path, "example.com", false),
            (domain_prefixed_path, "example.com/", false),
            (domain_prefixed_path, "example.com/a b", false),
            (driver_name, "Csi.Example.com", true),
            (driver_name, "", false),
            (driver_name, "a/b", false),
        ];
        for (check, value, fine) in rows {
            let mut errors = Errors::new();
            check(&mut errors, &Path::new("x"), value);
            assert_eq!(errors.is_empty(), *fine, "{value}: {errors}");
        }
    }

    #[test]
    fn percentages() {
        assert_eq!(percent("25%"), Some(25));
        assert_eq!(percent("25"), None);
        assert_eq!(percent("%"), None);
        assert_eq!(percent("+5%"), None);
    }
}
