//! The decisions of a ReplicaSet as tables.

use k8s_openapi::api::apps::v1::ReplicaSetSpec;
use k8s_openapi::api::core::v1::{ContainerStatus, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, OwnerReference};

use super::*;
use crate::common::testing::{at, deleting, in_phase, labels, meta, not_ready, pod, reference, time};

fn set(replicas: i32, change: impl FnOnce(&mut ReplicaSet)) -> ReplicaSet {
    let mut set = ReplicaSet {
        metadata: meta("web", "rs"),
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            selector: LabelSelector { match_labels: Some(labels(&[("app", "web")])), ..Default::default() },
            template: Some(PodTemplateSpec {
                metadata: Some(ObjectMeta {
                    labels: Some(labels(&[("app", "web"), ("tier", "front")])),
                    ..ObjectMeta::default()
                }),
                spec: None,
            }),
            min_ready_seconds: None,
        }),
        status: None,
    };
    change(&mut set);
    set
}

fn ours() -> Vec<OwnerReference> {
    vec![reference("ReplicaSet", "web", "rs")]
}

fn owned(name: &str, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
    pod(name, |pod| {
        pod.metadata.owner_references = Some(ours());
        change(pod);
    })
}

fn plan_of(set: &ReplicaSet, pods: &[Arc<Pod>], settled: bool) -> Vec<Action> {
    let siblings = HashSet::from(["rs".to_string()]);
    let observed = Observed { pods, siblings: &siblings, settled, now: at(1000) };
    plan::plan(set, &selector_of(set).unwrap(), &observed)
}

/// A plan in words: `create 2`, `delete a b`, `adopt a`, `release a`.
fn words(actions: Vec<Action>) -> Vec<String> {
    let names = |pods: &[Arc<Pod>]| pods.iter().map(|pod| pod.name_any()).collect::<Vec<_>>().join(" ");
    actions
        .iter()
        .map(|action| match action {
            Action::Adopt(pods) => format!("adopt {}", names(pods)),
            Action::Release(pod) => format!("release {}", pod.name_any()),
            Action::Create(count) => format!("create {count}"),
            Action::Delete(pods) => format!("delete {}", names(pods)),
        })
        .collect()
}

fn nothing(_: &mut Pod) {}

#[test]
fn what_a_set_does() {
    let other =
        |pod: &mut Pod| pod.metadata.owner_references = Some(vec![reference("ReplicaSet", "x", "other")]);
    let moved = |pod: &mut Pod| pod.metadata.labels = Some(labels(&[("app", "debug")]));
    let leaving = |set: &mut ReplicaSet| set.metadata.deletion_timestamp = Some(time(1));
    type Row = (&'static str, ReplicaSet, Vec<Arc<Pod>>, bool, Vec<&'static str>);
    let rows: Vec<Row> = vec![
        ("from nothing", set(3, |_| {}), vec![], true, vec!["create 3"]),
        ("as wanted", set(1, |_| {}), vec![owned("a", nothing)], true, vec![]),
        ("one missing", set(2, |_| {}), vec![owned("a", nothing)], true, vec!["create 1"]),
        ("copy lags behind", set(3, |_| {}), vec![], false, vec![]),
        ("a burst at most", set(9000, |_| {}), vec![], true, vec!["create 500"]),
        ("zero", set(0, |_| {}), vec![owned("a", nothing)], true, vec!["delete a"]),
        ("no negative numbers", set(-1, |_| {}), vec![], true, vec![]),
        (
            "failed pods do not count",
            set(1, |_| {}),
            vec![owned("a", in_phase("Failed"))],
            true,
            vec!["create 1"],
        ),
        (
            "ended pods do not count",
            set(1, |_| {}),
            vec![owned("a", in_phase("Succeeded"))],
            true,
            vec!["create 1"],
        ),
        ("leaving pods do not count", set(1, |_| {}), vec![owned("a", deleting)], true, vec!["create 1"]),
        ("another's pods do not count", set(1, |_| {}), vec![pod("a", other)], true, vec!["create 1"]),
        ("an orphan is adopted", set(1, |_| {}), vec![pod("a", nothing)], true, vec!["adopt a"]),
        (
            "an adopted pod counts",
            set(1, |_| {}),
            vec![pod("a", nothing), owned("b", not_ready)],
            true,
            vec!["adopt a", "delete b"],
        ),
        ("a leaving orphan is left alone", set(0, |_| {}), vec![pod("a", deleting)], true, vec![]),
        (
            "a relabelled pod is released and replaced",
            set(1, |_| {}),
            vec![owned("a", moved)],
            true,
            vec!["release a", "create 1"],
        ),
        ("a leaving set does nothing", set(3, leaving), vec![pod("a", nothing)], true, vec![]),
    ];
    for (name, set, pods, settled, expected) in rows {
        assert_eq!(words(plan_of(&set, &pods, settled)), expected, "{name}");
    }
}

