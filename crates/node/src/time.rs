//! Points in time. Inside the node they are nanoseconds since the epoch, as CRI has them; the API has whole seconds.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// Nanoseconds of a second.
pub(crate) const SECOND: i64 = 1_000_000_000;

/// The wall clock in nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// As the API shows it: `metav1.Time` is serialised in whole seconds.
pub(crate) fn time(nanos: i64) -> Time {
    Time(Timestamp::from_second(nanos.div_euclid(SECOND)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// `None` for the zero that CRI uses as "not yet".
pub(crate) fn time_if_set(nanos: i64) -> Option<Time> {
    (nanos != 0).then(|| time(nanos))
}

/// As leases show it.
pub(crate) fn micro_time(nanos: i64) -> MicroTime {
    MicroTime(Timestamp::from_microsecond(nanos.div_euclid(1000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// The way back.
pub(crate) fn nanos(time: &Time) -> i64 {
    i64::try_from(time.0.as_nanosecond()).unwrap_or(i64::MAX)
}

/// How long from `now` until `then`; nothing when it has passed.
pub(crate) fn until(now: i64, then: i64) -> Duration {
    Duration::from_nanos(u64::try_from(then.saturating_sub(now)).unwrap_or(0))
}

/// Seconds as nanoseconds.
pub(crate) fn seconds(seconds: i64) -> i64 {
    seconds.saturating_mul(SECOND)
}

/// A duration as Go prints it in messages: `1.234s`, `12ms`, `1m30s`.
pub(crate) fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds >= 60 {
        let (hours, minutes, rest) = (seconds / 3600, seconds % 3600 / 60, seconds % 60);
        return if hours > 0 { format!("{hours}h{minutes}m{rest}s") } else { format!("{minutes}m{rest}s") };
    }
    if seconds >= 1 {
        let text = format!("{:.3}", duration.as_secs_f64());
        return format!("{}s", text.trim_end_matches('0').trim_end_matches('.'));
    }
    if duration.as_millis() >= 1 {
        format!("{}ms", duration.as_millis())
    } else {
        format!("{}µs", duration.as_micros())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_look_like_gos() {
        for (millis, text) in
            [(5, "5ms"), (1234, "1.234s"), (10_000, "10s"), (40_000, "40s"), (80_000, "1m20s")]
        {
            assert_eq!(go_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(go_duration(Duration::from_secs(300)), "5m0s");
    }

    #[test]
    fn times_are_whole_seconds() {
        assert_eq!(nanos(&time(5 * SECOND + 7)), 5 * SECOND);
        assert_eq!(time_if_set(0), None);
    }
}
