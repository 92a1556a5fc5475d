//! Why the node agent could not do something.

use std::path::{Path, PathBuf};

use sampan_runtime::RuntimeError;

/// Errors of the node agent. A variant exists where a caller acts on it or where the cause has a type.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A file, directory or mount of the node.
    #[error("failed to {action} {}", path.display())]
    File {
        /// What was tried, for instance `create`.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A request to the API.
    #[error("failed to {action}")]
    Api {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// The container runtime.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// What the pod asks for cannot be given; the text is meant for the user.
    #[error("{0}")]
    Unusable(String),
    /// The network.
    #[error("failed to {action}")]
    Network {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl NodeError {
    /// For `map_err` on file operations.
    pub(crate) fn file(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::File { action, path, source }
    }

    /// For `map_err` on system calls through rustix.
    pub(crate) fn errno(action: &'static str, path: &Path) -> impl FnOnce(rustix::io::Errno) -> Self {
        let path = path.to_path_buf();
        move |errno| Self::File { action, path, source: errno.into() }
    }

    /// For `map_err` on requests.
    pub(crate) fn api(action: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let action = action.into();
        move |source| Self::Api { action, source: Box::new(source) }
    }
}

/// The whole chain of causes on one line, as messages of events and statuses show it.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Whether the API said that the object does not exist.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// Whether the API refused because something else is there or was there first.
pub(crate) fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}
