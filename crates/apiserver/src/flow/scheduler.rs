//! Who works now, who waits, who is turned away: the state of all priority levels, without clock, locks or IO.
//!
//! ```text
//! arrive ──► runs ─────────────► finish ──► others begin to run
//!    │        ▲                    ▲
//!    ├──► waits in one of the level's queues ──► abandon (time is up, client gone)
//!    └──► refused (queue full, or a level without queues)
//! ```
//!
//! Each level has seats by its share of all seats. What it does not use, it lends up to a part; it takes its own back as
//! they become free. A flow is dealt a small hand of the level's queues and joins the shortest of them (shuffle
//! sharding), so that one busy flow rarely fills all queues of another. The queue that holds the fewest seats goes first;
//! among equals, queues take turns by the work they were given: each has a virtual time at which its next request would
//! begin if all queues shared the level evenly, and the earliest goes first (fair queuing for server requests, KEP-1040).
//! Upstream goes by virtual time alone, which learns of a request's work when it ends: who holds seats for long, such as
//! with a body that does not come, would be given the next ones too.
//!
//! Times are seconds as the caller counts them. Two levels never wait for each other.

use std::collections::{HashMap, VecDeque};

/// Work that is assumed of a request when it begins, in seconds of one seat, so that a queue does not get all seats of
/// one moment. What it really takes is counted while it runs.
const GUESSED_SECONDS: f64 = 0.003;

/// How a level is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum LevelConfig {
    /// Everything runs at once.
    Exempt,
    /// Seats are shared out.
    Limited {
        /// Share of all seats, against those of the other levels.
        shares: usize,
        /// How much of its seats others may use.
        lendable_percent: usize,
        /// How much more than its seats it may use; without it, whatever others lend.
        borrowing_limit_percent: Option<usize>,
        /// 0: what finds no seat is refused.
        queues: usize,
        /// Queues a flow is dealt.
        hand_size: usize,
        /// Requests in one queue.
        queue_length_limit: usize,
    },
}

/// A request that was let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// What becomes of an arriving request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// It has its seats.
    Runs(Ticket),
    /// It is in a queue.
    Waits(Ticket),
    /// There is no room.
    Refused(Refusal),
}

/// Why a request is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Refusal {
    /// The queue it belongs into is full.
    QueueFull,
    /// The level has no queues and no seat.
    ConcurrencyLimit,
    /// It waited as long as a request may.
    TimeOut,
}

impl Refusal {
    /// Upstream's word for it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::ConcurrencyLimit => "concurrency-limit",
            Self::TimeOut => "time-out",
        }
    }
}

/// Where a request is.
#[derive(Clone, Copy, Debug)]
struct Request {
    level: usize,
    /// `None` on a level without queues.
    queue: Option<usize>,
    flow: u64,
    seats: usize,
    running: bool,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Ticket>,
    /// Virtual time at which its next request would begin.
    next_begin: f64,
    running: usize,
    seats_running: usize,
    seats_waiting: usize,
}

impl Queue {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running == 0
    }
}

#[derive(Debug)]
struct Level {
    config: LevelConfig,
    /// Its own seats.
    nominal: usize,
    /// Seats it keeps for itself, also when it does not use them.
    kept: usize,
    /// The most seats it may use.
    most: usize,
    seats_running: usize,
    running: usize,
    queues: Vec<Queue>,
    waiting: usize,
    /// Virtual time: seconds of one seat that each busy queue has been served.
    virtual_now: f64,
    virtual_at: f64,
}

/// All levels.
#[derive(Debug)]
pub(super) struct Scheduler {
    total: usize,
    levels: Vec<Level>,
    requests: HashMap<Ticket, Request>,
    next: u64,
}

/// How many requests run and wait on a level, and its seats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Occupancy {
    pub(super) running: usize,
    pub(super) waiting: usize,
    pub(super) seats_running: usize,
    pub(super) nominal: usize,
}

impl Scheduler {
    /// `total` seats for all limited levels.
    pub(super) fn new(total: usize) -> Self {
        Self { total, levels: Vec::new(), requests: HashMap::new(), next: 0 }
    }

