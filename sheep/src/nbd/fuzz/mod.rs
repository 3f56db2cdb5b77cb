//! Fuzz targets of the NBD frontend, and the socket they speak through.

pub(crate) mod options;
pub(crate) mod requests;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A client that has said all it will ever say, in pieces, and reads everything.
struct Script<'a> {
    input: &'a [u8],
    /// How much one read gives.
    piece: usize,
    output: Vec<u8>,
}

impl<'a> Script<'a> {
    fn new(input: &'a [u8], piece: usize) -> Self {
        Self { input, piece, output: Vec::new() }
    }
}

impl AsyncRead for Script<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.input.split_at(self.piece.min(into.remaining()).min(self.input.len()));
        into.put_slice(now);
        self.input = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script<'_> {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Big-endian numbers and pieces off the front of what one side has said; `None` at its end.
struct Said<'a>(&'a [u8]);

impl<'a> Said<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const N: usize>(&mut self) -> Option<u64> {
        Some(self.bytes(N)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }
}
