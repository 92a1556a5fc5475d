//! The API through its real pipeline: the same service that clients of the process use, over a real store.

mod access;
mod admission;
mod aggregation;
mod audit;
mod conformance_access;
mod conformance_api;
mod conformance_custom;
mod conformance_discovery;
mod conformance_fields;
mod conformance_lists;
mod conformance_objects;
mod conformance_policies;
mod conformance_watch;
mod conformance_webhooks;
mod custom;
mod documents;
mod every_kind;
mod identity;
mod nodes;
mod operations;
mod outside;
mod protocol;
mod secrecy;
mod webhooks;
mod wire;
mod world;
