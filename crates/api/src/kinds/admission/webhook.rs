//! Webhooks: programs that are asked about objects on their way in.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::super::json::{int, list, text};
use super::super::rules;
use super::{
    FAILURE_POLICIES, MATCH_POLICIES, REINVOCATION_POLICIES, validate_match_conditions, validate_rule,
};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, Scope, Strategy};
use crate::{names, table};

const CONFIGURATION: Row = Row {
    group: "admissionregistration.k8s.io",
    categories: &["api-extensions"],
    scope: Scope::Cluster,
    columns: &[
        Column::name(),
        Column::new("Webhooks", "Number of webhooks.").of_type("integer"),
        Column::age(),
    ],
    table_row,
    generation: true,
    strategy: Strategy { validate, ..Strategy::PLAIN },
    ..Row::PLAIN
};

/// ValidatingWebhookConfigurations.
pub static VALIDATING_WEBHOOK_CONFIGURATION: Row = Row {
    kind: "ValidatingWebhookConfiguration",
    plural: "validatingwebhookconfigurations",
    singular: "validatingwebhookconfiguration",
    schema: "io.k8s.api.admissionregistration.v1.ValidatingWebhookConfiguration",
    ..CONFIGURATION
};

/// MutatingWebhookConfigurations.
pub static MUTATING_WEBHOOK_CONFIGURATION: Row = Row {
    kind: "MutatingWebhookConfiguration",
    plural: "mutatingwebhookconfigurations",
    singular: "mutatingwebhookconfiguration",
    schema: "io.k8s.api.admissionregistration.v1.MutatingWebhookConfiguration",
    ..CONFIGURATION
};

/// Versions of AdmissionReview that the server speaks.
const REVIEW_VERSIONS: [&str; 2] = ["v1", "v1beta1"];

/// Both kinds share their rules: what only mutating webhooks have is checked where it is there.
fn validate(configuration: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, webhook) in list(&configuration["webhooks"]).iter().enumerate() {
        let path = Path::new("webhooks").index(index);
        validate_webhook(&mut errors, &path, webhook);
        let name = text(&webhook["name"]);
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
    }
    errors
}

fn validate_webhook(errors: &mut Errors, path: &Path, webhook: &Value) {
    validate_name(errors, &path.child("name"), text(&webhook["name"]));
    for (index, rule) in list(&webhook["rules"]).iter().enumerate() {
        validate_rule(errors, &path.child("rules").index(index), rule);
    }
    for (field, words) in [
        ("failurePolicy", FAILURE_POLICIES),
        ("matchPolicy", MATCH_POLICIES),
        ("reinvocationPolicy", REINVOCATION_POLICIES),
    ] {
        rules::optional_one_of(errors, &path.child(field), &webhook[field], words);
    }
    match webhook["sideEffects"].as_str() {
        None => errors.required(&path.child("sideEffects"), "must specify one of None, NoneOnDryRun"),
        Some("None" | "NoneOnDryRun") => {}
        Some(other) => errors.not_supported(&path.child("sideEffects"), other, &["None", "NoneOnDryRun"]),
    }
    if let Some(seconds) = webhook["timeoutSeconds"].as_i64()
        && !(1..=30).contains(&seconds)
    {
        let detail = "the timeout value must be between 1 and 30 seconds";
        errors.invalid(&path.child("timeoutSeconds"), seconds, detail);
    }
    for field in ["namespaceSelector", "objectSelector"] {
        rules::label_selector(errors, &path.child(field), &webhook[field]);
    }
    validate_client(errors, &path.child("clientConfig"), &webhook["clientConfig"]);
    validate_match_conditions(errors, &path.child("matchConditions"), &webhook["matchConditions"]);
    validate_review_versions(errors, &path.child("admissionReviewVersions"), webhook);
}

/// Names of webhooks are domain names, so that those of different makers differ.
fn validate_name(errors: &mut Errors, path: &Path, name: &str) {
    rules::required_name(errors, path, name, names::dns1123_subdomain);
    if !name.is_empty() && name.split('.').count() < 3 {
        errors.invalid(path, name, "should be a domain with at least three segments separated by dots");
    }
}

fn validate_review_versions(errors: &mut Errors, path: &Path, webhook: &Value) {
    let versions: Vec<&str> = list(&webhook["admissionReviewVersions"]).iter().map(text).collect();
    let known = REVIEW_VERSIONS.join(", ");
    if versions.is_empty() {
        return errors.required(path, format!("must specify one of {known}"));
    }
    for (index, version) in versions.iter().enumerate() {
        if versions[..index].contains(version) {
            errors.invalid(&path.index(index), *version, "duplicate version");
        } else {
            rules::name(errors, &path.index(index), version, names::dns1035_label);
        }
    }
    if !versions.iter().any(|version| REVIEW_VERSIONS.contains(version)) {
        let shown = webhook["admissionReviewVersions"].clone();
        errors.invalid(path, shown, format!("must include at least one of {known}"));
    }
}

/// Checks where a webhook is: at a URL, or behind a service.
pub(crate) fn validate_client(errors: &mut Errors, path: &Path, client: &Value) {
    match (client["url"].as_str(), client["service"].is_null()) {
        (Some(url), true) => validate_url(errors, &path.child("url"), url),
        (None, false) => validate_service(errors, &path.child("service"), &client["service"]),
        _ => errors.required(path, "exactly one of url or service is required"),
    }
}

