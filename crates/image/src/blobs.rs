//! Files named by the digest of what they hold. A file appears under its name only whole, checked and on disk.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use crate::{Digest, ImageError};

/// `blobs/sha256/` of the store, with a directory for what is not finished on the same file system.
pub(crate) struct Blobs {
    directory: PathBuf,
    scratch: PathBuf,
}

/// What a blob must come to.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// Exactly this.
    Content { digest: Digest, size: u64 },
    /// Anything up to so many bytes; its digest becomes its name.
    AtMost(u64),
}

impl Blobs {
    pub(crate) fn open(root: &Path, scratch: &Path) -> Result<Self, ImageError> {
        let directory = root.join("blobs/sha256");
        fs::create_dir_all(&directory).map_err(ImageError::io("make", &directory))?;
        Ok(Self { directory, scratch: scratch.to_owned() })
    }

    /// Where a blob is, or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.directory.join(digest.hex())
    }

    /// Whether a blob is here.
    pub(crate) fn contains(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// A small blob's bytes.
    pub(crate) fn read(&self, digest: &Digest) -> Result<Vec<u8>, ImageError> {
        let path = self.path(digest);
        fs::read(&path).map_err(ImageError::io("read", &path))
    }

    /// Begins a blob. `what` names it in errors.
    pub(crate) fn writer(
        &self,
        what: impl Into<String>,
        expected: Expected,
    ) -> Result<BlobWriter<'_>, ImageError> {
        let file = NamedTempFile::new_in(&self.scratch)
            .map_err(ImageError::io("create a file in", &self.scratch))?;
        Ok(BlobWriter { blobs: self, what: what.into(), file, hasher: Sha256::new(), written: 0, expected })
    }

    /// Keeps bytes and gives their digest.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        if !self.contains(&digest) {
            let mut writer = self.writer("a document", Expected::AtMost(bytes.len() as u64))?;
            writer.write(bytes)?;
            writer.finish()?;
        }
        Ok(digest)
    }

    /// Copies a file in; gives its digest and size.
    pub(crate) fn copy(&self, from: &Path, expected: Expected) -> Result<(Digest, u64), ImageError> {
        let mut file = File::open(from).map_err(ImageError::io("read", from))?;
        let mut writer = self.writer(from.display().to_string(), expected)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match file.read(&mut buffer).map_err(ImageError::io("read", from))? {
                0 => return writer.finish(),
                count => writer.write(&buffer[..count])?,
            }
        }
    }

    /// Everything here, with sizes.
    pub(crate) fn list(&self) -> Result<Vec<(Digest, u64)>, ImageError> {
        let failed = || ImageError::io("list", &self.directory);
        let mut blobs = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
            if let Some(digest) = digest {
                blobs.push((digest, entry.metadata().map_err(failed())?.len()));
            }
        }
        Ok(blobs)
    }

    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        fs::remove_file(&path).map_err(ImageError::io("remove", &path))
    }
}

/// A blob on its way. Dropped unfinished, nothing of it stays.
pub(crate) struct BlobWriter<'a> {
    blobs: &'a Blobs,
    what: String,
    file: NamedTempFile,
    hasher: Sha256,
    written: u64,
    expected: Expected,
}

impl BlobWriter<'_> {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.written += bytes.len() as u64;
        let limit = match &self.expected {
            Expected::Content { size, .. } => *size,
            Expected::AtMost(size) => *size,
        };
        if self.written > limit {
            return Err(ImageError::Size {
                what: self.what.clone(),
                reason: format!("more than {limit} bytes"),
            });
        }
        self.hasher.update(bytes);
        self.file.write_all(bytes).map_err(ImageError::io("write", self.file.path()))
    }

    pub(crate) fn finish(self) -> Result<(Digest, u64), ImageError> {
        let actual = Digest::finish(self.hasher);
        if let Expected::Content { digest, size } = self.expected {
            if self.written != size {
                let reason = format!("{} bytes, expected {size}", self.written);
                return Err(ImageError::Size { what: self.what, reason });
            }
            if actual != digest {
                return Err(ImageError::Digest { what: self.what, expected: digest, actual });
            }
        }
        let path = self.blobs.path(&actual);
        self.file.as_file().sync_all().map_err(ImageError::io("write to disk", &path))?;
        self.file.persist(&path).map_err(|error| ImageError::io("name", &path)(error.error))?;
        sync_directory(&self.blobs.directory)
            .map_err(ImageError::io("write to disk", &self.blobs.directory))?;
        Ok((actual, self.written))
    }
}

/// Makes names in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_promised_gets_a_name() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(root.path(), root.path()).unwrap();
        let digest = Digest::of(b"hello");
        for (bytes, size) in [(&b"hello!"[..], 5), (b"hell", 5), (b"jello", 5), (b"hello", 4), (b"hello", 6)]
        {
            let expected = Expected::Content { digest: digest.clone(), size };
            let mut writer = blobs.writer("test", expected).unwrap();
            let result = writer.write(bytes).and_then(|()| writer.finish());
            assert!(result.is_err(), "{bytes:?} {size}");
            assert!(blobs.list().unwrap().is_empty());
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "only blobs/ is left");
        assert_eq!(blobs.put(b"hello").unwrap(), digest);
        assert_eq!(blobs.read(&digest).unwrap(), b"hello");
    }
}
