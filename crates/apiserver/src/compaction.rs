//! Old versions are forgotten after some minutes, as upstream's API server does for its etcd.
//!
//! What is kept of the past serves watches that were away and lists in pages. The embedded store bounds it by number and
//! size as well, etcd does not: without this it would grow for ever. Several servers may do it to one store; the second
//! only hears that it is done.

use std::sync::Arc;
use std::time::Duration;

use sampan_store::Revision;

use crate::server::ApiServer;

/// How long a version is kept after the next one, at least (`--etcd-compaction-interval` upstream).
const INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Forgets until the task is dropped. `after` is called when something was forgotten, which gives memory back.
pub async fn compact_regularly(server: Arc<ApiServer>, after: impl Fn() + Send) {
    let mut clock = Clock { seen: server.store.revision(), forgotten: Revision(0) };
    loop {
        tokio::time::sleep(INTERVAL).await;
        let Some(revision) = clock.turn(server.store.revision()) else { continue };
        match server.store.compact(revision).await {
            Ok(()) => after(),
            Err(error) => tracing::debug!(%error, "old versions were not forgotten here"),
        }
    }
}

/// What was there an interval ago.
struct Clock {
    seen: Revision,
    forgotten: Revision,
}

impl Clock {
    /// Up to where to forget, now that an interval has passed and the store is at `current`. A store in which nothing
    /// happens has nothing to forget.
    fn turn(&mut self, current: Revision) -> Option<Revision> {
        let before = std::mem::replace(&mut self.seen, current);
        if before <= self.forgotten {
            return None;
        }
        self.forgotten = before;
        Some(before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_an_interval_old_is_forgotten_once() {
        let mut clock = Clock { seen: Revision(5), forgotten: Revision(0) };
        let turns =
            [(5, Some(5)), (5, None), (9, None), (9, Some(9)), (12, None), (12, Some(12)), (12, None)];
        for (current, expected) in turns {
            assert_eq!(clock.turn(Revision(current)), expected.map(Revision), "at {current}");
        }
    }
}
