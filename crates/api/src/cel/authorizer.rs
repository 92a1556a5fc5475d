//! `authorizer`: who may what, asked in an expression.
//!
//! A question is a value that grows with each method (`authorizer.group('apps').resource('deployments')`) and may be
//! stored and passed on like any other; `check` puts it to whoever evaluates the expression ([`Authorizer`]), and what is
//! answered is a value too. An expression language does not know who may what.
//!
//! Source: `k8s.io/apiserver/pkg/cel/library/{authz,cost}.go`.

use std::sync::Arc;

use kube_cel::cel::Value;
use kube_cel::cel::objects::Opaque;

use super::library::no_overload;
use super::values::text;
use super::{CelValue, EvalError};
use crate::names;

/// Types of these values, as expressions see them.
pub(super) const AUTHORIZER: &str = "kubernetes.authorization.Authorizer";
pub(super) const PATH: &str = "kubernetes.authorization.PathCheck";
pub(super) const GROUP: &str = "kubernetes.authorization.GroupCheck";
pub(super) const RESOURCE: &str = "kubernetes.authorization.ResourceCheck";
pub(super) const DECISION: &str = "kubernetes.authorization.Decision";

/// What one check costs: two fit into an expression, as upstream.
pub(super) const CHECK_COST: u64 = 350_000;

/// Methods of questions and answers: name, the types they belong to.
pub(super) const METHODS: &[(&str, &[&str])] = &[
    ("path", &[AUTHORIZER]),
    ("group", &[AUTHORIZER]),
    ("serviceAccount", &[AUTHORIZER]),
    ("resource", &[GROUP]),
    ("subresource", &[RESOURCE]),
    ("namespace", &[RESOURCE]),
    ("name", &[RESOURCE]),
    ("fieldSelector", &[RESOURCE]),
    ("labelSelector", &[RESOURCE]),
    ("check", &[PATH, RESOURCE]),
    ("allowed", &[DECISION]),
    ("reason", &[DECISION]),
    ("errored", &[DECISION]),
    ("error", &[DECISION]),
];

/// A question; what is empty is not asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Question {
    /// Namespace and name of a service account that is asked about instead of the user of the request.
    pub account: Option<(String, String)>,
    /// Set for addresses that are no resources.
    pub path: Option<String>,
    /// API group.
    pub group: String,
    /// Plural name.
    pub resource: String,
    /// Part of the resource.
    pub subresource: String,
    /// Empty for the whole cluster.
    pub namespace: String,
    /// Name of an object.
    pub name: String,
    /// As it was written; not necessarily one.
    pub field_selector: String,
    /// As it was written; not necessarily one.
    pub label_selector: String,
    /// What is to be done.
    pub verb: String,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Why, if that is known.
    pub reason: String,
    /// Why there is no answer.
    pub error: Option<String>,
}

/// Who answers the questions of an expression.
pub trait Authorizer {
    /// What `authorizer.requestResource` stands for: the resource of the request, no verb yet.
    fn request_resource(&self) -> Question;
    /// Answers.
    fn decide(&self, question: &Question) -> Decision;
}

/// A question that is not finished.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asking {
    /// Which methods it has.
    type_: &'static str,
    question: Question,
    /// What `requestResource` of the variable stands for.
    request: Option<Box<Question>>,
}

impl Opaque for Asking {
    fn runtime_type_name(&self) -> &str {
        self.type_
    }
}

impl Opaque for Decision {
    fn runtime_type_name(&self) -> &str {
        DECISION
    }
}

impl CelValue {
    /// The variable `authorizer` for expressions that somebody answers.
    pub fn authorizer(authorizer: &dyn Authorizer) -> Self {
        let request = Some(Box::new(authorizer.request_resource()));
        Self(opaque(Asking { type_: AUTHORIZER, question: Question::default(), request }))
    }
}

/// Bytes of a question or an answer, nothing for other values: what a copy costs.
pub(super) fn length(value: &Value) -> u64 {
    let Value::Opaque(opaque) = value else { return 0 };
    if let Some(Decision { reason, error, .. }) = opaque.downcast_ref::<Decision>() {
        return (reason.len() + error.as_ref().map_or(0, String::len)) as u64;
    }
    opaque.downcast_ref::<Asking>().map_or(0, |asking| asking.question.length() as u64)
}

