//! Finding the sandbox or container a request means.

use sampan_runtime::{ContainerState, ContainerStatus, PodSandbox, SandboxState};

use super::HttpError;
use crate::context::Context;
use crate::pods::age;

/// What a request names.
#[derive(Clone, Debug)]
pub(crate) struct Address {
    pub(crate) namespace: String,
    pub(crate) pod: String,
    /// Empty when the pod itself is meant.
    pub(crate) container: String,
}

impl Address {
    pub(crate) fn new(namespace: &str, pod: &str, container: &str) -> Self {
        Self { namespace: namespace.to_string(), pod: pod.to_string(), container: container.to_string() }
    }
}

/// The sandboxes of the pod, oldest first. A pod that was deleted and made again has another uid; only the present one
/// counts.
pub(crate) async fn sandboxes(context: &Context, address: &Address) -> Result<Vec<PodSandbox>, HttpError> {
    let Some(pod) = context.pods.get(&address.namespace, &address.pod) else {
        return Err(HttpError::not_found(format!("pod \"{}\" not found", address.pod)));
    };
    let uid = pod.metadata.uid.as_deref().unwrap_or_default();
    let listed = context.runtime.list_pod_sandboxes().await.map_err(|error| HttpError::internal(&error))?;
    let mut sandboxes: Vec<PodSandbox> =
        listed.into_iter().filter(|sandbox| sandbox.metadata.uid == uid).collect();
    sandboxes.sort_by_key(age);
    Ok(sandboxes)
}

/// The attempts of the container, oldest first.
pub(crate) async fn runs(context: &Context, address: &Address) -> Result<Vec<ContainerStatus>, HttpError> {
    let mut runs = Vec::new();
    for sandbox in sandboxes(context, address).await? {
        let listed = context.runtime.list_containers(Some(&sandbox.id)).await;
        let listed = listed.map_err(|error| HttpError::internal(&error))?;
        runs.extend(listed.into_iter().filter(|container| container.metadata.name == address.container));
    }
    runs.sort_by_key(|run| run.metadata.attempt);
    Ok(runs)
}

/// The attempt that runs now.
pub(crate) async fn running(context: &Context, address: &Address) -> Result<ContainerStatus, HttpError> {
    let last = runs(context, address).await?.pop();
    last.filter(|run| run.state == ContainerState::Running)
        .ok_or_else(|| HttpError::not_found(format!("container not found (\"{}\")", address.container)))
}

/// The sandbox in use.
pub(crate) async fn sandbox(context: &Context, address: &Address) -> Result<PodSandbox, HttpError> {
    let last = sandboxes(context, address).await?.pop();
    last.filter(|sandbox| sandbox.state == SandboxState::Ready).ok_or_else(|| {
        HttpError::bad_request(format!(
            "unable to forward port because pod is not running. Current status={}",
            phase(context, address)
        ))
    })
}

fn phase(context: &Context, address: &Address) -> String {
    let pod = context.pods.get(&address.namespace, &address.pod);
    pod.and_then(|pod| pod.status.as_ref()?.phase.clone()).unwrap_or_else(|| "Pending".to_string())
}
