//! The image store through its public door: archives, hostile archives, registries.

#[path = "it/http.rs"]
mod http;
#[path = "it/load.rs"]
mod load;
#[path = "it/pull.rs"]
mod pull;
#[path = "it/registry.rs"]
mod registry;
#[path = "it/tars.rs"]
mod tars;
#[path = "it/unpack.rs"]
mod unpack;
