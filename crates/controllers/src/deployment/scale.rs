//! A changed number of replicas, in the middle of a rollout or not.
//!
//! When several ReplicaSets have pods, the change is spread over them in proportion to their sizes, so
//! that a rollout that goes wrong does not get all the new pods.

use std::cmp::Reverse;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::plan::{Sets, Sizing};
use super::sizes::{
    DESIRED_REPLICAS, MAX_REPLICAS, available, is_recreate, max_surge, number, replicas, sum, wanted,
};

/// Whether the wanted number changed since the sets with pods were sized last.
pub(super) fn is_scaling(deployment: &Deployment, all: &[Arc<ReplicaSet>]) -> bool {
    all.iter()
        .filter(|set| replicas(set) > 0)
        .filter_map(|set| number(set, DESIRED_REPLICAS))
        .any(|desired| desired != wanted(deployment))
}

/// The sizes for the wanted number of replicas.
pub(super) fn scale(deployment: &Deployment, sets: &Sets) -> Vec<Sizing> {
    let active: Vec<Arc<ReplicaSet>> = sets.all.iter().filter(|set| replicas(set) > 0).cloned().collect();
    if let [only] = active.as_slice() {
        return vec![(Arc::clone(only), wanted(deployment))];
    }
    if active.is_empty() {
        let latest = sets.newest.as_ref().or(sets.old.last());
        return latest.map(|set| (Arc::clone(set), wanted(deployment))).into_iter().collect();
    }
    if sets.newest.as_ref().is_some_and(|newest| is_saturated(deployment, newest)) {
        return sets.old.iter().filter(|set| replicas(set) > 0).map(|set| (Arc::clone(set), 0)).collect();
    }
    if is_recreate(deployment) {
        // The rollout will shrink all but one; here only what they remember is brought up to date.
        return active.into_iter().map(|set| (Arc::clone(&set), replicas(&set))).collect();
    }
    spread(deployment, active)
}

/// Whether the newest set has all the pods there should be, sized for this very number.
fn is_saturated(deployment: &Deployment, newest: &ReplicaSet) -> bool {
    let wanted = wanted(deployment);
    replicas(newest) == wanted
        && number(newest, DESIRED_REPLICAS) == Some(wanted)
        && available(newest) == wanted
}

/// Gives every set its part of the difference; what rounding leaves goes to the largest.
fn spread(deployment: &Deployment, mut active: Vec<Arc<ReplicaSet>>) -> Vec<Sizing> {
    let wanted = wanted(deployment);
    let allowed = if wanted > 0 { wanted.saturating_add(max_surge(deployment)) } else { 0 };
    let difference = allowed - sum(&active, replicas);
    // Among equals the newer grow first and the older shrink first.
    active.sort_by_cached_key(|set| {
        let age = set.metadata.creation_timestamp.clone();
        let (newer, older) = (Reverse(age.clone()), age);
        (Reverse(replicas(set)), (difference > 0).then_some(newer), (difference <= 0).then_some(older))
    });
    let mut left = difference;
    let mut sizes = Vec::with_capacity(active.len());
    for set in active {
        let part = part_of(deployment, &set, left);
        left -= part;
        let size = replicas(&set) + part;
        sizes.push((set, size));
    }
    if let Some((_, size)) = sizes.first_mut() {
        *size = (*size + left).max(0);
    }
    sizes
}

/// A set's part of a difference of which `left` is still to be given.
fn part_of(deployment: &Deployment, set: &ReplicaSet, left: i32) -> i32 {
    let part = fraction(deployment, set);
    if left > 0 { part.clamp(0, left) } else { part.clamp(left, 0) }
}

/// By how much a set would change if it kept its share of the Deployment.
fn fraction(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let (size, wanted) = (replicas(set), wanted(deployment));
    if wanted == 0 {
        return -size;
    }
    let before = number(set, MAX_REPLICAS).filter(|before| *before != 0);
    let shown = deployment.status.as_ref().and_then(|status| status.replicas).filter(|shown| *shown != 0);
    let Some(before) = before.or(shown) else { return 0 };
    let most = f64::from(wanted.saturating_add(max_surge(deployment)));
    (f64::from(size) * most / f64::from(before)).round() as i32 - size
}
