//! What the quotas of a namespace say is used, counted again from the objects.
//!
//! Admission raises the usage in the transaction that stores an object, so a quota never says less than there is. This
//! loop brings it down again when objects go, shrink or end, and follows changes of what is allowed.
//!
//! A count must never miss an object that admission has charged. So a quota is read first, then the objects, both from
//! the server and not from a copy; and the status is written on the condition that the quota is still the one that was
//! read. Whatever was charged in between has changed the quota, the write fails, and the loop comes again.

mod plan;

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use kube::api::{Api, DynamicObject, ListParams, PostParams};
use kube::discovery::verbs;
use sampan_api::quota;
use sampan_client::{Change, Informer, ObjectKey, Queue, Requeue};
use serde_json::Value;

use crate::catalog::{Catalog, Kind};
use crate::common::error::{ControllerError, gone_is_fine, is_not_found};
use crate::common::wiring::{Parts, synced};
use plan::{Counted, plan};

/// How many quotas are counted for at once; upstream's default.
const WORKERS: usize = 5;
/// How long to wait for the list of kinds when discovery has failed: a count without some kind would be too low.
const KINDS_RETRY: std::time::Duration = std::time::Duration::from_secs(1);
/// Kinds whose content counts; of all others only the number does.
const WEIGHED: &[&str] = &["persistentvolumeclaims", "pods", "services"];

/// Starts the controller. What is returned must be called with the namespace of every object that disappears.
pub(crate) fn start(
    parts: &mut Parts,
    catalog: &Arc<Catalog>,
) -> impl Fn(&str) + Send + Sync + Clone + use<> {
    let quotas = parts.informers.of::<ResourceQuota>();
    let queue: Queue<ObjectKey> = Queue::new();
    parts.on_own_change(&quotas, &queue);
    let wake = {
        let (queue, quotas) = (queue.clone(), quotas.clone());
        move |namespace: &str| {
            for quota in quotas.list_in(namespace) {
                queue.add(ObjectKey::of(quota.as_ref()));
            }
        }
    };
    let pods = parts.informers.of::<Pod>();
    on_cheaper(parts, &pods, "pods", wake.clone());
    let services = parts.informers.of::<Service>();
    on_cheaper(parts, &services, "services", wake.clone());
    let claims = parts.informers.of::<PersistentVolumeClaim>();
    on_cheaper(parts, &claims, "persistentvolumeclaims", wake.clone());
    let ready = vec![synced(&quotas)];
    let controller = Arc::new(Quotas {
        client: parts.client_as("resourcequota-controller"),
        catalog: Arc::clone(catalog),
    });
    parts.run("resource-quota", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
    wake
}

/// Wakes the quotas of a namespace when an object in it costs less than before. More is charged by admission.
fn on_cheaper<K>(
    parts: &mut Parts,
    informer: &Informer<K>,
    plural: &'static str,
    wake: impl Fn(&str) + Send + 'static,
) where
    K: serde::Serialize + Send + Sync + 'static,
{
    parts.on_change(informer.subscribe(), move |change: &Change<K>| {
        if let (Some(old), Some(new)) = (&change.old, &change.new) {
            let value = |object: &K| serde_json::to_value(object).unwrap_or_default();
            let now = Timestamp::now();
            let before = quota::usage("", plural, &value(old), now);
            let after = quota::usage("", plural, &value(new), now);
            if before.iter().any(|(name, amount)| after.get(name).is_none_or(|now| now < amount)) {
                wake(&change.key.namespace);
            }
        }
    });
}

struct Quotas {
    client: kube::Client,
    catalog: Arc<Catalog>,
}

impl Quotas {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<Requeue, ControllerError> {
        let api: Api<ResourceQuota> = Api::namespaced(self.client.clone(), &key.namespace);
        let quota = match api.get(&key.name).await {
            Ok(quota) => quota,
            Err(error) if is_not_found(&error) => return Ok(Requeue::No),
            Err(error) => return Err(ControllerError::api("look at ResourceQuota", &key)(error)),
        };
        let document = serde_json::to_value(&quota).unwrap_or_default();
        let kinds = self.catalog.kinds();
        if kinds.failure.is_some() {
            return Ok(Requeue::After(KINDS_RETRY));
        }
        let mut counted = Vec::new();
        for kind in kinds.all.iter().filter(|kind| is_counted(kind, &document["spec"])) {
            counted.push(self.count(kind, &key.namespace).await?);
        }
        let Some(status) = plan(&document, &counted, Timestamp::now()) else { return Ok(Requeue::No) };
        let changed = ResourceQuota { status: serde_json::from_value(status).ok(), ..quota };
        gone_is_fine(api.replace_status(&key.name, &PostParams::default(), &changed).await)
            .map_err(ControllerError::api("update the status of ResourceQuota", &key))?;
        Ok(Requeue::No)
    }

    /// The objects of a kind in a namespace, as far as they count.
    async fn count(&self, kind: &Kind, namespace: &str) -> Result<Counted, ControllerError> {
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &kind.resource);
        let failed = || ControllerError::api("count", format!("{} in {namespace}", kind.name()));
        let all = ListParams::default();
        let objects = if kind.resource.group.is_empty() && WEIGHED.contains(&kind.resource.plural.as_str()) {
            let list = api.list(&all).await.map_err(failed())?;
            list.items.iter().map(|object| serde_json::to_value(object).unwrap_or_default()).collect()
        } else {
            let list = api.list_metadata(&all).await.map_err(failed())?;
            vec![Value::Null; list.items.len()]
        };
        Ok(Counted { group: kind.resource.group.clone(), plural: kind.resource.plural.clone(), objects })
    }
}

fn is_counted(kind: &Kind, spec: &Value) -> bool {
    kind.namespaced
        && kind.can(verbs::LIST)
        && quota::may_count(spec, &kind.resource.group, &kind.resource.plural)
}
