//! ResourceSlices: the devices that a driver has on a node, or for several.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::json::{entries, int, is_empty, is_true, list, text};
use super::super::pod::validate_node_selector;
use super::super::rules;
use super::{DEVICES, EFFECTS, too_many, validate_attribute_name};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Scope, Strategy};
use crate::{names, table};

/// ResourceSlices.
pub static RESOURCE_SLICE: Row = Row {
    kind: "ResourceSlice",
    plural: "resourceslices",
    singular: "resourceslice",
    scope: Scope::Cluster,
    schema: "io.k8s.api.resource.v1.ResourceSlice",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("Node", "Node with the devices."),
        Column::new("Driver", "Driver of the devices."),
        Column::new("Pool", "Pool the devices belong to."),
        Column::age(),
    ],
    table_row,
    field_selectors: &[("spec.driver", "/spec/driver"), ("spec.nodeName", "/spec/nodeName")],
    generation: true,
    strategy: Strategy { validate, validate_update, ..Strategy::PLAIN },
    ..DEVICES
};

const MAX_DEVICES: usize = 128;
/// Devices with taints, counters or lists of attributes take more room.
const MAX_LARGE_DEVICES: usize = 64;
const MAX_ATTRIBUTES: usize = 32;
const MAX_COUNTER_SETS: usize = 8;
const MAX_COUNTERS: usize = 32;
const MAX_TAINTS: usize = 16;
const LONGEST_VALUE: usize = 64;
const LONGEST_POOL: usize = 253;

fn validate(slice: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &slice["spec"]);
    rules::driver_name(&mut errors, &path.child("driver"), text(&spec["driver"]));
    validate_pool(&mut errors, &path.child("pool"), &spec["pool"]);
    validate_nodes(&mut errors, &path, spec);
    if !spec["sharedCounters"].is_null() && !spec["devices"].is_null() {
        errors.invalid(&path, "", "only one of `sharedCounters` or `devices` is allowed");
    }
    let large = list(&spec["devices"]).iter().any(is_large);
    let most = if large { MAX_LARGE_DEVICES } else { MAX_DEVICES };
    too_many(&mut errors, &path.child("devices"), &spec["devices"], most);
    let per_device = is_true(&spec["perDeviceNodeSelection"]);
    let mut seen = BTreeSet::new();
    for (index, device) in list(&spec["devices"]).iter().enumerate() {
        let path = path.child("devices").index(index);
        validate_device(&mut errors, &path, device, per_device);
        let name = text(&device["name"]);
        if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
    }
    let sets = path.child("sharedCounters");
    validate_counters(&mut errors, &sets, &spec["sharedCounters"], "name", MAX_COUNTER_SETS);
    errors
}

fn is_large(device: &Value) -> bool {
    let lists = ["bools", "ints", "strings", "versions"];
    !is_empty(&device["taints"])
        || !is_empty(&device["consumesCounters"])
        || entries(&device["attributes"]).any(|(_, value)| lists.iter().any(|field| !value[*field].is_null()))
}

fn validate_pool(errors: &mut Errors, path: &Path, pool: &Value) {
    let (name, at) = (text(&pool["name"]), path.child("name"));
    if name.is_empty() {
        errors.required(&at, "");
    } else {
        if name.len() > LONGEST_POOL {
            errors.too_long(&at, LONGEST_POOL);
        }
        for part in name.split('/') {
            rules::name(errors, &at, part, names::dns1123_subdomain);
        }
    }
    let (count, generation) = (int(&pool["resourceSliceCount"]), int(&pool["generation"]));
    if count <= 0 {
        errors.invalid(&path.child("resourceSliceCount"), count, rules::POSITIVE);
    }
    if generation < 0 {
        errors.invalid(&path.child("generation"), generation, "must be greater than or equal to zero");
    }
}

