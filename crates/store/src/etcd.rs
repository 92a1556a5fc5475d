//! The store on an etcd cluster, for when one machine is not enough. The same trait, mapped onto etcd's
//! transactions, ranges and watches; consensus is etcd's.
//!
//! What differs from the embedded store: every write is durable, whatever it asks for; and a value is stored as
//!
//! ```text
//! format:u8 = 1  splice:u32 little-endian, u32::MAX for none  bytes
//! ```
//! because etcd tells a revision only after the write, so that its digits are put into the bytes on reading.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Client, CompareOp, ConnectOptions, EventType, GetOptions, KvClient, Txn, TxnOp, TxnOpResponse,
    WatchClient, WatchOptions, WatchResponse, WatchStream,
};

use crate::embedded::{check_distinct, splice};
use crate::feed::Feed;
use crate::{
    Compare, Event, EventBatch, KeyValue, Op, Range, RangePage, Revision, Store, StoreError, Transaction,
    TransactionResult, Value, Watch,
};

/// How many batches a watcher may be behind before it is ended.
const WATCH_BUFFER: usize = 4096;
/// etcd refuses requests over 1.5 MiB unless told otherwise; the header and the key need a little of that.
const MAX_VALUE_SIZE: usize = (3 << 19) - (16 << 10);
const HEADER_SIZE: usize = 5;
const FORMAT: u8 = 1;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A static binary has no resolver of the C library; a cluster names its store by address.
    #[error("etcd endpoint {endpoint} must name its host by an IP address")]
    NotAnAddress { endpoint: String },
    /// The client refused, or no endpoint answered.
    #[error("failed to connect to etcd at {endpoints}")]
    Connect { endpoints: String, source: Box<etcd_client::Error> },
}

/// A store whose pairs live in etcd under a prefix of their own.
pub struct EtcdStore {
    client: Client,
    prefix: String,
    /// The newest revision any answer told.
    revision: Arc<AtomicU64>,
}

impl EtcdStore {
    /// Connects to `endpoints` (`http://10.0.0.1:2379`), keeping every key under `prefix`, and asks for the revision.
    pub async fn connect(
        endpoints: &[String],
        prefix: &str,
        options: Option<ConnectOptions>,
    ) -> Result<Arc<Self>, ConnectError> {
        if let Some(endpoint) = endpoints.iter().find(|endpoint| !names_an_address(endpoint)) {
            return Err(ConnectError::NotAnAddress { endpoint: endpoint.clone() });
        }
        let failed =
            |source| ConnectError::Connect { endpoints: endpoints.join(","), source: Box::new(source) };
        let client = Client::connect(endpoints, options).await.map_err(failed)?;
        let store = Self { client, prefix: prefix.to_owned(), revision: Arc::default() };
        let answer = store.kv().get(store.full_key(""), Some(GetOptions::new().with_count_only())).await;
        store.saw(answer.map_err(failed)?.header());
        Ok(Arc::new(store))
    }

    fn kv(&self) -> KvClient {
        self.client.kv_client()
    }

    fn full_key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn saw(&self, header: Option<&etcd_client::ResponseHeader>) -> Revision {
        let revision = header.map_or(0, |header| header.revision() as u64);
        self.revision.fetch_max(revision, Ordering::AcqRel);
        Revision(revision)
    }

    async fn current_revision(&self) -> Result<Revision, StoreError> {
        let options = GetOptions::new().with_count_only();
        let answer = self.kv().get(self.full_key(""), Some(options)).await.map_err(unavailable)?;
        Ok(self.saw(answer.header()))
    }

    /// A watch of etcd begins even when its history is gone and fails later; a read fails at once.
    async fn check_kept(&self, revision: Revision) -> Result<Revision, StoreError> {
        let options = GetOptions::new().with_count_only().with_revision(revision.0 as i64);
        match self.kv().get(self.full_key(""), Some(options)).await {
            Ok(answer) => self.saw(answer.header()),
            Err(error) => return Err(self.out_of_range(revision, error).await),
        };
        Ok(revision)
    }

