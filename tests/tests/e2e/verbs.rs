//! What `kubectl` can do with objects.

use sampan_tests::{Namespace, check, eventually};
use serde_json::json;

/// Runs one command after the other; every row says what its output must contain.
fn rows(space: &Namespace, rows: &[(&[&str], &str)]) {
    for (args, expected) in rows {
        let done = space.kubectl(args);
        assert!(done.code == Some(0) && done.stdout.contains(expected), "expected `{expected}`:\n{done}");
    }
}

#[test]
fn discovery_and_explanations() {
    let space = Namespace::new("discovery");
    rows(
        &space,
        &[
            (&["version"], "Server Version: v1."),
            (&["cluster-info"], "Kubernetes control plane"),
            (&["api-versions"], "apps/v1"),
            (&["api-resources"], "deployments"),
            (&["api-resources", "--namespaced=false", "--output", "name"], "namespaces"),
            (&["explain", "pod.spec"], "containers\t<[]Container> -required-"),
            (&["explain", "pod.spec.containers.image"], "Container image name"),
            (&["explain", "deployment.spec.strategy.rollingUpdate.maxSurge"], "maxSurge"),
            (&["get", "--raw", "/healthz"], "ok"),
            (&["get", "--raw", "/readyz?verbose"], "[+]"),
            (&["get", "--raw", "/version"], "gitVersion"),
            (&["get", "--raw", "/openapi/v2"], "swagger"),
            (&["auth", "whoami"], "admin"),
            (&["auth", "can-i", "create", "pods"], "yes"),
            (&["auth", "can-i", "--list"], "*.*"),
        ],
    );
}

#[test]
fn imperative_creation() {
    let space = Namespace::new("creation");
    rows(
        &space,
        &[
            (&["create", "configmap", "settings", "--from-literal=a=1"], "configmap/settings created"),
            (&["create", "secret", "generic", "keys", "--from-literal=k=v"], "secret/keys created"),
            (&["create", "serviceaccount", "robot"], "serviceaccount/robot created"),
            (&["create", "role", "reader", "--verb=get", "--resource=pods"], "role"),
            (
                &["create", "rolebinding", "r", "--role=reader", "--serviceaccount=creation:robot"],
                "rolebinding",
            ),
            (&["auth", "can-i", "get", "pods", "--as=system:serviceaccount:creation:robot"], "yes"),
            (&["create", "service", "clusterip", "front", "--tcp=80:8080"], "service/front created"),
            (
                &["create", "deployment", "web", "--image=busybox:1", "--replicas=0"],
                "deployment.apps/web created",
            ),
            (&["create", "deployment", "dry", "--image=b", "--dry-run=server"], "created (server dry run)"),
            (&["get", "configmap/settings", "--output", "jsonpath={.data.a}"], "1"),
            (&["get", "secret/keys", "--output", "jsonpath={.data.k}"], "dg=="),
        ],
    );
    assert_eq!(space.kubectl(&["create", "token", "robot"]).ok().trim().split('.').count(), 3);
    space.kubectl(&["get", "deployment", "dry"]).fails_with(&["NotFound"]);
    space.kubectl(&["create", "configmap", "settings"]).fails_with(&["already exists"]);
    let refused =
        space.kubectl(&["auth", "can-i", "delete", "pods", "--as=system:serviceaccount:creation:robot"]);
    assert_eq!((refused.code, refused.stdout.trim()), (Some(1), "no"));
}

