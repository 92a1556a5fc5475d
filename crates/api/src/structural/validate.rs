//! The keywords of JSON schema, in the words users of custom resources know.
//!
//! Source of the phrases: `k8s.io/kube-openapi/pkg/validation/errors`, turned into field errors as
//! `k8s.io/apiextensions-apiserver/pkg/apiserver/validation` does.
//!
//! **Ratcheting** (KEP-4008): with an old object, a value that did not change is not looked at again. What changed is
//! judged as a whole at its own place, and its unchanged parts are not. Alternatives (`allOf` and its kin) always see
//! the whole value.

use std::collections::BTreeSet;

use serde_json::{Map, Number, Value, json};

use super::{Checks, ListType, Node, NodeType, correlated, format, map_key};
use crate::field::{ErrorKind, Errors, FieldError, Path};
use crate::names;

/// After this many problems the walk stops; [`Errors`] keeps no more either.
const MAX_ERRORS: usize = 100;

/// Checks a value and everything below.
pub(super) fn validate(node: &Node, new: &Value, old: Option<&Value>) -> Errors {
    let mut walk = Walk { errors: Errors::new(), is_nested: false };
    walk.value(node, new, old, &Path::default());
    walk.errors
}

struct Walk {
    errors: Errors,
    /// Inside of `allOf` and its kin: what shapes a value was already checked outside.
    is_nested: bool,
}

impl Walk {
    fn is_full(&self) -> bool {
        self.errors.0.len() >= MAX_ERRORS
    }

    fn value(&mut self, node: &Node, value: &Value, old: Option<&Value>, path: &Path) {
        if self.is_full() || old.is_some_and(|old| same(old, value)) {
            return;
        }
        if value.is_null() && (node.nullable || self.is_nested) {
            return;
        }
        if !self.type_holds(node, value, path) {
            return;
        }
        self.checks(&node.checks, value, path);
        match value {
            Value::Object(fields) => self.object(node, fields, old, path),
            Value::Array(items) => self.list(node, items, old, path),
            _ => {}
        }
    }

    fn type_holds(&mut self, node: &Node, value: &Value, path: &Path) -> bool {
        let holds = match node.type_ {
            NodeType::Any => !node.int_or_string || is_whole(value) || value.is_string(),
            NodeType::Object => value.is_object(),
            NodeType::Array => value.is_array(),
            NodeType::String => value.is_string(),
            NodeType::Integer => is_whole(value),
            NodeType::Number => value.is_number(),
            NodeType::Boolean => value.is_boolean(),
        };
        if !holds {
            let wanted = if node.int_or_string { "integer,string" } else { node.type_.as_str() };
            let found = type_name(value);
            let detail = format!("{} in body must be of type {wanted}: \"{found}\"", name_of(path));
            self.type_invalid(path, json!(found), detail);
        }
        holds
    }

    fn object(&mut self, node: &Node, fields: &Map<String, Value>, old: Option<&Value>, path: &Path) {
        if node.embedded_resource {
            self.embedded(fields, path);
        }
        for (name, value) in fields {
            if let Some(child) = node.field(name) {
                self.value(child, value, old.and_then(|old| old.get(name)), &path.child(name));
            }
        }
    }

    fn list(&mut self, node: &Node, items: &[Value], old: Option<&Value>, path: &Path) {
        self.duplicates(node, items, path);
        let Some(element) = node.items() else { return };
        for (index, item) in items.iter().enumerate() {
            self.value(element, item, correlated(node, item, old), &path.index(index));
        }
    }

    fn duplicates(&mut self, node: &Node, items: &[Value], path: &Path) {
        let mut seen = BTreeSet::new();
        for (index, item) in items.iter().enumerate() {
            let identity = match node.list_type {
                ListType::Atomic => return,
                ListType::Set => item.to_string(),
                ListType::Map => Value::Array(map_key(node, item)).to_string(),
            };
            if !seen.insert(identity) {
                let shown = match node.list_type {
                    ListType::Map => {
                        let pairs = node.list_map_keys.iter().cloned().zip(map_key(node, item));
                        Value::Object(pairs.collect())
                    }
                    _ => item.clone(),
                };
                self.errors.duplicate(&path.index(index), shown);
            }
        }
    }

