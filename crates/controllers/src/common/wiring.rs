//! From changes to keys to runs: the same few lines every controller needs.

use std::error::Error;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;

use futures::future::BoxFuture;
use sampan_client::{Change, Changes, Informer, Informers, ObjectKey, Queue, Requeue, run_controller};
use tokio::task::JoinSet;

/// Makes a client that acts as the user of a name, who is in the groups.
pub(crate) type Connect = Box<dyn Fn(&str, &[&str]) -> kube::Client + Send>;

/// What every controller is built from.
pub(crate) struct Parts {
    /// Makes a client that acts as the user it is given the name of.
    pub(crate) connect: Connect,
    pub(crate) informers: Informers,
    /// The tasks of all controllers; dropping them ends the controllers.
    pub(crate) tasks: JoinSet<()>,
}

impl Parts {
    /// A client that acts as the process of all loops.
    pub(crate) fn manager(&self) -> kube::Client {
        (self.connect)("system:kube-controller-manager", &[])
    }

    /// A client that acts as the service account `account` of `kube-system`, which no pod needs to exist for: a loop may do
    /// what the role `system:controller:ACCOUNT` allows, and the audit log says which loop it was. Upstream does the same
    /// with `--use-service-account-credentials`.
    pub(crate) fn client_as(&self, account: &str) -> kube::Client {
        let groups = ["system:serviceaccounts", "system:serviceaccounts:kube-system"];
        (self.connect)(&format!("system:serviceaccount:kube-system:{account}"), &groups)
    }

    /// Calls `wake` for every change.
    pub(crate) fn on_change<K>(
        &mut self,
        mut changes: Changes<K>,
        mut wake: impl FnMut(&Change<K>) + Send + 'static,
    ) where
        K: Send + Sync + 'static,
    {
        self.tasks.spawn(async move {
            while let Some(change) = changes.recv().await {
                wake(&change);
            }
        });
    }

    /// Puts the key of every changed object into the queue.
    pub(crate) fn on_own_change<K>(&mut self, informer: &Informer<K>, queue: &Queue<ObjectKey>)
    where
        K: Send + Sync + 'static,
    {
        let queue = queue.clone();
        self.on_change(informer.subscribe(), move |change| queue.add(change.key.clone()));
    }

    /// Runs a controller once the copies it decides by are complete.
    pub(crate) fn run<K, F, R, E>(
        &mut self,
        name: &'static str,
        workers: usize,
        queue: Queue<K>,
        ready: Vec<BoxFuture<'static, ()>>,
        reconcile: F,
    ) where
        K: Clone + Eq + Hash + Display + Send + Sync + 'static,
        F: Fn(K) -> R + Send + Sync + 'static,
        R: Future<Output = Result<Requeue, E>> + Send + 'static,
        E: Error + Send + 'static,
    {
        self.tasks.spawn(async move {
            for copy in ready {
                copy.await;
            }
            run_controller(name, workers, queue, reconcile).await;
        });
    }
}

/// Completes when the informer's copy is complete.
pub(crate) fn synced<K: Send + Sync + 'static>(informer: &Informer<K>) -> BoxFuture<'static, ()> {
    let informer = informer.clone();
    Box::pin(async move { informer.synced().await })
}
