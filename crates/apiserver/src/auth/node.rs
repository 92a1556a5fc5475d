//! The node authorizer: a node may read what the pods bound to it need, and no more.
//!
//! What a pod needs is a pure function of the pod ([`references`]). An index from nodes to what their pods need is kept
//! from the watch cache: brought up to date when a question comes, by the events since the last one, so that it costs
//! nothing while nodes ask nothing and is never behind the cache a node learns of its pods from.
//!
//! What does not depend on pods (its own node object, services, events) is the list of rules of the role `system:node`.
//! The role is bound to nobody: with a binding, all secrets would be every node's. Source of the rules: Kubernetes'
//! documentation on node authorization.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;

use super::User;
use super::rbac::{Attributes, Rule};
use crate::admission::node_of;
use crate::cache::WatchCache;

/// Containers of all kinds in a pod's specification.
const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];
const NO_RELATION: &str = "no relationship found";

/// A kind of object that pods refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Referent {
    Secret,
    ConfigMap,
    Claim,
    ServiceAccount,
    ResourceClaim,
}

/// An object a pod needs, in the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Reference {
    kind: Referent,
    namespace: String,
    name: String,
}

/// Everything a pod's specification names and its node must read.
pub(crate) fn references(pod: &Value) -> BTreeSet<Reference> {
    let mut found = Found {
        namespace: pod["metadata"]["namespace"].as_str().unwrap_or_default(),
        references: BTreeSet::new(),
    };
    let spec = &pod["spec"];
    found.add(Referent::ServiceAccount, &spec["serviceAccountName"]);
    for secret in list(&spec["imagePullSecrets"]) {
        found.add(Referent::Secret, &secret["name"]);
    }
    for container in CONTAINERS.iter().flat_map(|name| list(&spec[*name])) {
        for source in list(&container["envFrom"]) {
            found.add(Referent::ConfigMap, &source["configMapRef"]["name"]);
            found.add(Referent::Secret, &source["secretRef"]["name"]);
        }
        for variable in list(&container["env"]) {
            found.add(Referent::ConfigMap, &variable["valueFrom"]["configMapKeyRef"]["name"]);
            found.add(Referent::Secret, &variable["valueFrom"]["secretKeyRef"]["name"]);
        }
    }
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    for volume in list(&spec["volumes"]) {
        found.of_volume(volume, pod_name);
    }
    // A claim made from a template has the name that the status says.
    for claim in list(&spec["resourceClaims"]) {
        found.add(Referent::ResourceClaim, &claim["resourceClaimName"]);
    }
    for claim in list(&pod["status"]["resourceClaimStatuses"]) {
        found.add(Referent::ResourceClaim, &claim["resourceClaimName"]);
    }
    found.references
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

struct Found<'a> {
    namespace: &'a str,
    references: BTreeSet<Reference>,
}

impl Found<'_> {
    fn add(&mut self, kind: Referent, name: &Value) {
        let Some(name) = name.as_str().filter(|name| !name.is_empty()) else { return };
        let (namespace, name) = (self.namespace.to_owned(), name.to_owned());
        self.references.insert(Reference { kind, namespace, name });
    }

    fn of_volume(&mut self, volume: &Value, pod_name: &str) {
        self.add(Referent::ConfigMap, &volume["configMap"]["name"]);
        self.add(Referent::Secret, &volume["secret"]["secretName"]);
        self.add(Referent::Secret, &volume["azureFile"]["secretName"]);
        self.add(Referent::Claim, &volume["persistentVolumeClaim"]["claimName"]);
        for driver in ["cephfs", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
            self.add(Referent::Secret, &volume[driver]["secretRef"]["name"]);
        }
        self.add(Referent::Secret, &volume["csi"]["nodePublishSecretRef"]["name"]);
        if volume["ephemeral"].is_object() {
            let own = format!("{pod_name}-{}", volume["name"].as_str().unwrap_or_default());
            self.add(Referent::Claim, &own.into());
        }
        for source in list(&volume["projected"]["sources"]) {
            self.add(Referent::ConfigMap, &source["configMap"]["name"]);
            self.add(Referent::Secret, &source["secret"]["name"]);
        }
    }
}

