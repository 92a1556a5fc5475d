//! What the API says to input that is not as it should be.

use sampan_tests::{IMAGE, Namespace};
use serde_json::{Value, json};

fn config(fields: Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}});
    sampan_tests::merge(&mut object, fields);
    object
}

fn pod(fields: Value) -> Value {
    let mut object = Namespace::pod_object("p", "true", json!({}), json!({}));
    sampan_tests::merge(&mut object, fields);
    object
}

fn container(fields: Value) -> Value {
    let mut object = json!({"name": "c", "image": IMAGE});
    sampan_tests::merge(&mut object, fields);
    pod(json!({"spec": {"containers": [object]}}))
}

#[test]
fn text_that_is_not_an_object() {
    let space = Namespace::new("malformed");
    let path = "/api/v1/namespaces/malformed/configmaps";
    let identity = space.cluster().curl_identity();
    let identity: Vec<&str> = identity.iter().map(String::as_str).collect();
    let deep = "[".repeat(100_000);
    let long = format!("{{\"data\": \"{}\"}}", "x".repeat(4 << 20));
    let files = [("deep", &deep), ("long", &long)].map(|(name, text)| {
        let path = space.cluster().scratch().join(name);
        std::fs::write(&path, text).expect("a file can be written");
        format!("@{}", path.display())
    });
    let rows: &[(&str, &str, &str, &str)] = &[
        ("application/json", r#"{"a":"#, "400", "BadRequest"),
        ("application/json", "[]", "400", "BadRequest"),
        ("application/json", "", "400", "BadRequest"),
        ("application/json", "\u{1}", "400", "BadRequest"),
        ("application/yaml", "a: [", "400", "BadRequest"),
        (
            "application/json",
            r#"{"apiVersion":"v1","kind":"Secret","metadata":{"name":"x"}}"#,
            "400",
            "BadRequest",
        ),
        (
            "application/json",
            r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"x","namespace":"y"}}"#,
            "400",
            "BadRequest",
        ),
        ("text/plain", "{}", "415", "UnsupportedMediaType"),
        ("application/json", &files[0], "400", "BadRequest"),
        ("application/json", &files[1], "413", "RequestEntityTooLarge"),
    ];
    for (media_type, body, code, reason) in rows {
        let header = format!("Content-Type: {media_type}");
        let args = [
            "--request",
            "POST",
            "--data-binary",
            *body,
            "--header",
            &header,
            "--write-out",
            "\n%{http_code}",
        ];
        let answer = space.cluster().curl(path, &[identity.as_slice(), args.as_slice()].concat()).ok();
        let (status, answered) = answer.rsplit_once('\n').expect("a code");
        let shown: String = body.chars().take(60).collect();
        assert_eq!(answered, *code, "{media_type} {shown}: {status}");
        let status: Value = serde_json::from_str(status).unwrap_or_default();
        assert_eq!(
            (&status["kind"], &status["reason"]),
            (&json!("Status"), &json!(reason)),
            "{media_type} {shown}"
        );
    }
}

#[test]
fn unknown_fields_are_refused_warned_of_or_dropped() {
    let space = Namespace::new("unknown");
    let object = config(json!({"data": {"a": "b"}, "nonsense": 1})).to_string();
    let apply = |how: &str| space.kubectl_with(&["apply", "-f", "-", &format!("--validate={how}")], &object);
    apply("strict").fails_with(&["unknown field \"nonsense\""]);
    space.kubectl(&["get", "configmap", "c"]).fails_with(&["NotFound"]);
    let warned = apply("warn");
    assert!(warned.code == Some(0) && warned.stderr.contains("unknown field \"nonsense\""), "{warned}");
    space.kubectl(&["delete", "configmap", "c"]).ok();
    let ignored = apply("ignore");
    assert!(ignored.code == Some(0) && !ignored.stderr.contains("nonsense"), "{ignored}");
    let stored = space.kubectl(&["get", "configmap", "c", "--output", "jsonpath={.nonsense}"]).ok();
    assert_eq!(stored, "", "an unknown field is never stored");
}

