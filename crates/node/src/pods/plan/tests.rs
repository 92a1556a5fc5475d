//! Rows: a pod, a world, what has to be done. `world` is written as a short text, see [`World`].

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sampan_runtime::SandboxId;

use super::*;
use crate::pods::observed::{Failure, Health, Kill, Sandbox};
use crate::time::{seconds, time};

const NOW: i64 = 1_000_000 * SECOND;

#[derive(Clone, Copy, Default)]
struct Shape {
    policy: Option<&'static str>,
    inits: &'static [&'static str],
    sidecars: &'static [&'static str],
    mains: &'static [&'static str],
    deleted: Option<i64>,
    phase: Option<&'static str>,
    deadline: Option<i64>,
}

fn pod(shape: Shape) -> PodModel {
    let container = |name: &str, restart: Option<&str>| Container {
        name: name.into(),
        restart_policy: restart.map(Into::into),
        ..Container::default()
    };
    let inits = shape
        .inits
        .iter()
        .map(|name| container(name, None))
        .chain(shape.sidecars.iter().map(|name| container(name, Some("Always"))));
    PodModel::new(Arc::new(Pod {
        metadata: ObjectMeta {
            name: Some("p".into()),
            uid: Some("u".into()),
            deletion_timestamp: shape.deleted.map(|_| time(NOW)),
            deletion_grace_period_seconds: shape.deleted,
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            restart_policy: shape.policy.map(Into::into),
            init_containers: Some(inits.collect()),
            containers: shape.mains.iter().map(|name| container(name, None)).collect(),
            active_deadline_seconds: shape.deadline,
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: shape.phase.map(Into::into),
            start_time: Some(time(NOW - seconds(60))),
            ..PodStatus::default()
        }),
    }))
}

fn run_of(name: &str, attempt: u32, state: RunState, exit_code: i32) -> Run {
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
        image: String::new(),
        image_id: String::new(),
        backoff_base: 0,
    }
}

/// A world as text: words are `volumes`, `sandbox`, `image:a`, `up:a` (running), `up:a2` (third attempt running),
/// `made:a`, `ok:a` (ended with 0), `bad:a` (ended with 1), `started:a` (startup passed).
struct World;

impl World {
    fn parse(text: &str) -> Observed {
        let mut observed = Observed::default();
        for word in text.split_whitespace() {
            let (what, who) = word.split_once(':').unwrap_or((word, ""));
            let name = who.trim_end_matches(|c: char| c.is_ascii_digit());
            let attempt: u32 = who[name.len()..].parse().unwrap_or(0);
            let mut view = |change: &dyn Fn(&mut ContainerView)| {
                change(observed.containers.entry(name.to_string()).or_default());
            };
            let push = |state: RunState, code: i32| {
                move |view: &mut ContainerView| view.runs.push(run_of(name, attempt, state, code))
            };
            match what {
                "volumes" => observed.volumes = Step::Done,
                "sandbox" => {
                    observed.volumes = Step::Done;
                    let addresses = vec!["10.0.0.2".to_string()];
                    observed.sandbox = Some(Sandbox { id: SandboxId("s".into()), addresses });
                }
                "image" => view(&|view| view.image_for = Some(attempt)),
                "up" => view(&push(RunState::Running, 0)),
                "made" => view(&push(RunState::Created, 0)),
                "ok" => view(&push(RunState::Exited, 0)),
                "bad" => view(&push(RunState::Exited, 1)),
                "started" => view(&|view| view.health = Health { started: true, ready: true }),
                "stopped" => observed.teardown = Teardown::Stopped,
                "removed" => observed.teardown = Teardown::Removed,
                "gone" => observed.gone = true,
                "written" => observed.final_status_written = true,
                "starting" => {
                    observed.in_flight.insert(Op::Start(name.to_string()));
                }
                "pulling" => {
                    observed.in_flight.insert(Op::Pull(name.to_string()));
                }
                other => panic!("unknown word {other}"),
            }
        }
        observed
    }
}

/// An action as text.
fn told(action: &Action) -> String {
    match action {
        Action::PrepareVolumes => "volumes".into(),
        Action::RunSandbox { attempt } => format!("sandbox{attempt}"),
        Action::PullImage { container, attempt } => format!("pull:{container}{attempt}"),
        Action::StartContainer { container, attempt, .. } => format!("start:{container}{attempt}"),
        Action::StopContainer { container, grace, .. } => format!("stop:{container}/{grace}"),
        Action::RemoveContainer { id } => format!("remove:{}", id.0),
        Action::CancelPreparation => "cancel".into(),
        Action::Teardown { remove: false } => "stop-sandbox".into(),
        Action::Teardown { remove: true } => "remove-all".into(),
        Action::DeleteObject => "delete".into(),
    }
}

