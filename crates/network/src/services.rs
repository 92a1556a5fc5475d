//! From wanted services to applied ones: compares with what was applied last and hands the difference to the kernel.
//!
//! What was applied is known only in memory. After a restart, or when a change is refused (somebody emptied our table),
//! the whole table is made again from what is wanted, in one transaction, so that established traffic does not notice.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use tokio::sync::Mutex;

use crate::ruleset::Ruleset;
use crate::{Front, NetworkError, Program, ServiceRoute, plan};

/// The UDP fronts a change touched, with their endpoints now.
pub(crate) type TouchedFronts = BTreeMap<Front, BTreeSet<(Ipv4Addr, u16)>>;

/// The services of one cluster as this node applies them.
pub(crate) struct Services {
    ruleset: Box<dyn Ruleset>,
    /// `None` until we know, which is after the first transaction of this process.
    applied: Mutex<Option<Program>>,
}

impl Services {
    /// Makes the table if it is missing. A table from before a restart keeps serving until the first [`Self::apply`]
    /// replaces it: emptying it now would cut off every service for a moment.
    pub(crate) async fn start(ruleset: Box<dyn Ruleset>) -> Result<Self, NetworkError> {
        let applied = if ruleset.exists().await? {
            None
        } else {
            ruleset.rebuild(&[]).await?;
            Some(Program::default())
        };
        Ok(Self { ruleset, applied: Mutex::new(applied) })
    }

    /// Makes the kernel's table contain exactly these services, and tells which UDP fronts that touched.
    pub(crate) async fn apply(&self, wanted: &[ServiceRoute]) -> Result<TouchedFronts, NetworkError> {
        let mut desired = Program::of(wanted);
        let mut applied = self.applied.lock().await;
        let before = applied.take();
        if let Some(before) = &before {
            desired.keep_balancers_of(before);
        }
        let touched = desired.changed_udp_fronts(before.as_ref().unwrap_or(&Program::default()));
        self.change(before.as_ref(), &desired).await?;
        *applied = Some(desired);
        Ok(touched)
    }

    /// One transaction, or two when the first is refused. `applied` stays unknown if this fails or is cancelled.
    async fn change(&self, before: Option<&Program>, desired: &Program) -> Result<(), NetworkError> {
        if let Some(before) = before {
            let changes = plan(before, desired);
            if changes.is_empty() {
                return Ok(());
            }
            match self.ruleset.apply(&changes).await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "a change of the packet rules was refused, making them anew")
                }
            }
        }
        self.ruleset.rebuild(&plan(&Program::default(), desired)).await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::{NftChange, Protocol};

    /// Writes down what it is asked.
    #[derive(Default)]
    struct Recorder {
        log: std::sync::Mutex<Vec<(&'static str, usize)>>,
        exists: bool,
        refuse: AtomicBool,
    }

    struct Double(Arc<Recorder>);

    #[async_trait]
    impl Ruleset for Double {
        async fn exists(&self) -> Result<bool, NetworkError> {
            Ok(self.0.exists)
        }

        async fn rebuild(&self, changes: &[NftChange]) -> Result<(), NetworkError> {
            self.0.log.lock().unwrap().push(("rebuild", changes.len()));
            Ok(())
        }

        async fn apply(&self, changes: &[NftChange]) -> Result<(), NetworkError> {
            self.0.log.lock().unwrap().push(("apply", changes.len()));
            if self.0.refuse.swap(false, Ordering::Relaxed) {
                return Err(NetworkError::Config { reason: "refused".into() });
            }
            Ok(())
        }

        async fn remove(&self) -> Result<(), NetworkError> {
            Ok(())
        }
    }

    fn service(d: u8) -> ServiceRoute {
        ServiceRoute {
            key: "default/dns".into(),
            protocol: Protocol::Udp,
            cluster_ip: Some(Ipv4Addr::new(10, 43, 0, 10)),
            port: 53,
            node_port: None,
            endpoints: vec![(Ipv4Addr::new(10, 42, 0, d), 53)],
            session_affinity_seconds: None,
        }
    }

    #[tokio::test]
    async fn nothing_is_sent_when_nothing_changes() {
        let recorder = Arc::new(Recorder::default());
        let services = Services::start(Box::new(Double(recorder.clone()))).await.unwrap();
        assert_eq!(services.apply(&[service(2)]).await.unwrap().len(), 1);
        assert!(services.apply(&[service(2)]).await.unwrap().is_empty());
        assert_eq!(*recorder.log.lock().unwrap(), [("rebuild", 0), ("apply", 4)]);
    }

    #[tokio::test]
    async fn a_table_from_before_is_replaced_at_the_first_wish() {
        let recorder = Arc::new(Recorder { exists: true, ..Recorder::default() });
        let services = Services::start(Box::new(Double(recorder.clone()))).await.unwrap();
        assert!(recorder.log.lock().unwrap().is_empty());
        services.apply(&[service(2)]).await.unwrap();
        assert_eq!(*recorder.log.lock().unwrap(), [("rebuild", 4)]);
    }

    #[tokio::test]
    async fn a_refused_change_makes_the_table_anew() {
        let recorder = Arc::new(Recorder::default());
        let services = Services::start(Box::new(Double(recorder.clone()))).await.unwrap();
        services.apply(&[service(2)]).await.unwrap();
        recorder.refuse.store(true, Ordering::Relaxed);
        services.apply(&[service(3)]).await.unwrap();
        // Remove the backend and the hairpin, add both; then everything.
        assert_eq!(
            *recorder.log.lock().unwrap(),
            [("rebuild", 0), ("apply", 4), ("apply", 4), ("rebuild", 4)]
        );
    }
}
