//! `x-kubernetes-validations`: rules in CEL at any place of a schema.
//!
//! Rules see typed values: numbers of integer fields are ints, `date-time` texts are timestamps, names of fields that
//! are no identifiers are escaped. Sources: `k8s.io/apiserver/pkg/cel/common/{schemas,values}.go`,
//! `k8s.io/apiserver/pkg/cel/escaping.go`, `apiextensions-apiserver/pkg/apiserver/schema/cel`.

use std::sync::Arc;

use kube_cel::cel::Value as Cel;
use serde_json::Value;

use super::cost::{Estimates, MOST_CHARACTERS};
use super::{Additional, ListKind, Node, NodeType, OBJECT_FIELDS, correlated, validate as schema};
use crate::cel::{self, Budget, CelValue, EvalError, Expression, Fields, Lists, RESERVED, Shape, Type};
use crate::field::{ErrorKind, Errors, FieldError, Path};
use crate::json_path::JsonPath;

/// Longer messages are cut off by upstream as well.
const MAX_MESSAGE: usize = 5120;
/// Rules at one place.
const MAX_RULES: usize = 200;

/// A compiled rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    expression: Arc<Expression>,
    message: Option<String>,
    message_expression: Option<Arc<Expression>>,
    reason: ErrorKind,
    field_path: Vec<String>,
    /// Whether it compares with the old value.
    is_transition: bool,
    /// Whether a transition rule also runs when there is no old value.
    optional_old_self: bool,
}

/// Where rules stand.
pub(super) struct Place<'a> {
    pub(super) path: &'a Path,
    pub(super) is_root: bool,
    /// How often the place may be there in one object.
    pub(super) count: u64,
    pub(super) is_correlatable: bool,
}

/// Compiles the rules of a place.
pub(super) fn compile(
    node: &Node,
    raw: &[Value],
    place: &Place<'_>,
    estimates: &mut Estimates,
    errors: &mut Errors,
) -> Vec<Rule> {
    if raw.is_empty() {
        return Vec::new();
    }
    let path = place.path.child("x-kubernetes-validations");
    if raw.len() > MAX_RULES {
        errors.too_many(&path, raw.len(), MAX_RULES);
        return Vec::new();
    }
    if node.type_ == NodeType::Any && !node.int_or_string && !node.preserve_unknown {
        return Vec::new();
    }
    let shape = shape(node, place.is_root);
    let mut compiler = Compiler { node, shape, place, estimates, errors };
    let rules = raw.iter().enumerate().filter_map(|(index, raw)| compiler.rule(raw, &path.index(index)));
    rules.collect()
}

struct Compiler<'a> {
    node: &'a Node,
    shape: Shape,
    place: &'a Place<'a>,
    estimates: &'a mut Estimates,
    errors: &'a mut Errors,
}

