//! Our own runtime, the agent's half: keeps records, makes cgroups, and asks the pod's supervisor for the rest.
//!
//! Truth is on disk and in the supervisors; what this half has in memory is an index that [`NativeRuntime::open`]
//! builds again at any time. It may be dropped or killed at any line: pods go on, and the next one finds them.

mod adopt;
mod containers;
mod destroy;
mod executable;
mod link;
mod nursery;
mod pod;
mod sandboxes;
mod streams;

use std::any::Any;
use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

use crate::cgroup::Cgroups;
use crate::cri::{
    ContainerConfig, ContainerId, ContainerStats, ContainerStatus, ExecSyncResult, LinuxResources,
    PodSandbox, PodSandboxConfig, Reader, Runtime, RuntimeError, RuntimeEvent, SandboxId, StreamOptions,
    Streams, Writer,
};
use crate::failure::Failure;
pub use destroy::destroy_all;
use nursery::Nursery;
use pod::Pod;

/// Events kept for a slow receiver; a receiver that lags further lists everything.
const EVENT_CAPACITY: usize = 1024;

/// Where root file systems come from.
pub trait RootfsSource: Send + Sync + 'static {
    /// Directories of the image's layers, topmost first, as overlayfs wants its lower directories.
    ///
    /// # Errors
    /// When the image is not in the store.
    fn layer_dirs(&self, image_id: &str) -> Result<Vec<PathBuf>, Box<dyn std::error::Error + Send + Sync>>;

    /// Keeps the image from being removed as long as what is returned lives; every container holds one.
    ///
    /// # Errors
    /// When the image is not in the store.
    fn pin(&self, image_id: &str) -> Result<ImagePin, Box<dyn std::error::Error + Send + Sync>>;
}

/// Keeps an image as long as it lives.
pub type ImagePin = Box<dyn Any + Send + Sync>;

impl RootfsSource for sampan_image::ImageStore {
    fn layer_dirs(&self, image_id: &str) -> Result<Vec<PathBuf>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(sampan_image::ImageStore::layer_dirs(self, image_id)?)
    }

    fn pin(&self, image_id: &str) -> Result<ImagePin, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Box::new(sampan_image::ImageStore::pin(self, image_id)?))
    }
}

/// Where a runtime keeps its things. Two runtimes with different values live side by side.
#[derive(Clone)]
pub struct NativeConfig {
    /// Records and writable layers; on a file system that overlayfs accepts as upper layer.
    pub data_dir: PathBuf,
    /// Sockets; better on a tmpfs.
    pub run_dir: PathBuf,
    /// Cgroup below which all pods are, for example `sampan`; below the root of every hierarchy.
    pub cgroup_root: String,
    /// The images.
    pub images: Arc<dyn RootfsSource>,
    /// Binary to run as supervisor instead of this process's own; its `main` calls [`crate::supervisor_main`].
    pub supervisor_binary: Option<PathBuf>,
}

impl NativeConfig {
    /// The usual configuration, with this process's own binary as supervisor.
    pub fn new(
        data_dir: impl Into<PathBuf>,
        run_dir: impl Into<PathBuf>,
        cgroup_root: impl Into<String>,
        images: impl RootfsSource,
    ) -> Self {
        Self {
            data_dir: data_dir.into(),
            run_dir: run_dir.into(),
            cgroup_root: cgroup_root.into(),
            images: Arc::new(images),
            supervisor_binary: None,
        }
    }
}

/// Containers made directly with the kernel's means.
pub struct NativeRuntime {
    config: NativeConfig,
    cgroups: Cgroups,
    nursery: tokio::sync::Mutex<Option<Nursery>>,
    pods: RwLock<HashMap<SandboxId, Arc<Pod>>>,
    events: broadcast::Sender<RuntimeEvent>,
}

impl NativeRuntime {
    /// Opens the runtime and finds every pod again that lives; what died meanwhile is cleaned up. Must be called
    /// inside a tokio runtime.
    ///
    /// # Errors
    /// When a directory cannot be made or the machine has no cgroups.
    pub fn open(config: NativeConfig) -> Result<Arc<Self>, RuntimeError> {
        let cgroups = Cgroups::detect().map_err(system)?;
        adopt::prepare_directories(&config)?;
        adopt::raise_file_limit();
        let runtime = Arc::new(Self {
            config,
            cgroups,
            nursery: tokio::sync::Mutex::new(None),
            pods: RwLock::new(HashMap::new()),
            events: broadcast::Sender::new(EVENT_CAPACITY),
        });
        runtime.adopt_all()?;
        Ok(runtime)
    }

    fn pod(&self, id: &SandboxId) -> Result<Arc<Pod>, RuntimeError> {
        self.read_pods().get(id).cloned().ok_or_else(|| RuntimeError::NotFound(format!("sandbox {}", id.0)))
    }

