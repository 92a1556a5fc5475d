//! The runtime against the real kernel. Needs root and `/bin/busybox` (Debian's `busybox-static`).
//!
//! Every test has its own directories, cgroups and pods; a dropped fixture leaves nothing of them.

mod it {
    mod agent;
    mod fixture;
    mod isolation;
    mod limits;
    mod process;
    mod streams;
}
