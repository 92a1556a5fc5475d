//! The one image all tests use, made when they run: a static busybox and nothing else.

use std::path::{Path, PathBuf};

use crate::command::{command, run};

/// The reference under which it is imported.
pub const IMAGE: &str = "busybox:1";
/// Environment variable that names the static busybox.
const BUSYBOX: &str = "SAMPAN_BUSYBOX";

/// The static busybox of this machine.
#[must_use]
pub fn busybox() -> PathBuf {
    std::env::var_os(BUSYBOX).map_or_else(|| "/bin/busybox".into(), PathBuf::from)
}

/// Writes the root file system into `directory` and gives the archive.
///
/// # Panics
///
/// When there is no static busybox, or the directory cannot be written.
#[must_use]
pub fn make(directory: &Path) -> PathBuf {
    let busybox = busybox();
    let root = directory.join("busybox");
    for part in ["bin", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(part)).expect("a directory can be made");
    }
    let own = root.join("bin/busybox");
    std::fs::copy(&busybox, &own).unwrap_or_else(|e| panic!("no {} ({e}); set {BUSYBOX}", busybox.display()));
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n",
    )
    .and_then(|()| std::fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n"))
    .expect("a file can be written");
    // Not the copy: a process that another test is just starting may still hold it open for writing ("text file busy").
    for applet in run(command(&busybox, &["--list"]), "").ok().lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("a link can be made");
    }
    let archive = directory.join("busybox.tar");
    let (from, to) = (root.display().to_string(), archive.display().to_string());
    run(command("tar", &["--create", "--file", &to, "--directory", &from, "."]), "").ok();
    archive
}
