//! A pod class: the pods waiting with one signature, and the nodes that can take them, best first.
//!
//! The candidates are a heap of (score, node) entries, each stamped with the version the node had when
//! it was scored. An entry whose stamp is not the node's version is dead and is dropped when it comes
//! to the top. To catch up, the class reads the table's change log and scores the nodes named there
//! again; so after placing one pod, the next pod of the class costs one score and one heap operation,
//! however many nodes there are, and the choice is exactly that of a full pass.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use crate::nodes::{NodeTable, Relief, Slot};
use crate::resources::Lanes;
use crate::signature::{Obstacle, Signature, Verdict};

/// Number of a pod in the order of first sight.
pub(crate) type PodId = u64;

/// The place of a pod in the queue: higher priority first, then first come, first served.
pub(crate) type Ticket = (Reverse<i32>, PodId);

/// Dead entries a heap may hold before it is built anew.
const DEAD_SLACK: usize = 64;

/// Ordered by score, then for the node with fewer pods, then for the lower slot. The last makes ties
/// repeatable; the one before spreads pods that weigh nothing.
type Candidate = (i64, Reverse<u32>, Reverse<Slot>, u64);

/// Why no node can take the pods of a class, as last found.
pub(crate) struct Parked {
    /// Changes that may help. A node that changes in another way is not even looked at.
    pub(crate) relief: Relief,
    /// What the pods are told.
    pub(crate) message: Arc<str>,
}

/// See the module's description.
pub(crate) struct PodClass {
    pub(crate) signature: Arc<Signature>,
    /// The waiting pods.
    pub(crate) waiting: BTreeSet<Ticket>,
    /// Set while no node can take a pod of this class.
    pub(crate) parked: Option<Parked>,
    /// Waiting pods that may not have been told the last message.
    pub(crate) untold: BTreeSet<PodId>,
    /// The entry of this class in the queue.
    pub(crate) queued: Option<Ticket>,
    /// The last message, also while not parked.
    message: Option<Arc<str>>,
    heap: BinaryHeap<Candidate>,
    /// How far the change log has been read; `None` before the first time.
    seen: Option<u64>,
    /// Verdicts per node class, of this generation of node classes.
    verdicts: Vec<Option<Verdict>>,
    generation: u64,
}

impl PodClass {
    pub(crate) fn new(signature: Arc<Signature>) -> Self {
        Self {
            signature,
            waiting: BTreeSet::new(),
            parked: None,
            untold: BTreeSet::new(),
            queued: None,
            message: None,
            heap: BinaryHeap::new(),
            seen: None,
            verdicts: Vec::new(),
            generation: 0,
        }
    }

    /// The best node for a pod of this class, if any can take one.
    pub(crate) fn best(&mut self, nodes: &NodeTable) -> Option<Slot> {
        self.catch_up(nodes);
        while let Some(&(_, _, Reverse(slot), version)) = self.heap.peek() {
            if nodes.version(slot) == version {
                return Some(slot);
            }
            self.heap.pop();
        }
        None
    }

    /// Parks the class with the reasons of every node: a full pass, made once when the class has run
    /// out of candidates.
    pub(crate) fn park(&mut self, nodes: &NodeTable, lanes: &Lanes) {
        let mut relief = if nodes.len() == 0 { Relief::EVERYTHING } else { Relief::NONE };
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for slot in nodes.present() {
            let Some(obstacle) = self.obstacle(nodes, slot) else {
                continue;
            };
            relief = relief.and(obstacle.relief());
            for reason in reasons(&obstacle, lanes) {
                *counts.entry(reason).or_default() += 1;
            }
        }
        let message: Arc<str> = message(nodes.len(), &counts).into();
        if self.message.as_ref() != Some(&message) {
            self.untold = self.waiting.iter().map(|&(_, pod)| pod).collect();
            self.message = Some(Arc::clone(&message));
        }
        self.parked = Some(Parked { relief, message });
    }

    /// Whether a change of a node lets this parked class fit there.
    ///
    /// Every node that is unfit has at least one of its obstacles in `relief`, so the change that takes
    /// away its last obstacle is never overlooked: an obstacle that shows only after another has gone
    /// is added here.
    pub(crate) fn is_helped(&mut self, nodes: &NodeTable, slot: Slot, change: Relief) -> bool {
        if !self.parked.as_ref().is_some_and(|parked| parked.relief.meets(change)) {
            return false;
        }
        let Some(obstacle) = self.obstacle(nodes, slot) else {
            return true;
        };
        if let Some(parked) = &mut self.parked {
            parked.relief = parked.relief.and(obstacle.relief());
        }
        false
    }

