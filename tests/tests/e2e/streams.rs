//! Bytes between a user and a container: logs, exec, attach, cp, port-forward.
//!
//! What clients do over WebSockets today they did over SPDY before Kubernetes 1.30; the tests of streams do both.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use sampan_tests::{Background, IMAGE, Namespace, check, command, eventually};
use serde_json::json;

/// Makes `kubectl` speak SPDY, as older clients do.
const SPDY: &[(&str, &str)] =
    &[("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false"), ("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false")];

/// A namespace for each of the two protocols.
fn both(name: &str) -> [Namespace; 2] {
    [Namespace::new(name), Namespace::new(&format!("{name}-spdy")).with_environment(SPDY)]
}

#[test]
fn each_protocol_is_spoken() {
    let space = Namespace::new("protocols");
    space.pod("p", "sleep 1000");
    space.wait_ready("p");
    let upgrades = |space: &Namespace| {
        let done = space.kubectl(&["exec", "p", "--v=8", "--", "true"]);
        assert_eq!(done.code, Some(0), "{done}");
        let answers = done.stderr.lines().filter(|line| line.contains("Upgrade:"));
        answers
            .map(|line| line.rsplit(' ').next().unwrap_or_default().to_ascii_lowercase())
            .collect::<Vec<_>>()
    };
    assert_eq!(upgrades(&space), ["websocket"]);
    assert_eq!(upgrades(&space.with_environment(SPDY)), ["spdy/3.1"]);
}

#[test]
fn logs() {
    let space = Namespace::new("logs");
    space.pod_with(
        "p",
        "for i in 1 2 3; do echo line $i; done; echo error >&2",
        json!({}),
        json!({"restartPolicy": "Never"}),
    );
    assert_eq!(space.output_of("p"), "line 1\nline 2\nline 3\nerror\n");
    assert_eq!(space.kubectl(&["logs", "p", "--tail=1"]).ok(), "error\n");
    assert_eq!(space.kubectl(&["logs", "p", "--limit-bytes=4"]).ok(), "line");
    let stamped = space.kubectl(&["logs", "p", "--timestamps", "--tail=1"]).ok();
    assert!(stamped.contains('T') && stamped.ends_with("Z error\n"), "{stamped}");
    assert_eq!(
        space.kubectl(&["logs", "p", "--since=1h", "--all-containers", "--prefix", "--tail=1"]).ok(),
        "[pod/p/c] error\n"
    );
    space.kubectl(&["logs", "p", "--container=no"]).fails_with(&["container no is not valid for pod p"]);
    space.kubectl(&["logs", "p", "--previous"]).fails_with(&["previous terminated container"]);
}

#[test]
fn logs_are_followed_to_the_end() {
    let space = Namespace::new("follow");
    space.pod_with(
        "p",
        "echo first; until test -f /go; do sleep 0.05; done; echo second",
        json!({}),
        json!({"restartPolicy": "Never"}),
    );
    space.wait("pod/p", ".status.phase", "Running");
    let follow = space.kubectl_background(&["logs", "p", "--follow"]);
    follow.line_with("first");
    space.exec("p", "touch /go").ok();
    follow.line_with("second");
    assert_eq!(follow.end(), Some(0), "the stream ends with the container");
}

#[test]
fn exec() {
    both("exec").iter().for_each(exec_in);
}

fn exec_in(space: &Namespace) {
    space.pod("p", "sleep 1000");
    space.wait_ready("p");
    let both = space.exec("p", "echo out; echo err >&2; exit 7");
    assert_eq!((both.code, both.stdout.as_str()), (Some(7), "out\n"));
    assert!(both.stderr.contains("err\n") && both.stderr.contains("exit code 7"), "{both}");
    assert_eq!(space.kubectl_with(&["exec", "-i", "p", "--", "cat"], "typed").ok(), "typed");
    assert_eq!(space.kubectl(&["exec", "p", "--container=c", "--", "hostname"]).ok(), "p\n");
    space.kubectl(&["exec", "p", "--", "nosuch"]).fails_with(&["nosuch"]);
    space
        .kubectl(&["exec", "p", "--container=no", "--", "ls"])
        .fails_with(&["container no is not valid for pod p"]);
    space.kubectl(&["exec", "absent", "--", "ls"]).fails_with(&["NotFound"]);
    let big = space.exec("p", "head -c 5000000 /dev/zero | tr '\\0' x").ok();
    assert_eq!(big.len(), 5_000_000, "nothing is lost at the end of a stream");
}

/// `kubectl` below a terminal, which `script` makes.
fn with_terminal(space: &Namespace, args: &str) -> Background {
    let kubectl = space.kubectl_command(&[]);
    let program = kubectl.get_program().to_string_lossy().into_owned();
    let line = format!("stty cols 101 rows 33; exec {program} --namespace {} {args}", space.name());
    let mut script = command("script", &["--quiet", "--return", "--flush", "--command", &line, "/dev/null"]);
    for (name, value) in kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        script.env(name, value);
    }
    Background::start(script)
}

