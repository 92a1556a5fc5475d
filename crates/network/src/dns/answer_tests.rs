//! Table tests of the zone: question, answer.

use super::*;
use crate::dns::EndpointName;

/// A small cluster: `web` with a virtual address, `db` headless with two pods, `far` elsewhere, `idle` without endpoints.
struct Cluster;

fn port(name: &str, protocol: Protocol, port: u16) -> NamedPort {
    NamedPort { name: name.into(), protocol, port }
}

fn endpoint(d: u8, hostname: Option<&str>) -> ServiceEndpoint {
    ServiceEndpoint {
        address: Ipv4Addr::new(10, 42, 0, d),
        hostname: hostname.map(str::to_owned),
        ports: vec![port("sql", Protocol::Tcp, 5432)],
    }
}

impl ClusterNames for Cluster {
    fn service(&self, namespace: &str, name: &str) -> Option<ServiceRecord> {
        let target = match (namespace, name) {
            ("default", "web") => ServiceTarget::ClusterIp(vec![Ipv4Addr::new(10, 43, 0, 7)]),
            ("default", "db") => ServiceTarget::Headless(vec![endpoint(5, Some("db-0")), endpoint(6, None)]),
            ("default", "idle") => ServiceTarget::Headless(Vec::new()),
            ("default", "far") => ServiceTarget::External("example.org".into()),
            _ => return None,
        };
        let ports = vec![port("http", Protocol::Tcp, 80), port("h3", Protocol::Udp, 443)];
        Some(ServiceRecord { target, ports })
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        namespace == "default"
    }

    fn service_at(&self, address: Ipv4Addr) -> Option<ServiceName> {
        (address == Ipv4Addr::new(10, 43, 0, 7))
            .then(|| ServiceName { namespace: "default".into(), name: "web".into() })
    }

    fn endpoint_at(&self, address: Ipv4Addr) -> Option<EndpointName> {
        (address == Ipv4Addr::new(10, 42, 0, 5)).then(|| EndpointName {
            hostname: "db-0".into(),
            service: ServiceName { namespace: "default".into(), name: "db".into() },
        })
    }

    fn is_cluster_address(&self, address: Ipv4Addr) -> bool {
        matches!(address.octets(), [10, 42 | 43, ..])
    }
}

fn ask(name: &str, kind: RecordType) -> Answer {
    let zone = Zone::new("cluster.local").unwrap();
    answer(&zone, &Name::from_ascii(name).unwrap(), kind, &Cluster)
}

/// The answer in one line: what kind it is, or its records' data.
fn told(name: &str, kind: RecordType) -> String {
    match ask(name, kind) {
        Answer::Records { answers, .. } => {
            let data: Vec<String> = answers.iter().map(|record| record.data.to_string()).collect();
            data.join(" | ")
        }
        Answer::Alias { target, .. } => format!("alias {target}"),
        Answer::NoData => "no data".into(),
        Answer::NoName => "no name".into(),
        Answer::Forward => "forward".into(),
    }
}

