//! What an owner and those who catch up ask of a replica: objects, their versions and their bytes.

use super::{Fence, ObjectRef, RequestId, VersionRef};

/// How a write changes its range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum WriteKind {
    /// The payload's bytes.
    Data = 0,
    /// Zeros that keep their space.
    Zero = 1,
    /// Zeros that give their space back.
    Punch = 2,
}

/// A request about one object: CREATE, READ, STAT, TABLE, REMOVE, CONFIRM, VERIFY.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct ObjectRequest {
    /// Who asks under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
    /// The object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// READ: offset in bytes.
    #[prost(uint32, tag = "3")]
    pub offset: u32,
    /// READ: length in bytes.
    #[prost(uint32, tag = "4")]
    pub len: u32,
}

/// WRITE.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct WriteRequest {
    /// Who writes under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
    /// The object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// The write before this one.
    #[prost(message, required, tag = "3")]
    pub predecessor: VersionRef,
    /// This write.
    #[prost(message, required, tag = "4")]
    pub version: VersionRef,
    /// Offset in bytes.
    #[prost(uint32, tag = "5")]
    pub offset: u32,
    /// Length in bytes.
    #[prost(uint32, tag = "6")]
    pub len: u32,
    /// What it does.
    #[prost(enumeration = "WriteKind", tag = "7")]
    pub kind: i32,
    /// The client request it is part of; absent for the owner's own.
    #[prost(message, optional, tag = "8")]
    pub request: Option<RequestId>,
    /// The write's number within the generation, over all objects of the VDI.
    #[prost(uint64, tag = "9")]
    pub number: u64,
    /// All writes of the generation below this number are done and answered.
    #[prost(uint64, tag = "10")]
    pub stable: u64,
    /// What earlier generations left has been dealt with too.
    #[prost(bool, tag = "11")]
    pub inherited_done: bool,
}

/// Whether a replica that has answered also has the bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct WriteReply {
    /// The copy's version.
    #[prost(message, required, tag = "1")]
    pub version: VersionRef,
    /// The copy is catching up and will fetch this write with the rest.
    #[prost(bool, tag = "2")]
    pub deferred: bool,
}

/// READ's answer: which parts of the range are holes; the rest is in the payload.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ReadReply {
    /// Lengths of data and holes in turn, starting with data (perhaps of length 0).
    #[prost(uint32, repeated, tag = "1")]
    pub runs: Vec<u32>,
}

/// SETTLED, FLUSH.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiRequest {
    /// Who asks under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
}

/// SEAL: also tells, in parts, what may differ between copies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct SealRequest {
    /// Who asks under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
    /// Unsettled objects after this one, by oid and birth; absent for those from the first.
    #[prost(message, optional, tag = "2")]
    pub after_object: Option<ObjectRef>,
    /// Applied requests after this write: its generation.
    #[prost(fixed64, tag = "3")]
    pub after_generation: u64,
    /// And its number in it.
    #[prost(uint64, tag = "4")]
    pub after_number: u64,
}

/// An object that may not be the same on all copies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Unsettled {
    /// The object.
    #[prost(message, required, tag = "1")]
    pub object: ObjectRef,
    /// The copy's version.
    #[prost(message, required, tag = "2")]
    pub version: VersionRef,
    /// The copy may have torn blocks: compare the bytes, not only the version.
    #[prost(bool, tag = "3")]
    pub suspect: bool,
}

/// SEAL's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct SealReply {
    /// Objects written since the owner's last stable mark, and suspect ones.
    #[prost(message, repeated, tag = "1")]
    pub unsettled: Vec<Unsettled>,
    /// Client requests that were applied and may not have been answered.
    #[prost(message, repeated, tag = "2")]
    pub applied: Vec<AppliedRequest>,
    /// There is more of either after what this answer holds.
    #[prost(bool, tag = "3")]
    pub more: bool,
    /// Where the next part of the applied requests begins: as in the request.
    #[prost(fixed64, tag = "4")]
    pub generation: u64,
    /// And the number.
    #[prost(uint64, tag = "5")]
    pub number: u64,
}

/// A client request whose write to one object was applied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct AppliedRequest {
    /// The request.
    #[prost(message, required, tag = "1")]
    pub request: RequestId,
    /// The object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// Offset within the object: a request may touch one object once only, but a trim may be split.
    #[prost(uint32, tag = "3")]
    pub offset: u32,
    /// The write's version.
    #[prost(message, required, tag = "4")]
    pub version: VersionRef,
    /// The write's number within its generation, over all objects of the VDI.
    #[prost(uint64, tag = "5")]
    pub number: u64,
}

/// Client requests applied to one object.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct AppliedList {
    /// All of them.
    #[prost(message, repeated, tag = "1")]
    pub applied: Vec<AppliedRequest>,
}

