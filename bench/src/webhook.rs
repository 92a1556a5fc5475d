//! An admission webhook inside this program: it allows everything but one name, as fast as it can, so
//! that what is measured is the server's way to it and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde::Deserialize;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::error::{Context, Result};

/// The largest question that is read: an object, the one before it, and what stands around them.
const QUESTION_LIMIT: usize = 8 << 20;

/// A webhook that answers until it is dropped.
pub(crate) struct Webhook {
    /// Where the server asks.
    pub(crate) url: String,
    /// The certificate it must trust, PEM.
    pub(crate) authority: String,
    calls: Arc<AtomicUsize>,
    /// Ends with this.
    _tasks: JoinSet<()>,
}

impl Webhook {
    /// Begins to listen on a free port of this machine. Objects named `refused` are refused.
    pub(crate) async fn serve(refused: &'static str) -> Result<Self> {
        let what = || "could not start the webhook".to_string();
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_string()]).context(what)?;
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let tls = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .context(what)?
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into());
        let mut tls = tls.context(what)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];

        let listener = TcpListener::bind("127.0.0.1:0").await.context(what)?;
        let address = listener.local_addr().context(what)?;
        let calls = Arc::new(AtomicUsize::new(0));
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(listener, TlsAcceptor::from(Arc::new(tls)), refused, Arc::clone(&calls)));
        Ok(Self { url: format!("https://{address}/"), authority: made.cert.pem(), calls, _tasks: tasks })
    }

    /// Questions answered so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    refused: &'static str,
    calls: Arc<AtomicUsize>,
) {
    let mut connections = JoinSet::new();
    // A listener that fails is noticed by the server, whose calls then fail.
    while let Ok((stream, _)) = listener.accept().await {
        connections.spawn(serve(stream, acceptor.clone(), refused, Arc::clone(&calls)));
        while connections.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, refused: &'static str, calls: Arc<AtomicUsize>) {
    // Without it an answer may wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request| respond(request, refused, Arc::clone(&calls)));
    let server = auto::Builder::new(TokioExecutor::new());
    // A connection ends when the server wants it to.
    let _ = server.serve_connection(TokioIo::new(stream), service).await;
}

async fn respond(
    request: Request<Incoming>,
    refused: &'static str,
    calls: Arc<AtomicUsize>,
) -> http::Result<Response<Full<Bytes>>> {
    calls.fetch_add(1, Ordering::Relaxed);
    let body = Limited::new(request.into_body(), QUESTION_LIMIT).collect().await;
    match body.ok().and_then(|body| answer(&body.to_bytes(), refused)) {
        Some(answer) => Response::builder().header(CONTENT_TYPE, "application/json").body(Full::from(answer)),
        None => Response::builder().status(StatusCode::BAD_REQUEST).body(Full::default()),
    }
}

#[derive(Deserialize)]
struct Review {
    request: Question,
}

#[derive(Deserialize)]
struct Question {
    uid: String,
    #[serde(default)]
    name: String,
}

/// The answer to a review; `None` when it is not one.
fn answer(review: &[u8], refused: &str) -> Option<Vec<u8>> {
    let Question { uid, name } = serde_json::from_slice::<Review>(review).ok()?.request;
    let answer = json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "response": {"uid": uid, "allowed": name != refused},
    });
    serde_json::to_vec(&answer).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_reviews() {
        let rows = [
            (r#"{"request": {"uid": "1", "name": "a"}}"#, Some(true)),
            (r#"{"request": {"uid": "1", "name": "refused", "object": {"data": {}}}}"#, Some(false)),
            (r#"{"request": {"uid": "1"}}"#, Some(true)),
            (r#"{"request": {"name": "a"}}"#, None),
            ("", None),
        ];
        for (review, allowed) in rows {
            let answer = answer(review.as_bytes(), "refused");
            let answer: Option<serde_json::Value> =
                answer.map(|answer| serde_json::from_slice(&answer).expect("JSON"));
            assert_eq!(answer.as_ref().and_then(|a| a["response"]["allowed"].as_bool()), allowed, "{review}");
            if let Some(answer) = answer {
                assert_eq!(answer["response"]["uid"], "1", "{review}");
            }
        }
    }

    #[tokio::test]
    async fn servers_reach_it_with_the_certificate_it_gives() {
        let webhook = Webhook::serve("refused").await.expect("a free port");
        let mut config = kube::Config::new(webhook.url.parse().expect("an address"));
        let der = rustls::pki_types::pem::PemObject::from_pem_slice(webhook.authority.as_bytes());
        let der: rustls::pki_types::CertificateDer<'_> = der.expect("a certificate");
        config.root_cert = Some(vec![der.to_vec()]);
        let wire = crate::wire::Wire::new(&config).await.expect("a configuration");
        let mut connection = wire.connect().await.expect("a connection");
        let review = r#"{"request": {"uid": "1", "name": "a"}}"#;
        let answer = connection.exchange(http::Method::POST, "/", review).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(webhook.calls(), 1);
    }
}