/// What is known of one pod that has a node.
struct Bound {
    node: String,
    references: BTreeSet<Reference>,
}

/// What the pods of each node need.
#[derive(Default)]
struct Index {
    /// By storage key.
    pods: HashMap<Arc<str>, Bound>,
    /// By node: how many of its pods need an object.
    needs: HashMap<String, HashMap<Reference, usize>>,
    /// The cache's events up to here are in it; `None` before the first question.
    cursor: Option<u64>,
}

impl Index {
    fn forget(&mut self, key: &str) {
        let Some(gone) = self.pods.remove(key) else { return };
        let Some(needs) = self.needs.get_mut(&gone.node) else { return };
        for reference in gone.references {
            if let Some(count) = needs.get_mut(&reference) {
                *count -= 1;
                if *count == 0 {
                    needs.remove(&reference);
                }
            }
        }
        if needs.is_empty() {
            self.needs.remove(&gone.node);
        }
    }

    fn learn(&mut self, key: &Arc<str>, bytes: &[u8]) {
        self.forget(key);
        let pod: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) else { return };
        let references = references(&pod);
        let needs = self.needs.entry(node.to_owned()).or_default();
        for reference in &references {
            *needs.entry(reference.clone()).or_default() += 1;
        }
        self.pods.insert(key.clone(), Bound { node: node.to_owned(), references });
    }

    /// Brings the index to where the cache is.
    fn refresh(&mut self, cache: &WatchCache) {
        let resource = cache.resource("pods");
        let events = self.cursor.map(|cursor| resource.events_after(cursor));
        match events {
            Some(Ok((events, revision))) => {
                for event in events {
                    if event.deleted {
                        self.forget(&event.item.key);
                    } else {
                        self.learn(&event.item.key, &event.item.bytes);
                    }
                }
                self.cursor = Some(revision);
            }
            // The first question, or too much has happened since the last one.
            None | Some(Err(_)) => {
                let snapshot = cache.snapshot("pods", "/pods/");
                *self = Self { cursor: Some(snapshot.revision), ..Self::default() };
                for item in &snapshot.items {
                    self.learn(&item.key, &item.bytes);
                }
            }
        }
    }

    fn needs(&self, node: &str, kind: Referent, namespace: &str, name: &str) -> bool {
        let reference = Reference { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        self.needs.get(node).is_some_and(|needs| needs.contains_key(&reference))
    }

    /// Namespaces and names of the claims that the node's pods use.
    fn claims(&self, node: &str) -> Vec<(&str, &str)> {
        let needs = self.needs.get(node).into_iter().flat_map(HashMap::keys);
        let claims = needs.filter(|reference| reference.kind == Referent::Claim);
        claims.map(|claim| (claim.namespace.as_str(), claim.name.as_str())).collect()
    }
}

/// Says what nodes may.
pub(crate) struct NodeAuthorizer {
    cache: Arc<WatchCache>,
    index: Mutex<Index>,
    /// What every node may, whatever its pods are.
    rules: Vec<Rule>,
}

impl NodeAuthorizer {
    /// `rules` are those of the role `system:node`.
    pub(crate) fn new(cache: Arc<WatchCache>, rules: Vec<Rule>) -> Self {
        Self { cache, index: Mutex::default(), rules }
    }

    /// Whether a node may; `None` when the user is no node.
    pub(crate) fn decide(&self, user: &User, question: &Attributes<'_>) -> Option<Result<(), String>> {
        let node = node_of(user)?;
        Some(self.of_node(node, question))
    }

