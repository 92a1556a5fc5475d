//! Loading system call filters.

use std::io;

/// One classic BPF instruction (`struct sock_filter`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Jump when true.
    pub jump_true: u8,
    /// Jump when false.
    pub jump_false: u8,
    /// Operand.
    pub operand: u32,
}

/// Adds a filter to the calling thread, for good. Needs CAP_SYS_ADMIN or `no_new_privs`.
///
/// # Errors
/// EINVAL when the kernel's verifier refuses the program, EACCES without the right to load filters.
pub fn load(program: &[Instruction]) -> io::Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| io::Error::other("seccomp filter is too long"))?;
    // The kernel only reads through the pointer, although the C structure has no `const`.
    let argument = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut().cast() };
    // SAFETY: `Instruction` has the layout of `sock_filter`; the program outlives the call and its length is right.
    crate::check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const argument)
    })?;
    Ok(())
}
