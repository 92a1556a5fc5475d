//! Admission policies: rules in CEL that somebody wrote into the cluster (`admissionregistration.k8s.io/v1`,
//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy, with their bindings).
//!
//! [`definition`] reads and compiles them when one has changed, ([`Latest`]); [`expression`] evaluates;
//! [`decide`] says what one policy makes of one request, without knowing the server. What is left here is who is asked,
//! where parameters come from, and what is done with the answers.
//!
//! Source of the rules and of the words: KEP-3488, KEP-3962, `k8s.io/apiserver/pkg/admission/plugin/policy`.

pub(super) mod authorizer;
mod decide;
mod definition;
pub(super) mod expression;
mod rewrite;

use std::sync::Arc;

use http::StatusCode;
use sampan_api::registry::Kind;
use sampan_api::selector::LabelSelector;
use serde_json::{Value, json};

use super::Admission;
use super::intercepted::{Intercepted, Seen};
use super::latest::Latest;
use super::reinvocation::Reinvocation;
use super::webhooks::Settle;
use crate::books::copy_field;
use crate::cache::WatchCache;
use crate::error::ApiError;
use authorizer::Asked;
use decide::{Documents, Refusal, Verdict};
use definition::{Binding, Policy};

/// Policies and bindings of both kinds.
const RESOURCES: [&str; 4] = [
    "validatingadmissionpolicies.admissionregistration.k8s.io",
    "validatingadmissionpolicybindings.admissionregistration.k8s.io",
    "mutatingadmissionpolicies.admissionregistration.k8s.io",
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io",
];
/// Group of policies.
const GROUP: &str = "admissionregistration.k8s.io";
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
    validating: Vec<Policy>,
    mutating: Vec<Policy>,
}

impl Compiled {
    fn read([validating, validating_bound, mutating, mutating_bound]: [Vec<Value>; 4]) -> Self {
        Self {
            validating: bound(&validating, &validating_bound),
            mutating: bound(&mutating, &mutating_bound),
        }
    }
}

/// Policies without a binding hold nowhere and are not compiled.
fn bound(policies: &[Value], bindings: &[Value]) -> Vec<Policy> {
    let is_bound = |policy: &&Value| {
        bindings.iter().any(|binding| binding["spec"]["policyName"] == policy["metadata"]["name"])
    };
    policies.iter().filter(is_bound).map(|policy| Policy::read(policy, bindings)).collect()
}

/// What has been asked so far about one object: places of policies and bindings, and the parameters they were asked with.
pub(super) struct Round {
    compiled: Arc<Compiled>,
    pub(super) again: Reinvocation<(usize, usize, String)>,
}

/// All policies of the cluster.
pub(crate) struct Policies {
    compiled: Latest<Compiled, 4>,
}

impl Policies {
    pub(crate) fn new(cache: Arc<WatchCache>) -> Self {
        Self { compiled: Latest::new(cache, RESOURCES, Compiled::read) }
    }

    /// Whether anybody may have a word at all. Cheap: every write asks.
    pub(super) fn exist(&self) -> bool {
        let current = self.compiled.get();
        !current.mutating.is_empty() || !current.validating.is_empty()
    }

    /// Begins to ask mutating policies, if there are some.
    pub(super) fn round(&self) -> Option<Round> {
        let compiled = self.compiled.get();
        (!compiled.mutating.is_empty()).then(|| Round { compiled, again: Reinvocation::default() })
    }
}

/// Refuses what a policy does not allow; `document` is `None` when something is deleted.
pub(super) async fn validate(
    admission: &Admission<'_>,
    request: &Intercepted<'_>,
    document: Option<&Value>,
) -> Result<(), ApiError> {
    let compiled = admission.server.policies.compiled.get();
    if request.is_exempt() {
        return Ok(());
    }
    let mut refused = None;
    for policy in &compiled.validating {
        let Some((matched, bindings)) = applicable(admission, request, policy, document).await else {
            continue;
        };
        if bindings.is_empty() {
            continue;
        }
        let seen = request.seen(admission.server, matched, document).await;
        for (_, binding, params) in bindings {
            let verdict = match (&seen, params) {
                (Ok(seen), Ok(params)) => validate_with(admission, request, policy, seen, &params),
                (Err(error), _) => Verdict::failed(policy, error.message.clone()),
                (_, Err(why)) => Verdict::failed(policy, why),
            };
            let first = enforce(admission, policy, binding, verdict);
            refused = refused.or(first);
        }
    }
    match refused {
        Some((message, reason)) => Err(refusal(request, &message, &reason)),
        None => Ok(()),
    }
}

