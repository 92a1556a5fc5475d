//! Groups that an extension server answers: a real one, behind a service of the cluster.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use sampan_apiserver::{NodeConnector, Stream, User};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use crate::outside::{Certificate, Outside, json_answer};
use crate::world::{JSON, World, admin, eventually};

const API_SERVICES: &str = "apiservices.apiregistration.k8s.io";
pub(crate) const THINGS: &str = "/apis/ext.example/v1/things";

/// Every address of the cluster is the extension server.
struct OneServer(std::net::SocketAddr);

#[async_trait]
impl NodeConnector for OneServer {
    async fn node(&self, _: &str) -> std::io::Result<Box<dyn Stream>> {
        Err(std::io::ErrorKind::NotFound.into())
    }

    async fn address(&self, _: std::net::SocketAddr) -> std::io::Result<Box<dyn Stream>> {
        Ok(Box::new(tokio::net::TcpStream::connect(self.0).await?))
    }
}

fn api_service(bundle: &str, available: bool) -> Value {
    json!({
        "apiVersion": "apiregistration.k8s.io/v1",
        "kind": "APIService",
        "metadata": {"name": "v1.ext.example", "uid": "1"},
        "spec": {
            "group": "ext.example", "version": "v1", "groupPriorityMinimum": 100, "versionPriority": 10,
            "service": {"namespace": "default", "name": "ext", "port": 443}, "caBundle": bundle,
        },
        "status": {"conditions": [{"type": "Available", "status": if available { "True" } else { "False" }}]},
    })
}

/// The service and the slice behind it.
async fn add_service(world: &World) {
    let service = json!({"metadata": {"name": "ext"}, "spec": {"ports": [{"name": "https", "port": 443}]}});
    world.post("/api/v1/namespaces/default/services", &service).await.expect(201);
    let slice = json!({
        "metadata": {"name": "ext-1", "labels": {"kubernetes.io/service-name": "ext"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.42.0.9"], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": 8443, "protocol": "TCP"}],
    });
    world.post("/apis/discovery.k8s.io/v1/namespaces/default/endpointslices", &slice).await.expect(201);
}

fn discovery() -> Value {
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": "ext.example/v1", "resources": [
        {"name": "things", "singularName": "thing", "namespaced": false, "kind": "Thing", "verbs": ["get", "list"]},
    ]})
}

/// An extension server that believes the front proxy, as the published config map says.
async fn extension(world: &World, lines: Option<mpsc::Receiver<String>>) -> Outside {
    let map = world
        .get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
        .await
        .expect(200);
    assert_eq!(map["data"]["requestheader-allowed-names"], "[\"front-proxy-client\"]");
    let authority = map["data"]["requestheader-client-ca-file"].as_str().expect("PEM").to_owned();
    let lines = Arc::new(tokio::sync::Mutex::new(lines));
    let answer = move |seen: crate::outside::Seen, mut request: Request<hyper::body::Incoming>| {
        let lines = lines.clone();
        let answer: futures::future::BoxFuture<'static, Response<crate::outside::Body>> =
            Box::pin(async move {
                match seen.path.as_str() {
                    "/apis/ext.example/v1" => json_answer(200, discovery()),
                    "/apis/ext.example/v1/stream" => {
                        let upgraded = hyper::upgrade::on(&mut request);
                        tokio::spawn(async move {
                            let mut stream = hyper_util::rt::TokioIo::new(upgraded.await.expect("upgraded"));
                            let mut word = [0; 4];
                            stream.read_exact(&mut word).await.expect("four bytes");
                            word.reverse();
                            stream.write_all(&word).await.expect("written");
                        });
                        let mut response = json_answer(101, "");
                        for (name, value) in [("connection", "Upgrade"), ("upgrade", "echo")] {
                            response.headers_mut().insert(name, http::HeaderValue::from_static(value));
                        }
                        response
                    }
                    path if path.contains("watch=true") => {
                        let receiver = lines.lock().await.take().expect("one watch");
                        let frames = futures::stream::unfold(receiver, |mut receiver| async {
                            let line = receiver.recv().await?;
                            Some((Ok(http_body::Frame::data(Bytes::from(line))), receiver))
                        });
                        Response::new(StreamBody::new(frames).boxed_unsync())
                    }
                    _ => json_answer(200, json!({"kind": "ThingList", "items": []})),
                }
            });
        answer
    };
    Outside::start(Certificate::Signed, &["ext.default.svc"], Some(&authority), Arc::new(answer)).await
}

