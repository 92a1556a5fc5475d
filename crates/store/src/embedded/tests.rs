//! What happens to the files: cut, damaged, full, and against a model.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use tempfile::TempDir;

use super::faults::Faults;
use super::*;
use crate::{Compare, Durability, Value};

fn value(bytes: impl Into<Bytes>) -> Value {
    Value { bytes: bytes.into(), splice_at: None }
}

fn put(key: &str, bytes: impl Into<Bytes>, durability: Durability) -> Op {
    Op::Put { key: key.into(), value: value(bytes), durability }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

async fn write(store: &EmbeddedStore, ops: Vec<Op>) -> Result<Revision, StoreError> {
    match store.transact(Transaction { compare: vec![], ops }).await? {
        TransactionResult::Committed { revision, .. } => Ok(revision),
        TransactionResult::Conflict { key, .. } => panic!("conflict on {key}"),
    }
}

async fn pairs(store: &EmbeddedStore) -> BTreeMap<String, Bytes> {
    let page = store.range(Range::default()).await.unwrap();
    page.items.into_iter().map(|kv| (kv.key.to_string(), kv.value)).collect()
}

fn open(directory: &TempDir) -> Result<Arc<EmbeddedStore>, OpenError> {
    EmbeddedStore::open(directory.path(), EmbeddedOptions::default())
}

fn open_with_faults(directory: &TempDir, options: EmbeddedOptions) -> (Arc<EmbeddedStore>, Arc<Faults>) {
    let mut faults = Arc::new(Faults::default());
    let store =
        EmbeddedStore::open_with(directory.path(), options, |log| faults = log.faults.clone()).unwrap();
    (store, faults)
}

/// A directory whose log has only `bytes`.
fn directory_with_log(bytes: &[u8]) -> TempDir {
    let directory = TempDir::new().unwrap();
    std::fs::write(files::log_path(directory.path(), 1), bytes).unwrap();
    directory
}

#[tokio::test]
async fn a_log_cut_anywhere_gives_a_prefix_of_the_history() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory).unwrap();
    let log = files::log_path(directory.path(), 1);
    // The state after each transaction, by the length of the log then.
    let mut states = vec![(std::fs::metadata(&log).unwrap().len(), BTreeMap::new())];
    for step in 0..8 {
        let ops = match step {
            5 => vec![delete("k1"), put("k9", "nine", Durability::Durable)],
            _ => vec![put(&format!("k{}", step % 4), format!("value {step}"), Durability::Durable)],
        };
        write(&store, ops).await.unwrap();
        states.push((std::fs::metadata(&log).unwrap().len(), pairs(&store).await));
    }
    drop(store);
    let bytes = std::fs::read(&log).unwrap();
    let start = states[0].0 as usize;
    for length in start..=bytes.len() {
        let directory = directory_with_log(&bytes[..length]);
        let store = open(&directory).unwrap();
        let expected = states.iter().rev().find(|(end, _)| *end <= length as u64).unwrap();
        assert_eq!(pairs(&store).await, expected.1, "cut at {length}");
        // And the store goes on from there.
        write(&store, vec![put("after", "cut", Durability::Durable)]).await.unwrap();
        drop(store);
        let store = open(&directory).unwrap();
        assert!(pairs(&store).await.contains_key("after"), "cut at {length}");
    }
    for length in 0..start {
        let error = open(&directory_with_log(&bytes[..length])).err().unwrap();
        assert!(matches!(error, OpenError::Damaged { offset: 0, .. }), "{error}");
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_fatal_and_says_where() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory).unwrap();
    let log = files::log_path(directory.path(), 1);
    let mut ends = vec![std::fs::metadata(&log).unwrap().len()];
    for step in 0..4 {
        write(&store, vec![put("key", format!("value {step}"), Durability::Durable)]).await.unwrap();
        ends.push(std::fs::metadata(&log).unwrap().len());
    }
    drop(store);
    let bytes = std::fs::read(&log).unwrap();
    // The seal of the clean end is the witness for all records before it.
    for at in ends[0] as usize..ends[4] as usize {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x40;
        let record = *ends.iter().rev().find(|end| **end <= at as u64).unwrap();
        match open(&directory_with_log(&damaged)).err() {
            Some(OpenError::Damaged { offset, .. }) => assert_eq!(offset, record, "byte {at}"),
            other => panic!("byte {at}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn stored_bytes_cannot_pass_for_a_record() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory).unwrap();
    write(&store, vec![put("a", "first", Durability::Durable)]).await.unwrap();
    // A whole foreign log, with records that claim that everything was on disk.
    let mut foreign = Vec::new();
    let mut encoder = frame::Encoder { buffer: &mut foreign, salt: 7, synced: u64::MAX };
    encoder.frame(frame::Kind::Seal, Revision(9), |_| {});
    write(&store, vec![put("b", [vec![0; 100], foreign].concat(), Durability::Durable)]).await.unwrap();
    let log = std::fs::read(files::log_path(directory.path(), 1)).unwrap();
    // Torn in its first bytes, while its end was written.
    let mut torn = log.clone();
    let start = torn.len() - 150;
    torn[start] ^= 1;
    let store = open(&directory_with_log(&torn)).unwrap();
    assert_eq!(pairs(&store).await.len(), 1);
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let directory = TempDir::new().unwrap();
    drop(open(&directory).unwrap());
    let log = files::log_path(directory.path(), 1);
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[8] = 2;
    std::fs::write(&log, &bytes).unwrap();
    match open(&directory).err().unwrap() {
        OpenError::NewerVersion { found: 2, supported: 1, .. } => {}
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn the_directory_is_locked() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory).unwrap();
    match open(&directory).err().unwrap() {
        OpenError::InUse { path } => assert_eq!(path, directory.path()),
        other => panic!("{other}"),
    }
    drop(store);
    open(&directory).unwrap();
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let (store, faults) = open_with_faults(&directory, EmbeddedOptions::default());
    write(&store, vec![put("a", "1", Durability::Durable)]).await.unwrap();
    faults.space.store(20, Ordering::SeqCst);
    let before = store.revision();
    for durability in [Durability::Durable, Durability::Lazy] {
        let refused = write(&store, vec![put("a", "2", durability)]).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
    }
    assert_eq!(store.revision(), before);
    assert_eq!(pairs(&store).await["a"], "1");
    faults.space.store(u64::MAX, Ordering::SeqCst);
    write(&store, vec![put("a", "3", Durability::Durable)]).await.unwrap();
    drop(store);
    assert_eq!(pairs(&open(&directory).unwrap()).await, BTreeMap::from([("a".to_owned(), "3".into())]));
}

#[tokio::test]
async fn on_a_full_disk_what_fits_and_what_needs_no_disk_goes_on() {
    let directory = TempDir::new().unwrap();
    let (store, faults) = open_with_faults(&directory, EmbeddedOptions::default());
    write(&store, vec![put("v", "0", Durability::Volatile)]).await.unwrap();
    faults.space.store(200, Ordering::SeqCst);
    let writes = (0..20).map(|n| {
        let store = store.clone();
        let (key, size, durability) = match n % 3 {
            0 => ("v", 300, Durability::Volatile),
            1 => ("large", 300, Durability::Durable),
            _ => ("small", 1, Durability::Durable),
        };
        tokio::spawn(async move { (n, write(&store, vec![put(key, vec![0; size], durability)]).await) })
    });
    let mut small = 0;
    for result in futures_join(writes.collect()).await {
        match (result.0 % 3, result.1) {
            (0, Ok(_)) | (1, Err(StoreError::Unavailable(_))) => {}
            (2, Ok(_)) => small += 1,
            (2, Err(StoreError::Unavailable(_))) => {}
            other => panic!("{other:?}"),
        }
    }
    assert!((1..=3).contains(&small), "{small} small writes fit in 200 bytes");
}

async fn futures_join<T>(tasks: Vec<tokio::task::JoinHandle<T>>) -> Vec<T> {
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

#[test]
fn a_failed_sync_ends_the_process() {
    const CHILD: &str = "SAMPAN_STORE_TEST_FAILED_SYNC";
    if let Some(directory) = std::env::var_os(CHILD) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let options = EmbeddedOptions::default();
            let mut faults = Arc::new(Faults::default());
            let path = Path::new(&directory);
            let store = EmbeddedStore::open_with(path, options, |log| faults = log.faults.clone()).unwrap();
            write(&store, vec![put("a", "1", Durability::Durable)]).await.unwrap();
            faults.fail_sync.store(true, Ordering::SeqCst);
            let answer = write(&store, vec![put("a", "2", Durability::Durable)]).await;
            panic!("answered {answer:?}");
        });
    }
    let directory = TempDir::new().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::tests::a_failed_sync_ends_the_process", "--nocapture"])
        .env(CHILD, directory.path())
        .output()
        .unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.signal(), Some(rustix::process::Signal::ABORT.as_raw()), "{message}");
    assert!(message.contains("failed to make durable"), "{message}");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let left = runtime.block_on(async { pairs(&open(&directory).unwrap()).await });
    assert!(left.contains_key("a"));
}

