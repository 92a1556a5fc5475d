//! Roles every cluster has, and who has them. Names and meaning are upstream's default policy; a role for a loop of
//! upstream's that does not exist here is not here either.
//!
//! `admin`, `edit` and `view` have no rules of their own: they gather those of the roles that are labelled for them, which
//! is how the definition of a new kind brings rights to those who have these roles. A loop keeps them
//! (`cluster_role_aggregation` of the controllers); [`Role::effective`] is what it comes to in a fresh cluster, so that
//! nobody waits for the loop.

use serde_json::{Value, json};

use crate::auth::MASTERS;

/// API group of roles.
pub(super) const GROUP: &str = "rbac.authorization.k8s.io";
/// Says that a role or binding of ours may be completed at start; anything but `false` is yes.
pub(super) const AUTO_UPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

/// Verbs that only look.
const READ: &[&str] = &["get", "list", "watch"];
/// Verbs that change.
const WRITE: &[&str] = &["create", "delete", "deletecollection", "patch", "update"];
/// Both.
const READ_WRITE: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Looks, and changes what is there.
const READ_AND_MEND: &[&str] = &["get", "list", "patch", "update", "watch"];
const ALL: &[&str] = &["*"];
const CORE: &[&str] = &[""];
const EVENTS: &[&str] = &["", "events.k8s.io"];

/// What may be done to which resources.
#[derive(Clone, Copy)]
pub(super) struct Rule {
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
    /// Empty: objects of any name.
    names: &'static [&'static str],
}

const fn rule(
    verbs: &'static [&'static str],
    groups: &'static [&'static str],
    resources: &'static [&'static str],
) -> Rule {
    Rule { verbs, groups, resources, names: &[] }
}

const fn signer(verb: &'static [&'static str], names: &'static [&'static str]) -> Rule {
    Rule { verbs: verb, groups: &["certificates.k8s.io"], resources: &["signers"], names }
}

/// Events are written by everybody who acts.
const WRITES_EVENTS: Rule = rule(&["create", "patch", "update"], EVENTS, &["events"]);

/// A role and its binding.
pub(super) struct Role {
    pub(super) name: &'static str,
    /// Empty: a cluster role, and a binding for the whole cluster.
    pub(super) namespace: &'static str,
    rules: &'static [Rule],
    /// Addresses that are no resources, for `get`; `*` alone is every address and verb.
    urls: &'static [&'static str],
    /// Whom it is bound to: kind and name. Service accounts are those of `kube-system`.
    pub(super) subjects: &'static [(&'static str, &'static str)],
    /// The gathering roles it is a part of.
    part_of: &'static [&'static str],
    /// Gathers the roles that are labelled for it.
    pub(super) gathers: bool,
}

const NOTHING: Role =
    Role { name: "", namespace: "", rules: &[], urls: &[], subjects: &[], part_of: &[], gathers: false };

const HEALTH: &[&str] = &["/healthz", "/livez", "/readyz", "/version", "/version/"];

