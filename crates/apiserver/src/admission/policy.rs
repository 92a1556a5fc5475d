//! Admission policies: rules in CEL that somebody wrote into the cluster (`admissionregistration.k8s.io/v1`,
//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy, with their bindings).
//!
//! [`definition`] reads and compiles them when one has changed, as the rules of RBAC are; [`expression`] evaluates;
//! [`decide`] says what one policy makes of one request, without knowing the server. What is left here is who is asked,
//! where parameters come from, and what is done with the answers.
//!
//! `authorizer` must be asked in one piece (`authorizer.group(…)….check(…).allowed()`); field and label selectors of a
//! question are not taken into account by RBAC and not here.
//!
//! Source of the rules and of the words: KEP-3488, KEP-3962, `k8s.io/apiserver/pkg/admission/plugin/policy`.

pub(super) mod authorizer;
mod decide;
mod definition;
pub(super) mod expression;
mod rewrite;

use std::sync::{Arc, Mutex, PoisonError};

use http::StatusCode;
use sampan_api::decode::Strictness;
use sampan_api::selector::LabelSelector;
use serde_json::{Value, json};

use super::matching::{Labels, Question};
use super::{Admission, Operation};
use crate::books::copy_field;
use crate::cache::WatchCache;
use crate::error::ApiError;
use crate::view::View;
use decide::{Documents, Refusal, Verdict};
use definition::{Binding, Policy};
use expression::{Authorizer, Calls};

/// Policies and bindings of both kinds.
const RESOURCES: [&str; 4] = [
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "mutatingadmissionpolicies.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
];
/// What decides about policies is not seen by them: nobody could repair a broken one otherwise.
const EXEMPT: &str = "admissionregistration.k8s.io";
/// What the server alone writes.
const IDENTITY: &[&str] = &[
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generateName",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "selfLink",
    "uid",
];

#[derive(Debug)]
struct Compiled {
    revisions: [u64; 4],
    validating: Vec<Policy>,
    mutating: Vec<Policy>,
}

/// All policies of the cluster.
pub(crate) struct Policies {
    cache: Arc<WatchCache>,
    compiled: Mutex<Option<Arc<Compiled>>>,
}

impl Policies {
    pub(crate) fn new(cache: Arc<WatchCache>) -> Self {
        Self { cache, compiled: Mutex::default() }
    }

    fn current(&self) -> Arc<Compiled> {
        let revisions = RESOURCES.map(|resource| self.cache.resource(resource).revision());
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        match &*compiled {
            Some(current) if current.revisions == revisions => current.clone(),
            _ => {
                let fresh = Arc::new(Compiled {
                    revisions,
                    validating: self.read(RESOURCES[0], RESOURCES[1]),
                    mutating: self.read(RESOURCES[2], RESOURCES[3]),
                });
                *compiled = Some(fresh.clone());
                fresh
            }
        }
    }

    /// Policies without a binding hold nowhere and are not compiled.
    fn read(&self, policies: &str, bindings: &str) -> Vec<Policy> {
        let list = |resource: &str| -> Vec<Value> {
            let items = self.cache.resource(resource).list(&format!("/{resource}/"));
            items.iter().filter_map(|item| serde_json::from_slice(&item.bytes).ok()).collect()
        };
        let bindings = list(bindings);
        let bound = |policy: &&Value| {
            bindings.iter().any(|binding| binding["spec"]["policyName"] == policy["metadata"]["name"])
        };
        list(policies).iter().filter(bound).map(|policy| Policy::read(policy, &bindings)).collect()
    }
}

/// The write behind a binding is the server's own; policies have seen the binding.
fn is_exempt(admission: &Admission<'_>) -> bool {
    admission.kind.group == EXEMPT || admission.view == View::Binding
}

