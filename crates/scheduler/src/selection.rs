//! Which nodes a pod wants by their labels and names: `nodeSelector` and node affinity.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

/// The only field a term may select by.
const NAME_FIELD: &str = "metadata.name";

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Above(i64),
    Below(i64),
    /// A requirement that makes no sense is never met (the API refuses them).
    Never,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Requirement {
    key: String,
    test: Test,
}

impl Requirement {
    fn of(requirement: &NodeSelectorRequirement) -> Self {
        let values = || requirement.values.clone().unwrap_or_default();
        let bound = || match values().as_slice() {
            [value] => value.parse::<i64>().ok(),
            _ => None,
        };
        let test = match requirement.operator.as_str() {
            "In" => Test::In(values()),
            "NotIn" => Test::NotIn(values()),
            "Exists" => Test::Exists,
            "DoesNotExist" => Test::DoesNotExist,
            "Gt" => bound().map_or(Test::Never, Test::Above),
            "Lt" => bound().map_or(Test::Never, Test::Below),
            _ => Test::Never,
        };
        Self { key: requirement.key.clone(), test }
    }

    fn is_met(&self, value: Option<&str>) -> bool {
        let number = || value.and_then(|value| value.parse::<i64>().ok());
        match &self.test {
            Test::In(values) => value.is_some_and(|value| values.iter().any(|other| other == value)),
            Test::NotIn(values) => value.is_none_or(|value| values.iter().all(|other| other != value)),
            Test::Exists => value.is_some(),
            Test::DoesNotExist => value.is_none(),
            Test::Above(bound) => number().is_some_and(|number| number > *bound),
            Test::Below(bound) => number().is_some_and(|number| number < *bound),
            Test::Never => false,
        }
    }
}

/// All of its requirements must be met. A term without any matches no node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Term {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Term {
    fn of(term: &NodeSelectorTerm) -> Self {
        let read = |requirements: &Option<Vec<NodeSelectorRequirement>>| {
            requirements.iter().flatten().map(Requirement::of).collect()
        };
        Self { labels: read(&term.match_expressions), fields: read(&term.match_fields) }
    }

    fn matches(&self, labels: &BTreeMap<String, String>, name: &str) -> bool {
        let by_label =
            |requirement: &Requirement| requirement.is_met(labels.get(&requirement.key).map(String::as_str));
        let by_field =
            |requirement: &Requirement| requirement.key == NAME_FIELD && requirement.is_met(Some(name));
        !(self.labels.is_empty() && self.fields.is_empty())
            && self.labels.iter().all(by_label)
            && self.fields.iter().all(by_field)
    }

    /// The only names this term can match, when it says so.
    fn names(&self) -> Option<&[String]> {
        self.fields.iter().find_map(|requirement| match &requirement.test {
            Test::In(names) if requirement.key == NAME_FIELD => Some(names.as_slice()),
            _ => None,
        })
    }
}

/// A pod's wishes about nodes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Selection {
    /// `nodeSelector`: label and value, all must be there.
    labels: Vec<(String, String)>,
    /// Required affinity: one term must match. `None` when there is no such affinity.
    required: Option<Vec<Term>>,
    /// Preferred affinity with its weights.
    preferred: Vec<(i64, Term)>,
}

