//! What a pod's spec promises to its containers.

use sampan_tests::{IMAGE, Namespace, check, eventually};
use serde_json::json;

const ONCE: &str = "Never";

/// Runs a script to its end in a pod of its own and gives what it printed.
fn run(space: &Namespace, name: &str, script: &str, container: serde_json::Value) -> String {
    space.pod_with(name, script, container, json!({"restartPolicy": ONCE}));
    space.output_of(name)
}

#[test]
fn init_containers_run_one_after_the_other() {
    let space = Namespace::new("init");
    let mount = json!([{"name": "shared", "mountPath": "/shared"}]);
    let init = |name: &str, script: &str| json!({"name": name, "image": IMAGE, "command": ["/bin/sh", "-c", script], "volumeMounts": mount});
    let spec = json!({"restartPolicy": ONCE, "volumes": [{"name": "shared", "emptyDir": {}}],
        "initContainers": [init("one", "echo one >> /shared/log"), init("two", "echo two >> /shared/log")]});
    space.pod_with("p", "cat /shared/log", json!({"volumeMounts": mount}), spec);
    assert_eq!(space.output_of("p"), "one\ntwo\n");

    let failing = json!({"restartPolicy": ONCE,
        "initContainers": [{"name": "one", "image": IMAGE, "command": ["/bin/sh", "-c", "exit 3"]}]});
    space.pod_with("failing", "echo never", json!({}), failing);
    space.wait("pod/failing", ".status.phase", "Failed");
    assert_eq!(space.value("pod/failing", ".status.initContainerStatuses[0].state.terminated.exitCode"), "3");
    let shown = space.kubectl(&["get", "pod", "failing", "--no-headers"]).ok();
    assert!(shown.contains("Init:Error"), "{shown}");
}

#[test]
fn exit_codes_and_restart_policies() {
    let space = Namespace::new("exits");
    for (name, script, phase, code) in
        [("good", "exit 0", "Succeeded", "0"), ("bad", "exit 42", "Failed", "42")]
    {
        space.pod_with(name, script, json!({}), json!({"restartPolicy": ONCE}));
        space.wait(&format!("pod/{name}"), ".status.phase", phase);
        assert_eq!(
            space.value(&format!("pod/{name}"), ".status.containerStatuses[0].state.terminated.exitCode"),
            code
        );
    }
    space.pod_with("again", "echo run; exit 1", json!({}), json!({"restartPolicy": "OnFailure"}));
    space.wait("pod/again", ".status.containerStatuses[0].state.waiting.reason", "CrashLoopBackOff");
    let restarts: u32 =
        space.value("pod/again", ".status.containerStatuses[0].restartCount").parse().unwrap_or(0);
    assert!(restarts >= 1, "{restarts} restarts");
    assert_eq!(space.kubectl(&["logs", "again", "--previous"]).ok(), "run\n");
    assert_eq!(space.value("pod/again", ".status.containerStatuses[0].lastState.terminated.exitCode"), "1");
    let described = space.kubectl(&["describe", "pod", "again"]).ok();
    assert!(described.contains("Back-off restarting failed container"), "{described}");
}

#[test]
fn termination_messages() {
    let space = Namespace::new("messages");
    let spec = || json!({"restartPolicy": ONCE});
    space.pod_with("file", "printf why > /dev/termination-log; exit 1", json!({}), spec());
    let from_logs = json!({"terminationMessagePolicy": "FallbackToLogsOnError"});
    space.pod_with("logs", "echo from the log; exit 1", from_logs, spec());
    for (name, message) in [("file", "why"), ("logs", "from the log")] {
        space.wait(&format!("pod/{name}"), ".status.phase", "Failed");
        let said =
            space.value(&format!("pod/{name}"), ".status.containerStatuses[0].state.terminated.message");
        assert_eq!(said.trim(), message);
    }
}

