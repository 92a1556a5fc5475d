use std::collections::{BTreeMap, BinaryHeap};

use super::*;

fn limited(shares: usize, queues: usize) -> Option<LevelConfig> {
    Some(LevelConfig::Limited {
        shares,
        lendable_percent: 0,
        borrowing_limit_percent: Some(0),
        queues,
        hand_size: 4.min(queues.max(1)),
        queue_length_limit: 50,
    })
}

fn lending(
    shares: usize,
    lendable_percent: usize,
    borrowing_limit_percent: Option<usize>,
) -> Option<LevelConfig> {
    Some(LevelConfig::Limited {
        shares,
        lendable_percent,
        borrowing_limit_percent,
        queues: 0,
        hand_size: 1,
        queue_length_limit: 0,
    })
}

fn scheduler(total: usize, configs: &[Option<LevelConfig>]) -> Scheduler {
    let mut scheduler = Scheduler::new(total);
    assert!(scheduler.configure(configs, 0.0).is_empty());
    scheduler
}

fn runs(arrival: Arrival) -> Ticket {
    match arrival {
        Arrival::Runs(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

#[test]
fn hands_are_dealt_without_repetition() {
    for flow in [0, 1, 12_345, u64::MAX, 0x9e37_79b9_7f4a_7c15] {
        let hand = deal(flow, 64, 6);
        let mut sorted = hand.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!((sorted.len(), sorted.iter().all(|card| *card < 64)), (6, true), "{hand:?}");
        assert_eq!(hand, deal(flow, 64, 6));
    }
    assert_eq!(deal(7, 3, 9).len(), 3);
    assert!(deal(7, 0, 3).is_empty());
}

#[test]
fn seats_queues_and_refusals() {
    let mut scheduler = scheduler(4, &[limited(1, 1), limited(1, 0), Some(LevelConfig::Exempt)]);
    let first = runs(scheduler.arrive(0, 1, 1, 0.0));
    let second = runs(scheduler.arrive(0, 1, 1, 0.0));
    let Arrival::Waits(third) = scheduler.arrive(0, 1, 1, 0.0) else { panic!("no seat is left") };
    let Arrival::Waits(fourth) = scheduler.arrive(0, 1, 1, 0.0) else { panic!("no seat is left") };
    // The other level has its own seats and no queue.
    let other = runs(scheduler.arrive(1, 1, 2, 0.0));
    assert_eq!(scheduler.arrive(1, 1, 1, 0.0), Arrival::Refused(Refusal::ConcurrencyLimit));
    for _ in 0..100 {
        runs(scheduler.arrive(2, 1, 1, 0.0));
    }
    let full: Vec<Arrival> = (0..60).map(|_| scheduler.arrive(0, 1, 1, 0.0)).collect();
    assert_eq!(full.iter().filter(|a| matches!(a, Arrival::Waits(_))).count(), 48);
    assert_eq!(full.last(), Some(&Arrival::Refused(Refusal::QueueFull)));
    assert_eq!(scheduler.leave(first, 1.0), [third]);
    // Who gives up while waiting makes no room and is not called.
    assert_eq!(scheduler.leave(fourth, 1.0), []);
    assert_eq!(scheduler.leave(fourth, 1.0), []);
    assert_eq!(scheduler.leave(second, 1.0).len(), 1);
    assert_eq!(scheduler.leave(other, 1.0), []);
    assert_eq!(scheduler.occupancy(1), Occupancy { running: 0, waiting: 0, seats_running: 0, nominal: 2 });
}

#[test]
fn large_requests_wait_for_all_their_seats() {
    let mut scheduler = scheduler(4, &[limited(1, 2)]);
    let small = runs(scheduler.arrive(0, 1, 1, 0.0));
    let Arrival::Waits(large) = scheduler.arrive(0, 2, 4, 0.0) else { panic!("three seats are not four") };
    assert_eq!(scheduler.leave(small, 1.0), [large]);
    assert_eq!(scheduler.occupancy(0).seats_running, 4);
    // One that wants more than there is gets all there is.
    scheduler.leave(large, 2.0);
    runs(scheduler.arrive(0, 3, 99, 2.0));
    assert_eq!(scheduler.occupancy(0).seats_running, 4);
}

#[test]
fn unused_seats_are_lent_and_come_back() {
    // 10 seats each; the first lends half, the second may borrow at most 3, the third nothing.
    let mut scheduler =
        scheduler(30, &[lending(1, 50, None), lending(1, 0, Some(30)), lending(1, 0, Some(0))]);
    let count = |scheduler: &mut Scheduler, level: usize| {
        let mut tickets = Vec::new();
        while let Arrival::Runs(ticket) = scheduler.arrive(level, 1, 1, 0.0) {
            tickets.push(ticket);
        }
        tickets
    };
    assert_eq!(count(&mut scheduler, 2).len(), 10);
    let borrowed = count(&mut scheduler, 1);
    assert_eq!(borrowed.len(), 13);
    // The lender is never refused what is its own.
    assert_eq!(count(&mut scheduler, 0).len(), 10);
    for ticket in &borrowed[..5] {
        scheduler.leave(*ticket, 1.0);
    }
    assert_eq!(count(&mut scheduler, 1).len(), 2, "its own ten are all it gets while the lender is busy");
}

#[test]
fn configuration_changes_under_load() {
    let mut scheduler = scheduler(2, &[limited(1, 4), limited(1, 4)]);
    let running = runs(scheduler.arrive(0, 1, 1, 0.0));
    let waiting: Vec<Arrival> = (0..6).map(|flow| scheduler.arrive(0, flow, 1, 0.0)).collect();
    assert!(waiting.iter().all(|arrival| matches!(arrival, Arrival::Waits(_))));
    // The second level goes, the first gets all seats and fewer queues.
    let begun = scheduler.configure(&[limited(1, 1), None], 1.0);
    assert_eq!((begun.len(), scheduler.occupancy(0).waiting), (1, 5));
    // No queues at all: what waits still gets its turn.
    assert!(scheduler.configure(&[limited(1, 0), None], 1.0).is_empty());
    let mut next = vec![running];
    next.extend(begun);
    let mut ended = 0;
    while let Some(ticket) = next.pop() {
        next.extend(scheduler.leave(ticket, 2.0));
        ended += 1;
    }
    assert_eq!((ended, scheduler.occupancy(0).running, scheduler.occupancy(0).waiting), (7, 0, 0));
}

#[test]
fn seats_held_for_long_count_while_they_are_held() {
    let mut scheduler = scheduler(10, &[limited(1, 64)]);
    let crowd: Vec<Arrival> = (0..40).map(|_| scheduler.arrive(0, 1, 1, 0.0)).collect();
    // A second later nothing of the crowd has ended, and somebody else comes.
    let Arrival::Waits(other) = scheduler.arrive(0, 987_654_321, 1, 1.0) else { panic!("no seat is free") };
    assert_eq!(scheduler.leave(runs(crowd[0]), 1.0), [other]);
}

/// A generator whose numbers a test can repeat (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// Something that happens, in microseconds; the heap is turned around.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Happening {
    Arrives { client: usize },
    Ends(Ticket),
}

struct Client {
    level: usize,
    flow: u64,
    /// Requests it keeps outstanding.
    outstanding: usize,
}

/// Lets clients send as soon as they are answered, for some seconds. Each request takes 5 to 15 ms. Answers with the
/// longest wait of each client in milliseconds, and how many of its requests ended.
fn simulate(scheduler: &mut Scheduler, clients: &[Client], seed: u64) -> Vec<(f64, usize)> {
    const END: u64 = 5_000_000;
    let mut random = Random(seed);
    let mut heap = BinaryHeap::new();
    let mut owners: BTreeMap<Ticket, (usize, u64)> = BTreeMap::new();
    let mut results = vec![(0.0f64, 0); clients.len()];
    for (client, of) in clients.iter().enumerate() {
        for _ in 0..of.outstanding {
            let at = random.below(100_000);
            heap.push((std::cmp::Reverse(at), Happening::Arrives { client }));
        }
    }
    while let Some((std::cmp::Reverse(at), happening)) = heap.pop() {
        if at > END {
            break;
        }
        let now = at as f64 / 1e6;
        let begun = match happening {
            Happening::Arrives { client } => {
                let of = &clients[client];
                match scheduler.arrive(of.level, of.flow, 1, now) {
                    Arrival::Runs(ticket) => {
                        owners.insert(ticket, (client, at));
                        vec![ticket]
                    }
                    Arrival::Waits(ticket) => {
                        owners.insert(ticket, (client, at));
                        Vec::new()
                    }
                    // A polite client tries again after a second.
                    Arrival::Refused(_) => {
                        heap.push((std::cmp::Reverse(at + 1_000_000), Happening::Arrives { client }));
                        Vec::new()
                    }
                }
            }
            Happening::Ends(ticket) => {
                let (client, _) = owners.remove(&ticket).expect("began before");
                results[client].1 += 1;
                heap.push((std::cmp::Reverse(at + 1), Happening::Arrives { client }));
                scheduler.leave(ticket, now)
            }
        };
        for ticket in begun {
            let (client, since) = owners[&ticket];
            results[client].0 = results[client].0.max((at - since) as f64 / 1e3);
            heap.push((std::cmp::Reverse(at + 5_000 + random.below(10_000)), Happening::Ends(ticket)));
        }
    }
    results
}

#[test]
fn a_noisy_client_delays_nobody_else() {
    for seed in 1..=5 {
        let levels = [limited(1, 64), limited(1, 64)];
        let mut scheduler = scheduler(40, &levels);
        let mut random = Random(seed * 7919);
        let mut clients = vec![
            // The noisy one, a quiet one beside it on the same level, and heartbeats of nodes on a level of their own.
            Client { level: 0, flow: random.below(u64::MAX), outstanding: 1000 },
            Client { level: 0, flow: random.below(u64::MAX), outstanding: 2 },
        ];
        for _ in 0..10 {
            clients.push(Client { level: 1, flow: random.below(u64::MAX), outstanding: 1 });
        }
        let results = simulate(&mut scheduler, &clients, seed);
        let (noisy, quiet) = (results[0], results[1]);
        assert!(noisy.1 > 5_000, "seats are not used: {noisy:?}");
        // A seat becomes free every half millisecond on average; a turn comes within some of them.
        assert!(quiet.0 < 50.0, "seed {seed}: the quiet client waited {} ms", quiet.0);
        assert!(quiet.1 > 400, "seed {seed}: only {} requests of the quiet client ended", quiet.1);
        for heartbeat in &results[2..] {
            assert_eq!(heartbeat.0, 0.0, "seed {seed}: a heartbeat waited");
        }
    }
}

#[test]
fn two_busy_clients_share_evenly() {
    for seed in 1..=3 {
        let mut scheduler = scheduler(10, &[limited(1, 16)]);
        let mut random = Random(seed * 104_729);
        let clients: Vec<Client> =
            (0..2).map(|_| Client { level: 0, flow: random.below(u64::MAX), outstanding: 30 }).collect();
        let results = simulate(&mut scheduler, &clients, seed);
        let (a, b) = (results[0].1 as f64, results[1].1 as f64);
        assert!((0.7..1.4).contains(&(a / b)), "seed {seed}: {a} against {b}");
    }
}
