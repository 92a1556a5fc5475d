//! The way of a write: decode, default, admit, validate, keep the books, encode once, commit.
//!
//! Create, update, patch and apply differ only in how the wanted document comes about; from there one path leads to the
//! store. Everything that is true for one kind only stands in its row.

use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use jiff::Timestamp;
use sampan_api::decode::{DecodeError, Strictness};
use sampan_api::field::{Errors, Path};
use sampan_api::kind::Subresource;
use sampan_api::metadata;
use sampan_api::patch::apply::{self, Applied, Manager, Merged};
use sampan_api::patch::{self, PatchError, strategic};
use sampan_api::registry::{Kind, Stored};
use sampan_api::schema::Schema;
use sampan_store::{Compare, KeyValue, Op, Transaction, TransactionResult};
use serde_json::{Value, json};
use tracing::Instrument as _;

use crate::admission::{self, Admission, Notes, Operation};
use crate::auth::User;
use crate::books::{
    copy_field, durability, generate_name, is_finished, keep_books, manager_of, new_books, same_object,
    same_spec, seconds,
};
use crate::encode;
use crate::error::ApiError;
use crate::request::Query;
use crate::server::ApiServer;
use crate::traces::part;
use crate::versions::is_current_form;
use crate::view::{DocumentType, View};

/// How often a server-made change is retried after somebody else was faster.
const MAX_CONFLICTS: usize = 64;

/// How many generated names may be taken before a create gives up.
const MAX_TAKEN: usize = 8;

/// What to do about fields nobody knows (`fieldValidation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// A write request without its body.
pub(crate) struct WriteCall<'a> {
    pub(crate) kind: &'a Arc<Kind>,
    pub(crate) namespace: &'a str,
    pub(crate) name: &'a str,
    pub(crate) view: View,
    pub(crate) user: &'a User,
    /// Nothing is stored.
    pub(crate) dry_run: bool,
    pub(crate) manager: String,
    /// Whether the client said itself which manager it is.
    names_manager: bool,
    field_validation: FieldValidation,
    /// `force` of an apply.
    force: bool,
    pub(crate) now: Timestamp,
    /// What admission has to say beside its verdict.
    pub(crate) notes: Notes,
    /// Whether webhooks have a word: not about what the server itself writes.
    pub(crate) intercepted: bool,
}

/// A finished write.
pub(crate) struct Written {
    pub(crate) code: StatusCode,
    /// The object (or its view) as stored.
    pub(crate) bytes: Bytes,
    pub(crate) warnings: Vec<String>,
}

impl Written {
    /// With the warnings of decoding and of admission.
    fn new(call: &WriteCall<'_>, code: StatusCode, bytes: Bytes, mut warnings: Vec<String>) -> Self {
        warnings.extend(call.notes.warnings());
        Self { code, bytes, warnings }
    }
}

/// What became of one attempt to replace an object.
pub(crate) enum Replaced {
    /// It is stored.
    Stored(Bytes),
    /// Somebody else changed the object meanwhile.
    Modified,
    /// Something that admission counted on has changed, such as the usage of a quota.
    Again,
}

/// How a document changes.
pub(crate) enum Change {
    /// The new document.
    Replace(Value),
    /// RFC 6902.
    Json(Value),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own.
    Strategic(Value),
}

