//! Traces (KEP-647): what a request spent its time on, told to an OpenTelemetry collector.
//!
//! Code that takes time makes `tracing` spans of the target [`TARGET`]; [`layer`] turns those of sampled requests into
//! records, [`exporter`] sends them as OTLP over HTTP, encoded by [`otlp`], and [`settings`] says where to. Without
//! settings no layer is installed: a span of the target is then a load and a comparison, and nothing is allocated.
//!
//! Fields that begin with `otel.` are ours, all others are attributes:
//!
//! | field | meaning |
//! | --- | --- |
//! | `otel.root` | the span may begin a trace; a span without it and without a parent is not told |
//! | `otel.name`, `otel.kind` | name and kind (`server`, `client`) instead of the name in the source and `internal` |
//! | `otel.start` | when it began, nanoseconds since 1970, if that was before it was made |
//! | `otel.parent` | `traceparent` of a caller who is trusted: the span belongs to the caller's trace |
//! | `otel.link` | `traceparent` of anybody: a link, which decides nothing |
//! | `otel.error` | what went wrong |
//!
//! Whoever may send requests could otherwise decide how much is exported and into which traces, so a caller's
//! `traceparent` counts if the caller is in `system:masters` or `system:monitoring`, as upstream has it.

pub(crate) mod context;
pub(crate) mod exporter;
pub(crate) mod layer;
mod otlp;
pub(crate) mod settings;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::header::{HeaderName, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use tracing::field::{Empty, display};
use tracing::{Level, Span};

use crate::access_log;
use crate::audit::{AUDIT_ID, PeerAddress};
use crate::auth::{MASTERS, User};
use crate::error::ApiError;
use crate::request::{RequestInfo, ResourcePath};
use crate::respond::{ApiBody, ApiResponse};
use context::SpanContext;
use exporter::Exporter;
use layer::SpanLayer;
use settings::Settings;

/// Target of spans that are told. It begins no module's name: the log's filter takes targets for prefixes.
pub const TARGET: &str = "sampan_trace";

/// May say which trace a request belongs to, beside administrators.
const MONITORING: &str = "system:monitoring";
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// What becomes of spans: one half listens, the other sends.
pub fn start(settings: Settings) -> (SpanLayer, Exporter) {
    let settings = Arc::new(settings);
    let (sender, receiver) = exporter::queue();
    let counts = Arc::new(exporter::Counts::default());
    (SpanLayer::new(settings.sampler, sender, counts.clone()), Exporter::new(settings, receiver, counts))
}

/// Whether anybody listens.
fn enabled() -> bool {
    tracing::span_enabled!(target: TARGET, Level::INFO)
}

/// The current span, for work that goes on in another task.
pub(crate) fn current() -> Span {
    if enabled() { Span::current() } else { Span::none() }
}

/// The span of a request that began so long ago.
pub(crate) fn request(
    request: &Request<ApiBody>,
    info: &RequestInfo,
    user: Option<&User>,
    age: Duration,
) -> Span {
    // Whoever looks at health does so all the time.
    let is_probe = || ["/livez", "/readyz", "/healthz"].iter().any(|path| info.path.starts_with(path));
    if !enabled() || is_probe() {
        return Span::none();
    }
    let text = |name: HeaderName| request.headers().get(name).and_then(|value| value.to_str().ok());
    let caller = text(TRACEPARENT).filter(|text| SpanContext::parse(text).is_some());
    let trusted = user.is_some_and(|user| user.is_in(MASTERS) || user.is_in(MONITORING));
    let route = info.resource.as_ref().map(route);
    let name = match &route {
        Some(route) => format!("{} {route}", request.method()),
        None => request.method().to_string(),
    };
    let start = SystemTime::now() - age;
    let peer = request.extensions().get::<PeerAddress>();
    tracing::info_span!(
        target: TARGET,
        "request",
        otel.root = true,
        otel.name = name,
        otel.kind = "server",
        otel.start = nanoseconds(start),
        otel.parent = caller.filter(|_| trusted),
        otel.link = caller.filter(|_| !trusted),
        otel.error = Empty,
        http.request.method = request.method().as_str(),
        http.route = route,
        url.scheme = "https",
        url.path = info.path,
        user_agent.original = text(USER_AGENT),
        client.address = peer.map(|peer| display(peer.0.ip().to_canonical())),
        network.protocol.version = protocol(request.version()),
        user.name = user.map(|user| user.name.as_str()),
        k8s.verb = info.verb,
        http.response.status_code = Empty,
        error.type = Empty,
        audit.id = Empty,
    )
}

/// Says in the span of a request what became of it.
pub(crate) fn answered(span: &Span, result: &Result<ApiResponse, ApiError>) {
    if span.is_disabled() {
        return;
    }
    let code = access_log::code(result);
    span.record("http.response.status_code", code.as_u16());
    if code.is_server_error() {
        span.record("error.type", code.as_str());
        span.record("otel.error", result.as_ref().err().map_or("", |error| error.message.as_str()));
    }
    let id = result.as_ref().ok().and_then(|response| response.headers().get(AUDIT_ID)?.to_str().ok());
    if let Some(id) = id {
        span.record("audit.id", id);
    }
}

/// The span of a request to somebody else, who is told of it. Outside of a traced request there is none.
pub(crate) fn outgoing(method: &Method, authority: &str, path: &str, headers: &mut HeaderMap) -> Span {
    if !enabled() || layer::context_of(&Span::current()).is_none() {
        return Span::none();
    }
    let (host, port) = authority.rsplit_once(':').unwrap_or((authority, ""));
    let path = path.split('?').next().unwrap_or_default();
    let span = tracing::info_span!(
        target: TARGET,
        "outgoing",
        otel.name = method.as_str(),
        otel.kind = "client",
        otel.error = Empty,
        http.request.method = method.as_str(),
        url.full = format!("https://{authority}{path}"),
        server.address = host,
        server.port = port.parse::<u16>().ok(),
        http.response.status_code = Empty,
        error.type = Empty,
    );
    let context = layer::context_of(&span);
    if let Some(value) = context.and_then(|context| HeaderValue::try_from(context.to_string()).ok()) {
        headers.insert(TRACEPARENT, value);
        // It is about another parent.
        headers.remove(TRACESTATE);
    }
    span
}

/// Says in the span of an outgoing request what came of it.
pub(crate) fn came<B, E: std::fmt::Display>(span: &Span, result: &Result<http::Response<B>, E>) {
    if span.is_disabled() {
        return;
    }
    match result {
        Ok(response) => {
            let code = response.status();
            span.record("http.response.status_code", code.as_u16());
            if code.is_client_error() || code.is_server_error() {
                span.record("error.type", code.as_str());
                span.record("otel.error", "");
            }
        }
        Err(error) => {
            span.record("error.type", "_OTHER");
            span.record("otel.error", display(error));
        }
    }
}

/// A part of a request that takes time.
macro_rules! part {
    ($name:literal $(, $($fields:tt)*)?) => {
        tracing::info_span!(target: $crate::traces::TARGET, $name $(, $($fields)*)?)
    };
}
pub(crate) use part;

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The address with names left out, so that there are few of them; written as upstream does.
fn route(path: &ResourcePath) -> String {
    let mut route = match path.group.as_str() {
        "" => format!("/api/{}", path.version),
        group => format!("/apis/{group}/{}", path.version),
    };
    if !path.namespace.is_empty() {
        route.push_str("/namespaces/{:namespace}");
    }
    route.push('/');
    route.push_str(&path.resource);
    if !path.name.is_empty() {
        route.push_str("/{:name}");
    }
    if !path.subresource.is_empty() {
        route.push('/');
        route.push_str(&path.subresource);
    }
    route
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "2",
        Version::HTTP_10 => "1.0",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_left_out() {
        for (path, expected) in [
            ("/api/v1/pods", Some("/api/v1/pods")),
            ("/api/v1/namespaces/a/pods/b", Some("/api/v1/namespaces/{:namespace}/pods/{:name}")),
            (
                "/apis/apps/v1/namespaces/a/deployments/b/scale",
                Some("/apis/apps/v1/namespaces/{:namespace}/deployments/{:name}/scale"),
            ),
            ("/version", None),
        ] {
            let info = RequestInfo::parse(&Method::GET, &path.parse().expect("an address"));
            assert_eq!(info.resource.as_ref().map(route).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn nothing_is_made_when_nobody_listens() {
        let info = RequestInfo::parse(&Method::GET, &"/api/v1/pods".parse().expect("an address"));
        let asked = Request::get("/api/v1/pods").body(crate::respond::full("")).expect("a request");
        assert!(request(&asked, &info, None, Duration::ZERO).is_none());
        assert!(part!("a part").is_disabled() && current().is_none());
        let mut headers = HeaderMap::new();
        assert!(outgoing(&Method::GET, "a.b.svc:443", "/", &mut headers).is_none() && headers.is_empty());
    }
}