    fn of_node(&self, node: &str, question: &Attributes<'_>) -> Result<(), String> {
        let (verb, sub) = (question.verb, question.subresource);
        let reads = ["get", "list", "watch"].contains(&verb);
        let refuse = |why: &str| Err(why.to_owned());
        let related = |yes: bool| {
            if yes { Ok(()) } else { Err(format!("{NO_RELATION} between node '{node}' and this object")) }
        };
        if question.path.is_some() {
            return self.by_rules(question);
        }
        match (question.group, question.resource) {
            ("", "secrets") if reads && sub.is_empty() && !question.name.is_empty() => {
                related(self.reads_secret(node, question.namespace, question.name))
            }
            ("", "secrets") => refuse("can only read a secret by its name"),
            ("", "configmaps") if reads && sub.is_empty() && !question.name.is_empty() => {
                related(self.needs(node, Referent::ConfigMap, question))
            }
            ("", "configmaps") => refuse("can only read a config map by its name"),
            ("", "persistentvolumeclaims") if is_read_of_claim(verb, sub) => {
                related(self.needs(node, Referent::Claim, question))
            }
            ("", "persistentvolumeclaims") => refuse("can only get claims and change their status"),
            ("", "persistentvolumes") if verb == "get" && sub.is_empty() => {
                related(self.uses_volume(node, question.name))
            }
            ("", "persistentvolumes") => refuse("can only get volumes"),
            ("", "serviceaccounts") if (verb, sub) == ("create", "token") || (verb, sub) == ("get", "") => {
                related(self.needs(node, Referent::ServiceAccount, question))
            }
            ("", "serviceaccounts") => refuse("can only get service accounts and create tokens of them"),
            ("resource.k8s.io", "resourceclaims") if verb == "get" && sub.is_empty() => {
                related(self.needs(node, Referent::ResourceClaim, question))
            }
            ("resource.k8s.io", "resourceclaims") => refuse("can only get resource claims"),
            ("storage.k8s.io", "volumeattachments") if verb == "get" && sub.is_empty() => {
                related(self.is_attached(node, question.name))
            }
            ("storage.k8s.io", "volumeattachments") => refuse("can only get volume attachments"),
            ("", "pods") if reads && sub.is_empty() => self.reads_pods(node, question),
            ("", "nodes") if reads && sub.is_empty() && question.name != node => {
                Err(format!("node '{node}' cannot read '{}', only its own Node object", question.name))
            }
            ("coordination.k8s.io", "leases") if question.namespace != "kube-node-lease" => {
                refuse("can only access leases in the \"kube-node-lease\" system namespace")
            }
            ("coordination.k8s.io", "leases") | ("storage.k8s.io", "csinodes")
                if verb != "create" && question.name != node =>
            {
                refuse("can only access the object with the same name as the node")
            }
            ("resource.k8s.io", "resourceslices") if verb != "create" && verb != "get" => {
                let own = question.fields.iter().any(|(f, v)| f == "spec.nodeName" && v == node);
                if own || matches!(verb, "update" | "patch" | "delete") {
                    self.by_rules(question)
                } else {
                    refuse("can only list resource slices with a field selector for its own name")
                }
            }
            _ => self.by_rules(question),
        }
    }

    fn by_rules(&self, question: &Attributes<'_>) -> Result<(), String> {
        if self.rules.iter().any(|rule| rule.allows(question)) { Ok(()) } else { Err(String::new()) }
    }

