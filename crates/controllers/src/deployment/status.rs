//! The status of a Deployment: counts, availability, and the story of its rollout.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::Sets;
use super::sizes::{actual, available, max_unavailable, ready, replicas, sum, wanted};
use crate::common::condition::{FALSE, TRUE, UNKNOWN};

const AVAILABLE: &str = "Available";
const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// The rollout is over and all pods are available.
const COMPLETED: &str = "NewReplicaSetAvailable";
/// The rollout has not moved for longer than the user allows.
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
/// The ReplicaSet of a new template could not be created.
pub(super) const CREATE_FAILED: &str = "ReplicaSetCreateError";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";
const CREATED: &str = "NewReplicaSetCreated";
const FOUND: &str = "FoundNewReplicaSet";
const UPDATED: &str = "ReplicaSetUpdated";

/// What the status says beyond counts, while a plan is made.
pub(super) struct Progress {
    /// Whether this step belongs to a rollout, so that its progress is judged.
    pub(super) rolling_out: bool,
    conditions: Vec<DeploymentCondition>,
    now: Timestamp,
}

impl Progress {
    /// The conditions so far, with a pause or its end noted. While a Deployment is paused its rollout
    /// must not time out; once it goes on the time starts anew.
    pub(super) fn of(deployment: &Deployment, now: Timestamp) -> Self {
        let status = deployment.status.as_ref();
        let conditions = status.and_then(|status| status.conditions.clone()).unwrap_or_default();
        let mut progress = Self { rolling_out: false, conditions, now };
        let reason = progress.reason();
        let paused = deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
        if deadline(deployment).is_none() || reason == Some(TIMED_OUT) {
            return progress;
        }
        match (paused, reason == Some(PAUSED)) {
            (true, false) => progress.set(PROGRESSING, UNKNOWN, PAUSED, "Deployment is paused".into()),
            (false, true) => progress.set(PROGRESSING, UNKNOWN, RESUMED, "Deployment is resumed".into()),
            _ => {}
        }
        progress
    }

    fn progressing(&self) -> Option<&DeploymentCondition> {
        self.conditions.iter().find(|condition| condition.type_ == PROGRESSING)
    }

    fn reason(&self) -> Option<&str> {
        self.progressing()?.reason.as_deref()
    }

    fn remove(&mut self, type_: &str) {
        self.conditions.retain(|condition| condition.type_ != type_);
    }

    /// Sets a condition. One with this status and reason already is left as it is, and the time of
    /// the last transition moves only with the status.
    fn set(&mut self, type_: &str, status: &str, reason: &str, message: String) {
        let current = self.conditions.iter().find(|condition| condition.type_ == type_);
        let same_status = current.filter(|current| current.status == status);
        if same_status.is_some_and(|current| current.reason.as_deref() == Some(reason)) {
            return;
        }
        let now = Time(Timestamp::from_second(self.now.as_second()).unwrap_or(self.now));
        let since = same_status.and_then(|current| current.last_transition_time.clone());
        self.remove(type_);
        self.conditions.push(DeploymentCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message),
            last_transition_time: Some(since.unwrap_or_else(|| now.clone())),
            last_update_time: Some(now),
        });
    }

    /// Notes that the rollout moved: the deadline counts from now.
    fn moved(&mut self, message: String) {
        let since = self.progressing().filter(|condition| condition.status == TRUE);
        let since = since.and_then(|condition| condition.last_transition_time.clone());
        self.remove(PROGRESSING);
        self.set(PROGRESSING, TRUE, UPDATED, message);
        if let (Some(since), Some(condition)) = (since, self.conditions.last_mut()) {
            condition.last_transition_time = Some(since);
        }
    }
}

/// The seconds a rollout may stand still; `None` for any time.
fn deadline(deployment: &Deployment) -> Option<i32> {
    let seconds = deployment.spec.as_ref()?.progress_deadline_seconds?;
    (seconds != i32::MAX).then_some(seconds)
}

/// The status of a Deployment with these sets, of which `created` is about to be made, and when to
/// look at a rollout that may be stuck.
pub(super) fn status(
    deployment: &Deployment,
    sets: &Sets,
    created: Option<&ReplicaSet>,
    mut progress: Progress,
) -> (DeploymentStatus, Option<Duration>) {
    let mut status = counts(deployment, sets, created);
    if sum(&sets.all, available) >= wanted(deployment) - max_unavailable(deployment) {
        let message = "Deployment has minimum availability.".into();
        progress.set(AVAILABLE, TRUE, "MinimumReplicasAvailable", message);
    } else {
        let message = "Deployment does not have minimum availability.".into();
        progress.set(AVAILABLE, FALSE, "MinimumReplicasUnavailable", message);
    }
    let again =
        progress.rolling_out.then(|| judge(deployment, sets, created, &status, &mut progress)).flatten();
    status.conditions = Some(progress.conditions);
    (status, again)
}

fn counts(deployment: &Deployment, sets: &Sets, created: Option<&ReplicaSet>) -> DeploymentStatus {
    let asked = sum(&sets.all, replicas) + created.map_or(0, replicas);
    let positive = |number: i32| (number > 0).then_some(number);
    let before = deployment.status.as_ref();
    DeploymentStatus {
        replicas: positive(sum(&sets.all, actual)),
        updated_replicas: positive(sets.newest.as_deref().map_or(0, actual)),
        ready_replicas: positive(sum(&sets.all, ready)),
        available_replicas: positive(sum(&sets.all, available)),
        unavailable_replicas: positive(asked - sum(&sets.all, available)),
        terminating_replicas: Some(sum(&sets.all, terminating)),
        observed_generation: deployment.metadata.generation,
        collision_count: before.and_then(|before| before.collision_count),
        conditions: None,
    }
}

