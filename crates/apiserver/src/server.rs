//! The API server: a stack of layers over one question, "what does this request come to?".
//!
//! In order: identify the request, authenticate, bound the work in flight, authorise, then route to discovery, an object
//! verb or a subresource. Nothing here knows a kind by name but the few subresources that only one kind has.

use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use sampan_api::decode::{self, Strictness};
use sampan_api::kind::Subresource;
use sampan_api::protobuf;
use sampan_api::registry::{Kind, Registry};
use sampan_store::{Store, StoreError};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::admission::Allocator;
use crate::audit::{Audit, Record};
use crate::auth::authenticate::{Authentication, Authenticators};
use crate::auth::certificates::PeerCertificate;
use crate::auth::node::NodeAuthorizer;
use crate::auth::rbac::Rbac;
use crate::auth::tokens::Tokens;
use crate::auth::{MASTERS, User};
use crate::cache::WatchCache;
use crate::delete::DeleteOptions;
use crate::error::ApiError;
use crate::proxy::NodeConnector;
use crate::request::{RequestInfo, ResourcePath};
use crate::respond::{self, ApiBody, ApiResponse, Include, Projection};
use crate::view::View;
use crate::write::{Change, WriteCall, Written};
use crate::{discovery, openapi};

/// Larger request bodies are refused, as upstream does.
const MAX_BODY: usize = 3 * 1024 * 1024;
/// Bytes beyond the limit that are read before the connection is cut.
const MAX_DISCARDED: usize = 16 * 1024 * 1024;
/// Requests worked on at once, watches and streams not counted: upstream's defaults are 400 reads and 200 writes.
const MAX_IN_FLIGHT: usize = 600;
/// Type of a delete's body.
const DELETE_OPTIONS: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.DeleteOptions";

/// What a server needs to know of its cluster.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `10.43.0.0/16`.
    pub service_cidr: String,
    /// Address and port under which the API is reached from pods.
    pub advertise: (Ipv4Addr, u16),
    /// `cluster.local`.
    pub cluster_domain: String,
    /// Version of this program, shown beside the Kubernetes version.
    pub build: String,
}

/// Who may come in, and what is written down about it. The default is what every cluster has: the cluster's own
/// certificates and tokens, and no log.
#[derive(Default)]
pub struct Access {
    /// Further ways of showing who one is.
    pub authentication: Authentication,
    /// The audit log.
    pub audit: Option<Arc<Audit>>,
}

