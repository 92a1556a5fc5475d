//! Traces: what a collector hears of a request, from the caller's `traceparent` to the webhook that is asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request};
use sampan_apiserver::{
    Access, Audit, Policy, Resolver, Sink, TraceEnvironment, TraceSettings, User, start_traces,
};
use serde_json::{Value, json};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::layer::SubscriberExt as _;

use crate::aggregation::{THINGS, extended};
use crate::outside::{Certificate, Outside, Seen, json_answer};
use crate::world::{JSON, World, admin, eventually, read};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const CALLER_TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// The collector is named by its address.
struct NoNames;

#[async_trait]
impl Resolver for NoNames {
    async fn resolve(&self, _: &str) -> std::io::Result<Vec<std::net::IpAddr>> {
        Err(std::io::Error::other("there are no names in this test"))
    }
}

struct Nowhere;

impl Sink for Nowhere {
    fn write(&mut self, _: &[u8]) -> std::io::Result<()> {
        Ok(())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A server whose traces go to a collector. The listener hears this thread only, which runs all of the test.
struct Traced {
    world: World,
    collector: Outside,
    _listening: DefaultGuard,
}

/// With a sampler, and a collector that refuses so many requests first.
async fn traced(sampler: &str, refusals: usize) -> Traced {
    let asked = AtomicUsize::new(0);
    let collector = Outside::json(Certificate::SelfSigned, &["127.0.0.1"], move |_| {
        let refuses = asked.fetch_add(1, Ordering::SeqCst) < refusals;
        Box::pin(async move { json_answer(if refuses { 503 } else { 200 }, "{}") })
    })
    .await;
    let authority = STANDARD.decode(&collector.bundle).expect("base64");
    let endpoint = format!("https://{}", collector.address);
    let variable = |name: &str| {
        let value = match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => endpoint.as_str(),
            "OTEL_EXPORTER_OTLP_HEADERS" => "x-key=secret",
            "OTEL_EXPORTER_OTLP_CERTIFICATE" => "/authority",
            "OTEL_TRACES_SAMPLER" => sampler,
            "OTEL_BSP_SCHEDULE_DELAY" => "5",
            _ => return None,
        };
        Some(value.to_owned())
    };
    let environment = TraceEnvironment { variable: &variable, file: &|_| Ok(authority.clone()) };
    let settings = TraceSettings::decide(None, &environment).expect("fine").expect("settings");
    let (layer, exporter) = start_traces(settings);
    let subscriber = tracing_subscriber::registry().with(layer.filtered());
    let audit = Audit::start(Policy::standard(), Nowhere).expect("a log");
    let access = Access { traces: Some(exporter.counts()), audit: Some(audit), ..Access::default() };
    let listening = tracing::subscriber::set_default(subscriber);
    tokio::spawn(exporter.run(Arc::new(NoNames), std::future::pending()));
    let world = World::with(access, |store, _| store).await;
    Traced { world, collector, _listening: listening }
}

/// A span as the collector hears of it.
#[derive(Clone, Debug)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    kind: u64,
    attributes: BTreeMap<String, Value>,
    whole: Value,
}

impl Traced {
    /// Every span so far.
    fn spans(&self) -> Vec<Span> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut spans = Vec::new();
        for Seen { path, headers, body, .. } in self.collector.seen() {
            assert_eq!(
                (path.as_str(), &headers["content-type"], &headers["x-key"]),
                ("/v1/traces", &JSON.parse().expect("a value"), &"secret".parse().expect("a value"))
            );
            let told = &body["resourceSpans"][0];
            assert_eq!(
                told["resource"]["attributes"][0],
                json!({"key": "service.name", "value": {"stringValue": "sampan"}})
            );
            for span in told["scopeSpans"][0]["spans"].as_array().expect("spans") {
                let attributes = span["attributes"].as_array().into_iter().flatten();
                let value = |of: &Value| {
                    of.as_object().and_then(|of| of.values().next()).cloned().unwrap_or_default()
                };
                spans.push(Span {
                    trace: text(&span["traceId"]),
                    id: text(&span["spanId"]),
                    parent: text(&span["parentSpanId"]),
                    name: text(&span["name"]),
                    kind: span["kind"].as_u64().unwrap_or_default(),
                    attributes: attributes.map(|a| (text(&a["key"]), value(&a["value"]))).collect(),
                    whole: span.clone(),
                });
            }
        }
        spans
    }

    /// The span of a request, when the collector has heard of it.
    async fn request(&self, method: &str, path: &str) -> Span {
        let mut found = None;
        eventually(&format!("a span of {method} {path}"), async || {
            found = self.spans().into_iter().find(|span| {
                span.kind == 2
                    && span.attributes["http.request.method"] == method
                    && span.attributes["url.path"] == path
            });
            found.is_some()
        })
        .await;
        found.expect("a span")
    }

    /// Sends a request with a `traceparent`.
    async fn send(&self, user: User, method: Method, path: &str, parent: &str, body: &str) -> u16 {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", JSON)
            .header("traceparent", parent)
            .header("tracestate", "a=b")
            .body(http_body_util::Full::from(body.to_owned()))
            .expect("a request");
        read(self.world.raw(user, request).await).await.code
    }
}

