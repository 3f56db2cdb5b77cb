//! How two sheep introduce themselves to each other.
//!
//! Each side of a new peer connection sends a [`Hello`] as the meta of its first frame, or a
//! [`HelloReject`] that says why it will not talk. Both are protocol buffers, so that fields can be added.

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use bytes::Bytes;
use prost::Message;

use crate::id::{ClusterId, NodeId, Session};

/// The peer protocol versions this code speaks.
pub const PROTOCOL_VERSIONS: RangeInclusive<u32> = 1..=1;

/// One boot of one machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BootId(pub [u8; 16]);

/// What a sheep says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Protocol versions it speaks.
    pub versions: RangeInclusive<u32>,
    /// Optional features it knows, one bit each.
    pub features: u64,
    /// Its ring; none before it is founded.
    pub cluster: Option<ClusterId>,
    /// Which node it is, and the how manieth start of it.
    pub session: Session,
    /// The boot of the machine it runs on.
    pub boot: BootId,
    /// Where peers reach it.
    pub address: SocketAddr,
    /// What the connection is for, as a number that `sheep::peer` gives meaning to.
    pub class: u32,
}

/// Why a hello is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("peer refused the connection: {text} ({code:?})")]
pub struct HelloReject {
    /// For programs.
    pub code: RejectCode,
    /// For people.
    pub text: String,
}

impl HelloReject {
    /// A refusal with a text for people.
    pub fn new(code: RejectCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// Why a hello is refused, for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RejectCode {
    /// Not one of those below; also what a newer peer's codes read as.
    Other = 0,
    /// No protocol version in common.
    Version = 1,
    /// Another ring.
    Cluster = 2,
    /// Another node than the one meant.
    Node = 3,
    /// A start counter lower than one seen before: a restored or copied directory.
    Start = 4,
    /// An unknown connection class.
    Class = 5,
    /// A hello that cannot be read.
    Malformed = 6,
    /// A feature in use that the other side lacks.
    Feature = 7,
}

/// A hello or refusal that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HelloError {
    /// Not a protocol buffer of the right shape.
    #[error("hello cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    /// A field with an impossible value.
    #[error("hello has a bad {field}")]
    Field {
        /// Its name.
        field: &'static str,
    },
}

#[derive(Clone, PartialEq, Message)]
struct HelloMessage {
    #[prost(uint32, tag = "1")]
    version_min: u32,
    #[prost(uint32, tag = "2")]
    version_max: u32,
    #[prost(fixed64, tag = "3")]
    features: u64,
    #[prost(bytes = "bytes", optional, tag = "4")]
    cluster: Option<Bytes>,
    #[prost(fixed64, tag = "5")]
    node: u64,
    #[prost(uint64, tag = "6")]
    start: u64,
    #[prost(bytes = "bytes", tag = "7")]
    boot: Bytes,
    #[prost(string, tag = "8")]
    address: String,
    #[prost(uint32, tag = "9")]
    class: u32,
}

#[derive(Clone, PartialEq, Message)]
struct RejectMessage {
    #[prost(uint32, tag = "1")]
    code: u32,
    #[prost(string, tag = "2")]
    text: String,
}

impl Hello {
    /// The protocol buffer.
    pub fn encode(&self) -> Bytes {
        let message = HelloMessage {
            version_min: *self.versions.start(),
            version_max: *self.versions.end(),
            features: self.features,
            cluster: self.cluster.map(|c| Bytes::copy_from_slice(&c.0.to_be_bytes())),
            node: self.session.node.0,
            start: self.session.start,
            boot: Bytes::copy_from_slice(&self.boot.0),
            address: self.address.to_string(),
            class: self.class,
        };
        message.encode_to_vec().into()
    }

