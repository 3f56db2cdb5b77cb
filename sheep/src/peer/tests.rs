use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, broadcast};
use wire::frame::{Decoded, Frame, Kind, Limits, Payload};
use wire::hello::{BootId, Hello, HelloReject, PROTOCOL_VERSIONS, RejectCode};
use wire::id::{ClusterId, NodeId, Session};

use super::*;
use crate::mutant::{Mutant, plant};

const SERVER: NodeId = NodeId(1);
const CLIENT: NodeId = NodeId(2);
/// Nothing here takes as long unless it hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// Operations of the test service.
mod op {
    /// Answers at once with what it got.
    pub(super) const ECHO: u16 = 1;
    /// Keeps the responder until the test takes it.
    pub(super) const HOLD: u16 = 2;
    /// Drops the responder.
    pub(super) const DROP: u16 = 3;
}

struct Node {
    id: NodeId,
    cluster: u128,
}

impl Greeter for Node {
    fn hello(&self) -> Hello {
        Hello {
            versions: PROTOCOL_VERSIONS,
            features: 0,
            cluster: Some(ClusterId(self.cluster)),
            session: Session { node: self.id, start: 7 },
            boot: BootId([9; 16]),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            class: 0,
        }
    }

    fn check(&self, theirs: &Hello) -> Result<(), HelloReject> {
        if theirs.cluster == Some(ClusterId(self.cluster)) {
            Ok(())
        } else {
            Err(HelloReject::new(RejectCode::Cluster, "another ring"))
        }
    }
}

fn node(id: NodeId) -> Arc<Node> {
    Arc::new(Node { id, cluster: 5 })
}

/// Records what it is asked.
#[derive(Default)]
struct Recorder {
    seen: Mutex<Vec<(Class, Request)>>,
    held: Mutex<VecDeque<(Class, Responder)>>,
    closed: Mutex<Vec<PeerInfo>>,
    changed: Notify,
}

impl Service for Recorder {
    fn submit(&self, from: &Arc<PeerInfo>, request: Request, reply: Responder) {
        self.seen.lock().push((from.class, request.clone()));
        match request.op {
            op::ECHO => reply.send(42, request.meta, request.payload),
            op::HOLD => self.held.lock().push_back((from.class, reply)),
            op::DROP => drop(reply),
            other => panic!("operation {other}"),
        }
        self.changed.notify_waiters();
    }

    fn closed(&self, from: &Arc<PeerInfo>) {
        self.closed.lock().push((**from).clone());
        self.changed.notify_waiters();
    }
}

impl Recorder {
    async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if holds(self) {
                    return;
                }
                // The timer covers changes the service does not make, such as a responder that is answered.
                let _ = tokio::time::timeout(Duration::from_millis(20), changed).await;
            }
        };
        let seen = || self.seen.lock().len();
        assert!(tokio::time::timeout(DEADLINE, wait).await.is_ok(), "not {what}; {} seen", seen());
    }

    fn seen(&self, class: Class) -> usize {
        self.seen.lock().iter().filter(|(c, _)| *c == class).count()
    }
}

struct Pair {
    service: Arc<Recorder>,
    listener: Listener,
    peers: Peers,
}

fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

async fn listen(service: &Arc<Recorder>, at: SocketAddr) -> Listener {
    Listener::start(&TcpNet, at, node(SERVER), Arc::clone(service) as _).await.expect("a free port")
}

async fn pair() -> Pair {
    let service = Arc::new(Recorder::default());
    let listener = listen(&service, any_port()).await;
    let peers = Peers::new(Arc::new(TcpNet), node(CLIENT));
    peers.set_address(SERVER, listener.local_addr());
    Pair { service, listener, peers }
}

impl Pair {
    fn start(&self, class: Class, op: u16, data: Vec<u8>) -> PendingReply {
        self.peers.start(SERVER, class, op, Bytes::from_static(b"m"), Payload::new(0, data.into()))
    }

    async fn echo(&self) -> Result<Reply, CallError> {
        self.peers
            .call(SERVER, Class::Replica, op::ECHO, Bytes::new(), Payload::empty(), Some(DEADLINE))
            .await
    }
}

async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

