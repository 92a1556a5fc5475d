//! Rows: a schema, an object, what comes out.

use serde_json::{Value, json};

use super::*;
use crate::field::Path;

fn parse(schema: &Value) -> Structural {
    Structural::parse(schema, false, &Path::new("schema")).unwrap_or_else(|errors| panic!("{errors}"))
}

fn object(properties: Value) -> Value {
    json!({"type": "object", "properties": properties})
}

fn spec(schema: Value) -> Structural {
    parse(&object(json!({ "spec": schema })))
}

/// What is said about an object with this `spec`.
fn said(schema: &Structural, spec: Value) -> Vec<String> {
    errors(&schema.validate(&json!({ "spec": spec }), None))
}

fn errors(errors: &field::Errors) -> Vec<String> {
    errors.0.iter().map(ToString::to_string).collect()
}

#[test]
fn keywords_judge_in_kubernetes_words() {
    let rows = [
        (
            json!({"type": "integer", "maximum": 10}),
            json!(11),
            "spec: Invalid value: 11: spec in body should be less than or equal to 10",
        ),
        (
            json!({"type": "integer", "maximum": 10, "exclusiveMaximum": true}),
            json!(10),
            "spec: Invalid value: 10: spec in body should be less than 10",
        ),
        (
            json!({"type": "integer", "minimum": 1}),
            json!(0),
            "spec: Invalid value: 0: spec in body should be greater than or equal to 1",
        ),
        (
            json!({"type": "number", "minimum": 1, "exclusiveMinimum": true}),
            json!(1.0),
            "spec: Invalid value: 1.0: spec in body should be greater than 1",
        ),
        (
            json!({"type": "integer", "multipleOf": 5}),
            json!(7),
            "spec: Invalid value: 7: spec in body should be a multiple of 5",
        ),
        (
            json!({"type": "integer"}),
            json!("string"),
            "spec: Invalid value: \"string\": spec in body must be of type integer: \"string\"",
        ),
        (
            json!({"type": "integer"}),
            json!(1.5),
            "spec: Invalid value: \"number\": spec in body must be of type integer: \"number\"",
        ),
        (
            json!({"type": "object"}),
            Value::Null,
            "spec: Invalid value: \"null\": spec in body must be of type object: \"null\"",
        ),
        (
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            "spec: Invalid value: \"boolean\": spec in body must be of type integer,string: \"boolean\"",
        ),
        (
            json!({"type": "string", "enum": ["a", "b"]}),
            json!("x"),
            "spec: Unsupported value: \"x\": supported values: \"a\", \"b\"",
        ),
        (
            json!({"type": "string", "minLength": 2}),
            json!("é"),
            "spec: Invalid value: \"é\": spec in body should be at least 2 chars long",
        ),
        (
            json!({"type": "string", "maxLength": 1}),
            json!("ab"),
            "spec: Too long: may not be more than 1 bytes",
        ),
        (
            json!({"type": "string", "pattern": "^[a-z]+$"}),
            json!("A"),
            "spec: Invalid value: \"A\": spec in body should match '^[a-z]+$'",
        ),
        (
            json!({"type": "string", "format": "date-time"}),
            json!("now"),
            "spec: Invalid value: \"now\": spec in body must be of type date-time: \"now\"",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "maxItems": 1}),
            json!(["a", "b"]),
            "spec: Too many: 2: must have at most 1 items",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}, "minItems": 1}),
            json!([]),
            "spec: Invalid value: 0: spec in body should have at least 1 items",
        ),
        (
            json!({"type": "array", "items": {"type": "string"}}),
            json!(["a", 1]),
            "spec[1]: Invalid value: \"integer\": spec[1] in body must be of type string: \"integer\"",
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "integer"}, "maxProperties": 1}),
            json!({"a": 1, "b": 2}),
            "spec: Too many: 2: must have at most 1 items",
        ),
        (
            json!({"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1}),
            json!({}),
            "spec: Invalid value: 0: spec in body should have at least 1 properties",
        ),
        (
            json!({"type": "object", "required": ["image"], "properties": {"image": {"type": "string"}}}),
            json!({}),
            "spec.image: Required value",
        ),
        (
            json!({"type": "integer", "not": {"enum": [5]}}),
            json!(5),
            "spec: Invalid value: \"\": \"spec\" must not validate the schema (not)",
        ),
        (
            json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}}),
            json!(["a", "b", "a"]),
            "spec[2]: Duplicate value: \"a\"",
        ),
        (
            json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true}),
            json!({"apiVersion": "v1"}),
            "spec.kind: Required value: must not be empty",
        ),
    ];
    for (schema, value, expected) in rows {
        let structural = spec(schema.clone());
        assert_eq!(said(&structural, value.clone()), [expected], "{schema} on {value}");
    }
}

