//! Flow control: which requests to the API wait behind which others (FlowSchema, PriorityLevelConfiguration).
//!
//! Two objects of each kind always exist and look as [`mandatory`] says: what administrators send is never held up, and
//! what matches nothing else has a place to wait.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::json::{int, is_empty, is_true, list, same, set, text};
use super::rules::{self, wildcard_list};
use crate::field::{Errors, Path};
use crate::kind::{Column, Row, STATUS_METADATA, Scope, Strategy, Subresource};
use crate::{names, table};

/// FlowSchemas.
pub static FLOW_SCHEMA: Row = Row {
    group: "flowcontrol.apiserver.k8s.io",
    kind: "FlowSchema",
    plural: "flowschemas",
    singular: "flowschema",
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    status_keeps: STATUS_METADATA,
    schema: "io.k8s.api.flowcontrol.v1.FlowSchema",
    columns: &[
        Column::name(),
        Column::new("PriorityLevel", "Where the requests wait."),
        Column::new("MatchingPrecedence", "Schemas with lower numbers are asked first."),
        Column::new("DistinguisherMethod", "What makes two requests of one flow."),
        Column::age(),
        Column::new("MissingPL", "Whether the priority level is missing."),
    ],
    table_row: schema_row,
    generation: true,
    strategy: Strategy {
        prepare_create: |schema| set(schema, "status", json!({})),
        validate: validate_schema,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// PriorityLevelConfigurations.
pub static PRIORITY_LEVEL_CONFIGURATION: Row = Row {
    group: "flowcontrol.apiserver.k8s.io",
    kind: "PriorityLevelConfiguration",
    plural: "prioritylevelconfigurations",
    singular: "prioritylevelconfiguration",
    scope: Scope::Cluster,
    subresources: &[Subresource::Status],
    status_keeps: STATUS_METADATA,
    schema: "io.k8s.api.flowcontrol.v1.PriorityLevelConfiguration",
    columns: &[
        Column::name(),
        Column::new("Type", "Whether requests may have to wait."),
        Column::new("NominalConcurrencyShares", "Share of the requests that are worked on at once."),
        Column::new("Queues", "Number of queues."),
        Column::new("HandSize", "Queues that one flow may fill."),
        Column::new("QueueLengthLimit", "Requests that may wait in a queue."),
        Column::age(),
    ],
    table_row: level_row,
    generation: true,
    strategy: Strategy {
        prepare_create: |level| set(level, "status", json!({})),
        validate: validate_level,
        ..Strategy::PLAIN
    },
    ..Row::PLAIN
};

/// Requests that are never held back.
pub const EXEMPT: &str = "exempt";
/// What nothing else matches.
pub const CATCH_ALL: &str = "catch-all";
const MAX_PRECEDENCE: i64 = 10_000;
const MAX_QUEUES: i64 = 10_000_000;
/// A flow's hand of queues is dealt from a hash of this many bits.
const HASH_BITS: i64 = 60;
/// Verbs of rules, in alphabetical order.
const VERBS: [&str; 9] =
    ["create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"];

/// The spec that a mandatory object has, by kind and name.
pub fn mandatory(kind: &str, name: &str) -> Option<Value> {
    let group = |name: &str| json!({"kind": "Group", "group": {"name": name}});
    let everything = |subjects: Value| {
        json!([{
            "subjects": subjects,
            "resourceRules": [{
                "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true,
            }],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
        }])
    };
    match (kind, name) {
        ("FlowSchema", EXEMPT) => Some(json!({
            "matchingPrecedence": 1, "priorityLevelConfiguration": {"name": EXEMPT},
            "rules": everything(json!([group("system:masters")])),
        })),
        ("FlowSchema", CATCH_ALL) => Some(json!({
            "matchingPrecedence": MAX_PRECEDENCE, "priorityLevelConfiguration": {"name": CATCH_ALL},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": everything(json!([group("system:unauthenticated"), group("system:authenticated")])),
        })),
        ("PriorityLevelConfiguration", EXEMPT) => {
            Some(json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}}))
        }
        ("PriorityLevelConfiguration", CATCH_ALL) => Some(json!({
            "type": "Limited",
            "limited": {
                "nominalConcurrencyShares": 5, "lendablePercent": 0, "limitResponse": {"type": "Reject"},
            },
        })),
        _ => None,
    }
}

