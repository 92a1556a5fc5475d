//! Tokens and questions of access, asked as clients ask them.

use http::{Method, Request};
use serde_json::{Value, json};

use crate::world::{JSON, World, admin};

const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const NAME: &str = "system:serviceaccount:default:robot";

async fn world() -> World {
    let world = World::new().await;
    world.post(ACCOUNTS, &json!({"metadata": {"name": "robot"}})).await.expect(201);
    world
}

#[tokio::test]
async fn a_token_is_made_and_reviewed() {
    let world = world().await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let made = world.post(&format!("{ACCOUNTS}/robot/token"), &request).await.expect(201);
    let token = made["status"]["token"].as_str().expect("a token");
    assert!(!token.is_empty() && made["status"]["expirationTimestamp"].is_string());
    world.settle().await;
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let review = world.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.expect(201);
    let status = &review["status"];
    assert_eq!((&status["authenticated"], status.get("error")), (&json!(true), None));
    assert_eq!(status["user"]["username"], NAME);
    let groups = status["user"]["groups"].as_array().expect("groups");
    for group in ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"] {
        assert!(groups.contains(&json!(group)), "{groups:?}");
    }
}

/// The code of a request that the administrator makes in the name of the account.
async fn as_account(world: &World, path: &str) -> u16 {
    let request = Request::builder()
        .method(Method::GET)
        .uri(path)
        .header("accept", JSON)
        .header("impersonate-user", NAME)
        .header("impersonate-group", "system:serviceaccounts")
        .header("impersonate-group", "system:authenticated")
        .body(http_body_util::Full::default())
        .expect("a request");
    world.raw(admin(), request).await.status().as_u16()
}

#[tokio::test]
async fn reviews_say_what_happens() {
    let world = world().await;
    let binding = json!({
        "metadata": {"name": "view"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}],
    });
    world
        .post("/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings", &binding)
        .await
        .expect(201);
    world.settle().await;
    let api = "/apis/authorization.k8s.io/v1";
    for (namespace, resource) in
        [("default", "pods"), ("default", "secrets"), ("kube-system", "pods"), ("default", "configmaps")]
    {
        let happens = as_account(&world, &format!("/api/v1/namespaces/{namespace}/{resource}")).await == 200;
        let attributes =
            json!({"namespace": namespace, "verb": "list", "resource": resource, "version": "v1"});
        let spec = json!({
            "user": NAME, "groups": ["system:serviceaccounts", "system:authenticated"], "resourceAttributes": attributes,
        });
        let question = json!({"spec": spec});
        let answers = [
            world.post(&format!("{api}/subjectaccessreviews"), &question).await.expect(201),
            world
                .post(&format!("{api}/namespaces/{namespace}/localsubjectaccessreviews"), &question)
                .await
                .expect(201),
        ];
        for answer in answers {
            assert_eq!(answer["status"]["allowed"], happens, "{namespace} {resource}: {answer}");
        }
    }
    assert_eq!(as_account(&world, "/api/v1/namespaces/default/pods").await, 200);
    assert_eq!(as_account(&world, "/api/v1/namespaces/default/secrets").await, 403);
    let elsewhere: Value = json!({"spec": {"user": NAME, "resourceAttributes": {"namespace": "default", "verb": "get", "resource": "pods"}}});
    world
        .post(&format!("{api}/namespaces/kube-system/localsubjectaccessreviews"), &elsewhere)
        .await
        .expect(422);
}
