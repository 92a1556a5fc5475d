//! Fields that are unknown or written twice: refused, warned of, or taken, as the request asks.

use http::Method;
use serde_json::{Value, json};

use crate::conformance_custom::{anything, define, definition};
use crate::world::{APPLY, JSON, World};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

/// A deployment as text, with something more at its beginning, in its metadata and in its spec.
fn deployment(root: &str, metadata: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion": "apps/v1", "kind": "Deployment", {root} "metadata": {{"name": "d" {metadata}}}, "spec": {{
            {spec} "selector": {{"matchLabels": {{"a": "b"}}}},
            "template": {{"metadata": {{"labels": {{"a": "b"}}}}, "spec": {{"containers": [{{"name": "c", "image": "i"}}]}}}}
        }}}}"#
    )
}

#[tokio::test]
async fn typed_objects_are_read_strictly() {
    let world = World::new().await;
    let rows = [
        (deployment("", "", r#""nonsense": 1,"#), "unknown field \"spec.nonsense\""),
        (deployment("", "", r#""paused": true, "paused": false,"#), "duplicate field \"spec.paused\""),
        (deployment(r#""nonsense": 1,"#, "", ""), "unknown field \"nonsense\""),
        (deployment("", r#", "nonsense": 1"#, ""), "unknown field \"metadata.nonsense\""),
    ];
    for (body, complaint) in &rows {
        for (query, code) in [("Strict", 400), ("Warn", 201), ("Ignore", 201)] {
            let path = format!("{DEPLOYMENTS}?dryRun=All&fieldValidation={query}");
            let answer = world.send(Method::POST, &path, JSON, body.clone()).await;
            assert_eq!(answer.code, code, "{query} {complaint}: {}", answer.body);
            let warnings: Vec<&str> =
                answer.headers.get_all("warning").iter().filter_map(|w| w.to_str().ok()).collect();
            let warned = warnings.join(" ").replace('\\', "");
            match query {
                "Strict" => assert!(message(&answer.body).contains(complaint), "{}", answer.body),
                "Warn" => assert!(warned.contains(complaint), "{warned}"),
                _ => assert_eq!(warned, ""),
            }
        }
    }
    // The same body is refused when it is applied, in YAML, too.
    let yaml = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, nonsense: 1}\nspec: {}\n";
    let path = format!("{DEPLOYMENTS}/d?fieldManager=me&fieldValidation=Strict");
    let refused = world.send(Method::PATCH, &path, APPLY, yaml).await;
    assert!(refused.code >= 400 && message(&refused.body).contains("nonsense"), "{}", refused.body);
}

/// A definition whose objects have a field, an object of whatever kind, and nothing else.
fn strict_schema(preserve: bool) -> Value {
    let mut schema = json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "properties": {
            "known": {"type": "string"},
            "inner": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
        },
    }}});
    if preserve {
        schema["properties"]["spec"]["x-kubernetes-preserve-unknown-fields"] = true.into();
    }
    schema
}

fn thing(metadata: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {{"name": "t" {metadata}}}, "spec": {{{spec}}}}}"#
    )
}

async fn world_with(schema: Value) -> World {
    let world = World::new().await;
    define(&world, &definition("example.com", "things", "Thing", &[("v1", schema)])).await;
    world
}

async fn apply_strictly(world: &World, body: String) -> crate::world::Answer {
    world
        .send(Method::PATCH, &format!("{THINGS}/t?fieldManager=me&fieldValidation=Strict"), APPLY, body)
        .await
}

#[tokio::test]
async fn objects_without_a_schema_may_have_any_field() {
    let world = world_with(anything()).await;
    let made = apply_strictly(&world, thing("", r#""x": {"y": [1]}"#)).await.expect(201);
    assert_eq!(made["spec"], json!({"x": {"y": [1]}}));
}

#[tokio::test]
async fn objects_with_a_schema_have_its_fields() {
    let world = world_with(strict_schema(false)).await;
    apply_strictly(&world, thing("", r#""known": "a""#)).await.expect(201);
    let refused = apply_strictly(&world, thing("", r#""known": "a", "extra": "b""#)).await;
    assert!(refused.code == 400 || refused.code == 500, "{}", refused.body);
    assert!(message(&refused.body).contains("extra"), "{}", refused.body);
    let path = format!("{THINGS}?fieldValidation=Strict");
    let refused = world.send(Method::POST, &path, JSON, thing("", r#""extra": "b""#)).await.expect(400);
    assert!(message(&refused).contains("unknown field \"spec.extra\""), "{refused}");
}

#[tokio::test]
async fn fields_written_twice_are_seen_where_unknown_ones_are_kept() {
    let world = world_with(strict_schema(true)).await;
    let path = format!("{THINGS}?fieldValidation=Strict");
    let twice = thing("", r#""free": 1, "known": "a", "known": "b""#);
    let refused = world.send(Method::POST, &path, JSON, twice).await.expect(400);
    assert!(message(&refused).contains("duplicate field \"spec.known\""), "{refused}");
    world.send(Method::POST, &path, JSON, thing("", r#""free": 1, "known": "a""#)).await.expect(201);
}

#[tokio::test]
async fn metadata_is_strict_at_the_root_and_inside() {
    let world = world_with(strict_schema(false)).await;
    let path = format!("{THINGS}?fieldValidation=Strict");
    let inner = r#""inner": {"apiVersion": "v1", "kind": "ConfigMap", "free": 1, "metadata": {"name": "i", "wrong": 1}}"#;
    let rows = [
        (thing(r#", "wrong": 1"#, ""), "unknown field \"metadata.wrong\""),
        (thing("", inner), "unknown field \"spec.inner.metadata.wrong\""),
    ];
    for (body, complaint) in rows {
        let refused = world.send(Method::POST, &path, JSON, body).await.expect(400);
        assert!(message(&refused).contains(complaint), "{refused}");
    }
}
