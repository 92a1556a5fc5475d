//! The node agent: makes the pods of one machine real.
//!
//! Desired state comes from the API (pods bound to this node), actual state from a
//! [`Runtime`](sampan_runtime::cri::Runtime). One worker per pod compares both, decides with the pure function
//! `pods::plan::plan` and lets small operations do the work; events only wake it, so that a restart of the agent at
//! any line is harmless. Around the pods: the Node object and its lease, volumes, probes, the service table for the
//! network, cluster names for DNS, and the node's HTTP interface for logs, exec, attach and port-forward.
//!
//! It does not schedule, does not own any controller's object, and does not know how containers, addresses or
//! images are made.
#![forbid(unsafe_code)]

mod cluster_names;
mod config;
mod context;
mod dns;
mod downward;
mod env;
mod error;
mod events;
mod hosts;
mod images;
mod node_status;
mod pods;
mod probes;
mod resources;
mod security;
mod server;
mod services;
mod sources;
mod time;
mod volumes;

use std::sync::Arc;

use sampan_client::Informers;
use sampan_image::ImageStore;
use sampan_network::Network;
use sampan_runtime::Runtime;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;

pub use cluster_names::InformerNames;
pub use config::NodeConfig;
pub use error::NodeError;

use context::Context;

/// A running node agent. Clones share it; it stops when [`Node::stop`] is called or the last clone is dropped. The
/// pods go on living without it.
#[derive(Clone)]
pub struct Node {
    context: Arc<Context>,
    tasks: Arc<std::sync::Mutex<JoinSet<()>>>,
}

impl Node {
    /// Starts the agent on the current tokio runtime and returns at once; registration with the API goes on in the
    /// background and is repeated until it succeeds.
    ///
    /// # Errors
    /// When the directories of the node cannot be made.
    pub fn start(
        config: NodeConfig,
        client: kube::Client,
        informers: &Informers,
        runtime: Arc<dyn Runtime>,
        images: ImageStore,
        network: Arc<Network>,
    ) -> Result<Self, NodeError> {
        let context = Arc::new(Context::new(config, client, informers, runtime, images, network)?);
        let mut tasks = JoinSet::new();
        tasks.spawn(node_status::run(Arc::clone(&context)));
        tasks.spawn(pods::run(Arc::clone(&context)));
        tasks.spawn(services::run(Arc::clone(&context)));
        Ok(Self { context, tasks: Arc::new(std::sync::Mutex::new(tasks)) })
    }

    /// Serves the node's HTTP interface on one connection until it ends. The caller has authenticated the peer: this
    /// interface gives every right on every pod of the node.
    pub async fn serve<S>(&self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        server::serve(Arc::clone(&self.context), stream).await;
    }

    /// Ends the agent's tasks; pods and containers stay as they are.
    pub async fn stop(&self) {
        let mut tasks = {
            let mut guard = self.tasks.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            std::mem::take(&mut *guard)
        };
        tasks.shutdown().await;
    }
}
