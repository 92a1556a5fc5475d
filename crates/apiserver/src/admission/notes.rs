//! What admission says besides yes and no: warnings for the client, annotations for the audit log.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Characters of all warnings of one answer; they travel in headers. Upstream's limit.
const MAX_TOTAL: usize = 4 * 1024;
/// Characters of one warning once there are many. Upstream's limit.
const MAX_WARNING: usize = 256;
/// Annotations kept of one request.
const MAX_ANNOTATIONS: usize = 100;

/// Notes of one request.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    warnings: Vec<String>,
    characters: usize,
    annotations: Vec<(String, String)>,
}

impl Notes {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a warning, shortened when there are many, left out when it was said already or there are too many.
    pub(crate) fn warn(&self, text: &str) {
        let mut inner = self.lock();
        let room = MAX_TOTAL.saturating_sub(inner.characters);
        let length = text.chars().count();
        let text: String =
            if length > room { text.chars().take(MAX_WARNING).collect() } else { text.to_owned() };
        let length = length.min(text.chars().count());
        if text.is_empty() || length > room || inner.warnings.contains(&text) {
            return;
        }
        inner.characters += length;
        inner.warnings.push(text);
    }

    /// Adds an annotation for the audit log.
    pub(crate) fn annotate(&self, key: String, value: String) {
        let mut inner = self.lock();
        if inner.annotations.len() < MAX_ANNOTATIONS && inner.annotations.iter().all(|(k, _)| *k != key) {
            inner.annotations.push((key, value));
        }
    }

    /// Forgets everything, before another attempt.
    pub(crate) fn clear(&self) {
        *self.lock() = Inner::default();
    }

    /// Every warning, in order.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.lock().warnings.clone()
    }

    /// Every annotation, in order.
    pub(crate) fn annotations(&self) -> Vec<(String, String)> {
        self.lock().annotations.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_bounded() {
        let notes = Notes::default();
        notes.warn("a");
        notes.warn("a");
        notes.warn("");
        assert_eq!(notes.warnings(), ["a"]);
        notes.warn(&"x".repeat(5000));
        assert_eq!(notes.warnings()[1].len(), MAX_WARNING);
        for i in 0..1000 {
            notes.warn(&format!("{i:->100}"));
        }
        let total: usize = notes.warnings().iter().map(String::len).sum();
        assert!(total <= MAX_TOTAL && total > MAX_TOTAL - 101, "{total}");
    }

    #[test]
    fn annotations_are_first_come() {
        let notes = Notes::default();
        for value in ["1", "2"] {
            notes.annotate("k".to_owned(), value.to_owned());
        }
        assert_eq!(notes.annotations(), [("k".to_owned(), "1".to_owned())]);
    }
}
