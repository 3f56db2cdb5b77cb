//! The connection to one node for one class, and the requests under way on it.
//!
//! ```text
//!           request, or backoff over              hello exchanged
//!   Down ────────────────────────────▶ Connecting ───────────────▶ Up
//!    ▲                                     │ failed                │ lost
//!    └─────────────────────────────────────┴───────────────────────┘
//! ```
//!
//! One task per link connects and reads; it alone moves the link between these phases, except that a
//! request moves it from down to connecting. Requests made while connecting are kept and sent, in order,
//! when it is up. When a connection is lost all its requests fail at once.

use std::collections::HashMap;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use wire::frame::{Frame, Kind};
use wire::hello::{Hello, HelloReject};
use wire::id::NodeId;

use super::call::{CallError, PendingReply, Permit, Reply, ReplySender};
use super::class::Class;
use super::client::{PeerEvent, Shared};
use super::hello::{self, GreetError, HELLO_LIMITS, HELLO_TIMEOUT};
use super::net::{Stream, WriteHalf};
use super::outbox::Outbox;
use super::reader::{FrameReader, ReadError};

/// A node that is there answers within a round trip; longer than this and it counts as unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// The first pause after a failed attempt; also the least time between two attempts.
const BACKOFF_MIN: Duration = Duration::from_millis(10);
/// The longest pause, so that a node that is back is noticed soon.
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// The unit in which bytes under way are counted.
const BUDGET_UNIT: usize = 1024;

/// What became of a connection or of an attempt to make one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LostReason {
    /// It was reset.
    Reset,
    /// Nobody listens there.
    Refused,
    /// The peer closed it.
    Eof,
    /// Nothing came back in time.
    Timeout,
    /// No route, or another error of the network.
    Network,
    /// One side refused the other's hello.
    Rejected,
    /// The peer sent what is not a valid frame.
    Garbled,
    /// The address of the node is not known.
    NoAddress,
    /// We closed it.
    Stopped,
}

impl std::fmt::Display for LostReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reset => "connection reset",
            Self::Refused => "connection refused",
            Self::Eof => "connection closed by the peer",
            Self::Timeout => "timed out",
            Self::Network => "network error",
            Self::Rejected => "hello refused",
            Self::Garbled => "invalid frame",
            Self::NoAddress => "address not known",
            Self::Stopped => "closed by us",
        })
    }
}

impl From<&io::Error> for LostReason {
    fn from(error: &io::Error) -> Self {
        use io::ErrorKind as E;
        match error.kind() {
            E::ConnectionRefused => Self::Refused,
            E::ConnectionReset | E::ConnectionAborted | E::BrokenPipe => Self::Reset,
            E::TimedOut => Self::Timeout,
            E::UnexpectedEof => Self::Eof,
            _ => Self::Network,
        }
    }
}

impl From<&ReadError> for LostReason {
    fn from(error: &ReadError) -> Self {
        match error {
            ReadError::Eof => Self::Eof,
            ReadError::Io(error) => error.into(),
            ReadError::Frame(_) => Self::Garbled,
        }
    }
}

/// An attempt that failed.
#[derive(Debug, Clone)]
struct Failure {
    reason: LostReason,
    reject: Option<HelloReject>,
}

impl Failure {
    fn error(&self, node: NodeId) -> CallError {
        match &self.reject {
            Some(reject) => CallError::Rejected(reject.clone()),
            None => CallError::Unreachable { node, reason: self.reason },
        }
    }
}

impl From<LostReason> for Failure {
    fn from(reason: LostReason) -> Self {
        Self { reason, reject: None }
    }
}

impl From<GreetError> for Failure {
    fn from(error: GreetError) -> Self {
        match error {
            GreetError::Rejected(reject) | GreetError::RejectedByPeer(reject) => {
                Self { reason: LostReason::Rejected, reject: Some(reject) }
            }
            GreetError::Read(error) => LostReason::from(&error).into(),
            GreetError::Write(error) => LostReason::from(&error).into(),
        }
    }
}

pub(super) struct Link {
    node: NodeId,
    class: Class,
    next_id: AtomicU64,
    /// Held for moments, and never while a socket is written except for requests kept while connecting.
    state: Mutex<State>,
    /// Wakes the task when a request wants a connection.
    wanted: Notify,
    count: Arc<Semaphore>,
    bytes: Arc<Semaphore>,
    /// Cancelled when the node leaves or this sheep stops.
    pub(super) stop: CancellationToken,
}

