//! A failed sync leaves a note, so that no later process of the same boot believes what it reads.
//!
//! After a sync has failed, the kernel may show what it will never write: the pages count as clean, and the next sync
//! of the file succeeds. Who started again and read them would call durable what is only in memory. So [`NotedFs`]
//! stands between a node and its directory, and leaves a file named for the boot before the caller hears of the
//! failure; it need not be durable, since what it warns of ends with the boot too (decision 0016).
//!
//! Called by `node/ground.rs`, before anything of a directory is used.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::io::{DirEntry, File, FileSystem, LockGuard, Space};
use crate::mutant::{Mutant, planted};

const PREFIX: &str = "sync-failed.";
/// An empty file that becomes the note: a new name in place of an old one takes no space on a full disk.
const SPARE: &str = "sync-note";

/// A file system that notes failed syncs in a node's directory.
pub(crate) struct NotedFs {
    fs: Arc<dyn FileSystem>,
    note: Arc<Note>,
}

/// Where the note is left.
struct Note {
    fs: Arc<dyn FileSystem>,
    spare: PathBuf,
    path: PathBuf,
}

impl Note {
    fn leave(&self, what: &str, error: &io::Error) {
        if planted(Mutant::SyncAgain) {
            return;
        }
        tracing::error!(what, %error, "a sync failed: what this directory holds is uncertain until the machine restarts");
        let left = self.fs.rename(&self.spare, &self.path).or_else(|_| self.fs.create(&self.path).map(drop));
        match left {
            // What it says is for people.
            Ok(()) => {
                _ = self
                    .fs
                    .open(&self.path)
                    .and_then(|f| f.write_at(format!("{what}: {error}\n").as_bytes(), 0))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                tracing::error!(note = %self.path.display(), %error, "that could not be noted for the next start");
            }
        }
    }
}

impl NotedFs {
    /// The file system of the node in `dir`, on a machine in its boot `boot`.
    pub(crate) fn new(fs: Arc<dyn FileSystem>, dir: &Path, boot: u128) -> Self {
        let (spare, path) = (dir.join(SPARE), dir.join(format!("{PREFIX}{boot:032x}")));
        let note = Arc::new(Note { fs: fs.clone(), spare, path });
        Self { fs, note }
    }

    /// The note that an earlier process of this boot has left, and what it says. Those of other boots are removed:
    /// what their kernels had not written is gone, and what is read now is on the disk.
    pub(crate) fn found(&self) -> io::Result<Option<(PathBuf, String)>> {
        let path = &self.note.path;
        let dir = path.parent().unwrap_or(Path::new("/"));
        for entry in self.fs.list(dir)? {
            let other = dir.join(&entry.name);
            if entry.name.starts_with(PREFIX) && other != *path {
                self.fs.remove(&other)?;
            }
        }
        if !self.fs.exists(path)? {
            return match self.fs.create(&self.note.spare) {
                Err(e) if ![io::ErrorKind::AlreadyExists, io::ErrorKind::StorageFull].contains(&e.kind()) => {
                    Err(e)
                }
                Ok(_) | Err(_) => Ok(None),
            };
        }
        let file = self.fs.open(path)?;
        let mut text = vec![0; file.size()?.min(1024) as usize];
        file.read_at(&mut text, 0)?;
        Ok(Some((path.clone(), String::from_utf8_lossy(&text).trim_end().to_owned())))
    }

    fn noted(&self, file: Arc<dyn File>, path: &Path) -> Arc<dyn File> {
        Arc::new(NotedFile { file, path: path.to_owned(), note: self.note.clone() })
    }
}

impl FileSystem for NotedFs {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.noted(self.fs.open(path)?, path))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(self.noted(self.fs.create(path)?, path))
    }

    fn create_dir(&self, path: &Path) -> io::Result<bool> {
        self.fs.create_dir(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fs.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.fs.remove(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.fs.list(dir)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.fs.exists(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.fs.sync_dir(dir).inspect_err(|error| self.note.leave(&dir.display().to_string(), error))
    }

    fn space(&self, dir: &Path) -> io::Result<Space> {
        self.fs.space(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<LockGuard> {
        self.fs.lock(path)
    }
}

struct NotedFile {
    file: Arc<dyn File>,
    path: PathBuf,
    note: Arc<Note>,
}

impl File for NotedFile {
    fn id(&self) -> io::Result<(u64, u64)> {
        self.file.id()
    }

    fn size(&self) -> io::Result<u64> {
        self.file.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn try_read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.try_read_at(buf, offset)
    }

    fn write_at(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_at(data, offset)
    }

    fn set_size(&self, size: u64) -> io::Result<()> {
        self.file.set_size(size)
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch_hole(offset, len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data().inspect_err(|error| self.note.leave(&self.path.display().to_string(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{SimFs, Verb};
    use super::*;

    const DIR: &str = "/";

    fn on(disk: &SimFs, boot: u128) -> NotedFs {
        NotedFs::new(Arc::new(disk.clone()), Path::new(DIR), boot)
    }

    #[test]
    fn a_failed_sync_is_known_to_every_process_of_the_boot_and_to_no_other() {
        let disk = SimFs::new();
        let fs = on(&disk, 1);
        let file = fs.create(Path::new("/data")).expect("created");
        file.write_at(b"one", 0).expect("written");
        file.sync_data().expect("synced");
        assert_eq!(fs.found().expect("readable"), None);
        disk.set_full(true);
        disk.fail(Verb::SyncData, 1, 28);
        file.sync_data().expect_err("fails");
        disk.set_full(false);
        let (path, why) = on(&disk, 1).found().expect("readable").expect("noted");
        assert!(path.ends_with(format!("{PREFIX}{:032x}", 1)) && why.is_empty(), "no space for {why}");
        // Another failure adds nothing, and a process that is killed takes nothing away.
        disk.fail(Verb::SyncDir, 1, 5);
        fs.sync_dir(Path::new(DIR)).expect_err("fails");
        disk.process_kill();
        assert_eq!(on(&disk, 1).found().expect("readable"), Some((path.clone(), why)));
        // The next boot forgets it.
        fs.sync_dir(Path::new(DIR)).expect("synced");
        assert_eq!(on(&disk, 2).found().expect("readable"), None);
        assert!(!disk.exists(&path).expect("readable"));
    }
}
