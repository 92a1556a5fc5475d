//! Services as data: what the packet rules must contain, and the steps from one content to another.
//!
//! Pure. A [`Program`] is computed from the wanted services; [`plan`] compares two of them and lists the changes, which
//! `nft.rs` writes in one transaction. Nothing here knows netlink.
//!
//! The rules are built so that a service costs elements of shared maps and no chain of its own: with thousands of chains
//! the kernel checks all of them at every commit. A *front* (an address and port packets arrive at) leads to the chain of
//! its *balancer*, which depends only on how many endpoints there are and whether clients stick to them. That chain draws
//! a number below the count and looks up front and number in the map of *backends*.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::Ipv4Addr;

use crate::{Protocol, ServiceRoute};

/// Where packets for a service arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Front {
    /// At a virtual address.
    Cluster {
        /// The virtual address.
        address: Ipv4Addr,
        /// Its protocol.
        protocol: Protocol,
        /// Its port.
        port: u16,
    },
    /// At a port of any address of the node itself.
    Node {
        /// Its protocol.
        protocol: Protocol,
        /// The node port.
        port: u16,
    },
}

impl Front {
    /// The transport protocol.
    pub fn protocol(&self) -> Protocol {
        match self {
            Self::Cluster { protocol, .. } | Self::Node { protocol, .. } => *protocol,
        }
    }
}

/// How packets of a front are spread; one chain per distinct value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Balancer {
    /// Whether its fronts are node ports, whose map has no address in its key.
    pub node_port: bool,
    /// Whether a client stays with its endpoint (`ClientIP` affinity, by a hash of the client's address).
    pub sticky: bool,
    /// Over how many endpoints, at least one.
    pub endpoints: u32,
}

/// The chain's name: `cluster-ip-3`, `node-port-sticky-12`.
impl fmt::Display for Balancer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.node_port { "node-port" } else { "cluster-ip" };
        let sticky = if self.sticky { "-sticky" } else { "" };
        write!(f, "{kind}{sticky}-{}", self.endpoints)
    }
}

/// One element of one of the maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// A front leads to a balancer.
    Front {
        /// The key.
        front: Front,
        /// The value.
        balancer: Balancer,
    },
    /// A front's `index`th endpoint.
    Backend {
        /// First part of the key.
        front: Front,
        /// Second part of the key, below the balancer's count.
        index: u32,
        /// The value: the endpoint's address and port.
        target: (Ipv4Addr, u16),
    },
    /// An endpoint which may reach itself through a service: it would see its own address as the sender's and answer past
    /// the translation, so such packets leave with the gateway's address.
    Hairpin {
        /// The endpoint's address.
        address: Ipv4Addr,
    },
}

/// One step of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NftChange {
    /// Take an element out of its map.
    Remove(Element),
    /// Make the chain of a balancer.
    AddBalancer(Balancer),
    /// Put an element into its map.
    Add(Element),
}

/// The content of the maps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    fronts: BTreeMap<Front, Balancer>,
    backends: BTreeMap<(Front, u32), (Ipv4Addr, u16)>,
    hairpins: BTreeSet<Ipv4Addr>,
    balancers: BTreeSet<Balancer>,
}

impl Program {
    /// Computes the content for the wanted services.
    ///
    /// The order of the services and of their endpoints does not matter. When two services claim the same front (the API
    /// server never allocates so, but an update may be seen half), the one whose key sorts first has it.
    pub fn of(services: &[ServiceRoute]) -> Self {
        let mut sorted: Vec<&ServiceRoute> = services.iter().collect();
        sorted.sort_by(|a, b| a.key.cmp(&b.key));
        let mut program = Self::default();
        for service in sorted {
            program.add(service);
        }
        program
    }

    fn add(&mut self, service: &ServiceRoute) {
        let endpoints: BTreeSet<(Ipv4Addr, u16)> = service.endpoints.iter().copied().collect();
        // Without endpoints there is no front: packets to the virtual address are refused by the rule for the whole
        // service range, those to the node port by the node itself, where nobody listens.
        let Some(count) = u32::try_from(endpoints.len()).ok().filter(|count| *count > 0) else {
            return;
        };
        for front in fronts(service) {
            if self.fronts.contains_key(&front) {
                continue;
            }
            let balancer = Balancer {
                node_port: matches!(front, Front::Node { .. }),
                sticky: service.session_affinity_seconds.is_some(),
                endpoints: count,
            };
            self.fronts.insert(front, balancer);
            self.balancers.insert(balancer);
            self.backends.extend((0..).zip(&endpoints).map(|(index, target)| ((front, index), *target)));
            self.hairpins.extend(endpoints.iter().map(|(address, _)| *address));
        }
    }

