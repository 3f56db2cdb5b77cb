//! Fuzz target `peer_frames`: whatever arrives on a mesh port, from its first byte on.
//!
//! The first byte says in what pieces the rest is read and whether checksums are put right first. What must hold:
//! a frame that is read is the bytes that came, and nothing is taken in that was only announced.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use wire::frame::{Frame, HEADER_LEN, Kind};
use wire::hello::{BootId, Hello, HelloReject, PROTOCOL_VERSIONS};
use wire::id::{ClusterId, NodeId, Session};

use super::hello::{GreetError, Greeter, HELLO_LIMITS, answer};
use super::net::WriteHalf;
use super::reader::FrameReader;
use crate::fuzz::{Source, runtime};

/// Frames read of one input.
const FRAMES_MAX: usize = 64;

pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let how = source.u8();
    let mut input = source.rest().to_vec();
    if how & 1 == 1 {
        put_right(&mut input);
    }
    let script = Script { input: input.clone(), at: 0, piece: usize::from(how >> 1) * 8 + 1 };
    let mut reader = FrameReader::new(Box::new(script), HELLO_LIMITS);
    runtime().block_on(async {
        let mut write: WriteHalf = Box::new(tokio::io::sink());
        let greeted = answer(&Anyone, &mut reader, &mut write).await;
        match greeted {
            Ok((theirs, class, version)) => {
                assert!(PROTOCOL_VERSIONS.contains(&version) && theirs.class == class.to_wire());
                assert_eq!(Hello::decode(theirs.encode()), Ok(theirs));
                reader.set_limits(class.limits());
            }
            Err(GreetError::RejectedByPeer(reject)) => {
                assert_eq!(HelloReject::decode(reject.encode()), Ok(reject));
                return;
            }
            Err(_) => return,
        }
        // The greeting was a frame too.
        let mut rest = after_first(&input);
        for _ in 0..FRAMES_MAX {
            let Ok(frame) = reader.next().await else { break };
            let mut bytes = BytesMut::new();
            frame.encode(&mut bytes);
            assert!(rest.starts_with(&bytes), "other bytes than came: {frame:?}");
            rest = &rest[bytes.len()..];
            _ = frame.payload.verify();
        }
    });
}

fn after_first(input: &[u8]) -> &[u8] {
    let mut buffer = BytesMut::from(input);
    match Frame::decode(&mut buffer, &HELLO_LIMITS) {
        Ok(wire::frame::Decoded::Frame(frame)) if frame.kind == Kind::Hello => {
            &input[input.len() - buffer.len()..]
        }
        other => panic!("a greeting was read, and now it is {other:?}"),
    }
}

/// Gives every frame the checksums, the magic and the version that it should have.
fn put_right(mut input: &mut [u8]) {
    while input.len() >= HEADER_LEN {
        let number = |at: usize| u32::from_le_bytes([input[at], input[at + 1], input[at + 2], input[at + 3]]);
        let (meta, data) = (number(16) as usize, number(20) as usize);
        let within = usize::from(u16::from_le_bytes([input[24], input[25]]));
        let pieces = if data == 0 { 0 } else { (within + data).div_ceil(4096) };
        let body = HEADER_LEN + meta + pieces * 4;
        input[..5].copy_from_slice(b"SHPF\x01");
        input[32..36].fill(0);
        if let Some(head) = input.get(HEADER_LEN..body) {
            let crc = crc32c::crc32c(head);
            input[28..32].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32c::crc32c(&input[..HEADER_LEN - 4]);
        input[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        let end = (body + data).min(input.len());
        input = &mut input[end..];
    }
}

/// Greets everybody.
struct Anyone;

impl Greeter for Anyone {
    fn hello(&self) -> Hello {
        Hello {
            versions: PROTOCOL_VERSIONS,
            features: 0,
            cluster: Some(ClusterId(1)),
            session: Session { node: NodeId(1), start: 1 },
            boot: BootId::default(),
            address: ([127, 0, 0, 1], 7000).into(),
            class: 0,
        }
    }

    fn check(&self, _: &Hello) -> Result<(), HelloReject> {
        Ok(())
    }
}

/// A peer that has said all it will ever say, in pieces.
struct Script {
    input: Vec<u8>,
    at: usize,
    piece: usize,
}

impl AsyncRead for Script {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let len = self.piece.min(into.remaining()).min(self.input.len() - self.at);
        into.put_slice(&self.input[self.at..self.at + len]);
        self.at += len;
        Poll::Ready(Ok(()))
    }
}
