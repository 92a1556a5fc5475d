//! What the server counts, in Prometheus' text form and under the names that Kubernetes' own dashboards ask for.
//!
//! Counting a request is some look-ups in shared maps and some atomic additions: resources, verbs and subresources are
//! small numbers, a set of labels fits into eight bytes, and text is made only for whoever asks. What a client sends is
//! never a label: unknown resources and paths are counted together, so that nobody can make the server remember names.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use http::{Method, StatusCode};
use sampan_api::kind::Subresource;
use sampan_api::registry::Kind;

use crate::request::RequestInfo;

mod histogram;
mod process;
mod sharded;
mod store;

pub(crate) use self::histogram::Histogram;
pub(crate) use self::store::TimedStore;

use self::sharded::Sharded;

const VERBS: &[&str] = &[
    "",
    "GET",
    "LIST",
    "WATCH",
    "POST",
    "PUT",
    "PATCH",
    "APPLY",
    "DELETE",
    "DELETECOLLECTION",
    "CONNECT",
    "HEAD",
    "OPTIONS",
];
const SCOPES: &[&str] = &["", "resource", "namespace", "cluster"];
/// What may stand in the label `subresource`: subresources, and the first part of addresses that are no resources.
const SUBRESOURCES: &[&str] = &[
    "",
    "status",
    "scale",
    "finalize",
    "binding",
    "eviction",
    "ephemeralcontainers",
    "resize",
    "log",
    "exec",
    "attach",
    "portforward",
    "proxy",
    "token",
    "approval",
    "/api",
    "/apis",
    "/healthz",
    "/livez",
    "/metrics",
    "/openapi",
    "/readyz",
    "/version",
    "/.well-known",
];
/// Resources with a number of their own; further ones are counted together.
const MAX_RESOURCES: usize = 4096;
/// Label sets of webhooks that are remembered; a cluster has some dozens.
const MAX_WEBHOOK_SERIES: usize = 1000;

/// Seconds a request took; upstream's bounds.
const REQUEST_BOUNDS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0,
    20.0, 30.0, 45.0, 60.0,
];
const WEBHOOK_BOUNDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 25.0];
const STORE_BOUNDS: &[f64] =
    &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.025, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];

/// What a request is about, as small numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Labels {
    /// Index into the list of resources; 0 is none or an unknown one.
    resource: u16,
    /// Of the answer; 0 where it plays no part.
    code: u16,
    verb: u8,
    subresource: u8,
    scope: u8,
    dry_run: bool,
}

impl Labels {
    fn without_code(self) -> Self {
        Self { code: 0, ..self }
    }

    fn mutating(self) -> bool {
        !["GET", "LIST", "WATCH", "HEAD", "OPTIONS", ""].contains(&VERBS[usize::from(self.verb)])
    }
}

/// Group, version and plural name of a resource.
type ResourceName = [Box<str>; 3];

/// The resources that have numbers.
#[derive(Default)]
struct Resources {
    /// By plural name, then group and version: found without making a key.
    numbers: HashMap<Box<str>, Vec<(Box<str>, Box<str>, u16)>>,
    names: Vec<ResourceName>,
}

impl Resources {
    fn find(&self, group: &str, version: &str, resource: &str) -> u16 {
        let of_name = self.numbers.get(resource).into_iter().flatten();
        of_name.filter(|(g, v, _)| **g == *group && **v == *version).map(|(_, _, n)| *n).next().unwrap_or(0)
    }

    fn learn(&mut self, group: &str, version: &str, resource: &str) {
        if self.names.len() >= MAX_RESOURCES || self.find(group, version, resource) != 0 {
            return;
        }
        self.names.push([group.into(), version.into(), resource.into()]);
        // Bounded just above; number 0 is for what has no number.
        let number = u16::try_from(self.names.len()).unwrap_or(0);
        self.numbers.entry(resource.into()).or_default().push((group.into(), version.into(), number));
    }
}

/// Everything the server counts.
pub(crate) struct Metrics {
    resources: RwLock<Resources>,
    requests: Sharded<Labels, AtomicU64>,
    durations: Sharded<Labels, Histogram>,
    long_running: Sharded<Labels, AtomicI64>,
    watch_events: Sharded<u16, AtomicU64>,
    in_flight: [AtomicI64; 2],
    webhooks: Mutex<BTreeMap<WebhookLabels, Arc<Histogram>>>,
    store: [Histogram; 3],
}

/// Name, admission type, operation and outcome of a webhook's call.
type WebhookLabels = (String, &'static str, String, bool);

/// What the store is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StoreOperation {
    /// One key.
    Get,
    /// A range.
    List,
    /// A transaction.
    Update,
}

