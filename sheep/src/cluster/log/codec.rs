//! Bytes of messages and stored records.
//!
//! A message is a version byte and MessagePack with field names, so that a field can be added without
//! breaking the version before. A stored record is a version byte, a CRC32C and the payload; the checksum
//! covers where the record belongs as well, so that a record found in another's place is damage too.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Version of messages between nodes and of payloads.
pub(super) const FORMAT: u8 = 1;
/// Version of stored records.
pub(super) const RECORD_FORMAT: u8 = 1;
const RECORD_HEADER: usize = 5;

/// Bytes that are not what this version writes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// There are not even enough bytes for a header.
    #[error("{have} bytes are too short")]
    Truncated {
        /// How many there are.
        have: usize,
    },
    /// Written by a version that this one does not know.
    #[error("format version {found} is not known here (this version writes {known})")]
    UnknownVersion {
        /// The version found.
        found: u8,
        /// The newest version known.
        known: u8,
    },
    /// The checksum does not match.
    #[error("checksum mismatch: stored {stored:08x}, computed {computed:08x}")]
    Checksum {
        /// What the record says.
        stored: u32,
        /// What its bytes say.
        computed: u32,
    },
    /// The payload does not decode.
    #[error("malformed: {0}")]
    Malformed(String),
}

/// Encodes a message.
///
/// Panics if `value` cannot be expressed in MessagePack, which none of the types used here can bring about.
pub(super) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    rmp_serde::encode::write_named(&mut bytes, value).expect("plain data encodes into memory");
    bytes
}

/// Decodes what [`encode`] wrote.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Truncated { have: 0 }),
        Some((&FORMAT, payload)) => {
            rmp_serde::from_slice(payload).map_err(|error| CodecError::Malformed(error.to_string()))
        }
        Some((&found, _)) => Err(CodecError::UnknownVersion { found, known: FORMAT }),
    }
}

/// Which table a record lives in; part of its checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum RecordKind {
    Meta = 1,
    Entry = 2,
    Snapshot = 3,
}

/// Wraps `payload` for storing at `key`.
pub(super) fn seal(kind: RecordKind, key: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(RECORD_HEADER + payload.len());
    bytes.push(RECORD_FORMAT);
    bytes.extend_from_slice(&checksum(kind, key, payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// The payload of a record that was stored at `key`.
pub(super) fn unseal(kind: RecordKind, key: u64, record: &[u8]) -> Result<&[u8], CodecError> {
    let Some((header, payload)) = record.split_at_checked(RECORD_HEADER) else {
        return Err(CodecError::Truncated { have: record.len() });
    };
    if header[0] != RECORD_FORMAT {
        return Err(CodecError::UnknownVersion { found: header[0], known: RECORD_FORMAT });
    }
    let stored = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
    let computed = checksum(kind, key, payload);
    if stored != computed {
        return Err(CodecError::Checksum { stored, computed });
    }
    Ok(payload)
}

fn checksum(kind: RecordKind, key: u64, payload: &[u8]) -> u32 {
    let place = crc32c::crc32c_append(crc32c::crc32c(&[kind as u8]), &key.to_le_bytes());
    crc32c::crc32c_append(place, payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_an_unknown_version_is_named_as_such() {
        assert_eq!(decode::<u32>(&[]), Err(CodecError::Truncated { have: 0 }));
        assert_eq!(decode::<u32>(&[9, 1]), Err(CodecError::UnknownVersion { found: 9, known: 1 }));
        assert_eq!(decode::<u32>(&encode(&77_u32)), Ok(77));
    }

    #[test]
    fn a_changed_or_misplaced_record_is_refused() {
        let record = seal(RecordKind::Entry, 3, b"payload");
        assert_eq!(unseal(RecordKind::Entry, 3, &record), Ok(&b"payload"[..]));
        assert!(matches!(unseal(RecordKind::Entry, 4, &record), Err(CodecError::Checksum { .. })));
        assert!(matches!(unseal(RecordKind::Meta, 3, &record), Err(CodecError::Checksum { .. })));
        for bit in 0..record.len() * 8 {
            let mut damaged = record.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(unseal(RecordKind::Entry, 3, &damaged).is_err(), "bit {bit}");
        }
        assert_eq!(unseal(RecordKind::Entry, 3, &record[..4]), Err(CodecError::Truncated { have: 4 }));
    }
}
