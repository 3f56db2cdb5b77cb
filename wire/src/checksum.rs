//! CRC32C per 4 KiB block, as carried by payloads and kept on disk.

use bytes::Bytes;

/// The unit of checksums and of allocation within an object, in bytes.
pub const BLOCK_SIZE: usize = 4096;

/// A payload whose checksum does not match its bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("checksum mismatch in piece {piece}: expected {expected:08x}, found {found:08x}")]
pub struct ChecksumMismatch {
    /// Which piece, counted from the start of the payload.
    pub piece: usize,
    /// What the sender computed.
    pub expected: u32,
    /// What the bytes give.
    pub found: u32,
}

/// The lengths of the pieces into which `len` bytes at `offset` are cut at multiples of [`BLOCK_SIZE`].
pub fn pieces(offset: u64, len: usize) -> impl Iterator<Item = usize> {
    let mut at = (offset % BLOCK_SIZE as u64) as usize;
    let mut left = len;
    std::iter::from_fn(move || {
        let piece = (BLOCK_SIZE - at).min(left);
        at = 0;
        left -= piece;
        (piece > 0).then_some(piece)
    })
}

/// The CRC32C of every piece of `data`, which lies at `offset` of its object.
pub fn of_pieces(offset: u64, data: &[u8]) -> Vec<u32> {
    let mut rest = data;
    pieces(offset, data.len())
        .map(|len| {
            let (piece, tail) = rest.split_at(len);
            rest = tail;
            crc32c::crc32c(piece)
        })
        .collect()
}

/// Checks `data` at `offset` against the checksums of its pieces.
pub fn verify(offset: u64, data: &Bytes, expected: &[u32]) -> Result<(), ChecksumMismatch> {
    let found = of_pieces(offset, data);
    if found.len() != expected.len() {
        return Err(ChecksumMismatch { piece: found.len().min(expected.len()), expected: 0, found: 0 });
    }
    match found.iter().zip(expected).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(piece) => Err(ChecksumMismatch { piece, expected: expected[piece], found: found[piece] }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_at_block_borders() {
        let cut = |offset, len| pieces(offset, len).collect::<Vec<_>>();
        assert_eq!(cut(0, 0), Vec::<usize>::new());
        assert_eq!(cut(0, 4096), [4096]);
        assert_eq!(cut(4095, 4098), [1, 4096, 1]);
        assert_eq!(cut(100, 10), [10]);
    }

    #[test]
    fn a_changed_byte_is_found() {
        let data = Bytes::from(vec![7; 10_000]);
        let sums = of_pieces(1, &data);
        assert_eq!(verify(1, &data, &sums), Ok(()));
        let mut other = data.to_vec();
        other[9_999] ^= 1;
        let error = verify(1, &other.into(), &sums).expect_err("changed");
        assert_eq!(error.piece, 2);
        assert!(verify(1, &data, &sums[1..]).is_err());
    }
}
