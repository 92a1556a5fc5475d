//! Every row of the table walks through the same script. A new kind is tested by being in the table; only its smallest
//! valid object stands here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::Method;
use http_body_util::BodyExt as _;
use sampan_api::registry::{Kind, Registry};
use serde_json::{Value, json};

use crate::world::{APPLY, MERGE, World, admin};

/// What an object of a kind needs besides a name.
fn smallest(kind: &Kind) -> Value {
    let template = json!({
        "metadata": {"labels": {"a": "b"}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    let workload = json!({"spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let mut job_template = template.clone();
    job_template["spec"]["restartPolicy"] = json!("Never");
    let constraints = json!({"resourceRules": [{
        "apiGroups": ["example.com"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["nothing"],
    }]});
    match &*kind.kind {
        "Pod" => json!({"spec": {"containers": [{"name": "c", "image": "i"}]}}),
        "Deployment" | "ReplicaSet" | "DaemonSet" => workload,
        "StatefulSet" => {
            let mut set = workload;
            set["spec"]["serviceName"] = json!("s");
            set
        }
        "ReplicationController" => json!({"spec": {"selector": {"a": "b"}, "template": template}}),
        "PodTemplate" => json!({"template": template}),
        "Job" => json!({"spec": {"template": job_template}}),
        "CronJob" => {
            json!({"spec": {"schedule": "* * * * *", "jobTemplate": {"spec": {"template": job_template}}}})
        }
        "ControllerRevision" => json!({"revision": 1, "data": {}}),
        "Service" => json!({"spec": {"ports": [{"port": 80}]}}),
        "EndpointSlice" => json!({"addressType": "IPv4", "endpoints": []}),
        "Event" if kind.group.is_empty() => {
            json!({"involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}})
        }
        "Event" => json!({
            "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.123456Z",
            "reportingController": "a.example.com/c", "reportingInstance": "i", "action": "Test", "reason": "Test",
            "type": "Normal",
        }),
        "ClusterRoleBinding" | "RoleBinding" => {
            json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}})
        }
        "PriorityClass" => json!({"value": 5}),
        "PersistentVolume" => json!({"spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x"},
        }}),
        "PersistentVolumeClaim" => json!({"spec": {
            "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}},
        }}),
        "StorageClass" => json!({"provisioner": "example.com/p"}),
        "VolumeAttributesClass" => json!({"driverName": "csi.example.com", "parameters": {"a": "b"}}),
        "CSIDriver" => json!({"spec": {}}),
        "CSINode" => json!({"spec": {"drivers": []}}),
        "CSIStorageCapacity" => json!({"storageClassName": "c"}),
        "VolumeAttachment" => json!({"spec": {
            "attacher": "csi.example.com", "nodeName": "n", "source": {"persistentVolumeName": "p"},
        }}),
        "HorizontalPodAutoscaler" => json!({"spec": {
            "maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
        }}),
        "PodDisruptionBudget" => {
            json!({"spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}})
        }
        "Ingress" => json!({"spec": {"defaultBackend": {"service": {"name": "s", "port": {"number": 80}}}}}),
        "IngressClass" => json!({"spec": {"controller": "example.com/c"}}),
        "NetworkPolicy" => json!({"spec": {"podSelector": {}}}),
        "IPAddress" => {
            json!({"spec": {"parentRef": {"resource": "services", "namespace": "default", "name": "s"}}})
        }
        "ServiceCIDR" => json!({"spec": {"cidrs": ["10.99.0.0/16"]}}),
        "LimitRange" => json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "2"}}]}}),
        "ResourceQuota" => json!({"spec": {"hard": {"count/nothing.example.com": "5"}}}),
        "RuntimeClass" => json!({"handler": "h"}),
        "CertificateSigningRequest" => json!({"spec": {
            "signerName": "example.com/s", "usages": ["client auth"], "request": certificate_request(),
        }}),
        "ClusterTrustBundle" => json!({"spec": {"trustBundle": certificate()}}),
        "ValidatingWebhookConfiguration" | "MutatingWebhookConfiguration" => json!({"webhooks": []}),
        "ValidatingAdmissionPolicy" => json!({"spec": {
            "matchConstraints": constraints, "validations": [{"expression": "true"}],
        }}),
        "MutatingAdmissionPolicy" => json!({"spec": {
            "matchConstraints": constraints, "reinvocationPolicy": "Never", "mutations": [{
                "patchType": "ApplyConfiguration", "applyConfiguration": {"expression": "Object{}"},
            }],
        }}),
        "ValidatingAdmissionPolicyBinding" => {
            json!({"spec": {"policyName": "nothing", "validationActions": ["Deny"]}})
        }
        "MutatingAdmissionPolicyBinding" => json!({"spec": {"policyName": "nothing"}}),
        "FlowSchema" => json!({"spec": {
            "priorityLevelConfiguration": {"name": "nothing"}, "matchingPrecedence": 9000,
        }}),
        "PriorityLevelConfiguration" => json!({"spec": {
            "type": "Limited", "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}},
        }}),
        "DeviceClass" => json!({"spec": {}}),
        "ResourceClaim" => json!({"spec": {}}),
        "ResourceClaimTemplate" => json!({"spec": {"spec": {}}}),
        "ResourceSlice" => json!({"spec": {
            "driver": "gpu.example.com", "nodeName": "n",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1},
        }}),
        _ => json!({}),
    }
}

