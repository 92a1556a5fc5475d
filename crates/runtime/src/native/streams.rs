//! Streams to and from processes: pipes the supervisor hands to the process itself (exec), copies (attach), a terminal,
//! a connection.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::Winsize;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpSocket;
use tokio::net::unix::pipe;
use tokio::sync::{mpsc, oneshot};

use super::link::{Answers, Link};
use super::nursery::register;
use super::pod::Pod;
use crate::cri::{
    ContainerId, EXEC_OUTPUT_LIMIT, ExecSyncResult, Reader, RuntimeError, StreamOptions, Streams, Writer,
};
use crate::failure::{Failure, Tried};
use crate::protocol::{Call, Reply};

/// What a client of attach may lag behind before it is dropped. The kernel takes memory only for what is in it.
const ATTACH_BUFFER: usize = 1024 * 1024;

/// Sizes of a terminal in flight.
const RESIZE_CAPACITY: usize = 4;

/// Our ends of the pipes that were asked for, and theirs in the order of the protocol.
#[derive(Default)]
struct Pipes {
    stdin: Option<pipe::Sender>,
    stdout: Option<pipe::Receiver>,
    stderr: Option<pipe::Receiver>,
    theirs: Vec<OwnedFd>,
}

impl Pipes {
    fn make(stdin: bool, stdout: bool, stderr: bool) -> Result<Self, Failure> {
        let make = || pipe_with(PipeFlags::CLOEXEC).tried(|| "make a pipe".to_owned());
        let mut pipes = Self::default();
        if stdin {
            let (read, write) = make()?;
            pipes.stdin = Some(pipe::Sender::from_owned_fd(write).tried(|| "watch a pipe".to_owned())?);
            pipes.theirs.push(read);
        }
        for (wanted, ours) in [(stdout, &mut pipes.stdout), (stderr, &mut pipes.stderr)] {
            if wanted {
                let (read, write) = make()?;
                *ours = Some(pipe::Receiver::from_owned_fd(read).tried(|| "watch a pipe".to_owned())?);
                pipes.theirs.push(write);
            }
        }
        Ok(pipes)
    }

    fn into_streams(self) -> (Option<Writer>, Option<Reader>, Option<Reader>) {
        (
            self.stdin.map(|stream| Box::new(stream) as Writer),
            self.stdout.map(|stream| Box::new(stream) as Reader),
            self.stderr.map(|stream| Box::new(stream) as Reader),
        )
    }
}

fn precondition(failure: Failure) -> RuntimeError {
    RuntimeError::FailedPrecondition(failure.message)
}

/// The command could not be started: not found, not executable; or the container does not run.
fn start_error(failure: Failure) -> RuntimeError {
    RuntimeError::Start { exit_code: failure.exit_code, message: failure.message }
}

pub(super) async fn exec(
    pod: &Arc<Pod>,
    id: &ContainerId,
    command: Vec<String>,
    options: StreamOptions,
) -> Result<Streams, RuntimeError> {
    let link = pod.link()?;
    let StreamOptions { stdin, stdout, stderr, tty } = options;
    let piped = !tty;
    let mut pipes = Pipes::make(piped && stdin, piped && stdout, piped && stderr).map_err(super::system)?;
    let theirs = std::mem::take(&mut pipes.theirs);
    let call = Call::Exec {
        container: id.clone(),
        command,
        tty,
        stdin: piped && stdin,
        stdout: piped && stdout,
        stderr: piped && stderr,
    };
    let mut answers = request(&link, call, theirs).await?;
    // A command that ends at once still answers that it started.
    let (_, descriptors) = answers.next().await.map_err(start_error)?;
    let (resize, sizes) = mpsc::channel(RESIZE_CAPACITY);
    let exit = exit_of(answers, link);
    let Some(master) = descriptors.into_iter().next() else {
        let (stdin, stdout, stderr) = pipes.into_streams();
        return Ok(Streams { stdin, stdout, stderr, resize, exit });
    };
    let terminal = Terminal::new(master).map_err(super::system)?;
    tokio::spawn(resize_terminal(terminal.clone(), sizes));
    Ok(Streams {
        stdin: stdin.then(|| Box::new(terminal.clone()) as Writer),
        stdout: stdout.then(|| Box::new(terminal) as Reader),
        stderr: None,
        resize,
        exit,
    })
}

