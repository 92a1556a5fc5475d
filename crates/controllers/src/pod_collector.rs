//! Pods nobody will ever finish: bound to a node that is gone, or given up before they had one.
//!
//! A node that vanishes may be one whose agent re-registers in a moment, so its pods are only taken
//! after a quarantine, and only if the server, not just the copy, says that the node is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use sampan_client::{Change, Informer, Queue, Requeue};
use serde_json::json;

use crate::common::error::{ControllerError, gone_is_fine};
use crate::common::pod::{is_deleting, is_terminal, node_name};
use crate::common::wiring::{Parts, synced};
use crate::common::writes::disruption_target;

/// How long a node must be gone before its pods are; upstream's value.
const QUARANTINE: Duration = Duration::from_secs(40);
/// One is enough: vanished nodes are rare.
const WORKERS: usize = 1;

/// Starts the controller. Its keys are names of nodes, the empty one standing for "no node".
pub(crate) fn start(parts: &mut Parts) {
    let nodes = parts.informers.of::<Node>();
    let pods = parts.informers.of::<Pod>();
    let queue: Queue<String> = Queue::new();
    parts.on_change(nodes.subscribe(), {
        let queue = queue.clone();
        move |change| {
            if change.new.is_none() {
                queue.add(change.key.name.clone());
            }
        }
    });
    parts.on_change(pods.subscribe(), {
        let (queue, nodes) = (queue.clone(), nodes.clone());
        move |change| wake(change, &nodes, &queue)
    });
    let ready = vec![synced(&nodes), synced(&pods)];
    let controller = Arc::new(PodCollector {
        client: parts.client_as("pod-garbage-collector"),
        nodes,
        pods,
        gone_since: Mutex::default(),
    });
    parts.run("pod-collector", WORKERS, queue, ready, move |node| Arc::clone(&controller).reconcile(node));
}

fn wake(change: &Change<Pod>, nodes: &Informer<Node>, queue: &Queue<String>) {
    let Some(pod) = &change.new else { return };
    match node_name(pod) {
        Some(node) if nodes.get("", node).is_none() => queue.add(node.to_string()),
        None if is_deleting(pod) => queue.add(String::new()),
        _ => {}
    }
}

/// What to do about the pods of one node, or of none.
#[derive(Debug, PartialEq)]
struct Plan {
    /// These never will be finished by anybody.
    delete: Vec<Arc<Pod>>,
    /// Look again after this time.
    again: Option<Duration>,
}

/// `gone_since` is when the node was first missed; `None` for the pods that have no node.
fn plan(node: &str, pods: &[Arc<Pod>], gone_since: Option<Timestamp>, now: Timestamp) -> Plan {
    let lost: Vec<Arc<Pod>> = pods
        .iter()
        .filter(|pod| match node_name(pod) {
            Some(name) => name == node,
            None => node.is_empty() && is_deleting(pod),
        })
        .cloned()
        .collect();
    let waited = gone_since.map_or(QUARANTINE.as_secs() as i64, |since| now.as_second() - since.as_second());
    let left = QUARANTINE.as_secs().saturating_sub(u64::try_from(waited).unwrap_or(0));
    if lost.is_empty() || left == 0 {
        return Plan { delete: lost, again: None };
    }
    Plan { delete: Vec::new(), again: Some(Duration::from_secs(left)) }
}

struct PodCollector {
    client: kube::Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    gone_since: Mutex<HashMap<String, Timestamp>>,
}

impl PodCollector {
    async fn reconcile(self: Arc<Self>, node: String) -> Result<Requeue, ControllerError> {
        let now = Timestamp::now();
        let gone_since = if node.is_empty() {
            None
        } else if self.exists(&node).await? {
            self.forget(&node);
            return Ok(Requeue::No);
        } else {
            let mut missed = self.gone_since.lock().unwrap_or_else(PoisonError::into_inner);
            Some(*missed.entry(node.clone()).or_insert(now))
        };
        let plan = plan(&node, &self.pods.list(), gone_since, now);
        for pod in &plan.delete {
            self.delete(pod).await?;
        }
        if plan.again.is_none() {
            self.forget(&node);
        }
        Ok(plan.again.map_or(Requeue::No, Requeue::After))
    }

    async fn exists(&self, node: &str) -> Result<bool, ControllerError> {
        if self.nodes.get("", node).is_some() {
            return Ok(true);
        }
        let api: Api<Node> = Api::all(self.client.clone());
        let found = api.get_metadata_opt(node).await;
        found.map(|found| found.is_some()).map_err(ControllerError::api("look for Node", node))
    }

    fn forget(&self, node: &str) {
        self.gone_since.lock().unwrap_or_else(PoisonError::into_inner).remove(node);
    }

    /// Says on the pod why it ends, for whoever waits for it, and removes it without the grace that
    /// nobody is there to give.
    async fn delete(&self, pod: &Pod) -> Result<(), ControllerError> {
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        if !is_terminal(pod) && node_name(pod).is_some() {
            let marked = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(mark())).await;
            gone_is_fine(marked).map_err(ControllerError::api("mark lost Pod", &name))?;
        }
        let same = Preconditions { uid: pod.uid(), resource_version: None };
        let params = DeleteParams::default().grace_period(0).preconditions(same);
        let deleted = gone_is_fine(api.delete(&name, &params).await);
        deleted.map(drop).map_err(ControllerError::api("delete lost Pod", &name))
    }
}

/// The end of a lost pod, as a patch of its status.
fn mark() -> serde_json::Value {
    let why = "the node of this pod no longer exists";
    let condition = disruption_target("DeletionByPodGC", why, Timestamp::now());
    json!({"status": {"phase": "Failed", "conditions": [condition]}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{at, deleting, pod};

    #[test]
    fn whose_pods_go_and_when() {
        let unassigned = |pod: &mut Pod| pod.spec.as_mut().unwrap().node_name = None;
        let pods = [
            pod("bound", |_| {}),
            pod("waiting", unassigned),
            pod("given-up", |pod| {
                unassigned(pod);
                deleting(pod);
            }),
        ];
        type Row = (&'static str, &'static str, Option<i64>, Vec<&'static str>, Option<u64>);
        let rows: [Row; 6] = [
            ("just gone", "n", Some(100), vec![], Some(40)),
            ("in quarantine", "n", Some(70), vec![], Some(10)),
            ("gone for good", "n", Some(60), vec!["bound"], None),
            ("another node", "m", Some(60), vec![], None),
            ("another node, just gone", "m", Some(100), vec![], None),
            ("no node", "", None, vec!["given-up"], None),
        ];
        for (name, node, gone_since, expected, again) in rows {
            let plan = plan(node, &pods, gone_since.map(at), at(100));
            let deleted: Vec<_> = plan.delete.iter().map(|pod| pod.name_any()).collect();
            assert_eq!(
                (deleted, plan.again.map(|again| again.as_secs())),
                (expected.into_iter().map(String::from).collect(), again),
                "{name}"
            );
        }
    }
}
