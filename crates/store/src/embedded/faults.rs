//! Failures on request, for tests: a disk without space, a disk that lies, a disk that dies.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What shall go wrong next.
#[derive(Debug)]
pub(super) struct Faults {
    /// Bytes left before the disk is full.
    pub(super) space: AtomicU64,
    /// The next `fdatasync` fails.
    pub(super) fail_sync: AtomicBool,
    /// How often the log was made durable.
    pub(super) syncs: AtomicU64,
    /// How often it was written to.
    pub(super) writes: AtomicU64,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            space: AtomicU64::new(u64::MAX),
            fail_sync: AtomicBool::new(false),
            syncs: AtomicU64::new(0),
            writes: AtomicU64::new(0),
        }
    }
}

impl Faults {
    /// A full disk takes the first part of a write and then refuses.
    pub(super) fn before_write(&self, file: &File, bytes: &[u8], at: u64) -> io::Result<()> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let space = self.space.load(Ordering::SeqCst);
        if (bytes.len() as u64) <= space {
            self.space.fetch_sub(bytes.len() as u64, Ordering::SeqCst);
            return Ok(());
        }
        file.write_all_at(&bytes[..space as usize], at)?;
        Err(io::Error::from_raw_os_error(28))
    }

    pub(super) fn before_sync(&self) -> io::Result<()> {
        self.syncs.fetch_add(1, Ordering::SeqCst);
        match self.fail_sync.load(Ordering::SeqCst) {
            true => Err(io::Error::from_raw_os_error(5)),
            false => Ok(()),
        }
    }
}
