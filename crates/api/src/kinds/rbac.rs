//! Roles and who has them (RBAC).
//!
//! What a rule allows is decided by the API server's authorizer; here is what a rule may look like.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{default_field, is_empty, list, list_mut, same, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, NameRule, Row, Scope, Strategy};
use crate::{names, table};

const GROUP: &str = "rbac.authorization.k8s.io";

const ROLE_COLUMNS: &[Column] =
    &[Column::name(), Column::new("Created At", "Time the object was created.").of_type("date")];

const BINDING_COLUMNS: &[Column] = &[
    Column::name(),
    Column::new("Role", "Role that is given."),
    Column::age(),
    Column::new("Users", "Users who have it.").wide(),
    Column::new("Groups", "Groups that have it.").wide(),
    Column::new("ServiceAccounts", "Service accounts that have it.").wide(),
];

const ROLE_KIND: Row = Row {
    group: GROUP,
    name_rule: NameRule::PathSegment,
    columns: ROLE_COLUMNS,
    table_row: role_row,
    ..Row::PLAIN
};

const BINDING_KIND: Row = Row {
    group: GROUP,
    name_rule: NameRule::PathSegment,
    columns: BINDING_COLUMNS,
    table_row: binding_row,
    ..Row::PLAIN
};

/// ClusterRoles.
pub static CLUSTER_ROLE: Row = Row {
    kind: "ClusterRole",
    plural: "clusterroles",
    singular: "clusterrole",
    scope: Scope::Cluster,
    schema: "io.k8s.api.rbac.v1.ClusterRole",
    strategy: Strategy { validate: validate_cluster_role, ..Strategy::PLAIN },
    ..ROLE_KIND
};

/// Roles of one namespace.
pub static ROLE: Row = Row {
    kind: "Role",
    plural: "roles",
    singular: "role",
    schema: "io.k8s.api.rbac.v1.Role",
    strategy: Strategy { validate: validate_role, ..Strategy::PLAIN },
    ..ROLE_KIND
};

/// ClusterRoleBindings.
pub static CLUSTER_ROLE_BINDING: Row = Row {
    kind: "ClusterRoleBinding",
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    scope: Scope::Cluster,
    schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
    strategy: Strategy {
        default: default_subjects,
        validate: |binding| validate_binding(binding, &["ClusterRole"]),
        validate_update: validate_binding_update,
        ..Strategy::PLAIN
    },
    ..BINDING_KIND
};

/// RoleBindings.
pub static ROLE_BINDING: Row = Row {
    kind: "RoleBinding",
    plural: "rolebindings",
    singular: "rolebinding",
    schema: "io.k8s.api.rbac.v1.RoleBinding",
    strategy: Strategy {
        default: default_subjects,
        validate: |binding| validate_binding(binding, &["ClusterRole", "Role"]),
        validate_update: validate_binding_update,
        ..Strategy::PLAIN
    },
    ..BINDING_KIND
};

/// Users and groups are names in this API group; service accounts are objects of the core group.
fn default_subjects(binding: &mut Value) {
    for subject in list_mut(binding, "/subjects") {
        if matches!(text(&subject["kind"]), "User" | "Group") && is_empty(&subject["apiGroup"]) {
            super::json::set(subject, "apiGroup", GROUP);
        } else if text(&subject["kind"]) == "ServiceAccount" {
            default_field(subject, "apiGroup", "");
        }
    }
}

fn validate_role(role: &Value) -> Errors {
    let mut errors = Errors::new();
    for (index, rule) in list(&role["rules"]).iter().enumerate() {
        validate_rule(&mut errors, &Path::new("rules").index(index), rule, true);
    }
    errors
}

