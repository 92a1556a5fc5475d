//! The decision: given a pod and what is there of it, what has to be done now, and when to look again.
//!
//! Pure; time is an argument. Running it twice on the same world gives the same answer, and work that is under way
//! (`Observed::in_flight`) is never asked for again.
//!
//! ```text
//!   volumes ──> sandbox ──> init 1 ──> init 2 ──> … ──> all containers        (images are fetched alongside)
//!                                                          │ exited: back-off, start again
//!   deleted, out of time, or all ended ──> stop containers ──> stop sidecars, last first ──> take down ──> delete object
//! ```

use sampan_runtime::ContainerId;

use super::model::{Planned, PodModel, Role};
use super::observed::{ContainerView, Observed, Op, Run, RunState, Step, Teardown};
use crate::time::SECOND;

/// First pause before a container that ended soon is started again; doubles each time (upstream's numbers).
const BACKOFF_FIRST: i64 = 10 * SECOND;
/// Longest pause.
const BACKOFF_LONGEST: i64 = 300 * SECOND;
/// A container that ran this long starts again with the first pause.
const BACKOFF_FORGIVEN: i64 = 600 * SECOND;
/// How long a failed pull shows its error before it shows that it is waiting.
pub(crate) const PULL_ERROR_SHOWN: i64 = 2 * SECOND;
/// No container gets less than this between signal and kill, unless the pod's own grace period is zero (upstream's
/// `minimumGracePeriodInSeconds`).
const MIN_GRACE: i64 = 2;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Make all volumes, or write those again that show something that changed.
    PrepareVolumes,
    RunSandbox {
        attempt: u32,
    },
    PullImage {
        container: String,
        attempt: u32,
    },
    StartContainer {
        container: String,
        attempt: u32,
        backoff_base: u32,
    },
    StopContainer {
        container: String,
        id: ContainerId,
        /// Seconds.
        grace: i64,
        /// Text of the Killing event.
        message: String,
    },
    /// An attempt before the last two.
    RemoveContainer {
        id: ContainerId,
    },
    /// Pulls and hooks nobody waits for any more.
    CancelPreparation,
    Teardown {
        /// Also records and logs.
        remove: bool,
    },
    /// The API's object, after its final status.
    DeleteObject,
}

/// The decision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) actions: Vec<Action>,
    /// When to decide again even if nothing happens; nanoseconds since the epoch.
    pub(crate) wake: Option<i64>,
    /// Nothing is left to do for this pod, ever.
    pub(crate) done: bool,
}

impl Plan {
    fn wake_at(&mut self, at: i64) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// Why a pod is being ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Deleted in the API, or gone from it.
    Deleted,
    /// `activeDeadlineSeconds` are over.
    Deadline,
    /// All containers have ended for good, or the API says so.
    Finished,
}

/// Decides.
pub(crate) fn plan(model: &PodModel, observed: &Observed, now: i64) -> Plan {
    let mut plan = Plan::default();
    match ending(model, observed, now) {
        Some(ending) => end(model, observed, ending, &mut plan),
        None => {
            run(model, observed, now, &mut plan);
            if let Some(deadline) = model.deadline() {
                plan.wake_at(deadline);
            }
        }
    }
    plan
}

/// Whether and why the pod has to end.
pub(crate) fn ending(model: &PodModel, observed: &Observed, now: i64) -> Option<Ending> {
    if observed.gone || model.is_deleted() {
        return Some(Ending::Deleted);
    }
    if model.has_ended() || has_finished(model, observed) {
        return Some(Ending::Finished);
    }
    model.deadline().filter(|deadline| *deadline <= now).map(|_| Ending::Deadline)
}

/// Whether no container will ever be started again: all have ended for good, or an init container failed for good.
pub(crate) fn has_finished(model: &PodModel, observed: &Observed) -> bool {
    init_failed(model, observed)
        || model.of_role(Role::Main).next().is_some()
            && model.of_role(Role::Main).all(|container| has_ended(container, observed))
}

