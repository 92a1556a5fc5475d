//! The elements of maps in the kernel's form.

use nlink::netlink::nftables::{ChainName, SetElement, Verdict};

use crate::{Element, Front, NftChange};

/// What a change can share a message with: the same step on the same map.
#[derive(PartialEq, Eq)]
pub(super) enum Kind {
    Balancer,
    Add(u8),
    Remove(u8),
}

pub(super) fn kind(change: &NftChange) -> Kind {
    let map = |element: &Element| match element {
        Element::Front { front: Front::Cluster { .. }, .. } => 0,
        Element::Front { front: Front::Node { .. }, .. } => 1,
        Element::Backend { front: Front::Cluster { .. }, .. } => 2,
        Element::Backend { front: Front::Node { .. }, .. } => 3,
        Element::Hairpin { .. } => 4,
    };
    match change {
        NftChange::AddBalancer(_) => Kind::Balancer,
        NftChange::Add(element) => Kind::Add(map(element)),
        NftChange::Remove(element) => Kind::Remove(map(element)),
    }
}

/// The change's element in the kernel's form, if it is about one.
pub(super) fn element(change: &NftChange) -> nlink::Result<Option<SetElement>> {
    let (NftChange::Add(element) | NftChange::Remove(element)) = change else {
        return Ok(None);
    };
    let wire = match element {
        Element::Front { front, balancer } => {
            let chain = ChainName::new(balancer.to_string())?;
            SetElement::concat(front_key(*front)).verdict(Verdict::GotoTo(chain))
        }
        Element::Backend { front, index, target: (address, port) } => {
            let key = front_key(*front).into_iter().chain([SetElement::mark(*index)]);
            SetElement::concat(key)
                .value(SetElement::concat([SetElement::ipv4(*address), SetElement::port(*port)]))
        }
        Element::Hairpin { address } => {
            SetElement::concat([SetElement::ipv4(*address), SetElement::ipv4(*address)])
        }
    };
    Ok(Some(wire))
}

fn front_key(front: Front) -> Vec<SetElement> {
    let protocol = SetElement::inet_proto(front.protocol().number());
    match front {
        Front::Cluster { address, port, .. } => {
            vec![SetElement::ipv4(address), protocol, SetElement::port(port)]
        }
        Front::Node { port, .. } => vec![protocol, SetElement::port(port)],
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::{Balancer, Protocol};

    #[test]
    fn an_endpoint_element_is_laid_out_as_the_registers_are() {
        let front =
            Front::Cluster { address: Ipv4Addr::new(10, 43, 0, 1), protocol: Protocol::Udp, port: 53 };
        let backend = Element::Backend { front, index: 2, target: (Ipv4Addr::new(10, 42, 0, 9), 5353) };
        let wire = element(&NftChange::Add(backend)).unwrap().unwrap();
        let number = 2u32.to_ne_bytes();
        assert_eq!(wire.key(), [&[10, 43, 0, 1, 17, 0, 0, 0, 0, 53, 0, 0][..], &number].concat());
        let expected = [10, 42, 0, 9, 0x14, 0xe9, 0, 0].to_vec();
        assert_eq!(wire.data(), Some(&nlink::netlink::nftables::SetElementData::Value(expected)));
    }

    #[test]
    fn elements_of_one_map_share_messages() {
        let front = |port| Front::Node { protocol: Protocol::Tcp, port };
        let balancer = Balancer { node_port: true, sticky: false, endpoints: 1 };
        let changes = [
            NftChange::AddBalancer(balancer),
            NftChange::Add(Element::Front { front: front(1), balancer }),
            NftChange::Add(Element::Front { front: front(2), balancer }),
            NftChange::Add(Element::Hairpin { address: Ipv4Addr::LOCALHOST }),
        ];
        let runs: Vec<usize> = changes.chunk_by(|a, b| kind(a) == kind(b)).map(<[NftChange]>::len).collect();
        assert_eq!(runs, [1, 2, 1]);
    }
}
