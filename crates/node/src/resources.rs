//! What requests and limits come to: cgroup numbers, quality-of-service class, cgroup path, out-of-memory score.
//!
//! The formulas are the kubelet's (`pkg/kubelet/cm/helpers_linux.go`, `pkg/kubelet/qos/policy.go`), because people
//! size their pods by them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sampan_runtime::LinuxResources;

/// CFS period in microseconds.
const PERIOD: u64 = 100_000;
/// The kernel refuses a smaller quota than one millisecond.
const MIN_QUOTA: i64 = 1000;
const MIN_SHARES: u64 = 2;
const MAX_SHARES: u64 = 262_144;

/// Quality-of-service class of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    /// As in `status.qosClass`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// Millionth-free reading of a quantity; what cannot be read counts as nothing, for the API has validated it.
pub(crate) fn milli(quantity: &Quantity) -> i64 {
    let parsed = sampan_api::quantity::Quantity::parse(&quantity.0).map(|quantity| quantity.milli());
    i64::try_from(parsed.unwrap_or(0)).unwrap_or(i64::MAX)
}

/// The quantity in whole units, rounded up.
pub(crate) fn value(quantity: &Quantity) -> i64 {
    let parsed = sampan_api::quantity::Quantity::parse(&quantity.0).map(|quantity| quantity.value());
    i64::try_from(parsed.unwrap_or(0)).unwrap_or(i64::MAX)
}

type List = BTreeMap<String, Quantity>;

fn limits(resources: Option<&ResourceRequirements>) -> Option<&List> {
    resources.and_then(|resources| resources.limits.as_ref())
}

/// A limit of a container in thousandths of `resource`.
pub(crate) fn limit_milli(container: &Container, resource: &str) -> Option<i64> {
    limits(container.resources.as_ref())?.get(resource).map(milli).filter(|amount| *amount > 0)
}

/// A request of a container in thousandths; a limit without a request is the request.
pub(crate) fn request_milli(container: &Container, resource: &str) -> Option<i64> {
    let requests = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    match requests.and_then(|requests| requests.get(resource)) {
        Some(quantity) => Some(milli(quantity)),
        None => limit_milli(container, resource),
    }
}

/// Class of a pod: guaranteed when every container limits cpu and memory to what it requests, best effort when none
/// asks for anything.
pub(crate) fn qos(spec: &PodSpec) -> Qos {
    let containers: Vec<&Container> = spec.init_containers.iter().flatten().chain(&spec.containers).collect();
    let asks = |container: &&Container| {
        ["cpu", "memory"].iter().any(|resource| request_milli(container, resource).unwrap_or(0) > 0)
    };
    if !containers.iter().any(asks) {
        return Qos::BestEffort;
    }
    let is_guaranteed = containers.iter().all(|container| {
        ["cpu", "memory"].iter().all(|resource| {
            let limit = limit_milli(container, resource);
            limit.is_some() && limit == request_milli(container, resource)
        })
    });
    if is_guaranteed { Qos::Guaranteed } else { Qos::Burstable }
}

/// Path of the pod's cgroup below the runtime's root.
pub(crate) fn cgroup_parent(qos: Qos, uid: &str) -> String {
    match qos {
        Qos::Guaranteed => format!("kubepods/pod{uid}"),
        Qos::Burstable => format!("kubepods/burstable/pod{uid}"),
        Qos::BestEffort => format!("kubepods/besteffort/pod{uid}"),
    }
}

/// `cpu.shares` of thousandths of a core.
pub(crate) fn shares(milli_cpu: i64) -> u64 {
    let shares = u64::try_from(milli_cpu).unwrap_or(0).saturating_mul(1024) / 1000;
    shares.clamp(MIN_SHARES, MAX_SHARES)
}

/// CFS quota per 100 ms of thousandths of a core; 0 is no limit.
pub(crate) fn quota(milli_cpu: i64) -> i64 {
    if milli_cpu <= 0 {
        return 0;
    }
    (milli_cpu.saturating_mul(PERIOD as i64) / 1000).max(MIN_QUOTA)
}

