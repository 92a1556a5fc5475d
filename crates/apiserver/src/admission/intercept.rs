//! Where policies and webhooks join the pipeline: from an admission request to what they see, and back into the object.
//!
//! In upstream's order: policies change an object before webhooks do, and judge it before webhooks do.

use sampan_api::decode::Strictness;
use sampan_api::kind::Subresource;
use sampan_api::schema::Schema;
use serde_json::Value;

use super::intercepted::Intercepted;
use super::policy;
use super::webhooks::{self, Settle};
use super::{Admission, complete};
use crate::books::{copy_field, keep_books};
use crate::error::ApiError;
use crate::view::View;

/// What the server alone writes into the metadata of a new object.
const SERVER_METADATA: &[&str] = &[
    "uid",
    "creationTimestamp",
    "generation",
    "resourceVersion",
    "selfLink",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "managedFields",
];

/// Those who may have a word about a request.
#[derive(Clone, Copy)]
struct Audience {
    policies: bool,
    webhooks: bool,
}

impl Audience {
    /// Cheap: every write asks. What the server itself writes is no business of webhooks.
    fn of(admission: &Admission<'_>) -> Self {
        Self {
            policies: admission.server.policies.exist() && admission.view != View::Binding,
            webhooks: admission.call.intercepted && admission.server.webhooks.exist(),
        }
    }

    fn is_empty(self) -> bool {
        !self.policies && !self.webhooks
    }
}

/// Who was asked to change a document, and who wants to be asked again.
struct Rounds {
    policies: Option<policy::Round>,
    webhooks: Option<webhooks::Round>,
}

impl Rounds {
    fn new(admission: &Admission<'_>, audience: Audience) -> Self {
        Self {
            policies: audience.policies.then(|| admission.server.policies.round()).flatten(),
            webhooks: audience.webhooks.then(|| admission.server.webhooks.round()).flatten(),
        }
    }

    fn is_empty(&self) -> bool {
        self.policies.is_none() && self.webhooks.is_none()
    }

    /// One round: policies, then webhooks.
    async fn ask(
        &mut self,
        admission: &Admission<'_>,
        request: &Intercepted<'_>,
        document: &mut Option<Value>,
        settle: Settle<'_>,
        second: bool,
    ) -> Result<(), ApiError> {
        if let Some(round) = &mut self.policies {
            if second {
                round.again.next(document.as_ref());
            }
            policy::mutate(round, admission, request, document, settle).await?;
        }
        if let Some(round) = &mut self.webhooks {
            if second {
                round.again.next(document.as_ref());
            }
            let webhooks = &admission.server.webhooks;
            webhooks.mutate(round, admission, request, document, settle).await?;
        }
        Ok(())
    }

    fn changed(&self) -> bool {
        self.policies.as_ref().is_some_and(|round| round.again.changed())
            || self.webhooks.as_ref().is_some_and(|round| round.again.changed())
    }
}

/// Lets policies and webhooks change an object; if one does, the server's own steps follow once more, and then those
/// who want to see what has changed since.
pub(super) async fn mutate(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    let audience = Audience::of(admission);
    if audience.is_empty() {
        return Ok(());
    }
    let rounds = Rounds::new(admission, audience);
    if rounds.is_empty() {
        return Ok(());
    }
    // Boxed here and below: what most writes do not need should not make the state of each of them large.
    Box::pin(mutate_by(admission, rounds, object)).await
}

async fn mutate_by(
    admission: &Admission<'_>,
    mut rounds: Rounds,
    object: &mut Value,
) -> Result<(), ApiError> {
    admission.load_namespace().await?;
    let name = name_of(object);
    let request = Intercepted::of(admission, &name);
    mutate_once(&mut rounds, admission, &request, object, false).await?;
    if rounds.changed() {
        complete(admission, object)?;
        mutate_once(&mut rounds, admission, &request, object, true).await?;
    }
    Ok(())
}

async fn mutate_once(
    rounds: &mut Rounds,
    admission: &Admission<'_>,
    request: &Intercepted<'_>,
    object: &mut Value,
    second: bool,
) -> Result<(), ApiError> {
    let (kind, view) = (admission.kind, admission.view);
    let base = object.clone();
    let settle = |document: &mut Value| {
        let mut whole = view.merge_into(kind, &base, document.take());
        settle_object(admission, &base, &mut whole)?;
        *document = view.of(kind, &whole);
        Ok(())
    };
    let before = view.of(kind, object);
    let mut document = Some(before.clone());
    rounds.ask(admission, request, &mut document, &settle, second).await?;
    if let Some(document) = document.filter(|document| *document != before) {
        *object = view.merge_into(kind, object, document);
    }
    Ok(())
}

