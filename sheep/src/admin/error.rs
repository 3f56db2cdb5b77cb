//! The error table: every way in which something can fail, as the kind that callers act on and the hint
//! that people do.

use wire::address::Address;
use wire::admin::{AdminError, ErrorKind};
use wire::name::NameError;
use wire::policy::{Copies, CopiesOutOfRange};
use wire::size::SizeError;

use super::host::FormatError;
use crate::cluster::entry::Refusal;
use crate::cluster::log::{ProposeError, ReadError};
use crate::nbd::{IoError, OpenError};

const NO_MAJORITY: &str =
    "a majority of the cluster log's voters must be up: see `dog cluster info` for them and `dog node list`";

impl From<Refusal> for AdminError {
    fn from(refusal: Refusal) -> Self {
        use ErrorKind as Kind;
        let (kind, hint) = match &refusal {
            Refusal::AlreadyFormatted => (Kind::Refused, "it is used as it is; nothing is to be done"),
            Refusal::NotFormatted => (Kind::NotFormatted, "found a ring with `dog cluster format`"),
            Refusal::BadSlots(_) => (Kind::Invalid, "leave --slots out for 4096"),
            Refusal::TooManyNodes(_) => (Kind::Refused, "remove dead nodes with `dog node remove`"),
            Refusal::TooManyVnodes { .. } => (Kind::Refused, "start the nodes with fewer vnodes"),
            Refusal::NoSuchNode(_) => (Kind::NotFound, "`dog node list` shows the members"),
            Refusal::NodeRemoved(_) => {
                (Kind::Refused, "start the sheep with an empty directory; it joins as a new node")
            }
            Refusal::StartNotHigher { .. } => {
                (Kind::Refused, "its directory was copied or rolled back: start the sheep with an empty one")
            }
            Refusal::SessionOver(_) | Refusal::TermOver(_) => (Kind::Unavailable, "try again"),
            Refusal::NodeInUse(_) => {
                (Kind::Refused, "move everything off it first with `dog node drain`, or stop it for good")
            }
            Refusal::LastCopies { .. } => (
                Kind::Refused,
                "data would be lost: let recovery finish (`dog node recovery`), or bring the node back",
            ),
            Refusal::NameTaken(_) => (Kind::AlreadyExists, "choose another name, or delete that VDI"),
            Refusal::NoSuchVdi(_) => (Kind::NotFound, "`dog vdi list` shows the VDIs"),
            Refusal::BadSize(_) => (Kind::Invalid, ""),
            Refusal::InUse(_) => (
                Kind::Refused,
                "close its clients; `dog vdi lock list` shows them, and `unlock` cuts them off",
            ),
            Refusal::GenerationOver(_) => (Kind::Unavailable, "try again"),
            Refusal::AttachFenced { .. } => (Kind::Refused, "attach with a higher generation"),
            Refusal::Exhausted => (Kind::Refused, "nothing more can be created under this id"),
        };
        Self::new(kind, refusal.to_string()).hint(hint)
    }
}

