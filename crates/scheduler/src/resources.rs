//! Amounts: what a pod asks for and in which lane of the node table each resource is counted.
//!
//! A resource name is turned into a small number (its lane) once; from then on a request is a short
//! list of (lane, amount) and the node table holds one array per lane. CPU is counted in thousandths
//! of a core, everything else in whole units (bytes, pieces). Nothing here knows nodes.

use std::collections::{BTreeMap, HashMap};

use k8s_openapi::api::core::v1::{Container, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// Index of a resource in the node table.
pub(crate) type Lane = usize;

/// CPU, in thousandths of a core.
pub(crate) const CPU: Lane = 0;
/// Memory, in bytes.
pub(crate) const MEMORY: Lane = 1;
/// Local disk for logs, layers and emptyDir volumes, in bytes.
const EPHEMERAL_STORAGE: Lane = 2;
/// Number of pods.
pub(crate) const PODS: Lane = 3;

/// What a container that names no CPU request counts for in scores (never in the fit), as in
/// kube-scheduler's `schedutil.DefaultMilliCPURequest`: without it, pods without requests would all
/// look weightless and land on one node.
const UNNAMED_CPU: i64 = 100;
/// The same for memory: 200 MiB, kube-scheduler's `DefaultMemoryRequest`.
const UNNAMED_MEMORY: i64 = 200 * 1024 * 1024;

/// What an amount that cannot be read counts for. The API refuses such objects, so this is a second
/// line: the pod fits nowhere rather than everywhere. Far from `i64::MAX`, so that sums stay ordered.
const UNREADABLE: i64 = i64::MAX / 1024;

type Amounts = BTreeMap<Lane, i64>;
type Quantities = BTreeMap<String, Quantity>;

/// The names of the lanes. Lanes are never given back: a cluster has tens of resource names.
pub(crate) struct Lanes {
    names: Vec<String>,
    by_name: HashMap<String, Lane>,
}

impl Lanes {
    pub(crate) fn new() -> Self {
        let mut lanes = Self { names: Vec::new(), by_name: HashMap::new() };
        for (lane, name) in
            [(CPU, "cpu"), (MEMORY, "memory"), (EPHEMERAL_STORAGE, "ephemeral-storage"), (PODS, "pods")]
        {
            let given = lanes.of(name);
            debug_assert_eq!(given, lane);
        }
        lanes
    }

    /// The lane of a resource, made when the name is new.
    pub(crate) fn of(&mut self, name: &str) -> Lane {
        if let Some(&lane) = self.by_name.get(name) {
            return lane;
        }
        let lane = self.names.len();
        self.names.push(name.to_string());
        self.by_name.insert(name.to_string(), lane);
        lane
    }

    pub(crate) fn name(&self, lane: Lane) -> &str {
        &self.names[lane]
    }

    /// Reads a list of quantities into lanes. `unreadable` is what a malformed one counts for.
    fn read(&mut self, quantities: &Quantities, unreadable: i64) -> Amounts {
        quantities
            .iter()
            .map(|(name, quantity)| {
                let lane = self.of(name);
                (lane, amount(lane, quantity).unwrap_or(unreadable))
            })
            .collect()
    }

    /// What a node offers. A malformed amount offers nothing.
    pub(crate) fn capacity(&mut self, allocatable: Option<&Quantities>) -> Vec<(Lane, i64)> {
        allocatable.map(|quantities| self.read(quantities, 0)).unwrap_or_default().into_iter().collect()
    }
}

fn amount(lane: Lane, quantity: &Quantity) -> Option<i64> {
    let quantity = sampan_api::quantity::Quantity::parse(&quantity.0).ok()?;
    let amount = if lane == CPU { quantity.milli() } else { quantity.value() };
    Some(i64::try_from(amount).unwrap_or(UNREADABLE).clamp(0, UNREADABLE))
}

/// A port of the node's own addresses that a container takes for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HostPort {
    port: i32,
    protocol: String,
    /// Empty for all addresses.
    address: String,
}

