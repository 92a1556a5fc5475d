//! What Kubernetes' conformance tests do with `kubectl`, where no other test of ours does it already.

use sampan_tests::{IMAGE, Namespace, check, eventually};
use serde_json::{Value, json};

fn sleeper(space: &Namespace, name: &str) {
    space.pod(name, "sleep 1000");
    space.wait_ready(name);
}

#[test]
fn labels_and_annotations_of_a_pod() {
    let space = Namespace::new("conf-labels");
    sleeper(&space, "p");
    space.kubectl(&["label", "pod", "p", "testing-label=value"]).ok();
    let selected = ["get", "pods", "--selector", "testing-label=value", "--output", "name"];
    assert_eq!(space.kubectl(&selected).ok().trim(), "pod/p");
    space.kubectl(&["label", "pod", "p", "testing-label-"]).ok();
    assert_eq!(space.kubectl(&selected).ok(), "");
    space.kubectl(&["patch", "pod", "p", "--patch", r#"{"metadata": {"annotations": {"x": "y"}}}"#]).ok();
    assert_eq!(space.value("pod/p", ".metadata.annotations.x"), "y");
}

#[test]
fn a_pod_is_run_dry_and_replaced() {
    let space = Namespace::new("conf-run");
    space
        .kubectl(&[
            "run",
            "p",
            "--image",
            IMAGE,
            "--restart=Never",
            "--labels=run=p",
            "--command",
            "--",
            "sleep",
            "1000",
        ])
        .ok();
    space.wait_ready("p");
    assert_eq!(space.value("pod/p", ".spec.restartPolicy"), "Never");
    assert_eq!(space.value("pod/p", ".spec.containers[*].image"), IMAGE);
    let patch = r#"{"spec": {"containers": [{"name": "p", "image": "example.local/other:1"}]}}"#;
    space.kubectl(&["patch", "pod", "p", "--patch", patch, "--dry-run=server"]).ok();
    assert_eq!(space.value("pod/p", ".spec.containers[*].image"), IMAGE, "a dry run changes nothing");
    let mut pod = space.kubectl(&["get", "pod", "p", "--output", "json"]).json();
    pod["spec"]["containers"][0]["image"] = "example.local/other:1".into();
    space.kubectl_with(&["replace", "-f", "-"], &pod.to_string()).ok();
    assert_eq!(space.value("pod/p", ".spec.containers[*].image"), "example.local/other:1");
    let uid = space.value("pod/p", ".metadata.uid");
    let fresh = Namespace::pod_object("p", "sleep 1000", json!({}), json!({})).to_string();
    space.kubectl_with(&["replace", "--force", "-f", "-"], &fresh).ok();
    assert_ne!(space.value("pod/p", ".metadata.uid"), uid, "forced, the pod is made anew");
    assert_eq!(space.value("pod/p", ".spec.containers[*].image"), IMAGE);
}

#[test]
fn a_difference_is_shown() {
    let space = Namespace::new("conf-diff");
    let mut deployment = space.deployment("web", 0, "sleep 1000", json!({}));
    space.kubectl_with(&["diff", "-f", "-"], &deployment.to_string()).ok();
    deployment["spec"]["template"]["spec"]["containers"][0]["image"] = "example.local/other:1".into();
    let diff = space.kubectl_with(&["diff", "-f", "-"], &deployment.to_string());
    assert_eq!(diff.code, Some(1), "{diff}");
    let shown = |sign: &str, image: &str| {
        diff.stdout.lines().any(|line| line.starts_with(sign) && line.contains(&format!("image: {image}")))
    };
    assert!(shown("-", IMAGE) && shown("+", "example.local/other:1"), "{diff}");
}

#[test]
fn descriptions() {
    let space = Namespace::new("conf-describe");
    sleeper(&space, "p");
    space.kubectl(&["expose", "pod", "p", "--port=1234", "--name=front"]).ok();
    let rows: [(&[&str], &[&str]); 4] = [
        (
            &["describe", "pod", "p"],
            &[
                "Name:",
                "Namespace:        conf-describe",
                "Labels:           app=p",
                "Status:           Running",
                "IP:",
                "Image:",
            ],
        ),
        (
            &["describe", "service", "front"],
            &["Selector:", "Type:", "IP:", "Port:", "1234/TCP", "Endpoints:"],
        ),
        (
            &["describe", "node", "node-1"],
            &["Labels:", "Conditions:", "Addresses:", "Capacity:", "Kubelet Version:"],
        ),
        (
            &["describe", "namespace", "conf-describe"],
            &["Name:         conf-describe", "Status:       Active"],
        ),
    ];
    for (args, expected) in rows {
        let text = space.kubectl(args).ok();
        for piece in expected {
            assert!(text.contains(piece), "{args:?} lacks `{piece}`:\n{text}");
        }
    }
}

#[test]
fn a_controller_and_a_service_are_exposed() {
    let space = Namespace::new("conf-expose");
    // Nobody runs replication controllers yet; `expose` reads their selector only.
    let pod = Namespace::pod_object("p", "sleep 1000", json!({}), json!({}));
    let controller = json!({"apiVersion": "v1", "kind": "ReplicationController", "metadata": {"name": "rc"}, "spec": {
        "replicas": 1, "selector": {"app": "p"},
        "template": {"metadata": {"labels": {"app": "p"}}, "spec": pod["spec"]},
    }});
    space.apply(&controller).ok();
    sleeper(&space, "p");
    space.kubectl(&["expose", "rc", "rc", "--name=first", "--port=1234", "--target-port=6379"]).ok();
    space.kubectl(&["expose", "service", "first", "--name=second", "--port=2345", "--target-port=6379"]).ok();
    let address = space.value("pod/p", ".status.podIP");
    for (service, port) in [("first", "1234"), ("second", "2345")] {
        assert_eq!(space.value(&format!("service/{service}"), ".spec.ports[0].port"), port);
        eventually("the pod is behind the service", || {
            let slices =
                ["get", "endpointslices", "--selector", &format!("kubernetes.io/service-name={service}")];
            let found = space.kubectl(&[&slices[..], &["--output", "json"]].concat()).json();
            let slice = &found["items"][0];
            let fits = slice["endpoints"][0]["addresses"][0] == address.as_str()
                && slice["ports"][0]["port"] == 6379;
            check(fits, found.to_string())
        });
    }
}

#[test]
fn the_api_through_a_proxy() {
    let space = Namespace::new("conf-proxy");
    let proxy = space.kubectl_background(&["proxy", "--port=0", "--disable-filter"]);
    let line = proxy.line_with("Starting to serve on");
    let address = line.trim().rsplit(' ').next().expect("an address").to_owned();
    let ask = |args: &[&str]| {
        let output = std::process::Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "20"])
            .args(args)
            .output();
        let output = output.expect("curl can be run");
        serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default()
    };
    assert_eq!(ask(&[&format!("http://{address}/api/")])["versions"], json!(["v1"]));
    let directory = tempfile::tempdir().expect("a directory can be made");
    let socket = directory.path().join("s").display().to_string();
    let proxy = space.kubectl_background(&["proxy", &format!("--unix-socket={socket}")]);
    proxy.line_with("Starting to serve on");
    assert_eq!(ask(&["--unix-socket", &socket, "http://localhost/api/"])["versions"], json!(["v1"]));
}

