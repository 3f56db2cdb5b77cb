//! The admin API: generated messages, clients and server traits, and how its errors travel.
//!
//! The schema is `proto/admin.proto`. A failed call is a gRPC status whose message says what failed and
//! why; next to it a machine-readable [`ErrorDetail`] says what kind of failure it is and what the
//! operator can do. [`AdminError`] is both together: sheep turns it into a [`tonic::Status`], a client
//! turns the status back.

use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};

pub use api::*;

#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
mod api {
    tonic::include_proto!("sheepdog.admin.v1");
}

/// The most bytes that one message of a VDI read or write carries: large enough that a message costs
/// little, small enough to stay below gRPC's 4 MiB limit and to keep little in flight.
pub const CHUNK_LEN_MAX: usize = 1 << 20;

/// The most entries that one batch of a streamed list carries, for the same reason.
pub const BATCH_LEN_MAX: usize = 1024;

/// Metadata entry that holds an encoded [`ErrorDetail`].
const DETAIL_KEY: &str = "sheepdog-error-bin";

/// The longest hint and message put on the wire: they travel as HTTP headers, and a peer that finds its
/// header list too large drops the call without telling why.
const TEXT_LEN_MAX: usize = 2048;

/// A call that a sheep answered with an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AdminError {
    /// What kind of failure; callers decide by this, never by the text.
    pub kind: ErrorKind,
    /// What failed and why.
    pub message: String,
    /// The way out; may be empty.
    pub hint: String,
}

impl AdminError {
    /// An error without a hint.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: String::new() }
    }

    /// Adds the way out.
    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// Whether another sheep may well be able to do what this one could not.
    pub fn elsewhere(&self) -> bool {
        self.kind == ErrorKind::Unavailable
    }
}

/// The status of a failed call; see [`AdminError`].
pub fn status(kind: ErrorKind, message: impl Into<String>, hint: impl Into<String>) -> Status {
    AdminError::new(kind, message).hint(hint).into()
}

impl From<AdminError> for Status {
    fn from(error: AdminError) -> Self {
        let detail = ErrorDetail { kind: error.kind.into(), hint: shortened(error.hint) };
        let mut status = Status::new(code(error.kind), shortened(error.message));
        status.metadata_mut().insert_bin(DETAIL_KEY, MetadataValue::from_bytes(&detail.encode_to_vec()));
        status
    }
}

impl From<&Status> for AdminError {
    /// Reads a status back. One without a detail, or with one that this version cannot read, is judged
    /// by its code alone.
    fn from(status: &Status) -> Self {
        let detail = detail(status);
        let kind = match &detail {
            Some(detail) if detail.kind() != ErrorKind::Unspecified => detail.kind(),
            _ => kind_of_code(status.code()),
        };
        let message = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        Self { kind, message, hint: detail.map(|d| d.hint).unwrap_or_default() }
    }
}

/// The detail that a sheep put on a status, if it did.
pub(crate) fn detail(status: &Status) -> Option<ErrorDetail> {
    let bytes = status.metadata().get_bin(DETAIL_KEY)?.to_bytes().ok()?;
    ErrorDetail::decode(bytes).ok()
}

fn code(kind: ErrorKind) -> Code {
    match kind {
        ErrorKind::Unspecified => Code::Unknown,
        ErrorKind::Refused | ErrorKind::Degraded | ErrorKind::NotFormatted => Code::FailedPrecondition,
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::AlreadyExists => Code::AlreadyExists,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Damaged => Code::DataLoss,
        ErrorKind::Unavailable => Code::Unavailable,
        ErrorKind::Unsupported => Code::Unimplemented,
    }
}

fn kind_of_code(code: Code) -> ErrorKind {
    match code {
        Code::NotFound => ErrorKind::NotFound,
        Code::AlreadyExists => ErrorKind::AlreadyExists,
        Code::InvalidArgument | Code::OutOfRange => ErrorKind::Invalid,
        Code::DataLoss => ErrorKind::Damaged,
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled => ErrorKind::Unavailable,
        Code::Unimplemented => ErrorKind::Unsupported,
        Code::FailedPrecondition | Code::Aborted | Code::PermissionDenied | Code::Unauthenticated => {
            ErrorKind::Refused
        }
        Code::Ok | Code::Unknown | Code::Internal | Code::ResourceExhausted => ErrorKind::Unspecified,
    }
}

fn shortened(mut text: String) -> String {
    if text.len() > TEXT_LEN_MAX {
        let end = (0..=TEXT_LEN_MAX).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_way_through_a_status() {
        for kind in (1..=9).filter_map(|n| ErrorKind::try_from(n).ok()) {
            let error = AdminError::new(kind, "vdi \"ä\": no").hint("try\nagain");
            let status = Status::from(error.clone());
            assert_ne!(status.code(), Code::Ok);
            assert_eq!(AdminError::from(&status), error);
        }
    }

    #[test]
    fn a_detail_keeps_its_place_and_bytes() {
        let status = status(ErrorKind::Degraded, "message", "hint");
        let detail = status.metadata().get_bin("sheepdog-error-bin").expect("there");
        assert_eq!(detail.to_bytes().expect("base64")[..], *b"\x08\x05\x12\x04hint");
    }

    #[test]
    fn a_status_without_a_readable_detail_is_judged_by_its_code() {
        let kind = |status: &Status| AdminError::from(status).kind;
        assert_eq!(kind(&Status::not_found("x")), ErrorKind::NotFound);
        assert_eq!(kind(&Status::internal("x")), ErrorKind::Unspecified);
        assert_eq!(kind(&Status::unimplemented("")), ErrorKind::Unsupported);
        let mut newer = Status::data_loss("x");
        let detail = ErrorDetail { kind: 77, hint: "h".into() };
        newer.metadata_mut().insert_bin(DETAIL_KEY, MetadataValue::from_bytes(&detail.encode_to_vec()));
        assert_eq!(AdminError::from(&newer).kind, ErrorKind::Damaged);
        assert_eq!(AdminError::from(&newer).hint, "h");
        newer.metadata_mut().insert_bin(DETAIL_KEY, MetadataValue::from_bytes(b"\xff\xff\xff"));
        assert_eq!(AdminError::from(&newer).hint, "");
    }

    #[test]
    fn a_text_of_any_length_fits_the_headers() {
        let status = status(ErrorKind::Refused, "ä".repeat(100_000), "b".repeat(100_000));
        assert!(status.message().len() <= TEXT_LEN_MAX + 4);
        assert!(AdminError::from(&status).hint.len() <= TEXT_LEN_MAX + 4);
    }
}
