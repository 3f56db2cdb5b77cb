//! The bytes of what the log sends and stores. If one changes, its version must change too and the old form
//! must still be read.

use std::collections::BTreeSet;
use std::time::Duration;

use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, VoteRequest, VoteResponse};
use openraft::{CommittedLeaderId, EntryPayload, StoredMembership};
use serde::Serialize;
use serde::de::DeserializeOwned;
use wire::id::NodeId;

use super::super::blob::Blob;
use super::super::codec::{self, RecordKind};
use super::super::rpc::{
    BarrierAnswer, CanvassAnswer, CanvassRequest, ProposeAnswer, ProposeRequest, SucceedRequest,
};
use super::super::store::{META_COMMITTED, META_OWNER, META_PURGED, META_VOTE, SnapshotHeader};
use super::super::transfer::{Piece, PieceAnswer};
use super::super::types::{Entry, LogId, SnapshotMeta, Types, Vote};

/// `message` has exactly these bytes, and they are read as it.
#[track_caller]
pub(super) fn check<T: Serialize + DeserializeOwned>(message: &T, golden: &[u8]) {
    assert_bytes(&codec::encode(message), golden);
    let back: T = codec::decode(golden).expect("readable");
    assert_bytes(&codec::encode(&back), golden);
}

/// As text, so that a difference can be read.
#[track_caller]
fn assert_bytes(bytes: &[u8], golden: &[u8]) {
    assert_eq!(bytes.escape_ascii().to_string(), golden.escape_ascii().to_string());
}

#[track_caller]
fn check_record<T: Serialize + DeserializeOwned>(kind: RecordKind, key: u64, value: &T, golden: &[u8]) {
    assert_bytes(&codec::seal(kind, key, &codec::encode(value)), golden);
    let payload = codec::unseal(kind, key, golden).expect("whole");
    check(value, payload);
}

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(3, 255), index)
}

fn vote() -> Vote {
    Vote::new_committed(3, 255)
}

fn entry(index: u64, payload: EntryPayload<Types>) -> Entry {
    Entry { log_id: log_id(index), payload }
}

fn normal() -> EntryPayload<Types> {
    EntryPayload::Normal(Blob::from(vec![1, 0x81, 0xa1, b'k', b'v']))
}

fn membership() -> openraft::Membership<u64, openraft::EmptyNode> {
    let voters = [1, 2, 3].into();
    let learners: BTreeSet<u64> = [4].into();
    openraft::Membership::new(vec![voters], learners)
}

fn snapshot_meta() -> SnapshotMeta {
    let last_membership = StoredMembership::new(Some(log_id(5)), membership());
    SnapshotMeta { last_log_id: Some(log_id(7)), last_membership, snapshot_id: "7".to_owned() }
}

#[test]
fn appends_keep_their_bytes() {
    let request = AppendEntriesRequest::<Types> {
        vote: vote(),
        prev_log_id: Some(log_id(6)),
        entries: vec![
            entry(7, EntryPayload::Blank),
            entry(8, normal()),
            entry(9, EntryPayload::Membership(membership())),
        ],
        leader_commit: Some(log_id(5)),
    };
    check(
        &request,
        b"\
        \x01\x84\xa4vote\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa9committed\
        \xc3\xabprev_log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\x06\xa7entries\
        \x93\x82\xa6log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\x07\xa7payload\
        \xa5Blank\x82\xa6log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\
        \x08\xa7payload\x81\xa6Normal\xc4\x05\x01\x81\xa1kv\x82\xa6log_id\x82\xa9leader_id\x82\xa4term\
        \x03\xa7node_id\xcc\xff\xa5index\t\xa7payload\x81\xaaMembership\x82\xa7configs\
        \x91\x93\x01\x02\x03\xa5nodes\x84\x01\x80\x02\x80\x03\x80\x04\x80\xadleader_commit\
        \x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\x05",
    );
    check(&AppendEntriesResponse::<u64>::Success, b"\x01\xa7Success");
    check(
        &AppendEntriesResponse::PartialSuccess(Some(log_id(7))),
        b"\x01\x81\xaePartialSuccess\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\x07",
    );
    check(&AppendEntriesResponse::<u64>::Conflict, b"\x01\xa8Conflict");
    check(
        &AppendEntriesResponse::HigherVote(vote()),
        b"\x01\x81\xaaHigherVote\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa9committed\xc3",
    );
}

#[test]
fn votes_keep_their_bytes() {
    check(
        &VoteRequest { vote: Vote::new(4, 2), last_log_id: Some(log_id(7)) },
        b"\
        \x01\x82\xa4vote\x82\xa9leader_id\x82\xa4term\x04\xa7node_id\x02\xa9committed\xc2\xablast_log_id\
        \x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\x07",
    );
    let answer = VoteResponse { vote: Vote::new(4, 2), vote_granted: true, last_log_id: Some(log_id(7)) };
    check(
        &answer,
        b"\
        \x01\x83\xa4vote\x82\xa9leader_id\x82\xa4term\x04\xa7node_id\x02\xa9committed\
        \xc2\xacvote_granted\xc3\xablast_log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\
        \xcc\xff\xa5index\x07",
    );
    check(
        &CanvassRequest { candidate: NodeId(2), last: Some(log_id(7)) },
        b"\
        \x01\x82\xa9candidate\x02\xa4last\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\
        \x07",
    );
    check(&CanvassAnswer { yes: true }, b"\x01\x81\xa3yes\xc3");
    check(&SucceedRequest { leaving: NodeId(2) }, b"\x01\x81\xa7leaving\x02");
    check(&(), b"\x01\xc0");
}

