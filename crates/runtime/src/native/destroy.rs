//! Ending everything a runtime has made, for `sampan down`.

use std::fs;

use super::sandboxes::remove_directory;
use super::{NativeConfig, system};
use crate::cgroup::Cgroups;
use crate::cri::RuntimeError;
use crate::failure::{Failure, Tried};
use crate::record::sandboxes_dir;

/// Ends every pod of the runtime and removes its records, sockets and cgroups. Mounts and namespaces need no removal:
/// they exist only in the processes that are killed here. Blocks until everything has gone; needs no agent.
///
/// # Errors
/// When something of it cannot be removed.
pub fn destroy_all(config: &NativeConfig) -> Result<(), RuntimeError> {
    if config.cgroup_root.trim_matches('/').is_empty() {
        return Err(RuntimeError::Create("the runtime needs a cgroup of its own".to_owned()));
    }
    destroy(config).map_err(system)
}

fn destroy(config: &NativeConfig) -> Result<(), Failure> {
    // All pods and supervisors are below this one cgroup, so no record needs to be believed.
    let cgroups = Cgroups::detect()?;
    let root = config.cgroup_root.trim_matches('/');
    cgroups.kill_and_wait(root);
    cgroups.remove(root);
    remove_directory(&sandboxes_dir(&config.data_dir))?;
    let entries = match fs::read_dir(&config.run_dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).tried(|| format!("list {}", config.run_dir.display())),
    };
    for entry in entries.flatten() {
        let path = entry.path();
        // Only what the runtime makes there: a directory per sandbox, with its socket.
        if path.join("control").exists() {
            remove_directory(&path)?;
        }
    }
    let _ = fs::remove_file(config.run_dir.join("supervisor.log"));
    // Others may use the directory too.
    let _ = fs::remove_dir(&config.run_dir);
    Ok(())
}
