//! Waiting for more of a log: inotify on its directory, and the runtime's word that the container has ended.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use sampan_runtime::{ContainerId, ContainerState, RuntimeEvent};
use tokio::io::unix::AsyncFd;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::context::Context;

/// Wakes when a log may have grown or its container has ended.
pub(super) struct Watch {
    inotify: AsyncFd<OwnedFd>,
    id: ContainerId,
    events: broadcast::Receiver<RuntimeEvent>,
}

impl Watch {
    /// Watches the directory of a log: writes to its files, and new files after a rotation. `events` has been subscribed
    /// before the container was seen running.
    pub(super) fn new(
        log: &Path,
        id: ContainerId,
        events: broadcast::Receiver<RuntimeEvent>,
    ) -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let directory = log.parent().unwrap_or(Path::new("/"));
        let flags = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO;
        inotify::add_watch(&descriptor, directory, flags)?;
        // Deprecated for types that may lie about their descriptor; an owned descriptor cannot.
        #[allow(deprecated)]
        let inotify = AsyncFd::new(descriptor)?;
        Ok(Self { inotify, id, events })
    }

    /// Waits until there may be more to read. `true` when the container has ended: what can be read now is all.
    pub(super) async fn wait(&mut self, context: &Context) -> bool {
        tokio::select! {
            ready = self.inotify.readable() => {
                if let Ok(mut guard) = ready {
                    drain(guard.get_inner());
                    guard.clear_ready();
                    return false;
                }
                true
            }
            event = self.events.recv() => match event {
                Ok(RuntimeEvent::ContainerExited { container, .. }) => container == self.id,
                Ok(RuntimeEvent::SandboxExited { .. }) | Err(RecvError::Lagged(_)) => has_ended(context, &self.id).await,
                Err(RecvError::Closed) => true,
            },
        }
    }
}

async fn has_ended(context: &Context, id: &ContainerId) -> bool {
    match context.runtime.container_status(id).await {
        Ok(status) => status.state != ContainerState::Running,
        Err(_) => true,
    }
}

/// What exactly happened does not matter.
fn drain(descriptor: &OwnedFd) {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 4096];
    let mut reader = inotify::Reader::new(descriptor, &mut buffer);
    loop {
        match reader.next() {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return,
        }
    }
}
