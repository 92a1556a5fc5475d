//! Field management: who owns which field, and server-side apply on top of it (KEP-555).
//!
//! Every writer is a manager. An `Update` makes its writer own what it changed; an `Apply` makes its writer own exactly
//! what it sent, takes away what it sent last time and nobody else owns, and conflicts where another manager owns a
//! field that would change. The rules are those of `sigs.k8s.io/structured-merge-diff`.

use serde_json::{Map, Value, json};

use super::PatchError;
use super::field_set::{self, FieldSet};
use super::shape::{self, Shape};
use crate::schema::Schema;

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manager<'a> {
    /// `fieldManager` of the request.
    pub name: &'a str,
    /// `apps/v1`: the version the fields are named in.
    pub api_version: &'a str,
    /// Subresource the request went to, or empty.
    pub subresource: &'a str,
    /// RFC 3339 time of the request.
    pub time: &'a str,
}

/// Another manager owns a field that would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// Name of the owner.
    pub manager: String,
    /// `Update` managers are shown with their version.
    pub api_version: String,
    /// Path of the field.
    pub field: String,
}

/// Fields nobody owns: identity and bookkeeping of the server.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "creationTimestamp"],
    &["metadata", "selfLink"],
    &["metadata", "uid"],
    &["metadata", "generation"],
    &["metadata", "managedFields"],
    &["metadata", "resourceVersion"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "deletionGracePeriodSeconds"],
];

/// More managers than this with operation Update are merged into one, as upstream does.
const MAX_UPDATE_MANAGERS: usize = 10;

#[derive(Clone, Debug)]
struct Entry {
    manager: String,
    operation: &'static str,
    api_version: String,
    subresource: String,
    time: String,
    fields: FieldSet,
}

impl Entry {
    fn is(&self, manager: &Manager<'_>, operation: &str) -> bool {
        self.manager == manager.name
            && self.operation == operation
            && self.subresource == manager.subresource
            && (operation == "Apply" || self.api_version == manager.api_version)
    }

    fn of(manager: &Manager<'_>, operation: &'static str, fields: FieldSet) -> Self {
        Self {
            manager: manager.name.to_owned(),
            operation,
            api_version: manager.api_version.to_owned(),
            subresource: manager.subresource.to_owned(),
            time: manager.time.to_owned(),
            fields,
        }
    }
}

fn read_entries(object: &Value) -> Vec<Entry> {
    let entries = object["metadata"]["managedFields"].as_array();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    entries
        .into_iter()
        .flatten()
        .map(|entry| Entry {
            manager: text(&entry["manager"]),
            operation: if entry["operation"] == "Apply" { "Apply" } else { "Update" },
            api_version: text(&entry["apiVersion"]),
            subresource: text(&entry["subresource"]),
            time: text(&entry["time"]),
            fields: FieldSet::from_json(&entry["fieldsV1"]),
        })
        .collect()
}

fn write_entries(object: &mut Value, mut entries: Vec<Entry>) {
    entries.retain(|entry| !entry.fields.is_empty());
    cap_update_managers(&mut entries);
    let list: Vec<Value> = entries
        .into_iter()
        .map(|entry| {
            let mut out = json!({
                "manager": entry.manager,
                "operation": entry.operation,
                "apiVersion": entry.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.to_json(),
            });
            if !entry.subresource.is_empty() {
                out["subresource"] = entry.subresource.into();
            }
            out
        })
        .collect();
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    if list.is_empty() {
        metadata.remove("managedFields");
    } else {
        metadata.insert("managedFields".to_owned(), Value::Array(list));
    }
}

