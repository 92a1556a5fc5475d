//! The API through its real pipeline: the same service that clients of the process use, over a real store.

mod access;
mod admission;
mod aggregation;
mod custom;
mod every_kind;
mod operations;
mod outside;
mod protocol;
mod webhooks;
mod wire;
mod world;
