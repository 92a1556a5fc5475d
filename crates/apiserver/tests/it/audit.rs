//! What is written down.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use http::Method;
use sampan_apiserver::{Access, Audit, Policy, Sink, User};
use serde_json::{Value, json};

use crate::world::{JSON, MERGE, World, admin};

/// Gives every event to the test.
struct Lines(Sender<Value>);

impl Sink for Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.0.send(serde_json::from_slice(line)?).map_err(io::Error::other)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn audited(policy: Policy) -> (World, Receiver<Value>) {
    let (sender, receiver) = channel();
    let audit = Audit::start(policy, Lines(sender)).expect("started");
    let access = Access { audit: Some(audit), ..Access::default() };
    (World::with(access, |store, _| store).await, receiver)
}

fn next(events: &Receiver<Value>) -> Value {
    events.recv_timeout(Duration::from_secs(20)).expect("an event")
}

fn policy(rule: &str) -> Policy {
    let text =
        format!("apiVersion: audit.k8s.io/v1\nkind: Policy\nomitManagedFields: true\nrules: [{{{rule}}}]");
    Policy::parse(&text).expect("a policy")
}

#[tokio::test]
async fn an_event_per_stage() {
    let (world, events) =
        audited(policy("level: RequestResponse, resources: [{resources: [configmaps]}]")).await;
    let map = json!({"metadata": {"name": "m"}, "data": {"a": "1"}});
    let path = "/api/v1/namespaces/default/configmaps";
    let answer = world.post(path, &map).await;
    let id = answer.headers["audit-id"].to_str().expect("text").to_owned();
    let (received, complete) = (next(&events), next(&events));
    assert_eq!(
        (&received["stage"], &complete["stage"]),
        (&json!("RequestReceived"), &json!("ResponseComplete"))
    );
    assert_eq!((received["auditID"].as_str(), complete["auditID"].as_str()), (Some(&*id), Some(&*id)));
    assert!(received.get("requestObject").is_none());
    assert_eq!(complete["requestObject"]["data"], map["data"]);
    assert_eq!(complete["responseObject"]["metadata"]["name"], "m");
    assert_eq!(complete["responseObject"]["metadata"].get("managedFields"), None);
    assert_eq!(complete["responseStatus"]["code"], 201);
    assert_eq!(complete["user"]["username"], "admin");
    assert_eq!(
        complete["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"})
    );
    assert_eq!(complete["annotations"]["authorization.k8s.io/decision"], "allow");
    // Who may not is written down, without what they sent.
    let bob = User::known("bob", &[]);
    world.send_as(bob, Method::PATCH, &format!("{path}/m"), MERGE, map.to_string()).await.expect(403);
    next(&events);
    let refused = next(&events);
    assert_eq!(
        (&refused["responseStatus"]["code"], &refused["verb"]),
        (&json!(403), &json!("patch")),
        "{refused}"
    );
    assert_eq!(refused["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert!(refused.get("requestObject").is_none());
    // Bad evidence as well.
    world.knock(Method::GET, path, &[("authorization", "Bearer x")], "").await.expect(401);
    next(&events);
    assert_eq!(next(&events)["responseStatus"]["code"], 401);
}

#[tokio::test]
async fn a_watch_is_complete_when_it_ends() {
    let (world, events) = audited(policy("level: RequestResponse, verbs: [watch]")).await;
    let request =
        http::Request::builder().uri("/api/v1/configmaps?watch=true").body(bytes::Bytes::new().into());
    let response = world.raw(admin(), request.expect("a request")).await;
    let stages = [next(&events), next(&events)].map(|event| event["stage"].clone());
    assert_eq!(stages, [json!("RequestReceived"), json!("ResponseStarted")]);
    assert!(events.recv_timeout(Duration::from_millis(50)).is_err());
    drop(response);
    let complete = next(&events);
    assert_eq!(
        (&complete["stage"], &complete["responseStatus"]["code"]),
        (&json!("ResponseComplete"), &json!(200))
    );
}

#[tokio::test]
async fn impersonation_shows_both() {
    let (world, events) =
        audited(policy("level: Metadata, users: [admin], omitStages: [RequestReceived]")).await;
    let request = http::Request::builder()
        .uri("/api/v1/namespaces/default/pods")
        .header("impersonate-user", "ann")
        .header("impersonate-extra-scopes", "a")
        .body(bytes::Bytes::new().into());
    world.raw(admin(), request.expect("a request")).await;
    let event = next(&events);
    assert_eq!(event["user"]["username"], "admin");
    assert_eq!(event["impersonatedUser"]["username"], "ann");
    assert_eq!(event["impersonatedUser"]["extra"], json!({"scopes": ["a"]}));
}

#[tokio::test]
async fn the_standard_policy_keeps_secrets() {
    let (world, events) = audited(Policy::standard()).await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    world.post("/api/v1/namespaces/default/secrets", &secret).await.expect(201);
    let review = json!({"spec": {"token": "hunter2"}});
    world.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.expect(201);
    world
        .send(Method::POST, "/api/v1/namespaces", JSON, json!({"metadata": {"name": "x"}}).to_string())
        .await;
    let all = [next(&events), next(&events), next(&events)];
    assert!(all.iter().all(|event| !event.to_string().contains("hunter2")), "{all:?}");
    assert_eq!(all[2]["requestObject"]["metadata"]["name"], "x");
    let metrics = world.get("/metrics").await.body;
    let metrics = metrics.as_str().unwrap_or_default();
    assert!(metrics.contains("\napiserver_audit_error_total 0\n"), "{metrics}");
}