#[test]
fn environment() {
    let space = Namespace::new("environment");
    space.apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"KEY": "from-map"}})).ok();
    space.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"PASS": "from-secret"}})).ok();
    let env = json!([
        {"name": "PLAIN", "value": "x"},
        {"name": "REFERS", "value": "$(PLAIN)-$$(PLAIN)-$(UNKNOWN)"},
        {"name": "MAP", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "KEY"}}},
        {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "PASS"}}},
        {"name": "ABSENT", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "no", "optional": true}}},
        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "LIMIT", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
    ]);
    let from = json!([{"configMapRef": {"name": "c"}}, {"prefix": "P_", "secretRef": {"name": "s"}}]);
    let limits = json!({"limits": {"memory": "32Mi"}});
    let printed = run(&space, "p", "env", json!({"env": env, "envFrom": from, "resources": limits}));
    let ip = space.value("pod/p", ".status.podIP");
    let ip = format!("IP={ip}");
    for line in [
        "PLAIN=x",
        "REFERS=x-$(PLAIN)-$(UNKNOWN)",
        "MAP=from-map",
        "SECRET=from-secret",
        "POD=p",
        "LABEL=p",
        "NODE=node-1",
        "LIMIT=32",
        "KEY=from-map",
        "P_PASS=from-secret",
        "HOSTNAME=p",
        "KUBERNETES_SERVICE_PORT=443",
        &ip,
    ] {
        assert!(printed.lines().any(|l| l == line), "no {line} in:\n{printed}");
    }
    assert!(!printed.contains("ABSENT"), "{printed}");
    space.pod_with("missing", "env", json!({"envFrom": [{"configMapRef": {"name": "none"}}]}), json!({}));
    space.wait(
        "pod/missing",
        ".status.containerStatuses[0].state.waiting.reason",
        "CreateContainerConfigError",
    );
}

#[test]
fn command_arguments_directory_and_user() {
    let space = Namespace::new("command");
    let spec = || json!({"restartPolicy": ONCE});
    // The image's entrypoint is the shell; `args` alone replaces only the image's own arguments.
    space.pod_with("args", "", json!({"command": null, "args": ["-c", "echo $0 $(pwd)", "name"]}), spec());
    assert_eq!(space.output_of("args"), "name /\n");
    let expanded = json!({"command": ["/bin/echo", "$(A)", "$$(A)"], "env": [{"name": "A", "value": "a b"}]});
    space.pod_with("expanded", "", expanded, spec());
    assert_eq!(space.output_of("expanded"), "a b $(A)\n");
    assert_eq!(run(&space, "dir", "pwd", json!({"workingDir": "/made/on/demand"})), "/made/on/demand\n");
    let user = json!({"securityContext": {"runAsUser": 1000, "runAsGroup": 1001}});
    assert_eq!(run(&space, "user", "id -u; id -g", user), "1000\n1001\n");
    let read_only = json!({"securityContext": {"readOnlyRootFilesystem": true}});
    assert_eq!(run(&space, "read-only", "touch /x 2> /dev/null || echo refused", read_only), "refused\n");
    let refused = json!({"securityContext": {"runAsNonRoot": true}});
    space.pod_with("non-root", "id", refused, spec());
    space.wait(
        "pod/non-root",
        ".status.containerStatuses[0].state.waiting.reason",
        "CreateContainerConfigError",
    );
}

#[test]
fn limits_are_in_the_control_group() {
    let space = Namespace::new("limits");
    let resources = json!({"resources": {"limits": {"cpu": "250m", "memory": "48Mi"}}});
    // Version 2 and version 1 have the same numbers in other files.
    let script = "cd /sys/fs/cgroup; cat cpu.max 2> /dev/null || cat cpu/cpu.cfs_quota_us; \
        cat memory.max 2> /dev/null || cat memory/memory.limit_in_bytes";
    let printed = run(&space, "p", script, resources);
    let mut lines = printed.lines();
    assert_eq!(lines.next().and_then(|l| l.split(' ').next()), Some("25000"), "{printed}");
    assert_eq!(lines.next(), Some("50331648"), "{printed}");
    let hungry = json!({"resources": {"limits": {"memory": "24Mi"}}});
    space.pod_with("hungry", "head -c 100000000 /dev/zero | tail", hungry, json!({"restartPolicy": ONCE}));
    space.wait("pod/hungry", ".status.phase", "Failed");
    let state = space.value("pod/hungry", ".status.containerStatuses[0].state.terminated");
    assert!(state.contains("OOMKilled") && state.contains("137"), "{state}");
}

