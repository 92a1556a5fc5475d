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
    /// What the field selector of a list or watch demands to be equal.
    pub(crate) fields: &'a [(String, String)],
    /// Set for addresses that are no resources; the fields above but `verb` are then empty.
    pub(crate) path: Option<&'a str>,
}

/// One rule of a role.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
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
    pub(crate) fn allows(&self, question: &Attributes<'_>) -> bool {
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

    /// `pods`, `pods/log`, `*/log` and `*` are understood; `pods/*` is not, as in Kubernetes.
    fn names_resource(&self, question: &Attributes<'_>) -> bool {
        self.resources.iter().any(|resource| {
            resource == "*"
                || match (resource.split_once('/'), question.subresource) {
                    (None, "") => resource == question.resource,
                    (Some(_), "") | (None, _) => false,
                    (Some((of, subresource)), asked) => {
                        subresource == asked && (of == "*" || of == question.resource)
                    }
                }
        })
    }

    /// The rule taken apart into rules of one verb, one group, one resource and one name, or one verb and one address.
    fn atoms(&self) -> Vec<Rule> {
        let one = |text: &String| vec![text.clone()];
        let mut atoms = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                atoms.push(Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() });
            }
            for group in &self.api_groups {
                for resource in &self.resources {
                    let atom = Rule {
                        verbs: one(verb),
                        api_groups: one(group),
                        resources: one(resource),
                        ..Rule::default()
                    };
                    if self.resource_names.is_empty() {
                        atoms.push(atom.clone());
                    }
                    atoms.extend(
                        self.resource_names
                            .iter()
                            .map(|name| Rule { resource_names: one(name), ..atom.clone() }),
                    );
                }
            }
        }
        atoms
    }

    /// Whether this rule allows everything that `atom` allows. A `*` in the atom is covered by a `*` only.
    fn covers(&self, atom: &Rule) -> bool {
        let held = |mine: &[String], theirs: &[String]| theirs.iter().all(|wanted| holds(mine, wanted));
        let names = self.resource_names.is_empty()
            || (!atom.resource_names.is_empty()
                && atom.resource_names.iter().all(|name| self.resource_names.contains(name)));
        let resources = atom.resources.iter().all(|wanted| {
            holds(&self.resources, wanted)
                || wanted
                    .split_once('/')
                    .is_some_and(|(_, subresource)| self.resources.contains(&format!("*/{subresource}")))
        });
        let urls = atom.non_resource_urls.iter().all(|wanted| {
            self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                Some(prefix) => wanted.starts_with(prefix),
                None => url == wanted,
            })
        });
        held(&self.verbs, &atom.verbs)
            && urls
            && (atom.resources.is_empty() || (held(&self.api_groups, &atom.api_groups) && resources && names))
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

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.namespace.is_empty() { String::new() } else { format!("/{}", self.namespace) };
        write!(f, "{} \"{}{place}\"", self.kind, self.name)
    }
}

/// A binding with the rules of its role.
#[derive(Debug)]
struct Binding {
    /// `ClusterRoleBinding "a" of ClusterRole "b"`.
    what: String,
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
        user.is_in(MASTERS) || self.granted_by(user, question).is_some()
    }

    /// Which binding allows it, in upstream's words.
    pub(crate) fn granted_by(&self, user: &User, question: &Attributes<'_>) -> Option<String> {
        self.current().bindings.iter().find_map(|binding| {
            let here = binding.namespace.is_empty()
                || (question.path.is_none() && binding.namespace == question.namespace);
            let subject = binding.subjects.iter().find(|subject| here && subject.is(user))?;
            let granted = binding.rules.iter().any(|rule| rule.allows(question));
            granted.then(|| format!("RBAC: allowed by {} to {subject}", binding.what))
        })
    }

    /// The first part of `rules` that `user` does not hold in `namespace` (empty: everywhere).
    pub(crate) fn not_held(&self, user: &User, namespace: &str, rules: &[Rule]) -> Option<Rule> {
        let current = self.current();
        let held: Vec<&Rule> = current
            .bindings
            .iter()
            .filter(|binding| binding.namespace.is_empty() || binding.namespace == namespace)
            .filter(|binding| binding.subjects.iter().any(|subject| subject.is(user)))
            .flat_map(|binding| binding.rules.iter())
            .collect();
        let atoms = rules.iter().flat_map(Rule::atoms);
        atoms.into_iter().find(|atom| !held.iter().any(|rule| rule.covers(atom)))
    }

    /// The rules of the role that a binding in `namespace` names; none when there is no such role.
    pub(crate) fn rules_behind(&self, role_ref: &Value, namespace: &str) -> Vec<Rule> {
        self.role(role_ref, namespace).map(|role| rules_in(&role)).unwrap_or_default()
    }

    fn role(&self, role_ref: &Value, namespace: &str) -> Option<Value> {
        let name = role_ref["name"].as_str()?;
        let (resource, key) = match role_ref["kind"].as_str()? {
            "ClusterRole" => (RESOURCES[0], format!("/{}/{name}", RESOURCES[0])),
            _ => (RESOURCES[2], format!("/{}/{namespace}/{name}", RESOURCES[2])),
        };
        serde_json::from_slice(&self.cache.resource(resource).get(&key)?.bytes).ok()
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
        let mut answer = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false});
        if crate::admission::node_of(user).is_some() {
            // What a node may depends on its pods and is no list of rules.
            answer["incomplete"] = true.into();
            answer["evaluationError"] = "node authorizer does not support user rule resolution".into();
        }
        answer
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
        let role = self.role(&object["roleRef"], &namespace)?;
        let subjects = subjects_in(&object["subjects"], &namespace);
        let text = |value: &'_ Value| value.as_str().unwrap_or_default().to_owned();
        let (name, reference) = (text(&object["metadata"]["name"]), &object["roleRef"]);
        let (kind, place) = match namespace.as_str() {
            "" => ("ClusterRoleBinding", String::new()),
            namespace => ("RoleBinding", format!("/{namespace}")),
        };
        let (role_kind, role_name) = (text(&reference["kind"]), text(&reference["name"]));
        let what = format!("{kind} \"{name}{place}\" of {role_kind} \"{role_name}\"");
        Some(Binding { what, namespace, subjects, rules: Arc::new(rules_in(&role)) })
    }
}

