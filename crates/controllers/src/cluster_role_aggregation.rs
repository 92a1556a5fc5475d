//! Roles that gather the rules of others: a ClusterRole with an `aggregationRule` has the rules of all ClusterRoles its
//! selectors select.
//!
//! The rules are written into the role, so that the authorizer needs to know nothing of it. A change of any role can
//! change what another gathers, so every change looks at all roles; a gathering role may itself be gathered, and what
//! it gets wakes the loop again until nothing changes.

use std::sync::Arc;

use k8s_openapi::api::rbac::v1::{ClusterRole, PolicyRule};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt};
use sampan_client::{Informer, Queue, Requeue};
use serde_json::json;

use crate::common::error::{ControllerError, gone_is_fine};
use crate::common::wiring::{Parts, synced};

/// All roles are looked at together.
const WORKERS: usize = 1;
/// The one key.
const ALL: &str = "all";

/// Starts the controller.
pub(crate) fn start(parts: &mut Parts) {
    let roles = parts.informers.of::<ClusterRole>();
    let queue: Queue<String> = Queue::new();
    queue.add(ALL.to_string());
    parts.on_change(roles.subscribe(), {
        let queue = queue.clone();
        move |_| queue.add(ALL.to_string())
    });
    let ready = vec![synced(&roles)];
    let controller =
        Arc::new(Aggregation { client: parts.client_as("clusterrole-aggregation-controller"), roles });
    parts
        .run("cluster-role-aggregation", WORKERS, queue, ready, move |_| Arc::clone(&controller).reconcile());
}

/// New rules for a role, by its name.
#[derive(Debug, PartialEq)]
struct Update {
    role: Arc<ClusterRole>,
    rules: Vec<PolicyRule>,
}

/// Which roles do not have what they gather. Rules are in the order of the names of the roles they come from, each once.
fn plan(roles: &[Arc<ClusterRole>]) -> Result<Vec<Update>, ControllerError> {
    let mut sorted: Vec<&Arc<ClusterRole>> = roles.iter().collect();
    sorted.sort_by_key(|role| role.name_any());
    let mut updates = Vec::new();
    for &role in &sorted {
        let Some(rule) = &role.aggregation_rule else { continue };
        if role.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let mut selectors: Vec<Selector> = Vec::new();
        for selector in rule.cluster_role_selectors.iter().flatten() {
            let selector = Selector::try_from(selector.clone()).map_err(|source| {
                ControllerError::Selector { object: format!("ClusterRole {}", role.name_any()), source }
            })?;
            selectors.push(selector);
        }
        let mut rules: Vec<PolicyRule> = Vec::new();
        let others = sorted.iter().filter(|other| other.name_any() != role.name_any());
        for other in others.filter(|other| selectors.iter().any(|s| s.matches(other.labels()))) {
            for rule in other.rules.iter().flatten() {
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
        if role.rules.as_deref().unwrap_or_default() != rules {
            updates.push(Update { role: Arc::clone(role), rules });
        }
    }
    Ok(updates)
}

struct Aggregation {
    client: kube::Client,
    roles: Informer<ClusterRole>,
}

impl Aggregation {
    async fn reconcile(self: Arc<Self>) -> Result<Requeue, ControllerError> {
        let api: Api<ClusterRole> = Api::all(self.client.clone());
        for update in plan(&self.roles.list())? {
            let name = update.role.name_any();
            // Only the version that was looked at: rules of an older view must not come back.
            let patch = json!({
                "metadata": {"resourceVersion": update.role.resource_version()},
                "rules": update.rules,
            });
            let patched = api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await;
            gone_is_fine(patched).map_err(ControllerError::api("gather the rules of ClusterRole", &name))?;
        }
        Ok(Requeue::No)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::rbac::v1::AggregationRule;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

    use super::*;
    use crate::common::testing;

    fn rule(verb: &str) -> PolicyRule {
        PolicyRule { verbs: vec![verb.to_string()], ..PolicyRule::default() }
    }

    /// A role with labels, the labels it gathers, and rules.
    fn role(name: &str, labels: &[&str], gathers: &[&str], rules: &[&str]) -> Arc<ClusterRole> {
        let marks = |list: &[&str]| {
            let pairs: Vec<(&str, &str)> = list.iter().map(|label| (*label, "true")).collect();
            testing::labels(&pairs)
        };
        let selectors: Vec<LabelSelector> = gathers
            .iter()
            .map(|label| LabelSelector { match_labels: Some(marks(&[*label])), ..LabelSelector::default() })
            .collect();
        let mut metadata = testing::meta(name, name);
        metadata.namespace = None;
        metadata.labels = Some(marks(labels));
        Arc::new(ClusterRole {
            metadata,
            aggregation_rule: (!selectors.is_empty())
                .then_some(AggregationRule { cluster_role_selectors: Some(selectors) }),
            rules: Some(rules.iter().map(|verb| rule(verb)).collect()),
        })
    }

    #[test]
    fn what_roles_gather() {
        type Row<'a> = (&'a str, Vec<Arc<ClusterRole>>, Vec<(&'a str, Vec<&'a str>)>);
        let part = || role("part", &["to-edit"], &[], &["get", "list"]);
        let other = || role("other", &["to-edit"], &[], &["list", "watch"]);
        let rows: Vec<Row> = vec![
            ("nothing gathers", vec![part()], vec![]),
            (
                "missing",
                vec![role("edit", &[], &["to-edit"], &[]), part()],
                vec![("edit", vec!["get", "list"])],
            ),
            ("there", vec![role("edit", &[], &["to-edit"], &["get", "list"]), part()], vec![]),
            (
                "two parts, by name, each rule once",
                vec![part(), role("edit", &[], &["to-edit"], &["delete"]), other()],
                vec![("edit", vec!["list", "watch", "get"])],
            ),
            (
                "several selectors",
                vec![
                    part(),
                    role("a", &["to-view"], &[], &["get"]),
                    role("edit", &[], &["to-edit", "to-view"], &[]),
                ],
                vec![("edit", vec!["get", "list"])],
            ),
            ("no parts left", vec![role("edit", &[], &["to-edit"], &["get"])], vec![("edit", vec![])]),
            ("not itself", vec![role("edit", &["to-edit"], &["to-edit"], &[])], vec![]),
            (
                "a whole that is a part",
                vec![
                    role("admin", &[], &["to-admin"], &[]),
                    role("edit", &["to-admin"], &["to-edit"], &["get"]),
                    role("part", &["to-edit"], &[], &["get"]),
                ],
                vec![("admin", vec!["get"])],
            ),
        ];
        for (name, roles, expected) in rows {
            let found: Vec<(String, Vec<String>)> = plan(&roles)
                .unwrap()
                .into_iter()
                .map(|update| {
                    (update.role.name_any(), update.rules.into_iter().flat_map(|r| r.verbs).collect())
                })
                .collect();
            let expected: Vec<(String, Vec<String>)> = expected
                .into_iter()
                .map(|(name, verbs)| (name.to_string(), verbs.into_iter().map(String::from).collect()))
                .collect();
            assert_eq!(found, expected, "{name}");
        }
    }
}
