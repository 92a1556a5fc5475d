//! Requests of the API server to others: admission and conversion webhooks, extension servers.
//!
//! A small HTTPS client over the ways the server has anyway: services of the cluster are reached through the
//! [`NodeConnector`], as `proxy` requests are; other hosts by address, or by a [`Resolver`] that the assembling program
//! gives, because a static binary has no name look-ups of its own. HTTP/1.1 only: one request per connection at a time is
//! what makes an upgrade and an endless watch the same as a short answer.
//!
//! Connections are kept per target. A TLS handshake costs a webhook more than all the rest of its answer, and every write
//! of a matching kind waits for it.
//!
//! Not done: redirects, proxies named in the environment, plain HTTP.

mod route;
mod trust;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use http::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tracing::Instrument as _;

pub(crate) use route::{NoRoute, Route, route};
pub(crate) use trust::{Identity, Trust};

use crate::auth::oidc::Fetch;
use crate::cache::WatchCache;
use crate::proxy::{NodeConnector, Stream, is_proxyable};
use crate::respond::{self, ApiBody};
use crate::traces;

/// Largest answer that is read whole: the size the server takes from its own clients.
pub(crate) const MAX_ANSWER: usize = 3 * 1024 * 1024;
/// An unused connection is closed after this long: longer than the pauses of a busy cluster, shorter than what servers
/// commonly allow (90 s in Go).
const IDLE: Duration = Duration::from_secs(60);
/// Unused connections kept per target; more than a burst of writes needs is closed at once.
const MAX_IDLE: usize = 16;
/// Targets with connections or TLS settings in memory.
const MAX_TARGETS: usize = 256;
/// Endpoints that are tried before a service counts as not reachable.
const MAX_ATTEMPTS: usize = 3;

/// How long an issuer of tokens may take to hand out its keys.
const FETCH_PATIENCE: Duration = Duration::from_secs(10);

#[async_trait]
impl Fetch for Outbound {
    async fn get(&self, url: &str, ca_pem: Option<&str>, limit: usize) -> Result<Bytes, String> {
        let bundle = ca_pem.map(|pem| STANDARD.encode(pem));
        let target = Target::from_client_config(&json!({"url": url, "caBundle": bundle}))?;
        let answer = Outbound::get(self, &target, HeaderMap::new(), FETCH_PATIENCE)
            .await
            .map_err(|e| e.to_string())?;
        match answer.status.is_success() {
            true if answer.body.len() <= limit => Ok(answer.body),
            true => Err(format!("{url} has more than {limit} bytes")),
            false => Err(format!("{url} answers {}", answer.status)),
        }
    }
}

/// Finds the addresses of a host outside of the cluster.
#[async_trait]
pub trait Resolver: Send + Sync + 'static {
    /// All addresses of `name`, best first.
    async fn resolve(&self, name: &str) -> std::io::Result<Vec<IpAddr>>;
}

/// Whom to connect to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// A host by name or address.
    Host { name: String, port: u16 },
    /// A service of the cluster.
    Service { namespace: String, name: String, port: u16 },
}

impl Place {
    /// The name the certificate must have.
    fn host(&self) -> String {
        match self {
            Self::Host { name, .. } => name.clone(),
            Self::Service { namespace, name, .. } => format!("{name}.{namespace}.svc"),
        }
    }

    fn port(&self) -> u16 {
        match self {
            Self::Host { port, .. } | Self::Service { port, .. } => *port,
        }
    }
}

/// Where a request goes and whom it trusts there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) place: Place,
    /// Path of the address, with its leading slash.
    pub(crate) path: String,
    pub(crate) trust: Trust,
    /// Whether the server shows its front proxy certificate.
    pub(crate) identified: bool,
}

impl Target {
    /// Reads a `clientConfig` of a webhook: `url` or `service`, and `caBundle`.
    pub(crate) fn from_client_config(config: &Value) -> Result<Self, String> {
        let trust = match config["caBundle"].as_str() {
            None | Some("") => Trust::System,
            Some(bundle) => Trust::bundle(bundle)?,
        };
        let (place, path) = match (config["url"].as_str(), &config["service"]) {
            (Some(url), Value::Null) => from_url(url)?,
            (None, service @ Value::Object(_)) => (
                service_place(service),
                service["path"].as_str().filter(|p| !p.is_empty()).unwrap_or("/").to_owned(),
            ),
            _ => return Err("exactly one of url or service is required".to_owned()),
        };
        let path = if path.starts_with('/') { path } else { format!("/{path}") };
        Ok(Self { place, path, trust, identified: false })
    }