/// Path of the collection in the default namespace, or of the whole cluster.
pub(crate) fn collection(kind: &Kind) -> String {
    let root = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    if kind.namespaced() {
        format!("{root}/namespaces/default/{}", kind.plural)
    } else {
        format!("{root}/{}", kind.plural)
    }
}

/// Name of the object of a kind: a few have to be called by what is in them.
fn name(kind: &Kind) -> &'static str {
    match &*kind.kind {
        "IPAddress" => "10.99.0.1",
        _ => "x1",
    }
}

/// A request for a certificate in PEM, base64.
fn certificate_request() -> String {
    let key = rcgen::KeyPair::generate().expect("a key");
    let request = rcgen::CertificateParams::default().serialize_request(&key).expect("a request");
    STANDARD.encode(request.pem().expect("text"))
}

/// A certificate in PEM.
fn certificate() -> String {
    rcgen::generate_simple_self_signed(["a".to_owned()]).expect("a certificate").cert.pem()
}

/// The smallest valid object of a kind, with its name.
pub(crate) fn object(kind: &Kind) -> Value {
    let mut object = smallest(kind);
    object["apiVersion"] = kind.api_version().into();
    object["kind"] = kind.kind.clone().into();
    object["metadata"]["name"] = name(kind).into();
    object
}

