//! The transmission phase of one connection: one task that reads requests, starts them, and answers each
//! when it is done, in whatever order that is.
//!
//! ```text
//!  socket ─▶ Input ─▶ validate ─▶ charge ─▶ (payload) ─▶ start ─┬─ done at once ───▶ Output ─▶ socket
//!     ▲                                                        └─▶ in flight ─▶ ─▶───┘
//!     └── not read while the window is full or the charge has to wait
//! ```
//!
//! Everything happens in one poll function, so that a request that the export answers at once costs no task,
//! no channel and no wake-up, and replies that are ready together leave in one write.
//!
//! **Ordering.** Requests run concurrently. FLUSH covers the writes whose replies were sent before it came,
//! which is what the protocol asks; the export keeps that promise for all connections together.
//!
//! **Slow clients.** A client that does not read its replies fills the window, and then it is not read any
//! more. That is all that happens to it, for as long as it likes, unless others wait for the memory it holds
//! or it has said goodbye: then it is dropped after [`STALL_MAX`] without a byte moved.
//!
//! **The end.** After DISC, the end of the stream, or a stop, nothing more is read; what is in flight is
//! finished and answered. Requests that had not been started by a stop get no answer at all: the kernel's
//! client sends such requests again on its next connection, but would pass an ESHUTDOWN on to the guest. If
//! the socket fails, what is in flight is finished all the same, because only then may the export be closed.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tracing::error;

use super::budget::{Budget, Charge, Ledger, REQUEST_COST};
use super::errno::Errno;
use super::export::{BlockExtent, Export, IoError, Segment, WriteFlags};
use super::input::Input;
use super::output::Output;
use super::reply;
use super::request::{BadMagic, Command, HEADER_LEN, Header, Terms, validate};
use super::server::{EXTENTS_MAX, PAYLOAD_LEN_MAX, REQUESTS_MAX};

/// How long a client that has to move may not move a byte. Checked that often, so up to twice that. Longer
/// than a few lost packets, and short, because while it lasts large requests of others may have to wait.
const STALL_MAX: Duration = Duration::from_secs(5);

/// A refused write's payload is read and dropped up to this length; beyond it the connection is closed.
const SKIP_LEN_MAX: u32 = 2 * PAYLOAD_LEN_MAX;

/// What extents take on their way out.
const STATUS_COST: u32 = EXTENTS_MAX as u32 * 24;

/// Why a connection ended before its client said so.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Magic(#[from] BadMagic),
    #[error("a write of {0} bytes was announced")]
    Oversized(u32),
    #[error("no byte moved for {} s while others waited for its memory, or after its end", STALL_MAX.as_secs())]
    Stalled,
}

/// Serves a connection to its end. When this returns, none of its requests is running.
pub(super) async fn serve<S>(
    socket: &mut S,
    export: &dyn Export,
    terms: Terms,
    budget: &Arc<Budget>,
    stop: CancellationToken,
) -> Result<(), Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection {
        export,
        terms,
        socket,
        input: Input::new(Arc::clone(budget)),
        output: Output::default(),
        ledger: Ledger::new(Arc::clone(budget)),
        budget,
        stage: Stage::Header,
        in_flight: FuturesUnordered::new(),
        stop: std::iter::once(Box::pin(stop.cancelled_owned())).collect(),
        watchdog: None,
    };
    let result = std::future::poll_fn(|cx| connection.poll(cx)).await;
    while connection.in_flight.next().await.is_some() {}
    result
}

struct Connection<'a, S> {
    export: &'a dyn Export,
    terms: Terms,
    socket: &'a mut S,
    input: Input,
    output: Output,
    ledger: Ledger,
    budget: &'a Budget,
    stage: Stage,
    in_flight: FuturesUnordered<Running<'a>>,
    /// One future, in a set because a set polls it only when it has been woken: the token itself takes a lock
    /// shared by all connections.
    stop: FuturesUnordered<Pin<Box<WaitForCancellationFutureOwned>>>,
    watchdog: Option<Watchdog>,
}

