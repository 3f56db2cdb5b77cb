//! Replica requests from the wire: decode, do, answer. Malformed ones are answered "invalid".
//!
//! Writes and cached reads run on the caller's thread, in order; what may wait for the disk goes to the
//! blocking pool.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use prost::Message;
use wire::frame::Payload;
use wire::id::VdiId;
use wire::peer::{
    CatchUpRequest, ListVdiRequest, ObjectRequest, PatchRequest, ReadReply, Status, VdiRequest, WriteRequest,
    op,
};

use super::{Replica, key_of};
use crate::store::{self, BlockEntry, ReadOut, Segment};

/// Objects in one answer of LIST_SLOT and LIST_VDI.
const LIST_MAX: usize = 4096;
/// Objects, and requests, in one answer of SEAL.
const SEAL_PART: usize = 4096;

/// Does `op` and calls `done` once, perhaps on another thread. Called in the order of arrival.
pub(crate) fn serve(
    replica: &Arc<Replica>,
    op: u16,
    meta: Bytes,
    payload: Payload,
    done: impl FnOnce(Status, Bytes, Payload) + Send + 'static,
) {
    match op {
        op::WRITE => {
            let Ok(request) = WriteRequest::decode(meta) else { return invalid(done) };
            let (data, crcs) = payload.into_parts();
            replica.write(request, data, crcs, |result| reply(done, result));
        }
        op::CREATE => {
            let Ok(request) = ObjectRequest::decode(meta) else { return invalid(done) };
            replica.create(request.fence, request.object, |result| reply_empty(done, result));
        }
        op::REMOVE => {
            let Ok(request) = ObjectRequest::decode(meta) else { return invalid(done) };
            replica.remove(request.fence, request.object, |result| reply_empty(done, result));
        }
        op::READ => read(replica, meta, done),
        op::PATCH => {
            let Ok(request) = PatchRequest::decode(meta) else { return invalid(done) };
            let Ok(key) = key_of(&request.object) else { return invalid(done) };
            let own = replica.clone();
            replica.lanes.submit(key, false, move || reply_empty(done, own.patch(&request, &payload)));
        }
        op::LEND => {
            let Ok(request) = CatchUpRequest::decode(meta) else { return invalid(done) };
            let Some(Ok(key)) = request.object.as_ref().map(key_of) else { return invalid(done) };
            let own = replica.clone();
            replica.lanes.submit(key, false, move || reply(done, own.borrow(&request, &key, &payload)));
        }
        op::PULL => {
            let Ok(request) = CatchUpRequest::decode(meta) else { return invalid(done) };
            let Some(Ok(key)) = request.object.as_ref().map(key_of) else { return invalid(done) };
            let own = replica.clone();
            // In the object's lane, so that the copy is one of a moment between two writes.
            replica.lanes.submit(key, false, move || match own.pull(&request, &key) {
                Ok((meta, payload)) => done(Status::Ok, meta.encode_to_vec().into(), payload),
                Err(status) => done(status, Bytes::new(), Payload::empty()),
            });
        }
        _ => {
            let replica = replica.clone();
            crate::machine::blocking(move || match ask(&replica, op, meta) {
                Ok(meta) => done(Status::Ok, meta, Payload::empty()),
                Err(status) => done(status, Bytes::new(), Payload::empty()),
            });
        }
    }
}

fn invalid(done: impl FnOnce(Status, Bytes, Payload)) {
    done(Status::Invalid, Bytes::new(), Payload::empty());
}

fn reply<M: Message>(done: impl FnOnce(Status, Bytes, Payload), result: Result<M, Status>) {
    match result {
        Ok(message) => done(Status::Ok, message.encode_to_vec().into(), Payload::empty()),
        Err(status) => done(status, Bytes::new(), Payload::empty()),
    }
}

fn reply_empty(done: impl FnOnce(Status, Bytes, Payload), result: Result<(), Status>) {
    done(result.err().unwrap_or(Status::Ok), Bytes::new(), Payload::empty());
}

/// Requests whose answer is a message alone. Blocks.
fn ask(replica: &Replica, op: u16, meta: Bytes) -> Result<Bytes, Status> {
    fn decode<M: Message + Default>(meta: Bytes) -> Result<M, Status> {
        M::decode(meta).map_err(|_| Status::Invalid)
    }
    fn encode(message: impl Message) -> Bytes {
        message.encode_to_vec().into()
    }
    match op {
        op::STAT => {
            let request: ObjectRequest = decode(meta)?;
            let key = replica.check_read(&request.fence, &request.object)?;
            let version = replica.store.version(&key).map_err(|e| replica.status(e))?;
            Ok(encode(wire::peer::VersionRef::from(version)))
        }
        op::SEAL => replica.seal(&decode(meta)?, SEAL_PART).map(encode),
        op::SETTLED => replica.settled(&decode::<VdiRequest>(meta)?.fence).map(|()| Bytes::new()),
        op::FLUSH => replica.flush(&decode::<VdiRequest>(meta)?.fence).map(|()| Bytes::new()),
        op::TABLE => {
            let request: ObjectRequest = decode(meta)?;
            replica.table(&request.fence, &request.object).map(encode)
        }
        op::CONFIRM => {
            let request: ObjectRequest = decode(meta)?;
            replica.confirm(&request.fence, &request.object).map(|()| Bytes::new())
        }
        op::VERIFY => {
            let request: ObjectRequest = decode(meta)?;
            let key = replica.check_read(&request.fence, &request.object)?;
            replica.verify(&key).map(encode)
        }
        op::LIST_SLOT => replica.list_slot(&decode::<CatchUpRequest>(meta)?, LIST_MAX).map(encode),
        op::LIST_VDI => {
            let request: ListVdiRequest = decode(meta)?;
            let after = request.after.map(|o| (o.oid(), o.birth()));
            replica.list_vdi(VdiId(request.vdi), after, LIST_MAX).map(encode)
        }
        _ => Err(Status::Invalid),
    }
}

