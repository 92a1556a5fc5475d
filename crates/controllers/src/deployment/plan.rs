//! What a Deployment has to do next: pure, the clock is an argument.
//!
//! A plan is one step of the rollout, not all of it: every step changes a ReplicaSet or the status, and
//! that change wakes the controller for the next step. The rules are those of upstream's deployment
//! controller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::scale::{is_scaling, scale};
use super::sizes::{
    POD_TEMPLATE_HASH, REVISION, actual, available, is_recreate, max_surge, max_unavailable,
    newest_annotations, replicas, revision, size_annotations, sum, wanted,
};
use super::status::{self, Progress};
use crate::common::hash::short_hash;
use crate::common::owner::{controller_of, controller_reference};
use crate::common::pod::is_terminal;

/// How many old ReplicaSets are kept for rollbacks unless the user says otherwise.
const DEFAULT_HISTORY: i32 = 10;

/// The world around a Deployment.
pub(super) struct Observed<'a> {
    /// The ReplicaSets the Deployment controls.
    pub(super) sets: &'a [Arc<ReplicaSet>],
    /// The pods of its namespace; looked at only when old pods must be gone before new ones come.
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) now: Timestamp,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Create the ReplicaSet of a new template.
    CreateSet(Box<ReplicaSet>),
    /// Change a ReplicaSet.
    PatchSet { set: Arc<ReplicaSet>, change: Change },
    /// Delete a ReplicaSet that is too old to be rolled back to.
    DeleteSet(Arc<ReplicaSet>),
    /// Write the status. Comes before `Annotate`, which would make the written version stale.
    SetStatus(Box<DeploymentStatus>),
    /// Tell on the Deployment which revision it is at.
    Annotate { revision: String },
}

/// What is to change in a ReplicaSet.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Change {
    pub(super) replicas: Option<i32>,
    pub(super) min_ready_seconds: Option<i32>,
    /// The annotations that are new or different.
    pub(super) annotations: BTreeMap<String, String>,
}

/// The steps, and when to look again although nothing happens.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Plan {
    pub(super) actions: Vec<Action>,
    pub(super) again: Option<Duration>,
}

/// A size for a ReplicaSet.
pub(super) type Sizing = (Arc<ReplicaSet>, i32);

/// The next step of a Deployment. Fails only if the template cannot be written as JSON.
pub(super) fn plan(desired: &Deployment, observed: &Observed) -> Result<Plan, serde_json::Error> {
    let sets = Sets::new(desired, observed.sets);
    let mut progress = Progress::of(desired, observed.now);
    let mut actions = Vec::new();
    if desired.metadata.deletion_timestamp.is_some() {
        // Nothing but an up to date status.
    } else if let Some(step) = sets.newest.as_ref().and_then(|newest| upkeep(desired, newest, &sets)) {
        actions.push(step);
    } else if is_paused(desired) || is_scaling(desired, &sets.all) {
        actions.extend(sizings(desired, scale(desired, &sets), true));
        if is_paused(desired) {
            actions.extend(surplus_history(desired, &sets.old));
        }
    } else {
        progress.rolling_out = true;
        let step =
            if is_recreate(desired) { recreate(desired, &sets, observed) } else { roll(desired, &sets) };
        match step {
            Step::Create => actions.push(Action::CreateSet(Box::new(new_set(desired, &sets)?))),
            Step::Resize(sizes) => actions.extend(sizings(desired, sizes, false)),
            Step::Wait => {}
        }
        if status::is_complete(desired, desired.status.as_ref()) {
            actions.extend(surplus_history(desired, &sets.old));
        }
    }
    let created = actions.iter().find_map(|action| match action {
        Action::CreateSet(set) => Some(set.as_ref().clone()),
        _ => None,
    });
    let (status, again) = status::status(desired, &sets, created.as_ref(), progress);
    if desired.status.as_ref() != Some(&status) {
        actions.push(Action::SetStatus(Box::new(status)));
    }
    let newest = created.as_ref().or(sets.newest.as_deref());
    actions.extend(newest.and_then(|newest| revision_step(desired, newest)));
    Ok(Plan { actions, again })
}

/// The ReplicaSets of a Deployment, oldest first.
pub(super) struct Sets {
    pub(super) all: Vec<Arc<ReplicaSet>>,
    /// The one with the Deployment's template.
    pub(super) newest: Option<Arc<ReplicaSet>>,
    /// All others.
    pub(super) old: Vec<Arc<ReplicaSet>>,
}

