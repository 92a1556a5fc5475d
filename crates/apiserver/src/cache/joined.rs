//! The lines that were last made for many watchers, in one piece.
//!
//! Watchers that want the same read the same events from the same place, one after the other. The first of them joins the
//! lines; the others take the piece, which is the same memory for all connections.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

/// Lines of up to this many bytes are joined; a slow client may hold as much. More are sent line by line.
pub(crate) const MAX: usize = 64 << 10;

/// With fewer watchers of a resource each makes its own lines.
pub(crate) const CROWD: usize = 16;

/// What a watcher wants: all that happens from a place on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Wish<'a> {
    /// Revision up to which it has seen everything.
    pub(crate) cursor: u64,
    /// Prefix of the keys.
    pub(crate) prefix: &'a str,
    /// In protobuf.
    pub(crate) protobuf: bool,
}

/// Some lines.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Lines {
    pub(crate) bytes: Bytes,
    /// How many there are, at least one.
    pub(crate) count: u64,
    /// Revision up to which they tell everything.
    pub(crate) reached: u64,
}

/// Remembers the latest answer.
#[derive(Debug, Default)]
pub(super) struct Joined(Mutex<Option<Answer>>);

#[derive(Debug)]
struct Answer {
    cursor: u64,
    prefix: Box<str>,
    protobuf: bool,
    lines: Lines,
}

impl Joined {
    pub(super) fn get(&self, wish: Wish<'_>) -> Option<Lines> {
        let latest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = latest.as_ref()?;
        let known = Wish { cursor: answer.cursor, prefix: &answer.prefix, protobuf: answer.protobuf };
        (known == wish).then(|| answer.lines.clone())
    }

    pub(super) fn put(&self, wish: Wish<'_>, lines: Lines) {
        let answer =
            Answer { cursor: wish.cursor, prefix: wish.prefix.into(), protobuf: wish.protobuf, lines };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_wish_gets_the_lines() {
        let wish = Wish { cursor: 5, prefix: "/pods/a/", protobuf: false };
        let lines = Lines { bytes: Bytes::from_static(b"x\n"), count: 1, reached: 9 };
        let joined = Joined::default();
        assert_eq!(joined.get(wish), None);
        joined.put(wish, lines.clone());
        for (other, expected) in [
            (wish, Some(lines.clone())),
            (Wish { cursor: 6, ..wish }, None),
            (Wish { prefix: "/pods/", ..wish }, None),
            (Wish { protobuf: true, ..wish }, None),
        ] {
            assert_eq!(joined.get(other), expected, "{other:?}");
        }
    }
}