#[test]
fn names_of_the_pod() {
    let space = Namespace::new("hosts");
    let spec = json!({"restartPolicy": ONCE, "hostname": "own", "subdomain": "sub",
        "hostAliases": [{"ip": "192.0.2.77", "hostnames": ["alias"]}]});
    space.pod_with("p", "hostname; cat /etc/hosts /etc/resolv.conf", json!({}), spec);
    let printed = space.output_of("p");
    assert!(printed.starts_with("own\n"), "{printed}");
    for text in [
        "192.0.2.77\talias",
        "own.sub.hosts.svc.cluster.local",
        "search hosts.svc.cluster.local svc.cluster.local cluster.local",
        "ndots:5",
    ] {
        assert!(printed.contains(text), "no `{text}` in:\n{printed}");
    }
}

#[test]
fn containers_of_a_pod_share_the_network() {
    let space = Namespace::new("sidecar");
    // A file, not a pipe: `nc` goes as soon as its peer has said everything, even if its own input has yet to come.
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
    "restartPolicy": ONCE,
    "containers": [
        {"name": "server", "image": IMAGE, "args": ["-c", "echo shared > /said; nc -l -p 7000 < /said"]},
        {"name": "client", "image": IMAGE, "args": ["-c", "until nc 127.0.0.1 7000 < /dev/null 2> /dev/null; do :; done"]},
    ]}});
    space.apply(&object).ok();
    space.wait("pod/p", ".status.phase", "Succeeded");
    assert_eq!(space.kubectl(&["logs", "p", "--container=client"]).ok().trim(), "shared");
}

#[test]
fn the_grace_period_and_the_hook_before_it() {
    let space = Namespace::new("grace");
    let directory = space.cluster().scratch().join("grace");
    std::fs::create_dir_all(&directory).expect("a directory can be made");
    let volumes = json!([{"name": "out", "hostPath": {"path": directory}}]);
    let container = json!({"volumeMounts": [{"name": "out", "mountPath": "/out"}],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", "echo hook >> /out/log"]}}}});
    let script =
        "trap 'echo term >> /out/log; exit 0' TERM; echo ready >> /out/log; while :; do sleep 0.05; done";
    space.pod_with("p", script, container, json!({"volumes": volumes, "terminationGracePeriodSeconds": 30}));
    let log = directory.join("log");
    eventually("the container has its trap", || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        check(text == "ready\n", text)
    });
    let started = std::time::Instant::now();
    space.kubectl(&["delete", "pod", "p"]).ok();
    assert!(started.elapsed().as_secs() < 25, "a container that ends by itself is not waited for");
    assert_eq!(std::fs::read_to_string(&log).unwrap_or_default(), "ready\nhook\nterm\n");

    // One that does not listen is killed when the period is over.
    space.pod_with("deaf", "trap '' TERM; while :; do sleep 0.05; done", json!({}), json!({}));
    space.wait_ready("deaf");
    space.kubectl(&["delete", "pod", "deaf"]).ok();
    space.kubectl(&["get", "pod", "deaf"]).fails_with(&["NotFound"]);
}

#[test]
fn images_and_commands_that_are_not_there() {
    let space = Namespace::new("missing");
    let reason = ".status.containerStatuses[0].state.waiting.reason";
    space.pod_with("never", "", json!({"image": "absent:1", "imagePullPolicy": "Never"}), json!({}));
    space.wait("pod/never", reason, "ErrImageNeverPull");
    space.pod_with("pull", "", json!({"image": "127.0.0.1:1/absent:1"}), json!({}));
    eventually("the pull fails", || {
        let reason = space.value("pod/pull", reason);
        check(reason == "ErrImagePull" || reason == "ImagePullBackOff", reason)
    });
    let events = eventually("the failure is told", || {
        let events = space.kubectl(&["describe", "pod", "pull"]).ok();
        check(events.contains("Failed to pull image"), events.clone())?;
        Ok(events)
    });
    assert!(events.contains("127.0.0.1:1"), "{events}");
    space.pod_with("name", "", json!({"image": "Not A Reference"}), json!({}));
    space.wait("pod/name", reason, "InvalidImageName");
    space.pod_with("program", "", json!({"command": ["/no/such/program"]}), json!({"restartPolicy": ONCE}));
    space.wait("pod/program", ".status.phase", "Failed");
    let state = space.value("pod/program", ".status.containerStatuses[0].state.terminated");
    assert!(state.contains("StartError") && state.contains("/no/such/program"), "{state}");
}
