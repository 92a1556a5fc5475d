//! The doing: informers in, binds and notices out.
//!
//! One task owns the [`Scheduler`]. It takes whatever has been delivered, asks for decisions, sends
//! them off, and sleeps until something happens. Nothing waits for more to come: a single pod is sent
//! to its node within microseconds of being seen, and a crowd forms batches by itself while the task
//! is busy.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use sampan_client::{Change, Changes, EventRecorder, Informer, Informers, Queue};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::notices::{self, Notice, Notices};
use crate::scheduler::{Decision, Event, PodRef, Scheduler};

/// Binds on their way to the API at once. Enough to fill its group commits; more would only make the
/// pods placed last in a burst wait behind each other there instead of here, where a pod of higher
/// priority can still go first.
const BINDS_AT_ONCE: usize = 64;
/// Pod changes taken in before decisions are made. Bounds the wait of the first pod in a flood.
const CHANGES_AT_ONCE: usize = 1024;

/// Starts the scheduler. Must be called inside a tokio runtime; it runs until the informers stop or
/// the handle is aborted.
pub fn start(client: kube::Client, informers: Informers) -> JoinHandle<()> {
    let (pods, nodes) = (informers.of::<Pod>(), informers.of::<Node>());
    let events = EventRecorder::new(client.clone(), "default-scheduler", "");
    let notices = Notices::new();
    let (results, inbox) = mpsc::unbounded_channel();
    let executor = Executor {
        client: client.clone(),
        pods: pods.clone(),
        scheduler: Scheduler::new(),
        events: events.clone(),
        notices: notices.clone(),
        retries: Queue::new(),
        in_flight: 0,
        results,
    };
    tokio::spawn(async move {
        tokio::select! {
            () = executor.run(nodes, inbox) => {}
            () = notices.deliver(client, pods, events) => {}
        }
    })
}

struct Executor {
    client: kube::Client,
    pods: Informer<Pod>,
    scheduler: Scheduler,
    events: EventRecorder,
    notices: Notices,
    /// Pods whose bind failed, until they may try again.
    retries: Queue<PodRef>,
    in_flight: usize,
    results: mpsc::UnboundedSender<BindResult>,
}

struct BindResult {
    pod: Arc<PodRef>,
    node: String,
    result: kube::Result<()>,
}

impl Executor {
    async fn run(mut self, nodes: Informer<Node>, mut inbox: mpsc::UnboundedReceiver<BindResult>) {
        // A node looks empty until every pod on it is known, so nothing is placed before that.
        self.pods.synced().await;
        nodes.synced().await;
        let (mut pod_changes, mut node_changes) = (self.pods.subscribe(), nodes.subscribe());
        self.take_in(&mut pod_changes, &mut node_changes, usize::MAX);
        let retries = self.retries.clone();
        loop {
            if self.act() {
                // The binds were spawned on this thread and start when it is given up.
                tokio::task::yield_now().await;
            }
            tokio::select! {
                change = pod_changes.recv() => match change {
                    Some(change) => self.pod_changed(&change),
                    None => return,
                },
                change = node_changes.recv() => match change {
                    Some(change) => self.node_changed(&change),
                    None => return,
                },
                Some(result) = inbox.recv() => self.bind_ended(&result),
                Some(pod) = retries.next() => self.retry(&pod),
            }
            self.take_in(&mut pod_changes, &mut node_changes, CHANGES_AT_ONCE);
            while let Ok(result) = inbox.try_recv() {
                self.bind_ended(&result);
            }
        }
    }

    /// Takes in what has been delivered, nodes first.
    fn take_in(&mut self, pods: &mut Changes<Pod>, nodes: &mut Changes<Node>, limit: usize) {
        while let Some(change) = nodes.try_recv() {
            self.node_changed(&change);
        }
        for change in std::iter::from_fn(|| pods.try_recv()).take(limit) {
            self.pod_changed(&change);
        }
    }

    fn node_changed(&mut self, change: &Change<Node>) {
        match &change.new {
            Some(node) => self.scheduler.apply(Event::NodeChanged(node)),
            None => self.scheduler.apply(Event::NodeRemoved(&change.key.name)),
        }
    }

