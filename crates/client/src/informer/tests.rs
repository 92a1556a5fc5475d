//! The informer against a hand-made server: a double of the server's side of list and watch.

use std::convert::Infallible;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::*;
use crate::{Informers, in_process};

/// A server with one list and a watch the test speaks through.
struct Server {
    list: Arc<Mutex<Value>>,
    watches: mpsc::UnboundedReceiver<mpsc::UnboundedSender<String>>,
}

impl Server {
    fn start(items: &[Value]) -> (Self, kube::Client) {
        let list = Arc::new(Mutex::new(list_of(items)));
        let (opened, watches) = mpsc::unbounded_channel();
        let answers = Arc::clone(&list);
        let client = in_process(tower::service_fn(move |request: Request<Body>| {
            let answer = if request.uri().query().unwrap_or_default().contains("watch=true") {
                let (speak, lines) = mpsc::unbounded_channel();
                // The test may have ended its side; then nobody listens to this watch either.
                let _ = opened.send(speak);
                stream_of(lines)
            } else {
                let list = answers.lock().unwrap().to_string();
                Full::new(Bytes::from(list)).boxed_unsync()
            };
            async move { Ok::<_, Infallible>(Response::new(answer)) }
        }));
        (Self { list, watches }, client)
    }

    fn set_list(&self, items: &[Value]) {
        *self.list.lock().unwrap() = list_of(items);
    }
}

fn stream_of(lines: mpsc::UnboundedReceiver<String>) -> UnsyncBoxBody<Bytes, Infallible> {
    let frames = futures::stream::unfold(lines, |mut lines| async move {
        let line: String = lines.recv().await?;
        Some((Ok::<_, Infallible>(Frame::data(Bytes::from(line))), lines))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn list_of(items: &[Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMapList", "metadata": {"resourceVersion": "10"}, "items": items})
}

fn object(namespace: &str, name: &str, revision: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": format!("uid-{name}"),
            "resourceVersion": revision.to_string(),
            "managedFields": [{"manager": "test"}],
        },
    })
}

fn event(type_: &str, object: Value) -> String {
    format!("{}\n", json!({"type": type_, "object": object}))
}

/// A change as `name old-revision new-revision`, with `-` for none.
fn summary(change: &Change<ConfigMap>) -> String {
    let revision = |side: &Option<Arc<ConfigMap>>| {
        side.as_ref().and_then(|object| object.metadata.resource_version.clone()).unwrap_or("-".into())
    };
    format!("{} {} {}", change.key.name, revision(&change.old), revision(&change.new))
}

async fn next(changes: &mut Changes<ConfigMap>) -> String {
    summary(&changes.recv().await.expect("the informer lives"))
}

#[tokio::test(start_paused = true)]
async fn shows_what_is_there_and_then_what_happens() {
    let (mut server, client) = Server::start(&[object("a", "one", 1), object("b", "two", 2)]);
    let informer = Informers::new(client).of::<ConfigMap>();
    let mut changes = informer.subscribe();
    informer.synced().await;
    assert_eq!(next(&mut changes).await, "one - 1");
    assert_eq!(next(&mut changes).await, "two - 2");

    let speak = server.watches.recv().await.unwrap();
    speak.send(event("MODIFIED", object("a", "one", 11))).unwrap();
    assert_eq!(next(&mut changes).await, "one 1 11");
    speak.send(event("DELETED", object("b", "two", 12))).unwrap();
    assert_eq!(next(&mut changes).await, "two 2 -");

    assert!(informer.get("b", "two").is_none());
    let one = informer.get("a", "one").expect("is still there");
    assert!(one.metadata.managed_fields.is_none());
    assert_eq!(informer.list_in("a").len(), 1);
    assert_eq!(informer.list_in("b").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_late_subscriber_gets_the_present_objects_first() {
    let (_server, client) = Server::start(&[object("a", "one", 1)]);
    let informer = Informers::new(client).of::<ConfigMap>();
    informer.synced().await;
    assert_eq!(next(&mut informer.subscribe()).await, "one - 1");
}

#[tokio::test(start_paused = true)]
async fn listing_again_deletes_what_vanished_meanwhile() {
    let (mut server, client) = Server::start(&[object("a", "one", 1), object("a", "two", 2)]);
    let informer = Informers::new(client).of::<ConfigMap>();
    let mut changes = informer.subscribe();
    assert_eq!(next(&mut changes).await, "one - 1");
    assert_eq!(next(&mut changes).await, "two - 2");

    let speak = server.watches.recv().await.unwrap();
    server.set_list(&[object("a", "two", 2), object("a", "three", 30)]);
    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    speak.send(event("ERROR", gone)).unwrap();
    let mut seen = [next(&mut changes).await, next(&mut changes).await];
    seen.sort();
    assert_eq!(seen, ["one 1 -", "three - 30"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_is_resumed() {
    let (mut server, client) = Server::start(&[]);
    let informer = Informers::new(client).of::<ConfigMap>();
    let mut changes = informer.subscribe();
    drop(server.watches.recv().await.unwrap());
    let speak = server.watches.recv().await.unwrap();
    speak.send(event("ADDED", object("a", "one", 11))).unwrap();
    assert_eq!(next(&mut changes).await, "one - 11");
}

#[tokio::test(start_paused = true)]
async fn one_kind_has_one_watch() {
    let (mut server, client) = Server::start(&[]);
    let informers = Informers::new(client);
    let (first, second) = (informers.of::<ConfigMap>(), informers.of::<ConfigMap>());
    first.synced().await;
    second.synced().await;
    let _speak = server.watches.recv().await.unwrap();
    assert!(server.watches.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn keys_are_told_of_what_is_there_changes_and_goes() {
    let (mut server, client) = Server::start(&[object("a", "one", 1)]);
    let keys = Informers::new(client).keys_of::<ConfigMap>();
    let next = async || keys.next().await.expect("the watch lives").to_string();
    assert_eq!(next().await, "a/one");
    let speak = server.watches.recv().await.unwrap();
    // One that changes often before it is taken is told once.
    for line in [
        event("MODIFIED", object("a", "one", 11)),
        event("MODIFIED", object("a", "one", 12)),
        event("ADDED", object("b", "two", 13)),
        event("DELETED", object("a", "one", 14)),
    ] {
        speak.send(line).unwrap();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!([next().await, next().await], ["a/one", "b/two"]);
    server.set_list(&[object("b", "two", 13)]);
    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    speak.send(event("ERROR", gone)).unwrap();
    assert_eq!(next().await, "b/two", "an interrupted watch tells all there is");
}
