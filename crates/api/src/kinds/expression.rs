//! Where objects hold CEL expressions: whoever compiles and evaluates them asks here, and needs to know no kind.

use serde_json::Value;

use super::json::{list, text};
use crate::field::Path;

/// What an expression is for, which decides what it may name and what it must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Gives whether a webhook or policy is about a request. Knows no variables of the policy.
    MatchCondition,
    /// Gives a value that later expressions of the policy call `variables.NAME`.
    Variable,
    /// Gives whether the object is fine.
    Validation,
    /// Gives the text of a refusal.
    Message,
    /// Gives the text of an audit annotation, or null.
    AuditAnnotation,
    /// Gives fields to apply to the object.
    ApplyConfiguration,
    /// Gives a list of JSON patch operations.
    JsonPatch,
    /// Gives whether a device is wanted; knows `device` only.
    DeviceSelector,
}

/// An expression of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expression<'a> {
    /// Where it stands: `spec.validations[0].expression`.
    pub path: Path,
    /// The expression.
    pub text: &'a str,
    /// What it is for.
    pub purpose: Purpose,
    /// Name of the variable that it defines; empty for other purposes.
    pub variable: &'a str,
    /// Whether it may name `params`.
    pub has_params: bool,
}

/// The expressions of an object in the order in which a policy evaluates them: variables before what uses them.
/// Those that are empty are left out: the kind's validation has refused them, or they are optional.
pub fn of<'a>(group: &str, plural: &str, object: &'a Value) -> Vec<Expression<'a>> {
    let mut found = Found { expressions: Vec::new(), has_params: false };
    match (group, plural) {
        (
            "admissionregistration.k8s.io",
            "validatingwebhookconfigurations" | "mutatingwebhookconfigurations",
        ) => {
            for (index, webhook) in list(&object["webhooks"]).iter().enumerate() {
                found.conditions(&Path::new("webhooks").index(index), webhook);
            }
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies" | "mutatingadmissionpolicies") => {
            found.policy(&object["spec"]);
        }
        ("resource.k8s.io", "deviceclasses") => found.selectors(&Path::new("spec"), &object["spec"]),
        ("resource.k8s.io", "resourceclaims") => found.claim(&Path::new("spec"), &object["spec"]),
        ("resource.k8s.io", "resourceclaimtemplates") => {
            found.claim(&Path::new("spec").child("spec"), &object["spec"]["spec"]);
        }
        _ => {}
    }
    found.expressions
}

struct Found<'a> {
    expressions: Vec<Expression<'a>>,
    has_params: bool,
}

impl<'a> Found<'a> {
    fn add(&mut self, path: Path, value: &'a Value, purpose: Purpose, variable: &'a str) {
        let text = text(value);
        if !text.trim().is_empty() {
            let has_params = self.has_params;
            self.expressions.push(Expression { path, text, purpose, variable, has_params });
        }
    }

    /// Expressions in the same field of every element of a list.
    fn each(&mut self, path: &Path, items: &'a Value, field: &str, purpose: Purpose) {
        for (index, item) in list(items).iter().enumerate() {
            let variable = if purpose == Purpose::Variable { text(&item["name"]) } else { "" };
            self.add(path.index(index).child(field), &item[field], purpose, variable);
        }
    }

    fn conditions(&mut self, path: &Path, holder: &'a Value) {
        let path = path.child("matchConditions");
        self.each(&path, &holder["matchConditions"], "expression", Purpose::MatchCondition);
    }

    fn policy(&mut self, spec: &'a Value) {
        let path = Path::new("spec");
        self.has_params = !spec["paramKind"].is_null();
        self.conditions(&path, spec);
        self.each(&path.child("variables"), &spec["variables"], "expression", Purpose::Variable);
        let (at, validations) = (path.child("validations"), &spec["validations"]);
        self.each(&at, validations, "expression", Purpose::Validation);
        self.each(&at, validations, "messageExpression", Purpose::Message);
        let (at, annotations) = (path.child("auditAnnotations"), &spec["auditAnnotations"]);
        self.each(&at, annotations, "valueExpression", Purpose::AuditAnnotation);
        for (index, mutation) in list(&spec["mutations"]).iter().enumerate() {
            let path = path.child("mutations").index(index);
            for (field, purpose) in
                [("applyConfiguration", Purpose::ApplyConfiguration), ("jsonPatch", Purpose::JsonPatch)]
            {
                self.add(path.child(field).child("expression"), &mutation[field]["expression"], purpose, "");
            }
        }
    }

