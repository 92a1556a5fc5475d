//! Questions about the rest of the world, handed to the name servers of the node.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{Name, Record, RecordType};
use tokio::sync::Semaphore;

use crate::NetworkError;

/// How many questions may wait for the world at a time. With an unreachable name server each waits for seconds, and a pod
/// in a loop must not fill the memory with them. At 50 ms an answer this is 10,000 questions per second.
const MAX_WAITING: usize = 512;

/// For one try with one name server. Clients give up after 5 seconds by default, and ask again.
const TRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Of the name servers in resolv.conf, as the C library has it (`MAXNS`).
const MAX_SERVERS: usize = 3;

/// What the world said.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) code: ResponseCode,
    pub(super) answers: Vec<Record>,
    /// The record that says how long a "no" may be remembered.
    pub(super) soa: Option<Record>,
}

impl Told {
    fn only(code: ResponseCode) -> Self {
        Self { code, answers: Vec::new(), soa: None }
    }
}

/// The name servers of the node.
pub(super) struct Upstream {
    /// None when there is nobody to ask.
    resolver: Option<TokioResolver>,
    waiting: Semaphore,
}

impl Upstream {
    pub(super) fn new(servers: &[SocketAddr]) -> Result<Self, NetworkError> {
        let resolver = if servers.is_empty() { None } else { Some(resolver(servers)?) };
        Ok(Self { resolver, waiting: Semaphore::new(MAX_WAITING) })
    }

    /// Asks, and translates every way to fail into what a client understands: `REFUSED` when there is nobody to ask,
    /// `SERVFAIL` when nobody answers or too many wait.
    pub(super) async fn ask(&self, name: &Name, kind: RecordType) -> Told {
        let Some(resolver) = &self.resolver else {
            return Told::only(ResponseCode::Refused);
        };
        let Ok(_place) = self.waiting.try_acquire() else {
            return Told::only(ResponseCode::ServFail);
        };
        match resolver.lookup(name.clone(), kind).await {
            Ok(found) => Told { code: ResponseCode::NoError, answers: found.answers().to_vec(), soa: None },
            Err(NetError::Dns(DnsError::NoRecordsFound(no))) => Told {
                code: no.response_code,
                answers: Vec::new(),
                soa: no.soa.map(|soa| (*soa).into_record_of_rdata()),
            },
            Err(NetError::Dns(DnsError::ResponseCode(code))) => Told::only(code),
            Err(error) => {
                tracing::debug!(%name, %kind, %error, "no name server answered");
                Told::only(ResponseCode::ServFail)
            }
        }
    }
}

fn resolver(servers: &[SocketAddr]) -> Result<TokioResolver, NetworkError> {
    let servers = servers.iter().map(name_server).collect();
    let config = ResolverConfig::from_parts(None, Vec::new(), servers);
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    let options = builder.options_mut();
    options.timeout = TRY_TIMEOUT;
    options.attempts = 2;
    // The node's hosts file is about the node, not about the cluster.
    options.use_hosts_file = ResolveHosts::Never;
    builder.build().map_err(|err| NetworkError::DnsUpstream { err })
}

fn name_server(address: &SocketAddr) -> NameServerConfig {
    let at_port = |mut connection: ConnectionConfig| {
        connection.port = address.port();
        connection
    };
    let ways = vec![at_port(ConnectionConfig::udp()), at_port(ConnectionConfig::tcp())];
    NameServerConfig::new(address.ip(), true, ways)
}

/// The name servers of this machine's `/etc/resolv.conf`. Those on the loopback (systemd's `127.0.0.53`) are fine: the
/// server that asks them runs on the node, not in a pod. None when the file is missing or names none.
pub fn system_upstreams() -> Vec<SocketAddr> {
    let path = Path::new("/etc/resolv.conf");
    match fs::read_to_string(path) {
        Ok(text) => name_servers(&text),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "names outside the cluster will not be found");
            Vec::new()
        }
    }
}

/// resolv.conf(5): lines `nameserver <address>`; a comment begins with `#` or `;`.
fn name_servers(resolv_conf: &str) -> Vec<SocketAddr> {
    resolv_conf
        .lines()
        .filter_map(|line| {
            let mut words = line.split(['#', ';']).next()?.split_whitespace();
            (words.next()? == "nameserver").then_some(())?;
            words.next()?.parse::<IpAddr>().ok()
        })
        .take(MAX_SERVERS)
        .map(|address| SocketAddr::new(address, 53))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_resolv_conf() {
        for (text, expected) in [
            ("", vec![]),
            ("search example.org\nnameserver 192.0.2.53\n", vec!["192.0.2.53:53"]),
            (
                "# nameserver 192.0.2.1\n;nameserver 192.0.2.2\n\tnameserver\t127.0.0.53 # stub",
                vec!["127.0.0.53:53"],
            ),
            ("nameserver fe80::1%eth0\nnameserver ::1\nnameserver x", vec!["[::1]:53"]),
            (
                "nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4",
                vec!["1.1.1.1:53", "1.1.1.2:53", "1.1.1.3:53"],
            ),
            ("nameservers 192.0.2.1\noptions ndots:2", vec![]),
        ] {
            let expected: Vec<SocketAddr> = expected.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(name_servers(text), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn refuses_when_there_is_nobody_to_ask() {
        let upstream = Upstream::new(&[]).unwrap();
        let told = upstream.ask(&Name::from_ascii("example.org.").unwrap(), RecordType::A).await;
        assert_eq!(told.code, ResponseCode::Refused);
    }
}
