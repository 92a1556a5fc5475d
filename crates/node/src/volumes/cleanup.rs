//! Taking away what a pod had on this machine.
//!
//! Nothing is deleted below a directory while anything is mounted there: a mount may be a directory of the node, and its
//! content is not ours.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::mount::UnmountFlags;

use crate::config::NodeConfig;
use crate::error::{NodeError, chain};

/// Unmounts and deletes the pod's volumes. Logs and termination messages stay.
pub(crate) async fn tear_down(config: &NodeConfig, uid: &str) -> Result<(), NodeError> {
    if uid.is_empty() {
        return Ok(());
    }
    let (pod, memory) = (config.pod_dir(uid), config.pod_memory_dir(uid));
    blocking(move || {
        unmount_below(&pod)?;
        unmount_below(&memory)?;
        remove_tree(&pod.join("volumes"))?;
        remove_tree(&pod.join("volume-subpaths"))?;
        remove_tree(&memory)
    })
    .await
}

/// Deletes everything of a pod whose volumes are gone.
pub(crate) async fn remove_pod(
    config: &NodeConfig,
    namespace: &str,
    name: &str,
    uid: &str,
) -> Result<(), NodeError> {
    if uid.is_empty() {
        return Ok(());
    }
    let (pod, logs) = (config.pod_dir(uid), config.log_dir(namespace, name, uid));
    blocking(move || {
        unmount_below(&pod)?;
        remove_tree(&pod)?;
        remove_tree(&logs)
    })
    .await
}

/// What pods left that no longer exist.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    uids: BTreeSet<String>,
    logs: Vec<PathBuf>,
}

/// Directories and logs of pods that are not listed. Looked for before any worker starts: a directory made later belongs
/// to a pod that the list does not know yet.
pub(crate) fn find_orphans(config: &NodeConfig, wanted: &[String]) -> Orphans {
    let is_wanted = |name: &str| wanted.iter().any(|uid| uid == name);
    let uids = entries(&config.pods_dir()).into_iter().chain(entries(&config.memory_dir()));
    let logs = config.data_dir.join("logs");
    // namespace_name_uid; neither namespaces nor names contain an underscore.
    let of_orphans = |name: &String| !is_wanted(name.rsplit('_').next().unwrap_or_default());
    Orphans {
        uids: uids.filter(|uid| !is_wanted(uid)).collect(),
        logs: entries(&logs).into_iter().filter(of_orphans).map(|name| logs.join(name)).collect(),
    }
}

/// Deletes what [`find_orphans`] found; what cannot be deleted is reported and left.
pub(crate) async fn remove_orphans(config: &NodeConfig, orphans: Orphans) {
    for uid in orphans.uids {
        let pod = config.pod_dir(&uid);
        let result = match tear_down(config, &uid).await {
            Ok(()) => blocking(move || remove_tree(&pod)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(uid, error = chain(&error), "failed to delete what a pod left");
        }
    }
    for directory in orphans.logs {
        let removed = directory.clone();
        if let Err(error) = blocking(move || remove_tree(&removed)).await {
            let directory = directory.display();
            tracing::warn!(%directory, error = chain(&error), "failed to delete the logs a pod left");
        }
    }
}

/// The log of a container and what was rotated away from it.
pub(crate) async fn remove_log_files(log: &Path) {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else { return };
    let rotated = format!("{}.", name.to_string_lossy());
    for entry in entries(directory) {
        if entry == name.to_string_lossy() || entry.starts_with(&rotated) {
            let _ = tokio::fs::remove_file(directory.join(entry)).await;
        }
    }
}

fn entries(directory: &Path) -> Vec<String> {
    let listed = std::fs::read_dir(directory).into_iter().flatten();
    listed.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned())).collect()
}

async fn blocking(work: impl FnOnce() -> Result<(), NodeError> + Send + 'static) -> Result<(), NodeError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(NodeError::file("clean up", Path::new(""))(std::io::Error::other(error))),
    }
}

fn remove_tree(path: &Path) -> Result<(), NodeError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(NodeError::file("delete", path)(error))
        }
        _ => Ok(()),
    }
}

fn unmount_below(directory: &Path) -> Result<(), NodeError> {
    let table = PathBuf::from("/proc/self/mountinfo");
    let text = std::fs::read_to_string(&table).map_err(NodeError::file("read", &table))?;
    for target in mounts_below(&text, directory) {
        rustix::mount::unmount(&target, UnmountFlags::DETACH)
            .map_err(NodeError::errno("unmount", &target))?;
    }
    Ok(())
}

/// Mount points at or below a directory, the last mounted first.
fn mounts_below(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(directory)).collect();
    below.reverse();
    below
}

/// `mountinfo` writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> PathBuf {
    let plain =
        text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points() {
        let table = "22 1 0:20 / / rw - ext4 /dev/sda rw\n\
                     30 22 0:21 / /d/pods/u/volumes/a rw - tmpfs tmpfs rw\n\
                     31 22 0:22 / /d/pods/u/volumes/with\\040space rw - tmpfs tmpfs rw\n\
                     32 22 0:23 / /d/pods/u2/x rw - tmpfs tmpfs rw\n";
        let expected = [Path::new("/d/pods/u/volumes/with space"), Path::new("/d/pods/u/volumes/a")];
        assert_eq!(mounts_below(table, Path::new("/d/pods/u")), expected);
    }
}
