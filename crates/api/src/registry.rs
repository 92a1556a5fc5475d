//! The kinds a server knows, found by path, by name, by group.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kind::{Column, Conversion, NameRule, Row, Scope, Storage, Strategy, Subresource, TableRow};

/// Text that is constant for built-in kinds and owned for custom ones.
pub type Text = Cow<'static, str>;

/// A kind as the pipeline sees it. The fields are those of [`Row`].
#[allow(missing_docs)]
#[derive(Clone)]
pub struct Kind {
    pub group: Text,
    pub version: Text,
    pub kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub scope: Scope,
    pub storage: Storage,
    pub subresources: Vec<Subresource>,
    pub schema: Text,
    pub columns: Vec<Column>,
    pub table_row: TableRow,
    pub field_selectors: Vec<(Text, Text)>,
    pub name_rule: NameRule,
    pub status_on_create: bool,
    pub generation: bool,
    pub stored_as: Option<Conversion>,
    pub strategy: Strategy,
}

impl From<&'static Row> for Kind {
    fn from(row: &'static Row) -> Self {
        let texts = |list: &'static [&'static str]| list.iter().map(|s| Text::Borrowed(s)).collect();
        Self {
            group: row.group.into(),
            version: row.version.into(),
            kind: row.kind.into(),
            plural: row.plural.into(),
            singular: row.singular.into(),
            short_names: texts(row.short_names),
            categories: texts(row.categories),
            scope: row.scope,
            storage: row.storage,
            subresources: row.subresources.to_vec(),
            schema: row.schema.into(),
            columns: row.columns.to_vec(),
            table_row: row.table_row,
            field_selectors: row.field_selectors.iter().map(|(l, p)| ((*l).into(), (*p).into())).collect(),
            name_rule: row.name_rule,
            status_on_create: row.status_on_create,
            generation: row.generation,
            stored_as: row.stored_as,
            strategy: row.strategy,
        }
    }
}

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods` or `deployments.apps`, as messages name a resource.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }

    /// Objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    /// Objects exist, rather than being questions.
    pub fn stored(&self) -> bool {
        self.storage != Storage::Virtual
    }

    /// Whether there is such an address below objects.
    pub fn has(&self, subresource: Subresource) -> bool {
        self.subresources.contains(&subresource)
    }

    /// Verbs of the resource itself, as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        if self.stored() {
            &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        } else {
            &["create"]
        }
    }

    /// First part of every store key of the kind: `/deployments.apps/`.
    pub fn store_prefix(&self) -> String {
        format!("/{}/", self.resource())
    }

    /// Store key of an object. Namespaced: `/pods/NAMESPACE/NAME`, else `/nodes/NAME`.
    pub fn store_key(&self, namespace: &str, name: &str) -> String {
        if self.namespaced() {
            format!("{}{namespace}/{name}", self.store_prefix())
        } else {
            format!("{}{name}", self.store_prefix())
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
    by_path: BTreeMap<(Text, Text, Text), Arc<Kind>>,
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
        let kind = Arc::new(kind);
        let path = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
        if self.by_path.insert(path, kind.clone()).is_some() {
            self.kinds
                .retain(|k| (&k.group, &k.version, &k.plural) != (&kind.group, &kind.version, &kind.plural));
        }
        self.kinds.push(kind);
    }

    /// The kind at `/apis/GROUP/VERSION/PLURAL`.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_path.get(&(
            Text::from(group.to_owned()),
            Text::from(version.to_owned()),
            Text::from(plural.to_owned()),
        ))
    }

    /// The kind with this name in this group and version.
    pub fn find_kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|k| k.group == group && k.version == version && k.kind == kind)
    }

    /// The kind of this resource in any version.
    pub fn find_resource(&self, group: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.kinds.iter().find(|k| k.group == group && k.plural == plural)
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
            assert!(Types::get().type_(&kind.schema).is_some(), "{name}: no type {}", kind.schema);
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
            let cells = (kind.table_row)(
                &serde_json::json!({"metadata": {"name": "x"}}),
                jiff::Timestamp::UNIX_EPOCH,
            );
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
        assert_eq!(
            (deployments.resource(), deployments.api_version()),
            ("deployments.apps".into(), "apps/v1".into())
        );
    }
}
