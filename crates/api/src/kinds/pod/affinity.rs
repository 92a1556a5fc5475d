//! Where a pod may go: affinity, tolerations, spreading.

use serde_json::{Value, json};

use super::super::json::{int, is_empty, list, text};
use super::super::rules::{self, name, one_of, required_name};
use crate::field::{Errors, Path};
use crate::names;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";
const TAINT_EFFECTS: &[&str] = &["NoSchedule", "PreferNoSchedule", "NoExecute"];

/// Checks `affinity`.
pub(super) fn validate(errors: &mut Errors, path: &Path, affinity: &Value) {
    let node = &affinity["nodeAffinity"];
    let node_path = path.child("nodeAffinity");
    if !node[REQUIRED].is_null() {
        validate_node_selector(errors, &node_path.child(REQUIRED), &node[REQUIRED]);
    }
    for (index, term) in list(&node[PREFERRED]).iter().enumerate() {
        let path = node_path.child(PREFERRED).index(index);
        validate_weight(errors, &path, term);
        validate_node_term(errors, &path.child("preference"), &term["preference"]);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let (path, affinity) = (path.child(kind), &affinity[kind]);
        for (index, term) in list(&affinity[REQUIRED]).iter().enumerate() {
            validate_pod_term(errors, &path.child(REQUIRED).index(index), term);
        }
        for (index, term) in list(&affinity[PREFERRED]).iter().enumerate() {
            let path = path.child(PREFERRED).index(index);
            validate_weight(errors, &path, term);
            validate_pod_term(errors, &path.child("podAffinityTerm"), &term["podAffinityTerm"]);
        }
    }
}

fn validate_weight(errors: &mut Errors, path: &Path, term: &Value) {
    let weight = int(&term["weight"]);
    if !(1..=100).contains(&weight) {
        errors.invalid(&path.child("weight"), weight, "must be in the range 1-100");
    }
}

/// Checks a `core/v1` NodeSelector.
pub(crate) fn validate_node_selector(errors: &mut Errors, path: &Path, selector: &Value) {
    let (terms, path) = (list(&selector["nodeSelectorTerms"]), path.child("nodeSelectorTerms"));
    if terms.is_empty() {
        errors.required(&path, "must have at least one node selector term");
    }
    for (index, term) in terms.iter().enumerate() {
        validate_node_term(errors, &path.index(index), term);
    }
}

fn validate_node_term(errors: &mut Errors, path: &Path, term: &Value) {
    for (index, requirement) in list(&term["matchExpressions"]).iter().enumerate() {
        validate_node_requirement(errors, &path.child("matchExpressions").index(index), requirement);
    }
    for (index, requirement) in list(&term["matchFields"]).iter().enumerate() {
        let path = path.child("matchFields").index(index);
        match text(&requirement["operator"]) {
            "In" | "NotIn" if list(&requirement["values"]).len() != 1 => errors.required(
                &path.child("values"),
                "must be only one value when `operator` is 'In' or 'NotIn' for node field selector",
            ),
            "In" | "NotIn" => {}
            other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
        }
        if text(&requirement["key"]) != "metadata.name" {
            let key = text(&requirement["key"]);
            errors.invalid(&path.child("key"), key, "not a valid field selector key");
        }
    }
}

