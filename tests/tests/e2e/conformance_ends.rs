//! What goes, what stays and in which order: owners, namespaces, and what every namespace has.

use sampan_tests::{Namespace, check, eventually};
use serde_json::{Value, json};

fn map(name: &str, owners: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "ownerReferences": owners}})
}

fn owner(space: &Namespace, kind: &str, name: &str, blocks: bool) -> Value {
    let uid = space.value(&format!("{kind}/{name}"), ".metadata.uid");
    json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": uid, "blockOwnerDeletion": blocks})
}

fn is_gone(space: &Namespace, object: &str) -> Result<(), String> {
    let found = space.kubectl(&["get", object, "--ignore-not-found", "--output", "name"]).ok();
    check(found.is_empty(), found)
}

#[test]
fn a_circle_of_owners_goes() {
    let space = Namespace::new("conf-circle");
    for name in ["p1", "p2", "p3"] {
        space.pod(name, "sleep 1000");
    }
    for (name, by) in [("p1", "p3"), ("p2", "p1"), ("p3", "p2")] {
        let patch = json!({"metadata": {"ownerReferences": [owner(&space, "Pod", by, true)]}}).to_string();
        space.kubectl(&["patch", "pod", name, "--patch", &patch]).ok();
    }
    space.kubectl(&["delete", "pod", "p1", "--wait=false"]).ok();
    for name in ["p1", "p2", "p3"] {
        eventually("the circle is gone", || is_gone(&space, &format!("pod/{name}")));
    }
}

#[test]
fn a_dependent_with_another_owner_stays() {
    let space = Namespace::new("conf-two-owners");
    for name in ["dying", "staying"] {
        space.apply(&map(name, &[])).ok();
    }
    let (dying, staying) =
        (owner(&space, "ConfigMap", "dying", true), owner(&space, "ConfigMap", "staying", true));
    space.apply(&map("both", &[dying.clone(), staying])).ok();
    space.apply(&map("one", &[dying])).ok();
    space.kubectl(&["delete", "configmap", "dying", "--cascade=foreground", "--timeout=30s"]).ok();
    is_gone(&space, "configmap/one")
        .expect("dependents go before an owner that is deleted in the foreground");
    let names = space.value("configmap/both", ".metadata.ownerReferences[*].name");
    assert_eq!(names, "staying");
    assert_eq!(space.value("configmap/both", ".metadata.deletionTimestamp"), "");
}

#[test]
fn a_namespace_takes_pods_first_and_services_too() {
    let space = Namespace::new("conf-order");
    let held = json!({"metadata": {"finalizers": ["example.com/hold"]}});
    let mut pod = Namespace::pod_object("p", "sleep 1000", json!({}), json!({}));
    sampan_tests::merge(&mut pod, held);
    space.apply(&pod).ok();
    space.apply(&map("after", &[])).ok();
    space.kubectl(&["create", "service", "clusterip", "s", "--tcp=80"]).ok();
    space.cluster().kubectl(&["delete", "namespace", "conf-order", "--wait=false"]).ok();
    eventually("the pod is told to go", || {
        check(!space.value("pod/p", ".metadata.deletionTimestamp").is_empty(), "it is not")
    });
    eventually("the namespace says what it waits for", || {
        let conditions = space.value("namespace/conf-order", ".status.conditions");
        check(conditions.contains("NamespaceFinalizersRemaining"), conditions)
    });
    assert_eq!(
        space.value("configmap/after", ".metadata.name"),
        "after",
        "everything else waits for the pods"
    );
    space
        .kubectl(&["patch", "pod", "p", "--type=merge", "--patch", r#"{"metadata": {"finalizers": null}}"#])
        .ok();
    eventually("the namespace is gone", || is_gone(&space, "namespace/conf-order"));
    // One of the same name begins with nothing.
    space.cluster().kubectl(&["create", "namespace", "conf-order"]).ok();
    assert_eq!(space.kubectl(&["get", "pods,services", "--output", "name"]).ok(), "");
}

#[test]
fn every_namespace_has_the_authority() {
    let space = Namespace::new("conf-authority");
    let read = || space.value("configmap/kube-root-ca.crt", ".data['ca\\.crt']");
    eventually("the authority is there", || check(read().contains("BEGIN CERTIFICATE"), "it is not"));
    let authority = read();
    space.kubectl(&["delete", "configmap", "kube-root-ca.crt"]).ok();
    eventually("it is made again", || {
        let found = space
            .kubectl(&["get", "configmap", "kube-root-ca.crt", "--ignore-not-found", "--output", "name"])
            .ok();
        check(!found.is_empty() && read() == authority, found)
    });
    let patch = r#"{"data": {"ca.crt": "wrong"}}"#;
    space.kubectl(&["patch", "configmap", "kube-root-ca.crt", "--type=merge", "--patch", patch]).ok();
    eventually("it is set right", || check(read() == authority, read()));
}

#[test]
fn accounts_and_pods_may_refuse_the_token() {
    let space = Namespace::new("conf-automount");
    for (name, mount) in [("said-yes", json!(true)), ("said-no", json!(false)), ("said-nothing", Value::Null)]
    {
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}, "automountServiceAccountToken": mount,
        });
        space.apply(&account).ok();
    }
    // What the pod says goes before what the account says.
    for (account, pod, mounted) in [
        ("said-yes", Value::Null, true),
        ("said-no", Value::Null, false),
        ("said-nothing", Value::Null, true),
        ("said-yes", json!(true), true),
        ("said-no", json!(true), true),
        ("said-nothing", json!(true), true),
        ("said-yes", json!(false), false),
        ("said-no", json!(false), false),
        ("said-nothing", json!(false), false),
    ] {
        let spec = json!({"serviceAccountName": account, "automountServiceAccountToken": pod});
        let object = Namespace::pod_object("p", "true", json!({}), spec).to_string();
        let made = space
            .kubectl_with(&["create", "--dry-run=server", "--output", "json", "-f", "-"], &object)
            .json();
        let mounts = made["spec"]["containers"][0]["volumeMounts"].to_string();
        let found = mounts.contains("/var/run/secrets/kubernetes.io/serviceaccount");
        assert_eq!(found, mounted, "{account} {pod}: {mounts}");
    }
}
