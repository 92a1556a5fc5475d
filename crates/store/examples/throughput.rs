//! How many durable writes of 1 KiB the embedded store takes, by the number of concurrent writers.
//!
//! `cargo run --release -p sampan-store --example throughput [directory [seconds]]`

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sampan_store::{Durability, EmbeddedOptions, EmbeddedStore, Op, Store, Transaction, Value};

const KEYS: u64 = 10_000;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let scratch = tempfile::tempdir()?;
    let directory = arguments.next().map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    let seconds = arguments.next().map_or(Ok(4), |seconds| seconds.parse())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("writers   writes/s    p50 ms    p99 ms    max ms");
    for writers in [1, 32, 256] {
        let store = EmbeddedStore::open(&directory.join(writers.to_string()), EmbeddedOptions::default())?;
        let run = run(store, writers, Duration::from_secs(seconds));
        let (elapsed, mut latencies) = runtime.block_on(run)?;
        latencies.sort_unstable();
        let at = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
        let rate = latencies.len() as f64 / elapsed.as_secs_f64();
        println!("{writers:7} {rate:10.0} {:9.2} {:9.2} {:9.2}", at(0.5), at(0.99), at(1.0));
    }
    Ok(())
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn run(
    store: Arc<EmbeddedStore>,
    writers: u64,
    duration: Duration,
) -> Result<(Duration, Vec<Duration>), Failure> {
    let start = Instant::now();
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let store = store.clone();
            tokio::spawn(async move { write_until(&*store, writer, start + duration).await })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await??);
    }
    Ok((start.elapsed(), latencies))
}

async fn write_until(store: &dyn Store, writer: u64, end: Instant) -> Result<Vec<Duration>, Failure> {
    let bytes = Bytes::from(vec![b'x'; 1024]);
    let mut random = writer + 1;
    let mut latencies = Vec::new();
    while Instant::now() < end {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let key = format!("/registry/things/default/thing-{}", (random >> 33) % KEYS);
        let value = Value { bytes: bytes.clone(), splice_at: Some(512) };
        let op = Op::Put { key: key.into(), value, durability: Durability::Durable };
        let before = Instant::now();
        store.transact(Transaction { compare: Vec::new(), ops: vec![op] }).await?;
        latencies.push(before.elapsed());
    }
    Ok(latencies)
}