    /// The target with another path.
    pub(crate) fn at(&self, path: impl Into<String>) -> Self {
        Self { path: path.into(), ..self.clone() }
    }

    /// The target with a query parameter added.
    pub(crate) fn with_parameter(&self, parameter: &str) -> Self {
        let separator = if self.path.contains('?') { '&' } else { '?' };
        self.at(format!("{}{separator}{parameter}", self.path))
    }

    /// The address, as messages show it.
    pub(crate) fn url(&self) -> String {
        format!("https://{}{}", self.authority(), self.path)
    }

    fn authority(&self) -> String {
        match &self.place {
            Place::Host { name, port: 443 } => name.clone(),
            place => format!("{}:{}", place.host(), place.port()),
        }
    }
}

/// Reads a service reference; the port is 443 unless it says otherwise.
pub(crate) fn service_place(service: &Value) -> Place {
    let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
    let port = service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443);
    Place::Service { namespace: text("namespace"), name: text("name"), port }
}

fn from_url(url: &str) -> Result<(Place, String), String> {
    let uri: Uri = url.parse().map_err(|e| format!("url {url:?} is not valid: {e}"))?;
    if uri.scheme_str() != Some("https") {
        return Err(format!("url {url:?}: 'https' is the only allowed URL scheme"));
    }
    let authority = uri.authority().ok_or_else(|| format!("url {url:?} names no host"))?;
    if authority.as_str().contains('@') {
        return Err(format!("url {url:?}: user information is not permitted in the URL"));
    }
    let path = uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let place = Place::Host { name: authority.host().to_owned(), port: authority.port_u16().unwrap_or(443) };
    Ok((place, path))
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    /// The target leads nowhere.
    #[error("{0}")]
    Unroutable(String),
    /// The time the caller gave has passed.
    #[error("context deadline exceeded")]
    Timeout,
    /// Nobody accepts the connection.
    #[error("dial tcp {address}: {err}")]
    Connect { address: String, err: std::io::Error },
    /// The other side is not who it should be, or speaks no TLS.
    #[error("tls: {0}")]
    Tls(String),
    /// A kept connection was closed by the other side at the moment it was used again; nothing was answered.
    #[error("the connection was closed before the answer")]
    Stale,
    /// The other side does not speak HTTP, or not to its end.
    #[error("{0}")]
    Http(String),
    /// The answer has no end within the bound.
    #[error("the response is larger than {MAX_ANSWER} bytes")]
    TooLarge,
}

/// An answer, read whole.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

type Sender = SendRequest<ApiBody>;
type Key = (Place, Trust, bool);

/// The client.
pub(crate) struct Outbound {
    cache: Arc<WatchCache>,
    nodes: Arc<OnceLock<Arc<dyn NodeConnector>>>,
    resolver: OnceLock<Arc<dyn Resolver>>,
    cluster_domain: String,
    identity: Option<Identity>,
    pools: Mutex<HashMap<Key, Arc<Pool>>>,
}

impl Outbound {
    /// `identity` is shown to targets that ask to be [`Target::identified`].
    pub(crate) fn new(
        cache: Arc<WatchCache>,
        nodes: Arc<OnceLock<Arc<dyn NodeConnector>>>,
        cluster_domain: &str,
        identity: Option<Identity>,
    ) -> Self {
        Self {
            cache,
            nodes,
            resolver: OnceLock::new(),
            cluster_domain: cluster_domain.to_owned(),
            identity,
            pools: Mutex::default(),
        }
    }

    /// How hosts outside of the cluster are found. The first resolver stays.
    pub(crate) fn set_resolver(&self, resolver: Arc<dyn Resolver>) {
        let _ = self.resolver.set(resolver);
    }

