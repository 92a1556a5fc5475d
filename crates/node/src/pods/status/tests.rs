use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodReadinessGate, PodSpec};
use sampan_runtime::SandboxId;

use super::*;
use crate::pods::observed::{Failure, Health, Sandbox, Step};
use crate::time::{SECOND, seconds};

const NOW: i64 = 1_000_000 * SECOND;

fn spec(policy: &str, inits: &[&str], mains: &[&str]) -> PodSpec {
    let container =
        |name: &&str| Container { name: name.to_string(), image: Some("i".into()), ..Container::default() };
    PodSpec {
        restart_policy: Some(policy.into()),
        init_containers: Some(inits.iter().map(container).collect()),
        containers: mains.iter().map(container).collect(),
        ..PodSpec::default()
    }
}

fn run(name: &str, attempt: u32, state: RunState, exit_code: i32) -> Run {
    Run {
        id: ContainerId(format!("{name}{attempt}")),
        attempt,
        in_sandbox: true,
        is_known: true,
        state,
        started_at: NOW - seconds(5),
        finished_at: if state == RunState::Exited { NOW - seconds(1) } else { 0 },
        exit_code,
        reason: String::new(),
        message: String::new(),
        image: "i:latest".into(),
        image_id: "sha256:1".into(),
        backoff_base: 0,
    }
}

fn world(runs: &[(&str, Run)]) -> Observed {
    let mut observed = Observed { volumes: Step::Done, ..Observed::default() };
    observed.sandbox = Some(Sandbox { id: SandboxId("s".into()), addresses: vec!["10.0.0.2".into()] });
    for (name, run) in runs {
        let view = observed.containers.entry(name.to_string()).or_default();
        view.health = Health { started: true, ready: true };
        view.runs.push(run.clone());
    }
    observed
}

fn compute(pod: Pod, observed: &Observed) -> PodStatus {
    let model = PodModel::new(Arc::new(pod));
    status(&StatusInput {
        model: &model,
        observed,
        host_ip: "192.0.2.1",
        messages: &BTreeMap::new(),
        now: NOW,
    })
}

fn of(spec: PodSpec, observed: &Observed) -> PodStatus {
    compute(Pod { spec: Some(spec), ..Pod::default() }, observed)
}

#[test]
fn phases() {
    let up = || run("a", 0, RunState::Running, 0);
    let ok = || run("a", 0, RunState::Exited, 0);
    let bad = || run("a", 0, RunState::Exited, 1);
    let rows: Vec<(&str, Vec<(&str, Run)>, &str)> = vec![
        ("Always", vec![], "Pending"),
        ("Always", vec![("a", up())], "Pending"),
        ("Always", vec![("a", up()), ("b", up())], "Running"),
        ("Always", vec![("a", ok()), ("b", up())], "Running"),
        ("Always", vec![("a", ok()), ("b", ok())], "Running"),
        ("OnFailure", vec![("a", ok()), ("b", bad())], "Running"),
        ("OnFailure", vec![("a", ok()), ("b", ok())], "Succeeded"),
        ("Never", vec![("a", ok()), ("b", up())], "Running"),
        ("Never", vec![("a", ok()), ("b", ok())], "Succeeded"),
        ("Never", vec![("a", ok()), ("b", bad())], "Failed"),
    ];
    for (policy, runs, expected) in rows {
        let status = of(spec(policy, &[], &["a", "b"]), &world(&runs));
        assert_eq!(status.phase.as_deref(), Some(expected), "{policy} {runs:?}");
    }
    let init_failed = of(spec("Never", &["i"], &["a"]), &world(&[("i", run("i", 0, RunState::Exited, 2))]));
    assert_eq!(init_failed.phase.as_deref(), Some("Failed"));
    let initialising =
        of(spec("Always", &["i"], &["a"]), &world(&[("i", run("i", 0, RunState::Running, 0))]));
    assert_eq!(initialising.phase.as_deref(), Some("Pending"));
}

