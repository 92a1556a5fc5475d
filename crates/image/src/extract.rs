//! Writes the entries of an archive below a directory, and nowhere else: every path is resolved by the kernel with
//! `openat2(RESOLVE_BENEATH)` from the directory's descriptor, so that neither `..` nor a link that an earlier entry
//! made leads out. OCI whiteouts become those of overlayfs.
//!
//! What is not kept: devices (an error), attributes other than capabilities, ACLs and `user.*`, and access times.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, mkdirat, mknodat, openat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::fs::{Gid, Uid};
use rustix::io::Errno;

use crate::LayerError;
use crate::tarball::{Entry, Kind, Tarball};

/// Names of OCI whiteouts: `.wh.NAME` hides NAME of the layers below, the other all there is in its directory.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of AUFS's own housekeeping; they mean nothing here.
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory being filled.
pub(crate) struct Extractor {
    root: OwnedFd,
    /// The directory of the last entry: archives list directories' contents together.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// Modification times of directories, set when nothing is written into them any more.
    directory_times: Vec<(Vec<u8>, (i64, u32))>,
    buffer: Vec<u8>,
}

/// A path of the archive, made safe: no empty, `.` or `..` parts. The root itself has no name.
struct Place<'a> {
    parent: Vec<u8>,
    name: Option<&'a [u8]>,
}

/// Gives errno its entry.
fn failed<'a>(action: &'static str, entry: &'a [u8]) -> impl Fn(Errno) -> LayerError + 'a {
    move |errno| {
        let entry = String::from_utf8_lossy(entry).into_owned();
        match errno {
            // What RESOLVE_BENEATH answers to a link that is absolute or leads out, and to a circle of links.
            Errno::XDEV | Errno::LOOP => LayerError::Escapes {
                entry,
                reason: "its path goes through a symbolic link that leads out".to_owned(),
            },
            errno => LayerError::Io { action, entry, source: errno.into() },
        }
    }
}

fn escapes(entry: &[u8], reason: &str) -> LayerError {
    LayerError::Escapes { entry: String::from_utf8_lossy(entry).into_owned(), reason: reason.to_owned() }
}

fn place(path: &[u8]) -> Result<Place<'_>, LayerError> {
    let mut parts: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    if parts.contains(&&b".."[..]) {
        return Err(escapes(path, "its path contains '..'"));
    }
    if path.contains(&0) {
        let place = String::from_utf8_lossy(path).into_owned();
        return Err(LayerError::Malformed { place, reason: "a name contains a zero byte".to_owned() });
    }
    let name = parts.pop();
    Ok(Place { parent: parts.join(&b'/'), name })
}

fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

impl Extractor {
    /// Fills `root`, an existing empty directory.
    pub(crate) fn new(root: &Path) -> Result<Self, LayerError> {
        let name = root.as_os_str().as_bytes();
        let root = rustix::fs::open(root, DIRECTORY, Mode::empty()).map_err(failed("open", name))?;
        fchmod(&root, Mode::from_raw_mode(0o755)).map_err(failed("set the mode of", name))?;
        Ok(Self { root, parent: None, directory_times: Vec::new(), buffer: vec![0; 128 << 10] })
    }

    /// Writes one entry; `archive` is at its content.
    pub(crate) fn write<R: Read>(
        &mut self,
        entry: &Entry,
        archive: &mut Tarball<R>,
    ) -> Result<(), LayerError> {
        let Place { parent, name } = place(&entry.path)?;
        let Some(name) = name else { return self.write_root(entry) };
        let directory = self.directory(&parent, &entry.path)?;
        let result = match whiteout(name, &entry.path)? {
            Some(Whiteout::Opaque) => set_opaque(&directory, &entry.path),
            Some(Whiteout::Hide(name)) => hide(&directory, name, &entry.path),
            Some(Whiteout::Housekeeping) => Ok(()),
            None => self.write_named(&directory, name, entry, archive),
        };
        self.parent = Some((parent, directory));
        result
    }

