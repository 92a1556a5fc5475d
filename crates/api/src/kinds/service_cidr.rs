//! ServiceCIDRs: ranges from which services get their addresses; and IPAddresses: those that are given out.

use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{list, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, NameRule, Row, STATUS_METADATA, Scope, Strategy, Subresource};
use crate::{names, table};

/// ServiceCIDRs.
pub static SERVICE_CIDR: Row = Row {
    group: "networking.k8s.io",
    kind: "ServiceCIDR",
    plural: "servicecidrs",
    singular: "servicecidr",
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    status_keeps: STATUS_METADATA,
    schema: "io.k8s.api.networking.v1.ServiceCIDR",
    columns: &[Column::name(), Column::new("CIDRs", "Ranges of addresses."), Column::age()],
    table_row: cidr_row,
    strategy: Strategy {
        prepare_create: |cidr| set(cidr, "status", json!({})),
        validate: validate_cidr,
        validate_update: validate_cidr_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// IPAddresses. The name is the address.
pub static IP_ADDRESS: Row = Row {
    group: "networking.k8s.io",
    kind: "IPAddress",
    plural: "ipaddresses",
    singular: "ipaddress",
    short_names: &["ip"],
    scope: Scope::Cluster,
    schema: "io.k8s.api.networking.v1.IPAddress",
    columns: &[Column::name(), Column::new("ParentRef", "Who has the address."), Column::age()],
    table_row: address_row,
    name_rule: NameRule::PathSegment,
    strategy: Strategy {
        validate: validate_address,
        validate_update: validate_address_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

fn cidrs(object: &Value) -> Vec<&str> {
    list(&object["spec"]["cidrs"]).iter().map(text).collect()
}

fn validate_cidr(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, cidrs) = (Path::new("spec").child("cidrs"), cidrs(object));
    if cidrs.is_empty() {
        errors.required(&path, "at least one CIDR required");
    }
    if cidrs.len() > 2 {
        errors.invalid(&path, object["spec"]["cidrs"].clone(), "may only hold up to 2 values");
        return errors;
    }
    for (index, cidr) in cidrs.iter().enumerate() {
        rules::cidr(&mut errors, &path.index(index), cidr);
    }
    if let [first, second] = cidrs[..]
        && let (Some((first, _)), Some((second, _))) = (rules::parse_cidr(first), rules::parse_cidr(second))
        && first.is_ipv4() == second.is_ipv4()
    {
        errors.invalid(
            &path,
            object["spec"]["cidrs"].clone(),
            "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
        );
    }
    errors
}

/// A range of the other family may be added; what services have their addresses from stays.
fn validate_cidr_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, before, after) = (Path::new("spec").child("cidrs"), cidrs(old), cidrs(new));
    let becomes_dual = before.len() == 1 && after.len() == 2;
    if before.len() != after.len() && !becomes_dual {
        errors.invalid(&path, new["spec"]["cidrs"].clone(), rules::IMMUTABLE);
        return errors;
    }
    for (index, (before, after)) in before.iter().zip(&after).enumerate() {
        if before != after {
            errors.invalid(&path.index(index), *after, rules::IMMUTABLE);
        }
    }
    errors
}

fn cidr_row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(text(&object["metadata"]["name"])), json!(cidrs(object).join(",")), table::age(object, now)]
}

fn validate_address(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let name = text(&object["metadata"]["name"]);
    let name_path = Path::new("metadata").child("name");
    match name.parse::<IpAddr>() {
        Err(_) => rules::ip_address(&mut errors, &name_path, name),
        Ok(address) if address.to_string() != name => {
            errors.invalid(&name_path, name, format!("must be in canonical form (\"{address}\")"));
        }
        Ok(_) => {}
    }
    let (path, parent) = (Path::new("spec").child("parentRef"), &object["spec"]["parentRef"]);
    if parent.is_null() {
        errors.required(&path, "");
        return errors;
    }
    let group = text(&parent["group"]);
    rules::optional_name(&mut errors, &path.child("group"), group, names::dns1123_subdomain);
    for field in ["resource", "name"] {
        rules::required_name(&mut errors, &path.child(field), text(&parent[field]), names::path_segment);
    }
    let namespace = text(&parent["namespace"]);
    rules::optional_name(&mut errors, &path.child("namespace"), namespace, names::path_segment);
    errors
}

