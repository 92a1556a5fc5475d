//! Structural schemas from decisions.

use serde_json::{Map, Value, json};

use crate::Source;

const TYPES: [&str; 6] = ["object", "array", "string", "integer", "number", "boolean"];
const FORMATS: [&str; 16] = [
    "int32",
    "int64",
    "float",
    "double",
    "date-time",
    "date",
    "duration",
    "byte",
    "uuid",
    "ipv4",
    "cidr",
    "email",
    "hostname",
    "uri",
    "mac",
    "password",
];
const PATTERNS: [&str; 8] = ["", "^a+$", "[a-z0-9]{1,63}", "(", "^(a|b)*c$", "\\d+", "(?i)x", "a{1000}"];
const RULES: [&str; 20] = [
    "true",
    "self == oldSelf",
    "self >= 0",
    "self.size() < 3",
    "size(self) > 1 && self.all(x, x.size() > 0)",
    "has(self.a) ? self.a == 'x' : true",
    "self.exists(k, k == 'a')",
    "self.matches('^a')",
    "self.a + self.b == 3",
    "self[0] == self[1]",
    "duration(self) > duration('1s')",
    "timestamp(self) > timestamp('2024-01-01T00:00:00Z')",
    "quantity(self).isGreaterThan(quantity('1Gi'))",
    "self.map(x, x + 1).sum() < 10",
    "self.metadata.name.startsWith('a')",
    "self.?a.orValue('x') == 'x'",
    "oldSelf.hasValue() ? oldSelf.value() == self : true",
    "self.split(',').size() < 3",
    "self / 0 == 1",
    "int(self) % -1 == 0",
];
const NAMES: [&str; 10] =
    ["a", "b", "spec", "status", "metadata", "name", "apiVersion", "kind", "type", "x-y"];

/// A schema with an error here and there.
pub(crate) fn schema(source: &mut Source<'_>, depth: usize) -> Value {
    let mut out = Map::new();
    let type_ = if depth == 0 { "object" } else { source.pick(&TYPES) };
    if !source.one_in(24) {
        out.insert("type".to_owned(), type_.into());
    }
    shape(source, type_, depth, &mut out);
    let count = source.byte() % 5;
    for _ in 0..count {
        let (name, value) = keyword(source, type_, depth);
        out.insert(name.to_owned(), value);
    }
    Value::Object(out)
}

/// Properties and elements.
fn shape(source: &mut Source<'_>, type_: &str, depth: usize, out: &mut Map<String, Value>) {
    let is_deep = depth > 5;
    match type_ {
        "object" if source.one_in(4) && !is_deep => {
            out.insert("additionalProperties".to_owned(), schema(source, depth + 1));
        }
        "object" if !is_deep => {
            let count = source.byte() % 5;
            let properties: Map<String, Value> =
                (0..count).map(|_| (source.pick(&NAMES).to_owned(), schema(source, depth + 1))).collect();
            out.insert("properties".to_owned(), properties.into());
        }
        "array" => {
            let items = if is_deep { json!({"type": "string"}) } else { schema(source, depth + 1) };
            out.insert("items".to_owned(), items);
        }
        _ => {}
    }
}

fn keyword(source: &mut Source<'_>, type_: &str, depth: usize) -> (&'static str, Value) {
    let small = |source: &mut Source<'_>| Value::from(source.integer());
    match source.byte() % 26 {
        0 => ("default", if source.byte() & 1 == 0 { instance(source, type_) } else { source.value(depth) }),
        1 => ("nullable", true.into()),
        2 => ("x-kubernetes-preserve-unknown-fields", true.into()),
        3 => ("x-kubernetes-int-or-string", true.into()),
        4 => ("x-kubernetes-embedded-resource", true.into()),
        5 => ("x-kubernetes-list-type", source.pick(&["set", "map", "atomic", "x"]).into()),
        6 => ("x-kubernetes-list-map-keys", json!([source.pick(&NAMES)])),
        7 => ("x-kubernetes-map-type", source.pick(&["atomic", "granular"]).into()),
        8 => ("format", source.pick(&FORMATS).into()),
        9 => ("pattern", source.pick(&PATTERNS).into()),
        10 => ("minimum", small(source)),
        11 => ("maximum", small(source)),
        12 => ("exclusiveMinimum", true.into()),
        13 => ("multipleOf", small(source)),
        14 => ("minLength", small(source)),
        15 => ("maxLength", small(source)),
        16 => ("maxItems", small(source)),
        17 => ("maxProperties", small(source)),
        18 => ("uniqueItems", true.into()),
        19 => ("required", json!([source.pick(&NAMES)])),
        20 => ("enum", json!([source.value(5), source.text()])),
        21 => (source.pick(&["allOf", "anyOf", "oneOf"]), json!([judgement(source, depth)])),
        22 => ("not", judgement(source, depth)),
        _ => ("x-kubernetes-validations", rules(source)),
    }
}

/// A schema that only judges.
fn judgement(source: &mut Source<'_>, depth: usize) -> Value {
    match source.byte() % 4 {
        0 => json!({"required": [source.pick(&NAMES)]}),
        1 => json!({"properties": {source.pick(&NAMES): {"minimum": source.integer()}}}),
        2 => json!({"enum": [source.value(6)]}),
        _ if depth < 6 => schema(source, depth + 1),
        _ => json!({}),
    }
}

fn rules(source: &mut Source<'_>) -> Value {
    let mut rule = json!({"rule": source.pick(&RULES)});
    match source.byte() % 6 {
        0 => {
            rule["messageExpression"] =
                source.pick(&["'a'", "self", "string(self)", "self.a", "'x' + self"]).into()
        }
        1 => rule["optionalOldSelf"] = true.into(),
        2 => rule["fieldPath"] = source.pick(&[".a", ".b", ".a.b", "['x-y']", ""]).into(),
        3 => rule["reason"] = source.pick(&["FieldValueInvalid", "FieldValueForbidden", "x"]).into(),
        _ => {}
    }
    json!([rule])
}

/// A value that a type may have.
fn instance(source: &mut Source<'_>, type_: &str) -> Value {
    match type_ {
        "object" => json!({source.pick(&NAMES): source.value(5)}),
        "array" => json!([source.value(5)]),
        "string" => source.text().into(),
        "integer" => source.integer().into(),
        "number" => (source.integer() as f64 / 8.0).into(),
        _ => Value::Bool(source.byte() & 1 == 1),
    }
}
