//! `matchConditions`: expressions that say whether a webhook wants to see a request. They are those of policies.

use sampan_api::cel::{Authorizer, Budget};
use sampan_api::field::Errors;
use sampan_api::kinds::expression;
use serde_json::Value;

use crate::admission::Admission;
use crate::admission::policy::expression::{Program, Scope};
use crate::error::ApiError;

/// A configuration is stored only if its conditions are expressions.
pub(in crate::admission) fn check_definition(
    admission: &Admission<'_>,
    object: &Value,
) -> Result<(), ApiError> {
    const GROUP: &str = "admissionregistration.k8s.io";
    let configurations = ["mutatingwebhookconfigurations", "validatingwebhookconfigurations"];
    let written = |plural: &&str| admission.creates(GROUP, plural) || admission.updates(GROUP, plural);
    let Some(plural) = configurations.into_iter().find(written) else { return Ok(()) };
    let same = |old: &Value| old["webhooks"] == object["webhooks"];
    if admission.old.is_some_and(same) {
        return Ok(());
    }
    let mut errors = Errors::new();
    for condition in expression::of(GROUP, plural, object) {
        if let Err(why) = Program::compile_condition(condition.text, &[]) {
            errors.invalid(&condition.path, condition.text, why);
        }
    }
    if errors.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(ApiError::invalid(admission.kind, name, &errors))
}

/// One entry of `matchConditions`.
pub(super) struct Condition {
    name: String,
    program: Result<Program, String>,
}

impl Condition {
    pub(super) fn read(entry: &Value) -> Self {
        let text = |field: &str| entry[field].as_str().unwrap_or_default();
        Self { name: text("name").to_owned(), program: Program::compile_condition(text("expression"), &[]) }
    }
}

/// Whether all conditions hold for the documents of a request and its description. One that is false decides; otherwise
/// the first one without a value is an error, which counts as "does not match" for a webhook that fails open.
pub(super) fn hold(
    conditions: &[Condition],
    [object, old, request]: [&Value; 3],
    authorizer: &dyn Authorizer,
    fails_closed: bool,
) -> Result<bool, String> {
    let documents = [object, old, request, &Value::Null, &Value::Null];
    let mut scope = Scope::new(documents, authorizer, &[], Budget::MATCH_CONDITIONS);
    let mut problem = None;
    for condition in conditions {
        match condition.program.as_ref().map_err(Clone::clone).and_then(|program| scope.holds(program)) {
            Ok(true) => {}
            Ok(false) => return Ok(false),
            Err(why) => {
                problem
                    .get_or_insert(format!("failed to evaluate match condition {:?}: {why}", condition.name));
            }
        }
    }
    match problem {
        None => Ok(true),
        Some(why) if fails_closed => Err(why),
        Some(_) => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::policy::expression::tests::Nobody;
    use serde_json::json;

    #[test]
    fn one_false_decides() {
        let labelled = "has(object.metadata.labels)";
        let missing = "object.metadata.nothing == 'x'";
        let rows: &[(&[&str], bool, Option<bool>)] = &[
            (&[], true, Some(true)),
            (&["request.operation == 'CREATE'"], true, Some(true)),
            (&["oldObject == null", labelled], true, Some(false)),
            (&[missing, labelled], true, Some(false)),
            (&["true", missing], true, None),
            (&["true", missing], false, Some(false)),
            (&["("], true, None),
            (&["'text'"], true, None),
        ];
        let (object, request) = (json!({"metadata": {"name": "x"}}), json!({"operation": "CREATE"}));
        let documents = [&object, &Value::Null, &request];
        for (expressions, fails_closed, expected) in rows {
            let conditions: Vec<Condition> =
                expressions.iter().map(|e| Condition::read(&json!({"name": e, "expression": e}))).collect();
            let found = hold(&conditions, documents, &Nobody, *fails_closed);
            assert_eq!(found.as_ref().ok(), expected.as_ref(), "{expressions:?}: {found:?}");
        }
    }
}
