//! The directory of an embedded store: names, the lock, files that appear whole or not at all, and reading them back.
//!
//! ```text
//! LOCK           flock of the process that has the store open
//! 00000007.snap  the pairs at the beginning of log 7
//! 00000007.log   what happened since
//! 00000008.log   only while snapshot 8 is being written
//! *.tmp          unfinished, removed at open
//! ```
//! The state is the newest snapshot and all logs from its number on. A log is complete before the next one begins.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::OpenError;
use super::frame::{
    self, Encoder, FRAME_HEADER_SIZE, FrameHeader, HEADER_SIZE, Header, HeaderError, Kind, LOG_MAGIC,
    SNAPSHOT_MAGIC, Stored,
};
use super::state::Entry;
use crate::Revision;

pub(super) type Pairs = BTreeMap<Arc<str>, Entry>;

pub(super) fn log_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:08}.log"))
}

pub(super) fn snapshot_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:08}.snap"))
}

/// Takes the directory for this process; the lock lives as long as the file.
pub(super) fn lock(directory: &Path) -> Result<File, OpenError> {
    let path = directory.join("LOCK");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(|source| OpenError::io("open", &path, source))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { path: directory.to_owned() }),
        Err(errno) => Err(OpenError::io("lock", &path, errno.into())),
    }
}

/// Makes names in a directory durable.
pub(super) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// A seed for the checksums of one file that a client of the store cannot know.
pub(super) fn new_salt() -> io::Result<u32> {
    let mut bytes = [0; 4];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u32::from_le_bytes(bytes))
}

/// Writes a file under a temporary name, makes it durable and gives it its name.
pub(super) fn write_whole(
    path: &Path,
    content: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<File> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = (|| {
        // Secrets are in it: nobody but the owner reads it, wherever it is copied to.
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut writer = BufWriter::with_capacity(1 << 18, file);
        content(&mut writer)?;
        let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_directory(path.parent().unwrap_or(Path::new(".")))?;
        Ok(file)
    })();
    if written.is_err() {
        // The reason of the failure is worth more than that of the clean-up; open removes what stays.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Writes a snapshot: pairs in frames of about a megabyte, ended by a seal, without which it is no snapshot.
/// `go_on` is asked between frames.
pub(super) fn write_snapshot(
    path: &Path,
    revision: Revision,
    entries: &[Entry],
    go_on: impl Fn() -> bool,
) -> io::Result<u64> {
    const CHUNK: usize = 1 << 20;
    let salt = new_salt()?;
    let file = write_whole(path, |writer| {
        writer.write_all(&Header { salt, revision }.encode(SNAPSHOT_MAGIC))?;
        let mut buffer = Vec::with_capacity(CHUNK + (CHUNK >> 2));
        let mut entries = entries.iter().peekable();
        while entries.peek().is_some() {
            if !go_on() {
                return Err(io::Error::other("the store is closing"));
            }
            buffer.clear();
            let mut encoder = Encoder { buffer: &mut buffer, salt, synced: 0 };
            encoder.frame(Kind::Changes, revision, |body| {
                while body.len() < CHUNK {
                    let Some(entry) = entries.next() else { break };
                    frame::encode_put(body, entry);
                }
            });
            writer.write_all(&buffer)?;
        }
        buffer.clear();
        Encoder { buffer: &mut buffer, salt, synced: 0 }.frame(Kind::Seal, revision, |_| {});
        writer.write_all(&buffer)
    })?;
    Ok(file.metadata()?.len())
}

/// What the files of a directory say.
pub(super) struct Recovered {
    pub(super) pairs: Pairs,
    /// The greatest revision that may have been given out.
    pub(super) revision: Revision,
    /// The last log's number, how much of it is good, and its salt.
    pub(super) last_log: Option<(u64, u64, u32)>,
    /// Size of the snapshot the state began with.
    pub(super) snapshot_size: u64,
}

/// Reads the directory back and removes what is left of interrupted work. Damage is an error, except for a torn tail
/// of the last log.
pub(super) fn recover(directory: &Path) -> Result<Recovered, OpenError> {
    let (snapshots, logs) = numbers(directory)?;
    let first = snapshots.last().copied();
    let mut replay = Replay::default();
    let mut snapshot_size = 0;
    if let Some(number) = first {
        let path = snapshot_path(directory, number);
        snapshot_size = replay.snapshot(&path)?;
    }
    let first = first.unwrap_or(1);
    let wanted: Vec<u64> = logs.iter().copied().filter(|number| *number >= first).collect();
    if !(wanted.is_empty() && snapshots.is_empty()) {
        check_complete(directory, first, &wanted)?;
    }
    let mut last_log = None;
    for (index, number) in wanted.iter().enumerate() {
        let is_last = index + 1 == wanted.len();
        let (good, salt) = replay.log(&log_path(directory, *number), is_last)?;
        last_log = Some((*number, good, salt));
    }
    remove_older(directory, first);
    Ok(Recovered {
        revision: replay.revision.max(replay.ceiling),
        pairs: replay.pairs,
        last_log,
        snapshot_size,
    })
}

fn check_complete(directory: &Path, first: u64, logs: &[u64]) -> Result<(), OpenError> {
    let expected = first..first + logs.len().max(1) as u64;
    match expected.zip(logs.iter().map(Some).chain(std::iter::once(None))).find(|(n, log)| *log != Some(n)) {
        Some((missing, _)) => Err(OpenError::Damaged {
            path: log_path(directory, missing),
            offset: 0,
            reason: "the file is missing".to_owned(),
        }),
        None => Ok(()),
    }
}

/// Whether a directory holds any file of a store.
pub(super) fn holds_store(directory: &Path) -> Result<bool, OpenError> {
    let (snapshots, logs) = numbers(directory)?;
    Ok(!snapshots.is_empty() || !logs.is_empty())
}

/// The numbers of snapshots and logs in a directory, ascending; temporary files are removed.
fn numbers(directory: &Path) -> Result<(Vec<u64>, Vec<u64>), OpenError> {
    let failed = |source| OpenError::io("read directory", directory, source);
    let (mut snapshots, mut logs) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        match (path.extension().and_then(|extension| extension.to_str()), number) {
            (Some("snap"), Some(number)) => snapshots.push(number),
            (Some("log"), Some(number)) => logs.push(number),
            (Some("tmp"), _) => {
                fs::remove_file(&path).map_err(|source| OpenError::io("remove", &path, source))?
            }
            _ => {}
        }
    }
    snapshots.sort_unstable();
    logs.sort_unstable();
    Ok((snapshots, logs))
}

/// Removes the files a newer snapshot has made superfluous. What cannot be removed now is tried again later.
pub(super) fn remove_older(directory: &Path, number: u64) {
    let Ok((snapshots, logs)) = numbers(directory) else {
        return;
    };
    let old = |numbers: Vec<u64>| numbers.into_iter().filter(move |old| *old < number);
    let paths = old(snapshots)
        .map(|old| snapshot_path(directory, old))
        .chain(old(logs).map(|old| log_path(directory, old)));
    for path in paths {
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "cannot remove a superseded store file");
        }
    }
}

