//! Durations of many like operations, and what is said about them.

use std::time::Duration;

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
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(durations: I) -> Self {
        let mut sorted: Vec<Duration> = durations.into_iter().collect();
        sorted.sort();
        Self { sorted }
    }
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
}
