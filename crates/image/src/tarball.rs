//! A tar stream, read entry by entry with bounds on everything the archive can claim. Knows the format only (ustar,
//! GNU long names, PAX); what an entry may do to a file system is [`extract`](crate::extract)'s business.
//!
//! The `tar` crate decodes the header blocks. The loop around it is ours, because the crate reads long names and PAX
//! records of any claimed size into memory and splits PAX records at line feeds, which occur in binary attributes.

use std::io::{self, Read};

use tar::Header;

use crate::LayerError;

const BLOCK: usize = 512;
/// Long names and PAX records of one entry; the largest honest ones are attributes of 64 KiB.
const MAX_META: u64 = 1 << 20;
/// `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// Bounds of one archive.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Most entries.
    pub entries: u64,
    /// Most bytes, uncompressed.
    pub bytes: u64,
}

impl Default for Limits {
    /// A root file system of a full desktop has about 500,000 files; model images have layers of tens of gigabytes.
    fn default() -> Self {
        Self { entries: 2_000_000, bytes: 128 << 30 }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
}

/// The header of an entry, long forms resolved. Paths are as the archive has them.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) kind: Kind,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// The archive. After [`next`](Self::next) gave a file, reading from it gives the file's bytes.
pub(crate) struct Tarball<R> {
    reader: R,
    limits: Limits,
    entries: u64,
    position: u64,
    /// Of the current entry: bytes not read yet, and the padding behind them.
    left: u64,
    padding: u64,
}

/// What headers before an entry said about it.
#[derive(Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> Tarball<R> {
    pub(crate) fn new(reader: R, limits: Limits) -> Self {
        Self { reader, limits, entries: 0, position: 0, left: 0, padding: 0 }
    }

