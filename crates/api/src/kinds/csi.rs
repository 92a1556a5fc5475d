//! Storage drivers: what they can do (CSIDriver), which a node has (CSINode), and how much room they have
//! (CSIStorageCapacity).

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{is_empty, is_true, list, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Scope, Strategy};
use crate::{names, table};

/// CSIDrivers.
pub static CSI_DRIVER: Row = Row {
    group: "storage.k8s.io",
    kind: "CSIDriver",
    plural: "csidrivers",
    singular: "csidriver",
    scope: Scope::Cluster,
    schema: "io.k8s.api.storage.v1.CSIDriver",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("AttachRequired", "Whether volumes are attached to nodes before use.").of_type("boolean"),
        Column::new("PodInfoOnMount", "Whether the driver is told for which pod it mounts.")
            .of_type("boolean"),
        Column::new("StorageCapacity", "Whether the driver says how much room it has.").of_type("boolean"),
        Column::new("TokenRequests", "Audiences of the tokens that the driver gets."),
        Column::new("RequiresRepublish", "Whether the driver is called again and again.").of_type("boolean"),
        Column::new("Modes", "Lives that volumes may have."),
        Column::age(),
    ],
    table_row: driver_row,
    strategy: Strategy {
        default: default_driver,
        validate: validate_driver,
        validate_update: validate_driver_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// CSINodes. Each has the name of its node.
pub static CSI_NODE: Row = Row {
    group: "storage.k8s.io",
    kind: "CSINode",
    plural: "csinodes",
    singular: "csinode",
    scope: Scope::Cluster,
    schema: "io.k8s.api.storage.v1.CSINode",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("Drivers", "Number of drivers on the node.").of_type("integer"),
        Column::age(),
    ],
    table_row: node_row,
    strategy: Strategy { validate: validate_node, validate_update: validate_node_update, ..Strategy::PLAIN },
    ..Row::PLAIN
};

