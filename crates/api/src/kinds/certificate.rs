//! Certificates: requests to have one signed (CertificateSigningRequest), and authorities to trust (ClusterTrustBundle).
//!
//! Whether the signature of a request is its key's own is checked by whoever signs it: this crate reads no X.509.

use std::collections::BTreeSet;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{copy_field, default_field, is_empty, list, list_mut, set, text};
use super::rules;
use crate::field::{Errors, Path};
use crate::kind::{Column, NameRule, Requester, Row, Scope, Strategy, Subresource};
use crate::{names, table};

/// CertificateSigningRequests. Who asks is written into `spec` by the server, whatever the client says.
pub static CERTIFICATE_SIGNING_REQUEST: Row = Row {
    group: "certificates.k8s.io",
    kind: "CertificateSigningRequest",
    plural: "certificatesigningrequests",
    singular: "certificatesigningrequest",
    short_names: &["csr"],
    scope: Scope::Cluster,
    subresources: &[Subresource::Approval, Subresource::Status],
    schema: "io.k8s.api.certificates.v1.CertificateSigningRequest",
    columns: &[
        Column::name(),
        Column::age(),
        Column::new("SignerName", "Who shall sign."),
        Column::new("Requestor", "Who asks."),
        Column::new("RequestedDuration", "How long the certificate shall be valid."),
        Column::new("Condition", "What became of the request."),
    ],
    table_row: request_row,
    field_selectors: &[("spec.signerName", "/spec/signerName")],
    name_rule: NameRule::PathSegment,
    strategy: Strategy {
        prepare_create: |request| set(request, "status", json!({})),
        set_requester,
        prepare_update: |new, old| copy_field(new, old, "spec"),
        prepare_status,
        prepare_approval,
        validate: validate_request,
        validate_status,
        validate_approval,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// ClusterTrustBundles.
pub static CLUSTER_TRUST_BUNDLE: Row = Row {
    group: "certificates.k8s.io",
    version: "v1beta1",
    kind: "ClusterTrustBundle",
    plural: "clustertrustbundles",
    singular: "clustertrustbundle",
    scope: Scope::Cluster,
    schema: "io.k8s.api.certificates.v1beta1.ClusterTrustBundle",
    columns: &[Column::name(), Column::new("SignerName", "Whose certificates the bundle is for.")],
    table_row: bundle_row,
    field_selectors: &[("spec.signerName", "/spec/signerName")],
    name_rule: NameRule::PathSegment,
    strategy: Strategy {
        validate: validate_bundle,
        validate_update: validate_bundle_update,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// Ten minutes: shorter lives cannot be renewed in time.
const SHORTEST_SECONDS: i64 = 600;
/// A domain, a slash, a path: what fits into a name of a role that allows signing.
const LONGEST_SIGNER: usize = 571;
/// What a key may be used for (RFC 5280, sections 4.2.1.3 and 4.2.1.12), in alphabetical order.
const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];
/// Conditions that only `/approval` sets.
const DECISIONS: [&str; 2] = ["Approved", "Denied"];
/// Conditions that are never taken back.
const FINAL: [&str; 3] = ["Approved", "Denied", "Failed"];

/// Writes into a new request who made it, whatever its writer claims to be.
fn set_requester(request: &mut Value, requester: Requester<'_>) {
    let Some(spec) = request.get_mut("spec").filter(|spec| spec.is_object()) else {
        return;
    };
    for field in ["username", "uid", "groups", "extra"] {
        super::json::remove(spec, field);
    }
    let extra: Value = requester.extra.iter().map(|(key, values)| (key.clone(), json!(values))).collect();
    let fields = [
        ("username", json!(requester.username)),
        ("uid", json!(requester.uid)),
        ("groups", json!(requester.groups)),
        ("extra", extra),
    ];
    for (field, value) in fields.into_iter().filter(|(_, value)| !is_empty(value)) {
        set(spec, field, value);
    }
}

fn validate_request(request: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec) = (Path::new("spec"), &request["spec"]);
    if let Some(problem) = request_problem(text(&spec["request"])) {
        errors.invalid(&path.child("request"), spec["request"].clone(), problem);
    }
    let (usages, usages_path) = (list(&spec["usages"]), path.child("usages"));
    if usages.is_empty() {
        errors.required(&usages_path, "");
    }
    let mut seen = BTreeSet::new();
    for (index, usage) in usages.iter().map(text).enumerate() {
        if !USAGES.contains(&usage) {
            errors.not_supported(&usages_path.index(index), usage, &USAGES);
        }
        if !seen.insert(usage) {
            errors.duplicate(&usages_path.index(index), usage);
        }
    }
    let (signer, signer_path) = (text(&spec["signerName"]), path.child("signerName"));
    if signer == "kubernetes.io/legacy-unknown" {
        errors.invalid(&signer_path, signer, "the legacy signerName is not allowed via this API version");
    } else if signer.is_empty() {
        errors.required(&signer_path, "");
    } else {
        validate_signer(&mut errors, &signer_path, signer);
    }
    if let Some(seconds) = spec["expirationSeconds"].as_i64()
        && seconds < SHORTEST_SECONDS
    {
        let detail = "may not specify a duration less than 600 seconds (10 minutes)";
        errors.invalid(&path.child("expirationSeconds"), seconds, detail);
    }
    errors.extend(validate_conditions(request));
    errors
}

fn request_problem(encoded: &str) -> Option<&'static str> {
    const BLOCK: &str = "PEM block type must be CERTIFICATE REQUEST";
    let pem = STANDARD.decode(encoded).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let Some(pem) = pem else {
        return Some(BLOCK);
    };
    match pem_blocks(&pem).first() {
        Some(block) if block.label == "CERTIFICATE REQUEST" && block.bytes.is_some() => None,
        _ => Some(BLOCK),
    }
}

/// Checks the name of a signer: a domain of at least two labels, and a path of lowercase labels.
fn validate_signer(errors: &mut Errors, path: &Path, signer: &str) {
    const FORM: &str = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
    let Some((domain, rest)) = signer.split_once('/').filter(|(_, rest)| !rest.contains('/')) else {
        return errors.invalid(path, signer, FORM);
    };
    for problem in names::dns1123_subdomain(domain) {
        errors.invalid(path, domain, format!("validating label \"{domain}\": {problem}"));
    }
    if !domain.contains('.') {
        errors.invalid(path, domain, "should be a domain with at least two segments separated by dots");
    }
    for problem in names::dns1123_subdomain(rest) {
        errors.invalid(path, rest, format!("validating label \"{rest}\": {problem}"));
    }
    if signer.len() > LONGEST_SIGNER {
        errors.too_long(path, LONGEST_SIGNER);
    }
}

fn validate_conditions(request: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("status").child("conditions");
    let mut seen = BTreeSet::new();
    for (index, condition) in list(&request["status"]["conditions"]).iter().enumerate() {
        let (path, type_) = (path.index(index), text(&condition["type"]));
        rules::required(&mut errors, &path.child("type"), &condition["type"]);
        let status = text(&condition["status"]);
        match status {
            "" => errors.required(&path.child("status"), ""),
            "True" => {}
            "False" | "Unknown" if FINAL.contains(&type_) => {
                errors.not_supported(&path.child("status"), status, &["True"]);
            }
            "False" | "Unknown" => {}
            other => errors.not_supported(&path.child("status"), other, &["False", "True", "Unknown"]),
        }
        if seen.contains(match type_ {
            "Approved" => "Denied",
            "Denied" => "Approved",
            _ => "",
        }) {
            let detail = "Approved and Denied conditions are mutually exclusive";
            errors.invalid(&path.child("type"), type_, detail);
        }
        if !seen.insert(type_) {
            errors.duplicate(&path.child("type"), type_);
        }
    }
    errors
}

fn count(request: &Value, type_: &str) -> usize {
    list(&request["status"]["conditions"]).iter().filter(|c| text(&c["type"]) == type_).count()
}

fn validate_final(errors: &mut Errors, new: &Value, old: &Value) {
    let path = Path::new("status").child("conditions");
    for type_ in FINAL.iter().filter(|type_| count(new, type_) < count(old, type_)) {
        errors.forbidden(&path, format!("updates may not remove a condition of type \"{type_}\""));
    }
}

/// A write to `/approval` decides: it neither asks for something else nor hands out a certificate.
fn prepare_approval(new: &mut Value, old: &Value, now: Timestamp) {
    copy_field(new, old, "spec");
    if new["status"].is_object() {
        copy_field(&mut new["status"], &old["status"], "certificate");
    } else {
        copy_field(new, old, "status");
    }
    set_times(new, old, now);
}

/// A write to `/status` leaves decisions as they are: those that are still there keep every word of theirs.
fn prepare_status(new: &mut Value, old: &Value, now: Timestamp) {
    copy_field(new, old, "spec");
    for type_ in DECISIONS {
        if count(new, type_) != count(old, type_) {
            continue;
        }
        let of_type = |condition: &&Value| condition["type"] == type_;
        let kept = list(&old["status"]["conditions"]).iter().filter(of_type);
        let conditions = list_mut(new, "/status/conditions");
        for (condition, kept) in conditions.filter(|c| c["type"] == type_).zip(kept) {
            *condition = kept.clone();
        }
    }
    set_times(new, old, now);
}

/// Fills in the times of conditions that come without: a state that was there before has been so since then.
fn set_times(new: &mut Value, old: &Value, now: Timestamp) {
    let now = Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    for condition in list_mut(new, "/status/conditions").filter(|condition| condition.is_object()) {
        default_field(condition, "lastUpdateTime", now.as_str());
        let before = list(&old["status"]["conditions"]).iter().find(|before| {
            before["type"] == condition["type"]
                && before["status"] == condition["status"]
                && !is_empty(&before["lastTransitionTime"])
        });
        let since = before.map_or_else(|| json!(now), |before| before["lastTransitionTime"].clone());
        default_field(condition, "lastTransitionTime", since);
    }
}

/// Checks a write to `/approval`: `(new, old)`.
fn validate_approval(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_conditions(new);
    validate_final(&mut errors, new, old);
    errors
}

/// Checks a write to `/status`: the signer hands out a certificate or says why not, and does not approve.
fn validate_status(new: &Value, old: &Value) -> Errors {
    let mut errors = validate_conditions(new);
    validate_final(&mut errors, new, old);
    let path = Path::new("status");
    for type_ in DECISIONS.iter().filter(|type_| count(new, type_) > count(old, type_)) {
        let detail = format!("updates may not add a condition of type \"{type_}\"");
        errors.forbidden(&path.child("conditions"), detail);
    }
    let (certificate, before) = (text(&new["status"]["certificate"]), text(&old["status"]["certificate"]));
    let path = path.child("certificate");
    if !before.is_empty() && certificate != before {
        errors.invalid(&path, certificate, "certificate may not be changed once set");
    } else if certificate != before {
        let pem = STANDARD.decode(certificate).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        for problem in certificate_problems(&pem.unwrap_or_default()) {
            errors.invalid(&path, certificate, problem);
        }
    }
    errors
}

fn request_row(request: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &request["spec"];
    let signer = text(&spec["signerName"]);
    let duration = spec["expirationSeconds"].as_i64().map(table::human_duration);
    vec![
        json!(text(&request["metadata"]["name"])),
        table::age(request, now),
        json!(if signer.is_empty() { "<none>" } else { signer }),
        json!(text(&spec["username"])),
        json!(duration.unwrap_or_else(|| "<none>".to_owned())),
        json!(condition(request)),
    ]
}

/// What became of a request, a refusal first.
fn condition(request: &Value) -> String {
    let mut shown = if count(request, "Denied") > 0 {
        "Denied"
    } else if count(request, "Approved") > 0 {
        "Approved"
    } else {
        "Pending"
    }
    .to_owned();
    if count(request, "Failed") > 0 {
        shown.push_str(",Failed");
    }
    if !is_empty(&request["status"]["certificate"]) {
        shown.push_str(",Issued");
    }
    shown
}

fn validate_bundle(bundle: &Value) -> Errors {
    let mut errors = Errors::new();
    let (name, name_path) = (text(&bundle["metadata"]["name"]), Path::new("metadata").child("name"));
    let (signer, path) = (text(&bundle["spec"]["signerName"]), Path::new("spec").child("signerName"));
    let prefix = format!("{}:", signer.replace('/', ":"));
    let rest = if signer.is_empty() {
        if name.contains(':') {
            let detail = "ClusterTrustBundle without signer name must not have \":\" in its name";
            errors.invalid(&name_path, name, detail);
            return errors;
        }
        name
    } else {
        validate_signer(&mut errors, &path, signer);
        let Some(rest) = name.strip_prefix(&prefix) else {
            let detail =
                format!("ClusterTrustBundle for signerName {signer} must be named with prefix {prefix}");
            errors.invalid(&name_path, name, detail);
            return errors;
        };
        rest
    };
    rules::name(&mut errors, &name_path, rest, names::dns1123_subdomain);
    let path = Path::new("spec").child("trustBundle");
    for problem in certificate_problems(text(&bundle["spec"]["trustBundle"])) {
        errors.invalid(&path, "<value omitted>", problem);
    }
    errors
}

fn validate_bundle_update(new: &Value, old: &Value) -> Errors {
    let mut errors = Errors::new();
    let path = Path::new("spec").child("signerName");
    rules::immutable(&mut errors, &path, &new["spec"]["signerName"], &old["spec"]["signerName"]);
    errors
}

fn bundle_row(bundle: &Value, _: Timestamp) -> Vec<Value> {
    let signer = text(&bundle["spec"]["signerName"]);
    vec![json!(text(&bundle["metadata"]["name"])), json!(if signer.is_empty() { "<none>" } else { signer })]
}

/// What is wrong with a text that should be certificates, one after the other.
fn certificate_problems(pem: &str) -> Vec<String> {
    let blocks = pem_blocks(pem);
    if blocks.is_empty() {
        return vec!["at least one trust anchor must be provided".to_owned()];
    }
    let mut problems = Vec::new();
    for (index, block) in blocks.iter().enumerate() {
        if block.label != "CERTIFICATE" {
            problems.push(format!("entry {index} has bad block type: {}", block.label));
        } else if block.bytes.is_none() {
            problems.push(format!("entry {index} does not parse as X.509"));
        } else if blocks[..index].iter().any(|earlier| earlier.bytes == block.bytes) {
            problems.push(format!("duplicate trust anchor (entry {index})"));
        }
    }
    problems
}

/// A block of RFC 7468.
struct PemBlock<'a> {
    label: &'a str,
    /// What the block holds, if it is base64.
    bytes: Option<Vec<u8>>,
}