    fn pod_changed(&mut self, change: &Change<Pod>) {
        let (old, new) = (change.old.as_deref(), change.new.as_deref());
        if let Some(old) = old
            && new.is_none_or(|new| new.metadata.uid != old.metadata.uid)
        {
            let pod = identity(old);
            self.scheduler.apply(Event::PodRemoved(&pod.uid));
            self.retries.forget(&pod);
            self.notices.forget(&pod);
        }
        if let Some(new) = new
            && !old.is_some_and(|old| is_same_to_us(old, new))
        {
            self.scheduler.apply(Event::PodChanged(new));
        }
    }

    /// Carries out what the scheduler decides. Tells whether there was anything to do.
    fn act(&mut self) -> bool {
        let decisions = self.scheduler.schedule(BINDS_AT_ONCE.saturating_sub(self.in_flight));
        let acted = !decisions.is_empty();
        for decision in decisions {
            match decision {
                Decision::Bind { pod, node } => {
                    self.notices.forget(&pod);
                    self.in_flight += 1;
                    let (client, results) = (self.client.clone(), self.results.clone());
                    tokio::spawn(async move {
                        let result = bind(client, &pod, &node).await;
                        // Nobody listens any more when the scheduler is being stopped.
                        let _ = results.send(BindResult { pod, node, result });
                    });
                }
                Decision::Unschedulable { pod, message } => {
                    self.notices.tell(pod, Notice::Unschedulable(message));
                }
                Decision::Gated { pod } => self.notices.tell(pod, Notice::Gated),
            }
        }
        acted
    }

    fn bind_ended(&mut self, ended: &BindResult) {
        self.in_flight -= 1;
        let pod = &*ended.pod;
        match &ended.result {
            Ok(()) => {
                self.scheduler.apply(Event::BindSucceeded(&pod.uid));
                self.retries.forget(pod);
                let message =
                    format!("Successfully assigned {}/{} to {}", pod.namespace, pod.name, ended.node);
                self.events.record(&notices::reference(pod), "Normal", "Scheduled", message);
            }
            Err(error) => {
                self.scheduler.apply(Event::BindFailed(&pod.uid));
                let failures = self.retries.retry(pod.clone());
                if is_lost_race(error) {
                    return;
                }
                let (namespace, name, node) = (&pod.namespace, &pod.name, &ended.node);
                let cause: &(dyn std::error::Error + 'static) = error;
                tracing::warn!(
                    namespace,
                    name,
                    node,
                    failures,
                    error = cause,
                    "could not bind a pod, will retry"
                );
                let message = format!("Binding rejected: {error}");
                self.events.record(&notices::reference(pod), "Warning", "FailedScheduling", message);
            }
        }
    }

    fn retry(&mut self, pod: &PodRef) {
        self.retries.done(pod);
        let present = self.pods.get(&pod.namespace, &pod.name);
        if present.is_some_and(|present| present.metadata.uid.as_deref() == Some(pod.uid.as_str())) {
            self.scheduler.apply(Event::BindRetry(&pod.uid));
        } else {
            self.retries.forget(pod);
        }
    }
}

async fn bind(client: kube::Client, pod: &PodRef, node: &str) -> kube::Result<()> {
    let binding = Binding {
        metadata: ObjectMeta {
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            // The API refuses to bind another pod of the same name.
            uid: Some(pod.uid.clone()),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".to_string()),
            kind: Some("Node".to_string()),
            name: Some(node.to_string()),
            ..ObjectReference::default()
        },
    };
    let api: Api<Pod> = Api::namespaced(client, &pod.namespace);
    // The answer is a Status; that it is not an error is all it says.
    let _: Value = api.create_subresource("binding", &pod.name, &PostParams::default(), &binding).await?;
    Ok(())
}

/// The pod is gone, or someone else was faster. The informer tells, or has told, the rest.
fn is_lost_race(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found() || status.is_conflict())
}

/// Whether nothing changed that the scheduler looks at. Most changes of pods are a kubelet's reports.
fn is_same_to_us(old: &Pod, new: &Pod) -> bool {
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone());
    old.metadata.uid == new.metadata.uid
        && old.metadata.deletion_timestamp.is_some() == new.metadata.deletion_timestamp.is_some()
        && phase(old) == phase(new)
        && old.spec == new.spec
}

fn identity(pod: &Pod) -> PodRef {
    PodRef {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
    }
}
