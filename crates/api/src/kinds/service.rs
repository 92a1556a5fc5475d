//! Services: one stable name and address for pods that come and go.
//!
//! Which address and which node ports a service gets is decided by the server, which knows those in use; here is what a
//! user may ask for, and what an update keeps when the user does not repeat it.

mod update;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{default_field, int, is_empty, list, list_mut, remove, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, NameRule, Row, Strategy, Subresource};
use crate::{names, table};

const COLUMNS: &[Column] = &[
    Column::name(),
    Column::new("Type", "How the service is reached."),
    Column::new("Cluster-IP", "Address within the cluster."),
    Column::new("External-IP", "Addresses from outside."),
    Column::new("Port(s)", "Ports, those on nodes after a colon."),
    Column::age(),
    Column::new("Selector", "Labels of the pods behind the service.").wide(),
];

/// Services.
pub static SERVICE: Row = Row {
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::Proxy, Subresource::Status],
    schema: "io.k8s.api.core.v1.Service",
    returns_deleted: true,
    columns: COLUMNS,
    table_row,
    field_selectors: &[("spec.clusterIP", "/spec/clusterIP"), ("spec.type", "/spec/type")],
    name_rule: NameRule::Dns1035Label,
    strategy: Strategy {
        default,
        prepare_create,
        prepare_update: update::prepare,
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// Three hours, as upstream.
const AFFINITY_SECONDS: i64 = 10_800;
const MAX_AFFINITY_SECONDS: i64 = 86_400;

fn type_of(service: &Value) -> &str {
    text(&service["spec"]["type"])
}

fn is_headless(service: &Value) -> bool {
    text(&service["spec"]["clusterIP"]) == "None"
}

/// Whether a service of this type has an address of the cluster (or decides to have none).
pub fn needs_cluster_ip(service: &Value) -> bool {
    matches!(type_of(service), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether a service of this type has ports on all nodes.
pub fn needs_node_ports(service: &Value) -> bool {
    match type_of(service) {
        "NodePort" => true,
        "LoadBalancer" => service["spec"]["allocateLoadBalancerNodePorts"] != Value::Bool(false),
        _ => false,
    }
}

fn needs_health_check_port(service: &Value) -> bool {
    type_of(service) == "LoadBalancer" && text(&service["spec"]["externalTrafficPolicy"]) == "Local"
}

fn is_reachable_from_outside(service: &Value) -> bool {
    matches!(type_of(service), "NodePort" | "LoadBalancer")
        || (type_of(service) == "ClusterIP" && !is_empty(&service["spec"]["externalIPs"]))
}

fn default(service: &mut Value) {
    let (outside, load_balancer) = (is_reachable_from_outside(service), type_of(service) == "LoadBalancer");
    let internal = needs_cluster_ip(service);
    let Some(spec) = service.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    match text(&spec["sessionAffinity"]) {
        "None" => drop(remove(spec, "sessionAffinityConfig")),
        "ClientIP" if spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].is_null() => {
            set(spec, "sessionAffinityConfig", json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}));
        }
        _ => {}
    }
    for port in list_mut(spec, "/ports") {
        let target = &port["targetPort"];
        if is_empty(target) || target.as_i64() == Some(0) {
            let number = port["port"].clone();
            set(port, "targetPort", number);
        }
    }
    if outside && is_empty(&spec["externalTrafficPolicy"]) {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if internal {
        default_field(spec, "internalTrafficPolicy", "Cluster");
    }
    if load_balancer {
        default_field(spec, "allocateLoadBalancerNodePorts", true);
        for ingress in list_mut(service, "/status/loadBalancer/ingress") {
            if !is_empty(&ingress["ip"]) {
                default_field(ingress, "ipMode", "VIP");
            }
        }
    }
}

fn prepare_create(service: &mut Value) {
    if let Some(spec) = service.get_mut("spec") {
        let address = spec["clusterIP"].clone();
        if !is_empty(&address) && is_empty(&spec["clusterIPs"]) {
            set(spec, "clusterIPs", json!([address]));
        }
        if is_empty(&address) && !is_empty(&spec["clusterIPs"]) {
            let first = spec["clusterIPs"][0].clone();
            set(spec, "clusterIP", first);
        }
    }
    set(service, "status", json!({"loadBalancer": {}}));
}

fn validate(service: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &service["spec"]);
    let external_name = type_of(service) == "ExternalName";
    if list(&spec["ports"]).is_empty() && !is_headless(service) && !external_name {
        errors.required(&path.child("ports"), "");
    }
    match type_of(service) {
        "LoadBalancer" if is_headless(service) => {
            errors.invalid(
                &path.child("clusterIPs[0]"),
                "None",
                "may not be set to 'None' for LoadBalancer services",
            );
        }
        "NodePort" if is_headless(service) => {
            errors.invalid(
                &path.child("clusterIPs[0]"),
                "None",
                "may not be set to 'None' for NodePort services",
            );
        }
        "ExternalName" => validate_external_name(&mut errors, &path, spec),
        _ => {}
    }
    validate_ports(&mut errors, &path, service);
    rules::labels(&mut errors, &path.child("selector"), &spec["selector"]);
    validate_affinity(&mut errors, &path, spec);
    validate_addresses(&mut errors, &path, spec);
    rules::one_of(
        &mut errors,
        &path.child("type"),
        &spec["type"],
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
    );
    validate_policies(&mut errors, &path, service);
    errors
}

