//! Pods: from the request to create one until it runs, and from the request to delete it until it is
//! gone, for one pod and for many at once. With the processes of the cluster known, also what a
//! running pod costs in memory.
//!
//! The requests come from a few clients, each one after the other, as from controllers. What counts
//! is when a watch reports phase `Running`, or the deletion of the object: what a user can know.

use std::collections::HashMap;
use std::pin::{Pin, pin};
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::error::{BenchError, Context, Result};
use crate::processes::ProcessGroup;
use crate::report::Measure;
use crate::samples::{Samples, milliseconds};
use crate::target::{Target, Workspace};

/// Clients that send the requests.
const CLIENTS: usize = 8;

/// What to run and how much of it.
#[derive(Clone, Debug)]
pub(crate) struct PodLoad {
    /// Numbers of pods to measure with, one after the other.
    pub(crate) counts: Vec<usize>,
    pub(crate) image: String,
    /// Empty for what the image says.
    pub(crate) command: Vec<String>,
    /// Grace period of deletions. Zero would take the object away without the node's word.
    pub(crate) grace_seconds: u32,
    /// How long all pods of one count may take to run, and again to be gone.
    pub(crate) limit: Duration,
}

/// Measures one target. The namespace made is deleted again, also after a failure.
pub(crate) async fn measure(
    target: &Target,
    load: &PodLoad,
    group: Option<&ProcessGroup>,
) -> Result<Vec<Measure>> {
    let clients = target.connect_many(CLIENTS).await?;
    let Some(client) = clients.first() else {
        return Ok(Vec::new());
    };
    Workspace::within(client, async |namespace| measure_in(&clients, load, group, namespace).await).await
}

async fn measure_in(
    clients: &[Client],
    load: &PodLoad,
    group: Option<&ProcessGroup>,
    namespace: &str,
) -> Result<Vec<Measure>> {
    let mut measures = Vec::new();
    for &count in &load.counts {
        let memory_before = group.map(ProcessGroup::usage).transpose()?;
        let apis: Vec<Api<Pod>> =
            clients.iter().map(|client| Api::namespaced(client.clone(), namespace)).collect();
        let round = Round { apis, namespace, load, names: names(count) };
        let mut events = pin!(round.watch().await?);

        let created = round.create(events.as_mut()).await?;
        measures.extend(created.measures(&format!("create to Running, {count} pods"), count));
        if let (Some(group), Some(before)) = (group, memory_before) {
            let extra = (group.usage()?.pss_mib() - before.pss_mib()) / count as f64;
            measures.push(Measure::lower(format!("memory per pod (PSS), {count} pods"), "MiB", extra));
        }
        let deleted = round.delete(events.as_mut()).await?;
        measures.extend(deleted.measures(&format!("delete to gone, {count} pods"), count));
    }
    Ok(measures)
}

/// One number of pods, made and unmade.
struct Round<'a> {
    apis: Vec<Api<Pod>>,
    namespace: &'a str,
    load: &'a PodLoad,
    names: Vec<String>,
}

/// When each pod had reached what was waited for, by name.
type Moments = HashMap<String, Instant>;

impl Round<'_> {
    /// A watch of all pods of the namespace, from now on. Its requests also open the connections of
    /// all clients.
    async fn watch(&self) -> Result<impl Stream<Item = kube::Result<WatchEvent<Pod>>> + use<>> {
        let what = || format!("could not watch the pods of {}", self.namespace);
        let mut version = String::new();
        for api in &self.apis {
            let list = api.list(&ListParams::default()).await.context(what)?;
            version = list.metadata.resource_version.unwrap_or_default();
        }
        match self.apis.first() {
            Some(api) => api.watch(&WatchParams::default(), &version).await.context(what),
            None => Err(BenchError::new("pods need at least one client")),
        }
    }

    async fn create(
        &self,
        events: Pin<&mut impl Stream<Item = kube::Result<WatchEvent<Pod>>>>,
    ) -> Result<Times> {
        let load = self.load.clone();
        let asked = self.ask(move |api, name| {
            let pod = pod(&name, &load);
            async move { api.create(&PostParams::default(), &pod).await.map(drop) }
        });
        self.time(asked, events, running).await
    }

    async fn delete(
        &self,
        events: Pin<&mut impl Stream<Item = kube::Result<WatchEvent<Pod>>>>,
    ) -> Result<Times> {
        let params = DeleteParams::default().grace_period(self.load.grace_seconds);
        let asked = self.ask(move |api, name| {
            let params = params.clone();
            async move { api.delete(&name, &params).await.map(drop) }
        });
        self.time(asked, events, gone).await
    }

    /// Sends one request per pod. When each was sent.
    async fn ask<F, R>(&self, request: F) -> Result<Moments>
    where
        F: Fn(Api<Pod>, String) -> R + Clone + Send + Sync + 'static,
        R: Future<Output = kube::Result<()>> + Send + 'static,
    {
        let mut tasks = JoinSet::new();
        for (first, api) in self.apis.iter().enumerate() {
            let names: Vec<String> =
                self.names.iter().skip(first).step_by(self.apis.len()).cloned().collect();
            let (api, request) = (api.clone(), request.clone());
            tasks.spawn(async move {
                let mut moments = Moments::new();
                for name in names {
                    moments.insert(name.clone(), Instant::now());
                    request(api.clone(), name).await?;
                }
                Ok::<_, kube::Error>(moments)
            });
        }
        let mut moments = Moments::new();
        while let Some(done) = tasks.join_next().await {
            let done = done.context(|| "a client ended early".to_string())?;
            moments.extend(done.context(|| format!("a request for a pod of {} failed", self.namespace))?);
        }
        Ok(moments)
    }

    /// Sends the requests and waits until every pod has reached what `reached` looks for.
    async fn time(
        &self,
        asked: impl Future<Output = Result<Moments>>,
        events: Pin<&mut impl Stream<Item = kube::Result<WatchEvent<Pod>>>>,
        reached: fn(&WatchEvent<Pod>) -> Option<&Pod>,
    ) -> Result<Times> {
        let mut arrived = Moments::new();
        let waiting = async {
            match timeout(self.load.limit, collect(events, reached, self.names.len(), &mut arrived)).await {
                Ok(ended) => ended.map(|()| true),
                Err(_) => Ok(false),
            }
        };
        let (asked, is_complete) = tokio::try_join!(asked, waiting)?;
        if !is_complete {
            let (done, all, limit) = (arrived.len(), self.names.len(), self.load.limit.as_secs());
            return Err(BenchError::new(format!("only {done} of {all} pods were there after {limit} s")));
        }
        Ok(Times::between(&asked, &arrived))
    }
}

