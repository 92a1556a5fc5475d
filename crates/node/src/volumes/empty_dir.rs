//! `emptyDir`: a directory, or a tmpfs with `medium: Memory`. Lives as long as the pod.
//!
//! `sizeLimit` is enforced by the kernel on a tmpfs; on disk it is not enforced yet.

use std::ffi::CString;

use k8s_openapi::api::core::v1::Volume;

use super::{Made, Order, Place, fs_group, is_tmpfs, mount_tmpfs, ownership};
use crate::error::NodeError;
use crate::resources;

fn is_memory(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref()) == Some("Memory")
}

/// Memory volumes have a mount of their own inside the pod's directory; the node's tmpfs is for secrets only.
pub(super) fn place(_: &Volume) -> Place {
    Place::Disk
}

pub(super) async fn set_up(order: Order<'_>) -> Made {
    let path = &order.path;
    let is_new = !tokio::fs::try_exists(path).await.map_err(NodeError::file("look at", path))?;
    tokio::fs::create_dir_all(path).await.map_err(NodeError::file("create", path))?;
    if is_memory(order.volume) && !is_own_tmpfs(&order)? {
        let limit = order.volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref());
        let options = match limit.map(resources::value).filter(|bytes| *bytes > 0) {
            Some(bytes) => format!("mode=0777,size={bytes}"),
            None => "mode=0777".to_string(),
        };
        let options =
            CString::new(options).map_err(|_| NodeError::Unusable("sizeLimit is not a number".into()))?;
        mount_tmpfs(path, &options)?;
    } else if !is_new {
        return Ok(None);
    }
    let mode = rustix::fs::Mode::from_raw_mode(0o777);
    rustix::fs::chmod(path, mode).map_err(NodeError::errno("set the mode of", path))?;
    if let Some(group) = fs_group(order.pod) {
        ownership::give_directory(path, group)?;
    }
    Ok(None)
}

/// After a restart of the agent the mount is there already. The data directory itself may lie on a tmpfs, so that only
/// a change of the file system at this very directory counts.
fn is_own_tmpfs(order: &Order<'_>) -> Result<bool, NodeError> {
    let path = &order.path;
    let Some(parent) = path.parent() else { return Ok(false) };
    let own = rustix::fs::stat(path).map_err(NodeError::errno("look at", path))?;
    let above = rustix::fs::stat(parent).map_err(NodeError::errno("look at", parent))?;
    Ok(own.st_dev != above.st_dev && is_tmpfs(path)?)
}
