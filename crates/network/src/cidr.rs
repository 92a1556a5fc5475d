//! An IPv4 range in prefix notation: pod ranges and service ranges.
//!
//! Small on purpose: exactly the questions this crate asks. IPv6 will be a sibling, not a generic.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// A range like `10.42.0.0/16`. The host bits of the address are always zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ipv4Cidr {
    network: Ipv4Addr,
    prefix: u8,
}

/// A text or a pair that is not a range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an IPv4 range like 10.42.0.0/16")]
pub struct CidrError {
    text: String,
}

impl Ipv4Cidr {
    /// The range of `prefix` bits that contains `address`; host bits are cleared.
    ///
    /// # Errors
    /// When `prefix` is above 32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, CidrError> {
        if prefix > 32 {
            return Err(CidrError { text: format!("{address}/{prefix}") });
        }
        Ok(Self::masked(address, prefix))
    }

    /// Like [`Self::new`] for a prefix known to be at most 32.
    pub(crate) fn masked(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = prefix.min(32);
        Self { network: Ipv4Addr::from_bits(address.to_bits() & mask(prefix)), prefix }
    }

    /// The first address, which names the range.
    pub fn network(&self) -> Ipv4Addr {
        self.network
    }

    /// How many leading bits are fixed.
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// How many addresses the range has, network and broadcast address included.
    pub fn size(&self) -> u64 {
        1 << (32 - u32::from(self.prefix))
    }

    /// The `index`th address, counted from the network address, if the range has so many.
    pub fn nth(&self, index: u32) -> Option<Ipv4Addr> {
        (u64::from(index) < self.size()).then(|| Ipv4Addr::from_bits(self.network.to_bits() + index))
    }

    /// The inverse of [`Self::nth`].
    pub fn index_of(&self, address: Ipv4Addr) -> Option<u32> {
        self.contains(address).then(|| address.to_bits() - self.network.to_bits())
    }

    /// Whether `address` lies in the range.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network.to_bits()
    }

    /// Whether the two ranges have an address in common.
    pub fn overlaps(&self, other: &Self) -> bool {
        let shorter = self.prefix.min(other.prefix);
        self.network.to_bits() & mask(shorter) == other.network.to_bits() & mask(shorter)
    }
}

/// The netmask of `prefix` bits. A shift by 32 would overflow, hence the check.
fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

impl fmt::Display for Ipv4Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

impl FromStr for Ipv4Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let wrong = || CidrError { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        let prefix = prefix.parse().map_err(|_| wrong())?;
        Self::new(address, prefix).map_err(|_| wrong())
    }
}

impl serde::Serialize for Ipv4Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Ipv4Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Ipv4Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn parses_and_prints() {
        for (text, printed) in [
            ("10.42.0.0/16", "10.42.0.0/16"),
            ("10.42.7.9/16", "10.42.0.0/16"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.0.2.1/32", "192.0.2.1/32"),
        ] {
            assert_eq!(cidr(text).to_string(), printed);
        }
        for text in
            ["", "10.42.0.0", "10.42.0.0/33", "10.42.0/16", "10.42.0.0/-1", "fd00::/8", "10.42.0.0/16/8"]
        {
            assert!(text.parse::<Ipv4Cidr>().is_err(), "{text}");
        }
    }

    #[test]
    fn knows_its_addresses() {
        let range = cidr("10.42.0.0/16");
        assert_eq!(range.size(), 65_536);
        assert_eq!(range.nth(1), Some(Ipv4Addr::new(10, 42, 0, 1)));
        assert_eq!(range.nth(65_536), None);
        assert_eq!(range.index_of(Ipv4Addr::new(10, 42, 1, 0)), Some(256));
        assert_eq!(range.index_of(Ipv4Addr::new(10, 43, 0, 0)), None);
        assert_eq!(cidr("0.0.0.0/0").size(), 1 << 32);
    }

    #[test]
    fn overlaps_both_ways() {
        for (a, b, expected) in [
            ("10.42.0.0/16", "10.42.128.0/17", true),
            ("10.42.0.0/16", "10.43.0.0/16", false),
            ("10.0.0.0/8", "10.43.0.0/16", true),
            ("0.0.0.0/0", "10.43.0.0/16", true),
            ("10.42.0.1/32", "10.42.0.1/32", true),
        ] {
            assert_eq!(cidr(a).overlaps(&cidr(b)), expected, "{a} {b}");
            assert_eq!(cidr(b).overlaps(&cidr(a)), expected, "{b} {a}");
        }
    }
}
