//! What every cluster has from its first moment: namespaces, roles, the API's own service, priority classes.
//!
//! Runs at every start. What exists is left as its owner changed it, except the endpoint of the API itself, which is
//! where this server says it is, and roles and bindings that have lost something of what they need. What flow control
//! needs is kept by [`crate::flow::upkeep`].

mod policy;

use std::net::Ipv4Addr;
use std::sync::Arc;

use sampan_api::decode::Strictness;
use sampan_api::registry::Kind;
use serde_json::{Value, json};

use crate::auth::rbac;
use crate::auth::{MASTERS, User};
use crate::error::ApiError;
use crate::server::{ApiServer, StartError};
use crate::view::View;
use crate::write::{Change, WriteCall};
pub(crate) use policy::AUTHENTICATION;
use policy::{AUTO_UPDATE, GROUP, MANAGER, NODE, ROLES};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// What every node may, whatever its pods are: the rules of the role `system:node`.
pub(crate) fn node_rules() -> Vec<rbac::Rule> {
    let role = ROLES.iter().find(|role| role.name == NODE);
    role.map(|role| rbac::rules_in(&role.role())).unwrap_or_default()
}

/// Creates what is missing.
pub(crate) async fn run(server: &Arc<ApiServer>, service_address: Ipv4Addr) -> Result<(), StartError> {
    for name in NAMESPACES {
        create(server, "", "namespaces", "", json!({"metadata": {"name": name}})).await?;
    }
    narrow_manager(server).await?;
    for role in ROLES {
        let (roles, bindings) = role.resources();
        have(server, roles, role.namespace, &role.role(), missing_of_role).await?;
        if !role.subjects.is_empty() {
            have(server, bindings, role.namespace, &role.binding(), missing_of_binding).await?;
        }
    }
    unbind_nodes(server).await?;
    for (name, value, what) in [
        ("system-cluster-critical", 2_000_000_000, "Pods the cluster cannot do without."),
        ("system-node-critical", 2_000_001_000, "Pods their node cannot do without."),
    ] {
        let class = json!({"metadata": {"name": name}, "value": value, "description": what});
        create(server, "scheduling.k8s.io", "priorityclasses", "", class).await?;
    }
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

/// What a role of ours lacks, as a merge patch. Rules that somebody added stay, and so does who set the mark to `false`.
fn missing_of_role(present: &Value, wanted: &Value) -> Option<Value> {
    let mut patch = json!({});
    if wanted["aggregationRule"].is_null() {
        let (have, want) = (rbac::rules_in(present), rbac::rules_in(wanted));
        let lacking = rbac::missing(&have, &want);
        if !lacking.is_empty() {
            let mut rules = present["rules"].as_array().cloned().unwrap_or_default();
            let wanted = wanted["rules"].as_array().into_iter().flatten().zip(&want);
            let added = wanted.filter(|(_, rule)| lacking.contains(rule)).map(|(value, _)| value.clone());
            rules.extend(added);
            patch["rules"] = rules.into();
        }
    } else {
        // The rules are the loop's business, what it gathers is ours.
        let field = "clusterRoleSelectors";
        let have = present["aggregationRule"][field].as_array().cloned().unwrap_or_default();
        let want = wanted["aggregationRule"][field].as_array().into_iter().flatten();
        let lacking: Vec<Value> = want.filter(|selector| !have.contains(selector)).cloned().collect();
        if !lacking.is_empty() {
            patch["aggregationRule"][field] = [have, lacking].concat().into();
        }
    }
    missing_metadata(present, wanted, &mut patch);
    (patch != json!({})).then_some(patch)
}

/// What a binding of ours lacks.
fn missing_of_binding(present: &Value, wanted: &Value) -> Option<Value> {
    let mut patch = json!({});
    let have = present["subjects"].as_array().cloned().unwrap_or_default();
    let same =
        |a: &Value, b: &Value| ["kind", "name", "namespace"].iter().all(|field| a[*field] == b[*field]);
    let want = wanted["subjects"].as_array().into_iter().flatten();
    let lacking: Vec<Value> =
        want.filter(|subject| !have.iter().any(|known| same(known, subject))).cloned().collect();
    if !lacking.is_empty() {
        patch["subjects"] = [have, lacking].concat().into();
    }
    missing_metadata(present, wanted, &mut patch);
    (patch != json!({})).then_some(patch)
}

fn missing_metadata(present: &Value, wanted: &Value, patch: &mut Value) {
    for part in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][part].as_object().into_iter().flatten() {
            if present["metadata"][part][key].is_null() {
                patch["metadata"][part][key] = value.clone();
            }
        }
    }
}