/// Notes when each pod arrives, until all have.
async fn collect(
    mut events: Pin<&mut impl Stream<Item = kube::Result<WatchEvent<Pod>>>>,
    reached: fn(&WatchEvent<Pod>) -> Option<&Pod>,
    count: usize,
    arrived: &mut Moments,
) -> Result<()> {
    while arrived.len() < count {
        let event = events.next().await.ok_or_else(|| BenchError::new("the watch of the pods ended"))?;
        let event = event.context(|| "the watch of the pods failed".to_string())?;
        if let Some(name) = reached(&event).and_then(|pod| pod.metadata.name.clone()) {
            arrived.entry(name).or_insert_with(Instant::now);
        }
    }
    Ok(())
}

fn running(event: &WatchEvent<Pod>) -> Option<&Pod> {
    match event {
        WatchEvent::Added(pod) | WatchEvent::Modified(pod) => {
            (pod.status.as_ref()?.phase.as_deref() == Some("Running")).then_some(pod)
        }
        _ => None,
    }
}

fn gone(event: &WatchEvent<Pod>) -> Option<&Pod> {
    match event {
        WatchEvent::Deleted(pod) => Some(pod),
        _ => None,
    }
}

/// How long it took, pod by pod and for all together.
struct Times {
    each: Samples,
    all: Duration,
}

impl Times {
    fn between(asked: &Moments, arrived: &Moments) -> Self {
        let each = asked
            .iter()
            .filter_map(|(name, begun)| Some(arrived.get(name)?.saturating_duration_since(*begun)))
            .collect();
        let first = asked.values().min();
        let last = arrived.values().max();
        let all =
            first.zip(last).map_or(Duration::ZERO, |(first, last)| last.saturating_duration_since(*first));
        Self { each, all }
    }

    fn measures(&self, what: &str, count: usize) -> Vec<Measure> {
        let mut measures = vec![Measure::lower(format!("{what}, p50"), "ms", self.each.percentile_ms(50.0))];
        if count > 1 {
            measures.push(Measure::lower(format!("{what}, p99"), "ms", self.each.percentile_ms(99.0)));
            measures.push(Measure::lower(format!("{what}, all"), "ms", milliseconds(self.all)));
        }
        measures
    }
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("pod-{count}-{index}")).collect()
}

/// The pod that is measured: one container, as small as the image allows.
pub(crate) fn pod(name: &str, load: &PodLoad) -> Pod {
    let container = Container {
        name: "main".to_string(),
        image: Some(load.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_string()),
        command: (!load.command.is_empty()).then(|| load.command.clone()),
        ..Container::default()
    };
    Pod {
        metadata: ObjectMeta { name: Some(name.to_string()), ..ObjectMeta::default() },
        spec: Some(PodSpec { containers: vec![container], ..PodSpec::default() }),
        ..Pod::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_round() {
        let begun = Instant::now();
        let at = |entries: [(&str, u64); 2]| -> Moments {
            entries.map(|(name, ms)| (name.to_string(), begun + Duration::from_millis(ms))).into()
        };
        let times = Times::between(&at([("a", 0), ("b", 10)]), &at([("a", 30), ("b", 50)]));
        assert_eq!(times.each.percentile_ms(50.0), 30.0);
        assert_eq!(times.each.percentile_ms(99.0), 40.0);
        assert_eq!(times.all, Duration::from_millis(50));
    }

    #[test]
    fn a_single_pod_has_no_distribution() {
        let times = Times { each: [Duration::from_millis(5)].into_iter().collect(), all: Duration::ZERO };
        assert_eq!(times.measures("x", 1).len(), 1);
        assert_eq!(times.measures("x", 2).len(), 3);
    }
}
