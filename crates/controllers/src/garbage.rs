//! Garbage collection: what has lost all its owners goes, and what is deleted in the foreground or
//! leaves orphans behind gets its wish.
//!
//! `graph` knows who owns whom from a metadata-only watch of every kind the catalogue lists, `plan`
//! decides, and here the writes are made, always after a look at the object on the server: a copy is
//! good enough to decide that something deserves a look, not to delete by.

mod graph;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::discovery::verbs;
use kube::runtime::watcher;
use sampan_client::{Changes, EventRecorder, Informer, Queue, Requeue};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::catalog::{Catalog, Kind, Kinds};
use crate::common::error::{ControllerError, gone_is_fine, is_not_found};
use crate::common::owner::{owners_patch, without_owner};
use crate::common::wiring::Parts;
use graph::{Graph, Meta, Node, owners};
use plan::{Action, OwnerState, Policy};

/// How many objects are looked at at once; upstream's default is 20, without a server in the process.
const WORKERS: usize = 8;
/// How long to wait for the first complete copy of all kinds. After it the collector works with what
/// it has; a kind that cannot be listed must not stop all deletion.
const PATIENCE: Duration = Duration::from_secs(30);

/// Starts the collector. `on_gone` is called with the namespace of every object that disappears.
pub(crate) fn start(
    parts: &mut Parts,
    catalog: &Arc<Catalog>,
    on_gone: impl Fn(&str) + Send + Sync + 'static,
) {
    let queue: Queue<String> = Queue::new();
    let client = parts.client_as("generic-garbage-collector");
    let collector = Arc::new(Collector {
        client: client.clone(),
        catalog: Arc::clone(catalog),
        graph: Mutex::default(),
        queue: queue.clone(),
        recorder: EventRecorder::new(client, "garbage-collector-controller", ""),
        on_gone: Box::new(on_gone),
    });
    let (complete, completed) = tokio::sync::oneshot::channel();
    parts.tasks.spawn(Arc::clone(&collector).follow(complete));
    let ready: futures::future::BoxFuture<'static, ()> = Box::pin(async move {
        // The sender is dropped only when everything ends.
        let _ = completed.await;
    });
    parts.run("garbage-collector", WORKERS, queue, vec![ready], move |uid| {
        Arc::clone(&collector).reconcile(uid)
    });
}

struct Collector {
    client: kube::Client,
    catalog: Arc<Catalog>,
    graph: Mutex<Graph>,
    queue: Queue<String>,
    recorder: EventRecorder,
    on_gone: Box<dyn Fn(&str) + Send + Sync>,
}

/// The watches of the kinds, by kind, each ending with its task.
type Watches = HashMap<String, (Arc<Kind>, JoinSet<()>)>;

impl Collector {
    /// Watches every kind of the catalogue, for as long as the catalogue lists it.
    async fn follow(self: Arc<Self>, complete: tokio::sync::oneshot::Sender<()>) {
        let mut complete = Some(complete);
        let mut watches = Watches::new();
        let mut catalog = self.catalog.subscribe();
        loop {
            let kinds = catalog.borrow_and_update().clone();
            if let Some(kinds) = kinds {
                let started = self.watch(&kinds, &mut watches);
                if let Some(complete) = complete.take_if(|_| kinds.failure.is_none()) {
                    wait_for(started).await;
                    let _ = complete.send(());
                } else {
                    // Owners of unknown kinds may have become known.
                    self.wake(self.graph().owned());
                }
            }
            if catalog.changed().await.is_err() {
                return;
            }
        }
    }

    /// Starts what is not watched yet and ends what is no longer served; returns the new copies.
    fn watch(self: &Arc<Self>, kinds: &Kinds, watches: &mut Watches) -> Vec<Informer<Meta>> {
        let mut started = Vec::new();
        for kind in &kinds.all {
            let name = kind.name();
            let watched = watches.get(&name).is_some_and(|(watched, _)| watched == kind);
            if watched || !kind.can(verbs::LIST) || !kind.can(verbs::WATCH) {
                continue;
            }
            let api: Api<Meta> = Api::all_with(self.client.clone(), &kind.resource);
            let informer = Informer::start_trimmed(api, watcher::Config::default(), trim);
            let mut task = JoinSet::new();
            task.spawn(Arc::clone(self).pump(Arc::clone(kind), informer.subscribe()));
            watches.insert(name, (Arc::clone(kind), task));
            started.push(informer);
        }
        // An incomplete list is no proof that a kind is gone.
        if kinds.failure.is_none() {
            watches.retain(|_, (kind, _)| {
                let served = kinds.all.contains(kind);
                if !served {
                    let wake = self.graph().forget_kind(kind);
                    self.wake(wake);
                }
                served
            });
        }
        started
    }

