//! What every store promises. Each test gets a prefix of its own, so that they can share one server.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sampan_store::{
    Compare, Durability, Event, KeyValue, Op, Range, Revision, Store, StoreError, Transaction,
    TransactionResult, Value, Watch,
};

type Shared = Arc<dyn Store>;

pub(crate) fn put(key: &str, value: &str) -> Op {
    let value = Value { bytes: Bytes::copy_from_slice(value.as_bytes()), splice_at: None };
    Op::Put { key: key.into(), value, durability: Durability::Durable }
}

fn delete(key: &str) -> Op {
    Op::Delete { key: key.into() }
}

async fn transact(store: &Shared, compare: Vec<Compare>, ops: Vec<Op>) -> TransactionResult {
    store.transact(Transaction { compare, ops }).await.unwrap()
}

pub(crate) async fn commit(store: &Shared, ops: Vec<Op>) -> (Revision, Vec<KeyValue>) {
    match transact(store, vec![], ops).await {
        TransactionResult::Committed { revision, puts } => (revision, puts),
        TransactionResult::Conflict { key, .. } => panic!("conflict on {key}"),
    }
}

async fn list(store: &Shared, range: Range) -> Vec<(String, String)> {
    let page = store.range(range).await.unwrap();
    page.items.into_iter().map(|kv| (kv.key.to_string(), text(&kv.value))).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs the whole suite.
pub(crate) async fn run(store: Shared) {
    puts_and_deletes(&store, "/puts/").await;
    conditions(&store, "/conditions/").await;
    splices(&store, "/splices/").await;
    pages(&store, "/pages/").await;
    the_past(&store, "/past/").await;
    watches(&store, "/watches/").await;
    watches_from_the_past(&store, "/watches-past/").await;
    concurrent_counters(&store, "/counters/").await;
    watches_have_no_gaps(&store, "/gaps/").await;
    limits(&store, "/limits/").await;
    slow_watchers_are_ended(&store, "/slow/").await;
    compaction(&store, "/compaction/").await;
}

async fn puts_and_deletes(store: &Shared, prefix: &str) {
    let key = format!("{prefix}a");
    assert_eq!(store.get(&key).await.unwrap(), None);
    let (first, puts) = commit(store, vec![put(&key, "1")]).await;
    assert_eq!((puts[0].create_revision, puts[0].mod_revision), (first, first));
    let (second, puts) = commit(store, vec![put(&key, "2")]).await;
    assert!(second > first);
    assert!(store.revision() >= second);
    assert_eq!((puts[0].create_revision, puts[0].mod_revision), (first, second));
    assert_eq!(store.get(&key).await.unwrap().as_ref(), Some(&puts[0]));
    let (third, puts) = commit(store, vec![delete(&key), put(&format!("{prefix}b"), "3")]).await;
    assert_eq!(puts[0].mod_revision, third);
    assert_eq!(store.get(&key).await.unwrap(), None);
    // Nothing changes, so nothing has a revision of its own.
    let (same, puts) = commit(store, vec![delete(&key)]).await;
    assert_eq!((same, puts.len()), (third, 0));
    let (again, puts) = commit(store, vec![put(&key, "4")]).await;
    assert_eq!((puts[0].create_revision, puts[0].mod_revision), (again, again));
}

async fn conditions(store: &Shared, prefix: &str) {
    let (here, gone) = (Arc::<str>::from(format!("{prefix}here")), Arc::<str>::from(format!("{prefix}gone")));
    let (revision, _) = commit(store, vec![put(&here, "1")]).await;
    let rows = [
        (vec![Compare::Present(here.clone())], None),
        (vec![Compare::Absent(gone.clone())], None),
        (vec![Compare::Absent(here.clone())], Some(&here)),
        (vec![Compare::Present(gone.clone())], Some(&gone)),
        (vec![Compare::ModRevision(gone.clone(), Revision(1))], Some(&gone)),
        (vec![Compare::ModRevision(gone.clone(), Revision(0))], Some(&gone)),
        (vec![Compare::ModRevision(here.clone(), Revision(revision.0 - 1))], Some(&here)),
        (vec![Compare::Present(here.clone()), Compare::Present(gone.clone())], Some(&gone)),
        (vec![Compare::ModRevision(here.clone(), revision)], None),
    ];
    for (compare, failing) in rows {
        let row = format!("{compare:?}");
        let result = transact(store, compare, vec![put(&format!("{prefix}other"), &row)]).await;
        match (result, failing) {
            (TransactionResult::Committed { .. }, None) => {}
            (TransactionResult::Conflict { key, current }, Some(failing)) => {
                assert_eq!(&key, failing, "{row}");
                assert_eq!(current, store.get(failing).await.unwrap(), "{row}");
            }
            (result, _) => panic!("{row}: {result:?}"),
        }
    }
}

async fn splices(store: &Shared, prefix: &str) {
    for (at, before, after) in [(0, "", "ab"), (1, "a", "b"), (2, "ab", "")] {
        let key = format!("{prefix}{at}");
        let value = Value { bytes: Bytes::from_static(b"ab"), splice_at: Some(at) };
        let op = Op::Put { key: key.as_str().into(), value, durability: Durability::Lazy };
        let (revision, puts) = commit(store, vec![op]).await;
        assert_eq!(text(&puts[0].value), format!("{before}{}{after}", revision.0));
        assert_eq!(store.get(&key).await.unwrap().unwrap().value, puts[0].value);
    }
}

async fn pages(store: &Shared, prefix: &str) {
    let ops = (0..25).map(|n| put(&format!("{prefix}{n:02}"), &n.to_string())).collect();
    let (revision, _) = commit(store, ops).await;
    commit(store, vec![put(&format!("{}x", prefix.trim_end_matches('/')), "neighbour")]).await;
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let range = Range { prefix: prefix.to_owned(), after, at: Some(revision), limit: 10 };
        let page = store.range(range).await.unwrap();
        assert_eq!(page.revision, revision);
        seen.extend(page.items.iter().map(|kv| text(&kv.value)));
        assert_eq!((page.remaining as usize, page.more), (25 - seen.len(), seen.len() < 25));
        after = page.items.last().map(|kv| kv.key.to_string());
        // Later changes do not show in pages of an earlier revision.
        commit(
            store,
            vec![delete(&format!("{prefix}{:02}", seen.len())), put(&format!("{prefix}99"), "new")],
        )
        .await;
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, (0..25).map(|n| n.to_string()).collect::<Vec<_>>());
    let all = Range { prefix: prefix.to_owned(), ..Range::default() };
    assert_eq!(list(store, all).await.len(), 25 - 2 + 1);
    let before =
        Range { prefix: prefix.to_owned(), after: Some("/".to_owned()), limit: 1, ..Range::default() };
    assert_eq!(list(store, before).await[0].0, format!("{prefix}00"));
    let behind = Range { prefix: prefix.to_owned(), after: Some("/zzz".to_owned()), ..Range::default() };
    assert_eq!(list(store, behind).await, []);
}