impl HostPort {
    /// Two claims collide when port and protocol are equal and the addresses meet.
    pub(crate) fn collides(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address.is_empty() || other.address.is_empty() || self.address == other.address)
    }
}

/// Everything a pod takes from the node it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Demand {
    /// Sorted by lane, without zeros, always with one of [`PODS`].
    pub(crate) amounts: Vec<(Lane, i64)>,
    /// CPU and memory as they count in scores, where a missing request is not nothing.
    pub(crate) weight: [i64; 2],
    /// Sorted, without duplicates.
    pub(crate) ports: Vec<HostPort>,
}

impl Demand {
    /// The demand of a pod: the larger of what its init containers need one after the other and what
    /// its containers need together, sidecars counted in both, plus the overhead of its sandbox
    /// (KEP-753; `resource.PodRequests` in k8s.io/component-helpers).
    pub(crate) fn of(spec: &PodSpec, lanes: &mut Lanes) -> Self {
        let mut amounts = effective(spec, |container| requests(container, lanes));
        let mut weight = effective(spec, |container| {
            let mut own = requests(container, lanes);
            own.entry(CPU).or_insert(UNNAMED_CPU);
            own.entry(MEMORY).or_insert(UNNAMED_MEMORY);
            own
        });
        // Requests of the pod as a whole stand in the place of the sum (KEP-2837).
        if let Some(whole) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
            for (lane, amount) in lanes.read(whole, UNREADABLE) {
                amounts.insert(lane, amount);
                weight.insert(lane, amount);
            }
        }
        if let Some(overhead) = &spec.overhead {
            let overhead = lanes.read(overhead, UNREADABLE);
            add(&mut amounts, &overhead);
            add(&mut weight, &overhead);
        }
        amounts.insert(PODS, 1);
        Self {
            amounts: amounts.into_iter().filter(|&(_, amount)| amount > 0).collect(),
            weight: [CPU, MEMORY].map(|lane| weight.get(&lane).copied().unwrap_or(0)),
            ports: host_ports(spec),
        }
    }
}

fn requests(container: &Container, lanes: &mut Lanes) -> Amounts {
    container
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.as_ref())
        .map(|requests| lanes.read(requests, UNREADABLE))
        .unwrap_or_default()
}

fn effective(spec: &PodSpec, mut requests: impl FnMut(&Container) -> Amounts) -> Amounts {
    let mut running = Amounts::new();
    for container in &spec.containers {
        add(&mut running, &requests(container));
    }
    let mut sidecars = Amounts::new();
    let mut starting = Amounts::new();
    for container in spec.init_containers.iter().flatten() {
        let own = requests(container);
        let mut now = sidecars.clone();
        add(&mut now, &own);
        if is_sidecar(container) {
            add(&mut running, &own);
            sidecars = now.clone();
        }
        raise(&mut starting, &now);
    }
    raise(&mut running, &starting);
    running
}

/// An init container that keeps running beside the containers that come after it.
fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (&lane, &amount) in more {
        let entry = sum.entry(lane).or_insert(0);
        *entry = entry.saturating_add(amount).min(UNREADABLE);
    }
}

