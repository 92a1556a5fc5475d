//! The addresses of a document: for each kind its collections, objects, subresources and old watch addresses, with the
//! operations each takes. Names of operations and actions are Kubernetes' own, because clients are generated from them.

use sampan_api::kind::Subresource;
use sampan_api::registry::Kind;
use serde_json::{Map, Value, json};

use super::schemas::{DELETE_OPTIONS, PATCH, STATUS, WATCH_EVENT, capitalised, list_name};
use super::{Dialect, gvk};
use crate::discovery;

/// Query parameters by verb.
pub(super) const WRITE_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation"];
const PATCH_PARAMETERS: &[&str] = &["dryRun", "fieldManager", "fieldValidation", "force"];
const LIST_PARAMETERS: &[&str] = &[
    "allowWatchBookmarks",
    "continue",
    "fieldSelector",
    "labelSelector",
    "limit",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
    "watch",
];
const DELETE_PARAMETERS: &[&str] = &["dryRun", "gracePeriodSeconds", "orphanDependents", "propagationPolicy"];
const DELETE_COLLECTION_PARAMETERS: &[&str] = &[
    "continue",
    "dryRun",
    "fieldSelector",
    "gracePeriodSeconds",
    "labelSelector",
    "limit",
    "orphanDependents",
    "propagationPolicy",
    "resourceVersion",
    "resourceVersionMatch",
    "sendInitialEvents",
    "timeoutSeconds",
];
const LOG_PARAMETERS: &[&str] = &[
    "container",
    "follow",
    "limitBytes",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "stream",
    "tailLines",
    "timestamps",
];
const EXEC_PARAMETERS: &[&str] = &["command", "container", "stderr", "stdin", "stdout", "tty"];
const ATTACH_PARAMETERS: &[&str] = &["container", "stderr", "stdin", "stdout", "tty"];

const OBJECT_TYPES: &[&str] =
    &["application/json", "application/yaml", "application/vnd.kubernetes.protobuf"];
const WATCH_TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
    "application/json;stream=watch",
    "application/vnd.kubernetes.protobuf;stream=watch",
];
const PATCH_TYPES: &[&str] = &[
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];
/// Custom resources know no merge keys; clients look here before they send a strategic merge patch.
const CUSTOM_PATCH_TYPES: &[&str] = PATCH_TYPES.split_at(3).0;
const ANYTHING: &[&str] = &["*/*"];

/// What an operation sends or answers.
enum Body {
    Nothing,
    Text,
    Schema(String),
}

struct Operation {
    method: &'static str,
    action: &'static str,
    id: String,
    parameters: &'static [&'static str],
    body: Body,
    body_types: &'static [&'static str],
    body_required: bool,
    answer: Body,
    answer_types: &'static [&'static str],
    codes: &'static [u16],
    gvk: Value,
}

/// Schema of the document behind a subresource, where it is another one than the object's.
pub(super) fn body_schema(subresource: Subresource) -> Option<String> {
    Some(
        match subresource {
            Subresource::Scale => "io.k8s.api.autoscaling.v1.Scale",
            Subresource::Binding => "io.k8s.api.core.v1.Binding",
            Subresource::Eviction => "io.k8s.api.policy.v1.Eviction",
            Subresource::Token => "io.k8s.api.authentication.v1.TokenRequest",
            _ => return None,
        }
        .to_owned(),
    )
}