fn validate_external_name(errors: &mut Errors, path: &Path, spec: &Value) {
    for field in ["clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
        if !is_empty(&spec[field]) {
            errors.forbidden(&path.child(field), "may not be set for ExternalName services");
        }
    }
    let name = text(&spec["externalName"]).trim_end_matches('.');
    rules::required_name(errors, &path.child("externalName"), name, names::dns1123_subdomain);
}

fn validate_ports(errors: &mut Errors, path: &Path, service: &Value) {
    let ports = list(&service["spec"]["ports"]);
    let (mut names_seen, mut numbers_seen, mut node_ports_seen) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = path.child("ports").index(index);
        let name = text(&port["name"]);
        if name.is_empty() && ports.len() > 1 {
            errors.required(&path.child("name"), "");
        } else if !name.is_empty() {
            rules::name(errors, &path.child("name"), name, names::dns1123_label);
            if !names_seen.insert(name) {
                errors.duplicate(&path.child("name"), name);
            }
        }
        rules::port(errors, &path.child("port"), &port["port"]);
        rules::one_of(errors, &path.child("protocol"), &port["protocol"], &["SCTP", "TCP", "UDP"]);
        rules::port_or_name(errors, &path.child("targetPort"), &port["targetPort"]);
        let protocol = text(&port["protocol"]);
        if !numbers_seen.insert((protocol, int(&port["port"]))) {
            errors.duplicate(&path, json!({"port": port["port"], "protocol": protocol}));
        }
        let node_port = int(&port["nodePort"]);
        if node_port == 0 {
            continue;
        }
        if !matches!(type_of(service), "NodePort" | "LoadBalancer") {
            errors.forbidden(
                &path.child("nodePort"),
                format!("may not be used when `type` is '{}'", type_of(service)),
            );
        } else if !node_ports_seen.insert((protocol, node_port)) {
            errors.duplicate(&path.child("nodePort"), node_port);
        }
    }
}

fn validate_affinity(errors: &mut Errors, path: &Path, spec: &Value) {
    rules::one_of(errors, &path.child("sessionAffinity"), &spec["sessionAffinity"], &["ClientIP", "None"]);
    let path = path.child("sessionAffinityConfig");
    let config = &spec["sessionAffinityConfig"];
    match text(&spec["sessionAffinity"]) {
        "None" if !config.is_null() => {
            errors.forbidden(&path, "must not be set when session affinity is None");
        }
        "ClientIP" => {
            let seconds = int(&config["clientIP"]["timeoutSeconds"]);
            if seconds <= 0 || seconds > MAX_AFFINITY_SECONDS {
                errors.invalid(
                    &path.child("clientIP").child("timeoutSeconds"),
                    seconds,
                    format!("must be greater than 0 and less than {MAX_AFFINITY_SECONDS}"),
                );
            }
        }
        _ => {}
    }
}

fn validate_addresses(errors: &mut Errors, path: &Path, spec: &Value) {
    let addresses = list(&spec["clusterIPs"]);
    for (index, address) in addresses.iter().enumerate() {
        let path = path.child("clusterIPs").index(index);
        match text(address) {
            "None" if addresses.len() > 1 => {
                errors.invalid(&path, spec["clusterIPs"].clone(), "'None' must be the first and only value");
            }
            "None" => {}
            address => rules::ip_address(errors, &path, address),
        }
    }
    let first = addresses.first().map(text);
    let single = text(&spec["clusterIP"]);
    if first.is_some_and(|first| first != single) {
        errors.invalid(
            &path.child("clusterIPs"),
            spec["clusterIPs"].clone(),
            "first value must match `clusterIP`",
        );
    } else if first.is_none() && !matches!(single, "" | "None") {
        rules::ip_address(errors, &path.child("clusterIP"), single);
    }
    for (index, address) in list(&spec["externalIPs"]).iter().enumerate() {
        rules::ip_address(errors, &path.child("externalIPs").index(index), text(address));
    }
}

