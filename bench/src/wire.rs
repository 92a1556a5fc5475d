//! A client of the API as lean as HTTP allows: connections by themselves, HTTP/2 where the server
//! offers it, bodies as bytes. It is for loads that would cost more with kube's client than the cluster
//! spends on them: thousands of watches, or requests as fast as they can be sent.
//!
//! Addresses, certificates and credentials are those of kube's configuration. Credentials are asked
//! for once; a token that expires within a run would not be renewed.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::Config;
use kube::client::{Body, ConfigExt};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower::{BoxError, ServiceBuilder, ServiceExt};

use crate::error::{BenchError, Context, Result};

/// The largest body that is read as a whole: an OpenAPI document has a few megabytes.
const BODY_LIMIT: usize = 64 << 20;
/// The name of HTTP/2 in a TLS handshake.
const HTTP2: &[u8] = b"h2";

/// A way to one cluster as one user.
#[derive(Clone)]
pub(crate) struct Wire(Arc<Way>);

struct Way {
    /// Scheme, authority and perhaps a path that goes before every other.
    base: Uri,
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    /// Credentials, and whom to impersonate.
    headers: HeaderMap,
}

impl Wire {
    pub(crate) async fn new(config: &Config) -> Result<Self> {
        allow_open_files();
        let base = config.cluster_url.clone();
        if config.proxy_url.is_some() {
            return Err(BenchError::new(format!(
                "{base} is behind a proxy, which this benchmark cannot use"
            )));
        }
        let host = base.host().unwrap_or_default().trim_matches(['[', ']']).to_string();
        let is_plain = base.scheme_str() == Some("http");
        let port = base.port_u16().unwrap_or(if is_plain { 80 } else { 443 });
        let tls = if is_plain { None } else { Some(tls(config, &host)?) };
        Ok(Self(Arc::new(Way { host, port, tls, headers: headers(config).await?, base })))
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Connection> {
        let Way { host, port, tls, .. } = &*self.0;
        let what = || format!("could not connect to {host} port {port}");
        let stream = TcpStream::connect((host.as_str(), *port)).await.context(what)?;
        stream.set_nodelay(true).context(what)?;
        let sender = match tls {
            None => Sender::open(stream, false).await?,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await.context(what)?;
                let is_http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
                Sender::open(stream, is_http2).await?
            }
        };
        Ok(Connection { wire: self.clone(), sender })
    }

    /// New connections, opened together.
    pub(crate) async fn connect_many(&self, count: usize) -> Result<Vec<Connection>> {
        futures::future::try_join_all((0..count).map(|_| self.connect())).await
    }
}

/// One connection. Several requests at once are possible when it multiplexes.
pub(crate) struct Connection {
    wire: Wire,
    sender: Sender,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Sender {
    async fn open<S>(stream: S, is_http2: bool) -> Result<Self>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let what = || "could not begin to speak HTTP".to_string();
        let stream = TokioIo::new(stream);
        // What ends a connection is told by the requests that it fails.
        if is_http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.context(what)?;
            tokio::spawn(async move { connection.await.unwrap_or_default() });
            Ok(Self::Two(sender))
        } else {
            let (sender, connection) = http1::handshake(stream).await.context(what)?;
            tokio::spawn(async move { connection.await.unwrap_or_default() });
            Ok(Self::One(sender))
        }
    }

    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        match self {
            Self::One(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Self::Two(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }
}

/// What came back, without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) bytes: usize,
}

impl Connection {
    /// Whether a second request may be sent while the first is answered.
    pub(crate) fn multiplexes(&self) -> bool {
        matches!(self.sender, Sender::Two(_))
    }

    /// Sends a request; the answer's body is still to be read.
    pub(crate) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Response<Incoming>> {
        let what = || format!("could not send a request for {path}");
        let request = self.request(method, path, body.into()).context(what)?;
        self.sender.send(request).await.context(what)
    }

