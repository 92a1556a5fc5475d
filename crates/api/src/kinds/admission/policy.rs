//! Policies written in CEL: what is refused or changed (policies), and where that is in force (bindings).

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::json::{is_empty, list, set, text};
use super::super::{rules, workload};
use super::{
    FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, validate_match_conditions, validate_rule,
};
use crate::cel::RESERVED;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, STATUS_METADATA, Scope, Strategy, Subresource};
use crate::{names, table};

const PLAIN: Row = Row {
    group: "admissionregistration.k8s.io",
    categories: &["api-extensions"],
    scope: Scope::Cluster,
    generation: true,
    ..Row::PLAIN
};

const BINDING: Row = Row {
    columns: &[
        Column::name(),
        Column::new("PolicyName", "Policy that is in force."),
        Column::new("ParamRef", "Objects with the policy's parameters."),
        Column::age(),
    ],
    table_row: binding_row,
    ..PLAIN
};

/// ValidatingAdmissionPolicies.
pub static VALIDATING_ADMISSION_POLICY: Row = Row {
    kind: "ValidatingAdmissionPolicy",
    plural: "validatingadmissionpolicies",
    singular: "validatingadmissionpolicy",
    subresources: &[Subresource::Status],
    status_keeps: STATUS_METADATA,
    schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicy",
    columns: &[
        Column::name(),
        Column::new("Validations", "Number of validations.").of_type("integer"),
        Column::new("ParamKind", "Kind of the objects with parameters."),
        Column::age(),
    ],
    table_row: |policy, now| policy_row(policy, "validations", now),
    strategy: Strategy {
        prepare_create: |policy| set(policy, "status", json!({})),
        validate: validate_validating,
        ..Strategy::PLAIN
    },
    ..PLAIN
};

/// MutatingAdmissionPolicies.
pub static MUTATING_ADMISSION_POLICY: Row = Row {
    kind: "MutatingAdmissionPolicy",
    plural: "mutatingadmissionpolicies",
    singular: "mutatingadmissionpolicy",
    schema: "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicy",
    columns: &[
        Column::name(),
        Column::new("Mutations", "Number of mutations.").of_type("integer"),
        Column::new("ParamKind", "Kind of the objects with parameters."),
        Column::age(),
    ],
    table_row: |policy, now| policy_row(policy, "mutations", now),
    strategy: Strategy { validate: validate_mutating, ..Strategy::PLAIN },
    ..PLAIN
};

/// ValidatingAdmissionPolicyBindings.
pub static VALIDATING_ADMISSION_POLICY_BINDING: Row = Row {
    kind: "ValidatingAdmissionPolicyBinding",
    plural: "validatingadmissionpolicybindings",
    singular: "validatingadmissionpolicybinding",
    schema: "io.k8s.api.admissionregistration.v1.ValidatingAdmissionPolicyBinding",
    strategy: Strategy { validate: validate_validating_binding, ..Strategy::PLAIN },
    ..BINDING
};

/// MutatingAdmissionPolicyBindings.
pub static MUTATING_ADMISSION_POLICY_BINDING: Row = Row {
    kind: "MutatingAdmissionPolicyBinding",
    plural: "mutatingadmissionpolicybindings",
    singular: "mutatingadmissionpolicybinding",
    schema: "io.k8s.api.admissionregistration.v1.MutatingAdmissionPolicyBinding",
    strategy: Strategy { validate: validate_binding, ..Strategy::PLAIN },
    ..BINDING
};

const MAX_AUDIT_ANNOTATIONS: usize = 20;
/// Shorter than a value may be (10 KiB), because expressions that join texts make longer ones.
const MAX_VALUE_EXPRESSION: usize = 5 * 1024;

