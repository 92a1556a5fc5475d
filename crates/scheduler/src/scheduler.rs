//! The state machine: which pods wait for what, and which node each gets.
//!
//! ```text
//!            gates                        node found                    API agrees
//!   (new) ──────────> Gated ──> Waiting ────────────────> Binding ────────────────> Placed
//!     │                          ^   ^                        │
//!     └──────────────────────────┘   │ retry                  │ API refuses
//!                                    └──────────── Failed <───┘
//! ```
//!
//! Waiting pods lie in their class, not in a queue of their own. The queue holds one entry per class
//! that may have a node left, namely the ticket of its first pod, so that a class that fits nowhere
//! costs one try however many pods are in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};

use crate::nodes::{NodeTable, Relief, Slot};
use crate::pod_class::{PodClass, PodId, Ticket};
use crate::resources::Lanes;
use crate::signature::Signature;

/// The scheduler whose pods we place.
const OUR_NAME: &str = "default-scheduler";
/// Classes without waiting pods are kept up to this number (and as many as there are in use), for the
/// next pod of the same shape usually comes soon.
const IDLE_CLASSES: usize = 256;

/// Which pod, exactly: names are used again, uids are not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodRef {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
}

/// What the scheduler may hear. Repeats are harmless, and so are late reports of a pod without a node
/// after that pod was placed.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A node is new or different.
    NodeChanged(&'a Node),
    /// The node of this name is gone.
    NodeRemoved(&'a str),
    /// A pod is new or different.
    PodChanged(&'a Pod),
    /// The pod with this uid is gone.
    PodRemoved(&'a str),
    /// The API has bound the pod with this uid as decided.
    BindSucceeded(&'a str),
    /// The API has not: the pod with this uid leaves its node and waits for a retry.
    BindFailed(&'a str),
    /// The pause of the pod with this uid after a failed bind is over.
    BindRetry(&'a str),
}

/// What has to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Bind the pod to the node, and report the result.
    Bind {
        /// The pod.
        pod: Arc<PodRef>,
        /// The node's name.
        node: String,
    },
    /// Tell the pod why it waits. Said once per pod and message.
    Unschedulable {
        /// The pod.
        pod: Arc<PodRef>,
        /// The reason, in kube-scheduler's form.
        message: Arc<str>,
    },
    /// Tell the pod that its scheduling gates hold it back.
    Gated {
        /// The pod.
        pod: Arc<PodRef>,
    },
}

type ClassId = u64;

enum Stage {
    Gated,
    Waiting(ClassId),
    Binding(Slot),
    Failed,
    Placed(Slot),
}

struct PodState {
    identity: Arc<PodRef>,
    signature: Arc<Signature>,
    priority: i32,
    stage: Stage,
    /// The message the pod was given last.
    told: Option<Arc<str>>,
}

/// See the module's description.
pub struct Scheduler {
    lanes: Lanes,
    nodes: NodeTable,
    pods: HashMap<PodId, PodState>,
    ids: HashMap<String, PodId>,
    next_pod: PodId,
    classes: BTreeMap<ClassId, PodClass>,
    class_of: HashMap<Arc<Signature>, ClassId>,
    next_class: ClassId,
    class_limit: usize,
    /// The first ticket of every class that may have a node left.
    active: BTreeSet<(Ticket, ClassId)>,
    parked: BTreeSet<ClassId>,
    /// Parked classes with pods that have not been told.
    unannounced: BTreeSet<ClassId>,
    /// Gated pods that have not been told.
    held_back: Vec<PodId>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new()
    }
}

impl Scheduler {
    /// A scheduler that knows no nodes and no pods.
    pub fn new() -> Self {
        Self {
            lanes: Lanes::new(),
            nodes: NodeTable::default(),
            pods: HashMap::new(),
            ids: HashMap::new(),
            next_pod: 0,
            classes: BTreeMap::new(),
            class_of: HashMap::new(),
            next_class: 0,
            class_limit: IDLE_CLASSES,
            active: BTreeSet::new(),
            parked: BTreeSet::new(),
            unannounced: BTreeSet::new(),
            held_back: Vec::new(),
        }
    }

    /// Takes in something that happened. Cheap: decisions are made in [`Scheduler::schedule`].
    pub fn apply(&mut self, event: Event<'_>) {
        match event {
            Event::NodeChanged(node) => self.node_changed(node),
            Event::NodeRemoved(name) => self.nodes.remove(name),
            Event::PodChanged(pod) => self.pod_changed(pod),
            Event::PodRemoved(uid) => self.pod_removed(uid),
            Event::BindSucceeded(uid) => self.bind_succeeded(uid),
            Event::BindFailed(uid) => self.bind_failed(uid),
            Event::BindRetry(uid) => self.bind_retry(uid),
        }
    }

    /// Places waiting pods, at most `batch` of them, and says what has to be done. The pods placed count
    /// on their nodes from now on. When fewer than `batch` were placed, no waiting pod fits anywhere.
    pub fn schedule(&mut self, batch: usize) -> Vec<Decision> {
        let mut decisions = Vec::new();
        while decisions.len() < batch {
            let Some(&(ticket, id)) = self.active.first() else {
                break;
            };
            let Some(class) = self.classes.get_mut(&id) else {
                self.active.pop_first();
                continue;
            };
            match class.best(&self.nodes) {
                Some(slot) => decisions.extend(self.assume(ticket, id, slot)),
                None => self.park(id),
            }
        }
        self.announce(&mut decisions);
        decisions
    }

    fn node_changed(&mut self, node: &Node) {
        let Some((slot, relief)) = self.nodes.update(node, &mut self.lanes) else {
            return;
        };
        if relief == Relief::EVERYTHING && self.nodes.len() == 1 {
            // With the first node there are reasons to tell, even if nothing fits.
            self.wake_all();
        } else {
            self.wake(slot, relief);
        }
    }

    fn pod_changed(&mut self, pod: &Pod) {
        let (Some(uid), Some(spec)) = (pod.metadata.uid.as_deref(), pod.spec.as_ref()) else {
            return;
        };
        if is_finished(pod) {
            return self.pod_removed(uid);
        }
        match spec.node_name.as_deref().filter(|node| !node.is_empty()) {
            Some(node) => self.pod_placed(pod, spec, node),
            None if is_ours(spec) => self.pod_waits(pod, spec),
            None => {}
        }
    }

    /// The API says that the pod has a node.
    fn pod_placed(&mut self, pod: &Pod, spec: &PodSpec, node: &str) {
        let signature = self.signature(spec);
        let id = self.pod_id(pod, &signature);
        let Some(state) = self.pods.get(&id) else { return };
        if let Stage::Binding(slot) | Stage::Placed(slot) = state.stage
            && self.nodes.name(slot) == node
            && state.signature.demand == signature.demand
        {
            self.set_stage(id, Stage::Placed(slot));
            return;
        }
        self.leave(id);
        let slot = self.nodes.slot_of(node);
        self.nodes.occupy(slot, &signature.demand);
        if let Some(state) = self.pods.get_mut(&id) {
            state.signature = signature;
            state.stage = Stage::Placed(slot);
        }
    }

    /// The API says that the pod has no node.
    fn pod_waits(&mut self, pod: &Pod, spec: &PodSpec) {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let known = self.ids.get(uid).and_then(|id| self.pods.get(id));
        if matches!(known, Some(PodState { stage: Stage::Binding(_) | Stage::Placed(_), .. })) {
            // Seen before the bind: what we know is newer.
            return;
        }
        if pod.metadata.deletion_timestamp.is_some() {
            return self.pod_removed(uid);
        }
        let signature = self.signature(spec);
        let priority = spec.priority.unwrap_or(0);
        let id = self.pod_id(pod, &signature);
        let Some(state) = self.pods.get_mut(&id) else {
            return;
        };
        let is_gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
        let is_same = state.priority == priority && state.signature == signature;
        match state.stage {
            Stage::Gated if is_gated && state.told.is_some() => return,
            Stage::Waiting(_) if is_same && !is_gated => return,
            Stage::Failed if !is_gated => {
                state.signature = signature;
                state.priority = priority;
                return;
            }
            _ => {}
        }
        self.leave(id);
        if let Some(state) = self.pods.get_mut(&id) {
            state.signature = signature;
            state.priority = priority;
        }
        if is_gated {
            self.hold_back(id);
        } else {
            self.enqueue(id);
        }
    }

    fn pod_removed(&mut self, uid: &str) {
        let Some(id) = self.ids.remove(uid) else { return };
        self.leave(id);
        self.pods.remove(&id);
    }

    fn bind_succeeded(&mut self, uid: &str) {
        if let Some((id, Stage::Binding(slot))) = self.stage_of(uid) {
            let slot = *slot;
            self.set_stage(id, Stage::Placed(slot));
        }
    }

    fn bind_failed(&mut self, uid: &str) {
        if let Some((id, Stage::Binding(_))) = self.stage_of(uid) {
            self.leave(id);
            self.set_stage(id, Stage::Failed);
        }
    }

    fn bind_retry(&mut self, uid: &str) {
        if let Some((id, Stage::Failed)) = self.stage_of(uid) {
            self.enqueue(id);
        }
    }

    fn stage_of(&self, uid: &str) -> Option<(PodId, &Stage)> {
        let id = *self.ids.get(uid)?;
        Some((id, &self.pods.get(&id)?.stage))
    }

    fn set_stage(&mut self, id: PodId, stage: Stage) {
        if let Some(state) = self.pods.get_mut(&id) {
            state.stage = stage;
        }
    }

    /// The pod's signature, shared with its class if there is one.
    fn signature(&mut self, spec: &PodSpec) -> Arc<Signature> {
        let signature = Signature::of(spec, &mut self.lanes);
        match self.class_of.get_key_value(&signature) {
            Some((shared, _)) => Arc::clone(shared),
            None => Arc::new(signature),
        }
    }

    /// The pod's number. A pod not seen before is taken in, as one that is nowhere yet.
    fn pod_id(&mut self, pod: &Pod, signature: &Arc<Signature>) -> PodId {
        let meta = &pod.metadata;
        let uid = meta.uid.clone().unwrap_or_default();
        if let Some(&id) = self.ids.get(&uid) {
            return id;
        }
        let id = self.next_pod;
        self.next_pod += 1;
        self.ids.insert(uid.clone(), id);
        let identity = PodRef {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid,
        };
        let state = PodState {
            identity: Arc::new(identity),
            signature: Arc::clone(signature),
            priority: 0,
            stage: Stage::Gated,
            told: None,
        };
        self.pods.insert(id, state);
        id
    }

    /// Takes the pod out of wherever it is. It is nowhere until its stage is set.
    fn leave(&mut self, id: PodId) {
        let Some(state) = self.pods.get_mut(&id) else {
            return;
        };
        let ticket = ticket(state, id);
        let signature = Arc::clone(&state.signature);
        match std::mem::replace(&mut state.stage, Stage::Gated) {
            Stage::Gated | Stage::Failed => {}
            Stage::Waiting(class) => self.stop_waiting(ticket, class),
            Stage::Binding(slot) | Stage::Placed(slot) => {
                let relief = self.nodes.release(slot, &signature.demand);
                self.wake(slot, relief);
            }
        }
    }

    fn hold_back(&mut self, id: PodId) {
        self.set_stage(id, Stage::Gated);
        self.held_back.push(id);
    }

    /// Puts the pod into its class.
    fn enqueue(&mut self, id: PodId) {
        let Some(state) = self.pods.get(&id) else {
            return;
        };
        let ticket = ticket(state, id);
        let signature = Arc::clone(&state.signature);
        let class_id = self.class(signature);
        self.set_stage(id, Stage::Waiting(class_id));
        let Some(class) = self.classes.get_mut(&class_id) else {
            return;
        };
        class.waiting.insert(ticket);
        class.untold.insert(id);
        if class.parked.is_some() {
            self.unannounced.insert(class_id);
        }
        self.update_active(class_id);
    }

    fn stop_waiting(&mut self, ticket: Ticket, class_id: ClassId) {
        let Some(class) = self.classes.get_mut(&class_id) else {
            return;
        };
        class.waiting.remove(&ticket);
        class.untold.remove(&ticket.1);
        if class.waiting.is_empty() {
            // Nobody to wake: the next pod of this shape finds out for itself.
            class.parked = None;
            self.parked.remove(&class_id);
            self.unannounced.remove(&class_id);
        }
        self.update_active(class_id);
    }

    /// The class of a signature, made if it is new.
    fn class(&mut self, signature: Arc<Signature>) -> ClassId {
        if let Some(&id) = self.class_of.get(&signature) {
            return id;
        }
        self.sweep_classes();
        self.nodes.ask(signature.selection.keys());
        let id = self.next_class;
        self.next_class += 1;
        self.class_of.insert(Arc::clone(&signature), id);
        self.classes.insert(id, PodClass::new(signature));
        id
    }

    fn sweep_classes(&mut self) {
        if self.classes.len() < self.class_limit {
            return;
        }
        self.classes.retain(|_, class| !class.waiting.is_empty());
        let classes = &self.classes;
        self.class_of.retain(|_, id| classes.contains_key(id));
        self.class_limit = 2 * self.classes.len() + IDLE_CLASSES;
    }

    /// Brings the queue's entry for a class up to date.
    fn update_active(&mut self, class_id: ClassId) {
        let Some(class) = self.classes.get_mut(&class_id) else {
            return;
        };
        let first = if class.parked.is_none() { class.waiting.first().copied() } else { None };
        if class.queued == first {
            return;
        }
        if let Some(old) = std::mem::replace(&mut class.queued, first) {
            self.active.remove(&(old, class_id));
        }
        if let Some(new) = first {
            self.active.insert((new, class_id));
        }
    }

    /// Counts the pod on the node as if it were bound.
    fn assume(&mut self, ticket: Ticket, class_id: ClassId, slot: Slot) -> Option<Decision> {
        self.stop_waiting(ticket, class_id);
        let state = self.pods.get_mut(&ticket.1)?;
        state.stage = Stage::Binding(slot);
        self.nodes.occupy(slot, &state.signature.demand);
        Some(Decision::Bind { pod: Arc::clone(&state.identity), node: self.nodes.name(slot).to_string() })
    }

    /// Puts a class aside that fits nowhere.
    fn park(&mut self, class_id: ClassId) {
        let Some(class) = self.classes.get_mut(&class_id) else {
            return;
        };
        class.park(&self.nodes, &self.lanes);
        self.parked.insert(class_id);
        self.unannounced.insert(class_id);
        self.update_active(class_id);
    }

    /// Wakes the classes that a change of a node has helped: those that fit there now.
    fn wake(&mut self, slot: Slot, relief: Relief) {
        if relief == Relief::NONE || !self.nodes.is_present(slot) {
            return;
        }
        let mut woken = Vec::new();
        for &class_id in &self.parked {
            if let Some(class) = self.classes.get_mut(&class_id)
                && class.is_helped(&self.nodes, slot, relief)
            {
                woken.push(class_id);
            }
        }
        for class_id in woken {
            self.unpark(class_id);
        }
    }

    fn wake_all(&mut self) {
        for class_id in std::mem::take(&mut self.parked) {
            self.unpark(class_id);
        }
    }

    fn unpark(&mut self, class_id: ClassId) {
        self.parked.remove(&class_id);
        self.unannounced.remove(&class_id);
        if let Some(class) = self.classes.get_mut(&class_id) {
            class.parked = None;
        }
        self.update_active(class_id);
    }

    /// Tells pods why they wait, where they have not heard it yet.
    fn announce(&mut self, decisions: &mut Vec<Decision>) {
        for id in std::mem::take(&mut self.held_back) {
            if let Some(state) = self.pods.get_mut(&id)
                && matches!(state.stage, Stage::Gated)
                && state.told.is_none()
            {
                // Not told twice; and whatever is found when the gates are gone differs from this.
                state.told = Some("".into());
                decisions.push(Decision::Gated { pod: Arc::clone(&state.identity) });
            }
        }
        for class_id in std::mem::take(&mut self.unannounced) {
            let Some(class) = self.classes.get_mut(&class_id) else {
                continue;
            };
            let Some(parked) = &class.parked else { continue };
            for id in std::mem::take(&mut class.untold) {
                if let Some(state) = self.pods.get_mut(&id)
                    && state.told.as_ref() != Some(&parked.message)
                {
                    state.told = Some(Arc::clone(&parked.message));
                    let (pod, message) = (Arc::clone(&state.identity), Arc::clone(&parked.message));
                    decisions.push(Decision::Unschedulable { pod, message });
                }
            }
        }
    }
}

fn ticket(state: &PodState, id: PodId) -> Ticket {
    (std::cmp::Reverse(state.priority), id)
}

/// A pod that has ended takes nothing from its node.
fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

fn is_ours(spec: &PodSpec) -> bool {
    spec.scheduler_name.as_deref().is_none_or(|name| name.is_empty() || name == OUR_NAME)
}
