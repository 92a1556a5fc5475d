//! The API through its real pipeline: the same service that clients of the process use, over a real store.

mod access;
mod admission;
mod aggregation;
mod audit;
mod custom;
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
