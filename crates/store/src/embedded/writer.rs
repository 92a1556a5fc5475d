//! The one writer: a thread that takes what is waiting, decides it in order, appends it to the log with one
//! `fdatasync`, shows it to readers and watchers, and answers.
//!
//! ```text
//! queue ─> evaluate (state + changes of this batch) ─> append ─> sync ─> publish ─> watchers ─> answers
//!                                                        │ no space: take back, one by one, refuse what does not fit
//! ```
//! It sleeps in `recv` when there is nothing to do; only while something lazy is not on disk does it wake by time.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::frame::{self, Encoder, Kind};
use super::log::Log;
use super::state::{self, Change, Entry, Outcome};
use super::{Shared, files};
use crate::feed::Feed;
use crate::{Durability, KeyValue, Op, Revision, StoreError, Transaction, TransactionResult};

/// A batch is bounded so that the first waiting transaction does not pay for the thousandth.
const BATCH_TRANSACTIONS: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;
/// How many revisions are reserved at a time for writes that are not on disk: one more durable record per so many
/// heartbeats, against how far the revision jumps after a crash.
const CEILING_STEP: u64 = 10_000;

/// A transaction and where its answer goes. A caller that stopped waiting changes nothing.
pub(super) struct Request {
    pub(super) transaction: Transaction,
    pub(super) reply: oneshot::Sender<Result<TransactionResult, StoreError>>,
}

/// Everything the thread owns.
pub(super) struct Writer {
    pub(super) shared: Arc<Shared>,
    pub(super) directory: PathBuf,
    pub(super) log: Log,
    /// On disk: revisions up to here may be used without being on disk themselves.
    pub(super) ceiling: Revision,
    /// Whether the log says something that a seal must follow.
    pub(super) unsealed: bool,
    pub(super) snapshots: Snapshots,
    pub(super) lazy_delay: Duration,
    pub(super) _lock: File,
}

/// A batch decided but not yet done.
struct Prepared {
    frames: Vec<u8>,
    sync: bool,
    ceiling: Revision,
    commits: Vec<(Revision, Vec<Change>)>,
    results: Vec<TransactionResult>,
}

impl Writer {
    /// Serves requests until all senders are gone, then seals the log.
    pub(super) fn run(mut self, requests: Receiver<Request>) {
        while let Some(batch) = self.next_batch(&requests) {
            self.commit(batch);
            self.snapshots.start_if_due(&mut self.log, &self.directory, &self.shared, self.ceiling);
        }
        self.close();
    }

    fn next_batch(&mut self, requests: &Receiver<Request>) -> Option<Vec<Request>> {
        let first = match self.log.dirty_since {
            None => requests.recv().ok()?,
            Some(since) => match requests.recv_timeout(self.lazy_delay.saturating_sub(since.elapsed())) {
                Ok(request) => request,
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {
                    self.log.sync();
                    return Some(Vec::new());
                }
            },
        };
        let mut bytes = size(&first.transaction);
        let mut batch = vec![first];
        while batch.len() < BATCH_TRANSACTIONS && bytes < BATCH_BYTES {
            let Ok(request) = requests.try_recv() else { break };
            bytes += size(&request.transaction);
            batch.push(request);
        }
        Some(batch)
    }

    fn commit(&mut self, batch: Vec<Request>) {
        let prepared = self.prepare(&batch);
        let appended = match prepared.frames.is_empty() && !prepared.sync {
            true => Ok(()),
            false => self.log.append(&prepared.frames, prepared.sync),
        };
        match appended {
            Ok(()) => {
                self.ceiling = prepared.ceiling;
                self.unsealed |= !prepared.frames.is_empty();
                self.shared.publish(prepared.commits);
                for (request, result) in batch.into_iter().zip(prepared.results) {
                    let _ = request.reply.send(Ok(result));
                }
            }
            // Together they do not fit. Alone some may, and those that need no disk always do.
            Err(_) if batch.len() > 1 => batch.into_iter().for_each(|request| self.commit(vec![request])),
            Err(error) => {
                tracing::warn!(%error, "the store refused a write");
                for request in batch {
                    let reason = StoreError::Unavailable(format!("failed to write the log: {error}"));
                    let _ = request.reply.send(Err(reason));
                }
            }
        }
    }

    fn prepare(&self, batch: &[Request]) -> Prepared {
        let state = self.shared.read();
        let mut overlay: HashMap<Arc<str>, Option<Entry>> = HashMap::new();
        let mut revision = state.revision();
        let mut on_disk = Revision(0);
        let mut prepared = Prepared {
            frames: Vec::new(),
            sync: false,
            ceiling: self.ceiling,
            commits: Vec::new(),
            results: Vec::with_capacity(batch.len()),
        };
        let mut encoder =
            Encoder { buffer: &mut prepared.frames, salt: self.log.salt, synced: self.log.synced };
        for request in batch {
            let next = Revision(revision.0 + 1);
            let outcome = state::evaluate(&request.transaction, next, |key| match overlay.get(key) {
                Some(entry) => entry.clone(),
                None => state.get(key).cloned(),
            });
            let changes = match outcome {
                Outcome::Conflict { key, current } => {
                    prepared.results.push(TransactionResult::Conflict { key, current });
                    continue;
                }
                Outcome::Changes(changes) => changes,
            };
            if !changes.is_empty() {
                revision = next;
                let framed = encoder.frame(Kind::Changes, revision, |body| {
                    changes.iter().for_each(|change| frame::encode_change(body, change));
                });
                if framed {
                    on_disk = revision;
                }
                prepared.sync |= changes.iter().any(is_durable);
            }
            for change in &changes {
                if let Some(entry) = change.after.as_ref().or(change.before.as_ref()) {
                    overlay.insert(entry.kv.key.clone(), change.after.clone());
                }
            }
            prepared.results.push(TransactionResult::Committed { revision, puts: puts(&changes) });
            if !changes.is_empty() {
                prepared.commits.push((revision, changes));
            }
        }
        let covered = if prepared.sync { on_disk } else { Revision(0) };
        if revision > covered.max(self.ceiling) && !prepared.commits.is_empty() {
            prepared.ceiling = Revision(revision.0 + CEILING_STEP);
            prepared.sync = true;
            encoder.frame(Kind::Ceiling, prepared.ceiling, |_| {});
        }
        prepared
    }