    /// Sets the times of directories and waits until everything is on disk.
    pub(crate) fn finish(mut self) -> Result<(), LayerError> {
        for (path, mtime) in std::mem::take(&mut self.directory_times).into_iter().rev() {
            // A later entry may have replaced the directory by something else.
            let Ok(directory) = self.open_beneath(&path) else { continue };
            futimens(&directory, &times(mtime)).map_err(failed("set the time of", &path))?;
        }
        rustix::fs::syncfs(&self.root).map_err(failed("write to disk", b"/"))
    }

    fn open_beneath(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { os(b".") } else { os(path) };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        // A link as the last part is followed: what counts is where it leads.
        openat2(&self.root, path, DIRECTORY - OFlags::NOFOLLOW, Mode::empty(), resolve)
    }

    /// The directory an entry goes into; missing ones are made, as archives need not list them.
    fn directory(&mut self, path: &[u8], entry: &[u8]) -> Result<OwnedFd, LayerError> {
        match self.parent.take() {
            Some((cached, directory)) if cached == path => return Ok(directory),
            _ => {}
        }
        match self.open_beneath(path) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_directories(path, entry),
            other => other.map_err(failed("open the directory of", entry)),
        }
    }

    fn make_directories(&self, path: &[u8], entry: &[u8]) -> Result<OwnedFd, LayerError> {
        let mut directory = self.open_beneath(b"").map_err(failed("open the root for", entry))?;
        let ends = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut start = 0;
        for end in ends.chain(std::iter::once(path.len())) {
            let name = &path[start..end];
            start = end + 1;
            directory = match self.open_beneath(&path[..end]) {
                Ok(next) => next,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    let replaces = clear(&directory, name, true, entry)? == Before::Whiteout;
                    let mode = Mode::from_raw_mode(0o755);
                    mkdirat(&directory, os(name), mode).map_err(failed("make the directory of", entry))?;
                    let made = openat(&directory, os(name), DIRECTORY, Mode::empty());
                    let made = made.map_err(failed("open the directory of", entry))?;
                    fchmod(&made, mode).map_err(failed("set the mode of the directory of", entry))?;
                    if replaces {
                        set_opaque(&made, entry)?;
                    }
                    made
                }
                Err(errno) => return Err(failed("open the directory of", entry)(errno)),
            };
        }
        Ok(directory)
    }

    fn write_root(&mut self, entry: &Entry) -> Result<(), LayerError> {
        if entry.kind != Kind::Directory {
            return Err(escapes(&entry.path, "it would replace the root"));
        }
        set_metadata(&self.root, entry)?;
        self.directory_times.push((Vec::new(), entry.mtime));
        Ok(())
    }

    fn write_named<R: Read>(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        archive: &mut Tarball<R>,
    ) -> Result<(), LayerError> {
        if entry.kind == Kind::Device {
            return Err(LayerError::Device { entry: entry.name() });
        }
        // The target is looked up first: an entry that links to itself must not remove it.
        let target = match entry.kind {
            Kind::HardLink => Some(self.link_target(entry)?),
            _ => None,
        };
        if let Some((target_directory, target_name)) = &target
            && is_same(target_directory, target_name, directory, name)
        {
            return Ok(());
        }
        let before = clear(directory, name, entry.kind == Kind::Directory, &entry.path)?;
        match (entry.kind, target) {
            (Kind::File, _) => self.write_file(directory, name, entry, archive),
            (Kind::Directory, _) => self.write_directory(directory, name, entry, before),
            (Kind::Symlink, _) => write_symlink(directory, name, entry),
            (Kind::HardLink, Some((target_directory, target_name))) => {
                linkat(&target_directory, os(&target_name), directory, os(name), AtFlags::empty())
                    .map_err(failed("make the hard link", &entry.path))
            }
            (Kind::Fifo, _) => write_fifo(directory, name, entry),
            (Kind::Device | Kind::HardLink, _) => Err(LayerError::Device { entry: entry.name() }),
        }
    }

    fn write_file<R: Read>(
        &mut self,
        directory: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        archive: &mut Tarball<R>,
    ) -> Result<(), LayerError> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(directory, os(name), flags, Mode::from_raw_mode(0o600))
            .map_err(failed("create", &entry.path))?;
        let mut file = File::from(file);
        let place = entry.name();
        loop {
            let count = archive.read_content(&mut self.buffer, &place)?;
            if count == 0 {
                break;
            }
            file.write_all(&self.buffer[..count]).map_err(|source| LayerError::Io {
                action: "write",
                entry: place.clone(),
                source,
            })?;
        }
        let file = OwnedFd::from(file);
        set_metadata(&file, entry)?;
        futimens(&file, &times(entry.mtime)).map_err(failed("set the time of", &entry.path))
    }

    fn write_directory(
        &mut self,
        parent: &OwnedFd,
        name: &[u8],
        entry: &Entry,
        before: Before,
    ) -> Result<(), LayerError> {
        if before != Before::Directory {
            mkdirat(parent, os(name), Mode::from_raw_mode(0o700)).map_err(failed("make", &entry.path))?;
        }
        let directory =
            openat(parent, os(name), DIRECTORY, Mode::empty()).map_err(failed("open", &entry.path))?;
        if before == Before::Whiteout {
            set_opaque(&directory, &entry.path)?;
        }
        set_metadata(&directory, entry)?;
        let trimmed = entry.path.strip_suffix(b"/").unwrap_or(&entry.path);
        let trimmed = trimmed.iter().position(|byte| *byte != b'/').map_or(&[][..], |at| &trimmed[at..]);
        self.directory_times.push((trimmed.to_vec(), entry.mtime));
        Ok(())
    }

    /// The directory and name of a hard link's target, which must be in this layer.
    fn link_target(&self, entry: &Entry) -> Result<(OwnedFd, Vec<u8>), LayerError> {
        let Place { parent, name } = place(&entry.link).map_err(|_| {
            escapes(&entry.path, &format!("it links to {:?}", String::from_utf8_lossy(&entry.link)))
        })?;
        let name = name.ok_or_else(|| escapes(&entry.path, "it links to the root"))?;
        let directory = self.open_beneath(&parent).map_err(failed("find the target of", &entry.path))?;
        let target = statat(&directory, os(name), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(failed("find the target of", &entry.path))?;
        match FileType::from_raw_mode(target.st_mode) {
            // A hard link to a whiteout would be one more.
            FileType::CharacterDevice | FileType::Directory => {
                Err(escapes(&entry.path, "it links to something that is no file"))
            }
            _ => Ok((directory, name.to_vec())),
        }
    }
}