/// Refuses what a policy does not allow. `object` is the object that goes when something is deleted.
pub(super) fn validate(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let compiled = admission.server.policies.current();
    if compiled.validating.is_empty() || is_exempt(admission) {
        return Ok(());
    }
    let request = Request::of(admission, object);
    let document = admission.view.of(admission.kind, object);
    let deleted = admission.operation == Operation::Delete;
    let document = if deleted { Value::Null } else { document };
    let mut refused = None;
    for policy in &compiled.validating {
        for (binding, params) in request.applicable(policy, &document) {
            let verdict = match params {
                Ok(params) => validate_with(&request, policy, &document, &params),
                Err(why) => Verdict::failed(policy, why),
            };
            let first = enforce(admission, policy, binding, verdict);
            refused = refused.or(first);
        }
    }
    match refused {
        Some((message, reason)) => Err(refusal(admission, object, &message, &reason)),
        None => Ok(()),
    }
}

/// A policy is stored only if its expressions are some.
pub(super) fn check_definition(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let policies = ["validatingadmissionpolicies", "mutatingadmissionpolicies"];
    let written =
        policies.iter().any(|plural| admission.creates(EXEMPT, plural) || admission.updates(EXEMPT, plural));
    let same = admission.old.is_some_and(|old| old["spec"] == object["spec"]);
    if !written || same {
        return Ok(());
    }
    let errors = definition::problems(object);
    if errors.is_empty() {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    Err(ApiError::invalid(admission.kind, name, &errors))
}

fn validate_with(request: &Request<'_>, policy: &Policy, document: &Value, params: &[Value]) -> Verdict {
    let mut all = Verdict::default();
    for params in params {
        let authorizer = |calls: &Calls| authorizer::answer(request.admission, &request.name, calls);
        all.extend(decide::validate(policy, &request.documents(document, params, &authorizer)));
    }
    all
}

/// Does what a binding wants done; the first reason for a refusal, if it wants one.
fn enforce(
    admission: &Admission<'_>,
    policy: &Policy,
    binding: &Binding,
    verdict: Verdict,
) -> Option<(String, String)> {
    let (name, bound) = (&policy.name, &binding.name);
    for (key, value) in verdict.annotations {
        admission.notes.annotate(format!("{name}/{key}"), value);
    }
    let mut refused = None;
    for Refusal { message, reason } in verdict.refusals {
        for action in &binding.actions {
            match action.as_str() {
                "Deny" if refused.is_none() => {
                    let message = format!(
                        "ValidatingAdmissionPolicy '{name}' with binding '{bound}' denied request: {message}"
                    );
                    refused = Some((message, reason.clone()));
                }
                "Warn" => admission.notes.warn(&format!(
                    "Validation failed for ValidatingAdmissionPolicy '{name}' with binding '{bound}': {message}"
                )),
                "Audit" => {
                    let failure = json!([{
                        "message": message, "policy": name, "binding": bound, "validationActions": binding.actions,
                    }]);
                    let key = "validation.policy.admission.k8s.io/validation_failure".to_owned();
                    admission.notes.annotate(key, failure.to_string());
                }
                _ => {}
            }
        }
    }
    refused
}

fn refusal(admission: &Admission<'_>, object: &Value, message: &str, reason: &str) -> ApiError {
    let mut error = admission.forbidden(object, message);
    (error.reason, error.code) = match reason {
        "Forbidden" => ("Forbidden", StatusCode::FORBIDDEN),
        "Unauthorized" => ("Unauthorized", StatusCode::UNAUTHORIZED),
        "RequestEntityTooLarge" => ("RequestEntityTooLarge", StatusCode::PAYLOAD_TOO_LARGE),
        _ => ("Invalid", StatusCode::UNPROCESSABLE_ENTITY),
    };
    if let Some(details) = &mut error.details {
        details["causes"] = json!([{"message": message}]);
    }
    error
}

/// Changes an object as policies want it. A policy that wants to see the changes of later ones is asked once more.
pub(super) fn mutate(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    let compiled = admission.server.policies.current();
    let writes = matches!(admission.operation, Operation::Create | Operation::Update);
    if compiled.mutating.is_empty() || is_exempt(admission) || !writes {
        return Ok(());
    }
    let mut seen: Vec<Option<Value>> = Vec::new();
    for policy in &compiled.mutating {
        let applied = mutate_by(admission, policy, object)?;
        seen.push((applied && policy.again).then(|| object.clone()));
    }
    for (policy, seen) in compiled.mutating.iter().zip(seen) {
        if seen.is_some_and(|seen| seen != *object) {
            mutate_by(admission, policy, object)?;
        }
    }
    Ok(())
}

/// Whether the policy had a word.
fn mutate_by(admission: &Admission<'_>, policy: &Policy, object: &mut Value) -> Result<bool, ApiError> {
    let mut applied = false;
    let request = Request::of(admission, object);
    let mut document = admission.view.of(admission.kind, object);
    for (binding, params) in request.applicable(policy, &document.clone()) {
        let result = params.and_then(|params| {
            let mut changed = document.clone();
            for params in &params {
                let schema = admission.view.document(admission.kind).schema;
                let authorizer = |calls: &Calls| authorizer::answer(admission, &request.name, calls);
                changed = decide::mutate(policy, &request.documents(&changed, params, &authorizer), schema)?;
            }
            settle(admission, object, &document, changed)
        });
        match result {
            Ok(changed) => {
                document = changed;
                applied = true;
            }
            Err(why) if policy.strict => {
                let (name, bound) = (&policy.name, &binding.name);
                let message =
                    format!("MutatingAdmissionPolicy '{name}' with binding '{bound}' denied request: {why}");
                return Err(refusal(admission, object, &message, ""));
            }
            Err(_) => {}
        }
    }
    if applied {
        *object = admission.view.merge_into(admission.kind, object, document);
    }
    Ok(applied)
}

/// Completes a changed document and puts right what a policy may not change.
fn settle(
    admission: &Admission<'_>,
    object: &Value,
    before: &Value,
    mut changed: Value,
) -> Result<Value, String> {
    let (kind, view) = (admission.kind, admission.view);
    let schema = view.document(kind).schema;
    schema.conform(&mut changed, &mut Strictness::default()).map_err(|error| error.to_string())?;
    for field in ["apiVersion", "kind"] {
        copy_field(&mut changed, before, field);
    }
    for field in IDENTITY {
        copy_field(&mut changed["metadata"], &before["metadata"], field);
    }
    let mut whole = view.merge_into(kind, object, changed);
    kind.schema.fill_in_defaults(&mut whole);
    (kind.strategy.default)(&mut whole);
    Ok(view.of(kind, &whole))
}

/// A request as policies see it.
struct Request<'a> {
    admission: &'a Admission<'a>,
    name: String,
    /// `request` in expressions.
    attributes: Value,
    old: Value,
    other_versions: Vec<String>,
}

