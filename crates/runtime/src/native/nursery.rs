//! The agent's side of the nursery: starts it when the first pod is made and asks it for supervisors.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, socketpair};
use tokio::io::unix::AsyncFd;

use super::{NativeConfig, executable};
use crate::cgroup::{self, Cgroups};
use crate::failure::{Failure, Tried};
use crate::protocol::{self, Birth, Born};
use crate::record::SandboxPaths;
use crate::supervisor::PROGRAM_NAME;

/// Cgroup of all supervisors, below the runtime's root: they are neither the agent's nor the pod's to account for.
fn supervisor_cgroup(config: &NativeConfig) -> Result<String, Failure> {
    cgroup::join(&config.cgroup_root, "supervisors")
}

/// The running nursery.
pub(super) struct Nursery {
    /// Dropped, and with that closed, before the process is waited for.
    socket: Option<AsyncFd<OwnedFd>>,
    process: Child,
}

impl Drop for Nursery {
    fn drop(&mut self) {
        self.socket = None;
        // It ends at once when its socket closes; its children go on.
        let _ = self.process.wait();
    }
}

impl Nursery {
    /// Starts the process. Costs about as much as starting any program; making a supervisor then costs a fork.
    pub(super) fn start(config: &NativeConfig, cgroups: &Cgroups) -> Result<Self, Failure> {
        let path = config.supervisor_binary.as_deref().unwrap_or(Path::new("/proc/self/exe"));
        let binary = executable::open_sealed(path)?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .tried(|| "make a socket".to_owned())?;
        // A file, because a supervisor outlives whatever the agent's standard error is connected to.
        let errors = config.run_dir.join("supervisor.log");
        let errors = File::options()
            .append(true)
            .create(true)
            .open(&errors)
            .tried(|| format!("open {}", errors.display()))?;
        let process = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()))
            .arg0(PROGRAM_NAME)
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::from(errors))
            .spawn()
            .tried(|| format!("execute {} as supervisor", path.display()))?;
        let nursery = Self { socket: Some(register(ours)?), process };
        let cgroup = supervisor_cgroup(config)?;
        cgroups.create(&cgroup)?;
        cgroups.add_process(&cgroup, nursery.process.id() as i32)?;
        Ok(nursery)
    }

    /// Makes a supervisor; returns its process id, its pidfd and our end of its first connection.
    pub(super) async fn birth(&self, paths: &SandboxPaths) -> Result<(i32, OwnedFd, OwnedFd), Failure> {
        let socket = self.socket.as_ref().ok_or_else(|| Failure::new("the nursery has ended"))?;
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .tried(|| "make a socket".to_owned())?;
        let birth = Birth { data: paths.data.clone(), run: paths.run.clone() };
        protocol::send(socket, &birth, &[theirs.as_fd()]).tried(|| "ask for a supervisor".to_owned())?;
        drop(theirs);
        let packet = loop {
            let mut ready = socket.readable().await.tried(|| "wait for the nursery".to_owned())?;
            match ready.try_io(|socket| protocol::receive(socket, RecvFlags::DONTWAIT)) {
                Ok(received) => break received.tried(|| "hear from the nursery".to_owned())?,
                Err(_would_block) => {}
            }
        };
        let packet = packet.ok_or_else(|| Failure::new("the nursery has ended"))?;
        let born: Born = packet.parse().tried(|| "understand the nursery".to_owned())?;
        let pid = born.result?;
        let pidfd =
            packet.descriptors.into_iter().next().ok_or_else(|| Failure::new("the nursery sent no pidfd"))?;
        Ok((pid, pidfd, ours))
    }
}

/// Makes a descriptor non-blocking and known to the asynchronous runtime.
pub(super) fn register(descriptor: OwnedFd) -> Result<AsyncFd<OwnedFd>, Failure> {
    rustix::io::ioctl_fionbio(&descriptor, true).tried(|| "make a descriptor non-blocking".to_owned())?;
    watch(descriptor)
}

/// Makes a descriptor known to the asynchronous runtime.
#[expect(
    deprecated,
    reason = "unsound only for types that change or close their descriptor, which OwnedFd cannot"
)]
pub(super) fn watch(descriptor: OwnedFd) -> Result<AsyncFd<OwnedFd>, Failure> {
    AsyncFd::new(descriptor).tried(|| "watch a descriptor".to_owned())
}
