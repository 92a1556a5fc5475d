//! The status of a pod as users know it: phase, conditions, container states, addresses.
//!
//! Pure. Rules and wording follow `pkg/kubelet/kubelet_pods.go` and `pkg/kubelet/status/generate.go`, because scripts,
//! controllers and people wait for exactly these words.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodIP, PodStatus,
};
use sampan_runtime::ContainerId;

use super::model::{Planned, PodModel, Role};
use super::observed::{ContainerView, Observed, Run, RunState};
use super::plan::{self, Ending};
use crate::time::{self, time_if_set};

/// What the status needs besides pod and world.
pub(crate) struct StatusInput<'a> {
    pub(crate) model: &'a PodModel,
    pub(crate) observed: &'a Observed,
    /// Address of the node.
    pub(crate) host_ip: &'a str,
    /// Last words of ended containers.
    pub(crate) messages: &'a BTreeMap<ContainerId, String>,
    pub(crate) now: i64,
}

/// Computes the status. Fields that belong to others (`PodScheduled`, `nominatedNodeName` …) are left out.
pub(crate) fn status(input: &StatusInput<'_>) -> PodStatus {
    let (model, observed) = (input.model, input.observed);
    let ending = plan::ending(model, observed, input.now);
    let before = model.pod.status.clone().unwrap_or_default();
    let (phase, reason, message) = phase(input, ending);
    let containers: Vec<ContainerStatus> =
        model.of_role(Role::Main).map(|container| container_status(input, container)).collect();
    let inits: Vec<ContainerStatus> =
        model.inits().map(|container| container_status(input, container)).collect();
    let ephemeral: Vec<ContainerStatus> =
        model.of_role(Role::Ephemeral).map(|container| container_status(input, container)).collect();
    let addresses = addresses(input, &before);
    let conditions = conditions(input, &phase, &containers, &inits);
    PodStatus {
        phase: Some(phase),
        reason,
        message,
        conditions: Some(conditions),
        container_statuses: Some(containers),
        init_container_statuses: (!inits.is_empty()).then_some(inits),
        ephemeral_container_statuses: (!ephemeral.is_empty()).then_some(ephemeral),
        host_ip: Some(input.host_ip.to_string()),
        host_ips: Some(vec![HostIP { ip: input.host_ip.to_string() }]),
        pod_ip: addresses.first().cloned(),
        pod_ips: (!addresses.is_empty())
            .then(|| addresses.iter().map(|ip| PodIP { ip: ip.clone() }).collect()),
        start_time: before.start_time.or_else(|| Some(time::time(input.now))),
        qos_class: Some(model.qos.name().to_string()),
        observed_generation: model.pod.metadata.generation,
        ..PodStatus::default()
    }
}

fn addresses(input: &StatusInput<'_>, before: &PodStatus) -> Vec<String> {
    match &input.observed.sandbox {
        Some(sandbox) => sandbox.addresses.clone(),
        // An ended pod keeps the address it had, as upstream does.
        None => before.pod_ips.iter().flatten().map(|ip| ip.ip.clone()).collect(),
    }
}

type PhaseReason = (String, Option<String>, Option<String>);

fn phase(input: &StatusInput<'_>, ending: Option<Ending>) -> PhaseReason {
    let (model, observed) = (input.model, input.observed);
    let before = model.pod.status.as_ref();
    if model.has_ended() {
        let reason = before.and_then(|status| status.reason.clone());
        return (model.phase().to_string(), reason, before.and_then(|status| status.message.clone()));
    }
    if ending == Some(Ending::Deadline) {
        let message = "Pod was active on the node longer than the specified deadline";
        return ("Failed".into(), Some("DeadlineExceeded".into()), Some(message.into()));
    }
    (phase_of_containers(model, observed, ending).to_string(), None, None)
}