fn validate_validating(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &policy["spec"]);
    validate_common(&mut errors, &path, spec);
    let (validations, annotations) = (list(&spec["validations"]), list(&spec["auditAnnotations"]));
    if validations.is_empty() && annotations.is_empty() {
        let detail = "validations or auditAnnotations must contain at least one item";
        errors.required(&path.child("validations"), detail);
        errors.required(&path.child("auditAnnotations"), detail);
    }
    for (index, validation) in validations.iter().enumerate() {
        validate_validation(&mut errors, &path.child("validations").index(index), validation);
    }
    let path = path.child("auditAnnotations");
    if annotations.len() > MAX_AUDIT_ANNOTATIONS {
        let detail = format!("must not have more than {MAX_AUDIT_ANNOTATIONS} auditAnnotations");
        errors.invalid(&path, spec["auditAnnotations"].clone(), detail);
    }
    let mut seen = BTreeSet::new();
    for (index, annotation) in annotations.iter().enumerate() {
        let path = path.index(index);
        validate_audit_annotation(&mut errors, &path, annotation, text(&policy["metadata"]["name"]));
        let key = text(&annotation["key"]);
        if !seen.insert(key) {
            errors.duplicate(&path.child("key"), key);
        }
    }
    errors
}

fn validate_mutating(policy: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &policy["spec"]);
    validate_common(&mut errors, &path, spec);
    let reinvocation = &spec["reinvocationPolicy"];
    rules::one_of(&mut errors, &path.child("reinvocationPolicy"), reinvocation, REINVOCATION_POLICIES);
    let (mutations, path) = (list(&spec["mutations"]), path.child("mutations"));
    if mutations.is_empty() {
        errors.required(&path, "mutations must contain at least one item");
    }
    for (index, mutation) in mutations.iter().enumerate() {
        validate_mutation(&mut errors, &path.index(index), mutation);
    }
    errors
}

fn validate_common(errors: &mut Errors, path: &Path, spec: &Value) {
    rules::one_of(errors, &path.child("failurePolicy"), &spec["failurePolicy"], FAILURE_POLICIES);
    if !spec["paramKind"].is_null() {
        validate_param_kind(errors, &path.child("paramKind"), &spec["paramKind"]);
    }
    let (constraints, at) = (&spec["matchConstraints"], path.child("matchConstraints"));
    if constraints.is_null() {
        errors.required(&at, "");
    } else {
        validate_match(errors, &at, constraints);
        rules::required(errors, &at.child("resourceRules"), &constraints["resourceRules"]);
    }
    validate_match_conditions(errors, &path.child("matchConditions"), &spec["matchConditions"]);
    for (index, variable) in list(&spec["variables"]).iter().enumerate() {
        let path = path.child("variables").index(index);
        let name = text(&variable["name"]);
        if name.trim().is_empty() {
            errors.required(&path.child("name"), "name is not specified");
        } else if !is_identifier(name) {
            errors.invalid(&path.child("name"), name, "name is not a valid CEL identifier");
        }
        required_expression(errors, &path, variable);
    }
}

fn required_expression(errors: &mut Errors, path: &Path, holder: &Value) {
    if text(&holder["expression"]).trim().is_empty() {
        errors.required(&path.child("expression"), "expression is not specified");
    }
}

/// Whether CEL can call a variable so (the grammar's `IDENT` without its reserved words).
fn is_identifier(name: &str) -> bool {
    let start = |b: &u8| b.is_ascii_alphabetic() || *b == b'_';
    name.as_bytes().first().is_some_and(start)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !RESERVED.contains(&name)
}

fn validate_param_kind(errors: &mut Errors, path: &Path, kind: &Value) {
    let (version, at) = (text(&kind["apiVersion"]), path.child("apiVersion"));
    let (group, short) = version.split_once('/').unwrap_or(("", version));
    if version.is_empty() {
        errors.required(&at, "");
    } else if short.contains('/') {
        errors.invalid(&at, version, format!("unexpected GroupVersion string: {version}"));
    } else {
        rules::optional_name(errors, &at, group, names::dns1123_subdomain);
        if short.is_empty() {
            errors.invalid(&at, version, "version must be specified");
        } else {
            rules::name(errors, &at, short, names::dns1035_label);
        }
    }
    let (name, at) = (text(&kind["kind"]), path.child("kind"));
    if name.is_empty() {
        return errors.required(&at, "");
    }
    for problem in names::dns1035_label(&name.to_lowercase()) {
        let detail = format!("may have mixed case, but should otherwise match: {problem}");
        errors.invalid(&at, name, detail);
    }
}