fn validate_policies(errors: &mut Errors, path: &Path, service: &Value) {
    let spec = &service["spec"];
    let external = text(&spec["externalTrafficPolicy"]);
    if is_reachable_from_outside(service) {
        let path = path.child("externalTrafficPolicy");
        rules::one_of(errors, &path, &spec["externalTrafficPolicy"], &["Cluster", "Local"]);
    } else if !external.is_empty() {
        errors.invalid(
            &path.child("externalTrafficPolicy"),
            external,
            "may only be set for externally-accessible services",
        );
    }
    rules::optional_one_of(
        errors,
        &path.child("internalTrafficPolicy"),
        &spec["internalTrafficPolicy"],
        &["Cluster", "Local"],
    );
    rules::optional_one_of(
        errors,
        &path.child("ipFamilyPolicy"),
        &spec["ipFamilyPolicy"],
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
    );
    let class = &spec["loadBalancerClass"];
    if !is_empty(class) && type_of(service) != "LoadBalancer" {
        errors.forbidden(&path.child("loadBalancerClass"), "may only be used when `type` is 'LoadBalancer'");
    }
    if type_of(service) != "LoadBalancer" && !spec["allocateLoadBalancerNodePorts"].is_null() {
        errors.forbidden(
            &path.child("allocateLoadBalancerNodePorts"),
            "may only be used when `type` is 'LoadBalancer'",
        );
    }
    rules::in_range(errors, &path.child("healthCheckNodePort"), &spec["healthCheckNodePort"], 0, 65535);
}

/// The address of a service is in the heads of its clients, so it stays; only a service that has none may get one.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if !needs_cluster_ip(new) || !needs_cluster_ip(old) {
        return errors;
    }
    let (new, old) = (&new["spec"]["clusterIPs"], &old["spec"]["clusterIPs"]);
    if !is_empty(&old[0]) && new[0] != old[0] {
        errors.invalid(
            &Path::new("spec").child("clusterIPs").index(0),
            new.clone(),
            "may not change once set",
        );
    }
    errors
}

fn table_row(service: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &service["spec"];
    let cluster_ip = match text(&spec["clusterIPs"][0]) {
        "" => text(&spec["clusterIP"]),
        first => first,
    };
    vec![
        json!(text(&service["metadata"]["name"])),
        json!(type_of(service)),
        json!(if cluster_ip.is_empty() { "<none>" } else { cluster_ip }),
        json!(external_addresses(service)),
        json!(ports(spec)),
        table::age(service, now),
        json!(table::format_labels(spec.get("selector"))),
    ]
}

fn external_addresses(service: &Value) -> String {
    let spec = &service["spec"];
    let mut addresses: Vec<&str> = Vec::new();
    if type_of(service) == "ExternalName" {
        return text(&spec["externalName"]).to_owned();
    }
    if type_of(service) == "LoadBalancer" {
        let ingress = list(&service["status"]["loadBalancer"]["ingress"]);
        addresses.extend(ingress.iter().map(|i| match text(&i["ip"]) {
            "" => text(&i["hostname"]),
            ip => ip,
        }));
    }
    addresses.extend(list(&spec["externalIPs"]).iter().map(text));
    match (addresses.is_empty(), type_of(service)) {
        (false, _) => addresses.join(","),
        (true, "LoadBalancer") => "<pending>".to_owned(),
        (true, _) => "<none>".to_owned(),
    }
}

