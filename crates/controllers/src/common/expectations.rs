//! What a controller has created or deleted and its own copy does not show yet.
//!
//! A loop that counts objects in a copy that lags behind would create them a second time. It
//! therefore notes every object the server confirmed and does not count again before the copy shows
//! them all. Upstream counts events per owner; noting the objects themselves says exactly which one is
//! missing and survives merged events.
//!
//! One thing a copy never shows: an object that came and went between two events. After
//! [`DOUBT_AFTER`] the missing objects are therefore looked up on the server, by whoever holds this.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sampan_client::ObjectKey;
use tokio::time::Instant;

/// How long a created object may be missing in the copy before the server is asked about it. The
/// copy normally lags by less than a millisecond in one process and by less than a second elsewhere.
pub(crate) const DOUBT_AFTER: Duration = Duration::from_secs(2);

/// How an object looks in the copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Not there, or another object under the same name.
    Absent,
    /// There, and nobody has asked for its deletion.
    Present,
    /// There, and being deleted.
    Deleting,
}

/// The expectations of all owners of one controller.
#[derive(Default)]
pub(crate) struct Expectations(Mutex<HashMap<ObjectKey, Expected>>);

#[derive(Default)]
struct Expected {
    /// Name and uid of created objects, with the moment of creation.
    created: HashMap<(String, String), Instant>,
    /// Name and uid of deleted objects.
    deleted: HashMap<(String, String), Instant>,
}

/// Where an owner stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// The copy shows everything; it may be counted.
    Settled,
    /// Events will come.
    Waiting,
    /// These objects (name and uid) have been missing for too long: ask the server.
    Doubtful(Vec<(String, String)>),
}

impl Expectations {
    /// The server has created an object for `owner`.
    pub(crate) fn created(&self, owner: &ObjectKey, name: &str, uid: &str) {
        let mut owners = self.owners();
        let expected = owners.entry(owner.clone()).or_default();
        expected.created.insert((name.to_string(), uid.to_string()), Instant::now());
    }

    /// The server has accepted the deletion of an object of `owner`.
    pub(crate) fn deleted(&self, owner: &ObjectKey, name: &str, uid: &str) {
        let mut owners = self.owners();
        let expected = owners.entry(owner.clone()).or_default();
        expected.deleted.insert((name.to_string(), uid.to_string()), Instant::now());
    }

    /// Checks what is expected for `owner` against the copy, forgetting what has come true. `look`
    /// tells how the object with a name and uid looks.
    pub(crate) fn check(&self, owner: &ObjectKey, look: impl Fn(&str, &str) -> Seen) -> Standing {
        let mut owners = self.owners();
        let Some(expected) = owners.get_mut(owner) else { return Standing::Settled };
        expected.created.retain(|(name, uid), _| look(name, uid) == Seen::Absent);
        expected.deleted.retain(|(name, uid), _| look(name, uid) == Seen::Present);
        if expected.created.is_empty() && expected.deleted.is_empty() {
            owners.remove(owner);
            return Standing::Settled;
        }
        let doubtful: Vec<_> = expected
            .created
            .iter()
            .chain(&expected.deleted)
            .filter(|(_, since)| since.elapsed() >= DOUBT_AFTER)
            .map(|(object, _)| object.clone())
            .collect();
        if doubtful.is_empty() { Standing::Waiting } else { Standing::Doubtful(doubtful) }
    }

    /// The server says that the copy is right about this object after all.
    pub(crate) fn give_up(&self, owner: &ObjectKey, object: &(String, String)) {
        if let Some(expected) = self.owners().get_mut(owner) {
            expected.created.remove(object);
            expected.deleted.remove(object);
        }
    }

    /// The owner is gone.
    pub(crate) fn forget(&self, owner: &ObjectKey) {
        self.owners().remove(owner);
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<ObjectKey, Expected>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counting_waits_until_the_copy_has_caught_up() {
        let owner = ObjectKey::new("ns", "web");
        let expectations = Expectations::default();
        assert_eq!(expectations.check(&owner, |_, _| Seen::Absent), Standing::Settled);
        expectations.created(&owner, "a", "1");
        expectations.deleted(&owner, "b", "2");
        let rows = [
            ("nothing shown", Seen::Absent, Seen::Present, Standing::Waiting),
            ("creation shown", Seen::Present, Seen::Present, Standing::Waiting),
            ("deletion shown as well", Seen::Present, Seen::Deleting, Standing::Settled),
            ("forgotten", Seen::Absent, Seen::Present, Standing::Settled),
        ];
        for (name, a, b, expected) in rows {
            let standing = expectations.check(&owner, |name, _| if name == "a" { a } else { b });
            assert_eq!(standing, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn an_object_that_came_and_went_is_given_up() {
        let owner = ObjectKey::new("ns", "web");
        let expectations = Expectations::default();
        expectations.created(&owner, "a", "1");
        let object = ("a".to_string(), "1".to_string());
        let long_ago = Instant::now() - DOUBT_AFTER;
        expectations.owners().get_mut(&owner).unwrap().created.insert(object.clone(), long_ago);
        let absent = |_: &str, _: &str| Seen::Absent;
        assert_eq!(expectations.check(&owner, absent), Standing::Doubtful(vec![object.clone()]));
        expectations.give_up(&owner, &object);
        assert_eq!(expectations.check(&owner, absent), Standing::Settled);
    }
}