struct State {
    phase: Phase,
    outstanding: HashMap<u64, ReplySender>,
    /// How many replies have come.
    replies: u64,
}

enum Phase {
    Down { failed: Option<(Instant, Failure)> },
    Connecting { kept: Vec<Frame> },
    Up(Arc<Outbox>),
    Stopped,
}

impl Link {
    pub(super) fn new(node: NodeId, class: Class, stop: CancellationToken) -> Arc<Self> {
        let budget = class.budget();
        Arc::new(Self {
            node,
            class,
            next_id: AtomicU64::new(1),
            state: Mutex::new(State {
                phase: Phase::Down { failed: None },
                outstanding: HashMap::new(),
                replies: 0,
            }),
            wanted: Notify::new(),
            count: Arc::new(Semaphore::new(budget.count)),
            bytes: Arc::new(Semaphore::new(budget.bytes / BUDGET_UNIT)),
            stop,
        })
    }

    /// Waits until the budget has room for one more request of `len` bytes.
    pub(super) async fn reserve(&self, len: usize) -> Permit {
        // A request larger than the whole budget goes out alone.
        let units = len.min(self.class.budget().bytes).div_ceil(BUDGET_UNIT);
        let units = u32::try_from(units).expect("budgets are below 4 TiB");
        let never = "the semaphores are never closed";
        let count = Arc::clone(&self.count).acquire_owned().await.expect(never);
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(units).await.expect(never);
        Permit { _count: count, _bytes: bytes }
    }

    /// Queues `frame`, which gets a new id; it is sent if the link is up or comes up at the first attempt.
    pub(super) fn start(self: &Arc<Self>, mut frame: Frame) -> PendingReply {
        let (sender, answer) = oneshot::channel();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        frame.id = id;
        let pending = PendingReply::new(answer, Arc::clone(self), id);
        if let Err(error) = frame.check(&self.class.limits()) {
            let _ = sender.send(Err(error.into()));
            return pending;
        }
        let (outbox, under_way) = {
            let mut state = self.state.lock();
            match &mut state.phase {
                Phase::Up(outbox) => {
                    let outbox = Arc::clone(outbox);
                    state.outstanding.insert(id, sender);
                    (outbox, state.outstanding.len())
                }
                Phase::Connecting { kept } => {
                    kept.push(frame);
                    state.outstanding.insert(id, sender);
                    return pending;
                }
                Phase::Down { failed: Some((at, failure)) } if at.elapsed() < BACKOFF_MIN => {
                    let _ = sender.send(Err(failure.error(self.node)));
                    return pending;
                }
                Phase::Down { .. } => {
                    state.phase = Phase::Connecting { kept: vec![frame] };
                    state.outstanding.insert(id, sender);
                    self.wanted.notify_one();
                    return pending;
                }
                Phase::Stopped => {
                    let _ = sender.send(Err(self.stopped()));
                    return pending;
                }
            }
        };
        outbox.push(&frame, under_way);
        pending
    }

    /// Nobody waits for this reply any more.
    pub(super) fn forget(&self, id: u64) {
        let mut state = self.state.lock();
        if state.outstanding.remove(&id).is_some()
            && let Phase::Connecting { kept } = &mut state.phase
        {
            kept.retain(|frame| frame.id != id);
        }
    }

    pub(super) fn stopped(&self) -> CallError {
        CallError::Unreachable { node: self.node, reason: LostReason::Stopped }
    }

    /// How many replies have come, if one is waited for or there is no connection.
    pub(super) fn waits(&self) -> Option<u64> {
        let state = self.state.lock();
        let waits = match &state.phase {
            Phase::Up(_) => !state.outstanding.is_empty(),
            Phase::Connecting { .. } | Phase::Down { failed: Some(_) } => true,
            Phase::Down { failed: None } | Phase::Stopped => false,
        };
        waits.then_some(state.replies)
    }