/// Creates a role or binding of ours, or brings back what it has lost since it was made, or never had because it was made by
/// an older release (auto-reconciliation, as upstream does).
async fn have(
    server: &Arc<ApiServer>,
    plural: &str,
    namespace: &str,
    wanted: &Value,
    missing: fn(&Value, &Value) -> Option<Value>,
) -> Result<(), StartError> {
    if create(server, GROUP, plural, namespace, wanted.clone()).await? {
        return Ok(());
    }
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default();
    let kind = kind(server, GROUP, plural)?;
    let present = server.cache.resource(kind.resource()).get(&kind.store_key(namespace, name));
    let present: Value =
        present.and_then(|item| serde_json::from_slice(&item.bytes).ok()).unwrap_or_default();
    if present["metadata"]["annotations"][AUTO_UPDATE] == "false" {
        return Ok(());
    }
    match missing(&present, wanted) {
        Some(patch) => change(server, &kind, namespace, name, patch).await,
        None => Ok(()),
    }
}

/// Older releases bound the role of nodes to all nodes, which made every secret every node's. Such a binding is emptied
/// once; the mark it then carries says that whoever fills it again means it.
async fn unbind_nodes(server: &Arc<ApiServer>) -> Result<(), StartError> {
    let kind = kind(server, GROUP, "clusterrolebindings")?;
    let Some(item) = server.cache.resource(kind.resource()).get(&kind.store_key("", NODE)) else {
        return Ok(());
    };
    let present: Value = serde_json::from_slice(&item.bytes).unwrap_or_default();
    if !present["metadata"]["annotations"][AUTO_UPDATE].is_null() {
        return Ok(());
    }
    let patch = json!({"subjects": null, "metadata": {"annotations": {AUTO_UPDATE: "true"}}});
    change(server, &kind, "", NODE, patch).await
}

/// Older releases let all loops act as one user who might do everything. That rule, just as they wrote it, goes from the role;
/// whoever wants it keeps it by the mark that the role is theirs.
async fn narrow_manager(server: &Arc<ApiServer>) -> Result<(), StartError> {
    let kind = kind(server, GROUP, "clusterroles")?;
    let Some(item) = server.cache.resource(kind.resource()).get(&kind.store_key("", MANAGER)) else {
        return Ok(());
    };
    let present: Value = serde_json::from_slice(&item.bytes).unwrap_or_default();
    match without_everything(&present) {
        Some(rules) => change(server, &kind, "", MANAGER, json!({ "rules": rules })).await,
        None => Ok(()),
    }
}

/// The rules of a role of ours without the one that allows everything, if it has that.
fn without_everything(role: &Value) -> Option<Vec<Value>> {
    let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
    let rules =
        role["rules"].as_array().filter(|_| role["metadata"]["annotations"][AUTO_UPDATE] != "false")?;
    let left: Vec<Value> = rules.iter().filter(|rule| **rule != everything).cloned().collect();
    (left.len() < rules.len()).then_some(left)
}

async fn change(
    server: &Arc<ApiServer>,
    kind: &Arc<Kind>,
    namespace: &str,
    name: &str,
    patch: Value,
) -> Result<(), StartError> {
    let user = User::known("system:apiserver", &[MASTERS]);
    let call = WriteCall::internal(kind, namespace, name, View::Object, &user);
    let changed = server.change(&call, &Change::Merge(patch), &Strictness::default()).await;
    changed.map(drop).map_err(|e| StartError::Bootstrap(format!("{} {name}", kind.plural), e))
}

