//! What objects count for in a quota: pure sums over one object, which the server adds up by namespace.
//!
//! The names are those of `spec.hard` of a ResourceQuota: `requests.cpu`, `services.nodeports`,
//! `count/deployments.apps`. Source of the rules: `pkg/quota/v1/evaluator/core`.
//!
//! There is no clock here: a pod that is being deleted counts until it is gone or has ended.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::kinds::device::is_extended_resource;
use crate::kinds::json::{entries, int, is_empty, list, text};
use crate::kinds::pod::{self, Amount};
use crate::kinds::rules;
use crate::quantity::Quantity;

/// Amounts by name.
pub type Usage = BTreeMap<String, Quantity>;

/// The name of the field that says how a claim's class is called, before there was a field for it.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";
/// A request for all devices that match counts as many as a claim may get.
const MAX_DEVICES: i64 = 32;
/// What every container must say when a quota counts it.
const COMPUTE: [(&str, Amount, &str); 6] = [
    ("cpu", Amount::Request, "cpu"),
    ("memory", Amount::Request, "memory"),
    ("requests.cpu", Amount::Request, "cpu"),
    ("requests.memory", Amount::Request, "memory"),
    ("limits.cpu", Amount::Limit, "cpu"),
    ("limits.memory", Amount::Limit, "memory"),
];

fn one() -> Quantity {
    Quantity::from_units(1)
}

/// What a pod counts for. One that has ended is an object still, and nothing more.
pub fn pod_usage(pod: &Value) -> Usage {
    let mut usage = Usage::from([("count/pods".to_owned(), one())]);
    if matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed") {
        return usage;
    }
    usage.insert("pods".to_owned(), one());
    let spec = &pod["spec"];
    for resource in resource_names(spec, Amount::Request) {
        let amount = pod::request_of(spec, resource);
        let standard = matches!(resource, "cpu" | "memory" | "ephemeral-storage");
        if standard || resource.starts_with("hugepages-") {
            usage.insert(resource.to_owned(), amount);
        }
        if standard || resource.starts_with("hugepages-") || is_extended_resource(resource) {
            usage.insert(format!("requests.{resource}"), amount);
        }
    }
    for resource in resource_names(spec, Amount::Limit) {
        if matches!(resource, "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(format!("limits.{resource}"), pod::limit_of(spec, resource));
        }
    }
    usage
}

/// Resources of which anything in a pod names an amount.
fn resource_names(spec: &Value, amount: Amount) -> BTreeSet<&str> {
    let containers = ["initContainers", "containers"].into_iter().flat_map(|field| list(&spec[field]));
    let mut names: BTreeSet<&str> = containers
        .chain([spec])
        .flat_map(|holder| entries(&holder["resources"][amount.field()]))
        .map(|(resource, _)| resource)
        .collect();
    if amount == Amount::Request {
        names.extend(entries(&spec["overhead"]).map(|(resource, _)| resource));
    }
    names
}

/// What an object of a resource counts for.
pub fn quota_usage(group: &str, plural: &str, object: &Value) -> Usage {
    if (group, plural) == ("", "pods") {
        return pod_usage(object);
    }
    let name = if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") };
    let mut usage = Usage::from([(name, one())]);
    // These had names of their own before objects of every kind could be counted.
    const OLDER: [&str; 6] = [
        "configmaps",
        "persistentvolumeclaims",
        "replicationcontrollers",
        "resourcequotas",
        "secrets",
        "services",
    ];
    if group.is_empty() && OLDER.contains(&plural) {
        usage.insert(plural.to_owned(), one());
    }
    match (group, plural) {
        ("", "services") => add_service(&mut usage, &object["spec"]),
        ("", "persistentvolumeclaims") => add_claim(&mut usage, object),
        ("resource.k8s.io", "resourceclaims") => add_devices(&mut usage, &object["spec"]["devices"]),
        _ => {}
    }
    usage
}

fn add_service(usage: &mut Usage, spec: &Value) {
    let ports = list(&spec["ports"]);
    let chosen = ports.iter().filter(|port| int(&port["nodePort"]) != 0).count();
    let (node_ports, balancers) = match text(&spec["type"]) {
        "NodePort" => (ports.len(), 0),
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == Value::Bool(false) => (chosen, 1),
        "LoadBalancer" => (ports.len(), 1),
        _ => (0, 0),
    };
    // A list of a document is far shorter than an i64 counts.
    let node_ports = i64::try_from(node_ports).unwrap_or(i64::MAX);
    usage.insert("services.nodeports".to_owned(), Quantity::from_units(node_ports));
    usage.insert("services.loadbalancers".to_owned(), Quantity::from_units(balancers));
}

