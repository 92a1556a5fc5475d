//! The anchor, and one veth pair per pod.
//!
//! The anchor is a link that holds the gateway's address and the routes of the cluster's two ranges; no packet leaves by
//! it. It is a bridge without ports, because not every kernel has the dummy link. A pod's link is not connected to
//! anything but the node, which has a route to the pod's address on it. Making it a port of the bridge lost: with
//! `bridge-nf-call-iptables` on, the kernel's default, a bridge translates a service's address itself and hands the
//! packet to the other pod past the node's routing, which isolated ports do not allow.
//!
//! Both ends know each other's hardware address from the start, so that no first packet waits for a neighbour.
//!
//! The pair is made with its far end already in the pod's namespace: moving it there afterwards waits for the kernel's
//! network-wide synchronisation and takes fifteen times as long. Sockets for a namespace are made by the netlink library
//! on a short-lived thread inside it; none of our threads ever changes its namespace.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;

use nlink::Route;
use nlink::netlink::Connection;
use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::devconf::Ipv4Devconf;
use nlink::netlink::link::{BridgeLink, VethLink};
use nlink::netlink::messages::LinkMessage;
use nlink::netlink::neigh::Neighbor;
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::sysctl;
use nlink::netlink::types::route::RouteScope;

use crate::config::NetworkConfig;
use crate::names::{self, Names, POD_INTERFACE};
use crate::{Ipv4Cidr, NetworkError};

/// Where no default route tells the size of packets.
const ETHERNET_MTU: u32 = 1500;

/// The links of one cluster.
pub(crate) struct Links {
    host: Connection<Route>,
    pods: Ipv4Cidr,
    gateway: Ipv4Addr,
    mtu: u32,
}

impl Links {
    /// Makes the anchor, or takes over the one that is there.
    pub(crate) async fn start(config: &NetworkConfig, names: &Names) -> Result<Self, NetworkError> {
        let host = open_host()?;
        let mtu = uplink_mtu(&host).await?;
        ensure_anchor(&host, config, &names.anchor, mtu).await?;
        Ok(Self { host, pods: config.pod_cidr, gateway: config.gateway(), mtu })
    }

    /// Makes the pod's link, or completes it: safe to repeat.
    pub(crate) async fn attach(&self, address: Ipv4Addr, netns: &Path) -> Result<(), NetworkError> {
        let file =
            File::open(netns).map_err(|err| NetworkError::Namespace { path: netns.to_owned(), err })?;
        let inside = Connection::<Route>::new_in(file.as_fd())
            .map_err(NetworkError::netlink(format!("open a netlink socket in {}", netns.display())))?;
        if !self.is_attached(&inside, address).await? {
            self.detach(address).await?;
            self.create(address, &file).await?;
        }
        self.configure_host_end(address).await?;
        self.configure_pod_end(&inside, address).await
    }

    /// Removes the pod's link, if there is one; with the node's end goes the pod's.
    pub(crate) async fn detach(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        remove_link(&self.host, &names::pod_link(address)).await
    }

    /// The addresses of the cluster's pods that have a link.
    pub(crate) async fn attached(&self) -> Result<Vec<Ipv4Addr>, NetworkError> {
        pod_links(&self.host, self.pods).await
    }

    /// Whether both ends of the pod's link are there, and in the right places.
    async fn is_attached(&self, inside: &Connection<Route>, address: Ipv4Addr) -> Result<bool, NetworkError> {
        let ours = find(&self.host, &names::pod_link(address)).await?;
        let theirs = find(inside, POD_INTERFACE).await?;
        let on_node = ours.is_some_and(|link| link.master().is_none());
        let in_pod = theirs.is_some_and(|link| link.address() == Some(&names::hardware_address(address)[..]));
        Ok(on_node && in_pod)
    }

    async fn create(&self, address: Ipv4Addr, netns: &File) -> Result<(), NetworkError> {
        let name = names::pod_link(address);
        let failed = NetworkError::netlink(format!("create link {name} to a pod"));
        let pair = VethLink::new(name.as_str(), POD_INTERFACE)
            .mtu(self.mtu)
            .address(names::host_end_hardware_address(address))
            .peer_address(names::hardware_address(address))
            .peer_netns_fd(netns);
        self.host.add_link(pair).await.map_err(failed)
    }

    /// Readies the node's end before it comes up, then tells the node where the pod is.
    async fn configure_host_end(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        let name = names::pod_link(address);
        let failed = || NetworkError::netlink(format!("configure link {name} to a pod"));
        let index = index_of(&self.host, &name).await?;
        // Packets of the node from and to 127.0.0.1 may pass here, for node ports; `nft.rs` keeps pods' packets out.
        let settings = [(Ipv4Devconf::SendRedirects, 0), (Ipv4Devconf::RouteLocalnet, 1)];
        self.host.set_ipv4_devconf_by_index(index, &settings).await.map_err(failed())?;
        switch_ipv6_off(&name)?;
        self.host.set_link_up_by_index(index).await.map_err(failed())?;
        let pod =
            Neighbor::with_index_v4(index, address).lladdr(names::hardware_address(address)).permanent();
        self.host.replace_neighbor(pod).await.map_err(failed())?;
        let to_pod =
            Ipv4Route::new(address, 32).dev_index(index).scope(RouteScope::Link).prefsrc(self.gateway);
        self.host.replace_route(to_pod).await.map_err(failed())
    }

