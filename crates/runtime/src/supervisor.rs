//! The supervisor of one pod: a small process that owns the pod's namespaces and watches its containers.
//!
//! It is a copy of the nursery ([`nursery`]), itself a re-execution of our binary, so that making one costs neither an
//! `execve` nor relocations, and all supervisors share their memory until they write to it. It has one thread, no
//! runtime and one loop around `poll`; whatever it waits for is a descriptor, and while nothing happens it sleeps. It
//! survives the agent, keeps no state that is not also on disk ([`crate::record`]), and answers whoever connects to
//! its socket as root ([`crate::protocol`]).
//!
//! It does not decide anything: when to restart, how long to wait before killing and what to remove is up to the agent.

mod command;
mod container;
mod nursery;
mod sandbox;
mod serve;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, SocketFlags};
use sampan_kernel::process::SingleThreaded;

use crate::cgroup::Cgroups;
use crate::failure::Failure;
use crate::init::privileges::FilterCache;
use crate::log::Stream;
use crate::protocol::{self, Call, Message, Reply, Request};
use crate::record::SandboxPaths;
use command::Command;
use container::Container;
use sandbox::Namespaces;

/// First argument of a process that is to be a supervisor.
pub(crate) const PROGRAM_NAME: &str = "sampan-supervisor";

/// Most connections at once: the agent, and a few command line tools.
const CONNECTION_LIMIT: usize = 16;

/// Runs the supervisor when this process was started as one, which its first argument tells; to be called first in
/// `main` of every binary that embeds the runtime. `None` means: go on, this is an ordinary process.
pub fn supervisor_main() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    if Path::new(&name).file_name()? != PROGRAM_NAME {
        return None;
    }
    Some(match nursery::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{PROGRAM_NAME}: {failure}");
            ExitCode::FAILURE
        }
    })
}

/// Names a connection, container, attachment or command for as long as the supervisor lives.
type Token = u64;

/// A request that waits for its answer.
#[derive(Clone, Copy, Debug)]
struct Caller {
    connection: Token,
    request: u64,
}

#[derive(Debug)]
struct Connection {
    token: Token,
    socket: OwnedFd,
}

/// Everything that can happen.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Somebody connects.
    Listener,
    /// A request, or the end of a connection.
    Connection(Token),
    /// A starting container reports, or begins to run its program.
    ContainerChannel(Token),
    /// The first process of a container ended.
    ContainerEnd(Token),
    /// A container wrote something.
    Output(Token, Stream),
    /// A container takes input again.
    InputRoom(Token),
    /// A client sent input.
    AttachmentInput(Token, Token),
    /// A client does not listen any more.
    AttachmentEnd(Token, Token),
    /// A starting command reports, or begins to run its program.
    CommandChannel(Token),
    /// A command ended.
    CommandEnd(Token),
}

/// A pod's supervisor.
struct Supervisor {
    proof: SingleThreaded,
    cgroups: Cgroups,
    filters: FilterCache,
    paths: SandboxPaths,
    namespaces: Namespaces,
    listener: OwnedFd,
    connections: Vec<Connection>,
    containers: Vec<Container>,
    commands: Vec<Command>,
    last_token: Token,
    /// Set when everything is to end.
    shutdown: Option<Caller>,
}

impl Supervisor {
    /// Serves until a shutdown is complete.
    fn run(mut self) -> Result<(), Failure> {
        loop {
            if let Some(caller) = self.shutdown
                && self.containers.is_empty()
            {
                self.answer(caller, true, Ok(Reply::Done), &[]);
                return Ok(());
            }
            for event in self.wait() {
                self.handle(event);
            }
        }
    }

    fn token(&mut self) -> Token {
        self.last_token += 1;
        self.last_token
    }

    /// Sleeps until something happens.
    fn wait(&self) -> Vec<Event> {
        let interests = self.interests();
        let mut polled: Vec<PollFd<'_>> = interests
            .iter()
            .map(|(_, descriptor, flags)| PollFd::from_borrowed_fd(*descriptor, *flags))
            .collect();
        // Interruption by a signal is no event; the loop comes back here.
        if poll(&mut polled, None).is_err() {
            return Vec::new();
        }
        let happened = |(interest, polled): (&(Event, BorrowedFd<'_>, PollFlags), &PollFd<'_>)| {
            (!polled.revents().is_empty()).then_some(interest.0)
        };
        interests.iter().zip(&polled).filter_map(happened).collect()
    }

    fn interests(&self) -> Vec<(Event, BorrowedFd<'_>, PollFlags)> {
        let mut interests = vec![(Event::Listener, self.listener.as_fd(), PollFlags::IN)];
        for connection in &self.connections {
            interests.push((Event::Connection(connection.token), connection.socket.as_fd(), PollFlags::IN));
        }
        for container in &self.containers {
            container.interests(&mut interests);
        }
        for command in &self.commands {
            command.interests(&mut interests);
        }
        interests
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Listener => self.accept(),
            Event::Connection(token) => self.read_request(token),
            Event::ContainerChannel(token) => self.container_reported(token),
            Event::ContainerEnd(token) => self.container_ended(token),
            Event::Output(token, stream) => {
                self.with_container(token, |container| container.read_output(stream))
            }
            Event::InputRoom(token) => self.with_container(token, Container::write_pending_input),
            Event::AttachmentInput(token, attachment) => {
                self.with_container(token, |container| container.read_input(attachment));
            }
            Event::AttachmentEnd(token, attachment) => {
                self.with_container(token, |container| container.detach(attachment));
            }
            Event::CommandChannel(token) => self.command_reported(token),
            Event::CommandEnd(token) => self.command_ended(token),
        }
    }

