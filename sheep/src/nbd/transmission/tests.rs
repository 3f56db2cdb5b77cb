#![allow(clippy::unwrap_used)]

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::task::JoinHandle;
use wire::name::ExportName;

use super::*;
use crate::nbd::export::{ClientInfo, Exports};
use crate::nbd::memory::{MemoryDisk, MemoryExports};

const SIZE: u64 = 64 << 20;

struct Rig {
    socket: DuplexStream,
    disk: Arc<MemoryDisk>,
    stop: CancellationToken,
    served: JoinHandle<Result<(), Error>>,
}

/// A server in its transmission phase; `structured` turns on chunks and allocation.
async fn rig(structured: bool, buffer_len: usize, budget: &Arc<Budget>) -> Rig {
    let exports = MemoryExports::default();
    let disk = exports.add("vol", SIZE, false);
    let name: ExportName = "vol".parse().unwrap();
    let export = exports.open(&name, ClientInfo { peer: String::new() }).await.unwrap();
    let terms = Terms { size: SIZE, read_only: false, structured, allocation: structured };
    let (socket, mut far) = tokio::io::duplex(buffer_len);
    let stop = CancellationToken::new();
    let (token, budget) = (stop.clone(), Arc::clone(budget));
    let served = tokio::spawn(async move { serve(&mut far, export.as_ref(), terms, &budget, token).await });
    Rig { socket, disk, stop, served }
}

