//! Restarts of the agent, deaths of supervisors, and that nothing is left.

use std::path::Path;
use std::time::Duration;

use sampan_runtime::{
    ContainerState, NativeRuntime, Runtime, RuntimeError, RuntimeEvent, SandboxState, StreamOptions,
    destroy_all,
};
use tokio::io::AsyncWriteExt;

use super::fixture::*;

/// Process id of a sandbox's supervisor, through the path of its network namespace.
async fn supervisor(fixture: &Fixture) -> i32 {
    let pods = fixture.runtime.list_pod_sandboxes().await.expect("list");
    let path = pods[0].netns.clone().expect("own network");
    path.iter().nth(2).and_then(|pid| pid.to_str()?.parse().ok()).expect("process id")
}

#[tokio::test]
async fn a_new_agent_finds_running_containers() {
    let mut fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let mut config = shell("read line; echo got $line; exit 8");
    config.stdin = true;
    let id = fixture.run(&sandbox, config).await;
    let before = fixture.runtime.container_status(&id).await.expect("status");
    fixture
        .runtime
        .set_pod_addresses(&sandbox, vec!["10.1.2.3".parse().expect("address")])
        .await
        .expect("set");
    fixture.restart_agent().await;
    let after = fixture.runtime.container_status(&id).await.expect("status");
    assert_eq!(
        (after.state, after.pid, after.started_at),
        (ContainerState::Running, before.pid, before.started_at)
    );
    assert_eq!(fixture.runtime.pod_addresses(&sandbox).await.expect("addresses").len(), 1);
    assert_eq!(fixture.exec(&id, "echo still here").await, "still here\n");
    let mut events = fixture.runtime.events();
    let options = StreamOptions { stdin: true, ..Default::default() };
    let mut streams = fixture.runtime.attach(&id, options).await.expect("attach");
    streams.stdin.as_mut().expect("input").write_all(b"x\n").await.expect("write");
    assert_eq!(fixture.ended_with(&id, &mut events).await.exit_code, 8);
    // And makes new ones.
    fixture.sandbox().await;
}

#[tokio::test]
async fn an_end_while_the_agent_is_away_is_known() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let gate = fixture.volume("gate");
    let mut config = shell("while ! test -e /gate/open; do sleep 0.01; done; echo late; exit 5");
    config.mounts = vec![sampan_runtime::Mount {
        container_path: "/gate".into(),
        host_path: gate.clone(),
        readonly: true,
        propagation: Default::default(),
    }];
    let id = fixture.run(&sandbox, config).await;
    let log = fixture.runtime.container_status(&id).await.expect("status").log_path;
    let mut fixture = fixture;
    // Nobody holds the old runtime any more; the new one opens only after the end.
    let other = Fixture::new();
    fixture.runtime = other.runtime.clone();
    std::fs::write(gate.join("open"), "").expect("open the gate");
    eventually("container ends", || messages(&log).contains("late").then_some(())).await;
    fixture.restart_agent().await;
    let status = fixture.ended(&id).await;
    assert_eq!(
        (status.state, status.exit_code, status.reason.as_str()),
        (ContainerState::Exited, 5, "Error")
    );
}

/// Names the directory of [`agent_process`]; set only in the process that plays the agent.
const AGENT_DIRECTORY: &str = "SAMPAN_TEST_AGENT_DIRECTORY";

