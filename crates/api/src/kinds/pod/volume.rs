//! Volumes of a pod: one source each, and that source complete.

use std::collections::BTreeSet;

use serde_json::Value;

use super::super::json::{entries, is_empty, list, text};
use super::super::rules::{
    self, descending_path, non_negative, optional_one_of, quantity, required, required_name,
};
use super::container::{validate_field_ref, validate_resource_ref};
use crate::field::{Errors, Path};
use crate::names;

/// Fields of a pod that can be files; environment variables know more, because addresses come late.
const FIELD_PATHS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

const HOST_PATH_TYPES: &[&str] =
    &["DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"];

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";

/// Checks all volumes and returns their names.
pub(super) fn validate_all(errors: &mut Errors, path: &Path, volumes: &Value) -> BTreeSet<String> {
    let mut seen = BTreeSet::new();
    for (index, volume) in list(volumes).iter().enumerate() {
        let path = path.index(index);
        let name = text(&volume["name"]);
        required_name(errors, &path.child("name"), name, names::dns1123_label);
        if !name.is_empty() && !seen.insert(name.to_owned()) {
            errors.duplicate(&path.child("name"), name);
        }
        validate_source(errors, &path, volume);
    }
    seen
}

fn validate_source(errors: &mut Errors, path: &Path, volume: &Value) {
    let mut found = false;
    for (field, source) in entries(volume).filter(|(field, value)| *field != "name" && !value.is_null()) {
        if found {
            errors.forbidden(&path.child(field), "may not specify more than 1 volume type");
            continue;
        }
        found = true;
        validate_one(errors, &path.child(field), field, source);
    }
    if !found {
        errors.required(path, "must specify a volume type");
    }
}

fn validate_one(errors: &mut Errors, path: &Path, field: &str, source: &Value) {
    match field {
        "emptyDir" if quantity(&source["sizeLimit"]).is_some_and(|q| q.is_negative()) => {
            errors.forbidden(&path.child("sizeLimit"), "SizeLimit field must be a valid resource quantity");
        }
        "hostPath" => {
            required(errors, &path.child("path"), &source["path"]);
            rules::no_backsteps(errors, &path.child("path"), text(&source["path"]));
            optional_one_of(errors, &path.child("type"), &source["type"], HOST_PATH_TYPES);
        }
        "secret" => {
            required(errors, &path.child("secretName"), &source["secretName"]);
            validate_keys(errors, path, source, "defaultMode");
        }
        "configMap" => {
            required(errors, &path.child("name"), &source["name"]);
            validate_keys(errors, path, source, "defaultMode");
        }
        "downwardAPI" => {
            validate_mode(errors, &path.child("defaultMode"), &source["defaultMode"]);
            validate_downward(errors, path, source);
        }
        "projected" => validate_projected(errors, path, source),
        "persistentVolumeClaim" => required(errors, &path.child("claimName"), &source["claimName"]),
        "nfs" => {
            required(errors, &path.child("server"), &source["server"]);
            required(errors, &path.child("path"), &source["path"]);
            if !text(&source["path"]).starts_with('/') && !is_empty(&source["path"]) {
                errors.invalid(&path.child("path"), text(&source["path"]), "must be an absolute path");
            }
        }
        "csi" => required(errors, &path.child("driver"), &source["driver"]),
        "image" => {
            required(errors, &path.child("reference"), &source["reference"]);
            let words = ["Always", "IfNotPresent", "Never"];
            optional_one_of(errors, &path.child("pullPolicy"), &source["pullPolicy"], &words);
        }
        "ephemeral" => required(errors, &path.child("volumeClaimTemplate"), &source["volumeClaimTemplate"]),
        _ => {}
    }
}

fn validate_mode(errors: &mut Errors, path: &Path, mode: &Value) {
    if let Some(mode) = mode.as_i64()
        && !(0..=0o777).contains(&mode)
    {
        errors.invalid(path, mode, MODE);
    }
}

