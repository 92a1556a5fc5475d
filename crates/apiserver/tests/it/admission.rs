//! What admission adds and refuses, through the real pipeline.

use futures::future::join_all;
use http::Method;
use serde_json::{Value, json};

use crate::world::{Answer, JSON, MERGE, World};

const CORE: &str = "/api/v1/namespaces/default";

fn message(answer: &Value) -> &str {
    answer["message"].as_str().unwrap_or_default()
}

fn warnings(answer: &Answer) -> Vec<&str> {
    answer.headers.get_all("warning").iter().filter_map(|value| value.to_str().ok()).collect()
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}})
}

/// A server with what pods need.
async fn world() -> World {
    let world = World::new().await;
    world.post(&format!("{CORE}/serviceaccounts"), &map("default")).await.expect(201);
    world
}

fn quota(hard: Value, status: Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": "q", "namespace": "default", "uid": "q"}, "spec": {"hard": hard}, "status": status,
    })
}

const QUOTA: &str = "/resourcequotas/default/q";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quota_of_ten_admits_ten_of_fifty() {
    let first = world().await;
    let second = first.beside().await;
    let status = json!({"hard": {"count/configmaps": "10"}, "used": {"count/configmaps": "0"}});
    first.seed(QUOTA, &quota(json!({"count/configmaps": "10"}), status)).await;
    second.settle().await;
    let creates = (0..50).map(|i| {
        let server = if i % 2 == 0 { &first } else { &second };
        async move { server.post(&format!("{CORE}/configmaps"), &map(&format!("m{i}"))).await }
    });
    let answers = join_all(creates).await;
    let admitted = answers.iter().filter(|answer| answer.code == 201).count();
    assert_eq!(admitted, 10);
    for refused in answers.iter().filter(|answer| answer.code != 201) {
        assert_eq!(refused.code, 403, "{}", refused.body);
        let why = "is forbidden: exceeded quota: q, requested: count/configmaps=1, used: count/configmaps=10, \
                   limited: count/configmaps=10";
        assert!(message(&refused.body).ends_with(why), "{}", refused.body);
    }
    assert_eq!(first.stored(QUOTA).await["status"]["used"]["count/configmaps"], "10");
    let maps = first.get(&format!("{CORE}/configmaps")).await.expect(200);
    assert_eq!(maps["items"].as_array().map(Vec::len), Some(10));
}

#[tokio::test]
async fn quotas_count_what_is_there_and_charge_what_is_stored() {
    let world = world().await;
    world.post(&format!("{CORE}/pods"), &pod("before")).await.expect(201);
    // Nobody has counted for this quota yet.
    world.seed(QUOTA, &quota(json!({"pods": "2", "services.nodeports": "1"}), Value::Null)).await;
    let pods = format!("{CORE}/pods");
    world.post(&format!("{pods}?dryRun=All"), &pod("dry")).await.expect(201);
    world.post(&pods, &pod("two")).await.expect(201);
    let refused = world.post(&pods, &pod("three")).await.expect(403);
    assert_eq!(
        message(&refused),
        "pods \"three\" is forbidden: exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2"
    );
    // A refused object costs nothing.
    world.post(&pods, &pod("UPPER")).await.expect(422);
    let services = format!("{CORE}/services");
    let service = |name: &str| json!({"metadata": {"name": name}, "spec": {"ports": [{"port": 80}]}});
    world.post(&services, &service("a")).await.expect(201);
    world.post(&services, &service("b")).await.expect(201);
    let node_port = json!({"spec": {"type": "NodePort"}});
    world.patch(&format!("{services}/a"), MERGE, &node_port).await.expect(200);
    let refused = world.patch(&format!("{services}/b"), MERGE, &node_port).await.expect(403);
    assert!(message(&refused).contains("exceeded quota: q, requested: services.nodeports=1"), "{refused}");
    let status = world.stored(QUOTA).await["status"].clone();
    assert_eq!(status["used"], json!({"pods": "2", "services.nodeports": "1"}));
    let limited =
        quota(json!({"limits.cpu": "1"}), json!({"hard": {"limits.cpu": "1"}, "used": {"limits.cpu": "0"}}));
    world.seed(QUOTA, &limited).await;
    let refused = world.post(&pods, &pod("unlimited")).await.expect(403);
    assert_eq!(
        message(&refused),
        "pods \"unlimited\" is forbidden: failed quota: q: must specify limits.cpu for: c"
    );
}