/// CSIStorageCapacities.
pub static CSI_STORAGE_CAPACITY: Row = Row {
    group: "storage.k8s.io",
    kind: "CSIStorageCapacity",
    plural: "csistoragecapacities",
    singular: "csistoragecapacity",
    schema: "io.k8s.api.storage.v1.CSIStorageCapacity",
    columns: &[
        Column::name(),
        Column::new("StorageClassName", "Class of the volumes that there is room for."),
        Column::new("Capacity", "Room for them."),
    ],
    table_row: capacity_row,
    strategy: Strategy {
        validate: validate_capacity,
        validate_update: validate_capacity_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// Longest identifier that a driver may give a node.
const LONGEST_NODE_ID: usize = 256;
/// Shortest life of a token, in seconds: it has to be renewed in time.
const SHORTEST_TOKEN: i64 = 600;
const LONGEST_TOKEN: i64 = 1 << 32;
/// A driver is asked for its limits no more often than this, in seconds.
const SHORTEST_UPDATE: i64 = 10;

fn default_driver(driver: &mut Value) {
    if let Some(spec) = driver.get_mut("spec").filter(|spec| spec.is_object())
        && is_empty(&spec["volumeLifecycleModes"])
    {
        set(spec, "volumeLifecycleModes", json!(["Persistent"]));
    }
}

fn validate_driver(driver: &Value) -> Errors {
    let mut errors = Errors::new();
    rules::driver_name(&mut errors, &Path::new("metadata").child("name"), text(&driver["metadata"]["name"]));
    let (path, spec) = (Path::new("spec"), &driver["spec"]);
    for field in ["attachRequired", "podInfoOnMount", "storageCapacity", "fsGroupPolicy", "seLinuxMount"] {
        rules::required(&mut errors, &path.child(field), &spec[field]);
    }
    let policies = ["File", "None", "ReadWriteOnceWithFSType"];
    rules::optional_one_of(&mut errors, &path.child("fsGroupPolicy"), &spec["fsGroupPolicy"], &policies);
    validate_token_requests(&mut errors, &path.child("tokenRequests"), list(&spec["tokenRequests"]));
    if !spec["serviceAccountTokenInSecrets"].is_null() && is_empty(&spec["tokenRequests"]) {
        let path = path.child("serviceAccountTokenInSecrets");
        errors.forbidden(&path, "may only be set when `tokenRequests` is specified");
    }
    for (index, mode) in list(&spec["volumeLifecycleModes"]).iter().enumerate() {
        let path = path.child("volumeLifecycleModes").index(index);
        rules::one_of(&mut errors, &path, mode, &["Ephemeral", "Persistent"]);
    }
    if let Some(seconds) = spec["nodeAllocatableUpdatePeriodSeconds"].as_i64()
        && seconds < SHORTEST_UPDATE
    {
        let path = path.child("nodeAllocatableUpdatePeriodSeconds");
        errors.invalid(&path, seconds, format!("must be greater than or equal to {SHORTEST_UPDATE} seconds"));
    }
    errors
}

fn validate_token_requests(errors: &mut Errors, path: &Path, requests: &[Value]) {
    let mut seen = BTreeSet::new();
    for (index, request) in requests.iter().enumerate() {
        let path = path.index(index);
        let audience = text(&request["audience"]);
        if !seen.insert(audience) {
            errors.duplicate(&path.child("audience"), audience);
        }
        let Some(seconds) = request["expirationSeconds"].as_i64() else {
            continue;
        };
        let path = path.child("expirationSeconds");
        if seconds < SHORTEST_TOKEN {
            errors.invalid(&path, seconds, "may not specify a duration less than 10 minutes");
        }
        if seconds > LONGEST_TOKEN {
            errors.invalid(&path, seconds, "may not specify a duration larger than 2^32 seconds");
        }
    }
}

/// Volumes that are attached must be detached the same way.
fn validate_driver_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    for field in ["attachRequired", "volumeLifecycleModes"] {
        rules::immutable(&mut errors, &path.child(field), &new["spec"][field], &old["spec"][field]);
    }
    errors
}

fn driver_row(driver: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &driver["spec"];
    let joined = |items: Vec<&str>, none: &str| {
        if items.is_empty() { json!(none) } else { json!(items.join(",")) }
    };
    let audiences = list(&spec["tokenRequests"]).iter().map(|request| text(&request["audience"])).collect();
    vec![
        json!(text(&driver["metadata"]["name"])),
        json!(spec["attachRequired"].as_bool().unwrap_or(true)),
        json!(is_true(&spec["podInfoOnMount"])),
        json!(is_true(&spec["storageCapacity"])),
        joined(audiences, "<unset>"),
        json!(is_true(&spec["requiresRepublish"])),
        joined(list(&spec["volumeLifecycleModes"]).iter().map(text).collect(), "<none>"),
        table::age(driver, now),
    ]
}

fn validate_node(node: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, driver) in list(&node["spec"]["drivers"]).iter().enumerate() {
        let path = Path::new("spec").child("drivers").index(index);
        let (name, id) = (text(&driver["name"]), text(&driver["nodeID"]));
        rules::driver_name(&mut errors, &path.child("name"), name);
        if !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        if id.is_empty() {
            errors.required(&path.child("nodeID"), "");
        } else if id.len() > LONGEST_NODE_ID {
            let detail = format!("must be {LONGEST_NODE_ID} characters or less");
            errors.invalid(&path.child("nodeID"), id, detail);
        }
        rules::non_negative(
            &mut errors,
            &path.child("allocatable").child("count"),
            &driver["allocatable"]["count"],
        );
        validate_topology_keys(&mut errors, &path.child("topologyKeys"), driver);
    }
    errors
}

fn validate_topology_keys(errors: &mut Errors, path: &Path, driver: &Value) {
    let mut seen = BTreeSet::new();
    for key in list(&driver["topologyKeys"]).iter().map(text) {
        rules::required_name(errors, path, key, names::qualified_name);
        if !seen.insert(key) {
            errors.duplicate(path, key);
        }
    }
}

/// A driver may come and go; while it is there, it stays the same, but for how many volumes it takes.
fn validate_node_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let before = list(&old["spec"]["drivers"]);
    for (index, driver) in list(&new["spec"]["drivers"]).iter().enumerate() {
        let Some(known) = before.iter().find(|known| known["name"] == driver["name"]) else {
            continue;
        };
        let fixed = |driver: &Value| json!([driver["nodeID"], driver["topologyKeys"]]);
        if !super::json::same(&fixed(driver), &fixed(known)) {
            let path = Path::new("spec").child("drivers").index(index);
            errors.invalid(&path, driver.clone(), rules::IMMUTABLE);
        }
    }
    errors
}

fn node_row(node: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&node["metadata"]["name"])),
        json!(list(&node["spec"]["drivers"]).len()),
        table::age(node, now),
    ]
}

fn validate_capacity(capacity: &Value) -> Errors {
    let mut errors = Errors::new();
    rules::label_selector(&mut errors, &Path::new("nodeTopology"), &capacity["nodeTopology"]);
    let class = text(&capacity["storageClassName"]);
    rules::name(&mut errors, &Path::new("storageClassName"), class, names::dns1123_subdomain);
    for field in ["capacity", "maximumVolumeSize"] {
        rules::quantity_not_negative(&mut errors, &Path::new(field), &capacity[field]);
    }
    errors
}

