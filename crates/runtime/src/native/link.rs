//! A connection to a supervisor: requests out, answers and events in.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::net::RecvFlags;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::nursery::register;
use crate::cri::ContainerId;
use crate::failure::{Failure, Tried};
use crate::protocol::{self, Call, Message, Packet, Reply, Request};

/// A connection; closed when dropped.
pub(super) struct Link {
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
}

struct Shared {
    socket: AsyncFd<OwnedFd>,
    /// Requests that wait; `None` once the connection is lost.
    pending: Mutex<Option<HashMap<u64, mpsc::UnboundedSender<Answered>>>>,
    last_request: AtomicU64,
}

struct Answered {
    last: bool,
    result: Result<Reply, Failure>,
    descriptors: Vec<OwnedFd>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Link {
    /// Begins to use a connected socket. `on_exit` is called for each container that ends, `on_loss` when the other
    /// side closes.
    pub(super) fn new(
        socket: OwnedFd,
        on_exit: impl Fn(ContainerId) + Send + 'static,
        on_loss: impl FnOnce() + Send + 'static,
    ) -> Result<Self, Failure> {
        let shared = Arc::new(Shared {
            socket: register(socket)?,
            pending: Mutex::new(Some(HashMap::new())),
            last_request: AtomicU64::new(0),
        });
        let reader = tokio::spawn(read(shared.clone(), on_exit, on_loss));
        Ok(Self { shared, reader })
    }

    /// Sends a request; the answers come one by one.
    pub(super) async fn request(
        &self,
        call: Call,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Answers, Failure> {
        let id = self.shared.last_request.fetch_add(1, Ordering::Relaxed) + 1;
        let (sender, receiver) = mpsc::unbounded_channel();
        match self.shared.pending().as_mut() {
            Some(pending) => pending.insert(id, sender),
            None => return Err(lost()),
        };
        let answers = Answers { id, receiver, shared: self.shared.clone() };
        let request = Request { id, call };
        loop {
            match protocol::send(&self.shared.socket, &request, descriptors) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut ready =
                        self.shared.socket.writable().await.tried(|| "wait for the supervisor".to_owned())?;
                    ready.clear_ready();
                }
                sent => break sent.tried(|| "send to the supervisor".to_owned())?,
            }
        }
        Ok(answers)
    }

    /// Sends a request that has one answer.
    pub(super) async fn call(
        &self,
        call: Call,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        self.request(call, descriptors).await?.next().await
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Option<HashMap<u64, mpsc::UnboundedSender<Answered>>>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers to one request.
pub(super) struct Answers {
    /// Names the request towards the supervisor.
    pub(super) id: u64,
    receiver: mpsc::UnboundedReceiver<Answered>,
    shared: Arc<Shared>,
}

impl Drop for Answers {
    fn drop(&mut self) {
        if let Some(pending) = self.shared.pending().as_mut() {
            pending.remove(&self.id);
        }
    }
}

impl Answers {
    /// The next answer with its descriptors.
    pub(super) async fn next(&mut self) -> Result<(Reply, Vec<OwnedFd>), Failure> {
        let answered = self.receiver.recv().await.ok_or_else(lost)?;
        Ok((answered.result?, answered.descriptors))
    }
}

fn lost() -> Failure {
    Failure::new("the supervisor of the pod has gone")
}

async fn read(shared: Arc<Shared>, on_exit: impl Fn(ContainerId), on_loss: impl FnOnce()) {
    while let Ok(mut ready) = shared.socket.readable().await {
        match ready.try_io(|socket| protocol::receive(socket, RecvFlags::DONTWAIT)) {
            Ok(Ok(Some(packet))) => deliver(&shared, packet, &on_exit),
            Ok(_) => break,
            Err(_would_block) => {}
        }
    }
    // Closes every channel, so that whoever waits learns that the connection is lost.
    shared.pending().take();
    on_loss();
}

fn deliver(shared: &Shared, packet: Packet, on_exit: &impl Fn(ContainerId)) {
    match packet.parse::<Message>() {
        Ok(Message::ContainerExited { container }) => on_exit(container),
        Ok(Message::Answer { id, last, result }) => {
            let answered = Answered { last, result, descriptors: packet.descriptors };
            if let Some(pending) = shared.pending().as_mut() {
                let is_last = answered.last;
                if let Some(sender) = pending.get(&id) {
                    // Whoever asked may have stopped waiting.
                    let _ = sender.send(answered);
                }
                if is_last {
                    pending.remove(&id);
                }
            }
        }
        // A supervisor of another version may say what this agent does not know.
        Err(error) => tracing::warn!(%error, "a supervisor sent what is not understood"),
    }
}
