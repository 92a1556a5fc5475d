//! What is: a pod's sandbox, containers, volumes, and what the worker remembers about attempts that failed.
//!
//! Everything that matters after a restart of the agent comes from the runtime or from the pod's last status; the rest
//! (health, failures) is only remembered, and losing it costs one more attempt.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as api;
use sampan_runtime::{ContainerId, ContainerState, ContainerStatus, SandboxId};

use crate::time;

/// Annotation of a container that remembers from which attempt on its restart back-off counts.
pub(crate) const BACKOFF_BASE: &str = "sampan.io/backoff-base";

/// Reason of a container whose records are lost, as upstream names it.
pub(crate) const STATUS_UNKNOWN: &str = "ContainerStatusUnknown";

/// Something that is done once for a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Step {
    /// Not tried yet.
    #[default]
    Todo,
    /// Done.
    Done,
    /// Tried; not again before `retry_at` or before something it waits for appears.
    Failed {
        /// For the user.
        message: String,
        /// Nanoseconds since the epoch.
        retry_at: i64,
    },
}

/// Work of a pod that is under way. At most one of each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op {
    Volumes,
    Sandbox,
    /// By container.
    Pull(String),
    /// By container.
    Start(String),
    /// By container.
    PostStart(String),
    /// By container.
    Stop(String),
    Remove(ContainerId),
    Teardown,
    Delete,
}

/// How far the pod has been taken down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Teardown {
    /// Nothing.
    #[default]
    Nothing,
    /// Sandbox stopped, network and volumes given back; records and logs are still there.
    Stopped,
    /// Nothing of the pod is left.
    Removed,
}

/// A usable sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    /// Empty with host network until filled with the node's.
    pub(crate) addresses: Vec<String>,
}

/// Life of one run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunState {
    Created,
    Running,
    Exited,
}

/// One attempt of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) id: ContainerId,
    pub(crate) attempt: u32,
    /// Whether it belongs to the sandbox in use.
    pub(crate) in_sandbox: bool,
    /// Whether the runtime knows it; otherwise it is remembered by the pod's status only.
    pub(crate) is_known: bool,
    pub(crate) state: RunState,
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) exit_code: i32,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) image: String,
    pub(crate) image_id: String,
    pub(crate) backoff_base: u32,
}

impl Run {
    /// A run as the runtime reports it.
    pub(crate) fn of(status: &ContainerStatus, sandbox: Option<&SandboxId>) -> Self {
        let in_sandbox = sandbox == Some(&status.sandbox_id);
        let state = match status.state {
            ContainerState::Created => RunState::Created,
            ContainerState::Running => RunState::Running,
            ContainerState::Exited | ContainerState::Unknown => RunState::Exited,
        };
        let is_lost = status.state == ContainerState::Unknown;
        let base = status.annotations.get(BACKOFF_BASE).and_then(|text| text.parse().ok());
        Self {
            id: status.id.clone(),
            attempt: status.metadata.attempt,
            in_sandbox,
            is_known: true,
            state,
            started_at: status.started_at,
            finished_at: if is_lost && status.finished_at == 0 {
                status.started_at
            } else {
                status.finished_at
            },
            exit_code: match (is_lost, status.reason.as_str()) {
                (true, _) => 137,
                (false, START_ERROR) => START_ERROR_CODE,
                _ => status.exit_code,
            },
            reason: if is_lost { STATUS_UNKNOWN.to_string() } else { status.reason.clone() },
            message: status.message.clone(),
            image: status.image.clone(),
            image_id: status.image_id.clone(),
            backoff_base: base.unwrap_or(0),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == RunState::Running
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.state == RunState::Exited
    }

    /// Whether it counts as ended because its process could not be started.
    pub(crate) fn has_failed_to_start(&self) -> bool {
        self.has_exited() && self.reason == START_ERROR
    }
}

/// Why a container could not be brought to run, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Waiting reason.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) since: i64,
    pub(crate) retry_at: i64,
    /// Pause that led to `retry_at`; the next one is twice as long.
    pub(crate) delay: i64,
    /// Made by a pull (its reason turns into `ImagePullBackOff`).
    pub(crate) is_pull: bool,
}

/// What probes say about the running attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// The startup probe passed, or there is none.
    pub(crate) started: bool,
    /// The readiness probe passes, or there is none and the container has started.
    pub(crate) ready: bool,
}

/// A running container has to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kill {
    /// Which attempt; a later one is innocent.
    pub(crate) id: ContainerId,
    /// Text of the Killing event.
    pub(crate) message: String,
    /// Seconds.
    pub(crate) grace: i64,
}

/// One container of the pod.
#[derive(Clone, Debug, Default)]
pub(crate) struct ContainerView {
    /// Ascending by attempt; the last one counts.
    pub(crate) runs: Vec<Run>,
    /// The attempt for which the image is at hand.
    pub(crate) image_for: Option<u32>,
    pub(crate) failure: Option<Failure>,
    pub(crate) health: Health,
    pub(crate) kill: Option<Kill>,
}