/// Where reading is.
enum Stage {
    /// A request comes next.
    Header,
    /// The request has to be charged before anything is allocated for it.
    Charge { header: Header, command: Command },
    /// A write's payload is being read.
    Payload { header: Header, flags: WriteFlags, charge: Charge, payload: Vec<u8> },
    /// The payload of a refused write is being dropped.
    Skip { header: Header, errno: Errno, left: usize },
    /// Nothing is read any more.
    Closed,
}

/// What has to happen before reading can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    /// More bytes.
    Input,
    /// Fewer requests, or less memory in use.
    Room,
    /// Nothing: it will not go on.
    Nothing,
}

/// Looks from time to time whether a client that should move does.
struct Watchdog {
    timer: Pin<Box<Sleep>>,
    /// Bytes moved when the timer was set.
    moved: u64,
}

impl<'a, S> Connection<'a, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Poll::Ready(Some(())) = self.stop.poll_next_unpin(cx) {
            self.close();
        }
        loop {
            while let Poll::Ready(Some(finished)) = self.in_flight.poll_next_unpin(cx) {
                self.answer(finished);
            }
            let need = self.advance(cx)?;
            let replies = self.output.reply_count();
            let written = self.output.poll_write(cx, self.socket, &mut self.ledger)?;
            match need {
                Need::Nothing if written.is_ready() && self.in_flight.is_empty() => {
                    return Poll::Ready(Ok(()));
                }
                Need::Room if self.output.reply_count() < replies => continue,
                Need::Input => match self.poll_fill(cx)? {
                    Poll::Ready(0) => {
                        self.close();
                        continue;
                    }
                    Poll::Ready(_) => continue,
                    Poll::Pending => {}
                },
                Need::Nothing | Need::Room => {}
            }
            return if self.poll_stalled(cx).is_ready() {
                Poll::Ready(Err(Error::Stalled))
            } else {
                Poll::Pending
            };
        }
    }

    /// Starts what has been read, until something is missing.
    fn advance(&mut self, cx: &mut Context<'_>) -> Result<Need, Error> {
        loop {
            match std::mem::replace(&mut self.stage, Stage::Header) {
                Stage::Header => {
                    if self.in_flight.len() + self.output.reply_count() >= REQUESTS_MAX {
                        return Ok(Need::Room);
                    }
                    let Some(bytes) = self.input.header() else {
                        return Ok(Need::Input);
                    };
                    let header = Header::decode(bytes)?;
                    self.input.consume(HEADER_LEN);
                    self.accept(header)?;
                }
                Stage::Charge { header, command } => {
                    let Poll::Ready(charge) = self.ledger.poll_charge(cx, cost(&command)) else {
                        self.stage = Stage::Charge { header, command };
                        return Ok(Need::Room);
                    };
                    if let Command::Write { len, flags, .. } = command {
                        let payload = Vec::with_capacity(len as usize);
                        self.stage = Stage::Payload { header, flags, charge, payload };
                    } else {
                        let operation = Operation::start(self.export, command);
                        self.run(cx, header, command, charge, operation);
                    }
                }
                Stage::Payload { header, flags, charge, mut payload } => {
                    let len = header.len as usize;
                    self.input.move_to(&mut payload, len);
                    if payload.len() < len {
                        self.stage = Stage::Payload { header, flags, charge, payload };
                        return Ok(Need::Input);
                    }
                    let command = Command::Write { offset: header.offset, len: header.len, flags };
                    let operation =
                        Operation::Act(self.export.write(header.offset, Bytes::from(payload), flags));
                    self.run(cx, header, command, charge, operation);
                }
                Stage::Skip { header, errno, left } => {
                    let left = left - self.input.consume(left);
                    if left > 0 {
                        self.stage = Stage::Skip { header, errno, left };
                        return Ok(Need::Input);
                    }
                    self.refuse(&header, errno);
                }
                Stage::Closed => {
                    self.stage = Stage::Closed;
                    return Ok(Need::Nothing);
                }
            }
        }
    }

    /// Decides where a request goes.
    fn accept(&mut self, header: Header) -> Result<(), Error> {
        match validate(&header, &self.terms) {
            Ok(Command::Disconnect) => self.close(),
            Ok(Command::Nothing) => {
                let result =
                    if header.wants_chunks() { Outcome::Read(Ok(Vec::new())) } else { Outcome::Act(Ok(())) };
                self.answer(Finished { header, command: Command::Nothing, charge: None, outcome: result });
            }
            Ok(command) => self.stage = Stage::Charge { header, command },
            Err(errno) => match header.payload_len() {
                0 => self.refuse(&header, errno),
                len if len > SKIP_LEN_MAX => return Err(Error::Oversized(len)),
                len => self.stage = Stage::Skip { header, errno, left: len as usize },
            },
        }
        Ok(())
    }

    /// Polls an operation once; most reads from a warm cache are done then.
    fn run(
        &mut self,
        cx: &mut Context<'_>,
        header: Header,
        command: Command,
        charge: Charge,
        operation: Operation<'a>,
    ) {
        let mut running = Running { header, command, charge: Some(charge), operation };
        match Pin::new(&mut running).poll(cx) {
            Poll::Ready(finished) => self.answer(finished),
            Poll::Pending => self.in_flight.push(running),
        }
    }

    /// Queues the reply.
    fn answer(&mut self, finished: Finished) {
        let Finished { header, command, mut charge, outcome } = finished;
        let Header { cookie, offset, len, .. } = header;
        // A write's payload is gone by now, and holes never took memory.
        let keeps_memory = match &outcome {
            Outcome::Act(_) => false,
            Outcome::Read(result) => result.iter().flatten().any(|part| matches!(part, Segment::Data(_))),
            Outcome::Status(_) => true,
        };
        let output = &mut self.output;
        match outcome {
            Outcome::Act(result) => reply::simple(output, cookie, result.map_err(Errno::from)),
            Outcome::Read(Ok(segments)) if !covers(&segments, len) => {
                error!(offset, len, "an export's read does not cover its range");
                return self.fail(&header, charge, Errno::Io);
            }
            Outcome::Read(Ok(segments)) => match command {
                _ if !self.terms.structured => reply::simple_read(output, cookie, segments),
                Command::Read { one_chunk: true, .. } => {
                    reply::read_in_one(output, cookie, offset, segments);
                }
                _ => reply::read(output, cookie, offset, segments),
            },
            Outcome::Status(Ok(extents)) if extents.first().is_none_or(|first| first.len == 0) => {
                error!(offset, len, "an export's block status says nothing");
                return self.fail(&header, charge, Errno::Io);
            }
            Outcome::Status(Ok(extents)) => {
                let one = matches!(command, Command::BlockStatus { one: true, .. });
                let count_max = if one { 1 } else { EXTENTS_MAX };
                reply::block_status(output, cookie, len, &extents, count_max);
            }
            Outcome::Read(Err(error)) | Outcome::Status(Err(error)) => {
                return self.fail(&header, charge, error.into());
            }
        }
        if !keeps_memory && let Some(charge) = charge.take() {
            self.ledger.release(charge);
        }
        self.output.end_reply(charge);
    }

    fn fail(&mut self, header: &Header, charge: Option<Charge>, errno: Errno) {
        if let Some(charge) = charge {
            self.ledger.release(charge);
        }
        self.refuse(header, errno);
    }

    fn refuse(&mut self, header: &Header, errno: Errno) {
        if self.terms.structured && header.wants_chunks() {
            reply::error(&mut self.output, header.cookie, errno);
        } else {
            reply::simple(&mut self.output, header.cookie, Err(errno));
        }
        self.output.end_reply(None);
    }

    /// Reads no more.
    fn close(&mut self) {
        self.ledger.stop_waiting();
        if let Stage::Payload { charge, .. } = std::mem::replace(&mut self.stage, Stage::Closed) {
            self.ledger.release(charge);
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match &mut self.stage {
            Stage::Payload { header, payload, .. } => {
                self.input.poll_fill_payload(cx, self.socket, payload, header.len as usize)
            }
            _ => self.input.poll_fill(cx, self.socket),
        }
    }

    /// Ready when the connection must be dropped for not moving.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let closed = matches!(self.stage, Stage::Closed);
        let waits = !self.output.is_empty() || matches!(self.stage, Stage::Payload { .. });
        let watched = waits && (closed || self.ledger.holds_shared());
        let moved = self.input.received() + self.output.written();
        if self.watchdog.is_none() && watched {
            self.watchdog = Some(Watchdog { timer: Box::pin(sleep(STALL_MAX)), moved });
        }
        while let Some(watchdog) = &mut self.watchdog {
            ready!(watchdog.timer.as_mut().poll(cx));
            if !watched {
                self.watchdog = None;
                break;
            }
            if watchdog.moved == moved && (closed || self.budget.is_short()) {
                return Poll::Ready(());
            }
            watchdog.moved = moved;
            watchdog.timer.as_mut().reset(Instant::now() + STALL_MAX);
        }
        Poll::Pending
    }
}

