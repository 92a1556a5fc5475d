//! The kinds the server has, as discovery lists them.
//!
//! Garbage collection and the deletion of namespaces must reach every kind, those of custom resources
//! included. The catalogue is read at the start and again when somebody who sees a
//! CustomResourceDefinition change says so.

use std::sync::Arc;
use std::time::Duration;

use kube::Discovery;
use kube::discovery::{ApiResource, Scope, verbs};
use tokio::sync::{Notify, watch};

use crate::common::owner::group_of;
use crate::common::wiring::Parts;

/// The first pause after a failed discovery, and the longest.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(30));
/// How long to let changes of definitions gather before the catalogue is read again: `kubectl apply`
/// of an operator brings a dozen at once, each with two status updates.
const GATHER: Duration = Duration::from_millis(200);

/// A kind in one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
    verbs: Vec<String>,
}

impl Kind {
    #[cfg(test)]
    pub(crate) fn for_test(group: &str, kind: &str, plural: &str, namespaced: bool) -> Self {
        let gvk = kube::core::GroupVersionKind::gvk(group, "v1", kind);
        let verbs = ["list", "watch", "delete", "deletecollection"].map(String::from).to_vec();
        Self { resource: ApiResource::from_gvk_with_plural(&gvk, plural), namespaced, verbs }
    }

    /// Whether the server offers this verb for the kind.
    pub(crate) fn can(&self, verb: &str) -> bool {
        self.verbs.iter().any(|own| own == verb)
    }

    /// `resource.group`, the name under which operators know a kind.
    pub(crate) fn name(&self) -> String {
        format!("{}.{}", self.resource.plural, self.resource.group)
    }

    /// Whether an owner reference or the like speaks of this kind, whatever its version.
    pub(crate) fn is(&self, api_version: &str, kind: &str) -> bool {
        self.resource.kind == kind && self.resource.group == group_of(api_version)
    }
}

/// What discovery found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kinds {
    /// Every kind once, in its most stable version.
    pub(crate) all: Vec<Arc<Kind>>,
    /// Why the list may be incomplete.
    pub(crate) failure: Option<String>,
}

impl Kinds {
    /// The kind an owner reference speaks of.
    pub(crate) fn find(&self, api_version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.all.iter().find(|known| known.is(api_version, kind))
    }
}

/// The current list of kinds and the way to have it read again.
pub(crate) struct Catalog {
    kinds: watch::Sender<Option<Arc<Kinds>>>,
    stale: Notify,
}

impl Catalog {
    /// Starts to read the list.
    pub(crate) fn start(parts: &mut Parts) -> Arc<Self> {
        let catalog = Arc::new(Self { kinds: watch::Sender::new(None), stale: Notify::new() });
        parts.tasks.spawn(Arc::clone(&catalog).keep(parts.manager()));
        catalog
    }

    /// Has the list read again soon.
    pub(crate) fn refresh(&self) {
        self.stale.notify_one();
    }

    /// The list; empty with a failure as long as discovery has never worked.
    pub(crate) fn kinds(&self) -> Arc<Kinds> {
        self.kinds.borrow().clone().unwrap_or_else(|| {
            Arc::new(Kinds { all: Vec::new(), failure: Some("the kinds are not known yet".into()) })
        })
    }

    /// Follows the list.
    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<Arc<Kinds>>> {
        self.kinds.subscribe()
    }

    async fn keep(self: Arc<Self>, client: kube::Client) {
        let (first, longest) = RETRY;
        let mut pause = first;
        loop {
            match discover(&client).await {
                Ok(kinds) => {
                    pause = first;
                    self.publish(Kinds { all: kinds, failure: None });
                    self.stale.notified().await;
                    tokio::time::sleep(GATHER).await;
                }
                Err(error) => {
                    let before = self.kinds.borrow().clone().unwrap_or_default();
                    self.publish(Kinds { all: before.all.clone(), failure: Some(error.to_string()) });
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(longest);
                }
            }
        }
    }

    fn publish(&self, kinds: Kinds) {
        self.kinds.send_replace(Some(Arc::new(kinds)));
    }
}

async fn discover(client: &kube::Client) -> kube::Result<Vec<Arc<Kind>>> {
    let discovery = Discovery::new(client.clone()).run().await?;
    let mut kinds: Vec<Arc<Kind>> = discovery
        .groups()
        .flat_map(|group| group.resources_by_stability())
        .filter(|(resource, capabilities)| {
            // An event belongs to nobody and is served under two groups; it ends by its age.
            resource.kind != "Event" && capabilities.supports_operation(verbs::DELETE)
        })
        .map(|(resource, capabilities)| {
            let namespaced = capabilities.scope == Scope::Namespaced;
            Arc::new(Kind { resource, namespaced, verbs: capabilities.operations })
        })
        .collect();
    kinds.sort_by_key(|kind| kind.name());
    Ok(kinds)
}
