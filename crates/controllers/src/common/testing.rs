//! Small builders for the tables of the tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

/// A moment of the tests' clock.
pub(crate) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).expect("is within range")
}

/// A moment as the API writes it.
pub(crate) fn time(second: i64) -> Time {
    Time(at(second))
}

pub(crate) fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

pub(crate) fn meta(name: &str, uid: &str) -> ObjectMeta {
    ObjectMeta {
        namespace: Some("ns".into()),
        name: Some(name.into()),
        uid: Some(uid.into()),
        resource_version: Some("1".into()),
        creation_timestamp: Some(time(0)),
        generation: Some(1),
        ..ObjectMeta::default()
    }
}

/// A controller reference to an object of the `apps` group.
pub(crate) fn reference(kind: &str, name: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "apps/v1".into(),
        kind: kind.into(),
        name: name.into(),
        uid: uid.into(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A running, ready pod on node `n` with labels `app=web`; the closure makes it special.
pub(crate) fn pod(name: &str, change: impl FnOnce(&mut Pod)) -> Arc<Pod> {
    let mut pod = Pod {
        metadata: ObjectMeta {
            labels: Some(labels(&[("app", "web")])),
            ..meta(name, &format!("uid-{name}"))
        },
        spec: Some(PodSpec {
            node_name: Some("n".into()),
            containers: vec![Container { name: "main".into(), ..Container::default() }],
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".into()),
            conditions: Some(vec![PodCondition {
                type_: "Ready".into(),
                status: "True".into(),
                last_transition_time: Some(time(0)),
                ..PodCondition::default()
            }]),
            ..PodStatus::default()
        }),
    };
    change(&mut pod);
    Arc::new(pod)
}

/// Makes a pod not ready.
pub(crate) fn not_ready(pod: &mut Pod) {
    if let Some(status) = &mut pod.status {
        status.conditions = None;
    }
}

/// Makes a pod one that somebody deletes.
pub(crate) fn deleting(pod: &mut Pod) {
    pod.metadata.deletion_timestamp = Some(time(0));
}

/// Gives a pod another phase.
pub(crate) fn in_phase(phase: &'static str) -> impl Fn(&mut Pod) {
    move |pod| {
        if let Some(status) = &mut pod.status {
            status.phase = Some(phase.into());
        }
    }
}