#[tokio::test]
async fn limit_ranges_complete_and_refuse() {
    let world = world().await;
    let range = json!({
        "apiVersion": "v1", "kind": "LimitRange", "metadata": {"name": "l", "namespace": "default"},
        "spec": {"limits": [{
            "type": "Container", "max": {"cpu": "2"}, "default": {"cpu": "1"}, "defaultRequest": {"cpu": "500m"},
        }]},
    });
    world.seed("/limitranges/default/l", &range).await;
    let pods = format!("{CORE}/pods");
    let made = world.post(&pods, &pod("plain")).await.expect(201);
    let resources = &made["spec"]["containers"][0]["resources"];
    assert_eq!(*resources, json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}));
    assert_eq!(
        made["metadata"]["annotations"]["kubernetes.io/limit-ranger"],
        "LimitRanger plugin set: cpu request for container c; cpu limit for container c"
    );
    let mut large = pod("large");
    large["spec"]["containers"][0]["resources"] = json!({"limits": {"cpu": "3"}});
    let refused = world.post(&pods, &large).await.expect(403);
    assert_eq!(
        message(&refused),
        "pods \"large\" is forbidden: maximum cpu usage per Container is 2, but limit is 3"
    );
    // A pod that is there is bound whatever has become of the range.
    let mut narrow = range.clone();
    narrow["spec"]["limits"][0]["max"]["cpu"] = "100m".into();
    world.seed("/limitranges/default/l", &narrow).await;
    let binding = json!({"target": {"kind": "Node", "name": "n"}});
    world.post(&format!("{pods}/plain/binding"), &binding).await.expect(201);
}

#[tokio::test]
async fn pod_security_refuses_warns_and_checks_its_labels() {
    let world = world().await;
    let namespaces = "/api/v1/namespaces";
    let labelled = |name: &str, labels: Value| json!({"metadata": {"name": name, "labels": labels}});
    let bad = labelled("bad", json!({"pod-security.kubernetes.io/enforce": "strict"}));
    let refused = world.post(namespaces, &bad).await.expect(422);
    assert!(message(&refused).contains("must be one of privileged, baseline, restricted"), "{refused}");
    let strict = labelled("strict", json!({"pod-security.kubernetes.io/enforce": "baseline"}));
    world.post(namespaces, &strict).await.expect(201);
    world.post(&format!("{namespaces}/strict/serviceaccounts"), &map("default")).await.expect(201);
    let mut host = pod("host");
    host["spec"]["hostNetwork"] = true.into();
    let pods = format!("{namespaces}/strict/pods");
    let refused = world.post(&pods, &host).await.expect(403);
    assert_eq!(
        message(&refused),
        "pods \"host\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
    );
    world.post(&pods, &pod("plain")).await.expect(201);
    let deployment = json!({
        "metadata": {"name": "d"},
        "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": host["spec"]},
        },
    });
    let told = world.post("/apis/apps/v1/namespaces/strict/deployments", &deployment).await;
    assert_eq!(
        (told.code, warnings(&told)),
        (
            201,
            vec![
                "299 - \"would violate PodSecurity \\\"baseline:latest\\\": host namespaces (hostNetwork=true)\""
            ]
        )
    );
    let stricter = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}});
    world.settle().await;
    let told = world.patch(&format!("{namespaces}/strict"), MERGE, &stricter).await;
    assert_eq!(told.code, 200, "{}", told.body);
    let lines = warnings(&told);
    assert!(lines[0].contains("existing pods in namespace \\\"strict\\\" violate"), "{lines:?}");
    assert!(lines[1].contains("plain: allowPrivilegeEscalation != false"), "{lines:?}");
    // What is not looked at may change.
    world.settle().await;
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    world.patch(&format!("{pods}/plain"), MERGE, &label).await.expect(200);
    let image = json!({"spec": {"containers": [{"name": "c", "image": "other"}]}});
    world.patch(&format!("{pods}/plain"), "application/strategic-merge-patch+json", &image).await.expect(403);
}

