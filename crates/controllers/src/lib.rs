//! The control loops of the cluster: each looks at what is written and at what is, and moves the world
//! one step nearer.
//!
//! Every loop is a client of the API and of nothing else. Deciding is pure (`plan`), doing is small, and
//! the neighbours never meet but in the objects they write. Which node a pod goes to is the scheduler's
//! business, what happens on a node is the node's.
#![forbid(unsafe_code)]

mod catalog;
mod cluster_role_aggregation;
mod common;
mod deployment;
mod endpoint_slice;
mod garbage;
mod namespace;
mod namespace_defaults;
mod node_lifecycle;
mod pod_collector;
mod replica_set;
mod resource_quota;
mod storage_protection;
mod taint_eviction;
mod token_cleaner;

use sampan_client::Informers;
use tokio::task::JoinSet;

use catalog::Catalog;
use common::wiring::Parts;

/// What the controllers need to know about the cluster.
#[derive(Clone, Debug)]
pub struct Config {
    /// The certificate of the cluster's authority, PEM, as pods get it to trust the API server.
    pub ca_pem: String,
}

/// The running controllers. Dropping it cuts them off, which is harmless at any point.
pub struct Controllers {
    tasks: JoinSet<()>,
}

impl Controllers {
    /// Ends the controllers and waits until none of their tasks runs any more.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Starts all controllers. Must be called inside a tokio runtime; returns at once, and the controllers
/// begin to act when the server answers.
///
/// `connect` makes a client that acts as a user of a name and groups. Each loop acts as a service account of its own, with
/// the rights of the role that is named after it; the copies in `informers` are shared and must show objects of every kind.
pub fn start(
    connect: impl Fn(&str, &[&str]) -> kube::Client + Send + 'static,
    informers: Informers,
    config: Config,
) -> Controllers {
    let mut parts = Parts { connect: Box::new(connect), informers, tasks: JoinSet::new() };
    let catalog = Catalog::start(&mut parts);
    replica_set::start(&mut parts);
    deployment::start(&mut parts);
    endpoint_slice::start(&mut parts);
    namespace_defaults::start(&mut parts, config.ca_pem);
    pod_collector::start(&mut parts);
    cluster_role_aggregation::start(&mut parts);
    node_lifecycle::start(&mut parts);
    taint_eviction::start(&mut parts);
    storage_protection::start(&mut parts);
    token_cleaner::start(&mut parts);
    let namespace_gone = namespace::start(&mut parts, &catalog);
    let quota_gone = resource_quota::start(&mut parts, &catalog);
    garbage::start(&mut parts, &catalog, move |namespace| {
        namespace_gone(namespace);
        quota_gone(namespace);
    });
    Controllers { tasks: parts.tasks }
}
