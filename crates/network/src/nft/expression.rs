//! The expressions of rules: what is loaded into which register, and what is done with it.

use nlink::netlink::nftables::{Expr, HashKind, MetaKey, NumgenKind, PayloadBase, RawExpr, Register, Rule};

use crate::Balancer;

pub(super) const WORD_0: Register = Register::Reg32_00;
pub(super) const WORD_1: Register = Register::Reg32_01;
pub(super) const WORD_2: Register = Register::Reg32_02;
pub(super) const WORD_3: Register = Register::Reg32_03;
pub(super) const TARGET_ADDRESS: Register = Register::Reg32_04;
pub(super) const TARGET_PORT: Register = Register::Reg32_05;
pub(super) const CLIENT: Register = Register::Reg32_08;

/// Offsets in the IPv4 header, RFC 791.
pub(super) fn load_source(dreg: Register) -> Expr {
    Expr::Payload { dreg, base: PayloadBase::Network, offset: 12, len: 4 }
}

pub(super) fn load_destination(dreg: Register) -> Expr {
    Expr::Payload { dreg, base: PayloadBase::Network, offset: 16, len: 4 }
}

/// One byte; the kernel clears the rest of the word, as the maps' keys expect.
pub(super) fn load_protocol(dreg: Register) -> Expr {
    Expr::Meta { dreg, key: MetaKey::L4Proto }
}

/// The destination port, which TCP and UDP have at the same place. In other protocols it is something else, and as their
/// number is in no key, it does not matter.
pub(super) fn load_port(dreg: Register) -> Expr {
    Expr::Payload { dreg, base: PayloadBase::Transport, offset: 2, len: 2 }
}

/// Leaves a number below the count of endpoints in `number`.
pub(super) fn draw(rule: Rule, balancer: Balancer, number: Register) -> Rule {
    let modulus = balancer.endpoints;
    if modulus == 1 {
        return rule.expr(Expr::Immediate { dreg: number, data: vec![0; 4] });
    }
    if balancer.sticky {
        // With a seed of our own, because the kernel's is drawn at random for every rule, and clients would move
        // whenever the table is made anew.
        let hash = Expr::Hash {
            dreg: number,
            kind: HashKind::Jenkins,
            sreg: Some(CLIENT),
            len: 4,
            modulus,
            seed: Some(1),
            offset: 0,
        };
        return rule.expr(load_source(CLIENT)).expr(hash);
    }
    rule.expr(Expr::Numgen { dreg: number, kind: NumgenKind::Random, modulus, offset: 0 })
}

/// Attribute numbers of `linux/netfilter/nf_tables.h`.
pub(super) mod attr {
    pub(in crate::nft) const TABLE_NAME: u16 = 1;
    pub(super) const NAT_TYPE: u16 = 1;
    pub(super) const NAT_FAMILY: u16 = 2;
    pub(super) const NAT_REG_ADDR_MIN: u16 = 3;
    pub(super) const NAT_REG_PROTO_MIN: u16 = 5;
}

/// `dnat ip to <register> : <register>`. The library writes this statement only for constants.
pub(super) fn translate_destination(address: Register, port: Register) -> RawExpr {
    /// `NFT_NAT_DNAT` of `linux/netfilter/nf_tables.h`.
    const DNAT: u32 = 1;
    /// `NFPROTO_IPV4` of `linux/netfilter.h`.
    const IPV4: u32 = 2;
    let data = [
        (attr::NAT_TYPE, DNAT),
        (attr::NAT_FAMILY, IPV4),
        (attr::NAT_REG_ADDR_MIN, address.wire()),
        (attr::NAT_REG_PROTO_MIN, port.wire()),
    ];
    RawExpr::new(
        "nat",
        data.iter().flat_map(|(kind, value)| attribute(*kind, &value.to_be_bytes())).collect(),
    )
}

/// A netlink attribute: length, type, payload, padded to four bytes.
pub(super) fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(payload.len() + 8);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_padded() {
        assert_eq!(attribute(1, b"ab\0"), [&7u16.to_ne_bytes()[..], &1u16.to_ne_bytes(), b"ab\0\0"].concat());
        assert_eq!(attribute(2, &[1, 2, 3, 4]).len(), 8);
    }
}
