//! Reading and writing a VDI's bytes through the admin API, for `dog vdi read` and `write`.
//!
//! A read skips what takes no space. Requests to the owner run in tasks of their own: a slow client must not
//! keep one half done, which would hold up others; and a write that was begun runs to its end, whatever
//! becomes of the call. The answer to a write comes after a flush.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{FuturesOrdered, FuturesUnordered};
use tokio::task::{JoinError, JoinHandle};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Status, Streaming};
use wire::admin::{
    AdminError, CHUNK_LEN_MAX, ErrorKind, ReadVdiReply, WriteVdiReply, WriteVdiRequest, read_vdi_reply,
    write_vdi_request,
};
use wire::frame::Payload;

use super::stream::{Ended, Sink};
use super::vdi::OpenVdi;
use super::{Admin, error, request};
use crate::cluster::state::Vdi;
use crate::gateway::{Done, Io};
use crate::nbd::IoError;
use crate::store::Segment;

/// Bytes of one request to the owner; its borders are the owner's objects' too.
const CHUNK: u64 = CHUNK_LEN_MAX as u64;
/// Requests under way at once: hides the round trips of a few copies, and holds 4 MiB.
const IN_FLIGHT: usize = 4;
/// How long one request may take before the call is given up; what was begun goes on.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a client may take between two parts of a write.
const CLIENT_PATIENCE: Duration = Duration::from_secs(60);

/// Cuts a range at chunk borders.
fn chunks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let mut at = range.start;
    std::iter::from_fn(move || {
        let end = (at / CHUNK).saturating_add(1).saturating_mul(CHUNK).min(range.end);
        let chunk = at..end;
        at = end;
        (!chunk.is_empty()).then_some(chunk)
    })
}

/// Turns runs of data and holes into answers; holes that touch become one.
struct Outgoing<'a> {
    sink: &'a Sink<ReadVdiReply>,
    at: u64,
    hole: u64,
}

impl Outgoing<'_> {
    async fn data(&mut self, data: Bytes) -> Result<(), Ended> {
        self.end_hole().await?;
        let mut rest = data;
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(CHUNK_LEN_MAX));
            let (offset, len) = (self.at, piece.len() as u64);
            let content = Some(read_vdi_reply::Content::Data(piece));
            self.sink.send(ReadVdiReply { offset, content }).await?;
            self.at += len;
        }
        Ok(())
    }

    async fn end_hole(&mut self) -> Result<(), Ended> {
        let hole = std::mem::take(&mut self.hole);
        if hole > 0 {
            let content = Some(read_vdi_reply::Content::Hole(hole));
            self.sink.send(ReadVdiReply { offset: self.at, content }).await?;
            self.at += hole;
        }
        Ok(())
    }
}

impl Admin {
    /// A VDI's bytes, in order.
    pub(super) async fn read_vdi(
        &self,
        sink: &Sink<ReadVdiReply>,
        vdi: &Vdi,
        range: Range<u64>,
    ) -> Result<(), Ended> {
        let open = self.open_vdi(&vdi.name).await?;
        let mut out = Outgoing { sink, at: range.start, hole: 0 };
        let mut at = range.start;
        while at < range.end {
            let status = Io::Status { offset: at, len: range.end - at };
            let Done::Status(runs) = self.run_in_time(&open, vdi, status).await? else {
                return Err(error::io(vdi.name.as_str(), IoError::Io).into());
            };
            let before = at;
            for (len, hole) in runs {
                let run = at..at.saturating_add(len).min(range.end);
                at = run.end;
                if hole {
                    out.hole += run.end - run.start;
                } else {
                    self.read_run(&mut out, &open, vdi, run).await?;
                }
            }
            if at == before {
                return Err(error::io(vdi.name.as_str(), IoError::Io).into());
            }
        }
        open.close().await;
        out.end_hole().await
    }

    async fn read_run(
        &self,
        out: &mut Outgoing<'_>,
        open: &Arc<OpenVdi>,
        vdi: &Vdi,
        run: Range<u64>,
    ) -> Result<(), Ended> {
        let mut todo = chunks(run);
        let mut reads = FuturesOrdered::new();
        loop {
            while reads.len() < IN_FLIGHT
                && let Some(chunk) = todo.next()
            {
                // At most a chunk's length.
                let len = (chunk.end - chunk.start) as u32;
                let read = self.begin(open, Io::Read { offset: chunk.start, len });
                reads.push_back(AbortOnDropHandle::new(read));
            }
            if reads.is_empty() {
                break;
            }
            let Ok(done) = tokio::time::timeout(PATIENCE, reads.next()).await else {
                return Err(self.waits(vdi).await.into());
            };
            let Done::Read(segments) = outcome(vdi, done)? else {
                return Err(error::io(vdi.name.as_str(), IoError::Io).into());
            };
            for segment in segments {
                match segment {
                    Segment::Data { data, .. } => out.data(data).await?,
                    Segment::Hole(len) => out.hole += len,
                }
            }
        }
        Ok(())
    }

