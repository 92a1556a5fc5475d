//! Images in a file or directory: OCI layouts and archives of `docker save`, old and new.
//!
//! An archive is first spread into numbered files in a scratch directory, because the documents that explain it may
//! come last. Names in it are only ever keys of a map, so that no path of the archive reaches the file system.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tempfile::TempDir;

use crate::manifest::{self, Document, MAX_CONFIG, MAX_LAYERS, MAX_MANIFEST, Manifest};
use crate::tarball::{Kind, Limits, Tarball};
use crate::{Digest, ImageError, Reference, layer};

/// An archive of a few images has some hundred entries.
const MAX_ENTRIES: u64 = 100_000;
/// Old archives link repeated layers to each other, in one step.
const MAX_LINKS: usize = 8;

/// An opened archive or directory.
pub(crate) struct Archive {
    what: String,
    content: Content,
}

enum Content {
    Directory(PathBuf),
    Spread { files: BTreeMap<String, Stored>, _scratch: TempDir },
}

enum Stored {
    File(PathBuf),
    Link(String),
}

/// An image found in an archive, not yet verified.
pub(crate) struct Found {
    /// The manifest as it came; `None` when the archive has none and one must be made.
    pub(crate) manifest: Option<Vec<u8>>,
    pub(crate) config: Vec<u8>,
    /// Bottom first.
    pub(crate) layers: Vec<FoundLayer>,
    pub(crate) references: Vec<Reference>,
}

pub(crate) struct FoundLayer {
    pub(crate) path: PathBuf,
    /// What the manifest says of it.
    pub(crate) descriptor: Option<(Digest, u64)>,
}