#[test]
fn alternatives() {
    let schema = spec(json!({
        "type": "object",
        "properties": {"a": {"type": "string"}, "b": {"type": "string"}, "n": {"type": "integer"}},
        "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        "anyOf": [{"properties": {"n": {"minimum": 10}}}, {"properties": {"n": {"maximum": 5}}}],
        "allOf": [{"not": {"required": ["a", "n"]}}],
    }));
    let none: [&str; 0] = [];
    assert_eq!(said(&schema, json!({"b": "x", "n": 3})), none);
    assert_eq!(
        said(&schema, json!({"b": "x", "n": 7})),
        [
            "spec: Invalid value: \"\": \"spec\" must validate at least one schema (anyOf)",
            "spec.n: Invalid value: 7: spec.n in body should be greater than or equal to 10",
        ]
    );
    assert_eq!(
        said(&schema, json!({"a": "x", "b": "y"})),
        [
            "spec: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found 2 valid alternatives"
        ]
    );
    assert_eq!(
        said(&schema, json!({})),
        [
            "spec: Invalid value: \"\": \"spec\" must validate one and only one schema (oneOf). Found none valid",
            "spec.a: Required value",
        ]
    );
    assert!(said(&schema, json!({"a": "x", "n": 1}))[0].contains("allOf"));
}

#[test]
fn pruning_drops_what_is_unknown() {
    let schema = parse(&object(json!({
        "spec": {"type": "object", "properties": {
            "known": {"type": "string"},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {
                "inner": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
            "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"x": {"type": "integer"}}}},
            "list": {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "integer"}}}},
            "resource": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": {
                "spec": {"type": "object", "properties": {"x": {"type": "integer"}}}}},
        }}
    })));
    let mut document = json!({
        "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n", "anything": 1}, "extra": 1,
        "spec": {
            "known": "k", "foo": 1,
            "free": {"y": 1, "inner": {"x": 1, "y": 2}},
            "map": {"a": {"x": 1, "y": 2}},
            "list": [{"x": 1}, {"y": 2}],
            "resource": {"apiVersion": "v1", "kind": "P", "metadata": {"name": "p", "odd": 1}, "spec": {"x": 1, "y": 2}, "status": 1},
        }
    });
    let mut strictness = Strictness::default();
    assert_eq!(schema.prune(&mut document, &mut strictness), Ok(()));
    assert_eq!(
        document,
        json!({
            "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n", "anything": 1},
            "spec": {
                "known": "k",
                "free": {"y": 1, "inner": {"x": 1}},
                "map": {"a": {"x": 1}},
                "list": [{"x": 1}, {}],
                "resource": {"apiVersion": "v1", "kind": "P", "metadata": {"name": "p"}, "spec": {"x": 1}},
            }
        })
    );
    let mut problems = strictness.problems;
    problems.sort();
    assert_eq!(
        problems,
        [
            "unknown field \"extra\"",
            "unknown field \"spec.foo\"",
            "unknown field \"spec.free.inner.y\"",
            "unknown field \"spec.list[1].y\"",
            "unknown field \"spec.map.a.y\"",
            "unknown field \"spec.resource.metadata.odd\"",
            "unknown field \"spec.resource.spec.y\"",
            "unknown field \"spec.resource.status\"",
        ]
    );
    for wrong in
        [json!({"metadata": 1}), json!({"kind": {}}), json!({"spec": {"resource": {"apiVersion": 1}}})]
    {
        let mut document = wrong.clone();
        let result = schema.prune(&mut document, &mut Strictness::default());
        assert!(matches!(result, Err(DecodeError::Type(_))), "{wrong}");
    }
    let everything = Structural::parse(&object(json!({})), true, &Path::new("schema"));
    let mut document = json!({"spec": {"x": 1}});
    assert_eq!(everything.map(|s| s.prune(&mut document, &mut Strictness::default())), Ok(Ok(())));
    assert_eq!(document, json!({"spec": {"x": 1}}));
}

impl PartialEq for Structural {
    fn eq(&self, other: &Self) -> bool {
        self.source == other.source
    }
}

