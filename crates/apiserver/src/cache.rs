//! The watch cache: every object's bytes in memory by resource, and the latest events for those who watch.
//!
//! One task follows the store and is the only writer. Readers take a resource's lock for as long as it takes to clone
//! some reference counts. A watcher holds a revision, its cursor into the resource's ring of events, and at most one
//! piece of joined lines that its connection has not taken yet ([`joined::MAX`]). A watcher that falls behind the ring is
//! told so (410 Gone) and lists again, so that slow clients cost no memory beyond that. Watchers hear of a change at
//! once, unless there are hundreds of them ([`pace`]).
//!
//! Objects are never parsed for reading. Labels and selectable fields are taken out of the bytes when the first selector
//! asks for them and kept beside the bytes.

pub(crate) mod joined;
mod pace;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use bytes::{BufMut, Bytes, BytesMut};
use sampan_store::{Event, KeyValue, Range, Revision, Store, StoreError};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::encode;
use crate::versions::StoredObject;
use joined::{Joined, Lines, Wish};
use pace::{Pace, Turn};

/// Events kept per resource: enough for a client that reconnects within seconds of a burst of pods.
const RING_EVENTS: usize = 8192;
/// Bytes of events kept per resource. They are mostly shared with the store's own history.
const RING_BYTES: usize = 16 << 20;

/// An object as of one revision.
pub(crate) struct Item {
    pub(crate) key: Arc<str>,
    pub(crate) bytes: Bytes,
    /// Revision of the object's last change.
    pub(crate) revision: u64,
    parsed: OnceLock<Attributes>,
}

/// What selectors look at.
struct Attributes {
    labels: BTreeMap<String, String>,
    /// The whole document, kept only while a field selector may need it.
    document: Value,
}

impl Item {
    fn new(kv: &KeyValue) -> Self {
        Self {
            key: kv.key.clone(),
            bytes: kv.value.clone(),
            revision: kv.mod_revision.0,
            parsed: OnceLock::new(),
        }
    }

    fn attributes(&self) -> &Attributes {
        self.parsed.get_or_init(|| {
            let mut document: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
            let labels = document["metadata"]["labels"].take();
            let labels = labels
                .as_object()
                .into_iter()
                .flatten()
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect();
            slim(&mut document);
            Attributes { labels, document }
        })
    }

    /// Labels of the object.
    pub(crate) fn labels(&self) -> &BTreeMap<String, String> {
        &self.attributes().labels
    }

    /// The value at a JSON pointer as a field selector sees it.
    pub(crate) fn field(&self, pointer: &str) -> String {
        // Most selectors of fields name an object, and the key tells that: nothing has to be read and kept for them.
        if let Some(part) = named_by_key(&self.key, pointer) {
            return part.to_owned();
        }
        if pointer.matches('/').count() > KEPT_DEPTH {
            // Selectable fields of custom resources may lie deeper than what is kept.
            let document: Value = serde_json::from_slice(&self.bytes).unwrap_or_default();
            return selectable(document.pointer(pointer));
        }
        selectable(self.attributes().document.pointer(pointer))
    }

    /// The object as a reader of some version sees it.
    pub(crate) fn stored(&self) -> StoredObject<'_> {
        StoredObject { bytes: &self.bytes, revision: self.revision }
    }
}

/// Name or namespace of the object at a key: `/RESOURCE/NAMESPACE/NAME`, or `/RESOURCE/NAME`.
fn named_by_key<'a>(key: &'a str, pointer: &str) -> Option<&'a str> {
    let (_, rest) = key.strip_prefix('/')?.split_once('/')?;
    let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
    match pointer {
        "/metadata/name" => Some(name),
        "/metadata/namespace" => Some(namespace),
        _ => None,
    }
}

/// A value as a field selector sees it.
pub(crate) fn selectable(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => String::new(),
        Some(other) => other.to_string(),
    }
}

/// Levels of a document that are kept for field selectors.
const KEPT_DEPTH: usize = 2;

/// Leaves only what a field selector can name: scalars up to the second level.
fn slim(document: &mut Value) {
    let Some(object) = document.as_object_mut() else { return };
    for (_, part) in object.iter_mut() {
        if let Some(fields) = part.as_object_mut() {
            fields.retain(|_, value| !value.is_array() && !value.is_object());
        }
    }
    // No selector names the content of config maps and secrets.
    object.retain(|key, part| {
        !part.is_array() && !["data", "stringData", "binaryData"].contains(&key.as_str())
    });
}

