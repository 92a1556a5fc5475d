//! Making and ending sandboxes.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::nursery::Nursery;
use super::pod::{Living, Pod};
use super::{NativeRuntime, blocking, system};
use crate::cgroup::{self, Cgroups};
use crate::cri::{PodSandbox, PodSandboxConfig, RuntimeError, SandboxId};
use crate::failure::{Failure, Tried};
use crate::protocol::Call;
use crate::record::{SandboxPaths, SandboxRecord, now, write_json};

/// How long a supervisor may take to end its containers after SIGKILL before it is killed itself.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(10);

/// Random identity in hexadecimal digits.
pub(super) fn new_id<const BYTES: usize>() -> Result<String, Failure> {
    let mut bytes = [0_u8; BYTES];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .tried(|| "get random numbers".to_owned())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

impl NativeRuntime {
    pub(super) async fn make_sandbox(&self, config: PodSandboxConfig) -> Result<PodSandbox, RuntimeError> {
        if let Some(present) = self.find_living(&config) {
            return Ok(present.status());
        }
        let id = SandboxId(new_id::<16>().map_err(system)?);
        let paths = SandboxPaths::new(&self.config.data_dir, &self.config.run_dir, &id);
        let cgroup = cgroup::join(&self.config.cgroup_root, &config.cgroup_parent)
            .map_err(|failure| RuntimeError::Create(failure.message))?;
        let record = SandboxRecord { id, created_at: now(), cgroup, config };
        let pod = Arc::new(Pod::new(record, paths, None));
        // Known before it exists: an interrupted call leaves a sandbox that is listed and can be removed.
        self.write_pods().insert(pod.record.id.clone(), pod.clone());
        match self.raise(&pod).await {
            Ok(()) => Ok(pod.status()),
            Err(failure) => {
                self.remove_sandbox(&pod).await?;
                Err(RuntimeError::Create(failure.message))
            }
        }
    }

    /// A sandbox of the same pod and attempt: the caller asks again after a lost answer.
    fn find_living(&self, config: &PodSandboxConfig) -> Option<Arc<Pod>> {
        let same = |pod: &&Arc<Pod>| {
            let known = &pod.record.config.metadata;
            known.uid == config.metadata.uid
                && known.attempt == config.metadata.attempt
                && pod.living().is_some()
        };
        self.read_pods().values().find(same).cloned()
    }

    async fn raise(&self, pod: &Arc<Pod>) -> Result<(), Failure> {
        let (prepared, cgroups) = (pod.clone(), self.cgroups.clone());
        blocking(move || prepare(&prepared, &cgroups)).await?;
        let (pid, pidfd, socket) = self.birth(pod).await?;
        self.watch(pod, pid, pidfd, socket)?;
        let Some(Living { link, .. }) = pod.living() else {
            return Err(Failure::new("the supervisor ended at once"));
        };
        link.call(Call::Hello, &[]).await?;
        Ok(())
    }

    async fn birth(&self, pod: &Pod) -> Result<(i32, std::os::fd::OwnedFd, std::os::fd::OwnedFd), Failure> {
        let mut nursery = self.nursery.lock().await;
        if let Some(running) = &*nursery {
            match running.birth(&pod.paths).await {
                Ok(born) => return Ok(born),
                // Somebody killed it; a new one is as good.
                Err(failure) => tracing::warn!(%failure, "nursery is started again"),
            }
        }
        // The old one's process is waited for before a new one is made.
        *nursery = None;
        let started = Nursery::start(&self.config, &self.cgroups)?;
        let born = started.birth(&pod.paths).await;
        *nursery = Some(started);
        born
    }

    /// Ends all processes of the sandbox.
    pub(super) async fn stop_sandbox(&self, pod: &Arc<Pod>) -> Result<(), RuntimeError> {
        let Some(Living { pidfd, link, .. }) = pod.living() else {
            return Ok(());
        };
        let mut alive = pod.alive.subscribe();
        let ended = async {
            // The answer is lost when the supervisor ends first; its end is what counts.
            let _ = link.call(Call::Shutdown, &[]).await;
            alive.wait_for(|alive| !*alive).await.is_ok()
        };
        if tokio::time::timeout(SHUTDOWN_LIMIT, ended).await.is_ok() {
            return Ok(());
        }
        tracing::warn!(sandbox = pod.record.id.0, "supervisor does not end and is killed");
        let _ = pidfd_send_signal(&*pidfd, Signal::KILL);
        let _ = alive.wait_for(|alive| !*alive).await;
        Ok(())
    }

    /// Ends the sandbox and removes everything of it but its logs.
    pub(super) async fn remove_sandbox(&self, pod: &Arc<Pod>) -> Result<(), RuntimeError> {
        self.stop_sandbox(pod).await?;
        let (removed, cgroups) = (pod.clone(), self.cgroups.clone());
        blocking(move || erase(&removed, &cgroups)).await.map_err(system)?;
        self.write_pods().remove(&pod.record.id);
        Ok(())
    }
}

/// Directories, record and cgroup of a new sandbox.
fn prepare(pod: &Pod, cgroups: &Cgroups) -> Result<(), Failure> {
    let directory = pod.paths.containers();
    std::fs::create_dir_all(&directory).tried(|| format!("make {}", directory.display()))?;
    write_json(&pod.paths.record(), &pod.record)
        .tried(|| format!("write {}", pod.paths.record().display()))?;
    cgroups.create(&pod.record.cgroup)?;
    for warning in cgroups.apply(&pod.record.cgroup, &pod.record.config.resources) {
        tracing::warn!(sandbox = pod.record.id.0, "{warning}");
    }
    Ok(())
}

fn erase(pod: &Pod, cgroups: &Cgroups) -> Result<(), Failure> {
    for record in pod.containers() {
        cgroups.kill_and_wait(&record.cgroup);
        cgroups.remove(&record.cgroup);
    }
    cgroups.remove_if_empty(&pod.record.cgroup);
    for directory in [&pod.paths.run, &pod.paths.data] {
        remove_directory(directory)?;
    }
    Ok(())
}

/// Removes a directory that may have gone already.
pub(super) fn remove_directory(directory: &std::path::Path) -> Result<(), Failure> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).tried(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
