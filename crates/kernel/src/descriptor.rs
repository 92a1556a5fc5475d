//! Descriptors of a process that is about to execute a foreign program.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Makes every descriptor from 3 on close when a program is executed, so that nothing of ours passes into it.
///
/// # Errors
/// The kernel's (`close_range` with `CLOSE_RANGE_CLOEXEC` needs Linux 5.11).
pub fn close_all_on_exec() -> io::Result<()> {
    // SAFETY: only flags of descriptors change; no owner loses its descriptor.
    crate::check(unsafe {
        libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    })?;
    Ok(())
}

/// Makes `stdin`, `stdout` and `stderr` the descriptors 0, 1 and 2.
///
/// # Errors
/// The kernel's.
pub fn set_standard_streams(stdin: impl AsFd, stdout: impl AsFd, stderr: impl AsFd) -> io::Result<()> {
    let sources = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
    // A source that is itself one of 0, 1, 2 would be overwritten before it is used, so all move above 2 first.
    let mut high = Vec::with_capacity(3);
    for source in sources {
        high.push(rustix::io::fcntl_dupfd_cloexec(source, 3)?);
    }
    for (number, source) in high.iter().enumerate() {
        // SAFETY: replacing 0, 1 and 2 is what standard streams are for; std never assumes what they refer to.
        crate::check(unsafe { libc::dup2(source.as_raw_fd(), number as libc::c_int) }.into())?;
    }
    Ok(())
}
