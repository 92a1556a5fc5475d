//! From nothing to a running pod: how long a cluster needs to start, step by step.
//!
//! Every run has data of its own, so that it starts as on a machine that never ran a cluster:
//! certificates, store and node registration are part of what is measured. What a run needs that a
//! user would have done before (the image) is put there before the clock starts.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::PostParams;
use kube::runtime::wait::await_condition;
use kube::{Api, Client};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::error::{BenchError, Context, Result};
use crate::pods::{PodLoad, pod};
use crate::report::Measure;
use crate::samples::{Samples, milliseconds};
use crate::target::Target;

/// The longest a start, and a stop, may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How often a server that does not listen yet is tried. There is no event for it.
const PROBE_PAUSE: Duration = Duration::from_millis(1);
/// The name the node is given.
const NODE: &str = "bench";

/// What to start, how often, and the pod to wait for.
pub(crate) struct StartLoad {
    pub(crate) binary: PathBuf,
    pub(crate) runs: usize,
    /// An image archive that is loaded before the start; without one no pod is run.
    pub(crate) image_archive: Option<PathBuf>,
    pub(crate) pod: PodLoad,
}

/// When each step was done, counted from the start of the process.
struct Steps {
    ready_line: Duration,
    api: Duration,
    node: Duration,
    pod: Option<Duration>,
    stop: Duration,
}

/// Starts and stops the cluster `runs` times.
pub(crate) async fn measure(load: &StartLoad) -> Result<Vec<Measure>> {
    let mut runs = Vec::with_capacity(load.runs);
    for _ in 0..load.runs {
        runs.push(run(load).await?);
    }
    let mut measures = Vec::new();
    measures.extend(step(&runs, "ready line", |steps| Some(steps.ready_line)));
    measures.extend(step(&runs, "API ready", |steps| Some(steps.api)));
    measures.extend(step(&runs, "node Ready", |steps| Some(steps.node)));
    measures.extend(step(&runs, "first pod Running", |steps| steps.pod));
    let stops: Samples = runs.iter().map(|steps| steps.stop).collect();
    measures.push(Measure::lower("SIGTERM to exit, p50", "ms", stops.percentile_ms(50.0)));
    Ok(measures)
}

fn step(runs: &[Steps], name: &str, time: fn(&Steps) -> Option<Duration>) -> [Measure; 2] {
    let samples: Samples = runs.iter().filter_map(time).collect();
    let worst = samples.percentile(100.0).map_or(f64::NAN, milliseconds);
    [
        Measure::lower(format!("start to {name}, p50"), "ms", samples.percentile_ms(50.0)),
        Measure::lower(format!("start to {name}, worst of {}", runs.len()), "ms", worst),
    ]
}

/// Where one run lives.
struct Place {
    binary: PathBuf,
    directory: tempfile::TempDir,
}

impl Place {
    fn new(binary: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("sampan-bench-").tempdir();
        let directory = directory.context(|| "could not make a directory for the run".to_string())?;
        Ok(Self { binary: binary.to_path_buf(), directory })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn command(&self, verb: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command.args(verb);
        command.arg("--data-dir").arg(self.path("data")).arg("--run-dir").arg(self.path("run"));
        command.stdin(Stdio::null());
        command
    }

    async fn finish(&self, verb: &[&str], more: Option<&Path>) -> Result<()> {
        let mut command = self.command(verb);
        command.args(more).stdout(Stdio::null());
        let what = || format!("could not run {} {}", self.binary.display(), verb.join(" "));
        let status = command.status().await.context(what)?;
        if status.success() { Ok(()) } else { Err(BenchError::new(format!("{}: {status}", what()))) }
    }
}

async fn run(load: &StartLoad) -> Result<Steps> {
    let place = Place::new(&load.binary)?;
    if let Some(archive) = &load.image_archive {
        place.finish(&["image", "load"], Some(archive)).await?;
    }
    let result = run_in(load, &place).await;
    let down = place.finish(&["down"], None).await;
    let steps = result?;
    down?;
    Ok(steps)
}

async fn run_in(load: &StartLoad, place: &Place) -> Result<Steps> {
    let target = Target { name: NODE.to_string(), kubeconfig: place.path("kubeconfig") };
    let mut command = place.command(&["up", "--node-name", NODE]);
    command.arg("--kubeconfig").arg(&target.kubeconfig);
    command.arg("--bind").arg(format!("127.0.0.1:{}", free_port()?));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);

    let begun = Instant::now();
    let mut child = command.spawn().context(|| format!("could not start {}", load.binary.display()))?;
    let (ready, ready_seen) = oneshot::channel();
    let ready = std::sync::Arc::new(std::sync::Mutex::new(Some(ready)));
    // Both streams are read to the end, or the program would stop at a full pipe.
    for stream in streams(&mut child) {
        tokio::spawn(find_ready(stream, begun, std::sync::Arc::clone(&ready)));
    }
    drop(ready);
    let steps = timeout(LIMIT, follow(load, &target, begun, ready_seen)).await;
    let stop = stop(&mut child).await;
    let (ready_line, api, node, pod) =
        steps.context(|| "the cluster did not start in time".to_string())??;
    Ok(Steps { ready_line, api, node, pod, stop: stop? })
}

