//! The error of everything that happens inside the supervisor and the processes it makes.
//!
//! It crosses processes as text with an exit code, so it is one flat type; [`crate::RuntimeError`] is made from it at
//! the interface.

use std::io;

use serde::{Deserialize, Serialize};

/// What was tried, why it failed, and which exit code tells the same to whoever waits for the process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    /// 127 no such file, 126 not executable, 128 otherwise.
    pub(crate) exit_code: i32,
    /// One sentence with its cause.
    pub(crate) message: String,
    /// The thing asked for does not exist (any more).
    #[serde(default)]
    pub(crate) not_found: bool,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { exit_code: 128, message: message.into(), not_found: false }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self { not_found: true, ..Self::new(message) }
    }
}

/// Adds what was tried to an operating system error.
pub(crate) trait Tried<T> {
    /// `what` reads on after "failed to".
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Tried<T> for Result<T, E> {
    fn tried(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format!("failed to {}: {}", what(), error.into())))
    }
}