    /// Sets levels up. A level keeps its position for good; one that is `None` is no longer asked for and only lets its
    /// requests end. Answers with the tickets that now run.
    pub(super) fn configure(&mut self, configs: &[Option<LevelConfig>], now: f64) -> Vec<Ticket> {
        let shares = |config: &Option<LevelConfig>| match config {
            Some(LevelConfig::Limited { shares, .. }) => *shares,
            _ => 0,
        };
        let sum = configs.iter().map(shares).sum::<usize>().max(1);
        for (i, config) in configs.iter().enumerate() {
            let config = match (config, self.levels.get(i)) {
                (Some(config), _) => config.clone(),
                // What still waits there goes on by the old rules, with nothing of its own.
                (None, Some(level)) => level.config.clone(),
                (None, None) => LevelConfig::Exempt,
            };
            let nominal = (self.total * shares(&configs[i])).div_ceil(sum);
            let level = Level::new(config, nominal, self.total, now);
            match self.levels.get_mut(i) {
                Some(known) => known.become_like(level),
                None => self.levels.push(level),
            }
        }
        self.deal_again();
        self.begin_waiting(now)
    }

    /// Puts what waits into queues that exist.
    fn deal_again(&mut self) {
        for (i, level) in self.levels.iter_mut().enumerate() {
            let mut waiting: Vec<Ticket> =
                level.queues.iter_mut().flat_map(|q| q.waiting.drain(..)).collect();
            waiting.sort_unstable();
            let wanted = level.config.queues().max(usize::from(!waiting.is_empty()));
            level.waiting = 0;
            level.queues.resize_with(wanted, Queue::default);
            for queue in &mut level.queues {
                queue.seats_waiting = 0;
                (queue.running, queue.seats_running) = (0, 0);
            }
            for request in self.requests.values_mut().filter(|r| r.level == i && r.running) {
                request.queue =
                    request.queue.map(|_| level.choose_queue(request.flow)).filter(|_| wanted > 0);
                if let Some(queue) = request.queue.and_then(|q| level.queues.get_mut(q)) {
                    queue.running += 1;
                    queue.seats_running += request.seats;
                }
            }
            for ticket in waiting {
                if let Some(request) = self.requests.get_mut(&ticket) {
                    let queue = level.choose_queue(request.flow);
                    request.queue = Some(queue);
                    level.enqueue(queue, ticket, request.seats);
                }
            }
        }
    }

    /// A request of a flow comes to a level.
    pub(super) fn arrive(&mut self, level_index: usize, flow: u64, seats: usize, now: f64) -> Arrival {
        let ticket = Ticket(self.next);
        let Some(level) = self.levels.get_mut(level_index) else {
            return Arrival::Refused(Refusal::ConcurrencyLimit);
        };
        let (queues, limit) = match level.config {
            LevelConfig::Exempt => (None, 0),
            LevelConfig::Limited { queues, queue_length_limit, .. } => (Some(queues), queue_length_limit),
        };
        // A request larger than its level would wait for ever.
        let seats = seats.clamp(1, level.most.max(1));
        let mut request = Request { level: level_index, queue: None, flow, seats, running: false };
        level.advance(now);
        match queues {
            None => self.begin(ticket, request),
            Some(0) => {
                if !self.has_room(level_index, seats) {
                    return Arrival::Refused(Refusal::ConcurrencyLimit);
                }
                self.begin(ticket, request);
            }
            Some(_) => {
                let queue = level.choose_queue(flow);
                if level.queues.get(queue).is_some_and(|q| q.waiting.len() >= limit) {
                    return Arrival::Refused(Refusal::QueueFull);
                }
                request.queue = Some(queue);
                self.requests.insert(ticket, request);
                level.enqueue(queue, ticket, seats);
                self.next += 1;
                let begun = self.begin_level(level_index, now);
                // Room that was there before is used up by those who waited for it, so nobody else begins here.
                return if begun.contains(&ticket) { Arrival::Runs(ticket) } else { Arrival::Waits(ticket) };
            }
        }
        self.next += 1;
        Arrival::Runs(ticket)
    }

