//! Aggregation: groups and versions that another server answers (`apiregistration.k8s.io/v1`, `APIService`).
//!
//! A request below `/apis/GROUP/VERSION` that an `APIService` with a service claims is authenticated and authorised here
//! like any other and then passed on as it is, over TLS, with headers that say who is asking. The extension server believes
//! them because of the certificate this server shows, one of the front proxy's authority. Watches and upgraded connections
//! pass through.
//!
//! What this server serves itself is never passed on, whatever an `APIService` says. [`availability`] keeps the condition
//! `Available` and with the same question learns what an extension server serves, so that discovery never waits for one.

mod availability;
mod documents;
mod local;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Request;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use sampan_api::registry::{Group, Registry};
use serde_json::Value;

pub(crate) use local::bootstrap;

use crate::auth::User;
use crate::cache::WatchCache;
use crate::error::ApiError;
use crate::outbound::{Identity, Place, Target, Trust, service_place};
use crate::pki::Pki;
use crate::proxy;
use crate::request::RequestInfo;
use crate::respond::{ApiBody, ApiResponse};
use crate::server::ApiServer;

/// Group of the kind.
const GROUP: &str = "apiregistration.k8s.io";
/// Its resource in the cache.
const RESOURCE: &str = "apiservices.apiregistration.k8s.io";
/// Prefix of the headers that say who is asking; whatever a client sends under it is dropped.
const REMOTE_PREFIX: &str = "x-remote-";
/// How long an extension server may take until its answer begins, as for upstream's other requests.
const PATIENCE: Duration = Duration::from_secs(60);

/// An `APIService`.
#[derive(Debug, PartialEq)]
struct ApiService {
    name: String,
    group: String,
    version: String,
    /// `None`: this server itself.
    place: Option<Place>,
    trust: Result<Trust, String>,
    available: bool,
    group_priority: i64,
    version_priority: i64,
    conditions: Value,
    /// Made here for a version of a custom resource.
    follows_definition: bool,
}

impl ApiService {
    fn read(object: &Value) -> Self {
        let spec = &object["spec"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let conditions = &object["status"]["conditions"];
        let trust = match (spec["insecureSkipTLSVerify"].as_bool(), spec["caBundle"].as_str()) {
            (Some(true), _) => Ok(Trust::Anybody),
            (_, None | Some("")) => Ok(Trust::System),
            (_, Some(bundle)) => Trust::bundle(bundle),
        };
        Self {
            name: text(&object["metadata"]["name"]),
            group: text(&spec["group"]),
            version: text(&spec["version"]),
            place: spec["service"].is_object().then(|| service_place(&spec["service"])),
            trust,
            available: conditions
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Available" && c["status"] == "True"),
            group_priority: spec["groupPriorityMinimum"].as_i64().unwrap_or(0),
            version_priority: spec["versionPriority"].as_i64().unwrap_or(0),
            conditions: conditions.clone(),
            follows_definition: object["metadata"]["labels"][local::MANAGED] == "true",
        }
    }

    /// Where a path of it is.
    fn target(&self, path: &str) -> Result<Target, String> {
        let place = self.place.clone().ok_or("the API service is local")?;
        Ok(Target { place, path: path.to_owned(), trust: self.trust.clone()?, identified: true })
    }
}

/// What an extension server said it serves.
#[derive(Clone, Debug, PartialEq)]
struct Discovered {
    /// In the form of aggregated discovery.
    resources: Value,
    /// It said so the last time it was asked.
    fresh: bool,
}

struct Compiled {
    revision: u64,
    services: Arc<Vec<ApiService>>,
}

/// All API services.
pub(crate) struct Aggregator {
    cache: Arc<WatchCache>,
    compiled: Mutex<Option<Compiled>>,
    discovered: Mutex<HashMap<(String, String), Discovered>>,
}

/// The certificate this server shows to extension servers.
pub(crate) fn identity(pki: &Pki) -> Result<Identity, String> {
    let credentials = pki.front_proxy_client().map_err(|e| format!("no front proxy certificate: {e}"))?;
    Identity::new(&credentials)
}

impl Aggregator {
    pub(crate) fn new(cache: Arc<WatchCache>) -> Self {
        Self { cache, compiled: Mutex::default(), discovered: Mutex::default() }
    }

    fn services(&self) -> Arc<Vec<ApiService>> {
        let resource = self.cache.resource(RESOURCE);
        let revision = resource.revision();
        let mut compiled = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(current) = compiled.as_ref().filter(|c| c.revision == revision) {
            return current.services.clone();
        }
        let items = resource.list(&format!("/{RESOURCE}/"));
        let parsed = items.iter().filter_map(|item| serde_json::from_slice::<Value>(&item.bytes).ok());
        let services: Arc<Vec<ApiService>> = Arc::new(parsed.map(|o| ApiService::read(&o)).collect());
        *compiled = Some(Compiled { revision, services: services.clone() });
        services
    }