#[test]
fn defaults_come_where_nothing_stands() {
    let schema = spec(json!({"type": "object", "default": {}, "properties": {
        "replicas": {"type": "integer", "default": 1},
        "nullable": {"type": "string", "nullable": true, "default": "x"},
        "nested": {"type": "object", "properties": {"a": {"type": "string", "default": "deep"}}},
        "list": {"type": "array", "items": {"type": "object", "properties": {"p": {"type": "string", "default": "TCP"}}}},
        "map": {"type": "object", "additionalProperties": {"type": "object", "properties": {"p": {"type": "integer", "default": 2}}}},
    }}));
    let rows = [
        (json!({}), json!({"spec": {"replicas": 1, "nullable": "x"}})),
        (json!({"spec": {"replicas": null}}), json!({"spec": {"replicas": 1, "nullable": "x"}})),
        (
            json!({"spec": {"nullable": null, "nested": {}}}),
            json!({"spec": {"replicas": 1, "nullable": null, "nested": {"a": "deep"}}}),
        ),
        (
            json!({"spec": {"replicas": 5, "nullable": "y", "list": [{}, {"p": "UDP"}], "map": {"k": {}}}}),
            json!({"spec": {"replicas": 5, "nullable": "y", "list": [{"p": "TCP"}, {"p": "UDP"}], "map": {"k": {"p": 2}}}}),
        ),
    ];
    for (mut document, expected) in rows {
        schema.default(&mut document);
        assert_eq!(document, expected);
    }
}

