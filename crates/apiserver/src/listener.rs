//! The API on the network: TLS, HTTP/1.1 and HTTP/2, and the user a client certificate names.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Request;
use http::header::{HeaderValue, USER_AGENT};
use http_body_util::BodyExt as _;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::audit::PeerAddress;
use crate::auth::User;
use crate::auth::certificates::PeerCertificate;
use crate::respond::{ApiBody, ApiResponse, BodyError, BoxError};
use crate::server::ApiServer;

/// Connections at once; one costs about 30 KiB.
const MAX_CONNECTIONS: usize = 10_000;
/// A client that has not finished its handshake or headers by then is dropped.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at once on one HTTP/2 connection, as upstream (250 there; clients with many informers need more).
const MAX_STREAMS: u32 = 1000;

/// Accepts connections until the task is dropped.
pub async fn serve(server: Arc<ApiServer>, listener: TcpListener, tls: Arc<rustls::ServerConfig>) {
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: others must close first.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (server, acceptor) = (server.clone(), acceptor.clone());
        tokio::spawn(async move {
            if let Err(error) = connection(server, acceptor, stream).await {
                tracing::debug!(%error, "connection ended");
            }
            drop(slot);
        });
    }
}

async fn connection(
    server: Arc<ApiServer>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let address = PeerAddress(stream.peer_addr()?);
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let certificates = stream.get_ref().1.peer_certificates();
    let peer = certificates.and_then(|chain| server.authenticators.peer(chain)).map(Arc::new);
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let (server, peer) = (server.clone(), peer.clone());
        async move {
            let mut request = request.map(|body| body.map_err(BodyError::new).boxed_unsync());
            request.extensions_mut().insert(address);
            if let Some(peer) = peer {
                request.extensions_mut().insert::<Arc<PeerCertificate>>(peer);
            }
            Ok::<_, Infallible>(server.handle(request, None).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS).keep_alive_interval(None);
    builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await
}

/// The API as a tower service for clients in the same process, speaking as one user.
#[derive(Clone)]
pub struct InProcess {
    server: Arc<ApiServer>,
    user: User,
    agent: HeaderValue,
}

impl InProcess {
    /// Requests are made as `user` and authorised like any other; `agent` names the writer in `managedFields`.
    pub fn new(server: Arc<ApiServer>, user: User, agent: &'static str) -> Self {
        Self { server, user, agent: HeaderValue::from_static(agent) }
    }
}

impl<B> tower::Service<Request<B>> for InProcess
where
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = ApiResponse;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<ApiResponse, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (server, user) = (self.server.clone(), self.user.clone());
        let mut request: Request<ApiBody> = request.map(|body| body.map_err(BodyError::new).boxed_unsync());
        request.headers_mut().insert(USER_AGENT, self.agent.clone());
        Box::pin(async move { Ok(server.handle(request, Some(user)).await) })
    }
}
