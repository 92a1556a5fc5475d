//! Sends finished spans to the collector: OTLP over HTTP/1.1, one connection, one batch at a time.
//!
//! Spans wait in a bounded queue. While the collector does not answer, the queue fills, and what does not fit into it is
//! dropped and counted: no request ever waits for a collector. When nothing is traced, nothing runs.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsConnector;

use super::layer::Finished;
use super::otlp;
use super::settings::Settings;
use crate::metrics::family;
use crate::outbound::{Resolver, Trust};
use crate::proxy::Stream;

/// Finished spans that wait; some hundred bytes each.
const MAX_QUEUED: usize = 4096;
/// Spans of one request.
const MAX_BATCH: usize = 512;
/// How long the collector may take for one batch.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses before a batch that was not taken is sent again; then it is lost.
const PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
/// How long the end of the program waits for what is left.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Addresses of the collector that are tried.
const MAX_ADDRESSES: usize = 3;
/// What is read of an answer, which says nothing of use.
const MAX_ANSWER: usize = 64 * 1024;

/// Where finished spans wait.
pub(super) type Queue = mpsc::Sender<Box<Finished>>;

pub(super) fn queue() -> (Queue, mpsc::Receiver<Box<Finished>>) {
    mpsc::channel(MAX_QUEUED)
}

/// What became of finished spans.
#[derive(Debug, Default)]
pub struct Counts {
    sent: AtomicU64,
    lost: AtomicU64,
}

impl Counts {
    pub(super) fn lost(&self, spans: usize) {
        self.lost.fetch_add(spans as u64, Ordering::Relaxed);
    }

    pub(crate) fn render(&self, out: &mut String) {
        use std::fmt::Write as _;
        let rows = [
            ("sampan_trace_spans_exported_total", "Spans that the collector has taken.", &self.sent),
            ("sampan_trace_spans_dropped_total", "Spans that were lost before that.", &self.lost),
        ];
        for (name, help, count) in rows {
            family(out, name, "counter", help);
            let _ = writeln!(out, "{name} {}", count.load(Ordering::Relaxed));
        }
    }
}

/// Sends what waits.
pub struct Exporter {
    settings: Arc<Settings>,
    queue: mpsc::Receiver<Box<Finished>>,
    counts: Arc<Counts>,
}

impl Exporter {
    pub(super) fn new(
        settings: Arc<Settings>,
        queue: mpsc::Receiver<Box<Finished>>,
        counts: Arc<Counts>,
    ) -> Self {
        Self { settings, queue, counts }
    }

    /// What becomes of spans, for the server's metrics.
    pub fn counts(&self) -> Arc<Counts> {
        self.counts.clone()
    }

    /// Sends until `stopped` is ready, then what is left. `resolver` knows the collector's address.
    pub async fn run(mut self, resolver: Arc<dyn Resolver>, stopped: impl Future<Output = ()> + Send) {
        let mut collector = match Collector::new(self.settings.clone(), resolver) {
            Ok(collector) => collector,
            Err(error) => {
                tracing::error!(error, "traces cannot be exported");
                return;
            }
        };
        let exporting = async {
            while let Some(batch) = self.next().await {
                let spans = batch.len();
                let sent = collector.deliver(&batch).await;
                self.count(spans, sent, &self.settings.endpoint.url());
            }
        };
        let over = tokio::select! {
            () = exporting => true,
            () = stopped => false,
        };
        if !over {
            self.queue.close();
            let mut rest = Vec::new();
            while let Ok(span) = self.queue.try_recv() {
                rest.push(span);
            }
            if !rest.is_empty() {
                let sent = tokio::time::timeout(LAST_WORDS, collector.send(&rest)).await;
                let sent =
                    sent.unwrap_or_else(|_| Err(Failure::again("there was no time left"))).map_err(|f| f.why);
                self.count(rest.len(), sent, &self.settings.endpoint.url());
            }
        }
    }

    /// The next spans; those that end soon after the first come with it. `None` when there will be none.
    async fn next(&mut self) -> Option<Vec<Box<Finished>>> {
        let mut batch = vec![self.queue.recv().await?];
        let more = async {
            while batch.len() < MAX_BATCH
                && let Some(span) = self.queue.recv().await
            {
                batch.push(span);
            }
        };
        // Without it every span would be a request. The timer runs only when there is something to send.
        let _ = tokio::time::timeout(self.settings.delay, more).await;
        Some(batch)
    }

