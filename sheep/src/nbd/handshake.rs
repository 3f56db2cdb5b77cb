//! Negotiation, from the first byte to an open export: fixed newstyle.
//!
//! ```text
//!  greeting ─▶ client flags ─▶ option ──┬─ GO, EXPORT_NAME ─▶ open ─▶ transmission
//!                                ▲      ├─ ABORT, error ─▶ closed
//!                                └──────┴─ anything else, answered
//! ```
//!
//! A client has [`DEADLINE`] for all of it, however it spreads its bytes. Time that the server takes itself,
//! to open an export say, does not count.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use wire::name::{ExportName, NameError};

use super::export::{ClientInfo, Export, ExportInfo, Exports, OpenError};
use super::option::{self, ContextRequest, InfoRequest, Kind, Malformed, Reply};
use super::reply::ALLOCATION_ID;
use super::request::Terms;
use super::server::PAYLOAD_LEN_MAX;

/// How long a client may take for the negotiation.
pub(super) const DEADLINE: Duration = Duration::from_secs(10);

/// Replies to LIST are sent in pieces of about this size.
const LIST_PIECE_LEN: usize = 16 << 10;

/// The option data that is read and dropped to be able to answer ERR_TOO_BIG; beyond it the connection is
/// closed.
const SKIP_LEN_MAX: u32 = 1 << 20;

const ALLOCATION: &str = "base:allocation";
const BLOCK_SIZE_MIN: u32 = 1;
const BLOCK_SIZE_PREFERRED: u32 = 4096;

// Transmission flags.
const HAS_FLAGS: u16 = 1 << 0;
const READ_ONLY: u16 = 1 << 1;
const SEND_FLUSH: u16 = 1 << 2;
const SEND_FUA: u16 = 1 << 3;
const SEND_TRIM: u16 = 1 << 5;
const SEND_WRITE_ZEROES: u16 = 1 << 6;
const SEND_DF: u16 = 1 << 7;
const CAN_MULTI_CONN: u16 = 1 << 8;
const SEND_CACHE: u16 = 1 << 10;
const SEND_FAST_ZERO: u16 = 1 << 11;

/// An export that is open, and what the client and the server agreed on.
pub(super) struct Session {
    pub(super) export: Arc<dyn Export>,
    pub(super) terms: Terms,
}

/// Why there was no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("the socket failed")]
    Socket(#[from] io::Error),
    #[error("not done within {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("the client sent flags {0:#x}, which include unknown ones")]
    Flags(u32),
    #[error("an option began with {0:#018x}")]
    Magic(u64),
    #[error("option {number} carries {len} bytes")]
    Oversized { number: u32, len: u32 },
    #[error("EXPORT_NAME: {0}")]
    Name(#[from] Refusal),
}

/// An option that is answered with an error.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("this option takes no data")]
    Data,
    #[error("structured replies have to be negotiated first")]
    Order,
    #[error("option {0} is not supported")]
    Unknown(u32),
    #[error("the option's data is too long")]
    TooBig,
}

impl Refusal {
    fn reply(&self) -> Reply {
        match self {
            Self::Malformed(_) | Self::Data | Self::Order => Reply::ErrInvalid,
            Self::Unknown(_) => Reply::ErrUnsup,
            Self::TooBig => Reply::ErrTooBig,
            Self::Open(OpenError::Fenced { .. }) => Reply::ErrPolicy,
            Self::Open(OpenError::ShuttingDown) => Reply::ErrShutdown,
            // The empty name stands for a default export, and there is none.
            Self::Open(OpenError::Invalid(NameError::Empty)) => Reply::ErrUnknown,
            Self::Open(OpenError::Invalid(_)) => Reply::ErrInvalid,
            // The protocol's words for this number are "is not available".
            Self::Open(OpenError::NotFound(_) | OpenError::Unavailable(_)) => Reply::ErrUnknown,
        }
    }
}

