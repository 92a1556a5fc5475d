//! Volumes of every kind.

use sampan_tests::{Namespace, check, eventually};
use serde_json::{Value, json};

fn config(space: &Namespace, data: Value) {
    space
        .apply(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": data}))
        .ok();
}

fn mounts(name: &str) -> Value {
    json!({"volumeMounts": [{"name": name, "mountPath": "/v"}]})
}

#[test]
fn config_maps_and_secrets_are_files() {
    let space = Namespace::new("files");
    config(&space, json!({"a": "1", "b": "2"}));
    space.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"key": "hidden"}})).ok();
    let volumes = json!([
        {"name": "all", "configMap": {"name": "c"}},
        {"name": "some", "configMap": {"name": "c", "items": [{"key": "b", "path": "deep/b", "mode": 256}]}},
        {"name": "secret", "secret": {"secretName": "s", "defaultMode": 288}},
        {"name": "optional", "configMap": {"name": "absent", "optional": true}},
    ]);
    let all_mounts: Vec<Value> = ["all", "some", "secret", "optional"]
        .iter()
        .map(|name| json!({"name": name, "mountPath": format!("/v/{name}")}))
        .collect();
    let script = "cd /v; cat all/a all/b some/deep/b secret/key; echo; stat -L -c %a some/deep/b secret/key; ls optional; \
        touch all/x 2> /dev/null || echo read-only";
    let spec = json!({"volumes": volumes, "restartPolicy": "Never"});
    space.pod_with("p", script, json!({"volumeMounts": all_mounts}), spec);
    assert_eq!(space.output_of("p"), "122hidden\n400\n440\nread-only\n");
}

#[test]
fn a_running_pod_sees_a_changed_config_map() {
    let space = Namespace::new("live");
    config(&space, json!({"a": "old"}));
    space.pod_with(
        "p",
        "sleep 1000",
        mounts("c"),
        json!({"volumes": [{"name": "c", "configMap": {"name": "c"}}]}),
    );
    space.wait_ready("p");
    assert_eq!(space.exec("p", "cat /v/a").ok(), "old");
    config(&space, json!({"a": "new", "b": "more"}));
    eventually("the files have changed", || {
        let seen = space.exec("p", "cat /v/a /v/b");
        check(seen.stdout == "newmore", seen.to_string())
    });
}

#[test]
fn a_pod_waits_for_its_config_map() {
    let space = Namespace::new("late");
    space.pod_with(
        "p",
        "cat /v/a; sleep 1000",
        mounts("c"),
        json!({"volumes": [{"name": "c", "configMap": {"name": "c"}}]}),
    );
    eventually("the failure is told", || {
        let described = space.kubectl(&["describe", "pod", "p"]).ok();
        check(described.contains("FailedMount") && described.contains("\"c\" not found"), described)
    });
    config(&space, json!({"a": "there"}));
    space.wait_ready("p");
}

