//! The names of the cluster's zone, after the specification "Kubernetes DNS-Based Service Discovery", version 1.1.0
//! (<https://github.com/kubernetes/dns/blob/master/docs/specification.md>), with the choices CoreDNS makes where it is
//! silent. Pure: a question and the cluster's names in, an answer out.

use std::net::Ipv4Addr;

use hickory_server::proto::ProtoError;
use hickory_server::proto::rr::rdata::{A, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_server::proto::rr::{Name, RData, Record, RecordType};

use super::names::{ClusterNames, NamedPort, ServiceEndpoint, ServiceName, ServiceRecord, ServiceTarget};
use crate::Protocol;

/// How long, in seconds, an answer may be remembered. CoreDNS' default: services change while clients look.
const TTL: u32 = 5;

/// `dns-version` of the zone.
const SPECIFICATION: &str = "1.1.0";

/// How many addresses one answer holds at most. More would not fit a TCP message either; clients want a few, not all.
const MAX_RECORDS: usize = 1000;

/// The cluster's zone, for example `cluster.local.`.
#[derive(Debug, Clone)]
pub struct Zone {
    origin: Name,
    labels: usize,
}

/// What to say to a question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// These records, and further ones the client will want next.
    Records {
        /// The answer.
        answers: Vec<Record>,
        /// The addresses of the names in it.
        additionals: Vec<Record>,
    },
    /// The name is another name for `target`, which must be asked for in turn.
    Alias {
        /// The `CNAME` record.
        record: Box<Record>,
        /// The other name.
        target: Name,
    },
    /// The name exists but has no record of this type.
    NoData,
    /// There is no such name in the zone.
    NoName,
    /// Not ours to answer.
    Forward,
}

impl Zone {
    /// The zone of that name, with or without the final dot.
    ///
    /// # Errors
    /// When it is not a domain name.
    pub fn new(domain: &str) -> Result<Self, ProtoError> {
        let mut origin = Name::from_ascii(domain)?.to_lowercase();
        origin.set_fqdn(true);
        let labels = origin.iter().count();
        Ok(Self { origin, labels })
    }

    /// The record that comes with "no such name" and "no such record", and says how long that may be remembered.
    pub fn soa(&self) -> Record {
        let below = |labels: &[&str]| self.name(labels).unwrap_or_else(|| self.origin.clone());
        let soa = SOA::new(
            below(&["ns", "dns"]),
            below(&["hostmaster"]),
            1, // Nobody transfers this zone, so nobody compares serials.
            7200,
            1800,
            86_400,
            TTL,
        );
        Record::from_rdata(self.origin.clone(), TTL, RData::SOA(soa))
    }

    /// The labels of `name` before the zone's, first label first, or `None` when it lies outside.
    fn relative<'a>(&self, name: &'a Name) -> Option<Vec<&'a str>> {
        if !self.origin.zone_of(name) {
            return None;
        }
        // Our names are ASCII. A label that is not UTF-8 is replaced by one no object can have.
        let own = name.iter().count() - self.labels;
        Some(name.iter().take(own).map(|label| std::str::from_utf8(label).unwrap_or("?")).collect())
    }

    /// The name of these labels in the zone. `None` when they do not make a name (too long).
    fn name(&self, labels: &[&str]) -> Option<Name> {
        labels
            .iter()
            .rev()
            .try_fold(self.origin.clone(), |name, label| name.prepend_label(label.as_bytes()))
            .ok()
    }

    fn service_name(&self, service: &ServiceName) -> Option<Name> {
        self.name(&[&service.name, &service.namespace, "svc"])
    }
}

/// Answers the question for records of type `kind` at `name`.
pub fn answer(zone: &Zone, name: &Name, kind: RecordType, names: &dyn ClusterNames) -> Answer {
    let lower = name.to_lowercase();
    if let Some(labels) = zone.relative(&lower) {
        return Question { zone, name, kind, names }.in_zone(&labels);
    }
    match reverse_address(&lower) {
        Some(address) => Question { zone, name, kind, names }.reverse(address),
        None => Answer::Forward,
    }
}

struct Question<'a> {
    zone: &'a Zone,
    /// As it was asked: the answer repeats its upper and lower case, which some resolvers check.
    name: &'a Name,
    kind: RecordType,
    names: &'a dyn ClusterNames,
}

