//! The kinds a server knows, found by path, by name, by group.
//!
//! A registry is a value: the API server makes a new one when a definition of a custom resource changes and swaps it in,
//! so that a request sees one state of it from its beginning to its end.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use crate::json_path::{self, JsonPath};
use crate::kind::{
    Conversion, NameRule, Row, STATUS_METADATA, Scope, Storage, Strategy, Subresource, TableRow,
};
use crate::schema::Schema;

/// Text that is constant for built-in kinds and owned for custom ones.
pub type Text = Cow<'static, str>;

/// A column of `kubectl get`; the fields are those of [`crate::kind::Column`].
#[allow(missing_docs)]
#[derive(Clone, Debug)]
pub struct Column {
    pub name: Text,
    pub type_: Text,
    pub format: Text,
    pub description: Text,
    pub priority: i32,
}

impl From<&crate::kind::Column> for Column {
    fn from(column: &crate::kind::Column) -> Self {
        Self {
            name: column.name.into(),
            type_: column.type_.into(),
            format: column.format.into(),
            description: column.description.into(),
            priority: column.priority,
        }
    }
}

/// What fills the columns.
#[derive(Clone)]
pub enum Cells {
    /// A function of the row.
    Function(TableRow),
    /// The name, then what is found at each path.
    Paths(Arc<[PathCell]>),
}

/// A column that a definition describes.
#[derive(Clone, Debug)]
pub struct PathCell {
    /// Where the value stands.
    pub path: JsonPath,
    /// OpenAPI type of the column, or `date`.
    pub type_: String,
}

/// Where `/scale` finds its numbers: JSON pointers.
#[derive(Clone, Debug)]
pub struct ScalePaths {
    /// The wanted number.
    pub spec_replicas: Text,
    /// The present number.
    pub status_replicas: Text,
    /// A label selector as text. `None`: the label selector object at `/spec/selector`.
    pub selector: Option<Text>,
}

impl ScalePaths {
    /// Where workloads have the wanted number.
    pub const SPEC_REPLICAS: &'static str = "/spec/replicas";
    /// Where workloads have the present number.
    pub const STATUS_REPLICAS: &'static str = "/status/replicas";
    /// The paths of workloads.
    pub const WORKLOAD: Self = Self {
        spec_replicas: Text::Borrowed(Self::SPEC_REPLICAS),
        status_replicas: Text::Borrowed(Self::STATUS_REPLICAS),
        selector: None,
    };
}

/// How the objects of a version lie in the store.
#[derive(Clone)]
pub enum Stored {
    /// As they are.
    AsIs,
    /// In the form of another built-in version.
    As(Conversion),
    /// As one of the versions of a custom resource.
    Custom(Arc<CustomStorage>),
}

/// What must be known to read the stored objects of a custom resource.
#[derive(Clone, Debug)]
pub struct CustomStorage {
    /// `GROUP/VERSION` in which objects are written.
    pub api_version: String,
    /// Converts between versions; without it they differ in their `apiVersion` only.
    pub webhook: Option<Value>,
    /// Objects last written before this revision may lack defaults that the schema has now.
    pub defaults_since: Option<u64>,
}

/// A kind as the pipeline sees it. Where nothing else is said the fields are those of [`Row`].
#[allow(missing_docs)]
#[derive(Clone)]
pub struct Kind {
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub list_kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub scope: Scope,
    pub storage: Storage,
    pub subresources: Vec<Subresource>,
    pub schema: Schema,
    pub columns: Vec<Column>,
    pub cells: Cells,
    pub field_selectors: Vec<(Text, Text)>,
    pub name_rule: NameRule,
    pub status_on_create: bool,
    pub generation: bool,
    pub returns_deleted: bool,
    pub status_keeps: &'static [&'static str],
    pub stored_as: Stored,
    pub scale: ScalePaths,
    /// The definition is being deleted: nothing new is taken.
    pub closing: bool,
    /// What users of a deprecated version are told.
    pub deprecation: Option<String>,
    pub strategy: Strategy,
    names: Names,
}

/// What is computed from a kind's names and asked for by every request.
#[derive(Clone)]
struct Names {
    api_version: String,
    resource: String,
    stored_resource: String,
    store_prefix: String,
}

impl Names {
    fn new(group: &str, version: &str, plural: &str, stored_resource: Option<&str>) -> Self {
        let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
        let stored_resource = stored_resource.unwrap_or(&resource).to_owned();
        Self {
            api_version: if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") },
            store_prefix: format!("/{stored_resource}/"),
            stored_resource,
            resource,
        }
    }
}

