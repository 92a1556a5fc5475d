//! What quotas count, from an object's creation to its end.

use sampan_tests::{Namespace, check, eventually};
use serde_json::{Value, json};

fn quota(space: &Namespace, name: &str, spec: Value) {
    let quota =
        json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": name}, "spec": spec});
    space.apply(&quota).ok();
    eventually("the quota is counted", || {
        let status = space.kubectl(&["get", "resourcequota", name, "--output", "json"]).json();
        let counted =
            status["status"]["hard"] == status["spec"]["hard"] && status["status"]["used"].is_object();
        check(counted, status.to_string())
    });
}

#[track_caller]
fn uses(space: &Namespace, name: &str, expected: &[(&str, &str)]) {
    eventually(&format!("{name} uses {expected:?}"), || {
        let quota = space.kubectl(&["get", "resourcequota", name, "--output", "json"]).json();
        let used = &quota["status"]["used"];
        check(expected.iter().all(|(what, amount)| used[*what] == *amount), used.to_string())
    });
}

fn template() -> Value {
    let spec = Namespace::pod_object("p", "sleep 1000", json!({}), json!({}))["spec"].clone();
    json!({"metadata": {"labels": {"app": "p"}}, "spec": spec})
}

/// Each object is counted when it is there, refused when there are too many, and given back when it is gone.
#[test]
fn objects_are_counted_while_they_live() {
    let space = Namespace::new("conf-quota-objects");
    let of = |api_version: &str, kind: &str, more: Value| {
        let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": "one"}});
        sampan_tests::merge(&mut object, more);
        object
    };
    let replicas =
        json!({"spec": {"replicas": 0, "selector": {"matchLabels": {"app": "p"}}, "template": template()}});
    let controller = json!({"spec": {"replicas": 0, "selector": {"app": "p"}, "template": template()}});
    let service = json!({"spec": {"type": "NodePort", "ports": [{"port": 80}]}});
    let rows = [
        ("configmaps", of("v1", "ConfigMap", json!({}))),
        ("secrets", of("v1", "Secret", json!({}))),
        ("count/replicasets.apps", of("apps/v1", "ReplicaSet", replicas)),
        ("replicationcontrollers", of("v1", "ReplicationController", controller)),
        ("services", of("v1", "Service", service)),
    ];
    // What every namespace has of itself counts, too.
    let before = |resource: &str| {
        let plural = resource.trim_start_matches("count/");
        space.kubectl(&["get", plural, "--output", "name"]).ok().lines().count()
    };
    for (resource, object) in rows {
        let there = before(resource);
        let (full, empty) = ((there + 1).to_string(), there.to_string());
        quota(&space, "q", json!({"hard": {resource: full.clone(), "resourcequotas": "1"}}));
        uses(&space, "q", &[(resource, &empty), ("resourcequotas", "1")]);
        space.apply(&object).ok();
        uses(&space, "q", &[(resource, &full)]);
        let mut another = object.clone();
        another["metadata"]["name"] = "two".into();
        space.kubectl_with(&["create", "-f", "-"], &another.to_string()).fails_with(&["exceeded quota: q"]);
        space.kubectl_with(&["delete", "-f", "-"], &object.to_string()).ok();
        uses(&space, "q", &[(resource, &empty)]);
        space.kubectl(&["delete", "resourcequota", "q"]).ok();
    }
}

#[test]
fn services_are_counted_by_their_type() {
    let space = Namespace::new("conf-quota-services");
    quota(
        &space,
        "q",
        json!({"hard": {"services": "3", "services.nodeports": "1", "services.loadbalancers": "0"}}),
    );
    space.kubectl(&["create", "service", "clusterip", "inner", "--tcp=80"]).ok();
    space.kubectl(&["create", "service", "nodeport", "outer", "--tcp=80"]).ok();
    uses(&space, "q", &[("services", "2"), ("services.nodeports", "1"), ("services.loadbalancers", "0")]);
    space.kubectl(&["create", "service", "nodeport", "more", "--tcp=80"]).fails_with(&["exceeded quota"]);
    space.kubectl(&["create", "service", "loadbalancer", "more", "--tcp=80"]).fails_with(&["exceeded quota"]);
    space.kubectl(&["delete", "service", "inner", "outer"]).ok();
    uses(&space, "q", &[("services", "0"), ("services.nodeports", "0")]);
}

fn with_requests(name: &str, cpu: &str) -> Value {
    let amounts =
        json!({"cpu": cpu, "memory": "64Mi", "ephemeral-storage": "1Mi", "example.com/dongle": "2"});
    Namespace::pod_object(
        name,
        "sleep 1000",
        json!({"resources": {"requests": amounts, "limits": amounts}}),
        json!({}),
    )
}

#[test]
fn pods_are_counted_with_what_they_request() {
    let space = Namespace::new("conf-quota-pods");
    let hard = json!({
        "pods": "5", "cpu": "1", "memory": "500Mi", "requests.ephemeral-storage": "50Gi",
        "requests.example.com/dongle": "3",
    });
    quota(&space, "q", json!({ "hard": hard }));
    space.apply(&with_requests("one", "500m")).ok();
    uses(
        &space,
        "q",
        &[
            ("pods", "1"),
            ("cpu", "500m"),
            ("memory", "64Mi"),
            ("requests.ephemeral-storage", "1Mi"),
            ("requests.example.com/dongle", "2"),
        ],
    );
    space
        .kubectl_with(&["create", "-f", "-"], &with_requests("two", "600m").to_string())
        .fails_with(&["exceeded quota", "cpu=600m"]);
    space
        .kubectl_with(&["create", "-f", "-"], &with_requests("two", "100m").to_string())
        .fails_with(&["exceeded quota", "dongle"]);
    space.kubectl(&["label", "pod", "one", "changed=yes"]).ok();
    uses(&space, "q", &[("pods", "1"), ("cpu", "500m")]);
    space.kubectl(&["delete", "pod", "one", "--grace-period=0", "--force"]).ok();
    uses(&space, "q", &[("pods", "0"), ("cpu", "0"), ("memory", "0"), ("requests.example.com/dongle", "0")]);
}

#[test]
fn scopes_choose_the_pods_that_count() {
    let space = Namespace::new("conf-quota-scopes");
    let scoped = |scope: &str| json!({"hard": {"pods": "5"}, "scopes": [scope]});
    let scopes = [
        ("best", "BestEffort"),
        ("not-best", "NotBestEffort"),
        ("ending", "Terminating"),
        ("endless", "NotTerminating"),
    ];
    for (name, scope) in scopes {
        quota(&space, name, scoped(scope));
    }
    let counted = |best: &str, not_best: &str, ending: &str, endless: &str| {
        for (name, amount) in
            [("best", best), ("not-best", not_best), ("ending", ending), ("endless", endless)]
        {
            uses(&space, name, &[("pods", amount)]);
        }
    };
    counted("0", "0", "0", "0");
    space.apply(&Namespace::pod_object("plain", "sleep 1000", json!({}), json!({}))).ok();
    counted("1", "0", "0", "1");
    let requests = json!({"resources": {"requests": {"cpu": "10m"}}});
    space
        .apply(&Namespace::pod_object("ends", "sleep 1000", requests, json!({"activeDeadlineSeconds": 3600})))
        .ok();
    counted("1", "1", "1", "1");
    space.kubectl(&["delete", "pod", "plain", "ends", "--grace-period=0", "--force"]).ok();
    counted("0", "0", "0", "0");
}