/// The slice behind the service `kubernetes`, and its older form, are made by the server itself.
async fn own_endpoint(server: &Arc<ApiServer>) -> Result<(), StartError> {
    let (address, port) = server.config.advertise;
    let ports = json!([{"name": "https", "port": port, "protocol": "TCP"}]);
    let slice = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {
            "kubernetes.io/service-name": "kubernetes",
            "endpointslice.kubernetes.io/managed-by": "apiserver",
        }},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": ports,
    });
    // The label says that the slice is not to be made from these a second time.
    let endpoints = json!({
        "metadata": {"name": "kubernetes", "namespace": "default", "labels": {
            "endpointslice.kubernetes.io/skip-mirror": "true",
        }},
        "subsets": [{"addresses": [{"ip": address.to_string()}], "ports": ports}],
    });
    for (group, plural, object, fields) in [
        ("discovery.k8s.io", "endpointslices", slice, &["endpoints", "ports"][..]),
        ("", "endpoints", endpoints, &["subsets"]),
    ] {
        if create(server, group, plural, "default", object.clone()).await? {
            continue;
        }
        let kind = kind(server, group, plural)?;
        let patch = fields.iter().map(|field| ((*field).to_owned(), object[*field].clone())).collect();
        change(server, &kind, "default", "kubernetes", Value::Object(patch)).await?;
    }
    Ok(())
}

fn kind(server: &ApiServer, group: &str, plural: &str) -> Result<Arc<Kind>, StartError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_could_do_everything_no_longer_can() {
        let everything = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
        let own = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
        let role = |mark: &str, rules: &[&Value]| json!({"metadata": {"annotations": {AUTO_UPDATE: mark}}, "rules": rules});
        for (role, expected) in [
            (role("true", &[&everything, &own]), Some(vec![own.clone()])),
            (role("true", &[&own]), None),
            (role("false", &[&everything, &own]), None),
            (json!({}), None),
        ] {
            assert_eq!(without_everything(&role), expected, "{role}");
        }
    }

    #[test]
    fn what_is_brought_back() {
        let rule = |verb: &str| json!({"verbs": [verb], "apiGroups": [""], "resources": ["pods"]});
        let annotated = json!({"annotations": {AUTO_UPDATE: "true"}});
        let role = |rules: Vec<Value>| json!({"metadata": annotated, "rules": rules});
        let subject = |name: &str| json!({"kind": "User", "name": name});
        let binding = |subjects: Vec<Value>| json!({"metadata": annotated, "subjects": subjects});
        let whole = |labels: &[&str]| {
            let selectors: Vec<Value> =
                labels.iter().map(|l| json!({"matchLabels": {(*l): "true"}})).collect();
            json!({"metadata": annotated, "aggregationRule": {"clusterRoleSelectors": selectors}})
        };
        type Missing = fn(&Value, &Value) -> Option<Value>;
        let rows: Vec<(&str, Missing, Value, Value, Option<Value>)> = vec![
            ("whole", missing_of_role, role(vec![rule("get")]), role(vec![rule("get")]), None),
            ("wider", missing_of_role, role(vec![rule("*")]), role(vec![rule("get")]), None),
            (
                "lost",
                missing_of_role,
                role(vec![rule("delete")]),
                role(vec![rule("get"), rule("delete")]),
                Some(json!({"rules": [rule("delete"), rule("get")]})),
            ),
            (
                "from an older release",
                missing_of_role,
                json!({"metadata": {}, "rules": [rule("get")]}),
                role(vec![rule("get")]),
                Some(json!({"metadata": annotated})),
            ),
            (
                "gathers",
                missing_of_role,
                whole(&["own"]),
                whole(&["a"]),
                Some(json!({"aggregationRule": {"clusterRoleSelectors": [
                    {"matchLabels": {"own": "true"}}, {"matchLabels": {"a": "true"}},
                ]}})),
            ),
            ("gathers all", missing_of_role, whole(&["a", "own"]), whole(&["a"]), None),
            (
                "unbound",
                missing_of_binding,
                binding(vec![subject("eve")]),
                binding(vec![subject("ann")]),
                Some(json!({"subjects": [subject("eve"), subject("ann")]})),
            ),
            ("bound", missing_of_binding, binding(vec![subject("ann")]), binding(vec![subject("ann")]), None),
        ];
        for (what, missing, present, wanted, expected) in rows {
            assert_eq!(missing(&present, &wanted), expected, "{what}");
        }
    }
}
