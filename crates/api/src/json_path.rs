//! The part of JSONPath that printer columns, selectable fields and `fieldPath` use.
//!
//! ```text
//! path   = ["{"] { step } ["}"]
//! step   = "." name | "['" name "']" | "[" index "]" | "[*]" | ".*" | "[?(@" { step } operator literal ")]"
//! ```
//! A dot inside of a name is written `\.`. Recursive descent, unions and slices are refused: no column needs them and
//! their results have no bound. Source: `k8s.io/client-go/util/jsonpath`.

use std::cmp::Ordering;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::table;

/// Longer paths are refused.
const MAX_LENGTH: usize = 4096;
/// More results are not looked for: a cell shows them all, joined.
const MAX_RESULTS: usize = 1024;

/// A path into a document.
#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    /// From the end when negative.
    Index(i64),
    All,
    Filter(Filter),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    steps: Vec<Step>,
    /// Nothing: the path must lead somewhere.
    condition: Option<(Operator, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

const OPERATORS: [(&str, Operator); 6] = [
    ("==", Operator::Equal),
    ("!=", Operator::NotEqual),
    ("<=", Operator::LessOrEqual),
    (">=", Operator::GreaterOrEqual),
    ("<", Operator::Less),
    (">", Operator::Greater),
];

/// Why a text is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct JsonPathError(String);

fn error<T>(message: impl Into<String>) -> Result<T, JsonPathError> {
    Err(JsonPathError(message.into()))
}

impl JsonPath {
    /// Reads a path.
    pub fn parse(text: &str) -> Result<Self, JsonPathError> {
        if text.len() > MAX_LENGTH {
            return error(format!("path is longer than {MAX_LENGTH} bytes"));
        }
        let inner = text.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).unwrap_or(text);
        if !inner.starts_with(['.', '[']) {
            return error(format!("path must start with a dot or a bracket: {text}"));
        }
        let (steps, rest) = steps(inner, false)?;
        if rest.is_empty() { Ok(Self { steps }) } else { error(format!("unexpected {rest:?}")) }
    }

    /// The values a path leads to; none where something on the way is missing.
    pub fn find<'a>(&self, document: &'a Value) -> Vec<&'a Value> {
        find(&self.steps, document)
    }

    /// The names of the path, when it consists of nothing but fields.
    pub fn fields(&self) -> Option<Vec<String>> {
        let name = |step: &Step| if let Step::Field(name) = step { Some(name.clone()) } else { None };
        self.steps.iter().map(name).collect()
    }
}

/// Reads steps up to the end, inside of a filter up to what cannot be one.
fn steps(text: &str, in_filter: bool) -> Result<(Vec<Step>, &str), JsonPathError> {
    let mut out = Vec::new();
    let mut rest = text;
    loop {
        if rest.starts_with("..") {
            return error("recursive descent is not supported");
        }
        if let Some(after) = rest.strip_prefix('.') {
            // A single dot is the document itself.
            let (step, after) = name(after, in_filter)?;
            out.extend(step);
            rest = after;
        } else if let Some(after) = rest.strip_prefix('[') {
            let (step, after) = bracket(after)?;
            out.push(step);
            rest = after;
        } else {
            return Ok((out, rest));
        }
    }
}

fn name(text: &str, in_filter: bool) -> Result<(Option<Step>, &str), JsonPathError> {
    let mut name = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, escaped)) => name.push(escaped),
                None => return error("unterminated escape"),
            },
            '.' | '[' => {
                end = at;
                break;
            }
            c if in_filter && matches!(c, '=' | '!' | '<' | '>' | ')' | ' ') => {
                end = at;
                break;
            }
            c if matches!(c, '{' | '}' | ']' | '\'' | '"' | '(' | ')' | ',') || c.is_whitespace() => {
                return error(format!("unexpected character {c:?} in path"));
            }
            c => name.push(c),
        }
    }
    let step = match name.as_str() {
        "" => None,
        "*" => Some(Step::All),
        _ => Some(Step::Field(name)),
    };
    Ok((step, &text[end..]))
}

fn bracket(text: &str) -> Result<(Step, &str), JsonPathError> {
    if let Some(filter) = text.strip_prefix("?(") {
        let (filter, rest) = self::filter(filter)?;
        return Ok((Step::Filter(filter), rest));
    }
    if text.starts_with(['\'', '"']) {
        let (name, rest) = quoted(text)?;
        return match rest.strip_prefix(']') {
            Some(rest) => Ok((Step::Field(name), rest)),
            None => error("expected a closing bracket"),
        };
    }
    let Some((inside, rest)) = text.split_once(']') else { return error("unterminated bracket") };
    match inside.trim() {
        "*" => Ok((Step::All, rest)),
        number => match number.parse() {
            Ok(index) => Ok((Step::Index(index), rest)),
            Err(_) => error(format!("invalid array index {number}")),
        },
    }
}

