//! One pod's worker: looks at the world, asks the planner, starts what it says, writes the status, sleeps.
//!
//! Operations run as tasks beside the worker and report back; the worker itself never waits for one. All mutable
//! knowledge about the pod is here, in one task, so that there is nothing to lock.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use sampan_runtime::{ContainerId, PodSandbox, RuntimeError, SandboxId, SandboxState};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};

use super::model::PodModel;
use super::observed::{Failure, Kill, Observed, Op, Run, Sandbox, Step, Teardown};
use super::operations::{self, Done, Operations};
use super::plan::{self, Action, PULL_ERROR_SHOWN, next_delay, plan};
use super::pod_record::{adopted_health, remembered_runs, revision, shows_difference};
use super::probing::{ProbeReport, Probing};
use super::start_trace::{self, StartTrace};
use super::status::{StatusInput, status};
use super::status_patch;
use super::termination_message;
use crate::context::Context;
use crate::error::{chain, is_conflict, is_not_found};
use crate::time::{self, SECOND, now};

/// First pause after a failed operation that is repeated.
const RETRY_FIRST: i64 = SECOND;

/// The same status is written again at most this often.
const STATUS_REPEAT: i64 = 10 * SECOND;

/// What wakes a worker.
#[derive(Debug)]
pub(crate) enum Wake {
    /// The object as it is now.
    Pod(Arc<Pod>),
    /// The object is no longer in the API.
    Gone,
    /// Something ended in the runtime.
    Runtime,
    /// A sandbox ended in the runtime, or events were lost and one may have.
    Sandbox,
    /// A config map or secret the pod names has changed.
    Source,
    /// A probe has something to say.
    Probe(ProbeReport),
}

/// What a pod's worker is born with.
pub(crate) struct Birth {
    pub(crate) context: Arc<Context>,
    pub(crate) pod: Arc<Pod>,
    /// Sandboxes of this pod found in the runtime.
    pub(crate) sandboxes: Vec<PodSandbox>,
    pub(crate) sender: mpsc::UnboundedSender<Wake>,
    pub(crate) receiver: mpsc::UnboundedReceiver<Wake>,
}

/// Runs the pod until nothing of it is left.
pub(crate) async fn run(birth: Birth) {
    let Birth { context, pod, sandboxes, sender, receiver } = birth;
    let mut worker = Worker::new(context, pod, sandboxes, sender);
    worker.run(receiver).await;
}

/// Sorts a pod's sandboxes, oldest first. Time decides between equal attempts: were the newest one, with the containers
/// in it, taken for an older one, it would be stopped as a left-over.
pub(crate) fn age(sandbox: &PodSandbox) -> (u32, i64) {
    (sandbox.metadata.attempt, sandbox.created_at)
}

struct Worker {
    context: Arc<Context>,
    operations: Arc<Operations>,
    model: Arc<PodModel>,
    observed: Observed,
    /// Ids of all sandboxes of the pod, oldest first.
    sandboxes: Vec<SandboxId>,
    /// Runs that only the last status knows, by container.
    remembered: BTreeMap<String, Run>,
    /// Starts that failed: the runtime may not record them as ended.
    failed_starts: HashMap<ContainerId, Run>,
    messages: BTreeMap<ContainerId, String>,
    tasks: JoinSet<Done>,
    task_ops: HashMap<Id, (Op, AbortHandle)>,
    status_task: JoinSet<Result<Pod, kube::Error>>,
    /// When a status may be tried again after a failure.
    status_retry: Option<i64>,
    status_pause: i64,
    retry_pauses: BTreeMap<&'static str, i64>,
    probing: Probing,
    /// The sandbox may have died.
    check_sandbox: bool,
    /// The last status patch that was accepted and when: one that changes nothing must not be sent for ever.
    last_patch: Option<(serde_json::Value, i64)>,
    /// An attempt whose waiting for a restart has been told as an event.
    told_backoff: BTreeMap<String, u32>,
    start_trace: StartTrace,
}

