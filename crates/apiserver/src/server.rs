//! The API server: a stack of layers over one question, "what does this request come to?".
//!
//! In order: identify the request, authenticate, wait for a seat ([`crate::flow`]), authorise, then route to discovery, an object
//! verb or a subresource. Nothing here knows a kind by name but the few subresources that only one kind has.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::{Arc, OnceLock, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use sampan_api::decode::{self, Strictness};
use sampan_api::kind::{Storage, Subresource};
use sampan_api::protobuf;
use sampan_api::registry::{Kind, Registry};
use sampan_store::{Store, StoreError};
use serde_json::Value;
use tokio::sync::watch;
use tracing::Instrument as _;

use crate::admission::{Allocator, Turns, policy::Policies, webhooks::Webhooks};
use crate::aggregation::Aggregator;
use crate::audit::{Audit, Record};
use crate::auth::User;
use crate::auth::authenticate::{Authentication, Authenticators};
use crate::auth::certificates::PeerCertificate;
use crate::auth::node::NodeAuthorizer;
use crate::auth::rbac::Rbac;
use crate::auth::tokens::Tokens;
use crate::cache::WatchCache;
use crate::delete::DeleteOptions;
use crate::error::ApiError;
use crate::flow::FlowControl;
use crate::health::Health;
use crate::metrics::{self, Metrics, TimedStore};
use crate::outbound::{Outbound, Resolver};
use crate::proxy::NodeConnector;
use crate::request::{RequestInfo, ResourcePath};
use crate::respond::{self, ApiBody, ApiResponse, Encoding, Include, Projection, compress, wire};
use crate::traces::{self, exporter::Counts as TraceCounts, part};
use crate::view::View;
use crate::write::{Change, WriteCall, Written};
use crate::{access_log, discovery, openapi};

/// Larger request bodies are refused, as upstream does.
const MAX_BODY: usize = 3 * 1024 * 1024;
/// Bytes beyond the limit that are read before the connection is cut.
const MAX_DISCARDED: usize = 16 * 1024 * 1024;
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
    /// What became of traces, for metrics.
    pub traces: Option<Arc<TraceCounts>>,
}