async fn lost(events: &mut broadcast::Receiver<PeerEvent>) -> LostReason {
    loop {
        if let PeerEvent::Lost { reason, .. } = in_time(events.recv()).await.expect("an event") {
            return reason;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_gets_its_reply_with_data_of_any_size() {
    let pair = pair().await;
    for len in [0, 1, 4096, 8192, 8193, 100_000, 5 << 20] {
        let data: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let reply = in_time(pair.start(Class::Forward, op::ECHO, data.clone())).await.expect("a reply");
        assert_eq!((reply.status, &reply.meta[..]), (42, &b"m"[..]));
        assert_eq!(reply.payload.data(), &data);
        assert_eq!(reply.payload.verify(), Ok(()));
    }
    in_time(pair.peers.stop()).await;
    in_time(pair.listener.stop()).await;
    let closed = pair.service.closed.lock().clone();
    assert_eq!(closed.len(), 1);
    assert_eq!((closed[0].session, closed[0].class), (Session { node: CLIENT, start: 7 }, Class::Forward));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_arrive_in_the_order_they_were_started() {
    let pair = pair().await;
    // Two threads, ordered by a lock as callers would; sizes vary, so that some writes block.
    let next = Mutex::new(0_u32);
    let mut replies = Vec::new();
    std::thread::scope(|scope| {
        let run = || {
            let mut replies = Vec::new();
            for i in 0..1_000 {
                let mut next = next.lock();
                let meta = Bytes::copy_from_slice(&next.to_le_bytes());
                let data = vec![0; if i % 50 == 0 { 300_000 } else { i }];
                let payload = Payload::new(0, data.into());
                replies.push(pair.peers.start(SERVER, Class::Replica, op::ECHO, meta, payload));
                *next += 1;
            }
            replies
        };
        let threads = [scope.spawn(run), scope.spawn(run)];
        replies.extend(threads.into_iter().flat_map(|t| t.join().expect("no panic")));
    });
    for reply in replies {
        in_time(reply).await.expect("a reply");
    }
    let seen = pair.service.seen.lock();
    let order: Vec<_> =
        seen.iter().map(|(_, r)| u32::from_le_bytes(r.meta[..].try_into().expect("4"))).collect();
    assert_eq!(order, (0..2_000).collect::<Vec<_>>());
}

#[tokio::test]
async fn replies_come_in_any_order() {
    let pair = pair().await;
    let first = pair.start(Class::Replica, op::HOLD, vec![1]);
    let second = pair.start(Class::Replica, op::HOLD, vec![2]);
    pair.service.until("two held", |s| s.held.lock().len() == 2).await;
    let held = std::mem::take(&mut *pair.service.held.lock());
    for (status, (_, reply)) in (0..).zip(held).collect::<Vec<_>>().into_iter().rev() {
        reply.send(status, Bytes::new(), Payload::empty());
    }
    assert_eq!(in_time(second).await.expect("a reply").status, 1);
    assert_eq!(in_time(first).await.expect("a reply").status, 0);
}

#[tokio::test]
async fn a_request_dropped_by_the_service_is_answered() {
    let pair = pair().await;
    let reply = in_time(pair.start(Class::Replica, op::DROP, vec![])).await.expect("a reply");
    assert_eq!(reply.status, status::DROPPED);
}

#[tokio::test]
async fn a_lost_connection_fails_what_is_under_way_and_comes_back() {
    let pair = pair().await;
    let mut events = pair.peers.events();
    let replies: Vec<_> = (0..3).map(|_| pair.start(Class::Replica, op::HOLD, vec![])).collect();
    pair.service.until("three held", |s| s.held.lock().len() == 3).await;
    let address = pair.listener.local_addr();
    in_time(pair.listener.stop()).await;
    for reply in replies {
        let error = in_time(reply).await.expect_err("disconnected");
        assert!(matches!(error, CallError::Disconnected { node: SERVER, .. }), "{error}");
    }
    assert!(matches!(lost(&mut events).await, LostReason::Eof | LostReason::Reset));
    assert_eq!(lost(&mut events).await, LostReason::Refused);
    let error = pair.echo().await.expect_err("nobody listens");
    assert_eq!(error, CallError::Unreachable { node: SERVER, reason: LostReason::Refused });

    // It reconnects on its own.
    let _listener = listen(&pair.service, address).await;
    let mut events = pair.peers.events();
    let session = Session { node: SERVER, start: 7 };
    while in_time(events.recv()).await.expect("an event")
        != (PeerEvent::Connected { node: SERVER, class: Class::Replica, session })
    {}
    assert_eq!(pair.echo().await.expect("a reply").status, 42);
}

#[tokio::test]
async fn a_call_without_an_answer_ends_at_its_deadline() {
    let pair = pair().await;
    pair.echo().await.expect("a reply");
    let (meta, deadline) = (Bytes::new(), Some(Duration::from_millis(50)));
    let call = pair.peers.call(SERVER, Class::Replica, op::HOLD, meta, Payload::empty(), deadline);
    assert_eq!(in_time(call).await, Err(CallError::Timeout { node: SERVER }));
    // The late reply disturbs nobody.
    pair.service.until("it is held", |s| s.held.lock().len() == 1).await;
    pair.service.held.lock().clear();
    assert_eq!(pair.echo().await.expect("a reply").status, 42);
}

#[tokio::test]
async fn an_unknown_node_is_unreachable() {
    let pair = pair().await;
    let call = pair.peers.call(NodeId(99), Class::Control, op::ECHO, Bytes::new(), Payload::empty(), None);
    let expected = CallError::Unreachable { node: NodeId(99), reason: LostReason::NoAddress };
    assert_eq!(in_time(call).await, Err(expected));
}

#[tokio::test]
async fn removing_a_node_closes_its_connections() {
    let pair = pair().await;
    let reply = pair.start(Class::Replica, op::HOLD, vec![]);
    pair.service.until("it is held", |s| s.held.lock().len() == 1).await;
    pair.peers.remove(SERVER);
    assert!(in_time(reply).await.is_err());
    pair.service.until("it is closed", |s| s.closed.lock().len() == 1).await;
}

#[tokio::test]
async fn hellos_that_do_not_match_are_refused_with_the_reason() {
    let service = Arc::new(Recorder::default());
    let listener = listen(&service, any_port()).await;
    let call = |greeter: Arc<Node>, dialled| {
        let peers = Peers::new(Arc::new(TcpNet), greeter);
        peers.set_address(dialled, listener.local_addr());
        async move {
            let call = peers.call(dialled, Class::Replica, op::ECHO, Bytes::new(), Payload::empty(), None);
            match in_time(call).await {
                Err(CallError::Rejected(reject)) => reject.code,
                other => panic!("{other:?}"),
            }
        }
    };
    let stranger = Arc::new(Node { id: CLIENT, cluster: 6 });
    assert_eq!(call(stranger, SERVER).await, RejectCode::Cluster);
    assert_eq!(call(node(CLIENT), NodeId(3)).await, RejectCode::Node);
    assert!(service.seen.lock().is_empty());
}

fn raw_hello(change: impl FnOnce(&mut Hello)) -> BytesMut {
    let mut hello = Hello { class: 2, ..node(CLIENT).hello() };
    change(&mut hello);
    raw(Kind::Hello, 0, hello.encode())
}

fn raw(kind: Kind, code: u16, meta: Bytes) -> BytesMut {
    let mut out = BytesMut::new();
    Frame { kind, code, flags: 0, id: 1, meta, payload: Payload::empty() }.encode(&mut out);
    out
}

/// Sends bytes to a listener and returns all that comes back until it hangs up.
async fn talk(to: SocketAddr, bytes: &[u8]) -> Vec<Frame> {
    let mut stream = TcpStream::connect(to).await.expect("listens");
    stream.write_all(bytes).await.expect("sent");
    let mut answer = Vec::new();
    // A reset is also a way to hang up, when bytes were left unread.
    let _ = in_time(stream.read_to_end(&mut answer)).await;
    let mut answer = BytesMut::from(&answer[..]);
    let mut frames = Vec::new();
    while let Ok(Decoded::Frame(frame)) = Frame::decode(&mut answer, &Limits::DATA) {
        frames.push(frame);
    }
    frames
}

#[tokio::test]
async fn another_version_or_class_is_told_why() {
    let pair = pair().await;
    let refusal = async |hello: BytesMut| {
        let frames = talk(pair.listener.local_addr(), &hello).await;
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].kind, Kind::Reject);
        HelloReject::decode(frames[0].meta.clone()).expect("readable").code
    };
    assert_eq!(refusal(raw_hello(|h| h.versions = 9..=9)).await, RejectCode::Version);
    assert_eq!(refusal(raw_hello(|h| h.class = 77)).await, RejectCode::Class);
    assert_eq!(refusal(raw(Kind::Hello, 0, Bytes::from_static(b"\xff"))).await, RejectCode::Malformed);
    assert_eq!(refusal(raw(Kind::Request, 1, Bytes::new())).await, RejectCode::Malformed);
}

#[tokio::test]
async fn garbage_on_the_port_closes_that_connection_only() {
    let pair = pair().await;
    pair.echo().await.expect("a reply");
    let to = pair.listener.local_addr();
    assert_eq!(talk(to, b"GET / HTTP/1.1\r\n\r\n").await, []);
    // After the hello, too: something else than a request, and a frame whose header claims too much.
    let after_hello = |bytes: BytesMut| [&raw_hello(|_| {})[..], &bytes[..]].concat();
    assert_eq!(talk(to, &after_hello(raw(Kind::Reply, 0, Bytes::new()))).await.len(), 1);
    let oversized = raw(Kind::Request, op::ECHO, Bytes::from(vec![0; (1 << 20) + 1]));
    assert_eq!(talk(to, &after_hello(oversized[..40].into())).await.len(), 1);
    assert_eq!(pair.echo().await.expect("a reply").status, 42);
    assert_eq!(pair.service.seen.lock().len(), 2);
}

#[tokio::test]
async fn a_server_that_talks_garbage_is_not_a_peer() {
    let listener = TcpListener::bind(any_port()).await.expect("a free port");
    let peers = Peers::new(Arc::new(TcpNet), node(CLIENT));
    peers.set_address(SERVER, listener.local_addr().expect("bound"));
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        stream.write_all(b"SSH-2.0-OpenSSH_9.6\r\n").await.expect("sent");
        let _ = stream.read_to_end(&mut Vec::new()).await;
    });
    let call = peers.call(SERVER, Class::Control, op::ECHO, Bytes::new(), Payload::empty(), None);
    let expected = CallError::Unreachable { node: SERVER, reason: LostReason::Garbled };
    assert_eq!(in_time(call).await, Err(expected));
    in_time(server).await.expect("no panic");
}