#[tokio::test]
async fn nodes_are_tainted_and_pods_carry_their_zone() {
    let world = world().await;
    let zone = json!({"topology.kubernetes.io/zone": "z", "other": "x"});
    let node = json!({"metadata": {"name": "n", "labels": zone}});
    let made = world.post("/api/v1/nodes", &node).await.expect(201);
    assert_eq!(
        made["spec"]["taints"],
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}])
    );
    let ready = json!({
        "metadata": {"name": "r"}, "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    });
    assert_eq!(world.post("/api/v1/nodes", &ready).await.expect(201)["spec"]["taints"], Value::Null);
    world.settle().await;
    let pods = format!("{CORE}/pods");
    world.post(&pods, &pod("p")).await.expect(201);
    let binding = json!({"target": {"kind": "Node", "name": "n"}});
    world.post(&format!("{pods}/p/binding"), &binding).await.expect(201);
    let bound = world.get(&format!("{pods}/p")).await.expect(200);
    assert_eq!(bound["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
    let mut placed = pod("placed");
    placed["spec"]["nodeName"] = "n".into();
    let placed = world.post(&pods, &placed).await.expect(201);
    assert_eq!(placed["metadata"]["labels"], json!({"topology.kubernetes.io/zone": "z"}));
}

#[tokio::test]
async fn classes_of_pods_are_obeyed() {
    let world = world().await;
    let class = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "vm"}, "handler": "vm",
        "overhead": {"podFixed": {"cpu": "250m"}}, "scheduling": {"nodeSelector": {"vm": "yes"}},
    });
    world.seed("/runtimeclasses.node.k8s.io/vm", &class).await;
    let pods = format!("{CORE}/pods");
    let of_class = |name: &str, class: &str| {
        let mut pod = pod(name);
        pod["spec"]["runtimeClassName"] = class.into();
        pod
    };
    let made = world.post(&pods, &of_class("a", "vm")).await.expect(201);
    assert_eq!(made["spec"]["overhead"], json!({"cpu": "250m"}));
    assert_eq!(made["spec"]["nodeSelector"], json!({"vm": "yes"}));
    let refused = world.post(&pods, &of_class("b", "none")).await.expect(403);
    assert_eq!(message(&refused), "pods \"b\" is forbidden: pod rejected: RuntimeClass \"none\" not found");
    let mut loud = pod("c");
    loud["spec"]["preemptionPolicy"] = "Never".into();
    let refused = world.post(&pods, &loud).await.expect(403);
    assert!(message(&refused).contains("the string value of PreemptionPolicy (Never) must not be provided"));
}

const POLICIES: &str = "admissionregistration.k8s.io";

async fn policy(world: &World, plural: &str, name: &str, spec: Value, binding: Value) {
    let mut bound = binding;
    bound["policyName"] = name.into();
    let seed = |plural: String, spec: Value| {
        let object = json!({"metadata": {"name": name}, "spec": spec});
        async move { world.seed(&format!("/{plural}.{POLICIES}/{name}"), &object).await }
    };
    seed(format!("{plural}policies"), spec).await;
    seed(format!("{plural}policybindings"), bound).await;
}

fn config_maps(operations: &[&str]) -> Value {
    json!({"resourceRules": [{
        "apiGroups": [""], "apiVersions": ["v1"], "operations": operations, "resources": ["configmaps"],
    }]})
}

