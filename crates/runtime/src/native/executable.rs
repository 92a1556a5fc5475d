//! The binary that supervisors are made of, in a form no container can write to.
//!
//! A process that is about to become a container runs our binary, and `/proc/<pid>/exe` leads to it (CVE-2019-5736).
//! So supervisors execute it through a private mount that is read-only for good and mounted nowhere: no copy, and its
//! pages are those of the agent. The option that lost, a sealed copy in memory, costs the size of the binary in memory
//! that cannot be reclaimed; it is the way out where such a mount cannot be made.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags};
use sampan_kernel::mount::{MountAttributes, Propagation, set_attributes};

use crate::failure::{Failure, Tried};
use crate::init::mounting::clone_path;

/// A handle of the binary at `path` for `execve` through `/proc/self/fd`.
pub(super) fn open_sealed(path: &Path) -> Result<OwnedFd, Failure> {
    match read_only_mount(path) {
        Ok(mount) => Ok(mount),
        Err(_) => sealed_copy(path).tried(|| format!("copy {} into memory", path.display())),
    }
}

fn read_only_mount(path: &Path) -> io::Result<OwnedFd> {
    let mount = clone_path(path, false)?;
    let attributes = MountAttributes {
        read_only: true,
        no_suid: true,
        no_dev: true,
        no_exec: false,
        propagation: Some(Propagation::Private),
    };
    set_attributes(&mount, attributes, false)?;
    Ok(mount)
}

fn sealed_copy(path: &Path) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = File::from(rustix::fs::memfd_create("sampan-supervisor", flags)?);
    io::copy(&mut File::open(path)?, &mut copy)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn neither_form_can_be_written() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("program");
        std::fs::write(&path, "text").expect("write");
        // Only root can make the mount; both forms exist on the machines where this runs.
        for sealed in [read_only_mount(&path), sealed_copy(&path)].into_iter().flatten() {
            let link = format!("/proc/self/fd/{}", sealed.as_raw_fd());
            assert_eq!(std::fs::read_to_string(&link).expect("readable"), "text");
            assert!(File::options().write(true).open(&link).is_err() || std::fs::write(&link, "x").is_err());
        }
        assert_eq!(std::fs::read_to_string(&path).expect("readable"), "text");
    }
}
