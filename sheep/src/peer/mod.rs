//! Sheep to sheep: a full mesh of TCP connections that carry requests and replies.
//!
//! Called by the gateway, the store's service and the cluster log; knows nothing of what the frames mean.
//!
//! | file | holds |
//! |---|---|
//! | `class` | separate connections for separate budgets |
//! | `net` | the seam to the network |
//! | `hello` | the exchange that opens a connection |
//! | `reader`, `outbox` | frames in and out of one connection |
//! | `client`, `link`, `call` | requests to other nodes |
//! | `server` | requests from other nodes |
//! | `probe` | whether somebody is there |
//!
//! What holds:
//! - Requests to one node and class reach its [`Service`] in the order of the [`Peers::start`] calls, as
//!   long as the connection lives; across a reconnect none is repeated.
//! - A request that ends in [`CallError::Disconnected`] or [`CallError::Timeout`] may have been executed;
//!   after any other error it has not.

mod call;
mod class;
mod client;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod hello;
mod link;
mod net;
mod outbox;
mod probe;
mod reader;
mod server;

pub use call::{CallError, PendingReply, Permit, Reply};
pub use class::Class;
pub use client::{PeerEvent, Peers, Stalled};
pub use hello::Greeter;
pub use link::LostReason;
pub use net::{Accept, Net, Stream, TcpNet};
pub use probe::Probe;
pub(crate) use probe::probe;
pub use server::{Listener, PeerInfo, Request, Responder, Service, status};

#[cfg(test)]
mod tests;