/// The API server.
pub struct ApiServer {
    registry: RwLock<Arc<Registry>>,
    /// Counts the registries there have been.
    pub(crate) registry_changed: watch::Sender<u64>,
    /// For tasks and streams that outlive a request.
    pub(crate) me: Weak<Self>,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Arc<WatchCache>,
    pub(crate) rbac: Rbac,
    pub(crate) node_authorizer: NodeAuthorizer,
    pub(crate) tokens: Arc<Tokens>,
    pub(crate) authenticators: Authenticators,
    audit: Option<Arc<Audit>>,
    traces: Option<Arc<TraceCounts>>,
    pub(crate) allocator: Arc<Allocator>,
    /// Who may charge the quotas of a namespace now.
    pub(crate) quota_turns: Turns,
    pub(crate) policies: Policies,
    pub(crate) config: ServerConfig,
    pub(crate) nodes: Arc<OnceLock<Arc<dyn NodeConnector>>>,
    pub(crate) outbound: Arc<Outbound>,
    pub(crate) webhooks: Webhooks,
    pub(crate) aggregator: Aggregator,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) health: Health,
    flow: Arc<FlowControl>,
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
        let registry = Registry::built_in();
        let metrics = Metrics::new(registry.kinds().iter().map(|kind| &**kind));
        let store: Arc<dyn Store> = Arc::new(TimedStore::new(store, metrics.clone()));
        let cache = WatchCache::start(store.clone()).await?;
        let issuer = format!("https://kubernetes.default.svc.{}", config.cluster_domain);
        let tokens = Tokens::new(&pki.token_key, &issuer, cache.clone()).map_err(StartError::Config)?;
        let tokens = Arc::new(tokens);
        let nodes: Arc<OnceLock<Arc<dyn NodeConnector>>> = Arc::default();
        let identity = crate::aggregation::identity(pki).map_err(StartError::Config)?;
        let outbound =
            Arc::new(Outbound::new(cache.clone(), nodes.clone(), &config.cluster_domain, Some(identity)));
        let authenticators =
            Authenticators::new(access.authentication, pki, tokens.clone(), cache.clone(), outbound.clone())
                .map_err(StartError::Config)?;
        let server = Arc::new_cyclic(|me| Self {
            webhooks: Webhooks::new(cache.clone(), outbound.clone(), metrics.clone()),
            aggregator: Aggregator::new(cache.clone()),
            outbound,
            registry_changed: watch::Sender::new(0),
            me: me.clone(),
            registry: RwLock::new(Arc::new(registry)),
            rbac: Rbac::new(cache.clone()),
            node_authorizer: NodeAuthorizer::new(cache.clone(), crate::bootstrap::node_rules()),
            tokens,
            authenticators,
            audit: access.audit,
            traces: access.traces,
            allocator: Allocator::new(range),
            metrics,
            health: Health::default(),
            flow: FlowControl::new(cache.clone()),
            quota_turns: Turns::default(),
            policies: Policies::new(cache.clone()),
            cache,
            store,
            config,
            nodes,
        });
        for item in server.cache.resource("services").list("/services/") {
            if let Ok(service) = serde_json::from_slice(&item.bytes) {
                server.allocator.adopt(&service);
            }
        }
        crate::bootstrap::run(&server, range.nth(1)).await?;
        crate::flow::upkeep::follow(&server).await;
        crate::custom::follow(&server).await;
        crate::aggregation::bootstrap(&server, pki).await?;
        Ok(server)
    }

    /// The kinds of this moment. A request asks once and goes by what it was given.
    pub(crate) fn registry(&self) -> Arc<Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the kinds that are served.
    pub(crate) fn set_registry(&self, registry: Registry) {
        *self.registry.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registry);
        self.registry_changed.send_modify(|version| *version += 1);
    }

    /// How nodes are reached for logs, exec and the like. Set once, when the first node exists.
    pub fn set_node_connector(&self, connector: Arc<dyn NodeConnector>) {
        // A second connector would be a mistake of the assembling program; the first one stays.
        let _ = self.nodes.set(connector);
    }

    /// How hosts outside of the cluster are found when a webhook names one. Set once.
    pub fn set_resolver(&self, resolver: Arc<dyn Resolver>) {
        self.outbound.set_resolver(resolver);
    }

    /// Called after an object has left the store.
    pub(crate) fn deleted(&self, kind: &Kind, object: &Value) {
        if kind.group.is_empty() && kind.plural == "services" {
            self.allocator.release(object);
        }
    }

    /// Answers a request. `peer` is what the transport knows of the sender, for instance by a client certificate.
    pub async fn handle(self: Arc<Self>, request: Request<ApiBody>, peer: Option<User>) -> ApiResponse {
        let info = RequestInfo::parse(request.method(), request.uri());
        let labels = self.metrics.labels(request.method(), &info, applies(request.headers()));
        let long_running = is_long_running(&info);
        let in_flight = (!long_running).then(|| self.metrics.begin(labels));
        let start = Instant::now();
        let metrics = self.metrics.clone();
        let response = self.respond(request, info, peer).await;
        drop(in_flight);
        metrics.finish(labels, response.status(), (!long_running).then(|| start.elapsed()));
        if long_running { respond::holding(response, metrics.open(labels)) } else { response }
    }

    async fn respond(
        self: Arc<Self>,
        request: Request<ApiBody>,
        info: RequestInfo,
        peer: Option<User>,
    ) -> ApiResponse {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let encoding =
            respond::negotiate(request.headers(), respond::Offer::ALL).map_or(Encoding::Json, |a| a.encoding);
        let gzip = reads && compress::reads_gzip(request.headers());
        let answer = self.answer(request, info, peer);
        let result = if reads {
            match answer.await {
                Ok(response) if gzip => compress::compressed(response).await,
                other => other,
            }
        } else {
            // A write does not end half-way because its client went away: what it holds belongs to what it stores. A
            // defect in one write is also no more than the failure of that write.
            let task = tokio::spawn(answer.instrument(traces::current()));
            task.await.unwrap_or_else(|e| Err(ApiError::internal(format!("the request failed: {e}"))))
        };
        result.unwrap_or_else(|error| respond::error_in(encoding, &error))
    }

    /// Finds out who sends the request, and tells the log what became of it.
    async fn answer(
        self: Arc<Self>,
        request: Request<ApiBody>,
        info: RequestInfo,
        peer: Option<User>,
    ) -> Result<ApiResponse, ApiError> {
        let begun = Instant::now();
        let certificate = request.extensions().get::<Arc<PeerCertificate>>().cloned();
        let sender = self.authenticate(request.headers(), certificate.as_deref(), &info, peer).await;
        let acting = sender.clone().and_then(|sender| self.impersonate(request.headers(), sender));
        // Whose trace it is depends on who sends it, so the span is made now, for what has begun before.
        let span = traces::request(&request, &info, sender.as_ref().ok(), begun.elapsed());
        let result = self.recorded(request, &info, sender, &acting).instrument(span.clone()).await;
        traces::answered(&span, &result);
        access_log::tell(&info, acting.as_ref().ok().map(|(user, _)| user), &result, begun.elapsed());
        result
    }

    /// Lets the request in, and the audit log know.
    async fn recorded(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        sender: Result<User, ApiError>,
        acting: &Result<(User, bool), ApiError>,
    ) -> Result<ApiResponse, ApiError> {
        let Some(audit) = &self.audit else {
            let (user, _) = acting.as_ref().map_err(Clone::clone)?;
            return self.admit(request, info, user, &mut None).await;
        };
        let sender = sender.unwrap_or_else(|_| User::unknown());
        let other = acting.as_ref().ok().filter(|(_, impersonated)| *impersonated).map(|(user, _)| user);
        let mut record = audit.received(&request, info, &sender, other);
        let result = match acting {
            Ok((user, _)) => self.admit(request, info, user, &mut record).await,
            Err(error) => Err(error.clone()),
        };
        match record {
            Some(record) => Ok(record.answered(info, result).await),
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

    /// Lets a request of a known user in, when there is room and if the user may.
    async fn admit(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        user: &User,
        record: &mut Option<Record>,
    ) -> Result<ApiResponse, ApiError> {
        // A watch takes a seat until its first events are there; streams are the business of their nodes.
        let permit = if info.verb != "watch" && is_long_running(info) {
            None
        } else {
            Some(self.flow.acquire(user, info).instrument(part!("wait for a seat")).await?)
        };
        let authorized = self.authorize(user, info);
        if let Some(record) = record {
            let reason = authorized.as_deref().unwrap_or_default();
            record.annotate(
                "authorization.k8s.io/decision",
                if authorized.is_ok() { "allow" } else { "forbid" },
            );
            record.annotate("authorization.k8s.io/reason", reason);
        }
        let mut result = match authorized {
            Ok(_) => self.route(request, info, user, record).await,
            Err(error) => Err(error),
        };
        if let (Ok(response), Some(permit)) = (&mut result, &permit) {
            permit.name_itself(response.headers_mut());
        }
        result
    }

    /// Finds who answers.
    async fn route(
        &self,
        mut request: Request<ApiBody>,
        info: &RequestInfo,
        user: &User,
        record: &mut Option<Record>,
    ) -> Result<ApiResponse, ApiError> {
        if let Some(record) = record {
            request = record.with_body(request, info).await?;
        }
        if self.is_aggregated(info) {
            return self.aggregate(request, info, user).await;
        }
        match &info.resource {
            Some(path) => {
                // Boxed: the compiler cannot prove the whole future `Send` for every lifetime otherwise, and one
                // allocation keeps the connection's own future small.
                let answer: BoxFuture<'_, _> = Box::pin(self.resource(request, info, path, user));
                answer.await
            }
            None => self.plain(request.method(), request.headers(), info).await,
        }
    }

    /// Addresses that are no resources.
    async fn plain(
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
            path @ ["healthz" | "livez" | "readyz", ..] => self.healthy(path, &info.query).await,
            ["version"] => Ok(respond::json_value(StatusCode::OK, &discovery::version(&self.config.build))),
            [".well-known", "openid-configuration"] => {
                Ok(respond::json_value(StatusCode::OK, &self.tokens.discovery()))
            }
            ["openid", "v1", "jwks"] => {
                let keys = self.tokens.keys().to_string();
                Ok(respond::bytes_of("application/jwk-set+json", keys.into_bytes()))
            }
            ["metrics"] => Ok(respond::text(StatusCode::OK, self.metrics())),
            ["metrics", "slis"] => Ok(respond::text(StatusCode::OK, self.service_levels().await)),
            ["openapi", "v2"] => Ok(openapi::v2(&self.registry(), &self.config.build, headers)),
            ["openapi", "v3", rest @ ..] => openapi::v3(self, rest, headers, &info.query),
            _ => discovery::answer(self, &segments, headers),
        }
    }

    fn metrics(&self) -> String {
        let mut out = String::with_capacity(64 * 1024);
        metrics::family(&mut out, "apiserver_storage_objects", "gauge", "Number of stored objects.");
        for kind in self.registry().kinds().iter().filter(|k| k.stored()) {
            let count = self.cache.resource(kind.stored_resource()).len();
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{}\"}} {count}", kind.resource());
        }
        metrics::family(&mut out, "kubernetes_build_info", "gauge", "What this program is.");
        let (version, build) = (sampan_api::schema::version(), metrics::escaped(&self.config.build));
        let _ = writeln!(
            out,
            "kubernetes_build_info{{git_commit=\"{build}\",git_version=\"{version}+sampan\"}} 1"
        );
        self.metrics.render(&mut out);
        self.flow.render(&mut out);
        out.extend(self.audit.as_ref().map(|audit| audit.metrics()));
        if let Some(traces) = &self.traces {
            traces.render(&mut out);
        }
        out
    }

    async fn resource(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        path: &ResourcePath,
        user: &User,
    ) -> Result<ApiResponse, ApiError> {
        let kind = self.registry().find(&path.group, &path.version, &path.resource).cloned();
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
                None => {
                    // Of these only the ones that answer with a document come in other encodings.
                    let answers = [Subresource::Binding, Subresource::Eviction, Subresource::Token];
                    let encoding = if answers.contains(&subresource) {
                        respond::negotiate(request.headers(), respond::Offer::of(&kind))?.encoding
                    } else {
                        Encoding::Json
                    };
                    let response = self.subresource(request, info, path, &kind, subresource, user).await?;
                    match encoding {
                        Encoding::Protobuf => wire::answer(&kind, response).await,
                        _ => Ok(response),
                    }
                }
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
        let accepted = respond::negotiate(request.headers(), respond::Offer::of(kind))?;
        let projection = Projection {
            kind: kind.clone(),
            form: accepted.form,
            encoding: accepted.encoding,
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
        if (!kind.stored() && !kind.verbs().contains(&info.verb)) || (needs_name && name.is_empty()) {
            return Err(ApiError::method_not_allowed());
        }
        let mut response = match info.verb {
            "get" if view == View::Scale => {
                let kv = self.store.get(&kind.store_key(namespace, name)).await?;
                let kv = kv.ok_or_else(|| ApiError::not_found(kind, name))?;
                let bytes = self.shown(kind, (&kv).into()).await?;
                respond::json_bytes(StatusCode::OK, view.bytes(kind, bytes))
            }
            "get" | "list" if kind.storage == Storage::Computed => self.computed(name, &projection).await?,
            "get" => self.get(kind, namespace, name, &projection).await?,
            "list" => self.list(kind, namespace, &info.query, &projection).await?,
            "watch" => return self.watch(kind, namespace, name, &info.query, projection).await,
            "create" | "update" | "patch" | "delete" | "deletecollection" => {
                self.write_verb(request, info, path, kind, view, user, &projection).await?
            }
            _ => return Err(ApiError::method_not_allowed()),
        };
        if let Some(deprecation) = &kind.deprecation {
            respond::add_warnings(&mut response, std::slice::from_ref(deprecation));
        }
        match accepted.encoding {
            Encoding::Json => Ok(response),
            Encoding::Yaml => as_yaml(response).await,
            Encoding::Protobuf => wire::answer(kind, response).await,
        }
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
        let result = self.written(&call, info, path, &content_type, body, projection).await;
        for (key, value) in call.notes.annotations() {
            tracing::debug!(user = user.name, path = info.path, key, value, "audit annotation");
        }
        // Who was warned and then refused should know both.
        let warnings = call.notes.warnings();
        match result {
            Err(error) if !warnings.is_empty() => {
                let mut response = respond::error(&error);
                respond::add_warnings(&mut response, &warnings);
                Ok(response)
            }
            result => result,
        }
    }

    async fn written(
        &self,
        call: &WriteCall<'_>,
        info: &RequestInfo,
        path: &ResourcePath,
        content_type: &str,
        body: Bytes,
        projection: &Projection,
    ) -> Result<ApiResponse, ApiError> {
        let (kind, view, user) = (call.kind, call.view, call.user);
        let mut strictness = Strictness::default();
        let type_name = view.document(kind).schema.type_name();
        let written = match info.verb {
            "create" if path.name.is_empty() && kind.namespaced() && path.namespace.is_empty() => {
                return Err(ApiError::method_not_allowed());
            }
            "create" if !path.name.is_empty() || view != View::Object => {
                return Err(ApiError::method_not_allowed());
            }
            "create" => {
                let mut document = read_document(content_type, type_name, &body, &mut strictness)?;
                if !kind.stored() {
                    call.conform(view.document(kind).schema, &mut document, &mut strictness)?;
                    call.identify(&mut document, view.document(kind))?;
                    if kind.kind == "Binding" {
                        return self.bind_named(call, &document).await;
                    }
                    return crate::auth::reviews::answer(self, kind, &path.namespace, document, user).await;
                }
                self.create(call, document, strictness).await?
            }
            "update" => {
                let document = read_document(content_type, type_name, &body, &mut strictness)?;
                self.change(call, &Change::Replace(document), &strictness).await?
            }
            "patch" => self.patch(call, content_type, &body).await?,
            "delete" => {
                let options = delete_options(content_type, &body, info)?;
                let deleted = self.delete(call, &options).await?;
                // A success status is no object of the kind and has no projection.
                let status = matches!(deleted, crate::delete::Deleted::Gone(_)) && !kind.returns_deleted;
                let (code, bytes) = deleted.answer(kind);
                let bytes = if status { bytes } else { projection.object(&bytes) };
                let mut response = respond::json_bytes(code, bytes);
                respond::add_warnings(&mut response, &call.notes.warnings());
                return Ok(response);
            }
            _ => {
                let options = delete_options(content_type, &body, info)?;
                let deleted = self.delete_collection(call, &info.query, &options).await?;
                let metadata = serde_json::json!({"resourceVersion": self.store.revision().0.to_string()});
                let bytes = projection.list(deleted.iter(), &metadata)?;
                let mut response = respond::json_bytes(StatusCode::OK, bytes);
                respond::add_warnings(&mut response, &call.notes.warnings());
                return Ok(response);
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
                None,
                body,
                &mut strictness,
            )
        };
        let custom = call.kind.schema.type_name().is_none();
        let change = match content_type {
            "application/json-patch+json" => Change::Json(document(false)?),
            "application/merge-patch+json" => Change::Merge(document(false)?),
            "application/strategic-merge-patch+json" if !custom => Change::Strategic(document(false)?),
            "application/apply-patch+yaml" | "application/apply-patch+json" => {
                let configuration = document(true)?;
                return self.apply(call, configuration, strictness).await;
            }
            _ => {
                return Err(ApiError::new(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "UnsupportedMediaType",
                    format!(
                        "the body of the request was in an unknown format - accepted media types include: \
                         application/json-patch+json, application/merge-patch+json, {}application/apply-patch+yaml",
                        if custom { "" } else { "application/strategic-merge-patch+json, " }
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

/// Whether a request is an apply, which is a verb of its own in metrics.
fn applies(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/apply-patch"))
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

/// Reads a document of one of the accepted media types; `type_name` is its type in the table of types, without which
/// protobuf cannot be read.
pub(crate) fn read_document(
    content_type: &str,
    type_name: Option<&str>,
    body: &[u8],
    strictness: &mut Strictness,
) -> Result<Value, ApiError> {
    match (content_type, type_name) {
        ("" | "application/json", _) => decode::parse_json(body, strictness)
            .map_err(|e| ApiError::bad_request(format!("invalid JSON: {e}"))),
        ("application/yaml" | "application/x-yaml" | "text/yaml", _) => {
            // JSON is YAML, and by far the commoner content under this type.
            if let Ok(value) = decode::parse_json(body, strictness) {
                return Ok(value);
            }
            serde_saphyr::from_slice(body).map_err(|e| ApiError::bad_request(format!("invalid YAML: {e}")))
        }
        ("application/vnd.kubernetes.protobuf", Some(type_name)) => {
            protobuf::decode(body, type_name).map_err(|e| ApiError::bad_request(e.to_string()))
        }
        (other, _) => Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format ({other}) - accepted media types include: \
                 application/json, application/yaml{}",
                if type_name.is_some() { ", application/vnd.kubernetes.protobuf" } else { "" }
            ),
        )),
    }
}

fn delete_options(content_type: &str, body: &Bytes, info: &RequestInfo) -> Result<DeleteOptions, ApiError> {
    let body = if body.is_empty() {
        Value::Null
    } else {
        read_document(content_type, Some(DELETE_OPTIONS), body, &mut Strictness::default())?
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
