//! Cutting a range of a VDI into the parts that lie in its objects.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use sheep::bench::spans;

fn span(c: &mut Criterion) {
    let mut group = c.benchmark_group("span");
    for (name, offset, len) in [
        ("4 KiB in one object", 123 << 12, 4 << 10),
        ("1 MiB over a border", (4 << 20) - 4096, 1 << 20),
        ("32 MiB in nine objects", 1 << 20, 32 << 20),
    ] {
        group.bench_function(name, |b| {
            b.iter(|| spans(black_box(offset), black_box(len)).map(|span| u64::from(span.len)).sum::<u64>());
        });
    }
}

criterion_group!(benches, span);
criterion_main!(benches);
