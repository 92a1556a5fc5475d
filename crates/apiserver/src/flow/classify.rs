//! Which flow a request belongs to: the first flow schema that matches says how important it is, and its user or
//! namespace with whom it shares.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;

use sampan_api::kinds::flow_control::{CATCH_ALL, EXEMPT};
use serde::Deserialize;
use serde_json::Value;

use super::defaults;
use super::scheduler::LevelConfig;
use crate::auth::User;
use crate::request::RequestInfo;

/// Queues of one level; more would only cost memory.
const MAX_QUEUES: i64 = 4096;

/// Configuration as it stands in the objects.
#[derive(Debug)]
pub(super) struct Configuration {
    schemas: Vec<Schema>,
    /// Levels and their uids, each name once.
    pub(super) levels: Vec<(Arc<str>, Arc<str>, LevelConfig)>,
}

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Class {
    /// Position in [`Configuration::levels`].
    pub(super) level: usize,
    pub(super) schema: Arc<str>,
    pub(super) schema_uid: Arc<str>,
    /// The same for all requests of a flow.
    pub(super) flow: u64,
}

#[derive(Debug)]
struct Schema {
    name: Arc<str>,
    uid: Arc<str>,
    level: usize,
    spec: SchemaSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct SchemaSpec {
    matching_precedence: i64,
    priority_level_configuration: Name,
    distinguisher_method: Option<Method>,
    rules: Vec<Rules>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Name {
    namespace: String,
    name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Method {
    #[serde(rename = "type")]
    type_: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rules {
    subjects: Vec<Subject>,
    resource_rules: Vec<ResourceRule>,
    non_resource_rules: Vec<NonResourceRule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Subject {
    user: Option<Name>,
    group: Option<Name>,
    service_account: Option<Name>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ResourceRule {
    verbs: Vec<String>,
    api_groups: Vec<String>,
    resources: Vec<String>,
    cluster_scope: bool,
    namespaces: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct NonResourceRule {
    verbs: Vec<String>,
    #[serde(rename = "nonResourceURLs")]
    urls: Vec<String>,
}

fn holds(list: &[String], value: &str) -> bool {
    list.iter().any(|item| item == "*" || item == value)
}

impl Configuration {
    /// Reads objects. What every cluster must have is added where it is missing; a schema whose level does not exist
    /// counts for nothing.
    pub(super) fn new(schemas: &[Value], levels: &[Value]) -> Self {
        let named = |objects: &[Value], name: &str| objects.iter().any(|o| o["metadata"]["name"] == name);
        let missing = |own: &[Value], defaults: Vec<Value>| -> Vec<Value> {
            let mandatory =
                |object: &Value| [EXEMPT, CATCH_ALL].iter().any(|name| object["metadata"]["name"] == *name);
            // A server that does not store these objects, or not yet, goes by the defaults.
            let all = own.is_empty();
            let wanted = defaults.into_iter().filter(|object| all || mandatory(object));
            wanted.filter(|o| !named(own, o["metadata"]["name"].as_str().unwrap_or_default())).collect()
        };
        let more_levels = missing(levels, defaults::levels());
        let more_schemas = missing(schemas, defaults::schemas());
        let levels: Vec<(Arc<str>, Arc<str>, LevelConfig)> = levels
            .iter()
            .chain(&more_levels)
            .map(|level| {
                let name = text(&level["metadata"]["name"]);
                let config =
                    if *name == *EXEMPT { LevelConfig::Exempt } else { level_config(&level["spec"]) };
                (name, text(&level["metadata"]["uid"]), config)
            })
            .collect();
        let mut schemas: Vec<Schema> = schemas
            .iter()
            .chain(&more_schemas)
            .filter_map(|schema| {
                let spec = SchemaSpec::deserialize(&schema["spec"]).ok()?;
                let level =
                    levels.iter().position(|(n, _, _)| **n == *spec.priority_level_configuration.name)?;
                let (name, uid) = (text(&schema["metadata"]["name"]), text(&schema["metadata"]["uid"]));
                Some(Schema { name, uid, level, spec })
            })
            .collect();
        schemas.sort_by(|a, b| {
            (a.spec.matching_precedence, &a.name).cmp(&(b.spec.matching_precedence, &b.name))
        });
        Self { schemas, levels }
    }

    /// The flow of a request.
    pub(super) fn classify(&self, user: &User, info: &RequestInfo) -> Class {
        let schema = self.schemas.iter().find(|schema| schema.matches(user, info));
        match schema {
            Some(schema) => Class {
                level: schema.level,
                schema: schema.name.clone(),
                schema_uid: schema.uid.clone(),
                flow: schema.flow(user, info),
            },
            // The schema for everybody may have been narrowed by hand; its level is always there.
            None => Class {
                level: self.levels.iter().position(|(name, _, _)| **name == *CATCH_ALL).unwrap_or(0),
                schema: CATCH_ALL.into(),
                schema_uid: "".into(),
                flow: 0,
            },
        }
    }
}

fn text(value: &Value) -> Arc<str> {
    value.as_str().unwrap_or_default().into()
}

fn level_config(spec: &Value) -> LevelConfig {
    if spec["type"] == "Exempt" {
        return LevelConfig::Exempt;
    }
    let limited = &spec["limited"];
    let queuing = &limited["limitResponse"]["queuing"];
    let queued = limited["limitResponse"]["type"] == "Queue";
    let number = |value: &Value, default: i64, most: i64| -> usize {
        usize::try_from(value.as_i64().unwrap_or(default).clamp(0, most)).unwrap_or(0)
    };
    let queues = if queued { number(&queuing["queues"], 64, MAX_QUEUES).max(1) } else { 0 };
    LevelConfig::Limited {
        shares: number(&limited["nominalConcurrencyShares"], 30, 1 << 20),
        lendable_percent: number(&limited["lendablePercent"], 0, 100),
        borrowing_limit_percent: limited["borrowingLimitPercent"]
            .as_i64()
            .map(|p| usize::try_from(p).unwrap_or(0)),
        queues,
        hand_size: number(&queuing["handSize"], 8, MAX_QUEUES).clamp(1, queues.max(1)),
        queue_length_limit: number(&queuing["queueLengthLimit"], 50, 1 << 20),
    }
}

/// The namespace a request is in, as upstream counts: a namespace itself is in itself.
fn namespace(info: &RequestInfo) -> &str {
    match &info.resource {
        Some(path) if path.resource == "namespaces" && path.namespace.is_empty() => &path.name,
        Some(path) => &path.namespace,
        None => "",
    }
}

impl Schema {
    fn matches(&self, user: &User, info: &RequestInfo) -> bool {
        self.spec.rules.iter().any(|rules| {
            rules.subjects.iter().any(|subject| subject.matches(user))
                && match &info.resource {
                    Some(_) => rules.resource_rules.iter().any(|rule| rule.matches(info)),
                    None => rules.non_resource_rules.iter().any(|rule| rule.matches(info)),
                }
        })
    }

    fn flow(&self, user: &User, info: &RequestInfo) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.name.hash(&mut hasher);
        match self.spec.distinguisher_method.as_ref().map(|method| method.type_.as_str()) {
            Some("ByUser") => user.name.hash(&mut hasher),
            Some("ByNamespace") => namespace(info).hash(&mut hasher),
            _ => {}
        }
        hasher.finish()
    }
}

impl Subject {
    fn matches(&self, user: &User) -> bool {
        let of = |name: &Option<Name>, is: &dyn Fn(&Name) -> bool| name.as_ref().is_some_and(is);
        of(&self.user, &|wanted| wanted.name == "*" || wanted.name == user.name)
            || of(&self.group, &|wanted| wanted.name == "*" || user.is_in(&wanted.name))
            || of(&self.service_account, &|wanted| {
                let account =
                    user.name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':'));
                account.is_some_and(|(namespace, name)| {
                    namespace == wanted.namespace && (wanted.name == "*" || wanted.name == name)
                })
            })
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        let Some(path) = &info.resource else { return false };
        let resource = if path.subresource.is_empty() {
            path.resource.clone()
        } else {
            format!("{}/{}", path.resource, path.subresource)
        };
        let in_scope = match namespace(info) {
            "" => self.cluster_scope,
            namespace => holds(&self.namespaces, namespace),
        };
        in_scope
            && holds(&self.verbs, info.verb)
            && holds(&self.api_groups, &path.group)
            && holds(&self.resources, &resource)
    }
}

impl NonResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        holds(&self.verbs, info.verb)
            && self.urls.iter().any(|url| match url.strip_suffix('*') {
                // `/healthz/*` is everything below, `*` is everything.
                Some(prefix) => info.path.starts_with(prefix),
                None => *url == info.path,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn class(configuration: &Configuration, user: &User, method: http::Method, uri: &str) -> Class {
        let info = RequestInfo::parse(&method, &uri.parse().expect("an address"));
        configuration.classify(user, &info)
    }

    #[test]
    fn defaults_sort_the_known_senders() {
        let configuration = Configuration::new(&[], &[]);
        let admin = User::known("admin", &["system:masters"]);
        let node = User::known("system:node:a", &["system:nodes"]);
        let manager = User::known("system:kube-controller-manager", &[]);
        let account = User::known("system:serviceaccount:kube-system:x", &["system:serviceaccounts"]);
        let other = User::known("system:serviceaccount:default:x", &["system:serviceaccounts"]);
        let person = User::known("eve", &[]);
        let lease = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/a";
        let (get, put, post) = (http::Method::GET, http::Method::PUT, http::Method::POST);
        let rows = [
            (&admin, &get, "/api/v1/pods", "exempt", "exempt"),
            (&User::anonymous(), &get, "/readyz", "probes", "exempt"),
            (&person, &get, "/readyz/ping", "global-default", "global-default"),
            (&node, &put, lease, "system-node-high", "node-high"),
            (&node, &http::Method::PATCH, "/api/v1/nodes/a/status", "system-node-high", "node-high"),
            (&node, &get, "/api/v1/namespaces/a/pods/p", "system-nodes", "system"),
            (&manager, &put, lease, "system-leader-election", "leader-election"),
            (&manager, &get, "/api/v1/pods", "kube-controller-manager", "workload-high"),
            (&account, &put, lease, "system-leader-election", "leader-election"),
            (&account, &get, "/api/v1/pods", "kube-system-service-accounts", "workload-high"),
            (&other, &post, "/api/v1/namespaces/a/pods", "service-accounts", "workload-low"),
            (&person, &get, "/api/v1/namespaces/a", "global-default", "global-default"),
            (&User::anonymous(), &get, "/api/v1/pods", "global-default", "global-default"),
        ];
        for (user, method, uri, schema, level) in rows {
            let class = class(&configuration, user, method.clone(), uri);
            let found = (&*class.schema, &*configuration.levels[class.level].0);
            assert_eq!(found, (schema, level), "{} {uri}", user.name);
        }
    }

    #[test]
    fn flows_are_told_apart() {
        let configuration = Configuration::new(&[], &[]);
        let manager = User::known("system:kube-controller-manager", &[]);
        let flow = |user: &User, uri: &str| class(&configuration, user, http::Method::GET, uri).flow;
        let (a, b) = (User::known("a", &[]), User::known("b", &[]));
        assert_eq!(flow(&a, "/api/v1/pods"), flow(&a, "/api/v1/nodes"));
        assert_ne!(flow(&a, "/api/v1/pods"), flow(&b, "/api/v1/pods"));
        assert_ne!(flow(&manager, "/api/v1/namespaces/a/pods"), flow(&manager, "/api/v1/namespaces/b/pods"));
    }

    #[test]
    fn own_objects_count_and_mandatory_ones_stay() {
        let schema = json!({"metadata": {"name": "mine", "uid": "1"}, "spec": {
            "matchingPrecedence": 5,
            "priorityLevelConfiguration": {"name": "special"},
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "*"}}],
                "resourceRules": [{"verbs": ["list"], "apiGroups": [""], "resources": ["pods/log", "pods"], "namespaces": ["a"]}],
            }],
        }});
        let dangling = json!({"metadata": {"name": "lost"}, "spec": {
            "matchingPrecedence": 1, "priorityLevelConfiguration": {"name": "nowhere"},
            "rules": [{"subjects": [{"kind": "User", "user": {"name": "*"}}], "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}],
        }});
        let level = json!({"metadata": {"name": "special", "uid": "2"}, "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": 7, "limitResponse": {"type": "Queue", "queuing": {"queues": 4, "handSize": 9, "queueLengthLimit": 3}},
        }}});
        let configuration = Configuration::new(&[schema, dangling], &[level]);
        let expected = LevelConfig::Limited {
            shares: 7,
            lendable_percent: 0,
            borrowing_limit_percent: None,
            queues: 4,
            hand_size: 4,
            queue_length_limit: 3,
        };
        assert_eq!(configuration.levels[0], ("special".into(), "2".into(), expected));
        let person = User::known("eve", &[]);
        let rows = [
            (person.clone(), "/api/v1/namespaces/a/pods", "mine"),
            (person.clone(), "/api/v1/namespaces/b/pods", "catch-all"),
            (person, "/version", "catch-all"),
            (User::known("root", &["system:masters"]), "/version", "exempt"),
        ];
        for (user, uri, schema) in rows {
            assert_eq!(class(&configuration, &user, http::Method::GET, uri).schema.as_ref(), schema, "{uri}");
        }
    }
}
