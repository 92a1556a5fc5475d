//! Admission: what the server adds to a request's object and what it refuses beyond the rules of the kind.
//!
//! A plug-in is a function in one of the tables below; the pipeline calls them in order. Plug-ins may read the watch
//! cache, and nothing else of the world. What users wrote ([`policy`]) and who is asked over the network ([`webhooks`])
//! join after them ([`intercept`]). Three things a plug-in may leave behind besides its verdict:
//!
//! - what it has taken ([`Held`]: addresses and ports), given back unless the object is stored;
//! - what must change with the object ([`Charges`]: the usage of quotas), written in the object's own transaction and
//!   guarded by its conditions, so that several servers over one store never admit more than a quota allows;
//! - what the client should be told ([`Notes`]: warnings) and what an audit should keep.

mod addresses;
mod certificates;
mod ingress_class;
mod intercept;
mod intercepted;
mod latest;
mod limit_range;
mod matching;
mod namespace;
mod node;
mod notes;
mod pod;
mod pod_security;
pub(crate) mod policy;
mod rbac;
mod reinvocation;
mod resource_quota;
mod runtime_class;
mod storage_class;
mod topology;
pub(crate) mod webhooks;

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use sampan_api::kind::Subresource;
use sampan_api::registry::Kind;
use sampan_api::schema::Schema;
use serde_json::{Value, json};

pub(crate) use addresses::{AddressRange, Allocator, Held};
pub(crate) use node::node_of;
pub(crate) use notes::Notes;
pub(crate) use resource_quota::{Charges, Turns};
pub(crate) use topology::copy_labels as copy_topology_labels;

use crate::auth::User;
use crate::delete::DeleteOptions;
use crate::error::ApiError;
use crate::server::ApiServer;
use crate::view::View;
use crate::write::{WriteCall, namespace_key};

/// What a request does to its object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// A new object.
    Create,
    /// Another state of an object, or of a part of it.
    Update,
    /// The end of an object.
    Delete,
    /// A stream to or through an object: exec, attach, port-forward, proxy.
    Connect,
}

impl Operation {
    /// Name in rules and in `request.operation`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// The request an object comes with.
pub(crate) struct Admission<'a> {
    pub(crate) server: &'a ApiServer,
    pub(crate) call: &'a WriteCall<'a>,
    pub(crate) kind: &'a Arc<Kind>,
    pub(crate) namespace: &'a str,
    pub(crate) user: &'a User,
    pub(crate) operation: Operation,
    /// `None` on create and connect.
    pub(crate) old: Option<&'a Value>,
    pub(crate) view: View,
    /// The view's address below the object, or that of an action. Empty for the object itself.
    pub(crate) subresource: &'a str,
    /// Nothing is stored.
    pub(crate) dry_run: bool,
    pub(crate) notes: &'a Notes,
    /// The namespace of the request as the store has it, if it was read.
    namespace_bytes: OnceLock<Bytes>,
    /// The same, or what the cache has, parsed when somebody asks.
    namespace_object: OnceLock<Value>,
}

impl<'a> Admission<'a> {
    /// Admission of a write.
    pub(crate) fn of(
        server: &'a ApiServer,
        call: &'a WriteCall<'a>,
        operation: Operation,
        old: Option<&'a Value>,
    ) -> Self {
        Self {
            server,
            call,
            kind: call.kind,
            namespace: call.namespace,
            user: call.user,
            operation,
            old,
            view: call.view,
            subresource: call.view.subresource(),
            dry_run: call.dry_run,
            notes: &call.notes,
            namespace_bytes: OnceLock::new(),
            namespace_object: OnceLock::new(),
        }
    }

    fn is(&self, group: &str, plural: &str) -> bool {
        self.kind.group == group && self.kind.plural == plural
    }

    /// A new object of this resource.
    fn creates(&self, group: &str, plural: &str) -> bool {
        self.is(group, plural) && self.operation == Operation::Create && self.view == View::Object
    }

    /// A change of the object itself, not of a part with an address of its own.
    fn updates(&self, group: &str, plural: &str) -> bool {
        self.is(group, plural) && self.operation == Operation::Update && self.view == View::Object
    }

    fn forbidden(&self, object: &Value, why: impl std::fmt::Display) -> ApiError {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ApiError::forbidden(&self.kind.group, &self.kind.plural, name, why)
    }

