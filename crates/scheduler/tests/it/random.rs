//! Random histories of random clusters, every decision compared with the reference.
//!
//! A failure names its seed; `check(seed)` repeats the history exactly.

use sampan_scheduler::{Decision, Event, Scheduler};

use crate::cluster::{node, pod};
use crate::reference::{RefNode, RefPod, Reference, State};

const HISTORIES: u64 = 150;
const STEPS: usize = 150;
const NODE_NAMES: u64 = 8;
const ZONES: [&str; 3] = ["a", "b", "c"];
const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

#[test]
fn every_decision_is_that_of_the_reference() {
    for seed in 0..HISTORIES {
        check(seed);
    }
}

fn check(seed: u64) {
    let mut history = History {
        seed,
        dice: Dice(seed),
        scheduler: Scheduler::new(),
        reference: Reference::default(),
        next_pod: 0,
    };
    for _ in 0..STEPS {
        history.step();
    }
}

/// SplitMix64: small, good enough, and the same on every machine.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.roll() % limit
    }

    fn one_in(&mut self, chances: u64) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    fn maybe<T: Copy>(&mut self, chances: u64, from: &[T]) -> Option<T> {
        self.one_in(chances).then(|| self.pick(from))
    }
}

struct History {
    seed: u64,
    dice: Dice,
    scheduler: Scheduler,
    reference: Reference,
    next_pod: u64,
}

impl History {
    fn step(&mut self) {
        match self.dice.below(12) {
            0 | 1 => self.change_node(),
            2 => self.remove_node(),
            3..=6 => self.add_pods(),
            7 => self.remove_pod(),
            8 | 9 => self.end_binds(),
            10 => self.retry(),
            _ => self.repeat_reports(),
        }
        let batch = if self.dice.one_in(3) { self.dice.below(4) as usize } else { usize::MAX };
        let decisions = self.scheduler.schedule(batch);
        self.compare(&decisions, batch);
    }

    fn change_node(&mut self) {
        let name = format!("n{}", self.dice.below(NODE_NAMES));
        let changed = RefNode {
            cpu: self.dice.pick(&[0, 500, 1000, 4000]),
            memory: self.dice.pick(&[0, 1 << 28, 1 << 30, 1 << 33]),
            gpus: self.dice.pick(&[0, 0, 2]),
            pods: self.dice.pick(&[1, 3, 20]),
            zone: self.dice.pick(&ZONES),
            taint: self.dice.maybe(4, &EFFECTS),
            unschedulable: self.dice.one_in(8),
            name,
        };
        self.reference.nodes.retain(|node| node.name != changed.name);
        self.scheduler.apply(Event::NodeChanged(&node(&changed.name, &changed.spec())));
        self.reference.nodes.push(changed);
    }

    fn remove_node(&mut self) {
        let name = format!("n{}", self.dice.below(NODE_NAMES));
        self.reference.nodes.retain(|node| node.name != name);
        self.scheduler.apply(Event::NodeRemoved(&name));
    }

    fn add_pods(&mut self) {
        for _ in 0..=self.dice.below(4) {
            let order = self.next_pod;
            self.next_pod += 1;
            let added = RefPod {
                name: format!("p{order}"),
                order,
                priority: self.dice.pick(&[0, 0, 10]),
                cpu: self.dice.maybe(2, &[0, 100, 700]),
                memory: self.dice.maybe(2, &[1 << 20, 1 << 28, 1 << 30]),
                gpus: self.dice.pick(&[0, 0, 0, 1]),
                zone: self.dice.maybe(4, &ZONES),
                preferred_zone: self.dice.maybe(4, &ZONES),
                tolerates: self.dice.one_in(3),
                port: self.dice.maybe(6, &[80, 443]),
                state: State::Waiting,
                node: None,
                told: false,
            };
            self.scheduler.apply(Event::PodChanged(&pod(&added.name, &added.spec())));
            self.reference.pods.push(added);
        }
    }

