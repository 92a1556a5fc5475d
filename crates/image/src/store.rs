//! The store as its users see it, and the steps that pulling, loading and importing share.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures::future::try_join_all;
use rustix::fs::FlockOperation;
use tokio::sync::{OwnedMutexGuard, Semaphore};

use crate::archive::{Archive, Found, FoundLayer};
use crate::blobs::{Blobs, Expected, sync_directory};
use crate::index::{Images, Index, LayerRecord, Record, lock, try_lock};
use crate::manifest::{self, Config, Manifest, RootFs, RunConfig};
use crate::pull::{self, Progress};
use crate::{Digest, Image, ImageError, ImportConfig, Limits, PullOptions, Reference, Removed, layer};

/// Blobs fetched at the same time, over all pulls: enough to fill a line, few enough not to be called rude.
const DOWNLOADS: usize = 6;

/// All images of this machine. Cheap to clone.
#[derive(Clone)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

/// Keeps an image and its layers from being removed, in this and every other process, as long as it lives.
#[derive(Debug)]
pub struct Pin {
    _lock: File,
}

pub(crate) struct Inner {
    root: PathBuf,
    scratch: PathBuf,
    layers: PathBuf,
    pins: PathBuf,
    limits: Limits,
    pub(crate) blobs: Blobs,
    index: Index,
    pub(crate) flights: Flights,
    pub(crate) downloads: Semaphore,
    unpacks: Semaphore,
    /// Whether a cleaning had to be put off.
    garbage: AtomicBool,
}

/// Things being done, by name: who asks for the same waits.
#[derive(Default)]
pub(crate) struct Flights {
    current: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
}

impl Flights {
    pub(crate) async fn enter(&self, name: String) -> OwnedMutexGuard<()> {
        let turn = {
            let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.retain(|_, turn| turn.strong_count() > 0);
            match current.get(&name).and_then(Weak::upgrade) {
                Some(turn) => turn,
                None => {
                    let turn = Arc::default();
                    current.insert(name, Arc::downgrade(&turn));
                    turn
                }
            }
        };
        turn.lock_owned().await
    }
}

/// Runs what blocks on a thread for that.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(ImageError::format("a thread of the image store", error)),
    }
}

/// Whether a configuration fits this machine and its manifest.
pub(crate) fn check_config(name: &str, config: &Config, layers: usize) -> Result<(), ImageError> {
    let (os, architecture) = manifest::platform();
    let fits = |found: &str, wanted: &str| found.is_empty() || found == wanted;
    if !fits(&config.os, os) || !fits(&config.architecture, architecture) {
        return Err(ImageError::Platform {
            reference: name.to_owned(),
            wanted: format!("{os}/{architecture}"),
            available: format!("{}/{}", config.os, config.architecture),
        });
    }
    if config.rootfs.diff_ids.len() != layers {
        let reason = format!("{layers} layers, but {} diff ids", config.rootfs.diff_ids.len());
        return Err(ImageError::format(name, reason));
    }
    Ok(())
}