    /// What an error about a revision means. etcd has one code for "compacted" and "in the future" and tells them
    /// apart only in its text, so the current revision decides.
    async fn out_of_range(&self, requested: Revision, error: etcd_client::Error) -> StoreError {
        let is_range =
            matches!(&error, etcd_client::Error::GRpcStatus(status) if i32::from(status.code()) == 11);
        if !is_range {
            return unavailable(error);
        }
        match self.current_revision().await {
            Ok(current) if requested > current => StoreError::Future { requested, current },
            // etcd does not tell how much it keeps; the caller lists again in any case.
            Ok(current) => StoreError::Compacted { requested, oldest: current },
            Err(error) => error,
        }
    }
}

fn names_an_address(endpoint: &str) -> bool {
    let authority = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.rsplit_once(':').map_or(authority, |(host, _)| host),
    };
    host.parse::<IpAddr>().is_ok()
}

fn unavailable(error: etcd_client::Error) -> StoreError {
    StoreError::Unavailable(format!("etcd: {error}"))
}

fn encode(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_SIZE + value.bytes.len());
    bytes.push(FORMAT);
    bytes.extend_from_slice(&value.splice_at.unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&value.bytes);
    bytes
}

fn decode(prefix: &str, pair: &etcd_client::KeyValue) -> Result<KeyValue, StoreError> {
    let mod_revision = Revision(pair.mod_revision() as u64);
    let foreign = |what: &str| {
        let key = String::from_utf8_lossy(pair.key());
        StoreError::Unavailable(format!("etcd holds {key}, {what}"))
    };
    let key = std::str::from_utf8(pair.key()).ok().and_then(|key| key.strip_prefix(prefix));
    let key = key.ok_or_else(|| foreign("which is no key of this store"))?.into();
    let (header, bytes) = pair
        .value()
        .split_first_chunk::<HEADER_SIZE>()
        .filter(|(header, _)| header[0] == FORMAT)
        .ok_or_else(|| foreign("whose value was not written by this store or by a newer release"))?;
    let at = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    let value = Value { bytes: Bytes::copy_from_slice(bytes), splice_at: (at != u32::MAX).then_some(at) };
    let create_revision = Revision(pair.create_revision() as u64);
    Ok(KeyValue { key, value: splice(&value, mod_revision), create_revision, mod_revision })
}

fn compared_key(compare: &Compare) -> &Arc<str> {
    match compare {
        Compare::ModRevision(key, _) | Compare::Absent(key) | Compare::Present(key) => key,
    }
}

fn holds(compare: &Compare, current: Option<&KeyValue>) -> bool {
    match compare {
        Compare::ModRevision(_, wanted) => current.is_some_and(|kv| kv.mod_revision == *wanted),
        Compare::Absent(_) => current.is_none(),
        Compare::Present(_) => current.is_some(),
    }
}

#[async_trait]
impl Store for EtcdStore {
    /// The newest revision this process has been told. Another server may be ahead.
    fn revision(&self) -> Revision {
        Revision(self.revision.load(Ordering::Acquire))
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let answer = self.kv().get(self.full_key(key), None).await.map_err(unavailable)?;
        self.saw(answer.header());
        answer.kvs().first().map(|pair| decode(&self.prefix, pair)).transpose()
    }

    async fn range(&self, range: Range) -> Result<RangePage, StoreError> {
        let start = match &range.after {
            // The next possible key.
            Some(after) if after >= &range.prefix => format!("{}\0", self.full_key(after)),
            _ => self.full_key(&range.prefix),
        };
        let mut options = GetOptions::new().with_range(prefix_end(&self.full_key(&range.prefix)));
        options = options.with_limit(range.limit as i64).with_revision(range.at.unwrap_or_default().0 as i64);
        let answer = match (self.kv().get(start, Some(options)).await, range.at) {
            (Ok(answer), _) => answer,
            (Err(error), Some(at)) => return Err(self.out_of_range(at, error).await),
            (Err(error), None) => return Err(unavailable(error)),
        };
        let current = self.saw(answer.header());
        let items =
            answer.kvs().iter().map(|pair| decode(&self.prefix, pair)).collect::<Result<Vec<_>, _>>()?;
        let remaining = (answer.count() as u64).saturating_sub(items.len() as u64);
        Ok(RangePage { items, revision: range.at.unwrap_or(current), more: answer.more(), remaining })
    }

    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError> {
        check_distinct(&transaction)?;
        let mut changes = Vec::new();
        let mut reads = Vec::new();
        for op in &transaction.ops {
            match op {
                Op::Put { key, value, .. } => {
                    if value.bytes.len() > MAX_VALUE_SIZE {
                        let size = value.bytes.len();
                        return Err(StoreError::TooLarge { size, limit: MAX_VALUE_SIZE });
                    }
                    changes.push(TxnOp::put(self.full_key(key), encode(value), None));
                    // Only etcd knows since when the key exists.
                    reads.push(TxnOp::get(self.full_key(key), Some(GetOptions::new().with_keys_only())));
                }
                Op::Delete { key } => changes.push(TxnOp::delete(self.full_key(key), None)),
            }
        }
        changes.append(&mut reads);
        let conditions: Vec<_> = transaction.compare.iter().map(|compare| self.condition(compare)).collect();
        let current: Vec<_> = transaction
            .compare
            .iter()
            .map(|compare| TxnOp::get(self.full_key(compared_key(compare)), None))
            .collect();
        let request = Txn::new().when(conditions).and_then(changes).or_else(current);
        let answer = self.kv().txn(request).await.map_err(unavailable)?;
        let revision = self.saw(answer.header());
        let found = answer.op_responses().into_iter().filter_map(|response| match response {
            TxnOpResponse::Get(found) => Some(found),
            _ => None,
        });
        if answer.succeeded() {
            self.committed(&transaction, revision, found)
        } else {
            self.conflict(&transaction, found)
        }
    }