fn phase_of_containers(model: &PodModel, observed: &Observed, ending: Option<Ending>) -> &'static str {
    if plan::init_failed(model, observed) {
        return "Failed";
    }
    let last = |container: &Planned| observed.view(container.name()).and_then(ContainerView::last).cloned();
    let runs: Vec<(&Planned, Option<Run>)> =
        model.of_role(Role::Main).map(|container| (container, last(container))).collect();
    let all_exited =
        !runs.is_empty() && runs.iter().all(|(_, run)| run.as_ref().is_some_and(Run::has_exited));
    let all_succeeded =
        all_exited && runs.iter().all(|(_, run)| run.as_ref().is_some_and(|run| run.exit_code == 0));
    // A pod that is taken away and has no process left has come to its end, whatever its restart policy.
    let is_over = matches!(ending, Some(Ending::Finished))
        || matches!(ending, Some(Ending::Deleted)) && !any_running(model, observed);
    if is_over && all_exited {
        return if all_succeeded { "Succeeded" } else { "Failed" };
    }
    if is_over && ending == Some(Ending::Deleted) && observed.in_flight.is_empty() {
        return if runs.iter().any(|(_, run)| run.is_some()) { "Failed" } else { pending_or(model) };
    }
    let never_ran = |run: &Option<Run>| match run {
        None => true,
        Some(run) => run.state == RunState::Created && run.attempt == 0,
    };
    let has_waiting = runs.iter().any(|(_, run)| never_ran(run));
    if has_waiting || !plan::is_initialised(model, observed) && !runs.iter().any(|(_, run)| run.is_some()) {
        return "Pending";
    }
    "Running"
}

fn pending_or(model: &PodModel) -> &'static str {
    if model.phase() == "Running" { "Failed" } else { "Pending" }
}

fn any_running(model: &PodModel, observed: &Observed) -> bool {
    model.containers.iter().any(|container| observed.is_running(container.name()))
}

/// One entry of `containerStatuses`.
fn container_status(input: &StatusInput<'_>, container: &Planned) -> ContainerStatus {
    let blank = ContainerView::default();
    let view = input.observed.view(container.name()).unwrap_or(&blank);
    let last = view.last();
    let (state, last_state) = states(input, container, view);
    let started = view.is_running() && view.health.started;
    let is_done_init =
        container.role == Role::Init && last.is_some_and(|run| run.has_exited() && run.exit_code == 0);
    let shown = last.filter(|run| run.state != RunState::Created);
    ContainerStatus {
        name: container.name().to_string(),
        image: last
            .map(|run| run.image.clone())
            .filter(|image| !image.is_empty())
            .or_else(|| container.spec.image.clone())
            .unwrap_or_default(),
        image_id: last.map(|run| run.image_id.clone()).unwrap_or_default(),
        container_id: shown.filter(|run| !run.id.0.is_empty()).map(|run| container_id(&run.id)),
        ready: is_done_init || view.is_running() && view.health.ready && container.role != Role::Init,
        restart_count: i32::try_from(last.map_or(0, |run| run.attempt)).unwrap_or(i32::MAX),
        started: Some(started),
        state: Some(state),
        last_state: Some(last_state.unwrap_or_default()),
        ..ContainerStatus::default()
    }
}

fn container_id(id: &ContainerId) -> String {
    format!("sampan://{}", id.0)
}

/// `state` and `lastState`.
fn states(
    input: &StatusInput<'_>,
    container: &Planned,
    view: &ContainerView,
) -> (ContainerState, Option<ContainerState>) {
    let previous = view.runs.iter().rev().nth(1).map(|run| terminated(input, run));
    let Some(run) = view.last() else { return (waiting(input, container, view), None) };
    match run.state {
        RunState::Created => (waiting(input, container, view), previous),
        RunState::Running => {
            let running = ContainerStateRunning { started_at: time_if_set(run.started_at) };
            (ContainerState { running: Some(running), ..ContainerState::default() }, previous)
        }
        RunState::Exited => match waits_for_restart(input, container, view, run) {
            Some(state) => (state, Some(terminated(input, run))),
            None => (terminated(input, run), previous),
        },
    }
}