    /// Begins a request in a task that keeps the VDI open until it is done.
    fn begin(&self, open: &Arc<OpenVdi>, io: Io) -> JoinHandle<Result<Done, IoError>> {
        let open = open.clone();
        self.tasks.spawn(async move { open.run(io).await })
    }

    async fn run_in_time(&self, open: &Arc<OpenVdi>, vdi: &Vdi, io: Io) -> Result<Done, AdminError> {
        let done = AbortOnDropHandle::new(self.begin(open, io));
        match tokio::time::timeout(PATIENCE, done).await {
            Ok(done) => outcome(vdi, Some(done)),
            Err(_) => Err(self.waits(vdi).await),
        }
    }

    /// Writes what a client sends, and flushes.
    pub(super) async fn write_vdi(
        &self,
        mut parts: Streaming<WriteVdiRequest>,
    ) -> Result<WriteVdiReply, AdminError> {
        let _permit = self.stream_permit()?;
        let first = next_part(&mut parts).await?;
        let Some(write_vdi_request::Part::Start(start)) = first else {
            return Err(AdminError::new(ErrorKind::Invalid, "a write begins with its start message"));
        };
        let vdi = request::vdi(&self.gateway.context.view.state(), &start.name)?;
        if start.offset > vdi.size {
            return Err(error::beyond_end(vdi.name.as_str(), vdi.size));
        }
        let open = self.open_vdi(&vdi.name).await?;
        let written = tokio::select! {
            written = self.write_parts(&open, &vdi, start.offset, parts) => written?,
            () = self.cancel.cancelled() => {
                return Err(AdminError::new(ErrorKind::Unavailable, "this sheep is stopping")
                    .hint("write again through another sheep; what was written before may stay"));
            }
        };
        open.close().await;
        Ok(WriteVdiReply { written })
    }

    /// Cancel-safe: what was begun runs to its end in its task.
    async fn write_parts(
        &self,
        open: &Arc<OpenVdi>,
        vdi: &Vdi,
        offset: u64,
        mut parts: Streaming<WriteVdiRequest>,
    ) -> Result<u64, AdminError> {
        let mut at = offset;
        let mut writes = FuturesUnordered::new();
        while let Some(part) = next_part(&mut parts).await? {
            let (end, ios) = requests(vdi, at, part)?;
            for io in ios {
                if writes.len() >= IN_FLIGHT {
                    self.end_one(vdi, &mut writes).await?;
                }
                writes.push(self.begin(open, io));
            }
            at = end;
        }
        while !writes.is_empty() {
            self.end_one(vdi, &mut writes).await?;
        }
        let mut flush = FuturesUnordered::from_iter([self.begin(open, Io::Flush)]);
        self.end_one(vdi, &mut flush).await?;
        Ok(at - offset)
    }

    /// Waits for one of the requests under way, but not for ever.
    async fn end_one(&self, vdi: &Vdi, under_way: &mut Writes) -> Result<(), AdminError> {
        match tokio::time::timeout(PATIENCE, under_way.next()).await {
            Ok(done) => outcome(vdi, done).map(drop),
            Err(_) => Err(self.waits(vdi).await),
        }
    }
}

type Writes = FuturesUnordered<JoinHandle<Result<Done, IoError>>>;

/// What became of a request; its task only ends early with the process.
fn outcome(vdi: &Vdi, done: Option<Result<Result<Done, IoError>, JoinError>>) -> Result<Done, AdminError> {
    let failed = |e| error::io(vdi.name.as_str(), e);
    match done {
        Some(Ok(done)) => done.map_err(failed),
        Some(Err(_)) | None => Err(failed(IoError::Shutdown)),
    }
}

/// What became of a part that did not come: whatever has no other name is one that cannot be decoded.
fn unread(status: &Status) -> AdminError {
    match AdminError::from(status) {
        error if error.kind == ErrorKind::Unspecified => AdminError { kind: ErrorKind::Invalid, ..error },
        error => error,
    }
}

