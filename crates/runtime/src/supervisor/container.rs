//! A container while it lives: its first process, its streams, its log, and who is attached.
//!
//! ```text
//!            clone3                channel closes              pidfd readable
//!   (Start) ───────▶ Starting ─────────────────▶ Running ─────────────────────▶ record written, forgotten
//!                       │ Failed, then pidfd readable
//!                       └─────────────────────────────────────────────────────▶ record written, forgotten
//! ```

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{WaitId, WaitIdOptions};
use rustix::termios::Winsize;
use sampan_kernel::process::{Cloned, clone_process};

use super::sandbox::channel;
use super::{Answer, Caller, Event, Supervisor, Token};
use crate::cgroup::Cgroups;
use crate::cri::ContainerId;
use crate::failure::{Failure, Tried};
use crate::init::{Newborn, Report, StandardStreams, become_container};
use crate::log::{Log, Stream};
use crate::protocol::{self, Message, Packet, Reply, StartParameters};
use crate::record::{ContainerPaths, StateRecord, now, read_json, write_json};

/// Read at once from a container or a client; one page more or less of the supervisor's stack.
const CHUNK: usize = 8 * 1024;

/// A container's life.
#[derive(Debug)]
enum Phase {
    /// `callers` wait for the outcome: one, and more when an agent died over its start and the next one asks again.
    Starting {
        channel: OwnedFd,
        callers: Vec<Caller>,
        warnings: Vec<String>,
        failure: Option<Failure>,
    },
    Running,
}

/// A container the supervisor watches.
#[derive(Debug)]
pub(super) struct Container {
    pub(super) token: Token,
    pub(super) id: ContainerId,
    pub(super) pidfd: OwnedFd,
    pub(super) cgroup: String,
    /// For new terminals of commands.
    pub(super) multiplexer: Option<OwnedFd>,
    /// Answered when the container has ended.
    pub(super) waiters: Vec<Caller>,
    paths: ContainerPaths,
    pid: i32,
    phase: Phase,
    state: StateRecord,
    log: Log,
    stdin_once: bool,
    wants_stdin: bool,
    /// Our ends of stdout and stderr; with a terminal the first is the terminal.
    outputs: [Option<OwnedFd>; 2],
    /// Our end of stdin.
    input: Option<OwnedFd>,
    /// Input the container has not taken yet; bounded, because clients are not read while there is some.
    pending_input: VecDeque<u8>,
    terminal: Option<OwnedFd>,
    attachments: Vec<Attachment>,
}

/// A client of the first process's streams.
#[derive(Debug)]
struct Attachment {
    token: Token,
    streams: StandardStreams,
}

impl Supervisor {
    pub(super) fn start(&mut self, caller: Caller, id: ContainerId, parameters: StartParameters) {
        let paths = self.paths.container(&id);
        // A start whose answer was lost, for instance with the agent that asked, may be asked for again. A container
        // never runs twice, so the second caller gets what comes, or came, of the first start: told that it failed, an
        // agent would end the pod and with it the container that is about to run.
        if let Some(known) = self.containers.iter_mut().find(|container| container.id == id) {
            return match &mut known.phase {
                Phase::Starting { callers, .. } => callers.push(caller),
                Phase::Running => self.answer(caller, true, Ok(Reply::Done), &[]),
            };
        }
        if self.shutdown.is_some() {
            let failure = Failure::new(format!("container {} is not started: its pod ends", id.0));
            return self.answer(caller, true, Err(failure), &[]);
        }
        match read_json::<StateRecord>(&paths.state()) {
            Ok(None) => {}
            Ok(Some(state)) => {
                let outcome = state.outcome_of_start().map(|()| Reply::Done);
                return self.answer(caller, true, outcome, &[]);
            }
            Err(error) => {
                let failure = Err(error).tried(|| format!("read {}", paths.state().display()));
                return self.answer(caller, true, failure, &[]);
            }
        }
        match self.make_container(caller, &id, &paths, parameters) {
            Ok(container) => self.containers.push(container),
            Err(failure) => {
                let state = StateRecord::start_failed(failure.exit_code, failure.message.clone(), now());
                let answer = write_state(&paths, &state).and(Err(failure));
                self.answer(caller, true, answer, &[]);
            }
        }
    }