    /// Sends a JSON document and reads the JSON answer. A connection that was closed while it was not used costs a second
    /// attempt; whoever is asked this way must not mind being asked twice, which webhooks have to anyway.
    pub(crate) async fn post(
        &self,
        target: &Target,
        document: Bytes,
        patience: Duration,
    ) -> Result<Answer, OutboundError> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        self.ask(Method::POST, target, headers, document, patience).await
    }

    /// Reads a document.
    pub(crate) async fn get(
        &self,
        target: &Target,
        headers: HeaderMap,
        patience: Duration,
    ) -> Result<Answer, OutboundError> {
        self.ask(Method::GET, target, headers, Bytes::new(), patience).await
    }

    async fn ask(
        &self,
        method: Method,
        target: &Target,
        headers: HeaderMap,
        document: Bytes,
        patience: Duration,
    ) -> Result<Answer, OutboundError> {
        let work = async {
            let request = || {
                let mut request = Request::builder()
                    .method(method.clone())
                    .uri(&target.path)
                    .body(respond::full(document.clone()))
                    .map_err(|e| OutboundError::Unroutable(e.to_string()))?;
                *request.headers_mut() = headers.clone();
                Ok::<_, OutboundError>(request)
            };
            let response = match self.send(target, request()?).await {
                Err(OutboundError::Stale) => {
                    self.pool(target)?.lock().idle.clear();
                    self.send(target, request()?).await?
                }
                other => other?,
            };
            let (parts, body) = response.into_parts();
            Ok(Answer { status: parts.status, body: read_whole(body).await? })
        };
        tokio::time::timeout(patience, work).await.unwrap_or(Err(OutboundError::Timeout))
    }

    /// Sends one request as it is, but for its `Host`, and gives the answer as soon as its head is there.
    pub(crate) async fn send(
        &self,
        target: &Target,
        mut request: Request<ApiBody>,
    ) -> Result<Response<Answered>, OutboundError> {
        let host = HeaderValue::from_str(&target.authority())
            .map_err(|e| OutboundError::Unroutable(format!("{}: {e}", target.url())))?;
        request.headers_mut().insert(HOST, host);
        let method = request.method().clone();
        let span = traces::outgoing(&method, &target.authority(), &target.path, request.headers_mut());
        // Boxed: it is the innermost of many futures, and the compiler counts.
        let sending: BoxFuture<'_, _> = Box::pin(self.send_over(target, request));
        let result = sending.instrument(span.clone()).await;
        traces::came(&span, &result);
        result
    }

    /// Sends a request over a connection that is there, or a new one.
    async fn send_over(
        &self,
        target: &Target,
        mut request: Request<ApiBody>,
    ) -> Result<Response<Answered>, OutboundError> {
        let pool = self.pool(target)?;
        while let Some(mut sender) = pool.take() {
            if sender.ready().await.is_err() {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok(answered(response, sender, pool)),
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None if error.error().is_incomplete_message() => return Err(OutboundError::Stale),
                    None => return Err(http_failure(&error.into_error())),
                },
            }
        }
        let mut sender = self.connect(target, &pool).await?;
        let response = sender.send_request(request).await.map_err(|e| http_failure(&e))?;
        Ok(answered(response, sender, pool))
    }

    /// A new connection, its TLS done.
    async fn connect(&self, target: &Target, pool: &Pool) -> Result<Sender, OutboundError> {
        let stream = self.reach(&target.place).await?;
        let host = target.place.host();
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
            .map_err(|_| OutboundError::Unroutable(format!("{host:?} is no name of a host")))?;
        let stream = TlsConnector::from(pool.tls.clone())
            .connect(name, stream)
            .await
            .map_err(|e| OutboundError::Tls(tls_failure(&e)))?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|e| http_failure(&e))?;
        tokio::spawn(async move {
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "an outgoing connection ended");
            }
        });
        Ok(sender)
    }

    async fn reach(&self, place: &Place) -> Result<Box<dyn Stream>, OutboundError> {
        match place {
            Place::Service { namespace, name, port } => self.reach_service(namespace, name, *port).await,
            Place::Host { name, port } => match self.own_service(name) {
                Some((service, namespace)) => self.reach_service(namespace, service, *port).await,
                None => self.reach_host(name, *port).await,
            },
        }
    }

    /// `NAME.NAMESPACE.svc` and `NAME.NAMESPACE.svc.DOMAIN` are services of this cluster.
    fn own_service<'a>(&self, host: &'a str) -> Option<(&'a str, &'a str)> {
        let host = host.strip_suffix(&format!(".{}", self.cluster_domain)).unwrap_or(host);
        let (name, namespace) = host.strip_suffix(".svc")?.split_once('.')?;
        (!namespace.contains('.')).then_some((name, namespace))
    }

    async fn reach_service(
        &self,
        namespace: &str,
        name: &str,
        port: u16,
    ) -> Result<Box<dyn Stream>, OutboundError> {
        let addresses = match self.route(namespace, name, port) {
            Ok(Route::Addresses(addresses)) => addresses,
            Ok(Route::External(host)) => return self.reach_host(&host, port).await,
            Err(why) => return Err(OutboundError::Unroutable(why.to_string())),
        };
        let connector = self
            .nodes
            .get()
            .ok_or_else(|| OutboundError::Unroutable("no node is connected yet".to_owned()))?;
        let mut failure = OutboundError::Unroutable(format!("no endpoints available for service {name:?}"));
        for address in addresses.into_iter().filter(|a| is_proxyable(a.ip())).take(MAX_ATTEMPTS) {
            match connector.address(address).await {
                Ok(stream) => return Ok(stream),
                Err(err) => failure = OutboundError::Connect { address: address.to_string(), err },
            }
        }
        Err(failure)
    }

    /// Where the cache says that a service is.
    pub(crate) fn route(&self, namespace: &str, name: &str, port: u16) -> Result<Route, NoRoute> {
        let service = self.cache.resource("services").get(&format!("/services/{namespace}/{name}"));
        let parse = |bytes: &Bytes| serde_json::from_slice::<Value>(bytes).unwrap_or_default();
        let service = service.map(|item| parse(&item.bytes));
        let slices: Vec<Value> = self
            .cache
            .resource("endpointslices.discovery.k8s.io")
            .list(&format!("/endpointslices.discovery.k8s.io/{namespace}/"))
            .iter()
            .filter(|item| item.labels().get("kubernetes.io/service-name").is_some_and(|of| of == name))
            .map(|item| parse(&item.bytes))
            .collect();
        route((namespace, name), service.as_ref(), &slices, port)
    }

    async fn reach_host(&self, name: &str, port: u16) -> Result<Box<dyn Stream>, OutboundError> {
        let addresses = match name.trim_matches(['[', ']']).parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => {
                let resolver = self.resolver.get().ok_or_else(|| {
                    OutboundError::Unroutable(format!("lookup {name}: this server resolves no host names"))
                })?;
                let failed = |e| OutboundError::Unroutable(format!("lookup {name}: {e}"));
                resolver.resolve(name).await.map_err(failed)?
            }
        };
        let mut failure = OutboundError::Unroutable(format!("lookup {name}: no such host"));
        for address in addresses.into_iter().take(MAX_ATTEMPTS) {
            let address = SocketAddr::new(address, port);
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    // Without it a request in two parts may wait for an acknowledgement in between.
                    let _ = stream.set_nodelay(true);
                    return Ok(Box::new(stream));
                }
                Err(err) => failure = OutboundError::Connect { address: address.to_string(), err },
            }
        }
        Err(failure)
    }

    fn pool(&self, target: &Target) -> Result<Arc<Pool>, OutboundError> {
        let key = (target.place.clone(), target.trust.clone(), target.identified);
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&key) {
            return Ok(pool.clone());
        }
        if pools.len() >= MAX_TARGETS {
            pools.retain(|_, pool| !pool.lock().idle.is_empty());
        }
        if pools.len() >= MAX_TARGETS {
            pools.clear();
        }
        let identity = self.identity.as_ref().filter(|_| target.identified);
        let tls = target.trust.client_config(identity).map_err(OutboundError::Tls)?;
        let pool = Arc::new(Pool { tls, state: Mutex::default() });
        pools.insert(key, pool.clone());
        Ok(pool)
    }
}

