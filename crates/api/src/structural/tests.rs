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
            "apiVersion": "a/v1", "kind": "K", "metadata": {"name": "n"},
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
            "unknown field \"metadata.anything\"",
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

/// A schema of the size and style people use.
fn route() -> Structural {
    let source: Value = serde_json::from_str(include_str!("tests/route.json")).expect("the file is JSON");
    parse(&source)
}

fn complete(schema: &Structural, spec: Value) -> Value {
    let mut document = json!({"apiVersion": "example.com/v1", "kind": "Route", "metadata": {"name": "r"}});
    if !spec.is_null() {
        document["spec"] = spec;
    }
    let mut strictness = Strictness::default();
    schema.prune(&mut document, &mut strictness).expect("prunes");
    assert_eq!(strictness.problems, Vec::<String>::new());
    schema.default(&mut document);
    document
}

#[test]
fn a_real_schema_completes_objects() {
    let schema = route();
    let path = json!({"type": "PathPrefix", "value": "/"});
    assert_eq!(complete(&schema, Value::Null)["spec"], json!({"rules": [{"matches": [{ "path": path }]}]}));
    let document = complete(
        &schema,
        json!({"parentRefs": [{"name": "gw"}], "rules": [{"backendRefs": [{"name": "a", "port": "http"}],
            "filters": [{"type": "Extension", "extension": {"anything": [1]}}], "matches": [{"headers": [{"name": "h", "value": "v"}]}]}]}),
    );
    assert_eq!(
        document["spec"],
        json!({
            "parentRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gw"}],
            "rules": [{
                "backendRefs": [{"name": "a", "port": "http", "kind": "Service", "weight": 1}],
                "filters": [{"type": "Extension", "extension": {"anything": [1]}}],
                "matches": [{"path": path, "headers": [{"name": "h", "value": "v", "type": "Exact"}]}],
            }],
        })
    );
    assert_eq!(errors(&schema.validate(&document, None)), Vec::<String>::new());
}