/// Checks a snapshot file from end to end and returns the revision it was made at.
pub(super) fn verify_snapshot(path: &Path) -> Result<Revision, OpenError> {
    let mut replay = Replay::default();
    replay.snapshot(path)?;
    Ok(replay.revision)
}

#[derive(Default)]
struct Replay {
    pairs: Pairs,
    revision: Revision,
    ceiling: Revision,
}

/// Where a file stopped making sense.
struct Damage {
    offset: u64,
    reason: &'static str,
}

impl Replay {
    fn snapshot(&mut self, path: &Path) -> Result<u64, OpenError> {
        let mut file = FrameFile::open(path, SNAPSHOT_MAGIC)?;
        let mut sealed = false;
        while let Some((header, body)) = file.next()? {
            if sealed {
                return Err(file.damaged("there is something after the end"));
            }
            sealed = header.kind == Kind::Seal;
            self.apply(&file, &header, &body)?;
        }
        match &file.damage {
            Some(damage) => Err(file.damaged(damage.reason)),
            None if !sealed => Err(file.damaged("the end is missing")),
            None => Ok(file.offset),
        }
    }

    fn log(&mut self, path: &Path, is_last: bool) -> Result<(u64, u32), OpenError> {
        let mut file = FrameFile::open(path, LOG_MAGIC)?;
        while let Some((header, body)) = file.next()? {
            self.apply(&file, &header, &body)?;
        }
        if let Some(damage) = &file.damage {
            if !is_last {
                return Err(file.damaged(damage.reason));
            }
            file.check_torn_tail(damage)?;
            tracing::warn!(
                path = %path.display(), offset = damage.offset, reason = damage.reason,
                "cut the unfinished end of the store's log"
            );
        }
        Ok((file.offset, file.header.salt))
    }