/// What is wrong with the other side's certificate is a matter of the configuration, anything else of the other side.
fn tls_failure(error: &std::io::Error) -> String {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::InvalidCertificate(why)) => format!("failed to verify certificate: {why}"),
        _ => error.to_string(),
    }
}

fn http_failure(error: &hyper::Error) -> OutboundError {
    use std::error::Error as _;
    OutboundError::Http(error.source().map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}")))
}

/// Reads a body up to the bound.
async fn read_whole(mut body: Answered) -> Result<Bytes, OutboundError> {
    let mut collected = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|e| http_failure(&e))?.into_data() else { continue };
        if collected.len() + data.len() > MAX_ANSWER {
            return Err(OutboundError::TooLarge);
        }
        collected.extend_from_slice(&data);
    }
    Ok(collected.freeze())
}

/// Connections to one target.
struct Pool {
    tls: Arc<rustls::ClientConfig>,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// The last one is the one used last.
    idle: Vec<(Sender, Instant)>,
    /// A task will look for connections that were not used.
    watched: bool,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self) -> Option<Sender> {
        self.lock().idle.pop().map(|(sender, _)| sender)
    }

    fn give_back(self: Arc<Self>, sender: Sender) {
        let mut state = self.lock();
        state.idle.retain(|(sender, _)| !sender.is_closed());
        if sender.is_closed() || state.idle.len() >= MAX_IDLE {
            return;
        }
        state.idle.push((sender, Instant::now()));
        if !std::mem::replace(&mut state.watched, true) {
            drop(state);
            tokio::spawn(self.close_unused());
        }
    }

    /// A timer, because nothing happens on a connection that is not used. It lives as long as there is one.
    async fn close_unused(self: Arc<Self>) {
        loop {
            tokio::time::sleep(IDLE).await;
            let mut state = self.lock();
            state.idle.retain(|(sender, since)| !sender.is_closed() && since.elapsed() < IDLE);
            if state.idle.is_empty() {
                state.watched = false;
                return;
            }
        }
    }
}

