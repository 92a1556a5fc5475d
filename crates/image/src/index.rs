//! Which images there are: one JSON file, written new and renamed. A node has tens of images and changes them rarely,
//! so that a file that can be read with any tool is enough; a database would lock out a second process, and
//! `sampan image` may run beside a server.
//!
//! Locks, in this order: an operation holds `LOCK` shared as long as it may add content that no image names yet;
//! removing content holds it exclusively. Changes of the index hold `index.lock` for their moment.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::blobs::sync_directory;
use crate::{Digest, Image, ImageConfig, ImageError, Reference};

const VERSION: u32 = 1;

/// One image as the index knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) manifest: Digest,
    pub(crate) config_digest: Digest,
    pub(crate) references: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    /// Bottom first.
    pub(crate) layers: Vec<LayerRecord>,
    pub(crate) size: u64,
    pub(crate) created: String,
    pub(crate) config: ImageConfig,
}

/// A layer: the blob it came as and what came out of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    pub(crate) blob: Digest,
    pub(crate) diff_id: Digest,
}

impl Record {
    pub(crate) fn image(&self) -> Image {
        Image {
            id: self.config_digest.to_string(),
            references: self.references.clone(),
            repo_digests: self.repo_digests.clone(),
            size: self.size,
            created: self.created.clone(),
            config: self.config.clone(),
        }
    }
}

/// The content of the file. Images by id.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Images {
    version: u32,
    pub(crate) images: BTreeMap<Digest, Record>,
}

impl Images {
    /// Looks an image up by name, by name and digest, by id, or by the beginning of an id (at least 4 digits, and only
    /// if it is the only one).
    pub(crate) fn find(&self, text: &str) -> Option<&Record> {
        if let Ok(id) = text.parse::<Digest>() {
            return self.images.get(&id);
        }
        self.find_name(text).or_else(|| self.find_prefix(text))
    }

    fn find_name(&self, text: &str) -> Option<&Record> {
        let reference = text.parse::<Reference>().ok()?;
        let name = reference.to_string();
        self.images.values().find(|record| match reference.digest() {
            Some(_) => record.repo_digests.contains(&name),
            None => record.references.contains(&name),
        })
    }

    fn find_prefix(&self, text: &str) -> Option<&Record> {
        let prefix = text.strip_prefix("sha256:").unwrap_or(text);
        if prefix.len() < 4 {
            return None;
        }
        let mut found = self.images.iter().filter(|(id, _)| id.hex().starts_with(prefix));
        let (_, record) = found.next()?;
        found.next().is_none().then_some(record)
    }

    /// Adds an image. Its names are taken from whoever had them; those it had before stay.
    pub(crate) fn add(&mut self, mut record: Record) {
        for other in self.images.values_mut() {
            other.references.retain(|reference| !record.references.contains(reference));
        }
        if let Some(before) = self.images.remove(&record.config_digest) {
            merge(&mut record.references, before.references);
            merge(&mut record.repo_digests, before.repo_digests);
        }
        self.images.insert(record.config_digest.clone(), record);
    }
}

fn merge(into: &mut Vec<String>, from: Vec<String>) {
    into.extend(from);
    into.sort();
    into.dedup();
}

/// The file, and the last content read from it.
pub(crate) struct Index {
    path: PathBuf,
    lock: PathBuf,
    cached: Mutex<Option<(Stamp, Arc<Images>)>>,
}

/// What tells one version of the file from the next: each is a new file.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    modified: SystemTime,
    size: u64,
}

impl Index {
    pub(crate) fn open(root: &Path) -> Result<Self, ImageError> {
        let index =
            Self { path: root.join("index.json"), lock: root.join("index.lock"), cached: Mutex::default() };
        index.read()?;
        Ok(index)
    }