#[test]
fn a_real_schema_judges_objects() {
    let schema = route();
    let matches =
        |path: &str, kind: &str| json!({"rules": [{"matches": [{"path": {"type": kind, "value": path}}]}]});
    let rule = |rule: Value| json!({ "rules": [rule] });
    let certificate = |certificate: Value| json!({ "certificate": certificate });
    let rows = [
        (matches("/a", "Exact"), ""),
        (matches("a.*", "RegularExpression"), ""),
        (
            matches("a", "Exact"),
            "spec.rules[0].matches[0].path: Invalid value: \"object\": value must be an absolute path and start with '/' when type one of ['Exact', 'PathPrefix']",
        ),
        (
            matches("/a//b", "Exact"),
            "spec.rules[0].matches[0].path: Invalid value: \"object\": must not contain '//'",
        ),
        (matches("/a b", "Exact"), "must only contain valid characters"),
        (
            matches("/", "Odd"),
            "spec.rules[0].matches[0].path.type: Unsupported value: \"Odd\": supported values: \"Exact\", \"PathPrefix\", \"RegularExpression\"",
        ),
        (
            json!({"rules": []}),
            "spec.rules: Invalid value: 0: spec.rules in body should have at least 1 items",
        ),
        (
            json!({"hostnames": ["a.example.com", "a.example.com"]}),
            "spec.hostnames[1]: Duplicate value: \"a.example.com\"",
        ),
        (
            json!({"hostnames": ["A"]}),
            "spec.hostnames[0]: Invalid value: \"A\": spec.hostnames[0] in body should match",
        ),
        (
            json!({"parentRefs": [{"name": "a"}, {"name": "a"}]}),
            "spec.parentRefs: Invalid value: \"array\": sectionName must be unique",
        ),
        (
            json!({"parentRefs": [{"name": "a"}, {"name": "a", "sectionName": "x"}, {"name": "a", "namespace": "n"}]}),
            "",
        ),
        (
            rule(json!({"filters": [{"type": "RequestRedirect"}]})),
            "spec.rules[0].filters[0].requestRedirect: Required value: filter.requestRedirect must be specified for RequestRedirect filter.type",
        ),
        (
            rule(json!({"filters": [{"type": "Extension", "requestRedirect": {}}]})),
            "spec.rules[0].filters[0].requestRedirect: Forbidden: filter.requestRedirect must be nil",
        ),
        (
            rule(
                json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {}}, {"type": "RequestRedirect", "requestRedirect": {}}]}),
            ),
            "RequestRedirect filter cannot be repeated",
        ),
        (
            rule(json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"statusCode": 303}}]})),
            "Unsupported value: 303: supported values: \"301\", \"302\"",
        ),
        (
            rule(json!({"filters": [{"type": "RequestRedirect", "requestRedirect": {"port": 0}}]})),
            "spec.rules[0].filters[0].requestRedirect.port: Invalid value: 0: spec.rules[0].filters[0].requestRedirect.port in body should be greater than or equal to 1",
        ),
        (
            rule(json!({"backendRefs": [{"name": "a"}]})),
            "spec.rules[0].backendRefs[0]: Invalid value: \"object\": Must have port for Service reference",
        ),
        (rule(json!({"backendRefs": [{"name": "a", "port": 0}]})), "port must not be empty"),
        (rule(json!({"backendRefs": [{"name": "a", "port": ""}]})), "port must not be empty"),
        (
            rule(
                json!({"backendRefs": [{"name": "a", "port": 80}, {"name": "b", "port": "http"}, {"name": "c", "kind": "Bucket"}]}),
            ),
            "",
        ),
        (
            rule(json!({"timeouts": {"request": "1s", "backendRequest": "2s"}})),
            "backendRequest timeout cannot be longer than request timeout",
        ),
        (rule(json!({"timeouts": {"request": "0s", "backendRequest": "2s"}})), ""),
        (
            certificate(json!({"duration": "24h", "renewBefore": "48h"})),
            "spec.certificate: Invalid value: \"object\": renewBefore must be shorter than duration",
        ),
        (certificate(json!({"duration": "24h", "renewBefore": "8h"})), ""),
        (
            certificate(json!({"renewBefore": "8h"})),
            "spec.certificate: Invalid value: \"object\": no such key: duration evaluating rule: !has(self.renewBefore) || self.renewBefore < self.duration",
        ),
        (certificate(json!({"notAfter": "2019-01-01T00:00:00Z"})), "notAfter is in the past"),
        (certificate(json!({"notAfter": "2029-01-01T00:00:00+02:00"})), ""),
        (certificate(json!({"dns-names": ["a", ""]})), "names must not be empty"),
        (certificate(json!({"limits": {"disk": 1}})), "unknown limit"),
        (certificate(json!({"limits": {"memory": "512k"}})), "too little memory"),
        (certificate(json!({"limits": {"memory": 2_000_000, "cpu": "500m", "a.b/c": 1}})), ""),
        (
            certificate(json!({"limits": {"memory": "lots"}})),
            "spec.certificate.limits.memory: Invalid value: \"lots\"",
        ),
        (certificate(json!({"key": "aGk="})), ""),
        (certificate(json!({"key": "aGkh"})), "key must have two bytes"),
        (certificate(json!({"secretName": "taken"})), "taken may not be used for new ones"),
    ];
    for (spec, expected) in rows {
        let found = errors(&schema.validate(&complete(&schema, spec.clone()), None));
        let is_found = match expected {
            "" => found.is_empty(),
            _ => found.iter().any(|line| line.contains(expected)),
        };
        assert!(is_found, "{spec}: {found:#?}");
    }
    let mut document = complete(&schema, Value::Null);
    document["metadata"]["name"] = json!("forbidden");
    document["kind"] = json!("Other");
    assert_eq!(
        errors(&schema.validate(&document, None)),
        [
            "<nil>: Invalid value: \"object\": name is forbidden",
            "<nil>: Invalid value: \"object\": must be a Route",
        ]
    );
}

#[test]
fn transition_rules_see_the_old_value() {
    let schema = route();
    let condition =
        |time: &str, kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": time});
    let (early, late) = ("2024-01-01T00:00:00Z", "2024-06-01T00:00:00Z");
    let with = |conditions: Vec<Value>, secret: Value| {
        let mut document = complete(&schema, json!({"certificate": secret}));
        document["status"] = json!({ "conditions": conditions });
        document
    };
    let none = || json!({});
    let rows = [
        (with(vec![condition(early, "A")], none()), with(vec![condition(late, "A")], none()), ""),
        // Elements are found by their key, not by their place.
        (
            with(vec![condition(late, "A"), condition(early, "B")], none()),
            with(vec![condition(early, "B"), condition(late, "A")], none()),
            "",
        ),
        (
            with(vec![condition(early, "B"), condition(late, "A")], none()),
            with(vec![condition(early, "A")], none()),
            "status.conditions[0]: Invalid value: \"object\": time does not run backwards",
        ),
        (
            with(vec![], json!({"secretName": "a"})),
            with(vec![], json!({"secretName": "b"})),
            "spec.certificate.secretName: Invalid value: \"object\": secretName is immutable",
        ),
        (with(vec![], none()), with(vec![], json!({"secretName": "taken"})), ""),
    ];
    for (old, new, expected) in rows {
        let found = errors(&schema.validate(&new, Some(&old)));
        let is_right = if expected.is_empty() { found.is_empty() } else { found == [expected] };
        assert!(is_right, "{old} -> {new}: {found:?}");
    }
}

