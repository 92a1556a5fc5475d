//! What objects cost: the counting behind ResourceQuota, and the sums of a pod's containers behind LimitRange.
//!
//! Both the admission of an object and the loop that counts again ask here, so that they never disagree. Everything is a
//! function of objects and of the time.
//!
//! Source of the rules: `pkg/quota/v1/evaluator/core`, `k8s.io/component-helpers/resource`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::kinds::json::{entries, list, text};
use crate::quantity::Quantity;

/// Amounts by the names of resources.
pub type Amounts = BTreeMap<String, Quantity>;

/// Kinds whose number has a short name of its own beside `count/…`.
const COUNTED_BY_NAME: &[&str] = &[
    "configmaps",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
];
/// Resources that stand for themselves, with `requests.` and with `limits.` in a quota.
const COMPUTE: &[&str] = &["cpu", "ephemeral-storage", "memory"];
/// Limited ones among these must be named by every container, because an unbounded container cannot be counted.
const MUST_BE_NAMED: &[&str] =
    &["cpu", "limits.cpu", "limits.memory", "memory", "requests.cpu", "requests.memory"];
/// End of the names that count what one class of storage has.
const OF_CLASS: &str = ".storageclass.storage.k8s.io/";

/// Reads amounts (`{"cpu": "1"}`); what is no quantity is left out.
pub fn amounts(value: &Value) -> Amounts {
    entries(value).filter_map(|(name, amount)| Some((name.to_owned(), quantity(amount)?))).collect()
}

/// Writes amounts in their canonical form.
pub fn to_value(amounts: &Amounts) -> Value {
    let fields: Map<String, Value> =
        amounts.iter().map(|(name, amount)| (name.clone(), amount.to_string().into())).collect();
    Value::Object(fields)
}

/// `cpu=1,memory=1Gi`, as messages show amounts.
pub fn to_text(amounts: &Amounts) -> String {
    let parts: Vec<String> = amounts.iter().map(|(name, amount)| format!("{name}={amount}")).collect();
    parts.join(",")
}

/// Sum of two amounts. Nothing plus something is written like the something.
pub fn sum(a: Quantity, b: Quantity) -> Quantity {
    if a.is_zero() { b } else { a.plus(b) }
}

/// Adds amounts to others.
pub fn add(total: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        let before = total.get(name).copied().unwrap_or(Quantity::ZERO);
        total.insert(name.clone(), sum(before, *amount));
    }
}

fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => Quantity::parse(text).ok(),
        Value::Number(number) => Quantity::parse(&number.to_string()).ok(),
        _ => None,
    }
}

/// Which list of a container's resources is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What it is promised.
    Requests,
    /// What it may use at most.
    Limits,
}

impl Side {
    fn field(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Limits => "limits",
        }
    }
}

/// What a pod asks for or is limited to altogether.
///
/// Sidecars run from their turn on, so every later initialisation step needs room beside those already started. What the
/// pod says itself (KEP-2837) replaces the sums. The overhead of its runtime comes on top; for limits only of resources
/// that are limited.
pub fn pod_amounts(pod: &Value, side: Side) -> Amounts {
    let (spec, field) = (&pod["spec"], side.field());
    let of = |container: &Value| amounts(&container["resources"][field]);
    let mut total = Amounts::new();
    for container in list(&spec["containers"]) {
        add(&mut total, &of(container));
    }
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in list(&spec["initContainers"]) {
        let mut now = of(container);
        if text(&container["restartPolicy"]) == "Always" {
            add(&mut sidecars, &now);
            add(&mut total, &now);
            now = sidecars.clone();
        } else {
            add(&mut now, &sidecars);
        }
        raise(&mut peak, &now);
    }
    raise(&mut total, &peak);
    for (name, amount) in amounts(&spec["resources"][field]) {
        total.insert(name, amount);
    }
    for (name, amount) in amounts(&spec["overhead"]) {
        match (side, total.get(&name).copied()) {
            (Side::Requests, before) => {
                total.insert(name, sum(before.unwrap_or(Quantity::ZERO), amount));
            }
            (Side::Limits, Some(before)) if !before.is_zero() => {
                total.insert(name, before.plus(amount));
            }
            (Side::Limits, _) => {}
        }
    }
    total
}