#[track_caller]
fn check(shape: Shape, world: &str, expected: &str) {
    let plan = plan(&pod(shape), &World::parse(world), NOW);
    let told: Vec<String> = plan.actions.iter().map(told).collect();
    assert_eq!(told.join(" "), expected, "world: {world}");
}

const ONE: Shape = Shape {
    policy: None,
    inits: &[],
    sidecars: &[],
    mains: &["a"],
    deleted: None,
    phase: None,
    deadline: None,
};
const TWO: Shape = Shape { mains: &["a", "b"], ..ONE };
const WITH_INITS: Shape = Shape { inits: &["i", "j"], ..ONE };
const WITH_SIDECAR: Shape = Shape { sidecars: &["s"], ..ONE };
const NEVER: Shape = Shape { policy: Some("Never"), ..ONE };
const ON_FAILURE: Shape = Shape { policy: Some("OnFailure"), ..ONE };

#[test]
fn a_pod_comes_up() {
    check(ONE, "", "volumes pull:a0");
    check(ONE, "volumes", "sandbox0 pull:a0");
    check(ONE, "volumes image:a", "sandbox0");
    check(ONE, "sandbox", "pull:a0");
    check(ONE, "sandbox image:a", "start:a0");
    check(ONE, "sandbox image:a starting:a", "");
    check(ONE, "sandbox made:a image:a", "start:a0");
    check(ONE, "sandbox up:a", "");
    check(TWO, "sandbox image:a image:b", "start:a0 start:b0");
    check(TWO, "sandbox up:a image:b", "start:b0");
}

#[test]
fn init_containers_run_in_order() {
    check(WITH_INITS, "sandbox image:i", "start:i0");
    check(WITH_INITS, "sandbox up:i", "");
    check(WITH_INITS, "sandbox ok:i image:j", "start:j0");
    check(WITH_INITS, "sandbox ok:i ok:j image:a", "start:a0");
    check(WITH_INITS, "sandbox bad:i image:i1", "start:i1");
    // Once a container ran, init containers are not looked at again.
    check(WITH_INITS, "sandbox up:a", "");
}

#[test]
fn sidecars_run_beside() {
    check(WITH_SIDECAR, "sandbox image:s", "start:s0");
    check(WITH_SIDECAR, "sandbox up:s", "");
    check(WITH_SIDECAR, "sandbox up:s started:s image:a", "start:a0");
    check(WITH_SIDECAR, "sandbox up:a bad:s image:s1", "start:s1");
    let finished = Shape { policy: Some("Never"), ..WITH_SIDECAR };
    check(finished, "sandbox up:s ok:a", "stop:s/30");
}

#[test]
fn restart_policies() {
    check(ONE, "sandbox ok:a image:a1", "start:a1");
    check(ONE, "sandbox bad:a image:a1", "start:a1");
    check(ON_FAILURE, "sandbox bad:a image:a1", "start:a1");
    check(ON_FAILURE, "sandbox ok:a", "stop-sandbox");
    check(NEVER, "sandbox ok:a", "stop-sandbox");
    check(NEVER, "sandbox bad:a", "stop-sandbox");
    check(NEVER, "stopped bad:a", "");
    check(Shape { policy: Some("Never"), ..WITH_INITS }, "sandbox bad:i", "stop-sandbox");
    check(Shape { policy: Some("Never"), ..TWO }, "sandbox bad:a image:b", "start:b0");
    check(Shape { phase: Some("Succeeded"), ..ONE }, "", "stop-sandbox");
}

#[test]
fn crash_loops_wait() {
    // The second end in a row waits ten seconds, of which one has passed.
    check(ONE, "sandbox bad:a1 image:a2", "");
    let plan = plan(&pod(ONE), &World::parse("sandbox bad:a1 image:a2"), NOW);
    assert_eq!(plan.wake, Some(NOW + seconds(9)));
    let rows = [(0, 0), (1, 10), (2, 20), (3, 40), (4, 80), (5, 160), (6, 300), (40, 300)];
    for (attempt, pause) in rows {
        assert_eq!(backoff(&run_of("a", attempt, RunState::Exited, 1)), seconds(pause), "attempt {attempt}");
    }
    let mut long = run_of("a", 7, RunState::Exited, 1);
    long.started_at = long.finished_at - seconds(600);
    assert_eq!(backoff(&long), 0);
    let view = ContainerView { runs: vec![long], ..ContainerView::default() };
    assert_eq!(next_base(&view), 7);
}

#[test]
fn failures_wait_for_their_time() {
    let mut observed = World::parse("sandbox");
    let failure = Failure {
        reason: "ErrImagePull",
        message: String::new(),
        since: NOW,
        retry_at: NOW + seconds(10),
        delay: seconds(10),
        is_pull: true,
    };
    observed.containers.entry("a".into()).or_default().failure = Some(failure);
    let early = plan(&pod(ONE), &observed, NOW);
    assert_eq!((early.actions.len(), early.wake), (0, Some(NOW + PULL_ERROR_SHOWN)));
    let late = plan(&pod(ONE), &observed, NOW + seconds(10));
    assert_eq!(late.actions, [Action::PullImage { container: "a".into(), attempt: 0 }]);
    assert_eq!(next_delay(None), seconds(10));
    assert_eq!(next_delay(Some(seconds(200))), seconds(300));
}

