//! Running, ending, records and logs.

use std::time::Duration;

use sampan_runtime::{ContainerState, Runtime, RuntimeError, SandboxState};

use super::fixture::*;

#[tokio::test]
async fn output_and_exit_code_are_recorded() {
    let fixture = Fixture::new();
    let (output, status) = fixture.script("echo out; echo err >&2; exit 3").await;
    let mut lines: Vec<&str> = output.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["err", "out"]);
    assert_eq!(
        (status.state, status.exit_code, status.reason.as_str()),
        (ContainerState::Exited, 3, "Error")
    );
    assert!(status.started_at >= status.created_at && status.finished_at >= status.started_at);
    let log = std::fs::read_to_string(&status.log_path).expect("log");
    assert!(log.contains("Z stdout F out\n") && log.contains("Z stderr F err\n"), "{log}");
    let (_, status) = fixture.script("true").await;
    assert_eq!((status.exit_code, status.reason.as_str()), (0, "Completed"));
    let (_, status) = fixture.script("kill -9 $$; sleep 5").await;
    // The first process of a process namespace cannot kill itself.
    assert_eq!(status.exit_code, 0);
}

#[tokio::test]
async fn sandboxes_are_listed_stopped_and_removed() {
    let fixture = Fixture::new();
    let config = fixture.sandbox_config();
    let made = fixture.runtime.run_pod_sandbox(config.clone()).await.expect("sandbox");
    assert_eq!((made.state, made.annotations["a"].as_str()), (SandboxState::Ready, "b"));
    let again = fixture.runtime.run_pod_sandbox(config).await.expect("asked again");
    assert_eq!(again.id, made.id);
    assert!(made.netns.as_ref().expect("own network").exists());
    let id = fixture.run(&made.id, idle()).await;
    fixture.runtime.stop_pod_sandbox(&made.id).await.expect("stop");
    let status = fixture.runtime.container_status(&id).await.expect("status");
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 137));
    let listed = fixture.runtime.list_pod_sandboxes().await.expect("list");
    assert_eq!((listed.len(), listed[0].state), (1, SandboxState::NotReady));
    fixture.runtime.stop_pod_sandbox(&made.id).await.expect("stop twice");
    fixture.runtime.remove_pod_sandbox(&made.id).await.expect("remove");
    fixture.runtime.remove_pod_sandbox(&made.id).await.expect("remove twice");
    assert!(fixture.runtime.list_pod_sandboxes().await.expect("list").is_empty());
    assert!(matches!(fixture.runtime.container_status(&id).await, Err(RuntimeError::NotFound(_))));
}

#[tokio::test]
async fn stopping_asks_first_and_kills_then() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let polite = fixture
        .run(&sandbox, shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done"))
        .await;
    let log = fixture.runtime.container_status(&polite).await.expect("status").log_path;
    eventually("trap is set", || messages(&log).contains("ready").then_some(())).await;
    fixture.runtime.stop_container(&polite, PATIENCE).await.expect("stop");
    let status = fixture.runtime.container_status(&polite).await.expect("status");
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 7));
    assert!(messages(&status.log_path).contains("bye"));

    let stubborn = fixture.run(&sandbox, shell("trap '' TERM; while :; do sleep 1; done")).await;
    fixture.runtime.stop_container(&stubborn, Duration::from_millis(50)).await.expect("stop");
    let status = fixture.runtime.container_status(&stubborn).await.expect("status");
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 137));
    fixture.runtime.remove_container(&stubborn).await.expect("remove");
    fixture.runtime.remove_container(&stubborn).await.expect("remove twice");
    assert_eq!(fixture.runtime.list_containers(Some(&sandbox)).await.expect("list").len(), 1);
}

#[tokio::test]
async fn a_stop_signal_of_the_image_is_used() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let mut config = shell("trap 'exit 5' USR1; echo ready; while :; do sleep 0.01; done");
    config.stop_signal = "SIGUSR1".into();
    let id = fixture.run(&sandbox, config).await;
    let log = fixture.runtime.container_status(&id).await.expect("status").log_path;
    eventually("trap is set", || messages(&log).contains("ready").then_some(())).await;
    fixture.runtime.stop_container(&id, PATIENCE).await.expect("stop");
    assert_eq!(fixture.runtime.container_status(&id).await.expect("status").exit_code, 5);
}

