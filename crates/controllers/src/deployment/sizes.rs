//! The arithmetic of a rollout: how many pods the strategy allows, and what a ReplicaSet remembers.
//!
//! Names and rules follow upstream's deployment utilities. Annotations keep per ReplicaSet what was
//! wanted of the Deployment when the set was last sized; that is how a changed scale is recognised.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// Which revision of the Deployment's template this is.
pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
/// The revisions a ReplicaSet had before it was rolled back to.
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
/// The Deployment's replicas when the ReplicaSet was last sized.
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
/// The same plus the surge that was allowed.
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// The label that tells the pods of one template from those of another.
pub(super) const POD_TEMPLATE_HASH: &str = "pod-template-hash";
/// Annotations that are not handed down from a Deployment to its ReplicaSets.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    "deprecated.deployment.rollback.to",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
];
/// The longest revision history kept on a ReplicaSet, in bytes; upstream's limit.
const HISTORY_LIMIT: usize = 2000;
/// What the API server fills in for both bounds of a rolling update.
const DEFAULT_BOUND: &str = "25%";

/// The replicas a Deployment asks for.
pub(super) fn wanted(deployment: &Deployment) -> i32 {
    spec(deployment).and_then(|spec| spec.replicas).unwrap_or(1).max(0)
}

fn spec(deployment: &Deployment) -> Option<&DeploymentSpec> {
    deployment.spec.as_ref()
}

/// Whether old pods all go before new ones come.
pub(super) fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = spec(deployment).and_then(|spec| spec.strategy.as_ref());
    strategy.is_some_and(|strategy| strategy.type_.as_deref() == Some("Recreate"))
}

/// How many pods there may be beyond the wanted number.
pub(super) fn max_surge(deployment: &Deployment) -> i32 {
    if is_recreate(deployment) { 0 } else { bounds(deployment).0 }
}

/// How many of the wanted pods may be unavailable.
pub(super) fn max_unavailable(deployment: &Deployment) -> i32 {
    let wanted = wanted(deployment);
    if is_recreate(deployment) || wanted == 0 { 0 } else { bounds(deployment).1.min(wanted) }
}

/// Surge and unavailability in pods: percentages of the surge are rounded up, of the unavailability
/// down; when both come to nothing one pod may be unavailable, for else no step would be possible.
fn bounds(deployment: &Deployment) -> (i32, i32) {
    let wanted = wanted(deployment);
    let rolling = spec(deployment).and_then(|spec| spec.strategy.as_ref()?.rolling_update.as_ref());
    let surge = resolve(rolling.and_then(|rolling| rolling.max_surge.as_ref()), wanted, true);
    let unavailable = resolve(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), wanted, false);
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

fn resolve(bound: Option<&IntOrString>, of: i32, round_up: bool) -> i32 {
    let text = match bound {
        Some(IntOrString::Int(number)) => return (*number).max(0),
        Some(IntOrString::String(text)) => text.as_str(),
        None => DEFAULT_BOUND,
    };
    // Validation lets only percentages through; what is not one counts as nothing.
    let percent = text.strip_suffix('%').and_then(|number| number.parse::<i64>().ok());
    let hundredths = percent.unwrap_or(0).max(0).saturating_mul(i64::from(of));
    let pods = if round_up { hundredths.saturating_add(99) / 100 } else { hundredths / 100 };
    i32::try_from(pods).unwrap_or(i32::MAX)
}

/// The replicas a ReplicaSet asks for.
pub(super) fn replicas(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// The pods a ReplicaSet has.
pub(super) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

/// The available pods a ReplicaSet has.
pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// The ready pods a ReplicaSet has.
pub(super) fn ready(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0)
}

/// The sum of `count` over all sets.
pub(super) fn sum(sets: &[Arc<ReplicaSet>], count: fn(&ReplicaSet) -> i32) -> i32 {
    sets.iter().map(|set| count(set)).sum()
}

/// An annotation of a ReplicaSet that holds a number.
pub(super) fn number(set: &ReplicaSet, annotation: &str) -> Option<i32> {
    set.metadata.annotations.as_ref()?.get(annotation)?.parse().ok()
}