#[tokio::test]
async fn a_write_and_everything_below_it() {
    let traced = traced("parentbased_always_off", 0).await;
    let world = &traced.world;
    let webhook = Outside::json(Certificate::SelfSigned, &["127.0.0.1"], |seen| {
        let uid = seen.body["request"]["uid"].clone();
        let response = json!({"uid": uid, "allowed": true});
        Box::pin(async move {
            json_answer(
                200,
                json!({"kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response}),
            )
        })
    })
    .await;
    let configuration = json!({
        "metadata": {"name": "w"},
        "webhooks": [{
            "name": "w.example.com", "clientConfig": webhook.client_config("/ask"), "admissionReviewVersions": ["v1"],
            "sideEffects": "None", "matchPolicy": "Equivalent", "failurePolicy": "Fail", "timeoutSeconds": 10,
            "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"], "scope": "*"}],
        }],
    });
    world.install("validatingwebhookconfigurations.admissionregistration.k8s.io", &configuration).await;
    let map = json!({"metadata": {"name": "a"}}).to_string();
    assert_eq!(traced.send(admin(), Method::POST, MAPS, CALLER, &map).await, 201);

    let root = traced.request("POST", MAPS).await;
    assert_eq!(root.name, "POST /api/v1/namespaces/{:namespace}/configmaps");
    assert_eq!((root.trace.as_str(), root.parent.as_str()), (CALLER_TRACE, "b7ad6b7169203331"));
    for (attribute, value) in [
        ("http.route", json!("/api/v1/namespaces/{:namespace}/configmaps")),
        ("http.response.status_code", json!("201")),
        ("user_agent.original", json!("test/1")),
        ("user.name", json!("admin")),
        ("k8s.verb", json!("create")),
    ] {
        assert_eq!(root.attributes.get(attribute), Some(&value), "{attribute} of {root:?}");
    }
    assert!(root.attributes.contains_key("audit.id"), "{root:?}");
    assert!(root.whole.get("status").is_none(), "{root:?}");

    // Who is the child of whom, by name.
    let spans = traced.spans();
    let named = |id: &str| spans.iter().find(|span| span.id == id).map_or("?", |span| span.name.as_str());
    for (child, parent) in [
        ("wait for a seat", root.name.as_str()),
        ("mutating admission", root.name.as_str()),
        ("validating admission", root.name.as_str()),
        ("admission webhook", "validating admission"),
        ("POST", "admission webhook"),
        ("store transaction", root.name.as_str()),
    ] {
        let span =
            spans.iter().find(|span| span.name == child).unwrap_or_else(|| panic!("no {child}: {spans:?}"));
        assert_eq!((named(&span.parent), span.trace.as_str()), (parent, CALLER_TRACE), "{child}");
        let time = |span: &Span, end: &str| {
            span.whole[end].as_str().and_then(|t| t.parse::<u64>().ok()).expect("a time")
        };
        assert!(time(span, "startTimeUnixNano") >= time(&root, "startTimeUnixNano"), "{child}");
        assert!(time(span, "endTimeUnixNano") <= time(&root, "endTimeUnixNano"), "{child}");
    }
    // The webhook was told of the span that asked it, and of no other.
    let call = spans.iter().find(|span| span.name == "POST").expect("a call");
    let told = webhook.seen()[0].headers.clone();
    assert_eq!(told["traceparent"], format!("00-{CALLER_TRACE}-{}-01", call.id).as_str());
    assert!(!told.contains_key("tracestate"));
    assert_eq!(call.attributes["url.full"], format!("https://{}/ask", webhook.address));
    assert_eq!((call.kind, &call.attributes["http.response.status_code"]), (3, &json!("200")));
    // Nothing but this trace: the sampler takes none that begins here, and the server's own work is no trace.
    assert!(spans.iter().all(|span| span.trace == CALLER_TRACE), "{spans:?}");
    eventually("the spans are counted", async || {
        let metrics = world.get("/metrics").await.body.to_string();
        let count = metrics.split("\\nsampan_trace_spans_exported_total ").nth(1);
        let count = count.and_then(|rest| rest.split("\\n").next()?.parse::<usize>().ok());
        count.is_some_and(|count| count >= spans.len())
            && metrics.contains("\\nsampan_trace_spans_dropped_total 0\\n")
    })
    .await;
}