/// A text in quotes, of which a backslash takes the meaning.
fn quoted(text: &str) -> Result<(String, &str), JsonPathError> {
    let mut chars = text.char_indices();
    let Some((_, quote)) = chars.next() else { return error("unterminated string") };
    let mut out = String::new();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => out.extend(chars.next().map(|(_, escaped)| escaped)),
            c if c == quote => return Ok((out, &text[at + c.len_utf8()..])),
            c => out.push(c),
        }
    }
    error("unterminated string")
}

fn filter(text: &str) -> Result<(Filter, &str), JsonPathError> {
    let Some(rest) = text.trim_start().strip_prefix('@') else { return error("a filter starts with @") };
    let (steps, rest) = steps(rest, true)?;
    if steps.iter().any(|step| matches!(step, Step::Filter(_))) {
        return error("a filter may not hold a filter");
    }
    let rest = rest.trim_start();
    if let Some(rest) = rest.strip_prefix(")]") {
        return Ok((Filter { steps, condition: None }, rest));
    }
    let Some((sign, operator)) = OPERATORS.iter().find(|(sign, _)| rest.starts_with(sign)) else {
        return error("unrecognized operator in filter");
    };
    let rest = rest[sign.len()..].trim_start();
    let (value, rest) = if rest.starts_with(['\'', '"']) {
        let (text, rest) = quoted(rest)?;
        (Value::String(text), rest)
    } else {
        let end = rest.find(')').unwrap_or(rest.len());
        let literal = rest[..end].trim();
        match serde_json::from_str::<Value>(literal) {
            Ok(value) if !value.is_object() && !value.is_array() => (value, &rest[end..]),
            _ => return error(format!("invalid literal {literal} in filter")),
        }
    };
    match rest.trim_start().strip_prefix(")]") {
        Some(rest) => Ok((Filter { steps, condition: Some((*operator, value)) }, rest)),
        None => error("unterminated filter"),
    }
}

fn find<'a>(steps: &[Step], document: &'a Value) -> Vec<&'a Value> {
    let mut found = vec![document];
    for step in steps {
        let next = found.into_iter().flat_map(|value| follow(step, value)).take(MAX_RESULTS);
        found = next.collect();
    }
    found
}

fn follow<'a>(step: &Step, value: &'a Value) -> Vec<&'a Value> {
    let all = |value: &'a Value| -> Vec<&'a Value> {
        match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(fields) => fields.values().collect(),
            _ => Vec::new(),
        }
    };
    match step {
        Step::Field(name) => value.get(name).into_iter().collect(),
        Step::Index(index) => {
            let Some(items) = value.as_array() else { return Vec::new() };
            let from_end =
                usize::try_from(index.unsigned_abs()).ok().and_then(|n| items.len().checked_sub(n));
            let at = if *index < 0 { from_end } else { usize::try_from(*index).ok() };
            at.and_then(|at| items.get(at)).into_iter().collect()
        }
        Step::All => all(value),
        Step::Filter(filter) => all(value).into_iter().filter(|item| holds(filter, item)).collect(),
    }
}

fn holds(filter: &Filter, item: &Value) -> bool {
    let found = find(&filter.steps, item);
    let Some((operator, wanted)) = &filter.condition else { return !found.is_empty() };
    let Some(left) = found.first() else { return false };
    let order = match (left, wanted) {
        (Value::Number(a), Value::Number(b)) => a.as_f64().partial_cmp(&b.as_f64()),
        (Value::String(a), Value::String(b)) => Some(a.cmp(b)),
        (a, b) => (*a == b).then_some(Ordering::Equal),
    };
    match operator {
        Operator::Equal => order == Some(Ordering::Equal),
        Operator::NotEqual => order != Some(Ordering::Equal),
        Operator::Less => order == Some(Ordering::Less),
        Operator::LessOrEqual => order.is_some_and(Ordering::is_le),
        Operator::Greater => order == Some(Ordering::Greater),
        Operator::GreaterOrEqual => order.is_some_and(Ordering::is_ge),
    }
}

