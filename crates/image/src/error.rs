//! What can go wrong with images, by what a caller does about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::Digest;

/// Why an image could not be had, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The name is not one.
    #[error("{reference:?} is no image name: {reason}")]
    Reference { reference: String, reason: String },
    /// There is no such image here or in the registry.
    #[error("image {reference} not found")]
    NotFound { reference: String },
    /// Something runs from it.
    #[error("image {id} is in use")]
    InUse { id: String },
    /// The registry does not let us in.
    #[error("not allowed to pull {reference}: {reason}")]
    Denied { reference: String, reason: String },
    /// The registry answered something else than asked for.
    #[error("{url} answered {status}: {message}")]
    Registry { url: String, status: u16, message: String },
    /// The registry could not be reached, or the connection broke.
    #[error("failed to {action} {url}")]
    Transport { action: &'static str, url: String, source: Box<dyn std::error::Error + Send + Sync> },
    /// A host that may only be talked to with TLS wants, or sends us to, plain HTTP.
    #[error("refused to talk to {url} without TLS; allow plain HTTP for this host if that is meant")]
    PlainHttp { url: String },
    /// Bytes are not what their name says.
    #[error("{what} has digest {actual}, expected {expected}")]
    Digest { what: String, expected: Digest, actual: Digest },
    /// There are more or fewer bytes than announced, or than we take.
    #[error("{what} has {reason}")]
    Size { what: String, reason: String },
    /// No variant of the image is for this machine.
    #[error("{reference} has no variant for {wanted}, only for {available}")]
    Platform { reference: String, wanted: String, available: String },
    /// A document or an archive is not what it should be.
    #[error("{what}: {reason}")]
    Format { what: String, reason: String },
    /// A layer's archive must not be unpacked.
    #[error("layer {layer}: {source}")]
    Layer { layer: String, source: LayerError },
    /// The store's index was written by a newer release.
    #[error("{path} has format version {found}, this release reads up to {supported}: use a newer release")]
    NewerVersion { path: PathBuf, found: u32, supported: u32 },
    /// The file system refused.
    #[error("failed to {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl ImageError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    pub(crate) fn format(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::Format { what: what.into(), reason: reason.to_string() }
    }
}

/// What is wrong with the archive of a layer. `entry` is a path in it.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It would write outside of its root.
    #[error("{entry:?} leaves the root of the layer: {reason}")]
    Escapes { entry: String, reason: String },
    /// It holds a device, which no layer may bring.
    #[error("{entry:?} is a device node")]
    Device { entry: String },
    /// It is too large, has too many entries, or too long names.
    #[error("the archive is larger than allowed: {reason}")]
    Bomb { reason: String },
    /// It ends too early.
    #[error("the archive ends in the middle of {place}")]
    Truncated { place: String },
    /// It is no archive, or uses a feature that layers do not.
    #[error("malformed archive at {place}: {reason}")]
    Malformed { place: String, reason: String },
    /// Its content is not what the image's configuration says.
    #[error("the uncompressed archive has digest {actual}, the image says {expected}")]
    Digest { expected: Digest, actual: Digest },
    /// The file system refused.
    #[error("failed to {action} {entry:?}")]
    Io { action: &'static str, entry: String, source: io::Error },
}