#[test]
fn sets_and_maps_have_no_order_for_rules() {
    let list = |kind: &str, items: Value| json!({"type": "array", "maxItems": 50, "x-kubernetes-list-type": kind, "items": items});
    let text = || json!({"type": "string", "maxLength": 10});
    let holds = |rule: &str| -> Vec<String> {
        let mut ports = list("map", object(json!({"n-o": {"type": "integer"}, "p": text(), "v": text()})));
        ports["x-kubernetes-list-map-keys"] = json!(["n-o", "p"]);
        ports["items"]["required"] = json!(["n-o", "p"]);
        let mut schema = object(json!({
            "a": list("set", text()), "b": list("set", text()), "plain": list("atomic", text()),
            "other": list("atomic", text()), "ports": ports.clone(), "moved": ports.clone(), "more": ports,
            "x": object(json!({"deep": list("set", text())})), "y": object(json!({"deep": list("set", text())})),
        }));
        schema["x-kubernetes-validations"] = json!([{"rule": rule}]);
        let port = |n: i64, p: &str, v: &str| json!({"n-o": n, "p": p, "v": v});
        let document = json!({
            "a": ["1", "2"], "b": ["2", "1"], "plain": ["1", "2"], "other": ["2", "1"],
            "ports": [port(1, "t", "x"), port(2, "t", "y")],
            "moved": [port(2, "t", "y"), port(1, "t", "x")],
            "more": [port(3, "t", "z"), port(1, "t", "new"), port(1, "u", "u")],
            "x": {"deep": ["1", "2"]}, "y": {"deep": ["2", "1"]},
        });
        said(&spec(schema), document)
    };
    let rows = [
        "self.a == self.b && !(self.a != self.b) && self.a == ['2', '1']",
        "self.a != ['1', '1'] && self.a != ['1'] && self.a != ['1', '3'] && self.a == self.plain",
        "self.plain != self.other && self.plain != self.b && ['2', '1'] != self.a",
        "self.x == self.y && [self.x] == [self.y] && {'k': self.a} == {'k': self.b}",
        "self.a + self.b == self.a && (self.a + ['3', '1', '3']).size() == 3",
        "string((self.a + ['3', '1', '0'])[2]) == '3' && (self.a + ['3'])[0] == '1'",
        "self.a + ['3'] == ['3', '2', '1'] && self.a + ['4'] + ['4', '1'] == ['4', '2', '1']",
        "self.plain + self.b == ['1', '2', '2', '1']",
        "self.ports == self.moved && self.ports != self.more",
        "(self.ports + self.more).map(x, x.v) == ['new', 'y', 'z', 'u']",
        "self.ports + self.more == self.more + self.moved + self.more",
        "self.ports.filter(x, true) != self.moved && '1' in self.a && self.a.all(x, x in self.b)",
        "cel.bind(x, self.a, x == self.b) && (true ? self.a : self.b) == self.b",
    ];
    for rule in rows {
        assert_eq!(holds(rule), Vec::<String>::new(), "{rule}");
        assert_eq!(holds(&format!("!({rule})")).len(), 1, "{rule}");
    }
}

#[test]
fn what_did_not_change_is_not_refused_again() {
    let schema = spec(json!({"type": "object", "properties": {
        "size": {"type": "integer", "maximum": 10},
        "name": {"type": "string", "x-kubernetes-validations": [{"rule": "self.startsWith('a')", "message": "must start with a"}]},
        "limits": {"type": "object", "additionalProperties": {"type": "integer", "maximum": 5}},
        "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
            "items": {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}, "v": {"type": "integer", "maximum": 5}}}},
        "list": {"type": "array", "items": {"type": "integer", "maximum": 5}},
        "free": {"type": "string"},
    }}));
    let old = json!({"spec": {"size": 11, "name": "b", "limits": {"a": 9}, "ports": [{"n": 1, "v": 9}], "list": [9], "free": "x"}});
    let changed = |field: &str, value: Value| {
        let mut new = old.clone();
        new["spec"][field] = value;
        new
    };
    let rows = [
        (changed("free", json!("y")), 0),
        (changed("size", json!(12)), 1),
        (changed("size", json!(5)), 0),
        (changed("limits", json!({"a": 9, "b": 1})), 0),
        (changed("limits", json!({"a": 9, "b": 8})), 1),
        (changed("ports", json!([{"n": 2}, {"n": 1, "v": 9}])), 0),
        (changed("ports", json!([{"n": 2, "v": 9}, {"n": 1, "v": 9}])), 1),
        // Elements of other lists have no identity: a changed list is new.
        (changed("list", json!([9, 1])), 1),
        (changed("name", json!("c")), 1),
    ];
    for (new, expected) in rows {
        let found = schema.validate(&new, Some(&old));
        assert_eq!(found.0.len(), expected, "{new}: {found}");
    }
    assert!(schema.validate(&old, None).0.len() >= 4);
}