fn validate_capacity_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    for field in ["nodeTopology", "storageClassName"] {
        rules::immutable(&mut errors, &Path::new(field), &new[field], &old[field]);
    }
    errors
}

fn capacity_row(capacity: &Value, _: Timestamp) -> Vec<Value> {
    let room = text(&capacity["capacity"]);
    vec![
        json!(text(&capacity["metadata"]["name"])),
        json!(text(&capacity["storageClassName"])),
        json!(if room.is_empty() { "<unset>" } else { room }),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn driver() -> Value {
        let mut driver = json!({
            "metadata": {"name": "disk.example.com", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": {},
        });
        crate::defaults::apply(CSI_DRIVER.schema, &mut driver);
        default_driver(&mut driver);
        driver
    }

    #[test]
    fn drivers() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate_driver(&with(driver(), changes)), expected);
        };
        row("good", &[], &[]);
        row(
            "tokens",
            &[("/spec/tokenRequests", json!([{"audience": "a", "expirationSeconds": 5}, {"audience": "a"}]))],
            &[
                "spec.tokenRequests[0].expirationSeconds: Invalid value: 5: may not specify a duration less than 10 minutes",
                "spec.tokenRequests[1].audience: Duplicate value: \"a\"",
            ],
        );
        row(
            "modes",
            &[("/spec/volumeLifecycleModes", json!(["Eternal"])), ("/spec/fsGroupPolicy", json!("Some"))],
            &[
                "spec.fsGroupPolicy: Unsupported value: \"Some\": supported values: \"File\", \"None\", \
                 \"ReadWriteOnceWithFSType\"",
                "spec.volumeLifecycleModes[0]: Unsupported value: \"Eternal\": supported values: \"Ephemeral\", \
                 \"Persistent\"",
            ],
        );
        row(
            "often",
            &[("/spec/nodeAllocatableUpdatePeriodSeconds", json!(9))],
            &[
                "spec.nodeAllocatableUpdatePeriodSeconds: Invalid value: 9: must be greater than or equal to 10 seconds",
            ],
        );
        expect(
            "attached",
            &validate_driver_update(&with(driver(), &[("/spec/attachRequired", json!(false))]), &driver()),
            &["spec.attachRequired: Invalid value: false: field is immutable"],
        );
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = [
            json!("disk.example.com"),
            json!(true),
            json!(false),
            json!(false),
            json!("<unset>"),
            json!(false),
            json!("Persistent"),
            json!("60s"),
        ];
        assert_eq!(driver_row(&driver(), now), expected);
    }

    #[test]
    fn nodes() {
        let node = |drivers: Value| json!({"metadata": {"name": "n1"}, "spec": {"drivers": drivers}});
        let good =
            json!({"name": "a.b", "nodeID": "1", "topologyKeys": ["zone"], "allocatable": {"count": 5}});
        expect("good", &validate_node(&node(json!([good]))), &[]);
        expect(
            "wrong",
            &validate_node(&node(json!([good, {"name": "a.b", "topologyKeys": ["zone", "zone"]}]))),
            &[
                "spec.drivers[1].name: Duplicate value: \"a.b\"",
                "spec.drivers[1].nodeID: Required value",
                "spec.drivers[1].topologyKeys: Duplicate value: \"zone\"",
            ],
        );
        let more = with(node(json!([good])), &[("/spec/drivers/0/allocatable/count", json!(6))]);
        expect("more volumes", &validate_node_update(&more, &node(json!([good]))), &[]);
        let other = with(node(json!([good])), &[("/spec/drivers/0/nodeID", json!("2"))]);
        assert_eq!(validate_node_update(&other, &node(json!([good]))).0.len(), 1);
        expect("gone", &validate_node_update(&node(json!([])), &node(json!([good]))), &[]);
    }

    #[test]
    fn capacities() {
        let capacity = json!({"storageClassName": "fast", "capacity": "1Gi"});
        expect("good", &validate_capacity(&capacity), &[]);
        let wrong = with(capacity.clone(), &[("/capacity", json!("-1"))]);
        expect(
            "negative",
            &validate_capacity(&wrong),
            &["capacity: Invalid value: \"-1\": must be greater than or equal to 0"],
        );
        let other = with(capacity.clone(), &[("/storageClassName", json!("slow"))]);
        expect(
            "class",
            &validate_capacity_update(&other, &capacity),
            &["storageClassName: Invalid value: \"slow\": field is immutable"],
        );
        assert_eq!(capacity_row(&json!({}), Timestamp::UNIX_EPOCH)[2], "<unset>");
    }
}