    /// The images now.
    pub(crate) fn read(&self) -> Result<Arc<Images>, ImageError> {
        let Some(stamp) = self.stamp()? else { return Ok(Arc::default()) };
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, images)) = &*cached
            && *known == stamp
        {
            return Ok(images.clone());
        }
        let bytes = fs::read(&self.path).map_err(ImageError::io("read", &self.path))?;
        let images = Arc::new(self.parse(&bytes)?);
        *cached = Some((stamp, images.clone()));
        Ok(images)
    }

    fn parse(&self, bytes: &[u8]) -> Result<Images, ImageError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let what = || self.path.display().to_string();
        let Version { version } =
            serde_json::from_slice(bytes).map_err(|error| ImageError::format(what(), error))?;
        if version > VERSION {
            return Err(ImageError::NewerVersion {
                path: self.path.clone(),
                found: version,
                supported: VERSION,
            });
        }
        serde_json::from_slice(bytes).map_err(|error| ImageError::format(what(), error))
    }

    fn stamp(&self) -> Result<Option<Stamp>, ImageError> {
        use std::os::unix::fs::MetadataExt;
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(ImageError::io("read", &self.path)(error)),
            Ok(metadata) => {
                let modified = metadata.modified().map_err(ImageError::io("read", &self.path))?;
                Ok(Some(Stamp { inode: metadata.ino(), modified, size: metadata.len() }))
            }
        }
    }

    /// Changes the images; nobody else changes them meanwhile, in no process.
    pub(crate) fn update<T>(&self, change: impl FnOnce(&mut Images) -> T) -> Result<T, ImageError> {
        let _lock = lock(&self.lock, FlockOperation::LockExclusive)?;
        let mut images = Images::clone(&*self.read()?);
        images.version = VERSION;
        let result = change(&mut images);
        self.write(&images)?;
        Ok(result)
    }

    fn write(&self, images: &Images) -> Result<(), ImageError> {
        let directory = self.path.parent().unwrap_or(Path::new("."));
        let bytes = serde_json::to_vec_pretty(images)
            .map_err(|error| ImageError::format("the index of images", error))?;
        let mut file = tempfile::Builder::new()
            .prefix(".index-")
            .tempfile_in(directory)
            .map_err(ImageError::io("create a file in", directory))?;
        let failed = || ImageError::io("write", &self.path);
        file.write_all(&bytes).and_then(|()| file.as_file().sync_all()).map_err(failed())?;
        file.persist(&self.path).map_err(|error| failed()(error.error))?;
        sync_directory(directory).map_err(failed())
    }
}

/// Waits for a lock that lives as long as the file that is returned.
pub(crate) fn lock(path: &Path, operation: FlockOperation) -> Result<File, ImageError> {
    let file = open_lock(path)?;
    flock(&file, operation).map_err(|errno| ImageError::io("lock", path)(errno.into()))?;
    Ok(file)
}

/// Takes a lock if it is free.
pub(crate) fn try_lock(path: &Path) -> Result<Option<File>, ImageError> {
    let file = open_lock(path)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(errno) => Err(ImageError::io("lock", path)(errno.into())),
    }
}

fn open_lock(path: &Path) -> Result<File, ImageError> {
    let options = File::options().create(true).truncate(false).write(true).open(path);
    options.map_err(ImageError::io("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(name: &str, references: &[&str]) -> Record {
        Record {
            manifest: Digest::of(b"m"),
            config_digest: Digest::of(name.as_bytes()),
            references: references.iter().map(|text| text.to_string()).collect(),
            repo_digests: vec![],
            layers: vec![],
            size: 0,
            created: String::new(),
            config: ImageConfig::default(),
        }
    }

    #[test]
    fn names_belong_to_one_image() {
        let root = tempfile::tempdir().unwrap();
        let index = Index::open(root.path()).unwrap();
        let latest = "docker.io/library/a:latest";
        index.update(|images| images.add(record("one", &[latest, "docker.io/library/a:1"]))).unwrap();
        index.update(|images| images.add(record("two", &[latest]))).unwrap();
        index.update(|images| images.add(record("two", &["docker.io/library/a:2"]))).unwrap();
        let again = Index::open(root.path()).unwrap().read().unwrap();
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        assert_eq!(again.find("a").unwrap().config_digest, two);
        assert_eq!(again.find("a:1").unwrap().config_digest, one);
        assert_eq!(again.find("a:2").unwrap().references, ["docker.io/library/a:2", latest]);
        assert_eq!(again.find(&one.to_string()).unwrap().config_digest, one);
        assert_eq!(again.find(&one.hex()[..12]).unwrap().config_digest, one);
        assert!(again.find("nothing").is_none());
        assert!(again.find("").is_none());
    }

    #[test]
    fn a_newer_index_is_refused() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("index.json"), br#"{"version":2,"pictures":[]}"#).unwrap();
        assert!(matches!(Index::open(root.path()).err(), Some(ImageError::NewerVersion { found: 2, .. })));
    }
}