    /// An object inside of an object says what it is, and has a name that may be one.
    fn embedded(&mut self, fields: &Map<String, Value>, path: &Path) {
        for name in ["apiVersion", "kind"] {
            if fields.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                self.errors.required(&path.child(name), "must not be empty");
            }
        }
        let metadata = fields.get("metadata").unwrap_or(&Value::Null);
        let path = path.child("metadata");
        if let Some(name) = metadata["name"].as_str().filter(|name| !name.is_empty()) {
            for problem in names::dns1123_subdomain(name) {
                self.errors.invalid(&path.child("name"), name, problem);
            }
        }
        if let Some(namespace) = metadata["namespace"].as_str().filter(|name| !name.is_empty()) {
            for problem in names::dns1123_label(namespace) {
                self.errors.invalid(&path.child("namespace"), namespace, problem);
            }
        }
    }

    fn checks(&mut self, checks: &Checks, value: &Value, path: &Path) {
        self.choices(checks, value, path);
        self.format(checks, value, path);
        match value {
            Value::Number(number) => self.number(checks, number, path),
            Value::String(text) => self.text(checks, text, path),
            Value::Array(items) => self.count(checks, items.len(), path),
            Value::Object(fields) => self.fields(checks, fields, path),
            Value::Null | Value::Bool(_) => {}
        }
        self.alternatives(checks, value, path);
    }

    fn choices(&mut self, checks: &Checks, value: &Value, path: &Path) {
        if checks.choices.is_empty() || checks.choices.iter().any(|choice| same(choice, value)) {
            return;
        }
        let text = |choice: &Value| choice.as_str().map_or_else(|| choice.to_string(), str::to_owned);
        let supported: Vec<String> = checks.choices.iter().map(text).collect();
        let supported: Vec<&str> = supported.iter().map(String::as_str).collect();
        self.errors.not_supported(path, value.clone(), &supported);
    }

    fn format(&mut self, checks: &Checks, value: &Value, path: &Path) {
        if let Some(format) = &checks.format
            && !format::holds(format, value)
        {
            let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let detail = format!("{} in body must be of type {format}: {shown:?}", name_of(path));
            self.type_invalid(path, value.clone(), detail);
        }
    }

    fn number(&mut self, checks: &Checks, number: &Number, path: &Path) {
        use std::cmp::Ordering::{Equal, Greater, Less};
        if let Some(minimum) = &checks.minimum {
            match (compare(number, minimum), checks.exclusive_minimum) {
                (Less, false) => self.number_error(number, path, "be greater than or equal to", minimum),
                (Less | Equal, true) => self.number_error(number, path, "be greater than", minimum),
                _ => {}
            }
        }
        if let Some(maximum) = &checks.maximum {
            match (compare(number, maximum), checks.exclusive_maximum) {
                (Greater, false) => self.number_error(number, path, "be less than or equal to", maximum),
                (Greater | Equal, true) => self.number_error(number, path, "be less than", maximum),
                _ => {}
            }
        }
        if let Some(factor) = &checks.multiple_of
            && !is_multiple(number, factor)
        {
            self.number_error(number, path, "be a multiple of", factor);
        }
    }

    fn number_error(&mut self, number: &Number, path: &Path, what: &str, bound: &Number) {
        let bound = bound.to_string();
        let bound = bound.strip_suffix(".0").unwrap_or(&bound);
        self.should(path, Value::Number(number.clone()), &format!("{what} {bound}"));
    }

    fn text(&mut self, checks: &Checks, text: &str, path: &Path) {
        let length = text.chars().count() as u64;
        if let Some(least) = checks.min_length.filter(|least| length < *least) {
            self.should(path, json!(text), &format!("be at least {least} chars long"));
        }
        if let Some(most) = checks.max_length.filter(|most| length > *most) {
            self.errors.too_long(path, usize::try_from(most).unwrap_or(usize::MAX));
        }
        if let Some(pattern) = &checks.pattern
            && !pattern.regex.is_match(text)
        {
            self.should(path, json!(text), &format!("match '{}'", pattern.text));
        }
    }

    fn count(&mut self, checks: &Checks, count: usize, path: &Path) {
        if let Some(least) = checks.min_items.filter(|least| (count as u64) < *least) {
            self.should(path, json!(count), &format!("have at least {least} items"));
        }
        if let Some(most) = checks.max_items.filter(|most| count as u64 > *most) {
            self.errors.too_many(path, count, usize::try_from(most).unwrap_or(usize::MAX));
        }
    }

    fn fields(&mut self, checks: &Checks, fields: &Map<String, Value>, path: &Path) {
        let count = fields.len() as u64;
        if let Some(least) = checks.min_properties.filter(|least| count < *least) {
            self.should(path, json!(count), &format!("have at least {least} properties"));
        }
        if let Some(most) = checks.max_properties.filter(|most| count > *most) {
            self.errors.too_many(path, fields.len(), usize::try_from(most).unwrap_or(usize::MAX));
        }
        for name in checks.required.iter().filter(|name| !fields.contains_key(*name)) {
            self.errors.required(&path.child(name), "");
        }
    }

    fn alternatives(&mut self, checks: &Checks, value: &Value, path: &Path) {
        let judge = |nested: &Node| {
            let mut walk = Walk { errors: Errors::new(), is_nested: true };
            walk.value(nested, value, None, path);
            walk.errors
        };
        let name = name_of(path);
        let all: Vec<Errors> = checks.all_of.iter().map(judge).filter(|e| !e.is_empty()).collect();
        if !all.is_empty() {
            self.errors.invalid(path, "", format!("\"{name}\" must validate all the schemas (allOf)"));
            all.into_iter().for_each(|errors| self.take(errors));
        }
        if !checks.any_of.is_empty() {
            let found: Vec<Errors> = checks.any_of.iter().map(judge).collect();
            if found.iter().all(|errors| !errors.is_empty()) {
                let detail = format!("\"{name}\" must validate at least one schema (anyOf)");
                self.errors.invalid(path, "", detail);
                self.take_nearest(found);
            }
        }
        if !checks.one_of.is_empty() {
            let found: Vec<Errors> = checks.one_of.iter().map(judge).collect();
            let valid = found.iter().filter(|errors| errors.is_empty()).count();
            if valid != 1 {
                let how = match valid {
                    0 => "Found none valid".to_owned(),
                    count => format!("Found {count} valid alternatives"),
                };
                let detail = format!("\"{name}\" must validate one and only one schema (oneOf). {how}");
                self.errors.invalid(path, "", detail);
                if valid == 0 {
                    self.take_nearest(found);
                }
            }
        }
        if let Some(nested) = &checks.not
            && judge(nested).is_empty()
        {
            self.errors.invalid(path, "", format!("\"{name}\" must not validate the schema (not)"));
        }
    }

    /// Of failed alternatives, the one with the fewest problems explains most.
    fn take_nearest(&mut self, found: Vec<Errors>) {
        if let Some(nearest) = found.into_iter().min_by_key(|errors| errors.0.len()) {
            self.take(nearest);
        }
    }

    fn take(&mut self, errors: Errors) {
        let room = MAX_ERRORS.saturating_sub(self.errors.0.len());
        self.errors.0.extend(errors.0.into_iter().take(room));
    }

    fn should(&mut self, path: &Path, value: Value, what: &str) {
        self.errors.invalid(path, value, format!("{} in body should {what}", name_of(path)));
    }

    fn type_invalid(&mut self, path: &Path, value: Value, detail: String) {
        let field = path.to_string();
        let error = FieldError { kind: ErrorKind::TypeInvalid, field, value: Some(value), detail };
        self.take(Errors(vec![error]));
    }
}

/// A path inside a sentence; the root has no name there.
fn name_of(path: &Path) -> String {
    if *path == Path::default() { String::new() } else { path.to_string() }
}

/// What JSON calls the type of a value.
pub(super) fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Whether a value is a whole number; `1.0` is one.
fn is_whole(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64() || number.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => false,
    }
}

/// Whether two values are equal; numbers by what they are worth.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b).is_eq(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

fn compare(a: &Number, b: &Number) -> std::cmp::Ordering {
    match (a.as_i64(), b.as_i64()) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => {
            let float = |n: &Number| n.as_f64().unwrap_or(f64::NAN);
            float(a).total_cmp(&float(b))
        }
    }
}

fn is_multiple(number: &Number, factor: &Number) -> bool {
    match (number.as_i64(), factor.as_i64()) {
        (Some(number), Some(factor)) => number.checked_rem(factor).is_none_or(|rest| rest == 0),
        _ => {
            let quotient = number.as_f64().unwrap_or(0.0) / factor.as_f64().unwrap_or(1.0);
            (quotient - quotient.round()).abs() < 1e-9
        }
    }
}
