//! Container logs in CRI format.
//!
//! ```text
//! 2016-10-06T00:17:09.669794202Z stdout F a whole line
//! 2016-10-06T00:17:09.669794202Z stderr P the first 16 KiB of a longer line
//! ```
//!
//! The format is that of `kubernetes/design-proposals/kubelet-cri-logging`. The kernel's pipe is the only queue: a
//! container that writes faster than the disk takes waits, and lines are lost only when the disk refuses them.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Longest piece of a line in one record, as in other CRI runtimes.
const PIECE_LIMIT: usize = 16 * 1024;

/// Output stream of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    pub(crate) const BOTH: [Stream; 2] = [Stream::Stdout, Stream::Stderr];

    fn name(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b"stdout",
            Stream::Stderr => b"stderr",
        }
    }
}

/// Splits one stream into records; keeps the beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
struct Splitter {
    pending: Vec<u8>,
}

impl Splitter {
    /// Appends to `records` what `bytes` completes.
    fn push(&mut self, stream: Stream, mut bytes: &[u8], timestamp: &str, records: &mut Vec<u8>) {
        while !bytes.is_empty() {
            let room = PIECE_LIMIT - self.pending.len();
            let window = &bytes[..bytes.len().min(room)];
            if let Some(end) = window.iter().position(|byte| *byte == b'\n') {
                record(records, timestamp, stream, b'F', &[&self.pending, &window[..end]]);
                self.pending.clear();
                bytes = &bytes[end + 1..];
            } else if window.len() == room {
                record(records, timestamp, stream, b'P', &[&self.pending, window]);
                self.pending.clear();
                bytes = &bytes[room..];
            } else {
                self.pending.extend_from_slice(window);
                bytes = &[];
            }
        }
        if self.pending.is_empty() {
            // An idle container holds no buffer.
            self.pending = Vec::new();
        }
    }

    /// The stream has ended: what is left is the last line.
    fn finish(&mut self, stream: Stream, timestamp: &str, records: &mut Vec<u8>) {
        if !self.pending.is_empty() {
            record(records, timestamp, stream, b'F', &[&self.pending]);
            self.pending = Vec::new();
        }
    }
}

fn record(records: &mut Vec<u8>, timestamp: &str, stream: Stream, tag: u8, pieces: &[&[u8]]) {
    records.extend_from_slice(timestamp.as_bytes());
    records.push(b' ');
    records.extend_from_slice(stream.name());
    records.extend_from_slice(&[b' ', tag, b' ']);
    for piece in pieces {
        records.extend_from_slice(piece);
    }
    records.push(b'\n');
}

/// RFC 3339 with nine digits.
pub(crate) fn timestamp(nanoseconds: i64) -> String {
    let instant = jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap_or_default();
    format!("{instant:.9}")
}

/// The live log file of a container.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    max_bytes: u64,
    max_files: u32,
    splitters: [Splitter; 2],
}

impl Log {
    /// Opens the file at `path` for appending, with its directories.
    pub(crate) fn open(path: PathBuf, max_bytes: u64, max_files: u32) -> io::Result<Self> {
        let file = open_file(&path)?;
        let size = file.metadata()?.len();
        Ok(Self { path, file, size, max_bytes, max_files, splitters: Default::default() })
    }

    /// Writes what the process wrote at `now` (nanoseconds since the epoch).
    pub(crate) fn write(&mut self, stream: Stream, bytes: &[u8], now: i64) -> io::Result<()> {
        let mut records = Vec::new();
        self.splitters[stream as usize].push(stream, bytes, &timestamp(now), &mut records);
        self.append(&records, now)
    }

    /// Writes the last, unfinished line of a stream.
    pub(crate) fn finish(&mut self, stream: Stream, now: i64) -> io::Result<()> {
        let mut records = Vec::new();
        self.splitters[stream as usize].finish(stream, &timestamp(now), &mut records);
        self.append(&records, now)
    }

    fn append(&mut self, records: &[u8], now: i64) -> io::Result<()> {
        if records.is_empty() {
            return Ok(());
        }
        if self.max_bytes > 0 && self.size > 0 && self.size + records.len() as u64 > self.max_bytes {
            self.rotate(now)?;
        }
        self.file.write_all(records)?;
        self.size += records.len() as u64;
        Ok(())
    }

