//! What the server writes down for aggregation at its start: an `APIService` for each version it serves itself, and for
//! extension servers how to recognise it and its users.

use std::sync::Arc;

use sampan_api::decode::Strictness;
use sampan_api::registry::Registry;
use serde_json::{Value, json};

use super::{GROUP, availability};
use crate::auth::{MASTERS, User};
use crate::bootstrap::{AUTHENTICATION, create};
use crate::delete::DeleteOptions;
use crate::pki::{FRONT_PROXY_CLIENT, Pki};
use crate::server::{ApiServer, StartError};
use crate::view::View;
use crate::write::{Change, WriteCall};

/// Importance of groups and of their `v1`, as upstream's autoregistration has them; others come after.
const PRIORITIES: &[(&str, i64, i64)] = &[
    ("", 18_000, 1),
    ("apps", 17_800, 15),
    ("events.k8s.io", 17_750, 5),
    ("authentication.k8s.io", 17_700, 15),
    ("authorization.k8s.io", 17_600, 15),
    ("autoscaling", 17_500, 15),
    ("batch", 17_400, 15),
    ("certificates.k8s.io", 17_300, 15),
    ("networking.k8s.io", 17_200, 15),
    ("policy", 17_100, 15),
    ("rbac.authorization.k8s.io", 17_000, 15),
    ("storage.k8s.io", 16_800, 15),
    ("apiextensions.k8s.io", 16_700, 15),
    ("admissionregistration.k8s.io", 16_700, 15),
    ("scheduling.k8s.io", 16_600, 15),
    ("coordination.k8s.io", 16_500, 15),
    ("node.k8s.io", 16_300, 15),
    ("discovery.k8s.io", 16_200, 15),
    ("flowcontrol.apiserver.k8s.io", 16_100, 21),
    ("resource.k8s.io", 15_900, 9),
];
/// Importance of a group the table does not know: that of a custom resource's.
const OTHER: (i64, i64) = (1000, 100);

/// Label of what is registered here: `onstart` for built-in versions, `true` for those of custom resources, which go when
/// their definitions do.
pub(super) const MANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// The `APIService` of a version this server serves. Its own group has none, as upstream.
fn local_service(group: &str, version: &str, built_in: bool) -> Option<Value> {
    if group == GROUP {
        return None;
    }
    let known = PRIORITIES.iter().find(|(name, ..)| *name == group);
    let (of_group, of_version) = known.map_or(OTHER, |(_, of_group, of_version)| (*of_group, *of_version));
    // `v2` of a group is preferred to its `v1`.
    let of_version = if version == "v2" { of_version * 2 } else { of_version };
    Some(json!({
        "metadata": {
            "name": format!("{version}.{group}"),
            "labels": {MANAGED: if built_in { "onstart" } else { "true" }},
        },
        "spec": {
            "group": group,
            "version": version,
            "groupPriorityMinimum": of_group,
            "versionPriority": of_version,
        },
    }))
}

/// Writes all of it and begins to keep the conditions.
pub(crate) async fn bootstrap(server: &Arc<ApiServer>, pki: &Pki) -> Result<(), StartError> {
    publish_authorities(server, pki).await?;
    register(server).await?;
    tokio::spawn(availability::keep(Arc::downgrade(server)));
    Ok(())
}

/// Makes an `APIService` for each version that is served, and removes those of custom resources that are not any more.
pub(super) async fn register(server: &Arc<ApiServer>) -> Result<(), StartError> {
    let (registry, built_in) = (server.registry(), Registry::built_in());
    let Some(kind) = registry.find_resource(GROUP, "apiservices").cloned() else { return Ok(()) };
    for group in registry.groups() {
        for version in &group.versions {
            let is_built_in = built_in.of_version(&group.name, version).next().is_some();
            if let Some(service) = local_service(&group.name, version, is_built_in) {
                create(server, GROUP, "apiservices", "", service).await?;
            }
        }
    }
    let user = User::known("system:apiserver", &[MASTERS]);
    for service in server.aggregator.services().iter() {
        let served = registry.of_version(&service.group, &service.version).next().is_some();
        if service.follows_definition && !served {
            let call = WriteCall::internal(&kind, "", &service.name, View::Object, &user);
            if let Err(error) = server.delete(&call, &DeleteOptions::default()).await {
                tracing::debug!(service = service.name, %error, "cannot remove an API service");
            }
        }
    }
    Ok(())
}

/// The config map by which extension servers know whom to believe; the authorities are those of this start.
async fn publish_authorities(server: &Arc<ApiServer>, pki: &Pki) -> Result<(), StartError> {
    let list = |text: &str| json!([text]).to_string();
    let data = json!({
        "client-ca-file": pki.ca_pem(),
        "requestheader-client-ca-file": pki.front_proxy_ca_pem(),
        "requestheader-allowed-names": list(FRONT_PROXY_CLIENT),
        "requestheader-username-headers": list("X-Remote-User"),
        "requestheader-uid-headers": list("X-Remote-Uid"),
        "requestheader-group-headers": list("X-Remote-Group"),
        "requestheader-extra-headers-prefix": list("X-Remote-Extra-"),
    });
    let map = json!({"metadata": {"name": AUTHENTICATION}, "data": data});
    if create(server, "", "configmaps", "kube-system", map).await? {
        return Ok(());
    }
    let kind = server.registry().find_resource("", "configmaps").cloned();
    let kind =
        kind.ok_or_else(|| StartError::Config("there is no kind configmaps in the table".to_owned()))?;
    let user = User::known("system:apiserver", &[MASTERS]);
    let call = WriteCall::internal(&kind, "kube-system", AUTHENTICATION, View::Object, &user);
    let patch = Change::Merge(json!({"data": data}));
    let written = server.change(&call, &patch, &Strictness::default()).await;
    written.map(|_| ()).map_err(|e| StartError::Bootstrap(format!("config map {AUTHENTICATION}"), e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn local_services() {
        for (group, version, name, of_group, of_version) in [
            ("", "v1", "v1.", 18_000, 1),
            ("apps", "v1", "v1.apps", 17_800, 15),
            ("autoscaling", "v2", "v2.autoscaling", 17_500, 30),
            ("example.com", "v1", "v1.example.com", 1000, 100),
        ] {
            let service = local_service(group, version, true).expect("a service");
            let spec = &service["spec"];
            assert_eq!(service["metadata"]["name"], name);
            assert_eq!(
                (&spec["groupPriorityMinimum"], &spec["versionPriority"]),
                (&json!(of_group), &json!(of_version))
            );
            assert!(spec.get("service").is_none());
        }
        assert_eq!(local_service(GROUP, "v1", true), None);
    }
}
