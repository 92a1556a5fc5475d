//! Get, list and watch: bytes that were made when the object was written.

use std::borrow::Borrow;
use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::stream;
use http::StatusCode;
use http::header::{CONTENT_TYPE, HeaderValue};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use sampan_api::registry::{Kind, Stored};
use sampan_api::selector::{FieldSelector, LabelSelector};
use sampan_store::{KeyValue, Range, Revision, StoreError};
use serde_json::{Value, json};
use tokio::time::{Instant, Sleep};

use crate::cache::joined::{self, Lines, Wish};
use crate::cache::{self, CachedEvent, Item, ResourceCache};
use crate::error::ApiError;
use crate::request::Query;
use crate::respond::{self, ApiResponse, BodyError, Encoding, Form, Projection, wire};
use crate::server::ApiServer;
use crate::versions::StoredObject;

/// A watch without a timeout of its own ends after this long, as upstream's do (30 to 60 minutes).
const WATCH_DEFAULT: Duration = Duration::from_secs(45 * 60);
/// Watchers that asked for bookmarks get one this often if the store moved on.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Larger pages are cut to this.
const MAX_LIMIT: usize = 100_000;

/// Which objects of a kind a request means.
pub(crate) struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    kind: Arc<Kind>,
}

impl Selection {
    /// Reads the selectors of a query.
    pub(crate) fn parse(kind: &Arc<Kind>, query: &Query) -> Result<Self, ApiError> {
        let bad = |e: sampan_api::selector::SelectorError| ApiError::bad_request(e.to_string());
        let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or_default()).map_err(bad)?;
        let known = |label: &str| kind.field_pointer(label).is_some();
        let fields =
            FieldSelector::parse(query.get("fieldSelector").unwrap_or_default(), known).map_err(bad)?;
        Ok(Self { labels, fields, kind: kind.clone() })
    }

    /// Everything is meant.
    pub(crate) fn is_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// Whether the fields stand where they are looked for only after a webhook has converted the object.
    pub(crate) fn is_by_version(&self) -> bool {
        let webhook = matches!(&self.kind.stored_as, Stored::Custom(custom) if custom.webhook.is_some());
        webhook && !self.fields.is_empty()
    }

    /// Whether an object as it is stored is meant. Of a selection [by version](Self::is_by_version) this is half of the
    /// question, [`ApiServer::narrow`] the other.
    pub(crate) fn contains(&self, item: &Item) -> bool {
        (self.labels.is_empty() || self.labels.matches_map(item.labels()))
            && (self.fields.is_empty()
                || self.is_by_version()
                || self.fields.matches(|label| {
                    self.kind.field_pointer(label).map_or_else(String::new, |p| item.field(p))
                }))
    }

    fn contains_bytes(&self, bytes: &Bytes) -> bool {
        if self.is_all() {
            return true;
        }
        let object: Value = serde_json::from_slice(bytes).unwrap_or_default();
        self.labels.matches_value(object.pointer("/metadata/labels"))
            && self.fields.matches(|label| {
                cache::selectable(self.kind.field_pointer(label).and_then(|pointer| object.pointer(pointer)))
            })
    }
}

/// Prefix of the keys a collection request means.
pub(crate) fn collection_prefix(kind: &Kind, namespace: &str) -> String {
    let prefix = kind.store_prefix();
    if namespace.is_empty() { prefix.to_owned() } else { format!("{prefix}{namespace}/") }
}

fn parse_revision(query: &Query) -> Result<Option<u64>, ApiError> {
    match query.get("resourceVersion") {
        None => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| {
            ApiError::bad_request(format!("Invalid value: \"{text}\": resourceVersion must be a number"))
        }),
    }
}

/// Where the next page of a list begins.
struct Continue {
    /// The moment the list shows; 0 is whenever the page is read, for a list whose moment is forgotten.
    revision: u64,
    after: String,
}

