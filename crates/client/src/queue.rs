//! The keys a control loop has to look at.
//!
//! The queue follows the rules of client-go's work queue: a key waits at most once; a key that is
//! being worked on is not handed out a second time, and if it is added meanwhile it comes again when
//! the work is done. Failures put off the next attempt, per key and exponentially.
//!
//! There is no timer task: the reader of [`Queue::next`] sleeps until the earliest delayed key is due.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// The pause after the first failure of a key. client-go's default; short enough not to be noticed
/// after a lost race for an object.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// The longest pause. client-go goes up to 1,000 s, but a user who has repaired a cause should not
/// wait a quarter of an hour to see the effect.
const BACKOFF_LONGEST: Duration = Duration::from_secs(60);

/// A de-duplicating work queue; clones share it.
pub struct Queue<K>(Arc<Inner<K>>);

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// What is in `ready`.
    waiting: HashSet<K>,
    running: HashSet<K>,
    /// Added while running: to be made ready by `done`.
    again: HashSet<K>,
    delayed: Delayed<K>,
    failures: HashMap<K, u32>,
    closed: bool,
}

/// Keys with the moment they become due; one moment per key, the earliest asked for.
struct Delayed<K> {
    by_time: BTreeMap<(Instant, u64), K>,
    by_key: HashMap<K, (Instant, u64)>,
    sequence: u64,
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// An empty queue.
    pub fn new() -> Self {
        Self(Arc::new(Inner {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                waiting: HashSet::new(),
                running: HashSet::new(),
                again: HashSet::new(),
                delayed: Delayed { by_time: BTreeMap::new(), by_key: HashMap::new(), sequence: 0 },
                failures: HashMap::new(),
                closed: false,
            }),
            changed: Notify::new(),
        }))
    }

    /// Asks for `key` to be looked at as soon as possible.
    pub fn add(&self, key: K) {
        self.state().make_ready(key);
        self.0.changed.notify_one();
    }

    /// Asks for `key` to be looked at after `delay`, or earlier if it was to be looked at earlier.
    /// When the key is handed out before that for another reason, this request counts as met: who
    /// still wants it after that look asks again.
    pub fn add_after(&self, key: K, delay: Duration) {
        self.state().delayed.insert(key, Instant::now() + delay);
        self.0.changed.notify_one();
    }

    /// Asks for `key` to be looked at after a pause that doubles with every call until [`Queue::forget`].
    /// Returns how often this has been called since.
    pub fn retry(&self, key: K) -> u32 {
        let failures = {
            let mut state = self.state();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            *failures
        };
        self.add_after(key, backoff(failures));
        failures
    }

    /// Forgets the failures of `key`.
    pub fn forget(&self, key: &K) {
        self.state().failures.remove(key);
    }

    /// The next key, waiting for one. Every key handed out must be given to [`Queue::done`]. `None`
    /// once the queue is closed and empty.
    ///
    /// Safe to cancel: a key is taken only when it is returned.
    pub async fn next(&self) -> Option<K> {
        loop {
            let changed = self.0.changed.notified();
            let due = {
                let mut state = self.state();
                state.promote(Instant::now());
                if let Some(key) = state.take() {
                    return Some(key);
                }
                if state.closed {
                    return None;
                }
                state.delayed.earliest()
            };
            match due {
                Some(due) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(due) => {}
                },
                None => changed.await,
            }
        }
    }

    /// Ends the work on a key that [`Queue::next`] handed out.
    pub fn done(&self, key: &K) {
        let mut state = self.state();
        state.running.remove(key);
        if state.again.remove(key) {
            state.make_ready(key.clone());
            drop(state);
            self.0.changed.notify_one();
        }
    }

    /// Lets the readers end once what is ready has been read. Delayed keys are dropped.
    pub fn close(&self) {
        self.state().closed = true;
        self.0.changed.notify_waiters();
        self.0.changed.notify_one();
    }

    /// How many keys are ready, delayed or being worked on.
    pub fn len(&self) -> usize {
        let state = self.state();
        state.ready.len() + state.running.len() + state.delayed.by_key.len()
    }

    /// Whether nothing is ready, delayed or being worked on.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn state(&self) -> MutexGuard<'_, State<K>> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn make_ready(&mut self, key: K) {
        if self.running.contains(&key) {
            self.again.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some(key) = self.delayed.pop_due(now) {
            self.make_ready(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.waiting.remove(&key);
        self.delayed.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }
}

impl<K: Clone + Eq + Hash> Delayed<K> {
    fn insert(&mut self, key: K, due: Instant) {
        if self.by_key.get(&key).is_some_and(|(earlier, _)| *earlier <= due) {
            return;
        }
        self.remove(&key);
        self.sequence += 1;
        self.by_key.insert(key.clone(), (due, self.sequence));
        self.by_time.insert((due, self.sequence), key);
    }

    fn remove(&mut self, key: &K) {
        if let Some(entry) = self.by_key.remove(key) {
            self.by_time.remove(&entry);
        }
    }

    fn earliest(&self) -> Option<Instant> {
        self.by_time.keys().next().map(|(due, _)| *due)
    }

    fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.earliest()? > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

fn backoff(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (BACKOFF_FIRST * 2_u32.pow(doublings)).min(BACKOFF_LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is ready now, without waiting.
    fn ready(queue: &Queue<&'static str>) -> Vec<&'static str> {
        let mut state = queue.state();
        state.promote(Instant::now());
        state.ready.iter().copied().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once() {
        let queue = Queue::new();
        for key in ["a", "b", "a"] {
            queue.add(key);
        }
        assert_eq!(ready(&queue), ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_running_comes_again_afterwards() {
        let queue = Queue::new();
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.add("a");
        assert!(ready(&queue).is_empty());
        queue.done(&"a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delayed_keys_come_in_time_and_the_earliest_request_wins() {
        let queue = Queue::new();
        let start = Instant::now();
        queue.add_after("late", Duration::from_secs(20));
        queue.add_after("early", Duration::from_secs(30));
        queue.add_after("early", Duration::from_secs(10));
        queue.add_after("early", Duration::from_secs(40));
        assert_eq!(queue.next().await, Some("early"));
        assert_eq!(start.elapsed().as_secs(), 10);
        assert_eq!(queue.next().await, Some("late"));
        assert_eq!(start.elapsed().as_secs(), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn an_early_look_meets_a_delayed_request() {
        let queue = Queue::new();
        queue.add_after("a", Duration::from_secs(10));
        queue.add("a");
        assert_eq!(queue.next().await, Some("a"));
        queue.done(&"a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_request_wakes_a_reader_that_sleeps_for_a_later_one() {
        let queue = Queue::new();
        queue.add_after("late", Duration::from_secs(3600));
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.add("now");
        assert_eq!(reader.await.unwrap(), Some("now"));
    }

    #[test]
    fn pauses_double_up_to_a_minute() {
        let rows = [(1, 5), (2, 10), (3, 20), (8, 640), (14, 40_960), (15, 60_000), (u32::MAX, 60_000)];
        for (failures, millis) in rows {
            assert_eq!(backoff(failures), Duration::from_millis(millis), "{failures} failures");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn success_forgets_failures() {
        let queue = Queue::new();
        assert_eq!(queue.retry("a"), 1);
        assert_eq!(queue.retry("a"), 2);
        queue.forget(&"a");
        assert_eq!(queue.retry("a"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn closing_ends_the_readers() {
        let queue: Queue<&str> = Queue::new();
        let reader = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(reader.await.unwrap(), None);
    }
}
