//! What readers see: the live pairs, the bounded history behind them, and the pure rules that turn a transaction into
//! changes. Nothing here touches a disk or a lock.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::{
    Compare, Durability, Event, EventBatch, KeyValue, Op, Range, RangePage, Revision, StoreError,
    Transaction, Value,
};

/// A live pair and how much its last write may lose.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) kv: KeyValue,
    pub(super) durability: Durability,
}

impl Entry {
    /// Whether the log or a snapshot knows this pair.
    pub(super) fn on_disk(&self) -> bool {
        self.durability != Durability::Volatile
    }
}

/// One key's step from one revision to the next.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) before: Option<Entry>,
    pub(super) after: Option<Entry>,
}

/// What a transaction would do to a view of the store.
pub(super) enum Outcome {
    Conflict {
        key: Arc<str>,
        current: Option<KeyValue>,
    },
    /// In the order of the operations; empty when nothing changes.
    Changes(Vec<Change>),
}

/// Decides a transaction against `view`, as revision `revision`.
pub(super) fn evaluate(
    transaction: &Transaction,
    revision: Revision,
    view: impl Fn(&str) -> Option<Entry>,
) -> Outcome {
    for compare in &transaction.compare {
        let (Compare::ModRevision(key, _) | Compare::Absent(key) | Compare::Present(key)) = compare;
        let entry = view(key);
        let holds = match compare {
            Compare::ModRevision(_, wanted) => {
                entry.as_ref().is_some_and(|entry| entry.kv.mod_revision == *wanted)
            }
            Compare::Absent(_) => entry.is_none(),
            Compare::Present(_) => entry.is_some(),
        };
        if !holds {
            return Outcome::Conflict { key: key.clone(), current: entry.map(|entry| entry.kv) };
        }
    }
    let changes = transaction.ops.iter().filter_map(|op| match op {
        Op::Put { key, value, durability } => Some(put(view(key), key, value, *durability, revision)),
        Op::Delete { key } => view(key).map(|before| Change { before: Some(before), after: None }),
    });
    Outcome::Changes(changes.collect())
}

fn put(
    before: Option<Entry>,
    key: &Arc<str>,
    value: &Value,
    durability: Durability,
    revision: Revision,
) -> Change {
    // The key's first allocation is kept for all later revisions of the pair.
    let (key, create_revision) = match &before {
        Some(entry) => (entry.kv.key.clone(), entry.kv.create_revision),
        None => (key.clone(), revision),
    };
    let kv = KeyValue { key, value: splice(value, revision), create_revision, mod_revision: revision };
    Change { before, after: Some(Entry { kv, durability }) }
}

/// The complete bytes of a value written at `revision`. An offset behind the end means the end.
pub(crate) fn splice(value: &Value, revision: Revision) -> Bytes {
    let Some(at) = value.splice_at else {
        return value.bytes.clone();
    };
    let (head, tail) = value.bytes.split_at((at as usize).min(value.bytes.len()));
    let digits = revision.0.to_string();
    let mut spliced = BytesMut::with_capacity(value.bytes.len() + digits.len());
    spliced.extend_from_slice(head);
    spliced.extend_from_slice(digits.as_bytes());
    spliced.extend_from_slice(tail);
    spliced.freeze()
}

/// The event watchers get for a change at `revision`.
fn event(change: &Change, revision: Revision) -> Option<Event> {
    let previous = change.before.as_ref().map(|entry| entry.kv.clone());
    match (&change.after, &previous) {
        (Some(after), _) => Some(Event { kv: after.kv.clone(), previous, deleted: false }),
        (None, Some(before)) => {
            let kv = KeyValue { mod_revision: revision, ..before.clone() };
            Some(Event { kv, previous, deleted: true })
        }
        (None, None) => None,
    }
}

/// How much history is kept.
#[derive(Clone, Copy, Debug)]
pub(super) struct HistoryLimits {
    pub(super) events: usize,
    pub(super) bytes: usize,
}

/// The state of the store at one revision, and the way back from it.
pub(super) struct State {
    live: BTreeMap<Arc<str>, Entry>,
    history: VecDeque<EventBatch>,
    history_events: usize,
    history_bytes: usize,
    limits: HistoryLimits,
    revision: Revision,
    /// The oldest revision that can still be read or watched from.
    floor: Revision,
}

impl State {
    /// A state without history.
    pub(super) fn new(live: BTreeMap<Arc<str>, Entry>, revision: Revision, limits: HistoryLimits) -> Self {
        Self {
            live,
            history: VecDeque::new(),
            history_events: 0,
            history_bytes: 0,
            limits,
            revision,
            floor: revision,
        }
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.live.get(key)
    }

    /// What a snapshot holds: everything that has to survive a restart.
    pub(super) fn on_disk(&self) -> Vec<Entry> {
        self.live.values().filter(|entry| entry.on_disk()).cloned().collect()
    }

    /// Makes a committed transaction visible and returns its events.
    pub(super) fn apply(&mut self, revision: Revision, changes: &[Change]) -> EventBatch {
        let events = changes.iter().filter_map(|change| event(change, revision)).collect();
        for change in changes {
            match (&change.after, &change.before) {
                (Some(after), _) => {
                    self.live.insert(after.kv.key.clone(), after.clone());
                }
                (None, Some(before)) => {
                    self.live.remove(&before.kv.key);
                }
                (None, None) => {}
            }
        }
        self.revision = revision;
        let batch = EventBatch { revision, events };
        self.remember(batch.clone());
        batch
    }

