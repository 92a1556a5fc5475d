//! API Priority and Fairness: who is served when more is asked than can be done at once (KEP-1040).
//!
//! `FlowSchema` and `PriorityLevelConfiguration` objects say what is how important; [`classify`] finds the place of a
//! request, [`scheduler`] decides, purely, who runs and who waits, and this file gives that a clock, a lock and a door to
//! wait at. The configuration is read again from the watch cache when one of its objects has changed. The lock is held
//! for some steps through small lists; nobody waits inside it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use serde_json::Value;
use tokio::sync::oneshot;

use self::classify::{Class, Configuration};
use self::scheduler::{Arrival, LevelConfig, Refusal, Scheduler, Ticket};
use crate::auth::User;
use crate::cache::WatchCache;
use crate::error::ApiError;
use crate::metrics::{Histogram, escaped, family};
use crate::request::RequestInfo;

mod classify;
mod defaults;
mod scheduler;
pub(crate) mod upkeep;

/// Seats of all limited levels together: upstream's 400 requests that read and 200 that write.
const TOTAL_SEATS: usize = 600;
/// A quarter of the minute a request may take, as upstream.
const QUEUE_WAIT: Duration = Duration::from_secs(15);
/// A list takes a seat per so many objects, at most [`MAX_SEATS`]; upstream's numbers.
const OBJECTS_PER_SEAT: usize = 100;
const MAX_SEATS: usize = 10;
/// Resources of the two kinds.
const SCHEMAS: &str = "flowschemas.flowcontrol.apiserver.k8s.io";
const LEVELS: &str = "prioritylevelconfigurations.flowcontrol.apiserver.k8s.io";

const WAIT_BOUNDS: &[f64] = &[0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];

const SCHEMA_HEADER: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
const LEVEL_HEADER: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");

/// Decides who is served.
pub(crate) struct FlowControl {
    cache: Arc<WatchCache>,
    start: Instant,
    state: Mutex<State>,
    wait: Histogram,
}

