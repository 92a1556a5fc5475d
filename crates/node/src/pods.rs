//! The pods of this node: one worker each, woken by what concerns it.
//!
//! This module only carries messages. What is left of pods that no longer exist is taken away here, after the informer
//! has told the whole truth once.

mod container_config;
mod model;
mod observed;
mod operations;
mod plan;
mod pod_record;
mod probing;
mod start_trace;
mod status;
mod status_patch;
mod termination_message;
mod worker;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use sampan_client::Change;
use sampan_runtime::{PodSandbox, RuntimeEvent, SandboxId};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::task::{Id, JoinSet};

use self::operations::PodIdentity;
pub(crate) use self::worker::age;
use self::worker::{Birth, Wake};
use crate::context::Context;
use crate::error::chain;
use crate::sources::{self, SourceKey};
use crate::volumes::{self, Orphans};

/// Keeps the pods of the node as the API wants them. Ends only with the process.
pub(crate) async fn run(context: Arc<Context>) {
    let mut events = context.runtime.events();
    context.pods.synced().await;
    let mut manager = Manager::new(Arc::clone(&context)).await;
    let mut pods = context.pods.subscribe();
    loop {
        tokio::select! {
            change = pods.recv() => match change {
                Some(change) => manager.pod_changed(change),
                None => return,
            },
            event = events.recv() => match event {
                Ok(event) => manager.runtime_changed(event),
                Err(RecvError::Lagged(_)) => manager.wake_all(),
                Err(RecvError::Closed) => return,
            },
            Some(key) = context.config_maps.next() => {
                manager.source_changed(&SourceKey::ConfigMap(key.namespace, key.name));
            }
            Some(key) = context.secrets.next() => {
                manager.source_changed(&SourceKey::Secret(key.namespace, key.name));
            }
            Some(ended) = manager.workers.join_next_with_id() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => {
                        tracing::error!(%error, "a pod's worker ended unexpectedly");
                        error.id()
                    }
                };
                manager.worker_ended(id);
            }
        }
    }
}

/// A pod's worker as the manager knows it.
struct Handle {
    sender: mpsc::UnboundedSender<Wake>,
    task: Id,
    sources: Vec<SourceKey>,
}

struct Manager {
    context: Arc<Context>,
    workers: JoinSet<()>,
    /// By uid.
    handles: HashMap<String, Handle>,
    /// Whose config maps and secrets.
    sources: BTreeMap<SourceKey, HashSet<String>>,
    /// Sandboxes found at start that no worker has taken yet, by uid.
    found: HashMap<String, Vec<PodSandbox>>,
    /// Pods that are over here while their objects still exist (finalizers): they must not begin again.
    over: HashSet<String>,
}

impl Manager {
    /// Looks at what the last agent left and begins to take away what belongs to no pod.
    async fn new(context: Arc<Context>) -> Self {
        let mut found: HashMap<String, Vec<PodSandbox>> = HashMap::new();
        for sandbox in present_sandboxes(&context).await {
            found.entry(sandbox.metadata.uid.clone()).or_default().push(sandbox);
        }
        let wanted: HashSet<String> =
            context.pods.list().iter().filter_map(|pod| pod.metadata.uid.clone()).collect();
        let orphans: Vec<(String, Vec<PodSandbox>)> = {
            let uids: Vec<String> = found.keys().filter(|uid| !wanted.contains(*uid)).cloned().collect();
            uids.into_iter().filter_map(|uid| found.remove_entry(&uid)).collect()
        };
        let uids: Vec<String> = wanted.iter().cloned().collect();
        // Before any worker asks for an address or makes a directory: both would look like left over.
        if let Err(error) = context.network.retain_pods(&uids).await {
            tracing::warn!(error = chain(&error), "failed to free addresses of deleted pods");
        }
        let left = volumes::find_orphans(&context.config, &uids);
        tokio::spawn(take_away(Arc::clone(&context), orphans, left));
        Self {
            context,
            workers: JoinSet::new(),
            handles: HashMap::new(),
            sources: BTreeMap::new(),
            found,
            over: HashSet::new(),
        }
    }

