//! The bytes of a reply.

use super::errno::Errno;
use super::export::{BlockExtent, Segment};
use super::output::Output;
use super::request::Cookie;

const SIMPLE_MAGIC: u32 = 0x6744_6698;
const CHUNK_MAGIC: u32 = 0x668e_33ef;

const DONE: u16 = 1 << 0;

const NONE: u16 = 0;
const OFFSET_DATA: u16 = 1;
const OFFSET_HOLE: u16 = 2;
const BLOCK_STATUS: u16 = 5;
const ERROR: u16 = (1 << 15) | 1;

const STATE_HOLE: u32 = 1 << 0;
const STATE_ZERO: u32 = 1 << 1;

/// The id under which the handshake announces `base:allocation`.
pub(super) const ALLOCATION_ID: u32 = 1;

/// A reply without data: success, or why not.
pub(super) fn simple(output: &mut Output, cookie: Cookie, result: Result<(), Errno>) {
    let error = result.map_or_else(Errno::number, |()| 0);
    let mut head = [0; 16];
    head[..4].copy_from_slice(&SIMPLE_MAGIC.to_be_bytes());
    head[4..8].copy_from_slice(&error.to_be_bytes());
    head[8..].copy_from_slice(&cookie.to_be_bytes());
    output.head(&head);
}

/// What a read returned, when structured replies were not negotiated.
pub(super) fn simple_read(output: &mut Output, cookie: Cookie, segments: Vec<Segment>) {
    simple(output, cookie, Ok(()));
    append(output, segments);
}

/// What a read returned, holes as holes.
pub(super) fn read(output: &mut Output, cookie: Cookie, mut offset: u64, segments: Vec<Segment>) {
    let mut left = segments.iter().filter(|segment| !segment.is_empty()).count();
    if left == 0 {
        return done(output, cookie);
    }
    for segment in segments {
        if segment.is_empty() {
            continue;
        }
        left -= 1;
        let flags = if left == 0 { DONE } else { 0 };
        let next = offset + segment.len();
        match segment {
            Segment::Data(data) => {
                // A payload has at most PAYLOAD_LEN_MAX bytes.
                chunk(output, flags, OFFSET_DATA, cookie, 8 + data.len() as u32);
                output.head(&offset.to_be_bytes());
                output.data(data);
            }
            Segment::Hole(len) => {
                chunk(output, flags, OFFSET_HOLE, cookie, 12);
                output.head(&offset.to_be_bytes());
                output.head(&len.to_be_bytes());
            }
        }
        offset = next;
    }
}

/// What a read returned, for a client that said DF: in one chunk.
pub(super) fn read_in_one(output: &mut Output, cookie: Cookie, offset: u64, segments: Vec<Segment>) {
    if let [_] = segments[..] {
        return read(output, cookie, offset, segments);
    }
    let len: u64 = segments.iter().map(Segment::len).sum();
    chunk(output, DONE, OFFSET_DATA, cookie, 8 + len as u32);
    output.head(&offset.to_be_bytes());
    append(output, segments);
}

/// What takes space in a range of `len` bytes: the first `count_max` extents, cut at its end. Neighbours of
/// one kind become one.
pub(super) fn block_status(
    output: &mut Output,
    cookie: Cookie,
    len: u32,
    extents: &[BlockExtent],
    count_max: usize,
) {
    let mut runs: Vec<(u32, bool)> = Vec::with_capacity(extents.len().min(count_max));
    let mut left = len;
    for extent in extents {
        let part = u32::try_from(extent.len).map_or(left, |extent| extent.min(left));
        left -= part;
        let full = runs.len() == count_max;
        match runs.last_mut() {
            _ if part == 0 => {}
            Some((run, hole)) if *hole == extent.hole => *run += part,
            _ if full => break,
            _ => runs.push((part, extent.hole)),
        }
    }
    chunk(output, DONE, BLOCK_STATUS, cookie, 4 + 8 * runs.len() as u32);
    output.head(&ALLOCATION_ID.to_be_bytes());
    for (len, hole) in runs {
        let state = if hole { STATE_HOLE | STATE_ZERO } else { 0 };
        output.head(&len.to_be_bytes());
        output.head(&state.to_be_bytes());
    }
}

/// The success of a structured reply without content.
pub(super) fn done(output: &mut Output, cookie: Cookie) {
    chunk(output, DONE, NONE, cookie, 0);
}