/// The API server.
pub struct ApiServer {
    pub(crate) registry: Registry,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<WatchCache>,
    pub(crate) rbac: Rbac,
    pub(crate) node_authorizer: NodeAuthorizer,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) authenticators: Authenticators,
    audit: Option<Arc<Audit>>,
    pub(crate) allocator: Arc<Allocator>,
    pub(crate) config: ServerConfig,
    pub(crate) nodes: OnceLock<Arc<dyn NodeConnector>>,
    in_flight: Semaphore,
}

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store does not answer.
    #[error("cannot read the store")]
    Store(#[from] StoreError),
    /// The configuration is not usable.
    #[error("{0}")]
    Config(String),
    /// The first objects cannot be made.
    #[error("cannot create {0}")]
    Bootstrap(String, #[source] ApiError),
}

impl ApiServer {
    /// Reads the store and creates what every cluster has. Service account tokens are signed with a key of `pki`.
    pub async fn start(
        store: Arc<dyn Store>,
        config: ServerConfig,
        pki: &crate::pki::Pki,
    ) -> Result<Arc<Self>, StartError> {
        Self::start_with(store, config, pki, Access::default()).await
    }

    /// As [`ApiServer::start`], with what the operator says about access.
    pub async fn start_with(
        store: Arc<dyn Store>,
        config: ServerConfig,
        pki: &crate::pki::Pki,
        access: Access,
    ) -> Result<Arc<Self>, StartError> {
        let range = crate::admission::AddressRange::parse(&config.service_cidr).ok_or_else(|| {
            StartError::Config(format!("{} is no range of service addresses", config.service_cidr))
        })?;
        let cache = WatchCache::start(store.clone()).await?;
        let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
        let tokens = Tokens::new(&pki.token_key, &issuer, cache.clone()).map_err(StartError::Config)?;
        let tokens = Arc::new(tokens);
        let authenticators = Authenticators::new(access.authentication, pki, tokens.clone(), cache.clone())
            .map_err(StartError::Config)?;
        let server = Arc::new(Self {
            registry: Registry::built_in(),
            rbac: Rbac::new(cache.clone()),
            node_authorizer: NodeAuthorizer::new(cache.clone(), crate::bootstrap::node_rules()),
            tokens,
            authenticators,
            audit: access.audit,
            allocator: Allocator::new(range),
            cache,
            store,
            config,
            nodes: OnceLock::new(),
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
        });
        for item in server.cache.resource("services").list("/services/") {
            if let Ok(service) = serde_json::from_slice(&item.bytes) {
                server.allocator.adopt(&service);
            }
        }
        crate::bootstrap::run(&server, range.nth(1)).await?;
        Ok(server)
    }

    /// How nodes are reached for logs, exec and the like. Set once, when the first node exists.
    pub fn set_node_connector(&self, connector: Arc<dyn NodeConnector>) {
        // A second connector would be a mistake of the assembling program; the first one stays.
        let _ = self.nodes.set(connector);
    }

    /// Called after an object has left the store.
    pub(crate) fn deleted(&self, kind: &Kind, object: &Value) {
        if kind.group.is_empty() && kind.plural == "services" {
            self.allocator.release(object);
        }
    }

    /// Answers a request. `peer` is what the transport knows of the sender, for instance by a client certificate.
    pub async fn handle(self: Arc<Self>, request: Request<ApiBody>, peer: Option<User>) -> ApiResponse {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let answer = self.answer(request, peer);
        let result = if reads {
            answer.await
        } else {
            // A write does not end half-way because its client went away: what it holds belongs to what it stores. A
            // defect in one write is also no more than the failure of that write.
            let task = tokio::spawn(answer);
            task.await.unwrap_or_else(|e| Err(ApiError::internal(format!("the request failed: {e}"))))
        };
        result.unwrap_or_else(|error| respond::error(&error))
    }

    /// Finds out who sends the request, and writes down what becomes of it.
    async fn answer(
        self: Arc<Self>,
        request: Request<ApiBody>,
        peer: Option<User>,
    ) -> Result<ApiResponse, ApiError> {
        let info = RequestInfo::parse(request.method(), request.uri());
        let certificate = request.extensions().get::<Arc<PeerCertificate>>().cloned();
        let sender = self.authenticate(request.headers(), certificate.as_deref(), &info, peer).await;
        let acting = sender.clone().and_then(|sender| self.impersonate(request.headers(), sender));
        let Some(audit) = &self.audit else {
            let (user, _) = acting?;
            return self.admit(request, &info, &user, &mut None).await;
        };
        let sender = sender.unwrap_or_else(|_| User::unknown());
        let other = acting.as_ref().ok().filter(|(_, impersonated)| *impersonated).map(|(user, _)| user);
        let mut record = audit.received(&request, &info, &sender, other);
        let result = match &acting {
            Ok((user, _)) => self.admit(request, &info, user, &mut record).await,
            Err(error) => Err(error.clone()),
        };
        match record {
            Some(record) => Ok(record.answered(&info, result).await),
            None => result,
        }
    }

    /// Who sends a request. A transport of the same process knows its user; others bring evidence.
    async fn authenticate(
        &self,
        headers: &HeaderMap,
        certificate: Option<&PeerCertificate>,
        info: &RequestInfo,
        peer: Option<User>,
    ) -> Result<User, ApiError> {
        if let Some(user) = peer {
            return Ok(user);
        }
        let now = jiff::Timestamp::now().as_second();
        self.authenticators.request(headers, certificate, &info.path, now).await
    }

    /// Lets a request of a known user in, if the user may and there is room.
    async fn admit(
        &self,
        mut request: Request<ApiBody>,
        info: &RequestInfo,
        user: &User,
        record: &mut Option<Record>,
    ) -> Result<ApiResponse, ApiError> {
        let authorized = self.authorize(user, info);
        if let Some(record) = record {
            let reason = authorized.as_deref().unwrap_or_default();
            record.annotate(
                "authorization.k8s.io/decision",
                if authorized.is_ok() { "allow" } else { "forbid" },
            );
            record.annotate("authorization.k8s.io/reason", reason);
        }
        authorized?;
        let _permit = if is_long_running(info) || is_platform(user) {
            None
        } else {
            Some(self.in_flight.try_acquire().map_err(|_| ApiError::too_many_requests())?)
        };
        if let Some(record) = record {
            request = record.with_body(request, info).await?;
        }
        match &info.resource {
            Some(path) => {
                // Boxed: the compiler cannot prove the whole future `Send` for every lifetime otherwise, and one
                // allocation keeps the connection's own future small.
                let answer: BoxFuture<'_, _> = Box::pin(self.resource(request, info, path, user));
                answer.await
            }
            None => self.plain(request.method(), request.headers(), info),
        }
    }

    /// Addresses that are no resources.
    fn plain(
        &self,
        method: &Method,
        headers: &HeaderMap,
        info: &RequestInfo,
    ) -> Result<ApiResponse, ApiError> {
        if ![Method::GET, Method::HEAD].contains(method) {
            return Err(ApiError::method_not_allowed());
        }
        let segments: Vec<&str> = info.path.split('/').filter(|s| !s.is_empty()).collect();
        match segments.as_slice() {
            ["healthz" | "livez" | "readyz", ..] => Ok(discovery::health(&info.query)),
            ["version"] => Ok(respond::json_value(StatusCode::OK, &discovery::version(&self.config.build))),
            [".well-known", "openid-configuration"] => {
                Ok(respond::json_value(StatusCode::OK, &self.tokens.discovery()))
            }
            ["openid", "v1", "jwks"] => {
                let keys = self.tokens.keys().to_string();
                Ok(respond::bytes_of("application/jwk-set+json", keys.into_bytes()))
            }
            ["metrics"] => Ok(respond::text(StatusCode::OK, self.metrics())),
            ["openapi", "v2"] => Ok(openapi::v2(&self.registry, headers)),
            ["openapi", "v3", rest @ ..] => openapi::v3(&self.registry, rest),
            _ => discovery::answer(self, &segments, headers),
        }
    }

    fn metrics(&self) -> String {
        let mut out = String::new();
        out.push_str("# HELP apiserver_storage_objects Number of stored objects.\n# TYPE apiserver_storage_objects gauge\n");
        for kind in self.registry.kinds().iter().filter(|k| k.stored()) {
            let count = self.cache.resource(&kind.resource()).list(&kind.store_prefix()).len();
            out.push_str(&format!("apiserver_storage_objects{{resource=\"{}\"}} {count}\n", kind.resource()));
        }
        let busy = MAX_IN_FLIGHT - self.in_flight.available_permits();
        out.push_str("# HELP apiserver_current_inflight_requests Requests worked on now.\n# TYPE apiserver_current_inflight_requests gauge\n");
        out.push_str(&format!("apiserver_current_inflight_requests {busy}\n"));
        out.extend(self.audit.as_ref().map(|audit| audit.metrics()));
        out
    }

    async fn resource(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        path: &ResourcePath,
        user: &User,
    ) -> Result<ApiResponse, ApiError> {
        let kind = self.registry.find(&path.group, &path.version, &path.resource).cloned();
        let Some(kind) = kind else {
            // `/apis/apps/v1` with nothing behind it is discovery.
            return Err(ApiError::no_such_path());
        };
        if !kind.namespaced() && !path.namespace.is_empty() {
            return Err(ApiError::no_such_path());
        }
        let subresource = if path.subresource.is_empty() {
            None
        } else {
            let found = kind.subresources.iter().copied().find(|s| s.as_str() == path.subresource);
            Some(found.ok_or_else(ApiError::no_such_path)?)
        };
        if kind.namespaced() && path.namespace.is_empty() && !path.name.is_empty() {
            return Err(ApiError::no_such_path());
        }
        let is_proxy = subresource == Some(Subresource::Proxy);
        if !is_proxy && !path.rest.is_empty() {
            return Err(ApiError::no_such_path());
        }
        match subresource {
            None => self.object_verb(request, info, path, &kind, View::Object, user).await,
            Some(subresource) => match View::of_subresource(subresource) {
                Some(view) => self.object_verb(request, info, path, &kind, view, user).await,
                None => self.subresource(request, info, path, &kind, subresource, user).await,
            },
        }
    }

    async fn object_verb(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        path: &ResourcePath,
        kind: &Arc<Kind>,
        view: View,
        user: &User,
    ) -> Result<ApiResponse, ApiError> {
        let accepted = respond::negotiate(request.headers())?;
        let projection = Projection {
            kind: kind.clone(),
            form: accepted.form,
            include: Include::parse(info.query.get("includeObject")),
        };
        let (namespace, name) = (path.namespace.as_str(), path.name.as_str());
        let view_verb = matches!(info.verb, "get" | "update" | "patch");
        if view != View::Object && !view_verb {
            return Err(ApiError::method_not_allowed());
        }
        // Nobody empties all namespaces by one mistyped address.
        let across = kind.namespaced() && path.namespace.is_empty();
        if info.verb == "deletecollection" && (across || kind.has(Subresource::Finalize)) {
            return Err(ApiError::method_not_allowed());
        }
        let needs_name = matches!(info.verb, "update" | "patch");
        if (!kind.stored() && info.verb != "create") || (needs_name && name.is_empty()) {
            return Err(ApiError::method_not_allowed());
        }
        let response = match info.verb {
            "get" if view == View::Scale => {
                let kv = self.store.get(&kind.store_key(namespace, name)).await?;
                let kv = kv.ok_or_else(|| ApiError::not_found(kind, name))?;
                respond::json_bytes(StatusCode::OK, view.bytes(kv.value))
            }
            "get" => self.get(kind, namespace, name, &projection).await?,
            "list" => self.list(kind, namespace, &info.query, &projection).await?,
            "watch" => return self.watch(kind, namespace, name, &info.query, projection).await,
            "create" | "update" | "patch" | "delete" | "deletecollection" => {
                self.write_verb(request, info, path, kind, view, user, &projection).await?
            }
            _ => return Err(ApiError::method_not_allowed()),
        };
        if accepted.yaml { as_yaml(response).await } else { Ok(response) }
    }

    #[allow(clippy::too_many_arguments)] // One call site; bundling them would only rename the list.
    async fn write_verb(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        path: &ResourcePath,
        kind: &Arc<Kind>,
        view: View,
        user: &User,
        projection: &Projection,
    ) -> Result<ApiResponse, ApiError> {
        let (parts, body) = request.into_parts();
        let agent =
            parts.headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let content_type = content_type(&parts.headers);
        let body = read_body(body).await?;
        let call = WriteCall::new(kind, &path.namespace, &path.name, view, user, &info.query, &agent)?;
        let mut strictness = Strictness::default();
        let (schema, _, _) = view.schema(kind);
        let written = match info.verb {
            "create" if path.name.is_empty() && kind.namespaced() && path.namespace.is_empty() => {
                return Err(ApiError::method_not_allowed());
            }
            "create" if !path.name.is_empty() || view != View::Object => {
                return Err(ApiError::method_not_allowed());
            }
            "create" => {
                let mut document = read_document(&content_type, &schema, &body, &mut strictness)?;
                if !kind.stored() {
                    call.conform(&schema, &mut document, &mut strictness)?;
                    return crate::auth::reviews::answer(self, kind, &path.namespace, document, user).await;
                }
                self.create(&call, document, strictness).await?
            }
            "update" => {
                let document = read_document(&content_type, &schema, &body, &mut strictness)?;
                self.change(&call, &Change::Replace(document), &strictness).await?
            }
            "patch" => self.patch(&call, &content_type, &body).await?,
            "delete" => {
                let options = delete_options(&content_type, &body, info)?;
                let deleted = self.delete(&call, &options).await?;
                let gone = matches!(deleted, crate::delete::Deleted::Gone(_));
                let (code, bytes) = deleted.answer(kind);
                // A success status is no object of the kind and has no projection.
                return Ok(respond::json_bytes(code, if gone { bytes } else { projection.object(&bytes) }));
            }
            _ => {
                let options = delete_options(&content_type, &body, info)?;
                let deleted = self.delete_collection(&call, &info.query, &options).await?;
                let metadata = serde_json::json!({"resourceVersion": self.store.revision().0.to_string()});
                return Ok(respond::json_bytes(StatusCode::OK, projection.list(deleted.iter(), &metadata)));
            }
        };
        let bytes = if view == View::Scale { written.bytes } else { projection.object(&written.bytes) };
        let mut response = respond::json_bytes(written.code, bytes);
        respond::add_warnings(&mut response, &written.warnings);
        Ok(response)
    }

    async fn patch(
        &self,
        call: &WriteCall<'_>,
        content_type: &str,
        body: &Bytes,
    ) -> Result<Written, ApiError> {
        let mut strictness = Strictness::default();
        let mut document = |yaml: bool| {
            read_document(
                if yaml { "application/yaml" } else { "application/json" },
                "",
                body,
                &mut strictness,
            )
        };
        let change = match content_type {
            "application/json-patch+json" => Change::Json(document(false)?),
            "application/merge-patch+json" => Change::Merge(document(false)?),
            "application/strategic-merge-patch+json" => Change::Strategic(document(false)?),
            "application/apply-patch+yaml" | "application/apply-patch+json" => {
                let configuration = document(true)?;
                return self.apply(call, configuration, strictness).await;
            }
            other => {
                return Err(ApiError::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "UnsupportedMediaType",
                    format!(
                        "the body of the request was in an unknown format ({other}) - accepted media types include: \
                         application/json-patch+json, application/merge-patch+json, \
                         application/strategic-merge-patch+json, application/apply-patch+yaml"
                    ),
                ));
            }
        };
        self.change(call, &change, &Strictness::default()).await
    }
}

