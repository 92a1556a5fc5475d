//! How often watchers are woken.
//!
//! To wake thousands of watchers for one change takes tens of milliseconds of a core, whether each then finds one change or
//! twenty. So after they were told they rest, the longer the more of them there are, and what changes meanwhile goes out
//! together: at some hundred changes a second this is the difference between an event that is late by the rest and a queue
//! that only grows. A few watchers rest for less than a timer can measure, and the first change after a rest is told at
//! once.

use std::time::Duration;

use tokio::time::Instant;

/// What it takes, about, to wake a watcher and to write to its connection.
const PER_WATCHER: Duration = Duration::from_micros(10);
/// The longest rest: what an event may be late for the good of all.
const MAX: Duration = Duration::from_millis(50);
/// Shorter rests are not worth a timer.
const MIN: Duration = Duration::from_millis(1);

/// What to do about a change.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Turn {
    /// Tell of it.
    Now,
    /// Tell of it then, and of all that comes before.
    At(Instant),
    /// Nothing: somebody waits to tell already.
    Taken,
}

/// When the watchers of a resource were last told.
#[derive(Debug, Default)]
pub(super) struct Pace {
    told: Option<Instant>,
    /// Somebody waits for the end of the rest.
    taken: bool,
}

impl Pace {
    /// There is a change; as many watchers would hear of it.
    pub(super) fn changed(&mut self, now: Instant, watchers: usize) -> Turn {
        if self.taken {
            return Turn::Taken;
        }
        let rest = PER_WATCHER.saturating_mul(u32::try_from(watchers).unwrap_or(u32::MAX)).min(MAX);
        match self.told.map(|told| told + rest) {
            Some(end) if rest >= MIN && end > now => {
                self.taken = true;
                Turn::At(end)
            }
            _ => {
                self.told = Some(now);
                Turn::Now
            }
        }
    }

    /// Who waited tells them now.
    pub(super) fn rested(&mut self, now: Instant) {
        self.taken = false;
        self.told = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_watchers_the_longer_they_rest() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        for (watchers, second, expected) in [
            (0, 0, Turn::Now),
            (50, 0, Turn::Now),
            (1_000, 1, Turn::At(at(10))),
            (1_000, 10, Turn::Now),
            (5_000, 20, Turn::At(at(50))),
            (5_000, 100, Turn::Now),
            (1_000_000, 49, Turn::At(at(50))),
        ] {
            let mut pace = Pace::default();
            assert_eq!(pace.changed(at(0), watchers), Turn::Now, "the first is told at once");
            assert_eq!(pace.changed(at(second), watchers), expected, "{watchers} after {second} ms");
        }
    }

    #[test]
    fn one_waits_for_all() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::default();
        assert_eq!(pace.changed(at(0), 2_000), Turn::Now);
        assert_eq!(pace.changed(at(5), 2_000), Turn::At(at(20)));
        assert_eq!(pace.changed(at(6), 2_000), Turn::Taken);
        // The timer may be late; until it fires nobody else is to tell.
        assert_eq!(pace.changed(at(30), 2_000), Turn::Taken);
        pace.rested(at(31));
        assert_eq!(pace.changed(at(32), 2_000), Turn::At(at(51)));
    }
}
