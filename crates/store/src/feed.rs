//! The sending half of a [`Watch`]: a bounded queue that would rather end a slow watcher than wait for it or skip an
//! event. Shared by all implementations of the store; knows nothing of prefixes or history.

use tokio::sync::mpsc;

use crate::{EventBatch, Revision, StoreError, Watch};

/// One watcher's queue. Its last place is kept free for the message that ends it.
pub(crate) struct Feed {
    sender: mpsc::Sender<Result<EventBatch, StoreError>>,
    delivered: Revision,
}

impl Feed {
    /// A queue for `backlog` batches that are there already and `buffer` that may come; everything up to `after`
    /// is known to the watcher.
    pub(crate) fn new(after: Revision, backlog: usize, buffer: usize) -> (Self, Watch) {
        let (sender, receiver) = mpsc::channel(backlog + buffer.max(1) + 1);
        (Self { sender, delivered: after }, Watch { receiver })
    }

    /// Queues a batch. `false` means the watch is over: nobody listens, or the listener was too slow and has been told.
    pub(crate) fn push(&mut self, batch: EventBatch) -> bool {
        let revision = batch.revision;
        if self.sender.capacity() <= 1 {
            self.end(StoreError::Compacted { requested: self.delivered, oldest: revision });
            return false;
        }
        self.delivered = revision;
        self.sender.try_send(Ok(batch)).is_ok()
    }

    /// Queues the reason for the end; the feed must not be used afterwards.
    pub(crate) fn end(&self, reason: StoreError) {
        // Without a listener there is nobody to tell.
        let _ = self.sender.try_send(Err(reason));
    }

    /// Whether the watcher was dropped.
    pub(crate) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Resolves when the watcher is dropped.
    #[cfg(feature = "etcd")]
    pub(crate) async fn closed(&self) {
        self.sender.closed().await;
    }
}
