//! Requests from other nodes.
//!
//! One task per connection reads requests and gives them to the [`Service`] in the order they came. The
//! service keeps the [`Responder`] and answers when it can, from any thread and in any order. While a
//! connection has too much unanswered it is not read: the sender feels it through TCP.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use wire::frame::{Frame, Kind, Payload};
use wire::hello::{BootId, Hello, HelloReject};
use wire::id::Session;

use super::class::{Budget, Class};
use super::hello::{self, GreetError, Greeter, HELLO_LIMITS, HELLO_TIMEOUT};
use super::net::{Accept, Net, Stream};
use super::outbox::Outbox;
use super::reader::{FrameReader, ReadError};

/// Three classes from each of 6,144 nodes, and as many again that are about to be noticed as dead.
const CONNECTIONS_MAX: usize = 36_864;
/// When the process is out of file descriptors, accepting is tried again after this.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Statuses that the transport itself answers with; services use those below `0xff00`.
pub mod status {
    /// The service dropped the request unanswered; it may have been executed.
    pub const DROPPED: u16 = 0xff01;
    /// The answer was too long to send; the request was executed.
    pub const REPLY_TOO_BIG: u16 = 0xff02;
}

/// Executes requests.
pub trait Service: Send + Sync + 'static {
    /// Takes a request. Called in the order in which `from` sent them; must not block.
    fn submit(&self, from: &Arc<PeerInfo>, request: Request, reply: Responder);

    /// No more requests come over this connection. Answers to those that did are dropped.
    fn closed(&self, from: &Arc<PeerInfo>);
}

/// Who sends requests over a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerInfo {
    /// The node and its start counter.
    pub session: Session,
    /// The boot of its machine.
    pub boot: BootId,
    /// What the connection is for.
    pub class: Class,
    /// Protocol version in use.
    pub version: u32,
    /// Features it knows.
    pub features: u64,
    /// Where it says it is reached.
    pub address: SocketAddr,
}

impl PeerInfo {
    fn new(hello: &Hello, class: Class, version: u32) -> Self {
        Self {
            session: hello.session,
            boot: hello.boot,
            class,
            version,
            features: hello.features,
            address: hello.address,
        }
    }
}

/// What a peer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The operation.
    pub op: u16,
    /// Its parameters.
    pub meta: Bytes,
    /// Object data, not checked yet: see [`Payload::verify`].
    pub payload: Payload,
}

/// Answers one request. Dropped unanswered, it answers [`status::DROPPED`].
#[must_use = "dropping it answers with an error"]
pub struct Responder {
    conn: Arc<Conn>,
    id: u64,
    /// What the request counts for in the connection's budget.
    bytes: usize,
    answered: bool,
}

impl Responder {
    /// Sends the answer, unless the connection is gone.
    pub fn send(mut self, status: u16, meta: Bytes, payload: Payload) {
        let frame = Frame { kind: Kind::Reply, code: status, flags: 0, id: self.id, meta, payload };
        match frame.check(&self.conn.class.limits()) {
            Ok(()) => self.answer(&frame),
            Err(error) => {
                tracing::error!(%error, "reply cannot be sent");
                self.answer_status(status::REPLY_TOO_BIG);
            }
        }
    }

    fn answer_status(&mut self, code: u16) {
        let (meta, payload) = (Bytes::new(), Payload::empty());
        self.answer(&Frame { kind: Kind::Reply, code, flags: 0, id: self.id, meta, payload });
    }

    fn answer(&mut self, frame: &Frame) {
        self.answered = true;
        self.conn.outbox.push(frame, self.conn.load.count.load(Ordering::Relaxed));
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            self.answer_status(status::DROPPED);
        }
        self.conn.load.remove(self.bytes);
    }
}

struct Conn {
    class: Class,
    outbox: Arc<Outbox>,
    load: Load,
}

/// What a connection has asked for and not been answered.
struct Load {
    budget: Budget,
    count: AtomicUsize,
    bytes: AtomicUsize,
    /// Only the connection's reader waits on it.
    less: Notify,
}

impl Load {
    fn add(&self, bytes: usize) {
        self.count.fetch_add(1, Ordering::AcqRel);
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
    }

    fn remove(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.count.fetch_sub(1, Ordering::AcqRel);
        self.less.notify_one();
    }

    fn is_full(&self) -> bool {
        self.count.load(Ordering::Acquire) >= self.budget.count
            || self.bytes.load(Ordering::Acquire) >= self.budget.bytes
    }

    /// Cancel safe.
    async fn room(&self) {
        while self.is_full() {
            self.less.notified().await;
        }
    }
}