/// The body of an answer. Its connection goes back to the pool once the body has been read to its end.
pub(crate) struct Answered {
    body: Incoming,
    connection: Option<(Sender, Arc<Pool>)>,
}

fn answered(response: Response<Incoming>, sender: Sender, pool: Arc<Pool>) -> Response<Answered> {
    // A connection that speaks another protocol from here on is never used again.
    let reusable = response.status() != StatusCode::SWITCHING_PROTOCOLS;
    response.map(|body| {
        let mut answered = Answered { body, connection: reusable.then_some((sender, pool)) };
        answered.settle();
        answered
    })
}

impl Answered {
    fn settle(&mut self) {
        if self.body.is_end_stream()
            && let Some((sender, pool)) = self.connection.take()
        {
            pool.give_back(sender);
        }
    }
}

impl Body for Answered {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = ready!(Pin::new(&mut this.body).poll_frame(context));
        match &frame {
            None => {
                if let Some((sender, pool)) = this.connection.take() {
                    pool.give_back(sender);
                }
            }
            Some(Err(_)) => this.connection = None,
            Some(Ok(_)) => this.settle(),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Text in base64, as PEM stands in objects.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let text: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn client_configs() {
        let service = |namespace: &str, name: &str, port: u16| Place::Service {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            port,
        };
        let host = |name: &str, port: u16| Place::Host { name: name.to_owned(), port };
        let rows = [
            (
                json!({"service": {"namespace": "a", "name": "b"}}),
                Ok((service("a", "b", 443), "https://b.a.svc:443/")),
            ),
            (
                json!({"service": {"namespace": "a", "name": "b", "path": "/x", "port": 8443}}),
                Ok((service("a", "b", 8443), "https://b.a.svc:8443/x")),
            ),
            (json!({"url": "https://h"}), Ok((host("h", 443), "https://h/"))),
            (
                json!({"url": "https://10.0.0.1:8/p?q=1"}),
                Ok((host("10.0.0.1", 8), "https://10.0.0.1:8/p?q=1")),
            ),
            (json!({"url": "https://[::1]:8/p"}), Ok((host("[::1]", 8), "https://[::1]:8/p"))),
            (json!({"url": "http://h/"}), Err("'https' is the only allowed URL scheme")),
            (json!({"url": "https://u@h/"}), Err("user information is not permitted")),
            (json!({"url": "https://h/", "service": {}}), Err("exactly one of url or service")),
            (json!({}), Err("exactly one of url or service")),
            (json!({"url": "https://h/", "caBundle": "!"}), Err("caBundle")),
        ];
        for (config, expected) in rows {
            match (Target::from_client_config(&config), expected) {
                (Ok(target), Ok((place, url))) => {
                    assert_eq!((target.place.clone(), target.url().as_str()), (place, url), "{config}");
                }
                (Err(why), Err(part)) => assert!(why.contains(part), "{config}: {why}"),
                (found, expected) => panic!("{config}: {found:?}, expected {expected:?}"),
            }
        }
    }

    #[test]
    fn parameters_are_added() {
        let target = Target::from_client_config(&json!({"url": "https://h/p"})).expect("a target");
        let once = target.with_parameter("timeout=1s");
        assert_eq!(once.url(), "https://h/p?timeout=1s");
        assert_eq!(once.with_parameter("a=b").path, "/p?timeout=1s&a=b");
    }
}