    /// Bytes of the archive read so far.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The next entry; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, LayerError> {
        self.skip_rest()?;
        let mut extensions = Extensions::default();
        while let Some(header) = self.header()? {
            self.entries += 1;
            if self.entries > self.limits.entries {
                let reason = format!("more than {} entries", self.limits.entries);
                return Err(LayerError::Bomb { reason });
            }
            match header.as_bytes()[156] {
                b'x' => {
                    let records = self.meta(&header)?;
                    extensions.read_pax(&records).map_err(|reason| self.malformed(reason))?;
                }
                b'g' => {
                    self.begin(number(header.entry_size(), self)?)?;
                    self.skip_rest()?;
                }
                b'L' => extensions.path = Some(without_nul(self.meta(&header)?)),
                b'K' => extensions.link = Some(without_nul(self.meta(&header)?)),
                _ => return self.entry(&header, extensions).map(Some),
            }
        }
        Ok(None)
    }

    /// Reads what is behind the end of the archive, so that its digest can be told.
    pub(crate) fn drain(&mut self) -> Result<(), LayerError> {
        let mut buffer = [0; 8192];
        loop {
            match self.fill(&mut buffer, "its padding")? {
                0 => return Ok(()),
                count => self.advance(count as u64)?,
            }
        }
    }

    fn entry(&mut self, header: &Header, extensions: Extensions) -> Result<Entry, LayerError> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            extensions.link.unwrap_or_else(|| header.link_name_bytes().unwrap_or_default().into_owned());
        let kind = match header.as_bytes()[156] {
            // Archives older than POSIX mark directories by a slash.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            b'S' => return Err(self.malformed("sparse files are not supported")),
            other => return Err(self.malformed(format!("entries of type {other:#x} are not supported"))),
        };
        if path.len() > MAX_PATH || link.len() > MAX_PATH {
            return Err(LayerError::Bomb { reason: format!("a name is longer than {MAX_PATH} bytes") });
        }
        let claimed = match extensions.size {
            Some(size) => size,
            None => number(header.entry_size(), self)?,
        };
        // Whatever a link or directory claims, no bytes follow it (as Go's reader has it).
        let size = if kind == Kind::File { claimed } else { 0 };
        let owner = |value: u64| {
            u32::try_from(value).ok().filter(|id| *id != u32::MAX).ok_or("an owner's number is out of range")
        };
        let uid = owner(extensions.uid.map_or_else(|| number(header.uid(), self), Ok)?);
        let gid = owner(extensions.gid.map_or_else(|| number(header.gid(), self), Ok)?);
        let mtime = match extensions.mtime {
            Some(mtime) => mtime,
            // Before 1970 the field is a negative number that the header decoder takes for a very large one.
            None => (header.mtime().ok().and_then(|mtime| i64::try_from(mtime).ok()).unwrap_or(0), 0),
        };
        let entry = Entry {
            kind,
            path,
            link,
            mode: number(header.mode().map(u64::from), self)? as u32 & 0o7777,
            uid: uid.map_err(|reason| self.malformed(reason))?,
            gid: gid.map_err(|reason| self.malformed(reason))?,
            mtime,
            xattrs: extensions.xattrs,
        };
        self.begin(size)?;
        Ok(entry)
    }

    /// The next header block; `None` at the end mark or the end of the stream.
    fn header(&mut self) -> Result<Option<Header>, LayerError> {
        let mut block = [0; BLOCK];
        match self.fill(&mut block, "a header")? {
            0 => return Ok(None),
            BLOCK => self.advance(BLOCK as u64)?,
            _ => return Err(LayerError::Truncated { place: "a header".to_owned() }),
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block).clone();
        if !checksum_holds(&header) {
            return Err(self.malformed("the checksum of a header is wrong, or this is no tar archive"));
        }
        Ok(Some(header))
    }

    /// The content of a header entry, bounded.
    fn meta(&mut self, header: &Header) -> Result<Vec<u8>, LayerError> {
        let size = number(header.entry_size(), self)?;
        if size > MAX_META {
            return Err(LayerError::Bomb { reason: format!("{size} bytes of names and attributes") });
        }
        self.begin(size)?;
        let mut bytes = vec![0; size as usize];
        let count = self.fill(&mut bytes, "a long name")?;
        self.advance(count as u64)?;
        self.left -= count as u64;
        if count < bytes.len() {
            return Err(LayerError::Truncated { place: "a long name".to_owned() });
        }
        self.skip_rest()?;
        Ok(bytes)
    }

    fn begin(&mut self, size: u64) -> Result<(), LayerError> {
        if size > self.limits.bytes.saturating_sub(self.position) {
            return Err(self.too_large());
        }
        self.left = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip_rest(&mut self) -> Result<(), LayerError> {
        let mut rest = self.left + self.padding;
        (self.left, self.padding) = (0, 0);
        let mut buffer = [0; 8192];
        while rest > 0 {
            let wanted = rest.min(buffer.len() as u64) as usize;
            let count = self.fill(&mut buffer[..wanted], "an entry")?;
            self.advance(count as u64)?;
            if count < wanted {
                return Err(LayerError::Truncated { place: "an entry".to_owned() });
            }
            rest -= count as u64;
        }
        Ok(())
    }

    fn fill(&mut self, buffer: &mut [u8], place: &str) -> Result<usize, LayerError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.reader.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(broken_stream(&error, place)),
            }
        }
        Ok(filled)
    }

    fn advance(&mut self, count: u64) -> Result<(), LayerError> {
        self.position += count;
        if self.position > self.limits.bytes { Err(self.too_large()) } else { Ok(()) }
    }

    fn too_large(&self) -> LayerError {
        LayerError::Bomb { reason: format!("more than {} bytes", self.limits.bytes) }
    }

    fn malformed(&self, reason: impl ToString) -> LayerError {
        LayerError::Malformed { place: format!("byte {}", self.position), reason: reason.to_string() }
    }

    /// The bytes of the current file, up to `buffer.len()` of them; 0 at its end.
    pub(crate) fn read_content(&mut self, buffer: &mut [u8], place: &str) -> Result<usize, LayerError> {
        let wanted = self.left.min(buffer.len() as u64) as usize;
        let count = self.fill(&mut buffer[..wanted], place)?;
        if count < wanted {
            return Err(LayerError::Truncated { place: format!("{place:?}") });
        }
        self.left -= count as u64;
        self.advance(count as u64)?;
        Ok(count)
    }
}

/// A compressed stream ends, or breaks, by an error.
fn broken_stream(error: &io::Error, place: &str) -> LayerError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LayerError::Truncated { place: place.to_owned() },
        _ => LayerError::Malformed { place: place.to_owned(), reason: error.to_string() },
    }
}

