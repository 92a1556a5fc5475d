//! Where objects live: a revisioned key-value store with transactions and watches, and nothing else.
//!
//! The store knows keys, bytes and revisions. It does not know kinds, JSON or namespaces. Two implementations of
//! [`Store`] exist: [`embedded`], the default, and `etcd` (cargo feature), for when one machine is not enough.

#![forbid(unsafe_code)]

pub mod embedded;
#[cfg(feature = "etcd")]
pub mod etcd;
mod feed;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

pub use embedded::{EmbeddedOptions, EmbeddedStore, OpenError};

/// A point in the history of the store. Every transaction that changes something has its own; they only grow.
/// `Revision(0)` is before everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Revision(pub u64);

/// How much a write may lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// Acknowledged after it is on disk.
    #[default]
    Durable,
    /// Acknowledged at once, on disk with the next durable write or after a few seconds.
    Lazy,
    /// Never on disk: gone after a restart.
    Volatile,
}

/// Bytes to be stored. With `splice_at`, the store writes the decimal digits of the commit's revision between
/// `bytes[..splice_at]` and `bytes[splice_at..]`, once, so that readers get complete bytes without work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// The bytes without the revision.
    pub bytes: Bytes,
    /// Where the revision goes.
    pub splice_at: Option<u32>,
}

/// A stored pair as of some revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Arc<str>,
    /// The complete bytes, revision already in them.
    pub value: Bytes,
    /// Revision that made the key.
    pub create_revision: Revision,
    /// Revision that last changed it.
    pub mod_revision: Revision,
}

/// A condition of a transaction. All must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Compare {
    /// The key's last change is exactly this revision.
    ModRevision(Arc<str>, Revision),
    /// The key does not exist.
    Absent(Arc<str>),
    /// The key exists.
    Present(Arc<str>),
}

/// A change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Create or replace.
    Put { key: Arc<str>, value: Value, durability: Durability },
    /// Remove; removing an absent key changes nothing. Has the durability the key's last put had.
    Delete { key: Arc<str> },
}

/// All or nothing.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    /// Conditions.
    pub compare: Vec<Compare>,
    /// Changes, at most one per key.
    pub ops: Vec<Op>,
}

/// What a transaction came to.
#[derive(Clone, Debug)]
pub enum TransactionResult {
    /// Done at `revision`. `puts` holds the stored pairs in the order of the put operations.
    Committed { revision: Revision, puts: Vec<KeyValue> },
    /// A condition did not hold; `current` is what the first such key holds now.
    Conflict { key: Arc<str>, current: Option<KeyValue> },
}

/// One page of a listing.
#[derive(Clone, Debug)]
pub struct RangePage {
    /// In key order.
    pub items: Vec<KeyValue>,
    /// The revision the page is true at.
    pub revision: Revision,
    /// Whether keys follow after the last item.
    pub more: bool,
    /// How many keys follow after the last item.
    pub remaining: u64,
}

/// What to list.
#[derive(Clone, Debug, Default)]
pub struct Range {
    /// Keys that start with this.
    pub prefix: String,
    /// Only keys greater than this.
    pub after: Option<String>,
    /// The state as of this revision; `None` is now.
    pub at: Option<Revision>,
    /// Most items in the page; 0 is no limit.
    pub limit: usize,
}

/// What happened to a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The pair after a put; for a delete the key, the bytes it had, and `mod_revision` = revision of the delete.
    pub kv: KeyValue,
    /// The pair before, if there was one.
    pub previous: Option<KeyValue>,
    /// Whether the key was removed.
    pub deleted: bool,
}

/// Events of one revision, in order; a watcher gets whole revisions only.
#[derive(Clone, Debug)]
pub struct EventBatch {
    /// Their revision.
    pub revision: Revision,
    /// Those under the watched prefix; never empty.
    pub events: Vec<Event>,
}

/// Why the store did not answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// History before `oldest` is gone: list again.
    #[error("revision {requested} has been compacted, the oldest kept is {oldest}", requested = .requested.0, oldest = .oldest.0)]
    Compacted { requested: Revision, oldest: Revision },
    /// Asked for a revision that does not exist yet.
    #[error("revision {requested} is in the future, the store is at {current}", requested = .requested.0, current = .current.0)]
    Future { requested: Revision, current: Revision },
    /// No space, too large, or not reachable: nothing was changed and the caller may try again.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The value is larger than the store takes.
    #[error("value of {size} bytes is larger than the limit of {limit}")]
    TooLarge { size: usize, limit: usize },
}

/// A running watch. Dropping it ends it. A watcher that falls more than its buffer behind is ended: `recv` gives
/// `Err(Compacted)` once and then `None`; the caller lists again.
pub struct Watch {
    /// Batches in order of revision, without a gap.
    pub receiver: mpsc::Receiver<Result<EventBatch, StoreError>>,
}

/// A revisioned store. All implementations pass the same test suite.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The newest revision that readers see.
    fn revision(&self) -> Revision;
    /// One key now.
    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError>;
    /// Keys under a prefix, now or at a kept revision.
    async fn range(&self, range: Range) -> Result<RangePage, StoreError>;
    /// Compare and change; when it returns, the change is as durable as its operations ask for and visible to readers.
    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError>;
    /// Everything under `prefix` that changes after `after` (`None`: from now on). Buffered up to an implementation
    /// bound.
    async fn watch(&self, prefix: &str, after: Option<Revision>) -> Result<Watch, StoreError>;
    /// Forgets history before `before`; current values stay.
    async fn compact(&self, before: Revision) -> Result<(), StoreError>;
}