    async fn pump(self: Arc<Self>, kind: Arc<Kind>, mut changes: Changes<Meta>) {
        let defines_kinds = kind.resource.kind == "CustomResourceDefinition";
        while let Some(change) = changes.recv().await {
            let wake = self.graph().absorb(&kind, change.old.as_ref(), change.new.as_ref());
            self.wake(wake);
            if change.new.is_none() && kind.namespaced {
                (self.on_gone)(&change.key.namespace);
            }
            if defines_kinds {
                self.catalog.refresh();
            }
        }
    }

    fn wake(&self, uids: Vec<String>) {
        for uid in uids {
            self.queue.add(uid);
        }
    }

    fn graph(&self) -> MutexGuard<'_, Graph> {
        self.graph.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn reconcile(self: Arc<Self>, uid: String) -> Result<Requeue, ControllerError> {
        let Some(node) = self.graph().get(&uid) else { return Ok(Requeue::No) };
        if self.is_settled(&node) {
            return Ok(Requeue::No);
        }
        let Some(fresh) = self.fetch(&node).await? else { return Ok(Requeue::No) };
        let mut states = Vec::new();
        for owner in owners(&fresh.metadata) {
            states.push((owner.clone(), self.owner_state(&node, owner).await?));
        }
        let dependents = self.graph().dependents(&uid);
        for action in plan::plan(&fresh.metadata, &states, &dependents) {
            self.execute(&node, &fresh.metadata, action).await?;
        }
        Ok(Requeue::No)
    }

    /// Whether the graph alone shows that there is nothing to do, as it does for nearly every object.
    fn is_settled(&self, node: &Node) -> bool {
        let graph = self.graph();
        let present =
            |owner: &OwnerReference| graph.owner_state(node.meta(), owner) == Some(OwnerState::Present);
        node.meta().deletion_timestamp.is_none() && owners(node.meta()).all(present)
    }

    /// The object as the server has it, if it still is the same.
    async fn fetch(&self, node: &Node) -> Result<Option<Meta>, ControllerError> {
        let name = node.meta().name.as_deref().unwrap_or_default();
        match self.api(node).get(name).await {
            Ok(fresh) if fresh.metadata.uid == node.meta().uid => Ok(Some(fresh)),
            Ok(_) => Ok(None),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(ControllerError::api("look at", describe(node))(error)),
        }
    }

    async fn owner_state(&self, node: &Node, owner: &OwnerReference) -> Result<OwnerState, ControllerError> {
        let known = self.graph().owner_state(node.meta(), owner);
        let state = match known {
            Some(state) => state,
            None => self.look_for_owner(node, owner).await?,
        };
        if state == OwnerState::OutOfReach || (state == OwnerState::Unresolvable && !node.kind.namespaced) {
            self.complain(node, owner);
        }
        Ok(state)
    }

    async fn look_for_owner(
        &self,
        node: &Node,
        owner: &OwnerReference,
    ) -> Result<OwnerState, ControllerError> {
        let kinds = self.catalog.kinds();
        let Some(kind) = kinds.find(&owner.api_version, &owner.kind) else {
            return Ok(OwnerState::Unresolvable);
        };
        if kind.namespaced && !node.kind.namespaced {
            return Ok(OwnerState::Unresolvable);
        }
        let api = self.api_of(kind, node.meta().namespace.as_deref());
        let found = match api.get(&owner.name).await {
            Ok(found) => found,
            Err(error) if is_not_found(&error) => return Ok(OwnerState::Absent),
            Err(error) => return Err(ControllerError::api("look for the owner of", describe(node))(error)),
        };
        Ok(match found.metadata.uid.as_ref() == Some(&owner.uid) {
            false => OwnerState::Absent,
            true if plan::is_waiting(&found.metadata) => OwnerState::Waiting,
            true => OwnerState::Present,
        })
    }