/// The oldest `Update` managers become one called `ancient-changes`.
fn cap_update_managers(entries: &mut Vec<Entry>) {
    let mut updates: Vec<usize> = (0..entries.len()).filter(|&i| entries[i].operation == "Update").collect();
    if updates.len() <= MAX_UPDATE_MANAGERS {
        return;
    }
    updates.sort_by(|&a, &b| entries[a].time.cmp(&entries[b].time));
    let surplus = updates.len() - MAX_UPDATE_MANAGERS + 1;
    let mut oldest: Vec<usize> = updates[..surplus].to_vec();
    oldest.sort_unstable();
    let mut merged = entries[updates[0]].clone();
    merged.manager = "ancient-changes".to_owned();
    for &i in oldest.iter().rev() {
        merged.fields = merged.fields.union(&entries[i].fields);
        entries.remove(i);
    }
    entries.push(merged);
}

/// What a writer through `subresource` can own: never the server's books, and of status only its own writer.
fn ownable(mut set: FieldSet, subresource: &str) -> FieldSet {
    for path in UNOWNED {
        set.remove_path(path);
    }
    if subresource != "status" {
        set.remove_path(&["status"]);
    }
    set
}

/// Writes `metadata.managedFields` of `new` for a create or update: the writer owns what it changed, others lose it.
/// `old` is `None` for a create.
pub fn track_update(schema: &Schema, old: Option<&Value>, new: &mut Value, manager: &Manager<'_>) {
    let shape = Shape::of_schema(schema);
    // A writer may clear the list on purpose: sending it empty resets ownership.
    let reset = new["metadata"]["managedFields"]
        .as_array()
        .is_some_and(|list| list.len() == 1 && list[0] == json!({}));
    // What the writer sends counts, so that it can hand over fields; a writer that does not know of managers sends none.
    let sent = new["metadata"]["managedFields"].as_array().is_some_and(|list| !list.is_empty());
    let mut entries = match (reset, sent) {
        (true, _) => Vec::new(),
        (false, true) => read_entries(new),
        (false, false) => read_entries(old.unwrap_or(&Value::Null)),
    };
    let empty = json!({});
    let comparison = field_set::compare(old.unwrap_or(&empty), new, shape);
    let changed = ownable(comparison.changed, manager.subresource);
    let removed = ownable(comparison.removed, manager.subresource);
    if changed.is_empty() && removed.is_empty() && !reset {
        write_entries(new, entries);
        return;
    }
    let mut found = false;
    for entry in &mut entries {
        let gone = entry.fields.difference(&removed);
        if entry.is(manager, "Update") {
            found = true;
            let fields = gone.union(&changed);
            if fields != entry.fields {
                entry.time = manager.time.to_owned();
            }
            entry.fields = fields;
        } else {
            entry.fields = gone.difference(&changed);
        }
    }
    if !found && !changed.is_empty() {
        entries.push(Entry::of(manager, "Update", changed));
    }
    write_entries(new, entries);
}

/// What [`apply`] makes.
#[derive(Debug)]
pub enum Applied {
    /// The object with the configuration applied, `managedFields` not yet written.
    Merged(Box<Merged>),
    /// Nothing was done.
    Conflicts(Vec<Conflict>),
}

/// A merged object and what is needed to write its ownership after defaulting and admission.
#[derive(Debug)]
pub struct Merged {
    /// The object.
    pub object: Value,
    live: Value,
    entries: Vec<Entry>,
    applied: FieldSet,
}

