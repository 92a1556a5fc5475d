//! The cluster's names for the DNS server, answered from informers.
//!
//! A query must cost a look-up and not a walk; what the informers do not index (slices by service, services by address)
//! is indexed here by one task that follows them.

use std::collections::{BTreeMap, HashMap};
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use sampan_client::{Change, Changes, Informer, Informers};
use sampan_network::{
    ClusterNames, EndpointName, Ipv4Cidr, NamedPort, ServiceEndpoint, ServiceName, ServiceRecord,
    ServiceTarget,
};
use tokio::task::AbortHandle;

use crate::services::{Readiness, port_number, protocol, readiness, service_of};

/// [`ClusterNames`] from the API's objects.
pub struct InformerNames {
    services: Informer<Service>,
    namespaces: Informer<Namespace>,
    index: Arc<RwLock<Index>>,
    ranges: Vec<Ipv4Cidr>,
    task: AbortHandle,
}

impl Drop for InformerNames {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Namespace and name of a service.
type ServiceKey = (String, String);

#[derive(Default)]
struct Index {
    /// Slices of a service by their own names.
    slices: HashMap<ServiceKey, BTreeMap<String, Arc<EndpointSlice>>>,
    services: HashMap<Ipv4Addr, ServiceKey>,
    /// Endpoints with a host name.
    endpoints: HashMap<Ipv4Addr, (String, ServiceKey)>,
}

impl InformerNames {
    /// Names from `informers`. `ranges` are the cluster's pod and service ranges: nobody else knows names for them.
    pub fn new(informers: &Informers, ranges: Vec<Ipv4Cidr>) -> Self {
        let services = informers.of::<Service>();
        let slices = informers.of::<EndpointSlice>();
        let index = Arc::<RwLock<Index>>::default();
        let task =
            tokio::spawn(follow(Arc::clone(&index), services.subscribe(), slices.subscribe())).abort_handle();
        Self { services, namespaces: informers.of::<Namespace>(), index, ranges, task }
    }

    fn headless(&self, namespace: &str, name: &str, all: bool) -> Vec<ServiceEndpoint> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let Some(slices) = index.slices.get(&(namespace.to_string(), name.to_string())) else {
            return Vec::new();
        };
        let mut endpoints = Vec::new();
        for slice in slices.values().filter(|slice| slice.address_type == "IPv4") {
            let ports = named_ports(slice.ports.as_deref().unwrap_or_default());
            let usable = |endpoint: &&Endpoint| all || readiness(endpoint) == Readiness::Ready;
            for endpoint in slice.endpoints.iter().flatten().filter(usable) {
                for address in endpoint.addresses.iter().filter_map(|ip| ip.parse().ok()) {
                    let hostname = endpoint.hostname.clone();
                    endpoints.push(ServiceEndpoint { address, hostname, ports: ports.clone() });
                }
            }
        }
        endpoints
    }
}

fn named_ports(ports: &[EndpointPort]) -> Vec<NamedPort> {
    ports
        .iter()
        .filter_map(|port| {
            Some(NamedPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_deref())?,
                port: port_number(port.port?)?,
            })
        })
        .collect()
}

impl ClusterNames for InformerNames {
    fn service(&self, namespace: &str, name: &str) -> Option<ServiceRecord> {
        let service = self.services.get(namespace, name)?;
        let spec = service.spec.as_ref()?;
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            Some(NamedPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: protocol(port.protocol.as_deref())?,
                port: port_number(port.port)?,
            })
        });
        let target = match (spec.type_.as_deref(), spec.cluster_ip.as_deref()) {
            (Some("ExternalName"), _) => ServiceTarget::External(spec.external_name.clone()?),
            (_, Some("None")) => {
                let all = spec.publish_not_ready_addresses == Some(true);
                ServiceTarget::Headless(self.headless(namespace, name, all))
            }
            _ => ServiceTarget::ClusterIp(addresses(&service)),
        };
        Some(ServiceRecord { target, ports: ports.collect() })
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.get("", namespace).is_some()
    }

    fn service_at(&self, address: Ipv4Addr) -> Option<ServiceName> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let (namespace, name) = index.services.get(&address)?.clone();
        Some(ServiceName { namespace, name })
    }

    fn endpoint_at(&self, address: Ipv4Addr) -> Option<EndpointName> {
        let index = self.index.read().unwrap_or_else(PoisonError::into_inner);
        let (hostname, (namespace, name)) = index.endpoints.get(&address)?.clone();
        Some(EndpointName { hostname, service: ServiceName { namespace, name } })
    }

    fn is_cluster_address(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|range| range.contains(address))
    }
}