/// Whether an init container ended badly and is not to be repeated.
pub(crate) fn init_failed(model: &PodModel, observed: &Observed) -> bool {
    !has_begun(model, observed)
        && model.of_role(Role::Init).any(|container| {
            let last = observed.view(container.name()).and_then(ContainerView::last);
            last.is_some_and(|run| {
                run.has_exited() && run.exit_code != 0 && !container.restarts_after(run.exit_code)
            })
        })
}

fn has_ended(container: &Planned, observed: &Observed) -> bool {
    let last = observed.view(container.name()).and_then(ContainerView::last);
    last.is_some_and(|run| run.has_exited() && !container.restarts_after(run.exit_code))
}

/// Whether a main container was made in the sandbox in use: then the init containers are over.
fn has_begun(model: &PodModel, observed: &Observed) -> bool {
    model
        .of_role(Role::Main)
        .any(|container| observed.view(container.name()).and_then(ContainerView::current).is_some())
}

/// Whether all init containers have done their part.
pub(crate) fn is_initialised(model: &PodModel, observed: &Observed) -> bool {
    has_begun(model, observed)
        || model.inits().all(|container| {
            let Some(view) = observed.view(container.name()) else { return false };
            match container.role {
                Role::Sidecar => view.is_running() && view.health.started,
                _ => view.current().is_some_and(|run| run.has_exited() && run.exit_code == 0),
            }
        })
}

fn run(model: &PodModel, observed: &Observed, now: i64, plan: &mut Plan) {
    volumes(observed, now, plan);
    sandbox(observed, now, plan);
    for container in due(model, observed) {
        bring_up(container, observed, now, plan);
    }
    for container in &model.containers {
        let Some(view) = observed.view(container.name()) else { continue };
        if let (Some(kill), Some(run)) = (&view.kill, view.last())
            && run.is_running()
            && kill.id == run.id
        {
            stop(container, run, kill.grace, &kill.message, observed, plan);
        }
        collect_old_runs(view, observed, plan);
    }
}

fn volumes(observed: &Observed, now: i64, plan: &mut Plan) {
    if observed.in_flight.contains(&Op::Volumes) {
        return;
    }
    match &observed.volumes {
        Step::Todo => plan.actions.push(Action::PrepareVolumes),
        Step::Failed { retry_at, .. } if *retry_at > now => plan.wake_at(*retry_at),
        Step::Failed { .. } => plan.actions.push(Action::PrepareVolumes),
        Step::Done if observed.volumes_stale => plan.actions.push(Action::PrepareVolumes),
        Step::Done => match observed.volumes_refresh_at {
            Some(at) if at <= now => plan.actions.push(Action::PrepareVolumes),
            Some(at) => plan.wake_at(at),
            None => {}
        },
    }
}

fn sandbox(observed: &Observed, now: i64, plan: &mut Plan) {
    // Volumes come first: mounts made later would not be seen by a supervisor with its own mount namespace.
    if observed.sandbox.is_some()
        || observed.volumes != Step::Done
        || observed.in_flight.contains(&Op::Sandbox)
    {
        return;
    }
    match &observed.sandbox_step {
        Step::Failed { retry_at, .. } if *retry_at > now => plan.wake_at(*retry_at),
        _ => plan.actions.push(Action::RunSandbox { attempt: observed.next_sandbox }),
    }
}

/// Containers that should run and do not.
fn due<'a>(model: &'a PodModel, observed: &Observed) -> Vec<&'a Planned> {
    let mut due = Vec::new();
    let begun = has_begun(model, observed);
    for container in model.inits() {
        let view = observed.view(container.name());
        let current = view.and_then(ContainerView::current);
        if container.role == Role::Sidecar {
            if !current.is_some_and(Run::is_running) {
                due.push(container);
            }
            let is_up = current.is_some_and(Run::is_running) && view.is_some_and(|view| view.health.started);
            if !begun && !is_up {
                return due;
            }
        } else if !begun {
            match current {
                Some(run) if run.has_exited() && run.exit_code == 0 => continue,
                Some(run) if run.is_running() => return due,
                _ => {
                    due.push(container);
                    return due;
                }
            }
        }
    }
    for container in model.of_role(Role::Main).chain(model.of_role(Role::Ephemeral)) {
        let last = observed.view(container.name()).and_then(ContainerView::last);
        let needs_start = match last {
            None => true,
            Some(run) if run.has_exited() => container.restarts_after(run.exit_code),
            Some(run) => run.state == RunState::Created || !run.in_sandbox,
        };
        if needs_start {
            due.push(container);
        }
    }
    due
}

