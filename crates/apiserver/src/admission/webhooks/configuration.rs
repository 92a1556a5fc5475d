//! A webhook as its configuration describes it, read once when the configuration changes.

use std::time::Duration;

use serde_json::Value;

use super::conditions::Condition;
use crate::admission::matching::Matcher;
use crate::outbound::Target;

/// Patience with a webhook that names none, and the bounds of what it may name (the API's own).
const DEFAULT_TIMEOUT: i64 = 10;
const TIMEOUTS: std::ops::RangeInclusive<i64> = 1..=30;

/// One entry of `webhooks`.
pub(super) struct Webhook {
    pub(super) name: String,
    pub(super) mutating: bool,
    /// Where it is; otherwise why that cannot be told.
    pub(super) target: Result<Target, String>,
    pub(super) matcher: Matcher,
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
            matcher: Matcher::of_webhook(entry),
            conditions: list("matchConditions").map(Condition::read).collect(),
            fails_closed: entry["failurePolicy"] != "Ignore",
            timeout: Duration::from_secs(seconds.unsigned_abs()),
            dry_run_safe: ["None", "NoneOnDryRun"].iter().any(|class| entry["sideEffects"] == *class),
            speaks_v1: list("admissionReviewVersions").any(|version| version == "v1"),
            reinvoked: entry["reinvocationPolicy"] == "IfNeeded",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn defaults_are_those_of_the_api() {
        let plain = Webhook::read(&json!({"name": "x"}), true);
        assert!(plain.fails_closed && !plain.reinvoked && !plain.dry_run_safe);
        assert_eq!(plain.timeout, Duration::from_secs(10));
        assert!(plain.target.is_err());
        let full = json!({
            "name": "x", "failurePolicy": "Ignore", "timeoutSeconds": 99,
            "sideEffects": "NoneOnDryRun", "reinvocationPolicy": "IfNeeded", "admissionReviewVersions": ["v1beta1", "v1"],
            "clientConfig": {"service": {"name": "a", "namespace": "b"}},
        });
        let full = Webhook::read(&full, true);
        assert!(!full.fails_closed && full.reinvoked && full.dry_run_safe && full.speaks_v1);
        assert_eq!(full.timeout, Duration::from_secs(30));
        assert!(full.target.is_ok());
    }
}