    /// The pod a container belongs to.
    fn owner(&self, id: &ContainerId) -> Result<Arc<Pod>, RuntimeError> {
        self.read_pods()
            .values()
            .find(|pod| pod.has_container(id))
            .cloned()
            .ok_or_else(|| RuntimeError::NotFound(format!("container {}", id.0)))
    }

    fn read_pods(&self) -> std::sync::RwLockReadGuard<'_, HashMap<SandboxId, Arc<Pod>>> {
        // A panic elsewhere leaves the map whole: it is only ever changed by single operations.
        self.pods.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write_pods(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<SandboxId, Arc<Pod>>> {
        self.pods.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A failure of the system as the interface reports it.
fn system(failure: Failure) -> RuntimeError {
    if failure.not_found {
        return RuntimeError::NotFound(failure.message);
    }
    let context = "the container runtime could not do what was asked".to_owned();
    RuntimeError::System { context, source: std::io::Error::other(failure) }
}

/// Runs file system work outside of the asynchronous threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Failure::new(format!("background work failed: {error}"))),
    }
}

#[async_trait]
impl Runtime for NativeRuntime {
    async fn run_pod_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        self.make_sandbox(config).await
    }

    async fn stop_pod_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        match self.pod(id) {
            Ok(pod) => self.stop_sandbox(&pod).await,
            Err(RuntimeError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove_pod_sandbox(&self, id: &SandboxId) -> Result<(), RuntimeError> {
        match self.pod(id) {
            Ok(pod) => self.remove_sandbox(&pod).await,
            Err(RuntimeError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list_pod_sandboxes(&self) -> Result<Vec<PodSandbox>, RuntimeError> {
        Ok(self.read_pods().values().map(|pod| pod.status()).collect())
    }

    async fn create_container(
        &self,
        sandbox: &SandboxId,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        self.make_container(&self.pod(sandbox)?, config).await
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.start(&self.owner(id)?, id).await
    }

    async fn stop_container(&self, id: &ContainerId, grace: Duration) -> Result<(), RuntimeError> {
        match self.owner(id) {
            Ok(pod) => self.stop(&pod, id, grace).await,
            Err(RuntimeError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        match self.owner(id) {
            Ok(pod) => self.remove(&pod, id).await,
            Err(RuntimeError::NotFound(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn list_containers(
        &self,
        sandbox: Option<&SandboxId>,
    ) -> Result<Vec<ContainerStatus>, RuntimeError> {
        let pods: Vec<Arc<Pod>> = match sandbox {
            Some(id) => vec![self.pod(id)?],
            None => self.read_pods().values().cloned().collect(),
        };
        pods.iter().flat_map(|pod| pod.statuses()).collect::<Result<_, _>>().map_err(system)
    }

    async fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, RuntimeError> {
        self.owner(id)?.container_status(id).map_err(system)
    }

    async fn update_container_resources(
        &self,
        id: &ContainerId,
        resources: LinuxResources,
    ) -> Result<(), RuntimeError> {
        self.update(&self.owner(id)?, id, resources)
    }

    async fn container_stats(&self, id: &ContainerId) -> Result<ContainerStats, RuntimeError> {
        let record = self.owner(id)?.container(id).map_err(system)?;
        let (cpu_usage_ns, memory_usage, memory_working_set) =
            self.cgroups.usage(&record.cgroup).map_err(system)?;
        Ok(ContainerStats { timestamp: crate::record::now(), cpu_usage_ns, memory_usage, memory_working_set })
    }

    async fn reopen_container_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.reopen_log(&self.owner(id)?, id).await
    }

    async fn exec_sync(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecSyncResult, RuntimeError> {
        streams::exec_sync(&self.owner(id)?, id, command, timeout).await
    }

    async fn exec(
        &self,
        id: &ContainerId,
        command: Vec<String>,
        options: StreamOptions,
    ) -> Result<Streams, RuntimeError> {
        streams::exec(&self.owner(id)?, id, command, options).await
    }

    async fn attach(&self, id: &ContainerId, options: StreamOptions) -> Result<Streams, RuntimeError> {
        streams::attach(&self.owner(id)?, id, options).await
    }

    async fn port_forward(&self, id: &SandboxId, port: u16) -> Result<(Reader, Writer), RuntimeError> {
        streams::port_forward(&self.pod(id)?, port).await
    }

    fn events(&self) -> broadcast::Receiver<RuntimeEvent> {
        self.events.subscribe()
    }

    async fn set_pod_addresses(&self, id: &SandboxId, addresses: Vec<IpAddr>) -> Result<(), RuntimeError> {
        self.pod(id)?.set_addresses(&addresses).map_err(system)
    }

    async fn pod_addresses(&self, id: &SandboxId) -> Result<Vec<IpAddr>, RuntimeError> {
        self.pod(id)?.addresses().map_err(system)
    }
}
