//! A kind is a row: everything the generic pipeline needs to know to serve one kind of object.
//!
//! Built-in kinds are `const` [`Row`]s in `kinds/`; custom resources make the same [`Kind`] at run time from their
//! definition. Nothing in the pipeline asks "which kind is this?": it asks the row.

use jiff::Timestamp;
use serde_json::Value;

use crate::field::Errors;

/// Whether objects live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `metadata.namespace` is part of the identity.
    Namespaced,
    /// One name space for the whole cluster.
    Cluster,
}

/// Where objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// In the store, acknowledged when on disk.
    Durable,
    /// In the store, on disk some seconds later (Events).
    Lazy,
    /// In the store's memory only (node heartbeats).
    Volatile,
    /// Nowhere: a question that is answered, such as SubjectAccessReview. Only `create` exists.
    Virtual,
    /// Nowhere: made anew for each reader, such as ComponentStatus. Only `get` and `list` exist.
    Computed,
}

/// Parts of an object with an address of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// `/status`: writes change only `.status`.
    Status,
    /// `/scale`: an `autoscaling/v1` Scale over these JSON pointers.
    Scale,
    /// `/finalize` of namespaces: writes change only `spec.finalizers`.
    Finalize,
    /// `/binding` of pods.
    Binding,
    /// `/eviction` of pods.
    Eviction,
    /// `/ephemeralcontainers` of pods.
    EphemeralContainers,
    /// `/resize` of pods.
    Resize,
    /// `/log` of pods.
    Log,
    /// `/exec` of pods.
    Exec,
    /// `/attach` of pods.
    Attach,
    /// `/portforward` of pods.
    PortForward,
    /// `/proxy` of pods, services and nodes.
    Proxy,
    /// `/token` of service accounts.
    Token,
    /// `/approval` of certificate signing requests.
    Approval,
}

impl Subresource {
    /// The path segment.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale => "scale",
            Self::Finalize => "finalize",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Token => "token",
            Self::Approval => "approval",
        }
    }
}

/// Which names objects may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, at most 253 characters: the common case.
    DnsSubdomain,
    /// RFC 1123 label, at most 63 characters: namespaces.
    DnsLabel,
    /// RFC 1035 label: services.
    Dns1035Label,
    /// Anything that can stand in a path: the RBAC kinds.
    PathSegment,
}

/// A column of `kubectl get`.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading.
    pub name: &'static str,
    /// OpenAPI type: `string`, `integer`, `boolean`, `date`.
    pub type_: &'static str,
    /// OpenAPI format: `name` for the first column, else empty.
    pub format: &'static str,
    /// One sentence.
    pub description: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// An always shown text column.
    pub const fn new(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "string", format: "", description, priority: 0 }
    }
    /// The name column.
    pub const fn name() -> Self {
        Self {
            name: "Name",
            type_: "string",
            format: "name",
            description: "Name of the object.",
            priority: 0,
        }
    }
    /// The age column; its cell is [`crate::table::age`].
    pub const fn age() -> Self {
        Self::new("Age", "Time since the object was created.")
    }
    /// With another OpenAPI type.
    pub const fn of_type(mut self, type_: &'static str) -> Self {
        self.type_ = type_;
        self
    }
    /// Shown with `-o wide` only.
    pub const fn wide(mut self) -> Self {
        self.priority = 1;
        self
    }
}

/// Who makes an object.
#[derive(Clone, Copy, Debug)]
pub struct Requester<'a> {
    /// Name.
    pub username: &'a str,
    /// Stable identity; may be empty.
    pub uid: &'a str,
    /// Groups.
    pub groups: &'a [String],
    /// What else is known of the user.
    pub extra: &'a [(String, Vec<String>)],
}

