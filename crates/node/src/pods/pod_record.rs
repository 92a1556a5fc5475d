//! What a pod's object in the API remembers for its node: versions, runs whose records are lost, health.
//!
//! Pure readings of the object; the worker takes from here what the runtime cannot tell.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Pod, Volume};

use super::model::{PodModel, Role};
use super::observed::{Health, Run, run_from_status};
use crate::time::now;

/// The version of the object as a number, so that older ones can be told.
pub(super) fn revision(pod: &Pod) -> u64 {
    pod.metadata.resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Whether volumes of the pod show something that is different in its newer form: labels and annotations are all of a pod's
/// metadata that changes and can be shown. The namespace that every pod finds beside its token does not.
pub(super) fn shows_difference(old: &Pod, new: &Pod) -> bool {
    let same =
        old.metadata.labels == new.metadata.labels && old.metadata.annotations == new.metadata.annotations;
    let volumes = new.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let shows = |volume: &Volume| {
        let projected = volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten());
        volume.downward_api.is_some() || projected.into_iter().any(|source| source.downward_api.is_some())
    };
    !same && volumes.into_iter().any(shows)
}

/// The last runs according to the status, by container.
pub(super) fn remembered_runs(model: &PodModel) -> BTreeMap<String, Run> {
    let Some(status) = &model.pod.status else { return BTreeMap::new() };
    let now = now();
    status
        .init_container_statuses
        .iter()
        .flatten()
        .chain(status.container_statuses.iter().flatten())
        .chain(status.ephemeral_container_statuses.iter().flatten())
        .filter_map(|status| Some((status.name.clone(), run_from_status(status, now)?)))
        .collect()
}

/// What the last status says about the health of this very run; probes need not begin from nothing after a restart of
/// the agent, and the pod does not flap.
pub(super) fn adopted_health(model: &PodModel, name: &str, run: Option<&Run>) -> Option<Health> {
    let run = run.filter(|run| run.is_running())?;
    let status = model.pod.status.as_ref()?;
    let list = match model.container(name)?.role {
        Role::Init | Role::Sidecar => status.init_container_statuses.as_ref(),
        Role::Main => status.container_statuses.as_ref(),
        Role::Ephemeral => status.ephemeral_container_statuses.as_ref(),
    }?;
    let status = list.iter().find(|status| status.name == name)?;
    let id = status.container_id.as_deref()?.rsplit("//").next()?;
    (id == run.id.0).then(|| Health { started: status.started == Some(true), ready: status.ready })
}
