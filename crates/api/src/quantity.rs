//! Resource quantities: `100m`, `1.5`, `64Mi`, `2e3`.
//!
//! A quantity is an exact decimal number with a preferred way of writing it. Here it is a whole number of nano units,
//! which is the finest step the API knows; anything finer is rounded up, as upstream does
//! (`k8s.io/apimachinery/pkg/api/resource`).

use std::fmt;
use std::str::FromStr;

const NANO: i128 = 1_000_000_000;
/// Longer texts are refused before any arithmetic: the longest sensible one has about 30 characters.
const MAX_LENGTH: usize = 64;

/// How a quantity likes to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    DecimalSi,
    BinarySi,
    DecimalExponent,
}

/// A resource quantity. Compares by value: `1000m` equals `1`.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// Not of the form number and suffix.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The suffix is none of the known ones.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number of units, written decimally.
    pub fn from_units(units: i64) -> Self {
        Self { nanos: i128::from(units) * NANO, format: Format::DecimalSi }
    }

    /// A whole number of bytes, written with `Ki`, `Mi`, ….
    pub fn from_bytes(bytes: i64) -> Self {
        Self { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// A whole number of thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// Reads a quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        if text.is_empty() || text.len() > MAX_LENGTH {
            return Err(QuantityError::Format);
        }
        let (negative, unsigned) = match text.as_bytes()[0] {
            b'-' => (true, &text[1..]),
            b'+' => (false, &text[1..]),
            _ => (false, text),
        };
        let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || (whole.is_empty() && fraction.is_empty()) {
            return Err(QuantityError::Format);
        }
        let (scale, format) = parse_suffix(suffix)?;
        let magnitude = scaled_nanos(whole, fraction, scale);
        Ok(Self { nanos: if negative { -magnitude } else { magnitude }, format })
    }

    /// Value in whole units, rounded up.
    pub fn value(self) -> i128 {
        div_ceil(self.nanos, NANO)
    }

    /// Value in thousandths, rounded up.
    pub fn milli(self) -> i128 {
        div_ceil(self.nanos, NANO / 1000)
    }

    /// Below zero.
    pub fn is_negative(self) -> bool {
        self.nanos < 0
    }

    /// Exactly zero.
    pub fn is_zero(self) -> bool {
        self.nanos == 0
    }

    /// Sum; keeps the way of writing of the left side.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_add(other.nanos), format: self.format }
    }

    /// Difference; keeps the way of writing of the left side.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos), format: self.format }
    }
}

/// What the number is multiplied with: `factor * 10^exponent`.
struct Scale {
    factor: i128,
    exponent: i32,
}

fn parse_suffix(suffix: &str) -> Result<(Scale, Format), QuantityError> {
    let decimal = |exponent| Ok((Scale { factor: 1, exponent }, Format::DecimalSi));
    let binary = |power: u32| Ok((Scale { factor: 1i128 << (10 * power), exponent: 0 }, Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError::Suffix)?;
            let exponent = i32::from_str(digits).map_err(|_| QuantityError::Suffix)?;
            Ok((Scale { factor: 1, exponent: exponent.clamp(-64, 64) }, Format::DecimalExponent))
        }
    }
}

/// Largest magnitude kept: upstream caps at 2^63-1 units as well.
const MAX_NANOS: i128 = i64::MAX as i128 * NANO;

fn scaled_nanos(whole: &str, fraction: &str, scale: Scale) -> i128 {
    let mut mantissa: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        mantissa = mantissa.saturating_mul(10).saturating_add(i128::from(digit - b'0'));
    }
    mantissa = mantissa.saturating_mul(scale.factor);
    let exponent = scale.exponent + 9 - fraction.len() as i32;
    let nanos = if exponent >= 0 {
        mantissa.saturating_mul(10i128.checked_pow(exponent as u32).unwrap_or(i128::MAX))
    } else {
        match 10i128.checked_pow(exponent.unsigned_abs()) {
            Some(divisor) => div_ceil(mantissa, divisor),
            None => i128::from(mantissa > 0),
        }
    };
    nanos.min(MAX_NANOS)
}

fn div_ceil(value: i128, divisor: i128) -> i128 {
    value.div_euclid(divisor) + i128::from(value.rem_euclid(divisor) != 0)
}

impl FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(text: &str) -> Result<Self, QuantityError> {
        Self::parse(text)
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl fmt::Display for Quantity {
    /// The canonical form: the largest suffix that leaves a whole number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.nanos < 0 { "-" } else { "" };
        let magnitude = self.nanos.unsigned_abs();
        let nano = NANO as u128;
        if magnitude == 0 {
            return f.write_str("0");
        }
        // Binary suffixes are only for whole numbers of at least 1024; 0.5Gi becomes 512Mi on its own.
        if self.format == Format::BinarySi && magnitude.is_multiple_of(nano) && magnitude >= 1024 * nano {
            let units = magnitude / nano;
            let power = (units.trailing_zeros() / 10).min(6);
            let suffix = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][power as usize];
            return write!(f, "{sign}{}{suffix}", units >> (10 * power));
        }
        let mut exponent: i32 = -9;
        let mut digits = magnitude;
        while digits.is_multiple_of(1000) && exponent < 18 {
            digits /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 {
                write!(f, "{sign}{digits}")
            } else {
                write!(f, "{sign}{digits}e{exponent}")
            };
        }
        let suffix = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"][((exponent + 9) / 3) as usize];
        write!(f, "{sign}{digits}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_form() {
        let rows = [
            ("0", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1.5Gi", "1536Mi"),
            ("1024Ki", "1Mi"),
            ("1023", "1023"),
            ("0.5Ki", "512"),
            ("1k", "1k"),
            ("1500", "1500"),
            ("2000", "2k"),
            ("1e3", "1e3"),
            ("-5", "-5"),
            ("+5", "5"),
            (".5", "500m"),
            ("5.", "5"),
            ("0.0000000001", "1n"),
            ("12E", "9223372036854775807"),
        ];
        for (text, expected) in rows {
            assert_eq!(Quantity::parse(text).map(|q| q.to_string()), Ok(expected.to_owned()), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in ["", "abc", "1..2", "1.2.3", "-", "1Kb", "1e", "1ee3", "0x10", "1 Gi", "--1", "."] {
            assert!(Quantity::parse(text).is_err(), "{text}");
        }
        assert!(Quantity::parse(&"9".repeat(1000)).is_err());
    }

    #[test]
    fn rounding_is_up() {
        let rows = [("1100u", 1, 2), ("1500m", 2, 1500), ("-1500m", -1, -1500), ("1n", 1, 1)];
        for (text, value, milli) in rows {
            let quantity = Quantity::parse(text).expect("a quantity");
            assert_eq!((quantity.value(), quantity.milli()), (value, milli), "{text}");
        }
    }

    #[test]
    fn compares_by_value() {
        let parse = |t| Quantity::parse(t).expect("a quantity");
        assert_eq!(parse("1000m"), parse("1"));
        assert!(parse("1Gi") > parse("1G"));
        assert!(parse("1e10") < parse("1Ti"));
    }
}