fn waiting_reason(status: &PodStatus, index: usize) -> Option<String> {
    let statuses = status.container_statuses.as_ref()?;
    statuses.get(index)?.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

#[test]
fn waiting_reasons() {
    let nothing = Observed::default();
    assert_eq!(
        waiting_reason(&of(spec("Always", &[], &["a"]), &nothing), 0).as_deref(),
        Some("ContainerCreating")
    );
    assert_eq!(
        waiting_reason(&of(spec("Always", &["i"], &["a"]), &nothing), 0).as_deref(),
        Some("PodInitializing")
    );
    let mut failing = world(&[]);
    failing.containers.entry("a".into()).or_default().failure = Some(Failure {
        reason: "ImagePullBackOff",
        message: "m".into(),
        since: NOW,
        retry_at: NOW + 1,
        delay: 1,
        is_pull: true,
    });
    assert_eq!(
        waiting_reason(&of(spec("Always", &[], &["a"]), &failing), 0).as_deref(),
        Some("ImagePullBackOff")
    );
    let crashing = of(spec("Always", &[], &["a"]), &world(&[("a", run("a", 1, RunState::Exited, 1))]));
    assert_eq!(waiting_reason(&crashing, 0).as_deref(), Some("CrashLoopBackOff"));
    let status = &crashing.container_statuses.unwrap_or_default()[0];
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    assert_eq!(last.map(|state| (state.exit_code, state.reason.as_deref())), Some((1, Some("Error"))));
    assert_eq!(status.restart_count, 1);
}

fn condition<'a>(status: &'a PodStatus, type_: &str) -> Option<(&'a str, Option<&'a str>)> {
    let condition = status.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)?;
    Some((condition.status.as_str(), condition.reason.as_deref()))
}

#[test]
fn conditions_follow_readiness() {
    let mut observed = world(&[("a", run("a", 0, RunState::Running, 0))]);
    let ready = of(spec("Always", &[], &["a"]), &observed);
    for type_ in ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        assert_eq!(condition(&ready, type_), Some(("True", None)), "{type_}");
    }
    observed.containers.entry("a".into()).or_default().health.ready = false;
    let unready = of(spec("Always", &[], &["a"]), &observed);
    assert_eq!(condition(&unready, "Ready"), Some(("False", Some("ContainersNotReady"))));
    let done = of(spec("Never", &[], &["a"]), &world(&[("a", run("a", 0, RunState::Exited, 0))]));
    assert_eq!(condition(&done, "Ready"), Some(("False", Some("PodCompleted"))));
    assert_eq!(condition(&done, "Initialized"), Some(("True", Some("PodCompleted"))));
}

#[test]
fn readiness_gates() {
    let gated = PodSpec {
        readiness_gates: Some(vec![PodReadinessGate { condition_type: "x/y".into() }]),
        ..spec("Always", &[], &["a"])
    };
    let observed = world(&[("a", run("a", 0, RunState::Running, 0))]);
    assert_eq!(
        condition(&of(gated.clone(), &observed), "Ready"),
        Some(("False", Some("ReadinessGatesNotReady")))
    );
    let open = PodCondition { type_: "x/y".into(), status: "True".into(), ..PodCondition::default() };
    let pod = Pod {
        spec: Some(gated),
        status: Some(PodStatus { conditions: Some(vec![open]), ..PodStatus::default() }),
        ..Pod::default()
    };
    assert_eq!(condition(&compute(pod, &observed), "Ready"), Some(("True", None)));
}

#[test]
fn transition_times_stay() {
    let observed = world(&[("a", run("a", 0, RunState::Running, 0))]);
    let first = of(spec("Always", &[], &["a"]), &observed);
    let pod = Pod { spec: Some(spec("Always", &[], &["a"])), status: Some(first.clone()), ..Pod::default() };
    let model = PodModel::new(Arc::new(pod));
    let messages = BTreeMap::new();
    let later = StatusInput {
        model: &model,
        observed: &observed,
        host_ip: "192.0.2.1",
        messages: &messages,
        now: NOW + seconds(100),
    };
    assert_eq!(status(&later), first);
}
