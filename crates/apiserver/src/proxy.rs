//! What only a node can answer: logs, exec, attach, port-forward, and HTTP to pods, services and nodes.
//!
//! The server speaks HTTP/1.1 to the node over whatever byte stream a [`NodeConnector`] gives: memory in the same
//! process, TLS later. Upgraded connections are joined byte by byte; the protocols inside are the node's business.

use std::sync::Arc;

use async_trait::async_trait;
use http::header::{CONNECTION, HOST, HeaderName, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sampan_api::field::{Errors, Path};
use sampan_api::kind::Subresource;
use sampan_api::registry::Kind;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::Instrument as _;

use crate::connect::Connect;
use crate::error::ApiError;
use crate::request::{Query, RequestInfo, ResourcePath};
use crate::respond::{self, ApiBody, ApiResponse, BodyError, BoxError};
use crate::server::ApiServer;
use crate::traces;
use crate::write::parse;

/// A two-way byte stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// How nodes, and through them pods, are reached.
#[async_trait]
pub trait NodeConnector: Send + Sync + 'static {
    /// A connection to the HTTP API of a node.
    async fn node(&self, name: &str) -> std::io::Result<Box<dyn Stream>>;
    /// A TCP connection to an address in the cluster.
    async fn address(&self, address: std::net::SocketAddr) -> std::io::Result<Box<dyn Stream>>;
}

/// Bytes read of a node's refusal.
const MAX_REFUSAL: usize = 8 * 1024;

/// Headers that belong to one connection (RFC 9110 §7.6.1), and credentials that are meant for this server only.
const HOP_HEADERS: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "authorization",
];

impl ApiServer {
    pub(crate) async fn proxy(
        &self,
        request: Request<ApiBody>,
        info: &RequestInfo,
        path: &ResourcePath,
        kind: &Arc<Kind>,
        subresource: Subresource,
        connect: &Connect,
    ) -> Result<ApiResponse, ApiError> {
        let object = match self.store.get(&kind.store_key(&path.namespace, plain_name(&path.name))).await? {
            Some(kv) => parse(&kv)?,
            None => return Err(ApiError::not_found(kind, plain_name(&path.name))),
        };
        if subresource == Subresource::Proxy {
            return self.proxy_http(request, path, kind, &object, connect).await;
        }
        let node = object["spec"]["nodeName"].as_str().unwrap_or_default();
        if node.is_empty() {
            return Err(ApiError::bad_request(format!("pod {} does not have a host assigned", path.name)));
        }
        let query = &connect.query;
        let place = format!("{}/{}", path.namespace, path.name);
        let target = match subresource {
            Subresource::PortForward => format!("/portForward/{place}{query}"),
            _ => {
                let container = container_of(&object, connect.container.as_deref())?;
                if subresource == Subresource::Log {
                    check_log_options(&info.query, &path.name)?;
                }
                let verb = match subresource {
                    Subresource::Log => "containerLogs",
                    Subresource::Exec => "exec",
                    _ => "attach",
                };
                format!("/{verb}/{place}/{container}{query}")
            }
        };
        let connector = self.nodes.get().ok_or_else(|| ApiError::unavailable("no node is connected yet"))?;
        let stream = connector
            .node(node)
            .await
            .map_err(|e| ApiError::unavailable(format!("cannot reach node {node}: {e}")))?;
        let response = forward(request, stream, &target, node).await?;
        if response.status().is_client_error() || response.status().is_server_error() {
            let (parts, body) = response.into_parts();
            return Err(refused(parts.status, body).await);
        }
        Ok(response)
    }

