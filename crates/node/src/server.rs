//! The node's HTTP interface: logs, exec, attach, port-forward, figures.
//!
//! Paths and queries are the kubelet's, because the API server passes what clients send through unchanged. Who may ask
//! has been decided before a connection gets here.

mod body;
mod channel;
mod exec;
pub(crate) mod logs;
mod port_forward;
mod query;
mod remote_command;
mod spdy;
mod spdy_connection;
mod stats;
mod target;
mod tunnel;
mod upgrade;
mod websocket;

use std::convert::Infallible;
use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use self::body::NodeBody;
use crate::context::Context;

/// An answer that is not what the client wanted: status and one sentence.
#[derive(Debug)]
pub(crate) struct HttpError(pub(crate) StatusCode, pub(crate) String);

impl HttpError {
    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self(StatusCode::NOT_FOUND, message.into())
    }

    pub(crate) fn internal(error: &(dyn std::error::Error + 'static)) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, crate::error::chain(error))
    }

    fn into_response(self) -> Response<NodeBody> {
        respond(self.0, "text/plain; charset=utf-8", self.1)
    }
}

/// A whole answer.
pub(crate) fn respond(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<bytes::Bytes>,
) -> Response<NodeBody> {
    let mut response = Response::new(NodeBody::full(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// Serves one connection until it ends.
pub(crate) async fn serve<S>(context: Arc<Context>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| {
        let context = Arc::clone(&context);
        async move { Ok::<_, Infallible>(answer(context, request).await) }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection to the node ended early");
    }
}

async fn answer(context: Arc<Context>, request: Request<Incoming>) -> Response<NodeBody> {
    let path = request.uri().path().trim_matches('/').to_string();
    let parts: Vec<&str> = path.split('/').collect();
    let result = match parts.as_slice() {
        ["healthz"] => Ok(respond(StatusCode::OK, "text/plain; charset=utf-8", "ok")),
        ["stats", "summary"] => stats::summary(&context).await,
        ["containerLogs", namespace, pod, container] if request.method() == Method::GET => {
            logs::serve(context, target::Address::new(namespace, pod, container), request.uri().query()).await
        }
        // Newer clients put the pod's uid before the container.
        ["exec", namespace, pod, container] | ["exec", namespace, pod, _, container] => {
            exec::exec(context, target::Address::new(namespace, pod, container), request).await
        }
        ["attach", namespace, pod, container] | ["attach", namespace, pod, _, container] => {
            exec::attach(context, target::Address::new(namespace, pod, container), request).await
        }
        ["portForward", namespace, pod] | ["portForward", namespace, pod, _] => {
            port_forward::serve(context, target::Address::new(namespace, pod, ""), request).await
        }
        _ => Err(HttpError::not_found("404 page not found")),
    };
    result.unwrap_or_else(HttpError::into_response)
}
