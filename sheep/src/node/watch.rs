//! What a node watches over all the time: its connections, its store's marks, its disk.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio_util::sync::CancellationToken;
use wire::frame::Payload;
use wire::id::Session;
use wire::peer::{SuspectRequest, op};

use crate::machine::blocking;
use crate::membership::Ring;
use crate::peer::{Class, LostReason, PeerEvent};
use crate::replica::Replica;
use crate::store::FileSystem;

/// How often the store looks after its marks.
const TICK_EVERY: Duration = Duration::from_secs(2);
/// How often the disk is asked for a sign of life, and how long it may take to give one.
const DISK_EVERY: Duration = Duration::from_secs(5);
const DISK_PATIENCE: Duration = Duration::from_secs(20);

/// Connections that break are the first sign of a death: the leader hears of them at once.
pub(super) async fn watch_peers(ring: Arc<Ring>, cancel: CancellationToken) {
    let mut events = ring.peers.events();
    let watch = async {
        loop {
            let event = match events.recv().await {
                Ok(event) => event,
                Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => continue,
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
            };
            let PeerEvent::Lost { node, reason, .. } = event else { continue };
            if !matches!(reason, LostReason::Reset | LostReason::Refused | LostReason::Eof) {
                continue;
            }
            if ring.leader.leads() {
                ring.leader.suspect(node);
                continue;
            }
            let leader = ring.log.leader().map(|l| l.node).filter(|l| *l != node);
            let Some(leader) = leader else { continue };
            let session = Session { node, start: 0 };
            let meta = SuspectRequest { session: session.into() }.encode_to_vec().into();
            let report = ring.peers.call(
                leader,
                Class::Control,
                op::SUSPECT,
                meta,
                Payload::empty(),
                Some(Duration::from_millis(200)),
            );
            if let Err(error) = report.await {
                tracing::debug!(%error, "a broken connection was not reported");
            }
        }
    };
    tokio::select! {
        () = cancel.cancelled() => {}
        () = watch => {}
    }
}

pub(super) async fn tick(replica: Arc<Replica>, cancel: CancellationToken) {
    while tokio::time::timeout(TICK_EVERY, cancel.cancelled()).await.is_err() {
        let own = replica.clone();
        let ticked = blocking(move || own.store().tick().map_err(|e| own.status(e)));
        if let Ok(Err(status)) = ticked.await {
            tracing::warn!(?status, "the store could not look after its marks");
        }
    }
}

/// A disk that hangs while the node's heartbeat lives would hold up every write: it is taken out (rule 12).
pub(super) async fn watch_disk(
    replica: Arc<Replica>,
    fs: Arc<dyn FileSystem>,
    dir: PathBuf,
    cancel: CancellationToken,
) {
    let path = dir.join("alive");
    while tokio::time::timeout(DISK_EVERY, cancel.cancelled()).await.is_err() {
        let (fs, path) = (fs.clone(), path.clone());
        let sign = blocking(move || {
            let file = if fs.exists(&path)? { fs.open(&path)? } else { fs.create(&path)? };
            file.set_size(0)?;
            file.sync_data()
        });
        match tokio::time::timeout(DISK_PATIENCE, sign).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) if error.kind() == std::io::ErrorKind::StorageFull => {}
            Ok(Ok(Err(error))) => replica.fail(format!("the disk gives no sign of life: {error}")),
            Ok(Err(_)) => return,
            Err(_) => replica.fail(format!("the disk has not answered for {DISK_PATIENCE:?}")),
        }
    }
}
