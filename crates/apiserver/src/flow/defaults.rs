//! The priority levels and flow schemas every cluster has. Names, order and numbers are upstream's
//! (`pkg/apis/flowcontrol/bootstrap/default.go`); what an administrator changed stays changed.

use serde_json::{Value, json};

/// Requests that are never held back.
pub(super) const EXEMPT: &str = "exempt";
/// What nothing else matches.
pub(super) const CATCH_ALL: &str = "catch-all";

/// Shares, lendable percent, queues, hand size; no queues means that what finds no seat is refused.
const LEVELS: &[(&str, i64, i64, i64, i64)] = &[
    (CATCH_ALL, 5, 0, 0, 0),
    ("system", 30, 33, 64, 6),
    ("node-high", 40, 25, 64, 6),
    ("leader-election", 10, 0, 16, 4),
    ("workload-high", 40, 50, 128, 6),
    ("workload-low", 100, 90, 128, 6),
    ("global-default", 20, 50, 128, 6),
];
const QUEUE_LENGTH_LIMIT: i64 = 50;

/// Whom a schema is for.
enum Who {
    User(&'static str),
    Group(&'static str),
    /// A service account of `kube-system`; `*` is all of them.
    Account(&'static str),
}

/// What a schema is about.
enum What {
    Everything,
    Probes,
    Leases,
    Endpoints,
    Heartbeats,
}

struct Schema {
    name: &'static str,
    precedence: i64,
    level: &'static str,
    distinguisher: &'static str,
    who: &'static [Who],
    what: What,
}

const BY_USER: &str = "ByUser";
const BY_NAMESPACE: &str = "ByNamespace";
const EVERYBODY: &[Who] = &[Who::Group("system:unauthenticated"), Who::Group("system:authenticated")];

const SCHEMAS: &[Schema] = &[
    Schema {
        name: EXEMPT,
        precedence: 1,
        level: EXEMPT,
        distinguisher: "",
        who: &[Who::Group("system:masters")],
        what: What::Everything,
    },
    Schema {
        name: "probes",
        precedence: 2,
        level: EXEMPT,
        distinguisher: "",
        who: EVERYBODY,
        what: What::Probes,
    },
    Schema {
        name: "system-leader-election",
        precedence: 100,
        level: "leader-election",
        distinguisher: BY_USER,
        who: &[
            Who::User("system:kube-controller-manager"),
            Who::User("system:kube-scheduler"),
            Who::Account("*"),
        ],
        what: What::Leases,
    },
    Schema {
        name: "endpoint-controller",
        precedence: 150,
        level: "workload-high",
        distinguisher: BY_USER,
        who: &[
            Who::User("system:kube-controller-manager"),
            Who::Account("endpoint-controller"),
            Who::Account("endpointslicemirroring-controller"),
        ],
        what: What::Endpoints,
    },
    Schema {
        name: "workload-leader-election",
        precedence: 200,
        level: "leader-election",
        distinguisher: BY_USER,
        who: &[Who::Account("*")],
        what: What::Leases,
    },
    Schema {
        name: "system-node-high",
        precedence: 400,
        level: "node-high",
        distinguisher: BY_USER,
        who: &[Who::Group("system:nodes")],
        what: What::Heartbeats,
    },
    Schema {
        name: "system-nodes",
        precedence: 500,
        level: "system",
        distinguisher: BY_USER,
        who: &[Who::Group("system:nodes")],
        what: What::Everything,
    },
    Schema {
        name: "kube-controller-manager",
        precedence: 800,
        level: "workload-high",
        distinguisher: BY_NAMESPACE,
        who: &[Who::User("system:kube-controller-manager")],
        what: What::Everything,
    },
    Schema {
        name: "kube-scheduler",
        precedence: 800,
        level: "workload-high",
        distinguisher: BY_NAMESPACE,
        who: &[Who::User("system:kube-scheduler")],
        what: What::Everything,
    },
    Schema {
        name: "kube-system-service-accounts",
        precedence: 900,
        level: "workload-high",
        distinguisher: BY_NAMESPACE,
        who: &[Who::Account("*")],
        what: What::Everything,
    },
    Schema {
        name: "service-accounts",
        precedence: 9000,
        level: "workload-low",
        distinguisher: BY_USER,
        who: &[Who::Group("system:serviceaccounts")],
        what: What::Everything,
    },
    Schema {
        name: "global-default",
        precedence: 9900,
        level: "global-default",
        distinguisher: BY_USER,
        who: EVERYBODY,
        what: What::Everything,
    },
    Schema {
        name: CATCH_ALL,
        precedence: 10_000,
        level: CATCH_ALL,
        distinguisher: BY_USER,
        who: EVERYBODY,
        what: What::Everything,
    },
];

/// `PriorityLevelConfiguration` objects.
pub(crate) fn levels() -> Vec<Value> {
    let exempt = json!({
        "metadata": metadata(EXEMPT),
        "spec": {"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}},
    });
    let limited = LEVELS.iter().map(|(name, shares, lendable, queues, hand)| {
        let response = if *queues == 0 {
            json!({"type": "Reject"})
        } else {
            let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LENGTH_LIMIT});
            json!({"type": "Queue", "queuing": queuing})
        };
        json!({
            "metadata": metadata(name),
            "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response,
            }},
        })
    });
    std::iter::once(exempt).chain(limited).collect()
}

/// `FlowSchema` objects.
pub(crate) fn schemas() -> Vec<Value> {
    SCHEMAS.iter().map(schema).collect()
}

fn schema(schema: &Schema) -> Value {
    let subjects: Vec<Value> = schema
        .who
        .iter()
        .map(|who| match who {
            Who::User(name) => json!({"kind": "User", "user": {"name": name}}),
            Who::Group(name) => json!({"kind": "Group", "group": {"name": name}}),
            Who::Account(name) => {
                json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": "kube-system", "name": name}})
            }
        })
        .collect();
    let resources = |verbs: &[&str], group: &str, resources: &[&str], cluster: bool| {
        let mut rule =
            json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
        if cluster {
            rule["clusterScope"] = true.into();
        }
        rule
    };
    let writes = &["get", "create", "update"];
    let mut rule = match schema.what {
        What::Everything => json!({
            "resourceRules": [resources(&["*"], "*", &["*"], true)],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }),
        What::Probes => {
            json!({"nonResourceRules": [{"verbs": ["get"], "nonResourceURLs": ["/healthz", "/readyz", "/livez"]}]})
        }
        What::Leases => {
            json!({"resourceRules": [resources(writes, "coordination.k8s.io", &["leases"], false)]})
        }
        What::Endpoints => json!({"resourceRules": [resources(writes, "", &["endpoints"], false)]}),
        What::Heartbeats => json!({"resourceRules": [
            resources(&["*"], "", &["nodes", "nodes/status"], true),
            resources(&["*"], "coordination.k8s.io", &["leases"], false),
        ]}),
    };
    rule["subjects"] = subjects.into();
    let mut spec = json!({
        "matchingPrecedence": schema.precedence,
        "priorityLevelConfiguration": {"name": schema.level},
        "rules": [rule],
    });
    if !schema.distinguisher.is_empty() {
        spec["distinguisherMethod"] = json!({"type": schema.distinguisher});
    }
    json!({"metadata": metadata(schema.name), "spec": spec})
}

fn metadata(name: &str) -> Value {
    json!({"name": name, "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}})
}
