//! Who controls an object, and who should.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::core::{Selector, SelectorExt};
use sampan_client::ObjectKey;
use serde_json::{Value, json};

/// The reference to the controller of an object.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether the object with `uid` controls the object.
pub(crate) fn is_controlled_by(meta: &ObjectMeta, uid: &str) -> bool {
    controller_of(meta).is_some_and(|owner| owner.uid == uid)
}

/// The key of the controlling object if it is of kind `K`.
pub(crate) fn controller_key<K: Resource<DynamicType = ()>>(meta: &ObjectMeta) -> Option<ObjectKey> {
    let owner = controller_of(meta)?;
    let same_kind = owner.kind == K::kind(&()) && group_of(&owner.api_version) == K::group(&());
    same_kind.then(|| ObjectKey::new(meta.namespace.clone().unwrap_or_default(), owner.name.clone()))
}

/// The group of an `apiVersion`; empty for the core group.
pub(crate) fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// What a controller that selects its objects by label has to do about one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// Ours and selected.
    Owned,
    /// Selected and nobody's: make it ours.
    Adopt,
    /// Ours but no longer selected: let it go.
    Release,
    /// Another's, or not selected.
    Foreign,
}

/// Decides about `object` for the controller `owner`; the rules are those of Kubernetes'
/// controller references: a controller that is being deleted adopts and releases nothing, and an
/// object that is being deleted is not adopted.
pub(crate) fn claim(owner: &ObjectMeta, selector: &Selector, object: &ObjectMeta) -> Claim {
    let selected = object.labels.as_ref().map_or_else(
        || selector.matches(&std::collections::BTreeMap::new()),
        |labels| selector.matches(labels),
    );
    let owner_stays = owner.deletion_timestamp.is_none();
    match controller_of(object) {
        Some(current) if Some(&current.uid) != owner.uid.as_ref() => Claim::Foreign,
        Some(_) if selected => Claim::Owned,
        Some(_) if owner_stays => Claim::Release,
        Some(_) => Claim::Foreign,
        None if selected && owner_stays && object.deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::Foreign,
    }
}

/// The controller reference to `owner`.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> Option<OwnerReference> {
    let mut reference = owner.controller_owner_ref(&())?;
    reference.block_owner_deletion = Some(true);
    Some(reference)
}

/// A merge patch that replaces the owners of an object, valid only for the version that was looked at.
pub(crate) fn owners_patch(object: &ObjectMeta, owners: &[OwnerReference]) -> Value {
    json!({"metadata": {
        "uid": object.uid,
        "resourceVersion": object.resource_version,
        "ownerReferences": if owners.is_empty() { Value::Null } else { json!(owners) },
    }})
}

/// The owners of `object` with `reference` added.
pub(crate) fn with_owner(object: &ObjectMeta, reference: OwnerReference) -> Vec<OwnerReference> {
    let mut owners = object.owner_references.clone().unwrap_or_default();
    owners.retain(|owner| owner.uid != reference.uid);
    owners.push(reference);
    owners
}

/// The owners of `object` without the one with `uid`.
pub(crate) fn without_owner(object: &ObjectMeta, uid: &str) -> Vec<OwnerReference> {
    object.owner_references.iter().flatten().filter(|owner| owner.uid != uid).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::common::testing::{self, reference, time};

    #[test]
    fn claims() {
        let selector: Selector = [("app", "web")].into_iter().collect();
        let owner = ObjectMeta { uid: Some("me".into()), ..ObjectMeta::default() };
        let leaving = ObjectMeta { deletion_timestamp: Some(time(1)), ..owner.clone() };
        let object = |app: &str, controller: Option<&str>| ObjectMeta {
            labels: Some(testing::labels(&[("app", app)])),
            owner_references: controller.map(|uid| vec![reference("ReplicaSet", "rs", uid)]),
            ..ObjectMeta::default()
        };
        let deleted = ObjectMeta { deletion_timestamp: Some(time(1)), ..object("web", None) };
        let rows = [
            ("ours and selected", &owner, object("web", Some("me")), Claim::Owned),
            ("ours, not selected", &owner, object("db", Some("me")), Claim::Release),
            ("another's", &owner, object("web", Some("you")), Claim::Foreign),
            ("nobody's and selected", &owner, object("web", None), Claim::Adopt),
            ("nobody's, not selected", &owner, object("db", None), Claim::Foreign),
            ("nobody's, being deleted", &owner, deleted, Claim::Foreign),
            ("owner is going: no adoption", &leaving, object("web", None), Claim::Foreign),
            ("owner is going: no release", &leaving, object("db", Some("me")), Claim::Foreign),
            ("owner is going: still its own", &leaving, object("web", Some("me")), Claim::Owned),
        ];
        for (name, owner, object, expected) in rows {
            assert_eq!(claim(owner, &selector, &object), expected, "{name}");
        }
    }

    #[test]
    fn groups() {
        for (api_version, group) in
            [("v1", ""), ("apps/v1", "apps"), ("a.example.com/v1beta1", "a.example.com")]
        {
            assert_eq!(group_of(api_version), group);
        }
    }
}