/// Which requests a policy or binding is about.
fn validate_match(errors: &mut Errors, path: &Path, resources: &Value) {
    rules::one_of(errors, &path.child("matchPolicy"), &resources["matchPolicy"], MATCH_POLICIES);
    for field in ["namespaceSelector", "objectSelector"] {
        rules::required_label_selector(errors, &path.child(field), &resources[field]);
    }
    for field in ["resourceRules", "excludeResourceRules"] {
        for (index, rule) in list(&resources[field]).iter().enumerate() {
            let path = path.child(field).index(index);
            let mut seen = BTreeSet::new();
            for (index, name) in list(&rule["resourceNames"]).iter().map(text).enumerate() {
                let path = path.child("resourceNames").index(index);
                rules::name(errors, &path, name, names::path_segment);
                if !seen.insert(name) {
                    errors.duplicate(&path, name);
                }
            }
            validate_rule(errors, &path, rule);
        }
    }
}

fn validate_validation(errors: &mut Errors, path: &Path, validation: &Value) {
    required_expression(errors, path, validation);
    let (message, computed) = (text(&validation["message"]), text(&validation["messageExpression"]));
    if !computed.is_empty() && computed.trim().is_empty() {
        errors.invalid(&path.child("messageExpression"), computed, "must be non-empty if specified");
    }
    if !message.is_empty() && message.trim().is_empty() {
        errors.invalid(&path.child("message"), message, "message must be non-empty if specified");
    } else if message.trim().contains(['\n', '\r']) {
        errors.invalid(&path.child("message"), message, "message must not contain line breaks");
    }
    let reasons = ["Forbidden", "Invalid", "RequestEntityTooLarge"];
    rules::optional_one_of(errors, &path.child("reason"), &validation["reason"], &reasons);
}

fn validate_audit_annotation(errors: &mut Errors, path: &Path, annotation: &Value, policy: &str) {
    let key = text(&annotation["key"]);
    for problem in names::qualified_name(&format!("{policy}/{key}")) {
        errors.invalid(&path.child("key"), format!("{policy}/{key}"), problem);
    }
    let (expression, path) = (text(&annotation["valueExpression"]).trim(), path.child("valueExpression"));
    if expression.is_empty() {
        errors.required(&path, "valueExpression is not specified");
    } else if expression.len() > MAX_VALUE_EXPRESSION {
        errors.required(&path, format!("must not exceed {MAX_VALUE_EXPRESSION} bytes in length"));
    }
}

fn validate_mutation(errors: &mut Errors, path: &Path, mutation: &Value) {
    let types = [("ApplyConfiguration", "applyConfiguration"), ("JSONPatch", "jsonPatch")];
    let type_ = text(&mutation["patchType"]);
    rules::one_of(errors, &path.child("patchType"), &mutation["patchType"], &types.map(|(name, _)| name));
    for (name, field) in types {
        let (path, patch) = (path.child(field), &mutation[field]);
        match (name == type_, patch.is_null()) {
            (true, true) => errors.required(&path, format!("must be specified when patchType is {type_}")),
            (true, false) => required_expression(errors, &path, patch),
            (false, false) if !type_.is_empty() => {
                errors.forbidden(&path, format!("must not be specified when patchType is {type_}"));
            }
            (false, _) => {}
        }
    }
}

fn validate_binding(binding: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &binding["spec"]);
    let policy = text(&spec["policyName"]);
    rules::required_name(&mut errors, &path.child("policyName"), policy, names::dns1123_subdomain);
    if !spec["paramRef"].is_null() {
        validate_param_ref(&mut errors, &path.child("paramRef"), &spec["paramRef"]);
    }
    if !spec["matchResources"].is_null() {
        validate_match(&mut errors, &path.child("matchResources"), &spec["matchResources"]);
    }
    errors
}

fn validate_validating_binding(binding: &Value) -> Errors {
    let mut errors = validate_binding(binding);
    let (value, path) = (&binding["spec"]["validationActions"], Path::new("spec").child("validationActions"));
    let mut seen = BTreeSet::new();
    for (index, action) in list(value).iter().map(text).enumerate() {
        if !["Audit", "Deny", "Warn"].contains(&action) {
            errors.not_supported(&path.index(index), action, &["Audit", "Deny", "Warn"]);
        }
        if !seen.insert(action) {
            errors.duplicate(&path.index(index), action);
        }
    }
    if seen.contains("Deny") && seen.contains("Warn") {
        errors.invalid(
            &path,
            value.clone(),
            "must not contain both Deny and Warn (repeating the same validation failure information in the API response \
             and headers serves no purpose)",
        );
    }
    if seen.is_empty() {
        errors.required(&path, "at least one validation action is required");
    }
    errors
}

