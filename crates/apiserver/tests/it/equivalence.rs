//! `matchPolicy: Equivalent`, reinvocation and streams: policies and webhooks together.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sampan_apiserver::{NodeConnector, Stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::conformance_custom::{convert, define, end, ends, host_and_port};
use crate::outside::{Body, Certificate, Outside, Seen, json_answer};
use crate::world::World;

const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const CORE: &str = "/api/v1/namespaces/default";

/// Answers reviews with the patch in the path, and conversions as they are asked for.
async fn behave(seen: Seen) -> http::Response<Body> {
    if seen.path.starts_with("/convert") {
        return convert(seen).await;
    }
    let path = seen.path.split('?').next().unwrap_or_default();
    let object = &seen.body["request"]["object"];
    let operations = match path {
        "/scaler" => json!([
            {"op": "replace", "path": "/spec/targetCPUUtilizationPercentage", "value": 70},
            {"op": "replace", "path": "/spec/maxReplicas", "value": 9},
        ]),
        "/note" => json!([{"op": "replace", "path": "/note", "value": "patched"}]),
        "/port" => json!([{"op": "replace", "path": "/port", "value": "99"}]),
        "/append" => {
            let list = object["data"]["list"].as_str().unwrap_or_default();
            json!([{"op": "add", "path": "/data/list", "value": format!("{list}w")}])
        }
        "/command" => json!([
            {"op": "replace", "path": "/command", "value": ["echo", "a b"]},
            {"op": "add", "path": "/container", "value": "second"},
        ]),
        "/broken" => json!([{"op": "replace", "path": "/command", "value": 5}]),
        "/type" => json!([{"op": "replace", "path": "/apiVersion", "value": "autoscaling/v2"}]),
        _ => json!([]),
    };
    let response = json!({
        "uid": seen.body["request"]["uid"], "allowed": true,
        "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string()),
    });
    json_answer(
        200,
        json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}),
    )
}

async fn outside() -> Outside {
    Outside::json(Certificate::SelfSigned, &["127.0.0.1"], |seen| Box::pin(behave(seen))).await
}

fn rule(group: &str, version: &str, resource: &str) -> Value {
    json!({"operations": ["*"], "apiGroups": [group], "apiVersions": [version], "resources": [resource]})
}

async fn webhook(world: &World, outside: &Outside, path: &str, policy: &str, rule: Value, again: bool) {
    let webhook = json!({
        "name": "a.b.c", "clientConfig": outside.client_config(path), "admissionReviewVersions": ["v1"],
        "sideEffects": "None", "failurePolicy": "Fail", "matchPolicy": policy, "rules": [rule],
        "reinvocationPolicy": if again { "IfNeeded" } else { "Never" },
    });
    world.install(MUTATING, &json!({"metadata": {"name": "m"}, "webhooks": [webhook]})).await;
}

async fn policy(world: &World, family: &str, name: &str, spec: Value, binding: Value) {
    let mut binding = binding;
    binding["policyName"] = name.into();
    for (part, spec) in [("policies", spec), ("policybindings", binding)] {
        let resource = format!("{family}admission{part}.admissionregistration.k8s.io");
        world.install(&resource, &json!({"metadata": {"name": name}, "spec": spec})).await;
    }
}

fn scaler(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d", "apiVersion": "apps/v1"},
        "metrics": [{"type": "Resource", "resource": {
            "name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}}],
    }})
}

const SCALERS: &str = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";

