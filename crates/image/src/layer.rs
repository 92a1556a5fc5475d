//! Unpacks the blob of a layer into a directory: decompression, the digest of what comes out, and the archive in it.
//! Blocking; callers run it on threads of their own.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::extract::Extractor;
use crate::tarball::{Limits, Tarball};
use crate::{Digest, ImageError, LayerError};

/// What came out of a blob.
pub(crate) struct Unpacked {
    /// The digest of the uncompressed archive.
    pub(crate) diff_id: Digest,
    /// Its size in bytes.
    pub(crate) size: u64,
}

/// Unpacks `blob` into `directory`, an empty one, and compares the digest with `expected`. On an error the directory
/// holds something that must be removed.
pub(crate) fn unpack(
    blob: &Path,
    directory: &Path,
    expected: Option<&Digest>,
    limits: Limits,
) -> Result<Unpacked, ImageError> {
    let file = File::open(blob).map_err(ImageError::io("read", blob))?;
    let name = || expected.map_or_else(|| blob.display().to_string(), Digest::to_string);
    extract(file, directory, expected, limits).map_err(|source| ImageError::Layer { layer: name(), source })
}

fn extract(
    file: File,
    directory: &Path,
    expected: Option<&Digest>,
    limits: Limits,
) -> Result<Unpacked, LayerError> {
    let mut reader = Hashing { inner: decompressed(file)?, hasher: Sha256::new() };
    let mut archive = Tarball::new(&mut reader, limits);
    let mut extractor = Extractor::new(directory)?;
    while let Some(entry) = archive.next()? {
        extractor.write(&entry, &mut archive)?;
    }
    archive.drain()?;
    let size = archive.position();
    let diff_id = Digest::finish(reader.hasher);
    match expected {
        Some(expected) if *expected != diff_id => {
            return Err(LayerError::Digest { expected: expected.clone(), actual: diff_id });
        }
        _ => {}
    }
    extractor.finish()?;
    Ok(Unpacked { diff_id, size })
}

/// The stream behind gzip, zstd or nothing. The first bytes tell; media types are wrong too often to be asked.
pub(crate) fn decompressed(file: File) -> Result<Box<dyn Read + Send>, LayerError> {
    let failed = |source| LayerError::Io { action: "read", entry: "its beginning".to_owned(), source };
    let mut reader = BufReader::with_capacity(128 << 10, file);
    let start = reader.fill_buf().map_err(failed)?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(BufReader::with_capacity(
            128 << 10,
            flate2::bufread::MultiGzDecoder::new(reader),
        )));
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        // The decoder's own limit holds: windows of 128 MiB.
        return Ok(Box::new(zstd::stream::read::Decoder::with_buffer(reader).map_err(failed)?));
    }
    Ok(Box::new(reader))
}

/// Computes the digest of what passes.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// A small generator, so that a failing seed can be run again.
    fn next(state: &mut u64) -> usize {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        (*state >> 11) as usize
    }

    fn seed_archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |kind: tar::EntryType, path: &str, link: &str, content: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(0o755);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.set_size(content.len() as u64);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            builder.append_data(&mut header, path, content).unwrap();
        };
        add(tar::EntryType::Directory, "dir/", "", b"");
        add(tar::EntryType::Regular, "dir/file", "", b"some content");
        add(tar::EntryType::Symlink, "up", "../..", b"");
        add(tar::EntryType::Link, "dir/hard", "dir/file", b"");
        add(tar::EntryType::Regular, "dir/.wh.gone", "", b"");
        add(tar::EntryType::Regular, &format!("dir/{}", "long".repeat(40)), "", b"long");
        add(tar::EntryType::XHeader, "pax", "", b"28 SCHILY.xattr.user.a=a\nb=\n11 path=dir\n");
        add(tar::EntryType::Regular, "last", "", b"");
        builder.into_inner().unwrap()
    }

    /// Archives with a few changed bytes, checksums made right again: an error or a layer, never a panic, and nothing
    /// outside of the directory.
    #[test]
    fn changed_archives_stay_inside() {
        let seed = seed_archive();
        for round in 1..=400u64 {
            let mut state = round.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let mut bytes = seed.clone();
            for _ in 0..1 + next(&mut state) % 4 {
                let at = next(&mut state) % bytes.len();
                let choices = [b'/', b'.', 0, b'0' + (next(&mut state) % 8) as u8, next(&mut state) as u8];
                bytes[at] = choices[next(&mut state) % choices.len()];
            }
            for block in bytes.chunks_exact_mut(512) {
                let mut header = tar::Header::from_byte_slice(block).clone();
                if header.as_ustar().is_some() || header.as_gnu().is_some() {
                    header.set_cksum();
                    block.copy_from_slice(header.as_bytes());
                }
            }
            let scene = tempfile::tempdir().unwrap();
            let (blob, root) = (scene.path().join("blob"), scene.path().join("a/b/layer"));
            fs::create_dir_all(&root).unwrap();
            fs::write(&blob, &bytes).unwrap();
            let _ = unpack(&blob, &root, None, Limits { entries: 100, bytes: 1 << 20 });
            let names = |path: &Path| fs::read_dir(path).unwrap().count();
            let outside = [scene.path().to_owned(), scene.path().join("a"), scene.path().join("a/b")];
            assert_eq!(outside.map(|path| names(&path)), [2, 1, 1], "round {round}");
        }
    }
}
