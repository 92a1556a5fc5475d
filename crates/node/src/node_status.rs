//! The Node object and its lease: what this machine is, and that it lives.
//!
//! The lease is renewed every ten seconds (the server keeps such writes in memory); the Node's status is written only
//! when it changes, and every five minutes so that its heartbeat times do not look dead.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{
    DaemonEndpoint, Node, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::json;

use crate::config::NodeConfig;
use crate::context::Context;
use crate::error::{NodeError, chain, is_conflict, is_not_found};
use crate::time::{self, micro_time, now};

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// Upstream's numbers: 40 s of life, renewed after a quarter of it.
const LEASE_SECONDS: i32 = 40;
const RENEW: Duration = Duration::from_secs(10);
/// Status without a change is written this often.
const REPORT: i64 = 300 * time::SECOND;
/// The server of the same process may be some milliseconds from being ready.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LONGEST: Duration = Duration::from_secs(5);
/// The kubelet's eviction thresholds: less than this and the node is under pressure.
const MEMORY_LOW: u64 = 100 << 20;
/// Share of the disk that has to be free, in hundredths. A tenth of a large disk is more than a node will ever need, so
/// there is also an amount that is always enough.
const DISK_LOW: u64 = 10;
const DISK_ENOUGH: u64 = 4 << 30;

/// What does not change while the node runs.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    /// Bytes.
    pub(crate) memory: i64,
    pub(crate) capacity: BTreeMap<String, Quantity>,
    /// Nothing is held back for the system yet: the same as the capacity.
    pub(crate) allocatable: BTreeMap<String, Quantity>,
    pub(crate) info: NodeSystemInfo,
}

impl Machine {
    /// Looks at the machine.
    pub(crate) fn read(config: &NodeConfig) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory_kib = meminfo_kib(&meminfo, "MemTotal").unwrap_or(0);
        let (disk, _) = disk_bytes(&config.data_dir).unwrap_or((0, 0));
        let capacity: BTreeMap<String, Quantity> = [
            ("cpu", cores.to_string()),
            ("memory", format!("{memory_kib}Ki")),
            ("ephemeral-storage", format!("{}Ki", disk / 1024)),
            ("pods", config.max_pods.to_string()),
        ]
        .map(|(name, amount)| (name.to_string(), Quantity(amount)))
        .into();
        Self {
            cores,
            memory: i64::try_from(memory_kib.saturating_mul(1024)).unwrap_or(i64::MAX),
            allocatable: capacity.clone(),
            capacity,
            info: system_info(config),
        }
    }
}

fn system_info(config: &NodeConfig) -> NodeSystemInfo {
    let line = |path: &str| std::fs::read_to_string(path).unwrap_or_default().trim().to_string();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let pretty = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    let uname = rustix::system::uname();
    NodeSystemInfo {
        architecture: architecture().to_string(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: format!("sampan://{}", env!("CARGO_PKG_VERSION")),
        kernel_version: uname.release().to_string_lossy().into_owned(),
        kube_proxy_version: String::new(),
        kubelet_version: config.version.clone(),
        machine_id: line("/etc/machine-id"),
        operating_system: "linux".to_string(),
        os_image: pretty.unwrap_or("Linux").trim_matches('"').to_string(),
        swap: None,
        system_uuid: line("/sys/class/dmi/id/product_uuid"),
    }
}

/// Go's name of the architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn meminfo_kib(text: &str, field: &str) -> Option<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    rest.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Size and free bytes of the file system a path is on.
fn disk_bytes(path: &Path) -> Option<(u64, u64)> {
    let facts = rustix::fs::statvfs(path).ok()?;
    Some((facts.f_blocks.saturating_mul(facts.f_frsize), facts.f_bavail.saturating_mul(facts.f_frsize)))
}

/// Whether something is short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Pressure {
    memory: bool,
    disk: bool,
}

fn is_disk_low(size: u64, free: u64) -> bool {
    size > 0 && free < DISK_ENOUGH.min(size / 100 * DISK_LOW)
}

fn pressure(config: &NodeConfig) -> Pressure {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = meminfo_kib(&meminfo, "MemAvailable").map(|kib| kib.saturating_mul(1024));
    let disk = disk_bytes(&config.data_dir);
    Pressure {
        memory: available.is_some_and(|bytes| bytes < MEMORY_LOW),
        disk: disk.is_some_and(|(size, free)| is_disk_low(size, free)),
    }
}