#[tokio::test]
async fn a_request_that_is_too_long_is_not_sent() {
    let pair = pair().await;
    let meta = Bytes::from(vec![0; (1 << 20) + 1]);
    let call = pair.peers.call(SERVER, Class::Replica, op::ECHO, meta.clone(), Payload::empty(), None);
    assert!(matches!(in_time(call).await, Err(CallError::TooBig(_))));
    // Log entries may be longer.
    let call = pair.peers.call(SERVER, Class::Control, op::ECHO, meta, Payload::empty(), None);
    assert_eq!(in_time(call).await.expect("a reply").meta.len(), (1 << 20) + 1);
}

#[tokio::test]
async fn a_slow_service_stops_being_read_and_other_classes_go_on() {
    let pair = pair().await;
    let count = Class::Forward.budget().count;
    let replies: Vec<_> = (0..count + 100).map(|_| pair.start(Class::Forward, op::HOLD, vec![])).collect();
    pair.service.until("the budget is used up", |s| s.seen(Class::Forward) == count).await;
    // Another class is not held up, and gives the first the time to exceed its budget if it could.
    for _ in 0..20 {
        pair.echo().await.expect("a reply");
    }
    assert_eq!(pair.service.seen(Class::Forward), count);
    pair.service.held.lock().clear();
    pair.service.until("all were seen", |s| s.seen(Class::Forward) == count + 100).await;
    pair.service.held.lock().clear();
    for reply in replies {
        assert_eq!(in_time(reply).await.expect("a reply").status, status::DROPPED);
    }
}

