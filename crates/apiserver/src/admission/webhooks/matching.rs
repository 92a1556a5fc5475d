//! Which webhooks want to see a request: rules and selectors, all pure.
//!
//! Source of the rules: `k8s.io/apiserver/pkg/admission/plugin/webhook/predicates`.

use sampan_api::registry::Kind;
use serde_json::Value;

use super::configuration::{Rule, Webhook};
use crate::admission::{Admission, Operation};
use crate::auth::User;

/// A request as webhooks see it.
pub(crate) struct Intercepted<'a> {
    pub(crate) operation: Operation,
    /// The row of the resource in the address.
    pub(crate) kind: &'a Kind,
    /// Other versions in which the same resource is served.
    pub(crate) other_versions: Vec<String>,
    /// Group, version and kind of the document: the row's own, or for instance `autoscaling/v1, Scale`.
    pub(crate) document: (String, String, String),
    /// Empty for the object itself.
    pub(crate) subresource: &'a str,
    /// For a namespace its own name.
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) user: &'a User,
    pub(crate) dry_run: bool,
    /// `CreateOptions` and the like.
    pub(crate) options: Value,
    /// The document before; `None` when there was none.
    pub(crate) old: Option<Value>,
    /// Whom conditions ask who may what.
    pub(crate) admission: Option<&'a Admission<'a>>,
}

/// Kinds that decide about webhooks and policies are never seen by them: nobody could repair a broken one otherwise.
pub(super) fn is_exempt(kind: &Kind) -> bool {
    kind.group == "admissionregistration.k8s.io"
}

impl Intercepted<'_> {
    fn is_namespace(&self) -> bool {
        self.kind.group.is_empty() && self.kind.plural == "namespaces"
    }
}

fn holds(list: &[String], wanted: &str) -> bool {
    list.iter().any(|item| item == "*" || item == wanted)
}

