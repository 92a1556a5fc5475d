//! Deployments: rolling updates, history, rollback, pause, scale.

use sampan_tests::{Namespace, check, eventually, merge};
use serde_json::{Value, json};

const SLEEP: &str = "sleep 1000";

fn settled(space: &Namespace) {
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
}

/// The version in the environment of every pod that is not ending.
fn versions(space: &Namespace) -> Vec<String> {
    let pods = space.kubectl(&["get", "pods", "--selector", "app=web", "--output", "json"]).json();
    let alive = pods["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|p| p["metadata"]["deletionTimestamp"].is_null());
    let version =
        |pod: &Value| pod["spec"]["containers"][0]["env"][0]["value"].as_str().unwrap_or("none").to_owned();
    alive.map(version).collect()
}

fn set_version(space: &Namespace, version: &str) {
    space.kubectl(&["set", "env", "deployment/web", &format!("VERSION={version}")]).ok();
}

#[test]
fn rolling_update_history_and_rollback() {
    let space = Namespace::new("rollout");
    space.deployment("web", 3, SLEEP, json!({}));
    settled(&space);
    set_version(&space, "2");
    settled(&space);
    assert_eq!(versions(&space), ["2", "2", "2"]);
    let history = space.kubectl(&["rollout", "history", "deployment/web"]).ok();
    assert_eq!(history.lines().filter(|l| l.starts_with(['1', '2'])).count(), 2, "{history}");
    let second = space.kubectl(&["rollout", "history", "deployment/web", "--revision=2"]).ok();
    assert!(second.contains("VERSION:"), "{second}");
    space.kubectl(&["rollout", "undo", "deployment/web"]).ok();
    settled(&space);
    assert_eq!(versions(&space), ["none", "none", "none"]);
    let replica_sets = space.kubectl(&["get", "replicasets", "--output", "name"]).ok();
    assert_eq!(replica_sets.lines().count(), 2, "a rollback takes the old replica set again: {replica_sets}");
    space.kubectl(&["rollout", "undo", "deployment/web", "--to-revision=2"]).ok();
    settled(&space);
    assert_eq!(versions(&space), ["2", "2", "2"]);
}

#[test]
fn an_update_never_takes_more_than_it_may() {
    let space = Namespace::new("availability");
    let strategy = json!({"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}});
    space.deployment("web", 2, SLEEP, strategy);
    settled(&space);
    let watch = space.kubectl_background(&[
        "get",
        "deployment/web",
        "--watch",
        "--output",
        "jsonpath={.status.availableReplicas} {.metadata.generation}{\"\\n\"}",
    ]);
    watch.line_with("2 1");
    set_version(&space, "2");
    settled(&space);
    space.kubectl(&["scale", "deployment/web", "--replicas=0"]).ok();
    // Between the first state and the scaling down (third generation) nothing may go below two. How many there are at
    // most cannot be read here: the sum of two replica sets' statuses lags behind each of them.
    loop {
        let line = watch.line_with(" ");
        let numbers: Vec<u32> = line.split(' ').map(|n| n.parse().unwrap_or(0)).collect();
        if numbers.last() == Some(&3) {
            break;
        }
        assert!(numbers[0] >= 2, "available, generation: {line}");
    }
}

#[test]
fn recreate_ends_the_old_pods_first() {
    let space = Namespace::new("recreate");
    space.deployment("web", 2, SLEEP, json!({"strategy": {"type": "Recreate"}}));
    settled(&space);
    set_version(&space, "2");
    settled(&space);
    assert_eq!(versions(&space), ["2", "2"]);
}

#[test]
fn pause_holds_an_update_back() {
    let space = Namespace::new("pause");
    space.deployment("web", 1, SLEEP, json!({}));
    settled(&space);
    space.kubectl(&["rollout", "pause", "deployment/web"]).ok();
    set_version(&space, "2");
    space.wait(
        "deployment/web",
        ".status.observedGeneration",
        &space.value("deployment/web", ".metadata.generation"),
    );
    assert_eq!(versions(&space), ["none"]);
    space.kubectl(&["rollout", "resume", "deployment/web"]).ok();
    settled(&space);
    assert_eq!(versions(&space), ["2"]);
    space.kubectl(&["rollout", "restart", "deployment/web"]).ok();
    settled(&space);
    assert_eq!(
        space.value("deployment/web", ".metadata.annotations.deployment\\.kubernetes\\.io/revision"),
        "3"
    );
}

#[test]
fn scaling() {
    let space = Namespace::new("scaling");
    space.deployment("web", 1, SLEEP, json!({}));
    settled(&space);
    space.kubectl(&["scale", "deployment/web", "--replicas=4"]).ok();
    settled(&space);
    assert_eq!(space.value("deployment/web", ".status.readyReplicas"), "4");
    space.kubectl(&["scale", "deployment/web", "--current-replicas=9", "--replicas=1"]).fails();
    space.kubectl(&["scale", "deployment/web", "--replicas=0"]).ok();
    eventually("no pod is left", || {
        let pods = space.kubectl(&["get", "pods", "--output", "name"]).ok();
        check(pods.is_empty(), pods)
    });
}

#[test]
fn a_deleted_pod_is_replaced() {
    let space = Namespace::new("replaced");
    space.deployment("web", 1, SLEEP, json!({}));
    settled(&space);
    let pod = space.kubectl(&["get", "pods", "--output", "name"]).ok();
    space.kubectl(&["delete", pod.trim()]).ok();
    eventually("there is another pod", || {
        let pods = space.kubectl(&["get", "pods", "--output", "name"]).ok();
        check(pods != pod && pods.lines().count() == 1, pods)
    });
    settled(&space);
}

#[test]
fn a_rollout_without_progress_says_so() {
    let space = Namespace::new("stuck");
    let mut spec = json!({"progressDeadlineSeconds": 2});
    merge(&mut spec, json!({"template": {"spec": {"nodeSelector": {"no": "such"}}}}));
    space.deployment("web", 1, SLEEP, spec);
    space.wait(
        "deployment/web",
        ".status.conditions[?(@.type==\"Progressing\")].reason",
        "ProgressDeadlineExceeded",
    );
    space.kubectl(&["rollout", "status", "deployment/web"]).fails_with(&["exceeded its progress deadline"]);
}
