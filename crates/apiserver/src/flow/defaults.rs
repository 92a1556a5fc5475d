//! The priority levels and flow schemas every cluster has. Names, order and numbers are upstream's
//! (`pkg/apis/flowcontrol/bootstrap/default.go`). Two of each are mandatory, which is to say that the kind's rules know
//! them too ([`mandatory`]); the others are suggestions, see [`super::upkeep`].

use sampan_api::kinds::flow_control::{CATCH_ALL, EXEMPT, mandatory};
use serde_json::{Value, json};

/// Set to `false` by who wants a suggested object to stay as it is.
pub(super) const AUTO_UPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// Shares, lendable percent, queues, hand size.
const LEVELS: &[(&str, i64, i64, i64, i64)] = &[
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
];

/// `PriorityLevelConfiguration` objects.
pub(crate) fn levels() -> Vec<Value> {
    let suggested = LEVELS.iter().map(|(name, shares, lendable, queues, hand)| {
        let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": QUEUE_LENGTH_LIMIT});
        let response = json!({"type": "Queue", "queuing": queuing});
        json!({
            "metadata": metadata(name),
            "spec": {"type": "Limited", "limited": {
                "nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response,
            }},
        })
    });
    mandatory_objects("PriorityLevelConfiguration").chain(suggested).collect()
}

/// `FlowSchema` objects.
pub(crate) fn schemas() -> Vec<Value> {
    mandatory_objects("FlowSchema").chain(SCHEMAS.iter().map(schema)).collect()
}

fn mandatory_objects(kind: &str) -> impl Iterator<Item = Value> {
    let object = move |name| Some(json!({"metadata": metadata(name), "spec": mandatory(kind, name)?}));
    [EXEMPT, CATCH_ALL].into_iter().filter_map(object)
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
    json!({"name": name, "annotations": {AUTO_UPDATE: "true"}})
}
