//! What operators see: metrics, health, and who is served under load.

use std::convert::Infallible;
use std::time::Duration;

use futures::stream;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use sampan_apiserver::{InProcess, User};
use tokio::sync::watch;
use tower::Service as _;

use crate::world::{JSON, World, admin};

async fn text(world: &World, path: &str) -> (u16, String) {
    let answer = world.get(path).await;
    (answer.code, answer.body.as_str().map_or_else(|| answer.body.to_string(), str::to_owned))
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let world = World::new().await;
    let maps = "/api/v1/namespaces/default/configmaps";
    world.post(maps, &serde_json::json!({"metadata": {"name": "a"}})).await.expect(201);
    world.get(&format!("{maps}/a")).await.expect(200);
    world.get(&format!("{maps}/b")).await.expect(404);
    world.get("/api/v1/made-up").await.expect(404);
    let watch =
        Request::get(format!("{maps}?watch=1&timeoutSeconds=1")).body(Full::default()).expect("a request");
    let watch = world.raw(admin(), watch).await.into_body();
    let (_, open) = text(&world, "/metrics").await;
    let watching = "group=\"\",resource=\"configmaps\",scope=\"namespace\",subresource=\"\",verb=\"WATCH\",version=\"v1\"";
    assert!(
        open.contains(&format!("apiserver_longrunning_requests{{component=\"apiserver\",{watching}}} 1\n")),
        "{open}"
    );
    watch.collect().await.expect("the end of the watch");

    let (code, metrics) = text(&world, "/metrics").await;
    assert_eq!(code, 200);
    let get = "dry_run=\"\",group=\"\",resource=\"configmaps\",scope=\"resource\",subresource=\"\",verb=\"GET\",version=\"v1\"";
    for line in [
        format!("apiserver_request_total{{code=\"200\",component=\"apiserver\",{get}}} 1"),
        format!("apiserver_request_total{{code=\"404\",component=\"apiserver\",{get}}} 1"),
        format!("apiserver_request_duration_seconds_count{{component=\"apiserver\",{get}}} 2"),
        format!("apiserver_longrunning_requests{{component=\"apiserver\",{watching}}} 0"),
        "apiserver_watch_events_total{group=\"\",resource=\"configmaps\",version=\"v1\"} 1".to_owned(),
        // This one and that of the authorities.
        "apiserver_storage_objects{resource=\"configmaps\"} 2".to_owned(),
        "apiserver_flowcontrol_current_executing_requests{priority_level=\"exempt\"} 1".to_owned(),
    ] {
        assert!(metrics.contains(&format!("{line}\n")), "no {line} in\n{metrics}");
    }
    assert!(!metrics.contains("made-up"));
    for name in ["process_resident_memory_bytes ", "etcd_request_duration_seconds_count{operation=\"update\""]
    {
        assert!(metrics.contains(name), "no {name}");
    }
    // Every line is a comment or a name with a number.
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit_once(' ').map(|(_, value)| value.parse::<f64>());
        assert!(matches!(value, Some(Ok(_))), "{line}");
    }
}

#[tokio::test]
async fn health_is_told_in_parts() {
    let world = World::new().await;
    let rows = [
        ("/livez", 200, "ok"),
        ("/healthz", 200, "ok"),
        ("/readyz", 200, "ok"),
        ("/livez/ping", 200, "ok"),
        ("/readyz/etcd", 200, "ok"),
        ("/readyz/nonsense", 404, "the server could not find"),
        ("/livez?verbose", 200, "[+]ping ok\n"),
        ("/livez?verbose", 200, "livez check passed\n"),
        ("/readyz?verbose", 200, "[+]shutdown ok\n"),
        ("/readyz?verbose&exclude=etcd", 200, "[+]etcd excluded: ok\n"),
        ("/livez?verbose&exclude=x", 200, "no matches for \"x\""),
        ("/metrics/slis", 200, "kubernetes_healthcheck{name=\"ping\",type=\"livez\"} 1\n"),
    ];
    for (path, code, part) in rows {
        let (found, body) = text(&world, path).await;
        assert!(found == code && body.contains(part), "{path}: {found} {body}");
    }
    world.server.begin_shutdown();
    let (code, body) = text(&world, "/readyz").await;
    assert_eq!(code, 500);
    assert!(
        body.contains("[-]shutdown failed: reason withheld\n") && body.ends_with("readyz check failed\n"),
        "{body}"
    );
    for (path, code) in
        [("/livez", 200), ("/healthz", 200), ("/readyz?exclude=shutdown", 200), ("/livez/shutdown", 500)]
    {
        assert_eq!(text(&world, path).await.0, code, "{path}");
    }
    let watcher = || User::known("prometheus", &["system:monitoring"]);
    for (user, code) in [(watcher(), 200), (User::known("eve", &[]), 403)] {
        let answer = world.send_as(user, Method::GET, "/metrics", JSON, "").await;
        assert_eq!(answer.code, code);
    }
    // Who is not ready still answers.
    world.get("/api/v1/namespaces").await.expect(200);
}