/// The agent that `a_killed_agent_is_survived` kills: this test binary, started once more.
#[tokio::test]
#[ignore = "plays a part in another test"]
async fn agent_process() {
    let Some(directory) = std::env::var_os(AGENT_DIRECTORY) else { return };
    let fixture = Fixture::at(Path::new(&directory));
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, shell("echo ready; while :; do sleep 0.01; done")).await;
    std::fs::write(Path::new(&directory).join("started"), id.0).expect("tell");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_agent_is_survived() {
    let directory = tempfile::tempdir().expect("temporary directory");
    let mut agent = std::process::Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", "it::agent::agent_process", "--ignored"])
        .env(AGENT_DIRECTORY, directory.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("agent");
    let started = directory.path().join("started");
    let id = eventually("agent starts a container", || {
        std::fs::read_to_string(&started).ok().filter(|id| id.len() == 64).map(sampan_runtime::ContainerId)
    });
    let id = id.await;
    agent.kill().expect("kill");
    agent.wait().expect("reap");
    let fixture = Fixture::at(directory.path());
    let status = fixture.runtime.container_status(&id).await.expect("status");
    assert_eq!(status.state, ContainerState::Running);
    assert_eq!(fixture.exec(&id, "echo alive").await, "alive\n");
    fixture.runtime.stop_container(&id, Duration::ZERO).await.expect("stop");
    assert_eq!(fixture.runtime.container_status(&id).await.expect("status").exit_code, 137);
}

/// Halts what is in a container's cgroup, and what comes into it, until it is let go.
struct Frozen(std::path::PathBuf);

impl Frozen {
    fn new(fixture: &Fixture, id: &sampan_runtime::ContainerId) -> Self {
        // The fixture's first pod.
        let cgroup = format!("{}/kubepods/poduid-0/{}", fixture.config.cgroup_root, id.0);
        let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let mut directories = roots.iter().map(|root| Path::new(root).join(&cgroup));
        let directory = directories.find(|directory| directory.join("cgroup.freeze").exists());
        let directory = directory.expect("cgroup v2 or hybrid");
        std::fs::write(directory.join("cgroup.freeze"), "1").expect("freeze");
        Self(directory)
    }

    fn holds_a_process(&self) -> bool {
        std::fs::read_to_string(self.0.join("cgroup.procs")).is_ok_and(|text| !text.is_empty())
    }

    fn let_go(&self) {
        std::fs::write(self.0.join("cgroup.freeze"), "0").expect("thaw");
    }
}

/// The moment after a container's process was made and before it executes its program: the agent dies, and the next
/// one, to which the container is a created one, starts it again.
#[tokio::test]
async fn a_start_the_agent_dies_over_is_the_next_agents() {
    let rows = [("echo started; exit 4", None, 4), ("absent", Some(127), 127)];
    for (number, (program, start_error, exit_code)) in (0..).zip(rows) {
        let mut fixture = Fixture::new();
        let sandbox = fixture.sandbox().await;
        let config = if start_error.is_some() { command(&[program]) } else { shell(program) };
        let id = fixture.runtime.create_container(&sandbox, config).await.expect("create");
        let frozen = Frozen::new(&fixture, &id);
        let (first, started) = (fixture.runtime.clone(), id.clone());
        let start = tokio::spawn(async move { first.start_container(&started).await });
        eventually("the process is made", || frozen.holds_a_process().then_some(())).await;
        start.abort();
        let _ = start.await;
        fixture.restart_agent().await;
        let status = fixture.runtime.container_status(&id).await.expect("status");
        assert_eq!(status.state, ContainerState::Created, "row {number}");
        let mut events = fixture.runtime.events();
        let (second, started) = (fixture.runtime.clone(), id.clone());
        let start = tokio::spawn(async move { second.start_container(&started).await });
        // An agent has one connection, so an answer shows that the supervisor has the request before it.
        let _ = fixture.runtime.reopen_container_log(&id).await;
        frozen.let_go();
        let found = match start.await.expect("no panic") {
            Ok(()) => None,
            Err(RuntimeError::Start { exit_code, .. }) => Some(exit_code),
            Err(other) => panic!("row {number}: {other}"),
        };
        assert_eq!(found, start_error, "row {number}");
        let status = fixture.ended_with(&id, &mut events).await;
        assert_eq!((status.state, status.exit_code), (ContainerState::Exited, exit_code), "row {number}");
        if start_error.is_none() {
            assert_eq!(messages(&status.log_path), "started\n", "it ran once");
        }
    }
}

/// What an agent leaves that dies over the making or the removal of a sandbox, when the record is not there yet, or no
/// longer.
#[tokio::test]
async fn a_sandbox_without_a_record_is_cleared_away() {
    let mut fixture = Fixture::new();
    let left = [fixture.config.data_dir.join("sandboxes/left"), fixture.config.run_dir.join("left")];
    for directory in &left {
        std::fs::create_dir_all(directory.join("containers")).expect("make");
    }
    let kept = fixture.sandbox().await;
    fixture.restart_agent().await;
    assert!(left.iter().all(|directory| !directory.exists()));
    let pods = fixture.runtime.list_pod_sandboxes().await.expect("list");
    assert_eq!(
        pods.iter().map(|pod| (&pod.id, pod.state)).collect::<Vec<_>>(),
        [(&kept, SandboxState::Ready)]
    );
}

#[tokio::test]
async fn a_killed_supervisor_takes_its_containers_along() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    let pid = fixture.runtime.container_status(&id).await.expect("status").pid;
    let mut events = fixture.runtime.events();
    kill(supervisor(&fixture).await);
    let wait =
        async { while !matches!(events.recv().await.expect("event"), RuntimeEvent::SandboxExited { .. }) {} };
    tokio::time::timeout(PATIENCE, wait).await.expect("noticed");
    let status = fixture.runtime.container_status(&id).await.expect("status");
    assert_eq!((status.state, status.exit_code), (ContainerState::Unknown, 137));
    // What is left for a moment is a zombie, which has no namespaces.
    assert!(!Path::new(&format!("/proc/{pid}/ns/net")).exists(), "the container is dead");
    assert_eq!(fixture.runtime.list_pod_sandboxes().await.expect("list")[0].state, SandboxState::NotReady);
    assert!(matches!(fixture.runtime.start_container(&id).await, Err(RuntimeError::FailedPrecondition(_))));
    fixture.runtime.remove_pod_sandbox(&sandbox).await.expect("remove");
}

