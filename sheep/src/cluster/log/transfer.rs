//! A snapshot over the network, in pieces.
//!
//! One piece is under way at a time; the receiver says which it wants next, so a piece that was lost or a
//! receiver that restarted costs a rewind and nothing else.

use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use wire::id::NodeId;

use super::blob::Blob;
use super::error::RpcFailure;
use super::net::{self, LogNet, LogOp, NetError};
use super::types::{Snapshot, SnapshotMeta, Vote};

/// Size of a piece.
const PIECE: usize = 1 << 20;
/// How long one piece may take; with the last one the receiver decodes the state and syncs it.
const PIECE_TIMEOUT: Duration = Duration::from_secs(10);
/// Pieces asked for out of order before the sender gives up and openraft begins afresh.
const REWINDS_MAX: u32 = 3;
/// Largest snapshot taken: a hundred times what the largest ring needs.
const SNAPSHOT_MAX: u64 = 4 << 30;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Piece {
    pub(super) vote: Vote,
    pub(super) meta: SnapshotMeta,
    pub(super) len: u64,
    pub(super) offset: u64,
    pub(super) bytes: Blob,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum PieceAnswer {
    /// Go on here.
    Want(u64),
    /// Installed, or not needed; the receiver's vote.
    Done(Vote),
}

/// Sends `snapshot` and waits until it is installed; returns the receiver's vote.
pub(super) async fn send(
    net: &dyn LogNet,
    to: NodeId,
    vote: Vote,
    snapshot: Snapshot,
) -> Result<Vote, NetError> {
    let Snapshot { meta, snapshot: bytes } = snapshot;
    let mut offset = 0;
    let mut rewinds = 0;
    loop {
        let end = bytes.len().min(offset + PIECE);
        let piece = Piece {
            vote,
            meta: meta.clone(),
            len: bytes.len() as u64,
            offset: offset as u64,
            bytes: Blob(bytes.slice(offset..end)),
        };
        let answer = net::call(net, to, LogOp::Snapshot, &piece, PIECE_TIMEOUT).await?;
        match answer {
            PieceAnswer::Done(vote) => return Ok(vote),
            PieceAnswer::Want(next) => {
                let next = usize::try_from(next).ok().filter(|next| *next < bytes.len().max(1));
                let next = next.ok_or_else(|| NetError::Failed("a piece beyond the end".to_owned()))?;
                if next != end {
                    rewinds += 1;
                }
                if rewinds > REWINDS_MAX {
                    return Err(NetError::Failed("the receiver keeps starting over".to_owned()));
                }
                offset = next;
            }
        }
    }
}

/// What has arrived of one snapshot.
#[derive(Default)]
pub(super) struct Receiver {
    /// Guards only the assembly; installing happens outside.
    partial: Mutex<Option<Partial>>,
}

struct Partial {
    vote: Vote,
    meta: SnapshotMeta,
    len: u64,
    bytes: Vec<u8>,
}

/// What to do after a piece.
pub(super) enum Received {
    Want(u64),
    Complete(Vote, Snapshot),
}

impl Receiver {
    /// Takes a piece. A newer sender's snapshot replaces an older one's.
    pub(super) fn take(&self, piece: Piece) -> Result<Received, RpcFailure> {
        if piece.len > SNAPSHOT_MAX {
            return Err(RpcFailure::Refused(format!("a snapshot of {} bytes", piece.len)));
        }
        let mut slot = self.partial.lock();
        let same = |partial: &Partial| {
            partial.vote == piece.vote && partial.meta == piece.meta && partial.len == piece.len
        };
        if piece.offset == 0 || !slot.as_ref().is_some_and(same) {
            *slot = Some(Partial { vote: piece.vote, meta: piece.meta, len: piece.len, bytes: Vec::new() });
        }
        let Some(partial) = slot.as_mut() else {
            return Ok(Received::Want(0));
        };
        let have = partial.bytes.len() as u64;
        if piece.offset != have {
            return Ok(Received::Want(have));
        }
        partial.bytes.extend_from_slice(&piece.bytes.0);
        let have = partial.bytes.len() as u64;
        if have > partial.len || piece.bytes.0.len() > PIECE {
            *slot = None;
            return Err(RpcFailure::Refused("a piece longer than announced".to_owned()));
        }
        if have < partial.len {
            return Ok(Received::Want(have));
        }
        let complete = slot.take().map(|partial| {
            let snapshot = Box::new(Bytes::from(partial.bytes));
            Received::Complete(partial.vote, Snapshot { meta: partial.meta, snapshot })
        });
        Ok(complete.unwrap_or(Received::Want(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(offset: u64, bytes: &[u8]) -> Piece {
        Piece {
            vote: Vote::new_committed(1, 1),
            meta: SnapshotMeta::default(),
            len: 6,
            offset,
            bytes: bytes.to_vec().into(),
        }
    }

    #[test]
    fn pieces_make_the_snapshot_whatever_is_repeated() {
        let receiver = Receiver::default();
        assert!(matches!(receiver.take(piece(3, b"def")), Ok(Received::Want(0))));
        assert!(matches!(receiver.take(piece(0, b"ab")), Ok(Received::Want(2))));
        assert!(matches!(receiver.take(piece(0, b"abc")), Ok(Received::Want(3))));
        assert!(matches!(receiver.take(piece(1, b"bc")), Ok(Received::Want(3))));
        let Ok(Received::Complete(_, snapshot)) = receiver.take(piece(3, b"def")) else {
            panic!("not complete")
        };
        assert_eq!(&snapshot.snapshot[..], b"abcdef");
    }

    #[test]
    fn a_snapshot_that_lies_about_its_length_is_refused() {
        let receiver = Receiver::default();
        assert!(receiver.take(piece(0, b"abcdefg")).is_err());
        let huge = Piece { len: u64::MAX, ..piece(0, b"a") };
        assert!(receiver.take(huge).is_err());
    }
}
