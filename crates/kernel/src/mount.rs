//! Attributes of mounts through descriptors (`mount_setattr`, Linux 5.12), which `rustix` does not have yet.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// What changes on a mount. `None` leaves an attribute alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct MountAttributes {
    /// Writes fail with EROFS.
    pub read_only: bool,
    /// Set-user-id bits and file capabilities are ignored.
    pub no_suid: bool,
    /// Device nodes cannot be opened.
    pub no_dev: bool,
    /// Programs cannot be executed.
    pub no_exec: bool,
    /// How mount events pass.
    pub propagation: Option<Propagation>,
}

/// Propagation type of a mount (`mount_namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// No event crosses.
    Private,
    /// Events come in and do not go out.
    Slave,
    /// Events pass both ways.
    Shared,
}

/// Adds the attributes to the mount `mount` refers to, and to the mounts below it when `recursive`.
///
/// # Errors
/// The kernel's.
pub fn set_attributes(mount: impl AsFd, attributes: MountAttributes, recursive: bool) -> io::Result<()> {
    let chosen = [
        (attributes.read_only, libc::MOUNT_ATTR_RDONLY),
        (attributes.no_suid, libc::MOUNT_ATTR_NOSUID),
        (attributes.no_dev, libc::MOUNT_ATTR_NODEV),
        (attributes.no_exec, libc::MOUNT_ATTR_NOEXEC),
    ];
    let set = chosen.iter().filter(|(on, _)| *on).fold(0, |bits, (_, bit)| bits | bit);
    let propagation = match attributes.propagation {
        None => 0,
        Some(Propagation::Private) => libc::MS_PRIVATE,
        Some(Propagation::Slave) => libc::MS_SLAVE,
        Some(Propagation::Shared) => libc::MS_SHARED,
    };
    let argument = libc::mount_attr { attr_set: set, attr_clr: 0, propagation, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string and the attributes outlive the call.
    crate::check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const argument,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}
