//! When nodes were last heard of, by our own clock: the clocks of other machines may be wrong.
//!
//! Silence proves something only if we were listening. If a look comes much later than it was to come, it was this process
//! that stood still (stopped, starved, migrated), together with the agent of its own machine, and the silence is counted
//! from new.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// How late a look may be. A loaded machine delays timers by less; a stopped process by any time.
const LATE: Duration = Duration::from_secs(2);

/// The signs of life of all nodes.
#[derive(Debug, Default)]
pub(super) struct Heard(HashMap<String, Last>);

#[derive(Clone, Copy, Debug)]
struct Last {
    sign: Instant,
    /// When the node is to be looked at next.
    look: Option<Instant>,
}

impl Heard {
    /// The node appeared or gave a sign of life.
    pub(super) fn from(&mut self, node: &str, now: Instant) {
        match self.0.get_mut(node) {
            Some(last) => last.sign = now,
            None => {
                self.0.insert(node.to_string(), Last { sign: now, look: None });
            }
        }
    }

    /// Whether the node is known.
    pub(super) fn knows(&self, node: &str) -> bool {
        self.0.contains_key(node)
    }

    /// How long the node has been silent, for a look at it that happens now. The silence of an unknown node begins now.
    pub(super) fn silence(&mut self, node: &str, now: Instant) -> Duration {
        if !self.knows(node) {
            self.from(node, now);
        }
        let Some(last) = self.0.get_mut(node) else { return Duration::ZERO };
        if last.look.take().is_some_and(|look| now > look + LATE) {
            last.sign = now;
        }
        now.saturating_duration_since(last.sign)
    }

    /// The node will be looked at again at this moment.
    pub(super) fn look_at(&mut self, node: &str, moment: Instant) {
        if let Some(last) = self.0.get_mut(node) {
            last.look = Some(moment);
        }
    }

    /// The node is gone.
    pub(super) fn forget(&mut self, node: &str) {
        self.0.remove(node);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_counts_only_while_we_listen() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        // When it was heard, when a look was promised, when the look comes, the silence.
        type Row = (&'static str, Option<u64>, Option<u64>, u64, u64);
        let rows: [Row; 6] = [
            ("never heard of", None, None, 50, 0),
            ("heard of", Some(10), None, 50, 40),
            ("a look in time", Some(10), Some(49), 50, 40),
            ("a look before its time", Some(10), Some(60), 50, 40),
            ("a look somewhat late", Some(10), Some(48), 50, 40),
            ("a look too late", Some(10), Some(47), 50, 0),
        ];
        for (name, sign, look, now, expected) in rows {
            let mut heard = Heard::default();
            if let Some(sign) = sign {
                heard.from("n", at(sign));
            }
            if let Some(look) = look {
                heard.look_at("n", at(look));
            }
            assert_eq!(heard.silence("n", at(now)).as_secs(), expected, "{name}");
            assert!(heard.knows("n"), "{name}");
        }
    }

    #[test]
    fn a_late_look_counts_once_and_nodes_are_forgotten() {
        let start = Instant::now();
        let at = |second: u64| start + Duration::from_secs(second);
        let mut heard = Heard::default();
        heard.from("n", at(0));
        heard.look_at("n", at(30));
        assert_eq!(heard.silence("n", at(100)).as_secs(), 0);
        assert_eq!(heard.silence("n", at(140)).as_secs(), 40);
        heard.forget("n");
        assert!(!heard.knows("n"));
    }
}