    fn selectors(&mut self, path: &Path, holder: &'a Value) {
        for (index, selector) in list(&holder["selectors"]).iter().enumerate() {
            let path = path.child("selectors").index(index).child("cel").child("expression");
            self.add(path, &selector["cel"]["expression"], Purpose::DeviceSelector, "");
        }
    }

    fn claim(&mut self, path: &Path, spec: &'a Value) {
        for (index, request) in list(&spec["devices"]["requests"]).iter().enumerate() {
            let path = path.child("devices").child("requests").index(index);
            self.selectors(&path.child("exactly"), &request["exactly"]);
            for (index, choice) in list(&request["firstAvailable"]).iter().enumerate() {
                self.selectors(&path.child("firstAvailable").index(index), choice);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn expressions_are_found() {
        const ADMISSION: &str = "admissionregistration.k8s.io";
        const DEVICES: &str = "resource.k8s.io";
        let selectors = json!([{"cel": {"expression": "d"}}]);
        let claim = json!({"devices": {"requests": [
            {"name": "a", "exactly": {"selectors": selectors}},
            {"name": "b", "firstAvailable": [{"name": "c", "selectors": selectors}]},
        ]}});
        let policy = json!({
            "paramKind": {"apiVersion": "v1", "kind": "ConfigMap"},
            "matchConditions": [{"name": "c", "expression": "m"}],
            "variables": [{"name": "v", "expression": "1"}],
            "validations": [{"expression": "x", "messageExpression": "y"}, {"expression": "z"}],
            "auditAnnotations": [{"key": "k", "valueExpression": "a"}],
            "mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "p"}}],
        });
        let rows: [(&str, &str, Value, &[&str]); 6] = [
            (
                ADMISSION,
                "validatingadmissionpolicies",
                json!({ "spec": policy }),
                &[
                    "spec.matchConditions[0].expression MatchCondition m",
                    "spec.variables[0].expression Variable 1",
                    "spec.validations[0].expression Validation x",
                    "spec.validations[1].expression Validation z",
                    "spec.validations[0].messageExpression Message y",
                    "spec.auditAnnotations[0].valueExpression AuditAnnotation a",
                    "spec.mutations[0].jsonPatch.expression JsonPatch p",
                ],
            ),
            (
                ADMISSION,
                "mutatingwebhookconfigurations",
                json!({"webhooks": [{}, {"matchConditions": [{"name": "c", "expression": "m"}, {"expression": " "}]}]}),
                &["webhooks[1].matchConditions[0].expression MatchCondition m"],
            ),
            (
                DEVICES,
                "deviceclasses",
                json!({"spec": {"selectors": selectors}}),
                &["spec.selectors[0].cel.expression DeviceSelector d"],
            ),
            (
                DEVICES,
                "resourceclaims",
                json!({ "spec": claim }),
                &[
                    "spec.devices.requests[0].exactly.selectors[0].cel.expression DeviceSelector d",
                    "spec.devices.requests[1].firstAvailable[0].selectors[0].cel.expression DeviceSelector d",
                ],
            ),
            (
                DEVICES,
                "resourceclaimtemplates",
                json!({"spec": {"spec": claim}}),
                &[
                    "spec.spec.devices.requests[0].exactly.selectors[0].cel.expression DeviceSelector d",
                    "spec.spec.devices.requests[1].firstAvailable[0].selectors[0].cel.expression DeviceSelector d",
                ],
            ),
            ("", "pods", json!({"spec": {"validations": [{"expression": "x"}]}}), &[]),
        ];
        for (group, plural, object, expected) in rows {
            let found: Vec<String> = of(group, plural, &object)
                .iter()
                .map(|expression| format!("{} {:?} {}", expression.path, expression.purpose, expression.text))
                .collect();
            assert_eq!(found, expected, "{plural}");
        }
    }

    #[test]
    fn parameters_and_variables() {
        let with = json!({"spec": {"paramKind": {}, "variables": [{"name": "v", "expression": "1"}]}});
        let without = json!({"spec": {"validations": [{"expression": "1"}]}});
        let of = |object| of("admissionregistration.k8s.io", "validatingadmissionpolicies", object);
        assert_eq!((of(&with)[0].variable, of(&with)[0].has_params), ("v", true));
        assert_eq!((of(&without)[0].variable, of(&without)[0].has_params), ("", false));
    }
}
