//! The file system a container sees, built in its own mount namespace.
//!
//! Order matters: sources of volumes are cloned while this namespace still shares mount events with the node (so that
//! propagation can be kept for those that want it), then everything becomes a slave, then the root is built and
//! entered, and last what must not be seen is covered.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags, MountPropagationFlags, UnmountFlags};
use sampan_kernel::mount::{MountAttributes, Propagation, set_attributes};

use super::devices;
use super::inside::{Kind, Root};
use super::mounting::{RESTRICTED, clone_descriptor, clone_path, new_filesystem, place};
use crate::cgroup::Cgroups;
use crate::cri::{Mount, MountPropagation};
use crate::failure::{Failure, Tried};
use crate::record::{ContainerPaths, ContainerRecord};

/// Covered: they tell about the node or let the container disturb it. The lists are those of the container engines.
const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// Visible but not writable.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// What a container shares with its pod, prepared by the supervisor.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    /// Clone of the pod's `/dev/shm`.
    pub(crate) shm: Option<OwnedFd>,
}

/// Builds the root file system and makes it `/` of this process. Returns the mount of its pseudo terminals.
pub(crate) fn enter(
    record: &ContainerRecord,
    paths: &ContainerPaths,
    shared: Shared,
    cgroups: &Cgroups,
) -> Result<OwnedFd, Failure> {
    let security = &record.config.security;
    let sources = clone_sources(&record.config.mounts, security.privileged)?;
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .tried(|| "detach from the node's mounts".to_owned())?;
    // Otherwise the modes of nodes and directories below would lose bits.
    rustix::process::umask(Mode::empty());
    mount_overlay(record, paths, security.privileged)?;
    let root = Root::open(&paths.rootfs())?;
    mount_proc(&root)?;
    let terminals = devices::mount_dev(&root, security.privileged, shared.shm)?;
    mount_sys(&root, security.privileged, cgroups)?;
    for (mount, source) in sources {
        place_volume(&root, mount, source)?;
    }
    if security.readonly_rootfs {
        set_attributes(
            root.descriptor(),
            MountAttributes { read_only: true, ..MountAttributes::default() },
            false,
        )
        .tried(|| "make the root file system read-only".to_owned())?;
    }
    pivot(&root)?;
    if !security.privileged && !security.unmasked_proc {
        cover(&Root::open(Path::new("/"))?)?;
    }
    Ok(terminals)
}

/// Second mounts of all volumes, in the order of their depth so that one can be inside another.
fn clone_sources(mounts: &[Mount], privileged: bool) -> Result<Vec<(&Mount, OwnedFd)>, Failure> {
    let mut sources = Vec::with_capacity(mounts.len());
    for mount in mounts {
        let source = clone_path(&mount.host_path, true)
            .tried(|| format!("open volume {} of {}", mount.host_path.display(), mount.container_path))?;
        let propagation = match mount.propagation {
            MountPropagation::Private => Propagation::Private,
            MountPropagation::HostToContainer => Propagation::Slave,
            MountPropagation::Bidirectional => Propagation::Shared,
        };
        let is_device = matches!(kind_of(&source), Ok(FileType::CharacterDevice | FileType::BlockDevice));
        let attributes = MountAttributes {
            read_only: mount.readonly,
            no_dev: !privileged && !is_device,
            propagation: Some(propagation),
            ..MountAttributes::default()
        };
        set_attributes(&source, attributes, true)
            .tried(|| format!("restrict volume {}", mount.host_path.display()))?;
        sources.push((mount, source));
    }
    sources.sort_by_key(|(mount, _)| Path::new(&mount.container_path).components().count());
    Ok(sources)
}

fn kind_of(descriptor: &OwnedFd) -> Result<FileType, Errno> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(descriptor)?.st_mode))
}

