//! What every cluster has from its first moment: namespaces, roles, the API's own service, priority classes.
//!
//! Runs at every start. What exists is left as its owner changed it, except the endpoint of the API itself, which is
//! where this server says it is.

use std::net::Ipv4Addr;
use std::sync::Arc;

use sampan_api::decode::Strictness;
use serde_json::{Value, json};

use crate::auth::{MASTERS, User};
use crate::error::ApiError;
use crate::flow;
use crate::server::{ApiServer, StartError};
use crate::view::View;
use crate::write::{Change, WriteCall};

/// Verbs that only look.
const READ: &[&str] = &["get", "list", "watch"];
/// Verbs that change.
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
const ALL: &[&str] = &["*"];

/// A rule: verbs, API groups, resources.
type Rule<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str]);

struct Role {
    name: &'static str,
    rules: &'static [Rule<'static>],
    /// Addresses that are no resources, for `get`.
    urls: &'static [&'static str],
    /// Whom it is bound to: kind and name.
    subjects: &'static [(&'static str, &'static str)],
}

const WORKLOADS: &[&str] = &[
    "configmaps",
    "endpoints",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "replicationcontrollers/scale",
    "serviceaccounts",
    "services",
];
const POD_STREAMS: &[&str] =
    &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"];
const LOOKS: &[&str] = &[
    "bindings",
    "events",
    "limitranges",
    "namespaces",
    "namespaces/status",
    "pods/log",
    "pods/status",
    "resourcequotas",
    "resourcequotas/status",
];

