//! Finding pods again, and noticing their end.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Weak};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, getrlimit, pidfd_open, pidfd_send_signal, setrlimit,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;

use super::link::Link;
use super::nursery::watch;
use super::pod::{Living, Pod};
use super::sandboxes::remove_directory;
use super::{NativeConfig, NativeRuntime, system};
use crate::cgroup::Cgroups;
use crate::cri::{ContainerId, RuntimeError, RuntimeEvent, SandboxId};
use crate::failure::{Failure, Tried};
use crate::protocol::Call;
use crate::record::{
    ContainerRecord, ProcessIdentity, SandboxPaths, SandboxRecord, now, read_json, sandboxes_dir, write_json,
};

/// Makes the runtime's directories, only root's.
pub(super) fn prepare_directories(config: &NativeConfig) -> Result<(), RuntimeError> {
    let make = |path: &Path| {
        fs::create_dir_all(path)?;
        rustix::fs::chmod(path, Mode::from_raw_mode(0o700)).map_err(io::Error::from)
    };
    if config.cgroup_root.trim_matches('/').is_empty() {
        return Err(RuntimeError::Create("the runtime needs a cgroup of its own".to_owned()));
    }
    for path in [&config.data_dir, &sandboxes_dir(&config.data_dir), &config.run_dir] {
        make(path).tried(|| format!("make {}", path.display())).map_err(system)?;
    }
    Ok(())
}

/// Raises the number of files this process may have open as far as it may: every pod needs a few, and usual defaults
/// are exhausted by 200 pods. Containers get limits of their own.
pub(super) fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    // What is refused leaves the old limit, with which fewer pods run.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

impl NativeRuntime {
    /// Reads all records; connects to supervisors that live, buries those that do not.
    pub(super) fn adopt_all(&self) -> Result<(), RuntimeError> {
        let directory = sandboxes_dir(&self.config.data_dir);
        let entries =
            fs::read_dir(&directory).tried(|| format!("list {}", directory.display())).map_err(system)?;
        for entry in entries.flatten() {
            let id = SandboxId(entry.file_name().to_string_lossy().into_owned());
            match self.adopt(&id) {
                Ok(Some(pod)) => {
                    self.write_pods().insert(id, pod);
                }
                Ok(None) => {}
                // One unreadable record must not keep the node from its other pods.
                Err(failure) => tracing::error!(sandbox = id.0, %failure, "sandbox cannot be adopted"),
            }
        }
        Ok(())
    }

    fn adopt(&self, id: &SandboxId) -> Result<Option<Arc<Pod>>, Failure> {
        let paths = SandboxPaths::new(&self.config.data_dir, &self.config.run_dir, id);
        let record = read_json(&paths.record()).tried(|| format!("read {}", paths.record().display()))?;
        let Some(record): Option<SandboxRecord> = record else {
            // The record is written before a supervisor is born and removed after its end: the agent died over the
            // making or the removal, and nothing of the sandbox runs.
            for directory in [&paths.run, &paths.data] {
                remove_directory(directory)?;
            }
            return Ok(None);
        };
        let identity =
            read_json(&paths.supervisor()).tried(|| format!("read {}", paths.supervisor().display()))?;
        let pod = Arc::new(Pod::new(record, paths, None));
        for container in read_containers(&pod.paths) {
            let pin = self.config.images.pin(&container.config.image_id);
            if let Err(error) = &pin {
                tracing::warn!(container = container.id.0, %error, "image of a container has gone");
            }
            pod.insert(container, pin.ok());
        }
        let found = identity.and_then(|identity: ProcessIdentity| Some((identity.pid, find(&identity)?)));
        let connected = found.and_then(|(pid, pidfd)| match connect(&pod.paths.run, pid) {
            Ok(socket) => Some((pid, pidfd, socket)),
            Err(error) => {
                // It was starting or ending when the agent died; nobody knows what it has, so it goes.
                tracing::warn!(sandbox = id.0, %error, "supervisor does not answer and is ended");
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                None
            }
        });
        match connected {
            Some((pid, pidfd, socket)) => {
                self.watch(&pod, pid, pidfd, socket)?;
                hint_at_missed_ends(&pod, &self.events);
            }
            None => {
                bury(&pod, &self.cgroups);
            }
        }
        Ok(Some(pod))
    }

    /// Begins to use a supervisor and to wait for its end.
    pub(super) fn watch(
        &self,
        pod: &Arc<Pod>,
        pid: i32,
        pidfd: OwnedFd,
        socket: OwnedFd,
    ) -> Result<(), Failure> {
        let link = Arc::new(link(pod, socket, &self.events)?);
        let watched = watch(pidfd.try_clone().tried(|| "copy a pidfd".to_owned())?)?;
        pod.set_living(Some(Living { pid, pidfd: Arc::new(pidfd), link }));
        pod.alive.send_replace(true);
        tokio::spawn(wait_for_end(Arc::downgrade(pod), self.cgroups.clone(), self.events.clone(), watched));
        Ok(())
    }
}