impl Rule {
    fn matches(&self, request: &Intercepted<'_>, version: &str) -> bool {
        holds(&self.operations, request.operation.as_str())
            && holds(&self.api_groups, &request.kind.group)
            && holds(&self.api_versions, version)
            && self.matches_scope(request)
            && self.matches_resource(&request.kind.plural, request.subresource)
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

impl Webhook {
    /// The version in which the webhook wants the object, if it wants to see the request at all.
    pub(super) fn version_for(&self, request: &Intercepted<'_>) -> Option<String> {
        let wanted = |version: &str| self.rules.iter().any(|rule| rule.matches(request, version));
        if wanted(&request.kind.version) {
            return Some(request.kind.version.to_string());
        }
        let others = request.other_versions.iter().filter(|_| self.equivalent);
        others.into_iter().find(|version| wanted(version)).cloned()
    }

    /// Whether the labels of the namespace are selected. `stored` gives the labels of a namespace that exists.
    pub(super) fn selects_namespace(
        &self,
        request: &Intercepted<'_>,
        object: Option<&Value>,
        stored: impl FnOnce(&str) -> Option<Value>,
    ) -> bool {
        if self.namespaces.is_empty() || (request.namespace.is_empty() && !request.is_namespace()) {
            return true;
        }
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if let Some(object) =
            object.filter(|_| request.is_namespace() && request.subresource.is_empty() && writes)
        {
            return self.namespaces.matches_value(object.pointer("/metadata/labels"));
        }
        let labels = stored(request.namespace);
        self.namespaces.matches_value(labels.as_ref())
    }

    /// Whether the labels of the object are selected, as it was or as it becomes.
    pub(super) fn selects_object(&self, object: Option<&Value>, old: Option<&Value>) -> bool {
        self.objects.is_empty()
            || [object, old].into_iter().flatten().any(|document| {
                // What has no metadata (streams, options) has no labels either and is never selected.
                document["metadata"].is_object()
                    && self.objects.matches_value(document.pointer("/metadata/labels"))
            })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use sampan_api::registry::Registry;
    use serde_json::json;

    pub(in super::super) fn request<'a>(
        kind: &'a Kind,
        user: &'a User,
        operation: Operation,
        subresource: &'a str,
        namespace: &'a str,
    ) -> Intercepted<'a> {
        Intercepted {
            operation,
            kind,
            other_versions: Vec::new(),
            document: (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string()),
            subresource,
            namespace,
            name: "x",
            user,
            dry_run: false,
            options: Value::Null,
            old: None,
            admission: None,
        }
    }

    fn webhook(rule: &Value) -> Webhook {
        Webhook::read(&json!({"name": "w", "rules": [rule]}), false)
    }

    #[test]
    fn rules() {
        let registry = Registry::built_in();
        let kind = |group: &str, plural: &str| registry.find(group, "v1", plural).expect("a kind").clone();
        let (pods, namespaces, deployments) =
            (kind("", "pods"), kind("", "namespaces"), kind("apps", "deployments"));
        let nodes = kind("", "nodes");
        let rule = |operations: &[&str], groups: &[&str], resources: &[&str], scope: Value| json!({"operations": operations, "apiGroups": groups, "apiVersions": ["v1"], "resources": resources, "scope": scope});
        use Operation::{Connect, Create, Delete, Update};
        let user = User::anonymous();
        let rows = [
            (rule(&["CREATE"], &[""], &["pods"], Value::Null), &pods, Create, "", "ns", true),
            (rule(&["CREATE"], &[""], &["pods"], Value::Null), &pods, Update, "", "ns", false),
            (rule(&["*"], &["*"], &["*"], json!("*")), &pods, Delete, "", "ns", true),
            (rule(&["*"], &["*"], &["*"], json!("*")), &pods, Update, "status", "ns", false),
            (rule(&["*"], &["*"], &["*/*"], json!("*")), &pods, Update, "status", "ns", true),
            (rule(&["*"], &["*"], &["*/*"], json!("*")), &pods, Create, "", "ns", true),
            (rule(&["CONNECT"], &[""], &["pods/attach"], Value::Null), &pods, Connect, "attach", "ns", true),
            (rule(&["CONNECT"], &[""], &["pods/attach"], Value::Null), &pods, Connect, "exec", "ns", false),
            (rule(&["*"], &[""], &["pods/*"], Value::Null), &pods, Connect, "exec", "ns", true),
            (rule(&["*"], &[""], &["pods/*"], Value::Null), &pods, Create, "", "ns", true),
            (rule(&["*"], &["apps"], &["*/scale"], Value::Null), &deployments, Update, "scale", "ns", true),
            (rule(&["*"], &[""], &["deployments"], Value::Null), &deployments, Update, "", "ns", false),
            (rule(&["*"], &["*"], &["*"], json!("Cluster")), &pods, Create, "", "ns", false),
            (rule(&["*"], &["*"], &["*"], json!("Cluster")), &nodes, Create, "", "", true),
            (rule(&["*"], &["*"], &["*"], json!("Cluster")), &namespaces, Create, "", "x", true),
            (rule(&["*"], &["*"], &["*"], json!("Namespaced")), &namespaces, Create, "", "x", false),
            (rule(&["*"], &["*"], &["*"], json!("Namespaced")), &pods, Create, "", "ns", true),
        ];
        for (rule, kind, operation, subresource, namespace, expected) in rows {
            let request = request(kind, &user, operation, subresource, namespace);
            let found = webhook(&rule).version_for(&request).is_some();
            assert_eq!(found, expected, "{rule} {} {operation:?} {subresource}", kind.plural);
        }
    }

    #[test]
    fn equivalent_versions() {
        let registry = Registry::built_in();
        let (pods, user) = (registry.find("", "v1", "pods").expect("pods"), User::anonymous());
        let rule = |version: &str| json!({"operations": ["*"], "apiGroups": [""], "apiVersions": [version], "resources": ["pods"]});
        for (policy, version, expected) in [
            ("Equivalent", "v1", Some("v1")),
            ("Equivalent", "v2", Some("v2")),
            ("Equivalent", "v3", None),
            ("Exact", "v1", Some("v1")),
            ("Exact", "v2", None),
        ] {
            let entry = json!({"name": "w", "matchPolicy": policy, "rules": [rule(version)]});
            let mut request = request(pods, &user, Operation::Create, "", "ns");
            request.other_versions = vec!["v2".to_owned()];
            let found = Webhook::read(&entry, false).version_for(&request);
            assert_eq!(found.as_deref(), expected, "{policy} {version}");
        }
    }

    #[test]
    fn selectors() {
        let registry = Registry::built_in();
        let user = User::anonymous();
        let (pods, namespaces, nodes) = (
            registry.find("", "v1", "pods").expect("pods"),
            registry.find("", "v1", "namespaces").expect("namespaces"),
            registry.find("", "v1", "nodes").expect("nodes"),
        );
        let entry = json!({
            "name": "w",
            "namespaceSelector": {"matchLabels": {"a": "b"}},
            "objectSelector": {"matchExpressions": [{"key": "x", "operator": "Exists"}]},
        });
        let webhook = Webhook::read(&entry, false);
        let labelled = |key: &str| json!({"metadata": {"labels": {key: "b"}}});
        use Operation::{Create, Delete, Update};
        let rows: Vec<(&Kind, Operation, &str, Option<Value>, Option<Value>, bool)> = vec![
            (pods, Create, "ns", None, Some(json!({"a": "b"})), true),
            (pods, Create, "ns", None, Some(json!({"a": "c"})), false),
            (pods, Create, "ns", None, None, false),
            (nodes, Create, "", None, None, true),
            (namespaces, Create, "x", Some(labelled("a")), None, true),
            (namespaces, Update, "x", Some(labelled("c")), Some(json!({"a": "b"})), false),
            (namespaces, Delete, "x", None, Some(json!({"a": "b"})), true),
        ];
        for (kind, operation, namespace, object, stored, expected) in rows {
            let request = request(kind, &user, operation, "", namespace);
            let found = webhook.selects_namespace(&request, object.as_ref(), |_| stored.clone());
            assert_eq!(found, expected, "{} {operation:?} {stored:?}", kind.plural);
        }
        let (with, without, bare) = (labelled("x"), labelled("y"), json!({"container": "c"}));
        for (object, old, expected) in [
            (Some(&with), None, true),
            (Some(&without), Some(&with), true),
            (Some(&without), Some(&without), false),
            (None, Some(&with), true),
            (Some(&bare), None, false),
            (None, None, false),
        ] {
            assert_eq!(webhook.selects_object(object, old), expected, "{object:?} {old:?}");
        }
        assert!(Webhook::read(&json!({}), false).selects_object(None, None));
    }
}