pub(super) static ROLES: &[Role] = &[
    Role {
        name: "cluster-admin",
        rules: &[rule(ALL, ALL, ALL)],
        urls: &["*"],
        subjects: &[("Group", MASTERS)],
        ..NOTHING
    },
    Role {
        name: "system:discovery",
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
        ..NOTHING
    },
    Role {
        name: "system:public-info-viewer",
        urls: HEALTH,
        subjects: &[("Group", "system:authenticated"), ("Group", "system:unauthenticated")],
        ..NOTHING
    },
    Role {
        name: "system:monitoring",
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
        ..NOTHING
    },
    Role {
        name: "system:basic-user",
        rules: &[
            rule(
                &["create"],
                &["authorization.k8s.io"],
                &["selfsubjectaccessreviews", "selfsubjectrulesreviews"],
            ),
            rule(&["create"], &["authentication.k8s.io"], &["selfsubjectreviews"]),
        ],
        subjects: &[("Group", "system:authenticated")],
        ..NOTHING
    },
    Role {
        name: "system:service-account-issuer-discovery",
        urls: &[
            "/.well-known/openid-configuration",
            "/.well-known/openid-configuration/",
            "/openid/v1/jwks",
            "/openid/v1/jwks/",
        ],
        subjects: &[("Group", "system:serviceaccounts")],
        ..NOTHING
    },
    // Roles for people, by namespace or everywhere.
    Role { name: "admin", gathers: true, ..NOTHING },
    Role { name: "edit", gathers: true, part_of: &["admin"], ..NOTHING },
    Role { name: "view", gathers: true, part_of: &["edit"], ..NOTHING },
    Role {
        name: "system:aggregate-to-admin",
        rules: &[
            rule(&["create"], &["authorization.k8s.io"], &["localsubjectaccessreviews"]),
            rule(READ_WRITE, &[GROUP], &["roles", "rolebindings"]),
        ],
        part_of: &["admin"],
        ..NOTHING
    },
    Role {
        name: "system:aggregate-to-edit",
        rules: &[
            rule(
                READ,
                CORE,
                &["pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy"],
            ),
            rule(&["impersonate"], CORE, &["serviceaccounts"]),
            rule(WRITE, CORE, &["pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy"]),
            rule(&["create"], CORE, &["pods/eviction", "serviceaccounts/token"]),
            rule(
                WRITE,
                CORE,
                &[
                    "configmaps",
                    "endpoints",
                    "events",
                    "persistentvolumeclaims",
                    "replicationcontrollers",
                    "replicationcontrollers/scale",
                    "secrets",
                    "serviceaccounts",
                    "services",
                    "services/proxy",
                ],
            ),
            rule(
                WRITE,
                &["apps"],
                &[
                    "daemonsets",
                    "deployments",
                    "deployments/rollback",
                    "deployments/scale",
                    "replicasets",
                    "replicasets/scale",
                    "statefulsets",
                    "statefulsets/scale",
                ],
            ),
            rule(WRITE, &["autoscaling"], &["horizontalpodautoscalers"]),
            rule(WRITE, &["batch"], &["cronjobs", "jobs"]),
            rule(WRITE, &["policy"], &["poddisruptionbudgets"]),
            rule(WRITE, &["networking.k8s.io"], &["ingresses", "networkpolicies"]),
            rule(READ_WRITE, &["coordination.k8s.io"], &["leases"]),
            rule(WRITE, &["resource.k8s.io"], &["resourceclaims", "resourceclaimtemplates"]),
        ],
        part_of: &["edit"],
        ..NOTHING
    },
    Role {
        name: "system:aggregate-to-view",
        rules: &[
            rule(
                READ,
                CORE,
                &[
                    "bindings",
                    "configmaps",
                    "endpoints",
                    "events",
                    "limitranges",
                    "namespaces",
                    "namespaces/status",
                    "persistentvolumeclaims",
                    "persistentvolumeclaims/status",
                    "pods",
                    "pods/log",
                    "pods/status",
                    "replicationcontrollers",
                    "replicationcontrollers/scale",
                    "replicationcontrollers/status",
                    "resourcequotas",
                    "resourcequotas/status",
                    "serviceaccounts",
                    "services",
                    "services/status",
                ],
            ),
            rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
            rule(
                READ,
                &["apps"],
                &[
                    "controllerrevisions",
                    "daemonsets",
                    "daemonsets/status",
                    "deployments",
                    "deployments/scale",
                    "deployments/status",
                    "replicasets",
                    "replicasets/scale",
                    "replicasets/status",
                    "statefulsets",
                    "statefulsets/scale",
                    "statefulsets/status",
                ],
            ),
            rule(READ, &["autoscaling"], &["horizontalpodautoscalers", "horizontalpodautoscalers/status"]),
            rule(READ, &["batch"], &["cronjobs", "cronjobs/status", "jobs", "jobs/status"]),
            rule(READ, &["policy"], &["poddisruptionbudgets", "poddisruptionbudgets/status"]),
            rule(READ, &["networking.k8s.io"], &["ingresses", "ingresses/status", "networkpolicies"]),
            rule(
                READ,
                &["resource.k8s.io"],
                &["resourceclaims", "resourceclaims/status", "resourceclaimtemplates"],
            ),
        ],
        part_of: &["view"],
        ..NOTHING
    },
    // Nodes. What a node may is also what the node authorizer asks this table for; the role is bound to nobody.
    Role {
        name: NODE,
        rules: &[
            rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
            rule(
                &["create"],
                &["authorization.k8s.io"],
                &["localsubjectaccessreviews", "subjectaccessreviews"],
            ),
            // The names and addresses of services: the node serves both to its pods.
            rule(READ, CORE, &["endpoints", "namespaces", "services"]),
            rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
            rule(&["create", "get", "list", "watch"], CORE, &["nodes"]),
            rule(&["patch", "update"], CORE, &["nodes", "nodes/status"]),
            WRITES_EVENTS,
            rule(READ, CORE, &["pods"]),
            rule(&["create", "delete"], CORE, &["pods"]),
            rule(&["patch", "update"], CORE, &["pods/status"]),
            rule(&["create"], CORE, &["pods/eviction", "serviceaccounts/token"]),
            rule(READ, CORE, &["configmaps", "secrets"]),
            rule(&["get"], CORE, &["persistentvolumeclaims", "persistentvolumes", "serviceaccounts"]),
            rule(&["get", "patch", "update"], CORE, &["persistentvolumeclaims/status"]),
            rule(
                &["create", "get", "list", "watch"],
                &["certificates.k8s.io"],
                &["certificatesigningrequests"],
            ),
            rule(READ, &["certificates.k8s.io"], &["clustertrustbundles"]),
            rule(
                &["create", "delete", "get", "list", "patch", "update", "watch"],
                &["coordination.k8s.io"],
                &["leases"],
            ),
            rule(READ, &["storage.k8s.io"], &["csidrivers"]),
            rule(&["create", "delete", "get", "patch", "update"], &["storage.k8s.io"], &["csinodes"]),
            rule(&["get"], &["storage.k8s.io"], &["volumeattachments"]),
            rule(READ, &["node.k8s.io"], &["runtimeclasses"]),
            rule(&["get"], &["resource.k8s.io"], &["resourceclaims"]),
            rule(READ_WRITE, &["resource.k8s.io"], &["resourceslices"]),
        ],
        ..NOTHING
    },
    Role {
        name: "system:node-proxier",
        rules: &[
            rule(READ, CORE, &["endpoints", "services"]),
            rule(READ, CORE, &["nodes"]),
            rule(READ, &["discovery.k8s.io"], &["endpointslices"]),
            WRITES_EVENTS,
        ],
        subjects: &[("User", "system:kube-proxy")],
        ..NOTHING
    },
    Role {
        name: "system:node-problem-detector",
        rules: &[rule(&["get"], CORE, &["nodes"]), rule(&["patch"], CORE, &["nodes/status"]), WRITES_EVENTS],
        ..NOTHING
    },
    Role {
        name: "system:kubelet-api-admin",
        rules: &[
            rule(READ, CORE, &["nodes"]),
            rule(&["proxy"], CORE, &["nodes"]),
            rule(
                ALL,
                CORE,
                &[
                    "nodes/configz",
                    "nodes/healthz",
                    "nodes/log",
                    "nodes/metrics",
                    "nodes/pods",
                    "nodes/proxy",
                    "nodes/stats",
                ],
            ),
        ],
        ..NOTHING
    },
    Role {
        name: "system:node-bootstrapper",
        rules: &[rule(
            &["create", "get", "list", "watch"],
            &["certificates.k8s.io"],
            &["certificatesigningrequests"],
        )],
        // Upstream leaves this and the next two bindings to kubeadm, whose part this program plays.
        subjects: &[("Group", NEW_NODES)],
        ..NOTHING
    },
    Role {
        name: "system:certificates.k8s.io:certificatesigningrequests:nodeclient",
        rules: &[rule(&["create"], &["certificates.k8s.io"], &["certificatesigningrequests/nodeclient"])],
        subjects: &[("Group", NEW_NODES)],
        ..NOTHING
    },
    Role {
        name: "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient",
        rules: &[rule(&["create"], &["certificates.k8s.io"], &["certificatesigningrequests/selfnodeclient"])],
        subjects: &[("Group", "system:nodes")],
        ..NOTHING
    },
    Role {
        name: "system:certificates.k8s.io:legacy-unknown-approver",
        rules: &[signer(&["approve"], &["kubernetes.io/legacy-unknown"])],
        ..NOTHING
    },
    Role {
        name: "system:certificates.k8s.io:kubelet-serving-approver",
        rules: &[signer(&["approve"], &["kubernetes.io/kubelet-serving"])],
        ..NOTHING
    },
    Role {
        name: "system:certificates.k8s.io:kube-apiserver-client-approver",
        rules: &[signer(&["approve"], &["kubernetes.io/kube-apiserver-client"])],
        ..NOTHING
    },
    Role {
        name: "system:certificates.k8s.io:kube-apiserver-client-kubelet-approver",
        rules: &[signer(&["approve"], &["kubernetes.io/kube-apiserver-client-kubelet"])],
        ..NOTHING
    },
    // For programs that serve APIs or decide by ours.
    Role {
        name: "system:auth-delegator",
        rules: &[
            rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
            rule(&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
        ],
        ..NOTHING
    },
    Role {
        name: "system:kube-aggregator",
        rules: &[rule(READ, CORE, &["endpoints", "services"])],
        ..NOTHING
    },
    Role {
        name: "system:kube-dns",
        rules: &[
            rule(&["list", "watch"], CORE, &["endpoints", "services"]),
            rule(&["list", "watch"], &["discovery.k8s.io"], &["endpointslices"]),
        ],
        subjects: &[("ServiceAccount", "kube-dns")],
        ..NOTHING
    },
    Role {
        name: "system:persistent-volume-provisioner",
        rules: &[
            rule(&["create", "delete", "get", "list", "watch"], CORE, &["persistentvolumes"]),
            rule(&["get", "list", "update", "watch"], CORE, &["persistentvolumeclaims"]),
            rule(READ, &["storage.k8s.io"], &["storageclasses"]),
            rule(&["watch"], CORE, &["events"]),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    // Parts of this process.
    Role {
        name: "system:kube-scheduler",
        rules: &[
            WRITES_EVENTS,
            rule(&["create", "get", "update"], &["coordination.k8s.io"], &["leases"]),
            rule(READ, CORE, &["namespaces", "nodes"]),
            rule(&["delete", "get", "list", "watch"], CORE, &["pods"]),
            rule(&["create"], CORE, &["bindings", "pods/binding"]),
            rule(&["patch", "update"], CORE, &["pods/status"]),
            rule(READ, CORE, &["replicationcontrollers", "services"]),
            rule(READ, &["apps"], &["replicasets", "statefulsets"]),
            rule(READ, &["policy"], &["poddisruptionbudgets"]),
            rule(READ, CORE, &["persistentvolumeclaims", "persistentvolumes"]),
            rule(
                READ,
                &["storage.k8s.io"],
                &["csidrivers", "csinodes", "csistoragecapacities", "storageclasses", "volumeattachments"],
            ),
            rule(READ, &["resource.k8s.io"], &["deviceclasses", "resourceclaims", "resourceslices"]),
            rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
            rule(&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
        ],
        subjects: &[("User", "system:kube-scheduler")],
        ..NOTHING
    },
    Role {
        name: "system:volume-scheduler",
        rules: &[
            rule(READ_AND_MEND, CORE, &["persistentvolumes"]),
            rule(READ, &["storage.k8s.io"], &["storageclasses"]),
            rule(READ_AND_MEND, CORE, &["persistentvolumeclaims"]),
        ],
        subjects: &[("User", "system:kube-scheduler")],
        ..NOTHING
    },
    Role {
        // What the process of the loops does itself; each loop has a role of its own below.
        name: MANAGER,
        rules: &[
            rule(READ, ALL, ALL),
            rule(&["create"], CORE, &["serviceaccounts", "serviceaccounts/token"]),
            rule(&["delete", "update"], CORE, &["secrets", "serviceaccounts"]),
            rule(&["create", "get", "update"], &["coordination.k8s.io"], &["leases"]),
            rule(&["create"], &["authentication.k8s.io"], &["tokenreviews"]),
            rule(&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
            WRITES_EVENTS,
        ],
        subjects: &[("User", MANAGER)],
        ..NOTHING
    },
    // A loop acts as the service account after which its role is named.
    Role {
        name: "system:controller:deployment-controller",
        subjects: &[("ServiceAccount", "deployment-controller")],
        rules: &[
            rule(READ_AND_MEND, &["apps"], &["deployments"]),
            rule(&["update"], &["apps"], &["deployments/finalizers", "deployments/status"]),
            rule(
                &["create", "delete", "get", "list", "patch", "update", "watch"],
                &["apps"],
                &["replicasets"],
            ),
            rule(&["get", "list", "update", "watch"], CORE, &["pods"]),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:replicaset-controller",
        subjects: &[("ServiceAccount", "replicaset-controller")],
        rules: &[
            rule(&["get", "list", "update", "watch"], &["apps"], &["replicasets"]),
            rule(&["update"], &["apps"], &["replicasets/finalizers", "replicasets/status"]),
            rule(&["create", "delete", "list", "patch", "watch"], CORE, &["pods"]),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:endpointslice-controller",
        subjects: &[("ServiceAccount", "endpointslice-controller")],
        rules: &[
            rule(READ, CORE, &["nodes", "pods", "services"]),
            rule(&["update"], CORE, &["services/finalizers"]),
            rule(
                &["create", "delete", "get", "list", "update", "watch"],
                &["discovery.k8s.io"],
                &["endpointslices"],
            ),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:namespace-controller",
        subjects: &[("ServiceAccount", "namespace-controller")],
        rules: &[
            rule(&["delete", "get", "list", "watch"], CORE, &["namespaces"]),
            rule(&["update"], CORE, &["namespaces/finalize", "namespaces/status"]),
            rule(&["delete", "deletecollection", "get", "list"], ALL, ALL),
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:generic-garbage-collector",
        subjects: &[("ServiceAccount", "generic-garbage-collector")],
        rules: &[rule(&["delete", "get", "list", "patch", "update", "watch"], ALL, ALL), WRITES_EVENTS],
        ..NOTHING
    },
    Role {
        name: "system:controller:pod-garbage-collector",
        subjects: &[("ServiceAccount", "pod-garbage-collector")],
        rules: &[
            rule(&["delete", "list", "watch"], CORE, &["pods"]),
            rule(&["get", "list"], CORE, &["nodes"]),
            rule(&["patch"], CORE, &["pods/status"]),
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:service-account-controller",
        subjects: &[("ServiceAccount", "service-account-controller")],
        rules: &[rule(&["create"], CORE, &["serviceaccounts"]), WRITES_EVENTS],
        ..NOTHING
    },
    Role {
        name: "system:controller:root-ca-cert-publisher",
        subjects: &[("ServiceAccount", "root-ca-cert-publisher")],
        rules: &[rule(&["create", "update"], CORE, &["configmaps"]), WRITES_EVENTS],
        ..NOTHING
    },
    Role {
        name: "system:controller:clusterrole-aggregation-controller",
        subjects: &[("ServiceAccount", "clusterrole-aggregation-controller")],
        // It writes rules it does not hold itself.
        rules: &[rule(&["escalate", "get", "list", "patch", "update", "watch"], &[GROUP], &["clusterroles"])],
        ..NOTHING
    },
    Role {
        name: "system:controller:node-controller",
        subjects: &[("ServiceAccount", "node-controller")],
        rules: &[
            rule(&["delete", "get", "list", "patch", "update"], CORE, &["nodes"]),
            rule(&["patch", "update"], CORE, &["nodes/status", "pods/status"]),
            rule(&["delete", "get", "list"], CORE, &["pods"]),
            rule(&["get"], &["coordination.k8s.io"], &["leases"]),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:resourcequota-controller",
        subjects: &[("ServiceAccount", "resourcequota-controller")],
        rules: &[rule(READ, ALL, ALL), rule(&["update"], CORE, &["resourcequotas/status"]), WRITES_EVENTS],
        ..NOTHING
    },
    Role {
        name: "system:controller:pvc-protection-controller",
        subjects: &[("ServiceAccount", "pvc-protection-controller")],
        rules: &[
            rule(READ_AND_MEND, CORE, &["persistentvolumeclaims"]),
            rule(READ, CORE, &["pods"]),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:pv-protection-controller",
        subjects: &[("ServiceAccount", "pv-protection-controller")],
        rules: &[
            rule(READ_AND_MEND, CORE, &["persistentvolumes"]),
            rule(&["get"], CORE, &["persistentvolumeclaims"]),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:volumeattributesclass-protection-controller",
        subjects: &[("ServiceAccount", "volumeattributesclass-protection-controller")],
        rules: &[
            rule(READ_AND_MEND, &["storage.k8s.io"], &["volumeattributesclasses"]),
            rule(READ, CORE, &["persistentvolumeclaims", "persistentvolumes"]),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:certificate-controller",
        subjects: &[("ServiceAccount", "certificate-controller")],
        rules: &[
            rule(
                &["delete", "get", "list", "watch"],
                &["certificates.k8s.io"],
                &["certificatesigningrequests"],
            ),
            rule(
                &["update"],
                &["certificates.k8s.io"],
                &["certificatesigningrequests/approval", "certificatesigningrequests/status"],
            ),
            signer(&["approve"], &["kubernetes.io/kube-apiserver-client-kubelet"]),
            signer(
                &["sign"],
                &[
                    "kubernetes.io/kube-apiserver-client",
                    "kubernetes.io/kube-apiserver-client-kubelet",
                    "kubernetes.io/kubelet-serving",
                    "kubernetes.io/legacy-unknown",
                ],
            ),
            rule(&["create"], &["authorization.k8s.io"], &["subjectaccessreviews"]),
            WRITES_EVENTS,
        ],
        ..NOTHING
    },
    Role {
        name: "system:controller:token-cleaner",
        namespace: "kube-system",
        subjects: &[("ServiceAccount", "token-cleaner")],
        rules: &[rule(&["delete", "get", "list", "watch"], CORE, &["secrets"]), WRITES_EVENTS],
        ..NOTHING
    },
    Role {
        // For extension servers, whose packages bind it to themselves.
        name: "extension-apiserver-authentication-reader",
        namespace: "kube-system",
        subjects: &[("User", "system:kube-controller-manager"), ("User", "system:kube-scheduler")],
        rules: &[Rule { names: &[AUTHENTICATION], ..rule(READ, CORE, &["configmaps"]) }],
        ..NOTHING
    },
];

/// Where extension servers look for the authorities they are to believe.
pub(crate) const AUTHENTICATION: &str = "extension-apiserver-authentication";
/// The process of the loops, and its role.
pub(super) const MANAGER: &str = "system:kube-controller-manager";
/// The role of nodes.
pub(super) const NODE: &str = "system:node";
/// Machines that come with a token this program has made for new nodes.
pub(super) const NEW_NODES: &str = "system:bootstrappers:sampan:default-node-token";

impl Role {
    /// The rules of the role alone.
    fn own(&self) -> Vec<Value> {
        let of = |rule: &Rule| {
            let mut value =
                json!({"verbs": rule.verbs, "apiGroups": rule.groups, "resources": rule.resources});
            if !rule.names.is_empty() {
                value["resourceNames"] = json!(rule.names);
            }
            value
        };
        let mut rules: Vec<Value> = self.rules.iter().map(of).collect();
        if !self.urls.is_empty() {
            let verbs: &[&str] = if self.urls == ["*"] { ALL } else { &["get"] };
            rules.push(json!({"verbs": verbs, "nonResourceURLs": self.urls}));
        }
        rules
    }

    /// The rules of the role, with those it gathers.
    pub(super) fn effective(&self) -> Vec<Value> {
        let mut rules = self.own();
        if self.gathers {
            // In the loop's order, so that it has nothing to write in a fresh cluster.
            let mut parts: Vec<&Role> =
                ROLES.iter().filter(|part| part.part_of.contains(&self.name)).collect();
            parts.sort_by_key(|part| part.name);
            rules.extend(parts.into_iter().flat_map(Role::effective));
        }
        rules
    }

    /// The names of the two kinds in addresses: of the role and of its binding.
    pub(super) fn resources(&self) -> (&'static str, &'static str) {
        if self.namespace.is_empty() {
            ("clusterroles", "clusterrolebindings")
        } else {
            ("roles", "rolebindings")
        }
    }

    /// The role, as an object.
    pub(super) fn role(&self) -> Value {
        let mut role = json!({"metadata": metadata(self.name), "rules": self.effective()});
        for whole in self.part_of {
            role["metadata"]["labels"][label(whole)] = "true".into();
        }
        if self.gathers {
            let labels = json!({(label(self.name)): "true"});
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": labels}]});
        }
        role
    }

    /// The binding, as an object.
    pub(super) fn binding(&self) -> Value {
        let subject = |(kind, name): &(&str, &str)| match *kind {
            "ServiceAccount" => json!({"kind": kind, "name": name, "namespace": "kube-system"}),
            _ => json!({"kind": kind, "name": name, "apiGroup": GROUP}),
        };
        let kind = if self.namespace.is_empty() { "ClusterRole" } else { "Role" };
        json!({
            "metadata": metadata(self.name),
            "roleRef": {"apiGroup": GROUP, "kind": kind, "name": self.name},
            "subjects": self.subjects.iter().map(subject).collect::<Vec<Value>>(),
        })
    }
}

fn label(whole: &str) -> String {
    format!("rbac.authorization.k8s.io/aggregate-to-{whole}")
}

fn metadata(name: &str) -> Value {
    json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {AUTO_UPDATE: "true"},
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::auth::rbac::{Attributes, rules_in};

    fn role(name: &str) -> &'static Role {
        ROLES.iter().find(|role| role.name == name).expect(name)
    }

    #[test]
    fn the_table_is_sound() {
        let mut names = BTreeSet::new();
        for role in ROLES {
            assert!(names.insert((role.namespace, role.name)), "{} stands twice", role.name);
            assert!(role.namespace.is_empty() || !role.gathers && role.urls.is_empty(), "{}", role.name);
            assert!(role.gathers || !(role.rules.is_empty() && role.urls.is_empty()), "{}", role.name);
            for whole in role.part_of {
                assert!(ROLES.iter().any(|role| role.name == *whole && role.gathers), "{whole}");
            }
        }
    }

    #[test]
    fn what_the_roles_of_people_come_to() {
        let question = |verb, resource| Attributes { verb, resource, ..Attributes::default() };
        let rows = [
            ("get", "pods", "", [true, true, true]),
            ("create", "pods", "", [true, true, false]),
            ("get", "secrets", "", [true, true, false]),
            ("create", "rolebindings", GROUP, [true, false, false]),
            ("create", "deployments", "apps", [true, true, false]),
            ("list", "deployments", "apps", [true, true, true]),
            ("delete", "nodes", "", [false, false, false]),
            ("create", "resourcequotas", "", [false, false, false]),
        ];
        for (verb, resource, group, expected) in rows {
            let found = ["admin", "edit", "view"].map(|name| {
                let rules = rules_in(&role(name).role());
                rules.iter().any(|rule| rule.allows(&Attributes { group, ..question(verb, resource) }))
            });
            assert_eq!(found, expected, "{verb} {resource}");
        }
    }

    #[test]
    fn nobody_has_the_role_of_nodes() {
        assert!(role(NODE).subjects.is_empty());
        assert!(ROLES.iter().all(|role| role.name == NODE
            || !role.subjects.contains(&("Group", "system:nodes"))
            || role.name.ends_with(":selfnodeclient")));
    }
}
