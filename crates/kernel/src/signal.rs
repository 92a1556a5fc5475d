//! Signal dispositions of a process about to execute a foreign program.

use std::io;

/// Unblocks all signals and gives them their default meaning, except the two that cannot be changed.
///
/// Ignored signals and the mask pass through `execve`, and Rust ignores SIGPIPE: without this every `yes | head` in a
/// container would see a write error instead of ending.
///
/// # Errors
/// The kernel's.
pub fn reset_all() -> io::Result<()> {
    // SAFETY: both are plain data; all zeroes is a valid value (`SIG_DFL`, no flags, empty mask).
    let (action, mask): (libc::sigaction, libc::sigset_t) =
        unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
    for number in 1..=64 {
        // SAFETY: the default action runs no code of ours. Numbers the C library reserves are refused, harmlessly.
        unsafe { libc::sigaction(number, &raw const action, std::ptr::null_mut()) };
    }
    // SAFETY: an empty mask unblocks everything.
    let result = unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const mask, std::ptr::null_mut()) };
    crate::check(result.into())?;
    Ok(())
}

/// Lets the kernel reap children of this process without leaving zombies (SIGCHLD ignored).
pub fn reap_children_automatically() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// Gives SIGCHLD its default meaning back, so that children can be waited for.
pub fn keep_children_waitable() {
    // SAFETY: the default action runs no code of ours.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Number of a signal written as `SIGTERM`, `TERM` or `15`, also `SIGRTMIN+3`.
pub fn parse(name: &str) -> Option<i32> {
    if let Ok(number) = name.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == short) {
        return Some(*number);
    }
    // The C library keeps the first two real-time signals for itself: 34 is what programs call SIGRTMIN.
    let offset = match short.strip_prefix("RTMIN")? {
        "" => 0,
        rest => rest.strip_prefix('+')?.parse::<i32>().ok()?,
    };
    (0..=30).contains(&offset).then_some(34 + offset)
}

/// `signal(7)`, the names programs use in images.
const NAMES: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

/// Sends a signal by number to the process `pidfd` refers to. Also sends real-time signals, which `rustix` refuses.
///
/// # Errors
/// ESRCH when the process has ended.
pub fn send(pidfd: impl std::os::fd::AsFd, number: i32) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    let none: *const libc::siginfo_t = std::ptr::null();
    // SAFETY: a null `siginfo` asks the kernel to fill it in like kill(2).
    crate::check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_fd().as_raw_fd(), number, none, 0)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn signals_are_found_by_name_and_number() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMIN+99", None),
            ("0", None),
            ("65", None),
            ("SIGNONE", None),
            ("", None),
        ] {
            assert_eq!(parse(text), number, "{text}");
        }
    }
}
