//! The seam to the network: TCP, or whatever a simulation puts in its place.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// The kernel gives up on a connection whose data has not been acknowledged for this long. A silent
/// partition is to be noticed within 5 s even where nothing else is watching.
const USER_TIMEOUT: Duration = Duration::from_secs(4);
/// An idle connection is probed after this long...
const KEEPALIVE_IDLE: Duration = Duration::from_secs(2);
/// ...and again at this interval...
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// ...this often, before it counts as broken.
const KEEPALIVE_PROBES: u32 = 2;

/// Makes and accepts connections.
#[async_trait]
pub trait Net: Send + Sync + 'static {
    /// Connects to `address`. Dropping the future abandons the attempt; the caller sets the deadline.
    async fn connect(&self, address: SocketAddr) -> io::Result<Stream>;

    /// Listens on `address`; port 0 picks one.
    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Accept>>;
}

/// Accepts connections.
#[async_trait]
pub trait Accept: Send {
    /// The next connection and where it comes from. Cancel safe.
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)>;

    /// The address listened on.
    fn local_addr(&self) -> io::Result<SocketAddr>;
}

/// A connection. Dropping both halves closes it.
pub struct Stream {
    pub(super) read: ReadHalf,
    pub(super) write: WriteHalf,
}

pub(super) type ReadHalf = Box<dyn AsyncRead + Send + Unpin>;
pub(super) type WriteHalf = Box<dyn AsyncWrite + Send + Unpin>;

impl Stream {
    /// A connection out of its two directions.
    ///
    /// A write that would block must return `Pending` without having taken bytes; it is polled again with
    /// another waker.
    pub fn new(
        read: impl AsyncRead + Send + Unpin + 'static,
        write: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        Self { read: Box::new(read), write: Box::new(write) }
    }
}

/// The real network.
#[derive(Debug, Clone, Copy, Default)]
pub struct TcpNet;

#[async_trait]
impl Net for TcpNet {
    async fn connect(&self, address: SocketAddr) -> io::Result<Stream> {
        tcp_stream(TcpStream::connect(address).await?)
    }

    async fn listen(&self, address: SocketAddr) -> io::Result<Box<dyn Accept>> {
        Ok(Box::new(TcpListener::bind(address).await?))
    }
}

#[async_trait]
impl Accept for TcpListener {
    async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        let (stream, from) = TcpListener::accept(self).await?;
        Ok((tcp_stream(stream)?, from))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        TcpListener::local_addr(self)
    }
}

fn tcp_stream(stream: TcpStream) -> io::Result<Stream> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(&stream, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_PROBES)?;
    let user_timeout = u32::try_from(USER_TIMEOUT.as_millis()).expect("a few seconds");
    sockopt::set_tcp_user_timeout(&stream, user_timeout)?;
    let (read, write) = stream.into_split();
    Ok(Stream::new(read, write))
}
