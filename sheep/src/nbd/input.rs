//! What has been read of a connection and not been understood yet.
//!
//! Small things, requests and the payloads of small writes, are read together into a lent buffer and copied
//! out: one system call serves many, and a waiting 4 KiB write does not pin the buffer it came with. The
//! bulk of a large payload is read straight into place.

use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::BufMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::budget::Budget;
use super::request::HEADER_LEN;

/// A payload with this much missing is read in place: less is better read together with the requests that
/// follow it.
const IN_PLACE_LEN_MIN: usize = 16 << 10;

/// The read side of a connection.
pub(super) struct Input {
    budget: Arc<Budget>,
    /// Lent by the budget while there is something to read; without capacity otherwise.
    buffer: Vec<u8>,
    /// What of the buffer has been consumed.
    start: usize,
    received: u64,
}

impl Input {
    pub(super) fn new(budget: Arc<Budget>) -> Self {
        Self { budget, buffer: Vec::new(), start: 0, received: 0 }
    }

    /// Bytes ever received, to tell a slow peer from a silent one.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// The next request's header, if all of it is here. Not consumed.
    pub(super) fn header(&self) -> Option<&[u8; HEADER_LEN]> {
        self.buffer.get(self.start..)?.first_chunk()
    }

    /// Drops up to `len` bytes and says how many.
    pub(super) fn consume(&mut self, len: usize) -> usize {
        let taken = len.min(self.buffer.len() - self.start);
        self.start += taken;
        taken
    }

    /// Moves what is here into `payload`, up to its capacity.
    pub(super) fn move_to(&mut self, payload: &mut Vec<u8>, len: usize) {
        let from = self.start;
        let taken = self.consume(len - payload.len());
        payload.extend_from_slice(&self.buffer[from..from + taken]);
    }

    /// Reads more. When there is nothing to read and nothing left over, the buffer goes back, so that an idle
    /// connection has none.
    pub(super) fn poll_fill<S>(&mut self, cx: &mut Context<'_>, socket: &mut S) -> Poll<io::Result<usize>>
    where
        S: AsyncRead + Unpin,
    {
        if self.buffer.capacity() == 0 {
            self.buffer = self.budget.lend_buffer();
        }
        // What is left is less than a header, or the buffer would not have to be filled.
        self.buffer.drain(..self.start);
        self.start = 0;
        let room = self.buffer.capacity() - self.buffer.len();
        let filled = poll_read(cx, socket, &mut self.buffer, room);
        match &filled {
            Poll::Ready(Ok(len)) => self.received += *len as u64,
            Poll::Ready(Err(_)) => {}
            Poll::Pending if self.buffer.is_empty() => self.give_back(),
            Poll::Pending => {}
        }
        filled
    }

    /// Reads the rest of a payload of `len` bytes, either in place or with what follows it. Nothing of it may
    /// be left in the buffer.
    pub(super) fn poll_fill_payload<S>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut S,
        payload: &mut Vec<u8>,
        len: usize,
    ) -> Poll<io::Result<usize>>
    where
        S: AsyncRead + Unpin,
    {
        let missing = len - payload.len();
        if missing < IN_PLACE_LEN_MIN {
            return self.poll_fill(cx, socket);
        }
        let read = ready!(poll_read(cx, socket, payload, missing))?;
        self.received += read as u64;
        Poll::Ready(Ok(read))
    }

    fn give_back(&mut self) {
        self.start = 0;
        self.budget.return_buffer(std::mem::take(&mut self.buffer));
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.give_back();
    }
}

/// Appends up to `len` bytes, which must fit the capacity. Zero means the end of the stream.
fn poll_read<S>(
    cx: &mut Context<'_>,
    socket: &mut S,
    into: &mut Vec<u8>,
    len: usize,
) -> Poll<io::Result<usize>>
where
    S: AsyncRead + Unpin,
{
    debug_assert!(len > 0 && len <= into.capacity() - into.len(), "reading never reallocates");
    let mut into = into.limit(len);
    // The future holds nothing between polls, so it can be made anew each time.
    pin!(socket.read_buf(&mut into)).poll(cx)
}