#[tokio::test]
async fn validating_policies_refuse_and_warn() {
    let world = world().await;
    let maps = format!("{CORE}/configmaps");
    world.post(&maps, &json!({"metadata": {"name": "limits"}, "data": {"max": "1"}})).await.expect(201);
    let spec = json!({
        "matchConstraints": config_maps(&["CREATE", "UPDATE"]),
        "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
        "variables": [{"name": "count", "expression": "has(object.data) ? object.data.size() : 0"}],
        "validations": [{
            "expression": "variables.count <= int(params.data.max)",
            "messageExpression": "'at most ' + params.data.max + ' keys'",
        }],
    });
    let binding = json!({
        "paramRef": {"name": "limits", "parameterNotFoundAction": "Deny"}, "validationActions": ["Deny", "Audit"],
    });
    policy(&world, "validatingadmission", "keys", spec, binding).await;
    let quiet = json!({
        "matchConstraints": config_maps(&["DELETE"]),
        "validations": [{"expression": "oldObject.metadata.name != 'kept'", "message": "it is kept"}],
    });
    policy(&world, "validatingadmission", "kept", quiet, json!({"validationActions": ["Warn"]})).await;
    world.post(&maps, &json!({"metadata": {"name": "kept"}, "data": {"a": "1"}})).await.expect(201);
    let refused = world
        .post(&maps, &json!({"metadata": {"name": "b"}, "data": {"a": "1", "b": "2"}}))
        .await
        .expect(422);
    assert_eq!(
        (message(&refused), refused["reason"].as_str()),
        (
            "configmaps \"b\" is forbidden: ValidatingAdmissionPolicy 'keys' with binding 'keys' denied request: \
             at most 1 keys",
            Some("Invalid")
        )
    );
    world.patch(&format!("{maps}/kept"), MERGE, &json!({"data": {"b": "2"}})).await.expect(422);
    // Pods are none of its business.
    world.post(&format!("{CORE}/pods"), &pod("p")).await.expect(201);
    let told = world.delete(&format!("{maps}/kept")).await;
    assert_eq!(told.code, 200);
    let line = "Validation failed for ValidatingAdmissionPolicy 'kept' with binding 'kept': it is kept";
    assert_eq!(warnings(&told), [format!("299 - \"{line}\"")]);
    world.delete(&format!("{maps}/limits")).await.expect(200);
    world.settle().await;
    let refused = world.post(&maps, &map("c")).await.expect(422);
    assert!(message(&refused).contains("no params found for policy binding"), "{refused}");
}

#[tokio::test]
async fn mutating_policies_change_and_see_each_other() {
    let world = world().await;
    let apply =
        |text: &str| json!([{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": text}}]);
    let patch = |text: &str| json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": text}}]);
    let rules = config_maps(&["CREATE"]);
    // The first by name sees what the second has made when it is asked again.
    let count = "string(has(object.metadata.labels) ? object.metadata.labels.size() : 0)";
    let first = json!({
        "matchConstraints": rules, "reinvocationPolicy": "IfNeeded",
        "mutations": apply(&format!("Object{{data: {{'labels': {count}}}}}")),
    });
    policy(&world, "mutatingadmission", "a", first, json!({})).await;
    let second = json!({
        "matchConstraints": rules,
        "mutations": patch("[JSONPatch{op: 'add', path: '/metadata/labels', value: {'x': 'y'}}]"),
    });
    policy(&world, "mutatingadmission", "b", second, json!({})).await;
    let maps = format!("{CORE}/configmaps");
    let made = world.post(&maps, &map("m")).await.expect(201);
    assert_eq!(made["metadata"]["labels"], json!({"x": "y"}));
    assert_eq!(made["data"], json!({"labels": "1"}));
    let broken =
        json!({"matchConstraints": rules, "mutations": patch("[JSONPatch{op: 'remove', path: '/nothing'}]")});
    policy(&world, "mutatingadmission", "c", broken.clone(), json!({})).await;
    let refused = world.post(&maps, &map("n")).await.expect(422);
    assert!(
        message(&refused).contains("MutatingAdmissionPolicy 'c' with binding 'c' denied request"),
        "{refused}"
    );
    let mut lenient = broken;
    lenient["failurePolicy"] = "Ignore".into();
    policy(&world, "mutatingadmission", "c", lenient, json!({})).await;
    world.send(Method::POST, &maps, JSON, map("n").to_string()).await.expect(201);
}