    /// Groups and versions that extension servers answer, the preferred first.
    fn claims(&self, registry: &Registry) -> Vec<(String, String)> {
        let services = self.services();
        let remote =
            services.iter().filter(|s| s.place.is_some() && !is_local(registry, &s.group, &s.version));
        documents::in_order(remote)
    }

    /// Groups of this server and of extension servers.
    pub(crate) fn groups(&self, registry: &Registry) -> Vec<Group> {
        documents::with_claims(registry.groups(), self.claims(registry))
    }

    /// Group and version of every claim that is answered now.
    pub(crate) fn answered(&self, registry: &Registry) -> Vec<(String, String)> {
        let services = self.services();
        let mut claims = self.claims(registry);
        claims.retain(|(group, version)| {
            services.iter().any(|s| s.available && s.group == *group && s.version == *version)
        });
        claims
    }

    /// Resources of a claimed version as aggregated discovery shows them, and their freshness.
    pub(crate) fn resources(&self, group: &str, version: &str) -> (Value, &'static str) {
        let discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
        match discovered.get(&(group.to_owned(), version.to_owned())) {
            Some(known) => (known.resources.clone(), if known.fresh { "Current" } else { "Stale" }),
            None => (Value::Array(Vec::new()), "Stale"),
        }
    }

    /// Remembers what an extension server serves; `None`: it does not answer, and what it said last is stale.
    fn learn(&self, service: &ApiService, resources: Option<Value>) {
        let mut discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (service.group.clone(), service.version.clone());
        match (resources, discovered.get_mut(&key)) {
            (Some(resources), _) => {
                discovered.insert(key, Discovered { resources, fresh: true });
            }
            (None, Some(known)) => known.fresh = false,
            (None, None) => {}
        }
    }

    /// Forgets versions nobody claims any more.
    fn forget_others(&self, services: &[ApiService]) {
        let mut discovered = self.discovered.lock().unwrap_or_else(PoisonError::into_inner);
        discovered.retain(|(group, version), _| {
            services.iter().any(|s| s.place.is_some() && s.group == *group && s.version == *version)
        });
    }
}

fn is_local(registry: &Registry, group: &str, version: &str) -> bool {
    group.is_empty() || registry.of_version(group, version).next().is_some()
}

/// Group and version of a path below `/apis/GROUP/VERSION` or of its OpenAPI document.
fn group_version(path: &str) -> Option<(&str, &str)> {
    let path = path.strip_prefix("/openapi/v3").unwrap_or(path);
    let mut segments = path.strip_prefix("/apis/")?.split('/').filter(|s| !s.is_empty());
    Some((segments.next()?, segments.next()?))
}

/// Whether everybody reads a path the same way. The request was authorised by our reading of it.
fn is_unambiguous(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    !["%2f", "%5c", "%25", "\\"].iter().any(|text| path.contains(text))
        && path.split('/').all(|segment| !matches!(segment.replace("%2e", ".").as_str(), "." | ".."))
}

impl ApiServer {
    /// Whether an extension server answers this request.
    pub(crate) fn is_aggregated(&self, info: &RequestInfo) -> bool {
        let Some((group, version)) = group_version(&info.path) else { return false };
        let claims = |s: &ApiService| s.place.is_some() && s.group == group && s.version == version;
        self.aggregator.services().iter().any(claims) && !is_local(&self.registry(), group, version)
    }

