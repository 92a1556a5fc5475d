//! Where a cluster keeps its things.

use std::path::{Path, PathBuf};

use crate::Directories;

/// Every path below the two directories of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    pub(crate) data: PathBuf,
    pub(crate) run: PathBuf,
}

impl Paths {
    pub(crate) fn new(directories: &Directories) -> Self {
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Self { data: absolute(&directories.data_dir), run: absolute(&directories.run_dir) }
    }

    /// Objects.
    pub(crate) fn store(&self) -> PathBuf {
        self.data.join("store")
    }
    /// Keys and certificates.
    pub(crate) fn pki(&self) -> PathBuf {
        self.data.join("pki")
    }
    /// Images.
    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }
    /// Containers: records and writable layers.
    pub(crate) fn containers(&self) -> PathBuf {
        self.data.join("containers")
    }
    /// Pods: volumes and logs.
    pub(crate) fn node(&self) -> PathBuf {
        self.data.join("node")
    }
    /// Addresses of pods.
    pub(crate) fn network(&self) -> PathBuf {
        self.data.join("network")
    }
    /// What was decided once for this cluster.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.data.join("cluster.json")
    }
    /// The administrator's way in.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.data.join("kubeconfig")
    }
    /// Sockets of supervisors.
    pub(crate) fn runtime(&self) -> PathBuf {
        self.run.join("runtime")
    }
    /// Volumes in memory.
    pub(crate) fn node_run(&self) -> PathBuf {
        self.run.join("node")
    }
    /// Held locked by the running platform; holds its process id.
    pub(crate) fn pid(&self) -> PathBuf {
        self.run.join("sampan.pid")
    }
}
