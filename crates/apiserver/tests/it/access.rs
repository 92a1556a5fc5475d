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

#[tokio::test]
async fn nobody_gives_away_what_they_do_not_have() {
    let world = World::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({
        "metadata": {"name": "role-maker"},
        "rules": [
            {"verbs": ["*"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]},
        ],
    });
    world.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    let binding = |name: &str, to: &str| {
        json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": to},
            "subjects": [{"kind": "User", "name": "eve", "apiGroup": "rbac.authorization.k8s.io"}],
        })
    };
    let bindings = format!("{rbac}/namespaces/default/rolebindings");
    world.post(&bindings, &binding("eve", "role-maker")).await.expect(201);
    world.get(&format!("{rbac}/rolebindings")).await.expect(200);
    let eve = || User::known("eve", &[]);
    let try_binding = |name: &'static str, to: &'static str| {
        world.send_as(eve(), Method::POST, &bindings, JSON, binding(name, to).to_string())
    };
    let refused = try_binding("more", "cluster-admin").await.expect(403);
    assert!(refused["message"].as_str().is_some_and(|m| m.contains("not currently held")), "{refused}");
    // `*` in her own rule holds `bind` for roles, but not for cluster roles.
    try_binding("same", "role-maker").await.expect(201);
    let secrets = json!({"metadata": {"name": "s"}, "rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}]});
    let roles = format!("{rbac}/namespaces/default/roles");
    // `*` in her own rule holds `escalate` for roles of her namespace, as in Kubernetes.
    world.send_as(eve(), Method::POST, &roles, JSON, secrets.to_string()).await.expect(201);
}

#[tokio::test]
async fn bodies_of_questions_and_actions_may_be_anything() {
    let world = World::new().await;
    let core = "/api/v1/namespaces/default";
    world
        .post(&format!("{core}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    world.post(&format!("{core}/pods"), &pod).await.expect(201);
    let paths = [
        "/apis/authentication.k8s.io/v1/selfsubjectreviews".to_owned(),
        "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(),
        "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews".to_owned(),
        format!("{core}/serviceaccounts/default/token"),
        format!("{core}/pods/p/binding"),
        format!("{core}/pods/p/eviction"),
    ];
    let bodies = [
        "[]",
        "5",
        "\"x\"",
        "null",
        r#"{"spec": "x"}"#,
        r#"{"spec": []}"#,
        r#"{"metadata": 5}"#,
        r#"{"target": [], "deleteOptions": 1}"#,
    ];
    for path in &paths {
        for body in bodies {
            let answer = world.send(Method::POST, path, JSON, body).await;
            assert!(answer.code < 500, "{path} {body}: {} {}", answer.code, answer.body);
        }
    }
    let annotated = json!({"target": {"name": "n"}, "metadata": {"annotations": {"a": {"b": 1}}}});
    world.post(&format!("{core}/pods/p/binding"), &annotated).await.expect(400);
}

#[tokio::test]
async fn a_view_cannot_be_deleted() {
    let world = World::new().await;
    world.delete("/apis/apps/v1/namespaces/default/deployments/d/scale").await.expect(405);
    world.delete("/api/v1/pods").await.expect(405);
    world.delete("/api/v1/namespaces").await.expect(405);
    world.get("/api/v1/namespaces/default/status/x/y").await.expect(404);
}
