//! What this server serves: versions, groups and resources, computed from the table of kinds.
//!
//! Both forms exist: one document per group and version, and the aggregated form (KEP-3352) that kubectl asks for first.

use http::StatusCode;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderValue};
use sampan_api::kind::Subresource;
use sampan_api::registry::{Group, Kind, Registry};
use sampan_api::schema;
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::respond::{self, ApiResponse};
use crate::server::ApiServer;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `/version`.
pub(crate) fn version(build: &str) -> Value {
    let version = schema::version();
    let mut parts = version.trim_start_matches('v').split('.');
    json!({
        "major": parts.next(),
        "minor": parts.next(),
        "gitVersion": format!("{version}+sampan"),
        "gitCommit": build,
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", match std::env::consts::ARCH { "x86_64" => "amd64", "aarch64" => "arm64", other => other }),
    })
}

/// Answers the remaining addresses.
pub(crate) fn answer(
    server: &ApiServer,
    segments: &[&str],
    headers: &HeaderMap,
) -> Result<ApiResponse, ApiError> {
    let registry = &*server.registry();
    let aggregated = headers.get(ACCEPT).and_then(|v| v.to_str().ok()).is_some_and(|accept| {
        accept
            .split(',')
            .any(|range| range.replace(' ', "").starts_with("application/json;g=apidiscovery.k8s.io;v=v2;"))
    });
    let document = match segments {
        [] => json!({"paths": paths(&server.aggregator.groups(registry))}),
        ["api"] if aggregated => return Ok(aggregated_answer(server, headers, |group| group.is_empty())),
        ["apis"] if aggregated => return Ok(aggregated_answer(server, headers, |group| !group.is_empty())),
        ["api"] => {
            let (address, port) = server.config.advertise;
            json!({
                "kind": "APIVersions",
                "versions": ["v1"],
                "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": format!("{address}:{port}")}],
            })
        }
        ["apis"] => {
            let groups: Vec<Value> = server
                .aggregator
                .groups(registry)
                .iter()
                .filter(|g| !g.name.is_empty())
                .map(|g| group_document(g, false))
                .collect();
            json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["apis", group] => {
            let groups = server.aggregator.groups(registry);
            let group = groups.iter().find(|g| g.name == *group).ok_or_else(ApiError::no_such_path)?;
            group_document(group, true)
        }
        ["api", version] => resources(registry, "", version)?,
        ["apis", group, version] => resources(registry, group, version)?,
        _ => return Err(ApiError::no_such_path()),
    };
    Ok(respond::json_value(StatusCode::OK, &document))
}

fn paths(groups: &[Group]) -> Vec<String> {
    let mut paths: Vec<String> = [
        "/api",
        "/api/v1",
        "/apis",
        "/healthz",
        "/livez",
        "/metrics",
        "/metrics/slis",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ]
    .iter()
    .map(|p| (*p).to_owned())
    .collect();
    for group in groups.iter().filter(|g| !g.name.is_empty()) {
        paths.push(format!("/apis/{}", group.name));
        paths.extend(group.versions.iter().map(|v| format!("/apis/{}/{v}", group.name)));
    }
    paths.sort();
    paths
}

fn group_document(group: &Group, alone: bool) -> Value {
    let version = |v: &str| json!({"groupVersion": format!("{}/{v}", group.name), "version": v});
    let versions: Vec<Value> = group.versions.iter().map(|v| version(v)).collect();
    let mut document =
        json!({"name": group.name, "versions": versions, "preferredVersion": versions.first()});
    if alone {
        document["kind"] = "APIGroup".into();
        document["apiVersion"] = "v1".into();
    }
    document
}