fn validate_address_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec").child("parentRef");
    rules::immutable(&mut errors, &path, &new["spec"]["parentRef"], &old["spec"]["parentRef"]);
    errors
}

fn address_row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(text(&object["metadata"]["name"])), json!(parent(object)), table::age(object, now)]
}

/// `services/default/kubernetes`
fn parent(object: &Value) -> String {
    let parent = &object["spec"]["parentRef"];
    if parent.is_null() {
        return "<none>".to_owned();
    }
    let resource = match text(&parent["group"]) {
        "" => text(&parent["resource"]).to_lowercase(),
        group => format!("{}.{group}", text(&parent["resource"])).to_lowercase(),
    };
    match text(&parent["namespace"]) {
        "" => format!("{resource}/{}", text(&parent["name"])),
        namespace => format!("{resource}/{namespace}/{}", text(&parent["name"])),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn ranges() {
        let cidr = |cidrs: Value| json!({"metadata": {"name": "a"}, "spec": {"cidrs": cidrs}});
        let row = |what: &str, cidrs: Value, expected: &[&str]| {
            expect(what, &validate_cidr(&cidr(cidrs)), expected);
        };
        row("good", json!(["10.96.0.0/16", "fd00::/108"]), &[]);
        row("none", json!([]), &["spec.cidrs: Required value: at least one CIDR required"]);
        row(
            "bits",
            json!(["10.96.0.1/16"]),
            &[
                "spec.cidrs[0]: Invalid value: \"10.96.0.1/16\": must not have bits set beyond the prefix length",
            ],
        );
        row(
            "one family twice",
            json!(["10.96.0.0/16", "10.97.0.0/16"]),
            &[
                "spec.cidrs: Invalid value: [\"10.96.0.0/16\",\"10.97.0.0/16\"]: may specify no more than one IP for each \
               IP family, i.e 192.168.0.0/24 and 2001:db8::/64",
            ],
        );
        let (one, two) = (cidr(json!(["10.96.0.0/16"])), cidr(json!(["10.96.0.0/16", "fd00::/108"])));
        expect("second family", &validate_cidr_update(&two, &one), &[]);
        expect(
            "fewer",
            &validate_cidr_update(&one, &two),
            &["spec.cidrs: Invalid value: [\"10.96.0.0/16\"]: field is immutable"],
        );
        expect(
            "other",
            &validate_cidr_update(&cidr(json!(["10.97.0.0/16"])), &one),
            &["spec.cidrs[0]: Invalid value: \"10.97.0.0/16\": field is immutable"],
        );
        assert_eq!(cidr_row(&two, Timestamp::UNIX_EPOCH)[1], "10.96.0.0/16,fd00::/108");
    }

    #[test]
    fn addresses() {
        let address =
            |name: &str, parent: Value| json!({"metadata": {"name": name}, "spec": {"parentRef": parent}});
        let parent_ref = json!({"resource": "services", "namespace": "default", "name": "web"});
        let row =
            |what: &str, object: Value, expected: &[&str]| expect(what, &validate_address(&object), expected);
        row("good", address("10.96.0.1", parent_ref.clone()), &[]);
        row(
            "not canonical",
            address("FD00::1", parent_ref.clone()),
            &["metadata.name: Invalid value: \"FD00::1\": must be in canonical form (\"fd00::1\")"],
        );
        row("nobody's", address("10.96.0.1", Value::Null), &["spec.parentRef: Required value"]);
        row(
            "no service",
            address("10.96.0.1", json!({"name": "a/b"})),
            &[
                "spec.parentRef.resource: Required value",
                "spec.parentRef.name: Invalid value: \"a/b\": may not contain '/'",
            ],
        );
        assert_eq!(parent(&address("10.96.0.1", parent_ref)), "services/default/web");
        let gateway = json!({"group": "example.com", "resource": "Gateways", "name": "g"});
        assert_eq!(parent(&address("10.96.0.1", gateway)), "gateways.example.com/g");
    }
}
