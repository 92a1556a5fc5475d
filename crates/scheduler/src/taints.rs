//! Taints of nodes and tolerations of pods, read out of the API's strings once.

use k8s_openapi::api::core::v1 as core;

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Effect {
    /// Keeps pods away.
    NoSchedule,
    /// Keeps pods away if there is another node.
    PreferNoSchedule,
    /// Keeps pods away and drives out those that are there (which is not the scheduler's work).
    NoExecute,
}

impl Effect {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "NoSchedule" => Some(Self::NoSchedule),
            "PreferNoSchedule" => Some(Self::PreferNoSchedule),
            "NoExecute" => Some(Self::NoExecute),
            _ => None,
        }
    }

    /// Whether an untolerated taint of this effect rules a node out.
    pub(crate) fn is_hard(self) -> bool {
        self != Self::PreferNoSchedule
    }
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Taint {
    key: String,
    value: String,
    pub(crate) effect: Effect,
}

impl Taint {
    /// `None` for an effect that is not known: the API refuses those.
    pub(crate) fn of(taint: &core::Taint) -> Option<Self> {
        Some(Self {
            key: taint.key.clone(),
            value: taint.value.clone().unwrap_or_default(),
            effect: Effect::parse(&taint.effect)?,
        })
    }

    /// What `spec.unschedulable` amounts to: a pod that tolerates this taint may still be placed.
    pub(crate) fn unschedulable() -> Self {
        Self {
            key: "node.kubernetes.io/unschedulable".to_string(),
            value: String::new(),
            effect: Effect::NoSchedule,
        }
    }

    pub(crate) fn is_tolerated(&self, tolerations: &[Toleration]) -> bool {
        tolerations.iter().any(|toleration| toleration.tolerates(self))
    }
}

/// A toleration of a pod. How long it holds (`tolerationSeconds`) concerns eviction only.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Toleration {
    /// `None` for every key.
    key: Option<String>,
    /// `None` for every value.
    value: Option<String>,
    /// `None` for every effect.
    effect: Option<Effect>,
}

impl Toleration {
    /// `None` when operator or effect are not known, so that the toleration tolerates nothing.
    pub(crate) fn of(toleration: &core::Toleration) -> Option<Self> {
        let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
        let effect = match some(&toleration.effect) {
            Some(effect) => Some(Effect::parse(&effect)?),
            None => None,
        };
        let value = match toleration.operator.as_deref() {
            None | Some("" | "Equal") => Some(toleration.value.clone().unwrap_or_default()),
            Some("Exists") => None,
            Some(_) => return None,
        };
        Some(Self { key: some(&toleration.key), value, effect })
    }

    fn tolerates(&self, taint: &Taint) -> bool {
        self.effect.is_none_or(|effect| effect == taint.effect)
            && self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn is_tolerated(toleration: Value) -> bool {
        let taint = json!({"key": "disk", "value": "slow", "effect": "NoSchedule"});
        let taint: core::Taint = serde_json::from_value(taint).expect("a taint");
        let toleration: core::Toleration = serde_json::from_value(toleration).expect("a toleration");
        let tolerations: Vec<_> = Toleration::of(&toleration).into_iter().collect();
        Taint::of(&taint).expect("a known effect").is_tolerated(&tolerations)
    }

    #[test]
    fn tolerations_of_one_taint() {
        let rows = [
            (json!({"operator": "Exists"}), true),
            (json!({"key": "disk", "operator": "Exists"}), true),
            (json!({"key": "disk", "operator": "Exists", "effect": "NoExecute"}), false),
            (json!({"key": "disk", "value": "slow"}), true),
            (json!({"key": "disk", "operator": "Equal", "value": "slow", "effect": "NoSchedule"}), true),
            (json!({"key": "disk", "value": "fast"}), false),
            (json!({"key": "disk"}), false),
            (json!({"key": "other", "operator": "Exists"}), false),
            (json!({"key": "disk", "operator": "Near", "value": "slow"}), false),
            (json!({"key": "disk", "operator": "Exists", "effect": "Never"}), false),
        ];
        for (toleration, expected) in rows {
            assert_eq!(is_tolerated(toleration.clone()), expected, "{toleration}");
        }
    }
}
