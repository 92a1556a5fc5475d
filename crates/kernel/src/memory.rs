//! Memory that the process no longer uses.

/// Gives free memory inside the allocator's areas back to the system (`malloc_trim`(3)).
///
/// The allocator returns only what is free at the end of an area. After a burst much is free between what is still used, and
/// would count as the process's for ever.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