/// TABLE's answer: the version, and crc and stamp of every block in turn.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct TableReply {
    /// The copy's version.
    #[prost(message, required, tag = "1")]
    pub version: VersionRef,
    /// `crc, stamp` of each block.
    #[prost(fixed32, repeated, tag = "2")]
    pub entries: Vec<u32>,
    /// Blocks whose bytes do not match their checksum; only looked for where the copy is suspect. VERIFY's answer:
    /// all of them, and those whose entries on disk are not those in use.
    #[prost(uint32, repeated, tag = "3")]
    pub damaged: Vec<u32>,
    /// VERIFY's answer: whether the file on disk is the one in use.
    #[prost(enumeration = "OnDisk", tag = "4")]
    pub on_disk: i32,
}

/// Whether the file under an object's name is the one that its node has open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum OnDisk {
    /// It is.
    Same = 0,
    /// There is no such file any more.
    Gone = 1,
    /// It is another one, or its header or version are not those in use.
    Other = 2,
}

/// PATCH: blocks of an object as the settled copy has them. The payload holds the present ones in order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PatchRequest {
    /// Who asks under which right.
    #[prost(message, required, tag = "1")]
    pub fence: Fence,
    /// The object.
    #[prost(message, required, tag = "2")]
    pub object: ObjectRef,
    /// The version the copy has afterwards.
    #[prost(message, required, tag = "3")]
    pub version: VersionRef,
    /// `index, crc, stamp` of each block.
    #[prost(fixed32, repeated, tag = "4")]
    pub blocks: Vec<u32>,
    /// Blocks that are torn on every copy: keep what is there and take its checksum.
    #[prost(uint32, repeated, tag = "5")]
    pub accept: Vec<u32>,
    /// The client requests that this copy has applied and that may come again, if the owner knows better.
    #[prost(message, optional, tag = "6")]
    pub applied: Option<AppliedList>,
}

/// LIST_SLOT, PULL and LEND: from who catches up to an in-sync holder.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct CatchUpRequest {
    /// The start counter of the session asked.
    #[prost(uint64, tag = "1")]
    pub to_start: u64,
    /// The policy.
    #[prost(uint32, tag = "2")]
    pub copies: u32,
    /// The slot.
    #[prost(uint32, tag = "3")]
    pub slot: u32,
    /// The holder must have seen this configuration, so that whatever it takes from now on is sent to the
    /// asker too.
    #[prost(uint64, tag = "4")]
    pub since: u64,
    /// The log index the holder must have applied.
    #[prost(uint64, tag = "5")]
    pub applied: u64,
    /// PULL: the object.
    #[prost(message, optional, tag = "6")]
    pub object: Option<ObjectRef>,
    /// PULL: the holder's version must be at least this.
    #[prost(message, optional, tag = "7")]
    pub at_least: Option<VersionRef>,
    /// PULL: the asker's `crc, stamp` of each block; empty if it has nothing to compare.
    #[prost(fixed32, repeated, tag = "8")]
    pub entries: Vec<u32>,
    /// LIST_SLOT: only objects after this oid and birth.
    #[prost(message, optional, tag = "9")]
    pub after: Option<ObjectRef>,
    /// PULL: the asker may have what is damaged at the holder, and is to be told which blocks that are.
    #[prost(bool, tag = "10")]
    pub lends: bool,
    /// LEND: `index, crc, stamp` of each block; the payload holds the present ones in order.
    #[prost(fixed32, repeated, tag = "11")]
    pub lent: Vec<u32>,
}

/// PULL's answer; the payload holds the present blocks in order.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct PullReply {
    /// The version of the copy taken.
    #[prost(message, required, tag = "1")]
    pub version: VersionRef,
    /// `index, crc, stamp` of each block that differs.
    #[prost(fixed32, repeated, tag = "2")]
    pub blocks: Vec<u32>,
    /// There is more: ask again with what has come.
    #[prost(bool, tag = "3")]
    pub more: bool,
    /// Nothing was copied, because these blocks are damaged: lend them, then ask again.
    #[prost(uint32, repeated, tag = "4")]
    pub damaged: Vec<u32>,
    /// With the last part: the client requests that the copy has applied and that may come again.
    #[prost(message, repeated, tag = "5")]
    pub applied: Vec<AppliedRequest>,
}

/// LEND's answer.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct LendReply {
    /// How many blocks were damaged and are mended.
    #[prost(uint32, tag = "1")]
    pub taken: u32,
}

/// An object and its version.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct Listed {
    /// The object.
    #[prost(message, required, tag = "1")]
    pub object: ObjectRef,
    /// The copy's version.
    #[prost(message, required, tag = "2")]
    pub version: VersionRef,
}

/// LIST_SLOT's and LIST_VDI's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListReply {
    /// The objects, in order.
    #[prost(message, repeated, tag = "1")]
    pub objects: Vec<Listed>,
    /// There are more after the last.
    #[prost(bool, tag = "2")]
    pub more: bool,
}

/// LIST_VDI.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ListVdiRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// Only objects after this one.
    #[prost(message, optional, tag = "2")]
    pub after: Option<ObjectRef>,
}
