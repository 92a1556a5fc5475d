//! Label and field selectors: `app=web,tier in (a,b),!old` and `spec.nodeName=a,status.phase!=Running`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::names;

/// A selector longer than this is refused: the longest URL the server takes is of the same size.
const MAX_LENGTH: usize = 64 * 1024;
/// More requirements than this are refused.
const MAX_REQUIREMENTS: usize = 1000;

/// Why a text is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not follow the grammar.
    #[error("unable to parse requirement: {0}")]
    Parse(String),
    /// Too long or too many requirements.
    #[error("selector is too large")]
    TooLarge,
    /// The kind has no such field to select by.
    #[error("field label not supported: {0}")]
    UnknownField(String),
}

/// What a label must be.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    GreaterThan(i64),
    LessThan(i64),
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

impl Requirement {
    fn matches(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|v| v.parse::<i64>().ok());
        match &self.operator {
            Operator::In(values) => value.is_some_and(|v| values.iter().any(|x| x == v)),
            Operator::NotIn(values) => value.is_none_or(|v| values.iter().all(|x| x != v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan(than) => number().is_some_and(|n| n > *than),
            Operator::LessThan(than) => number().is_some_and(|n| n < *than),
        }
    }
}

/// A label selector; the empty one selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

impl LabelSelector {
    /// Reads the form of query parameters.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        if text.len() > MAX_LENGTH {
            return Err(SelectorError::TooLarge);
        }
        let mut requirements = Vec::new();
        for part in split_requirements(text) {
            requirements.push(parse_requirement(part.trim())?);
        }
        if requirements.len() > MAX_REQUIREMENTS {
            return Err(SelectorError::TooLarge);
        }
        Ok(Self { requirements, nothing: false })
    }

    /// Reads the form of objects (`matchLabels`, `matchExpressions`). No selector at all selects nothing.
    pub fn from_object(selector: Option<&Value>) -> Self {
        let Some(selector) = selector.and_then(Value::as_object) else {
            return Self { requirements: Vec::new(), nothing: true };
        };
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement { key: key.clone(), operator: Operator::In(vec![value]) });
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let values = || -> Vec<String> {
                let values = expression["values"].as_array().into_iter().flatten();
                values.filter_map(Value::as_str).map(str::to_owned).collect()
            };
            let operator = match expression["operator"].as_str() {
                Some("In") => Operator::In(values()),
                Some("NotIn") => Operator::NotIn(values()),
                Some("Exists") => Operator::Exists,
                Some("DoesNotExist") => Operator::DoesNotExist,
                _ => return Self { requirements: Vec::new(), nothing: true },
            };
            requirements.push(Requirement {
                key: expression["key"].as_str().unwrap_or_default().to_owned(),
                operator,
            });
        }
        Self { requirements, nothing: false }
    }

    /// Selects everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether an object with these labels is selected; `label` looks one up.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(label(&r.key)))
    }

    /// Whether the labels of a JSON object are selected.
    pub fn matches_value(&self, labels: Option<&Value>) -> bool {
        self.matches(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }

    /// Whether these labels are selected.
    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches(|key| labels.get(key).map(String::as_str))
    }
}

/// Splits at commas outside of parentheses.
fn split_requirements(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut depth, mut start) = (0usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    if parts.len() == 1 && parts[0].trim().is_empty() {
        parts.clear();
    }
    parts
}

fn checked_key(key: &str) -> Result<String, SelectorError> {
    match names::qualified_name(key).first() {
        None => Ok(key.to_owned()),
        Some(problem) => Err(SelectorError::Parse(format!("Invalid value: \"{key}\": {problem}"))),
    }
}

fn checked_value(value: &str) -> Result<String, SelectorError> {
    match names::label_value(value).first() {
        None => Ok(value.to_owned()),
        Some(problem) => Err(SelectorError::Parse(format!("Invalid value: \"{value}\": {problem}"))),
    }
}

fn parse_requirement(text: &str) -> Result<Requirement, SelectorError> {
    if let Some(key) = text.strip_prefix('!') {
        return Ok(Requirement { key: checked_key(key.trim())?, operator: Operator::DoesNotExist });
    }
    let one = |key: &str, value: &str| {
        Ok::<_, SelectorError>((checked_key(key.trim())?, checked_value(value.trim())?))
    };
    if let Some((key, value)) = text.split_once("!=") {
        let (key, value) = one(key, value)?;
        return Ok(Requirement { key, operator: Operator::NotIn(vec![value]) });
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        let (key, value) = one(key, value)?;
        return Ok(Requirement { key, operator: Operator::In(vec![value]) });
    }
    for (sign, make) in [('>', Operator::GreaterThan as fn(i64) -> Operator), ('<', Operator::LessThan)] {
        if let Some((key, value)) = text.split_once(sign) {
            let value = value
                .trim()
                .parse()
                .map_err(|_| SelectorError::Parse(format!("{text}: not a whole number")))?;
            return Ok(Requirement { key: checked_key(key.trim())?, operator: make(value) });
        }
    }
    let Some((head, list)) = text.split_once('(') else {
        return Ok(Requirement { key: checked_key(text)?, operator: Operator::Exists });
    };
    let list = list
        .trim_end()
        .strip_suffix(')')
        .ok_or_else(|| SelectorError::Parse(format!("{text}: expected ')'")))?;
    let values = list.split(',').map(|v| checked_value(v.trim())).collect::<Result<Vec<_>, _>>()?;
    let mut words = head.split_whitespace();
    let (key, word, rest) = (words.next().unwrap_or_default(), words.next(), words.next());
    let operator = match (word, rest) {
        (Some("in"), None) => Operator::In(values),
        (Some("notin"), None) => Operator::NotIn(values),
        _ => return Err(SelectorError::Parse(format!("{text}: expected 'in' or 'notin'"))),
    };
    Ok(Requirement { key: checked_key(key)?, operator })
}