    fn apply(&mut self, file: &FrameFile, header: &FrameHeader, body: &[u8]) -> Result<(), OpenError> {
        match header.kind {
            Kind::Ceiling => self.ceiling = header.revision,
            Kind::Seal => (self.revision, self.ceiling) = (header.revision, Revision(0)),
            Kind::Changes => {
                let changes = frame::decode_body(body)
                    .ok_or_else(|| file.damaged("a record with a good checksum cannot be read"))?;
                for change in changes {
                    match change {
                        Stored::Put(entry) => drop(self.pairs.insert(entry.kv.key.clone(), entry)),
                        Stored::Delete(key) => drop(self.pairs.remove(&key)),
                    }
                }
                self.revision = self.revision.max(header.revision);
            }
        }
        Ok(())
    }
}

/// Reads one file frame by frame. `offset` is always behind the last good frame.
struct FrameFile {
    path: PathBuf,
    reader: BufReader<File>,
    header: Header,
    offset: u64,
    size: u64,
    damage: Option<Damage>,
}

impl FrameFile {
    fn open(path: &Path, magic: [u8; 8]) -> Result<Self, OpenError> {
        let failed = |source| OpenError::io("read", path, source);
        let damaged =
            |reason: &str| OpenError::Damaged { path: path.to_owned(), offset: 0, reason: reason.to_owned() };
        let file = File::open(path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        if size < HEADER_SIZE as u64 {
            return Err(damaged("the header is incomplete"));
        }
        let mut reader = BufReader::with_capacity(1 << 18, file);
        let mut bytes = [0; HEADER_SIZE];
        reader.read_exact(&mut bytes).map_err(failed)?;
        let header = Header::decode(&bytes, magic).map_err(|error| match error {
            HeaderError::NotOurs => damaged("this is not a file of the store"),
            HeaderError::Checksum => damaged("the checksum of the header is wrong"),
            HeaderError::Newer(found) => {
                OpenError::NewerVersion { path: path.to_owned(), found, supported: frame::FORMAT_VERSION }
            }
        })?;
        Ok(Self { path: path.to_owned(), reader, header, offset: HEADER_SIZE as u64, size, damage: None })
    }

    /// The next good frame; `None` at the end, or at damage.
    fn next(&mut self) -> Result<Option<(FrameHeader, Vec<u8>)>, OpenError> {
        let left = self.size - self.offset;
        if left == 0 {
            return Ok(None);
        }
        if left < FRAME_HEADER_SIZE as u64 {
            return Ok(self.stop("a record ends early"));
        }
        let mut fixed = [0; FRAME_HEADER_SIZE];
        self.read(&mut fixed)?;
        let Some(header) = FrameHeader::decode(&fixed) else {
            return Ok(self.stop("there is no record where one must begin"));
        };
        let frame_size = (FRAME_HEADER_SIZE + header.length) as u64;
        if left < frame_size {
            return Ok(self.stop("a record ends early"));
        }
        let mut body = vec![0; header.length];
        self.read(&mut body)?;
        if !header.checks(self.header.salt, &body) {
            return Ok(self.stop("the checksum of a record is wrong"));
        }
        self.offset += frame_size;
        Ok(Some((header, body)))
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), OpenError> {
        self.reader.read_exact(bytes).map_err(|source| OpenError::io("read", &self.path, source))
    }

    fn stop<T>(&mut self, reason: &'static str) -> Option<T> {
        self.damage = Some(Damage { offset: self.offset, reason });
        None
    }

    fn damaged(&self, reason: &str) -> OpenError {
        OpenError::Damaged { path: self.path.clone(), offset: self.offset, reason: reason.to_owned() }
    }

    /// Damage is a torn tail unless something behind it proves that it had been on disk.
    fn check_torn_tail(&self, damage: &Damage) -> Result<(), OpenError> {
        let failed = |source| OpenError::io("read", &self.path, source);
        let mut rest = Vec::new();
        let mut file = File::open(&self.path).map_err(failed)?;
        io::Seek::seek(&mut file, io::SeekFrom::Start(damage.offset)).map_err(failed)?;
        file.read_to_end(&mut rest).map_err(failed)?;
        match frame::find_witness(&rest, self.header.salt, damage.offset) {
            None => Ok(()),
            Some(place) => {
                let witness = damage.offset + place as u64;
                let reason = format!("{}, and the intact record at byte {witness} is newer", damage.reason);
                Err(self.damaged(&reason))
            }
        }
    }
}