fn addresses(service: &Service) -> Vec<Ipv4Addr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let many = spec.cluster_ips.iter().flatten().filter_map(|ip| ip.parse().ok());
    let all: Vec<Ipv4Addr> = many.collect();
    match all.is_empty() {
        true => spec.cluster_ip.iter().filter_map(|ip| ip.parse().ok()).collect(),
        false => all,
    }
}

async fn follow(
    index: Arc<RwLock<Index>>,
    mut services: Changes<Service>,
    mut slices: Changes<EndpointSlice>,
) {
    loop {
        tokio::select! {
            change = services.recv() => match change {
                Some(change) => index.write().unwrap_or_else(PoisonError::into_inner).service_changed(&change),
                None => return,
            },
            change = slices.recv() => match change {
                Some(change) => index.write().unwrap_or_else(PoisonError::into_inner).slice_changed(&change),
                None => return,
            },
        }
    }
}

impl Index {
    fn service_changed(&mut self, change: &Change<Service>) {
        let key = (change.key.namespace.clone(), change.key.name.clone());
        for address in change.old.iter().flat_map(|service| addresses(service)) {
            if self.services.get(&address) == Some(&key) {
                self.services.remove(&address);
            }
        }
        for address in change.new.iter().flat_map(|service| addresses(service)) {
            self.services.insert(address, key.clone());
        }
    }

    fn slice_changed(&mut self, change: &Change<EndpointSlice>) {
        if let Some((old, name)) = change.old.as_ref().and_then(|slice| Some((slice, service_of(slice)?))) {
            let key = (change.key.namespace.clone(), name.to_string());
            for (address, _) in host_names(old) {
                if self.endpoints.get(&address).is_some_and(|(_, known)| *known == key) {
                    self.endpoints.remove(&address);
                }
            }
            if let Some(slices) = self.slices.get_mut(&key) {
                slices.remove(&change.key.name);
                if slices.is_empty() {
                    self.slices.remove(&key);
                }
            }
        }
        if let Some((new, name)) = change.new.as_ref().and_then(|slice| Some((slice, service_of(slice)?))) {
            let key = (change.key.namespace.clone(), name.to_string());
            for (address, hostname) in host_names(new) {
                self.endpoints.insert(address, (hostname, key.clone()));
            }
            self.slices.entry(key).or_default().insert(change.key.name.clone(), Arc::clone(new));
        }
    }
}

fn host_names(slice: &EndpointSlice) -> Vec<(Ipv4Addr, String)> {
    let endpoints = slice.endpoints.iter().flatten();
    endpoints
        .filter_map(|endpoint| Some((endpoint.addresses.first()?.parse().ok()?, endpoint.hostname.clone()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use sampan_client::ObjectKey;

    #[test]
    fn slices_come_and_go() {
        let slice = |hostname: &str| {
            Arc::new(EndpointSlice {
                address_type: "IPv4".into(),
                metadata: ObjectMeta {
                    labels: Some([("kubernetes.io/service-name".to_string(), "db".to_string())].into()),
                    ..ObjectMeta::default()
                },
                endpoints: Some(vec![Endpoint {
                    addresses: vec!["10.1.0.2".into()],
                    hostname: Some(hostname.into()),
                    ..Endpoint::default()
                }]),
                ports: None,
            })
        };
        let mut index = Index::default();
        let key = ObjectKey::new("ns", "db-x");
        let address = Ipv4Addr::new(10, 1, 0, 2);
        index.slice_changed(&Change { key: key.clone(), old: None, new: Some(slice("db-0")) });
        assert_eq!(index.endpoints.get(&address).map(|(name, _)| name.as_str()), Some("db-0"));
        index.slice_changed(&Change { key: key.clone(), old: Some(slice("db-0")), new: Some(slice("db-1")) });
        assert_eq!(index.endpoints.get(&address).map(|(name, _)| name.as_str()), Some("db-1"));
        index.slice_changed(&Change { key, old: Some(slice("db-1")), new: None });
        assert!(index.endpoints.is_empty() && index.slices.is_empty());
    }
}
