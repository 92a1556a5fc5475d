//! Pulling an image: manifest, configuration, and all layers side by side, each fetched, checked and unpacked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::sync::mpsc;

use crate::blobs::Expected;
use crate::index::{LayerRecord, Record};
use crate::manifest::{self, Descriptor, Document, MAX_CONFIG, Manifest};
use crate::registry::Registry;
use crate::store::{Inner, blocking, check_config};
use crate::transport::next_bytes;
use crate::{Digest, ImageError, LayerState, PullOptions, PullProgress, Reference};

/// How often a broken download of a layer is begun again.
const ATTEMPTS: u32 = 3;
/// Chunks on their way from the network to the disk.
const QUEUE: usize = 32;
/// A progress bar needs no more.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Tells a listener how far a pull is.
pub(crate) type Progress = Arc<dyn Fn(PullProgress) + Send + Sync>;

struct Pull {
    inner: Arc<Inner>,
    registry: Registry,
    name: Arc<str>,
    progress: Progress,
}

/// Fetches everything an image needs and describes it; naming it is the caller's last step.
pub(crate) async fn pull(
    inner: &Arc<Inner>,
    reference: &Reference,
    options: &PullOptions,
    progress: Progress,
) -> Result<Record, ImageError> {
    let registry = Registry::new(reference, options)?;
    let pull = Pull { inner: inner.clone(), registry, name: reference.to_string().into(), progress };
    let (top, bytes, manifest) = pull.manifest(reference).await?;
    let config_bytes = pull.config(&manifest.config).await?;
    let config: manifest::Config = manifest::parse("the image's configuration", &config_bytes)?;
    check_config(&pull.name, &config, manifest.layers.len())?;
    let pairs = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    try_join_all(pairs.clone().map(|(descriptor, diff_id)| pull.layer(descriptor, diff_id))).await?;
    let size = manifest.layers.iter().map(|layer| layer.size).sum::<u64>();
    let layers = pairs.map(|(descriptor, diff_id)| LayerRecord {
        blob: descriptor.digest.clone(),
        diff_id: diff_id.clone(),
    });
    Ok(Record {
        manifest: inner.blobs.put(&bytes)?,
        config_digest: inner.blobs.put(&config_bytes)?,
        references: reference.tagged().into_iter().collect(),
        repo_digests: vec![reference.with_digest(&top)],
        layers: layers.collect(),
        size: size + (bytes.len() + config_bytes.len()) as u64,
        created: config.created.unwrap_or_default(),
        config: config.config.into_image_config(),
    })
}

impl Pull {
    /// The manifest for this machine, and the digest the registry knows the image by.
    async fn manifest(&self, reference: &Reference) -> Result<(Digest, Bytes, Manifest), ImageError> {
        let bytes = self.registry.manifest(&reference.wanted()).await?;
        let top = Digest::of(&bytes);
        if let Some(expected) = reference.digest() {
            self.check_digest("the manifest", expected, &bytes)?;
        }
        let index = match manifest::document(&self.name, &bytes)? {
            Document::Manifest(manifest) => return Ok((top, bytes, manifest)),
            Document::Index(index) => index,
        };
        let digest = &index.select(&self.name)?.digest;
        let bytes = self.registry.manifest(&digest.to_string()).await?;
        self.check_digest("the manifest", digest, &bytes)?;
        match manifest::document(&self.name, &bytes)? {
            Document::Manifest(manifest) => Ok((top, bytes, manifest)),
            Document::Index(_) => Err(ImageError::format(&*self.name, "an index within an index")),
        }
    }

    fn check_digest(&self, what: &str, expected: &Digest, bytes: &[u8]) -> Result<(), ImageError> {
        match Digest::of(bytes) {
            actual if actual == *expected => Ok(()),
            actual => {
                let what = format!("{what} of {}", self.name);
                Err(ImageError::Digest { what, expected: expected.clone(), actual })
            }
        }
    }

    async fn config(&self, descriptor: &Descriptor) -> Result<Bytes, ImageError> {
        if self.inner.blobs.contains(&descriptor.digest) {
            return Ok(self.inner.blobs.read(&descriptor.digest)?.into());
        }
        let bytes = self.registry.small_blob(&descriptor.digest, MAX_CONFIG.min(descriptor.size)).await?;
        self.check_digest("the configuration", &descriptor.digest, &bytes)?;
        Ok(bytes)
    }

    async fn layer(&self, descriptor: &Descriptor, diff_id: &Digest) -> Result<(), ImageError> {
        self.tell(descriptor, LayerState::Waiting);
        self.fetch(descriptor).await?;
        self.tell(descriptor, LayerState::Unpacking);
        self.inner.unpack(&descriptor.digest, diff_id).await?;
        self.tell(descriptor, LayerState::Done);
        Ok(())
    }

    fn tell(&self, descriptor: &Descriptor, state: LayerState) {
        (self.progress)(PullProgress {
            reference: self.name.clone(),
            layer: descriptor.digest.clone(),
            total: descriptor.size,
            state,
        });
    }

    /// Gets a blob unless it is here. Who comes second waits for the first.
    async fn fetch(&self, descriptor: &Descriptor) -> Result<(), ImageError> {
        let _flight = self.inner.flights.enter(format!("blob {}", descriptor.digest)).await;
        if self.inner.blobs.contains(&descriptor.digest) {
            return Ok(());
        }
        let _permit = self.inner.downloads.acquire().await;
        let mut attempt = 1;
        loop {
            match self.download(descriptor).await {
                Err(error) if attempt < ATTEMPTS && is_passing(&error) => {
                    tracing::warn!(layer = %descriptor.digest, %error, attempt, "download broke, trying again");
                    tokio::time::sleep(Duration::from_millis(200) * 4u32.pow(attempt)).await;
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    /// Streams a blob to the disk; digest and file are written by a thread that may block.
    async fn download(&self, descriptor: &Descriptor) -> Result<(), ImageError> {
        let mut body = self.registry.blob(&descriptor.digest).await?;
        let url = self.registry.blob_url(&descriptor.digest);
        let (sender, mut chunks) = mpsc::channel::<Option<Bytes>>(QUEUE);
        let (inner, what, expected) = (
            self.inner.clone(),
            url.clone(),
            Expected::Content { digest: descriptor.digest.clone(), size: descriptor.size },
        );
        let disk = blocking(move || {
            let mut writer = inner.blobs.writer(what, expected)?;
            while let Some(chunk) = chunks.blocking_recv() {
                match chunk {
                    Some(bytes) => writer.write(&bytes)?,
                    None => return writer.finish().map(|_| true),
                }
            }
            // The network's side gave up; it knows why.
            Ok(false)
        });
        let network = async move {
            let (mut received, mut told) = (0, Instant::now());
            self.tell(descriptor, LayerState::Downloading(0));
            while let Some(bytes) = next_bytes(&mut body, &url).await? {
                received += bytes.len() as u64;
                // The disk's side gave up; it knows why.
                if sender.send(Some(bytes)).await.is_err() {
                    return Ok(());
                }
                if told.elapsed() >= PROGRESS_INTERVAL {
                    told = Instant::now();
                    self.tell(descriptor, LayerState::Downloading(received));
                }
            }
            let _ = sender.send(None).await;
            Ok(())
        };
        let (disk, network) = futures::join!(disk, network);
        network.and(disk.map(|_| ()))
    }
}

/// Whether trying again may help.
fn is_passing(error: &ImageError) -> bool {
    match error {
        ImageError::Transport { .. } => true,
        ImageError::Registry { status, .. } => *status >= 500 || *status == 429,
        _ => false,
    }
}
