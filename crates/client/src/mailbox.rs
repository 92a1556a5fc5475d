//! What one subscriber of an informer has not read yet.
//!
//! A subscriber could have been given a plain channel, but a channel is either bounded, and then one
//! slow loop holds up the informer and with it every other loop, or unbounded, and then a busy object
//! fills memory with versions nobody will look at. A mailbox keeps at most one change per object,
//! merging what came meanwhile: it is bounded by the number of objects and always up to date, which
//! is all a level-triggered loop needs.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::informer::Watch;
use crate::key::ObjectKey;

/// Cancelled keys that may wait in the order of a mailbox before it is swept.
const STALE_ORDER_SLACK: usize = 64;

/// The difference between what a subscriber saw last of an object and what is there now.
///
/// At least one of the two sides is present. Changes between two reads are merged, so `old` and
/// `new` may be far apart; they may even have different uids when the object was deleted and made
/// again under the same name meanwhile.
#[derive(Debug)]
pub struct Change<K> {
    /// The object's name.
    pub key: ObjectKey,
    /// The object as this subscriber saw it last; `None` when it is new to the subscriber.
    pub old: Option<Arc<K>>,
    /// The object as it is; `None` when it is gone.
    pub new: Option<Arc<K>>,
}

impl<K> Change<K> {
    /// Both sides that are present, the old one first: for handlers that must wake up whoever the
    /// object belonged to as well as whoever it belongs to now.
    pub fn versions(&self) -> impl Iterator<Item = &Arc<K>> {
        self.old.iter().chain(self.new.iter())
    }
}

impl<K> Clone for Change<K> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), old: self.old.clone(), new: self.new.clone() }
    }
}

/// A subscription to an informer: first every present object as new, then what changes.
pub struct Changes<K> {
    mailbox: Arc<Mailbox<K>>,
    /// Keeps the watch going for as long as somebody reads.
    _watch: Arc<Watch<K>>,
}

impl<K> Changes<K> {
    pub(crate) fn new(mailbox: Arc<Mailbox<K>>, watch: Arc<Watch<K>>) -> Self {
        Self { mailbox, _watch: watch }
    }

    /// The next change, waiting for one if there is none. `None` when the informer has stopped,
    /// which happens only when its runtime shuts down.
    pub async fn recv(&mut self) -> Option<Change<K>> {
        let mailbox = &self.mailbox;
        loop {
            let arrived = mailbox.arrived.notified();
            {
                let mut pending = mailbox.pending();
                if let Some(change) = pending.pop() {
                    return Some(change);
                }
                if pending.closed {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// The next change if there is one already.
    pub fn try_recv(&mut self) -> Option<Change<K>> {
        self.mailbox.pending().pop()
    }
}

/// One subscriber's unread changes, shared with the informer that delivers them.
pub(crate) struct Mailbox<K> {
    pending: Mutex<Pending<K>>,
    arrived: Notify,
}

struct Pending<K> {
    changes: HashMap<ObjectKey, Change<K>>,
    /// The keys in order of arrival. May hold keys whose change was cancelled or read already.
    order: VecDeque<ObjectKey>,
    closed: bool,
}

impl<K> Mailbox<K> {
    pub(crate) fn new() -> Self {
        Self {
            pending: Mutex::new(Pending { changes: HashMap::new(), order: VecDeque::new(), closed: false }),
            arrived: Notify::new(),
        }
    }

    /// Puts a change in, merging it with an unread one of the same object.
    pub(crate) fn deliver(&self, change: Change<K>) {
        self.pending().merge(change);
        self.arrived.notify_one();
    }

    /// Lets the reader end after what is left.
    pub(crate) fn close(&self) {
        self.pending().closed = true;
        self.arrived.notify_one();
    }

    fn pending(&self) -> MutexGuard<'_, Pending<K>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K> Pending<K> {
    fn merge(&mut self, change: Change<K>) {
        let Some(unread) = self.changes.get_mut(&change.key) else {
            self.order.push_back(change.key.clone());
            self.changes.insert(change.key.clone(), change);
            return;
        };
        unread.new = change.new;
        if unread.old.is_none() && unread.new.is_none() {
            // Born and gone unseen: the subscriber has nothing to react to.
            self.changes.remove(&change.key);
            self.sweep();
        }
    }

    fn pop(&mut self) -> Option<Change<K>> {
        while let Some(key) = self.order.pop_front() {
            if let Some(change) = self.changes.remove(&key) {
                return Some(change);
            }
        }
        None
    }

    /// Objects that come and go while nobody reads must not let `order` grow.
    fn sweep(&mut self) {
        if self.order.len() > 2 * self.changes.len() + STALE_ORDER_SLACK {
            let changes = &self.changes;
            self.order.retain(|key| changes.contains_key(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, old: Option<u32>, new: Option<u32>) -> Change<u32> {
        Change { key: ObjectKey::new("ns", name), old: old.map(Arc::new), new: new.map(Arc::new) }
    }

    fn drain(mailbox: &Mailbox<u32>) -> Vec<(String, Option<u32>, Option<u32>)> {
        std::iter::from_fn(|| mailbox.pending().pop())
            .map(|change| (change.key.name, change.old.as_deref().copied(), change.new.as_deref().copied()))
            .collect()
    }

    #[test]
    fn unread_changes_of_an_object_become_one() {
        type Step = (&'static str, Option<u32>, Option<u32>);
        let rows: [(&str, Vec<Step>, Vec<Step>); 5] = [
            ("one", vec![("a", None, Some(1))], vec![("a", None, Some(1))]),
            ("two versions", vec![("a", None, Some(1)), ("a", Some(1), Some(2))], vec![("a", None, Some(2))]),
            ("born and gone", vec![("a", None, Some(1)), ("a", Some(1), None)], vec![]),
            (
                "gone and made again",
                vec![("a", Some(1), None), ("a", None, Some(2))],
                vec![("a", Some(1), Some(2))],
            ),
            (
                "order of first arrival",
                vec![("a", None, Some(1)), ("b", None, Some(1)), ("a", Some(1), Some(2))],
                vec![("a", None, Some(2)), ("b", None, Some(1))],
            ),
        ];
        for (name, steps, expected) in rows {
            let mailbox = Mailbox::new();
            for (object, old, new) in steps {
                mailbox.deliver(change(object, old, new));
            }
            let expected: Vec<_> =
                expected.into_iter().map(|(object, old, new)| (object.to_string(), old, new)).collect();
            assert_eq!(drain(&mailbox), expected, "{name}");
        }
    }

    #[test]
    fn short_lived_objects_leave_nothing_behind() {
        let mailbox = Mailbox::new();
        for index in 0..10_000 {
            let name = format!("job-{index}");
            mailbox.deliver(change(&name, None, Some(1)));
            mailbox.deliver(change(&name, Some(1), None));
        }
        assert!(mailbox.pending().order.len() <= STALE_ORDER_SLACK + 1);
        assert!(drain(&mailbox).is_empty());
    }
}
