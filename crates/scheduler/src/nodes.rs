//! The node table: everything the scheduler knows of nodes, in arrays.
//!
//! What is compared for every pod (free and total amounts per resource, weights for scores, the node
//! class, the version) lies in one array per fact, indexed by slot, so that a pass over many nodes
//! reads memory in order. What is looked at rarely (labels, taints) lies beside, and enters decisions
//! through the node class: nodes that agree in every fact some pod can ask about share one class, and
//! a question about taints or labels is answered once per class.
//!
//! Every change of a node gives it a new version and a line in the change log. Whoever keeps
//! something derived from nodes compares versions, and reads the log to catch up.
//!
//! ```text
//!   slot        0      1      2            class     labels some pod asks about, taints
//!   names       n1     n2     (vacant)     0         {zone: a}                   {}
//!   class       0      1      -            1         {zone: b}                   {disk=slow}
//!   version     17     12     9
//!   free[cpu]   3500   800    0            log       ... n2@12, n1@17
//!   free[mem]   ...                                       ^ a reader has seen until here
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use k8s_openapi::api::core::v1::Node;

use crate::resources::{CPU, Demand, HostPort, Lane, Lanes, MEMORY};
use crate::taints::Taint;

/// Index of a node in the table. Reused after the node is gone; versions are not.
pub(crate) type Slot = usize;
/// Index of a node class.
pub(crate) type NodeClassId = usize;

/// The log keeps at least this many lines before the oldest readers have to start over.
const LOG_LINES: usize = 1024;
/// Classes nobody belongs to any more are swept when there are this many more than nodes.
const CLASS_SLACK: usize = 64;

/// Which kinds of obstacle a change of a node may have taken away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Relief(u8);

impl Relief {
    pub(crate) const NONE: Self = Self(0);
    /// Labels, taints or `unschedulable` changed.
    pub(crate) const RULES: Self = Self(1);
    /// More of some resource is free.
    pub(crate) const RESOURCES: Self = Self(2);
    /// A host port is free.
    pub(crate) const PORTS: Self = Self(4);
    /// The node is new.
    pub(crate) const EVERYTHING: Self = Self(15);

    pub(crate) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(crate) fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

/// The facts of a node that rules about nodes look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Rules {
    pub(crate) labels: BTreeMap<String, String>,
    /// Sorted.
    pub(crate) taints: Vec<Taint>,
    pub(crate) unschedulable: bool,
}

impl Rules {
    fn of(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let mut taints: Vec<Taint> =
            spec.and_then(|spec| spec.taints.as_ref()).into_iter().flatten().filter_map(Taint::of).collect();
        taints.sort();
        Self {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints,
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
        }
    }
}

/// All nodes. See the module's description.
#[derive(Default)]
pub(crate) struct NodeTable {
    by_name: HashMap<String, Slot>,
    vacant: Vec<Slot>,
    present_count: usize,

    names: Vec<String>,
    /// False for vacant slots and for nodes that only pods speak of.
    present: Vec<bool>,
    class: Vec<NodeClassId>,
    version: Vec<u64>,
    pods: Vec<u32>,
    free: Vec<Vec<i64>>,
    capacity: Vec<Vec<i64>>,
    /// What pods weigh in scores: CPU and memory.
    weight: [Vec<i64>; 2],

    rules: Vec<Rules>,
    ports: Vec<Vec<HostPort>>,

    asked: BTreeSet<String>,
    classes: Vec<Rules>,
    class_of: HashMap<Rules, NodeClassId>,
    /// Raised when class numbers get a new meaning.
    generation: u64,

    log: Vec<Slot>,
    log_start: u64,
    last_version: u64,
}

