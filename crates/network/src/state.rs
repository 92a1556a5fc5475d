//! Small files of the state directory: read whole, replaced whole.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::NetworkError;

/// Reads the file, or gives `None` when it is not there.
///
/// # Errors
/// When it is there and cannot be read or understood.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, NetworkError> {
    let failed = |action| move |err| NetworkError::State { action, path: path.to_owned(), err };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(failed("read")(err)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|err| failed("parse")(err.into()))
}

/// Replaces the file by renaming a new one over it.
///
/// It is not forced to the disk: what it describes (links, addresses) lives in the kernel and is gone after a power cut,
/// while after a crash of this process the kernel still has the newest contents.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), NetworkError> {
    let failed = |err| NetworkError::State { action: "write", path: path.to_owned(), err };
    let bytes = serde_json::to_vec(value).map_err(|err| failed(err.into()))?;
    let new = path.with_extension("new");
    fs::write(&new, bytes).and_then(|()| fs::rename(&new, path)).map_err(failed)
}

/// Removes the file if it is there.
pub(crate) fn remove(path: &Path) -> Result<(), NetworkError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(NetworkError::State { action: "remove", path: path.to_owned(), err })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &vec![1, 2]).unwrap();
        write(&path, &vec![3]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn damage_is_an_error_and_not_an_empty_state() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("numbers.json");
        fs::write(&path, "[1,").unwrap();
        assert!(read::<Vec<u32>>(&path).is_err());
    }
}