#[test]
fn deletion() {
    let deleted = Shape { deleted: Some(30), ..TWO };
    check(deleted, "sandbox up:a up:b", "stop:a/30 stop:b/30");
    check(deleted, "sandbox up:a starting:b", "stop:a/30");
    check(deleted, "sandbox pulling:a", "cancel stop-sandbox");
    check(deleted, "sandbox ok:a bad:b", "stop-sandbox");
    check(deleted, "stopped ok:a bad:b", "");
    check(deleted, "stopped ok:a bad:b written", "remove-all");
    check(deleted, "", "remove-all");
    check(deleted, "removed ok:a", "delete");
    check(deleted, "removed gone", "");
    check(Shape { deleted: Some(0), ..ONE }, "sandbox up:a", "stop:a/2");
    check(ONE, "sandbox up:a gone", "stop:a/2");
    check(ONE, "sandbox ok:a gone", "remove-all");
    let with_sidecars = Shape { deleted: Some(30), sidecars: &["s", "t"], ..ONE };
    check(with_sidecars, "sandbox up:a up:s up:t", "stop:a/30");
    check(with_sidecars, "sandbox ok:a up:s up:t", "stop:t/30");
    check(with_sidecars, "sandbox ok:a up:s ok:t", "stop:s/30");
    assert!(plan(&pod(ONE), &World::parse("removed gone"), NOW).done);
}

#[test]
fn a_shorter_grace_replaces_a_longer_one() {
    let model = pod(Shape { deleted: Some(5), ..ONE });
    let mut observed = World::parse("sandbox up:a");
    observed.in_flight.insert(Op::Stop("a".into()));
    observed.stopping.insert("a".into(), 30);
    assert_eq!(plan(&model, &observed, NOW).actions.iter().map(told).collect::<Vec<_>>(), ["stop:a/5"]);
    observed.stopping.insert("a".into(), 5);
    assert!(plan(&model, &observed, NOW).actions.is_empty());
}

#[test]
fn deadlines() {
    check(Shape { deadline: Some(59), ..ONE }, "sandbox up:a", "stop:a/30");
    let plan = plan(&pod(Shape { deadline: Some(90), ..ONE }), &World::parse("sandbox up:a"), NOW);
    assert_eq!((plan.actions.len(), plan.wake), (0, Some(NOW + seconds(30))));
}

#[test]
fn unhealthy_containers_are_stopped_once() {
    let mut observed = World::parse("sandbox up:a1");
    let kill = Kill { id: ContainerId("a1".into()), message: "why".into(), grace: 7 };
    observed.containers.entry("a".into()).or_default().kill = Some(kill);
    assert_eq!(plan(&pod(ONE), &observed, NOW).actions.iter().map(told).collect::<Vec<_>>(), ["stop:a/7"]);
    observed.stopping.insert("a".into(), 7);
    assert!(plan(&pod(ONE), &observed, NOW).actions.is_empty());
    // The next attempt is innocent.
    observed.stopping.clear();
    observed.containers.entry("a".into()).or_default().runs.push(run_of("a", 2, RunState::Running, 0));
    assert!(plan(&pod(ONE), &observed, NOW).actions.is_empty());
}

#[test]
fn old_runs_are_removed() {
    check(ONE, "sandbox bad:a0 bad:a1 up:a2", "remove:a0");
}

#[test]
fn a_lost_sandbox_is_made_again() {
    let mut observed = World::parse("volumes bad:a0 image:a1");
    observed.next_sandbox = 1;
    if let Some(run) = observed.containers.get_mut("a").and_then(|view| view.runs.last_mut()) {
        run.in_sandbox = false;
    }
    let actions: Vec<String> = plan(&pod(ONE), &observed, NOW).actions.iter().map(told).collect();
    assert_eq!(actions, ["sandbox1"]);
    // Init containers run again in the new sandbox.
    let actions: Vec<String> = {
        let mut observed = World::parse("sandbox ok:i ok:j bad:a image:i1");
        for view in observed.containers.values_mut() {
            view.runs.iter_mut().for_each(|run| run.in_sandbox = false);
        }
        plan(&pod(WITH_INITS), &observed, NOW).actions.iter().map(told).collect()
    };
    assert_eq!(actions, ["start:i1"]);
}

#[test]
fn planning_twice_asks_for_the_same() {
    for world in ["", "volumes", "sandbox image:a", "sandbox bad:a1"] {
        let observed = World::parse(world);
        assert_eq!(plan(&pod(ONE), &observed, NOW), plan(&pod(ONE), &observed, NOW));
    }
}