/// Waits for each step in turn.
async fn follow(
    load: &StartLoad,
    target: &Target,
    begun: Instant,
    ready_seen: oneshot::Receiver<Duration>,
) -> Result<(Duration, Duration, Duration, Option<Duration>)> {
    let client = api_ready(target).await?;
    let api = begun.elapsed();
    let is_ready = |node: Option<&Node>| node.is_some_and(is_ready);
    let waited = await_condition(Api::<Node>::all(client.clone()), NODE, is_ready).await;
    waited.context(|| "could not wait for the node".to_string())?;
    let node = begun.elapsed();
    let pod = if load.image_archive.is_some() {
        first_pod(&client, &load.pod).await?;
        Some(begun.elapsed())
    } else {
        None
    };
    let ready_line = ready_seen.await.context(|| "the program never said that it is ready".to_string())?;
    Ok((ready_line, api, node, pod))
}

/// A client, as soon as the kubeconfig is there and the server calls itself ready.
async fn api_ready(target: &Target) -> Result<Client> {
    loop {
        if target.kubeconfig.exists()
            && let Ok(client) = target.connect().await
        {
            loop {
                let request = http::Request::get("/readyz").body(Vec::new());
                let request = request.context(|| "could not make a request".to_string())?;
                match client.request_text(request).await {
                    Ok(_) => return Ok(client),
                    // Not listening yet, not ready yet: both mean to ask again.
                    Err(_) => sleep(PROBE_PAUSE).await,
                }
            }
        }
        sleep(PROBE_PAUSE).await;
    }
}

async fn first_pod(client: &Client, load: &PodLoad) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let wanted = pod("first", load);
    loop {
        match pods.create(&PostParams::default(), &wanted).await {
            Ok(_) => break,
            // Until the service account of the namespace is made, no pod may be.
            Err(kube::Error::Api(status)) if status.is_forbidden() => sleep(PROBE_PAUSE).await,
            Err(error) => return Err(error).context(|| "could not create the first pod".to_string()),
        }
    }
    let runs = |pod: Option<&Pod>| {
        let status = pod.and_then(|pod| pod.status.as_ref());
        status.and_then(|status| status.phase.as_deref()) == Some("Running")
    };
    let waited = await_condition(pods, "first", runs).await;
    waited.map(drop).context(|| "could not wait for the first pod".to_string())
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

type ReadySender = std::sync::Arc<std::sync::Mutex<Option<oneshot::Sender<Duration>>>>;

fn streams(child: &mut Child) -> Vec<Box<dyn AsyncRead + Send + Unpin>> {
    let mut streams: Vec<Box<dyn AsyncRead + Send + Unpin>> = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        streams.push(Box::new(stdout));
    }
    if let Some(stderr) = child.stderr.take() {
        streams.push(Box::new(stderr));
    }
    streams
}

/// Reads a stream to its end and reports when the first line that says `ready` came.
async fn find_ready(stream: Box<dyn AsyncRead + Send + Unpin>, begun: Instant, ready: ReadySender) {
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if !says_ready(&line) {
            continue;
        }
        let sender = ready.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(sender) = sender {
            // Nobody waits for it when the run has failed.
            let _ = sender.send(begun.elapsed());
        }
    }
}

/// Whether a line of output contains the word by itself, in any case.
fn says_ready(line: &str) -> bool {
    line.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| word.eq_ignore_ascii_case("ready"))
}

/// Asks the program to end and waits until it has.
async fn stop(child: &mut Child) -> Result<Duration> {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let begun = Instant::now();
    if let Some(pid) = pid {
        kill_process(pid, Signal::TERM).context(|| "could not send SIGTERM".to_string())?;
    }
    let ended = timeout(LIMIT, child.wait()).await;
    ended
        .context(|| "the program did not end after SIGTERM".to_string())?
        .context(|| "could not wait for the program".to_string())?;
    Ok(begun.elapsed())
}

/// A port nobody uses at the moment. It may be taken before the program has it, which then fails
/// loudly.
fn free_port() -> Result<u16> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
    port.map(|address| address.port()).context(|| "could not find a free port".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ready_line() {
        let rows = [
            ("ready", true),
            ("sampan: ready in 120 ms", true),
            ("INFO sampan: Ready.", true),
            ("already running", false),
            ("readyz registered", false),
            ("", false),
        ];
        for (line, expected) in rows {
            assert_eq!(says_ready(line), expected, "{line:?}");
        }
    }
}
