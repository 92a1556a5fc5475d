//! Images of containers on this machine: getting them, keeping them, and giving their layers to overlayfs.
//!
//! ```text
//! index.json      which images there are            (index)
//! blobs/sha256/   manifests, configurations, layers (blobs)
//! layers/HEX/     unpacked layers by diff id: lower directories of overlayfs
//! tmp/            what is not finished; emptied when nothing is going on
//! ```
//! A pull asks a [`registry`], a load reads an [`archive`]; both verify every byte against its digest, unpack each
//! layer into a directory of its own and name the image last. Whatever is interrupted leaves nothing that counts.
//!
//! This crate does not mount anything and does not know containers: who runs from an image holds a [`Pin`].

#![forbid(unsafe_code)]

mod archive;
mod blobs;
mod digest;
mod error;
mod extract;
mod index;
mod layer;
mod manifest;
mod pull;
mod reference;
mod registry;
mod store;
mod tarball;
mod transport;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use digest::Digest;
pub use error::{ImageError, LayerError};
pub use reference::Reference;
pub use store::{ImageStore, Pin};
pub use tarball::Limits;
pub use transport::resolve;

/// A stored image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The digest of its configuration, `sha256:…`.
    pub id: String,
    /// Its names, `docker.io/library/nginx:latest`.
    pub references: Vec<String>,
    /// What registries call it, `docker.io/library/nginx@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Bytes of its layers and documents as stored, compressed.
    pub size: u64,
    /// When it was built (RFC 3339), or empty.
    pub created: String,
    /// What to run.
    pub config: ImageConfig,
}

/// The `config` of an image's configuration, in the words of the OCI image specification.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// The program, before its arguments.
    pub entrypoint: Vec<String>,
    /// Arguments when none are given, or the program when there is no entrypoint.
    pub cmd: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Where to run; empty is the root.
    pub working_dir: String,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty is root.
    pub user: String,
    /// `SIGTERM` or a number.
    pub stop_signal: Option<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Paths of anonymous volumes.
    pub volumes: Vec<String>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
}

/// What an imported root file system shall run.
#[derive(Clone, Debug, Default)]
pub struct ImportConfig {
    /// See [`ImageConfig::entrypoint`].
    pub entrypoint: Vec<String>,
    /// See [`ImageConfig::cmd`].
    pub cmd: Vec<String>,
    /// See [`ImageConfig::env`].
    pub env: Vec<String>,
    /// See [`ImageConfig::working_dir`].
    pub working_dir: String,
    /// See [`ImageConfig::user`].
    pub user: String,
    /// See [`ImageConfig::exposed_ports`].
    pub exposed_ports: Vec<String>,
}

/// How to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Hosts (`localhost`, `10.0.0.5`, or with a port `localhost:5000`) that may be talked to without TLS; they are
    /// then not asked with TLS.
    pub plain_http_hosts: Vec<String>,
    /// User and password.
    pub credentials: Option<(String, String)>,
    /// A file of PEM certificates to trust beside those of the system.
    pub ca: Option<PathBuf>,
}

/// How far a pull is with one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullProgress {
    /// The image being pulled, as given.
    pub reference: Arc<str>,
    /// The layer's blob.
    pub layer: Digest,
    /// Its size in bytes.
    pub total: u64,
    /// What is happening.
    pub state: LayerState,
}

/// The life of a layer during a pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// Not begun.
    Waiting,
    /// So many bytes are here.
    Downloading(u64),
    /// All bytes are here and right.
    Unpacking,
    /// Ready, or it was already.
    Done,
}

/// What a removal came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Ids of images that are gone.
    pub deleted: Vec<String>,
    /// Bytes of blobs that were removed. Less than expected while a pull is going on, which postpones the cleaning.
    pub freed: u64,
}
