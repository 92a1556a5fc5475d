//! The policy of a namespace, from its labels `pod-security.kubernetes.io/enforce|audit|warn` and `…-version`.

use std::fmt;

use sampan_api::field::{Errors, Path};
use serde_json::Value;

const PREFIX: &str = "pod-security.kubernetes.io/";

/// How much is allowed; the later, the less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// The standards as of which minor version of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Latest,
    /// `v1.N`.
    Minor(u32),
}

/// `restricted:latest`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Standard {
    pub(super) level: Level,
    pub(super) version: Version,
}

/// What happens to pods that are not as the namespace wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Refused.
    pub(super) enforce: Standard,
    /// Noted in the audit log.
    pub(super) audit: Standard,
    /// Told to the client.
    pub(super) warn: Standard,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "privileged" => Some(Self::Privileged),
            "baseline" => Some(Self::Baseline),
            "restricted" => Some(Self::Restricted),
            _ => None,
        }
    }
}

impl Version {
    fn parse(text: &str) -> Option<Self> {
        if text == "latest" {
            return Some(Self::Latest);
        }
        let minor = text.strip_prefix("v1.")?;
        let plain = minor == "0" || !minor.starts_with('0') && minor.bytes().all(|b| b.is_ascii_digit());
        minor.parse().ok().filter(|_| plain).map(Self::Minor)
    }

    /// The minor version whose checks hold.
    pub(super) fn minor(self) -> u32 {
        match self {
            Self::Latest => u32::MAX,
            Self::Minor(minor) => minor,
        }
    }
}

impl fmt::Display for Standard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        match self.version {
            Version::Latest => write!(f, "{level}:latest"),
            Version::Minor(minor) => write!(f, "{level}:v1.{minor}"),
        }
    }
}

impl Policy {
    /// Reads the labels of a namespace. What cannot be read is an error and counts as the strictest when it would refuse
    /// pods, and as nothing when it would only tell.
    pub(super) fn of(namespace: &Value) -> (Self, Errors) {
        let labels = &namespace["metadata"]["labels"];
        let mut errors = Errors::new();
        let enforce = standard(labels, "enforce", Level::Restricted, &mut errors);
        let audit = standard(labels, "audit", Level::Privileged, &mut errors);
        let mut warn = standard(labels, "warn", Level::Privileged, &mut errors);
        // Who enforces a level wants to hear of workloads whose pods will be refused.
        let silent = labels[format!("{PREFIX}warn")].is_null();
        if silent && enforce.level > warn.level {
            warn = enforce;
        }
        (Self { enforce, audit, warn }, errors)
    }
}

fn standard(labels: &Value, mode: &str, unreadable: Level, errors: &mut Errors) -> Standard {
    let path = Path::new("metadata").child("labels");
    let label = format!("{PREFIX}{mode}");
    let level = match labels[&label].as_str() {
        None => Level::Privileged,
        Some(text) => Level::parse(text).unwrap_or_else(|| {
            errors.invalid(&path.key(&label), text, "must be one of privileged, baseline, restricted");
            unreadable
        }),
    };
    let label = format!("{PREFIX}{mode}-version");
    let version = match labels[&label].as_str() {
        None => Version::Latest,
        Some(text) => Version::parse(text).unwrap_or_else(|| {
            errors.invalid(&path.key(&label), text, "must be \"latest\" or \"v1.x\"");
            Version::Latest
        }),
    };
    Standard { level, version }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_become_a_policy() {
        let rows = [
            (json!({}), "privileged:latest privileged:latest privileged:latest", 0),
            (json!({"enforce": "baseline"}), "baseline:latest privileged:latest baseline:latest", 0),
            (
                json!({"enforce": "restricted", "enforce-version": "v1.24", "warn": "baseline"}),
                "restricted:v1.24 privileged:latest baseline:latest",
                0,
            ),
            (json!({"audit": "restricted"}), "privileged:latest restricted:latest privileged:latest", 0),
            (json!({"enforce": "strict"}), "restricted:latest privileged:latest restricted:latest", 1),
            (
                json!({"warn": "x", "warn-version": "v2"}),
                "privileged:latest privileged:latest privileged:latest",
                2,
            ),
            (json!({"enforce-version": "v1.01"}), "privileged:latest privileged:latest privileged:latest", 1),
        ];
        for (short, expected, problems) in rows {
            let mut labels = json!({});
            for (key, value) in short.as_object().expect("labels") {
                labels[format!("{PREFIX}{key}")] = value.clone();
            }
            let (policy, errors) = Policy::of(&json!({"metadata": {"labels": labels}}));
            let found = format!("{} {} {}", policy.enforce, policy.audit, policy.warn);
            assert_eq!((found.as_str(), errors.0.len()), (expected, problems), "{short}");
        }
    }
}