/// Listens for other nodes.
pub struct Listener {
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Listener {
    /// Starts listening on `address`; port 0 picks one.
    pub async fn start(
        net: &dyn Net,
        address: SocketAddr,
        greeter: Arc<dyn Greeter>,
        service: Arc<dyn Service>,
    ) -> io::Result<Self> {
        let accept = net.listen(address).await?;
        let address = accept.local_addr()?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let server = Server { greeter, service, stop: stop.clone(), tasks: tasks.clone() };
        tasks.spawn(Arc::new(server).accept(accept));
        Ok(Self { address, stop, tasks })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Closes all connections and returns when the service has been told of each.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

struct Server {
    greeter: Arc<dyn Greeter>,
    service: Arc<dyn Service>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    async fn accept(self: Arc<Self>, mut accept: Box<dyn Accept>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let place = Arc::clone(&places).acquire_owned().await.expect("never closed");
            let accepted = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = accept.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    let server = Arc::clone(&self);
                    self.tasks.spawn(async move {
                        server.connection(stream, from).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "peer connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connection(&self, stream: Stream, from: SocketAddr) {
        let Stream { read, mut write } = stream;
        let mut reader = FrameReader::new(read, HELLO_LIMITS);
        let answer =
            tokio::time::timeout(HELLO_TIMEOUT, hello::answer(&*self.greeter, &mut reader, &mut write));
        let greeted = tokio::select! {
            () = self.stop.cancelled() => return,
            greeted = answer => greeted,
        };
        let (info, class) = match greeted {
            Ok(Ok((hello, class, version))) => (Arc::new(PeerInfo::new(&hello, class, version)), class),
            // Somebody only wanted to know whether somebody is here.
            Ok(Err(GreetError::Read(ReadError::Eof))) => return,
            Ok(Err(error)) => return tracing::info!(%from, %error, "peer connection not opened"),
            Err(_) => return tracing::info!(%from, "peer connection without a hello"),
        };
        reader.set_limits(class.limits());
        let outbox = Outbox::new(write, self.stop.child_token());
        let writer = Arc::clone(&outbox);
        self.tasks.spawn(async move { writer.run().await });
        let load = Load {
            budget: class.budget(),
            count: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            less: Notify::new(),
        };
        let conn = Arc::new(Conn { class, outbox, load });
        let end = self.requests(&conn, &info, &mut reader).await;
        conn.outbox.close();
        match end {
            End::Closed | End::Read(ReadError::Eof | ReadError::Io(_)) => {
                tracing::debug!(peer = %info.session, ?class, reason = %end, "peer connection closed");
            }
            End::Rejected(_) | End::Read(ReadError::Frame(_)) | End::NotARequest(_) => {
                tracing::debug!(peer = %info.session, ?class, reason = %end, "peer connection closed");
            }
        }
        self.service.closed(&info);
    }

    /// Reads requests until the connection ends.
    async fn requests(&self, conn: &Arc<Conn>, info: &Arc<PeerInfo>, reader: &mut FrameReader) -> End {
        let mut closed = pin!(conn.outbox.closed.cancelled());
        loop {
            let is_full = match self.submit(conn, info, reader) {
                Ok(is_full) => is_full,
                Err(end) => return end,
            };
            let more = async {
                if is_full {
                    conn.load.room().await;
                    Ok(())
                } else {
                    reader.fill().await
                }
            };
            let read = tokio::select! {
                biased;
                () = &mut closed => return End::Closed,
                read = more => read,
            };
            if let Err(error) = read {
                return End::Read(error);
            }
        }
    }

    /// Gives the requests that have been read to the service, as far as the budget allows; whether it does
    /// not allow more.
    fn submit(&self, conn: &Arc<Conn>, info: &Arc<PeerInfo>, reader: &mut FrameReader) -> Result<bool, End> {
        let _together = conn.outbox.cork();
        while !conn.load.is_full() {
            let Some(frame) = reader.buffered().map_err(|e| End::Read(e.into()))? else {
                return Ok(false);
            };
            match frame.kind {
                Kind::Request => {}
                Kind::Reject => return Err(End::rejected(frame.meta)),
                Kind::Hello | Kind::Reply => return Err(End::NotARequest(frame.kind)),
            }
            let bytes = frame.meta.len() + frame.payload.len();
            conn.load.add(bytes);
            let reply = Responder { conn: Arc::clone(conn), id: frame.id, bytes, answered: false };
            let request = Request { op: frame.code, meta: frame.meta, payload: frame.payload };
            self.service.submit(info, request, reply);
        }
        Ok(true)
    }
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("closed by us, or it cannot be written")]
    Closed,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("{0}")]
    Rejected(HelloReject),
    #[error("{0:?} instead of a request")]
    NotARequest(Kind),
}

impl End {
    fn rejected(meta: Bytes) -> Self {
        match HelloReject::decode(meta) {
            Ok(reject) => Self::Rejected(reject),
            Err(_) => Self::NotARequest(Kind::Reject),
        }
    }
}
