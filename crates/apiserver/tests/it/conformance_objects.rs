//! The life of namespaces, events, quotas and accounts as objects. What controllers make of them is tested end to end.

use http::Method;
use serde_json::{Value, json};

use crate::world::{JSON, MERGE, World};

const NAMESPACES: &str = "/api/v1/namespaces";
const CORE: &str = "/api/v1/namespaces/default";

#[tokio::test]
async fn namespaces_are_updated_patched_and_have_status() {
    let world = World::new().await;
    let made = world.post(NAMESPACES, &json!({"metadata": {"name": "n"}})).await.expect(201);
    assert_eq!(
        (&made["status"]["phase"], &made["metadata"]["labels"]["kubernetes.io/metadata.name"]),
        (&json!("Active"), &json!("n"))
    );
    let path = format!("{NAMESPACES}/n");
    let patched = world.patch(&path, MERGE, &json!({"metadata": {"labels": {"p": "1"}}})).await.expect(200);
    assert_eq!(patched["metadata"]["labels"]["p"], "1");
    let mut whole = patched;
    whole["metadata"]["labels"]["u"] = "1".into();
    world.put(&path, &whole).await.expect(200);
    assert_eq!(world.get(&path).await.expect(200)["metadata"]["labels"]["u"], "1");
    let status = format!("{path}/status");
    assert_eq!(world.get(&status).await.expect(200)["status"]["phase"], "Active");
    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "Test", "message": "m"});
    let patch = json!({"status": {"conditions": [condition("Patched")]}});
    let mut whole = world.patch(&status, MERGE, &patch).await.expect(200);
    assert_eq!(whole["status"]["conditions"][0]["type"], "Patched");
    whole["status"]["conditions"].as_array_mut().expect("a list").push(condition("Updated"));
    world.put(&status, &whole).await.expect(200);
    let read = world.get(&path).await.expect(200);
    assert_eq!(read["status"]["conditions"][1]["type"], "Updated");
}

#[tokio::test]
async fn finalizers_of_a_namespace_are_written_apart() {
    let world = World::new().await;
    world.post(NAMESPACES, &json!({"metadata": {"name": "n"}})).await.expect(201);
    let path = format!("{NAMESPACES}/n");
    let mut whole = world.get(&path).await.expect(200);
    assert_eq!(whole["spec"]["finalizers"], json!(["kubernetes"]));
    whole["spec"]["finalizers"] = json!(["kubernetes", "example.com/fake"]);
    let finalized = world.put(&format!("{path}/finalize"), &whole).await.expect(200);
    assert_eq!(finalized["spec"]["finalizers"], json!(["kubernetes", "example.com/fake"]));
    let mut back = world.get(&path).await.expect(200);
    assert_eq!(back["spec"]["finalizers"][1], "example.com/fake");
    back["spec"]["finalizers"] = json!(["kubernetes"]);
    world.put(&format!("{path}/finalize"), &back).await.expect(200);
    assert_eq!(world.get(&path).await.expect(200)["spec"]["finalizers"], json!(["kubernetes"]));
}

