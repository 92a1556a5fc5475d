//! The network of one cluster on this machine: what the node calls.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Mutex;

use crate::addresses::Addresses;
use crate::config::{NetworkConfig, ServiceRoute};
use crate::conntrack::Flows;
use crate::links::{self, Links};
use crate::names::Names;
use crate::nft::NftTable;
use crate::ruleset::Ruleset;
use crate::services::Services;
use crate::{NetworkError, state, sysctls};

/// A running network. Dropping it changes nothing in the kernel: pods keep talking while the program restarts;
/// [`Network::destroy`] ends it.
pub struct Network {
    config: NetworkConfig,
    names: Names,
    links: Links,
    /// Held while links change, so that an address and its link never part.
    addresses: Mutex<Addresses>,
    services: Services,
    flows: Flows,
}

impl Network {
    /// Makes what the cluster's network needs on this machine, or takes it over from an earlier run, with its pods and
    /// services undisturbed.
    ///
    /// # Errors
    /// When the configuration cannot work, or the kernel refuses something; starting again completes what is missing.
    pub async fn start(config: NetworkConfig) -> Result<Arc<Self>, NetworkError> {
        config.validate()?;
        let names = Names::of(&config.name);
        fs::create_dir_all(&config.state_dir).map_err(|err| NetworkError::State {
            action: "create",
            path: config.state_dir.clone(),
            err,
        })?;
        sysctls::ensure(&config.state_dir)?;
        let links = Links::start(&config, &names).await?;
        let addresses = load_addresses(&config, &links).await?;
        let services = Services::start(Box::new(NftTable::open(&config, &names)?)).await?;
        let flows = Flows::open(&config)?;
        Ok(Arc::new(Self { config, names, links, addresses: Mutex::new(addresses), services, flows }))
    }

    /// The anchor's address: the pods' gateway, and where the DNS server for them belongs.
    pub fn gateway(&self) -> Ipv4Addr {
        self.config.gateway()
    }

    /// The name of the link that holds the gateway's address and the cluster's routes.
    pub fn anchor(&self) -> &str {
        &self.names.anchor
    }

    /// Connects the pod: `eth0` in the namespace at `netns`, with an address that stays the pod's until
    /// [`Self::detach_pod`], also across restarts of this program. Safe to repeat; a pod whose namespace was made anew is
    /// connected anew, with the same address.
    ///
    /// # Errors
    /// When the range is used up, the namespace cannot be opened, or the kernel refuses. The address stays the pod's.
    pub async fn attach_pod(&self, uid: &str, netns: &Path) -> Result<Ipv4Addr, NetworkError> {
        let mut addresses = self.addresses.lock().await;
        let known = addresses.of(uid);
        let exhausted =
            NetworkError::AddressesExhausted { cidr: self.config.pod_cidr, used: addresses.in_use() };
        let address = addresses.assign(uid).ok_or(exhausted)?;
        if known.is_none() {
            // Before the link is there: a crash between the two must not give the address to somebody else.
            self.save(&addresses)?;
        }
        self.links.attach(address, netns).await?;
        Ok(address)
    }

    /// Disconnects the pod and frees its address. A pod that is not connected is no error.
    ///
    /// # Errors
    /// When the kernel refuses; the address stays the pod's.
    pub async fn detach_pod(&self, uid: &str) -> Result<(), NetworkError> {
        let mut addresses = self.addresses.lock().await;
        let Some(address) = addresses.of(uid) else {
            return Ok(());
        };
        self.links.detach(address).await?;
        addresses.release(uid);
        self.save(&addresses)
    }

    /// Disconnects every pod that is not listed, and removes links no pod is known for. For the start of the node, when
    /// pods may have gone while nobody looked.
    ///
    /// # Errors
    /// When the kernel refuses; what was done until then stays done.
    pub async fn retain_pods(&self, uids: &[String]) -> Result<(), NetworkError> {
        let wanted: BTreeSet<&str> = uids.iter().map(String::as_str).collect();
        let mut addresses = self.addresses.lock().await;
        for (uid, address) in addresses.others_than(&wanted) {
            self.links.detach(address).await?;
            addresses.release(&uid);
        }
        for address in addresses.orphans() {
            self.links.detach(address).await?;
            addresses.release_orphan(address);
        }
        self.save(&addresses)
    }

    /// Makes these the services of this node, all others none: the difference to what is applied, in one transaction.
    /// Callers gather changes for some ten milliseconds first, since each transaction has a fixed price.
    ///
    /// # Errors
    /// When the kernel refuses. What packets see is then the services before, or (if only the cleaning up failed) these.
    pub async fn apply_services(&self, desired: Vec<ServiceRoute>) -> Result<(), NetworkError> {
        let touched = self.services.apply(&desired).await?;
        self.flows.forget_stale(&touched).await
    }

    /// Removes everything this cluster's network has made on this machine: the rules, the pods' links, the anchor, the
    /// state. Settings we changed are put back unless another cluster is up. Safe to repeat, and needs no running network.
    ///
    /// # Errors
    /// When the kernel refuses; repeating it continues.
    pub async fn destroy(config: &NetworkConfig) -> Result<(), NetworkError> {
        let names = Names::of(&config.name);
        NftTable::open(config, &names)?.remove().await?;
        let others = links::destroy(config, &names).await?;
        sysctls::restore(&config.state_dir, others)?;
        state::remove(&address_file(config))
    }

    fn save(&self, addresses: &Addresses) -> Result<(), NetworkError> {
        state::write(&address_file(&self.config), &addresses.saved())
    }
}

fn address_file(config: &NetworkConfig) -> PathBuf {
    config.state_dir.join("addresses.json")
}

/// What the file remembers, and what the links show. A damaged file (the machine lost power while it was written, and
/// with it every pod) is reported and not obeyed: the links say which addresses are really in use.
async fn load_addresses(config: &NetworkConfig, links: &Links) -> Result<Addresses, NetworkError> {
    let attached = links.attached().await?;
    let saved = match state::read(&address_file(config)) {
        Err(error @ NetworkError::State { action: "parse", .. }) => {
            tracing::warn!(%error, "forgetting which pod has which address");
            None
        }
        read => read?,
    };
    Ok(Addresses::load(config.pod_cidr, saved.unwrap_or_default(), attached))
}
