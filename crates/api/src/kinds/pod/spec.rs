//! What a pod's spec may say; also that of every template.

use serde_json::Value;

use super::super::json::{int, is_empty, is_true, list, text};
use super::super::rules::{self, one_of, optional_name, required_name};
use super::{affinity, container, resources, security, volume};
use crate::field::{Errors, Path};
use crate::names;

/// More name servers are of no use: resolvers read three (`resolv.conf(5)`).
const MAX_NAMESERVERS: usize = 3;
const MAX_SEARCH_DOMAINS: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

/// Checks a pod's spec that stands at `path`.
pub(crate) fn validate(errors: &mut Errors, path: &Path, spec: &Value) {
    let volumes = volume::validate_all(errors, &path.child("volumes"), &spec["volumes"]);
    container::validate_all(errors, path, spec, &volumes);
    one_of(errors, &path.child("restartPolicy"), &spec["restartPolicy"], &["Always", "OnFailure", "Never"]);
    one_of(
        errors,
        &path.child("dnsPolicy"),
        &spec["dnsPolicy"],
        &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"],
    );
    rules::labels(errors, &path.child("nodeSelector"), &spec["nodeSelector"]);
    security::validate_pod(errors, path, spec);
    validate_references(errors, path, spec);
    affinity::validate(errors, &path.child("affinity"), &spec["affinity"]);
    validate_dns_config(errors, path, spec);
    validate_readiness_gates(errors, &path.child("readinessGates"), &spec["readinessGates"]);
    validate_scheduling_gates(errors, &path.child("schedulingGates"), &spec["schedulingGates"]);
    affinity::validate_spread(
        errors,
        &path.child("topologySpreadConstraints"),
        &spec["topologySpreadConstraints"],
    );
    validate_names(errors, path, spec);
    affinity::validate_tolerations(errors, &path.child("tolerations"), &spec["tolerations"]);
    validate_host_aliases(errors, &path.child("hostAliases"), &spec["hostAliases"]);
    resources::validate_list(errors, &path.child("overhead"), &spec["overhead"]);
    if !is_empty(&spec["resources"]) {
        resources::validate(errors, &path.child("resources"), &spec["resources"]);
    }
    rules::in_range(
        errors,
        &path.child("activeDeadlineSeconds"),
        &spec["activeDeadlineSeconds"],
        1,
        i64::from(i32::MAX),
    );
    if let Some(os) = spec.get("os").filter(|os| !os.is_null()) {
        one_of(errors, &path.child("os").child("name"), &os["name"], &["linux", "windows"]);
    }
    let policy = &spec["preemptionPolicy"];
    rules::optional_one_of(
        errors,
        &path.child("preemptionPolicy"),
        policy,
        &["Never", "PreemptLowerPriority"],
    );
}

fn validate_names(errors: &mut Errors, path: &Path, spec: &Value) {
    let subdomain: rules::NameCheck = names::dns1123_subdomain;
    let label: rules::NameCheck = names::dns1123_label;
    let qualified: rules::NameCheck = names::qualified_name;
    for (field, check) in [
        ("serviceAccountName", subdomain),
        ("nodeName", subdomain),
        ("hostname", label),
        ("subdomain", label),
        ("priorityClassName", subdomain),
        ("runtimeClassName", subdomain),
        ("schedulerName", qualified),
    ] {
        optional_name(errors, &path.child(field), text(&spec[field]), check);
    }
}

fn validate_references(errors: &mut Errors, path: &Path, spec: &Value) {
    for (index, secret) in list(&spec["imagePullSecrets"]).iter().enumerate() {
        let name = &secret["name"];
        rules::required(errors, &path.child("imagePullSecrets").index(index).child("name"), name);
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, claim) in list(&spec["resourceClaims"]).iter().enumerate() {
        let name = text(&claim["name"]);
        let path = path.child("resourceClaims").index(index).child("name");
        required_name(errors, &path, name, names::dns1123_label);
        if seen.contains(&name) {
            errors.duplicate(&path, name);
        }
        seen.push(name);
    }
}

fn validate_readiness_gates(errors: &mut Errors, path: &Path, gates: &Value) {
    for (index, gate) in list(gates).iter().enumerate() {
        let type_ = text(&gate["conditionType"]);
        rules::name(errors, &path.index(index).child("conditionType"), type_, names::qualified_name);
    }
}

