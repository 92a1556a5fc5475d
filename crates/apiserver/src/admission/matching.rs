//! Which requests a policy or a webhook wants to see: rules, exclusions, selectors. All pure.
//!
//! `matchConstraints` and `matchResources` of policies and their bindings are read here; the rules of a webhook are the
//! same rules without names.
//!
//! Source of the rules: `k8s.io/apiserver/pkg/admission/plugin/{policy/matching,webhook/predicates}`.

use sampan_api::selector::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::Operation;

/// A request as rules see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Question<'a> {
    pub(crate) operation: Operation,
    pub(crate) group: &'a str,
    pub(crate) version: &'a str,
    /// Other versions in which the same resource is served.
    pub(crate) other_versions: &'a [&'a str],
    pub(crate) resource: &'a str,
    /// Empty for the object itself.
    pub(crate) subresource: &'a str,
    /// Empty outside of namespaces, and for a namespace itself.
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
}

/// Operations on resources; `*` stands for all.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    resource_names: Vec<String>,
    scope: Option<String>,
}

fn holds(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// Whether the rule speaks of the request, were it made in `version`.
    pub(crate) fn matches(&self, question: &Question<'_>, version: &str) -> bool {
        holds(&self.operations, question.operation.as_str())
            && holds(&self.api_groups, question.group)
            && holds(&self.api_versions, version)
            && self.matches_scope(question)
            && self.matches_resource(question)
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == question.name))
    }

    fn matches_scope(&self, question: &Question<'_>) -> bool {
        match self.scope.as_deref() {
            Some("Namespaced") => !question.namespace.is_empty(),
            Some("Cluster") => question.namespace.is_empty(),
            _ => true,
        }
    }

    /// `pods`, `pods/log`, `pods/*` (with the pods themselves), `*/scale`, `*` and `*/*`.
    fn matches_resource(&self, question: &Question<'_>) -> bool {
        self.resources.iter().any(|wanted| {
            let (of, part) = wanted.split_once('/').unwrap_or((wanted, ""));
            (of == "*" || of == question.resource) && (part == "*" || part == question.subresource)
        })
    }
}

/// `MatchResources` of a policy or a binding.
#[derive(Clone, Debug, Default)]
pub(crate) struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    namespaces: LabelSelector,
    objects: LabelSelector,
    /// `matchPolicy: Equivalent`: rules may name another version of the resource.
    equivalent: bool,
    /// Whether no rules mean every request (bindings) or none (policies).
    no_rules_match: bool,
}

/// The labels a request is selected by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Labels<'a> {
    /// The object as it becomes; `None` for a delete.
    pub(crate) object: Option<&'a Value>,
    /// The object as it was.
    pub(crate) old: Option<&'a Value>,
    /// The namespace it is in, or the namespace it is; null outside of namespaces.
    pub(crate) namespace: &'a Value,
}

impl Matcher {
    /// Reads `matchConstraints` of a policy: without rules it matches nothing.
    pub(crate) fn of_policy(resources: &Value) -> Self {
        Self::read(resources, false)
    }

    /// Reads `matchResources` of a binding: what it leaves out, the policy decides.
    pub(crate) fn of_binding(resources: &Value) -> Self {
        Self::read(resources, true)
    }

    fn read(resources: &Value, no_rules_match: bool) -> Self {
        let rules = |field: &str| -> Vec<Rule> {
            let rules = resources[field].as_array().into_iter().flatten();
            rules.filter_map(|rule| Rule::deserialize(rule).ok()).collect()
        };
        // No selector selects everything here.
        let selector = |field: &str| match &resources[field] {
            Value::Null => LabelSelector::default(),
            selector => LabelSelector::from_object(Some(selector)),
        };
        Self {
            rules: rules("resourceRules"),
            excluded: rules("excludeResourceRules"),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            equivalent: resources["matchPolicy"] != "Exact",
            no_rules_match,
        }
    }

    /// Whether a request is meant.
    pub(crate) fn matches(&self, question: &Question<'_>, labels: &Labels<'_>) -> bool {
        !self.any(&self.excluded, question)
            && (self.any(&self.rules, question) || self.rules.is_empty() && self.no_rules_match)
            && self.selects_namespace(labels.namespace)
            && self.selects_object(labels)
    }

    fn any(&self, rules: &[Rule], question: &Question<'_>) -> bool {
        let mut versions = std::iter::once(question.version)
            .chain(question.other_versions.iter().copied().filter(|_| self.equivalent));
        versions.any(|version| rules.iter().any(|rule| rule.matches(question, version)))
    }

    /// What is in no namespace is not held back by a selector of namespaces.
    fn selects_namespace(&self, namespace: &Value) -> bool {
        namespace.is_null()
            || self.namespaces.is_empty()
            || self.namespaces.matches_value(namespace.pointer("/metadata/labels"))
    }

