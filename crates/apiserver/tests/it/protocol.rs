//! What is true of the protocol, whatever the kind.

use http::Method;
use serde_json::{Value, json};

use crate::world::{APPLY, JSON, MERGE, World};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

#[tokio::test]
async fn bad_requests_are_named() {
    let world = World::new().await;
    let deep = "[".repeat(100_000);
    let rows: &[(&str, &str, u16, &str)] = &[
        (JSON, "{", 400, "BadRequest"),
        (JSON, &deep, 400, "BadRequest"),
        (JSON, "\u{0}", 400, "BadRequest"),
        (JSON, r#"{"data": 5}"#, 400, "BadRequest"),
        (JSON, r#"{"metadata": {"name": "UPPER"}}"#, 422, "Invalid"),
        (JSON, r#"{"metadata": {}}"#, 422, "Invalid"),
        (JSON, r#"{"kind": "Pod", "metadata": {"name": "a"}}"#, 400, "BadRequest"),
        (JSON, r#"{"metadata": {"name": "a", "namespace": "other"}}"#, 400, "BadRequest"),
        (JSON, r#"{"metadata": {"name": "a", "resourceVersion": "5"}}"#, 400, "BadRequest"),
        ("text/html", "<p>", 415, "UnsupportedMediaType"),
        ("application/vnd.kubernetes.protobuf", "{}", 400, "BadRequest"),
    ];
    for (content_type, body, code, reason) in rows {
        let answer = world.send(Method::POST, MAPS, content_type, (*body).to_owned()).await;
        let shown = &body[..body.len().min(60)];
        assert_eq!(
            (answer.code, answer.body["reason"].as_str()),
            (*code, Some(*reason)),
            "{shown}: {}",
            answer.body
        );
        assert_eq!(answer.body["kind"], "Status");
    }
    let large = map("large", json!({"a": "x".repeat(4 << 20)}));
    assert_eq!(world.post(MAPS, &large).await.expect(413)["reason"], "RequestEntityTooLarge");
    world.send(Method::PUT, MAPS, JSON, "{}").await.expect(405);
    world.get("/api/v1/nonsense").await.expect(404);
    world.get("/apis/nonsense/v1/x").await.expect(404);
    let missing = world.post("/api/v1/namespaces/nope/configmaps", &map("a", json!({}))).await.expect(404);
    assert_eq!(missing["message"], "namespaces \"nope\" not found");
}

#[tokio::test]
async fn unknown_fields_are_treated_as_asked() {
    let world = World::new().await;
    let body = json!({"metadata": {"name": "a"}, "nonsense": 1});
    let strict = world.post(&format!("{MAPS}?fieldValidation=Strict"), &body).await.expect(400);
    assert!(strict["message"].as_str().is_some_and(|m| m.contains("unknown field \"nonsense\"")), "{strict}");
    let warned = world.post(&format!("{MAPS}?fieldValidation=Warn"), &body).await;
    assert_eq!(warned.code, 201);
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"nonsense\\\"\"");
    assert_eq!(warned.body.get("nonsense"), None);
    let ignored = world.patch(&format!("{MAPS}/a?fieldValidation=Ignore"), MERGE, &json!({"other": 1})).await;
    assert!(ignored.code == 200 && ignored.headers.get("warning").is_none());
}

#[tokio::test]
async fn pages_show_one_moment() {
    let world = World::new().await;
    for i in 0..7 {
        world.post(MAPS, &map(&format!("m{i}"), json!({}))).await.expect(201);
    }
    let first = world.get(&format!("{MAPS}?limit=3")).await.expect(200);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    // What happens between two pages is not in the second one.
    world.post(MAPS, &map("m9", json!({}))).await.expect(201);
    world.delete(&format!("{MAPS}/m5")).await.expect(200);
    let mut names = Vec::new();
    let mut page = first;
    loop {
        names.extend(page["items"].as_array().into_iter().flatten().map(|i| i["metadata"]["name"].clone()));
        let Some(token) = page["metadata"]["continue"].as_str() else { break };
        page = world.get(&format!("{MAPS}?limit=3&continue={token}")).await.expect(200);
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    world.get(&format!("{MAPS}?limit=3&continue=nonsense")).await.expect(400);
    world.get(&format!("{MAPS}?limit=-1")).await.expect(400);
    world.get(&format!("{MAPS}?resourceVersion=999999999")).await.expect(504);
}

#[tokio::test]
async fn apply_creates_conflicts_and_forces() {
    let world = World::new().await;
    let path = format!("{MAPS}/applied");
    let created =
        world.patch(&format!("{path}?fieldManager=one"), APPLY, &map("applied", json!({"a": "1"}))).await;
    created.expect(201);
    let other = map("applied", json!({"a": "2"}));
    let conflict = world.patch(&format!("{path}?fieldManager=two"), APPLY, &other).await.expect(409);
    assert_eq!(conflict["details"]["causes"][0]["field"], ".data.a", "{conflict}");
    let forced = world.patch(&format!("{path}?fieldManager=two&force=true"), APPLY, &other).await.expect(200);
    assert_eq!(forced["data"]["a"], "2");
}

#[tokio::test]
async fn finalizers_hold_and_preconditions_protect() {
    let world = World::new().await;
    let mut held = map("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    world.post(MAPS, &held).await.expect(201);
    let path = format!("{MAPS}/held");
    let wrong = json!({"preconditions": {"uid": "another"}}).to_string();
    world.send(Method::DELETE, &path, JSON, wrong).await.expect(409);
    world.delete(&path).await.expect(200);
    assert!(world.get(&path).await.expect(200)["metadata"]["deletionTimestamp"].is_string());
    let added = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    world.patch(&path, MERGE, &added).await.expect(422);
    world.patch(&path, MERGE, &json!({"metadata": {"finalizers": null}})).await.expect(200);
    world.get(&path).await.expect(404);
}

#[tokio::test]
async fn services_get_addresses_once() {
    let world = World::new().await;
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, address: Value| json!({"metadata": {"name": name}, "spec": {"type": "NodePort", "clusterIP": address, "ports": [{"port": 80}]}});
    let one = world.post(services, &service("a", Value::Null)).await.expect(201);
    let address = one["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    assert!(address.starts_with("10.43.0.") && one["spec"]["ports"][0]["nodePort"].is_u64());
    world.post(services, &service("b", json!(address))).await.expect(422);
    world.post(services, &service("b", json!("192.168.1.1"))).await.expect(422);
    // A refused change gives nothing away.
    let broken = json!({"spec": {"ports": [{"port": 80, "nodePort": 30999}], "selector": {"bad key!": "x"}}});
    world.patch(&format!("{services}/a"), MERGE, &broken).await.expect(422);
    let mut same_port = service("c", Value::Null);
    same_port["spec"]["ports"][0]["nodePort"] = one["spec"]["ports"][0]["nodePort"].clone();
    world.post(services, &same_port).await.expect(422);
    world.delete(&format!("{services}/a")).await.expect(200);
    world.post(services, &service("b", json!(address))).await.expect(201);
}

#[tokio::test]
async fn scale_is_a_view() {
    let world = World::new().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
        },
    });
    world.post(deployments, &deployment).await.expect(201);
    let scale = format!("{deployments}/d/scale");
    let patched = world.patch(&scale, MERGE, &json!({"spec": {"replicas": 4}})).await.expect(200);
    assert_eq!((patched["kind"].as_str(), patched["spec"]["replicas"].as_i64()), (Some("Scale"), Some(4)));
    let whole = world.get(&format!("{deployments}/d")).await.expect(200);
    assert_eq!(
        (whole["spec"]["replicas"].as_i64(), whole["metadata"]["generation"].as_i64()),
        (Some(4), Some(2))
    );
    let negative = world.patch(&scale, MERGE, &json!({"spec": {"replicas": -1}})).await.expect(422);
    assert!(
        negative["message"].as_str().is_some_and(|m| m.contains("spec.replicas: Invalid value: -1")),
        "{negative}"
    );
}