    /// Reads a protocol buffer.
    pub fn decode(bytes: Bytes) -> Result<Self, HelloError> {
        let message = HelloMessage::decode(bytes)?;
        let array =
            |bytes: &Bytes, field| <[u8; 16]>::try_from(&bytes[..]).map_err(|_| HelloError::Field { field });
        let cluster = match &message.cluster {
            None => None,
            Some(bytes) => Some(ClusterId(u128::from_be_bytes(array(bytes, "cluster")?))),
        };
        Ok(Self {
            versions: message.version_min..=message.version_max,
            features: message.features,
            cluster,
            session: Session { node: NodeId(message.node), start: message.start },
            boot: BootId(array(&message.boot, "boot")?),
            address: message.address.parse().map_err(|_| HelloError::Field { field: "address" })?,
            class: message.class,
        })
    }

    /// The highest protocol version both speak.
    pub fn common_version(&self, other: &Self) -> Option<u32> {
        let low = *self.versions.start().max(other.versions.start());
        let high = *self.versions.end().min(other.versions.end());
        (low <= high).then_some(high)
    }
}

impl HelloReject {
    /// The protocol buffer.
    pub fn encode(&self) -> Bytes {
        RejectMessage { code: self.code as u32, text: self.text.clone() }.encode_to_vec().into()
    }

    /// Reads a protocol buffer.
    pub fn decode(bytes: Bytes) -> Result<Self, HelloError> {
        let RejectMessage { code, text } = RejectMessage::decode(bytes)?;
        let code = match code {
            1 => RejectCode::Version,
            2 => RejectCode::Cluster,
            3 => RejectCode::Node,
            4 => RejectCode::Start,
            5 => RejectCode::Class,
            6 => RejectCode::Malformed,
            7 => RejectCode::Feature,
            _ => RejectCode::Other,
        };
        Ok(Self { code, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::hex;

    fn hello() -> Hello {
        Hello {
            versions: 1..=3,
            features: 5,
            cluster: Some(ClusterId(7)),
            session: Session { node: NodeId(9), start: 2 },
            boot: BootId([3; 16]),
            address: "[::1]:7000".parse().expect("an address"),
            class: 2,
        }
    }

    #[test]
    fn a_hello_comes_back_as_it_went() {
        assert_eq!(Hello::decode(hello().encode()), Ok(hello()));
        let unfounded = Hello { cluster: None, ..hello() };
        assert_eq!(Hello::decode(unfounded.encode()), Ok(unfounded));
        let reject = HelloReject::new(RejectCode::Cluster, "another ring");
        assert_eq!(HelloReject::decode(reject.encode()), Ok(reject));
    }

    /// Whatever else changes, releases of any age must be able to read these two.
    #[test]
    fn a_hello_and_a_refusal_keep_their_bytes() {
        let ring = "221000000000000000000000000000000007";
        let (before, after) = (
            "08011003190500000000000000",
            "29090000000000000030023a1003030303030303030303030303030303420a5b3a3a315d3a373030304802",
        );
        assert_eq!(hex(&hello().encode()), [before, ring, after].concat());
        let unfounded = Hello { cluster: None, ..hello() };
        assert_eq!(hex(&unfounded.encode()), [before, after].concat());
        assert_eq!(hex(&HelloReject::new(RejectCode::Feature, "why").encode()), "08071203776879");
    }

    #[test]
    fn codes_of_a_refusal_keep_their_numbers() {
        use RejectCode::*;
        for (number, code) in
            [Other, Version, Cluster, Node, Start, Class, Malformed, Feature].into_iter().enumerate()
        {
            assert_eq!(code as usize, number);
            let reject = HelloReject::new(code, "why");
            assert_eq!(HelloReject::decode(reject.encode()), Ok(reject));
        }
    }

    #[test]
    fn an_unreadable_hello_is_an_error() {
        assert!(matches!(Hello::decode(Bytes::from_static(b"\xff\xff")), Err(HelloError::Decode(_))));
        assert_eq!(Hello::decode(Bytes::new()), Err(HelloError::Field { field: "boot" }));
    }

    #[test]
    fn the_highest_common_version_is_chosen() {
        let speaks = |versions| Hello { versions, ..hello() };
        assert_eq!(speaks(1..=3).common_version(&speaks(2..=5)), Some(3));
        assert_eq!(speaks(1..=3).common_version(&speaks(4..=5)), None);
    }
}
