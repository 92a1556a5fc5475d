//! Addresses and ports of services: every ClusterIP and node port belongs to one service.
//!
//! What is taken is kept in memory, read from the services at start. An allocation is [`Held`] until the object is
//! stored; a write that fails gives it back.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard};

use sampan_api::field::{Errors, Path};
use serde_json::{Value, json};

use super::Admission;
use crate::error::ApiError;
use crate::view::View;

/// Node ports of services, as upstream's default.
const NODE_PORTS: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The range of service addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AddressRange {
    first: u32,
    count: u32,
}

impl AddressRange {
    /// Reads `10.43.0.0/16`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let bits: u32 = bits.parse().ok().filter(|bits| (8..=30).contains(bits))?;
        let address: Ipv4Addr = address.parse().ok()?;
        let mask = u32::MAX << (32 - bits);
        Some(Self { first: u32::from(address) & mask, count: 1 << (32 - bits) })
    }

    /// The address at a place; place 1 is the API server's own service.
    pub(crate) fn nth(self, place: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.first + place)
    }

    fn contains(self, address: Ipv4Addr) -> bool {
        let place = u32::from(address).wrapping_sub(self.first);
        place > 0 && place < self.count - 1
    }
}

#[derive(Default)]
struct Taken {
    addresses: HashSet<Ipv4Addr>,
    /// Protocol and port.
    ports: HashSet<(String, u16)>,
    next: u32,
}

/// Who has which address.
pub(crate) struct Allocator {
    range: AddressRange,
    taken: Mutex<Taken>,
}

/// What a write has taken.
#[must_use]
pub(crate) struct Held {
    allocator: Arc<Allocator>,
    addresses: Vec<Ipv4Addr>,
    ports: Vec<(String, u16)>,
    /// What the object had and no longer names: free once the write is stored.
    freed: (Vec<Ipv4Addr>, Vec<(String, u16)>),
}

impl Held {
    /// The object that uses it is stored. What is left for the drop is what the object gave up.
    pub(crate) fn commit(mut self) {
        (self.addresses, self.ports) = std::mem::take(&mut self.freed);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.addresses.is_empty() && self.ports.is_empty() {
            return;
        }
        let mut taken = self.allocator.lock();
        for address in &self.addresses {
            taken.addresses.remove(address);
        }
        for port in &self.ports {
            taken.ports.remove(port);
        }
    }
}