    async fn watch(&self, prefix: &str, after: Option<Revision>) -> Result<Watch, StoreError> {
        let after = match after {
            None => self.current_revision().await?,
            Some(after) => self.check_kept(after).await?,
        };
        let mut watcher = Watcher {
            client: self.client.watch_client(),
            store_prefix: self.prefix.clone(),
            prefix: self.full_key(prefix),
            revision: self.revision.clone(),
            after,
        };
        let stream = watcher.start().await?;
        let (feed, watch) = Feed::new(after, 0, WATCH_BUFFER);
        tokio::spawn(watcher.run(stream, feed));
        Ok(watch)
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        match self.kv().compact(before.0 as i64, None).await {
            Ok(_) => Ok(()),
            Err(error) => match self.out_of_range(before, error).await {
                // Somebody was faster.
                StoreError::Compacted { .. } => Ok(()),
                error => Err(error),
            },
        }
    }
}

impl EtcdStore {
    fn condition(&self, compare: &Compare) -> etcd_client::Compare {
        let key = self.full_key(compared_key(compare));
        match compare {
            Compare::ModRevision(_, Revision(0)) => {
                // For etcd an absent key is at revision 0; for us nothing is.
                etcd_client::Compare::mod_revision(key, CompareOp::Less, 0)
            }
            Compare::ModRevision(_, revision) => {
                etcd_client::Compare::mod_revision(key, CompareOp::Equal, revision.0 as i64)
            }
            Compare::Absent(_) => etcd_client::Compare::create_revision(key, CompareOp::Equal, 0),
            Compare::Present(_) => etcd_client::Compare::create_revision(key, CompareOp::Greater, 0),
        }
    }

    fn committed(
        &self,
        transaction: &Transaction,
        revision: Revision,
        found: impl Iterator<Item = etcd_client::GetResponse>,
    ) -> Result<TransactionResult, StoreError> {
        let written = transaction.ops.iter().filter_map(|op| match op {
            Op::Put { key, value, .. } => Some((key, value)),
            Op::Delete { .. } => None,
        });
        let pair = |((key, value), found): ((&Arc<str>, &Value), etcd_client::GetResponse)| {
            let created = found.kvs().first().map_or(revision.0, |pair| pair.create_revision() as u64);
            KeyValue {
                key: key.clone(),
                value: splice(value, revision),
                create_revision: Revision(created),
                mod_revision: revision,
            }
        };
        Ok(TransactionResult::Committed { revision, puts: written.zip(found).map(pair).collect() })
    }

    fn conflict(
        &self,
        transaction: &Transaction,
        found: impl Iterator<Item = etcd_client::GetResponse>,
    ) -> Result<TransactionResult, StoreError> {
        for (compare, found) in transaction.compare.iter().zip(found) {
            let current = found.kvs().first().map(|pair| decode(&self.prefix, pair)).transpose()?;
            if !holds(compare, current.as_ref()) {
                return Ok(TransactionResult::Conflict { key: compared_key(compare).clone(), current });
            }
        }
        Err(StoreError::Unavailable("etcd refused a transaction whose conditions hold".to_owned()))
    }
}

