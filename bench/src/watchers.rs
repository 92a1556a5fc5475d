//! Many watches: what one costs that has nothing to tell, and how fast a change reaches all of them.
//!
//! Thousands of watches must fit beside the cluster on the same machine, so nothing is decoded here. A
//! change carries its number behind a sign that occurs nowhere else in an object, and that is all a
//! watch looks for in the bytes that arrive. What this program takes itself is measured and printed.

use std::io::BufRead;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Client;
use kube::api::{Api, ListParams};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{sleep, sleep_until, timeout};

use crate::error::{BenchError, Context, Result};
use crate::processes::{ProcessGroup, Reading};
use crate::report::Measure;
use crate::samples::{Histogram, Samples, milliseconds};
use crate::target::{Target, Workspace};
use crate::wire::{Connection, Wire};

/// Objects that are changed in turn, each by a writer with a connection of its own, so that a slow
/// answer holds up one of many writes.
const WRITERS: usize = 16;
/// How long opening all watches may take. A server that allows fewer streams on a connection than are
/// asked for lets the rest wait for ever.
const OPEN_LIMIT: Duration = Duration::from_secs(120);
/// When nothing has arrived for so long after the last write, nothing more will.
const SILENCE: Duration = Duration::from_secs(3);
/// How often it is looked whether all has arrived. Rates do not depend on it: they end with the last
/// arrival.
const DRAIN_PAUSE: Duration = Duration::from_millis(50);
/// Stands before the number of a change. No name, time or identifier contains it.
const SIGN: u8 = b'~';
/// Digits of the number.
const DIGITS: u8 = 10;
/// The number of objects nobody has changed yet: none that is ever written, or the first change would
/// change nothing.
const UNCHANGED: usize = 9_999_999_999;
/// Counters that the connections share. One for each would be many when each watch has its own.
const TALLIES: usize = 16;
/// Connections opened at the same time: a server's queue of those to accept is short.
const CONNECTED_AT_ONCE: usize = 64;

/// How much to watch and to write.
#[derive(Clone, Debug)]
pub(crate) struct WatchLoad {
    pub(crate) watchers: usize,
    /// Connections that carry the watches. With HTTP/1.1 every watch takes one of its own.
    pub(crate) connections: usize,
    /// Writes per second.
    pub(crate) writes: u32,
    /// How long to write.
    pub(crate) duration: Duration,
    /// How long memory may settle before it is read.
    pub(crate) settle: Duration,
}

/// Measures one target. The namespace made is deleted again, also after a failure.
pub(crate) async fn measure(
    target: &Target,
    load: &WatchLoad,
    group: Option<&ProcessGroup>,
) -> Result<Vec<Measure>> {
    let client = target.connect().await?;
    let wire = Wire::new(&target.config().await?).await?;
    Workspace::within(&client, async |namespace| measure_in(&client, &wire, load, group, namespace).await)
        .await
}

async fn measure_in(
    client: &Client,
    wire: &Wire,
    load: &WatchLoad,
    group: Option<&ProcessGroup>,
    namespace: &str,
) -> Result<Vec<Measure>> {
    let path = format!("/api/v1/namespaces/{namespace}/configmaps");
    let sent: Arc<Sent> = (0..load.total()).map(|_| OnceLock::new()).collect();
    // Objects and connections of the writers are there before the first reading.
    let mut writers = prepare(wire, &path).await?;
    let configmaps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let list = configmaps.list(&ListParams::default().limit(1)).await;
    let list = list.context(|| format!("could not list {namespace}"))?;
    let version = list.metadata.resource_version.unwrap_or_default();
    let watch = format!("{path}?watch=true&resourceVersion={version}");

    let (watches, mut measures) = hold(wire, load, group, &watch, &sent).await?;
    let before = Reading::take(group)?;
    let writes = write_all(&mut writers, load, &path, &sent).await?;
    watches.drain(writes.done * load.watchers).await;
    let after = Reading::take(group)?;
    measures.extend(writes.measures());
    measures.extend(watches.measures(&writes, load.watchers));
    measures.extend(after.cpu_since(&before, "watches told of changes"));
    let gained = after.cluster_kib_since(&before) / load.watchers as f64;
    measures.push(Measure::lower("memory gained per watch by changes (PSS)", "KiB", gained));
    Ok(measures)
}