/// The client's next part; `None` at the end.
async fn next_part(
    parts: &mut Streaming<WriteVdiRequest>,
) -> Result<Option<write_vdi_request::Part>, AdminError> {
    let message = match tokio::time::timeout(CLIENT_PATIENCE, parts.message()).await {
        Ok(message) => message.map_err(|status: Status| unread(&status))?,
        Err(_) => return Err(AdminError::new(ErrorKind::Refused, "the client sent nothing for too long")),
    };
    match message {
        None => Ok(None),
        Some(WriteVdiRequest { part: Some(part) }) => Ok(Some(part)),
        Some(WriteVdiRequest { part: None }) => {
            Err(AdminError::new(ErrorKind::Unsupported, "a part of the write is of a kind not known here"))
        }
    }
}

/// Where a part ends, and the requests that it takes.
fn requests(vdi: &Vdi, at: u64, part: write_vdi_request::Part) -> Result<(u64, Vec<Io>), AdminError> {
    use write_vdi_request::Part;
    let within = |len: u64| {
        let end = at.checked_add(len).filter(|end| *end <= vdi.size);
        end.ok_or_else(|| error::beyond_end(vdi.name.as_str(), vdi.size))
    };
    match part {
        Part::Start(_) => {
            Err(AdminError::new(ErrorKind::Invalid, "a write has one start message, at its beginning"))
        }
        Part::Data(data) if data.len() > CHUNK_LEN_MAX => Err(AdminError::new(
            ErrorKind::Invalid,
            format!("a part of {} bytes: at most {CHUNK_LEN_MAX} are taken", data.len()),
        )),
        Part::Data(data) => {
            let end = within(data.len() as u64)?;
            let mut rest = data;
            let ios = chunks(at..end).map(|chunk| {
                // A part is shorter than a usize, and so is every piece of it.
                let piece = rest.split_to((chunk.end - chunk.start) as usize);
                Io::Write { offset: chunk.start, payload: Payload::new(chunk.start, piece), fua: false }
            });
            let ios = ios.collect();
            Ok((end, ios))
        }
        Part::Hole(len) => {
            let end = within(len)?;
            let zero = Io::Zero { offset: at, len, punch: true, fua: false };
            Ok((end, if len == 0 { Vec::new() } else { vec![zero] }))
        }
    }
}

#[cfg(test)]
mod tests {
    use write_vdi_request::Part;

    use super::super::nodes::tests::{apply, founded};
    use super::*;
    use crate::cluster::entry::ClusterEntry;

    fn vdi(size: u64) -> Vdi {
        let name: wire::name::VdiName = "v".parse().expect("a name");
        let create = ClusterEntry::CreateVdi { name: name.clone(), size, copies: None, now_ms: 1 };
        apply(founded(1, 1), &create).vdi_named(&name).expect("created").clone()
    }

    #[test]
    fn a_range_is_cut_at_chunk_borders() {
        let cut: Vec<_> = chunks(CHUNK - 1..2 * CHUNK + 5).collect();
        assert_eq!(cut, [CHUNK - 1..CHUNK, CHUNK..2 * CHUNK, 2 * CHUNK..2 * CHUNK + 5]);
        assert_eq!(chunks(7..7).count(), 0);
        assert_eq!(chunks(u64::MAX - 1..u64::MAX).count(), 1);
    }

    #[test]
    fn parts_become_requests_that_follow_each_other() {
        let vdi = vdi(8 << 20);
        let data = Part::Data(vec![1; CHUNK_LEN_MAX].into());
        let (end, ios) = requests(&vdi, 10, data).expect("fits");
        assert_eq!(end, 10 + CHUNK);
        let offsets: Vec<(u64, usize)> = ios
            .iter()
            .map(|io| match io {
                Io::Write { offset, payload, fua: false } => (*offset, payload.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(offsets, [(10, CHUNK_LEN_MAX - 10), (CHUNK, 10)]);
        let (end, ios) = requests(&vdi, 10, Part::Hole(5)).expect("fits");
        assert_eq!((end, ios.len()), (15, 1));
    }

    #[test]
    fn a_part_that_cannot_be_decoded_is_invalid_and_a_client_that_left_is_not() {
        assert_eq!(unread(&Status::internal("failed to decode")).kind, ErrorKind::Invalid);
        assert_eq!(unread(&Status::cancelled("gone")).kind, ErrorKind::Unavailable);
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let vdi = vdi(1 << 20);
        let kind = |at, part| requests(&vdi, at, part).expect_err("does not fit").kind;
        assert_eq!(kind(1 << 20, Part::Data(vec![0; 1].into())), ErrorKind::Invalid);
        assert_eq!(kind(0, Part::Data(vec![0; CHUNK_LEN_MAX + 1].into())), ErrorKind::Invalid);
        assert_eq!(kind(5, Part::Hole(u64::MAX)), ErrorKind::Invalid);
        assert_eq!(kind(0, Part::Start(Default::default())), ErrorKind::Invalid);
    }
}
