//! A local, always current copy of the objects of one kind.
//!
//! The copy is fed by one watch. Readers take shared pointers out of a sorted map; subscribers get
//! changes through a mailbox each (see `mailbox`). When the watch has to begin anew, the objects the
//! server no longer lists are deleted here, so that nobody waits for a deletion that was missed.
//!
//! ```text
//!   start ──list──> present ──bookmark/end of list──> synced ──events──> synced
//!                      ^                                 │ error: back-off, resume
//!                      └── 410 Gone: list again ─────────┘
//! ```

use std::collections::{BTreeMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::key::ObjectKey;
use crate::mailbox::{Change, Changes, Mailbox};

/// The first pause after a failed list or watch. Short, because in one process a failure at start
/// means that the server is a few milliseconds from being ready.
const RETRY_FIRST: Duration = Duration::from_millis(20);
/// The longest pause between attempts to reach the server.
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// A shared, read-only view of all objects of one kind that a watch selects. Clones are cheap and
/// look at the same copy; the watch ends with the last clone and the last subscription.
pub struct Informer<K>(Arc<Watch<K>>);

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

/// The task that feeds a cache; dropping it ends the watch.
pub(crate) struct Watch<K> {
    cache: Arc<Cache<K>>,
    task: AbortHandle,
}

impl<K> Drop for Watch<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Cache<K> {
    state: Mutex<State<K>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<ObjectKey, Arc<K>>,
    subscribers: Vec<Weak<Mailbox<K>>>,
    /// While the server lists everything: what it has listed so far.
    listed: Option<HashSet<ObjectKey>>,
}

impl<K> Informer<K>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    /// Starts a watch of its own over `api`. Use [`crate::Informers`] for kinds known at compile time,
    /// so that they are shared.
    ///
    /// `config.timeout` should stay unset: it becomes 0, which means that neither side ends a quiet
    /// watch by the clock. A dead connection is for the transport to notice.
    pub fn start(api: Api<K>, config: watcher::Config) -> Self {
        Self::start_trimmed(api, config, |_| {})
    }

    /// Like [`Informer::start`], and drops what the readers of this informer do not need from every
    /// object before it is kept. The fields' managers are dropped always: they are half of a small
    /// object's size and only the server has a use for them.
    pub fn start_trimmed(api: Api<K>, mut config: watcher::Config, trim: fn(&mut K)) -> Self {
        config.timeout = config.timeout.or(Some(0));
        let cache = Arc::new(Cache {
            state: Mutex::new(State { objects: BTreeMap::new(), subscribers: Vec::new(), listed: None }),
            synced: watch::Sender::new(false),
        });
        let task = tokio::spawn(feed(Feeding(Arc::clone(&cache)), api, config, trim)).abort_handle();
        Self(Arc::new(Watch { cache, task }))
    }
}

impl<K> Informer<K> {
    /// The object with this name, if the copy has it. `namespace` is empty for cluster-scoped kinds.
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.by_key(&ObjectKey::new(namespace, name))
    }

    /// The object with this key, if the copy has it.
    pub fn by_key(&self, key: &ObjectKey) -> Option<Arc<K>> {
        self.0.cache.state().objects.get(key).cloned()
    }

    /// All objects, sorted by namespace and name.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.0.cache.state().objects.values().cloned().collect()
    }

    /// All objects of one namespace, sorted by name.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<K>> {
        self.0
            .cache
            .state()
            .objects
            .range(ObjectKey::new(namespace, "")..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| Arc::clone(object))
            .collect()
    }

    /// Waits until the copy has been complete once.
    pub async fn synced(&self) {
        // The sender lives in the cache this informer holds, so the wait can only end by success.
        let _ = self.0.cache.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Whether the copy has been complete once.
    pub fn has_synced(&self) -> bool {
        *self.0.cache.synced.borrow()
    }

    /// A subscription of its own: first the present objects as changes from `None`, then what happens.
    pub fn subscribe(&self) -> Changes<K> {
        let mailbox = Arc::new(Mailbox::new());
        let mut state = self.0.cache.state();
        for (key, object) in &state.objects {
            mailbox.deliver(Change { key: key.clone(), old: None, new: Some(Arc::clone(object)) });
        }
        if self.0.task.is_finished() {
            mailbox.close();
        }
        state.subscribers.push(Arc::downgrade(&mailbox));
        drop(state);
        Changes::new(mailbox, Arc::clone(&self.0))
    }
}