/// Makes the objects that are watched. The connections they will be changed by.
async fn prepare(wire: &Wire, path: &str) -> Result<Vec<Connection>> {
    let mut writers = wire.connect_many(WRITERS).await?;
    for (index, writer) in writers.iter_mut().enumerate() {
        let answer = writer.exchange(Method::POST, path, body(index, UNCHANGED)).await?;
        if answer.status != StatusCode::CREATED {
            return Err(BenchError::new(format!("an object to watch was answered with {}", answer.status)));
        }
    }
    Ok(writers)
}

/// Opens the watches, and measures what they cost while they have nothing to tell.
async fn hold(
    wire: &Wire,
    load: &WatchLoad,
    group: Option<&ProcessGroup>,
    path: &str,
    sent: &Arc<Sent>,
) -> Result<(Watches, Vec<Measure>)> {
    let reading = async || {
        sleep(load.settle).await;
        Reading::take(group)
    };
    let alone = reading().await?;
    let connections = connect(wire, load).await?;
    let carriers = connections.len();
    let connected = reading().await?;

    let begun = Instant::now();
    let count = load.watchers;
    let watches = timeout(OPEN_LIMIT, open(connections, count, path, sent)).await;
    let watches = watches.context(|| {
        format!("{count} watches could not be opened on {carriers} connections; more may be needed")
    })??;
    let opening = begun.elapsed();
    let idle = reading().await?;
    let later = reading().await?;

    let each = |kib: f64, count: usize| kib / count as f64;
    let of_connection = each(connected.cluster_kib_since(&alone), carriers);
    let of_watch = each(idle.cluster_kib_since(&connected), count);
    let own = each(idle.own_kib_since(&alone), count);
    let mut measures = vec![
        Measure::lower(format!("memory per connection (PSS), {carriers} of them"), "KiB", of_connection),
        Measure::lower(format!("memory per idle watch (PSS), {count} watches"), "KiB", of_watch),
        Measure::lower("memory of bench per watch (PSS)", "KiB", own),
        Measure::lower(format!("opening {count} watches"), "ms", milliseconds(opening)),
    ];
    measures.extend(later.cpu_since(&idle, "watches idle"));
    Ok((watches, measures))
}

impl WatchLoad {
    /// Writes in all.
    fn total(&self) -> usize {
        (f64::from(self.writes) * self.duration.as_secs_f64()) as usize
    }
}

/// When each change was sent, by its number.
type Sent = [OnceLock<Instant>];

async fn connect(wire: &Wire, load: &WatchLoad) -> Result<Vec<Connection>> {
    let first = wire.connect().await?;
    let count = if first.multiplexes() { load.connections.min(load.watchers) } else { load.watchers };
    if count > load.connections {
        eprintln!("bench: the server offers no HTTP/2, so every watch has a connection of its own");
    }
    let mut connections = vec![first];
    while connections.len() < count {
        let more = (count - connections.len()).min(CONNECTED_AT_ONCE);
        connections.extend(wire.connect_many(more).await?);
    }
    Ok(connections)
}

/// Open watches. They are read until this is dropped.
struct Watches {
    /// Several, so that threads rarely meet at one.
    tallies: Vec<Arc<Mutex<Tally>>>,
    tasks: JoinSet<()>,
    /// Kept, since a connection without a sender closes when it can.
    connections: Vec<Connection>,
}

