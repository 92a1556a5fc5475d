//! Which pod has which address: a bitmap in memory, one small file on disk.
//!
//! Addresses are given out round the range and not lowest-first, so that a freed one rests as long as possible before
//! somebody else gets it: peers and connection tracking may still remember its last owner.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::Ipv4Cidr;

/// Index 0 is the network's address, index 1 the gateway's.
const FIRST_POD: u32 = 2;

/// What is kept on disk.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedAddresses {
    /// Where the next search starts.
    next: u32,
    /// The address of each pod, by the pod's uid.
    pods: BTreeMap<String, Ipv4Addr>,
}

/// The addresses of one pod range.
#[derive(Debug)]
pub(crate) struct Addresses {
    cidr: Ipv4Cidr,
    /// One bit per address of the range.
    used: Vec<u64>,
    next: u32,
    pods: BTreeMap<String, Ipv4Addr>,
    /// In use by a link that is there although nobody remembers its pod.
    orphans: BTreeSet<Ipv4Addr>,
}

impl Addresses {
    /// Takes up what was saved, and sets aside the addresses of `links` that are not among it. Saved addresses outside
    /// the range (the range was changed) and doubles are dropped: those pods get a new address when they attach.
    pub(crate) fn load(
        cidr: Ipv4Cidr,
        saved: SavedAddresses,
        links: impl IntoIterator<Item = Ipv4Addr>,
    ) -> Self {
        let words = usize::try_from(cidr.size().div_ceil(64)).unwrap_or(usize::MAX);
        let mut addresses = Self {
            cidr,
            used: vec![0; words],
            next: saved.next,
            pods: BTreeMap::new(),
            orphans: BTreeSet::new(),
        };
        for (uid, address) in saved.pods {
            if addresses.take(address) {
                addresses.pods.insert(uid, address);
            }
        }
        for address in links {
            if addresses.take(address) {
                addresses.orphans.insert(address);
            }
        }
        addresses
    }

    /// What to save.
    pub(crate) fn saved(&self) -> SavedAddresses {
        SavedAddresses { next: self.next, pods: self.pods.clone() }
    }

    /// The pod's address: the one it has, else a free one. `None` when none is left.
    pub(crate) fn assign(&mut self, uid: &str) -> Option<Ipv4Addr> {
        if let Some(address) = self.pods.get(uid) {
            return Some(*address);
        }
        let index = self.free_index()?;
        let address = self.cidr.nth(index)?;
        self.take(address);
        self.next = index + 1;
        self.pods.insert(uid.to_owned(), address);
        Some(address)
    }

    /// The address the pod has.
    pub(crate) fn of(&self, uid: &str) -> Option<Ipv4Addr> {
        self.pods.get(uid).copied()
    }

    /// Frees the pod's address.
    pub(crate) fn release(&mut self, uid: &str) {
        if let Some(address) = self.pods.remove(uid) {
            self.give_back(address);
        }
    }

    /// Frees an address no pod was known for.
    pub(crate) fn release_orphan(&mut self, address: Ipv4Addr) {
        if self.orphans.remove(&address) {
            self.give_back(address);
        }
    }

    /// The pods that are not among `wanted`, with their addresses.
    pub(crate) fn others_than(&self, wanted: &BTreeSet<&str>) -> Vec<(String, Ipv4Addr)> {
        self.pods
            .iter()
            .filter(|(uid, _)| !wanted.contains(uid.as_str()))
            .map(|(uid, address)| (uid.clone(), *address))
            .collect()
    }

    /// The addresses of links nobody remembers.
    pub(crate) fn orphans(&self) -> Vec<Ipv4Addr> {
        self.orphans.iter().copied().collect()
    }

    /// How many addresses are in use.
    pub(crate) fn in_use(&self) -> usize {
        self.pods.len() + self.orphans.len()
    }

    /// The first free index from `next` on, once round the range.
    fn free_index(&self) -> Option<u32> {
        let last = u32::try_from(self.cidr.size() - 2).ok()?;
        let start = if (FIRST_POD..=last).contains(&self.next) { self.next } else { FIRST_POD };
        (start..=last).chain(FIRST_POD..start).find(|index| !self.is_used(*index))
    }

    fn is_used(&self, index: u32) -> bool {
        self.used.get(index as usize / 64).is_none_or(|word| word & bit(index) != 0)
    }

