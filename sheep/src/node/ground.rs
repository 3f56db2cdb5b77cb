//! A node's directory before anything runs: whose it is, which start this is, and setting it aside.
//!
//! Called by [`super::Node`] and [`super::core`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::NodeError;
use crate::identity::{Identity, IdentityFile};
use crate::machine::wall_ms;
use crate::store::{FileSystem, NotedFs, lockfile};

/// What the configuration and the directory say, before anything runs.
pub(crate) struct Ground {
    pub(super) fs: Arc<dyn FileSystem>,
    pub(super) dir: PathBuf,
    pub(super) identity: IdentityFile,
    pub(super) lock: lockfile::DirLock,
    /// The machine's boot.
    pub(super) boot: u128,
}

/// Takes `dir`, an existing directory, for this start of its node. Blocks.
pub(crate) fn prepare(
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    boot: u128,
    local: bool,
) -> Result<Ground, NodeError> {
    let io = |source| NodeError::Dir { path: dir.clone(), source };
    let lock = lockfile::lock(&*fs, &dir)?;
    let noted = NotedFs::new(fs, &dir, boot);
    if let Some((note, why)) = noted.found().map_err(io)? {
        return Err(NodeError::Misused {
            problem: format!(
                "a sync failed since this machine was started ({why}), so what can be read here may not be on the \
                 disk; restart the machine, or replace the disk and start with an empty directory: the node then \
                 joins anew and the ring copies its data back. To use it as it is, remove {}",
                note.display()
            ),
            dir,
        });
    }
    let fs: Arc<dyn FileSystem> = Arc::new(noted);
    let mut identity = IdentityFile::open(fs.clone(), &dir)?;
    if identity.identity.start == 0 {
        // A directory with data but no identity is not ours to use.
        for name in ["objects", "log.redb"] {
            if fs.exists(&dir.join(name)).map_err(io)? {
                return Err(NodeError::Misused {
                    problem: format!(
                        "it holds {name:?} but no identity; restore the file \"identity\", or start with an \
                         empty directory"
                    ),
                    dir,
                });
            }
        }
    }
    if local && identity.identity.cluster.is_some() && !identity.identity.local {
        return Err(NodeError::Misused {
            problem: "it belongs to a ring; start it with --cluster-driver sdcluster".to_owned(),
            dir,
        });
    }
    // It was there, and durable, before the directory knew its ring.
    if identity.identity.cluster.is_some() && is_missing_or_empty(&*fs, &dir.join("log.redb")).map_err(io)? {
        return Err(NodeError::Misused {
            problem: "it belongs to a ring, but \"log.redb\", which knows its VDIs, is missing or empty; restore \
                      it, or start with an empty directory: the node then joins anew and the ring copies its data \
                      back"
                .to_owned(),
            dir,
        });
    }
    identity.update(Identity::begin)?;
    Ok(Ground { fs, dir, identity, lock, boot })
}

fn is_missing_or_empty(fs: &dyn FileSystem, path: &Path) -> std::io::Result<bool> {
    Ok(!fs.exists(path)? || fs.open(path)?.size()? == 0)
}

/// Puts a directory's data aside and makes it that of a new, empty node (rule 3).
pub(super) fn set_aside(ground: &mut Ground) -> Result<(), NodeError> {
    let aside = ground.dir.join(format!("set-aside-{}", wall_ms()));
    let (fs, io) = (&*ground.fs, |source| NodeError::Dir { path: aside.clone(), source });
    fs.create_dir(&aside).map_err(io)?;
    for entry in fs.list(&ground.dir).map_err(io)? {
        let name = &entry.name;
        let ours = name == "objects"
            || name == "requests"
            || name.starts_with("intents.")
            || name.starts_with("seals.")
            || name.starts_with("log.");
        if ours {
            fs.rename(&ground.dir.join(name), &aside.join(name)).map_err(io)?;
        }
    }
    tracing::warn!(
        aside = %aside.display(),
        "the directory is older than what the ring has seen of it (a copy, or restored): its data is set \
         aside, and the node joins as a new, empty one"
    );
    ground.identity.forget()?;
    ground.identity.update(Identity::begin)?;
    Ok(())
}