/// What arrived over some of the connections.
#[derive(Default)]
struct Tally {
    latencies: Histogram,
    last: Option<Instant>,
    /// Watches the server has ended.
    ended: usize,
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Opens watches, spread evenly over the connections, which do so at the same time.
async fn open(connections: Vec<Connection>, count: usize, path: &str, sent: &Arc<Sent>) -> Result<Watches> {
    let step = connections.len();
    let opened = connections.into_iter().enumerate().map(|(first, mut connection)| async move {
        let mut bodies = Vec::with_capacity(count / step + 1);
        for _ in (first..count).step_by(step) {
            let response = connection.send(Method::GET, path, Bytes::new()).await?;
            if response.status() != StatusCode::OK {
                return Err(BenchError::new(format!("a watch was answered with {}", response.status())));
            }
            bodies.push(response.into_body());
        }
        Ok((connection, bodies))
    });
    let mut watches = Watches {
        tallies: (0..step.min(TALLIES)).map(|_| Arc::default()).collect(),
        tasks: JoinSet::new(),
        connections: Vec::new(),
    };
    for ((connection, bodies), index) in try_join_all(opened).await?.into_iter().zip(0..) {
        let tally = &watches.tallies[index % TALLIES];
        for body in bodies {
            watches.tasks.spawn(follow(body, Arc::clone(sent), Arc::clone(tally)));
        }
        watches.connections.push(connection);
    }
    Ok(watches)
}

/// Reads one watch to its end.
async fn follow(mut body: Incoming, sent: Arc<Sent>, tally: Arc<Mutex<Tally>>) {
    let mut scanner = Scanner::default();
    while let Some(Ok(frame)) = body.frame().await {
        let Some(bytes) = frame.data_ref() else { continue };
        let now = Instant::now();
        let mut tally = lock(&tally);
        scanner.scan(bytes, |number| {
            if let Some(begun) = sent.get(number as usize).and_then(OnceLock::get) {
                tally.latencies.add(now.saturating_duration_since(*begun));
                tally.last = Some(now);
            }
        });
    }
    lock(&tally).ended += 1;
}

impl Watches {
    /// Waits until that many changes have arrived, or none any more.
    async fn drain(&self, expected: usize) {
        let (mut arrived, mut since) = (0, Instant::now());
        while arrived < expected as u64 && since.elapsed() < SILENCE {
            sleep(DRAIN_PAUSE).await;
            let now = self.tallies.iter().map(|tally| lock(tally).latencies.count()).sum();
            if now != arrived {
                (arrived, since) = (now, Instant::now());
            }
        }
    }

    fn measures(&self, writes: &Writes, count: usize) -> Vec<Measure> {
        let mut all = Tally::default();
        for tally in &self.tallies {
            let tally = lock(tally);
            all.latencies.merge(&tally.latencies);
            all.last = all.last.max(tally.last);
            all.ended += tally.ended;
        }
        let arrived = all.latencies.count() as f64;
        let elapsed = all.last.map_or(f64::NAN, |last| last.duration_since(writes.begun).as_secs_f64());
        let share = arrived / (writes.done * count) as f64 * 100.0;
        vec![
            Measure::lower("write sent to delivered, p50", "ms", all.latencies.percentile_ms(50.0)),
            Measure::lower("write sent to delivered, p99", "ms", all.latencies.percentile_ms(99.0)),
            Measure::lower("write sent to delivered, worst", "ms", all.latencies.longest_ms()),
            Measure::higher(format!("deliveries to {count} watches"), "1/s", arrived / elapsed),
            Measure::higher("changes delivered, of all that were written", "%", share),
            Measure::lower("watches ended by the server", "", all.ended as f64),
        ]
    }
}

/// The writes, done.
struct Writes {
    begun: Instant,
    elapsed: Duration,
    done: usize,
    refused: usize,
    latencies: Samples,
}

impl Writes {
    fn measures(&self) -> Vec<Measure> {
        let rate = self.done as f64 / self.elapsed.as_secs_f64();
        let mut measures = vec![Measure::higher("writes while watched", "1/s", rate)];
        measures.extend(self.latencies.measures("write while watched"));
        measures.push(Measure::lower("writes refused (429)", "", self.refused as f64));
        measures
    }
}

/// Changes the objects at the rate asked for, or as near to it as the server answers.
async fn write_all(writers: &mut [Connection], load: &WatchLoad, path: &str, sent: &Sent) -> Result<Writes> {
    let begun = Instant::now();
    let written = writers
        .iter_mut()
        .enumerate()
        .map(|(index, writer)| write(writer, index, load, format!("{path}/{}", name(index)), begun, sent));
    let written = try_join_all(written).await?;
    let elapsed = begun.elapsed();
    let refused = written.iter().map(|(_, refused)| refused).sum();
    let latencies: Samples = written.into_iter().flat_map(|(latencies, _)| latencies).collect();
    Ok(Writes { begun, elapsed, done: latencies.len(), refused, latencies })
}

/// One writer's share: every `WRITERS`th change. How long each took, and how many were refused.
async fn write(
    writer: &mut Connection,
    index: usize,
    load: &WatchLoad,
    path: String,
    begun: Instant,
    sent: &Sent,
) -> Result<(Vec<Duration>, usize)> {
    let (mut latencies, mut refused) = (Vec::new(), 0);
    for number in (index..sent.len()).step_by(WRITERS) {
        let due = begun + Duration::from_secs_f64(number as f64 / f64::from(load.writes));
        sleep_until(due.into()).await;
        let now = Instant::now();
        // What could not be written in time is left out, and missing in the rate.
        if now.duration_since(begun) > load.duration {
            break;
        }
        // Set once: every number is written once.
        let _ = sent[number].set(now);
        let answer = writer.exchange(Method::PUT, &path, body(index, number)).await?;
        match answer.status {
            StatusCode::OK => latencies.push(now.elapsed()),
            StatusCode::TOO_MANY_REQUESTS => refused += 1,
            other => return Err(BenchError::new(format!("a write was answered with {other}"))),
        }
    }
    Ok((latencies, refused))
}

fn name(index: usize) -> String {
    format!("watched-{index}")
}

fn body(index: usize, number: usize) -> Vec<u8> {
    let number = format!("{}{number:0width$}", char::from(SIGN), width = usize::from(DIGITS));
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name(index)},
        "data": {"number": number},
    });
    object.to_string().into_bytes()
}