#[tokio::test]
async fn an_idle_store_leaves_the_disk_alone_and_volatile_writes_nearly_so() {
    let directory = TempDir::new().unwrap();
    let (store, faults) = open_with_faults(&directory, EmbeddedOptions::default());
    for n in 0..1000 {
        write(&store, vec![put("lease", format!("{n}"), Durability::Volatile)]).await.unwrap();
    }
    assert_eq!((faults.writes.load(Ordering::SeqCst), faults.syncs.load(Ordering::SeqCst)), (1, 1));
    let at = store.revision();
    drop(store);
    let length = std::fs::metadata(files::log_path(directory.path(), 1)).unwrap().len();
    for _ in 0..3 {
        let store = open(&directory).unwrap();
        assert!(store.revision() > at);
        assert_eq!(store.get("lease").await.unwrap(), None);
    }
    assert_eq!(std::fs::metadata(files::log_path(directory.path(), 1)).unwrap().len(), length);
}

#[tokio::test]
async fn lazy_writes_share_one_late_sync() {
    let directory = TempDir::new().unwrap();
    let options = EmbeddedOptions { lazy_delay: Duration::from_millis(50), ..Default::default() };
    let (store, faults) = open_with_faults(&directory, options);
    write(&store, vec![put("a", "1", Durability::Durable)]).await.unwrap();
    let before = faults.syncs.load(Ordering::SeqCst);
    // The first reserves revisions, which waits for the disk.
    for n in 0..10 {
        write(&store, vec![put("event", format!("{n}"), Durability::Lazy)]).await.unwrap();
    }
    while faults.syncs.load(Ordering::SeqCst) == before + 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(faults.syncs.load(Ordering::SeqCst) <= before + 3);
}

