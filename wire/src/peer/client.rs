//! What gateways and a VDI's owner ask each other for clients: opening, reading, writing, closing.

use super::{RequestId, SessionRef};

/// OPEN, CLOSE, RELEASE and VDI_INFO: a client's connection to a VDI, or the VDI alone.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct OpenRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// The generation the asker takes the receiver to own it under.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// The gateway's number of the connection.
    #[prost(uint64, tag = "3")]
    pub connection: u64,
    /// The client's address.
    #[prost(string, tag = "4")]
    pub client: String,
    /// The client's name, if it gave one.
    #[prost(string, tag = "5")]
    pub attach_client: String,
    /// Its attach generation.
    #[prost(uint64, tag = "6")]
    pub attach_generation: u64,
    /// The gateway's session.
    #[prost(message, required, tag = "7")]
    pub gateway: SessionRef,
}

/// VDI_READ, VDI_WRITE, VDI_FLUSH, VDI_ZERO, VDI_STATUS.
#[derive(Clone, Copy, PartialEq, Eq, Hash, prost::Message)]
pub struct VdiIoRequest {
    /// The VDI.
    #[prost(uint64, tag = "1")]
    pub vdi: u64,
    /// The generation the asker takes the receiver to own it under.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// The gateway's number of the connection.
    #[prost(uint64, tag = "3")]
    pub connection: u64,
    /// The request; a retry has the same.
    #[prost(message, required, tag = "4")]
    pub request: RequestId,
    /// Every request of the gateway to this VDI below this number has been answered to its client.
    #[prost(uint64, tag = "5")]
    pub answered: u64,
    /// Offset in bytes.
    #[prost(uint64, tag = "6")]
    pub offset: u64,
    /// Length in bytes.
    #[prost(uint64, tag = "7")]
    pub len: u64,
    /// To be durable when answered.
    #[prost(bool, tag = "8")]
    pub fua: bool,
    /// VDI_ZERO: space may be given back.
    #[prost(bool, tag = "9")]
    pub punch: bool,
    /// The gateway's session, under which the connection is known.
    #[prost(message, required, tag = "10")]
    pub gateway: SessionRef,
}

/// A client's connection as its owner knows it.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Connection {
    /// The gateway's session.
    #[prost(message, required, tag = "1")]
    pub gateway: SessionRef,
    /// The gateway's number of it.
    #[prost(uint64, tag = "2")]
    pub connection: u64,
    /// The client's address.
    #[prost(string, tag = "3")]
    pub client: String,
    /// The client's name, if it gave one.
    #[prost(string, tag = "4")]
    pub attach_client: String,
    /// Its attach generation.
    #[prost(uint64, tag = "5")]
    pub attach_generation: u64,
}

/// VDI_INFO's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct VdiInfoReply {
    /// Allocated objects, if they have been counted.
    #[prost(uint64, optional, tag = "1")]
    pub used_objects: Option<u64>,
    /// Who has the VDI open.
    #[prost(message, repeated, tag = "2")]
    pub connections: Vec<Connection>,
    /// What its I/O waits for, if anything; for people.
    #[prost(string, tag = "3")]
    pub waiting: String,
}

/// VDI_STATUS's answer.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct StatusReply {
    /// Lengths of data and holes in turn, starting with data (perhaps of length 0).
    #[prost(uint64, repeated, tag = "1")]
    pub runs: Vec<u64>,
}

/// ANSWERED.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct AnsweredRequest {
    /// The gateway's process: the start counter with which it began.
    #[prost(uint64, tag = "1")]
    pub process: u64,
    /// The VDI.
    #[prost(uint64, tag = "2")]
    pub vdi: u64,
}

/// ANSWERED's answer.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct AnsweredReply {
    /// Every request of the process to the VDI below this number has been answered to its client.
    #[prost(uint64, tag = "1")]
    pub below: u64,
}
