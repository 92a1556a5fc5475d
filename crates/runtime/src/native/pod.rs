//! One sandbox in the agent's memory: its records and the way to its supervisor.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::ImagePin;
use super::link::Link;
use crate::cri::{ContainerId, ContainerStatus, PodSandbox, RuntimeError, SandboxState};
use crate::failure::{Failure, Tried};
use crate::record::{ContainerRecord, SandboxPaths, SandboxRecord, StateRecord, read_json, write_json};

/// A sandbox.
pub(super) struct Pod {
    pub(super) record: SandboxRecord,
    pub(super) paths: SandboxPaths,
    containers: Mutex<BTreeMap<ContainerId, Known>>,
    supervisor: Mutex<Option<Living>>,
    /// True until the supervisor has ended and what it left was cleaned up.
    pub(super) alive: watch::Sender<bool>,
}

/// A container in memory.
struct Known {
    record: Arc<ContainerRecord>,
    /// `None` when the image has gone although it was pinned, for instance with its store.
    _pin: Option<ImagePin>,
}

/// A supervisor that lives.
#[derive(Clone)]
pub(super) struct Living {
    pub(super) pid: i32,
    pub(super) pidfd: Arc<OwnedFd>,
    pub(super) link: Arc<Link>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // The guarded maps are changed by single operations; a panic elsewhere leaves them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pod {
    pub(super) fn new(record: SandboxRecord, paths: SandboxPaths, living: Option<Living>) -> Self {
        let alive = watch::Sender::new(living.is_some());
        Self { record, paths, containers: Mutex::default(), supervisor: Mutex::new(living), alive }
    }

    pub(super) fn living(&self) -> Option<Living> {
        lock(&self.supervisor).clone()
    }

    /// The way to the supervisor.
    pub(super) fn link(&self) -> Result<Arc<Link>, RuntimeError> {
        self.living().map(|living| living.link).ok_or_else(|| {
            RuntimeError::FailedPrecondition(format!("sandbox {} is not ready", self.record.id.0))
        })
    }

    pub(super) fn set_living(&self, living: Option<Living>) {
        *lock(&self.supervisor) = living;
    }

    pub(super) fn insert(&self, record: ContainerRecord, pin: Option<ImagePin>) {
        lock(&self.containers).insert(record.id.clone(), Known { record: Arc::new(record), _pin: pin });
    }

    /// Replaces the record of a known container.
    pub(super) fn update(&self, record: ContainerRecord) {
        if let Some(known) = lock(&self.containers).get_mut(&record.id) {
            known.record = Arc::new(record);
        }
    }

    pub(super) fn forget(&self, id: &ContainerId) {
        lock(&self.containers).remove(id);
    }

    pub(super) fn has_container(&self, id: &ContainerId) -> bool {
        lock(&self.containers).contains_key(id)
    }

    pub(super) fn containers(&self) -> Vec<Arc<ContainerRecord>> {
        lock(&self.containers).values().map(|known| known.record.clone()).collect()
    }

    pub(super) fn container(&self, id: &ContainerId) -> Result<Arc<ContainerRecord>, Failure> {
        lock(&self.containers)
            .get(id)
            .map(|known| known.record.clone())
            .ok_or_else(|| Failure::not_found(format!("container {}", id.0)))
    }

    /// Reads how a container is doing.
    pub(super) fn state(&self, id: &ContainerId) -> Result<StateRecord, Failure> {
        let path = self.paths.container(id).state();
        let state = read_json(&path).tried(|| format!("read {}", path.display()))?;
        Ok(state.unwrap_or_else(StateRecord::created))
    }

    pub(super) fn container_status(&self, id: &ContainerId) -> Result<ContainerStatus, Failure> {
        let record = self.container(id)?;
        let state = self.state(id)?;
        Ok(ContainerStatus {
            id: record.id.clone(),
            sandbox_id: record.sandbox_id.clone(),
            metadata: record.config.metadata.clone(),
            state: state.state,
            pid: state.pid,
            created_at: record.created_at,
            started_at: state.started_at,
            finished_at: state.finished_at,
            exit_code: state.exit_code,
            reason: state.reason,
            message: state.message,
            image: record.config.image.clone(),
            image_id: record.config.image_id.clone(),
            log_path: self.log_path(&record),
            warnings: record.warnings.iter().cloned().chain(state.warnings).collect(),
            annotations: record.config.annotations.clone(),
        })
    }

    pub(super) fn statuses(&self) -> Vec<Result<ContainerStatus, Failure>> {
        let known = self.containers();
        let statuses = known.iter().map(|record| self.container_status(&record.id));
        // Removed while we looked.
        statuses.filter(|status| !matches!(status, Err(failure) if failure.not_found)).collect()
    }

    pub(super) fn log_path(&self, record: &ContainerRecord) -> PathBuf {
        self.record.config.log_directory.join(&record.config.log_path)
    }

    pub(super) fn status(&self) -> PodSandbox {
        let living = self.living();
        let own_network = !self.record.config.namespaces.host_network;
        PodSandbox {
            id: self.record.id.clone(),
            metadata: self.record.config.metadata.clone(),
            state: if living.is_some() { SandboxState::Ready } else { SandboxState::NotReady },
            created_at: self.record.created_at,
            netns: living
                .filter(|_| own_network)
                .map(|living| PathBuf::from(format!("/proc/{}/ns/net", living.pid))),
            annotations: self.record.config.annotations.clone(),
            config: self.record.config.clone(),
        }
    }

    pub(super) fn set_addresses(&self, addresses: &[IpAddr]) -> Result<(), Failure> {
        let path = self.paths.addresses();
        write_json(&path, &addresses).tried(|| format!("write {}", path.display()))
    }

    pub(super) fn addresses(&self) -> Result<Vec<IpAddr>, Failure> {
        let path = self.paths.addresses();
        Ok(read_json(&path).tried(|| format!("read {}", path.display()))?.unwrap_or_default())
    }
}