fn raise(total: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        let before = total.entry(name.clone()).or_insert(*amount);
        *before = (*before).max(*amount);
    }
}

/// `count/deployments.apps`.
pub fn count_name(group: &str, plural: &str) -> String {
    if group.is_empty() { format!("count/{plural}") } else { format!("count/{plural}.{group}") }
}

/// What an object of a namespace costs now, in all names a quota may use.
pub fn usage(group: &str, plural: &str, object: &Value, now: Timestamp) -> Amounts {
    let one = Quantity::from_units(1);
    let mut used = Amounts::from([(count_name(group, plural), one)]);
    if !group.is_empty() {
        return used;
    }
    if plural == "pods" {
        if !is_over(object, now) {
            pod_usage(&mut used, object);
        }
        return used;
    }
    if COUNTED_BY_NAME.contains(&plural) {
        used.insert(plural.to_owned(), one);
    }
    match plural {
        "services" => service_usage(&mut used, &object["spec"]),
        "persistentvolumeclaims" => claim_usage(&mut used, object),
        _ => {}
    }
    used
}

/// A pod that has ended, or whose time to end is over, holds nothing any more.
fn is_over(pod: &Value, now: Timestamp) -> bool {
    if matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed") {
        return true;
    }
    let metadata = &pod["metadata"];
    // The deletion timestamp is the time at which the grace period ends, to which upstream adds the period again: a
    // node that is late still gets its time.
    let deadline = metadata["deletionTimestamp"].as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let grace = metadata["deletionGracePeriodSeconds"].as_i64();
    match (deadline, grace) {
        (Some(deadline), Some(grace)) => {
            deadline.checked_add(jiff::SignedDuration::from_secs(grace)).is_ok_and(|deadline| now > deadline)
        }
        _ => false,
    }
}

fn pod_usage(used: &mut Amounts, pod: &Value) {
    used.insert("pods".to_owned(), Quantity::from_units(1));
    add(used, &compute(&pod_amounts(pod, Side::Requests), &pod_amounts(pod, Side::Limits)));
}

/// Requests and limits under the names of quotas.
fn compute(requests: &Amounts, limits: &Amounts) -> Amounts {
    let mut used = Amounts::new();
    for (name, amount) in requests {
        if COMPUTE.contains(&name.as_str()) || name.starts_with("hugepages-") {
            used.insert(name.clone(), *amount);
            used.insert(format!("requests.{name}"), *amount);
        } else if name.contains('/') && !name.starts_with("requests.") {
            used.insert(format!("requests.{name}"), *amount);
        }
    }
    for (name, amount) in limits.iter().filter(|(name, _)| COMPUTE.contains(&name.as_str())) {
        used.insert(format!("limits.{name}"), *amount);
    }
    used
}

fn service_usage(used: &mut Amounts, spec: &Value) {
    let ports = list(&spec["ports"]);
    let units = |count: usize| Quantity::from_units(i64::try_from(count).unwrap_or(i64::MAX));
    let (balancers, node_ports) = match text(&spec["type"]) {
        "NodePort" => (0, ports.len()),
        "LoadBalancer" if spec["allocateLoadBalancerNodePorts"] == false => {
            (1, ports.iter().filter(|port| port["nodePort"].as_u64().is_some_and(|n| n > 0)).count())
        }
        "LoadBalancer" => (1, ports.len()),
        _ => (0, 0),
    };
    used.insert("services.loadbalancers".to_owned(), units(balancers));
    used.insert("services.nodeports".to_owned(), units(node_ports));
}