/// Whether an object of one of the two kinds is specified as wanted. What the exempt level keeps free is not specified:
/// it is for administrators to set.
pub fn is_specified(name: &str, spec: &Value, wanted: &Value) -> bool {
    let mut wanted = wanted.clone();
    if name == EXEMPT && wanted["type"] == "Exempt" {
        super::json::copy_field(&mut wanted, spec, "exempt");
    }
    same(spec, &wanted)
}

fn validate_schema(schema: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec, name) = (Path::new("spec"), &schema["spec"], text(&schema["metadata"]["name"]));
    let (precedence, precedence_path) = (int(&spec["matchingPrecedence"]), path.child("matchingPrecedence"));
    if precedence <= 0 {
        errors.invalid(&precedence_path, precedence, "must be a positive value");
    }
    if precedence > MAX_PRECEDENCE {
        errors.invalid(&precedence_path, precedence, format!("must not be greater than {MAX_PRECEDENCE}"));
    }
    if precedence == 1 && name != EXEMPT {
        let detail = "only the schema named 'exempt' may have matchingPrecedence 1";
        errors.invalid(&precedence_path, precedence, detail);
    }
    if !spec["distinguisherMethod"].is_null() {
        let path = path.child("distinguisherMethod").child("type");
        rules::one_of(&mut errors, &path, &spec["distinguisherMethod"]["type"], &["ByNamespace", "ByUser"]);
    }
    let (level, level_path) =
        (text(&spec["priorityLevelConfiguration"]["name"]), path.child("priorityLevelConfiguration"));
    if level.is_empty() {
        errors.required(&level_path.child("name"), "must reference a priority level");
    }
    rules::optional_name(&mut errors, &level_path.child("name"), level, names::dns1123_subdomain);
    for (index, rule) in list(&spec["rules"]).iter().enumerate() {
        validate_rule(&mut errors, &path.child("rules").index(index), rule);
    }
    if mandatory("FlowSchema", name).is_some_and(|wanted| !is_specified(name, spec, &wanted)) {
        errors.invalid(&path, spec.clone(), format!("spec of '{name}' must equal the fixed value"));
    }
    errors.extend(validate_conditions(schema));
    errors
}

fn validate_rule(errors: &mut Errors, path: &Path, rule: &Value) {
    let subjects = list(&rule["subjects"]);
    if subjects.is_empty() {
        errors.required(&path.child("subjects"), "subjects must contain at least one value");
    }
    for (index, subject) in subjects.iter().enumerate() {
        validate_subject(errors, &path.child("subjects").index(index), subject);
    }
    if is_empty(&rule["resourceRules"]) && is_empty(&rule["nonResourceRules"]) {
        errors.required(path, "at least one of resourceRules and nonResourceRules has to be non-empty");
    }
    for (index, rule) in list(&rule["resourceRules"]).iter().enumerate() {
        validate_resource_rule(errors, &path.child("resourceRules").index(index), rule);
    }
    for (index, rule) in list(&rule["nonResourceRules"]).iter().enumerate() {
        validate_url_rule(errors, &path.child("nonResourceRules").index(index), rule);
    }
}

