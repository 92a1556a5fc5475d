//! The informers of a process, one per kind and selection.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use crate::informer::Informer;
use crate::keys::KeyWatch;

/// What tells two informers apart: the type and the selectors of the watch.
type Identity = (TypeId, Option<String>, Option<String>);

/// Hands out one shared [`Informer`] per kind: ten loops that read Pods cost one watch and one copy.
///
/// An informer starts when it is first asked for and then lives as long as the process, for the loops
/// that read it do.
#[derive(Clone)]
pub struct Informers {
    client: kube::Client,
    started: Arc<Mutex<HashMap<Identity, Box<dyn Any + Send + Sync>>>>,
}

impl Informers {
    /// No informers yet; they will watch through `client`.
    pub fn new(client: kube::Client) -> Self {
        Self { client, started: Arc::default() }
    }

    /// The informer of all objects of kind `K` in all namespaces.
    pub fn of<K>(&self) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        self.of_with(watcher::Config::default())
    }

    /// The informer of the objects of kind `K` that the label and field selectors of `config` choose,
    /// such as the pods of one node. Only the selectors count for sharing; what else `config` says
    /// holds when this call is the one that starts the watch.
    pub fn of_with<K>(&self, config: watcher::Config) -> Informer<K>
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let identity = (TypeId::of::<K>(), config.label_selector.clone(), config.field_selector.clone());
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(informer) = started.get(&identity).and_then(|any| any.downcast_ref::<Informer<K>>()) {
            return informer.clone();
        }
        let informer = Informer::start(Api::<K>::all(self.client.clone()), config);
        started.insert(identity, Box::new(informer.clone()));
        informer
    }

    /// The keys of objects of kind `K` that change, for one reader.
    pub fn keys_of<K>(&self) -> KeyWatch
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        KeyWatch::start::<K>(Api::all(self.client.clone()))
    }
}