impl<'a> Request<'a> {
    fn of(admission: &'a Admission<'a>, object: &Value) -> Self {
        let (kind, view) = (admission.kind, admission.view);
        let name = object["metadata"]["name"].as_str().unwrap_or(admission.name).to_owned();
        let registry = admission.server.registry();
        let other_versions = registry
            .kinds()
            .iter()
            .filter(|other| {
                other.group == kind.group && other.plural == kind.plural && other.version != kind.version
            })
            .map(|other| other.version.to_string())
            .collect();
        let old = admission.old.map(|old| view.of(kind, old)).unwrap_or_default();
        let attributes = attributes(admission, object, &name);
        Self { admission, name, attributes, old, other_versions }
    }

    fn documents<'b>(
        &'b self,
        object: &'b Value,
        params: &'b Value,
        authorizer: Authorizer<'b>,
    ) -> Documents<'b> {
        let namespace = self.admission.namespace_object();
        Documents { object, old: &self.old, request: &self.attributes, params, namespace, authorizer }
    }

    /// The bindings under which a policy has a word, with the parameters for each, or why there are none.
    fn applicable<'p>(
        &self,
        policy: &'p Policy,
        document: &Value,
    ) -> Vec<(&'p Binding, Result<Vec<Value>, String>)> {
        let admission = self.admission;
        let is_namespace = admission.is("", "namespaces");
        let versions: Vec<&str> = self.other_versions.iter().map(String::as_str).collect();
        let question = Question {
            operation: admission.operation,
            group: &admission.kind.group,
            version: &admission.kind.version,
            other_versions: &versions,
            resource: &admission.kind.plural,
            subresource: admission.subresource,
            namespace: admission.namespace,
            name: &self.name,
        };
        let object = Some(document).filter(|document| !document.is_null());
        let namespace = match object {
            _ if !is_namespace => admission.namespace_object(),
            Some(object) => object,
            None => &self.old,
        };
        let labels = Labels { object, old: Some(&self.old).filter(|old| !old.is_null()), namespace };
        if !policy.matcher.matches(&question, &labels) {
            return Vec::new();
        }
        let bound = policy.bindings.iter().filter(|binding| binding.matcher.matches(&question, &labels));
        bound.map(|binding| (binding, self.params(policy, binding))).collect()
    }

    /// The parameters a binding names: null for a policy without, none when there are none and that is allowed.
    fn params(&self, policy: &Policy, binding: &Binding) -> Result<Vec<Value>, String> {
        let reference = &binding.param_ref;
        let Some((api_version, kind_name)) = policy.param_kind.as_ref().filter(|_| !reference.is_null())
        else {
            return Ok(vec![Value::Null]);
        };
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let registry = self.admission.server.registry();
        let Some(kind) = registry.find_kind(group, version, kind_name) else {
            return Err(format!(
                "failed to find resource referenced by paramKind: '{api_version}, Kind={kind_name}'"
            ));
        };
        let asked = reference["namespace"].as_str().unwrap_or_default();
        let namespace = match (kind.namespaced(), asked) {
            (true, "") if self.admission.namespace.is_empty() => {
                return Err(
                    "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                        .to_owned(),
                );
            }
            (true, "") => self.admission.namespace,
            (false, asked) if !asked.is_empty() => {
                return Err(
                    "paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()
                );
            }
            (_, asked) => asked,
        };
        let found: Vec<Value> = match reference["name"].as_str().filter(|name| !name.is_empty()) {
            Some(name) => self
                .admission
                .cached(kind.stored_resource(), &kind.store_key(namespace, name))
                .into_iter()
                .collect(),
            None => {
                let selector = LabelSelector::from_object(Some(&reference["selector"]));
                let all = self.admission.cached_list(kind.stored_resource(), &kind.store_key(namespace, ""));
                let selected = |param: &Value| selector.matches_value(param.pointer("/metadata/labels"));
                all.into_iter().filter(selected).collect()
            }
        };
        if found.is_empty() && reference["parameterNotFoundAction"] != "Allow" {
            return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
        }
        Ok(found)
    }
}

/// `AdmissionRequest` without its objects.
fn attributes(admission: &Admission<'_>, object: &Value, name: &str) -> Value {
    let kind = admission.kind;
    let document = admission.view.document(kind);
    let (mut api_version, mut document_kind) = (document.api_version, document.kind);
    if admission.subresource != admission.view.subresource() {
        // The document of an action says itself what it is.
        api_version = object["apiVersion"].as_str().unwrap_or(api_version);
        document_kind = object["kind"].as_str().unwrap_or(document_kind);
    }
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let document = json!({"group": group, "version": version, "kind": document_kind});
    let resource = json!({"group": kind.group, "version": kind.version, "resource": kind.plural});
    let namespace = if admission.is("", "namespaces") { name } else { admission.namespace };
    json!({
        "kind": document,
        "resource": resource,
        "subResource": admission.subresource,
        "requestKind": document,
        "requestResource": resource,
        "requestSubResource": admission.subresource,
        "name": name,
        "namespace": namespace,
        "operation": admission.operation.as_str(),
        "userInfo": admission.user.info(),
        "dryRun": admission.dry_run,
    })
}
