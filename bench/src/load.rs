//! What the measurements of the API share: many clients that each send one request after the other,
//! and the objects they send.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;

use crate::error::{Context, Result};
use crate::report::Measure;
use crate::samples::Samples;

/// Bytes of data per object.
pub(crate) const PAYLOAD: usize = 1024;
/// Clients that fill a namespace where filling is not what is measured.
pub(crate) const FILLERS: usize = 8;
/// The field that carries the number of a change.
pub(crate) const NUMBER: &str = "number";

/// A number of like requests, done.
pub(crate) struct Phase {
    pub(crate) latencies: Samples,
    pub(crate) elapsed: Duration,
}

impl Phase {
    pub(crate) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    pub(crate) fn measures(&self, what: &str, clients: usize) -> Vec<Measure> {
        let mut measures = vec![Measure::higher(format!("{what}, {clients} clients"), "1/s", self.rate())];
        measures.extend(self.latencies.measures(&format!("{what}, {clients} clients")));
        measures
    }
}

/// What can be sent to the API and comes back.
pub(crate) trait Object: Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static {}

impl<K: Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static> Object for K {}

/// A door to the ConfigMaps of one namespace for every client.
pub(crate) fn apis(clients: &[Client], namespace: &str) -> Vec<Api<ConfigMap>> {
    clients.iter().map(|client| Api::namespaced(client.clone(), namespace)).collect()
}

/// Lets the clients do `count` operations together, each client every `apis.len()`th of them. The
/// first failure ends it: a benchmark of errors is none.
pub(crate) async fn run<K, F, R>(apis: &[Api<K>], count: usize, operation: F) -> Result<Phase>
where
    K: Object,
    F: Fn(Api<K>, usize) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = kube::Result<()>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    let begun = Instant::now();
    for (first, api) in apis.iter().enumerate() {
        let (api, operation, step) = (api.clone(), operation.clone(), apis.len());
        tasks.spawn(async move {
            let mut latencies = Vec::with_capacity(count / step + 1);
            for index in (first..count).step_by(step) {
                let begun = Instant::now();
                operation(api.clone(), index).await?;
                latencies.push(begun.elapsed());
            }
            Ok::<_, kube::Error>(latencies)
        });
    }
    let mut latencies = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        let done = done.context(|| "a client of the load ended early".to_string())?;
        latencies.extend(done.context(|| "a request of the load failed".to_string())?);
    }
    Ok(Phase { elapsed: begun.elapsed(), latencies: latencies.into_iter().collect() })
}

/// Creates `count` ConfigMaps where that is not what is measured.
pub(crate) async fn fill(
    apis: &[Api<ConfigMap>],
    count: usize,
    object: fn(usize) -> ConfigMap,
) -> Result<()> {
    let create = move |api: Api<ConfigMap>, index| async move {
        api.create(&PostParams::default(), &object(index)).await.map(drop)
    };
    run(apis, count, create).await.map(drop)
}

/// The ConfigMaps of a list whose content does not matter.
pub(crate) fn listed(index: usize) -> ConfigMap {
    config_map(&name(index), 'l', 0)
}

pub(crate) fn name(index: usize) -> String {
    format!("object-{index}")
}

pub(crate) fn config_map(name: &str, fill: char, number: usize) -> ConfigMap {
    config_map_of(name, fill.to_string().repeat(PAYLOAD), number)
}

pub(crate) fn config_map_of(name: &str, payload: String, number: usize) -> ConfigMap {
    let data = BTreeMap::from([("payload".to_string(), payload), (NUMBER.to_string(), number.to_string())]);
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_string()), ..ObjectMeta::default() },
        data: Some(data),
        ..ConfigMap::default()
    }
}
