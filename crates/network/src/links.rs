//! The bridge, and one veth pair per pod.
//!
//! The pair is made with its far end already in the pod's namespace: moving it there afterwards waits for the kernel's
//! network-wide synchronisation and takes fifteen times as long. Sockets for a namespace are made by the netlink library
//! on a short-lived thread inside it; none of our threads ever changes its namespace.
//!
//! Ports of the bridge are isolated from each other: the link layer carries packets between a pod and the node, never
//! between pods.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;

use nlink::Route;
use nlink::netlink::Connection;
use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::devconf::Ipv4Devconf;
use nlink::netlink::link::{BridgeLink, BridgePortConfig, LinkCreateExt, VethLink};
use nlink::netlink::messages::LinkMessage;
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::sysctl;
use nlink::netlink::types::route::RouteScope;

use crate::NetworkError;
use crate::config::NetworkConfig;
use crate::names::{self, Names, POD_INTERFACE};

/// Where no default route tells the size of packets.
const ETHERNET_MTU: u32 = 1500;

/// The bridge of one cluster, up and addressed.
pub(crate) struct Links {
    host: Connection<Route>,
    bridge: String,
    bridge_index: u32,
    gateway: Ipv4Addr,
    mtu: u32,
}

impl Links {
    /// Makes the bridge, or takes over the one that is there with all pods on it.
    pub(crate) async fn start(config: &NetworkConfig, names: &Names) -> Result<Self, NetworkError> {
        let host = open_host()?;
        let mtu = uplink_mtu(&host).await?;
        let bridge_index = ensure_bridge(&host, config, &names.bridge, mtu).await?;
        Ok(Self {
            host,
            bridge: names.bridge.clone(),
            bridge_index,
            gateway: config.gateway(),
            mtu,
        })
    }

    /// Makes the pod's link, or completes it: safe to repeat.
    pub(crate) async fn attach(&self, address: Ipv4Addr, netns: &Path) -> Result<(), NetworkError> {
        let file = File::open(netns).map_err(|err| NetworkError::Namespace {
            path: netns.to_owned(),
            err,
        })?;
        let inside = Connection::<Route>::new_in(file.as_fd()).map_err(NetworkError::netlink(format!(
            "open a netlink socket in {}",
            netns.display()
        )))?;
        if !self.is_attached(&inside, address).await? {
            self.detach(address).await?;
            self.create(address, &file).await?;
        }
        self.configure(&inside, address).await
    }

    /// Removes the pod's link, if there is one; with the node's end goes the pod's.
    pub(crate) async fn detach(&self, address: Ipv4Addr) -> Result<(), NetworkError> {
        remove_link(&self.host, &names::pod_link(address)).await
    }

    /// The addresses of the pods that have a link on the bridge.
    pub(crate) async fn attached(&self) -> Result<Vec<Ipv4Addr>, NetworkError> {
        Ok(ports(&self.host, self.bridge_index)
            .await?
            .iter()
            .filter_map(|name| names::pod_address(name))
            .collect())
    }

    /// Whether both ends of the pod's link are there, and in the right places.
    async fn is_attached(&self, inside: &Connection<Route>, address: Ipv4Addr) -> Result<bool, NetworkError> {
        let ours = find(&self.host, &names::pod_link(address)).await?;
        let theirs = find(inside, POD_INTERFACE).await?;
        let on_bridge = ours.is_some_and(|link| link.master() == Some(self.bridge_index));
        let in_pod = theirs.is_some_and(|link| link.address() == Some(&names::hardware_address(address)[..]));
        Ok(on_bridge && in_pod)
    }

    async fn create(&self, address: Ipv4Addr, netns: &File) -> Result<(), NetworkError> {
        let name = names::pod_link(address);
        let failed =
            || NetworkError::netlink(format!("create link {name} between {} and a pod", self.bridge));
        let pair = VethLink::new(name.as_str(), POD_INTERFACE)
            .mtu(self.mtu)
            .address(names::host_end_hardware_address(address))
            .peer_address(names::hardware_address(address))
            .peer_netns_fd(netns)
            .master(self.bridge.as_str())
            .up();
        self.host.add_link(pair).await.map_err(failed())?;
        let port = BridgePortConfig::new().isolated(true).mcast_flood(false);
        self.host
            .set_bridge_port(name.as_str(), port)
            .await
            .map_err(failed())
    }

    /// Gives the pod's end its address and its two routes: the gateway on the link, everything else through it.
    async fn configure(&self, inside: &Connection<Route>, address: Ipv4Addr) -> Result<(), NetworkError> {
        let failed = || NetworkError::netlink(format!("configure {POD_INTERFACE} of the pod at {address}"));
        let index = index_of(inside, POD_INTERFACE).await?;
        inside
            .replace_address(Ipv4Address::with_index(index, address, 32))
            .await
            .map_err(failed())?;
        inside.set_link_up_by_index(index).await.map_err(failed())?;
        let to_gateway = Ipv4Route::new(self.gateway, 32)
            .dev_index(index)
            .scope(RouteScope::Link);
        inside.replace_route(to_gateway).await.map_err(failed())?;
        let default = Ipv4Route::default_route().gateway(self.gateway).dev_index(index);
        inside.replace_route(default).await.map_err(failed())
    }
}

