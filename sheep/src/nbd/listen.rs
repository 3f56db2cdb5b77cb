//! Binding the sockets clients come to, and cleaning up the path of a unix socket.

use std::fs::Metadata;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tracing::{debug, warn};

use super::server::StartError;

/// When a silent TCP peer is asked whether it is alive, and how often until it is given up: an idle client
/// whose machine is gone must not hold its export for ever.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

pub(super) async fn bind_tcp(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Bind { address, source })
}

/// Makes an accepted connection answer at once and notice a dead peer.
pub(super) fn prepare(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// A socket file that this process made.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// A file that another process put there since is not ours to remove.
    identity: Identity,
}

/// Tells one file from another at the same path: device, inode, and, as inodes are reused, the time it was
/// made.
type Identity = (u64, u64, i64, i64);

fn identity(metadata: &Metadata) -> Identity {
    (metadata.dev(), metadata.ino(), metadata.mtime(), metadata.mtime_nsec())
}

/// Binds a unix socket. What a dead server left at the path is removed; what anybody still answers on, or
/// what is not a socket, is not.
pub(super) async fn bind_unix(path: &Path) -> Result<(UnixListener, SocketFile), StartError> {
    let failed = |source| StartError::Socket { path: path.to_owned(), source };
    match tokio::fs::symlink_metadata(path).await {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(StartError::NotASocket(path.to_owned()));
        }
        Ok(_) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                debug!(path = %path.display(), "removing a stale socket");
                tokio::fs::remove_file(path).await.map_err(failed)?;
            }
            // Anything else, a full backlog say, means that somebody may be there.
            Ok(_) | Err(_) => return Err(StartError::InUse(path.to_owned())),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let metadata = tokio::fs::symlink_metadata(path).await.map_err(failed)?;
    Ok((listener, SocketFile { path: path.to_owned(), identity: identity(&metadata) }))
}

impl SocketFile {
    /// Removes the file if it is still the one that was made.
    pub(super) async fn remove(self) {
        let removed = match tokio::fs::symlink_metadata(&self.path).await {
            Ok(metadata) if identity(&metadata) == self.identity => tokio::fs::remove_file(&self.path).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = removed {
            warn!(path = %self.path.display(), %error, "the NBD socket's file was not removed");
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_anything_else_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nbd.sock");
        let (listener, file) = bind_unix(&path).await.unwrap();
        assert!(matches!(bind_unix(&path).await, Err(StartError::InUse(_))));
        drop(listener);
        // Keeps the inode from being reused, which within one clock tick would make the two files one.
        std::fs::hard_link(&path, dir.path().join("kept")).unwrap();
        let (_listener, newer) = bind_unix(&path).await.unwrap();
        file.remove().await;
        assert!(path.exists(), "an older server does not remove a newer one's socket");
        newer.remove().await;
        assert!(!path.exists());

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(bind_unix(&path).await, Err(StartError::NotASocket(_))));
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    }
}
