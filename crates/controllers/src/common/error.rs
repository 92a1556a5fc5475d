//! Why a run of a controller failed. Every failure is retried by the loop; the text is for operators.

use std::fmt::Display;

use kube::core::ParseExpressionError;

/// A run of a controller failed and will be repeated.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ControllerError {
    /// The API server refused or could not be reached.
    #[error("failed to {action} {object}")]
    Api {
        /// What was tried, as a verb phrase: `update the status of`.
        action: &'static str,
        /// On what.
        object: String,
        /// The server's answer.
        #[source]
        source: kube::Error,
    },
    /// An object holds a selector that validation should not have let through.
    #[error("{object} has an invalid label selector")]
    Selector {
        /// The object.
        object: String,
        /// What is wrong with it.
        #[source]
        source: ParseExpressionError,
    },
    /// Another write came first, seen only when this one was made.
    #[error("{object} changed while it was being reconciled")]
    Overtaken {
        /// The object.
        object: String,
    },
}

impl ControllerError {
    /// Wraps a client error with what was tried.
    pub(crate) fn api(action: &'static str, object: impl Display) -> impl FnOnce(kube::Error) -> Self {
        let object = object.to_string();
        move |source| Self::Api { action, object, source }
    }
}

/// Whether the server said that the object is not there.
pub(crate) fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Whether an object with this name is there already.
pub(crate) fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

/// Whether a create was refused because its namespace is being deleted: nothing to retry.
pub(crate) fn is_namespace_terminating(error: &kube::Error) -> bool {
    let kube::Error::Api(status) = error else { return false };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
}

/// Turns "it is gone" into success: what was to be changed or deleted no longer matters.
pub(crate) fn gone_is_fine<T>(result: kube::Result<T>) -> kube::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
