//! Archives and images made by hand, honest and not.

use std::collections::BTreeMap;
use std::io::Write;

use sampan_image::Digest;
use serde_json::json;

/// Writes entries without any of the checks of a well-behaved writer.
#[derive(Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    pub(crate) fn raw(mut self, kind: u8, path: &str, link: &str, mode: u32, content: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_600_000_000);
        header.set_size(content.len() as u64);
        header.as_mut_bytes()[156] = kind;
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.content(content)
    }

    pub(crate) fn content(mut self, content: &[u8]) -> Self {
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    /// Changes the last header block.
    pub(crate) fn with(mut self, change: impl FnOnce(&mut tar::Header)) -> Self {
        let start = self.bytes.len() - 512;
        let mut header = tar::Header::from_byte_slice(&self.bytes[start..]).clone();
        change(&mut header);
        header.set_cksum();
        self.bytes[start..].copy_from_slice(header.as_bytes());
        self
    }

    pub(crate) fn file(self, path: &str, content: &str) -> Self {
        self.raw(b'0', path, "", 0o644, content.as_bytes())
    }

    pub(crate) fn directory(self, path: &str) -> Self {
        self.raw(b'5', path, "", 0o755, b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.raw(b'2', path, target, 0o777, b"")
    }

    pub(crate) fn hard_link(self, path: &str, target: &str) -> Self {
        self.raw(b'1', path, target, 0o644, b"")
    }

    /// Records for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            bytes.extend_from_slice(format!("{length} {key}=").as_bytes());
            bytes.extend_from_slice(value);
            bytes.push(b'\n');
        }
        self.raw(b'x', "pax", "", 0o644, &bytes)
    }

    /// Without the end mark.
    pub(crate) fn open_end(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.extend_from_slice(&[0; 1024]);
        self.bytes
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// The parts of an image.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    /// As stored, maybe compressed.
    pub(crate) layers: Vec<Vec<u8>>,
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Digest::of(bytes).to_string()
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

impl TestImage {
    /// An image of archives, compressed by `compress`.
    pub(crate) fn new(layers: &[Vec<u8>], compress: impl Fn(&[u8]) -> Vec<u8>) -> Self {
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2026-01-02T03:04:05Z",
            "config": {"Cmd": ["/bin/sh"], "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}, "User": "1000",
                "WorkingDir": "/work", "StopSignal": "SIGQUIT", "Labels": {"a": "b"}, "Volumes": {"/data": {}}},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        Self::with_config(&config, layers.iter().map(|layer| compress(layer)).collect())
    }

    pub(crate) fn with_config(config: &serde_json::Value, layers: Vec<Vec<u8>>) -> Self {
        let config = config.to_string().into_bytes();
        let described: Vec<_> = layers
            .iter()
            .map(|layer| {
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": digest(layer), "size": layer.len()})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": digest(&config), "size": config.len()},
            "layers": described});
        Self { manifest: manifest.to_string().into_bytes(), config, layers }
    }

    pub(crate) fn id(&self) -> String {
        digest(&self.config)
    }

    pub(crate) fn blobs(&self) -> BTreeMap<String, Vec<u8>> {
        let all = self.layers.iter().chain([&self.config, &self.manifest]);
        all.map(|blob| (digest(blob), blob.clone())).collect()
    }

    /// The files of an OCI layout.
    pub(crate) fn layout(&self, reference: &str) -> Vec<(String, Vec<u8>)> {
        let index = json!({"schemaVersion": 2, "manifests": [
            {"mediaType": MANIFEST, "digest": digest(&self.manifest), "size": self.manifest.len(),
                "annotations": {"io.containerd.image.name": reference}}]});
        let mut files = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
            ("index.json".to_owned(), index.to_string().into_bytes()),
        ];
        let blobs = self.blobs().into_iter();
        files.extend(blobs.map(|(digest, blob)| (format!("blobs/sha256/{}", &digest[7..]), blob)));
        files
    }

    /// The files of an old `docker save`, whose layers are not compressed.
    pub(crate) fn docker_save(&self, tags: &[&str]) -> Vec<(String, Vec<u8>)> {
        let name = |index: usize| format!("layer{index}/layer.tar");
        let layers: Vec<String> = (0..self.layers.len()).map(name).collect();
        let manifest = json!([{"Config": "config.json", "RepoTags": tags, "Layers": layers}]);
        let mut files: Vec<_> =
            self.layers.iter().enumerate().map(|(index, layer)| (name(index), layer.clone())).collect();
        files.push(("config.json".to_owned(), self.config.clone()));
        files.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
        files
    }
}

pub(crate) fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let add = |tar: Tar, (path, content): &(String, Vec<u8>)| tar.raw(b'0', path, "", 0o644, content);
    files.iter().fold(Tar::default(), add).end()
}

/// Busybox as it is on this machine, and its shell.
pub(crate) fn busybox() -> Vec<u8> {
    let program = ["/bin/busybox", "/usr/bin/busybox"].iter().find_map(|path| std::fs::read(path).ok());
    let program = program.unwrap_or_else(|| b"#!no busybox here".to_vec());
    Tar::default()
        .directory("./")
        .directory("./bin/")
        .raw(b'0', "./bin/busybox", "", 0o755, &program)
        .symlink("./bin/sh", "busybox")
        .hard_link("./bin/ls", "./bin/busybox")
        .directory("./etc/")
        .file("./etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
        .end()
}
