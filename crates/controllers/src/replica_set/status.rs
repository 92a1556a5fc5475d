//! The status of a ReplicaSet, computed from its pods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::common::condition::TRUE;
use crate::common::pod::{available_at, is_ready};

/// The condition that says that pods could not be created or deleted.
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Why the set could not get its pods.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failure {
    pub(super) reason: &'static str,
    pub(super) message: String,
}

/// The status of `set` with these replicas, this many pods on their way out, and this failure.
pub(super) fn status(
    set: &ReplicaSet,
    replicas: &[Arc<Pod>],
    terminating: usize,
    failure: Option<Failure>,
    now: Timestamp,
) -> ReplicaSetStatus {
    let min_ready = min_ready_seconds(set);
    let available = |pod: &&Arc<Pod>| available_at(pod, min_ready).is_some_and(|at| at <= now);
    ReplicaSetStatus {
        replicas: count(replicas.len()),
        fully_labeled_replicas: positive(replicas.iter().filter(|pod| has_template_labels(set, pod)).count()),
        ready_replicas: positive(replicas.iter().filter(|pod| is_ready(pod)).count()),
        available_replicas: positive(replicas.iter().filter(available).count()),
        terminating_replicas: Some(count(terminating)),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, failure, now),
    }
}

/// How long until the next ready pod counts as available; `None` if none is waiting for that.
pub(super) fn next_available(set: &ReplicaSet, replicas: &[Arc<Pod>], now: Timestamp) -> Option<Duration> {
    let min_ready = min_ready_seconds(set);
    let waiting = replicas.iter().filter_map(|pod| available_at(pod, min_ready)).filter(|at| *at > now);
    let millis = waiting.min()?.as_millisecond() - now.as_millisecond();
    // One more millisecond, for a timer that ends early must not find the pod just short of available.
    Some(Duration::from_millis(u64::try_from(millis).ok()?.saturating_add(1)))
}

fn min_ready_seconds(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0)
}

fn has_template_labels(set: &ReplicaSet, pod: &Pod) -> bool {
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
    let wanted = template.and_then(|template| template.metadata.as_ref()?.labels.as_ref());
    let has = |key: &String, value: &String| {
        pod.metadata.labels.as_ref().is_some_and(|labels| labels.get(key) == Some(value))
    };
    wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| has(key, value)))
}

/// The conditions with the failure set or cleared; a failure that goes on keeps its first words and time.
fn conditions(
    set: &ReplicaSet,
    failure: Option<Failure>,
    now: Timestamp,
) -> Option<Vec<ReplicaSetCondition>> {
    let mut conditions = set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    match failure {
        None => conditions.retain(|condition| condition.type_ != REPLICA_FAILURE),
        Some(_) if conditions.iter().any(|condition| condition.type_ == REPLICA_FAILURE) => {}
        Some(failure) => conditions.push(ReplicaSetCondition {
            type_: REPLICA_FAILURE.into(),
            status: TRUE.into(),
            reason: Some(failure.reason.into()),
            message: Some(failure.message),
            last_transition_time: Some(Time(whole_seconds(now))),
        }),
    }
    (!conditions.is_empty()).then_some(conditions)
}

/// The API keeps whole seconds; so do we, lest a status differ from its own copy.
fn whole_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}

/// A count as the API writes it: zero is left out.
fn positive(number: usize) -> Option<i32> {
    (number > 0).then(|| count(number))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
