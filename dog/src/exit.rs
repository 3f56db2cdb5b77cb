//! What a script is told: exit status and the kinds of failure behind it.

use std::fmt;
use std::process::ExitCode;

use serde::Serialize;
use wire::admin::{ErrorKind, Severity};
use wire::client::ClientError;

/// The exit status. The numbers are a promise to scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Exit {
    /// Done, and all is well.
    Done = 0,
    /// Refused, or redundancy is below the policy.
    Refused = 1,
    /// The command line is wrong. clap uses the same number.
    Usage = 2,
    /// No sheep answers.
    Unreachable = 3,
    /// Data is damaged.
    Damage = 4,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl From<Severity> for Exit {
    fn from(worst: Severity) -> Self {
        match worst {
            Severity::Unspecified | Severity::Note => Self::Done,
            Severity::Degraded => Self::Refused,
            Severity::Damaged => Self::Damage,
        }
    }
}

/// What kind of failure, in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Refused,
    NotFound,
    AlreadyExists,
    Invalid,
    Degraded,
    Damaged,
    Unavailable,
    Unsupported,
    NotFormatted,
    /// No sheep answers.
    Unreachable,
    /// The command line.
    Usage,
    /// stdin, stdout or a file here.
    Io,
    /// A sheep answered in a way this dog does not understand.
    Other,
}

impl From<ErrorKind> for Kind {
    fn from(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Unspecified => Self::Other,
            ErrorKind::Refused => Self::Refused,
            ErrorKind::NotFound => Self::NotFound,
            ErrorKind::AlreadyExists => Self::AlreadyExists,
            ErrorKind::Invalid => Self::Invalid,
            ErrorKind::Degraded => Self::Degraded,
            ErrorKind::Damaged => Self::Damaged,
            ErrorKind::Unavailable => Self::Unavailable,
            ErrorKind::Unsupported => Self::Unsupported,
            ErrorKind::NotFormatted => Self::NotFormatted,
        }
    }
}

impl From<Kind> for Exit {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Usage | Kind::Invalid => Self::Usage,
            Kind::Unreachable => Self::Unreachable,
            Kind::Damaged => Self::Damage,
            // A sheep that answers "not now" is reached: what it says is a refusal.
            Kind::Refused
            | Kind::NotFound
            | Kind::AlreadyExists
            | Kind::Degraded
            | Kind::Unavailable
            | Kind::Unsupported
            | Kind::NotFormatted
            | Kind::Io
            | Kind::Other => Self::Refused,
        }
    }
}

/// A command that did not do what it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    pub(crate) kind: Kind,
    /// What failed: the command.
    pub(crate) what: String,
    /// Why.
    pub(crate) why: String,
    /// The way out; may be empty.
    pub(crate) hint: String,
}

impl Failure {
    pub(crate) fn new(kind: Kind, what: impl Into<String>, why: impl fmt::Display) -> Self {
        Self { exit: kind.into(), kind, what: what.into(), why: why.to_string(), hint: String::new() }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: hint.into(), ..self }
    }

    /// For `map_err`: what the client met while doing `what`.
    pub(crate) fn client(what: impl Into<String>) -> impl FnOnce(ClientError) -> Self {
        move |error| match error {
            ClientError::Status(error) => Self::new(error.kind.into(), what, &error.message).hint(error.hint),
            ClientError::Unreachable { maybe_done, .. } => {
                let hint = match maybe_done {
                    false => {
                        "is sheep running there? choose another with -a ADDR -p PORT, or DOG_ADDR and DOG_PORT"
                    }
                    true => "it may have been done all the same: look before trying again",
                };
                Self::new(Kind::Unreachable, what, error).hint(hint)
            }
        }
    }

    /// For `map_err`: what happened to stdin, stdout or a file.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::new(Kind::Io, what, error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

#[cfg(test)]
mod tests {
    use wire::admin::AdminError;

    use super::*;

    #[test]
    fn every_kind_of_error_has_its_exit_status() {
        for (kind, exit) in [
            (ErrorKind::Refused, 1),
            (ErrorKind::NotFound, 1),
            (ErrorKind::AlreadyExists, 1),
            (ErrorKind::Invalid, 2),
            (ErrorKind::Degraded, 1),
            (ErrorKind::Damaged, 4),
            (ErrorKind::Unavailable, 1),
            (ErrorKind::Unsupported, 1),
            (ErrorKind::NotFormatted, 1),
            (ErrorKind::Unspecified, 1),
        ] {
            let failure = Failure::client("x")(AdminError::new(kind, "y").into());
            assert_eq!(failure.exit as u8, exit, "{kind:?}");
        }
    }

    #[test]
    fn a_check_exits_with_what_it_found_at_worst() {
        let exit = |severity| Exit::from(severity) as u8;
        assert_eq!([exit(Severity::Note), exit(Severity::Degraded), exit(Severity::Damaged)], [0, 1, 4]);
    }
}
