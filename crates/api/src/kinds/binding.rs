//! Bindings: a pod is given its node, the older way, by a document posted beside the pods instead of below one.
//!
//! Nothing is stored: the server does with it what it does with a document posted to `pods/NAME/binding`, for the pod
//! that is named in `metadata`. Whether the pod may be bound is asked of [`super::pod::update::validate_binding`].

use serde_json::Value;

use super::json::text;
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Row, Storage, Strategy};

/// Bindings. They can be created, and nothing else.
pub static BINDING: Row = Row {
    kind: "Binding",
    plural: "bindings",
    singular: "binding",
    storage: Storage::Virtual,
    schema: "io.k8s.api.core.v1.Binding",
    strategy: Strategy { validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

fn validate(binding: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, target) = (Path::new("target"), &binding["target"]);
    let kind = text(&target["kind"]);
    if !matches!(kind, "" | "Node") {
        errors.not_supported(&path.child("kind"), kind, &["Node", "<empty>"]);
    }
    rules::required(&mut errors, &path.child("name"), &target["name"]);
    errors
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::expect;
    use super::*;
    use serde_json::json;

    #[test]
    fn validation() {
        let row = |target: Value, expected: &[&str]| {
            expect("binding", &validate(&json!({ "target": target })), expected);
        };
        row(json!({"kind": "Node", "name": "n1"}), &[]);
        row(json!({"name": "n1"}), &[]);
        row(
            json!({"kind": "Pod"}),
            &[
                "target.kind: Unsupported value: \"Pod\": supported values: \"Node\", \"<empty>\"",
                "target.name: Required value",
            ],
        );
    }
}