#[test]
fn empty_directories_outlive_containers() {
    let space = Namespace::new("empty");
    let volumes = json!([{"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}]);
    let both = json!([{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]);
    let script = "test -f /disk/seen && { cat /disk/seen; grep ' /memory tmpfs' /proc/mounts > /dev/null && echo tmpfs; \
        head -c 3000000 /dev/zero > /memory/big 2> /dev/null || echo full; exit 0; }; echo first > /disk/seen; exit 1";
    let spec = json!({"volumes": volumes, "restartPolicy": "OnFailure"});
    space.pod_with("p", script, json!({"volumeMounts": both}), spec);
    assert_eq!(space.output_of("p"), "first\ntmpfs\nfull\n");
}

#[test]
fn host_paths_and_sub_paths() {
    let space = Namespace::new("host-path");
    let directory = space.cluster().scratch().join("host-path");
    std::fs::create_dir_all(directory.join("sub")).expect("a directory can be made");
    std::fs::write(directory.join("sub/file"), "from the host").expect("a file can be written");
    let volumes = json!([{"name": "host", "hostPath": {"path": directory, "type": "Directory"}}]);
    let both = json!([{"name": "host", "mountPath": "/v", "subPath": "sub"}, {"name": "host", "mountPath": "/ro", "readOnly": true}]);
    let script = "cat /v/file; echo back > /v/answer; touch /ro/x 2> /dev/null || echo read-only";
    space.pod_with(
        "p",
        script,
        json!({"volumeMounts": both}),
        json!({"volumes": volumes, "restartPolicy": "Never"}),
    );
    assert_eq!(space.output_of("p"), "from the hostread-only\n");
    let answer = std::fs::read_to_string(directory.join("sub/answer")).unwrap_or_default();
    assert_eq!(answer, "back\n");
    let absent = json!([{"name": "v", "hostPath": {"path": directory.join("no"), "type": "Directory"}}]);
    space.pod_with("absent", "true", mounts("v"), json!({"volumes": absent}));
    eventually("the failure is told", || {
        let described = space.kubectl(&["describe", "pod", "absent"]).ok();
        check(described.contains("FailedMount"), described)
    });
}

#[test]
fn the_downward_interface_and_projections() {
    let space = Namespace::new("downward");
    config(&space, json!({"a": "1"}));
    let field = |path: &str, field: &str| json!({"path": path, "fieldRef": {"fieldPath": field}});
    let volumes = json!([{"name": "p", "projected": {"sources": [
        {"downwardAPI": {"items": [field("labels", "metadata.labels"), field("name", "metadata.name")]}},
        {"configMap": {"name": "c"}},
        {"serviceAccountToken": {"path": "token", "audience": "else", "expirationSeconds": 600}},
    ]}}]);
    space.pod_with("p", "sleep 1000", mounts("p"), json!({"volumes": volumes}));
    space.wait_ready("p");
    assert_eq!(space.exec("p", "cat /v/labels /v/name /v/a").ok(), "app=\"p\"p1");
    assert_eq!(space.exec("p", "cat /v/token").ok().split('.').count(), 3);
    space.kubectl(&["label", "pod", "p", "more=x"]).ok();
    eventually("the labels have changed", || {
        let seen = space.exec("p", "cat /v/labels");
        check(seen.stdout.contains("more=\"x\""), seen.to_string())
    });
}

#[test]
fn volumes_go_with_the_pod() {
    let space = Namespace::new("cleanup");
    let volumes = json!([{"name": "m", "emptyDir": {"medium": "Memory"}}]);
    space.pod_with("p", "sleep 1000", mounts("m"), json!({"volumes": volumes}));
    space.wait_ready("p");
    let uid = space.value("pod/p", ".metadata.uid");
    let mounted = || std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default().contains(&uid);
    assert!(mounted(), "the volume is mounted for pod {uid}");
    space.kubectl(&["delete", "pod", "p"]).ok();
    eventually("the mounts and directories are gone", || {
        check(!mounted(), "there is a mount")?;
        let pods = space.cluster().data_dir().join("node/pods");
        check(!pods.join(&uid).exists(), format!("there is {}", pods.join(&uid).display()))
    });
}

#[test]
fn a_claim_that_is_going_is_given_to_nobody_more() {
    let space = Namespace::new("claims");
    let directory = space.cluster().scratch().join("claimed");
    let size = json!({"storage": "1Mi"});
    let modes = json!(["ReadWriteOnce"]);
    space
        .apply(&json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "claimed"},
            "spec": {
                "capacity": size, "accessModes": modes, "storageClassName": "",
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": directory},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "claims", "name": "c"},
            },
        }))
        .ok();
    space
        .apply(&json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "c"},
            "spec": {
                "accessModes": modes, "storageClassName": "", "volumeName": "claimed",
                "resources": {"requests": size},
            },
        }))
        .ok();
    let volumes = json!([{"name": "v", "persistentVolumeClaim": {"claimName": "c"}}]);
    // Past the scheduler, which would not place a pod whose claim is going.
    let spec = json!({"volumes": volumes, "nodeName": "node-1"});
    space.pod_with("first", "echo kept > /v/file; sleep 1000", mounts("v"), spec.clone());
    space.wait_ready("first");
    space.kubectl(&["delete", "persistentvolumeclaim", "c", "--wait=false"]).ok();
    space.pod_with("late", "sleep 1000", mounts("v"), spec);
    eventually("the late pod is told why it waits", || {
        let described = space.kubectl(&["describe", "pod", "late"]).ok();
        check(described.contains("persistentvolumeclaim \"c\" is being deleted"), described)
    });
    assert_eq!(space.exec("first", "cat /v/file").ok(), "kept\n", "who had it keeps it");
    space.kubectl(&["delete", "pod", "first", "late"]).ok();
    eventually("the claim goes with its last pod", || {
        let seen = space.kubectl(&["get", "persistentvolumeclaims", "--output=name"]).ok();
        check(seen.is_empty(), seen)
    });
    space.kubectl(&["delete", "persistentvolume", "claimed"]).ok();
}
