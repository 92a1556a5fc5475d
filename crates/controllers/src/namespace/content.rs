//! Emptying a namespace, kind by kind, and counting what is left.

use std::collections::BTreeMap;

use kube::api::{Api, DeleteParams, ListParams};
use kube::core::{DynamicObject, PartialObjectMeta};
use kube::discovery::verbs;

use crate::catalog::{Kind, Kinds};
use crate::common::error::gone_is_fine;
use crate::common::writes::words_of;

/// What one look at the content of a namespace found.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Report {
    /// Why there may be kinds that were not looked at.
    pub(super) discovery: Option<String>,
    /// What could not be deleted or counted.
    pub(super) failures: Vec<String>,
    /// Objects left, by `resource.group`.
    pub(super) remaining: BTreeMap<String, usize>,
    /// Objects left that wait for a finalizer, by finalizer.
    pub(super) finalizers: BTreeMap<String, usize>,
}

impl Report {
    /// Whether the namespace is empty, and known to be.
    pub(super) fn is_clean(&self) -> bool {
        self.discovery.is_none() && self.failures.is_empty() && self.remaining.is_empty()
    }
}

/// Deletes what is in a namespace. As long as there are pods nothing else is touched: a pod may need
/// its secrets, policies and volumes to end well.
pub(super) async fn remove(client: &kube::Client, namespace: &str, kinds: &Kinds) -> Report {
    let mut report = Report { discovery: kinds.failure.clone(), ..Report::default() };
    let is_pod = |kind: &Kind| kind.resource.group.is_empty() && kind.resource.kind == "Pod";
    let (pods, others): (Vec<_>, Vec<_>) = kinds
        .all
        .iter()
        .filter(|kind| kind.namespaced && kind.can(verbs::LIST))
        .partition(|kind| is_pod(kind));
    for kind in pods {
        remove_kind(client, namespace, kind, &mut report).await;
    }
    if report.remaining.is_empty() && report.failures.is_empty() {
        for kind in others {
            remove_kind(client, namespace, kind, &mut report).await;
        }
    }
    report
}

type Object = PartialObjectMeta<DynamicObject>;
type Objects = Api<Object>;

async fn remove_kind(client: &kube::Client, namespace: &str, kind: &Kind, report: &mut Report) {
    let api: Objects = Api::namespaced_with(client.clone(), namespace, &kind.resource);
    let left = match empty(&api, kind).await {
        Ok(left) => left,
        Err(error) => {
            report.failures.push(format!("{}: {}", kind.name(), words_of(&error)));
            return;
        }
    };
    for object in left {
        *report.remaining.entry(kind.name()).or_insert(0) += 1;
        for finalizer in object.metadata.finalizers.into_iter().flatten() {
            *report.finalizers.entry(finalizer).or_insert(0) += 1;
        }
    }
}

/// Deletes all objects of a kind and returns those that are still there.
async fn empty(api: &Objects, kind: &Kind) -> kube::Result<Vec<Object>> {
    let present = list(api).await?;
    if present.is_empty() {
        // Most kinds have nothing in most namespaces.
        return Ok(present);
    }
    let params = DeleteParams::background();
    if kind.can(verbs::DELETE_COLLECTION) {
        gone_is_fine(api.delete_collection(&params, &ListParams::default()).await)?;
    } else {
        for object in present.iter().filter(|object| object.metadata.deletion_timestamp.is_none()) {
            let name = object.metadata.name.as_deref().unwrap_or_default();
            gone_is_fine(api.delete(name, &params).await)?;
        }
    }
    list(api).await
}

/// The objects of a kind; none when the kind is no longer served, for they are gone with it.
async fn list(api: &Objects) -> kube::Result<Vec<Object>> {
    let listed = gone_is_fine(api.list(&ListParams::default()).await)?;
    Ok(listed.map(|list| list.items).unwrap_or_default())
}
