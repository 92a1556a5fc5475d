//! Who owns whom, over all kinds: pure bookkeeping fed by watches.
//!
//! Objects are known by uid, for an owner reference means one object, not whoever has its name next.
//! An owner may be referred to before, or without, being known.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::{DynamicObject, PartialObjectMeta};

use super::plan::{Dependent, OwnerState, is_waiting};
use crate::catalog::Kind;

/// What the collector keeps of an object.
pub(super) type Meta = PartialObjectMeta<DynamicObject>;

/// An object.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) kind: Arc<Kind>,
    pub(super) object: Arc<Meta>,
}

impl Node {
    pub(super) fn meta(&self) -> &ObjectMeta {
        &self.object.metadata
    }
}

/// All objects and their owners.
#[derive(Default)]
pub(super) struct Graph {
    nodes: HashMap<String, Node>,
    /// By owner, known or not.
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// Takes in a change of one object; returns the uids that deserve a look because of it.
    pub(super) fn absorb(
        &mut self,
        kind: &Arc<Kind>,
        old: Option<&Arc<Meta>>,
        new: Option<&Arc<Meta>>,
    ) -> Vec<String> {
        let mut wake = Vec::new();
        let gone = old.and_then(|old| old.metadata.uid.clone());
        let here = new.and_then(|new| new.metadata.uid.clone());
        if let Some(uid) = gone.filter(|gone| Some(gone) != here.as_ref()) {
            self.remove(&uid, &mut wake);
        }
        if let (Some(uid), Some(new)) = (here, new) {
            self.put(uid, Node { kind: Arc::clone(kind), object: Arc::clone(new) }, &mut wake);
        }
        wake
    }

    /// Forgets all objects of a kind that is no longer served; they are gone with it. Returns the uids of those left that
    /// deserve a look because of it.
    pub(super) fn forget_kind(&mut self, kind: &Kind) -> Vec<String> {
        let gone: Vec<String> =
            self.nodes.iter().filter(|(_, node)| *node.kind == *kind).map(|(uid, _)| uid.clone()).collect();
        let mut wake = Vec::new();
        for uid in gone {
            self.remove(&uid, &mut wake);
        }
        wake.retain(|uid| self.nodes.contains_key(uid));
        wake
    }

    /// All objects that have owners.
    pub(super) fn owned(&self) -> Vec<String> {
        let owned = self.nodes.iter().filter(|(_, node)| owners(node.meta()).next().is_some());
        owned.map(|(uid, _)| uid.clone()).collect()
    }

    /// The object with a uid.
    pub(super) fn get(&self, uid: &str) -> Option<Node> {
        self.nodes.get(uid).cloned()
    }

    /// The objects that name the one with this uid as an owner.
    pub(super) fn dependents(&self, uid: &str) -> Vec<Dependent> {
        let nodes = self.dependents.get(uid).into_iter().flatten();
        nodes
            .filter_map(|dependent| {
                let meta = self.nodes.get(dependent)?.meta();
                let blocks =
                    owners(meta).any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true));
                Some(Dependent {
                    uid: dependent.clone(),
                    blocks,
                    deleting: meta.deletion_timestamp.is_some(),
                    waiting: is_waiting(meta),
                })
            })
            .collect()
    }

    /// What is known about an owner of an object; `None` if the server has to be asked. An owner in
    /// another namespace does not count, whatever its uid.
    pub(super) fn owner_state(&self, object: &ObjectMeta, owner: &OwnerReference) -> Option<OwnerState> {
        let node = self.nodes.get(&owner.uid)?;
        let reachable = !node.kind.namespaced || node.meta().namespace == object.namespace;
        let same =
            node.meta().name.as_ref() == Some(&owner.name) && node.kind.is(&owner.api_version, &owner.kind);
        Some(match (reachable, same) {
            (false, _) => OwnerState::OutOfReach,
            // The uid is right and the name is wrong: let the server say who is called so.
            (true, false) => return None,
            (true, true) if is_waiting(node.meta()) => OwnerState::Waiting,
            (true, true) => OwnerState::Present,
        })
    }

    fn put(&mut self, uid: String, node: Node, wake: &mut Vec<String>) {
        let before = self.nodes.get(&uid).cloned();
        let old_owners: HashSet<String> =
            before.iter().flat_map(|before| owners(before.meta())).map(|owner| owner.uid.clone()).collect();
        let new_owners: HashSet<String> = owners(node.meta()).map(|owner| owner.uid.clone()).collect();
        for lost in old_owners.difference(&new_owners) {
            self.unlink(lost, &uid, wake);
        }
        for owner in &new_owners {
            self.dependents.entry(owner.clone()).or_default().insert(uid.clone());
        }
        let owners_changed = before
            .as_ref()
            .is_none_or(|before| before.meta().owner_references != node.meta().owner_references);
        let leaving = node.meta().deletion_timestamp.is_some();
        let started_leaving =
            leaving && before.as_ref().is_none_or(|before| before.meta().deletion_timestamp.is_none());
        let started_waiting =
            is_waiting(node.meta()) && !before.as_ref().is_some_and(|before| is_waiting(before.meta()));
        if (owners_changed && !new_owners.is_empty()) || started_leaving {
            wake.push(uid.clone());
        }
        if started_waiting {
            wake.extend(self.dependents.get(&uid).into_iter().flatten().cloned());
        }
        // An owner that waits for its dependents wants to know that one of them no longer blocks it.
        if owners_changed || started_leaving {
            wake.extend(new_owners.iter().filter(|owner| self.is_waiting(owner)).cloned());
        }
        self.nodes.insert(uid, node);
    }

    fn remove(&mut self, uid: &str, wake: &mut Vec<String>) {
        let Some(node) = self.nodes.remove(uid) else { return };
        for owner in owners(node.meta()) {
            self.unlink(&owner.uid, uid, wake);
        }
        wake.extend(self.dependents.get(uid).into_iter().flatten().cloned());
    }

    fn unlink(&mut self, owner: &str, dependent: &str, wake: &mut Vec<String>) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
        if self.is_waiting(owner) {
            wake.push(owner.to_string());
        }
    }

    fn is_waiting(&self, uid: &str) -> bool {
        self.nodes.get(uid).is_some_and(|node| is_waiting(node.meta()))
    }
}

/// The owners of an object.
pub(super) fn owners(meta: &ObjectMeta) -> impl Iterator<Item = &OwnerReference> {
    meta.owner_references.iter().flatten()
}