fn bytes(milli: Option<i64>) -> i64 {
    milli.map_or(0, |milli| milli / 1000 + i64::from(milli % 1000 != 0))
}

/// Limits of one container's cgroup.
pub(crate) fn of_container(spec: &PodSpec, container: &Container, machine_memory: i64) -> LinuxResources {
    LinuxResources {
        cpu_period: PERIOD,
        cpu_quota: quota(limit_milli(container, "cpu").unwrap_or(0)),
        cpu_shares: shares(request_milli(container, "cpu").unwrap_or(0)),
        memory_limit: bytes(limit_milli(container, "memory")),
        pids_limit: 0,
        oom_score_adj: oom_score_adj(spec, container, machine_memory),
    }
}

/// Limits of the whole pod: set only where every container has one, for otherwise some container is unlimited.
pub(crate) fn of_pod(spec: &PodSpec) -> LinuxResources {
    let cpu = pod_sum(spec, |container| limit_milli(container, "cpu"));
    let memory = pod_sum(spec, |container| limit_milli(container, "memory"));
    let requested = pod_sum(spec, |container| Some(request_milli(container, "cpu").unwrap_or(0)));
    LinuxResources {
        cpu_period: PERIOD,
        cpu_quota: quota(cpu.unwrap_or(0)),
        cpu_shares: shares(requested.unwrap_or(0)),
        memory_limit: bytes(memory),
        pids_limit: 0,
        oom_score_adj: 0,
    }
}

/// The larger of the sum over the containers that run together and the largest init container; sidecars (init
/// containers that always restart) run together with the rest. `None` when `amount` is missing anywhere.
fn pod_sum(spec: &PodSpec, amount: impl Fn(&Container) -> Option<i64>) -> Option<i64> {
    let mut together = 0i64;
    for container in &spec.containers {
        together = together.saturating_add(amount(container)?);
    }
    let mut sidecars = 0i64;
    let mut starting = 0i64;
    for container in spec.init_containers.iter().flatten() {
        let amount = amount(container)?;
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars = sidecars.saturating_add(amount);
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars.saturating_add(amount));
        }
    }
    Some(together.saturating_add(sidecars).max(starting))
}

/// The kubelet's order of who is killed first when memory runs out.
fn oom_score_adj(spec: &PodSpec, container: &Container, machine_memory: i64) -> i32 {
    const GUARANTEED: i32 = -997;
    const BEST_EFFORT: i32 = 1000;
    // Pods the cluster cannot live without (system-node-critical and above).
    if spec.priority.is_some_and(|priority| priority >= 2_000_001_000) {
        return GUARANTEED;
    }
    match qos(spec) {
        Qos::Guaranteed => GUARANTEED,
        Qos::BestEffort => BEST_EFFORT,
        Qos::Burstable => {
            let requested = bytes(request_milli(container, "memory"));
            let adjust = 1000 - 1000i128 * i128::from(requested) / i128::from(machine_memory.max(1));
            // Never as safe as a guaranteed pod, never as unsafe as one that asked for nothing.
            i32::try_from(adjust.clamp(3, 999)).unwrap_or(999)
        }
    }
}

/// Value of a `resourceFieldRef` in a container that may not set it: limits default to what the node offers.
pub(crate) fn field(
    container: &Container,
    resource: &str,
    divisor: Option<&Quantity>,
    allocatable: &List,
) -> Result<String, String> {
    let (side, name) =
        resource.split_once('.').ok_or_else(|| format!("unsupported container resource: {resource}"))?;
    let amount = match side {
        "limits" => limit_milli(container, name).or_else(|| allocatable.get(name).map(milli)),
        "requests" => request_milli(container, name),
        _ => return Err(format!("unsupported container resource: {resource}")),
    };
    let divisor = divisor.map(milli).filter(|divisor| *divisor > 0).unwrap_or(1000);
    let amount = amount.unwrap_or(0);
    // Rounded up, as upstream does: half a core is shown as one.
    let rounded = amount / divisor + i64::from(amount % divisor != 0);
    Ok(rounded.to_string())
}

