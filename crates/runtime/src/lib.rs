//! Containers, straight on namespaces and cgroups, behind the interface of CRI.
//!
//! - [`cri`]: the interface, [`Runtime`], and its types.
//! - [`native`]: [`NativeRuntime`], our implementation, in the agent's process: asynchronous, decides nothing the
//!   kubelet decides, keeps no truth of its own.
//! - `supervisor`: the small process of each pod, a re-execution of our binary, which owns namespaces and streams.
//! - `init`: from a copy of the supervisor to the program of a container.
//! - `record`, `protocol`: the files and messages between the two sides.
//! - `cgroup`, `capability`, `seccomp`, `user`, `log`: one kernel or format subject each.
//!
//! Needs root, Linux 5.12 (`mount_setattr`), overlayfs, and cgroups in any layout; 6.15 for a `/dev/shm` shared by the
//! containers of a pod, which is per container before.
//!
//! Networking is not here: a sandbox has a network namespace with loopback up, the rest is `network`'s.

#![forbid(unsafe_code)]

pub mod cri;
pub mod native;

mod capability;
mod cgroup;
mod failure;
mod init;
mod log;
mod protocol;
mod record;
mod seccomp;
mod supervisor;
mod user;

pub use cri::*;
pub use native::{ImagePin, NativeConfig, NativeRuntime, RootfsSource, destroy_all};
pub use supervisor::supervisor_main;