/// Watches and streams last as long as the client wants and are bounded elsewhere.
pub(crate) fn is_long_running(info: &RequestInfo) -> bool {
    info.verb == "watch"
        || info.resource.as_ref().is_some_and(|r| {
            [
                Subresource::Exec,
                Subresource::Attach,
                Subresource::PortForward,
                Subresource::Proxy,
                Subresource::Log,
            ]
            .iter()
            .any(|s| s.as_str() == r.subresource)
        })
}

/// The platform's own parts and the administrator are never locked out by a crowd.
fn is_platform(user: &User) -> bool {
    user.is_in(MASTERS) || user.is_in("system:nodes") || user.name.starts_with("system:kube-")
}

/// Media type without parameters, in lower case.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// A client that has not sent its request by then is not going to.
const BODY_PATIENCE: Duration = Duration::from_secs(60);

/// Reads a whole body, up to the limit and for a limited time.
pub(crate) async fn read_body(body: ApiBody) -> Result<Bytes, ApiError> {
    match tokio::time::timeout(BODY_PATIENCE, read_bounded(body)).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::new(
            StatusCode::REQUEST_TIMEOUT,
            "Timeout",
            "the request body did not arrive in time",
        )),
    }
}

/// Reads a whole body, up to the limit. What is beyond is read and thrown away for a while, because a client that is
/// cut off while it sends does not see the answer.
async fn read_bounded(mut body: ApiBody) -> Result<Bytes, ApiError> {
    let mut collected = BytesMut::new();
    let mut discarded = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| ApiError::bad_request(format!("cannot read the request: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        if collected.len() + data.len() > MAX_BODY || discarded > 0 {
            discarded += data.len();
            collected.clear();
        } else {
            collected.extend_from_slice(&data);
        }
        if discarded > MAX_DISCARDED {
            break;
        }
    }
    if discarded > 0 { Err(ApiError::too_large(MAX_BODY)) } else { Ok(collected.freeze()) }
}

