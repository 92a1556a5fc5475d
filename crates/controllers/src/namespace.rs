//! The end of a namespace: everything in it goes, pods first, then the finalizer.
//!
//! Each look at a namespace asks every namespaced kind to delete what it has there and counts what is
//! left. Looks are woken by objects that disappear (the garbage collector's watches see them all); a slow
//! timer stands by for what those watches do not see.

mod content;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceStatus};
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use sampan_client::{Informer, ObjectKey, Queue, Requeue};

use crate::catalog::Catalog;
use crate::common::error::{ControllerError, gone_is_fine};
use crate::common::wiring::{Parts, synced};
use plan::Action;

/// How many namespaces are emptied at once; upstream uses ten.
const WORKERS: usize = 4;
/// How long to let disappearing objects gather before the next look.
const GATHER: Duration = Duration::from_millis(50);
/// When to look again although nothing was seen to disappear.
const STAND_BY: Duration = Duration::from_secs(15);

/// Starts the controller. The returned function is to be called with the namespace of every object
/// that disappears.
pub(crate) fn start(parts: &mut Parts, catalog: &Arc<Catalog>) -> impl Fn(&str) + Send + Sync + use<> {
    let namespaces = parts.informers.of::<Namespace>();
    let queue = Queue::new();
    parts.on_own_change(&namespaces, &queue);
    let on_gone = {
        let (namespaces, queue) = (namespaces.clone(), queue.clone());
        move |name: &str| {
            if namespaces.get("", name).is_some_and(|namespace| plan::is_leaving(&namespace)) {
                queue.add_after(ObjectKey::new("", name), GATHER);
            }
        }
    };
    let ready = vec![synced(&namespaces)];
    let controller = Arc::new(Namespaces {
        client: parts.client_as("namespace-controller"),
        namespaces,
        catalog: Arc::clone(catalog),
    });
    parts.run("namespace", WORKERS, queue, ready, move |key| Arc::clone(&controller).reconcile(key));
    on_gone
}

struct Namespaces {
    client: kube::Client,
    namespaces: Informer<Namespace>,
    catalog: Arc<Catalog>,
}

impl Namespaces {
    async fn reconcile(self: Arc<Self>, key: ObjectKey) -> Result<Requeue, ControllerError> {
        let namespace = self.namespaces.by_key(&key).filter(|namespace| plan::is_leaving(namespace));
        let Some(namespace) = namespace else { return Ok(Requeue::No) };
        if !plan::is_terminating(&namespace) {
            // Say first what is happening, for admission of new objects goes by it.
            self.write_status(&namespace, plan::terminating(&namespace)).await?;
            return Ok(Requeue::No);
        }
        let report = content::remove(&self.client, &key.name, &self.catalog.kinds()).await;
        for action in plan::plan(&namespace, &report, Timestamp::now()) {
            match action {
                Action::SetStatus(status) => self.write_status(&namespace, status).await?,
                Action::Finalize => self.finalize(&namespace).await?,
            }
        }
        Ok(if report.is_clean() { Requeue::No } else { Requeue::After(STAND_BY) })
    }

    async fn write_status(
        &self,
        namespace: &Namespace,
        status: NamespaceStatus,
    ) -> Result<(), ControllerError> {
        let changed = Namespace { status: Some(status), ..namespace.clone() };
        let name = namespace.name_any();
        let written = self.api().replace_status(&name, &PostParams::default(), &changed).await;
        gone_is_fine(written).map(drop).map_err(ControllerError::api("update the status of Namespace", name))
    }

    async fn finalize(&self, namespace: &Namespace) -> Result<(), ControllerError> {
        let mut changed = namespace.clone();
        if let Some(finalizers) = changed.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
            finalizers.retain(|finalizer| finalizer != plan::FINALIZER);
        }
        let name = namespace.name_any();
        let finalized =
            self.api().replace_subresource("finalize", &name, &PostParams::default(), &changed).await;
        gone_is_fine(finalized).map(drop).map_err(ControllerError::api("finalize Namespace", name))
    }

    fn api(&self) -> Api<Namespace> {
        Api::all(self.client.clone())
    }
}