fn claim_usage(used: &mut Amounts, claim: &Value) {
    let one = Quantity::from_units(1);
    let spec = &claim["spec"];
    let class = match text(&spec["storageClassName"]) {
        "" => text(&claim["metadata"]["annotations"]["volume.beta.kubernetes.io/storage-class"]),
        name => name,
    };
    let asked = quantity(&spec["resources"]["requests"]["storage"]);
    // A claim that shrinks again after a failed growth holds what was allocated for it.
    let held = quantity(&claim["status"]["allocatedResources"]["storage"]);
    let storage = asked.into_iter().chain(held).max();
    if !class.is_empty() {
        used.insert(format!("{class}{OF_CLASS}persistentvolumeclaims"), one);
    }
    if let Some(storage) = storage {
        used.insert("requests.storage".to_owned(), storage);
        if !class.is_empty() {
            used.insert(format!("{class}{OF_CLASS}requests.storage"), storage);
        }
    }
}

/// Whether a quota limits anything of what an object costs: it names one of the resources, and all its scopes hold.
/// Only pods and claims are in scopes; a quota with scopes says nothing about other kinds.
pub fn applies(spec: &Value, group: &str, plural: &str, object: &Value, hard: &Amounts) -> bool {
    let named = hard.keys().any(|name| counts(name, group, plural));
    named && scopes(spec).iter().all(|scope| scope.holds(group, plural, object))
}

/// Whether a resource of a quota counts something of a kind.
pub fn counts(resource: &str, group: &str, plural: &str) -> bool {
    if resource == count_name(group, plural) {
        return true;
    }
    if !group.is_empty() {
        return false;
    }
    match plural {
        "pods" => is_of_pods(resource),
        "services" => matches!(resource, "services" | "services.loadbalancers" | "services.nodeports"),
        "persistentvolumeclaims" => {
            matches!(resource, "persistentvolumeclaims" | "requests.storage") || resource.contains(OF_CLASS)
        }
        plural => COUNTED_BY_NAME.contains(&plural) && resource == plural,
    }
}

fn is_of_pods(resource: &str) -> bool {
    let bare = resource.strip_prefix("requests.");
    let of_class = resource.contains(OF_CLASS);
    resource == "pods"
        || COMPUTE.contains(&resource)
        || resource.strip_prefix("limits.").is_some_and(|name| COMPUTE.contains(&name))
        || resource.starts_with("hugepages-")
        || bare.is_some_and(|name| {
            COMPUTE.contains(&name) || name.starts_with("hugepages-") || name.contains('/') && !of_class
        })
}

/// A condition on the objects a quota counts.
struct Scope<'a> {
    name: &'a str,
    operator: &'a str,
    values: Vec<&'a str>,
}

fn scopes(spec: &Value) -> Vec<Scope<'_>> {
    let plain = list(&spec["scopes"]).iter().filter_map(Value::as_str);
    let plain = plain.map(|name| Scope { name, operator: "Exists", values: Vec::new() });
    let selected = list(&spec["scopeSelector"]["matchExpressions"]).iter().map(|expression| Scope {
        name: text(&expression["scopeName"]),
        operator: text(&expression["operator"]),
        values: list(&expression["values"]).iter().filter_map(Value::as_str).collect(),
    });
    plain.chain(selected).collect()
}

impl Scope<'_> {
    fn holds(&self, group: &str, plural: &str, object: &Value) -> bool {
        let spec = &object["spec"];
        match (group, plural, self.name) {
            ("", "pods", "Terminating") => spec["activeDeadlineSeconds"].as_i64().is_some_and(|s| s >= 0),
            ("", "pods", "NotTerminating") => spec["activeDeadlineSeconds"].as_i64().is_none_or(|s| s < 0),
            ("", "pods", "BestEffort") => is_best_effort(spec),
            ("", "pods", "NotBestEffort") => !is_best_effort(spec),
            ("", "pods", "PriorityClass") => self.selects(text(&spec["priorityClassName"])),
            ("", "pods", "CrossNamespacePodAffinity") => reaches_other_namespaces(spec),
            ("", "persistentvolumeclaims", "VolumeAttributesClass") => {
                let status = &object["status"];
                let names = [
                    &spec["volumeAttributesClassName"],
                    &status["currentVolumeAttributesClassName"],
                    &status["modifyVolumeStatus"]["targetVolumeAttributesClassName"],
                ];
                names.iter().any(|name| self.selects(text(name)))
            }
            _ => false,
        }
    }

    /// Whether a name is one of those meant; no name at all is the empty one.
    fn selects(&self, name: &str) -> bool {
        match self.operator {
            "Exists" => !name.is_empty(),
            "DoesNotExist" => name.is_empty(),
            "In" => !name.is_empty() && self.values.contains(&name),
            "NotIn" => !self.values.contains(&name),
            _ => false,
        }
    }
}

