//! The harness of the end-to-end tests: a cluster of the real binary, spoken to with the real `kubectl`.
//!
//! Nothing here knows how the platform works inside. A [`Cluster`] owns two directories and a port, starts
//! `sampan up` and, when dropped, ends it with `sampan down --purge` and looks whether anything is left on the
//! machine. A [`Namespace`] is the room of one test in a cluster that is shared by all tests of a process.
//!
//! The tests need root, `kubectl` ([`KUBECTL`] or the PATH), a static `busybox`, `tar` and `curl`; the binary is the
//! one beside the tests, or [`BINARY`]. The tests with clients of others need what `scripts/lib.sh` fetches for them.

#![forbid(unsafe_code)]

mod clients;
mod cluster;
mod command;
mod image;
mod leftovers;
mod namespace;
mod processes;
mod random;

pub use clients::{HELM, Language, MANIFESTS, NODE_CLIENT, PYTHON_CLIENT, manifest, source};
pub use cluster::Cluster;
pub use command::{Background, Done, command};
pub use image::{IMAGE, busybox, make as image_archive};
pub use namespace::{Namespace, merge};
pub use processes::processes;
pub use random::Random;

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// Environment variable that names the `kubectl` to use.
pub const KUBECTL: &str = "SAMPAN_KUBECTL";
/// Environment variable that names the binary under test.
pub const BINARY: &str = "SAMPAN_BINARY";
/// How long anything may take before a test gives up. Generous: it is only waited for when something is broken.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// The pause between two looks at a condition that nobody announces.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks at a condition until it holds and gives what it found.
///
/// # Panics
///
/// When [`PATIENCE`] runs out, with the last reason the condition gave.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match look() {
            Ok(found) => return found,
            Err(reason) if Instant::now() > deadline => {
                panic!("{what}: gave up after {PATIENCE:?}: {reason}")
            }
            Err(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

/// A condition as [`eventually`] wants it.
pub fn check(holds: bool, reason: impl Into<String>) -> Result<(), String> {
    if holds { Ok(()) } else { Err(reason.into()) }
}

/// The binary under test: [`BINARY`], or the one in the target directory the tests were built into.
///
/// # Panics
///
/// When there is none.
#[must_use]
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os(BINARY) {
        return path.into();
    }
    let test = std::env::current_exe().expect("a test knows its own path");
    let found = test.ancestors().skip(1).take(3).map(|d| d.join("sampan")).find(|p| p.is_file());
    found.unwrap_or_else(|| panic!("no sampan beside {}; build it, or set {BINARY}", test.display()))
}

/// The `kubectl` to use.
#[must_use]
pub fn kubectl() -> PathBuf {
    std::env::var_os(KUBECTL).map_or_else(|| "kubectl".into(), PathBuf::from)
}
