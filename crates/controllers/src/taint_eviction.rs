//! Pods that do not tolerate a NoExecute taint of their node are deleted, at once or when the time they tolerate it for is
//! over.
//!
//! Who puts the taints there, a user or the node lifecycle loop, is all the same. A taint that goes in time saves the pods:
//! nothing is remembered about them, they are looked at again when their time comes.

mod plan;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Resource, ResourceExt};
use sampan_client::{Change, EventRecorder, Informer, Queue, Requeue};
use serde_json::json;

use crate::common::error::{ControllerError, gone_is_fine};
use crate::common::pod::{is_terminal, node_name};
use crate::common::wiring::{Parts, synced};
use crate::common::writes::disruption_target;
use plan::{Since, drives_out, plan};

/// How many nodes are looked at at once; upstream's default.
const WORKERS: usize = 8;

/// Starts the controller. Its keys are names of nodes.
pub(crate) fn start(parts: &mut Parts) {
    let nodes = parts.informers.of::<Node>();
    let pods = parts.informers.of::<Pod>();
    let queue: Queue<String> = Queue::new();
    parts.on_change(nodes.subscribe(), {
        let queue = queue.clone();
        move |change| {
            let before = change.old.as_deref().map(taints_of).unwrap_or_default();
            if change.new.as_deref().map(taints_of).unwrap_or_default() != before {
                queue.add(change.key.name.clone());
            }
        }
    });
    parts.on_change(pods.subscribe(), {
        let (queue, nodes) = (queue.clone(), nodes.clone());
        move |change| wake(change, &nodes, &queue)
    });
    let ready = vec![synced(&nodes), synced(&pods)];
    let client = parts.client_as("node-controller");
    let controller = Arc::new(TaintEviction {
        client: client.clone(),
        recorder: EventRecorder::new(client, "taint-eviction-controller", ""),
        nodes,
        pods,
        noticed: Mutex::default(),
    });
    parts.run("taint-eviction", WORKERS, queue, ready, move |node| Arc::clone(&controller).reconcile(node));
}

/// A pod matters when it comes to a node that drives out pods, or tolerates something else than before.
fn wake(change: &Change<Pod>, nodes: &Informer<Node>, queue: &Queue<String>) {
    let Some(new) = change.new.as_deref() else { return };
    let facts = |pod: &Pod| {
        let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.clone());
        (node_name(pod).map(String::from), tolerations)
    };
    let (node, tolerations) = facts(new);
    let Some(node) = node else { return };
    let is_new = change.old.as_deref().map(facts) != Some((Some(node.clone()), tolerations));
    if is_new && nodes.get("", &node).is_some_and(|node| !taints_of(&node).is_empty()) {
        queue.add(node);
    }
}

/// The taints of a node that drive out pods.
fn taints_of(node: &Node) -> Vec<Taint> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| drives_out(taint)).cloned().collect()
}

struct TaintEviction {
    client: kube::Client,
    recorder: EventRecorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    /// When taints that do not say since when they hold were first seen: users set no time.
    noticed: Mutex<HashMap<String, Vec<Since>>>,
}

impl TaintEviction {
    async fn reconcile(self: Arc<Self>, node: String) -> Result<Requeue, ControllerError> {
        let now = Timestamp::now();
        let taints = self.nodes.get("", &node).map(|node| taints_of(&node)).unwrap_or_default();
        let taints = self.times(&node, taints, now);
        if taints.is_empty() {
            return Ok(Requeue::No);
        }
        let plan = plan(&node, &taints, &self.pods.list(), now);
        let mut failure = None;
        for pod in &plan.evict {
            // One pod that cannot be deleted does not save the others.
            if let Err(error) = self.evict(pod).await {
                failure = Some(error);
            }
        }
        match failure {
            Some(error) => Err(error),
            None => Ok(plan.again.map_or(Requeue::No, Requeue::After)),
        }
    }

    /// Gives every taint its time and remembers it until the taint goes.
    fn times(&self, node: &str, taints: Vec<Taint>, now: Timestamp) -> Vec<Since> {
        let mut noticed = self.noticed.lock().unwrap_or_else(PoisonError::into_inner);
        let before = noticed.remove(node).unwrap_or_default();
        let times = since(taints, &before, now);
        if !times.is_empty() {
            noticed.insert(node.to_string(), times.clone());
        }
        times
    }

    /// Says on the pod why it ends, for whoever waits for it, and deletes it with the grace it asks for.
    async fn evict(&self, pod: &Pod) -> Result<(), ControllerError> {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        if !is_terminal(pod) {
            let condition = disruption_target(
                "DeletionByTaintManager",
                "Taint manager: deleting due to NoExecute taint",
                Timestamp::now(),
            );
            let mark = json!({"metadata": {"uid": pod.uid()}, "status": {"conditions": [condition]}});
            let marked = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(mark)).await;
            gone_is_fine(marked).map_err(ControllerError::api("mark Pod", &name))?;
        }
        let same = Preconditions { uid: pod.uid(), resource_version: None };
        let deleted = api.delete(&name, &DeleteParams::default().preconditions(same)).await;
        let deleted = gone_is_fine(deleted).map_err(ControllerError::api("evict Pod", &name))?;
        if deleted.is_some() {
            let message = format!("Marking for deletion Pod {namespace}/{name}");
            self.recorder.record(&pod.object_ref(&()), "Normal", "TaintManagerEviction", message);
        }
        Ok(())
    }
}

/// Since when each taint holds: what it says itself, else when it was noticed before, else now.
fn since(taints: Vec<Taint>, before: &[Since], now: Timestamp) -> Vec<Since> {
    let time = |taint: Taint| {
        let noticed = before.iter().find(|known| known.taint == taint).map(|known| known.since);
        let since = taint.time_added.as_ref().map(|time| time.0).or(noticed).unwrap_or(now);
        Since { taint, since }
    };
    taints.into_iter().map(time).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, time};

    #[test]
    fn since_when_taints_hold() {
        let taint = |key: &str, added: Option<i64>| Taint {
            key: key.into(),
            effect: "NoExecute".into(),
            value: None,
            time_added: added.map(time),
        };
        let before = [Since { taint: taint("known", None), since: at(20) }];
        let rows = [
            ("says when", taint("new", Some(10)), 10),
            ("says nothing, is new", taint("new", None), 100),
            ("says nothing, is known", taint("known", None), 20),
            ("says when by now", taint("known", Some(30)), 30),
        ];
        for (name, taint, expected) in rows {
            let times = since(vec![taint.clone()], &before, at(100));
            assert_eq!(times, [Since { taint, since: at(expected) }], "{name}");
        }
    }
}
