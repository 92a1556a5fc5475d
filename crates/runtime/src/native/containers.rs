//! Making, starting and ending containers.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::pod::Pod;
use super::sandboxes::{new_id, remove_directory};
use super::{NativeRuntime, blocking, system};
use crate::capability;
use crate::cgroup::{Cgroups, Devices};
use crate::cri::{ContainerConfig, ContainerId, ContainerState, LinuxResources, RuntimeError};
use crate::failure::{Failure, Tried};
use crate::protocol::{Call, StartParameters};
use crate::record::{ContainerPaths, ContainerRecord, now, write_json};

impl NativeRuntime {
    pub(super) async fn make_container(
        &self,
        pod: &Arc<Pod>,
        config: ContainerConfig,
    ) -> Result<ContainerId, RuntimeError> {
        let same = |record: &&Arc<ContainerRecord>| record.config.metadata == config.metadata;
        if let Some(present) = pod.containers().iter().find(same) {
            return Ok(present.id.clone());
        }
        capability::wanted(&config.security).map_err(|failure| RuntimeError::Create(failure.message))?;
        let id = ContainerId(new_id::<32>().map_err(system)?);
        let record = ContainerRecord {
            cgroup: format!("{}/{}", pod.record.cgroup, id.0),
            sandbox_id: pod.record.id.clone(),
            created_at: now(),
            layers: Vec::new(),
            warnings: Vec::new(),
            config,
            id,
        };
        let (images, cgroups, paths) =
            (self.config.images.clone(), self.cgroups.clone(), pod.paths.container(&record.id));
        let prepared = blocking(move || {
            let image = record.config.image_id.clone();
            let unusable =
                |error| Failure::new(format!("image {} is not usable: {error}", record.config.image));
            let pin = images.pin(&image).map_err(unusable)?;
            let layers = images.layer_dirs(&image).map_err(unusable)?;
            let record = ContainerRecord { layers, ..record };
            let prepared = prepare(record, &paths, &cgroups);
            // What was made is of no use; the cause is what counts.
            let record = prepared.inspect_err(|_| drop(remove_directory(&paths.directory)))?;
            Ok((record, pin))
        });
        let (record, pin) = prepared.await.map_err(|failure| RuntimeError::Create(failure.message))?;
        let id = record.id.clone();
        pod.insert(record, Some(pin));
        Ok(id)
    }

    pub(super) async fn start(&self, pod: &Arc<Pod>, id: &ContainerId) -> Result<(), RuntimeError> {
        let record = pod.container(id).map_err(system)?;
        let state = pod.state(id).map_err(system)?.state;
        match state {
            ContainerState::Running => return Ok(()),
            ContainerState::Created => {}
            ContainerState::Exited | ContainerState::Unknown => {
                return Err(RuntimeError::FailedPrecondition(format!("container {} has ended", id.0)));
            }
        }
        let config = &record.config;
        let start = StartParameters {
            cgroup: record.cgroup.clone(),
            tty: config.tty,
            stdin: config.stdin,
            stdin_once: config.stdin_once,
            log_path: pod.log_path(&record),
            log_max_bytes: config.log_max_bytes,
            log_max_files: config.log_max_files,
        };
        let started = pod.link()?.call(Call::Start { container: id.clone(), start }, &[]).await;
        started
            .map(|_| ())
            .map_err(|failure| RuntimeError::Start { exit_code: failure.exit_code, message: failure.message })
    }

    pub(super) async fn stop(
        &self,
        pod: &Arc<Pod>,
        id: &ContainerId,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        if pod.state(id).map_err(system)?.state != ContainerState::Running {
            return Ok(());
        }
        let Some(living) = pod.living() else { return Ok(()) };
        let record = pod.container(id).map_err(system)?;
        let signal = stop_signal(&record.config.stop_signal);
        let mut ended =
            living.link.request(Call::Wait { container: id.clone() }, &[]).await.map_err(system)?;
        if !grace.is_zero() {
            // Refused when it ended meanwhile.
            let _ = living.link.call(Call::Signal { container: id.clone(), signal }, &[]).await;
            if let Ok(answer) = tokio::time::timeout(grace, ended.next()).await {
                return confirm_end(pod, id, answer.is_ok()).await;
            }
        }
        let _ = living.link.call(Call::Kill { container: id.clone() }, &[]).await;
        let answer = ended.next().await;
        confirm_end(pod, id, answer.is_ok()).await
    }

