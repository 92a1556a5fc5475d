//! The default store: all live pairs in memory, a log and snapshots on disk as the recovery copy.
//!
//! Readers take a shared lock for as long as it takes to clone references and never wait for the disk. Writes go
//! through one thread ([`writer`]). Durability follows the operation: durable writes are answered after `fdatasync`,
//! lazy ones after `write`, volatile ones never reach the disk. A store without writes has no timer and writes
//! nothing.
//!
//! History does not survive a restart: volatile pairs are gone after it, and a watcher that went on from before would
//! never learn of that. Every open therefore begins at a revision of its own, and older ones are compacted.

mod files;
mod frame;
mod log;
mod state;
#[cfg(test)]
mod tests;
mod writer;

#[cfg(test)]
mod faults;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::feed::Feed;
use crate::{
    KeyValue, Op, Range, RangePage, Revision, Store, StoreError, Transaction, TransactionResult, Watch,
};
use log::Log;
#[cfg(feature = "etcd")]
pub(crate) use state::splice;
use state::{HistoryLimits, State};
use writer::{Request, Snapshots, Writer};

/// How far the revision jumps when a snapshot is restored: further than any cluster writes between a backup and its
/// use, so that no client mistakes a new object for an old one it has seen.
const RESTORE_JUMP: u64 = 1_000_000_000;

/// Bounds of an embedded store.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// Most events kept for watches and reads from past revisions.
    pub history_events: usize,
    /// Most bytes of keys and values kept for them.
    pub history_bytes: usize,
    /// The log is replaced by a snapshot when it is longer than this (bytes) and than the last snapshot.
    pub snapshot_threshold: u64,
    /// Largest value (bytes); the default of 1.5 MiB is etcd's request limit, which clients of Kubernetes know.
    pub max_value_size: usize,
    /// Largest sum of keys and values in one transaction (bytes), at most 64 MiB.
    pub max_transaction_size: usize,
    /// How many batches a watcher may be behind before it is ended.
    pub watch_buffer: usize,
    /// How long a lazy write may wait for the disk.
    pub lazy_delay: Duration,
}

impl Default for EmbeddedOptions {
    fn default() -> Self {
        Self {
            history_events: 100_000,
            history_bytes: 64 << 20,
            snapshot_threshold: 64 << 20,
            max_value_size: 3 << 19,
            max_transaction_size: 64 << 20,
            watch_buffer: 4096,
            lazy_delay: Duration::from_secs(5),
        }
    }
}

/// Why a store could not be opened, saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another part of this one, has it open.
    #[error("the store in {path} is in use by another process")]
    InUse { path: PathBuf },
    /// Written by a newer release.
    #[error("{path} has format version {found}, this release reads up to {supported}: use a newer release")]
    NewerVersion { path: PathBuf, found: u32, supported: u32 },
    /// Bytes that had been written are not there any more. Restore a snapshot.
    #[error("{path} is damaged at byte {offset}: {reason}")]
    Damaged { path: PathBuf, offset: u64, reason: String },
    /// A restore would overwrite something.
    #[error("{path} holds a store already; restore into an empty directory")]
    NotEmpty { path: PathBuf },
    /// The file system refused.
    #[error("failed to {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl OpenError {
    fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}

/// What readers, watchers and the writer share. Locks are taken in the order feeds, state.
struct Shared {
    feeds: Mutex<Vec<(String, Feed)>>,
    state: RwLock<State>,
    revision: AtomicU64,
}

// A panic while a lock is held leaves nothing half done that others could see: state changes are plain inserts.
impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_feeds(&self) -> MutexGuard<'_, Vec<(String, Feed)>> {
        self.feeds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The default implementation of [`Store`]. Dropping it writes what is lazy, seals the log and frees the directory.
pub struct EmbeddedStore {
    shared: Arc<Shared>,
    options: EmbeddedOptions,
    requests: Option<mpsc::Sender<Request>>,
    writer: Option<JoinHandle<()>>,
}

impl EmbeddedStore {
    /// Opens the store in `directory`, which is made if it is missing, and recovers what it holds. Blocks for about a
    /// second per 300,000 objects.
    pub fn open(directory: &Path, options: EmbeddedOptions) -> Result<Arc<Self>, OpenError> {
        Self::open_with(directory, options, |_| {})
    }

