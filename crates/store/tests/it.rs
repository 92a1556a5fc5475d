//! The store through its trait: one suite, every implementation.

#[path = "it/embedded.rs"]
mod embedded;
#[cfg(feature = "etcd")]
#[path = "it/etcd.rs"]
mod etcd;
#[path = "it/suite.rs"]
mod suite;
