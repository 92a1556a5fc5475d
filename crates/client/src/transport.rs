//! The client over the API server of the same process.
//!
//! It only adapts types. TLS clients to a remote server are made with kube's own configuration.

use bytes::Bytes;
use http::{Request, Response};
use kube::client::Body;
use tower::{BoxError, Service};

/// A client whose requests are calls of `service`: no socket, no TLS, no second copy of the body.
///
/// `service` is what serves the HTTP API, with its own authentication decided by whoever built it
/// (the in-process parts are trusted by construction). Must be called inside a tokio runtime, for
/// kube keeps a small task in front of the service so that clones of the client are cheap.
///
/// No layer with a timeout may be put in front of `service`: a watch is one request that lasts as
/// long as its reader.
pub fn in_process<S, B>(service: S) -> kube::Client
where
    S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    kube::Client::new(service, "default")
}