async fn world_with(lines: Option<mpsc::Receiver<String>>) -> (World, Outside) {
    let world = World::new().await;
    let outside = extended(&world, lines).await;
    (world, outside)
}

/// Gives a world its extension server.
pub(crate) async fn extended(world: &World, lines: Option<mpsc::Receiver<String>>) -> Outside {
    let outside = extension(world, lines).await;
    world.server.set_node_connector(Arc::new(OneServer(outside.address)));
    add_service(world).await;
    world.install(API_SERVICES, &api_service(&outside.bundle, true)).await;
    outside
}

/// The aggregated entry of the extension group, once it looks as wanted.
async fn discovered(world: &World, freshness: &str) -> Value {
    for _ in 0..200 {
        let request = Request::builder()
            .uri("/apis")
            .header("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList")
            .body(Full::default())
            .expect("a request");
        let body = world.raw(admin(), request).await.into_body().collect().await.expect("a body").to_bytes();
        let list: Value = serde_json::from_slice(&body).expect("JSON");
        let mut groups = list["items"].as_array().into_iter().flatten();
        let version = groups
            .find(|group| group["metadata"]["name"] == "ext.example")
            .map(|group| group["versions"][0].clone());
        if let Some(version) = version.filter(|version| version["freshness"] == freshness) {
            return version;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never {freshness}");
}

#[tokio::test]
async fn requests_are_passed_on_with_a_name() {
    let (world, outside) = world_with(None).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("{THINGS}?a=b"))
        .header("authorization", "Bearer secret")
        .header("x-remote-user", "forged")
        .header("x-kept", "yes")
        .body(Full::new(Bytes::from("{\"kind\":\"Thing\"}")))
        .expect("a request");
    let mut user = User::known("bob", &["system:masters"]);
    user.extra = vec![("a/b".to_owned(), vec!["c".to_owned()])];
    let response = world.raw(user, request).await;
    assert_eq!(response.status(), 200);
    let body = response.into_body().collect().await.expect("a body").to_bytes();
    assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON")["kind"], "ThingList");
    let seen = outside.seen().into_iter().find(|seen| seen.method == Method::POST).expect("seen");
    assert_eq!(
        (seen.path.as_str(), &seen.body["kind"]),
        ("/apis/ext.example/v1/things?a=b", &json!("Thing"))
    );
    assert_eq!(seen.client.as_deref(), Some("front-proxy-client"));
    let all = |name: &str| -> Vec<String> {
        seen.headers.get_all(name).iter().map(|v| v.to_str().expect("text").to_owned()).collect()
    };
    assert_eq!(all("x-remote-user"), ["bob"]);
    assert_eq!(all("x-remote-group"), ["system:masters", "system:authenticated"]);
    assert_eq!(all("x-remote-extra-a%2fb"), ["c"]);
    assert_eq!((all("x-kept"), all("authorization").len()), (vec!["yes".to_owned()], 0));
    assert_eq!(all("host"), ["ext.default.svc:443"]);
    // Who may not, gets no further than here.
    let before = outside.seen().len();
    let stranger = world.send_as(User::known("eve", &[]), Method::GET, THINGS, JSON, "").await;
    stranger.expect(403);
    assert!(outside.seen()[before..].iter().all(|seen| seen.path != THINGS));
}

#[tokio::test]
async fn watches_are_streamed() {
    let (sender, receiver) = mpsc::channel(1);
    let (world, _outside) = world_with(Some(receiver)).await;
    let request =
        Request::builder().uri(format!("{THINGS}?watch=true")).body(Full::default()).expect("a request");
    let mut body = world.raw(admin(), request).await.into_body();
    for line in ["one\n", "two\n"] {
        sender.send(line.to_owned()).await.expect("sent");
        let frame = body.frame().await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), line);
    }
    drop(sender);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn discovery_is_merged() {
    let (world, outside) = world_with(None).await;
    let version = discovered(&world, "Current").await;
    assert_eq!(version["resources"][0]["resource"], "things");
    assert_eq!(version["resources"][0]["responseKind"]["kind"], "Thing");
    let groups = world.get("/apis").await.expect(200);
    assert!(groups.to_string().contains("\"ext.example/v1\""), "{groups}");
    let group = world.get("/apis/ext.example").await.expect(200);
    assert_eq!(group["preferredVersion"]["groupVersion"], "ext.example/v1");
    assert_eq!(world.get("/apis/ext.example/v1").await.expect(200), discovery());
    assert!(world.get("/openapi/v3").await.expect(200)["paths"]["apis/ext.example/v1"].is_object());
    // The server goes; what it said last is still shown, and said to be old.
    let bundle = outside.bundle.clone();
    drop(outside);
    world.install(API_SERVICES, &api_service(&bundle, true)).await;
    assert_eq!(discovered(&world, "Stale").await["resources"][0]["resource"], "things");
}

