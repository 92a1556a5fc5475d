//! What the end of a pod means for its job: failures that count, that do not, that end it (KEP-3329); successes that
//! are enough (KEP-3998).

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::json::{int, is_empty, list, text};
use super::super::rules;
use crate::field::{Errors, Path};
use crate::names;

const MAX_RULES: usize = 20;
const MAX_CONDITIONS: usize = 20;
const MAX_EXIT_CODES: usize = 255;
/// A text that names indexes, for instance `1,3-5`.
const MAX_INDEXES_BYTES: usize = 64 * 1024;

/// Checks `podFailurePolicy` of a job's spec.
pub(super) fn validate_failure(errors: &mut Errors, path: &Path, spec: &Value) {
    let policy = &spec["podFailurePolicy"];
    if policy.is_null() {
        return;
    }
    let restart = text(&spec["template"]["spec"]["restartPolicy"]);
    if restart != "Never" {
        let path = path.child("template").child("spec").child("restartPolicy");
        errors.invalid(&path, restart, "only \"Never\" is supported when podFailurePolicy is specified");
    }
    let (rules_given, path) = (list(&policy["rules"]), path.child("podFailurePolicy").child("rules"));
    if rules_given.len() > MAX_RULES {
        errors.too_many(&path, rules_given.len(), MAX_RULES);
    }
    for (index, rule) in rules_given.iter().enumerate() {
        validate_failure_rule(errors, &path.index(index), rule, spec);
    }
}

fn validate_failure_rule(errors: &mut Errors, path: &Path, rule: &Value, spec: &Value) {
    let action = &rule["action"];
    let actions = ["Count", "FailIndex", "FailJob", "Ignore"];
    rules::one_of(errors, &path.child("action"), action, &actions);
    if text(action) == "FailIndex" && spec["backoffLimitPerIndex"].is_null() {
        let detail = "requires the backoffLimitPerIndex to be set";
        errors.invalid(&path.child("action"), "FailIndex", detail);
    }
    let (codes, conditions) = (&rule["onExitCodes"], &rule["onPodConditions"]);
    match (codes.is_null(), is_empty(conditions)) {
        (true, true) => {
            let detail = "specifying one of OnExitCodes and OnPodConditions is required";
            errors.invalid(path, rule.clone(), detail);
        }
        (false, false) => {
            let detail = "specifying both OnExitCodes and OnPodConditions is not supported";
            errors.invalid(path, rule.clone(), detail);
        }
        _ => {}
    }
    if !codes.is_null() {
        validate_exit_codes(errors, &path.child("onExitCodes"), codes, &spec["template"]["spec"]);
    }
    let path = path.child("onPodConditions");
    if list(conditions).len() > MAX_CONDITIONS {
        errors.too_many(&path, list(conditions).len(), MAX_CONDITIONS);
    }
    for (index, condition) in list(conditions).iter().enumerate() {
        let path = path.index(index);
        rules::name(errors, &path.child("type"), text(&condition["type"]), names::qualified_name);
        rules::one_of(errors, &path.child("status"), &condition["status"], &["False", "True", "Unknown"]);
    }
}

fn validate_exit_codes(errors: &mut Errors, path: &Path, codes: &Value, pod: &Value) {
    let operator = text(&codes["operator"]);
    rules::one_of(errors, &path.child("operator"), &codes["operator"], &["In", "NotIn"]);
    if let Some(container) = codes["containerName"].as_str() {
        let mut all = ["containers", "initContainers"].into_iter().flat_map(|field| list(&pod[field]));
        if !all.any(|known| text(&known["name"]) == container) {
            let detail = "must be one of the container or initContainer names in the pod template";
            errors.invalid(&path.child("containerName"), container, detail);
        }
    }
    let (values, path) = (list(&codes["values"]), path.child("values"));
    if values.is_empty() {
        errors.invalid(&path, codes["values"].clone(), "at least one value is required");
    } else if values.len() > MAX_EXIT_CODES {
        errors.too_many(&path, values.len(), MAX_EXIT_CODES);
    }
    let mut seen = BTreeSet::new();
    for (index, value) in values.iter().map(int).enumerate() {
        if operator == "In" && value == 0 {
            errors.invalid(&path.index(index), value, "must not be 0 for the In operator");
        }
        if !seen.insert(value) {
            errors.duplicate(&path.index(index), value);
        }
    }
    if !values.is_sorted_by_key(int) {
        errors.invalid(&path, codes["values"].clone(), "must be ordered");
    }
}

/// Checks `successPolicy` of a job's spec.
pub(super) fn validate_success(errors: &mut Errors, path: &Path, spec: &Value) {
    let policy = &spec["successPolicy"];
    if policy.is_null() {
        return;
    }
    let path = path.child("successPolicy");
    if text(&spec["completionMode"]) != "Indexed" {
        errors.invalid(&path, policy.clone(), "requires indexed completion mode");
        return;
    }
    let (rules_given, path) = (list(&policy["rules"]), path.child("rules"));
    if rules_given.is_empty() {
        let detail = "at least one rules must be specified when the successPolicy is specified";
        errors.required(&path, detail);
    } else if rules_given.len() > MAX_RULES {
        errors.too_many(&path, rules_given.len(), MAX_RULES);
    }
    let completions = int(&spec["completions"]);
    for (index, rule) in rules_given.iter().enumerate() {
        validate_success_rule(errors, &path.index(index), rule, completions);
    }
}

