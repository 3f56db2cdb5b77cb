use proptest::prelude::*;

use super::*;

const LIMITS: Limits = Limits { meta: 1 << 16, data: 1 << 20 };

fn sample() -> Frame {
    Frame {
        kind: Kind::Request,
        code: 0x0102,
        flags: 0x0304,
        id: 0x1122_3344_5566_7788,
        meta: Bytes::from_static(b"meta"),
        payload: Payload::new(4_095, Bytes::from_static(b"data")),
    }
}

fn bytes_of(frame: &Frame) -> BytesMut {
    let mut out = BytesMut::new();
    frame.encode(&mut out);
    out
}

fn arbitrary_frame() -> impl Strategy<Value = Frame> {
    let kind = prop_oneof![Just(Kind::Request), Just(Kind::Reply), Just(Kind::Hello), Just(Kind::Reject)];
    // Long data need not be random throughout, which would make the test slow.
    let bytes = |max| {
        (any::<u8>(), 0..max)
            .prop_map(|(first, len)| (0..len).map(|i| first.wrapping_add((i % 251) as u8)).collect::<Bytes>())
    };
    (kind, any::<(u16, u16, u64, u64)>(), bytes(300_usize), bytes(40_000)).prop_map(
        |(kind, (code, flags, id, offset), meta, data)| Frame {
            kind,
            code,
            flags,
            id,
            meta,
            payload: Payload::new(offset, data),
        },
    )
}

/// Version 1 on the wire: a change needs a new version.
#[test]
fn the_bytes_of_a_frame_are_fixed() {
    let hex: String = bytes_of(&sample()).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(hex, GOLDEN);
}

const GOLDEN: &str = concat!(
    "534850460101020188776655443322110400000004000000ff0f04035b7b9aaf00000000524e00d4",
    "6d657461",
    "2c5721f4f3ef7a81",
    "64617461",
);

#[test]
fn a_frame_in_parts_is_waited_for() {
    let whole = bytes_of(&sample());
    for have in 0..whole.len() {
        let mut buf = BytesMut::from(&whole[..have]);
        match Frame::decode(&mut buf, &LIMITS) {
            Ok(Decoded::Need(n)) => assert!(n > 0 && have + n <= whole.len(), "{n} after {have}"),
            other => panic!("{other:?} after {have} bytes"),
        }
        assert_eq!(buf, whole[..have]);
    }
}

#[test]
fn lengths_above_the_limits_are_refused_from_the_header() {
    let whole = bytes_of(&sample());
    let decode = |limits| Frame::decode(&mut BytesMut::from(&whole[..HEADER_LEN]), &limits);
    assert_eq!(decode(Limits { meta: 3, data: 9 }), Err(FrameError::MetaTooLong { len: 4, max: 3 }));
    assert_eq!(decode(Limits { meta: 4, data: 3 }), Err(FrameError::DataTooLong { len: 4, max: 3 }));
    assert_eq!(sample().check(&Limits { meta: 4, data: 4 }), Ok(()));
}

#[test]
fn each_damaged_field_is_named() {
    let whole = bytes_of(&sample());
    let decode = |change: &dyn Fn(&mut BytesMut)| {
        let mut buf = whole.clone();
        change(&mut buf);
        let crc = crc32c::crc32c(&buf[..36]);
        buf[36..40].copy_from_slice(&crc.to_le_bytes());
        Frame::decode(&mut buf, &LIMITS).expect_err("damaged")
    };
    assert_eq!(decode(&|b| b[0] = b'G'), FrameError::Magic { found: *b"GHPF" });
    assert_eq!(decode(&|b| b[4] = 2), FrameError::Version { found: 2 });
    assert_eq!(decode(&|b| b[5] = 9), FrameError::Kind { found: 9 });
    assert_eq!(decode(&|b| b[25] = 0x10), FrameError::OffsetInBlock { found: 0x10ff });
    assert_eq!(decode(&|b| b[32] = 1), FrameError::Reserved { found: 1 });
    assert!(matches!(decode(&|b| b[40] ^= 1), FrameError::BodyChecksum { .. }));
    assert!(matches!(decode(&|b| b[44] ^= 1), FrameError::BodyChecksum { .. }));
    let mut buf = whole.clone();
    buf[9] ^= 1;
    assert!(matches!(Frame::decode(&mut buf, &LIMITS), Err(FrameError::HeaderChecksum { .. })));
}

#[test]
fn damaged_data_arrives_and_fails_verification() {
    let mut whole = bytes_of(&sample());
    *whole.last_mut().expect("not empty") ^= 1;
    let Ok(Decoded::Frame(frame)) = Frame::decode(&mut whole, &LIMITS) else { panic!("decodes") };
    assert_eq!(frame.payload.verify().expect_err("damaged").piece, 1);
    assert_eq!(sample().payload.verify(), Ok(()));
}

#[test]
fn checksums_must_be_as_many_as_pieces() {
    let data = Bytes::from(vec![1; 5_000]);
    assert!(Payload::with_crcs(0, data.clone(), vec![1, 2]).is_some());
    assert!(Payload::with_crcs(4_000, data.clone(), vec![1, 2]).is_none());
    assert!(Payload::with_crcs(4_000, data, vec![1, 2, 3]).is_some());
}

proptest! {
    #[test]
    fn frames_come_back_as_they_went(frames in prop::collection::vec(arbitrary_frame(), 1..4)) {
        let mut buf = BytesMut::new();
        frames.iter().for_each(|f| f.encode(&mut buf));
        for frame in frames {
            prop_assert_eq!(Frame::decode(&mut buf, &LIMITS), Ok(Decoded::Frame(frame)));
        }
        prop_assert!(buf.is_empty());
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Frame::decode(&mut BytesMut::from(&bytes[..]), &LIMITS);
    }

    #[test]
    fn a_changed_byte_never_yields_another_header(frame in arbitrary_frame(), at: prop::sample::Index, flip in 1..=255_u8) {
        let mut buf = bytes_of(&frame);
        let body = buf.len() - frame.payload.len();
        buf[at.index(body)] ^= flip;
        match Frame::decode(&mut buf, &LIMITS) {
            Err(_) => {}
            other => prop_assert!(false, "{other:?}"),
        }
    }
}