#[test]
fn changes() {
    let space = Namespace::new("changes");
    let config = |data: serde_json::Value| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data});
    assert!(space.apply(&config(json!({"a": "1", "b": "2"}))).ok().contains("created"));
    assert!(space.apply(&config(json!({"a": "1", "b": "2"}))).ok().contains("unchanged"));
    assert!(space.apply(&config(json!({"a": "3"}))).ok().contains("configured"));
    assert_eq!(
        space.value("configmap/c", ".data"),
        r#"{"a":"3"}"#,
        "apply removes what is no longer written"
    );
    let json_patch = r#"[{"op": "test", "path": "/data/a", "value": "3"}, {"op": "add", "path": "/data/j", "value": "4"}]"#;
    rows(
        &space,
        &[
            (&["patch", "configmap", "c", "--type=json", "--patch", json_patch], "patched"),
            (
                &["patch", "configmap", "c", "--type=merge", "--patch", r#"{"data": {"a": null, "m": "5"}}"#],
                "patched",
            ),
            (&["get", "configmap", "c", "--output", "jsonpath={.data}"], r#"{"j":"4","m":"5"}"#),
            (&["label", "configmap", "c", "tier=back"], "labeled"),
            (&["label", "configmap", "c", "tier=front", "--overwrite"], "labeled"),
            (&["get", "configmap", "--selector", "tier=front", "--output", "name"], "configmap/c"),
            (&["annotate", "configmap", "c", "note=x"], "annotated"),
            (&["label", "configmap", "c", "tier-"], "unlabeled"),
            (&["get", "configmap", "c", "--output", "jsonpath={.metadata.annotations.note}"], "x"),
        ],
    );
    space.kubectl(&["label", "configmap", "c", "note=1"]).ok();
    space.kubectl(&["label", "configmap", "c", "note=2"]).fails_with(&["already has a value"]);
    let failing = r#"[{"op": "test", "path": "/data/j", "value": "no"}]"#;
    space.kubectl(&["patch", "configmap", "c", "--type=json", "--patch", failing]).fails();
    rows(&space, &[(&["delete", "configmap", "c"], "deleted")]);
    space.kubectl(&["delete", "configmap", "c"]).fails_with(&["NotFound"]);
    space.kubectl(&["delete", "configmap", "c", "--ignore-not-found"]).ok();
}

#[test]
fn strategic_patch_merges_containers_by_name() {
    let space = Namespace::new("strategic");
    space.deployment("web", 0, "sleep 1000", json!({}));
    let patch = r#"{"spec": {"template": {"spec": {"containers": [{"name": "c", "env": [{"name": "A", "value": "1"}]},
        {"name": "side", "image": "busybox:1"}]}}}}"#;
    space.kubectl(&["patch", "deployment", "web", "--patch", patch]).ok();
    let names = "{.spec.template.spec.containers[*].name}";
    let containers =
        space.kubectl(&["get", "deployment", "web", "--output", &format!("jsonpath={names}")]).ok();
    assert_eq!(containers.split(' ').collect::<std::collections::BTreeSet<_>>(), ["c", "side"].into());
    let command = "{.spec.template.spec.containers[?(@.name==\"c\")].command[2]}";
    let kept = space.kubectl(&["get", "deployment", "web", "--output", &format!("jsonpath={command}")]).ok();
    assert_eq!(kept, "sleep 1000", "what the patch does not name stays");
}

#[test]
fn server_side_apply_tracks_owners() {
    let space = Namespace::new("apply");
    let config = |data: serde_json::Value| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}).to_string()
    };
    let apply = |manager: &str, data: serde_json::Value, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let args = [&["apply", "--server-side", "-f", "-", manager.as_str()][..], more].concat();
        space.kubectl_with(&args, &config(data))
    };
    apply("one", json!({"a": "1", "b": "1"}), &[]).ok();
    apply("two", json!({"c": "2"}), &[]).ok();
    apply("two", json!({"a": "2", "c": "2"}), &[]).fails_with(&["conflict with \"one\"", ".data.a"]);
    apply("two", json!({"a": "2", "c": "2"}), &["--force-conflicts"]).ok();
    // One gives up b, which nobody else owns, and a, which two owns by now.
    apply("one", json!({}), &[]).ok();
    assert_eq!(space.value("configmap/c", ".data"), r#"{"a":"2","c":"2"}"#);
}

