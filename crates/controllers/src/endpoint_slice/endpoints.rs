//! From a service and its pods to endpoints: which addresses, which ports, in which condition.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::common::pod::{is_deleting, is_ready, is_terminal, node_name};

/// What tells the slices of a service apart: the kind of address, and the ports, which differ between
/// pods that give the same port name to different numbers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SliceKind {
    pub(super) address_type: String,
    pub(super) ports: Vec<Port>,
}

/// A resolved port, in a form that can be sorted and compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Port {
    pub(super) name: String,
    pub(super) protocol: String,
    pub(super) number: i32,
    pub(super) app_protocol: Option<String>,
}

impl From<&Port> for EndpointPort {
    fn from(port: &Port) -> Self {
        Self {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.clone()),
            port: Some(port.number),
            app_protocol: port.app_protocol.clone(),
        }
    }
}

impl From<&EndpointPort> for Port {
    fn from(port: &EndpointPort) -> Self {
        Self {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            number: port.port.unwrap_or(0),
            app_protocol: port.app_protocol.clone(),
        }
    }
}

/// Whether this controller is in charge of a service: it has a selector and is not a mere name.
pub(super) fn has_endpoints(service: &Service) -> bool {
    let Some(spec) = &service.spec else { return false };
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.is_empty());
    selects && spec.type_.as_deref() != Some("ExternalName")
}

/// Whether a service selects a pod by its labels.
pub(super) fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    let labels = pod.metadata.labels.as_ref();
    selector.filter(|selector| !selector.is_empty()).is_some_and(|selector| {
        selector.iter().all(|(key, value)| labels.is_some_and(|labels| labels.get(key) == Some(value)))
    })
}

/// Whether two versions of a pod make the same endpoint of every service.
pub(super) fn is_same_endpoint(old: &Pod, new: &Pod) -> bool {
    let facts = |pod: &Pod| {
        let status = pod.status.as_ref();
        (
            (pod.metadata.uid.clone(), pod.metadata.labels.clone()),
            (is_ready(pod), is_deleting(pod), is_terminal(pod)),
            status.and_then(|status| status.pod_ip.clone()),
            status.and_then(|status| status.pod_ips.clone()),
            node_name(pod).map(str::to_string),
        )
    };
    facts(old) == facts(new)
}

/// The families of addresses a service uses; IPv4 unless it says otherwise.
pub(super) fn address_types(service: &Service) -> Vec<String> {
    let families = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if families.is_empty() { vec!["IPv4".into()] } else { families }
}

/// The endpoints a service should have, by the slices they belong to.
pub(super) fn desired(service: &Service, pods: &[Arc<Pod>]) -> BTreeMap<SliceKind, Vec<Endpoint>> {
    let mut desired: BTreeMap<SliceKind, Vec<Endpoint>> = BTreeMap::new();
    let Some(spec) = &service.spec else { return desired };
    for pod in pods.iter().filter(|pod| selects(service, pod) && !is_terminal(pod)) {
        let ports = ports(spec, pod);
        for address_type in address_types(service) {
            let addresses = addresses(pod, &address_type);
            if !addresses.is_empty() {
                let kind = SliceKind { address_type, ports: ports.clone() };
                desired.entry(kind).or_default().push(endpoint(service, pod, addresses));
            }
        }
    }
    desired
}

fn addresses(pod: &Pod, address_type: &str) -> Vec<String> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip).chain(&status.pod_ip);
    let of_type = |text: &&String| match text.parse() {
        Ok(IpAddr::V4(_)) => address_type == "IPv4",
        Ok(IpAddr::V6(_)) => address_type == "IPv6",
        Err(_) => false,
    };
    // One address per family: the first is the pod's own.
    all.filter(of_type).take(1).cloned().collect()
}

fn endpoint(service: &Service, pod: &Pod, addresses: Vec<String>) -> Endpoint {
    let publish = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses).unwrap_or(false);
    let (serving, terminating) = (is_ready(pod), is_deleting(pod));
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(publish || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: node_name(pod).map(str::to_string),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

/// A pod that asks for a name in the service's domain gets it.
fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.clone().filter(|hostname| !hostname.is_empty())?;
    (spec.subdomain.is_some() && spec.subdomain == service.metadata.name).then_some(hostname)
}

/// The service's ports as this pod has them; a named port the pod does not have is left out.
fn ports(spec: &ServiceSpec, pod: &Pod) -> Vec<Port> {
    let mut ports: Vec<Port> = spec.ports.iter().flatten().filter_map(|port| resolve(port, pod)).collect();
    ports.sort();
    ports
}

fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".into());
    let number = match &port.target_port {
        None | Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => named_port(pod, name, &protocol)?,
    };
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol,
        number,
        app_protocol: port.app_protocol.clone(),
    })
}

/// Looks for a named port in the containers, and in the init containers that run beside them.
fn named_port(pod: &Pod, name: &str, protocol: &str) -> Option<i32> {
    let spec = pod.spec.as_ref()?;
    let beside = |container: &&Container| container.restart_policy.as_deref() == Some("Always");
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten().filter(beside));
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    let found = ports.find(|port| {
        port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == protocol
    });
    found.map(|port| port.container_port)
}