async fn the_past(store: &Shared, prefix: &str) {
    let mut model = BTreeMap::new();
    let mut states = Vec::new();
    for step in 0..30u32 {
        let key = format!("{prefix}{}", step * 7 % 5);
        let op = if step % 4 == 3 { delete(&key) } else { put(&key, &step.to_string()) };
        match &op {
            Op::Put { .. } => drop(model.insert(key, step.to_string())),
            Op::Delete { .. } => drop(model.remove(&key)),
        }
        states.push((commit(store, vec![op]).await.0, model.clone()));
    }
    for (revision, model) in states {
        let range = Range { prefix: prefix.to_owned(), at: Some(revision), ..Range::default() };
        assert_eq!(list(store, range).await, model.into_iter().collect::<Vec<_>>());
    }
    let future = Revision(store.revision().0 + 1000);
    let range = Range { prefix: prefix.to_owned(), at: Some(future), ..Range::default() };
    let error = store.range(range).await.unwrap_err();
    assert!(matches!(error, StoreError::Future { .. }), "{error}");
}

async fn next(watch: &mut Watch) -> (Revision, Vec<Event>) {
    let batch = watch.receiver.recv().await.expect("the watch goes on").expect("no error");
    (batch.revision, batch.events)
}

async fn watches(store: &Shared, prefix: &str) {
    let key = format!("{prefix}a");
    let mut watch = store.watch(prefix, None).await.unwrap();
    let (first, puts) = commit(store, vec![put(&key, "1"), put("/elsewhere", "x")]).await;
    let made = puts[0].clone();
    assert_eq!(
        next(&mut watch).await,
        (first, vec![Event { kv: made.clone(), previous: None, deleted: false }])
    );
    let (second, puts) = commit(store, vec![put(&key, "2")]).await;
    let changed = puts[0].clone();
    let event = Event { kv: changed.clone(), previous: Some(made), deleted: false };
    assert_eq!(next(&mut watch).await, (second, vec![event]));
    let (third, _) = commit(store, vec![delete(&key)]).await;
    let gone = KeyValue { mod_revision: third, ..changed.clone() };
    let event = Event { kv: gone, previous: Some(changed), deleted: true };
    assert_eq!(next(&mut watch).await, (third, vec![event]));
}