#[tokio::test]
async fn webhooks_get_the_version_they_match() {
    let world = World::new().await;
    let outside = outside().await;
    let older = rule("autoscaling", "v1", "horizontalpodautoscalers");
    webhook(&world, &outside, "/scaler", "Exact", older.clone(), false).await;
    world.post(SCALERS, &scaler("exact")).await.expect(201);
    assert!(outside.seen().is_empty(), "it matches its own version alone");
    webhook(&world, &outside, "/scaler", "Equivalent", older.clone(), false).await;
    let made = world.post(SCALERS, &scaler("a")).await.expect(201);
    assert_eq!(made["apiVersion"], "autoscaling/v2");
    assert_eq!(made["spec"]["maxReplicas"], 9);
    let target = &made["spec"]["metrics"][0]["resource"]["target"];
    assert_eq!(*target, json!({"type": "Utilization", "averageUtilization": 70}));
    let mut again = made.clone();
    again["spec"]["minReplicas"] = 2.into();
    world.put(&format!("{SCALERS}/a"), &again).await.expect(200);
    let seen = outside.seen();
    let [create, update] = [0, 1].map(|i| &seen[i].body["request"]);
    let named = |version: &str| json!({"group": "autoscaling", "version": version, "kind": "HorizontalPodAutoscaler"});
    assert_eq!((&create["kind"], &create["requestKind"]), (&named("v1"), &named("v2")));
    assert_eq!(
        (&create["resource"]["version"], &create["requestResource"]["version"]),
        (&json!("v1"), &json!("v2"))
    );
    assert_eq!(create["object"]["apiVersion"], "autoscaling/v1");
    assert_eq!(create["object"]["spec"]["targetCPUUtilizationPercentage"], 50);
    assert_eq!(update["oldObject"]["spec"]["targetCPUUtilizationPercentage"], 70);
    assert_eq!(update["object"]["spec"]["minReplicas"], 2);
    webhook(&world, &outside, "/type", "Equivalent", older, false).await;
    let refused = world.post(SCALERS, &scaler("b")).await.expect(500);
    assert!(
        refused["message"].as_str().is_some_and(|m| m.contains("attempted to change the apiVersion")),
        "{refused}"
    );
}

#[tokio::test]
async fn events_of_both_groups_are_equivalent() {
    let world = World::new().await;
    let outside = outside().await;
    webhook(&world, &outside, "/note", "Equivalent", rule("events.k8s.io", "v1", "events"), false).await;
    let event = json!({
        "metadata": {"name": "e"}, "reason": "R", "message": "said", "type": "Normal",
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
    });
    let made = world.post(&format!("{CORE}/events"), &event).await.expect(201);
    assert_eq!((&made["message"], &made["apiVersion"]), (&json!("patched"), &json!("v1")));
    let request = &outside.seen()[0].body["request"];
    assert_eq!(request["resource"], json!({"group": "events.k8s.io", "version": "v1", "resource": "events"}));
    assert_eq!(request["requestResource"], json!({"group": "", "version": "v1", "resource": "events"}));
    assert_eq!(
        (&request["object"]["note"], &request["object"]["regarding"]["kind"]),
        (&json!("said"), &json!("Pod"))
    );
    // The same for a policy.
    let spec = json!({
        "matchConstraints": {"resourceRules": [rule("events.k8s.io", "v1", "events")]},
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {
            "expression": "Object{note: object.note + ' by ' + request.kind.group + request.requestKind.group}"}}],
    });
    webhook(&world, &outside, "/none", "Exact", rule("none", "v1", "none"), false).await;
    policy(&world, "mutating", "p", spec, json!({})).await;
    let mut other = event;
    other["metadata"]["name"] = "f".into();
    let made = world.post(&format!("{CORE}/events"), &other).await.expect(201);
    assert_eq!((&made["message"], &made["reason"]), (&json!("said by events.k8s.io"), &json!("R")));
}

