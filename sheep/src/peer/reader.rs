//! Frames out of one connection.

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use wire::frame::{Decoded, Frame, FrameError, Limits};

use super::net::ReadHalf;

/// Room for this much is made before a read: several small frames per system call.
const READ_SIZE: usize = 64 << 10;

/// Why no more frames come.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The other side closed the connection.
    #[error("closed by the peer")]
    Eof,
    /// The connection broke.
    #[error("connection lost")]
    Io(#[from] io::Error),
    /// The other side sent something that is not a frame.
    #[error("not a valid frame")]
    Frame(#[from] FrameError),
}

pub(super) struct FrameReader {
    read: ReadHalf,
    buf: BytesMut,
    /// How much the frame at the front still lacks, by its own account.
    need: usize,
    limits: Limits,
}

impl FrameReader {
    pub(super) fn new(read: ReadHalf, limits: Limits) -> Self {
        Self { read, buf: BytesMut::new(), need: 0, limits }
    }

    pub(super) fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// The next frame among the bytes already read.
    pub(super) fn buffered(&mut self) -> Result<Option<Frame>, FrameError> {
        match Frame::decode(&mut self.buf, &self.limits)? {
            Decoded::Frame(frame) => Ok(Some(frame)),
            Decoded::Need(need) => {
                self.need = need;
                Ok(None)
            }
        }
    }

    /// Reads some more bytes. Cancel safe.
    pub(super) async fn fill(&mut self) -> Result<(), ReadError> {
        // A large frame is given room as its bytes arrive, at most as much as has come already: a length
        // that is only claimed costs nothing, and copying stays within twice the length.
        let room = self.need.min(self.buf.len()).max(READ_SIZE);
        if self.buf.capacity() - self.buf.len() < READ_SIZE / 4 || self.need > READ_SIZE {
            self.buf.reserve(room);
        }
        match self.read.read_buf(&mut self.buf).await? {
            0 => Err(ReadError::Eof),
            _ => Ok(()),
        }
    }

    /// The next frame. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Frame, ReadError> {
        loop {
            if let Some(frame) = self.buffered()? {
                return Ok(frame);
            }
            self.fill().await?;
        }
    }
}
