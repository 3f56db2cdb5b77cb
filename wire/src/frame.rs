//! The frame sheep exchange on a peer connection.
//!
//! Called by `sheep::peer`, which owns the sockets. This file turns frames into bytes and back; it does no
//! IO. A header of [`HEADER_LEN`] bytes, little-endian, is followed by the body:
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 4 | magic, `SHPF` |
//! | 4 | 1 | frame version, 1 |
//! | 5 | 1 | kind, see [`Kind`] |
//! | 6 | 2 | code: operation of a request, status of a reply |
//! | 8 | 8 | id: a reply has that of its request |
//! | 16 | 4 | length of meta |
//! | 20 | 4 | length of data |
//! | 24 | 2 | offset of the data within its first 4 KiB block |
//! | 26 | 2 | flags, for the operation's use |
//! | 28 | 4 | CRC32C of meta and of the list of checksums |
//! | 32 | 4 | reserved, zero |
//! | 36 | 4 | CRC32C of the 36 bytes before |
//!
//! The body is meta (opaque bytes), one CRC32C per piece of the data as [`checksum::pieces`] cuts it, and
//! the data. The checksums travel from the gateway to the disk and back: whoever uses the data checks it
//! with [`Payload::verify`], the transport does not. Received bytes never panic and never cause an
//! allocation by a length they merely claim.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::checksum::{self, BLOCK_SIZE, ChecksumMismatch};

/// Bytes of a header.
pub const HEADER_LEN: usize = 40;
/// The frame version this code speaks.
const FRAME_VERSION: u8 = 1;

const MAGIC: [u8; 4] = *b"SHPF";
/// Data up to this length is copied out of the read buffer, so that a 4 KiB block in use somewhere does not
/// pin a buffer many times its size.
const COPY_MAX: usize = 16 << 10;

/// The longest frame a connection accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of meta.
    pub meta: usize,
    /// Bytes of data.
    pub data: usize,
}

impl Limits {
    /// For object data: one request's parameters, and up to a whole object.
    pub const DATA: Self = Self { meta: 1 << 20, data: 64 << 20 };
    /// For the cluster log, whose entries travel as meta.
    pub const CONTROL: Self = Self { meta: 8 << 20, data: 64 << 20 };
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Asks for something; its code is the operation.
    Request = 1,
    /// Answers a request; its code is the status.
    Reply = 2,
    /// Introduces the sender; the first frame each way.
    Hello = 3,
    /// Refuses the other side's hello; nothing follows.
    Reject = 4,
}

