//! The scheduler: gives every pod without a node the best node it may run on.
//!
//! Deciding and doing are apart. [`Scheduler`] is a state machine without clock, IO or chance: events
//! go in, [`Decision`]s come out, and the same events give the same decisions. The executor behind
//! [`start`] feeds it from informers, binds, and tells pods why they wait.
//!
//! ```text
//!   informers ──> executor ──Event──> Scheduler: node table ── node classes
//!                    ^                             pod classes: waiting pods, candidate heap
//!                    │                             queue of active classes, parked classes
//!                 results <──bind── executor <──Decision──┘
//! ```
//!
//! - Pods that want the same (one *signature*) are a class and share one ranking of the nodes; a change
//!   of one node costs one new score per class that is in use, never a new pass over all nodes.
//! - The choice is exact: the node with the best score, as if every node were looked at.
//! - A class that fits nowhere is parked with a note of what stands in its way. It wakes only when some
//!   node changes so that it fits there; nothing is tried again by the clock.
//! - A pod counts on its node from the moment of the decision, before the API has heard of it.
//!
//! Scores follow kube-scheduler's default profile (free resources, balance, taints, preferred node
//! affinity). Not here yet: inter-pod affinity, topology spread, volumes, image locality, preemption.
//! Placing pods on nodes is all this crate does; it never evicts, and it reads nothing but pods and
//! nodes. It talks to the API only through the client it is given.
#![forbid(unsafe_code)]

mod executor;
mod nodes;
mod notices;
mod pod_class;
mod resources;
mod scheduler;
mod selection;
mod signature;
mod taints;

pub use executor::start;
pub use scheduler::{Decision, Event, PodRef, Scheduler};
