//! From changes to keys to runs: the same few lines every controller needs.

use std::error::Error;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;

use futures::future::BoxFuture;
use sampan_client::{Change, Changes, Informer, Informers, ObjectKey, Queue, Requeue, run_controller};
use tokio::task::JoinSet;

/// What every controller is built from.
pub(crate) struct Parts {
    pub(crate) client: kube::Client,
    pub(crate) informers: Informers,
    /// The tasks of all controllers; dropping them ends the controllers.
    pub(crate) tasks: JoinSet<()>,
}

impl Parts {
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
