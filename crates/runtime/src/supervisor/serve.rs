//! Calls that are answered at once.

use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::container::Container;
use super::{Answer, Caller, Supervisor};
use crate::cri::{ContainerId, ContainerState};
use crate::failure::{Failure, Tried};
use crate::init::StandardStreams;
use crate::protocol::{Call, Reply};
use crate::record::{StateRecord, read_json};

/// Distributes descriptors over the streams that were announced.
pub(super) fn take_streams(announced: [bool; 3], descriptors: Vec<OwnedFd>) -> StandardStreams {
    let mut descriptors = descriptors.into_iter();
    let [stdin, stdout, stderr] = announced.map(|present| if present { descriptors.next() } else { None });
    StandardStreams { stdin, stdout, stderr }
}

/// A socket belongs to the network namespace it was made in, wherever it is used later.
pub(super) fn tcp_socket(ipv6: bool) -> Result<OwnedFd, Failure> {
    let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    rustix::net::socket_with(family, SocketType::STREAM, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
        .tried(|| "make a socket in the pod".to_owned())
}

impl Supervisor {
    pub(super) fn serve_now(&mut self, caller: Caller, call: Call, descriptors: Vec<OwnedFd>) -> Answer {
        match call {
            Call::Signal { container, signal } => {
                let container = self.running(&container)?;
                match sampan_kernel::signal::send(&container.pidfd, signal) {
                    // Ended meanwhile.
                    Err(error) if error.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) => {}
                    sent => sent.tried(|| format!("send signal {signal}"))?,
                }
            }
            Call::Kill { container } => {
                if let Some(container) = self.containers.iter().find(|known| known.id == container) {
                    container.kill(&self.cgroups);
                }
            }
            Call::KillExec { request } => {
                let same = |command: &&super::Command| {
                    command.caller.connection == caller.connection && command.caller.request == request
                };
                if let Some(command) = self.commands.iter().find(same) {
                    command.kill();
                }
            }
            Call::Attach { container, stdin, stdout, stderr } => {
                let streams = take_streams([stdin, stdout, stderr], descriptors);
                let token = self.token();
                self.running(&container)?.attach(token, streams);
            }
            Call::Resize { container, columns, rows } => self.running(&container)?.resize(columns, rows)?,
            Call::ReopenLog { container } => self.running(&container)?.reopen_log()?,
            Call::Hello => {}
            // Answered elsewhere.
            Call::Start { .. }
            | Call::Wait { .. }
            | Call::Exec { .. }
            | Call::Shutdown
            | Call::Socket { .. } => {}
        }
        Ok(Reply::Done)
    }

    /// The container, when its program runs.
    pub(super) fn running(&mut self, id: &ContainerId) -> Result<&mut Container, Failure> {
        self.containers
            .iter_mut()
            .find(|container| container.id == *id && container.is_running())
            .ok_or_else(|| Failure::new(format!("container {} is not running", id.0)))
    }

    pub(super) fn wait_for_container(&mut self, caller: Caller, id: &ContainerId) {
        if let Some(container) = self.containers.iter_mut().find(|container| container.id == *id) {
            container.waiters.push(caller);
            return;
        }
        let path = self.paths.container(id).state();
        let state = read_json::<StateRecord>(&path).tried(|| format!("read {}", path.display()));
        let answer = match state {
            Ok(Some(state)) if state.state == ContainerState::Exited => Ok(Reply::Exited(state.exit_code)),
            Ok(_) => Err(Failure::new(format!("container {} is not running", id.0))),
            Err(failure) => Err(failure),
        };
        self.answer(caller, true, answer, &[]);
    }

    pub(super) fn shut_down(&mut self, caller: Caller) {
        self.shutdown = Some(caller);
        for container in &self.containers {
            container.kill(&self.cgroups);
        }
    }
}
