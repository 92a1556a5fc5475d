//! When a container is asked: thresholds, delays, and the order startup before readiness and liveness.
//!
//! One task and one timer per probe of a running container; it reports to the pod's worker only when a verdict
//! changes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use sampan_runtime::ContainerId;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::model::{Planned, PodModel, Role};
use super::observed::{Health, Run};
use super::worker::Wake;
use crate::context::Context;
use crate::probes::{self, ProbeFailure};
use crate::time;

/// Which question a probe answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Startup,
    Readiness,
    Liveness,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Readiness => "Readiness",
            Self::Liveness => "Liveness",
        }
    }
}

/// What a probe tells the worker.
#[derive(Debug)]
pub(crate) struct ProbeReport {
    pub(crate) container: String,
    pub(crate) id: ContainerId,
    pub(crate) started: Option<bool>,
    pub(crate) ready: Option<bool>,
    pub(crate) kill: Option<ProbeKill>,
}

/// A probe wants the container to be stopped.
#[derive(Debug)]
pub(crate) struct ProbeKill {
    pub(crate) message: String,
    /// The probe's own grace period in seconds.
    pub(crate) grace: Option<i64>,
}

/// Counts answers until a threshold; pure.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Judge {
    success_threshold: i32,
    failure_threshold: i32,
    last: Option<bool>,
    in_a_row: i32,
}

impl Judge {
    fn new(probe: &Probe) -> Self {
        Self {
            success_threshold: probe.success_threshold.unwrap_or(1).max(1),
            failure_threshold: probe.failure_threshold.unwrap_or(3).max(1),
            last: None,
            in_a_row: 0,
        }
    }

    /// The verdict, once there were enough equal answers in a row.
    fn hear(&mut self, success: bool) -> Option<bool> {
        if self.last == Some(success) {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.last = Some(success);
            self.in_a_row = 1;
        }
        let threshold = if success { self.success_threshold } else { self.failure_threshold };
        (self.in_a_row >= threshold).then_some(success)
    }
}

/// The probes of one pod.
pub(crate) struct Probing {
    context: Arc<Context>,
    sender: mpsc::UnboundedSender<Wake>,
    tasks: BTreeMap<String, Vec<(Kind, AbortHandle)>>,
}

impl Drop for Probing {
    fn drop(&mut self) {
        self.stop_all();
    }
}

impl Probing {
    pub(crate) fn new(context: Arc<Context>, sender: mpsc::UnboundedSender<Wake>) -> Self {
        Self { context, sender, tasks: BTreeMap::new() }
    }

    /// Begins to ask a container that runs; returns what holds until the first answers.
    pub(crate) fn start(
        &mut self,
        model: &PodModel,
        planned: &Planned,
        run: &Run,
        addresses: Vec<String>,
        adopted: Option<Health>,
    ) -> Health {
        self.stop(planned.name());
        let spec = &planned.spec;
        // Ordinary init containers and debugging containers have no probes.
        let probed = matches!(planned.role, Role::Main | Role::Sidecar);
        let startup = spec.startup_probe.clone().filter(|_| probed);
        let readiness = spec.readiness_probe.clone().filter(|_| probed);
        let liveness = spec.liveness_probe.clone().filter(|_| probed);
        let started = startup.is_none() || adopted.is_some_and(|health| health.started);
        let ready = started && (readiness.is_none() || adopted.is_some_and(|health| health.ready));
        let subject = Subject {
            context: Arc::clone(&self.context),
            sender: self.sender.clone(),
            pod: Arc::clone(&model.pod),
            path: planned.path(),
            container: Arc::clone(spec),
            id: run.id.clone(),
            started_at: run.started_at,
            address: addresses.into_iter().next().unwrap_or_default(),
            ready_when_started: readiness.is_none(),
        };
        let (gate, opened) = watch::channel(started);
        let mut tasks = Vec::new();
        if let Some(probe) = startup.filter(|_| !started) {
            let handle = tokio::spawn(subject.clone().ask_until_started(probe, gate)).abort_handle();
            tasks.push((Kind::Startup, handle));
        }
        for (kind, probe) in [(Kind::Readiness, readiness), (Kind::Liveness, liveness)] {
            let Some(probe) = probe else { continue };
            let handle =
                tokio::spawn(subject.clone().ask_for_ever(kind, probe, opened.clone())).abort_handle();
            tasks.push((kind, handle));
        }
        self.tasks.insert(planned.name().to_string(), tasks);
        Health { started, ready }
    }

    /// The container ended.
    pub(crate) fn stop(&mut self, container: &str) {
        for (_, handle) in self.tasks.remove(container).unwrap_or_default() {
            handle.abort();
        }
    }

