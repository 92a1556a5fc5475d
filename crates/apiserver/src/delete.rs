//! Deletion: at once, gracefully, or when the last finalizer has gone.
//!
//! Deleting is two things: marking an object (`deletionTimestamp`, finalizers for the propagation asked for) and removing
//! it. Removal happens in the same transaction when nothing holds the object.

use bytes::Bytes;
use http::StatusCode;
use sampan_api::kind::Subresource;
use sampan_api::registry::Kind;
use sampan_store::{Compare, KeyValue, Op, Transaction, TransactionResult};
use serde_json::{Map, Value, json};

use crate::admission;
use crate::books::{durability, is_finished, seconds};
use crate::encode;
use crate::error::ApiError;
use crate::read::{Selection, collection_prefix};
use crate::request::Query;
use crate::server::ApiServer;
use crate::write::{WriteCall, parse};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
/// How often a delete is tried again after the object changed meanwhile.
const MAX_CONFLICTS: usize = 64;

/// `metav1.DeleteOptions` from body and query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    grace_period_seconds: Option<i64>,
    propagation: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    dry_run: bool,
}

impl DeleteOptions {
    /// Reads the body, then the query.
    pub(crate) fn parse(body: &Value, query: &Query) -> Result<Self, ApiError> {
        let text = |value: &Value| value.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
        let bad_grace = || ApiError::bad_request("gracePeriodSeconds must be a whole number of at least 0");
        let grace = match (query.get("gracePeriodSeconds"), &body["gracePeriodSeconds"]) {
            (Some(text), _) => Some(text.parse::<i64>().map_err(|_| bad_grace())?),
            (None, Value::Null) => None,
            (None, value) => Some(value.as_i64().ok_or_else(bad_grace)?),
        };
        if grace.is_some_and(|g| g < 0) {
            return Err(bad_grace());
        }
        let orphan =
            body["orphanDependents"].as_bool().or_else(|| query.get("orphanDependents").map(|v| v == "true"));
        let propagation = query
            .get("propagationPolicy")
            .map(str::to_owned)
            .or_else(|| text(&body["propagationPolicy"]))
            .or_else(|| orphan.map(|orphan| if orphan { "Orphan" } else { "Background" }.to_owned()));
        if let Some(policy) = &propagation
            && !["Orphan", "Background", "Foreground"].contains(&policy.as_str())
        {
            return Err(ApiError::bad_request(format!(
                "invalid propagationPolicy \"{policy}\": supported values: \"Foreground\", \"Background\", \"Orphan\""
            )));
        }
        let dry_run =
            !query.all("dryRun").is_empty() || body["dryRun"].as_array().is_some_and(|list| !list.is_empty());
        Ok(Self {
            grace_period_seconds: grace,
            propagation,
            uid: text(&body["preconditions"]["uid"]),
            resource_version: text(&body["preconditions"]["resourceVersion"]),
            dry_run,
        })
    }

    /// `meta.k8s.io/v1.DeleteOptions`, as webhooks see them.
    pub(crate) fn document(&self) -> Value {
        let mut options = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = self.grace_period_seconds {
            options["gracePeriodSeconds"] = seconds.into();
        }
        if let Some(policy) = &self.propagation {
            options["propagationPolicy"] = policy.as_str().into();
        }
        for (field, value) in [("uid", &self.uid), ("resourceVersion", &self.resource_version)] {
            if let Some(value) = value {
                options["preconditions"][field] = value.as_str().into();
            }
        }
        if self.dry_run {
            options["dryRun"] = json!(["All"]);
        }
        options
    }

    fn check(&self, call: &WriteCall<'_>, current: &KeyValue, object: &Value) -> Result<(), ApiError> {
        let uid = object["metadata"]["uid"].as_str().unwrap_or_default();
        if let Some(wanted) = self.uid.as_deref().filter(|wanted| *wanted != uid) {
            let why =
                format!("Precondition failed: UID in precondition: {wanted}, UID in object meta: {uid}");
            return Err(ApiError::conflict(call.kind, call.name, &why));
        }
        let revision = current.mod_revision.0.to_string();
        if let Some(wanted) = self.resource_version.as_deref().filter(|wanted| *wanted != revision) {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {wanted}, ResourceVersion in object meta: {revision}"
            );
            return Err(ApiError::conflict(call.kind, call.name, &why));
        }
        Ok(())
    }
}

/// What a delete came to.
pub(crate) enum Deleted {
    /// The object has gone.
    Gone(Value),
    /// The object is marked and goes when its holders let it.
    Marked(Bytes),
}

impl Deleted {
    /// Code and body of the answer.
    pub(crate) fn answer(self, kind: &Kind) -> (StatusCode, Bytes) {
        match self {
            Self::Marked(bytes) => (StatusCode::OK, bytes),
            Self::Gone(object) if kind.returns_deleted => (StatusCode::OK, object.to_string().into()),
            Self::Gone(object) => {
                let metadata = &object["metadata"];
                let status = json!({
                    "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
                    "details": {"name": metadata["name"], "group": kind.group, "kind": kind.plural, "uid": metadata["uid"]},
                });
                (StatusCode::OK, status.to_string().into())
            }
        }
    }
}

