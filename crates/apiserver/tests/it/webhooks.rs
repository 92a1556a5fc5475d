//! Admission and conversion webhooks: real ones, on TLS servers of the test.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use serde_json::{Value, json};

use crate::outside::{Certificate, Outside, Seen, json_answer};
use crate::world::{APPLY, JSON, MERGE, World};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const MUTATING: &str = "mutatingwebhookconfigurations.admissionregistration.k8s.io";
const VALIDATING: &str = "validatingwebhookconfigurations.admissionregistration.k8s.io";

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"a": "1"}})
}

/// The review with a response in it.
fn answered(seen: &Seen, mut response: Value) -> String {
    response["uid"] = seen.body["request"]["uid"].clone();
    json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}).to_string()
}

fn patch(operations: &Value) -> Value {
    json!({"allowed": true, "patchType": "JSONPatch", "patch": STANDARD.encode(operations.to_string())})
}

/// What the path asks the server to do.
async fn behave(seen: Seen) -> http::Response<crate::outside::Body> {
    let path = seen.path.split('?').next().unwrap_or_default();
    let response = match path {
        "/allow" => json!({"allowed": true, "warnings": ["careful"], "auditAnnotations": {"k": "v"}}),
        "/deny" => {
            json!({"allowed": false, "status": {"code": 403, "reason": "Forbidden", "message": "not today"}})
        }
        "/deny-bad" => match &seen.body["request"]["object"]["data"]["bad"] {
            Value::Null => json!({"allowed": true}),
            _ => json!({"allowed": false, "status": {"message": "bad"}, "warnings": ["you were warned"]}),
        },
        "/add" => patch(&json!([{"op": "add", "path": "/data/added", "value": "yes"}])),
        "/append" => {
            let before = seen.body["request"]["object"]["data"]["list"].as_str().unwrap_or_default();
            patch(&json!([{"op": "add", "path": "/data/list", "value": format!("{before}x")}]))
        }
        "/steal" => patch(&json!([
            {"op": "replace", "path": "/metadata/uid", "value": "stolen"},
            {"op": "add", "path": "/unknown", "value": 1},
        ])),
        "/move" => patch(&json!([{"op": "replace", "path": "/metadata/namespace", "value": "kube-system"}])),
        "/break" => patch(&json!([{"op": "replace", "path": "/data", "value": 5}])),
        "/misfit" => patch(&json!([{"op": "remove", "path": "/no/such"}])),
        "/slow" => {
            tokio::time::sleep(Duration::from_secs(20)).await;
            json!({"allowed": true})
        }
        "/garbage" => return json_answer(200, "<html>"),
        "/large" => return json_answer(200, "x".repeat(4 << 20)),
        "/error" => return json_answer(500, "{}"),
        "/other-uid" => {
            let review = answered(&seen, json!({"allowed": true})).replace("\"uid\":\"", "\"uid\":\"x");
            return json_answer(200, review);
        }
        _ => return json_answer(404, "{}"),
    };
    json_answer(200, answered(&seen, response))
}

async fn outside() -> Outside {
    Outside::json(Certificate::SelfSigned, &["127.0.0.1"], |seen| Box::pin(behave(seen))).await
}

/// A webhook for everything that happens to config maps.
fn webhook(name: &str, client_config: Value, more: Value) -> Value {
    let mut webhook = json!({
        "name": name,
        "clientConfig": client_config,
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}],
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        webhook[key] = value.clone();
    }
    webhook
}

async fn install(world: &World, resource: &str, name: &str, webhooks: Vec<Value>) {
    world.install(resource, &json!({"metadata": {"name": name}, "webhooks": webhooks})).await;
}