/// An ended container that will be started again shows why it is not running yet.
fn waits_for_restart(
    input: &StatusInput<'_>,
    container: &Planned,
    view: &ContainerView,
    run: &Run,
) -> Option<ContainerState> {
    if plan::ending(input.model, input.observed, input.now).is_some() {
        return None;
    }
    if !container.restarts_after(run.exit_code) {
        return None;
    }
    if let Some(failure) = &view.failure {
        return Some(waiting_state(failure.reason, &failure.message));
    }
    if plan::restart_at(view).is_some_and(|at| at > input.now) {
        let delay = time::until(0, plan::backoff(run));
        let message = format!(
            "back-off {} restarting failed container={} pod={}",
            time::go_duration(delay),
            container.name(),
            input.model.label()
        );
        return Some(waiting_state("CrashLoopBackOff", &message));
    }
    None
}

fn waiting(input: &StatusInput<'_>, container: &Planned, view: &ContainerView) -> ContainerState {
    if let Some(failure) = &view.failure {
        return waiting_state(failure.reason, &failure.message);
    }
    let has_inits = input.model.inits().next().is_some();
    let reason = match container.role {
        Role::Ephemeral => "ContainerCreating",
        _ if has_inits && !plan::is_initialised(input.model, input.observed) => "PodInitializing",
        _ => "ContainerCreating",
    };
    waiting_state(reason, "")
}