/// The layers and a writable directory as one tree.
///
/// Layers are named by descriptor: the kernel reads options from one page, which holds more than 200 of these names
/// but only 40 paths of usual length, and the container does not see paths of the node in its mount table.
fn mount_overlay(record: &ContainerRecord, paths: &ContainerPaths, privileged: bool) -> Result<(), Failure> {
    let open = |path: &PathBuf| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .tried(|| format!("open image layer {}", path.display()))
    };
    // An image without layers is an empty directory, and the mount point is one.
    let empty = [paths.rootfs()];
    let layers = if record.layers.is_empty() { &empty[..] } else { &record.layers[..] };
    let layers = layers.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (open(&paths.upper())?, open(&paths.work())?);
    let name = |descriptor: &OwnedFd| format!("/proc/self/fd/{}", descriptor.as_raw_fd());
    let lower: Vec<String> = layers.iter().map(name).collect();
    // volatile: a container never outlives the machine, so nothing has to reach the disk when it ends.
    let options =
        format!("lowerdir={},upperdir={},workdir={},volatile", lower.join(":"), name(&upper), name(&work));
    let options = std::ffi::CString::new(options).map_err(|_| Failure::new("malformed layer path"))?;
    let flags = if privileged { MountFlags::empty() } else { MountFlags::NODEV };
    rustix::mount::mount("overlay", paths.rootfs(), "overlay", flags, Some(options.as_c_str()))
        .tried(|| format!("mount {} image layers", layers.len()))
}

fn mount_proc(root: &Root) -> Result<(), Failure> {
    let proc = new_filesystem("proc", &[], RESTRICTED)?;
    place(&proc, root.ensure(Path::new("/proc"), Kind::Directory)?).tried(|| "mount /proc".to_owned())
}

fn mount_sys(root: &Root, privileged: bool, cgroups: &Cgroups) -> Result<(), Failure> {
    let attributes = if privileged { RESTRICTED } else { RESTRICTED | MountAttrFlags::MOUNT_ATTR_RDONLY };
    let sys = new_filesystem("sysfs", &[], attributes)?;
    place(&sys, root.ensure(Path::new("/sys"), Kind::Directory)?).tried(|| "mount /sys".to_owned())?;
    // A kernel without cgroups in sysfs has no directory for them, and a container can live without seeing its own.
    if let Ok(Some(target)) = root.find(Path::new("/sys/fs/cgroup"))
        && let Err(error) = mount_cgroups(root, &target, attributes, cgroups)
    {
        tracing::debug!(%error, "container does not see its cgroup");
    }
    Ok(())
}

/// The container's own cgroup, as far up as its cgroup namespace shows.
fn mount_cgroups(
    root: &Root,
    target: &OwnedFd,
    attributes: MountAttrFlags,
    cgroups: &Cgroups,
) -> Result<(), Failure> {
    if cgroups.legacy.is_empty() {
        let unified = new_filesystem("cgroup2", &[], attributes)?;
        return place(&unified, target).tried(|| "mount /sys/fs/cgroup".to_owned());
    }
    let top = new_filesystem("tmpfs", &[("mode", Some("755")), ("size", Some("64k"))], RESTRICTED)?;
    place(&top, target).tried(|| "mount /sys/fs/cgroup".to_owned())?;
    for hierarchy in cgroups.legacy.iter().chain(&cgroups.visible) {
        let options: Vec<(&str, Option<&str>)> =
            hierarchy.controllers.iter().map(|controller| (controller.as_str(), None)).collect();
        let mount = new_filesystem("cgroup", &options, attributes)?;
        let path = Path::new("/sys/fs/cgroup").join(hierarchy.controllers.join(","));
        place(&mount, root.ensure(&path, Kind::Directory)?).tried(|| format!("mount {}", path.display()))?;
    }
    set_attributes(&top, MountAttributes { read_only: true, ..MountAttributes::default() }, false)
        .tried(|| "make /sys/fs/cgroup read-only".to_owned())
}

