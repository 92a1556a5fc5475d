//! Thin, safe doors to Linux: the only crate of the workspace that may contain `unsafe`.
//!
//! Where `rustix` has a safe function, callers use `rustix` directly; this crate holds what is left: making processes,
//! executing programs, filters, mount attributes, descriptors and signals of a process about to become a container.
//! Every function says in its type or its comment what makes it safe. No policy lives here: which namespaces, which
//! capabilities and which filter are decided in `runtime`.

pub mod bpf;
pub mod descriptor;
pub mod exec;
pub mod link;
pub mod memory;
pub mod mount;
pub mod process;
pub mod seccomp;
pub mod signal;

/// Turns the result of a raw system call (negative for an error in `errno`) into a `Result`.
fn check(result: libc::c_long) -> std::io::Result<libc::c_long> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(result) }
}
