//! What becomes of the finalizer of an object that others may use: pure.
//!
//! ```text
//!   stays, without finalizer        -> gets it: admission may not have seen the object
//!   is being deleted, used          -> keeps it
//!   is being deleted, used by none  -> loses it, and goes if nothing else holds it
//! ```
//!
//! Who uses whom:
//!
//! - a claim, the pods on a node that name it in their volumes and have not finished. A pod without a node uses nothing
//!   yet: it is not to keep a claim that no node would mount for it any more. Upstream lets a finished pod hold its
//!   claims until it is deleted; its containers have ended, so here it does not.
//! - a volume, the claim it is bound to, as long as that claim exists.
//! - an attribute class, the claims and volumes that name it, or are being changed to it or from it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use sampan_client::ObjectKey;

use crate::common::owner::is_controlled_by;
use crate::common::pod::{is_deleting, is_terminal, node_name};

/// The phase of a volume that has a claim.
const BOUND: &str = "Bound";

/// An object that may be in use.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Claim(Arc<PersistentVolumeClaim>),
    Volume(Arc<PersistentVolume>),
    Class(Arc<VolumeAttributesClass>),
}

impl Object {
    pub(super) fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Claim(claim) => &claim.metadata,
            Self::Volume(volume) => &volume.metadata,
            Self::Class(class) => &class.metadata,
        }
    }

    /// The finalizer that stands for being in use.
    fn finalizer(&self) -> &'static str {
        match self {
            Self::Claim(_) => "kubernetes.io/pvc-protection",
            Self::Volume(_) => "kubernetes.io/pv-protection",
            Self::Class(_) => "kubernetes.io/vac-protection",
        }
    }
}

/// Those who may use an object. What cannot use it may be missing.
#[derive(Clone, Debug, Default)]
pub(super) struct Users {
    pub(super) pods: Vec<Arc<Pod>>,
    pub(super) claims: Vec<Arc<PersistentVolumeClaim>>,
    pub(super) volumes: Vec<Arc<PersistentVolume>>,
}

/// One write: the finalizers an object is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Protect(Vec<String>),
    Release(Vec<String>),
}

/// The step for `object`, if there is one.
pub(super) fn plan(object: &Object, users: &Users) -> Option<Action> {
    let (meta, finalizer) = (object.meta(), object.finalizer());
    let mut finalizers = meta.finalizers.clone().unwrap_or_default();
    let is_protected = finalizers.iter().any(|present| present == finalizer);
    match (meta.deletion_timestamp.is_some(), is_protected) {
        (false, false) => {
            finalizers.push(finalizer.to_string());
            Some(Action::Protect(finalizers))
        }
        (true, true) if !is_used(object, users) => {
            finalizers.retain(|present| present != finalizer);
            Some(Action::Release(finalizers))
        }
        _ => None,
    }
}

fn is_used(object: &Object, users: &Users) -> bool {
    match object {
        Object::Claim(claim) => users.pods.iter().any(|pod| pod_uses(pod, claim)),
        Object::Volume(volume) => {
            is_bound(volume) && users.claims.iter().any(|claim| is_volume_of(volume, claim))
        }
        Object::Class(class) => {
            let name = class.metadata.name.as_deref().unwrap_or_default();
            users.claims.iter().any(|claim| classes_of_claim(claim).contains(&name))
                || users.volumes.iter().any(|volume| class_of_volume(volume) == Some(name))
        }
    }
}

fn pod_uses(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    if node_name(pod).is_none() || is_terminal(pod) || pod.metadata.namespace != claim.metadata.namespace {
        return false;
    }
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    named_claims(pod).any(|named| named == name)
        || !is_shut_down(pod)
            && made_claims(pod).any(|made| made == name)
            && is_controlled_by(&claim.metadata, pod.metadata.uid.as_deref().unwrap_or_default())
}

/// Whether the node has let go of the pod, which now waits for its own finalizers only. Those may wait for the claims that
/// were made for the pod, so such claims must not wait for the pod.
fn is_shut_down(pod: &Pod) -> bool {
    is_deleting(pod) && pod.metadata.deletion_grace_period_seconds == Some(0)
}

