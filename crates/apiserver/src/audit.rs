//! The audit log: who asked for what, when, and what came of it. `audit.k8s.io/v1` events, one JSON document per line.
//!
//! A [`Policy`] decides per request how much is written down; deciding is a pure function of the request and its user. A
//! [`Record`] follows the request through the pipeline and hands over an event per stage. Events wait in a bounded queue
//! for one thread that writes them to a [`Sink`]; a request never waits for the log. What does not fit into the queue is
//! dropped and counted (`apiserver_audit_error_total`): an operator who must not lose events watches that number.
//!
//! ```text
//!   RequestReceived ──► (ResponseStarted: watches and streams) ──► ResponseComplete
//!                   └─► Panic: a defect ended the request
//! ```
//!
//! The response of a stream is never written down, whatever the level.

use std::io::{self, BufWriter, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use sampan_api::decode::Strictness;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::auth::User;
use crate::error::ApiError;
use crate::request::RequestInfo;
use crate::respond::{self, ApiBody, ApiResponse};
use crate::server::{content_type, is_long_running, read_body, read_document};

/// Events that wait for the writer.
const MAX_QUEUED: usize = 10_000;
/// Bytes of events that wait for the writer: bodies can be megabytes.
const MAX_QUEUED_BYTES: usize = 64 << 20;
/// Longest text taken from a request's address or user agent.
const MAX_TEXT: usize = 4096;
/// Names the event in the answer.
pub(crate) const AUDIT_ID: HeaderName = HeaderName::from_static("audit-id");

/// Where the other end of a connection is; put into a request's extensions by the listener.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PeerAddress(pub(crate) SocketAddr);

/// How much is written down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Who, what, when, and the code of the answer.
    Metadata,
    /// The request's body, too.
    Request,
    /// The answer's body, too.
    RequestResponse,
}

/// A moment in the life of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub enum Stage {
    /// It is known who sends it.
    RequestReceived,
    /// The answer of a long-running request begins.
    ResponseStarted,
    /// The answer is complete.
    ResponseComplete,
    /// A defect ended the request.
    Panic,
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Self::RequestReceived => "RequestReceived",
            Self::ResponseStarted => "ResponseStarted",
            Self::ResponseComplete => "ResponseComplete",
            Self::Panic => "Panic",
        }
    }
}

/// Which requests are written down, and how much of them: `audit.k8s.io/v1.Policy`. The first rule that matches counts;
/// without one nothing is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    #[serde(default, rename = "metadata")]
    _metadata: Value,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    #[serde(default)]
    omit_managed_fields: bool,
    #[serde(default)]
    rules: Vec<PolicyRule>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PolicyRule {
    level: Level,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    user_groups: Vec<String>,
    #[serde(default)]
    verbs: Vec<String>,
    #[serde(default)]
    resources: Vec<GroupResources>,
    #[serde(default)]
    namespaces: Vec<String>,
    #[serde(default, rename = "nonResourceURLs")]
    non_resource_urls: Vec<String>,
    #[serde(default)]
    omit_stages: Vec<Stage>,
    omit_managed_fields: Option<bool>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct GroupResources {
    #[serde(default)]
    group: String,
    #[serde(default)]
    resources: Vec<String>,
    #[serde(default)]
    resource_names: Vec<String>,
}

/// What a policy says about a request.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Verdict {
    level: Level,
    omit_stages: Vec<Stage>,
    omit_managed_fields: bool,
}

/// The policy where the operator gives none: changes with what was asked for, reads without; nothing of what the platform
/// does all the time to itself; never the content of secrets, config maps and tokens.
const STANDARD: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
omitManagedFields: true
rules:
- level: None
  nonResourceURLs: ["/healthz*", "/livez*", "/readyz*", "/version*", "/api*", "/openapi*", "/metrics"]
- level: None
  resources:
  - {group: "", resources: [events]}
  - {group: events.k8s.io, resources: [events]}