/// The first key behind all that start with `prefix`; `"\0"` is etcd's word for "no end".
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// Moves one etcd watch into a feed.
struct Watcher {
    client: WatchClient,
    store_prefix: String,
    prefix: String,
    revision: Arc<AtomicU64>,
    after: Revision,
}

impl Watcher {
    async fn start(&mut self) -> Result<WatchStream, StoreError> {
        let options = WatchOptions::new()
            .with_range(prefix_end(&self.prefix))
            .with_start_revision(self.after.0 as i64 + 1)
            .with_prev_key();
        // An empty key is not a key; the smallest one is a zero byte.
        let key = if self.prefix.is_empty() { "\0".to_owned() } else { self.prefix.clone() };
        self.client.watch(key, Some(options)).await.map_err(unavailable)
    }

    fn cancelled(&self, answer: &WatchResponse) -> Option<StoreError> {
        let compacted = Revision(answer.compact_revision() as u64);
        match answer.canceled() {
            false => None,
            true if compacted > Revision(0) => {
                Some(StoreError::Compacted { requested: self.after, oldest: compacted })
            }
            true => {
                Some(StoreError::Unavailable(format!("etcd ended the watch: {}", answer.cancel_reason())))
            }
        }
    }

    /// Until the watcher is dropped, too slow, or the connection breaks. There is no silent reconnection: the
    /// caller knows best whether to go on or to list.
    async fn run(mut self, mut stream: WatchStream, mut feed: Feed) {
        loop {
            let answer = tokio::select! {
                answer = stream.message() => answer,
                () = feed.closed() => return,
            };
            let step = match answer {
                Ok(Some(answer)) => match self.cancelled(&answer) {
                    None => self.deliver(&answer, &mut feed),
                    Some(reason) => Err(reason),
                },
                Ok(None) => Err(StoreError::Unavailable("etcd ended the watch".to_owned())),
                Err(error) => Err(unavailable(error)),
            };
            match step {
                Ok(true) => {}
                Ok(false) => return,
                Err(reason) => return feed.end(reason),
            }
        }
    }

    /// etcd never divides a revision between answers, but an answer may hold many.
    fn deliver(&mut self, answer: &WatchResponse, feed: &mut Feed) -> Result<bool, StoreError> {
        let mut batches: Vec<EventBatch> = Vec::new();
        for event in answer.events() {
            let Some(event) = self.event(event)? else { continue };
            let revision = event.kv.mod_revision;
            match batches.last_mut().filter(|batch| batch.revision == revision) {
                Some(batch) => batch.events.push(event),
                None => batches.push(EventBatch { revision, events: vec![event] }),
            }
        }
        for batch in batches {
            self.after = batch.revision;
            self.revision.fetch_max(batch.revision.0, Ordering::AcqRel);
            if !feed.push(batch) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn event(&self, event: &etcd_client::Event) -> Result<Option<Event>, StoreError> {
        let previous = event.prev_kv().map(|pair| decode(&self.store_prefix, pair)).transpose()?;
        let Some(pair) = event.kv() else { return Ok(None) };
        if event.event_type() == EventType::Put {
            let kv = decode(&self.store_prefix, pair)?;
            return Ok(Some(Event { kv, previous, deleted: false }));
        }
        let mod_revision = Revision(pair.mod_revision() as u64);
        let kv = match &previous {
            Some(previous) => KeyValue { mod_revision, ..previous.clone() },
            // What it held has been compacted between the delete and now; nobody can be told any more.
            None => {
                return Err(StoreError::Compacted { requested: self.after, oldest: mod_revision });
            }
        };
        Ok(Some(Event { kv, previous, deleted: true }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses() {
        let rows = [
            ("http://127.0.0.1:2379", true),
            ("https://[::1]:2379/", true),
            ("10.0.0.1:2379", true),
            ("http://etcd.example:2379", false),
            ("http://", false),
        ];
        for (endpoint, expected) in rows {
            assert_eq!(names_an_address(endpoint), expected, "{endpoint}");
        }
    }

    #[test]
    fn the_end_of_a_prefix() {
        assert_eq!(prefix_end("/a/"), b"/a0");
        assert_eq!(prefix_end(""), [0]);
    }
}