    fn close(mut self) {
        self.snapshots.cancel();
        let revision = self.shared.read().revision();
        if self.unsealed || self.ceiling > revision {
            let mut seal = Vec::new();
            Encoder { buffer: &mut seal, salt: self.log.salt, synced: self.log.synced }.frame(
                Kind::Seal,
                revision,
                |_| {},
            );
            // Without the seal the next open jumps to the ceiling, as after a crash.
            if let Err(error) = self.log.append(&seal, true) {
                tracing::warn!(%error, "failed to seal the store's log");
            }
        }
        self.log.sync();
        self.shared.lock_feeds().clear();
    }
}

fn size(transaction: &Transaction) -> usize {
    let of = |op: &Op| match op {
        Op::Put { key, value, .. } => key.len() + value.bytes.len(),
        Op::Delete { key } => key.len(),
    };
    transaction.ops.iter().map(of).sum()
}

/// Whether the answer has to wait for the disk.
fn is_durable(change: &Change) -> bool {
    match (&change.before, &change.after) {
        (_, Some(after)) if after.on_disk() => after.durability == Durability::Durable,
        (Some(before), _) => before.durability == Durability::Durable,
        _ => false,
    }
}

fn puts(changes: &[Change]) -> Vec<KeyValue> {
    changes.iter().filter_map(|change| Some(change.after.as_ref()?.kv.clone())).collect()
}

impl Shared {
    /// Shows commits to readers, then to watchers. Whoever registers a watch holds the feeds, so that it sees either
    /// all of a batch in the history or all of it in its feed.
    fn publish(&self, commits: Vec<(Revision, Vec<Change>)>) {
        if commits.is_empty() {
            return;
        }
        let mut feeds: MutexGuard<'_, Vec<(String, Feed)>> = self.lock_feeds();
        let mut state = self.write();
        let batches: Vec<_> =
            commits.iter().map(|(revision, changes)| state.apply(*revision, changes)).collect();
        self.revision.store(state.revision().0, Ordering::Release);
        drop(state);
        feeds.retain_mut(|(prefix, feed)| {
            batches
                .iter()
                .filter_map(|batch| state::under_prefix(batch, prefix))
                .all(|batch| feed.push(batch))
        });
    }
}

/// When to write a snapshot, and the one being written.
pub(super) struct Snapshots {
    /// The log is at least this long before it is replaced.
    pub(super) threshold: u64,
    /// And at least as long as the last snapshot, so that a byte is rewritten at most about once.
    pub(super) due_at: u64,
    pub(super) running: Option<(JoinHandle<io::Result<u64>>, Arc<AtomicBool>)>,
}

impl Snapshots {
    pub(super) fn new(threshold: u64, last_size: u64) -> Self {
        Self { threshold, due_at: threshold.max(last_size), running: None }
    }

    fn start_if_due(&mut self, log: &mut Log, directory: &Path, shared: &Shared, ceiling: Revision) {
        if log.length < self.due_at || !self.idle() {
            return;
        }
        if let Err(error) = self.start(log, directory, shared, ceiling) {
            tracing::warn!(%error, "cannot begin a snapshot of the store; the log goes on growing");
            self.due_at = log.length + self.threshold;
        }
    }

    /// Collects a finished snapshot.
    fn idle(&mut self) -> bool {
        if self.running.as_ref().is_some_and(|(thread, _)| !thread.is_finished()) {
            return false;
        }
        if let Some((thread, _)) = self.running.take()
            && let Ok(Ok(size)) = thread.join()
        {
            self.due_at = self.threshold.max(size);
        }
        true
    }

    /// Begins the next log and writes the state it begins with beside it.
    fn start(
        &mut self,
        log: &mut Log,
        directory: &Path,
        shared: &Shared,
        ceiling: Revision,
    ) -> io::Result<()> {
        log.sync();
        let state = shared.read();
        let (revision, entries) = (state.revision(), state.on_disk());
        drop(state);
        let next = Log::create(directory, log.number + 1, revision, ceiling)?;
        #[cfg(test)]
        let next = next.with_faults_of(log);
        *log = next;
        let (directory, number) = (directory.to_owned(), log.number);
        let cancelled = Arc::new(AtomicBool::new(false));
        let flag = cancelled.clone();
        let thread = std::thread::Builder::new().name("store-snapshot".to_owned()).spawn(move || {
            let path = files::snapshot_path(&directory, number);
            let written = files::write_snapshot(&path, revision, &entries, || !flag.load(Ordering::Relaxed));
            match &written {
                Ok(_) => files::remove_older(&directory, number),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "failed to write a snapshot")
                }
            }
            written
        })?;
        self.running = Some((thread, cancelled));
        Ok(())
    }

    fn cancel(&mut self) {
        if let Some((thread, cancelled)) = self.running.take() {
            cancelled.store(true, Ordering::Relaxed);
            let _ = thread.join();
        }
    }
}
