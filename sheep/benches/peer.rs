//! Requests with 4 KiB of data to a peer over loopback: one at a time, and 32 under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, criterion_group, criterion_main};
use futures::stream::{FuturesUnordered, StreamExt};
use rustix::time::{ClockId, clock_gettime};
use sheep::peer::{
    Class, Greeter, Listener, PeerInfo, Peers, PendingReply, Request, Responder, Service, TcpNet,
};
use wire::frame::Payload;
use wire::hello::{BootId, Hello, HelloReject, PROTOCOL_VERSIONS};
use wire::id::{NodeId, Session};

const SERVER: NodeId = NodeId(1);
const DEPTH: usize = 32;

struct Node(NodeId);

impl Greeter for Node {
    fn hello(&self) -> Hello {
        Hello {
            versions: PROTOCOL_VERSIONS,
            features: 0,
            cluster: None,
            session: Session { node: self.0, start: 1 },
            boot: BootId::default(),
            address: SocketAddr::from(([127, 0, 0, 1], 1)),
            class: 0,
        }
    }

    fn check(&self, _: &Hello) -> Result<(), HelloReject> {
        Ok(())
    }
}

/// Answers at once with the data of the request.
struct Echo;

impl Service for Echo {
    fn submit(&self, _: &Arc<PeerInfo>, request: Request, reply: Responder) {
        reply.send(0, request.meta, request.payload);
    }

    fn closed(&self, _: &Arc<PeerInfo>) {}
}

fn peer(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let (peers, _listener) = runtime.block_on(async {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let greeter = Arc::new(Node(SERVER));
        let listener = Listener::start(&TcpNet, any, greeter, Arc::new(Echo)).await.expect("a free port");
        let peers = Peers::new(Arc::new(TcpNet), Arc::new(Node(NodeId(2))));
        peers.set_address(SERVER, listener.local_addr());
        (peers, listener)
    });
    let meta = Bytes::from(vec![1; 64]);
    let payload = Payload::new(0, Bytes::from(vec![7; 4096]));
    let start = || peers.start(SERVER, Class::Replica, 1, meta.clone(), payload.clone());

    let one_by_one = async |rounds| {
        for _ in 0..rounds {
            start().await.expect("an answer");
        }
    };
    let many_under_way = async |rounds| {
        let mut replies = FuturesUnordered::<PendingReply>::new();
        for _ in 0..rounds {
            if replies.len() == DEPTH {
                replies.next().await.expect("not empty").expect("an answer");
            }
            replies.push(start());
        }
        while let Some(reply) = replies.next().await {
            reply.expect("an answer");
        }
    };
    let mut group = c.benchmark_group("peer");
    for (clock, now) in [("time", now as fn() -> Duration), ("CPU of both sides", cpu_time)] {
        group.bench_function(format!("4 KiB one by one, {clock}"), |b| {
            b.iter_custom(|rounds| {
                let begin = now();
                runtime.block_on(one_by_one(rounds));
                now() - begin
            });
        });
        group.bench_function(format!("4 KiB with 32 under way, {clock}"), |b| {
            b.iter_custom(|rounds| {
                let begin = now();
                runtime.block_on(many_under_way(rounds));
                now() - begin
            });
        });
    }
}

fn now() -> Duration {
    since(ClockId::Monotonic)
}

/// User and system time of this process: says what a request costs even when the machine is busy.
fn cpu_time() -> Duration {
    since(ClockId::ProcessCPUTime)
}

fn since(clock: ClockId) -> Duration {
    Duration::try_from(clock_gettime(clock)).expect("these clocks do not go below zero")
}

criterion_group!(benches, peer);
criterion_main!(benches);
