//! How expensive rules may become: told from the limits in the schema before any object exists.
//!
//! What has no limit is bounded by the largest request: so many elements of the smallest kind fit into it. Source:
//! `k8s.io/apiserver/pkg/cel/common/schemas.go` and `apiextensions/validation` (`StaticEstimatedCostLimit`).

use serde_json::Value;

use crate::field::{Errors, Path};

/// Bytes of the largest object in the estimates of upstream.
const MAX_REQUEST: u64 = 3 * 1024 * 1024;
/// Limit of one rule, times the number of places it applies to.
const RULE_LIMIT: u64 = 10_000_000;
/// Limit of all rules of a schema.
const SCHEMA_LIMIT: u64 = 100_000_000;

const HINT: &str = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, \
                    and strings are declared)";

/// Characters of a text without a limit.
pub(super) const MOST_CHARACTERS: u64 = MAX_REQUEST - 2;

/// The sum over the rules of a schema.
#[derive(Debug, Default)]
pub(super) struct Estimates {
    total: u64,
}

impl Estimates {
    /// Elements of a list, at most.
    pub(super) fn most_items(list: &Value, element: &Value) -> u64 {
        let natural = (MAX_REQUEST - 2) / (smallest(element, 0) + 1);
        list["maxItems"].as_u64().unwrap_or(natural)
    }

    /// Values of a map, at most: each has a key, quotes and a colon.
    pub(super) fn most_values(map: &Value, value: &Value) -> u64 {
        let natural = (MAX_REQUEST - 2) / (smallest(value, 0) + 6);
        map["maxProperties"].as_u64().unwrap_or(natural)
    }

    /// Adds an expression that may run `count` times.
    pub(super) fn add(&mut self, what: &str, cost: u64, count: u64, path: &Path, errors: &mut Errors) {
        let cost = cost.saturating_mul(count.max(1));
        self.total = self.total.saturating_add(cost);
        if cost > RULE_LIMIT {
            errors.forbidden(path, exceeds(&format!("estimated {what} cost"), cost, RULE_LIMIT));
        }
    }

    /// Judges the sum.
    pub(super) fn finish(&self, errors: &mut Errors, path: &Path) {
        if self.total > SCHEMA_LIMIT && errors.is_empty() {
            let what = "x-kubernetes-validations estimated rule & messageExpression cost total for entire OpenAPIv3 \
                        schema";
            errors.forbidden(path, exceeds(what, self.total, SCHEMA_LIMIT));
        }
    }
}

fn exceeds(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    if factor > 100.0 {
        return format!("{what} exceeds budget by factor of more than 100x {HINT}");
    }
    // Rounding down must not say that nothing was exceeded.
    format!("{what} exceeds budget by factor of {:.1}x {HINT}", factor.max(1.1))
}

/// Bytes of the smallest JSON value of a schema.
fn smallest(schema: &Value, depth: usize) -> u64 {
    match schema["type"].as_str().unwrap_or_default() {
        "string" => 2,
        "boolean" => 4,
        "array" => 2,
        "object" if depth < 16 => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let fields = required.filter_map(|name| {
                let property = schema["properties"].get(name)?;
                // Quotes, a colon, a comma.
                Some(name.len() as u64 + 4 + smallest(property, depth + 1))
            });
            2 + fields.sum::<u64>()
        }
        "object" => 2,
        _ => 1,
    }
}