    /// `/proxy`: plain HTTP to a pod, to a pod behind a service, or to a node.
    async fn proxy_http(
        &self,
        request: Request<ApiBody>,
        path: &ResourcePath,
        kind: &Arc<Kind>,
        object: &Value,
        connect: &Connect,
    ) -> Result<ApiResponse, ApiError> {
        let target = connect.target();
        let connector = self.nodes.get().ok_or_else(|| ApiError::unavailable("no node is connected yet"))?;
        let unreachable =
            |e: std::io::Error| ApiError::unavailable(format!("error trying to reach {}: {e}", path.name));
        if kind.plural == "nodes" {
            let stream = connector.node(plain_name(&path.name)).await.map_err(unreachable)?;
            return forward(request, stream, &target, plain_name(&path.name)).await;
        }
        let port_name = path.name.split(':').nth(1).unwrap_or_default();
        let (address, port) = if kind.plural == "services" {
            (object["spec"]["clusterIP"].as_str(), service_port(object, port_name))
        } else {
            (
                object["status"]["podIP"].as_str(),
                port_name.parse().ok().or_else(|| first_container_port(object)),
            )
        };
        let address = address.and_then(|a| a.parse::<std::net::IpAddr>().ok());
        let (Some(address), Some(port)) = (address, port) else {
            return Err(ApiError::unavailable(format!(
                "no endpoints available for {} \"{}\"",
                kind.singular, path.name
            )));
        };
        if !is_proxyable(address) {
            return Err(ApiError::bad_request("address not allowed"));
        }
        let address = std::net::SocketAddr::new(address, port);
        let stream = connector.address(address).await.map_err(unreachable)?;
        forward(request, stream, &target, &address.to_string()).await
    }
}

/// The numbers of a request for logs.
fn check_log_options(query: &Query, name: &str) -> Result<(), ApiError> {
    let mut errors = Errors::new();
    for (option, least) in [("tailLines", 0), ("sinceSeconds", 1), ("limitBytes", 1)] {
        let given = query.get(option).and_then(|text| text.parse::<i64>().ok());
        if let Some(number) = given.filter(|number| *number < least) {
            let why = match least {
                0 => "must be greater than or equal to 0",
                _ => "must be greater than 0",
            };
            errors.invalid(&Path::new(option), number, why);
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(ApiError::invalid_of("", "PodLogOptions", name, &errors)) }
}

/// A pod says itself which address it has: it must not lead to this machine's own services.
pub(crate) fn is_proxyable(address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(a) => {
            !(a.is_loopback()
                || a.is_link_local()
                || a.is_unspecified()
                || a.is_multicast()
                || a.is_broadcast())
        }
        std::net::IpAddr::V6(a) => {
            !(a.is_loopback() || a.is_unspecified() || a.is_multicast() || a.is_unicast_link_local())
        }
    }
}

/// `scheme:name:port` and `name:port` name the object in the middle or front.
fn plain_name(name: &str) -> &str {
    match name.split(':').collect::<Vec<_>>().as_slice() {
        [_, name, _] => name,
        [name, ..] => name,
        [] => name,
    }
}

fn service_port(service: &Value, wanted: &str) -> Option<u16> {
    let ports = service["spec"]["ports"].as_array()?;
    let port = ports.iter().find(|p| {
        wanted.is_empty()
            || p["name"] == wanted
            || p["port"].as_u64().is_some_and(|n| n.to_string() == wanted)
    })?;
    u16::try_from(port["port"].as_u64()?).ok()
}

fn first_container_port(pod: &Value) -> Option<u16> {
    let port = pod["spec"]["containers"][0]["ports"][0]["containerPort"].as_u64();
    Some(port.and_then(|p| u16::try_from(p).ok()).unwrap_or(80))
}

/// The container a request means: named, annotated as default, or the only one.
fn container_of(pod: &Value, asked: Option<&str>) -> Result<String, ApiError> {
    let names = |list: &str| -> Vec<String> {
        let containers = pod["spec"][list].as_array().into_iter().flatten();
        containers.filter_map(|c| c["name"].as_str()).map(str::to_owned).collect()
    };
    let main = names("containers");
    let pod_name = pod["metadata"]["name"].as_str().unwrap_or_default();
    let default = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    match asked {
        Some(asked) => {
            let known = ["containers", "initContainers", "ephemeralContainers"]
                .iter()
                .any(|l| names(l).iter().any(|n| n == asked));
            if known {
                Ok(asked.to_owned())
            } else {
                Err(ApiError::bad_request(format!("container {asked} is not valid for pod {pod_name}")))
            }
        }
        None => match (default.filter(|d| main.iter().any(|n| n == d)), main.as_slice()) {
            (Some(default), _) => Ok(default.to_owned()),
            (None, [only]) => Ok(only.clone()),
            (None, many) => Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                many.join(" ")
            ))),
        },
    }
}

