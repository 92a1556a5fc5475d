//! Policies and their bindings as they are evaluated: read and compiled once, when one of them changes.

use sampan_api::field::{Errors, Path};
use serde_json::Value;

use super::expression::{Program, Variable, names_of, read_variables};
use crate::admission::matching::Matcher;

/// An expression, or why it is none: a policy with a mistake fails as its `failurePolicy` says.
pub(super) type Compiled = Result<Program, String>;

/// A policy with its bindings.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) matcher: Matcher,
    /// Names and expressions of `matchConditions`.
    pub(super) conditions: Vec<(String, Compiled)>,
    pub(super) variables: Vec<Variable>,
    pub(super) validations: Vec<Validation>,
    pub(super) mutations: Vec<Mutation>,
    /// Keys and values of `auditAnnotations`.
    pub(super) annotations: Vec<(String, Compiled)>,
    /// `apiVersion` and `kind`.
    pub(super) param_kind: Option<(String, String)>,
    /// `failurePolicy: Fail`: a mistake refuses the request.
    pub(super) strict: bool,
    /// `reinvocationPolicy: IfNeeded`.
    pub(super) again: bool,
    pub(super) bindings: Vec<Binding>,
}

/// What must hold.
#[derive(Debug)]
pub(super) struct Validation {
    pub(super) rule: Compiled,
    /// The text of the rule.
    pub(super) text: String,
    pub(super) message: String,
    pub(super) message_rule: Option<Compiled>,
    pub(super) reason: String,
}

/// How an object is changed.
#[derive(Debug)]
pub(super) struct Mutation {
    pub(super) rule: Compiled,
    pub(super) form: Form,
}

/// What the expression of a mutation makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A part of the object, merged as server-side apply merges.
    ApplyConfiguration,
    /// A list of operations of RFC 6902.
    JsonPatch,
}

