//! Clients that other people wrote, and manifests that other people ship: what works with `kubectl` alone is not enough.

mod helm;
mod kube_rs;
mod manifests;
mod scenarios;