impl Worker {
    fn new(
        context: Arc<Context>,
        pod: Arc<Pod>,
        mut sandboxes: Vec<PodSandbox>,
        sender: mpsc::UnboundedSender<Wake>,
    ) -> Self {
        sandboxes.sort_by_key(age);
        let model = Arc::new(PodModel::new(pod));
        let observed = Observed {
            next_sandbox: sandboxes.last().map_or(0, |sandbox| sandbox.metadata.attempt + 1),
            final_status_written: model.has_ended(),
            ..Observed::default()
        };
        let remembered = remembered_runs(&model);
        for sandbox in &sandboxes {
            context.owners.add(&sandbox.id, model.uid());
        }
        Self {
            operations: Arc::new(Operations::new(Arc::clone(&context))),
            probing: Probing::new(Arc::clone(&context), sender),
            start_trace: StartTrace::new(&model, !sandboxes.is_empty()),
            sandboxes: sandboxes.into_iter().map(|sandbox| sandbox.id).collect(),
            context,
            model,
            observed,
            remembered,
            failed_starts: HashMap::new(),
            messages: BTreeMap::new(),
            tasks: JoinSet::new(),
            task_ops: HashMap::new(),
            status_task: JoinSet::new(),
            status_retry: None,
            status_pause: 0,
            retry_pauses: BTreeMap::new(),
            check_sandbox: false,
            last_patch: None,
            told_backoff: BTreeMap::new(),
        }
    }

    async fn run(&mut self, mut receiver: mpsc::UnboundedReceiver<Wake>) {
        self.adopt_sandbox().await;
        loop {
            if let Err(error) = self.observe().await {
                tracing::warn!(pod = self.model.label(), error = chain(&error), "cannot look at the pod");
            }
            let now = now();
            self.start_trace.look(&self.model, &self.observed, now);
            self.turn_pull_errors(now);
            let plan = plan(&self.model, &self.observed, now);
            if plan.done && self.tasks.is_empty() {
                return;
            }
            for action in plan.actions {
                self.begin(action);
            }
            self.tell_backoffs(now);
            let status_wake = self.write_status(now);
            let wake = [plan.wake, status_wake].into_iter().flatten().min();
            if !self.wait(&mut receiver, wake).await {
                return;
            }
        }
    }

