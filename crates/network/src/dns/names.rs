//! What the DNS server asks the cluster. The node answers from its informers; a test from a table.

use std::net::Ipv4Addr;

use crate::Protocol;

/// Look-ups in the cluster's present state. They are made for every query, so they must not wait and not be expensive:
/// a hash map, not a walk.
///
/// Names come in lower case, as Kubernetes has them.
pub trait ClusterNames: Send + Sync + 'static {
    /// The service of that name, if there is one.
    fn service(&self, namespace: &str, name: &str) -> Option<ServiceRecord>;

    /// Whether the namespace exists.
    fn has_namespace(&self, namespace: &str) -> bool;

    /// The service with that ClusterIP.
    fn service_at(&self, address: Ipv4Addr) -> Option<ServiceName>;

    /// The endpoint of a headless service with that address, if it has a host name there (pods of stateful sets do).
    fn endpoint_at(&self, address: Ipv4Addr) -> Option<EndpointName> {
        let _ = address;
        None
    }

    /// Whether the address lies in a range of this cluster, so that nobody else can know a name for it.
    fn is_cluster_address(&self, address: Ipv4Addr) -> bool {
        let _ = address;
        false
    }
}

/// A service as its names show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRecord {
    /// Where it is.
    pub target: ServiceTarget,
    /// The ports of the service itself. A headless service's endpoints have their own.
    pub ports: Vec<NamedPort>,
}

/// Where a service is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceTarget {
    /// At virtual addresses.
    ClusterIp(Vec<Ipv4Addr>),
    /// At each of its endpoints: the ready ones, or all if the service publishes addresses which are not ready.
    Headless(Vec<ServiceEndpoint>),
    /// At another name (`ExternalName`).
    External(String),
}

/// An endpoint of a headless service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its host name below the service's, if it has one. Others are named by their address, `10-42-0-5`.
    pub hostname: Option<String>,
    /// Its ports, with the numbers it listens on.
    pub ports: Vec<NamedPort>,
}

/// A port that can be asked for by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedPort {
    /// Its name; empty for the only port of a service, which then has no SRV record.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// A service's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// The namespace.
    pub namespace: String,
    /// The name in the namespace.
    pub name: String,
}

/// The name of a headless service's endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointName {
    /// The host name below the service's.
    pub hostname: String,
    /// The service.
    pub service: ServiceName,
}
