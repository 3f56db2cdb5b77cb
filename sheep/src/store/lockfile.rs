//! A node's directory belongs to one process.

use std::io;
use std::path::Path;

use super::error::Error;
use super::io::{FileSystem, LockGuard};

/// Holds a directory until dropped, or until the process ends.
pub struct DirLock {
    _guard: LockGuard,
}

/// Takes `dir` for this process, through the file `lock` in it. The file stays when the lock goes.
pub fn lock(fs: &dyn FileSystem, dir: &Path) -> Result<DirLock, Error> {
    let path = dir.join("lock");
    let guard = fs.lock(&path).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Error::Locked { path: path.clone(), holder: holder(fs, &path) },
        _ => Error::io(&path, error),
    })?;
    let write = || {
        let file = fs.open(&path)?;
        file.set_size(0)?;
        file.write_at(format!("{}\n", std::process::id()).as_bytes(), 0)
    };
    write().map_err(|e| Error::io(&path, e))?;
    Ok(DirLock { _guard: guard })
}

/// Who wrote the lock file. Only for a message: it may be empty, or hold anything.
fn holder(fs: &dyn FileSystem, path: &Path) -> String {
    let read = || {
        let file = fs.open(path).ok()?;
        let mut bytes = vec![0; file.size().ok()?.min(20) as usize];
        file.read_at(&mut bytes, 0).ok()?;
        String::from_utf8(bytes).ok()?.trim().parse::<u32>().ok()
    };
    read().map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

#[cfg(test)]
mod tests {
    use super::super::RealFs;
    use super::*;

    #[test]
    fn a_directory_is_held_by_one_and_the_error_names_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let first = lock(&RealFs, dir.path()).expect("free");
        let error = lock(&RealFs, dir.path()).map(drop).expect_err("held").to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        drop(first);
        lock(&RealFs, dir.path()).expect("free again");
    }
}