#[tokio::test]
async fn an_extension_server_is_told() {
    let traced = traced("parentbased_always_off", 0).await;
    let extension = extended(&traced.world, None).await;
    assert_eq!(traced.send(admin(), Method::GET, THINGS, CALLER, "").await, 200);
    let root = traced.request("GET", THINGS).await;
    let call = traced.spans().into_iter().find(|span| span.kind == 3 && span.parent == root.id);
    let call = call.expect("a call");
    assert_eq!(call.attributes["server.address"], "ext.default.svc");
    let seen = extension.seen();
    let seen = seen.iter().find(|seen| seen.path == THINGS).expect("a request");
    let told: Vec<&str> =
        seen.headers.get_all("traceparent").iter().filter_map(|value| value.to_str().ok()).collect();
    assert_eq!(told, [format!("00-{CALLER_TRACE}-{}-01", call.id)]);
}

#[tokio::test]
async fn whose_word_counts() {
    let traced = traced("parentbased_always_off", 0).await;
    let unsampled = CALLER.replace("-01", "-00");
    let monitoring = User::known("prometheus", &["system:monitoring"]);
    assert_eq!(traced.send(admin(), Method::GET, "/api/v1/namespaces/default", &unsampled, "").await, 200);
    assert_eq!(traced.send(User::known("eve", &[]), Method::GET, "/version", CALLER, "").await, 200);
    assert_eq!(traced.send(admin(), Method::GET, "/readyz", CALLER, "").await, 200);
    assert_eq!(traced.send(monitoring, Method::GET, "/metrics", CALLER, "").await, 200);
    let heard = traced.request("GET", "/metrics").await;
    assert_eq!(heard.trace, CALLER_TRACE);
    let servers: Vec<Span> = traced.spans().into_iter().filter(|span| span.kind == 2).collect();
    assert_eq!(servers.len(), 1, "{servers:?}");
}

#[tokio::test]
async fn anybody_is_linked_to() {
    // The collector does not take the first batch, which is sent again.
    let traced = traced("always_on", 1).await;
    assert_eq!(traced.send(User::known("eve", &[]), Method::GET, "/version", CALLER, "").await, 200);
    assert_eq!(traced.send(User::known("eve", &[]), Method::GET, MAPS, "nonsense", "").await, 403);
    let span = traced.request("GET", "/version").await;
    assert_ne!(span.trace, CALLER_TRACE);
    assert_eq!((span.name.as_str(), span.parent.as_str()), ("GET", ""));
    assert_eq!(span.whole["links"], json!([{"traceId": CALLER_TRACE, "spanId": "b7ad6b7169203331"}]));
    eventually("the batch that was not taken is sent again", async || {
        let told = |seen: &Seen| seen.body.to_string().contains(&span.id);
        traced.collector.seen().iter().filter(|seen| told(seen)).count() == 2
    })
    .await;
    let refused = traced.request("GET", MAPS).await;
    assert_eq!(refused.attributes["http.response.status_code"], "403");
    assert!(refused.whole.get("links").is_none() && refused.whole.get("status").is_none(), "{refused:?}");
    assert_ne!(refused.trace, span.trace);
}