fn place_volume(root: &Root, mount: &Mount, source: OwnedFd) -> Result<(), Failure> {
    let describe = || format!("mount {} at {}", mount.host_path.display(), mount.container_path);
    let kind = match kind_of(&source).tried(describe)? {
        FileType::Directory => Kind::Directory,
        _ => Kind::File,
    };
    let target = root.ensure(Path::new(&mount.container_path), kind)?;
    place(&source, &target).tried(describe)
}

/// Makes `root` the root of this process and of its mount namespace.
fn pivot(root: &Root) -> Result<(), Failure> {
    let pivot = || {
        rustix::process::fchdir(root.descriptor())?;
        // The old root ends up on top of the new one and is taken off again; no directory for it is needed.
        rustix::process::pivot_root(".", ".")?;
        rustix::mount::unmount(".", UnmountFlags::DETACH)?;
        rustix::process::chdir("/")
    };
    pivot().tried(|| "enter the root file system".to_owned())
}

/// Covers the masked paths and makes others read-only.
fn cover(root: &Root) -> Result<(), Failure> {
    for path in READ_ONLY {
        if let Some(target) = find(root, path)? {
            let mount = clone_descriptor(&target).tried(|| format!("protect {path}"))?;
            let attributes = MountAttributes {
                read_only: true,
                no_suid: true,
                no_dev: true,
                no_exec: true,
                propagation: None,
            };
            set_attributes(&mount, attributes, true).tried(|| format!("protect {path}"))?;
            place(&mount, &target).tried(|| format!("protect {path}"))?;
        }
    }
    let null = find(root, "/dev/null")?.ok_or_else(|| Failure::new("/dev/null has gone"))?;
    for path in MASKED {
        let Some(target) = find(root, path)? else { continue };
        let cover = if kind_of(&target).tried(|| format!("look at {path}"))? == FileType::Directory {
            let options = [("mode", Some("555")), ("nr_inodes", Some("1"))];
            new_filesystem("tmpfs", &options, RESTRICTED | MountAttrFlags::MOUNT_ATTR_RDONLY)?
        } else {
            clone_descriptor(&null).tried(|| format!("cover {path}"))?
        };
        place(&cover, &target).tried(|| format!("cover {path}"))?;
    }
    Ok(())
}

fn find(root: &Root, path: &str) -> Result<Option<OwnedFd>, Failure> {
    root.find(Path::new(path)).tried(|| format!("look for {path}"))
}

/// Places the terminal at `/dev/console`.
pub(crate) fn mount_console(slave: &OwnedFd) -> Result<(), Failure> {
    let target = Root::open(Path::new("/"))?.ensure(Path::new("/dev/console"), Kind::File)?;
    let mount = clone_descriptor(slave).tried(|| "open the terminal".to_owned())?;
    place(&mount, &target).tried(|| "mount /dev/console".to_owned())
}

/// The container's `/dev/null`, for a process without input.
pub(crate) fn open_null() -> Result<OwnedFd, Failure> {
    File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .tried(|| "open /dev/null".to_owned())
        .map(OwnedFd::from)
}

/// A handle through which new pseudo terminals of the container can be made, also from outside.
pub(crate) fn open_multiplexer(terminals: &OwnedFd) -> Result<OwnedFd, Failure> {
    rustix::fs::openat(terminals, "ptmx", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .tried(|| "open the pseudo terminals".to_owned())
}

/// A new pseudo terminal: master and slave. Works in and outside of the container, because no path of the container
/// is looked up: the multiplexer is opened through its descriptor, the slave by the kernel itself.
pub(crate) fn new_terminal(multiplexer: &OwnedFd) -> Result<(OwnedFd, OwnedFd), Failure> {
    let open = || {
        let path = format!("/proc/self/fd/{}", multiplexer.as_fd().as_raw_fd());
        let master =
            rustix::fs::openat(CWD, path, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::pty::unlockpt(&master)?;
        use rustix::pty::OpenptFlags;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
        Ok::<_, Errno>((master, slave))
    };
    open().tried(|| "make a pseudo terminal".to_owned())
}