impl Metrics {
    /// Knows the resources of some kinds from the start.
    pub(crate) fn new<'a>(kinds: impl Iterator<Item = &'a Kind>) -> Arc<Self> {
        let metrics = Self {
            resources: RwLock::default(),
            requests: Sharded::new(),
            durations: Sharded::new(),
            long_running: Sharded::new(),
            watch_events: Sharded::new(),
            in_flight: Default::default(),
            webhooks: Mutex::default(),
            store: [(); 3].map(|()| Histogram::new(STORE_BOUNDS)),
        };
        for kind in kinds {
            metrics.learn(kind);
        }
        Arc::new(metrics)
    }

    /// Gives the resource of a kind a number; custom kinds come at run time.
    pub(crate) fn learn(&self, kind: &Kind) {
        let mut resources = self.resources.write().unwrap_or_else(PoisonError::into_inner);
        resources.learn(&kind.group, &kind.version, &kind.plural);
    }

    fn resource(&self, group: &str, version: &str, resource: &str) -> u16 {
        self.resources.read().unwrap_or_else(PoisonError::into_inner).find(group, version, resource)
    }

    /// The labels of a request.
    pub(crate) fn labels(&self, method: &Method, info: &RequestInfo, apply: bool) -> Labels {
        let Some(path) = &info.resource else {
            let first = info.path.trim_start_matches('/').split('/').next().unwrap_or_default();
            let known = SUBRESOURCES.iter().position(|s| s.strip_prefix('/') == Some(first));
            return Labels {
                verb: index(VERBS, method.as_str()),
                subresource: small(known),
                ..Labels::default()
            };
        };
        let resource = self.resource(&path.group, &path.version, &path.resource);
        let connects = [
            Subresource::Exec.as_str(),
            Subresource::Attach.as_str(),
            Subresource::PortForward.as_str(),
            Subresource::Proxy.as_str(),
        ];
        let verb = match info.verb {
            _ if connects.contains(&&*path.subresource) => "CONNECT",
            "get" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" => "POST",
            "update" => "PUT",
            "patch" if apply => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "",
        };
        let scope = if !path.name.is_empty() || info.verb == "create" {
            "resource"
        } else if path.namespace.is_empty() {
            "cluster"
        } else {
            "namespace"
        };
        Labels {
            resource,
            code: 0,
            verb: index(VERBS, verb),
            subresource: index(SUBRESOURCES, &path.subresource),
            scope: index(SCOPES, scope),
            dry_run: info.query.get("dryRun").is_some(),
        }
    }

    /// Counts a request that is worked on now, until the guard is dropped.
    pub(crate) fn begin(self: &Arc<Self>, labels: Labels) -> InFlight {
        let gauge = usize::from(labels.mutating());
        self.in_flight[gauge].fetch_add(1, Ordering::Relaxed);
        InFlight { metrics: self.clone(), gauge }
    }

    /// Counts an answered request. How long a watch or a stream is open is no duration of a request.
    pub(crate) fn finish(&self, labels: Labels, code: StatusCode, took: Option<Duration>) {
        let counted = Labels { code: code.as_u16(), ..labels };
        self.requests.with(counted, AtomicU64::default, |count| count.fetch_add(1, Ordering::Relaxed));
        if let Some(took) = took {
            let made = || Histogram::new(REQUEST_BOUNDS);
            self.durations.with(labels.without_code(), made, |histogram| histogram.observe(took));
        }
    }

    /// Counts a watch or stream as long as the guard lives.
    pub(crate) fn open(self: &Arc<Self>, labels: Labels) -> LongRunning {
        let labels = labels.without_code();
        self.long_running.with(labels, AtomicI64::default, |gauge| gauge.fetch_add(1, Ordering::Relaxed));
        LongRunning { metrics: self.clone(), labels }
    }

    /// The count of events sent to watchers of a kind.
    pub(crate) fn watch_events(&self, kind: &Kind) -> Arc<AtomicU64> {
        let resource = self.resource(&kind.group, &kind.version, &kind.plural);
        self.watch_events.handle(resource, AtomicU64::default)
    }

    /// Counts a request to the store.
    pub(crate) fn store(&self, operation: StoreOperation, took: Duration) {
        self.store[operation as usize].observe(took);
    }

    /// Counts a call of an admission webhook; `kind` is `admit` or `validating`.
    pub(crate) fn webhook(
        &self,
        name: &str,
        kind: &'static str,
        operation: &str,
        rejected: bool,
        took: Duration,
    ) {
        let mut webhooks = self.webhooks.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), kind, operation.to_owned(), rejected);
        if webhooks.len() < MAX_WEBHOOK_SERIES || webhooks.contains_key(&key) {
            let made = || Arc::new(Histogram::new(WEBHOOK_BOUNDS));
            webhooks.entry(key).or_insert_with(made).observe(took);
        }
    }

    /// The text, without what others add.
    pub(crate) fn render(&self, out: &mut String) {
        self.render_requests(out);
        family(out, "apiserver_current_inflight_requests", "gauge", "Requests worked on now.");
        for (kind, gauge) in ["readOnly", "mutating"].iter().zip(&self.in_flight) {
            let value = gauge.load(Ordering::Relaxed);
            let _ = writeln!(out, "apiserver_current_inflight_requests{{request_kind=\"{kind}\"}} {value}");
        }
        family(out, "apiserver_longrunning_requests", "gauge", "Watches and streams that are open.");
        for (labels, gauge) in self.long_running.sorted() {
            let value = gauge.load(Ordering::Relaxed);
            let _ = writeln!(out, "apiserver_longrunning_requests{{{}}} {value}", self.text(labels, false));
        }
        family(out, "apiserver_watch_events_total", "counter", "Events sent to watchers.");
        for (resource, count) in self.watch_events.sorted() {
            let [group, version, resource] = self.name(resource);
            let value = count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "apiserver_watch_events_total{{group=\"{group}\",resource=\"{resource}\",version=\"{version}\"}} {value}"
            );
        }
        family(out, "etcd_request_duration_seconds", "histogram", "Seconds the store took to answer.");
        for (operation, histogram) in ["get", "list", "update"].iter().zip(&self.store) {
            histogram.render(
                out,
                "etcd_request_duration_seconds",
                &format!("operation=\"{operation}\",type=\"\""),
            );
        }
        self.render_webhooks(out);
        process::render(out);
    }

    fn render_requests(&self, out: &mut String) {
        family(out, "apiserver_request_total", "counter", "Answered requests.");
        for (labels, count) in self.requests.sorted() {
            let value = count.load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{}\",{}}} {value}",
                labels.code,
                self.text(labels, true)
            );
        }
        family(
            out,
            "apiserver_request_duration_seconds",
            "histogram",
            "Seconds until a request was answered.",
        );
        for (labels, histogram) in self.durations.sorted() {
            histogram.render(out, "apiserver_request_duration_seconds", &self.text(labels, true));
        }
    }

    fn render_webhooks(&self, out: &mut String) {
        const NAME: &str = "apiserver_admission_webhook_admission_duration_seconds";
        let webhooks = self.webhooks.lock().unwrap_or_else(PoisonError::into_inner);
        if webhooks.is_empty() {
            return;
        }
        family(out, NAME, "histogram", "Seconds an admission webhook took.");
        for ((name, kind, operation, rejected), histogram) in webhooks.iter() {
            let labels = format!(
                "name=\"{}\",operation=\"{operation}\",rejected=\"{rejected}\",type=\"{kind}\"",
                escaped(name)
            );
            histogram.render(out, NAME, &labels);
        }
    }

    fn name(&self, resource: u16) -> ResourceName {
        let resources = self.resources.read().unwrap_or_else(PoisonError::into_inner);
        let index = usize::from(resource).checked_sub(1);
        index.and_then(|i| resources.names.get(i)).cloned().unwrap_or_default()
    }

    /// Labels as text, in alphabetical order.
    fn text(&self, labels: Labels, with_dry_run: bool) -> String {
        let [group, version, resource] = self.name(labels.resource);
        let dry_run = match (with_dry_run, labels.dry_run) {
            (true, true) => "dry_run=\"All\",",
            (true, false) => "dry_run=\"\",",
            (false, _) => "",
        };
        format!(
            "component=\"apiserver\",{dry_run}group=\"{group}\",resource=\"{resource}\",scope=\"{}\",subresource=\"{}\",\
             verb=\"{}\",version=\"{version}\"",
            SCOPES[usize::from(labels.scope)],
            SUBRESOURCES[usize::from(labels.subresource)],
            VERBS[usize::from(labels.verb)],
        )
    }
}

