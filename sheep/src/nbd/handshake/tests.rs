#![allow(clippy::unwrap_used)]

use tokio::io::DuplexStream;

use super::*;
use crate::nbd::memory::MemoryExports;

type Negotiated = Result<Option<Session>, Error>;

/// Runs a client against a server that has `vol` (1 MiB), `frozen` (read-only).
async fn against<F, T>(client: impl FnOnce(DuplexStream) -> F) -> (T, Negotiated)
where
    F: Future<Output = T>,
{
    let exports = MemoryExports::default();
    exports.add("vol", 1 << 20, false);
    exports.add("frozen", 4096, true);
    let (near, mut far) = tokio::io::duplex(64 << 10);
    let server = async move {
        let info = ClientInfo { peer: "test".to_owned() };
        negotiate(&mut far, &exports, &info).await
    };
    tokio::join!(client(near), server)
}

async fn expect(socket: &mut DuplexStream, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    socket.read_exact(&mut got).await.unwrap();
    assert_eq!(got, expected);
}

async fn greet(socket: &mut DuplexStream, flags: u8) {
    expect(socket, b"NBDMAGICIHAVEOPT\x00\x03").await;
    socket.write_all(&[0, 0, 0, flags]).await.unwrap();
}

fn option(number: u8, data: &[u8]) -> Vec<u8> {
    [&b"IHAVEOPT\0\0\0"[..], &[number, 0, 0, 0, data.len() as u8], data].concat()
}

fn reply(number: u8, kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let magic = [0, 3, 0xe8, 0x89, 4, 0x55, 0x65, 0xa9, 0, 0, 0, number];
    [&magic[..], &kind, &[0, 0, 0, data.len() as u8], data].concat()
}

const ACK: [u8; 4] = [0, 0, 0, 1];

/// The kind of one reply, whatever its text.
async fn reply_kind(socket: &mut DuplexStream) -> u32 {
    let mut head = [0; 20];
    socket.read_exact(&mut head).await.unwrap();
    let mut text = vec![0; usize::from(u16::from_be_bytes([head[18], head[19]]))];
    socket.read_exact(&mut text).await.unwrap();
    u32::from_be_bytes([head[12], head[13], head[14], head[15]])
}

#[tokio::test]
async fn go_has_its_golden_bytes() {
    let ((), session) = against(async |mut socket| {
        greet(&mut socket, 3).await;
        socket.write_all(&option(8, b"")).await.unwrap();
        expect(&mut socket, &reply(8, ACK, b"")).await;
        socket.write_all(&option(10, b"\0\0\0\x03vol\0\0\0\x01\0\0\0\x0fbase:allocation")).await.unwrap();
        expect(&mut socket, &reply(10, [0, 0, 0, 4], b"\0\0\0\x01base:allocation")).await;
        expect(&mut socket, &reply(10, ACK, b"")).await;
        socket.write_all(&option(7, b"\0\0\0\x03vol\0\x03\0\x03\0\x01\0\x02")).await.unwrap();
        let info = [0, 0, 0, 3];
        expect(&mut socket, &reply(7, info, &[0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0x0d, 0xed])).await;
        expect(&mut socket, &reply(7, info, b"\0\x01vol")).await;
        expect(&mut socket, &reply(7, info, b"\0\x02vol in memory")).await;
        expect(&mut socket, &reply(7, info, &[0, 3, 0, 0, 0, 1, 0, 0, 0x10, 0, 2, 0, 0, 0])).await;
        expect(&mut socket, &reply(7, ACK, b"")).await;
    })
    .await;
    let terms = session.unwrap().unwrap().terms;
    assert!(terms.structured && terms.allocation && !terms.read_only);
    assert_eq!(terms.size, 1 << 20);
}

#[tokio::test]
async fn export_name_has_its_golden_bytes_with_and_without_zeroes() {
    for (flags, zeroes) in [(3, 0), (1, 124)] {
        let ((), session) = against(async |mut socket| {
            greet(&mut socket, flags).await;
            socket.write_all(&option(1, b"frozen")).await.unwrap();
            let answer = [&[0, 0, 0, 0, 0, 0, 16, 0, 0x05, 0x0f][..], &vec![0; zeroes]].concat();
            expect(&mut socket, &answer).await;
        })
        .await;
        let terms = session.unwrap().unwrap().terms;
        assert!(terms.read_only && !terms.structured && !terms.allocation);
    }
}