/// The cell of a column of a type (`string`, `integer`, `number`, `boolean`, `date`) for what its path found.
///
/// Nothing found, or a value of another type, gives an empty cell (null). A column of texts shows all results, others
/// the first.
pub fn cell(found: &[&Value], column_type: &str, now: Timestamp) -> Value {
    let Some(first) = found.first() else { return Value::Null };
    match column_type {
        "string" => json!(found.iter().map(|value| shown(value)).collect::<Vec<_>>().join(" ")),
        "integer" => match (first.as_i64(), first.as_f64()) {
            (Some(whole), _) => json!(whole),
            (None, Some(float)) => json!(float as i64),
            (None, None) => Value::Null,
        },
        "number" if first.is_number() => (*first).clone(),
        "boolean" if first.is_boolean() => (*first).clone(),
        "date" => match first.as_str() {
            Some(time) if time.parse::<Timestamp>().is_err() => json!("<invalid>"),
            Some(time) => json!(table::since(time, now)),
            None => Value::Null,
        },
        _ => Value::Null,
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        json!({
            "metadata": {"labels": {"a.b/c": "x"}, "creationTimestamp": "1970-01-01T00:00:00Z"},
            "spec": {"replicas": 3, "ratio": 1.5, "paused": false, "hosts": ["a", "b", "c"]},
            "status": {"conditions": [
                {"type": "Ready", "status": "True", "age": 4},
                {"type": "Synced", "status": "False", "age": 9},
            ]},
        })
    }

    #[test]
    fn paths_find_values() {
        let rows = [
            (".spec.replicas", json!([3])),
            ("{.spec.replicas}", json!([3])),
            (".metadata.labels['a.b/c']", json!(["x"])),
            (".metadata.labels[\"a.b/c\"]", json!(["x"])),
            (r".metadata.labels.a\.b/c", json!(["x"])),
            (".spec.hosts[0]", json!(["a"])),
            (".spec.hosts[-1]", json!(["c"])),
            (".spec.hosts[-4]", json!([])),
            (".spec.hosts[7]", json!([])),
            (".spec.hosts[*]", json!(["a", "b", "c"])),
            (".status.conditions[?(@.type==\"Ready\")].status", json!(["True"])),
            (".status.conditions[?(@.type == 'Ready')].status", json!(["True"])),
            (".status.conditions[?(@.type!='Ready')].type", json!(["Synced"])),
            (".status.conditions[?(@.age>=9)].type", json!(["Synced"])),
            (".status.conditions[?(@.age<9)].type", json!(["Ready"])),
            (".status.conditions[?(@.missing)].type", json!([])),
            (".status.conditions[*].status", json!(["True", "False"])),
            (".status.missing.deeper", json!([])),
            (".spec.replicas.deeper", json!([])),
        ];
        for (path, expected) in rows {
            let parsed = JsonPath::parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(json!(parsed.find(&document())), expected, "{path}");
        }
    }

    #[test]
    fn wrong_paths_are_refused() {
        let rows = [
            "",
            "spec",
            "..spec",
            ".spec..x",
            ".a[",
            ".a['b",
            ".a['b'",
            ".a[x]",
            ".a[0:2]",
            ".a['b','c']",
            ".a[?(@.x==)]",
            ".a[?(@.x=='y'",
            ".a[?(b==1)]",
            ".a b",
            "{.a",
            r".a\",
            ".a[?(@.x[?(@.y)])]",
        ];
        for path in rows {
            assert!(JsonPath::parse(path).is_err(), "{path}: {:?}", JsonPath::parse(path));
        }
        assert!(JsonPath::parse(&".a".repeat(5000)).is_err());
    }

    #[test]
    fn names_of_plain_paths() {
        let fields = |path: &str| JsonPath::parse(path).ok().and_then(|path| path.fields());
        assert_eq!(fields(".spec['a.b'].c"), Some(vec!["spec".to_owned(), "a.b".to_owned(), "c".to_owned()]));
        assert_eq!(fields(".spec[0]"), None);
    }

    #[test]
    fn cells() {
        let now = Timestamp::from_second(7200 * 24).unwrap_or_default();
        let rows = [
            (".spec.replicas", "integer", json!(3)),
            (".spec.ratio", "integer", json!(1)),
            (".spec.ratio", "number", json!(1.5)),
            (".spec.paused", "boolean", json!(false)),
            (".spec.replicas", "boolean", Value::Null),
            (".spec.replicas", "string", json!("3")),
            (".spec.hosts[*]", "string", json!("a b c")),
            (".spec.hosts", "string", json!("[\"a\",\"b\",\"c\"]")),
            (".spec.hosts[0]", "integer", Value::Null),
            (".spec.missing", "string", Value::Null),
            (".metadata.creationTimestamp", "date", json!("2d")),
            (".spec.hosts[0]", "date", json!("<invalid>")),
            (".spec.replicas", "date", Value::Null),
        ];
        for (path, type_, expected) in rows {
            let parsed = JsonPath::parse(path).unwrap_or_else(|error| panic!("{path}: {error}"));
            assert_eq!(cell(&parsed.find(&document()), type_, now), expected, "{path} as {type_}");
        }
    }
}