fn ports(spec: &Value) -> String {
    let ports: Vec<String> = list(&spec["ports"])
        .iter()
        .map(|port| match int(&port["nodePort"]) {
            0 => format!("{}/{}", int(&port["port"]), text(&port["protocol"])),
            node => format!("{}:{node}/{}", int(&port["port"]), text(&port["protocol"])),
        })
        .collect();
    if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let mut service = json!({
            "metadata": {"name": "web", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "type": "ClusterIP", "sessionAffinity": "None", "selector": {"app": "web"},
                "ports": [{"port": 80, "protocol": "TCP"}],
            },
        });
        default(&mut service);
        service
    }

    fn node_port() -> Value {
        let mut service = with(good(), &[("/spec/type", json!("NodePort"))]);
        default(&mut service);
        with(
            service,
            &[
                ("/spec/clusterIP", json!("10.96.0.9")),
                ("/spec/clusterIPs", json!(["10.96.0.9"])),
                ("/spec/ports/0/nodePort", json!(30000)),
            ],
        )
    }

    #[test]
    fn defaults() {
        assert_eq!(good()["spec"]["ports"][0]["targetPort"], 80);
        assert_eq!(good()["spec"]["internalTrafficPolicy"], "Cluster");
        assert_eq!(good()["spec"]["externalTrafficPolicy"], Value::Null);
        assert_eq!(node_port()["spec"]["externalTrafficPolicy"], "Cluster");
        let mut sticky = with(good(), &[("/spec/sessionAffinity", json!("ClientIP"))]);
        default(&mut sticky);
        assert_eq!(sticky["spec"]["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], AFFINITY_SECONDS);
        let once = sticky.clone();
        default(&mut sticky);
        assert_eq!(sticky, once);
    }

    #[test]
    fn validation() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good(), changes)), expected);
        };
        row("good", &[], &[]);
        row("no ports", &[("/spec/ports", json!([]))], &["spec.ports: Required value"]);
        row("headless without ports", &[("/spec/ports", json!([])), ("/spec/clusterIP", json!("None"))], &[]);
        row(
            "port",
            &[("/spec/ports/0/port", json!(0))],
            &["spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive"],
        );
        row(
            "two without names",
            &[("/spec/ports/1", json!({"port": 81, "protocol": "TCP", "targetPort": "http"}))],
            &["spec.ports[0].name: Required value", "spec.ports[1].name: Required value"],
        );
        row(
            "node port of an inner service",
            &[("/spec/ports/0/nodePort", json!(30000))],
            &["spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"],
        );
        row(
            "type",
            &[("/spec/type", json!("Any"))],
            &["spec.type: Unsupported value: \"Any\": supported values: \"ClusterIP\", \"ExternalName\", \
               \"LoadBalancer\", \"NodePort\""],
        );
        row(
            "address",
            &[("/spec/clusterIP", json!("x")), ("/spec/clusterIPs", json!(["x"]))],
            &[
                "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
            ],
        );
    }

    #[test]
    fn updates_keep_what_was_allocated() {
        let mut new =
            with(node_port(), &[("/spec/clusterIP", json!(null)), ("/spec/clusterIPs", json!(null))]);
        new["spec"]["ports"][0]["nodePort"] = json!(0);
        update::prepare(&mut new, &node_port());
        assert_eq!(new["spec"]["clusterIP"], "10.96.0.9");
        assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.9"]));
        assert_eq!(new["spec"]["ports"][0]["nodePort"], 30000);
        expect("kept", &validate_update(&new, &node_port()), &[]);

        let mut moved = with(node_port(), &[("/spec/clusterIP", json!("10.96.0.8"))]);
        update::prepare(&mut moved, &node_port());
        expect(
            "moved",
            &validate_update(&moved, &node_port()),
            &["spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set"],
        );

        let mut inner = with(node_port(), &[("/spec/type", json!("ClusterIP"))]);
        update::prepare(&mut inner, &node_port());
        assert_eq!(inner["spec"]["ports"][0]["nodePort"], Value::Null);
        assert_eq!(inner["spec"]["externalTrafficPolicy"], Value::Null);
        expect("to ClusterIP", &validate(&inner), &[]);

        let changes = [("/spec/type", json!("ExternalName")), ("/spec/externalName", json!("example.com"))];
        let mut alias = with(node_port(), &changes);
        update::prepare(&mut alias, &node_port());
        expect("to ExternalName", &validate(&alias), &[]);
    }

    #[test]
    fn cells() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = ["web", "NodePort", "10.96.0.9", "<none>", "80:30000/TCP", "60s", "app=web"];
        assert_eq!(table_row(&node_port(), now), expected.map(|cell| json!(cell)));
        let rows = [
            (vec![("/spec/type", json!("LoadBalancer"))], "<pending>"),
            (
                vec![
                    ("/spec/type", json!("LoadBalancer")),
                    (
                        "/status",
                        json!({"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}, {"hostname": "a.b"}]}}),
                    ),
                ],
                "1.2.3.4,a.b",
            ),
            (vec![("/spec/externalIPs", json!(["5.6.7.8"]))], "5.6.7.8"),
            (vec![("/spec/type", json!("ExternalName")), ("/spec/externalName", json!("c.d"))], "c.d"),
        ];
        for (changes, expected) in rows {
            assert_eq!(external_addresses(&with(good(), &changes)), expected);
        }
    }
}
