//! Devices for pods (dynamic resource allocation): classes of devices, claims to some, and templates of claims; what
//! there is on the nodes is in [`slice`].
//!
//! CEL expressions that choose devices are compiled elsewhere: [`super::expression::of`] finds them.

pub mod slice;

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, is_empty, list, list_mut, same, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, STATUS_METADATA, Scope, Strategy, Subresource};
use crate::{names, table};

const DEVICES: Row = Row { group: "resource.k8s.io", ..Row::PLAIN };

/// DeviceClasses.
pub static DEVICE_CLASS: Row = Row {
    kind: "DeviceClass",
    plural: "deviceclasses",
    singular: "deviceclass",
    scope: Scope::Cluster,
    schema: "io.k8s.api.resource.v1.DeviceClass",
    returns_deleted: true,
    generation: true,
    strategy: Strategy { validate: validate_class, ..Strategy::PLAIN },
    ..DEVICES
};

/// ResourceClaims.
pub static RESOURCE_CLAIM: Row = Row {
    kind: "ResourceClaim",
    plural: "resourceclaims",
    singular: "resourceclaim",
    subresources: &[Subresource::Status],
    status_keeps: STATUS_METADATA,
    schema: "io.k8s.api.resource.v1.ResourceClaim",
    returns_deleted: true,
    columns: &[
        Column::name(),
        Column::new("State", "Whether devices are given to the claim, and used."),
        Column::age(),
    ],
    table_row: claim_row,
    strategy: Strategy {
        default: |claim| default_requests(claim, "/spec/devices/requests"),
        prepare_create: |claim| set(claim, "status", json!({})),
        validate: |claim| {
            let mut errors = Errors::new();
            validate_claim(&mut errors, &Path::new("spec"), &claim["spec"]);
            errors
        },
        validate_update: validate_spec_stays,
        ..Strategy::PLAIN
    },
    ..DEVICES
};

/// ResourceClaimTemplates.
pub static RESOURCE_CLAIM_TEMPLATE: Row = Row {
    kind: "ResourceClaimTemplate",
    plural: "resourceclaimtemplates",
    singular: "resourceclaimtemplate",
    schema: "io.k8s.api.resource.v1.ResourceClaimTemplate",
    returns_deleted: true,
    strategy: Strategy {
        default: |template| default_requests(template, "/spec/spec/devices/requests"),
        validate: validate_template,
        validate_update: validate_spec_stays,
        ..Strategy::PLAIN
    },
    ..DEVICES
};

/// Most requests of a claim, constraints of it, configurations and selectors.
const MAX_ITEMS: usize = 32;
const MAX_CHOICES: usize = 8;
const MAX_TOLERATIONS: usize = 16;
const LONGEST_EXPRESSION: usize = 10 * 1024;
const LONGEST_PARAMETERS: usize = 10 * 1024;
const LONGEST_DOMAIN: usize = 63;
const LONGEST_IDENTIFIER: usize = 32;
const EFFECTS: &[&str] = &["NoExecute", "NoSchedule", "None"];

fn default_requests(object: &mut Value, pointer: &str) {
    for request in list_mut(object, pointer) {
        if let Some(exactly) = request.get_mut("exactly") {
            default_count(exactly);
        }
        for choice in list_mut(request, "/firstAvailable") {
            default_count(choice);
        }
    }
}

fn default_count(request: &mut Value) {
    if text(&request["allocationMode"]) == "ExactCount" && int(&request["count"]) == 0 {
        set(request, "count", 1);
    }
}

fn too_many(errors: &mut Errors, path: &Path, items: &Value, most: usize) {
    if list(items).len() > most {
        errors.too_many(path, list(items).len(), most);
    }
}

fn validate_class(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &class["spec"]);
    validate_selectors(&mut errors, &path.child("selectors"), &spec["selectors"]);
    too_many(&mut errors, &path.child("config"), &spec["config"], MAX_ITEMS);
    for (index, config) in list(&spec["config"]).iter().enumerate() {
        validate_config(&mut errors, &path.child("config").index(index), config);
    }
    if let Some(name) = spec["extendedResourceName"].as_str()
        && !is_extended_resource(name)
    {
        let detail = "must be a valid extended resource name";
        errors.invalid(&path.child("extendedResourceName"), name, detail);
    }
    errors
}

