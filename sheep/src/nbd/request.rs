//! The bytes of a request, and what is decided about it before anything acts.

use super::errno::Errno;
use super::export::{WriteFlags, ZeroFlags};
use super::server::PAYLOAD_LEN_MAX;

/// A request's header is always this long.
pub(super) const HEADER_LEN: usize = 28;

const MAGIC: u32 = 0x2560_9513;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISC: u16 = 2;
const FLUSH: u16 = 3;
const TRIM: u16 = 4;
const CACHE: u16 = 5;
const WRITE_ZEROES: u16 = 6;
const BLOCK_STATUS: u16 = 7;

const FUA: u16 = 1 << 0;
const NO_HOLE: u16 = 1 << 1;
const DF: u16 = 1 << 2;
const REQ_ONE: u16 = 1 << 3;
const FAST_ZERO: u16 = 1 << 4;

/// The client's name for a request, repeated in its reply.
pub(super) type Cookie = u64;

/// A request as it came, not yet believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) flags: u16,
    pub(super) kind: u16,
    pub(super) cookie: Cookie,
    pub(super) offset: u64,
    pub(super) len: u32,
}

/// The stream does not hold a request here, so nothing after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a request began with {0:#010x}")]
pub(super) struct BadMagic(u32);

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER_LEN]) -> Result<Self, BadMagic> {
        let [m0, m1, m2, m3, f0, f1, k0, k1, rest @ ..] = *bytes;
        let magic = u32::from_be_bytes([m0, m1, m2, m3]);
        if magic != MAGIC {
            return Err(BadMagic(magic));
        }
        let [c0, c1, c2, c3, c4, c5, c6, c7, o0, o1, o2, o3, o4, o5, o6, o7, l0, l1, l2, l3] = rest;
        Ok(Self {
            flags: u16::from_be_bytes([f0, f1]),
            kind: u16::from_be_bytes([k0, k1]),
            cookie: u64::from_be_bytes([c0, c1, c2, c3, c4, c5, c6, c7]),
            offset: u64::from_be_bytes([o0, o1, o2, o3, o4, o5, o6, o7]),
            len: u32::from_be_bytes([l0, l1, l2, l3]),
        })
    }

    /// Bytes that follow the header, whether or not the request is valid.
    pub(super) fn payload_len(&self) -> u32 {
        if self.kind == WRITE { self.len } else { 0 }
    }

    /// Whether a failure has to be told in a structured chunk once those are negotiated. Other commands may
    /// use simple replies, which are shorter.
    pub(super) fn wants_chunks(&self) -> bool {
        matches!(self.kind, READ | BLOCK_STATUS)
    }
}

/// What was negotiated, as far as it decides which requests are valid.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) size: u64,
    pub(super) read_only: bool,
    pub(super) structured: bool,
    /// `base:allocation` was selected.
    pub(super) allocation: bool,
}

/// A valid request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    Read {
        offset: u64,
        len: u32,
        one_chunk: bool,
    },
    Write {
        offset: u64,
        len: u32,
        flags: WriteFlags,
    },
    Disconnect,
    Flush,
    Trim {
        offset: u64,
        len: u32,
        fua: bool,
    },
    Cache {
        offset: u64,
        len: u32,
    },
    WriteZeroes {
        offset: u64,
        len: u32,
        flags: ZeroFlags,
    },
    BlockStatus {
        offset: u64,
        len: u32,
        one: bool,
    },
    /// Touches no byte, so it succeeds without asking the export.
    Nothing,
}

