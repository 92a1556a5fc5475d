//! What an update of a service keeps of what was allocated, and what it gives back.
//!
//! Users send specs without the addresses and ports that the server chose; upstream calls this patching allocated values
//! (`pkg/registry/core/service/strategy.go`).

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::json::{copy_field, int, is_empty, list, list_mut, remove, set, text};
use super::{
    is_reachable_from_outside, needs_cluster_ip, needs_health_check_port, needs_node_ports, type_of,
};

/// Completes an update with what the old service had.
pub(super) fn prepare(new: &mut Value, old: &Value) {
    normalize_cluster_ips(new, old);
    keep_what_was_allocated(new, old);
    drop_what_the_new_type_lacks(new, old);
}

/// `clusterIP` is the first of `clusterIPs`; whoever changes only one of them means both.
fn normalize_cluster_ips(new: &mut Value, old: &Value) {
    let old = &old["spec"];
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    let single_changed = text(&spec["clusterIP"]) != text(&old["clusterIP"]);
    let list_changed = list(&spec["clusterIPs"]) != list(&old["clusterIPs"]);
    match (single_changed, list_changed) {
        (true, false) if is_empty(&spec["clusterIP"]) => drop(remove(spec, "clusterIPs")),
        (true, false) => {
            let address = spec["clusterIP"].clone();
            match spec.pointer_mut("/clusterIPs/0") {
                Some(first) => *first = address,
                None => set(spec, "clusterIPs", json!([address])),
            }
        }
        (false, true) if !is_empty(&old["clusterIPs"]) && is_empty(&spec["clusterIPs"]) => {
            drop(remove(spec, "clusterIP"));
        }
        _ => {}
    }
}

/// Allocated values that the user does not repeat stay.
fn keep_what_was_allocated(new: &mut Value, old: &Value) {
    let both = |needs: fn(&Value) -> bool| needs(old) && needs(new);
    let (addresses, ports) = (both(needs_cluster_ip), both(needs_node_ports));
    let health = both(needs_health_check_port);
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    let old = &old["spec"];
    if addresses {
        if is_empty(&spec["clusterIP"]) {
            copy_field(spec, old, "clusterIP");
        }
        if is_empty(&spec["clusterIPs"]) && spec["clusterIP"] == old["clusterIP"] {
            copy_field(spec, old, "clusterIPs");
        }
        for field in ["ipFamilies", "ipFamilyPolicy"] {
            if is_empty(&spec[field]) {
                copy_field(spec, old, field);
            }
        }
    }
    if ports {
        keep_node_ports(spec, old);
    }
    if health && int(&spec["healthCheckNodePort"]) == 0 {
        copy_field(spec, old, "healthCheckNodePort");
    }
}

/// Ports are the same when their names are; a number that the user gave to another port is not kept.
fn keep_node_ports(spec: &mut Value, old: &Value) {
    let given: BTreeSet<i64> = list(&spec["ports"]).iter().map(|port| int(&port["nodePort"])).collect();
    for port in list_mut(spec, "/ports").filter(|port| int(&port["nodePort"]) == 0) {
        let before = list(&old["ports"]).iter().find(|before| text(&before["name"]) == text(&port["name"]));
        let number = before.map_or(0, |before| int(&before["nodePort"]));
        if number != 0 && !given.contains(&number) {
            set(port, "nodePort", number);
        }
    }
}

/// A change of type gives back what only the old type had, unless the user names a value anew.
fn drop_what_the_new_type_lacks(new: &mut Value, old: &Value) {
    let lost = |needs: fn(&Value) -> bool| needs(old) && !needs(new);
    let (addresses, ports) = (lost(needs_cluster_ip), lost(needs_node_ports));
    let (outside, health) = (lost(is_reachable_from_outside), lost(needs_health_check_port));
    let was_load_balancer = type_of(old) == "LoadBalancer" && type_of(new) != "LoadBalancer";
    let Some(spec) = new.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    let old = &old["spec"];
    let mut give_back = |lost: bool, fields: &[&str]| {
        for field in fields {
            if lost && spec[*field] == old[*field] {
                remove(spec, field);
            }
        }
    };
    give_back(
        addresses,
        &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"],
    );
    give_back(outside, &["externalTrafficPolicy"]);
    give_back(health, &["healthCheckNodePort"]);
    give_back(was_load_balancer, &["allocateLoadBalancerNodePorts", "loadBalancerClass"]);
    if ports {
        for port in list_mut(spec, "/ports") {
            let number = int(&port["nodePort"]);
            if list(&old["ports"]).iter().any(|before| int(&before["nodePort"]) == number) {
                remove(port, "nodePort");
            }
        }
    }
}