/// Whether a name is that of a resource that somebody else than Kubernetes defines: `example.com/gpu`.
pub(crate) fn is_extended_resource(name: &str) -> bool {
    let own = !name.contains('/') || name.contains("kubernetes.io/");
    !own && !name.starts_with("requests.") && names::qualified_name(&format!("requests.{name}")).is_empty()
}

fn validate_selectors(errors: &mut Errors, path: &Path, selectors: &Value) {
    too_many(errors, path, selectors, MAX_ITEMS);
    for (index, selector) in list(selectors).iter().enumerate() {
        let path = path.index(index).child("cel");
        if selector["cel"].is_null() {
            errors.required(&path, "");
            continue;
        }
        let expression = text(&selector["cel"]["expression"]);
        if expression.trim().is_empty() {
            errors.required(&path.child("expression"), "");
        } else if expression.len() > LONGEST_EXPRESSION {
            errors.too_long(&path.child("expression"), LONGEST_EXPRESSION);
        }
    }
}

fn validate_config(errors: &mut Errors, path: &Path, config: &Value) {
    let (opaque, path) = (&config["opaque"], path.child("opaque"));
    if opaque.is_null() {
        return errors.required(&path, "");
    }
    rules::driver_name(errors, &path.child("driver"), text(&opaque["driver"]));
    let path = path.child("parameters");
    match &opaque["parameters"] {
        Value::Null => errors.required(&path, ""),
        Value::Object(_) => {
            if opaque["parameters"].to_string().len() > LONGEST_PARAMETERS {
                errors.too_long(&path, LONGEST_PARAMETERS);
            }
        }
        other => errors.invalid(&path, other.clone(), "parameters must be a valid JSON object"),
    }
}

fn validate_template(template: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &template["spec"]);
    rules::labels(&mut errors, &path.child("metadata").child("labels"), &spec["metadata"]["labels"]);
    validate_claim(&mut errors, &path.child("spec"), &spec["spec"]);
    errors
}

/// What was claimed may be given already.
fn validate_spec_stays(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    if !same(&new["spec"], &old["spec"]) {
        errors.invalid(&Path::new("spec"), new["spec"].clone(), rules::IMMUTABLE);
    }
    errors
}

/// Requests of a claim and the choices each of them leaves.
type RequestNames<'a> = BTreeMap<&'a str, BTreeSet<&'a str>>;

fn validate_claim(errors: &mut Errors, path: &Path, spec: &Value) {
    let (path, devices) = (path.child("devices"), &spec["devices"]);
    let mut known: RequestNames<'_> = BTreeMap::new();
    let (requests, requests_path) = (list(&devices["requests"]), path.child("requests"));
    too_many(errors, &requests_path, &devices["requests"], MAX_ITEMS);
    for (index, request) in requests.iter().enumerate() {
        let path = requests_path.index(index);
        validate_request(errors, &path, request);
        let name = text(&request["name"]);
        let choices = list(&request["firstAvailable"]).iter().map(|choice| text(&choice["name"])).collect();
        if known.insert(name, choices).is_some() {
            errors.duplicate(&path, name);
        }
    }
    too_many(errors, &path.child("constraints"), &devices["constraints"], MAX_ITEMS);
    for (index, constraint) in list(&devices["constraints"]).iter().enumerate() {
        validate_constraint(errors, &path.child("constraints").index(index), constraint, &known);
    }
    too_many(errors, &path.child("config"), &devices["config"], MAX_ITEMS);
    for (index, config) in list(&devices["config"]).iter().enumerate() {
        let path = path.child("config").index(index);
        validate_references(errors, &path.child("requests"), &config["requests"], &known);
        validate_config(errors, &path, config);
    }
}