/// The revision of a ReplicaSet; 0 when it has none.
pub(super) fn revision(set: &ReplicaSet) -> i64 {
    let annotations = set.metadata.annotations.as_ref();
    annotations.and_then(|annotations| annotations.get(REVISION)?.parse().ok()).unwrap_or(0)
}

/// The annotations of a ReplicaSet that is sized for the Deployment as it is now.
pub(super) fn size_annotations(deployment: &Deployment) -> [(&'static str, String); 2] {
    let wanted = wanted(deployment);
    [
        (DESIRED_REPLICAS, wanted.to_string()),
        (MAX_REPLICAS, wanted.saturating_add(max_surge(deployment)).to_string()),
    ]
}

/// The annotations the newest ReplicaSet should have: the Deployment's, and a revision higher than
/// every other set's. A set that had a revision before keeps it in its history.
pub(super) fn newest_annotations(
    deployment: &Deployment,
    present: &BTreeMap<String, String>,
    revision: i64,
) -> BTreeMap<String, String> {
    let mut annotations = present.clone();
    for (key, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN_ANNOTATIONS.contains(&key.as_str()) {
            annotations.insert(key.clone(), value.clone());
        }
    }
    let before = present.get(REVISION).cloned();
    if before.as_ref().and_then(|before| before.parse::<i64>().ok()).unwrap_or(0) < revision {
        annotations.insert(REVISION.into(), revision.to_string());
        if let Some(before) = before.filter(|before| !before.is_empty()) {
            let history = lengthened(present.get(REVISION_HISTORY), &before);
            annotations.insert(REVISION_HISTORY.into(), history);
        }
    }
    annotations
}

/// A comma-separated history with one more entry, cut at its old end when it grows too long.
fn lengthened(history: Option<&String>, revision: &str) -> String {
    let mut entries: Vec<&str> = history
        .map(|history| history.split(',').filter(|entry| !entry.is_empty()).collect())
        .unwrap_or_default();
    entries.push(revision);
    while entries.len() > 1 && entries.iter().map(|entry| entry.len() + 1).sum::<usize>() > HISTORY_LIMIT {
        entries.remove(0);
    }
    entries.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::tests::deployment;
    use k8s_openapi::api::apps::v1::{DeploymentStrategy, RollingUpdateDeployment};

    #[test]
    fn bounds_of_a_rollout() {
        let text = |text: &str| Some(IntOrString::String(text.into()));
        let int = |number| Some(IntOrString::Int(number));
        // wanted, surge, unavailable -> pods of surge, pods of unavailability
        let rows = [
            (10, None, None, (3, 2)),
            (4, text("25%"), text("25%"), (1, 1)),
            (1, text("25%"), text("25%"), (1, 0)),
            (10, text("0%"), text("0%"), (0, 1)),
            (10, int(2), int(0), (2, 0)),
            (3, int(0), int(5), (0, 3)),
            (0, text("25%"), text("25%"), (0, 0)),
            (7, text("100%"), text("100%"), (7, 7)),
        ];
        for (wanted, surge, unavailable, expected) in rows {
            let deployment = deployment(wanted, |spec| {
                spec.strategy = Some(DeploymentStrategy {
                    type_: Some("RollingUpdate".into()),
                    rolling_update: Some(RollingUpdateDeployment {
                        max_surge: surge.clone(),
                        max_unavailable: unavailable.clone(),
                    }),
                });
            });
            let found = (max_surge(&deployment), max_unavailable(&deployment));
            assert_eq!(found, expected, "{wanted} {surge:?} {unavailable:?}");
        }
    }

    #[test]
    fn a_rollback_remembers_the_revisions() {
        let present = BTreeMap::from([(REVISION.to_string(), "2".to_string())]);
        let deployment = deployment(1, |_| {});
        let annotations = newest_annotations(&deployment, &present, 5);
        assert_eq!(annotations[REVISION], "5");
        assert_eq!(annotations[REVISION_HISTORY], "2");
        let annotations = newest_annotations(&deployment, &annotations, 9);
        assert_eq!(annotations[REVISION_HISTORY], "2,5");
        assert_eq!(newest_annotations(&deployment, &annotations, 9), annotations);
    }
}