    /// The container is being stopped: whether it is alive matters no longer, whether it is ready still does.
    pub(crate) fn stop_liveness(&mut self, container: &str) {
        for (_, handle) in
            self.tasks.get(container).into_iter().flatten().filter(|(kind, _)| *kind != Kind::Readiness)
        {
            handle.abort();
        }
    }

    pub(crate) fn stop_all(&mut self) {
        for (_, handle) in std::mem::take(&mut self.tasks).into_values().flatten() {
            handle.abort();
        }
    }
}

/// Who is asked.
#[derive(Clone)]
struct Subject {
    context: Arc<Context>,
    sender: mpsc::UnboundedSender<Wake>,
    pod: Arc<Pod>,
    path: String,
    container: Arc<Container>,
    id: ContainerId,
    started_at: i64,
    address: String,
    /// Without a readiness probe a container is ready once it has started.
    ready_when_started: bool,
}

impl Subject {
    fn report(&self, started: Option<bool>, ready: Option<bool>, kill: Option<ProbeKill>) {
        let container = self.container.name.clone();
        let report = ProbeReport { container, id: self.id.clone(), started, ready, kill };
        // A worker that is gone needs no report.
        let _ = self.sender.send(Wake::Probe(report));
    }

    async fn ask_until_started(self, probe: Probe, gate: watch::Sender<bool>) {
        let mut judge = Judge::new(&probe);
        let mut timer = self.timer(&probe, true);
        loop {
            timer.tick().await;
            match judge.hear(self.ask(Kind::Startup, &probe).await) {
                Some(true) => {
                    self.report(Some(true), self.ready_when_started.then_some(true), None);
                    gate.send_replace(true);
                    return;
                }
                Some(false) => return self.kill(Kind::Startup, &probe),
                None => {}
            }
        }
    }

    async fn ask_for_ever(self, kind: Kind, probe: Probe, mut opened: watch::Receiver<bool>) {
        // The sender goes without opening when the startup probe gives up; then nobody is asked any more.
        if opened.wait_for(|open| *open).await.is_err() {
            return;
        }
        let mut judge = Judge::new(&probe);
        let mut timer = self.timer(&probe, kind == Kind::Readiness);
        let mut told = None;
        loop {
            timer.tick().await;
            let verdict = judge.hear(self.ask(kind, &probe).await);
            match (kind, verdict) {
                (Kind::Readiness, Some(ready)) if told != Some(ready) => {
                    told = Some(ready);
                    self.report(None, Some(ready), None);
                }
                (Kind::Liveness, Some(false)) => return self.kill(kind, &probe),
                _ => {}
            }
        }
    }

    /// First tick after the initial delay (counted from the container's start), then one per period. Liveness waits a
    /// period as well: a container that has just started is alive.
    fn timer(&self, probe: &Probe, at_once: bool) -> tokio::time::Interval {
        let seconds = |value: Option<i32>, default: u64| {
            value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default)
        };
        let period = Duration::from_secs(seconds(probe.period_seconds, 10).max(1));
        let delay = Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
        let age = time::until(self.started_at, time::now());
        let mut first = delay.saturating_sub(age);
        if !at_once && first.is_zero() {
            first = period;
        }
        let mut timer = tokio::time::interval_at(Instant::now() + first, period);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        timer
    }

    async fn ask(&self, kind: Kind, probe: &Probe) -> bool {
        let runtime = self.context.runtime.as_ref();
        match probes::ask(runtime, probe, &self.container, &self.id, &self.address).await {
            Ok(()) => true,
            Err(ProbeFailure(cause)) => {
                let message = format!("{} probe failed: {cause}", kind.name());
                self.context.events.container_warning(&self.pod, &self.path, "Unhealthy", &message);
                false
            }
        }
    }

    fn kill(&self, kind: Kind, probe: &Probe) {
        let what = kind.name().to_lowercase();
        let message = format!("Container {} failed {what} probe, will be restarted", self.container.name);
        let kill = ProbeKill { message, grace: probe.termination_grace_period_seconds };
        self.report(None, None, Some(kill));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds() {
        let probe = Probe { success_threshold: Some(2), failure_threshold: Some(3), ..Probe::default() };
        let mut judge = Judge::new(&probe);
        let rows = [
            (true, None),
            (true, Some(true)),
            (false, None),
            (false, None),
            (true, None),
            (false, None),
            (false, None),
            (false, Some(false)),
            (false, Some(false)),
        ];
        for (index, (answer, expected)) in rows.into_iter().enumerate() {
            assert_eq!(judge.hear(answer), expected, "answer {index}");
        }
    }
}
