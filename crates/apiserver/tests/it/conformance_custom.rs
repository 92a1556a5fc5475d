//! Definitions of custom resources as objects, and what their users get.

use http::Method;
use serde_json::{Value, json};

use crate::outside::{Certificate, Outside, json_answer};
use crate::world::{JSON, MERGE, World, eventually};

pub(crate) const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";

/// A definition of a kind in namespaces whose versions have these schemas; the first one is stored.
pub(crate) fn definition(group: &str, plural: &str, kind: &str, versions: &[(&str, Value)]) -> Value {
    let version = |(i, (name, schema)): (usize, &(&str, Value))| json!({"name": name, "served": true, "storage": i == 0, "schema": {"openAPIV3Schema": schema}});
    let versions: Vec<Value> = versions.iter().enumerate().map(version).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"plural": plural, "kind": kind}, "versions": versions,
        },
    })
}

/// An object that may contain anything.
pub(crate) fn anything() -> Value {
    json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// Path of a definition.
pub(crate) fn path_of(definition: &Value) -> String {
    format!("{DEFINITIONS}/{}", definition["metadata"]["name"].as_str().expect("a name"))
}

/// Posts a definition and waits until it is established and served.
pub(crate) async fn define(world: &World, definition: &Value) {
    world.post(DEFINITIONS, definition).await.expect(201);
    let path = path_of(definition);
    eventually("Established", async || {
        let found = world.get(&path).await.body;
        let conditions = found["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().any(|c| c["type"] == "Established" && c["status"] == "True")
    })
    .await;
    let group = definition["spec"]["group"].as_str().expect("a group");
    for version in definition["spec"]["versions"].as_array().into_iter().flatten() {
        let path = format!("/apis/{group}/{}", version["name"].as_str().expect("a name"));
        let plural = &definition["spec"]["names"]["plural"];
        eventually("served", async || {
            let resources = world.get(&path).await.body;
            resources["resources"].as_array().is_some_and(|list| list.iter().any(|r| r["name"] == *plural))
        })
        .await;
    }
}

#[tokio::test]
async fn definitions_are_listed_watched_and_deleted_together() {
    let world = World::new().await;
    let from = world.get(DEFINITIONS).await.expect(200)["metadata"]["resourceVersion"].clone();
    let from = from.as_str().expect("a revision").to_owned();
    let labelled = |i: u32, label: &str| {
        let (plural, kind) = (format!("things{i}"), format!("Thing{i}"));
        let mut definition = definition("example.com", &plural, &kind, &[("v1", anything())]);
        definition["metadata"]["labels"] = json!({"set": label});
        definition
    };
    for i in 0..10 {
        define(&world, &labelled(i, "yes")).await;
    }
    define(&world, &labelled(99, "no")).await;
    let selected = format!("{DEFINITIONS}?labelSelector=set%3Dyes");
    let count = async || world.get(&selected).await.expect(200)["items"].as_array().map_or(0, Vec::len);
    assert_eq!(count().await, 10);
    world.send(Method::DELETE, &selected, JSON, "").await.expect(200);
    eventually("they are gone", async || count().await == 0).await;
    world.get(&path_of(&labelled(99, "no"))).await.expect(200);
    let mut watching = world
        .watch(&format!(
            "{DEFINITIONS}?fieldSelector=metadata.name%3Dthings3.example.com&resourceVersion={from}"
        ))
        .await;
    assert_eq!(watching.next_line().await, "ADDED things3.example.com");
    let mut last = watching.next_line().await;
    assert_eq!(last, "MODIFIED things3.example.com");
    while last == "MODIFIED things3.example.com" {
        last = watching.next_line().await;
    }
    assert_eq!(last, "DELETED things3.example.com");
}

#[tokio::test]
async fn the_status_of_a_definition_is_written_apart() {
    let world = World::new().await;
    let definition = definition("example.com", "things", "Thing", &[("v1", anything())]);
    define(&world, &definition).await;
    let status = format!("{}/status", path_of(&definition));
    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "Test", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let mut whole = world.get(&status).await.expect(200);
    assert_eq!(whole["status"]["acceptedNames"]["plural"], "things");
    whole["status"]["conditions"].as_array_mut().expect("a list").push(condition("Updated"));
    whole["spec"]["names"]["shortNames"] = json!(["no"]);
    let updated = world.put(&status, &whole).await.expect(200);
    assert_eq!(updated["spec"]["names"].get("shortNames"), None);
    let mut conditions = updated["status"]["conditions"].as_array().expect("a list").clone();
    conditions.push(condition("Patched"));
    world.patch(&status, MERGE, &json!({"status": {"conditions": conditions}})).await.expect(200);
    let read = world.get(&path_of(&definition)).await.expect(200);
    let types: Vec<&Value> =
        read["status"]["conditions"].as_array().expect("a list").iter().map(|c| &c["type"]).collect();
    assert!(types.contains(&&json!("Updated")) && types.contains(&&json!("Patched")), "{types:?}");
}

fn with_default(field: Option<&str>) -> Value {
    let mut properties = json!({"a": {"type": "string"}, "b": {"type": "string"}});
    if let Some(field) = field {
        properties[field]["default"] = format!("default-{field}").into();
    }
    json!({"type": "object", "properties": properties})
}

#[tokio::test]
async fn defaults_come_and_go_with_the_schema() {
    let world = World::new().await;
    let definition = definition("example.com", "things", "Thing", &[("v1", with_default(None))]);
    define(&world, &definition).await;
    let things = "/apis/example.com/v1/namespaces/default/things";
    let thing =
        |name: &str| json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": name}});
    let made = world.post(things, &thing("first")).await.expect(201);
    assert_eq!(made.get("a"), None);
    let change = async |field: &str| {
        let schema = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema", "value": with_default(Some(field))}]);
        world.patch(&path_of(&definition), "application/json-patch+json", &schema).await.expect(200);
    };
    let read = async |name: &str| world.get(&format!("{things}/{name}")).await.expect(200);
    change("a").await;
    eventually("a default from storage", async || read("first").await["a"] == "default-a").await;
    let made = world.post(things, &thing("second")).await.expect(201);
    assert_eq!(made["a"], "default-a");
    change("b").await;
    eventually("another default", async || read("second").await["b"] == "default-b").await;
    // What was written with a default keeps it.
    assert_eq!(read("second").await["a"], "default-a");
    assert_eq!(read("first").await.get("a"), None);
}

/// Converts between `v1` with `host` and `port` and `v2` with `hostPort`.
pub(crate) async fn convert(seen: crate::outside::Seen) -> http::Response<crate::outside::Body> {
    let request = &seen.body["request"];
    let desired = request["desiredAPIVersion"].as_str().unwrap_or_default().to_owned();
    let mut objects = request["objects"].clone();
    for object in objects.as_array_mut().into_iter().flatten() {
        object["apiVersion"] = desired.clone().into();
        let fields = object.as_object_mut().expect("an object");
        if desired.ends_with("/v2") {
            if let (Some(host), Some(port)) = (fields.remove("host"), fields.remove("port")) {
                let both =
                    format!("{}:{}", host.as_str().unwrap_or_default(), port.as_str().unwrap_or_default());
                fields.insert("hostPort".to_owned(), both.into());
            }
        } else if let Some(both) = fields.remove("hostPort") {
            let (host, port) = both.as_str().and_then(|b| b.split_once(':')).unwrap_or_default();
            fields.insert("host".to_owned(), host.into());
            fields.insert("port".to_owned(), port.into());
        }
    }
    let response =
        json!({"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects});
    json_answer(
        200,
        json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response}),
    )
}

pub(crate) fn host_and_port(client_config: &Value) -> Value {
    let text = |fields: &[&str]| {
        let properties: Value = fields.iter().map(|f| ((*f).to_owned(), json!({"type": "string"}))).collect();
        json!({"type": "object", "properties": properties})
    };
    let versions = [("v1", text(&["host", "port"])), ("v2", text(&["hostPort"]))];
    let mut definition = definition("example.com", "ends", "End", &versions);
    definition["spec"]["conversion"] = json!({
        "strategy": "Webhook", "webhook": {"clientConfig": client_config, "conversionReviewVersions": ["v1"]},
    });
    definition["spec"]["versions"][0]["selectableFields"] = json!([{"jsonPath": ".host"}]);
    definition["spec"]["versions"][1]["selectableFields"] = json!([{"jsonPath": ".hostPort"}]);
    definition
}

pub(crate) fn end(version: &str, name: &str, fields: Value) -> Value {
    let mut end = fields;
    end["apiVersion"] = format!("example.com/{version}").into();
    end["kind"] = "End".into();
    end["metadata"] = json!({"name": name});
    end
}

pub(crate) fn ends(version: &str) -> String {
    format!("/apis/example.com/{version}/namespaces/default/ends")
}

#[tokio::test]
async fn versions_are_converted_whatever_was_stored() {
    let world = World::new().await;
    let outside =
        Outside::json(Certificate::SelfSigned, &["127.0.0.1"], |seen| Box::pin(convert(seen))).await;
    let definition = host_and_port(&outside.client_config("/convert"));
    define(&world, &definition).await;
    world.post(&ends("v1"), &end("v1", "old", json!({"host": "h", "port": "1"}))).await.expect(201);
    assert_eq!(world.get(&format!("{}/old", ends("v2"))).await.expect(200)["hostPort"], "h:1");
    let mut changed = world.get(&path_of(&definition)).await.expect(200);
    changed["spec"]["versions"][0]["storage"] = false.into();
    changed["spec"]["versions"][1]["storage"] = true.into();
    world.put(&path_of(&definition), &changed).await.expect(200);
    eventually("v2 is stored", async || {
        let found = world.get(&path_of(&definition)).await.expect(200);
        found["status"]["storedVersions"] == json!(["v1", "v2"])
    })
    .await;
    world.post(&ends("v1"), &end("v1", "new", json!({"host": "h", "port": "2"}))).await.expect(201);
    eventually("the new one is stored in v2", async || {
        let stored = world.stored("/ends.example.com/default/new").await;
        if stored["apiVersion"] == "example.com/v2" {
            return true;
        }
        world
            .patch(&format!("{}/new", ends("v1")), MERGE, &json!({"metadata": {"labels": {"t": "1"}}}))
            .await;
        world
            .patch(&format!("{}/new", ends("v1")), MERGE, &json!({"metadata": {"labels": {"t": null}}}))
            .await;
        false
    })
    .await;
    let list = world.get(&ends("v2")).await.expect(200);
    let found: Vec<[&str; 2]> = list["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|i| [&i["apiVersion"], &i["hostPort"]].map(|v| v.as_str().unwrap_or_default()))
        .collect();
    assert_eq!(found, [["example.com/v2", "h:2"], ["example.com/v2", "h:1"]]);
}

#[tokio::test]
async fn selectable_fields_are_those_of_the_version_asked_for() {
    let world = World::new().await;
    let outside =
        Outside::json(Certificate::SelfSigned, &["127.0.0.1"], |seen| Box::pin(convert(seen))).await;
    define(&world, &host_and_port(&outside.client_config("/convert"))).await;
    let of_v1 = format!("{}?fieldSelector=host%3Dhost1", ends("v1"));
    let of_v2 = format!("{}?fieldSelector=hostPort%3Dhost1:80", ends("v2"));
    let (mut first, mut second) = (world.watch(&of_v1).await, world.watch(&of_v2).await);
    world.post(&ends("v1"), &end("v1", "a", json!({"host": "host1", "port": "80"}))).await.expect(201);
    world.post(&ends("v1"), &end("v1", "b", json!({"host": "host1", "port": "8080"}))).await.expect(201);
    world.post(&ends("v2"), &end("v2", "c", json!({"hostPort": "host2:80"}))).await.expect(201);
    let count = async |path: &str| world.get(path).await.expect(200)["items"].as_array().map_or(0, Vec::len);
    assert_eq!((count(&of_v1).await, count(&of_v2).await), (2, 1));
    // It leaves the selection of one version by a change made in the other.
    world.patch(&format!("{}/a", ends("v2")), MERGE, &json!({"hostPort": "host3:80"})).await.expect(200);
    world.delete(&format!("{}/b", ends("v2"))).await.expect(200);
    assert_eq!((count(&of_v1).await, count(&of_v2).await), (0, 0));
    let lines =
        [first.next_line().await, first.next_line().await, first.next_line().await, first.next_line().await];
    assert_eq!(lines, ["ADDED a", "ADDED b", "DELETED a", "DELETED b"]);
    let added = second.next().await;
    assert_eq!((&added["type"], &added["object"]["hostPort"]), (&json!("ADDED"), &json!("host1:80")));
    assert_eq!(second.next_line().await, "DELETED a");
    let unknown = world.get(&format!("{}?fieldSelector=port%3D80", ends("v1"))).await.expect(400);
    assert!(
        unknown["message"].as_str().is_some_and(|m| m.contains("field label not supported: port")),
        "{unknown}"
    );
}