fn validate_success_rule(errors: &mut Errors, path: &Path, rule: &Value, completions: i64) {
    let (count, indexes) = (rule["succeededCount"].as_i64(), rule["succeededIndexes"].as_str());
    if count.is_none() && indexes.is_none() {
        errors.required(path, "at least one of succeededCount or succeededIndexes must be specified");
    }
    let mut most = completions;
    if let Some(indexes) = indexes {
        let path = path.child("succeededIndexes");
        if indexes.len() > MAX_INDEXES_BYTES {
            return errors.too_long(&path, MAX_INDEXES_BYTES);
        }
        match count_indexes(indexes, completions) {
            Ok(total) => most = most.min(total),
            Err(problem) => {
                let detail = format!("error parsing succeededIndexes: {problem}");
                errors.invalid(&path, indexes, detail);
            }
        }
    }
    if let Some(count) = count {
        let path = path.child("succeededCount");
        rules::non_negative(errors, &path, &rule["succeededCount"]);
        if count > most {
            let detail = if most == completions {
                format!("must be less than or equal to {completions} (the number of specified completions)")
            } else {
                format!(
                    "must be less than or equal to {most} (the number of indexes in the specified succeededIndexes field)"
                )
            };
            errors.invalid(&path, count, detail);
        }
    }
}

/// Counts the indexes that a text like `1,3-5` names, which must grow and stay below the number of completions.
fn count_indexes(text: &str, completions: i64) -> Result<i64, String> {
    let (mut last, mut total) = (-1, 0);
    for part in text.split(',').filter(|_| !text.is_empty()) {
        let (first, end) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| -> Result<i64, String> {
            let number = text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
            number.ok_or_else(|| format!("cannot convert string to integer for index: \"{text}\""))
        };
        let (first, end) = (number(first)?, number(end)?);
        if first <= last || end < first || (end == first && part.contains('-')) {
            return Err(format!("non-increasing order, previous: {last}, current: {first}"));
        }
        if end >= completions {
            return Err(format!("too large index for limit: {completions}, index: {end}"));
        }
        total += end - first + 1;
        last = end;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::super::super::rules::testing::expect;
    use super::*;
    use serde_json::json;

    #[test]
    fn failures() {
        let row = |what: &str, rule: Value, expected: &[&str]| {
            let pod = json!({"restartPolicy": "Never", "containers": [{"name": "c"}]});
            let spec = json!({"template": {"spec": pod}, "podFailurePolicy": {"rules": [rule]}});
            let mut errors = Errors::new();
            validate_failure(&mut errors, &Path::new("spec"), &spec);
            expect(what, &errors, expected);
        };
        let codes = |codes: Value| json!({"action": "FailJob", "onExitCodes": codes});
        let path = "spec.podFailurePolicy.rules[0]";
        row("good", codes(json!({"operator": "In", "values": [1, 2], "containerName": "c"})), &[]);
        row(
            "condition",
            json!({"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}),
            &[],
        );
        row(
            "codes",
            codes(json!({"operator": "In", "values": [2, 0, 2], "containerName": "d"})),
            &[
                &format!(
                    "{path}.onExitCodes.containerName: Invalid value: \"d\": must be one of the container or \
                          initContainer names in the pod template"
                ),
                &format!("{path}.onExitCodes.values[1]: Invalid value: 0: must not be 0 for the In operator"),
                &format!("{path}.onExitCodes.values[2]: Duplicate value: 2"),
                &format!("{path}.onExitCodes.values: Invalid value: [2,0,2]: must be ordered"),
            ],
        );
        row(
            "nothing",
            json!({"action": "FailIndex"}),
            &[
                &format!(
                    "{path}.action: Invalid value: \"FailIndex\": requires the backoffLimitPerIndex to be set"
                ),
                &format!(
                    "{path}: Invalid value: {{\"action\":\"FailIndex\"}}: specifying one of OnExitCodes and \
                          OnPodConditions is required"
                ),
            ],
        );
    }

    #[test]
    fn successes() {
        let row = |what: &str, rule: Value, expected: &[&str]| {
            let spec =
                json!({"completionMode": "Indexed", "completions": 5, "successPolicy": {"rules": [rule]}});
            let mut errors = Errors::new();
            validate_success(&mut errors, &Path::new("spec"), &spec);
            expect(what, &errors, expected);
        };
        let path = "spec.successPolicy.rules[0]";
        row("good", json!({"succeededIndexes": "0,2-4", "succeededCount": 4}), &[]);
        row(
            "nothing",
            json!({}),
            &[&format!(
                "{path}: Required value: at least one of succeededCount or succeededIndexes must be specified"
            )],
        );
        row(
            "more than indexes",
            json!({"succeededIndexes": "0-1", "succeededCount": 3}),
            &[&format!(
                "{path}.succeededCount: Invalid value: 3: must be less than or equal to 2 (the number of indexes in \
                        the specified succeededIndexes field)"
            )],
        );
        for (indexes, fine) in
            [("", true), ("0", true), ("5", false), ("3,1", false), ("1-1", false), ("a", false)]
        {
            assert_eq!(count_indexes(indexes, 5).is_ok(), fine, "{indexes}");
        }
    }
}
