//! Debian's `docker-registry`, started for one test, and pushing to it.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::http::send;
use crate::tars::{MANIFEST, TestImage, digest};

/// A registry of our own, ended with the test.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `None`, with a notice, when there is no registry on this machine.
pub(crate) fn start() -> Option<Server> {
    let directory = TempDir::new().unwrap();
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let storage = directory.path().join("data");
    let config = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
        storage.display()
    );
    let path = directory.path().join("config.yml");
    std::fs::write(&path, config).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&path)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("skipped: there is no docker-registry on this machine");
            return None;
        }
        Err(error) => panic!("cannot start docker-registry: {error}"),
    };
    let server = Server { child, address, _directory: directory };
    let deadline = Instant::now() + Duration::from_secs(30);
    while send(address, "GET", "/v2/", "text/plain", b"").is_err() {
        assert!(Instant::now() < deadline, "docker-registry does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    Some(server)
}

impl Server {
    pub(crate) fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        for blob in image.layers.iter().chain([&image.config]) {
            self.push_blob(repository, blob);
        }
        self.push_manifest(repository, tag, MANIFEST, &image.manifest);
    }

    pub(crate) fn push_blob(&self, repository: &str, blob: &[u8]) {
        let path = format!("/v2/{repository}/blobs/uploads/");
        let (status, headers) = send(self.address, "POST", &path, "text/plain", b"").unwrap();
        assert_eq!(status, 202);
        let location = &headers.iter().find(|(name, _)| name == "location").unwrap().1;
        let path = location.strip_prefix(&format!("http://{}", self.address)).unwrap_or(location);
        let path = format!("{path}&digest={}", digest(blob));
        let (status, _) = send(self.address, "PUT", &path, "application/octet-stream", blob).unwrap();
        assert_eq!(status, 201);
    }

    pub(crate) fn push_manifest(&self, repository: &str, tag: &str, kind: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/manifests/{tag}");
        let (status, _) = send(self.address, "PUT", &path, kind, bytes).unwrap();
        assert_eq!(status, 201);
    }
}