#[tokio::test]
async fn the_review_says_everything() {
    let world = World::new().await;
    let outside = outside().await;
    install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/allow"), json!({}))])
        .await;
    let created = world.post(&format!("{MAPS}?fieldManager=me"), &map("one")).await;
    assert_eq!(created.headers["warning"], "299 - \"careful\"");
    created.expect(201);
    world.patch(&format!("{MAPS}/one"), MERGE, &json!({"data": {"a": "2"}})).await.expect(200);
    world.delete(&format!("{MAPS}/one?gracePeriodSeconds=0")).await.expect(200);
    let seen = outside.seen();
    let requests: Vec<&Value> = seen.iter().map(|s| &s.body["request"]).collect();
    let [create, update, delete] = requests.as_slice() else { panic!("{requests:?}") };
    assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("POST", "/allow?timeout=10s"));
    for request in &requests {
        assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
        assert_eq!(
            request["requestResource"],
            json!({"group": "", "version": "v1", "resource": "configmaps"})
        );
        assert_eq!((&request["name"], &request["namespace"]), (&json!("one"), &json!("default")));
        assert_eq!(request["userInfo"]["username"], "admin");
        assert_eq!(request["dryRun"], false);
    }
    assert_eq!((&create["operation"], &create["oldObject"]), (&json!("CREATE"), &Value::Null));
    assert_eq!(
        (&create["object"]["data"]["a"], &create["object"]["kind"]),
        (&json!("1"), &json!("ConfigMap"))
    );
    assert!(create["object"]["metadata"]["uid"].is_string());
    assert_eq!(
        (&create["options"]["kind"], &create["options"]["fieldManager"]),
        (&json!("CreateOptions"), &json!("me"))
    );
    assert_eq!(
        (&update["operation"], &update["options"]["kind"]),
        (&json!("UPDATE"), &json!("UpdateOptions"))
    );
    assert_eq!(
        (&update["object"]["data"]["a"], &update["oldObject"]["data"]["a"]),
        (&json!("2"), &json!("1"))
    );
    assert_eq!((&delete["operation"], &delete["object"]), (&json!("DELETE"), &Value::Null));
    assert_eq!(
        (&delete["oldObject"]["data"]["a"], &delete["options"]["gracePeriodSeconds"]),
        (&json!("2"), &json!(0))
    );
    // A handshake costs more than an answer.
    assert_eq!(outside.connections(), 1);
}

#[tokio::test]
async fn refusals_reach_the_client() {
    let world = World::new().await;
    let outside = outside().await;
    world.post(MAPS, &map("old")).await.expect(201);
    install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/deny"), json!({}))]).await;
    let message = "admission webhook \"a.b.c\" denied the request: not today";
    let rows = [
        world.post(MAPS, &map("new")).await,
        world.patch(&format!("{MAPS}/old"), MERGE, &json!({"data": {"a": "2"}})).await,
        world
            .patch(
                &format!("{MAPS}/applied?fieldManager=me"),
                APPLY,
                &json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "applied"}}),
            )
            .await,
        world.delete(&format!("{MAPS}/old")).await,
    ];
    for answer in rows {
        let status = answer.expect(403);
        assert_eq!((&status["message"], &status["reason"]), (&json!(message), &json!("Forbidden")));
    }
    world.get(&format!("{MAPS}/new")).await.expect(404);
    assert_eq!(world.get(&format!("{MAPS}/old")).await.expect(200)["data"]["a"], "1");
    // What is not asked for is not seen, and the server's own configuration never is.
    world.post("/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}})).await.expect(201);
    install(&world, VALIDATING, "v", vec![]).await;
    world.delete(&format!("{MAPS}/old")).await.expect(200);
}

#[tokio::test]
async fn warnings_come_with_refusals() {
    let world = World::new().await;
    let outside = outside().await;
    install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/deny-bad"), json!({}))])
        .await;
    world.post(MAPS, &map("good")).await.expect(201);
    let mut bad = map("bad");
    bad["data"]["bad"] = "1".into();
    let refused = world.post(MAPS, &bad).await;
    assert_eq!(refused.headers["warning"], "299 - \"you were warned\"");
    assert_eq!(refused.expect(400)["message"], "admission webhook \"a.b.c\" denied the request: bad");
}

#[tokio::test]
async fn patches_are_applied_and_checked() {
    let world = World::new().await;
    let outside = outside().await;
    let rows = [
        ("/add", 201, ""),
        ("/steal", 201, ""),
        ("/move", 400, "the namespace of the provided object does not match"),
        ("/break", 500, "a webhook has made something of the object that is no ConfigMap"),
        ("/misfit", 500, "does not apply"),
    ];
    for (path, code, message) in rows {
        // Fitting badly is no failure to call, so failing open does not help.
        let open = json!({"failurePolicy": "Ignore"});
        install(&world, MUTATING, "m", vec![webhook("a.b.c", outside.client_config(path), open)]).await;
        let answer = world.post(MAPS, &map(&path[1..])).await.expect(code);
        assert!(
            code == 201 || answer["message"].as_str().is_some_and(|m| m.contains(message)),
            "{path}: {answer}"
        );
    }
    assert_eq!(world.get(&format!("{MAPS}/add")).await.expect(200)["data"]["added"], "yes");
    let stolen = world.get(&format!("{MAPS}/steal")).await.expect(200);
    assert_ne!(stolen["metadata"]["uid"], "stolen");
    assert_eq!(stolen.get("unknown"), None);
}

