//! The reference: the rules written down once more, as slow and as plain as possible.
//!
//! It keeps no state but the list of nodes and pods, sums everything up again for every question, and
//! shares no code with the scheduler. It speaks of fewer rules than the scheduler knows; the others
//! have their cases in `cases`.

use std::cmp::Reverse;

use serde_json::{Value, json};

const GIB: i64 = 1 << 30;

#[derive(Clone, Debug)]
pub(crate) struct RefNode {
    pub(crate) name: String,
    pub(crate) cpu: i64,
    pub(crate) memory: i64,
    pub(crate) gpus: i64,
    pub(crate) pods: i64,
    pub(crate) zone: &'static str,
    pub(crate) taint: Option<&'static str>,
    pub(crate) unschedulable: bool,
}

impl RefNode {
    pub(crate) fn spec(&self) -> Value {
        let taints: Vec<Value> =
            self.taint.iter().map(|effect| json!({"key": "t", "effect": effect})).collect();
        json!({
            "labels": {"zone": self.zone, "host": self.name},
            "taints": taints,
            "unschedulable": self.unschedulable,
            "allocatable": {
                "cpu": format!("{}m", self.cpu),
                "memory": format!("{}", self.memory),
                "pods": format!("{}", self.pods),
                "example.com/gpu": format!("{}", self.gpus),
            },
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Waiting,
    /// On its way to the node it counts on.
    Binding,
    Failed,
    Placed,
}

#[derive(Clone, Debug)]
pub(crate) struct RefPod {
    pub(crate) name: String,
    pub(crate) order: u64,
    pub(crate) priority: i32,
    pub(crate) cpu: Option<i64>,
    pub(crate) memory: Option<i64>,
    pub(crate) gpus: i64,
    pub(crate) zone: Option<&'static str>,
    pub(crate) preferred_zone: Option<&'static str>,
    pub(crate) tolerates: bool,
    pub(crate) port: Option<i32>,
    pub(crate) state: State,
    pub(crate) node: Option<String>,
    pub(crate) told: bool,
}

impl RefPod {
    pub(crate) fn spec(&self) -> Value {
        let mut requests = json!({});
        if let Some(cpu) = self.cpu {
            requests["cpu"] = json!(format!("{cpu}m"));
        }
        if let Some(memory) = self.memory {
            requests["memory"] = json!(memory.to_string());
        }
        if self.gpus > 0 {
            requests["example.com/gpu"] = json!(self.gpus.to_string());
        }
        let mut spec = json!({"priority": self.priority, "requests": requests});
        if let Some(zone) = self.zone {
            spec["nodeSelector"] = json!({"zone": zone});
        }
        if let Some(zone) = self.preferred_zone {
            spec["affinity"] = json!({"nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 7, "preference": {
                    "matchExpressions": [{"key": "zone", "operator": "In", "values": [zone]}],
                }}],
            }});
        }
        if self.tolerates {
            spec["tolerations"] = json!([{"key": "t", "operator": "Exists"}]);
        }
        if let Some(port) = self.port {
            spec["ports"] = json!([{"containerPort": 80, "hostPort": port}]);
        }
        if let (State::Placed, Some(node)) = (self.state, &self.node) {
            spec["nodeName"] = json!(node);
        }
        spec
    }

    /// What the pod counts for in scores.
    fn weight(&self) -> (i64, i64) {
        (self.cpu.unwrap_or(100), self.memory.unwrap_or(GIB / 1024 * 200))
    }
}

#[derive(Default)]
pub(crate) struct Reference {
    pub(crate) nodes: Vec<RefNode>,
    pub(crate) pods: Vec<RefPod>,
}

impl Reference {
    fn on<'a>(&'a self, node: &'a RefNode) -> impl Iterator<Item = &'a RefPod> {
        self.pods.iter().filter(move |pod| pod.node.as_ref() == Some(&node.name))
    }

    pub(crate) fn fits(&self, pod: &RefPod, node: &RefNode) -> bool {
        let there: Vec<&RefPod> = self.on(node).collect();
        let hard_taint = matches!(node.taint, Some("NoSchedule" | "NoExecute"));
        let enough = |wanted: i64, capacity: i64, of: &dyn Fn(&RefPod) -> i64| {
            wanted == 0 || wanted + there.iter().map(|pod| of(pod)).sum::<i64>() <= capacity
        };
        !node.unschedulable
            && (!hard_taint || pod.tolerates)
            && pod.zone.is_none_or(|zone| zone == node.zone)
            && !there.iter().any(|other| pod.port.is_some() && other.port == pod.port)
            && enough(pod.cpu.unwrap_or(0), node.cpu, &|pod| pod.cpu.unwrap_or(0))
            && enough(pod.memory.unwrap_or(0), node.memory, &|pod| pod.memory.unwrap_or(0))
            && enough(pod.gpus, node.gpus, &|pod| pod.gpus)
            && enough(1, node.pods, &|_| 1)
    }

    /// How good a node is for a pod: the higher the better.
    fn score(&self, pod: &RefPod, node: &RefNode) -> (i64, Reverse<usize>) {
        let (mut cpu, mut memory) = pod.weight();
        for other in self.on(node) {
            cpu += other.weight().0;
            memory += other.weight().1;
        }
        let permille = |used: i64, capacity: i64| {
            if capacity == 0 {
                1000
            } else {
                (i128::from(used) * 1000 / i128::from(capacity)).min(1000) as i64
            }
        };
        let (cpu, memory) = (permille(cpu, node.cpu), permille(memory, node.memory));
        let taint = if node.taint.is_some() && !pod.tolerates { 500 } else { 1000 };
        let preferred = if pod.preferred_zone == Some(node.zone) { 1000 } else { 0 };
        let room = (1000 - (cpu + memory) / 2) + (1000 - (cpu - memory).abs() / 2);
        (3 * taint + 2 * preferred + room, Reverse(self.on(node).count()))
    }

    /// The names of the best nodes for a pod; more than one when they are equal in everything.
    pub(crate) fn best(&self, pod: &RefPod) -> Vec<&str> {
        let fitting: Vec<&RefNode> = self.nodes.iter().filter(|node| self.fits(pod, node)).collect();
        let best = fitting.iter().map(|node| self.score(pod, node)).max();
        let is_best = |node: &&RefNode| Some(self.score(pod, node)) == best;
        fitting.into_iter().filter(is_best).map(|node| node.name.as_str()).collect()
    }

    /// The pod whose turn it is: of those that fit somewhere, the first in the queue.
    pub(crate) fn next(&self) -> Option<&RefPod> {
        self.pods
            .iter()
            .filter(|pod| pod.state == State::Waiting && !self.best(pod).is_empty())
            .min_by_key(|pod| (Reverse(pod.priority), pod.order))
    }
}
