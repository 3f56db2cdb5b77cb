//! The checksum of one block and of a large payload.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use wire::checksum;

fn crc(c: &mut Criterion) {
    let mut group = c.benchmark_group("crc32c");
    for (name, len) in [("4 KiB", 4 << 10), ("1 MiB", 1 << 20)] {
        let data: Vec<u8> = (0..len).map(|i| (i * 31) as u8).collect();
        group.throughput(Throughput::Bytes(len as u64));
        group.bench_function(name, |b| b.iter(|| checksum::of_pieces(0, black_box(&data))));
    }
}

criterion_group!(benches, crc);
criterion_main!(benches);
