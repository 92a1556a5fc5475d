//! A request as policies and webhooks see it: what it is about, and the same in other versions of its resource.
//!
//! Who matches by an equivalent resource (`matchPolicy: Equivalent`) gets the documents in that resource's version, with
//! `kind` and `resource` of what was matched beside `requestKind` and `requestResource` of what was asked for. Resources
//! are equivalent when the same objects are kept for them: other versions, and `events` in two groups.
//!
//! Source: `k8s.io/apiserver/pkg/admission/plugin/webhook/{generic,request}`.

use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use sampan_api::kind::Subresource;
use sampan_api::registry::Kind;
use sampan_api::schema::Schema;
use serde_json::{Value, json};

use super::matching::Labels;
use super::{Admission, Operation};
use crate::auth::User;
use crate::discovery::subresource_facts;
use crate::error::ApiError;
use crate::server::ApiServer;

/// Kinds that decide about webhooks and policies are never seen by them: nobody could repair a broken one otherwise.
const EXEMPT: &str = "admissionregistration.k8s.io";

/// Group, version and kind of a document.
pub(super) type DocumentName = (String, String, String);

/// A request as policies and webhooks see it.
pub(super) struct Intercepted<'a> {
    pub(super) operation: Operation,
    /// The row of the resource in the address.
    pub(super) kind: &'a Arc<Kind>,
    /// Other resources that show the same objects and have the same part.
    pub(super) equivalents: Vec<Arc<Kind>>,
    /// What the document is: the row's own, or for instance `autoscaling/v1, Scale`.
    pub(super) document: DocumentName,
    /// Its type.
    schema: Schema,
    /// Empty for the object itself.
    pub(super) subresource: &'a str,
    /// For a namespace its own name.
    pub(super) namespace: &'a str,
    pub(super) name: &'a str,
    pub(super) user: &'a User,
    pub(super) dry_run: bool,
    /// `CreateOptions` and the like; null for a stream.
    pub(super) options: Value,
    /// The document before; `None` when there was none.
    pub(super) old: Option<Value>,
    /// What its documents are in other versions.
    conversions: Conversions,
}

/// A document as a resource shows it.
#[derive(Clone, Debug)]
pub(super) enum Shown<'a> {
    /// As it is.
    Own(&'a Value),
    /// Converted; everybody who matched by that resource sees the same.
    Converted(Arc<Value>),
}

impl Deref for Shown<'_> {
    type Target = Value;

    fn deref(&self) -> &Value {
        match self {
            Self::Own(document) => document,
            Self::Converted(document) => document,
        }
    }
}

/// Which document of a request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Object,
    Old,
}

/// The documents of a request in other versions, the last ones of each: a conversion may be a request to a webhook.
#[derive(Debug, Default)]
pub(super) struct Conversions(Mutex<Vec<Conversion>>);

#[derive(Debug)]
struct Conversion {
    which: Which,
    api_version: String,
    from: Value,
    shown: Arc<Value>,
}

impl Conversions {
    /// What a document was converted to, unless it has changed since.
    fn find(&self, which: Which, api_version: &str, from: &Value) -> Option<Arc<Value>> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |c: &&Conversion| c.which == which && c.api_version == api_version && c.from == *from;
        known.iter().find(same).map(|conversion| conversion.shown.clone())
    }

    /// Remembers a conversion in place of the one before.
    fn keep(&self, which: Which, api_version: &str, from: Value, shown: Arc<Value>) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|c| c.which != which || c.api_version != api_version);
        known.push(Conversion { which, api_version: api_version.to_owned(), from, shown });
    }
}

/// The documents of a request as one of its resources shows them.
#[derive(Clone)]
pub(super) struct Seen<'a> {
    /// The resource that was matched.
    pub(super) kind: &'a Kind,
    pub(super) object: Option<Shown<'a>>,
    pub(super) old: Option<Shown<'a>>,
}

impl<'a> Intercepted<'a> {
    /// A request about an object or one of its views; `name` is the object's.
    pub(super) fn of(admission: &'a Admission<'a>, name: &'a str) -> Self {
        let document = admission.view.document(admission.kind);
        let (group, version) = document.api_version.split_once('/').unwrap_or(("", document.api_version));
        Self {
            operation: admission.operation,
            kind: admission.kind,
            equivalents: equivalents(admission.server, admission.kind, admission.subresource),
            document: (group.to_owned(), version.to_owned(), document.kind.to_owned()),
            schema: document.schema.clone(),
            subresource: admission.subresource,
            namespace: if admission.is("", "namespaces") { name } else { admission.namespace },
            name,
            user: admission.user,
            dry_run: admission.dry_run,
            options: admission.call.options(admission.operation),
            old: admission.old.map(|old| admission.view.of(admission.kind, old)),
            conversions: Conversions::default(),
        }
    }

    /// A request about an action, whose document is none of the object's.
    pub(super) fn of_action(admission: &'a Admission<'a>, subresource: Subresource, schema: &Schema) -> Self {
        let mut request = Self::of(admission, admission.call.name);
        request.schema = schema.clone();
        (_, request.document) = subresource_facts(admission.kind, subresource);
        if admission.operation == Operation::Connect {
            request.options = Value::Null;
        }
        request
    }

    pub(super) fn is_exempt(&self) -> bool {
        self.kind.group == EXEMPT
    }

    pub(super) fn is_namespace(&self) -> bool {
        self.kind.group.is_empty() && self.kind.plural == "namespaces"
    }