/// The claims that a pod's volumes name.
fn named_claims(pod: &Pod) -> impl Iterator<Item = &str> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| Some(volume.persistent_volume_claim.as_ref()?.claim_name.as_str()))
}

/// The claims that are made for a pod's generic ephemeral volumes.
fn made_claims(pod: &Pod) -> impl Iterator<Item = String> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let pod = pod.metadata.name.as_deref().unwrap_or_default();
    volumes.filter(|volume| volume.ephemeral.is_some()).map(move |volume| format!("{pod}-{}", volume.name))
}

/// The claims that a change of `pod` may concern.
pub(super) fn claims_of_pod(pod: &Pod) -> impl Iterator<Item = ObjectKey> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let names = named_claims(pod).map(String::from).chain(made_claims(pod));
    names.map(move |name| ObjectKey::new(namespace.clone(), name))
}

fn is_bound(volume: &PersistentVolume) -> bool {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some(BOUND)
}

/// The claim a volume is bound or reserved to.
pub(super) fn claim_of_volume(volume: &PersistentVolume) -> Option<ObjectKey> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(ObjectKey::new(claim.namespace.clone()?, claim.name.clone()?))
}

/// Whether `claim` is the one the volume refers to, not a later one of the same name.
fn is_volume_of(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let reference = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    let uid = reference.and_then(|reference| reference.uid.as_deref()).filter(|uid| !uid.is_empty());
    claim_of_volume(volume) == Some(ObjectKey::of(claim))
        && uid.is_none_or(|uid| claim.metadata.uid.as_deref() == Some(uid))
}

/// The attribute classes a claim wants, has, and is on the way to.
pub(super) fn classes_of_claim(claim: &PersistentVolumeClaim) -> Vec<&str> {
    let wanted = claim.spec.as_ref().and_then(|spec| spec.volume_attributes_class_name.as_deref());
    let status = claim.status.as_ref();
    let current = status.and_then(|status| status.current_volume_attributes_class_name.as_deref());
    let change = status.and_then(|status| status.modify_volume_status.as_ref());
    let target = change.and_then(|change| change.target_volume_attributes_class_name.as_deref());
    [wanted, current, target].into_iter().flatten().collect()
}

