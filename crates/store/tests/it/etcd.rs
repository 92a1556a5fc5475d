//! The same suite against a real etcd.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sampan_store::etcd::EtcdStore;
use tempfile::TempDir;

use crate::suite;

/// An etcd of our own, ended with the test.
struct Server {
    child: Child,
    endpoint: String,
    _directory: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start() -> Option<Server> {
    let directory = TempDir::new().unwrap();
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let peer = format!("http://127.0.0.1:{}", free_port());
    let child = Command::new("etcd")
        .arg("--data-dir")
        .arg(directory.path().join("data"))
        .args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint])
        .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
        .args(["--initial-cluster", &format!("default={peer}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    match child {
        Ok(child) => Some(Server { child, endpoint, _directory: directory }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: there is no etcd on this machine");
            None
        }
        Err(error) => panic!("cannot start etcd: {error}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suite_etcd() {
    let Some(server) = start() else { return };
    let deadline = Instant::now() + Duration::from_secs(60);
    let store = loop {
        match EtcdStore::connect(std::slice::from_ref(&server.endpoint), "/sampan-test", None).await {
            Ok(store) => break store,
            Err(error) if Instant::now() > deadline => panic!("etcd does not answer: {error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    suite::run(store).await;
}