fn terminating(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0)
}

/// Judges the progress of a rollout and says when to judge again if nothing happens.
fn judge(
    deployment: &Deployment,
    sets: &Sets,
    created: Option<&ReplicaSet>,
    status: &DeploymentStatus,
    progress: &mut Progress,
) -> Option<Duration> {
    copy_failure(sets, progress);
    let Some(deadline) = deadline(deployment) else {
        progress.remove(PROGRESSING);
        return None;
    };
    let quoted = |set: &ReplicaSet| format!("{:?}", set.metadata.name.as_deref().unwrap_or_default());
    if let Some(created) = created {
        let message = format!("Created new replica set {}", quoted(created));
        progress.set(PROGRESSING, TRUE, CREATED, message);
    } else if let Some(newest) = sets.newest.as_deref().filter(|_| progress.progressing().is_none()) {
        progress.set(PROGRESSING, TRUE, FOUND, format!("Found new replica set {}", quoted(newest)));
    }
    let settled = status.replicas == status.updated_replicas && progress.reason() == Some(COMPLETED);
    if settled {
        return None;
    }
    let subject = match created.or(sets.newest.as_deref()) {
        Some(newest) => format!("ReplicaSet {}", quoted(newest)),
        None => format!("Deployment {:?}", deployment.metadata.name.as_deref().unwrap_or_default()),
    };
    if is_complete(deployment, Some(status)) {
        progress.set(PROGRESSING, TRUE, COMPLETED, format!("{subject} has successfully progressed."));
        return None;
    }
    if has_moved(deployment.status.as_ref(), status) {
        progress.moved(format!("{subject} is progressing."));
    }
    let left = seconds_left(progress, deadline)?;
    if left < 0 {
        progress.set(PROGRESSING, FALSE, TIMED_OUT, format!("{subject} has timed out progressing."));
        return None;
    }
    // One second more, for the condition's times are cut to whole seconds.
    Some(Duration::from_secs(u64::try_from(left).ok()? + 1))
}

/// How long the rollout may still stand; `None` when no time runs.
fn seconds_left(progress: &Progress, deadline: i32) -> Option<i64> {
    let condition = progress.progressing()?;
    if matches!(condition.reason.as_deref(), Some(COMPLETED | TIMED_OUT)) {
        return None;
    }
    let since = condition.last_update_time.as_ref()?.0.as_second();
    Some(since + i64::from(deadline) - progress.now.as_second())
}

/// Whether all pods are of the newest template and available.
pub(super) fn is_complete(deployment: &Deployment, status: Option<&DeploymentStatus>) -> bool {
    let Some(status) = status else { return false };
    let wanted = wanted(deployment);
    [status.updated_replicas, status.replicas, status.available_replicas]
        .into_iter()
        .all(|count| count.unwrap_or(0) == wanted)
        && status.observed_generation >= deployment.metadata.generation
}

/// Whether anything got better since the last status: more new pods, fewer old ones, more that serve.
fn has_moved(before: Option<&DeploymentStatus>, now: &DeploymentStatus) -> bool {
    let nothing = DeploymentStatus::default();
    let before = before.unwrap_or(&nothing);
    let old = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    now.updated_replicas.unwrap_or(0) > before.updated_replicas.unwrap_or(0)
        || old(now) < old(before)
        || now.ready_replicas.unwrap_or(0) > before.ready_replicas.unwrap_or(0)
        || now.available_replicas.unwrap_or(0) > before.available_replicas.unwrap_or(0)
}

/// A ReplicaSet that cannot get its pods is the Deployment's trouble too, the newest first of all.
fn copy_failure(sets: &Sets, progress: &mut Progress) {
    let failed = |set: &Arc<ReplicaSet>| failure_of(set).cloned();
    match sets.newest.as_ref().and_then(failed).or_else(|| sets.all.iter().find_map(failed)) {
        Some(failure) => {
            let (reason, message) = (failure.reason.unwrap_or_default(), failure.message.unwrap_or_default());
            progress.set(REPLICA_FAILURE, &failure.status, &reason, message);
        }
        None => progress.remove(REPLICA_FAILURE),
    }
}

fn failure_of(set: &ReplicaSet) -> Option<&ReplicaSetCondition> {
    let conditions = set.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == REPLICA_FAILURE)
}

/// The status after the ReplicaSet of a new template could not be created.
pub(super) fn create_failed(deployment: &Deployment, message: String, now: Timestamp) -> DeploymentStatus {
    let mut progress = Progress::of(deployment, now);
    if deadline(deployment).is_some() {
        progress.set(PROGRESSING, FALSE, CREATE_FAILED, message);
    }
    DeploymentStatus {
        conditions: Some(progress.conditions),
        ..deployment.status.clone().unwrap_or_default()
    }
}

/// The status after the hash of the template met another ReplicaSet's name.
pub(super) fn collided(deployment: &Deployment) -> DeploymentStatus {
    let status = deployment.status.clone().unwrap_or_default();
    DeploymentStatus {
        collision_count: Some(status.collision_count.unwrap_or(0).saturating_add(1)),
        ..status
    }
}