#[test]
fn rules_end_with_the_budget() {
    let schema = spec(json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true,
        "x-kubernetes-validations": [{"rule": "self.list.all(x, self.list.all(y, x == y))"}, {"rule": "false"}]}));
    let list = vec![1; 2000];
    assert_eq!(
        said(&schema, json!({ "list": list })),
        [
            "spec: Invalid value: \"object\": operation cancelled: actual cost limit exceeded: no further validation \
          rules will be run due to call cost exceeds limit for rule: self.list.all(x, self.list.all(y, x == y))"
        ]
    );
}

#[test]
fn names_are_escaped_as_upstream_does() {
    let rows = [
        ("plain", Some("plain")),
        ("namespace", Some("__namespace__")),
        ("foo-bar", Some("foo__dash__bar")),
        ("a.b", Some("a__dot__b")),
        ("x/y", Some("x__slash__y")),
        ("redact__d", Some("redact__underscores__d")),
        ("my_field", Some("my_field")),
        ("int", Some("int")),
        ("1st", None),
        ("a b", None),
        ("", None),
    ];
    for (name, expected) in rows {
        assert_eq!(rules::escape(name).as_deref(), expected, "{name}");
    }
}

/// The cases of the conformance tests `CustomResourceValidationRules`.
#[test]
fn conformance_of_rules() {
    let list = |most: u64| json!({"type": "array", "maxItems": most, "items": {"type": "integer"}});
    let schema = spec(json!({"type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}, "a": list(1000), "b": list(1000), "large": list(725)},
    "x-kubernetes-validations": [
        {"rule": "self.x + self.y > 0"},
        {"rule": "self.a.isSorted() && self.b.isSorted() && ((self.a.sum() + self.b.sum()) % 2 == 0)"},
        {"rule": "self.large.all(x, self.large.all(y, y == x))"},
    ]}));
    let good = json!({"x": 1, "y": 0, "a": [3, 4], "b": [5, 10], "large": [2, 2]});
    assert_eq!(said(&schema, good), Vec::<String>::new());
    let found = said(&schema, json!({"x": 0, "y": 0}));
    assert_eq!(found[0], "spec: Invalid value: \"object\": failed rule: self.x + self.y > 0");
    let found = said(&schema, json!({ "large": vec![20; 725] }));
    assert!(found.iter().any(|line| line.contains("call cost exceeds limit")), "{found:?}");
    let rows = [
        (json!({"type": "object", "x-kubernetes-validations": [{"rule": "self = 42"}]}), "Syntax error"),
        (
            json!({"type": "object", "properties": {"x": {"type": "integer"}}, "x-kubernetes-validations": [{"rule": "self.z == 100"}]}),
            "undefined field 'z'",
        ),
        (
            json!({"type": "array", "items": {"type": "array", "items": {"type": "string"},
                "x-kubernetes-validations": [{"rule": "self.all(s, s == 'string constant')"}]}}),
            "exceeds budget",
        ),
    ];
    for (wrong, expected) in rows {
        let result = Structural::parse(&object(json!({ "spec": wrong })), false, &Path::new("schema"));
        assert!(result.is_err_and(|errors| errors.to_string().contains(expected)), "{expected}");
    }
}