impl Sets {
    fn new(deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Self {
        let mut all = sets.to_vec();
        all.sort_by_cached_key(|set| (set.metadata.creation_timestamp.clone(), set.metadata.name.clone()));
        // Two sets can have the same template after a hash collision was resolved; the oldest is it.
        let newest = all.iter().find(|set| has_template_of(set, deployment)).cloned();
        let uid = newest.as_ref().map(|newest| &newest.metadata.uid);
        let old = all.iter().filter(|set| Some(&set.metadata.uid) != uid).cloned().collect();
        Self { all, newest, old }
    }
}

/// Whether the pods of a ReplicaSet are those the Deployment wants now.
pub(super) fn has_template_of(set: &ReplicaSet, deployment: &Deployment) -> bool {
    let wanted = deployment.spec.as_ref().map(|spec| comparable(&spec.template));
    let present = set.spec.as_ref().and_then(|spec| spec.template.as_ref()).map(comparable);
    wanted.is_some() && wanted == present
}

/// A template without what differs for other reasons than the user's wish.
fn comparable(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    let mut meta = template.metadata.take().unwrap_or_default();
    if let Some(labels) = &mut meta.labels {
        labels.remove(POD_TEMPLATE_HASH);
    }
    meta.labels = meta.labels.filter(|labels| !labels.is_empty());
    meta.annotations = meta.annotations.filter(|annotations| !annotations.is_empty());
    meta.creation_timestamp = None;
    template.metadata = Some(meta);
    template
}

fn is_paused(deployment: &Deployment) -> bool {
    deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false)
}

fn next_revision(sets: &Sets) -> i64 {
    sets.old.iter().map(|set| revision(set)).max().unwrap_or(0) + 1
}

/// Brings the newest ReplicaSet's annotations and readiness delay in line with the Deployment. After a
/// rollback this is what makes an old set's revision the highest again.
fn upkeep(deployment: &Deployment, newest: &Arc<ReplicaSet>, sets: &Sets) -> Option<Action> {
    let present = newest.metadata.annotations.clone().unwrap_or_default();
    let mut annotations = newest_annotations(deployment, &present, next_revision(sets));
    annotations.retain(|key, value| present.get(key) != Some(&*value));
    let wanted = deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let current = newest.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let min_ready_seconds = (wanted != current).then_some(wanted);
    if annotations.is_empty() && min_ready_seconds.is_none() {
        return None;
    }
    let change = Change { replicas: None, min_ready_seconds, annotations };
    Some(Action::PatchSet { set: Arc::clone(newest), change })
}

/// The Deployment carries the revision of its newest ReplicaSet.
fn revision_step(deployment: &Deployment, newest: &ReplicaSet) -> Option<Action> {
    let revision = newest.metadata.annotations.as_ref()?.get(REVISION)?;
    let shown = deployment.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REVISION));
    let leaving = deployment.metadata.deletion_timestamp.is_some();
    (shown != Some(revision) && !leaving).then(|| Action::Annotate { revision: revision.clone() })
}

/// The steps that give ReplicaSets their sizes. With `refresh` also those that only bring up to date
/// what a set remembers about the Deployment's size.
fn sizings(deployment: &Deployment, sizes: Vec<Sizing>, refresh: bool) -> Vec<Action> {
    sizes.into_iter().filter_map(|(set, size)| sizing(deployment, set, size, refresh)).collect()
}

fn sizing(deployment: &Deployment, set: Arc<ReplicaSet>, size: i32, refresh: bool) -> Option<Action> {
    let present = set.metadata.annotations.as_ref();
    let annotations: BTreeMap<String, String> = size_annotations(deployment)
        .into_iter()
        .filter(|(key, value)| present.and_then(|present| present.get(*key)) != Some(value))
        .map(|(key, value)| (key.to_string(), value))
        .collect();
    let resized = replicas(&set) != size;
    if !resized && (!refresh || annotations.is_empty()) {
        return None;
    }
    let change = Change { replicas: resized.then_some(size), min_ready_seconds: None, annotations };
    Some(Action::PatchSet { set, change })
}

/// The ReplicaSet of the Deployment's template.
fn new_set(deployment: &Deployment, sets: &Sets) -> Result<ReplicaSet, serde_json::Error> {
    let Some(spec) = &deployment.spec else { return Ok(ReplicaSet::default()) };
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let hash = short_hash(&spec.template, collisions)?;
    let mut template = spec.template.clone();
    let meta = template.metadata.get_or_insert_default();
    meta.labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.into(), hash.clone());
    let labels = meta.labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(POD_TEMPLATE_HASH.into(), hash.clone());
    let mut annotations = newest_annotations(deployment, &BTreeMap::new(), next_revision(sets));
    annotations.extend(size_annotations(deployment).map(|(key, value)| (key.to_string(), value)));
    Ok(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default())),
            namespace: deployment.metadata.namespace.clone(),
            labels,
            annotations: Some(annotations),
            owner_references: controller_reference(deployment).map(|reference| vec![reference]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(size_of_newest(deployment, &sets.all, 0)),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    })
}