#[test]
fn what_serves_least_goes_first() {
    type Make = Box<dyn Fn(&mut Pod)>;
    let on_node = |node: &'static str| -> Make {
        Box::new(move |pod: &mut Pod| pod.spec.as_mut().unwrap().node_name = Some(node.into()))
    };
    let cost = |cost: &'static str| -> Make {
        Box::new(move |pod: &mut Pod| {
            pod.metadata.annotations = Some(labels(&[("controller.kubernetes.io/pod-deletion-cost", cost)]));
        })
    };
    let ready_since = |second: i64| -> Make {
        Box::new(move |pod: &mut Pod| {
            let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
            conditions[0].last_transition_time = Some(time(second));
        })
    };
    let restarted = |times: i32| -> Make {
        Box::new(move |pod: &mut Pod| {
            let status = ContainerStatus { restart_count: times, ..ContainerStatus::default() };
            pod.status.as_mut().unwrap().container_statuses = Some(vec![status]);
        })
    };
    let created = |second: i64| -> Make {
        Box::new(move |pod: &mut Pod| pod.metadata.creation_timestamp = Some(time(second)))
    };
    let unassigned: Make = Box::new(|pod: &mut Pod| pod.spec.as_mut().unwrap().node_name = None);
    let plain = || -> Make { Box::new(|_| {}) };
    // Each row: the pod that goes, the pod that stays.
    let rows: Vec<(&str, Make, Make)> = vec![
        ("not on a node", unassigned, Box::new(in_phase("Pending"))),
        ("pending", Box::new(in_phase("Pending")), Box::new(in_phase("Unknown"))),
        ("unknown", Box::new(in_phase("Unknown")), plain()),
        ("not ready", Box::new(not_ready), plain()),
        ("cheaper", cost("-5"), plain()),
        ("dearer stays", plain(), cost("5")),
        (
            "not ready, although dear",
            Box::new(|pod: &mut Pod| {
                not_ready(pod);
                pod.metadata.annotations =
                    Some(labels(&[("controller.kubernetes.io/pod-deletion-cost", "9")]));
            }),
            plain(),
        ),
        ("ready for a shorter time", ready_since(990), ready_since(10)),
        ("restarted more often", restarted(3), restarted(1)),
        ("younger", created(990), created(10)),
    ];
    for (name, goes, stays) in rows {
        // Names in both orders, so that a tie cannot pass by accident.
        for (going, staying) in [("a", "b"), ("b", "a")] {
            let pods = [owned(going, &goes), owned(staying, &stays)];
            assert_eq!(words(plan_of(&set(1, |_| {}), &pods, true)), [format!("delete {going}")], "{name}");
        }
    }
    let crowded = [owned("a", on_node("empty")), owned("b", on_node("full")), owned("c", on_node("full"))];
    assert_eq!(words(plan_of(&set(2, |_| {}), &crowded, true)), ["delete b"]);
}

#[test]
fn pods_come_from_the_template() {
    let pod = plan::pod_of(&set(1, |_| {})).unwrap();
    assert_eq!(pod.metadata.generate_name.as_deref(), Some("web-"));
    assert_eq!(pod.metadata.labels, Some(labels(&[("app", "web"), ("tier", "front")])));
    assert_eq!(pod.metadata.owner_references, Some(ours()));
}

#[test]
fn statuses() {
    let pods = [
        owned("ready", |pod| pod.metadata.labels = Some(labels(&[("app", "web"), ("tier", "front")]))),
        owned("fresh", |pod| {
            let conditions = pod.status.as_mut().unwrap().conditions.as_mut().unwrap();
            conditions[0].last_transition_time = Some(time(995));
        }),
        owned("starting", not_ready),
    ];
    let set = set(3, |set| set.spec.as_mut().unwrap().min_ready_seconds = Some(10));
    let status = status::status(&set, &pods, 1, None, at(1000));
    let expected = ReplicaSetStatus {
        replicas: 3,
        fully_labeled_replicas: Some(1),
        ready_replicas: Some(2),
        available_replicas: Some(1),
        terminating_replicas: Some(1),
        observed_generation: Some(1),
        conditions: None,
    };
    assert_eq!(status, expected);
    let wait = status::next_available(&set, &pods, at(1000));
    assert_eq!(wait, Some(std::time::Duration::from_millis(5001)));
    assert_eq!(status::next_available(&set, &pods, at(1005)), None);
}

#[test]
fn a_failure_comes_stays_and_goes() {
    let failure = || Some(Failure { reason: "FailedCreate", message: "quota".into() });
    let mut set = set(1, |_| {});
    set.status = Some(status::status(&set, &[], 0, failure(), at(1)));
    let first = set.status.clone().unwrap().conditions.unwrap();
    assert_eq!(
        (first[0].type_.as_str(), first[0].reason.as_deref()),
        ("ReplicaFailure", Some("FailedCreate"))
    );
    set.status = Some(status::status(&set, &[], 0, failure(), at(50)));
    assert_eq!(set.status.clone().unwrap().conditions, Some(first));
    assert_eq!(status::status(&set, &[], 0, None, at(60)).conditions, None);
}