impl NodeTable {
    /// Takes over a node as the API shows it. Tells which obstacles may have gone.
    pub(crate) fn update(&mut self, node: &Node, lanes: &mut Lanes) -> Option<(Slot, Relief)> {
        let slot = self.slot_of(node.metadata.name.as_deref()?);
        let allocatable = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let capacity = lanes.capacity(allocatable);
        let rules = Rules::of(node);

        let is_new = !self.present[slot];
        let rules_changed = self.rules[slot] != rules;
        let (grew, shrank) = self.set_capacity(slot, &capacity);
        if is_new || rules_changed {
            self.rules[slot] = rules;
            self.classify(slot);
        }
        if is_new {
            self.present[slot] = true;
            self.present_count += 1;
        }
        if is_new || rules_changed || grew || shrank {
            self.touch(slot);
        }
        let relief = match (is_new, rules_changed, grew) {
            (true, _, _) => Relief::EVERYTHING,
            (_, true, true) => Relief::RULES.and(Relief::RESOURCES),
            (_, true, false) => Relief::RULES,
            (_, false, true) => Relief::RESOURCES,
            (_, false, false) => Relief::NONE,
        };
        Some((slot, relief))
    }

    /// Forgets a node. Its slot stays as long as pods are counted on it.
    pub(crate) fn remove(&mut self, name: &str) {
        let Some(&slot) = self.by_name.get(name) else {
            return;
        };
        if self.present[slot] {
            self.present[slot] = false;
            self.present_count -= 1;
            self.set_capacity(slot, &[]);
            self.rules[slot] = Rules::default();
            self.touch(slot);
        }
        self.vacate_if_unused(slot);
    }

    /// The slot for a node name, made if it is new: pods may be heard of before their node.
    pub(crate) fn slot_of(&mut self, name: &str) -> Slot {
        if let Some(&slot) = self.by_name.get(name) {
            return slot;
        }
        let slot = self.vacant.pop().unwrap_or_else(|| self.grow());
        self.names[slot] = name.to_string();
        self.by_name.insert(name.to_string(), slot);
        slot
    }

    /// Counts a pod on a node.
    pub(crate) fn occupy(&mut self, slot: Slot, demand: &Demand) {
        for &(lane, amount) in &demand.amounts {
            self.free_lane(lane)[slot] -= amount;
        }
        for (lane, weight) in self.weight.iter_mut().zip(demand.weight) {
            lane[slot] += weight;
        }
        self.ports[slot].extend(demand.ports.iter().cloned());
        self.pods[slot] += 1;
        self.touch(slot);
    }

    /// Takes a pod off a node. Tells which obstacles may have gone.
    pub(crate) fn release(&mut self, slot: Slot, demand: &Demand) -> Relief {
        for &(lane, amount) in &demand.amounts {
            self.free_lane(lane)[slot] += amount;
        }
        for (lane, weight) in self.weight.iter_mut().zip(demand.weight) {
            lane[slot] -= weight;
        }
        for port in &demand.ports {
            if let Some(index) = self.ports[slot].iter().position(|taken| taken == port) {
                self.ports[slot].swap_remove(index);
            }
        }
        self.pods[slot] -= 1;
        self.touch(slot);
        self.vacate_if_unused(slot);
        if demand.ports.is_empty() { Relief::RESOURCES } else { Relief::RESOURCES.and(Relief::PORTS) }
    }

