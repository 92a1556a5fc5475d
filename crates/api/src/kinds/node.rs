//! Nodes: machines that run pods.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{default_field, entries, is_empty, is_true, list, text};
use super::pod::validate_taints;
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Scope, Strategy, Subresource};
use crate::table;

const COLUMNS: &[Column] = &[
    Column::name(),
    Column::new("Status", "Whether the node is ready, and whether it takes new pods."),
    Column::new("Roles", "What the node is for."),
    Column::age(),
    Column::new("Version", "Version of the node's agent."),
    Column::new("Internal-IP", "Address within the cluster.").wide(),
    Column::new("External-IP", "Address from outside.").wide(),
    Column::new("OS-Image", "Operating system.").wide(),
    Column::new("Kernel-Version", "Version of the kernel.").wide(),
    Column::new("Container-Runtime", "Name and version of the container runtime.").wide(),
];

/// Nodes.
pub static NODE: Row = Row {
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Proxy, Subresource::Status],
    status_on_create: true,
    schema: "io.k8s.api.core.v1.Node",
    columns: COLUMNS,
    table_row,
    field_selectors: &[("spec.unschedulable", "/spec/unschedulable")],
    strategy: Strategy { default, validate, validate_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

/// A node that keeps nothing back for itself can give away all it has.
fn default(node: &mut Value) {
    let capacity = node["status"]["capacity"].clone();
    if !capacity.is_null()
        && let Some(status) = node.get_mut("status")
    {
        default_field(status, "allocatable", capacity);
    }
}

fn validate(node: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &node["spec"]);
    validate_taints(&mut errors, &path.child("taints"), &spec["taints"]);
    for (index, cidr) in list(&spec["podCIDRs"]).iter().enumerate() {
        if !is_cidr(text(cidr)) {
            errors.invalid(
                &path.child("podCIDRs").index(index),
                text(cidr),
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            );
        }
    }
    for list in ["capacity", "allocatable"] {
        let path = Path::new("status").child(list);
        for (resource, amount) in entries(&node["status"][list]) {
            rules::quantity_not_negative(&mut errors, &path.key(resource), amount);
        }
    }
    errors
}

fn is_cidr(cidr: &str) -> bool {
    let Some((address, bits)) = cidr.split_once('/') else {
        return false;
    };
    let (Ok(address), Ok(bits)) = (address.parse::<std::net::IpAddr>(), bits.parse::<u8>()) else {
        return false;
    };
    bits <= if address.is_ipv4() { 32 } else { 128 }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    for (field, shown, detail) in [
        ("podCIDR", "podCIDRs", "node updates may not change podCIDR except from \"\" to valid"),
        ("podCIDRs", "podCIDRs", "node updates may not change podCIDR except from \"\" to valid"),
        ("providerID", "providerID", "node updates may not change providerID except from \"\" to valid"),
    ] {
        let (new, old) = (&new["spec"][field], &old["spec"][field]);
        if !is_empty(old) && new != old {
            errors.forbidden(&path.child(shown), detail);
        }
    }
    errors.0.dedup();
    errors
}

fn table_row(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = &node["status"]["nodeInfo"];
    let known = |field: &str| match text(&info[field]) {
        "" => json!("<unknown>"),
        value => json!(value),
    };
    vec![
        json!(text(&node["metadata"]["name"])),
        json!(status(node)),
        json!(roles(node)),
        table::age(node, now),
        json!(text(&info["kubeletVersion"])),
        json!(address(node, "InternalIP")),
        json!(address(node, "ExternalIP")),
        known("osImage"),
        known("kernelVersion"),
        known("containerRuntimeVersion"),
    ]
}

fn status(node: &Value) -> String {
    let ready = list(&node["status"]["conditions"]).iter().find(|c| text(&c["type"]) == "Ready");
    let mut status = match ready.map(|c| text(&c["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if is_true(&node["spec"]["unschedulable"]) {
        status.push_str(",SchedulingDisabled");
    }
    status
}

/// Roles are labels: `node-role.kubernetes.io/ROLE`, or `kubernetes.io/role=ROLE`.
fn roles(node: &Value) -> String {
    let roles: BTreeSet<&str> = entries(&node["metadata"]["labels"])
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None => (key == "kubernetes.io/role").then(|| text(value)),
        })
        .filter(|role| !role.is_empty())
        .collect();
    if roles.is_empty() { "<none>".to_owned() } else { roles.into_iter().collect::<Vec<_>>().join(",") }
}

fn address<'a>(node: &'a Value, type_: &str) -> &'a str {
    let found = list(&node["status"]["addresses"]).iter().find(|a| text(&a["type"]) == type_);
    found.map_or("<none>", |a| text(&a["address"]))
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn cells() {
        let node = json!({
            "metadata": {
                "name": "n1", "creationTimestamp": "2026-01-01T00:00:00Z",
                "labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/control-plane": ""},
            },
            "spec": {"unschedulable": true},
            "status": {
                "conditions": [{"type": "Ready", "status": "True"}],
                "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
                "nodeInfo": {"kubeletVersion": "v1.36.2", "osImage": "Debian"},
            },
        });
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = [
            "n1",
            "Ready,SchedulingDisabled",
            "control-plane,worker",
            "60s",
            "v1.36.2",
            "10.0.0.1",
            "<none>",
            "Debian",
            "<unknown>",
            "<unknown>",
        ];
        assert_eq!(table_row(&node, now), expected.map(|cell| json!(cell)));
        assert_eq!(status(&json!({})), "Unknown");
        assert_eq!(roles(&json!({})), "<none>");
    }

    #[test]
    fn validation() {
        let node = |taints: Value| json!({"spec": { "taints": taints }});
        expect("good", &validate(&node(json!([{"key": "a", "effect": "NoSchedule"}]))), &[]);
        expect(
            "twice",
            &validate(&node(
                json!([{"key": "a", "effect": "NoSchedule"}, {"key": "a", "effect": "NoSchedule"}]),
            )),
            &["spec.taints[1]: Duplicate value: {\"effect\":\"NoSchedule\",\"key\":\"a\"}"],
        );
        expect(
            "effect",
            &validate(&node(json!([{"key": "a", "effect": "Never"}]))),
            &["spec.taints[0].effect: Unsupported value: \"Never\": supported values: \"NoSchedule\", \
               \"PreferNoSchedule\", \"NoExecute\""],
        );
        let old = json!({"spec": {"podCIDR": "10.0.0.0/24", "podCIDRs": ["10.0.0.0/24"]}});
        expect(
            "range changed",
            &validate_update(&json!({"spec": {}}), &old),
            &["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"],
        );
        assert!(is_cidr("10.0.0.0/24") && is_cidr("::/0") && !is_cidr("10.0.0.0/33") && !is_cidr("a/1"));
    }
}
