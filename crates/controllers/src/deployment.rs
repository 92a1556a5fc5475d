//! Deployments: from one template to the next without losing the service.
//!
//! `plan` decides one step of a rollout from the Deployment and its ReplicaSets, `sizes` and `scale`
//! hold the arithmetic, `status` tells the story; here the steps are done. A rollback needs no code of
//! its own: kubectl writes an old template back, and the ReplicaSet that has it becomes the newest.

mod plan;
mod scale;
mod sizes;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{Selector, SelectorExt};
use kube::{Resource, ResourceExt};
use sampan_client::{EventRecorder, Informer, ObjectKey, Queue, Requeue};
use serde_json::{Value, json};

use crate::common::error::{ControllerError, gone_is_fine, is_already_exists, is_namespace_terminating};
use crate::common::owner::{
    Claim, claim, controller_key, controller_of, controller_reference, is_controlled_by, with_owner,
    without_owner,
};
use crate::common::wiring::{Parts, synced};
use crate::common::writes::{check_owner_stays, replace_owners, words_of};
use plan::{Action, Change, Observed};

/// How many Deployments are reconciled at once; upstream's default.
const WORKERS: usize = 5;

/// Starts the controller.
pub(crate) fn start(parts: &mut Parts) {
    let deployments = parts.informers.of::<Deployment>();
    let sets = parts.informers.of::<ReplicaSet>();
    let pods = parts.informers.of::<Pod>();
    let queue = Queue::new();
    parts.on_own_change(&deployments, &queue);
    parts.on_change(sets.subscribe(), {
        let (queue, deployments) = (queue.clone(), deployments.clone());
        move |change| wake_owners(change, &deployments, &queue)
    });
    parts.on_change(pods.subscribe(), {
        let (queue, sets) = (queue.clone(), sets.clone());
        move |change| wake_for_last_pod(change, &sets, &queue)
    });
    let ready = vec![synced(&deployments), synced(&sets), synced(&pods)];
    let client = parts.client_as("deployment-controller");
    let controller = Arc::new(Deployments {
        client: client.clone(),
        deployments,
        sets,
        pods,
        recorder: EventRecorder::new(client, "deployment-controller", ""),
    });
    parts.run("deployment", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
}

/// A ReplicaSet concerns the Deployment that controls it, or every one that might adopt it.
fn wake_owners(
    change: &sampan_client::Change<ReplicaSet>,
    deployments: &Informer<Deployment>,
    queue: &Queue<ObjectKey>,
) {
    for set in change.versions() {
        if let Some(owner) = controller_key::<Deployment>(&set.metadata) {
            queue.add(owner);
        }
    }
    let Some(orphan) = change.new.as_ref().filter(|set| controller_of(&set.metadata).is_none()) else {
        return;
    };
    for deployment in deployments.list_in(&change.key.namespace) {
        if selector_of(&deployment).is_ok_and(|selector| selector.matches(orphan.labels())) {
            queue.add(ObjectKey::of(deployment.as_ref()));
        }
    }
}

/// A Deployment that recreates waits for the last old pod to be gone, which no ReplicaSet shows.
fn wake_for_last_pod(
    change: &sampan_client::Change<Pod>,
    sets: &Informer<ReplicaSet>,
    queue: &Queue<ObjectKey>,
) {
    let ended = change.new.as_ref().is_none_or(|pod| crate::common::pod::is_terminal(pod));
    let Some(pod) = change.old.as_ref().filter(|_| ended) else { return };
    let set = controller_key::<ReplicaSet>(&pod.metadata).and_then(|key| sets.by_key(&key));
    if let Some(owner) = set.and_then(|set| controller_key::<Deployment>(&set.metadata)) {
        queue.add(owner);
    }
}

fn selector_of(deployment: &Deployment) -> Result<Selector, ControllerError> {
    let selector = deployment.spec.as_ref().map(|spec| spec.selector.clone()).unwrap_or_default();
    Selector::try_from(selector).map_err(|source| ControllerError::Selector {
        object: describe("Deployment", &deployment.metadata),
        source,
    })
}

fn describe(kind: &str, meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    format!("{kind} {}/{name}", meta.namespace.as_deref().unwrap_or_default())
}

struct Deployments {
    client: kube::Client,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    recorder: EventRecorder,
}

impl Deployments {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<Requeue, ControllerError> {
        let Some(deployment) = self.deployments.by_key(&key) else { return Ok(Requeue::No) };
        let sets = self.claim(&deployment).await?;
        let pods = self.pods.list_in(&key.namespace);
        let observed = Observed { sets: &sets, pods: &pods, now: Timestamp::now() };
        let plan = plan::plan(&deployment, &observed).map_err(|error| ControllerError::Api {
            action: "plan",
            object: describe("Deployment", &deployment.metadata),
            source: kube::Error::SerdeError(error),
        })?;
        for action in plan.actions {
            self.execute(&deployment, action).await?;
        }
        Ok(plan.again.map_or(Requeue::No, Requeue::After))
    }

    /// The ReplicaSets of a Deployment, after taking in orphans and letting go what left.
    async fn claim(&self, deployment: &Deployment) -> Result<Vec<Arc<ReplicaSet>>, ControllerError> {
        let selector = selector_of(deployment)?;
        let api = self.sets_of(deployment);
        let mut own = Vec::new();
        let mut orphans = Vec::new();
        for set in self.sets.list_in(&deployment.namespace().unwrap_or_default()) {
            match claim(&deployment.metadata, &selector, &set.metadata) {
                Claim::Owned => own.push(set),
                Claim::Adopt => orphans.push(set),
                Claim::Release => {
                    let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
                    replace_owners(&api, &set.metadata, &without_owner(&set.metadata, uid)).await?;
                }
                Claim::Foreign => {}
            }
        }
        if let (false, Some(reference)) = (orphans.is_empty(), controller_reference(deployment)) {
            check_owner_stays(&self.api_of(deployment), deployment).await?;
            for set in &orphans {
                replace_owners(&api, &set.metadata, &with_owner(&set.metadata, reference.clone())).await?;
            }
            // What was adopted now has another version; the event of that brings us back.
            return Err(ControllerError::Overtaken { object: describe("Deployment", &deployment.metadata) });
        }
        Ok(own)
    }

    async fn execute(&self, deployment: &Deployment, action: Action) -> Result<(), ControllerError> {
        match action {
            Action::CreateSet(set) => self.create(deployment, &set).await,
            Action::PatchSet { set, change } => self.patch(deployment, &set, change).await,
            Action::DeleteSet(set) => self.delete(deployment, &set).await,
            Action::SetStatus(status) => self.write_status(deployment, *status).await,
            Action::Annotate { revision } => {
                let patch = json!({"metadata": {
                    "uid": deployment.metadata.uid,
                    "annotations": {sizes::REVISION: revision},
                }});
                let name = deployment.name_any();
                let api = self.api_of(deployment);
                let patched = api.patch_metadata(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
                self.done("annotate", "Deployment", &deployment.metadata, patched)
            }
        }
    }

    async fn create(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), ControllerError> {
        let api = self.sets_of(deployment);
        let error = match api.create(&PostParams::default(), set).await {
            Ok(created) => {
                self.tell_size(deployment, &created.name_any(), 0, sizes::replicas(&created));
                return Ok(());
            }
            Err(error) if is_namespace_terminating(&error) => return Ok(()),
            Err(error) => error,
        };
        let name = set.name_any();
        if is_already_exists(&error) {
            let present =
                api.get_opt(&name).await.map_err(ControllerError::api("look at ReplicaSet", &name))?;
            let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
            let is_ours = |present: &ReplicaSet| {
                is_controlled_by(&present.metadata, uid) && plan::has_template_of(present, deployment)
            };
            if present.as_ref().is_some_and(|present| !is_ours(present)) {
                self.write_status(deployment, status::collided(deployment)).await?;
            }
        } else {
            let message = format!("Failed to create new replica set {name:?}: {}", words_of(&error));
            self.event(deployment, "Warning", status::CREATE_FAILED, message.clone());
            let failed = status::create_failed(deployment, message, Timestamp::now());
            self.write_status(deployment, failed).await?;
        }
        Err(ControllerError::api("create", describe("ReplicaSet", &set.metadata))(error))
    }

    async fn patch(
        &self,
        deployment: &Deployment,
        set: &ReplicaSet,
        change: Change,
    ) -> Result<(), ControllerError> {
        let name = set.name_any();
        let patch = Patch::Merge(patch_of(set, &change));
        let patched = self.sets_of(deployment).patch(&name, &PatchParams::default(), &patch).await;
        self.done("change", "ReplicaSet", &set.metadata, patched)?;
        if let Some(size) = change.replicas {
            self.tell_size(deployment, &name, sizes::replicas(set), size);
        }
        Ok(())
    }

    async fn delete(&self, deployment: &Deployment, set: &ReplicaSet) -> Result<(), ControllerError> {
        let same = Preconditions { uid: set.uid(), resource_version: set.resource_version() };
        let params = DeleteParams::background().preconditions(same);
        let deleted = self.sets_of(deployment).delete(&set.name_any(), &params).await;
        self.done("delete", "ReplicaSet", &set.metadata, deleted)
    }

    async fn write_status(
        &self,
        deployment: &Deployment,
        status: DeploymentStatus,
    ) -> Result<(), ControllerError> {
        let changed = Deployment { status: Some(status), ..deployment.clone() };
        let name = deployment.name_any();
        let written = self.api_of(deployment).replace_status(&name, &PostParams::default(), &changed).await;
        self.done("update the status of", "Deployment", &deployment.metadata, written)
    }

    fn done<T>(
        &self,
        action: &'static str,
        kind: &str,
        meta: &ObjectMeta,
        result: kube::Result<T>,
    ) -> Result<(), ControllerError> {
        gone_is_fine(result).map(drop).map_err(ControllerError::api(action, describe(kind, meta)))
    }

    fn tell_size(&self, deployment: &Deployment, set: &str, from: i32, to: i32) {
        if from != to {
            let direction = if from < to { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {set} from {from} to {to}");
            self.event(deployment, "Normal", "ScalingReplicaSet", message);
        }
    }

    fn event(&self, deployment: &Deployment, type_: &str, reason: &str, message: String) {
        self.recorder.record(&deployment.object_ref(&()), type_, reason, message);
    }

    fn api_of(&self, deployment: &Deployment) -> Api<Deployment> {
        Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default())
    }

    fn sets_of(&self, deployment: &Deployment) -> Api<ReplicaSet> {
        Api::namespaced(self.client.clone(), &deployment.namespace().unwrap_or_default())
    }
}

/// A merge patch for the version of the set that was looked at.
fn patch_of(set: &ReplicaSet, change: &Change) -> Value {
    let mut spec = serde_json::Map::new();
    if let Some(replicas) = change.replicas {
        spec.insert("replicas".into(), replicas.into());
    }
    if let Some(seconds) = change.min_ready_seconds {
        spec.insert("minReadySeconds".into(), seconds.into());
    }
    json!({
        "metadata": {
            "uid": set.metadata.uid,
            "resourceVersion": set.metadata.resource_version,
            "annotations": change.annotations,
        },
        "spec": spec,
    })
}