fn validate_subject(errors: &mut Errors, path: &Path, subject: &Value) {
    const KINDS: [(&str, &str); 3] =
        [("Group", "group"), ("ServiceAccount", "serviceAccount"), ("User", "user")];
    let kind = text(&subject["kind"]);
    let Some((_, own)) = KINDS.iter().find(|(name, _)| *name == kind) else {
        return errors.not_supported(&path.child("kind"), kind, &KINDS.map(|(name, _)| name));
    };
    for (other, field) in KINDS.iter().filter(|(_, field)| field != own && !subject[*field].is_null()) {
        let detail = format!("{field} is forbidden when subject kind is not '{other}'");
        errors.forbidden(&path.child(field), detail);
    }
    let (path, holder) = (path.child(own), &subject[*own]);
    if holder.is_null() {
        return errors.required(&path, format!("{own} is required when subject kind is '{kind}'"));
    }
    let name = text(&holder["name"]);
    rules::required(errors, &path.child("name"), &holder["name"]);
    if kind == "ServiceAccount" {
        if name != "*" {
            rules::optional_name(errors, &path.child("name"), name, names::dns1123_subdomain);
        }
        let namespace = text(&holder["namespace"]);
        if namespace.is_empty() {
            errors.required(&path.child("namespace"), "must specify namespace for service account");
        }
        rules::optional_name(errors, &path.child("namespace"), namespace, names::dns1123_label);
    }
}

fn validate_verbs(errors: &mut Errors, path: &Path, rule: &Value) {
    let path = path.child("verbs");
    wildcard_list(errors, &path, &rule["verbs"], "verbs", "verbs must contain at least one value");
    let verbs: Vec<&str> = list(&rule["verbs"]).iter().map(text).collect();
    if !verbs.contains(&"*") && verbs.iter().any(|verb| !VERBS.contains(verb)) {
        errors.not_supported(&path, rule["verbs"].clone(), &VERBS);
    }
}

fn validate_resource_rule(errors: &mut Errors, path: &Path, rule: &Value) {
    validate_verbs(errors, path, rule);
    for (field, what, missing) in [
        ("apiGroups", "api groups", "resource rules must supply at least one api group"),
        ("resources", "resources", "resource rules must supply at least one resource"),
    ] {
        wildcard_list(errors, &path.child(field), &rule[field], what, missing);
    }
    let (namespaces, path) = (list(&rule["namespaces"]), path.child("namespaces"));
    if !namespaces.is_empty() || !is_true(&rule["clusterScope"]) {
        let missing = "resource rules that are not cluster scoped must supply at least one namespace";
        wildcard_list(errors, &path, &rule["namespaces"], "namespaces", missing);
    }
    for (index, namespace) in namespaces.iter().map(text).enumerate().filter(|(_, name)| *name != "*") {
        for problem in names::dns1123_label(namespace) {
            let detail = format!("each member of this list must be '*' or a DNS-1123 label; {problem}");
            errors.invalid(&path.index(index), namespace, detail);
        }
    }
}

fn validate_url_rule(errors: &mut Errors, path: &Path, rule: &Value) {
    validate_verbs(errors, path, rule);
    let (urls, path) = (&rule["nonResourceURLs"], path.child("nonResourceURLs"));
    let missing = "nonResourceURLs must contain at least one value";
    wildcard_list(errors, &path, urls, "non-resource URLs", missing);
    for (index, url) in list(urls).iter().map(text).enumerate().filter(|(_, url)| *url != "*") {
        if let Some(problem) = url_problem(url) {
            errors.invalid(&path.index(index), url, problem);
        }
    }
}

fn url_problem(url: &str) -> Option<&'static str> {
    let stars = url.matches('*').count();
    match url {
        "" => Some("must not be empty"),
        "/" => None,
        _ if !url.starts_with('/') => Some("must start with slash"),
        _ if url.contains(' ') => Some("must not contain white-space"),
        _ if url.contains("//") => Some("must not contain double slash"),
        _ if stars > 1 || (stars == 1 && !url.ends_with("/*")) => {
            Some("wildcard can only do suffix matching")
        }
        _ => None,
    }
}