fn validate_request(errors: &mut Errors, path: &Path, request: &Value) {
    rules::required_name(errors, &path.child("name"), text(&request["name"]), names::dns1123_label);
    let (exactly, choices) = (&request["exactly"], &request["firstAvailable"]);
    const ONE: &str = "exactly one of `exactly` or `firstAvailable` is required";
    match (exactly.is_null(), is_empty(choices)) {
        (true, true) => errors.required(path, ONE),
        (false, false) => {
            errors.invalid(path, Value::Null, format!("{ONE}, but multiple fields are set"));
        }
        (false, true) => validate_wanted(errors, &path.child("exactly"), exactly),
        (true, false) => {
            let path = path.child("firstAvailable");
            too_many(errors, &path, choices, MAX_CHOICES);
            let mut seen = BTreeSet::new();
            for (index, choice) in list(choices).iter().enumerate() {
                let (path, name) = (path.index(index), text(&choice["name"]));
                rules::required_name(errors, &path.child("name"), name, names::dns1123_label);
                validate_wanted(errors, &path, choice);
                if !seen.insert(name) {
                    errors.duplicate(&path, name);
                }
            }
        }
    }
}

/// How many devices of which class.
fn validate_wanted(errors: &mut Errors, path: &Path, wanted: &Value) {
    let class = text(&wanted["deviceClassName"]);
    rules::required_name(errors, &path.child("deviceClassName"), class, names::dns1123_subdomain);
    validate_selectors(errors, &path.child("selectors"), &wanted["selectors"]);
    let count = int(&wanted["count"]);
    match text(&wanted["allocationMode"]) {
        "All" if count != 0 => {
            let detail = "must not be specified when allocationMode is 'All'";
            errors.invalid(&path.child("count"), count, detail);
        }
        "ExactCount" if count <= 0 => errors.invalid(&path.child("count"), count, rules::POSITIVE),
        "All" | "ExactCount" => {}
        other => errors.not_supported(&path.child("allocationMode"), other, &["All", "ExactCount"]),
    }
    too_many(errors, &path.child("tolerations"), &wanted["tolerations"], MAX_TOLERATIONS);
    for (index, toleration) in list(&wanted["tolerations"]).iter().enumerate() {
        validate_toleration(errors, &path.child("tolerations").index(index), toleration);
    }
}

fn validate_toleration(errors: &mut Errors, path: &Path, toleration: &Value) {
    let (key, value) = (text(&toleration["key"]), text(&toleration["value"]));
    rules::optional_name(errors, &path.child("key"), key, names::qualified_name);
    match text(&toleration["operator"]) {
        "Exists" if !value.is_empty() => {
            errors.invalid(&path.child("value"), value, "must be empty for operator `Exists`");
        }
        "Exists" => {}
        "Equal" if key.is_empty() => {
            errors.invalid(&path.child("key"), key, "must not be empty for operator `Equal`");
        }
        "Equal" => rules::name(errors, &path.child("value"), value, names::label_value),
        "" => errors.required(&path.child("operator"), ""),
        other => errors.not_supported(&path.child("operator"), other, &["Equal", "Exists"]),
    }
    rules::optional_one_of(errors, &path.child("effect"), &toleration["effect"], EFFECTS);
}

fn validate_constraint(errors: &mut Errors, path: &Path, constraint: &Value, known: &RequestNames<'_>) {
    validate_references(errors, &path.child("requests"), &constraint["requests"], known);
    let mut found = false;
    for field in ["matchAttribute", "distinctAttribute"] {
        if let Some(attribute) = constraint[field].as_str().filter(|_| !found) {
            found = true;
            validate_full_name(errors, &path.child(field), attribute);
        }
    }
    if !found {
        errors.required(path, "exactly one of \"matchAttribute\" or \"distinctAttribute\" is required");
    }
}

fn validate_references(errors: &mut Errors, path: &Path, references: &Value, known: &RequestNames<'_>) {
    too_many(errors, path, references, MAX_ITEMS);
    let mut seen = BTreeSet::new();
    for (index, name) in list(references).iter().map(text).enumerate() {
        let path = path.index(index);
        let exists = match name.split_once('/') {
            None => known.contains_key(name),
            Some((request, choice)) => known.get(request).is_some_and(|choices| choices.contains(choice)),
        };
        if !exists {
            errors.invalid(
                &path,
                name,
                "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'",
            );
        }
        if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
    }
}