/// Removes the cluster's bridge and every pod's link on it. Tells whether another cluster's bridge remains.
pub(crate) async fn destroy(names: &Names) -> Result<bool, NetworkError> {
    let host = open_host()?;
    if let Some(bridge) = find(&host, &names.bridge).await? {
        for port in ports(&host, bridge.ifindex()).await? {
            remove_link(&host, &port).await?;
        }
        remove_link(&host, &names.bridge).await?;
    }
    let links = host
        .get_links()
        .await
        .map_err(NetworkError::netlink("list links"))?;
    Ok(links
        .iter()
        .any(|link| link.name_or("").starts_with(names::BRIDGE_PREFIX)))
}

fn open_host() -> Result<Connection<Route>, NetworkError> {
    Connection::<Route>::new().map_err(NetworkError::netlink("open a netlink socket for links"))
}

/// Makes and configures the bridge, and routes the service range to it.
async fn ensure_bridge(
    host: &Connection<Route>,
    config: &NetworkConfig,
    name: &str,
    mtu: u32,
) -> Result<u32, NetworkError> {
    let failed = || NetworkError::netlink(format!("set up bridge {name}"));
    let gateway = config.gateway();
    if find(host, name).await?.is_none() {
        // A bridge without an address of its own takes its ports' and changes it as they come and go.
        let bridge = BridgeLink::new(name)
            .address(names::hardware_address(gateway))
            .mtu(mtu);
        host.add_link(bridge).await.map_err(failed())?;
    }
    let index = index_of(host, name).await?;
    host.replace_address(Ipv4Address::with_index(index, gateway, config.pod_cidr.prefix()))
        .await
        .map_err(failed())?;
    // Packets of the node from and to 127.0.0.1 may pass here, for node ports; `nft.rs` keeps pods' packets out.
    let settings = [(Ipv4Devconf::SendRedirects, 0), (Ipv4Devconf::RouteLocalnet, 1)];
    host.set_ipv4_devconf_by_index(index, &settings)
        .await
        .map_err(failed())?;
    switch_ipv6_off(name)?;
    host.set_link_up_by_index(index).await.map_err(failed())?;
    // The node's own packets to a service need some route before they are translated, also on a machine without a
    // default route, and this one makes the gateway's address their sender.
    let services = Ipv4Route::new(config.service_cidr.network(), config.service_cidr.prefix())
        .dev_index(index)
        .scope(RouteScope::Link)
        .prefsrc(gateway);
    host.replace_route(services).await.map_err(failed())?;
    Ok(index)
}

/// Without it pods could reach, by the bridge's link-local address, whatever the node listens for on all addresses, past
/// the rules of an IPv4 table.
fn switch_ipv6_off(bridge: &str) -> Result<(), NetworkError> {
    let key = sysctl::ipv6_conf_key(bridge, "disable_ipv6");
    match sysctl::set(&key, "1") {
        // A kernel without IPv6.
        Err(error) if error.is_not_found() => Ok(()),
        done => done.map_err(NetworkError::netlink(format!("set {key}"))),
    }
}

/// The packet size of the link the default route leaves by: larger packets of pods would be cut or lost there.
async fn uplink_mtu(host: &Connection<Route>) -> Result<u32, NetworkError> {
    let routes = host
        .get_routes()
        .await
        .map_err(NetworkError::netlink("read the machine's routes"))?;
    let default = routes
        .iter()
        .filter(|route| route.is_ipv4() && route.is_default())
        .min_by_key(|route| route.priority().unwrap_or(0));
    let Some(index) = default.and_then(|route| route.oif()) else {
        return Ok(ETHERNET_MTU);
    };
    let link = host
        .get_link_by_index(index)
        .await
        .map_err(NetworkError::netlink("look up the uplink"))?;
    Ok(link.and_then(|link| link.mtu()).unwrap_or(ETHERNET_MTU))
}

async fn find(connection: &Connection<Route>, name: &str) -> Result<Option<LinkMessage>, NetworkError> {
    connection
        .get_link_by_name(name)
        .await
        .map_err(NetworkError::netlink(format!("look up link {name}")))
}

async fn index_of(connection: &Connection<Route>, name: &str) -> Result<u32, NetworkError> {
    let link = connection.resolve_interface(&name.into()).await;
    link.map_err(NetworkError::netlink(format!("look up link {name}")))
}

/// The names of the links on a bridge.
async fn ports(host: &Connection<Route>, bridge_index: u32) -> Result<Vec<String>, NetworkError> {
    let links = host
        .get_links()
        .await
        .map_err(NetworkError::netlink("list links"))?;
    Ok(links
        .iter()
        .filter(|link| link.master() == Some(bridge_index))
        .filter_map(|link| link.name().map(str::to_owned))
        .collect())
}

async fn remove_link(host: &Connection<Route>, name: &str) -> Result<(), NetworkError> {
    let removed = host.del_link_if_exists(name).await;
    removed
        .map(|_| ())
        .map_err(NetworkError::netlink(format!("remove link {name}")))
}