/// The attribute class of a volume.
pub(super) fn class_of_volume(volume: &PersistentVolume) -> Option<&str> {
    volume.spec.as_ref()?.volume_attributes_class_name.as_deref()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        EphemeralVolumeSource, ModifyVolumeStatus, ObjectReference, PersistentVolumeClaimSpec,
        PersistentVolumeClaimStatus, PersistentVolumeClaimVolumeSource, PersistentVolumeSpec,
        PersistentVolumeStatus, Volume,
    };

    use super::*;
    use crate::common::testing::{self, deleting, in_phase, pod, reference, time};

    fn meta(name: &str, finalizers: &[&str], leaving: bool) -> ObjectMeta {
        ObjectMeta {
            finalizers: Some(finalizers.iter().map(|finalizer| finalizer.to_string()).collect()),
            deletion_timestamp: leaving.then(|| time(1)),
            ..testing::meta(name, &format!("uid-{name}"))
        }
    }

    fn claim(finalizers: &[&str], leaving: bool) -> PersistentVolumeClaim {
        PersistentVolumeClaim {
            metadata: meta("data", finalizers, leaving),
            ..PersistentVolumeClaim::default()
        }
    }

    fn leaving_claim() -> Object {
        Object::Claim(Arc::new(claim(&["other", "kubernetes.io/pvc-protection"], true)))
    }

    fn words(action: Option<Action>) -> String {
        match action {
            None => String::new(),
            Some(Action::Protect(finalizers)) => format!("protect {}", finalizers.join(" ")),
            Some(Action::Release(finalizers)) => format!("release {}", finalizers.join(" ")),
        }
    }

    #[test]
    fn finalizers_come_and_go() {
        let object = |finalizers: &[&str], leaving| Object::Claim(Arc::new(claim(finalizers, leaving)));
        let rows = [
            ("new", object(&[], false), "protect kubernetes.io/pvc-protection"),
            ("with others", object(&["other"], false), "protect other kubernetes.io/pvc-protection"),
            ("protected", object(&["kubernetes.io/pvc-protection"], false), ""),
            ("leaving, held by others", object(&["other"], true), ""),
            ("leaving", object(&["kubernetes.io/pvc-protection"], true), "release "),
            ("leaving, held by others too", leaving_claim(), "release other"),
        ];
        for (name, object, expected) in rows {
            assert_eq!(words(plan(&object, &Users::default())), expected, "{name}");
        }
    }

    fn with_volume(volume: Volume) -> impl FnOnce(&mut Pod) {
        move |pod| pod.spec.as_mut().unwrap().volumes = Some(vec![volume])
    }

    fn names(claim: &str) -> Volume {
        let source = PersistentVolumeClaimVolumeSource { claim_name: claim.into(), read_only: None };
        Volume { name: "v".into(), persistent_volume_claim: Some(source), ..Volume::default() }
    }

    #[test]
    fn pods_hold_the_claims_they_name() {
        let holds = |change: &dyn Fn(&mut Pod)| {
            let pod = pod("p", |pod| {
                with_volume(names("data"))(pod);
                change(pod);
            });
            plan(&leaving_claim(), &Users { pods: vec![pod], ..Users::default() }).is_none()
        };
        type Row<'a> = (&'a str, &'a dyn Fn(&mut Pod), bool);
        let rows: [Row; 8] = [
            ("running", &|_| {}, true),
            ("starting", &in_phase("Pending"), true),
            ("ending", &deleting, true),
            ("succeeded", &in_phase("Succeeded"), false),
            ("failed", &in_phase("Failed"), false),
            ("without a node", &|pod| pod.spec.as_mut().unwrap().node_name = None, false),
            ("another claim", &|pod| with_volume(names("else"))(pod), false),
            ("another namespace", &|pod| pod.metadata.namespace = Some("else".into()), false),
        ];
        for (name, change, expected) in rows {
            assert_eq!(holds(change), expected, "{name}");
        }
    }

    #[test]
    fn pods_hold_the_claims_made_for_them() {
        let ephemeral = || Volume {
            name: "scratch".into(),
            ephemeral: Some(EphemeralVolumeSource::default()),
            ..Volume::default()
        };
        let shut_down = |pod: &mut Pod| {
            deleting(pod);
            pod.metadata.deletion_grace_period_seconds = Some(0);
        };
        type Row<'a> = (&'a str, &'a str, &'a str, &'a dyn Fn(&mut Pod), bool);
        let rows: [Row; 5] = [
            ("its own", "p-scratch", "uid-p", &|_| {}, true),
            ("of an earlier pod", "p-scratch", "uid-old", &|_| {}, false),
            ("another's", "q-scratch", "uid-p", &|_| {}, false),
            ("ending", "p-scratch", "uid-p", &deleting, true),
            ("shut down", "p-scratch", "uid-p", &shut_down, false),
        ];
        for (name, claim_name, owner, change, expected) in rows {
            let pod = pod("p", |pod| {
                with_volume(ephemeral())(pod);
                change(pod);
            });
            let mut claim = claim(&["kubernetes.io/pvc-protection"], true);
            claim.metadata.name = Some(claim_name.into());
            claim.metadata.owner_references = Some(vec![reference("Pod", "p", owner)]);
            let users = Users { pods: vec![pod], ..Users::default() };
            assert_eq!(plan(&Object::Claim(Arc::new(claim)), &users).is_none(), expected, "{name}");
        }
    }

    #[test]
    fn a_pod_wakes_all_its_claims() {
        let scratch = Volume {
            name: "scratch".into(),
            ephemeral: Some(EphemeralVolumeSource::default()),
            ..Volume::default()
        };
        let pod = pod("p", |pod| pod.spec.as_mut().unwrap().volumes = Some(vec![names("data"), scratch]));
        let keys: Vec<_> = claims_of_pod(&pod).map(|key| key.to_string()).collect();
        assert_eq!(keys, ["ns/data", "ns/p-scratch"]);
    }

    #[test]
    fn volumes_are_held_by_the_claim_they_are_bound_to() {
        let volume = |phase: &str, namespace: &str, uid: Option<&str>| {
            Object::Volume(Arc::new(PersistentVolume {
                metadata: meta("disk", &["kubernetes.io/pv-protection"], true),
                spec: Some(PersistentVolumeSpec {
                    claim_ref: Some(ObjectReference {
                        namespace: Some(namespace.into()),
                        name: Some("data".into()),
                        uid: uid.map(String::from),
                        ..ObjectReference::default()
                    }),
                    ..PersistentVolumeSpec::default()
                }),
                status: Some(PersistentVolumeStatus {
                    phase: Some(phase.into()),
                    ..PersistentVolumeStatus::default()
                }),
            }))
        };
        let free = Object::Volume(Arc::new(PersistentVolume {
            metadata: meta("disk", &["kubernetes.io/pv-protection"], true),
            ..PersistentVolume::default()
        }));
        let users = Users {
            claims: vec![Arc::new(claim(&["kubernetes.io/pvc-protection"], false))],
            ..Users::default()
        };
        let rows = [
            ("bound", volume("Bound", "ns", Some("uid-data")), true),
            ("bound, claim without uid", volume("Bound", "ns", None), true),
            ("bound to an earlier claim", volume("Bound", "ns", Some("uid-old")), false),
            ("bound to a claim elsewhere", volume("Bound", "else", None), false),
            ("released", volume("Released", "ns", Some("uid-data")), false),
            ("free", free, false),
        ];
        for (name, volume, expected) in rows {
            assert_eq!(plan(&volume, &users).is_none(), expected, "{name}");
            assert_eq!(words(plan(&volume, &Users::default())), "release ", "{name}, claim gone");
        }
    }

    #[test]
    fn attribute_classes_are_held_by_who_names_them() {
        let with = |spec: Option<&str>, current: Option<&str>, target: Option<&str>| {
            let mut claim = claim(&[], false);
            claim.spec = Some(PersistentVolumeClaimSpec {
                volume_attributes_class_name: spec.map(String::from),
                ..PersistentVolumeClaimSpec::default()
            });
            claim.status = Some(PersistentVolumeClaimStatus {
                current_volume_attributes_class_name: current.map(String::from),
                modify_volume_status: target.map(|target| ModifyVolumeStatus {
                    status: "InProgress".into(),
                    target_volume_attributes_class_name: Some(target.into()),
                }),
                ..PersistentVolumeClaimStatus::default()
            });
            Users { claims: vec![Arc::new(claim)], ..Users::default() }
        };
        let by_volume = |class: &str| {
            let spec = PersistentVolumeSpec {
                volume_attributes_class_name: Some(class.into()),
                ..PersistentVolumeSpec::default()
            };
            let volume = PersistentVolume { spec: Some(spec), ..PersistentVolume::default() };
            Users { volumes: vec![Arc::new(volume)], ..Users::default() }
        };
        let class = Object::Class(Arc::new(VolumeAttributesClass {
            metadata: meta("gold", &["kubernetes.io/vac-protection"], true),
            ..VolumeAttributesClass::default()
        }));
        let rows = [
            ("nobody", Users::default(), false),
            ("wanted", with(Some("gold"), None, None), true),
            ("on the way from it", with(Some("tin"), Some("gold"), Some("tin")), true),
            ("on the way to it", with(Some("tin"), None, Some("gold")), true),
            ("another", with(Some("tin"), Some("tin"), None), false),
            ("a volume's", by_volume("gold"), true),
            ("a volume's other", by_volume("tin"), false),
        ];
        for (name, users, expected) in rows {
            assert_eq!(plan(&class, &users).is_none(), expected, "{name}");
        }
    }
}
