//! The network of one node: addresses for pods, virtual addresses for services, names for both.
//!
//! The node says what it wants (these pods, these services) and this crate makes the kernel agree: a veth pair
//! per pod, one nftables table, and a DNS server on the gateway's address. Everything it makes carries the cluster's
//! name, so several clusters live side by side on one machine, and everything can be derived again from what is wanted,
//! so that a crash at any line costs nothing but a repetition.
//!
//! The way of a packet: a pod has one `/32` address and one route, to the node. Also traffic between two pods of this
//! node is therefore *routed* by the node and not switched by a bridge. That costs a little and gives a lot: connection
//! tracking sees every packet, services and (later) policies do not depend on `br_netfilter`, and a pod cannot speak to
//! its neighbour on the link layer at all.
//!
//! What it does not do: it never reads the API (the node translates objects into [`ServiceRoute`]s and answers
//! [`ClusterNames`]), it does not create the pods' network namespaces nor bring up their loopback (the runtime does), and
//! it does not yet know of other nodes, policies or ingress. Those come as further files beside [`Network`]: another
//! implementation of how packets leave the node, another table of rules, another listener.
//!
//! Other tools' firewalls: an `accept` in our table cannot lift a `drop` in another one. Where the machine's own rules
//! drop forwarded packets (Docker sets the policy of its `FORWARD` chain to drop), the operator must allow the pods'
//! links there, whose names start with `spv`.

#![forbid(unsafe_code)]

mod addresses;
mod cidr;
mod config;
mod conntrack;
mod dns;
mod error;
mod links;
mod names;
mod network;
mod nft;
mod program;
mod ranges;
mod ruleset;
mod services;
mod state;
mod sysctls;

pub use cidr::{CidrError, Ipv4Cidr};
pub use config::{NetworkConfig, Protocol, ServiceRoute};
pub use dns::{
    Answer, ClusterNames, DnsServer, EndpointName, NamedPort, ServiceEndpoint, ServiceName, ServiceRecord,
    ServiceTarget, Zone, answer, system_upstreams,
};
pub use error::NetworkError;
pub use network::Network;
pub use program::{Balancer, Element, Front, NftChange, Program, plan};
pub use ranges::free_cidrs;