fn waiting_state(reason: &str, message: &str) -> ContainerState {
    let waiting = ContainerStateWaiting {
        reason: Some(reason.to_string()),
        message: (!message.is_empty()).then(|| message.to_string()),
    };
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn terminated(input: &StatusInput<'_>, run: &Run) -> ContainerState {
    let own_words = input.messages.get(&run.id).filter(|message| !message.is_empty());
    let message = own_words.or(Some(&run.message)).filter(|message| !message.is_empty()).cloned();
    let reason = match run.reason.as_str() {
        "" if run.exit_code == 0 => "Completed",
        "" => "Error",
        reason => reason,
    };
    let terminated = ContainerStateTerminated {
        container_id: (!run.id.0.is_empty()).then(|| container_id(&run.id)),
        exit_code: run.exit_code,
        finished_at: time_if_set(run.finished_at),
        started_at: time_if_set(run.started_at),
        message,
        reason: Some(reason.to_string()),
        signal: None,
    };
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

/// A condition before its times are known.
struct Verdict {
    type_: &'static str,
    holds: bool,
    reason: Option<&'static str>,
    message: Option<String>,
}

impl Verdict {
    fn holds(type_: &'static str) -> Self {
        Self { type_, holds: true, reason: None, message: None }
    }

    fn fails(type_: &'static str, reason: &'static str, message: Option<String>) -> Self {
        Self { type_, holds: false, reason: Some(reason), message }
    }
}

fn conditions(
    input: &StatusInput<'_>,
    phase: &str,
    containers: &[ContainerStatus],
    inits: &[ContainerStatus],
) -> Vec<PodCondition> {
    let containers_ready = containers_ready(input, phase, containers, inits);
    let ready = ready(input, phase, &containers_ready);
    let verdicts = [sandbox_ready(input), initialised(input, phase), ready, containers_ready];
    let before =
        input.model.pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    verdicts.into_iter().map(|verdict| dated(input, verdict, before)).collect()
}

/// Keeps the time of the last change.
fn dated(input: &StatusInput<'_>, verdict: Verdict, before: &[PodCondition]) -> PodCondition {
    let status = if verdict.holds { "True" } else { "False" };
    let same = before.iter().find(|condition| condition.type_ == verdict.type_ && condition.status == status);
    PodCondition {
        type_: verdict.type_.to_string(),
        status: status.to_string(),
        reason: verdict.reason.map(Into::into),
        message: verdict.message,
        last_probe_time: None,
        last_transition_time: same
            .and_then(|condition| condition.last_transition_time.clone())
            .or_else(|| Some(time::time(input.now))),
        observed_generation: input.model.pod.metadata.generation,
    }
}

fn sandbox_ready(input: &StatusInput<'_>) -> Verdict {
    let type_ = "PodReadyToStartContainers";
    let is_ready = input.observed.sandbox.as_ref().is_some_and(|sandbox| !sandbox.addresses.is_empty());
    Verdict { type_, holds: is_ready, reason: None, message: None }
}

fn was_true(input: &StatusInput<'_>, type_: &str) -> bool {
    let conditions = input.model.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|list| {
        list.iter().any(|condition| condition.type_ == type_ && condition.status == "True")
    })
}

fn initialised(input: &StatusInput<'_>, phase: &str) -> Verdict {
    let type_ = "Initialized";
    let has_ended = matches!(phase, "Succeeded" | "Failed");
    if phase == "Succeeded" {
        return Verdict { reason: Some("PodCompleted"), ..Verdict::holds(type_) };
    }
    if plan::is_initialised(input.model, input.observed) || has_ended && was_true(input, type_) {
        return Verdict::holds(type_);
    }
    let incomplete: Vec<&str> = input
        .model
        .inits()
        .filter(|container| {
            let view = input.observed.view(container.name());
            let last = view.and_then(ContainerView::last);
            match container.role {
                Role::Sidecar => !view.is_some_and(|view| view.is_running() && view.health.started),
                _ => !last.is_some_and(|run| run.has_exited() && run.exit_code == 0),
            }
        })
        .map(Planned::name)
        .collect();
    let message = format!("containers with incomplete status: [{}]", incomplete.join(" "));
    Verdict::fails(type_, "ContainersNotInitialized", Some(message))
}

fn containers_ready(
    input: &StatusInput<'_>,
    phase: &str,
    containers: &[ContainerStatus],
    inits: &[ContainerStatus],
) -> Verdict {
    let type_ = "ContainersReady";
    match phase {
        "Succeeded" => return Verdict::fails(type_, "PodCompleted", None),
        "Failed" => return Verdict::fails(type_, "PodFailed", None),
        _ => {}
    }
    let is_sidecar = |status: &&ContainerStatus| {
        input.model.container(&status.name).is_some_and(|container| container.role == Role::Sidecar)
    };
    let unready: Vec<&str> = inits
        .iter()
        .filter(is_sidecar)
        .chain(containers)
        .filter(|status| !status.ready)
        .map(|status| status.name.as_str())
        .collect();
    if unready.is_empty() {
        return Verdict::holds(type_);
    }
    Verdict::fails(
        type_,
        "ContainersNotReady",
        Some(format!("containers with unready status: [{}]", unready.join(" "))),
    )
}

fn ready(input: &StatusInput<'_>, phase: &str, containers_ready: &Verdict) -> Verdict {
    let type_ = "Ready";
    match phase {
        "Succeeded" => return Verdict::fails(type_, "PodCompleted", None),
        "Failed" => return Verdict::fails(type_, "PodFailed", None),
        _ => {}
    }
    if !containers_ready.holds {
        return Verdict::fails(type_, "ContainersNotReady", containers_ready.message.clone());
    }
    let gates = input.model.spec().and_then(|spec| spec.readiness_gates.as_deref()).unwrap_or_default();
    let conditions = input.model.pod.status.as_ref().and_then(|status| status.conditions.as_deref());
    let mut closed = Vec::new();
    for gate in gates {
        let gate = gate.condition_type.as_str();
        match conditions.unwrap_or_default().iter().find(|condition| condition.type_ == gate) {
            None => closed
                .push(format!("corresponding condition of pod readiness gate \"{gate}\" does not exist.")),
            Some(condition) if condition.status != "True" => closed.push(format!(
                "the status of pod readiness gate \"{gate}\" is not \"True\", but {}",
                condition.status
            )),
            Some(_) => {}
        }
    }
    match closed.is_empty() {
        true => Verdict::holds(type_),
        false => Verdict::fails(type_, "ReadinessGatesNotReady", Some(closed.join(", "))),
    }
}

#[cfg(test)]
mod tests;