#[test]
fn pieces_of_a_snapshot_keep_their_bytes() {
    let bytes = Blob::from(b"piece".to_vec());
    let piece = Piece { vote: vote(), meta: snapshot_meta(), len: 0x1_0000, offset: 0x100, bytes };
    check(
        &piece,
        b"\
        \x01\x85\xa4vote\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa9committed\xc3\xa4meta\
        \x83\xablast_log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\
        \x07\xaflast_membership\x82\xa6log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\
        \xcc\xff\xa5index\x05\xaamembership\x82\xa7configs\x91\x93\x01\x02\x03\xa5nodes\
        \x84\x01\x80\x02\x80\x03\x80\x04\x80\xabsnapshot_id\xa17\xa3len\xce\x00\x01\x00\x00\xa6offset\
        \xcd\x01\x00\xa5bytes\xc4\x05piece",
    );
    check(&PieceAnswer::Want(0x200), b"\x01\x81\xa4Want\xcd\x02\x00");
    check(
        &PieceAnswer::Done(vote()),
        b"\x01\x81\xa4Done\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa9committed\xc3",
    );
}

#[test]
fn proposals_keep_their_bytes() {
    let request = ProposeRequest { entry: Blob::from(b"entry".to_vec()), wait: Duration::new(2, 500) };
    check(&request, b"\x01\x82\xa5entry\xc4\x05entry\xa4wait\x82\xa4secs\x02\xa5nanos\xcd\x01\xf4");
    check(
        &ProposeAnswer::Applied { index: 7, reply: Blob::from(b"reply".to_vec()) },
        b"\x01\x81\xa7Applied\x82\xa5index\x07\xa5reply\xc4\x05reply",
    );
    check(&ProposeAnswer::NotLeader, b"\x01\xa9NotLeader");
    check(&ProposeAnswer::Refused("why".to_owned()), b"\x01\x81\xa7Refused\xa3why");
    check(&ProposeAnswer::Timeout, b"\x01\xa7Timeout");
    check(&ProposeAnswer::Stopped("why".to_owned()), b"\x01\x81\xa7Stopped\xa3why");
    check(&BarrierAnswer::Index(7), b"\x01\x81\xa5Index\x07");
    check(&BarrierAnswer::NotLeader, b"\x01\xa9NotLeader");
}

#[test]
fn stored_entries_keep_their_bytes() {
    check_record(
        RecordKind::Entry,
        7,
        &entry(7, normal()),
        b"\
        \x01\xe5!\xa4B\x01\x82\xa6log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\
        \x07\xa7payload\x81\xa6Normal\xc4\x05\x01\x81\xa1kv",
    );
    check_record(
        RecordKind::Entry,
        7,
        &entry(7, EntryPayload::Blank),
        b"\
        \x01\xf3\x97\xc7$\x01\x82\xa6log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\
        \x07\xa7payload\xa5Blank",
    );
    let members = entry(7, EntryPayload::Membership(membership()));
    check_record(
        RecordKind::Entry,
        7,
        &members,
        b"\
        \x01\xad\xb3<\x92\x01\x82\xa6log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\
        \x07\xa7payload\x81\xaaMembership\x82\xa7configs\x91\x93\x01\x02\x03\xa5nodes\
        \x84\x01\x80\x02\x80\x03\x80\x04\x80",
    );
}

#[test]
fn stored_marks_and_descriptions_keep_their_bytes() {
    check_record(RecordKind::Meta, META_OWNER, &NodeId(255), b"\x01\xdb>g\xc5\x01\xcc\xff");
    check_record(
        RecordKind::Meta,
        META_VOTE,
        &vote(),
        b"\x01\xe0\xeb%\x9b\x01\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa9committed\xc3",
    );
    check_record(
        RecordKind::Meta,
        META_COMMITTED,
        &log_id(7),
        b"\x01\xd1t7\xde\x01\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\x07",
    );
    check_record(
        RecordKind::Meta,
        META_PURGED,
        &log_id(7),
        b"\x01\xeePf\xbe\x01\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\xcc\xff\xa5index\x07",
    );
    let header = SnapshotHeader { meta: snapshot_meta(), len: 0x1_0000 };
    check_record(
        RecordKind::Snapshot,
        0,
        &header,
        b"\
        \x012t\xb2\xeb\x01\x82\xa4meta\x83\xablast_log_id\x82\xa9leader_id\x82\xa4term\x03\xa7node_id\
        \xcc\xff\xa5index\x07\xaflast_membership\x82\xa6log_id\x82\xa9leader_id\x82\xa4term\
        \x03\xa7node_id\xcc\xff\xa5index\x05\xaamembership\x82\xa7configs\x91\x93\x01\x02\x03\xa5nodes\
        \x84\x01\x80\x02\x80\x03\x80\x04\x80\xabsnapshot_id\xa17\xa3len\xce\x00\x01\x00\x00",
    );
    assert_bytes(&codec::seal(RecordKind::Snapshot, 1, b"piece"), b"\x01\x0e\x8b\x1b\xb3piece");
}
