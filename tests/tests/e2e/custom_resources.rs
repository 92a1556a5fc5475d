//! Kinds that users bring, as `kubectl` meets them.

use sampan_tests::{Namespace, check, eventually};
use serde_json::{Value, json};

/// A definition whose names are the test's own: definitions belong to the whole cluster.
fn definition(plural: &str, kind: &str) -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.e2e.example.com")},
        "spec": {
            "group": "e2e.example.com",
            "scope": "Namespaced",
            "names": {"plural": plural, "kind": kind},
            "versions": [{
                "name": "v1",
                "served": true,
                "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object",
                    "properties": {"spec": {
                        "type": "object",
                        "description": "What is wanted of it.",
                        "properties": {
                            "schedule": {"type": "string", "pattern": "^[0-9* ]+$"},
                            "replicas": {"type": "integer", "minimum": 1, "default": 2},
                        },
                        "x-kubernetes-validations": [
                            {"rule": "self.replicas < 10", "message": "too many of them"},
                        ],
                    }},
                }},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                }},
                "additionalPrinterColumns": [
                    {"name": "Schedule", "type": "string", "jsonPath": ".spec.schedule"},
                ],
            }],
        },
    })
}

fn define(space: &Namespace, plural: &str, kind: &str) {
    space.apply(&definition(plural, kind)).ok();
    let name = format!("crd/{plural}.e2e.example.com");
    space.kubectl(&["wait", "--for=condition=Established", &name, "--timeout=10s"]).ok();
}

fn object(kind: &str, spec: Value) -> Value {
    json!({"apiVersion": "e2e.example.com/v1", "kind": kind, "metadata": {"name": "a"}, "spec": spec})
}

#[test]
fn a_defined_kind_works_with_kubectl() {
    let space = Namespace::new("custom");
    define(&space, "timers", "Timer");
    assert!(space.apply(&object("Timer", json!({"schedule": "* *"}))).ok().contains("created"));
    assert!(space.apply(&object("Timer", json!({"schedule": "* *"}))).ok().contains("unchanged"));
    let table = space.kubectl(&["get", "timers"]).ok();
    assert!(table.contains("SCHEDULE") && table.contains("* *"), "{table}");
    assert_eq!(space.value("timer/a", ".spec.replicas"), "2", "the default is there");
    assert!(space.kubectl(&["explain", "timer.spec"]).ok().contains("What is wanted of it."));
    space.kubectl(&["scale", "timer/a", "--replicas=5"]).ok();
    assert_eq!(space.value("timer/a", ".spec.replicas"), "5");
    space
        .apply(&object("Timer", json!({"schedule": "hourly"})))
        .fails_with(&["spec.schedule", "should match"]);
    space.apply(&object("Timer", json!({"replicas": 10}))).fails_with(&["too many of them"]);
    space.apply(&object("Timer", json!({"nonsense": 1}))).fails_with(&["unknown field \"spec.nonsense\""]);
    space.kubectl(&["label", "timer/a", "tier=gold"]).ok();
    assert!(
        space.kubectl(&["get", "timers", "--selector=tier=gold", "--output=name"]).ok().contains("timer")
    );
    space.kubectl(&["delete", "timer/a"]).ok();
    space.kubectl(&["get", "timer/a"]).fails_with(&["NotFound"]);
}

#[test]
fn a_namespace_takes_its_custom_objects_along() {
    let space = Namespace::new("custom-owner");
    define(&space, "boxes", "Box");
    space.kubectl(&["create", "namespace", "custom-inner"]).ok();
    let mut held = object("Box", json!({}));
    held["metadata"]["namespace"] = json!("custom-inner");
    space.cluster().kubectl_with(&["apply", "--filename=-"], &held.to_string()).ok();
    space.kubectl(&["delete", "namespace", "custom-inner", "--timeout=30s"]).ok();
    let left = space.cluster().kubectl(&["get", "boxes", "--all-namespaces", "--output=name"]).ok();
    assert_eq!(left.trim(), "");
}

#[test]
fn custom_objects_can_own_and_be_collected() {
    let space = Namespace::new("custom-garbage");
    define(&space, "owners", "Owner");
    space.apply(&object("Owner", json!({}))).ok();
    let owner = json!({
        "apiVersion": "e2e.example.com/v1", "kind": "Owner", "name": "a",
        "uid": space.value("owner/a", ".metadata.uid").trim_matches('"'),
    });
    let owned = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "owned", "ownerReferences": [owner]},
    });
    space.apply(&owned).ok();
    space.kubectl(&["delete", "owner/a"]).ok();
    eventually("the config map goes with its owner", || {
        let found = space.kubectl(&["get", "configmap/owned"]);
        check(found.code == Some(1) && found.stderr.contains("NotFound"), found.to_string())
    });
}

#[test]
fn a_deleted_definition_takes_everything_along() {
    let space = Namespace::new("custom-end");
    define(&space, "leaves", "Leaf");
    space.apply(&object("Leaf", json!({}))).ok();
    space.kubectl(&["delete", "crd/leaves.e2e.example.com", "--timeout=20s"]).ok();
    eventually("the kind is unknown", || {
        let found = space.kubectl(&["get", "leaves"]);
        check(found.code == Some(1), found.to_string())
    });
}