/// Asks policies, then webhooks, whether an object may be so.
pub(super) async fn validate(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let audience = Audience::of(admission);
    if audience.is_empty() {
        return Ok(());
    }
    admission.load_namespace().await?;
    let (name, document) = (name_of(object), admission.view.of(admission.kind, object));
    let request = Intercepted::of(admission, &name);
    Box::pin(judge(admission, audience, &request, Some(&document))).await
}

/// Asks everybody about a deletion.
pub(super) async fn delete(admission: &Admission<'_>, old: &Value, options: Value) -> Result<(), ApiError> {
    let audience = Audience::of(admission);
    if audience.is_empty() {
        return Ok(());
    }
    admission.load_namespace().await?;
    let name = name_of(old);
    let mut request = Intercepted::of(admission, &name);
    request.dry_run |= options["dryRun"].is_array();
    request.options = options;
    Box::pin(ask(admission, audience, &request, None, &|_| Ok(()))).await.map(|_| ())
}

/// Asks everybody about an action; what they made of its document, whose type is `schema`.
pub(super) async fn action(
    admission: &Admission<'_>,
    subresource: Subresource,
    schema: &Schema,
    mut document: Value,
) -> Result<Value, ApiError> {
    let audience = Audience::of(admission);
    if audience.is_empty() {
        return Ok(document);
    }
    admission.load_namespace().await?;
    let request = Intercepted::of_action(admission, subresource, schema);
    name_document(&mut document, &request);
    let settle = |document: &mut Value| conform(schema, document, subresource.as_str());
    let answer = Box::pin(ask(admission, audience, &request, Some(document), &settle)).await?;
    Ok(answer.unwrap_or_default())
}

fn name_document(document: &mut Value, request: &Intercepted<'_>) {
    let (group, version, kind) = &request.document;
    if let Some(fields) = document.as_object_mut() {
        let api_version = if group.is_empty() { version.clone() } else { format!("{group}/{version}") };
        fields.insert("kind".to_owned(), kind.clone().into());
        fields.insert("apiVersion".to_owned(), api_version.into());
    }
}

/// A patch may have made anything of a document.
fn conform(schema: &Schema, document: &mut Value, what: &str) -> Result<(), ApiError> {
    let no_longer = |why: String| {
        ApiError::internal(format!("a webhook has made something of the object that is no {what}: {why}"))
    };
    // A type the table does not know fits anything.
    if !document.is_object() {
        return Err(no_longer("it is no object".to_owned()));
    }
    let conformed = schema.conform(document, &mut Strictness::default());
    conformed.map_err(|error| no_longer(error.to_string()))
}

/// Changes and judges a document that no rule of a kind completes.
async fn ask(
    admission: &Admission<'_>,
    audience: Audience,
    request: &Intercepted<'_>,
    mut document: Option<Value>,
    settle: Settle<'_>,
) -> Result<Option<Value>, ApiError> {
    let mut rounds = Rounds::new(admission, audience);
    rounds.ask(admission, request, &mut document, settle, false).await?;
    if rounds.changed() {
        rounds.ask(admission, request, &mut document, settle, true).await?;
    }
    judge(admission, audience, request, document.as_ref()).await?;
    Ok(document)
}

async fn judge(
    admission: &Admission<'_>,
    audience: Audience,
    request: &Intercepted<'_>,
    document: Option<&Value>,
) -> Result<(), ApiError> {
    if audience.policies {
        policy::validate(admission, request, document).await?;
    }
    if audience.webhooks {
        admission.server.webhooks.validate(admission, request, document).await?;
    }
    Ok(())
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// Puts right what a change may not touch and completes what it has brought.
fn settle_object(admission: &Admission<'_>, base: &Value, object: &mut Value) -> Result<(), ApiError> {
    let kind = admission.kind;
    conform(&kind.schema, object, &kind.kind)?;
    if object["metadata"]["namespace"] != base["metadata"]["namespace"] {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    match admission.old {
        None => SERVER_METADATA
            .iter()
            .for_each(|field| copy_field(&mut object["metadata"], &base["metadata"], field)),
        Some(old) => {
            copy_field(&mut object["metadata"], &base["metadata"], "managedFields");
            keep_books(object, old);
        }
    }
    if admission.view == View::Object {
        if kind.has(Subresource::Status) && (admission.old.is_some() || !kind.status_on_create) {
            copy_field(object, base, "status");
        }
        match admission.old {
            Some(old) => (kind.strategy.prepare_update)(object, old),
            None => (kind.strategy.prepare_create)(object),
        }
    }
    kind.schema.fill_in_defaults(object);
    (kind.strategy.default)(object);
    Ok(())
}
