//! What can go wrong between a wish and the kernel.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Errors of this crate. All of them can be retried by stating the wish again.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The configuration cannot work; nothing was changed.
    #[error("the network configuration cannot work: {reason}")]
    Config {
        /// Which value, and why not.
        reason: String,
    },
    /// The kernel refused a link, address, route or connection-tracking request.
    #[error("failed to {action}")]
    Netlink {
        /// What was tried, on what.
        action: String,
        /// The kernel's answer.
        #[source]
        err: nlink::Error,
    },
    /// The kernel refused a change of the packet rules.
    #[error("failed to {action} nftables table {table}")]
    Ruleset {
        /// `create`, `change` or `remove`.
        action: &'static str,
        /// The table's name.
        table: String,
        /// The kernel's answer.
        #[source]
        err: nlink::Error,
    },
    /// A pod's network namespace file cannot be opened.
    #[error("failed to open network namespace {path}")]
    Namespace {
        /// The file given to attach.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// Every address of the pod range is taken.
    #[error("no free address left in {cidr} ({used} in use)")]
    AddressesExhausted {
        /// The pod range.
        cidr: crate::Ipv4Cidr,
        /// Addresses in use.
        used: usize,
    },
    /// No pair of ranges is free on this machine.
    #[error("no free address ranges for cluster {name}: every candidate overlaps a route of this machine")]
    NoFreeRange {
        /// The cluster's name.
        name: String,
    },
    /// A file of the state directory cannot be read or written.
    #[error("failed to {action} {path}")]
    State {
        /// `read`, `write`, `parse` or `remove`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// A DNS socket cannot be bound.
    #[error("failed to listen for DNS on {address}")]
    DnsListen {
        /// The address asked for.
        address: SocketAddr,
        /// Why.
        #[source]
        err: std::io::Error,
    },
    /// The forwarding part of the DNS server cannot be made.
    #[error("failed to set up DNS forwarding")]
    DnsUpstream {
        /// Why.
        #[source]
        err: hickory_resolver::net::NetError,
    },
}

impl NetworkError {
    /// Wraps the kernel's answer to a link, address or route request.
    pub(crate) fn netlink(action: impl Into<String>) -> impl FnOnce(nlink::Error) -> Self {
        let action = action.into();
        move |err| Self::Netlink { action, err }
    }
}
