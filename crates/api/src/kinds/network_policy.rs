//! NetworkPolicies: who may talk to the pods of a namespace, and to whom they may talk.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{default_field, is_empty, list, set, text};
use super::{rules, workload};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy};
use crate::table;

/// NetworkPolicies.
pub static NETWORK_POLICY: Row = Row {
    group: "networking.k8s.io",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    schema: "io.k8s.api.networking.v1.NetworkPolicy",
    columns: &[
        Column::name(),
        Column::new("Pod-Selector", "Labels of the pods that the policy is for."),
        Column::age(),
    ],
    table_row,
    generation: true,
    strategy: Strategy { default, validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

/// A policy is always about what comes in, and about what goes out when it says anything about that.
fn default(policy: &mut Value) {
    let Some(spec) = policy.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    default_field(spec, "podSelector", json!({}));
    if is_empty(&spec["policyTypes"]) {
        let types = if is_empty(&spec["egress"]) { json!(["Ingress"]) } else { json!(["Ingress", "Egress"]) };
        set(spec, "policyTypes", types);
    }
}

fn validate(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &policy["spec"]);
    rules::label_selector(&mut errors, &path.child("podSelector"), &spec["podSelector"]);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in list(&spec[direction]).iter().enumerate() {
            let path = path.child(direction).index(index);
            for (index, port) in list(&rule["ports"]).iter().enumerate() {
                validate_port(&mut errors, &path.child("ports").index(index), port);
            }
            for (index, peer) in list(&rule[peers]).iter().enumerate() {
                validate_peer(&mut errors, &path.child(peers).index(index), peer);
            }
        }
    }
    let (types, path) = (list(&spec["policyTypes"]), path.child("policyTypes"));
    if types.len() > 2 {
        errors.invalid(&path, spec["policyTypes"].clone(), "may not specify more than two policyTypes");
        return errors;
    }
    for (index, type_) in types.iter().map(text).enumerate() {
        if !matches!(type_, "Ingress" | "Egress") {
            errors.not_supported(&path.index(index), type_, &["Ingress", "Egress"]);
        }
    }
    errors
}

fn validate_port(errors: &mut Errors, path: &Path, port: &Value) {
    let protocol = &port["protocol"];
    rules::optional_one_of(errors, &path.child("protocol"), protocol, &["TCP", "UDP", "SCTP"]);
    let (first, end, end_path) = (&port["port"], &port["endPort"], path.child("endPort"));
    if !first.is_null() {
        rules::port_or_name(errors, &path.child("port"), first);
    }
    let Some(last) = end.as_i64() else {
        return;
    };
    match (first.is_null(), first.as_i64()) {
        (true, _) => errors.invalid(&end_path, last, "may not be specified when `port` is not specified"),
        (false, None) => errors.invalid(&end_path, last, "may not be specified when `port` is non-numeric"),
        (false, Some(first)) => {
            if last < first {
                errors.invalid(&end_path, last, "must be greater than or equal to `port`");
            }
            rules::port(errors, &end_path, end);
        }
    }
}

fn validate_peer(errors: &mut Errors, path: &Path, peer: &Value) {
    let mut others = 0;
    for field in ["podSelector", "namespaceSelector"] {
        if !peer[field].is_null() {
            others += 1;
            rules::label_selector(errors, &path.child(field), &peer[field]);
        }
    }
    let block = &peer["ipBlock"];
    match (block.is_null(), others) {
        (true, 0) => errors.required(path, "must specify a peer"),
        (true, _) => {}
        (false, others) => {
            validate_block(errors, &path.child("ipBlock"), block);
            if others > 0 {
                errors.forbidden(path, "may not specify both ipBlock and another peer");
            }
        }
    }
}

