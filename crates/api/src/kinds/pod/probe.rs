//! Probes and hooks: what a node does to ask a container how it is, or to tell it what comes.

use serde_json::Value;

use super::super::json::{int, is_empty, list, text};
use super::super::rules::{self, name, non_negative, one_of, required};
use crate::field::{Errors, Path};

/// Checks one of `livenessProbe`, `readinessProbe`, `startupProbe`.
pub(super) fn validate(errors: &mut Errors, path: &Path, probe: &Value, field: &str) {
    validate_handler(errors, path, probe, &["exec", "httpGet", "tcpSocket", "grpc"]);
    for number in
        ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"]
    {
        non_negative(errors, &path.child(number), &probe[number]);
    }
    if let Some(grace) = probe["terminationGracePeriodSeconds"].as_i64() {
        let path = path.child("terminationGracePeriodSeconds");
        if field == "readinessProbe" {
            errors.invalid(&path, grace, "must not be set for readinessProbes");
        } else if grace <= 0 {
            errors.invalid(&path, grace, "must be greater than 0");
        }
    }
    if field != "readinessProbe" && int(&probe["successThreshold"]) != 1 {
        errors.invalid(&path.child("successThreshold"), int(&probe["successThreshold"]), "must be 1");
    }
}

/// Checks `lifecycle`.
pub(super) fn validate_lifecycle(errors: &mut Errors, path: &Path, lifecycle: &Value) {
    for hook in ["postStart", "preStop"] {
        if !lifecycle[hook].is_null() {
            let allowed = ["exec", "httpGet", "tcpSocket", "sleep"];
            validate_handler(errors, &path.child(hook), &lifecycle[hook], &allowed);
        }
    }
}

fn validate_handler(errors: &mut Errors, path: &Path, handler: &Value, allowed: &[&str]) {
    let mut found = false;
    for field in allowed.iter().filter(|field| !handler[**field].is_null()) {
        let (path, action) = (path.child(field), &handler[*field]);
        if found {
            errors.forbidden(&path, "may not specify more than 1 handler type");
            continue;
        }
        found = true;
        match *field {
            "exec" => required(errors, &path.child("command"), &action["command"]),
            "httpGet" => validate_http(errors, &path, action),
            "tcpSocket" => rules::port_or_name(errors, &path.child("port"), &action["port"]),
            "grpc" => rules::port(errors, &path.child("port"), &action["port"]),
            _ => non_negative(errors, &path.child("seconds"), &action["seconds"]),
        }
    }
    if !found {
        errors.required(path, "must specify a handler type");
    }
}

fn validate_http(errors: &mut Errors, path: &Path, action: &Value) {
    if is_empty(&action["path"]) {
        errors.required(&path.child("path"), "");
    }
    rules::port_or_name(errors, &path.child("port"), &action["port"]);
    one_of(errors, &path.child("scheme"), &action["scheme"], &["HTTP", "HTTPS"]);
    for header in list(&action["httpHeaders"]) {
        name(errors, &path.child("httpHeaders"), text(&header["name"]), header_name);
    }
}

fn header_name(value: &str) -> Vec<String> {
    if !value.is_empty() && value.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Vec::new();
    }
    vec![
        "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', regex used for \
         validation is '[-A-Za-z0-9]+')"
            .to_owned(),
    ]
}