#[test]
fn objects_that_break_a_rule() {
    let space = Namespace::new("rules");
    let deployment = |fields: Value| {
        let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}},
            "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": IMAGE}]}}}});
        sampan_tests::merge(&mut object, fields);
        object
    };
    let rows: &[(&str, Value, &[&str])] = &[
        ("wrong type", config(json!({"data": {"a": 1}})), &["data.a", "string"]),
        ("list for an object", config(json!({"data": []})), &["data"]),
        ("bad name", config(json!({"metadata": {"name": "Not_Good"}})), &["metadata.name", "RFC 1123"]),
        ("long name", config(json!({"metadata": {"name": "a".repeat(254)}})), &["metadata.name", "253"]),
        ("bad label", config(json!({"metadata": {"labels": {"a b": "c"}}})), &["metadata.labels"]),
        ("bad key", config(json!({"data": {"a b": "c"}})), &["data[a b]"]),
        (
            "secret that is not base64",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "data": {"a": "%"}}),
            &["base64"],
        ),
        ("no containers", pod(json!({"spec": {"containers": []}})), &["spec.containers", "Required value"]),
        (
            "same name twice",
            pod(json!({"spec": {"containers": [{"name": "a", "image": "b"}, {"name": "a", "image": "b"}]}})),
            &["spec.containers[1].name", "Duplicate value"],
        ),
        ("bad container name", container(json!({"name": "A"})), &["spec.containers[0].name"]),
        ("no image", container(json!({"image": ""})), &["spec.containers[0].image", "Required value"]),
        (
            "port",
            container(json!({"ports": [{"containerPort": 99999}]})),
            &["containerPort", "between 1 and 65535"],
        ),
        (
            "mount",
            container(json!({"volumeMounts": [{"name": "no", "mountPath": "/x"}]})),
            &["volumeMounts[0].name", "Not found"],
        ),
        ("quantity", container(json!({"resources": {"limits": {"cpu": "abc"}}})), &["quantities must match"]),
        (
            "request above limit",
            container(json!({"resources": {"requests": {"cpu": 2}, "limits": {"cpu": 1}}})),
            &["must be less than or equal to cpu limit"],
        ),
        (
            "restart policy",
            pod(json!({"spec": {"restartPolicy": "Maybe"}})),
            &["spec.restartPolicy", "Unsupported value"],
        ),
        ("account", pod(json!({"spec": {"serviceAccountName": "no"}})), &["serviceaccount \"no\" not found"]),
        (
            "negative replicas",
            deployment(json!({"spec": {"replicas": -1}})),
            &["spec.replicas", "greater than or equal to 0"],
        ),
        (
            "selector",
            deployment(json!({"spec": {"selector": {"matchLabels": {"a": "other"}}}})),
            &["`selector` does not match template `labels`"],
        ),
        (
            "service port",
            json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 0}]}}),
            &["spec.ports[0].port", "between 1 and 65535"],
        ),
        (
            "unknown kind",
            json!({"apiVersion": "v1", "kind": "Nonsense", "metadata": {"name": "n"}}),
            &["no matches for kind \"Nonsense\" in version \"v1\""],
        ),
    ];
    for (what, object, texts) in rows {
        let done = space.apply(object);
        assert!(done.code != Some(0), "{what} was accepted");
        for text in *texts {
            assert!(done.stderr.contains(text), "{what}: the complaint lacks `{text}`:\n{done}");
        }
    }
}

#[test]
fn changes_that_are_not_allowed() {
    let space = Namespace::new("immutable");
    space.deployment("web", 0, "true", json!({}));
    space.pod("p", "sleep 1000");
    space.apply(&config(json!({"immutable": true, "data": {"a": "b"}}))).ok();
    space.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": {"ports": [{"port": 1}]}})).ok();
    let rows: &[(&str, &str, &[&str])] = &[
        ("deployment/web", r#"{"spec": {"replicas": -1}}"#, &["greater than or equal to 0"]),
        ("deployment/web", r#"{"spec": {"selector": {"matchLabels": {"z": "z"}}}}"#, &["field is immutable"]),
        ("pod/p", r#"{"spec": {"nodeName": "x"}}"#, &["pod updates may not change fields"]),
        ("configmap/c", r#"{"data": {"a": "c"}}"#, &["immutable"]),
        ("service/s", r#"{"spec": {"clusterIP": "10.99.99.99"}}"#, &["may not change once set"]),
        ("configmap/c", r#"{"metadata": {"resourceVersion": "1"}}"#, &["the object has been modified"]),
    ];
    for (object, patch, texts) in rows {
        space.kubectl(&["patch", object, "--type=merge", "--patch", patch]).fails_with(texts);
    }
    space.kubectl(&["delete", "namespace", "default"]).fails_with(&["Forbidden"]);
}

#[test]
fn things_that_are_not_there() {
    let space = Namespace::new("absent");
    space.kubectl(&["get", "nonsense"]).fails_with(&["doesn't have a resource type"]);
    space.kubectl(&["get", "pod", "no"]).fails_with(&["NotFound", "pods \"no\" not found"]);
    space.kubectl(&["get", "--raw", "/api/v1/nonsense"]).fails_with(&["NotFound"]);
    let nowhere = pod(json!({"metadata": {"namespace": "nowhere"}})).to_string();
    let create = ["create", "--raw", "/api/v1/namespaces/nowhere/pods", "-f", "-"];
    space.kubectl_with(&create, &nowhere).fails_with(&["namespaces \"nowhere\" not found"]);
    for query in ["labelSelector=a%3D%3D%3Db", "fieldSelector=spec.no%3Dx", "limit=-1", "resourceVersion=x"] {
        space.kubectl(&["get", "--raw", &format!("/api/v1/pods?{query}")]).fails_with(&["BadRequest"]);
    }
}
