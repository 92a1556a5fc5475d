//! Custom resources: from the definitions in the store to the kinds this server serves.
//!
//! One task follows the definitions. For each state of them it decides whose names are accepted, writes that into their
//! status, and swaps a registry with the kinds of the established ones in. A definition that is being deleted loses its
//! objects first and its finalizer then. The task looks at everything there is each time (a few hundred definitions at
//! most), so that it does not matter which event woke it; what a definition came to is kept as long as it does not
//! change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use sampan_api::custom::names::{self, Condition, Taken, Verdict};
use sampan_api::kinds::custom_resource_definition::CLEANUP_FINALIZER;
use sampan_api::registry::{Kind, Registry};
use serde_json::Value;

use crate::auth::{MASTERS, User};
use crate::books::seconds;
use crate::delete::DeleteOptions;
use crate::error::ApiError;
use crate::request::Query;
use crate::server::ApiServer;
use crate::view::View;
use crate::write::WriteCall;

/// The resource of the definitions.
pub(crate) const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";
const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// Pause after a failed round.
const RETRY: Duration = Duration::from_millis(500);

/// A definition of the watch cache.
struct Definition {
    object: Value,
    revision: u64,
}

impl Definition {
    fn name(&self) -> &str {
        self.object["metadata"]["name"].as_str().unwrap_or_default()
    }

    fn is_terminating(&self) -> bool {
        !self.object["metadata"]["deletionTimestamp"].is_null()
    }
}

/// What a definition came to: its kinds, as long as its specification is the same.
struct Made {
    uid: Value,
    generation: Value,
    kinds: Vec<Arc<Kind>>,
}

/// The task's memory. Everything in it can be made again from the definitions.
#[derive(Default)]
struct Follower {
    made: HashMap<String, Made>,
}

/// Serves the definitions that exist and follows those that change, for as long as the server lives.
pub(crate) async fn follow(server: &Arc<ApiServer>) {
    let mut changed = server.cache.resource(DEFINITIONS).subscribe();
    let mut follower = Follower::default();
    // The first round is part of the start: whoever had custom resources finds them served.
    let mut retry = follower.round(server).await;
    let server = Arc::downgrade(server);
    tokio::spawn(async move {
        loop {
            if retry {
                let _ = tokio::time::timeout(RETRY, changed.changed()).await;
            } else if changed.changed().await.is_err() {
                return;
            }
            changed.borrow_and_update();
            let Some(server) = server.upgrade() else { return };
            retry = follower.round(&server).await;
        }
    });
}

impl Follower {
    /// Brings registry and status in line with the definitions; whether another round is needed soon.
    async fn round(&mut self, server: &Arc<ApiServer>) -> bool {
        let definitions = definitions(server);
        let objects: Vec<Value> = definitions.iter().map(|d| d.object.clone()).collect();
        let verdicts = names::judge(&objects, built_in_names());
        let established: Vec<&Definition> =
            definitions.iter().zip(&verdicts).filter(|(_, v)| v.is_established()).map(|(d, _)| d).collect();
        let registry = self.registry(&established);
        // Served first, announced then: who sees `Established` may use the kind.
        server.set_registry(registry);
        let mut again = false;
        for (definition, verdict) in definitions.iter().zip(&verdicts) {
            let done = match definition.is_terminating() {
                true => clean_up(server, definition).await,
                false => write_status(server, definition, verdict).await,
            };
            match done {
                Ok(()) => {}
                // Somebody else changed or removed it, which is an event of its own.
                Err(e) if [StatusCode::CONFLICT, StatusCode::NOT_FOUND].contains(&e.code) => {}
                Err(error) => {
                    tracing::warn!(definition = definition.name(), %error, "a definition waits");
                    again = true;
                }
            }
        }
        again
    }

    fn registry(&mut self, established: &[&Definition]) -> Registry {
        let mut registry = Registry::built_in();
        let mut made = HashMap::new();
        for definition in established {
            let metadata = &definition.object["metadata"];
            let (uid, generation) = (metadata["uid"].clone(), metadata["generation"].clone());
            let known = self.made.remove(definition.name());
            let current = known.filter(|m| m.uid == uid && m.generation == generation);
            let current = current.unwrap_or_else(|| Made { uid, generation, kinds: make(definition) });
            for kind in &current.kinds {
                let mut kind = kind.clone();
                if definition.is_terminating() {
                    Arc::make_mut(&mut kind).closing = true;
                }
                registry.add_shared(kind);
            }
            made.insert(definition.name().to_owned(), current);
        }
        self.made = made;
        registry
    }
}

