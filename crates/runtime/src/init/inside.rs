//! Paths inside a container's root, never through its links to the outside.
//!
//! Every lookup is an `openat2` with `RESOLVE_IN_ROOT`: the kernel resolves links as if the root were `/`, also while a
//! hostile process in another container of the pod renames directories of a shared volume at the same time. What is
//! found is held by descriptor and mounted over by descriptor, so there is no second lookup to win.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::failure::{Failure, Tried};

/// Most links followed for one path, as in the kernel.
const LINK_LIMIT: usize = 40;

/// A directory that is `/` for every lookup through it.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

/// What a mount target has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    File,
}

impl Root {
    pub(crate) fn open(path: &Path) -> Result<Self, Failure> {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .tried(|| format!("open {}", path.display()))
            .map(Self)
    }

    pub(crate) fn descriptor(&self) -> &OwnedFd {
        &self.0
    }

    /// Opens what is at `path`, following links inside the root.
    pub(crate) fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// A handle of what is at `path`; `None` when there is nothing.
    pub(crate) fn find(&self, path: &Path) -> Result<Option<OwnedFd>, Errno> {
        match self.open_at(path, OFlags::PATH) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A handle of what is at `path`, made with its parents when missing.
    ///
    /// Walks one component at a time, because a link that leads to nothing has to be followed while creating.
    pub(crate) fn ensure(&self, path: &Path, kind: Kind) -> Result<OwnedFd, Failure> {
        self.walk(path, kind).tried(|| format!("make {} in the container", path.display()))
    }

    fn walk(&self, path: &Path, kind: Kind) -> Result<OwnedFd, Errno> {
        let mut resolved = PathBuf::from("/");
        let mut ahead: VecDeque<OsString> = components(path.as_os_str()).collect();
        let mut links = 0;
        while let Some(component) = ahead.pop_front() {
            if component == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&component);
            let entry_kind = if ahead.is_empty() { kind } else { Kind::Directory };
            let entry = match self.open_at(&next, OFlags::PATH | OFlags::NOFOLLOW) {
                Ok(entry) => entry,
                Err(Errno::NOENT) => self.make(&resolved, &component, entry_kind)?,
                Err(error) => return Err(error),
            };
            if FileType::from_raw_mode(rustix::fs::fstat(&entry)?.st_mode) != FileType::Symlink {
                resolved = next;
                continue;
            }
            links += 1;
            if links > LINK_LIMIT {
                return Err(Errno::LOOP);
            }
            let target = OsString::from_vec(rustix::fs::readlinkat(&entry, c"", Vec::new())?.into_bytes());
            if target.as_bytes().starts_with(b"/") {
                resolved = PathBuf::from("/");
            }
            for part in components(&target).collect::<Vec<_>>().into_iter().rev() {
                ahead.push_front(part);
            }
        }
        self.open_at(&resolved, OFlags::PATH | OFlags::NOFOLLOW)
    }

    fn make(&self, parent: &Path, name: &OsStr, kind: Kind) -> Result<OwnedFd, Errno> {
        let parent = self.open_at(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let made = match kind {
            Kind::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
            Kind::File => {
                rustix::fs::mknodat(&parent, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)
            }
        };
        match made {
            // Somebody else was faster; what is there is looked at like anything found.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        rustix::fs::openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
    }

    /// Contents of a regular file of at most `limit` bytes; `None` when there is no such file.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
        // Non-blocking, because the image may have put a pipe there.
        let file = match self.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::other(format!("{} is larger than {limit} bytes", path.display())));
        }
        Ok(Some(bytes))
    }
}

fn components(path: &OsStr) -> impl Iterator<Item = OsString> {
    path.as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(|part| OsStr::from_bytes(part).to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn real_path(descriptor: &OwnedFd) -> PathBuf {
        use std::os::fd::AsRawFd;
        std::fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd())).expect("open descriptor")
    }

    #[test]
    fn links_stay_inside() {
        let outside = tempfile::tempdir().expect("temporary directory");
        let base = outside.path().canonicalize().expect("exists").join("root");
        std::fs::create_dir_all(base.join("etc")).expect("make");
        symlink("/etc", base.join("absolute")).expect("link");
        symlink("../../../../etc", base.join("upwards")).expect("link");
        symlink("/run/lock", base.join("dangling")).expect("link");
        symlink("loop", base.join("loop")).expect("link");
        let root = Root::open(&base).expect("open");
        for (path, expected) in [
            ("absolute/new", "etc/new"),
            ("upwards/other", "etc/other"),
            ("../../etc/third", "etc/third"),
            ("dangling/deep/down", "run/lock/deep/down"),
            ("/a/./b//c/", "a/b/c"),
        ] {
            let made = root.ensure(Path::new(path), Kind::Directory).expect(path);
            assert_eq!(real_path(&made), base.join(expected), "{path}");
            let found = root.find(Path::new(path)).expect("lookup").expect("made just now");
            assert_eq!(real_path(&found), base.join(expected), "{path}");
        }
        assert!(root.ensure(Path::new("loop/x"), Kind::Directory).is_err());
        let file = root.ensure(Path::new("absolute/file"), Kind::File).expect("file");
        assert_eq!(real_path(&file), base.join("etc/file"));
        let entries: Vec<_> = std::fs::read_dir(outside.path()).expect("list").collect();
        assert_eq!(entries.len(), 1, "nothing was made outside of the root");
    }

    #[test]
    fn reading_is_bounded_and_never_blocks() {
        let directory = tempfile::tempdir().expect("temporary directory");
        std::fs::write(directory.path().join("passwd"), "12345").expect("write");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            directory.path().join("pipe"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .expect("pipe");
        let root = Root::open(directory.path()).expect("open");
        assert_eq!(root.read(Path::new("passwd"), 5).expect("fits"), Some(b"12345".to_vec()));
        assert!(root.read(Path::new("passwd"), 4).is_err());
        assert_eq!(root.read(Path::new("absent"), 5).expect("absent"), None);
        assert_eq!(root.read(Path::new("pipe"), 5).expect("not a file"), None);
        assert_eq!(root.read(Path::new("."), 5).expect("not a file"), None);
    }
}
