//! Role based access control: who may do what, from the four kinds of `rbac.authorization.k8s.io`.
//!
//! The rules are compiled from the watch cache when one of those resources has changed since the last question, and
//! shared until then.

use std::sync::{Arc, Mutex};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{MASTERS, User};
use crate::cache::{Item, WatchCache};

/// A question.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attributes<'a> {
    pub(crate) verb: &'a str,
    pub(crate) group: &'a str,
    pub(crate) resource: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    /// Set for addresses that are no resources; the fields above but `verb` are then empty.
    pub(crate) path: Option<&'a str>,
}

/// One rule of a role.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Rule {
    pub(crate) verbs: Vec<String>,
    pub(crate) api_groups: Vec<String>,
    pub(crate) resources: Vec<String>,
    pub(crate) resource_names: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    pub(crate) non_resource_urls: Vec<String>,
}

fn holds(list: &[String], value: &str) -> bool {
    list.iter().any(|item| item == "*" || item == value)
}

impl Rule {
    fn allows(&self, question: &Attributes<'_>) -> bool {
        if !holds(&self.verbs, question.verb) {
            return false;
        }
        if let Some(path) = question.path {
            return self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => path.starts_with(prefix),
                None => url == path,
            });
        }
        holds(&self.api_groups, question.group)
            && self.names_resource(question)
            && (self.resource_names.is_empty()
                || self.resource_names.iter().any(|name| name == question.name))
    }

    fn names_resource(&self, question: &Attributes<'_>) -> bool {
        self.resources.iter().any(|resource| {
            if resource == "*" {
                return true;
            }
            match (resource.split_once('/'), question.subresource) {
                (None, "") => resource == question.resource,
                (Some(("*", sub)), asked) => sub == asked,
                (Some((resource, sub)), asked) => {
                    resource == question.resource && (sub == asked || sub == "*")
                }
                (None, _) => false,
            }
        })
    }
}

#[derive(Clone, Debug, Deserialize)]
struct Subject {
    kind: String,
    name: String,
    #[serde(default)]
    namespace: String,
}

impl Subject {
    fn is(&self, user: &User) -> bool {
        match self.kind.as_str() {
            "User" => self.name == user.name,
            "Group" => user.is_in(&self.name),
            "ServiceAccount" => {
                user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'))
                    == Some((self.namespace.as_str(), self.name.as_str()))
            }
            _ => false,
        }
    }
}

/// A binding with the rules of its role.
#[derive(Debug)]
struct Binding {
    /// Empty: everywhere.
    namespace: String,
    subjects: Vec<Subject>,
    rules: Arc<Vec<Rule>>,
}

#[derive(Default)]
struct Compiled {
    revisions: [u64; 4],
    bindings: Vec<Binding>,
}

const RESOURCES: [&str; 4] = [
    "clusterroles.rbac.authorization.k8s.io",
    "clusterrolebindings.rbac.authorization.k8s.io",
    "roles.rbac.authorization.k8s.io",
    "rolebindings.rbac.authorization.k8s.io",
];

/// Answers questions.
pub(crate) struct Rbac {
    cache: Arc<WatchCache>,
    compiled: Mutex<Option<Arc<Compiled>>>,
}

impl Rbac {
    pub(crate) fn new(cache: Arc<WatchCache>) -> Self {
        Self { cache, compiled: Mutex::default() }
    }

    /// Whether `user` may.
    pub(crate) fn allows(&self, user: &User, question: &Attributes<'_>) -> bool {
        user.is_in(MASTERS)
            || self.current().bindings.iter().any(|binding| {
                (binding.namespace.is_empty()
                    || (question.path.is_none() && binding.namespace == question.namespace))
                    && binding.subjects.iter().any(|subject| subject.is(user))
                    && binding.rules.iter().any(|rule| rule.allows(question))
            })
    }