fn validate_param_ref(errors: &mut Errors, path: &Path, reference: &Value) {
    const BOTH: &str = "name and selector are mutually exclusive";
    let (name, selector) = (text(&reference["name"]), &reference["selector"]);
    rules::optional_name(errors, &path.child("name"), name, names::path_segment);
    match (name.is_empty(), selector.is_null()) {
        (true, true) => errors.required(path, "one of name or selector must be specified"),
        (false, false) => {
            errors.forbidden(&path.child("name"), BOTH);
            errors.forbidden(&path.child("selector"), BOTH);
        }
        _ => {}
    }
    rules::label_selector(errors, &path.child("selector"), selector);
    let action = &reference["parameterNotFoundAction"];
    rules::one_of(errors, &path.child("parameterNotFoundAction"), action, &["Deny", "Allow"]);
}

fn policy_row(policy: &Value, field: &str, now: Timestamp) -> Vec<Value> {
    let kind = &policy["spec"]["paramKind"];
    let shown = if is_empty(kind) {
        "<unset>".to_owned()
    } else {
        format!("{}/{}", text(&kind["apiVersion"]), text(&kind["kind"]))
    };
    vec![
        json!(text(&policy["metadata"]["name"])),
        json!(list(&policy["spec"][field]).len()),
        json!(shown),
        table::age(policy, now),
    ]
}