#[tokio::test]
async fn a_supervisor_killed_while_the_agent_is_away_is_noticed() {
    let mut fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    let pid = supervisor(&fixture).await;
    let other = Fixture::new();
    fixture.runtime = other.runtime.clone();
    kill(pid);
    eventually("supervisor ends", || (!Path::new(&format!("/proc/{pid}/ns/net")).exists()).then_some(()))
        .await;
    fixture.restart_agent().await;
    let status = fixture.runtime.container_status(&id).await.expect("status");
    assert_eq!((status.state, status.exit_code), (ContainerState::Unknown, 137));
    assert_eq!(fixture.runtime.list_pod_sandboxes().await.expect("list")[0].state, SandboxState::NotReady);
}

#[tokio::test]
async fn a_killed_nursery_is_replaced() {
    let fixture = Fixture::new();
    fixture.sandbox().await;
    let supervisors = format!("{}/supervisors/cgroup.procs", fixture.config.cgroup_root);
    let is_nursery = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sampan-nursery")
    };
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let processes =
        roots.iter().find_map(|root| std::fs::read_to_string(format!("{root}/{supervisors}")).ok());
    let processes = processes.expect("cgroup of the supervisors");
    kill(processes.lines().filter_map(|line| line.parse().ok()).find(is_nursery).expect("nursery"));
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    assert_eq!(fixture.exec(&id, "echo works").await, "works\n");
    let pods = fixture.runtime.list_pod_sandboxes().await.expect("list");
    assert!(pods.iter().all(|pod| pod.state == SandboxState::Ready), "supervisors do not need the nursery");
}

#[tokio::test]
async fn a_supervisor_does_not_grow() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let pid = supervisor(&fixture).await;
    let descriptors = || std::fs::read_dir(format!("/proc/{pid}/fd")).expect("descriptors").count();
    let private = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("memory");
        let line = text.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).expect("private memory");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("number")
    };
    let live = async |rounds: usize| {
        for _ in 0..rounds {
            let id = fixture.run(&sandbox, shell("echo out; echo err >&2; head -c 30000 /dev/zero")).await;
            let _ = fixture.runtime.exec_sync(&id, vec!["true".into()], None).await;
            fixture.ended(&id).await;
            fixture.runtime.remove_container(&id).await.expect("remove");
        }
        (descriptors(), private())
    };
    let (open_before, private_before) = live(10).await;
    let (open_after, private_after) = live(60).await;
    assert_eq!(open_after, open_before, "descriptors");
    assert!(private_after <= private_before + 64, "{private_before} KiB became {private_after} KiB");
    assert!(private_after < 1024, "{private_after} KiB");
}

#[tokio::test]
async fn two_agents_may_look_at_once() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    let second = NativeRuntime::open(fixture.config.clone()).expect("open");
    let result = second.exec_sync(&id, vec!["echo".into(), "x".into()], None).await.expect("exec");
    assert_eq!(result.stdout, b"x\n");
    drop(second);
    assert_eq!(fixture.exec(&id, "echo y").await, "y\n");
}

#[tokio::test]
async fn nothing_is_left() {
    let fixture = Fixture::new();
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    fixture.run(&sandbox, command(&["sleep", "1000"])).await;
    fixture.sandbox().await;
    let pids = [fixture.runtime.container_status(&id).await.expect("status").pid, supervisor(&fixture).await];
    assert!(!mounts().contains(&*fixture.directory.to_string_lossy()), "no mount on the node");
    fixture.runtime.stop_container(&id, Duration::from_secs(10)).await.expect("stop");
    destroy_all(&fixture.config).expect("destroy");
    for pid in pids {
        eventually("process is gone", || (!Path::new(&format!("/proc/{pid}/ns/net")).exists()).then_some(()))
            .await;
    }
    for entry in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
        assert!(!entry.path().join(&fixture.config.cgroup_root).exists(), "{:?}", entry.path());
    }
    assert!(!Path::new("/sys/fs/cgroup").join(&fixture.config.cgroup_root).exists());
    assert!(!fixture.config.data_dir.join("sandboxes").exists());
    assert!(!fixture.config.run_dir.exists());
    destroy_all(&fixture.config).expect("destroy nothing");
}

fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).expect("process id");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("kill");
}
