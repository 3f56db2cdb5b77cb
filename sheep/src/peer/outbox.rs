//! Frames into one connection.
//!
//! Whoever has a frame to send writes it to the socket himself if nobody else is writing: that saves waking
//! a task. If somebody is, the frame is left with the others for him, and they go out in one system call.
//! When the socket is full, one caller has written for others long enough, or many requests are under way
//! so that frames are worth collecting (a third less CPU at 32), the connection's writer task takes over.
//!
//! ```text
//!         push, cork                 socket full, or turns used up
//!  Idle ─────────────▶ with a caller ─────────────▶ handed over ──▶ with the writer task
//!   ▲                      │ nothing left                                   │ nothing left
//!   └──────────────────────┴────────────────────────────────────────────────┘
//! ```
//!
//! How much can queue up is bounded by the budgets of requests and replies, not here.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use wire::frame::Frame;

use super::net::WriteHalf;

/// Data up to this length is copied behind its header rather than sent from where it is.
const COPY_MAX: usize = 8 << 10;
/// How many batches a caller writes, its own the first, before it leaves the rest to the writer task.
const TURNS: usize = 2;
/// With more requests under way than this, frames are worth collecting. Waiting for the writer task costs
/// a few microseconds, which matters while requests come one by one only.
const EAGER_MAX: usize = 8;
/// Buffers given to the kernel in one call.
const SLICES: usize = 32;
/// An emptied buffer larger than this is given back.
const BUFFER_KEEP: usize = 256 << 10;

/// The sending side of one connection.
pub(super) struct Outbox {
    /// Held for moments, never while writing.
    state: Mutex<State>,
    handed_over: Notify,
    /// Cancelled when the connection is finished, by whoever notices.
    pub(super) closed: CancellationToken,
}

struct State {
    /// What has been pushed since the last batch was taken.
    pending: Batch,
    turn: Turn,
}

enum Turn {
    Idle(WriteHalf),
    /// A caller or the writer task has the socket.
    Taken,
    HandedOver(WriteHalf, Batch),
    Closed,
}

impl Outbox {
    pub(super) fn new(write: WriteHalf, closed: CancellationToken) -> Arc<Self> {
        let state = State { pending: Batch::default(), turn: Turn::Idle(write) };
        Arc::new(Self { state: Mutex::new(state), handed_over: Notify::new(), closed })
    }

    /// Sends `frame` after those pushed before. It is dropped if the connection is closed.
    ///
    /// `under_way` is how many requests the connection has: when there are many, the frame is left to the
    /// writer task, since others are likely to follow before that gets to run.
    ///
    /// The caller has checked the frame against the limits.
    pub(super) fn push(&self, frame: &Frame, under_way: usize) {
        let (write, batch) = {
            let mut state = self.state.lock();
            if matches!(state.turn, Turn::Closed) {
                return;
            }
            state.pending.push(frame);
            let Some(write) = state.take_idle() else { return };
            let batch = std::mem::take(&mut state.pending);
            if under_way > EAGER_MAX {
                state.turn = Turn::HandedOver(write, batch);
                drop(state);
                return self.handed_over.notify_one();
            }
            (write, batch)
        };
        self.write_now(write, batch);
    }

