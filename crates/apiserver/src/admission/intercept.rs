//! Where webhooks join the pipeline: from an admission request to what webhooks see, and back into the object.

use sampan_api::decode::Strictness;
use sampan_api::kind::Subresource;
use sampan_api::registry::{Kind, Stored};
use sampan_api::schema::Schema;
use serde_json::Value;

use super::webhooks::{Intercepted, Settle};
use super::{Admission, Notes, Operation};
use crate::books::{copy_field, keep_books};
use crate::discovery::subresource_facts;
use crate::error::ApiError;
use crate::server::ApiServer;
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

/// Lets mutating webhooks change an object; the server's own steps follow once more, and then those webhooks that want
/// to see what has changed since.
pub(super) async fn mutate(
    admission: &Admission<'_>,
    object: &mut Value,
    complete: fn(&Admission<'_>, &mut Value) -> Result<(), ApiError>,
) -> Result<bool, ApiError> {
    let webhooks = &admission.server.webhooks;
    if !admission.call.intercepted || !webhooks.exist() {
        return Ok(false);
    }
    let (kind, view) = (&**admission.kind, admission.view);
    let base = object.clone();
    let settle = |document: &mut Value| {
        let mut whole = view.merge_into(kind, &base, document.take());
        settle_object(admission, &base, &mut whole)?;
        *document = view.of(kind, &whole);
        Ok(())
    };
    let name = name_of(object);
    let request = admission.intercepted(&name);
    let mut document = Some(view.of(kind, object));
    let mut round = webhooks.round();
    let notes = &admission.call.notes;
    if !webhooks.mutate(&mut round, &request, &mut document, notes, &settle).await? {
        return Ok(false);
    }
    take(kind, view, object, document);
    let before = object.clone();
    complete(admission, object)?;
    round.next(before != *object);
    let mut document = Some(view.of(kind, object));
    if webhooks.mutate(&mut round, &request, &mut document, notes, &settle).await? {
        take(kind, view, object, document);
    }
    Ok(true)
}

fn take(kind: &Kind, view: View, object: &mut Value, document: Option<Value>) {
    if let Some(document) = document {
        *object = view.merge_into(kind, object, document);
    }
}

/// Asks validating webhooks.
pub(super) async fn validate(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let webhooks = &admission.server.webhooks;
    if !admission.call.intercepted || !webhooks.exist() {
        return Ok(());
    }
    let (name, document) = (name_of(object), admission.view.of(admission.kind, object));
    webhooks.validate(&admission.intercepted(&name), Some(&document), &admission.call.notes).await
}

/// Asks everybody about a deletion.
pub(super) async fn delete(admission: &Admission<'_>, old: &Value, options: Value) -> Result<(), ApiError> {
    if !admission.call.intercepted || !admission.server.webhooks.exist() {
        return Ok(());
    }
    let name = name_of(old);
    let mut request = admission.intercepted(&name);
    request.dry_run |= options["dryRun"].is_array();
    request.options = options;
    ask(admission.server, &request, None, &admission.call.notes, &|_| Ok(())).await.map(|_| ())
}

/// Asks everybody about an action. Without a `schema` the action is done as the client asked for it, so a webhook that
/// wants it otherwise must refuse it.
pub(super) async fn action(
    admission: &Admission<'_>,
    subresource: Subresource,
    schema: Option<&Schema>,
    mut document: Value,
) -> Result<Value, ApiError> {
    if !admission.call.intercepted || !admission.server.webhooks.exist() {
        return Ok(document);
    }
    let mut request = admission.intercepted(admission.call.name);
    (_, request.document) = subresource_facts(admission.kind, subresource);
    if admission.operation == Operation::Connect {
        request.options = Value::Null;
    }
    name_document(&mut document, &request);
    let settle = |document: &mut Value| match schema {
        Some(schema) => conform(schema, document, subresource.as_str()),
        None => Err(ApiError::internal(
            "a webhook attempted to modify the object, which is not supported for this operation",
        )),
    };
    let answer = ask(admission.server, &request, Some(document), &admission.call.notes, &settle).await?;
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

/// Mutating webhooks, then validating ones, about a document that no rule of a kind completes.
async fn ask(
    server: &ApiServer,
    request: &Intercepted<'_>,
    mut document: Option<Value>,
    notes: &Notes,
    settle: Settle<'_>,
) -> Result<Option<Value>, ApiError> {
    let webhooks = &server.webhooks;
    let mut round = webhooks.round();
    webhooks.mutate(&mut round, request, &mut document, notes, settle).await?;
    webhooks.validate(request, document.as_ref(), notes).await?;
    Ok(document)
}

/// Other versions of the resource whose documents differ in their `apiVersion` only.
fn other_versions(server: &ApiServer, kind: &Kind) -> Vec<String> {
    let is_relabelled = |kind: &Kind| match &kind.stored_as {
        Stored::AsIs => true,
        Stored::As(_) => false,
        Stored::Custom(custom) => custom.webhook.is_none(),
    };
    if !is_relabelled(kind) {
        return Vec::new();
    }
    let registry = server.registry();
    let others = registry
        .kinds()
        .iter()
        .filter(|k| k.group == kind.group && k.plural == kind.plural && k.version != kind.version);
    others.filter(|k| is_relabelled(k)).map(|k| k.version.to_string()).collect()
}

impl Admission<'_> {
    /// The request as webhooks see it.
    fn intercepted<'b>(&'b self, name: &'b str) -> Intercepted<'b> {
        let document = self.view.document(self.kind);
        let (group, version) = document.api_version.split_once('/').unwrap_or(("", document.api_version));
        Intercepted {
            operation: self.operation,
            kind: self.kind,
            other_versions: other_versions(self.server, self.kind),
            document: (group.to_owned(), version.to_owned(), document.kind.to_owned()),
            subresource: self.subresource,
            namespace: if self.is("", "namespaces") { name } else { self.namespace },
            name,
            user: self.user,
            dry_run: self.dry_run,
            options: self.call.options(self.operation),
            old: self.old.map(|old| self.view.of(self.kind, old)),
            admission: Some(self),
        }
    }
}

fn name_of(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// Puts right what a patch may not change and completes what it has brought.
fn settle_object(admission: &Admission<'_>, base: &Value, object: &mut Value) -> Result<(), ApiError> {
    let kind = admission.kind;
    conform(&kind.schema, object, &kind.kind)?;
    for field in ["apiVersion", "kind"] {
        if object[field] != base[field] {
            return Err(ApiError::internal(format!(
                "a webhook attempted to change the {field} of an object"
            )));
        }
    }
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