/// A frame that cannot be decoded or is too long to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The bytes are not a frame at all.
    #[error("magic: found {found:02x?}")]
    Magic {
        /// The bytes in its place.
        found: [u8; 4],
    },
    /// A version this code does not speak.
    #[error("frame version: found {found}")]
    Version {
        /// The version.
        found: u8,
    },
    /// The header was damaged.
    #[error("header checksum: expected {expected:08x}, found {found:08x}")]
    HeaderChecksum {
        /// What the header says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// An unknown kind.
    #[error("kind: found {found}")]
    Kind {
        /// The kind.
        found: u8,
    },
    /// The reserved field is in use.
    #[error("reserved field: found {found:#x}")]
    Reserved {
        /// Its content.
        found: u32,
    },
    /// An offset not within a block.
    #[error("offset in block: found {found}")]
    OffsetInBlock {
        /// The offset.
        found: u16,
    },
    /// Meta is longer than the connection allows.
    #[error("meta length: {len} is above {max}")]
    MetaTooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The data is longer than the connection allows.
    #[error("data length: {len} is above {max}")]
    DataTooLong {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Meta or the list of checksums was damaged.
    #[error("body checksum: expected {expected:08x}, found {found:08x}")]
    BodyChecksum {
        /// What the header says.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
}

/// Object data on its way, with its checksums.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Payload {
    data: Bytes,
    crcs: Vec<u32>,
    offset_in_block: u16,
}

impl Payload {
    /// Data that lies at `offset` of its object; computes the checksums.
    pub fn new(offset: u64, data: Bytes) -> Self {
        let crcs = checksum::of_pieces(offset, &data);
        Self { data, crcs, offset_in_block: offset_in_block(offset) }
    }

    /// Data whose checksums are known, from the disk or from a client; `None` if their number is not that
    /// of the pieces.
    pub fn with_crcs(offset: u64, data: Bytes, crcs: Vec<u32>) -> Option<Self> {
        let offset_in_block = offset_in_block(offset);
        let fits = crcs.len() == piece_count(offset_in_block, data.len());
        fits.then_some(Self { data, crcs, offset_in_block })
    }

    /// No data.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The bytes, not checked: see [`Payload::verify`].
    pub fn data(&self) -> &Bytes {
        &self.data
    }

    /// The checksum of each piece.
    pub fn crcs(&self) -> &[u32] {
        &self.crcs
    }

    /// Bytes of data.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there is no data.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Whether the data was cut into pieces as data at `offset` of its object is.
    pub fn lies_at(&self, offset: u64) -> bool {
        self.is_empty() || self.offset_in_block == offset_in_block(offset)
    }

    /// Checks the data against its checksums.
    pub fn verify(&self) -> Result<(), ChecksumMismatch> {
        checksum::verify(self.offset_in_block.into(), &self.data, &self.crcs)
    }

    /// Gives up the data and its checksums.
    pub fn into_parts(self) -> (Bytes, Vec<u32>) {
        (self.data, self.crcs)
    }
}

fn offset_in_block(offset: u64) -> u16 {
    u16::try_from(offset % BLOCK_SIZE as u64).expect("a block is shorter than 64 KiB")
}

fn piece_count(offset_in_block: u16, len: usize) -> usize {
    if len == 0 { 0 } else { (usize::from(offset_in_block) + len).div_ceil(BLOCK_SIZE) }
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: Kind,
    /// Operation of a request, status of a reply.
    pub code: u16,
    /// For the operation's use.
    pub flags: u16,
    /// Ties a reply to its request.
    pub id: u64,
    /// Parameters, opaque here.
    pub meta: Bytes,
    /// Object data.
    pub payload: Payload,
}

impl Frame {
    /// Refuses a frame that the other side would.
    pub fn check(&self, limits: &Limits) -> Result<(), FrameError> {
        check_lengths(self.meta.len(), self.payload.len(), limits)
    }

    /// Appends everything but the data to `out`; the data follows it on the wire.
    ///
    /// Panics if a length does not fit 32 bits, which [`Frame::check`] rules out.
    pub fn encode_head(&self, out: &mut BytesMut) {
        let len = |n: usize| u32::try_from(n).expect("checked against the limits");
        let crcs = &self.payload.crcs;
        out.reserve(HEADER_LEN + self.meta.len() + crcs.len() * 4);
        let start = out.len();
        out.put_slice(&MAGIC);
        out.put_u8(FRAME_VERSION);
        out.put_u8(self.kind as u8);
        out.put_u16_le(self.code);
        out.put_u64_le(self.id);
        out.put_u32_le(len(self.meta.len()));
        out.put_u32_le(len(self.payload.len()));
        out.put_u16_le(self.payload.offset_in_block);
        out.put_u16_le(self.flags);
        let body_crc_at = out.len();
        out.put_bytes(0, HEADER_LEN - (body_crc_at - start));
        out.put_slice(&self.meta);
        crcs.iter().for_each(|crc| out.put_u32_le(*crc));
        let body_crc = crc32c::crc32c(&out[start + HEADER_LEN..]);
        out[body_crc_at..body_crc_at + 4].copy_from_slice(&body_crc.to_le_bytes());
        let header = &mut out[start..start + HEADER_LEN];
        let header_crc = crc32c::crc32c(&header[..HEADER_LEN - 4]);
        header[HEADER_LEN - 4..].copy_from_slice(&header_crc.to_le_bytes());
    }

    /// Appends the whole frame to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        self.encode_head(out);
        out.put_slice(&self.payload.data);
    }

    /// Takes the next frame off the front of `buf`, or says how many more bytes it takes to get further.
    ///
    /// After an error the stream has lost its frame borders and must be closed.
    pub fn decode(buf: &mut BytesMut, limits: &Limits) -> Result<Decoded, FrameError> {
        let Some(header) = Header::peek(buf)? else {
            return Ok(Decoded::Need(HEADER_LEN - buf.len()));
        };
        check_lengths(header.meta_len, header.data_len, limits)?;
        let crc_count = piece_count(header.offset_in_block, header.data_len);
        let head_len = HEADER_LEN + header.meta_len + crc_count * 4;
        let total = head_len + header.data_len;
        if buf.len() < total {
            return Ok(Decoded::Need(total - buf.len()));
        }
        let found = crc32c::crc32c(&buf[HEADER_LEN..head_len]);
        if found != header.body_crc {
            return Err(FrameError::BodyChecksum { expected: header.body_crc, found });
        }
        buf.advance(HEADER_LEN);
        let meta = take(buf, header.meta_len);
        let crcs = (0..crc_count).map(|_| buf.get_u32_le()).collect();
        let payload =
            Payload { data: take(buf, header.data_len), crcs, offset_in_block: header.offset_in_block };
        let Header { kind, code, flags, id, .. } = header;
        Ok(Decoded::Frame(Self { kind, code, flags, id, meta, payload }))
    }
}

