//! Names, over real sockets.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use hickory_server::proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_server::proto::rr::{Name, RecordType};
use sampan_network::{
    ClusterNames, DnsServer, NamedPort, Protocol, ServiceEndpoint, ServiceName, ServiceRecord, ServiceTarget,
};

use crate::world::{PATIENCE, in_machine};

/// `web` at one address, `crowd` at many, `far` at a name of the other zone.
struct Cluster;

impl ClusterNames for Cluster {
    fn service(&self, namespace: &str, name: &str) -> Option<ServiceRecord> {
        let endpoint =
            |d| ServiceEndpoint { address: Ipv4Addr::new(10, 42, 1, d), hostname: None, ports: Vec::new() };
        let target = match (namespace, name) {
            ("default", "web") => ServiceTarget::ClusterIp(vec![Ipv4Addr::new(10, 43, 0, 7)]),
            ("default", "crowd") => ServiceTarget::Headless((0..200).map(endpoint).collect()),
            ("default", "far") => ServiceTarget::External("web.default.svc.elsewhere.test".into()),
            _ => return None,
        };
        Some(ServiceRecord {
            target,
            ports: vec![NamedPort { name: "http".into(), protocol: Protocol::Tcp, port: 80 }],
        })
    }

    fn has_namespace(&self, namespace: &str) -> bool {
        namespace == "default"
    }

    fn service_at(&self, _: Ipv4Addr) -> Option<ServiceName> {
        None
    }
}

fn query(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

fn ask_udp(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.send_to(&query(name, kind), server).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

fn ask_tcp(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let query = query(name, kind);
    stream.write_all(&[&u16::try_from(query.len()).unwrap().to_be_bytes()[..], &query].concat()).unwrap();
    let mut length = [0; 2];
    stream.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer).unwrap();
    Message::from_vec(&answer).unwrap()
}

fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

/// A server that has another one to ask, and its address.
async fn two_servers(address: Ipv4Addr) -> (DnsServer, DnsServer) {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let elsewhere = DnsServer::start(any, Arc::new(Cluster), "elsewhere.test", Vec::new()).await.unwrap();
    let here = SocketAddr::from((address, 0));
    let server =
        DnsServer::start(here, Arc::new(Cluster), "cluster.local", vec![elsewhere.address()]).await.unwrap();
    (server, elsewhere)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn answers_over_udp_and_tcp() {
    let (server, _elsewhere) = two_servers(Ipv4Addr::LOCALHOST).await;
    let address = server.address();
    tokio::task::spawn_blocking(move || {
        let asks: [fn(SocketAddr, &str, RecordType) -> Message; 2] = [ask_udp, ask_tcp];
        for ask in asks {
            let web = ask(address, "web.default.svc.cluster.local.", RecordType::A);
            assert_eq!(data(&web), ["10.43.0.7"]);
            assert!(web.metadata.authoritative && web.metadata.recursion_available);
            let missing = ask(address, "nothing.default.svc.cluster.local.", RecordType::A);
            assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
            assert_eq!(missing.authorities.len(), 1);
            let no_data = ask(address, "web.default.svc.cluster.local.", RecordType::AAAA);
            assert_eq!(no_data.metadata.response_code, ResponseCode::NoError);
            assert!(no_data.answers.is_empty() && no_data.authorities.len() == 1);
            let srv = ask(address, "_http._tcp.web.default.svc.cluster.local.", RecordType::SRV);
            assert_eq!(data(&srv), ["0 100 80 web.default.svc.cluster.local."]);
            assert_eq!(srv.additionals.len(), 1);
        }
        let cut = ask_udp(address, "crowd.default.svc.cluster.local.", RecordType::A);
        assert!(cut.metadata.truncation);
        assert_eq!(ask_tcp(address, "crowd.default.svc.cluster.local.", RecordType::A).answers.len(), 200);
    })
    .await
    .unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn asks_others_about_the_rest() {
    let (server, _elsewhere) = two_servers(Ipv4Addr::LOCALHOST).await;
    let address = server.address();
    tokio::task::spawn_blocking(move || {
        let web = ask_udp(address, "web.default.svc.elsewhere.test.", RecordType::A);
        assert_eq!(data(&web), ["10.43.0.7"]);
        assert!(!web.metadata.authoritative);
        let missing = ask_udp(address, "nothing.default.svc.elsewhere.test.", RecordType::A);
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
        let far = ask_udp(address, "far.default.svc.cluster.local.", RecordType::A);
        assert_eq!(data(&far), ["web.default.svc.elsewhere.test.", "10.43.0.7"]);
        // The other server has nobody to ask and says so.
        let refused = ask_udp(address, "example.test.", RecordType::A);
        assert_ne!(refused.metadata.response_code, ResponseCode::NoError);
    })
    .await
    .unwrap();
}

#[test]
fn pods_ask_their_gateway() {
    in_machine(|machine| async move {
        let network = machine.network().await;
        let pod = machine.pod().await;
        network.attach_pod("a", pod.path()).await.unwrap();
        let address = SocketAddr::from((network.gateway(), 53));
        let _server =
            DnsServer::start(address, Arc::new(Cluster), "cluster.local", Vec::new()).await.unwrap();
        tokio::task::spawn_blocking(move || {
            let ask = || ask_tcp(address, "web.default.svc.cluster.local.", RecordType::A);
            assert_eq!(data(&pod.run(ask)), ["10.43.0.7"]);
            let ask = || ask_udp(address, "web.default.svc.cluster.local.", RecordType::A);
            assert_eq!(data(&pod.run(ask)), ["10.43.0.7"]);
        })
        .await
        .unwrap();
    });
}
