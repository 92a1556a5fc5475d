//! Executing a program in place of the calling process.

use std::ffi::CString;
use std::io;

/// Strings as `execve` wants them, built once and used for every candidate on the search path.
#[derive(Debug)]
pub struct StringArray {
    /// Owns the bytes `pointers` point to.
    _strings: Vec<CString>,
    pointers: Vec<*const libc::c_char>,
}

impl StringArray {
    /// Takes the strings.
    pub fn new(strings: Vec<CString>) -> Self {
        // The bytes of a `CString` are on the heap, so moving the vector does not move them.
        let pointers = strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect();
        Self { _strings: strings, pointers }
    }
}

/// Replaces the program of this process. Returns only when that failed.
pub fn execve(path: &CString, arguments: &StringArray, environment: &StringArray) -> io::Error {
    // SAFETY: both arrays end with a null pointer and point to strings that live as long as the arrays do.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Ends this process at once, without running destructors or flushing buffers copied from a parent.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}
