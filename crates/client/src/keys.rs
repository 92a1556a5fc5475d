//! Which objects of a kind change, without a copy of any.

use std::fmt::Debug;

use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::task::AbortHandle;

use crate::informer::follow;
use crate::key::ObjectKey;
use crate::queue::Queue;

/// Tells the keys of objects that have appeared, changed or gone, each once until it is taken. For whoever needs few objects
/// of many and reads those from the server: a copy of all would cost several times their size.
///
/// After an interrupted watch all objects are told that there are; those that went meanwhile are not.
pub struct KeyWatch {
    queue: Queue<ObjectKey>,
    task: AbortHandle,
}

impl Drop for KeyWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl KeyWatch {
    pub(crate) fn start<K>(api: Api<PartialObjectMeta<K>>) -> Self
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let queue = Queue::new();
        let config = watcher::Config { timeout: Some(0), ..watcher::Config::default() };
        let told = queue.clone();
        let watching = async move {
            follow(api, config, |event| match event {
                Event::InitApply(object) | Event::Apply(object) | Event::Delete(object) => {
                    told.add(ObjectKey::of(&object));
                }
                Event::Init | Event::InitDone => {}
            })
            .await;
            told.close();
        };
        Self { queue, task: tokio::spawn(watching).abort_handle() }
    }

    /// The next key, waiting for one; `None` when the watch has ended. Safe to cancel: a key is taken only when it is
    /// returned.
    pub async fn next(&self) -> Option<ObjectKey> {
        let key = self.queue.next().await?;
        self.queue.done(&key);
        Some(key)
    }
}