#[tokio::test]
async fn commands_that_cannot_run_are_told_apart() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    for (arguments, code, text) in [
        (&["no-such-command"][..], 127, "no such file"),
        (&["/bin/no-such-file"], 127, "no such file"),
        (&["/etc/passwd"], 126, "Permission denied"),
        (&["/etc"], 126, "Permission denied"),
        (&[], 127, "no command"),
    ] {
        let id = fixture.runtime.create_container(&sandbox, command(arguments)).await.expect("create");
        let (exit_code, message) = start_error(fixture.runtime.start_container(&id).await);
        assert_eq!(exit_code, code, "{arguments:?}: {message}");
        assert!(message.contains(text), "{message}");
        let status = fixture.runtime.container_status(&id).await.expect("status");
        assert_eq!((status.state, status.exit_code), (ContainerState::Exited, code));
        assert_eq!((status.reason.as_str(), &status.message), ("StartError", &message));
    }
    let mut config = command(&["true"]);
    config.image_id = "sha256:absent".into();
    let refused = fixture.runtime.create_container(&sandbox, config).await;
    assert!(matches!(refused, Err(RuntimeError::Create(message)) if message.contains("no such image")));
}

#[tokio::test]
async fn a_container_never_runs_twice() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let config = shell("echo once");
    let id = fixture.run(&sandbox, config.clone()).await;
    let status = fixture.ended(&id).await;
    assert_eq!(fixture.runtime.create_container(&sandbox, config).await.expect("asked again"), id);
    assert!(matches!(fixture.runtime.start_container(&id).await, Err(RuntimeError::FailedPrecondition(_))));
    assert_eq!(messages(&status.log_path), "once\n");
}

#[tokio::test]
async fn user_directory_and_environment_are_set() {
    let fixture = Fixture::new();
    let mut config =
        shell("id -u; id -g; id -G; pwd; echo $HOME $A $HOSTNAME; cat /proc/self/limits | grep 'open files'");
    config.security.image_user = "web".into();
    config.security.supplemental_groups = vec![77];
    config.working_dir = "/new/work".into();
    config.env = vec![("A".into(), "1".into()), ("A".into(), "2".into())];
    let (output, status) = fixture.output(config).await;
    assert_eq!(status.exit_code, 0, "{output}");
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[..5], ["33", "34", "34 50 77", "/new/work", "/srv 2 pod-0"]);
    assert!(lines[5].contains(" 1024 "), "{output}");
}

#[tokio::test]
async fn logs_rotate_and_long_lines_are_cut() {
    let fixture = Fixture::new();
    let mut config = shell(
        "i=0; while [ $i -lt 200 ]; do echo line-$i; i=$((i+1)); done; head -c 20000 /dev/zero | tr '\\0' x",
    );
    config.log_max_bytes = 4096;
    config.log_max_files = 3;
    let (_, status) = fixture.output(config).await;
    let live = std::fs::read_to_string(&status.log_path).expect("log");
    assert!(live.contains(" stdout P xxx") || live.contains(" stdout F xxx"));
    let directory = status.log_path.parent().expect("directory");
    assert_eq!(std::fs::read_dir(directory).expect("list").count(), 3);
}

#[tokio::test]
async fn a_log_is_reopened_on_request() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let mut config = shell("echo first; read line; echo second; sleep 1000");
    config.stdin = true;
    let id = fixture.run(&sandbox, config).await;
    let log = fixture.runtime.container_status(&id).await.expect("status").log_path;
    eventually("first line", || messages(&log).contains("first").then_some(())).await;
    std::fs::rename(&log, log.with_extension("old")).expect("rename");
    fixture.runtime.reopen_container_log(&id).await.expect("reopen");
    let options = sampan_runtime::StreamOptions { stdin: true, ..Default::default() };
    let mut streams = fixture.runtime.attach(&id, options).await.expect("attach");
    tokio::io::AsyncWriteExt::write_all(&mut streams.stdin.take().expect("input"), b"go\n")
        .await
        .expect("write");
    eventually("second line", || (messages(&log) == "second\n").then_some(())).await;
}