fn validate_conditions(object: &Value) -> Errors {
    let mut errors = Errors::new();
    let mut seen = BTreeSet::new();
    for (index, condition) in list(&object["status"]["conditions"]).iter().enumerate() {
        let path = Path::new("status").child("conditions").index(index).child("type");
        let type_ = text(&condition["type"]);
        if !seen.insert(type_) {
            errors.duplicate(&path, type_);
        }
        if type_.is_empty() {
            errors.required(&path, "must not be empty");
        }
    }
    errors
}

fn validate_level(level: &Value) -> Errors {
    let mut errors = Errors::new();
    let (path, spec, name) = (Path::new("spec"), &level["spec"], text(&level["metadata"]["name"]));
    let (limited, exempt) = (&spec["limited"], &spec["exempt"]);
    let type_ = text(&spec["type"]);
    if (name == EXEMPT) != (type_ == "Exempt") {
        let detail = "type must be 'Exempt' if and only if name is 'exempt'";
        errors.invalid(&path.child("type"), type_, detail);
    }
    match type_ {
        "Exempt" => {
            if !limited.is_null() {
                errors.forbidden(&path.child("limited"), "must be nil if the type is not Limited");
            }
            validate_shares(&mut errors, &path.child("exempt"), exempt);
        }
        "Limited" => {
            if !exempt.is_null() {
                errors.forbidden(&path.child("exempt"), "must be nil if the type is Limited");
            }
            if limited.is_null() {
                errors.required(&path.child("limited"), "must not be empty when type is Limited");
            } else {
                validate_limited(&mut errors, &path.child("limited"), limited);
            }
        }
        other => errors.not_supported(&path.child("type"), other, &["Exempt", "Limited"]),
    }
    validate_fixed(&mut errors, &path, spec, name);
    errors.extend(validate_conditions(level));
    errors
}

/// Of the two mandatory levels, only the shares of the exempt one are for administrators to set.
fn validate_fixed(errors: &mut Errors, path: &Path, spec: &Value, name: &str) {
    let Some(wanted) = mandatory("PriorityLevelConfiguration", name) else {
        return;
    };
    if !is_specified(name, spec, &wanted) {
        let detail = match name {
            EXEMPT => "spec of 'exempt' except the 'spec.exempt' field must equal the fixed value".to_owned(),
            _ => format!("spec of '{name}' must equal the fixed value"),
        };
        errors.invalid(path, spec.clone(), detail);
    }
}

fn validate_shares(errors: &mut Errors, path: &Path, level: &Value) {
    let shares = int(&level["nominalConcurrencyShares"]);
    if shares < 0 {
        errors.invalid(&path.child("nominalConcurrencyShares"), shares, "must be a non-negative integer");
    }
    rules::in_range(errors, &path.child("lendablePercent"), &level["lendablePercent"], 0, 100);
}

fn validate_limited(errors: &mut Errors, path: &Path, limited: &Value) {
    validate_shares(errors, path, limited);
    if let Some(percent) = limited["borrowingLimitPercent"].as_i64()
        && percent < 0
    {
        let detail = "if specified, must be a non-negative integer";
        errors.invalid(&path.child("borrowingLimitPercent"), percent, detail);
    }
    let (path, response) = (path.child("limitResponse"), &limited["limitResponse"]);
    let (queuing, queuing_path) = (&response["queuing"], path.child("queuing"));
    match (text(&response["type"]), queuing.is_null()) {
        ("Reject", false) => {
            let detail = "must be nil if limited.limitResponse.type is not Limited";
            errors.forbidden(&queuing_path, detail);
        }
        ("Reject", true) => {}
        ("Queue", true) => {
            let detail = "must not be empty if limited.limitResponse.type is Limited";
            errors.required(&queuing_path, detail);
        }
        ("Queue", false) => validate_queuing(errors, &queuing_path, queuing),
        (other, _) => errors.not_supported(&path.child("type"), other, &["Queue", "Reject"]),
    }
}

