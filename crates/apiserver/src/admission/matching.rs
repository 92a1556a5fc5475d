//! Which requests a policy or a webhook wants to see: rules, exclusions, selectors. All pure.
//!
//! The rules of a webhook, `matchConstraints` of a policy and `matchResources` of a binding are one thing under three
//! names.
//!
//! Source of the rules: `k8s.io/apiserver/pkg/admission/plugin/{policy/matching,webhook/predicates}`.

use sampan_api::registry::Kind;
use sampan_api::selector::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::intercepted::Intercepted;

/// Operations on resources; `*` stands for all.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    operations: Vec<String>,
    api_groups: Vec<String>,
    api_versions: Vec<String>,
    resources: Vec<String>,
    /// Webhooks have no names in their rules.
    resource_names: Vec<String>,
    scope: Option<String>,
}

fn holds(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    /// Whether the rule speaks of the request, were it made to the resource of `kind`.
    fn matches(&self, request: &Intercepted<'_>, kind: &Kind) -> bool {
        holds(&self.operations, request.operation.as_str())
            && holds(&self.api_groups, &kind.group)
            && holds(&self.api_versions, &kind.version)
            && self.matches_scope(request)
            && self.matches_resource(&kind.plural, request.subresource)
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|name| name == request.name))
    }

    /// A namespace lives in the cluster, although requests for it carry a namespace.
    fn matches_scope(&self, request: &Intercepted<'_>) -> bool {
        let in_namespace = !request.is_namespace() && !request.namespace.is_empty();
        match self.scope.as_deref() {
            Some("Namespaced") => in_namespace,
            Some("Cluster") => !in_namespace,
            _ => true,
        }
    }

    /// `pods`, `pods/log`, `pods/*` (with the pods themselves), `*/scale`, `*` and `*/*`.
    fn matches_resource(&self, resource: &str, subresource: &str) -> bool {
        self.resources.iter().any(|wanted| {
            let (of, part) = wanted.split_once('/').unwrap_or((wanted, ""));
            (of == "*" || of == resource) && (part == "*" || part == subresource)
        })
    }
}

/// `MatchResources` of a policy or a binding, or what a webhook has of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Matcher {
    rules: Vec<Rule>,
    excluded: Vec<Rule>,
    namespaces: LabelSelector,
    objects: LabelSelector,
    /// `matchPolicy: Equivalent`: rules may name another resource that shows the same objects.
    equivalent: bool,
    /// Whether no rules mean every request (bindings) or none (policies, webhooks).
    no_rules_match: bool,
}

/// The labels a request is selected by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Labels<'a> {
    /// The object as it becomes; `None` for a delete.
    pub(super) object: Option<&'a Value>,
    /// The object as it was.
    pub(super) old: Option<&'a Value>,
    /// The namespace it is in, or the namespace it is; null outside of namespaces.
    pub(super) namespace: &'a Value,
}

impl Matcher {
    /// Reads `matchConstraints` of a policy: without rules it matches nothing.
    pub(super) fn of_policy(resources: &Value) -> Self {
        Self::read(resources, "resourceRules", false)
    }

    /// Reads `matchResources` of a binding: what it leaves out, the policy decides.
    pub(super) fn of_binding(resources: &Value) -> Self {
        Self::read(resources, "resourceRules", true)
    }

    /// Reads an entry of `webhooks`.
    pub(super) fn of_webhook(entry: &Value) -> Self {
        Self::read(entry, "rules", false)
    }

