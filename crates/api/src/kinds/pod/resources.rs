//! Resources: which names there are, and how much of them may be asked for.

use serde_json::Value;

use super::super::json::{entries, text};
use super::super::rules::{name, quantity, quantity_not_negative};
use crate::field::{Errors, Path};
use crate::names;

/// Checks the `resources` of a container or a pod.
pub(super) fn validate(errors: &mut Errors, path: &Path, resources: &Value) {
    let (limits, requests) = (&resources["limits"], &resources["requests"]);
    validate_list(errors, &path.child("limits"), limits);
    validate_list(errors, &path.child("requests"), requests);
    for (resource, request) in entries(requests) {
        let Some(amount) = quantity(request) else { continue };
        let path = path.child("requests");
        match quantity(&limits[resource]) {
            Some(limit) if !may_overcommit(resource) && amount != limit => {
                errors.invalid(
                    &path,
                    text_of(request),
                    format!("must be equal to {resource} limit of {limit}"),
                );
            }
            Some(limit) if amount > limit => {
                let detail = format!("must be less than or equal to {resource} limit of {limit}");
                errors.invalid(&path, text_of(request), detail);
            }
            None if !may_overcommit(resource) => {
                errors.required(&path, "Limit must be set for non overcommitable resources");
            }
            _ => {}
        }
    }
}

/// Checks a list of amounts by resource name.
pub(super) fn validate_list(errors: &mut Errors, path: &Path, amounts: &Value) {
    for (resource, amount) in entries(amounts) {
        let path = path.key(resource);
        validate_name(errors, &path, resource);
        quantity_not_negative(errors, &path, amount);
        let whole = quantity(amount).is_none_or(|q| q.milli() % 1000 == 0);
        if !whole && !matches!(resource, "cpu" | "memory" | "ephemeral-storage") {
            errors.invalid(&path, amount.clone(), "must be an integer");
        }
    }
}

fn validate_name(errors: &mut Errors, path: &Path, resource: &str) {
    let problems = errors.0.len();
    name(errors, path, resource, names::qualified_name);
    if errors.0.len() > problems || resource.contains('/') {
        return;
    }
    let standard =
        matches!(resource, "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-");
    if !standard {
        errors.invalid(path, resource, "must be a standard resource type or fully qualified");
        errors.invalid(path, resource, "must be a standard resource for containers");
    }
}

/// Whether requests below limits make sense: not for devices and huge pages, which cannot be shared out again.
fn may_overcommit(resource: &str) -> bool {
    let native = !resource.contains('/') || resource.contains("kubernetes.io/");
    native && !resource.starts_with("hugepages-")
}

/// Amounts are reported in their canonical form.
fn text_of(amount: &Value) -> String {
    quantity(amount).map_or_else(|| text(amount).to_owned(), |q| q.to_string())
}