fn validate_queuing(errors: &mut Errors, path: &Path, queuing: &Value) {
    let (queues, hand) = (int(&queuing["queues"]), int(&queuing["handSize"]));
    for field in ["queueLengthLimit", "queues", "handSize"] {
        if int(&queuing[field]) <= 0 {
            errors.invalid(&path.child(field), int(&queuing[field]), "must be positive");
        }
    }
    if queues > MAX_QUEUES {
        errors.invalid(&path.child("queues"), queues, format!("must not be greater than {MAX_QUEUES}"));
    }
    let path = path.child("handSize");
    if hand > queues {
        errors.invalid(&path, hand, format!("should not be greater than queues ({queues})"));
    } else if hand > 0 && entropy_bits(queues, hand) > HASH_BITS {
        let detail = format!(
            "required entropy bits of deckSize {queues} and handSize {hand} should not be greater than {HASH_BITS}"
        );
        errors.invalid(&path, hand, detail);
    }
}

/// Bits that dealing a hand takes (`k8s.io/apiserver/pkg/util/shufflesharding`).
fn entropy_bits(deck: i64, hand: i64) -> i64 {
    ((deck as f64).log2() * hand as f64).ceil() as i64
}

fn schema_row(schema: &Value, now: Timestamp) -> Vec<Value> {
    let spec = &schema["spec"];
    let dangling = list(&schema["status"]["conditions"]).iter().find(|c| text(&c["type"]) == "Dangling");
    let method = if spec["distinguisherMethod"].is_null() {
        "<none>"
    } else {
        text(&spec["distinguisherMethod"]["type"])
    };
    vec![
        json!(text(&schema["metadata"]["name"])),
        json!(text(&spec["priorityLevelConfiguration"]["name"])),
        json!(int(&spec["matchingPrecedence"])),
        json!(method),
        table::age(schema, now),
        json!(dangling.map_or("?", |condition| text(&condition["status"]))),
    ]
}

