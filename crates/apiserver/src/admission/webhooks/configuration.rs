//! A webhook as its configuration describes it, read once when the configuration changes.

use std::time::Duration;

use sampan_api::selector::LabelSelector;
use serde::Deserialize;
use serde_json::Value;

use super::conditions::Condition;
use crate::outbound::Target;

/// Patience with a webhook that names none, and the bounds of what it may name (the API's own).
const DEFAULT_TIMEOUT: i64 = 10;
const TIMEOUTS: std::ops::RangeInclusive<i64> = 1..=30;

/// Operations and resources that a webhook asks to see.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Rule {
    pub(super) operations: Vec<String>,
    pub(super) api_groups: Vec<String>,
    pub(super) api_versions: Vec<String>,
    pub(super) resources: Vec<String>,
    pub(super) scope: Option<String>,
}

/// One entry of `webhooks`.
pub(super) struct Webhook {
    pub(super) name: String,
    pub(super) mutating: bool,
    /// Where it is; otherwise why that cannot be told.
    pub(super) target: Result<Target, String>,
    pub(super) rules: Vec<Rule>,
    /// `matchPolicy: Equivalent`: other versions of the resource count too.
    pub(super) equivalent: bool,
    pub(super) namespaces: LabelSelector,
    pub(super) objects: LabelSelector,
    pub(super) conditions: Vec<Condition>,
    /// `failurePolicy: Fail`.
    pub(super) fails_closed: bool,
    pub(super) timeout: Duration,
    /// Dry runs do not reach the world.
    pub(super) dry_run_safe: bool,
    /// Speaks `admission.k8s.io/v1`.
    pub(super) speaks_v1: bool,
    /// `reinvocationPolicy: IfNeeded`.
    pub(super) reinvoked: bool,
}

impl Webhook {
    /// Reads the entries of a configuration, in order.
    pub(super) fn read_all(configuration: &Value, mutating: bool) -> Vec<Self> {
        let entries = configuration["webhooks"].as_array().into_iter().flatten();
        entries.map(|entry| Self::read(entry, mutating)).collect()
    }

    /// Reads an entry. What the server's defaulting fills in may be missing.
    pub(super) fn read(entry: &Value, mutating: bool) -> Self {
        let list = |field: &str| entry[field].as_array().into_iter().flatten();
        let seconds = entry["timeoutSeconds"].as_i64().unwrap_or(DEFAULT_TIMEOUT);
        let seconds = seconds.clamp(*TIMEOUTS.start(), *TIMEOUTS.end());
        Self {
            name: entry["name"].as_str().unwrap_or_default().to_owned(),
            mutating,
            target: Target::from_client_config(&entry["clientConfig"]),
            rules: list("rules").filter_map(|rule| Rule::deserialize(rule).ok()).collect(),
            equivalent: entry["matchPolicy"] != "Exact",
            namespaces: selector(&entry["namespaceSelector"]),
            objects: selector(&entry["objectSelector"]),
            conditions: list("matchConditions").map(Condition::read).collect(),
            fails_closed: entry["failurePolicy"] != "Ignore",
            timeout: Duration::from_secs(seconds.unsigned_abs()),
            dry_run_safe: ["None", "NoneOnDryRun"].iter().any(|class| entry["sideEffects"] == *class),
            speaks_v1: list("admissionReviewVersions").any(|version| version == "v1"),
            reinvoked: entry["reinvocationPolicy"] == "IfNeeded",
        }
    }
}

/// A selector that is not given selects everything.
fn selector(value: &Value) -> LabelSelector {
    if value.is_null() { LabelSelector::default() } else { LabelSelector::from_object(Some(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_those_of_the_api() {
        let plain = Webhook::read(&json!({"name": "x"}), true);
        assert!(plain.fails_closed && plain.equivalent && !plain.reinvoked && !plain.dry_run_safe);
        assert_eq!(plain.timeout, Duration::from_secs(10));
        assert!(plain.namespaces.is_empty() && plain.objects.is_empty() && plain.target.is_err());
        let full = json!({
            "name": "x", "failurePolicy": "Ignore", "matchPolicy": "Exact", "timeoutSeconds": 99,
            "sideEffects": "NoneOnDryRun", "reinvocationPolicy": "IfNeeded", "admissionReviewVersions": ["v1beta1", "v1"],
            "clientConfig": {"service": {"name": "a", "namespace": "b"}},
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}],
        });
        let full = Webhook::read(&full, true);
        assert!(
            !full.fails_closed && !full.equivalent && full.reinvoked && full.dry_run_safe && full.speaks_v1
        );
        assert_eq!((full.timeout, full.rules.len()), (Duration::from_secs(30), 1));
        assert!(full.target.is_ok());
    }
}
