//! A command in a running container (exec). Its streams are the caller's own pipes or a terminal handed to the
//! caller, so no byte of them passes through here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::net::RecvFlags;
use sampan_kernel::process::{Cloned, NewNamespaces, clone_process};

use super::container::{Container, reap};
use super::sandbox::channel;
use super::{Caller, Event, Supervisor, Token};
use crate::cri::ContainerId;
use crate::failure::{Failure, Tried};
use crate::init::rootfs::new_terminal;
use crate::init::{Newborn, Report, StandardStreams, become_command};
use crate::protocol::{self, Reply};

/// A command that has not ended.
#[derive(Debug)]
pub(super) struct Command {
    token: Token,
    pub(super) caller: Caller,
    pidfd: OwnedFd,
    /// Open until the program runs.
    channel: Option<OwnedFd>,
    failure: Option<Failure>,
    /// The terminal, until it is handed over.
    terminal: Option<OwnedFd>,
}

impl Command {
    pub(super) fn interests<'a>(&'a self, interests: &mut Vec<(Event, BorrowedFd<'a>, PollFlags)>) {
        interests.push((Event::CommandEnd(self.token), self.pidfd.as_fd(), PollFlags::IN));
        if let Some(channel) = &self.channel {
            interests.push((Event::CommandChannel(self.token), channel.as_fd(), PollFlags::IN));
        }
    }

    pub(super) fn kill(&self) {
        // Gone already is what is wanted.
        let _ = sampan_kernel::signal::send(&self.pidfd, 9);
    }

    /// Reads one report; `true` when the program runs since now.
    fn read_report(&mut self) -> bool {
        let Some(channel) = &self.channel else {
            return false;
        };
        match protocol::receive(channel, RecvFlags::DONTWAIT) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return false,
            Ok(Some(packet)) => {
                if let Ok(Report::Failed(failure)) = packet.parse() {
                    self.failure = Some(failure);
                    self.channel = None;
                }
                return false;
            }
            Ok(None) | Err(_) => {}
        }
        self.channel = None;
        self.failure.is_none()
    }
}

impl Supervisor {
    pub(super) fn exec(
        &mut self,
        caller: Caller,
        container: &ContainerId,
        command: Vec<String>,
        tty: bool,
        streams: StandardStreams,
    ) {
        match self.make_command(caller, container, &command, tty, streams) {
            Ok(command) => self.commands.push(command),
            Err(failure) => self.answer(caller, true, Err(failure), &[]),
        }
    }

    fn make_command(
        &mut self,
        caller: Caller,
        id: &ContainerId,
        command: &[String],
        tty: bool,
        streams: StandardStreams,
    ) -> Result<Command, Failure> {
        let token = self.token();
        let paths = self.paths.container(id);
        let is_wanted = |container: &&Container| container.id == *id && container.is_running();
        let container = self
            .containers
            .iter()
            .find(is_wanted)
            .ok_or_else(|| Failure::new(format!("container {} is not running", id.0)))?;
        let (terminal, slave) = match &container.multiplexer {
            Some(multiplexer) if tty => {
                new_terminal(multiplexer).map(|(master, slave)| (Some(master), Some(slave)))?
            }
            _ if tty => return Err(Failure::new("the container has no pseudo terminals")),
            _ => (None, None),
        };
        let cgroup = self.cgroups.open_for_clone(&container.cgroup)?;
        let (channel, their_channel) = channel()?;
        let cloned = self.namespaces.in_process_namespace(&container.pidfd, || {
            let into = cgroup.as_ref().map(|cgroup| cgroup.as_fd());
            clone_process(&self.proof, NewNamespaces::default(), into).tried(|| "make a process".to_owned())
        });
        let (pid, pidfd) = match cloned? {
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
            Cloned::Child => {
                drop((channel, terminal));
                let newborn = Newborn {
                    proof: &self.proof,
                    channel: their_channel,
                    paths,
                    streams,
                    cgroups: &self.cgroups,
                    filters: &self.filters,
                };
                become_command(newborn, container.pidfd.as_fd(), command, slave)
            }
        };
        let placed = match cgroup {
            Some(_) => Ok(()),
            None => self.cgroups.add_process(&container.cgroup, pid),
        };
        let go = placed.and_then(|()| {
            protocol::send(&channel, &"go", &[]).tried(|| "let the new process go on".to_owned())
        });
        let command = Command { token, caller, pidfd, channel: Some(channel), failure: go.err(), terminal };
        if command.failure.is_some() {
            command.kill();
        }
        Ok(command)
    }

    pub(super) fn command_reported(&mut self, token: Token) {
        let Some(command) = self.commands.iter_mut().find(|command| command.token == token) else {
            return;
        };
        if !command.read_report() {
            return;
        }
        let (caller, terminal) = (command.caller, command.terminal.take());
        let descriptors: Vec<_> = terminal.iter().map(|terminal| terminal.as_fd()).collect();
        self.answer(caller, false, Ok(Reply::Started), &descriptors);
    }

    pub(super) fn command_ended(&mut self, token: Token) {
        let Some(position) = self.commands.iter().position(|command| command.token == token) else {
            return;
        };
        let Some(exit_code) = reap(&self.commands[position].pidfd) else {
            return;
        };
        // The program may have run and ended before its channel was looked at.
        while self.commands[position].channel.is_some() {
            self.command_reported(token);
            // Answering may have closed the connection, but never removes a command.
        }
        let command = self.commands.remove(position);
        let answer = match command.failure {
            Some(failure) => Err(failure),
            None => Ok(Reply::Exited(exit_code)),
        };
        self.answer(command.caller, true, answer, &[]);
    }
}
