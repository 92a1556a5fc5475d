//! The doing: what the planner's actions mean to runtime, network, images, volumes and API.
//!
//! Every operation may be repeated after it was cut off at any line. Operations know nothing of each other and decide
//! nothing; they tell users what they did by events.

use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{LifecycleHandler, Pod};
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use sampan_runtime::{
    ContainerId, NamespaceOptions, PodSandboxConfig, PodSandboxMetadata, RuntimeError, SandboxId,
};

use super::container_config;
use super::model::{Planned, PodModel};
use super::observed::{Run, RunState, START_ERROR, START_ERROR_CODE, Sandbox, Teardown};
use crate::context::Context;
use crate::downward::PodFacts;
use crate::error::{NodeError, chain, is_conflict, is_not_found};
use crate::images::{self, PullPolicy, is_valid_reference};
use crate::probes;
use crate::sources::{self, SourceKey};
use crate::time::{go_duration, now};
use crate::{hosts, resources, volumes};

/// Pause before a failed clean-up is tried again; the operation itself waits, because nothing else is left to do.
const CLEANUP_PAUSE: Duration = Duration::from_secs(1);

/// Outcome of an operation.
#[derive(Debug)]
pub(crate) enum Done {
    /// When volumes have to be written again, or what is missing.
    Volumes(Result<Option<i64>, String>),
    Sandbox(Result<MadeSandbox, String>),
    Pulled {
        container: String,
        attempt: u32,
    },
    /// A container could not be brought to start.
    Failed {
        container: String,
        reason: &'static str,
        message: String,
        is_pull: bool,
    },
    /// The process could not be started; the attempt counts as ended.
    StartFailed {
        container: String,
        run: Run,
        message: String,
    },
    Started {
        container: String,
        id: ContainerId,
    },
    PostStart {
        container: String,
        id: ContainerId,
        failed: bool,
    },
    TornDown(Result<Teardown, ()>),
    /// Whether the object is gone.
    Deleted(bool),
    Nothing,
}

impl Done {
    /// Why an operation failed that a start needs.
    pub(crate) fn failure(&self) -> Option<&str> {
        match self {
            Self::Volumes(Err(message)) | Self::Sandbox(Err(message)) => Some(message),
            Self::Failed { message, .. } | Self::StartFailed { message, .. } => Some(message),
            _ => None,
        }
    }
}

/// A sandbox that was just made.
#[derive(Debug)]
pub(crate) struct MadeSandbox {
    pub(crate) sandbox: Sandbox,
    pub(crate) attempt: u32,
    /// Older sandboxes that were removed on the way.
    pub(crate) removed: Vec<SandboxId>,
}

/// What a start needs to know.
#[derive(Debug)]
pub(crate) struct StartOrder {
    pub(crate) container: String,
    pub(crate) attempt: u32,
    pub(crate) backoff_base: u32,
    pub(crate) sandbox: SandboxId,
    pub(crate) facts: PodFacts,
}

/// What a stop needs to know.
#[derive(Debug)]
pub(crate) struct StopOrder {
    pub(crate) container: String,
    pub(crate) id: ContainerId,
    /// Seconds.
    pub(crate) grace: i64,
    /// Text of the Killing event.
    pub(crate) message: String,
    /// Address of the pod, for HTTP hooks.
    pub(crate) ip: Option<String>,
}

/// Operations of one pod.
pub(crate) struct Operations {
    context: Arc<Context>,
}

/// Facts about a pod that containers may ask for.
pub(crate) fn facts(context: &Context, sandbox: Option<&Sandbox>) -> PodFacts {
    PodFacts {
        pod_ips: sandbox.map(|sandbox| sandbox.addresses.clone()).unwrap_or_default(),
        host_ips: vec![context.config.address.to_string()],
    }
}

impl Operations {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    pub(crate) async fn prepare_volumes(&self, model: &PodModel, facts: &PodFacts) -> Done {
        match volumes::set_up(&self.context, &model.pod, facts).await {
            Ok(refresh_at) => Done::Volumes(Ok(refresh_at)),
            Err(failure) => {
                let cause = chain(&failure.cause);
                let message = format!("MountVolume.SetUp failed for volume \"{}\" : {cause}", failure.volume);
                self.context.events.pod_warning(&model.pod, "FailedMount", &message);
                Done::Volumes(Err(message))
            }
        }
    }

