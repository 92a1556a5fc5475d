//! The unit of every file of the embedded store: a checksummed frame. Encoding and decoding only, no files.
//!
//! ```text
//! file   = header frame*
//! header = magic[8] version:u32 salt:u32 revision:u64 crc:u32
//! frame  = mark:u32 length:u32 crc:u32 synced:u64 revision:u64 kind:u8 body[length]
//! body   = (1 durability:u8 create:u64 mod:u64 key_length:u32 value_length:u32 key value | 2 key_length:u32 key)*
//! ```
//! Numbers are little-endian. The CRC32C of a frame starts from the file's random salt and covers everything after
//! itself and the length, so that bytes which a client stored, or blocks of an older file, cannot pass for a frame.
//! `synced` is how much of the file was known to be on disk when the frame was written: a later intact frame proves
//! that damage before its `synced` is no torn tail.

use std::sync::Arc;

use bytes::Bytes;

use super::state::{Change, Entry};
use crate::{Durability, KeyValue, Revision};

/// The newest format this code writes and the newest it reads.
pub(super) const FORMAT_VERSION: u32 = 1;
pub(super) const LOG_MAGIC: [u8; 8] = *b"SPSTLOG\0";
pub(super) const SNAPSHOT_MAGIC: [u8; 8] = *b"SPSTSNAP";
pub(super) const HEADER_SIZE: usize = 28;
pub(super) const FRAME_HEADER_SIZE: usize = 29;
/// Larger than any transaction the store takes; a greater length in a file is damage.
pub(super) const MAX_BODY: usize = 128 << 20;

const MARK: u32 = 0x5ab7_1e0d;
const TAG_PUT: u8 = 1;
const TAG_DELETE: u8 = 2;

/// The beginning of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) salt: u32,
    pub(super) revision: Revision,
}

/// Why a header was not accepted.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderError {
    NotOurs,
    Newer(u32),
    Checksum,
}

impl Header {
    pub(super) fn encode(&self, magic: [u8; 8]) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        bytes[..8].copy_from_slice(&magic);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.salt.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.revision.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..24]);
        bytes[24..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Magic and version stay where they are in every future format; all else is looked at after them.
    pub(super) fn decode(bytes: &[u8; HEADER_SIZE], magic: [u8; 8]) -> Result<Self, HeaderError> {
        if bytes[..8] != magic {
            return Err(HeaderError::NotOurs);
        }
        let version = u32_at(bytes, 8);
        if version > FORMAT_VERSION {
            return Err(HeaderError::Newer(version));
        }
        if crc32c::crc32c(&bytes[..24]) != u32_at(bytes, 24) {
            return Err(HeaderError::Checksum);
        }
        Ok(Self { salt: u32_at(bytes, 12), revision: Revision(u64_at(bytes, 16)) })
    }
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The changes of one transaction, or a part of a snapshot.
    Changes = 1,
    /// Revisions up to this one may have been given to writes that are not on disk.
    Ceiling = 2,
    /// The store was closed (or the snapshot ends) at exactly this revision.
    Seal = 3,
}

/// The fixed part of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameHeader {
    pub(super) length: usize,
    pub(super) synced: u64,
    pub(super) revision: Revision,
    pub(super) kind: Kind,
    crc: u32,
    raw: [u8; 17],
}

impl FrameHeader {
    /// `None` when this cannot be the beginning of a frame.
    pub(super) fn decode(bytes: &[u8; FRAME_HEADER_SIZE]) -> Option<Self> {
        let length = u32_at(bytes, 4) as usize;
        if u32_at(bytes, 0) != MARK || length > MAX_BODY {
            return None;
        }
        let kind = match bytes[28] {
            1 => Kind::Changes,
            2 => Kind::Ceiling,
            3 => Kind::Seal,
            _ => return None,
        };
        let mut raw = [0; 17];
        raw.copy_from_slice(&bytes[12..]);
        let (synced, revision) = (u64_at(bytes, 12), Revision(u64_at(bytes, 20)));
        Some(Self { length, synced, revision, kind, crc: u32_at(bytes, 8), raw })
    }

    pub(super) fn checks(&self, salt: u32, body: &[u8]) -> bool {
        self.crc == checksum(salt, &self.raw, body)
    }
}

fn checksum(salt: u32, fixed: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(salt, fixed), body)
}

/// Writes frames into a buffer.
pub(super) struct Encoder<'a> {
    pub(super) buffer: &'a mut Vec<u8>,
    pub(super) salt: u32,
    pub(super) synced: u64,
}

