//! The transmission phase, with a client that says anything at all.
//!
//! The first byte says what was negotiated, the second in what pieces the rest is read. What must hold: the export
//! only sees ranges within its size; every request that came whole is answered once and in full, reads with
//! what was written; and all memory is given back.

use std::collections::VecDeque;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::{Said, Script};
use crate::fuzz::{Source, runtime};
use crate::nbd::budget::{Budget, Ledger, REQUEST_COST};
use crate::nbd::export::{BlockExtent, Export, ExportInfo, IoError, Segment, WriteFlags, ZeroFlags};
use crate::nbd::reply::ALLOCATION_ID;
use crate::nbd::request::{Cookie, Terms};
use crate::nbd::server::{EXTENTS_MAX, PAYLOAD_LEN_MAX};
use crate::nbd::transmission::serve;

/// Only this much of the export is kept; the rest reads as zeros and forgets what is written.
const KEPT: usize = 64 << 10;
const REQUEST_MAGIC: u64 = 0x2560_9513;
const SIMPLE_MAGIC: u64 = 0x6744_6698;
const CHUNK_MAGIC: u64 = 0x668e_33ef;
const READ: u64 = 0;
const WRITE: u64 = 1;
const DISC: u64 = 2;
const TRIM: u64 = 4;
const WRITE_ZEROES: u64 = 6;
const BLOCK_STATUS: u64 = 7;

pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let (terms, piece) = (source.u8(), usize::from(source.u8()) * 16 + 1);
    let (structured, read_only) = (terms & 1 != 0, terms & 4 != 0);
    let terms = Terms {
        size: if terms & 8 != 0 { 16 << 50 } else { KEPT as u64 },
        read_only,
        structured,
        allocation: structured && terms & 2 != 0,
    };
    let input = source.rest();
    let export = Watched { size: terms.size, read_only, kept: Mutex::new(vec![0; KEPT]) };
    let budget = Budget::new(0);
    let mut script = Script::new(input, piece);
    let ended = runtime().block_on(serve(&mut script, &export, terms, &budget, CancellationToken::new()));
    replies(requests(input), &script.output, structured, ended.is_ok());
    let all = std::future::poll_fn(|cx| {
        Ledger::new(Arc::clone(&budget)).poll_charge(cx, PAYLOAD_LEN_MAX + REQUEST_COST).map(drop)
    });
    assert!(all.now_or_never().is_some(), "the connection has kept memory");
}

/// A request that came whole.
#[derive(Debug)]
struct Asked<'a> {
    kind: u64,
    cookie: Cookie,
    offset: u64,
    len: u64,
    /// What a write brings.
    data: &'a [u8],
}

/// The requests that a client has sent whole before it said goodbye or something else.
fn requests(input: &[u8]) -> VecDeque<Asked<'_>> {
    let mut said = Said(input);
    let mut asked = VecDeque::new();
    while let Some(REQUEST_MAGIC) = said.number::<4>()
        && let (Some(_), Some(kind), Some(cookie), Some(offset), Some(len)) = (
            said.number::<2>(),
            said.number::<2>(),
            said.number::<8>(),
            said.number::<8>(),
            said.number::<4>(),
        )
        && kind != DISC
        && let Some(data) = said.bytes(if kind == WRITE { len as usize } else { 0 })
    {
        asked.push_back(Asked { kind, cookie, offset, len, data });
    }
    asked
}

/// The export answers at once, so replies come in the order of the requests.
fn replies(mut asked: VecDeque<Asked<'_>>, output: &[u8], structured: bool, in_order: bool) {
    let mut said = Said(output);
    let mut kept = vec![0; KEPT];
    while let Some(magic) = said.number::<4>() {
        let request = asked.pop_front().expect("a reply to something");
        if structured && matches!(request.kind, READ | BLOCK_STATUS) {
            assert_eq!(magic, CHUNK_MAGIC, "{request:?}");
            chunks(&mut said, &request, &kept);
            continue;
        }
        assert_eq!(magic, SIMPLE_MAGIC, "{request:?}");
        let errno = said.number::<4>().expect("an errno");
        assert_eq!(said.number::<8>(), Some(request.cookie));
        let range = within(request.offset, request.len);
        match request.kind {
            _ if errno != 0 => {}
            READ => {
                let data = said.bytes(request.len as usize).expect("as much as was asked for");
                check(data, request.offset, &kept);
            }
            WRITE => kept[range.clone()].copy_from_slice(&request.data[..range.len()]),
            TRIM | WRITE_ZEROES => kept[range].fill(0),
            _ => {}
        }
    }
    assert!(asked.is_empty() || !in_order, "requests without an answer: {asked:?}");
}

/// What of a range is kept.
fn within(offset: u64, len: u64) -> std::ops::Range<usize> {
    let kept = |at: u64| usize::try_from(at).map_or(KEPT, |at| at.min(KEPT));
    kept(offset)..kept(offset.saturating_add(len))
}