/// Applies `configuration` to `live` (`None` when the object does not exist).
///
/// # Errors
/// When two elements of a list in the configuration have the same name: which of them is meant cannot be told. A live
/// object may have such lists, for an update does not have to name elements.
pub fn apply(
    schema: &Schema,
    live: Option<&Value>,
    configuration: &Value,
    manager: &Manager<'_>,
    force: bool,
) -> Result<Applied, PatchError> {
    let shape = Shape::of_schema(schema);
    if let Some(duplicate) = field_set::find_duplicate(configuration, shape) {
        return Err(PatchError::Malformed(format!(
            "failed to create typed patch object ({}): {duplicate}",
            title(configuration)
        )));
    }
    let live = live.cloned().unwrap_or_else(|| json!({}));
    let mut entries = read_entries(&live);
    let applied = ownable(FieldSet::of_value(configuration, shape), manager.subresource);
    let mut object = merge(&live, configuration, shape);
    let last = entries.iter().find(|e| e.is(manager, "Apply")).map(|e| e.fields.clone()).unwrap_or_default();
    let others = entries
        .iter()
        .filter(|e| !e.is(manager, "Apply"))
        .fold(FieldSet::default(), |sum, entry| sum.union(&entry.fields));
    remove(&mut object, &last.difference(&applied).difference(&others), &others.union(&applied), shape);

    let changed = field_set::compare(&live, &object, shape).changed.intersection(&applied);
    let mut conflicts = Vec::new();
    for entry in entries.iter_mut().filter(|e| !e.is(manager, "Apply")) {
        let contested = entry.fields.intersection(&changed);
        if contested.is_empty() {
            continue;
        }
        // A manager does not conflict with its own earlier updates.
        if !force && entry.manager != manager.name {
            conflicts.extend(contested.paths().into_iter().map(|field| Conflict {
                manager: entry.manager.clone(),
                api_version: if entry.operation == "Update" {
                    entry.api_version.clone()
                } else {
                    String::new()
                },
                field,
            }));
        }
        entry.fields = entry.fields.difference(&contested);
    }
    if !conflicts.is_empty() {
        return Ok(Applied::Conflicts(conflicts));
    }
    Ok(Applied::Merged(Box::new(Merged { object, live, entries, applied })))
}

/// `default/web; apps/v1, Kind=Deployment`.
fn title(object: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    format!(
        "{}/{}; {}, Kind={}",
        text(&metadata["namespace"]),
        text(&metadata["name"]),
        text(&object["apiVersion"]),
        text(&object["kind"])
    )
}

impl Merged {
    /// Writes ownership into `final_object`, which is [`Merged::object`] after defaulting and admission.
    pub fn track(mut self, final_object: &mut Value, manager: &Manager<'_>) {
        match self.entries.iter_mut().find(|e| e.is(manager, "Apply")) {
            Some(entry) => {
                if entry.fields != self.applied || entry.api_version != manager.api_version {
                    entry.time = manager.time.to_owned();
                }
                entry.api_version = manager.api_version.to_owned();
                entry.fields = self.applied;
            }
            None => self.entries.push(Entry::of(manager, "Apply", self.applied)),
        }
        // Fields that vanished belong to nobody any more.
        let removed = field_set::compare(&self.live, final_object, Shape::Deduced).removed;
        for entry in &mut self.entries {
            if entry.operation == "Update" {
                entry.fields = entry.fields.difference_below(&removed);
            }
        }
        write_entries(final_object, self.entries);
    }
}

/// Lays `configuration` over `live`.
fn merge(live: &Value, configuration: &Value, shape: Shape<'_>) -> Value {
    match (shape, live, configuration) {
        (shape, Value::Object(below), Value::Object(above)) if shape.has_fields() => {
            let mut out = below.clone();
            for (key, value) in above {
                let merged = match below.get(key) {
                    Some(old) => merge(old, value, shape::of_entry(shape, key)),
                    None => value.clone(),
                };
                out.insert(key.clone(), merged);
            }
            Value::Object(out)
        }
        (Shape::Keyed(keyed), Value::Array(below), Value::Array(above)) => {
            let below_shape = keyed.element();
            Value::Array(merge_lists(below, above, |item| keyed.key(item), |a, b| merge(a, b, below_shape)))
        }
        (Shape::Set, Value::Array(below), Value::Array(above)) => {
            Value::Array(merge_lists(below, above, shape::value_key, |_, value| value.clone()))
        }
        _ => configuration.clone(),
    }
}

