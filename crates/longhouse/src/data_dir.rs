//! The data directory: made private at first use, and held by one process at a time.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    #[error(
        "cannot create the data directory {path}: {source}\n  create it, owned by the user that runs longhouse, or set `data_dir`"
    )]
    Create { path: PathBuf, source: io::Error },
    #[error("cannot lock {path}: {source}\n  the data directory must belong to the user that runs longhouse")]
    Lock { path: PathBuf, source: io::Error },
    #[error("another longhouse already uses {path}\n  stop it first, or set another `data_dir`")]
    InUse { path: PathBuf },
}

/// The directory, and the lock on it for as long as this value lives.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    /// The kernel releases the lock when the file closes, however the process ends.
    _lock: File,
}

impl DataDir {
    /// Creates the directory if needed and locks it.
    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let create = |source| DataDirError::Create {
            path: path.to_owned(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(create)?;
        let path = path.canonicalize().map_err(create)?;
        let lock = |source| DataDirError::Lock {
            path: path.join("longhouse.lock"),
            source,
        };
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("longhouse.lock"))
            .map_err(lock)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { path, _lock: file }),
            Err(TryLockError::WouldBlock) => Err(DataDirError::InUse { path }),
            Err(TryLockError::Error(source)) => Err(lock(source)),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_process_at_a_time_and_private() {
        let parent = tempfile::tempdir().expect("temporary directory");
        let path = parent.path().join("a/b");
        let first = DataDir::open(&path).expect("free");
        assert_eq!(path.metadata().expect("made").permissions().mode() & 0o777, 0o700);
        assert!(matches!(DataDir::open(&path), Err(DataDirError::InUse { .. })));
        drop(first);
        DataDir::open(&path).expect("free again");
    }
}
