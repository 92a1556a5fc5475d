//! Who is asked a second time about one object (`reinvocationPolicy: IfNeeded`, KEP-492).
//!
//! All that changes objects runs once in order: the server's own steps, policies, webhooks. If a policy or a webhook has
//! changed something, all of it runs once more, and then those are asked again who wanted it and after whom something
//! was changed. Nobody is asked for the first time in the second round, or a third time.
//!
//! Source: `k8s.io/apiserver/pkg/admission/reinvocation.go` and the contexts of its two plug-ins.

use std::collections::BTreeSet;

use serde_json::Value;

/// What one plug-in remembers of the first round; `K` names whom it asks.
pub(super) struct Reinvocation<K> {
    /// Asked, and would be asked again if something changed now.
    asked: BTreeSet<K>,
    /// To be asked again.
    again: BTreeSet<K>,
    second: bool,
    changed: bool,
    /// What the plug-in left behind, as far as somebody wants to know what others made of it.
    left: Option<Value>,
}

impl<K> Default for Reinvocation<K> {
    fn default() -> Self {
        let (asked, again) = (BTreeSet::new(), BTreeSet::new());
        Self { asked, again, second: false, changed: false, left: None }
    }
}

impl<K: Ord> Reinvocation<K> {
    /// The plug-in begins its second round with this document.
    pub(super) fn next(&mut self, document: Option<&Value>) {
        self.second = true;
        if self.left.as_ref() != document {
            self.again.append(&mut self.asked);
        }
    }

    /// The plug-in has ended its round.
    pub(super) fn end(&mut self, document: Option<&Value>) {
        self.left = document.filter(|_| !self.asked.is_empty()).cloned();
    }

    /// Whether it is somebody's turn in this round.
    pub(super) fn wants(&self, key: &K) -> bool {
        !self.second || self.again.contains(key)
    }

    /// Whether it is the turn of somebody of these in this round.
    pub(super) fn wants_some(&self, of: impl Fn(&K) -> bool) -> bool {
        !self.second || self.again.iter().any(of)
    }

    /// Somebody has changed the document.
    pub(super) fn change(&mut self) {
        self.changed = true;
        self.again.append(&mut self.asked);
    }

    /// Somebody who may be asked again has been asked.
    pub(super) fn ask(&mut self, key: K) {
        self.asked.insert(key);
    }

    /// Whether anybody changed the document so far.
    pub(super) fn changed(&self) -> bool {
        self.changed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_second_round_asks_whom_it_must() {
        let (before, after) = (json!(1), json!(2));
        for (seen, expected) in [(&before, [true, false, false]), (&after, [true, false, true])] {
            let mut round = Reinvocation::default();
            assert!(round.wants(&1));
            round.ask(0);
            round.change();
            round.ask(2);
            round.end(Some(&before));
            assert!(round.changed());
            round.next(Some(seen));
            assert_eq!([0, 1, 2].map(|key| round.wants(&key)), expected, "{seen}");
            assert_eq!([0, 1, 2].map(|key| round.wants_some(|of| *of == key)), expected, "{seen}");
        }
    }
}
