//! Fairness: what others feel while one client sends as much as it can.
//!
//! Three parties, each a user of its own by impersonation, so that the server can tell them apart. The
//! noisy one has many connections and does not heed being told to wait. The quiet one reads and changes
//! one object now and then. A node renews its lease, as kubelets do to be taken for alive. The two last
//! are timed first alone and then beside the noise.
//!
//! The noise runs on a thread of its own, so that it takes part of the machine from those who are
//! timed, as another program would, and not their turn in this one.

use std::fmt;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use futures::future::join_all;
use http::{Method, StatusCode};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::runtime;
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::error::{Context, Result};
use crate::load::{FILLERS, apis, config_map, fill, listed, name};
use crate::report::Measure;
use crate::samples::Samples;
use crate::target::{Target, Workspace, await_effect};
use crate::wire::{Connection, Wire};

const NOISY: &str = "bench-noisy";
const QUIET: &str = "bench-quiet";
/// Where nodes have their leases.
const NODE_LEASES: &str = "kube-node-lease";
/// Between two requests of those who are timed.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the noise lasts before anything is timed beside it.
const WARM_UP: Duration = Duration::from_secs(1);
/// The longest a request that is timed may take: longer than servers let one wait.
const REQUEST_LIMIT: Duration = Duration::from_secs(90);
/// The object that the quiet user has.
const QUIET_OBJECT: &str = "quiet";

/// What the noisy client sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Noise {
    /// Lists of all objects of the namespace.
    List,
    /// Reads of single objects.
    Get,
    /// Changes of single objects.
    Update,
}

impl fmt::Display for Noise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::List => "list",
            Self::Get => "get",
            Self::Update => "update",
        })
    }
}

/// How much noise, and for how long.
#[derive(Clone, Debug)]
pub(crate) struct OverloadLoad {
    /// Connections of the noisy client, each with one request after the other.
    pub(crate) connections: usize,
    pub(crate) noise: Noise,
    /// Objects of 1 KB in the namespace.
    pub(crate) listed: usize,
    /// How long the others are timed, alone and again beside the noise.
    pub(crate) duration: Duration,
}

/// Measures one target. What was made is deleted again, also after a failure.
pub(crate) async fn measure(target: &Target, load: &OverloadLoad) -> Result<Vec<Measure>> {
    let admin = target.connect().await?;
    Workspace::within(&admin, async |namespace| {
        let result = measure_in(target, &admin, load, namespace).await;
        let leases: Api<Lease> = Api::namespaced(admin.clone(), NODE_LEASES);
        let removed = leases.delete(namespace, &DeleteParams::default()).await;
        let measures = result?;
        removed.context(|| format!("could not delete the lease {namespace}"))?;
        Ok(measures)
    })
    .await
}

async fn measure_in(
    target: &Target,
    admin: &Client,
    load: &OverloadLoad,
    namespace: &str,
) -> Result<Vec<Measure>> {
    fill(&apis(&target.connect_many(FILLERS).await?, namespace), load.listed, listed).await?;
    grant(admin, namespace).await?;
    let mut others = Others::prepare(target, namespace).await?;
    let alone = others.time(load.duration).await?;

    let noisy = Wire::new(&target.config_as(NOISY, &[]).await?).await?;
    let (stop, stopped) = watch::channel(false);
    let noise = {
        let (load, namespace) = (load.clone(), namespace.to_string());
        spawn_blocking(move || make_noise(&noisy, &load, &namespace, stopped))
    };
    sleep(WARM_UP).await;
    let beside = others.time(load.duration).await;
    // Nobody listens any more when the noise has failed.
    let _ = stop.send(true);
    let noise = noise.await.context(|| "the noise ended early".to_string())??;

    let mut measures = Vec::new();
    for ((who, alone), (_, beside)) in alone.iter().zip(&beside?) {
        measures.extend(alone.measures(&format!("{who}, alone")));
        measures.extend(beside.measures(&format!("{who}, beside noise")));
        let ratio = beside.latencies.percentile_ms(99.0) / alone.latencies.percentile_ms(99.0);
        measures.push(Measure::lower(format!("{who}, p99 beside noise to alone"), "x", ratio));
    }
    measures.extend(noise.measures(load));
    Ok(measures)
}

