//! exec, attach, terminals, ports.

use std::time::Duration;

use sampan_runtime::{Runtime, RuntimeError, StreamOptions, Streams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::fixture::*;

fn options(stdin: bool, tty: bool) -> StreamOptions {
    StreamOptions { stdin, stdout: true, stderr: !tty, tty }
}

/// Reads until the text appears.
async fn expect(reader: &mut sampan_runtime::Reader, text: &str) -> String {
    let mut seen = String::new();
    let search = async {
        let mut chunk = [0; 256];
        while !seen.contains(text) {
            match reader.read(&mut chunk).await.expect("read") {
                0 => panic!("ended before {text:?}: {seen:?}"),
                length => seen.push_str(&String::from_utf8_lossy(&chunk[..length])),
            }
        }
    };
    tokio::time::timeout(PATIENCE, search).await.unwrap_or_else(|_| panic!("waiting for {text:?}"));
    seen
}

async fn exit_code(streams: Streams) -> i32 {
    tokio::time::timeout(PATIENCE, streams.exit).await.expect("ends").expect("exit code")
}

#[tokio::test]
async fn commands_run_inside_the_container() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let mut config = idle();
    config.env = vec![("A".into(), "inside".into())];
    config.security.run_as_user = Some(33);
    let id = fixture.run(&sandbox, config).await;
    assert_eq!(fixture.exec(&id, "echo $A; id -u; cat /proc/1/comm").await, "inside\n33\nsh\n");
    let result = fixture
        .runtime
        .exec_sync(&id, ["sh", "-c", "echo e >&2; exit 9"].map(str::to_owned).to_vec(), None)
        .await;
    let result = result.expect("runs");
    assert_eq!((result.exit_code, result.stderr.as_slice()), (9, b"e\n".as_slice()));
    let missing = fixture.runtime.exec_sync(&id, vec!["no-such".into()], None).await;
    assert!(matches!(missing, Err(RuntimeError::Start { exit_code: 127, .. })), "{missing:?}");
    let big = fixture.runtime.exec_sync(
        &id,
        ["sh", "-c", "head -c 100000 /dev/zero"].map(str::to_owned).to_vec(),
        None,
    );
    assert_eq!(big.await.expect("runs").stdout.len(), sampan_runtime::EXEC_OUTPUT_LIMIT);
}

#[tokio::test]
async fn a_command_that_takes_too_long_is_killed() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    let command = vec!["sleep".into(), "1234".into()];
    let result = fixture.runtime.exec_sync(&id, command, Some(Duration::from_millis(100))).await;
    assert!(matches!(result, Err(RuntimeError::Timeout(_))), "{result:?}");
    assert!(!fixture.exec(&id, "ps").await.contains("sleep 1234"));
}

#[tokio::test]
async fn a_command_has_live_streams() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    let command = ["sh", "-c", "echo ready; while read line; do echo got $line; done; echo end >&2; exit 4"];
    let command = command.map(str::to_owned).to_vec();
    let mut streams = fixture.runtime.exec(&id, command, options(true, false)).await.expect("exec");
    let (mut stdin, mut stdout) =
        (streams.stdin.take().expect("input"), streams.stdout.take().expect("output"));
    expect(&mut stdout, "ready").await;
    stdin.write_all(b"one\n").await.expect("write");
    expect(&mut stdout, "got one").await;
    drop(stdin);
    expect(streams.stderr.as_mut().expect("errors"), "end").await;
    assert_eq!(exit_code(streams).await, 4);
}

#[tokio::test]
async fn a_command_can_have_a_terminal() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let id = fixture.run(&sandbox, idle()).await;
    let command = [
        "sh",
        "-c",
        "tty; read line; until stty size 2>/dev/null | grep '33 91'; do sleep 0.01; done; exit 2",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut streams = fixture.runtime.exec(&id, command, options(true, true)).await.expect("exec");
    let (mut stdin, mut stdout) =
        (streams.stdin.take().expect("input"), streams.stdout.take().expect("output"));
    expect(&mut stdout, "/dev/pts/").await;
    streams.resize.send((91, 33)).await.expect("resize");
    stdin.write_all(b"\n").await.expect("write");
    let mut rest = String::new();
    stdout.read_to_string(&mut rest).await.expect("ends like a file");
    assert!(rest.contains("33 91"), "{rest}");
    assert_eq!(exit_code(streams).await, 2);
}

