//! A part of a volume, mounted by itself.
//!
//! A container that can write to the volume may put links there at any moment. The path is therefore walked by the kernel
//! with the volume as its root (`openat2`, `RESOLVE_IN_ROOT`), and what was found is held open and mounted by its
//! descriptor, never by its name again.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::error::NodeError;

/// Which part, and where it is mounted for the runtime to find.
pub(super) struct Place {
    pub(super) root: PathBuf,
    pub(super) inside: String,
    pub(super) target: PathBuf,
    /// Missing directories are made.
    pub(super) may_create: bool,
}

/// Mounts the part; returns where. An earlier mount there is replaced, so that a container that starts again sees what
/// the volume holds now.
pub(super) fn bind(place: &Place) -> Result<PathBuf, NodeError> {
    if !Path::new(&place.inside)
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    {
        return Err(NodeError::Unusable(format!("subPath {:?} must stay inside the volume", place.inside)));
    }
    let shown = place.root.join(&place.inside);
    let root = rustix::fs::open(&place.root, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(NodeError::errno("open", &place.root))?;
    let found = match open_beneath(&root, &place.inside) {
        Err(Errno::NOENT) if place.may_create => create_beneath(&root, &place.inside),
        other => other,
    }
    .map_err(NodeError::errno("open", &shown))?;
    let facts = rustix::fs::fstat(&found).map_err(NodeError::errno("look at", &shown))?;
    make_target(&place.target, FileType::from_raw_mode(facts.st_mode) == FileType::Directory)?;
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::mount::mount_bind_recursive(source.as_str(), &place.target)
        .map_err(NodeError::errno("mount a part of a volume on", &place.target))?;
    Ok(place.target.clone())
}

fn resolve() -> ResolveFlags {
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS
}

fn open_beneath(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve())
}

/// Walks down and makes what is missing. Each step opens what the one before made, so that nothing can be slipped in.
fn create_beneath(root: &OwnedFd, path: &str) -> Result<OwnedFd, Errno> {
    let mut walked = PathBuf::new();
    let mut parent: Option<OwnedFd> = None;
    for part in Path::new(path).components() {
        let Component::Normal(name) = part else { continue };
        walked.push(name);
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let next = match rustix::fs::openat2(root, &walked, flags, Mode::empty(), resolve()) {
            Err(Errno::NOENT) => {
                let above = parent.as_ref().unwrap_or(root);
                match rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o750)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error),
                }
                let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::DIRECTORY;
                rustix::fs::openat(above, name, flags, Mode::empty())?
            }
            other => other?,
        };
        parent = Some(next);
    }
    parent.ok_or(Errno::NOENT)
}

fn make_target(target: &Path, is_directory: bool) -> Result<(), NodeError> {
    match rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH) {
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(NodeError::errno("unmount", target)(error)),
    }
    if is_directory {
        return std::fs::create_dir_all(target).map_err(NodeError::file("create", target));
    }
    if let Some(parent) = target.parent() {
        std::fs::create_dir_all(parent).map_err(NodeError::file("create", parent))?;
    }
    match std::fs::write(target, b"") {
        Err(error) if !target.exists() => Err(NodeError::file("create", target)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_do_not_lead_out() {
        let directory = tempfile::tempdir().expect("tempdir");
        let volume = directory.path().join("volume");
        std::fs::create_dir_all(volume.join("real")).expect("create");
        std::fs::create_dir(directory.path().join("outside")).expect("create");
        std::os::unix::fs::symlink("../outside", volume.join("out")).expect("link");
        std::os::unix::fs::symlink("real", volume.join("in")).expect("link");
        let root = rustix::fs::open(&volume, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("open");
        assert!(open_beneath(&root, "in").is_ok());
        // `..` of the root is the root: the link leads to a name that does not exist there.
        assert_eq!(open_beneath(&root, "out").err(), Some(Errno::NOENT));
        assert!(create_beneath(&root, "new/deep").is_ok());
        assert!(volume.join("new/deep").is_dir());
        assert_eq!(std::fs::read_dir(directory.path().join("outside")).expect("read").count(), 0);
    }
}
