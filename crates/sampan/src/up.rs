//! `sampan up`: assembles the platform and runs it until a signal ends it.
//!
//! The order is the order of need: a port and a directory that are free, the store, the API, network and runtime, then
//! the loops, which find their way by themselves. SIGTERM ends the platform and leaves the pods running; the next `up`
//! finds them again.

use std::fs::File;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::Node as NodeObject;
use rustix::fs::FlockOperation;
use sampan_apiserver::{Access, ApiServer, InProcess, Pki, ServerConfig, TraceCounts, TraceExporter, User};
use sampan_client::Informers;
use sampan_image::ImageStore;
use sampan_network::{DnsServer, Network};
use sampan_node::{InformerNames, Node, NodeConfig};
use sampan_runtime::{NativeConfig, NativeRuntime};
use sampan_store::embedded::{EmbeddedOptions, EmbeddedStore};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::cluster::{Cluster, DOMAIN, Deciding};
use crate::connector::{HostNames, LocalNode};
use crate::paths::Paths;
use crate::{Failure, UpArgs, chain};

/// Runs the verb.
pub(crate) fn main(args: UpArgs, traces: Option<TraceExporter>) -> Result<(), Failure> {
    let started = Instant::now();
    crate::require_root("up")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(run(args, traces, started));
    // Blocking threads (a tar being unpacked) have nothing to say any more.
    runtime.shutdown_background();
    result
}

/// Says that the platform of these directories runs; given up when the process ends, however it ends.
pub(crate) struct PidFile {
    _locked: File,
}

impl PidFile {
    fn take(path: &Path) -> Result<Self, Failure> {
        let context = |e: std::io::Error| format!("cannot write {}: {e}", path.display());
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(context)?;
        if rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(format!("another sampan runs in {}", path.parent().unwrap_or(path).display()).into());
        }
        file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id())).map_err(context)?;
        Ok(Self { _locked: file })
    }
}

async fn run(args: UpArgs, traces: Option<TraceExporter>, started: Instant) -> Result<(), Failure> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let paths = Paths::new(&args.directories);
    make_directories(&paths)?;
    let _pid = PidFile::take(&paths.pid())?;
    let listener =
        TcpListener::bind(args.bind).await.map_err(|e| format!("cannot listen on {}: {e}", args.bind))?;
    let counts = traces.as_ref().map(TraceExporter::counts);
    let traces = traces.map(Export::start);
    let platform = Platform::start(&args, &paths, listener, counts).await?;
    let ready = platform.wait_ready();
    tokio::select! {
        () = ready => {
            let milliseconds = started.elapsed().as_millis();
            println!("ready {milliseconds} ms  node {}  kubeconfig {}", platform.cluster.node_name, platform.kubeconfig.display());
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("ending; pods keep running");
    platform.stop().await;
    if let Some(traces) = traces {
        traces.stop().await;
    }
    Ok(())
}

/// The export of traces while it runs.
struct Export {
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Export {
    fn start(exporter: TraceExporter) -> Self {
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        Self { stop, task: tokio::spawn(exporter.run(Arc::new(HostNames), stopped)) }
    }

    /// Sends what is left; the exporter bounds how long that may take.
    async fn stop(self) {
        drop(self.stop);
        let _ = self.task.await;
    }
}

fn make_directories(paths: &Paths) -> Result<(), Failure> {
    use std::os::unix::fs::DirBuilderExt as _;
    for path in [&paths.data, &paths.run] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|e| format!("cannot make {}: {e}", path.display()))?;
    }
    Ok(())
}

/// The running parts.
struct Platform {
    cluster: Cluster,
    kubeconfig: PathBuf,
    informers: Informers,
    server: Arc<ApiServer>,
    node: Node,
    controllers: sampan_controllers::Controllers,
    tasks: tokio::task::JoinSet<()>,
    _dns: Option<DnsServer>,
}