/// Lets both users do with ConfigMaps of the namespace what they like.
async fn grant(admin: &Client, namespace: &str) -> Result<()> {
    let name = json!({"name": "bench"});
    let rules = json!([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["*"]}]);
    let users = [NOISY, QUIET]
        .map(|user| json!({"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}));
    let role = json!({"kind": "Role", "name": "bench", "apiGroup": "rbac.authorization.k8s.io"});
    create(Api::<Role>::namespaced(admin.clone(), namespace), json!({"metadata": name, "rules": rules}))
        .await?;
    let binding = json!({"metadata": name, "roleRef": role, "subjects": users});
    create(Api::<RoleBinding>::namespaced(admin.clone(), namespace), binding).await
}

async fn create<K>(api: Api<K>, object: Value) -> Result<()>
where
    K: Clone + fmt::Debug + DeserializeOwned + serde::Serialize,
{
    let what = || "could not give rights to the users of the benchmark".to_string();
    let object = serde_json::from_value(object).context(what)?;
    api.create(&PostParams::default(), &object).await.map(drop).context(what)
}

/// Those who are timed.
struct Others {
    configmaps: Api<ConfigMap>,
    leases: Api<Lease>,
    /// As the server has it: a renewal names the version it renews.
    lease: Lease,
}

impl Others {
    /// Makes their objects, and waits until they may use them.
    async fn prepare(target: &Target, namespace: &str) -> Result<Self> {
        let quiet = target.connect_as(QUIET, &[]).await?;
        let configmaps: Api<ConfigMap> = Api::namespaced(quiet, namespace);
        await_effect("a role binding", async || match configmaps.get_opt(QUIET_OBJECT).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_forbidden() => Ok(false),
            Err(error) => Err(error).context(|| format!("{QUIET} could not read {namespace}")),
        })
        .await?;
        let object = config_map(QUIET_OBJECT, 'q', 0);
        let made = configmaps.create(&PostParams::default(), &object).await;
        made.context(|| format!("{QUIET} could not create a ConfigMap in {namespace}"))?;

        // A node of this name need not exist: the lease is all that the server sees of it.
        let node = target.connect_as(&format!("system:node:{namespace}"), &["system:nodes"]).await?;
        let leases: Api<Lease> = Api::namespaced(node, NODE_LEASES);
        let lease = leases.create(&PostParams::default(), &lease(namespace)).await;
        let lease = lease.context(|| format!("the node {namespace} could not create its lease"))?;
        Ok(Self { configmaps, leases, lease })
    }

    /// Lets all of them work for some time, each one request after the other with pauses.
    async fn time(&mut self, duration: Duration) -> Result<[(&'static str, Timed); 3]> {
        let until = Instant::now() + duration;
        let configmaps = self.configmaps.clone();
        let get = steadily(until, async || configmaps.get(QUIET_OBJECT).await.map(drop));
        let mut number = 0;
        let update = steadily(until, async || {
            number += 1;
            let object = config_map(QUIET_OBJECT, 'q', number);
            configmaps.replace(QUIET_OBJECT, &PostParams::default(), &object).await.map(drop)
        });
        let (leases, lease) = (&self.leases, &mut self.lease);
        let renew = steadily(until, async || {
            let mut next = lease.clone();
            next.spec.get_or_insert_default().renew_time = Some(MicroTime(Timestamp::now()));
            let name = next.metadata.name.clone().unwrap_or_default();
            *lease = leases.replace(&name, &PostParams::default(), &next).await?;
            Ok(())
        });
        let (get, update, renew) = tokio::try_join!(get, update, renew)?;
        Ok([("quiet get", get), ("quiet update", update), ("node heartbeat", renew)])
    }
}

fn lease(node: &str) -> Lease {
    Lease {
        metadata: ObjectMeta { name: Some(node.to_string()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(node.to_string()),
            lease_duration_seconds: Some(40),
            renew_time: Some(MicroTime(Timestamp::now())),
            ..LeaseSpec::default()
        }),
    }
}

/// Requests of one party.
struct Timed {
    /// Of those that were answered.
    latencies: Samples,
    refused: usize,
}

impl Timed {
    fn measures(&self, what: &str) -> Vec<Measure> {
        let mut measures = self.latencies.measures(what);
        measures.push(Measure::lower(format!("{what}, refused (429)"), "", self.refused as f64));
        measures
    }
}

async fn steadily(until: Instant, mut request: impl AsyncFnMut() -> kube::Result<()>) -> Result<Timed> {
    let (mut latencies, mut refused) = (Vec::new(), 0);
    while Instant::now() < until {
        let begun = Instant::now();
        let limit = || format!("a request took more than {} s", REQUEST_LIMIT.as_secs());
        match timeout(REQUEST_LIMIT, request()).await.context(limit)? {
            Ok(()) => latencies.push(begun.elapsed()),
            Err(kube::Error::Api(status)) if status.code == StatusCode::TOO_MANY_REQUESTS.as_u16() => {
                refused += 1;
            }
            Err(error) => return Err(error).context(|| "a request that was timed failed".to_string()),
        }
        sleep(PAUSE).await;
    }
    Ok(Timed { latencies: latencies.into_iter().collect(), refused })
}

/// What became of the noisy client's requests.
#[derive(Clone, Copy, Debug, Default)]
struct NoiseCount {
    answered: usize,
    refused: usize,
    /// Answered with another error, or not at all, or no connection.
    failed: usize,
    elapsed: Duration,
}

impl NoiseCount {
    fn measures(&self, load: &OverloadLoad) -> Vec<Measure> {
        let rate = |count: usize| count as f64 / self.elapsed.as_secs_f64();
        let what = format!("noise ({}, {} connections)", load.noise, load.connections);
        vec![
            Measure::higher(format!("{what}, answered"), "1/s", rate(self.answered)),
            Measure::lower(format!("{what}, refused (429)"), "1/s", rate(self.refused)),
            Measure::lower(format!("{what}, failed"), "1/s", rate(self.failed)),
        ]
    }
}

/// Sends until told to stop; blocks the thread.
fn make_noise(
    wire: &Wire,
    load: &OverloadLoad,
    namespace: &str,
    stopped: watch::Receiver<bool>,
) -> Result<NoiseCount> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context(|| "could not start the thread of the noise".to_string())?;
    runtime.block_on(async {
        let begun = Instant::now();
        let senders = (0..load.connections)
            .map(|index| send(wire, Request::new(load, namespace, index), stopped.clone()));
        let counts = join_all(senders).await;
        let mut all = NoiseCount { elapsed: begun.elapsed(), ..NoiseCount::default() };
        for count in counts {
            all.answered += count.answered;
            all.refused += count.refused;
            all.failed += count.failed;
        }
        Ok(all)
    })
}

/// What one connection sends again and again.
struct Request {
    method: Method,
    path: String,
    body: Bytes,
}

impl Request {
    fn new(load: &OverloadLoad, namespace: &str, index: usize) -> Self {
        let list = format!("/api/v1/namespaces/{namespace}/configmaps");
        let object = name(index % load.listed.max(1));
        let (method, path, body) = match load.noise {
            Noise::List => (Method::GET, list, Vec::new()),
            Noise::Get => (Method::GET, format!("{list}/{object}"), Vec::new()),
            Noise::Update => {
                let body = serde_json::to_vec(&config_map(&object, 'n', index)).unwrap_or_default();
                (Method::PUT, format!("{list}/{object}"), body)
            }
        };
        Self { method, path, body: body.into() }
    }
}

/// One connection's loop. It ends when it is told to, and also when nobody is left who could tell.
async fn send(wire: &Wire, request: Request, mut stopped: watch::Receiver<bool>) -> NoiseCount {
    let (mut count, mut connection) = (NoiseCount::default(), None);
    loop {
        let answer = tokio::select! {
            answer = send_once(wire, &mut connection, &request) => answer,
            _ = stopped.changed() => return count,
        };
        match answer {
            Ok(status) if status.is_success() => count.answered += 1,
            Ok(StatusCode::TOO_MANY_REQUESTS) => count.refused += 1,
            Ok(_) => count.failed += 1,
            Err(_) => {
                count.failed += 1;
                // A server may close the connections of those who send too much.
                connection = None;
                sleep(PAUSE).await;
            }
        }
    }
}

async fn send_once(
    wire: &Wire,
    connection: &mut Option<Connection>,
    request: &Request,
) -> Result<StatusCode> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(wire.connect().await?),
    };
    let answer = connection.exchange(request.method.clone(), &request.path, request.body.clone()).await?;
    Ok(answer.status)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_noise_sends() {
        let rows = [
            (Noise::List, Method::GET, "/api/v1/namespaces/a/configmaps", false),
            (Noise::Get, Method::GET, "/api/v1/namespaces/a/configmaps/object-2", false),
            (Noise::Update, Method::PUT, "/api/v1/namespaces/a/configmaps/object-2", true),
        ];
        for (noise, method, path, has_body) in rows {
            let load = OverloadLoad { connections: 8, noise, listed: 5, duration: Duration::ZERO };
            let request = Request::new(&load, "a", 7);
            assert_eq!((request.method, request.path.as_str()), (method, path));
            assert_eq!(!request.body.is_empty(), has_body, "{noise}");
        }
    }

    #[tokio::test]
    async fn refusals_are_counted_and_not_timed() {
        let until = Instant::now() + Duration::from_millis(100);
        let mut asked = 0_usize;
        let timed = steadily(until, async || {
            asked += 1;
            let mut status = kube::core::Status::failure("too many requests", "TooManyRequests");
            status.code = 429;
            if asked.is_multiple_of(2) { Err(kube::Error::Api(status.boxed())) } else { Ok(()) }
        });
        let timed = timed.await.expect("refusals are no failures");
        assert_eq!(timed.latencies.len(), asked.div_ceil(2));
        assert_eq!(timed.refused, asked / 2);
        assert!(timed.refused > 0);
    }
}
