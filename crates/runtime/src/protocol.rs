//! What agent and supervisor say to each other: one JSON message per packet of a `SOCK_SEQPACKET` unix socket, with
//! descriptors attached.
//!
//! Messages are small: configurations travel as files ([`crate::record`]), streams as descriptors. A supervisor may
//! be older than its agent (it survives upgrades), so fields are only ever added, with defaults.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::cri::ContainerId;
use crate::failure::Failure;

/// Longest packet. A command line of an exec is the largest thing sent; longer ones are refused by the sender.
pub(crate) const PACKET_LIMIT: usize = 128 * 1024;

/// Most descriptors in one packet: standard streams of an exec.
const DESCRIPTOR_LIMIT: usize = 3;

/// Agent to nursery: make a supervisor. One descriptor: the supervisor's first connection.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Birth {
    /// `<data>/sandboxes/<sandbox>`.
    pub(crate) data: PathBuf,
    /// `<run>/<sandbox>`.
    pub(crate) run: PathBuf,
}

/// Nursery to agent: the supervisor exists; one descriptor: its pidfd.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Born {
    pub(crate) result: Result<i32, Failure>,
}

/// Agent to supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    /// Chosen by the agent, returned in every answer.
    pub(crate) id: u64,
    pub(crate) call: Call,
}

/// What a supervisor can do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Call {
    /// Answers when the sandbox is complete.
    Hello,
    /// Starts a created container; answers when its program runs.
    Start { container: ContainerId, start: StartParameters },
    /// Sends a signal to the first process.
    Signal { container: ContainerId, signal: i32 },
    /// Kills every process of the container.
    Kill { container: ContainerId },
    /// Answers with the exit code when the container has ended.
    Wait { container: ContainerId },
    /// Runs a command; descriptors: those of stdin, stdout, stderr that are `true`, in this order. Answers
    /// [`Reply::Started`] and, last, [`Reply::Exited`].
    Exec { container: ContainerId, command: Vec<String>, tty: bool, stdin: bool, stdout: bool, stderr: bool },
    /// Kills the command that the request of this connection with that id started.
    KillExec { request: u64 },
    /// Copies the first process's streams to and from the descriptors, as in `Exec`. Answers when it began.
    Attach { container: ContainerId, stdin: bool, stdout: bool, stderr: bool },
    /// Size of the first process's terminal.
    Resize { container: ContainerId, columns: u16, rows: u16 },
    /// Begins a new log file.
    ReopenLog { container: ContainerId },
    /// Makes a TCP socket in the pod's network namespace, unconnected.
    Socket { ipv6: bool },
    /// Kills everything, then ends.
    Shutdown,
}

/// What the supervisor needs to know of a container; the rest is read by the process that becomes the container.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StartParameters {
    /// Path of the container's cgroup, already made.
    pub(crate) cgroup: String,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    /// Absolute.
    pub(crate) log_path: PathBuf,
    /// 0 for no limit.
    pub(crate) log_max_bytes: u64,
    pub(crate) log_max_files: u32,
}

/// Supervisor to agent.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// To a request.
    Answer { id: u64, last: bool, result: Result<Reply, Failure> },
    /// Unasked: the first process of a container ended and its record is written.
    ContainerExited { container: ContainerId },
}

/// What an answer carries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    /// Nothing more to say.
    Done,
    /// The command runs; with a terminal the descriptor is its other end.
    Started,
    /// The process ended with this code.
    Exited(i32),
}

/// Sends one packet without waiting.
///
/// # Errors
/// `WouldBlock` when the other side does not read; `EPIPE` when it has gone.
pub(crate) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let text = serde_json::to_vec(message)?;
    if text.len() > PACKET_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "message is too long"));
    }
    send_bytes(socket, &text, descriptors, SendFlags::DONTWAIT)
}

/// Sends one packet of bytes.
pub(crate) fn send_bytes(
    socket: impl AsFd,
    text: &[u8],
    descriptors: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(text)], &mut control, flags | SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// A packet as it came.
pub(crate) struct Packet {
    text: Vec<u8>,
    pub(crate) descriptors: Vec<OwnedFd>,
}

impl Packet {
    pub(crate) fn parse<T: DeserializeOwned>(&self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.text)?)
    }
}

/// Receives one packet; `None` when the other side has closed.
///
/// # Errors
/// `WouldBlock` when nothing is there and `flags` or the socket say not to wait.
pub(crate) fn receive(socket: impl AsFd, flags: RecvFlags) -> io::Result<Option<Packet>> {
    // Looking first costs a system call and saves a buffer of the largest size in every supervisor.
    let peeked = rustix::io::retry_on_intr(|| {
        rustix::net::recv(&socket, &mut [0_u8; 0][..], flags | RecvFlags::PEEK | RecvFlags::TRUNC)
    })?;
    let length = peeked.1;
    if length > PACKET_LIMIT {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "packet is too long"));
    }
    let mut text = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTOR_LIMIT))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut slices = [IoSliceMut::new(&mut text)];
        rustix::net::recvmsg(&socket, &mut slices, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(rights) => Some(rights),
            _ => None,
        })
        .flatten()
        .collect();
    Ok(Some(Packet { text, descriptors }))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    #[test]
    fn packets_carry_text_and_descriptors() {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("pair");
        let (read, write) = rustix::pipe::pipe().expect("pipe");
        let sent = Request { id: 7, call: Call::Wait { container: ContainerId("c".into()) } };
        send(&a, &sent, &[write.as_fd()]).expect("send");
        drop(write);
        let packet = receive(&b, RecvFlags::empty()).expect("receive").expect("open");
        let request: Request = packet.parse().expect("parse");
        assert_eq!(request.id, 7);
        rustix::io::write(&packet.descriptors[0], b"x").expect("write");
        assert_eq!(rustix::io::read(&read, &mut [0; 4]).expect("read"), 1);
        let empty = receive(&b, RecvFlags::DONTWAIT).err().expect("nothing there");
        assert_eq!(empty.kind(), io::ErrorKind::WouldBlock);
        drop(a);
        assert!(receive(&b, RecvFlags::empty()).expect("closed").is_none());
    }

    #[test]
    fn too_long_messages_are_refused_by_the_sender() {
        let (a, _b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("pair");
        let error = send(&a, &"x".repeat(PACKET_LIMIT), &[]).expect_err("too long");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
