//! Byte range of a VDI → ranges of its objects. Pure.

use crate::cluster::state::OBJECT_SIZE;

/// The part of a request that lies in one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which object.
    pub index: u64,
    /// Where it begins in the object, in bytes.
    pub offset: u32,
    /// How long it is, in bytes; never 0.
    pub len: u32,
}

impl Span {
    /// Whether it covers all that the object can hold of a VDI of `size` bytes.
    pub(crate) fn covers_object(&self, size: u64) -> bool {
        let object = u64::from(OBJECT_SIZE);
        let end = self.index * object + u64::from(self.offset) + u64::from(self.len);
        self.offset == 0 && (self.len == OBJECT_SIZE || end >= size)
    }
}

/// Cuts `len` bytes at `offset` at object borders. The range must not wrap around.
pub fn spans(offset: u64, len: u64) -> impl Iterator<Item = Span> {
    let object = u64::from(OBJECT_SIZE);
    let end = offset + len;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let within = at % object;
        let len = (object - within).min(end - at);
        let span = Span { index: at / object, offset: within as u32, len: len as u32 };
        at += len;
        Some(span)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Byte by byte, the spans are the range.
        #[test]
        fn spans_cover_the_range_once_and_in_order(offset in 0..1u64 << 40, len in 0..20_000_000u64) {
            let object = u64::from(OBJECT_SIZE);
            let mut at = offset;
            for span in spans(offset, len) {
                prop_assert!(span.len > 0 && u64::from(span.offset) + u64::from(span.len) <= object);
                prop_assert_eq!(span.index * object + u64::from(span.offset), at);
                at += u64::from(span.len);
            }
            prop_assert_eq!(at, offset + len);
        }
    }

    #[test]
    fn the_last_object_is_covered_up_to_the_end_of_the_vdi() {
        let span = Span { index: 1, offset: 0, len: 512 };
        assert!(span.covers_object(u64::from(OBJECT_SIZE) + 512));
        assert!(!span.covers_object(u64::from(OBJECT_SIZE) + 513));
        assert!(!Span { offset: 1, ..span }.covers_object(u64::from(OBJECT_SIZE) + 513));
    }
}