/// The size the newest ReplicaSet may have now, being at `current`.
fn size_of_newest(deployment: &Deployment, all: &[Arc<ReplicaSet>], current: i32) -> i32 {
    let wanted = wanted(deployment);
    if is_recreate(deployment) || current >= wanted {
        return wanted;
    }
    let room = wanted.saturating_add(max_surge(deployment)) - sum(all, replicas);
    current + room.clamp(0, wanted - current)
}

/// A step of a rollout.
enum Step {
    Create,
    Resize(Vec<Sizing>),
    Wait,
}

/// A rolling update: grow the newest set as far as the surge allows; when it cannot grow, shrink the
/// old ones as far as availability allows.
fn roll(deployment: &Deployment, sets: &Sets) -> Step {
    let Some(newest) = &sets.newest else { return Step::Create };
    let size = size_of_newest(deployment, &sets.all, replicas(newest));
    if size != replicas(newest) {
        return Step::Resize(vec![(Arc::clone(newest), size)]);
    }
    Step::Resize(shrink_old(deployment, newest, sets))
}

fn shrink_old(deployment: &Deployment, newest: &ReplicaSet, sets: &Sets) -> Vec<Sizing> {
    let least = wanted(deployment) - max_unavailable(deployment);
    let unready = replicas(newest) - available(newest);
    // What may go at all, counting every pod of the newest set that does not serve yet as missing.
    let spare = sum(&sets.all, replicas) - least - unready;
    if sum(&sets.old, replicas) == 0 || spare <= 0 {
        return Vec::new();
    }
    let mut sizes: Vec<Sizing> = sets.old.iter().map(|set| (Arc::clone(set), replicas(set))).collect();
    // Pods that do not serve go first: nobody misses them, and a broken rollout must not block its repair.
    take(&mut sizes, spare, |set, size| (size - available(set)).max(0));
    // Then serving pods, as many as are available beyond the least.
    take(&mut sizes, sum(&sets.all, available) - least, |_, size| size);
    sizes
}

/// Takes up to `limit` pods away from the sets, oldest first, from each at most what `most` says.
fn take(sizes: &mut [Sizing], mut limit: i32, most: impl Fn(&ReplicaSet, i32) -> i32) {
    for (set, size) in sizes {
        let taken = most(set, *size).min(limit).max(0);
        *size -= taken;
        limit -= taken;
    }
}

/// Replace all pods at once: old sets to zero, wait until their pods are gone, then the new set.
fn recreate(deployment: &Deployment, sets: &Sets, observed: &Observed) -> Step {
    let shrink: Vec<Sizing> =
        sets.old.iter().filter(|set| replicas(set) > 0).map(|set| (Arc::clone(set), 0)).collect();
    if !shrink.is_empty() {
        return Step::Resize(shrink);
    }
    if has_old_pods(sets, observed.pods) {
        return Step::Wait;
    }
    match &sets.newest {
        None => Step::Create,
        Some(newest) => Step::Resize(vec![(Arc::clone(newest), wanted(deployment))]),
    }
}

/// Whether pods of old sets may still run, those that are being deleted included.
fn has_old_pods(sets: &Sets, pods: &[Arc<Pod>]) -> bool {
    let is_old = |uid: &String| sets.old.iter().any(|set| set.metadata.uid.as_ref() == Some(uid));
    let runs = |pod: &Arc<Pod>| {
        !is_terminal(pod) && controller_of(&pod.metadata).is_some_and(|owner| is_old(&owner.uid))
    };
    sum(&sets.old, actual) > 0 || pods.iter().any(runs)
}

/// The old sets beyond the history the user wants to keep: empty ones only, lowest revision first.
fn surplus_history(deployment: &Deployment, old: &[Arc<ReplicaSet>]) -> Vec<Action> {
    let limit =
        deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit).unwrap_or(DEFAULT_HISTORY);
    let mut alive: Vec<&Arc<ReplicaSet>> =
        old.iter().filter(|set| set.metadata.deletion_timestamp.is_none()).collect();
    let surplus = alive.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    alive.sort_by_key(|set| revision(set));
    alive.into_iter().take(surplus).filter(|set| is_idle(set)).cloned().map(Action::DeleteSet).collect()
}

/// Whether a ReplicaSet wants and has no pods, and its status says so about its latest version.
fn is_idle(set: &ReplicaSet) -> bool {
    let observed = set.status.as_ref().and_then(|status| status.observed_generation).unwrap_or(0);
    replicas(set) == 0 && actual(set) == 0 && observed >= set.metadata.generation.unwrap_or(0)
}