    /// What keeps a node from taking a pod of this class.
    fn obstacle(&mut self, nodes: &NodeTable, slot: Slot) -> Option<Obstacle> {
        match self.judge_rules(nodes, slot) {
            Err(obstacle) => Some(obstacle),
            Ok(_) => self.signature.judge_room(nodes, slot),
        }
    }

    fn catch_up(&mut self, nodes: &NodeTable) {
        let changed = self.seen.and_then(|seen| nodes.changed_since(seen));
        match changed {
            Some(slots) if self.heap.len() + slots.len() <= 2 * nodes.len() + DEAD_SLACK => {
                for &slot in slots {
                    self.score(nodes, slot);
                }
            }
            _ => self.rebuild(nodes),
        }
        self.seen = Some(nodes.log_end());
    }

    fn rebuild(&mut self, nodes: &NodeTable) {
        self.heap.clear();
        let signature = Arc::clone(&self.signature);
        match signature.selection.named_nodes() {
            Some(names) => {
                for slot in names.into_iter().filter_map(|name| nodes.find(name)) {
                    self.score(nodes, slot);
                }
            }
            None => {
                for slot in nodes.present() {
                    self.score(nodes, slot);
                }
            }
        }
    }

    /// Adds an entry for a node that can take a pod.
    fn score(&mut self, nodes: &NodeTable, slot: Slot) {
        if !nodes.is_present(slot) {
            return;
        }
        let Ok(rules_score) = self.judge_rules(nodes, slot) else {
            return;
        };
        if self.signature.judge_room(nodes, slot).is_some() {
            return;
        }
        let score = rules_score + self.signature.score_room(nodes, slot);
        self.heap.push((score, Reverse(nodes.pods(slot)), Reverse(slot), nodes.version(slot)));
    }

    /// The verdict of labels and taints, remembered per node class unless names matter.
    fn judge_rules(&mut self, nodes: &NodeTable, slot: Slot) -> Verdict {
        if self.signature.selection.depends_on_name() {
            return self.signature.judge_rules(nodes.rules(slot), nodes.name(slot));
        }
        if self.generation != nodes.generation() {
            self.verdicts.clear();
            self.generation = nodes.generation();
        }
        let class = nodes.class(slot);
        if self.verdicts.len() <= class {
            self.verdicts.resize(class + 1, None);
        }
        self.verdicts[class]
            .get_or_insert_with(|| self.signature.judge_rules(nodes.class_rules(class), ""))
            .clone()
    }
}

/// kube-scheduler's words for an obstacle.
fn reasons(obstacle: &Obstacle, lanes: &Lanes) -> Vec<String> {
    let one = |text: &str| vec![text.to_string()];
    match obstacle {
        Obstacle::Unschedulable => one("node(s) were unschedulable"),
        Obstacle::Taint => one("node(s) had untolerated taint(s)"),
        Obstacle::Selection => one("node(s) didn't match Pod's node affinity/selector"),
        Obstacle::Ports => one("node(s) didn't have free ports for the requested pod ports"),
        Obstacle::Resources(short) => short
            .iter()
            .map(|&lane| match lanes.name(lane) {
                "pods" => "Too many pods".to_string(),
                name => format!("Insufficient {name}"),
            })
            .collect(),
    }
}

/// The form of kube-scheduler's `FitError`: counted reasons, sorted as text.
fn message(nodes: usize, counts: &BTreeMap<String, usize>) -> String {
    if nodes == 0 {
        return "no nodes available to schedule pods".to_string();
    }
    let mut reasons: Vec<String> = counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
    reasons.sort();
    format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages() {
        type Row = (usize, &'static [(&'static str, usize)], &'static str);
        let rows: [Row; 3] = [
            (0, &[], "no nodes available to schedule pods"),
            (1, &[("Insufficient memory", 1)], "0/1 nodes are available: 1 Insufficient memory."),
            (
                3,
                &[("node(s) had untolerated taint(s)", 2), ("Insufficient cpu", 1)],
                "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had untolerated taint(s).",
            ),
        ];
        for (nodes, counts, expected) in rows {
            let counts = counts.iter().map(|(reason, count)| (reason.to_string(), *count)).collect();
            assert_eq!(message(nodes, &counts), expected);
        }
    }
}
