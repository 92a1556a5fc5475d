//! Probes: ready, alive, started.

use sampan_tests::Namespace;
use serde_json::{Value, json};

const SERVER: &str = "mkdir /www; echo ok > /www/index.html; exec httpd -f -p 8080 -h /www";

#[test]
fn readiness_by_every_kind_of_probe() {
    let space = Namespace::new("readiness");
    let api = space.cluster().address().port();
    let rows: &[(&str, Value)] = &[
        // The API itself: its certificate is signed by nobody the node would know as a prober.
        (
            "https",
            json!({"httpGet": {"host": "127.0.0.1", "path": "/version", "port": api, "scheme": "HTTPS"}}),
        ),
        ("http", json!({"httpGet": {"path": "/index.html", "port": 8080}})),
        ("named", json!({"httpGet": {"path": "/", "port": "web"}})),
        ("tcp", json!({"tcpSocket": {"port": 8080}})),
        ("exec", json!({"exec": {"command": ["/bin/sh", "-c", "test -f /www/index.html"]}})),
    ];
    for (name, probe) in rows {
        let mut probe = probe.clone();
        probe["periodSeconds"] = 1.into();
        let ports = json!([{"name": "web", "containerPort": 8080}]);
        space.pod_with(name, SERVER, json!({"readinessProbe": probe, "ports": ports}), json!({}));
    }
    for (name, _) in rows {
        space.wait_ready(name);
    }
    space.exec("exec", "rm /www/index.html").ok();
    space.exec("http", "rm /www/index.html").ok();
    for name in ["exec", "http"] {
        space.wait(&format!("pod/{name}"), ".status.conditions[?(@.type==\"Ready\")].status", "False");
        let shown = space.kubectl(&["get", "pod", name, "--no-headers"]).ok();
        assert!(shown.contains("0/1") && shown.contains("Running"), "{shown}");
        let described = space.kubectl(&["describe", "pod", name]).ok();
        assert!(described.contains("Readiness probe failed"), "{described}");
    }
}

#[test]
fn a_container_that_is_not_alive_is_restarted() {
    let space = Namespace::new("liveness");
    let probe = json!({"exec": {"command": ["/bin/sh", "-c", "test ! -f /dead"]}, "periodSeconds": 1, "failureThreshold": 1});
    space.pod_with("p", "sleep 1000", json!({"livenessProbe": probe}), json!({}));
    space.wait_ready("p");
    space.exec("p", "touch /dead").ok();
    space.wait("pod/p", ".status.containerStatuses[0].restartCount", "1");
    space.wait_ready("p");
    let described = space.kubectl(&["describe", "pod", "p"]).ok();
    assert!(described.contains("Liveness probe failed"), "{described}");
    assert!(described.contains("failed liveness probe, will be restarted"), "{described}");
    space.exec("p", "test ! -f /dead").ok();
}

#[test]
fn nothing_else_is_probed_before_the_start() {
    let space = Namespace::new("startup");
    let startup = json!({"exec": {"command": ["/bin/sh", "-c", "test -f /started"]}, "periodSeconds": 1, "failureThreshold": 60});
    // Would kill the container at once if it were asked before the start.
    let liveness = json!({"exec": {"command": ["/bin/sh", "-c", "test -f /started"]}, "periodSeconds": 1, "failureThreshold": 1});
    space.pod_with("p", "sleep 1000", json!({"startupProbe": startup, "livenessProbe": liveness}), json!({}));
    space.wait("pod/p", ".status.containerStatuses[0].started", "false");
    space.wait("pod/p", ".status.phase", "Running");
    space.exec("p", "touch /started").ok();
    space.wait_ready("p");
    assert_eq!(space.value("pod/p", ".status.containerStatuses[0].restartCount"), "0");
}