impl ImageStore {
    /// Opens the store below `root`, which is made if it is missing, and cleans up after a crash.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        Self::open_with(root, Limits::default())
    }

    /// The same with other bounds for a layer's archive.
    pub fn open_with(root: &Path, limits: Limits) -> Result<Self, ImageError> {
        let (scratch, layers, pins) = (root.join("tmp"), root.join("layers"), root.join("pins"));
        // Layers hold set-id programs of other users: nobody but us gets to them.
        for directory in [root, &scratch, &layers, &pins] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(ImageError::io("make", directory))?;
        }
        let processors = std::thread::available_parallelism().map_or(2, usize::from);
        let inner = Inner {
            blobs: Blobs::open(root, &scratch)?,
            index: Index::open(root)?,
            root: root.to_owned(),
            scratch,
            layers,
            pins,
            limits,
            flights: Flights::default(),
            downloads: Semaphore::new(DOWNLOADS),
            unpacks: Semaphore::new(processors),
            garbage: AtomicBool::new(false),
        };
        if let Err(error) = inner.collect() {
            tracing::warn!(root = %root.display(), %error, "cannot clean the image store");
        }
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Loads all images of an OCI layout (directory or archive) or an archive of `docker save`, compressed or not.
    pub async fn load(&self, path: &Path) -> Result<Vec<Image>, ImageError> {
        let (inner, path) = (self.inner.clone(), path.to_owned());
        self.operation(async move {
            let (archive, found) = {
                let inner = inner.clone();
                blocking(move || {
                    let archive = Archive::open(&path, &inner.scratch, inner.limits)?;
                    let found = archive.images()?;
                    Ok((archive, found))
                })
                .await?
            };
            let mut images = Vec::new();
            for found in found {
                images.push(inner.add_found(found).await?);
            }
            // Its files were needed until here.
            drop(archive);
            Ok(images)
        })
        .await
    }

    /// Makes an image of one layer out of the archive of a root file system.
    pub async fn import(
        &self,
        rootfs_tar: &Path,
        reference: &str,
        config: ImportConfig,
    ) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse()?;
        let (inner, path) = (self.inner.clone(), rootfs_tar.to_owned());
        self.operation(blocking(move || inner.import(&path, &reference, config))).await
    }

    /// Pulls an image from its registry. What is here already is not fetched again.
    pub async fn pull(
        &self,
        reference: &str,
        options: PullOptions,
        progress: Progress,
    ) -> Result<Image, ImageError> {
        let reference: Reference = reference.parse()?;
        let inner = self.inner.clone();
        self.operation(async move {
            let record = pull::pull(&inner, &reference, &options, progress).await?;
            inner.name(record)
        })
        .await
    }

    /// An image by name, name and digest, id, or the beginning of an id.
    pub fn get(&self, reference_or_id: &str) -> Result<Option<Image>, ImageError> {
        Ok(self.inner.index.read()?.find(reference_or_id).map(Record::image))
    }

    /// All images.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        Ok(self.inner.index.read()?.images.values().map(Record::image).collect())
    }

    /// Removes a name, and with the last name the image; by id the image with all its names. An image that is pinned
    /// stays.
    pub fn remove(&self, reference_or_id: &str) -> Result<Removed, ImageError> {
        self.inner.remove(reference_or_id)
    }

    /// Gives an image one more name.
    pub fn tag(&self, reference_or_id: &str, reference: &str) -> Result<Image, ImageError> {
        let name = reference.parse::<Reference>()?.tagged().ok_or_else(|| ImageError::Reference {
            reference: reference.to_owned(),
            reason: "a digest is no name to give".to_owned(),
        })?;
        let tagged = self.inner.index.update(|images| {
            let mut record = images.find(reference_or_id)?.clone();
            record.references.push(name);
            let id = record.config_digest.clone();
            images.add(record);
            images.images.get(&id).map(Record::image)
        })?;
        tagged.ok_or_else(|| not_found(reference_or_id))
    }

    /// Lower directories for overlayfs, topmost first. Empty for an image without layers. Hold a [`Pin`] first.
    pub fn layer_dirs(&self, image_id: &str) -> Result<Vec<PathBuf>, ImageError> {
        let images = self.inner.index.read()?;
        let record = images.find(image_id).ok_or_else(|| not_found(image_id))?;
        let mut seen = BTreeSet::new();
        let mut directories = Vec::new();
        for layer in record.layers.iter().rev() {
            // Overlayfs refuses a directory that is given twice; below itself a layer adds nothing.
            if !seen.insert(&layer.diff_id) {
                continue;
            }
            let directory = self.inner.layer_path(&layer.diff_id);
            fs::metadata(&directory).map_err(ImageError::io("find the layer", &directory))?;
            directories.push(directory);
        }
        Ok(directories)
    }

    /// Keeps an image as long as the pin lives. Every container holds one.
    pub fn pin(&self, image_id: &str) -> Result<Pin, ImageError> {
        let find = || -> Result<Digest, ImageError> {
            let images = self.inner.index.read()?;
            let record = images.find(image_id).ok_or_else(|| not_found(image_id))?;
            Ok(record.config_digest.clone())
        };
        let id = find()?;
        let pin = Pin { _lock: lock(&self.inner.pins.join(id.hex()), FlockOperation::LockShared)? };
        // It may have been removed before the lock was ours.
        find().map(|_| pin)
    }

    /// Runs what adds content: cleaning waits for it, and follows it when it failed.
    async fn operation<T>(&self, work: impl Future<Output = Result<T, ImageError>>) -> Result<T, ImageError> {
        let inner = self.inner.clone();
        let running = blocking(move || lock(&inner.root.join("LOCK"), FlockOperation::LockShared)).await?;
        let result = work.await;
        drop(running);
        if result.is_err() || self.inner.garbage.load(Ordering::Acquire) {
            let inner = self.inner.clone();
            if let Err(error) = blocking(move || inner.collect()).await {
                tracing::warn!(%error, "cannot clean the image store");
            }
        }
        result
    }
}

fn not_found(reference: &str) -> ImageError {
    ImageError::NotFound { reference: reference.to_owned() }
}