    fn read(resources: &Value, rules_field: &str, no_rules_match: bool) -> Self {
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
            rules: rules(rules_field),
            excluded: rules("excludeResourceRules"),
            namespaces: selector("namespaceSelector"),
            objects: selector("objectSelector"),
            equivalent: resources["matchPolicy"] != "Exact",
            no_rules_match,
        }
    }

    /// The resource by which a request is meant, if it is: its own where a rule names that one.
    pub(super) fn matches<'a>(&self, request: &'a Intercepted<'_>, labels: &Labels<'_>) -> Option<&'a Kind> {
        if self.find(&self.excluded, request).is_some()
            || !self.selects_namespace(labels.namespace)
            || !self.selects_object(labels)
        {
            return None;
        }
        if self.rules.is_empty() && self.no_rules_match {
            return Some(request.kind);
        }
        self.find(&self.rules, request)
    }

    /// The first resource of the request that a rule names; among equivalent ones the order of the rules counts.
    fn find<'a>(&self, rules: &[Rule], request: &'a Intercepted<'_>) -> Option<&'a Kind> {
        if rules.iter().any(|rule| rule.matches(request, request.kind)) {
            return Some(request.kind);
        }
        if !self.equivalent {
            return None;
        }
        let named = |rule: &Rule| request.equivalents.iter().find(|kind| rule.matches(request, kind));
        rules.iter().find_map(named).map(|kind| &**kind)
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
    use std::sync::Arc;

    use sampan_api::registry::Registry;
    use serde_json::json;

    use super::super::Operation::{self, Connect, Create, Delete, Update};
    use super::super::intercepted::tests::request;
    use super::*;
    use crate::auth::User;

    fn kind(group: &str, version: &str, plural: &str) -> Arc<Kind> {
        Registry::built_in().find(group, version, plural).expect("a kind").clone()
    }

    #[test]
    fn rules() {
        let rule = |operations: &[&str], groups: &[&str], resources: &[&str], scope: &str| json!({"operations": operations, "apiGroups": groups, "apiVersions": ["v1"], "resources": resources, "scope": scope});
        let named = |name: &str| {
            let mut rule = rule(&["*"], &["*"], &["*"], "*");
            rule["resourceNames"] = json!([name]);
            rule
        };
        let all = |scope: &str| rule(&["*"], &["*"], &["*"], scope);
        let pods = |operation: &str, resource: &str| rule(&[operation], &[""], &[resource], "*");
        let user = User::anonymous();
        let rows: Vec<(Value, &str, Operation, &str, &str, bool)> = vec![
            (pods("CREATE", "pods"), "pods", Create, "", "ns", true),
            (pods("CREATE", "pods"), "pods", Update, "", "ns", false),
            (all("*"), "pods", Delete, "", "ns", true),
            (all("*"), "pods", Update, "status", "ns", false),
            (rule(&["*"], &["*"], &["*/*"], "*"), "pods", Update, "status", "ns", true),
            (rule(&["*"], &["*"], &["*/*"], "*"), "pods", Create, "", "ns", true),
            (pods("CONNECT", "pods/attach"), "pods", Connect, "attach", "ns", true),
            (pods("CONNECT", "pods/attach"), "pods", Connect, "exec", "ns", false),
            (pods("*", "pods/*"), "pods", Connect, "exec", "ns", true),
            (pods("*", "pods/*"), "pods", Create, "", "ns", true),
            (rule(&["*"], &["apps"], &["*/scale"], "*"), "deployments", Update, "scale", "ns", true),
            (rule(&["*"], &[""], &["deployments"], "*"), "deployments", Update, "", "ns", false),
            (all("Cluster"), "pods", Create, "", "ns", false),
            (all("Cluster"), "nodes", Create, "", "", true),
            (all("Cluster"), "namespaces", Create, "", "x", true),
            (all("Namespaced"), "namespaces", Create, "", "x", false),
            (all("Namespaced"), "nodes", Create, "", "", false),
            (all("Namespaced"), "pods", Create, "", "ns", true),
            (named("y"), "pods", Create, "", "ns", false),
            (named("x"), "pods", Create, "", "ns", true),
        ];
        let labels = Labels { object: None, old: None, namespace: &Value::Null };
        for (rule, plural, operation, subresource, namespace, expected) in rows {
            let kind = kind(if plural == "deployments" { "apps" } else { "" }, "v1", plural);
            let request = request(&kind, &user, operation, subresource, namespace);
            for matcher in [
                Matcher::of_policy(&json!({"resourceRules": [rule]})),
                Matcher::of_webhook(&json!({"rules": [rule]})),
            ] {
                let found = matcher.matches(&request, &labels).is_some();
                assert_eq!(found, expected, "{rule} {plural} {operation:?} {subresource}");
            }
        }
    }

    #[test]
    fn equivalent_resources() {
        let user = User::anonymous();
        let scalers = "horizontalpodautoscalers";
        let (older, newer) = (kind("autoscaling", "v1", scalers), kind("autoscaling", "v2", scalers));
        let (events, others) = (kind("", "v1", "events"), kind("events.k8s.io", "v1", "events"));
        let rule = |group: &str, version: &str, plural: &str| json!({"operations": ["*"], "apiGroups": [group], "apiVersions": [version], "resources": [plural]});
        let (v1, v2) = (rule("autoscaling", "v1", scalers), rule("autoscaling", "v2", scalers));
        let core = rule("", "v1", "events");
        let rows = [
            ("Equivalent", vec![&v2], &older, &newer, Some("autoscaling/v2")),
            ("Equivalent", vec![&v2, &v1], &older, &newer, Some("autoscaling/v1")),
            ("Equivalent", vec![&core], &others, &events, Some("v1")),
            ("Exact", vec![&v2], &older, &newer, None),
            ("Exact", vec![&v1], &older, &newer, Some("autoscaling/v1")),
            ("Exact", vec![&core], &others, &events, None),
        ];
        let labels = Labels { object: None, old: None, namespace: &Value::Null };
        for (policy, rules, kind, equivalent, expected) in rows {
            let mut request = request(kind, &user, Create, "", "ns");
            request.equivalents = vec![equivalent.clone()];
            let matcher = Matcher::of_webhook(&json!({"matchPolicy": policy, "rules": rules}));
            let found = matcher.matches(&request, &labels).map(Kind::api_version);
            assert_eq!(found, expected, "{policy} {rules:?}");
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
        let (pods, user) = (kind("", "v1", "pods"), User::anonymous());
        let labels = Labels { object: Some(&object), old: None, namespace: &namespace };
        let request = request(&pods, &user, Create, "", "n");
        let meant = |matcher: &Matcher, labels: &Labels<'_>| matcher.matches(&request, labels).is_some();
        for (resources, expected) in rows {
            assert_eq!(meant(&Matcher::of_policy(&resources), &labels), expected, "{resources}");
        }
        assert!(meant(&Matcher::of_binding(&json!({})), &labels));
        let outside = Labels { namespace: &Value::Null, ..labels };
        let selecting = Matcher::of_binding(&json!({"namespaceSelector": select("team", "b")}));
        assert!(meant(&selecting, &outside), "what is in no namespace is not held back");
    }

    #[test]
    fn labels_of_namespaces_and_objects() {
        let (pods, namespaces) = (kind("", "v1", "pods"), kind("", "v1", "namespaces"));
        let (nodes, user) = (kind("", "v1", "nodes"), User::anonymous());
        let matcher = Matcher::of_binding(&json!({
            "namespaceSelector": {"matchLabels": {"a": "b"}},
        }));
        let labelled = |key: &str| json!({"metadata": {"labels": {key: "b"}}});
        let (right, wrong, none) = (labelled("a"), labelled("c"), Value::Null);
        let unlabelled = json!({});
        let rows: [(&Arc<Kind>, Operation, Option<&Value>, Option<&Value>, &Value, bool); 7] = [
            (&pods, Create, None, None, &right, true),
            (&pods, Create, None, None, &wrong, false),
            (&pods, Update, None, None, &unlabelled, false),
            (&nodes, Create, None, None, &none, true),
            (&namespaces, Create, Some(&right), None, &none, true),
            (&namespaces, Update, Some(&wrong), Some(&right), &none, false),
            (&namespaces, Delete, None, Some(&right), &none, true),
        ];
        for (kind, operation, object, old, namespace, expected) in rows {
            let mut request = request(kind, &user, operation, "", "n");
            request.old = old.cloned();
            let found = matcher.matches(&request, &request.labels(object, namespace)).is_some();
            assert_eq!(found, expected, "{} {operation:?} {namespace}", kind.plural);
        }
        let matcher = Matcher::of_binding(&json!({
            "objectSelector": {"matchExpressions": [{"key": "x", "operator": "Exists"}]},
        }));
        let (with, without, bare) = (labelled("x"), labelled("y"), json!({"container": "c"}));
        for (object, old, expected) in [
            (Some(&with), None, true),
            (Some(&without), Some(&with), true),
            (Some(&without), Some(&without), false),
            (None, Some(&with), true),
            (Some(&bare), None, false),
            (None, None, false),
        ] {
            let request = request(&pods, &user, Update, "", "n");
            let labels = Labels { object, old, namespace: &none };
            assert_eq!(matcher.matches(&request, &labels).is_some(), expected, "{object:?} {old:?}");
        }
    }
}
