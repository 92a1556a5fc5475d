//! The life of a cluster: start, restart, two beside each other, end.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;

use sampan_tests::{Cluster, Namespace, check, eventually, processes};
use serde_json::json;

/// A command nobody else runs: the number differs between processes and uses.
fn unique_sleep(number: u32) -> String {
    format!("sleep {}", 100_000_000 + u64::from(std::process::id()) * 10 + u64::from(number))
}

/// Name, container and restarts of every pod.
fn identities(space: &Namespace) -> BTreeMap<String, String> {
    let pods = space.kubectl(&["get", "pods", "--output", "json"]).json();
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let identity = |pod: &serde_json::Value| {
        let status = &pod["status"]["containerStatuses"][0];
        (pod["metadata"]["name"].to_string(), format!("{} {}", status["containerID"], status["restartCount"]))
    };
    pods.iter().map(identity).collect()
}

#[test]
fn a_restart_finds_the_pods_again() {
    let sleep = unique_sleep(0);
    let space = Namespace::in_cluster(Arc::new(Cluster::start()), "restart");
    space.deployment("web", 2, &format!("exec {sleep}"), json!({}));
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
    let shared = space.cluster().scratch().join("shared");
    std::fs::create_dir(&shared).expect("a directory can be made");
    let spec = json!({"restartPolicy": "Never", "volumes": [{"name": "v", "hostPath": {"path": shared}}]});
    let mount = json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    let script =
        "echo begun >> /v/log; until test -f /v/go; do sleep 0.02; done; echo said; touch /v/ended; exit 6";
    space.pod_with("ends", script, mount, spec);
    space.wait_ready("ends");
    let (running, known) = (processes(&sleep), identities(&space));
    assert_eq!(running.len(), 2, "{running:?}");

    // The container ends while nobody is there to see it.
    space.cluster().terminate();
    assert_eq!(processes(&sleep), running, "pods outlive the platform");
    std::fs::write(shared.join("go"), "").expect("a file can be written");
    eventually("the container ends", || check(shared.join("ended").exists(), "it runs"));
    space.cluster().up();

    space.wait("pod/ends", ".status.phase", "Failed");
    assert_eq!(space.value("pod/ends", ".status.containerStatuses[0].state.terminated.exitCode"), "6");
    assert_eq!(space.kubectl(&["logs", "ends"]).ok(), "said\n");
    assert_eq!(std::fs::read_to_string(shared.join("log")).unwrap_or_default(), "begun\n", "it ran once");
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
    assert_eq!(processes(&sleep), running, "the same processes");
    assert_eq!(identities(&space), known, "the same containers");
    let pod = space
        .kubectl(&["get", "pods", "--selector=app=web", "--output=jsonpath={.items[0].metadata.name}"])
        .ok();
    assert_eq!(space.exec(&pod, "echo $((6 * 7))").ok(), "42\n");
    space.kubectl(&["scale", "deployment/web", "--replicas=3"]).ok();
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
}

/// How often a cluster is killed and started again; an order that is left to chance shows after a few.
const RESTARTS: u32 = 8;

#[test]
fn a_kill_before_a_sandbox_has_its_address_costs_no_later_container() {
    let sleep = unique_sleep(9);
    let space = Namespace::in_cluster(Arc::new(Cluster::start()), "addressless");
    let cluster = space.cluster();
    space.pod("p", &format!("exec {sleep}"));
    space.wait_ready("p");
    let first = processes(&sleep);
    assert_eq!(first.len(), 1, "{first:?}");
    cluster.kill();
    // What a kill between making a sandbox and giving it an address leaves on the disk.
    let mut addresses = Vec::new();
    for sandbox in
        std::fs::read_dir(cluster.data_dir().join("containers/sandboxes")).expect("records").flatten()
    {
        addresses.push(sandbox.path().join("addresses.json"));
    }
    addresses.retain(|path| path.exists());
    assert_eq!(addresses.len(), 1, "{addresses:?}");
    std::fs::remove_file(&addresses[0]).expect("a record can be removed");
    cluster.up();
    // The sandbox without an address is replaced, and its container with it.
    eventually("the container runs in a new sandbox", || {
        let now = processes(&sleep);
        check(now.len() == 1 && now != first, format!("{now:?}"))
    });
    space.wait_ready("p");
    let running = processes(&sleep);
    for restart in 0..RESTARTS {
        cluster.kill();
        cluster.up();
        // An answer of the pod's node: it has looked at its pods.
        space.exec("p", "true").ok();
        space.pod(&format!("later-{restart}"), "sleep 1000");
        space.wait(&format!("pod/later-{restart}"), ".status.phase", "Running");
        assert_eq!(processes(&sleep), running, "after restart {restart}: the same process");
    }
    assert_eq!(space.value("pod/p", ".status.containerStatuses[0].restartCount"), "1");
}