#[tokio::test]
async fn every_kind_walks_the_same_way() {
    let world = World::new().await;
    // Pods name an account, which a controller makes in a real cluster.
    world
        .post("/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "default"}}))
        .await
        .expect(201);
    // The server itself changes these as soon as they are there; they have tests of their own.
    let watched_over = ["CustomResourceDefinition", "APIService", "FlowSchema"];
    let quiet = |kind: &&std::sync::Arc<Kind>| !watched_over.contains(&&*kind.kind);
    for kind in Registry::built_in().kinds().iter().filter(|k| k.stored()).filter(quiet) {
        println!("{} {}", kind.api_version(), kind.kind);
        script(&world, kind).await;
    }
}

async fn script(world: &World, kind: &Kind) {
    let what = kind.resource();
    let (all, one) = (collection(kind), format!("{}/{}", collection(kind), name(kind)));
    let before = world.get(&all).await.expect(200);
    let from = before["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();

    // Dry run answers like the real thing and stores nothing.
    let dry = world.post(&format!("{all}?dryRun=All"), &object(kind)).await.expect(201);
    assert_eq!(dry["metadata"]["name"], name(kind), "{what}");
    world.get(&one).await.expect(404);

    let created = world.post(&all, &object(kind)).await.expect(201);
    assert!(created["metadata"]["uid"].is_string(), "{what}: no uid");
    assert!(created["metadata"]["creationTimestamp"].is_string(), "{what}: no time");
    let again = world.post(&all, &object(kind)).await;
    assert_eq!((again.code, again.body["reason"].as_str()), (409, Some("AlreadyExists")), "{what}");
    let got = world.get(&one).await.expect(200);
    assert_eq!(got, created, "{what}: read differs from written");
    let wire = in_protobuf(world, &one, kind.schema_name()).await;
    assert_eq!(sayable(wire), sayable(got), "{what}: protobuf differs from JSON");

    let labelled =
        world.patch(&one, MERGE, &json!({"metadata": {"labels": {"test": "yes"}}})).await.expect(200);
    assert_eq!(labelled["metadata"]["labels"]["test"], "yes", "{what}");
    let unchanged =
        world.patch(&one, MERGE, &json!({"metadata": {"labels": {"test": "yes"}}})).await.expect(200);
    assert_eq!(
        unchanged["metadata"]["resourceVersion"], labelled["metadata"]["resourceVersion"],
        "{what}: a patch that changes nothing was written"
    );
    let stale = world.put(&one, &created).await;
    assert_eq!(
        (stale.code, stale.body["reason"].as_str()),
        (409, Some("Conflict")),
        "{what}: {}",
        stale.body
    );

    let selected = world.get(&format!("{all}?labelSelector=test%3Dyes")).await.expect(200);
    assert_eq!(selected["items"].as_array().map(Vec::len), Some(1), "{what}");
    assert_eq!(selected["kind"], format!("{}List", kind.kind), "{what}");
    let selected = world.get(&format!("{all}?fieldSelector=metadata.name%3Dother")).await.expect(200);
    assert_eq!(selected["items"].as_array().map(Vec::len), Some(0), "{what}");

    let mut configuration = object(kind);
    configuration["metadata"]["annotations"] = json!({"applied": "1"});
    let applied =
        world.patch(&format!("{one}?fieldManager=me&force=true"), APPLY, &configuration).await.expect(200);
    assert_eq!(applied["metadata"]["annotations"]["applied"], "1", "{what}");
    let managers = applied["metadata"]["managedFields"].to_string();
    assert!(managers.contains("\"me\""), "{what}: {managers}");

    let table = table_of(world, &all).await;
    let columns = table["columnDefinitions"].as_array().map_or(0, Vec::len);
    assert_eq!(columns, kind.columns.len(), "{what}");
    for row in table["rows"].as_array().into_iter().flatten() {
        assert_eq!(row["cells"].as_array().map(Vec::len), Some(columns), "{what}");
    }

    world.delete(&one).await.expect(200);
    if kind.plural == "namespaces" {
        // Its content and then its finalizer have to go first.
        let dying = world.get(&one).await.expect(200);
        assert_eq!(dying["status"]["phase"], "Terminating");
        let mut done = dying;
        done["spec"]["finalizers"] = json!([]);
        world.put(&format!("{one}/finalize"), &done).await.expect(200);
    }
    release(world, &one).await;

    let events = watched(world, &format!("{all}?watch=true&resourceVersion={from}&timeoutSeconds=30")).await;
    let types: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!((types.first(), types.last()), (Some(&"ADDED"), Some(&"DELETED")), "{what}: {types:?}");
    assert!(types[1..types.len() - 1].iter().all(|t| *t == "MODIFIED"), "{what}: {types:?}");
    let revisions: Vec<u64> = events
        .iter()
        .filter_map(|event| event["object"]["metadata"]["resourceVersion"].as_str()?.parse().ok())
        .collect();
    assert!(revisions.is_sorted() && revisions.len() == events.len(), "{what}: {revisions:?}");
}

/// Some kinds are held by a finalizer until somebody has cleaned up after them.
pub(crate) async fn release(world: &World, one: &str) {
    for _ in 0..200 {
        if world.get(one).await.code == 404 {
            return;
        }
        world.patch(one, MERGE, &json!({"metadata": {"finalizers": null}})).await;
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{one} does not go");
}

/// Without what protobuf cannot tell from nothing: empty lists and maps, zeros, empty texts.
fn sayable(value: Value) -> Value {
    let said = |value: &Value| match value {
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Number(number) => number.as_f64() != Some(0.0),
        _ => true,
    };
    match value {
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(k, v)| (k, sayable(v))).filter(|(_, v)| said(v)).collect())
        }
        Value::Array(items) => items.into_iter().map(sayable).collect(),
        other => other,
    }
}

async fn in_protobuf(world: &World, path: &str, schema: &str) -> Value {
    let request = http::Request::builder()
        .uri(path)
        .header("accept", "application/vnd.kubernetes.protobuf")
        .body(http_body_util::Full::default())
        .expect("a request");
    let body = world.raw(admin(), request).await.into_body().collect().await.expect("a body").to_bytes();
    sampan_api::protobuf::decode(&body, schema).expect("protobuf")
}

async fn table_of(world: &World, path: &str) -> Value {
    let request = http::Request::builder()
        .uri(path)
        .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .body(http_body_util::Full::default())
        .expect("a request");
    let body = world.raw(admin(), request).await.into_body().collect().await.expect("a body").to_bytes();
    serde_json::from_slice(&body).expect("a table")
}

async fn watched(world: &World, path: &str) -> Vec<Value> {
    let request = http::Request::builder()
        .method(Method::GET)
        .uri(path)
        .body(http_body_util::Full::default())
        .expect("a request");
    let mut body = world.raw(admin(), request).await.into_body();
    let (mut text, mut events) = (Vec::new(), Vec::<Value>::new());
    while events.last().is_none_or(|event| event["type"] != "DELETED") {
        let Some(frame) = body.frame().await else { break };
        text.extend_from_slice(&frame.expect("a frame").into_data().expect("data"));
        let lines = text.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n"));
        events = lines.map(|line| serde_json::from_slice(line).expect("a line of JSON")).collect();
    }
    events
}
