//! What a node may see and say, and what every start brings back.

use http::Method;
use sampan_apiserver::User;
use serde_json::{Value, json};

use crate::world::{JSON, MERGE, World};

const CORE: &str = "/api/v1/namespaces/default";
const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
const BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";

fn node(name: &str) -> User {
    User::known(&format!("system:node:{name}"), &["system:nodes"])
}

async fn code(world: &World, user: User, method: Method, path: &str, body: &Value) -> u16 {
    let content_type = if method == Method::PATCH { MERGE } else { JSON };
    world.send_as(user, method, path, content_type, body.to_string()).await.code
}

async fn secret(world: &World, name: &str) {
    world.post(&format!("{CORE}/secrets"), &json!({"metadata": {"name": name}})).await.expect(201);
}

#[tokio::test]
async fn a_node_reads_what_its_pods_need() {
    let world = World::new().await;
    world
        .post(&format!("{CORE}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    for name in ["needed", "other"] {
        secret(&world, name).await;
        world.post(&format!("{CORE}/configmaps"), &json!({"metadata": {"name": name}})).await.expect(201);
    }
    let read = |user: User, path: &'static str| {
        let world = &world;
        async move { code(world, user, Method::GET, &format!("{CORE}{path}"), &Value::Null).await }
    };
    assert_eq!(read(node("n"), "/secrets/needed").await, 403, "before there is a pod");
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {
            "nodeName": "n",
            "containers": [{"name": "c", "image": "i", "envFrom": [{"configMapRef": {"name": "needed"}}]}],
            "volumes": [{"name": "v", "secret": {"secretName": "needed"}}],
        },
    });
    world.post(&format!("{CORE}/pods"), &pod).await.expect(201);
    world.get(&format!("{CORE}/pods")).await.expect(200);
    let rows = [
        ("n", "/secrets/needed", 200),
        ("n", "/secrets/other", 403),
        ("n", "/secrets", 403),
        ("n", "/secrets?fieldSelector=metadata.name%3Dneeded", 200),
        ("n", "/secrets?fieldSelector=metadata.name%3Dother", 403),
        ("n", "/configmaps/needed", 200),
        ("n", "/configmaps/other", 403),
        ("n", "/serviceaccounts/default", 200),
        ("n", "/pods/p", 200),
        ("n", "/pods", 403),
        ("n", "/pods?fieldSelector=spec.nodeName%3Dn", 200),
        ("n", "/pods?fieldSelector=spec.nodeName%3Dm", 403),
        ("n", "/services", 200),
        ("m", "/secrets/needed", 403),
        ("m", "/configmaps/needed", 403),
        ("m", "/pods/p", 403),
        ("m", "/serviceaccounts/default", 403),
    ];
    for (name, path, expected) in rows {
        assert_eq!(read(node(name), path).await, expected, "{name} {path}");
    }
    let token = json!({"spec": {"boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p"}}});
    let tokens = format!("{CORE}/serviceaccounts/default/token");
    assert_eq!(code(&world, node("n"), Method::POST, &tokens, &token).await, 201);
    assert_eq!(code(&world, node("m"), Method::POST, &tokens, &token).await, 403);
    let refused = world.send_as(node("n"), Method::GET, &format!("{CORE}/secrets/other"), JSON, "").await;
    let refused = refused.expect(403);
    let message = refused["message"].as_str().unwrap_or_default();
    assert!(message.ends_with("no relationship found between node 'n' and this object"), "{message}");
    world.delete(&format!("{CORE}/pods/p?gracePeriodSeconds=0")).await.expect(200);
    world.get(&format!("{CORE}/pods")).await.expect(200);
    assert_eq!(read(node("n"), "/secrets/needed").await, 403, "after the pod");
}