impl Platform {
    async fn start(
        args: &UpArgs,
        paths: &Paths,
        listener: TcpListener,
        traces: Option<Arc<TraceCounts>>,
    ) -> Result<Self, Failure> {
        let bound = listener.local_addr()?;
        let store = EmbeddedStore::open(&paths.store(), EmbeddedOptions::default())?;
        let deciding = Deciding::begin().await?;
        let cluster = Cluster::decide(paths, args).await?;
        let pki = Arc::new(Pki::open(&paths.pki())?);
        let store = args.access.seal(store, paths)?;
        let gateway = cluster.pod_cidr.nth(1).ok_or("the range of pods has no address")?;
        let node_address = machine_address().unwrap_or(gateway);

        let network = Network::start(cluster.network(paths, node_address)).await?;
        drop(deciding);
        let gateway = network.gateway();
        let server = ApiServer::start_with(
            store.clone(),
            ServerConfig {
                service_cidr: cluster.service_cidr.to_string(),
                advertise: (gateway, bound.port()),
                cluster_domain: DOMAIN.to_owned(),
                build: env!("CARGO_PKG_VERSION").to_owned(),
            },
            &pki,
            Access { traces, ..args.access.access()? },
        )
        .await?;
        server.set_resolver(Arc::new(HostNames));
        let mut tasks = tokio::task::JoinSet::new();
        let proxies = args.access.front_proxy_authorities()?;
        serve(&mut tasks, &server, &pki, &proxies, &cluster, listener, (gateway, node_address)).await?;
        tasks.spawn(sampan_apiserver::serve_certificates(server.clone(), pki.clone()));
        tasks.spawn(sampan_apiserver::compact_regularly(server.clone(), sampan_kernel::memory::give_back));
        tasks.spawn(async move {
            if let Err(error) = store.renew().await {
                tracing::error!(%error, "secrets cannot be sealed with the newest key");
            }
        });
        let kubeconfig = args.kubeconfig.clone().unwrap_or_else(|| paths.kubeconfig());
        write_kubeconfig(&pki, &kubeconfig, bound)?;

        let connected = server.clone();
        let client = move |name: &str, groups: &[&str], agent| {
            sampan_client::in_process(InProcess::new(connected.clone(), User::known(name, groups), agent))
        };
        // One copy of every kind for all parts of the process; what each may write is its own identity's matter.
        let informers = Informers::new(client("system:sampan", &["system:masters"], "sampan"));
        let images = ImageStore::open(&paths.images())?;
        let runtime = NativeRuntime::open(NativeConfig::new(
            paths.containers(),
            paths.runtime(),
            cluster.cgroup(),
            images.clone(),
        ))?;
        let ranges = vec![cluster.pod_cidr, cluster.service_cidr];
        let names = Arc::new(InformerNames::new(&informers, ranges));
        let dns = start_dns(gateway, names).await;
        let node_user = format!("system:node:{}", cluster.node_name);
        let mut config = NodeConfig::new(&cluster.node_name, node_address, paths.node(), paths.node_run());
        config.version = format!("{}+sampan", sampan_api::schema::version());
        config.plain_http_registries.clone_from(&args.plain_http_registry);
        let node = Node::start(
            config,
            client(&node_user, &["system:nodes"], "kubelet"),
            &informers,
            runtime,
            images,
            network,
        )?;
        server
            .set_node_connector(Arc::new(LocalNode { name: cluster.node_name.clone(), node: node.clone() }));
        let scheduler = sampan_scheduler::start(
            client("system:kube-scheduler", &[], "kube-scheduler"),
            informers.clone(),
        );
        tasks.spawn(async move {
            if let Err(error) = scheduler.await {
                tracing::error!(%error, "the scheduler ended");
            }
        });
        let controllers = sampan_controllers::start(
            move |name, groups| client(name, groups, "kube-controller-manager"),
            informers.clone(),
            sampan_controllers::Config { ca_pem: pki.ca_pem().to_owned() },
        );
        Ok(Self { cluster, kubeconfig, informers, server, node, controllers, tasks, _dns: dns })
    }

    /// Waits until the node says that it is ready for pods.
    async fn wait_ready(&self) {
        let mut changes = self.informers.of::<NodeObject>().subscribe();
        while let Some(change) = changes.recv().await {
            let Some(node) = change.new else { continue };
            let conditions = node.status.as_ref().and_then(|s| s.conditions.as_ref());
            let ready = conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            if node.metadata.name.as_deref() == Some(&self.cluster.node_name) && ready {
                return;
            }
        }
    }

    async fn stop(mut self) {
        self.server.begin_shutdown();
        self.node.stop().await;
        self.controllers.stop().await;
        self.tasks.shutdown().await;
    }
}

/// The address other machines see, found by asking the kernel for the way to a documentation address; nothing is sent.
fn machine_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) if !address.is_unspecified() && !address.is_loopback() => Some(address),
        _ => None,
    }
}

/// Names and addresses under which the API is known, and the listeners behind them.
async fn serve(
    tasks: &mut tokio::task::JoinSet<()>,
    server: &Arc<ApiServer>,
    pki: &Pki,
    proxies: &[String],
    cluster: &Cluster,
    listener: TcpListener,
    (gateway, node_address): (Ipv4Addr, Ipv4Addr),
) -> Result<(), Failure> {
    let bound = listener.local_addr()?;
    let service = format!("kubernetes.default.svc.{DOMAIN}");
    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(str::to_owned)
        .to_vec();
    names.extend([service, cluster.node_name.clone()]);
    let mut addresses: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), gateway.into(), node_address.into()];
    addresses.extend(cluster.service_cidr.nth(1).map(IpAddr::from));
    if !bound.ip().is_unspecified() {
        addresses.push(bound.ip());
    }
    addresses.sort_unstable();
    addresses.dedup();
    let proxies: Vec<&str> = proxies.iter().map(String::as_str).collect();
    let tls = pki.server_tls_trusting(&names, &addresses, &proxies)?;
    // Pods come by links of their own, which a listener on one address does not hear.
    if !bound.ip().is_unspecified() {
        let inner = SocketAddr::from((gateway, bound.port()));
        let inner = TcpListener::bind(inner).await.map_err(|e| format!("cannot listen on {inner}: {e}"))?;
        tasks.spawn(sampan_apiserver::serve(server.clone(), inner, tls.clone()));
    }
    tasks.spawn(sampan_apiserver::serve(server.clone(), listener, tls));
    Ok(())
}

fn write_kubeconfig(pki: &Pki, path: &Path, bound: SocketAddr) -> Result<(), Failure> {
    let host = if bound.ip().is_unspecified() { IpAddr::from(Ipv4Addr::LOCALHOST) } else { bound.ip() };
    let admin = pki.client("admin", &["system:masters"])?;
    let text = pki.kubeconfig(&format!("https://{}", SocketAddr::new(host, bound.port())), "admin", &admin);
    sampan_apiserver::write_private(path, text.as_bytes())
        .map_err(|e| format!("cannot write {}: {e}", path.display()).into())
}

/// A cluster without names is a poor one, but it runs.
async fn start_dns(gateway: Ipv4Addr, names: Arc<InformerNames>) -> Option<DnsServer> {
    let address = SocketAddr::from((gateway, 53));
    match DnsServer::start(address, names, DOMAIN, sampan_network::system_upstreams()).await {
        Ok(server) => Some(server),
        Err(error) => {
            tracing::error!(error = chain(&error), "pods have no name service");
            None
        }
    }
}