    fn with_index<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        // The index is complete between two calls of its methods; a panic inside one is a defect that the next refresh
        // cannot repair, so it begins anew.
        let mut index = self.index.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            let mut index = poisoned.into_inner();
            *index = Index::default();
            index
        });
        index.refresh(&self.cache);
        look(&index)
    }

    fn needs(&self, node: &str, kind: Referent, question: &Attributes<'_>) -> bool {
        self.with_index(|index| index.needs(node, kind, question.namespace, question.name))
    }

    /// A secret that a pod names, or that a volume of a claim of a pod names.
    fn reads_secret(&self, node: &str, namespace: &str, name: &str) -> bool {
        self.with_index(|index| {
            index.needs(node, Referent::Secret, namespace, name)
                || index.claims(node).into_iter().any(|(claim_namespace, claim)| {
                    self.volume_of(claim_namespace, claim).is_some_and(|volume| {
                        secrets_of_volume(&volume, claim_namespace)
                            .contains(&(namespace.to_owned(), name.to_owned()))
                    })
                })
        })
    }

    fn uses_volume(&self, node: &str, name: &str) -> bool {
        let Some(volume) = self.object("persistentvolumes", name) else { return false };
        let claim = &volume["spec"]["claimRef"];
        let (Some(namespace), Some(claim)) = (claim["namespace"].as_str(), claim["name"].as_str()) else {
            return false;
        };
        let bound = self.object("persistentvolumeclaims", &format!("{namespace}/{claim}"));
        bound.is_some_and(|claim| claim["spec"]["volumeName"] == name)
            && self.with_index(|index| index.needs(node, Referent::Claim, namespace, claim))
    }

    fn is_attached(&self, node: &str, name: &str) -> bool {
        self.object("volumeattachments.storage.k8s.io", name)
            .is_some_and(|attachment| attachment["spec"]["nodeName"] == node)
    }

    fn reads_pods(&self, node: &str, question: &Attributes<'_>) -> Result<(), String> {
        if question.fields.iter().any(|(field, value)| field == "spec.nodeName" && value == node) {
            return self.by_rules(question);
        }
        let key = format!("/pods/{}/{}", question.namespace, question.name);
        let bound = !question.name.is_empty()
            && self.with_index(|index| index.pods.get(key.as_str()).is_some_and(|pod| pod.node == node));
        if bound {
            return self.by_rules(question);
        }
        Err("can only read pods that are bound to it, or list them by a field selector for its own name"
            .to_owned())
    }

    /// The volume a claim is bound to.
    fn volume_of(&self, namespace: &str, claim: &str) -> Option<Value> {
        let claim = self.object("persistentvolumeclaims", &format!("{namespace}/{claim}"))?;
        self.object("persistentvolumes", claim["spec"]["volumeName"].as_str()?)
    }

    fn object(&self, resource: &str, key: &str) -> Option<Value> {
        let item = self.cache.resource(resource).get(&format!("/{resource}/{key}"))?;
        serde_json::from_slice(&item.bytes).ok()
    }
}

fn is_read_of_claim(verb: &str, subresource: &str) -> bool {
    matches!((verb, subresource), ("get", "" | "status") | ("update" | "patch", "status"))
}

