//! The API through its real pipeline: the same service that clients of the process use, over a real store.

mod access;
mod audit;
mod every_kind;
mod identity;
mod nodes;
mod protocol;
mod secrecy;
mod world;
