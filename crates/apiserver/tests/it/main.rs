//! The API through its real pipeline: the same service that clients of the process use, over a real store.

mod access;
mod admission;
mod every_kind;
mod protocol;
mod world;