/// Verbs of a subresource and the kind of its document: group, version, kind.
pub(crate) fn subresource_facts(
    kind: &Kind,
    subresource: Subresource,
) -> (&'static [&'static str], (String, String, String)) {
    let own = || (kind.group.to_string(), kind.version.to_string(), kind.kind.to_string());
    let core = |name: &str| (String::new(), "v1".to_owned(), name.to_owned());
    match subresource {
        Subresource::Status
        | Subresource::Resize
        | Subresource::EphemeralContainers
        | Subresource::Approval => (&["get", "patch", "update"], own()),
        Subresource::Scale => {
            (&["get", "patch", "update"], ("autoscaling".into(), "v1".into(), "Scale".into()))
        }
        Subresource::Finalize => (&["update"], own()),
        Subresource::Binding => (&["create"], core("Binding")),
        Subresource::Eviction => (&["create"], ("policy".into(), "v1".into(), "Eviction".into())),
        Subresource::Token => {
            (&["create"], ("authentication.k8s.io".into(), "v1".into(), "TokenRequest".into()))
        }
        Subresource::Log => (&["get"], own()),
        Subresource::Exec => (&["create", "get"], core("PodExecOptions")),
        Subresource::Attach => (&["create", "get"], core("PodAttachOptions")),
        Subresource::PortForward => (&["create", "get"], core("PodPortForwardOptions")),
        Subresource::Proxy => {
            let name = match &*kind.plural {
                "nodes" => "NodeProxyOptions",
                "services" => "ServiceProxyOptions",
                _ => "PodProxyOptions",
            };
            (&["create", "delete", "get", "patch", "update"], core(name))
        }
    }
}

fn resources(registry: &Registry, group: &str, version: &str) -> Result<Value, ApiError> {
    let mut list: Vec<Value> = Vec::new();
    for kind in registry.of_version(group, version) {
        let mut entry = json!({
            "name": kind.plural,
            "singularName": kind.singular,
            "namespaced": kind.namespaced(),
            "kind": kind.kind,
            "verbs": kind.verbs(),
        });
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        list.push(entry);
        for subresource in &kind.subresources {
            let (verbs, (sub_group, sub_version, sub_kind)) = subresource_facts(kind, *subresource);
            let mut entry = json!({
                "name": format!("{}/{}", kind.plural, subresource.as_str()),
                "singularName": "",
                "namespaced": kind.namespaced(),
                "kind": sub_kind,
                "verbs": verbs,
            });
            if (&sub_group, &sub_version) != (&kind.group.to_string(), &kind.version.to_string()) {
                entry["group"] = sub_group.into();
                entry["version"] = sub_version.into();
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return Err(ApiError::no_such_path());
    }
    list.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    Ok(
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list}),
    )
}

fn aggregated_answer(server: &ApiServer, headers: &HeaderMap, wanted: impl Fn(&str) -> bool) -> ApiResponse {
    let registry = &*server.registry();
    let items: Vec<Value> = server
        .aggregator
        .groups(registry)
        .iter()
        .filter(|group| wanted(&group.name))
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| {
                    let own: Vec<Value> =
                        registry.of_version(&group.name, version).map(|k| aggregated_resource(k)).collect();
                    let (resources, freshness) = if own.is_empty() {
                        server.aggregator.resources(&group.name, version)
                    } else {
                        (own.into(), "Current")
                    };
                    json!({"version": version, "freshness": freshness, "resources": resources})
                })
                .collect();
            json!({"metadata": {"name": group.name, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let document = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let bytes = document.to_string();
    let hash = respond::hash(bytes.as_bytes());
    respond::unless_known(headers, &hash, || {
        let mut response = respond::json_bytes(StatusCode::OK, bytes);
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
        response
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|s| {
            let (verbs, (group, version, sub_kind)) = subresource_facts(kind, *s);
            json!({
                "subresource": s.as_str(),
                "responseKind": {"group": group, "version": version, "kind": sub_kind},
                "verbs": verbs,
            })
        })
        .collect();
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced() { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs(),
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    if !subresources.is_empty() {
        resource["subresources"] = json!(subresources);
    }
    resource
}