/// The bug that the test before this one is for, put in on purpose.
#[tokio::test]
async fn one_budget_for_all_classes_would_hold_them_all_up() {
    plant(Some(Mutant::OneBudget));
    let pair = pair().await;
    let count = Class::Forward.budget().count;
    let held: Vec<_> = (0..count).map(|_| pair.start(Class::Forward, op::HOLD, vec![])).collect();
    pair.service.until("the budget is used up", |s| s.seen(Class::Forward) == count).await;
    // Without the bug an answer takes a thousandth of this.
    assert!(tokio::time::timeout(Duration::from_millis(500), pair.echo()).await.is_err(), "an answer");
    drop(held);
    plant(None);
}

#[tokio::test]
async fn a_reservation_waits_for_a_place() {
    let pair = pair().await;
    let bytes = Class::Replica.budget().bytes;
    // More than the whole budget counts as the whole budget.
    let all = in_time(pair.peers.reserve(SERVER, Class::Replica, bytes * 2)).await;
    let mut next = Box::pin(pair.peers.reserve(SERVER, Class::Replica, 1));
    assert!(futures::poll!(&mut next).is_pending());
    let reply = pair.start(Class::Replica, op::ECHO, vec![]).holding(all);
    in_time(reply).await.expect("a reply");
    drop(in_time(next).await);
}

#[tokio::test]
async fn a_stopped_mesh_refuses_requests() {
    let pair = pair().await;
    pair.echo().await.expect("a reply");
    in_time(pair.peers.stop()).await;
    let expected = CallError::Unreachable { node: SERVER, reason: LostReason::Stopped };
    assert_eq!(in_time(pair.start(Class::Replica, op::ECHO, vec![])).await, Err(expected));
}