/// Every address of a kind with its operations.
pub(super) fn paths(kind: &Kind, dialect: Dialect) -> Vec<(String, Value)> {
    let root = root(kind);
    let scope = if kind.namespaced() { "/namespaces/{namespace}" } else { "" };
    let collection = format!("{root}{scope}/{}", kind.plural);
    let object = format!("{collection}/{{name}}");
    let mut out: Vec<(String, Value)> = Vec::new();
    let mut add = |path: String, operations: Vec<Operation>| {
        let mut item = Map::new();
        for operation in &operations {
            item.insert(operation.method.to_owned(), operation.document(dialect));
        }
        let names = ["name", "namespace", "path"].iter().filter(|name| path.contains(&format!("{{{name}}}")));
        let of_path: Vec<Value> = names.map(|name| path_parameter(name, dialect)).collect();
        if !of_path.is_empty() {
            item.insert("parameters".to_owned(), of_path.into());
        }
        out.push((path, Value::Object(item)));
    };
    if !kind.stored() {
        add(collection, vec![Operation::create(kind)]);
        return out;
    }
    add(
        collection.clone(),
        vec![Operation::list(kind, false), Operation::create(kind), Operation::delete_collection(kind)],
    );
    add(
        object.clone(),
        vec![
            Operation::read(kind, "", None),
            Operation::replace(kind, "", None),
            Operation::patch(kind, "", None),
            Operation::delete(kind),
        ],
    );
    if kind.namespaced() {
        add(format!("{root}/{}", kind.plural), vec![Operation::list(kind, true)]);
    }
    for subresource in &kind.subresources {
        let path = format!("{object}/{}", subresource.as_str());
        if *subresource == Subresource::Proxy {
            add(format!("{path}/{{path}}"), Operation::of_subresource(kind, *subresource));
        }
        add(path, Operation::of_subresource(kind, *subresource));
    }
    let watched = format!("{root}/watch{scope}/{}", kind.plural);
    add(watched.clone(), vec![Operation::watch(kind, "watchlist", "List")]);
    add(format!("{watched}/{{name}}"), vec![Operation::watch(kind, "watch", "")]);
    if kind.namespaced() {
        let everywhere = Operation::watch(kind, "watchlist", "ListForAllNamespaces");
        add(format!("{root}/watch/{}", kind.plural), vec![everywhere]);
    }
    out
}

fn root(kind: &Kind) -> String {
    if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    }
}

/// `CoreV1`, `AppsV1`, `RbacAuthorizationV1`; of custom groups `ComExampleV1`.
fn group_title(kind: &Kind) -> String {
    let titled = |parts: &mut dyn Iterator<Item = &str>| parts.map(capitalised).collect::<String>();
    let group = match kind.group.strip_suffix(".k8s.io") {
        Some(own) => titled(&mut own.split('.')),
        None if kind.group.is_empty() => "Core".to_owned(),
        None => titled(&mut kind.group.split('.').rev()),
    };
    format!("{group}{}", capitalised(&kind.version)).replace('-', "")
}

impl Operation {
    fn new(kind: &Kind, method: &'static str, action: &'static str, id: String) -> Self {
        Self {
            method,
            action,
            id,
            parameters: &[],
            body: Body::Nothing,
            body_types: OBJECT_TYPES,
            body_required: true,
            answer: Body::Schema(kind.schema_name().to_owned()),
            answer_types: OBJECT_TYPES,
            codes: &[200],
            gvk: gvk(kind),
        }
    }

    /// `VERB` + `CoreV1` + `Namespaced` + `Pod` + `Status`.
    fn id(kind: &Kind, verb: &str, suffix: &str) -> String {
        let scope = if kind.namespaced() { "Namespaced" } else { "" };
        format!("{verb}{}{scope}{}{suffix}", group_title(kind), kind.kind)
    }

    fn create(kind: &Kind) -> Self {
        Self {
            parameters: WRITE_PARAMETERS,
            body: Body::Schema(kind.schema_name().to_owned()),
            codes: &[200, 201, 202],
            ..Self::new(kind, "post", "post", Self::id(kind, "create", ""))
        }
    }

    fn list(kind: &Kind, everywhere: bool) -> Self {
        let id = if everywhere {
            format!("list{}{}ForAllNamespaces", group_title(kind), kind.kind)
        } else {
            Self::id(kind, "list", "")
        };
        Self {
            parameters: LIST_PARAMETERS,
            answer: Body::Schema(list_name(kind.schema_name())),
            answer_types: WATCH_TYPES,
            ..Self::new(kind, "get", "list", id)
        }
    }

    fn watch(kind: &Kind, action: &'static str, suffix: &str) -> Self {
        let id = match suffix {
            "ListForAllNamespaces" => format!("watch{}{}{suffix}", group_title(kind), kind.kind),
            _ => Self::id(kind, "watch", suffix),
        };
        Self {
            parameters: LIST_PARAMETERS,
            answer: Body::Schema(WATCH_EVENT.to_owned()),
            answer_types: WATCH_TYPES,
            ..Self::new(kind, "get", action, id)
        }
    }

