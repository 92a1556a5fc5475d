//! Who may do what.

use std::os::unix::fs::PermissionsExt as _;

use sampan_tests::{Cluster, Namespace};
use serde_json::json;

fn status_of(cluster: &Cluster, path: &str, args: &[&str]) -> String {
    cluster.curl(path, &[&["--output", "/dev/null", "--write-out", "%{http_code}"][..], args].concat()).ok()
}

#[test]
fn nobody_sees_health_and_version_only() {
    let cluster = Cluster::shared();
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(status_of(&cluster, path, &[]), "200", "{path}");
    }
    for path in
        ["/api", "/apis", "/api/v1/pods", "/api/v1/namespaces/kube-system/secrets", "/metrics", "/openapi/v3"]
    {
        assert_eq!(status_of(&cluster, path, &[]), "403", "{path}");
    }
    assert_eq!(status_of(&cluster, "/version", &["--header", "Authorization: Bearer wrong"]), "401");
}

#[test]
fn a_service_account_is_known_inside_and_outside_of_its_pod() {
    let space = Namespace::new("account");
    space.pod("p", "sleep 1000");
    space.wait_ready("p");
    let mount = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(space.exec("p", &format!("cat {mount}/namespace")).ok(), "account");
    assert!(space.exec("p", &format!("cat {mount}/ca.crt")).ok().contains("BEGIN CERTIFICATE"));
    let token = space.exec("p", &format!("cat {mount}/token")).ok();
    let bearer = format!("Authorization: Bearer {}", token.trim());
    let ask = |path: &str| status_of(space.cluster(), path, &["--header", &bearer]);
    assert_eq!(ask("/api"), "200");
    assert_eq!(ask("/api/v1/namespaces/account/pods"), "403", "an account has no rights of itself");
    space.kubectl(&["create", "role", "reader", "--verb=get,list", "--resource=pods"]).ok();
    space.kubectl(&["create", "rolebinding", "r", "--role=reader", "--serviceaccount=account:default"]).ok();
    assert_eq!(ask("/api/v1/namespaces/account/pods"), "200");
    assert_eq!(ask("/api/v1/namespaces/default/pods"), "403", "a role ends at its namespace");
    assert_eq!(ask("/api/v1/namespaces/account/secrets"), "403", "a role gives what it names");
    let mut broken = token.trim().to_owned();
    broken.truncate(broken.len() - 4);
    broken.push_str("AAAA");
    let bearer = format!("Authorization: Bearer {broken}");
    assert_eq!(status_of(space.cluster(), "/api", &["--header", &bearer]), "401", "a forged signature");

    // The token is bound to its pod and ends with it.
    space.kubectl(&["delete", "pod", "p"]).ok();
    sampan_tests::eventually("the token has ended", || {
        let status = ask("/api");
        sampan_tests::check(status == "401", status)
    });
}

#[test]
fn a_token_of_one_cluster_is_refused_by_another() {
    let space = Namespace::new("foreign");
    let token = space.kubectl(&["create", "token", "default"]).ok();
    let bearer = format!("Authorization: Bearer {}", token.trim());
    assert_eq!(status_of(space.cluster(), "/api", &["--header", &bearer]), "200");
    let audience = space.kubectl(&["create", "token", "default", "--audience=else"]).ok();
    let other = format!("Authorization: Bearer {}", audience.trim());
    assert_eq!(status_of(space.cluster(), "/api", &["--header", &other]), "401", "a token for somebody else");
    let foreign = Cluster::start();
    assert_eq!(status_of(&foreign, "/api", &["--header", &bearer]), "401");
}

#[test]
fn an_account_without_a_token() {
    let space = Namespace::new("no-token");
    let spec = json!({"automountServiceAccountToken": false, "restartPolicy": "Never"});
    space.pod_with("p", "test ! -e /var/run/secrets/kubernetes.io", json!({}), spec);
    space.output_of("p");
}

