//! ServiceAccounts: who programs in pods are.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{list, text};
use crate::kind::{Column, Row, Subresource};
use crate::table;

/// ServiceAccounts.
pub static SERVICE_ACCOUNT: Row = Row {
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    subresources: &[Subresource::Token],
    schema: "io.k8s.api.core.v1.ServiceAccount",
    returns_deleted: true,
    columns: &[Column::name(), Column::new("Secrets", "Number of secrets the account names."), Column::age()],
    table_row,
    ..Row::PLAIN
};

fn table_row(account: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&account["metadata"]["name"])),
        json!(list(&account["secrets"]).len()),
        table::age(account, now),
    ]
}
