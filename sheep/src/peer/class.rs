//! Separate connections for separate budgets.
//!
//! Two sheep that are full of requests forwarded to each other must still be able to serve the replica
//! requests those wait for, or both stand still. So each class has its own connections and limits.

use wire::frame::Limits;

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Class {
    /// Cluster log, heartbeats, leases.
    Control = 1,
    /// Object requests of an owner to its replicas.
    Replica = 2,
    /// Requests of a gateway to a VDI's owner.
    Forward = 3,
}

/// How much may be under way on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    /// Requests not answered yet.
    pub(super) count: usize,
    /// Bytes of those requests.
    pub(super) bytes: usize,
}

impl Class {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Control, Self::Replica, Self::Forward];

    pub(super) fn from_wire(class: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.to_wire() == class)
    }

    pub(super) fn to_wire(self) -> u32 {
        self as u32
    }

    /// The longest frame.
    pub fn limits(self) -> Limits {
        match self {
            Self::Control => Limits::CONTROL,
            Self::Replica | Self::Forward => Limits::DATA,
        }
    }

    /// Enough to fill a 25 Gbit/s link with 4 KiB requests of 1 ms; and a few whole objects.
    pub(super) fn budget(self) -> Budget {
        match self {
            Self::Control => Budget { count: 256, bytes: 64 << 20 },
            Self::Replica | Self::Forward => Budget { count: 1024, bytes: 64 << 20 },
        }
    }
}
