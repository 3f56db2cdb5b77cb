//! The exchange that opens a connection.
//!
//! The side that connects speaks first. Each side checks the other's hello and answers with its own or with
//! the reason why not, so that the log of either says what is wrong.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use wire::frame::{Frame, Kind, Limits, Payload};
use wire::hello::{Hello, HelloReject, RejectCode};
use wire::id::NodeId;

use super::class::Class;
use super::net::WriteHalf;
use super::reader::{FrameReader, ReadError};

/// The exchange must be over by then; a stranger who says nothing holds a connection no longer.
pub(super) const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A hello is short; until it has been checked the other side gets no more than this.
pub(super) const HELLO_LIMITS: Limits = Limits { meta: 4096, data: 0 };
/// The longest text of a refusal, so that it fits.
const REJECT_TEXT_MAX: usize = 1024;

/// Says who we are and judges who they are. Asked anew for every connection, since a ring may be founded
/// meanwhile.
pub trait Greeter: Send + Sync + 'static {
    /// Our hello. The class is filled in by the caller.
    fn hello(&self) -> Hello;

    /// Whether to talk to them: same ring, start counter not below one seen, features in use known.
    /// Versions, classes and the node dialled have been checked.
    fn check(&self, theirs: &Hello) -> Result<(), HelloReject>;
}

/// Why there is no connection after all.
#[derive(Debug, thiserror::Error)]
pub(super) enum GreetError {
    /// We refuse.
    #[error("hello refused by us: {}", .0.text)]
    Rejected(#[from] HelloReject),
    /// They refuse.
    #[error("{0}")]
    RejectedByPeer(HelloReject),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("hello cannot be sent")]
    Write(#[source] std::io::Error),
}

/// Introduces us to `node`, which we have dialled.
pub(super) async fn dial(
    greeter: &dyn Greeter,
    node: NodeId,
    class: Class,
    reader: &mut FrameReader,
    write: &mut WriteHalf,
) -> Result<Hello, GreetError> {
    let ours = Hello { class: class.to_wire(), ..greeter.hello() };
    send(write, Kind::Hello, ours.encode()).await?;
    let result = receive(reader).await;
    let theirs = refuse_aloud(result, write).await?;
    let verdict = if theirs.session.node == node {
        judge(greeter, &ours, &theirs).map(|_| ())
    } else {
        let text = format!("dialled node {node} and reached node {}", theirs.session.node);
        Err(HelloReject::new(RejectCode::Node, text))
    };
    refuse_aloud(verdict.map_err(Into::into), write).await?;
    Ok(theirs)
}

/// Answers a node that has connected: its hello, its class, and the protocol version to speak.
pub(super) async fn answer(
    greeter: &dyn Greeter,
    reader: &mut FrameReader,
    write: &mut WriteHalf,
) -> Result<(Hello, Class, u32), GreetError> {
    let theirs = refuse_aloud(receive(reader).await, write).await?;
    let ours = Hello { class: theirs.class, ..greeter.hello() };
    let verdict = judge(greeter, &ours, &theirs).map_err(Into::into);
    let (class, version) = refuse_aloud(verdict, write).await?;
    send(write, Kind::Hello, ours.encode()).await?;
    Ok((theirs, class, version))
}

fn judge(greeter: &dyn Greeter, ours: &Hello, theirs: &Hello) -> Result<(Class, u32), HelloReject> {
    let version = ours.common_version(theirs).ok_or_else(|| {
        let text = format!("we speak versions {:?}, you {:?}", ours.versions, theirs.versions);
        HelloReject::new(RejectCode::Version, text)
    })?;
    let class = Class::from_wire(theirs.class)
        .ok_or_else(|| HelloReject::new(RejectCode::Class, format!("unknown class {}", theirs.class)))?;
    greeter.check(theirs)?;
    Ok((class, version))
}

async fn receive(reader: &mut FrameReader) -> Result<Hello, GreetError> {
    let frame = reader.next().await?;
    let malformed = |text: String| GreetError::Rejected(HelloReject::new(RejectCode::Malformed, text));
    match frame.kind {
        Kind::Hello => Hello::decode(frame.meta).map_err(|e| malformed(e.to_string())),
        Kind::Reject => match HelloReject::decode(frame.meta) {
            Ok(reject) => Err(GreetError::RejectedByPeer(reject)),
            Err(e) => Err(malformed(e.to_string())),
        },
        kind @ (Kind::Request | Kind::Reply) => Err(malformed(format!("{kind:?} before hello"))),
    }
}

/// Tells the other side if it is we who refuse.
async fn refuse_aloud<T>(result: Result<T, GreetError>, write: &mut WriteHalf) -> Result<T, GreetError> {
    if let Err(GreetError::Rejected(reject)) = &result {
        let text = reject.text.chars().take(REJECT_TEXT_MAX / 4).collect::<String>();
        send(write, Kind::Reject, HelloReject { code: reject.code, text }.encode()).await?;
    }
    result
}

async fn send(write: &mut WriteHalf, kind: Kind, meta: bytes::Bytes) -> Result<(), GreetError> {
    let frame = Frame { kind, code: 0, flags: 0, id: 0, meta, payload: Payload::empty() };
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    write.write_all(&bytes).await.map_err(GreetError::Write)?;
    write.flush().await.map_err(GreetError::Write)
}