    /// The endpoints a front leads to.
    pub fn backends(&self, front: Front) -> BTreeSet<(Ipv4Addr, u16)> {
        self.backends.range((front, 0)..=(front, u32::MAX)).map(|(_, target)| *target).collect()
    }

    /// The UDP fronts whose endpoints differ from those in `before`, with their endpoints now. A front that is gone has
    /// none. UDP has no end of a connection, so what the kernel remembers about these must be looked through.
    pub(crate) fn changed_udp_fronts(&self, before: &Self) -> BTreeMap<Front, BTreeSet<(Ipv4Addr, u16)>> {
        self.fronts
            .keys()
            .chain(before.fronts.keys())
            .filter(|front| front.protocol() == Protocol::Udp)
            .map(|front| (*front, self.backends(*front)))
            .filter(|(front, now)| before.backends(*front) != *now || !before.fronts.contains_key(front))
            .collect()
    }

    /// Takes over the chains of an older content: they are never removed while the table lives, since there are few of
    /// them (one per number of endpoints ever seen) and the next start begins afresh.
    pub(crate) fn keep_balancers_of(&mut self, before: &Self) {
        self.balancers.extend(&before.balancers);
    }

    fn elements(&self) -> impl Iterator<Item = Element> {
        let fronts =
            self.fronts.iter().map(|(front, balancer)| Element::Front { front: *front, balancer: *balancer });
        let backends = self.backends.iter().map(|((front, index), target)| Element::Backend {
            front: *front,
            index: *index,
            target: *target,
        });
        let hairpins = self.hairpins.iter().map(|address| Element::Hairpin { address: *address });
        fronts.chain(backends).chain(hairpins)
    }

    fn has(&self, element: &Element) -> bool {
        match element {
            Element::Front { front, balancer } => self.fronts.get(front) == Some(balancer),
            Element::Backend { front, index, target } => self.backends.get(&(*front, *index)) == Some(target),
            Element::Hairpin { address } => self.hairpins.contains(address),
        }
    }
}

/// The fronts of a service: its virtual address, its node port, or both.
fn fronts(service: &ServiceRoute) -> impl Iterator<Item = Front> {
    let protocol = service.protocol;
    let cluster = service.cluster_ip.map(|address| Front::Cluster { address, protocol, port: service.port });
    let node = service.node_port.map(|port| Front::Node { protocol, port });
    cluster.into_iter().chain(node)
}

