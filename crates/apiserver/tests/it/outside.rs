//! A server outside of the API server: TLS on a port of its own, answering as the test says.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use rustls::server::WebPkiClientVerifier;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;
type Answerer =
    Arc<dyn Fn(Seen, Request<hyper::body::Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: HeaderMap,
    /// JSON, or null.
    pub(crate) body: Value,
    /// Common name of the client's certificate.
    pub(crate) client: Option<String>,
}

/// A running server.
pub(crate) struct Outside {
    pub(crate) address: SocketAddr,
    /// PEM in base64 that the server's certificate can be checked with.
    pub(crate) bundle: String,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// How the server proves who it is.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Certificate {
    /// Signed by an authority, which is the bundle.
    Signed,
    /// By nobody else; it is the bundle itself.
    SelfSigned,
}

/// Bundle, chain and key for these names.
fn credentials(kind: Certificate, names: &[&str]) -> (String, String, String) {
    let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
    let key = KeyPair::generate().expect("a key");
    let mut leaf = CertificateParams::new(names).expect("names");
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    if kind == Certificate::SelfSigned {
        let pem = leaf.self_signed(&key).expect("a certificate").pem();
        return (pem.clone(), pem, key.serialize_pem());
    }
    let ca_key = KeyPair::generate().expect("a key");
    let mut ca = CertificateParams::default();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let ca_pem = ca.self_signed(&ca_key).expect("an authority").pem();
    let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).expect("an issuer");
    let pem = leaf.signed_by(&key, &issuer).expect("a certificate").pem();
    (ca_pem, pem, key.serialize_pem())
}

/// An answer of JSON.
pub(crate) fn json_answer(code: u16, body: impl ToString) -> Response<Body> {
    let body = Full::new(Bytes::from(body.to_string())).boxed_unsync();
    Response::builder().status(code).header("content-type", "application/json").body(body).expect("an answer")
}

impl Outside {
    /// A server that answers JSON; `answer` may take its time.
    pub(crate) async fn json<F>(certificate: Certificate, names: &[&str], answer: F) -> Self
    where
        F: Fn(Seen) -> BoxFuture<'static, Response<Body>> + Send + Sync + 'static,
    {
        Self::start(certificate, names, None, Arc::new(move |seen, _| answer(seen))).await
    }

    /// A server that gets the requests themselves, too, and demands certificates of an authority (PEM) from clients.
    pub(crate) async fn start(
        certificate: Certificate,
        names: &[&str],
        clients: Option<&str>,
        answer: Answerer,
    ) -> Self {
        let (bundle, chain, key) = credentials(certificate, names);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .expect("versions");
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = rustls::RootCertStore::empty();
                roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")).expect("a root");
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                builder.with_client_cert_verifier(verifier.build().expect("a verifier"))
            }
        };
        let chain = CertificateDer::pem_slice_iter(chain.as_bytes()).map(|c| c.expect("PEM")).collect();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key");
        let tls = builder.with_single_cert(chain, key).expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (seen, connections) = (Arc::<Mutex<Vec<Seen>>>::default(), Arc::<AtomicUsize>::default());
        let task = tokio::spawn({
            let (seen, connections) = (seen.clone(), connections.clone());
            async move {
                // Connections end with the server.
                let mut open = tokio::task::JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, answer, seen) = (acceptor.clone(), answer.clone(), seen.clone());
                    connections.fetch_add(1, Ordering::SeqCst);
                    open.spawn(async move {
                        let Ok(stream) = acceptor.accept(stream).await else { return };
                        let client =
                            stream.get_ref().1.peer_certificates().and_then(|c| common_name(c.first()?));
                        let service = service_fn(move |request| {
                            let (answer, seen, client) = (answer.clone(), seen.clone(), client.clone());
                            async move { Ok::<_, Infallible>(take(request, client, &seen, &answer).await) }
                        });
                        let connection = hyper::server::conn::http1::Builder::new()
                            .serve_connection(TokioIo::new(stream), service);
                        let _ = connection.with_upgrades().await;
                    });
                }
            }
        });
        Self { address, bundle: STANDARD.encode(bundle), seen, connections, task }
    }

    /// `clientConfig` of a webhook here.
    pub(crate) fn client_config(&self, path: &str) -> Value {
        serde_json::json!({"url": format!("https://{}{path}", self.address), "caBundle": self.bundle})
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().expect("not poisoned").clone()
    }

    /// Connections accepted so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    Some(name)
}

async fn take(
    mut request: Request<hyper::body::Incoming>,
    client: Option<String>,
    seen: &Mutex<Vec<Seen>>,
    answer: &Answerer,
) -> Response<Body> {
    let body = request.body_mut().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let path = request.uri().path_and_query().map_or("", |p| p.as_str()).to_owned();
    let one = Seen {
        method: request.method().clone(),
        path,
        headers: request.headers().clone(),
        body: serde_json::from_slice(&body).unwrap_or_default(),
        client,
    };
    seen.lock().expect("not poisoned").push(one.clone());
    answer(one, request).await
}