impl ContainerView {
    pub(crate) fn last(&self) -> Option<&Run> {
        self.runs.last()
    }

    /// The latest attempt in the sandbox in use.
    pub(crate) fn current(&self) -> Option<&Run> {
        self.last().filter(|run| run.in_sandbox)
    }

    pub(crate) fn is_running(&self) -> bool {
        self.last().is_some_and(Run::is_running)
    }

    /// Attempt number of the next start.
    pub(crate) fn next_attempt(&self) -> u32 {
        match self.last() {
            // A container that was made but never started is still to be started.
            Some(run) if run.state == RunState::Created && run.in_sandbox => run.attempt,
            Some(run) => run.attempt.saturating_add(1),
            None => 0,
        }
    }
}

/// Everything the planner looks at besides the pod itself.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) volumes: Step,
    /// Volumes have to be written again: something they show has changed.
    pub(crate) volumes_stale: bool,
    /// When a token in a volume has to be renewed.
    pub(crate) volumes_refresh_at: Option<i64>,
    /// The sandbox in use.
    pub(crate) sandbox: Option<Sandbox>,
    /// Outcome of the last attempt to make one.
    pub(crate) sandbox_step: Step,
    /// Attempt number of the next sandbox.
    pub(crate) next_sandbox: u32,
    pub(crate) containers: BTreeMap<String, ContainerView>,
    pub(crate) teardown: Teardown,
    /// The object no longer exists in the API.
    pub(crate) gone: bool,
    pub(crate) in_flight: BTreeSet<Op>,
    /// Grace in seconds of the stops under way.
    pub(crate) stopping: BTreeMap<String, i64>,
    /// A status that ends the pod has been written (or the API has it).
    pub(crate) final_status_written: bool,
}

impl Observed {
    pub(crate) fn view(&self, name: &str) -> Option<&ContainerView> {
        self.containers.get(name)
    }

    pub(crate) fn is_running(&self, name: &str) -> bool {
        self.view(name).is_some_and(ContainerView::is_running)
    }
}

/// What the last status tells about a container that the runtime has no records of (a new boot, a lost sandbox). A
/// container that ran and is not known any more counts as killed: it must never be taken for one that never ran.
pub(crate) fn run_from_status(status: &api::ContainerStatus, now: i64) -> Option<Run> {
    let attempt = u32::try_from(status.restart_count).unwrap_or(0);
    let state = status.state.as_ref()?;
    let id = status.container_id.as_deref().unwrap_or_default();
    let id = ContainerId(id.rsplit("//").next().unwrap_or_default().to_string());
    let mut run = Run {
        id,
        attempt,
        in_sandbox: false,
        is_known: false,
        state: RunState::Exited,
        started_at: 0,
        finished_at: now,
        exit_code: 137,
        reason: STATUS_UNKNOWN.to_string(),
        message: "The container could not be located when the pod was terminated".to_string(),
        image: status.image.clone(),
        image_id: status.image_id.clone(),
        backoff_base: attempt,
    };
    let terminated = match (&state.terminated, &state.running) {
        (Some(terminated), _) => Some(terminated),
        (None, Some(running)) => {
            run.started_at = running.started_at.as_ref().map_or(0, time::nanos);
            return Some(run);
        }
        // Waiting: either it never ran, or it waits for its next attempt and the last one tells the rest.
        (None, None) => status.last_state.as_ref().and_then(|state| state.terminated.as_ref()),
    }?;
    run.started_at = terminated.started_at.as_ref().map_or(0, time::nanos);
    run.finished_at = terminated.finished_at.as_ref().map_or(now, time::nanos);
    run.exit_code = terminated.exit_code;
    run.reason = terminated.reason.clone().unwrap_or_default();
    run.message = terminated.message.clone().unwrap_or_default();
    run.backoff_base = 0;
    Some(run)
}

/// Reason of a container whose process could not be started, and its exit code: through CRI every such container ends
/// with 128, whatever a shell would say.
pub(crate) const START_ERROR: &str = "StartError";
/// See [`START_ERROR`].
pub(crate) const START_ERROR_CODE: i32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_status_stands_in_for_lost_records() {
        let status = |state: api::ContainerState| api::ContainerStatus {
            restart_count: 2,
            container_id: Some("sampan://abc".into()),
            state: Some(state),
            ..api::ContainerStatus::default()
        };
        let terminated = api::ContainerStateTerminated { exit_code: 3, ..Default::default() };
        let rows = [
            (api::ContainerState { running: Some(Default::default()), ..Default::default() }, Some((2, 137))),
            (api::ContainerState { terminated: Some(terminated), ..Default::default() }, Some((2, 3))),
            (api::ContainerState { waiting: Some(Default::default()), ..Default::default() }, None),
        ];
        for (state, expected) in rows {
            let run = run_from_status(&status(state), 0);
            assert_eq!(run.map(|run| (run.attempt, run.exit_code)), expected);
        }
    }
}