impl Allocator {
    pub(crate) fn new(range: AddressRange) -> Arc<Self> {
        Arc::new(Self { range, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A service that exists takes what it names.
    pub(crate) fn adopt(&self, service: &Value) {
        let mut taken = self.lock();
        taken.addresses.extend(addresses_of(service));
        taken.ports.extend(ports_of(service));
    }

    /// A service that has gone gives back what it named.
    pub(crate) fn release(&self, service: &Value) {
        let mut taken = self.lock();
        for address in addresses_of(service) {
            taken.addresses.remove(&address);
        }
        for port in ports_of(service) {
            taken.ports.remove(&port);
        }
    }

    fn take_address(&self) -> Option<Ipv4Addr> {
        let mut taken = self.lock();
        // The first addresses are left to those who ask for them by number.
        let low = 16.min(self.range.count / 4);
        for _ in 0..self.range.count {
            let place = low + taken.next % (self.range.count - low);
            taken.next = taken.next.wrapping_add(1);
            let address = self.range.nth(place);
            if self.range.contains(address) && taken.addresses.insert(address) {
                return Some(address);
            }
        }
        None
    }

    fn take_port(&self, protocol: &str) -> Option<u16> {
        let mut taken = self.lock();
        let seed = uuid::Uuid::new_v4().as_u128() as usize;
        let ports: Vec<u16> = NODE_PORTS.collect();
        let order = (0..ports.len()).map(|i| ports[(seed % ports.len() + i) % ports.len()]);
        order.into_iter().find(|port| taken.ports.insert((protocol.to_owned(), *port)))
    }
}

fn addresses_of(service: &Value) -> Vec<Ipv4Addr> {
    let many = service["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let one = service["spec"]["clusterIP"].as_str();
    let mut all: Vec<Ipv4Addr> = many.chain(one).filter_map(|text| text.parse().ok()).collect();
    all.sort_unstable();
    all.dedup();
    all
}

fn ports_of(service: &Value) -> Vec<(String, u16)> {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    ports
        .filter_map(|port| {
            let number = port["nodePort"].as_u64().and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0)?;
            Some((port["protocol"].as_str().unwrap_or("TCP").to_owned(), number))
        })
        .collect()
}

/// Gives a service the addresses and ports it needs and has not got.
pub(super) fn allocate(admission: &Admission<'_>, object: &mut Value) -> Result<Held, ApiError> {
    let allocator = &admission.server.allocator;
    let mut held = Held {
        allocator: allocator.clone(),
        addresses: Vec::new(),
        ports: Vec::new(),
        freed: Default::default(),
    };
    if !admission.is("", "services") || admission.view != View::Object {
        return Ok(held);
    }
    let mut errors = Errors::new();
    let service_type = object["spec"]["type"].as_str().unwrap_or("ClusterIP").to_owned();
    if service_type == "ExternalName" {
        held.freed = given_up(admission, object);
        return Ok(held);
    }
    cluster_ip(admission, object, &mut held, &mut errors);
    if matches!(service_type.as_str(), "NodePort" | "LoadBalancer") {
        node_ports(admission, object, &mut held, &mut errors);
    } else {
        for port in
            object["spec"]["ports"].as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut)
        {
            port.remove("nodePort");
        }
    }
    if !errors.is_empty() {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        return Err(ApiError::invalid(admission.kind, name, &errors));
    }
    held.freed = given_up(admission, object);
    Ok(held)
}

fn cluster_ip(admission: &Admission<'_>, object: &mut Value, held: &mut Held, errors: &mut Errors) {
    let allocator = &admission.server.allocator;
    let path = Path::new("spec").child("clusterIP");
    let spec = &mut object["spec"];
    let asked = spec["clusterIP"].as_str().unwrap_or_default().to_owned();
    let had = admission.old.map_or("", |old| old["spec"]["clusterIP"].as_str().unwrap_or_default());
    let address = match asked.as_str() {
        "None" => {
            spec["clusterIPs"] = json!(["None"]);
            None
        }
        "" if !had.is_empty() && had != "None" => had.parse().ok(),
        "" => match allocator.take_address() {
            Some(address) => {
                held.addresses.push(address);
                Some(address)
            }
            None => {
                errors.invalid(&path, "", "failed to allocate an IP: range is full");
                return;
            }
        },
        same if same == had => same.parse().ok(),
        // Changing it is not allowed; the kind's own rule says so.
        _ if !had.is_empty() => return,
        text => match text.parse::<Ipv4Addr>() {
            Ok(address) if !allocator.range.contains(address) => {
                errors.invalid(
                    &path,
                    text,
                    format!("failed to allocate IP {text}: the provided IP is not in the valid range"),
                );
                return;
            }
            Ok(address) => {
                if !allocator.lock().addresses.insert(address) {
                    errors.invalid(
                        &path,
                        text,
                        format!("failed to allocate IP {text}: provided IP is already allocated"),
                    );
                    return;
                }
                held.addresses.push(address);
                Some(address)
            }
            // The kind's own rule has the sentence for this.
            Err(_) => return,
        },
    };
    if let Some(address) = address {
        spec["clusterIP"] = address.to_string().into();
        spec["clusterIPs"] = json!([address.to_string()]);
    }
    if spec["ipFamilies"].is_null() {
        spec["ipFamilies"] = json!(["IPv4"]);
    }
    if spec["ipFamilyPolicy"].is_null() {
        spec["ipFamilyPolicy"] = "SingleStack".into();
    }
}

fn node_ports(admission: &Admission<'_>, object: &mut Value, held: &mut Held, errors: &mut Errors) {
    let allocator = &admission.server.allocator;
    let had: HashSet<(String, u16)> = admission.old.map(ports_of).unwrap_or_default().into_iter().collect();
    let old_ports = admission.old.map(|old| old["spec"]["ports"].clone()).unwrap_or_default();
    for (i, port) in object["spec"]["ports"].as_array_mut().into_iter().flatten().enumerate() {
        let path = Path::new("spec").child("ports").index(i).child("nodePort");
        let protocol = port["protocol"].as_str().unwrap_or("TCP").to_owned();
        let asked = port["nodePort"].as_u64().unwrap_or(0);
        if asked == 0 {
            // An update that leaves the port out keeps it.
            let before = old_ports.as_array().into_iter().flatten().find(|old| {
                old["port"] == port["port"] && old["protocol"].as_str().unwrap_or("TCP") == protocol
            });
            if let Some(kept) = before.and_then(|old| old["nodePort"].as_u64()).filter(|n| *n > 0) {
                port["nodePort"] = kept.into();
                continue;
            }
            match allocator.take_port(&protocol) {
                Some(number) => {
                    held.ports.push((protocol, number));
                    port["nodePort"] = number.into();
                }
                None => errors.invalid(&path, 0, "failed to allocate a nodePort: range is full"),
            }
            continue;
        }
        let number = u16::try_from(asked).ok().filter(|n| NODE_PORTS.contains(n));
        let Some(number) = number else {
            errors.invalid(
                &path,
                asked,
                format!(
                    "provided port is not in the valid range. The range of valid ports is {}-{}",
                    NODE_PORTS.start(),
                    NODE_PORTS.end()
                ),
            );
            continue;
        };
        let claim = (protocol, number);
        if had.contains(&claim) {
            continue;
        }
        if allocator.lock().ports.insert(claim.clone()) {
            held.ports.push(claim);
        } else {
            errors.invalid(&path, asked, "provided port is already allocated");
        }
    }
}

/// What an update no longer names.
fn given_up(admission: &Admission<'_>, object: &Value) -> (Vec<Ipv4Addr>, Vec<(String, u16)>) {
    let Some(old) = admission.old else { return Default::default() };
    let (addresses, ports) = (addresses_of(object), ports_of(object));
    (
        addresses_of(old).into_iter().filter(|a| !addresses.contains(a)).collect(),
        ports_of(old).into_iter().filter(|p| !ports.contains(p)).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges() {
        let range = AddressRange::parse("10.43.0.0/24").expect("a range");
        assert_eq!(range.nth(1), Ipv4Addr::new(10, 43, 0, 1));
        assert!(
            !range.contains(Ipv4Addr::new(10, 43, 0, 0)) && !range.contains(Ipv4Addr::new(10, 43, 0, 255))
        );
        assert!(
            range.contains(Ipv4Addr::new(10, 43, 0, 254)) && !range.contains(Ipv4Addr::new(10, 43, 1, 1))
        );
        assert!(AddressRange::parse("10.43.0.0").is_none() && AddressRange::parse("10.43.0.0/33").is_none());
    }

    #[test]
    fn every_address_once() {
        let allocator = Allocator::new(AddressRange::parse("10.0.0.0/27").expect("a range"));
        let mut seen = HashSet::new();
        while let Some(address) = allocator.take_address() {
            assert!(seen.insert(address));
        }
        assert_eq!(seen.len(), 32 - 8 - 1);
        let service = json!({"spec": {"clusterIP": seen.iter().next().expect("one").to_string()}});
        allocator.release(&service);
        assert!(allocator.take_address().is_some() && allocator.take_address().is_none());
    }
}