impl Compiler<'_> {
    fn rule(&mut self, raw: &Value, path: &Path) -> Option<Rule> {
        let text = raw["rule"].as_str().unwrap_or_default();
        let rule_path = path.child("rule");
        if text.trim().is_empty() {
            self.errors.required(&rule_path, "rule is not specified");
            return None;
        }
        self.message(raw, text, path);
        let optional_old_self = raw["optionalOldSelf"].as_bool().unwrap_or(false);
        let expression = self.expression("rule", text, optional_old_self, &rule_path)?;
        if !matches!(expression.result(), Type::Bool | Type::Dyn) {
            self.errors.invalid(&rule_path, text, "cel expression must evaluate to a bool");
        }
        let is_transition = expression.uses("oldSelf");
        if is_transition && !self.place.is_correlatable {
            let detail = "oldSelf cannot be used on the uncorrelatable portion of the schema";
            self.errors.invalid(&rule_path, text, detail);
        }
        if !is_transition && raw["optionalOldSelf"].is_boolean() {
            let at = path.child("optionalOldSelf");
            let detail = "may not be set if oldSelf is not used in rule";
            self.errors.invalid(&at, optional_old_self, detail);
        }
        let message_expression = raw["messageExpression"]
            .as_str()
            .and_then(|text| self.message_expression(text, optional_old_self, path));
        Some(Rule {
            expression: Arc::new(expression),
            message: raw["message"].as_str().map(|text| text.trim().to_owned()),
            message_expression,
            reason: self.reason(raw, path),
            field_path: self.field_path(raw, path),
            is_transition,
            optional_old_self,
        })
    }

    fn expression(
        &mut self,
        what: &str,
        text: &str,
        optional_old_self: bool,
        path: &Path,
    ) -> Option<Expression> {
        let old = if optional_old_self { Shape::DYNAMIC } else { self.shape.clone() };
        match Expression::compile_typed(text, &[("self", self.shape.clone()), ("oldSelf", old)]) {
            Ok(expression) => {
                let cost = expression.estimated_cost();
                self.estimates.add(what, cost, self.place.count, path, self.errors);
                Some(expression)
            }
            Err(error) => {
                self.errors.invalid(path, text, format!("compilation failed: {error}"));
                None
            }
        }
    }

    fn message(&mut self, raw: &Value, rule: &str, path: &Path) {
        let path = path.child("message");
        let has_expression = raw["messageExpression"].as_str().is_some_and(|text| !text.is_empty());
        match raw["message"].as_str() {
            None | Some("") if has_expression => {}
            None | Some("") => {
                if rule.trim().contains('\n') {
                    self.errors.required(&path, "message must be specified if rule contains line breaks");
                }
            }
            Some(message) if message.trim().is_empty() => {
                self.errors.invalid(&path, message, "message must be non-empty if specified");
            }
            Some(message) if message.trim().contains('\n') => {
                self.errors.invalid(&path, message, "message must not contain line breaks");
            }
            Some(message) if message.len() > 2048 => {
                let start: String = message.chars().take(10).collect();
                self.errors.invalid(
                    &path,
                    format!("{start}..."),
                    "must have a maximum length of 2048 characters",
                );
            }
            Some(_) => {}
        }
    }

    fn message_expression(
        &mut self,
        text: &str,
        optional_old_self: bool,
        path: &Path,
    ) -> Option<Arc<Expression>> {
        let path = path.child("messageExpression");
        if text.trim().is_empty() {
            self.errors.required(&path, "messageExpression must be non-empty if specified");
            return None;
        }
        let expression = self.expression("messageExpression", text, optional_old_self, &path)?;
        if !matches!(expression.result(), Type::Text | Type::Dyn) {
            self.errors.invalid(&path, text, "messageExpression must evaluate to a string");
        }
        Some(Arc::new(expression))
    }

    fn reason(&mut self, raw: &Value, path: &Path) -> ErrorKind {
        let reasons = [ErrorKind::Required, ErrorKind::Invalid, ErrorKind::Forbidden, ErrorKind::Duplicate];
        match raw["reason"].as_str() {
            None | Some("") => ErrorKind::Invalid,
            Some(text) => match reasons.into_iter().find(|reason| reason.cause() == text) {
                Some(reason) => reason,
                None => {
                    let supported = reasons.map(ErrorKind::cause);
                    self.errors.not_supported(&path.child("reason"), text, &supported);
                    ErrorKind::Invalid
                }
            },
        }
    }

    /// `fieldPath` names a field that the schema has.
    fn field_path(&mut self, raw: &Value, path: &Path) -> Vec<String> {
        let path = path.child("fieldPath");
        let Some(text) = raw["fieldPath"].as_str().filter(|text| !text.is_empty()) else { return Vec::new() };
        let names = match JsonPath::parse(text) {
            Ok(parsed) => parsed.fields(),
            Err(error) => {
                self.errors.invalid(&path, text, format!("fieldPath must be a valid path: {error}"));
                return Vec::new();
            }
        };
        let mut node = Some(self.node);
        for name in names.iter().flatten() {
            node = node.and_then(|node| node.field(name));
        }
        match (names, node) {
            (Some(names), Some(_)) => names,
            _ => {
                self.errors.invalid(
                    &path,
                    text,
                    "fieldPath must be a valid path: does not refer to a valid field",
                );
                Vec::new()
            }
        }
    }
}

/// The type of a place as rules see it.
fn shape(node: &Node, is_root: bool) -> Shape {
    let most_characters = || {
        let chosen = node.checks.choices.iter().filter_map(Value::as_str).map(str::len).max();
        let natural = chosen.map_or(MOST_CHARACTERS, |length| length as u64);
        node.checks.max_length.unwrap_or(natural)
    };
    match node.type_ {
        NodeType::Any => Shape::DYNAMIC,
        NodeType::Boolean => Shape::of(Type::Bool),
        NodeType::Integer => Shape::of(Type::Int),
        NodeType::Number => Shape::of(Type::Double),
        NodeType::String => match node.checks.format.as_deref() {
            Some("date-time" | "datetime" | "date") => Shape::of(Type::Time),
            Some("duration") => Shape::of(Type::Span),
            Some("byte") => Shape { type_: Type::Bytes, size: most_characters() },
            _ => Shape { type_: Type::Text, size: most_characters() },
        },
        NodeType::Array => {
            let element = node.items().map_or(Shape::DYNAMIC, |element| shape(element, false));
            Shape { type_: Type::List(Arc::new(element)), size: node.most_elements }
        }
        NodeType::Object => match &node.additional {
            Additional::Schema(value) => {
                Shape { type_: Type::Map(Arc::new(shape(value, false))), size: node.most_elements }
            }
            Additional::Anything => {
                Shape { type_: Type::Map(Arc::new(Shape::DYNAMIC)), size: node.most_elements }
            }
            Additional::None if node.preserve_unknown => Shape::DYNAMIC,
            Additional::None => object_shape(node, is_root || node.embedded_resource),
        },
    }
}

