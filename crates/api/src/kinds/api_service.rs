//! APIServices: which server answers for an API group and version.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{default_field, int, is_empty, is_true, list, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, NameRule, Row, STATUS_METADATA, Scope, Strategy, Subresource};
use crate::{names, table};

/// APIServices.
pub static API_SERVICE: Row = Row {
    group: "apiregistration.k8s.io",
    kind: "APIService",
    plural: "apiservices",
    singular: "apiservice",
    categories: &["api-extensions"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    status_keeps: STATUS_METADATA,
    schema: "io.k8s.kube-aggregator.pkg.apis.apiregistration.v1.APIService",
    columns: &[
        Column::name(),
        Column::new("Service", "Service that answers."),
        Column::new("Available", "Whether it does, and why not."),
        Column::age(),
    ],
    table_row,
    name_rule: NameRule::PathSegment,
    strategy: Strategy {
        default,
        prepare_create: |service| set(service, "status", json!({})),
        validate,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

const MAX_GROUP_PRIORITY: i64 = 20_000;
const MAX_VERSION_PRIORITY: i64 = 1000;

/// The constant table knows types of `io.k8s.api` only, so the port's default stands here.
fn default(object: &mut Value) {
    if let Some(service) = object.pointer_mut("/spec/service") {
        default_field(service, "port", 443);
    }
}

fn validate(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &object["spec"]);
    let (group, version) = (text(&spec["group"]), text(&spec["version"]));
    let (name, wanted) = (text(&object["metadata"]["name"]), format!("{version}.{group}"));
    if name != wanted {
        let detail = format!("must be `spec.version+\".\"+spec.group`: \"{wanted}\"");
        errors.invalid(&Path::new("metadata").child("name"), name, detail);
    }
    if group.is_empty() && version != "v1" {
        let detail = "only v1 may have an empty group and it better be legacy kube";
        errors.required(&path.child("group"), detail);
    }
    rules::optional_name(&mut errors, &path.child("group"), group, names::dns1123_subdomain);
    rules::name(&mut errors, &path.child("version"), version, names::dns1035_label);
    for (field, most) in
        [("groupPriorityMinimum", MAX_GROUP_PRIORITY), ("versionPriority", MAX_VERSION_PRIORITY)]
    {
        let priority = int(&spec[field]);
        if priority <= 0 || priority > most {
            let detail = format!("must be positive and less than {most}");
            errors.invalid(&path.child(field), priority, detail);
        }
    }
    validate_connection(&mut errors, &path, spec);
    errors
}

/// How the service is trusted; what the server answers itself needs no trust.
fn validate_connection(errors: &mut Errors, path: &Path, spec: &Value) {
    let (bundle, insecure) = (text(&spec["caBundle"]), is_true(&spec["insecureSkipTLSVerify"]));
    let insecure_path = path.child("insecureSkipTLSVerify");
    if spec["service"].is_null() {
        if !bundle.is_empty() {
            let shown = format!("{} bytes", super::config_map::decoded_len(bundle));
            errors.invalid(&path.child("caBundle"), shown, "local APIServices may not have a caBundle");
        }
        if insecure {
            errors.invalid(&insecure_path, true, "local APIServices may not have insecureSkipTLSVerify");
        }
        return;
    }
    for field in ["namespace", "name"] {
        rules::required(errors, &path.child("service").child(field), &spec["service"][field]);
    }
    if !is_empty(&spec["service"]["port"]) {
        rules::port(errors, &path.child("service").child("port"), &spec["service"]["port"]);
    }
    if insecure && !bundle.is_empty() {
        errors.invalid(&insecure_path, true, "may not be true if caBundle is present");
    }
}

fn table_row(object: &Value, now: Timestamp) -> Vec<Value> {
    let service = &object["spec"]["service"];
    let shown = if service.is_null() {
        "Local".to_owned()
    } else {
        format!("{}/{}", text(&service["namespace"]), text(&service["name"]))
    };
    vec![
        json!(text(&object["metadata"]["name"])),
        json!(shown),
        json!(available(object)),
        table::age(object, now),
    ]
}

fn available(object: &Value) -> String {
    let found = list(&object["status"]["conditions"]).iter().find(|c| text(&c["type"]) == "Available");
    match found.map(|condition| (text(&condition["status"]), text(&condition["reason"]))) {
        None => "Unknown".to_owned(),
        Some(("True", _)) => "True".to_owned(),
        Some((status, reason)) => format!("{status} ({reason})"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let mut object = json!({
            "metadata": {"name": "v1.example.com"},
            "spec": {
                "group": "example.com", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
                "service": {"namespace": "a", "name": "b"},
            },
        });
        default(&mut object);
        object
    }

    #[test]
    fn validation() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate(&with(good(), changes)), expected);
        };
        assert_eq!(good()["spec"]["service"]["port"], 443);
        row("good", &[], &[]);
        row(
            "name",
            &[("/metadata/name", json!("v2.example.com"))],
            &["metadata.name: Invalid value: \"v2.example.com\": must be `spec.version+\".\"+spec.group`: \
               \"v1.example.com\""],
        );
        row(
            "priorities",
            &[("/spec/groupPriorityMinimum", json!(0)), ("/spec/versionPriority", json!(1001))],
            &[
                "spec.groupPriorityMinimum: Invalid value: 0: must be positive and less than 20000",
                "spec.versionPriority: Invalid value: 1001: must be positive and less than 1000",
            ],
        );
        row(
            "trust",
            &[("/spec/insecureSkipTLSVerify", json!(true)), ("/spec/caBundle", json!("AAAA"))],
            &["spec.insecureSkipTLSVerify: Invalid value: true: may not be true if caBundle is present"],
        );
        row(
            "local with a bundle",
            &[("/spec/service", Value::Null), ("/spec/caBundle", json!("AAAA"))],
            &["spec.caBundle: Invalid value: \"3 bytes\": local APIServices may not have a caBundle"],
        );
    }

    #[test]
    fn cells() {
        let condition = json!({"type": "Available", "status": "False", "reason": "MissingEndpoints"});
        let object = with(good(), &[("/status", json!({"conditions": [condition]}))]);
        let expected = ["v1.example.com", "a/b", "False (MissingEndpoints)"].map(|cell| json!(cell));
        assert_eq!(table_row(&object, Timestamp::UNIX_EPOCH)[..3], expected);
        let local = with(good(), &[("/spec/service", Value::Null)]);
        assert_eq!(table_row(&local, Timestamp::UNIX_EPOCH)[1..3], [json!("Local"), json!("Unknown")]);
    }
}
