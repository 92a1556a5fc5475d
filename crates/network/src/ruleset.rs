//! The door to the kernel's packet rules, narrow enough to be replaced by a double in tests or by another library.

use async_trait::async_trait;

use crate::{NetworkError, NftChange};

/// One cluster's table. Every method is one atomic transaction: packets see all of it or nothing.
#[async_trait]
pub(crate) trait Ruleset: Send + Sync {
    /// Whether the table is there, for example from before a restart.
    async fn exists(&self) -> Result<bool, NetworkError>;
    /// Replaces the whole table, whatever it was, by a new one with these contents.
    async fn rebuild(&self, changes: &[NftChange]) -> Result<(), NetworkError>;
    /// Changes the contents of the table that is there.
    async fn apply(&self, changes: &[NftChange]) -> Result<(), NetworkError>;
    /// Removes the table if it is there.
    async fn remove(&self) -> Result<(), NetworkError>;
}
