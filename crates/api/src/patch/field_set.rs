//! Sets of fields, as `metadata.managedFields[].fieldsV1` holds them.
//!
//! A set is a tree. Edges are named as in FieldsV1: `f:replicas` a field, `k:{"name":"web"}` an element of a keyed list,
//! `v:"x"` a value of a set. A node is a member itself (`.`) or only on the way to members.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::shape::{self, Shape};

/// Deeper sets are cut: no type nests this far.
const MAX_DEPTH: usize = 128;

/// A set of fields below some place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    member: bool,
    children: BTreeMap<String, FieldSet>,
}

impl FieldSet {
    /// A set of just this place.
    fn leaf() -> Self {
        Self { member: true, children: BTreeMap::new() }
    }

    /// Nothing in it.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Whether this place itself is a member.
    pub(super) fn is_member(&self) -> bool {
        self.member
    }

    /// The part below an edge.
    pub(super) fn child(&self, edge: &str) -> Option<&FieldSet> {
        self.children.get(edge)
    }

    pub(super) fn insert_child(&mut self, edge: String, set: FieldSet) {
        if !set.is_empty() {
            self.children.insert(edge, set);
        }
    }

    /// Takes out the part below an edge.
    pub fn remove_child(&mut self, edge: &str) {
        self.children.remove(edge);
    }

    /// The part below a path of fields, taken out of the set at its end.
    pub fn remove_path(&mut self, fields: &[&str]) {
        match fields {
            [] => {}
            [last] => {
                self.children.remove(&format!("f:{last}"));
            }
            [first, rest @ ..] => {
                let edge = format!("f:{first}");
                if let Some(child) = self.children.get_mut(&edge) {
                    child.remove_path(rest);
                    if child.is_empty() {
                        self.children.remove(&edge);
                    }
                }
            }
        }
    }

    /// Every field of a document.
    pub(super) fn of_value(value: &Value, shape: Shape<'_>) -> Self {
        let mut set = Self::default();
        match (shape, value) {
            (shape, Value::Object(object)) if shape.has_fields() && !object.is_empty() => {
                for (key, value) in object {
                    set.insert_child(format!("f:{key}"), Self::of_value(value, shape::of_entry(shape, key)));
                }
            }
            (Shape::Keyed(keyed), Value::Array(items)) if !items.is_empty() => {
                for item in items {
                    let mut child = Self::of_value(item, keyed.element());
                    child.member = true;
                    set.insert_child(keyed.key(item), child);
                }
            }
            (Shape::Set, Value::Array(items)) if !items.is_empty() => {
                for item in items {
                    set.insert_child(shape::value_key(item), Self::leaf());
                }
            }
            _ => set.member = true,
        }
        set
    }

    /// In either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut out = self.clone();
        out.member |= other.member;
        for (edge, set) in &other.children {
            let merged = match out.children.get(edge) {
                Some(own) => own.union(set),
                None => set.clone(),
            };
            out.children.insert(edge.clone(), merged);
        }
        out
    }

    /// In both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut out = Self { member: self.member && other.member, children: BTreeMap::new() };
        for (edge, set) in &self.children {
            if let Some(theirs) = other.children.get(edge) {
                out.insert_child(edge.clone(), set.intersection(theirs));
            }
        }
        out
    }

    /// In this one and not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut out = Self { member: self.member && !other.member, children: BTreeMap::new() };
        for (edge, set) in &self.children {
            let rest = match other.children.get(edge) {
                Some(theirs) => set.difference(theirs),
                None => set.clone(),
            };
            out.insert_child(edge.clone(), rest);
        }
        out
    }

    /// This one without the members of the other and without everything below them: what is gone takes its parts along.
    #[must_use]
    pub(super) fn difference_below(&self, other: &Self) -> Self {
        if other.member && other.children.is_empty() {
            return Self::default();
        }
        let mut out = Self { member: self.member && !other.member, children: BTreeMap::new() };
        for (edge, set) in &self.children {
            let rest = match other.children.get(edge) {
                Some(theirs) => set.difference_below(theirs),
                None => set.clone(),
            };
            out.insert_child(edge.clone(), rest);
        }
        out
    }

    /// The FieldsV1 form.
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        if self.member && !self.children.is_empty() {
            object.insert(".".to_owned(), json!({}));
        }
        for (edge, set) in &self.children {
            object.insert(edge.clone(), set.to_json());
        }
        Value::Object(object)
    }

    /// Reads the FieldsV1 form of a whole object; what does not look like it is left out.
    pub fn from_json(value: &Value) -> Self {
        let mut set = Self::read(value, 0);
        set.member = false;
        set
    }

    fn read(value: &Value, depth: usize) -> Self {
        let Some(object) = value.as_object() else { return Self::default() };
        if object.is_empty() || depth > MAX_DEPTH {
            return Self::leaf();
        }
        let mut set = Self::default();
        for (edge, value) in object {
            match edge.split_at_checked(2) {
                _ if edge == "." => set.member = true,
                Some(("f:" | "k:" | "v:", _)) => set.insert_child(edge.clone(), Self::read(value, depth + 1)),
                _ => {}
            }
        }
        set
    }

    /// Paths of all members as error messages write them: `.spec.template.spec.containers[name="web"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect_paths(String::new(), &mut out);
        out
    }

    fn collect_paths(&self, path: String, out: &mut Vec<String>) {
        if self.member {
            out.push(path.clone());
        }
        for (edge, set) in &self.children {
            set.collect_paths(format!("{path}{}", display_edge(edge)), out);
        }
    }
}