#[tokio::test]
async fn what_is_not_available_is_said_to_be() {
    let world = World::new().await;
    world.install(API_SERVICES, &api_service("", false)).await;
    assert_eq!(world.get(THINGS).await.expect(503)["message"], "service unavailable");
    // What the server serves itself is never passed on.
    let mut own = api_service("", true);
    own["metadata"]["name"] = "v1.apps".into();
    own["spec"]["group"] = "apps".into();
    world.install(API_SERVICES, &own).await;
    world.get("/apis/apps/v1/deployments").await.expect(200);
    world.get("/apis/other.example/v1/things").await.expect(404);
}

#[tokio::test]
async fn upgrades_pass_through() {
    let (world, _outside) = world_with(None).await;
    let tls = world.pki.server_tls(&["localhost".to_owned()], &[]).expect("TLS");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = tokio::spawn(sampan_apiserver::serve(world.server.clone(), listener, tls));
    let client = world.pki.client("admin", &["system:masters"]).expect("a certificate");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(world.pki.ca_pem().as_bytes()).expect("PEM")).expect("a root");
    let chain = vec![CertificateDer::from_pem_slice(client.certificate.as_bytes()).expect("PEM")];
    let key = PrivateKeyDer::from_pem_slice(client.key.as_bytes()).expect("a key");
    let config =
        rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)
            .expect("a client");
    let stream = tokio::net::TcpStream::connect(address).await.expect("connected");
    let name = ServerName::try_from("localhost").expect("a name");
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect(name, stream).await.expect("TLS");
    let head = "GET /apis/ext.example/v1/stream HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    stream.write_all(head.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.expect("a head"));
    }
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    stream.write_all(b"abcd").await.expect("written");
    let mut word = [0; 4];
    stream.read_exact(&mut word).await.expect("four bytes");
    assert_eq!(&word, b"dcba");
    serving.abort();
}

/// The condition `Available` of an API service, once it has this reason.
async fn reason(world: &World, name: &str, wanted: &str) -> String {
    let mut last = Value::Null;
    for _ in 0..200 {
        last = world.get(&format!("/apis/apiregistration.k8s.io/v1/apiservices/{name}")).await.body;
        let condition = &last["status"]["conditions"][0];
        if condition["reason"] == wanted {
            return condition["status"].as_str().unwrap_or_default().to_owned();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{name} is never {wanted}: {last}");
}

#[tokio::test]
async fn availability_is_kept() {
    let world = World::new().await;
    let outside = extension(&world, None).await;
    world.server.set_node_connector(Arc::new(OneServer(outside.address)));
    assert_eq!(reason(&world, "v1.", "Local").await, "True");
    assert_eq!(reason(&world, "v1.apps", "Local").await, "True");
    let mut service = api_service(&outside.bundle, false);
    service["metadata"] = json!({"name": "v1.ext.example"});
    world.post("/apis/apiregistration.k8s.io/v1/apiservices", &service).await.expect(201);
    assert_eq!(reason(&world, "v1.ext.example", "ServiceNotFound").await, "False");
    settles(&world, 503).await;
    add_service(&world).await;
    assert_eq!(reason(&world, "v1.ext.example", "Passed").await, "True");
    settles(&world, 200).await;
    let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
    world.delete(&format!("{slices}/ext-1")).await.expect(200);
    assert_eq!(reason(&world, "v1.ext.example", "EndpointsNotFound").await, "False");
    settles(&world, 503).await;
}

/// Waits until the things are answered like this: what is served follows the condition by an event.
async fn settles(world: &World, code: u16) {
    eventually("the other answer", async || world.get(THINGS).await.code == code).await;
}