    /// Waits for anything to happen, then takes everything that has happened. `false` when the agent ends.
    async fn wait(&mut self, receiver: &mut mpsc::UnboundedReceiver<Wake>, wake: Option<i64>) -> bool {
        let pause = wake.map(|at| time::until(now(), at));
        tokio::select! {
            message = receiver.recv() => match message {
                Some(message) => self.take(message),
                None => return false,
            },
            Some(result) = self.tasks.join_next_with_id() => self.finish(result),
            Some(result) = self.status_task.join_next() => self.status_written(result),
            () = async { match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            } } => {}
        }
        while let Ok(message) = receiver.try_recv() {
            self.take(message);
        }
        while let Some(result) = self.tasks.try_join_next_with_id() {
            self.finish(result);
        }
        true
    }

    fn take(&mut self, message: Wake) {
        match message {
            Wake::Pod(pod) => self.take_pod(pod),
            Wake::Gone => self.observed.gone = true,
            Wake::Runtime => {}
            Wake::Sandbox => self.check_sandbox = true,
            Wake::Source => self.sources_changed(),
            Wake::Probe(report) => self.probed(report),
        }
    }

    /// Takes the newer of what is known and what has come: our own writes answer before the watch shows them.
    fn take_pod(&mut self, pod: Arc<Pod>) {
        if revision(&pod) < revision(&self.model.pod) {
            return;
        }
        if shows_difference(&self.model.pod, &pod) {
            self.observed.volumes_stale = true;
        }
        self.model = Arc::new(PodModel::new(pod));
    }

    /// Something that was missing may be there now: whatever waits for it is tried again.
    fn sources_changed(&mut self) {
        match &mut self.observed.volumes {
            Step::Done => self.observed.volumes_stale = true,
            step => *step = Step::Todo,
        }
        for view in self.observed.containers.values_mut() {
            if view.failure.as_ref().is_some_and(|failure| failure.reason == "CreateContainerConfigError") {
                view.failure = None;
            }
        }
    }

    fn probed(&mut self, report: ProbeReport) {
        let Some(view) = self.observed.containers.get_mut(&report.container) else { return };
        if view.last().is_none_or(|run| run.id != report.id) {
            return;
        }
        if let Some(started) = report.started {
            view.health.started = started;
        }
        if let Some(ready) = report.ready {
            view.health.ready = ready;
        }
        if let Some(kill) = report.kill {
            let grace = plan::kill_grace(&self.model, kill.grace);
            view.kill = Some(Kill { id: report.id, message: kill.message, grace });
        }
    }

    /// After a restart of the agent: the sandbox that lives is used again.
    async fn adopt_sandbox(&mut self) {
        let Some(newest) = self.sandboxes.last().cloned() else { return };
        let listed = match self.context.runtime.list_pod_sandboxes().await {
            Ok(listed) => listed,
            Err(error) => {
                tracing::warn!(pod = self.model.label(), error = chain(&error), "cannot list sandboxes");
                return;
            }
        };
        let Some(found) = listed.into_iter().find(|sandbox| sandbox.id == newest) else { return };
        if found.state == SandboxState::Ready {
            let known = self.context.runtime.pod_addresses(&newest).await.unwrap_or_default();
            let addresses: Vec<String> = if self.model.host_network() {
                vec![self.context.config.address.to_string()]
            } else {
                known.iter().map(ToString::to_string).collect()
            };
            // Without one, the agent ended between making the sandbox and giving it an address. It holds no container
            // yet; the next attempt takes its place.
            if !addresses.is_empty() {
                self.observed.sandbox = Some(Sandbox { id: newest, addresses });
                self.observed.sandbox_step = Step::Done;
            }
        }
    }

    /// Brings [`Observed`] up to what the runtime says.
    async fn observe(&mut self) -> Result<(), RuntimeError> {
        let newest = self.sandboxes.last().cloned();
        let mut runs: BTreeMap<String, Vec<Run>> = BTreeMap::new();
        for sandbox in self.sandboxes.clone() {
            let listed = match self.context.runtime.list_containers(Some(&sandbox)).await {
                Err(RuntimeError::NotFound(_)) => Vec::new(),
                other => other?,
            };
            for container in listed {
                let run = Run::of(&container, newest.as_ref());
                let run = match self.failed_starts.get(&run.id) {
                    Some(failed) if !run.has_exited() && !run.is_running() => {
                        Run { in_sandbox: run.in_sandbox, ..failed.clone() }
                    }
                    _ => run,
                };
                runs.entry(container.metadata.name).or_default().push(run);
            }
        }
        for (name, remembered) in &self.remembered {
            let known = runs.entry(name.clone()).or_default();
            if known.iter().all(|run| run.attempt < remembered.attempt) {
                known.push(remembered.clone());
            }
        }
        for (name, mut list) in runs {
            list.sort_by_key(|run| run.attempt);
            if let Some(run) = list.last().filter(|run| run.has_exited() && run.is_known) {
                // Outlives the records, which go with their sandbox.
                let remembered = Run { is_known: false, in_sandbox: false, ..run.clone() };
                self.remembered.insert(name.clone(), remembered);
            }
            self.update_view(&name, list);
        }
        self.lose_dead_sandbox(newest).await?;
        self.read_messages().await;
        Ok(())
    }

    fn update_view(&mut self, name: &str, runs: Vec<Run>) {
        let adopted_health = adopted_health(&self.model, name, runs.last());
        let view = self.observed.containers.entry(name.to_string()).or_default();
        let before = view.last().map(|run| (run.id.clone(), run.state));
        let after = runs.last().map(|run| (run.id.clone(), run.state));
        view.runs = runs;
        if before == after {
            return;
        }
        let Some(run) = view.runs.last().filter(|run| run.is_running()).cloned() else {
            view.health = Default::default();
            self.probing.stop(name);
            return;
        };
        view.failure = None;
        view.kill = None;
        let Some(planned) = self.model.container(name) else { return };
        let addresses =
            self.observed.sandbox.as_ref().map(|sandbox| sandbox.addresses.clone()).unwrap_or_default();
        view.health = self.probing.start(&self.model, planned, &run, addresses, adopted_health);
    }

    /// The supervisor may have been killed: then the pod needs a new sandbox.
    async fn lose_dead_sandbox(&mut self, newest: Option<SandboxId>) -> Result<(), RuntimeError> {
        // A sandbox that ends because the pod ends is no loss.
        if plan::ending(&self.model, &self.observed, now()).is_some() {
            return Ok(());
        }
        let (Some(newest), Some(_)) = (newest, &self.observed.sandbox) else { return Ok(()) };
        let views = self.observed.containers.values();
        let has_lost =
            views.flat_map(|view| view.last()).any(|run| run.reason == super::observed::STATUS_UNKNOWN);
        if !has_lost && !std::mem::take(&mut self.check_sandbox) {
            return Ok(());
        }
        let listed = self.context.runtime.list_pod_sandboxes().await?;
        let lives = listed.iter().any(|sandbox| sandbox.id == newest && sandbox.state == SandboxState::Ready);
        if !lives && self.observed.teardown == Teardown::Nothing {
            self.context.events.pod(
                &self.model.pod,
                "SandboxChanged",
                "Pod sandbox changed, it will be killed and re-created.",
            );
            self.observed.sandbox = None;
            self.observed.sandbox_step = Step::Todo;
        }
        Ok(())
    }

    /// Reads the last words of containers that have ended since.
    async fn read_messages(&mut self) {
        let mut unread = Vec::new();
        for (name, view) in &self.observed.containers {
            for run in view.runs.iter().rev().take(2) {
                if run.has_exited() && run.is_known && !self.messages.contains_key(&run.id) {
                    unread.push((name.clone(), run.clone()));
                }
            }
        }
        for (name, run) in unread {
            let Some(planned) = self.model.container(&name) else { continue };
            let message = termination_message::read(&self.context.config, &self.model, planned, &run).await;
            self.messages.insert(run.id, message);
        }
    }

    /// A pull that failed a moment ago shows its error; from now on it shows that it waits.
    fn turn_pull_errors(&mut self, now: i64) {
        let model = Arc::clone(&self.model);
        for (name, view) in &mut self.observed.containers {
            let Some(failure) = view.failure.as_mut() else { continue };
            let is_due = failure.is_pull && now >= failure.since + PULL_ERROR_SHOWN && failure.retry_at > now;
            if !is_due || failure.reason != "ErrImagePull" {
                continue;
            }
            let Some(planned) = model.container(name) else { continue };
            let image = planned.spec.image.as_deref().unwrap_or_default();
            let words = format!("Back-off pulling image \"{image}\"");
            failure.message = format!("{words}: ErrImagePull: {}", failure.message);
            failure.reason = "ImagePullBackOff";
            let events = &self.context.events;
            events.container(&model.pod, &planned.path(), "BackOff", &words);
            events.container_warning(&model.pod, &planned.path(), "Failed", "Error: ImagePullBackOff");
        }
    }

    fn tell_backoffs(&mut self, now: i64) {
        if plan::ending(&self.model, &self.observed, now).is_some() {
            return;
        }
        for (name, view) in &self.observed.containers {
            let Some(run) = view.last().filter(|run| run.has_exited()) else { continue };
            let waits = plan::restart_at(view).is_some_and(|at| at > now);
            let Some(planned) = self.model.container(name) else { continue };
            if !waits
                || !planned.restarts_after(run.exit_code)
                || self.told_backoff.get(name) == Some(&run.attempt)
            {
                continue;
            }
            self.told_backoff.insert(name.clone(), run.attempt);
            let message =
                format!("Back-off restarting failed container {name} in pod {}", self.model.label());
            self.context.events.container_warning(&self.model.pod, &planned.path(), "BackOff", &message);
        }
    }

    /// Starts the operation behind an action.
    fn begin(&mut self, action: Action) {
        let operations = Arc::clone(&self.operations);
        let model = Arc::clone(&self.model);
        let facts = operations::facts(&self.context, self.observed.sandbox.as_ref());
        match action {
            Action::PrepareVolumes => {
                self.observed.volumes_stale = false;
                self.observed.volumes_refresh_at = None;
                self.spawn(Op::Volumes, async move { operations.prepare_volumes(&model, &facts).await });
            }
            Action::RunSandbox { attempt } => {
                let stale = self.sandboxes.clone();
                self.spawn(Op::Sandbox, async move { operations.run_sandbox(&model, attempt, stale).await });
            }
            Action::PullImage { container, attempt } => {
                let op = Op::Pull(container.clone());
                self.spawn(op, async move { operations.pull(&model, &container, attempt).await });
            }
            Action::StartContainer { container, attempt, backoff_base } => {
                let Some(sandbox) = self.observed.sandbox.clone() else { return };
                let op = Op::Start(container.clone());
                let order =
                    operations::StartOrder { container, attempt, backoff_base, sandbox: sandbox.id, facts };
                self.spawn(op, async move { operations.start(&model, order).await });
            }
            Action::StopContainer { container, id, grace, message } => {
                let op = Op::Stop(container.clone());
                self.abort(&op);
                self.observed.stopping.insert(container.clone(), grace);
                self.probing.stop_liveness(&container);
                let ip = facts.pod_ips.first().cloned();
                let order = operations::StopOrder { container, id, grace, message, ip };
                self.spawn(op, async move { operations.stop(&model, order).await });
            }
            Action::RemoveContainer { id } => {
                let op = Op::Remove(id.clone());
                self.messages.remove(&id);
                self.failed_starts.remove(&id);
                self.spawn(op, async move { operations.remove_container(&model, id).await });
            }
            Action::CancelPreparation => self.cancel_preparation(),
            Action::Teardown { remove } => {
                self.probing.stop_all();
                let sandboxes = self.sandboxes.clone();
                self.spawn(
                    Op::Teardown,
                    async move { operations.tear_down(&model, sandboxes, remove).await },
                );
            }
            Action::DeleteObject => {
                self.spawn(Op::Delete, async move { operations.delete_object(&model).await });
            }
        }
    }

    fn spawn(&mut self, op: Op, work: impl Future<Output = Done> + Send + 'static) {
        let handle = self.tasks.spawn(start_trace::told(self.start_trace.part(&op), work));
        self.task_ops.insert(handle.id(), (op.clone(), handle));
        self.observed.in_flight.insert(op);
    }

    fn abort(&mut self, op: &Op) {
        for (_, handle) in self.task_ops.values().filter(|(known, _)| known == op) {
            handle.abort();
        }
    }

    fn cancel_preparation(&mut self) {
        for (op, handle) in self.task_ops.values() {
            if matches!(op, Op::Pull(_) | Op::PostStart(_)) {
                handle.abort();
            }
        }
    }

    fn finish(&mut self, result: Result<(Id, Done), JoinError>) {
        let (id, done) = match result {
            Ok((id, done)) => (id, Some(done)),
            Err(error) => (error.id(), None),
        };
        let Some((op, _)) = self.task_ops.remove(&id) else { return };
        // A stop that was replaced by a more urgent one leaves the other in flight.
        if !self.task_ops.values().any(|(other, _)| *other == op) {
            self.observed.in_flight.remove(&op);
            if let Op::Stop(container) = &op {
                self.observed.stopping.remove(container);
            }
        }
        if let Some(done) = done {
            self.apply(done);
        }
    }

    /// Remembers the outcome of an operation.
    fn apply(&mut self, done: Done) {
        if let Some(why) = done.failure() {
            self.start_trace.failed(why);
        }
        match done {
            Done::Volumes(Ok(refresh_at)) => {
                self.retry_pauses.remove("volumes");
                self.observed.volumes = Step::Done;
                self.observed.volumes_refresh_at = refresh_at;
            }
            Done::Volumes(Err(message)) => {
                let retry_at = self.next_retry("volumes");
                // Volumes that are in use stay usable with what they last showed.
                if self.observed.volumes == Step::Done {
                    self.observed.volumes_refresh_at = Some(retry_at);
                } else {
                    self.observed.volumes = Step::Failed { message, retry_at };
                }
            }
            Done::Sandbox(Ok(made)) => {
                self.retry_pauses.remove("sandbox");
                self.sandboxes.retain(|id| !made.removed.contains(id) && *id != made.sandbox.id);
                self.sandboxes.push(made.sandbox.id.clone());
                self.observed.next_sandbox = made.attempt + 1;
                self.observed.sandbox = Some(made.sandbox);
                self.observed.sandbox_step = Step::Done;
            }
            Done::Sandbox(Err(message)) => {
                let retry_at = self.next_retry("sandbox");
                self.observed.sandbox_step = Step::Failed { message, retry_at };
            }
            Done::Pulled { container, attempt } => {
                let view = self.observed.containers.entry(container).or_default();
                view.image_for = Some(attempt);
                if view.failure.as_ref().is_some_and(|failure| failure.is_pull) {
                    view.failure = None;
                }
            }
            Done::Failed { container, reason, message, is_pull } => {
                self.container_failed(container, reason, message, is_pull);
            }
            Done::StartFailed { container, run, message } => {
                self.failed_starts.insert(run.id.clone(), run);
                self.container_failed(container, "RunContainerError", message, false);
            }
            Done::Started { container, id } => self.begin_post_start(container, id),
            Done::PostStart { container, id, failed } => {
                if let (true, Some(view)) = (failed, self.observed.containers.get_mut(&container)) {
                    let grace = plan::kill_grace(&self.model, None);
                    view.kill = Some(Kill { id, message: "FailedPostStartHook".to_string(), grace });
                }
            }
            Done::TornDown(Ok(teardown)) => {
                self.observed.teardown = teardown;
                self.observed.sandbox = None;
                if teardown == Teardown::Removed {
                    self.sandboxes.clear();
                }
            }
            Done::Deleted(true) => self.observed.gone = true,
            Done::TornDown(Err(())) | Done::Deleted(false) | Done::Nothing => {}
        }
    }

    fn next_retry(&mut self, what: &'static str) -> i64 {
        let pause = self.retry_pauses.get(what).map_or(RETRY_FIRST, |pause| (pause * 2).min(60 * SECOND));
        self.retry_pauses.insert(what, pause);
        now() + pause
    }

    fn container_failed(&mut self, container: String, reason: &'static str, message: String, is_pull: bool) {
        let view = self.observed.containers.entry(container).or_default();
        let before =
            view.failure.as_ref().filter(|failure| failure.is_pull == is_pull).map(|failure| failure.delay);
        let now = now();
        // A start that failed is an ended attempt, which has its own back-off.
        let delay = if reason == "RunContainerError" { 0 } else { next_delay(before) };
        view.failure = Some(Failure { reason, message, since: now, retry_at: now + delay, delay, is_pull });
        if is_pull {
            view.image_for = None;
        }
    }

    fn begin_post_start(&mut self, container: String, id: ContainerId) {
        if let Some(view) = self.observed.containers.get_mut(&container) {
            view.failure = None;
        }
        let Some(planned) = self.model.container(&container) else { return };
        if planned.spec.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()).is_none() {
            return;
        }
        let operations = Arc::clone(&self.operations);
        let model = Arc::clone(&self.model);
        let ip = self.observed.sandbox.as_ref().and_then(|sandbox| sandbox.addresses.first().cloned());
        let op = Op::PostStart(container.clone());
        self.spawn(op, async move { operations.post_start(&model, &container, id, ip).await });
    }

    /// Writes the status if it differs from what the API has; one write at a time. Returns when to try again.
    fn write_status(&mut self, now: i64) -> Option<i64> {
        if self.observed.gone || self.observed.teardown == Teardown::Removed || !self.status_task.is_empty() {
            return None;
        }
        if let Some(retry) = self.status_retry.filter(|retry| *retry > now) {
            return Some(retry);
        }
        let desired = status(&StatusInput {
            model: &self.model,
            observed: &self.observed,
            host_ip: &self.context.config.address.to_string(),
            messages: &self.messages,
            now,
        });
        let any_running =
            self.model.containers.iter().any(|container| self.observed.is_running(container.name()));
        let patch = match self.model.has_ended() && self.observed.containers.is_empty() {
            // Nothing is known beyond what the API already says.
            true => None,
            false => status_patch::patch(&self.model.pod, &desired),
        };
        // A patch that was accepted and yet asks for the same again would go on for ever.
        if let Some(patch) = patch.filter(|patch| !self.is_repeated(patch, now)) {
            self.last_patch = Some((patch.clone(), now));
            self.status_task.spawn(status_patch::send(
                Arc::clone(&self.context),
                Arc::clone(&self.model),
                patch,
            ));
            return None;
        }
        let is_over = !any_running
            && self.observed.in_flight.is_empty()
            && plan::ending(&self.model, &self.observed, now).is_some();
        if is_over && !self.observed.final_status_written {
            self.observed.final_status_written = true;
            return Some(now);
        }
        None
    }

    fn is_repeated(&self, patch: &serde_json::Value, now: i64) -> bool {
        self.last_patch.as_ref().is_some_and(|(last, at)| last == patch && now - at < STATUS_REPEAT)
    }

    fn status_written(&mut self, result: Result<Result<Pod, kube::Error>, JoinError>) {
        match result {
            Ok(Ok(pod)) => {
                self.status_retry = None;
                self.status_pause = 0;
                self.take_pod(Arc::new(pod));
            }
            // The object is gone, or another one has its name: the watch will tell.
            Ok(Err(error)) if is_not_found(&error) || is_conflict(&error) => self.pause_status(),
            Ok(Err(error)) => {
                // A status the server will never take must not keep a deleted pod for ever.
                let is_refused = matches!(&error, kube::Error::Api(status) if status.code == 422);
                self.observed.final_status_written |= is_refused && self.model.is_deleted();
                tracing::warn!(
                    pod = self.model.label(),
                    error = chain(&error),
                    "failed to write the pod's status"
                );
                self.pause_status();
            }
            Err(_) => {}
        }
    }

    fn pause_status(&mut self) {
        self.last_patch = None;
        self.status_pause = (self.status_pause * 2).clamp(SECOND / 10, 10 * SECOND);
        self.status_retry = Some(now() + self.status_pause);
    }
}