    /// All rules that hold for `user` in `namespace`, as `SelfSubjectRulesReview` shows them.
    pub(crate) fn rules_of(&self, user: &User, namespace: &str) -> Value {
        let mut rules: Vec<Rule> = Vec::new();
        if user.is_in(MASTERS) {
            let all = || vec!["*".to_owned()];
            rules.push(Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() });
            rules.push(Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() });
        }
        for binding in &self.current().bindings {
            let here = binding.namespace.is_empty() || binding.namespace == namespace;
            if here && binding.subjects.iter().any(|subject| subject.is(user)) {
                rules.extend(binding.rules.iter().cloned());
            }
        }
        let (paths, resources): (Vec<Rule>, Vec<Rule>) =
            rules.into_iter().partition(|rule| !rule.non_resource_urls.is_empty());
        let resources: Vec<Value> = resources
            .iter()
            .map(|r| {
                let mut rule = json!({"verbs": r.verbs, "apiGroups": r.api_groups, "resources": r.resources});
                if !r.resource_names.is_empty() {
                    rule["resourceNames"] = json!(r.resource_names);
                }
                rule
            })
            .collect();
        let paths: Vec<Value> =
            paths.iter().map(|r| json!({"verbs": r.verbs, "nonResourceURLs": r.non_resource_urls})).collect();
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
    }

    fn current(&self) -> Arc<Compiled> {
        let revisions = RESOURCES.map(|resource| self.cache.resource(resource).revision());
        let mut compiled = self.compiled.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*compiled {
            Some(current) if current.revisions == revisions => current.clone(),
            _ => {
                let fresh = Arc::new(self.compile(revisions));
                *compiled = Some(fresh.clone());
                fresh
            }
        }
    }

    fn compile(&self, revisions: [u64; 4]) -> Compiled {
        let mut bindings = Vec::new();
        for resource in [RESOURCES[1], RESOURCES[3]] {
            for item in self.cache.resource(resource).list(&format!("/{resource}/")) {
                bindings.extend(self.binding(&item));
            }
        }
        Compiled { revisions, bindings }
    }

    /// A binding whose role does not exist grants nothing.
    fn binding(&self, item: &Item) -> Option<Binding> {
        let object: Value = serde_json::from_slice(&item.bytes).ok()?;
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
        let name = object["roleRef"]["name"].as_str()?;
        let role_key = match object["roleRef"]["kind"].as_str()? {
            "ClusterRole" => (RESOURCES[0], format!("/{}/{name}", RESOURCES[0])),
            _ => (RESOURCES[2], format!("/{}/{namespace}/{name}", RESOURCES[2])),
        };
        let role = self.cache.resource(role_key.0).get(&role_key.1)?;
        let role: Value = serde_json::from_slice(&role.bytes).ok()?;
        let subjects = serde_json::from_value(object["subjects"].clone()).unwrap_or_default();
        let rules = serde_json::from_value(role["rules"].clone()).unwrap_or_default();
        Some(Binding { namespace, subjects, rules: Arc::new(rules) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(verbs: &[&str], groups: &[&str], resources: &[&str], names: &[&str]) -> Rule {
        let texts = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Rule {
            verbs: texts(verbs),
            api_groups: texts(groups),
            resources: texts(resources),
            resource_names: texts(names),
            non_resource_urls: Vec::new(),
        }
    }

    #[test]
    fn rules() {
        let get = |resource, subresource, name| Attributes {
            verb: "get",
            resource,
            subresource,
            name,
            ..Attributes::default()
        };
        let rows = [
            (rule(&["get"], &[""], &["pods"], &[]), get("pods", "", "a"), true),
            (rule(&["get"], &[""], &["pods"], &[]), get("pods", "log", "a"), false),
            (rule(&["get"], &[""], &["pods/log"], &[]), get("pods", "log", "a"), true),
            (rule(&["get"], &[""], &["pods/*"], &[]), get("pods", "log", "a"), true),
            (rule(&["get"], &[""], &["*/log"], &[]), get("pods", "log", "a"), true),
            (rule(&["*"], &["*"], &["*"], &[]), get("pods", "log", "a"), true),
            (rule(&["list"], &[""], &["pods"], &[]), get("pods", "", "a"), false),
            (rule(&["get"], &["apps"], &["pods"], &[]), get("pods", "", "a"), false),
            (rule(&["get"], &[""], &["pods"], &["b"]), get("pods", "", "a"), false),
            (rule(&["get"], &[""], &["pods"], &["a"]), get("pods", "", "a"), true),
        ];
        for (rule, question, expected) in rows {
            assert_eq!(rule.allows(&question), expected, "{rule:?} {question:?}");
        }
        let path = |path| Attributes { verb: "get", path: Some(path), ..Attributes::default() };
        let mut urls = rule(&["get"], &[], &[], &[]);
        urls.non_resource_urls = vec!["/healthz".to_owned(), "/api/*".to_owned()];
        assert!(
            urls.allows(&path("/healthz"))
                && urls.allows(&path("/api/v1"))
                && !urls.allows(&path("/metrics"))
        );
    }

    #[test]
    fn subjects() {
        let subject = |kind: &str, name: &str, namespace: &str| Subject {
            kind: kind.to_owned(),
            name: name.to_owned(),
            namespace: namespace.to_owned(),
        };
        let account = User::known("system:serviceaccount:ns:sa", &["system:serviceaccounts"]);
        assert!(subject("ServiceAccount", "sa", "ns").is(&account));
        assert!(!subject("ServiceAccount", "sa", "other").is(&account));
        assert!(subject("Group", "system:authenticated", "").is(&account));
        assert!(!subject("User", "sa", "").is(&account));
    }
}