/// Roles and their bindings. Names and meaning are upstream's.
const ROLES: &[Role] = &[
    Role { name: "cluster-admin", rules: &[(ALL, ALL, ALL)], urls: &["*"], subjects: &[("Group", MASTERS)] },
    Role {
        name: "system:discovery",
        rules: &[],
        urls: &[
            "/api",
            "/api/*",
            "/apis",
            "/apis/*",
            "/healthz",
            "/livez",
            "/openapi",
            "/openapi/*",
            "/readyz",
            "/version",
            "/version/",
        ],
        subjects: &[("Group", "system:authenticated")],
    },
    Role {
        name: "system:public-info-viewer",
        rules: &[],
        urls: &["/healthz", "/livez", "/readyz", "/version", "/version/"],
        subjects: &[("Group", "system:authenticated"), ("Group", "system:unauthenticated")],
    },
    Role {
        name: "system:monitoring",
        rules: &[],
        urls: &[
            "/healthz",
            "/healthz/*",
            "/livez",
            "/livez/*",
            "/metrics",
            "/metrics/slis",
            "/readyz",
            "/readyz/*",
        ],
        subjects: &[("Group", "system:monitoring")],
    },
    Role {
        name: "system:basic-user",
        rules: &[
            (
                &["create"],
                &["authorization.k8s.io"],
                &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            ),
            (&["create"], &["authentication.k8s.io"], &["selfsubjectreviews"]),
        ],
        urls: &[],
        subjects: &[("Group", "system:authenticated")],
    },
    Role {
        // What an extension server needs to ask about users and their rights.
        name: "system:auth-delegator",
        rules: &[
            (&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
            (&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
        ],
        urls: &[],
        subjects: &[],
    },
    Role {
        name: "admin",
        rules: &[
            (READ, &[""], WORKLOADS),
            (WRITE, &[""], WORKLOADS),
            (READ, &[""], POD_STREAMS),
            (WRITE, &[""], POD_STREAMS),
            (READ, &[""], LOOKS),
            (&["create"], &[""], &["pods/eviction", "serviceaccounts/token"]),
            (&["impersonate"], &[""], &["serviceaccounts"]),
            (ALL, &["apps", "batch", "autoscaling", "policy", "networking.k8s.io"], ALL),
            (READ, &["discovery.k8s.io"], &["endpointslices"]),
            (&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews"]),
            (ALL, &["rbac.authorization.k8s.io"], &["roles", "rolebindings"]),
        ],
        urls: &[],
        subjects: &[],
    },
    Role {
        name: "edit",
        rules: &[
            (READ, &[""], WORKLOADS),
            (WRITE, &[""], WORKLOADS),
            (READ, &[""], POD_STREAMS),
            (WRITE, &[""], POD_STREAMS),
            (READ, &[""], LOOKS),
            (&["create"], &[""], &["pods/eviction", "serviceaccounts/token"]),
            (&["impersonate"], &[""], &["serviceaccounts"]),
            (ALL, &["apps", "batch", "autoscaling", "policy", "networking.k8s.io"], ALL),
            (READ, &["discovery.k8s.io"], &["endpointslices"]),
        ],
        urls: &[],
        subjects: &[],
    },
    Role {
        name: "view",
        rules: &[
            (READ, &[""], WORKLOADS),
            (READ, &[""], LOOKS),
            (READ, &["apps", "batch", "autoscaling", "policy", "networking.k8s.io"], ALL),
            (READ, &["discovery.k8s.io"], &["endpointslices"]),
        ],
        urls: &[],
        subjects: &[],
    },
    Role {
        name: "system:node",
        rules: &[
            (
                READ,
                &[""],
                &[
                    "configmaps",
                    "endpoints",
                    "namespaces",
                    "nodes",
                    "persistentvolumeclaims",
                    "persistentvolumes",
                    "pods",
                    "secrets",
                    "serviceaccounts",
                    "services",
                ],
            ),
            (READ, &["discovery.k8s.io"], &["endpointslices"]),
            (READ, &["node.k8s.io", "storage.k8s.io"], ALL),
            (&["create", "patch", "update"], &[""], &["nodes", "nodes/status"]),
            (&["patch", "update"], &[""], &["pods/status"]),
            (&["create", "delete"], &[""], &["pods"]),
            (&["create", "patch", "update"], &["", "events.k8s.io"], &["events"]),
            (&["create"], &[""], &["serviceaccounts/token"]),
            (&["create", "delete", "get", "patch", "update"], &["coordination.k8s.io"], &["leases"]),
            (&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
            (&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
        ],
        urls: &[],
        subjects: &[("Group", "system:nodes")],
    },
    Role {
        name: "system:kube-scheduler",
        rules: &[
            (
                READ,
                &[""],
                &[
                    "namespaces",
                    "nodes",
                    "persistentvolumeclaims",
                    "persistentvolumes",
                    "pods",
                    "replicationcontrollers",
                    "services",
                ],
            ),
            (READ, &["apps", "policy", "storage.k8s.io", "resource.k8s.io"], ALL),
            (&["create"], &[""], &["bindings", "pods/binding"]),
            (&["delete"], &[""], &["pods"]),
            (&["patch", "update"], &[""], &["pods/status"]),
            (&["create", "patch", "update"], &["", "events.k8s.io"], &["events"]),
            (&["create", "get", "update"], &["coordination.k8s.io"], &["leases"]),
        ],
        urls: &[],
        subjects: &[("User", "system:kube-scheduler")],
    },
    Role {
        // The loops delete whatever their owners leave behind, in every group.
        name: "system:kube-controller-manager",
        rules: &[(ALL, ALL, ALL)],
        urls: &["/api", "/api/*", "/apis", "/apis/*"],
        subjects: &[("User", "system:kube-controller-manager")],
    },
];

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

fn rule((verbs, groups, resources): &Rule<'_>) -> Value {
    json!({"verbs": verbs, "apiGroups": groups, "resources": resources})
}

fn cluster_role(role: &Role) -> Value {
    let mut rules: Vec<Value> = role.rules.iter().map(rule).collect();
    if !role.urls.is_empty() {
        let verbs: &[&str] = if role.urls == ["*"] { ALL } else { &["get"] };
        rules.push(json!({"verbs": verbs, "nonResourceURLs": role.urls}));
    }
    json!({"metadata": bootstrap_metadata(role.name), "rules": rules})
}

fn cluster_role_binding(role: &Role) -> Value {
    let subjects: Vec<Value> = role
        .subjects
        .iter()
        .map(|(kind, name)| json!({"kind": kind, "name": name, "apiGroup": "rbac.authorization.k8s.io"}))
        .collect();
    json!({
        "metadata": bootstrap_metadata(role.name),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role.name},
        "subjects": subjects,
    })
}

fn bootstrap_metadata(name: &str) -> Value {
    json!({"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"}})
}

/// Creates what is missing.
pub(crate) async fn run(server: &Arc<ApiServer>, service_address: Ipv4Addr) -> Result<(), StartError> {
    for name in NAMESPACES {
        create(server, "", "namespaces", "", json!({"metadata": {"name": name}})).await?;
    }
    for role in ROLES {
        create(server, "rbac.authorization.k8s.io", "clusterroles", "", cluster_role(role)).await?;
        if !role.subjects.is_empty() {
            create(
                server,
                "rbac.authorization.k8s.io",
                "clusterrolebindings",
                "",
                cluster_role_binding(role),
            )
            .await?;
        }
    }
    for (name, value, what) in [
        ("system-cluster-critical", 2_000_000_000, "Pods the cluster cannot do without."),
        ("system-node-critical", 2_000_001_000, "Pods their node cannot do without."),
    ] {
        let class = json!({"metadata": {"name": name}, "value": value, "description": what});
        create(server, "scheduling.k8s.io", "priorityclasses", "", class).await?;
    }
    flow_control(server).await?;
    let service = json!({
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": service_address.to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": server.config.advertise.1}],
        },
    });
    create(server, "", "services", "default", service).await?;
    own_endpoint(server).await
}

