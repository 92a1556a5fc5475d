//! What is decided once for a cluster and then stays: its name on this machine, its address ranges, the node's name.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::Duration;

use sampan_network::{Ipv4Cidr, NetworkConfig};
use serde::{Deserialize, Serialize};

use crate::paths::Paths;
use crate::{Failure, UpArgs};

/// Suffix of all names in the cluster.
pub(crate) const DOMAIN: &str = "cluster.local";
/// The directory whose cluster bears no suffix.
const DEFAULT_DATA: &str = "/var/lib/sampan";

/// A cluster's identity on this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Cluster {
    /// Part of the names of links, tables and cgroups.
    pub(crate) name: String,
    pub(crate) node_name: String,
    pub(crate) pod_cidr: Ipv4Cidr,
    pub(crate) service_cidr: Ipv4Cidr,
}

/// Held from the search for free ranges until the network has links in them, so that two clusters that start on one machine
/// in the same moment do not find the same ranges free.
///
/// A name in the abstract namespace of sockets is a lock with just the scope that ranges have, the network namespace, and
/// it goes with its process. Anybody may hold that name: after [`Deciding::PATIENCE`] the start goes on without.
pub(crate) struct Deciding {
    _name: Option<UnixListener>,
}

impl Deciding {
    const NAME: &str = "sampan/deciding-ranges";
    const PATIENCE: Duration = Duration::from_secs(5);
    const LOOK_AGAIN: Duration = Duration::from_millis(10);

    /// Waits for its turn.
    pub(crate) async fn begin() -> Result<Self, Failure> {
        Self::begin_as(Self::NAME).await
    }

    async fn begin_as(name: &str) -> Result<Self, Failure> {
        let address = SocketAddr::from_abstract_name(name)?;
        let taken = async {
            loop {
                match UnixListener::bind_addr(&address) {
                    Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => {
                        tokio::time::sleep(Self::LOOK_AGAIN).await;
                    }
                    result => return result,
                }
            }
        };
        let taken = match tokio::time::timeout(Self::PATIENCE, taken).await {
            Ok(result) => result.map_err(|e| e.to_string()),
            Err(_) => Err("somebody else has been deciding for long".to_owned()),
        };
        if let Err(why) = &taken {
            tracing::warn!(why, "ranges of addresses are decided without a lock");
        }
        Ok(Self { _name: taken.ok() })
    }
}

impl Cluster {
    /// What was decided before.
    pub(crate) fn load(paths: &Paths) -> Result<Option<Self>, Failure> {
        let path = paths.cluster();
        match std::fs::read(&path) {
            Ok(text) => {
                let cluster = serde_json::from_slice(&text);
                Ok(Some(cluster.map_err(|e| format!("{} is damaged: {e}", path.display()))?))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(format!("cannot read {}: {e}", path.display()).into()),
        }
    }

    /// Decides what has not been decided yet. Ranges cannot be changed later: addresses in them are in use.
    pub(crate) async fn decide(paths: &Paths, args: &UpArgs) -> Result<Self, Failure> {
        let asked = match (&args.pod_cidr, &args.service_cidr) {
            (Some(pods), Some(services)) => Some((parse_range(pods)?, parse_range(services)?)),
            _ => None,
        };
        if let Some(mut known) = Self::load(paths)? {
            if asked.is_some_and(|ranges| ranges != (known.pod_cidr, known.service_cidr)) {
                return Err(format!(
                    "this cluster has the ranges {} and {}, which cannot be changed",
                    known.pod_cidr, known.service_cidr
                )
                .into());
            }
            if let Some(name) = args.node_name.as_ref().filter(|name| **name != known.node_name) {
                known.node_name.clone_from(name);
                known.save(paths)?;
            }
            return Ok(known);
        }
        let name = name_of(&paths.data);
        let (pod_cidr, service_cidr) = match asked {
            Some(ranges) => ranges,
            None => sampan_network::free_cidrs(&name).await?,
        };
        let node_name = args.node_name.clone().unwrap_or_else(host_name);
        let cluster = Self { name, node_name, pod_cidr, service_cidr };
        cluster.save(paths)?;
        Ok(cluster)
    }

    fn save(&self, paths: &Paths) -> Result<(), Failure> {
        let text = serde_json::to_vec_pretty(self)?;
        let path = paths.cluster();
        sampan_apiserver::write_private(&path, &text)
            .map_err(|e| format!("cannot write {}: {e}", path.display()).into())
    }

    /// Cgroup below which all pods of the cluster are.
    pub(crate) fn cgroup(&self) -> String {
        if self.name == "sampan" { "sampan".to_owned() } else { format!("sampan-{}", self.name) }
    }

    pub(crate) fn network(&self, paths: &Paths, node_address: std::net::Ipv4Addr) -> NetworkConfig {
        NetworkConfig {
            name: self.name.clone(),
            pod_cidr: self.pod_cidr,
            service_cidr: self.service_cidr,
            node_address,
            state_dir: paths.network(),
            cluster_domain: DOMAIN.to_owned(),
        }
    }
}

fn parse_range(text: &str) -> Result<Ipv4Cidr, Failure> {
    text.parse().map_err(|e| format!("{text} is no range of addresses: {e}").into())
}

/// The default directory's cluster is called `sampan`; any other is called by a hash of its directory.
fn name_of(data: &Path) -> String {
    if data == Path::new(DEFAULT_DATA) {
        return "sampan".to_owned();
    }
    // FNV-1a: the same directory has the same name on every machine and in every version.
    let hash = data.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{:08x}", hash >> 32)
}

/// The machine's name as a node name: lower case, DNS characters only.
fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().to_lowercase();
    let name: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let name = name.trim_matches(['-', '.']);
    if name.is_empty() { "node".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_stable_and_distinct() {
        assert_eq!(name_of(Path::new(DEFAULT_DATA)), "sampan");
        assert_ne!(name_of(Path::new("/a")), name_of(Path::new("/b")));
        assert_eq!(name_of(Path::new("/a")).len(), 8);
    }

    #[tokio::test]
    async fn one_decides_after_the_other() {
        let name = format!("sampan/test-{}", std::process::id());
        let first = Deciding::begin_as(&name).await.expect("a turn");
        assert!(first._name.is_some());
        let mut second = std::pin::pin!(Deciding::begin_as(&name));
        let early = tokio::time::timeout(Duration::from_millis(100), &mut second).await;
        assert!(early.is_err(), "the second waits");
        drop(first);
        assert!(second.await.expect("a turn")._name.is_some());
    }
}