/// Where the devices are: exactly one way to say it.
fn validate_nodes(errors: &mut Errors, path: &Path, spec: &Value) {
    let mut given = Vec::new();
    match spec["nodeName"].as_str() {
        Some("") => {
            let detail = "must be either unset or set to a non-empty string";
            errors.invalid(&path.child("nodeName"), "", detail);
        }
        Some(name) => {
            given.push("`nodeName`");
            rules::name(errors, &path.child("nodeName"), name, names::dns1123_subdomain);
        }
        None => {}
    }
    let selector = &spec["nodeSelector"];
    if !selector.is_null() {
        given.push("`nodeSelector`");
        let path = path.child("nodeSelector");
        validate_node_selector(errors, &path, selector);
        let terms = &selector["nodeSelectorTerms"];
        if list(terms).len() != 1 {
            let path = path.child("nodeSelectorTerms");
            errors.invalid(&path, terms.clone(), "must have exactly one node selector term");
        }
    }
    for (field, shown) in [("allNodes", "`allNodes`"), ("perDeviceNodeSelection", "`perDeviceNodeSelection`")]
    {
        match spec[field].as_bool() {
            Some(true) => given.push(shown),
            Some(false) => {
                errors.invalid(&path.child(field), false, "must be either unset or set to true");
            }
            None => {}
        }
    }
    const ONE: &str =
        "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required";
    match given.len() {
        0 => errors.required(path, ONE),
        1 => {}
        _ => {
            let shown = format!("{{{}}}", given.join(", "));
            errors.invalid(path, shown, format!("{ONE}, but multiple fields are set"));
        }
    }
}

fn validate_device(errors: &mut Errors, path: &Path, device: &Value, per_device: bool) {
    rules::required_name(errors, &path.child("name"), text(&device["name"]), names::dns1123_label);
    let count = entries(&device["attributes"]).count() + entries(&device["capacity"]).count();
    if count > MAX_ATTRIBUTES {
        let detail =
            format!("the total number of attributes and capacities must not exceed {MAX_ATTRIBUTES}");
        errors.invalid(path, count, detail);
    }
    for (name, attribute) in entries(&device["attributes"]) {
        let path = path.child("attributes").key(name);
        validate_attribute_name(errors, &path, name);
        validate_attribute(errors, &path, attribute);
    }
    for (name, capacity) in entries(&device["capacity"]) {
        let path = path.child("capacity").key(name);
        validate_attribute_name(errors, &path, name);
        if !capacity["requestPolicy"].is_null() && !is_true(&device["allowMultipleAllocations"]) {
            errors.forbidden(&path.child("requestPolicy"), "allowMultipleAllocations must be true");
        }
    }
    too_many(errors, &path.child("taints"), &device["taints"], MAX_TAINTS);
    for (index, taint) in list(&device["taints"]).iter().enumerate() {
        let path = path.child("taints").index(index);
        rules::required_name(errors, &path.child("key"), text(&taint["key"]), names::qualified_name);
        rules::optional_name(errors, &path.child("value"), text(&taint["value"]), names::label_value);
        rules::one_of(errors, &path.child("effect"), &taint["effect"], EFFECTS);
    }
    let counters = path.child("consumesCounters");
    validate_counters(errors, &counters, &device["consumesCounters"], "counterSet", MAX_COUNTER_SETS);
    validate_device_nodes(errors, path, device, per_device);
}

fn validate_attribute(errors: &mut Errors, path: &Path, attribute: &Value) {
    let count = entries(attribute).filter(|(_, value)| !value.is_null()).count();
    if count != 1 {
        let shown = if count == 0 { json!("") } else { attribute.clone() };
        errors.invalid(path, shown, "exactly one value must be specified");
    }
    if let Some(word) = attribute["string"].as_str() {
        validate_word(errors, &path.child("string"), word);
    }
    if let Some(version) = attribute["version"].as_str() {
        validate_version(errors, &path.child("version"), version);
    }
    for (field, check) in [
        ("bools", None),
        ("ints", None),
        ("strings", Some(validate_word as fn(&mut Errors, &Path, &str))),
        ("versions", Some(validate_version as fn(&mut Errors, &Path, &str))),
    ] {
        let path = path.child(field);
        if attribute[field].is_array() && list(&attribute[field]).is_empty() {
            errors.invalid(&path, attribute[field].clone(), "must not be empty if specified");
        }
        for (index, value) in list(&attribute[field]).iter().enumerate() {
            if let Some(check) = check {
                check(errors, &path.index(index), text(value));
            }
        }
    }
}

