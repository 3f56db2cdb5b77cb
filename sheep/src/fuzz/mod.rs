//! What may be fed with bytes that nobody vouches for, and what must hold whatever they are.
//!
//! Each target takes bytes, drives product code with them, and panics when something is not as it must be: that
//! nothing panics and nothing hangs goes without saying. `fuzz/` runs them under libFuzzer, which looks for bytes
//! that reach new code; the tests here run each over its kept corpus, and over mutations of it, so that
//! a target that no longer reaches what it is for is noticed. Each lives beside what it drives:
//!
//! | target | file | drives |
//! |---|---|---|
//! | `nbd_options` | `nbd/fuzz/options.rs` | negotiation |
//! | `nbd_requests` | `nbd/fuzz/requests.rs` | the transmission phase |
//! | `peer_frames` | `peer/fuzz.rs` | hellos and frames between sheep |
//! | `peer_messages` | `replica/fuzz.rs` | the messages in frames, and a replica that is asked |
//! | `peer_forwards` | `gateway/fuzz.rs` | what gateways ask of an owner, at a ring of one |
//! | `log_messages` | `cluster/log/fuzz.rs` | what nodes of the cluster log send each other |
//! | `log_store` | `cluster/log/fuzz.rs` | the log's file and its records |
//! | `cluster_entries` | `cluster/fuzz.rs` | entries of the log, and the state they add up to |
//! | `admin_requests` | `admin/fuzz.rs` | every call of the admin API but the last |
//! | `object_files` | `store/fuzz.rs` | objects on disk |
//! | `slot_files` | `store/fuzz.rs` | intents, seals, requests, directories of slots |
//! | `identity` | `identity/fuzz.rs` | the file of that name |
//!
//! CRCs and lengths keep a fuzzer out; so most targets have a mode in which they are put right.

#[cfg(test)]
mod corpus;
mod ring;
mod source;

use std::cell::OnceCell;
use std::rc::Rc;

use tokio::runtime::{Builder, Runtime};

pub(crate) use ring::RingOfOne;
pub(crate) use source::Source;

/// One of the things that can be fed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder in `fuzz/corpus`.
    pub name: &'static str,
    /// Feeds it.
    pub run: fn(&[u8]),
    /// The most bytes that one allocation may ask for.
    pub allocation_max: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "nbd_options", run: crate::nbd::fuzz::options::run, allocation_max: 1 << 20 },
    // A write's payload is read into place, once the connection's budget has room for it.
    Target { name: "nbd_requests", run: crate::nbd::fuzz::requests::run, allocation_max: 33 << 20 },
    Target { name: "peer_frames", run: crate::peer::fuzz::run, allocation_max: 1 << 20 },
    // The block table of the largest object, and several objects' worth of answers.
    Target { name: "peer_messages", run: crate::replica::fuzz::run, allocation_max: 1 << 20 },
    // The largest read, and the largest write: pieces of a VDI that are here at once.
    Target { name: "peer_forwards", run: crate::gateway::fuzz::run, allocation_max: 33 << 20 },
    Target { name: "log_messages", run: crate::cluster::log::fuzz::messages, allocation_max: 1 << 20 },
    // redb's page cache.
    Target { name: "log_store", run: crate::cluster::log::fuzz::store, allocation_max: 16 << 20 },
    // The points of a large ring.
    Target { name: "cluster_entries", run: crate::cluster::fuzz::run, allocation_max: 16 << 20 },
    Target { name: "object_files", run: crate::store::fuzz::object_files, allocation_max: 1 << 20 },
    Target { name: "slot_files", run: crate::store::fuzz::slot_files, allocation_max: 1 << 20 },
    // A list of what a ring has, and the points of the ring.
    Target { name: "admin_requests", run: crate::admin::fuzz::run, allocation_max: 16 << 20 },
    Target { name: "identity", run: crate::identity::fuzz::run, allocation_max: 1 << 20 },
];

/// This thread's runtime: making one for every input would take longer than most targets do.
pub(crate) fn runtime() -> Rc<Runtime> {
    thread_local! {
        static RUNTIME: OnceCell<Rc<Runtime>> = const { OnceCell::new() };
    }
    RUNTIME.with(|runtime| {
        let build = || Rc::new(Builder::new_current_thread().enable_time().build().expect("a runtime"));
        runtime.get_or_init(build).clone()
    })
}