    fn remove_pod(&mut self) {
        if self.reference.pods.is_empty() {
            return;
        }
        let index = self.dice.below(self.reference.pods.len() as u64) as usize;
        let removed = self.reference.pods.remove(index);
        if removed.state == State::Placed && self.dice.one_in(2) {
            let mut spec = removed.spec();
            spec["phase"] = "Succeeded".into();
            self.scheduler.apply(Event::PodChanged(&pod(&removed.name, &spec)));
        } else {
            self.scheduler.apply(Event::PodRemoved(&removed.name));
        }
    }

    /// The API answers some binds; the informer shows some pods before or without the answer.
    fn end_binds(&mut self) {
        for pod_state in self.reference.pods.iter_mut().filter(|pod| pod.state == State::Binding) {
            match self.dice.below(4) {
                0 => {}
                1 => {
                    pod_state.state = State::Failed;
                    pod_state.node = None;
                    self.scheduler.apply(Event::BindFailed(&pod_state.name));
                }
                2 => {
                    pod_state.state = State::Placed;
                    self.scheduler.apply(Event::BindSucceeded(&pod_state.name));
                }
                _ => {
                    pod_state.state = State::Placed;
                    self.scheduler.apply(Event::PodChanged(&pod(&pod_state.name, &pod_state.spec())));
                }
            }
        }
    }

    fn retry(&mut self) {
        for pod_state in self.reference.pods.iter_mut().filter(|pod| pod.state == State::Failed) {
            pod_state.state = State::Waiting;
            self.scheduler.apply(Event::BindRetry(&pod_state.name));
        }
    }

    /// Reports that bring nothing new change nothing.
    fn repeat_reports(&mut self) {
        for known in &self.reference.nodes {
            self.scheduler.apply(Event::NodeChanged(&node(&known.name, &known.spec())));
        }
        for known in &self.reference.pods {
            self.scheduler.apply(Event::PodChanged(&pod(&known.name, &known.spec())));
        }
    }

    fn compare(&mut self, decisions: &[Decision], batch: usize) {
        let seed = self.seed;
        let mut placed = 0;
        for decision in decisions {
            match decision {
                Decision::Bind { pod, node } => {
                    placed += 1;
                    let next = self.reference.next().map(|pod| pod.name.clone());
                    assert_eq!(next.as_ref(), Some(&pod.name), "seed {seed}: whose turn it is");
                    self.place(&pod.name, node);
                }
                Decision::Unschedulable { pod, .. } => {
                    let told = self.reference.pods.iter_mut().find(|known| known.name == pod.name);
                    told.unwrap_or_else(|| panic!("seed {seed}: {} is gone", pod.name)).told = true;
                }
                Decision::Gated { pod } => panic!("seed {seed}: {} has no gates", pod.name),
            }
        }
        assert!(placed <= batch, "seed {seed}: a batch has a limit");
        if placed < batch {
            let left = self.reference.next().map(|pod| pod.name.as_str());
            assert_eq!(left, None, "seed {seed}: this pod fits somewhere");
            let mut waiting = self.reference.pods.iter().filter(|pod| pod.state == State::Waiting);
            let untold = waiting.find(|pod| !pod.told).map(|pod| pod.name.as_str());
            assert_eq!(untold, None, "seed {seed}: this pod does not know why it waits");
        }
    }

    fn place(&mut self, name: &str, node: &str) {
        let seed = self.seed;
        let index = self.reference.pods.iter().position(|pod| pod.name == name);
        let index = index.unwrap_or_else(|| panic!("seed {seed}: {name} is gone"));
        let best = self.reference.best(&self.reference.pods[index]);
        assert!(best.contains(&node), "seed {seed}: {name} went to {node}, not to one of {best:?}");
        let pod_state = &mut self.reference.pods[index];
        pod_state.state = State::Binding;
        pod_state.node = Some(node.to_string());
    }
}