/// The failure of a request that must be answered in chunks. The errno says all there is to say.
pub(super) fn error(output: &mut Output, cookie: Cookie, errno: Errno) {
    chunk(output, DONE, ERROR, cookie, 6);
    output.head(&errno.number().to_be_bytes());
    output.head(&0_u16.to_be_bytes());
}

fn chunk(output: &mut Output, flags: u16, kind: u16, cookie: Cookie, len: u32) {
    let mut head = [0; 20];
    head[..4].copy_from_slice(&CHUNK_MAGIC.to_be_bytes());
    head[4..6].copy_from_slice(&flags.to_be_bytes());
    head[6..8].copy_from_slice(&kind.to_be_bytes());
    head[8..16].copy_from_slice(&cookie.to_be_bytes());
    head[16..].copy_from_slice(&len.to_be_bytes());
    output.head(&head);
}

fn append(output: &mut Output, segments: Vec<Segment>) {
    for segment in segments {
        match segment {
            Segment::Data(data) => output.data(data),
            Segment::Hole(len) => output.zeros(u64::from(len)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::future::poll_fn;

    use bytes::Bytes;

    use super::*;
    use crate::nbd::budget::{Budget, Ledger};

    const COOKIE: Cookie = 0x0102_0304_0506_0708;

    fn bytes(encode: impl FnOnce(&mut Output)) -> Vec<u8> {
        let mut output = Output::default();
        encode(&mut output);
        let mut written = std::io::Cursor::new(Vec::new());
        let mut ledger = Ledger::new(Budget::new(0));
        let write = poll_fn(|cx| output.poll_write(cx, &mut written, &mut ledger));
        futures::executor::block_on(write).unwrap();
        written.into_inner()
    }

    fn segments() -> Vec<Segment> {
        vec![Segment::Data(Bytes::from_static(b"ab")), Segment::Hole(3)]
    }

    #[test]
    fn simple_replies_have_their_golden_bytes() {
        let ok = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(bytes(|out| simple(out, COOKIE, Ok(()))), ok);
        let inval = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 22, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(bytes(|out| simple(out, COOKIE, Err(Errno::Inval))), inval);
        let read = [&ok[..], b"ab\0\0\0"].concat();
        assert_eq!(bytes(|out| simple_read(out, COOKIE, segments())), read);
    }

    fn head(flags: u8, kind: [u8; 2], len: u8) -> Vec<u8> {
        let mut head = vec![0x66, 0x8e, 0x33, 0xef, 0, flags];
        head.extend(kind);
        head.extend([1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, len]);
        head
    }

    #[test]
    fn a_read_with_a_hole_has_its_golden_bytes() {
        let expected = [
            head(0, [0, 1], 10),
            vec![0, 0, 0, 0, 0, 0, 16, 0],
            b"ab".to_vec(),
            head(1, [0, 2], 12),
            vec![0, 0, 0, 0, 0, 0, 16, 2, 0, 0, 0, 3],
        ];
        assert_eq!(bytes(|out| read(out, COOKIE, 4096, segments())), expected.concat());
        let expected = [head(1, [0, 1], 13), vec![0, 0, 0, 0, 0, 0, 16, 0], b"ab\0\0\0".to_vec()];
        assert_eq!(bytes(|out| read_in_one(out, COOKIE, 4096, segments())), expected.concat());
        assert_eq!(bytes(|out| read(out, COOKIE, 0, vec![])), head(1, [0, 0], 0));
    }

    #[test]
    fn errors_and_extents_have_their_golden_bytes() {
        let expected = [head(1, [0x80, 1], 6), vec![0, 0, 0, 5, 0, 0]];
        assert_eq!(bytes(|out| error(out, COOKIE, Errno::Io)), expected.concat());
        let extent = |len, hole| BlockExtent { len, hole };
        let extents = [extent(1, false), extent(1, false), extent(0, true), extent(u64::MAX, true)];
        let expected =
            [head(1, [0, 5], 20), vec![0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3]];
        assert_eq!(bytes(|out| block_status(out, COOKIE, 7, &extents, 9)), expected.concat());
        let expected = [head(1, [0, 5], 12), vec![0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0]];
        assert_eq!(bytes(|out| block_status(out, COOKIE, 7, &extents, 1)), expected.concat());
    }
}