    pub(super) async fn remove(&self, pod: &Arc<Pod>, id: &ContainerId) -> Result<(), RuntimeError> {
        self.stop(pod, id, Duration::ZERO).await?;
        let record = pod.container(id).map_err(system)?;
        let (paths, cgroups) = (pod.paths.container(id), self.cgroups.clone());
        let removed = blocking(move || {
            cgroups.kill_and_wait(&record.cgroup);
            cgroups.remove(&record.cgroup);
            // First what makes it a container: an interrupted removal is finished at the next start of the agent.
            match std::fs::remove_file(paths.config()) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(error).tried(|| format!("remove {}", paths.config().display()))?;
                }
                _ => {}
            }
            remove_directory(&paths.directory)
        });
        removed.await.map_err(system)?;
        pod.forget(id);
        Ok(())
    }

    pub(super) fn update(
        &self,
        pod: &Arc<Pod>,
        id: &ContainerId,
        resources: LinuxResources,
    ) -> Result<(), RuntimeError> {
        let record = pod.container(id).map_err(system)?;
        let refused = self.cgroups.apply(&record.cgroup, &resources);
        if !refused.is_empty() {
            return Err(RuntimeError::FailedPrecondition(refused.join("; ")));
        }
        let mut changed = (*record).clone();
        // The score belongs to processes and is not changed afterwards.
        changed.config.resources =
            LinuxResources { oom_score_adj: record.config.resources.oom_score_adj, ..resources };
        let path = pod.paths.container(id).config();
        write_json(&path, &changed).tried(|| format!("write {}", path.display())).map_err(system)?;
        pod.update(changed);
        Ok(())
    }

    pub(super) async fn reopen_log(&self, pod: &Arc<Pod>, id: &ContainerId) -> Result<(), RuntimeError> {
        let reopened = pod.link()?.call(Call::ReopenLog { container: id.clone() }, &[]).await;
        reopened.map(|_| ()).map_err(|failure| RuntimeError::FailedPrecondition(failure.message))
    }
}

/// After the supervisor said that the container has ended, or went away itself; then the container is killed with its
/// cgroup, and the record says so once that is done.
async fn confirm_end(pod: &Arc<Pod>, id: &ContainerId, answered: bool) -> Result<(), RuntimeError> {
    if !answered && pod.state(id).map_err(system)?.state == ContainerState::Running {
        // Fails only when the pod has been removed meanwhile.
        let _ = pod.alive.subscribe().wait_for(|alive| !*alive).await;
    }
    Ok(())
}

/// The signal an image asks for; SIGTERM when it asks for none or for one that does not exist.
fn stop_signal(name: &str) -> i32 {
    const SIGTERM: i32 = 15;
    sampan_kernel::signal::parse(name).unwrap_or(SIGTERM)
}

/// Directories, cgroup and record of a new container.
fn prepare(
    record: ContainerRecord,
    paths: &ContainerPaths,
    cgroups: &Cgroups,
) -> Result<ContainerRecord, Failure> {
    for directory in [paths.upper(), paths.work(), paths.rootfs()] {
        make_directory(&directory)?;
    }
    cgroups.create(&record.cgroup)?;
    let devices = if record.config.security.privileged { Devices::All } else { Devices::Default };
    cgroups.restrict_devices(&record.cgroup, devices)?;
    let warnings = cgroups.apply(&record.cgroup, &record.config.resources);
    let record = ContainerRecord { warnings, ..record };
    write_json(&paths.config(), &record).tried(|| format!("write {}", paths.config().display()))?;
    Ok(record)
}

fn make_directory(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path).tried(|| format!("make {}", path.display()))
}