    /// Holds back what is pushed until the guard is dropped, so that it goes out together.
    pub(super) fn cork(&self) -> Cork<'_> {
        Cork { outbox: self, write: self.state.lock().take_idle() }
    }

    /// Closes the socket's sending side and drops what was not sent.
    pub(super) fn close(&self) {
        let old = {
            let mut state = self.state.lock();
            state.pending = Batch::default();
            std::mem::replace(&mut state.turn, Turn::Closed)
        };
        drop(old);
        self.closed.cancel();
    }

    fn write_now(&self, mut write: WriteHalf, mut batch: Batch) {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..TURNS {
            match batch.poll_write(&mut write, &mut cx) {
                Poll::Ready(Ok(())) => match self.next_batch(write, batch) {
                    Some(next) => (write, batch) = next,
                    None => return,
                },
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "peer connection cannot be written");
                    return self.close();
                }
                Poll::Pending => break,
            }
        }
        let mut state = self.state.lock();
        if !matches!(state.turn, Turn::Closed) {
            state.turn = Turn::HandedOver(write, batch);
            drop(state);
            self.handed_over.notify_one();
        }
    }

    /// Gives the emptied `batch` back and takes what was pushed meanwhile; puts the socket down if that is
    /// nothing.
    fn next_batch(&self, write: WriteHalf, batch: Batch) -> Option<(WriteHalf, Batch)> {
        let mut state = self.state.lock();
        if matches!(state.turn, Turn::Closed) {
            return None;
        }
        if state.pending.is_empty() {
            state.pending = batch;
            state.turn = Turn::Idle(write);
            return None;
        }
        let next = std::mem::replace(&mut state.pending, batch);
        Some((write, next))
    }

    /// Writes what callers hand over, until the connection is closed. One task runs this.
    pub(super) async fn run(&self) {
        // Dropping the write on the way out is fine: the connection is finished.
        tokio::select! {
            () = self.closed.cancelled() => {}
            result = self.write_handed_over() => {
                if let Err(error) = result {
                    tracing::debug!(%error, "peer connection cannot be written");
                }
            }
        }
        self.close();
    }

    async fn write_handed_over(&self) -> io::Result<()> {
        loop {
            self.handed_over.notified().await;
            let Some(mut next) = self.state.lock().take_handed_over() else { continue };
            loop {
                let (write, batch) = &mut next;
                std::future::poll_fn(|cx| batch.poll_write(write, cx)).await?;
                match self.next_batch(next.0, next.1) {
                    Some(more) => next = more,
                    None => break,
                }
            }
        }
    }
}

impl State {
    fn take_idle(&mut self) -> Option<WriteHalf> {
        match std::mem::replace(&mut self.turn, Turn::Taken) {
            Turn::Idle(write) => Some(write),
            other => {
                self.turn = other;
                None
            }
        }
    }

    fn take_handed_over(&mut self) -> Option<(WriteHalf, Batch)> {
        match std::mem::replace(&mut self.turn, Turn::Taken) {
            Turn::HandedOver(write, mut batch) => {
                batch.append(&mut self.pending);
                Some((write, batch))
            }
            other => {
                self.turn = other;
                None
            }
        }
    }
}

/// See [`Outbox::cork`].
pub(super) struct Cork<'a> {
    outbox: &'a Outbox,
    write: Option<WriteHalf>,
}

impl Drop for Cork<'_> {
    fn drop(&mut self) {
        let Some(write) = self.write.take() else { return };
        if let Some((write, batch)) = self.outbox.next_batch(write, Batch::default()) {
            self.outbox.write_now(write, batch);
        }
    }
}

/// Bytes on their way out.
#[derive(Default)]
struct Batch {
    /// Finished pieces, the first partly written perhaps.
    chunks: VecDeque<Bytes>,
    /// What follows them: headers and small data, still growing.
    tail: BytesMut,
}

impl Batch {
    fn push(&mut self, frame: &Frame) {
        if frame.payload.len() <= COPY_MAX {
            frame.encode(&mut self.tail);
        } else {
            frame.encode_head(&mut self.tail);
            self.chunks.push_back(self.tail.split().freeze());
            self.chunks.push_back(frame.payload.data().clone());
        }
    }

    /// Moves all of `later` behind what is here.
    fn append(&mut self, later: &mut Self) {
        if !later.chunks.is_empty() {
            if !self.tail.is_empty() {
                self.chunks.push_back(self.tail.split().freeze());
            }
            self.chunks.append(&mut later.chunks);
        }
        if self.tail.is_empty() {
            std::mem::swap(&mut self.tail, &mut later.tail);
        } else {
            self.tail.extend_from_slice(&later.tail);
            later.tail.clear();
        }
    }

    fn is_empty(&self) -> bool {
        self.chunks.is_empty() && self.tail.is_empty()
    }