    /// A request has ended or is no longer waited for. Answers with the tickets that now run.
    pub(super) fn leave(&mut self, ticket: Ticket, now: f64) -> Vec<Ticket> {
        let Some(request) = self.requests.remove(&ticket) else { return Vec::new() };
        let Some(level) = self.levels.get_mut(request.level) else { return Vec::new() };
        level.advance(now);
        let queue = request.queue.and_then(|q| level.queues.get_mut(q));
        match (request.running, queue) {
            (true, queue) => {
                level.running -= 1;
                level.seats_running -= request.seats;
                if let Some(queue) = queue {
                    queue.running -= 1;
                    queue.seats_running -= request.seats;
                    // What it really took has been counted as it passed.
                    queue.next_begin -= GUESSED_SECONDS * request.seats as f64;
                }
            }
            (false, Some(queue)) => {
                if let Some(at) = queue.waiting.iter().position(|waiting| *waiting == ticket) {
                    queue.waiting.remove(at);
                    queue.seats_waiting -= request.seats;
                    level.waiting -= 1;
                }
            }
            (false, None) => {}
        }
        self.begin_waiting(now)
    }

    /// What a level holds.
    pub(super) fn occupancy(&self, level: usize) -> Occupancy {
        self.levels.get(level).map_or_else(Occupancy::default, |level| Occupancy {
            running: level.running,
            waiting: level.waiting,
            seats_running: level.seats_running,
            nominal: level.nominal,
        })
    }

    /// Whether a level may use more seats: its own always, others' as long as what is kept stays free.
    fn has_room(&self, index: usize, seats: usize) -> bool {
        let Some(level) = self.levels.get(index) else { return false };
        let wanted = level.seats_running + seats;
        if wanted <= level.nominal {
            return true;
        }
        if level.seats_running == 0 {
            // One request at a time is always possible, however small the share.
            return true;
        }
        let others: usize = self
            .levels
            .iter()
            .enumerate()
            .filter(|(i, other)| *i != index && other.config != LevelConfig::Exempt)
            .map(|(_, other)| other.seats_running.max(other.kept))
            .sum();
        wanted <= level.most && wanted + others <= self.total
    }

    fn begin(&mut self, ticket: Ticket, mut request: Request) {
        if let Some(level) = self.levels.get_mut(request.level) {
            level.running += 1;
            level.seats_running += request.seats;
        }
        request.running = true;
        self.requests.insert(ticket, request);
    }

    fn begin_waiting(&mut self, now: f64) -> Vec<Ticket> {
        (0..self.levels.len()).flat_map(|level| self.begin_level(level, now)).collect()
    }

    fn begin_level(&mut self, index: usize, now: f64) -> Vec<Ticket> {
        let mut begun = Vec::new();
        while let Some((queue, ticket)) = self.levels.get_mut(index).and_then(|level| level.next(now)) {
            let Some(request) = self.requests.get(&ticket).copied() else { break };
            if !self.has_room(index, request.seats) {
                break;
            }
            if let Some(queue) = self.levels.get_mut(index).and_then(|level| level.dequeue(queue)) {
                queue.running += 1;
                queue.seats_running += request.seats;
                queue.seats_waiting -= request.seats;
                queue.next_begin += GUESSED_SECONDS * request.seats as f64;
            }
            self.begin(ticket, request);
            begun.push(ticket);
        }
        begun
    }
}

impl LevelConfig {
    fn queues(&self) -> usize {
        match self {
            Self::Exempt => 0,
            Self::Limited { queues, .. } => *queues,
        }
    }
}