fn level_row(level: &Value, now: Timestamp) -> Vec<Value> {
    let limited = &level["spec"]["limited"];
    let queuing = &limited["limitResponse"]["queuing"];
    let number = |object: &Value, field: &str| match object.as_object() {
        Some(_) => json!(int(&object[field])),
        None => json!("<none>"),
    };
    vec![
        json!(text(&level["metadata"]["name"])),
        json!(text(&level["spec"]["type"])),
        number(limited, "nominalConcurrencyShares"),
        number(queuing, "queues"),
        number(queuing, "handSize"),
        number(queuing, "queueLengthLimit"),
        table::age(level, now),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::rules::testing::{expect, with};
    use super::*;

    fn schema() -> Value {
        json!({
            "metadata": {"name": "own"},
            "spec": {
                "matchingPrecedence": 500, "priorityLevelConfiguration": {"name": "own"},
                "rules": [{
                    "subjects": [{"kind": "ServiceAccount", "serviceAccount": {"name": "*", "namespace": "a"}}],
                    "resourceRules": [
                        {"verbs": ["get"], "apiGroups": [""], "resources": ["pods"], "namespaces": ["a"]},
                    ],
                }],
            },
        })
    }

    #[test]
    fn schemas() {
        let row = |what: &str, changes: &[(&str, Value)], expected: &[&str]| {
            expect(what, &validate_schema(&with(schema(), changes)), expected);
        };
        row("good", &[], &[]);
        row(
            "precedence",
            &[("/spec/matchingPrecedence", json!(1))],
            &[
                "spec.matchingPrecedence: Invalid value: 1: only the schema named 'exempt' may have matchingPrecedence 1",
            ],
        );
        row(
            "subject",
            &[("/spec/rules/0/subjects/0", json!({"kind": "User", "group": {"name": "a"}}))],
            &[
                "spec.rules[0].subjects[0].group: Forbidden: group is forbidden when subject kind is not 'Group'",
                "spec.rules[0].subjects[0].user: Required value: user is required when subject kind is 'User'",
            ],
        );
        row(
            "rule",
            &[("/spec/rules/0/resourceRules/0", json!({"verbs": ["*", "get"], "apiGroups": ["*"]}))],
            &[
                "spec.rules[0].resourceRules[0].verbs: Invalid value: [\"*\",\"get\"]: if '*' is present, must not \
                 specify other verbs",
                "spec.rules[0].resourceRules[0].resources: Required value: resource rules must supply at least one resource",
                "spec.rules[0].resourceRules[0].namespaces: Required value: resource rules that are not cluster scoped \
                 must supply at least one namespace",
            ],
        );
        row(
            "no rules",
            &[("/spec/rules/0/resourceRules", json!([]))],
            &[
                "spec.rules[0]: Required value: at least one of resourceRules and nonResourceRules has to be non-empty",
            ],
        );
        for (url, fine) in
            [("/healthz", true), ("/a/*", true), ("/", true), ("a", false), ("/a*", false), ("//", false)]
        {
            assert_eq!(url_problem(url).is_none(), fine, "{url}");
        }
    }

    #[test]
    fn mandatory_objects_are_fine_and_stay() {
        for name in [EXEMPT, CATCH_ALL] {
            let of = |kind: &str| {
                let spec = mandatory(kind, name).expect("a mandatory object");
                json!({"metadata": {"name": name}, "spec": spec})
            };
            let (mut schema, level) = (of("FlowSchema"), of("PriorityLevelConfiguration"));
            expect(name, &validate_schema(&schema), &[]);
            expect(name, &validate_level(&level), &[]);
            let mut defaulted = level.clone();
            crate::defaults::apply(PRIORITY_LEVEL_CONFIGURATION.schema, &mut defaulted);
            assert_eq!(defaulted, level);
            schema["spec"]["rules"] = json!([]);
            assert_eq!(validate_schema(&schema).0.len(), 1, "{name}");
        }
        let shares = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 9}});
        expect("shares", &validate_level(&json!({"metadata": {"name": EXEMPT}, "spec": shares})), &[]);
        assert_eq!(mandatory("FlowSchema", "own"), None);
    }

    #[test]
    fn levels() {
        let level = |spec: Value| json!({"metadata": {"name": "own"}, "spec": spec});
        let queue = |queues: i64, hand: i64| {
            let queuing = json!({"queues": queues, "handSize": hand, "queueLengthLimit": 50});
            let response = json!({"type": "Queue", "queuing": queuing});
            level(
                json!({"type": "Limited", "limited": {"nominalConcurrencyShares": 5, "limitResponse": response}}),
            )
        };
        let path = "spec.limited.limitResponse.queuing.handSize: Invalid value";
        let row =
            |what: &str, level: Value, expected: &[&str]| expect(what, &validate_level(&level), expected);
        row("good", queue(64, 6), &[]);
        row("hand", queue(4, 5), &[&format!("{path}: 5: should not be greater than queues (4)")]);
        row(
            "hash",
            queue(1024, 7),
            &[&format!(
                "{path}: 7: required entropy bits of deckSize 1024 and handSize 7 should not be greater than 60"
            )],
        );
        row(
            "exempt",
            level(json!({"type": "Exempt"})),
            &["spec.type: Invalid value: \"Exempt\": type must be 'Exempt' if and only if name is 'exempt'"],
        );
        row(
            "nothing",
            level(json!({"type": "Limited"})),
            &["spec.limited: Required value: must not be empty when type is Limited"],
        );
        let expected = [json!("own"), json!("Limited"), json!(5), json!(64), json!(6), json!(50)];
        assert_eq!(level_row(&queue(64, 6), Timestamp::UNIX_EPOCH)[..6], expected);
        assert_eq!(level_row(&json!({}), Timestamp::UNIX_EPOCH)[2], "<none>");
    }

    #[test]
    fn schema_cells() {
        let expected = [json!("own"), json!("own"), json!(500), json!("<none>")];
        assert_eq!(schema_row(&schema(), Timestamp::UNIX_EPOCH)[..4], expected);
        assert_eq!(schema_row(&schema(), Timestamp::UNIX_EPOCH)[5], "?");
    }
}