/// An entry of `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Archive {
    /// Opens a directory, or spreads an archive (plain, gzip or zstd) below `scratch`.
    pub(crate) fn open(path: &Path, scratch: &Path, limits: Limits) -> Result<Self, ImageError> {
        let metadata = fs::metadata(path).map_err(ImageError::io("read", path))?;
        let content = match metadata.is_dir() {
            true => Content::Directory(path.to_owned()),
            false => spread(path, scratch, limits)?,
        };
        Ok(Self { what: path.display().to_string(), content })
    }

    /// All images in it.
    pub(crate) fn images(&self) -> Result<Vec<Found>, ImageError> {
        let docker = self.read("manifest.json", MAX_MANIFEST)?;
        let docker: Vec<DockerImage> = match docker {
            Some(bytes) => manifest::parse(&format!("manifest.json of {}", self.what), &bytes)?,
            None => Vec::new(),
        };
        if let Some(index) = self.read("index.json", MAX_MANIFEST)? {
            let mut images = self.oci_images(&index)?;
            self.add_tags(&mut images, &docker)?;
            return Ok(images);
        }
        if docker.is_empty() {
            let reason = "this is neither an OCI layout nor an archive of docker save (no index.json, no manifest.json)";
            return Err(ImageError::format(&self.what, reason));
        }
        docker.iter().map(|image| self.docker_image(image)).collect()
    }

    fn oci_images(&self, index: &[u8]) -> Result<Vec<Found>, ImageError> {
        let Document::Index(index) = manifest::document(&format!("index.json of {}", self.what), index)?
        else {
            return Err(ImageError::format(&self.what, "index.json is no index"));
        };
        let (os, architecture) = manifest::platform();
        let single = index.manifests.len() == 1;
        let mut images = Vec::new();
        for descriptor in &index.manifests {
            let foreign = descriptor
                .platform
                .as_ref()
                .is_some_and(|platform| platform.os != os || platform.architecture != architecture);
            // Build attestations are listed like images, for a platform called unknown.
            if foreign && !single {
                continue;
            }
            let bytes = self.blob(&descriptor.digest, MAX_MANIFEST)?;
            let (bytes, manifest) = match manifest::document(&descriptor.digest.to_string(), &bytes)? {
                Document::Manifest(manifest) => (bytes, manifest),
                Document::Index(index) => self.manifest(&index.select(&self.what)?.digest)?,
            };
            let references = references(&descriptor.annotations);
            images.push(self.oci_image(bytes, &manifest, references)?);
        }
        if images.is_empty() {
            index.select(&self.what)?;
        }
        Ok(images)
    }

    fn manifest(&self, digest: &Digest) -> Result<(Vec<u8>, Manifest), ImageError> {
        let bytes = self.blob(digest, MAX_MANIFEST)?;
        match manifest::document(&digest.to_string(), &bytes)? {
            Document::Manifest(manifest) => Ok((bytes, manifest)),
            Document::Index(_) => Err(ImageError::format(digest.to_string(), "an index within an index")),
        }
    }

    fn oci_image(
        &self,
        bytes: Vec<u8>,
        manifest: &Manifest,
        references: Vec<Reference>,
    ) -> Result<Found, ImageError> {
        let layer = |descriptor: &manifest::Descriptor| {
            let name = blob_name(&descriptor.digest);
            Ok(FoundLayer {
                path: self.file(&name).ok_or_else(|| self.missing(&name))?,
                descriptor: Some((descriptor.digest.clone(), descriptor.size)),
            })
        };
        Ok(Found {
            config: self.blob(&manifest.config.digest, MAX_CONFIG)?,
            layers: manifest.layers.iter().map(layer).collect::<Result<_, ImageError>>()?,
            manifest: Some(bytes),
            references,
        })
    }

    fn docker_image(&self, image: &DockerImage) -> Result<Found, ImageError> {
        if image.layers.len() > MAX_LAYERS {
            return Err(ImageError::format(&self.what, format!("more than {MAX_LAYERS} layers")));
        }
        let layer = |name: &String| {
            Ok(FoundLayer { path: self.file(name).ok_or_else(|| self.missing(name))?, descriptor: None })
        };
        let config = self.read(&image.config, MAX_CONFIG)?;
        Ok(Found {
            manifest: None,
            config: config.ok_or_else(|| self.missing(&image.config))?,
            layers: image.layers.iter().map(layer).collect::<Result<_, ImageError>>()?,
            references: parse_all(image.repo_tags.iter().flatten())?,
        })
    }

    /// New archives of `docker save` are layouts as well, and only their `manifest.json` is sure to have all names.
    fn add_tags(&self, images: &mut [Found], docker: &[DockerImage]) -> Result<(), ImageError> {
        for image in docker {
            let Some(config) = self.read(&image.config, MAX_CONFIG)? else { continue };
            for found in images.iter_mut().filter(|found| found.config == config) {
                found.references.extend(parse_all(image.repo_tags.iter().flatten())?);
            }
        }
        Ok(())
    }

    fn blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, ImageError> {
        let name = blob_name(digest);
        let bytes = self.read(&name, limit)?.ok_or_else(|| self.missing(&name))?;
        match Digest::of(&bytes) {
            actual if actual == *digest => Ok(bytes),
            actual => Err(ImageError::Digest { what: name, expected: digest.clone(), actual }),
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(path) = self.file(name) else { return Ok(None) };
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(ImageError::io("read", &path))?;
        file.take(limit + 1).read_to_end(&mut bytes).map_err(ImageError::io("read", &path))?;
        if bytes.len() as u64 > limit {
            let what = format!("{name} of {}", self.what);
            return Err(ImageError::Size { what, reason: format!("more than {limit} bytes") });
        }
        Ok(Some(bytes))
    }

    /// Where the bytes of a file of the archive are.
    fn file(&self, name: &str) -> Option<PathBuf> {
        let mut name = normal(name)?;
        match &self.content {
            Content::Directory(directory) => Some(directory.join(name)).filter(|path| path.is_file()),
            Content::Spread { files, .. } => {
                for _ in 0..MAX_LINKS {
                    match files.get(&name)? {
                        Stored::File(path) => return Some(path.clone()),
                        Stored::Link(target) => name = target.clone(),
                    }
                }
                None
            }
        }
    }

    fn missing(&self, name: &str) -> ImageError {
        ImageError::format(&self.what, format!("{name} is missing"))
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The names an entry of a layout has. `ref.name` may be a whole name or only a tag, which names nothing by itself.
fn references(annotations: &BTreeMap<String, String>) -> Vec<Reference> {
    let keys = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    let names = keys.iter().filter_map(|key| annotations.get(*key));
    names.filter(|name| name.contains(['/', ':'])).filter_map(|name| name.parse().ok()).take(1).collect()
}

fn parse_all<'a>(names: impl Iterator<Item = &'a String>) -> Result<Vec<Reference>, ImageError> {
    names.map(|name| name.parse()).collect()
}

/// A name without `.` and empty parts; `None` when it leads out.
fn normal(name: &str) -> Option<String> {
    let parts: Vec<&str> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    (!parts.contains(&"..") && !name.contains('\0')).then(|| parts.join("/"))
}

/// The target of a link in an archive, as a name in the archive.
fn resolve(name: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

fn spread(path: &Path, scratch: &Path, limits: Limits) -> Result<Content, ImageError> {
    let scratch = tempfile::tempdir_in(scratch).map_err(ImageError::io("make a directory in", scratch))?;
    let failed = |source| ImageError::Layer { layer: path.display().to_string(), source };
    let file = File::open(path).map_err(ImageError::io("read", path))?;
    let limits = Limits { entries: MAX_ENTRIES.min(limits.entries), ..limits };
    let mut archive = Tarball::new(layer::decompressed(file).map_err(failed)?, limits);
    let mut files = BTreeMap::new();
    let mut buffer = vec![0; 128 << 10];
    while let Some(entry) = archive.next().map_err(failed)? {
        let Some(name) = std::str::from_utf8(&entry.path).ok().and_then(normal) else { continue };
        let link = std::str::from_utf8(&entry.link).ok();
        let stored = match entry.kind {
            Kind::File => {
                let place = scratch.path().join(files.len().to_string());
                let mut file = File::create(&place).map_err(ImageError::io("create", &place))?;
                loop {
                    match archive.read_content(&mut buffer, &name).map_err(failed)? {
                        0 => break,
                        count => file.write_all(&buffer[..count]).map_err(ImageError::io("write", &place))?,
                    }
                }
                Some(Stored::File(place))
            }
            Kind::Symlink => link.and_then(|link| resolve(&name, link)).map(Stored::Link),
            Kind::HardLink => link.and_then(normal).map(Stored::Link),
            Kind::Directory | Kind::Fifo | Kind::Device => None,
        };
        if let Some(stored) = stored {
            files.insert(name, stored);
        }
    }
    Ok(Content::Spread { files, _scratch: scratch })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(normal("./a//b").as_deref(), Some("a/b"));
        assert_eq!(normal("/a").as_deref(), Some("a"));
        assert_eq!(normal("a/../b"), None);
        assert_eq!(resolve("one/layer.tar", "../two/layer.tar").as_deref(), Some("two/layer.tar"));
        assert_eq!(resolve("layer.tar", "../../etc/passwd"), None);
    }
}
