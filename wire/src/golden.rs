//! For tests that hold formats to their bytes: a message and the hex digits that it has for ever.
//!
//! A test that fails here says that other releases would misread this one. Add a field, or a version.

use std::fmt::Debug;

use prost::Message;

/// Bytes as the tests write them.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `message` has exactly these bytes, and they are read as it.
#[track_caller]
pub(crate) fn check<M: Message + PartialEq + Debug + Default>(message: &M, digits: &str) {
    let bytes = message.encode_to_vec();
    assert_eq!(hex(&bytes), digits, "of {message:?}");
    assert_eq!(M::decode(&bytes[..]).as_ref(), Ok(message));
}