/// The blocks of a text; what stands between them is commentary. The text is bounded by the size of a request.
fn pem_blocks(text: &str) -> Vec<PemBlock<'_>> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        let Some((label, body)) = after.split_once("-----") else {
            break;
        };
        let Some((body, after)) = body.split_once(&format!("-----END {label}-----")) else {
            break;
        };
        let compact: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        let bytes = STANDARD.decode(compact).ok().filter(|bytes| !bytes.is_empty());
        blocks.push(PemBlock { label, bytes });
        rest = after;
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn pem(label: &str, body: &str) -> String {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    fn good() -> Value {
        json!({
            "metadata": {"name": "ann", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {
                "request": STANDARD.encode(pem("CERTIFICATE REQUEST", "AAAA")), "usages": ["client auth"],
                "signerName": "kubernetes.io/kube-apiserver-client", "username": "ann", "expirationSeconds": 3600,
            },
        })
    }

    #[test]
    fn requests() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate_request(&with(good(), changes)), expected);
        };
        row("good", &[], &[]);
        row("approved", &[("/status", json!({"conditions": [{"type": "Approved", "status": "True"}]}))], &[]);
        row(
            "no request",
            &[("/spec/request", json!("AAAA"))],
            &["spec.request: Invalid value: \"AAAA\": PEM block type must be CERTIFICATE REQUEST"],
        );
        row(
            "usages",
            &[("/spec/usages", json!(["signing", "signing"]))],
            &["spec.usages[1]: Duplicate value: \"signing\""],
        );
        row("no usages", &[("/spec/usages", json!([]))], &["spec.usages: Required value"]);
        row(
            "signer",
            &[("/spec/signerName", json!("me"))],
            &[
                "spec.signerName: Invalid value: \"me\": must be a fully qualified domain and path of the form \
               'example.com/signer-name'",
            ],
        );
        row(
            "short",
            &[("/spec/expirationSeconds", json!(599))],
            &[
                "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 600 seconds (10 minutes)",
            ],
        );
    }

    #[test]
    fn the_server_says_who_asks() {
        let mut request =
            with(good(), &[("/spec/groups", json!(["system:masters"])), ("/spec/uid", json!("1"))]);
        let groups = ["system:authenticated".to_owned()];
        let extra = [("scopes".to_owned(), vec!["a".to_owned()])];
        let bob = Requester { username: "bob", uid: "", groups: &groups, extra: &extra };
        set_requester(&mut request, bob);
        assert_eq!(request["spec"]["extra"], json!({"scopes": ["a"]}));
        assert_eq!(request["spec"]["username"], "bob");
        assert_eq!(request["spec"]["groups"], json!(["system:authenticated"]));
        assert!(request["spec"].get("uid").is_none());
        let mut changed = with(good(), &[("/spec/username", json!("eve"))]);
        (CERTIFICATE_SIGNING_REQUEST.strategy.prepare_update)(&mut changed, &good());
        assert_eq!(changed, good());
    }

    fn with_status(conditions: &[&str], certificate: &str) -> Value {
        let conditions: Vec<Value> =
            conditions.iter().map(|type_| json!({"type": type_, "status": "True"})).collect();
        with(good(), &[("/status", json!({"conditions": conditions, "certificate": certificate}))])
    }

    #[test]
    fn approval_and_status() {
        let certificate = STANDARD.encode(pem("CERTIFICATE", "AAAA"));
        let (pending, approved) = (with_status(&[], ""), with_status(&["Approved"], ""));
        let issued = with_status(&["Approved"], &certificate);
        expect("approved", &validate_approval(&approved, &pending), &[]);
        expect(
            "taken back",
            &validate_approval(&pending, &approved),
            &["status.conditions: Forbidden: updates may not remove a condition of type \"Approved\""],
        );
        expect(
            "both",
            &validate_approval(&with_status(&["Approved", "Denied"], ""), &pending),
            &[
                "status.conditions[1].type: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive",
            ],
        );
        expect("issued", &validate_status(&issued, &approved), &[]);
        expect(
            "signer approves",
            &validate_status(&approved, &pending),
            &["status.conditions: Forbidden: updates may not add a condition of type \"Approved\""],
        );
        assert_eq!(validate_status(&approved, &issued).0.len(), 1, "a certificate is not taken away");
    }

    #[test]
    fn what_a_part_may_change() {
        let now: Timestamp = "2026-01-02T00:00:00.5Z".parse().expect("a time");
        let certificate = STANDARD.encode(pem("CERTIFICATE", "AAAA"));
        let condition = |type_: &str, reason: &str, day: &str| {
            let time = format!("2026-01-0{day}T00:00:00Z");
            json!({"type": type_, "status": "True", "reason": reason, "lastUpdateTime": time, "lastTransitionTime": time})
        };
        let with_conditions =
            |conditions: Value| with(good(), &[("/status", json!({"conditions": conditions}))]);
        let approved = with_conditions(json!([condition("Approved", "by ann", "1")]));
        let asked = json!([{"type": "Approved", "status": "True", "reason": "by ann"}]);
        type Prepare = fn(&mut Value, &Value, Timestamp);
        let rows: Vec<(&str, Prepare, Value, Value, Value)> = vec![
            (
                "an approval gets its times, and gives no certificate",
                prepare_approval,
                with(with_conditions(asked), &[("/status/certificate", json!(certificate))]),
                good(),
                with_conditions(json!([condition("Approved", "by ann", "2")])),
            ),
            (
                "nobody asks for another",
                prepare_approval,
                with(approved.clone(), &[("/spec/username", json!("eve"))]),
                approved.clone(),
                approved.clone(),
            ),
            (
                "a signer does not rewrite a decision",
                prepare_status,
                with_conditions(json!([condition("Approved", "by eve", "2")])),
                approved.clone(),
                approved.clone(),
            ),
            (
                "what stays keeps the time of its beginning",
                prepare_status,
                with_conditions(json!([{"type": "Late", "status": "True", "reason": "more"}])),
                with_conditions(json!([condition("Late", "some", "1")])),
                with_conditions(json!([{
                    "type": "Late", "status": "True", "reason": "more",
                    "lastUpdateTime": "2026-01-02T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
                }])),
            ),
        ];
        for (what, prepare, mut new, old, expected) in rows {
            prepare(&mut new, &old, now);
            assert_eq!(new, expected, "{what}");
        }
    }

    #[test]
    fn cells() {
        let now = "2026-01-01T00:01:00Z".parse().expect("a time");
        let expected = ["ann", "60s", "kubernetes.io/kube-apiserver-client", "ann", "60m", "Pending"];
        assert_eq!(request_row(&good(), now), expected.map(|cell| json!(cell)));
        assert_eq!(condition(&with_status(&["Approved"], "AAAA")), "Approved,Issued");
        assert_eq!(condition(&with_status(&["Approved", "Denied", "Failed"], "")), "Denied,Failed");
    }

    #[test]
    fn bundles() {
        let bundle = |name: &str, signer: &str, pem: String| json!({"metadata": {"name": name}, "spec": {"signerName": signer, "trustBundle": pem}});
        let row =
            |what: &str, bundle: Value, expected: &[&str]| expect(what, &validate_bundle(&bundle), expected);
        let one = pem("CERTIFICATE", "AAAA");
        row("good", bundle("a", "", one.clone()), &[]);
        row("of a signer", bundle("example.com:ca:a", "example.com/ca", one.clone()), &[]);
        row(
            "of another signer",
            bundle("a", "example.com/ca", one.clone()),
            &[
                "metadata.name: Invalid value: \"a\": ClusterTrustBundle for signerName example.com/ca must be named with \
               prefix example.com:ca:",
            ],
        );
        row(
            "of nobody",
            bundle("a:b", "", one.clone()),
            &[
                "metadata.name: Invalid value: \"a:b\": ClusterTrustBundle without signer name must not have \":\" in its name",
            ],
        );
        row(
            "empty",
            bundle("a", "", String::new()),
            &[
                "spec.trustBundle: Invalid value: \"<value omitted>\": at least one trust anchor must be provided",
            ],
        );
        row(
            "twice, and a key",
            bundle("a", "", format!("{one}{one}{}", pem("PRIVATE KEY", "AAAA"))),
            &[
                "spec.trustBundle: Invalid value: \"<value omitted>\": duplicate trust anchor (entry 1)",
                "spec.trustBundle: Invalid value: \"<value omitted>\": entry 2 has bad block type: PRIVATE KEY",
            ],
        );
        let other = bundle("a", "example.com/ca", one.clone());
        assert_eq!(validate_bundle_update(&other, &bundle("a", "", one)).0.len(), 1);
    }
}