/// A link that passes events on and is made again when it is lost while the supervisor lives.
fn link(pod: &Arc<Pod>, socket: OwnedFd, events: &broadcast::Sender<RuntimeEvent>) -> Result<Link, Failure> {
    let (exits, sandbox) = (events.clone(), pod.record.id.clone());
    let on_exit = move |container| {
        // Nobody listening is no failure, here and below.
        let _ = exits.send(RuntimeEvent::ContainerExited { sandbox: sandbox.clone(), container });
    };
    let (pod, events) = (Arc::downgrade(pod), events.clone());
    let on_loss = move || {
        if let Some(pod) = pod.upgrade() {
            connect_again(&pod, &events);
        }
    };
    Link::new(socket, on_exit, on_loss)
}

/// After a lost connection. When the supervisor is about to end, its socket refuses, and the kill is too late.
fn connect_again(pod: &Arc<Pod>, events: &broadcast::Sender<RuntimeEvent>) {
    let Some(living) = pod.living() else { return };
    let connected = connect(&pod.paths.run, living.pid)
        .tried(|| "connect to the supervisor again".to_owned())
        .and_then(|socket| link(pod, socket, events));
    match connected {
        Ok(link) => pod.set_living(Some(Living { link: Arc::new(link), ..living })),
        // A supervisor that cannot be talked to cannot be left alone either: its end is noticed and cleaned up.
        Err(failure) => {
            tracing::debug!(sandbox = pod.record.id.0, %failure, "supervisor is lost");
            let _ = pidfd_send_signal(&*living.pidfd, Signal::KILL);
        }
    }
    hint_at_missed_ends(pod, events);
}

/// A container may end after its record was read and before the supervisor knew of this connection. An answer shows
/// that it knows now, and then everybody is asked to look once more.
fn hint_at_missed_ends(pod: &Arc<Pod>, events: &broadcast::Sender<RuntimeEvent>) {
    let Some(Living { link, .. }) = pod.living() else { return };
    let (pod, events) = (Arc::downgrade(pod), events.clone());
    tokio::spawn(async move {
        // Without an answer the supervisor has ended, which is announced by itself.
        let answered = link.call(Call::Hello, &[]).await;
        let (Ok(_), Some(pod)) = (answered, pod.upgrade()) else { return };
        for record in pod.containers() {
            let sandbox = pod.record.id.clone();
            let _ = events.send(RuntimeEvent::ContainerExited { sandbox, container: record.id.clone() });
        }
    });
}

/// Waits until the supervisor has ended, however that happened, and cleans up behind it. Does not hold the pod, so that
/// the runtime can be dropped while the supervisor lives on.
async fn wait_for_end(
    pod: Weak<Pod>,
    cgroups: Cgroups,
    events: broadcast::Sender<RuntimeEvent>,
    pidfd: AsyncFd<OwnedFd>,
) {
    if pidfd.readable().await.is_err() {
        return;
    }
    let Some(pod) = pod.upgrade() else { return };
    let buried = pod.clone();
    let lost = tokio::task::spawn_blocking(move || bury(&buried, &cgroups)).await.unwrap_or_default();
    pod.set_living(None);
    pod.alive.send_replace(false);
    let sandbox = pod.record.id.clone();
    for container in lost {
        let _ = events.send(RuntimeEvent::ContainerExited { sandbox: sandbox.clone(), container });
    }
    let _ = events.send(RuntimeEvent::SandboxExited { sandbox });
}

/// Ends what a dead supervisor left and writes down that nobody saw how it ended. Returns the containers concerned.
fn bury(pod: &Pod, cgroups: &Cgroups) -> Vec<ContainerId> {
    let mut lost = Vec::new();
    for record in pod.containers() {
        cgroups.kill_and_wait(&record.cgroup);
        let path = pod.paths.container(&record.id).state();
        let Some(state) = pod.state(&record.id).ok().and_then(|state| state.lost(now())) else {
            continue;
        };
        if let Err(error) = write_json(&path, &state) {
            tracing::warn!(path = %path.display(), %error, "the end of a container could not be written");
        }
        lost.push(record.id.clone());
    }
    lost
}

fn read_containers(paths: &SandboxPaths) -> Vec<ContainerRecord> {
    let Ok(entries) = fs::read_dir(paths.containers()) else {
        return Vec::new();
    };
    let mut records = Vec::new();
    for entry in entries.flatten() {
        let container = paths.container(&ContainerId(entry.file_name().to_string_lossy().into_owned()));
        match read_json(&container.config()) {
            Ok(Some(record)) => records.push(record),
            // The agent died while it made or removed the container; nothing of it runs.
            Ok(None) => drop(fs::remove_dir_all(&container.directory)),
            Err(error) => {
                tracing::error!(path = %container.directory.display(), %error, "container record is unreadable");
            }
        }
    }
    records
}

/// The process with that identity, if it lives. Opened first and compared then: the process id may be reused at any
/// moment, the pidfd cannot.
pub(super) fn find(identity: &ProcessIdentity) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(identity.pid)?, PidfdFlags::empty()).ok()?;
    (ProcessIdentity::of(identity.pid).ok()? == *identity).then_some(pidfd)
}

/// Connects to the socket in `directory` and checks who listens.
fn connect(directory: &Path, pid: i32) -> io::Result<OwnedFd> {
    let handle = rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/control", handle.as_raw_fd()))?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::connect(&socket, &address)?;
    let peer = rustix::net::sockopt::socket_peercred(&socket)?;
    if peer.pid.as_raw_nonzero().get() != pid {
        return Err(io::Error::other("another process listens on the supervisor's socket"));
    }
    Ok(socket)
}
