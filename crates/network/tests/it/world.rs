//! A machine, its pods, and programs in them that answer with their name and with whom they see.

use std::fs::File;
use std::future::Future;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nlink::netlink::addr::Ipv4Address;
use nlink::netlink::link::VethLink;
use nlink::netlink::namespace::{self, Netns};
use nlink::netlink::route::Ipv4Route;
use nlink::netlink::{Connection, Route};
use sampan_network::{Network, NetworkConfig, Protocol, ServiceRoute};

/// Long enough for a lost first packet to be repeated twice.
pub(crate) const PATIENCE: Duration = Duration::from_secs(8);

/// The machine's address on its uplink.
pub(crate) const NODE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// Another machine, at the far end of the uplink, and the machine's default gateway.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);
/// Smaller than usual, to see whether pods take it over.
pub(crate) const UPLINK_MTU: u32 = 1420;

pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(10, 43, 0, 7);
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 42, 0, 1);

/// A namespace at a path; removed when dropped.
pub(crate) struct Place {
    path: PathBuf,
    netns: Netns,
}

impl Place {
    fn new(path: PathBuf) -> Self {
        namespace::create_path(&path).expect("make a network namespace");
        let netns = Netns::from_path(&path).expect("open the network namespace");
        Self { path, netns }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `f` inside. Sockets made there stay there.
    pub(crate) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.netns.run(f).expect("run inside a network namespace")
    }

    pub(crate) fn route(&self) -> Connection<Route> {
        Connection::<Route>::new_in(&self.netns).expect("netlink socket inside a network namespace")
    }

    /// One line to `to` over TCP, and the answer.
    pub(crate) fn ask_tcp(&self, to: (Ipv4Addr, u16)) -> io::Result<String> {
        self.connect(to)?.ask()
    }

    pub(crate) fn connect(&self, to: (Ipv4Addr, u16)) -> io::Result<Talk> {
        let address = SocketAddr::from(to);
        let stream = self.run(|| TcpStream::connect_timeout(&address, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Talk { reader: BufReader::new(stream.try_clone()?), stream })
    }

    /// A UDP socket that speaks to `to` only and keeps its port.
    pub(crate) fn udp_to(&self, to: (Ipv4Addr, u16)) -> io::Result<UdpSocket> {
        let socket = self.run(|| UdpSocket::bind("0.0.0.0:0"))?;
        socket.connect(SocketAddrV4::new(to.0, to.1))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        Ok(socket)
    }

    pub(crate) fn ask_udp(&self, to: (Ipv4Addr, u16)) -> io::Result<String> {
        ask_udp(&self.udp_to(to)?)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = namespace::delete_path(&self.path);
    }
}

/// Asks until there is an answer: a datagram may get lost while a neighbour is looked for.
pub(crate) fn ask_udp(socket: &UdpSocket) -> io::Result<String> {
    let end = Instant::now() + PATIENCE;
    loop {
        socket.send(b"hello")?;
        let mut buffer = [0; 64];
        match socket.recv(&mut buffer) {
            Ok(length) => return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {}
            Err(error) => return Err(error),
        }
    }
}

/// A TCP connection that stays.
pub(crate) struct Talk {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Talk {
    pub(crate) fn ask(&mut self) -> io::Result<String> {
        self.stream.write_all(b"hello\n")?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

/// The machine and what is around it.
pub(crate) struct Machine {
    pub(crate) place: Place,
    pub(crate) outside: Place,
    pods: AtomicU32,
    dir: tempfile::TempDir,
}

impl Machine {
    async fn new() -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let place = Place::new(dir.path().join("machine"));
        let outside = Place::new(dir.path().join("outside"));
        for lo in [place.route(), outside.route()] {
            lo.set_link_up("lo").await.expect("loopback");
        }
        let machine = Self { place, outside, pods: AtomicU32::new(0), dir };
        machine.connect_outside().await.expect("uplink");
        machine
    }

    async fn connect_outside(&self) -> nlink::Result<()> {
        let (here, there) = (self.place.route(), self.outside.route());
        let file = File::open(self.outside.path()).expect("namespace file");
        here.add_link(VethLink::new("uplink", "uplink").mtu(UPLINK_MTU).peer_netns_fd(&file)).await?;
        for (connection, address) in [(&here, NODE), (&there, OUTSIDE)] {
            connection.add_address(Ipv4Address::new("uplink", address, 24)).await?;
            connection.set_link_up("uplink").await?;
        }
        here.add_route(Ipv4Route::default_route().gateway(OUTSIDE).dev("uplink")).await
    }

    pub(crate) fn config(&self) -> NetworkConfig {
        NetworkConfig {
            name: "it".into(),
            pod_cidr: "10.42.0.0/24".parse().expect("range"),
            service_cidr: "10.43.0.0/24".parse().expect("range"),
            node_address: NODE,
            state_dir: self.dir.path().join("state"),
            cluster_domain: "cluster.local".into(),
        }
    }

    pub(crate) async fn network(&self) -> Arc<Network> {
        Network::start(self.config()).await.expect("start the network")
    }

    /// A pod with its loopback up, as the runtime hands it over.
    pub(crate) async fn pod(&self) -> Place {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let pod = Place::new(self.dir.path().join(format!("pod-{number}")));
        pod.route().set_link_up("lo").await.expect("loopback");
        pod
    }

    /// A pod on the network, with a program of that name in it.
    pub(crate) async fn serving_pod(&self, network: &Network, name: &str) -> Serving {
        let pod = self.pod().await;
        let address = network.attach_pod(name, pod.path()).await.expect("attach");
        Serving { _server: Server::start(&pod, name), address, pod }
    }
}

/// A pod, its address, and the program in it.
pub(crate) struct Serving {
    // First, so that it ends before its namespace goes.
    _server: Server,
    pub(crate) address: Ipv4Addr,
    pub(crate) pod: Place,
}

impl Serving {
    pub(crate) fn endpoint(&self) -> (Ipv4Addr, u16) {
        (self.address, Server::PORT)
    }
}

/// A program on port 8080, TCP and UDP, which answers each line and each datagram with its name and the sender's address.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    listener: TcpListener,
    wake_udp: UdpSocket,
}

impl Server {
    pub(crate) const PORT: u16 = 8080;

