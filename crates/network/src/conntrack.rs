//! Flows the kernel remembers longer than they are right.
//!
//! The address translation of a flow is decided by its first packet. TCP connections to an endpoint that went away end by
//! themselves, but a UDP client which keeps its port, like most resolvers, would be sent to the old address until it falls
//! silent. So after a change of a UDP service the kernel's flows are looked through and the stale ones forgotten; the next
//! packet decides anew. Without UDP changes nothing is read.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use nlink::netlink::netfilter::{ConntrackEntry, ConntrackFilter, IpProtocol};
use nlink::netlink::types::AddressFamily;
use nlink::netlink::{Connection, Netfilter};

use crate::config::NetworkConfig;
use crate::services::TouchedFronts;
use crate::{Front, Ipv4Cidr, NetworkError};

/// The kernel's table of flows.
pub(crate) struct Flows {
    connection: Connection<Netfilter>,
    place: Place,
}

/// What tells our node ports' flows from others with the same port.
struct Place {
    pods: Ipv4Cidr,
    own: [Ipv4Addr; 2],
}

/// The two ends of a flow that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flow {
    /// Where the client sends to.
    destination: (Ipv4Addr, u16),
    /// Who answers.
    responder: (Ipv4Addr, u16),
}

impl Flows {
    /// Opens a way to the kernel; changes nothing.
    pub(crate) fn open(config: &NetworkConfig) -> Result<Self, NetworkError> {
        let connection = Connection::<Netfilter>::new()
            .map_err(NetworkError::netlink("open a netlink socket for connection tracking"))?;
        let place = Place { pods: config.pod_cidr, own: [config.node_address, config.gateway()] };
        Ok(Self { connection, place })
    }

    /// Forgets the UDP flows through the touched fronts that lead to none of their endpoints.
    pub(crate) async fn forget_stale(&self, touched: &TouchedFronts) -> Result<(), NetworkError> {
        if touched.is_empty() {
            return Ok(());
        }
        let udp = ConntrackFilter::new().family(AddressFamily::Inet).proto(IpProtocol::Udp);
        let entries = self
            .connection
            .get_conntrack_matching(&udp)
            .await
            .map_err(NetworkError::netlink("list the tracked UDP flows"))?;
        for entry in &entries {
            if flow_of(entry).is_some_and(|flow| self.place.is_stale(flow, touched)) {
                self.forget(entry).await?;
            }
        }
        Ok(())
    }

    async fn forget(&self, entry: &ConntrackEntry) -> Result<(), NetworkError> {
        match self.connection.del_conntrack_entry(entry).await {
            // It ended in between.
            Err(error) if error.is_not_found() => Ok(()),
            done => done.map_err(NetworkError::netlink("forget a stale UDP flow")),
        }
    }
}

fn flow_of(entry: &ConntrackEntry) -> Option<Flow> {
    let end = |ip: Option<IpAddr>, port: Option<u16>| match ip {
        Some(IpAddr::V4(ip)) => Some((ip, port?)),
        _ => None,
    };
    Some(Flow {
        destination: end(entry.orig.dst_ip, entry.orig.dst_port)?,
        responder: end(entry.reply.src_ip, entry.reply.src_port)?,
    })
}

impl Place {
    fn is_stale(&self, flow: Flow, touched: &TouchedFronts) -> bool {
        touched.iter().any(|(front, endpoints)| self.passes(flow, *front) && leads_nowhere(flow, endpoints))
    }

    /// Whether the flow's first packet arrived at this front.
    fn passes(&self, flow: Flow, front: Front) -> bool {
        let (address, port) = flow.destination;
        match front {
            Front::Cluster { address: virtual_address, port: virtual_port, .. } => {
                (address, port) == (virtual_address, virtual_port)
            }
            // Also somebody's flow to another machine can have this port. Ours lead to a pod, or never left the node.
            Front::Node { port: node_port, .. } => {
                let to_us = self.own.contains(&address) || address.is_loopback();
                port == node_port && (to_us || self.pods.contains(flow.responder.0))
            }
        }
    }
}

fn leads_nowhere(flow: Flow, endpoints: &BTreeSet<(Ipv4Addr, u16)>) -> bool {
    !endpoints.contains(&flow.responder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Protocol;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 10);
    const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

    fn pod(d: u8) -> (Ipv4Addr, u16) {
        (Ipv4Addr::new(10, 42, 0, d), 5353)
    }

    #[track_caller]
    fn check(what: &str, destination: (Ipv4Addr, u16), responder: (Ipv4Addr, u16), stale: bool) {
        let place = Place { pods: "10.42.0.0/16".parse().unwrap(), own: [NODE, Ipv4Addr::new(10, 42, 0, 1)] };
        let endpoints = BTreeSet::from([pod(2)]);
        let touched = TouchedFronts::from([
            (Front::Cluster { address: VIP, protocol: Protocol::Udp, port: 53 }, endpoints.clone()),
            (Front::Node { protocol: Protocol::Udp, port: 30_053 }, endpoints),
        ]);
        assert_eq!(place.is_stale(Flow { destination, responder }, &touched), stale, "{what}");
    }

    #[test]
    fn stale_is_what_came_through_a_front_and_leads_elsewhere() {
        let remote = (Ipv4Addr::new(198, 51, 100, 7), 30_053);
        check("to a present endpoint", (VIP, 53), pod(2), false);
        check("to an endpoint that is gone", (VIP, 53), pod(3), true);
        check("never translated", (VIP, 53), (VIP, 53), true);
        check("another port of the address", (VIP, 54), pod(3), false);
        check("straight to a pod", pod(3), pod(3), false);
        check("node port, gone endpoint", (NODE, 30_053), pod(3), true);
        check("node port, present endpoint", (NODE, 30_053), pod(2), false);
        check("node port, from before the service", (NODE, 30_053), (NODE, 30_053), true);
        check("node port by an address we do not know", (Ipv4Addr::new(192, 0, 2, 77), 30_053), pod(3), true);
        check("node port on the loopback", (Ipv4Addr::LOCALHOST, 30_053), pod(3), true);
        check("somebody else's flow", remote, remote, false);
    }
}