/// Reads at once from the page cache, else on the blocking pool.
fn read(replica: &Arc<Replica>, meta: Bytes, done: impl FnOnce(Status, Bytes, Payload) + Send + 'static) {
    let Ok(request) = ObjectRequest::decode(meta) else { return invalid(done) };
    let key = match replica.check_read(&request.fence, &request.object) {
        Ok(key) => key,
        Err(status) => return done(status, Bytes::new(), Payload::empty()),
    };
    replica.counters.reads.fetch_add(1, Ordering::Relaxed);
    replica.counters.bytes_read.fetch_add(request.len.into(), Ordering::Relaxed);
    let (offset, len) = (u64::from(request.offset), request.len);
    if let Some(result) = replica.store.read_nowait(&key, offset, len) {
        return answer_read(replica, offset, result, done);
    }
    let replica = replica.clone();
    crate::machine::blocking(move || {
        let result = replica.store.read(&key, offset, len);
        answer_read(&replica, offset, result, done);
    });
}

fn answer_read(
    replica: &Replica,
    offset: u64,
    result: Result<ReadOut, store::Error>,
    done: impl FnOnce(Status, Bytes, Payload),
) {
    match result {
        Err(error) => done(replica.status(error), Bytes::new(), Payload::empty()),
        Ok(out) => {
            let (reply, payload) = pack(offset, out.segments);
            done(Status::Ok, reply.encode_to_vec().into(), payload);
        }
    }
}

/// Data and holes in turn, and the data of all runs one after the other.
pub(crate) fn pack(offset: u64, mut segments: Vec<Segment>) -> (ReadReply, Payload) {
    if segments.len() == 1
        && let Some(Segment::Data { data, crcs }) = segments.pop_if(|s| matches!(s, Segment::Data { .. }))
    {
        // The checksums go on from the disk to whoever asked.
        let reply = ReadReply { runs: vec![data.len() as u32] };
        let payload = Payload::with_crcs(offset, data.clone(), crcs);
        return (reply, payload.unwrap_or_else(|| Payload::new(offset, data)));
    }
    let mut runs = Vec::new();
    let mut bytes = BytesMut::new();
    for segment in &segments {
        let is_data_turn = runs.len() % 2 == 0;
        match segment {
            Segment::Data { data, .. } => {
                bytes.extend_from_slice(data);
                push_run(&mut runs, is_data_turn, data.len() as u32);
            }
            Segment::Hole(len) => push_run(&mut runs, !is_data_turn, *len as u32),
        }
    }
    (ReadReply { runs }, Payload::new(0, bytes.freeze()))
}

/// Adds a run whose turn it is, or puts one of length 0 in between; two of a kind are joined.
fn push_run(runs: &mut Vec<u32>, its_turn: bool, len: u32) {
    if its_turn {
        runs.push(len);
    } else if let Some(last) = runs.last_mut() {
        *last += len;
    } else {
        runs.extend([0, len]);
    }
}

/// Undoes `pack`. `None` if the runs do not fit the data or the length.
pub(crate) fn unpack(reply: &ReadReply, data: &Bytes, len: u32) -> Option<Vec<Segment>> {
    let mut segments = Vec::with_capacity(reply.runs.len());
    let (mut at, mut total) = (0usize, 0u64);
    for (i, run) in reply.runs.iter().enumerate() {
        total += u64::from(*run);
        if *run == 0 {
            continue;
        }
        if i % 2 == 0 {
            let end = at.checked_add(*run as usize).filter(|end| *end <= data.len())?;
            let data = data.slice(at..end);
            segments.push(Segment::Data { crcs: Vec::new(), data });
            at = end;
        } else {
            segments.push(Segment::Hole(u64::from(*run)));
        }
    }
    (total == u64::from(len) && at == data.len()).then_some(segments)
}

/// `index, crc, stamp` in turn.
pub(crate) fn unpack_blocks(packed: &[u32]) -> impl Iterator<Item = (u32, BlockEntry)> + '_ {
    packed.chunks_exact(3).map(|b| (b[0], BlockEntry { crc: b[1], stamp: b[2] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_say_where_the_holes_are() {
        let data = |n: usize| Segment::Data { data: Bytes::from(vec![1; n]), crcs: Vec::new() };
        for segments in [
            vec![data(10)],
            vec![Segment::Hole(5)],
            vec![Segment::Hole(5), data(3), Segment::Hole(2), data(4)],
            vec![data(3), Segment::Hole(2)],
        ] {
            let len = segments.iter().map(|s| s.len() as u32).sum();
            let (reply, payload) = pack(0, segments.clone());
            assert_eq!(unpack(&reply, payload.data(), len), Some(segments));
            assert_eq!(unpack(&reply, payload.data(), len + 1), None);
        }
        let lying = ReadReply { runs: vec![u32::MAX, 1] };
        assert_eq!(unpack(&lying, &Bytes::new(), 0), None);
    }
}