/// Both forms of an event: path of the collection, object, the field of its text.
fn events() -> [(String, Value, &'static str); 2] {
    let old = json!({
        "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "message": "first", "type": "Normal", "reason": "Test",
    });
    let new = json!({
        "metadata": {"name": "e"}, "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "note": "first",
        "type": "Normal", "reason": "Test", "action": "Do", "reportingController": "example.com/c", "reportingInstance": "i",
        "eventTime": "2026-01-01T00:00:00.000000Z",
    });
    [
        (format!("{CORE}/events"), old, "message"),
        ("/apis/events.k8s.io/v1/namespaces/default/events".to_owned(), new, "note"),
    ]
}

fn series(count: u32) -> Value {
    json!({"count": count, "lastObservedTime": "2026-01-01T00:00:01.000000Z"})
}

#[tokio::test]
async fn an_event_lives_in_both_groups() {
    for (all, event, field) in events() {
        let world = World::new().await;
        world.post(&all, &event).await.expect(201);
        let one = format!("{all}/e");
        let everywhere = all.replace("/namespaces/default", "");
        for path in [&all, &everywhere] {
            let list = world.get(&format!("{path}?fieldSelector=metadata.name%3De")).await.expect(200);
            assert_eq!(list["items"][0][field], "first", "{path}");
        }
        world.patch(&one, MERGE, &json!({"series": series(2)})).await.expect(200);
        // The other group shows the same event.
        let other = events().into_iter().find(|(path, ..)| *path != all).expect("two");
        let other = world.get(&format!("{}/e", other.0)).await.expect(200);
        assert_eq!(other["series"], series(2));
        let mut whole = world.get(&one).await.expect(200);
        whole["series"] = series(100);
        world.put(&one, &whole).await.expect(200);
        assert_eq!(world.get(&one).await.expect(200)["series"], series(100));
        // What an event says may be changed in the older group only.
        let code = if field == "message" { 200 } else { 422 };
        world.patch(&one, MERGE, &json!({field: "second"})).await.expect(code);
        world.delete(&one).await.expect(200);
        assert_eq!(world.get(&everywhere).await.expect(200)["items"], json!([]));
    }
}

#[tokio::test]
async fn events_are_deleted_together() {
    for (all, event, _) in events() {
        let world = World::new().await;
        for i in 0..3 {
            let mut event = event.clone();
            event["metadata"] = json!({"name": format!("e{i}"), "labels": {"set": "yes"}});
            world.post(&all, &event).await.expect(201);
        }
        world.post(&all, &event).await.expect(201);
        let selected = format!("{all}?labelSelector=set%3Dyes");
        assert_eq!(world.get(&selected).await.expect(200)["items"].as_array().map(Vec::len), Some(3));
        world.send(Method::DELETE, &selected, JSON, "").await.expect(200);
        assert_eq!(world.get(&selected).await.expect(200)["items"], json!([]));
        assert_eq!(world.get(&all).await.expect(200)["items"].as_array().map(Vec::len), Some(1));
    }
}

#[tokio::test]
async fn quotas_are_changed_and_their_status_written_apart() {
    let world = World::new().await;
    let quotas = format!("{CORE}/resourcequotas");
    let hard = |cpu: &str| json!({"cpu": cpu, "memory": "1Gi"});
    let quota = json!({"metadata": {"name": "q", "labels": {"set": "yes"}}, "spec": {"hard": hard("1")}});
    let made = world.post(&quotas, &quota).await.expect(201);
    assert_eq!(made["spec"]["hard"]["cpu"], "1");
    let path = format!("{quotas}/q");
    let mut whole = made;
    whole["spec"]["hard"] = hard("2");
    world.put(&path, &whole).await.expect(200);
    assert_eq!(world.get(&path).await.expect(200)["spec"]["hard"], hard("2"));
    let patched = world.patch(&path, MERGE, &json!({"spec": {"hard": {"cpu": "3"}}})).await.expect(200);
    assert_eq!(patched["spec"]["hard"], hard("3"));
    let status = format!("{path}/status");
    let mut whole = world.get(&status).await.expect(200);
    whole["status"] = json!({"hard": hard("3"), "used": {"cpu": "0", "memory": "0"}});
    whole["spec"]["hard"] = hard("9");
    let updated = world.put(&status, &whole).await.expect(200);
    assert_eq!((&updated["spec"]["hard"], &updated["status"]["hard"]), (&hard("3"), &hard("3")));
    world.patch(&status, MERGE, &json!({"status": {"hard": {"cpu": "4"}}})).await.expect(200);
    assert_eq!(world.get(&path).await.expect(200)["status"]["hard"], hard("4"));
    let everywhere = world.get("/api/v1/resourcequotas?labelSelector=set%3Dyes").await.expect(200);
    assert_eq!(everywhere["items"].as_array().map(Vec::len), Some(1));
    world.send(Method::DELETE, &format!("{quotas}?labelSelector=set%3Dyes"), JSON, "").await.expect(200);
    world.get(&path).await.expect(404);
}

#[tokio::test]
async fn accounts_are_watched_patched_and_updated() {
    let world = World::new().await;
    let accounts = format!("{CORE}/serviceaccounts");
    let mut watching = world.watch(&format!("{accounts}?labelSelector=set%3Dyes")).await;
    let account =
        json!({"metadata": {"name": "a", "labels": {"set": "yes"}}, "automountServiceAccountToken": false});
    world.post(&accounts, &account).await.expect(201);
    let path = format!("{accounts}/a");
    let patch = json!({"automountServiceAccountToken": true});
    assert_eq!(world.patch(&path, MERGE, &patch).await.expect(200)["automountServiceAccountToken"], true);
    let list = world.get("/api/v1/serviceaccounts?labelSelector=set%3Dyes").await.expect(200);
    assert_eq!(list["items"][0]["automountServiceAccountToken"], true);
    let mut whole = world.get(&path).await.expect(200);
    whole["automountServiceAccountToken"] = false.into();
    world.put(&path, &whole).await.expect(200);
    assert_eq!(world.get(&path).await.expect(200)["automountServiceAccountToken"], false);
    world.send(Method::DELETE, &format!("{accounts}?labelSelector=set%3Dyes"), JSON, "").await.expect(200);
    let mut lines = Vec::new();
    for _ in 0..4 {
        lines.push(watching.next_line().await);
    }
    assert_eq!(lines, ["ADDED a", "MODIFIED a", "MODIFIED a", "DELETED a"]);
}