    fn delete(kind: &Kind) -> Self {
        Self {
            parameters: DELETE_PARAMETERS,
            body: Body::Schema(DELETE_OPTIONS.to_owned()),
            body_required: false,
            answer: Body::Schema(if kind.returns_deleted { kind.schema_name() } else { STATUS }.to_owned()),
            codes: &[200, 202],
            ..Self::new(kind, "delete", "delete", Self::id(kind, "delete", ""))
        }
    }

    fn delete_collection(kind: &Kind) -> Self {
        Self {
            parameters: DELETE_COLLECTION_PARAMETERS,
            body: Body::Schema(DELETE_OPTIONS.to_owned()),
            body_required: false,
            answer: Body::Schema(STATUS.to_owned()),
            ..Self::new(kind, "delete", "deletecollection", Self::id(kind, "deleteCollection", ""))
        }
    }

    /// Get, put and patch of an object or of a view with a schema of its own.
    fn read(kind: &Kind, suffix: &str, schema: Option<&str>) -> Self {
        let schema = schema.unwrap_or(kind.schema_name()).to_owned();
        Self { answer: Body::Schema(schema), ..Self::new(kind, "get", "get", Self::id(kind, "read", suffix)) }
    }

    fn replace(kind: &Kind, suffix: &str, schema: Option<&str>) -> Self {
        let schema = schema.unwrap_or(kind.schema_name());
        Self {
            parameters: WRITE_PARAMETERS,
            body: Body::Schema(schema.to_owned()),
            answer: Body::Schema(schema.to_owned()),
            codes: &[200, 201],
            ..Self::new(kind, "put", "put", Self::id(kind, "replace", suffix))
        }
    }

    fn patch(kind: &Kind, suffix: &str, schema: Option<&str>) -> Self {
        Self {
            parameters: PATCH_PARAMETERS,
            body: Body::Schema(PATCH.to_owned()),
            body_types: if kind.schema.type_name().is_some() { PATCH_TYPES } else { CUSTOM_PATCH_TYPES },
            answer: Body::Schema(schema.unwrap_or(kind.schema_name()).to_owned()),
            codes: &[200, 201],
            ..Self::new(kind, "patch", "patch", Self::id(kind, "patch", suffix))
        }
    }

