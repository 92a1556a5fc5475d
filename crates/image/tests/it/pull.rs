//! Pulling: from a real registry, and from ones that authenticate, redirect, lie and break.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use sampan_image::{Image, ImageError, LayerState, PullOptions, PullProgress};
use serde_json::json;

use crate::http::{Answer, Request, one, serve};
use crate::registry;
use crate::tars::{Tar, TestImage, busybox, digest, gzip, zstd};
use crate::unpack::Scene;

fn plain() -> PullOptions {
    PullOptions { plain_http_hosts: vec!["127.0.0.1".to_owned()], ..PullOptions::default() }
}

fn image() -> TestImage {
    TestImage::new(&[busybox(), Tar::default().file("etc/motd", "hello").end()], gzip)
}

async fn pull(scene: &Scene, reference: &str, options: PullOptions) -> Result<Image, ImageError> {
    scene.store.pull(reference, options, Arc::new(|_| {})).await
}

/// A registry that has one image as `app:1` and counts what it is asked.
struct Fake {
    image: TestImage,
    asked: Mutex<BTreeMap<String, usize>>,
}

impl Fake {
    fn new(image: TestImage) -> Arc<Self> {
        Arc::new(Self { image, asked: Mutex::default() })
    }

    fn answer(&self, request: &Request) -> Answer {
        *self.asked.lock().unwrap().entry(request.path.clone()).or_default() += 1;
        let blobs = self.image.blobs();
        match request.path.split('/').collect::<Vec<_>>().as_slice() {
            ["", "v2", "app", "manifests", "1"] => Answer::ok(self.image.manifest.clone()),
            ["", "v2", "app", "manifests" | "blobs", digest] => {
                blobs.get(*digest).map_or(Answer::status(404), |blob| Answer::ok(blob.clone()))
            }
            _ => Answer::status(404),
        }
    }