struct State {
    /// Revisions of both resources when they were read.
    read_at: Option<(u64, u64)>,
    configuration: Arc<Configuration>,
    /// Positions of levels in the scheduler, by name; a name keeps its position.
    positions: Vec<Arc<str>>,
    scheduler: Scheduler,
    doors: BTreeMap<Ticket, oneshot::Sender<()>>,
    dispatched: BTreeMap<(Arc<str>, Arc<str>), u64>,
    refused: BTreeMap<(Arc<str>, Arc<str>, &'static str), u64>,
}

/// Seats that are held until this is dropped.
pub(crate) struct Permit {
    flow: Arc<FlowControl>,
    ticket: Ticket,
    schema_uid: Arc<str>,
    level_uid: Arc<str>,
}

impl Permit {
    /// Tells the client, who may look it up, what its request counted as.
    pub(crate) fn name_itself(&self, headers: &mut HeaderMap) {
        for (header, uid) in [(SCHEMA_HEADER, &self.schema_uid), (LEVEL_HEADER, &self.level_uid)] {
            if let Some(value) = HeaderValue::from_str(uid).ok().filter(|_| !uid.is_empty()) {
                headers.insert(header, value);
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.flow.leave(self.ticket);
    }
}

impl State {
    /// Opens doors; who has gone meanwhile gives its seats back when its permit is dropped.
    fn open(&mut self, begun: Vec<Ticket>) {
        for ticket in begun {
            if let Some(door) = self.doors.remove(&ticket) {
                let _ = door.send(());
            }
        }
    }

    fn configure(&mut self, configuration: Configuration, now: f64) {
        for (name, _, _) in &configuration.levels {
            if !self.positions.contains(name) {
                self.positions.push(name.clone());
            }
        }
        let configs: Vec<Option<LevelConfig>> = self
            .positions
            .iter()
            .map(|name| configuration.levels.iter().find(|(n, _, _)| n == name).map(|(_, _, c)| c.clone()))
            .collect();
        self.configuration = Arc::new(configuration);
        let begun = self.scheduler.configure(&configs, now);
        self.open(begun);
    }
}

impl FlowControl {
    /// Reads its configuration from `cache` when it is asked first.
    pub(crate) fn new(cache: Arc<WatchCache>) -> Arc<Self> {
        let state = State {
            read_at: None,
            configuration: Arc::new(Configuration::new(&[], &[])),
            positions: Vec::new(),
            scheduler: Scheduler::new(TOTAL_SEATS),
            doors: BTreeMap::new(),
            dispatched: BTreeMap::new(),
            refused: BTreeMap::new(),
        };
        Arc::new(Self {
            cache,
            start: Instant::now(),
            state: Mutex::new(state),
            wait: Histogram::new(WAIT_BOUNDS),
        })
    }

    fn now(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state machine is whole between any two of its steps.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the seats of a request. 429 when there is no room, or none in time.
    pub(crate) async fn acquire(
        self: &Arc<Self>,
        user: &User,
        info: &RequestInfo,
    ) -> Result<Permit, ApiError> {
        let seats = self.seats(info);
        let configuration = self.current();
        let class = configuration.classify(user, info);
        let (level, level_uid, _) = &configuration.levels[class.level];
        let (ticket, door) = self.enter(&class, level, seats)?;
        let (schema_uid, level_uid) = (class.schema_uid.clone(), level_uid.clone());
        let permit = Permit { flow: self.clone(), ticket, schema_uid, level_uid };
        let Some(door) = door else { return Ok(permit) };
        let since = Instant::now();
        let opened = tokio::time::timeout(QUEUE_WAIT, door).await;
        self.wait.observe(since.elapsed());
        if let Ok(Ok(())) = opened {
            count(&mut self.lock().dispatched, (class.schema, level.clone()));
            return Ok(permit);
        }
        // The permit is dropped here, which takes the request out of its queue.
        count(&mut self.lock().refused, (class.schema, level.clone(), Refusal::TimeOut.as_str()));
        Err(ApiError::too_many_requests())
    }

    /// Comes to the level; with a door to wait at if there is no seat yet.
    fn enter(
        &self,
        class: &Class,
        level: &Arc<str>,
        seats: usize,
    ) -> Result<(Ticket, Option<oneshot::Receiver<()>>), ApiError> {
        let now = self.now();
        let mut state = self.lock();
        // The level was there when the request was classified, and positions stay.
        let position = state.positions.iter().position(|name| name == level).unwrap_or(usize::MAX);
        match state.scheduler.arrive(position, class.flow, seats, now) {
            Arrival::Runs(ticket) => {
                count(&mut state.dispatched, (class.schema.clone(), level.clone()));
                Ok((ticket, None))
            }
            Arrival::Waits(ticket) => {
                let (sender, receiver) = oneshot::channel();
                state.doors.insert(ticket, sender);
                Ok((ticket, Some(receiver)))
            }
            Arrival::Refused(why) => {
                count(&mut state.refused, (class.schema.clone(), level.clone(), why.as_str()));
                Err(ApiError::too_many_requests())
            }
        }
    }

    fn leave(&self, ticket: Ticket) {
        let now = self.now();
        let mut state = self.lock();
        state.doors.remove(&ticket);
        let begun = state.scheduler.leave(ticket, now);
        state.open(begun);
    }

    /// The configuration, read again if its objects have changed.
    fn current(&self) -> Arc<Configuration> {
        let (schemas, levels) = (self.cache.resource(SCHEMAS), self.cache.resource(LEVELS));
        let revisions = Some((schemas.revision(), levels.revision()));
        let now = self.now();
        let mut state = self.lock();
        if state.read_at != revisions {
            let objects = |resource: &crate::cache::ResourceCache, name: &str| -> Vec<Value> {
                let items = resource.list(&format!("/{name}/"));
                items.iter().filter_map(|item| serde_json::from_slice(&item.bytes).ok()).collect()
            };
            let configuration = Configuration::new(&objects(&schemas, SCHEMAS), &objects(&levels, LEVELS));
            state.configure(configuration, now);
            state.read_at = revisions;
        }
        state.configuration.clone()
    }

    /// How much work a request is: lists cost by what they show, everything else is one seat.
    fn seats(&self, info: &RequestInfo) -> usize {
        let Some(path) = info.resource.as_ref().filter(|_| ["list", "watch"].contains(&info.verb)) else {
            return 1;
        };
        // A watch that starts from a revision sends no objects first.
        let initial =
            info.query.get("sendInitialEvents").is_some() || info.query.get("resourceVersion").is_none();
        if info.verb == "watch" && !initial {
            return 1;
        }
        let resource = if path.group.is_empty() {
            self.cache.known(&path.resource)
        } else {
            self.cache.known(&format!("{}.{}", path.resource, path.group))
        };
        let mut objects = resource.map_or(0, |resource| resource.len());
        let selects = ["labelSelector", "fieldSelector"].iter().any(|name| info.query.get(name).is_some());
        if let Some(limit) =
            info.query.get("limit").and_then(|limit| limit.parse().ok()).filter(|n| *n > 0 && !selects)
        {
            objects = objects.min(limit);
        }
        objects.div_ceil(OBJECTS_PER_SEAT).clamp(1, MAX_SEATS)
    }

    /// The text of its metrics.
    pub(crate) fn render(&self, out: &mut String) {
        let state = self.lock();
        let gauges: [(&str, &str, fn(&scheduler::Occupancy) -> usize); 4] = [
            ("apiserver_flowcontrol_current_executing_requests", "Requests that run.", |o| o.running),
            ("apiserver_flowcontrol_current_inqueue_requests", "Requests that wait.", |o| o.waiting),
            ("apiserver_flowcontrol_current_executing_seats", "Seats in use.", |o| o.seats_running),
            ("apiserver_flowcontrol_nominal_limit_seats", "Seats of the level.", |o| o.nominal),
        ];
        for (name, help, value) in gauges {
            family(out, name, "gauge", help);
            for (position, level) in state.positions.iter().enumerate() {
                let value = value(&state.scheduler.occupancy(position));
                let _ = writeln!(out, "{name}{{priority_level=\"{}\"}} {value}", escaped(level));
            }
        }
        family(
            out,
            "apiserver_flowcontrol_dispatched_requests_total",
            "counter",
            "Requests that were let in.",
        );
        for ((schema, level), value) in &state.dispatched {
            let labels = format!("flow_schema=\"{}\",priority_level=\"{}\"", escaped(schema), escaped(level));
            let _ = writeln!(out, "apiserver_flowcontrol_dispatched_requests_total{{{labels}}} {value}");
        }
        family(
            out,
            "apiserver_flowcontrol_rejected_requests_total",
            "counter",
            "Requests that were turned away.",
        );
        for ((schema, level, reason), value) in &state.refused {
            let labels = format!("flow_schema=\"{}\",priority_level=\"{}\"", escaped(schema), escaped(level));
            let _ = writeln!(
                out,
                "apiserver_flowcontrol_rejected_requests_total{{{labels},reason=\"{reason}\"}} {value}"
            );
        }
        const WAIT: &str = "apiserver_flowcontrol_request_wait_duration_seconds";
        family(out, WAIT, "histogram", "Seconds requests waited that had to.");
        self.wait.render(out, WAIT, "");
    }
}

/// Schemas and levels are objects of administrators; still, what was deleted long ago is not remembered for ever.
const MAX_COUNTED: usize = 1000;

fn count<K: Ord>(counts: &mut BTreeMap<K, u64>, key: K) {
    if counts.len() < MAX_COUNTED || counts.contains_key(&key) {
        *counts.entry(key).or_default() += 1;
    }
}