fn validate_word(errors: &mut Errors, path: &Path, word: &str) {
    if word.len() > LONGEST_VALUE {
        errors.too_long(path, LONGEST_VALUE);
    }
}

fn validate_version(errors: &mut Errors, path: &Path, version: &str) {
    if !is_semantic_version(version) {
        errors.invalid(path, version, "must be a string compatible with semver.org spec 2.0.0");
    }
    validate_word(errors, path, version);
}

/// Whether a text is a version of semver.org 2.0.0: three numbers, a pre-release, a build.
fn is_semantic_version(version: &str) -> bool {
    let (version, build) = match version.split_once('+') {
        Some((version, build)) => (version, Some(build)),
        None => (version, None),
    };
    let (core, release) = match version.split_once('-') {
        Some((core, release)) => (core, Some(release)),
        None => (version, None),
    };
    let number = |part: &str| {
        !part.is_empty()
            && part.bytes().all(|b| b.is_ascii_digit())
            && (part == "0" || !part.starts_with('0'))
    };
    let word = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    let release_part = |part: &str| word(part) && (!part.bytes().all(|b| b.is_ascii_digit()) || number(part));
    core.split('.').count() == 3
        && core.split('.').all(number)
        && release.is_none_or(|release| release.split('.').all(release_part))
        && build.is_none_or(|build| build.split('.').all(word))
}

/// Sets of counters, or what a device takes from them; `name` is the field with the set's name.
fn validate_counters(errors: &mut Errors, path: &Path, sets: &Value, name: &str, most: usize) {
    too_many(errors, path, sets, most);
    let mut seen = BTreeSet::new();
    for (index, set) in list(sets).iter().enumerate() {
        let path = path.index(index);
        let set_name = text(&set[name]);
        rules::required_name(errors, &path.child(name), set_name, names::dns1123_label);
        if !seen.insert(set_name) {
            errors.duplicate(&path, set_name);
        }
        let counters = path.child("counters");
        rules::required(errors, &counters, &set["counters"]);
        let count = entries(&set["counters"]).count();
        if count > MAX_COUNTERS {
            errors.too_many(&counters, count, MAX_COUNTERS);
        }
        for (counter, _) in entries(&set["counters"]) {
            rules::name(errors, &counters.key(counter), counter, names::dns1123_label);
        }
    }
}

fn validate_device_nodes(errors: &mut Errors, path: &Path, device: &Value, per_device: bool) {
    const FIELDS: [&str; 3] = ["nodeName", "nodeSelector", "allNodes"];
    let given: Vec<&str> = FIELDS.into_iter().filter(|field| !device[*field].is_null()).collect();
    if !per_device {
        if !given.is_empty() {
            errors.invalid(
                path,
                Value::Null,
                "`nodeName`, `nodeSelector` and `allNodes` can only be set if `perDeviceNodeSelection` is set to true in \
                 the ResourceSlice spec",
            );
        }
        return;
    }
    match device["nodeName"].as_str() {
        Some("") => errors.invalid(&path.child("nodeName"), "", "must not be empty"),
        Some(name) => rules::name(errors, &path.child("nodeName"), name, names::dns1123_subdomain),
        None => {}
    }
    if !device["nodeSelector"].is_null() {
        validate_node_selector(errors, &path.child("nodeSelector"), &device["nodeSelector"]);
    }
    if device["allNodes"] == Value::Bool(false) {
        errors.invalid(&path.child("allNodes"), false, "must be either unset or set to true");
    }
    let detail = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is \
                  set to true in the ResourceSlice spec";
    match given.as_slice() {
        [] => errors.required(path, detail),
        [_] => {}
        many => {
            let shown: Vec<String> = many.iter().map(|field| format!("`{field}`")).collect();
            errors.invalid(path, format!("{{{}}}", shown.join(", ")), detail);
        }
    }
}