fn make(definition: &Definition) -> Vec<Arc<Kind>> {
    match sampan_api::custom::kinds(&definition.object, definition.revision) {
        Ok(kinds) => kinds.into_iter().map(Arc::new).collect(),
        Err(errors) => {
            // Only a definition that an older program took can come here.
            tracing::error!(definition = definition.name(), %errors, "a definition cannot be served");
            Vec::new()
        }
    }
}

fn definitions(server: &ApiServer) -> Vec<Definition> {
    let items = server.cache.resource(DEFINITIONS).list(&format!("/{DEFINITIONS}/"));
    let read = |item: Arc<crate::cache::Item>| {
        let object = serde_json::from_slice(&item.bytes).ok()?;
        Some(Definition { object, revision: item.revision })
    };
    items.into_iter().filter_map(read).collect()
}

fn built_in_names() -> Taken {
    let mut taken = Taken::default();
    for kind in Registry::built_in().kinds() {
        let short = kind.short_names.iter().map(|name| &**name);
        let resources = [&*kind.plural, &*kind.singular].into_iter().chain(short);
        taken.built_in(&kind.group, resources, &[&kind.kind, &kind.list_kind]);
    }
    taken
}

fn user() -> User {
    User::known("system:apiserver", &[MASTERS])
}

fn definition_kind(server: &ApiServer) -> Result<Arc<Kind>, ApiError> {
    server.registry().find(GROUP, "v1", PLURAL).cloned().ok_or_else(ApiError::no_such_path)
}

async fn write_status(
    server: &ApiServer,
    definition: &Definition,
    verdict: &Verdict,
) -> Result<(), ApiError> {
    change_status(server, definition, &verdict.accepted, &verdict.conditions).await
}

/// Writes the status if it says something else.
async fn change_status(
    server: &ApiServer,
    definition: &Definition,
    accepted: &Value,
    conditions: &[Condition],
) -> Result<(), ApiError> {
    let kind = definition_kind(server)?;
    let user = user();
    let call = WriteCall::internal(&kind, "", definition.name(), View::Status, &user);
    let current = server.current(&call).await?;
    if current.mod_revision.0 != definition.revision {
        return Ok(());
    }
    let mut new = definition.object.clone();
    names::write_status(&mut new["status"], accepted, conditions, &seconds(call.now));
    if new == definition.object {
        return Ok(());
    }
    // `None`: changed meanwhile, and a new round comes.
    server.replace(&call, &current, definition.object.clone(), new, None).await.map(drop)
}

/// Deletes the objects of a definition that is being deleted, and lets the definition go when there are none left.
async fn clean_up(server: &ApiServer, definition: &Definition) -> Result<(), ApiError> {
    let held = definition.object["metadata"]["finalizers"].as_array();
    if !held.is_some_and(|finalizers| finalizers.iter().any(|f| f == CLEANUP_FINALIZER)) {
        return Ok(());
    }
    let terminating = Condition {
        type_: "Terminating",
        status: true,
        reason: "InstanceDeletionInProgress",
        message: "CustomResource deletion is in progress".to_owned(),
    };
    let accepted = &definition.object["status"]["acceptedNames"];
    change_status(server, definition, accepted, &[terminating]).await?;
    let spec = &definition.object["spec"];
    let (group, plural) =
        (spec["group"].as_str().unwrap_or_default(), spec["names"]["plural"].as_str().unwrap_or_default());
    let instances = server.registry().find_resource(group, plural).cloned();
    if let Some(instances) = instances {
        let user = user();
        let call = WriteCall::internal(&instances, "", "", View::Object, &user);
        server.delete_collection(&call, &Query::default(), &DeleteOptions::default()).await?;
        server.cache.wait_for(server.store.revision().0).await;
        let left = server.cache.resource(instances.stored_resource()).list(instances.store_prefix()).len();
        if left > 0 {
            return Err(ApiError::unavailable(format!("{left} objects of {plural}.{group} are still there")));
        }
    }
    release(server, definition.name()).await
}

/// Takes the finalizer away, with which the definition goes.
async fn release(server: &ApiServer, name: &str) -> Result<(), ApiError> {
    let kind = definition_kind(server)?;
    let user = user();
    let call = WriteCall::internal(&kind, "", name, View::Object, &user);
    let current = server.current(&call).await?;
    let old = crate::write::parse(&current)?;
    let mut new = old.clone();
    if let Some(finalizers) = new["metadata"]["finalizers"].as_array_mut() {
        finalizers.retain(|finalizer| finalizer != CLEANUP_FINALIZER);
    }
    server.replace(&call, &current, old, new, None).await.map(drop)
}
