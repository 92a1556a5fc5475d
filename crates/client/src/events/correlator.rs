//! Which occurrences become Events: pure bookkeeping with the clock as an input.
//!
//! The rules and numbers are those of client-go's event correlator, so that users of kubectl see what
//! they are used to: the same occurrence again raises a count, many similar ones become one, and an
//! object that never stops talking is cut off by a token bucket.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;

/// How many different messages of one object and reason become Events of their own ...
const SIMILAR_MESSAGES: usize = 10;
/// ... within this many seconds, before the rest is combined.
const SIMILAR_SECONDS: i64 = 600;
/// Writes an object may cause at once ...
const BURST: f64 = 25.0;
/// ... and the seconds after which it may cause one more.
const SECONDS_PER_TOKEN: f64 = 300.0;
/// Entries remembered per table. Past it the older half is forgotten, at the worst price of an Event
/// that is written twice.
const REMEMBERED: usize = 4096;
/// The longest name of an Event, the limit of a DNS subdomain.
const NAME_LIMIT: usize = 253;
/// The longest message the API takes.
const MESSAGE_LIMIT: usize = 1024;

/// Something that happened.
pub(crate) struct Occurrence {
    pub(crate) object: ObjectReference,
    pub(crate) type_: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) at: Timestamp,
}

impl Occurrence {
    /// Where the Event lives: with its object, or in `default` when the object is cluster-scoped.
    pub(crate) fn namespace(&self) -> &str {
        match self.object.namespace.as_deref() {
            Some(namespace) if !namespace.is_empty() => namespace,
            _ => "default",
        }
    }

    fn subject(&self) -> Subject {
        let object = &self.object;
        [&object.kind, &object.namespace, &object.name, &object.uid]
            .map(|field| field.clone().unwrap_or_default())
    }

    fn group(&self) -> Group {
        let field = self.object.field_path.clone().unwrap_or_default();
        (self.subject(), field, self.type_.clone(), self.reason.clone())
    }
}

/// An Event as it should be now.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) message: String,
    /// 1 for an Event that does not exist yet.
    pub(crate) count: i32,
    pub(crate) first: Timestamp,
}

/// An object: kind, namespace, name, uid.
type Subject = [String; 4];
/// Occurrences that differ in nothing but the message.
type Group = (Subject, String, String, String);

#[derive(Default)]
pub(crate) struct Correlator {
    series: Table<(Group, String), Series>,
    similar: Table<Group, HashSet<String>>,
    buckets: Table<Subject, Bucket>,
    last_suffix: i128,
}

impl Correlator {
    /// What to write for an occurrence, if anything.
    pub(crate) fn observe(&mut self, occurrence: &Occurrence) -> Option<Series> {
        let at = occurrence.at;
        let (key, message) = self.combine(occurrence);
        let series = match self.series.get(&key, at) {
            Some(series) => {
                series.count = series.count.saturating_add(1);
                series.message = message;
                series.clone()
            }
            None => {
                let series = Series { name: self.name(occurrence), message, count: 1, first: at };
                self.series.put(key, series.clone(), at);
                series
            }
        };
        self.may_write(occurrence).then_some(series)
    }

    /// The Event of this occurrence could not be written: the next one like it starts anew.
    pub(crate) fn forget(&mut self, occurrence: &Occurrence) {
        let (key, _) = self.combine(occurrence);
        self.series.entries.remove(&key);
    }

    /// The series an occurrence belongs to, and the message it has there.
    fn combine(&mut self, occurrence: &Occurrence) -> ((Group, String), String) {
        let group = occurrence.group();
        let message = truncated(&occurrence.message, MESSAGE_LIMIT);
        let oldest = occurrence.at.as_second() - SIMILAR_SECONDS;
        if self.similar.entries.get(&group).is_some_and(|(_, used)| used.as_second() < oldest) {
            self.similar.entries.remove(&group);
        }
        let seen = match self.similar.get(&group, occurrence.at) {
            Some(messages) => {
                if messages.len() <= SIMILAR_MESSAGES {
                    messages.insert(message.to_string());
                }
                messages.len()
            }
            None => {
                self.similar.put(group.clone(), HashSet::from([message.to_string()]), occurrence.at);
                1
            }
        };
        if seen > SIMILAR_MESSAGES {
            let combined = format!("(combined from similar events): {message}");
            return ((group, String::new()), truncated(&combined, MESSAGE_LIMIT).to_string());
        }
        ((group, message.to_string()), message.to_string())
    }

    fn may_write(&mut self, occurrence: &Occurrence) -> bool {
        let subject = occurrence.subject();
        if let Some(bucket) = self.buckets.get(&subject, occurrence.at) {
            return bucket.take(occurrence.at);
        }
        let mut bucket = Bucket { tokens: BURST, filled: occurrence.at };
        let allowed = bucket.take(occurrence.at);
        self.buckets.put(subject, bucket, occurrence.at);
        allowed
    }

    /// `<object>.<hex>`, the hex being the time in nanoseconds, made unique within this recorder.
    fn name(&mut self, occurrence: &Occurrence) -> String {
        self.last_suffix = occurrence.at.as_nanosecond().max(self.last_suffix + 1);
        let suffix = format!(".{:x}", self.last_suffix);
        let object = occurrence.object.name.as_deref().unwrap_or_default();
        format!("{}{suffix}", truncated(object, NAME_LIMIT - suffix.len()))
    }
}

