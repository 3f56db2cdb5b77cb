//! Replies waiting to be written, as one vectored write per wake-up.
//!
//! Heads go to one contiguous buffer, data stays where the export left it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::AsyncWrite;

use super::budget::{Charge, Ledger};

/// Slices per vectored write: a queue of 32 reads. Linux takes 1,024, which would not fit on the stack well.
const SLICES_MAX: usize = 64;

/// How much of the heads may be written already before the rest is moved to the front.
const HEADS_STALE_MAX: u64 = 64 << 10;

/// The largest buffer for heads kept by an idle connection.
const HEADS_KEPT: usize = 4 << 10;

static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// The write side of a connection.
#[derive(Default)]
pub(super) struct Output {
    heads: Vec<u8>,
    /// The position in the stream of heads at which `heads` begins.
    heads_start: u64,
    pieces: VecDeque<Piece>,
    /// Bytes of the first piece that are written.
    skip: usize,
    /// Bytes ever queued.
    queued: u64,
    /// Bytes ever written.
    written: u64,
    /// Where each reply ends in the stream, and what it gives back then.
    replies: VecDeque<(u64, Option<Charge>)>,
}

enum Piece {
    /// A range of the stream of heads.
    Head {
        start: u64,
        len: usize,
    },
    Data(Bytes),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Head { len, .. } => *len,
            Self::Data(data) => data.len(),
        }
    }
}

impl Output {
    /// Appends bytes that the protocol puts around data.
    pub(super) fn head(&mut self, bytes: &[u8]) {
        let start = self.heads_start + self.heads.len() as u64;
        self.heads.extend_from_slice(bytes);
        self.queued += bytes.len() as u64;
        match self.pieces.back_mut() {
            // Heads without data in between were appended back to back.
            Some(Piece::Head { len, .. }) => *len += bytes.len(),
            _ => self.pieces.push_back(Piece::Head { start, len: bytes.len() }),
        }
    }

    /// Appends data.
    pub(super) fn data(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.queued += data.len() as u64;
            self.pieces.push_back(Piece::Data(data));
        }
    }

    /// Appends zeros, which takes no memory.
    pub(super) fn zeros(&mut self, mut len: u64) {
        while len > 0 {
            let part = len.min(ZEROS.len() as u64);
            self.data(Bytes::from_static(&ZEROS[..part as usize]));
            len -= part;
        }
    }

    /// Ends a reply: what was appended since the one before belongs to it.
    pub(super) fn end_reply(&mut self, charge: Option<Charge>) {
        self.replies.push_back((self.queued, charge));
    }

    /// Replies not written in full.
    pub(super) fn reply_count(&self) -> usize {
        self.replies.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Bytes ever written, to tell a slow peer from a silent one.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Writes until everything is written or the socket takes no more.
    pub(super) fn poll_write<S>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        ledger: &mut Ledger,
    ) -> Poll<io::Result<()>>
    where
        S: AsyncWrite + Unpin,
    {
        while !self.pieces.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.fill(&mut slices);
            let written = ready!(Pin::new(&mut *socket).poll_write_vectored(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written, ledger);
        }
        Poll::Ready(Ok(()))
    }

    fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut skip = self.skip;
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(&self.pieces) {
            let bytes = match piece {
                Piece::Head { start, len } => {
                    let start = (start - self.heads_start) as usize;
                    &self.heads[start..start + len]
                }
                Piece::Data(data) => data,
            };
            *slice = IoSlice::new(&bytes[skip..]);
            skip = 0;
            count += 1;
        }
        count
    }

    fn advance(&mut self, written: usize, ledger: &mut Ledger) {
        self.written += written as u64;
        self.skip += written;
        while let Some(piece) = self.pieces.front()
            && self.skip >= piece.len()
        {
            self.skip -= piece.len();
            self.pieces.pop_front();
        }
        while let Some((end, charge)) = self.replies.front()
            && *end <= self.written
        {
            if let Some(charge) = *charge {
                ledger.release(charge);
            }
            self.replies.pop_front();
        }
        self.forget_heads();
    }

    /// Frees what is written of the heads; without this a connection that never gets to an empty queue would
    /// keep every head it ever sent.
    fn forget_heads(&mut self) {
        if self.pieces.is_empty() {
            self.heads_start += self.heads.len() as u64;
            self.heads.clear();
            if self.heads.capacity() > HEADS_KEPT {
                self.heads = Vec::new();
            }
            return;
        }
        let first = self.pieces.iter().take(2).find_map(|piece| match piece {
            Piece::Head { start, .. } => Some(*start),
            Piece::Data(_) => None,
        });
        if let Some(first) = first
            && first - self.heads_start > HEADS_STALE_MAX
        {
            self.heads.drain(..(first - self.heads_start) as usize);
            self.heads_start = first;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::nbd::budget::Budget;

    #[tokio::test]
    async fn pieces_arrive_in_order_through_a_socket_that_takes_little_at_a_time() {
        let mut ledger = Ledger::new(Budget::new(0));
        let mut output = Output::default();
        let mut expected = Vec::new();
        for i in 0..3000_usize {
            let head = vec![i as u8; 17 + i % 40];
            let data = vec![!(i as u8); (i * 7) % 300];
            output.head(&head);
            output.data(Bytes::from(data.clone()));
            output.zeros(i as u64 % 3);
            let charge = poll_fn(|cx| ledger.poll_charge(cx, 1)).await;
            output.end_reply(Some(charge));
            expected.extend(head.into_iter().chain(data).chain(vec![0; i % 3]));
        }
        let (mut near, mut far) = tokio::io::duplex(777);
        let reader = tokio::spawn(async move {
            let mut got = Vec::new();
            far.read_to_end(&mut got).await.unwrap();
            got
        });
        poll_fn(|cx| output.poll_write(cx, &mut near, &mut ledger)).await.unwrap();
        drop(near);
        assert_eq!(reader.await.unwrap(), expected);
        assert_eq!(output.reply_count(), 0);
        assert!(output.heads.capacity() <= HEADS_KEPT);
        assert_eq!(output.written(), expected.len() as u64);
    }

    #[tokio::test]
    async fn heads_are_forgotten_though_the_queue_never_gets_empty() {
        let mut ledger = Ledger::new(Budget::new(0));
        let mut output = Output::default();
        for _ in 0..20_000 {
            output.head(&[1; 100]);
            output.data(Bytes::from_static(b"x"));
            if output.pieces.len() > 4 {
                output.advance(101, &mut ledger);
            }
            assert!(output.heads.len() < 200_000);
        }
    }
}