fn object_shape(node: &Node, is_resource: bool) -> Shape {
    let mut fields: Fields = node
        .properties
        .iter()
        .filter_map(|(name, child)| Some((escape(name)?, shape(child, false))))
        .collect();
    if is_resource {
        let text = || Shape { type_: Type::Text, size: 253 };
        let names = ["name", "generateName"].map(|name| (name.to_owned(), text()));
        fields.insert("apiVersion".to_owned(), text());
        fields.insert("kind".to_owned(), text());
        fields.insert("metadata".to_owned(), Shape::of(Type::Object(Arc::new(names.into_iter().collect()))));
    }
    Shape::of(Type::Object(Arc::new(fields)))
}

/// A value as rules see it.
fn value(node: &Node, json: &Value, is_root: bool, lists: &mut Lists) -> Cel {
    match json {
        Value::Array(items) => match node.items() {
            Some(element) => {
                let items = items.iter().map(|item| value(element, item, false, lists)).collect();
                list_value(node, items, lists)
            }
            None => cel::from_json(json),
        },
        Value::Object(fields) => {
            let is_resource = is_root || node.embedded_resource;
            let shown = fields.iter();
            cel::map(shown.filter_map(|(name, field)| field_value(node, name, field, is_resource, lists)))
        }
        Value::String(text) => text_value(node, text),
        Value::Number(number) => match node.type_ {
            NodeType::Number => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
            // `1.0` is an integer, too.
            NodeType::Integer => match (number.as_i64(), number.as_f64()) {
                (Some(whole), _) => Cel::Int(whole),
                (None, Some(float)) => Cel::Int(float as i64),
                (None, None) => Cel::Null,
            },
            _ => cel::from_json(json),
        },
        Value::Bool(_) | Value::Null => cel::from_json(json),
    }
}

fn list_value(node: &Node, items: Vec<Cel>, lists: &mut Lists) -> Cel {
    match node.list_type() {
        ListKind::Set => lists.make(items, cel::ListKind::Set),
        ListKind::Map(keys) => {
            let keys = keys.iter().map(|key| escape(key).unwrap_or_else(|| key.clone()));
            lists.make(items, cel::ListKind::Map(keys.collect()))
        }
        ListKind::Atomic => Cel::List(Arc::new(items)),
    }
}

fn field_value(
    node: &Node,
    name: &str,
    field: &Value,
    is_resource: bool,
    lists: &mut Lists,
) -> Option<(String, Cel)> {
    if is_resource && OBJECT_FIELDS.contains(&name) {
        let shown =
            match name {
                // Rules see as much of the metadata as their schema may say about it.
                "metadata" => cel::map(["name", "generateName"].into_iter().filter_map(|name| {
                    field.get(name).map(|value| (name.to_owned(), cel::from_json(value)))
                })),
                _ => cel::from_json(field),
            };
        return Some((name.to_owned(), shown));
    }
    match (node.property(name), &node.additional) {
        (Some(child), _) => Some((escape(name)?, value(child, field, false, lists))),
        // Keys of a map are data and stay as they are.
        (None, Additional::Schema(child)) => Some((name.to_owned(), value(child, field, false, lists))),
        (None, _) => Some((name.to_owned(), cel::from_json(field))),
    }
}

fn text_value(node: &Node, text: &str) -> Cel {
    use base64::Engine as _;
    let typed = match node.checks.format.as_deref() {
        Some("date-time" | "datetime") => cel::timestamp(text),
        Some("date") => cel::timestamp(&format!("{text}T00:00:00Z")),
        Some("duration") => cel::duration(text),
        Some("byte") => base64::engine::general_purpose::STANDARD
            .decode(text)
            .ok()
            .map(|bytes| Cel::Bytes(Arc::new(bytes))),
        _ => None,
    };
    typed.unwrap_or_else(|| cel::text(text))
}

/// A field's name as an identifier; nothing when rules cannot name it.
pub(super) fn escape(name: &str) -> Option<String> {
    if RESERVED.contains(&name) {
        return Some(format!("__{name}__"));
    }
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(c) = rest.chars().next() {
        match c {
            '_' if rest.starts_with("__") => {
                out.push_str("__underscores__");
                rest = &rest[2..];
                continue;
            }
            '.' => out.push_str("__dot__"),
            '-' => out.push_str("__dash__"),
            '/' => out.push_str("__slash__"),
            c if c.is_ascii_alphanumeric() || c == '_' => out.push(c),
            _ => return None,
        }
        rest = &rest[c.len_utf8()..];
    }
    Some(out)
}