/// `items` of ConfigMaps and Secrets: which keys become which files.
fn validate_keys(errors: &mut Errors, path: &Path, source: &Value, mode: &str) {
    validate_mode(errors, &path.child(mode), &source[mode]);
    for (index, item) in list(&source["items"]).iter().enumerate() {
        let path = path.child("items").index(index);
        required(errors, &path.child("key"), &item["key"]);
        required(errors, &path.child("path"), &item["path"]);
        validate_local_path(errors, &path.child("path"), text(&item["path"]));
        validate_mode(errors, &path.child("mode"), &item["mode"]);
    }
}

/// Like [`descending_path`]; names that begin with two dots are the node's own.
fn validate_local_path(errors: &mut Errors, path: &Path, value: &str) {
    descending_path(errors, path, value);
    if value.starts_with("..") && !value.split('/').any(|part| part == "..") {
        errors.invalid(path, value, "must not start with '..'");
    }
}

fn validate_downward(errors: &mut Errors, path: &Path, source: &Value) {
    for (index, item) in list(&source["items"]).iter().enumerate() {
        let path = path.child("items").index(index);
        required(errors, &path.child("path"), &item["path"]);
        validate_local_path(errors, &path.child("path"), text(&item["path"]));
        let (field, resource) = (&item["fieldRef"], &item["resourceFieldRef"]);
        match (field.is_null(), resource.is_null()) {
            (false, true) => validate_field_ref(errors, &path.child("fieldRef"), field, FIELD_PATHS),
            (true, false) => {
                let path = path.child("resourceFieldRef");
                required(errors, &path.child("containerName"), &resource["containerName"]);
                validate_resource_ref(errors, &path, resource);
            }
            (false, false) => {
                errors.invalid(
                    &path,
                    "resource",
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (true, true) => errors.required(&path, "one of fieldRef and resourceFieldRef is required"),
        }
        validate_mode(errors, &path.child("mode"), &item["mode"]);
    }
}

fn validate_projected(errors: &mut Errors, path: &Path, volume: &Value) {
    validate_mode(errors, &path.child("defaultMode"), &volume["defaultMode"]);
    let mut files: BTreeSet<&str> = BTreeSet::new();
    for (index, projection) in list(&volume["sources"]).iter().enumerate() {
        let path = path.child("sources").index(index);
        let mut sources = entries(projection).filter(|(_, source)| !source.is_null());
        let Some((field, source)) = sources.next() else {
            continue;
        };
        let path = path.child(field);
        if sources.next().is_some() {
            errors.forbidden(&path, "may not specify more than 1 volume type per source");
        }
        match field {
            "secret" | "configMap" => {
                required(errors, &path.child("name"), &source["name"]);
                validate_keys(errors, &path, source, "defaultMode");
            }
            "downwardAPI" => validate_downward(errors, &path, source),
            "serviceAccountToken" => validate_token(errors, &path, source),
            _ => {}
        }
        let paths = list(&source["items"]).iter().map(|item| &item["path"]).chain([&source["path"]]);
        for file in paths.map(text).filter(|file| !file.is_empty()) {
            if !files.insert(file) {
                errors.invalid(&path, file, format!("conflicting duplicate paths within {field}"));
            }
        }
    }
}

/// Tokens must live long enough to be renewed in time, and no longer than 2^32 seconds.
fn validate_token(errors: &mut Errors, path: &Path, source: &Value) {
    const SHORTEST: i64 = 600;
    required(errors, &path.child("path"), &source["path"]);
    validate_local_path(errors, &path.child("path"), text(&source["path"]));
    let path = path.child("expirationSeconds");
    non_negative(errors, &path, &source["expirationSeconds"]);
    match source["expirationSeconds"].as_i64() {
        Some(seconds) if (0..SHORTEST).contains(&seconds) => {
            errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
        }
        Some(seconds) if seconds > 1 << 32 => {
            errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
        _ => {}
    }
}