    fn of_subresource(kind: &Kind, subresource: Subresource) -> Vec<Self> {
        let (verbs, (group, version, name)) = discovery::subresource_facts(kind, subresource);
        let suffix = capitalised(subresource.as_str());
        let schema = body_schema(subresource);
        let gvk = json!({"group": group, "version": version, "kind": name});
        let connects = |parameters: &'static [&'static str]| {
            let methods: &[&'static str] = match subresource {
                Subresource::Proxy => &["get", "post", "put", "patch", "delete"],
                _ => &["get", "post"],
            };
            let connect = |method: &&'static str| Self {
                parameters,
                answer: Body::Text,
                answer_types: ANYTHING,
                ..Self::new(
                    kind,
                    method,
                    "connect",
                    Self::id(kind, &format!("connect{}", capitalised(method)), &suffix),
                )
            };
            methods.iter().map(connect).collect::<Vec<Self>>()
        };
        let mut operations = match subresource {
            Subresource::Log => vec![Self {
                parameters: LOG_PARAMETERS,
                answer: Body::Text,
                answer_types: &["text/plain"],
                ..Self::read(kind, &suffix, None)
            }],
            Subresource::Exec => connects(EXEC_PARAMETERS),
            Subresource::Attach => connects(ATTACH_PARAMETERS),
            Subresource::PortForward => connects(&["ports"]),
            Subresource::Proxy => connects(&["path"]),
            _ => verbs
                .iter()
                .filter_map(|verb| match *verb {
                    "get" => Some(Self::read(kind, &suffix, schema.as_deref())),
                    "update" => Some(Self::replace(kind, &suffix, schema.as_deref())),
                    "patch" => Some(Self::patch(kind, &suffix, schema.as_deref())),
                    "create" => {
                        let schema =
                            || Body::Schema(schema.clone().unwrap_or_else(|| kind.schema_name().to_owned()));
                        Some(Self {
                            body: schema(),
                            answer: schema(),
                            id: Self::id(kind, "create", &suffix),
                            ..Self::create(kind)
                        })
                    }
                    _ => None,
                })
                .collect(),
        };
        for operation in &mut operations {
            operation.gvk = gvk.clone();
        }
        operations
    }

    fn document(&self, dialect: Dialect) -> Value {
        let mut out = json!({
            "operationId": self.id,
            "responses": self.responses(dialect),
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": self.gvk,
        });
        let mut parameters: Vec<Value> =
            self.parameters.iter().chain(&["pretty"]).map(|name| query_parameter(name, dialect)).collect();
        if let Body::Schema(schema) = &self.body {
            let reference = dialect.reference(schema);
            match dialect {
                Dialect::V2 => {
                    let mut body = json!({"name": "body", "in": "body", "schema": reference});
                    if self.body_required {
                        body["required"] = true.into();
                    }
                    parameters.push(body);
                    out["consumes"] = json!(self.body_types);
                }
                Dialect::V3 => {
                    out["requestBody"] = json!({"content": content(self.body_types, &reference)});
                    if self.body_required {
                        out["requestBody"]["required"] = true.into();
                    }
                }
            }
        }
        out["parameters"] = parameters.into();
        if matches!(dialect, Dialect::V2) {
            out["produces"] = json!(self.answer_types);
        }
        out
    }

    fn responses(&self, dialect: Dialect) -> Value {
        let schema = match &self.answer {
            Body::Schema(schema) => Some(dialect.reference(schema)),
            Body::Text => Some(json!({"type": "string"})),
            Body::Nothing => None,
        };
        let mut responses = Map::new();
        for code in self.codes {
            let description = match code {
                201 => "Created",
                202 => "Accepted",
                _ => "OK",
            };
            let mut response = json!({"description": description});
            match (dialect, &schema) {
                (Dialect::V2, Some(schema)) => response["schema"] = schema.clone(),
                (Dialect::V3, Some(schema)) => response["content"] = content(self.answer_types, schema),
                (_, None) => {}
            }
            responses.insert(code.to_string(), response);
        }
        responses.insert("401".to_owned(), json!({"description": "Unauthorized"}));
        responses.into()
    }
}

fn content(types: &[&str], schema: &Value) -> Value {
    types
        .iter()
        .map(|type_| ((*type_).to_owned(), json!({"schema": schema})))
        .collect::<Map<String, Value>>()
        .into()
}

fn path_parameter(name: &str, dialect: Dialect) -> Value {
    let description = match name {
        "name" => "Name of the object.",
        "namespace" => "Namespace the object is in.",
        _ => "Path of the request behind the proxy.",
    };
    let mut parameter = json!({"name": name, "in": "path", "required": true, "description": description});
    typed(&mut parameter, "string", dialect);
    parameter
}

fn query_parameter(name: &str, dialect: Dialect) -> Value {
    let (type_, description) = query_facts(name);
    let mut parameter = json!({"name": name, "in": "query", "description": description});
    typed(&mut parameter, type_, dialect);
    parameter
}

fn typed(parameter: &mut Value, type_: &str, dialect: Dialect) {
    match dialect {
        Dialect::V2 => {
            parameter["type"] = type_.into();
            parameter["uniqueItems"] = true.into();
        }
        Dialect::V3 => parameter["schema"] = json!({"type": type_, "uniqueItems": true}),
    }
}