#[tokio::test]
async fn clients_join_the_first_process() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let mut config = shell("while read line; do echo got $line; done; exit 6");
    (config.stdin, config.stdin_once) = (true, true);
    let id = fixture.run(&sandbox, config).await;
    let mut listener = fixture.runtime.attach(&id, options(false, false)).await.expect("attach");
    let mut speaker = fixture.runtime.attach(&id, options(true, false)).await.expect("attach");
    let mut stdin = speaker.stdin.take().expect("input");
    stdin.write_all(b"hello\n").await.expect("write");
    expect(speaker.stdout.as_mut().expect("output"), "got hello").await;
    expect(listener.stdout.as_mut().expect("output"), "got hello").await;
    drop(stdin);
    assert_eq!(exit_code(speaker).await, 6);
    assert_eq!(exit_code(listener).await, 6);
    assert_eq!(messages(&fixture.ended(&id).await.log_path), "got hello\n");
}

#[tokio::test]
async fn input_of_any_size_arrives() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let mut config = shell("wc -c");
    (config.stdin, config.stdin_once) = (true, true);
    let id = fixture.run(&sandbox, config).await;
    let mut streams = fixture.runtime.attach(&id, options(true, false)).await.expect("attach");
    let mut stdin = streams.stdin.take().expect("input");
    stdin.write_all(&vec![b'x'; 3_000_000]).await.expect("write");
    drop(stdin);
    expect(streams.stdout.as_mut().expect("output"), "3000000").await;
}

#[tokio::test]
async fn a_slow_client_never_stops_the_container() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let mut config = shell("read line; head -c 4000000 /dev/zero | tr '\\0' '\\n' >&2; echo done");
    config.stdin = true;
    let id = fixture.run(&sandbox, config).await;
    let mut events = fixture.runtime.events();
    let mut streams = fixture.runtime.attach(&id, options(true, false)).await.expect("attach");
    streams.stdin.as_mut().expect("input").write_all(b"\n").await.expect("write");
    // Nobody reads the streams.
    let status = fixture.ended_with(&id, &mut events).await;
    assert_eq!(status.exit_code, 0);
}

#[tokio::test]
async fn a_container_can_have_a_terminal() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let mut config = shell("read line; tty; stty size; test -c /dev/console && echo console; exit 3");
    (config.tty, config.stdin) = (true, true);
    let id = fixture.run(&sandbox, config).await;
    let mut streams = fixture.runtime.attach(&id, options(true, true)).await.expect("attach");
    streams.resize.send((80, 25)).await.expect("resize");
    streams.stdin.as_mut().expect("input").write_all(b"x\n").await.expect("write");
    let output = expect(streams.stdout.as_mut().expect("output"), "console").await;
    assert!(output.contains("/dev/pts/0"), "{output}");
    assert_eq!(exit_code(streams).await, 3);
    assert!(messages(&fixture.ended(&id).await.log_path).contains("/dev/pts/0"));
}

#[tokio::test]
async fn containers_of_a_pod_share_loopback_and_shared_memory() {
    let fixture = Fixture::new();
    let sandbox = fixture.sandbox().await;
    let server = fixture.run(&sandbox, shell("echo shared > /dev/shm/x; nc -ll -p 8080 -e echo hello")).await;
    let client = fixture.run(&sandbox, idle()).await;
    let fetch = "for i in $(seq 1000); do nc 127.0.0.1 8080 < /dev/null && exit; sleep 0.01; done";
    assert_eq!(fixture.exec(&client, fetch).await, "hello\n");
    assert_eq!(fixture.exec(&client, "cat /dev/shm/x").await, "shared\n");
    let (mut reader, _writer) = fixture.runtime.port_forward(&sandbox, 8080).await.expect("forward");
    expect(&mut reader, "hello").await;
    assert!(fixture.runtime.port_forward(&sandbox, 8081).await.is_err());
    fixture.runtime.stop_container(&server, Duration::ZERO).await.expect("stop");
}
