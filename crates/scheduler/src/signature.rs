//! The scheduling signature: everything about a pod that decides where it may run and how good each
//! node is. Pods with equal signatures form one pod class and share one evaluation of the nodes; in
//! real clusters thousands of pods come in a few hundred shapes.
//!
//! Name, priority and age are not part of it: they decide when a pod is placed, not where.
//!
//! The score of a node depends on that node and the signature alone. kube-scheduler scales some of
//! its scores by the best node found, so that one node's change moves every other node's score; here
//! each part has a scale of its own, which is what makes scores worth keeping.

use k8s_openapi::api::core::v1::PodSpec;

use crate::nodes::{NodeTable, Relief, Rules, Slot};
use crate::resources::{Demand, Lane, Lanes};
use crate::selection::Selection;
use crate::taints::{Taint, Toleration};

/// Each part of a score lies between 0 and this. Finer than kube-scheduler's 100, so that small pods
/// on large nodes still make a difference.
const SCALE: i64 = 1000;
/// Weights of the parts, those of kube-scheduler's default profile: TaintToleration, NodeAffinity;
/// free resources and their balance count once.
const TAINT_WEIGHT: i64 = 3;
const PREFERENCE_WEIGHT: i64 = 2;

/// What all pods of a class have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Signature {
    pub(crate) demand: Demand,
    pub(crate) selection: Selection,
    /// Sorted, without duplicates.
    tolerations: Vec<Toleration>,
}

/// Why a node cannot take a pod. In the order of kube-scheduler's filters, of which the first counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Obstacle {
    /// The node takes no new pods.
    Unschedulable,
    /// A taint the pod does not tolerate.
    Taint,
    /// `nodeSelector` or required affinity.
    Selection,
    /// A host port is taken.
    Ports,
    /// These resources are short.
    Resources(Vec<Lane>),
}

impl Obstacle {
    /// The kind of change that may take the obstacle away.
    pub(crate) fn relief(&self) -> Relief {
        match self {
            Self::Unschedulable | Self::Taint | Self::Selection => Relief::RULES,
            Self::Ports => Relief::PORTS,
            Self::Resources(_) => Relief::RESOURCES,
        }
    }
}

/// What a set of rules says to a signature: the part of the score it gives, or the obstacle.
pub(crate) type Verdict = Result<i64, Obstacle>;

impl Signature {
    pub(crate) fn of(spec: &PodSpec, lanes: &mut Lanes) -> Self {
        let mut tolerations: Vec<Toleration> =
            spec.tolerations.iter().flatten().filter_map(Toleration::of).collect();
        tolerations.sort();
        tolerations.dedup();
        Self { demand: Demand::of(spec, lanes), selection: Selection::of(spec), tolerations }
    }

    /// Judges a node by labels and taints. Depends on the name only if the selection does.
    pub(crate) fn judge_rules(&self, rules: &Rules, name: &str) -> Verdict {
        if rules.unschedulable && !Taint::unschedulable().is_tolerated(&self.tolerations) {
            return Err(Obstacle::Unschedulable);
        }
        let mut disliked = 0;
        for taint in &rules.taints {
            if taint.is_tolerated(&self.tolerations) {
                continue;
            }
            if taint.effect.is_hard() {
                return Err(Obstacle::Taint);
            }
            disliked += 1;
        }
        if !self.selection.admits(&rules.labels, name) {
            return Err(Obstacle::Selection);
        }
        Ok(TAINT_WEIGHT * SCALE / (1 + disliked)
            + PREFERENCE_WEIGHT * self.selection.preference(&rules.labels, name, SCALE))
    }

    /// Judges a node by what is free on it: the obstacle, if there is one.
    pub(crate) fn judge_room(&self, nodes: &NodeTable, slot: Slot) -> Option<Obstacle> {
        if !nodes.has_ports(slot, &self.demand.ports) {
            return Some(Obstacle::Ports);
        }
        // Nothing short is the common case; an empty list allocates nothing.
        let short: Vec<Lane> = self.short(nodes, slot).collect();
        (!short.is_empty()).then_some(Obstacle::Resources(short))
    }

    /// Scores the use of CPU and memory as it would be with the pod on the node: much left over is
    /// good, and both used in like measure is good.
    pub(crate) fn score_room(&self, nodes: &NodeTable, slot: Slot) -> i64 {
        let mut loads = nodes.loads(slot);
        for (load, weight) in loads.iter_mut().zip(self.demand.weight) {
            load.0 += weight;
        }
        let [cpu, memory] = loads.map(|(used, capacity)| share(used, capacity));
        let left_over = SCALE - (cpu + memory) / 2;
        let balance = SCALE - (cpu - memory).abs() / 2;
        left_over + balance
    }

    fn short<'a>(&'a self, nodes: &'a NodeTable, slot: Slot) -> impl Iterator<Item = Lane> + 'a {
        self.demand
            .amounts
            .iter()
            .filter(move |(lane, amount)| *amount > nodes.free(*lane, slot))
            .map(|(lane, _)| *lane)
    }
}

/// The share in use, 0 to [`SCALE`].
fn share(used: i64, capacity: i64) -> i64 {
    if capacity <= 0 || used >= capacity {
        return SCALE;
    }
    // Bytes times a thousand may leave 64 bits; the quotient is below the scale again.
    (i128::from(used.max(0)) * i128::from(SCALE) / i128::from(capacity)) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares() {
        let rows = [
            ("idle", 0, 100, 0),
            ("half", 50, 100, 500),
            ("full", 100, 100, 1000),
            ("over", 300, 100, 1000),
            ("no capacity", 0, 0, 1000),
            ("large", 1 << 61, 1 << 62, 500),
        ];
        for (name, used, capacity, expected) in rows {
            assert_eq!(share(used, capacity), expected, "{name}");
        }
    }
}