/// At most `limit` bytes of `text`, never cutting a character.
fn truncated(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

impl Bucket {
    fn take(&mut self, now: Timestamp) -> bool {
        let seconds = (now.as_millisecond() - self.filled.as_millisecond()).max(0) as f64 / 1000.0;
        self.tokens = (self.tokens + seconds / SECONDS_PER_TOKEN).min(BURST);
        self.filled = now;
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }
}

/// A map that remembers when an entry was used last and forgets the oldest when it grows too long.
struct Table<K, V> {
    entries: HashMap<K, (V, Timestamp)>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { entries: HashMap::new() }
    }
}

impl<K: Eq + std::hash::Hash, V> Table<K, V> {
    fn get(&mut self, key: &K, now: Timestamp) -> Option<&mut V> {
        let (value, used) = self.entries.get_mut(key)?;
        *used = now;
        Some(value)
    }

    fn put(&mut self, key: K, value: V, now: Timestamp) {
        if self.entries.len() >= REMEMBERED {
            let mut times: Vec<Timestamp> = self.entries.values().map(|(_, used)| *used).collect();
            let (_, middle, _) = times.select_nth_unstable(REMEMBERED / 2);
            let middle = *middle;
            self.entries.retain(|_, (_, used)| *used > middle);
        }
        self.entries.insert(key, (value, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn occurrence(object: &str, message: &str, second: i64) -> Occurrence {
        Occurrence {
            object: ObjectReference {
                kind: Some("Pod".into()),
                namespace: Some("ns".into()),
                name: Some(object.into()),
                ..ObjectReference::default()
            },
            type_: "Normal".into(),
            reason: "Started".into(),
            message: message.into(),
            at: at(second),
        }
    }

    #[test]
    fn the_same_again_raises_the_count() {
        let mut correlator = Correlator::default();
        let first = correlator.observe(&occurrence("web", "hello", 0)).unwrap();
        assert_eq!(first.name, format!("web.{:x}", at(0).as_nanosecond()));
        assert_eq!(first.count, 1);
        let second = correlator.observe(&occurrence("web", "hello", 5)).unwrap();
        assert_eq!(second, Series { count: 2, ..first });
    }

    #[test]
    fn different_events_of_one_moment_have_different_names() {
        let mut correlator = Correlator::default();
        let first = correlator.observe(&occurrence("web", "one", 0)).unwrap();
        let second = correlator.observe(&occurrence("web", "two", 0)).unwrap();
        assert_ne!(first.name, second.name);
    }

    #[test]
    fn many_similar_messages_become_one_event() {
        let mut correlator = Correlator::default();
        for index in 0..10 {
            let series = correlator.observe(&occurrence("web", &format!("try {index}"), index)).unwrap();
            assert_eq!((series.message, series.count), (format!("try {index}"), 1));
        }
        for (count, index) in (1..).zip(10..13) {
            let series = correlator.observe(&occurrence("web", &format!("try {index}"), index)).unwrap();
            assert_eq!(series.message, format!("(combined from similar events): try {index}"));
            assert_eq!(series.count, count);
        }
        let later = correlator.observe(&occurrence("web", "try 99", 13 + SIMILAR_SECONDS)).unwrap();
        assert_eq!((later.message.as_str(), later.count), ("try 99", 1));
    }

    #[test]
    fn an_object_that_never_stops_is_cut_off_and_others_are_not() {
        let mut correlator = Correlator::default();
        let written =
            (0..100).filter(|_| correlator.observe(&occurrence("noisy", "again", 0)).is_some()).count();
        assert_eq!(written, 25);
        assert!(correlator.observe(&occurrence("quiet", "once", 0)).is_some());
        assert!(correlator.observe(&occurrence("noisy", "again", 299)).is_none());
        let next = correlator.observe(&occurrence("noisy", "again", 301)).expect("one token has come back");
        assert_eq!(next.count, 102);
    }

    #[test]
    fn a_failed_write_starts_anew() {
        let mut correlator = Correlator::default();
        correlator.observe(&occurrence("web", "hello", 0));
        correlator.forget(&occurrence("web", "hello", 0));
        assert_eq!(correlator.observe(&occurrence("web", "hello", 1)).unwrap().count, 1);
    }

    #[test]
    fn memory_is_bounded() {
        let mut correlator = Correlator::default();
        for index in 0..20_000 {
            correlator.observe(&occurrence(&format!("pod-{index}"), "hello", index));
        }
        assert!(correlator.series.entries.len() <= REMEMBERED);
        assert!(correlator.similar.entries.len() <= REMEMBERED);
        assert!(correlator.buckets.entries.len() <= REMEMBERED);
    }

    #[test]
    fn long_names_and_messages_are_cut_between_characters() {
        let mut correlator = Correlator::default();
        let series = correlator.observe(&occurrence(&"n".repeat(300), &"ä".repeat(600), 0)).unwrap();
        assert_eq!(series.name.len(), NAME_LIMIT);
        assert_eq!(series.message.len(), MESSAGE_LIMIT);
    }
}
