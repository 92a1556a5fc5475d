//! Endpoints: the older list of addresses behind a service, one object for all of them.
//!
//! EndpointSlices have taken their place; programs that still read or write Endpoints find them here.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, list, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy};
use crate::{names, table};

/// A cell shows this many addresses.
const SHOWN: usize = 3;

/// Endpoints.
pub static ENDPOINTS: Row = Row {
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    schema: "io.k8s.api.core.v1.Endpoints",
    columns: &[
        Column::name(),
        Column::new("Endpoints", "Addresses that are ready, with their ports."),
        Column::age(),
    ],
    table_row,
    strategy: Strategy { validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn validate(endpoints: &Value) -> Errors {
    let mut errors = Errors::new();
    for (index, subset) in list(&endpoints["subsets"]).iter().enumerate() {
        let path = Path::new("subsets").index(index);
        let (ready, not_ready) = (list(&subset["addresses"]), list(&subset["notReadyAddresses"]));
        if ready.is_empty() && not_ready.is_empty() {
            errors.required(&path, "must specify `addresses` or `notReadyAddresses`");
        }
        for (field, addresses) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            for (index, address) in addresses.iter().enumerate() {
                validate_address(&mut errors, &path.child(field).index(index), address);
            }
        }
        let ports = list(&subset["ports"]);
        for (index, port) in ports.iter().enumerate() {
            validate_port(&mut errors, &path.child("ports").index(index), port, ports.len() > 1);
        }
    }
    errors
}

fn validate_address(errors: &mut Errors, path: &Path, address: &Value) {
    let ip = text(&address["ip"]);
    rules::ip_address(errors, &path.child("ip"), ip);
    rules::optional_name(errors, &path.child("hostname"), text(&address["hostname"]), names::dns1123_label);
    rules::optional_name(
        errors,
        &path.child("nodeName"),
        text(&address["nodeName"]),
        names::dns1123_subdomain,
    );
    if let Ok(parsed) = ip.parse::<IpAddr>() {
        validate_not_special(errors, &path.child("ip"), ip, parsed);
    }
}

/// Addresses that mean another machine to everybody who uses them: traffic to them must not be steered.
fn validate_not_special(errors: &mut Errors, path: &Path, shown: &str, ip: IpAddr) {
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    let link_local_multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.is_multicast() && ip.segments()[0] & 0xf == 2,
    };
    for (special, problem) in [
        (ip.is_unspecified(), "may not be unspecified (0.0.0.0 or ::)"),
        (ip.is_loopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"),
        (link_local, "may not be in the link-local range (169.254.0.0/16, fe80::/10)"),
        (link_local_multicast, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"),
    ] {
        if special {
            errors.invalid(path, shown, problem);
        }
    }
}

fn validate_port(errors: &mut Errors, path: &Path, port: &Value, name_required: bool) {
    let name = text(&port["name"]);
    if name_required && name.is_empty() {
        errors.required(&path.child("name"), "");
    } else {
        rules::optional_name(errors, &path.child("name"), name, names::dns1123_label);
    }
    rules::port(errors, &path.child("port"), &port["port"]);
    rules::one_of(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
    rules::optional_name(
        errors,
        &path.child("appProtocol"),
        text(&port["appProtocol"]),
        names::qualified_name,
    );
}

fn table_row(endpoints: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(text(&endpoints["metadata"]["name"])), json!(addresses(endpoints)), table::age(endpoints, now)]
}

fn addresses(endpoints: &Value) -> String {
    let subsets = list(&endpoints["subsets"]);
    if subsets.is_empty() {
        return "<none>".to_owned();
    }
    let (mut shown, mut count) = (Vec::new(), 0);
    for subset in subsets {
        let (ports, addresses) = (list(&subset["ports"]), list(&subset["addresses"]));
        count += addresses.len() * ports.len().max(1);
        let ips = addresses.iter().map(|address| text(&address["ip"]));
        if ports.is_empty() {
            shown.extend(ips.take(SHOWN).map(str::to_owned));
        } else {
            for port in ports.iter().take(SHOWN) {
                shown.extend(ips.clone().take(SHOWN).map(|ip| host_and_port(ip, int(&port["port"]))));
            }
        }
        shown.truncate(SHOWN);
    }
    let cell = shown.join(",");
    if count > SHOWN { format!("{cell} + {} more...", count - SHOWN) } else { cell }
}

fn host_and_port(ip: &str, port: i64) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation() {
        let row = |what: &str, subset: Value, expected: &[&str]| {
            expect(what, &validate(&json!({"subsets": [subset]})), expected);
        };
        let port = json!({"port": 80, "protocol": "TCP"});
        row("good", json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [port]}), &[]);
        row(
            "nothing",
            json!({}),
            &["subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"],
        );
        row(
            "loopback",
            json!({"notReadyAddresses": [{"ip": "127.0.0.1"}]}),
            &[
                "subsets[0].notReadyAddresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range \
               (127.0.0.0/8, ::1/128)",
            ],
        );
        row(
            "no address",
            json!({"addresses": [{"ip": "a"}]}),
            &[
                "subsets[0].addresses[0].ip: Invalid value: \"a\": must be a valid IP address, (e.g. 10.9.8.7 or \
               2001:db8::ffff)",
            ],
        );
        row(
            "names of several ports",
            json!({"addresses": [{"ip": "10.0.0.1"}], "ports": [port, {"name": "b", "port": 0, "protocol": "X"}]}),
            &[
                "subsets[0].ports[0].name: Required value",
                "subsets[0].ports[1].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "subsets[0].ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ],
        );
        for special in ["0.0.0.0", "::", "::1", "169.254.1.1", "fe80::1", "224.0.0.5", "ff02::1"] {
            let found = validate(&json!({"subsets": [{"addresses": [{"ip": special}]}]}));
            assert_eq!(found.0.len(), 1, "{special}: {found}");
        }
    }

    #[test]
    fn cells() {
        let ip = |last: u8| json!({"ip": format!("10.0.0.{last}")});
        let rows = [
            (json!([]), "<none>"),
            (json!([{"addresses": [ip(1)], "ports": [{"port": 80}]}]), "10.0.0.1:80"),
            (json!([{"addresses": [{"ip": "::1"}], "ports": [{"port": 80}]}]), "[::1]:80"),
            (json!([{"addresses": [ip(1), ip(2)]}]), "10.0.0.1,10.0.0.2"),
            (json!([{"notReadyAddresses": [ip(1)], "ports": [{"port": 80}]}]), ""),
            (
                json!([{"addresses": [ip(1), ip(2)], "ports": [{"port": 80}, {"port": 81}]}]),
                "10.0.0.1:80,10.0.0.2:80,10.0.0.1:81 + 1 more...",
            ),
        ];
        for (subsets, expected) in rows {
            assert_eq!(addresses(&json!({ "subsets": subsets })), expected);
        }
    }
}