fn validate_block(errors: &mut Errors, path: &Path, block: &Value) {
    let cidr = text(&block["cidr"]);
    if cidr.is_empty() {
        return errors.required(&path.child("cidr"), "");
    }
    rules::cidr(errors, &path.child("cidr"), cidr);
    let Some((network, bits)) = rules::parse_cidr(cidr) else {
        return;
    };
    for (index, except) in list(&block["except"]).iter().map(text).enumerate() {
        let path = path.child("except").index(index);
        rules::cidr(errors, &path, except);
        let Some((inner, inner_bits)) = rules::parse_cidr(except) else {
            continue;
        };
        let within = inner.is_ipv4() == network.is_ipv4()
            && inner_bits > bits
            && rules::network_of(inner, bits) == rules::network_of(network, bits);
        if !within {
            errors.invalid(&path, except, "must be a strict subset of `cidr`");
        }
    }
}

fn table_row(policy: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&policy["metadata"]["name"])),
        json!(workload::format_selector(&policy["spec"]["podSelector"])),
        table::age(policy, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn defaults() {
        let rows = [
            (json!({}), json!(["Ingress"])),
            (json!({"egress": []}), json!(["Ingress"])),
            (json!({"egress": [{}]}), json!(["Ingress", "Egress"])),
            (json!({"policyTypes": ["Egress"]}), json!(["Egress"])),
        ];
        for (spec, expected) in rows {
            let mut policy = json!({ "spec": spec });
            default(&mut policy);
            assert_eq!(policy["spec"]["policyTypes"], expected, "{spec}");
            assert_eq!(policy["spec"]["podSelector"], json!({}));
        }
    }

    #[test]
    fn validation() {
        let row = |what: &str, spec: Value, expected: &[&str]| {
            expect(what, &validate(&json!({ "spec": spec })), expected);
        };
        let port = |port: Value| json!({"ingress": [{"ports": [port]}]});
        let peer = |peer: Value| json!({"egress": [{"to": [peer]}]});
        row("good", port(json!({"port": 80, "endPort": 90, "protocol": "TCP"})), &[]);
        row("by name", port(json!({"port": "http"})), &[]);
        row(
            "range upside down",
            port(json!({"port": 80, "endPort": 70})),
            &["spec.ingress[0].ports[0].endPort: Invalid value: 70: must be greater than or equal to `port`"],
        );
        row(
            "range from a name",
            port(json!({"port": "http", "endPort": 70})),
            &[
                "spec.ingress[0].ports[0].endPort: Invalid value: 70: may not be specified when `port` is non-numeric",
            ],
        );
        row(
            "range from nowhere",
            port(json!({"endPort": 70})),
            &[
                "spec.ingress[0].ports[0].endPort: Invalid value: 70: may not be specified when `port` is not specified",
            ],
        );
        row("nobody", peer(json!({})), &["spec.egress[0].to[0]: Required value: must specify a peer"]);
        row("block", peer(json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}})), &[]);
        row(
            "outside the block",
            peer(
                json!({"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16", "10.0.0.0/8", "::/64"]}}),
            ),
            &[
                "spec.egress[0].to[0].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of `cidr`",
                "spec.egress[0].to[0].ipBlock.except[1]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
                "spec.egress[0].to[0].ipBlock.except[2]: Invalid value: \"::/64\": must be a strict subset of `cidr`",
            ],
        );
        row(
            "block and pods",
            peer(json!({"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}})),
            &["spec.egress[0].to[0]: Forbidden: may not specify both ipBlock and another peer"],
        );
        row(
            "types",
            json!({"policyTypes": ["Sideways"]}),
            &[
                "spec.policyTypes[0]: Unsupported value: \"Sideways\": supported values: \"Ingress\", \"Egress\"",
            ],
        );
        assert_eq!(validate(&json!({"spec": {"policyTypes": ["Ingress", "Egress", "Ingress"]}})).0.len(), 1);
    }

    #[test]
    fn cells() {
        let selector = json!({"matchLabels": {"app": "db"}});
        let policy = json!({"metadata": {"name": "p"}, "spec": {"podSelector": selector}});
        assert_eq!(table_row(&policy, Timestamp::UNIX_EPOCH)[..2], [json!("p"), json!("app=db")]);
    }
}
