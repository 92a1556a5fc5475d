//! VolumeAttachments: a volume that is to be attached to a node.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{is_true, same, set, text};
use super::{rules, storage};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, STATUS_METADATA, Scope, Strategy, Subresource};
use crate::{names, table};

/// VolumeAttachments.
pub static VOLUME_ATTACHMENT: Row = Row {
    group: "storage.k8s.io",
    kind: "VolumeAttachment",
    plural: "volumeattachments",
    singular: "volumeattachment",
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    status_keeps: STATUS_METADATA,
    schema: "io.k8s.api.storage.v1.VolumeAttachment",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("Attacher", "Driver that attaches the volume."),
        Column::new("PV", "The volume."),
        Column::new("Node", "Node the volume is for."),
        Column::new("Attached", "Whether it is done.").of_type("boolean"),
        Column::age(),
    ],
    table_row,
    strategy: Strategy {
        prepare_create: |attachment| set(attachment, "status", json!({"attached": false})),
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

fn validate(attachment: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &attachment["spec"]);
    rules::driver_name(&mut errors, &path.child("attacher"), text(&spec["attacher"]));
    let (source, source_path) = (&spec["source"], path.child("source"));
    let (volume, inline) = (source["persistentVolumeName"].as_str(), &source["inlineVolumeSpec"]);
    const ONE: &str = "must specify exactly one of inlineVolumeSpec and persistentVolumeName";
    match (volume, inline.is_null()) {
        (None, true) => errors.required(&source_path, ONE),
        (Some(_), false) => errors.forbidden(&source_path, ONE),
        (Some(""), true) => {
            let path = source_path.child("persistentVolumeName");
            errors.required(&path, "must specify non empty persistentVolumeName");
        }
        (Some(name), true) => {
            let path = source_path.child("persistentVolumeName");
            rules::name(&mut errors, &path, name, names::dns1123_subdomain);
        }
        (None, false) => {
            storage::validate_volume_source(&mut errors, &source_path.child("inlineVolumeSpec"), inline);
        }
    }
    rules::name(&mut errors, &path.child("nodeName"), text(&spec["nodeName"]), names::dns1123_subdomain);
    errors
}

fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if !same(&new["spec"], &old["spec"]) {
        errors.invalid(&Path::new("spec"), new["spec"].clone(), rules::IMMUTABLE);
    }
    errors
}

fn table_row(attachment: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &attachment["spec"];
    vec![
        json!(text(&attachment["metadata"]["name"])),
        json!(text(&spec["attacher"])),
        json!(text(&spec["source"]["persistentVolumeName"])),
        json!(text(&spec["nodeName"])),
        json!(is_true(&attachment["status"]["attached"])),
        table::age(attachment, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    #[test]
    fn validation_and_cells() {
        let good = json!({
            "metadata": {"name": "a"},
            "spec": {"attacher": "disk.example.com", "nodeName": "n1", "source": {"persistentVolumeName": "v"}},
        });
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good.clone(), changes)), expected);
        };
        row("good", &[], &[]);
        row("inline", &[("/spec/source", json!({"inlineVolumeSpec": {"hostPath": {"path": "/x"}}}))], &[]);
        row(
            "no volume",
            &[("/spec/source", json!({}))],
            &[
                "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
            ],
        );
        row(
            "no name",
            &[("/spec/source/persistentVolumeName", json!(""))],
            &[
                "spec.source.persistentVolumeName: Required value: must specify non empty persistentVolumeName",
            ],
        );
        row(
            "inline without a place",
            &[("/spec/source", json!({"inlineVolumeSpec": {}}))],
            &["spec.source.inlineVolumeSpec: Required value: must specify a volume type"],
        );
        let moved = with(good.clone(), &[("/spec/nodeName", json!("n2"))]);
        assert_eq!(validate_update(&moved, &good).0.len(), 1);
        expect("same", &validate_update(&good, &good), &[]);
        let expected = [json!("a"), json!("disk.example.com"), json!("v"), json!("n1"), json!(false)];
        assert_eq!(table_row(&good, Timestamp::UNIX_EPOCH)[..5], expected);
    }
}
