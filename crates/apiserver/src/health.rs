//! `/livez`, `/readyz` and `/healthz`: lists of named checks.
//!
//! The server answers only after store, cache and first objects are there, so most of being asked is being healthy. What
//! can go wrong later: the store no longer takes requests, the cache stops following it, or the server is told to stop.
//! Then it is alive and not ready, so that others send it no more work while it finishes what it has.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::StatusCode;
use sampan_api::kinds::component_status::component_status;
use serde_json::json;

use crate::error::ApiError;
use crate::metrics::family;
use crate::request::Query;
use crate::respond::{self, ApiResponse, Projection};
use crate::server::ApiServer;

/// The store must answer a read within this time.
const STORE_PATIENCE: Duration = Duration::from_secs(2);
/// The cache may be behind the store for this long: far more than a batch of events takes.
const CACHE_PATIENCE: Duration = Duration::from_secs(10);
/// A key that is never written; looking for it asks the store for an answer.
const PROBED_KEY: &str = "/health";

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    Ping,
    Log,
    Store,
    WatchCache,
    Bootstrap,
    Shutdown,
}

const CHECKS: &[(Check, &str)] = &[
    (Check::Ping, "ping"),
    (Check::Log, "log"),
    // Upstream's name; tools ask for it.
    (Check::Store, "etcd"),
    (Check::WatchCache, "watch-cache"),
    (Check::Bootstrap, "poststarthook/rbac/bootstrap-roles"),
    (Check::Shutdown, "shutdown"),
];

/// What the checks remember.
#[derive(Default)]
pub(crate) struct Health {
    stopping: AtomicBool,
    /// Since when the cache has been behind, and at which revision it was then.
    behind: Mutex<Option<(Instant, u64)>>,
    /// Outcomes by check: successes, failures.
    counts: [[AtomicU64; 2]; 6],
}

impl ApiServer {
    /// From now on `/readyz` says no. Requests are still answered.
    pub fn begin_shutdown(&self) {
        self.health.stopping.store(true, Ordering::Relaxed);
    }

    /// ComponentStatuses: of the parts of a control plane the server knows its store.
    pub(crate) async fn computed(
        &self,
        name: &str,
        projection: &Projection,
    ) -> Result<ApiResponse, ApiError> {
        let health = self.check(Check::Store).await;
        let said = health.as_ref().map(|()| "ok").map_err(String::as_str);
        let store = Bytes::from(component_status("etcd-0", said).to_string());
        if name == "etcd-0" {
            return Ok(respond::json_bytes(StatusCode::OK, projection.object(&store)));
        }
        if !name.is_empty() {
            return Err(ApiError::not_found(&projection.kind, name));
        }
        let list = projection.list(std::iter::once(&store), &json!({}))?;
        Ok(respond::json_bytes(StatusCode::OK, list))
    }

    /// Answers `/livez`, `/readyz`, `/healthz` and single checks below them.
    pub(crate) async fn healthy(&self, path: &[&str], query: &Query) -> Result<ApiResponse, ApiError> {
        let (what, single) = path.split_first().ok_or_else(ApiError::no_such_path)?;
        let single = single.join("/");
        let excluded = query.all("exclude");
        let mut report = String::new();
        let mut failed = false;
        let mut found = false;
        for (check, name) in CHECKS {
            let asked = if single.is_empty() { belongs(*check, what) } else { single == *name };
            if !asked {
                continue;
            }
            found = true;
            if single.is_empty() && excluded.iter().any(|e| e == name) {
                report.push_str(&format!("[+]{name} excluded: ok\n"));
                continue;
            }
            match self.check(*check).await {
                Ok(()) => report.push_str(&format!("[+]{name} ok\n")),
                Err(reason) => {
                    failed = true;
                    tracing::warn!(check = name, %reason, "not healthy");
                    report.push_str(&format!("[-]{name} failed: reason withheld\n"));
                }
            }
        }
        if !found {
            return Err(ApiError::no_such_path());
        }
        let unknown: Vec<String> = excluded
            .iter()
            .filter(|name| !CHECKS.iter().any(|(_, known)| known == name))
            .map(|name| format!("{name:?}"))
            .collect();
        if !unknown.is_empty() {
            let unknown = unknown.join(",");
            report.push_str(&format!(
                "warn: some health checks cannot be excluded: no matches for {unknown}\n"
            ));
        }
        Ok(match (failed, query.flag("verbose")) {
            (true, _) => {
                respond::text(StatusCode::INTERNAL_SERVER_ERROR, format!("{report}{what} check failed\n"))
            }
            (false, true) => respond::text(StatusCode::OK, format!("{report}{what} check passed\n")),
            (false, false) => respond::text(StatusCode::OK, "ok"),
        })
    }