    /// From now on these label keys tell nodes apart. Classes are made anew when one was not asked
    /// about before, which happens as often as somebody invents a selector.
    pub(crate) fn ask<'a>(&mut self, keys: impl Iterator<Item = &'a str>) {
        let before = self.asked.len();
        for key in keys {
            if !self.asked.contains(key) {
                self.asked.insert(key.to_string());
            }
        }
        if self.asked.len() > before {
            self.reclassify();
        }
    }

    /// How many nodes there are.
    pub(crate) fn len(&self) -> usize {
        self.present_count
    }

    /// The slots of all nodes.
    pub(crate) fn present(&self) -> impl Iterator<Item = Slot> {
        self.present.iter().enumerate().filter(|(_, present)| **present).map(|(slot, _)| slot)
    }

    /// The slot of a node that exists.
    pub(crate) fn find(&self, name: &str) -> Option<Slot> {
        self.by_name.get(name).copied().filter(|&slot| self.present[slot])
    }

    pub(crate) fn is_present(&self, slot: Slot) -> bool {
        self.present[slot]
    }

    pub(crate) fn name(&self, slot: Slot) -> &str {
        &self.names[slot]
    }

    pub(crate) fn version(&self, slot: Slot) -> u64 {
        self.version[slot]
    }

    /// The number of pods counted on a node, those being bound included.
    pub(crate) fn pods(&self, slot: Slot) -> u32 {
        self.pods[slot]
    }

    pub(crate) fn class(&self, slot: Slot) -> NodeClassId {
        self.class[slot]
    }

    /// The facts that all nodes of a class share. Labels nobody asks about are left out.
    pub(crate) fn class_rules(&self, class: NodeClassId) -> &Rules {
        &self.classes[class]
    }

    /// All labels and taints of one node.
    pub(crate) fn rules(&self, slot: Slot) -> &Rules {
        &self.rules[slot]
    }

    /// Class numbers remembered under another generation mean nothing.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// What is left of a resource; negative when more is in use than there is.
    pub(crate) fn free(&self, lane: Lane, slot: Slot) -> i64 {
        self.free.get(lane).map_or(0, |lane| lane[slot])
    }

    /// CPU and memory: what pods weigh and what there is.
    pub(crate) fn loads(&self, slot: Slot) -> [(i64, i64); 2] {
        [
            (self.weight[0][slot], self.capacity(CPU, slot)),
            (self.weight[1][slot], self.capacity(MEMORY, slot)),
        ]
    }

    /// Whether none of the ports is taken.
    pub(crate) fn has_ports(&self, slot: Slot, wanted: &[HostPort]) -> bool {
        wanted.iter().all(|port| !self.ports[slot].iter().any(|taken| taken.collides(port)))
    }

    /// Where the log ends now.
    pub(crate) fn log_end(&self) -> u64 {
        self.log_start + self.log.len() as u64
    }

    /// The nodes that changed since the log ended at `seen`, some more than once. `None` when the log
    /// does not reach back so far.
    pub(crate) fn changed_since(&self, seen: u64) -> Option<&[Slot]> {
        let skip = seen.checked_sub(self.log_start)?;
        self.log.get(usize::try_from(skip).ok()?..)
    }

    fn capacity(&self, lane: Lane, slot: Slot) -> i64 {
        self.capacity.get(lane).map_or(0, |lane| lane[slot])
    }

    /// A new, vacant slot.
    fn grow(&mut self) -> Slot {
        let slot = self.names.len();
        self.names.push(String::new());
        self.present.push(false);
        self.class.push(0);
        self.version.push(0);
        self.pods.push(0);
        self.rules.push(Rules::default());
        self.ports.push(Vec::new());
        for lane in self.free.iter_mut().chain(&mut self.capacity).chain(&mut self.weight) {
            lane.push(0);
        }
        slot
    }

    fn vacate_if_unused(&mut self, slot: Slot) {
        if !self.present[slot] && self.pods[slot] == 0 {
            self.by_name.remove(&self.names[slot]);
            self.vacant.push(slot);
        }
    }

    fn free_lane(&mut self, lane: Lane) -> &mut Vec<i64> {
        self.make_lane(lane);
        &mut self.free[lane]
    }

    fn make_lane(&mut self, lane: Lane) {
        let slots = self.names.len();
        while self.free.len() <= lane {
            self.free.push(vec![0; slots]);
            self.capacity.push(vec![0; slots]);
        }
    }

    /// Sets what the node offers; what is not named is not offered. Tells whether some amount grew
    /// and whether some amount shrank.
    fn set_capacity(&mut self, slot: Slot, offered: &[(Lane, i64)]) -> (bool, bool) {
        for &(lane, _) in offered {
            self.make_lane(lane);
        }
        let (mut grew, mut shrank) = (false, false);
        for lane in 0..self.capacity.len() {
            let now = offered.iter().find(|(offered, _)| *offered == lane).map_or(0, |(_, amount)| *amount);
            let change = now - self.capacity[lane][slot];
            self.capacity[lane][slot] = now;
            self.free[lane][slot] += change;
            grew |= change > 0;
            shrank |= change < 0;
        }
        (grew, shrank)
    }

    fn touch(&mut self, slot: Slot) {
        self.last_version += 1;
        self.version[slot] = self.last_version;
        // A reader that is further behind than there are nodes is better off with a fresh start.
        if self.log.len() >= LOG_LINES.max(4 * self.names.len()) {
            self.log_start += self.log.len() as u64;
            self.log.clear();
        }
        self.log.push(slot);
    }

    fn classify(&mut self, slot: Slot) {
        if self.classes.len() > self.names.len() + CLASS_SLACK {
            self.reclassify();
            return;
        }
        let rules = &self.rules[slot];
        let shared = Rules {
            labels: rules
                .labels
                .iter()
                .filter(|(key, _)| self.asked.contains(*key))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            taints: rules.taints.clone(),
            unschedulable: rules.unschedulable,
        };
        self.class[slot] = match self.class_of.get(&shared) {
            Some(&class) => class,
            None => {
                let class = self.classes.len();
                self.classes.push(shared.clone());
                self.class_of.insert(shared, class);
                class
            }
        };
    }

    fn reclassify(&mut self) {
        self.generation += 1;
        self.classes.clear();
        self.class_of.clear();
        for slot in 0..self.names.len() {
            self.classify(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn node(name: &str, labels: Value, cpu: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": labels},
            "status": {"allocatable": {"cpu": cpu, "pods": "10"}},
        }))
        .expect("a node")
    }

    fn demand(cpu: i64) -> Demand {
        Demand { amounts: vec![(CPU, cpu)], ..Demand::default() }
    }

    #[test]
    fn pods_may_come_before_their_node_and_stay_after_it() {
        let (mut table, mut lanes) = (NodeTable::default(), Lanes::new());
        let slot = table.slot_of("n1");
        table.occupy(slot, &demand(300));
        assert_eq!(table.len(), 0);

        table.update(&node("n1", json!({}), "1"), &mut lanes);
        assert_eq!((table.find("n1"), table.free(CPU, slot)), (Some(slot), 700));

        table.remove("n1");
        assert_eq!((table.find("n1"), table.free(CPU, slot)), (None, -300));

        table.release(slot, &demand(300));
        assert_eq!(table.slot_of("n2"), slot, "the slot is free for another node");
        assert_eq!(table.free(CPU, slot), 0);
    }

    #[test]
    fn updates_tell_what_they_may_help() {
        let (mut table, mut lanes) = (NodeTable::default(), Lanes::new());
        let rows = [
            ("new", node("n1", json!({}), "1"), Relief::EVERYTHING),
            ("same", node("n1", json!({}), "1"), Relief::NONE),
            ("more", node("n1", json!({}), "2"), Relief::RESOURCES),
            ("less", node("n1", json!({}), "1"), Relief::NONE),
            ("label", node("n1", json!({"a": "b"}), "1"), Relief::RULES),
        ];
        for (name, node, expected) in rows {
            let end = table.log_end();
            let (slot, relief) = table.update(&node, &mut lanes).expect("the node has a name");
            assert_eq!(relief, expected, "{name}");
            let changed = table.changed_since(end).expect("the log reaches back");
            assert_eq!(changed.contains(&slot), name != "same", "{name}");
        }
    }

    #[test]
    fn only_asked_labels_tell_nodes_apart() {
        let (mut table, mut lanes) = (NodeTable::default(), Lanes::new());
        table.update(&node("n1", json!({"zone": "a", "host": "1"}), "1"), &mut lanes);
        table.update(&node("n2", json!({"zone": "a", "host": "2"}), "1"), &mut lanes);
        table.update(&node("n3", json!({"zone": "b", "host": "3"}), "1"), &mut lanes);
        let classes = |table: &NodeTable| table.present().map(|slot| table.class(slot)).collect::<Vec<_>>();
        assert_eq!(classes(&table), [0, 0, 0]);

        let generation = table.generation();
        table.ask(["zone"].into_iter());
        assert_eq!(classes(&table), [0, 0, 1]);
        assert_ne!(table.generation(), generation);

        let generation = table.generation();
        table.ask(["zone"].into_iter());
        assert_eq!(table.generation(), generation, "asking again changes nothing");
    }

    #[test]
    fn the_log_forgets() {
        let mut table = NodeTable::default();
        let slot = table.slot_of("n1");
        let start = table.log_end();
        for _ in 0..2 * LOG_LINES {
            table.occupy(slot, &Demand::default());
        }
        assert_eq!(table.changed_since(start), None);
        let end = table.log_end();
        assert_eq!(table.changed_since(end), Some(&[][..]));
        assert_eq!(table.changed_since(end - 1), Some(&[slot][..]));
    }
}