impl Continue {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!({"v": "1", "rv": self.revision, "after": self.after}).to_string())
    }

    fn decode(text: &str) -> Result<Self, ApiError> {
        let parse = || {
            let value: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
            Some(Self { revision: value["rv"].as_u64()?, after: value["after"].as_str()?.to_owned() })
        };
        parse().ok_or_else(|| ApiError::bad_request("continue key is not valid"))
    }
}

impl ApiServer {
    /// One object, always the newest.
    pub(crate) async fn get(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        projection: &Projection,
    ) -> Result<ApiResponse, ApiError> {
        let kv = self.store.get(&kind.store_key(namespace, name)).await?;
        let kv = kv.ok_or_else(|| ApiError::not_found(kind, name))?;
        let bytes = self.shown(kind, (&kv).into()).await?;
        Ok(respond::json_bytes(StatusCode::OK, projection.object(&bytes)))
    }

    /// A collection.
    pub(crate) async fn list(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        query: &Query,
        projection: &Projection,
    ) -> Result<ApiResponse, ApiError> {
        let selection = Selection::parse(kind, query)?;
        let limit = match query.get("limit").map(str::parse::<i64>) {
            None => 0,
            Some(Ok(limit)) if limit >= 0 => usize::try_from(limit).unwrap_or(MAX_LIMIT).min(MAX_LIMIT),
            Some(_) => return Err(ApiError::bad_request("limit must be a whole number of at least 0")),
        };
        let prefix = collection_prefix(kind, namespace);
        if let Some(token) = query.get("continue") {
            let at = Continue::decode(token)?;
            return self.list_page(kind, &prefix, &selection, at, limit, projection).await;
        }
        let exact = query.get("resourceVersionMatch") == Some("Exact");
        match parse_revision(query)? {
            Some(revision) if exact && revision > 0 => {
                let start = Continue { revision, after: String::new() };
                return self.list_page(kind, &prefix, &selection, start, limit, projection).await;
            }
            _ if exact => {
                return Err(ApiError::bad_request(
                    "resourceVersionMatch Exact is forbidden unless resourceVersion is set",
                ));
            }
            // Any state will do.
            Some(0) => {}
            Some(revision) => {
                let current = self.store.revision();
                if revision > current.0 {
                    return Err(StoreError::Future { requested: Revision(revision), current }.into());
                }
                self.cache.wait_for(revision).await;
            }
            None => self.cache.wait_for(self.store.revision().0).await,
        }
        let snapshot = self.cache.snapshot(kind.stored_resource(), &prefix);
        let mut items: Vec<&Arc<Item>> =
            snapshot.items.iter().filter(|item| selection.is_all() || selection.contains(item)).collect();
        self.narrow(kind, &selection, &mut items).await?;
        let mut metadata = json!({"resourceVersion": snapshot.revision.to_string()});
        if limit > 0 && items.len() > limit {
            if selection.is_all() {
                metadata["remainingItemCount"] = (items.len() - limit).into();
            }
            items.truncate(limit);
            let after = items.last().map(|item| item.key.to_string()).unwrap_or_default();
            metadata["continue"] = Continue { revision: snapshot.revision, after }.encode().into();
        }
        let bytes = match kind.stored_as {
            Stored::AsIs => projection.list(items.iter().map(|item| &item.bytes), &metadata)?,
            _ => {
                let shown = self.shown_all(kind, items.iter().map(|item| item.stored())).await?;
                projection.list(shown.iter(), &metadata)?
            }
        };
        Ok(respond::json_bytes(StatusCode::OK, bytes))
    }

    /// Leaves those that a selection means in the version of `kind`, of items that it contains.
    pub(crate) async fn narrow<I: Borrow<Arc<Item>>>(
        &self,
        kind: &Kind,
        selection: &Selection,
        items: &mut Vec<I>,
    ) -> Result<(), ApiError> {
        if selection.is_by_version() {
            let shown = self.shown_all(kind, items.iter().map(|item| item.borrow().stored())).await?;
            let mut meant = shown.iter().map(|bytes| selection.contains_bytes(bytes));
            items.retain(|_| meant.next().unwrap_or(false));
        }
        Ok(())
    }