const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

/// A request that has its seat, or waits for one, and does not finish before the gate has opened this far.
async fn slow_request(world: &World, i: usize, mut gate: watch::Receiver<usize>) -> u16 {
    let body = stream::once(async move {
        gate.wait_for(|open| *open > i).await.expect("the gate outlives its waiters");
        Ok::<_, Infallible>(Frame::data(bytes::Bytes::from_static(
            br#"{"spec": {"nonResourceAttributes": {"path": "/", "verb": "get"}}}"#,
        )))
    });
    let request = Request::post(REVIEWS)
        .header("content-type", JSON)
        .body(StreamBody::new(Box::pin(body)))
        .expect("a request");
    let mut service = InProcess::new(world.server.clone(), User::known("eve", &[]), "test/1");
    match service.call(request).await {
        Ok(response) => {
            let refused = response.status() == 429;
            assert_eq!(response.headers().contains_key("retry-after"), refused);
            response.status().as_u16()
        }
        Err(never) => match never {},
    }
}

/// Requests of the level for everybody: those that run, those that wait.
async fn occupancy(world: &World) -> (usize, usize) {
    let (_, metrics) = text(world, "/metrics").await;
    let value = |name: &str| {
        let line =
            format!("apiserver_flowcontrol_current_{name}_requests{{priority_level=\"global-default\"}} ");
        metrics.lines().find_map(|l| l.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    };
    (value("executing"), value("inqueue"))
}

#[tokio::test]
async fn everybody_is_served_in_a_crowd() {
    const CROWD: usize = 1000;
    let world = World::new().await;
    let (gate, closed) = watch::channel(0);
    let crowd = (0..CROWD).map(|i| slow_request(&world, i, closed.clone()));
    let crowd = futures::future::join_all(crowd);
    let others = async {
        // She has all seats her level may use, and her queues are full; the rest was refused.
        let mut before = (0, 0);
        let (running, waiting) = loop {
            tokio::task::yield_now().await;
            let now = occupancy(&world).await;
            if now.1 > 100 && now == before {
                break now;
            }
            before = now;
        };
        assert!(running >= 49 && running + waiting < CROWD, "{running} run, {waiting} wait");
        // Nodes have seats of their own, and so have controllers.
        for (user, groups) in [("system:node:a", &["system:nodes"][..]), ("system:kube-scheduler", &[])] {
            let answer = world.send_as(User::known(user, groups), Method::GET, "/version", JSON, "");
            let answer = tokio::time::timeout(Duration::from_secs(5), answer).await.expect("no waiting");
            assert_eq!(answer.code, 200, "{user}: {}", answer.body);
        }
        // Another user of the same level waits for a seat, but not behind the crowd.
        let adam = world.send_as(User::known("adam", &[]), Method::GET, "/version", JSON, "");
        let open = async {
            while occupancy(&world).await.1 <= waiting {
                tokio::task::yield_now().await;
            }
            gate.send_replace(20);
        };
        let (answer, ()) = futures::future::join(adam, open).await;
        assert_eq!(answer.code, 200, "{}", answer.body);
        let (_, still) = occupancy(&world).await;
        assert!(still > 50, "adam came after the crowd: only {still} wait");
        gate.send_replace(CROWD);
    };
    let (answers, ()) = futures::future::join(crowd, others).await;
    let served = answers.iter().filter(|code| **code == 201).count();
    let refused = answers.iter().filter(|code| **code == 429).count();
    assert!(served > 100 && refused > 100 && served + refused == CROWD, "{served} served, {refused} refused");
    assert_eq!(occupancy(&world).await, (0, 0), "a seat was not given back");
}