/// Elements of both lists: those of `above` in their order, the others where they stood between them.
fn merge_lists(
    below: &[Value],
    above: &[Value],
    key: impl Fn(&Value) -> String,
    merge: impl Fn(&Value, &Value) -> Value,
) -> Vec<Value> {
    let below_keys: Vec<String> = below.iter().map(&key).collect();
    let above_keys: Vec<String> = above.iter().map(&key).collect();
    let merged = |i: usize| match below_keys.iter().position(|k| *k == above_keys[i]) {
        Some(at) => merge(&below[at], &above[i]),
        None => above[i].clone(),
    };
    let mut out = Vec::with_capacity(below.len() + above.len());
    let mut next = 0;
    for (item, item_key) in below.iter().zip(&below_keys) {
        match above_keys.iter().position(|k| k == item_key) {
            None => out.push(item.clone()),
            Some(at) => {
                while next <= at {
                    out.push(merged(next));
                    next += 1;
                }
            }
        }
    }
    out.extend((next..above.len()).map(merged));
    out
}

/// Takes the fields of `gone` out of `value`; an element or container in which somebody in `kept` still owns something
/// stays. Returns whether the value itself is to go.
fn remove(value: &mut Value, gone: &FieldSet, kept: &FieldSet, shape: Shape<'_>) -> bool {
    if gone.is_empty() {
        return false;
    }
    match (shape, &mut *value) {
        (shape, Value::Object(object)) if shape.has_fields() => {
            let before = object.len();
            remove_entries(object, gone, kept, shape);
            let emptied = object.is_empty() && before > 0;
            (gone.is_member() || emptied) && kept.is_empty()
        }
        (Shape::Keyed(keyed), Value::Array(items)) => {
            let below = keyed.element();
            let nothing = FieldSet::default();
            items.retain_mut(|item| {
                let edge = keyed.key(item);
                let Some(gone) = gone.child(&edge) else { return true };
                let kept = kept.child(&edge).unwrap_or(&nothing);
                let whole = remove(item, gone, kept, below);
                !(kept.is_empty() && (whole || gone.is_member()))
            });
            items.is_empty() && kept.is_empty()
        }
        (Shape::Set, Value::Array(items)) => {
            items.retain(|item| gone.child(&shape::value_key(item)).is_none());
            items.is_empty() && kept.is_empty()
        }
        _ => gone.is_member() && kept.is_empty(),
    }
}