fn is_best_effort(spec: &Value) -> bool {
    let holders = ["initContainers", "containers"].iter().flat_map(|field| list(&spec[*field]));
    let mut all = holders.map(|container| &container["resources"]).chain([&spec["resources"]]);
    all.all(|resources| {
        let lists = [&resources["requests"], &resources["limits"]];
        lists.iter().all(|list| {
            amounts(list)
                .iter()
                .all(|(name, amount)| !matches!(name.as_str(), "cpu" | "memory") || amount.is_zero())
        })
    })
}

fn reaches_other_namespaces(spec: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let affinity = &spec["affinity"][*kind];
        let required = list(&affinity["requiredDuringSchedulingIgnoredDuringExecution"]).iter();
        let preferred = list(&affinity["preferredDuringSchedulingIgnoredDuringExecution"]).iter();
        required
            .chain(preferred.map(|weighted| &weighted["podAffinityTerm"]))
            .any(|term| !list(&term["namespaces"]).is_empty() || !term["namespaceSelector"].is_null())
    })
}

/// What containers of a pod do not say although a quota limits it: `must specify limits.cpu for: a,b; …`.
pub fn unspecified(group: &str, plural: &str, object: &Value, hard: &Amounts) -> Option<String> {
    if !group.is_empty() || plural != "pods" {
        return None;
    }
    let spec = &object["spec"];
    let said = |resources: &Value| compute(&amounts(&resources["requests"]), &amounts(&resources["limits"]));
    let by_pod = said(&spec["resources"]);
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for container in ["containers", "initContainers"].iter().flat_map(|field| list(&spec[*field])) {
        let by_container = said(&container["resources"]);
        for name in MUST_BE_NAMED.iter().filter(|name| hard.contains_key(**name)) {
            if !by_pod.contains_key(*name) && !by_container.contains_key(*name) {
                missing.entry(name).or_default().push(text(&container["name"]));
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let parts: Vec<String> = missing
        .into_iter()
        .map(|(name, mut containers)| {
            containers.sort_unstable();
            format!("{name} for: {}", containers.join(","))
        })
        .collect();
    Some(format!("must specify {}", parts.join("; ")))
}

/// Usage of a quota from everything in its namespace. `objects` are of the kind `group`/`plural` each. Resources that no
/// object uses are 0.
pub fn recount<'a>(
    spec: &Value,
    objects: impl IntoIterator<Item = (&'a str, &'a str, &'a Value)>,
    now: Timestamp,
) -> Amounts {
    let hard = amounts(&spec["hard"]);
    let mut used: Amounts = hard.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
    for (group, plural, object) in objects {
        if applies(spec, group, plural, object, &hard) {
            let mut cost = usage(group, plural, object, now);
            cost.retain(|name, _| hard.contains_key(name));
            add(&mut used, &cost);
        }
    }
    used
}

/// Whether a quota may count objects of this kind at all; lets a recount skip what it need not read.
pub fn may_count(spec: &Value, group: &str, plural: &str) -> bool {
    amounts(&spec["hard"]).keys().any(|name| counts(name, group, plural))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn container(name: &str, requests: Value, limits: Value) -> Value {
        json!({"name": name, "resources": {"requests": requests, "limits": limits}})
    }

    #[test]
    fn sums_of_pods() {
        let cpu = |amount: &str| container("c", json!({"cpu": amount}), json!({"cpu": amount}));
        let sidecar = |amount: &str| {
            let mut container = cpu(amount);
            container["restartPolicy"] = "Always".into();
            container
        };
        let rows = [
            ("two containers", json!({"containers": [cpu("1"), cpu("500m")]}), "1500m"),
            ("large step", json!({"containers": [cpu("1")], "initContainers": [cpu("3"), cpu("2")]}), "3"),
            ("sidecar", json!({"containers": [cpu("1")], "initContainers": [sidecar("1"), cpu("3")]}), "4"),
            (
                "late sidecar",
                json!({"containers": [cpu("1")], "initContainers": [cpu("1"), sidecar("2")]}),
                "3",
            ),
            ("of the pod", json!({"containers": [cpu("1")], "resources": {"requests": {"cpu": "5"}}}), "5"),
            ("overhead", json!({"containers": [cpu("1")], "overhead": {"cpu": "250m"}}), "1250m"),
        ];
        for (name, spec, expected) in rows {
            let total = pod_amounts(&json!({"spec": spec}), Side::Requests);
            assert_eq!(total["cpu"].to_string(), expected, "{name}");
        }
        let unlimited =
            json!({"spec": {"containers": [container("c", json!({}), json!({}))], "overhead": {"cpu": "1"}}});
        assert!(pod_amounts(&unlimited, Side::Limits).is_empty());
    }

    #[test]
    fn what_objects_cost() {
        let pod = json!({"spec": {"containers": [container(
            "c",
            json!({"cpu": "1", "memory": "1Gi", "example.com/gpu": "2", "hugepages-2Mi": "4Mi"}),
            json!({"memory": "2Gi"}),
        )]}});
        let ended = json!({"spec": pod["spec"], "status": {"phase": "Succeeded"}});
        let balancer = json!({"spec": {"type": "LoadBalancer", "ports": [{}, {}]}});
        let bare =
            json!({"spec": {"type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "ports": [{}]}});
        let claim =
            json!({"spec": {"storageClassName": "gold", "resources": {"requests": {"storage": "1Gi"}}}});
        let rows: Vec<(&str, &str, &Value, &str)> = vec![
            (
                "",
                "pods",
                &pod,
                "count/pods=1,cpu=1,hugepages-2Mi=4Mi,limits.memory=2Gi,memory=1Gi,pods=1,requests.cpu=1,\
                 requests.example.com/gpu=2,requests.hugepages-2Mi=4Mi,requests.memory=1Gi",
            ),
            ("", "pods", &ended, "count/pods=1"),
            (
                "",
                "services",
                &balancer,
                "count/services=1,services=1,services.loadbalancers=1,services.nodeports=2",
            ),
            (
                "",
                "services",
                &bare,
                "count/services=1,services=1,services.loadbalancers=1,services.nodeports=0",
            ),
            (
                "",
                "persistentvolumeclaims",
                &claim,
                "count/persistentvolumeclaims=1,gold.storageclass.storage.k8s.io/persistentvolumeclaims=1,\
                 gold.storageclass.storage.k8s.io/requests.storage=1Gi,persistentvolumeclaims=1,requests.storage=1Gi",
            ),
            ("", "secrets", &Value::Null, "count/secrets=1,secrets=1"),
            ("apps", "deployments", &Value::Null, "count/deployments.apps=1"),
        ];
        for (group, plural, object, expected) in rows {
            assert_eq!(to_text(&usage(group, plural, object, Timestamp::UNIX_EPOCH)), expected);
        }
    }

    #[test]
    fn a_dying_pod_counts_until_its_time_is_over() {
        let pod = json!({"metadata": {
            "deletionTimestamp": "1970-01-01T00:00:10Z", "deletionGracePeriodSeconds": 5,
        }});
        for (second, counted) in [(12, true), (16, false)] {
            let now = Timestamp::from_second(second).expect("a time");
            assert_eq!(usage("", "pods", &pod, now).contains_key("pods"), counted, "{second}");
        }
    }

    #[test]
    fn scopes_select() {
        let best = json!({"spec": {"containers": [{"name": "c"}]}});
        let burst = json!({"spec": {"containers": [container("c", json!({"cpu": "1"}), json!({}))]}});
        let deadline = json!({"spec": {"activeDeadlineSeconds": 5, "priorityClassName": "high"}});
        let far = json!({"spec": {"affinity": {"podAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": [{"namespaceSelector": {}}],
        }}}});
        let scope = |name: &str| json!({"scopes": [name]});
        let class = |operator: &str, values: Value| {
            json!({"scopeSelector": {"matchExpressions": [
                {"scopeName": "PriorityClass", "operator": operator, "values": values},
            ]}})
        };
        let rows = [
            (scope("BestEffort"), &best, true),
            (scope("BestEffort"), &burst, false),
            (scope("NotBestEffort"), &burst, true),
            (scope("Terminating"), &deadline, true),
            (scope("Terminating"), &best, false),
            (scope("NotTerminating"), &best, true),
            (scope("CrossNamespacePodAffinity"), &far, true),
            (scope("CrossNamespacePodAffinity"), &best, false),
            (scope("PriorityClass"), &deadline, true),
            (class("In", json!(["high"])), &deadline, true),
            (class("In", json!(["low"])), &deadline, false),
            (class("NotIn", json!(["low"])), &best, true),
            (class("DoesNotExist", json!([])), &best, true),
            (class("Exists", json!([])), &best, false),
        ];
        let hard = amounts(&json!({"pods": "1"}));
        for (spec, pod, expected) in rows {
            assert_eq!(applies(&spec, "", "pods", pod, &hard), expected, "{spec} {pod}");
        }
        assert!(!applies(&scope("BestEffort"), "", "services", &best, &amounts(&json!({"services": "1"}))));
    }

    #[test]
    fn which_kind_a_resource_counts() {
        let rows = [
            ("pods", "", "pods", true),
            ("count/pods", "", "pods", true),
            ("requests.cpu", "", "pods", true),
            ("limits.memory", "", "pods", true),
            ("requests.example.com/gpu", "", "pods", true),
            ("requests.storage", "", "pods", false),
            ("requests.storage", "", "persistentvolumeclaims", true),
            ("gold.storageclass.storage.k8s.io/requests.storage", "", "persistentvolumeclaims", true),
            ("gold.storageclass.storage.k8s.io/requests.storage", "", "pods", false),
            ("services.nodeports", "", "services", true),
            ("count/deployments.apps", "apps", "deployments", true),
            ("count/deployments.apps", "apps", "replicasets", false),
            ("secrets", "", "secrets", true),
            ("secrets", "", "configmaps", false),
        ];
        for (resource, group, plural, expected) in rows {
            assert_eq!(counts(resource, group, plural), expected, "{resource} {plural}");
        }
    }

    #[test]
    fn containers_must_say_what_is_limited() {
        let pod = json!({"spec": {"containers": [
            container("b", json!({}), json!({"cpu": "1"})), container("a", json!({}), json!({})),
        ]}});
        let hard = amounts(&json!({"limits.cpu": "1", "limits.memory": "1Gi", "pods": "5"}));
        assert_eq!(
            unspecified("", "pods", &pod, &hard).as_deref(),
            Some("must specify limits.cpu for: a; limits.memory for: a,b")
        );
        assert_eq!(unspecified("", "pods", &pod, &amounts(&json!({"pods": "5"}))), None);
    }

    #[test]
    fn recounts() {
        let pod = json!({"spec": {"containers": [container("c", json!({"cpu": "1"}), json!({}))]}});
        let secret = json!({});
        let spec = json!({"hard": {"pods": "10", "requests.cpu": "4", "secrets": "1", "services": "3"}});
        let objects = [("", "pods", &pod), ("", "pods", &pod), ("", "secrets", &secret)];
        let used = recount(&spec, objects, Timestamp::UNIX_EPOCH);
        assert_eq!(to_text(&used), "pods=2,requests.cpu=2,secrets=1,services=0");
    }
}