impl Inner {
    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        self.layers.join(diff_id.hex())
    }

    /// Unpacks the layer of a blob that is here, unless that is done.
    pub(crate) async fn unpack(self: &Arc<Self>, blob: &Digest, diff_id: &Digest) -> Result<(), ImageError> {
        let _flight = self.flights.enter(format!("layer {diff_id}")).await;
        if self.layer_path(diff_id).exists() {
            return Ok(());
        }
        let _permit = self.unpacks.acquire().await;
        let (inner, blob, diff_id) = (self.clone(), self.blobs.path(blob), diff_id.clone());
        blocking(move || inner.unpack_file(&blob, Some(&diff_id)).map(|_| ())).await
    }

    /// Unpacks a file below `tmp/` and gives the result its name.
    fn unpack_file(&self, file: &Path, expected: Option<&Digest>) -> Result<Digest, ImageError> {
        let failed = || ImageError::io("make a directory in", &self.scratch);
        let scratch = tempfile::tempdir_in(&self.scratch).map_err(failed())?;
        let directory = scratch.path().join("layer");
        fs::create_dir(&directory).map_err(failed())?;
        let unpacked = layer::unpack(file, &directory, expected, self.limits)?;
        tracing::debug!(layer = %unpacked.diff_id, size = unpacked.size, "unpacked");
        let path = self.layer_path(&unpacked.diff_id);
        match fs::rename(&directory, &path) {
            Ok(()) => sync_directory(&self.layers).map_err(ImageError::io("write to disk", &self.layers))?,
            // Another process was faster, with the same content.
            Err(error) if is_occupied(&error) => {}
            Err(error) => return Err(ImageError::io("name", &path)(error)),
        }
        Ok(unpacked.diff_id)
    }

    /// The last step of everything that adds an image.
    fn name(&self, record: Record) -> Result<Image, ImageError> {
        let id = record.config_digest.clone();
        let image = self.index.update(|images| {
            images.add(record);
            images.images.get(&id).map(Record::image)
        })?;
        image.ok_or_else(|| not_found(&id.to_string()))
    }

    async fn add_found(self: &Arc<Self>, found: Found) -> Result<Image, ImageError> {
        let config: Config = manifest::parse("the image's configuration", &found.config)?;
        let name = found.references.first().map_or_else(|| "the image".to_owned(), Reference::to_string);
        check_config(&name, &config, found.layers.len())?;
        let pairs = found.layers.into_iter().zip(config.rootfs.diff_ids);
        let layers = pairs.map(|(layer, diff_id)| self.add_layer(layer, diff_id));
        let layers: Vec<(LayerRecord, u64)> = try_join_all(layers).await?;
        let config_digest = self.blobs.put(&found.config)?;
        let manifest = match found.manifest {
            Some(bytes) => bytes,
            None => new_manifest((config_digest.clone(), found.config.len() as u64), &layers)?,
        };
        let documents = (manifest.len() + found.config.len()) as u64;
        self.name(Record {
            manifest: self.blobs.put(&manifest)?,
            config_digest,
            references: found.references.iter().filter_map(Reference::tagged).collect(),
            repo_digests: Vec::new(),
            size: layers.iter().map(|(_, size)| size).sum::<u64>() + documents,
            layers: layers.into_iter().map(|(layer, _)| layer).collect(),
            created: config.created.unwrap_or_default(),
            config: config.config.into_image_config(),
        })
    }

    async fn add_layer(
        self: &Arc<Self>,
        layer: FoundLayer,
        diff_id: Digest,
    ) -> Result<(LayerRecord, u64), ImageError> {
        let inner = self.clone();
        let (blob, size) = blocking(move || match layer.descriptor {
            Some((digest, size)) if inner.blobs.contains(&digest) => Ok((digest, size)),
            Some((digest, size)) => inner.blobs.copy(&layer.path, Expected::Content { digest, size }),
            None => inner.blobs.copy(&layer.path, Expected::AtMost(inner.limits.bytes)),
        })
        .await?;
        self.unpack(&blob, &diff_id).await?;
        Ok((LayerRecord { blob, diff_id }, size))
    }

    fn import(
        &self,
        rootfs_tar: &Path,
        reference: &Reference,
        config: ImportConfig,
    ) -> Result<Image, ImageError> {
        let (blob, size) = self.blobs.copy(rootfs_tar, Expected::AtMost(self.limits.bytes))?;
        let diff_id = self.unpack_file(&self.blobs.path(&blob), None)?;
        let (os, architecture) = manifest::platform();
        let no_value = || serde_json::Value::Object(serde_json::Map::new());
        let config = Config {
            created: Some(jiff::Timestamp::now().to_string()),
            architecture: architecture.to_owned(),
            os: os.to_owned(),
            config: RunConfig {
                entrypoint: config.entrypoint,
                cmd: config.cmd,
                env: config.env,
                working_dir: config.working_dir,
                user: config.user,
                exposed_ports: config.exposed_ports.into_iter().map(|port| (port, no_value())).collect(),
                ..RunConfig::default()
            },
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids: vec![diff_id.clone()] },
        };
        let bytes = to_json(&config)?;
        let config_digest = self.blobs.put(&bytes)?;
        let layers = [(LayerRecord { blob, diff_id }, size)];
        let manifest = new_manifest((config_digest.clone(), bytes.len() as u64), &layers)?;
        self.name(Record {
            size: size + (manifest.len() + bytes.len()) as u64,
            manifest: self.blobs.put(&manifest)?,
            config_digest,
            references: reference.tagged().into_iter().collect(),
            repo_digests: Vec::new(),
            layers: layers.into_iter().map(|(layer, _)| layer).collect(),
            created: config.created.unwrap_or_default(),
            config: config.config.into_image_config(),
        })
    }

    fn remove(&self, text: &str) -> Result<Removed, ImageError> {
        let record = self.index.read()?.find(text).cloned().ok_or_else(|| not_found(text))?;
        let name = text.parse::<Reference>().ok().and_then(|reference| reference.tagged());
        if let Some(name) = name.filter(|name| record.references.contains(name))
            && record.references.len() > 1
        {
            self.index.update(|images| untag(images, &record.config_digest, &name))?;
            return Ok(Removed { untagged: vec![name], ..Removed::default() });
        }
        let id = record.config_digest;
        let in_use = || ImageError::InUse { id: id.to_string() };
        let pin = self.pins.join(id.hex());
        let lock = try_lock(&pin)?.ok_or_else(in_use)?;
        let removed = self.index.update(|images| images.images.remove(&id))?;
        // Who waits for the lock finds no image any more, so the file is nobody's.
        let _ = fs::remove_file(&pin);
        drop(lock);
        let record = removed.ok_or_else(|| not_found(text))?;
        let freed = self.collect()?;
        Ok(Removed { untagged: record.references, deleted: vec![id.to_string()], freed })
    }

    /// Removes what no image names, if nothing is being added, and gives the bytes of the blobs among it.
    fn collect(&self) -> Result<u64, ImageError> {
        let Some(_alone) = try_lock(&self.root.join("LOCK"))? else {
            self.garbage.store(true, Ordering::Release);
            return Ok(0);
        };
        self.garbage.store(false, Ordering::Release);
        let images = self.index.read()?;
        let freed = self.collect_blobs(&images)?;
        self.collect_layers(&images)?;
        for path in children(&self.scratch)? {
            remove_all(&path)?;
        }
        Ok(freed)
    }

    fn collect_blobs(&self, images: &Images) -> Result<u64, ImageError> {
        let used: BTreeSet<&Digest> = images
            .images
            .values()
            .flat_map(|record| {
                let layers = record.layers.iter().map(|layer| &layer.blob);
                layers.chain([&record.manifest, &record.config_digest])
            })
            .collect();
        let mut freed = 0;
        for (digest, size) in self.blobs.list()? {
            if !used.contains(&digest) {
                self.blobs.remove(&digest)?;
                freed += size;
            }
        }
        Ok(freed)
    }

    /// Unused layers are renamed first: a layer is whole or not there.
    fn collect_layers(&self, images: &Images) -> Result<(), ImageError> {
        let layers = images.images.values().flat_map(|record| &record.layers);
        let used: BTreeSet<PathBuf> = layers.map(|layer| self.layer_path(&layer.diff_id)).collect();
        for path in children(&self.layers)? {
            if used.contains(&path) {
                continue;
            }
            let name = path.file_name().unwrap_or_default();
            fs::rename(&path, self.scratch.join(name)).map_err(ImageError::io("remove", &path))?;
        }
        Ok(())
    }
}

fn untag(images: &mut Images, id: &Digest, name: &str) {
    if let Some(record) = images.images.get_mut(id) {
        record.references.retain(|reference| reference != name);
    }
}

fn to_json(document: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(document).map_err(|error| ImageError::format("a document of the image", error))
}

fn new_manifest(config: (Digest, u64), layers: &[(LayerRecord, u64)]) -> Result<Vec<u8>, ImageError> {
    to_json(&Manifest::new(config, layers.iter().map(|(layer, size)| (layer.blob.clone(), *size))))
}

fn is_occupied(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty)
}

fn children(directory: &Path) -> Result<Vec<PathBuf>, ImageError> {
    let failed = || ImageError::io("list", directory);
    let entries = fs::read_dir(directory).map_err(failed())?;
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(failed())).collect()
}

fn remove_all(path: &Path) -> Result<(), ImageError> {
    let is_directory = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let removed = if is_directory { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(ImageError::io("remove", path)(error)),
        _ => Ok(()),
    }
}
