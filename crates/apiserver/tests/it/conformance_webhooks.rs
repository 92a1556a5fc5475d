//! Webhooks as users configure them: registered through the API, changed, listed and deleted again.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use crate::conformance_custom::{DEFINITIONS, anything, define, definition, path_of};
use crate::outside::{Body, Certificate, Outside, Seen, json_answer};
use crate::world::{Answer, JSON, MERGE, World, eventually};

const CORE: &str = "/api/v1/namespaces/default";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const THINGS: &str = "/apis/example.com/v1/namespaces/default/things";
const MUTATING: &str = "mutatingwebhookconfigurations";
const VALIDATING: &str = "validatingwebhookconfigurations";

fn configurations(plural: &str) -> String {
    format!("/apis/admissionregistration.k8s.io/v1/{plural}")
}

fn add(path: &str, value: Value) -> Value {
    let operations = json!([{"op": "add", "path": path, "value": value}]).to_string();
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations)})
}

/// What the path asks the server to do.
async fn behave(seen: Seen) -> http::Response<Body> {
    let request = &seen.body["request"];
    let data = &request["object"]["data"];
    let response = match seen.path.split('?').next().unwrap_or_default() {
        "/deny" => json!({"allowed": false, "status": {"code": 403, "message": "denied by the test"}}),
        "/deny-marked" => {
            let marked = *data != Value::Null && data["mark"] == "bad"
                || request["object"]["metadata"]["labels"]["mark"] == "bad"
                || request["oldObject"]["data"]["mark"] == "kept" && request["operation"] == "DELETE";
            json!({"allowed": !marked, "status": {"code": 403, "message": "it is marked"}})
        }
        "/stage-1" => add("/data/stage-1", "yes".into()),
        "/stage-2" if data["stage-1"] == "yes" => add("/data/stage-2", "yes".into()),
        "/container" => add("/spec/initContainers", json!([{"name": "added", "image": "i"}])),
        "/label" => add("/metadata/labels", json!({"touched": "yes"})),
        "/wait" => {
            tokio::time::sleep(Duration::from_secs(3)).await;
            json!({"allowed": true})
        }
        _ => json!({"allowed": true}),
    };
    let mut response = response;
    response["uid"] = request["uid"].clone();
    json_answer(
        200,
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}),
    )
}

async fn outside() -> Outside {
    Outside::json(Certificate::SelfSigned, &["127.0.0.1"], |seen| Box::pin(behave(seen))).await
}

fn rule(operations: &[&str], group: &str, resources: &[&str]) -> Value {
    json!({"operations": operations, "apiGroups": [group], "apiVersions": ["*"], "resources": resources})
}

fn webhook(outside: &Outside, name: &str, path: &str, rule: Value) -> Value {
    json!({
        "name": format!("{name}.example.com"), "clientConfig": outside.client_config(path), "rules": [rule],
        "admissionReviewVersions": ["v1"], "sideEffects": "None", "failurePolicy": "Fail",
    })
}

/// Registers a configuration and waits until requests feel it.
async fn register(world: &World, plural: &str, name: &str, webhooks: Vec<Value>) {
    let configuration = json!({"metadata": {"name": name, "labels": {"set": "test"}}, "webhooks": webhooks});
    world.post(&configurations(plural), &configuration).await.expect(201);
    world.settle().await;
}

fn map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

#[track_caller]
fn denied(answer: Answer) {
    let answer = answer.expect(403);
    assert!(answer["message"].as_str().is_some_and(|m| m.contains("denied the request")), "{answer}");
}

