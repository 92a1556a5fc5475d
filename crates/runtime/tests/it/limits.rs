//! cgroups: limits, usage, running out of memory.

use sampan_runtime::{LinuxResources, Runtime};

use super::fixture::*;

/// Value of a limit as the container sees it, on v1 or v2.
const SHOW: &str = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max \
                    /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null; true";

/// A machine whose controllers are elsewhere can test everything but limits.
fn has_controllers() -> bool {
    let v2 = std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    v2.map_or(true, |controllers| controllers.contains("memory"))
}

#[tokio::test]
async fn limits_are_written_and_changed() {
    let fixture = Fixture::new();
    if !has_controllers() {
        return;
    }
    let sandbox = fixture.sandbox().await;
    let mut config = idle();
    config.resources = LinuxResources {
        memory_limit: 64 << 20,
        cpu_quota: 50_000,
        cpu_period: 100_000,
        cpu_shares: 512,
        pids_limit: 50,
        oom_score_adj: 500,
    };
    let id = fixture.run(&sandbox, config.clone()).await;
    assert_eq!(fixture.exec(&id, SHOW).await, "67108864\n50\n");
    assert_eq!(fixture.exec(&id, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj").await, "500\n500\n");
    config.resources.memory_limit = 32 << 20;
    fixture.runtime.update_container_resources(&id, config.resources).await.expect("update");
    assert_eq!(fixture.exec(&id, SHOW).await, "33554432\n50\n");
    let stats = fixture.runtime.container_stats(&id).await.expect("stats");
    assert!(
        stats.memory_usage > 0 && stats.memory_working_set <= stats.memory_usage && stats.cpu_usage_ns > 0
    );
}

#[tokio::test]
async fn a_container_sees_its_own_cgroups() {
    let fixture = Fixture::new();
    if !has_controllers() {
        return;
    }
    let (output, _) = fixture.script("ls /sys/fs/cgroup; cat /proc/self/cgroup; cat /sys/fs/cgroup/*/cgroup.procs /sys/fs/cgroup/cgroup.procs 2>/dev/null | sort -u").await;
    assert!(output.contains("memory"), "{output}");
    assert!(!output.contains("kubepods"), "paths above are hidden: {output}");
    assert!(output.lines().any(|line| line == "1"), "{output}");
}

#[tokio::test]
async fn running_out_of_memory_is_told() {
    let fixture = Fixture::new();
    if !has_controllers() {
        return;
    }
    let mut config = shell("x=a; while :; do x=$x$x; done");
    config.resources.memory_limit = 16 << 20;
    let (_, status) = fixture.output(config).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"));
}

#[tokio::test]
async fn what_the_machine_refuses_is_a_warning() {
    let fixture = Fixture::new();
    let mut config = shell("cat /proc/self/oom_score_adj");
    config.resources.oom_score_adj = -997;
    let (output, status) = fixture.output(config).await;
    assert_eq!(status.exit_code, 0);
    assert_eq!(status.warnings.is_empty(), output == "-997\n", "{:?}", status.warnings);
}

#[tokio::test]
async fn a_pod_has_limits_of_its_own() {
    let fixture = Fixture::new();
    if !has_controllers() {
        return;
    }
    let mut config = fixture.sandbox_config();
    config.resources.memory_limit = 16 << 20;
    let sandbox = fixture.runtime.run_pod_sandbox(config).await.expect("sandbox").id;
    let id = fixture.run(&sandbox, shell("x=a; while :; do x=$x$x; done")).await;
    assert_eq!(fixture.ended(&id).await.exit_code, 137);
}