fn validate_cluster_role(role: &Value) -> Errors {
    let mut errors = Errors::new();
    for (index, rule) in list(&role["rules"]).iter().enumerate() {
        validate_rule(&mut errors, &Path::new("rules").index(index), rule, false);
    }
    let aggregation = &role["aggregationRule"];
    if !aggregation.is_null() {
        let (path, selectors) = (
            Path::new("aggregationRule").child("clusterRoleSelectors"),
            list(&aggregation["clusterRoleSelectors"]),
        );
        if selectors.is_empty() {
            errors.required(&path, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for (index, selector) in selectors.iter().enumerate() {
            rules::label_selector(&mut errors, &path.index(index), selector);
        }
    }
    errors
}

fn validate_rule(errors: &mut Errors, path: &Path, rule: &Value, namespaced: bool) {
    if is_empty(&rule["verbs"]) {
        errors.required(&path.child("verbs"), "verbs must contain at least one value");
    }
    let urls = &rule["nonResourceURLs"];
    let names_resources =
        ["apiGroups", "resources", "resourceNames"].iter().any(|field| !is_empty(&rule[*field]));
    if !is_empty(urls) {
        let path = path.child("nonResourceURLs");
        if namespaced {
            errors.invalid(&path, urls.clone(), "namespaced rules cannot apply to non-resource URLs");
        }
        if names_resources {
            errors.invalid(
                &path,
                urls.clone(),
                "rules cannot apply to both regular resources and non-resource URLs",
            );
        }
        return;
    }
    if is_empty(&rule["apiGroups"]) {
        errors.required(&path.child("apiGroups"), "resource rules must supply at least one api group");
    }
    if is_empty(&rule["resources"]) {
        errors.required(&path.child("resources"), "resource rules must supply at least one resource");
    }
}

fn validate_binding(binding: &Value, kinds: &[&str]) -> Errors {
    let mut errors = Errors::new();
    let (path, role) = (Path::new("roleRef"), &binding["roleRef"]);
    if text(&role["apiGroup"]) != GROUP {
        errors.not_supported(&path.child("apiGroup"), text(&role["apiGroup"]), &[GROUP]);
    }
    if !kinds.contains(&text(&role["kind"])) {
        errors.not_supported(&path.child("kind"), text(&role["kind"]), kinds);
    }
    rules::required_name(&mut errors, &path.child("name"), text(&role["name"]), names::path_segment);
    for (index, subject) in list(&binding["subjects"]).iter().enumerate() {
        validate_subject(&mut errors, &Path::new("subjects").index(index), subject, kinds.contains(&"Role"));
    }
    errors
}

/// `namespaced`: the binding has a namespace, in which an account is looked for that names none.
fn validate_subject(errors: &mut Errors, path: &Path, subject: &Value, namespaced: bool) {
    let (name, group) = (text(&subject["name"]), text(&subject["apiGroup"]));
    if name.is_empty() {
        errors.required(&path.child("name"), "");
    }
    match text(&subject["kind"]) {
        "ServiceAccount" => {
            rules::optional_name(errors, &path.child("name"), name, names::dns1123_subdomain);
            if !group.is_empty() {
                errors.not_supported(&path.child("apiGroup"), group, &[""]);
            }
            if !namespaced {
                rules::required(errors, &path.child("namespace"), &subject["namespace"]);
            }
        }
        "User" | "Group" if group != GROUP => errors.not_supported(&path.child("apiGroup"), group, &[GROUP]),
        "User" | "Group" => {}
        other => errors.not_supported(&path.child("kind"), other, &["ServiceAccount", "User", "Group"]),
    }
}

/// Who may bind a role was asked when the binding was made; another role would need to be asked for again.
fn validate_binding_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if !same(&new["roleRef"], &old["roleRef"]) {
        errors.invalid(&Path::new("roleRef"), new["roleRef"].clone(), "cannot change roleRef");
    }
    errors
}

fn role_row(role: &Value, _now: Timestamp) -> Vec<Value> {
    vec![json!(text(&role["metadata"]["name"])), json!(text(&role["metadata"]["creationTimestamp"]))]
}

fn binding_row(binding: &Value, now: Timestamp) -> Vec<Value> {
    let role = &binding["roleRef"];
    let subjects = |kind: &str, show: fn(&Value) -> String| {
        let all: Vec<String> =
            list(&binding["subjects"]).iter().filter(|s| text(&s["kind"]) == kind).map(show).collect();
        json!(all.join(", "))
    };
    let name = |subject: &Value| text(&subject["name"]).to_owned();
    let account = |subject: &Value| format!("{}/{}", text(&subject["namespace"]), text(&subject["name"]));
    vec![
        json!(text(&binding["metadata"]["name"])),
        json!(format!("{}/{}", text(&role["kind"]), text(&role["name"]))),
        table::age(binding, now),
        subjects("User", name),
        subjects("Group", name),
        subjects("ServiceAccount", account),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn roles() {
        let role = |rule: Value| json!({"rules": [rule]});
        let good = json!({"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]});
        expect("good", &validate_role(&role(good)), &[]);
        expect(
            "empty",
            &validate_role(&role(json!({}))),
            &[
                "rules[0].verbs: Required value: verbs must contain at least one value",
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
            ],
        );
        let urls = json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]});
        expect("cluster role", &validate_cluster_role(&role(urls.clone())), &[]);
        expect(
            "role",
            &validate_role(&role(urls)),
            &[
                "rules[0].nonResourceURLs: Invalid value: [\"/healthz\"]: namespaced rules cannot apply to non-resource \
               URLs",
            ],
        );
    }

    fn binding() -> Value {
        let mut binding = json!({
            "metadata": {"name": "b", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "roleRef": {"apiGroup": GROUP, "kind": "Role", "name": "r"},
            "subjects": [
                {"kind": "User", "name": "ann"},
                {"kind": "Group", "name": "staff"},
                {"kind": "ServiceAccount", "name": "x", "namespace": "y"},
            ],
        });
        default_subjects(&mut binding);
        binding
    }

    #[test]
    fn bindings() {
        expect("good", &(ROLE_BINDING.strategy.validate)(&binding()), &[]);
        expect(
            "role for the cluster",
            &(CLUSTER_ROLE_BINDING.strategy.validate)(&binding()),
            &["roleRef.kind: Unsupported value: \"Role\": supported values: \"ClusterRole\""],
        );
        let mut other = binding();
        other["roleRef"]["name"] = json!("s");
        assert_eq!(validate_binding_update(&other, &binding()).0[0].detail, "cannot change roleRef");
        other["subjects"] = json!([{"kind": "ServiceAccount", "name": "x"}, {"kind": "Team", "name": "z"}]);
        other["roleRef"]["kind"] = json!("ClusterRole");
        let team = "subjects[1].kind: Unsupported value: \"Team\": supported values: \"ServiceAccount\", \"User\", \
                    \"Group\"";
        expect("subjects in a namespace", &(ROLE_BINDING.strategy.validate)(&other), &[team]);
        expect(
            "subjects",
            &(CLUSTER_ROLE_BINDING.strategy.validate)(&other),
            &["subjects[0].namespace: Required value", team],
        );
    }

    #[test]
    fn cells() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = ["b", "Role/r", "60s", "ann", "staff", "y/x"];
        assert_eq!(binding_row(&binding(), now), expected.map(|cell| json!(cell)));
        assert_eq!(role_row(&binding(), now), [json!("b"), json!("2026-01-01T00:00:00Z")]);
    }
}
