//! The names and hardware addresses of everything we make in the kernel, computed and never stored.
//!
//! A link's name has at most 15 bytes (`IFNAMSIZ` minus the final zero). Names that can be computed need no record: after
//! a crash we know what is ours by looking.

use std::net::Ipv4Addr;

/// What starts the name of every cluster's anchor.
pub(crate) const ANCHOR_PREFIX: &str = "sp-";

/// What starts the name of the host's end of every pod link. Eight hexadecimal digits of the pod's address follow, which
/// is unique on the machine because no two clusters share a range.
pub(crate) const POD_LINK_PREFIX: &str = "spv";

/// The name of the pod's end, by convention of container networks.
pub(crate) const POD_INTERFACE: &str = "eth0";

/// The names of one cluster's kernel objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Names {
    /// The anchor, `sp-<cluster>`, or `sp-<hash>` when the cluster's name is long or has unusual letters.
    pub(crate) anchor: String,
    /// The nftables table, `sampan-<cluster>`, hashed likewise.
    pub(crate) table: String,
}

impl Names {
    pub(crate) fn of(cluster: &str) -> Self {
        Self {
            anchor: format!("{ANCHOR_PREFIX}{}", shortened(cluster, 12)),
            table: format!("sampan-{}", shortened(cluster, 60)),
        }
    }
}

/// `name` if it is short and plain, else twelve digits of its hash.
fn shortened(name: &str, longest: usize) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    if plain && name.len() <= longest { name.to_owned() } else { format!("{:012x}", hash(name) >> 16) }
}

/// FNV-1a: stable across versions of the program and of Rust, which the standard hasher is not.
fn hash(name: &str) -> u64 {
    name.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The host's end of the link of the pod with this address.
pub(crate) fn pod_link(address: Ipv4Addr) -> String {
    format!("{POD_LINK_PREFIX}{:08x}", address.to_bits())
}

/// The inverse of [`pod_link`].
pub(crate) fn pod_address(link: &str) -> Option<Ipv4Addr> {
    let digits = link.strip_prefix(POD_LINK_PREFIX).filter(|digits| digits.len() == 8)?;
    u32::from_str_radix(digits, 16).ok().map(Ipv4Addr::from_bits)
}

/// The hardware address of whoever has this IP address, pod or anchor. Locally administered (second-lowest bit of the
/// first byte), and the same again when the address is given to another pod, so that no neighbour table goes stale.
pub(crate) fn hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0a, 0x53, a, b, c, d]
}

/// The hardware address of the host's end of a pod's link. Given, because the pod is told it, and tools that manage
/// links would otherwise invent and set one after the fact.
pub(crate) fn host_end_hardware_address(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [0x0e, 0x53, a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_fit() {
        for cluster in ["a", "default", "a-name-of-12", "a-name-of-13x", "späti", "a/b", &"x".repeat(300)] {
            let names = Names::of(cluster);
            assert!(names.anchor.len() <= 15, "{}", names.anchor);
            assert!(names.table.len() <= 80 && names.table.is_ascii(), "{}", names.table);
        }
        assert_eq!(Names::of("default").anchor, "sp-default");
        assert_eq!(Names::of("default").table, "sampan-default");
        assert_ne!(Names::of("a-name-of-13x").anchor, Names::of("a-name-of-13y").anchor);
    }

    #[test]
    fn pod_links_name_their_address() {
        let address = Ipv4Addr::new(10, 42, 0, 255);
        assert_eq!(pod_link(address), "spv0a2a00ff");
        assert_eq!(pod_address("spv0a2a00ff"), Some(address));
        for other in ["spv0a2a00f", "spv0a2a00fff", "sp-default", "eth0", "spvzzzzzzzz"] {
            assert_eq!(pod_address(other), None, "{other}");
        }
    }

    #[test]
    fn hardware_addresses_are_local_and_for_one_station() {
        for mac in [hardware_address(Ipv4Addr::LOCALHOST), host_end_hardware_address(Ipv4Addr::LOCALHOST)] {
            assert_eq!(mac[0] & 0b11, 0b10);
        }
    }
}
