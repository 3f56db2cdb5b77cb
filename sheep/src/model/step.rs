//! The steps of the model, and how they read in a trace.

use std::fmt;

use super::world::{BLOCK_OF, BLOCKS, Flush, Held, Lease, NODES, Sent, World};

/// What may happen next. Nodes count from 0 here and from 1 where a person reads them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// A process dies; the kernel keeps what it wrote.
    Crash(usize),
    /// Machines lose their power at one moment. By node: which of its version and blocks it keeps in memory's form.
    Power { lost: [bool; NODES], kept: [u8; NODES] },
    /// The log takes a copy out of the set, as an owner says that it lacks writes.
    Demote(usize),
    /// The leader does not hear of a node any more.
    Cut(usize),
    /// It does again.
    Heal(usize),
    /// The lease of a node that is cut off runs out.
    Lapse(usize),
    /// Sessions whose leases have run out are taken out.
    Evict([bool; NODES]),
    /// A node joins as a new session, with a new process if it had none.
    Join(usize),
    /// A node applies what is new in the log.
    Learn(usize),
    /// A node asks for the VDI.
    Acquire(usize),
    /// A holder records an owner's generation.
    Seal { owner: usize, at: usize },
    /// An owner brings a copy to what the best one has.
    Patch { owner: usize, at: usize },
    /// The copies are the same: the owner serves.
    Serve(usize),
    /// A holder hears that the takeover is done.
    Tell { owner: usize, at: usize },
    /// An owner numbers a write and sends it to every member.
    Number { owner: usize, write: usize },
    /// A write arrives at a member.
    Deliver(Sent),
    /// A node that catches up asks an in-sync one what there is.
    List { at: usize, from: usize },
    /// It compares, and pulls if it has something else.
    Compare(usize),
    /// It has what it pulled, and applies the writes kept meanwhile.
    Finish(usize),
    /// What it has is made durable.
    Commit(usize),
    /// It is admitted, or not.
    Admit(usize),
    /// The client wants a flush.
    Flush(usize),
    /// A holder flushes.
    FlushAt(usize),
    /// The flush is answered, or begins anew.
    Flushed,
}

fn nodes(which: [bool; NODES]) -> String {
    let named: Vec<String> = (0..NODES).filter(|n| which[*n]).map(|n| (n + 1).to_string()).collect();
    named.join(" and ")
}

fn kept(bits: u8) -> String {
    let parts = std::iter::once("version".to_owned()).chain((0..BLOCKS).map(|b| format!("block {b}")));
    let kept: Vec<String> = parts.enumerate().filter(|(i, _)| bits & (1 << i) != 0).map(|(_, p)| p).collect();
    if kept.is_empty() { "what was flushed".to_owned() } else { format!("besides {}", kept.join(", ")) }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Crash(n) => write!(f, "the process of {} dies", n + 1),
            Self::Power { lost, kept: bits } => {
                let each =
                    (0..NODES).filter(|n| lost[*n]).map(|n| format!("{} keeps {}", n + 1, kept(bits[n])));
                write!(f, "{} without power: {}", nodes(lost), each.collect::<Vec<_>>().join("; "))
            }
            Self::Demote(n) => write!(f, "the copy of {} is taken out", n + 1),
            Self::Cut(n) => write!(f, "the leader does not hear of {} any more", n + 1),
            Self::Heal(n) => write!(f, "the leader hears of {} again", n + 1),
            Self::Lapse(n) => write!(f, "the lease of {} runs out", n + 1),
            Self::Evict(which) => write!(f, "the log takes {} out", nodes(which)),
            Self::Join(n) => write!(f, "{} joins as a new session", n + 1),
            Self::Learn(n) => write!(f, "{} applies what is new in the log", n + 1),
            Self::Acquire(n) => write!(f, "the log makes {} the owner", n + 1),
            Self::Seal { owner, at } => write!(f, "{} records the generation of {}", at + 1, owner + 1),
            Self::Patch { owner, at } => write!(f, "{} gives {} what the best copy has", owner + 1, at + 1),
            Self::Serve(n) => write!(f, "{} finds the copies the same and serves", n + 1),
            Self::Tell { owner, at } => write!(f, "{} tells {} that it has taken over", owner + 1, at + 1),
            Self::Number { owner, write } => {
                let block = BLOCK_OF[write];
                write!(f, "{} numbers write {} of block {block} and sends it", owner + 1, write + 1)
            }
            Self::Deliver(sent) => {
                let (g, s) = (sent.version.generation, sent.version.seq);
                write!(f, "write {} arrives at {} as version {g}:{s}", sent.write + 1, sent.to + 1)
            }
            Self::List { at, from } => write!(f, "{} begins to catch up from {}", at + 1, from + 1),
            Self::Compare(n) => write!(f, "{} compares, and pulls what is different", n + 1),
            Self::Finish(n) => write!(f, "{} has what it pulled", n + 1),
            Self::Commit(n) => write!(f, "{} makes what it has durable", n + 1),
            Self::Admit(n) => write!(f, "{} asks to be admitted", n + 1),
            Self::Flush(n) => write!(f, "a flush begins at {}", n + 1),
            Self::FlushAt(n) => write!(f, "{} flushes", n + 1),
            Self::Flushed => write!(f, "the flush is answered, or begins anew"),
        }
    }
}

fn held(held: &Held) -> String {
    format!("{}:{}{:?}", held.version.generation, held.version.seq, held.blocks)
}

impl fmt::Display for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, node) in self.nodes.iter().enumerate() {
            write!(f, "  {}.{}{}", n + 1, node.start, if node.up { "" } else { " down" })?;
            if node.lease != Lease::Held {
                write!(f, " {:?}", node.lease)?;
            }
            write!(f, " {}", held(&node.memory))?;
            if node.disk != node.memory {
                write!(f, " (disk {})", held(&node.disk))?;
            }
            write!(f, "{}", if node.suspect { "?" } else { "" })?;
            if let Some(owner) = self.owners.get(n).and_then(Option::as_ref) {
                write!(f, " {:?} under {}", owner.phase, owner.generation)?;
            }
        }
        if self.flush != Flush::Open {
            write!(f, "  {:?}", self.flush)?;
        }
        write!(f, "  owed {:?}", self.promise.floor)
    }
}