- level: None
  userGroups: ["system:nodes"]
  resources:
  - {group: coordination.k8s.io, resources: [leases]}
  - {group: "", resources: [nodes, nodes/status, pods/status]}
- level: None
  users:
  - "system:apiserver"
  - "system:kube-controller-manager"
  - "system:kube-scheduler"
  - "system:sampan"
  - "system:serviceaccount:kube-system:clusterrole-aggregation-controller"
  - "system:serviceaccount:kube-system:deployment-controller"
  - "system:serviceaccount:kube-system:endpointslice-controller"
  - "system:serviceaccount:kube-system:generic-garbage-collector"
  - "system:serviceaccount:kube-system:namespace-controller"
  - "system:serviceaccount:kube-system:node-controller"
  - "system:serviceaccount:kube-system:pod-garbage-collector"
  - "system:serviceaccount:kube-system:pv-protection-controller"
  - "system:serviceaccount:kube-system:pvc-protection-controller"
  - "system:serviceaccount:kube-system:replicaset-controller"
  - "system:serviceaccount:kube-system:resourcequota-controller"
  - "system:serviceaccount:kube-system:root-ca-cert-publisher"
  - "system:serviceaccount:kube-system:service-account-controller"
  - "system:serviceaccount:kube-system:token-cleaner"
  - "system:serviceaccount:kube-system:volumeattributesclass-protection-controller"
  verbs: [get, list, watch]
- level: Metadata
  resources:
  - {group: "", resources: [secrets, configmaps, serviceaccounts/token]}
  - {group: authentication.k8s.io, resources: [tokenreviews]}
- level: Metadata
  verbs: [get, list, watch]
- level: Request
  resources:
  - {group: "*"}
- level: Metadata
"#;

impl Policy {
    /// Reads a policy (YAML or JSON).
    pub fn parse(text: &str) -> Result<Self, String> {
        let policy: Self = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        if policy.api_version != "audit.k8s.io/v1" || policy.kind != "Policy" {
            return Err(format!("it is a {} of {}", policy.kind, policy.api_version));
        }
        for (place, rule) in policy.rules.iter().enumerate() {
            let about_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
            if about_resources && !rule.non_resource_urls.is_empty() {
                return Err(format!(
                    "rules[{place}].nonResourceURLs: rules cannot apply to both regular resources and non-resource URLs"
                ));
            }
        }
        Ok(policy)
    }

    /// The policy where the operator gives none.
    pub fn standard() -> Self {
        Self::parse(STANDARD).unwrap_or_else(|why| {
            tracing::error!(why, "the standard audit policy is damaged, nothing is written");
            Self::default()
        })
    }

    fn decide(&self, info: &RequestInfo, user: &User) -> Verdict {
        let rule = self.rules.iter().find(|rule| rule.matches(info, user));
        let Some(rule) = rule else {
            return Verdict { level: Level::None, omit_stages: Vec::new(), omit_managed_fields: false };
        };
        Verdict {
            level: rule.level,
            omit_stages: self.omit_stages.iter().chain(&rule.omit_stages).copied().collect(),
            omit_managed_fields: rule.omit_managed_fields.unwrap_or(self.omit_managed_fields),
        }
    }
}

impl PolicyRule {
    fn matches(&self, info: &RequestInfo, user: &User) -> bool {
        let any = |list: &[String], one: &str| list.is_empty() || list.iter().any(|item| item == one);
        if !any(&self.users, &user.name)
            || !(self.user_groups.is_empty() || self.user_groups.iter().any(|group| user.is_in(group)))
            || !any(&self.verbs, info.verb)
        {
            return false;
        }
        match &info.resource {
            Some(path) => {
                self.non_resource_urls.is_empty()
                    && any(&self.namespaces, &path.namespace)
                    && (self.resources.is_empty() || self.resources.iter().any(|of| of.matches(path)))
            }
            None => {
                self.resources.is_empty()
                    && self.namespaces.is_empty()
                    && (self.non_resource_urls.is_empty()
                        || self.non_resource_urls.iter().any(|url| match url.strip_suffix('*') {
                            Some(prefix) => info.path.starts_with(prefix),
                            None => *url == info.path,
                        }))
            }
        }
    }
}