/// Moves one container that should run a step further: wait for its back-off, fetch its image, start it.
fn bring_up(container: &Planned, observed: &Observed, now: i64, plan: &mut Plan) {
    let name = container.name().to_string();
    let blank = ContainerView::default();
    let view = observed.view(&name).unwrap_or(&blank);
    let busy = [Op::Pull(name.clone()), Op::Start(name.clone()), Op::Stop(name.clone())];
    if busy.iter().any(|op| observed.in_flight.contains(op)) {
        return;
    }
    if let Some(failure) = &view.failure {
        if failure.is_pull && now < failure.since + PULL_ERROR_SHOWN {
            plan.wake_at(failure.since + PULL_ERROR_SHOWN);
        }
        if now < failure.retry_at {
            plan.wake_at(failure.retry_at);
            return;
        }
    }
    if let Some(at) = restart_at(view)
        && now < at
    {
        plan.wake_at(at);
        return;
    }
    let attempt = view.next_attempt();
    if view.image_for != Some(attempt) {
        plan.actions.push(Action::PullImage { container: name, attempt });
    } else if observed.sandbox.is_some() && observed.volumes == Step::Done {
        plan.actions.push(Action::StartContainer { container: name, attempt, backoff_base: next_base(view) });
    }
}

/// When a container that ended may start again; `None` when it has not ended.
pub(crate) fn restart_at(view: &ContainerView) -> Option<i64> {
    let run = view.last().filter(|run| run.has_exited())?;
    Some(run.finished_at.saturating_add(backoff(run)))
}

/// The pause after this run: nothing the first time, then 10 s, 20 s … 5 min; forgiven by ten minutes of running.
pub(crate) fn backoff(run: &Run) -> i64 {
    let level = if ran_long(run) { 0 } else { run.attempt.saturating_sub(run.backoff_base) };
    match level {
        0 => 0,
        level => BACKOFF_FIRST.checked_shl(level.min(16) - 1).unwrap_or(BACKOFF_LONGEST).min(BACKOFF_LONGEST),
    }
}

fn ran_long(run: &Run) -> bool {
    run.started_at > 0 && run.finished_at.saturating_sub(run.started_at) >= BACKOFF_FORGIVEN
}

/// From which attempt on the next run's back-off counts.
fn next_base(view: &ContainerView) -> u32 {
    match view.last() {
        Some(run) if ran_long(run) => run.attempt,
        Some(run) => run.backoff_base,
        None => 0,
    }
}

fn stop(container: &Planned, run: &Run, grace: i64, message: &str, observed: &Observed, plan: &mut Plan) {
    // A stop under way is only replaced by a more urgent one.
    if observed.stopping.get(container.name()).is_some_and(|under_way| *under_way <= grace) {
        return;
    }
    plan.actions.push(Action::StopContainer {
        container: container.name().to_string(),
        id: run.id.clone(),
        grace,
        message: message.to_string(),
    });
}

/// The last attempt and the one before it stay, for `lastState` and `kubectl logs --previous`.
fn collect_old_runs(view: &ContainerView, observed: &Observed, plan: &mut Plan) {
    let keep_from = view.runs.len().saturating_sub(2);
    for run in &view.runs[..keep_from] {
        if run.is_known && run.has_exited() && !observed.in_flight.contains(&Op::Remove(run.id.clone())) {
            plan.actions.push(Action::RemoveContainer { id: run.id.clone() });
        }
    }
}

