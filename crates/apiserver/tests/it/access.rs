//! Who may what.

use http::Method;
use sampan_apiserver::User;
use serde_json::{Value, json};

use crate::world::{JSON, World};

#[tokio::test]
async fn strangers_see_health_and_version_only() {
    let world = World::new().await;
    for (path, code) in [
        ("/healthz", 200),
        ("/readyz?verbose", 200),
        ("/version", 200),
        ("/api", 403),
        ("/apis", 403),
        ("/metrics", 403),
        ("/openapi/v3", 403),
        ("/api/v1/namespaces", 403),
        ("/api/v1/namespaces/default/secrets/x", 403),
    ] {
        let answer = world.send_as(User::anonymous(), Method::GET, path, JSON, "").await;
        assert_eq!(answer.code, code, "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn roles_grant_what_they_say() {
    let world = World::new().await;
    let bob = || User::known("bob", &[]);
    let pods = "/api/v1/namespaces/default/pods";
    let refused = world.send_as(bob(), Method::GET, pods, JSON, "").await.expect(403);
    assert_eq!(
        refused["message"],
        "pods is forbidden: User \"bob\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let binding = json!({
        "metadata": {"name": "bob-views"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "User", "name": "bob", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    world
        .post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding)
        .await
        .expect(201);
    // A rule counts as soon as the cache shows it, which a consistent read waits for.
    world.get("/apis/rbac.authorization.k8s.io/v1/rolebindings").await.expect(200);
    world.send_as(bob(), Method::GET, pods, JSON, "").await.expect(200);
    world.send_as(bob(), Method::GET, "/api/v1/namespaces/kube-system/pods", JSON, "").await.expect(403);
    world.send_as(bob(), Method::GET, "/api/v1/namespaces/default/secrets", JSON, "").await.expect(403);
    world.send_as(bob(), Method::DELETE, &format!("{pods}/x"), JSON, "").await.expect(403);
}

async fn token(world: &World, seconds: i64) -> String {
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    world.post(accounts, &json!({"metadata": {"name": "robot"}})).await.expect(201);
    let request = json!({"spec": {"expirationSeconds": seconds}});
    let answer = world.post(&format!("{accounts}/robot/token"), &request).await.expect(201);
    answer["status"]["token"].as_str().expect("a token").to_owned()
}

async fn review(world: &World, token: &str, audiences: Value) -> Value {
    world.get("/api/v1/serviceaccounts").await.expect(200);
    let question = json!({"spec": {"token": token, "audiences": audiences}});
    world.post("/apis/authentication.k8s.io/v1/tokenreviews", &question).await.expect(201)["status"].clone()
}

#[tokio::test]
async fn tokens_die_with_their_account() {
    let world = World::new().await;
    let token = token(&world, 3600).await;
    let status = review(&world, &token, json!([])).await;
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:robot", "{status}");
    assert_eq!(review(&world, &token, json!(["elsewhere"])).await["authenticated"], false);
    let mut forged = token.clone();
    forged.replace_range(token.len() - 6..token.len() - 4, if token.ends_with("AA") { "BB" } else { "AA" });
    assert_eq!(review(&world, &forged, json!([])).await["authenticated"], false);
    world.delete("/api/v1/namespaces/default/serviceaccounts/robot").await.expect(200);
    assert_eq!(review(&world, &token, json!([])).await["authenticated"], false);
}

#[tokio::test]
async fn a_node_touches_only_what_is_its_own() {
    let world = World::new().await;
    let node = || User::known("system:node:n1", &["system:nodes"]);
    world
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    for (name, host) in [("mine", "n1"), ("other", "n2")] {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"nodeName": host, "containers": [{"name": "c", "image": "i"}]},
        });
        world.post("/api/v1/namespaces/default/pods", &pod).await.expect(201);
    }
    let phase = json!({"status": {"phase": "Running"}}).to_string();
    let status = |name: &str| format!("/api/v1/namespaces/default/pods/{name}/status");
    let merge = "application/merge-patch+json";
    world.send_as(node(), Method::PATCH, &status("mine"), merge, phase.clone()).await.expect(200);
    world.send_as(node(), Method::PATCH, &status("other"), merge, phase).await.expect(403);
    let other = json!({"metadata": {"name": "n2"}}).to_string();
    world.send_as(node(), Method::POST, "/api/v1/nodes", JSON, other).await.expect(403);
    world
        .send_as(node(), Method::DELETE, "/api/v1/namespaces/default/pods/other", JSON, "")
        .await
        .expect(403);
}