impl From<&'static Row> for Kind {
    fn from(row: &'static Row) -> Self {
        let texts = |list: &'static [&'static str]| list.iter().map(|s| Text::Borrowed(s)).collect();
        Self {
            group: row.group.into(),
            version: row.version.into(),
            kind: row.kind.into(),
            list_kind: format!("{}List", row.kind).into(),
            plural: row.plural.into(),
            singular: row.singular.into(),
            short_names: texts(row.short_names),
            categories: texts(row.categories),
            scope: row.scope,
            storage: row.storage,
            subresources: row.subresources.to_vec(),
            schema: Schema::Table(row.schema),
            columns: row.columns.iter().map(Column::from).collect(),
            cells: Cells::Function(row.table_row),
            field_selectors: row.field_selectors.iter().map(|(l, p)| ((*l).into(), (*p).into())).collect(),
            name_rule: row.name_rule,
            status_on_create: row.status_on_create,
            generation: row.generation,
            returns_deleted: row.returns_deleted,
            status_keeps: row.status_keeps,
            stored_as: row.stored_as.map_or(Stored::AsIs, Stored::As),
            scale: ScalePaths::WORKLOAD,
            closing: false,
            deprecation: None,
            strategy: row.strategy,
            names: Names::new(row.group, row.version, row.plural, row.stored_as.map(|other| other.resource)),
        }
    }
}

impl Kind {
    /// A custom resource with its names missing and nothing else to it: the maker of kinds fills in the rest.
    pub(crate) fn custom(group: &str, version: &str, plural: &str, scope: Scope, schema: Schema) -> Self {
        let empty = || Text::Borrowed("");
        Self {
            group: group.to_owned().into(),
            version: version.to_owned().into(),
            plural: plural.to_owned().into(),
            kind: empty(),
            list_kind: empty(),
            singular: empty(),
            short_names: Vec::new(),
            categories: Vec::new(),
            scope,
            storage: Storage::Durable,
            subresources: Vec::new(),
            schema,
            columns: Vec::new(),
            cells: Cells::Paths(Arc::new([])),
            field_selectors: Vec::new(),
            name_rule: NameRule::DnsSubdomain,
            status_on_create: false,
            generation: true,
            returns_deleted: false,
            status_keeps: STATUS_METADATA,
            stored_as: Stored::AsIs,
            scale: ScalePaths::WORKLOAD,
            closing: false,
            deprecation: None,
            strategy: Strategy::PLAIN,
            names: Names::new(group, version, plural, None),
        }
    }

    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> &str {
        &self.names.api_version
    }

    /// `pods` or `deployments.apps`, as messages name a resource.
    pub fn resource(&self) -> &str {
        &self.names.resource
    }

    /// The resource under which the objects are kept: another one than [`Kind::resource`] where two groups show the
    /// same objects.
    pub fn stored_resource(&self) -> &str {
        &self.names.stored_resource
    }

    /// Objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Objects exist, rather than being questions.
    pub fn stored(&self) -> bool {
        !matches!(self.storage, Storage::Virtual | Storage::Computed)
    }

    /// Whether there is such an address below objects.
    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }

    /// Verbs of the resource itself, as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        match self.storage {
            Storage::Virtual => &["create"],
            Storage::Computed => &["get", "list"],
            _ => &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"],
        }
    }

    /// First part of every store key of the kind: `/deployments.apps/`.
    pub fn store_prefix(&self) -> &str {
        &self.names.store_prefix
    }

    /// Store key of an object. Namespaced: `/pods/NAMESPACE/NAME`, else `/nodes/NAME`.
    pub fn store_key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced() {
            format!("{}{namespace}/{name}", self.store_prefix())
        } else {
            format!("{}{name}", self.store_prefix())
        }
    }

    /// Name of the type in published schemas: `io.k8s.api.core.v1.Pod`.
    pub fn schema_name(&self) -> &str {
        match &self.schema {
            Schema::Table(name) => name,
            Schema::Custom(custom) => &custom.name,
        }
    }

    /// JSON pointer behind a field selector label.
    pub fn field_pointer(&self, label: &str) -> Option<&str> {
        match label {
            "metadata.name" => Some("/metadata/name"),
            "metadata.namespace" if self.namespaced() => Some("/metadata/namespace"),
            _ => self.field_selectors.iter().find(|(l, _)| l == label).map(|(_, pointer)| &**pointer),
        }
    }

    /// Cells of a table row, in the order of [`Kind::columns`].
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match &self.cells {
            Cells::Function(row) => row(object, now),
            Cells::Paths(cells) => {
                let name = object["metadata"]["name"].clone();
                let cell = |c: &PathCell| json_path::cell(&c.path.find(object), &c.type_, now);
                std::iter::once(name).chain(cells.iter().map(cell)).collect()
            }
        }
    }
}

