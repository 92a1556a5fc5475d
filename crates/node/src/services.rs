//! The node's part of services: from Service and EndpointSlice objects to the routes the network applies.
//!
//! The translation is pure. Applying is coalesced: the first change goes at once, changes that follow soon are gathered,
//! because a transaction in the kernel has a fixed price.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use sampan_network::{Protocol, ServiceRoute};

use crate::context::Context;
use crate::error::chain;

/// Shortest time between two transactions.
const GATHER: Duration = Duration::from_millis(20);
/// Pause after a refused transaction.
const RETRY: Duration = Duration::from_secs(1);

/// Label that names the service of an endpoint slice.
pub(crate) const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Applies services as long as the node runs.
pub(crate) async fn run(context: Arc<Context>) {
    // A half-known world would cut off services that exist.
    context.services.synced().await;
    context.endpoint_slices.synced().await;
    let mut services = context.services.subscribe();
    let mut slices = context.endpoint_slices.subscribe();
    loop {
        while services.try_recv().is_some() {}
        while slices.try_recv().is_some() {}
        let desired = routes(&context.services.list(), &context.endpoint_slices.list(), &context.config.name);
        let pause = match context.network.apply_services(desired).await {
            Ok(()) => GATHER,
            Err(error) => {
                tracing::warn!(error = chain(&error), "failed to apply services");
                RETRY
            }
        };
        let refused = pause == RETRY;
        tokio::time::sleep(pause).await;
        if refused {
            continue;
        }
        tokio::select! {
            change = services.recv() => if change.is_none() { return },
            change = slices.recv() => if change.is_none() { return },
        }
    }
}

/// Every route this node has to serve, in a stable order.
pub(crate) fn routes(
    services: &[Arc<Service>],
    slices: &[Arc<EndpointSlice>],
    node: &str,
) -> Vec<ServiceRoute> {
    let mut by_service: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in slices {
        if let Some(name) = service_of(slice) {
            let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
            by_service.entry((namespace, name)).or_default().push(slice);
        }
    }
    let mut routes = Vec::new();
    for service in services {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let slices = by_service.get(&(namespace, name)).map(Vec::as_slice).unwrap_or_default();
        routes.extend(routes_of(service, slices, &format!("{namespace}/{name}"), node));
    }
    routes
}

/// The service an endpoint slice belongs to.
pub(crate) fn service_of(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get(SERVICE_LABEL).map(String::as_str)
}

fn routes_of(service: &Service, slices: &[&EndpointSlice], key: &str, node: &str) -> Vec<ServiceRoute> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let cluster_ip = spec.cluster_ip.as_deref().and_then(|ip| ip.parse::<Ipv4Addr>().ok());
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status
        .iter()
        .flat_map(|status| status.ingress.iter().flatten())
        .filter_map(|entry| entry.ip.as_ref());
    let external: Vec<Ipv4Addr> =
        spec.external_ips.iter().flatten().chain(ingress).filter_map(|ip| ip.parse().ok()).collect();
    let affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
        config
            .and_then(|config| config.timeout_seconds)
            .and_then(|seconds| u32::try_from(seconds).ok())
            .unwrap_or(10_800)
    });
    let local_only = spec.internal_traffic_policy.as_deref() == Some("Local");
    let mut routes = Vec::new();
    for port in spec.ports.iter().flatten() {
        let (Some(protocol), Some(number)) = (protocol(port.protocol.as_deref()), port_number(port.port))
        else {
            continue;
        };
        let node_port = port.node_port.and_then(port_number);
        if cluster_ip.is_none() && node_port.is_none() && external.is_empty() {
            continue;
        }
        let endpoints = endpoints(port, protocol, slices, local_only.then_some(node));
        let key = format!("{key}:{}", port.name.clone().unwrap_or_else(|| format!("{number}/{protocol:?}")));
        let route = ServiceRoute {
            key,
            protocol,
            cluster_ip,
            port: number,
            node_port,
            endpoints,
            session_affinity_seconds: affinity,
        };
        for ip in &external {
            let key = format!("{}@{ip}", route.key);
            routes.push(ServiceRoute { key, cluster_ip: Some(*ip), node_port: None, ..route.clone() });
        }
        if cluster_ip.is_some() || node_port.is_some() {
            routes.push(route);
        }
    }
    routes
}

/// TCP and UDP; SCTP is not served.
pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

/// A port of the API as a port.
pub(crate) fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port > 0)
}

/// Where packets to a port may go: ready endpoints; when there are none, those that still serve while they end.
fn endpoints(
    port: &ServicePort,
    protocol_of_port: Protocol,
    slices: &[&EndpointSlice],
    only_node: Option<&str>,
) -> Vec<(Ipv4Addr, u16)> {
    let mut ready = Vec::new();
    let mut ending = Vec::new();
    for slice in slices.iter().filter(|slice| slice.address_type == "IPv4") {
        let wanted = port.name.as_deref().unwrap_or_default();
        let target = slice.ports.iter().flatten().find(|target| {
            target.name.as_deref().unwrap_or_default() == wanted
                && protocol(target.protocol.as_deref()) == Some(protocol_of_port)
        });
        let Some(number) = target.and_then(|target| target.port).and_then(port_number) else { continue };
        for endpoint in slice.endpoints.iter().flatten() {
            if only_node.is_some() && endpoint.node_name.as_deref() != only_node {
                continue;
            }
            let list = match readiness(endpoint) {
                Readiness::Ready => &mut ready,
                Readiness::Ending => &mut ending,
                Readiness::No => continue,
            };
            list.extend(
                endpoint.addresses.iter().filter_map(|ip| Some((ip.parse::<Ipv4Addr>().ok()?, number))),
            );
        }
    }
    let mut chosen = if ready.is_empty() { ending } else { ready };
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

/// How far an endpoint may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    Ready,
    /// Terminating, but still serving.
    Ending,
    No,
}