#[tokio::test]
async fn mutating_webhooks_run_in_order_and_again() {
    let world = World::new().await;
    let outside = outside().await;
    let append = |name: &str, policy: &str| {
        webhook(
            name,
            outside.client_config(&format!("/append?{name}")),
            json!({"reinvocationPolicy": policy}),
        )
    };
    install(&world, MUTATING, "b", vec![append("third", "Never")]).await;
    install(&world, MUTATING, "a", vec![append("first", "IfNeeded"), append("second", "Never")]).await;
    let created = world.post(MAPS, &map("m")).await.expect(201);
    assert_eq!(created["data"]["list"], "xxxx");
    let order: Vec<String> = outside
        .seen()
        .iter()
        .map(|seen| seen.path.trim_start_matches("/append?").split('&').next().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(order, ["first", "second", "third", "first"]);
}

#[tokio::test]
async fn failures_are_what_the_policy_says() {
    let world = World::new().await;
    let outside = outside().await;
    let stranger = outside_with_another_name().await;
    let other = outside_with_another_name().await;
    let mut wrong_bundle = outside.client_config("/allow");
    wrong_bundle["caBundle"] = other.bundle.clone().into();
    let closed = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.local_addr().expect("an address")
    };
    let service = json!({"service": {"namespace": "default", "name": "nobody", "path": "/x"}, "caBundle": outside.bundle});
    let rows = [
        ("slow", outside.client_config("/slow"), "/slow?timeout=1s\": context deadline exceeded"),
        ("garbage", outside.client_config("/garbage"), "json parse error"),
        ("large", outside.client_config("/large"), "the response is larger than"),
        ("error", outside.client_config("/error"), "an error on the server (code 500)"),
        ("missing", outside.client_config("/nowhere"), "the server could not find the requested resource"),
        (
            "other-uid",
            outside.client_config("/other-uid"),
            "received invalid webhook response: expected response.uid",
        ),
        ("wrong-bundle", wrong_bundle, "failed to verify certificate"),
        ("wrong-name", stranger.client_config("/allow"), "failed to verify certificate"),
        (
            "closed",
            json!({"url": format!("https://{closed}/x"), "caBundle": outside.bundle}),
            "failed to call webhook: Post",
        ),
        (
            "no-service",
            service,
            "Post \"https://nobody.default.svc:443/x?timeout=1s\": service/nobody in \"default\" is not present",
        ),
        ("plain", json!({"url": "http://127.0.0.1/x"}), "'https' is the only allowed URL scheme"),
        (
            "no-name",
            json!({"url": "https://webhook.example/x", "caBundle": outside.bundle}),
            "resolves no host names",
        ),
    ];
    for (name, client_config, message) in rows {
        for (policy, code) in [("Fail", 500), ("Ignore", 201)] {
            let more = json!({"failurePolicy": policy, "timeoutSeconds": 1});
            install(&world, VALIDATING, "v", vec![webhook("a.b.c", client_config.clone(), more)]).await;
            let answer = world.post(MAPS, &map(name)).await.expect(code);
            if code == 500 {
                let found = answer["message"].as_str().unwrap_or_default();
                let start = "Internal error occurred: failed calling webhook \"a.b.c\": ";
                assert!(found.starts_with(start) && found.contains(message), "{name}: {found}");
                assert_eq!(answer["reason"], "InternalError");
            }
        }
    }
    let old =
        webhook("a.b.c", outside.client_config("/allow"), json!({"admissionReviewVersions": ["v1beta1"]}));
    install(&world, VALIDATING, "v", vec![old]).await;
    let status = world.post(MAPS, &map("old")).await.expect(500);
    assert!(
        status["message"].as_str().is_some_and(|m| m.contains("could not create admission objects")),
        "{status}"
    );
}