/// A definition of its own group, so that tests do not meet.
fn define(space: &Namespace, group: &str, schema: Value) {
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("foos.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced", "names": {"plural": "foos", "singular": "foo", "kind": "Foo"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    space.apply(&definition).ok();
    space
        .kubectl(&["wait", "--for=condition=Established", &format!("crd/foos.{group}"), "--timeout=10s"])
        .ok();
    eventually("the schema is published", || {
        let document = space.kubectl(&["get", "--raw", &format!("/openapi/v3/apis/{group}/v1")]);
        check(document.code == Some(0) && document.stdout.contains("Foo"), document.to_string())
    });
}

fn foo(group: &str, name: &str, fields: Value) -> String {
    let mut object = json!({"apiVersion": format!("{group}/v1"), "kind": "Foo", "metadata": {"name": name}});
    sampan_tests::merge(&mut object, fields);
    object.to_string()
}

#[test]
fn kubectl_knows_the_schema_of_a_definition() {
    let space = Namespace::new("conf-schema");
    let group = "schema.conf.example.com";
    let bar = json!({"type": "object", "required": ["name"], "properties": {
        "name": {"type": "string", "description": "Name of Bar."}, "age": {"type": "string", "description": "Age of Bar."},
    }});
    let bars = json!({"description": "List of Bars and their specs.", "type": "array", "items": bar});
    let spec = json!({"description": "Specification of Foo", "type": "object", "properties": {"bars": bars}});
    define(
        &space,
        group,
        json!({"description": "Foo for testing", "type": "object", "properties": {"spec": spec}}),
    );
    let rows = [
        (json!({"spec": {"bars": [{"name": "a", "age": "10"}]}}), None),
        (json!({"spec": {"bars": [{"name": "a", "wrong": "x"}]}}), Some("unknown field")),
        (json!({"spec": {"bars": [{"age": "10"}]}}), Some("name")),
    ];
    for (i, (fields, complaint)) in rows.into_iter().enumerate() {
        let object = foo(group, &format!("f{i}"), fields);
        for verb in ["create", "apply"] {
            let done = space.kubectl_with(&[verb, "-f", "-"], &object);
            match complaint {
                Some(complaint) => done.fails_with(&[complaint]),
                None => drop(done.ok()),
            }
            space.kubectl_with(&["delete", "--ignore-not-found", "-f", "-"], &object).ok();
        }
    }
    let rows = [
        ("foos", ["Foo for testing", "KIND:       Foo"]),
        ("foos.spec", ["Specification of Foo", "bars"]),
        ("foos.spec.bars", ["List of Bars and their specs.", "Age of Bar."]),
    ];
    for (path, expected) in rows {
        let path = path.replacen("foos", &format!("foos.{group}"), 1);
        let text = space.kubectl(&["explain", &path]).ok();
        assert!(expected.iter().all(|piece| text.contains(piece)), "{path}:\n{text}");
    }
    space.kubectl(&["explain", &format!("foos.{group}.spec.bars2")]).fails_with(&["does not exist"]);
    space.kubectl(&["delete", "crd", &format!("foos.{group}")]).ok();
}

#[test]
fn kubectl_lets_through_what_a_definition_keeps() {
    let space = Namespace::new("conf-unknown");
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let nested = json!({"type": "object", "properties": {"spec": {
        "type": "object", "properties": {"inner": {
            "type": "object", "description": "Whatever you like.", "x-kubernetes-preserve-unknown-fields": true,
        }},
    }}});
    let rows = [
        ("root.conf.example.com", open, json!({"a": 1, "spec": {"b": [true]}}), "KIND:       Foo", ""),
        (
            "nested.conf.example.com",
            nested,
            json!({"spec": {"inner": {"b": [true]}}}),
            "Whatever you like.",
            ".spec.inner",
        ),
    ];
    for (group, schema, fields, explained, path) in rows {
        define(&space, group, schema);
        let object = foo(group, "f", fields.clone());
        space.kubectl_with(&["create", "-f", "-"], &object).ok();
        space.kubectl_with(&["apply", "-f", "-"], &object).ok();
        let stored = space.kubectl(&["get", &format!("foos.{group}"), "f", "--output", "json"]).json();
        assert_eq!(stored["spec"], fields["spec"]);
        let text = space.kubectl(&["explain", &format!("foos.{group}{path}")]).ok();
        assert!(text.contains(explained), "{text}");
        space.kubectl(&["delete", "crd", &format!("foos.{group}")]).ok();
    }
}