impl<'a> WriteCall<'a> {
    /// Reads the options of a write.
    pub(crate) fn new(
        kind: &'a Arc<Kind>,
        namespace: &'a str,
        name: &'a str,
        view: View,
        user: &'a User,
        query: &Query,
        user_agent: &str,
    ) -> Result<Self, ApiError> {
        let dry_run = match query.all("dryRun") {
            [] => false,
            values if values.iter().all(|v| v == "All") => true,
            values => {
                return Err(ApiError::bad_request(format!(
                    "invalid dry run value {values:?}: only \"All\" is supported"
                )));
            }
        };
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Strict") => FieldValidation::Strict,
            Some("Ignore") => FieldValidation::Ignore,
            Some(other) => return Err(ApiError::bad_request(format!("invalid fieldValidation \"{other}\""))),
        };
        let manager = query.get("fieldManager").map_or_else(|| manager_of(user_agent), str::to_owned);
        if manager.len() > 128 {
            return Err(ApiError::bad_request("fieldManager must not be longer than 128 characters"));
        }
        let force = query.flag("force");
        Ok(Self {
            kind,
            namespace,
            name,
            view,
            user,
            dry_run,
            manager,
            names_manager: query.get("fieldManager").is_some(),
            field_validation,
            force,
            now: Timestamp::now(),
            notes: Notes::default(),
            intercepted: true,
        })
    }

    /// A write by the server itself.
    pub(crate) fn internal(
        kind: &'a Arc<Kind>,
        namespace: &'a str,
        name: &'a str,
        view: View,
        user: &'a User,
    ) -> Self {
        Self {
            kind,
            namespace,
            name,
            view,
            user,
            dry_run: false,
            manager: "sampan".to_owned(),
            names_manager: true,
            field_validation: FieldValidation::Ignore,
            force: false,
            now: Timestamp::now(),
            notes: Notes::default(),
            intercepted: false,
        }
    }

    /// `CreateOptions` or `UpdateOptions` of `meta.k8s.io/v1`, as webhooks see them.
    pub(crate) fn options(&self, operation: Operation) -> Value {
        let kind = if operation == Operation::Create { "CreateOptions" } else { "UpdateOptions" };
        let mut options = json!({"kind": kind, "apiVersion": "meta.k8s.io/v1", "fieldManager": self.manager});
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        let validation = match self.field_validation {
            FieldValidation::Ignore => "Ignore",
            FieldValidation::Warn => "Warn",
            FieldValidation::Strict => "Strict",
        };
        options["fieldValidation"] = validation.into();
        options
    }

    fn key(&self) -> Arc<str> {
        self.kind.store_key(self.namespace, self.name).into()
    }

    fn manager<'b>(&'b self, api_version: &'b str, time: &'b str) -> Manager<'b> {
        Manager { name: &self.manager, api_version, subresource: self.view.subresource(), time }
    }

    /// Drops or reports unknown fields, refuses wrong types.
    pub(crate) fn conform(
        &self,
        schema: &Schema,
        document: &mut Value,
        strictness: &mut Strictness,
    ) -> Result<(), ApiError> {
        schema.conform(document, strictness).map_err(|e| self.undecodable(&e))
    }

    fn undecodable(&self, error: &DecodeError) -> ApiError {
        let what = match error {
            DecodeError::Syntax(_) => "couldn't get version/kind; json parse error".to_owned(),
            _ => format!(
                "{} in version \"{}\" cannot be handled as a {}",
                self.kind.kind, self.kind.version, self.kind.kind
            ),
        };
        ApiError::bad_request(format!("{what}: {error}"))
    }

    /// What becomes of fields nobody knows.
    fn judge(&self, strictness: Strictness) -> Result<Vec<String>, ApiError> {
        match (strictness.problems.is_empty(), self.field_validation) {
            (true, _) | (_, FieldValidation::Ignore) => Ok(Vec::new()),
            (false, FieldValidation::Warn) => Ok(strictness.problems),
            (false, FieldValidation::Strict) => Err(ApiError::bad_request(format!(
                "{} in version \"{}\" cannot be handled as a {}: strict decoding error: {}",
                self.kind.kind,
                self.kind.version,
                self.kind.kind,
                strictness.problems.join(", ")
            ))),
        }
    }

    /// Checks and completes the identity of a document from the client.
    pub(crate) fn identify(&self, document: &mut Value, of: DocumentType<'_>) -> Result<(), ApiError> {
        for (field, expected) in [("apiVersion", of.api_version), ("kind", of.kind)] {
            match document[field].as_str() {
                None | Some("") => document[field] = expected.into(),
                Some(found) if found == expected => {}
                Some(found) => {
                    return Err(ApiError::bad_request(format!(
                        "the {field} in the data ({found}) does not match the expected {field} ({expected})"
                    )));
                }
            }
        }
        if !document["metadata"].is_object() {
            document["metadata"] = json!({});
        }
        let metadata = &mut document["metadata"];
        if self.kind.namespaced() {
            match metadata["namespace"].as_str() {
                None | Some("") => metadata["namespace"] = self.namespace.into(),
                Some(found) if found == self.namespace => {}
                Some(_) => {
                    return Err(ApiError::bad_request(
                        "the namespace of the provided object does not match the namespace sent on the request",
                    ));
                }
            }
        }
        match metadata["name"].as_str() {
            Some(found) if !self.name.is_empty() && !found.is_empty() && found != self.name => {
                Err(ApiError::bad_request(format!(
                    "the name of the object ({found}) does not match the name on the URL ({})",
                    self.name
                )))
            }
            None | Some("") if !self.name.is_empty() => {
                metadata["name"] = self.name.into();
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl ApiServer {
    /// Creates an object from a document.
    pub(crate) async fn create(
        &self,
        call: &WriteCall<'_>,
        mut document: Value,
        mut strictness: Strictness,
    ) -> Result<Written, ApiError> {
        let kind = call.kind;
        call.conform(&kind.schema, &mut document, &mut strictness)?;
        let warnings = call.judge(strictness)?;
        call.identify(&mut document, call.view.document(kind))?;
        if document["metadata"]["resourceVersion"].as_str().is_some_and(|rv| !rv.is_empty()) {
            return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
        }
        let generated = document["metadata"]["name"].as_str().is_none_or(str::is_empty)
            && document["metadata"]["generateName"].as_str().is_some_and(|p| !p.is_empty());
        let (mut taken, mut conflicts) = (0, 0);
        while taken < MAX_TAKEN && conflicts < MAX_CONFLICTS {
            let mut object = document.clone();
            if generated {
                let prefix = object["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
                object["metadata"]["name"] = generate_name(&prefix).into();
            }
            match self.create_once(call, object, None).await {
                // A generated name that is taken is the server's bad luck, not the client's.
                Err(e) if generated && e.reason == "AlreadyExists" => taken += 1,
                Ok(None) => conflicts += 1,
                Ok(Some(bytes)) => return Ok(Written::new(call, StatusCode::CREATED, bytes, warnings)),
                Err(error) => return Err(error),
            }
        }
        if conflicts == MAX_CONFLICTS {
            let name = document["metadata"]["name"].as_str().unwrap_or_default();
            return Err(ApiError::modified(kind, name));
        }
        Err(ApiError::already_exists(kind, document["metadata"]["generateName"].as_str().unwrap_or_default()))
    }

    /// One attempt to create an object. `None`: something that admission counted on has changed meanwhile.
    async fn create_once(
        &self,
        call: &WriteCall<'_>,
        mut object: Value,
        merged: Option<Box<Merged>>,
    ) -> Result<Option<Bytes>, ApiError> {
        let kind = call.kind;
        if kind.closing {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", why));
        }
        new_books(&mut object, kind, call.now);
        if kind.has(Subresource::Status)
            && !kind.status_on_create
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("status");
        }
        (kind.strategy.prepare_create)(&mut object);
        kind.schema.fill_in_defaults(&mut object);
        (kind.strategy.default)(&mut object);
        let admission = Admission::of(self, call, Operation::Create, None);
        let held = admission::mutate(&admission, &mut object).instrument(part!("mutating admission")).await?;
        (kind.strategy.set_requester)(&mut object, call.user.requester());
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut errors = metadata::validate(&object, kind.scope, kind.name_rule);
        errors.extend((kind.strategy.validate)(&object));
        errors.extend(kind.schema.validate(&object, None));
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, &name, &errors));
        }
        let charges =
            admission::validate(&admission, &object).instrument(part!("validating admission")).await?;
        let time = seconds(call.now);
        let manager = call.manager(kind.api_version(), &time);
        match merged {
            Some(merged) => merged.track(&mut object, &manager),
            None => apply::track_update(&kind.schema, None, &mut object, &manager),
        }
        let key: Arc<str> = kind.store_key(call.namespace, &name).into();
        let stored = self.to_storage(kind, &object).await?;
        if call.dry_run {
            return match self.store.get(&key).await? {
                Some(_) => Err(ApiError::already_exists(kind, &name)),
                None => Ok(Some(encode::with_revision(&object, self.store.revision().0))),
            };
        }
        let mut compare = vec![Compare::Absent(key.clone())];
        if kind.namespaced() {
            compare.push(Compare::Present(namespace_key(call.namespace)));
        }
        let put = Op::Put {
            key: key.clone(),
            value: encode::for_store(&stored),
            durability: durability(kind, call.namespace),
        };
        let mut ops = vec![put];
        charges.join(&mut compare, &mut ops);
        match self.store.transact(Transaction { compare, ops }).await? {
            TransactionResult::Committed { puts, .. } => {
                held.commit();
                let kv = puts.into_iter().next();
                let kv = kv.ok_or_else(|| ApiError::internal("the store returned no object"))?;
                Ok(Some(self.as_written(kind, &object, kv).await?))
            }
            TransactionResult::Conflict { key: moved, .. } if charges.guard(&moved) => Ok(None),
            TransactionResult::Conflict { key: taken, .. } if taken == key => {
                Err(ApiError::already_exists(kind, &name))
            }
            TransactionResult::Conflict { .. } => Err(namespace_missing(call.namespace)),
        }
    }

    /// Replaces or patches an object, or one of its views.
    pub(crate) async fn change(
        &self,
        call: &WriteCall<'_>,
        change: &Change,
        strictness: &Strictness,
    ) -> Result<Written, ApiError> {
        let mut warnings = Vec::new();
        let mut seen_problems = false;
        let mut retries = 0;
        loop {
            let current = self.current(call).await?;
            let old = self.out_of_storage(call.kind, parse(&current)?).await?;
            let (mut wanted, mut found) = match change {
                Change::Replace(wanted) => (wanted.clone(), strictness.clone()),
                patch => (patched(call, call.view.of(call.kind, &old), patch)?, Strictness::default()),
            };
            let document_type = call.view.document(call.kind);
            call.conform(document_type.schema, &mut wanted, &mut found)?;
            if !seen_problems {
                warnings = call.judge(found)?;
                seen_problems = true;
            }
            call.identify(&mut wanted, document_type)?;
            let revision = wanted["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            let conditional = !revision.is_empty()
                && !matches!(change, Change::Merge(p) | Change::Strategic(p) if p["metadata"].get("resourceVersion").is_none());
            if conditional && revision != current.mod_revision.0.to_string() {
                return Err(ApiError::modified(call.kind, call.name));
            }
            check_uid(call, &old, &wanted)?;
            let new = call.view.merge_into(call.kind, &old, wanted);
            match self.replace(call, &current, old, new, None).await? {
                Replaced::Stored(bytes) => {
                    let bytes = call.view.bytes(call.kind, bytes);
                    return Ok(Written::new(call, StatusCode::OK, bytes, warnings));
                }
                Replaced::Modified if conditional && matches!(change, Change::Replace(_)) => {
                    return Err(ApiError::modified(call.kind, call.name));
                }
                _ if retries >= MAX_CONFLICTS => return Err(ApiError::modified(call.kind, call.name)),
                _ => retries += 1,
            }
        }
    }

    /// Server-side apply: creates when there is nothing yet.
    pub(crate) async fn apply(
        &self,
        call: &WriteCall<'_>,
        mut configuration: Value,
        mut strictness: Strictness,
    ) -> Result<Written, ApiError> {
        let kind = call.kind;
        if !call.names_manager {
            let mut errors = Errors::new();
            errors.required(&Path::new("fieldManager"), "is required for apply patch");
            return Err(ApiError::invalid_of("meta.k8s.io", "PatchOptions", "", &errors));
        }
        call.conform(&kind.schema, &mut configuration, &mut strictness)?;
        let warnings = call.judge(strictness)?;
        if configuration["apiVersion"].is_null() || configuration["kind"].is_null() {
            return Err(ApiError::bad_request("apiVersion and kind must be set in an apply configuration"));
        }
        call.identify(&mut configuration, call.view.document(kind))?;
        if !configuration["metadata"]["managedFields"].is_null() {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let (api_version, time) = (kind.api_version(), seconds(call.now));
        for _ in 0..MAX_CONFLICTS {
            let current = self.store.get(&call.key()).await?;
            let old = match &current {
                Some(current) => Some(self.out_of_storage(kind, parse(current)?).await?),
                None => None,
            };
            let wanted_revision = configuration["metadata"]["resourceVersion"].as_str().unwrap_or_default();
            if !wanted_revision.is_empty()
                && current.as_ref().is_none_or(|kv| kv.mod_revision.0.to_string() != wanted_revision)
            {
                return Err(ApiError::modified(kind, call.name));
            }
            let manager = call.manager(api_version, &time);
            let merged = apply::apply(&kind.schema, old.as_ref(), &configuration, &manager, call.force)
                .map_err(patch_error)?;
            let merged = match merged {
                Applied::Merged(merged) => merged,
                Applied::Conflicts(conflicts) => return Err(apply_conflict(&conflicts)),
            };
            let new = merged.object.clone();
            match (current, old) {
                (Some(current), Some(old)) => {
                    let new = call.view.merge_into(kind, &old, new);
                    let replaced = self.replace(call, &current, old, new, Some(merged)).await?;
                    if let Replaced::Stored(bytes) = replaced {
                        return Ok(Written::new(call, StatusCode::OK, bytes, warnings));
                    }
                }
                _ if call.view != View::Object => return Err(ApiError::not_found(kind, call.name)),
                _ => match self.create_once(call, new, Some(merged)).await {
                    Err(e) if e.reason == "AlreadyExists" => {}
                    Ok(None) => {}
                    Ok(Some(bytes)) => return Ok(Written::new(call, StatusCode::CREATED, bytes, warnings)),
                    Err(error) => return Err(error),
                },
            }
        }
        Err(ApiError::modified(kind, call.name))
    }

    /// What the writer gets: the stored bytes, or the object in the writer's version.
    async fn as_written(&self, kind: &Kind, object: &Value, kv: KeyValue) -> Result<Bytes, ApiError> {
        match &kind.stored_as {
            Stored::AsIs => Ok(kv.value),
            Stored::Custom(custom) if custom.api_version == kind.api_version() => Ok(kv.value),
            // The rules of the version that is kept may have added to it.
            Stored::As(_) => self.shown(kind, (&kv).into()).await,
            Stored::Custom(_) => Ok(encode::with_revision(object, kv.mod_revision.0)),
        }
    }

    /// The stored object a call is about.
    pub(crate) async fn current(&self, call: &WriteCall<'_>) -> Result<KeyValue, ApiError> {
        self.store.get(&call.key()).await?.ok_or_else(|| ApiError::not_found(call.kind, call.name))
    }

    /// Completes, checks and stores the successor of an object.
    pub(crate) async fn replace(
        &self,
        call: &WriteCall<'_>,
        current: &KeyValue,
        old: Value,
        mut new: Value,
        merged: Option<Box<Merged>>,
    ) -> Result<Replaced, ApiError> {
        let kind = call.kind;
        keep_books(&mut new, &old);
        if call.view == View::Object && kind.has(Subresource::Status) {
            copy_field(&mut new, &old, "status");
        }
        match call.view {
            View::Object => (kind.strategy.prepare_update)(&mut new, &old),
            View::Status => (kind.strategy.prepare_status)(&mut new, &old, call.now),
            View::Approval => (kind.strategy.prepare_approval)(&mut new, &old, call.now),
            _ => {}
        }
        kind.schema.fill_in_defaults(&mut new);
        (kind.strategy.default)(&mut new);
        let admission = Admission::of(self, call, Operation::Update, Some(&old));
        let held = admission::mutate(&admission, &mut new).instrument(part!("mutating admission")).await?;
        let mut errors = metadata::validate(&new, kind.scope, kind.name_rule);
        errors.extend(metadata::validate_update(&new, &old));
        errors.extend(kind.schema.validate(&new, Some(&old)));
        errors.extend(match call.view {
            View::Status => (kind.strategy.validate_status)(&new, &old),
            View::Approval => (kind.strategy.validate_approval)(&new, &old),
            _ => (kind.strategy.validate)(&new),
        });
        if call.view == View::Object {
            errors.extend((kind.strategy.validate_update)(&new, &old));
        }
        if !errors.is_empty() {
            return Err(ApiError::invalid(kind, call.name, &errors));
        }
        let charges = admission::validate(&admission, &new).instrument(part!("validating admission")).await?;
        if kind.generation && !same_spec(kind, &new, &old) {
            let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
            new["metadata"]["generation"] = generation.into();
        }
        let time = seconds(call.now);
        let manager = call.manager(kind.api_version(), &time);
        match merged {
            Some(merged) => merged.track(&mut new, &manager),
            None => apply::track_update(&kind.schema, Some(&old), &mut new, &manager),
        }
        if same_object(&new, &old) && is_current_form(kind, &current.value) {
            return self.shown(kind, current.into()).await.map(Replaced::Stored);
        }
        if call.dry_run {
            return Ok(Replaced::Stored(encode::with_revision(&new, current.mod_revision.0)));
        }
        let key = current.key.clone();
        let stored = self.to_storage(kind, &new).await?;
        let op = if is_finished(&new, kind) {
            Op::Delete { key: key.clone() }
        } else {
            Op::Put {
                key: key.clone(),
                value: encode::for_store(&stored),
                durability: durability(kind, call.namespace),
            }
        };
        let gone = matches!(op, Op::Delete { .. });
        let (mut compare, mut ops) = (vec![Compare::ModRevision(key, current.mod_revision)], vec![op]);
        charges.join(&mut compare, &mut ops);
        match self.store.transact(Transaction { compare, ops }).await? {
            TransactionResult::Committed { revision, puts } => {
                held.commit();
                match puts.into_iter().next().filter(|_| !gone) {
                    Some(kv) => Ok(Replaced::Stored(self.as_written(kind, &new, kv).await?)),
                    None => {
                        self.deleted(kind, &new);
                        Ok(Replaced::Stored(encode::with_revision(&new, revision.0)))
                    }
                }
            }
            TransactionResult::Conflict { key: moved, .. } if charges.guard(&moved) => Ok(Replaced::Again),
            TransactionResult::Conflict { current: None, .. } => Err(ApiError::not_found(kind, call.name)),
            TransactionResult::Conflict { .. } => Ok(Replaced::Modified),
        }
    }
}

/// Store key of a namespace.
pub(crate) fn namespace_key(namespace: &str) -> Arc<str> {
    format!("/namespaces/{namespace}").into()
}

/// The namespace a request names does not exist.
pub(crate) fn namespace_missing(namespace: &str) -> ApiError {
    let mut error =
        ApiError::new(StatusCode::NOT_FOUND, "NotFound", format!("namespaces \"{namespace}\" not found"));
    error.details = Some(json!({"name": namespace, "kind": "namespaces"}));
    error
}

/// Reads a stored object.
pub(crate) fn parse(kv: &KeyValue) -> Result<Value, ApiError> {
    serde_json::from_slice(&kv.value)
        .map_err(|e| ApiError::internal(format!("stored object {} is damaged: {e}", kv.key)))
}

fn patched(call: &WriteCall<'_>, mut document: Value, change: &Change) -> Result<Value, ApiError> {
    let result = match change {
        Change::Replace(wanted) => {
            document = wanted.clone();
            Ok(())
        }
        Change::Json(patch) => patch::json_patch(&mut document, patch.clone()),
        Change::Merge(patch) => patch::merge_patch(&mut document, patch),
        Change::Strategic(patch) => {
            strategic::strategic_merge_patch(call.view.document(call.kind).schema, &mut document, patch)
        }
    };
    result.map_err(patch_error)?;
    Ok(document)
}

fn patch_error(error: PatchError) -> ApiError {
    match error {
        PatchError::Malformed(_) => ApiError::bad_request(error.to_string()),
        PatchError::TooManyOperations(_) => {
            ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", error.to_string())
        }
        PatchError::DoesNotApply(_) => ApiError::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "Invalid",
            format!("the server rejected our request due to an error in our request: {error}"),
        ),
    }
}

fn check_uid(call: &WriteCall<'_>, old: &Value, wanted: &Value) -> Result<(), ApiError> {
    let (have, want) = (&old["metadata"]["uid"], &wanted["metadata"]["uid"]);
    if want.as_str().is_some_and(|uid| !uid.is_empty()) && want != have {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            want.as_str().unwrap_or_default(),
            have.as_str().unwrap_or_default()
        );
        return Err(ApiError::conflict(call.kind, call.name, &why));
    }
    Ok(())
}