    fn complain(&self, node: &Node, owner: &OwnerReference) {
        let meta = node.meta();
        let namespace = meta.namespace.as_deref().unwrap_or_default();
        let message = format!(
            "ownerRef [{}/{} {}, uid {}] does not exist in namespace {namespace:?}",
            owner.api_version, owner.kind, owner.name, owner.uid
        );
        let object = ObjectReference {
            api_version: Some(node.kind.resource.api_version.clone()),
            kind: Some(node.kind.resource.kind.clone()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        self.recorder.record(&object, "Warning", "OwnerRefInvalidNamespace", message);
    }

    async fn execute(&self, node: &Node, fresh: &ObjectMeta, action: Action) -> Result<(), ControllerError> {
        match action {
            Action::Delete(policy) => self.delete(node, fresh, policy).await,
            Action::SetOwners(owners) => self.patch(node, owners_patch(fresh, &owners)).await,
            Action::RemoveFinalizer(finalizer) => self.patch(node, without_finalizer(fresh, finalizer)).await,
            Action::Orphan(dependents) => {
                let uid = fresh.uid.as_deref().unwrap_or_default();
                for dependent in dependents {
                    let Some(dependent) = self.graph().get(&dependent) else { continue };
                    let owners = without_owner(dependent.meta(), uid);
                    self.patch(&dependent, owners_patch(dependent.meta(), &owners)).await?;
                }
                Ok(())
            }
            Action::Wake(uids) => {
                self.wake(uids);
                Ok(())
            }
        }
    }

    async fn delete(&self, node: &Node, fresh: &ObjectMeta, policy: Policy) -> Result<(), ControllerError> {
        let name = fresh.name.as_deref().unwrap_or_default();
        let params = DeleteParams {
            propagation_policy: Some(match policy {
                Policy::Background => PropagationPolicy::Background,
                Policy::Foreground => PropagationPolicy::Foreground,
                Policy::Orphan => PropagationPolicy::Orphan,
            }),
            // Whoever adopts the object in this very moment wins.
            preconditions: Some(Preconditions {
                uid: fresh.uid.clone(),
                resource_version: fresh.resource_version.clone(),
            }),
            ..DeleteParams::default()
        };
        tracing::debug!(object = describe(node), ?policy, "collecting");
        let deleted = gone_is_fine(self.api(node).delete(name, &params).await);
        deleted.map(drop).map_err(ControllerError::api("collect", describe(node)))
    }

    async fn patch(&self, node: &Node, patch: Value) -> Result<(), ControllerError> {
        let name = node.meta().name.as_deref().unwrap_or_default();
        let patched = self.api(node).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await;
        gone_is_fine(patched)
            .map(drop)
            .map_err(ControllerError::api("change the metadata of", describe(node)))
    }

    fn api(&self, node: &Node) -> Api<Meta> {
        self.api_of(&node.kind, node.meta().namespace.as_deref())
    }

    fn api_of(&self, kind: &Kind, namespace: Option<&str>) -> Api<Meta> {
        match namespace.filter(|_| kind.namespaced) {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind.resource),
            None => Api::all_with(self.client.clone(), &kind.resource),
        }
    }
}

/// Waits until the copies are complete, but not for ever.
async fn wait_for(copies: Vec<Informer<Meta>>) {
    let all = async {
        for copy in &copies {
            copy.synced().await;
        }
    };
    if tokio::time::timeout(PATIENCE, all).await.is_err() {
        let late = copies.iter().filter(|copy| !copy.has_synced()).count();
        tracing::warn!(late, "garbage collection starts without having seen all kinds");
    }
}

/// The collector needs to know little about an object.
fn trim(object: &mut Meta) {
    let meta = std::mem::take(&mut object.metadata);
    object.types = None;
    object.metadata = ObjectMeta {
        name: meta.name,
        namespace: meta.namespace,
        uid: meta.uid,
        resource_version: meta.resource_version,
        owner_references: meta.owner_references,
        finalizers: meta.finalizers,
        deletion_timestamp: meta.deletion_timestamp,
        ..ObjectMeta::default()
    };
}

fn without_finalizer(meta: &ObjectMeta, finalizer: &str) -> Value {
    let left: Vec<&String> = meta.finalizers.iter().flatten().filter(|own| *own != finalizer).collect();
    json!({"metadata": {
        "uid": meta.uid,
        "resourceVersion": meta.resource_version,
        "finalizers": if left.is_empty() { Value::Null } else { json!(left) },
    }})
}

fn describe(node: &Node) -> String {
    let meta = node.meta();
    let name = meta.name.as_deref().unwrap_or_default();
    format!("{} {}/{name}", node.kind.resource.kind, meta.namespace.as_deref().unwrap_or_default())
}