    /// The object as it was or as it becomes. What has no metadata has no labels and is never selected.
    fn selects_object(&self, labels: &Labels<'_>) -> bool {
        self.objects.is_empty()
            || [labels.object, labels.old].into_iter().flatten().any(|document| {
                document["metadata"].is_object()
                    && self.objects.matches_value(document.pointer("/metadata/labels"))
            })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn question<'a>(
        operation: Operation,
        resource: &'a str,
        subresource: &'a str,
        namespace: &'a str,
    ) -> Question<'a> {
        Question {
            operation,
            group: "apps",
            version: "v1",
            other_versions: &["v1beta1"],
            resource,
            subresource,
            namespace,
            name: "x",
        }
    }

    #[test]
    fn rules() {
        use Operation::{Connect, Create, Delete, Update};
        let rule = |operations: Value, resources: Value, more: Value| {
            let mut rule = json!({"operations": operations, "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": resources});
            for (key, value) in more.as_object().into_iter().flatten() {
                rule[key] = value.clone();
            }
            rule
        };
        let none = json!({});
        let rows = [
            (
                rule(json!(["CREATE"]), json!(["deployments"]), none.clone()),
                (Create, "deployments", "", "n"),
                true,
            ),
            (
                rule(json!(["CREATE"]), json!(["deployments"]), none.clone()),
                (Update, "deployments", "", "n"),
                false,
            ),
            (rule(json!(["*"]), json!(["*"]), none.clone()), (Delete, "deployments", "", "n"), true),
            (rule(json!(["*"]), json!(["*"]), none.clone()), (Update, "deployments", "scale", "n"), false),
            (rule(json!(["*"]), json!(["*/*"]), none.clone()), (Update, "deployments", "scale", "n"), true),
            (
                rule(json!(["*"]), json!(["*/scale"]), none.clone()),
                (Update, "deployments", "scale", "n"),
                true,
            ),
            (
                rule(json!(["*"]), json!(["deployments/*"]), none.clone()),
                (Create, "deployments", "", "n"),
                true,
            ),
            (
                rule(json!(["CONNECT"]), json!(["pods/exec"]), none.clone()),
                (Connect, "pods", "exec", "n"),
                true,
            ),
            (rule(json!(["*"]), json!(["*"]), json!({"scope": "Cluster"})), (Create, "x", "", "n"), false),
            (rule(json!(["*"]), json!(["*"]), json!({"scope": "Cluster"})), (Create, "x", "", ""), true),
            (rule(json!(["*"]), json!(["*"]), json!({"scope": "Namespaced"})), (Create, "x", "", ""), false),
            (
                rule(json!(["*"]), json!(["*"]), json!({"resourceNames": ["y"]})),
                (Create, "x", "", "n"),
                false,
            ),
            (rule(json!(["*"]), json!(["*"]), json!({"resourceNames": ["x"]})), (Create, "x", "", "n"), true),
            (rule(json!(["*"]), json!(["*"]), json!({"apiGroups": [""]})), (Create, "x", "", "n"), false),
            (
                rule(json!(["*"]), json!(["*"]), json!({"apiVersions": ["v1beta1"]})),
                (Create, "x", "", "n"),
                true,
            ),
        ];
        let labels = Labels { object: None, old: None, namespace: &Value::Null };
        for (rule, (operation, resource, subresource, namespace), expected) in rows {
            let matcher = Matcher::of_policy(&json!({"resourceRules": [rule]}));
            let question = question(operation, resource, subresource, namespace);
            assert_eq!(matcher.matches(&question, &labels), expected, "{rule}");
        }
    }

    #[test]
    fn selectors_and_exclusions() {
        let all = json!({"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*"]});
        let named = |name: &str| {
            let mut rule = all.clone();
            rule["resourceNames"] = json!([name]);
            rule
        };
        let namespace = json!({"metadata": {"labels": {"team": "a"}}});
        let object = json!({"metadata": {"labels": {"app": "web"}}});
        let select = |key: &str, value: &str| json!({"matchLabels": {key: value}});
        let rows = [
            (json!({"resourceRules": [all]}), true),
            (json!({}), false),
            (json!({"resourceRules": [all], "excludeResourceRules": [named("x")]}), false),
            (json!({"resourceRules": [all], "excludeResourceRules": [named("y")]}), true),
            (json!({"resourceRules": [all], "namespaceSelector": select("team", "a")}), true),
            (json!({"resourceRules": [all], "namespaceSelector": select("team", "b")}), false),
            (json!({"resourceRules": [all], "objectSelector": select("app", "web")}), true),
            (json!({"resourceRules": [all], "objectSelector": select("app", "db")}), false),
        ];
        let labels = Labels { object: Some(&object), old: None, namespace: &namespace };
        let question = question(Operation::Create, "deployments", "", "n");
        for (resources, expected) in rows {
            assert_eq!(Matcher::of_policy(&resources).matches(&question, &labels), expected, "{resources}");
        }
        assert!(Matcher::of_binding(&json!({})).matches(&question, &labels));
        let outside = Labels { namespace: &Value::Null, ..labels };
        let selecting = Matcher::of_binding(&json!({"namespaceSelector": select("team", "b")}));
        assert!(selecting.matches(&question, &outside), "what is in no namespace is not held back");
        let exact = Matcher::of_binding(&json!({"matchPolicy": "Exact", "resourceRules": [
            {"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["v1beta1"], "resources": ["*"]},
        ]}));
        assert!(!exact.matches(&question, &labels));
    }
}