/// Registers the node, then keeps lease and status alive as long as the node runs.
pub(crate) async fn run(context: Arc<Context>) {
    let keeper = Keeper { context };
    let mut pause = RETRY_FIRST;
    let mut node = loop {
        match keeper.register().await {
            Ok(node) => break node,
            Err(error) => {
                tracing::debug!(error = chain(&error), "cannot register the node yet");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
            }
        }
    };
    keeper.context.events.node("Starting", "Starting kubelet.");
    let mut written_at = now();
    let mut pause = RETRY_FIRST;
    loop {
        match keeper.renew_lease(&node).await {
            Ok(()) => pause = RETRY_FIRST,
            Err(error) => {
                tracing::debug!(error = chain(&error), "cannot renew the node's lease");
                pause = (pause * 2).min(RENEW);
                tokio::time::sleep(pause).await;
                continue;
            }
        }
        tokio::time::sleep(RENEW).await;
        let now = now();
        match keeper.report_again(now, now - written_at >= REPORT).await {
            Ok(Some(new)) => {
                node = new;
                written_at = now;
            }
            Ok(None) => {}
            Err(NodeError::Api { source, .. }) if is_not_found(&source) => {
                if let Ok(new) = keeper.register().await {
                    node = new;
                }
            }
            Err(error) => tracing::warn!(error = chain(&error), "failed to write the node's status"),
        }
    }
}

struct Keeper {
    context: Arc<Context>,
}

impl Keeper {
    fn nodes(&self) -> Api<Node> {
        Api::all(self.context.client.clone())
    }

    fn labels(&self) -> BTreeMap<String, String> {
        let name = self.context.config.name.clone();
        let architecture = architecture().to_string();
        [
            ("kubernetes.io/hostname", name),
            ("kubernetes.io/os", "linux".to_string()),
            ("kubernetes.io/arch", architecture.clone()),
            ("beta.kubernetes.io/os", "linux".to_string()),
            ("beta.kubernetes.io/arch", architecture),
        ]
        .map(|(label, value)| (label.to_string(), value))
        .into()
    }

    /// Makes the Node object ready, whether it exists or not.
    async fn register(&self) -> Result<Node, NodeError> {
        let name = &self.context.config.name;
        let now = now();
        let fresh = Node {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                labels: Some(self.labels()),
                ..ObjectMeta::default()
            },
            spec: Some(Default::default()),
            status: Some(self.status(&[], now)),
        };
        let node = match self.nodes().create(&PostParams::default(), &fresh).await {
            Ok(node) => node,
            Err(error) if is_conflict(&error) => {
                let labels = json!({ "metadata": { "labels": self.labels() } });
                let patched = self.nodes().patch(name, &PatchParams::default(), &Patch::Merge(labels)).await;
                patched.map_err(NodeError::api(format!("label node {name}")))?
            }
            Err(error) => return Err(NodeError::api(format!("create node {name}"))(error)),
        };
        // A server may drop the status of a new object, and an old object has an old one.
        Ok(self.report(&node, now, false).await?.unwrap_or(node))
    }

    /// [`Keeper::report`] against what the server has now: a control loop may have written that it hears nothing from this
    /// node, and only the node can say otherwise.
    async fn report_again(&self, now: i64, always: bool) -> Result<Option<Node>, NodeError> {
        let name = &self.context.config.name;
        let node = self.nodes().get(name).await.map_err(NodeError::api(format!("read node {name}")))?;
        self.report(&node, now, always).await
    }

    /// Writes the status if it differs from the object's, or when `always`.
    async fn report(&self, node: &Node, now: i64, always: bool) -> Result<Option<Node>, NodeError> {
        let name = &self.context.config.name;
        let before = node.status.clone().unwrap_or_default();
        let desired = self.status(before.conditions.as_deref().unwrap_or_default(), now);
        if !always && is_same(&before, &desired) {
            return Ok(None);
        }
        let patch = json!({ "status": desired });
        let written =
            self.nodes().patch_status(name, &PatchParams::default(), &Patch::Strategic(patch)).await;
        written.map(Some).map_err(NodeError::api(format!("write the status of node {name}")))
    }

    fn status(&self, before: &[NodeCondition], now: i64) -> NodeStatus {
        let config = &self.context.config;
        let machine = &self.context.machine;
        let address = |type_: &str, address: String| NodeAddress { type_: type_.to_string(), address };
        NodeStatus {
            addresses: Some(vec![
                address("InternalIP", config.address.to_string()),
                address("Hostname", config.name.clone()),
            ]),
            capacity: Some(machine.capacity.clone()),
            allocatable: Some(machine.allocatable.clone()),
            conditions: Some(conditions(pressure(config), before, now)),
            daemon_endpoints: Some(NodeDaemonEndpoints {
                kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.port) }),
            }),
            node_info: Some(machine.info.clone()),
            ..NodeStatus::default()
        }
    }

    async fn renew_lease(&self, node: &Node) -> Result<(), NodeError> {
        let name = &self.context.config.name;
        let leases: Api<Lease> = Api::namespaced(self.context.client.clone(), LEASE_NAMESPACE);
        let renewal = json!({ "spec": { "renewTime": micro_time(now()), "holderIdentity": name } });
        match leases.patch(name, &PatchParams::default(), &Patch::Merge(renewal)).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => {
                let lease = self.new_lease(node);
                let made = leases.create(&PostParams::default(), &lease).await;
                made.map(drop).map_err(NodeError::api(format!("create lease {LEASE_NAMESPACE}/{name}")))
            }
            Err(error) => Err(NodeError::api(format!("renew lease {LEASE_NAMESPACE}/{name}"))(error)),
        }
    }

    fn new_lease(&self, node: &Node) -> Lease {
        let name = self.context.config.name.clone();
        let owner = OwnerReference {
            api_version: "v1".to_string(),
            kind: "Node".to_string(),
            name: name.clone(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            ..OwnerReference::default()
        };
        Lease {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(LEASE_NAMESPACE.to_string()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(name),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(micro_time(now())),
                ..LeaseSpec::default()
            }),
        }
    }
}