/// A server that is known by a name that is not its address.
async fn outside_with_another_name() -> Outside {
    Outside::json(Certificate::Signed, &["other.example"], |seen| Box::pin(behave(seen))).await
}

#[tokio::test]
async fn dry_runs_have_no_side_effects() {
    let world = World::new().await;
    let outside = outside().await;
    for (effects, code) in [("None", 201), ("NoneOnDryRun", 201), ("Some", 400), ("Unknown", 400)] {
        let more = json!({"sideEffects": effects});
        install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/allow"), more)]).await;
        let answer = world.post(&format!("{MAPS}?dryRun=All"), &map("dry")).await.expect(code);
        if code == 400 {
            assert_eq!(answer["message"], "admission webhook \"a.b.c\" does not support dry run");
        }
    }
    assert!(outside.seen().iter().all(|seen| seen.body["request"]["dryRun"] == true));
    assert_eq!(outside.seen().len(), 2);
}

#[tokio::test]
async fn selectors_choose() {
    let world = World::new().await;
    let outside = outside().await;
    let more = json!({
        "namespaceSelector": {"matchLabels": {"watched": "yes"}},
        "objectSelector": {"matchExpressions": [{"key": "skip", "operator": "DoesNotExist"}]},
    });
    install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/deny"), more)]).await;
    world.post(MAPS, &map("m")).await.expect(201);
    let namespace = json!({"metadata": {"name": "watched", "labels": {"watched": "yes"}}});
    world.post("/api/v1/namespaces", &namespace).await.expect(201);
    let watched = "/api/v1/namespaces/watched/configmaps";
    world.post(watched, &map("m")).await.expect(403);
    let mut skipped = map("skipped");
    skipped["metadata"]["labels"] = json!({"skip": "1"});
    world.post(watched, &skipped).await.expect(201);
}