async fn forward(
    request: Request<ApiBody>,
    stream: Box<dyn Stream>,
    target: &str,
    host: &str,
) -> Result<ApiResponse, ApiError> {
    let failed = |e: hyper::Error| ApiError::unavailable(format!("error trying to reach {host}: {e}"));
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "connection to a node ended");
        }
    });
    let (mut outgoing, client_side) = pass_on(request, target)?;
    let name = host;
    let host = HeaderValue::from_str(host).map_err(|e| ApiError::bad_request(e.to_string()))?;
    outgoing.headers_mut().insert(HOST, host);
    let method = outgoing.method().clone();
    let span = traces::outgoing(&method, name, target, outgoing.headers_mut());
    let response = sender.send_request(outgoing).instrument(span.clone()).await;
    traces::came(&span, &response);
    let response = response.map_err(failed)?;
    pass_back(response, client_side)
}

/// A client's request as it goes on to somebody else, without a `Host`, and the client's side of its upgrade.
pub(crate) fn pass_on(
    request: Request<ApiBody>,
    target: &str,
) -> Result<(Request<ApiBody>, Option<OnUpgrade>), ApiError> {
    let (mut parts, body) = request.into_parts();
    let upgrade = parts.headers.get(UPGRADE).cloned();
    let client_side = parts.extensions.remove::<OnUpgrade>();
    let mut outgoing = Request::builder().method(parts.method).uri(target);
    for (name, value) in &parts.headers {
        if is_passed_on(name.as_str()) && *name != HOST {
            outgoing = outgoing.header(name, value);
        }
    }
    if let Some(protocol) = &upgrade {
        outgoing = outgoing.header(CONNECTION, "Upgrade").header(UPGRADE, protocol);
    }
    let outgoing = outgoing.body(body).map_err(|e| ApiError::bad_request(e.to_string()))?;
    Ok((outgoing, client_side))
}

fn is_passed_on(header: &str) -> bool {
    !HOP_HEADERS.contains(&header) && !header.starts_with("impersonate-")
}

/// Somebody else's answer as it goes back to the client; upgraded connections are joined.
pub(crate) fn pass_back<B>(
    mut response: Response<B>,
    client_side: Option<OnUpgrade>,
) -> Result<ApiResponse, ApiError>
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client_side) = client_side else {
            return Err(ApiError::bad_request("Upgrade request required"));
        };
        let other_side = hyper::upgrade::on(&mut response);
        tokio::spawn(join(client_side, other_side));
        let mut answer = Response::new(respond::full(bytes::Bytes::new()));
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        copy_headers(response.headers(), answer.headers_mut(), true);
        return Ok(answer);
    }
    let (parts, body) = response.into_parts();
    let mut answer = Response::new(body.map_err(BodyError::new).boxed_unsync());
    *answer.status_mut() = parts.status;
    copy_headers(&parts.headers, answer.headers_mut(), false);
    Ok(answer)
}

/// What a node says when it refuses is text; clients of the API expect a `Status` of the same code.
async fn refused(code: StatusCode, body: ApiBody) -> ApiError {
    let text = match http_body_util::Limited::new(body, MAX_REFUSAL).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes()).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    let reason = match code {
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::CONFLICT => "Conflict",
        _ => "InternalError",
    };
    ApiError::new(code, reason, text)
}

fn copy_headers(from: &http::HeaderMap<HeaderValue>, to: &mut http::HeaderMap<HeaderValue>, upgrading: bool) {
    for (name, value) in from {
        let name: &HeaderName = name;
        if upgrading || is_passed_on(name.as_str()) {
            to.append(name, value.clone());
        }
    }
}

/// Copies bytes both ways until both sides are done.
async fn join(client: OnUpgrade, node: OnUpgrade) {
    match tokio::try_join!(client, node) {
        Ok((client, node)) => {
            let (mut client, mut node) = (TokioIo::new(client), TokioIo::new(node));
            if let Err(error) = tokio::io::copy_bidirectional(&mut client, &mut node).await {
                tracing::debug!(%error, "stream ended");
            }
        }
        Err(error) => tracing::debug!(%error, "upgrade failed"),
    }
}
