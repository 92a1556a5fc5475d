//! The condition `Available` of every `APIService`: whether its service exists, has endpoints and answers discovery.
//!
//! The same task keeps the `APIService`s of custom resources. Reasons and words are those of upstream's `available_controller.go`. One task looks at all services again when an
//! `APIService`, a service, an endpoint slice or what is served has changed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream;
use http::header::{HeaderMap, HeaderValue};
use jiff::Timestamp;
use sampan_api::decode::{self, Strictness};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{ApiService, GROUP, RESOURCE, documents, introduce, local};
use crate::auth::{MASTERS, User};
use crate::books::seconds;
use crate::outbound::{NoRoute, Place};
use crate::server::ApiServer;
use crate::view::View;
use crate::write::{Change, WriteCall};

/// Nothing tells when an extension server stops or begins to answer, so it is asked this often while there is one.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// Endpoints change in bursts; one look after a while sees all of it.
const BURST: Duration = Duration::from_millis(500);
/// Patience with one answer, as upstream's.
const PATIENCE: Duration = Duration::from_secs(5);
/// Servers asked at once.
const MAX_AT_ONCE: usize = 8;

/// What is true of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    available: bool,
    reason: &'static str,
    message: String,
}

impl Finding {
    fn bad(reason: &'static str, message: impl Into<String>) -> Self {
        Self { available: false, reason, message: message.into() }
    }

    fn local() -> Self {
        let message = "Local APIServices are always available".to_owned();
        Self { available: true, reason: "Local", message }
    }

    fn passed() -> Self {
        Self { available: true, reason: "Passed", message: "all checks passed".to_owned() }
    }

    fn no_route(why: &NoRoute) -> Self {
        Self::bad(why.reason(), why.to_string())
    }
}

/// The conditions with the finding in them; `None` if they say so already.
fn with_finding(conditions: &Value, finding: &Finding, now: Timestamp) -> Option<Value> {
    let mut conditions = conditions.as_array().cloned().unwrap_or_default();
    let status = if finding.available { "True" } else { "False" };
    let before = conditions.iter().position(|c| c["type"] == "Available");
    let mut since = seconds(now);
    if let Some(place) = before {
        let before = conditions.remove(place);
        if before["status"] == status {
            if before["reason"] == finding.reason && before["message"] == finding.message.as_str() {
                return None;
            }
            since = before["lastTransitionTime"].as_str().map_or(since, str::to_owned);
        }
    }
    conditions.push(json!({
        "type": "Available",
        "status": status,
        "reason": finding.reason,
        "message": finding.message,
        "lastTransitionTime": since,
    }));
    Some(Value::Array(conditions))
}

/// Keeps the conditions as long as the server lives.
pub(super) async fn keep(server: Weak<ApiServer>) {
    let Some(strong) = server.upgrade() else { return };
    let (cache, mut registry) = (strong.cache.clone(), strong.registry_changed.subscribe());
    drop(strong);
    let mut own = cache.resource(RESOURCE).subscribe();
    let mut services = cache.resource("services").subscribe();
    let mut slices = cache.resource("endpointslices.discovery.k8s.io").subscribe();
    drop(cache);
    loop {
        let Some(server) = server.upgrade() else { return };
        for receiver in [&mut own, &mut services, &mut slices, &mut registry] {
            receiver.borrow_and_update();
        }
        if let Err(error) = local::register(&server).await {
            tracing::warn!(%error, "cannot register the versions of custom resources");
        }
        let remote = look(&server).await;
        drop(server);
        tokio::time::sleep(BURST).await;
        if !wait(remote, [&mut own, &mut registry], [&mut services, &mut slices]).await {
            return;
        }
    }
}

/// Waits until there is something to look at. Services and slices matter only while an `APIService` names one.
async fn wait(
    remote: bool,
    [own, registry]: [&mut watch::Receiver<u64>; 2],
    [services, slices]: [&mut watch::Receiver<u64>; 2],
) -> bool {
    tokio::select! {
        changed = own.changed() => changed.is_ok(),
        changed = registry.changed() => changed.is_ok(),
        changed = services.changed(), if remote => changed.is_ok(),
        changed = slices.changed(), if remote => changed.is_ok(),
        () = tokio::time::sleep(ASK_EVERY), if remote => true,
    }
}