fn add_claim(usage: &mut Usage, claim: &Value) {
    let class = match text(&claim["metadata"]["annotations"][CLASS_ANNOTATION]) {
        "" => text(&claim["spec"]["storageClassName"]),
        class => class,
    };
    let wanted = rules::quantity(&claim["spec"]["resources"]["requests"]["storage"]);
    // A volume that grows takes the room it is being given, whatever the claim asks for meanwhile.
    let given = rules::quantity(&claim["status"]["allocatedResources"]["storage"]);
    let storage = wanted.max(given);
    let of_class = |name: &str| format!("{class}.storageclass.storage.k8s.io/{name}");
    if !class.is_empty() {
        usage.insert(of_class("persistentvolumeclaims"), one());
    }
    if let Some(storage) = storage {
        usage.insert("requests.storage".to_owned(), storage);
        if !class.is_empty() {
            usage.insert(of_class("requests.storage"), storage);
        }
    }
}

/// Devices by class; of the choices of a request, the one that takes most counts.
fn add_devices(usage: &mut Usage, devices: &Value) {
    for request in list(&devices["requests"]) {
        let mut most: BTreeMap<&str, i64> = BTreeMap::new();
        for wanted in [&request["exactly"]].into_iter().chain(list(&request["firstAvailable"])) {
            let class = text(&wanted["deviceClassName"]);
            if class.is_empty() {
                continue;
            }
            let count = match text(&wanted["allocationMode"]) {
                "All" => MAX_DEVICES,
                _ => int(&wanted["count"]).max(0),
            };
            let known = most.entry(class).or_default();
            *known = count.max(*known);
        }
        for (class, count) in most {
            let name = format!("{class}.deviceclass.resource.k8s.io/devices");
            let total = usage.entry(name).or_insert(Quantity::ZERO);
            *total = total.plus(Quantity::from_units(count));
        }
    }
}

/// Whether a quota with this spec counts an object of a resource: all of its scopes must hold. What it counts of the
/// object are the names that `hard` and [`quota_usage`] share.
pub fn quota_selects(quota_spec: &Value, group: &str, plural: &str, object: &Value) -> bool {
    let scopes = list(&quota_spec["scopes"]).iter().map(|scope| (text(scope), "Exists", &Value::Null));
    let selected = list(&quota_spec["scopeSelector"]["matchExpressions"]).iter().map(|requirement| {
        (text(&requirement["scopeName"]), text(&requirement["operator"]), &requirement["values"])
    });
    scopes.chain(selected).all(|(scope, operator, values)| match (group, plural) {
        ("", "pods") => pod_in_scope(object, scope, operator, values),
        ("", "persistentvolumeclaims") if scope == "VolumeAttributesClass" => {
            class_matches(claim_attributes_classes(object), operator, values)
        }
        // Scopes are about pods and claims; a quota that has any counts nothing else.
        _ => false,
    })
}

/// Whether a pod belongs to a scope of quotas. `operator` and `values` are those of a `scopeSelector`; an entry of
/// `scopes` means `Exists`.
pub fn pod_in_scope(pod: &Value, scope: &str, operator: &str, values: &Value) -> bool {
    let spec = &pod["spec"];
    let ends = spec["activeDeadlineSeconds"].as_i64().is_some_and(|seconds| seconds >= 0);
    let best_effort = || pod::qos_class(spec) == "BestEffort";
    match scope {
        "Terminating" => ends,
        "NotTerminating" => !ends,
        "BestEffort" => best_effort(),
        "NotBestEffort" => !best_effort(),
        "PriorityClass" => {
            let class = text(&spec["priorityClassName"]);
            class_matches(
                Some(class).filter(|class| !class.is_empty()).into_iter().collect(),
                operator,
                values,
            )
        }
        "CrossNamespacePodAffinity" => looks_beyond_namespace(&spec["affinity"]),
        _ => false,
    }
}

/// Whether one of an object's classes is asked for; an object without a class passes what asks for absence.
fn class_matches(classes: BTreeSet<&str>, operator: &str, values: &Value) -> bool {
    let listed = || list(values).iter().any(|value| classes.contains(text(value)));
    match operator {
        "Exists" => !classes.is_empty(),
        "DoesNotExist" => classes.is_empty(),
        "In" => listed(),
        "NotIn" => !listed(),
        _ => false,
    }
}