impl Question<'_> {
    fn in_zone(&self, labels: &[&str]) -> Answer {
        match labels {
            [] => self.apex(),
            ["dns-version"] => self.only(RecordType::TXT, RData::TXT(TXT::new(vec![SPECIFICATION.into()]))),
            // The server's own name, target of the zone's NS record. Where it is depends on who asks.
            ["dns"] | ["ns", "dns"] | ["svc"] | ["pod"] => Answer::NoData,
            [namespace, "svc" | "pod"] => self.exists_if(self.names.has_namespace(namespace)),
            [pod, namespace, "pod"] => self.pod(pod, namespace),
            [service, namespace, "svc"] => self.with_service(namespace, service, |found| self.service(found)),
            [protocol, service, namespace, "svc"] if protocol.starts_with('_') => {
                let known = parse_protocol(protocol).is_some();
                self.with_service(namespace, service, |_| self.exists_if(known))
            }
            [host, service, namespace, "svc"] => {
                self.with_service(namespace, service, |found| self.endpoint(host, found))
            }
            [port, protocol, service, namespace, "svc"] => {
                let name = ServiceName { namespace: (*namespace).into(), name: (*service).into() };
                self.with_service(namespace, service, |found| self.port(port, protocol, &name, found))
            }
            _ => Answer::NoName,
        }
    }

    fn apex(&self) -> Answer {
        match self.kind {
            RecordType::SOA => answers(vec![self.zone.soa()]),
            RecordType::NS => match self.zone.name(&["ns", "dns"]) {
                Some(server) => answers(vec![self.record(RData::NS(NS(server)))]),
                None => Answer::NoData,
            },
            _ => Answer::NoData,
        }
    }

    /// `10-42-0-5.default.pod`: the address is in the name. No pod needs to be there, as with CoreDNS' `pods insecure`.
    fn pod(&self, dashed: &str, namespace: &str) -> Answer {
        match parse_dashed(dashed) {
            Some(address) if self.names.has_namespace(namespace) => self.addresses(&[address]),
            _ => Answer::NoName,
        }
    }

    fn service(&self, service: &ServiceRecord) -> Answer {
        match &service.target {
            ServiceTarget::ClusterIp(addresses) => self.addresses(addresses),
            ServiceTarget::Headless(endpoints) => {
                let addresses: Vec<Ipv4Addr> = endpoints.iter().map(|endpoint| endpoint.address).collect();
                self.addresses(&addresses)
            }
            ServiceTarget::External(target) => self.alias(target),
        }
    }

    fn alias(&self, target: &str) -> Answer {
        let Ok(mut target) = Name::from_ascii(target) else {
            return Answer::NoData;
        };
        target.set_fqdn(true);
        let record = self.record(RData::CNAME(CNAME(target.clone())));
        match self.kind {
            RecordType::CNAME => answers(vec![record]),
            _ => Answer::Alias { record: Box::new(record), target },
        }
    }

    /// A host name below a headless service. Several endpoints may share one.
    fn endpoint(&self, host: &str, service: &ServiceRecord) -> Answer {
        let ServiceTarget::Headless(endpoints) = &service.target else {
            return Answer::NoName;
        };
        let addresses: Vec<Ipv4Addr> = endpoints
            .iter()
            .filter(|endpoint| host_name(endpoint) == host)
            .map(|endpoint| endpoint.address)
            .collect();
        if addresses.is_empty() { Answer::NoName } else { self.addresses(&addresses) }
    }

    /// `_http._tcp.web.default.svc`: one SRV record to the service, or one to each endpoint of a headless one.
    fn port(&self, port: &str, protocol: &str, name: &ServiceName, service: &ServiceRecord) -> Answer {
        let (Some(port), Some(protocol)) = (port.strip_prefix('_'), parse_protocol(protocol)) else {
            return Answer::NoName;
        };
        let targets = self.port_targets(port, protocol, name, service);
        if targets.is_empty() {
            return Answer::NoName;
        }
        if !matches!(self.kind, RecordType::SRV | RecordType::ANY) {
            return Answer::NoData;
        }
        let weight = u16::try_from(100 / targets.len()).unwrap_or(0).max(1);
        let srv = |(number, target, _): &(u16, Name, Vec<Ipv4Addr>)| {
            self.record(RData::SRV(SRV::new(0, weight, *number, target.clone())))
        };
        let address = |target: &Name, address: &Ipv4Addr| {
            Record::from_rdata(target.clone(), TTL, RData::A(A(*address)))
        };
        Answer::Records {
            answers: targets.iter().map(srv).collect(),
            additionals: targets
                .iter()
                .flat_map(|(_, target, addresses)| addresses.iter().map(move |a| address(target, a)))
                .collect(),
        }
    }

    /// Number, name and addresses of everything that serves this port.
    fn port_targets(
        &self,
        port: &str,
        protocol: Protocol,
        name: &ServiceName,
        service: &ServiceRecord,
    ) -> Vec<(u16, Name, Vec<Ipv4Addr>)> {
        let number = |ports: &[NamedPort]| {
            ports.iter().find(|p| p.protocol == protocol && p.name == port).map(|p| p.port)
        };
        let service_name = self.zone.service_name(name);
        match &service.target {
            ServiceTarget::ClusterIp(addresses) => {
                let found = number(&service.ports).zip(service_name);
                found.map(|(number, target)| (number, target, addresses.clone())).into_iter().collect()
            }
            ServiceTarget::Headless(endpoints) => endpoints
                .iter()
                .take(MAX_RECORDS)
                .filter_map(|endpoint| {
                    let target = service_name.as_ref()?.prepend_label(host_name(endpoint).as_bytes()).ok()?;
                    Some((number(&endpoint.ports)?, target, vec![endpoint.address]))
                })
                .collect(),
            ServiceTarget::External(_) => Vec::new(),
        }
    }

    fn reverse(&self, address: Ipv4Addr) -> Answer {
        let service = self.names.service_at(address).and_then(|name| self.zone.service_name(&name));
        let endpoint = || {
            let endpoint = self.names.endpoint_at(address)?;
            self.zone.service_name(&endpoint.service)?.prepend_label(endpoint.hostname.as_bytes()).ok()
        };
        match service.or_else(endpoint) {
            Some(name) => self.only(RecordType::PTR, RData::PTR(PTR(name))),
            None if self.names.is_cluster_address(address) => Answer::NoName,
            None => Answer::Forward,
        }
    }

    fn with_service(
        &self,
        namespace: &str,
        name: &str,
        then: impl FnOnce(&ServiceRecord) -> Answer,
    ) -> Answer {
        self.names.service(namespace, name).map_or(Answer::NoName, |service| then(&service))
    }

    fn exists_if(&self, exists: bool) -> Answer {
        if exists { Answer::NoData } else { Answer::NoName }
    }

    /// The addresses if they were asked for. A name without any (a headless service nobody is ready for) exists.
    fn addresses(&self, addresses: &[Ipv4Addr]) -> Answer {
        if !matches!(self.kind, RecordType::A | RecordType::ANY) || addresses.is_empty() {
            return Answer::NoData;
        }
        answers(
            addresses.iter().take(MAX_RECORDS).map(|address| self.record(RData::A(A(*address)))).collect(),
        )
    }

    /// The only record of the name.
    fn only(&self, kind: RecordType, data: RData) -> Answer {
        if self.kind == kind || self.kind == RecordType::ANY {
            answers(vec![self.record(data)])
        } else {
            Answer::NoData
        }
    }

    fn record(&self, data: RData) -> Record {
        Record::from_rdata(self.name.clone(), TTL, data)
    }
}