    pub(crate) async fn run_sandbox(&self, model: &PodModel, attempt: u32, stale: Vec<SandboxId>) -> Done {
        match self.make_sandbox(model, attempt, stale).await {
            Ok(made) => Done::Sandbox(Ok(made)),
            Err(error) => {
                let message = format!("Failed to create pod sandbox: {}", chain(&error));
                self.context.events.pod_warning(&model.pod, "FailedCreatePodSandBox", &message);
                Done::Sandbox(Err(message))
            }
        }
    }

    async fn make_sandbox(
        &self,
        model: &PodModel,
        attempt: u32,
        stale: Vec<SandboxId>,
    ) -> Result<MadeSandbox, NodeError> {
        let _permit = self.context.starts.acquire().await;
        let runtime = &self.context.runtime;
        let config = self.sandbox_config(model, attempt)?;
        // The newest of the old ones keeps its records, for last states and logs of previous attempts.
        let removable = stale.len().saturating_sub(1);
        for (index, id) in stale.iter().enumerate() {
            forgive_missing(runtime.stop_pod_sandbox(id).await)?;
            if index < removable {
                forgive_missing(runtime.remove_pod_sandbox(id).await)?;
                self.context.owners.remove(id);
            }
        }
        let made = runtime.run_pod_sandbox(config).await?;
        self.context.owners.add(&made.id, model.uid());
        match self.connect(model, &made.id, made.netns.as_deref()).await {
            Ok(addresses) => Ok(MadeSandbox {
                sandbox: Sandbox { id: made.id, addresses },
                attempt,
                removed: stale[..removable].to_vec(),
            }),
            Err(error) => {
                // Half a sandbox is no use; the next attempt begins anew.
                forgive_missing(runtime.stop_pod_sandbox(&made.id).await)?;
                forgive_missing(runtime.remove_pod_sandbox(&made.id).await)?;
                Err(error)
            }
        }
    }

    fn sandbox_config(&self, model: &PodModel, attempt: u32) -> Result<PodSandboxConfig, NodeError> {
        let config = &self.context.config;
        let empty = Default::default();
        let spec = model.spec().unwrap_or(&empty);
        let names =
            hosts::names(&model.pod, &config.name, &config.cluster_domain).map_err(NodeError::Unusable)?;
        let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
        Ok(PodSandboxConfig {
            metadata: PodSandboxMetadata {
                name: model.name().to_string(),
                uid: model.uid().to_string(),
                namespace: model.namespace().to_string(),
                attempt,
            },
            hostname: names.hostname,
            log_directory: config.log_dir(model.namespace(), model.name(), model.uid()),
            namespaces: NamespaceOptions {
                host_network: spec.host_network == Some(true),
                host_pid: spec.host_pid == Some(true),
                host_ipc: spec.host_ipc == Some(true),
                share_process_namespace: spec.share_process_namespace == Some(true),
            },
            sysctls: sysctls
                .into_iter()
                .flatten()
                .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
                .collect(),
            cgroup_parent: resources::cgroup_parent(model.qos, model.uid()),
            resources: resources::of_pod(spec),
            annotations: std::collections::BTreeMap::new(),
        })
    }

    /// Gives the sandbox its address and remembers it with the sandbox.
    async fn connect(
        &self,
        model: &PodModel,
        id: &SandboxId,
        netns: Option<&std::path::Path>,
    ) -> Result<Vec<String>, NodeError> {
        if model.host_network() {
            return Ok(vec![self.context.config.address.to_string()]);
        }
        let Some(netns) = netns else {
            return Err(NodeError::Unusable("the sandbox has no network namespace".to_string()));
        };
        let attached = self.context.network.attach_pod(model.uid(), netns).await;
        let address = attached.map_err(|error| NodeError::Network {
            action: "connect the pod to the network",
            source: Box::new(error),
        })?;
        self.context.runtime.set_pod_addresses(id, vec![address.into()]).await?;
        Ok(vec![address.to_string()])
    }