    fn open_with(
        directory: &Path,
        options: EmbeddedOptions,
        prepare_log: impl FnOnce(&mut Log),
    ) -> Result<Arc<Self>, OpenError> {
        create_directory(directory)?;
        let lock = files::lock(directory)?;
        let recovered = files::recover(directory)?;
        // A new revision for this life of the store; see the module's comment.
        let revision = Revision(recovered.revision.0 + 1);
        let mut log = match recovered.last_log {
            Some((number, good, salt)) => Log::resume(directory, number, good, salt)?,
            None => Log::create(directory, 1, Revision(0), Revision(0))
                .map_err(|source| OpenError::io("begin a log in", directory, source))?,
        };
        prepare_log(&mut log);
        let limits = HistoryLimits { events: options.history_events, bytes: options.history_bytes };
        let shared = Arc::new(Shared {
            feeds: Mutex::default(),
            state: RwLock::new(State::new(recovered.pairs, revision, limits)),
            revision: AtomicU64::new(revision.0),
        });
        let writer = Writer {
            shared: shared.clone(),
            directory: directory.to_owned(),
            log,
            ceiling: recovered.revision,
            unsealed: false,
            snapshots: Snapshots::new(options.snapshot_threshold, recovered.snapshot_size),
            lazy_delay: options.lazy_delay,
            _lock: lock,
        };
        let (requests, receiver) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(receiver))
            .map_err(|source| OpenError::io("start the writer of", directory, source))?;
        Ok(Arc::new(Self { shared, options, requests: Some(requests), writer: Some(thread) }))
    }

    /// Writes a snapshot of the current state (without what is volatile) to a new file at `path`, while the store goes
    /// on. The file is complete when it appears.
    pub async fn snapshot_to(&self, path: &Path) -> Result<Revision, OpenError> {
        let (shared, path) = (self.shared.clone(), path.to_owned());
        let failed = {
            let path = path.clone();
            move |source| OpenError::io("write the snapshot", &path, source)
        };
        let work = tokio::task::spawn_blocking(move || {
            let state = shared.read();
            let (revision, entries) = (state.revision(), state.on_disk());
            drop(state);
            files::write_snapshot(&path, revision, &entries, || true).map(|_| revision)
        });
        work.await.map_err(io::Error::other).and_then(|written| written).map_err(failed)
    }

    fn check_size(&self, transaction: &Transaction) -> Result<(), StoreError> {
        let mut sum = 0;
        for op in &transaction.ops {
            let size = match op {
                Op::Put { key, value, .. } => {
                    let limit = self.options.max_value_size;
                    if value.bytes.len() > limit {
                        return Err(StoreError::TooLarge { size: value.bytes.len(), limit });
                    }
                    key.len() + value.bytes.len()
                }
                Op::Delete { key } => key.len(),
            };
            sum += size;
        }
        let limit = self.options.max_transaction_size.min(64 << 20);
        if sum > limit {
            return Err(StoreError::TooLarge { size: sum, limit });
        }
        check_distinct(transaction)
    }
}

/// Two changes of one key in one transaction have no order a watcher could be told.
pub(crate) fn check_distinct(transaction: &Transaction) -> Result<(), StoreError> {
    let mut keys: Vec<&str> = transaction
        .ops
        .iter()
        .map(|op| match op {
            Op::Put { key, .. } | Op::Delete { key } => &**key,
        })
        .collect();
    keys.sort_unstable();
    match keys.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(StoreError::Unavailable(format!("a transaction changes {} twice", pair[0]))),
        None => Ok(()),
    }
}

/// Makes a store in `directory`, which must hold none, out of a snapshot. The revision jumps ahead, so that nothing a
/// client saw after the snapshot was made can come back with another meaning.
pub fn restore(snapshot: &Path, directory: &Path) -> Result<Revision, OpenError> {
    let revision = files::verify_snapshot(snapshot)?;
    create_directory(directory)?;
    let _lock = files::lock(directory)?;
    if files::holds_store(directory)? {
        return Err(OpenError::NotEmpty { path: directory.to_owned() });
    }
    let next = Revision(revision.0 + RESTORE_JUMP);
    // The snapshot first: without its log the directory is refused, without its snapshot it would look empty.
    let path = files::snapshot_path(directory, 1);
    files::write_whole(&path, |writer| {
        io::copy(&mut std::fs::File::open(snapshot)?, writer)?;
        Ok(())
    })
    .map_err(|source| OpenError::io("write", &path, source))?;
    Log::create(directory, 1, revision, next)
        .map_err(|source| OpenError::io("begin a log in", directory, source))?;
    Ok(next)
}

/// Objects include secrets: nobody else gets in.
fn create_directory(directory: &Path) -> Result<(), OpenError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(|source| OpenError::io("make the directory", directory, source))
}

fn writer_is_gone<E>(_: E) -> StoreError {
    StoreError::Unavailable("the store is closed".to_owned())
}

#[async_trait]
impl Store for EmbeddedStore {
    fn revision(&self) -> Revision {
        Revision(self.shared.revision.load(Ordering::Acquire))
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        Ok(self.shared.read().get(key).map(|entry| entry.kv.clone()))
    }

    async fn range(&self, range: Range) -> Result<RangePage, StoreError> {
        self.shared.read().range(&range)
    }

    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError> {
        self.check_size(&transaction)?;
        let (reply, answer) = oneshot::channel();
        let requests = self.requests.as_ref().ok_or(()).map_err(writer_is_gone)?;
        requests.send(Request { transaction, reply }).map_err(writer_is_gone)?;
        answer.await.map_err(writer_is_gone)?
    }

    async fn watch(&self, prefix: &str, after: Option<Revision>) -> Result<Watch, StoreError> {
        let mut feeds = self.shared.lock_feeds();
        let state = self.shared.read();
        let after = after.unwrap_or(state.revision());
        let backlog = state.events_after(prefix, after)?;
        drop(state);
        let (mut feed, watch) = Feed::new(after, backlog.len(), self.options.watch_buffer);
        for batch in backlog {
            feed.push(batch);
        }
        // Watchers of quiet prefixes are not missed by any event; they are cleared out here.
        feeds.retain(|(_, feed)| !feed.is_closed());
        feeds.push((prefix.to_owned(), feed));
        Ok(watch)
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.shared.write().compact(before)
    }
}

impl Drop for EmbeddedStore {
    fn drop(&mut self) {
        drop(self.requests.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so; the log is as after a crash.
            let _ = writer.join();
        }
    }
}