/// Those of `wanted` that `present` does not cover.
pub(crate) fn missing<'a>(present: &[Rule], wanted: &'a [Rule]) -> Vec<&'a Rule> {
    let covered = |atom: &Rule| present.iter().any(|rule| rule.covers(atom));
    wanted.iter().filter(|rule| !rule.atoms().iter().all(covered)).collect()
}

/// The subjects of a binding. An account that names no namespace is of the binding's.
fn subjects_in(subjects: &Value, namespace: &str) -> Vec<Subject> {
    let mut subjects: Vec<Subject> = serde_json::from_value(subjects.clone()).unwrap_or_default();
    for subject in subjects.iter_mut().filter(|subject| subject.namespace.is_empty()) {
        subject.namespace = namespace.to_owned();
    }
    subjects
}

/// The rules of a role.
pub(crate) fn rules_in(role: &Value) -> Vec<Rule> {
    serde_json::from_value(role["rules"].clone()).unwrap_or_default()
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
            (rule(&["get"], &[""], &["pods/*"], &[]), get("pods", "log", "a"), false),
            (rule(&["get"], &[""], &["pods/*"], &[]), get("pods", "", "a"), false),
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
    fn covering() {
        let wide = rule(&["get", "list"], &[""], &["pods", "*/log"], &[]);
        let named = rule(&["get"], &[""], &["pods"], &["a"]);
        let all = rule(&["*"], &["*"], &["*"], &[]);
        let rows = [
            (&wide, rule(&["get"], &[""], &["pods"], &["a"]), true),
            (&wide, rule(&["get"], &[""], &["pods/log"], &[]), true),
            (&wide, rule(&["*"], &[""], &["pods"], &[]), false),
            (&wide, rule(&["get"], &["apps"], &["pods"], &[]), false),
            (&named, rule(&["get"], &[""], &["pods"], &[]), false),
            (&named, rule(&["get"], &[""], &["pods"], &["a"]), true),
            (&all, rule(&["*"], &["*"], &["*"], &[]), true),
            (&wide, rule(&["get"], &["*"], &["pods"], &[]), false),
        ];
        for (mine, asked, expected) in rows {
            assert!(asked.atoms().iter().all(|atom| mine.covers(atom)) == expected, "{mine:?} {asked:?}");
        }
    }

    #[test]
    fn what_a_role_lacks() {
        let present = [rule(&["get", "list"], &[""], &["pods"], &[]), rule(&["*"], &["apps"], &["*"], &[])];
        let rows = [
            (rule(&["get"], &[""], &["pods"], &[]), true),
            (rule(&["get"], &["apps"], &["deployments"], &[]), true),
            (rule(&["get"], &["", "apps"], &["pods"], &[]), true),
            (rule(&["get", "watch"], &[""], &["pods"], &[]), false),
            (rule(&["get"], &[""], &["secrets"], &[]), false),
        ];
        for (wanted, covered) in rows {
            assert_eq!(missing(&present, std::slice::from_ref(&wanted)).is_empty(), covered, "{wanted:?}");
        }
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
        let short = serde_json::json!([{"kind": "ServiceAccount", "name": "sa"}]);
        for (namespace, expected) in [("ns", true), ("other", false), ("", false)] {
            assert_eq!(subjects_in(&short, namespace)[0].is(&account), expected, "{namespace}");
        }
    }
}