/// By the endpoint's conditions; `ready` unset means ready (`discovery.k8s.io/v1`).
pub(crate) fn readiness(endpoint: &Endpoint) -> Readiness {
    let Some(conditions) = &endpoint.conditions else { return Readiness::Ready };
    if conditions.ready != Some(false) {
        Readiness::Ready
    } else if conditions.serving == Some(true) && conditions.terminating == Some(true) {
        Readiness::Ending
    } else {
        Readiness::No
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ServiceSpec;
    use k8s_openapi::api::discovery::v1::{EndpointConditions, EndpointPort};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    fn service(spec: ServiceSpec) -> Arc<Service> {
        let metadata =
            ObjectMeta { namespace: Some("ns".into()), name: Some("web".into()), ..ObjectMeta::default() };
        Arc::new(Service { metadata, spec: Some(spec), status: None })
    }

    fn port(name: &str, number: i32) -> ServicePort {
        ServicePort { name: Some(name.into()), port: number, ..ServicePort::default() }
    }

    fn endpoint(ip: &str, ready: Option<bool>, serving: bool, node: &str) -> Endpoint {
        Endpoint {
            addresses: vec![ip.into()],
            conditions: Some(EndpointConditions {
                ready,
                serving: Some(serving),
                terminating: Some(ready == Some(false)),
            }),
            node_name: Some(node.into()),
            ..Endpoint::default()
        }
    }

    fn slice(endpoints: Vec<Endpoint>) -> Arc<EndpointSlice> {
        let target = EndpointPort {
            name: Some("http".into()),
            port: Some(8080),
            protocol: Some("TCP".into()),
            ..EndpointPort::default()
        };
        Arc::new(EndpointSlice {
            address_type: "IPv4".into(),
            endpoints: Some(endpoints),
            metadata: ObjectMeta {
                namespace: Some("ns".into()),
                labels: Some([(SERVICE_LABEL.to_string(), "web".to_string())].into()),
                ..ObjectMeta::default()
            },
            ports: Some(vec![target]),
        })
    }

    fn spec(cluster_ip: &str) -> ServiceSpec {
        ServiceSpec {
            cluster_ip: Some(cluster_ip.into()),
            ports: Some(vec![port("http", 80)]),
            ..ServiceSpec::default()
        }
    }

    /// Routes as text: `key ip:port/node-port -> endpoints`.
    fn told(spec: ServiceSpec, endpoints: Vec<Endpoint>) -> Vec<String> {
        routes(&[service(spec)], &[slice(endpoints)], "me")
            .into_iter()
            .map(|route| {
                let ip = route.cluster_ip.map_or("-".to_string(), |ip| ip.to_string());
                let node_port = route.node_port.map_or("-".to_string(), |port| port.to_string());
                let ends: Vec<String> =
                    route.endpoints.iter().map(|(ip, port)| format!("{ip}:{port}")).collect();
                format!("{} {ip}:{}/{node_port} -> {}", route.key, route.port, ends.join(","))
            })
            .collect()
    }

    #[test]
    fn translation() {
        let up = |ip: &str| endpoint(ip, Some(true), true, "me");
        let down = |ip: &str| endpoint(ip, Some(false), false, "me");
        let ending = |ip: &str| endpoint(ip, Some(false), true, "me");
        let node_port = ServiceSpec {
            ports: Some(vec![ServicePort { node_port: Some(30_080), ..port("http", 80) }]),
            ..spec("10.0.0.9")
        };
        let rows: Vec<(ServiceSpec, Vec<Endpoint>, Vec<&str>)> = vec![
            (
                spec("10.0.0.9"),
                vec![up("10.1.0.3"), up("10.1.0.2")],
                vec!["ns/web:http 10.0.0.9:80/- -> 10.1.0.2:8080,10.1.0.3:8080"],
            ),
            (
                spec("10.0.0.9"),
                vec![up("10.1.0.2"), down("10.1.0.3"), ending("10.1.0.4")],
                vec!["ns/web:http 10.0.0.9:80/- -> 10.1.0.2:8080"],
            ),
            (
                spec("10.0.0.9"),
                vec![ending("10.1.0.4"), down("10.1.0.5")],
                vec!["ns/web:http 10.0.0.9:80/- -> 10.1.0.4:8080"],
            ),
            (spec("10.0.0.9"), vec![], vec!["ns/web:http 10.0.0.9:80/- -> "]),
            (spec("None"), vec![up("10.1.0.2")], vec![]),
            (node_port, vec![up("10.1.0.2")], vec!["ns/web:http 10.0.0.9:80/30080 -> 10.1.0.2:8080"]),
            (
                ServiceSpec { internal_traffic_policy: Some("Local".into()), ..spec("10.0.0.9") },
                vec![up("10.1.0.2"), endpoint("10.1.0.3", Some(true), true, "other")],
                vec!["ns/web:http 10.0.0.9:80/- -> 10.1.0.2:8080"],
            ),
            (
                ServiceSpec { external_ips: Some(vec!["192.0.2.7".into()]), ..spec("10.0.0.9") },
                vec![up("10.1.0.2")],
                vec![
                    "ns/web:http@192.0.2.7 192.0.2.7:80/- -> 10.1.0.2:8080",
                    "ns/web:http 10.0.0.9:80/- -> 10.1.0.2:8080",
                ],
            ),
        ];
        for (spec, endpoints, expected) in rows {
            assert_eq!(told(spec, endpoints), expected);
        }
    }
}
