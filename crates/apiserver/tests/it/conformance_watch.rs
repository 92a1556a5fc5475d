//! What watchers see.

use serde_json::{Value, json};

use crate::world::{MERGE, World};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, watched: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"watched": watched}}, "data": {"n": "0"}})
}

async fn change(world: &World, name: &str, n: u32) -> String {
    let patch = json!({"data": {"n": n.to_string()}});
    let changed = world.patch(&format!("{MAPS}/{name}"), MERGE, &patch).await.expect(200);
    changed["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned()
}

#[tokio::test]
async fn each_watcher_sees_what_its_selector_says() {
    let world = World::new().await;
    let mut a = world.watch(&format!("{MAPS}?labelSelector=watched%3Da")).await;
    let mut b = world.watch(&format!("{MAPS}?labelSelector=watched%3Db")).await;
    let mut both = world.watch(&format!("{MAPS}?labelSelector=watched%20in%20(a,b)")).await;
    world.post(MAPS, &map("a", "a")).await.expect(201);
    change(&world, "a", 1).await;
    change(&world, "a", 2).await;
    world.delete(&format!("{MAPS}/a")).await.expect(200);
    world.post(MAPS, &map("b", "b")).await.expect(201);
    world.delete(&format!("{MAPS}/b")).await.expect(200);
    for watching in [&mut a, &mut both] {
        assert_eq!(watching.next_line().await, "ADDED a");
        for n in ["1", "2"] {
            let event = watching.next().await;
            assert_eq!((&event["type"], &event["object"]["data"]["n"]), (&json!("MODIFIED"), &json!(n)));
        }
        assert_eq!(watching.next_line().await, "DELETED a");
    }
    for watching in [&mut b, &mut both] {
        assert_eq!([watching.next_line().await, watching.next_line().await], ["ADDED b", "DELETED b"]);
    }
}

#[tokio::test]
async fn a_watch_begins_after_the_revision_it_names() {
    let world = World::new().await;
    world.post(MAPS, &map("a", "a")).await.expect(201);
    let first = change(&world, "a", 1).await;
    let second = change(&world, "a", 2).await;
    world.delete(&format!("{MAPS}/a")).await.expect(200);
    let mut watching = world.watch(&format!("{MAPS}?resourceVersion={first}")).await;
    let event = watching.next().await;
    assert_eq!(event["object"]["metadata"]["resourceVersion"], second.as_str());
    assert_eq!((&event["type"], &event["object"]["data"]["n"]), (&json!("MODIFIED"), &json!("2")));
    assert_eq!(watching.next_line().await, "DELETED a");
}

#[tokio::test]
async fn a_watch_goes_on_where_another_ended() {
    let world = World::new().await;
    let mut first = world.watch(&format!("{MAPS}?labelSelector=watched%3Da")).await;
    world.post(MAPS, &map("a", "a")).await.expect(201);
    change(&world, "a", 1).await;
    assert_eq!(first.next_line().await, "ADDED a");
    let last = first.next().await["object"]["metadata"]["resourceVersion"].clone();
    drop(first);
    change(&world, "a", 2).await;
    world.delete(&format!("{MAPS}/a")).await.expect(200);
    let last = last.as_str().expect("a revision");
    let mut second = world.watch(&format!("{MAPS}?labelSelector=watched%3Da&resourceVersion={last}")).await;
    assert_eq!(second.next().await["object"]["data"]["n"], "2");
    assert_eq!(second.next_line().await, "DELETED a");
}

#[tokio::test]
async fn an_object_that_no_longer_matches_is_deleted_to_the_watcher() {
    let world = World::new().await;
    let mut watching = world.watch(&format!("{MAPS}?labelSelector=watched%3Da")).await;
    world.post(MAPS, &map("a", "a")).await.expect(201);
    let label = |value: &str| json!({"metadata": {"labels": {"watched": value}}});
    let path = format!("{MAPS}/a");
    world.patch(&path, MERGE, &label("no")).await.expect(200);
    change(&world, "a", 1).await;
    world.patch(&path, MERGE, &label("a")).await.expect(200);
    change(&world, "a", 2).await;
    world.delete(&path).await.expect(200);
    assert_eq!([watching.next_line().await, watching.next_line().await], ["ADDED a", "DELETED a"]);
    let again = watching.next().await;
    assert_eq!((&again["type"], &again["object"]["data"]["n"]), (&json!("ADDED"), &json!("1")));
    let changed = watching.next().await;
    assert_eq!((&changed["type"], &changed["object"]["data"]["n"]), (&json!("MODIFIED"), &json!("2")));
    assert_eq!(watching.next_line().await, "DELETED a");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_agree_on_the_order() {
    const WRITES: u32 = 60;
    let world = World::new().await;
    let from = world.get(MAPS).await.expect(200)["metadata"]["resourceVersion"].clone();
    let from = from.as_str().expect("a revision").to_owned();
    // Three writers at once, none of which knows of the others.
    let writer = async |name: &'static str| {
        world.post(MAPS, &map(name, "a")).await.expect(201);
        for n in 1..WRITES / 3 {
            change(&world, name, n).await;
        }
    };
    let revision = |event: &Value| event["object"]["metadata"]["resourceVersion"].as_str().map(str::to_owned);
    let reader = async {
        let mut first = world.watch(&format!("{MAPS}?resourceVersion={from}")).await;
        let (mut order, mut others) = (Vec::new(), Vec::new());
        for i in 0..WRITES {
            let revision = revision(&first.next().await).expect("a revision");
            // Another one from each event on: at most a dozen are enough.
            if i % 5 == 0 {
                others.push((
                    order.len() + 1,
                    world.watch(&format!("{MAPS}?resourceVersion={revision}")).await,
                ));
            }
            order.push(revision);
        }
        for (start, watching) in &mut others {
            for expected in &order[*start..] {
                assert_eq!(revision(&watching.next().await).as_ref(), Some(expected));
            }
        }
    };
    futures::join!(reader, writer("a"), writer("b"), writer("c"));
}

/// So many that they rest between wake-ups and get their lines joined.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_misses_nothing() {
    const WATCHERS: usize = 80;
    const WRITES: u32 = 40;
    let world = World::new().await;
    world.post("/api/v1/namespaces", &json!({"metadata": {"name": "other"}})).await.expect(201);
    let other = "/api/v1/namespaces/other/configmaps";
    world.post(MAPS, &map("a", "a")).await.expect(201);
    let made = world.post(other, &map("b", "b")).await.expect(201);
    let from = made["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
    let scopes = [(MAPS, &["a"][..]), (other, &["b"]), ("/api/v1/configmaps", &["a", "b"])];
    let mut crowd = Vec::new();
    for (path, names) in scopes {
        for _ in 0..WATCHERS {
            crowd.push((names, world.watch(&format!("{path}?resourceVersion={from}")).await));
        }
    }
    let writes = async {
        for n in 1..=WRITES {
            let patch = json!({"data": {"n": n.to_string()}});
            for path in [format!("{MAPS}/a"), format!("{other}/b")] {
                world.patch(&path, MERGE, &patch).await.expect(200);
            }
        }
        // The next after all others: nothing came twice.
        for path in [format!("{MAPS}/a"), format!("{other}/b")] {
            world.patch(&path, MERGE, &json!({"data": {"n": "end"}})).await.expect(200);
        }
    };
    let reads = async {
        // Others than ours may lie in the namespaces as well.
        for (names, watching) in &mut crowd {
            let mut seen = Vec::new();
            while seen.len() < names.len() * (WRITES as usize + 1) {
                let event = watching.next().await;
                let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                if ["a", "b"].contains(&name.as_str()) {
                    seen.push((name, event["object"]["data"]["n"].as_str().unwrap_or_default().to_owned()));
                }
            }
            let expected: Vec<(String, String)> = (1..=WRITES)
                .map(|n| n.to_string())
                .chain(["end".to_owned()])
                .flat_map(|n| names.iter().map(move |name| ((*name).to_owned(), n.clone())))
                .collect();
            assert_eq!(seen, expected);
        }
    };
    futures::join!(writes, reads);
}
