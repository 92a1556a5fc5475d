//! `hostPath`: a file or directory of the node, of the type the pod expects.

use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use super::{Made, Order};
use crate::error::NodeError;

pub(super) async fn set_up(order: Order<'_>) -> Made {
    let Some(source) = &order.volume.host_path else { return Ok(None) };
    check(Path::new(&source.path), source.type_.as_deref().unwrap_or_default())?;
    link(&order.path, Path::new(&source.path))?;
    Ok(None)
}

/// Remembers in the pod's directory where a volume is; containers get the target, not the link.
pub(super) fn link(link: &Path, target: &Path) -> Result<(), NodeError> {
    match std::fs::read_link(link) {
        Ok(known) if known == target => return Ok(()),
        Ok(_) => std::fs::remove_file(link).map_err(NodeError::file("remove", link))?,
        Err(_) => {}
    }
    std::os::unix::fs::symlink(target, link).map_err(NodeError::file("create", link))
}

/// Makes or checks what is at the path (`pkg/volume/hostpath`).
fn check(path: &Path, type_: &str) -> Result<(), NodeError> {
    match type_ {
        "DirectoryOrCreate" if !path.exists() => {
            std::fs::create_dir_all(path).map_err(NodeError::file("create", path))?;
            return set_mode(path, 0o755);
        }
        "FileOrCreate" if !path.exists() => {
            std::fs::write(path, b"").map_err(NodeError::file("create", path))?;
            return set_mode(path, 0o644);
        }
        "" => return create_missing(path),
        _ => {}
    }
    let wrong = |what: &str| {
        Err(NodeError::Unusable(format!("hostPath type check failed: {} is not a {what}", path.display())))
    };
    let facts = match std::fs::metadata(path) {
        Ok(facts) => facts.file_type(),
        Err(_) => {
            return wrong(match type_ {
                "Directory" | "DirectoryOrCreate" => "directory",
                "File" | "FileOrCreate" => "file",
                "Socket" => "socket file",
                "CharDevice" => "character device",
                _ => "block device",
            });
        }
    };
    match type_ {
        "Directory" | "DirectoryOrCreate" if !facts.is_dir() => wrong("directory"),
        "File" | "FileOrCreate" if !facts.is_file() => wrong("file"),
        "Socket" if !facts.is_socket() => wrong("socket file"),
        "CharDevice" if !facts.is_char_device() => wrong("character device"),
        "BlockDevice" if !facts.is_block_device() => wrong("block device"),
        _ => Ok(()),
    }
}

/// Without a type nothing is checked; runtimes make a missing directory, so that pods rely on it.
fn create_missing(path: &Path) -> Result<(), NodeError> {
    if std::fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(NodeError::file("create", path))
}

fn set_mode(path: &Path, mode: u32) -> Result<(), NodeError> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(NodeError::file("set the mode of", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked() {
        let directory = tempfile::tempdir().expect("tempdir");
        let file = directory.path().join("file");
        std::fs::write(&file, b"").expect("write");
        let rows = [
            (directory.path().to_path_buf(), "Directory", true),
            (directory.path().to_path_buf(), "File", false),
            (file.clone(), "File", true),
            (file.clone(), "Directory", false),
            (file.clone(), "Socket", false),
            (directory.path().join("missing"), "Directory", false),
            (directory.path().join("new"), "DirectoryOrCreate", true),
            (directory.path().join("new-file"), "FileOrCreate", true),
            (file, "", true),
        ];
        for (path, type_, fine) in rows {
            assert_eq!(check(&path, type_).is_ok(), fine, "{} as {type_}", path.display());
        }
    }
}