    /// What selectors look at; `namespace` is the one the object is in.
    pub(super) fn labels<'b>(&'b self, object: Option<&'b Value>, namespace: &'b Value) -> Labels<'b> {
        let writes = matches!(self.operation, Operation::Create | Operation::Update);
        let namespace = match object {
            _ if !self.is_namespace() => namespace,
            Some(object) if writes && self.subresource.is_empty() => object,
            _ => self.old.as_ref().unwrap_or(&Value::Null),
        };
        Labels { object, old: self.old.as_ref(), namespace }
    }

    /// Whether the document is the object and not one that is the same for every version of it.
    fn is_own(&self) -> bool {
        let (group, version, kind) = &self.document;
        *group == self.kind.group && *version == self.kind.version && *kind == self.kind.kind
    }

    /// Group, version and kind of the document as a resource shows it.
    fn document_of(&self, kind: &Kind) -> DocumentName {
        if self.is_own() {
            return (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string());
        }
        self.document.clone()
    }

    /// The type of the document as a resource shows it.
    pub(super) fn schema_of<'b>(&'b self, kind: &'b Kind) -> &'b Schema {
        if self.is_own() { &kind.schema } else { &self.schema }
    }

    /// The documents as a resource shows them that the request matched by.
    pub(super) async fn seen<'b>(
        &'b self,
        server: &ApiServer,
        matched: &'b Kind,
        object: Option<&'b Value>,
    ) -> Result<Seen<'b>, ApiError> {
        Ok(Seen {
            kind: matched,
            object: self.shown(server, matched, Which::Object, object).await?,
            old: self.shown(server, matched, Which::Old, self.old.as_ref()).await?,
        })
    }

    async fn shown<'b>(
        &self,
        server: &ApiServer,
        matched: &Kind,
        which: Which,
        document: Option<&'b Value>,
    ) -> Result<Option<Shown<'b>>, ApiError> {
        let Some(document) = document else { return Ok(None) };
        if !self.converts(matched) {
            return Ok(Some(Shown::Own(document)));
        }
        let version = matched.api_version();
        if let Some(shown) = self.conversions.find(which, version, document) {
            return Ok(Some(Shown::Converted(shown)));
        }
        let shown = Arc::new(server.convert_between(self.kind, matched, document.clone()).await?);
        self.conversions.keep(which, version, document.clone(), shown.clone());
        Ok(Some(Shown::Converted(shown)))
    }

    /// A document that was changed in the form of a matched resource, in the request's own.
    pub(super) async fn own_form(
        &self,
        server: &ApiServer,
        matched: &Kind,
        document: Value,
    ) -> Result<Value, ApiError> {
        if self.converts(matched) {
            return server.convert_between(matched, self.kind, document).await;
        }
        Ok(document)
    }

    fn converts(&self, matched: &Kind) -> bool {
        self.is_own() && matched.api_version() != self.kind.api_version()
    }

    /// `AdmissionRequest` without its objects and its uid, for who matched by a resource.
    pub(super) fn description(&self, matched: &Kind) -> Value {
        let document =
            |(group, version, kind): &DocumentName| json!({"group": group, "version": version, "kind": kind});
        let resource =
            |kind: &Kind| json!({"group": kind.group, "version": kind.version, "resource": kind.plural});
        json!({
            "kind": document(&self.document_of(matched)),
            "resource": resource(matched),
            "subResource": self.subresource,
            "requestKind": document(&self.document),
            "requestResource": resource(self.kind),
            "requestSubResource": self.subresource,
            "name": self.name,
            "namespace": self.namespace,
            "operation": self.operation.as_str(),
            "userInfo": self.user.info(),
            "dryRun": self.dry_run,
            "options": self.options,
        })
    }
}

/// Resources that show the same objects as a kind does, and have the same part.
fn equivalents(server: &ApiServer, kind: &Kind, subresource: &str) -> Vec<Arc<Kind>> {
    let registry = server.registry();
    let is_equivalent = |other: &&Arc<Kind>| {
        other.stored_resource() == kind.stored_resource()
            && other.api_version() != kind.api_version()
            && (subresource.is_empty() || other.subresources.iter().any(|part| part.as_str() == subresource))
    };
    registry.kinds().iter().filter(is_equivalent).cloned().collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request for a resource alone.
    pub(in crate::admission) fn request<'a>(
        kind: &'a Arc<Kind>,
        user: &'a User,
        operation: Operation,
        subresource: &'a str,
        namespace: &'a str,
    ) -> Intercepted<'a> {
        Intercepted {
            operation,
            kind,
            equivalents: Vec::new(),
            document: (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string()),
            schema: kind.schema.clone(),
            subresource,
            namespace,
            name: "x",
            user,
            dry_run: false,
            options: Value::Null,
            old: None,
            conversions: Conversions::default(),
        }
    }

    #[test]
    fn a_conversion_is_good_until_the_document_changes() {
        let conversions = Conversions::default();
        let (one, two, shown) = (json!(1), json!(2), Arc::new(json!("one")));
        conversions.keep(Which::Object, "a/v1", one.clone(), shown.clone());
        // Which, version, document, whether it is known.
        let rows = [
            (Which::Object, "a/v1", &one, true),
            (Which::Object, "a/v1", &two, false),
            (Which::Object, "a/v2", &one, false),
            (Which::Old, "a/v1", &one, false),
        ];
        for (which, version, from, known) in rows {
            let found = conversions.find(which, version, from);
            assert_eq!(found, known.then(|| shown.clone()), "{which:?} {version} {from}");
        }
        conversions.keep(Which::Old, "a/v1", one.clone(), shown.clone());
        conversions.keep(Which::Object, "a/v1", two.clone(), Arc::new(json!("two")));
        assert!(conversions.find(Which::Object, "a/v1", &one).is_none());
        assert_eq!(conversions.find(Which::Object, "a/v1", &two), Some(Arc::new(json!("two"))));
        assert_eq!(conversions.find(Which::Old, "a/v1", &one), Some(shown));
    }
}