    /// An earlier event of the same round may have removed the container; then there is nothing to do.
    fn with_container(&mut self, token: Token, act: impl FnOnce(&mut Container)) {
        if let Some(container) = self.containers.iter_mut().find(|container| container.token == token) {
            act(container);
        }
    }

    fn accept(&mut self) {
        let Ok(socket) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) else {
            return;
        };
        // The directory of the socket is only root's; this holds even if somebody changed its mode.
        let is_root = rustix::net::sockopt::socket_peercred(&socket)
            .is_ok_and(|credentials| credentials.uid == rustix::process::geteuid());
        if is_root && self.connections.len() < CONNECTION_LIMIT {
            let token = self.token();
            self.connections.push(Connection { token, socket });
        }
    }

    fn read_request(&mut self, token: Token) {
        let Some(connection) = self.connections.iter().find(|connection| connection.token == token) else {
            return;
        };
        let packet = match protocol::receive(&connection.socket, RecvFlags::DONTWAIT) {
            Ok(Some(packet)) => packet,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Ok(None) | Err(_) => return self.close(token),
        };
        match packet.parse::<Request>() {
            Ok(Request { id, call }) => {
                self.serve(Caller { connection: token, request: id }, call, packet.descriptors);
            }
            // An agent newer than this supervisor may ask what it does not know.
            Err(error) => {
                if let Ok(Unknown { id }) = packet.parse() {
                    let failure =
                        Failure::new(format!("the supervisor does not understand the request: {error}"));
                    self.answer(Caller { connection: token, request: id }, true, Err(failure), &[]);
                }
            }
        }
    }

    /// Forgets a connection; commands that only it could follow end.
    fn close(&mut self, token: Token) {
        self.connections.retain(|connection| connection.token != token);
        for command in self.commands.iter().filter(|command| command.caller.connection == token) {
            command.kill();
        }
    }

    fn answer(
        &mut self,
        caller: Caller,
        last: bool,
        result: Result<Reply, Failure>,
        descriptors: &[BorrowedFd<'_>],
    ) {
        let message = Message::Answer { id: caller.request, last, result };
        let Some(connection) =
            self.connections.iter().find(|connection| connection.token == caller.connection)
        else {
            return;
        };
        // An agent that does not read must not stop the pod; it connects again and looks at the records.
        if protocol::send(&connection.socket, &message, descriptors).is_err() {
            self.close(caller.connection);
        }
    }

    fn announce(&mut self, message: &Message) {
        let unreachable: Vec<Token> = self
            .connections
            .iter()
            .filter(|connection| protocol::send(&connection.socket, message, &[]).is_err())
            .map(|connection| connection.token)
            .collect();
        for token in unreachable {
            self.close(token);
        }
    }
}

/// The part of a request every version has.
#[derive(serde::Deserialize)]
struct Unknown {
    id: u64,
}

/// A call with its answer at hand.
type Answer = Result<Reply, Failure>;

impl Supervisor {
    fn serve(&mut self, caller: Caller, call: Call, descriptors: Vec<OwnedFd>) {
        match call {
            // These answer when something has happened.
            Call::Start { container, start } => self.start(caller, container, start),
            Call::Wait { container } => self.wait_for_container(caller, &container),
            Call::Exec { container, command, tty, stdin, stdout, stderr } => {
                let streams = serve::take_streams([stdin, stdout, stderr], descriptors);
                self.exec(caller, &container, command, tty, streams);
            }
            Call::Shutdown => self.shut_down(caller),
            Call::Socket { ipv6 } => match serve::tcp_socket(ipv6) {
                Ok(socket) => self.answer(caller, true, Ok(Reply::Done), &[socket.as_fd()]),
                Err(failure) => self.answer(caller, true, Err(failure), &[]),
            },
            // These answer at once.
            call => {
                let answer = self.serve_now(caller, call, descriptors);
                self.answer(caller, true, answer, &[]);
            }
        }
    }
}
