//! Ingresses: which requests from outside go to which service; and IngressClasses: who sees to it.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, is_empty, list, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Scope, Strategy, Subresource};
use crate::{names, table};

/// Ingresses.
pub static INGRESS: Row = Row {
    group: "networking.k8s.io",
    kind: "Ingress",
    plural: "ingresses",
    singular: "ingress",
    short_names: &["ing"],
    subresources: &[Subresource::Status],
    schema: "io.k8s.api.networking.v1.Ingress",
    columns: &[
        Column::name(),
        Column::new("Class", "Who sees to it."),
        Column::new("Hosts", "Hosts whose requests are served."),
        Column::new("Address", "Where requests are taken."),
        Column::new("Ports", "Ports on which requests are taken."),
        Column::age(),
    ],
    table_row: ingress_row,
    generation: true,
    strategy: Strategy {
        prepare_create: |ingress| set(ingress, "status", json!({"loadBalancer": {}})),
        validate: validate_ingress,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// IngressClasses.
pub static INGRESS_CLASS: Row = Row {
    group: "networking.k8s.io",
    kind: "IngressClass",
    plural: "ingressclasses",
    singular: "ingressclass",
    scope: Scope::Cluster,
    schema: "io.k8s.api.networking.v1.IngressClass",
    columns: &[
        Column::name(),
        Column::new("Controller", "Program that serves the ingresses of the class."),
        Column::new("Parameters", "Object with the program's settings."),
        Column::age(),
    ],
    table_row: class_row,
    generation: true,
    strategy: Strategy {
        validate: validate_class,
        validate_update: validate_class_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// How classes were chosen before there was a field for it.
const CLASS_ANNOTATION: &str = "kubernetes.io/ingress.class";
const LONGEST_CONTROLLER: usize = 250;
/// A cell shows this many hosts.
const SHOWN: usize = 3;
/// What makes two ways to write one path.
const AMBIGUOUS: [&str; 5] = ["//", "/./", "/../", "%2f", "%2F"];
const AMBIGUOUS_ENDS: [&str; 2] = ["/..", "/."];

fn validate_ingress(ingress: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &ingress["spec"]);
    let rules_given = list(&spec["rules"]);
    if rules_given.is_empty() && spec["defaultBackend"].is_null() {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.invalid(&path, spec["rules"].clone(), detail);
    }
    if !spec["defaultBackend"].is_null() {
        validate_backend(&mut errors, &path.child("defaultBackend"), &spec["defaultBackend"]);
    }
    for (index, rule) in rules_given.iter().enumerate() {
        validate_rule(&mut errors, &path.child("rules").index(index), rule);
    }
    for (index, tls) in list(&spec["tls"]).iter().enumerate() {
        let path = path.child("tls").index(index);
        for (index, host) in list(&tls["hosts"]).iter().enumerate() {
            rules::host_name(&mut errors, &path.child("hosts").index(index), text(host));
        }
        let secret = text(&tls["secretName"]);
        rules::optional_name(&mut errors, &path.child("secretName"), secret, names::dns1123_subdomain);
    }
    if let Some(class) = spec["ingressClassName"].as_str() {
        rules::name(&mut errors, &path.child("ingressClassName"), class, names::dns1123_subdomain);
        validate_annotation(&mut errors, ingress, class);
    }
    errors
}

fn validate_annotation(errors: &mut Errors, ingress: &Value, class: &str) {
    let annotation = ingress["metadata"]["annotations"][CLASS_ANNOTATION].as_str();
    if let Some(annotation) = annotation.filter(|annotation| *annotation != class)
        && rules::is_new(ingress)
    {
        let path = Path::new("annotations").child(CLASS_ANNOTATION);
        errors.invalid(&path, annotation, "must match `ingressClassName` when both are specified");
    }
}

fn validate_rule(errors: &mut Errors, path: &Path, rule: &Value) {
    let host = text(&rule["host"]);
    if !host.is_empty() {
        let path = path.child("host");
        if host.parse::<std::net::IpAddr>().is_ok() {
            errors.invalid(&path, host, "must be a DNS name, not an IP address");
        }
        rules::host_name(errors, &path, host);
    }
    if rule["http"].is_null() {
        return;
    }
    let (path, paths) = (path.child("http").child("paths"), list(&rule["http"]["paths"]));
    if paths.is_empty() {
        errors.required(&path, "");
    }
    for (index, entry) in paths.iter().enumerate() {
        validate_path(errors, &path.index(index), entry);
    }
}

fn validate_path(errors: &mut Errors, path: &Path, entry: &Value) {
    let (wanted, at) = (text(&entry["path"]), path.child("path"));
    let strict = match entry["pathType"].as_str() {
        None => return errors.required(&path.child("pathType"), "pathType must be specified"),
        Some("Exact" | "Prefix") => Some(true),
        Some("ImplementationSpecific") => Some(false),
        Some(other) => {
            let known = ["Exact", "ImplementationSpecific", "Prefix"];
            errors.not_supported(&path.child("pathType"), other, &known);
            None
        }
    };
    let may_be_empty = strict != Some(true);
    if strict.is_some() && !wanted.starts_with('/') && !(wanted.is_empty() && may_be_empty) {
        errors.invalid(&at, wanted, "must be an absolute path");
    }
    if strict == Some(true) {
        for sequence in AMBIGUOUS.iter().filter(|sequence| wanted.contains(**sequence)) {
            errors.invalid(&at, wanted, format!("must not contain '{sequence}'"));
        }
        for end in AMBIGUOUS_ENDS.iter().filter(|end| wanted.ends_with(**end)) {
            errors.invalid(&at, wanted, format!("cannot end with '{end}'"));
        }
    }
    validate_backend(errors, &path.child("backend"), &entry["backend"]);
}

fn validate_backend(errors: &mut Errors, path: &Path, backend: &Value) {
    let (resource, service) = (&backend["resource"], &backend["service"]);
    match (resource.is_null(), service.is_null()) {
        (false, false) => errors.invalid(path, "", "cannot set both resource and service backends"),
        (false, true) => validate_typed_reference(errors, &path.child("resource"), resource),
        (true, false) => validate_service(errors, path, service),
        (true, true) => errors.invalid(path, "", "resource or service backend is required"),
    }
}

fn validate_service(errors: &mut Errors, path: &Path, service: &Value) {
    let inner = path.child("service");
    rules::required_name(errors, &inner.child("name"), text(&service["name"]), names::dns1035_label);
    let (name, number) = (text(&service["port"]["name"]), int(&service["port"]["number"]));
    let port = inner.child("port");
    match (name, number) {
        ("", 0) => errors.required(path, "port name or number is required"),
        ("", _) => rules::port(errors, &port.child("number"), &service["port"]["number"]),
        (name, 0) => rules::name(errors, &port.child("name"), name, rules::port_name),
        _ => errors.invalid(path, "", "cannot set both port name & port number"),
    }
}

/// Checks a reference to an object of any kind.
fn validate_typed_reference(errors: &mut Errors, path: &Path, reference: &Value) {
    if let Some(group) = reference["apiGroup"].as_str() {
        rules::name(errors, &path.child("apiGroup"), group, names::dns1123_subdomain);
    }
    for field in ["kind", "name"] {
        rules::required_name(errors, &path.child(field), text(&reference[field]), names::path_segment);
    }
}

fn validate_class(class: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec");
    let (controller, at) = (text(&class["spec"]["controller"]), path.child("controller"));
    if controller.is_empty() {
        errors.required(&at, "");
    } else {
        if controller.len() > LONGEST_CONTROLLER {
            errors.too_long(&at, LONGEST_CONTROLLER);
        }
        rules::domain_prefixed_path(&mut errors, &at, controller);
    }
    let parameters = &class["spec"]["parameters"];
    if !parameters.is_null() {
        let path = path.child("parameters");
        validate_typed_reference(&mut errors, &path, parameters);
        validate_parameters_scope(&mut errors, &path, parameters);
    }
    errors
}

fn validate_parameters_scope(errors: &mut Errors, path: &Path, parameters: &Value) {
    let namespace_path = path.child("namespace");
    let namespace = parameters["namespace"].as_str();
    match (parameters["scope"].as_str(), namespace) {
        (None, _) => errors.required(&path.child("scope"), ""),
        (Some("Namespace"), None) => {
            errors.required(&namespace_path, "`parameters.scope` is set to 'Namespace'");
        }
        (Some("Namespace"), Some(name)) => rules::name(errors, &namespace_path, name, names::dns1123_label),
        (Some("Cluster"), Some(_)) => {
            errors.forbidden(&namespace_path, "`parameters.scope` is set to 'Cluster'");
        }
        (Some("Cluster"), None) => {}
        (Some(other), _) => errors.not_supported(&path.child("scope"), other, &["Cluster", "Namespace"]),
    }
}

/// Another program would have to be told to let go of the ingresses it has.
fn validate_class_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec").child("controller");
    rules::immutable(&mut errors, &path, &new["spec"]["controller"], &old["spec"]["controller"]);
    errors
}

fn ingress_row(ingress: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &ingress["spec"];
    vec![
        json!(text(&ingress["metadata"]["name"])),
        json!(spec["ingressClassName"].as_str().unwrap_or("<none>")),
        json!(hosts(spec)),
        json!(addresses(ingress)),
        json!(if is_empty(&spec["tls"]) { "80" } else { "80, 443" }),
        table::age(ingress, now),
    ]
}

fn hosts(spec: &Value) -> String {
    let hosts: Vec<&str> =
        list(&spec["rules"]).iter().map(|rule| text(&rule["host"])).filter(|host| !host.is_empty()).collect();
    match hosts.len() {
        0 => "*".to_owned(),
        count if count > SHOWN => format!("{} + {} more...", hosts[..SHOWN].join(","), count - SHOWN),
        _ => hosts.join(","),
    }
}

/// Addresses of the load balancer, each once, in alphabetical order.
fn addresses(ingress: &Value) -> String {
    let entries = list(&ingress["status"]["loadBalancer"]["ingress"]);
    let mut addresses: Vec<&str> = entries
        .iter()
        .map(|entry| match text(&entry["ip"]) {
            "" => text(&entry["hostname"]),
            ip => ip,
        })
        .filter(|address| !address.is_empty())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.join(",")
}

fn class_row(class: &Value, now: Timestamp) -> Vec<Value> {
    let parameters = &class["spec"]["parameters"];
    let (kind, name) = (text(&parameters["kind"]), text(&parameters["name"]));
    let shown = match parameters["apiGroup"].as_str() {
        _ if parameters.is_null() => "<none>".to_owned(),
        Some(group) => format!("{kind}.{group}/{name}"),
        None => format!("{kind}/{name}"),
    };
    vec![
        json!(text(&class["metadata"]["name"])),
        json!(text(&class["spec"]["controller"])),
        json!(shown),
        table::age(class, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let backend = json!({"service": {"name": "web", "port": {"number": 80}}});
        json!({
            "metadata": {"name": "main", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "ingressClassName": "sampan",
                "rules": [{"host": "a.example.com", "http": {"paths": [
                    {"path": "/", "pathType": "Prefix", "backend": backend},
                ]}}],
                "tls": [{"hosts": ["*.example.com"], "secretName": "tls"}],
            },
        })
    }

    #[test]
    fn ingresses() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate_ingress(&with(good(), changes)), expected);
        };
        const PATH: &str = "/spec/rules/0/http/paths/0";
        let at = |field: &str| format!("{PATH}{field}");
        row("good", &[], &[]);
        row(
            "nothing",
            &[("/spec", json!({"rules": []}))],
            &["spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"],
        );
        row(
            "address for a host",
            &[("/spec/rules/0/host", json!("10.0.0.1"))],
            &["spec.rules[0].host: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"],
        );
        row("no paths", &[("/spec/rules/0/http", json!({}))], &["spec.rules[0].http.paths: Required value"]);
        row(
            "no path type",
            &[(&at("/pathType"), Value::Null)],
            &["spec.rules[0].http.paths[0].pathType: Required value: pathType must be specified"],
        );
        row(
            "unknown path type",
            &[(&at("/pathType"), json!("Regex"))],
            &[
                "spec.rules[0].http.paths[0].pathType: Unsupported value: \"Regex\": supported values: \"Exact\", \
               \"ImplementationSpecific\", \"Prefix\"",
            ],
        );
        row(
            "relative path",
            &[(&at("/path"), json!("a"))],
            &["spec.rules[0].http.paths[0].path: Invalid value: \"a\": must be an absolute path"],
        );
        row(
            "ambiguous path",
            &[(&at("/path"), json!("/a//b/.."))],
            &[
                "spec.rules[0].http.paths[0].path: Invalid value: \"/a//b/..\": must not contain '//'",
                "spec.rules[0].http.paths[0].path: Invalid value: \"/a//b/..\": cannot end with '/..'",
            ],
        );
        row(
            "no path",
            &[(&at("/path"), Value::Null), (&at("/pathType"), json!("ImplementationSpecific"))],
            &[],
        );
        row(
            "no backend",
            &[(&at("/backend"), json!({}))],
            &[
                "spec.rules[0].http.paths[0].backend: Invalid value: \"\": resource or service backend is required",
            ],
        );
        row(
            "no port",
            &[(&at("/backend/service/port"), json!({}))],
            &["spec.rules[0].http.paths[0].backend: Required value: port name or number is required"],
        );
        row(
            "two names for the class",
            &[("/metadata/annotations", json!({CLASS_ANNOTATION: "other"}))],
            &[
                "annotations.kubernetes.io/ingress.class: Invalid value: \"other\": must match `ingressClassName` when both \
               are specified",
            ],
        );
    }

    #[test]
    fn classes() {
        let class = |spec: Value| json!({"metadata": {"name": "c"}, "spec": spec});
        let good = class(json!({"controller": "example.com/ingress"}));
        expect("good", &validate_class(&good), &[]);
        let parameters = |scope: &str, namespace: Value| {
            let parameters = json!({"kind": "K", "name": "n", "scope": scope, "namespace": namespace});
            class(json!({"controller": "example.com/ingress", "parameters": parameters}))
        };
        let rows = [
            (parameters("Cluster", Value::Null), vec![]),
            (parameters("Namespace", json!("a")), vec![]),
            (
                parameters("Namespace", Value::Null),
                vec!["spec.parameters.namespace: Required value: `parameters.scope` is set to 'Namespace'"],
            ),
            (
                parameters("Cluster", json!("a")),
                vec!["spec.parameters.namespace: Forbidden: `parameters.scope` is set to 'Cluster'"],
            ),
            (
                parameters("All", Value::Null),
                vec![
                    "spec.parameters.scope: Unsupported value: \"All\": supported values: \"Cluster\", \"Namespace\"",
                ],
            ),
            (class(json!({})), vec!["spec.controller: Required value"]),
        ];
        for (class, expected) in rows {
            expect("class", &validate_class(&class), &expected);
        }
        let other = class(json!({"controller": "example.com/other"}));
        expect(
            "another program",
            &validate_class_update(&other, &good),
            &["spec.controller: Invalid value: \"example.com/other\": field is immutable"],
        );
    }

    #[test]
    fn cells() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let status = json!({"loadBalancer": {"ingress": [{"hostname": "lb"}, {"ip": "10.0.0.1"}, {"hostname": "lb"}]}});
        let ingress = with(good(), &[("/status", status)]);
        let expected = ["main", "sampan", "a.example.com", "10.0.0.1,lb", "80, 443", "60s"];
        assert_eq!(ingress_row(&ingress, now), expected.map(|cell| json!(cell)));
        assert_eq!(hosts(&json!({})), "*");
        let parameters = json!({"apiGroup": "g", "kind": "K", "name": "n"});
        let class =
            json!({"metadata": {"name": "c"}, "spec": {"controller": "a/b", "parameters": parameters}});
        assert_eq!(class_row(&class, now)[1..3], [json!("a/b"), json!("K.g/n")]);
    }
}
