//! Throughput and latency of the API: ConfigMaps created, read, changed, listed, watched and deleted
//! by many clients at once.
//!
//! Every client has a connection of its own and sends one request after the other (a closed loop), so
//! the number of clients is the number of requests in flight. Latency is what a client sees, the
//! decoding of the answer included.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::{BenchError, Context, Result};
use crate::load::{FILLERS, NUMBER, Phase, apis, config_map as object, fill, listed, name, run};
use crate::report::Measure;
use crate::target::{Target, Workspace};

/// Lists are this much rarer than requests for single objects: each one carries hundreds.
const OPERATIONS_PER_LIST: usize = 20;
/// How long all watchers together may take to see all events.
const WATCH_LIMIT: Duration = Duration::from_secs(120);
/// The object whose changes are watched.
const WATCHED: &str = "watched";

/// How much to do.
#[derive(Clone, Debug)]
pub(crate) struct ObjectLoad {
    /// Numbers of clients to measure with, one after the other.
    pub(crate) clients: Vec<usize>,
    /// Requests per kind of operation, shared by the clients.
    pub(crate) operations: usize,
    /// Objects in the list that is read.
    pub(crate) listed: usize,
    /// Changes that the watchers see.
    pub(crate) events: usize,
}

/// Measures one target. The namespaces made are deleted again, also after a failure.
pub(crate) async fn measure(target: &Target, load: &ObjectLoad) -> Result<Vec<Measure>> {
    let client = target.connect().await?;
    let (work, list) = (Workspace::create(&client).await?, Workspace::create(&client).await?);
    let result = measure_in(target, load, &work.name, &list.name).await;
    let removed = (work.remove().await, list.remove().await);
    let measures = result?;
    removed.0?;
    removed.1?;
    Ok(measures)
}

async fn measure_in(target: &Target, load: &ObjectLoad, work: &str, list: &str) -> Result<Vec<Measure>> {
    fill(&apis(&target.connect_many(FILLERS).await?, list), load.listed, listed).await?;
    let mut measures = Vec::new();
    for &count in &load.clients {
        let clients = target.connect_many(count).await?;
        // Connections are opened before, so that their handshakes are not measured.
        let (single, listed) = (apis(&clients, work), apis(&clients, list));
        run(&single, count, |api, _| async move { api.get_opt("none").await.map(drop) }).await?;
        measures.extend(single_objects(&single, load.operations).await?);
        measures.extend(lists(&listed, load).await?);
        measures.extend(watches(&clients, work, load.events).await?);
    }
    Ok(measures)
}

async fn single_objects(apis: &[Api<ConfigMap>], operations: usize) -> Result<Vec<Measure>> {
    let create = run(apis, operations, |api, index| async move {
        api.create(&PostParams::default(), &object(&name(index), 'a', 0)).await.map(drop)
    });
    let create = create.await?;
    let get = run(apis, operations, |api, index| async move { api.get(&name(index)).await.map(drop) });
    let get = get.await?;
    let update = run(apis, operations, |api, index| async move {
        api.replace(&name(index), &PostParams::default(), &object(&name(index), 'b', 0)).await.map(drop)
    });
    let update = update.await?;
    let delete = run(apis, operations, |api, index| async move {
        api.delete(&name(index), &DeleteParams::default()).await.map(drop)
    });
    let delete = delete.await?;
    let phases = [("create", create), ("get", get), ("update", update), ("delete", delete)];
    Ok(phases.iter().flat_map(|(what, phase)| phase.measures(what, apis.len())).collect())
}

async fn lists(apis: &[Api<ConfigMap>], load: &ObjectLoad) -> Result<Vec<Measure>> {
    let count = (load.operations / OPERATIONS_PER_LIST).max(apis.len());
    let phase = run(apis, count, |api, _| async move { api.list(&ListParams::default()).await.map(drop) });
    Ok(phase.await?.measures(&format!("list {} x 1 KB", load.listed), apis.len()))
}

/// One writer changes one object; every client watches. Latency runs from the moment a change is sent
/// until a watcher has it.
async fn watches(clients: &[Client], namespace: &str, events: usize) -> Result<Vec<Measure>> {
    let writer: Api<ConfigMap> = match clients.first() {
        Some(client) => Api::namespaced(client.clone(), namespace),
        None => return Err(BenchError::new("a load needs at least one client")),
    };
    let what = || format!("could not change the object watched in {namespace}");
    let made = writer.create(&PostParams::default(), &object(WATCHED, 'w', 0)).await.context(what)?;
    let version = made.metadata.resource_version.unwrap_or_default();

    let sent: Arc<Vec<OnceLock<Instant>>> = Arc::new((0..=events).map(|_| OnceLock::new()).collect());
    let mut watchers = JoinSet::new();
    for client in clients {
        let api: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let stream = api.watch(&WatchParams::default(), &version).await;
        let stream = stream.context(|| format!("could not watch {namespace}"))?;
        let sent = Arc::clone(&sent);
        watchers.spawn(async move {
            let arrivals = stream.try_filter_map(|event| async move { Ok(number(&event)) });
            let latencies = arrivals.map_ok(|number| {
                let sent = sent.get(number).and_then(OnceLock::get);
                (number, sent.map_or(Duration::ZERO, Instant::elapsed))
            });
            read_until(latencies, events).await
        });
    }

    let begun = Instant::now();
    for number in 1..=events {
        // Set once: every number is written once.
        let _ = sent[number].set(Instant::now());
        let changed = object(WATCHED, 'w', number);
        writer.replace(WATCHED, &PostParams::default(), &changed).await.context(what)?;
    }
    let latencies = timeout(WATCH_LIMIT, collect(watchers)).await;
    let latencies = latencies
        .context(|| format!("not all watchers of {namespace} saw all changes"))?
        .into_iter()
        .collect();
    let phase = Phase { latencies, elapsed: begun.elapsed() };
    writer.delete(WATCHED, &DeleteParams::default()).await.context(what)?;
    Ok(phase.measures("watch event", clients.len()))
}

/// The latencies of all changes until the last one. Servers may merge changes of one object that
/// follow each other quickly, so fewer than `last` may come.
async fn read_until(
    arrivals: impl futures::Stream<Item = kube::Result<(usize, Duration)>>,
    last: usize,
) -> Vec<Duration> {
    let mut arrivals = std::pin::pin!(arrivals);
    let mut latencies = Vec::new();
    while let Some(Ok((number, latency))) = arrivals.next().await {
        if number > 0 {
            latencies.push(latency);
        }
        if number >= last {
            break;
        }
    }
    latencies
}

fn number(event: &WatchEvent<ConfigMap>) -> Option<usize> {
    match event {
        WatchEvent::Added(object) | WatchEvent::Modified(object) => {
            object.data.as_ref()?.get(NUMBER)?.parse().ok()
        }
        _ => None,
    }
}

/// The results of all tasks; what a broken one would have brought is missing.
async fn collect(mut tasks: JoinSet<Vec<Duration>>) -> Vec<Duration> {
    let mut all = Vec::new();
    while let Some(done) = tasks.join_next().await {
        all.extend(done.unwrap_or_default());
    }
    all
}
