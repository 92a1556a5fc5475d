//! Durations of many like operations, and what is said about them.
//!
//! `Samples` keeps every one and is exact. `Histogram` takes millions in a few kilobytes, for what
//! happens too often to be remembered one by one.

use std::time::Duration;

use crate::report::Measure;

/// A set of measured durations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    sorted: Vec<Duration>,
}

impl Samples {
    /// The duration that `percent` of the samples do not exceed, by nearest rank: always one that was
    /// measured, never a mean of two. `None` without samples.
    pub(crate) fn percentile(&self, percent: f64) -> Option<Duration> {
        let count = self.sorted.len();
        let rank = (percent * count as f64 / 100.0).ceil() as usize;
        self.sorted.get(rank.clamp(1, count.max(1)) - 1).copied()
    }

    /// A percentile in milliseconds; not a number without samples.
    pub(crate) fn percentile_ms(&self, percent: f64) -> f64 {
        self.percentile(percent).map_or(f64::NAN, milliseconds)
    }

    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    /// Median and 99th percentile.
    pub(crate) fn measures(&self, what: &str) -> Vec<Measure> {
        let percentile = |name: &str, percent: f64| {
            Measure::lower(format!("{what}, {name}"), "ms", self.percentile_ms(percent))
        };
        vec![percentile("p50", 50.0), percentile("p99", 99.0)]
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort();
        Self { sorted }
    }
}

/// Steps per doubling of a histogram: values are told apart to a thirty-second part of themselves.
const STEPS: u64 = 32;
/// Microseconds up to this are buckets of their own; above, buckets grow with the value.
const EXACT: u64 = STEPS * 2;
/// Doublings above the exact part: the last bucket begins after two hours.
const DOUBLINGS: u64 = 27;
const BUCKETS: u64 = EXACT + DOUBLINGS * STEPS;

/// Counts of durations in buckets whose width grows with the duration. Percentiles are at most three
/// percent too low; the longest is exact.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    longest: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: vec![0; BUCKETS as usize], count: 0, longest: Duration::ZERO }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket(micros) as usize] += 1;
        self.count += 1;
        self.longest = self.longest.max(duration);
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.count += other.count;
        self.longest = self.longest.max(other.longest);
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The longest duration, in milliseconds; not a number when there is none.
    pub(crate) fn longest_ms(&self) -> f64 {
        if self.count == 0 { f64::NAN } else { milliseconds(self.longest) }
    }

    /// A percentile by nearest rank in milliseconds; not a number when there is none.
    pub(crate) fn percentile_ms(&self, percent: f64) -> f64 {
        let rank = ((percent * self.count as f64 / 100.0).ceil() as u64).max(1);
        let mut below = 0;
        for (index, count) in (0..).zip(&self.buckets) {
            below += count;
            if below >= rank {
                return lowest(index) as f64 / 1000.0;
            }
        }
        f64::NAN
    }
}

/// The bucket of a number of microseconds.
fn bucket(micros: u64) -> u64 {
    if micros < EXACT {
        return micros;
    }
    let shift = u64::from(micros.ilog2() - EXACT.ilog2() + 1);
    (EXACT + (shift - 1) * STEPS + (micros >> shift) - STEPS).min(BUCKETS - 1)
}

/// The fewest microseconds that fall into a bucket.
fn lowest(bucket: u64) -> u64 {
    if bucket < EXACT {
        return bucket;
    }
    let (doubling, step) = ((bucket - EXACT) / STEPS, (bucket - EXACT) % STEPS);
    (STEPS + step) << (doubling + 1)
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(milliseconds: &[u64]) -> Samples {
        milliseconds.iter().map(|&ms| Duration::from_millis(ms)).collect()
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let hundred: Vec<u64> = (1..=100).rev().collect();
        let rows: [(&str, &[u64], f64, f64); 8] = [
            ("one sample is every percentile", &[7], 50.0, 7.0),
            ("one sample, high", &[7], 99.0, 7.0),
            ("lowest", &[3, 1, 2], 0.0, 1.0),
            ("highest", &[3, 1, 2], 100.0, 3.0),
            ("median of two is the lower", &[10, 20], 50.0, 10.0),
            ("median of hundred", &hundred, 50.0, 50.0),
            ("p99 of hundred", &hundred, 99.0, 99.0),
            ("p99 of few is the highest", &[1, 2, 3, 4], 99.0, 4.0),
        ];
        for (name, values, percent, expected) in rows {
            assert_eq!(samples(values).percentile_ms(percent), expected, "{name}");
        }
    }

    #[test]
    fn nothing_measured_is_not_a_number() {
        assert_eq!(Samples::default().percentile(50.0), None);
        assert!(Samples::default().percentile_ms(50.0).is_nan());
    }

    #[test]
    fn buckets_begin_where_they_say() {
        for index in 0..BUCKETS {
            assert_eq!(bucket(lowest(index)), index);
            assert!(index == 0 || bucket(lowest(index) - 1) == index - 1, "{index}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn a_histogram_is_three_percent_exact() {
        let all: Vec<u64> = (1..=100_000).collect();
        let (mut first, mut second) = (Histogram::default(), Histogram::default());
        for micros in &all {
            let half = if micros % 2 == 0 { &mut first } else { &mut second };
            half.add(Duration::from_micros(*micros));
        }
        first.merge(&second);
        assert_eq!(first.count(), 100_000);
        assert_eq!(first.longest_ms(), 100.0);
        for (percent, exact) in [(0.01, 0.01), (50.0, 50.0), (99.0, 99.0)] {
            let measured = first.percentile_ms(percent);
            assert!(measured <= exact && measured > exact * 0.96, "{percent}: {measured}");
        }
        assert!(Histogram::default().percentile_ms(50.0).is_nan());
        assert!(Histogram::default().longest_ms().is_nan());
    }
}
