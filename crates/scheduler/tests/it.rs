//! The scheduler's state machine through its public door: events in, decisions out.

#[path = "it/cases.rs"]
mod cases;
#[path = "it/cluster.rs"]
mod cluster;
#[path = "it/random.rs"]
mod random;
#[path = "it/reference.rs"]
mod reference;