    /// The namespace the object is in as far as it is known; null for objects outside of namespaces.
    fn namespace_object(&self) -> &Value {
        self.namespace_object.get_or_init(|| {
            if self.namespace.is_empty() {
                return Value::Null;
            }
            let known = match self.namespace_bytes.get() {
                Some(bytes) => serde_json::from_slice(bytes).ok(),
                None => self.cached("namespaces", &namespace_key(self.namespace)),
            };
            known.unwrap_or_else(|| json!({}))
        })
    }

    /// Reads the namespace for those who look at its labels: one that was made a moment ago is in the store before it is
    /// in the cache.
    async fn load_namespace(&self) -> Result<(), ApiError> {
        let key = namespace_key(self.namespace);
        if self.namespace.is_empty()
            || self.namespace_bytes.get().is_some()
            || self.server.cache.resource("namespaces").get(&key).is_some()
        {
            return Ok(());
        }
        if let Some(kv) = self.server.store.get(&key).await? {
            self.namespace_bytes.get_or_init(|| kv.value);
        }
        Ok(())
    }

    /// An object as the watch cache has it.
    fn cached(&self, resource: &str, key: &str) -> Option<Value> {
        let item = self.server.cache.resource(resource).get(key)?;
        serde_json::from_slice(&item.bytes).ok()
    }

    /// All objects below a prefix as the watch cache has them.
    fn cached_list(&self, resource: &str, prefix: &str) -> Vec<Value> {
        let items = self.server.cache.resource(resource).list(prefix);
        items.iter().filter_map(|item| serde_json::from_slice(&item.bytes).ok()).collect()
    }
}

type Mutate = fn(&Admission<'_>, &mut Value) -> Result<(), ApiError>;
type Validate = fn(&Admission<'_>, &Value) -> Result<(), ApiError>;

/// In upstream's order.
const MUTATING: &[Mutate] = &[
    namespace::name_label,
    limit_range::set_defaults,
    pod::service_account,
    node::new_taint,
    pod::priority,
    pod::default_tolerations,
    storage_class::default_class,
    storage_class::protect_in_use,
    runtime_class::merge,
    ingress_class::default_class,
    topology::labels_of_bound_pod,
];

/// In upstream's order. Quotas come after all of them, because they are charged only for what is admitted.
const VALIDATING: &[Validate] = &[
    limit_range::validate,
    node::restriction,
    rbac::no_escalation,
    pod_security::validate,
    storage_class::resize,
    runtime_class::validate,
    certificates::signer,
    policy::check_definition,
    webhooks::conditions::check_definition,
];

/// The server's own steps. Running them again after somebody else has changed the object changes nothing twice.
fn complete(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    MUTATING.iter().try_for_each(|plugin| plugin(admission, object))
}

/// Completes an object. What is returned must be committed once the object is stored, or it is given back.
pub(crate) async fn mutate(admission: &Admission<'_>, object: &mut Value) -> Result<Held, ApiError> {
    admission.notes.clear();
    namespace::lifecycle(admission, object).await?;
    pod::await_service_account(admission, object).await;
    complete(admission, object)?;
    intercept::mutate(admission, object).await?;
    addresses::allocate(admission, object)
}

/// Refuses an object, or says what must be written together with it.
pub(crate) async fn validate(admission: &Admission<'_>, object: &Value) -> Result<Charges, ApiError> {
    VALIDATING.iter().try_for_each(|plugin| plugin(admission, object))?;
    intercept::validate(admission, object).await?;
    resource_quota::charge(admission, object).await
}

/// Lets everybody have a word about an action on an object: a document that is posted below it (binding, eviction,
/// token), or a stream. The document as it is to be obeyed; `schema` is its type.
pub(crate) async fn act(
    server: &ApiServer,
    call: &WriteCall<'_>,
    operation: Operation,
    subresource: Subresource,
    schema: &Schema,
    document: Value,
) -> Result<Value, ApiError> {
    let admission =
        Admission { subresource: subresource.as_str(), ..Admission::of(server, call, operation, None) };
    intercept::action(&admission, subresource, schema, document).await
}

/// Whether a namespace is one that always exists.
pub(crate) fn is_immortal_namespace(name: &str) -> bool {
    namespace::IMMORTAL.contains(&name)
}

/// Refuses the deletion of an object.
pub(crate) async fn validate_delete(
    server: &ApiServer,
    call: &WriteCall<'_>,
    old: &Value,
    options: &DeleteOptions,
) -> Result<(), ApiError> {
    call.notes.clear();
    let admission = Admission::of(server, call, Operation::Delete, Some(old));
    node::restrict_delete(&admission, old)?;
    intercept::delete(&admission, old, options.document()).await
}
