//! Requests to registries: names, TCP, TLS and pooled HTTP/1.1 connections. Knows nothing of registries.
//!
//! A static binary cannot use the C library's resolver: addresses, `/etc/hosts` and DNS are asked here. Each layer
//! has a connection of its own, so that one slow layer does not share a window with another, as it would in HTTP/2.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::{Scheme, Uri};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::ImageError;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// For a connection, and for each step of a conversation: a peer that says nothing for so long is gone.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// Where distributions keep the certificates they trust (Debian, Fedora, SUSE, Alpine).
const SYSTEM_CERTIFICATES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// A client with pooled connections. Follows no redirects.
#[derive(Clone)]
pub(crate) struct Http {
    client: Client<Connector, Empty<Bytes>>,
}

impl Http {
    /// `ca` is trusted beside the system's certificates.
    pub(crate) fn new(ca: Option<&Path>) -> Result<Self, ImageError> {
        let connector = Connector { tls: Arc::new(tls_config(ca)?) };
        Ok(Self { client: Client::builder(TokioExecutor::new()).build(connector) })
    }

    /// One request and the head of its answer.
    pub(crate) async fn send(
        &self,
        request: Request<Empty<Bytes>>,
    ) -> Result<Response<Incoming>, ImageError> {
        let url = request.uri().to_string();
        let failed = |source: Failure| ImageError::Transport { action: "ask", url: url.clone(), source };
        match tokio::time::timeout(STALL_TIMEOUT, self.client.request(request)).await {
            Ok(answer) => answer.map_err(|error| failed(error.into())),
            Err(elapsed) => Err(failed(elapsed.into())),
        }
    }
}

/// The next bytes of an answer; `None` at its end.
pub(crate) async fn next_bytes(body: &mut Incoming, url: &str) -> Result<Option<Bytes>, ImageError> {
    let failed =
        |source: Failure| ImageError::Transport { action: "read the answer of", url: url.to_owned(), source };
    loop {
        match tokio::time::timeout(STALL_TIMEOUT, body.frame()).await {
            Err(elapsed) => return Err(failed(elapsed.into())),
            Ok(None) => return Ok(None),
            Ok(Some(Err(error))) => return Err(failed(error.into())),
            Ok(Some(Ok(frame))) => match frame.into_data() {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(_trailers) => continue,
            },
        }
    }
}

fn tls_config(ca: Option<&Path>) -> Result<rustls::ClientConfig, ImageError> {
    let mut roots = rustls::RootCertStore::empty();
    let system = SYSTEM_CERTIFICATES.iter().map(Path::new).find(|path| path.exists());
    for path in system.into_iter().chain(ca) {
        let bytes = std::fs::read(path).map_err(ImageError::io("read certificates from", path))?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| ImageError::format(path.display().to_string(), format!("{error:?}")))?;
        // Bundles of distributions hold a few that rustls does not take; the rest is still good.
        roots.add_parsable_certificates(certificates);
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| ImageError::format("TLS", error))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// Connects to the host of a URL.
#[derive(Clone)]
struct Connector {
    tls: Arc<rustls::ClientConfig>,
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let tls = self.tls.clone();
        Box::pin(async move { tokio::time::timeout(CONNECT_TIMEOUT, connect(url, tls)).await? })
    }
}

async fn connect(url: Uri, tls: Arc<rustls::ClientConfig>) -> Result<Stream, Failure> {
    let host = url.host().ok_or("the URL has no host")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let secure = url.scheme() != Some(&Scheme::HTTP);
    let port = url.port_u16().unwrap_or(if secure { 443 } else { 80 });
    let stream = connect_any(resolve(host).await?, port).await?;
    stream.set_nodelay(true)?;
    if !secure {
        return Ok(Stream(TokioIo::new(Box::pin(stream))));
    }
    let name = ServerName::try_from(host.to_owned())?;
    let stream = TlsConnector::from(tls).connect(name, stream).await?;
    Ok(Stream(TokioIo::new(Box::pin(stream))))
}

async fn connect_any(addresses: Vec<IpAddr>, port: u16) -> Result<TcpStream, Failure> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(address, port)).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last.into())
}

/// Addresses of a host, without the C library: the binary is static. A literal address, then `/etc/hosts`, then DNS.
pub async fn resolve(host: &str) -> Result<Vec<IpAddr>, Failure> {
    if let Ok(address) = host.parse() {
        return Ok(vec![address]);
    }
    let known = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
    let known = hosts_entries(&known, host);
    if !known.is_empty() {
        return Ok(known);
    }
    if host == "localhost" || host.ends_with(".localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let resolver = hickory_resolver::TokioResolver::builder_tokio()?.build()?;
    // With the dot it is the whole name: a search domain must not answer for a registry.
    Ok(resolver.lookup_ip(format!("{}.", host.trim_end_matches('.'))).await?.iter().collect())
}

/// The addresses `/etc/hosts` has for a name. hosts(5).
fn hosts_entries(file: &str, host: &str) -> Vec<IpAddr> {
    let lines = file.lines().map(|line| line.split('#').next().unwrap_or_default());
    lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
        })
        .collect()
}

trait Bidirectional: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Bidirectional for T {}

/// A TCP or TLS connection.
struct Stream(TokioIo<Pin<Box<dyn Bidirectional>>>);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl hyper::rt::Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_file() {
        let file = "127.0.0.1 localhost\n10.0.0.1\tone two # three\n::1 localhost ONE\nnonsense\n";
        let rows =
            [("one", vec!["10.0.0.1", "::1"]), ("two", vec!["10.0.0.1"]), ("three", vec![]), ("x", vec![])];
        for (host, expected) in rows {
            let expected: Vec<IpAddr> = expected.into_iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(hosts_entries(file, host), expected, "{host}");
        }
    }
}