fn display_edge(edge: &str) -> String {
    let (kind, rest) = edge.split_at_checked(2).unwrap_or(("", edge));
    match kind {
        "f:" => format!(".{rest}"),
        "k:" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(k, v)| format!("{k}={v}")).collect();
            format!("[{}]", keys.join(","))
        }
        "v:" => format!("[={rest}]"),
        _ => edge.to_owned(),
    }
}

/// The first list in which two elements have the same name, as messages show it:
/// `.spec.containers: duplicate entries for key [name="web"]`.
pub(super) fn find_duplicate(value: &Value, shape: Shape<'_>) -> Option<String> {
    let mut seen = BTreeSet::new();
    let mut is_new = |edge: &str| match seen.insert(edge.to_owned()) {
        true => None,
        false => Some(format!(": duplicate entries for key {}", display_edge(edge))),
    };
    match (shape, value) {
        (shape, Value::Object(object)) if shape.has_fields() => object.iter().find_map(|(key, value)| {
            Some(format!(".{key}{}", find_duplicate(value, shape::of_entry(shape, key))?))
        }),
        (Shape::Keyed(keyed), Value::Array(items)) => items.iter().find_map(|item| {
            let edge = keyed.key(item);
            let below = || Some(format!("{}{}", display_edge(&edge), find_duplicate(item, keyed.element())?));
            is_new(&edge).or_else(below)
        }),
        (Shape::Set, Value::Array(items)) => items.iter().find_map(|item| is_new(&shape::value_key(item))),
        _ => None,
    }
}

/// What differs between two documents of one shape.
#[derive(Clone, Debug, Default)]
pub(super) struct Comparison {
    /// Fields only the new one has, and fields with another value.
    pub(super) changed: FieldSet,
    /// Fields only the old one has.
    pub(super) removed: FieldSet,
}

/// Compares two documents field by field.
pub(super) fn compare(old: &Value, new: &Value, shape: Shape<'_>) -> Comparison {
    let mut out = Comparison::default();
    if old == new {
        return out;
    }
    match (shape, old, new) {
        (shape, Value::Object(before), Value::Object(after)) if shape.has_fields() => {
            for (key, value) in after {
                let below = shape::of_entry(shape, key);
                let difference = match before.get(key) {
                    Some(old) => compare(old, value, below),
                    None => {
                        Comparison { changed: FieldSet::of_value(value, below), removed: FieldSet::default() }
                    }
                };
                out.add(format!("f:{key}"), difference);
            }
            for (key, value) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
                out.removed
                    .insert_child(format!("f:{key}"), FieldSet::of_value(value, shape::of_entry(shape, key)));
            }
        }
        (Shape::Keyed(keyed), Value::Array(before), Value::Array(after)) => {
            let index = |items: &[Value]| -> BTreeMap<String, Value> {
                items.iter().map(|item| (keyed.key(item), item.clone())).collect()
            };
            let below = keyed.element();
            let item_set = |item: &Value| {
                let mut set = FieldSet::of_value(item, below);
                set.member = true;
                set
            };
            let (before, after) = (index(before), index(after));
            for (key, item) in &after {
                let difference = match before.get(key) {
                    Some(old) => compare(old, item, below),
                    None => Comparison { changed: item_set(item), removed: FieldSet::default() },
                };
                out.add(key.clone(), difference);
            }
            for (key, item) in before.iter().filter(|(key, _)| !after.contains_key(*key)) {
                out.removed.insert_child(key.clone(), item_set(item));
            }
        }
        (Shape::Set, Value::Array(_), Value::Array(_)) => {
            let (before, after) = (FieldSet::of_value(old, shape), FieldSet::of_value(new, shape));
            out.changed = after.difference(&before);
            out.removed = before.difference(&after);
        }
        _ => out.changed = FieldSet::of_value(new, shape),
    }
    out
}

impl Comparison {
    fn add(&mut self, edge: String, below: Comparison) {
        self.changed.insert_child(edge.clone(), below.changed);
        self.removed.insert_child(edge, below.removed);
    }
}