pub(super) async fn attach(
    pod: &Arc<Pod>,
    id: &ContainerId,
    options: StreamOptions,
) -> Result<Streams, RuntimeError> {
    let link = pod.link()?;
    let tty = pod.container(id).map_err(super::system)?.config.tty;
    let StreamOptions { stdin, stdout, stderr, .. } = options;
    let mut pipes = Pipes::make(stdin, stdout, stderr && !tty).map_err(super::system)?;
    let theirs = std::mem::take(&mut pipes.theirs);
    for output in theirs.iter().skip(usize::from(stdin)) {
        rustix::io::ioctl_fionbio(output, true)
            .tried(|| "make a pipe non-blocking".to_owned())
            .map_err(super::system)?;
        // The machine may allow less; then a slow client is dropped sooner.
        let _ = rustix::pipe::fcntl_setpipe_size(output, ATTACH_BUFFER);
    }
    let ended = link.request(Call::Wait { container: id.clone() }, &[]).await.map_err(precondition)?;
    let call = Call::Attach { container: id.clone(), stdin, stdout, stderr: stderr && !tty };
    request(&link, call, theirs).await?.next().await.map_err(precondition)?;
    let (resize, sizes) = mpsc::channel(RESIZE_CAPACITY);
    tokio::spawn(resize_container(link.clone(), id.clone(), sizes));
    let (stdin, stdout, stderr) = pipes.into_streams();
    Ok(Streams { stdin, stdout, stderr, resize, exit: exit_of(ended, link) })
}

/// Sends a request with descriptors, which are closed on our side then.
async fn request(link: &Link, call: Call, descriptors: Vec<OwnedFd>) -> Result<Answers, RuntimeError> {
    let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
    link.request(call, &borrowed).await.map_err(precondition)
}

/// Waits for the exit code in the background. Keeps the connection: commands end with it.
fn exit_of(mut answers: Answers, link: Arc<Link>) -> oneshot::Receiver<i32> {
    let (sender, receiver) = oneshot::channel();
    tokio::spawn(async move {
        while let Ok((reply, _)) = answers.next().await {
            if let Reply::Exited(code) = reply {
                // Nobody may be interested any more.
                let _ = sender.send(code);
                break;
            }
        }
        drop(link);
    });
    receiver
}

async fn resize_terminal(terminal: Terminal, mut sizes: mpsc::Receiver<(u16, u16)>) {
    while let Some((columns, rows)) = sizes.recv().await {
        let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
        // Fails when the process has ended.
        let _ = rustix::termios::tcsetwinsize(terminal.0.get_ref(), size);
    }
}

async fn resize_container(link: Arc<Link>, container: ContainerId, mut sizes: mpsc::Receiver<(u16, u16)>) {
    while let Some((columns, rows)) = sizes.recv().await {
        // Fails when the container has no terminal or has ended.
        let _ = link.call(Call::Resize { container: container.clone(), columns, rows }, &[]).await;
    }
}

