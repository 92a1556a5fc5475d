//! One rule at a time.

use sampan_scheduler::Event;
use serde_json::{Value, json};

use crate::cluster::{Cluster, pod};

/// Nodes, one pod, and what is decided about it.
fn check(name: &str, nodes: &[(&str, Value)], spec: Value, expected: &str) {
    let mut cluster = Cluster::new();
    for (node, spec) in nodes {
        cluster.node(node, spec.clone());
    }
    assert_eq!(cluster.pod("p", spec), [expected], "{name}");
}

fn taint(effect: &str) -> Value {
    json!([{"key": "disk", "value": "slow", "effect": effect}])
}

#[test]
fn messages_for_people() {
    let big = || json!({"requests": {"memory": "9Gi"}});
    check("no nodes", &[], json!({}), "p: no nodes available to schedule pods");
    check("memory", &[("n1", json!({}))], big(), "p: 0/1 nodes are available: 1 Insufficient memory.");
    check(
        "several resources of a node",
        &[("n1", json!({})), ("n2", json!({}))],
        json!({"requests": {"memory": "9Gi", "cpu": "5", "example.com/gpu": "1"}}),
        "p: 0/2 nodes are available: 2 Insufficient cpu, 2 Insufficient example.com/gpu, 2 Insufficient memory.",
    );
    check(
        "the first obstacle of a node counts",
        &[
            ("n1", json!({})),
            ("n2", json!({"taints": taint("NoSchedule")})),
            ("n3", json!({"taints": taint("NoExecute")})),
            ("n4", json!({"unschedulable": true})),
        ],
        big(),
        "p: 0/4 nodes are available: 1 Insufficient memory, 1 node(s) were unschedulable, \
         2 node(s) had untolerated taint(s).",
    );
    check(
        "selector",
        &[("n1", json!({}))],
        json!({"nodeSelector": {"zone": "a"}}),
        "p: 0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
    );
    check(
        "pods",
        &[("n1", json!({"allocatable": {"pods": "0"}}))],
        json!({}),
        "p: 0/1 nodes are available: 1 Too many pods.",
    );
}

#[test]
fn which_node() {
    let two = |one: Value, other: Value| [("n1", one), ("n2", other)];
    check("the emptier", &two(json!({"allocatable": {"cpu": "2"}}), json!({})), json!({}), "p -> n2");
    check(
        "a taint is avoided",
        &two(json!({"taints": taint("PreferNoSchedule")}), json!({"allocatable": {"cpu": "2"}})),
        json!({}),
        "p -> n2",
    );
    check(
        "a tolerated taint is not",
        &two(json!({"taints": taint("PreferNoSchedule")}), json!({"allocatable": {"cpu": "2"}})),
        json!({"tolerations": [{"operator": "Exists"}]}),
        "p -> n1",
    );
    check(
        "a preferred label",
        &two(json!({"labels": {"zone": "a"}, "allocatable": {"cpu": "2"}}), json!({"labels": {"zone": "b"}})),
        json!({"affinity": {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [
            {"weight": 1, "preference": {
                "matchExpressions": [{"key": "zone", "operator": "In", "values": ["a"]}],
            }},
        ]}}}),
        "p -> n1",
    );
    check(
        "a node by name, as a DaemonSet asks",
        &two(json!({"allocatable": {"cpu": "2"}}), json!({})),
        json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [{"matchFields": [
                {"key": "metadata.name", "operator": "In", "values": ["n1"]},
            ]}],
        }}}}),
        "p -> n1",
    );
    check(
        "an unschedulable node for who tolerates that",
        &[("n1", json!({"unschedulable": true}))],
        json!({"tolerations": [{"key": "node.kubernetes.io/unschedulable", "operator": "Exists"}]}),
        "p -> n1",
    );
}

#[test]
fn pods_without_requests_spread() {
    let mut cluster = Cluster::new();
    for name in ["n1", "n2", "n3"] {
        cluster.node(name, json!({}));
    }
    for name in ["a", "b", "c", "d", "e", "f"] {
        cluster.scheduler.apply(Event::PodChanged(&pod(name, &json!({}))));
    }
    assert_eq!(cluster.decide(), ["a -> n1", "b -> n2", "c -> n3", "d -> n1", "e -> n2", "f -> n3"]);
}

#[test]
fn higher_priority_first_then_first_come() {
    let mut cluster = Cluster::new();
    for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
        let spec = json!({"priority": priority, "requests": {"cpu": "1500m"}});
        cluster.scheduler.apply(Event::PodChanged(&pod(name, &spec)));
    }
    let decided = cluster.node("n1", json!({}));
    let full = "0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!(
        decided,
        ["b -> n1".to_string(), "d -> n1".to_string(), format!("a: {full}"), format!("c: {full}")]
    );
}

