//! The bytes of a negotiation option and of its replies.

use bytes::Buf;

/// `NBDMAGIC`.
pub(super) const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// `IHAVEOPT`, before every option.
pub(super) const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before every reply to an option.
pub(super) const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;

/// Handshake flags, both ways: fixed newstyle, and no 124 zeros after EXPORT_NAME's answer.
pub(super) const FIXED_NEWSTYLE: u16 = 1 << 0;
pub(super) const NO_ZEROES: u16 = 1 << 1;

/// The longest name or query in the protocol.
pub(super) const STRING_LEN_MAX: usize = 4096;

/// The most data an option may carry: an export name and a few queries.
pub(super) const DATA_LEN_MAX: u32 = 16 << 10;

/// The options this server knows. STARTTLS is not among them: there is no TLS yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    ExportName,
    Abort,
    List,
    Info,
    Go,
    StructuredReply,
    ListMetaContext,
    SetMetaContext,
}

impl Kind {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::ExportName,
            2 => Self::Abort,
            3 => Self::List,
            6 => Self::Info,
            7 => Self::Go,
            8 => Self::StructuredReply,
            9 => Self::ListMetaContext,
            10 => Self::SetMetaContext,
            _ => return None,
        })
    }
}

/// How an option is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Reply {
    Ack = 1,
    Server = 2,
    Info = 3,
    MetaContext = 4,
    /// Unknown option.
    ErrUnsup = 0x8000_0001,
    ErrPolicy = 0x8000_0002,
    /// Malformed.
    ErrInvalid = 0x8000_0003,
    /// The export is not available.
    ErrUnknown = 0x8000_0006,
    ErrShutdown = 0x8000_0007,
    ErrTooBig = 0x8000_0009,
}

/// Pieces of information about an export.
pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_NAME: u16 = 1;
pub(super) const INFO_DESCRIPTION: u16 = 2;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// INFO and GO.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InfoRequest {
    pub(super) name: String,
    /// What the client would like to know besides the size.
    pub(super) wanted: Vec<u16>,
}

/// LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ContextRequest {
    pub(super) name: String,
    pub(super) queries: Vec<String>,
}

/// The option's data is not what the protocol says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("the option's data ends early or goes on after its end")]
    Length,
    #[error("a string is longer than {STRING_LEN_MAX} bytes")]
    String,
    #[error("a string is not UTF-8")]
    Utf8,
}

impl InfoRequest {
    pub(super) fn decode(mut data: &[u8]) -> Result<Self, Malformed> {
        let name = string(&mut data)?;
        let count = data.try_get_u16().map_err(|_| Malformed::Length)?;
        if data.len() != usize::from(count) * 2 {
            return Err(Malformed::Length);
        }
        let wanted = data.as_chunks().0.iter().map(|&kind| u16::from_be_bytes(kind)).collect();
        Ok(Self { name, wanted })
    }
}

impl ContextRequest {
    pub(super) fn decode(mut data: &[u8]) -> Result<Self, Malformed> {
        let name = string(&mut data)?;
        let count = data.try_get_u32().map_err(|_| Malformed::Length)?;
        // Stops at the end of the data, whatever was claimed.
        let queries = (0..count).map(|_| string(&mut data)).collect::<Result<_, _>>()?;
        if !data.is_empty() {
            return Err(Malformed::Length);
        }
        Ok(Self { name, queries })
    }
}

/// An export name that is the whole of an option's data.
pub(super) fn whole_string(data: &[u8]) -> Result<String, Malformed> {
    if data.len() > STRING_LEN_MAX {
        return Err(Malformed::String);
    }
    std::str::from_utf8(data).map(str::to_owned).map_err(|_| Malformed::Utf8)
}

fn string(data: &mut &[u8]) -> Result<String, Malformed> {
    let len = data.try_get_u32().map_err(|_| Malformed::Length)?;
    let len = usize::try_from(len).map_err(|_| Malformed::String)?;
    let (text, rest) = data.split_at_checked(len).ok_or(Malformed::Length)?;
    *data = rest;
    whole_string(text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_decode_from_their_golden_bytes() {
        let info = InfoRequest { name: "ab".into(), wanted: vec![3, 1] };
        assert_eq!(InfoRequest::decode(b"\0\0\0\x02ab\0\x02\0\x03\0\x01").unwrap(), info);
        let contexts = ContextRequest { name: "v".into(), queries: vec!["base:".into(), String::new()] };
        let bytes = b"\0\0\0\x01v\0\0\0\x02\0\0\0\x05base:\0\0\0\0";
        assert_eq!(ContextRequest::decode(bytes).unwrap(), contexts);
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        for bad in
            [&b""[..], b"\0\0\0", b"\0\0\0\x02a", b"\xff\xff\xff\xff", b"\0\0\0\0\0\x01", b"\0\0\0\0\0\0x"]
        {
            assert_eq!(InfoRequest::decode(bad), Err(Malformed::Length), "{bad:?}");
        }
        assert_eq!(ContextRequest::decode(b"\0\0\0\0\xff\xff\xff\xff"), Err(Malformed::Length));
        assert_eq!(ContextRequest::decode(b"\0\0\0\0\0\0\0\0x"), Err(Malformed::Length));
        assert_eq!(InfoRequest::decode(b"\0\0\0\x01\xff\0\0"), Err(Malformed::Utf8));
        assert_eq!(whole_string(&[b'x'; STRING_LEN_MAX + 1]), Err(Malformed::String));
    }

    proptest! {
        #[test]
        fn no_data_makes_decoding_panic(data: Vec<u8>) {
            let _ = InfoRequest::decode(&data);
            let _ = ContextRequest::decode(&data);
        }
    }
}
