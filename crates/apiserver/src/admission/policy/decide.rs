//! What one policy makes of one request: a function of documents.

use std::collections::BTreeMap;

use sampan_api::cel::{Authorizer, Budget};
use sampan_api::patch::apply::{self, Applied, Manager};
use sampan_api::patch::{self, atomics};
use sampan_api::schema::Schema;
use serde_json::Value;

use super::definition::{Compiled, Form, Policy, Validation};
use super::expression::Scope;

/// Longest message of an expression, in bytes. Upstream's limit.
const MAX_MESSAGE: usize = 5 * 1024;
/// Longest value of an audit annotation, in bytes. Upstream's limit.
const MAX_ANNOTATION: usize = 10 * 1024;
/// Operations one JSON patch of a policy may have.
const MAX_OPERATIONS: usize = 10_000;

/// What expressions see.
#[derive(Clone, Copy)]
pub(super) struct Documents<'a> {
    /// Null for a delete.
    pub(super) object: &'a Value,
    /// Null for a new object.
    pub(super) old: &'a Value,
    pub(super) request: &'a Value,
    /// Null when the policy has none.
    pub(super) params: &'a Value,
    pub(super) namespace: &'a Value,
    pub(super) authorizer: &'a dyn Authorizer,
}

impl<'a> Documents<'a> {
    fn list(&self) -> [&'a Value; 5] {
        [self.object, self.old, self.request, self.params, self.namespace]
    }
}

/// Why a policy refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) message: String,
    /// `metav1.StatusReason`; empty for `Invalid`.
    pub(super) reason: String,
}

/// What a policy says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) refusals: Vec<Refusal>,
    /// Audit annotations by key.
    pub(super) annotations: BTreeMap<String, String>,
}

impl Verdict {
    /// The policy could not be asked: a refusal, if it is strict.
    pub(super) fn failed(policy: &Policy, why: String) -> Self {
        let mut verdict = Self::default();
        if policy.strict {
            verdict.refusals.push(Refusal { message: why, reason: String::new() });
        }
        verdict
    }

    /// Takes over what the policy says with other parameters.
    pub(super) fn extend(&mut self, other: Self) {
        self.refusals.extend(other.refusals);
        for (key, value) in other.annotations {
            let values = self.annotations.entry(key).or_default();
            if !values.is_empty() {
                values.push_str(", ");
            }
            values.push_str(&value);
        }
    }
}

/// Whether all conditions of a policy hold; the first that is false wins over mistakes in others.
fn is_meant(policy: &Policy, documents: &Documents<'_>) -> Result<bool, String> {
    let mut scope = Scope::new(documents.list(), documents.authorizer, &[], Budget::MATCH_CONDITIONS);
    let mut mistake = None;
    for (name, condition) in &policy.conditions {
        let result = condition.as_ref().map_err(String::clone).and_then(|program| scope.holds(program));
        match result {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => mistake = mistake.or(Some(format!("match condition '{name}': {why}"))),
        }
    }
    mistake.map_or(Ok(true), Err)
}

/// Asks a validating policy.
pub(super) fn validate(policy: &Policy, documents: &Documents<'_>) -> Verdict {
    match is_meant(policy, documents) {
        Ok(true) => {}
        Ok(false) => return Verdict::default(),
        Err(why) => return Verdict::failed(policy, why),
    }
    let mut scope =
        Scope::new(documents.list(), documents.authorizer, &policy.variables, Budget::PER_REQUEST);
    let mut verdict = Verdict::default();
    for validation in &policy.validations {
        let held = match &validation.rule {
            Ok(program) => scope
                .holds(program)
                .map_err(|why| format!("expression '{}' resulted in error: {why}", validation.text)),
            Err(why) => Err(why.clone()),
        };
        match held {
            Ok(true) => {}
            Ok(false) => {
                let message = message(validation, &mut scope);
                verdict.refusals.push(Refusal { message, reason: validation.reason.clone() });
            }
            Err(why) => verdict.extend(Verdict::failed(policy, why)),
        }
    }
    for (key, value) in &policy.annotations {
        match annotation(value, &mut scope) {
            Ok(Some(value)) => {
                verdict.annotations.insert(key.clone(), value);
            }
            Ok(None) => {}
            Err(why) => verdict.extend(Verdict::failed(policy, why)),
        }
    }
    verdict
}

/// What a validation says when it does not hold: what its expression says if that is one line, else its message, else
/// the rule itself.
fn message(validation: &Validation, scope: &mut Scope<'_>) -> String {
    let computed = validation.message_rule.as_ref().and_then(|rule| rule.as_ref().ok());
    let computed = computed.and_then(|rule| scope.document(rule).ok());
    let computed = computed.as_ref().and_then(Value::as_str).map(str::trim);
    match computed.filter(|text| !text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n')) {
        Some(text) => text.to_owned(),
        None if !validation.message.is_empty() => validation.message.clone(),
        None => format!("failed expression: {}", validation.text),
    }
}