impl ApiServer {
    /// Deletes one object.
    pub(crate) async fn delete(
        &self,
        call: &WriteCall<'_>,
        options: &DeleteOptions,
    ) -> Result<Deleted, ApiError> {
        if call.kind.plural == "namespaces"
            && call.kind.group.is_empty()
            && admission::is_immortal_namespace(call.name)
        {
            return Err(ApiError::forbidden(
                "",
                "namespaces",
                call.name,
                "this namespace may not be deleted",
            ));
        }
        for _ in 0..MAX_CONFLICTS {
            let current = self.current(call).await?;
            let old = parse(&current)?;
            options.check(call, &current, &old)?;
            admission::validate_delete(self, call, &old, options).await?;
            let mut new = old.clone();
            mark(&mut new, call, options);
            let finished = is_finished(&new, call.kind);
            if !finished && new == old {
                return Ok(Deleted::Marked(current.value));
            }
            if options.dry_run || call.dry_run {
                return Ok(if finished { Deleted::Gone(new) } else { Deleted::Marked(current.value) });
            }
            if finished {
                let compare = vec![Compare::ModRevision(current.key.clone(), current.mod_revision)];
                let ops = vec![Op::Delete { key: current.key.clone() }];
                match self.store.transact(Transaction { compare, ops }).await? {
                    TransactionResult::Committed { .. } => {
                        self.deleted(call.kind, &new);
                        return Ok(Deleted::Gone(new));
                    }
                    TransactionResult::Conflict { .. } => continue,
                }
            }
            if call.kind.generation && old["metadata"]["deletionTimestamp"].is_null() {
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                new["metadata"]["generation"] = generation.into();
            }
            let put = Op::Put {
                key: current.key.clone(),
                value: encode::for_store(&new),
                durability: durability(call.kind, call.namespace),
            };
            let compare = vec![Compare::ModRevision(current.key.clone(), current.mod_revision)];
            if let TransactionResult::Committed { mut puts, .. } =
                self.store.transact(Transaction { compare, ops: vec![put] }).await?
            {
                let stored = puts.pop().ok_or_else(|| ApiError::internal("the store returned no object"))?;
                return Ok(Deleted::Marked(stored.value));
            }
        }
        Err(ApiError::modified(call.kind, call.name))
    }

    /// Deletes every selected object of a collection and answers with the list of them.
    pub(crate) async fn delete_collection(
        &self,
        call: &WriteCall<'_>,
        query: &Query,
        options: &DeleteOptions,
    ) -> Result<Vec<Bytes>, ApiError> {
        let selection = Selection::parse(call.kind, query)?;
        self.cache.wait_for(self.store.revision().0).await;
        let prefix = collection_prefix(call.kind, call.namespace);
        let mut items = self.cache.resource(call.kind.stored_resource()).list(&prefix);
        items.retain(|item| selection.contains(item));
        self.narrow(call.kind, &selection, &mut items).await?;
        let mut deleted = Vec::new();
        for item in items {
            let (namespace, name) = (item.field("/metadata/namespace"), item.field("/metadata/name"));
            let mut one = WriteCall::internal(call.kind, &namespace, &name, call.view, call.user);
            one.intercepted = call.intercepted;
            let result = self.delete(&one, options).await;
            one.notes.warnings().iter().for_each(|warning| call.notes.warn(warning));
            match result {
                Ok(_) => deleted.push(item.bytes.clone()),
                Err(e) if e.code == StatusCode::NOT_FOUND => {}
                Err(e) => return Err(e),
            }
        }
        Ok(deleted)
    }
}

/// Writes into an object that it is to go.
fn mark(object: &mut Value, call: &WriteCall<'_>, options: &DeleteOptions) {
    let grace = grace_period(object, call.kind, options);
    let namespace_phase = call.kind.has(Subresource::Finalize) && call.kind.plural == "namespaces";
    let Some(metadata) = object["metadata"].as_object_mut() else { return };
    set_propagation(metadata, options.propagation.as_deref());
    let before = metadata.get("deletionGracePeriodSeconds").and_then(Value::as_i64);
    // A second delete may only shorten the time.
    let shorter = before.is_none_or(|before| grace < before);
    if metadata.get("deletionTimestamp").is_none() || shorter {
        let at = call.now.saturating_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(call.now);
        metadata.insert("deletionTimestamp".into(), seconds(at).into());
        metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
    }
    if namespace_phase {
        object["status"]["phase"] = "Terminating".into();
    }
}

/// Only pods take time to go, and only where a node has to stop something.
fn grace_period(object: &Value, kind: &Kind, options: &DeleteOptions) -> i64 {
    if kind.plural != "pods" || !kind.group.is_empty() {
        return 0;
    }
    let phase = object["status"]["phase"].as_str().unwrap_or_default();
    let unscheduled = object["spec"]["nodeName"].as_str().is_none_or(str::is_empty);
    if unscheduled || ["Succeeded", "Failed"].contains(&phase) {
        return 0;
    }
    options
        .grace_period_seconds
        .or_else(|| object["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30)
        .max(0)
}

fn set_propagation(metadata: &mut Map<String, Value>, policy: Option<&str>) {
    let Some(policy) = policy else { return };
    let wanted = match policy {
        "Orphan" => Some(ORPHAN),
        "Foreground" => Some(FOREGROUND),
        _ => None,
    };
    let mut finalizers: Vec<Value> =
        metadata.get("finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    finalizers.retain(|f| *f != ORPHAN && *f != FOREGROUND);
    finalizers.extend(wanted.map(Value::from));
    if finalizers.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), Value::Array(finalizers));
    }
}