/// Type and meaning of a query parameter.
fn query_facts(name: &str) -> (&'static str, &'static str) {
    match name {
        "allowWatchBookmarks" => {
            ("boolean", "Whether a watch may carry BOOKMARK events, which only tell a revision.")
        }
        "command" => ("string", "The program and its arguments; may be repeated."),
        "container" => ("string", "The container of the pod that is meant; its only one by default."),
        "continue" => ("string", "Where the next page begins: the value the last page came with."),
        "dryRun" => ("string", "All: everything but the storing is done."),
        "fieldManager" => ("string", "Who writes, for the ownership of fields; at most 128 characters."),
        "fieldSelector" => ("string", "Only objects whose fields are so."),
        "fieldValidation" => {
            ("string", "What becomes of unknown and repeated fields: Ignore, Warn or Strict.")
        }
        "follow" => ("boolean", "Go on with what is written from now on."),
        "force" => ("boolean", "Take fields over that others own; only for apply."),
        "gracePeriodSeconds" => ("integer", "Seconds until the object is gone; 0 is at once."),
        "labelSelector" => ("string", "Only objects whose labels are so."),
        "limit" => ("integer", "The most objects one answer shall have."),
        "limitBytes" => ("integer", "The most bytes the answer shall have."),
        "orphanDependents" => ("boolean", "Leave dependents alone. An older form of propagationPolicy."),
        "path" => ("string", "Path of the request behind the proxy."),
        "ports" => ("integer", "Ports to forward; needed by WebSocket clients only."),
        "pretty" => ("string", "Accepted for older clients; answers are always compact."),
        "previous" => ("boolean", "The container before the last restart."),
        "propagationPolicy" => ("string", "What becomes of dependents: Orphan, Background or Foreground."),
        "resourceVersion" => ("string", "The revision from which to watch, or how new a list must be."),
        "resourceVersionMatch" => ("string", "How resourceVersion is meant: Exact or NotOlderThan."),
        "sendInitialEvents" => ("boolean", "Begin a watch with an ADDED event for each object there is."),
        "sinceSeconds" => ("integer", "Only lines of the last seconds."),
        "sinceTime" => ("string", "Only lines since this RFC 3339 time."),
        "stderr" => ("boolean", "Carry the standard error."),
        "stdin" => ("boolean", "Carry the standard input."),
        "stdout" => ("boolean", "Carry the standard output."),
        "stream" => ("string", "All, Stdout or Stderr."),
        "tailLines" => ("integer", "Only the last lines."),
        "timeoutSeconds" => ("integer", "Seconds after which a list or watch ends."),
        "timestamps" => ("boolean", "Put the time in front of each line."),
        "tty" => ("boolean", "With a terminal."),
        _ => ("boolean", "Watch for changes instead of listing."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampan_api::registry::Registry;

    #[test]
    fn names_of_operations_are_known_ones_and_unique() {
        let registry = Registry::built_in();
        let mut all: Vec<(String, String)> = Vec::new();
        for kind in registry.kinds() {
            for (path, item) in paths(kind, Dialect::V3) {
                for (method, operation) in
                    item.as_object().into_iter().flatten().filter(|(m, _)| *m != "parameters")
                {
                    let id = operation["operationId"].as_str().expect("an id").to_owned();
                    // The two addresses of a proxy share their names but for the path.
                    if !path.ends_with("{path}") {
                        all.push((id, format!("{method} {path}")));
                    }
                }
            }
        }
        let find = |id: &str| {
            all.iter().filter(|(known, _)| known == id).map(|(_, at)| at.as_str()).collect::<Vec<_>>()
        };
        let rows = [
            ("listCoreV1NamespacedPod", "get /api/v1/namespaces/{namespace}/pods"),
            ("listCoreV1PodForAllNamespaces", "get /api/v1/pods"),
            ("readCoreV1NamespacedPodLog", "get /api/v1/namespaces/{namespace}/pods/{name}/log"),
            ("connectPostCoreV1NamespacedPodExec", "post /api/v1/namespaces/{namespace}/pods/{name}/exec"),
            (
                "patchAppsV1NamespacedDeploymentScale",
                "patch /apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
            ),
            ("replaceCoreV1NodeStatus", "put /api/v1/nodes/{name}/status"),
            ("createRbacAuthorizationV1ClusterRole", "post /apis/rbac.authorization.k8s.io/v1/clusterroles"),
            ("watchCoreV1NamespacedPodList", "get /api/v1/watch/namespaces/{namespace}/pods"),
            ("watchCoreV1PodListForAllNamespaces", "get /api/v1/watch/pods"),
        ];
        for (id, at) in rows {
            assert_eq!(find(id), [at], "{id}");
        }
        let mut ids: Vec<&str> = all.iter().map(|(id, _)| id.as_str()).collect();
        let count = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), count, "an id is given twice");
    }
}
