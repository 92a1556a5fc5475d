//! Storage: volumes, claims for them, and classes of them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{copy_field, entries, is_empty, is_true, list, same, set, text};
use super::pod::validate_node_selector;
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Scope, Strategy, Subresource};
use crate::{names, table};

/// Fields of a volume's spec that do not say where its bytes are.
const NOT_SOURCES: &[&str] = &[
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

const ACCESS_MODES: &[&str] = &["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

/// PersistentVolumes.
pub static PERSISTENT_VOLUME: Row = Row {
    kind: "PersistentVolume",
    plural: "persistentvolumes",
    singular: "persistentvolume",
    short_names: &["pv"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.core.v1.PersistentVolume",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("Capacity", "Size of the volume."),
        Column::new("Access Modes", "How the volume may be mounted."),
        Column::new("Reclaim Policy", "What becomes of the volume without its claim."),
        Column::new("Status", "Whether the volume is free or bound."),
        Column::new("Claim", "Claim that has the volume."),
        Column::new("StorageClass", "Class of the volume."),
        Column::new("VolumeAttributesClass", "Class of the volume's attributes."),
        Column::new("Reason", "Why the volume is in its state."),
        Column::age(),
        Column::new("VolumeMode", "File system or raw device.").wide(),
    ],
    table_row: volume_row,
    strategy: Strategy {
        prepare_create: |volume| set(volume, "status", json!({"phase": "Pending"})),
        validate: validate_volume,
        validate_update: validate_volume_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// PersistentVolumeClaims.
pub static PERSISTENT_VOLUME_CLAIM: Row = Row {
    kind: "PersistentVolumeClaim",
    plural: "persistentvolumeclaims",
    singular: "persistentvolumeclaim",
    short_names: &["pvc"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("Status", "Whether the claim has a volume."),
        Column::new("Volume", "Volume of the claim."),
        Column::new("Capacity", "Size of the volume."),
        Column::new("Access Modes", "How the volume may be mounted."),
        Column::new("StorageClass", "Class of the volume."),
        Column::new("VolumeAttributesClass", "Class of the volume's attributes."),
        Column::age(),
        Column::new("VolumeMode", "File system or raw device.").wide(),
    ],
    table_row: claim_row,
    strategy: Strategy {
        prepare_create: |claim| set(claim, "status", json!({"phase": "Pending"})),
        validate: validate_claim,
        validate_update: validate_claim_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// StorageClasses.
pub static STORAGE_CLASS: Row = Row {
    group: "storage.k8s.io",
    kind: "StorageClass",
    plural: "storageclasses",
    singular: "storageclass",
    short_names: &["sc"],
    scope: Scope::Cluster,
    schema: "io.k8s.api.storage.v1.StorageClass",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("Provisioner", "Who makes the volumes."),
        Column::new("ReclaimPolicy", "What becomes of volumes without their claims."),
        Column::new("VolumeBindingMode", "Whether volumes wait for their first pod."),
        Column::new("AllowVolumeExpansion", "Whether volumes may grow."),
        Column::age(),
    ],
    table_row: class_row,
    strategy: Strategy {
        validate: validate_class,
        validate_update: validate_class_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// VolumeAttributesClasses.
pub static VOLUME_ATTRIBUTES_CLASS: Row = Row {
    group: "storage.k8s.io",
    kind: "VolumeAttributesClass",
    plural: "volumeattributesclasses",
    singular: "volumeattributesclass",
    short_names: &["vac"],
    scope: Scope::Cluster,
    schema: "io.k8s.api.storage.v1.VolumeAttributesClass",
    returns_deleted: true,
    columns: &[Column::name(), Column::new("DriverName", "Who changes the volumes."), Column::age()],
    table_row: attributes_class_row,
    strategy: Strategy {
        validate: validate_attributes_class,
        validate_update: validate_attributes_class_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// What the parameters of a class may take together, and how many there may be.
const MAX_PARAMETER_BYTES: usize = 256 * 1024;
const MAX_PARAMETERS: usize = 512;

fn validate_modes(errors: &mut Errors, path: &Path, spec: &Value) {
    let (path, modes) = (path.child("accessModes"), list(&spec["accessModes"]));
    if modes.is_empty() {
        errors.required(&path, "at least 1 access mode is required");
    }
    for mode in modes {
        rules::one_of(errors, &path, mode, ACCESS_MODES);
    }
    if modes.len() > 1 && modes.iter().any(|mode| text(mode) == "ReadWriteOncePod") {
        errors.forbidden(&path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn validate_volume(volume: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &volume["spec"]);
    validate_modes(&mut errors, &path, spec);
    let storage = &spec["capacity"]["storage"];
    if storage.is_null() {
        errors.required(&path.child("capacity"), "");
    }
    rules::quantity_not_negative(&mut errors, &path.child("capacity").key("storage"), storage);
    validate_volume_source(&mut errors, &path, spec);
    let required = &spec["nodeAffinity"]["required"];
    let affinity_path = path.child("nodeAffinity");
    if !spec["nodeAffinity"].is_null() && required.is_null() {
        errors.required(&affinity_path.child("required"), "must specify required node constraints");
    }
    if !required.is_null() {
        validate_node_selector(&mut errors, &affinity_path.child("required"), required);
    } else if !spec["local"].is_null() {
        errors.required(&affinity_path, "Local volume requires node affinity");
    }
    rules::optional_one_of(
        &mut errors,
        &path.child("persistentVolumeReclaimPolicy"),
        &spec["persistentVolumeReclaimPolicy"],
        &["Delete", "Recycle", "Retain"],
    );
    let class = text(&spec["storageClassName"]);
    rules::optional_name(&mut errors, &path.child("storageClassName"), class, names::dns1123_subdomain);
    rules::optional_one_of(
        &mut errors,
        &path.child("volumeMode"),
        &spec["volumeMode"],
        &["Block", "Filesystem"],
    );
    errors
}

/// Checks that a volume's spec names one place where its bytes are.
pub(super) fn validate_volume_source(errors: &mut Errors, path: &Path, spec: &Value) {
    let sources: Vec<&str> = entries(spec)
        .filter(|(field, value)| !NOT_SOURCES.contains(field) && !value.is_null())
        .map(|(field, _)| field)
        .collect();
    match sources.as_slice() {
        [] => errors.required(path, "must specify a volume type"),
        [_] => {}
        [_, more @ ..] => {
            for field in more {
                errors.forbidden(&path.child(field), "may not specify more than 1 volume type");
            }
        }
    }
}

fn validate_volume_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, new, old) = (Path::new("spec"), &new["spec"], &old["spec"]);
    let source = |spec: &Value| {
        let mut spec = spec.clone();
        for field in NOT_SOURCES {
            super::json::remove(&mut spec, field);
        }
        spec
    };
    if !same(&source(new), &source(old)) {
        errors.forbidden(
            &path.child("persistentvolumesource"),
            "spec.persistentvolumesource is immutable after creation",
        );
    }
    rules::immutable(&mut errors, &path.child("volumeMode"), &new["volumeMode"], &old["volumeMode"]);
    if !is_empty(&old["nodeAffinity"]) {
        let path = path.child("nodeAffinity");
        rules::immutable(&mut errors, &path, &new["nodeAffinity"], &old["nodeAffinity"]);
    }
    errors
}

fn validate_claim(claim: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &claim["spec"]);
    validate_modes(&mut errors, &path, spec);
    rules::label_selector(&mut errors, &path.child("selector"), &spec["selector"]);
    let (storage_path, storage) = (path.child("resources"), &spec["resources"]["requests"]["storage"]);
    match rules::quantity(storage) {
        None => errors.required(&storage_path.key("storage"), ""),
        Some(size) if size.is_zero() || size.is_negative() => {
            errors.invalid(&storage_path.child("requests").key("storage"), storage.clone(), rules::POSITIVE);
        }
        Some(_) => {}
    }
    let class = text(&spec["storageClassName"]);
    rules::optional_name(&mut errors, &path.child("storageClassName"), class, names::dns1123_subdomain);
    rules::optional_one_of(
        &mut errors,
        &path.child("volumeMode"),
        &spec["volumeMode"],
        &["Block", "Filesystem"],
    );
    errors
}

/// A claim may be bound, and then grow; everything else it was made with.
fn validate_claim_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, new, old_spec) = (Path::new("spec"), &new["spec"], &old["spec"]);
    let mut rest = new.clone();
    if is_empty(&old_spec["volumeName"]) {
        copy_field(&mut rest, old_spec, "volumeName");
    }
    if old_spec["storageClassName"].is_null() {
        copy_field(&mut rest, old_spec, "storageClassName");
    }
    copy_field(&mut rest, old_spec, "volumeAttributesClassName");
    let size = |spec: &Value| rules::quantity(&spec["resources"]["requests"]["storage"]);
    if text(&old["status"]["phase"]) == "Bound" {
        copy_field(&mut rest, old_spec, "resources");
        if size(new) < size(old_spec) {
            let detail = "field can not be less than status.capacity";
            errors.forbidden(&path.child("resources").child("requests").child("storage"), detail);
        }
    }
    if !same(&rest, old_spec) {
        errors.forbidden(
            &path,
            "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims",
        );
    }
    errors
}

fn validate_class(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let provisioner = text(&class["provisioner"]).to_lowercase();
    rules::required_name(&mut errors, &Path::new("provisioner"), &provisioner, names::qualified_name);
    validate_parameters(&mut errors, &class["parameters"]);
    for (field, words) in [
        ("reclaimPolicy", &["Delete", "Retain"]),
        ("volumeBindingMode", &["Immediate", "WaitForFirstConsumer"]),
    ] {
        rules::one_of(&mut errors, &Path::new(field), &class[field], words);
    }
    errors
}

fn validate_parameters(errors: &mut Errors, parameters: &Value) {
    let path = Path::new("parameters");
    if entries(parameters).count() > MAX_PARAMETERS {
        return errors.too_long(&path, MAX_PARAMETERS);
    }
    let mut size = 0;
    for (key, value) in entries(parameters) {
        if key.is_empty() {
            errors.invalid(&path, key, "field can not be empty.");
        }
        size += key.len() + text(value).len();
    }
    if size > MAX_PARAMETER_BYTES {
        errors.too_long(&path, MAX_PARAMETER_BYTES);
    }
}

fn validate_attributes_class(class: &Value) -> Errors {
    let mut errors = Errors::new();
    rules::driver_name(&mut errors, &Path::new("driverName"), text(&class["driverName"]));
    if is_empty(&class["parameters"]) {
        errors.required(&Path::new("parameters"), "must contain at least one key/value pair");
    }
    validate_parameters(&mut errors, &class["parameters"]);
    errors
}

/// Volumes of a class would not follow a change of it, so another class has to be made.
fn validate_attributes_class_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    forbid_changes(&mut errors, new, old, &["driverName", "parameters"]);
    errors
}

fn forbid_changes(errors: &mut Errors, new: &Value, old: &Value, fields: &[&str]) {
    for field in fields {
        if !same(&new[*field], &old[*field]) {
            errors.forbidden(&Path::new(field), format!("updates to {field} are forbidden."));
        }
    }
}

fn validate_class_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    forbid_changes(&mut errors, new, old, &["parameters", "provisioner", "reclaimPolicy"]);
    rules::immutable(
        &mut errors,
        &Path::new("volumeBindingMode"),
        &new["volumeBindingMode"],
        &old["volumeBindingMode"],
    );
    errors
}

/// `RWO,ROX`: access modes as kubectl writes them.
fn modes(modes: &Value) -> String {
    let short = |mode: &str| match mode {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"]
        .into_iter()
        .filter(|mode| list(modes).iter().any(|m| text(m) == *mode))
        .map(short)
        .collect::<Vec<_>>()
        .join(",")
}

fn or_unset(value: &Value) -> Value {
    json!(if is_empty(value) { "<unset>" } else { text(value) })
}

fn volume_row(volume: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&volume["spec"], &volume["status"]);
    let claim = &spec["claimRef"];
    let claim = match text(&claim["name"]) {
        "" => String::new(),
        name => format!("{}/{name}", text(&claim["namespace"])),
    };
    let leaving = !volume["metadata"]["deletionTimestamp"].is_null();
    vec![
        json!(text(&volume["metadata"]["name"])),
        spec["capacity"]["storage"].clone(),
        json!(modes(&spec["accessModes"])),
        json!(text(&spec["persistentVolumeReclaimPolicy"])),
        json!(if leaving { "Terminating" } else { text(&status["phase"]) }),
        json!(claim),
        json!(text(&spec["storageClassName"])),
        or_unset(&spec["volumeAttributesClassName"]),
        json!(text(&status["reason"])),
        table::age(volume, now),
        or_unset(&spec["volumeMode"]),
    ]
}

fn claim_row(claim: &Value, now: Timestamp) -> Vec<Value> {
    let (spec, status) = (&claim["spec"], &claim["status"]);
    let leaving = !claim["metadata"]["deletionTimestamp"].is_null();
    let bound = !is_empty(&spec["volumeName"]);
    let capacity = status["capacity"]["storage"].clone();
    vec![
        json!(text(&claim["metadata"]["name"])),
        json!(if leaving { "Terminating" } else { text(&status["phase"]) }),
        json!(text(&spec["volumeName"])),
        if bound && !capacity.is_null() { capacity } else { json!("") },
        json!(if bound { modes(&status["accessModes"]) } else { String::new() }),
        json!(text(&spec["storageClassName"])),
        or_unset(&spec["volumeAttributesClassName"]),
        table::age(claim, now),
        or_unset(&spec["volumeMode"]),
    ]
}

/// The annotation by which a cluster has a class for claims that name none.
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";

fn class_row(class: &Value, now: Timestamp) -> Vec<Value> {
    let name = text(&class["metadata"]["name"]);
    let default = text(&class["metadata"]["annotations"][DEFAULT_CLASS]) == "true";
    vec![
        json!(if default { format!("{name} (default)") } else { name.to_owned() }),
        json!(text(&class["provisioner"])),
        json!(text(&class["reclaimPolicy"])),
        json!(text(&class["volumeBindingMode"])),
        json!(is_true(&class["allowVolumeExpansion"])),
        table::age(class, now),
    ]
}

fn attributes_class_row(class: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(text(&class["metadata"]["name"])), json!(text(&class["driverName"])), table::age(class, now)]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn claim() -> Value {
        json!({
            "metadata": {"name": "a", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"]},
        })
    }

    #[test]
    fn claims() {
        expect("good", &validate_claim(&claim()), &[]);
        expect(
            "no modes",
            &validate_claim(&with(claim(), &[("/spec/accessModes", json!([]))])),
            &["spec.accessModes: Required value: at least 1 access mode is required"],
        );
        let sized = |size: &str| with(claim(), &[("/spec/resources/requests/storage", json!(size))]);
        expect("grows", &validate_claim_update(&sized("2Gi"), &claim()), &[]);
        assert_eq!(validate_claim_update(&sized("1Mi"), &claim()).0.len(), 1);
        let other = with(claim(), &[("/spec/accessModes", json!(["ReadOnlyMany"]))]);
        assert_eq!(validate_claim_update(&other, &claim()).0.len(), 1);
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let bound = with(claim(), &[("/spec/volumeName", json!("v"))]);
        let expected = ["a", "Bound", "v", "1Gi", "RWO", "", "<unset>", "60s", "<unset>"];
        assert_eq!(claim_row(&bound, now), expected.map(|cell| json!(cell)));
    }

    #[test]
    fn volumes() {
        let spec = json!({"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/x"}});
        let volume = json!({ "spec": spec });
        expect("good", &validate_volume(&volume), &[]);
        expect(
            "two sources",
            &validate_volume(&with(volume.clone(), &[("/spec/nfs", json!({}))])),
            &["spec.nfs: Forbidden: may not specify more than 1 volume type"],
        );
        let moved = with(volume.clone(), &[("/spec/hostPath", json!({"path": "/y"}))]);
        assert_eq!(validate_volume_update(&moved, &volume).0.len(), 1);
    }
    #[test]
    fn classes() {
        let class = json!({
            "provisioner": "example.com/disk", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate",
            "parameters": {"type": "ssd"},
        });
        expect("good", &validate_class(&class), &[]);
        let other = with(class.clone(), &[("/parameters", json!({"type": "hdd"}))]);
        expect(
            "parameters",
            &validate_class_update(&other, &class),
            &["parameters: Forbidden: updates to parameters are forbidden."],
        );
        let large = with(class, &[("/parameters", json!({"a": "x".repeat(MAX_PARAMETER_BYTES)}))]);
        expect(
            "large",
            &validate_class(&large),
            &["parameters: Too long: may not be more than 262144 bytes"],
        );
    }

    #[test]
    fn attributes_classes() {
        let class = json!({"driverName": "disk.example.com", "parameters": {"iops": "5"}});
        expect("good", &validate_attributes_class(&class), &[]);
        expect(
            "empty",
            &validate_attributes_class(&json!({})),
            &[
                "driverName: Required value",
                "parameters: Required value: must contain at least one key/value pair",
            ],
        );
        let other = with(class.clone(), &[("/driverName", json!("other.example.com"))]);
        expect(
            "driver",
            &validate_attributes_class_update(&other, &class),
            &["driverName: Forbidden: updates to driverName are forbidden."],
        );
    }
}