    /// Gives the pod's end its address and its two routes: the gateway on the link, everything else through it.
    async fn configure_pod_end(
        &self,
        inside: &Connection<Route>,
        address: Ipv4Addr,
    ) -> Result<(), NetworkError> {
        let failed = || NetworkError::netlink(format!("configure {POD_INTERFACE} of the pod at {address}"));
        let index = index_of(inside, POD_INTERFACE).await?;
        inside.replace_address(Ipv4Address::with_index(index, address, 32)).await.map_err(failed())?;
        inside.set_link_up_by_index(index).await.map_err(failed())?;
        let node = Neighbor::with_index_v4(index, self.gateway)
            .lladdr(names::host_end_hardware_address(address))
            .permanent();
        inside.replace_neighbor(node).await.map_err(failed())?;
        let to_gateway = Ipv4Route::new(self.gateway, 32).dev_index(index).scope(RouteScope::Link);
        inside.replace_route(to_gateway).await.map_err(failed())?;
        let default = Ipv4Route::default_route().gateway(self.gateway).dev_index(index);
        inside.replace_route(default).await.map_err(failed())
    }
}

/// Removes the cluster's anchor and every pod's link. Tells whether another cluster's anchor remains.
pub(crate) async fn destroy(config: &NetworkConfig, names: &Names) -> Result<bool, NetworkError> {
    let host = open_host()?;
    for address in pod_links(&host, config.pod_cidr).await? {
        remove_link(&host, &names::pod_link(address)).await?;
    }
    remove_link(&host, &names.anchor).await?;
    let links = host.get_links().await.map_err(NetworkError::netlink("list links"))?;
    Ok(links.iter().any(|link| link.name_or("").starts_with(names::ANCHOR_PREFIX)))
}

fn open_host() -> Result<Connection<Route>, NetworkError> {
    Connection::<Route>::new().map_err(NetworkError::netlink("open a netlink socket for links"))
}

/// Makes and configures the anchor, and routes both ranges to it. A pod's own route is more exact; what remains is
/// addressed to no pod or service, and `nft.rs` refuses it.
async fn ensure_anchor(
    host: &Connection<Route>,
    config: &NetworkConfig,
    name: &str,
    mtu: u32,
) -> Result<(), NetworkError> {
    let failed = || NetworkError::netlink(format!("set up link {name}"));
    let gateway = config.gateway();
    if find(host, name).await?.is_none() {
        let anchor = BridgeLink::new(name).address(names::hardware_address(gateway)).mtu(mtu);
        host.add_link(anchor).await.map_err(failed())?;
    }
    let index = index_of(host, name).await?;
    switch_ipv6_off(name)?;
    host.replace_address(Ipv4Address::with_index(index, gateway, config.pod_cidr.prefix()))
        .await
        .map_err(failed())?;
    host.set_link_up_by_index(index).await.map_err(failed())?;
    // The node's own packets to a service need some route before they are translated, also on a machine without a
    // default route, and this one makes the gateway's address their sender.
    let services = Ipv4Route::new(config.service_cidr.network(), config.service_cidr.prefix())
        .dev_index(index)
        .scope(RouteScope::Link)
        .prefsrc(gateway);
    host.replace_route(services).await.map_err(failed())
}

/// Without it pods could reach, by the link-local address of the node's end, whatever the node listens for on all
/// addresses, past the rules of an IPv4 table.
fn switch_ipv6_off(link: &str) -> Result<(), NetworkError> {
    let key = sysctl::ipv6_conf_key(link, "disable_ipv6");
    match sysctl::set(&key, "1") {
        // A kernel without IPv6.
        Err(error) if error.is_not_found() => Ok(()),
        done => done.map_err(NetworkError::netlink(format!("set {key}"))),
    }
}

/// The packet size of the link the default route leaves by: larger packets of pods would be cut or lost there.
async fn uplink_mtu(host: &Connection<Route>) -> Result<u32, NetworkError> {
    let routes = host.get_routes().await.map_err(NetworkError::netlink("read the machine's routes"))?;
    let default = routes
        .iter()
        .filter(|route| route.is_ipv4() && route.is_default())
        .min_by_key(|route| route.priority().unwrap_or(0));
    let Some(index) = default.and_then(|route| route.oif()) else {
        return Ok(ETHERNET_MTU);
    };
    let link = host.get_link_by_index(index).await.map_err(NetworkError::netlink("look up the uplink"))?;
    Ok(link.and_then(|link| link.mtu()).unwrap_or(ETHERNET_MTU))
}

async fn find(connection: &Connection<Route>, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    connection.get_link_by_name(name).await.map_err(NetworkError::netlink(format!("look up link {name}")))
}

async fn index_of(connection: &Connection<Route>, name: &str) -> Result<u32, NetworkError> {
    let link = connection.resolve_interface(&name.into()).await;
    link.map_err(NetworkError::netlink(format!("look up link {name}")))
}

/// The addresses of the pods of a range that have a link. Ranges of two clusters never overlap.
async fn pod_links(host: &Connection<Route>, pods: Ipv4Cidr) -> Result<Vec<Ipv4Addr>, NetworkError> {
    let links = host.get_links().await.map_err(NetworkError::netlink("list links"))?;
    Ok(links
        .iter()
        .filter_map(|link| names::pod_address(link.name()?))
        .filter(|address| pods.contains(*address))
        .collect())
}

async fn remove_link(host: &Connection<Route>, name: &str) -> Result<(), NetworkError> {
    let removed = host.del_link_if_exists(name).await;
    removed.map(|_| ()).map_err(NetworkError::netlink(format!("remove link {name}")))
}
