//! What becomes of an object, given its owners and dependents: pure.
//!
//! ```text
//!   an owner stays            -> the object stays; references to owners that left are dropped
//!   all owners left           -> the object goes, in the background unless its finalizers say otherwise
//!   an owner waits (foreground deletion: it goes after its blocking dependents)
//!                             -> the object goes, itself in the foreground if it has dependents
//!   the object goes and waits -> the finalizer is removed once no dependent blocks it
//!   the object goes, orphans  -> it is taken out of its dependents' owners, then the finalizer goes
//! ```

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The finalizer of an object that goes after its dependents.
pub(super) const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents stay.
pub(super) const ORPHAN: &str = "orphan";

/// How an owner stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OwnerState {
    /// It exists and does not wait for its dependents.
    Present,
    /// It goes, after its dependents.
    Waiting,
    /// It does not exist, or another object has its name.
    Absent,
    /// It is in another namespace, where it cannot own this object.
    OutOfReach,
    /// Nobody can tell: its kind is not served, or cannot own cluster-scoped objects. To be safe it
    /// counts as present.
    Unresolvable,
}

/// An object that names the one in question as an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Dependent {
    pub(super) uid: String,
    /// Whether its reference blocks its owner's foreground deletion.
    pub(super) blocks: bool,
    pub(super) deleting: bool,
    /// Whether it waits for dependents of its own.
    pub(super) waiting: bool,
}

/// How an object's own dependents fare when it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Policy {
    Background,
    Foreground,
    Orphan,
}

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Action {
    /// Delete the object.
    Delete(Policy),
    /// Replace its owners by these: some have left, or must not be blocked by it any more.
    SetOwners(Vec<OwnerReference>),
    /// Remove one of its finalizers.
    RemoveFinalizer(&'static str),
    /// Take the object out of the owners of these.
    Orphan(Vec<String>),
    /// Look at these.
    Wake(Vec<String>),
}

/// Whether an object goes only after its dependents.
pub(super) fn is_waiting(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && has_finalizer(meta, FOREGROUND)
}

fn has_finalizer(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.finalizers.iter().flatten().any(|own| own == finalizer)
}

/// The steps for an object with these owners and dependents.
pub(super) fn plan(
    object: &ObjectMeta,
    owners: &[(OwnerReference, OwnerState)],
    dependents: &[Dependent],
) -> Vec<Action> {
    if object.deletion_timestamp.is_some() {
        return leave(object, dependents);
    }
    let with = |wanted: &[OwnerState]| {
        let wanted = wanted.to_vec();
        owners.iter().filter(move |(_, state)| wanted.contains(state)).map(|(owner, _)| owner.clone())
    };
    let staying: Vec<_> = with(&[OwnerState::Present, OwnerState::Unresolvable]).collect();
    let waiting = with(&[OwnerState::Waiting]).count();
    if owners.is_empty() || staying.len() == owners.len() {
        return Vec::new();
    }
    if !staying.is_empty() {
        return vec![Action::SetOwners(staying)];
    }
    if waiting > 0 && !dependents.is_empty() {
        return go_after_dependents(owners, dependents);
    }
    let policy = if has_finalizer(object, ORPHAN) {
        Policy::Orphan
    } else if has_finalizer(object, FOREGROUND) {
        Policy::Foreground
    } else {
        Policy::Background
    };
    vec![Action::Delete(policy)]
}

/// The steps of an object that is being deleted.
fn leave(object: &ObjectMeta, dependents: &[Dependent]) -> Vec<Action> {
    if has_finalizer(object, ORPHAN) {
        let mut actions = Vec::new();
        if !dependents.is_empty() {
            actions.push(Action::Orphan(dependents.iter().map(|dependent| dependent.uid.clone()).collect()));
        }
        actions.push(Action::RemoveFinalizer(ORPHAN));
        return actions;
    }
    if !has_finalizer(object, FOREGROUND) {
        return Vec::new();
    }
    if !dependents.iter().any(|dependent| dependent.blocks) {
        return vec![Action::RemoveFinalizer(FOREGROUND)];
    }
    let idle = dependents.iter().filter(|dependent| dependent.blocks && !dependent.deleting);
    let idle: Vec<String> = idle.map(|dependent| dependent.uid.clone()).collect();
    if idle.is_empty() { Vec::new() } else { vec![Action::Wake(idle)] }
}

/// An object whose owner waits for it goes after its own dependents. If one of those waits already the
/// references may form a circle; then the object stops blocking its owners, which breaks it.
fn go_after_dependents(owners: &[(OwnerReference, OwnerState)], dependents: &[Dependent]) -> Vec<Action> {
    let blocks = owners.iter().any(|(owner, _)| owner.block_owner_deletion == Some(true));
    if blocks && dependents.iter().any(|dependent| dependent.waiting) {
        let unblocked = |(owner, _): &(OwnerReference, OwnerState)| OwnerReference {
            block_owner_deletion: Some(false),
            ..owner.clone()
        };
        // The change wakes the object again, and then it goes.
        return vec![Action::SetOwners(owners.iter().map(unblocked).collect())];
    }
    vec![Action::Delete(Policy::Foreground)]
}
