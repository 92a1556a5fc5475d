//! EndpointSlices: which pods stand behind a service, in pieces of up to a hundred.
//!
//! `endpoints` says what the slices should hold together, `plan` finds the fewest writes that get
//! there, and here they are made. The zone of an endpoint is left out: it is a fact about the node, and
//! traffic is not routed by zone yet. Services without a selector keep the slices their users made.

mod endpoints;
mod plan;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams, Preconditions};
use sampan_client::{Change, Informer, ObjectKey, Queue, Requeue};

use crate::common::error::{ControllerError, gone_is_fine, is_namespace_terminating};
use crate::common::expectations::{DOUBT_AFTER, Expectations, Seen, Standing};
use crate::common::wiring::{Parts, synced};
use plan::{Action, SERVICE_NAME};

/// How many services are reconciled at once; upstream's default.
const WORKERS: usize = 5;

/// Starts the controller.
pub(crate) fn start(parts: &mut Parts) {
    let services = parts.informers.of::<Service>();
    let pods = parts.informers.of::<Pod>();
    let slices = parts.informers.of::<EndpointSlice>();
    let queue = Queue::new();
    parts.on_own_change(&services, &queue);
    parts.on_change(pods.subscribe(), {
        let (queue, services) = (queue.clone(), services.clone());
        move |change| wake_services(change, &services, &queue)
    });
    parts.on_change(slices.subscribe(), {
        let queue = queue.clone();
        move |change| {
            for slice in change.versions() {
                if let Some(service) = slice.labels().get(SERVICE_NAME).filter(|_| plan::is_managed(slice)) {
                    queue.add(ObjectKey::new(change.key.namespace.clone(), service.clone()));
                }
            }
        }
    });
    let ready = vec![synced(&services), synced(&pods), synced(&slices)];
    let controller = Arc::new(EndpointSlices {
        client: parts.client_as("endpointslice-controller"),
        services,
        pods,
        slices,
        expectations: Expectations::default(),
    });
    parts.run("endpointslice", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
}

/// A pod concerns every service that selects it or selected it before its labels changed. Changes that
/// do not show in an endpoint are not worth a look: most of a pod's updates are of that kind.
fn wake_services(change: &Change<Pod>, services: &Informer<Service>, queue: &Queue<ObjectKey>) {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && endpoints::is_same_endpoint(old, new)
    {
        return;
    }
    for service in services.list_in(&change.key.namespace) {
        if change.versions().any(|pod| endpoints::selects(&service, pod)) {
            queue.add(ObjectKey::of(service.as_ref()));
        }
    }
}

struct EndpointSlices {
    client: kube::Client,
    services: Informer<Service>,
    pods: Informer<Pod>,
    slices: Informer<EndpointSlice>,
    expectations: Expectations,
}

impl EndpointSlices {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<Requeue, ControllerError> {
        let service =
            self.services.by_key(&key).filter(|service| service.metadata.deletion_timestamp.is_none());
        let Some(service) = service else {
            // The slices of a service that is gone are the garbage collector's.
            self.expectations.forget(&key);
            return Ok(Requeue::No);
        };
        if !self.settled(&key).await? {
            return Ok(Requeue::After(DOUBT_AFTER));
        }
        let pods = self.pods.list_in(&key.namespace);
        let slices = self.slices.list_in(&key.namespace);
        for action in plan::plan(&service, &pods, &slices) {
            self.execute(&key, action).await?;
        }
        Ok(Requeue::No)
    }

    /// Whether the copy shows every slice made and deleted here; made twice, a slice would double a
    /// service's endpoints.
    async fn settled(&self, key: &ObjectKey) -> Result<bool, ControllerError> {
        let look = |name: &str, uid: &str| match self.slices.get(&key.namespace, name) {
            Some(slice) if slice.metadata.uid.as_deref() != Some(uid) => Seen::Absent,
            Some(slice) if slice.metadata.deletion_timestamp.is_some() => Seen::Deleting,
            Some(_) => Seen::Present,
            None => Seen::Absent,
        };
        let doubtful = match self.expectations.check(key, look) {
            Standing::Settled => return Ok(true),
            Standing::Waiting => return Ok(false),
            Standing::Doubtful(objects) => objects,
        };
        for object in doubtful {
            let found = self
                .api(key)
                .get_metadata_opt(&object.0)
                .await
                .map_err(ControllerError::api("look for EndpointSlice", &object.0))?;
            if found.is_none_or(|slice| slice.metadata.uid.as_deref() != Some(object.1.as_str())) {
                self.expectations.give_up(key, &object);
            }
        }
        Ok(self.expectations.check(key, look) == Standing::Settled)
    }

    async fn execute(&self, service: &ObjectKey, action: Action) -> Result<(), ControllerError> {
        let api = self.api(service);
        match action {
            Action::Create(slice) => match api.create(&PostParams::default(), &slice).await {
                Ok(created) => {
                    let uid = created.uid().unwrap_or_default();
                    self.expectations.created(service, &created.name_any(), &uid);
                    Ok(())
                }
                Err(error) if is_namespace_terminating(&error) => Ok(()),
                Err(error) => Err(ControllerError::api("create an EndpointSlice of Service", service)(error)),
            },
            Action::Update(slice) => {
                let name = slice.name_any();
                let written = api.replace(&name, &PostParams::default(), &slice).await;
                gone_is_fine(written).map(drop).map_err(ControllerError::api("update EndpointSlice", &name))
            }
            Action::Delete(slice) => {
                let name = slice.name_any();
                let same = Preconditions { uid: slice.uid(), resource_version: None };
                let deleted = api.delete(&name, &DeleteParams::default().preconditions(same)).await;
                let deleted = gone_is_fine(deleted);
                deleted.map_err(ControllerError::api("delete EndpointSlice", &name))?;
                self.expectations.deleted(service, &name, &slice.uid().unwrap_or_default());
                Ok(())
            }
        }
    }

    fn api(&self, service: &ObjectKey) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), &service.namespace)
    }
}