#[tokio::test]
async fn what_a_node_says_of_itself() {
    let world = World::new().await;
    let nodes = "/api/v1/nodes";
    let labelled = |key: &str| json!({"metadata": {"name": "n", "labels": {key: "1"}}});
    let restricted = labelled("node-restriction.kubernetes.io/x");
    assert_eq!(code(&world, node("n"), Method::POST, nodes, &restricted).await, 403);
    assert_eq!(code(&world, node("n"), Method::POST, nodes, &labelled("kubernetes.io/hostname")).await, 201);
    let own = format!("{nodes}/n");
    let rows = [
        (labelled("topology.kubernetes.io/zone"), 200),
        (labelled("node-role.kubernetes.io/control-plane"), 403),
        (json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}), 403),
    ];
    for (patch, expected) in rows {
        assert_eq!(code(&world, node("n"), Method::PATCH, &own, &patch).await, expected, "{patch}");
    }
    world.get(nodes).await.expect(200);
    assert_eq!(code(&world, node("n"), Method::GET, &own, &Value::Null).await, 200);
    assert_eq!(code(&world, node("m"), Method::GET, &own, &Value::Null).await, 403);
    assert_eq!(code(&world, node("n"), Method::GET, nodes, &Value::Null).await, 403);
    let uid = world.get(&own).await.expect(200)["metadata"]["uid"].clone();
    let pod = |annotations: Value| {
        json!({
            "metadata": {"name": "s", "annotations": annotations, "ownerReferences": [
                {"apiVersion": "v1", "kind": "Node", "name": "n", "uid": uid, "controller": true},
            ]},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]},
        })
    };
    let pods = format!("{CORE}/pods");
    world
        .post(&format!("{CORE}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    assert_eq!(code(&world, node("n"), Method::POST, &pods, &pod(json!({}))).await, 403);
    let mirror = pod(json!({"kubernetes.io/config.mirror": "x"}));
    let made = world.send_as(node("n"), Method::POST, &pods, JSON, mirror.to_string()).await.expect(201);
    assert!(made["spec"]["serviceAccountName"].is_null(), "{made}");
}

#[tokio::test]
async fn a_start_brings_back_what_roles_have_lost() {
    let world = World::new().await;
    let rules = |rules: Value| json!({ "rules": rules });
    let own = json!({"verbs": ["get"], "apiGroups": ["example.com"], "resources": ["things"]});
    world.patch(&format!("{ROLES}/system:basic-user"), MERGE, &rules(json!([own]))).await.expect(200);
    let mine = json!({"metadata": {"annotations": {"rbac.authorization.kubernetes.io/autoupdate": "false"}}, "rules": []});
    world.patch(&format!("{ROLES}/system:node-proxier"), MERGE, &mine).await.expect(200);
    world.delete(&format!("{ROLES}/system:discovery")).await.expect(200);
    let cleaner =
        "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/roles/system:controller:token-cleaner";
    world.delete(cleaner).await.expect(200);
    world
        .patch(&format!("{BINDINGS}/system:monitoring"), MERGE, &json!({"subjects": null}))
        .await
        .expect(200);
    // As an older release left it.
    let old = json!({
        "metadata": {"name": "system:node"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "system:node"},
        "subjects": [{"kind": "Group", "name": "system:nodes", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    world.post(BINDINGS, &old).await.expect(201);
    secret(&world, "s").await;
    world.get(BINDINGS).await.expect(200);
    let read = format!("{CORE}/secrets/s");
    assert_eq!(
        code(&world, node("n"), Method::GET, &read, &Value::Null).await,
        200,
        "this is what was wrong"
    );
    let world = world.restarted().await;
    world.get(BINDINGS).await.expect(200);
    assert_eq!(code(&world, node("n"), Method::GET, &read, &Value::Null).await, 403);
    let basic = world.get(&format!("{ROLES}/system:basic-user")).await.expect(200);
    assert_eq!(basic["rules"].as_array().map(Vec::len), Some(3), "{basic}");
    assert_eq!(basic["rules"][0], own);
    let proxier = world.get(&format!("{ROLES}/system:node-proxier")).await.expect(200);
    assert_eq!(proxier["rules"].as_array().map_or(0, Vec::len), 0, "{proxier}");
    world.get(&format!("{ROLES}/system:discovery")).await.expect(200);
    let of_namespace = world.get(cleaner).await.expect(200);
    assert_eq!(of_namespace["rules"][0]["resources"], json!(["secrets"]));
    let monitoring = world.get(&format!("{BINDINGS}/system:monitoring")).await.expect(200);
    assert_eq!(monitoring["subjects"][0]["name"], "system:monitoring");
    // A third start has nothing to write.
    let before = world.get(ROLES).await.expect(200)["items"].clone();
    let world = world.restarted().await;
    assert_eq!(world.get(ROLES).await.expect(200)["items"], before);
}
