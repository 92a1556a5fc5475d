//! Which pods a node takes, and what is said of those it does not.

use sampan_tests::{Namespace, check, eventually};
use serde_json::{Value, json};

fn unschedulable(space: &Namespace, name: &str, container: Value, spec: Value, message: &str) {
    space.pod_with(name, "sleep 1000", container, spec);
    let path = ".status.conditions[?(@.type==\"PodScheduled\")]";
    space.wait(&format!("pod/{name}"), &format!("{path}.reason"), "Unschedulable");
    let said = space.value(&format!("pod/{name}"), &format!("{path}.message"));
    assert!(said.contains(message), "{name}: {said}");
    eventually("the event is there", || {
        let described = space.kubectl(&["describe", "pod", name]).ok();
        check(described.contains("FailedScheduling") && described.contains(message), described)
    });
    assert!(space.kubectl(&["get", "pod", name, "--no-headers"]).ok().contains("Pending"));
}

#[test]
fn pods_that_fit_nowhere() {
    let space = Namespace::new("nowhere");
    let asks = |name: &str, amount: &str| json!({"resources": {"requests": {name: amount}}});
    unschedulable(
        &space,
        "cpu",
        asks("cpu", "1000"),
        json!({}),
        "0/1 nodes are available: 1 Insufficient cpu.",
    );
    unschedulable(&space, "memory", asks("memory", "1Pi"), json!({}), "1 Insufficient memory.");
    unschedulable(
        &space,
        "selector",
        json!({}),
        json!({"nodeSelector": {"no": "such"}}),
        "didn't match Pod's node affinity/selector",
    );
    let term =
        json!({"matchExpressions": [{"key": "kubernetes.io/os", "operator": "NotIn", "values": ["linux"]}]});
    let affinity = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}});
    unschedulable(
        &space,
        "affinity",
        json!({}),
        json!({"affinity": affinity}),
        "didn't match Pod's node affinity/selector",
    );
}

#[test]
fn a_pod_is_placed_when_the_node_gets_the_label() {
    let space = Namespace::new("label");
    let spec = json!({"nodeSelector": {"e2e-label": "yes"}});
    unschedulable(&space, "p", json!({}), spec, "node affinity/selector");
    space.kubectl(&["label", "node", "node-1", "e2e-label=yes"]).ok();
    space.wait_ready("p");
    space.kubectl(&["label", "node", "node-1", "e2e-label-"]).ok();
}

/// A cluster of its own: a taint would hold up the pods of all other tests.
#[test]
fn taints_cordon_and_tolerations() {
    let cluster = std::sync::Arc::new(sampan_tests::Cluster::start());
    let space = Namespace::in_cluster(cluster, "taints");
    space.kubectl(&["taint", "node", "node-1", "key=value:NoSchedule"]).ok();
    unschedulable(&space, "p", json!({}), json!({}), "had untolerated taint");
    let toleration = json!([{"key": "key", "operator": "Equal", "value": "value", "effect": "NoSchedule"}]);
    space.pod_with("tolerant", "sleep 1000", json!({}), json!({"tolerations": toleration}));
    space.wait_ready("tolerant");
    space.kubectl(&["taint", "node", "node-1", "key-"]).ok();
    space.wait_ready("p");
    space.kubectl(&["cordon", "node-1"]).ok();
    unschedulable(&space, "later", json!({}), json!({}), "unschedulable");
    space.kubectl(&["uncordon", "node-1"]).ok();
    space.wait_ready("later");
}