/// The node's conditions, with the time of their last change.
fn conditions(pressure: Pressure, before: &[NodeCondition], now: i64) -> Vec<NodeCondition> {
    let row = |type_: &str, holds: bool, reason: &str, message: &str| {
        let status = if holds { "True" } else { "False" };
        let same = before.iter().find(|known| known.type_ == type_ && known.status == status);
        NodeCondition {
            type_: type_.to_string(),
            status: status.to_string(),
            reason: Some(reason.to_string()),
            message: Some(message.to_string()),
            last_heartbeat_time: Some(time::time(now)),
            last_transition_time: same
                .and_then(|known| known.last_transition_time.clone())
                .or_else(|| Some(time::time(now))),
        }
    };
    let memory = match pressure.memory {
        true => row(
            "MemoryPressure",
            true,
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ),
        false => row(
            "MemoryPressure",
            false,
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ),
    };
    let disk = match pressure.disk {
        true => row("DiskPressure", true, "KubeletHasDiskPressure", "kubelet has disk pressure"),
        false => row("DiskPressure", false, "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
    };
    vec![
        memory,
        disk,
        row("PIDPressure", false, "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        row("Ready", true, "KubeletReady", "kubelet is posting ready status"),
    ]
}

/// Equal but for heartbeat times, and for what others write into the status.
fn is_same(before: &NodeStatus, desired: &NodeStatus) -> bool {
    let verdicts = |status: &NodeStatus| -> Vec<(String, String, Option<String>)> {
        let own = |type_: &str| ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].contains(&type_);
        let conditions = status.conditions.iter().flatten().filter(|condition| own(&condition.type_));
        let mut verdicts: Vec<_> = conditions
            .map(|condition| (condition.type_.clone(), condition.status.clone(), condition.reason.clone()))
            .collect();
        verdicts.sort();
        verdicts
    };
    before.addresses == desired.addresses
        && before.capacity == desired.capacity
        && before.allocatable == desired.allocatable
        && before.daemon_endpoints == desired.daemon_endpoints
        && before.node_info == desired.node_info
        && verdicts(before) == verdicts(desired)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_disk_needs_no_tenth_free() {
        let gib = 1 << 30;
        for (size, free, low) in [
            (10 * gib, 2 * gib, false),
            (10 * gib, gib / 2, true),
            (1000 * gib, 5 * gib, false),
            (1000 * gib, 3 * gib, true),
            (0, 0, false),
        ] {
            assert_eq!(is_disk_low(size, free), low, "{free} of {size}");
        }
    }

    #[test]
    fn heartbeats_are_no_change() {
        let status = |pressure: Pressure, now: i64, before: &[NodeCondition]| NodeStatus {
            conditions: Some(conditions(pressure, before, now)),
            ..NodeStatus::default()
        };
        let calm = Pressure::default();
        let first = status(calm, time::SECOND, &[]);
        let later = status(calm, 100 * time::SECOND, first.conditions.as_deref().unwrap_or_default());
        assert!(is_same(&first, &later));
        let ready = |status: &NodeStatus| {
            let conditions = status.conditions.clone().unwrap_or_default();
            conditions
                .into_iter()
                .find(|condition| condition.type_ == "Ready")
                .and_then(|ready| ready.last_transition_time)
        };
        assert_eq!(ready(&first), ready(&later));
        assert!(!is_same(&first, &status(Pressure { memory: true, disk: false }, time::SECOND, &[])));
    }

    #[test]
    fn meminfo() {
        let text = "MemTotal:       24615500 kB\nMemFree:  1 kB\n";
        assert_eq!(meminfo_kib(text, "MemTotal"), Some(24_615_500));
        assert_eq!(meminfo_kib(text, "MemAvailable"), None);
    }
}