    fn poll_write(&mut self, write: &mut WriteHalf, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let parts = self.chunks.iter().map(|c| &c[..]).chain([&self.tail[..]]);
            let mut count = 0;
            for (slice, part) in slices.iter_mut().zip(parts) {
                *slice = IoSlice::new(part);
                count += 1;
            }
            let written = match Pin::new(&mut *write).poll_write_vectored(cx, &slices[..count]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(written)) => written,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            };
            self.advance(written);
        }
        if self.tail.capacity() > BUFFER_KEEP {
            self.tail = BytesMut::new();
        } else {
            self.tail.clear();
        }
        Poll::Ready(Ok(()))
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(chunk) = self.chunks.front_mut() {
            if written < chunk.len() {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            self.chunks.pop_front();
        }
        if written == self.tail.len() {
            // Keeps the buffer's capacity, which `advance` would give away from the front.
            self.tail.clear();
        } else {
            self.tail.advance(written);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWrite, duplex, split};
    use wire::frame::{Decoded, Kind, Limits, Payload};

    use super::*;

    fn frame(id: u64, len: usize) -> Frame {
        let payload = Payload::new(0, vec![id as u8; len].into());
        Frame { kind: Kind::Request, code: 1, flags: 0, id, meta: Bytes::new(), payload }
    }

    fn outbox(write: impl AsyncWrite + Send + Unpin + 'static) -> Arc<Outbox> {
        Outbox::new(Box::new(write), CancellationToken::new())
    }

    /// Whatever the socket takes at a time, and whoever writes, the frames come out whole and in order.
    #[tokio::test]
    async fn a_full_socket_passes_to_the_writer_task_and_back() {
        for capacity in [1, 100, 5_000, 1 << 20] {
            let (near, mut far) = duplex(capacity);
            let outbox = outbox(split(near).1);
            let task = tokio::spawn({
                let outbox = Arc::clone(&outbox);
                async move { outbox.run().await }
            });
            let mut buf = BytesMut::new();
            let mut next = 0;
            for round in 0..4 {
                for i in 0..20 {
                    let len = if i % 7 == 0 { 10_000 } else { 100 };
                    outbox.push(&frame(round * 20 + i, len), (i % 3 * 10) as usize);
                }
                while next < (round + 1) * 20 {
                    match Frame::decode(&mut buf, &Limits::DATA).expect("a frame") {
                        Decoded::Frame(frame) => {
                            assert_eq!((frame.id, frame.payload.verify()), (next, Ok(())));
                            next += 1;
                        }
                        Decoded::Need(_) => assert_ne!(far.read_buf(&mut buf).await.expect("open"), 0),
                    }
                }
            }
            outbox.close();
            task.await.expect("no panic");
        }
    }

    #[tokio::test]
    async fn corked_frames_go_out_when_the_cork_is_drawn() {
        let (near, mut far) = duplex(1 << 20);
        let outbox = outbox(split(near).1);
        let cork = outbox.cork();
        outbox.push(&frame(1, 10), 1);
        outbox.push(&frame(2, 10), 1);
        let mut buf = BytesMut::with_capacity(4096);
        assert!(futures::poll!(std::pin::pin!(far.read_buf(&mut buf))).is_pending());
        drop(cork);
        far.read_buf(&mut buf).await.expect("open");
        let ids = std::iter::from_fn(|| match Frame::decode(&mut buf, &Limits::DATA) {
            Ok(Decoded::Frame(frame)) => Some(frame.id),
            _ => None,
        });
        assert_eq!(ids.collect::<Vec<_>>(), [1, 2]);
    }

    #[tokio::test]
    async fn a_closed_outbox_drops_what_it_is_given_and_closes_the_socket() {
        let (near, mut far) = duplex(1 << 20);
        let (read, write) = split(near);
        let outbox = outbox(write);
        outbox.push(&frame(1, 10), 1);
        outbox.close();
        outbox.push(&frame(2, 10), 1);
        assert!(outbox.closed.is_cancelled());
        drop(read);
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.expect("closed");
        assert_eq!(rest.len(), 40 + 4 + 10);
    }
}