fn apply_conflict(conflicts: &[apply::Conflict]) -> ApiError {
    let owner = |conflict: &apply::Conflict| {
        if conflict.api_version.is_empty() {
            format!("\"{}\"", conflict.manager)
        } else {
            format!("\"{}\" using {}", conflict.manager, conflict.api_version)
        }
    };
    let causes: Vec<Value> = conflicts
        .iter()
        .map(|c| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {}", owner(c)), "field": c.field}))
        .collect();
    let mut lines: Vec<String> = Vec::new();
    let mut owners: Vec<String> = conflicts.iter().map(owner).collect();
    owners.dedup();
    for owned_by in &owners {
        let fields: Vec<&str> =
            conflicts.iter().filter(|c| owner(c) == *owned_by).map(|c| c.field.as_str()).collect();
        lines.push(match fields.as_slice() {
            [one] => format!("conflict with {owned_by}: {one}"),
            many => format!("conflicts with {owned_by}:\n- {}", many.join("\n- ")),
        });
    }
    let count = conflicts.len();
    let plural = if count == 1 { "conflict" } else { "conflicts" };
    let mut error = ApiError::new(
        StatusCode::CONFLICT,
        "Conflict",
        format!("Apply failed with {count} {plural}: {}", lines.join("\n")),
    );
    error.details = Some(json!({"causes": causes}));
    error
}