    pub(crate) fn start(place: &Place, name: &str) -> Self {
        let (listener, udp, wake_udp) = place.run(|| {
            let listener = TcpListener::bind(("0.0.0.0", Self::PORT)).expect("listen");
            let udp = UdpSocket::bind(("0.0.0.0", Self::PORT)).expect("bind");
            let wake_udp = UdpSocket::bind("127.0.0.1:0").expect("bind");
            wake_udp.connect(("127.0.0.1", Self::PORT)).expect("connect to oneself");
            (listener, udp, wake_udp)
        });
        let stop = Arc::new(AtomicBool::new(false));
        serve_tcp(listener.try_clone().expect("second handle"), name.to_owned());
        serve_udp(udp, name.to_owned(), stop.clone());
        Self { stop, listener, wake_udp }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Ends the accept that waits in the other thread.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        let _ = self.wake_udp.send(b"stop");
    }
}

fn serve_tcp(listener: TcpListener, name: String) {
    std::thread::spawn(move || {
        while let Ok((stream, peer)) = listener.accept() {
            let answer = format!("{name} {}\n", peer.ip());
            std::thread::spawn(move || answer_lines(stream, &answer));
        }
    });
}

fn answer_lines(stream: TcpStream, answer: &str) {
    let Ok(mut writer) = stream.try_clone() else {
        return;
    };
    for line in BufReader::new(stream).lines() {
        if line.is_err() || writer.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn serve_udp(socket: UdpSocket, name: String, stop: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            let _ = socket.send_to(format!("{name} {}", peer.ip()).as_bytes(), peer);
        }
    });
}

/// Runs the test inside a machine of its own. The runtime has one thread, which is the one in the namespace.
pub(crate) fn in_machine<F>(test: impl FnOnce(Machine) -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: making network namespaces needs root");
        return;
    }
    let thread = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        // The sockets of the runtime's machine are made on this thread, inside.
        runtime.block_on(async move {
            let machine = Machine::new().await;
            let _inside = namespace::enter_path(machine.place.path()).expect("enter the machine");
            test(machine).await;
        });
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A TCP service on port 80 of [`VIP`] for these endpoints.
pub(crate) fn service(key: &str, endpoints: &[(Ipv4Addr, u16)]) -> ServiceRoute {
    ServiceRoute {
        key: key.into(),
        protocol: Protocol::Tcp,
        cluster_ip: Some(VIP),
        port: 80,
        node_port: None,
        endpoints: endpoints.to_vec(),
        session_affinity_seconds: None,
    }
}

/// The same over UDP.
pub(crate) fn udp_service(key: &str, endpoints: &[(Ipv4Addr, u16)]) -> ServiceRoute {
    ServiceRoute { protocol: Protocol::Udp, ..service(key, endpoints) }
}