#[test]
fn exec_with_a_terminal() {
    both("terminal").iter().for_each(exec_with_a_terminal_in);
}

fn exec_with_a_terminal_in(space: &Namespace) {
    space.pod("p", "sleep 1000");
    space.wait_ready("p");
    let mut session = with_terminal(space, "exec -it p -- /bin/sh");
    session.type_in("tty; echo sum $((40 + 2))\n");
    session.line_with("/dev/pts/");
    session.line_with("sum 42");
    // It is told a moment after the start.
    session.type_in("until test \"$(stty size)\" = '33 101'; do sleep 0.1; done; echo size $((30 + 3))\n");
    session.line_with("size 33");
    // An interrupt character ends what runs in the foreground, not the session.
    session.type_in("sleep 777\n");
    eventually("the command runs", || {
        let shown = space.exec("p", "ps").ok();
        check(shown.contains("sleep 777"), shown)
    });
    session.type_in("\u{3}");
    session.type_in("echo still $((1 + 1))\n");
    session.line_with("still 2");
    session.type_in("exit 5\n");
    assert_eq!(session.end(), Some(5));
}

#[test]
fn attach() {
    both("attach").iter().for_each(attach_in);
}

fn attach_in(space: &Namespace) {
    let script = "while read line; do echo got $line; done; echo end of input";
    let container = json!({"stdin": true, "stdinOnce": true});
    space.pod_with("p", script, container, json!({"restartPolicy": "Never"}));
    space.wait_ready("p");
    let mut session = space.kubectl_background(&["attach", "-i", "p"]);
    session.type_in("one\n");
    session.line_with("got one");
    session.end_input();
    session.line_with("end of input");
    assert_eq!(session.end(), Some(0));
    space.wait("pod/p", ".status.phase", "Succeeded");
}

#[test]
fn run_and_remove() {
    let space = Namespace::new("run");
    let image = format!("--image={IMAGE}");
    let args = ["run", "once", "--rm", "-i", "--restart=Never", &image, "--", "-c", "cat; echo bye"];
    let printed = space.kubectl_with(&args, "hello\n").ok();
    assert!(printed.contains("hello\nbye\n") && printed.contains("deleted"), "{printed}");
    let failing =
        space.kubectl(&["run", "bad", "--rm", "-i", "--restart=Never", &image, "--", "-c", "exit 9"]);
    assert_eq!(failing.code, Some(9), "{failing}");
}

#[test]
fn copies() {
    both("copies").iter().for_each(copies_in);
}

fn copies_in(space: &Namespace) {
    space.pod("p", "sleep 1000");
    space.wait_ready("p");
    let directory = space.cluster().scratch().join(space.name());
    std::fs::create_dir_all(directory.join("tree/deep")).expect("a directory can be made");
    // Long enough for many messages, and different everywhere.
    let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    std::fs::write(directory.join("tree/deep/file"), &bytes).expect("a file can be written");
    let (there, back) = (directory.join("tree"), directory.join("back"));
    space.kubectl(&["cp", &there.display().to_string(), "p:/tmp/tree"]).ok();
    space.kubectl(&["cp", "p:/tmp/tree", &back.display().to_string()]).ok();
    let returned = std::fs::read(back.join("deep/file")).unwrap_or_default();
    assert!(returned == bytes, "{} of {} bytes came back", returned.len(), bytes.len());
}

#[test]
fn port_forward() {
    both("forward").iter().for_each(port_forward_in);
}

fn port_forward_in(space: &Namespace) {
    let server = "mkdir /www; echo forwarded > /www/index.html; exec httpd -f -p 8080 -h /www";
    let probe = json!({"readinessProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1}});
    space.pod_with("p", server, probe, json!({}));
    space.wait_ready("p");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"selector": {"app": "p"}, "ports": [{"port": 80, "targetPort": 8080}]}});
    space.apply(&service).ok();
    for (target, port) in [("pod/p", "8080"), ("service/s", "80")] {
        let forward =
            space.kubectl_background(&["port-forward", "--address=127.0.0.1", target, &format!(":{port}")]);
        let line = forward.line_with("Forwarding from");
        let local = line.split(' ').find(|word| word.starts_with("127.0.0.1:")).expect("an address");
        // Several at once: all are open before the first one asks.
        let streams: Vec<TcpStream> =
            (0..3).map(|_| TcpStream::connect(local).expect("the port is open")).collect();
        for mut stream in streams {
            stream.write_all(b"GET / HTTP/1.0\r\n\r\n").expect("a request can be written");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).expect("an answer can be read");
            assert!(answer.ends_with("forwarded\n"), "{target} answers {answer}");
        }
    }
}