    /// Passes a request on to the extension server that claims it.
    pub(crate) async fn aggregate(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        user: &User,
    ) -> Result<ApiResponse, ApiError> {
        let services = self.aggregator.services();
        let service = group_version(&info.path).and_then(|(group, version)| {
            services.iter().find(|s| s.place.is_some() && s.group == group && s.version == version)
        });
        let Some(service) = service else { return Err(ApiError::no_such_path()) };
        if !is_unambiguous(request.uri().path()) {
            return Err(ApiError::bad_request("the path must not have encoded slashes or dot segments"));
        }
        if !service.available {
            return Err(ApiError::unavailable("service unavailable"));
        }
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let target = service.target(&path).map_err(|why| {
            tracing::warn!(service = service.name, why, "an API service that cannot be reached");
            ApiError::unavailable("service unavailable")
        })?;
        let (mut request, client_side) = proxy::pass_on(request, &target.path)?;
        introduce(request.headers_mut(), user)?;
        let unreachable =
            |why: String| ApiError::unavailable(format!("error trying to reach service: {why}"));
        match tokio::time::timeout(PATIENCE, self.outbound.send(&target, request)).await {
            Ok(Ok(response)) => proxy::pass_back(response, client_side),
            Ok(Err(error)) => Err(unreachable(error.to_string())),
            Err(_) => Err(unreachable("context deadline exceeded".to_owned())),
        }
    }
}

/// Says who is asking, in the headers of an authenticating proxy.
fn introduce(headers: &mut HeaderMap, user: &User) -> Result<(), ApiError> {
    let claimed: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with(REMOTE_PREFIX)).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let mut add = |name: &str, value: &str| -> Result<(), ApiError> {
        let bad = || ApiError::bad_request(format!("{value:?} cannot be passed on in a header"));
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        headers.append(name, HeaderValue::from_bytes(value.as_bytes()).map_err(|_| bad())?);
        Ok(())
    };
    add("x-remote-user", &user.name)?;
    if !user.uid.is_empty() {
        add("x-remote-uid", &user.uid)?;
    }
    for group in &user.groups {
        add("x-remote-group", group)?;
    }
    for (key, values) in &user.extra {
        for value in values {
            add(&format!("x-remote-extra-{}", escaped(key)), value)?;
        }
    }
    Ok(())
}

/// A key as it may stand in the name of a header; everything else, and `%`, is percent-encoded.
fn escaped(key: &str) -> String {
    let mut out = String::with_capacity(key.len());
    for byte in key.bytes() {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => out.push(char::from(byte)),
            b'!' | b'#' | b'$' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|'
            | b'~' => {
                out.push(char::from(byte));
            }
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn paths_name_a_group_and_version() {
        for (path, expected) in [
            ("/apis/a.b/v1", Some(("a.b", "v1"))),
            ("/apis/a.b/v1/namespaces/n/things", Some(("a.b", "v1"))),
            ("/openapi/v3/apis/a.b/v1", Some(("a.b", "v1"))),
            ("/apis/a.b", None),
            ("/apis", None),
            ("/api/v1/pods", None),
            ("/apisx/a/b", None),
        ] {
            assert_eq!(group_version(path), expected, "{path}");
        }
    }

    #[test]
    fn paths_are_read_one_way() {
        for (path, expected) in [
            ("/apis/a.b/v1/namespaces/n/things/x.y", true),
            ("/apis/a.b/v1/things/a%20b", true),
            ("/apis/a.b%2Fv1/things", false),
            ("/apis/a.b/v1/namespaces/n/../m/things", false),
            ("/apis/a.b/v1/namespaces/n/%2E./m/things", false),
            ("/apis/a.b/v1/things/%252f", false),
        ] {
            assert_eq!(is_unambiguous(path), expected, "{path}");
        }
    }

    #[test]
    fn nobody_introduces_themselves() {
        let mut headers = HeaderMap::new();
        for name in ["x-remote-user", "x-remote-group", "x-remote-extra-a", "accept"] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("forged"));
        }
        let mut user = User::known("bob", &["g"]);
        user.uid = "7".to_owned();
        user.extra = vec![("a.io/b%c".to_owned(), vec!["1".to_owned(), "2".to_owned()])];
        introduce(&mut headers, &user).expect("introduced");
        let all = |name: &str| -> Vec<&str> {
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
        };
        assert_eq!(all("x-remote-user"), ["bob"]);
        assert_eq!(all("x-remote-uid"), ["7"]);
        assert_eq!(all("x-remote-group"), ["g", "system:authenticated"]);
        assert_eq!(all("x-remote-extra-a.io%2fb%25c"), ["1", "2"]);
        assert_eq!((all("x-remote-extra-a").len(), all("accept")), (0, vec!["forged"]));
        user.name = "a\nb".to_owned();
        assert!(introduce(&mut headers, &user).is_err());
    }

    #[test]
    fn services_are_read() {
        let object = json!({
            "metadata": {"name": "v1.g"},
            "spec": {"group": "g", "version": "v1", "service": {"namespace": "n", "name": "s"}, "groupPriorityMinimum": 5},
            "status": {"conditions": [{"type": "Available", "status": "True"}]},
        });
        let service = ApiService::read(&object);
        assert!(service.available && service.trust == Ok(Trust::System));
        let place = Place::Service { namespace: "n".to_owned(), name: "s".to_owned(), port: 443 };
        assert_eq!(service.place, Some(place));
        assert_eq!(ApiService::read(&json!({"spec": {"service": null}})).place, None);
        let anybody = json!({"spec": {"insecureSkipTLSVerify": true}});
        assert_eq!(ApiService::read(&anybody).trust, Ok(Trust::Anybody));
        assert!(ApiService::read(&json!({"spec": {"caBundle": "!"}})).trust.is_err());
    }
}