/// A driver takes devices away and brings others; the slice stays its own, in its pool, on its node.
fn validate_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, new, old) = (Path::new("spec"), &new["spec"], &old["spec"]);
    let pool = path.child("pool").child("name");
    rules::immutable(&mut errors, &pool, &new["pool"]["name"], &old["pool"]["name"]);
    for field in ["driver", "nodeName"] {
        rules::immutable(&mut errors, &path.child(field), &new[field], &old[field]);
    }
    errors
}

fn table_row(slice: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &slice["spec"];
    vec![
        json!(text(&slice["metadata"]["name"])),
        json!(text(&spec["nodeName"])),
        json!(text(&spec["driver"])),
        json!(text(&spec["pool"]["name"])),
        table::age(slice, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        json!({
            "metadata": {"name": "a"},
            "spec": {
                "driver": "gpu.example.com", "nodeName": "n1",
                "pool": {"name": "n1", "resourceSliceCount": 1, "generation": 1},
                "devices": [{
                    "name": "gpu-0", "capacity": {"memory": {"value": "1Gi"}},
                    "attributes": {"model": {"string": "a"}, "example.com/driver": {"version": "1.2.3"}},
                }],
            },
        })
    }

    #[test]
    fn validation() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good(), changes)), expected);
        };
        row("good", &[], &[]);
        row(
            "nowhere",
            &[("/spec/nodeName", Value::Null)],
            &[
                "spec: Required value: exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is \
               required",
            ],
        );
        row(
            "twice",
            &[("/spec/allNodes", json!(true))],
            &[
                "spec: Invalid value: \"{`nodeName`, `allNodes`}\": exactly one of `nodeName`, `nodeSelector`, `allNodes`, \
               `perDeviceNodeSelection` is required, but multiple fields are set",
            ],
        );
        row(
            "pool",
            &[("/spec/pool", json!({"generation": -1}))],
            &[
                "spec.pool.name: Required value",
                "spec.pool.resourceSliceCount: Invalid value: 0: must be greater than zero",
                "spec.pool.generation: Invalid value: -1: must be greater than or equal to zero",
            ],
        );
        row(
            "attributes",
            &[(
                "/spec/devices/0/attributes",
                json!({"a": {}, "b": {"version": "1.2"}, "c": {"strings": []}}),
            )],
            &[
                "spec.devices[0].attributes[a]: Invalid value: \"\": exactly one value must be specified",
                "spec.devices[0].attributes[b].version: Invalid value: \"1.2\": must be a string compatible with \
                 semver.org spec 2.0.0",
                "spec.devices[0].attributes[c].strings: Invalid value: []: must not be empty if specified",
            ],
        );
        row(
            "node of a device",
            &[("/spec/devices/0/nodeName", json!("n2"))],
            &[
                "spec.devices[0]: Invalid value: null: `nodeName`, `nodeSelector` and `allNodes` can only be set if \
               `perDeviceNodeSelection` is set to true in the ResourceSlice spec",
            ],
        );
        row(
            "the same device",
            &[("/spec/devices/1", json!({"name": "gpu-0"}))],
            &["spec.devices[1]: Duplicate value: \"gpu-0\""],
        );
        row(
            "taint",
            &[("/spec/devices/0/taints", json!([{"key": "a"}]))],
            &["spec.devices[0].taints[0].effect: Required value"],
        );
        let moved = with(good(), &[("/spec/nodeName", json!("n2"))]);
        expect(
            "moved",
            &validate_update(&moved, &good()),
            &["spec.nodeName: Invalid value: \"n2\": field is immutable"],
        );
    }

    #[test]
    fn versions() {
        let rows = [
            ("1.2.3", true),
            ("0.0.0-alpha.1+build.5", true),
            ("1.2.3-x-y", true),
            ("1.2", false),
            ("01.2.3", false),
            ("1.2.3-01", false),
            ("1.2.3-", false),
            ("v1.2.3", false),
            ("", false),
        ];
        for (version, fine) in rows {
            assert_eq!(is_semantic_version(version), fine, "{version}");
        }
    }
}
