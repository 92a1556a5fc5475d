//! Nodes that are well take pods, the others are marked by taints; a node that is no longer heard of is unknown.
//!
//! A node renews its Lease and reports its status. When neither has come for the grace period, this loop writes that nobody
//! can tell how the node is. What the conditions say, reported or not, is turned into taints: the scheduler keeps pods away
//! by them, and the taint eviction loop drives pods out. Upstream: the node lifecycle controller and the taints of KEP-166.
//!
//! Not here: marking the pods of a silent node as not ready, zones, and limits on how many nodes are given up per minute.
//!
//! One timer per node stands for its silence. It is moved only when it runs out, so that renewals cost nothing but a note of
//! the time, and a healthy cluster sees no write.

mod heard;
mod plan;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::watcher;
use sampan_client::{Change, Informer, ObjectKey, Queue, Requeue};
use serde_json::json;
use tokio::time::Instant;

use crate::common::error::{ControllerError, gone_is_fine};
use crate::common::wiring::{Parts, synced};
use heard::Heard;
use plan::{Action, Plan, heartbeat, is_ready, plan};

/// The namespace of the leases of nodes.
const LEASES: &str = "kube-node-lease";
/// How many nodes are looked at at once.
const WORKERS: usize = 4;

/// Starts the controller.
pub(crate) fn start(parts: &mut Parts) {
    let nodes = parts.informers.of::<Node>();
    let leases = parts
        .informers
        .of_with::<Lease>(watcher::Config::default().fields(&format!("metadata.namespace={LEASES}")));
    let queue: Queue<ObjectKey> = Queue::new();
    let controller = Arc::new(NodeLifecycle {
        client: parts.client_as("node-controller"),
        nodes: nodes.clone(),
        leases: leases.clone(),
        queue: queue.clone(),
        state: Mutex::default(),
    });
    parts.on_change(nodes.subscribe(), {
        let controller = Arc::clone(&controller);
        move |change| controller.node_changed(change)
    });
    parts.on_change(leases.subscribe(), {
        let controller = Arc::clone(&controller);
        move |change| controller.lease_changed(change)
    });
    let ready = vec![synced(&nodes), synced(&leases)];
    parts.run("node-lifecycle", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
}

/// What no object tells.
#[derive(Default)]
struct State {
    heard: Heard,
    /// Since when some node has been ready.
    ready_since: Option<Timestamp>,
}

struct NodeLifecycle {
    client: kube::Client,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    queue: Queue<ObjectKey>,
    state: Mutex<State>,
}

impl NodeLifecycle {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn node_changed(&self, change: &Change<Node>) {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        match new {
            None => self.state().heard.forget(&change.key.name),
            Some(new) if old.is_none_or(|old| heartbeat(old) != heartbeat(new)) => {
                self.state().heard.from(&change.key.name, Instant::now());
            }
            Some(_) => {}
        }
        if old.is_some_and(is_ready) != new.is_some_and(is_ready) {
            self.readiness_changed();
        }
        self.queue.add(change.key.clone());
    }

    /// The first node that is ready and the last one that is no longer concern them all.
    fn readiness_changed(&self) {
        let nodes = self.nodes.list();
        let is_any_ready = nodes.iter().any(|node| is_ready(node));
        let mut state = self.state();
        if is_any_ready != state.ready_since.is_some() {
            state.ready_since = is_any_ready.then(Timestamp::now);
            drop(state);
            nodes.iter().for_each(|node| self.queue.add(ObjectKey::of(node.as_ref())));
        }
    }

    fn lease_changed(&self, change: &Change<Lease>) {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        if new.is_some() && old.and_then(renewal) != new.and_then(renewal) {
            self.heard_from(&change.key.name);
        }
    }

    fn heard_from(&self, node: &str) {
        let mut state = self.state();
        // A node that is not there yet is heard of when it appears.
        if state.heard.knows(node) {
            state.heard.from(node, Instant::now());
        }
    }

    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<Requeue, ControllerError> {
        let Some(node) = self.nodes.by_key(&key) else { return Ok(Requeue::No) };
        let mut plan = self.plan(&node, &key.name);
        if matches!(plan.action, Some(Action::MarkUnknown(_))) && self.is_renewed(&key.name).await? {
            self.heard_from(&key.name);
            plan = self.plan(&node, &key.name);
        }
        match plan.action {
            Some(Action::MarkUnknown(conditions)) => self.mark_unknown(&node, &conditions).await?,
            Some(Action::SetTaints(taints)) => self.set_taints(&node, &taints).await?,
            None => {}
        }
        let Some(again) = plan.again else { return Ok(Requeue::No) };
        self.state().heard.look_at(&key.name, Instant::now() + again);
        Ok(Requeue::After(again))
    }

    fn plan(&self, node: &Node, name: &str) -> Plan {
        let mut state = self.state();
        let silent = state.heard.silence(name, Instant::now());
        plan(node, state.ready_since, silent, Timestamp::now())
    }

    /// Whether the server knows of a renewal that the copy does not show: after a lost connection the silence may be ours.
    async fn is_renewed(&self, node: &str) -> Result<bool, ControllerError> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), LEASES);
        let lease = api.get_opt(node).await.map_err(|error| {
            // While we cannot reach the server, the node may be unable to as well.
            self.heard_from(node);
            ControllerError::api("look at the Lease of Node", node)(error)
        })?;
        let copy = self.leases.get(LEASES, node);
        Ok(lease.as_ref().and_then(renewal) != copy.as_deref().and_then(renewal))
    }

    /// Both writes hold only for the version that was looked at: the node may just be saying how it is.
    async fn mark_unknown(&self, node: &Node, conditions: &[NodeCondition]) -> Result<(), ControllerError> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        tracing::warn!(node = name, "the node is no longer heard of");
        let patch = Patch::Strategic(json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "status": {"conditions": conditions},
        }));
        let api: Api<Node> = Api::all(self.client.clone());
        let patched = api.patch_status(name, &PatchParams::default(), &patch).await;
        gone_is_fine(patched).map(drop).map_err(ControllerError::api("mark as unknown Node", name))
    }

    async fn set_taints(&self, node: &Node, taints: &[Taint]) -> Result<(), ControllerError> {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"taints": if taints.is_empty() { json!(null) } else { json!(taints) }},
        }));
        let api: Api<Node> = Api::all(self.client.clone());
        let patched = api.patch(name, &PatchParams::default(), &patch).await;
        gone_is_fine(patched).map(drop).map_err(ControllerError::api("change the taints of Node", name))
    }
}

/// When the holder of a lease last gave a sign of life.
fn renewal(lease: &Lease) -> Option<&MicroTime> {
    lease.spec.as_ref()?.renew_time.as_ref()
}
