//! Frames out of one connection.

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use wire::frame::{Decoded, Frame, FrameError, Limits};

use super::net::ReadHalf;

/// Room for this much is made before a read: several small frames per system call.
const READ_SIZE: usize = 64 << 10;
/// A buffer larger than this is given back once the large frame in it has gone.
const BUFFER_KEEP: usize = 256 << 10;

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
        if self.need <= READ_SIZE && self.buf.len() < READ_SIZE && self.buf.capacity() > BUFFER_KEEP {
            // A large frame has gone: what is left of its buffer would stay with an idle connection.
            let rest = std::mem::replace(&mut self.buf, BytesMut::with_capacity(READ_SIZE));
            self.buf.extend_from_slice(&rest);
        }
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::{AsyncWriteExt, duplex};
    use wire::frame::{Kind, Payload};

    use super::*;

    #[tokio::test]
    async fn an_idle_connection_does_not_keep_the_buffer_of_a_large_frame() {
        let (near, mut far) = duplex(1 << 20);
        let mut reader = FrameReader::new(Box::new(near), Limits::DATA);
        let frame = |len| {
            let payload = Payload::new(0, Bytes::from(vec![1; len]));
            Frame { kind: Kind::Request, code: 1, flags: 0, id: 1, meta: Bytes::new(), payload }
        };
        let mut bytes = BytesMut::new();
        for len in [5 << 20, 10, 0] {
            frame(len).encode(&mut bytes);
        }
        let writer = tokio::spawn(async move {
            far.write_all(&bytes).await.expect("open");
            far
        });
        for len in [5 << 20, 10, 0] {
            assert_eq!(reader.next().await.expect("a frame"), frame(len));
        }
        assert!(futures::poll!(std::pin::pin!(reader.next())).is_pending());
        assert!(reader.buf.capacity() <= BUFFER_KEEP, "{}", reader.buf.capacity());
        drop(writer.await);
        assert!(matches!(reader.next().await, Err(ReadError::Eof)));
    }

    #[tokio::test]
    async fn a_claimed_length_is_not_allocated() {
        let (near, mut far) = duplex(1 << 20);
        let mut reader = FrameReader::new(Box::new(near), Limits::DATA);
        let payload = Payload::new(0, Bytes::from(vec![0; 60 << 20]));
        let frame = Frame { kind: Kind::Request, code: 1, flags: 0, id: 1, meta: Bytes::new(), payload };
        let mut bytes = BytesMut::new();
        frame.encode_head(&mut bytes);
        far.write_all(&bytes).await.expect("open");
        assert!(futures::poll!(std::pin::pin!(reader.next())).is_pending());
        assert!(reader.buf.capacity() < 1 << 20, "{}", reader.buf.capacity());
    }
}
