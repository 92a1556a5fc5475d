//! The DNS server for pods: the cluster's names from the cluster's state, all others from the node's name servers.
//!
//! It runs in the node's process and listens on the anchor's address, so a query passes no address translation and no
//! other machine. Deciding is in `answer.rs` and pure; this file is sockets and messages.

mod answer;
mod names;
mod upstream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::proto::op::{Edns, Header, HeaderCounts, MessageType, Metadata, OpCode, ResponseCode};
use hickory_server::proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use tokio::net::{TcpListener, UdpSocket};

pub use answer::{Answer, Zone, answer};
pub use names::{
    ClusterNames, EndpointName, NamedPort, ServiceEndpoint, ServiceName, ServiceRecord, ServiceTarget,
};
pub use upstream::system_upstreams;

use crate::NetworkError;
use upstream::Upstream;

/// How long a silent TCP client keeps its connection.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// Answers waiting for a slow TCP client.
const TCP_BUFFER: usize = 32;

/// The largest answer over UDP, as agreed for DNS Flag Day 2020: what passes every network in one piece. Longer ones are
/// cut, and the client asks again over TCP.
const MAX_UDP_PAYLOAD: u16 = 1232;

/// How many free ports are tried for one that both UDP and TCP have, when any will do.
const PORT_TRIES: usize = 16;

/// A running server; it stops when dropped.
pub struct DnsServer {
    server: Server<Handler>,
    address: SocketAddr,
}

impl DnsServer {
    /// Listens on `address` over UDP and TCP, and answers for the zone `domain` (`cluster.local`) from `names` and for
    /// everything else from the `upstream` name servers (see [`system_upstreams`]); without any, other names are refused.
    /// With port 0 the kernel chooses one. The address must be there already, the anchor's from [`crate::Network::start`]
    /// on.
    ///
    /// # Errors
    /// When the address cannot be listened on, or `domain` is no domain.
    pub async fn start(
        address: SocketAddr,
        names: Arc<dyn ClusterNames>,
        domain: &str,
        upstream: Vec<SocketAddr>,
    ) -> Result<Self, NetworkError> {
        let zone = Zone::new(domain)
            .map_err(|err| NetworkError::Config { reason: format!("cluster domain {domain:?}: {err}") })?;
        let (udp, tcp, bound) =
            listen(address).await.map_err(|err| NetworkError::DnsListen { address, err })?;
        // Asking ourselves would go round in circles.
        let upstream: Vec<SocketAddr> = upstream.into_iter().filter(|server| *server != bound).collect();
        let mut server = Server::new(Handler { zone, names, upstream: Upstream::new(&upstream)? });
        server.register_socket(udp);
        server.register_listener(tcp, TCP_IDLE, TCP_BUFFER);
        Ok(Self { server, address: bound })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Finishes the answers under way and stops.
    pub async fn stop(mut self) {
        if let Err(error) = self.server.shutdown_gracefully().await {
            tracing::debug!(%error, "the DNS server ended with an error");
        }
    }
}

/// Sockets of both kinds on one address.
async fn listen(address: SocketAddr) -> io::Result<(UdpSocket, TcpListener, SocketAddr)> {
    let mut tries = if address.port() == 0 { PORT_TRIES } else { 1 };
    loop {
        let udp = UdpSocket::bind(address).await?;
        let bound = udp.local_addr()?;
        tries -= 1;
        match TcpListener::bind(bound).await {
            Ok(tcp) => return Ok((udp, tcp, bound)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

struct Handler {
    zone: Zone,
    names: Arc<dyn ClusterNames>,
    upstream: Upstream,
}

/// What goes into the response.
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    soa: Vec<Record>,
    additionals: Vec<Record>,
}

impl Reply {
    fn of_code(code: ResponseCode) -> Self {
        Self { code, authoritative: false, answers: Vec::new(), soa: Vec::new(), additionals: Vec::new() }
    }
}

impl Handler {
    async fn reply(&self, request: &Request) -> Reply {
        if request.metadata.message_type != MessageType::Query || request.metadata.op_code != OpCode::Query {
            return Reply::of_code(ResponseCode::NotImp);
        }
        let Ok(info) = request.request_info() else {
            return Reply::of_code(ResponseCode::FormErr);
        };
        if info.query.query_class() != DNSClass::IN {
            return Reply::of_code(ResponseCode::Refused);
        }
        self.resolve(info.query.original().name(), info.query.query_type()).await
    }

    async fn resolve(&self, name: &Name, kind: RecordType) -> Reply {
        match self.decide(name, kind) {
            Answer::Alias { record, target } => self.follow(*record, &target, kind).await,
            Answer::Forward => self.forward(name, kind).await,
            decided => self.own(decided),
        }
    }

    fn decide(&self, name: &Name, kind: RecordType) -> Answer {
        answer(&self.zone, name, kind, self.names.as_ref())
    }

    /// An answer of our zone.
    fn own(&self, answer: Answer) -> Reply {
        let mut reply = Reply { authoritative: true, ..Reply::of_code(ResponseCode::NoError) };
        match answer {
            Answer::Records { answers, additionals } => {
                reply.answers = answers;
                reply.additionals = additionals;
            }
            Answer::NoName => {
                reply.code = ResponseCode::NXDomain;
                reply.soa = vec![self.zone.soa()];
            }
            // An alias of an alias is not followed: one step is what services are made for.
            Answer::NoData | Answer::Alias { .. } | Answer::Forward => reply.soa = vec![self.zone.soa()],
        }
        reply
    }

    async fn forward(&self, name: &Name, kind: RecordType) -> Reply {
        let told = self.upstream.ask(name, kind).await;
        Reply { answers: told.answers, soa: told.soa.into_iter().collect(), ..Reply::of_code(told.code) }
    }

    /// Answers for another name, with the record first that says it is another name. Clients' resolvers do not ask again
    /// themselves.
    async fn follow(&self, record: Record, target: &Name, kind: RecordType) -> Reply {
        let mut reply = match self.decide(target, kind) {
            Answer::Forward => self.forward(target, kind).await,
            decided => self.own(decided),
        };
        reply.answers.insert(0, record);
        reply
    }
}

#[async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let reply = self.reply(request).await;
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = true;
        let edns = request.edns.as_ref().map(response_edns);
        let response = MessageResponseBuilder::new(&request.queries, edns.as_ref()).build(
            metadata,
            reply.answers.iter(),
            std::iter::empty(),
            reply.soa.iter(),
            reply.additionals.iter(),
        );
        match response_handle.send_response(response).await {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(client = %request.src(), %error, "cannot send a DNS answer");
                metadata.response_code = ResponseCode::ServFail;
                ResponseInfo::from(Header { metadata, counts: HeaderCounts::default() })
            }
        }
    }
}

fn response_edns(asked: &Edns) -> Edns {
    let mut edns = Edns::new();
    edns.set_max_payload(asked.max_payload().clamp(512, MAX_UDP_PAYLOAD)).set_version(0);
    edns
}