    fn count(&self, spans: usize, sent: Result<(), String>, url: &str) {
        match sent {
            Ok(()) => drop(self.counts.sent.fetch_add(spans as u64, Ordering::Relaxed)),
            Err(error) => {
                self.counts.lost(spans);
                tracing::warn!(error, spans, url, "the collector does not take traces");
            }
        }
    }
}

/// Why a batch was not taken.
struct Failure {
    why: String,
    /// Whether it may be taken later.
    again: bool,
}

impl Failure {
    fn again(why: impl ToString) -> Self {
        Self { why: why.to_string(), again: true }
    }
}

/// The connection to the collector.
struct Collector {
    settings: Arc<Settings>,
    resolver: Arc<dyn Resolver>,
    tls: Option<TlsConnector>,
    kept: Option<SendRequest<Full<Bytes>>>,
}

impl Collector {
    fn new(settings: Arc<Settings>, resolver: Arc<dyn Resolver>) -> Result<Self, String> {
        let trust = match &settings.authorities {
            Some(pem) => Trust::Bundle(pem.as_slice().into()),
            None => Trust::System,
        };
        let tls = match settings.endpoint.tls {
            true => Some(TlsConnector::from(trust.client_config(None)?)),
            false => None,
        };
        Ok(Self { settings, resolver, tls, kept: None })
    }

    /// Sends a batch, again if need be.
    async fn deliver(&mut self, batch: &[Box<Finished>]) -> Result<(), String> {
        let mut pauses = PAUSES.iter();
        loop {
            let sent = tokio::time::timeout(PATIENCE, self.send(batch)).await;
            let Err(failure) = sent.unwrap_or_else(|_| Err(Failure::again("context deadline exceeded")))
            else {
                return Ok(());
            };
            self.kept = None;
            match pauses.next().filter(|_| failure.again) {
                Some(pause) => tokio::time::sleep(*pause).await,
                None => return Err(failure.why),
            }
        }
    }

    async fn send(&mut self, batch: &[Box<Finished>]) -> Result<(), Failure> {
        let document = otlp::document(&self.settings.resource, batch).to_string();
        let kept = match self.kept.take() {
            Some(mut kept) => kept.ready().await.is_ok().then_some(kept),
            None => None,
        };
        let mut sender = match kept {
            Some(kept) => kept,
            None => self.connect().await.map_err(Failure::again)?,
        };
        let request = self.request(document).map_err(|why| Failure { why, again: false })?;
        let response = sender.send_request(request).await.map_err(Failure::again)?;
        let code = response.status();
        // The connection is good for the next batch when the answer has been read.
        if Limited::new(response.into_body(), MAX_ANSWER).collect().await.is_ok() {
            self.kept = Some(sender);
        }
        match code {
            code if code.is_success() => Ok(()),
            // The codes that the protocol calls retryable.
            StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => Err(Failure::again(code)),
            code => Err(Failure { why: code.to_string(), again: false }),
        }
    }

    fn request(&self, document: String) -> Result<Request<Full<Bytes>>, String> {
        let endpoint = &self.settings.endpoint;
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(&endpoint.path)
            .header(HOST, endpoint.authority())
            .body(Full::new(document.into()))
            .map_err(|e| e.to_string())?;
        request.headers_mut().extend(self.settings.headers.clone());
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        Ok(request)
    }

    async fn connect(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let endpoint = &self.settings.endpoint;
        let host = endpoint.host.trim_matches(['[', ']']);
        let stream = self.reach(host, endpoint.port).await?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(stream),
            Some(tls) => {
                let name = ServerName::try_from(host.to_owned()).map_err(|e| e.to_string())?;
                Box::new(tls.connect(name, stream).await.map_err(|e| format!("tls: {e}"))?)
            }
        };
        let (sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the connection to the collector ended");
            }
        });
        Ok(sender)
    }

    async fn reach(&self, host: &str, port: u16) -> Result<TcpStream, String> {
        let addresses = match host.parse::<IpAddr>() {
            Ok(address) => vec![address],
            Err(_) => self.resolver.resolve(host).await.map_err(|e| format!("lookup {host}: {e}"))?,
        };
        let mut why = format!("lookup {host}: no such host");
        for address in addresses.into_iter().take(MAX_ADDRESSES) {
            match TcpStream::connect(SocketAddr::new(address, port)).await {
                Ok(stream) => return Ok(stream),
                Err(error) => why = format!("dial tcp {address}:{port}: {error}"),
            }
        }
        Err(why)
    }
}
