//! A directory whose files change all at once.
//!
//! The layout is the kubelet's (`pkg/volume/util/atomic_writer.go`), because programs watch for it:
//!
//! ```text
//!   ..2026_11_23_21_00_00.000000042/   the files
//!   ..data -> ..2026_11_23_21_00_00.000000042      swapped by rename
//!   config.yaml -> ..data/config.yaml              one link per first path element
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path};

use rustix::fs::{Gid, Uid};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// One file to be seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    pub(super) bytes: Vec<u8>,
    pub(super) mode: u32,
    pub(super) owner: Option<u32>,
}

/// All files, by path relative to the directory.
pub(super) type Payload = BTreeMap<String, File>;

/// Whether a path stays inside and does not collide with the layout's own names.
pub(super) fn is_valid_path(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with("..")
        && Path::new(path).components().all(|part| matches!(part, Component::Normal(_)))
}

/// Makes the directory show exactly `payload`. Returns whether anything changed.
pub(super) fn write(directory: &Path, payload: &Payload, group: Option<u32>) -> io::Result<bool> {
    std::fs::create_dir_all(directory)?;
    let current = std::fs::read_link(directory.join(DATA)).ok();
    if let Some(current) = &current
        && shows(&directory.join(current), payload)
    {
        return Ok(false);
    }
    let fresh = fresh_name(directory)?;
    write_files(&directory.join(&fresh), payload, group)?;
    let new_link = directory.join(DATA_NEW);
    match std::fs::remove_file(&new_link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    symlink(&fresh, &new_link)?;
    std::fs::rename(&new_link, directory.join(DATA))?;
    link_entries(directory, payload)?;
    sweep(directory, &fresh)?;
    Ok(true)
}

/// A name that sorts by time and was never used here.
fn fresh_name(directory: &Path) -> io::Result<String> {
    let now = jiff::Timestamp::now();
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S").to_string();
    for number in u64::from(now.subsec_nanosecond().unsigned_abs()).. {
        let name = format!("{stamp}.{number:09}");
        match std::fs::create_dir(directory.join(&name)) {
            Ok(()) => return Ok(name),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

fn shows(directory: &Path, payload: &Payload) -> bool {
    let mut found = BTreeSet::new();
    if list_files(directory, "", &mut found).is_err() || found.len() != payload.len() {
        return false;
    }
    payload.iter().all(|(path, file)| {
        found.contains(path) && std::fs::read(directory.join(path)).is_ok_and(|bytes| bytes == file.bytes)
    })
}

fn list_files(directory: &Path, prefix: &str, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.insert(name);
        }
    }
    Ok(())
}

fn write_files(directory: &Path, payload: &Payload, group: Option<u32>) -> io::Result<()> {
    own_directory(directory, group)?;
    for (path, file) in payload {
        let target = directory.join(path);
        let mut parent = directory.to_path_buf();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            parent.push(part);
            if !parent.is_dir() {
                std::fs::create_dir(&parent)?;
                own_directory(&parent, group)?;
            }
        }
        std::fs::write(&target, &file.bytes)?;
        // A group that owns the volume may read it.
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        if file.owner.is_some() || group.is_some() {
            rustix::fs::chown(&target, file.owner.map(Uid::from_raw), group.map(Gid::from_raw))?;
        }
        std::fs::set_permissions(&target, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn own_directory(directory: &Path, group: Option<u32>) -> io::Result<()> {
    if let Some(group) = group {
        rustix::fs::chown(directory, None, Some(Gid::from_raw(group)))?;
    }
    let mode = if group.is_some() { 0o2755 } else { 0o755 };
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode))
}

/// Links for new first path elements; links of those that are no longer there go.
fn link_entries(directory: &Path, payload: &Payload) -> io::Result<()> {
    let wanted: BTreeSet<&str> = payload.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &wanted {
        let link = directory.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link)?;
        }
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !wanted.contains(name.as_ref()) {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Directories of earlier versions, also those a crash left behind.
fn sweep(directory: &Path, keep: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("..") && name != DATA && name != keep && entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| File { bytes: text.as_bytes().to_vec(), mode: 0o640, owner: None };
        files.iter().map(|(path, text)| (path.to_string(), file(text))).collect()
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(directory)
            .expect("read_dir")
            .map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with(".."))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn files_change_at_once() {
        let directory = tempfile::tempdir().expect("tempdir");
        let path = directory.path();
        assert!(write(path, &payload(&[("a", "1"), ("d/b", "2")]), None).expect("write"));
        assert_eq!(std::fs::read_to_string(path.join("d/b")).expect("read"), "2");
        assert_eq!(names(path), ["a", "d"]);
        let mode = std::fs::metadata(path.join("a")).expect("metadata").permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        // The same again touches nothing.
        let data = std::fs::read_link(path.join(DATA)).expect("link");
        assert!(!write(path, &payload(&[("a", "1"), ("d/b", "2")]), None).expect("write"));
        assert_eq!(std::fs::read_link(path.join(DATA)).expect("link"), data);
        assert!(write(path, &payload(&[("a", "3"), ("c", "4")]), None).expect("write"));
        assert_eq!(names(path), ["a", "c"]);
        assert_eq!(std::fs::read_to_string(path.join("a")).expect("read"), "3");
        assert!(!path.join(data).exists());
    }

    #[test]
    fn paths_stay_inside() {
        for (path, fine) in [
            ("a", true),
            ("a/b", true),
            ("..a", false),
            ("../a", false),
            ("a/../b", false),
            ("/a", false),
            ("", false),
        ] {
            assert_eq!(is_valid_path(path), fine, "{path}");
        }
    }
}
