//! EndpointSlices: which addresses stand behind a service at this moment.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{list, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy};
use crate::{names, table};

/// A slice stays small so that one changed pod does not send thousands of addresses to every node.
const MAX_ENDPOINTS: usize = 1000;
const MAX_ADDRESSES: usize = 100;
const MAX_PORTS: usize = 20_000;
/// A cell shows this many ports or addresses.
const SHOWN: usize = 3;

/// EndpointSlices.
pub static ENDPOINT_SLICE: Row = Row {
    group: "discovery.k8s.io",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    schema: "io.k8s.api.discovery.v1.EndpointSlice",
    columns: &[
        Column::name(),
        Column::new("AddressType", "What the addresses are."),
        Column::new("Ports", "Ports of every endpoint."),
        Column::new("Endpoints", "Addresses."),
        Column::age(),
    ],
    table_row,
    generation: true,
    strategy: Strategy { validate, validate_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn validate(slice: &Value) -> Errors {
    let mut errors = Errors::new();
    rules::one_of(&mut errors, &Path::new("addressType"), &slice["addressType"], &["FQDN", "IPv4", "IPv6"]);
    let (path, endpoints) = (Path::new("endpoints"), list(&slice["endpoints"]));
    if endpoints.len() > MAX_ENDPOINTS {
        errors.too_many(&path, endpoints.len(), MAX_ENDPOINTS);
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        validate_endpoint(&mut errors, &path.index(index), endpoint, text(&slice["addressType"]));
    }
    validate_ports(&mut errors, &Path::new("ports"), list(&slice["ports"]));
    errors
}

fn validate_endpoint(errors: &mut Errors, path: &Path, endpoint: &Value, type_: &str) {
    let addresses = list(&endpoint["addresses"]);
    let addresses_path = path.child("addresses");
    if addresses.is_empty() {
        errors.required(&addresses_path, "must contain at least 1 address");
    } else if addresses.len() > MAX_ADDRESSES {
        errors.too_many(&addresses_path, addresses.len(), MAX_ADDRESSES);
    }
    for (index, address) in addresses.iter().map(text).enumerate() {
        let path = addresses_path.index(index);
        match type_ {
            "IPv4" if address.parse::<std::net::Ipv4Addr>().is_err() => {
                errors.invalid(&path, address, "must be an IPv4 address");
            }
            "IPv6" if address.parse::<std::net::Ipv6Addr>().is_err() => {
                errors.invalid(&path, address, "must be an IPv6 address");
            }
            "FQDN" => rules::name(errors, &path, address, names::dns1123_subdomain),
            _ => {}
        }
    }
    rules::optional_name(
        errors,
        &path.child("nodeName"),
        text(&endpoint["nodeName"]),
        names::dns1123_subdomain,
    );
    rules::optional_name(errors, &path.child("hostname"), text(&endpoint["hostname"]), names::dns1123_label);
}

fn validate_ports(errors: &mut Errors, path: &Path, ports: &[Value]) {
    if ports.len() > MAX_PORTS {
        errors.too_many(path, ports.len(), MAX_PORTS);
    }
    let mut seen = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        let path = path.index(index);
        let name = text(&port["name"]);
        rules::optional_name(errors, &path.child("name"), name, names::dns1123_label);
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        rules::one_of(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        rules::in_range(errors, &path.child("port"), &port["port"], 1, 65535);
    }
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    rules::immutable(&mut errors, &Path::new("addressType"), &new["addressType"], &old["addressType"]);
    errors
}

fn table_row(slice: &Value, now: Timestamp) -> Vec<Value> {
    let ports = list(&slice["ports"]).iter().map(|port| match (port["port"].as_i64(), text(&port["name"])) {
        (Some(number), _) => number.to_string(),
        (None, "") => "*".to_owned(),
        (None, name) => name.to_owned(),
    });
    let addresses = list(&slice["endpoints"])
        .iter()
        .flat_map(|endpoint| list(&endpoint["addresses"]))
        .map(|address| text(address).to_owned());
    vec![
        json!(text(&slice["metadata"]["name"])),
        json!(text(&slice["addressType"])),
        json!(some_of(ports)),
        json!(some_of(addresses)),
        table::age(slice, now),
    ]
}

/// The first few, and how many more there are.
fn some_of(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> = items.collect();
    match items.len() {
        0 => "<unset>".to_owned(),
        count if count > SHOWN => format!("{} + {} more...", items[..SHOWN].join(","), count - SHOWN),
        _ => items.join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation() {
        let slice = |endpoints: Value, ports: Value| json!({"addressType": "IPv4", "endpoints": endpoints, "ports": ports});
        let port = json!({"name": "", "port": 80, "protocol": "TCP"});
        expect("good", &validate(&slice(json!([{"addresses": ["10.0.0.1"]}]), json!([port]))), &[]);
        expect(
            "wrong",
            &validate(&slice(json!([{"addresses": []}, {"addresses": ["::1"]}]), json!([port, port]))),
            &[
                "endpoints[0].addresses: Required value: must contain at least 1 address",
                "endpoints[1].addresses[0]: Invalid value: \"::1\": must be an IPv4 address",
                "ports[1].name: Duplicate value: \"\"",
            ],
        );
    }

    #[test]
    fn cells() {
        let addresses =
            json!([{"addresses": ["1"]}, {"addresses": ["2"]}, {"addresses": ["3"]}, {"addresses": ["4"]}]);
        let slice = json!({
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "addressType": "IPv4", "endpoints": addresses, "ports": [{"port": 80}, {"name": "any"}],
        });
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = ["a", "IPv4", "80,any", "1,2,3 + 1 more...", "60s"];
        assert_eq!(table_row(&slice, now), expected.map(|cell| json!(cell)));
    }
}
