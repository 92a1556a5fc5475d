//! The loop around every reconciler: take a key, look at the world, come again when needed.
//!
//! The loop owns concurrency, retries and back-off; a reconciler owns nothing but its look at the
//! world, must be safe to run twice and to be cut off at any point, and never waits for an event.

use std::error::Error;
use std::fmt::Display;
use std::future::Future;
use std::hash::Hash;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::task::JoinSet;

use crate::queue::Queue;

/// Failures in a row that are taken for lost races (a stale copy, a conflicting write) and not
/// worth an operator's attention.
const QUIET_FAILURES: u32 = 3;

/// When a key wants to be looked at again without an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requeue {
    /// Only when something changes.
    No,
    /// After this time, for conditions that the clock alone makes true.
    After(Duration),
}

/// How one run of a reconciler ended.
enum Outcome<E> {
    Done(Requeue),
    Failed(E),
    Panicked,
}

/// Runs `reconcile` for the keys of `queue`, at most `workers` at a time and never twice at a time
/// for one key, until the queue is closed. Errors and panics are retried with the queue's back-off;
/// the first few in a row are logged for debugging only, since losing a race is part of normal life.
///
/// Dropping the returned future cuts off the runs in progress.
pub async fn run_controller<K, F, R, E>(name: &'static str, workers: usize, queue: Queue<K>, reconcile: F)
where
    K: Clone + Eq + Hash + Display + Send + Sync + 'static,
    F: Fn(K) -> R,
    R: Future<Output = Result<Requeue, E>> + Send + 'static,
    E: Error + Send + 'static,
{
    let mut running: JoinSet<(K, Outcome<E>)> = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(joined) = running.join_next(), if !running.is_empty() => {
                if let Ok((key, outcome)) = joined {
                    settle(name, &queue, key, outcome);
                }
            }
            key = queue.next(), if running.len() < workers.max(1) => {
                let Some(key) = key else { break };
                let run = AssertUnwindSafe(reconcile(key.clone())).catch_unwind();
                running.spawn(async move {
                    let outcome = match run.await {
                        Ok(Ok(requeue)) => Outcome::Done(requeue),
                        Ok(Err(error)) => Outcome::Failed(error),
                        Err(_) => Outcome::Panicked,
                    };
                    (key, outcome)
                });
            }
        }
    }
    while let Some(joined) = running.join_next().await {
        if let Ok((key, outcome)) = joined {
            settle(name, &queue, key, outcome);
        }
    }
}

fn settle<K, E>(name: &'static str, queue: &Queue<K>, key: K, outcome: Outcome<E>)
where
    K: Clone + Eq + Hash + Display,
    E: Error + 'static,
{
    match outcome {
        Outcome::Done(requeue) => {
            queue.forget(&key);
            if let Requeue::After(delay) = requeue {
                queue.add_after(key.clone(), delay);
            }
        }
        Outcome::Failed(error) => {
            let failures = queue.retry(key.clone());
            let error: &(dyn Error + 'static) = &error;
            if failures > QUIET_FAILURES {
                tracing::warn!(controller = name, %key, failures, error, "reconciling failed, will retry");
            } else {
                tracing::debug!(controller = name, %key, failures, error, "reconciling failed, will retry");
            }
        }
        Outcome::Panicked => {
            let failures = queue.retry(key.clone());
            tracing::error!(controller = name, %key, failures, "reconciling panicked, will retry");
        }
    }
    queue.done(&key);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Debug)]
    struct Lost;

    impl Display for Lost {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("lost a race")
        }
    }

    impl Error for Lost {}

    #[tokio::test(start_paused = true)]
    async fn failures_and_panics_are_tried_again() {
        let queue = Queue::new();
        queue.add("a");
        let runs = Arc::new(AtomicUsize::new(0));
        let (closing, counting) = (queue.clone(), Arc::clone(&runs));
        run_controller("test", 1, queue, move |_| {
            let (closing, counting) = (closing.clone(), Arc::clone(&counting));
            async move {
                match counting.fetch_add(1, Ordering::SeqCst) {
                    0 => Err(Lost),
                    1 => panic!("a bug"),
                    2 => Ok(Requeue::After(Duration::from_secs(5))),
                    _ => {
                        closing.close();
                        Ok(Requeue::No)
                    }
                }
            }
        })
        .await;
        assert_eq!(runs.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_runs_at_once_than_workers() {
        let queue = Queue::new();
        for key in 0..8 {
            queue.add(key);
        }
        queue.close();
        let most = Arc::new(Mutex::new((0_usize, 0_usize)));
        let counting = Arc::clone(&most);
        run_controller("test", 3, queue, move |_| {
            let counting = Arc::clone(&counting);
            async move {
                {
                    let mut now = counting.lock().unwrap();
                    now.0 += 1;
                    now.1 = now.1.max(now.0);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                counting.lock().unwrap().0 -= 1;
                Ok::<_, Lost>(Requeue::No)
            }
        })
        .await;
        assert_eq!(*most.lock().unwrap(), (0, 3));
    }
}
