//! What the node hands in: the configuration of the network, and the services it wants.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use crate::{Ipv4Cidr, NetworkError};

/// The network of one cluster on one machine.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The cluster's name: part of the names of the anchor and of the nftables table.
    pub name: String,
    /// Where this node's pods get their addresses. The first address is the anchor's, and the pods' DNS server.
    pub pod_cidr: Ipv4Cidr,
    /// Where ClusterIPs come from. Traffic to an address of it that no service has is refused.
    pub service_cidr: Ipv4Cidr,
    /// The node's own address, as other machines see it.
    pub node_address: Ipv4Addr,
    /// Where addresses are remembered across restarts; made if it is not there, and ours alone.
    pub state_dir: PathBuf,
    /// The DNS zone of the cluster, usually `cluster.local`.
    pub cluster_domain: String,
}

impl NetworkConfig {
    /// Says no to what cannot work before anything is touched.
    pub(crate) fn validate(&self) -> Result<(), NetworkError> {
        let refuse = |reason: String| Err(NetworkError::Config { reason });
        if self.name.is_empty() {
            return refuse("the cluster's name is empty".into());
        }
        // Network, gateway, one pod, broadcast.
        if self.pod_cidr.prefix() > 30 || self.pod_cidr.prefix() < 8 {
            return refuse(format!("pod range {} is not between /8 and /30", self.pod_cidr));
        }
        if self.service_cidr.prefix() > 30 || self.service_cidr.prefix() < 8 {
            return refuse(format!("service range {} is not between /8 and /30", self.service_cidr));
        }
        if self.pod_cidr.overlaps(&self.service_cidr) {
            return refuse(format!(
                "pod range {} overlaps service range {}",
                self.pod_cidr, self.service_cidr
            ));
        }
        for range in [&self.pod_cidr, &self.service_cidr] {
            if range.contains(self.node_address) {
                return refuse(format!("the node's address {} lies in {range}", self.node_address));
            }
        }
        Ok(())
    }

    /// The anchor's address: first of the pod range.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.pod_cidr.network().to_bits() + 1)
    }
}

/// A transport protocol a service can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The number in the IP header (IANA protocol numbers).
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// One port of one service: where packets arrive, and where they may go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceRoute {
    /// Who wants it, for messages and for the order of precedence, for example `default/web:http`. Unique.
    pub key: String,
    /// The protocol of all its ports.
    pub protocol: Protocol,
    /// The virtual address, none for a service that has only a node port.
    pub cluster_ip: Option<Ipv4Addr>,
    /// The port at the virtual address.
    pub port: u16,
    /// The port on each of the node's own addresses, loopback included.
    pub node_port: Option<u16>,
    /// The ready endpoints. With none, connections to the virtual address are refused.
    pub endpoints: Vec<(Ipv4Addr, u16)>,
    /// `ClientIP` session affinity. Clients are assigned to endpoints by a hash of their address, which needs no memory
    /// and never expires, so the number of seconds does not matter; a change of the endpoints may move clients.
    pub session_affinity_seconds: Option<u32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(pods: &str, services: &str, node: [u8; 4]) -> NetworkConfig {
        NetworkConfig {
            name: "test".into(),
            pod_cidr: pods.parse().unwrap(),
            service_cidr: services.parse().unwrap(),
            node_address: node.into(),
            state_dir: PathBuf::from("/nowhere"),
            cluster_domain: "cluster.local".into(),
        }
    }

    #[test]
    fn refuses_what_cannot_work() {
        let node = [192, 0, 2, 1];
        assert!(config("10.42.0.0/16", "10.43.0.0/16", node).validate().is_ok());
        assert!(config("10.42.0.0/31", "10.43.0.0/16", node).validate().is_err());
        assert!(config("10.42.0.0/16", "10.43.0.0/32", node).validate().is_err());
        assert!(config("10.0.0.0/8", "10.43.0.0/16", node).validate().is_err());
        assert!(config("10.42.0.0/16", "10.43.0.0/16", [10, 42, 0, 9]).validate().is_err());
        assert!(
            NetworkConfig { name: String::new(), ..config("10.42.0.0/16", "10.43.0.0/16", node) }
                .validate()
                .is_err()
        );
    }

    #[test]
    fn the_gateway_is_the_first_address() {
        assert_eq!(
            config("10.42.0.0/24", "10.43.0.0/16", [192, 0, 2, 1]).gateway(),
            Ipv4Addr::new(10, 42, 0, 1)
        );
    }
}
