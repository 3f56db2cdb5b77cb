//! Requests with 4 KiB of data to a peer over loopback: one at a time, and 32 under way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::stream::{FuturesUnordered, StreamExt};
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

    let mut group = c.benchmark_group("peer");
    group.bench_function("round trip of 4 KiB", |b| {
        b.iter_custom(|rounds| {
            runtime.block_on(async {
                let begin = Instant::now();
                for _ in 0..rounds {
                    start().await.expect("an answer");
                }
                begin.elapsed()
            })
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("round trip of 4 KiB with 32 under way", |b| {
        b.iter_custom(|rounds| {
            runtime.block_on(async {
                let begin = Instant::now();
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
                begin.elapsed()
            })
        });
    });
}

criterion_group!(benches, peer);
criterion_main!(benches);
