//! Encoding and decoding peer frames with a 4 KiB and a 1 MiB payload.

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wire::frame::{Decoded, Frame, Kind, Limits, Payload};

fn frame(c: &mut Criterion) {
    let mut group = c.benchmark_group("frame");
    for (name, len) in [("4 KiB", 4 << 10), ("1 MiB", 1 << 20)] {
        let data = Bytes::from(vec![7; len]);
        let payload = Payload::new(0, data.clone());
        let meta = Bytes::from(vec![1; 64]);
        let frame = Frame { kind: Kind::Request, code: 1, flags: 0, id: 1, meta, payload };
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(format!("checksum {name}"), |b| {
            b.iter(|| Payload::new(0, black_box(&data).clone()));
        });
        let mut out = BytesMut::new();
        group.bench_function(format!("encode {name}"), |b| {
            b.iter(|| {
                out.clear();
                black_box(&frame).encode(&mut out);
            });
        });
        let mut buf = BytesMut::new();
        group.bench_function(format!("copy and decode {name}"), |b| {
            b.iter(|| {
                buf.clear();
                buf.extend_from_slice(&out);
                match Frame::decode(&mut buf, &Limits::DATA) {
                    Ok(Decoded::Frame(frame)) => frame.payload.len(),
                    other => unreachable!("a whole frame is in the buffer: {other:?}"),
                }
            });
        });
    }
}

criterion_group!(benches, frame);
criterion_main!(benches);
