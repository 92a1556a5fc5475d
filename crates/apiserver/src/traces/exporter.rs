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
    /// Taken out of the queue, and neither sent nor lost yet.
    #[allow(clippy::vec_box)] // They come boxed through the queue.
    batch: Vec<Box<Finished>>,
    counts: Arc<Counts>,
}

impl Exporter {
    pub(super) fn new(
        settings: Arc<Settings>,
        queue: mpsc::Receiver<Box<Finished>>,
        counts: Arc<Counts>,
    ) -> Self {
        Self { settings, queue, batch: Vec::new(), counts }
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
            while self.next().await {
                let sent = collector.deliver(&self.batch).await;
                self.count(sent);
            }
        };
        // Wherever this stops, in a pause or while a batch is under way, what was taken is in `batch`.
        let stopped = tokio::select! {
            () = exporting => false,
            () = stopped => true,
        };
        if stopped {
            self.say_last_words(&mut collector).await;
        }
    }

    /// Takes the next spans; those that end soon after the first come with it. False when there will be none.
    async fn next(&mut self) -> bool {
        let Self { settings, queue, batch, .. } = self;
        let Some(first) = queue.recv().await else { return false };
        batch.push(first);
        let more = async {
            while batch.len() < MAX_BATCH
                && let Some(span) = queue.recv().await
            {
                batch.push(span);
            }
        };
        // Without it every span would be a request. The timer runs only when there is something to send.
        let _ = tokio::time::timeout(settings.delay, more).await;
        true
    }

    /// Sends what is left, in a time that is bounded for all of it. Of a batch that was under way nobody knows whether the
    /// collector has it: it is sent again, and a collector tells spans by their identifiers.
    async fn say_last_words(&mut self, collector: &mut Collector) {
        self.queue.close();
        let end = tokio::time::Instant::now() + LAST_WORDS;
        loop {
            while self.batch.len() < MAX_BATCH
                && let Ok(span) = self.queue.try_recv()
            {
                self.batch.push(span);
            }
            if self.batch.is_empty() {
                return;
            }
            let sent = tokio::time::timeout_at(end, collector.send(&self.batch)).await;
            let sent = sent.unwrap_or_else(|_| Err(Failure::again("there was no time left")));
            self.count(sent.map_err(|failure| failure.why));
        }
    }

    /// Counts the batch as sent or lost.
    fn count(&mut self, sent: Result<(), String>) {
        let spans = std::mem::take(&mut self.batch).len();
        match sent {
            Ok(()) => drop(self.counts.sent.fetch_add(spans as u64, Ordering::Relaxed)),
            Err(error) => {
                self.counts.lost(spans);
                let url = self.settings.endpoint.url();
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

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Mutex;

    use http_body_util::Empty;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use serde_json::Value;
    use tokio::net::TcpListener;
    use tokio::sync::oneshot;

    use super::super::context::SpanContext;
    use super::super::settings::Environment;
    use super::*;

    struct NoNames;

    #[async_trait::async_trait]
    impl Resolver for NoNames {
        async fn resolve(&self, _: &str) -> std::io::Result<Vec<IpAddr>> {
            Ok(Vec::new())
        }
    }

    /// What a collector does with the requests it gets, in order; the last goes for all that follow.
    #[derive(Clone, Copy)]
    enum Does {
        Take,
        Refuse,
        NotAnswer,
    }

    /// A collector: its port, and how many spans each request that it took had.
    async fn collector(does: &'static [Does]) -> (u16, Arc<Mutex<Vec<usize>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let taken = Arc::new(Mutex::new(Vec::new()));
        let (seen, asked) = (taken.clone(), Arc::new(AtomicU64::new(0)));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (taken, asked) = (seen.clone(), asked.clone());
                let service = service_fn(move |request: Request<Incoming>| {
                    let (taken, asked) = (taken.clone(), asked.clone());
                    async move {
                        let place = asked.fetch_add(1, Ordering::Relaxed) as usize;
                        let body = request.into_body().collect().await.expect("a body").to_bytes();
                        let document: Value = serde_json::from_slice(&body).expect("a document");
                        let spans = &document["resourceSpans"][0]["scopeSpans"][0]["spans"];
                        let code = match does[place.min(does.len() - 1)] {
                            Does::Take => {
                                taken
                                    .lock()
                                    .expect("not poisoned")
                                    .push(spans.as_array().map_or(0, Vec::len));
                                StatusCode::OK
                            }
                            Does::Refuse => StatusCode::SERVICE_UNAVAILABLE,
                            Does::NotAnswer => pending().await,
                        };
                        let mut response = http::Response::new(Empty::<Bytes>::new());
                        *response.status_mut() = code;
                        Ok::<_, std::convert::Infallible>(response)
                    }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        (port, taken)
    }

    fn settings(port: u16, delay: &str) -> Settings {
        let variable = |name: &str| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some(format!("http://127.0.0.1:{port}")),
            "OTEL_BSP_SCHEDULE_DELAY" => Some(delay.to_owned()),
            _ => None,
        };
        let file = |_: &str| Err(std::io::Error::other("no such file"));
        let settings = Settings::decide(None, &Environment { variable: &variable, file: &file });
        settings.expect("fine").expect("settings")
    }

    fn span() -> Box<Finished> {
        let context = SpanContext::parse("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        Box::new(Finished {
            context: context.expect("a context"),
            parent: None,
            link: None,
            name: "request".to_owned(),
            kind: super::super::layer::Kind::Server,
            start: 1,
            end: 2,
            attributes: Vec::new(),
            error: None,
        })
    }

    #[tokio::test]
    async fn the_end_sends_what_is_left() {
        use Does::{NotAnswer, Refuse, Take};
        // Delay, spans, what the collector does, milliseconds until the end, spans per request, sent, lost.
        type Row = (&'static str, usize, &'static [Does], u64, &'static [usize], u64, u64);
        let rows: [Row; 6] = [
            // The first of a batch waits for others.
            ("", 1, &[Take], 300, &[1], 1, 0),
            ("", 1100, &[Take], 300, &[512, 512, 76], 1100, 0),
            ("1", 3, &[Take], 300, &[3], 3, 0),
            // In the pause after a refusal, and while an answer is waited for.
            ("1", 2, &[Refuse, Take], 300, &[2], 2, 0),
            ("1", 2, &[NotAnswer, Take], 300, &[2], 2, 0),
            ("1", 600, &[Refuse], 300, &[], 0, 600),
        ];
        for (delay, spans, does, until, requests, sent, lost) in rows {
            let (port, taken) = collector(does).await;
            let (queue, receiver) = queue();
            let exporter = Exporter::new(Arc::new(settings(port, delay)), receiver, Arc::default());
            let counts = exporter.counts();
            let (stop, stopped) = oneshot::channel::<()>();
            for _ in 0..spans {
                queue.try_send(span()).expect("room");
            }
            let run = exporter.run(Arc::new(NoNames), async { drop(stopped.await) });
            let end = async {
                tokio::time::sleep(Duration::from_millis(until)).await;
                drop(stop);
            };
            tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(run, end) })
                .await
                .expect("it ends");
            let found = (counts.sent.load(Ordering::Relaxed), counts.lost.load(Ordering::Relaxed));
            assert_eq!(found, (sent, lost), "{spans} spans, delay {delay:?}");
            assert_eq!(*taken.lock().expect("not poisoned"), requests, "{spans} spans, delay {delay:?}");
        }
    }
}