/// [`qos`] of a pod object, or what its status already says.
pub(crate) fn pod_qos(pod: &Pod) -> Qos {
    match pod.status.as_ref().and_then(|status| status.qos_class.as_deref()) {
        Some("Guaranteed") => Qos::Guaranteed,
        Some("Burstable") => Qos::Burstable,
        Some("BestEffort") => Qos::BestEffort,
        _ => pod.spec.as_ref().map_or(Qos::BestEffort, qos),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(pairs: &[(&str, &str)]) -> Option<List> {
        Some(pairs.iter().map(|(name, amount)| (name.to_string(), Quantity(amount.to_string()))).collect())
    }

    fn container(requests: &[(&str, &str)], limits: &[(&str, &str)]) -> Container {
        Container {
            resources: Some(ResourceRequirements {
                claims: None,
                requests: list(requests),
                limits: list(limits),
            }),
            ..Container::default()
        }
    }

    fn pod(containers: Vec<Container>) -> PodSpec {
        PodSpec { containers, ..PodSpec::default() }
    }

    #[test]
    fn classes() {
        let full: &[(&str, &str)] = &[("cpu", "1"), ("memory", "1Gi")];
        let rows = [
            (container(&[], &[]), Qos::BestEffort),
            (container(&[], full), Qos::Guaranteed),
            (container(full, full), Qos::Guaranteed),
            (container(&[("cpu", "1")], &[]), Qos::Burstable),
            (container(&[("cpu", "500m"), ("memory", "1Gi")], full), Qos::Burstable),
        ];
        for (container, class) in rows {
            assert_eq!(qos(&pod(vec![container.clone()])), class, "{container:?}");
        }
    }

    #[test]
    fn cpu_numbers() {
        for (milli, expected) in [(0, 2), (1, 2), (100, 102), (1000, 1024), (1_000_000, 262_144)] {
            assert_eq!(shares(milli), expected);
        }
        for (milli, expected) in [(0, 0), (1, 1000), (100, 10_000), (1500, 150_000)] {
            assert_eq!(quota(milli), expected);
        }
    }

    #[test]
    fn a_pod_is_limited_only_when_every_container_is() {
        let limited = container(&[], &[("memory", "1Gi")]);
        let open = container(&[], &[]);
        assert_eq!(of_pod(&pod(vec![limited.clone(), limited.clone()])).memory_limit, 2 << 30);
        assert_eq!(of_pod(&pod(vec![limited, open])).memory_limit, 0);
    }

    #[test]
    fn oom_scores() {
        let machine = 4 << 30;
        let score = |container: Container| oom_score_adj(&pod(vec![container.clone()]), &container, machine);
        assert_eq!(score(container(&[], &[])), 1000);
        assert_eq!(score(container(&[], &[("cpu", "1"), ("memory", "1Gi")])), -997);
        assert_eq!(score(container(&[("memory", "1Gi")], &[])), 750);
        assert_eq!(score(container(&[("memory", "1")], &[])), 999);
        assert_eq!(score(container(&[("memory", "8Gi")], &[])), 3);
    }

    #[test]
    fn fields_are_rounded_up() {
        let container = container(&[("cpu", "1500m")], &[]);
        let node = list(&[("cpu", "4"), ("memory", "1Gi")]).unwrap_or_default();
        let rows = [
            ("requests.cpu", None, "2"),
            ("requests.cpu", Some("1m"), "1500"),
            ("limits.cpu", None, "4"),
            ("limits.memory", Some("1Mi"), "1024"),
            ("requests.memory", None, "0"),
        ];
        for (resource, divisor, expected) in rows {
            let divisor = divisor.map(|text: &str| Quantity(text.to_string()));
            assert_eq!(
                field(&container, resource, divisor.as_ref(), &node).as_deref(),
                Ok(expected),
                "{resource}"
            );
        }
    }
}