    /// Wants a connection, without a request for it.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// Keeps the link up until it is stopped.
    pub(super) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut backoff = BACKOFF_MIN;
        let mut retry_at = None;
        loop {
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = self.wanted.notified() => {}
                () = async { sleep_until(retry_at.unwrap_or_else(Instant::now)).await }, if retry_at.is_some() => {}
            }
            self.connecting();
            // An abandoned attempt closes its socket.
            let attempt = tokio::select! {
                () = self.stop.cancelled() => break,
                attempt = self.connect(&shared) => attempt,
            };
            let reason = match attempt {
                Ok((hello, write, reader)) => {
                    backoff = BACKOFF_MIN;
                    self.serve(&shared, &hello, write, reader).await
                }
                Err(failure) => {
                    tracing::debug!(node = %self.node, class = ?self.class, ?failure, "peer not reached");
                    let error = failure.error(self.node);
                    let reason = failure.reason;
                    self.down(Phase::Down { failed: Some((Instant::now(), failure)) }, &error);
                    reason
                }
            };
            if reason != LostReason::NoAddress {
                shared.emit(PeerEvent::Lost { node: self.node, class: self.class, reason });
            }
            retry_at = Some(Instant::now() + backoff);
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
        let error = self.stopped();
        self.down(Phase::Stopped, &error);
    }

    fn connecting(&self) {
        let mut state = self.state.lock();
        if let Phase::Down { .. } = state.phase {
            state.phase = Phase::Connecting { kept: Vec::new() };
        }
    }

    /// Ends a phase; every request under way gets `error`.
    fn down(&self, phase: Phase, error: &CallError) {
        let (old, outstanding) = {
            let mut state = self.state.lock();
            (std::mem::replace(&mut state.phase, phase), std::mem::take(&mut state.outstanding))
        };
        if let Phase::Up(outbox) = old {
            outbox.close();
        }
        for sender in outstanding.into_values() {
            let _ = sender.send(Err(error.clone()));
        }
    }

    async fn connect(&self, shared: &Shared) -> Result<(Hello, WriteHalf, FrameReader), Failure> {
        let address = shared.address(self.node).ok_or(LostReason::NoAddress)?;
        let Stream { read, mut write } = timeout(CONNECT_TIMEOUT, shared.net.connect(address))
            .await
            .map_err(|_| LostReason::Timeout)?
            .map_err(|error| LostReason::from(&error))?;
        let mut reader = FrameReader::new(read, HELLO_LIMITS);
        let greeting = hello::dial(&*shared.greeter, self.node, self.class, &mut reader, &mut write);
        let hello = timeout(HELLO_TIMEOUT, greeting).await.map_err(|_| LostReason::Timeout)??;
        reader.set_limits(self.class.limits());
        Ok((hello, write, reader))
    }

    /// Puts the link up and hands out replies until the connection is lost.
    async fn serve(
        &self,
        shared: &Shared,
        hello: &Hello,
        write: WriteHalf,
        mut reader: FrameReader,
    ) -> LostReason {
        let outbox = Outbox::new(write, self.stop.child_token());
        let writer = Arc::clone(&outbox);
        shared.tasks.spawn(async move { writer.run().await });
        self.up(&outbox);
        let session = hello.session;
        shared.emit(PeerEvent::Connected { node: self.node, class: self.class, session });
        let reason = {
            let mut closed = pin!(outbox.closed.cancelled());
            loop {
                if let Err(error) = self.deliver(&mut reader) {
                    break error;
                }
                let read = tokio::select! {
                    biased;
                    () = &mut closed => break if self.stop.is_cancelled() { LostReason::Stopped } else { LostReason::Reset },
                    read = reader.fill() => read,
                };
                if let Err(error) = read {
                    break LostReason::from(&error);
                }
            }
        };
        let error = CallError::Disconnected { node: self.node, reason };
        self.down(Phase::Down { failed: None }, &error);
        reason
    }

    fn up(&self, outbox: &Arc<Outbox>) {
        let mut state = self.state.lock();
        // Under the lock, so that no later request overtakes those kept.
        if let Phase::Connecting { kept } = &state.phase {
            kept.iter().for_each(|frame| outbox.push(frame, kept.len()));
        }
        state.phase = Phase::Up(Arc::clone(outbox));
    }

    /// Gives the replies that have been read to those who wait for them.
    fn deliver(&self, reader: &mut FrameReader) -> Result<(), LostReason> {
        loop {
            let frame = match reader.buffered() {
                Ok(Some(frame)) => frame,
                Ok(None) => return Ok(()),
                Err(error) => {
                    tracing::warn!(node = %self.node, %error, "peer sent an invalid frame");
                    return Err(LostReason::Garbled);
                }
            };
            if frame.kind != Kind::Reply {
                tracing::warn!(node = %self.node, kind = ?frame.kind, "peer sent something else than a reply");
                return Err(LostReason::Garbled);
            }
            // Nobody may be waiting any more.
            let sender = {
                let mut state = self.state.lock();
                state.replies += 1;
                state.outstanding.remove(&frame.id)
            };
            if let Some(sender) = sender {
                let _ =
                    sender.send(Ok(Reply { status: frame.code, meta: frame.meta, payload: frame.payload }));
            }
        }
    }
}