#[tokio::test]
async fn subresources_and_streams_are_seen() {
    let world = World::new().await;
    let outside = outside().await;
    let core = "/api/v1/namespaces/default";
    world
        .post(&format!("{core}/serviceaccounts"), &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    world.post(&format!("{core}/pods"), &pod).await.expect(201);
    let rules = json!({"rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["*"], "resources": ["pods/*"]}]});
    install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/deny"), rules)]).await;
    let status = json!({"status": {"phase": "Running"}});
    world.patch(&format!("{core}/pods/p/status"), MERGE, &status).await.expect(403);
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n"}});
    world.post(&format!("{core}/pods/p/binding"), &binding).await.expect(403);
    world.post(&format!("{core}/pods/p/eviction"), &json!({"metadata": {"name": "p"}})).await.expect(403);
    world.post(&format!("{core}/pods/p/exec?command=ls&stdout=true"), &json!({})).await.expect(403);
    let deletes = json!({"rules": [{"operations": ["DELETE"], "apiGroups": [""], "apiVersions": ["*"], "resources": ["pods"]}]});
    let seen: Vec<[String; 4]> = outside
        .seen()
        .iter()
        .map(|seen| {
            let request = &seen.body["request"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            [
                text(&request["operation"]),
                text(&request["subResource"]),
                text(&request["kind"]["kind"]),
                text(&request["name"]),
            ]
        })
        .collect();
    let expected = [
        ["UPDATE", "status", "Pod", "p"],
        ["CREATE", "binding", "Binding", "p"],
        ["CREATE", "eviction", "Eviction", "p"],
        ["CONNECT", "exec", "PodExecOptions", "p"],
    ];
    assert_eq!(seen, expected.map(|row| row.map(str::to_owned)));
    let options = &outside.seen()[3].body["request"]["object"];
    assert_eq!((&options["command"], &options["stdout"]), (&json!(["ls"]), &json!(true)));
    // Whoever allowed the eviction is not asked about the deletion it comes to.
    install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/deny"), deletes)]).await;
    world.post(&format!("{core}/pods/p/eviction"), &json!({"metadata": {"name": "p"}})).await.expect(201);
}

#[tokio::test]
async fn a_scale_is_seen_as_one() {
    let world = World::new().await;
    let outside = outside().await;
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {
        "replicas": 1, "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }});
    world.post(deployments, &deployment).await.expect(201);
    let rules = json!({"rules": [{"operations": ["UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["*/scale"]}]});
    install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/allow"), rules)]).await;
    world
        .patch(&format!("{deployments}/d/scale"), MERGE, &json!({"spec": {"replicas": 3}}))
        .await
        .expect(200);
    let request = outside.seen()[0].body["request"].clone();
    assert_eq!(request["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(request["resource"], json!({"group": "apps", "version": "v1", "resource": "deployments"}));
    assert_eq!(
        (&request["object"]["spec"]["replicas"], &request["oldObject"]["spec"]["replicas"]),
        (&json!(3), &json!(1))
    );
}

#[tokio::test]
async fn collections_are_deleted_one_by_one() {
    let world = World::new().await;
    let outside = outside().await;
    for name in ["a", "b"] {
        world.post(MAPS, &map(name)).await.expect(201);
    }
    install(&world, VALIDATING, "v", vec![webhook("a.b.c", outside.client_config("/allow"), json!({}))])
        .await;
    let answer = world.send(Method::DELETE, MAPS, JSON, "").await;
    assert_eq!(answer.headers["warning"], "299 - \"careful\"");
    answer.expect(200);
    let names: Vec<Value> = outside.seen().iter().map(|seen| seen.body["request"]["name"].clone()).collect();
    assert_eq!(names, ["a", "b"]);
}

/// A definition of two versions between which the server at this address converts.
fn definition(client_config: &Value) -> Value {
    let version = |name: &str, storage: bool| {
        let schema =
            json!({"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}});
        json!({"name": name, "served": true, "storage": storage, "schema": schema})
    };
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "foos.g.example"},
        "spec": {
            "group": "g.example",
            "names": {"plural": "foos", "kind": "Foo"},
            "scope": "Namespaced",
            "versions": [version("v1", true), version("v2", false)],
            "conversion": {
                "strategy": "Webhook",
                "webhook": {"clientConfig": client_config, "conversionReviewVersions": ["v1"]},
            },
        },
    })
}

#[tokio::test]
async fn custom_objects_are_converted() {
    let world = World::new().await;
    let outside = Outside::json(Certificate::Signed, &["127.0.0.1"], |seen| {
        Box::pin(async move {
            let request = &seen.body["request"];
            let mut objects = request["objects"].clone();
            for object in objects.as_array_mut().into_iter().flatten() {
                object["apiVersion"] = request["desiredAPIVersion"].clone();
                object["converted"] = true.into();
                if object["metadata"]["name"] == "bad" {
                    object["metadata"]["name"] = "other".into();
                }
            }
            let response =
                json!({"uid": request["uid"], "result": {"status": "Success"}, "convertedObjects": objects});
            let review =
                json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1", "response": response});
            json_answer(200, review)
        })
    })
    .await;
    let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    world.post(definitions, &definition(&outside.client_config("/convert"))).await.expect(201);
    let foos = |version: &str| format!("/apis/g.example/{version}/namespaces/default/foos");
    let mut served = 404;
    for _ in 0..200 {
        served = world.get(&foos("v1")).await.code;
        if served == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(served, 200);
    let object =
        |name: &str| json!({"apiVersion": "g.example/v1", "kind": "Foo", "metadata": {"name": name}});
    for name in ["a", "b"] {
        world.post(&foos("v1"), &object(name)).await.expect(201);
    }
    assert!(outside.seen().is_empty());
    let converted = world.get(&format!("{}/a", foos("v2"))).await.expect(200);
    assert_eq!((&converted["apiVersion"], &converted["converted"]), (&json!("g.example/v2"), &json!(true)));
    let list = world.get(&foos("v2")).await.expect(200);
    assert_eq!(list["items"].as_array().map(Vec::len), Some(2));
    assert!(
        list["items"].as_array().is_some_and(|items| items.iter().all(|i| i["apiVersion"] == "g.example/v2"))
    );
    // One question for the whole list.
    assert_eq!(outside.seen().len(), 2);
    assert_eq!(outside.seen()[1].body["request"]["objects"].as_array().map(Vec::len), Some(2));
    world.post(&foos("v1"), &object("bad")).await.expect(201);
    let status = world.get(&format!("{}/bad", foos("v2"))).await.expect(500);
    assert_eq!(
        status["message"],
        "conversion webhook for g.example/v1, Kind=Foo returned invalid converted object at index 0: \
         must have the same name: bad != other"
    );
}