impl GroupResources {
    /// `pods`, `pods/log`, `pods/*`, `*/log` and `*` are understood; `*` as group is every group.
    fn matches(&self, path: &crate::request::ResourcePath) -> bool {
        let (resource, subresource) = (path.resource.as_str(), path.subresource.as_str());
        let named = self.resources.iter().any(|pattern| match pattern.split_once('/') {
            None => pattern == "*" || (pattern == resource && subresource.is_empty()),
            Some((of, part)) => {
                (of == "*" || of == resource)
                    && !subresource.is_empty()
                    && (part == "*" || part == subresource)
            }
        });
        (self.group == "*" || self.group == path.group)
            && (self.resources.is_empty() || named)
            && (self.resource_names.is_empty() || self.resource_names.contains(&path.name))
    }
}

/// Where events go. Called by one thread.
pub trait Sink: Send + 'static {
    /// Takes one event, a line of JSON with its end.
    fn write(&mut self, line: &[u8]) -> io::Result<()>;
    /// No event is waiting: what was taken must not stay behind.
    fn flush(&mut self) -> io::Result<()>;
}

/// A file that is replaced when it is full: `audit.log`, then `audit.log.1` (the newest of the old ones) and so on.
pub struct LogFile {
    path: PathBuf,
    max_bytes: u64,
    max_old: u32,
    file: BufWriter<std::fs::File>,
    written: u64,
}

impl LogFile {
    /// Opens the file, which only its owner may read; it is replaced before it would be longer than `max_bytes`, and
    /// `max_old` old ones are kept.
    pub fn open(path: &Path, max_bytes: u64, max_old: u32) -> io::Result<Self> {
        let (file, written) = Self::open_file(path)?;
        Ok(Self { path: path.to_owned(), max_bytes, max_old, file, written })
    }

    fn open_file(path: &Path) -> io::Result<(BufWriter<std::fs::File>, u64)> {
        let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
        let written = file.metadata()?.len();
        Ok((BufWriter::new(file), written))
    }

