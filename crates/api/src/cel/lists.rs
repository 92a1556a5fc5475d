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
use kube_cel::cel::objects::{Key, KeyRef};

use super::values::deep_size;

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

impl Name {
    /// Bytes that are hashed, about.
    fn size(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::Many(names) => names.iter().map(|name| 1 + name.size()).sum(),
            _ => 1,
        }
    }
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

/// How to find the kind of a list.
pub(super) type KindOf<'a> = &'a dyn Fn(&Arc<Vec<Value>>) -> Option<ListKind>;

/// What looking at two elements that have no names costs beside the walk over them, in steps.
const PAIR: u64 = 10;
/// What a name costs beside its bytes.
const NAME: u64 = 4;

/// Compares and adds values in which there are sets and maps, and counts the steps that takes. How many those are nobody
/// can tell before (elements without names are compared each with each), so that work ends when there are too many.
pub(super) struct Comparison<'a> {
    kind_of: KindOf<'a>,
    limit: u64,
    taken: u64,
}

/// There were too many steps.
#[derive(Debug)]
pub(super) struct TooMany;

impl<'a> Comparison<'a> {
    pub(super) fn new(kind_of: KindOf<'a>, limit: u64) -> Self {
        Self { kind_of, limit, taken: 0 }
    }

    /// Steps that were taken; more than the limit after [`TooMany`].
    pub(super) fn taken(&self) -> u64 {
        self.taken
    }

    fn step(&mut self, steps: u64) -> Result<(), TooMany> {
        self.taken = self.taken.saturating_add(steps);
        if self.taken > self.limit { Err(TooMany) } else { Ok(()) }
    }

    /// Whether two values are equal, wherever in the left one there are sets and maps.
    pub(super) fn equal(&mut self, left: &Value, right: &Value) -> Result<bool, TooMany> {
        self.step(1)?;
        match (left, right) {
            (Value::List(a), Value::List(b)) if a.len() != b.len() => Ok(false),
            (Value::List(a), Value::List(b)) => match (self.kind_of)(a) {
                Some(kind) => self.same_elements(a, b, &kind),
                None => all(a.iter().zip(b.iter()), |(a, b)| self.equal(a, b)),
            },
            (Value::Map(a), Value::Map(b)) if a.map.len() != b.map.len() => Ok(false),
            (Value::Map(a), Value::Map(b)) => all(a.map.iter(), |(key, a)| {
                self.step(if let Key::String(key) = key { key.len() as u64 } else { 1 })?;
                b.map.get(key).map_or(Ok(false), |b| self.equal(a, b))
            }),
            _ => {
                self.step(match (left, right) {
                    // Texts of different lengths are told apart at once.
                    (Value::String(a), Value::String(b)) if a.len() == b.len() => a.len() as u64,
                    (Value::Bytes(a), Value::Bytes(b)) if a.len() == b.len() => a.len() as u64,
                    (Value::Opaque(_), Value::Opaque(_)) => deep_size(left, self.limit),
                    _ => 0,
                })?;
                Ok(left == right)
            }
        }
    }

    fn same_elements(&mut self, left: &[Value], right: &[Value], kind: &ListKind) -> Result<bool, TooMany> {
        if let Some(known) = self.index(left, kind)?
            && let Some(others) = self.index(right, kind)?
        {
            return Ok(known.len() == others.len()
                && all(others.iter(), |(name, item)| {
                    known.get(name).map_or(Ok(false), |known| self.equal(known, item))
                })?);
        }
        all(right.iter(), |item| self.is_among(left, item))
    }

    /// Elements by name; nothing when one has none.
    fn index<'v>(
        &mut self,
        items: &'v [Value],
        kind: &ListKind,
    ) -> Result<Option<HashMap<Name, &'v Value>>, TooMany> {
        let mut known = HashMap::new();
        for item in items {
            let Some(name) = self.name(item, kind)? else { return Ok(None) };
            known.insert(name, item);
        }
        Ok(Some(known))
    }

    fn name(&mut self, item: &Value, kind: &ListKind) -> Result<Option<Name>, TooMany> {
        let name = name_of(item, kind);
        self.step(NAME + name.as_ref().map_or(0, Name::size))?;
        Ok(name)
    }

    fn is_among(&mut self, items: &[Value], item: &Value) -> Result<bool, TooMany> {
        for other in items {
            self.step(PAIR)?;
            if self.equal(other, item)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The elements of both lists, in the places of the left one.
    pub(super) fn union(
        &mut self,
        left: &[Value],
        right: &[Value],
        kind: &ListKind,
    ) -> Result<Vec<Value>, TooMany> {
        let mut out = left.to_vec();
        let mut places: HashMap<Name, usize> = HashMap::new();
        for (at, item) in left.iter().enumerate() {
            if let Some(name) = self.name(item, kind)? {
                places.insert(name, at);
            }
        }
        for item in right {
            match self.name(item, kind)? {
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
                None if self.is_among(&out, item)? => {}
                None => out.push(item.clone()),
            }
        }
        Ok(out)
    }
}

/// Whether something holds for all; the first that it does not hold for ends the walk.
fn all<T>(
    items: impl Iterator<Item = T>,
    mut holds: impl FnMut(T) -> Result<bool, TooMany>,
) -> Result<bool, TooMany> {
    for item in items {
        if !holds(item)? {
            return Ok(false);
        }
    }
    Ok(true)
}
