//! The embedded store: the suite, restarts, snapshots, and a disk that is really full.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sampan_store::{
    Durability, EmbeddedOptions, EmbeddedStore, Op, OpenError, Range, Revision, Store, StoreError,
    Transaction, Value, embedded,
};
use tempfile::TempDir;

use crate::suite::{self, commit, put};

fn open(directory: &Path) -> Arc<EmbeddedStore> {
    EmbeddedStore::open(directory, EmbeddedOptions::default()).unwrap()
}

fn shared(store: &Arc<EmbeddedStore>) -> Arc<dyn Store> {
    store.clone()
}

async fn keys(store: &EmbeddedStore) -> usize {
    store.range(Range::default()).await.unwrap().items.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_embedded() {
    let directory = TempDir::new().unwrap();
    suite::run(open(directory.path())).await;
}

#[tokio::test]
async fn history_is_bounded() {
    let directory = TempDir::new().unwrap();
    let options = EmbeddedOptions { history_events: 10, ..EmbeddedOptions::default() };
    let store = EmbeddedStore::open(directory.path(), options).unwrap();
    let mut revisions = Vec::new();
    for n in 0..30 {
        revisions.push(commit(&shared(&store), vec![put("a", &n.to_string())]).await.0);
    }
    store.watch("", Some(revisions[19])).await.unwrap();
    match store.watch("", Some(revisions[18])).await.err() {
        Some(StoreError::Compacted { oldest, .. }) => assert_eq!(oldest, revisions[19]),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn everything_durable_is_there_after_a_restart() {
    let directory = TempDir::new().unwrap();
    let store = open(directory.path());
    for n in 0..100 {
        commit(&shared(&store), vec![put(&format!("key{n}"), &n.to_string())]).await;
    }
    let (before, at) = (store.range(Range::default()).await.unwrap().items, store.revision());
    let mut watch = store.watch("", None).await.unwrap();
    drop(store);
    assert!(watch.receiver.recv().await.is_none());
    let store = open(directory.path());
    assert_eq!(store.range(Range::default()).await.unwrap().items, before);
    assert!(store.revision() > at);
    let (next, _) = commit(&shared(&store), vec![put("key0", "again")]).await;
    assert!(next > at);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_replaced_by_snapshots_while_writes_go_on() {
    let directory = TempDir::new().unwrap();
    let options = EmbeddedOptions { snapshot_threshold: 64 << 10, ..EmbeddedOptions::default() };
    let store = EmbeddedStore::open(directory.path(), options.clone()).unwrap();
    let value = "x".repeat(1000);
    for n in 0..2000 {
        commit(&shared(&store), vec![put(&format!("key{}", n % 50), &value)]).await;
    }
    drop(store);
    let size: u64 = std::fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .sum();
    assert!(size < 1 << 20, "{size} bytes are left of 2 MB");
    let store = EmbeddedStore::open(directory.path(), options).unwrap();
    assert_eq!(keys(&store).await, 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_a_running_store_restores_elsewhere() {
    let (directory, elsewhere) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let store = open(directory.path());
    for n in 0..500 {
        commit(&shared(&store), vec![put(&format!("key{n}"), "before")]).await;
    }
    let volatile = Value { bytes: Bytes::from_static(b"1"), splice_at: None };
    let op = Op::Put { key: "lease".into(), value: volatile, durability: Durability::Volatile };
    commit(&shared(&store), vec![op]).await;
    let file = elsewhere.path().join("backup");
    let writer = {
        let store = shared(&store);
        tokio::spawn(async move {
            for n in 0..500 {
                commit(&store, vec![put(&format!("later{n}"), "after")]).await;
            }
        })
    };
    let at = store.snapshot_to(&file).await.unwrap();
    writer.await.unwrap();
    let seen = store.revision();
    let target = elsewhere.path().join("restored");
    assert!(embedded::restore(&file, &target).unwrap() > seen);
    let restored = open(&target);
    let wanted = store.range(Range { at: Some(at), ..Range::default() }).await.unwrap().items;
    let wanted: Vec<_> = wanted.into_iter().filter(|kv| &*kv.key != "lease").collect();
    assert_eq!(restored.range(Range::default()).await.unwrap().items, wanted);
    assert!(commit(&shared(&restored), vec![put("new", "1")]).await.0 > seen);
    drop(restored);
    match embedded::restore(&file, &target).unwrap_err() {
        OpenError::NotEmpty { .. } => {}
        other => panic!("{other}"),
    }
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    for damaged in [&bytes[..middle].to_vec(), {
        bytes[middle] ^= 1;
        &bytes
    }] {
        std::fs::write(&file, damaged).unwrap();
        let error = embedded::restore(&file, &elsewhere.path().join("other")).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    }
}

/// A file system of a few megabytes that is unmounted at the end of the test.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn new() -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let directory = TempDir::new().unwrap();
        match mount("tmpfs", directory.path(), "tmpfs", MountFlags::empty(), Some(c"size=2m")) {
            Ok(()) => Some(Self(directory)),
            Err(errno) => {
                println!("skipped: cannot mount a file system here: {errno}");
                None
            }
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_really_full_disk_is_survived() {
    let Some(disk) = SmallDisk::new() else { return };
    let directory = disk.0.path().join("store");
    let store = open(&directory);
    let ballast = disk.0.path().join("ballast");
    std::fs::write(&ballast, vec![0; 1 << 20]).unwrap();
    let value = "x".repeat(10_000);
    let (mut accepted, mut last) = (0, Revision(0));
    let refused = loop {
        let op = put(&format!("key{accepted}"), &value);
        match store.transact(Transaction { compare: vec![], ops: vec![op] }).await {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
        last = store.revision();
    };
    assert!(matches!(refused, StoreError::Unavailable(_)), "{refused}");
    assert_eq!((keys(&store).await, store.revision()), (accepted, last));
    std::fs::remove_file(&ballast).unwrap();
    commit(&shared(&store), vec![put("after", &value)]).await;
    drop(store);
    assert_eq!(keys(&open(&directory)).await, accepted + 1);
}

/// Nobody reads the disk's mind after `kill -9`; what was acknowledged must be there.
#[test]
fn acknowledged_writes_survive_kill() {
    const CHILD: &str = "SAMPAN_STORE_TEST_KILL";
    let runtime = tokio::runtime::Runtime::new().unwrap();
    if let Some(directory) = std::env::var_os(CHILD) {
        runtime.block_on(async {
            let options = EmbeddedOptions { snapshot_threshold: 20_000, ..EmbeddedOptions::default() };
            let store = EmbeddedStore::open(Path::new(&directory), options).unwrap();
            for n in 0u64.. {
                commit(&shared(&store), vec![put(&format!("key{}", n % 100), &n.to_string())]).await;
                println!("acknowledged {n}");
            }
        });
    }
    use std::io::BufRead;
    let directory = TempDir::new().unwrap();
    let mut child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "embedded::acknowledged_writes_survive_kill", "--nocapture"])
        .env(CHILD, directory.path())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = 0;
    let mut killed = false;
    while let Some(Ok(line)) = lines.next() {
        if let Some(number) = line.strip_prefix("acknowledged ") {
            acknowledged = number.parse().unwrap();
        }
        if acknowledged >= 3000 && !killed {
            child.kill().unwrap();
            killed = true;
        }
    }
    child.wait().unwrap();
    let store = open(directory.path());
    let items = runtime.block_on(store.range(Range::default())).unwrap().items;
    let newest = items.iter().map(|kv| String::from_utf8_lossy(&kv.value).parse::<u64>().unwrap()).max();
    assert!(newest.unwrap() >= acknowledged, "{newest:?} < {acknowledged}");
    assert_eq!(items.len(), 100);
}

/// Reading does not wait for the disk: many reads pass while durable writes are going on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_do_not_wait_for_the_disk() {
    let directory = TempDir::new().unwrap();
    let store = open(directory.path());
    let writer = {
        let store = shared(&store);
        tokio::spawn(async move {
            for n in 0..200 {
                commit(&store, vec![put("a", &n.to_string())]).await;
            }
        })
    };
    let (mut reads, start) = (0u64, Instant::now());
    while !writer.is_finished() && start.elapsed() < Duration::from_secs(60) {
        store.get("a").await.unwrap();
        reads += 1;
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
    assert!(reads > 1000, "{reads} reads beside 200 writes");
}