/// Namespace and name of the secrets a node needs for a volume; `namespace` is that of the volume's claim, which is meant
/// where the volume names none.
fn secrets_of_volume(volume: &Value, namespace: &str) -> Vec<(String, String)> {
    let spec = &volume["spec"];
    let csi = &spec["csi"];
    let refs = [
        &csi["nodePublishSecretRef"],
        &csi["nodeStageSecretRef"],
        &csi["nodeExpandSecretRef"],
        &spec["cephfs"]["secretRef"],
        &spec["flexVolume"]["secretRef"],
        &spec["iscsi"]["secretRef"],
        &spec["rbd"]["secretRef"],
        &spec["scaleIO"]["secretRef"],
        &spec["storageos"]["secretRef"],
    ];
    let named = refs.into_iter().map(|secret| (&secret["namespace"], &secret["name"]));
    let azure = (&spec["azureFile"]["secretNamespace"], &spec["azureFile"]["secretName"]);
    named
        .chain([azure])
        .filter_map(|(place, name)| {
            let place = place.as_str().filter(|place| !place.is_empty()).unwrap_or(namespace);
            Some((place.to_owned(), name.as_str()?.to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_pod_needs() {
        let none = json!({});
        let rows: Vec<(&str, Value, &[(Referent, &str)])> = vec![
            ("nothing", none, &[]),
            ("account", json!({"serviceAccountName": "sa"}), &[(Referent::ServiceAccount, "sa")]),
            ("pulling", json!({"imagePullSecrets": [{"name": "p"}]}), &[(Referent::Secret, "p")]),
            (
                "environment",
                json!({"containers": [{
                    "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
                    "env": [
                        {"valueFrom": {"configMapKeyRef": {"name": "c"}}},
                        {"valueFrom": {"secretKeyRef": {"name": "d"}}},
                        {"value": "x"},
                    ],
                }]}),
                &[
                    (Referent::Secret, "b"),
                    (Referent::Secret, "d"),
                    (Referent::ConfigMap, "a"),
                    (Referent::ConfigMap, "c"),
                ],
            ),
            (
                "other containers",
                json!({
                    "initContainers": [{"envFrom": [{"secretRef": {"name": "i"}}]}],
                    "ephemeralContainers": [{"envFrom": [{"secretRef": {"name": "e"}}]}],
                }),
                &[(Referent::Secret, "e"), (Referent::Secret, "i")],
            ),
            (
                "volumes",
                json!({"volumes": [
                    {"configMap": {"name": "a"}},
                    {"secret": {"secretName": "b"}},
                    {"persistentVolumeClaim": {"claimName": "c"}},
                    {"name": "scratch", "ephemeral": {}},
                    {"projected": {"sources": [{"configMap": {"name": "d"}}, {"secret": {"name": "e"}}]}},
                    {"csi": {"nodePublishSecretRef": {"name": "f"}}},
                    {"rbd": {"secretRef": {"name": "g"}}},
                    {"emptyDir": {}},
                ]}),
                &[
                    (Referent::Secret, "b"),
                    (Referent::Secret, "e"),
                    (Referent::Secret, "f"),
                    (Referent::Secret, "g"),
                    (Referent::ConfigMap, "a"),
                    (Referent::ConfigMap, "d"),
                    (Referent::Claim, "c"),
                    (Referent::Claim, "p-scratch"),
                ],
            ),
            ("odd", json!({"volumes": "x", "containers": [5], "imagePullSecrets": [{"name": 5}]}), &[]),
        ];
        for (what, spec, expected) in rows {
            let found = references(&json!({"metadata": {"namespace": "ns", "name": "p"}, "spec": spec}));
            let found: Vec<(Referent, &str)> = found.iter().map(|r| (r.kind, r.name.as_str())).collect();
            assert_eq!(found, expected, "{what}");
        }
    }

    fn pod(node: &str, secret: &str) -> Vec<u8> {
        json!({
            "metadata": {"namespace": "ns", "name": "p"},
            "spec": {"nodeName": node, "volumes": [{"secret": {"secretName": secret}}]},
        })
        .to_string()
        .into_bytes()
    }

    #[test]
    fn the_index_counts() {
        let mut index = Index::default();
        let (a, b): (Arc<str>, Arc<str>) = ("/pods/ns/a".into(), "/pods/ns/b".into());
        let needs = |index: &Index, node: &str, name: &str| index.needs(node, Referent::Secret, "ns", name);
        index.learn(&a, &pod("", "s"));
        assert!(index.pods.is_empty());
        index.learn(&a, &pod("n", "s"));
        index.learn(&b, &pod("n", "s"));
        index.forget(&a);
        assert!(needs(&index, "n", "s") && !needs(&index, "m", "s"));
        index.learn(&b, &pod("n", "t"));
        assert!(needs(&index, "n", "t") && !needs(&index, "n", "s"));
        index.forget(&b);
        assert!(index.pods.is_empty() && index.needs.is_empty());
    }

    #[test]
    fn secrets_of_volumes() {
        let volume = json!({"spec": {
            "csi": {"nodeStageSecretRef": {"name": "a", "namespace": "x"}, "controllerPublishSecretRef": {"name": "no"}},
            "azureFile": {"secretName": "b"},
        }});
        let expected = [("x".to_owned(), "a".to_owned()), ("ns".to_owned(), "b".to_owned())];
        assert_eq!(secrets_of_volume(&volume, "ns"), expected);
    }
}