/// A request that is worked on.
pub(crate) struct InFlight {
    metrics: Arc<Metrics>,
    gauge: usize,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.in_flight[self.gauge].fetch_sub(1, Ordering::Relaxed);
    }
}

/// A watch or stream that is open.
pub(crate) struct LongRunning {
    metrics: Arc<Metrics>,
    labels: Labels,
}

impl Drop for LongRunning {
    fn drop(&mut self) {
        let gauges = &self.metrics.long_running;
        gauges.with(self.labels, AtomicI64::default, |gauge| gauge.fetch_sub(1, Ordering::Relaxed));
    }
}

/// Index of a known word; 0 for others. The lists are far shorter than 256.
fn index(list: &[&str], word: &str) -> u8 {
    small(list.iter().position(|known| *known == word))
}

fn small(position: Option<usize>) -> u8 {
    position.and_then(|i| u8::try_from(i).ok()).unwrap_or(0)
}

/// The two lines above the values of a metric.
pub(crate) fn family(out: &mut String, name: &str, type_: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {type_}");
}

/// A label's value.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampan_api::registry::Registry;

    fn metrics() -> Arc<Metrics> {
        let registry = Registry::built_in();
        Metrics::new(registry.kinds().iter().map(|kind| &**kind))
    }

    #[test]
    fn requests_become_labels() {
        let metrics = metrics();
        let rows = [
            (Method::GET, "/api/v1/namespaces/a/pods/p", "GET", "resource", "pods", ""),
            (Method::GET, "/api/v1/namespaces/a/pods", "LIST", "namespace", "pods", ""),
            (Method::GET, "/api/v1/pods?watch=1", "WATCH", "cluster", "pods", ""),
            (Method::POST, "/apis/apps/v1/namespaces/a/deployments", "POST", "resource", "deployments", ""),
            (Method::PATCH, "/api/v1/namespaces/a/pods/p/status", "PATCH", "resource", "pods", "status"),
            (Method::GET, "/api/v1/namespaces/a/pods/p/exec", "CONNECT", "resource", "pods", "exec"),
            (Method::GET, "/api/v1/made-up-by-a-client", "LIST", "cluster", "", ""),
            (Method::GET, "/readyz/ping", "GET", "", "", "/readyz"),
            (Method::GET, "/made-up-by-a-client", "GET", "", "", ""),
        ];
        for (method, uri, verb, scope, resource, subresource) in rows {
            let info = RequestInfo::parse(&method, &uri.parse().expect("an address"));
            let text = metrics.text(metrics.labels(&method, &info, false), false);
            for (label, value) in
                [("verb", verb), ("scope", scope), ("resource", resource), ("subresource", subresource)]
            {
                // Anchored by the comma before it, as resource is the end of subresource.
                assert!(format!(",{text},").contains(&format!(",{label}=\"{value}\",")), "{uri}: {text}");
            }
        }
    }

    #[test]
    fn text_holds_what_was_counted() {
        let metrics = metrics();
        let info =
            RequestInfo::parse(&Method::GET, &"/api/v1/namespaces/a/pods/p".parse().expect("an address"));
        let labels = metrics.labels(&Method::GET, &info, false);
        let running = metrics.begin(labels);
        let open = metrics.open(labels);
        for _ in 0..3 {
            metrics.finish(labels, StatusCode::OK, Some(Duration::from_millis(7)));
        }
        metrics.finish(labels, StatusCode::NOT_FOUND, None);
        metrics.webhook("a\"b", "admit", "CREATE", true, Duration::from_millis(1));
        let mut text = String::new();
        metrics.render(&mut text);
        let set = "component=\"apiserver\",dry_run=\"\",group=\"\",resource=\"pods\",scope=\"resource\",subresource=\"\",\
                   verb=\"GET\",version=\"v1\"";
        for line in [
            format!("apiserver_request_total{{code=\"200\",{set}}} 3"),
            format!("apiserver_request_total{{code=\"404\",{set}}} 1"),
            format!("apiserver_request_duration_seconds_bucket{{{set},le=\"0.005\"}} 0"),
            format!("apiserver_request_duration_seconds_bucket{{{set},le=\"0.025\"}} 3"),
            format!("apiserver_request_duration_seconds_count{{{set}}} 3"),
            "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1".to_owned(),
            "apiserver_admission_webhook_admission_duration_seconds_count{name=\"a\\\"b\",operation=\"CREATE\",\
             rejected=\"true\",type=\"admit\"} 1"
                .to_owned(),
        ] {
            assert!(text.contains(&format!("{line}\n")), "no {line} in {text}");
        }
        let gauge = |text: &str| {
            text.lines().find(|l| l.starts_with("apiserver_longrunning_requests{")).map(str::to_owned)
        };
        assert!(gauge(&text).is_some_and(|line| line.ends_with(" 1")));
        drop((running, open));
        let mut text = String::new();
        metrics.render(&mut text);
        assert!(gauge(&text).is_some_and(|line| line.ends_with(" 0")));
        assert!(text.contains("apiserver_current_inflight_requests{request_kind=\"readOnly\"} 0\n"));
    }
}
