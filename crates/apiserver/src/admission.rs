//! Admission: what the server adds to a request's object and what it refuses beyond the rules of the kind.
//!
//! A plug-in is a function in one of the two tables below; the pipeline calls them in order. Plug-ins may read the watch
//! cache, and nothing else of the world.

mod addresses;
mod certificates;
mod namespace;
mod node;
mod pod;
mod rbac;

use std::sync::Arc;

use sampan_api::registry::Kind;
use serde_json::Value;

pub(crate) use addresses::{AddressRange, Allocator, Held};
pub(crate) use node::node_of;

use crate::auth::User;
use crate::error::ApiError;
use crate::server::ApiServer;
use crate::view::View;
use crate::write::WriteCall;

/// The request an object comes with.
pub(crate) struct Admission<'a> {
    pub(crate) server: &'a ApiServer,
    pub(crate) kind: &'a Arc<Kind>,
    pub(crate) namespace: &'a str,
    pub(crate) user: &'a User,
    /// `None` on create.
    pub(crate) old: Option<&'a Value>,
    pub(crate) view: View,
}

impl Admission<'_> {
    fn is(&self, group: &str, plural: &str) -> bool {
        self.kind.group == group && self.kind.plural == plural
    }

    fn forbidden(&self, object: &Value, why: impl std::fmt::Display) -> ApiError {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        ApiError::forbidden(&self.kind.group, &self.kind.plural, name, why)
    }
}

type Mutate = fn(&Admission<'_>, &mut Value) -> Result<(), ApiError>;
type Validate = fn(&Admission<'_>, &Value) -> Result<(), ApiError>;

/// In upstream's order.
const MUTATING: &[Mutate] = &[
    namespace::name_label,
    pod::service_account,
    pod::priority,
    pod::default_tolerations,
    certificates::requester,
];

const VALIDATING: &[Validate] = &[node::restriction, rbac::no_escalation, certificates::signer];

/// Completes an object. What is returned must be committed once the object is stored, or it is given back.
pub(crate) async fn mutate(admission: &Admission<'_>, object: &mut Value) -> Result<Held, ApiError> {
    namespace::lifecycle(admission, object).await?;
    pod::await_service_account(admission, object).await;
    for plugin in MUTATING {
        plugin(admission, object)?;
    }
    addresses::allocate(admission, object)
}

/// Refuses an object.
pub(crate) fn validate(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    VALIDATING.iter().try_for_each(|plugin| plugin(admission, object))
}

/// Whether a namespace is one that always exists.
pub(crate) fn is_immortal_namespace(name: &str) -> bool {
    namespace::IMMORTAL.contains(&name)
}

/// Refuses the deletion of an object.
pub(crate) fn validate_delete(server: &ApiServer, call: &WriteCall<'_>, old: &Value) -> Result<(), ApiError> {
    let admission = Admission {
        server,
        kind: call.kind,
        namespace: call.namespace,
        user: call.user,
        old: Some(old),
        view: call.view,
    };
    node::restrict_delete(&admission, old)
}