fn validate_url(errors: &mut Errors, path: &Path, url: &str) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        errors.invalid(path, scheme, format!("'https' is the only allowed URL scheme{FORM}"));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = rest.split('/').next().unwrap_or_default();
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.invalid(path, host, format!("host must be specified{FORM}"));
    }
    for (part, detail) in [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ] {
        if !part.is_empty() {
            errors.invalid(path, part, detail);
        }
    }
}

fn validate_service(errors: &mut Errors, path: &Path, service: &Value) {
    for field in ["name", "namespace"] {
        if text(&service[field]).is_empty() {
            errors.required(&path.child(field), format!("service {field} is required"));
        }
    }
    if !service["port"].is_null() && !(1..=65535).contains(&int(&service["port"])) {
        let detail = "port is not valid: must be between 1 and 65535, inclusive";
        errors.invalid(&path.child("port"), service["port"].clone(), detail);
    }
    let url_path = text(&service["path"]);
    if matches!(url_path, "" | "/") {
        return;
    }
    let path = path.child("path");
    let Some(segments) = url_path.strip_prefix('/') else {
        return errors.invalid(&path, url_path, "must start with a '/'");
    };
    let segments: Vec<&str> = segments.strip_suffix('/').unwrap_or(segments).split('/').collect();
    for (index, segment) in segments.iter().enumerate() {
        if segment.is_empty() {
            errors.invalid(&path, url_path, format!("segment[{index}] may not be empty"));
            continue;
        }
        for problem in names::dns1123_subdomain(segment) {
            errors.invalid(&path, url_path, format!("segment[{index}]: {problem}"));
        }
    }
}

fn table_row(configuration: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        json!(text(&configuration["metadata"]["name"])),
        json!(list(&configuration["webhooks"]).len()),
        table::age(configuration, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::super::rules::testing::{expect, with};
    use super::*;

    fn good() -> Value {
        let mut configuration = json!({
            "metadata": {"name": "checks"},
            "webhooks": [{
                "name": "pods.checks.example.com", "sideEffects": "None", "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"namespace": "a", "name": "b", "path": "/check"}},
                "rules": [
                    {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]},
                ],
            }],
        });
        crate::defaults::apply(MUTATING_WEBHOOK_CONFIGURATION.schema, &mut configuration);
        configuration
    }

    #[test]
    fn defaults() {
        let webhook = &good()["webhooks"][0];
        for (pointer, expected) in [
            ("/failurePolicy", json!("Fail")),
            ("/matchPolicy", json!("Equivalent")),
            ("/reinvocationPolicy", json!("Never")),
            ("/timeoutSeconds", json!(10)),
            ("/namespaceSelector", json!({})),
            ("/clientConfig/service/port", json!(443)),
            ("/rules/0/scope", json!("*")),
        ] {
            assert_eq!(webhook.pointer(pointer), Some(&expected), "{pointer}");
        }
    }

    #[test]
    fn validation() {
        let row = |what: &str, field: &str, value: Value, expected: &[&str]| {
            expect(what, &validate(&with(good(), &[(&format!("/webhooks/0/{field}"), value)])), expected);
        };
        row("good", "failurePolicy", json!("Ignore"), &[]);
        row(
            "name",
            "name",
            json!("checks"),
            &[
                "webhooks[0].name: Invalid value: \"checks\": should be a domain with at least three segments separated by \
               dots",
            ],
        );
        row(
            "side effects",
            "sideEffects",
            json!("Some"),
            &[
                "webhooks[0].sideEffects: Unsupported value: \"Some\": supported values: \"None\", \"NoneOnDryRun\"",
            ],
        );
        row(
            "timeout",
            "timeoutSeconds",
            json!(31),
            &[
                "webhooks[0].timeoutSeconds: Invalid value: 31: the timeout value must be between 1 and 30 seconds",
            ],
        );
        row(
            "versions",
            "admissionReviewVersions",
            json!(["v2"]),
            &[
                "webhooks[0].admissionReviewVersions: Invalid value: [\"v2\"]: must include at least one of v1, v1beta1",
            ],
        );
        row(
            "nowhere",
            "clientConfig",
            json!({}),
            &["webhooks[0].clientConfig: Required value: exactly one of url or service is required"],
        );
        row(
            "url",
            "clientConfig",
            json!({"url": "http://me@example.com/a?b"}),
            &[
                "webhooks[0].clientConfig.url: Invalid value: \"http\": 'https' is the only allowed URL scheme; desired \
                 format: https://host[/path]",
                "webhooks[0].clientConfig.url: Invalid value: \"me\": user information is not permitted in the URL",
                "webhooks[0].clientConfig.url: Invalid value: \"b\": query parameters are not permitted in the URL",
            ],
        );
        row("good url", "clientConfig", json!({"url": "https://example.com:8443/a"}), &[]);
        row(
            "path",
            "clientConfig",
            json!({"service": {"name": "a", "namespace": "b", "path": "/a//b"}}),
            &["webhooks[0].clientConfig.service.path: Invalid value: \"/a//b\": segment[1] may not be empty"],
        );
        let twice = with(good(), &[("/webhooks/1", good()["webhooks"][0].clone())]);
        expect(
            "twice",
            &validate(&twice),
            &["webhooks[1].name: Duplicate value: \"pods.checks.example.com\""],
        );
    }
}