/// The steps from one content of the maps to another: first removals, then chains, then additions. An element whose value
/// changes is removed and added; within one transaction no packet sees the gap.
pub fn plan(applied: &Program, desired: &Program) -> Vec<NftChange> {
    let removed = applied.elements().filter(|element| !desired.has(element)).map(NftChange::Remove);
    let balancers = desired.balancers.difference(&applied.balancers).copied().map(NftChange::AddBalancer);
    let added = desired.elements().filter(|element| !applied.has(element)).map(NftChange::Add);
    removed.chain(balancers).chain(added).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(d: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 0, d)
    }

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 7);

    fn service(key: &str, endpoints: &[u8]) -> ServiceRoute {
        ServiceRoute {
            key: key.into(),
            protocol: Protocol::Tcp,
            cluster_ip: Some(VIP),
            port: 80,
            node_port: None,
            endpoints: endpoints.iter().map(|d| (ip(*d), 8080)).collect(),
            session_affinity_seconds: None,
        }
    }

    fn front() -> Front {
        Front::Cluster { address: VIP, protocol: Protocol::Tcp, port: 80 }
    }

    fn balancer(endpoints: u32) -> Balancer {
        Balancer { node_port: false, sticky: false, endpoints }
    }

    fn backend(index: u32, d: u8) -> Element {
        Element::Backend { front: front(), index, target: (ip(d), 8080) }
    }

    fn hairpin(d: u8) -> Element {
        Element::Hairpin { address: ip(d) }
    }

    #[track_caller]
    fn check(before: &[ServiceRoute], after: &[ServiceRoute], expected: &[NftChange]) {
        assert_eq!(plan(&Program::of(before), &Program::of(after)), expected);
    }

    use NftChange::{Add, AddBalancer, Remove};

    #[test]
    fn a_new_service_is_a_chain_and_elements() {
        check(
            &[],
            &[service("a", &[3, 2])],
            &[
                AddBalancer(balancer(2)),
                Add(Element::Front { front: front(), balancer: balancer(2) }),
                Add(backend(0, 2)),
                Add(backend(1, 3)),
                Add(hairpin(2)),
                Add(hairpin(3)),
            ],
        );
    }

    #[test]
    fn what_is_unchanged_is_not_touched() {
        let other = ServiceRoute { port: 81, ..service("b", &[2, 3]) };
        check(&[service("a", &[2, 3])], &[service("a", &[3, 2, 2])], &[]);
        let changes =
            plan(&Program::of(&[service("a", &[2, 3])]), &Program::of(&[other, service("a", &[2, 3])]));
        assert_eq!(changes.len(), 3, "one front and two backends: {changes:?}");
    }

    #[test]
    fn an_endpoint_that_goes_is_replaced_in_place() {
        check(
            &[service("a", &[2, 3])],
            &[service("a", &[3])],
            &[
                Remove(Element::Front { front: front(), balancer: balancer(2) }),
                Remove(backend(0, 2)),
                Remove(backend(1, 3)),
                Remove(hairpin(2)),
                AddBalancer(balancer(1)),
                Add(Element::Front { front: front(), balancer: balancer(1) }),
                Add(backend(0, 3)),
            ],
        );
    }

    #[test]
    fn a_service_without_endpoints_has_no_front() {
        check(&[], &[service("a", &[])], &[]);
        let gone = [
            Remove(Element::Front { front: front(), balancer: balancer(1) }),
            Remove(backend(0, 2)),
            Remove(hairpin(2)),
        ];
        check(&[service("a", &[2])], &[service("a", &[])], &gone);
        check(&[service("a", &[2])], &[], &gone);
    }

    #[test]
    fn a_node_port_is_a_second_front() {
        let wanted = ServiceRoute { node_port: Some(30_080), ..service("a", &[2]) };
        let program = Program::of(std::slice::from_ref(&wanted));
        let node = Front::Node { protocol: Protocol::Tcp, port: 30_080 };
        assert_eq!(program.backends(node), BTreeSet::from([(ip(2), 8080)]));
        assert_eq!(program.backends(front()), BTreeSet::from([(ip(2), 8080)]));
        let only_node = Program::of(&[ServiceRoute { cluster_ip: None, ..wanted }]);
        assert!(only_node.backends(front()).is_empty());
        assert_eq!(only_node.fronts.len(), 1);
    }

    #[test]
    fn affinity_is_another_balancer() {
        let sticky = ServiceRoute { session_affinity_seconds: Some(10_800), ..service("a", &[2, 3]) };
        let changes =
            plan(&Program::of(&[service("a", &[2, 3])]), &Program::of(std::slice::from_ref(&sticky)));
        assert_eq!(changes.len(), 3, "the front moves to another chain: {changes:?}");
        let longer = ServiceRoute { session_affinity_seconds: Some(20_000), ..sticky.clone() };
        assert!(plan(&Program::of(&[sticky]), &Program::of(&[longer])).is_empty());
    }

    #[test]
    fn of_two_claims_to_a_front_the_first_key_wins() {
        let program = Program::of(&[service("b", &[9]), service("a", &[2])]);
        assert_eq!(program.backends(front()), BTreeSet::from([(ip(2), 8080)]));
        assert_eq!(program, Program::of(&[service("a", &[2]), service("b", &[9])]));
    }

    #[test]
    fn chains_stay_once_they_are_made() {
        let two = Program::of(&[service("a", &[2, 3])]);
        let mut one = Program::of(&[service("a", &[2])]);
        one.keep_balancers_of(&two);
        assert!(!plan(&one, &two).iter().any(|change| matches!(change, AddBalancer(_))));
    }

    #[test]
    fn only_changed_udp_fronts_need_a_look_at_remembered_flows() {
        let udp = |endpoints: &[u8]| ServiceRoute { protocol: Protocol::Udp, ..service("dns", endpoints) };
        let udp_front = Front::Cluster { address: VIP, protocol: Protocol::Udp, port: 80 };
        for (before, after, expected) in [
            (vec![], vec![udp(&[2])], Some(vec![2])),
            (vec![udp(&[2])], vec![udp(&[2])], None),
            (vec![udp(&[2])], vec![udp(&[3])], Some(vec![3])),
            (vec![udp(&[2])], vec![udp(&[])], Some(vec![])),
            (vec![udp(&[2])], vec![], Some(vec![])),
            (vec![service("tcp", &[2])], vec![service("tcp", &[3])], None),
        ] {
            let changed = Program::of(&after).changed_udp_fronts(&Program::of(&before));
            let expected = expected.map(|list: Vec<u8>| list.into_iter().map(|d| (ip(d), 8080)).collect());
            assert_eq!(changed.get(&udp_front).cloned(), expected, "{before:?} -> {after:?}");
        }
    }

    #[test]
    fn chain_names() {
        assert_eq!(balancer(3).to_string(), "cluster-ip-3");
        let sticky = Balancer { node_port: true, sticky: true, endpoints: 12 };
        assert_eq!(sticky.to_string(), "node-port-sticky-12");
    }
}