/// The rules of a kind, all pure. Objects are complete JSON documents whose types were already checked against the
/// schema, so a rule may treat a field of the wrong type as absent.
#[derive(Clone, Copy)]
pub struct Strategy {
    /// Fills in what the user left out and a constant table cannot tell (for instance `imagePullPolicy` by tag).
    pub default: fn(&mut Value),
    /// Sets what the server decides on create (initial status, cleared fields).
    pub prepare_create: fn(&mut Value),
    /// Writes into a new object who made it. Comes after everybody who may change the object.
    pub set_requester: fn(&mut Value, Requester<'_>),
    /// Carries over or resets what an update may not change silently: `(new, old)`.
    pub prepare_update: fn(&mut Value, &Value),
    /// The same for a write to `/status`, at this time.
    pub prepare_status: fn(&mut Value, &Value, Timestamp),
    /// The same for a write to `/approval`, at this time.
    pub prepare_approval: fn(&mut Value, &Value, Timestamp),
    /// Checks a complete object.
    pub validate: fn(&Value) -> Errors,
    /// Checks a change `(new, old)`; [`Strategy::validate`] has run on `new`.
    pub validate_update: fn(&Value, &Value) -> Errors,
    /// Checks a change `(new, old)` that came through `/status`.
    pub validate_status: fn(&Value, &Value) -> Errors,
    /// Checks a change `(new, old)` that came through `/approval`.
    pub validate_approval: fn(&Value, &Value) -> Errors,
}

impl Strategy {
    /// No rules beyond schema and metadata.
    pub const PLAIN: Self = Self {
        default: |_| {},
        prepare_create: |_| {},
        set_requester: |_, _| {},
        prepare_update: |_, _| {},
        prepare_status: |_, _, _| {},
        prepare_approval: |_, _, _| {},
        validate: |_| Errors::new(),
        validate_update: |_, _| Errors::new(),
        validate_status: |_, _| Errors::new(),
        validate_approval: |_, _| Errors::new(),
    };
}

/// A version whose objects are kept in the form of another one.
#[derive(Clone, Copy)]
pub struct Conversion {
    /// Resource under which the objects are kept: `events`, `horizontalpodautoscalers.autoscaling`.
    pub resource: &'static str,
    /// From this version to the one that is kept (`apiVersion` included).
    pub to_storage: fn(&mut Value),
    /// And back.
    pub from_storage: fn(&mut Value),
}

/// What clients may say about an object, besides its content, through one of its parts.
pub const STATUS_METADATA: &[&str] = &["labels", "annotations", "finalizers", "ownerReferences"];

/// Makes the cells of one table row, in the order of [`Row::columns`].
pub type TableRow = fn(&Value, Timestamp) -> Vec<Value>;

/// A built-in kind.
#[derive(Clone, Copy)]
pub struct Row {
    /// API group; empty for core.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// `Deployment`.
    pub kind: &'static str,
    /// `deployments`.
    pub plural: &'static str,
    /// `deployment`.
    pub singular: &'static str,
    /// `deploy`.
    pub short_names: &'static [&'static str],
    /// `all`.
    pub categories: &'static [&'static str],
    /// Namespaced or not.
    pub scope: Scope,
    /// Where objects live.
    pub storage: Storage,
    /// Addresses below the object.
    pub subresources: &'static [Subresource],
    /// Name in the table of types, for example `io.k8s.api.apps.v1.Deployment`.
    pub schema: &'static str,
    /// Columns of `kubectl get`.
    pub columns: &'static [Column],
    /// Cells of `kubectl get`.
    pub table_row: TableRow,
    /// Field selectors besides `metadata.name` and `metadata.namespace`: label and JSON pointer. A missing value
    /// selects as the empty string.
    pub field_selectors: &'static [(&'static str, &'static str)],
    /// Which names are allowed.
    pub name_rule: NameRule,
    /// Whether a status sent with a create is kept: a node registers with what it knows of itself.
    pub status_on_create: bool,
    /// Whether `metadata.generation` counts changes of anything but metadata and status.
    pub generation: bool,
    /// Whether a delete that removes the object at once answers with it, and not with a `Status`: so it is with the kinds
    /// whose registry upstream says `ReturnDeletedObject`, and typed clients read one or the other.
    pub returns_deleted: bool,
    /// What of [`STATUS_METADATA`] a write of `/status` leaves alone. Most kinds take all of it along.
    pub status_keeps: &'static [&'static str],
    /// How the objects of this version are kept, when another version has the say. The rules and columns of the row
    /// are about objects in the form of the row's own version.
    pub stored_as: Option<Conversion>,
    /// Rules.
    pub strategy: Strategy,
}

impl Row {
    /// What most kinds have in common; a row says only what is different.
    pub const PLAIN: Self = Self {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        categories: &[],
        scope: Scope::Namespaced,
        storage: Storage::Durable,
        subresources: &[],
        schema: "",
        columns: &[Column::name(), Column::age()],
        table_row: crate::table::name_and_age,
        field_selectors: &[],
        name_rule: NameRule::DnsSubdomain,
        status_on_create: false,
        generation: false,
        returns_deleted: false,
        status_keeps: &[],
        stored_as: None,
        strategy: Strategy::PLAIN,
    };
}