impl Encoder<'_> {
    /// Appends one frame whose body is what `body` appends. With an empty body of kind `Changes` nothing is appended.
    pub(super) fn frame(&mut self, kind: Kind, revision: Revision, body: impl FnOnce(&mut Vec<u8>)) -> bool {
        let start = self.buffer.len();
        self.buffer.resize(start + FRAME_HEADER_SIZE, 0);
        body(self.buffer);
        let length = self.buffer.len() - start - FRAME_HEADER_SIZE;
        if length == 0 && kind == Kind::Changes {
            self.buffer.truncate(start);
            return false;
        }
        let (header, body) = self.buffer[start..].split_at_mut(FRAME_HEADER_SIZE);
        header[12..20].copy_from_slice(&self.synced.to_le_bytes());
        header[20..28].copy_from_slice(&revision.0.to_le_bytes());
        header[28] = kind as u8;
        let crc = checksum(self.salt, &header[12..], body);
        header[..4].copy_from_slice(&MARK.to_le_bytes());
        header[4..8].copy_from_slice(&(length as u32).to_le_bytes());
        header[8..12].copy_from_slice(&crc.to_le_bytes());
        true
    }
}

/// Appends what the disk has to know of a change; volatile pairs are nothing to it, except that they may replace one
/// it knows.
pub(super) fn encode_change(buffer: &mut Vec<u8>, change: &Change) {
    match (&change.before, &change.after) {
        (_, Some(after)) if after.on_disk() => encode_put(buffer, after),
        (Some(before), _) if before.on_disk() => {
            buffer.push(TAG_DELETE);
            buffer.extend_from_slice(&(before.kv.key.len() as u32).to_le_bytes());
            buffer.extend_from_slice(before.kv.key.as_bytes());
        }
        _ => {}
    }
}

pub(super) fn encode_put(buffer: &mut Vec<u8>, entry: &Entry) {
    let kv = &entry.kv;
    buffer.push(TAG_PUT);
    buffer.push(u8::from(entry.durability == Durability::Lazy));
    buffer.extend_from_slice(&kv.create_revision.0.to_le_bytes());
    buffer.extend_from_slice(&kv.mod_revision.0.to_le_bytes());
    buffer.extend_from_slice(&(kv.key.len() as u32).to_le_bytes());
    buffer.extend_from_slice(&(kv.value.len() as u32).to_le_bytes());
    buffer.extend_from_slice(kv.key.as_bytes());
    buffer.extend_from_slice(&kv.value);
}

/// One change as the disk knows it.
pub(super) enum Stored {
    Put(Entry),
    Delete(Arc<str>),
}

/// Splits a body whose checksum held into its changes. `None` is a format error, which only a bug can make.
pub(super) fn decode_body(mut body: &[u8]) -> Option<Vec<Stored>> {
    let mut changes = Vec::new();
    while let Some((tag, rest)) = body.split_first() {
        let (change, rest) = match *tag {
            TAG_PUT => decode_put(rest)?,
            TAG_DELETE => {
                let (length, rest) = take_u32(rest)?;
                let (key, rest) = rest.split_at_checked(length as usize)?;
                (Stored::Delete(std::str::from_utf8(key).ok()?.into()), rest)
            }
            _ => return None,
        };
        changes.push(change);
        body = rest;
    }
    Some(changes)
}

fn decode_put(bytes: &[u8]) -> Option<(Stored, &[u8])> {
    let (lazy, rest) = bytes.split_first()?;
    let (create_revision, rest) = take_u64(rest)?;
    let (mod_revision, rest) = take_u64(rest)?;
    let (key_length, rest) = take_u32(rest)?;
    let (value_length, rest) = take_u32(rest)?;
    let (key, rest) = rest.split_at_checked(key_length as usize)?;
    let (value, rest) = rest.split_at_checked(value_length as usize)?;
    let kv = KeyValue {
        key: std::str::from_utf8(key).ok()?.into(),
        value: Bytes::copy_from_slice(value),
        create_revision: Revision(create_revision),
        mod_revision: Revision(mod_revision),
    };
    let durability = if *lazy == 1 { Durability::Lazy } else { Durability::Durable };
    Some((Stored::Put(Entry { kv, durability }), rest))
}

/// Looks for an intact frame in `bytes`, the rest of a file behind damage, that was written when more than `damaged`
/// bytes of the file were on disk; returns its place in `bytes`.
pub(super) fn find_witness(bytes: &[u8], salt: u32, damaged: u64) -> Option<usize> {
    let mark = MARK.to_le_bytes();
    let places = bytes.windows(4).enumerate().filter(|(_, window)| *window == mark);
    places.map(|(place, _)| place).find(|place| {
        let frame = &bytes[*place..];
        let Some((fixed, rest)) = frame.split_first_chunk::<FRAME_HEADER_SIZE>() else {
            return false;
        };
        FrameHeader::decode(fixed)
            .filter(|header| header.synced > damaged)
            .and_then(|header| rest.get(..header.length).map(|body| header.checks(salt, body)))
            .unwrap_or(false)
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut number = [0; 4];
    number.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(number)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(number)
}

fn take_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*number), rest))
}

fn take_u64(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}
