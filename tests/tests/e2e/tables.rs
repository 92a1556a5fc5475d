//! The columns that `kubectl get` shows are made by the server.

use sampan_tests::Namespace;
use serde_json::json;

#[test]
fn columns_are_those_of_kubernetes() {
    let space = Namespace::new("tables");
    space.deployment("web", 1, "sleep 1000", json!({}));
    space.kubectl(&["rollout", "status", "deployment/web", "--timeout=50s"]).ok();
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80}]}});
    space.apply(&service).ok();
    space.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}})).ok();
    let rows: &[(&str, &[&str])] = &[
        (
            "pods",
            &[
                "NAME",
                "READY",
                "STATUS",
                "RESTARTS",
                "AGE",
                "IP",
                "NODE",
                "NOMINATED NODE",
                "READINESS GATES",
            ],
        ),
        (
            "deployments",
            &["NAME", "READY", "UP-TO-DATE", "AVAILABLE", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"],
        ),
        ("replicasets", &["NAME", "DESIRED", "CURRENT", "READY", "AGE", "CONTAINERS", "IMAGES", "SELECTOR"]),
        ("services", &["NAME", "TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE", "SELECTOR"]),
        ("endpointslices", &["NAME", "ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"]),
        ("configmaps", &["NAME", "DATA", "AGE"]),
        ("secrets", &["NAME", "TYPE", "DATA", "AGE"]),
        ("namespaces", &["NAME", "STATUS", "AGE"]),
        (
            "nodes",
            &[
                "NAME",
                "STATUS",
                "ROLES",
                "AGE",
                "VERSION",
                "INTERNAL-IP",
                "EXTERNAL-IP",
                "OS-IMAGE",
                "KERNEL-VERSION",
                "CONTAINER-RUNTIME",
            ],
        ),
        (
            "events",
            &[
                "LAST SEEN",
                "TYPE",
                "REASON",
                "OBJECT",
                "SUBOBJECT",
                "SOURCE",
                "MESSAGE",
                "FIRST SEEN",
                "COUNT",
                "NAME",
            ],
        ),
    ];
    for (kind, columns) in rows {
        let shown = space.kubectl(&["get", kind, "--output", "wide"]).ok();
        let header = shown.lines().next().unwrap_or_default();
        let header: Vec<&str> = header.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        assert_eq!(header, *columns, "columns of {kind}");
    }
}
