//! A server of its own for each test, and requests to it.

use std::path::Path;
use std::sync::Arc;

use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use sampan_apiserver::{Access, ApiBody, ApiServer, BodyError, InProcess, Pki, ServerConfig, User};
use sampan_store::embedded::{EmbeddedOptions, EmbeddedStore};
use sampan_store::{Durability, Op, Store, Transaction};
use serde_json::Value;
use tempfile::TempDir;
use tower::Service as _;

/// A running API server.
pub(crate) struct World {
    pub(crate) server: Arc<ApiServer>,
    pub(crate) pki: Pki,
    store: Arc<dyn Store>,
    pub(crate) directory: Arc<TempDir>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) headers: http::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    #[track_caller]
    pub(crate) fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.body);
        self.body
    }
}

pub(crate) const JSON: &str = "application/json";
pub(crate) const MERGE: &str = "application/merge-patch+json";
pub(crate) const APPLY: &str = "application/apply-patch+yaml";

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(Access::default(), |store, _| store).await
    }

    /// With an operator's wishes about access, and a layer over the store, which is given the directory of keys.
    pub(crate) async fn with(
        access: Access,
        layer: impl FnOnce(Arc<dyn Store>, &Path) -> Arc<dyn Store>,
    ) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store = EmbeddedStore::open(&directory.path().join("store"), EmbeddedOptions::default())
            .expect("a store");
        let store = layer(store, &directory.path().join("pki"));
        Self::over(store, Arc::new(directory), access).await
    }

    /// The same cluster after its server has been started again.
    pub(crate) async fn restarted(self) -> Self {
        Self::over(self.store, self.directory, Access::default()).await
    }

    /// Another server over the same store, as a second process would be.
    pub(crate) async fn beside(&self) -> Self {
        Self::over(self.store.clone(), self.directory.clone(), Access::default()).await
    }

    async fn over(store: Arc<dyn Store>, directory: Arc<TempDir>, access: Access) -> Self {
        let pki = Pki::open(&directory.path().join("pki")).expect("keys");
        let config = ServerConfig {
            service_cidr: "10.43.0.0/24".to_owned(),
            advertise: ([10, 42, 0, 1].into(), 6443),
            cluster_domain: "cluster.local".to_owned(),
            build: "test".to_owned(),
        };
        let server = ApiServer::start_with(store.clone(), config, &pki, access).await.expect("starts");
        Self { server, pki, store, directory }
    }

    /// Puts an object into the store past the pipeline, and waits until the server shows it. For objects whose own kind is
    /// not what the test is about.
    pub(crate) async fn seed(&self, key: &str, object: &Value) {
        let value = sampan_store::Value { bytes: object.to_string().into(), splice_at: None };
        let put = Op::Put { key: key.into(), value, durability: Durability::Durable };
        self.store.transact(Transaction { compare: Vec::new(), ops: vec![put] }).await.expect("stored");
        self.settle().await;
    }

    /// [`World::seed`] for an object of the whole cluster.
    pub(crate) async fn install(&self, resource: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().expect("a name");
        self.seed(&format!("/{resource}/{name}"), object).await;
    }

    /// An object as the store has it.
    pub(crate) async fn stored(&self, key: &str) -> Value {
        let found = self.store.get(key).await.expect("the store answers").expect("an object");
        serde_json::from_slice(&found.value).expect("JSON")
    }

    /// Waits until the server's cache shows everything that is stored: a consistent list does.
    pub(crate) async fn settle(&self) {
        self.get("/api/v1/namespaces").await.expect(200);
    }

    /// Sends a request as the network would: who sends it is in the headers or nowhere.
    pub(crate) async fn knock(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path).header("content-type", JSON);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = Full::new(bytes::Bytes::from(body.to_owned())).map_err(BodyError::new).boxed_unsync();
        let response = self.server.clone().handle(request.body(body).expect("a request"), None).await;
        read(response).await
    }

    /// Forgets all history: what was read before cannot be read again at the moment it was read.
    pub(crate) async fn forget_history(&self) {
        self.store.compact(self.store.revision()).await.expect("compacted");
    }

    /// The answer in the form that `accept` asks for, with its media type.
    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Answer {
        let request = Request::get(path).header("accept", accept).body(Full::default()).expect("a request");
        let response = self.raw(admin(), request).await;
        read(response).await
    }

    /// A watch; `path` may have a query.
    pub(crate) async fn watch(&self, path: &str) -> Watching {
        let sign = if path.contains('?') { '&' } else { '?' };
        let request = Request::get(format!("{path}{sign}watch=true&timeoutSeconds=60")).body(Full::default());
        let response = self.raw(admin(), request.expect("a request")).await;
        assert_eq!(response.status(), 200, "{path}");
        Watching { body: response.into_body(), text: Vec::new() }
    }

    pub(crate) async fn raw(
        &self,
        user: User,
        request: Request<Full<bytes::Bytes>>,
    ) -> http::Response<ApiBody> {
        let mut service = InProcess::new(self.server.clone(), user, "test/1");
        match service.call(request.map(|body| body.map_err(BodyError::new))).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    pub(crate) async fn send_as(
        &self,
        user: User,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<bytes::Bytes>,
    ) -> Answer {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content_type)
            .header("accept", JSON)
            .body(Full::new(body.into()))
            .expect("a request");
        read(self.raw(user, request).await).await
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<bytes::Bytes>,
    ) -> Answer {
        self.send_as(admin(), method, path, content_type, body).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, JSON, "").await
    }

    pub(crate) async fn post(&self, path: &str, object: &Value) -> Answer {
        self.send(Method::POST, path, JSON, object.to_string()).await
    }

    pub(crate) async fn put(&self, path: &str, object: &Value) -> Answer {
        self.send(Method::PUT, path, JSON, object.to_string()).await
    }

    pub(crate) async fn patch(&self, path: &str, content_type: &str, patch: &Value) -> Answer {
        self.send(Method::PATCH, path, content_type, patch.to_string()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        self.send(Method::DELETE, path, JSON, "").await
    }
}

pub(crate) async fn read(response: http::Response<ApiBody>) -> Answer {
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await.expect("a body").to_bytes();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Answer { code: parts.status.as_u16(), headers: parts.headers, body }
}

/// The events of a watch, one after the other.
pub(crate) struct Watching {
    body: ApiBody,
    text: Vec<u8>,
}

impl Watching {
    /// The next event, which must come soon.
    pub(crate) async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.text.drain(..=end).collect();
                return serde_json::from_slice(&line).expect("a line of JSON");
            }
            let frame = tokio::time::timeout(std::time::Duration::from_secs(20), self.body.frame()).await;
            let frame = frame.expect("an event in time").expect("more events").expect("a frame");
            self.text.extend_from_slice(&frame.into_data().expect("data"));
        }
    }

    /// Type and name of the next event, as `ADDED a`.
    pub(crate) async fn next_line(&mut self) -> String {
        let event = self.next().await;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        format!("{} {}", text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

/// Waits for something that another task of the server does.
pub(crate) async fn eventually(what: &str, mut look: impl AsyncFnMut() -> bool) {
    for _ in 0..1000 {
        if look().await {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen");
}

/// May do everything.
pub(crate) fn admin() -> User {
    User::known("admin", &["system:masters"])
}
