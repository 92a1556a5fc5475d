//! What changes or refuses objects on their way in: webhooks ([`webhook`]) and policies written in CEL ([`policy`]).
//!
//! Both choose requests in the same words, which are checked here. Expressions are only required to be there: who
//! evaluates them also compiles them, and finds them with [`super::expression::of`].

pub mod policy;
pub mod webhook;

use std::collections::BTreeSet;

use serde_json::Value;

use super::json::{list, text};
use super::rules::{self, wildcard_list};
use crate::field::{Errors, Path};
use crate::names;

const FAILURE_POLICIES: &[&str] = &["Fail", "Ignore"];
const MATCH_POLICIES: &[&str] = &["Equivalent", "Exact"];
const REINVOCATION_POLICIES: &[&str] = &["IfNeeded", "Never"];
const MAX_CONDITIONS: usize = 64;

/// A rule: operations, and the resources they are on.
fn validate_rule(errors: &mut Errors, path: &Path, rule: &Value) {
    wildcard_list(errors, &path.child("operations"), &rule["operations"], "operations", "");
    for (index, operation) in list(&rule["operations"]).iter().enumerate() {
        let path = path.child("operations").index(index);
        let supported = ["*", "CONNECT", "CREATE", "DELETE", "UPDATE"];
        if !supported.contains(&text(operation)) {
            errors.not_supported(&path, text(operation), &supported);
        }
    }
    for (field, what) in [("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        wildcard_list(errors, &path.child(field), &rule[field], what, "");
    }
    for (index, version) in list(&rule["apiVersions"]).iter().enumerate() {
        rules::required(errors, &path.child("apiVersions").index(index), version);
    }
    validate_resources(errors, &path.child("resources"), &rule["resources"]);
    rules::optional_one_of(errors, &path.child("scope"), &rule["scope"], &["*", "Cluster", "Namespaced"]);
}

/// Resources and subresources, each possibly `*`, none said twice by a wildcard.
fn validate_resources(errors: &mut Errors, path: &Path, value: &Value) {
    let resources: Vec<&str> = list(value).iter().map(text).collect();
    if resources.is_empty() {
        errors.required(path, "");
    }
    let (mut all_below, mut everywhere) = (BTreeSet::new(), BTreeSet::new());
    let mut plain = false;
    for (index, resource) in resources.iter().enumerate() {
        let path = path.index(index);
        let Some((name, below)) = resource.split_once('/') else {
            if resource.is_empty() {
                errors.required(&path, "");
            }
            plain |= !matches!(*resource, "" | "*");
            continue;
        };
        if all_below.contains(name) {
            let detail = format!("if '{name}/*' is present, must not specify {resource}");
            errors.invalid(&path, *resource, detail);
        }
        if everywhere.contains(below) {
            let detail = format!("if '*/{below}' is present, must not specify {resource}");
            errors.invalid(&path, *resource, detail);
        }
        if below == "*" {
            all_below.insert(name);
        }
        if name == "*" {
            everywhere.insert(below);
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        let detail = "if '*/*' is present, must not specify other resources";
        errors.invalid(path, value.clone(), detail);
    }
    if resources.contains(&"*") && plain {
        let detail = "if '*' is present, must not specify other resources without subresources";
        errors.invalid(path, value.clone(), detail);
    }
}

/// Named expressions that must all hold.
fn validate_match_conditions(errors: &mut Errors, path: &Path, value: &Value) {
    let conditions = list(value);
    if conditions.len() > MAX_CONDITIONS {
        errors.too_many(path, conditions.len(), MAX_CONDITIONS);
    }
    let mut seen = BTreeSet::new();
    for (index, condition) in conditions.iter().enumerate() {
        let path = path.index(index);
        if text(&condition["expression"]).trim().is_empty() {
            errors.required(&path.child("expression"), "");
        }
        let name = text(&condition["name"]);
        rules::required_name(errors, &path.child("name"), name, names::qualified_name);
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;
    use serde_json::json;

    #[test]
    fn rules_of_requests() {
        let row = |what: &str, changes: Value, expected: &[&str]| {
            let mut rule = json!({
                "operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"], "scope": "*",
            });
            for (field, value) in changes.as_object().into_iter().flatten() {
                rule[field] = value.clone();
            }
            let mut errors = Errors::new();
            validate_rule(&mut errors, &Path::new("rule"), &rule);
            expect(what, &errors, expected);
        };
        row("good", json!({}), &[]);
        row("subresources", json!({"resources": ["pods", "pods/status", "*/scale"]}), &[]);
        row("none", json!({"operations": []}), &["rule.operations: Required value"]);
        row(
            "operations",
            json!({"operations": ["*", "READ"]}),
            &[
                "rule.operations: Invalid value: [\"*\",\"READ\"]: if '*' is present, must not specify other operations",
                "rule.operations[1]: Unsupported value: \"READ\": supported values: \"*\", \"CONNECT\", \"CREATE\", \
                 \"DELETE\", \"UPDATE\"",
            ],
        );
        row("versions", json!({"apiVersions": ["", "v1"]}), &["rule.apiVersions[0]: Required value"]);
        row(
            "said twice",
            json!({"resources": ["pods/*", "pods/status"]}),
            &[
                "rule.resources[1]: Invalid value: \"pods/status\": if 'pods/*' is present, must not specify pods/status",
            ],
        );
        row(
            "everything and more",
            json!({"resources": ["*", "pods", "*/*"]}),
            &[
                "rule.resources: Invalid value: [\"*\",\"pods\",\"*/*\"]: if '*/*' is present, must not specify other resources",
                "rule.resources: Invalid value: [\"*\",\"pods\",\"*/*\"]: if '*' is present, must not specify other \
                 resources without subresources",
            ],
        );
        row(
            "scope",
            json!({"scope": "Global"}),
            &[
                "rule.scope: Unsupported value: \"Global\": supported values: \"*\", \"Cluster\", \"Namespaced\"",
            ],
        );
    }

    #[test]
    fn conditions() {
        let mut errors = Errors::new();
        let conditions = json!([{"name": "a", "expression": "true"}, {"name": "a", "expression": " "}]);
        validate_match_conditions(&mut errors, &Path::new("matchConditions"), &conditions);
        expect(
            "conditions",
            &errors,
            &[
                "matchConditions[1].expression: Required value",
                "matchConditions[1].name: Duplicate value: \"a\"",
            ],
        );
    }
}