#[tokio::test]
async fn custom_objects_are_converted_for_webhooks_and_policies() {
    let world = World::new().await;
    let outside = outside().await;
    define(&world, &host_and_port(&outside.client_config("/convert"))).await;
    webhook(&world, &outside, "/port", "Equivalent", rule("example.com", "v1", "ends"), false).await;
    let made = world.post(&ends("v2"), &end("v2", "a", json!({"hostPort": "h:1"}))).await.expect(201);
    assert_eq!((&made["hostPort"], &made["apiVersion"]), (&json!("h:99"), &json!("example.com/v2")));
    let seen = outside.seen();
    let review = seen.iter().find(|seen| seen.path.starts_with("/port")).expect("it was asked");
    let request = &review.body["request"];
    assert_eq!((&request["object"]["host"], &request["object"]["port"]), (&json!("h"), &json!("1")));
    assert_eq!(
        (&request["kind"]["version"], &request["requestKind"]["version"]),
        (&json!("v1"), &json!("v2"))
    );
    let spec = json!({
        "matchConstraints": {"resourceRules": [rule("example.com", "v1", "ends")]},
        "validations": [{"expression": "object.host != 'bad' && request.resource.version == 'v1'"}],
    });
    policy(&world, "validating", "p", spec.clone(), json!({"validationActions": ["Deny"]})).await;
    world.post(&ends("v2"), &end("v2", "b", json!({"hostPort": "good:1"}))).await.expect(201);
    let bad = end("v2", "c", json!({"hostPort": "bad:1"}));
    world.post(&ends("v2"), &bad).await.expect(422);
    let mut exact = spec;
    exact["matchConstraints"]["matchPolicy"] = "Exact".into();
    policy(&world, "validating", "p", exact, json!({"validationActions": ["Deny"]})).await;
    world.post(&ends("v2"), &bad).await.expect(201);
}

#[tokio::test]
async fn a_version_is_converted_to_once_for_all() {
    let world = World::new().await;
    let outside = outside().await;
    define(&world, &host_and_port(&outside.client_config("/convert"))).await;
    let spec = |group: &str| {
        json!({
            "matchConstraints": {"resourceRules": [rule(group, "v1", "ends")]},
            "validations": [{"expression": "object.host == 'h' && request.resource.version == 'v1'"}],
        })
    };
    let deny = || json!({"validationActions": ["Deny"]});
    let mut counts = Vec::new();
    // Without policies, with one and with several, and with one under whose binding nothing falls.
    let elsewhere = json!({"validationActions": ["Deny"], "matchResources": {
        "resourceRules": [rule("none", "v1", "none")]}});
    let rows = [
        (vec![], "a"),
        (vec![("p", spec("example.com"), elsewhere)], "b"),
        (vec![("p", spec("example.com"), deny())], "c"),
        (vec![("q", spec("example.com"), deny()), ("r", spec("example.com"), deny())], "d"),
    ];
    for (policies, name) in rows {
        for (policy_name, spec, binding) in policies {
            policy(&world, "validating", policy_name, spec, binding).await;
        }
        let before = outside.seen().len();
        world.post(&ends("v2"), &end("v2", name, json!({"hostPort": "h:1"}))).await.expect(201);
        counts.push(outside.seen().len() - before);
    }
    let plain = counts[0];
    assert_eq!(counts, [plain, plain, plain + 1, plain + 1]);
}

#[tokio::test]
async fn policies_and_webhooks_are_asked_again_after_each_other() {
    let maps = format!("{CORE}/configmaps");
    // Policies come first; the webhook adds a `w`, the policy a `p`.
    let rows = [(false, false, "pw"), (true, false, "pwp"), (false, true, "pw"), (true, true, "pwpw")];
    for (policy_again, webhook_again, expected) in rows {
        let world = World::new().await;
        let outside = outside().await;
        webhook(&world, &outside, "/append", "Exact", rule("", "v1", "configmaps"), webhook_again).await;
        let spec = json!({
            "matchConstraints": {"resourceRules": [rule("", "v1", "configmaps")]},
            "reinvocationPolicy": if policy_again { "IfNeeded" } else { "Never" },
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {
                "expression": "Object{data: {'list': object.data.list + 'p'}}"}}],
        });
        policy(&world, "mutating", "p", spec, json!({})).await;
        let map = json!({"metadata": {"name": "m"}, "data": {"list": ""}});
        let made = world.post(&maps, &map).await.expect(201);
        assert_eq!(made["data"]["list"], expected, "{policy_again} {webhook_again}");
    }
}

