//! Levels and schemas of flow control: what every cluster has stays, and schemas say whether their level exists.

use serde_json::{Value, json};

use crate::world::{MERGE, World, eventually};

const API: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";
const ADDRESSES: [&str; 4] = [
    "flowschemas/exempt",
    "flowschemas/catch-all",
    "prioritylevelconfigurations/exempt",
    "prioritylevelconfigurations/catch-all",
];

#[tokio::test]
async fn what_is_mandatory_comes_back() {
    let world = World::new().await;
    for address in ADDRESSES.map(|address| format!("{API}/{address}")) {
        let before = world.get(&address).await.expect(200);
        world.delete(&address).await.expect(200);
        let uid = &before["metadata"]["uid"];
        eventually("the object is there again", async || {
            let found = world.get(&address).await;
            found.code == 200 && found.body["metadata"]["uid"] != *uid && found.body["spec"] == before["spec"]
        })
        .await;
    }
    // The rules of the kinds refuse what the loop would have to put right.
    let refused = json!({"spec": {"matchingPrecedence": 9}});
    world.patch(&format!("{API}/flowschemas/catch-all"), MERGE, &refused).await.expect(422);
    let shares = json!({"spec": {"exempt": {"nominalConcurrencyShares": 7}}});
    let exempt = format!("{API}/prioritylevelconfigurations/exempt");
    let changed = world.patch(&exempt, MERGE, &shares).await.expect(200);
    assert_eq!(changed["spec"]["exempt"]["nominalConcurrencyShares"], 7);
}

#[tokio::test]
async fn a_store_of_an_older_release_is_put_right() {
    let world = World::new().await;
    let mut odd = world.get(&format!("{API}/flowschemas/exempt")).await.expect(200);
    odd["spec"]["rules"] = json!([]);
    odd["metadata"]["annotations"] = Value::Null;
    // What is put into the store past the pipeline carries no revision.
    odd["metadata"]["resourceVersion"] = Value::Null;
    world.install("flowschemas.flowcontrol.apiserver.k8s.io", &odd).await;
    eventually("the schema is whole again", async || {
        let found = world.get(&format!("{API}/flowschemas/exempt")).await.expect(200);
        found["spec"]["rules"].as_array().is_some_and(|rules| rules.len() == 1)
            && found["metadata"]["annotations"]["apf.kubernetes.io/autoupdate-spec"] == "true"
    })
    .await;
}

/// Status and reason of the condition of a schema.
async fn dangling(world: &World, name: &str) -> (Value, Value) {
    let schema = world.get(&format!("{API}/flowschemas/{name}")).await.expect(200);
    let condition = &schema["status"]["conditions"][0];
    (condition["status"].clone(), condition["reason"].clone())
}

#[tokio::test]
async fn a_schema_says_whether_its_level_exists() {
    let world = World::new().await;
    let found = (json!("False"), json!("Found"));
    eventually("all schemas have found their level", async || {
        let schemas = world.get(&format!("{API}/flowschemas")).await.expect(200);
        let schemas = schemas["items"].as_array().expect("items").clone();
        schemas.len() > 10 && schemas.iter().all(|s| s["status"]["conditions"][0]["status"] == "False")
    })
    .await;
    let schema = json!({
        "metadata": {"name": "own"},
        "spec": {
            "matchingPrecedence": 500, "priorityLevelConfiguration": {"name": "own"},
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "eve"}}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["/x"]}],
            }],
        },
    });
    world.post(&format!("{API}/flowschemas"), &schema).await.expect(201);
    let lost = (json!("True"), json!("NotFound"));
    eventually("the level is missed", async || dangling(&world, "own").await == lost).await;
    let level = json!({"metadata": {"name": "own"}, "spec": {"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}}});
    world.post(&format!("{API}/prioritylevelconfigurations"), &level).await.expect(201);
    eventually("the level is found", async || dangling(&world, "own").await == found).await;
    world.delete(&format!("{API}/prioritylevelconfigurations/own")).await.expect(200);
    eventually("the level is missed again", async || dangling(&world, "own").await == lost).await;
}