    /// Sends a request, reads the answer to its end and forgets it.
    pub(crate) async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: impl Into<Bytes>,
    ) -> Result<Answer> {
        let mut response = self.send(method, path, body).await?;
        let mut bytes = 0;
        while let Some(frame) = response.body_mut().frame().await {
            let frame = frame.context(|| format!("the answer for {path} broke off"))?;
            bytes += frame.data_ref().map_or(0, Bytes::len);
        }
        Ok(Answer { status: response.status(), bytes })
    }

    /// Reads a document.
    pub(crate) async fn read(&mut self, path: &str) -> Result<Bytes> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        let status = response.status();
        if !status.is_success() {
            return Err(BenchError::new(format!("{path} was answered with {status}")));
        }
        let body = Limited::new(response.into_body(), BODY_LIMIT).collect().await;
        Ok(body.context(|| format!("could not read {path}"))?.to_bytes())
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> std::result::Result<Request<Full<Bytes>>, http::Error> {
        let way = &*self.wire.0;
        let path = format!("{}{path}", way.base.path().trim_end_matches('/'));
        let mut request = Request::builder().method(method);
        if let Some(headers) = request.headers_mut() {
            headers.extend(way.headers.clone());
        }
        if !body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let authority = way.base.authority().map_or("", http::uri::Authority::as_str);
        // HTTP/2 has host and scheme among its pseudo-headers, HTTP/1.1 the host in a header.
        request = if self.multiplexes() {
            let scheme = way.base.scheme_str().unwrap_or("https");
            request.uri(Uri::builder().scheme(scheme).authority(authority).path_and_query(path).build()?)
        } else {
            request.uri(path).header(HOST, authority)
        };
        request.body(Full::new(body))
    }
}

fn tls(config: &Config, host: &str) -> Result<(TlsConnector, ServerName<'static>)> {
    let what = || format!("could not set up TLS for {host}");
    let mut tls = config.rustls_client_config().context(what)?;
    tls.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    let name = config.tls_server_name.as_deref().unwrap_or(host).to_string();
    let name = ServerName::try_from(name).context(what)?;
    Ok((TlsConnector::from(Arc::new(tls)), name))
}

/// The headers that kube's client would add to a request.
async fn headers(config: &Config) -> Result<HeaderMap> {
    let what = || "could not make the credentials of the kubeconfig".to_string();
    let reflect = tower::service_fn(|request: Request<Body>| async move {
        Ok::<_, BoxError>(Response::new(request.into_parts().0.headers))
    });
    let service = ServiceBuilder::new()
        .option_layer(config.auth_layer().context(what)?)
        .layer(config.extra_headers_layer().context(what)?)
        .service(reflect);
    Ok(service.oneshot(Request::new(Body::empty())).await.context(what)?.into_body())
}

/// Raises the limit of open files to what this program may have: a connection is a file.
fn allow_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With the old limit, opening a connection fails and says why.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server on a socket of its own that answers every request with what it was asked.
    async fn serve(is_http2: bool) -> (Connection, tokio::task::JoinHandle<()>) {
        use hyper::service::service_fn;
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let server = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.expect("a connection");
            let echo = service_fn(|request: Request<Incoming>| async move {
                let user = request.headers().get("impersonate-user").cloned();
                let user = user.map_or(String::new(), |user| user.to_str().unwrap_or_default().to_string());
                let text = format!("{} {} {user}", request.method(), request.uri().path());
                Ok::<_, std::convert::Infallible>(Response::new(Full::new(Bytes::from(text))))
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // The client goes away at the end of a test.
            server.serve_connection(TokioIo::new(stream), echo).await.unwrap_or_default();
        });
        let mut config = Config::new(format!("http://{address}/cluster/").parse().expect("an address"));
        config.auth_info.impersonate = Some("eve".to_string());
        let wire = Wire::new(&config).await.expect("a configuration");
        let stream = TcpStream::connect(address).await.expect("the server listens");
        let sender = Sender::open(stream, is_http2).await.expect("the server speaks HTTP");
        (Connection { wire, sender }, server)
    }

    #[tokio::test]
    async fn both_versions_carry_requests() {
        for is_http2 in [false, true] {
            let (mut connection, server) = serve(is_http2).await;
            assert_eq!(connection.multiplexes(), is_http2);
            for _ in 0..2 {
                let read = connection.read("/api").await.expect("an answer");
                assert_eq!(read, "GET /cluster/api eve");
            }
            let answer = connection.exchange(Method::PUT, "/x?y=z", "{}").await.expect("an answer");
            assert_eq!(answer, Answer { status: StatusCode::OK, bytes: "PUT /cluster/x eve".len() });
            drop(connection);
            server.await.expect("the server ends with its connection");
        }
    }
}