impl<K> Cache<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Resource> Cache<K> {
    fn absorb(&self, event: watcher::Event<K>) {
        let mut state = self.state();
        match event {
            watcher::Event::Init => state.listed = Some(HashSet::new()),
            watcher::Event::InitApply(object) => {
                let key = ObjectKey::of(&object);
                if let Some(listed) = &mut state.listed {
                    listed.insert(key.clone());
                }
                state.apply(key, object);
            }
            watcher::Event::InitDone => {
                state.delete_unlisted();
                drop(state);
                self.synced.send_replace(true);
            }
            watcher::Event::Apply(object) => state.apply(ObjectKey::of(&object), object),
            watcher::Event::Delete(object) => state.delete(&ObjectKey::of(&object)),
        }
    }
}

impl<K: Resource> State<K> {
    fn apply(&mut self, key: ObjectKey, object: K) {
        let old = self.objects.get(&key).cloned();
        if let Some(old) = &old
            && is_same_version(old.as_ref(), &object)
        {
            return;
        }
        let new = Arc::new(object);
        self.objects.insert(key.clone(), Arc::clone(&new));
        self.publish(Change { key, old, new: Some(new) });
    }

    fn delete(&mut self, key: &ObjectKey) {
        if let Some(old) = self.objects.remove(key) {
            self.publish(Change { key: key.clone(), old: Some(old), new: None });
        }
    }

    fn delete_unlisted(&mut self) {
        let Some(listed) = self.listed.take() else { return };
        let vanished: Vec<ObjectKey> =
            self.objects.keys().filter(|key| !listed.contains(*key)).cloned().collect();
        for key in vanished {
            self.delete(&key);
        }
    }

    fn publish(&mut self, change: Change<K>) {
        self.subscribers.retain(|subscriber| match subscriber.upgrade() {
            Some(mailbox) => {
                mailbox.deliver(change.clone());
                true
            }
            None => false,
        });
    }
}

/// Listing again brings mostly what is known; only a change of the revision is news.
fn is_same_version<K: Resource>(old: &K, new: &K) -> bool {
    let (old, new) = (old.meta(), new.meta());
    old.uid == new.uid && old.resource_version.is_some() && old.resource_version == new.resource_version
}

/// The feeding task's hold on the cache: tells the subscribers when the task ends for any reason.
struct Feeding<K>(Arc<Cache<K>>);

impl<K> Drop for Feeding<K> {
    fn drop(&mut self) {
        for mailbox in self.0.state().subscribers.iter().filter_map(Weak::upgrade) {
            mailbox.close();
        }
    }
}

async fn feed<K>(feeding: Feeding<K>, api: Api<K>, config: watcher::Config, trim: fn(&mut K))
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    follow(api, config, |event| {
        feeding.0.absorb(event.modify(|object| {
            object.meta_mut().managed_fields = None;
            trim(object);
        }));
    })
    .await;
}

/// Hands on the events of a watch, which begins anew after a pause when it is interrupted.
pub(crate) async fn follow<K>(api: Api<K>, config: watcher::Config, mut absorb: impl FnMut(watcher::Event<K>))
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let url = api.resource_url().to_string();
    let mut events = std::pin::pin!(watcher(api, config));
    let mut pause = RETRY_FIRST;
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                pause = RETRY_FIRST;
                absorb(event);
            }
            Err(error) => {
                tracing::debug!(url, %error, "watch interrupted");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_LONGEST);
            }
        }
    }
}

#[cfg(test)]
mod tests;