#[test]
fn two_clusters_live_beside_each_other() {
    let spaces = [0, 1].map(|_| Namespace::in_cluster(Arc::new(Cluster::start()), "same-name"));
    for space in &spaces {
        space.pod("p", "mkdir /www; hostname -i > /www/index.html; exec httpd -f -p 80 -h /www");
        space
            .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
            "spec": {"selector": {"app": "p"}, "ports": [{"port": 80}]}}))
            .ok();
    }
    let addresses = spaces.each_ref().map(|space| {
        space.wait_ready("p");
        eventually("the service answers", || {
            let done = space.exec("p", "timeout 5 wget -q -O - http://s/");
            check(done.code == Some(0), done.to_string())
        });
        space.value("pod/p", ".status.podIP")
    });
    assert_ne!(addresses[0], addresses[1]);
    let [gone, stays] = spaces;
    // Ends it and looks whether anything is left.
    drop(gone);
    assert_eq!(stays.exec("p", "timeout 5 wget -q -O - http://s/").ok().trim(), addresses[1]);
}

#[test]
fn down_can_be_repeated_and_objects_survive_it() {
    let cluster = Arc::new(Cluster::start());
    let sleep = unique_sleep(1);
    let space = Namespace::in_cluster(Arc::clone(&cluster), "down");
    space.pod("p", &format!("exec {sleep}"));
    space.wait_ready("p");
    assert_eq!(processes(&sleep).len(), 1);
    let down = cluster.sampan(&["down"]);
    cluster.reap();
    down.ok();
    assert_eq!(processes(&sleep).len(), 0, "down ends the pods");
    cluster.sampan(&["down"]).ok();
    cluster.up();
    // The pod is still wanted: a new container runs.
    eventually("the pod runs again", || check(processes(&sleep).len() == 1, "it does not run"));
    space.wait_ready("p");
}

#[test]
fn starts_that_cannot_be() {
    let cluster = Cluster::start();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let bind = taken.local_addr().expect("a listener has an address").to_string();
    // Its own directories, because the same ones are the other complaint.
    let other = cluster.scratch().join("other");
    let up = cluster.sampan_command(&["up", "--bind", &bind], &other);
    let said = complaint(&up);
    assert!(said.contains(&bind) && said.contains("cannot listen"), "{said}");
    let again = cluster.sampan_command(&["up", "--bind", "127.0.0.1:0"], cluster.scratch());
    let said = complaint(&again);
    assert!(said.contains("another sampan runs"), "{said}");
    let ranges = cluster.sampan_command(&["up", "--pod-cidr", "10.0.0.0/8"], &other);
    assert!(complaint(&ranges).contains("--service-cidr"));
    drop(complaint(&cluster.sampan_command(&["up", "--bind", "nonsense"], &other)));
}

/// What a program that must fail says. One that goes on running is ended.
fn complaint(command: &Command) -> String {
    let mut guarded = Command::new("timeout");
    guarded.args(["--kill-after=5", "20"]).arg(command.get_program()).args(command.get_args());
    let output = guarded.output().expect("the binary can be run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.status.code() != Some(124), "it runs: {said}");
    said
}

#[test]
fn data_that_cannot_be_used() {
    let cluster = Cluster::start();
    cluster.terminate();
    let store = cluster.data_dir().join("store");
    let files: Vec<_> = std::fs::read_dir(&store).expect("a store").flatten().map(|e| e.path()).collect();
    // The header of every file of the store is damaged: it is from a future or from nobody.
    let mut saved = Vec::new();
    for path in files.iter().filter(|path| path.is_file()) {
        let bytes = std::fs::read(path).expect("a file can be read");
        let mut damaged = bytes.clone();
        damaged.iter_mut().take(12).for_each(|byte| *byte ^= 0xff);
        std::fs::write(path, damaged).expect("a file can be written");
        saved.push((path.clone(), bytes));
    }
    assert!(!saved.is_empty());
    let said = complaint(&cluster.sampan_command(&["up", "--bind", "127.0.0.1:0"], cluster.scratch()));
    assert!(said.contains(&*store.to_string_lossy()), "the complaint names the file: {said}");
    for (path, bytes) in saved {
        std::fs::write(path, bytes).expect("a file can be written");
    }
    cluster.up();
}

#[test]
fn an_object_written_is_there_after_a_restart() {
    let space = Namespace::in_cluster(Arc::new(Cluster::start()), "durable");
    let object =
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}});
    space.apply(&object).ok();
    let before = space.value("configmap/c", ".metadata");
    space.cluster().terminate();
    space.cluster().up();
    assert_eq!(space.value("configmap/c", ".metadata"), before);
    let watch = space.kubectl_background(&["get", "configmaps", "--watch", "--no-headers"]);
    watch.line_with("c ");
    space.cluster().kill();
    space.cluster().up();
    assert_eq!(space.value("configmap/c", ".metadata"), before);
}