/// The same for ratcheting: what did not change passes, transition rules always run, rules in unbounded lists are
/// not too expensive.
#[test]
fn conformance_of_ratcheting() {
    // A comparison of two texts of any length, at any number of places, is too expensive; with a constant it is not.
    let schema = |rule: Value, most: Value| {
        let field = json!({"type": "string", "maxLength": most, "x-kubernetes-validations": [rule]});
        let holder = json!({"type": "object", "properties": {"field": field, "other": {"type": "string"}}});
        parse(&object(json!({
            "field": field,
            "struct": holder,
            "list": {"type": "array", "maxItems": most, "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["key"],
                "items": {"type": "object", "required": ["key"], "properties": {
                    "key": {"type": "string"}, "field": field, "other": {"type": "string"}}}},
            "map": {"type": "object", "maxProperties": most, "additionalProperties": holder},
        })))
    };
    let object = |field: &str, other: &str| {
        let holder = json!({"field": field, "other": other});
        json!({"field": field, "struct": holder, "map": {"foo": holder, "bar": holder},
            "list": [{"key": "foo", "field": field, "other": other}, {"key": "bar", "field": field, "other": other}]})
    };
    let all = ["field", "list[0].field", "list[1].field", "map[bar].field", "map[foo].field", "struct.field"];
    let none: [&str; 0] = [];
    let fields = |rule: Value, new: Value, old: Option<Value>| {
        let most = if rule.to_string().contains("oldSelf") { json!(5) } else { Value::Null };
        let errors = schema(rule, most).validate(&new, old.as_ref());
        let mut fields: Vec<String> = errors.0.into_iter().map(|error| error.field).collect();
        fields.sort();
        fields
    };
    let is_foo = || json!({"rule": "self == \"foo\""});
    assert_eq!(fields(is_foo(), object("bad", "new"), Some(object("bad", "old"))), none);
    assert_eq!(fields(is_foo(), object("bad", "x"), Some(object("foo", "x"))), all);
    let changes = || json!({"rule": "self != oldSelf"});
    assert_eq!(fields(changes(), object("a", "x"), Some(object("a", "x"))), all);
    assert_eq!(fields(changes(), object("a", "x"), None), none);
    let optional =
        || json!({"rule": "!oldSelf.hasValue() || self != oldSelf.value()", "optionalOldSelf": true});
    assert_eq!(fields(optional(), object("a", "x"), None), none);
    assert_eq!(fields(optional(), object("a", "y"), Some(object("a", "x"))), all);
    assert_eq!(fields(optional(), object("b", "x"), Some(object("a", "x"))), none);
}

#[test]
fn schemas_are_shared_between_threads() {
    fn shared<T: Send + Sync + Clone>(_: &T) {}
    shared(&spec(json!({"type": "integer"})));
}

/// Any part of a schema or an object may be anything.
#[test]
fn junk_is_survived() {
    let source: Value = serde_json::from_str(include_str!("tests/route.json")).expect("the file is JSON");
    let junk = [
        json!(null),
        json!(true),
        json!(-1),
        json!(1e300),
        json!("\u{0}é"),
        json!([[]]),
        json!({"type": {"": []}}),
    ];
    let mut pointers = Vec::new();
    collect(&source, String::new(), &mut pointers);
    // Every seventeenth place is enough: the step is coprime to the length of repeating parts.
    for (index, pointer) in pointers.iter().enumerate().step_by(17) {
        let mut broken = source.clone();
        *broken.pointer_mut(pointer).expect("the place exists") = junk[index % junk.len()].clone();
        if let Ok(schema) = Structural::parse(&broken, false, &Path::new("schema")) {
            exercise(&schema, &broken);
        }
    }
    let schema = route();
    let good = complete(
        &schema,
        json!({"parentRefs": [{"name": "a"}], "certificate": {"key": "aGk=", "limits": {"cpu": 1}},
        "rules": [{"backendRefs": [{"name": "a", "port": 1}], "filters": [{"type": "Extension"}]}]}),
    );
    let mut pointers = Vec::new();
    collect(&good, String::new(), &mut pointers);
    for pointer in pointers {
        for junk in &junk {
            let mut broken = good.clone();
            *broken.pointer_mut(&pointer).expect("the place exists") = junk.clone();
            exercise(&schema, &broken);
        }
    }
}

fn exercise(schema: &Structural, document: &Value) {
    let mut document = document.clone();
    let _ = schema.prune(&mut document, &mut Strictness::default());
    schema.default(&mut document);
    let once = document.clone();
    schema.default(&mut document);
    assert_eq!(document, once, "defaults settle");
    let _ = (schema.validate(&document, None), schema.validate(&document, Some(&json!({}))));
}

fn collect(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let name = name.replace('~', "~0").replace('/', "~1");
                collect(field, format!("{at}/{name}"), out);
            }
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| collect(item, format!("{at}/{index}"), out));
        }
        _ => {}
    }
    out.push(at);
}
