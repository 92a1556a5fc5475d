//! A map from labels to counters that many threads add to at once.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

/// Readers of different shards do not meet; a writer comes only for the first request of its kind.
const SHARDS: usize = 16;
/// Label sets in one shard; labels come from closed lists, so this is never reached but for a defect.
const MAX_SERIES: usize = 4096;

/// The map.
pub(super) struct Sharded<K, V> {
    shards: [RwLock<HashMap<K, Arc<V>>>; SHARDS],
    hasher: RandomState,
}

impl<K: Copy + Eq + Hash + Ord, V> Sharded<K, V> {
    pub(super) fn new() -> Self {
        Self { shards: [(); SHARDS].map(|()| RwLock::default()), hasher: RandomState::new() }
    }

    fn shard(&self, key: K) -> &RwLock<HashMap<K, Arc<V>>> {
        // The remainder is below the length.
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// Does something with the value of a key.
    pub(super) fn with<R>(&self, key: K, make: impl FnOnce() -> V, act: impl FnOnce(&V) -> R) -> R {
        let shard = self.shard(key);
        if let Some(value) = shard.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return act(value);
        }
        act(&self.handle(key, make))
    }

    /// The value of a key, to be kept.
    pub(super) fn handle(&self, key: K, make: impl FnOnce() -> V) -> Arc<V> {
        let mut shard = self.shard(key).write().unwrap_or_else(PoisonError::into_inner);
        if shard.len() >= MAX_SERIES && !shard.contains_key(&key) {
            return Arc::new(make());
        }
        shard.entry(key).or_insert_with(|| Arc::new(make())).clone()
    }

    /// Everything, in order of keys.
    pub(super) fn sorted(&self) -> Vec<(K, Arc<V>)> {
        let mut all: Vec<(K, Arc<V>)> = Vec::new();
        for shard in &self.shards {
            let shard = shard.read().unwrap_or_else(PoisonError::into_inner);
            all.extend(shard.iter().map(|(key, value)| (*key, value.clone())));
        }
        all.sort_by_key(|(key, _)| *key);
        all
    }
}