/// A change of one object.
pub(crate) struct CachedEvent {
    pub(crate) revision: u64,
    /// The object after the change; for a delete its last state with the delete's revision in it.
    pub(crate) item: Arc<Item>,
    pub(crate) previous: Option<Arc<Item>>,
    pub(crate) deleted: bool,
    frame: Mutex<Option<Bytes>>,
    wire_frame: Mutex<Option<Bytes>>,
}

/// Frames are kept with this many of the newest events; a watcher that is further behind has its own made.
const KEPT_FRAMES: usize = 256;

impl CachedEvent {
    /// Type of the event for a watcher without selectors.
    pub(crate) fn plain_type(&self) -> &'static str {
        match (self.deleted, &self.previous) {
            (true, _) => "DELETED",
            (false, None) => "ADDED",
            (false, Some(_)) => "MODIFIED",
        }
    }

    /// The line a watcher without selectors gets, made once for all of them.
    pub(crate) fn plain_frame(&self) -> Bytes {
        made_once(&self.frame, || frame(self.plain_type(), &self.item.bytes))
    }

    /// The same in protobuf, made by the first watcher that wants it.
    pub(crate) fn plain_wire_frame(&self, make: impl FnOnce(&str, &[u8]) -> Bytes) -> Bytes {
        made_once(&self.wire_frame, || make(self.plain_type(), &self.item.bytes))
    }

    fn forget_frames(&self) {
        for frame in [&self.frame, &self.wire_frame] {
            *frame.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

fn made_once(frame: &Mutex<Option<Bytes>>, make: impl FnOnce() -> Bytes) -> Bytes {
    frame.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(make).clone()
}

/// One line of a watch stream.
pub(crate) fn frame(event_type: &str, object: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(object.len() + event_type.len() + 24);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(event_type.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
    out.freeze()
}

#[derive(Default)]
struct State {
    items: BTreeMap<Arc<str>, Arc<Item>>,
    events: VecDeque<Arc<CachedEvent>>,
    event_bytes: usize,
    /// Events up to this revision are no longer in the ring.
    forgotten: u64,
    /// Revision of the last change.
    revision: u64,
}

impl State {
    fn list(&self, prefix: &str) -> Vec<Arc<Item>> {
        let from: Arc<str> = prefix.into();
        self.items
            .range(from..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(_, item)| item.clone())
            .collect()
    }

    fn push(&mut self, event: CachedEvent) {
        self.revision = event.revision;
        self.event_bytes += event.item.bytes.len();
        self.events.push_back(Arc::new(event));
        if let Some(old) = self.events.len().checked_sub(KEPT_FRAMES + 1) {
            self.events[old].forget_frames();
        }
        while self.events.len() > RING_EVENTS || self.event_bytes > RING_BYTES {
            let Some(oldest) = self.events.pop_front() else { break };
            self.event_bytes -= oldest.item.bytes.len();
            self.forgotten = oldest.revision;
        }
    }
}

/// Objects and events of one resource.
pub(crate) struct ResourceCache {
    state: RwLock<State>,
    changed: watch::Sender<u64>,
    pace: Mutex<Pace>,
    joined: Joined,
}

/// A consistent list.
pub(crate) struct Snapshot {
    pub(crate) items: Vec<Arc<Item>>,
    pub(crate) revision: u64,
}

/// The ring no longer holds what a watcher has not seen.
#[derive(Debug)]
pub(crate) struct Behind;

impl ResourceCache {
    fn new(forgotten: u64) -> Self {
        let state = State { forgotten, revision: forgotten, ..State::default() };
        Self {
            state: RwLock::new(state),
            changed: watch::channel(forgotten).0,
            pace: Mutex::default(),
            joined: Joined::default(),
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        // The writer never panics while it holds the lock; a poisoned state would still be complete.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Objects whose keys start with `prefix`, in key order.
    pub(crate) fn list(&self, prefix: &str) -> Vec<Arc<Item>> {
        self.read().list(prefix)
    }

    /// How many objects there are.
    pub(crate) fn len(&self) -> usize {
        self.read().items.len()
    }

    /// One object.
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Item>> {
        self.read().items.get(key).cloned()
    }

    /// Revision of the last change of this resource: lets derived state know whether it is fresh.
    pub(crate) fn revision(&self) -> u64 {
        self.read().revision
    }

    /// Events after `cursor` and the revision reached.
    pub(crate) fn events_after(&self, cursor: u64) -> Result<(Vec<Arc<CachedEvent>>, u64), Behind> {
        let state = self.read();
        if cursor < state.forgotten {
            return Err(Behind);
        }
        let start = state.events.partition_point(|event| event.revision <= cursor);
        Ok((state.events.range(start..).cloned().collect(), state.revision.max(cursor)))
    }

    /// How many follow the resource.
    pub(crate) fn watchers(&self) -> usize {
        self.changed.receiver_count()
    }

    /// The lines somebody else with the same wish has just got. They may end before the newest event.
    pub(crate) fn joined_lines(&self, wish: Wish<'_>) -> Option<Lines> {
        self.joined.get(wish)
    }

    /// Keeps lines for others with the same wish.
    pub(crate) fn keep_lines(&self, wish: Wish<'_>, lines: Lines) {
        self.joined.put(wish, lines);
    }

    fn pace(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the watchers, or has them woken when they have rested from the last time.
    fn announce(self: &Arc<Self>, revision: u64) {
        let turn = self.pace().changed(Instant::now(), self.watchers());
        match turn {
            Turn::Now => drop(self.changed.send_replace(revision)),
            Turn::At(end) => {
                let resource = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(end).await;
                    resource.pace().rested(Instant::now());
                    resource.changed.send_replace(resource.revision());
                });
            }
            Turn::Taken => {}
        }
    }

    /// Told a revision after changes, soon after each; what has changed since the last time is in the ring.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Applies events of one revision; nobody sees a part of them.
    fn apply_all<'a>(&self, events: impl Iterator<Item = &'a Event>) {
        let mut state = self.write();
        for event in events {
            state.apply(event);
        }
    }
}

impl State {
    fn apply(&mut self, event: &Event) {
        let revision = event.kv.mod_revision.0;
        let state = self;
        let previous = state.items.get(&event.kv.key).cloned();
        let item = if event.deleted {
            state.items.remove(&event.kv.key);
            let mut kv = event.kv.clone();
            if let Ok(document) = serde_json::from_slice::<Value>(&kv.value) {
                kv.value = encode::with_revision(&document, revision);
            }
            Arc::new(Item::new(&kv))
        } else {
            let item = Arc::new(Item::new(&event.kv));
            state.items.insert(event.kv.key.clone(), item.clone());
            item
        };
        state.push(CachedEvent {
            revision,
            item,
            previous,
            deleted: event.deleted,
            frame: Mutex::default(),
            wire_frame: Mutex::default(),
        });
    }
}

/// The cache of all resources.
pub(crate) struct WatchCache {
    resources: RwLock<HashMap<String, Arc<ResourceCache>>>,
    progress: watch::Sender<u64>,
    /// Where the cache began: watches from before are answered with 410.
    start: u64,
}

impl WatchCache {
    /// Reads everything and follows the store from there, until the store ends.
    pub(crate) async fn start(store: Arc<dyn Store>) -> Result<Arc<Self>, StoreError> {
        let page = store.range(Range::default()).await?;
        let revision = page.revision;
        let cache = Arc::new(Self {
            resources: RwLock::default(),
            progress: watch::channel(revision.0).0,
            start: revision.0,
        });
        for kv in &page.items {
            let resource = cache.resource(resource_of(&kv.key));
            resource.write().items.insert(kv.key.clone(), Arc::new(Item::new(kv)));
        }
        let mut feed = store.watch("", Some(revision)).await?;
        let follower = cache.clone();
        tokio::spawn(async move {
            while let Some(batch) = feed.receiver.recv().await {
                match batch {
                    Ok(batch) => follower.apply(&batch.events, batch.revision),
                    Err(error) => {
                        // The cache is the fastest reader there is; if it was overtaken the state is unknown.
                        tracing::error!(%error, "the watch cache lost the store, ending");
                        std::process::abort();
                    }
                }
            }
        });
        Ok(cache)
    }

    fn apply(&self, events: &[Event], revision: Revision) {
        let mut touched: Vec<Arc<ResourceCache>> = Vec::new();
        for run in events.chunk_by(|a, b| resource_of(&a.kv.key) == resource_of(&b.kv.key)) {
            let Some(first) = run.first() else { continue };
            let resource = self.resource(resource_of(&first.kv.key));
            resource.apply_all(run.iter());
            if !touched.iter().any(|known| Arc::ptr_eq(known, &resource)) {
                touched.push(resource);
            }
        }
        self.progress.send_replace(revision.0);
        // Watchers wake after the whole transaction is visible.
        for resource in touched {
            resource.announce(revision.0);
        }
    }

    /// The part of one resource, by its name in keys (`pods`, `deployments.apps`).
    pub(crate) fn resource(&self, name: &str) -> Arc<ResourceCache> {
        let known = self.resources.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.unwrap_or_else(|| {
            let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
            resources
                .entry(name.to_owned())
                .or_insert_with(|| Arc::new(ResourceCache::new(self.start)))
                .clone()
        })
    }

    /// The part of one resource, if there ever was an object of it. Does not remember names that clients make up.
    pub(crate) fn known(&self, name: &str) -> Option<Arc<ResourceCache>> {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// The newest revision the cache shows.
    pub(crate) fn revision(&self) -> u64 {
        *self.progress.borrow()
    }

    /// Waits until the cache shows `revision`.
    pub(crate) async fn wait_for(&self, revision: u64) {
        let mut progress = self.progress.subscribe();
        // The sender lives as long as the cache, so waiting cannot fail.
        let _ = progress.wait_for(|seen| *seen >= revision).await;
    }

    /// A list at one revision: nothing is half applied between items and revision.
    pub(crate) fn snapshot(&self, resource: &str, prefix: &str) -> Snapshot {
        // Everything up to `seen` is applied; the resource itself may already be further.
        let seen = self.revision();
        let resource = self.resource(resource);
        let state = resource.read();
        Snapshot { items: state.list(prefix), revision: seen.max(state.revision) }
    }
}

fn resource_of(key: &str) -> &str {
    key.trim_start_matches('/').split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn put(key: &str, revision: u64, object: &Value) -> Event {
        let kv = KeyValue {
            key: key.into(),
            value: encode::with_revision(object, revision),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
        };
        Event { kv, previous: None, deleted: false }
    }

    #[test]
    fn events_are_typed_and_ordered() {
        let cache = ResourceCache::new(0);
        let object = json!({"metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"nodeName": "n"}});
        cache.apply_all(std::iter::once(&put("/pods/d/a", 1, &object)));
        cache.apply_all(std::iter::once(&put("/pods/d/a", 2, &object)));
        let mut delete = put("/pods/d/a", 2, &object);
        delete.deleted = true;
        delete.kv.mod_revision = Revision(3);
        cache.apply_all(std::iter::once(&delete));
        let (events, revision) = cache.events_after(0).expect("kept");
        let types: Vec<&str> = events.iter().map(|e| e.plain_type()).collect();
        assert_eq!((types, revision), (vec!["ADDED", "MODIFIED", "DELETED"], 3));
        let last: Value = serde_json::from_slice(&events[2].item.bytes).expect("JSON");
        assert_eq!(last["metadata"]["resourceVersion"], "3");
        assert_eq!(events[0].item.field("/spec/nodeName"), "n");
        for (key, pointer, expected) in [
            ("/pods/d/a", "/metadata/name", Some("a")),
            ("/pods/d/a", "/metadata/namespace", Some("d")),
            ("/nodes/a", "/metadata/name", Some("a")),
            ("/nodes/a", "/metadata/namespace", Some("")),
            ("/pods/d/a", "/spec/nodeName", None),
        ] {
            assert_eq!(named_by_key(key, pointer), expected, "{key} {pointer}");
        }
        assert_eq!(events[0].item.labels()["x"], "y");
        assert!(cache.get("/pods/d/a").is_none());
    }

    #[test]
    fn slow_watchers_are_told() {
        let cache = ResourceCache::new(0);
        let object = json!({"metadata": {"name": "a"}});
        for revision in 1..=(RING_EVENTS as u64 + 10) {
            cache.apply_all(std::iter::once(&put("/pods/d/a", revision, &object)));
        }
        assert!(cache.events_after(5).is_err());
        assert_eq!(cache.events_after(10).map(|(events, _)| events.len()).ok(), Some(RING_EVENTS));
    }

    #[test]
    fn prefixes_do_not_mix() {
        let cache = ResourceCache::new(0);
        for key in ["/pods/a/x", "/pods/a/y", "/pods/ab/z"] {
            cache.apply_all(std::iter::once(&put(key, 1, &json!({"metadata": {}}))));
        }
        assert_eq!(cache.list("/pods/a/").len(), 2);
        assert_eq!(cache.list("/pods/").len(), 3);
    }
}