    fn remember(&mut self, batch: EventBatch) {
        self.history_events += batch.events.len();
        self.history_bytes += weight(&batch);
        self.history.push_back(batch);
        while self.history_events > self.limits.events || self.history_bytes > self.limits.bytes {
            if !self.forget_oldest() {
                break;
            }
        }
    }

    fn forget_oldest(&mut self) -> bool {
        let Some(batch) = self.history.pop_front() else {
            return false;
        };
        self.history_events -= batch.events.len();
        self.history_bytes -= weight(&batch);
        self.floor = batch.revision;
        true
    }

    /// Forgets how the state before `before` looked.
    pub(super) fn compact(&mut self, before: Revision) -> Result<(), StoreError> {
        if before > self.revision {
            return Err(StoreError::Future { requested: before, current: self.revision });
        }
        while self.history.front().is_some_and(|batch| batch.revision <= before) {
            self.forget_oldest();
        }
        self.floor = self.floor.max(before);
        Ok(())
    }

    /// The events after `after` under `prefix`.
    pub(super) fn events_after(&self, prefix: &str, after: Revision) -> Result<Vec<EventBatch>, StoreError> {
        self.check_kept(after)?;
        Ok(self.history_after(after).filter_map(|batch| under_prefix(batch, prefix)).collect())
    }

    fn check_kept(&self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.revision {
            return Err(StoreError::Future { requested: revision, current: self.revision });
        }
        if revision < self.floor {
            return Err(StoreError::Compacted { requested: revision, oldest: self.floor });
        }
        Ok(())
    }

    fn history_after(&self, after: Revision) -> impl DoubleEndedIterator<Item = &EventBatch> {
        let first = self.history.partition_point(|batch| batch.revision <= after);
        self.history.range(first..)
    }

    /// One page, now or at a kept revision.
    pub(super) fn range(&self, range: &Range) -> Result<RangePage, StoreError> {
        let revision = range.at.unwrap_or(self.revision);
        self.check_kept(revision)?;
        let live = bounded(&self.live, range).map(|(key, entry)| (key, &entry.kv));
        if revision == self.revision {
            return Ok(page(live.map(|(_, kv)| kv), range.limit, revision));
        }
        let past = self.overlay(revision);
        let past = bounded(&past, range).map(|(key, kv)| (key, *kv));
        Ok(page(merge(live, past), range.limit, revision))
    }

    /// What keys that changed after `at` held then. Going backwards, the first change after `at` has the last word.
    fn overlay(&self, at: Revision) -> BTreeMap<Arc<str>, Option<&KeyValue>> {
        let events = self.history_after(at).rev().flat_map(|batch| &batch.events);
        events.map(|event| (event.kv.key.clone(), event.previous.as_ref())).collect()
    }
}

/// What a batch costs to keep: each value is held by the event that wrote it and by the one that replaced it.
fn weight(batch: &EventBatch) -> usize {
    let of = |event: &Event| event.kv.key.len() + event.kv.value.len();
    batch.events.iter().map(of).sum()
}

/// The part of a batch that a watcher of `prefix` sees.
pub(super) fn under_prefix(batch: &EventBatch, prefix: &str) -> Option<EventBatch> {
    let events: Vec<Event> =
        batch.events.iter().filter(|event| event.kv.key.starts_with(prefix)).cloned().collect();
    (!events.is_empty()).then_some(EventBatch { revision: batch.revision, events })
}

fn bounded<'a, T>(
    map: &'a BTreeMap<Arc<str>, T>,
    range: &'a Range,
) -> impl Iterator<Item = (&'a Arc<str>, &'a T)> {
    let start = match range.after.as_deref() {
        Some(after) if after >= range.prefix.as_str() => Bound::Excluded(after),
        _ => Bound::Included(range.prefix.as_str()),
    };
    map.range::<str, _>((start, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&range.prefix))
}

/// Both in key order; where they share a key, the past decides.
fn merge<'a>(
    live: impl Iterator<Item = (&'a Arc<str>, &'a KeyValue)>,
    past: impl Iterator<Item = (&'a Arc<str>, Option<&'a KeyValue>)>,
) -> impl Iterator<Item = &'a KeyValue> {
    let (mut live, mut past) = (live.peekable(), past.peekable());
    std::iter::from_fn(move || {
        loop {
            let order = match (live.peek(), past.peek()) {
                (Some((live, _)), Some((past, _))) => live.cmp(past),
                (Some(_), None) => std::cmp::Ordering::Less,
                (None, _) => std::cmp::Ordering::Greater,
            };
            if order.is_lt() {
                return live.next().map(|(_, kv)| kv);
            }
            if order.is_eq() {
                live.next();
            }
            if let Some(kv) = past.next()?.1 {
                return Some(kv);
            }
        }
    })
}

fn page<'a>(mut pairs: impl Iterator<Item = &'a KeyValue>, limit: usize, revision: Revision) -> RangePage {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let items = pairs.by_ref().take(limit).cloned().collect();
    let remaining = pairs.count() as u64;
    RangePage { items, revision, more: remaining > 0, remaining }
}
