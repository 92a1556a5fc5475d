//! What a ReplicaSet has to do: pure, the clock is an argument.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::Selector;

use super::ranking;
use crate::common::owner::{Claim, claim, controller_reference, is_controlled_by};
use crate::common::pod::{is_active, is_terminating};

/// The most pods one run creates or deletes, as upstream: the rest follows with the next run, when
/// the copy has caught up.
const BURST: usize = 500;

/// The world around a set.
pub(super) struct Observed<'a> {
    /// All pods of the set's namespace.
    pub(super) pods: &'a [Arc<Pod>],
    /// The uids of all sets of the same controller, this one included.
    pub(super) siblings: &'a HashSet<String>,
    /// Whether `pods` shows everything done before, so that it may be counted.
    pub(super) settled: bool,
    pub(super) now: Timestamp,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Become the controller of these pods.
    Adopt(Vec<Arc<Pod>>),
    /// Stop being the controller of this pod, whose labels have moved on.
    Release(Arc<Pod>),
    /// Create this many pods.
    Create(usize),
    /// Delete these pods.
    Delete(Vec<Arc<Pod>>),
}

/// The steps that bring the pods nearer to the set's specification.
pub(super) fn plan(desired: &ReplicaSet, selector: &Selector, observed: &Observed) -> Vec<Action> {
    let mut actions = Vec::new();
    let claims = |wanted: Claim| {
        let active = observed.pods.iter().filter(|pod| is_active(pod));
        active.filter(move |pod| claim(&desired.metadata, selector, &pod.metadata) == wanted).cloned()
    };
    actions.extend(claims(Claim::Release).map(Action::Release));
    let adopted: Vec<_> = claims(Claim::Adopt).collect();
    if !adopted.is_empty() {
        actions.push(Action::Adopt(adopted));
    }
    if observed.settled && desired.metadata.deletion_timestamp.is_none() {
        actions.extend(scale(desired, replicas(desired, selector, observed.pods), observed));
    }
    actions
}

fn scale(desired: &ReplicaSet, replicas: Vec<Arc<Pod>>, observed: &Observed) -> Option<Action> {
    let wanted = wanted(desired);
    if replicas.len() < wanted {
        return Some(Action::Create((wanted - replicas.len()).min(BURST)));
    }
    let surplus = (replicas.len() - wanted).min(BURST);
    if surplus == 0 {
        return None;
    }
    Some(Action::Delete(ranking::first_to_go(replicas, surplus, observed)))
}

/// The number of pods a set asks for.
pub(super) fn wanted(set: &ReplicaSet) -> usize {
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    usize::try_from(replicas).unwrap_or(0)
}

/// The pods that count as replicas of a set, those it is about to adopt included.
pub(super) fn replicas(set: &ReplicaSet, selector: &Selector, pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
    pods.iter()
        .filter(|pod| is_active(pod))
        .filter(|pod| matches!(claim(&set.metadata, selector, &pod.metadata), Claim::Owned | Claim::Adopt))
        .cloned()
        .collect()
}

/// How many pods of a set are on their way out.
pub(super) fn terminating(set: &ReplicaSet, pods: &[Arc<Pod>]) -> usize {
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    pods.iter().filter(|pod| is_terminating(pod) && is_controlled_by(&pod.metadata, uid)).count()
}

/// The pod a set creates; the server completes the name. `None` without a template or a uid.
pub(super) fn pod_of(set: &ReplicaSet) -> Option<Pod> {
    let template = set.spec.as_ref()?.template.as_ref()?;
    let meta = template.metadata.clone().unwrap_or_default();
    Some(Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", set.metadata.name.as_deref()?)),
            namespace: set.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            finalizers: meta.finalizers,
            owner_references: Some(vec![controller_reference(set)?]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    })
}