/// Negotiates. `None` when the client left in good order without opening anything.
pub(super) async fn negotiate<S>(
    socket: &mut S,
    exports: &dyn Exports,
    client: &ClientInfo,
) -> Result<Option<Session>, Error>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut negotiation = Negotiation {
        channel: Channel { socket, deadline: Instant::now() + DEADLINE },
        exports,
        client,
        no_zeroes: false,
        structured: false,
        allocation: None,
    };
    negotiation.greet().await?;
    loop {
        match negotiation.option().await {
            Ok(Next::Option) => {}
            Ok(Next::Closed) => return Ok(None),
            Ok(Next::Session(session)) => return Ok(Some(session)),
            // Clients also leave by hanging up between options.
            Err(Error::Socket(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

enum Next {
    Option,
    Closed,
    Session(Session),
}

struct Negotiation<'a, S> {
    channel: Channel<'a, S>,
    exports: &'a dyn Exports,
    client: &'a ClientInfo,
    no_zeroes: bool,
    structured: bool,
    /// The export name for which `base:allocation` was selected; it does not count for another.
    allocation: Option<String>,
}

impl<S> Negotiation<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async fn greet(&mut self) -> Result<(), Error> {
        let mut greeting = [0; 18];
        greeting[..8].copy_from_slice(&option::MAGIC.to_be_bytes());
        greeting[8..16].copy_from_slice(&option::OPTION_MAGIC.to_be_bytes());
        greeting[16..].copy_from_slice(&(option::FIXED_NEWSTYLE | option::NO_ZEROES).to_be_bytes());
        self.channel.send(&greeting).await?;
        let flags = u32::from_be_bytes(self.channel.receive().await?);
        if flags & !u32::from(option::FIXED_NEWSTYLE | option::NO_ZEROES) != 0 {
            return Err(Error::Flags(flags));
        }
        self.no_zeroes = flags & u32::from(option::NO_ZEROES) != 0;
        Ok(())
    }

    async fn option(&mut self) -> Result<Next, Error> {
        let magic = u64::from_be_bytes(self.channel.receive().await?);
        if magic != option::OPTION_MAGIC {
            return Err(Error::Magic(magic));
        }
        let number = u32::from_be_bytes(self.channel.receive().await?);
        let len = u32::from_be_bytes(self.channel.receive().await?);
        let kind = Kind::from_number(number);
        if len > option::DATA_LEN_MAX {
            // EXPORT_NAME has no way to answer an error.
            if len > SKIP_LEN_MAX || kind == Some(Kind::ExportName) {
                return Err(Error::Oversized { number, len });
            }
            self.channel.skip(len).await?;
            return self.refuse(number, &Refusal::TooBig).await;
        }
        let data = self.channel.receive_vec(len as usize).await?;
        let done = match kind {
            Some(Kind::ExportName) => return Ok(Next::Session(self.export_name(&data).await?)),
            Some(Kind::Abort) => {
                self.reply(number, Reply::Ack, &[]).await?;
                return Ok(Next::Closed);
            }
            Some(Kind::Go) => self.go(number, &data).await,
            Some(Kind::Info) => self.info(number, &data).await,
            Some(Kind::List) => self.list(number, &data).await,
            Some(Kind::StructuredReply) => self.structured_reply(number, &data).await,
            Some(Kind::ListMetaContext) => self.meta_context(number, &data, false).await,
            Some(Kind::SetMetaContext) => self.meta_context(number, &data, true).await,
            None => Err(Stop::Refused(Refusal::Unknown(number))),
        };
        match done {
            Ok(next) => Ok(next),
            Err(Stop::Refused(refusal)) => self.refuse(number, &refusal).await,
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    async fn export_name(&mut self, data: &[u8]) -> Result<Session, Error> {
        let name = option::whole_string(data).map_err(Refusal::from)?;
        let (session, info) = self.open(&name).await?;
        let mut answer = Vec::with_capacity(134);
        answer.extend(info.size.to_be_bytes());
        answer.extend(self.transmission_flags(&info).to_be_bytes());
        if !self.no_zeroes {
            answer.extend([0; 124]);
        }
        let sent = self.channel.send(&answer).await;
        self.hand_over(session, sent).await
    }

    async fn go(&mut self, number: u32, data: &[u8]) -> Result<Next, Stop> {
        let request = InfoRequest::decode(data)?;
        let (session, info) = self.open(&request.name).await?;
        let sent = self.send_info(number, &request, &info).await;
        Ok(Next::Session(self.hand_over(session, sent).await?))
    }

    async fn info(&mut self, number: u32, data: &[u8]) -> Result<Next, Stop> {
        let request = InfoRequest::decode(data)?;
        let info = self.describe(&request.name).await?;
        self.send_info(number, &request, &info).await?;
        Ok(Next::Option)
    }

    async fn list(&mut self, number: u32, data: &[u8]) -> Result<Next, Stop> {
        no_data(data)?;
        let names = self.channel.unhurried(self.exports.list()).await;
        let mut out = Vec::new();
        for name in names {
            let mut entry = Vec::with_capacity(4 + name.len());
            put_string(&mut entry, &name);
            put_reply(&mut out, number, Reply::Server, &entry);
            if out.len() >= LIST_PIECE_LEN {
                self.channel.send(&out).await?;
                out.clear();
            }
        }
        put_reply(&mut out, number, Reply::Ack, &[]);
        self.channel.send(&out).await?;
        Ok(Next::Option)
    }

    async fn structured_reply(&mut self, number: u32, data: &[u8]) -> Result<Next, Stop> {
        no_data(data)?;
        self.structured = true;
        self.reply(number, Reply::Ack, &[]).await?;
        Ok(Next::Option)
    }

    async fn meta_context(&mut self, number: u32, data: &[u8], set: bool) -> Result<Next, Stop> {
        if set {
            // Whatever becomes of this request, an earlier selection is over.
            self.allocation = None;
        }
        if !self.structured {
            return Err(Refusal::Order.into());
        }
        let ContextRequest { name, queries } = ContextRequest::decode(data)?;
        self.describe(&name).await?;
        let whole_namespace = |query: &String| !set && query == "base:";
        let selected = queries.iter().any(|query| query == ALLOCATION || whole_namespace(query));
        let mut out = Vec::new();
        if selected || (!set && queries.is_empty()) {
            // A listing does not give ids away.
            let id = if set { ALLOCATION_ID } else { 0 };
            let context = [&id.to_be_bytes()[..], ALLOCATION.as_bytes()].concat();
            put_reply(&mut out, number, Reply::MetaContext, &context);
        }
        put_reply(&mut out, number, Reply::Ack, &[]);
        self.channel.send(&out).await?;
        if set && selected {
            self.allocation = Some(name);
        }
        Ok(Next::Option)
    }

    async fn describe(&mut self, name: &str) -> Result<ExportInfo, Refusal> {
        let name: ExportName = name.parse().map_err(OpenError::from)?;
        Ok(self.channel.unhurried(self.exports.describe(&name)).await?)
    }

    async fn open(&mut self, text: &str) -> Result<(Session, ExportInfo), Refusal> {
        let name: ExportName = text.parse().map_err(OpenError::from)?;
        let open = self.exports.open(&name, self.client.clone());
        let export = self.channel.unhurried(open).await?;
        let info = export.info();
        let terms = Terms {
            size: info.size,
            read_only: info.read_only,
            structured: self.structured,
            allocation: self.allocation.as_deref() == Some(text),
        };
        Ok((Session { export, terms }, info))
    }

    /// A session whose client never heard of it is closed at once.
    async fn hand_over(&mut self, session: Session, sent: Result<(), Error>) -> Result<Session, Error> {
        match sent {
            Ok(()) => Ok(session),
            Err(error) => {
                session.export.close().await;
                Err(error)
            }
        }
    }

    async fn send_info(
        &mut self,
        number: u32,
        request: &InfoRequest,
        info: &ExportInfo,
    ) -> Result<(), Error> {
        let flags = self.transmission_flags(info);
        let mut out = Vec::new();
        let mut put = |kind: u16, data: &[&[u8]]| {
            let data = [&kind.to_be_bytes()[..], &data.concat()].concat();
            put_reply(&mut out, number, Reply::Info, &data);
        };
        put(option::INFO_EXPORT, &[&info.size.to_be_bytes(), &flags.to_be_bytes()]);
        if request.wanted.contains(&option::INFO_NAME) {
            put(option::INFO_NAME, &[clip(&info.name).as_bytes()]);
        }
        if request.wanted.contains(&option::INFO_DESCRIPTION) {
            put(option::INFO_DESCRIPTION, &[clip(&info.description).as_bytes()]);
        }
        if request.wanted.contains(&option::INFO_BLOCK_SIZE) {
            let sizes = [BLOCK_SIZE_MIN, BLOCK_SIZE_PREFERRED, PAYLOAD_LEN_MAX].map(u32::to_be_bytes);
            put(option::INFO_BLOCK_SIZE, &[sizes.as_flattened()]);
        }
        put_reply(&mut out, number, Reply::Ack, &[]);
        self.channel.send(&out).await
    }

    fn transmission_flags(&self, info: &ExportInfo) -> u16 {
        let structured = if self.structured { SEND_DF } else { 0 };
        let access = if info.read_only { READ_ONLY } else { SEND_TRIM | SEND_WRITE_ZEROES | SEND_FAST_ZERO };
        HAS_FLAGS | SEND_FLUSH | SEND_FUA | CAN_MULTI_CONN | SEND_CACHE | structured | access
    }

    async fn refuse(&mut self, number: u32, refusal: &Refusal) -> Result<Next, Error> {
        self.reply(number, refusal.reply(), clip(&refusal.to_string()).as_bytes()).await?;
        Ok(Next::Option)
    }

    async fn reply(&mut self, number: u32, reply: Reply, data: &[u8]) -> Result<(), Error> {
        let mut out = Vec::with_capacity(20 + data.len());
        put_reply(&mut out, number, reply, data);
        self.channel.send(&out).await
    }
}

/// Why an option was not done: the first is the client's to read, the second the end.
enum Stop {
    Refused(Refusal),
    Failed(Error),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<Malformed> for Stop {
    fn from(malformed: Malformed) -> Self {
        Self::Refused(malformed.into())
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

fn no_data(data: &[u8]) -> Result<(), Refusal> {
    if data.is_empty() { Ok(()) } else { Err(Refusal::Data) }
}

fn put_reply(out: &mut Vec<u8>, number: u32, reply: Reply, data: &[u8]) {
    out.extend(option::REPLY_MAGIC.to_be_bytes());
    out.extend(number.to_be_bytes());
    out.extend((reply as u32).to_be_bytes());
    // Every text was clipped to the protocol's limit.
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    let text = clip(text);
    out.extend((text.len() as u32).to_be_bytes());
    out.extend(text.as_bytes());
}

/// Cuts a text to what the protocol allows.
fn clip(text: &str) -> &str {
    &text[..text.floor_char_boundary(option::STRING_LEN_MAX)]
}

/// The socket with the client's deadline.
struct Channel<'a, S> {
    socket: &'a mut S,
    deadline: Instant,
}

impl<S> Channel<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async fn receive<const N: usize>(&mut self) -> Result<[u8; N], Error> {
        let mut bytes = [0; N];
        self.receive_exact(&mut bytes).await?;
        Ok(bytes)
    }

    /// `len` is at most [`option::DATA_LEN_MAX`].
    async fn receive_vec(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        self.receive_exact(&mut bytes).await?;
        Ok(bytes)
    }

    async fn skip(&mut self, mut len: u32) -> Result<(), Error> {
        let mut scratch = [0; 1024];
        while len > 0 {
            let part = len.min(scratch.len() as u32);
            self.receive_exact(&mut scratch[..part as usize]).await?;
            len -= part;
        }
        Ok(())
    }

    async fn receive_exact(&mut self, bytes: &mut [u8]) -> Result<(), Error> {
        let read = self.socket.read_exact(bytes);
        timeout_at(self.deadline, read).await.map_err(|_| Error::Deadline)??;
        Ok(())
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let write = self.socket.write_all(bytes);
        timeout_at(self.deadline, write).await.map_err(|_| Error::Deadline)??;
        Ok(())
    }

    /// Runs what the server has to do itself, with the client's clock stopped.
    async fn unhurried<T>(&mut self, work: impl Future<Output = T>) -> T {
        let begin = Instant::now();
        let done = work.await;
        self.deadline += begin.elapsed();
        done
    }
}

#[cfg(test)]
mod tests;