#[tokio::test]
async fn policies_change_actions() {
    let world = World::new().await;
    world
        .post(&format!("{CORE}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    world.post(&format!("{CORE}/pods"), &pod).await.expect(201);
    let spec = json!({
        "matchConstraints": {"resourceRules": [rule("", "v1", "pods/binding")]},
        "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {
            "expression": "Object{metadata: Object.metadata{annotations: {'to': object.target.name + request.kind.kind}}}"}}],
    });
    policy(&world, "mutating", "p", spec, json!({})).await;
    let spec = json!({
        "matchConstraints": {"resourceRules": [rule("", "v1", "pods/binding")]},
        "validations": [{"expression": "object.metadata.annotations.to == 'nBinding'"}],
    });
    policy(&world, "validating", "p", spec, json!({"validationActions": ["Deny"]})).await;
    let to = |node: &str| json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    world.post(&format!("{CORE}/pods/p/binding"), &to("m")).await.expect(422);
    world.post(&format!("{CORE}/pods/p/binding"), &to("n")).await.expect(201);
    let bound = world.get(&format!("{CORE}/pods/p")).await.expect(200);
    assert_eq!(
        (&bound["spec"]["nodeName"], &bound["metadata"]["annotations"]["to"]),
        (&json!("n"), &json!("nBinding"))
    );
}