    pub(crate) async fn pull(&self, model: &PodModel, container: &str, attempt: u32) -> Done {
        let Some(planned) = model.container(container) else { return Done::Nothing };
        match self.ensure_image(model, planned).await {
            Ok(()) => Done::Pulled { container: container.to_string(), attempt },
            Err((reason, message)) => {
                let failed = format!("Error: {reason}");
                self.context.events.container_warning(&model.pod, &planned.path(), "Failed", &failed);
                Done::Failed { container: container.to_string(), reason, message, is_pull: true }
            }
        }
    }

    /// Has the image at hand as the pull policy demands; the error is waiting reason and message.
    async fn ensure_image(&self, model: &PodModel, planned: &Planned) -> Result<(), (&'static str, String)> {
        let (events, path) = (&self.context.events, planned.path());
        let image = planned.spec.image.as_deref().unwrap_or_default();
        if !is_valid_reference(image) {
            let message = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
            );
            events.container_warning(&model.pod, &path, "InspectFailed", &message);
            return Err(("InvalidImageName", message));
        }
        let policy = PullPolicy::of(planned.spec.image_pull_policy.as_deref(), image);
        let present = self.context.images.find(image).map_err(|message| ("ImageInspectError", message))?;
        match (policy, present) {
            (PullPolicy::Never, None) => {
                let message = format!("Container image \"{image}\" is not present with pull policy of Never");
                events.container_warning(&model.pod, &path, "ErrImageNeverPull", &message);
                Err(("ErrImageNeverPull", message))
            }
            (PullPolicy::Never | PullPolicy::IfNotPresent, Some(_)) => {
                let message = format!("Container image \"{image}\" already present on machine");
                events.container(&model.pod, &path, "Pulled", &message);
                Ok(())
            }
            (PullPolicy::Always, _) | (PullPolicy::IfNotPresent, None) => {
                self.fetch(model, planned, image).await
            }
        }
    }

    async fn fetch(
        &self,
        model: &PodModel,
        planned: &Planned,
        image: &str,
    ) -> Result<(), (&'static str, String)> {
        let (events, path) = (&self.context.events, planned.path());
        events.container(&model.pod, &path, "Pulling", &format!("Pulling image \"{image}\""));
        let begun = Instant::now();
        let credentials = self.credentials(&model.pod, image).await;
        match self.context.images.pull(image, credentials).await {
            Ok(pulled) => {
                let message = format!(
                    "Successfully pulled image \"{image}\" in {} ({} including waiting). Image size: {} bytes.",
                    go_duration(pulled.took),
                    go_duration(begun.elapsed()),
                    pulled.image.size
                );
                events.container(&model.pod, &path, "Pulled", &message);
                Ok(())
            }
            Err(cause) => {
                let message = format!("Failed to pull image \"{image}\": {cause}");
                events.container_warning(&model.pod, &path, "Failed", &message);
                Err(("ErrImagePull", cause))
            }
        }
    }

    async fn credentials(&self, pod: &Pod, image: &str) -> Option<(String, String)> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        for reference in pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten()) {
            let key = SourceKey::Secret(namespace.clone(), reference.name.clone());
            let Ok(Some(secret)) = sources::read(&self.context, &key).await else { continue };
            if let Some(credentials) = images::credentials(&secret, image) {
                return Some(credentials);
            }
        }
        None
    }

    pub(crate) async fn start(&self, model: &PodModel, order: StartOrder) -> Done {
        let Some(planned) = model.container(&order.container) else { return Done::Nothing };
        let (events, path) = (&self.context.events, planned.path());
        let fail = |reason: &'static str, message: String, is_pull: bool| {
            events.container_warning(&model.pod, &path, "Failed", &format!("Error: {message}"));
            Done::Failed { container: order.container.clone(), reason, message, is_pull }
        };
        let image = match self.context.images.find(planned.spec.image.as_deref().unwrap_or_default()) {
            Ok(Some(image)) => image,
            Ok(None) => {
                return fail(
                    "ErrImagePull",
                    "the image was removed before the container started".into(),
                    true,
                );
            }
            Err(message) => return fail("ImageInspectError", message, true),
        };
        let config = match container_config::build(&self.context, model, planned, &image, &order).await {
            Ok(config) => config,
            Err(error) => return fail("CreateContainerConfigError", chain(&error), false),
        };
        let _permit = self.context.starts.acquire().await;
        let id = match self.context.runtime.create_container(&order.sandbox, config).await {
            Ok(id) => id,
            Err(error) => return fail("CreateContainerError", chain(&error), false),
        };
        events.container(&model.pod, &path, "Created", &format!("Created container: {}", order.container));
        match self.context.runtime.start_container(&id).await {
            Ok(()) => {
                events.container(
                    &model.pod,
                    &path,
                    "Started",
                    &format!("Started container {}", order.container),
                );
                Done::Started { container: order.container, id }
            }
            Err(error) => {
                let message = chain(&error);
                events.container_warning(&model.pod, &path, "Failed", &format!("Error: {message}"));
                let run = failed_run(&order, id, &message, planned, &image.id);
                Done::StartFailed { container: order.container, run, message }
            }
        }
    }

    pub(crate) async fn post_start(
        &self,
        model: &PodModel,
        container: &str,
        id: ContainerId,
        ip: Option<String>,
    ) -> Done {
        let planned = model.container(container);
        let handler = planned
            .and_then(|planned| planned.spec.lifecycle.as_ref())
            .and_then(|lifecycle| lifecycle.post_start.as_ref());
        let (Some(planned), Some(handler)) = (planned, handler) else { return Done::Nothing };
        let result = self.run_hook(planned, handler, &id, ip.as_deref()).await;
        let failed = result.is_err();
        if let Err(cause) = result {
            tracing::debug!(pod = model.label(), container, cause, "postStart hook failed");
            self.context.events.container_warning(
                &model.pod,
                &planned.path(),
                "FailedPostStartHook",
                "PostStartHook failed",
            );
        }
        Done::PostStart { container: container.to_string(), id, failed }
    }

    pub(crate) async fn stop(&self, model: &PodModel, order: StopOrder) -> Done {
        let begun = Instant::now();
        let grace = Duration::from_secs(u64::try_from(order.grace).unwrap_or(0));
        let planned = model.container(&order.container);
        if let Some(planned) = planned {
            self.context.events.container(&model.pod, &planned.path(), "Killing", &order.message);
        }
        let handler = planned
            .and_then(|planned| planned.spec.lifecycle.as_ref())
            .and_then(|lifecycle| lifecycle.pre_stop.as_ref());
        if let (Some(planned), Some(handler)) = (planned, handler)
            && !grace.is_zero()
        {
            self.pre_stop(model, planned, handler, &order, grace).await;
        }
        // Hook and process share the grace period; the process always gets a moment of its own.
        let least = grace.min(Duration::from_secs(2));
        let left = grace.saturating_sub(begun.elapsed()).max(least);
        if let Err(error) = forgive_missing(self.context.runtime.stop_container(&order.id, left).await) {
            tracing::warn!(
                pod = model.label(),
                container = order.container,
                error = chain(&error),
                "failed to stop"
            );
            tokio::time::sleep(CLEANUP_PAUSE).await;
        }
        Done::Nothing
    }

    async fn pre_stop(
        &self,
        model: &PodModel,
        planned: &Planned,
        handler: &LifecycleHandler,
        order: &StopOrder,
        grace: Duration,
    ) {
        let hook = self.run_hook(planned, handler, &order.id, order.ip.as_deref());
        match tokio::time::timeout(grace, hook).await {
            Ok(Ok(())) => {}
            Ok(Err(cause)) => {
                tracing::debug!(
                    pod = model.label(),
                    container = order.container,
                    cause,
                    "preStop hook failed"
                );
                self.context.events.container_warning(
                    &model.pod,
                    &planned.path(),
                    "FailedPreStopHook",
                    "PreStopHook failed",
                );
            }
            Err(_) => tracing::debug!(
                pod = model.label(),
                container = order.container,
                "preStop hook ran out of time"
            ),
        }
    }

    async fn run_hook(
        &self,
        planned: &Planned,
        handler: &LifecycleHandler,
        id: &ContainerId,
        ip: Option<&str>,
    ) -> Result<(), String> {
        if let Some(exec) = &handler.exec {
            let command = exec.command.clone().unwrap_or_default();
            let result =
                self.context.runtime.exec_sync(id, command, None).await.map_err(|error| chain(&error))?;
            return match result.exit_code {
                0 => Ok(()),
                code => Err(format!("command exited with {code}")),
            };
        }
        if let Some(get) = &handler.http_get {
            return probes::http_get(get, &planned.spec, ip.unwrap_or_default(), probes::HOOK_TIMEOUT)
                .await
                .map_err(|failure| failure.to_string());
        }
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
        }
        Ok(())
    }

    pub(crate) async fn remove_container(&self, model: &PodModel, id: ContainerId) -> Done {
        let log = self.context.runtime.container_status(&id).await.ok().map(|status| status.log_path);
        if let Err(error) = forgive_missing(self.context.runtime.remove_container(&id).await) {
            tracing::warn!(pod = model.label(), container = id.0, error = chain(&error), "failed to remove");
            tokio::time::sleep(CLEANUP_PAUSE).await;
        } else if let Some(log) = log {
            volumes::remove_log_files(&log).await;
        }
        Done::Nothing
    }

    pub(crate) async fn tear_down(&self, model: &PodModel, sandboxes: Vec<SandboxId>, remove: bool) -> Done {
        match take_down(&self.context, &PodIdentity::of(model), &sandboxes, remove).await {
            Ok(()) => Done::TornDown(Ok(if remove { Teardown::Removed } else { Teardown::Stopped })),
            Err(error) => {
                tracing::warn!(pod = model.label(), error = chain(&error), "failed to take the pod down");
                tokio::time::sleep(CLEANUP_PAUSE).await;
                Done::TornDown(Err(()))
            }
        }
    }

    pub(crate) async fn delete_object(&self, model: &PodModel) -> Done {
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), model.namespace());
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(model.uid().to_string()), resource_version: None }),
            ..DeleteParams::default()
        };
        match api.delete(model.name(), &parameters).await {
            Ok(_) => Done::Deleted(true),
            // Gone already, or another pod has the name now.
            Err(error) if is_not_found(&error) || is_conflict(&error) => Done::Deleted(true),
            Err(error) => {
                tracing::warn!(
                    pod = model.label(),
                    error = chain(&error),
                    "failed to delete the pod's object"
                );
                tokio::time::sleep(CLEANUP_PAUSE).await;
                Done::Deleted(false)
            }
        }
    }
}