/// Where a policy holds, and what it is told.
#[derive(Debug)]
pub(super) struct Binding {
    pub(super) name: String,
    pub(super) matcher: Matcher,
    pub(super) param_ref: Value,
    /// `validationActions`.
    pub(super) actions: Vec<String>,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

impl Policy {
    /// Reads a policy; `bindings` are all bindings of its kind.
    pub(super) fn read(policy: &Value, bindings: &[Value]) -> Self {
        let (spec, name) = (&policy["spec"], text(&policy["metadata"]["name"]));
        let variables = read_variables(spec);
        let names = names_of(&variables);
        let compile = |rule: &Value| Program::compile(text(rule), &names);
        // Conditions come before variables: they cannot name them.
        let conditions = items(&spec["matchConditions"])
            .map(|condition| {
                let rule = text(&condition["expression"]);
                (text(&condition["name"]).to_owned(), Program::compile_condition(rule, &[]))
            })
            .collect();
        let annotations = items(&spec["auditAnnotations"])
            .map(|annotation| (text(&annotation["key"]).to_owned(), compile(&annotation["valueExpression"])))
            .collect();
        let param_kind = &spec["paramKind"];
        Self {
            name: name.to_owned(),
            matcher: Matcher::of_policy(&spec["matchConstraints"]),
            conditions,
            validations: items(&spec["validations"]).map(|v| Validation::read(v, &names)).collect(),
            mutations: items(&spec["mutations"]).map(|m| Mutation::read(m, &compile)).collect(),
            annotations,
            variables,
            param_kind: (!param_kind.is_null())
                .then(|| (text(&param_kind["apiVersion"]).to_owned(), text(&param_kind["kind"]).to_owned())),
            strict: spec["failurePolicy"] != "Ignore",
            again: spec["reinvocationPolicy"] == "IfNeeded",
            bindings: bindings
                .iter()
                .filter(|binding| binding["spec"]["policyName"] == name)
                .map(Binding::read)
                .collect(),
        }
    }
}

/// What in a policy is no expression: told to its author, so that no request meets it.
pub(super) fn problems(policy: &Value) -> Errors {
    let policy = Policy::read(policy, &[]);
    let spec = Path::new("spec");
    let mut errors = Errors::new();
    let mut check = |list: &str, place: usize, field: &str, rule: &Compiled, text: &str| {
        if let Err(why) = rule {
            errors.invalid(&spec.child(list).index(place).child(field), text, why.as_str());
        }
    };
    for (i, (name, rule)) in policy.conditions.iter().enumerate() {
        check("matchConditions", i, "expression", rule, name);
    }
    for (i, variable) in policy.variables.iter().enumerate() {
        check("variables", i, "expression", variable.program(), variable.name());
    }
    for (i, validation) in policy.validations.iter().enumerate() {
        check("validations", i, "expression", &validation.rule, &validation.text);
        if let Some(rule) = &validation.message_rule {
            check("validations", i, "messageExpression", rule, &validation.text);
        }
    }
    for (i, mutation) in policy.mutations.iter().enumerate() {
        let field = match mutation.form {
            Form::ApplyConfiguration => "applyConfiguration.expression",
            Form::JsonPatch => "jsonPatch.expression",
        };
        check("mutations", i, field, &mutation.rule, "");
    }
    for (i, (key, rule)) in policy.annotations.iter().enumerate() {
        check("auditAnnotations", i, "valueExpression", rule, key);
    }
    errors
}

impl Validation {
    fn read(validation: &Value, variables: &[String]) -> Self {
        let message_rule = text(&validation["messageExpression"]);
        Self {
            rule: Program::compile_condition(text(&validation["expression"]), variables),
            text: text(&validation["expression"]).trim().to_owned(),
            message: text(&validation["message"]).trim().to_owned(),
            message_rule: (!message_rule.is_empty())
                .then(|| Program::compile_message(message_rule, variables)),
            reason: text(&validation["reason"]).to_owned(),
        }
    }
}

impl Mutation {
    fn read(mutation: &Value, compile: &dyn Fn(&Value) -> Compiled) -> Self {
        match text(&mutation["patchType"]) {
            "JSONPatch" => {
                Self { rule: compile(&mutation["jsonPatch"]["expression"]), form: Form::JsonPatch }
            }
            _ => Self {
                rule: compile(&mutation["applyConfiguration"]["expression"]),
                form: Form::ApplyConfiguration,
            },
        }
    }
}

impl Binding {
    fn read(binding: &Value) -> Self {
        let spec = &binding["spec"];
        Self {
            name: text(&binding["metadata"]["name"]).to_owned(),
            matcher: Matcher::of_binding(&spec["matchResources"]),
            param_ref: spec["paramRef"].clone(),
            actions: items(&spec["validationActions"]).map(|action| text(action).to_owned()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn mistakes_are_told() {
        let rows = [
            (json!({"validations": [{"expression": "object.a == 1"}]}), ""),
            (
                json!({"validations": [{"expression": "true"}, {"expression": "1 +"}]}),
                "spec.validations[1].expression",
            ),
            (
                json!({"validations": [{"expression": "authorizer.group(1)"}]}),
                "spec.validations[0].expression",
            ),
            (json!({"validations": [{"expression": "authorizer.path('/').check('get').allowed()"}]}), ""),
            (
                json!({"validations": [{"expression": "authorizer.path('/')"}]}),
                "spec.validations[0].expression",
            ),
            (json!({"validations": [{"expression": "'text'"}]}), "spec.validations[0].expression"),
            (
                json!({"validations": [{"expression": "object.spec.paused"}]}),
                "spec.validations[0].expression",
            ),
            (json!({"validations": [{"expression": "request.dryRun"}]}), ""),
            (
                json!({
                    "variables": [{"name": "a", "expression": "object.spec.replicas > 1"}],
                    "validations": [{"expression": "variables.a"}],
                }),
                "",
            ),
            (
                json!({"validations": [{"expression": "true", "messageExpression": "1"}]}),
                "spec.validations[0].messageExpression",
            ),
            (
                json!({"validations": [{
                    "expression": "true", "messageExpression": "authorizer.path('/').check('get').reason()",
                }]}),
                "spec.validations[0].messageExpression",
            ),
            (
                json!({"validations": [{"expression": "true", "messageExpression": "x"}]}),
                "spec.validations[0].messageExpression",
            ),
            (
                json!({"variables": [{"name": "a", "expression": "variables.a"}]}),
                "spec.variables[0].expression",
            ),
            (
                json!({"matchConditions": [{"name": "a", "expression": "variables.a"}]}),
                "spec.matchConditions[0].expression",
            ),
            (
                json!({"mutations": [{"patchType": "JSONPatch", "jsonPatch": {"expression": "["}}]}),
                "spec.mutations[0].jsonPatch.expression",
            ),
            (
                json!({"auditAnnotations": [{"key": "k", "valueExpression": ")"}]}),
                "spec.auditAnnotations[0].valueExpression",
            ),
        ];
        for (spec, expected) in rows {
            let found = problems(&json!({"spec": spec}));
            let fields: Vec<&str> = found.0.iter().map(|error| error.field.as_str()).collect();
            assert_eq!(fields.join(","), expected, "{found}");
        }
    }
}