async fn world_with_account() -> World {
    let world = World::new().await;
    world
        .post(&format!("{CORE}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    world
}

fn pod(name: &str, mark: &str) -> Value {
    let metadata = json!({"name": name, "labels": {"mark": mark}});
    json!({"metadata": metadata, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

#[tokio::test]
async fn configurations_are_listed_and_deleted_together() {
    for plural in [MUTATING, VALIDATING] {
        let world = World::new().await;
        let outside = outside().await;
        let path = if plural == MUTATING { "/stage-1" } else { "/deny" };
        for i in 0..10 {
            let maps = rule(&["CREATE"], "", &["configmaps"]);
            register(&world, plural, &format!("c{i}"), vec![webhook(&outside, "a", path, maps)]).await;
        }
        let selected = format!("{}?labelSelector=set%3Dtest", configurations(plural));
        let list = world.get(&selected).await.expect(200);
        assert_eq!(list["items"].as_array().map(Vec::len), Some(10));
        let met = world.post(MAPS, &map("met", json!({"a": "b"}))).await;
        if plural == MUTATING {
            assert_eq!(met.expect(201)["data"]["stage-1"], "yes");
        } else {
            denied(met);
        }
        world.send(Method::DELETE, &selected, JSON, "").await.expect(200);
        world.settle().await;
        assert_eq!(world.get(&selected).await.expect(200)["items"], json!([]));
        let free = world.post(MAPS, &map("free", json!({"a": "b"}))).await.expect(201);
        assert_eq!(free["data"], json!({"a": "b"}));
    }
}

#[tokio::test]
async fn a_changed_rule_counts() {
    for plural in [MUTATING, VALIDATING] {
        let world = World::new().await;
        let outside = outside().await;
        let path = if plural == MUTATING { "/stage-1" } else { "/deny" };
        let create = rule(&["CREATE"], "", &["configmaps"]);
        register(&world, plural, "c", vec![webhook(&outside, "a", path, create)]).await;
        let one = format!("{}/c", configurations(plural));
        let touched = async |name: &str| {
            let answer = world.post(MAPS, &map(name, json!({"a": "b"}))).await;
            answer.code == 403 || answer.body["data"]["stage-1"] == "yes"
        };
        assert!(touched("one").await);
        let mut changed = world.get(&one).await.expect(200);
        changed["webhooks"][0]["rules"][0]["operations"] = json!(["UPDATE"]);
        world.put(&one, &changed).await.expect(200);
        world.settle().await;
        assert!(!touched("two").await);
        let patch = json!([{"op": "replace", "path": "/webhooks/0/rules/0/operations", "value": ["CREATE"]}]);
        world.patch(&one, "application/json-patch+json", &patch).await.expect(200);
        world.settle().await;
        assert!(touched("three").await);
    }
}

#[tokio::test]
async fn conditions_are_kept_compiled_and_obeyed() {
    for plural in [MUTATING, VALIDATING] {
        let world = World::new().await;
        let outside = outside().await;
        let path = if plural == MUTATING { "/stage-1" } else { "/deny" };
        let conditional = |conditions: Value| {
            let mut webhook = webhook(&outside, "a", path, rule(&["CREATE"], "", &["configmaps"]));
            webhook["matchConditions"] = conditions;
            json!({"metadata": {"name": "c"}, "webhooks": [webhook]})
        };
        let broken = json!([{"name": "broken", "expression": "object.metadata.name =="}]);
        let refused = world.post(&configurations(plural), &conditional(broken)).await.expect(422);
        assert!(refused["message"].as_str().is_some_and(|m| m.contains("compilation failed")), "{refused}");
        let first = json!([{"name": "not-skipped", "expression": "object.metadata.name != 'skip-me'"}]);
        let made = world.post(&configurations(plural), &conditional(first.clone())).await.expect(201);
        assert_eq!(made["webhooks"][0]["matchConditions"], first);
        world.settle().await;
        let touched = async |name: &str| {
            let answer = world.post(&format!("{MAPS}?dryRun=All"), &map(name, json!({"a": "b"}))).await;
            answer.code == 403 || answer.body["data"]["stage-1"] == "yes"
        };
        assert_eq!((touched("skip-me").await, touched("other").await), (false, true));
        let second = json!([
            {"name": "not-skipped", "expression": "object.metadata.name != 'skip-me'"},
            {"name": "not-the-other", "expression": "object.metadata.name != 'other'"},
        ]);
        let one = format!("{}/c", configurations(plural));
        let mut changed = world.get(&one).await.expect(200);
        changed["webhooks"][0]["matchConditions"] = second.clone();
        world.put(&one, &changed).await.expect(200);
        assert_eq!(world.get(&one).await.expect(200)["webhooks"][0]["matchConditions"], second);
        assert_eq!((touched("other").await, touched("third").await), (false, true));
    }
}

#[tokio::test]
async fn pods_and_maps_are_denied_by_what_is_in_them() {
    let world = world_with_account().await;
    let outside = outside().await;
    let exempt = json!({"matchExpressions": [{"key": "exempt", "operator": "DoesNotExist"}]});
    let mut marked = webhook(&outside, "marked", "/deny-marked", rule(&["*"], "", &["pods", "configmaps"]));
    marked["namespaceSelector"] = exempt.clone();
    let mut slow = webhook(&outside, "slow", "/wait", rule(&["CREATE"], "", &["pods"]));
    slow["timeoutSeconds"] = 1.into();
    slow["objectSelector"] = json!({"matchLabels": {"mark": "slow"}});
    let attach = webhook(&outside, "attach", "/deny", rule(&["CONNECT"], "", &["pods/attach"]));
    register(&world, VALIDATING, "c", vec![marked, slow, attach]).await;
    let pods = format!("{CORE}/pods");
    denied(world.post(&pods, &pod("bad", "bad")).await);
    let hung = world.post(&pods, &pod("slow", "slow")).await.expect(500);
    assert!(hung["message"].as_str().is_some_and(|m| m.contains("deadline exceeded")), "{hung}");
    denied(world.post(MAPS, &map("bad", json!({"mark": "bad"}))).await);
    world.post(MAPS, &map("good", json!({"mark": "good"}))).await.expect(201);
    let one = format!("{MAPS}/good");
    denied(world.put(&one, &map("good", json!({"mark": "bad"}))).await);
    denied(world.patch(&one, MERGE, &json!({"data": {"mark": "bad"}})).await);
    assert_eq!(world.get(&one).await.expect(200)["data"]["mark"], "good");
    let namespace = json!({"metadata": {"name": "free", "labels": {"exempt": "yes"}}});
    world.post("/api/v1/namespaces", &namespace).await.expect(201);
    world.settle().await;
    world.post("/api/v1/namespaces/free/configmaps", &map("bad", json!({"mark": "bad"}))).await.expect(201);
    world.post(&pods, &pod("p", "good")).await.expect(201);
    denied(world.get(&format!("{pods}/p/attach?stdout=true")).await);
}

#[tokio::test]
async fn custom_objects_are_denied_and_changed() {
    let world = World::new().await;
    let outside = outside().await;
    let kept = json!({"type": "object", "properties": {"data": {"type": "object", "properties": {
        "mark": {"type": "string"}, "stage-1": {"type": "string"},
    }}}});
    define(&world, &definition("example.com", "things", "Thing", &[("v1", kept)])).await;
    let things = |operations| rule(operations, "example.com", &["things"]);
    let thing = |name: &str, data: Value| {
        let mut thing = map(name, data);
        thing["apiVersion"] = "example.com/v1".into();
        thing["kind"] = "Thing".into();
        thing
    };
    register(&world, VALIDATING, "v", vec![webhook(&outside, "a", "/deny-marked", things(&["*"]))]).await;
    // The second webhook adds what the schema does not have.
    let stages = ["/stage-1", "/stage-2"];
    let stages = stages.map(|path| webhook(&outside, &path[1..], path, things(&["CREATE"])));
    register(&world, MUTATING, "m", stages.to_vec()).await;
    denied(world.post(THINGS, &thing("bad", json!({"mark": "bad"}))).await);
    let made = world.post(THINGS, &thing("kept", json!({"mark": "kept"}))).await.expect(201);
    assert_eq!(made["data"], json!({"mark": "kept", "stage-1": "yes"}));
    let one = format!("{THINGS}/kept");
    denied(world.patch(&one, MERGE, &json!({"data": {"mark": "bad"}})).await);
    denied(world.delete(&one).await);
    world.patch(&one, MERGE, &json!({"data": {"mark": "good"}})).await.expect(200);
    world.delete(&one).await.expect(200);
    world.get(&one).await.expect(404);
}

#[tokio::test]
async fn custom_objects_are_changed_whatever_version_is_stored() {
    let world = World::new().await;
    let outside = outside().await;
    let versions = [("v1", anything()), ("v2", anything())];
    let things = definition("example.com", "things", "Thing", &versions);
    define(&world, &things).await;
    let rules = rule(&["CREATE", "UPDATE"], "example.com", &["things"]);
    register(&world, MUTATING, "m", vec![webhook(&outside, "a", "/stage-1", rules)]).await;
    let mut thing = map("t", json!({"a": "b"}));
    thing["apiVersion"] = "example.com/v1".into();
    thing["kind"] = "Thing".into();
    world.post(THINGS, &thing).await.expect(201);
    let mut changed = world.get(&path_of(&things)).await.expect(200);
    changed["spec"]["versions"][0]["storage"] = false.into();
    changed["spec"]["versions"][1]["storage"] = true.into();
    world.put(&path_of(&things), &changed).await.expect(200);
    eventually("v2 is stored", async || {
        world.get(&path_of(&things)).await.expect(200)["status"]["storedVersions"] == json!(["v1", "v2"])
    })
    .await;
    let one = format!("{THINGS}/t");
    let patched = world.patch(&one, MERGE, &json!({"data": {"new": "field"}})).await.expect(200);
    assert_eq!(patched["data"], json!({"a": "b", "new": "field", "stage-1": "yes"}));
    assert_eq!(world.get(&one).await.expect(200)["data"]["new"], "field");
}

#[tokio::test]
async fn definitions_are_denied() {
    let world = World::new().await;
    let outside = outside().await;
    let rules = rule(&["CREATE"], "apiextensions.k8s.io", &["customresourcedefinitions"]);
    register(&world, VALIDATING, "v", vec![webhook(&outside, "a", "/deny", rules)]).await;
    let things = definition("example.com", "things", "Thing", &[("v1", anything())]);
    denied(world.post(DEFINITIONS, &things).await);
    world.get(&path_of(&things)).await.expect(404);
}

#[tokio::test]
async fn time_limits_and_policies_go_together() {
    let world = World::new().await;
    let outside = outside().await;
    let one = format!("{}/c", configurations(VALIDATING));
    register(
        &world,
        VALIDATING,
        "c",
        vec![webhook(&outside, "a", "/wait", rule(&["CREATE"], "", &["configmaps"]))],
    )
    .await;
    // The webhook takes three seconds.
    for (i, (seconds, policy, code)) in
        [(Some(1), "Fail", 500), (Some(1), "Ignore", 201), (Some(10), "Fail", 201), (None, "Fail", 201)]
            .into_iter()
            .enumerate()
    {
        let mut changed = world.get(&one).await.expect(200);
        changed["webhooks"][0]["failurePolicy"] = policy.into();
        // Nothing said is ten seconds.
        changed["webhooks"][0]["timeoutSeconds"] = json!(seconds);
        let changed = world.put(&one, &changed).await.expect(200);
        assert_eq!(changed["webhooks"][0]["timeoutSeconds"], seconds.unwrap_or(10));
        world.settle().await;
        world.post(MAPS, &map(&format!("m{i}"), json!({}))).await.expect(code);
    }
}

#[tokio::test]
async fn each_webhook_sees_what_those_before_it_did() {
    let world = World::new().await;
    let outside = outside().await;
    let stages = ["/stage-1", "/stage-2"];
    let maps = || rule(&["CREATE"], "", &["configmaps"]);
    register(&world, MUTATING, "m", stages.map(|path| webhook(&outside, &path[1..], path, maps())).to_vec())
        .await;
    let made = world.post(MAPS, &map("m", json!({"a": "b"}))).await.expect(201);
    assert_eq!(made["data"], json!({"a": "b", "stage-1": "yes", "stage-2": "yes"}));
}

#[tokio::test]
async fn what_a_webhook_adds_is_defaulted() {
    let world = world_with_account().await;
    let outside = outside().await;
    register(
        &world,
        MUTATING,
        "m",
        vec![webhook(&outside, "a", "/container", rule(&["CREATE"], "", &["pods"]))],
    )
    .await;
    let made = world.post(&format!("{CORE}/pods"), &pod("p", "good")).await.expect(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(
        (&added["name"], &added["terminationMessagePolicy"], &added["imagePullPolicy"]),
        (&json!("added"), &json!("File"), &json!("Always"))
    );
}

#[tokio::test]
async fn webhooks_have_no_say_about_webhooks() {
    let world = World::new().await;
    let outside = outside().await;
    let everything = || rule(&["*"], "*", &["*/*"]);
    register(&world, VALIDATING, "deny-all", vec![webhook(&outside, "a", "/deny", everything())]).await;
    register(&world, MUTATING, "label-all", vec![webhook(&outside, "b", "/label", everything())]).await;
    denied(world.post(MAPS, &map("m", json!({}))).await);
    for plural in [MUTATING, VALIDATING] {
        let made = world
            .post(&configurations(plural), &json!({"metadata": {"name": "dummy"}, "webhooks": []}))
            .await;
        assert_eq!(made.expect(201)["metadata"].get("labels"), None);
        world.delete(&format!("{}/dummy", configurations(plural))).await.expect(200);
    }
    world.delete(&format!("{}/deny-all", configurations(VALIDATING))).await.expect(200);
    world.settle().await;
    let free = world.post(MAPS, &map("m", json!({}))).await.expect(201);
    assert_eq!(free["metadata"]["labels"]["touched"], "yes");
}

#[tokio::test]
async fn a_webhook_that_cannot_be_trusted_fails_closed() {
    let world = World::new().await;
    let outside = outside().await;
    let mut webhook = webhook(&outside, "a", "/allow", rule(&["CREATE"], "", &["configmaps"]));
    webhook["clientConfig"].as_object_mut().expect("an object").remove("caBundle");
    register(&world, VALIDATING, "v", vec![webhook]).await;
    let refused = world.post(MAPS, &map("m", json!({}))).await.expect(500);
    assert!(refused["message"].as_str().is_some_and(|m| m.contains("failed calling webhook")), "{refused}");
    assert_eq!(world.get(MAPS).await.expect(200)["items"], json!([]));
}