    /// Renames the live file to `<name>.<timestamp>`, opens a new one and removes the oldest beyond the limit.
    fn rotate(&mut self, now: i64) -> io::Result<()> {
        std::fs::rename(&self.path, rotated_path(&self.path, now))?;
        self.reopen()?;
        if self.max_files > 0 {
            for old in surplus(rotated_files(&self.path)?, self.max_files) {
                std::fs::remove_file(old)?;
            }
        }
        Ok(())
    }

    /// Opens the path again, for instance after somebody renamed the file.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = open_file(&self.path)?;
        self.size = self.file.metadata()?.len();
        Ok(())
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// The kubelet's `20060102-150405`, with nanoseconds so that two rotations in one second differ.
fn rotated_path(path: &Path, now: i64) -> PathBuf {
    let digits: String = timestamp(now)
        .replace('T', "-")
        .chars()
        .filter(|c| c.is_ascii_digit() || "-.".contains(*c))
        .collect();
    let compact: String = match digits.rsplitn(2, '-').collect::<Vec<_>>()[..] {
        [time, date] => format!("{}-{time}", date.replace('-', "")),
        _ => digits,
    };
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(compact);
    PathBuf::from(name)
}

/// Rotated files of the log at `path`, oldest first (their names sort by time).
fn rotated_files(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}

/// The oldest files beyond `max_files`, which counts the live one.
fn surplus(mut files: Vec<PathBuf>, max_files: u32) -> Vec<PathBuf> {
    let keep = (max_files as usize).saturating_sub(1);
    files.truncate(files.len().saturating_sub(keep));
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_475_713_029_669_794_202;

    fn split(pieces: &[&[u8]]) -> String {
        let mut splitter = Splitter::default();
        let mut records = Vec::new();
        for piece in pieces {
            splitter.push(Stream::Stdout, piece, "T", &mut records);
        }
        splitter.finish(Stream::Stdout, "T", &mut records);
        String::from_utf8(records).expect("text")
    }

    #[test]
    fn timestamps_have_nine_digits() {
        assert_eq!(timestamp(NOW), "2016-10-06T00:17:09.669794202Z");
        assert_eq!(timestamp(1_475_713_029_000_000_000), "2016-10-06T00:17:09.000000000Z");
    }

    #[test]
    fn lines_become_records() {
        for (pieces, expected) in [
            (&[&b"a\n"[..]][..], "T stdout F a\n"),
            (&[b"a\nb\n"], "T stdout F a\nT stdout F b\n"),
            (&[b"a", b"b", b"c\n"], "T stdout F abc\n"),
            (&[b"\n\n"], "T stdout F \nT stdout F \n"),
            (&[b"end"], "T stdout F end\n"),
            (&[], ""),
        ] {
            assert_eq!(split(pieces), expected, "{pieces:?}");
        }
    }

    #[test]
    fn long_lines_are_cut_into_partial_records() {
        let long = vec![b'x'; PIECE_LIMIT];
        let expected = format!("T stdout P {}\nT stdout F y\n", "x".repeat(PIECE_LIMIT));
        assert_eq!(split(&[&long, b"y\n"]), expected);
        let whole: Vec<u8> = [&long[..], b"y\n"].concat();
        assert_eq!(split(&[&whole]), expected);
        let bytes: Vec<&[u8]> = whole.chunks(1).collect();
        assert_eq!(split(&bytes), expected);
    }

    #[test]
    fn rotation_keeps_the_newest_files() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("pod/0.log");
        let mut log = Log::open(path.clone(), 120, 3).expect("open");
        for number in 0..10 {
            log.write(Stream::Stdout, format!("line number {number}\n").as_bytes(), NOW + number)
                .expect("write");
        }
        let rotated = rotated_files(&path).expect("list");
        assert_eq!(rotated.len(), 2);
        assert!(rotated[0].to_string_lossy().contains("0.log.20161006-001709.6697942"), "{rotated:?}");
        assert!(std::fs::read_to_string(&path).expect("live").contains("line number 9"));
        assert!(std::fs::read_to_string(&rotated[1]).expect("previous").contains("line number 7"));
    }

    #[test]
    fn reopening_follows_a_rename() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("0.log");
        let mut log = Log::open(path.clone(), 0, 0).expect("open");
        log.write(Stream::Stderr, b"one\n", NOW).expect("write");
        std::fs::rename(&path, directory.path().join("old")).expect("rename");
        log.reopen().expect("reopen");
        log.write(Stream::Stderr, b"two\n", NOW).expect("write");
        assert_eq!(
            std::fs::read_to_string(&path).expect("live"),
            "2016-10-06T00:17:09.669794202Z stderr F two\n"
        );
    }
}