/// Checks the name of an attribute: a C identifier, after the domain of who defines it where that is not understood.
fn validate_attribute_name(errors: &mut Errors, path: &Path, name: &str) {
    let (domain, identifier) = match name.split_once('/') {
        Some((domain, identifier)) => (Some(domain), identifier),
        None => (None, name),
    };
    if let Some(domain) = domain {
        if domain.is_empty() {
            errors.required(path, "the domain must not be empty");
        } else if domain.len() > LONGEST_DOMAIN {
            errors.too_long(path, LONGEST_DOMAIN);
        }
        rules::optional_name(errors, path, domain, names::dns1123_subdomain);
    }
    if identifier.is_empty() {
        return errors.required(path, "the name must not be empty");
    }
    if identifier.len() > LONGEST_IDENTIFIER {
        errors.too_long(path, LONGEST_IDENTIFIER);
    }
    let starts = identifier.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !starts || !identifier.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        errors.invalid(
            path,
            identifier,
            "a valid C identifier must start with alphabetic character or '_', followed by a string of alphanumeric \
             characters or '_' (e.g. 'my_name',  or 'MY_NAME',  or 'MyName', regex used for validation is \
             '[A-Za-z_][A-Za-z0-9_]*')",
        );
    }
}

fn validate_full_name(errors: &mut Errors, path: &Path, name: &str) {
    if !name.is_empty() && !name.contains('/') {
        errors.invalid(path, name, "must include a domain");
    }
    validate_attribute_name(errors, path, name);
}

fn claim_row(claim: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(text(&claim["metadata"]["name"])), json!(state(claim)), table::age(claim, now)]
}

