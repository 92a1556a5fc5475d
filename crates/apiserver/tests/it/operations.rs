//! What operators see: metrics, health, and who is served under load.

use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use sampan_apiserver::User;

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
        "apiserver_storage_objects{resource=\"configmaps\"} 1".to_owned(),
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

#[tokio::test]
async fn everybody_is_served_in_a_crowd() {
    let world = World::new().await;
    let eve = || User::known("eve", &[]);
    // More than all queues and seats of her level hold: some wait, some are refused, nobody else notices.
    let crowd = (0..1000).map(|_| world.send_as(eve(), Method::GET, "/version", JSON, ""));
    let crowd = futures::future::join_all(crowd);
    let beat = async {
        let node = User::known("system:node:a", &["system:nodes"]);
        for _ in 0..20 {
            let answer = world.send_as(node.clone(), Method::GET, "/api/v1/nodes/a", JSON, "").await;
            // Forbidden or not found, but never too many requests.
            assert_ne!(answer.code, 429, "{}", answer.body);
            tokio::task::yield_now().await;
        }
    };
    let (answers, ()) = futures::future::join(crowd, beat).await;
    assert!(answers.iter().all(|a| a.code == 200 || a.code == 429));
    for refused in answers.iter().filter(|a| a.code == 429) {
        assert!(refused.headers.contains_key("retry-after"));
    }
    assert!(answers.iter().filter(|a| a.code == 200).count() > 50);
    // Every seat was given back.
    let (_, metrics) = text(&world, "/metrics").await;
    let executing = "apiserver_flowcontrol_current_executing_requests{priority_level=\"global-default\"} 0\n";
    assert!(metrics.contains(executing), "{metrics}");
}
