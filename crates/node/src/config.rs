//! What the node needs to know about itself and its machine.

use std::net::Ipv4Addr;
use std::path::PathBuf;

/// Settings of one node.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// `metadata.name` of the Node object; also the value of `spec.nodeName` this node obeys.
    pub name: String,
    /// `status.nodeInfo.kubeletVersion`, for instance `v1.36.0+sampan`.
    pub version: String,
    /// `InternalIP` of the node and `hostIP` of its pods.
    pub address: Ipv4Addr,
    /// Lasting state: pod directories, volumes on disk, logs.
    pub data_dir: PathBuf,
    /// State that ends with the machine's uptime: secrets in memory.
    pub run_dir: PathBuf,
    /// Suffix of cluster names, `cluster.local` by default.
    pub cluster_domain: String,
    /// `status.capacity.pods`.
    pub max_pods: u32,
    /// Port published as `daemonEndpoints.kubeletEndpoint`; 0 when the node is only reached inside the process.
    pub port: u16,
    /// Host names (with port) of registries that are spoken to without TLS.
    pub plain_http_registries: Vec<String>,
    /// Rotate a container's log at this many bytes.
    pub log_max_bytes: u64,
    /// Log files kept for a container, the live one included.
    pub log_max_files: u32,
}

impl NodeConfig {
    /// A node with the defaults of the kubelet where it has any.
    pub fn new(
        name: impl Into<String>,
        address: Ipv4Addr,
        data_dir: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
    ) -> Self {
        Self {
            name: name.into(),
            version: format!("v{}", env!("CARGO_PKG_VERSION")),
            address,
            data_dir: data_dir.into(),
            run_dir: run_dir.into(),
            cluster_domain: "cluster.local".to_string(),
            // The kubelet's 110 is a limit of its own machinery; what a pod costs here allows more, and a /24 of
            // addresses is used up at 250.
            max_pods: 250,
            port: 0,
            plain_http_registries: Vec::new(),
            log_max_bytes: 10 * 1024 * 1024,
            log_max_files: 5,
        }
    }

    /// Where the directories of pods are.
    pub(crate) fn pods_dir(&self) -> PathBuf {
        self.data_dir.join("pods")
    }

    /// Directory of one pod: volumes, generated files, termination messages.
    pub(crate) fn pod_dir(&self, uid: &str) -> PathBuf {
        self.pods_dir().join(uid)
    }

    /// Directory of one pod's secrets; lies on a tmpfs.
    pub(crate) fn pod_memory_dir(&self, uid: &str) -> PathBuf {
        self.memory_dir().join(uid)
    }

    /// The tmpfs that holds all secrets.
    pub(crate) fn memory_dir(&self) -> PathBuf {
        self.run_dir.join("volumes")
    }

    /// Directory of one pod's logs, named as the kubelet names it below `/var/log/pods`.
    pub(crate) fn log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.data_dir.join("logs").join(format!("{namespace}_{name}_{uid}"))
    }
}