impl From<ProposeError> for AdminError {
    fn from(error: ProposeError) -> Self {
        let (kind, hint) = match &error {
            ProposeError::NoLeader => (ErrorKind::Unavailable, NO_MAJORITY),
            // Not `Unavailable`: a client would make the change again elsewhere.
            ProposeError::Timeout | ProposeError::Uncertain(_) => {
                (ErrorKind::Unspecified, "look whether it was done before trying again")
            }
            ProposeError::Refused(_) => {
                (ErrorKind::Unsupported, "some sheep are of another version: finish the upgrade first")
            }
            ProposeError::Stopped(_) => {
                (ErrorKind::Unavailable, "this sheep's cluster log failed: its own log says why; restart it")
            }
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}

impl From<OpenError> for AdminError {
    fn from(error: OpenError) -> Self {
        let (kind, hint) = match &error {
            OpenError::NotFound(_) => (ErrorKind::NotFound, "`dog vdi list` shows the VDIs"),
            OpenError::Fenced { .. } => (ErrorKind::Refused, "attach with a higher generation"),
            OpenError::Invalid(_) => (ErrorKind::Invalid, ""),
            OpenError::Unavailable(_) => (ErrorKind::Unavailable, "try again"),
            OpenError::ShuttingDown => (ErrorKind::Unavailable, "ask another sheep"),
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}

impl From<FormatError> for AdminError {
    fn from(error: FormatError) -> Self {
        let (kind, hint) = match &error {
            FormatError::AlreadyFormatted => {
                let hint =
                    "nothing is to be done: create VDIs with `dog vdi create`; --force deletes all there are";
                (ErrorKind::Refused, hint.to_owned())
            }
            FormatError::InUse(_) => {
                (ErrorKind::Refused, "stop its clients first; `dog vdi list` shows which it is".to_owned())
            }
            FormatError::SeedInRing(_) => {
                (ErrorKind::Refused, "wait until it has joined; `dog node list` shows when".to_owned())
            }
            FormatError::TooFewNodes { have, .. } if *have == 0 => {
                (ErrorKind::Refused, "start at least one sheep without --gateway".to_owned())
            }
            FormatError::TooFewNodes { have, .. } => (
                ErrorKind::Refused,
                format!("start more sheep that know this one, use -c {have}, or --force to begin degraded"),
            ),
            FormatError::Log(_) => (
                ErrorKind::Unspecified,
                "the sheep's own log says why; its directory may be damaged".to_owned(),
            ),
            FormatError::BadSlots(_) => (ErrorKind::Invalid, "leave --slots out for 4096".to_owned()),
        };
        Self::new(kind, error.to_string()).hint(hint)
    }
}

/// A client's I/O on a VDI failed.
pub(super) fn io(vdi: &str, error: IoError) -> AdminError {
    let (kind, hint) = match error {
        IoError::Io => {
            (ErrorKind::Damaged, "no undamaged copy: `dog vdi check` says where, `--repair` heals")
        }
        IoError::NoSpace => (ErrorKind::Refused, "delete what is not needed, or add nodes"),
        IoError::ReadOnly => (ErrorKind::Refused, ""),
        IoError::Fenced => (ErrorKind::Refused, "the connection was withdrawn with `dog vdi lock unlock`"),
        IoError::Shutdown => (ErrorKind::Unavailable, "the VDI was deleted, or this sheep is stopping"),
        IoError::Unsupported => {
            (ErrorKind::Unsupported, "some sheep are of another version: finish the upgrade first")
        }
        IoError::Invalid => (ErrorKind::Invalid, ""),
    };
    AdminError::new(kind, format!("VDI {vdi}: {error}")).hint(hint)
}

/// Copies did not come back in time.
pub(super) fn waits(vdi: &str, waiting: &str) -> AdminError {
    let why = if waiting.is_empty() { "no answer in time" } else { waiting };
    AdminError::new(ErrorKind::Degraded, format!("VDI {vdi}: {why}"))
        .hint("bring the nodes that are down back: `dog node list` shows them; then try again")
}

/// There is no VDI of that name.
pub(super) fn no_vdi(name: &str) -> AdminError {
    OpenError::NotFound(name.to_owned()).into()
}

/// A client without a connection to the VDI.
pub(super) fn no_client(vdi: &str, client: &str) -> AdminError {
    AdminError::new(ErrorKind::NotFound, format!("client {client:?} does not have VDI {vdi} open"))
        .hint("name it as `dog vdi lock list` shows it: its Client, or its Attach without the generation")
}

/// A name that no VDI can have.
pub(super) fn bad_name(error: &NameError) -> AdminError {
    AdminError::new(ErrorKind::Invalid, error.to_string())
}

/// What this sheep knows may be old.
pub(super) fn unsure(error: &ReadError) -> AdminError {
    AdminError::new(ErrorKind::Unavailable, error.to_string()).hint(NO_MAJORITY)
}

/// A size that no VDI can have.
pub(super) fn bad_size(error: &SizeError) -> AdminError {
    AdminError::new(ErrorKind::Invalid, error.to_string()).hint("write 20G, 1T or the like")
}

/// A number of copies out of range.
pub(super) fn bad_copies(error: CopiesOutOfRange) -> AdminError {
    AdminError::new(ErrorKind::Invalid, error.to_string()).hint(format!("give 1 to {}", Copies::MAX))
}

/// A range that is not within a VDI.
pub(super) fn beyond_end(vdi: &str, size: u64) -> AdminError {
    AdminError::new(ErrorKind::Invalid, format!("the range goes beyond the end of VDI {vdi}"))
        .hint(format!("it has {size} bytes"))
}

/// Too much is going on.
pub(super) fn busy() -> AdminError {
    AdminError::new(ErrorKind::Unavailable, "this sheep serves as many streams as it can")
        .hint("try again, or ask another sheep")
}

/// A node did not answer.
pub(super) fn silent(node: wire::id::NodeId, admin: &str) -> AdminError {
    let at = admin.parse::<Address>().map(|a| format!(" at {a}")).unwrap_or_default();
    AdminError::new(ErrorKind::Unavailable, format!("node {node}{at} does not answer"))
        .hint("`dog node list` shows whether it is up")
}

#[cfg(test)]
mod tests {
    use wire::id::{Generation, NodeId, Session, VdiId};

    use super::*;

    fn every_refusal() -> Vec<Refusal> {
        let node = NodeId(7);
        let name: wire::name::VdiName = "a".parse().expect("a name");
        vec![
            Refusal::AlreadyFormatted,
            Refusal::NotFormatted,
            Refusal::BadSlots(3),
            Refusal::TooManyNodes(6144),
            Refusal::TooManyVnodes { node, vnodes: 3, others: 4 },
            Refusal::NoSuchNode(node),
            Refusal::NodeRemoved(node),
            Refusal::StartNotHigher { node, start: 1, seen: 2 },
            Refusal::SessionOver(Session { node, start: 1 }),
            Refusal::NodeInUse(node),
            Refusal::LastCopies { node, slots: 3 },
            Refusal::NameTaken(name),
            Refusal::NoSuchVdi(VdiId(1)),
            Refusal::BadSize(1),
            Refusal::InUse(node),
            Refusal::GenerationOver(Generation(1)),
            Refusal::AttachFenced { client: "c".into(), known: 2 },
            Refusal::Exhausted,
        ]
    }

    #[test]
    fn every_refusal_has_a_kind_and_says_what_it_is() {
        for refusal in every_refusal() {
            let text = refusal.to_string();
            let error = AdminError::from(refusal);
            assert_ne!(error.kind, ErrorKind::Unspecified, "{text}");
            assert_eq!(error.message, text);
            assert!(error.kind == ErrorKind::Invalid || !error.hint.is_empty(), "{text} has no way out");
        }
    }

    #[test]
    fn a_change_that_may_have_been_done_is_not_made_again_elsewhere() {
        for error in [ProposeError::Timeout, ProposeError::Uncertain("x".into())] {
            assert!(!AdminError::from(error).elsewhere());
        }
        assert!(AdminError::from(ProposeError::NoLeader).elsewhere());
    }

    #[test]
    fn what_is_lost_is_told_from_what_waits() {
        assert_eq!(io("v", IoError::Io).kind, ErrorKind::Damaged);
        assert_eq!(io("v", IoError::Fenced).kind, ErrorKind::Refused);
        let waiting = waits("v", "3 requests wait for 2 copies in sync");
        assert_eq!((waiting.kind, waiting.message.contains("3 requests")), (ErrorKind::Degraded, true));
    }

    #[test]
    fn a_format_with_too_few_nodes_names_the_ways_out() {
        let error = AdminError::from(FormatError::TooFewNodes { have: 2, need: 3 });
        assert_eq!(error.kind, ErrorKind::Refused);
        assert!(error.hint.contains("-c 2") && error.hint.contains("--force"), "{}", error.hint);
        assert!(!AdminError::from(FormatError::TooFewNodes { have: 0, need: 3 }).hint.contains("-c 0"));
    }
}
