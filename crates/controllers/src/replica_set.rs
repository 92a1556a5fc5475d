//! ReplicaSets: a number of pods from one template.
//!
//! Deciding is in `plan`, what it does to the world is here. Pods are created in batches of 1, 2, 4, …
//! so that a template the server refuses costs one request and not five hundred.

mod plan;
mod ranking;
mod status;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Resource, ResourceExt};
use sampan_client::{Change, EventRecorder, Informer, ObjectKey, Queue, Requeue};

use crate::common::error::{ControllerError, gone_is_fine, is_namespace_terminating};
use crate::common::expectations::{DOUBT_AFTER, Expectations, Seen, Standing};
use crate::common::owner::{controller_key, controller_of, controller_reference, with_owner, without_owner};
use crate::common::pod;
use crate::common::wiring::{Parts, synced};
use crate::common::writes::{check_owner_stays, replace_owners, words_of};
use plan::{Action, Observed};
use status::Failure;

/// How many sets are reconciled at once; upstream's default.
const WORKERS: usize = 5;
/// The size of the first batch of creations.
const FIRST_BATCH: usize = 1;

/// Starts the controller.
pub(crate) fn start(parts: &mut Parts) {
    let sets = parts.informers.of::<ReplicaSet>();
    let pods = parts.informers.of::<Pod>();
    let queue = Queue::new();
    parts.on_own_change(&sets, &queue);
    parts.on_change(pods.subscribe(), {
        let (queue, sets) = (queue.clone(), sets.clone());
        move |change| wake_owners(change, &sets, &queue)
    });
    let ready = vec![synced(&sets), synced(&pods)];
    let client = parts.client_as("replicaset-controller");
    let controller = Arc::new(ReplicaSets {
        client: client.clone(),
        sets,
        pods,
        expectations: Expectations::default(),
        recorder: EventRecorder::new(client, "replicaset-controller", ""),
    });
    parts.run("replicaset", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
}

/// A pod concerns the set that controls it, or, being nobody's, every set that might adopt it.
fn wake_owners(change: &Change<Pod>, sets: &Informer<ReplicaSet>, queue: &Queue<ObjectKey>) {
    for pod in change.versions() {
        if let Some(owner) = controller_key::<ReplicaSet>(&pod.metadata) {
            queue.add(owner);
        }
    }
    let Some(orphan) = change.new.as_ref().filter(|pod| controller_of(&pod.metadata).is_none()) else {
        return;
    };
    for set in sets.list_in(&change.key.namespace) {
        if selector_of(&set).is_ok_and(|selector| selector.matches(orphan.labels())) {
            queue.add(ObjectKey::of(set.as_ref()));
        }
    }
}

fn selector_of(set: &ReplicaSet) -> Result<Selector, ControllerError> {
    let selector = set.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    Selector::try_from(selector)
        .map_err(|source| ControllerError::Selector { object: describe(&set.metadata), source })
}

fn describe(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    format!("ReplicaSet {}/{name}", meta.namespace.as_deref().unwrap_or_default())
}

struct ReplicaSets {
    client: kube::Client,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    expectations: Expectations,
    recorder: EventRecorder,
}

/// A pod action that failed, and what the status should say about it.
struct Failed {
    failure: Option<Failure>,
    error: ControllerError,
}

impl From<ControllerError> for Failed {
    fn from(error: ControllerError) -> Self {
        Self { failure: None, error }
    }
}

impl ReplicaSets {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<Requeue, ControllerError> {
        let Some(set) = self.sets.by_key(&key) else {
            self.expectations.forget(&key);
            return Ok(Requeue::No);
        };
        let selector = selector_of(&set)?;
        let settled = self.settled(&key).await?;
        let pods = self.pods.list_in(&key.namespace);
        let now = Timestamp::now();
        let siblings = self.siblings(&set);
        let observed = Observed { pods: &pods, siblings: &siblings, settled, now };
        let done = self.execute(&set, plan::plan(&set, &selector, &observed)).await;
        let failure = done.as_ref().err().and_then(|failed| failed.failure.clone());
        let replicas = plan::replicas(&set, &selector, &pods);
        let status = status::status(&set, &replicas, plan::terminating(&set, &pods), failure, now);
        self.write_status(&set, status).await?;
        done.map_err(|failed| failed.error)?;
        if !settled {
            return Ok(Requeue::After(DOUBT_AFTER));
        }
        Ok(status::next_available(&set, &replicas, now).map_or(Requeue::No, Requeue::After))
    }

    /// Whether the copy shows everything this controller did for the set.
    async fn settled(&self, key: &ObjectKey) -> Result<bool, ControllerError> {
        let look = |name: &str, uid: &str| match self.pods.get(&key.namespace, name) {
            Some(pod) if pod.metadata.uid.as_deref() != Some(uid) => Seen::Absent,
            Some(pod) if pod::is_deleting(&pod) => Seen::Deleting,
            Some(_) => Seen::Present,
            None => Seen::Absent,
        };
        let doubtful = match self.expectations.check(key, look) {
            Standing::Settled => return Ok(true),
            Standing::Waiting => return Ok(false),
            Standing::Doubtful(objects) => objects,
        };
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        for object in doubtful {
            let pod = api
                .get_metadata_opt(&object.0)
                .await
                .map_err(ControllerError::api("look for Pod", &object.0))?;
            if pod.is_none_or(|pod| pod.metadata.uid.as_deref() != Some(object.1.as_str())) {
                self.expectations.give_up(key, &object);
            }
        }
        Ok(self.expectations.check(key, look) == Standing::Settled)
    }

    /// The uids of the sets with the same controller, this one included: their pods share nodes with ours.
    fn siblings(&self, set: &ReplicaSet) -> HashSet<String> {
        let own = set.uid();
        let Some(parent) = controller_of(&set.metadata) else { return own.into_iter().collect() };
        let sets = self.sets.list_in(set.metadata.namespace.as_deref().unwrap_or_default());
        sets.iter()
            .filter(|other| controller_of(&other.metadata).is_some_and(|owner| owner.uid == parent.uid))
            .filter_map(|other| other.uid())
            .chain(own)
            .collect()
    }

    async fn execute(&self, set: &ReplicaSet, actions: Vec<Action>) -> Result<(), Failed> {
        for action in actions {
            match action {
                Action::Adopt(pods) => self.adopt(set, &pods).await?,
                Action::Release(pod) => {
                    let owners =
                        without_owner(&pod.metadata, set.metadata.uid.as_deref().unwrap_or_default());
                    replace_owners(&self.pods_of(set), &pod.metadata, &owners).await?;
                }
                Action::Create(count) => self.create(set, count).await?,
                Action::Delete(pods) => self.delete(set, &pods).await?,
            }
        }
        Ok(())
    }

    async fn adopt(&self, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), ControllerError> {
        check_owner_stays(&self.api_of(set), set).await?;
        let Some(reference) = controller_reference(set) else { return Ok(()) };
        let api = self.pods_of(set);
        for pod in pods {
            let owners = with_owner(&pod.metadata, reference.clone());
            replace_owners(&api, &pod.metadata, &owners).await?;
        }
        Ok(())
    }

    async fn create(&self, set: &ReplicaSet, count: usize) -> Result<(), Failed> {
        let Some(pod) = plan::pod_of(set) else { return Ok(()) };
        let (mut left, mut batch) = (count, FIRST_BATCH);
        while left > 0 {
            let size = batch.min(left);
            let results = join_all((0..size).map(|_| self.create_one(set, &pod))).await;
            results.into_iter().collect::<Result<(), Failed>>()?;
            left -= size;
            batch *= 2;
        }
        Ok(())
    }

    async fn create_one(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), Failed> {
        let key = ObjectKey::of(set);
        match self.pods_of(set).create(&PostParams::default(), pod).await {
            Ok(created) => {
                let name = created.name_any();
                self.expectations.created(&key, &name, &created.uid().unwrap_or_default());
                self.event(set, "Normal", "SuccessfulCreate", format!("Created pod: {name}"));
                Ok(())
            }
            Err(error) if is_namespace_terminating(&error) => Ok(()),
            Err(error) => {
                let message = words_of(&error);
                self.event(set, "Warning", "FailedCreate", format!("Error creating: {message}"));
                let failure = Some(Failure { reason: "FailedCreate", message });
                let error = ControllerError::api("create a Pod of", describe(&set.metadata))(error);
                Err(Failed { failure, error })
            }
        }
    }

    async fn delete(&self, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), Failed> {
        let results = join_all(pods.iter().map(|pod| self.delete_one(set, pod))).await;
        results.into_iter().collect()
    }

    async fn delete_one(&self, set: &ReplicaSet, pod: &Pod) -> Result<(), Failed> {
        let (key, name) = (ObjectKey::of(set), pod.name_any());
        let same = Preconditions { uid: pod.uid(), resource_version: None };
        let gentle = DeleteParams::default().preconditions(same);
        match gone_is_fine(self.pods_of(set).delete(&name, &gentle).await) {
            Ok(_) => {
                self.expectations.deleted(&key, &name, &pod.uid().unwrap_or_default());
                self.event(set, "Normal", "SuccessfulDelete", format!("Deleted pod: {name}"));
                Ok(())
            }
            Err(error) => {
                let message = words_of(&error);
                self.event(set, "Warning", "FailedDelete", format!("Error deleting: {message}"));
                let failure = Some(Failure { reason: "FailedDelete", message });
                let error = ControllerError::api("delete Pod", ObjectKey::of(pod))(error);
                Err(Failed { failure, error })
            }
        }
    }

    async fn write_status(&self, set: &ReplicaSet, status: ReplicaSetStatus) -> Result<(), ControllerError> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let changed = ReplicaSet { status: Some(status), ..set.clone() };
        let written =
            self.api_of(set).replace_status(&set.name_any(), &PostParams::default(), &changed).await;
        gone_is_fine(written)
            .map(drop)
            .map_err(ControllerError::api("update the status of", describe(&set.metadata)))
    }

    fn api_of(&self, set: &ReplicaSet) -> Api<ReplicaSet> {
        Api::namespaced(self.client.clone(), &set.namespace().unwrap_or_default())
    }

    fn pods_of(&self, set: &ReplicaSet) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &set.namespace().unwrap_or_default())
    }

    fn event(&self, set: &ReplicaSet, type_: &str, reason: &str, message: String) {
        self.recorder.record(&set.object_ref(&()), type_, reason, message);
    }
}
