//! Storage at admission: the default class of a claim, whether a claim may grow, and the finalizers that keep volumes,
//! claims and attribute classes from going while somebody uses them.
//!
//! Upstream: DefaultStorageClass, PersistentVolumeClaimResize, StorageObjectInUseProtection. Taking the finalizers off
//! again is the work of the loops that know who uses what.

use sampan_api::quota::amounts;
use serde_json::{Value, json};

use super::Admission;
use crate::error::ApiError;

/// How a class says that it is the default.
const DEFAULT: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// The old way of naming a class.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

/// Kinds that may be in use by others, and the finalizer for that.
const PROTECTED: &[(&str, &str, &str)] = &[
    ("", "persistentvolumeclaims", "kubernetes.io/pvc-protection"),
    ("", "persistentvolumes", "kubernetes.io/pv-protection"),
    ("storage.k8s.io", "volumeattributesclasses", "kubernetes.io/vac-protection"),
];

/// Gives a new claim that names no class the default one.
pub(super) fn default_class(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    let unnamed = object["spec"]["storageClassName"].is_null()
        && object["metadata"]["annotations"][CLASS_ANNOTATION].is_null();
    if admission.creates("", "persistentvolumeclaims") && unnamed {
        let classes =
            admission.cached_list("storageclasses.storage.k8s.io", "/storageclasses.storage.k8s.io/");
        if let Some(name) = newest_default(&classes, DEFAULT) {
            object["spec"]["storageClassName"] = name.into();
        }
    }
    Ok(())
}

/// The class that says it is the default. If several do, the newest, so that a change of mind needs one write; of the same
/// age, the first by name.
pub(super) fn newest_default<'a>(classes: &'a [Value], annotations: &[&str]) -> Option<&'a str> {
    let says = |class: &&Value| {
        annotations.iter().any(|annotation| class["metadata"]["annotations"][*annotation] == "true")
    };
    let name = |class: &'a Value| class["metadata"]["name"].as_str().unwrap_or_default();
    // Times of the API are in UTC and of one length, so that their order is that of their text.
    let age = |class: &'a Value| class["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
    let newest = classes.iter().filter(says).max_by(|a, b| age(a).cmp(age(b)).then(name(b).cmp(name(a))));
    newest.map(name)
}

/// Adds the finalizer of a new object that others may use.
pub(super) fn protect_in_use(admission: &Admission<'_>, object: &mut Value) -> Result<(), ApiError> {
    let row = PROTECTED.iter().find(|(group, plural, _)| admission.creates(group, plural));
    if let Some((_, _, finalizer)) = row {
        add_finalizer(object, finalizer);
    }
    Ok(())
}

fn add_finalizer(object: &mut Value, finalizer: &str) {
    let finalizers = &mut object["metadata"]["finalizers"];
    if !finalizers.is_array() {
        *finalizers = json!([]);
    }
    if let Some(list) = finalizers.as_array_mut()
        && !list.iter().any(|present| present == finalizer)
    {
        list.push(finalizer.into());
    }
}

/// A claim grows only if it has a volume whose class can grow.
pub(super) fn resize(admission: &Admission<'_>, object: &Value) -> Result<(), ApiError> {
    let Some(old) = admission.old.filter(|_| admission.updates("", "persistentvolumeclaims")) else {
        return Ok(());
    };
    let class = match object["spec"]["storageClassName"].as_str() {
        Some(name) => Some(name),
        None => object["metadata"]["annotations"][CLASS_ANNOTATION].as_str(),
    };
    let class = class.filter(|name| !name.is_empty()).and_then(|name| {
        admission.cached("storageclasses.storage.k8s.io", &format!("/storageclasses.storage.k8s.io/{name}"))
    });
    match growth_problem(old, object, class.as_ref()) {
        Some(why) => Err(admission.forbidden(object, why)),
        None => Ok(()),
    }
}

fn growth_problem(old: &Value, new: &Value, class: Option<&Value>) -> Option<&'static str> {
    let size = |claim: &Value| amounts(&claim["spec"]["resources"]["requests"]).get("storage").copied();
    if size(new) <= size(old) {
        return None;
    }
    if old["status"]["phase"] != "Bound" {
        return Some("Only bound persistent volume claims can be expanded");
    }
    let may_grow = class.is_some_and(|class| class["allowVolumeExpansion"] == true);
    (!may_grow).then_some(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, created: &str, default: &str) -> Value {
        let annotations = json!({"storageclass.kubernetes.io/is-default-class": default});
        json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": annotations}})
    }

    #[test]
    fn the_default_is_the_newest() {
        let (old, new) = ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z");
        let rows = [
            (vec![], None),
            (vec![class("a", old, "false")], None),
            (vec![class("a", old, "true"), class("b", new, "false")], Some("a")),
            (vec![class("a", old, "true"), class("b", new, "true")], Some("b")),
            (vec![class("b", new, "true"), class("a", new, "true")], Some("a")),
        ];
        for (classes, expected) in rows {
            assert_eq!(newest_default(&classes, DEFAULT), expected, "{classes:?}");
        }
    }

    #[test]
    fn claims_grow_when_their_class_can() {
        let claim = |size: &str, phase: &str| json!({"spec": {"resources": {"requests": {"storage": size}}}, "status": {"phase": phase}});
        let (can, cannot) = (json!({"allowVolumeExpansion": true}), json!({}));
        let bound = "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must \
                     support resize";
        let rows = [
            (claim("1Gi", "Bound"), claim("1024Mi", "Bound"), None, None),
            (claim("1Gi", "Bound"), claim("2Gi", "Bound"), Some(&can), None),
            (claim("1Gi", "Bound"), claim("2Gi", "Bound"), Some(&cannot), Some(bound)),
            (claim("1Gi", "Bound"), claim("2Gi", "Bound"), None, Some(bound)),
            (
                claim("1Gi", "Pending"),
                claim("2Gi", "Pending"),
                Some(&can),
                Some("Only bound persistent volume claims can be expanded"),
            ),
        ];
        for (old, new, class, expected) in rows {
            assert_eq!(growth_problem(&old, &new, class), expected, "{old} {new}");
        }
    }

    #[test]
    fn finalizers_stand_once() {
        let mut claim = json!({"metadata": {"finalizers": ["x"]}});
        add_finalizer(&mut claim, "kubernetes.io/pvc-protection");
        add_finalizer(&mut claim, "kubernetes.io/pvc-protection");
        assert_eq!(claim["metadata"]["finalizers"], json!(["x", "kubernetes.io/pvc-protection"]));
    }
}
