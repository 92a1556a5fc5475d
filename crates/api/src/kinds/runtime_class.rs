//! RuntimeClasses: by what the containers of a pod are run, and what that costs besides.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{entries, list, text};
use super::pod::validate_tolerations;
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Scope, Strategy};
use crate::{names, table};

/// RuntimeClasses.
pub static RUNTIME_CLASS: Row = Row {
    group: "node.k8s.io",
    kind: "RuntimeClass",
    plural: "runtimeclasses",
    singular: "runtimeclass",
    scope: Scope::Cluster,
    schema: "io.k8s.api.node.v1.RuntimeClass",
    columns: &[
        Column::name(),
        Column::new("Handler", "Name of the configuration that the runtime of the node knows."),
        Column::age(),
    ],
    table_row,
    strategy: Strategy { validate, validate_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn validate(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let handler = text(&class["handler"]);
    rules::name(&mut errors, &Path::new("handler"), handler, names::dns1123_label);
    let path = Path::new("overhead").child("podFixed");
    for (resource, amount) in entries(&class["overhead"]["podFixed"]) {
        rules::name(&mut errors, &path.key(resource), resource, names::qualified_name);
        rules::quantity_not_negative(&mut errors, &path.key(resource), amount);
    }
    let (path, scheduling) = (Path::new("scheduling"), &class["scheduling"]);
    rules::labels(&mut errors, &path.child("nodeSelector"), &scheduling["nodeSelector"]);
    let path = path.child("tolerations");
    validate_tolerations(&mut errors, &path, &scheduling["tolerations"]);
    let tolerations = list(&scheduling["tolerations"]);
    for (index, toleration) in tolerations.iter().enumerate() {
        if tolerations[..index].contains(toleration) {
            errors.duplicate(&path.index(index), toleration.clone());
        }
    }
    errors
}

/// Pods of the class exist that were started by the handler it names.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    rules::immutable(&mut errors, &Path::new("handler"), &new["handler"], &old["handler"]);
    errors
}

fn table_row(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(text(&class["metadata"]["name"])), json!(text(&class["handler"])), table::age(class, now)]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    #[test]
    fn validation() {
        let good = json!({
            "metadata": {"name": "vm"}, "handler": "vm", "overhead": {"podFixed": {"memory": "100Mi"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": [{"key": "vm", "operator": "Exists"}]},
        });
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good.clone(), changes)), expected);
        };
        row("good", &[], &[]);
        row(
            "overhead",
            &[("/overhead/podFixed", json!({"memory": "-1"}))],
            &["overhead.podFixed[memory]: Invalid value: \"-1\": must be greater than or equal to 0"],
        );
        let toleration = json!({"key": "vm", "operator": "Exists"});
        row(
            "twice",
            &[("/scheduling/tolerations", json!([toleration, toleration]))],
            &["scheduling.tolerations[1]: Duplicate value: {\"key\":\"vm\",\"operator\":\"Exists\"}"],
        );
        assert_eq!(validate(&with(good.clone(), &[("/handler", json!("A b"))])).0.len(), 1);
        expect(
            "handler",
            &validate_update(&with(good.clone(), &[("/handler", json!("x"))]), &good),
            &["handler: Invalid value: \"x\": field is immutable"],
        );
        assert_eq!(table_row(&good, Timestamp::UNIX_EPOCH)[..2], [json!("vm"), json!("vm")]);
    }
}
