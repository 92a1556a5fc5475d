//! Making a process, with new namespaces and directly in a cgroup, by `clone3`.
//!
//! A copy of a process with several threads may find locks held by threads that do not exist in the copy (an
//! allocator lock is enough for a deadlock), and copying the page tables of a large process is slow. So the only door
//! demands the proof that the caller has one thread.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Proof that this process has exactly one thread.
///
/// The proof stays true only as long as the holder starts no thread; the supervisor, its only user, never does. It is
/// neither `Send` nor `Clone`.
#[derive(Debug)]
pub struct SingleThreaded(std::marker::PhantomData<*const ()>);

impl SingleThreaded {
    /// Counts the threads in `/proc/self/task`.
    ///
    /// # Errors
    /// When there is more than one, or `/proc` cannot be read.
    pub fn prove() -> io::Result<Self> {
        let threads = std::fs::read_dir("/proc/self/task")?.take(2).count();
        if threads != 1 {
            return Err(io::Error::other("the process has more than one thread"));
        }
        Ok(Self(std::marker::PhantomData))
    }
}

/// Namespaces a new process gets (`CLONE_NEW*`).
#[derive(Clone, Copy, Debug, Default)]
pub struct NewNamespaces {
    /// Mount namespace, a copy of the parent's.
    pub mount: bool,
    /// Process namespace; the new process is its first.
    pub pid: bool,
}

/// Which of the two processes returned from [`clone_process`].
#[derive(Debug)]
pub enum Cloned {
    /// The new process.
    Child,
    /// The caller, holding what proves the identity of the child.
    Parent {
        /// Process id in the caller's process namespace.
        pid: i32,
        /// Refers to the child whatever happens to its process id.
        pidfd: OwnedFd,
    },
}

/// `libc`'s constant of this name is too narrow for its value.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Copies the calling process, like `fork`.
///
/// `cgroup` is the open directory of a cgroup v2 the child starts in (`CLONE_INTO_CGROUP`, Linux 5.7).
///
/// # Errors
/// The kernel's; nothing was made then.
pub fn clone_process(
    _proof: &SingleThreaded,
    namespaces: NewNamespaces,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<Cloned> {
    let mut pidfd: libc::c_int = -1;
    let mut flags = libc::CLONE_PIDFD as u64;
    if namespaces.mount {
        flags |= libc::CLONE_NEWNS as u64;
    }
    if namespaces.pid {
        flags |= libc::CLONE_NEWPID as u64;
    }
    // SAFETY: `clone_args` consists of integers; all zeroes is a valid value.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    if let Some(cgroup) = cgroup {
        flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    arguments.flags = flags;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM and without a stack the child continues on a copy of this stack, exactly like fork.
    // `_proof` shows that no other thread can hold a lock that the copy would wait for. `pidfd` outlives the call.
    let pid = crate::check(unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>())
    })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel stored a new descriptor (close-on-exec) that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: pid as i32, pidfd })
}

/// Leaves the namespaces named by `flags` for new ones of its own.
///
/// # Errors
/// The kernel's.
pub fn unshare(_proof: &SingleThreaded, flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: the danger is in threads with different descriptor tables; there is one thread.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags) }?)
}

/// Gives the process a new, empty session keyring, so that it does not share the node's.
///
/// # Errors
/// The kernel's, for instance ENOSYS on a kernel without keys.
pub fn join_new_session_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let unnamed: *const libc::c_char = std::ptr::null();
    // SAFETY: a null name asks for a new anonymous keyring; no memory is passed.
    crate::check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, unnamed) })?;
    Ok(())
}
