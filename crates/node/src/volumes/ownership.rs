//! `fsGroup`: the group that may use a volume.

use std::path::Path;

use rustix::fs::{Gid, Mode};

use crate::error::NodeError;

/// A fresh directory becomes the group's, and what is made in it inherits the group (set-group-id bit).
pub(super) fn give_directory(path: &Path, group: u32) -> Result<(), NodeError> {
    rustix::fs::chown(path, None, Some(Gid::from_raw(group)))
        .map_err(NodeError::errno("set the group of", path))?;
    let facts = rustix::fs::stat(path).map_err(NodeError::errno("look at", path))?;
    let mode = Mode::from_raw_mode((facts.st_mode & 0o7777) | 0o2770);
    rustix::fs::chmod(path, mode).map_err(NodeError::errno("set the mode of", path))
}