    fn old(&self, number: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        PathBuf::from(name)
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.flush()?;
        for number in (1..self.max_old).rev() {
            match std::fs::rename(self.old(number), self.old(number + 1)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
        if self.max_old > 0 {
            std::fs::rename(&self.path, self.old(1))?;
        } else {
            std::fs::remove_file(&self.path)?;
        }
        (self.file, self.written) = Self::open_file(&self.path)?;
        Ok(())
    }
}

impl Sink for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        let length = line.len() as u64;
        if self.written > 0 && self.written + length > self.max_bytes {
            self.rotate()?;
        }
        self.written += length;
        self.file.write_all(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[derive(Default)]
struct Counters {
    written: AtomicU64,
    lost: AtomicU64,
    queued_bytes: AtomicUsize,
}

/// The audit log.
pub struct Audit {
    policy: Policy,
    /// `None` only while it ends.
    queue: Option<SyncSender<Vec<u8>>>,
    counters: Arc<Counters>,
    writer: Option<JoinHandle<()>>,
}

impl Audit {
    /// Writes what `policy` says to `sink`.
    pub fn start(policy: Policy, sink: impl Sink) -> io::Result<Arc<Self>> {
        let (queue, receiver) = sync_channel(MAX_QUEUED);
        let counters = Arc::new(Counters::default());
        let shared = counters.clone();
        let writer = std::thread::Builder::new()
            .name("audit-writer".to_owned())
            .spawn(move || write_all(&receiver, sink, &shared))?;
        Ok(Arc::new(Self { policy, queue: Some(queue), counters, writer: Some(writer) }))
    }

    /// Lines for `/metrics`.
    pub(crate) fn metrics(&self) -> String {
        let (written, lost) =
            (self.counters.written.load(Ordering::Relaxed), self.counters.lost.load(Ordering::Relaxed));
        format!(
            "# HELP apiserver_audit_event_total Audit events written.\n\
             # TYPE apiserver_audit_event_total counter\n\
             apiserver_audit_event_total {written}\n\
             # HELP apiserver_audit_error_total Audit events lost because the queue was full or the log could not be written.\n\
             # TYPE apiserver_audit_error_total counter\n\
             apiserver_audit_error_total {lost}\n"
        )
    }

    /// Never waits.
    fn hand_over(&self, event: &Value) {
        let mut line = event.to_string().into_bytes();
        line.push(b'\n');
        let length = line.len();
        let queued = self.counters.queued_bytes.fetch_add(length, Ordering::Relaxed);
        let taken = queued + length <= MAX_QUEUED_BYTES
            && self.queue.as_ref().is_some_and(|queue| queue.try_send(line).is_ok());
        if !taken {
            self.counters.queued_bytes.fetch_sub(length, Ordering::Relaxed);
            self.counters.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Begins the record of a request, if the policy wants one. `sender` sent it; `acting_as` is whom the sender is
    /// instead, if that is somebody else.
    pub(crate) fn received(
        self: &Arc<Self>,
        request: &Request<ApiBody>,
        info: &RequestInfo,
        sender: &User,
        acting_as: Option<&User>,
    ) -> Option<Record> {
        let verdict = self.policy.decide(info, sender);
        if verdict.level == Level::None {
            return None;
        }
        let event = first_event(request, info, sender, acting_as, verdict.level);
        let mut record = Record { audit: self.clone(), verdict, event };
        record.emit(Stage::RequestReceived);
        Some(record)
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has said so.
            let _ = writer.join();
        }
    }
}

fn write_all(queue: &Receiver<Vec<u8>>, mut sink: impl Sink, counters: &Counters) {
    let mut failing = false;
    while let Ok(first) = queue.recv() {
        let mut next = Some(first);
        let mut taken = 0;
        let mut result = Ok(());
        while let Some(line) = next {
            counters.queued_bytes.fetch_sub(line.len(), Ordering::Relaxed);
            match sink.write(&line) {
                Ok(()) => taken += 1,
                Err(e) => {
                    counters.lost.fetch_add(1, Ordering::Relaxed);
                    result = Err(e);
                }
            }
            next = queue.try_recv().ok();
        }
        match sink.flush() {
            Ok(()) => counters.written.fetch_add(taken, Ordering::Relaxed),
            Err(e) => {
                result = Err(e);
                counters.lost.fetch_add(taken, Ordering::Relaxed)
            }
        };
        // A full disk is said once, not once per event.
        if let (Err(error), false) = (&result, failing) {
            tracing::error!(%error, "the audit log cannot be written");
        }
        failing = result.is_err();
    }
}

/// What is known when a request has been received.
fn first_event(
    request: &Request<ApiBody>,
    info: &RequestInfo,
    sender: &User,
    acting_as: Option<&User>,
    level: Level,
) -> Map<String, Value> {
    let cut = |text: &str| text.chars().take(MAX_TEXT).collect::<String>();
    let mut event = Map::new();
    let mut set = |name: &str, value: Value| event.insert(name.to_owned(), value);
    set("kind", "Event".into());
    set("apiVersion", "audit.k8s.io/v1".into());
    set("level", format!("{level:?}").into());
    set("auditID", uuid::Uuid::new_v4().to_string().into());
    set("stage", Value::Null);
    let uri = request.uri().path_and_query().map_or("", |path| path.as_str());
    set("requestURI", cut(uri).into());
    set("verb", info.verb.into());
    set("user", sender.info());
    if let Some(user) = acting_as {
        set("impersonatedUser", user.info());
    }
    if let Some(PeerAddress(address)) = request.extensions().get::<PeerAddress>() {
        set("sourceIPs", json!([address.ip().to_canonical().to_string()]));
    }
    if let Some(agent) = request.headers().get(USER_AGENT).and_then(|agent| agent.to_str().ok()) {
        set("userAgent", cut(agent).into());
    }
    if let Some(path) = &info.resource {
        let fields = [
            ("resource", &path.resource),
            ("namespace", &path.namespace),
            ("name", &path.name),
            ("apiGroup", &path.group),
            ("apiVersion", &path.version),
            ("subresource", &path.subresource),
        ];
        let present = fields.into_iter().filter(|(_, value)| !value.is_empty());
        set("objectRef", present.map(|(name, value)| (name.to_owned(), Value::from(cut(value)))).collect());
    }
    set("requestReceivedTimestamp", micro_time().into());
    event
}

/// Microseconds, as `metav1.MicroTime` has them.
fn micro_time() -> String {
    format!("{:.6}", jiff::Timestamp::now())
}

/// What is written down about one request. Dropping it hands over the last event.
pub(crate) struct Record {
    audit: Arc<Audit>,
    verdict: Verdict,
    event: Map<String, Value>,
}

impl Record {
    /// Adds an annotation to the events that follow.
    pub(crate) fn annotate(&mut self, key: &str, value: &str) {
        let annotations = self.event.entry("annotations").or_insert_with(|| json!({}));
        annotations[key] = value.into();
    }

    /// Reads the request's body if it is to be written down. Called when the request is allowed, because a body of
    /// somebody who may not send it is not worth reading.
    pub(crate) async fn with_body(
        &mut self,
        request: Request<ApiBody>,
        info: &RequestInfo,
    ) -> Result<Request<ApiBody>, ApiError> {
        let has_body =
            matches!(*request.method(), Method::POST | Method::PUT | Method::PATCH | Method::DELETE);
        if self.verdict.level < Level::Request || !has_body || is_long_running(info) {
            return Ok(request);
        }
        let (parts, body) = request.into_parts();
        let body = read_body(body).await?;
        self.set_object("requestObject", &content_type(&parts.headers), &body);
        Ok(Request::from_parts(parts, respond::full(body)))
    }

    /// Notes the answer. That of a stream is complete when the client has seen its end, so its body keeps the record.
    pub(crate) async fn answered(
        mut self,
        info: &RequestInfo,
        result: Result<ApiResponse, ApiError>,
    ) -> ApiResponse {
        let mut response = result.unwrap_or_else(|error| {
            self.event.insert("responseStatus".to_owned(), error.status());
            respond::error(&error)
        });
        let code = response.status().as_u16();
        let status = self.event.entry("responseStatus").or_insert_with(|| json!({"metadata": {}}));
        status["code"] = code.into();
        if let Some(id) = self.audit_id() {
            response.headers_mut().insert(AUDIT_ID, id);
        }
        if is_long_running(info) {
            self.emit(Stage::ResponseStarted);
            // The closure is dropped with the body.
            return response.map(|body| {
                body.map_frame(move |frame| {
                    let _kept = &self;
                    frame
                })
                .boxed_unsync()
            });
        }
        if self.verdict.level < Level::RequestResponse {
            return response;
        }
        let (parts, body) = response.into_parts();
        match body.collect().await {
            Ok(collected) => {
                let bytes = collected.to_bytes();
                self.set_object("responseObject", &content_type(&parts.headers), &bytes);
                http::Response::from_parts(parts, respond::full(bytes))
            }
            Err(e) => respond::error(&ApiError::internal(format!("cannot read an answer: {e}"))),
        }
    }

    fn audit_id(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(self.event.get("auditID")?.as_str()?).ok()
    }

    /// Puts a body into the event, if it can be read.
    fn set_object(&mut self, field: &str, content_type: &str, body: &Bytes) {
        // Patches are JSON or YAML under names of their own.
        let content_type = match content_type {
            "" => "application/json",
            patch if patch.contains("+json") => "application/json",
            patch if patch.contains("+yaml") => "application/yaml",
            other => other,
        };
        let readable = ["application/json", "application/yaml"].contains(&content_type) && !body.is_empty();
        let object = if readable {
            read_document(content_type, None, body, &mut Strictness::default()).ok()
        } else {
            None
        };
        let Some(mut object) = object else { return };
        if self.verdict.omit_managed_fields {
            omit_managed_fields(&mut object);
        }
        self.event.insert(field.to_owned(), object);
    }

    fn emit(&mut self, stage: Stage) {
        if self.verdict.omit_stages.contains(&stage) {
            return;
        }
        self.event.insert("stage".to_owned(), stage.name().into());
        self.event.insert("stageTimestamp".to_owned(), micro_time().into());
        let event = Value::Object(std::mem::take(&mut self.event));
        self.audit.hand_over(&event);
        if let Value::Object(event) = event {
            self.event = event;
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.event.insert(
                "responseStatus".to_owned(),
                json!({"metadata": {}, "status": "Failure", "code": 500}),
            );
            self.emit(Stage::Panic);
        } else {
            self.emit(Stage::ResponseComplete);
        }
    }
}

/// Out of an object and the items of a list.
fn omit_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(metadata) = item.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(method: Method, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method, &uri.parse().expect("an address"))
    }

    #[test]
    fn the_standard_policy() {
        let policy = Policy::standard();
        let ann = User::known("ann", &[]);
        let node = User::known("system:node:n", &["system:nodes"]);
        let scheduler = User::known("system:kube-scheduler", &[]);
        let core = "/api/v1/namespaces/d";
        let rows = [
            (&ann, Method::GET, "/healthz".to_owned(), Level::None),
            (&ann, Method::GET, "/api/v1".to_owned(), Level::None),
            (&ann, Method::GET, format!("{core}/pods"), Level::Metadata),
            (&ann, Method::POST, format!("{core}/pods"), Level::Request),
            (&ann, Method::POST, format!("{core}/secrets"), Level::Metadata),
            (&ann, Method::PATCH, format!("{core}/secrets/s"), Level::Metadata),
            (&ann, Method::POST, format!("{core}/serviceaccounts/a/token"), Level::Metadata),
            (&ann, Method::POST, format!("{core}/serviceaccounts"), Level::Request),
            (&ann, Method::POST, "/apis/authentication.k8s.io/v1/tokenreviews".to_owned(), Level::Metadata),
            (&ann, Method::POST, format!("{core}/events"), Level::None),
            (&ann, Method::PUT, "/apis/apps/v1/namespaces/d/deployments/x".to_owned(), Level::Request),
            (&node, Method::PATCH, format!("{core}/pods/p/status"), Level::None),
            (&node, Method::GET, format!("{core}/secrets/s"), Level::Metadata),
            (&scheduler, Method::GET, format!("{core}/pods?watch=true"), Level::None),
            (&scheduler, Method::POST, format!("{core}/pods/p/binding"), Level::Request),
        ];
        for (user, method, uri, expected) in rows {
            let verdict = policy.decide(&info(method.clone(), &uri), user);
            assert_eq!(verdict.level, expected, "{method} {uri} {}", user.name);
        }
    }

    #[test]
    fn rules() {
        let policy = |rule: &str| {
            Policy::parse(&format!(
                "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{{level: Metadata, {rule}}}]"
            ))
        };
        let pods = "/api/v1/namespaces/d/pods/p";
        let rows = [
            ("users: [ann]", pods, true),
            ("users: [bob]", pods, false),
            ("userGroups: [dev]", pods, true),
            ("userGroups: [ops]", pods, false),
            ("verbs: [get]", pods, true),
            ("verbs: [list]", pods, false),
            ("namespaces: [d]", pods, true),
            ("namespaces: [e]", pods, false),
            ("namespaces: ['']", "/api/v1/nodes", true),
            ("resources: [{group: ''}]", pods, true),
            ("resources: [{group: apps}]", pods, false),
            ("resources: [{resources: [pods]}]", pods, true),
            ("resources: [{resources: [pods]}]", "/api/v1/namespaces/d/pods/p/log", false),
            ("resources: [{resources: [pods/log]}]", "/api/v1/namespaces/d/pods/p/log", true),
            ("resources: [{resources: ['*/log']}]", "/api/v1/namespaces/d/pods/p/log", true),
            ("resources: [{resources: ['pods/*']}]", pods, false),
            ("resources: [{resources: ['*']}]", "/api/v1/namespaces/d/pods/p/log", true),
            ("resources: [{resources: [pods], resourceNames: [p]}]", pods, true),
            ("resources: [{resources: [pods], resourceNames: [q]}]", pods, false),
            ("nonResourceURLs: ['/health*']", "/healthz", true),
            ("nonResourceURLs: ['/health']", "/healthz", false),
            ("nonResourceURLs: ['*']", pods, false),
            ("resources: [{group: ''}]", "/healthz", false),
        ];
        let ann = User::known("ann", &["dev"]);
        for (rule, uri, expected) in rows {
            let verdict = policy(rule).expect(rule).decide(&info(Method::GET, uri), &ann);
            assert_eq!(verdict.level == Level::Metadata, expected, "{rule} {uri}");
        }
        assert!(policy("namespaces: [d], nonResourceURLs: ['*']").is_err());
        assert!(policy("usres: [ann]").is_err());
        assert!(Policy::parse("apiVersion: audit.k8s.io/v1\nkind: Event\n").is_err());
    }

    #[test]
    fn files_are_replaced_when_they_are_full() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("audit.log");
        let mut log = LogFile::open(&path, 10, 2).expect("opened");
        for line in ["aaaa\n", "bbbb\n", "cccc\n", "dddddddddddd\n", "eeee\n"] {
            log.write(line.as_bytes()).expect("written");
        }
        log.flush().expect("flushed");
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap_or_default();
        let found = ["audit.log", "audit.log.1", "audit.log.2", "audit.log.3"].map(read);
        assert_eq!(found, ["eeee\n", "dddddddddddd\n", "cccc\n", ""]);
        drop(log);
        let mut log = LogFile::open(&path, 10, 2).expect("opened again");
        log.write(b"ffff\n").expect("written");
        log.flush().expect("flushed");
        assert_eq!(read("audit.log"), "eeee\nffff\n");
    }

    /// Takes nothing until it may.
    struct Slow(std::sync::mpsc::Receiver<()>);

    impl Sink for Slow {
        fn write(&mut self, _: &[u8]) -> io::Result<()> {
            self.0.recv().map_err(io::Error::other)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_does_not_fit_is_counted_and_nobody_waits() {
        let (go, gate) = std::sync::mpsc::channel();
        let audit = Audit::start(Policy::standard(), Slow(gate)).expect("started");
        let large = json!("x".repeat(MAX_QUEUED_BYTES / 4));
        for _ in 0..8 {
            audit.hand_over(&large);
        }
        let lost = audit.counters.lost.load(Ordering::Relaxed);
        // One may be in the writer's hands already, and three fit beside it or four without it.
        assert!((4..=5).contains(&lost), "{lost}");
        for _ in 0..8 {
            go.send(()).expect("listening");
        }
        let counters = audit.counters.clone();
        drop(audit);
        assert_eq!(counters.written.load(Ordering::Relaxed) + lost, 8);
        assert_eq!(counters.queued_bytes.load(Ordering::Relaxed), 0);
    }
}
