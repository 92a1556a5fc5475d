//! The operations of every kind that the smallest script (`every_kind.rs`) leaves out: its place in discovery, lists over
//! all namespaces, status, and the deletion of a collection.

use std::sync::Arc;

use http::Method;
use sampan_api::kind::Subresource;
use sampan_api::registry::{Kind, Registry};
use serde_json::{Value, json};

use crate::every_kind::{collection, object, release};
use crate::world::{JSON, MERGE, Watching, World};

/// Kinds whose objects the server itself changes at once, so that a script of all kinds cannot own them.
const WATCHED_OVER: [&str; 2] = ["CustomResourceDefinition", "APIService"];

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_default()
}

fn names<'a>(list: &'a Value, field: &str) -> Vec<&'a str> {
    list[field].as_array().into_iter().flatten().map(|item| text(item, "name")).collect()
}

#[tokio::test]
async fn every_kind_is_discovered() {
    let world = World::new().await;
    let groups = world.get("/apis").await.expect(200);
    for kind in Registry::built_in().kinds() {
        let what = kind.resource();
        let root = if kind.group.is_empty() {
            assert_eq!(world.get("/api").await.expect(200)["versions"], json!(["v1"]));
            "/api/v1".to_owned()
        } else {
            assert!(names(&groups, "groups").contains(&&*kind.group), "{what}: no group");
            let group = world.get(&format!("/apis/{}", kind.group)).await.expect(200);
            let versions = group["versions"].as_array().cloned().unwrap_or_default();
            assert!(
                versions.iter().any(|v| text(v, "groupVersion") == kind.api_version()),
                "{what}: {group}"
            );
            format!("/apis/{}", kind.api_version())
        };
        let resources = world.get(&root).await.expect(200);
        let found = names(&resources, "resources");
        assert!(found.contains(&&*kind.plural), "{what}: {found:?}");
        for subresource in &kind.subresources {
            let name = format!("{}/{}", kind.plural, subresource.as_str());
            assert!(found.contains(&name.as_str()), "{what}: no {name}");
        }
    }
}

/// Three objects of a kind that one label selects.
fn three(kind: &Kind) -> [Value; 3] {
    [1, 2, 3].map(|i| {
        let mut object = object(kind);
        let name = if kind.kind == "IPAddress" { format!("10.99.0.{i}") } else { format!("set-{i}") };
        object["metadata"]["name"] = name.into();
        object["metadata"]["labels"] = json!({"set": "three"});
        object
    })
}