/// Looks at every service. Whether any of them is not this server itself.
async fn look(server: &Arc<ApiServer>) -> bool {
    let services = server.aggregator.services();
    server.aggregator.forget_others(&services);
    let mut checks: Vec<BoxFuture<'_, ()>> = Vec::new();
    for service in services.iter() {
        checks.push(Box::pin(check(server, service)));
    }
    stream::iter(checks).buffer_unordered(MAX_AT_ONCE).collect::<Vec<()>>().await;
    services.iter().any(|service| service.place.is_some())
}

async fn check(server: &ApiServer, service: &ApiService) {
    let finding = match find(server, service).await {
        Ok(resources) => {
            if let Some(resources) = resources {
                server.aggregator.learn(service, Some(resources));
                Finding::passed()
            } else {
                Finding::local()
            }
        }
        Err(finding) => {
            server.aggregator.learn(service, None);
            finding
        }
    };
    let Some(conditions) = with_finding(&service.conditions, &finding, Timestamp::now()) else { return };
    let Some(kind) = server.registry().find_resource(GROUP, "apiservices").cloned() else { return };
    let user = User::known("system:apiserver", &[MASTERS]);
    let call = WriteCall::internal(&kind, "", &service.name, View::Status, &user);
    let patch = Change::Merge(json!({"status": {"conditions": conditions}}));
    if let Err(error) = server.change(&call, &patch, &Strictness::default()).await {
        // Gone meanwhile, or the store is in trouble; the next look sees.
        tracing::debug!(service = service.name, %error, "cannot write the condition of an API service");
    }
}

/// What an extension server serves; `None` for this server itself.
async fn find(server: &ApiServer, service: &ApiService) -> Result<Option<Value>, Finding> {
    let Some(Place::Service { namespace, name, port }) = &service.place else { return Ok(None) };
    server.outbound.route(namespace, name, *port).map_err(|why| Finding::no_route(&why))?;
    let path = format!("/apis/{}/{}", service.group, service.version);
    let failed = |url: &str, why: &str| {
        Finding::bad("FailedDiscoveryCheck", format!("failing or missing response from {url}: {why}"))
    };
    let target = service.target(&path).map_err(|why| failed(&path, &why))?;
    let url = target.url();
    let mut headers = HeaderMap::new();
    headers.insert(http::header::ACCEPT, HeaderValue::from_static("application/json"));
    let user = User::known("system:kube-aggregator", &[MASTERS]);
    introduce(&mut headers, &user).map_err(|e| failed(&url, &e.message))?;
    let answer = server.outbound.get(&target, headers, PATIENCE).await;
    let answer = answer.map_err(|e| failed(&url, &e.to_string()))?;
    if !answer.status.is_success() {
        return Err(failed(&url, &format!("bad status from {url}: {}", answer.status.as_u16())));
    }
    let list = decode::parse_json(&answer.body, &mut Strictness::default())
        .map_err(|e| failed(&url, &format!("the answer is no list of resources: {e}")))?;
    Ok(Some(documents::aggregated(&list, &service.group, &service.version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions() {
        let now = Timestamp::from_second(100).expect("a time");
        let first = with_finding(&Value::Null, &Finding::passed(), now).expect("new");
        let expected = json!([{
            "type": "Available", "status": "True", "reason": "Passed", "message": "all checks passed",
            "lastTransitionTime": "1970-01-01T00:01:40Z",
        }]);
        assert_eq!(first, expected);
        let later = Timestamp::from_second(200).expect("a time");
        assert_eq!(with_finding(&first, &Finding::passed(), later), None);
        // The time is that of the last change of the status, not of the reason.
        let local = with_finding(&first, &Finding::local(), later).expect("another reason");
        assert_eq!(local[0]["lastTransitionTime"], "1970-01-01T00:01:40Z");
        let lost = with_finding(&first, &Finding::bad("ServiceNotFound", "gone"), later).expect("lost");
        assert_eq!(
            (lost[0]["status"].as_str(), lost[0]["lastTransitionTime"].as_str()),
            (Some("False"), Some("1970-01-01T00:03:20Z"))
        );
        let other = json!([{"type": "Other", "status": "True"}]);
        let both = with_finding(&other, &Finding::local(), now).expect("new");
        assert_eq!(both.as_array().map(Vec::len), Some(2));
    }
}