fn raise(maximum: &mut Amounts, other: &Amounts) {
    for (&lane, &amount) in other {
        let entry = maximum.entry(lane).or_insert(0);
        *entry = (*entry).max(amount);
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars = spec.init_containers.iter().flatten().filter(|container| is_sidecar(container));
    let mut ports: Vec<HostPort> = spec
        .containers
        .iter()
        .chain(sidecars)
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let address = port.host_ip.clone().unwrap_or_default();
            Some(HostPort {
                port: port.host_port.filter(|&port| port > 0)?,
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_string()),
                address: if address == "0.0.0.0" || address == "::" { String::new() } else { address },
            })
        })
        .collect();
    ports.sort();
    ports.dedup();
    ports
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn demand(spec: Value) -> (Demand, Lanes) {
        let mut lanes = Lanes::new();
        let spec: PodSpec = serde_json::from_value(spec).expect("a pod spec");
        (Demand::of(&spec, &mut lanes), lanes)
    }

    fn container(cpu: &str) -> Value {
        json!({"name": "c", "resources": {"requests": {"cpu": cpu}}})
    }

    fn sidecar(cpu: &str) -> Value {
        json!({"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}})
    }

    #[test]
    fn cpu_of_a_pod() {
        let rows = [
            ("nothing", json!({"containers": [{"name": "c"}]}), 0),
            ("sum", json!({"containers": [container("1"), container("250m")]}), 1250),
            (
                "a large init container",
                json!({"containers": [container("1")], "initContainers": [container("3"), container("2")]}),
                3000,
            ),
            (
                "a sidecar runs beside the containers",
                json!({"containers": [container("1")], "initContainers": [sidecar("500m")]}),
                1500,
            ),
            (
                "an init container after a sidecar runs beside it",
                json!({"containers": [container("1")], "initContainers": [sidecar("1"), container("4")]}),
                5000,
            ),
            (
                "an init container before a sidecar does not",
                json!({"containers": [container("1")], "initContainers": [container("4"), sidecar("1")]}),
                4000,
            ),
            ("overhead", json!({"containers": [container("1")], "overhead": {"cpu": "100m"}}), 1100),
            (
                "the pod as a whole",
                json!({"containers": [container("1")], "resources": {"requests": {"cpu": "2"}}}),
                2000,
            ),
            ("rounded up", json!({"containers": [container("0.0001")]}), 1),
            ("unreadable", json!({"containers": [container("much")]}), UNREADABLE),
        ];
        for (name, spec, expected) in rows {
            let (demand, _) = demand(spec);
            let cpu = demand.amounts.iter().find(|(lane, _)| *lane == CPU).map_or(0, |(_, amount)| *amount);
            assert_eq!(cpu, expected, "{name}");
            assert!(demand.amounts.contains(&(PODS, 1)), "{name}");
        }
    }

    #[test]
    fn missing_requests_weigh_in_scores_only() {
        let (demand, _) = demand(json!({"containers": [{"name": "a"}, container("1")]}));
        assert_eq!(demand.weight, [1100, 2 * UNNAMED_MEMORY]);
        assert_eq!(demand.amounts, [(CPU, 1000), (PODS, 1)]);
    }

    #[test]
    fn extended_resources_get_lanes_of_their_own() {
        let (demand, lanes) = demand(json!({"containers": [
            {"name": "c", "resources": {"requests": {"example.com/gpu": "2", "memory": "1Ki"}}},
        ]}));
        let named: Vec<(&str, i64)> =
            demand.amounts.iter().map(|&(lane, amount)| (lanes.name(lane), amount)).collect();
        assert_eq!(named, [("memory", 1024), ("pods", 1), ("example.com/gpu", 2)]);
    }

    #[test]
    fn ports_collide_where_their_addresses_meet() {
        let port = |port, protocol: &str, address: &str| HostPort {
            port,
            protocol: protocol.to_string(),
            address: address.to_string(),
        };
        let rows = [
            (port(80, "TCP", ""), port(80, "TCP", ""), true),
            (port(80, "TCP", ""), port(80, "UDP", ""), false),
            (port(80, "TCP", ""), port(81, "TCP", ""), false),
            (port(80, "TCP", "10.0.0.1"), port(80, "TCP", ""), true),
            (port(80, "TCP", "10.0.0.1"), port(80, "TCP", "10.0.0.2"), false),
        ];
        for (one, other, expected) in rows {
            assert_eq!(one.collides(&other), expected, "{one:?} {other:?}");
            assert_eq!(other.collides(&one), expected, "{other:?} {one:?}");
        }
    }

    #[test]
    fn only_ports_of_the_node_count() {
        let (demand, _) = demand(json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80}, {"containerPort": 81, "hostPort": 81, "hostIP": "0.0.0.0"},
        ]}]}));
        let expected = HostPort { port: 81, protocol: "TCP".to_string(), address: String::new() };
        assert_eq!(demand.ports, [expected]);
    }
}