/// Runs the rules of an object whose shape holds.
pub(super) fn validate(node: &Node, new: &Value, old: Option<&Value>) -> Errors {
    let mut run = Run { errors: Errors::new(), budget: Budget::default(), is_over: false };
    run.place(node, new, old, &Path::default(), true);
    run.errors
}

struct Run {
    errors: Errors,
    budget: Budget,
    /// Whether the budget is spent: nothing runs any more.
    is_over: bool,
}

impl Run {
    fn place(&mut self, node: &Node, new: &Value, old: Option<&Value>, path: &Path, is_root: bool) {
        if !node.has_rules || new.is_null() {
            return;
        }
        if !node.rules.is_empty() {
            self.rules(node, new, old, path, is_root);
        }
        match new {
            Value::Object(fields) => {
                for (name, field) in fields {
                    let Some(child) = node.field(name) else { continue };
                    let at = match node.property(name) {
                        Some(_) => path.child(name),
                        None => path.key(name),
                    };
                    self.place(child, field, old.and_then(|old| old.get(name)), &at, false);
                }
            }
            Value::Array(items) => {
                let Some(element) = node.items() else { return };
                for (index, item) in items.iter().enumerate() {
                    self.place(element, item, correlated(node, item, old), &path.index(index), false);
                }
            }
            _ => {}
        }
    }

    fn rules(&mut self, node: &Node, new: &Value, old: Option<&Value>, path: &Path, is_root: bool) {
        if self.is_over {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        let is_same = old.is_some_and(|old| schema::same(old, new));
        let mut lists = Lists::default();
        let mut value_of = |json: &Value| CelValue(value(node, json, is_root, &mut lists));
        let new_value = value_of(new);
        let old_value = old.map(value_of);
        for rule in &node.rules {
            if self.is_over {
                return;
            }
            // What did not change is not refused again; only a transition rule may.
            if is_same && !rule.is_transition {
                continue;
            }
            let old_self = match (&old_value, rule.optional_old_self) {
                (Some(value), false) => Some(value.clone()),
                (value, true) => Some(cel::optional_value(value.clone())),
                (None, false) if rule.is_transition => continue,
                (None, false) => None,
            };
            let mut variables = vec![("self", &new_value)];
            variables.extend(old_self.as_ref().map(|old| ("oldSelf", old)));
            self.rule(node, rule, &variables, &lists, path);
        }
    }

    fn rule(
        &mut self,
        node: &Node,
        rule: &Rule,
        variables: &[(&str, &CelValue)],
        lists: &Lists,
        path: &Path,
    ) {
        let text = rule.expression.text();
        match rule.expression.evaluate_bool_with(variables, lists, &mut self.budget) {
            Ok(true) => {}
            Ok(false) => {
                let message = self.message(rule, variables, lists);
                let mut at = path.clone();
                for name in &rule.field_path {
                    at = at.child(name);
                }
                self.report(rule.reason, node, &at, message);
            }
            Err(error @ EvalError::Budget) => {
                self.is_over = true;
                self.report(ErrorKind::Invalid, node, path, error.to_string());
            }
            Err(error @ EvalError::Cost) => {
                self.is_over = true;
                let detail = format!(
                    "{error}: no further validation rules will be run due to call cost exceeds limit for rule: {text}"
                );
                self.report(ErrorKind::Invalid, node, path, detail);
            }
            Err(EvalError::Value(message)) if message == "no such overload" => {
                let detail = format!(
                    "{message}: call arguments did not match a supported operator, function or macro signature for \
                     rule: {text}"
                );
                self.report(ErrorKind::Invalid, node, path, detail);
            }
            Err(EvalError::Value(message)) => {
                self.report(ErrorKind::Invalid, node, path, format!("{message} evaluating rule: {text}"));
            }
        }
    }

    /// What the author wants to be said: computed, fixed, or the rule itself.
    fn message(&mut self, rule: &Rule, variables: &[(&str, &CelValue)], lists: &Lists) -> String {
        let computed = rule.message_expression.as_ref().and_then(|expression| {
            let value = expression.evaluate_with(variables, lists, &mut self.budget).ok()?;
            let text = value.as_str()?.trim().to_owned();
            let is_usable = !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n');
            is_usable.then_some(text)
        });
        let fixed = || rule.message.clone().filter(|text| !text.is_empty());
        computed.or_else(fixed).unwrap_or_else(|| format!("failed rule: {}", rule.expression.text().trim()))
    }

    fn report(&mut self, kind: ErrorKind, node: &Node, path: &Path, detail: String) {
        // The type stands for the value, as upstream shows it.
        let value = || Some(Value::from(node.type_.as_str()));
        let value = match kind {
            ErrorKind::Required | ErrorKind::Forbidden => None,
            _ => value(),
        };
        if self.errors.0.len() < 100 {
            self.errors.0.push(FieldError { kind, field: path.to_string(), value, detail });
        }
    }
}
