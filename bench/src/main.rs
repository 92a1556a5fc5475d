//! Benchmarks of a cluster through its API, the same for sampan and for any other Kubernetes.
//!
//! How fast is the API (`api`), also with custom resources and admission (`custom`), with thousands of
//! watches (`watchers`) and beside a client that sends as much as it can (`overload`)? How fast do pods
//! come and go (`pods`)? What does a cluster cost that does nothing (`idle`), and a stored object
//! (`memory`)? How long does a start take (`start`)? All but the last take several clusters and put
//! them side by side, one after the other, never at once.
//!
//! Nothing here knows sampan's crates: what is measured is what a user of the binary and of kubectl
//! would see. `README.md` tells how to read the numbers.
#![forbid(unsafe_code)]

mod custom;
mod error;
mod load;
mod memory;
mod objects;
mod overload;
mod pods;
mod processes;
mod report;
mod samples;
mod start;
mod target;
mod watchers;
mod webhook;
mod wire;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use custom::{CustomLoad, Part};
use error::{BenchError, Result, chain};
use memory::MemoryLoad;
use objects::ObjectLoad;
use overload::{Noise, OverloadLoad};
use pods::PodLoad;
use processes::ProcessGroup;
use report::{Measure, Report};
use start::StartLoad;
use target::Target;
use watchers::WatchLoad;