#[test]
fn edit_opens_the_object_in_the_editor() {
    let space = Namespace::new("edit");
    space.deployment("web", 0, "sleep 1000", json!({}));
    let mut edit = space.cluster().kubectl_command(&["--namespace", "edit", "edit", "deployment/web"]);
    let edited = edit.env("EDITOR", "sed -i s/progressDeadlineSeconds:.*/progressDeadlineSeconds:\\ 77/");
    let output = edited.output().expect("kubectl can be run");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(space.value("deployment/web", ".spec.progressDeadlineSeconds"), "77");
}

#[test]
fn outputs() {
    let space = Namespace::new("outputs");
    space.deployment("web", 1, "sleep 1000", json!({}));
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
    rows(
        &space,
        &[
            (&["get", "deployment", "web", "--output", "yaml"], "kind: Deployment"),
            (&["get", "deployment", "web", "--output", "json"], "\"kind\": \"Deployment\""),
            (&["get", "deployment,replicaset,pod", "--output", "name"], "deployment.apps/web"),
            (&["get", "deploy", "--output", "jsonpath={.items[*].metadata.name}"], "web"),
            (&["get", "deploy", "--output", "custom-columns=N:.metadata.name", "--no-headers"], "web"),
            (&["get", "deploy", "web", "--output", "go-template={{.metadata.name}}"], "web"),
            (&["get", "pods", "--field-selector", "status.phase=Running", "--output", "name"], "pod/web-"),
            (&["get", "pods", "--selector", "app in (web,x),!z", "--show-labels"], "pod-template-hash="),
            (&["get", "pods", "--sort-by=.metadata.name", "--chunk-size=1"], "Running"),
            (&["get", "all", "--all-namespaces"], "deployment.apps/web"),
            (&["describe", "deployment", "web"], "ScalingReplicaSet"),
            (&["describe", "pod", "--selector", "app=web"], "Started container c"),
            (&["events", "--for", "deployment/web"], "ScalingReplicaSet"),
            (&["get", "events", "--field-selector", "reason=Scheduled"], "Successfully assigned"),
            (&["describe", "node", "node-1"], "Non-terminated Pods:"),
        ],
    );
}

#[test]
fn watches() {
    let space = Namespace::new("watches");
    let watch =
        space.kubectl_background(&["get", "configmaps", "--watch", "--output-watch-events", "--no-headers"]);
    watch.line_with("kube-root-ca.crt");
    let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "seen"}});
    space.apply(&object).ok();
    assert!(watch.line_with("seen").starts_with("ADDED"));
    space.kubectl(&["label", "configmap", "seen", "a=b"]).ok();
    assert!(watch.line_with("seen").starts_with("MODIFIED"));
    space.kubectl(&["delete", "configmap", "seen"]).ok();
    assert!(watch.line_with("seen").starts_with("DELETED"));
}

#[test]
fn wait_for_deletion() {
    let space = Namespace::new("wait-deletion");
    space.pod("p", "sleep 1000");
    space.wait_ready("p");
    let waiting = space.kubectl_background(&["wait", "--for=delete", "pod/p", "--timeout=50s"]);
    space.kubectl(&["delete", "pod", "p", "--wait=false"]).ok();
    assert_eq!(waiting.end(), Some(0));
    eventually("the pod is gone", || {
        let pod = space.kubectl(&["get", "pod", "p", "--ignore-not-found"]).ok();
        check(pod.is_empty(), pod)
    });
}

/// For a list `kubectl` asks for the old OpenAPI document, in its protobuf form.
#[test]
fn lists_are_applied() {
    let space = Namespace::new("lists");
    let item = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [item("a"), item("b")]});
    let done = space.apply(&list).ok();
    assert!(done.contains("configmap/a created") && done.contains("configmap/b created"), "{done}");
    assert_eq!(space.kubectl_with(&["delete", "-f", "-"], &list.to_string()).ok().lines().count(), 2);
}
