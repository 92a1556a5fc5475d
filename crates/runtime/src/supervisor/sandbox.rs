//! Making a pod's sandbox: the supervisor moves itself into the namespaces that all containers of the pod share.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType, UnshareFlags};
use sampan_kernel::process::{Cloned, NewNamespaces, SingleThreaded, clone_process};

use super::{Connection, Supervisor};
use crate::cgroup::Cgroups;
use crate::cri::{NamespaceOptions, PodSandboxConfig};
use crate::failure::{Failure, Tried};
use crate::init::devices::SHM_SIZE;
use crate::init::mounting::{RESTRICTED, clone_descriptor, clone_path, new_filesystem};
use crate::init::privileges::FilterCache;
use crate::init::{become_pod_init, rootfs};
use crate::protocol::{self, Birth, Message, Request};
use crate::record::{ProcessIdentity, SandboxPaths, SandboxRecord, read_json, write_json};

/// Becomes the supervisor of a new sandbox and serves until it is shut down.
pub(super) fn run(
    birth: Birth,
    connection: OwnedFd,
    proof: SingleThreaded,
    cgroups: Cgroups,
    filters: FilterCache,
) -> Result<(), Failure> {
    let paths = SandboxPaths { data: birth.data, run: birth.run };
    let prepare = || {
        rustix::process::setsid().tried(|| "begin a session".to_owned())?;
        let _ = rustix::thread::set_name(c"sampan-pod");
        let record: SandboxRecord = read_json(&paths.record())
            .tried(|| format!("read {}", paths.record().display()))?
            .ok_or_else(|| Failure::not_found(format!("{} is missing", paths.record().display())))?;
        let namespaces = Namespaces::make(&proof, &record.config)?;
        let listener = listen(&paths.run)?;
        let identity = ProcessIdentity::of(rustix::process::getpid().as_raw_nonzero().get());
        let identity = identity.tried(|| "read own start time".to_owned())?;
        write_json(&paths.supervisor(), &identity)
            .tried(|| format!("write {}", paths.supervisor().display()))?;
        Ok((namespaces, listener))
    };
    match prepare() {
        Ok((namespaces, listener)) => {
            let supervisor = Supervisor {
                proof,
                cgroups,
                filters,
                paths,
                namespaces,
                listener,
                connections: vec![Connection { token: 0, socket: connection }],
                containers: Vec::new(),
                commands: Vec::new(),
                last_token: 0,
                shutdown: None,
            };
            supervisor.run()
        }
        Err(failure) => {
            refuse(&connection, &failure);
            Err(failure)
        }
    }
}

/// Answers the agent's first request with the failure.
fn refuse(connection: &OwnedFd, failure: &Failure) {
    let Ok(Some(packet)) = protocol::receive(connection, RecvFlags::empty()) else {
        return;
    };
    if let Ok(Request { id, .. }) = packet.parse() {
        let message = Message::Answer { id, last: true, result: Err(failure.clone()) };
        let _ = protocol::send(connection, &message, &[]);
    }
}

/// The socket agents connect to. Its path may be longer than a socket address, so it is bound through a descriptor of
/// its directory.
fn listen(directory: &Path) -> Result<OwnedFd, Failure> {
    let describe = || format!("listen in {}", directory.display());
    std::fs::create_dir_all(directory).tried(describe)?;
    rustix::fs::chmod(directory, Mode::from_raw_mode(0o700)).tried(describe)?;
    let handle =
        rustix::fs::openat(CWD, directory, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).tried(describe)?;
    let address =
        SocketAddrUnix::new(format!("/proc/self/fd/{}/control", handle.as_raw_fd())).tried(describe)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).tried(describe)?;
    rustix::net::bind(&socket, &address).tried(describe)?;
    rustix::net::listen(&socket, 8).tried(describe)?;
    Ok(socket)
}

/// What the containers of the pod share.
pub(super) struct Namespaces {
    pub(super) options: NamespaceOptions,
    /// The pod's shared memory, mounted nowhere; `None` when the node's is used.
    shm: Option<OwnedFd>,
    /// First process of the shared process namespace.
    pod_init: Option<PodInit>,
    /// Our own process namespace, to come back to.
    own_pid: OwnedFd,
}

struct PodInit {
    pidfd: OwnedFd,
    /// Kept open: its end tells the process that we have gone.
    _channel: OwnedFd,
}