fn validate_scheduling_gates(errors: &mut Errors, path: &Path, gates: &Value) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, gate) in list(gates).iter().enumerate() {
        let name = text(&gate["name"]);
        rules::name(errors, &path.index(index), name, names::qualified_name);
        if seen.contains(&name) {
            errors.duplicate(&path.index(index), name);
        }
        seen.push(name);
    }
}

fn validate_host_aliases(errors: &mut Errors, path: &Path, aliases: &Value) {
    for (index, alias) in list(aliases).iter().enumerate() {
        rules::ip_address(errors, &path.index(index).child("ip"), text(&alias["ip"]));
        for host in list(&alias["hostnames"]) {
            rules::name(errors, &path.index(index).child("hostnames"), text(host), names::dns1123_subdomain);
        }
    }
}

fn validate_dns_config(errors: &mut Errors, path: &Path, spec: &Value) {
    let config = &spec["dnsConfig"];
    let path = path.child("dnsConfig");
    if text(&spec["dnsPolicy"]) == "None" {
        let required = "must provide `dnsConfig` when `dnsPolicy` is None";
        if config.is_null() {
            return errors.required(&path, required);
        }
        if is_empty(&config["nameservers"]) {
            errors.required(
                &path.child("nameservers"),
                "must provide at least one DNS nameserver when `dnsPolicy` is None",
            );
        }
    }
    let servers = list(&config["nameservers"]);
    if servers.len() > MAX_NAMESERVERS {
        let detail = format!("must not have more than {MAX_NAMESERVERS} nameservers");
        errors.invalid(&path.child("nameservers"), config["nameservers"].clone(), detail);
    }
    for (index, server) in servers.iter().enumerate() {
        rules::ip_address(errors, &path.child("nameservers").index(index), text(server));
    }
    let searches = list(&config["searches"]);
    if searches.len() > MAX_SEARCH_DOMAINS {
        let detail = format!("must not have more than {MAX_SEARCH_DOMAINS} search paths");
        errors.invalid(&path.child("searches"), config["searches"].clone(), detail);
    }
    let chars: usize = searches.iter().map(|s| text(s).len() + 1).sum::<usize>().saturating_sub(1);
    if chars > MAX_SEARCH_CHARS {
        let detail = format!(
            "must not have more than {MAX_SEARCH_CHARS} characters (including spaces) in the search list"
        );
        errors.invalid(&path.child("searches"), config["searches"].clone(), detail);
    }
    for (index, search) in searches.iter().enumerate() {
        // A trailing dot means an absolute name, a lone dot the root; underscores occur in service records.
        let name = text(search).trim_end_matches('.').replace('_', "a");
        if text(search) != "." {
            rules::name(errors, &path.child("searches").index(index), &name, names::dns1123_subdomain);
        }
    }
    for (index, option) in list(&config["options"]).iter().enumerate() {
        if is_empty(&option["name"]) {
            errors.required(&path.child("options").index(index), "must not be empty");
        }
    }
}

/// Whether the pod's containers share the network of the node.
pub(super) fn is_host_network(spec: &Value) -> bool {
    is_true(&spec["hostNetwork"])
}

/// Rules of templates beyond those of pods: nothing in them may belong to one single pod.
pub(crate) fn validate_template(errors: &mut Errors, path: &Path, template: &Value) {
    rules::labels(errors, &path.child("metadata").child("labels"), &template["metadata"]["labels"]);
    let spec_path = path.child("spec");
    let spec = &template["spec"];
    if !spec.is_object() {
        return errors.required(&spec_path.child("containers"), "");
    }
    validate(errors, &spec_path, spec);
    if !is_empty(&spec["ephemeralContainers"]) {
        errors.forbidden(
            &spec_path.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        );
    }
}

/// Rules of templates whose pods are replaced when they end.
pub(crate) fn validate_replaced_template(errors: &mut Errors, path: &Path, template: &Value, kind: &str) {
    validate_template(errors, path, template);
    let (path, spec) = (path.child("spec"), &template["spec"]);
    let policy = text(&spec["restartPolicy"]);
    if !matches!(policy, "Always" | "") {
        errors.not_supported(&path.child("restartPolicy"), policy, &["Always"]);
    }
    if int(&spec["activeDeadlineSeconds"]) != 0 {
        let detail = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&path.child("activeDeadlineSeconds"), detail);
    }
}