/// The class a claim has, and the one it is on its way to.
fn claim_attributes_classes(claim: &Value) -> BTreeSet<&str> {
    [
        &claim["spec"]["volumeAttributesClassName"],
        &claim["status"]["currentVolumeAttributesClassName"],
        &claim["status"]["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
    ]
    .into_iter()
    .map(text)
    .filter(|class| !class.is_empty())
    .collect()
}

fn looks_beyond_namespace(affinity: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].into_iter().any(|kind| {
        let required = list(&affinity[kind]["requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = list(&affinity[kind]["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        required
            .chain(preferred.map(|term| &term["podAffinityTerm"]))
            .any(|term| !is_empty(&term["namespaces"]) || !term["namespaceSelector"].is_null())
    })
}

/// Resources that a quota counts and containers of a pod say nothing of, each with the names of those containers. Such
/// a pod is refused: nobody could say what it uses. Empty when the pod as a whole says it.
pub fn unspecified(hard: &Value, pod: &Value) -> BTreeMap<&'static str, Vec<String>> {
    let spec = &pod["spec"];
    let says = |holder: &Value, amount: Amount, resource: &str| {
        !holder["resources"][amount.field()][resource].is_null()
    };
    let mut missing: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
    for (name, amount, resource) in COMPUTE {
        if hard[name].is_null() || says(spec, amount, resource) {
            continue;
        }
        let containers = ["containers", "initContainers"].into_iter().flat_map(|field| list(&spec[field]));
        let silent: Vec<String> = containers
            .filter(|container| !says(container, amount, resource))
            .map(|container| text(&container["name"]).to_owned())
            .collect();
        if !silent.is_empty() {
            missing.insert(name, silent);
        }
    }
    missing
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(usage: &Usage) -> String {
        usage.iter().map(|(name, amount)| format!("{name}={amount}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn pods() {
        let uses =
            |requests: Value, limits: Value| json!({"resources": {"requests": requests, "limits": limits}});
        let rows = [
            ("nothing asked for", json!({"spec": {"containers": [{}]}}), "count/pods=1 pods=1"),
            (
                "sums",
                json!({"spec": {"containers": [
                    uses(json!({"cpu": "1", "memory": "1Gi"}), json!({"cpu": "2"})),
                    uses(json!({"cpu": "500m"}), json!({"cpu": "1"})),
                ]}}),
                "count/pods=1 cpu=1500m limits.cpu=3 memory=1Gi pods=1 requests.cpu=1500m requests.memory=1Gi",
            ),
            (
                "a large first step, a sidecar, overhead",
                json!({"spec": {
                    "initContainers": [
                        {"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
                        {"resources": {"requests": {"cpu": "5"}}},
                    ],
                    "containers": [uses(json!({"cpu": "2"}), json!({}))],
                    "overhead": {"cpu": "250m", "memory": "10Mi"},
                }}),
                "count/pods=1 cpu=6250m memory=10Mi pods=1 requests.cpu=6250m requests.memory=10Mi",
            ),
            (
                "devices, pages, scratch space",
                json!({"spec": {"containers": [uses(
                    json!({"example.com/gpu": "2", "hugepages-2Mi": "4Mi", "ephemeral-storage": "1Gi"}),
                    json!({"example.com/gpu": "2", "hugepages-2Mi": "4Mi", "ephemeral-storage": "2Gi"}),
                )]}}),
                "count/pods=1 ephemeral-storage=1Gi hugepages-2Mi=4Mi limits.ephemeral-storage=2Gi pods=1 \
                 requests.ephemeral-storage=1Gi requests.example.com/gpu=2 requests.hugepages-2Mi=4Mi",
            ),
            (
                "amounts of the pod itself",
                json!({"spec": {"containers": [{}], "resources": {"requests": {"cpu": "3"}}}}),
                "count/pods=1 cpu=3 pods=1 requests.cpu=3",
            ),
            (
                "ended",
                json!({"spec": {"containers": [uses(json!({"cpu": "1"}), json!({}))]}, "status": {"phase": "Failed"}}),
                "count/pods=1",
            ),
        ];
        for (what, pod, expected) in rows {
            assert_eq!(shown(&pod_usage(&pod)), expected, "{what}");
        }
    }

    #[test]
    fn other_objects() {
        let service = |spec: Value| json!({ "spec": spec });
        let ports = json!([{"port": 80}, {"port": 81, "nodePort": 30000}]);
        let claim = json!({
            "spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"allocatedResources": {"storage": "2Gi"}},
        });
        let devices = json!({"spec": {"devices": {"requests": [
            {"exactly": {"deviceClassName": "a", "allocationMode": "ExactCount", "count": 2}},
            {"firstAvailable": [{"deviceClassName": "a", "count": 3}, {"deviceClassName": "b", "allocationMode": "All"}]},
        ]}}});
        let rows = [
            ("apps", "deployments", json!({}), "count/deployments.apps=1"),
            ("", "secrets", json!({}), "count/secrets=1 secrets=1"),
            ("", "podtemplates", json!({}), "count/podtemplates=1"),
            (
                "",
                "services",
                service(json!({"type": "ClusterIP", "ports": ports})),
                "count/services=1 services=1 services.loadbalancers=0 services.nodeports=0",
            ),
            (
                "",
                "services",
                service(json!({"type": "NodePort", "ports": ports})),
                "count/services=1 services=1 services.loadbalancers=0 services.nodeports=2",
            ),
            (
                "",
                "services",
                service(json!({"type": "LoadBalancer", "ports": ports})),
                "count/services=1 services=1 services.loadbalancers=1 services.nodeports=2",
            ),
            (
                "",
                "services",
                service(
                    json!({"type": "LoadBalancer", "ports": ports, "allocateLoadBalancerNodePorts": false}),
                ),
                "count/services=1 services=1 services.loadbalancers=1 services.nodeports=1",
            ),
            (
                "",
                "persistentvolumeclaims",
                claim,
                "count/persistentvolumeclaims=1 gold.storageclass.storage.k8s.io/persistentvolumeclaims=1 \
                 gold.storageclass.storage.k8s.io/requests.storage=2Gi persistentvolumeclaims=1 requests.storage=2Gi",
            ),
            (
                "resource.k8s.io",
                "resourceclaims",
                devices,
                "a.deviceclass.resource.k8s.io/devices=5 b.deviceclass.resource.k8s.io/devices=32 \
                 count/resourceclaims.resource.k8s.io=1",
            ),
        ];
        for (group, plural, object, expected) in rows {
            assert_eq!(shown(&quota_usage(group, plural, &object)), expected, "{plural}");
        }
    }

    #[test]
    fn scopes() {
        let plain = json!({"spec": {"containers": [{}]}});
        let deadline = json!({"spec": {"containers": [{}], "activeDeadlineSeconds": 5}});
        let busy = json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "1"}}}]}});
        let high = json!({"spec": {"containers": [{}], "priorityClassName": "high"}});
        let term = json!({"topologyKey": "zone", "namespaceSelector": {}});
        let far = json!({"spec": {"affinity": {"podAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": term}],
        }}}});
        let scopes = |scopes: Value| json!({ "scopes": scopes });
        let selector = |scope: &str, operator: &str, values: Value| {
            let requirement = json!({"scopeName": scope, "operator": operator, "values": values});
            json!({"scopeSelector": {"matchExpressions": [requirement]}})
        };
        let rows = [
            ("no scopes", json!({}), &plain, true),
            ("terminating", scopes(json!(["Terminating"])), &deadline, true),
            ("not terminating", scopes(json!(["NotTerminating"])), &deadline, false),
            ("best effort", scopes(json!(["BestEffort"])), &plain, true),
            ("best effort, busy", scopes(json!(["BestEffort"])), &busy, false),
            ("all of them", scopes(json!(["NotBestEffort", "NotTerminating"])), &busy, true),
            ("not all of them", scopes(json!(["NotBestEffort", "Terminating"])), &busy, false),
            ("any class", scopes(json!(["PriorityClass"])), &high, true),
            ("no class", scopes(json!(["PriorityClass"])), &plain, false),
            ("this class", selector("PriorityClass", "In", json!(["high"])), &high, true),
            ("another class", selector("PriorityClass", "In", json!(["low"])), &high, false),
            ("all but a class", selector("PriorityClass", "NotIn", json!(["low"])), &plain, true),
            ("without class", selector("PriorityClass", "DoesNotExist", json!([])), &high, false),
            ("near", scopes(json!(["CrossNamespacePodAffinity"])), &plain, false),
            ("far", scopes(json!(["CrossNamespacePodAffinity"])), &far, true),
            ("unknown", scopes(json!(["Blue"])), &plain, false),
        ];
        for (what, quota, pod, expected) in rows {
            assert_eq!(quota_selects(&quota, "", "pods", pod), expected, "{what}");
        }
        let fast = json!({"spec": {"volumeAttributesClassName": "fast"}});
        let wanted = selector("VolumeAttributesClass", "In", json!(["fast"]));
        assert!(quota_selects(&wanted, "", "persistentvolumeclaims", &fast));
        assert!(!quota_selects(&scopes(json!(["BestEffort"])), "", "persistentvolumeclaims", &fast));
        assert!(!quota_selects(&scopes(json!(["BestEffort"])), "", "services", &json!({})));
        assert!(quota_selects(&json!({}), "", "services", &json!({})));
    }

    #[test]
    fn what_containers_do_not_say() {
        let hard = json!({"requests.cpu": "1", "limits.memory": "1Gi", "pods": "5"});
        let pod = json!({"spec": {
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}, {"name": "b"}],
            "initContainers": [{"name": "c"}],
        }});
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let expected = BTreeMap::from([
            ("limits.memory", names(&["a", "b", "c"])),
            ("requests.cpu", names(&["b", "c"])),
        ]);
        assert_eq!(unspecified(&hard, &pod), expected);
        let whole = json!({"spec": {"containers": [{"name": "a"}], "resources": {
            "requests": {"cpu": "1"}, "limits": {"memory": "1Gi"},
        }}});
        assert!(unspecified(&hard, &whole).is_empty());
    }
}