/// Enough of a pod to take away what it left, also when its object no longer exists.
#[derive(Clone, Debug)]
pub(crate) struct PodIdentity {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

impl PodIdentity {
    fn of(model: &PodModel) -> Self {
        Self {
            namespace: model.namespace().to_string(),
            name: model.name().to_string(),
            uid: model.uid().to_string(),
        }
    }
}

/// Stops the sandboxes, gives back address and volumes; with `remove` also records, directories and logs.
pub(crate) async fn take_down(
    context: &Context,
    pod: &PodIdentity,
    sandboxes: &[SandboxId],
    remove: bool,
) -> Result<(), NodeError> {
    for id in sandboxes {
        forgive_missing(context.runtime.stop_pod_sandbox(id).await)?;
    }
    let detached = context.network.detach_pod(&pod.uid).await;
    detached.map_err(|error| NodeError::Network {
        action: "disconnect the pod from the network",
        source: Box::new(error),
    })?;
    volumes::tear_down(&context.config, &pod.uid).await?;
    if !remove {
        return Ok(());
    }
    for id in sandboxes {
        forgive_missing(context.runtime.remove_pod_sandbox(id).await)?;
        context.owners.remove(id);
    }
    volumes::remove_pod(&context.config, &pod.namespace, &pod.name, &pod.uid).await
}

/// What is not there any more needs no stopping and no removing.
fn forgive_missing(result: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    match result {
        Err(RuntimeError::NotFound(_)) => Ok(()),
        other => other,
    }
}

fn failed_run(order: &StartOrder, id: ContainerId, message: &str, planned: &Planned, image_id: &str) -> Run {
    let now = now();
    Run {
        id,
        attempt: order.attempt,
        in_sandbox: true,
        is_known: true,
        state: RunState::Exited,
        started_at: now,
        finished_at: now,
        exit_code: START_ERROR_CODE,
        reason: START_ERROR.to_string(),
        message: message.to_string(),
        image: planned.spec.image.clone().unwrap_or_default(),
        image_id: image_id.to_string(),
        backoff_base: order.backoff_base,
    }
}