/// Priority levels and flow schemas, on servers whose table has these kinds.
async fn flow_control(server: &Arc<ApiServer>) -> Result<(), StartError> {
    const GROUP: &str = "flowcontrol.apiserver.k8s.io";
    let objects = [
        ("prioritylevelconfigurations", flow::defaults::levels()),
        ("flowschemas", flow::defaults::schemas()),
    ];
    for (plural, objects) in objects {
        if server.registry().find_resource(GROUP, plural).is_some() {
            for object in objects {
                create(server, GROUP, plural, "", object).await?;
            }
        }
    }
    Ok(())
}

/// The slice behind the service `kubernetes` is made by the server itself.
async fn own_endpoint(server: &Arc<ApiServer>) -> Result<(), StartError> {
    let (address, port) = server.config.advertise;
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {
            "kubernetes.io/service-name": "kubernetes",
            "endpointslice.kubernetes.io/managed-by": "apiserver",
        }},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
    });
    if create(server, "discovery.k8s.io", "endpointslices", "default", slice.clone()).await? {
        return Ok(());
    }
    let kind = kind(server, "discovery.k8s.io", "endpointslices")?;
    let user = User::known("system:apiserver", &[MASTERS]);
    let call = WriteCall::internal(&kind, "default", "kubernetes", View::Object, &user);
    let patch = json!({"endpoints": slice["endpoints"], "ports": slice["ports"]});
    server
        .change(&call, &Change::Merge(patch), &Strictness::default())
        .await
        .map(|_| ())
        .map_err(|e| StartError::Bootstrap("the endpoint of the API".to_owned(), e))
}

fn kind(
    server: &ApiServer,
    group: &str,
    plural: &str,
) -> Result<Arc<sampan_api::registry::Kind>, StartError> {
    server
        .registry()
        .find_resource(group, plural)
        .cloned()
        .ok_or_else(|| StartError::Config(format!("there is no kind {plural} in the table")))
}

/// Creates an object; `false` if it exists.
pub(crate) async fn create(
    server: &Arc<ApiServer>,
    group: &str,
    plural: &str,
    namespace: &str,
    object: Value,
) -> Result<bool, StartError> {
    let kind = kind(server, group, plural)?;
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let user = User::known("system:apiserver", &[MASTERS]);
    // At every start but the first all of this exists.
    if server.cache.resource(kind.stored_resource()).get(&kind.store_key(namespace, &name)).is_some() {
        return Ok(false);
    }
    let call = WriteCall::internal(&kind, namespace, "", View::Object, &user);
    match server.create(&call, object, Strictness::default()).await {
        Ok(_) => Ok(true),
        Err(ApiError { reason: "AlreadyExists", .. }) => Ok(false),
        Err(e) => Err(StartError::Bootstrap(format!("{plural} {name}"), e)),
    }
}
