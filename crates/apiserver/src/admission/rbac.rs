//! Nobody gives away more than they have: whoever writes a role or binding must hold every rule in it, or be allowed to
//! `escalate` or `bind` (Kubernetes: privilege escalation prevention).

use serde_json::Value;

use super::Admission;
use crate::auth::MASTERS;
use crate::auth::rbac::{Attributes, rules_in};
use crate::error::ApiError;

const GROUP: &str = "rbac.authorization.k8s.io";

pub(super) fn no_escalation(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    if admission.kind.group != GROUP || admission.user.is_in(MASTERS) {
        return Ok(());
    }
    let grants = ["rules", "aggregationRule", "roleRef", "subjects"];
    if admission.old.is_some_and(|old| grants.iter().all(|field| old[field] == object[field])) {
        return Ok(());
    }
    let rbac = &admission.server.rbac;
    let may = |verb: &str, resource: &str, name: &str| {
        let question = Attributes {
            verb,
            group: GROUP,
            resource,
            namespace: admission.namespace,
            name,
            ..Attributes::default()
        };
        rbac.allows(admission.user, &question)
    };
    let plural = &*admission.kind.plural;
    let (rules, excused) = if matches!(plural, "roles" | "clusterroles") {
        (rules_in(object), may("escalate", plural, object["metadata"]["name"].as_str().unwrap_or_default()))
    } else {
        let role = &object["roleRef"];
        let resource = if role["kind"] == "ClusterRole" { "clusterroles" } else { "roles" };
        let excused = may("bind", resource, role["name"].as_str().unwrap_or_default());
        (rbac.rules_behind(role, admission.namespace), excused)
    };
    if excused {
        return Ok(());
    }
    if !object["aggregationRule"].is_null() {
        return Err(admission.forbidden(object, "must have the verb escalate to set an aggregationRule"));
    }
    match rbac.not_held(admission.user, admission.namespace, &rules) {
        None => Ok(()),
        Some(missing) => {
            let why = format!(
                "user \"{}\" is attempting to grant RBAC permissions not currently held: {{APIGroups:{:?}, \
                 Resources:{:?}, NonResourceURLs:{:?}, Verbs:{:?}}}",
                admission.user.name,
                missing.api_groups,
                missing.resources,
                missing.non_resource_urls,
                missing.verbs
            );
            Err(admission.forbidden(object, why))
        }
    }
}