#[test]
fn schemas_that_are_not_structural() {
    let rule = |rule: &str| json!({"type": "integer", "x-kubernetes-validations": [{ "rule": rule }]});
    let rows = [
        (
            json!({"type": "array", "items": {"type": "string"}}),
            "schema.type: Invalid value: \"array\": must be object at the root",
        ),
        (json!({"properties": {}}), "schema.type: Required value: must not be empty at the root"),
        (
            object(json!({"a": {}})),
            "schema.properties[a].type: Required value: must not be empty for specified object fields",
        ),
        (
            object(json!({"a": {"type": "array", "items": {}}})),
            "schema.properties[a].items.type: Required value: must not be empty for specified array items",
        ),
        (
            object(json!({"a": {"type": "array"}})),
            "schema.properties[a].items: Required value: must be specified",
        ),
        (
            object(json!({"a": {"type": "thing"}})),
            "schema.properties[a].type: Unsupported value: \"thing\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
        ),
        (
            object(json!({"a": {"$ref": "#/x", "type": "string"}})),
            "schema.properties[a].$ref: Forbidden: $ref is not supported",
        ),
        (
            object(json!({"a": {"type": "array", "items": {"type": "string"}, "uniqueItems": true}})),
            "uniqueItems cannot be set to true since the runtime complexity becomes quadratic",
        ),
        (
            object(json!({"a": {"type": "object", "additionalProperties": false}})),
            "additionalProperties cannot be set to false",
        ),
        (
            object(
                json!({"a": {"type": "object", "properties": {"b": {"type": "string"}}, "additionalProperties": true}}),
            ),
            "additionalProperties and properties are mutual exclusive",
        ),
        (
            object(json!({"a": {"type": "string", "pattern": "("}})),
            "schema.properties[a].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't",
        ),
        (
            object(json!({"a": {"type": "string", "x-kubernetes-int-or-string": true}})),
            "must be empty if x-kubernetes-int-or-string is specified",
        ),
        (
            object(json!({"a": {"type": "object", "x-kubernetes-preserve-unknown-fields": false}})),
            "must be true or undefined",
        ),
        (
            object(json!({"a": {"type": "object", "x-kubernetes-embedded-resource": true}})),
            "must not be empty if x-kubernetes-embedded-resource is true",
        ),
        (
            object(json!({"a": {"type": "integer", "anyOf": [{"type": "integer"}]}})),
            "schema.properties[a].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            object(json!({"a": {"type": "integer", "allOf": [{"default": 1}]}})),
            "schema.properties[a].allOf[0].default: Forbidden: must be undefined to be structural",
        ),
        (
            object(json!({"a": {"type": "object", "anyOf": [{"properties": {"b": {"minimum": 1}}}]}})),
            "schema.properties[a].properties[b]: Required value: because it is defined in schema.properties[a].anyOf[0].properties[b]",
        ),
        (
            object(json!({"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}})),
            "must not specify anything other than name and generateName, but metadata is implicitly specified",
        ),
        (
            object(
                json!({"a": {"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}}}),
            ),
            "schema.properties[a].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
        (
            object(
                json!({"a": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"], "items": {"type": "object", "properties": {"k": {"type": "string"}}}}}),
            ),
            "must have a default or be a required property",
        ),
        (
            object(
                json!({"a": {"type": "array", "x-kubernetes-list-type": "pile", "items": {"type": "string"}}}),
            ),
            "Unsupported value: \"pile\": supported values: \"atomic\", \"map\", \"set\"",
        ),
        (
            object(
                json!({"a": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}}}),
            ),
            "must be atomic as item of a list with x-kubernetes-list-type=set",
        ),
        (
            object(json!({"a": {"type": "integer", "default": "x"}})),
            "schema.properties[a].default: Invalid value: \"x\"",
        ),
        (
            object(json!({"a": {"type": "integer", "maximum": 3, "default": 5}})),
            "should be less than or equal to 3",
        ),
        (object(json!({"a": {"type": "object", "default": {"b": 1}}})), "must not have unknown fields"),
        (
            object(json!({"a": rule("self.x > 1")})),
            "schema.properties[a].x-kubernetes-validations[0].rule: Invalid value: \"self.x > 1\": compilation failed: ERROR: <input>:1:6: type 'int' does not support field selection",
        ),
        (
            object(json!({"a": rule("self > 'a'")})),
            "found no matching overload for '_>_' applied to '(int, string)'",
        ),
        (
            object(json!({"a": rule("other > 1")})),
            "ERROR: <input>:1:1: undeclared reference to 'other' (in container '')",
        ),
        (object(json!({"a": rule("self + 1")})), "cel expression must evaluate to a bool"),
        (object(json!({"a": rule("self >")})), "compilation failed"),
        (object(json!({"a": rule(" ")})), "rule is not specified"),
        (
            object(
                json!({"a": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}),
            ),
            "oldSelf cannot be used on the uncorrelatable portion of the schema",
        ),
        (
            object(
                json!({"a": {"type": "integer", "x-kubernetes-validations": [{"rule": "true", "reason": "Because"}]}}),
            ),
            "Unsupported value: \"Because\"",
        ),
        (
            object(
                json!({"a": {"type": "object", "x-kubernetes-validations": [{"rule": "true", "fieldPath": ".nope"}]}}),
            ),
            "does not refer to a valid field",
        ),
        (
            object(
                json!({"a": {"type": "array", "items": {"type": "array", "items": {"type": "array", "items": {"type": "string"}}}, "x-kubernetes-validations": [{"rule": "self.all(x, x.all(y, y.all(z, z == 'string constant')))"}]}}),
            ),
            "Forbidden: estimated rule cost exceeds budget by factor of more than 100x (try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)",
        ),
    ];
    for (schema, expected) in rows {
        let found = match Structural::parse(&schema, false, &Path::new("schema")) {
            Ok(_) => panic!("{schema} is taken"),
            Err(found) => errors(&found),
        };
        assert!(found.iter().any(|error| error.contains(expected)), "{schema}: {found:#?}");
    }
}

#[test]
fn int_or_string_may_repeat_its_types() {
    for schema in [
        json!({"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}], "pattern": "^[0-9]+%?$"}),
        json!({"x-kubernetes-int-or-string": true, "allOf": [{"anyOf": [{"type": "integer"}, {"type": "string"}]}]}),
    ] {
        let schema = spec(schema);
        assert!(said(&schema, json!(5)).is_empty());
        assert!(said(&schema, json!("5%")).is_empty());
        assert!(!said(&schema, json!(true)).is_empty());
    }
}

#[test]
fn deep_and_large_schemas_are_refused() {
    let mut schema = json!({"type": "string"});
    for _ in 0..70 {
        schema = object(json!({ "a": schema }));
    }
    let result = Structural::parse(&schema, false, &Path::new("schema"));
    assert!(result.is_err_and(|errors| errors.to_string().contains("nested deeper")));
}

#[test]
fn nodes_say_how_they_merge() {
    let schema = spec(json!({"type": "object", "x-kubernetes-map-type": "atomic", "properties": {
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "protocol"],
            "items": {"type": "object", "required": ["port"], "properties": {
                "port": {"type": "integer"}, "protocol": {"type": "string", "default": "TCP"}}}},
        "names": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
    }}));
    let spec = schema.root().property("spec").expect("spec");
    let at = |name: &str| spec.property(name).expect("property");
    assert!(spec.is_map_atomic() && spec.is_object() && at("ports").is_array());
    let keys = ["port".to_owned(), "protocol".to_owned()];
    assert_eq!(at("ports").list_type(), ListKind::Map(&keys));
    assert_eq!(at("names").list_type(), ListKind::Set);
    assert_eq!(spec.list_type(), ListKind::Atomic);
    assert!(at("labels").additional().is_some() && at("any").preserves_unknown());
    let protocol = at("ports").items().and_then(|items| items.property("protocol"));
    assert_eq!(protocol.and_then(Node::default_value), Some(&json!("TCP")));
    let duplicate = json!([{"port": 1}, {"port": 1, "protocol": "TCP"}, {"port": 1, "protocol": "UDP"}]);
    assert_eq!(
        said(&schema, json!({ "ports": duplicate })),
        ["spec.ports[1]: Duplicate value: {\"port\":1,\"protocol\":\"TCP\"}"]
    );
}