    /// A page as of an older revision, from the store's history.
    async fn list_page(
        &self,
        kind: &Kind,
        prefix: &str,
        selection: &Selection,
        at: Continue,
        limit: usize,
        projection: &Projection,
    ) -> Result<ApiResponse, ApiError> {
        let mut items: Vec<KeyValue> = Vec::new();
        let mut after = at.after.clone();
        let mut moment = (at.revision > 0).then_some(Revision(at.revision));
        let (mut more, mut remaining) = (true, 0);
        while more && (limit == 0 || items.len() < limit) {
            let range = Range {
                prefix: prefix.to_owned(),
                after: (!after.is_empty()).then(|| after.clone()),
                at: moment,
                limit: if limit == 0 { 0 } else { limit - items.len() },
            };
            let page = self.store.range(range).await.map_err(|e| match e {
                StoreError::Compacted { .. } => {
                    ApiError::continue_expired(Continue { revision: 0, after: at.after.clone() }.encode())
                }
                other => other.into(),
            })?;
            moment = Some(page.revision);
            (more, remaining) = (page.more, page.remaining);
            if let Some(last) = page.items.last() {
                after = last.key.to_string();
            }
            if selection.is_by_version() {
                let shown = self.shown_all(kind, page.items.iter().map(StoredObject::from)).await?;
                let meant = page.items.into_iter().zip(&shown);
                items.extend(meant.filter(|(_, bytes)| selection.contains_bytes(bytes)).map(|(kv, _)| kv));
            } else {
                items.extend(page.items.into_iter().filter(|kv| selection.contains_bytes(&kv.value)));
            }
        }
        let revision = moment.map_or(at.revision, |moment| moment.0);
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if more {
            metadata["continue"] = Continue { revision, after }.encode().into();
            if selection.is_all() {
                metadata["remainingItemCount"] = remaining.into();
            }
        }
        let bytes = self.shown_all(kind, items.iter().map(StoredObject::from)).await?;
        Ok(respond::json_bytes(StatusCode::OK, projection.list(bytes.iter(), &metadata)?))
    }

    /// A stream of changes.
    pub(crate) async fn watch(
        &self,
        kind: &Arc<Kind>,
        namespace: &str,
        name: &str,
        query: &Query,
        projection: Projection,
    ) -> Result<ApiResponse, ApiError> {
        let selection = Selection::parse(kind, query)?;
        let encoding = projection.encoding;
        let resource = self.cache.resource(kind.stored_resource());
        // A watch of one object is a watch of its key.
        let prefix = if name.is_empty() {
            collection_prefix(kind, namespace)
        } else {
            kind.store_key(namespace, name)
        };
        let revision = parse_revision(query)?;
        let send_initial = match query.get("sendInitialEvents") {
            Some(_) if query.get("resourceVersionMatch") != Some("NotOlderThan") => {
                return Err(ApiError::bad_request(
                    "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
                ));
            }
            Some(_) => query.flag("sendInitialEvents"),
            None => revision.unwrap_or(0) == 0,
        };
        let deadline = Instant::now() + watch_timeout(query);
        let mut watcher = Watcher {
            server: self.me.clone(),
            registry: matches!(kind.stored_as, Stored::Custom(_)).then(|| self.registry_changed.subscribe()),
            resource: resource.clone(),
            changed: resource.subscribe(),
            selection,
            exact_key: !name.is_empty(),
            prefix,
            cursor: 0,
            pending: VecDeque::new(),
            events: self.metrics.watch_events(kind),
            projection,
            first: true,
            deadline,
            bookmarks: query.flag("allowWatchBookmarks").then(|| Instant::now() + BOOKMARK_EVERY),
            timer: Box::pin(tokio::time::sleep_until(deadline)),
            finished: false,
        };
        watcher.set_timer();
        if send_initial {
            // Without a revision the newest state is wanted; revision 0 takes any.
            if revision != Some(0) {
                self.cache.wait_for(revision.unwrap_or(0).max(self.store.revision().0)).await;
            }
            watcher.initial(self, query.get("sendInitialEvents").is_some()).await?;
        } else {
            let current = self.store.revision();
            if let Some(requested) = revision.map(Revision).filter(|requested| *requested > current) {
                return Err(StoreError::Future { requested, current }.into());
            }
            let from = match revision {
                Some(0) | None => self.store.revision().0,
                Some(revision) => revision,
            };
            // A revision that is no longer kept is answered by the first event: clients look there.
            watcher.cursor = from;
        }
        let frames = stream::unfold(watcher, |mut watcher| async move {
            watcher.next().await.map(|bytes| (Ok::<_, BodyError>(Frame::data(bytes)), watcher))
        });
        let mut response = respond::json_bytes(StatusCode::OK, Bytes::new());
        if encoding == Encoding::Protobuf {
            let stream = HeaderValue::from_static(wire::STREAM_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, stream);
        }
        *response.body_mut() = StreamBody::new(frames).boxed_unsync();
        Ok(response)
    }
}

