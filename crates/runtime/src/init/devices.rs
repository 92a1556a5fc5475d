//! `/dev` of a container.
//!
//! A container may have CAP_MKNOD, so a device node alone must not give access: `/dev` and everything else is mounted
//! `nodev`, and each permitted node is a mount of its own on top of itself, without `nodev`. The cgroup's device list
//! says the same once more for containers that may mount.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Dev, FileType, Mode, OFlags, makedev};
use rustix::mount::MountAttrFlags;
use sampan_kernel::mount::{MountAttributes, set_attributes};

use super::inside::{Kind, Root};
use super::mounting::{RESTRICTED, clone_descriptor, new_filesystem, place};
use crate::failure::{Failure, Tried};

/// The nodes of the OCI runtime specification: name, major, minor.
const NODES: &[(&str, u32, u32)] =
    &[("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];

const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Deepest directory of the node's `/dev` that a privileged container gets.
const HOST_DEPTH: usize = 3;

/// Size of `/dev/shm` when the pod's cannot be shared, as with other runtimes.
pub(crate) const SHM_SIZE: &str = "64m";

/// Fills `/dev`; returns the mount of its pseudo terminals.
///
/// `shm` is the pod's shared memory, placed when given; otherwise the container gets its own.
pub(crate) fn mount_dev(root: &Root, privileged: bool, shm: Option<OwnedFd>) -> Result<OwnedFd, Failure> {
    let dev = new_filesystem(
        "tmpfs",
        &[("mode", Some("755")), ("size", Some("65536k"))],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    place(&dev, root.ensure(Path::new("/dev"), Kind::Directory)?).tried(|| "mount /dev".to_owned())?;
    for (name, major, minor) in NODES {
        make_node(&dev, Path::new(name), FileType::CharacterDevice, makedev(*major, *minor), 0o666)
            .tried(|| format!("make /dev/{name}"))?;
    }
    for (name, target) in LINKS {
        rustix::fs::symlinkat(*target, &dev, *name).tried(|| format!("make /dev/{name}"))?;
    }
    if privileged {
        copy_nodes(&dev, Path::new("/dev"), Path::new(""), 0);
    } else {
        permit_nodes(&dev)?;
    }
    let terminals = new_filesystem(
        "devpts",
        &[("newinstance", None), ("ptmxmode", Some("0666")), ("mode", Some("0620")), ("gid", Some("5"))],
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    let shm = match shm {
        Some(shm) => shm,
        None => new_filesystem("tmpfs", &[("mode", Some("1777")), ("size", Some(SHM_SIZE))], RESTRICTED)?,
    };
    let queues = new_filesystem("mqueue", &[], RESTRICTED)?;
    for (name, mount) in [("pts", &terminals), ("shm", &shm), ("mqueue", &queues)] {
        let target = make_directory(&dev, name).tried(|| format!("make /dev/{name}"))?;
        place(mount, &target).tried(|| format!("mount /dev/{name}"))?;
    }
    Ok(terminals)
}

/// Makes each node a mount of its own, then forbids devices on the rest.
fn permit_nodes(dev: &OwnedFd) -> Result<(), Failure> {
    for (name, ..) in NODES {
        let permit = || {
            let node = rustix::fs::openat(dev, *name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            place(clone_descriptor(&node)?, &node)
        };
        permit().tried(|| format!("permit /dev/{name}"))?;
    }
    set_attributes(dev, MountAttributes { no_dev: true, ..MountAttributes::default() }, false)
        .tried(|| "forbid devices in /dev".to_owned())
}

fn make_node(dev: &OwnedFd, path: &Path, kind: FileType, number: Dev, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::mknodat(dev, path, kind, Mode::from_raw_mode(mode), number)
}

fn make_directory(dev: &OwnedFd, name: &str) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::mkdirat(dev, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error),
    }
    rustix::fs::openat(dev, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Copies the node's device nodes for a privileged container. What cannot be copied is left out: the list of a
/// node's devices changes at any moment.
fn copy_nodes(dev: &OwnedFd, host: &Path, below: &Path, depth: usize) {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(entries) = std::fs::read_dir(host.join(below)) else {
        return;
    };
    for entry in entries.flatten() {
        let path: PathBuf = below.join(entry.file_name());
        let (Ok(kind), Ok(metadata)) = (entry.file_type(), entry.metadata()) else {
            continue;
        };
        let is_ours = ["pts", "shm", "mqueue", "console"].iter().any(|name| path == Path::new(name));
        let node = if kind.is_char_device() {
            FileType::CharacterDevice
        } else if kind.is_block_device() {
            FileType::BlockDevice
        } else {
            if kind.is_dir() && !is_ours && depth < HOST_DEPTH {
                let _ = rustix::fs::mkdirat(dev, &path, Mode::from_raw_mode(0o755));
                copy_nodes(dev, host, &path, depth + 1);
            }
            continue;
        };
        if !is_ours {
            let _ = make_node(dev, &path, node, metadata.rdev(), metadata.mode() & 0o777);
        }
    }
}
