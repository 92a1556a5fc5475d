//! Requests to have a certificate signed: who may write what, and where.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use sampan_apiserver::User;
use serde_json::{Value, json};

use crate::world::{JSON, World, admin};

const REQUESTS: &str = "/apis/certificates.k8s.io/v1/certificatesigningrequests";

fn pem(label: &str) -> String {
    STANDARD.encode(format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n"))
}

/// A new request, made by somebody without rights of their own who claims to be somebody else.
async fn asked(world: &World) -> Value {
    let role = json!({
        "metadata": {"name": "asks"},
        "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create"]}],
    });
    let binding = json!({
        "metadata": {"name": "asks"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "asks"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}],
    });
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    world.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    world.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    world.settle().await;
    let request = json!({
        "metadata": {"name": "a"},
        "spec": {
            "request": pem("CERTIFICATE REQUEST"), "signerName": "example.com/own", "usages": ["client auth"],
            "username": "admin", "groups": ["system:masters"], "uid": "1", "extra": {"a": ["b"]},
        },
        "status": {"conditions": [{"type": "Approved", "status": "True"}]},
    });
    let mut eve = User::known("eve", &["people"]);
    eve.extra.push(("scopes".to_owned(), vec!["some".to_owned()]));
    world.send_as(eve, Method::POST, REQUESTS, JSON, request.to_string()).await.expect(201)
}

fn status(of: &Value, status: Value) -> Value {
    let mut object = of.clone();
    object["status"] = status;
    object
}

#[tokio::test]
async fn the_server_says_who_asks() {
    let world = World::new().await;
    let made = asked(&world).await;
    let expected = json!({
        "request": pem("CERTIFICATE REQUEST"), "signerName": "example.com/own", "usages": ["client auth"],
        "username": "eve", "groups": ["people", "system:authenticated"], "extra": {"scopes": ["some"]},
    });
    assert_eq!(made["spec"], expected);
    assert!(made["status"]["conditions"].is_null(), "{made}");
    // And it stays so.
    let mut changed = made.clone();
    changed["spec"]["username"] = "admin".into();
    changed["metadata"]["labels"] = json!({"a": "b"});
    let changed = world.put(&format!("{REQUESTS}/a"), &changed).await.expect(200);
    assert_eq!((&changed["spec"], &changed["metadata"]["labels"]["a"]), (&expected, &json!("b")));
}

#[tokio::test]
async fn an_approval_decides_and_nothing_else() {
    let world = World::new().await;
    let made = asked(&world).await;
    let approval = format!("{REQUESTS}/a/approval");
    let condition = |type_: &str| json!({"type": type_, "status": "True", "reason": "r", "message": "m"});
    let refused = |answer: crate::world::Answer| {
        let body = answer.expect(422);
        body["details"]["causes"][0]["message"].as_str().unwrap_or_default().to_owned()
    };
    let both = status(&made, json!({"conditions": [condition("Approved"), condition("Denied")]}));
    assert_eq!(
        refused(world.put(&approval, &both).await),
        "Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive"
    );
    let unsure =
        status(&made, json!({"conditions": [{"type": "Approved", "status": "Unknown", "reason": "r"}]}));
    assert_eq!(
        refused(world.put(&approval, &unsure).await),
        "Unsupported value: \"Unknown\": supported values: \"True\""
    );
    let mut wanted =
        status(&made, json!({"conditions": [condition("Approved")], "certificate": pem("CERTIFICATE")}));
    wanted["spec"]["username"] = "admin".into();
    let approved = world.put(&approval, &wanted).await.expect(200);
    assert_eq!(approved["spec"]["username"], "eve");
    let state = &approved["status"];
    assert!(state["certificate"].is_null(), "an approval hands out no certificate: {state}");
    for time in ["lastUpdateTime", "lastTransitionTime"] {
        assert!(state["conditions"][0][time].is_string(), "{state}");
    }
    assert_eq!(
        refused(world.put(&approval, &status(&approved, json!({"conditions": []}))).await),
        "Forbidden: updates may not remove a condition of type \"Approved\""
    );
}

#[tokio::test]
async fn a_signer_signs_and_nothing_else() {
    let world = World::new().await;
    let made = asked(&world).await;
    let address = format!("{REQUESTS}/a/status");
    let condition = |type_: &str, why: &str| json!({"type": type_, "status": "True", "reason": why});
    let approves = status(&made, json!({"conditions": [condition("Approved", "r")]}));
    let refused = world.put(&address, &approves).await.expect(422);
    let cause = &refused["details"]["causes"][0];
    assert_eq!(
        (&cause["field"], &cause["message"]),
        (
            &json!("status.conditions"),
            &json!("Forbidden: updates may not add a condition of type \"Approved\"")
        )
    );
    let approved = world.put(&format!("{REQUESTS}/a/approval"), &approves).await.expect(200);
    for (certificate, code) in
        [(pem("PRIVATE KEY"), 422), (pem("CERTIFICATE"), 200), (pem("CERTIFICATE REQUEST"), 422)]
    {
        let current = world.get(&format!("{REQUESTS}/a")).await.expect(200);
        let rewritten = json!({"conditions": [condition("Approved", "by eve")], "certificate": certificate});
        let answer = world.put(&address, &status(&current, rewritten)).await;
        assert_eq!(answer.code, code, "{}", answer.body);
    }
    let signed = world.get(&format!("{REQUESTS}/a")).await.expect(200);
    assert_eq!(signed["status"]["certificate"], pem("CERTIFICATE"));
    assert_eq!(
        signed["status"]["conditions"], approved["status"]["conditions"],
        "the decision is its maker's"
    );
    // Who may write the status but not sign for this signer does not.
    let role = json!({
        "metadata": {"name": "writes"},
        "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests/status"], "verbs": ["update"]}],
    });
    let binding = json!({
        "metadata": {"name": "writes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "writes"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "eve"}],
    });
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    world.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    world.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    world.settle().await;
    let mut failed = signed.clone();
    failed["status"]["conditions"] = json!([signed["status"]["conditions"][0], condition("Failed", "r")]);
    for (user, code) in [(User::known("eve", &[]), 403), (admin(), 200)] {
        let answer = world.send_as(user, Method::PUT, &address, JSON, failed.to_string()).await;
        assert_eq!(answer.code, code, "{}", answer.body);
    }
}