enum Whiteout<'a> {
    Opaque,
    Hide(&'a [u8]),
    Housekeeping,
}

fn whiteout<'a>(name: &'a [u8], entry: &[u8]) -> Result<Option<Whiteout<'a>>, LayerError> {
    if name == OPAQUE {
        return Ok(Some(Whiteout::Opaque));
    }
    if name.starts_with(AUFS) {
        return Ok(Some(Whiteout::Housekeeping));
    }
    match name.strip_prefix(WHITEOUT) {
        None => Ok(None),
        Some(b"" | b"." | b"..") => Err(escapes(entry, "it hides no name")),
        Some(hidden) => Ok(Some(Whiteout::Hide(hidden))),
    }
}

/// What was at a place before an entry took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Directory,
    Whiteout,
}

/// Makes room for an entry. A directory stays for a directory, everything else goes; no link is followed.
fn clear(directory: &OwnedFd, name: &[u8], keep_directory: bool, entry: &[u8]) -> Result<Before, LayerError> {
    let stat = match statat(directory, os(name), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(Before::Nothing),
        Err(errno) => return Err(failed("look at", entry)(errno)),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if keep_directory => return Ok(Before::Directory),
        FileType::Directory => remove_tree(directory, name).map_err(failed("replace", entry))?,
        FileType::CharacterDevice => {
            unlinkat(directory, os(name), AtFlags::empty()).map_err(failed("replace", entry))?;
            return Ok(Before::Whiteout);
        }
        _ => unlinkat(directory, os(name), AtFlags::empty()).map_err(failed("replace", entry))?,
    }
    Ok(Before::Nothing)
}

fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    let directory = openat(parent, os(name), DIRECTORY, Mode::empty())?;
    for child in rustix::fs::Dir::read_from(&directory)? {
        let child = child?;
        let child = child.file_name().to_bytes();
        if child == b"." || child == b".." {
            continue;
        }
        match unlinkat(&directory, os(child), AtFlags::empty()) {
            Err(Errno::ISDIR) => remove_tree(&directory, child)?,
            other => other?,
        }
    }
    unlinkat(parent, os(name), AtFlags::REMOVEDIR)
}

fn is_same(one_directory: &OwnedFd, one: &[u8], other_directory: &OwnedFd, other: &[u8]) -> bool {
    let of = |directory, name| {
        statat(directory, os(name), AtFlags::SYMLINK_NOFOLLOW).ok().map(|stat| (stat.st_dev, stat.st_ino))
    };
    let one = of(one_directory, one);
    one.is_some() && one == of(other_directory, other)
}

fn set_opaque(directory: &OwnedFd, entry: &[u8]) -> Result<(), LayerError> {
    fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty())
        .map_err(failed("make opaque the directory of", entry))
}

/// A name that this layer has as well is not hidden: whiteouts speak of the layers below. A directory then hides
/// what is below it.
fn hide(directory: &OwnedFd, name: &[u8], entry: &[u8]) -> Result<(), LayerError> {
    match statat(directory, os(name), AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => mknodat(directory, os(name), FileType::CharacterDevice, Mode::empty(), 0)
            .map_err(failed("make the whiteout", entry)),
        Err(errno) => Err(failed("look at", entry)(errno)),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
            let hidden = openat(directory, os(name), DIRECTORY, Mode::empty());
            set_opaque(&hidden.map_err(failed("open", entry))?, entry)
        }
        Ok(_) => Ok(()),
    }
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

/// Owner, mode and attributes, in this order: a change of the owner clears set-id bits and capabilities.
fn set_metadata(file: &OwnedFd, entry: &Entry) -> Result<(), LayerError> {
    let (uid, gid) = owner(entry);
    fchown(file, uid, gid).map_err(failed("set the owner of", &entry.path))?;
    fchmod(file, Mode::from_raw_mode(entry.mode)).map_err(failed("set the mode of", &entry.path))?;
    for (name, value) in entry.xattrs.iter().filter(|(name, _)| is_kept(name)) {
        match fsetxattr(file, os(name), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => {
                let name = String::from_utf8_lossy(name);
                tracing::warn!(entry = entry.name(), %name, "the file system does not keep this attribute");
            }
            Err(errno) => return Err(failed("set an attribute of", &entry.path)(errno)),
        }
    }
    Ok(())
}

/// Never `trusted.overlay.*` or `user.overlay.*`, by which a layer would speak to overlayfs itself.
fn is_kept(name: &[u8]) -> bool {
    match name {
        b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default" => true,
        name => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

fn write_symlink(directory: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
    symlinkat(os(&entry.link), directory, os(name)).map_err(failed("make the link", &entry.path))?;
    set_metadata_of_special(directory, name, entry)
}

fn write_fifo(directory: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
    mknodat(directory, os(name), FileType::Fifo, Mode::from_raw_mode(0o600), 0)
        .map_err(failed("make the pipe", &entry.path))?;
    set_metadata_of_special(directory, name, entry)?;
    // No link can be in the way: the name was made here, and nobody else writes below the root.
    rustix::fs::chmodat(directory, os(name), Mode::from_raw_mode(entry.mode), AtFlags::empty())
        .map_err(failed("set the mode of", &entry.path))
}

fn set_metadata_of_special(directory: &OwnedFd, name: &[u8], entry: &Entry) -> Result<(), LayerError> {
    let (uid, gid) = owner(entry);
    chownat(directory, os(name), uid, gid, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set the owner of", &entry.path))?;
    utimensat(directory, os(name), &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
        .map_err(failed("set the time of", &entry.path))
}