/// A field selector: all must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    /// Field label, value, and whether equality (or inequality) is asked for.
    terms: Vec<(String, String, bool)>,
}

impl FieldSelector {
    /// Reads the form of query parameters; `known` says which labels the kind has.
    pub fn parse(text: &str, known: impl Fn(&str) -> bool) -> Result<Self, SelectorError> {
        if text.len() > MAX_LENGTH {
            return Err(SelectorError::TooLarge);
        }
        let mut terms = Vec::new();
        for part in text.split(',').filter(|p| !p.is_empty()) {
            let (label, value, equal) = if let Some((l, v)) = part.split_once("!=") {
                (l, v, false)
            } else if let Some((l, v)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (l, v, true)
            } else {
                return Err(SelectorError::Parse(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            if !known(label) {
                return Err(SelectorError::UnknownField(label.to_owned()));
            }
            terms.push((label.to_owned(), value.to_owned(), equal));
        }
        if terms.len() > MAX_REQUIREMENTS {
            return Err(SelectorError::TooLarge);
        }
        Ok(Self { terms })
    }

    /// Selects everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `label` must equal, if the selector says so: lets a list of one name become a get.
    pub fn required_value(&self, label: &str) -> Option<&str> {
        self.terms.iter().find(|(l, _, equal)| l == label && *equal).map(|(_, v, _)| v.as_str())
    }

    /// The field labels the selector looks at.
    pub fn labels(&self) -> impl Iterator<Item = &str> {
        self.terms.iter().map(|(label, _, _)| label.as_str())
    }

    /// Whether an object is selected; `field` gives the value of a label, empty when missing.
    pub fn matches(&self, field: impl Fn(&str) -> String) -> bool {
        self.terms.iter().all(|(label, value, equal)| (field(label) == *value) == *equal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn label_selectors() {
        let web = labels(&[("app", "web"), ("n", "5")]);
        let rows = [
            ("", true),
            ("app=web", true),
            ("app==web", true),
            ("app = web , n", true),
            ("app!=web", false),
            ("tier!=x", true),
            ("app in (db, web)", true),
            ("app in (db)", false),
            ("app notin (db),n", true),
            ("tier notin (db)", true),
            ("!tier", true),
            ("!app", false),
            ("n>4", true),
            ("n<5", false),
            ("app>1", false),
        ];
        for (text, expected) in rows {
            let selector = LabelSelector::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!(selector.matches_map(&web), expected, "{text}");
        }
        for text in
            ["app in web", "a b=c", "=x", "app in (a", "a,,b", "x>y", "app within (a)", "-=a", "a=b c"]
        {
            assert!(LabelSelector::parse(text).is_err(), "{text}");
        }
        assert_eq!(LabelSelector::parse(&"a,".repeat(40_000)), Err(SelectorError::TooLarge));
    }

    #[test]
    fn object_selectors() {
        let web = labels(&[("app", "web")]);
        let rows = [
            (serde_json::json!({}), true),
            (serde_json::json!({"matchLabels": {"app": "web"}}), true),
            (serde_json::json!({"matchLabels": {"app": "db"}}), false),
            (
                serde_json::json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}),
                true,
            ),
            (serde_json::json!({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}), false),
            (serde_json::json!({"matchExpressions": [{"key": "app", "operator": "Near"}]}), false),
            (Value::Null, false),
        ];
        for (object, expected) in rows {
            assert_eq!(LabelSelector::from_object(Some(&object)).matches_map(&web), expected, "{object}");
        }
    }

    #[test]
    fn field_selectors() {
        let field = |label: &str| if label == "spec.nodeName" { "n1".to_owned() } else { String::new() };
        let known = |label: &str| ["spec.nodeName", "status.phase"].contains(&label);
        for (text, expected) in [
            ("spec.nodeName=n1", true),
            ("spec.nodeName==n1,status.phase=", true),
            ("spec.nodeName!=n1", false),
            ("status.phase!=Failed", true),
        ] {
            assert_eq!(FieldSelector::parse(text, known).map(|s| s.matches(field)), Ok(expected), "{text}");
        }
        assert_eq!(
            FieldSelector::parse("spec.x=1", known),
            Err(SelectorError::UnknownField("spec.x".to_owned()))
        );
        assert!(FieldSelector::parse("spec.nodeName", known).is_err());
    }
}
