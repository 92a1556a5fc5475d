//! Telling pods why they wait: the condition `PodScheduled` and the event `FailedScheduling`.
//!
//! Kept off the way of placing. What a pod should be told last is remembered here, and a reconciler
//! brings its condition there: many pods may change their message many times while the API is busy,
//! and only the last one is written. A write names the version of the pod it was made for, so that it
//! cannot overtake the bind and make a placed pod look unplaced.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Api;
use kube::api::{Patch, PatchParams};
use sampan_client::{EventRecorder, Informer, ObjectKey, Queue, Requeue, run_controller};
use serde_json::{Value, json};

use crate::scheduler::PodRef;

/// Conditions written at once. Few, because placing pods is what the API should be busy with.
const WRITERS: usize = 4;
/// The condition that says whether a pod has a node.
const CONDITION: &str = "PodScheduled";

/// What a pod should be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// No node can take the pod, for this reason.
    Unschedulable(Arc<str>),
    /// Scheduling gates hold it back.
    Gated,
}

impl Notice {
    fn reason(&self) -> &'static str {
        match self {
            Self::Unschedulable(_) => "Unschedulable",
            Self::Gated => "SchedulingGated",
        }
    }

    fn message(&self) -> &str {
        match self {
            Self::Unschedulable(message) => message,
            Self::Gated => "Scheduling is blocked due to non-empty scheduling gates",
        }
    }
}

/// By pod, the one that is meant and what to tell about it.
type Wanted = HashMap<ObjectKey, (Arc<PodRef>, Notice)>;

/// The notices not yet delivered. Clones share them.
#[derive(Clone)]
pub(crate) struct Notices {
    wanted: Arc<Mutex<Wanted>>,
    queue: Queue<ObjectKey>,
}

impl Notices {
    pub(crate) fn new() -> Self {
        Self { wanted: Arc::default(), queue: Queue::new() }
    }

    /// Wants the pod to be told this, instead of anything it was to be told before.
    pub(crate) fn tell(&self, pod: Arc<PodRef>, notice: Notice) {
        let key = key(&pod);
        self.wanted().insert(key.clone(), (pod, notice));
        self.queue.add(key);
    }

    /// The pod need not be told anything any more.
    pub(crate) fn forget(&self, pod: &PodRef) {
        self.wanted().remove(&key(pod));
    }

    /// Delivers notices until the future is dropped.
    pub(crate) async fn deliver(self, client: kube::Client, pods: Informer<Pod>, events: EventRecorder) {
        let queue = self.queue.clone();
        run_controller("scheduler-notices", WRITERS, queue, move |key| {
            let (notices, client, pods, events) =
                (self.clone(), client.clone(), pods.clone(), events.clone());
            async move { notices.reconcile(&key, client, &pods, &events).await }
        })
        .await;
    }

    async fn reconcile(
        &self,
        key: &ObjectKey,
        client: kube::Client,
        pods: &Informer<Pod>,
        events: &EventRecorder,
    ) -> Result<Requeue, kube::Error> {
        let Some((identity, notice)) = self.wanted().get(key).cloned() else {
            return Ok(Requeue::No);
        };
        let pod = pods.by_key(key);
        if let Some(pod) = pod.filter(|pod| pod.metadata.uid.as_deref() == Some(identity.uid.as_str()))
            && let Some(patch) = plan(&pod, &notice, Timestamp::now())
        {
            let api: Api<Pod> = Api::namespaced(client, &key.namespace);
            match api.patch_status(&key.name, &PatchParams::default(), &Patch::Strategic(patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error),
            }
            if let Notice::Unschedulable(message) = &notice {
                events.record(&reference(&identity), "Warning", "FailedScheduling", &**message);
            }
        }
        let mut wanted = self.wanted();
        if wanted.get(key).is_some_and(|(_, now)| *now == notice) {
            wanted.remove(key);
        }
        Ok(Requeue::No)
    }

    fn wanted(&self) -> MutexGuard<'_, HashMap<ObjectKey, (Arc<PodRef>, Notice)>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How Events refer to a pod.
pub(crate) fn reference(pod: &PodRef) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_string()),
        kind: Some("Pod".to_string()),
        namespace: Some(pod.namespace.clone()),
        name: Some(pod.name.clone()),
        uid: Some(pod.uid.clone()),
        ..ObjectReference::default()
    }
}

fn key(pod: &PodRef) -> ObjectKey {
    ObjectKey::new(pod.namespace.as_str(), pod.name.as_str())
}

/// The patch that tells the pod, unless it has a node or has been told.
fn plan(pod: &Pod, notice: &Notice, now: Timestamp) -> Option<Value> {
    let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
    if !node.is_empty() {
        return None;
    }
    let old = condition(pod);
    let is_false = old.is_some_and(|old| old.status == "False");
    let has = |field: &Option<String>, text: &str| field.as_deref() == Some(text);
    if let Some(old) = old
        && is_false
        && has(&old.reason, notice.reason())
        && has(&old.message, notice.message())
    {
        return None;
    }
    // The time of transition is that of the status, not of the message.
    let since = old.filter(|_| is_false).and_then(|old| old.last_transition_time.clone());
    Some(json!({
        "metadata": {"resourceVersion": pod.metadata.resource_version},
        "status": {"conditions": [{
            "type": CONDITION,
            "status": "False",
            "reason": notice.reason(),
            "message": notice.message(),
            "lastTransitionTime": since.unwrap_or(Time(now)),
        }]},
    }))
}

fn condition(pod: &Pod) -> Option<&PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == CONDITION)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLIER: &str = "2026-01-01T00:00:00Z";

    fn pod(node: Option<&str>, condition: Option<(&str, &str, &str)>) -> Pod {
        let conditions: Vec<Value> = condition
            .map(|(status, reason, message)| {
                json!({
                    "type": CONDITION, "status": status, "reason": reason, "message": message,
                    "lastTransitionTime": EARLIER,
                })
            })
            .into_iter()
            .collect();
        serde_json::from_value(json!({
            "metadata": {"name": "p", "resourceVersion": "7"},
            "spec": {"containers": [], "nodeName": node},
            "status": {"conditions": conditions},
        }))
        .expect("a pod")
    }

    #[test]
    fn a_pod_is_told_when_it_does_not_know() {
        let now: Timestamp = "2026-02-02T00:00:00Z".parse().expect("a time");
        let full = Notice::Unschedulable("full".into());
        let rows = [
            ("never told", pod(None, None), Some(Time(now))),
            ("told the same", pod(None, Some(("False", "Unschedulable", "full"))), None),
            ("placed", pod(Some("n1"), None), None),
            (
                "told something else",
                pod(None, Some(("False", "SchedulingGated", "gates"))),
                Some(Time(EARLIER.parse().expect("a time"))),
            ),
            ("thought to be placed", pod(None, Some(("True", "", ""))), Some(Time(now))),
        ];
        for (name, pod, expected) in rows {
            let since = plan(&pod, &full, now).map(|patch| {
                assert_eq!(patch["metadata"]["resourceVersion"], "7", "{name}");
                patch["status"]["conditions"][0]["lastTransitionTime"].clone()
            });
            assert_eq!(since, expected.map(|time| json!(time)), "{name}");
        }
    }
}