#[tokio::test]
async fn what_becomes_volatile_does_not_come_back() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory).unwrap();
    write(&store, vec![put("a", "on disk", Durability::Durable)]).await.unwrap();
    write(&store, vec![put("b", "1", Durability::Volatile)]).await.unwrap();
    write(&store, vec![put("a", "in memory", Durability::Volatile)]).await.unwrap();
    let made = write(&store, vec![put("b", "2", Durability::Durable)]).await.unwrap();
    drop(store);
    let store = open(&directory).unwrap();
    assert_eq!(store.get("a").await.unwrap(), None);
    let b = store.get("b").await.unwrap().unwrap();
    assert_eq!((b.value, b.mod_revision), ("2".into(), made));
    assert!(b.create_revision < made);
}

#[tokio::test]
async fn after_a_crash_the_revision_is_beyond_everything_that_was_seen() {
    let directory = TempDir::new().unwrap();
    let store = open(&directory).unwrap();
    write(&store, vec![put("a", "1", Durability::Durable)]).await.unwrap();
    let mut seen = Revision(0);
    for n in 0..50 {
        let durability = if n % 2 == 0 { Durability::Volatile } else { Durability::Lazy };
        seen = write(&store, vec![put("b", format!("{n}"), durability)]).await.unwrap();
    }
    // A power cut: what was only lazy is gone. The first volatile write reserved revisions right behind "a".
    let bytes = std::fs::read(files::log_path(directory.path(), 1)).unwrap();
    let crashed = directory_with_log(&bytes[..bytes.len() - 500]);
    let store = open(&crashed).unwrap();
    assert!(store.revision() > seen);
    let after = store.watch("", Some(seen)).await.err();
    assert!(matches!(after, Some(StoreError::Compacted { .. })), "{after:?}");
    assert!(write(&store, vec![put("c", "1", Durability::Durable)]).await.unwrap() > seen);
}

/// A small generator, so that a failing seed can be run again.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

type Model = BTreeMap<String, (Bytes, Durability, Revision)>;