/// Texts are kept, null is not.
fn annotation(value: &Compiled, scope: &mut Scope<'_>) -> Result<Option<String>, String> {
    let program = value.as_ref().map_err(String::clone)?;
    match scope.document(program)? {
        Value::Null => Ok(None),
        Value::String(text) => {
            let end = (0..=text.len().min(MAX_ANNOTATION)).rev().find(|at| text.is_char_boundary(*at));
            let text = text.get(..end.unwrap_or(0)).unwrap_or_default().trim();
            Ok((!text.is_empty()).then(|| text.to_owned()))
        }
        _ => Err(format!("valueExpression '{}' resulted in unsupported return type", program.text)),
    }
}

/// The object as a mutating policy wants it; nothing when its conditions do not hold.
pub(super) fn mutate(
    policy: &Policy,
    documents: &Documents<'_>,
    schema: &Schema,
) -> Result<Option<Value>, String> {
    if !is_meant(policy, documents)? {
        return Ok(None);
    }
    let mut object = documents.object.clone();
    for mutation in &policy.mutations {
        let program = mutation.rule.as_ref().map_err(String::clone)?;
        // Every mutation sees what the ones before it made; variables are computed anew for the same reason.
        let now = Documents { object: &object, ..*documents };
        let mut scope = Scope::new(now.list(), now.authorizer, &policy.variables, Budget::PER_REQUEST);
        let patch = scope.document(program)?;
        object = match mutation.form {
            Form::JsonPatch => json_patched(&object, patch)?,
            Form::ApplyConfiguration => merged(&object, patch, schema)?,
        };
    }
    Ok(Some(object))
}

fn json_patched(object: &Value, patch: Value) -> Result<Value, String> {
    if patch.as_array().is_none_or(|operations| operations.len() > MAX_OPERATIONS) {
        return Err("JSONPatch must be a list of operations".to_owned());
    }
    let mut patched = object.clone();
    patch::json_patch(&mut patched, patch).map_err(|error| format!("JSON Patch: {error}"))?;
    Ok(patched)
}

