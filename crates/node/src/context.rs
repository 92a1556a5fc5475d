//! What every part of the node shares.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher;
use sampan_client::{Informer, Informers, KeyWatch};
use sampan_image::ImageStore;
use sampan_network::Network;
use sampan_runtime::{Runtime, SandboxId};
use tokio::sync::Semaphore;

use crate::config::NodeConfig;
use crate::error::NodeError;
use crate::events::Events;
use crate::images::Images;
use crate::node_status::Machine;
use crate::volumes;

/// Handles of one node; made once, shared by all its tasks.
pub(crate) struct Context {
    /// Settings.
    pub(crate) config: NodeConfig,
    /// For writes, and for reads that must not be stale.
    pub(crate) client: kube::Client,
    /// The pods bound to this node.
    pub(crate) pods: Informer<Pod>,
    /// Which config maps change. One watch in one process; a remote node that may see only its own pods' needs another source.
    pub(crate) config_maps: KeyWatch,
    /// Which secrets change; see `config_maps`.
    pub(crate) secrets: KeyWatch,
    /// All services, for environment variables and the service table.
    pub(crate) services: Informer<Service>,
    /// All endpoint slices.
    pub(crate) endpoint_slices: Informer<EndpointSlice>,
    /// Where containers live.
    pub(crate) runtime: Arc<dyn Runtime>,
    /// Image store with single-flight pulls.
    pub(crate) images: Images,
    /// Addresses and services.
    pub(crate) network: Arc<Network>,
    /// Event objects.
    pub(crate) events: Events,
    /// What the machine offers.
    pub(crate) machine: Machine,
    /// Whose a sandbox is, for the runtime's events.
    pub(crate) owners: SandboxOwners,
    /// Bounds sandboxes and containers that are made at the same moment: beyond the number of cores more at once only
    /// makes each of them later.
    pub(crate) starts: Semaphore,
}

impl Context {
    pub(crate) fn new(
        config: NodeConfig,
        client: kube::Client,
        informers: &Informers,
        runtime: Arc<dyn Runtime>,
        images: ImageStore,
        network: Arc<Network>,
    ) -> Result<Self, NodeError> {
        volumes::prepare_node(&config)?;
        let machine = Machine::read(&config);
        let own_pods = watcher::Config::default().fields(&format!("spec.nodeName={}", config.name));
        Ok(Self {
            pods: informers.of_with::<Pod>(own_pods),
            config_maps: informers.keys_of::<ConfigMap>(),
            secrets: informers.keys_of::<Secret>(),
            services: informers.of::<Service>(),
            endpoint_slices: informers.of::<EndpointSlice>(),
            images: Images::new(images, config.plain_http_registries.clone()),
            events: Events::new(client.clone(), &config.name),
            starts: Semaphore::new(machine.cores.max(2)),
            owners: SandboxOwners::default(),
            machine,
            client,
            runtime,
            network,
            config,
        })
    }
}

/// Which pod a sandbox belongs to.
#[derive(Default)]
pub(crate) struct SandboxOwners(Mutex<HashMap<SandboxId, String>>);

impl SandboxOwners {
    /// The uid of the sandbox's pod.
    pub(crate) fn of(&self, sandbox: &SandboxId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(sandbox).cloned()
    }

    /// A sandbox was made or found.
    pub(crate) fn add(&self, sandbox: &SandboxId, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(sandbox.clone(), uid.to_string());
    }

    /// A sandbox was removed.
    pub(crate) fn remove(&self, sandbox: &SandboxId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(sandbox);
    }
}