/// What [`Frame::decode`] made of a buffer.
#[derive(Debug, PartialEq, Eq)]
pub enum Decoded {
    /// A frame, taken off the buffer.
    Frame(Frame),
    /// This many more bytes are needed; the buffer is as it was. Within [`Limits`], but still only a claim:
    /// grow the buffer as they come.
    Need(usize),
}

fn take(buf: &mut BytesMut, len: usize) -> Bytes {
    if len <= COPY_MAX {
        let copy = Bytes::copy_from_slice(&buf[..len]);
        buf.advance(len);
        copy
    } else {
        buf.split_to(len).freeze()
    }
}

fn check_lengths(meta: usize, data: usize, limits: &Limits) -> Result<(), FrameError> {
    if meta > limits.meta {
        return Err(FrameError::MetaTooLong { len: meta, max: limits.meta });
    }
    if data > limits.data {
        return Err(FrameError::DataTooLong { len: data, max: limits.data });
    }
    Ok(())
}

struct Header {
    kind: Kind,
    code: u16,
    flags: u16,
    id: u64,
    meta_len: usize,
    data_len: usize,
    offset_in_block: u16,
    body_crc: u32,
}

impl Header {
    /// Reads the header at the front of `buf`; `None` while it is incomplete. A wrong magic is noticed from
    /// its first byte, so that a stranger who sends a little and waits is not waited for.
    fn peek(buf: &[u8]) -> Result<Option<Self>, FrameError> {
        let have = buf.len().min(MAGIC.len());
        if buf[..have] != MAGIC[..have] {
            let mut found = [0; 4];
            found[..have].copy_from_slice(&buf[..have]);
            return Err(FrameError::Magic { found });
        }
        let Some(mut header) = buf.get(MAGIC.len()..HEADER_LEN) else { return Ok(None) };
        let found_crc = crc32c::crc32c(&buf[..HEADER_LEN - 4]);
        let version = header.get_u8();
        if version != FRAME_VERSION {
            return Err(FrameError::Version { found: version });
        }
        let kind = header.get_u8();
        let (code, id) = (header.get_u16_le(), header.get_u64_le());
        let (meta_len, data_len) = (header.get_u32_le() as usize, header.get_u32_le() as usize);
        let (offset_in_block, flags) = (header.get_u16_le(), header.get_u16_le());
        let (body_crc, reserved, header_crc) =
            (header.get_u32_le(), header.get_u32_le(), header.get_u32_le());
        if header_crc != found_crc {
            return Err(FrameError::HeaderChecksum { expected: header_crc, found: found_crc });
        }
        if reserved != 0 {
            return Err(FrameError::Reserved { found: reserved });
        }
        if usize::from(offset_in_block) >= BLOCK_SIZE {
            return Err(FrameError::OffsetInBlock { found: offset_in_block });
        }
        let kind = match kind {
            1 => Kind::Request,
            2 => Kind::Reply,
            3 => Kind::Hello,
            4 => Kind::Reject,
            found => return Err(FrameError::Kind { found }),
        };
        Ok(Some(Self { kind, code, flags, id, meta_len, data_len, offset_in_block, body_crc }))
    }
}

#[cfg(test)]
mod tests;
