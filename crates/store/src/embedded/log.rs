//! The end of the current log: appending, making durable, and taking back what did not fit.
//!
//! A failed `fdatasync` ends the process: the kernel may have dropped the dirty pages and would report success the
//! next time, so nobody can say any more what is on disk. The next start reads what is there.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::frame::{Encoder, HEADER_SIZE, Header, Kind, LOG_MAGIC};
use super::{OpenError, files};
use crate::Revision;

/// The log being written.
pub(super) struct Log {
    path: PathBuf,
    file: File,
    pub(super) number: u64,
    pub(super) salt: u32,
    pub(super) length: u64,
    /// Everything before this is on disk.
    pub(super) synced: u64,
    /// Since when something is written but not known to be on disk.
    pub(super) dirty_since: Option<Instant>,
    #[cfg(test)]
    pub(super) faults: std::sync::Arc<super::faults::Faults>,
}

impl Log {
    /// Begins a log. A ceiling that is still needed comes first.
    pub(super) fn create(
        directory: &Path,
        number: u64,
        revision: Revision,
        ceiling: Revision,
    ) -> io::Result<Self> {
        let path = files::log_path(directory, number);
        let salt = files::new_salt()?;
        let mut bytes = Header { salt, revision }.encode(LOG_MAGIC).to_vec();
        if ceiling > revision {
            Encoder { buffer: &mut bytes, salt, synced: HEADER_SIZE as u64 }.frame(
                Kind::Ceiling,
                ceiling,
                |_| {},
            );
        }
        let file = files::write_whole(&path, |writer| io::Write::write_all(writer, &bytes))?;
        Ok(Self::over(path, file, number, salt, bytes.len() as u64))
    }

    /// Goes on at the end of the good part of a recovered log and cuts the rest.
    pub(super) fn resume(directory: &Path, number: u64, good: u64, salt: u32) -> Result<Self, OpenError> {
        let path = files::log_path(directory, number);
        let failed = |source| OpenError::io("cut the end of", &path, source);
        let file = File::options().read(true).write(true).open(&path).map_err(failed)?;
        if file.metadata().map_err(failed)?.len() > good {
            file.set_len(good).map_err(failed)?;
        }
        // What was read may never have reached the disk: it must, before something is built on it.
        file.sync_all().map_err(failed)?;
        Ok(Self::over(path, file, number, salt, good))
    }

    fn over(path: PathBuf, file: File, number: u64, salt: u32, length: u64) -> Self {
        Self {
            path,
            file,
            number,
            salt,
            length,
            synced: length,
            dirty_since: None,
            #[cfg(test)]
            faults: Default::default(),
        }
    }

    #[cfg(test)]
    pub(super) fn with_faults_of(self, other: &Self) -> Self {
        Self { faults: other.faults.clone(), ..self }
    }

    /// Writes frames at the end and, when asked, waits until they are on disk. After an error the log is as before.
    pub(super) fn append(&mut self, frames: &[u8], sync: bool) -> io::Result<()> {
        if let Err(error) = self.write(frames) {
            self.take_back();
            return Err(error);
        }
        self.length += frames.len() as u64;
        if !frames.is_empty() {
            self.dirty_since.get_or_insert_with(Instant::now);
        }
        if sync {
            self.sync();
        }
        Ok(())
    }

    fn write(&self, frames: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        self.faults.before_write(&self.file, frames, self.length)?;
        self.file.write_all_at(frames, self.length)
    }

    fn take_back(&self) {
        if let Err(error) = self.file.set_len(self.length) {
            die("take back an unfinished write to", &self.path, &error);
        }
    }

    /// Waits until everything written is on disk.
    pub(super) fn sync(&mut self) {
        if self.dirty_since.is_none() {
            return;
        }
        if let Err(error) = self.sync_file() {
            die("make durable", &self.path, &error);
        }
        self.synced = self.length;
        self.dirty_since = None;
    }

    fn sync_file(&self) -> io::Result<()> {
        #[cfg(test)]
        self.faults.before_sync()?;
        self.file.sync_data()
    }
}

fn die(what: &str, path: &Path, error: &io::Error) -> ! {
    tracing::error!(path = %path.display(), %error, "failed to {what} the store's log; ending the process");
    // The log of the process may not be set up, and this is its last word.
    eprintln!("sampan store: failed to {what} {}: {error}; ending the process", path.display());
    std::process::abort();
}