#[tokio::test]
async fn list_and_abort_have_their_golden_bytes() {
    let ((), session) = against(async |mut socket| {
        greet(&mut socket, 3).await;
        socket.write_all(&option(3, b"")).await.unwrap();
        expect(&mut socket, &reply(3, [0, 0, 0, 2], b"\0\0\0\x06frozen")).await;
        expect(&mut socket, &reply(3, [0, 0, 0, 2], b"\0\0\0\x03vol")).await;
        expect(&mut socket, &reply(3, ACK, b"")).await;
        socket.write_all(&option(2, b"")).await.unwrap();
        expect(&mut socket, &reply(2, ACK, b"")).await;
    })
    .await;
    assert!(session.unwrap().is_none());
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_and_negotiation_goes_on() {
    let refused: &[(u8, &[u8], Reply)] = &[
        (5, b"", Reply::ErrUnsup),
        (11, b"", Reply::ErrUnsup),
        (99, b"xyz", Reply::ErrUnsup),
        (3, b"x", Reply::ErrInvalid),
        (8, b"x", Reply::ErrInvalid),
        (9, b"\0\0\0\x03vol\0\0\0\0", Reply::ErrInvalid),
        (7, b"\0\0\0\x03no!\0\0", Reply::ErrUnknown),
        (6, b"\0\0\0\x03no!\0\0", Reply::ErrUnknown),
        (7, b"\0\0\0\0\0\0", Reply::ErrUnknown),
        (7, b"\0\0\0\x03a/b\0\0", Reply::ErrInvalid),
        (7, b"\0\0\0\x05vol,x\0\0", Reply::ErrInvalid),
        (7, b"\0\0\0\x03\xff\xff\xff\0\0", Reply::ErrInvalid),
        (7, b"\0\0\0\x03vol\0\x01", Reply::ErrInvalid),
        (7, b"", Reply::ErrInvalid),
    ];
    let ((), session) = against(async |mut socket| {
        greet(&mut socket, 3).await;
        for (number, data, expected) in refused {
            socket.write_all(&option(*number, data)).await.unwrap();
            assert_eq!(reply_kind(&mut socket).await, *expected as u32, "{number} {data:?}");
        }
        let mut large = b"IHAVEOPT\0\0\0\x07\0\x01\0\0".to_vec();
        large.resize(large.len() + (64 << 10), 0);
        socket.write_all(&large).await.unwrap();
        assert_eq!(reply_kind(&mut socket).await, Reply::ErrTooBig as u32);
        socket.write_all(&option(7, b"\0\0\0\x0evol,attach=a:1\0\0")).await.unwrap();
        assert_eq!(reply_kind(&mut socket).await, Reply::Info as u32);
        assert_eq!(reply_kind(&mut socket).await, Reply::Ack as u32);
    })
    .await;
    assert!(session.unwrap().is_some());
}

#[tokio::test]
async fn a_context_selected_for_one_export_does_not_count_for_another() {
    let ((), session) = against(async |mut socket| {
        greet(&mut socket, 3).await;
        for (number, data) in [
            (8, &b""[..]),
            (9, b"\0\0\0\x03vol\0\0\0\0"),
            (10, b"\0\0\0\x03vol\0\0\0\x01\0\0\0\x0fbase:allocation"),
            (7, b"\0\0\0\x06frozen\0\0"),
        ] {
            socket.write_all(&option(number, data)).await.unwrap();
            while reply_kind(&mut socket).await != Reply::Ack as u32 {}
        }
    })
    .await;
    assert!(!session.unwrap().unwrap().terms.allocation);
}

/// What becomes of a client that answers the greeting with these bytes.
async fn after(bytes: &[u8]) -> Negotiated {
    let client = async |mut socket| {
        expect(&mut socket, b"NBDMAGICIHAVEOPT\x00\x03").await;
        socket.write_all(bytes).await.unwrap();
    };
    against(client).await.1
}

#[tokio::test]
async fn bytes_that_are_no_handshake_end_it() {
    for garbage in [&b"\0\0\0\x07"[..], b"\xff\xff\xff\xff", b"\0\0\0\x03GET / HTTP/1.1\r\n\r\n"] {
        assert!(matches!(after(garbage).await, Err(Error::Flags(_) | Error::Magic(_))), "{garbage:?}");
    }
    let huge = after(b"\0\0\0\x03IHAVEOPT\0\0\0\x07\xff\xff\xff\xff").await;
    assert!(matches!(huge, Err(Error::Oversized { number: 7, len: u32::MAX })));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_trickles_its_bytes_is_dropped_at_the_deadline() {
    let begin = Instant::now();
    let (_, session) = against(async |mut socket| {
        greet(&mut socket, 3).await;
        for byte in option(3, b"").into_iter().cycle() {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if socket.write_all(&[byte]).await.is_err() || begin.elapsed() > DEADLINE * 2 {
                break;
            }
        }
    })
    .await;
    assert!(matches!(session, Err(Error::Deadline)));
}
