//! The table of built-in kinds.
//!
//! One file per kind or family of kinds; each holds its [`Row`]: names, columns, defaults that need thought, validation.
//! [`ROWS`] lists what the server serves. A kind is added by one file and one line here.
//!
//! `prepare_update` and `validate_update` of a row are for writes to the object itself; writes to a subresource change
//! one part and are checked by the rules of that part (see [`pod::update`]).

pub mod config_map;
pub mod custom_resource_definition;
pub mod daemon_set;
pub mod deployment;
pub mod endpoint_slice;
pub mod event;
pub mod job;
pub(crate) mod json;
pub mod lease;
pub mod namespace;
pub mod node;
pub mod pod;
pub mod policy;
pub mod priority_class;
pub mod rbac;
pub mod replica_set;
pub mod reviews;
mod rules;
pub mod secret;
pub mod service;
pub mod service_account;
pub mod stateful_set;
pub mod storage;
mod workload;

use crate::kind::Row;

/// All kinds with working rules and loops, in the order discovery shows them: core first, then group by group.
pub static ROWS: &[&Row] = &[
    &config_map::CONFIG_MAP,
    &event::EVENT,
    &namespace::NAMESPACE,
    &node::NODE,
    &pod::POD,
    &secret::SECRET,
    &service_account::SERVICE_ACCOUNT,
    &service::SERVICE,
    &deployment::DEPLOYMENT,
    &replica_set::REPLICA_SET,
    &reviews::SELF_SUBJECT_REVIEW,
    &reviews::TOKEN_REVIEW,
    &reviews::LOCAL_SUBJECT_ACCESS_REVIEW,
    &reviews::SELF_SUBJECT_ACCESS_REVIEW,
    &reviews::SELF_SUBJECT_RULES_REVIEW,
    &reviews::SUBJECT_ACCESS_REVIEW,
    &lease::LEASE,
    &custom_resource_definition::CUSTOM_RESOURCE_DEFINITION,
    &endpoint_slice::ENDPOINT_SLICE,
    &rbac::CLUSTER_ROLE_BINDING,
    &rbac::CLUSTER_ROLE,
    &rbac::ROLE_BINDING,
    &rbac::ROLE,
    &priority_class::PRIORITY_CLASS,
];

/// Kinds whose rules stand and whose loops do not run yet. Whether to serve them already is the server's choice: an
/// object that nobody acts on helps `kubectl apply` through a manifest and misleads whoever waits for pods.
pub static LATER_ROWS: &[&Row] = &[
    &storage::PERSISTENT_VOLUME_CLAIM,
    &storage::PERSISTENT_VOLUME,
    &daemon_set::DAEMON_SET,
    &stateful_set::STATEFUL_SET,
    &job::CRON_JOB,
    &job::JOB,
    &policy::POD_DISRUPTION_BUDGET,
    &storage::STORAGE_CLASS,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use jiff::Timestamp;
    use serde_json::{Value, json};

    use super::*;
    use crate::schema::Types;

    fn all() -> impl Iterator<Item = &'static Row> {
        ROWS.iter().chain(LATER_ROWS).copied()
    }

    fn documents() -> Vec<(&'static Row, Value)> {
        all().map(|row| (row, json!({"metadata": {"name": "a"}, "spec": {}, "status": {}}))).collect()
    }

    #[test]
    fn rows_are_complete_and_different() {
        let (mut plurals, mut kinds, mut shorts) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for row in all() {
            assert!(plurals.insert((row.group, row.plural)), "{} stands twice", row.plural);
            assert!(kinds.insert((row.group, row.kind)), "{} stands twice", row.kind);
            assert_eq!(row.singular, row.kind.to_lowercase());
            assert!(Types::get().type_(row.schema).is_some(), "{} has no schema", row.kind);
            for short in row.short_names {
                assert!(shorts.insert(*short), "{short} stands twice");
            }
        }
    }

    #[test]
    fn every_row_has_a_cell_for_each_column() {
        for (row, document) in documents() {
            for document in [document, Value::Null] {
                let cells = (row.table_row)(&document, Timestamp::UNIX_EPOCH);
                assert_eq!(cells.len(), row.columns.len(), "{}", row.kind);
            }
        }
    }

    #[test]
    fn rules_survive_any_document_and_defaults_settle() {
        let junk = [json!(null), json!([]), json!({"metadata": 1, "spec": [], "status": "x"})];
        for (row, document) in documents() {
            for mut document in junk.iter().cloned().chain([document]) {
                let strategy = &row.strategy;
                (strategy.default)(&mut document);
                let once = document.clone();
                (strategy.default)(&mut document);
                assert_eq!(document, once, "{}", row.kind);
                (strategy.prepare_create)(&mut document);
                (strategy.prepare_update)(&mut document, &once);
                let _ = ((strategy.validate)(&document), (strategy.validate_update)(&document, &once));
            }
        }
    }
}