fn number<R: Read>(field: io::Result<u64>, archive: &Tarball<R>) -> Result<u64, LayerError> {
    field.map_err(|error| archive.malformed(error))
}

/// The sum of all bytes, the field itself counted as blanks.
fn checksum_holds(header: &Header) -> bool {
    let bytes = header.as_bytes();
    let sum: u32 = bytes[..148].iter().chain(&bytes[156..]).map(|byte| u32::from(*byte)).sum();
    header.cksum().is_ok_and(|expected| expected == sum + 8 * 32)
}

fn without_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

impl Extensions {
    /// Records of the form `length key=value\n`, where the length counts all of it. POSIX pax, "Extended Header".
    fn read_pax(&mut self, mut records: &[u8]) -> Result<(), &'static str> {
        while !records.is_empty() {
            let blank =
                records.iter().take(12).position(|byte| *byte == b' ').ok_or("a PAX record has no length")?;
            let length = text(&records[..blank])?.parse().map_err(|_| "a PAX record has no length")?;
            let (record, rest) = records.split_at_checked(length).ok_or("a PAX record is too long")?;
            let record = record.get(blank + 1..).and_then(|record| record.strip_suffix(b"\n"));
            let record = record.ok_or("a PAX record does not end")?;
            let equals = record.iter().position(|byte| *byte == b'=').ok_or("a PAX record has no value")?;
            self.set(&record[..equals], &record[equals + 1..])?;
            records = rest;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const XATTR: &[u8] = b"SCHILY.xattr.";
        let number = |value| text(value)?.parse().map_err(|_| "a PAX number is malformed");
        match key {
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.link = Some(value.to_vec()),
            b"size" => self.size = Some(number(value)?),
            b"uid" => self.uid = Some(number(value)?),
            b"gid" => self.gid = Some(number(value)?),
            b"mtime" => self.mtime = Some(time(text(value)?)?),
            _ if key.starts_with(b"GNU.sparse.") => return Err("sparse files are not supported"),
            _ if key.starts_with(XATTR) => {
                self.xattrs.push((key[XATTR.len()..].to_vec(), value.to_vec()));
            }
            // Access times, comments, character sets: nothing that a layer keeps.
            _ => {}
        }
        Ok(())
    }
}

fn text(bytes: &[u8]) -> Result<&str, &'static str> {
    std::str::from_utf8(bytes).map_err(|_| "a PAX record is not text")
}

/// `1700000000.25`, possibly negative.
fn time(value: &str) -> Result<(i64, u32), &'static str> {
    const ERROR: &str = "a PAX time is malformed";
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let seconds: i64 = whole.parse().map_err(|_| ERROR)?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ERROR);
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds = digits.parse().map_err(|_| ERROR)?;
    match (value.starts_with('-'), nanoseconds) {
        (false, _) | (true, 0) => Ok((seconds, nanoseconds)),
        (true, _) => Ok((seconds.checked_sub(1).ok_or(ERROR)?, 1_000_000_000 - nanoseconds)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        let rows = [
            ("12", Ok((12, 0))),
            ("12.5", Ok((12, 500_000_000))),
            ("-1.25", Ok((-2, 750_000_000))),
            ("1.1234567891", Ok((1, 123_456_789))),
        ];
        for (text, expected) in rows {
            assert_eq!(time(text), expected, "{text}");
        }
        for text in ["", "x", "1.x", "1.-2", "99999999999999999999"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn pax_values_may_hold_anything() {
        let mut extensions = Extensions::default();
        let records = b"28 SCHILY.xattr.user.a=a\nb=\n11 path=\xff\xfe\n";
        assert_eq!(&records[..28][27..], b"\n");
        extensions.read_pax(records).unwrap();
        assert_eq!(extensions.xattrs, [(b"user.a".to_vec(), b"a\nb=".to_vec())]);
        assert_eq!(extensions.path.as_deref(), Some(&b"\xff\xfe"[..]));
        for bad in [&b"x"[..], b"5 a=b", b"99 a=b\n", b"0 a=b\n", b"4 a\n", b"-5 a=b\n", b"7 uid=x\n"] {
            assert!(Extensions::default().read_pax(bad).is_err(), "{bad:?}");
        }
    }
}