impl Question {
    fn length(&self) -> usize {
        let texts = [
            &self.group,
            &self.resource,
            &self.subresource,
            &self.namespace,
            &self.name,
            &self.field_selector,
            &self.label_selector,
        ];
        let account = self.account.as_ref().map_or(0, |(namespace, name)| namespace.len() + name.len());
        texts.iter().map(|text| text.len()).sum::<usize>()
            + account
            + self.path.as_ref().map_or(0, String::len)
    }
}

fn opaque(value: impl Opaque + 'static) -> Value {
    Value::Opaque(Arc::new(value))
}

fn as_asking(value: &Value) -> Option<&Asking> {
    match value {
        Value::Opaque(opaque) => opaque.downcast_ref::<Asking>(),
        _ => None,
    }
}

/// `authorizer.requestResource`; nothing for other values and fields.
pub(super) fn field(value: &Value, name: &str) -> Option<Value> {
    let asking = as_asking(value).filter(|_| name == "requestResource")?;
    let question = Question::clone(asking.request.as_deref()?);
    Some(opaque(Asking { type_: RESOURCE, question, request: None }))
}

/// Calls a method of a question or an answer; nothing for other values.
pub(super) fn call(
    method: &str,
    target: &Value,
    args: &[Value],
    authorizer: Option<&dyn Authorizer>,
) -> Result<Option<Value>, EvalError> {
    let Value::Opaque(of) = target else { return Ok(None) };
    if let Some(decision) = of.downcast_ref::<Decision>() {
        return Ok(Some(match method {
            "allowed" => Value::Bool(decision.allowed),
            "reason" => text(decision.reason.as_str()),
            "errored" => Value::Bool(decision.error.is_some()),
            "error" => text(decision.error.clone().unwrap_or_default()),
            _ => return Err(no_overload()),
        }));
    }
    let Some(asking) = of.downcast_ref::<Asking>() else { return Ok(None) };
    let texts: Option<Vec<&str>> = args.iter().map(as_text).collect();
    let texts = texts.ok_or_else(no_overload)?;
    if method == "check" && matches!(asking.type_, PATH | RESOURCE) {
        let authorizer = authorizer.ok_or_else(|| fail("there is nobody to ask"))?;
        let verb = texts.first().copied().unwrap_or_default().to_owned();
        return Ok(Some(opaque(authorizer.decide(&Question { verb, ..asking.question.clone() }))));
    }
    asking.with(method, &texts).map(|asking| Some(opaque(asking)))
}

fn as_text(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn fail(message: &str) -> EvalError {
    EvalError::Value(message.to_owned())
}

impl Asking {
    /// The question with one thing more in it.
    fn with(&self, method: &str, args: &[&str]) -> Result<Self, EvalError> {
        let mut next = Self { request: None, ..self.clone() };
        let question = &mut next.question;
        match (self.type_, method, args) {
            (AUTHORIZER, "path", [path]) => {
                if path.trim().is_empty() {
                    return Err(fail("path must not be empty"));
                }
                question.path = Some((*path).to_owned());
                next.type_ = PATH;
            }
            (AUTHORIZER, "group", [group]) => {
                question.group = (*group).to_owned();
                next.type_ = GROUP;
            }
            (AUTHORIZER, "serviceAccount", [namespace, name]) => {
                if !names::dns1123_subdomain(name).is_empty() {
                    return Err(fail("Invalid service account name"));
                }
                if !names::dns1123_label(namespace).is_empty() {
                    return Err(fail("Invalid service account namespace"));
                }
                question.account = Some(((*namespace).to_owned(), (*name).to_owned()));
            }
            (GROUP, "resource", [resource]) => {
                if resource.trim().is_empty() {
                    return Err(fail("resource must not be empty"));
                }
                question.resource = (*resource).to_owned();
                next.type_ = RESOURCE;
            }
            (RESOURCE, "subresource", [part]) => question.subresource = (*part).to_owned(),
            (RESOURCE, "namespace", [namespace]) => question.namespace = (*namespace).to_owned(),
            (RESOURCE, "name", [name]) => question.name = (*name).to_owned(),
            (RESOURCE, "fieldSelector", [selector]) => question.field_selector = (*selector).to_owned(),
            (RESOURCE, "labelSelector", [selector]) => question.label_selector = (*selector).to_owned(),
            _ => return Err(no_overload()),
        }
        Ok(next)
    }
}
