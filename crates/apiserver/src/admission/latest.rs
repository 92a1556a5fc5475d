//! What is compiled from watched resources, again when one of them has changed, as the rules of RBAC are.

use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use crate::cache::WatchCache;

/// The compiled form of the objects of some resources, as the watch cache has them now.
pub(super) struct Latest<T, const N: usize> {
    cache: Arc<WatchCache>,
    resources: [&'static str; N],
    compile: fn([Vec<Value>; N]) -> T,
    /// With the revisions it was compiled for.
    compiled: Mutex<Option<([u64; N], Arc<T>)>>,
}

impl<T, const N: usize> Latest<T, N> {
    /// Nothing is compiled yet; `compile` gets the objects of each resource, by name.
    pub(super) fn new(
        cache: Arc<WatchCache>,
        resources: [&'static str; N],
        compile: fn([Vec<Value>; N]) -> T,
    ) -> Self {
        Self { cache, resources, compile, compiled: Mutex::default() }
    }

    /// The compiled form. Cheap while nothing changes: every write asks.
    pub(super) fn get(&self) -> Arc<T> {
        let revisions = self.resources.map(|resource| self.cache.resource(resource).revision());
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        match &*compiled {
            Some((of, current)) if *of == revisions => current.clone(),
            _ => {
                let fresh = Arc::new((self.compile)(self.resources.map(|resource| self.list(resource))));
                *compiled = Some((revisions, fresh.clone()));
                fresh
            }
        }
    }

    fn list(&self, resource: &str) -> Vec<Value> {
        let items = self.cache.resource(resource).list(&format!("/{resource}/"));
        items.iter().filter_map(|item| serde_json::from_slice(&item.bytes).ok()).collect()
    }
}