fn state(claim: &Value) -> String {
    let leaving = !claim["metadata"]["deletionTimestamp"].is_null();
    let allocated = !claim["status"]["allocation"].is_null();
    let reserved = allocated && !is_empty(&claim["status"]["reservedFor"]);
    [
        (leaving, "deleted"),
        (!allocated && !leaving, "pending"),
        (allocated, "allocated"),
        (reserved, "reserved"),
    ]
    .into_iter()
    .filter_map(|(holds, word)| holds.then_some(word))
    .collect::<Vec<_>>()
    .join(",")
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn claim() -> Value {
        let mut claim = json!({
            "metadata": {"name": "gpu"},
            "spec": {"devices": {
                "requests": [
                    {"name": "one", "exactly": {"deviceClassName": "gpu.example.com"}},
                    {"name": "any", "firstAvailable": [
                        {"name": "big", "deviceClassName": "big.example.com"},
                        {"name": "small", "deviceClassName": "small.example.com", "count": 2},
                    ]},
                ],
                "constraints": [{"requests": ["one", "any/big"], "matchAttribute": "example.com/numa"}],
                "config": [{"requests": ["any"], "opaque": {"driver": "example.com", "parameters": {"a": 1}}}],
            }},
        });
        crate::defaults::apply(RESOURCE_CLAIM.schema, &mut claim);
        (RESOURCE_CLAIM.strategy.default)(&mut claim);
        claim
    }

    #[test]
    fn defaults() {
        let devices = &claim()["spec"]["devices"];
        assert_eq!(devices["requests"][0]["exactly"]["allocationMode"], "ExactCount");
        assert_eq!(devices["requests"][0]["exactly"]["count"], 1);
        assert_eq!(devices["requests"][1]["firstAvailable"][1]["count"], 2);
    }

    #[test]
    fn claims() {
        const DEVICES: &str = "/spec/devices";
        let row = |what: &str, pointer: &str, value: Value, expected: &[&str]| {
            let claim = with(claim(), &[(&format!("{DEVICES}{pointer}"), value)]);
            expect(what, &(RESOURCE_CLAIM.strategy.validate)(&claim), expected);
        };
        let path = "spec.devices.requests[0]";
        expect("good", &(RESOURCE_CLAIM.strategy.validate)(&claim()), &[]);
        row(
            "nothing",
            "/requests/0/exactly",
            Value::Null,
            &[&format!("{path}: Required value: exactly one of `exactly` or `firstAvailable` is required")],
        );
        row(
            "count",
            "/requests/0/exactly/allocationMode",
            json!("All"),
            &[&format!(
                "{path}.exactly.count: Invalid value: 1: must not be specified when allocationMode is 'All'"
            )],
        );
        row(
            "class",
            "/requests/0/exactly/deviceClassName",
            json!(""),
            &[&format!("{path}.exactly.deviceClassName: Required value")],
        );
        row(
            "selector",
            "/requests/0/exactly/selectors",
            json!([{}]),
            &[&format!("{path}.exactly.selectors[0].cel: Required value")],
        );
        row(
            "toleration",
            "/requests/0/exactly/tolerations",
            json!([{"operator": "Equal"}, {"operator": "Exists", "effect": "Some"}]),
            &[
                &format!(
                    "{path}.exactly.tolerations[0].key: Invalid value: \"\": must not be empty for operator `Equal`"
                ),
                &format!(
                    "{path}.exactly.tolerations[1].effect: Unsupported value: \"Some\": supported values: \"NoExecute\", \
                     \"NoSchedule\", \"None\""
                ),
            ],
        );
        row(
            "constraint",
            "/constraints/0",
            json!({"requests": ["two", "any/medium", "one"]}),
            &[
                "spec.devices.constraints[0].requests[0]: Invalid value: \"two\": must be the name of a request in the \
                 claim or the name of a request and a subrequest separated by '/'",
                "spec.devices.constraints[0].requests[1]: Invalid value: \"any/medium\": must be the name of a request in \
                 the claim or the name of a request and a subrequest separated by '/'",
                "spec.devices.constraints[0]: Required value: exactly one of \"matchAttribute\" or \"distinctAttribute\" is \
                 required",
            ],
        );
        row(
            "configuration",
            "/config/0/opaque",
            json!({"driver": "example.com", "parameters": 5}),
            &[
                "spec.devices.config[0].opaque.parameters: Invalid value: 5: parameters must be a valid JSON object",
            ],
        );
        let changed = with(claim(), &[("/spec/devices/requests/0/exactly/count", json!(2))]);
        assert_eq!(validate_spec_stays(&changed, &claim()).0.len(), 1);
        expect("same", &validate_spec_stays(&claim(), &claim()), &[]);
    }

    #[test]
    fn templates() {
        let template = json!({"spec": {"spec": claim()["spec"]}});
        expect("good", &validate_template(&template), &[]);
        let wrong = with(template, &[("/spec/spec/devices/requests/0/name", json!(""))]);
        assert_eq!(validate_template(&wrong).0[0].field, "spec.spec.devices.requests[0].name");
    }

    #[test]
    fn classes() {
        let row = |what: &str, spec: Value, expected: &[&str]| {
            expect(what, &validate_class(&json!({ "spec": spec })), expected);
        };
        row(
            "good",
            json!({"selectors": [{"cel": {"expression": "true"}}], "extendedResourceName": "example.com/gpu"}),
            &[],
        );
        row(
            "resource",
            json!({"extendedResourceName": "cpu"}),
            &["spec.extendedResourceName: Invalid value: \"cpu\": must be a valid extended resource name"],
        );
        row("configuration", json!({"config": [{}]}), &["spec.config[0].opaque: Required value"]);
    }

    #[test]
    fn states() {
        let allocated = json!({"status": {"allocation": {}}});
        let rows = [
            (json!({}), "pending"),
            (allocated.clone(), "allocated"),
            (
                with(allocated.clone(), &[("/status/reservedFor", json!([{"name": "p"}]))]),
                "allocated,reserved",
            ),
            (json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), "deleted"),
        ];
        for (claim, expected) in rows {
            assert_eq!(state(&claim), expected);
        }
    }
}
