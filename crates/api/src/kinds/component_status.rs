//! ComponentStatuses: whether the parts of the control plane are well. Deprecated, and still asked for by scripts.
//!
//! Nothing is stored: the server makes the list anew whenever somebody reads it, with [`component_status`] for each
//! part it knows.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{list, text};
use crate::kind::{Column, Row, Scope, Storage};

/// ComponentStatuses. They can be read and listed, and nothing else.
pub static COMPONENT_STATUS: Row = Row {
    kind: "ComponentStatus",
    plural: "componentstatuses",
    singular: "componentstatus",
    short_names: &["cs"],
    scope: Scope::Cluster,
    storage: Storage::Computed,
    schema: "io.k8s.api.core.v1.ComponentStatus",
    columns: &[
        Column::name(),
        Column::new("Status", "Whether the component is well."),
        Column::new("Message", "What the component says."),
        Column::new("Error", "What is wrong with it."),
    ],
    table_row,
    ..Row::PLAIN
};

/// What is said about one component: the message of its health check, or the error of it.
pub fn component_status(name: &str, health: Result<&str, &str>) -> Value {
    let mut condition = json!({"type": "Healthy"});
    match health {
        Ok(message) => {
            condition["status"] = json!("True");
            condition["message"] = json!(message);
        }
        Err(error) => {
            condition["status"] = json!("False");
            condition["error"] = json!(error);
        }
    }
    json!({
        "apiVersion": "v1",
        "kind": "ComponentStatus",
        "metadata": {"name": name},
        "conditions": [condition],
    })
}

fn table_row(component: &Value, _: Timestamp) -> Vec<Value> {
    let healthy =
        list(&component["conditions"]).iter().find(|condition| text(&condition["type"]) == "Healthy");
    let field = |name: &str| json!(healthy.map_or("", |condition| text(&condition[name])));
    let status = match healthy.map(|condition| text(&condition["status"])) {
        Some("True") => "Healthy",
        Some(_) => "Unhealthy",
        None => "Unknown",
    };
    vec![json!(text(&component["metadata"]["name"])), json!(status), field("message"), field("error")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells() {
        let rows = [
            (component_status("etcd-0", Ok("ok")), ["etcd-0", "Healthy", "ok", ""]),
            (component_status("scheduler", Err("refused")), ["scheduler", "Unhealthy", "", "refused"]),
            (json!({"metadata": {"name": "a"}}), ["a", "Unknown", "", ""]),
        ];
        for (component, expected) in rows {
            assert_eq!(table_row(&component, Timestamp::UNIX_EPOCH), expected.map(|cell| json!(cell)));
        }
    }
}