    async fn check(&self, check: Check) -> Result<(), String> {
        let result = match check {
            Check::Ping | Check::Log | Check::Bootstrap => Ok(()),
            Check::Store => match tokio::time::timeout(STORE_PATIENCE, self.store.get(PROBED_KEY)).await {
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {} seconds", STORE_PATIENCE.as_secs())),
            },
            Check::WatchCache => {
                self.health.cache_follows(self.cache.revision(), self.store.revision().0, Instant::now())
            }
            Check::Shutdown if self.health.stopping.load(Ordering::Relaxed) => {
                Err("the server is stopping".to_owned())
            }
            Check::Shutdown => Ok(()),
        };
        self.health.counts[check as usize][usize::from(result.is_err())].fetch_add(1, Ordering::Relaxed);
        result
    }
}

/// Whether a check says something about being alive or being ready.
fn belongs(check: Check, what: &str) -> bool {
    // A server that stops is alive until it has stopped.
    check != Check::Shutdown || what == "readyz"
}

impl Health {
    /// A cache that is behind is given time, as long as it moves.
    fn cache_follows(&self, cache: u64, store: u64, now: Instant) -> Result<(), String> {
        let mut behind = self.behind.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if cache >= store {
            *behind = None;
            return Ok(());
        }
        match *behind {
            Some((since, at)) if at == cache && now.duration_since(since) > CACHE_PATIENCE => {
                Err(format!("the watch cache is at revision {cache}, the store at {store}"))
            }
            Some((_, at)) if at == cache => Ok(()),
            _ => {
                *behind = Some((now, cache));
                Ok(())
            }
        }
    }

    /// `/metrics/slis`: which checks passed when they were last asked, and how often.
    pub(crate) fn render(&self, out: &mut String) {
        let types = |check: Check| match check {
            Check::Shutdown => &["readyz"][..],
            _ => &["healthz", "livez", "readyz"],
        };
        family(out, "kubernetes_healthchecks_total", "counter", "Outcomes of health checks.");
        for (check, name) in CHECKS {
            for type_ in types(*check) {
                for (status, count) in ["success", "error"].iter().zip(&self.counts[*check as usize]) {
                    let value = count.load(Ordering::Relaxed);
                    out.push_str(&format!(
                        "kubernetes_healthchecks_total{{name=\"{name}\",status=\"{status}\",type=\"{type_}\"}} {value}\n"
                    ));
                }
            }
        }
    }
}

impl ApiServer {
    /// The text of `/metrics/slis`. Every check is made now.
    pub(crate) async fn service_levels(&self) -> String {
        let mut out = String::new();
        family(&mut out, "kubernetes_healthcheck", "gauge", "Whether a health check passes: 1 or 0.");
        for (check, name) in CHECKS {
            let value = u8::from(self.check(*check).await.is_ok());
            for type_ in ["healthz", "livez", "readyz"].iter().filter(|type_| belongs(*check, type_)) {
                out.push_str(&format!(
                    "kubernetes_healthcheck{{name=\"{name}\",type=\"{type_}\"}} {value}\n"
                ));
            }
        }
        self.health.render(&mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_that_stands_still_is_not_healthy() {
        let health = Health::default();
        let start = Instant::now();
        let rows = [
            (5, 5, 0, true),
            (5, 9, 1, true),
            (5, 9, 8, true),
            // It moved: new time.
            (7, 9, 12, true),
            (7, 12, 20, true),
            (7, 12, 23, false),
            (12, 12, 24, true),
            (12, 13, 25, true),
        ];
        for (cache, store, at, expected) in rows {
            let result = health.cache_follows(cache, store, start + Duration::from_secs(at));
            assert_eq!(result.is_ok(), expected, "cache {cache}, store {store} at {at}: {result:?}");
        }
    }
}
