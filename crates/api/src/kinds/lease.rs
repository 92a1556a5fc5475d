//! Leases: who leads, and which node is alive.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::text;
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Storage, Strategy};
use crate::table;

/// Leases. They are renewed every few seconds, so they are stored lazily: after a power cut the last renewals are gone,
/// which is what their holders would be as well. The server keeps those of nodes (namespace `kube-node-lease`) in memory
/// only.
pub static LEASE: Row = Row {
    group: "coordination.k8s.io",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    storage: Storage::Lazy,
    schema: "io.k8s.api.coordination.v1.Lease",
    columns: &[Column::name(), Column::new("Holder", "Who holds the lease."), Column::age()],
    table_row,
    strategy: Strategy { validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn validate(lease: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &lease["spec"]);
    if let Some(seconds) = spec["leaseDurationSeconds"].as_i64()
        && seconds <= 0
    {
        errors.invalid(&path.child("leaseDurationSeconds"), seconds, "must be greater than 0");
    }
    rules::non_negative(&mut errors, &path.child("leaseTransitions"), &spec["leaseTransitions"]);
    if spec["holderIdentity"].as_str() == Some("") {
        errors.invalid(&path.child("holderIdentity"), "", "must not be empty");
    }
    errors
}

fn table_row(lease: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&lease["metadata"]["name"])),
        json!(text(&lease["spec"]["holderIdentity"])),
        table::age(lease, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;

    #[test]
    fn validation() {
        let row =
            |spec: Value, expected: &[&str]| expect("lease", &validate(&json!({ "spec": spec })), expected);
        row(json!({"leaseDurationSeconds": 40, "holderIdentity": "n1"}), &[]);
        row(
            json!({"leaseDurationSeconds": 0, "leaseTransitions": -1}),
            &[
                "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0",
                "spec.leaseTransitions: Invalid value: -1: must be greater than or equal to 0",
            ],
        );
    }
}