#[test]
fn keys_and_objects_are_for_root_only() {
    let cluster = Cluster::shared();
    for directory in [cluster.data_dir(), cluster.run_dir()] {
        let mode = std::fs::metadata(&directory).expect("the directory is there").permissions().mode();
        assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", directory.display());
    }
    let mut looked_at = 0;
    for directory in [cluster.data_dir().join("pki"), cluster.data_dir().join("store"), cluster.data_dir()] {
        for entry in std::fs::read_dir(&directory).expect("the directory is there").flatten() {
            let data = entry.metadata().expect("an entry has a mode");
            if data.is_file() {
                let mode = data.permissions().mode();
                assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", entry.path().display());
                looked_at += 1;
            }
        }
    }
    assert!(looked_at > 3, "{looked_at} files");
}

#[test]
fn a_container_is_confined() {
    let space = Namespace::new("confined");
    space.pod("p", "sleep 1000");
    space.wait_ready("p");
    let refused = [
        "mount -t tmpfs none /tmp",
        "echo other > /proc/sys/kernel/hostname",
        "mkdir /sys/fs/cgroup/x",
        "mknod /dev/x b 8 0 && head -c 1 /dev/x",
        "ls /proc/1/root/work /host",
    ];
    for script in refused {
        space.exec("p", script).fails();
    }
    let processes = space.exec("p", "ps | wc -l").ok();
    assert!(processes.trim().parse::<u32>().is_ok_and(|count| count < 8), "{processes} processes are seen");
    // Descriptors of ours would be a way out.
    assert_eq!(space.exec("p", "ls /proc/1/fd | tr '\\n' ' '").ok(), "0 1 2 ");
}

#[test]
fn a_loop_may_do_what_its_role_allows_and_no_more() {
    let cluster = Cluster::start();
    let role = "clusterrole/system:controller:replicaset-controller";
    let rules = |change: serde_json::Value| {
        cluster.kubectl(&["patch", role, "--type=json", "--patch", &json!([change]).to_string()]).ok()
    };
    let about_pods = cluster.kubectl(&["get", role, "--output=json"]).json()["rules"][2].clone();
    assert_eq!(about_pods["resources"], json!(["pods"]));
    rules(json!({"op": "remove", "path": "/rules/2"}));
    cluster.kubectl(&["create", "deployment", "web", "--image=busybox:1"]).ok();
    let get = ["get", "events", "--output=custom-columns=MESSAGE:.message"];
    let refused =
        r#"User "system:serviceaccount:kube-system:replicaset-controller" cannot create resource "pods""#;
    sampan_tests::eventually("the loop is refused by its name", || {
        let seen = cluster.kubectl(&get).ok();
        sampan_tests::check(seen.contains(refused), seen)
    });
    rules(json!({"op": "add", "path": "/rules/-", "value": about_pods}));
    sampan_tests::eventually("the loop goes on when it may again", || {
        let seen = cluster.kubectl(&["get", "pods", "--output=name"]).ok();
        sampan_tests::check(seen.contains("pod/web-"), seen)
    });
}

#[test]
fn an_expired_bootstrap_token_goes() {
    let cluster = Cluster::shared();
    let end = |seconds: i64| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock");
        let at = jiff::Timestamp::from_second(now.as_secs().cast_signed() + seconds).expect("a time");
        at.to_string()
    };
    let token = |id: &str, expiration: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
            "metadata": {"name": format!("bootstrap-token-{id}"), "namespace": "kube-system"},
            "stringData": {"token-id": id, "token-secret": "0123456789abcdef", "expiration": expiration},
        })
        .to_string()
    };
    for (id, seconds) in [("short0", 3), ("long00", 3600)] {
        cluster.kubectl_with(&["create", "-f", "-"], &token(id, &end(seconds))).ok();
    }
    let secrets = ["get", "secrets", "--namespace=kube-system", "--output=name"];
    sampan_tests::eventually("the expired token is gone, and no other", || {
        let seen = cluster.kubectl(&secrets).ok();
        assert!(seen.contains("bootstrap-token-long00"), "{seen}");
        sampan_tests::check(!seen.contains("bootstrap-token-short0"), seen)
    });
    cluster.kubectl(&["delete", "secret", "bootstrap-token-long00", "--namespace=kube-system"]).ok();
}