/// Decides what a request means or which errno it gets. The order follows what a client can act upon:
/// unknown command or flag, then permission, then range.
pub(super) fn validate(header: &Header, terms: &Terms) -> Result<Command, Errno> {
    let &Header { flags, kind, offset, len, .. } = header;
    let fua = flags & FUA != 0;
    // FUA is legal with every command once advertised, even where it means nothing.
    let known = FUA
        | match kind {
            READ if terms.structured => DF,
            BLOCK_STATUS => REQ_ONE,
            WRITE_ZEROES => NO_HOLE | FAST_ZERO,
            READ | WRITE | FLUSH | TRIM | CACHE => 0,
            DISC => return Ok(Command::Disconnect),
            _ => return Err(Errno::Inval),
        };
    if flags & !known != 0 {
        return Err(Errno::Inval);
    }
    if terms.read_only && matches!(kind, WRITE | TRIM | WRITE_ZEROES) {
        return Err(Errno::Perm);
    }
    if kind == FLUSH {
        return if offset == 0 && len == 0 { Ok(Command::Flush) } else { Err(Errno::Inval) };
    }
    if kind == BLOCK_STATUS && (len == 0 || !terms.allocation) {
        return Err(Errno::Inval);
    }
    if matches!(kind, READ | WRITE) && len > PAYLOAD_LEN_MAX {
        return Err(Errno::Inval);
    }
    let inside = offset.checked_add(u64::from(len)).is_some_and(|end| end <= terms.size);
    if !inside {
        return Err(match kind {
            WRITE | WRITE_ZEROES => Errno::NoSpc,
            _ => Errno::Inval,
        });
    }
    if len == 0 {
        return Ok(Command::Nothing);
    }
    Ok(match kind {
        READ => Command::Read { offset, len, one_chunk: flags & DF != 0 },
        WRITE => Command::Write { offset, len, flags: WriteFlags { fua } },
        TRIM => Command::Trim { offset, len, fua },
        CACHE => Command::Cache { offset, len },
        WRITE_ZEROES => {
            let flags = ZeroFlags { fua, may_punch: flags & NO_HOLE == 0, fast: flags & FAST_ZERO != 0 };
            Command::WriteZeroes { offset, len, flags }
        }
        BLOCK_STATUS => Command::BlockStatus { offset, len, one: flags & REQ_ONE != 0 },
        _ => return Err(Errno::Inval),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: u64 = 100 << 20;

    fn terms() -> Terms {
        Terms { size: SIZE, read_only: false, structured: true, allocation: true }
    }

    fn header(kind: u16, flags: u16, offset: u64, len: u32) -> Header {
        Header { flags, kind, cookie: 7, offset, len }
    }

    #[test]
    fn a_request_decodes_from_its_golden_bytes() {
        let bytes: [u8; HEADER_LEN] = [
            0x25, 0x60, 0x95, 0x13, 0, 0x11, 0, 6, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 1, 0, 0, 2, 0, 0, 0,
            0x10, 0,
        ];
        let expected =
            Header { flags: 0x11, kind: 6, cookie: 0x0102_0304_0506_0708, offset: 0x1_0000_0200, len: 4096 };
        assert_eq!(Header::decode(&bytes), Ok(expected));
        let mut bad = bytes;
        bad[3] = 0x14;
        assert_eq!(Header::decode(&bad), Err(BadMagic(0x2560_9514)));
    }

    #[test]
    fn each_rule_gives_its_errno() {
        let end = SIZE;
        let max = PAYLOAD_LEN_MAX;
        #[rustfmt::skip]
        let table: &[(&str, Header, Result<(), Errno>)] = &[
            ("read", header(READ, 0, 0, 1), Ok(())),
            ("read odd offset up to the end", header(READ, 0, end - 3, 3), Ok(())),
            ("read of the largest size", header(READ, DF, 0, max), Ok(())),
            ("read too large", header(READ, 0, 0, max + 1), Err(Errno::Inval)),
            ("read beyond the end", header(READ, 0, end - 1, 2), Err(Errno::Inval)),
            ("read that wraps around", header(READ, 0, u64::MAX, 2), Err(Errno::Inval)),
            ("empty read at the end", header(READ, 0, end, 0), Ok(())),
            ("empty read beyond the end", header(READ, 0, end + 1, 0), Err(Errno::Inval)),
            ("read with FUA", header(READ, FUA, 0, 1), Ok(())),
            ("read with NO_HOLE", header(READ, NO_HOLE, 0, 1), Err(Errno::Inval)),
            ("write", header(WRITE, FUA, 0, 1), Ok(())),
            ("write beyond the end", header(WRITE, 0, end, 1), Err(Errno::NoSpc)),
            ("write that wraps around", header(WRITE, 0, u64::MAX - 1, 4096), Err(Errno::NoSpc)),
            ("write too large", header(WRITE, 0, 0, max + 1), Err(Errno::Inval)),
            ("write with an unknown flag", header(WRITE, 1 << 15, 0, 1), Err(Errno::Inval)),
            ("flush", header(FLUSH, FUA, 0, 0), Ok(())),
            ("flush with a range", header(FLUSH, 0, 0, 1), Err(Errno::Inval)),
            ("trim larger than a payload", header(TRIM, 0, 0, max + 1), Ok(())),
            ("trim beyond the end", header(TRIM, 0, end, 1), Err(Errno::Inval)),
            ("cache", header(CACHE, 0, 0, max + 1), Ok(())),
            ("zero", header(WRITE_ZEROES, NO_HOLE | FAST_ZERO | FUA, 0, max + 1), Ok(())),
            ("zero beyond the end", header(WRITE_ZEROES, 0, end, 1), Err(Errno::NoSpc)),
            ("status", header(BLOCK_STATUS, REQ_ONE, 0, max + 1), Ok(())),
            ("status of nothing", header(BLOCK_STATUS, 0, 0, 0), Err(Errno::Inval)),
            ("status beyond the end", header(BLOCK_STATUS, 0, end, 1), Err(Errno::Inval)),
            ("resize", header(8, 0, 0, 1), Err(Errno::Inval)),
            ("unknown", header(0xffff, 0, 0, 1), Err(Errno::Inval)),
            ("disconnect whatever it says", header(DISC, 0xffff, u64::MAX, 9), Ok(())),
        ];
        for (what, header, expected) in table {
            assert_eq!(validate(header, &terms()).map(drop), *expected, "{what}");
        }
    }

    #[test]
    fn what_was_not_negotiated_is_invalid_and_read_only_comes_before_the_range() {
        let plain = Terms { structured: false, allocation: false, ..terms() };
        assert_eq!(validate(&header(READ, DF, 0, 1), &plain), Err(Errno::Inval));
        assert_eq!(validate(&header(BLOCK_STATUS, 0, 0, 1), &plain), Err(Errno::Inval));
        let frozen = Terms { read_only: true, ..terms() };
        for kind in [WRITE, TRIM, WRITE_ZEROES] {
            assert_eq!(validate(&header(kind, 0, u64::MAX, 1), &frozen), Err(Errno::Perm));
        }
        assert_eq!(validate(&header(FLUSH, 0, 0, 0), &frozen), Ok(Command::Flush));
    }

    proptest! {
        /// The oracle counts in 128 bits and in the order of the protocol's text.
        #[test]
        fn a_range_is_accepted_exactly_when_every_byte_exists(
            kind in prop::sample::select(vec![READ, WRITE, TRIM, CACHE, WRITE_ZEROES, BLOCK_STATUS]),
            offset in prop_oneof![0..200_u64, SIZE - 200..SIZE + 200, u64::MAX - 200..=u64::MAX, any::<u64>()],
            len in prop_oneof![0..400_u32, PAYLOAD_LEN_MAX - 2..PAYLOAD_LEN_MAX + 2, any::<u32>()],
            size in prop_oneof![Just(0_u64), Just(1), Just(SIZE), Just(u64::MAX), 0..300_u64],
        ) {
            let last = u128::from(offset) + u128::from(len);
            let senseless = kind == BLOCK_STATUS && len == 0;
            let too_large = (kind == READ || kind == WRITE) && len > PAYLOAD_LEN_MAX;
            let expected = if senseless || too_large {
                Err(Errno::Inval)
            } else if last > u128::from(size) {
                Err(if kind == WRITE || kind == WRITE_ZEROES { Errno::NoSpc } else { Errno::Inval })
            } else {
                Ok(len == 0)
            };
            let terms = Terms { size, ..terms() };
            let decided = validate(&header(kind, 0, offset, len), &terms);
            prop_assert_eq!(decided.map(|command| command == Command::Nothing), expected);
        }

        #[test]
        fn no_header_makes_validation_panic(
            kind: u16, flags: u16, offset: u64, len: u32, size: u64, read_only: bool, structured: bool,
        ) {
            let terms = Terms { size, read_only, structured, allocation: structured };
            let _ = validate(&header(kind, flags, offset, len), &terms);
        }
    }
}