/// Data read at `offset` is what was written.
fn check(data: &[u8], offset: u64, kept: &[u8]) {
    let kept = &kept[within(offset, data.len() as u64)];
    let (before, after) = data.split_at(kept.len());
    assert!(
        before == kept && after.iter().all(|byte| *byte == 0),
        "other bytes at {offset} than were written"
    );
}

/// One structured reply; the first magic has been read.
fn chunks(said: &mut Said<'_>, request: &Asked<'_>, kept: &[u8]) {
    let mut at = request.offset;
    let mut failed = false;
    loop {
        let (flags, kind) = (said.number::<2>().expect("flags"), said.number::<2>().expect("a kind"));
        assert_eq!(said.number::<8>(), Some(request.cookie));
        let len = said.number::<4>().expect("a length");
        let mut content = Said(said.bytes(len as usize).expect("a chunk has its length"));
        match kind {
            0 => assert_eq!(len, 0),
            1 | 2 => {
                assert_eq!((request.kind, content.number::<8>()), (READ, Some(at)), "{request:?}");
                if kind == 1 {
                    check(content.0, at, kept);
                    at += content.0.len() as u64;
                } else {
                    let hole = content.number::<4>().expect("a hole");
                    assert!(kept[within(at, hole)].iter().all(|byte| *byte == 0), "a hole at {at}");
                    at += hole;
                }
            }
            5 => {
                assert_eq!((request.kind, content.number::<4>()), (BLOCK_STATUS, Some(ALLOCATION_ID.into())));
                let extents = content.0.as_chunks::<8>().0;
                assert!((1..=EXTENTS_MAX).contains(&extents.len()), "{} extents", extents.len());
                let total: u64 = extents.iter().filter_map(|extent| Said(extent).number::<4>()).sum();
                assert!(total > 0 && total <= request.len, "{total} bytes of {request:?}");
            }
            _ => failed = true,
        }
        if flags & 1 != 0 {
            break;
        }
        assert_eq!(said.number::<4>(), Some(CHUNK_MAGIC), "the reply goes on");
    }
    let whole = at == request.offset.wrapping_add(request.len);
    assert!(failed || request.kind != READ || whole, "{request:?} was read up to {at}");
}

/// An export that looks at what it is asked.
struct Watched {
    size: u64,
    read_only: bool,
    kept: Mutex<Vec<u8>>,
}

impl Watched {
    /// The part of a range that is kept.
    fn check(&self, offset: u64, len: u64) -> std::ops::Range<usize> {
        assert!(len > 0, "an empty range at {offset}");
        let end = offset.checked_add(len).expect("an end");
        assert!(end <= self.size, "{offset} to {end} of {}", self.size);
        within(offset, len)
    }

    fn change(&self, offset: u64, len: u64, data: Option<&[u8]>) -> Result<(), IoError> {
        assert!(!self.read_only, "a change of what is read-only");
        let range = self.check(offset, len);
        let count = range.len();
        match data {
            Some(data) => self.kept.lock()[range].copy_from_slice(&data[..count]),
            None => self.kept.lock()[range].fill(0),
        }
        Ok(())
    }
}

#[async_trait]
impl Export for Watched {
    fn info(&self) -> ExportInfo {
        let (name, description) = ("fuzz".to_owned(), String::new());
        ExportInfo { name, description, size: self.size, read_only: self.read_only }
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Segment>, IoError> {
        assert!(len <= PAYLOAD_LEN_MAX);
        let data = self.kept.lock()[self.check(offset, len.into())].to_vec();
        let hole = len - data.len() as u32;
        Ok(vec![Segment::Data(data.into()), Segment::Hole(hole)])
    }

    async fn write(&self, offset: u64, data: Bytes, _: WriteFlags) -> Result<(), IoError> {
        assert!(data.len() <= PAYLOAD_LEN_MAX as usize);
        self.change(offset, data.len() as u64, Some(&data))
    }

    async fn flush(&self) -> Result<(), IoError> {
        Ok(())
    }

    async fn trim(&self, offset: u64, len: u64, _: bool) -> Result<(), IoError> {
        self.change(offset, len, None)
    }

    async fn write_zeroes(&self, offset: u64, len: u64, flags: ZeroFlags) -> Result<(), IoError> {
        if flags.fast && !flags.may_punch {
            self.check(offset, len);
            return Err(IoError::Unsupported);
        }
        self.change(offset, len, None)
    }

    async fn cache(&self, offset: u64, len: u64) -> Result<(), IoError> {
        self.check(offset, len);
        Ok(())
    }

    async fn block_status(&self, offset: u64, len: u64) -> Result<Vec<BlockExtent>, IoError> {
        let kept = self.check(offset, len).len() as u64;
        let extents = [(kept, false), (len - kept, true)].map(|(len, hole)| BlockExtent { len, hole });
        Ok(extents.into_iter().filter(|extent| extent.len > 0).collect())
    }

    async fn close(&self) {}
}