impl Selection {
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        Self {
            labels: spec
                .node_selector
                .iter()
                .flatten()
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
            required: affinity
                .and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref())
                .map(|selector| selector.node_selector_terms.iter().map(Term::of).collect()),
            preferred: affinity
                .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref())
                .into_iter()
                .flatten()
                .filter(|term| term.weight > 0)
                .map(|term| (i64::from(term.weight), Term::of(&term.preference)))
                .collect(),
        }
    }

    /// Whether the node is allowed at all.
    pub(crate) fn admits(&self, labels: &BTreeMap<String, String>, name: &str) -> bool {
        self.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.required.as_ref().is_none_or(|terms| terms.iter().any(|term| term.matches(labels, name)))
    }

    /// How much of what is preferred the node has, out of `scale`. Measured against the pod's own
    /// weights and not, as in kube-scheduler, against the best node: so the score of a node does not
    /// change when another node does, and can be kept.
    pub(crate) fn preference(&self, labels: &BTreeMap<String, String>, name: &str, scale: i64) -> i64 {
        let total: i64 = self.preferred.iter().map(|(weight, _)| weight).sum();
        if total == 0 {
            return 0;
        }
        let met: i64 = self
            .preferred
            .iter()
            .filter(|(_, term)| term.matches(labels, name))
            .map(|(weight, _)| weight)
            .sum();
        met * scale / total
    }

    /// The label keys whose values matter here.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &str> {
        let expressions =
            self.terms().flat_map(|term| &term.labels).map(|requirement| requirement.key.as_str());
        self.labels.iter().map(|(key, _)| key.as_str()).chain(expressions)
    }

    /// Whether the node's name matters, so that nodes alike in all else are not alike.
    pub(crate) fn depends_on_name(&self) -> bool {
        self.terms().any(|term| !term.fields.is_empty())
    }

    /// The only nodes that can be admitted, when the selection names them, as a DaemonSet's pods do.
    pub(crate) fn named_nodes(&self) -> Option<BTreeSet<&str>> {
        let mut names = BTreeSet::new();
        for term in self.required.as_ref()? {
            names.extend(term.names()?.iter().map(String::as_str));
        }
        Some(names)
    }

    fn terms(&self) -> impl Iterator<Item = &Term> {
        self.required.iter().flatten().chain(self.preferred.iter().map(|(_, term)| term))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn selection(spec: Value) -> Selection {
        let mut spec = spec;
        spec["containers"] = json!([]);
        Selection::of(&serde_json::from_value(spec).expect("a pod spec"))
    }

    fn requiring(terms: Value) -> Selection {
        selection(json!({"affinity": {"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms},
        }}}))
    }

    fn labels() -> BTreeMap<String, String> {
        [("zone", "a"), ("cores", "8")].map(|(key, value)| (key.to_string(), value.to_string())).into()
    }

    #[test]
    fn a_single_requirement() {
        let rows = [
            (json!({"key": "zone", "operator": "In", "values": ["a", "b"]}), true),
            (json!({"key": "zone", "operator": "In", "values": ["b"]}), false),
            (json!({"key": "zone", "operator": "NotIn", "values": ["b"]}), true),
            (json!({"key": "zone", "operator": "NotIn", "values": ["a"]}), false),
            (json!({"key": "none", "operator": "NotIn", "values": ["a"]}), true),
            (json!({"key": "zone", "operator": "Exists"}), true),
            (json!({"key": "none", "operator": "Exists"}), false),
            (json!({"key": "none", "operator": "DoesNotExist"}), true),
            (json!({"key": "cores", "operator": "Gt", "values": ["7"]}), true),
            (json!({"key": "cores", "operator": "Gt", "values": ["8"]}), false),
            (json!({"key": "cores", "operator": "Lt", "values": ["9"]}), true),
            (json!({"key": "zone", "operator": "Lt", "values": ["9"]}), false),
            (json!({"key": "cores", "operator": "Lt", "values": ["many"]}), false),
            (json!({"key": "zone", "operator": "Like", "values": ["a"]}), false),
        ];
        for (requirement, expected) in rows {
            let selection = requiring(json!([{"matchExpressions": [requirement]}]));
            assert_eq!(selection.admits(&labels(), "n1"), expected, "{requirement}");
        }
    }

    #[test]
    fn one_term_is_enough_and_all_of_it_is_needed() {
        let zone = json!({"key": "zone", "operator": "In", "values": ["a"]});
        let other = json!({"key": "zone", "operator": "In", "values": ["b"]});
        let rows = [
            (json!([{"matchExpressions": [other]}, {"matchExpressions": [zone]}]), true),
            (json!([{"matchExpressions": [zone, other]}]), false),
            (json!([{}]), false),
            (json!([]), false),
        ];
        for (terms, expected) in rows {
            assert_eq!(requiring(terms.clone()).admits(&labels(), "n1"), expected, "{terms}");
        }
    }

    #[test]
    fn a_node_selector_is_required_besides() {
        assert!(selection(json!({"nodeSelector": {"zone": "a"}})).admits(&labels(), "n1"));
        assert!(!selection(json!({"nodeSelector": {"zone": "a", "none": ""}})).admits(&labels(), "n1"));
    }

    #[test]
    fn names_are_known_when_every_term_gives_them() {
        let field = json!({"key": "metadata.name", "operator": "In", "values": ["n1"]});
        let named = requiring(json!([{"matchFields": [field]}]));
        assert!(named.admits(&labels(), "n1"));
        assert!(!named.admits(&labels(), "n2"));
        assert_eq!(named.named_nodes(), Some(BTreeSet::from(["n1"])));
        assert!(named.depends_on_name());

        let open = requiring(json!([
            {"matchFields": [field]},
            {"matchExpressions": [{"key": "zone", "operator": "Exists"}]},
        ]));
        assert_eq!(open.named_nodes(), None);
        assert!(open.depends_on_name());
    }

    #[test]
    fn preference_is_the_share_of_the_weights() {
        let selection = selection(json!({"affinity": {"nodeAffinity": {
            "preferredDuringSchedulingIgnoredDuringExecution": [
                {"weight": 30, "preference": {"matchExpressions": [{"key": "zone", "operator": "Exists"}]}},
                {"weight": 10, "preference": {"matchExpressions": [{"key": "none", "operator": "Exists"}]}},
            ],
        }}}));
        assert_eq!(selection.preference(&labels(), "n1", 1000), 750);
        assert_eq!(selection.preference(&BTreeMap::new(), "n1", 1000), 0);
        assert_eq!(Selection::default().preference(&labels(), "n1", 1000), 0);
    }
}