    fn asked(&self, digest: &str) -> usize {
        self.asked
            .lock()
            .unwrap()
            .iter()
            .filter(|(path, _)| path.contains(digest))
            .map(|(_, count)| count)
            .sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_registry_is_pulled_from() {
    let Some(server) = registry::start() else { return };
    let (one, two) = (image(), TestImage::new(&[busybox(), Tar::default().file("b", "2").end()], zstd));
    server.push("team/one", "v1", &one);
    server.push("team/two", "latest", &two);
    let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
        {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest(&one.manifest),
            "size": one.manifest.len(), "platform": {"os": "linux", "architecture": "amd64"}}]});
    let index = index.to_string().into_bytes();
    server.push_manifest("team/one", "multi", "application/vnd.oci.image.index.v1+json", &index);
    let host = server.address;
    let scene = Scene::new();
    let seen = Arc::new(Mutex::new(Vec::<PullProgress>::new()));
    let listener = seen.clone();
    let progress = Arc::new(move |progress| listener.lock().unwrap().push(progress));
    let pulled = scene.store.pull(&format!("{host}/team/one:v1"), plain(), progress).await.unwrap();
    assert_eq!(pulled.id, one.id());
    assert_eq!(pulled.repo_digests, [format!("{host}/team/one@{}", digest(&one.manifest))]);
    assert!(scene.store.layer_dirs(&pulled.id).unwrap()[1].join("bin/busybox").exists());
    let done = seen.lock().unwrap().iter().filter(|progress| progress.state == LayerState::Done).count();
    assert_eq!(done, 2);
    let multi = pull(&scene, &format!("{host}/team/one:multi"), plain()).await.unwrap();
    assert_eq!((multi.id, multi.references.len(), multi.repo_digests.len()), (one.id(), 2, 2));
    assert_eq!(pull(&scene, &format!("{host}/team/two"), plain()).await.unwrap().id, two.id());
    let pinned = format!("{host}/team/two@{}", digest(&two.manifest));
    let scene = Scene::new();
    let pulled = pull(&scene, &pinned, plain()).await.unwrap();
    assert!(pulled.references.is_empty());
    assert_eq!(scene.store.get(&pinned).unwrap().unwrap().id, two.id());
    let missing = pull(&scene, &format!("{host}/team/none"), plain()).await.unwrap_err();
    assert!(matches!(missing, ImageError::NotFound { .. }), "{missing}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_pulls_share_the_work() {
    let fake = Fake::new(image());
    let server = fake.clone();
    let address = serve(move |request| server.answer(&request));
    let scene = Arc::new(Scene::new());
    let pulls: Vec<_> = (0..5)
        .map(|_| {
            let scene = scene.clone();
            tokio::spawn(async move { pull(&scene, &format!("{address}/app:1"), plain()).await })
        })
        .collect();
    for pull in pulls {
        assert_eq!(pull.await.unwrap().unwrap().id, fake.image.id());
    }
    for layer in &fake.image.layers {
        assert_eq!(fake.asked(&digest(layer)), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_asked_for_and_not_shown_to_others() {
    let fake = Fake::new(image());
    let server = fake.clone();
    let stranger = Arc::new(Mutex::new(Vec::<Request>::new()));
    let (seen, blobs) = (stranger.clone(), fake.clone());
    // Blobs are on another host, which must not see the token.
    let elsewhere = serve(move |request| {
        seen.lock().unwrap().push(request.clone());
        blobs.answer(&request)
    });
    let tokens = Arc::new(AtomicUsize::new(0));
    let count = tokens.clone();
    let address = serve(move |request| {
        if request.path.starts_with("/token") {
            count.fetch_add(1, Ordering::SeqCst);
            assert!(
                request.path.contains("scope=repository:app:pull") && request.path.contains("service=test")
            );
            // user:secret
            return match request.header("authorization") {
                Some("Basic dXNlcjpzZWNyZXQ=") => Answer::ok(r#"{"token":"good"}"#),
                _ => Answer::status(401),
            };
        }
        if request.header("authorization") != Some("Bearer good") {
            let host = request.header("host").unwrap();
            return Answer::status(401).with(
                "www-authenticate",
                format!(r#"Bearer realm="http://{host}/token",service="test",scope="repository:app:pull""#),
            );
        }
        match request.path.contains("/blobs/") {
            true => Answer::status(307).with("location", format!("http://{elsewhere}{}", request.path)),
            false => server.answer(&request),
        }
    });
    let scene = Scene::new();
    let reference = format!("{address}/app:1");
    let error = pull(&scene, &reference, plain()).await.unwrap_err();
    assert!(matches!(error, ImageError::Denied { .. }), "{error}");
    let credentials = Some(("user".to_owned(), "secret".to_owned()));
    let options = PullOptions { credentials, ..plain() };
    assert_eq!(pull(&scene, &reference, options).await.unwrap().id, fake.image.id());
    assert_eq!(tokens.load(Ordering::SeqCst), 2, "one refused, one for the whole pull");
    let stranger = stranger.lock().unwrap();
    assert_eq!(stranger.len(), 3);
    assert!(stranger.iter().all(|request| request.header("authorization").is_none()));
}

#[tokio::test]
async fn plain_http_is_only_for_hosts_that_were_allowed() {
    let fake = Fake::new(image());
    let server = fake.clone();
    let address = serve(move |request| server.answer(&request));
    let scene = Scene::new();
    // Not allowed: TLS is tried, and the server does not speak it.
    let error = pull(&scene, &format!("{address}/app:1"), PullOptions::default()).await.unwrap_err();
    assert!(matches!(error, ImageError::Transport { .. }), "{error}");
    // Redirected to a host that is not allowed.
    let away = serve(move |request| {
        Answer::status(307).with("location", format!("http://localhost:{}{}", address.port(), request.path))
    });
    let options = PullOptions { plain_http_hosts: vec![away.to_string()], ..PullOptions::default() };
    let error = pull(&scene, &format!("{away}/app:1"), options).await.unwrap_err();
    assert!(matches!(error, ImageError::PlainHttp { .. }), "{error}");
    let circle = serve(|request| Answer::status(302).with("location", request.path));
    let error = pull(&scene, &format!("{circle}/app:1"), plain()).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    assert_eq!(fake.asked("app"), 0);
    scene.assert_empty("nothing pulled");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lying_registries_are_found_out() {
    type Lie = fn(&TestImage, &Request, Answer) -> Answer;
    type Check = fn(&ImageError) -> bool;
    let rows: [(&str, Lie, Check); 6] = [
        (
            "another layer",
            |image, request, mut answer| {
                if request.path.ends_with(&digest(&image.layers[1])) {
                    let last = answer.body.len() - 1;
                    answer.body[last] ^= 1;
                }
                answer
            },
            |error| matches!(error, ImageError::Digest { .. }),
        ),
        (
            "a longer layer",
            |image, request, mut answer| {
                if request.path.ends_with(&digest(&image.layers[1])) {
                    answer.body.extend(vec![0; 100_000]);
                }
                answer
            },
            |error| matches!(error, ImageError::Size { .. }),
        ),
        (
            "a shorter layer",
            |image, request, mut answer| {
                if request.path.ends_with(&digest(&image.layers[1])) {
                    answer.body.pop();
                }
                answer
            },
            |error| matches!(error, ImageError::Size { .. }),
        ),
        (
            "another configuration",
            |image, request, mut answer| {
                if request.path.ends_with(&image.id()) {
                    answer.body[0] = b' ';
                }
                answer
            },
            |error| matches!(error, ImageError::Digest { .. }),
        ),
        (
            "an endless manifest",
            |_, request, mut answer| {
                if request.path.contains("manifests") {
                    answer.body = vec![b' '; 5 << 20];
                }
                answer
            },
            |error| matches!(error, ImageError::Size { .. }),
        ),
        (
            "an error",
            |_, _, _| Answer {
                status: 403,
                body: br#"{"errors":[{"code":"DENIED","message":"no"}]}"#.to_vec(),
                ..Answer::default()
            },
            |error| matches!(error, ImageError::Denied { reason, .. } if reason == "DENIED: no"),
        ),
    ];
    for (row, lie, expected) in rows {
        let fake = Fake::new(image());
        let address = serve(move |request| lie(&fake.image, &request, fake.answer(&request)));
        let scene = Scene::new();
        let error = pull(&scene, &format!("{address}/app:1"), plain()).await.unwrap_err();
        assert!(expected(&error), "{row}: {error}");
        scene.assert_empty(row);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_download_is_tried_again() {
    let fake = Fake::new(image());
    let server = fake.clone();
    let address = serve(move |request| {
        let mut answer = server.answer(&request);
        let layer = digest(&server.image.layers[0]);
        if request.path.ends_with(&layer) && server.asked(&layer) == 1 {
            answer.claim = Some(answer.body.len());
            answer.body.truncate(1000);
        }
        answer
    });
    let scene = Scene::new();
    assert_eq!(pull(&scene, &format!("{address}/app:1"), plain()).await.unwrap().id, fake.image.id());
    assert_eq!(fake.asked(&digest(&fake.image.layers[0])), 2);
}

/// A TLS stream for one blocking connection.
struct Tls(rustls::StreamOwned<rustls::ServerConnection, std::net::TcpStream>);

impl Read for Tls {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Tls {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.conn.send_close_notify();
        self.0.flush()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_is_verified() {
    let key = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    let private = rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![key.cert.der().clone()], private)
        .unwrap();
    let config = Arc::new(config);
    let fake = Fake::new(image());
    let server = fake.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, server) = (config.clone(), server.clone());
            std::thread::spawn(move || {
                let connection = rustls::ServerConnection::new(config).unwrap();
                one(Tls(rustls::StreamOwned::new(connection, stream)), &|request| server.answer(&request));
            });
        }
    });
    let scene = Scene::new();
    let ca = Some(scene.file("ca.pem", key.cert.pem().as_bytes()));
    for host in ["127.0.0.1", "localhost"] {
        let reference = format!("{host}:{port}/app:1");
        let untrusted = pull(&scene, &reference, PullOptions::default()).await.unwrap_err();
        assert!(matches!(untrusted, ImageError::Transport { .. }), "{untrusted}");
        let options = PullOptions { ca: ca.clone(), ..PullOptions::default() };
        assert_eq!(pull(&scene, &reference, options).await.unwrap().id, fake.image.id());
    }
}
