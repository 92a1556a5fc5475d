//! Lists of custom resources that are sets or maps (`x-kubernetes-list-type`).
//!
//! Their order says nothing: `==` does not look at it, and `+` is a union that keeps the places of the left side (in a map
//! the right side's elements win). Everything else treats them as lists. As in upstream, the left side of an operator
//! says what is meant.
//!
//! A list of CEL has no room for a mark. Values are shared, never copied, so a list is known by its address; [`Lists`]
//! holds on to every list it knows, so that no other can be at that address.
//!
//! Source: `k8s.io/apiserver/pkg/cel/common/values.go`.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::Value;
use kube_cel::cel::objects::KeyRef;

/// What a list stands for.
#[derive(Clone, Debug)]
pub(crate) enum ListKind {
    /// Values, each once.
    Set,
    /// Objects named by these fields, in the form in which rules name them.
    Map(Arc<[String]>),
}

/// The lists that are sets or maps.
#[derive(Debug, Default)]
pub(crate) struct Lists {
    known: HashMap<usize, (Arc<Vec<Value>>, ListKind)>,
}

fn address(list: &Arc<Vec<Value>>) -> usize {
    Arc::as_ptr(list).addr()
}

impl Lists {
    /// Makes a list of a kind.
    pub(crate) fn make(&mut self, items: Vec<Value>, kind: ListKind) -> Value {
        let list = Arc::new(items);
        self.known.insert(address(&list), (list.clone(), kind));
        Value::List(list)
    }

    pub(super) fn kind(&self, list: &Arc<Vec<Value>>) -> Option<&ListKind> {
        self.known.get(&address(list)).map(|(_, kind)| kind)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.known.is_empty()
    }
}

/// What an element is known by among its siblings.
#[derive(PartialEq, Eq, Hash)]
enum Name {
    Int(i64),
    Uint(u64),
    Bool(bool),
    Float(u64),
    Text(Arc<String>),
    Bytes(Arc<Vec<u8>>),
    Missing,
    Many(Vec<Name>),
}

/// Nothing for values that are no names (objects, times): those are compared one by one.
fn name_of(value: &Value, kind: &ListKind) -> Option<Name> {
    match (kind, value) {
        (ListKind::Set, value) => scalar(value),
        (ListKind::Map(keys), Value::Map(fields)) => {
            let key = |key: &String| fields.get(&KeyRef::String(key)).map_or(Some(Name::Missing), scalar);
            keys.iter().map(key).collect::<Option<Vec<Name>>>().map(Name::Many)
        }
        _ => None,
    }
}

fn scalar(value: &Value) -> Option<Name> {
    Some(match value {
        Value::Int(n) => Name::Int(*n),
        Value::UInt(n) => Name::Uint(*n),
        Value::Bool(b) => Name::Bool(*b),
        Value::Float(n) => Name::Float(n.to_bits()),
        Value::String(text) => Name::Text(text.clone()),
        Value::Bytes(bytes) => Name::Bytes(bytes.clone()),
        _ => return None,
    })
}

/// Elements by name; nothing when one has none.
fn index<'a>(items: &'a [Value], kind: &ListKind) -> Option<HashMap<Name, &'a Value>> {
    items.iter().map(|item| Some((name_of(item, kind)?, item))).collect()
}

/// What comparing or adding two lists costs beside the walk over both: elements without names are compared each with
/// each.
pub(super) fn extra_cost(kind: &ListKind, left: &[Value], right: &[Value]) -> u64 {
    let named = left.iter().chain(right).all(|item| name_of(item, kind).is_some());
    if named { 0 } else { (left.len() as u64).saturating_mul(right.len() as u64) }
}

/// Whether two values are equal, wherever in the left one there are sets and maps.
pub(super) fn equal(
    left: &Value,
    right: &Value,
    kind_of: &dyn Fn(&Arc<Vec<Value>>) -> Option<ListKind>,
) -> bool {
    match (left, right) {
        (Value::List(a), Value::List(b)) if a.len() != b.len() => false,
        (Value::List(a), Value::List(b)) => match kind_of(a) {
            Some(kind) => same_elements(a, b, &kind, kind_of),
            None => a.iter().zip(b.iter()).all(|(a, b)| equal(a, b, kind_of)),
        },
        (Value::Map(a), Value::Map(b)) => {
            a.map.len() == b.map.len()
                && a.map.iter().all(|(key, a)| b.map.get(key).is_some_and(|b| equal(a, b, kind_of)))
        }
        _ => left == right,
    }
}

fn same_elements(
    left: &[Value],
    right: &[Value],
    kind: &ListKind,
    kind_of: &dyn Fn(&Arc<Vec<Value>>) -> Option<ListKind>,
) -> bool {
    match (index(left, kind), index(right, kind)) {
        (Some(known), Some(others)) => {
            known.len() == others.len()
                && others.iter().all(|(name, item)| known.get(name).is_some_and(|k| equal(k, item, kind_of)))
        }
        _ => right.iter().all(|item| left.iter().any(|other| equal(other, item, kind_of))),
    }
}

/// The elements of both lists, in the places of the left one.
pub(super) fn union(left: &[Value], right: &[Value], kind: &ListKind) -> Vec<Value> {
    let mut out = left.to_vec();
    let places: Option<Vec<(Name, usize)>> =
        left.iter().enumerate().map(|(at, item)| Some((name_of(item, kind)?, at))).collect();
    let mut places: HashMap<Name, usize> = places.unwrap_or_default().into_iter().collect();
    for item in right {
        match name_of(item, kind) {
            Some(name) => match places.get(&name) {
                Some(at) => {
                    if matches!(kind, ListKind::Map(_)) {
                        out[*at] = item.clone();
                    }
                }
                None => {
                    places.insert(name, out.len());
                    out.push(item.clone());
                }
            },
            None if out.contains(item) => {}
            None => out.push(item.clone()),
        }
    }
    out
}
