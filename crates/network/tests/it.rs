//! The network against a real kernel.
//!
//! Each test runs on a thread of its own in a network namespace of its own, which plays the machine: nothing outside is
//! touched, and tests run side by side. Pods are further namespaces. Needs root; without it every test passes unseen.

#[path = "it/dns.rs"]
mod dns;
#[path = "it/lifecycle.rs"]
mod lifecycle;
#[path = "it/pods.rs"]
mod pods;
#[path = "it/services.rs"]
mod services;
#[path = "it/world.rs"]
mod world;