/// Seconds a container gets to end.
pub(crate) fn ending_grace(model: &PodModel, observed: &Observed, ending: Ending) -> i64 {
    let of_object = model.pod.metadata.deletion_grace_period_seconds;
    let grace = match ending {
        // Removed without a word (force): nobody waits for the containers any more.
        Ending::Deleted if observed.gone => of_object.unwrap_or(0),
        Ending::Deleted => of_object.unwrap_or_else(|| model.grace()),
        Ending::Deadline | Ending::Finished => model.grace(),
    };
    if model.grace() == 0 { grace.max(0) } else { grace.max(MIN_GRACE) }
}

fn end(model: &PodModel, observed: &Observed, ending: Ending, plan: &mut Plan) {
    let is_preparing = |op: &Op| matches!(op, Op::Pull(_) | Op::PostStart(_));
    if observed.in_flight.iter().any(is_preparing) {
        plan.actions.push(Action::CancelPreparation);
    }
    let is_making = |op: &Op| matches!(op, Op::Start(_) | Op::Sandbox | Op::Volumes);
    let grace = ending_grace(model, observed, ending);
    let running = stop_in_order(model, observed, grace, plan);
    // What is being made is waited for: it takes milliseconds, and half-made things are harder to take away.
    if running || observed.in_flight.iter().any(is_making) {
        return;
    }
    take_down(model, observed, ending, plan);
}

/// Stops what runs: first everything that is not a sidecar, then the sidecars one by one, last first. Says whether
/// anything still runs.
fn stop_in_order(model: &PodModel, observed: &Observed, grace: i64, plan: &mut Plan) -> bool {
    let runs = |container: &&Planned| observed.is_running(container.name());
    let first: Vec<&Planned> =
        model.containers.iter().filter(|container| container.role != Role::Sidecar).filter(runs).collect();
    let next = if first.is_empty() {
        let sidecars: Vec<&Planned> = model.of_role(Role::Sidecar).filter(runs).collect();
        sidecars.last().copied().into_iter().collect()
    } else {
        first
    };
    for container in &next {
        if let Some(run) = observed.view(container.name()).and_then(ContainerView::last) {
            let message = format!("Stopping container {}", container.name());
            stop(container, run, grace, &message, observed, plan);
        }
    }
    !next.is_empty()
}

fn take_down(model: &PodModel, observed: &Observed, ending: Ending, plan: &mut Plan) {
    let deleted = ending == Ending::Deleted;
    let wanted = if deleted { Teardown::Removed } else { Teardown::Stopped };
    if observed.in_flight.contains(&Op::Teardown) || observed.in_flight.contains(&Op::Delete) {
        return;
    }
    if observed.teardown < wanted {
        // The last words of the containers are in the status before their records go.
        if deleted && !observed.gone && observed.teardown == Teardown::Nothing && has_sandbox(observed) {
            plan.actions.push(Action::Teardown { remove: false });
        } else if !deleted || observed.gone || observed.final_status_written || !has_runs(model, observed) {
            plan.actions.push(Action::Teardown { remove: deleted });
        }
        return;
    }
    if deleted {
        if observed.gone {
            plan.done = true;
        } else {
            plan.actions.push(Action::DeleteObject);
        }
    }
}

fn has_sandbox(observed: &Observed) -> bool {
    observed.sandbox.is_some()
}

fn has_runs(model: &PodModel, observed: &Observed) -> bool {
    model
        .containers
        .iter()
        .any(|container| observed.view(container.name()).is_some_and(|view| view.last().is_some()))
}

/// Pause after a failed pull or a container that could not be made: 10 s, doubling to 5 min.
pub(crate) fn next_delay(before: Option<i64>) -> i64 {
    before.map_or(BACKOFF_FIRST, |delay| delay.saturating_mul(2)).min(BACKOFF_LONGEST)
}

/// Seconds a killed container gets: the probe's own grace period, or the pod's.
pub(crate) fn kill_grace(model: &PodModel, of_probe: Option<i64>) -> i64 {
    let grace = of_probe.unwrap_or_else(|| model.grace());
    grace.max(MIN_GRACE)
}

#[cfg(test)]
mod tests;
