//! The store with a watch beside it.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use sampan_store::{
    KeyValue, Range, RangePage, Revision, Store, StoreError, Transaction, TransactionResult, Watch,
};
use tracing::Instrument as _;

use super::{Metrics, StoreOperation};
use crate::traces::part;

/// Times what is asked of a store.
pub(crate) struct TimedStore {
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
}

impl TimedStore {
    /// Times `store`.
    pub(crate) fn new(store: Arc<dyn Store>, metrics: Arc<Metrics>) -> Self {
        Self { store, metrics }
    }
}

#[async_trait]
impl Store for TimedStore {
    fn revision(&self) -> Revision {
        self.store.revision()
    }

    async fn get(&self, key: &str) -> Result<Option<KeyValue>, StoreError> {
        let start = Instant::now();
        let result = self.store.get(key).instrument(part!("store get", db.operation.name = "get")).await;
        self.metrics.store(StoreOperation::Get, start.elapsed());
        result
    }

    async fn range(&self, range: Range) -> Result<RangePage, StoreError> {
        let start = Instant::now();
        let result =
            self.store.range(range).instrument(part!("store list", db.operation.name = "range")).await;
        self.metrics.store(StoreOperation::List, start.elapsed());
        result
    }

    async fn transact(&self, transaction: Transaction) -> Result<TransactionResult, StoreError> {
        let start = Instant::now();
        let result = self
            .store
            .transact(transaction)
            .instrument(part!("store transaction", db.operation.name = "transact"))
            .await;
        self.metrics.store(StoreOperation::Update, start.elapsed());
        result
    }

    async fn watch(&self, prefix: &str, after: Option<Revision>) -> Result<Watch, StoreError> {
        self.store.watch(prefix, after).await
    }

    async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.store.compact(before).await
    }
}