fn watch_timeout(query: &Query) -> Duration {
    match query.get("timeoutSeconds").and_then(|t| t.parse::<u64>().ok()) {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(24 * 3600)),
        _ => WATCH_DEFAULT,
    }
}

/// What a watcher has yet to send. Frames are made when the connection takes them, so that a slow client and a long
/// initial list hold references; the one copy is a piece of lines that many share.
enum Pending {
    /// Finished lines.
    Line(Bytes),
    /// An object of the first list, or one that enters or leaves the selection.
    Object(&'static str, Arc<Item>),
    /// An event that looks the same to everybody.
    Event(Arc<CachedEvent>),
}

/// One watch connection: a cursor and what was found behind it.
struct Watcher {
    server: Weak<ApiServer>,
    /// Kinds of custom resources may cease to be served, and their watches with them.
    registry: Option<tokio::sync::watch::Receiver<u64>>,
    resource: Arc<ResourceCache>,
    changed: tokio::sync::watch::Receiver<u64>,
    selection: Selection,
    prefix: String,
    exact_key: bool,
    /// Everything up to here has been looked at.
    cursor: u64,
    /// Not yet taken by the connection; at most the first list and what the ring holds.
    pending: VecDeque<Pending>,
    /// Counts frames.
    events: Arc<AtomicU64>,
    projection: Projection,
    first: bool,
    deadline: Instant,
    /// When the next bookmark is due.
    bookmarks: Option<Instant>,
    /// Runs until the earlier of both; set anew only when that changes.
    timer: Pin<Box<Sleep>>,
    finished: bool,
}

/// Waits for another registry; for ever where that does not matter.
async fn changed_registry(registry: &mut Option<tokio::sync::watch::Receiver<u64>>) {
    let Some(registry) = registry else { return std::future::pending().await };
    if registry.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What a watcher sees of an event, by whether the object was and is in its selection.
fn crossing(event: &CachedEvent, before: bool, after: bool) -> Option<Pending> {
    let event_type = match (before, after) {
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
        (true, false) => "DELETED",
        (false, false) => return None,
    };
    Some(Pending::Object(event_type, event.item.clone()))
}

impl Watcher {
    async fn initial(&mut self, server: &ApiServer, bookmark: bool) -> Result<(), ApiError> {
        let kind = self.projection.kind.clone();
        let snapshot = server.cache.snapshot(kind.stored_resource(), &self.prefix);
        let mut wanted: Vec<Arc<Item>> = snapshot.items.into_iter().filter(|item| self.wants(item)).collect();
        server.narrow(&kind, &self.selection, &mut wanted).await?;
        self.push_all(wanted.into_iter().map(|item| Pending::Object("ADDED", item)).collect());
        self.cursor = snapshot.revision;
        if bookmark && self.bookmarks.is_some() {
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            self.push(Pending::Line(self.bookmark(snapshot.revision, Some(annotations))));
        }
        Ok(())
    }

    fn push(&mut self, pending: Pending) {
        self.events.fetch_add(1, Ordering::Relaxed);
        self.pending.push_back(pending);
    }

    fn push_all(&mut self, pending: Vec<Pending>) {
        self.events.fetch_add(pending.len() as u64, Ordering::Relaxed);
        self.pending.extend(pending);
    }

    fn is_served(&self) -> bool {
        let kind = &self.projection.kind;
        self.server
            .upgrade()
            .is_some_and(|server| server.registry().find(&kind.group, &kind.version, &kind.plural).is_some())
    }

    fn in_scope(&self, item: &Item) -> bool {
        if self.exact_key { *item.key == *self.prefix } else { item.key.starts_with(&self.prefix) }
    }

    fn wants(&self, item: &Item) -> bool {
        self.in_scope(item) && (self.selection.is_all() || self.selection.contains(item))
    }

    /// The line of one event. An object that cannot be shown ends the stream with the reason.
    async fn line(&mut self, pending: Pending) -> Bytes {
        let (event_type, item) = match pending {
            Pending::Line(line) => return line,
            Pending::Event(event) => return self.plain_line(&event),
            Pending::Object(event_type, item) => (event_type, item),
        };
        let bytes = match self.server.upgrade() {
            Some(server) => server.shown(&self.projection.kind, item.stored()).await,
            None => Err(ApiError::unavailable("the server is ending")),
        };
        match bytes {
            Ok(bytes) => {
                let first = std::mem::replace(&mut self.first, false);
                self.projection.frame(event_type, &self.projection.watched(&bytes, first))
            }
            Err(error) => {
                self.finished = true;
                self.pending.clear();
                self.projection.frame_of("ERROR", &error.status())
            }
        }
    }

    /// The line that all watchers without selectors get.
    fn plain_line(&self, event: &CachedEvent) -> Bytes {
        let projection = &self.projection;
        match projection.encoding {
            Encoding::Protobuf => {
                event.plain_wire_frame(|event_type, bytes| projection.frame(event_type, bytes))
            }
            _ => event.plain_frame(),
        }
    }

    fn bookmark(&self, revision: u64, annotations: Option<Value>) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if let Some(annotations) = annotations {
            metadata["annotations"] = annotations;
        }
        let kind = &self.projection.kind;
        let object = match self.projection.form {
            Form::Table => json!({
                "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                "columnDefinitions": [], "rows": [],
            }),
            Form::Metadata => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata})
            }
            Form::Object => {
                json!({"kind": kind.kind, "apiVersion": kind.api_version(), "metadata": metadata})
            }
        };
        self.projection.frame_of("BOOKMARK", &object)
    }

    /// Whether the watcher gets events as everybody does, if they are in its scope.
    fn is_plain(&self) -> bool {
        let as_stored = matches!(self.projection.kind.stored_as, Stored::AsIs);
        self.selection.is_all() && self.projection.form == Form::Object && as_stored
    }

    /// What an event is for this watcher: an object may enter or leave the selection.
    fn translate(&self, event: &Arc<CachedEvent>) -> Option<Pending> {
        if !self.in_scope(&event.item) {
            return None;
        }
        if self.is_plain() {
            return Some(Pending::Event(event.clone()));
        }
        let before = event.previous.as_ref().is_some_and(|item| self.wants(item));
        crossing(event, before, !event.deleted && self.wants(&event.item))
    }

    /// [`Self::translate`] for a selection by version, which needs the objects in that version.
    async fn translate_by_version(&self, events: &[Arc<CachedEvent>]) -> Result<Vec<Pending>, ApiError> {
        let server = self.server.upgrade().ok_or_else(|| ApiError::unavailable("the server is ending"))?;
        let meant = async |item: &Arc<Item>| {
            let mut one = vec![item];
            one.retain(|item| self.wants(item));
            server.narrow(&self.projection.kind, &self.selection, &mut one).await.map(|()| !one.is_empty())
        };
        let mut translated = Vec::new();
        for event in events {
            let before = match &event.previous {
                Some(item) => meant(item).await?,
                None => false,
            };
            let after = !event.deleted && meant(&event.item).await?;
            translated.extend(crossing(event, before, after));
        }
        Ok(translated)
    }

    /// What others with the same wish may have got before; nobody else watches just this object.
    fn wish(&self) -> Option<Wish<'_>> {
        let protobuf = self.projection.encoding == Encoding::Protobuf;
        let shared = self.is_plain() && !self.exact_key && self.resource.watchers() >= joined::CROWD;
        shared.then_some(Wish { cursor: self.cursor, prefix: &self.prefix, protobuf })
    }

    /// The lines of events in one piece, if they are few enough, and kept for others.
    fn join(&self, events: &[Arc<CachedEvent>], reached: u64) -> Option<Lines> {
        let wish = self.wish()?;
        let mine = || events.iter().filter(|event| self.in_scope(&event.item));
        let size: usize = mine().map(|event| event.item.bytes.len()).sum();
        if size == 0 || size > joined::MAX {
            return None;
        }
        let lines: Vec<Bytes> = mine().map(|event| self.plain_line(event)).collect();
        let bytes = if let [only] = &lines[..] { only.clone() } else { Bytes::from(lines.concat()) };
        let lines = Lines { bytes, count: lines.len() as u64, reached };
        self.resource.keep_lines(wish, lines.clone());
        Some(lines)
    }

    fn push_lines(&mut self, lines: Lines) {
        self.events.fetch_add(lines.count, Ordering::Relaxed);
        self.pending.push_back(Pending::Line(lines.bytes));
        self.cursor = lines.reached;
    }

    /// Moves the cursor towards the end of the ring; without anything to send then, it is there.
    async fn collect(&mut self) {
        if let Some(lines) = self.wish().and_then(|wish| self.resource.joined_lines(wish)) {
            return self.push_lines(lines);
        }
        match self.resource.events_after(self.cursor) {
            Ok((events, reached)) => {
                if let Some(lines) = self.join(&events, reached) {
                    return self.push_lines(lines);
                }
                let translated = if self.selection.is_by_version() {
                    self.translate_by_version(&events).await
                } else {
                    Ok(events.iter().filter_map(|event| self.translate(event)).collect())
                };
                match translated {
                    Ok(translated) => self.push_all(translated),
                    Err(error) => {
                        self.push(Pending::Line(self.projection.frame_of("ERROR", &error.status())));
                        self.finished = true;
                    }
                }
                self.cursor = reached;
            }
            Err(cache::Behind) => {
                let gone = ApiError::expired(format!("too old resource version: {}", self.cursor));
                self.push(Pending::Line(self.projection.frame_of("ERROR", &gone.status())));
                self.finished = true;
            }
        }
    }

    /// The next line, or the end of the stream. Several small lines that are ready go out as one chunk.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(pending) = self.pending.pop_front() {
                let line = self.line(pending).await;
                return Some(self.coalesce(line).await);
            }
            if self.finished {
                return None;
            }
            self.changed.borrow_and_update();
            self.collect().await;
            if !self.pending.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.changed.changed() => self.finished = changed.is_err(),
                () = &mut self.timer => self.time_is_up(),
                () = changed_registry(&mut self.registry) => self.finished = !self.is_served(),
            }
        }
    }

    async fn coalesce(&mut self, first: Bytes) -> Bytes {
        const CHUNK: usize = 16 * 1024;
        if self.pending.is_empty() || first.len() >= CHUNK {
            return first;
        }
        let mut chunk = Vec::from(first);
        while chunk.len() < CHUNK {
            match self.pending.pop_front() {
                Some(pending) => chunk.extend_from_slice(&self.line(pending).await),
                None => break,
            }
        }
        chunk.into()
    }

    fn set_timer(&mut self) {
        let wake = self.bookmarks.map_or(self.deadline, |bookmark| bookmark.min(self.deadline));
        self.timer.as_mut().reset(wake);
    }

    fn time_is_up(&mut self) {
        let now = Instant::now();
        if now >= self.deadline {
            self.finished = true;
        } else if self.bookmarks.is_some() {
            self.bookmarks = Some(now + BOOKMARK_EVERY);
            if self.cursor > 0 {
                self.push(Pending::Line(self.bookmark(self.cursor, None)));
            }
            self.set_timer();
        }
    }
}
