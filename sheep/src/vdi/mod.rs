//! VDIs: byte ranges to objects, and the owner that orders their writes.
//!
//! | file | holds |
//! |---|---|
//! | `span` | byte range → object ranges; pure |
//! | `owner` | a VDI at its owner: read, write, zero |
//! | `flush`, `status` | at its owner: making durable; data and holes |
//! | `object` | one object at its owner: numbering, sending to members, reading |
//! | `answers` | which members have answered, and under which configuration; pure |
//! | `confirmed` | how far each member has come with an object's writes |
//! | `turns` | reads wait for overlapping writes and the reverse |
//! | `tree`, `map` | the object map and its layout |
//! | `takeover` | seal and settle before a new owner serves |
//! | `reclaim` | objects that hold nothing leave the map |
//! | `settle` | which copy is ahead, and what the others lack; pure |
//! | `clients`, `stability` | who is connected; requests that may come again; pure |
//! | `check` | compares copies and map, and repairs |
//! | `owners` | the owners on this node, from acquisition to release |
//! | `requests` | this gateway's unanswered requests; pure |
//! | `context` | what an owner needs of the node |

pub(crate) mod answers;
pub(crate) mod check;
pub(crate) mod clients;
mod confirmed;
pub(crate) mod context;
mod flush;
pub(crate) mod map;
mod object;
pub(crate) mod owner;
pub(crate) mod owners;
mod reclaim;
pub(crate) mod requests;
pub(crate) mod settle;
pub(crate) mod span;
mod stability;
mod status;
mod takeover;
mod tree;
mod turns;