fn answers(answers: Vec<Record>) -> Answer {
    Answer::Records { answers, additionals: Vec::new() }
}

/// An endpoint's label below its service.
fn host_name(endpoint: &ServiceEndpoint) -> String {
    endpoint.hostname.clone().unwrap_or_else(|| endpoint.address.to_string().replace('.', "-"))
}

fn parse_protocol(label: &str) -> Option<Protocol> {
    match label {
        "_tcp" => Some(Protocol::Tcp),
        "_udp" => Some(Protocol::Udp),
        _ => None,
    }
}

/// `10-42-0-5`.
fn parse_dashed(label: &str) -> Option<Ipv4Addr> {
    label.replace('-', ".").parse().ok()
}

/// The address a name like `5.0.42.10.in-addr.arpa.` asks about.
fn reverse_address(name: &Name) -> Option<Ipv4Addr> {
    let labels: Vec<&[u8]> = name.iter().collect();
    let [d, c, b, a, b"in-addr", b"arpa"] = labels.as_slice() else {
        return None;
    };
    let octet = |label: &[u8]| std::str::from_utf8(label).ok()?.parse::<u8>().ok();
    Some(Ipv4Addr::new(octet(a)?, octet(b)?, octet(c)?, octet(d)?))
}

#[cfg(test)]
#[path = "answer_tests.rs"]
mod tests;