/// A policy is stored only if its expressions are some.
pub(super) fn check_definition(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let policies = ["validatingadmissionpolicies", "mutatingadmissionpolicies"];
    let written =
        policies.iter().any(|plural| admission.creates(GROUP, plural) || admission.updates(GROUP, plural));
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

fn validate_with(
    admission: &Admission<'_>,
    request: &Intercepted<'_>,
    policy: &Policy,
    seen: &Seen<'_>,
    params: &[Value],
) -> Verdict {
    let mut all = Verdict::default();
    let description = request.description(seen.kind);
    let authorizer = Asked { admission, name: request.name };
    for params in params {
        let documents = Documents {
            object: seen.object.as_deref().unwrap_or(&Value::Null),
            old: seen.old.as_deref().unwrap_or(&Value::Null),
            request: &description,
            params,
            namespace: admission.namespace_object(),
            authorizer: &authorizer,
        };
        all.extend(decide::validate(policy, &documents));
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

fn refusal(request: &Intercepted<'_>, message: &str, reason: &str) -> ApiError {
    let mut error = ApiError::forbidden(&request.kind.group, &request.kind.plural, request.name, message);
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

/// Changes a document as policies want it.
pub(super) async fn mutate(
    round: &mut Round,
    admission: &Admission<'_>,
    request: &Intercepted<'_>,
    document: &mut Option<Value>,
    settle: Settle<'_>,
) -> Result<(), ApiError> {
    let compiled = round.compiled.clone();
    if request.is_exempt() {
        return Ok(());
    }
    let Some(document) = document else { return Ok(()) };
    for place in 0..compiled.mutating.len() {
        mutate_by(round, place, admission, request, document, settle).await?;
    }
    round.again.end(Some(document));
    Ok(())
}

/// Asks one policy, once for each binding and each of its parameters.
async fn mutate_by(
    round: &mut Round,
    place: usize,
    admission: &Admission<'_>,
    request: &Intercepted<'_>,
    document: &mut Value,
    settle: Settle<'_>,
) -> Result<(), ApiError> {
    let compiled = round.compiled.clone();
    let Some(policy) = compiled.mutating.get(place) else { return Ok(()) };
    if !round.again.wants_some(|(of, _, _)| *of == place) {
        return Ok(());
    }
    let Some((matched, bindings)) = applicable(admission, request, policy, Some(document)).await else {
        return Ok(());
    };
    let denied = |binding: &Binding, why: &str| {
        let (name, bound) = (&policy.name, &binding.name);
        let message =
            format!("MutatingAdmissionPolicy '{name}' with binding '{bound}' denied request: {why}");
        if policy.strict { Err(refusal(request, &message, "")) } else { Ok(()) }
    };
    for (at, binding, params) in bindings {
        let params = match params {
            Ok(params) => params,
            Err(why) => {
                denied(binding, &why)?;
                continue;
            }
        };
        for params in &params {
            let key = (place, at, params["metadata"]["name"].as_str().unwrap_or_default().to_owned());
            if !round.again.wants(&key) {
                continue;
            }
            match changed(admission, request, policy, matched, document, params, settle).await {
                Ok(None) => continue,
                Ok(Some(changed)) if changed != *document => {
                    *document = changed;
                    round.again.change();
                }
                Ok(Some(_)) => {}
                Err(why) => denied(binding, &why)?,
            }
            if policy.again {
                round.again.ask(key);
            }
        }
    }
    Ok(())
}

/// The document as a policy wants it; nothing when its conditions do not hold.
async fn changed(
    admission: &Admission<'_>,
    request: &Intercepted<'_>,
    policy: &Policy,
    matched: &Kind,
    document: &Value,
    params: &Value,
    settle: Settle<'_>,
) -> Result<Option<Value>, String> {
    let said = |error: ApiError| error.message;
    let seen = request.seen(admission.server, matched, Some(document)).await.map_err(said)?;
    let Some(mut changed) = mutate_with(admission, request, policy, &seen, params)? else { return Ok(None) };
    let before = seen.object.as_deref().unwrap_or(&Value::Null);
    if changed == *before {
        return Ok(Some(document.clone()));
    }
    keep_identity(&mut changed, before)?;
    let mut own = request.own_form(admission.server, matched, changed).await.map_err(said)?;
    settle(&mut own).map_err(said)?;
    Ok(Some(own))
}

/// Puts back what a policy may not change.
fn keep_identity(changed: &mut Value, before: &Value) -> Result<(), String> {
    let Some(fields) = changed.as_object_mut() else {
        return Err("the object is none any more".to_owned());
    };
    for field in ["apiVersion", "kind"] {
        fields.insert(field.to_owned(), before[field].clone());
    }
    if !before["metadata"].is_object() {
        return Ok(());
    }
    let metadata = fields.entry("metadata").or_insert_with(|| json!({}));
    if metadata.is_null() {
        *metadata = json!({});
    }
    // Anything else is refused when the document is conformed to its type.
    if metadata.is_object() {
        IDENTITY.iter().for_each(|field| copy_field(metadata, &before["metadata"], field));
    }
    Ok(())
}

fn mutate_with(
    admission: &Admission<'_>,
    request: &Intercepted<'_>,
    policy: &Policy,
    seen: &Seen<'_>,
    params: &Value,
) -> Result<Option<Value>, String> {
    let authorizer = Asked { admission, name: request.name };
    let documents = Documents {
        object: seen.object.as_deref().unwrap_or(&Value::Null),
        old: seen.old.as_deref().unwrap_or(&Value::Null),
        request: &request.description(seen.kind),
        params,
        namespace: admission.namespace_object(),
        authorizer: &authorizer,
    };
    decide::mutate(policy, &documents, request.schema_of(seen.kind))
}

/// Parameters of a binding, or why there are none.
type Params = Result<Vec<Value>, String>;

/// The resource by which a policy means a request, and the bindings under which it has a word, each with its place.
async fn applicable<'a, 'p>(
    admission: &Admission<'_>,
    request: &'a Intercepted<'_>,
    policy: &'p Policy,
    document: Option<&Value>,
) -> Option<(&'a Kind, Vec<(usize, &'p Binding, Params)>)> {
    let labels = request.labels(document, admission.namespace_object());
    let matched = policy.matcher.matches(request, &labels)?;
    let mut bound = Vec::new();
    for (at, binding) in policy.bindings.iter().enumerate() {
        if binding.matcher.matches(request, &labels).is_some() {
            bound.push((at, binding, params(admission, policy, binding).await));
        }
    }
    Some((matched, bound))
}

/// The parameters a binding names: null for a policy without, none when there are none and that is allowed.
async fn params(admission: &Admission<'_>, policy: &Policy, binding: &Binding) -> Params {
    let reference = &binding.param_ref;
    let Some((api_version, kind_name)) = policy.param_kind.as_ref().filter(|_| !reference.is_null()) else {
        return Ok(vec![Value::Null]);
    };
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let registry = admission.server.registry();
    let Some(kind) = registry.find_kind(group, version, kind_name) else {
        return Err(format!(
            "failed to find resource referenced by paramKind: '{api_version}, Kind={kind_name}'"
        ));
    };
    let asked = reference["namespace"].as_str().unwrap_or_default();
    let namespace = match (kind.namespaced(), asked) {
        (true, "") if admission.namespace.is_empty() => {
            return Err(
                "cannot use namespaced paramRef in policy binding that matches cluster-scoped resources"
                    .to_owned(),
            );
        }
        (true, "") => admission.namespace,
        (false, asked) if !asked.is_empty() => {
            return Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned());
        }
        (_, asked) => asked,
    };
    let found: Vec<Value> = match reference["name"].as_str().filter(|name| !name.is_empty()) {
        Some(name) => {
            let key = kind.store_key(namespace, name);
            admission.cached(kind.stored_resource(), &key).into_iter().collect()
        }
        None => {
            let selector = LabelSelector::from_object(Some(&reference["selector"]));
            let all = admission.cached_list(kind.stored_resource(), &kind.store_key(namespace, ""));
            let selected = |param: &Value| selector.matches_value(param.pointer("/metadata/labels"));
            all.into_iter().filter(selected).collect()
        }
    };
    if found.is_empty() && reference["parameterNotFoundAction"] != "Allow" {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    let mut params = Vec::with_capacity(found.len());
    for param in found {
        let shown = admission.server.out_of_storage(kind, param).await;
        params.push(shown.map_err(|error| error.message)?);
    }
    Ok(params)
}