/// A group and its versions, best first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Name; empty for core.
    pub name: Text,
    /// Versions.
    pub versions: Vec<Text>,
}

/// All kinds of a server.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: Vec<Arc<Kind>>,
    /// Kinds by plural name; the few of the same name differ in group or version.
    by_plural: HashMap<Text, Vec<Arc<Kind>>>,
}

impl Registry {
    /// The built-in kinds.
    pub fn built_in() -> Self {
        let mut registry = Self::default();
        for row in crate::kinds::ROWS {
            registry.add(Kind::from(*row));
        }
        registry
    }

    /// Adds a kind or replaces the one at the same address.
    pub fn add(&mut self, kind: Kind) {
        self.add_shared(Arc::new(kind));
    }

    /// [`Registry::add`] of a kind that other registries have too.
    pub fn add_shared(&mut self, kind: Arc<Kind>) {
        let same_address = |known: &Arc<Kind>| {
            (&known.group, &known.version, &known.plural) == (&kind.group, &kind.version, &kind.plural)
        };
        let namesakes = self.by_plural.entry(kind.plural.clone()).or_default();
        if namesakes.iter().any(same_address) {
            namesakes.retain(|known| !same_address(known));
            self.kinds.retain(|known| !same_address(known));
        }
        namesakes.push(kind.clone());
        self.kinds.push(kind);
    }

    /// The kind at `/apis/GROUP/VERSION/PLURAL`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_plural.get(plural)?.iter().find(|kind| kind.group == group && kind.version == version)
    }

    /// The kind with this name in this group and version.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|k| k.group == group && k.version == version && k.kind == kind)
    }

    /// The kind of this resource in any version.
    pub fn find_resource(&self, group: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_plural.get(plural)?.iter().find(|kind| kind.group == group)
    }

    /// All kinds in the order of the table.
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// Kinds of one group and version.
    pub fn of_version<'a>(&'a self, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Arc<Kind>> {
        self.kinds.iter().filter(move |k| k.group == group && k.version == version)
    }

    /// Groups in the order in which the table first names them.
    pub fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        for kind in &self.kinds {
            match groups.iter_mut().find(|g| g.name == kind.group) {
                Some(group) if !group.versions.contains(&kind.version) => {
                    group.versions.push(kind.version.clone())
                }
                Some(_) => {}
                None => groups.push(Group { name: kind.group.clone(), versions: vec![kind.version.clone()] }),
            }
        }
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::Types;

    #[test]
    fn rows_are_complete_and_unique() {
        let registry = Registry::built_in();
        assert_eq!(registry.kinds().len(), crate::kinds::ROWS.len(), "two rows share an address");
        for kind in registry.kinds() {
            let name = kind.resource();
            let type_name = kind.schema.type_name().expect("built-in kinds are in the table");
            assert!(Types::get().type_(type_name).is_some(), "{name}: no type {type_name}");
            assert!(!kind.singular.is_empty() && !kind.kind.is_empty(), "{name}: names are missing");
            assert_eq!(
                registry
                    .kinds()
                    .iter()
                    .filter(|k| k.group == kind.group && k.version == kind.version && k.kind == kind.kind)
                    .count(),
                1,
                "{name}: kind twice"
            );
            for short in &kind.short_names {
                let other =
                    registry.kinds().iter().find(|k| k.short_names.contains(short) && k.kind != kind.kind);
                assert!(other.is_none(), "{name}: short name {short} twice");
            }
            let object = serde_json::json!({"metadata": {"name": "x"}});
            let cells = kind.cells(&object, jiff::Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), kind.columns.len(), "{name}: cells and columns differ");
        }
    }

    #[test]
    fn keys() {
        let registry = Registry::built_in();
        let pods = registry.find("", "v1", "pods").expect("pods");
        assert_eq!(pods.store_key("a", "b"), "/pods/a/b");
        let nodes = registry.find("", "v1", "nodes").expect("nodes");
        assert_eq!(nodes.store_key("", "n"), "/nodes/n");
        let deployments = registry.find("apps", "v1", "deployments").expect("deployments");
        assert_eq!((deployments.resource(), deployments.api_version()), ("deployments.apps", "apps/v1"));
    }
}