/// What a request holds until its reply is written.
fn cost(command: &Command) -> u32 {
    let payload = match command {
        Command::Read { len, .. } | Command::Write { len, .. } => *len,
        Command::BlockStatus { .. } => STATUS_COST,
        _ => 0,
    };
    REQUEST_COST + payload
}

fn covers(segments: &[Segment], len: u32) -> bool {
    let covered = segments.iter().try_fold(0_u64, |sum, segment| sum.checked_add(segment.len()));
    covered == Some(u64::from(len))
}

/// What the export was asked to do.
enum Operation<'a> {
    Read(BoxFuture<'a, Result<Vec<Segment>, IoError>>),
    Act(BoxFuture<'a, Result<(), IoError>>),
    Status(BoxFuture<'a, Result<Vec<BlockExtent>, IoError>>),
}

impl<'a> Operation<'a> {
    /// Everything but writes, which come with their payload.
    fn start(export: &'a dyn Export, command: Command) -> Self {
        match command {
            Command::Read { offset, len, .. } => Self::Read(export.read(offset, len)),
            Command::Flush => Self::Act(export.flush()),
            Command::Trim { offset, len, fua } => Self::Act(export.trim(offset, u64::from(len), fua)),
            Command::Cache { offset, len } => Self::Act(export.cache(offset, u64::from(len))),
            Command::WriteZeroes { offset, len, flags } => {
                Self::Act(export.write_zeroes(offset, u64::from(len), flags))
            }
            Command::BlockStatus { offset, len, .. } => {
                Self::Status(export.block_status(offset, u64::from(len)))
            }
            Command::Write { .. } | Command::Disconnect | Command::Nothing => {
                unreachable!("answered or given a payload before")
            }
        }
    }
}

/// A request that the export has not finished.
struct Running<'a> {
    header: Header,
    command: Command,
    charge: Option<Charge>,
    operation: Operation<'a>,
}

struct Finished {
    header: Header,
    command: Command,
    charge: Option<Charge>,
    outcome: Outcome,
}

enum Outcome {
    Read(Result<Vec<Segment>, IoError>),
    Act(Result<(), IoError>),
    Status(Result<Vec<BlockExtent>, IoError>),
}

impl Future for Running<'_> {
    type Output = Finished;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Finished> {
        let outcome = match &mut self.operation {
            Operation::Read(read) => Outcome::Read(ready!(read.as_mut().poll(cx))),
            Operation::Act(act) => Outcome::Act(ready!(act.as_mut().poll(cx))),
            Operation::Status(status) => Outcome::Status(ready!(status.as_mut().poll(cx))),
        };
        let Self { header, command, charge, .. } = &mut *self;
        Poll::Ready(Finished { header: *header, command: *command, charge: charge.take(), outcome })
    }
}

#[cfg(test)]
mod tests;