#[test]
fn the_zone_answers_as_specified() {
    use RecordType::{A, AAAA, ANY, CNAME, MX, NS, PTR, SOA, SRV, TXT};
    for (name, kind, expected) in [
        ("web.default.svc.cluster.local.", A, "10.43.0.7"),
        ("WEB.Default.svc.cluster.LOCAL.", A, "10.43.0.7"),
        ("web.default.svc.cluster.local.", ANY, "10.43.0.7"),
        ("web.default.svc.cluster.local.", AAAA, "no data"),
        ("web.default.svc.cluster.local.", MX, "no data"),
        ("web.other.svc.cluster.local.", A, "no name"),
        ("nothing.default.svc.cluster.local.", A, "no name"),
        ("nothing.default.svc.cluster.local.", AAAA, "no name"),
        ("x.web.default.svc.cluster.local.", A, "no name"),
        ("db.default.svc.cluster.local.", A, "10.42.0.5 | 10.42.0.6"),
        ("db-0.db.default.svc.cluster.local.", A, "10.42.0.5"),
        ("10-42-0-6.db.default.svc.cluster.local.", A, "10.42.0.6"),
        ("10-42-0-5.db.default.svc.cluster.local.", A, "no name"),
        ("db-9.db.default.svc.cluster.local.", A, "no name"),
        ("idle.default.svc.cluster.local.", A, "no data"),
        ("far.default.svc.cluster.local.", A, "alias example.org."),
        ("far.default.svc.cluster.local.", CNAME, "example.org."),
        ("_http._tcp.web.default.svc.cluster.local.", SRV, "0 100 80 web.default.svc.cluster.local."),
        ("_h3._udp.web.default.svc.cluster.local.", SRV, "0 100 443 web.default.svc.cluster.local."),
        ("_h3._tcp.web.default.svc.cluster.local.", SRV, "no name"),
        ("_http._tcp.web.default.svc.cluster.local.", A, "no data"),
        ("_tcp.web.default.svc.cluster.local.", SRV, "no data"),
        (
            "_sql._tcp.db.default.svc.cluster.local.",
            SRV,
            "0 50 5432 db-0.db.default.svc.cluster.local. | 0 50 5432 10-42-0-6.db.default.svc.cluster.local.",
        ),
        ("_sql._tcp.idle.default.svc.cluster.local.", SRV, "no name"),
        ("10-42-0-5.default.pod.cluster.local.", A, "10.42.0.5"),
        ("10-42-0-5.other.pod.cluster.local.", A, "no name"),
        ("10-42-0.default.pod.cluster.local.", A, "no name"),
        ("default.svc.cluster.local.", A, "no data"),
        ("other.svc.cluster.local.", A, "no name"),
        ("svc.cluster.local.", A, "no data"),
        ("cluster.local.", A, "no data"),
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        ("nothing.cluster.local.", A, "no name"),
        ("example.org.web.default.svc.cluster.local.", A, "no name"),
        ("7.0.43.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local."),
        ("7.0.43.10.in-addr.arpa.", A, "no data"),
        ("5.0.42.10.in-addr.arpa.", PTR, "db-0.db.default.svc.cluster.local."),
        ("9.0.43.10.in-addr.arpa.", PTR, "no name"),
        ("9.0.168.192.in-addr.arpa.", PTR, "forward"),
        ("0.43.10.in-addr.arpa.", PTR, "forward"),
        ("example.org.", A, "forward"),
        ("cluster.local.example.org.", A, "forward"),
        ("xcluster.local.", A, "forward"),
        (".", NS, "forward"),
    ] {
        assert_eq!(told(name, kind), expected, "{name} {kind}");
    }
    assert!(told("dns-version.cluster.local.", TXT).contains("1.1.0"));
    assert!(told("cluster.local.", SOA).starts_with("ns.dns.cluster.local. hostmaster.cluster.local. "));
}

#[test]
fn answers_repeat_the_question_and_may_be_kept_for_five_seconds() {
    let Answer::Records { answers, .. } = ask("Web.default.SVC.cluster.local.", RecordType::A) else {
        panic!()
    };
    assert_eq!(answers[0].name.to_ascii(), "Web.default.SVC.cluster.local.");
    assert_eq!(answers[0].ttl, 5);
}

#[test]
fn service_records_bring_the_addresses_along() {
    let Answer::Records { additionals, .. } = ask("_sql._tcp.db.default.svc.cluster.local.", RecordType::SRV)
    else {
        panic!()
    };
    let told: Vec<String> =
        additionals.iter().map(|record| format!("{} {}", record.name, record.data)).collect();
    assert_eq!(
        told,
        ["db-0.db.default.svc.cluster.local. 10.42.0.5", "10-42-0-6.db.default.svc.cluster.local. 10.42.0.6"]
    );
}

#[test]
fn names_that_are_no_text_are_no_names() {
    let zone = Zone::new("cluster.local").unwrap();
    let name = Name::from_labels(vec![&b"\xff\xfe"[..], b"default", b"svc", b"cluster", b"local"]).unwrap();
    assert_eq!(answer(&zone, &name, RecordType::A, &Cluster), Answer::NoName);
    let dotted =
        Name::from_labels(vec![&b"web.default"[..], b"default", b"svc", b"cluster", b"local"]).unwrap();
    assert_eq!(answer(&zone, &dotted, RecordType::A, &Cluster), Answer::NoName);
}