fn binding_row(binding: &Value, now: Timestamp) -> Vec<Value> {
    let reference = &binding["spec"]["paramRef"];
    let (namespace, name) = (text(&reference["namespace"]), text(&reference["name"]));
    let shown = match (reference.is_null(), name, namespace) {
        (true, _, _) => "<unset>".to_owned(),
        (_, "", _) => workload::format_selector(&reference["selector"]),
        // Whether parameters live in namespaces is not written here.
        (_, name, "") => format!("*/{name}"),
        (_, name, namespace) => format!("{namespace}/{name}"),
    };
    vec![
        json!(text(&binding["metadata"]["name"])),
        json!(text(&binding["spec"]["policyName"])),
        json!(shown),
        table::age(binding, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::rules::testing::{expect, with};
    use super::*;

    fn policy(row: &Row, changes: &[(&str, Value)]) -> Value {
        let rule = json!({"operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"]});
        let mut policy = with(
            json!({"metadata": {"name": "few"}, "spec": {"matchConstraints": {"resourceRules": [rule]}}}),
            changes,
        );
        crate::defaults::apply(row.schema, &mut policy);
        policy
    }

    #[test]
    fn validating() {
        let validation = json!({"expression": "object.spec.replicas < 5"});
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            let mut all = vec![("/spec/validations", json!([validation]))];
            all.extend(changes.iter().cloned());
            expect(what, &validate_validating(&policy(&VALIDATING_ADMISSION_POLICY, &all)), expected);
        };
        row("good", &[("/spec/variables", json!([{"name": "n", "expression": "1"}]))], &[]);
        row(
            "nothing",
            &[("/spec/validations", json!([]))],
            &[
                "spec.validations: Required value: validations or auditAnnotations must contain at least one item",
                "spec.auditAnnotations: Required value: validations or auditAnnotations must contain at least one item",
            ],
        );
        row(
            "expressions",
            &[("/spec/validations", json!([{"message": "a\nb", "messageExpression": " ", "reason": "Odd"}]))],
            &[
                "spec.validations[0].expression: Required value: expression is not specified",
                "spec.validations[0].messageExpression: Invalid value: \" \": must be non-empty if specified",
                "spec.validations[0].message: Invalid value: \"a\\nb\": message must not contain line breaks",
                "spec.validations[0].reason: Unsupported value: \"Odd\": supported values: \"Forbidden\", \"Invalid\", \
                 \"RequestEntityTooLarge\"",
            ],
        );
        row(
            "variables",
            &[("/spec/variables", json!([{"name": "if", "expression": "1"}, {"name": "a-b"}]))],
            &[
                "spec.variables[0].name: Invalid value: \"if\": name is not a valid CEL identifier",
                "spec.variables[1].name: Invalid value: \"a-b\": name is not a valid CEL identifier",
                "spec.variables[1].expression: Required value: expression is not specified",
            ],
        );
        row(
            "audit",
            &[(
                "/spec/auditAnnotations",
                json!([{"key": "a", "valueExpression": ""}, {"key": "a", "valueExpression": "1"}]),
            )],
            &[
                "spec.auditAnnotations[0].valueExpression: Required value: valueExpression is not specified",
                "spec.auditAnnotations[1].key: Duplicate value: \"a\"",
            ],
        );
        row(
            "no rules",
            &[("/spec/matchConstraints", json!({}))],
            &["spec.matchConstraints.resourceRules: Required value"],
        );
        row(
            "parameters",
            &[("/spec/paramKind", json!({"apiVersion": "a/b/c", "kind": "A b"}))],
            &[
                "spec.paramKind.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                "spec.paramKind.kind: Invalid value: \"A b\": may have mixed case, but should otherwise match: a DNS-1035 \
                 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and \
                 end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is \
                 '[a-z]([-a-z0-9]*[a-z0-9])?')",
            ],
        );
    }

    #[test]
    fn mutating() {
        let row = |what: &str, mutations: Value, expected: &[&str]| {
            let policy = policy(&MUTATING_ADMISSION_POLICY, &[("/spec/mutations", mutations)]);
            expect(what, &validate_mutating(&policy), expected);
        };
        row("good", json!([{"patchType": "JSONPatch", "jsonPatch": {"expression": "[]"}}]), &[]);
        row(
            "nothing",
            json!([]),
            &["spec.mutations: Required value: mutations must contain at least one item"],
        );
        row(
            "of another type",
            json!([{"patchType": "JSONPatch", "applyConfiguration": {"expression": "Object{}"}}]),
            &[
                "spec.mutations[0].applyConfiguration: Forbidden: must not be specified when patchType is JSONPatch",
                "spec.mutations[0].jsonPatch: Required value: must be specified when patchType is JSONPatch",
            ],
        );
        row("no type", json!([{}]), &["spec.mutations[0].patchType: Required value"]);
    }

    #[test]
    fn bindings() {
        let binding = |spec: Value| {
            let mut binding = json!({"metadata": {"name": "b"}, "spec": spec});
            crate::defaults::apply(VALIDATING_ADMISSION_POLICY_BINDING.schema, &mut binding);
            binding
        };
        let row = |what: &str, spec: Value, expected: &[&str]| {
            expect(what, &validate_validating_binding(&binding(spec)), expected);
        };
        row(
            "good",
            json!({"policyName": "few", "validationActions": ["Deny", "Audit"], "matchResources": {}}),
            &[],
        );
        row(
            "nothing",
            json!({}),
            &[
                "spec.policyName: Required value",
                "spec.validationActions: Required value: at least one validation action is required",
            ],
        );
        row(
            "parameters",
            json!({"policyName": "few", "validationActions": ["Deny"], "paramRef": {"parameterNotFoundAction": "Cry"}}),
            &[
                "spec.paramRef: Required value: one of name or selector must be specified",
                "spec.paramRef.parameterNotFoundAction: Unsupported value: \"Cry\": supported values: \"Deny\", \"Allow\"",
            ],
        );
        let both = binding(json!({"policyName": "few", "validationActions": ["Deny", "Warn", "Warn"]}));
        assert_eq!(validate_validating_binding(&both).0.len(), 2);
        let cells = |reference: Value| {
            binding_row(&binding(json!({ "paramRef": reference })), Timestamp::UNIX_EPOCH)[2].clone()
        };
        assert_eq!(cells(json!({"name": "a"})), "*/a");
        assert_eq!(cells(json!({"name": "a", "namespace": "n"})), "n/a");
        assert_eq!(cells(json!({"selector": {"matchLabels": {"a": "b"}}})), "a=b");
        assert_eq!(cells(Value::Null), "<unset>");
    }
}