/// Reads a document of one of the accepted types; `schema` is its type, which only protobuf needs to know.
pub(crate) fn read_document(
    content_type: &str,
    schema: &str,
    body: &[u8],
    strictness: &mut Strictness,
) -> Result<Value, ApiError> {
    match content_type {
        "" | "application/json" => decode::parse_json(body, strictness)
            .map_err(|e| ApiError::bad_request(format!("invalid JSON: {e}"))),
        "application/yaml" | "application/x-yaml" | "text/yaml" => {
            // JSON is YAML, and by far the commoner content under this type.
            if let Ok(value) = decode::parse_json(body, strictness) {
                return Ok(value);
            }
            serde_saphyr::from_slice(body).map_err(|e| ApiError::bad_request(format!("invalid YAML: {e}")))
        }
        "application/vnd.kubernetes.protobuf" => {
            protobuf::decode(body, schema).map_err(|e| ApiError::bad_request(e.to_string()))
        }
        other => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format ({other}) - accepted media types include: \
                 application/json, application/yaml, application/vnd.kubernetes.protobuf"
            ),
        )),
    }
}

fn delete_options(content_type: &str, body: &Bytes, info: &RequestInfo) -> Result<DeleteOptions, ApiError> {
    let body = if body.is_empty() {
        Value::Null
    } else {
        read_document(content_type, DELETE_OPTIONS, body, &mut Strictness::default())?
    };
    DeleteOptions::parse(&body, &info.query)
}

/// Rewrites a finished JSON answer as YAML.
async fn as_yaml(response: ApiResponse) -> Result<ApiResponse, ApiError> {
    let (mut parts, body) = response.into_parts();
    let bytes = body.collect().await.map_err(|e| ApiError::internal(e.to_string()))?.to_bytes();
    let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let yaml = respond::to_yaml(&value)?;
    parts.headers.insert(CONTENT_TYPE, http::HeaderValue::from_static("application/yaml"));
    Ok(http::Response::from_parts(parts, respond::full(yaml)))
}