/// Random transactions, reopens, snapshots and full disks against a map.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_operations_agree_with_a_map() {
    for seed in 1..=12u64 {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let directory = TempDir::new().unwrap();
        // Small enough that logs are replaced all the time.
        let options = EmbeddedOptions { snapshot_threshold: 2000, ..Default::default() };
        let (mut store, mut faults) = open_with_faults(&directory, options.clone());
        let mut model = Model::new();
        let mut past: Vec<(Revision, Model)> = Vec::new();
        let mut highest = Revision(0);
        for _ in 0..600 {
            match random.below(100) {
                0 => {
                    drop(store);
                    (store, faults) = open_with_faults(&directory, options.clone());
                    model.retain(|_, pair| pair.1 != Durability::Volatile);
                    past.clear();
                }
                1 => faults.space.store(random.below(300), Ordering::SeqCst),
                2..6 => faults.space.store(u64::MAX, Ordering::SeqCst),
                6..16 => check_past(&store, &past, &mut random, seed).await,
                _ => step(&store, &mut model, &mut random, seed).await,
            }
            assert!(store.revision() >= highest, "seed {seed}");
            highest = store.revision();
            past.push((highest, model.clone()));
        }
        check_now(&store, &model, seed).await;
    }
}

async fn step(store: &EmbeddedStore, model: &mut Model, random: &mut Random, seed: u64) {
    let mut transaction = Transaction::default();
    let mut after = model.clone();
    let mut keys: Vec<String> =
        (0..1 + random.below(3)).map(|_| format!("key{}", random.below(12))).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        if random.below(4) == 0 {
            transaction.ops.push(delete(&key));
            after.remove(&key);
            continue;
        }
        let durability =
            [Durability::Durable, Durability::Lazy, Durability::Volatile][random.below(3) as usize];
        let bytes = Bytes::from(vec![random.below(256) as u8; random.below(60) as usize]);
        transaction.ops.push(put(&key, bytes.clone(), durability));
        after.insert(key, (bytes, durability, Revision(0)));
    }
    let key = format!("key{}", random.below(12));
    let holds = match random.below(4) {
        0 => {
            transaction.compare.push(Compare::Absent(key.as_str().into()));
            !model.contains_key(&key)
        }
        1 => {
            let revision = model.get(&key).map_or(Revision(1), |pair| pair.2);
            transaction.compare.push(Compare::ModRevision(key.as_str().into(), revision));
            model.contains_key(&key)
        }
        _ => true,
    };
    match store.transact(transaction).await {
        Ok(TransactionResult::Committed { revision, puts }) => {
            assert!(holds, "seed {seed}");
            for kv in puts {
                after.get_mut(&*kv.key).unwrap().2 = revision;
            }
            *model = after;
        }
        Ok(TransactionResult::Conflict { current, .. }) => {
            assert!(!holds, "seed {seed}");
            assert_eq!(current.map(|kv| kv.value), model.get(&key).map(|pair| pair.0.clone()), "seed {seed}");
        }
        // A full disk.
        Err(StoreError::Unavailable(_)) => {}
        Err(other) => panic!("seed {seed}: {other}"),
    }
}

fn expected(model: &Model) -> BTreeMap<String, Bytes> {
    model.iter().map(|(key, pair)| (key.clone(), pair.0.clone())).collect()
}

async fn check_now(store: &EmbeddedStore, model: &Model, seed: u64) {
    assert_eq!(pairs(store).await, expected(model), "seed {seed}");
}

async fn check_past(store: &EmbeddedStore, past: &[(Revision, Model)], random: &mut Random, seed: u64) {
    if past.is_empty() {
        return;
    }
    let (revision, model) = &past[random.below(past.len() as u64) as usize];
    let (mut after, mut found) = (None, BTreeMap::new());
    loop {
        let range = Range { prefix: "key".to_owned(), after, at: Some(*revision), limit: 3 };
        let page = store.range(range).await.unwrap();
        found.extend(page.items.iter().map(|kv| (kv.key.to_string(), kv.value.clone())));
        assert_eq!(page.remaining as usize + found.len(), model.len(), "seed {seed}");
        after = page.items.last().map(|kv| kv.key.to_string());
        if !page.more {
            break;
        }
    }
    assert_eq!(found, expected(model), "seed {seed} at {revision:?}");
}