impl Namespaces {
    fn make(proof: &SingleThreaded, config: &PodSandboxConfig) -> Result<Self, Failure> {
        let options = config.namespaces;
        let own_pid = rustix::fs::open("/proc/self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .tried(|| "open own process namespace".to_owned())?;
        let mut flags = UnshareFlags::empty();
        if !options.host_ipc {
            flags |= UnshareFlags::NEWIPC;
        }
        if !options.host_network {
            // A pod with the node's network has the node's name, as with other runtimes.
            flags |= UnshareFlags::NEWNET | UnshareFlags::NEWUTS;
        }
        sampan_kernel::process::unshare(proof, flags).tried(|| "make the pod's namespaces".to_owned())?;
        if !options.host_network {
            sampan_kernel::link::set_loopback_up().tried(|| "bring up loopback".to_owned())?;
            rustix::system::sethostname(config.hostname.as_bytes())
                .tried(|| format!("set host name {:?}", config.hostname))?;
        }
        for (name, value) in &config.sysctls {
            write_sysctl(options, name, value)?;
        }
        let shm = if options.host_ipc {
            None
        } else {
            Some(new_filesystem("tmpfs", &[("mode", Some("1777")), ("size", Some(SHM_SIZE))], RESTRICTED)?)
        };
        let pod_init = if options.share_process_namespace && !options.host_pid {
            Some(make_pod_init(proof)?)
        } else {
            None
        };
        Ok(Self { options, shm, pod_init, own_pid })
    }

    /// Namespaces a container gets for itself.
    pub(super) fn of_container(&self) -> NewNamespaces {
        NewNamespaces { mount: true, pid: self.has_own_pid() }
    }

    /// Whether the end of a container's first process ends all its processes.
    pub(super) fn has_own_pid(&self) -> bool {
        !self.options.host_pid && self.pod_init.is_none()
    }

    /// What the next container gets of the pod's.
    pub(super) fn shared(&self) -> rootfs::Shared {
        let shm = match &self.shm {
            // Kernels before 6.15 cannot clone what is mounted nowhere; then the container gets its own.
            Some(shm) => clone_descriptor(shm),
            None => clone_path(Path::new("/dev/shm"), false),
        };
        rootfs::Shared { shm: shm.ok() }
    }

    /// Runs `make`, which makes a process, so that the process is in the pod's shared process namespace if it has one.
    pub(super) fn in_pod(&self, make: impl FnOnce() -> Result<Cloned, Failure>) -> Result<Cloned, Failure> {
        match &self.pod_init {
            Some(init) => self.in_process_namespace(&init.pidfd, make),
            None => make(),
        }
    }

    /// Runs `make`, which makes a process, so that the process is in the process namespace of another one.
    pub(super) fn in_process_namespace(
        &self,
        pidfd: &OwnedFd,
        make: impl FnOnce() -> Result<Cloned, Failure>,
    ) -> Result<Cloned, Failure> {
        rustix::thread::move_into_thread_name_spaces(pidfd.as_fd(), ThreadNameSpaceType::PROCESS_ID)
            .tried(|| "enter the process namespace".to_owned())?;
        let made = make();
        // The new process stays there.
        if let Ok(Cloned::Child) = made {
            return made;
        }
        rustix::thread::move_into_link_name_space(self.own_pid.as_fd(), Some(LinkNameSpaceType::ProcessID))
            .tried(|| "leave the process namespace".to_owned())?;
        made
    }
}

fn make_pod_init(proof: &SingleThreaded) -> Result<PodInit, Failure> {
    let (ours, theirs) = channel()?;
    let namespaces = NewNamespaces { mount: false, pid: true };
    match clone_process(proof, namespaces, None).tried(|| "make the pod's first process".to_owned())? {
        Cloned::Child => {
            drop(ours);
            become_pod_init(theirs)
        }
        Cloned::Parent { pidfd, .. } => Ok(PodInit { pidfd, _channel: ours }),
    }
}

/// The channel between the supervisor and a process it makes.
pub(super) fn channel() -> Result<(OwnedFd, OwnedFd), Failure> {
    rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
        .tried(|| "make a channel to the new process".to_owned())
}

/// Writes a value of the pod's namespaces; a name that would reach the whole node is refused.
fn write_sysctl(options: NamespaceOptions, name: &str, value: &str) -> Result<(), Failure> {
    if !is_namespaced(options, name) {
        return Err(Failure::new(format!("sysctl {name:?} is not part of a pod's namespaces")));
    }
    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
    std::fs::write(&path, value).tried(|| format!("set sysctl {name} to {value:?}"))
}

fn is_namespaced(options: NamespaceOptions, name: &str) -> bool {
    if name.split('.').any(|part| part.is_empty() || part.contains('/')) {
        return false;
    }
    let of_ipc = ["kernel.shm", "kernel.msg", "kernel.sem", "fs.mqueue."];
    (name.starts_with("net.") && !options.host_network)
        || (of_ipc.iter().any(|prefix| name.starts_with(prefix)) && !options.host_ipc)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_values_of_the_pods_own_namespaces_are_written() {
        let own = NamespaceOptions::default();
        let host = NamespaceOptions { host_network: true, host_ipc: true, ..own };
        for (name, in_own) in [
            ("net.ipv4.ip_unprivileged_port_start", true),
            ("net.core.somaxconn", true),
            ("kernel.shmmax", true),
            ("kernel.msgmax", true),
            ("fs.mqueue.msg_max", true),
            ("kernel.core_pattern", false),
            ("vm.overcommit_memory", false),
            ("net..ipv4", false),
            ("net./../kernel/core_pattern", false),
            ("", false),
        ] {
            assert_eq!(is_namespaced(own, name), in_own, "{name}");
            assert!(!is_namespaced(host, name), "{name} on the node");
        }
    }
}