#[tokio::test]
async fn every_kind_has_status_and_collections() {
    let world = World::new().await;
    let account = json!({"metadata": {"name": "default"}});
    world.post("/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
    let registry = Registry::built_in();
    let own = |kind: &&Arc<Kind>| kind.stored() && !WATCHED_OVER.contains(&&*kind.kind);
    for kind in registry.kinds().iter().filter(own) {
        println!("{} {}", kind.api_version(), kind.kind);
        script(&world, kind).await;
    }
}

async fn script(world: &World, kind: &Kind) {
    let (all, what) = (collection(kind), kind.resource());
    let one = |object: &Value| format!("{all}/{}", text(&object["metadata"], "name"));
    let selected = "labelSelector=set%3Dthree";
    let from = world.get(&all).await.expect(200)["metadata"]["resourceVersion"].clone();
    let from = from.as_str().expect("a revision").to_owned();
    let mut watching = world.watch(&format!("{all}?{selected}&resourceVersion={from}")).await;
    let mut bystander = object(kind);
    bystander["metadata"]["name"] = if kind.kind == "IPAddress" { "10.99.0.9" } else { "bystander" }.into();
    world.post(&all, &bystander).await.expect(201);
    let three = three(kind);
    for object in &three {
        world.post(&all, object).await.expect(201);
    }
    let everywhere = all.replace("/namespaces/default", "");
    for path in [&all, &everywhere] {
        let list = world.get(&format!("{path}?{selected}")).await.expect(200);
        assert_eq!(list["items"].as_array().map(Vec::len), Some(3), "{what} {path}");
    }
    let [first, second, third] = &three;
    world.patch(&one(first), MERGE, &json!({"metadata": {"annotations": {"p": "1"}}})).await.expect(200);
    let mut whole = world.get(&one(second)).await.expect(200);
    whole["metadata"]["annotations"] = json!({"u": "1"});
    let updated = world.put(&one(second), &whole).await.expect(200);
    assert_eq!(updated["metadata"]["annotations"]["u"], "1", "{what}");
    if kind.has(Subresource::Status) {
        status(world, kind, &one(third)).await;
    }
    // A collection of namespaces is not deleted at once: in Kubernetes neither.
    if kind.plural == "namespaces" {
        return;
    }
    world.delete(&one(first)).await.expect(200);
    release(world, &one(first)).await;
    world.send(Method::DELETE, &format!("{all}?{selected}"), JSON, "").await.expect(200);
    for object in &three {
        release(world, &one(object)).await;
    }
    let list = world.get(&format!("{all}?{selected}")).await.expect(200);
    assert_eq!(list["items"], json!([]), "{what}");
    world.get(&one(&bystander)).await.expect(200);
    world.delete(&one(&bystander)).await.expect(200);
    release(world, &one(&bystander)).await;
    seen(&mut watching, what).await;
}

/// The selected objects came, changed and went; nothing else was seen.
async fn seen(watching: &mut Watching, what: &str) {
    let (mut added, mut modified, mut deleted) = (0, 0, 0);
    while deleted < 3 {
        let event = watching.next().await;
        assert_eq!(event["object"]["metadata"]["labels"]["set"], "three", "{what}: {event}");
        match text(&event, "type") {
            "ADDED" => added += 1,
            "MODIFIED" => modified += 1,
            "DELETED" => deleted += 1,
            _ => panic!("{what}: {event}"),
        }
    }
    assert!(added == 3 && modified >= 2, "{what}: {added} added, {modified} modified");
}

/// A write of the status leaves the spec alone, and takes what clients say about the object along, in most kinds.
async fn status(world: &World, kind: &Kind, path: &str) {
    let what = kind.resource();
    let address = format!("{path}/status");
    let before = world.get(&address).await.expect(200);
    let patch = json!({"metadata": {"annotations": {"patched": "yes"}, "labels": {"patched": "yes"}}});
    world.patch(&address, MERGE, &patch).await.expect(200);
    let mut whole = world.get(&address).await.expect(200);
    whole["metadata"]["annotations"]["updated"] = "yes".into();
    // The server itself may have something to say in the status, and say it meanwhile.
    whole["metadata"]["resourceVersion"] = Value::Null;
    if whole["spec"].is_object() {
        whole["spec"]["nonsense"] = "dropped".into();
    }
    world.put(&address, &whole).await.expect(200);
    let after = world.get(path).await.expect(200);
    assert_eq!(after["spec"], before["spec"], "{what}");
    let annotations = &after["metadata"]["annotations"];
    let expected = |field| if kind.status_keeps.contains(&field) { Value::Null } else { json!("yes") };
    assert_eq!(after["metadata"]["labels"]["patched"], expected("labels"), "{what}");
    let expected = expected("annotations");
    assert_eq!((&annotations["patched"], &annotations["updated"]), (&expected, &expected), "{what}");
}

#[tokio::test]
async fn requests_for_certificates_have_an_approval() {
    let world = World::new().await;
    let registry = Registry::built_in();
    let kind = registry.find("certificates.k8s.io", "v1", "certificatesigningrequests").expect("a row");
    let (all, mut request) = (collection(kind), object(kind));
    request["metadata"]["name"] = "r".into();
    world.post(&all, &request).await.expect(201);
    let approval = format!("{all}/r/approval");
    let mut whole = world.get(&approval).await.expect(200);
    let annotated = json!({"metadata": {"annotations": {"patched": "yes"}}});
    world.patch(&approval, MERGE, &annotated).await.expect(200);
    whole = {
        let now = world.get(&approval).await.expect(200);
        assert_eq!(now["spec"], whole["spec"]);
        now
    };
    whole["status"]["conditions"] =
        json!([{"type": "Approved", "status": "True", "reason": "Test", "message": "m"}]);
    let approved = world.put(&approval, &whole).await.expect(200);
    assert_eq!(approved["status"]["conditions"][0]["type"], "Approved");
    let read = world.get(&format!("{all}/r")).await.expect(200);
    assert_eq!(
        (&read["status"]["conditions"][0]["reason"], &read["metadata"]["annotations"]["patched"]),
        (&json!("Test"), &json!("yes"))
    );
    // Who may write status only cannot approve.
    let mut denied = read;
    denied["status"]["conditions"] =
        json!([{"type": "Denied", "status": "True", "reason": "Test", "message": "m"}]);
    world.put(&format!("{all}/r/status"), &denied).await.expect(422);
}