    fn make_container(
        &mut self,
        caller: Caller,
        id: &ContainerId,
        paths: &ContainerPaths,
        parameters: StartParameters,
    ) -> Result<Container, Failure> {
        let token = self.token();
        let log = Log::open(parameters.log_path.clone(), parameters.log_max_bytes, parameters.log_max_files)
            .tried(|| format!("open log {}", parameters.log_path.display()))?;
        let (ours, theirs) = make_streams(&parameters)?;
        let (channel, their_channel) = channel()?;
        let shared = self.namespaces.shared();
        let cgroup = self.cgroups.open_for_clone(&parameters.cgroup)?;
        let cloned = self.namespaces.in_pod(|| {
            let into = cgroup.as_ref().map(|cgroup| cgroup.as_fd());
            clone_process(&self.proof, self.namespaces.of_container(), into)
                .tried(|| "make a process".to_owned())
        })?;
        let (pid, pidfd) = match cloned {
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
            Cloned::Child => {
                // Our ends would keep the other side from seeing theirs closed.
                drop((channel, ours));
                let newborn = Newborn {
                    proof: &self.proof,
                    channel: their_channel,
                    paths: paths.clone(),
                    streams: theirs,
                    cgroups: &self.cgroups,
                    filters: &self.filters,
                };
                become_container(newborn, shared)
            }
        };
        let mut container = Container {
            token,
            id: id.clone(),
            pidfd,
            cgroup: parameters.cgroup,
            multiplexer: None,
            waiters: Vec::new(),
            paths: paths.clone(),
            pid,
            phase: Phase::Starting { channel, callers: vec![caller], warnings: Vec::new(), failure: None },
            state: StateRecord::created(),
            log,
            stdin_once: parameters.stdin_once,
            wants_stdin: parameters.stdin,
            outputs: [ours.stdout, ours.stderr],
            input: ours.stdin,
            pending_input: VecDeque::new(),
            terminal: None,
            attachments: Vec::new(),
        };
        container.release(&self.cgroups, cgroup.is_some());
        Ok(container)
    }

    pub(super) fn container_reported(&mut self, token: Token) {
        let Some(container) = self.containers.iter_mut().find(|container| container.token == token) else {
            return;
        };
        let callers = container.read_report();
        self.answer_start(&callers.unwrap_or_default(), &Ok(Reply::Done));
    }

    fn answer_start(&mut self, callers: &[Caller], outcome: &Answer) {
        for caller in callers {
            self.answer(*caller, true, outcome.clone(), &[]);
        }
    }

    pub(super) fn container_ended(&mut self, token: Token) {
        let Some(position) = self.containers.iter().position(|container| container.token == token) else {
            return;
        };
        let Some(exit_code) = reap(&self.containers[position].pidfd) else {
            return;
        };
        let mut container = self.containers.remove(position);
        if !self.namespaces.has_own_pid() {
            self.cgroups.kill(&container.cgroup);
        }
        // The program may have run and ended before its channel was looked at.
        while let Phase::Starting { .. } = container.phase {
            if let Some(callers) = container.read_report() {
                self.answer_start(&callers, &Ok(Reply::Done));
            } else if container.failed() {
                break;
            }
        }
        let oom_kills = self.cgroups.oom_kills(&container.cgroup);
        let start_failure = container.finish(exit_code, oom_kills);
        let waiters = std::mem::take(&mut container.waiters);
        for waiter in waiters {
            self.answer(waiter, true, Ok(Reply::Exited(container.state.exit_code)), &[]);
        }
        match start_failure {
            Some((callers, failure)) => self.answer_start(&callers, &Err(failure)),
            None => self.announce(&Message::ContainerExited { container: container.id.clone() }),
        }
    }
}

/// Exit code of a process that has ended; 128 + signal for a signalled one.
pub(super) fn reap(pidfd: &OwnedFd) -> Option<i32> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), options).ok()??;
    Some(status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0)))
}

/// Pipes for the standard streams: our ends, which never block, and the container's.
fn make_streams(parameters: &StartParameters) -> Result<(StandardStreams, StandardStreams), Failure> {
    let (mut ours, mut theirs) = (StandardStreams::default(), StandardStreams::default());
    if parameters.tty {
        return Ok((ours, theirs));
    }
    let make = || pipe_with(PipeFlags::CLOEXEC).tried(|| "make a pipe".to_owned());
    let (stdout, stderr) = (make()?, make()?);
    (ours.stdout, theirs.stdout) = (Some(stdout.0), Some(stdout.1));
    (ours.stderr, theirs.stderr) = (Some(stderr.0), Some(stderr.1));
    if parameters.stdin {
        let stdin = make()?;
        (theirs.stdin, ours.stdin) = (Some(stdin.0), Some(stdin.1));
    }
    for stream in [&ours.stdin, &ours.stdout, &ours.stderr].into_iter().flatten() {
        set_nonblocking(stream)?;
    }
    Ok((ours, theirs))
}

fn set_nonblocking(descriptor: &OwnedFd) -> Result<(), Failure> {
    rustix::io::ioctl_fionbio(descriptor, true).tried(|| "make a stream non-blocking".to_owned())
}