pub(super) async fn exec_sync(
    pod: &Arc<Pod>,
    id: &ContainerId,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecSyncResult, RuntimeError> {
    let link = pod.link()?;
    let mut pipes = Pipes::make(false, true, true).map_err(super::system)?;
    let theirs = std::mem::take(&mut pipes.theirs);
    let call =
        Call::Exec { container: id.clone(), command, tty: false, stdin: false, stdout: true, stderr: true };
    let mut answers = request(&link, call, theirs).await?;
    let (mut stdout, mut stderr) = (Capture::new(pipes.stdout), Capture::new(pipes.stderr));
    let outcome = {
        let run = run_to_end(&mut answers, &mut stdout, &mut stderr);
        match timeout {
            Some(limit) => tokio::time::timeout(limit, run).await.map_err(|_| limit),
            None => Ok(run.await),
        }
    };
    match outcome {
        Ok(ended) => {
            let exit_code = ended.map_err(start_error)?;
            Ok(ExecSyncResult { stdout: stdout.rest(), stderr: stderr.rest(), exit_code })
        }
        Err(limit) => {
            let _ = link.call(Call::KillExec { request: answers.id }, &[]).await;
            // Answers may still hold that it started; its end is the last.
            while let Ok((Reply::Started, _)) = answers.next().await {}
            Err(RuntimeError::Timeout(limit))
        }
    }
}

/// Reads output until the command has ended.
async fn run_to_end(
    answers: &mut Answers,
    stdout: &mut Capture,
    stderr: &mut Capture,
) -> Result<i32, Failure> {
    loop {
        tokio::select! {
            answer = answers.next() => {
                if let (Reply::Exited(code), _) = answer? {
                    return Ok(code);
                }
            }
            () = stdout.read() => {}
            () = stderr.read() => {}
        }
    }
}

/// The beginning of an output; the rest is read and thrown away, so that the command never waits.
struct Capture {
    stream: Option<pipe::Receiver>,
    bytes: Vec<u8>,
}

impl Capture {
    fn new(stream: Option<pipe::Receiver>) -> Self {
        Self { stream, bytes: Vec::new() }
    }

    /// Reads once; never returns when the stream has ended.
    async fn read(&mut self) {
        match &self.stream {
            Some(stream) if stream.readable().await.is_ok() => {
                self.take_available();
            }
            _ => std::future::pending().await,
        }
    }

    /// Reads what is there.
    fn take_available(&mut self) {
        let mut chunk = [0; 4096];
        while let Some(stream) = &self.stream {
            match stream.try_read(&mut chunk) {
                Ok(0) => self.stream = None,
                Ok(length) => {
                    let room = EXEC_OUTPUT_LIMIT - self.bytes.len();
                    self.bytes.extend_from_slice(&chunk[..length.min(room)]);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.stream = None,
            }
        }
    }

    /// Everything the command wrote itself. A process it left behind may hold the pipe open; that one is not waited
    /// for.
    fn rest(mut self) -> Vec<u8> {
        self.take_available();
        self.bytes
    }
}

/// The master of a pseudo terminal.
#[derive(Clone)]
struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    fn new(master: OwnedFd) -> Result<Self, Failure> {
        Ok(Self(Arc::new(register(master)?)))
    }
}

impl AsyncRead for Terminal {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(context))?;
            match ready.try_io(|terminal| Ok(rustix::io::read(terminal, buffer.initialize_unfilled())?)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // How a terminal says that nobody has it open any more.
                Ok(Err(error)) if Errno::from_io_error(&error) == Some(Errno::IO) => {
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(context))?;
            match ready.try_io(|terminal| Ok(rustix::io::write(terminal, bytes)?)) {
                Ok(written) => return Poll::Ready(written),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

pub(super) async fn port_forward(pod: &Arc<Pod>, port: u16) -> Result<(Reader, Writer), RuntimeError> {
    let link = pod.link()?;
    let loopback: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let mut refused = io::Error::other("not tried");
    for address in loopback {
        let (_, descriptors) =
            link.call(Call::Socket { ipv6: address.is_ipv6() }, &[]).await.map_err(precondition)?;
        let Some(socket) = descriptors.into_iter().next() else {
            continue;
        };
        match TcpSocket::from_std_stream(socket.into()).connect(SocketAddr::new(address, port)).await {
            Ok(stream) => {
                let (reader, writer) = stream.into_split();
                return Ok((Box::new(reader), Box::new(writer)));
            }
            Err(error) if address.is_ipv4() => refused = error,
            // The first answer tells more: most programs listen on IPv4.
            Err(_) => {}
        }
    }
    Err(RuntimeError::System {
        context: format!("failed to connect to port {port} of sandbox {}", pod.record.id.0),
        source: refused,
    })
}