impl Level {
    fn new(config: LevelConfig, nominal: usize, total: usize, now: f64) -> Self {
        let (kept, most) = match &config {
            LevelConfig::Exempt => (0, usize::MAX),
            LevelConfig::Limited { lendable_percent, borrowing_limit_percent, .. } => {
                let lent = nominal * lendable_percent / 100;
                let borrowed = borrowing_limit_percent.map_or(total, |percent| nominal * percent / 100);
                (nominal - lent.min(nominal), nominal.saturating_add(borrowed).min(total).max(1))
            }
        };
        Self {
            config,
            nominal,
            kept,
            most,
            seats_running: 0,
            running: 0,
            queues: Vec::new(),
            waiting: 0,
            virtual_now: 0.0,
            virtual_at: now,
        }
    }

    /// Takes over another level's rules and keeps its own requests.
    fn become_like(&mut self, other: Self) {
        self.config = other.config;
        (self.nominal, self.kept, self.most) = (other.nominal, other.kept, other.most);
    }

    /// Lets virtual time pass: the seats in use are shared by the queues that have something to do.
    fn advance(&mut self, now: f64) {
        let passed = (now - self.virtual_at).max(0.0);
        self.virtual_at = now;
        let busy = self.queues.iter().filter(|queue| !queue.is_idle()).count();
        if busy > 0 && passed > 0.0 {
            self.virtual_now += passed * self.seats_running as f64 / busy as f64;
            for queue in &mut self.queues {
                queue.next_begin += passed * queue.seats_running as f64;
            }
        }
    }

    /// The queue of a flow: of the hand it is dealt, the one with the least work.
    fn choose_queue(&self, flow: u64) -> usize {
        let hand_size = match self.config {
            LevelConfig::Limited { hand_size, .. } => hand_size,
            LevelConfig::Exempt => 1,
        };
        let hand = deal(flow, self.queues.len(), hand_size);
        let work = |queue: &usize| self.queues.get(*queue).map_or(0, |q| q.seats_running + q.seats_waiting);
        hand.into_iter().min_by_key(work).unwrap_or(0)
    }

    fn enqueue(&mut self, queue: usize, ticket: Ticket, seats: usize) {
        let virtual_now = self.virtual_now;
        if let Some(queue) = self.queues.get_mut(queue) {
            if queue.is_idle() {
                // Old debts are forgiven.
                queue.next_begin = virtual_now;
            } else if queue.waiting.is_empty() {
                // Having had nothing to ask for earns no credit.
                queue.next_begin = queue.next_begin.max(virtual_now);
            }
            queue.waiting.push_back(ticket);
            queue.seats_waiting += seats;
            self.waiting += 1;
        }
    }

    /// The request that is to begin next.
    fn next(&mut self, now: f64) -> Option<(usize, Ticket)> {
        if self.waiting == 0 {
            return None;
        }
        self.advance(now);
        let waiting = self.queues.iter().enumerate().filter_map(|(i, q)| Some((i, q, *q.waiting.front()?)));
        let first = waiting.min_by(|(_, a, a_ticket), (_, b, b_ticket)| {
            let by_seats = a.seats_running.cmp(&b.seats_running);
            by_seats.then(a.next_begin.total_cmp(&b.next_begin)).then(a_ticket.cmp(b_ticket))
        })?;
        Some((first.0, first.2))
    }

    fn dequeue(&mut self, queue: usize) -> Option<&mut Queue> {
        let queue = self.queues.get_mut(queue)?;
        queue.waiting.pop_front()?;
        self.waiting -= 1;
        Some(queue)
    }
}

/// Deals `hand` different numbers below `deck`, the same ones for the same flow.
fn deal(flow: u64, deck: usize, hand: usize) -> Vec<usize> {
    let mut rest = flow;
    let mut cards: Vec<usize> = Vec::with_capacity(hand.min(deck));
    for dealt in 0..hand.min(deck) {
        let left = (deck - dealt) as u64;
        // Below the number of cards left, so it fits.
        let mut card = (rest % left) as usize;
        rest /= left;
        // The card is counted among those not dealt yet.
        let mut sorted = cards.clone();
        sorted.sort_unstable();
        for taken in sorted {
            card += usize::from(card >= taken);
        }
        cards.push(card);
    }
    cards
}

#[cfg(test)]
mod tests;