    fn pod_changed(&mut self, change: Change<Pod>) {
        let old_uid = change.old.as_ref().and_then(|pod| pod.metadata.uid.clone());
        let new_uid = change.new.as_ref().and_then(|pod| pod.metadata.uid.clone());
        if let Some(uid) = old_uid.filter(|uid| Some(uid) != new_uid.as_ref()) {
            self.over.remove(&uid);
            self.send(&uid, Wake::Gone);
        }
        let (Some(pod), Some(uid)) = (change.new, new_uid) else { return };
        if self.over.contains(&uid) {
            return;
        }
        if self.handles.contains_key(&uid) {
            self.refer(&uid, &pod);
            self.send(&uid, Wake::Pod(pod));
        } else {
            self.begin(uid, pod);
        }
    }

    fn begin(&mut self, uid: String, pod: Arc<Pod>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let birth = Birth {
            context: Arc::clone(&self.context),
            pod: Arc::clone(&pod),
            sandboxes: self.found.remove(&uid).unwrap_or_default(),
            sender: sender.clone(),
            receiver,
        };
        let task = self.workers.spawn(worker::run(birth)).id();
        self.handles.insert(uid.clone(), Handle { sender, task, sources: Vec::new() });
        self.refer(&uid, &pod);
    }

    /// Notes which config maps and secrets the pod wants to hear of.
    fn refer(&mut self, uid: &str, pod: &Pod) {
        let sources: Vec<SourceKey> = sources::references(pod).into_iter().collect();
        let Some(handle) = self.handles.get_mut(uid) else { return };
        if handle.sources == sources {
            return;
        }
        let before = std::mem::replace(&mut handle.sources, sources.clone());
        self.forget_sources(uid, &before);
        for source in sources {
            self.sources.entry(source).or_default().insert(uid.to_string());
        }
    }

    fn forget_sources(&mut self, uid: &str, sources: &[SourceKey]) {
        for source in sources {
            if let Some(uids) = self.sources.get_mut(source) {
                uids.remove(uid);
                if uids.is_empty() {
                    self.sources.remove(source);
                }
            }
        }
    }

    fn source_changed(&self, key: &SourceKey) {
        for uid in self.sources.get(key).into_iter().flatten() {
            self.send(uid, Wake::Source);
        }
    }

    fn runtime_changed(&self, event: RuntimeEvent) {
        let (sandbox, wake) = match event {
            RuntimeEvent::ContainerExited { sandbox, .. } => (sandbox, Wake::Runtime),
            RuntimeEvent::SandboxExited { sandbox } => (sandbox, Wake::Sandbox),
        };
        if let Some(uid) = self.context.owners.of(&sandbox) {
            self.send(&uid, wake);
        }
    }

    fn wake_all(&self) {
        for handle in self.handles.values() {
            let _ = handle.sender.send(Wake::Sandbox);
        }
    }

    fn send(&self, uid: &str, wake: Wake) {
        if let Some(handle) = self.handles.get(uid) {
            // A worker that has just ended needs no message.
            let _ = handle.sender.send(wake);
        }
    }

    fn worker_ended(&mut self, task: Id) {
        let Some(uid) =
            self.handles.iter().find(|(_, handle)| handle.task == task).map(|(uid, _)| uid.clone())
        else {
            return;
        };
        if let Some(handle) = self.handles.remove(&uid) {
            self.forget_sources(&uid, &handle.sources);
        }
        let still_there =
            self.context.pods.list().iter().any(|pod| pod.metadata.uid.as_deref() == Some(&uid));
        if still_there {
            self.over.insert(uid);
        }
    }
}

/// What the runtime has. Asked until it answers: a pod whose sandbox is overlooked would be run twice.
async fn present_sandboxes(context: &Context) -> Vec<PodSandbox> {
    loop {
        match context.runtime.list_pod_sandboxes().await {
            Ok(sandboxes) => return sandboxes,
            Err(error) => tracing::error!(error = chain(&error), "cannot list the sandboxes of the node"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Takes away sandboxes and directories of pods that no longer exist.
async fn take_away(context: Arc<Context>, orphans: Vec<(String, Vec<PodSandbox>)>, left: Orphans) {
    for (uid, sandboxes) in orphans {
        let Some(first) = sandboxes.first() else { continue };
        let meta = &first.metadata;
        let pod = PodIdentity { namespace: meta.namespace.clone(), name: meta.name.clone(), uid };
        let ids: Vec<SandboxId> = sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
        if let Err(error) = operations::take_down(&context, &pod, &ids, true).await {
            tracing::warn!(
                pod = pod.name,
                error = chain(&error),
                "failed to take away what a deleted pod left"
            );
        }
    }
    volumes::remove_orphans(&context.config, left).await;
}