fn request(kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

impl Rig {
    async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// The errno and cookie of a simple reply.
    async fn reply(&mut self) -> (u32, u64) {
        assert_eq!(self.socket.read_u32().await.unwrap(), 0x6744_6698);
        (self.socket.read_u32().await.unwrap(), self.socket.read_u64().await.unwrap())
    }
}

#[tokio::test]
async fn pipelined_writes_of_all_sizes_are_read_back() {
    let mut rig = rig(false, 1 << 20, &Budget::new(0)).await;
    let mut at = 1_u64;
    let mut batch = Vec::new();
    let lens = [1_u32, 4096, 5000, 16 << 10, 130 << 10, 3, 300 << 10, 4096, 64 << 10];
    for (cookie, len) in lens.into_iter().enumerate() {
        batch.extend(request(1, cookie as u64, at, len));
        batch.extend(vec![cookie as u8 + 1; len as usize]);
        at += u64::from(len);
    }
    rig.send(&batch).await;
    for cookie in 0..lens.len() as u64 {
        assert_eq!(rig.reply().await, (0, cookie));
    }
    rig.send(&request(0, 99, 0, at as u32)).await;
    assert_eq!(rig.reply().await, (0, 99));
    let mut got = vec![0; at as usize];
    rig.socket.read_exact(&mut got).await.unwrap();
    let mut expected = vec![0];
    for (cookie, len) in lens.into_iter().enumerate() {
        expected.extend(vec![cookie as u8 + 1; len as usize]);
    }
    assert!(got == expected);
    rig.send(&request(2, 0, 0, 0)).await;
    rig.served.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refused_write_leaves_the_stream_in_step_and_an_absurd_one_ends_it() {
    let mut rig = rig(false, 1 << 20, &Budget::new(0)).await;
    let mut batch = request(1, 1, SIZE, 3000);
    batch.extend([0; 3000]);
    batch.extend(request(9, 2, 0, 0));
    batch.extend(request(3, 3, 0, 0));
    rig.send(&batch).await;
    assert_eq!(rig.reply().await, (28, 1));
    assert_eq!(rig.reply().await, (22, 2));
    assert_eq!(rig.reply().await, (0, 3));
    rig.send(&request(1, 4, 0, PAYLOAD_LEN_MAX + 1)).await;
    rig.send(&vec![0; PAYLOAD_LEN_MAX as usize + 1]).await;
    assert_eq!(rig.reply().await, (22, 4));
    rig.send(&request(1, 5, 0, u32::MAX)).await;
    assert!(matches!(rig.served.await.unwrap(), Err(Error::Oversized(u32::MAX))));
}

#[tokio::test(start_paused = true)]
async fn requests_overlap_up_to_the_window_and_finish_though_the_socket_dies() {
    let mut rig = rig(false, 1 << 20, &Budget::new(0)).await;
    rig.disk.set_delay(Duration::from_secs(3));
    for cookie in 0..REQUESTS_MAX as u64 + 50 {
        rig.send(&request(3, cookie, 0, 0)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(rig.disk.running_count(), REQUESTS_MAX as u64);
    drop(rig.socket);
    let begin = Instant::now();
    // Writing the replies fails; the flushes were done all the same, before the end.
    assert!(rig.served.await.unwrap().is_err());
    assert!(begin.elapsed() >= Duration::from_secs(1));
    assert_eq!(rig.disk.running_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fast_request_overtakes_a_slow_one() {
    let mut rig = rig(false, 4096, &Budget::new(0)).await;
    rig.disk.set_delay(Duration::from_secs(5));
    rig.send(&request(3, 1, 0, 0)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.disk.set_delay(Duration::ZERO);
    rig.send(&request(3, 2, 0, 0)).await;
    assert_eq!(rig.reply().await, (0, 2));
    assert_eq!(rig.reply().await, (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_stop_answers_what_runs_and_nothing_else() {
    let mut rig = rig(false, 1 << 20, &Budget::new(0)).await;
    rig.disk.set_delay(Duration::from_secs(2));
    rig.send(&request(3, 1, 0, 0)).await;
    rig.send(&request(1, 2, 0, 1 << 20)).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    rig.stop.cancel();
    tokio::task::yield_now().await;
    assert_eq!(rig.reply().await, (0, 1));
    rig.served.await.unwrap().unwrap();
    assert_eq!(rig.socket.read(&mut [0]).await.unwrap(), 0, "the half-sent write gets no answer");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_reads_nothing_is_left_alone_until_others_need_its_memory() {
    let budget = Budget::new(0);
    let mut silent = rig(false, 4096, &budget).await;
    let data = Bytes::from_static(&[7; 4096]);
    silent.disk.write(0, data, WriteFlags::default()).await.unwrap();
    silent.send(&request(0, 1, 0, PAYLOAD_LEN_MAX)).await;
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!silent.served.is_finished());

    let mut other = rig(false, 4096, &budget).await;
    other.send(&request(0, 1, 0, 4096)).await;
    assert_eq!(other.reply().await, (0, 1));
    other.socket.read_exact(&mut [0; 4096]).await.unwrap();
    other.send(&request(0, 2, 0, 1 << 20)).await;
    assert_eq!(other.reply().await, (0, 2), "it had to wait for the silent one's end");
    assert!(matches!(silent.served.await.unwrap(), Err(Error::Stalled)));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_said_goodbye_and_does_not_read_is_dropped() {
    let mut rig = rig(false, 4096, &Budget::new(0)).await;
    rig.send(&request(0, 1, 0, 1 << 20)).await;
    rig.send(&request(2, 0, 0, 0)).await;
    assert!(matches!(rig.served.await.unwrap(), Err(Error::Stalled)));
}

#[tokio::test]
async fn failures_reach_the_client_as_errno_simple_or_in_a_chunk() {
    let mut plain = rig(false, 4096, &Budget::new(0)).await;
    for (failure, errno) in [
        (IoError::Io, 5),
        (IoError::NoSpace, 28),
        (IoError::ReadOnly, 1),
        (IoError::Fenced, 1),
        (IoError::Shutdown, 108),
        (IoError::Unsupported, 95),
        (IoError::Invalid, 22),
    ] {
        plain.disk.set_failure(Some(failure));
        plain.send(&request(0, 7, 0, 1)).await;
        assert_eq!(plain.reply().await, (errno, 7));
    }
    let mut chunks = rig(true, 4096, &Budget::new(0)).await;
    chunks.disk.set_failure(Some(IoError::Io));
    for kind in [0, 7] {
        chunks.send(&request(kind, 7, 0, 1)).await;
        let mut reply = [0; 26];
        chunks.socket.read_exact(&mut reply).await.unwrap();
        let expected = b"\x66\x8e\x33\xef\0\x01\x80\x01\0\0\0\0\0\0\0\x07\0\0\0\x06\0\0\0\x05\0\0";
        assert_eq!(&reply, expected);
    }
    chunks.send(&request(6, 8, 0, 1)).await;
    assert_eq!(chunks.reply().await, (5, 8));
}

#[tokio::test]
async fn garbage_instead_of_a_request_ends_the_connection() {
    let mut rig = rig(true, 4096, &Budget::new(0)).await;
    rig.send(&[0x5a; 100]).await;
    assert!(matches!(rig.served.await.unwrap(), Err(Error::Magic(_))));
}