    /// Marks the address as used; `false` if it is no pod's address of this range, or used already.
    fn take(&mut self, address: Ipv4Addr) -> bool {
        let Some(index) = self.cidr.index_of(address) else {
            return false;
        };
        let for_pods = index >= FIRST_POD && u64::from(index) < self.cidr.size() - 1;
        if !for_pods || self.is_used(index) {
            return false;
        }
        self.used[index as usize / 64] |= bit(index);
        true
    }

    fn give_back(&mut self, address: Ipv4Addr) {
        if let Some(index) = self.cidr.index_of(address) {
            self.used[index as usize / 64] &= !bit(index);
        }
    }
}

fn bit(index: u32) -> u64 {
    1 << (index % 64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(cidr: &str) -> Addresses {
        Addresses::load(cidr.parse().unwrap(), SavedAddresses::default(), [])
    }

    fn ip(d: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 42, 0, d)
    }

    #[test]
    fn gives_every_pod_its_own_and_keeps_it() {
        let mut addresses = fresh("10.42.0.0/24");
        assert_eq!(addresses.assign("a"), Some(ip(2)));
        assert_eq!(addresses.assign("b"), Some(ip(3)));
        assert_eq!(addresses.assign("a"), Some(ip(2)));
        assert_eq!(addresses.of("b"), Some(ip(3)));
        assert_eq!(addresses.in_use(), 2);
    }

    #[test]
    fn a_freed_address_rests_until_the_round_is_over() {
        let mut addresses = fresh("10.42.0.0/29"); // .2 to .6
        for uid in ["a", "b", "c"] {
            addresses.assign(uid);
        }
        addresses.release("a");
        assert_eq!(addresses.assign("d"), Some(ip(5)));
        assert_eq!(addresses.assign("e"), Some(ip(6)));
        assert_eq!(addresses.assign("f"), Some(ip(2)));
        assert_eq!(addresses.assign("g"), None);
        addresses.release("d");
        assert_eq!(addresses.assign("g"), Some(ip(5)));
    }

    #[test]
    fn a_large_range_is_used_up_exactly() {
        let mut addresses = fresh("10.42.0.0/20");
        let given: BTreeSet<_> = (0..4093).filter_map(|n| addresses.assign(&n.to_string())).collect();
        assert_eq!(given.len(), 4093);
        assert!(!given.contains(&ip(0)) && !given.contains(&ip(1)));
        assert!(!given.contains(&Ipv4Addr::new(10, 42, 15, 255)));
        assert_eq!(addresses.assign("one too many"), None);
    }

    #[test]
    fn survives_a_restart_and_drops_what_is_wrong() {
        let mut before = fresh("10.42.0.0/24");
        before.assign("a");
        before.assign("b");
        let mut saved = before.saved();
        saved.pods.insert("elsewhere".into(), Ipv4Addr::new(10, 99, 0, 2));
        saved.pods.insert("gateway".into(), ip(1));
        saved.pods.insert("z-double".into(), ip(2));
        let mut after = Addresses::load("10.42.0.0/24".parse().unwrap(), saved, []);
        assert_eq!(after.of("a"), Some(ip(2)));
        assert_eq!(after.of("elsewhere"), None);
        assert_eq!(after.of("gateway"), None);
        assert_eq!(after.of("z-double"), None);
        assert_eq!(after.assign("c"), Some(ip(4)));
    }

    #[test]
    fn links_without_a_pod_keep_their_address_until_they_are_removed() {
        let cidr = "10.42.0.0/29".parse().unwrap();
        let mut addresses = Addresses::load(cidr, SavedAddresses::default(), [ip(2)]);
        assert_eq!(addresses.assign("a"), Some(ip(3)));
        assert_eq!(addresses.orphans(), [ip(2)]);
        addresses.release_orphan(ip(2));
        addresses.release_orphan(ip(3));
        assert_eq!(addresses.in_use(), 1);
        assert_eq!(addresses.of("a"), Some(ip(3)));
    }

    #[test]
    fn tells_who_is_no_longer_wanted() {
        let mut addresses = fresh("10.42.0.0/24");
        addresses.assign("a");
        addresses.assign("b");
        assert_eq!(addresses.others_than(&BTreeSet::from(["a"])), [("b".to_owned(), ip(3))]);
    }
}
