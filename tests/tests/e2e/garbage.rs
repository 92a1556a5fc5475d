//! What goes when its owner goes.

use sampan_tests::{Namespace, check, eventually};
use serde_json::json;

fn deployment(space: &Namespace) {
    space.deployment("web", 2, "sleep 1000", json!({}));
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
}

fn gone(space: &Namespace, kinds: &str) {
    eventually("the dependents are gone", || {
        let left = space.kubectl(&["get", kinds, "--output", "name"]).ok();
        check(left.is_empty(), left)
    });
}

#[test]
fn background() {
    let space = Namespace::new("background");
    deployment(&space);
    space.kubectl(&["delete", "deployment", "web"]).ok();
    gone(&space, "deployments,replicasets,pods");
}

#[test]
fn foreground_takes_the_dependents_first() {
    let space = Namespace::new("foreground");
    deployment(&space);
    // The command waits for the owner, which goes last.
    space.kubectl(&["delete", "deployment", "web", "--cascade=foreground"]).ok();
    assert_eq!(space.kubectl(&["get", "replicasets,pods", "--output", "name"]).ok(), "");
}

#[test]
fn orphans_stay_and_are_adopted() {
    let space = Namespace::new("orphans");
    deployment(&space);
    let before = space.kubectl(&["get", "replicasets,pods", "--output", "name"]).ok();
    space.kubectl(&["delete", "deployment", "web", "--cascade=orphan"]).ok();
    eventually("the replica set has no owner", || {
        let owners = space.value("replicasets", ".items[*].metadata.ownerReferences");
        check(owners.is_empty(), owners)
    });
    deployment(&space);
    assert_eq!(space.kubectl(&["get", "replicasets,pods", "--output", "name"]).ok(), before);
}

#[test]
fn an_owner_that_never_was() {
    let space = Namespace::new("no-owner");
    let owner = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "x", "uid": "8c5f9e1e-0000-4000-8000-000000000000"}]);
    space.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "ownerReferences": owner}})).ok();
    gone(&space, "secrets");
}

#[test]
fn finalizers_hold_an_object() {
    let space = Namespace::new("finalizers");
    let metadata = json!({"name": "c", "finalizers": ["example.com/hold"]});
    space.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata})).ok();
    space.kubectl(&["delete", "configmap", "c", "--wait=false"]).ok();
    assert!(!space.value("configmap/c", ".metadata.deletionTimestamp").is_empty());
    space
        .kubectl(&[
            "patch",
            "configmap",
            "c",
            "--type=merge",
            "--patch",
            r#"{"metadata": {"finalizers": null}}"#,
        ])
        .ok();
    space.kubectl(&["get", "configmap", "c"]).fails_with(&["NotFound"]);
}

#[test]
fn a_namespace_takes_everything_with_it() {
    let space = Namespace::new("doomed");
    deployment(&space);
    space.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}})).ok();
    space.cluster().kubectl(&["delete", "namespace", "doomed"]).ok();
    space.kubectl(&["get", "namespace", "doomed"]).fails_with(&["NotFound"]);
    gone(&space, "deployments,replicasets,pods,configmaps,secrets,serviceaccounts");
}