async fn watches_from_the_past(store: &Shared, prefix: &str) {
    let mut revisions = Vec::new();
    for n in 0..10 {
        revisions.push(commit(store, vec![put(&format!("{prefix}{}", n % 3), &n.to_string())]).await.0);
    }
    for (index, after) in revisions.iter().enumerate() {
        let mut watch = store.watch(prefix, Some(*after)).await.unwrap();
        let (last, _) = commit(store, vec![put(&format!("{prefix}last"), &index.to_string())]).await;
        let mut seen = Vec::new();
        loop {
            let (revision, _) = next(&mut watch).await;
            seen.push(revision);
            if revision == last {
                break;
            }
        }
        assert_eq!(seen[..9 - index], revisions[index + 1..]);
    }
    let future = Revision(store.revision().0 + 1000);
    let error = store.watch(prefix, Some(future)).await.err().unwrap();
    assert!(matches!(error, StoreError::Future { .. }), "{error}");
}

async fn concurrent_counters(store: &Shared, prefix: &str) {
    let key: Arc<str> = format!("{prefix}counter").into();
    commit(store, vec![put(&key, "0")]).await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let (store, key) = (store.clone(), key.clone());
            tokio::spawn(async move {
                for _ in 0..25 {
                    increment(&store, &key).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(text(&store.get(&key).await.unwrap().unwrap().value), "200");
}

async fn increment(store: &Shared, key: &Arc<str>) {
    let mut current = store.get(key).await.unwrap().unwrap();
    loop {
        let number: u32 = text(&current.value).parse().unwrap();
        let compare = vec![Compare::ModRevision(key.clone(), current.mod_revision)];
        match transact(store, compare, vec![put(key, &(number + 1).to_string())]).await {
            TransactionResult::Committed { .. } => return,
            TransactionResult::Conflict { current: newer, .. } => current = newer.unwrap(),
        }
    }
}

/// Watches that begin at any moment see exactly what follows the list they began with.
async fn watches_have_no_gaps(store: &Shared, prefix: &str) {
    let last = format!("{prefix}last");
    let writer = {
        let (store, prefix, last) = (store.clone(), prefix.to_owned(), last.clone());
        tokio::spawn(async move {
            for n in 0..300 {
                let key = format!("{prefix}{}", n % 17);
                let op = if n % 5 == 4 { delete(&key) } else { put(&key, &n.to_string()) };
                commit(&store, vec![op]).await;
            }
            commit(&store, vec![put(&last, "end")]).await;
        })
    };
    let followers: Vec<_> = (0..10).map(|_| tokio::spawn(follow(store.clone(), prefix.to_owned()))).collect();
    writer.await.unwrap();
    let all = Range { prefix: prefix.to_owned(), ..Range::default() };
    let expected: Vec<_> = list(store, all).await;
    for follower in followers {
        assert_eq!(follower.await.unwrap().into_iter().collect::<Vec<_>>(), expected);
    }
}

async fn follow(store: Shared, prefix: String) -> BTreeMap<String, String> {
    let page = store.range(Range { prefix: prefix.clone(), ..Range::default() }).await.unwrap();
    let mut copy: BTreeMap<_, _> =
        page.items.iter().map(|kv| (kv.key.to_string(), text(&kv.value))).collect();
    let mut watch = store.watch(&prefix, Some(page.revision)).await.unwrap();
    let mut before = page.revision;
    while !copy.contains_key(&format!("{prefix}last")) {
        let (revision, events) = next(&mut watch).await;
        assert!(revision > before);
        before = revision;
        for event in events {
            let key = event.kv.key.to_string();
            assert_eq!(event.previous.map(|kv| text(&kv.value)), copy.get(&key).cloned());
            match event.deleted {
                true => drop(copy.remove(&key)),
                false => drop(copy.insert(key, text(&event.kv.value))),
            }
        }
    }
    copy
}

async fn limits(store: &Shared, prefix: &str) {
    let key: Arc<str> = format!("{prefix}a").into();
    let large = Value { bytes: Bytes::from(vec![0; 2 << 20]), splice_at: None };
    let op = Op::Put { key: key.clone(), value: large, durability: Durability::Durable };
    let error = store.transact(Transaction { compare: vec![], ops: vec![op] }).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    let twice = Transaction { compare: vec![], ops: vec![put(&key, "1"), delete(&key)] };
    assert!(store.transact(twice).await.is_err());
    assert_eq!(store.get(&key).await.unwrap(), None);
}

async fn slow_watchers_are_ended(store: &Shared, prefix: &str) {
    let mut watch = store.watch(prefix, None).await.unwrap();
    let mut quick = store.watch(prefix, None).await.unwrap();
    for n in 0..5000 / 50 {
        let writes = (0..50).map(|m| {
            let (store, key) = (store.clone(), format!("{prefix}{m}"));
            tokio::spawn(async move { commit(&store, vec![put(&key, &n.to_string())]).await })
        });
        for write in writes.collect::<Vec<_>>() {
            write.await.unwrap();
        }
        for _ in 0..50 {
            next(&mut quick).await;
        }
    }
    let mut received = 0;
    loop {
        match watch.receiver.recv().await.unwrap() {
            Ok(_) => received += 1,
            Err(StoreError::Compacted { .. }) => break,
            Err(other) => panic!("{other}"),
        }
    }
    assert!(received >= 1000, "{received}");
    assert!(watch.receiver.recv().await.is_none());
}

async fn compaction(store: &Shared, prefix: &str) {
    let mut revisions = Vec::new();
    for n in 0..10 {
        revisions.push(commit(store, vec![put(&format!("{prefix}a"), &n.to_string())]).await.0);
    }
    store.compact(revisions[5]).await.unwrap();
    let at = |revision| Range { prefix: prefix.to_owned(), at: Some(revision), ..Range::default() };
    assert_eq!(list(store, at(revisions[5])).await[0].1, "5");
    let error = store.range(at(revisions[4])).await.unwrap_err();
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    let error = store.watch(prefix, Some(revisions[3])).await.err().unwrap();
    assert!(matches!(error, StoreError::Compacted { .. }), "{error}");
    let mut watch = store.watch(prefix, Some(revisions[5])).await.unwrap();
    assert_eq!(next(&mut watch).await.0, revisions[6]);
    // Again is no error, the future is.
    store.compact(revisions[5]).await.unwrap();
    let error = store.compact(Revision(store.revision().0 + 1000)).await.unwrap_err();
    assert!(matches!(error, StoreError::Future { .. }), "{error}");
    assert_eq!(text(&store.get(&format!("{prefix}a")).await.unwrap().unwrap().value), "9");
}