/// Measures Kubernetes clusters.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Verb,
    /// Also write the results as JSON to this file.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Throughput and latency of the API: create, get, list, update, delete and watch.
    Api {
        #[command(flatten)]
        targets: Targets,
        /// Numbers of clients, each with a connection of its own.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 32, 256])]
        clients: Vec<usize>,
        /// Requests per kind of operation and number of clients.
        #[arg(long, default_value_t = 2000)]
        operations: usize,
        /// Objects of 1 KB in the list that is read.
        #[arg(long, default_value_t = 500)]
        listed: usize,
        /// Changes that every watcher sees.
        #[arg(long, default_value_t = 100)]
        events: usize,
    },
    /// Time from creating pods until they run, and from deleting them until they are gone.
    Pods {
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        pod: PodArgs,
        /// Numbers of pods.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 10, 50, 100])]
        counts: Vec<usize>,
        #[command(flatten)]
        groups: Groups,
    },
    /// Many watches: memory of those that have nothing to tell, and how fast changes reach them.
    Watchers {
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        groups: Groups,
        /// Watches of one kind in one namespace.
        #[arg(long, default_value_t = 5000)]
        watchers: usize,
        /// Connections that carry the watches, if the server offers HTTP/2. A server may allow no more
        /// than a hundred requests on one.
        #[arg(long, default_value_t = 50)]
        connections: usize,
        /// Writes per second. Each is delivered to every watch.
        #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
        writes: u32,
        /// How long to write, in seconds.
        #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
        /// How long memory may settle before it is read, in seconds.
        #[arg(long, default_value_t = 5)]
        settle_seconds: u64,
    },
    /// Memory per stored object and of the OpenAPI documents.
    Memory {
        #[command(flatten)]
        targets: Targets,
        #[command(flatten)]
        groups: Groups,
        /// ConfigMaps of 1 KB to store.
        #[arg(long, default_value_t = 20_000)]
        objects: usize,
        /// How long memory may settle before it is read, in seconds.
        #[arg(long, default_value_t = 10)]
        settle_seconds: u64,
        /// How long old versions may take to be forgotten after the deletion, in seconds. Kubernetes
        /// compacts every five minutes.
        #[arg(long, default_value_t = 330)]
        compaction_seconds: u64,
    },
    /// What a quiet user and a node's heartbeat feel while another client sends as much as it can.
    Overload {
        #[command(flatten)]
        targets: Targets,
        /// Connections of the noisy client, each with one request after the other.
        #[arg(long, default_value_t = 256)]
        connections: usize,
        /// What it sends.
        #[arg(long, value_enum, default_value_t = Noise::List)]
        noise: Noise,
        /// Objects of 1 KB in its lists.
        #[arg(long, default_value_t = 500)]
        listed: usize,
        /// How long to time the others, alone and again beside the noise, in seconds.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// Custom resources with schema, rules and defaults beside ConfigMaps, and what admission adds.
    Custom {
        #[command(flatten)]
        targets: Targets,
        /// Numbers of clients, each with a connection of its own.
        #[arg(long, value_delimiter = ',', default_values_t = [1, 32])]
        clients: Vec<usize>,
        /// Requests per kind of operation and number of clients.
        #[arg(long, default_value_t = 1000)]
        operations: usize,
        /// Also measure writes with a webhook, which this program serves on a port of this machine.
        #[arg(long)]
        webhook: bool,
    },
    /// Memory, CPU and writes of clusters that have nothing to do.
    Idle {
        /// The processes of a cluster: `target=pid,pid` (with all descendants) or `target=name`
        /// (every process whose name begins so). May be given more than once.
        #[arg(long, required = true, value_name = "TARGET=PROCESSES")]
        processes: Vec<ProcessGroup>,
        /// How long to watch, in seconds.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Time from starting a sampan binary until the first pod runs.
    Start {
        /// The binary to start.
        #[arg(long)]
        binary: PathBuf,
        /// The name in the table.
        #[arg(long, default_value = "sampan")]
        name: String,
        /// How often to start.
        #[arg(long, default_value_t = 10)]
        runs: usize,
        /// An image archive to load before each start; without one no pod is run.
        #[arg(long, value_name = "FILE")]
        image_archive: Option<PathBuf>,
        #[command(flatten)]
        pod: PodArgs,
    },
}

#[derive(Args)]
struct Targets {
    /// A cluster to measure. May be given more than once: the first is compared with the others.
    #[arg(long = "target", required = true, value_name = "NAME=KUBECONFIG")]
    targets: Vec<Target>,
}

impl Targets {
    /// Measures one target after the other.
    async fn measure(
        &self,
        what: &str,
        report: &mut Report,
        measure: impl AsyncFn(&Target) -> Result<Vec<Measure>>,
    ) -> Result<()> {
        for target in &self.targets {
            eprintln!("bench: {what} of {}", target.name);
            report.add(&target.name, measure(target).await?);
        }
        Ok(())
    }
}

#[derive(Args)]
struct Groups {
    /// The processes of a target, to measure what it costs: `target=pid,pid` (with all descendants) or
    /// `target=name` (every process whose name begins so).
    #[arg(long, value_name = "TARGET=PROCESSES")]
    processes: Vec<ProcessGroup>,
}

impl Groups {
    fn of(&self, target: &Target) -> Option<&ProcessGroup> {
        self.processes.iter().find(|group| group.target == target.name)
    }
}

#[derive(Args)]
struct PodArgs {
    /// The image of the pods. Must be on the nodes, or pulling it is what is measured.
    #[arg(long, default_value = "sampan.local/demo:latest")]
    image: String,
    /// The command of the pods, split at spaces; without it the image's own.
    #[arg(long, value_delimiter = ' ', allow_hyphen_values = true)]
    command: Vec<String>,
    /// Grace period of deletions, in seconds. A program that ignores SIGTERM takes all of it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    grace_seconds: u32,
    /// How long all pods of one count may take, in seconds.
    #[arg(long, default_value_t = 240)]
    limit_seconds: u64,
}

impl PodArgs {
    fn load(self, counts: Vec<usize>) -> PodLoad {
        PodLoad {
            counts,
            image: self.image,
            command: self.command,
            grace_seconds: self.grace_seconds,
            limit: Duration::from_secs(self.limit_seconds),
        }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    let mut report = Report::default();
    let result = run(cli.command, &mut report).await;
    // What was measured before a failure is still worth having.
    print!("{}", report.table());
    let written = cli.json.map_or(Ok(()), |path| report.write_json(&path));
    for failed in [&result, &written] {
        if let Err(error) = failed {
            eprintln!("bench: {}", chain(error));
        }
    }
    if result.is_ok() && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

async fn run(verb: Verb, report: &mut Report) -> Result<()> {
    match verb {
        Verb::Api { targets, clients, operations, listed, events } => {
            check_counts(&clients)?;
            let load = ObjectLoad { clients, operations, listed, events };
            targets.measure("API", report, async |target| objects::measure(target, &load).await).await
        }
        Verb::Pods { targets, pod, counts, groups } => {
            check_counts(&counts)?;
            let load = pod.load(counts);
            let pods = async |target: &Target| pods::measure(target, &load, groups.of(target)).await;
            targets.measure("pods", report, pods).await
        }
        Verb::Watchers { targets, groups, watchers, connections, writes, seconds, settle_seconds } => {
            check_counts(&[watchers, connections])?;
            let (duration, settle) = (Duration::from_secs(seconds), Duration::from_secs(settle_seconds));
            let load = WatchLoad { watchers, connections, writes, duration, settle };
            let watchers = async |target: &Target| watchers::measure(target, &load, groups.of(target)).await;
            targets.measure("watches", report, watchers).await
        }
        Verb::Memory { targets, groups, objects, settle_seconds, compaction_seconds } => {
            check_counts(&[objects])?;
            let settle = Duration::from_secs(settle_seconds);
            let load = MemoryLoad { objects, settle, compaction: Duration::from_secs(compaction_seconds) };
            let memory = async |target: &Target| {
                let missing = || BenchError::new(format!("--processes must name those of {}", target.name));
                memory::measure(target, &load, groups.of(target).ok_or_else(missing)?).await
            };
            targets.measure("memory", report, memory).await
        }
        Verb::Overload { targets, connections, noise, listed, seconds } => {
            check_counts(&[connections, listed])?;
            let load = OverloadLoad { connections, noise, listed, duration: Duration::from_secs(seconds) };
            let overload = async |target: &Target| overload::measure(target, &load).await;
            targets.measure("overload", report, overload).await
        }
        Verb::Custom { targets, clients, operations, webhook } => {
            check_counts(&clients)?;
            check_counts(&[operations])?;
            let load = CustomLoad { clients, operations };
            let webhook = webhook.then_some(Part::Webhook);
            for part in [Part::Plain, Part::Policy].into_iter().chain(webhook) {
                let custom = async |target: &Target| custom::measure(target, &load, part).await;
                targets.measure(part.what(), report, custom).await?;
            }
            Ok(())
        }
        Verb::Idle { processes, seconds } => {
            for group in &processes {
                eprintln!("bench: {seconds} s of {} doing nothing", group.target);
                let measures = processes::measure_idle(group, Duration::from_secs(seconds)).await?;
                report.add(&group.target, measures);
            }
            Ok(())
        }
        Verb::Start { binary, name, runs, image_archive, pod } => {
            check_counts(&[runs])?;
            eprintln!("bench: {runs} starts of {}", binary.display());
            let load = StartLoad { binary, runs, image_archive, pod: pod.load(Vec::new()) };
            report.add(&name, start::measure(&load).await?);
            Ok(())
        }
    }
}

fn check_counts(counts: &[usize]) -> Result<()> {
    if counts.contains(&0) {
        return Err(BenchError::new("a number of clients, objects, pods or runs must be at least 1"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn several_targets_and_counts() {
        let words = ["bench", "pods", "--target", "a=/a", "--target", "b=/b", "--counts", "1,5"];
        let more = ["--command", "sleep 60", "--json", "out"];
        let cli = Cli::try_parse_from(words.iter().chain(&more));
        let Ok(Cli { command: Verb::Pods { targets, counts, pod, .. }, json }) = cli else {
            panic!("not understood");
        };
        assert_eq!(targets.targets.len(), 2);
        assert_eq!(counts, [1, 5]);
        assert_eq!(pod.command, ["sleep", "60"]);
        assert_eq!(json, Some(PathBuf::from("out")));
    }

    #[test]
    fn targets_have_processes_by_their_name() {
        let words = ["bench", "memory", "--target", "a=/a", "--processes", "b=1", "--processes", "a=2"];
        let Ok(Cli { command: Verb::Memory { targets, groups, .. }, .. }) = Cli::try_parse_from(words) else {
            panic!("not understood");
        };
        let group = targets.targets.first().and_then(|target| groups.of(target));
        assert_eq!(group.map(|group| group.target.as_str()), Some("a"));
    }
}