fn validate_node_requirement(errors: &mut Errors, path: &Path, requirement: &Value) {
    let (values, values_path) = (list(&requirement["values"]), path.child("values"));
    match text(&requirement["operator"]) {
        "In" | "NotIn" if values.is_empty() => {
            errors.required(&values_path, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => errors
            .forbidden(&values_path, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"),
        "Gt" | "Lt" if values.len() != 1 => {
            errors.required(&values_path, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        other => errors.invalid(&path.child("operator"), other, "not a valid selector operator"),
    }
    name(errors, &path.child("key"), text(&requirement["key"]), names::qualified_name);
}

fn validate_pod_term(errors: &mut Errors, path: &Path, term: &Value) {
    rules::label_selector(errors, &path.child("labelSelector"), &term["labelSelector"]);
    rules::label_selector(errors, &path.child("namespaceSelector"), &term["namespaceSelector"]);
    for namespace in list(&term["namespaces"]) {
        name(errors, &path.child("namespaces"), text(namespace), names::dns1123_label);
    }
    let topology = text(&term["topologyKey"]);
    if topology.is_empty() {
        errors.required(&path.child("topologyKey"), "can not be empty");
    } else {
        name(errors, &path.child("topologyKey"), topology, names::qualified_name);
    }
}

/// Checks `tolerations`.
pub(crate) fn validate_tolerations(errors: &mut Errors, path: &Path, tolerations: &Value) {
    for (index, toleration) in list(tolerations).iter().enumerate() {
        let path = path.index(index);
        let field = |name: &str| text(&toleration[name]);
        rules::optional_name(errors, &path.child("key"), field("key"), names::qualified_name);
        if field("key").is_empty() && field("operator") != "Exists" {
            errors.invalid(
                &path.child("operator"),
                field("operator"),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if !toleration["tolerationSeconds"].is_null() && field("effect") != "NoExecute" {
            errors.invalid(
                &path.child("effect"),
                field("effect"),
                "effect must be 'NoExecute' when `tolerationSeconds` is set",
            );
        }
        match field("operator") {
            "" | "Equal" => name(errors, &path.child("operator"), field("value"), names::label_value),
            "Exists" if !is_empty(&toleration["value"]) => errors.invalid(
                &path.child("operator"),
                toleration.clone(),
                "value must be empty when `operator` is 'Exists'",
            ),
            "Exists" => {}
            other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
        }
        rules::optional_one_of(errors, &path.child("effect"), &toleration["effect"], TAINT_EFFECTS);
    }
}

/// Checks `topologySpreadConstraints`.
pub(super) fn validate_spread(errors: &mut Errors, path: &Path, constraints: &Value) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, constraint) in list(constraints).iter().enumerate() {
        let path = path.index(index);
        let skew = int(&constraint["maxSkew"]);
        if skew <= 0 {
            errors.invalid(&path.child("maxSkew"), skew, rules::POSITIVE);
        }
        let (topology, when) = (text(&constraint["topologyKey"]), text(&constraint["whenUnsatisfiable"]));
        if topology.is_empty() {
            errors.required(&path.child("topologyKey"), "can not be empty");
        } else {
            name(errors, &path.child("topologyKey"), topology, names::qualified_name);
        }
        let actions = ["DoNotSchedule", "ScheduleAnyway"];
        if !actions.contains(&when) {
            errors.not_supported(&path.child("whenUnsatisfiable"), when, &actions);
        }
        if seen.contains(&(topology, when)) {
            errors.duplicate(
                &path.child("{topologyKey, whenUnsatisfiable}"),
                format!("{{{topology}, {when}}}"),
            );
        }
        seen.push((topology, when));
        validate_spread_details(errors, &path, constraint);
    }
}

fn validate_spread_details(errors: &mut Errors, path: &Path, constraint: &Value) {
    if let Some(domains) = constraint["minDomains"].as_i64() {
        let path = path.child("minDomains");
        if domains <= 0 {
            errors.invalid(&path, domains, rules::POSITIVE);
        }
        let when = text(&constraint["whenUnsatisfiable"]);
        if when != "DoNotSchedule" {
            let detail = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ".to_owned() + when;
            errors.invalid(&path, domains, detail);
        }
    }
    for field in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
        rules::optional_one_of(errors, &path.child(field), &constraint[field], &["Honor", "Ignore"]);
    }
    if !is_empty(&constraint["matchLabelKeys"]) && constraint["labelSelector"].is_null() {
        errors
            .forbidden(&path.child("matchLabelKeys"), "must not be specified when labelSelector is not set");
    }
    rules::label_selector(errors, &path.child("labelSelector"), &constraint["labelSelector"]);
}

/// Checks the taints of a node.
pub(crate) fn validate_taints(errors: &mut Errors, path: &Path, taints: &Value) {
    let mut seen: Vec<(&str, &str)> = Vec::new();
    for (index, taint) in list(taints).iter().enumerate() {
        let path = path.index(index);
        let (key, effect) = (text(&taint["key"]), text(&taint["effect"]));
        required_name(errors, &path.child("key"), key, names::qualified_name);
        name(errors, &path.child("value"), text(&taint["value"]), names::label_value);
        one_of(errors, &path.child("effect"), &taint["effect"], TAINT_EFFECTS);
        if seen.contains(&(key, effect)) {
            errors.duplicate(&path, json!({"key": key, "effect": effect}));
        }
        seen.push((key, effect));
    }
}