fn write_state(paths: &ContainerPaths, state: &StateRecord) -> Result<(), Failure> {
    write_json(&paths.state(), state).tried(|| format!("write {}", paths.state().display()))
}

impl Container {
    pub(super) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running)
    }

    /// Puts the waiting process in its cgroups and lets it go on.
    fn release(&mut self, cgroups: &Cgroups, placed: bool) {
        let placed = if placed { Ok(()) } else { cgroups.add_process(&self.cgroup, self.pid) };
        let Phase::Starting { channel, failure, .. } = &mut self.phase else {
            return;
        };
        let go = placed.and_then(|()| {
            protocol::send(&*channel, &"go", &[]).tried(|| "let the new process go on".to_owned())
        });
        if let Err(error) = go {
            *failure = Some(error);
            // It ends, and with that the failure is answered.
            let _ = sampan_kernel::signal::send(&self.pidfd, 9);
        }
    }

    pub(super) fn kill(&self, cgroups: &Cgroups) {
        cgroups.kill(&self.cgroup);
        // Gone already is what is wanted.
        let _ = sampan_kernel::signal::send(&self.pidfd, 9);
    }

    /// What to wait for on behalf of this container.
    pub(super) fn interests<'a>(&'a self, interests: &mut Vec<(Event, BorrowedFd<'a>, PollFlags)>) {
        interests.push((Event::ContainerEnd(self.token), self.pidfd.as_fd(), PollFlags::IN));
        if let Phase::Starting { channel, .. } = &self.phase {
            interests.push((Event::ContainerChannel(self.token), channel.as_fd(), PollFlags::IN));
        }
        for stream in Stream::BOTH {
            if let Some(output) = &self.outputs[stream as usize] {
                interests.push((Event::Output(self.token, stream), output.as_fd(), PollFlags::IN));
            }
        }
        if let Some(input) = &self.input
            && !self.pending_input.is_empty()
        {
            interests.push((Event::InputRoom(self.token), input.as_fd(), PollFlags::OUT));
        }
        for attachment in &self.attachments {
            if let Some(stdin) = &attachment.streams.stdin
                && self.pending_input.is_empty()
            {
                interests.push((
                    Event::AttachmentInput(self.token, attachment.token),
                    stdin.as_fd(),
                    PollFlags::IN,
                ));
            }
            // Without flags only the end of the reading side is reported.
            for output in [&attachment.streams.stdout, &attachment.streams.stderr].into_iter().flatten() {
                let event = Event::AttachmentEnd(self.token, attachment.token);
                interests.push((event, output.as_fd(), PollFlags::empty()));
            }
        }
    }

    fn failed(&self) -> bool {
        matches!(&self.phase, Phase::Starting { failure: Some(_), .. })
    }

    /// Reads one report; returns who waits for the start when the program runs.
    fn read_report(&mut self) -> Option<Vec<Caller>> {
        let Phase::Starting { channel, failure, .. } = &mut self.phase else {
            return None;
        };
        let report = match protocol::receive(&*channel, RecvFlags::DONTWAIT) {
            Ok(Some(packet)) => match packet.parse() {
                Ok(report) => Some((report, packet)),
                Err(error) => {
                    *failure =
                        Some(Failure::new(format!("the new process sent a malformed report: {error}")));
                    return None;
                }
            },
            Ok(None) => None,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return None,
            Err(_) => None,
        };
        match report {
            Some((Report::Prepared { warnings }, packet)) => {
                self.prepared(warnings, packet);
                None
            }
            Some((Report::Failed(reported), _)) => {
                *failure = Some(reported);
                None
            }
            None if self.failed() => None,
            None => self.running(),
        }
    }

    fn prepared(&mut self, reported: Vec<String>, packet: Packet) {
        let mut descriptors = packet.descriptors.into_iter();
        self.multiplexer = descriptors.next();
        self.terminal = descriptors.next();
        if let Some(terminal) = &self.terminal {
            // All copies share one file description, so this holds for all of them.
            let _ = set_nonblocking(terminal);
            self.outputs[Stream::Stdout as usize] = terminal.try_clone().ok();
            if self.wants_stdin {
                self.input = terminal.try_clone().ok();
            }
        }
        if let Phase::Starting { warnings, .. } = &mut self.phase {
            *warnings = reported;
        }
    }

    fn running(&mut self) -> Option<Vec<Caller>> {
        let Phase::Starting { callers, warnings, .. } = std::mem::replace(&mut self.phase, Phase::Running)
        else {
            return None;
        };
        self.state = StateRecord::running(self.pid, now(), warnings);
        if let Err(failure) = write_state(&self.paths, &self.state) {
            self.state.warnings.push(failure.message);
        }
        Some(callers)
    }

    /// Writes the last output and the record. Returns who waits for a start that failed.
    fn finish(&mut self, exit_code: i32, oom_kills: u64) -> Option<(Vec<Caller>, Failure)> {
        for stream in Stream::BOTH {
            while self.outputs[stream as usize].is_some() && self.copy_output(stream) {}
            // A full disk loses the line, not the container's end.
            let _ = self.log.finish(stream, now());
        }
        let failed = match &mut self.phase {
            Phase::Starting { callers, failure, .. } => {
                failure.take().map(|failure| (std::mem::take(callers), failure))
            }
            Phase::Running => None,
        };
        self.state = match &failed {
            Some((_, failure)) => {
                StateRecord::start_failed(failure.exit_code, failure.message.clone(), now())
            }
            None => self.state.clone().exited(exit_code, oom_kills, now()),
        };
        // Without the record the container counts as lost once the supervisor has ended: also an end.
        let _ = write_state(&self.paths, &self.state);
        failed
    }

    pub(super) fn read_output(&mut self, stream: Stream) {
        self.copy_output(stream);
    }

    /// Copies one chunk to log and clients. `false` when there is nothing to read now.
    fn copy_output(&mut self, stream: Stream) -> bool {
        let Some(output) = &self.outputs[stream as usize] else {
            return false;
        };
        let mut chunk = [0; CHUNK];
        match rustix::io::read(output, &mut chunk) {
            Ok(0) => {
                self.outputs[stream as usize] = None;
                false
            }
            Ok(length) => {
                // A full disk loses lines rather than stopping the container.
                let _ = self.log.write(stream, &chunk[..length], now());
                self.copy_to_attachments(stream, &chunk[..length]);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            // A terminal says EIO when its last user has closed it. While the first process lives it may be opened
            // again (a shell's child may have held it), but reading on would spin.
            Err(_) => {
                self.outputs[stream as usize] = None;
                false
            }
        }
    }

    /// A client that does not keep up is dropped: the container never waits for it. Its pipe is the buffer.
    fn copy_to_attachments(&mut self, stream: Stream, bytes: &[u8]) {
        self.attachments.retain(|attachment| {
            let target = match stream {
                Stream::Stdout => &attachment.streams.stdout,
                Stream::Stderr => &attachment.streams.stderr,
            };
            match target {
                None => true,
                Some(target) => rustix::io::write(target, bytes).is_ok_and(|written| written == bytes.len()),
            }
        });
    }

    pub(super) fn attach(&mut self, token: Token, mut streams: StandardStreams) {
        if self.input.is_none() {
            // Closing it tells the client that nobody reads.
            streams.stdin = None;
        }
        self.attachments.push(Attachment { token, streams });
    }

    pub(super) fn detach(&mut self, token: Token) {
        self.attachments.retain(|attachment| attachment.token != token);
    }

    pub(super) fn read_input(&mut self, token: Token) {
        let Some(attachment) = self.attachments.iter_mut().find(|attachment| attachment.token == token)
        else {
            return;
        };
        let Some(stdin) = &attachment.streams.stdin else {
            return;
        };
        let mut chunk = [0; CHUNK];
        match rustix::io::read(stdin, &mut chunk) {
            Ok(length) if length > 0 => {
                self.pending_input.extend(&chunk[..length]);
                self.write_pending_input();
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Ok(_) | Err(_) => {
                attachment.streams.stdin = None;
                if attachment.streams.stdout.is_none() && attachment.streams.stderr.is_none() {
                    self.detach(token);
                }
                if self.stdin_once {
                    self.input = None;
                }
            }
        }
    }

    pub(super) fn write_pending_input(&mut self) {
        let Some(input) = &self.input else {
            self.pending_input.clear();
            return;
        };
        let (front, _) = self.pending_input.as_slices();
        match rustix::io::write(input, front) {
            Ok(written) => {
                self.pending_input.drain(..written);
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => {
                // The container closed its input.
                self.input = None;
                for attachment in &mut self.attachments {
                    attachment.streams.stdin = None;
                }
            }
        }
        if self.pending_input.is_empty() || self.input.is_none() {
            self.pending_input = VecDeque::new();
        }
    }

    pub(super) fn resize(&mut self, columns: u16, rows: u16) -> Result<(), Failure> {
        let terminal = self.terminal.as_ref().ok_or_else(|| Failure::new("the container has no terminal"))?;
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size).tried(|| "resize the terminal".to_owned())
    }

    pub(super) fn reopen_log(&mut self) -> Result<(), Failure> {
        self.log.reopen().tried(|| "open the log again".to_owned())
    }
}