/// Finds the numbers of changes in a stream of bytes that is cut anywhere.
#[derive(Debug, Default)]
struct Scanner {
    number: u64,
    /// Digits still to come.
    missing: u8,
}

impl Scanner {
    fn scan(&mut self, mut bytes: &[u8], mut found: impl FnMut(u64)) {
        loop {
            while self.missing > 0 {
                let Some((digit, rest)) = bytes.split_first() else { return };
                if !digit.is_ascii_digit() {
                    // The sign stood for something else.
                    self.missing = 0;
                    break;
                }
                bytes = rest;
                self.number = self.number * 10 + u64::from(digit - b'0');
                self.missing -= 1;
                if self.missing == 0 {
                    found(self.number);
                }
            }
            // The C library's search, many times faster than a loop over the bytes. It ends behind the
            // sign or at the end; reading from memory does not fail.
            let searched = bytes;
            let passed = bytes.skip_until(SIGN).unwrap_or(searched.len());
            if searched[..passed].last() != Some(&SIGN) {
                return;
            }
            (self.number, self.missing) = (0, DIGITS);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers found when the bytes arrive in pieces of every length.
    fn check(name: &str, bytes: &[u8], expected: &[u64]) {
        for length in 1..=bytes.len().max(1) {
            let (mut scanner, mut numbers) = (Scanner::default(), Vec::new());
            for piece in bytes.chunks(length) {
                scanner.scan(piece, |number| numbers.push(number));
            }
            assert_eq!(numbers, expected, "{name}, pieces of {length}");
        }
    }

    #[test]
    fn numbers_are_found_however_the_bytes_are_cut() {
        let two = [body(0, 7), body(1, 1234567890)].concat();
        check("two changes", &two, &[7, 1234567890]);
        check("side by side", b"~0000000001~0000000002", &[1, 2]);
        check("nothing", b"{\"type\":\"BOOKMARK\"}\n", &[]);
        check("broken off", b"~00000", &[]);
        check("a sign of something else", b"~12~x~0000000003", &[3]);
        check("empty", b"", &[]);
    }

    #[test]
    fn writes_are_spread_over_the_time() {
        let load = WatchLoad {
            watchers: 1,
            connections: 1,
            writes: 200,
            duration: Duration::from_millis(1500),
            settle: Duration::ZERO,
        };
        assert_eq!(load.total(), 300);
    }
}
