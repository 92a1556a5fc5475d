//! Which pods a set gives up first.
//!
//! The order is Kubernetes': what serves least goes first. Of two pods that serve equally well the
//! younger goes, but ages are compared by magnitude only (powers of two), so that a set that grows and
//! shrinks with the day does not always lose its newest node's pods; ties fall by uid, which is chance.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::plan::Observed;
use crate::common::owner::controller_of;
use crate::common::pod::{is_active, is_ready, node_name, phase, ready_since};

/// The annotation by which users say what a pod's loss costs; lower goes first.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// The `count` pods to delete.
pub(super) fn first_to_go(mut pods: Vec<Arc<Pod>>, count: usize, observed: &Observed) -> Vec<Arc<Pod>> {
    if count < pods.len() {
        let crowd = crowd(observed.pods, observed.siblings);
        pods.sort_by_cached_key(|pod| rank(pod, &crowd, observed.now));
        pods.truncate(count);
    }
    pods
}

/// How many pods of the same application each node has.
fn crowd<'a>(pods: &'a [Arc<Pod>], siblings: &HashSet<String>) -> HashMap<&'a str, usize> {
    let mut crowd = HashMap::new();
    for pod in pods.iter().filter(|pod| is_active(pod)) {
        let related = controller_of(&pod.metadata).is_some_and(|owner| siblings.contains(&owner.uid));
        if let Some(node) = node_name(pod).filter(|_| related) {
            *crowd.entry(node).or_insert(0) += 1;
        }
    }
    crowd
}

/// A sort key: the smaller, the sooner a pod goes.
fn rank(pod: &Pod, crowd: &HashMap<&str, usize>, now: Timestamp) -> impl Ord + use<> {
    let node = node_name(pod);
    let crowd = node.and_then(|node| crowd.get(node)).copied().unwrap_or(0);
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (
        (node.is_some(), phase_rank(phase(pod)), is_ready(pod), deletion_cost(pod)),
        Reverse(crowd),
        magnitude(ready_since(pod), now),
        Reverse(restarts(pod)),
        magnitude(created, now),
        pod.metadata.uid.clone(),
    )
}

fn phase_rank(phase: &str) -> u8 {
    match phase {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    }
}

/// The user's cost; what is not a plain decimal number counts as 0 (the API refuses such values).
fn deletion_cost(pod: &Pod) -> i32 {
    let annotations = pod.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(DELETION_COST)?.parse().ok()).unwrap_or(0)
}

/// The power of two below an age in nanoseconds; 0 for what has not begun.
fn magnitude(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let age = since.map_or(0, |since| now.as_nanosecond() - since.as_nanosecond());
    u128::try_from(age).ok().and_then(u128::checked_ilog2).map_or(0, |power| power + 1)
}

fn restarts(pod: &Pod) -> i32 {
    let Some(status) = &pod.status else { return 0 };
    let containers = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    containers.map(|container| container.restart_count).max().unwrap_or(0)
}
