//! Formats of texts and numbers (`format`), those Kubernetes supports in custom resources; others are not looked at.
//!
//! Source of the list: `k8s.io/kube-openapi/pkg/validation/strfmt`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use base64::Engine as _;
use jiff::Timestamp;
use jiff::civil::Date;
use regex::Regex;
use serde_json::Value;

/// Whether a value keeps its format; one of another type than the format is for does.
pub(super) fn holds(format: &str, value: &Value) -> bool {
    match value {
        Value::String(text) => text_holds(format, text),
        Value::Number(number) => match format {
            "int32" => whole(number).is_none_or(|n| (-2_147_483_648.0..=2_147_483_647.0).contains(&n)),
            "int64" => number.is_i64() || whole(number).is_none_or(|n| n.abs() < 9.223_372_036_854_775e18),
            "float" => number.as_f64().is_none_or(|n| n.abs() <= f64::from(f32::MAX)),
            _ => true,
        },
        _ => true,
    }
}

fn whole(number: &serde_json::Number) -> Option<f64> {
    number.as_f64()
}

fn text_holds(format: &str, text: &str) -> bool {
    match format.replace('-', "").as_str() {
        "datetime" => text.parse::<Timestamp>().is_ok(),
        "date" => text.len() == 10 && text.parse::<Date>().is_ok(),
        "byte" => base64::engine::general_purpose::STANDARD.decode(text).is_ok(),
        "duration" => duration_seconds(text).is_some(),
        "ipv4" => text.parse::<Ipv4Addr>().is_ok(),
        "ipv6" => text.parse::<Ipv6Addr>().is_ok(),
        "ip" => text.parse::<IpAddr>().is_ok(),
        "cidr" => cidr(text),
        "mac" => MAC.is_match(text),
        "uuid" => UUID.is_match(text),
        "uuid3" => UUID.is_match(text) && uuid_version(text) == b'3',
        "uuid4" => UUID.is_match(text) && uuid_version(text) == b'4',
        "uuid5" => UUID.is_match(text) && uuid_version(text) == b'5',
        "email" => EMAIL.is_match(text),
        "hostname" => text.len() <= 255 && HOSTNAME.is_match(text),
        "uri" => URI.is_match(text),
        _ => true,
    }
}

fn expression(pattern: &str) -> Regex {
    // The patterns stand below and the tests build each of them.
    Regex::new(pattern).unwrap_or_else(|error| unreachable!("{pattern}: {error}"))
}

static MAC: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"^([0-9A-Fa-f]{2}([:-])[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){4}|([0-9A-Fa-f]{4}\.){2}[0-9A-Fa-f]{4})$",
    )
});
static UUID: LazyLock<Regex> = LazyLock::new(|| {
    expression(r"^[0-9A-Fa-f]{8}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{4}-?[0-9A-Fa-f]{12}$")
});
static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    expression(r#"^("[^"]+"|[^\s@<>,;:\\"\[\]()]+)@[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?$"#)
});
static HOSTNAME: LazyLock<Regex> = LazyLock::new(|| {
    expression(
        r"^([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.?$",
    )
});
static URI: LazyLock<Regex> = LazyLock::new(|| expression(r"^([A-Za-z][A-Za-z0-9+.-]*:[^\s]+|/[^\s]*)$"));

fn uuid_version(text: &str) -> u8 {
    text.bytes().filter(|b| *b != b'-').nth(12).unwrap_or_default()
}

fn cidr(text: &str) -> bool {
    let Some((address, length)) = text.split_once('/') else { return false };
    let plain = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let (Ok(address), Ok(length), true) = (address.parse::<IpAddr>(), length.parse::<u8>(), plain) else {
        return false;
    };
    length <= if address.is_ipv4() { 32 } else { 128 }
}

/// A duration as Go writes it: `1h30m`, `1.5s`, `-2ms`; in seconds.
pub(super) fn duration_seconds(text: &str) -> Option<f64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    match rest {
        "" => return None,
        "0" => return Some(0.0),
        _ => {}
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[unit_end..];
    }
    // Sixty-four bits of nanoseconds, as in Go.
    (total < 9.2e9).then_some(sign * total)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn formats() {
        let rows = [
            ("date-time", json!("2024-01-02T03:04:05Z"), true),
            ("date-time", json!("2024-01-02T03:04:05.678+02:00"), true),
            ("datetime", json!("2024-01-02"), false),
            ("date", json!("2024-02-29"), true),
            ("date", json!("2023-02-29"), false),
            ("byte", json!("aGk="), true),
            ("byte", json!("a?"), false),
            ("duration", json!("1h30m"), true),
            ("duration", json!("1.5s"), true),
            ("duration", json!("0"), true),
            ("duration", json!("1"), false),
            ("duration", json!(""), false),
            ("duration", json!("-2ms"), true),
            ("duration", json!("1 day"), false),
            ("ipv4", json!("10.0.0.1"), true),
            ("ipv4", json!("10.0.0.256"), false),
            ("ipv6", json!("fe80::1"), true),
            ("ipv6", json!("10.0.0.1"), false),
            ("cidr", json!("10.0.0.0/8"), true),
            ("cidr", json!("10.0.0.0/33"), false),
            ("cidr", json!("10.0.0.0/+8"), false),
            ("mac", json!("00:11:22:aa:bb:cc"), true),
            ("mac", json!("00:11:22"), false),
            ("uuid", json!("550e8400-e29b-41d4-a716-446655440000"), true),
            ("uuid4", json!("550e8400-e29b-41d4-a716-446655440000"), true),
            ("uuid3", json!("550e8400-e29b-41d4-a716-446655440000"), false),
            ("uuid5", json!("x"), false),
            ("email", json!("a@example.com"), true),
            ("email", json!("a b@example.com"), false),
            ("hostname", json!("a-b.example.com"), true),
            ("hostname", json!("-a"), false),
            ("uri", json!("https://example.com/x?y"), true),
            ("uri", json!("example"), false),
            ("int32", json!(2_147_483_647), true),
            ("int32", json!(2_147_483_648_i64), false),
            ("int64", json!(i64::MAX), true),
            ("float", json!(1e300), false),
            ("double", json!(1e300), true),
            ("isbn", json!("anything"), true),
            ("int32", json!("text is not its business"), true),
        ];
        for (format, value, expected) in rows {
            assert_eq!(holds(format, &value), expected, "{format}: {value}");
        }
    }
}