/// Merges a part of the object as server-side apply does. Nobody owns anything for it, so nothing is taken away.
fn merged(object: &Value, mut part: Value, schema: &Schema) -> Result<Value, String> {
    if !part.is_object() {
        return Err("applyConfiguration must be an object".to_owned());
    }
    for field in ["apiVersion", "kind"] {
        part[field] = object[field].clone();
    }
    let atomics = atomics(schema, &part);
    if !atomics.is_empty() {
        return Err(format!(
            "error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: {}",
            atomics.join(", ")
        ));
    }
    let mut live = object.clone();
    if let Some(metadata) = live["metadata"].as_object_mut() {
        metadata.remove("managedFields");
    }
    let api_version = object["apiVersion"].as_str().unwrap_or_default();
    let manager = Manager { name: "admission", api_version, subresource: "", time: "" };
    match apply::apply(schema, Some(&live), &part, &manager, true).map_err(|error| error.to_string())? {
        Applied::Merged(merged) => {
            let mut object_now = merged.object.clone();
            if !object["metadata"]["managedFields"].is_null() {
                object_now["metadata"]["managedFields"] = object["metadata"]["managedFields"].clone();
            }
            Ok(object_now)
        }
        Applied::Conflicts(_) => Err("cannot merge the apply configuration".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::policy::expression::tests::Nobody;

    fn policy(spec: Value) -> Policy {
        Policy::read(&json!({"metadata": {"name": "p"}, "spec": spec}), &[])
    }

    fn deployment() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "d", "labels": {"a": "b"}},
            "spec": {"replicas": 7, "template": {"spec": {"containers": [{"name": "c", "image": "i"}]}}},
        })
    }

    fn ask(spec: Value, params: &Value) -> Vec<String> {
        let (object, request) = (deployment(), json!({"operation": "CREATE"}));
        let namespace = json!({"metadata": {"labels": {"env": "test"}}});
        let documents = Documents {
            object: &object,
            old: &Value::Null,
            request: &request,
            params,
            namespace: &namespace,
            authorizer: &Nobody,
        };
        let verdict = validate(&policy(spec), &documents);
        verdict.refusals.into_iter().map(|refusal| refusal.message).collect()
    }

    #[test]
    fn validations() {
        let none = Value::Null;
        let rule = |validation: Value| json!({"validations": [validation]});
        let rows: Vec<(Value, Value, Vec<&str>)> = vec![
            (rule(json!({"expression": "object.spec.replicas <= 7"})), none.clone(), vec![]),
            (
                rule(json!({"expression": " object.spec.replicas <= 5 "})),
                none.clone(),
                vec!["failed expression: object.spec.replicas <= 5"],
            ),
            (
                rule(json!({"expression": "object.spec.replicas <= 5", "message": "too many"})),
                none.clone(),
                vec!["too many"],
            ),
            (
                rule(json!({
                    "expression": "object.spec.replicas <= params.max", "message": "no",
                    "messageExpression": "'at most ' + string(params.max)",
                })),
                json!({"max": 3}),
                vec!["at most 3"],
            ),
            (
                rule(json!({
                    "expression": "false", "message": "said", "messageExpression": "object.missing",
                })),
                none.clone(),
                vec!["said"],
            ),
            (
                rule(json!({"expression": "namespaceObject.metadata.labels.env == 'test'"})),
                none.clone(),
                vec![],
            ),
            (
                rule(json!({"expression": "oldObject == null && request.operation == 'CREATE'"})),
                none.clone(),
                vec![],
            ),
            (
                json!({"matchConditions": [{"name": "n", "expression": "false"}], "validations": [{"expression": "false"}]}),
                none.clone(),
                vec![],
            ),
            (
                json!({
                    "failurePolicy": "Ignore",
                    "validations": [{"expression": "object.missing == 1"}, {"expression": "1 +"}],
                }),
                none.clone(),
                vec![],
            ),
            (
                json!({
                    "variables": [{"name": "n", "expression": "object.spec.replicas"}],
                    "validations": [{"expression": "variables.n == 7"}],
                }),
                none,
                vec![],
            ),
        ];
        for (spec, params, expected) in rows {
            assert_eq!(ask(spec.clone(), &params), expected, "{spec}");
        }
        let failed = ask(rule(json!({"expression": "object.missing == 1"})), &Value::Null);
        assert!(failed[0].starts_with("expression 'object.missing == 1' resulted in error: "), "{failed:?}");
        let broken = ask(rule(json!({"expression": "1 +"})), &Value::Null);
        assert!(broken[0].starts_with("compilation failed: "), "{broken:?}");
    }

    #[test]
    fn annotations_of_several_parameters_are_joined() {
        let policy = policy(json!({"auditAnnotations": [
            {"key": "name", "valueExpression": "params == null ? null : params.name"},
        ]}));
        let (object, none) = (deployment(), Value::Null);
        let mut all = Verdict::default();
        for params in [json!({"name": "a"}), json!({"name": "b"}), Value::Null] {
            let documents = Documents {
                object: &object,
                old: &none,
                request: &none,
                params: &params,
                namespace: &none,
                authorizer: &Nobody,
            };
            all.extend(validate(&policy, &documents));
        }
        assert_eq!(all.annotations, BTreeMap::from([("name".to_owned(), "a, b".to_owned())]));
        assert!(all.refusals.is_empty());
    }

    fn change(mutations: Value) -> Result<Value, String> {
        let policy = policy(json!({"mutations": mutations}));
        let (object, none) = (deployment(), Value::Null);
        let documents = Documents {
            object: &object,
            old: &none,
            request: &none,
            params: &none,
            namespace: &none,
            authorizer: &Nobody,
        };
        let changed = mutate(&policy, &documents, &Schema::Table("io.k8s.api.apps.v1.Deployment"))?;
        changed.ok_or_else(|| "not meant".to_owned())
    }

    #[test]
    fn mutations() {
        let apply = |text: &str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": text}});
        let patch = |text: &str| json!({"patchType": "JSONPatch", "jsonPatch": {"expression": text}});
        let merged = change(json!([apply(
            "Object{metadata: Object.metadata{labels: {'new': 'x'}}, spec: Object.spec{template: Object.spec.template{\
             spec: Object.spec.template.spec{containers: [Object.spec.template.spec.containers{name: 'side', image: 's'}]}}}}"
        )]))
        .expect("merged");
        assert_eq!(merged["metadata"]["labels"], json!({"a": "b", "new": "x"}));
        let containers = &merged["spec"]["template"]["spec"]["containers"];
        assert_eq!(containers.as_array().map(Vec::len), Some(2), "lists merge by key: {containers}");
        let patched = change(json!([
            patch("[JSONPatch{op: 'replace', path: '/spec/replicas', value: object.spec.replicas + 1}]"),
            patch("[JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('x/y'), value: string(object.spec.replicas)}]"),
        ]))
        .expect("patched");
        assert_eq!(patched["spec"]["replicas"], 8);
        assert_eq!(patched["metadata"]["labels"]["x/y"], "8", "a mutation sees the one before it");
        let atomic = apply(
            "Object{spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{containers: [\
             Object.spec.template.spec.containers{name: 'c', args: ['x']}]}}}}",
        );
        assert_eq!(
            change(json!([atomic])),
            Err("error applying patch: invalid ApplyConfiguration: may not mutate atomic arrays, maps or structs: \
                 .spec.template.spec.containers[0].args"
                .to_owned())
        );
        for wrong in
            [apply("1"), patch("1"), patch("[JSONPatch{op: 'remove', path: '/no/such'}]"), patch("1 +")]
        {
            assert!(change(json!([wrong])).is_err(), "{wrong}");
        }
    }
}
