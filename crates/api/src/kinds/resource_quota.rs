//! ResourceQuotas: how much the objects of a namespace may ask for together.
//!
//! What an object counts for is in [`crate::usage`]; who adds it up is the server.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{entries, list, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Strategy, Subresource};
use crate::{names, table};

/// ResourceQuotas.
pub static RESOURCE_QUOTA: Row = Row {
    kind: "ResourceQuota",
    plural: "resourcequotas",
    singular: "resourcequota",
    short_names: &["quota"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.core.v1.ResourceQuota",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("Request", "What is used of what may be requested or counted."),
        Column::new("Limit", "What is used of the limits that may be set."),
        Column::age(),
    ],
    table_row,
    strategy: Strategy {
        prepare_create: |quota| set(quota, "status", json!({})),
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// What pods alone are counted by.
const POD_RESOURCES: [&str; 7] =
    ["pods", "cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
/// What claims alone are counted by.
const CLAIM_RESOURCES: [&str; 2] = ["persistentvolumeclaims", "requests.storage"];
/// The other names without a prefix that a quota may hold.
const OTHER_RESOURCES: [&str; 10] = [
    "ephemeral-storage",
    "requests.ephemeral-storage",
    "limits.ephemeral-storage",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "services.nodeports",
    "services.loadbalancers",
];
/// The standard names that are numbers of objects.
const COUNTS: [&str; 9] = [
    "pods",
    "resourcequotas",
    "services",
    "replicationcontrollers",
    "secrets",
    "configmaps",
    "persistentvolumeclaims",
    "services.nodeports",
    "services.loadbalancers",
];
/// Parts of a namespace's objects that a quota may be limited to.
const SCOPES: [&str; 7] = [
    "Terminating",
    "NotTerminating",
    "BestEffort",
    "NotBestEffort",
    "PriorityClass",
    "CrossNamespacePodAffinity",
    "VolumeAttributesClass",
];
/// Scopes that exclude each other.
const CONFLICTS: [[&str; 2]; 2] = [["BestEffort", "NotBestEffort"], ["Terminating", "NotTerminating"]];

fn validate(quota: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &quota["spec"]);
    for (resource, amount) in entries(&spec["hard"]) {
        let path = path.child("hard").key(resource);
        validate_resource(&mut errors, &path, resource);
        rules::quantity_not_negative(&mut errors, &path, amount);
        let fraction = rules::quantity(amount).is_some_and(|amount| amount.milli() % 1000 != 0);
        if is_count(resource) && fraction {
            errors.invalid(&path, amount.clone(), "must be an integer");
        }
    }
    validate_scopes(&mut errors, &path.child("scopes"), spec);
    if !spec["scopeSelector"].is_null() {
        validate_selector(&mut errors, &path.child("scopeSelector").child("matchExpressions"), spec);
    }
    errors
}

fn validate_resource(errors: &mut Errors, path: &Path, resource: &str) {
    rules::name(errors, path, resource, names::qualified_name);
    if !resource.contains('/') && !is_standard(resource) && !is_huge_pages(resource) {
        errors.invalid(path, resource, "must be a standard resource for quota");
    }
}

fn is_standard(resource: &str) -> bool {
    [&POD_RESOURCES[..], &CLAIM_RESOURCES, &OTHER_RESOURCES].iter().any(|names| names.contains(&resource))
}

fn is_huge_pages(resource: &str) -> bool {
    ["hugepages-", "requests.hugepages-"].iter().any(|prefix| resource.starts_with(prefix))
}

/// Whether the resource comes in whole pieces: objects, and what is not Kubernetes' own.
fn is_count(resource: &str) -> bool {
    let own = !resource.contains('/') || resource.contains("kubernetes.io/");
    COUNTS.contains(&resource) || (!own && !resource.starts_with("requests."))
}

/// Whether a scope says anything about what the resource counts.
fn scope_fits(scope: &str, resource: &str) -> bool {
    match scope {
        "BestEffort" => resource == "pods",
        "VolumeAttributesClass" => CLAIM_RESOURCES.contains(&resource),
        _ => POD_RESOURCES.contains(&resource),
    }
}

fn fits_all(scope: &str, spec: &Value) -> bool {
    entries(&spec["hard"]).all(|(resource, _)| !is_standard(resource) || scope_fits(scope, resource))
}

fn conflicting(scopes: &BTreeSet<&str>) -> bool {
    CONFLICTS.iter().any(|pair| pair.iter().all(|scope| scopes.contains(scope)))
}

fn validate_scopes(errors: &mut Errors, path: &Path, spec: &Value) {
    let scopes: BTreeSet<&str> = list(&spec["scopes"]).iter().map(text).collect();
    let mut invalid = |detail: &str| errors.invalid(path, spec["scopes"].clone(), detail);
    for scope in &scopes {
        if !SCOPES.contains(scope) {
            invalid("unsupported scope");
        } else if !fits_all(scope, spec) {
            invalid("unsupported scope applied to resource");
        }
    }
    if conflicting(&scopes) {
        invalid("conflicting scopes");
    }
}

fn validate_selector(errors: &mut Errors, path: &Path, spec: &Value) {
    let selector = &spec["scopeSelector"];
    let mut scopes = BTreeSet::new();
    for requirement in list(&selector["matchExpressions"]) {
        let (scope, operator) = (text(&requirement["scopeName"]), text(&requirement["operator"]));
        if !SCOPES.contains(&scope) {
            errors.invalid(&path.child("scopeName"), scope, "unsupported scope");
        } else if !fits_all(scope, spec) {
            errors.invalid(path, selector.clone(), "unsupported scope applied to resource");
        }
        let has_values = matches!(scope, "PriorityClass" | "VolumeAttributesClass");
        if SCOPES.contains(&scope) && !has_values && operator != "Exists" {
            errors.invalid(
                &path.child("operator"),
                operator,
                "must be 'Exist' when scope is any of ResourceQuotaScopeTerminating, ResourceQuotaScopeNotTerminating, \
                 ResourceQuotaScopeBestEffort, ResourceQuotaScopeNotBestEffort or \
                 ResourceQuotaScopeCrossNamespacePodAffinity",
            );
        }
        validate_operator(errors, path, operator, &requirement["values"]);
        scopes.insert(scope);
    }
    if conflicting(&scopes) {
        errors.invalid(path, selector["matchExpressions"].clone(), "conflicting scopes");
    }
}

fn validate_operator(errors: &mut Errors, path: &Path, operator: &str, values: &Value) {
    let none = list(values).is_empty();
    match operator {
        "In" | "NotIn" if none => errors.required(
            &path.child("values"),
            "must be at least one value when `operator` is 'In' or 'NotIn' for scope selector",
        ),
        "Exists" | "DoesNotExist" if !none => errors.invalid(
            &path.child("values"),
            values.clone(),
            "must be no value when `operator` is 'Exist' or 'DoesNotExist' for scope selector",
        ),
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
}

/// What is counted would change with the scopes, and nobody would know of what the present numbers are the sum.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let scopes = |quota: &Value| -> BTreeSet<String> {
        list(&quota["spec"]["scopes"]).iter().map(|scope| text(scope).to_owned()).collect()
    };
    if scopes(new) != scopes(old) {
        let path = Path::new("spec").child("scopes");
        errors.invalid(&path, new["spec"]["scopes"].clone(), rules::IMMUTABLE);
    }
    errors
}

fn table_row(quota: &Value, now: Timestamp) -> Vec<Value> {
    let used = |resource: &str| match text(&quota["status"]["used"][resource]) {
        "" => "0".to_owned(),
        amount => amount.to_owned(),
    };
    let (limits, requests): (Vec<_>, Vec<_>) =
        entries(&quota["status"]["hard"]).partition(|(resource, _)| resource.starts_with("limits."));
    let cell = |amounts: Vec<(&str, &Value)>| {
        let parts: Vec<String> = amounts
            .into_iter()
            .map(|(resource, hard)| format!("{resource}: {}/{}", used(resource), text(hard)))
            .collect();
        json!(parts.join(", "))
    };
    vec![json!(text(&quota["metadata"]["name"])), cell(requests), cell(limits), table::age(quota, now)]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation() {
        let row = |what: &str, spec: Value, expected: &[&str]| {
            expect(what, &validate(&json!({ "spec": spec })), expected);
        };
        row(
            "good",
            json!({"hard": {
                "pods": "10", "requests.cpu": "1500m", "count/deployments.apps": "2", "requests.nvidia.com/gpu": "1",
                "gold.storageclass.storage.k8s.io/requests.storage": "5Gi", "hugepages-2Mi": "1Gi",
            }}),
            &[],
        );
        row(
            "names and amounts",
            json!({"hard": {"apples": "1", "memory": "-1", "pods": "1500m", "count/jobs.batch": "1m"}}),
            &[
                "spec.hard[apples]: Invalid value: \"apples\": must be a standard resource for quota",
                "spec.hard[count/jobs.batch]: Invalid value: \"1m\": must be an integer",
                "spec.hard[memory]: Invalid value: \"-1\": must be greater than or equal to 0",
                "spec.hard[pods]: Invalid value: \"1500m\": must be an integer",
            ],
        );
        row("scope", json!({"hard": {"pods": "1"}, "scopes": ["BestEffort"]}), &[]);
        row(
            "scopes",
            json!({"hard": {"cpu": "1"}, "scopes": ["BestEffort", "NotBestEffort", "Best"]}),
            &[
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Best\"]: unsupported scope",
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Best\"]: unsupported scope applied to \
                 resource",
                "spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\",\"Best\"]: conflicting scopes",
            ],
        );
        let selector = |scope: &str, operator: &str, values: Value| {
            let requirement = json!({"scopeName": scope, "operator": operator, "values": values});
            json!({"hard": {"pods": "1"}, "scopeSelector": {"matchExpressions": [requirement]}})
        };
        row("selector", selector("PriorityClass", "In", json!(["high"])), &[]);
        row(
            "no values",
            selector("PriorityClass", "In", json!([])),
            &[
                "spec.scopeSelector.matchExpressions.values: Required value: must be at least one value when `operator` \
               is 'In' or 'NotIn' for scope selector",
            ],
        );
        assert_eq!(validate(&json!({"spec": selector("Terminating", "In", json!(["a"]))})).0.len(), 1);
    }

    #[test]
    fn scopes_stay() {
        let quota = |scopes: Value| json!({"spec": {"scopes": scopes}});
        let old = quota(json!(["Terminating", "BestEffort"]));
        expect("order", &validate_update(&quota(json!(["BestEffort", "Terminating"])), &old), &[]);
        expect(
            "fewer",
            &validate_update(&quota(json!(["BestEffort"])), &old),
            &["spec.scopes: Invalid value: [\"BestEffort\"]: field is immutable"],
        );
    }

    #[test]
    fn cells() {
        let quota = json!({
            "metadata": {"name": "q", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "status": {
                "hard": {"pods": "10", "limits.cpu": "4", "requests.cpu": "2"},
                "used": {"pods": "3", "limits.cpu": "1"},
            },
        });
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = ["q", "pods: 3/10, requests.cpu: 0/2", "limits.cpu: 1/4", "60s"];
        assert_eq!(table_row(&quota, now), expected.map(|cell| json!(cell)));
    }
}
