//! The negotiation, with a client that says anything at all.
//!
//! The first byte says in what pieces the rest is read. What must hold: every option that came whole is answered,
//! in order, by replies that carry its number, the last of them an end; an export that was opened was meant.

use super::{Said, Script};
use crate::fuzz::{Source, runtime};
use crate::nbd::export::ClientInfo;
use crate::nbd::handshake::negotiate;
use crate::nbd::memory::MemoryExports;
use crate::nbd::option::{DATA_LEN_MAX, MAGIC, NO_ZEROES, OPTION_MAGIC, REPLY_MAGIC};

const EXPORT_NAME: u64 = 1;
const ABORT: u64 = 2;
const GO: u64 = 7;
const ACK: u64 = 1;
const FIRST_ERROR: u64 = 1 << 31;
const SIZE: u64 = 1 << 20;

pub(crate) fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let piece = usize::from(source.u8()).max(1);
    let input = source.rest();
    let exports = MemoryExports::default();
    let disks = [exports.add("vol", SIZE, false), exports.add("frozen", 4096, true)];
    let mut script = Script::new(input, piece);
    let client = ClientInfo { peer: "fuzz".to_owned() };
    let result = runtime().block_on(async {
        let result = negotiate(&mut script, &exports, &client).await;
        if let Ok(Some(session)) = &result {
            session.export.close().await;
        }
        result
    });
    let opened = match &result {
        Ok(Some(session)) => {
            let info = session.export.info();
            assert_eq!((session.terms.size, session.terms.read_only), (info.size, info.read_only));
            assert!(session.terms.structured || !session.terms.allocation, "chunks come first");
            Some(info)
        }
        Ok(None) | Err(_) => None,
    };
    assert!(disks.iter().all(|disk| disk.open_count() == disk.close_count()), "an export stays open");
    let told = answers(input, &script.output, result.is_ok());
    assert_eq!(told, opened.map(|info| info.size), "what the client was told is what was opened");
}

/// Follows both sides. Returns the size of the export that the client was told is open.
fn answers(input: &[u8], output: &[u8], in_order: bool) -> Option<u64> {
    let (mut client, mut server) = (Said(input), Said(output));
    assert_eq!((server.number::<8>(), server.number::<8>()), (Some(MAGIC), Some(OPTION_MAGIC)));
    server.number::<2>().expect("flags");
    let flags = client.number::<4>().unwrap_or_default();
    let mut size = None;
    while let (Some(OPTION_MAGIC), Some(number), Some(len)) =
        (client.number::<8>(), client.number::<4>(), client.number::<4>())
    {
        if client.bytes(len as usize).is_none() || server.0.is_empty() && !in_order {
            break;
        }
        if number == EXPORT_NAME {
            size = server.number::<8>();
            let rest = if flags & u64::from(NO_ZEROES) == 0 { 2 + 124 } else { 2 };
            server.bytes(rest).expect("an answer has its length");
            break;
        }
        let end = loop {
            assert_eq!(server.number::<8>(), Some(REPLY_MAGIC), "option {number} of {len} bytes");
            assert_eq!(server.number::<4>(), Some(number));
            let (kind, len) =
                (server.number::<4>().expect("a kind"), server.number::<4>().expect("a length"));
            assert!(len <= u64::from(DATA_LEN_MAX), "a reply of {len} bytes");
            let mut said = Said(server.bytes(len as usize).expect("a reply has its length"));
            // The first piece of information is the export's size.
            if (kind, said.number::<2>()) == (3, Some(0)) && number == GO {
                size = said.number::<8>();
            }
            if kind == ACK || kind >= FIRST_ERROR {
                break kind;
            }
        };
        if number == ABORT || number == GO && end == ACK {
            break;
        }
        size = None;
    }
    assert!(server.0.is_empty(), "an answer that nobody asked for: {:?}", server.0);
    size
}