fn remove_entries(object: &mut Map<String, Value>, gone: &FieldSet, kept: &FieldSet, shape: Shape<'_>) {
    let nothing = FieldSet::default();
    object.retain(|key, value| {
        let edge = format!("f:{key}");
        let Some(gone) = gone.child(&edge) else { return true };
        let kept = kept.child(&edge).unwrap_or(&nothing);
        !remove(value, gone, kept, shape::of_entry(shape, key))
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "io.k8s.api.core.v1.Pod";
    const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
    const CONFIG_MAP: &str = "io.k8s.api.core.v1.ConfigMap";

    fn manager(name: &str) -> Manager<'_> {
        Manager { name, api_version: "v1", subresource: "", time: "2026-01-01T00:00:00Z" }
    }

    fn applied(
        type_name: &'static str,
        live: Option<&Value>,
        configuration: Value,
        name: &str,
        force: bool,
    ) -> Result<Value, Vec<Conflict>> {
        match apply(&type_name.into(), live, &configuration, &manager(name), force).expect("well-formed") {
            Applied::Conflicts(conflicts) => Err(conflicts),
            Applied::Merged(merged) => {
                let mut object = merged.object.clone();
                merged.track(&mut object, &manager(name));
                Ok(object)
            }
        }
    }

    fn without_fields(mut object: Value) -> Value {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        object
    }

    #[test]
    fn configurations_name_each_element_once() {
        let metadata = json!({"name": "x", "namespace": "n", "finalizers": ["a/b", "a/b"]});
        for (configuration, expected) in [
            (
                json!({"kind": "Pod", "spec": {"containers": [{"name": "a", "args": []}, {"name": "a"}]}}),
                "failed to create typed patch object (/; , Kind=Pod): .spec.containers: duplicate entries for key \
                 [name=\"a\"]",
            ),
            (
                json!({"spec": {"containers": [{"name": "a", "ports": [
                    {"containerPort": 80}, {"containerPort": 80, "protocol": "TCP"}]}]}}),
                "failed to create typed patch object (/; , Kind=): .spec.containers[name=\"a\"].ports: duplicate \
                 entries for key [containerPort=80,protocol=\"TCP\"]",
            ),
            (
                json!({"apiVersion": "v1", "metadata": metadata}),
                "failed to create typed patch object (n/x; v1, Kind=): .metadata.finalizers: duplicate entries for \
                 key [=\"a/b\"]",
            ),
        ] {
            let error = apply(&POD.into(), None, &configuration, &manager("one"), true).expect_err("refused");
            assert_eq!(error, PatchError::Malformed(expected.to_owned()));
        }
    }

    #[test]
    fn apply_removes_what_it_no_longer_sends() {
        let first = applied(
            CONFIG_MAP,
            None,
            json!({"metadata": {"name": "c"}, "data": {"a": "1", "b": "2"}}),
            "one",
            false,
        );
        let second = applied(
            CONFIG_MAP,
            Some(&first.expect("no conflict")),
            json!({"metadata": {"name": "c"}, "data": {"a": "1"}}),
            "one",
            false,
        );
        assert_eq!(
            without_fields(second.expect("no conflict")),
            json!({"metadata": {"name": "c"}, "data": {"a": "1"}})
        );
    }

    #[test]
    fn shared_fields_stay_until_the_last_owner_leaves() {
        let meta = json!({"name": "c"});
        let one = applied(CONFIG_MAP, None, json!({"metadata": meta, "data": {"a": "1"}}), "one", false)
            .expect("new");
        let two =
            applied(CONFIG_MAP, Some(&one), json!({"metadata": meta, "data": {"a": "1"}}), "two", false)
                .expect("same");
        let left = applied(CONFIG_MAP, Some(&two), json!({"metadata": meta}), "one", false).expect("leaves");
        assert_eq!(left["data"], json!({"a": "1"}));
        let gone = applied(CONFIG_MAP, Some(&left), json!({"metadata": meta}), "two", false).expect("leaves");
        assert_eq!(gone.get("data"), None);
    }

    #[test]
    fn conflicts_name_the_owner_and_force_takes_over() {
        let one = applied(
            DEPLOYMENT,
            None,
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 1}}),
            "one",
            false,
        )
        .expect("new");
        let change = json!({"metadata": {"name": "d"}, "spec": {"replicas": 2}});
        let conflicts = applied(DEPLOYMENT, Some(&one), change.clone(), "two", false).expect_err("conflict");
        assert_eq!(
            conflicts,
            [Conflict { manager: "one".into(), api_version: String::new(), field: ".spec.replicas".into() }]
        );
        let forced = applied(DEPLOYMENT, Some(&one), change, "two", true).expect("forced");
        let owners: Vec<&str> = forced["metadata"]["managedFields"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry["manager"].as_str())
            .collect();
        assert_eq!((forced["spec"]["replicas"].as_i64(), owners), (Some(2), vec!["two"]));
    }

    #[test]
    fn keyed_lists_merge_by_key_and_keep_order() {
        let container = |name: &str, image: &str| json!({"name": name, "image": image});
        let pod =
            |containers: Vec<Value>| json!({"metadata": {"name": "p"}, "spec": {"containers": containers}});
        let one = applied(POD, None, pod(vec![container("a", "1"), container("b", "1")]), "one", false)
            .expect("new");
        let two = applied(POD, Some(&one), pod(vec![container("c", "2")]), "two", false).expect("adds");
        let names = |object: &Value| -> Vec<String> {
            let containers = object["spec"]["containers"].as_array();
            containers
                .into_iter()
                .flatten()
                .map(|c| c["name"].as_str().unwrap_or_default().to_owned())
                .collect()
        };
        assert_eq!(names(&two), ["a", "b", "c"]);
        let three = applied(POD, Some(&two), pod(vec![container("b", "1")]), "one", false).expect("drops a");
        assert_eq!(names(&three), ["b", "c"]);
    }

    #[test]
    fn ports_without_protocol_are_tcp() {
        let live = json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "protocol": "TCP"}]}]}});
        let send =
            json!({"spec": {"containers": [{"name": "a", "ports": [{"containerPort": 80, "name": "web"}]}]}});
        let merged = applied(POD, Some(&live), send, "one", false).expect("merges");
        assert_eq!(
            merged["spec"]["containers"][0]["ports"],
            json!([{"containerPort": 80, "protocol": "TCP", "name": "web"}])
        );
    }

    #[test]
    fn updates_take_ownership_of_what_they_change() {
        let one = applied(
            DEPLOYMENT,
            None,
            json!({"metadata": {"name": "d"}, "spec": {"replicas": 1, "paused": true}}),
            "one",
            false,
        )
        .expect("new");
        let mut new = one.clone();
        new["spec"]["replicas"] = json!(5);
        track_update(&DEPLOYMENT.into(), Some(&one), &mut new, &manager("scaler"));
        let entries = &new["metadata"]["managedFields"];
        assert_eq!(entries[0]["fieldsV1"], json!({"f:spec": {"f:paused": {}}}));
        assert_eq!(entries[1]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
        assert_eq!(entries[1]["operation"], "Update");
    }

    #[test]
    fn a_writer_may_hand_over_fields() {
        let one =
            applied(CONFIG_MAP, None, json!({"metadata": {"name": "c"}, "data": {"a": "1"}}), "one", false)
                .expect("new");
        let mut handed = one.clone();
        handed["metadata"]["managedFields"][0]["manager"] = json!("two");
        track_update(&CONFIG_MAP.into(), Some(&one), &mut handed, &manager("kubectl"));
        assert_eq!(handed["metadata"]["managedFields"][0]["manager"], "two");
        handed["metadata"]["managedFields"] = json!([{}]);
        track_update(&CONFIG_MAP.into(), Some(&one), &mut handed, &manager("kubectl"));
        assert_eq!(handed["metadata"].get("managedFields"), None);
    }

    #[test]
    fn status_belongs_to_its_own_writers() {
        let mut pod = json!({"metadata": {"name": "p"}, "status": {"phase": "Pending"}});
        track_update(&POD.into(), None, &mut pod, &manager("kubectl"));
        assert_eq!(pod["metadata"].get("managedFields"), None);
        let old = pod.clone();
        pod["status"]["phase"] = json!("Running");
        track_update(
            &POD.into(),
            Some(&old),
            &mut pod,
            &Manager { subresource: "status", ..manager("kubelet") },
        );
        assert_eq!(pod["metadata"]["managedFields"][0]["fieldsV1"], json!({"f:status": {"f:phase": {}}}));
    }

    #[test]
    fn many_updaters_are_merged() {
        let mut object = json!({"metadata": {"name": "c"}, "data": {}});
        for i in 0..30 {
            let old = object.clone();
            object["data"][format!("k{i}")] = json!("v");
            let time = format!("2026-01-01T00:00:{i:02}Z");
            let name = format!("m{i}");
            let manager = Manager { name: &name, api_version: "v1", subresource: "", time: &time };
            track_update(&CONFIG_MAP.into(), Some(&old), &mut object, &manager);
        }
        let entries = object["metadata"]["managedFields"].as_array().expect("a list");
        assert!(entries.len() <= MAX_UPDATE_MANAGERS, "{}", entries.len());
        assert!(entries.iter().any(|e| e["manager"] == "ancient-changes"));
    }
}