#[test]
fn a_waiting_pod_wakes_when_it_fits_and_hears_only_news() {
    let mut cluster = Cluster::new();
    cluster.node("n1", json!({"allocatable": {"cpu": "1"}}));
    let full = "big: 0/1 nodes are available: 1 Insufficient cpu.";
    assert_eq!(cluster.pod("big", json!({"requests": {"cpu": "2"}})), [full]);
    let nothing: [&str; 0] = [];
    assert_eq!(cluster.node("n1", json!({"allocatable": {"cpu": "1500m"}})), nothing, "still too small");
    assert_eq!(cluster.node("n1", json!({"labels": {"a": "b"}, "allocatable": {"cpu": "1"}})), nothing);
    assert_eq!(cluster.node("n2", json!({"taints": taint("NoSchedule")})), nothing, "no help");
    assert_eq!(cluster.node("n2", json!({})), ["big -> n2"], "the taint is gone");
}

#[test]
fn a_pod_that_leaves_makes_room() {
    let mut cluster = Cluster::new();
    cluster.node("n1", json!({"allocatable": {"pods": "1"}}));
    assert_eq!(cluster.pod("a", json!({})), ["a -> n1"]);
    assert_eq!(cluster.pod("b", json!({})), ["b: 0/1 nodes are available: 1 Too many pods."]);
    assert_eq!(cluster.pod("a", json!({"nodeName": "n1", "phase": "Succeeded"})), ["b -> n1"]);
    assert_eq!(cluster.pod("c", json!({})), ["c: 0/1 nodes are available: 1 Too many pods."]);
    assert_eq!(cluster.apply(Event::PodRemoved("b")), ["c -> n1"]);
}

#[test]
fn a_host_port_is_taken_once_per_node() {
    let mut cluster = Cluster::new();
    cluster.node("n1", json!({}));
    let spec = || json!({"ports": [{"containerPort": 80, "hostPort": 80}]});
    assert_eq!(cluster.pod("a", spec()), ["a -> n1"]);
    let taken = "0/1 nodes are available: 1 node(s) didn't have free ports for the requested pod ports.";
    assert_eq!(cluster.pod("b", spec()), [format!("b: {taken}")]);
    assert_eq!(cluster.apply(Event::PodRemoved("a")), ["b -> n1"]);
}

#[test]
fn gates_hold_a_pod_back() {
    let mut cluster = Cluster::new();
    cluster.node("n1", json!({}));
    let gated = || json!({"schedulingGates": [{"name": "example.com/wait"}]});
    let nothing: [&str; 0] = [];
    assert_eq!(cluster.pod("p", gated()), ["p: gated"]);
    assert_eq!(cluster.pod("p", gated()), nothing, "said once");
    assert_eq!(cluster.pod("p", json!({})), ["p -> n1"]);
}

#[test]
fn a_failed_bind_gives_the_room_back_and_is_tried_again() {
    let mut cluster = Cluster::new();
    cluster.node("n1", json!({"allocatable": {"pods": "1"}}));
    let nothing: [&str; 0] = [];
    assert_eq!(cluster.pod("a", json!({})), ["a -> n1"]);
    assert_eq!(cluster.pod("a", json!({})), nothing, "a late report of the time before");
    assert_eq!(cluster.apply(Event::BindFailed("a")), nothing, "not before the pause is over");
    assert_eq!(cluster.apply(Event::BindRetry("a")), ["a -> n1"]);
    assert_eq!(cluster.apply(Event::BindSucceeded("a")), nothing);
    assert_eq!(cluster.apply(Event::BindFailed("a")), nothing, "too late to fail");
    assert_eq!(cluster.pod("b", json!({})), ["b: 0/1 nodes are available: 1 Too many pods."]);
}

#[test]
fn pods_that_are_not_ours_to_place() {
    let mut cluster = Cluster::new();
    cluster.node("n1", json!({"allocatable": {"pods": "1"}}));
    let nothing: [&str; 0] = [];
    assert_eq!(cluster.pod("other", json!({"schedulerName": "mine"})), nothing);
    assert_eq!(cluster.pod("dying", json!({"deleted": true})), nothing);
    assert_eq!(cluster.pod("fixed", json!({"nodeName": "n1"})), nothing);
    assert_eq!(cluster.pod("p", json!({})), ["p: 0/1 nodes are available: 1 Too many pods."], "fixed counts");
}

#[test]
fn a_node_that_is_gone_gets_nothing() {
    let mut cluster = Cluster::new();
    cluster.node("n1", json!({}));
    assert_eq!(cluster.pod("a", json!({})), ["a -> n1"]);
    cluster.apply(Event::NodeRemoved("n1"));
    assert_eq!(cluster.pod("b", json!({})), ["b: no nodes available to schedule pods"]);
    assert_eq!(cluster.node("n2", json!({})), ["b -> n2"]);
}