#[tokio::test]
async fn policies_ask_who_may_what() {
    let world = World::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "maker"}, "rules": [
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
        {"apiGroups": ["apps"], "resources": ["deployments"], "resourceNames": ["good"], "verbs": ["scale"]},
    ]});
    world.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    let binding = json!({
        "metadata": {"name": "maker"}, "subjects": [{"kind": "User", "name": "bob"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "maker"},
    });
    world.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    let spec = json!({
        "matchConstraints": {"resourceRules": [rule("", "v1", "configmaps")]},
        "variables": [
            {"name": "deployments", "expression": "authorizer.group('apps').resource('deployments')"},
            {"name": "check", "expression": "variables.deployments.name(object.metadata.name).check('scale')"},
        ],
        "validations": [
            {"expression": "variables.check.allowed() && !variables.check.errored()", "message": "may not scale it"},
            {"expression": "authorizer.requestResource.check('create').allowed()", "message": "may not create"},
        ],
    });
    policy(&world, "validating", "p", spec, json!({"validationActions": ["Deny"]})).await;
    let bob = || sampan_apiserver::User::known("bob", &[]);
    let maps = format!("{CORE}/configmaps");
    for (user, name, code) in [(bob(), "good", 201), (bob(), "bad", 422), (crate::world::admin(), "bad", 201)]
    {
        let map = json!({"metadata": {"name": name}}).to_string();
        let answer = world.send_as(user, http::Method::POST, &maps, crate::world::JSON, map).await;
        let said = answer.expect(code);
        assert!(
            code == 201 || said["message"].as_str().is_some_and(|m| m.ends_with("may not scale it")),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_namespace_is_asked_about_in_itself() {
    let world = World::new().await;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let grant = |kind: &str, verb: &str| {
        let rules = json!([{"apiGroups": [""], "resources": ["namespaces"], "verbs": [verb]}]);
        let role = json!({"metadata": {"name": verb}, "rules": rules});
        let binding = json!({
            "metadata": {"name": verb}, "subjects": [{"kind": "User", "name": "bob"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": verb},
        });
        (role, binding)
    };
    for name in ["one", "two"] {
        world.post("/api/v1/namespaces", &json!({"metadata": {"name": name}})).await.expect(201);
    }
    let (role, binding) = grant("ClusterRole", "update");
    world.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    world.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    // What a role in the namespace itself grants.
    let (role, binding) = grant("Role", "label");
    world.post(&format!("{rbac}/namespaces/one/roles"), &role).await.expect(201);
    world.post(&format!("{rbac}/namespaces/one/rolebindings"), &binding).await.expect(201);
    let spec = json!({
        "matchConstraints": {"resourceRules": [rule("", "v1", "namespaces")]},
        "validations": [{"expression": "authorizer.requestResource.check('label').allowed()"}],
    });
    policy(&world, "validating", "p", spec, json!({"validationActions": ["Deny"]})).await;
    for (name, code) in [("one", 200), ("two", 422)] {
        let address = format!("/api/v1/namespaces/{name}");
        let changed = json!({"metadata": {"name": name, "labels": {"a": "b"}}}).to_string();
        let bob = sampan_apiserver::User::known("bob", &[]);
        world.send_as(bob, http::Method::PUT, &address, crate::world::JSON, changed).await.expect(code);
    }
}

/// A node that keeps the first line of what it is asked and refuses.
#[derive(Default)]
struct Listening {
    asked: Arc<Mutex<Vec<String>>>,
}

#[async_trait]
impl NodeConnector for Listening {
    async fn node(&self, _: &str) -> std::io::Result<Box<dyn Stream>> {
        let (ours, mut theirs) = tokio::io::duplex(4096);
        let asked = self.asked.clone();
        tokio::spawn(async move {
            let mut text = Vec::new();
            while !text.windows(4).any(|end| end == b"\r\n\r\n") {
                if theirs.read_buf(&mut text).await.unwrap_or(0) == 0 {
                    return;
                }
            }
            let text = String::from_utf8_lossy(&text).into_owned();
            asked.lock().expect("nobody panics").push(text.lines().next().unwrap_or_default().to_owned());
            let _ = theirs.write_all(b"HTTP/1.1 409 Conflict\r\ncontent-length: 2\r\n\r\nno").await;
        });
        Ok(Box::new(ours))
    }

    async fn address(&self, _: std::net::SocketAddr) -> std::io::Result<Box<dyn Stream>> {
        Err(std::io::ErrorKind::NotConnected.into())
    }
}

#[tokio::test]
async fn changed_options_of_a_stream_reach_the_node() {
    let world = World::new().await;
    let outside = outside().await;
    let node = Listening::default();
    let asked = node.asked.clone();
    world.server.set_node_connector(Arc::new(node));
    world
        .post(&format!("{CORE}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    let containers = json!([{"name": "first", "image": "i"}, {"name": "second", "image": "i"}]);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": containers}});
    world.post(&format!("{CORE}/pods"), &pod).await.expect(201);
    let exec = format!("{CORE}/pods/p/exec?container=first&command=ls&stdout=1&x=y");
    world.post(&exec, &json!({})).await.expect(409);
    let exec_rule = rule("", "v1", "pods/exec");
    webhook(&world, &outside, "/command", "Equivalent", exec_rule.clone(), false).await;
    world.post(&exec, &json!({})).await.expect(409);
    let expected = [
        "POST /exec/default/p/first?container=first&command=ls&stdout=1&x=y HTTP/1.1",
        "POST /exec/default/p/second?stdout=true&container=second&command=echo&command=a%20b HTTP/1.1",
    ];
    assert_eq!(*asked.lock().expect("nobody panics"), expected);
    webhook(&world, &outside, "/broken", "Equivalent", exec_rule, false).await;
    let refused = world.post(&exec, &json!({})).await.expect(500);
    assert!(
        refused["message"].as_str().is_some_and(|m| m.contains("that is no PodExecOptions")),
        "{refused}"
    );
    assert_eq!(asked.lock().expect("nobody panics").len(), 2);
}

#[tokio::test]
async fn paths_behind_a_proxy_arrive_as_they_were_asked_for() {
    let world = World::new().await;
    let node = Listening::default();
    let asked = node.asked.clone();
    world.server.set_node_connector(Arc::new(node));
    world.post("/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await.expect(201);
    let rows = [
        ("", "/"),
        ("/", "/"),
        ("/static/", "/static/"),
        ("/a%3Fq=1", "/a%3Fq=1"),
        ("/a%20b/c?q=%20", "/a%20b/c?q=%20"),
    ];
    for (rest, target) in rows {
        world.get(&format!("/api/v1/nodes/n/proxy{rest}")).await.expect(409);
        let last = asked.lock().expect("nobody panics").pop();
        assert_eq!(last, Some(format!("GET {target} HTTP/1.1")), "{rest}");
    }
}
