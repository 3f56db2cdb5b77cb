//! Accepts connections, limits them, and stops.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};

use super::budget::Budget;
use super::export::{ClientInfo, Exports};
use super::handshake::{self, Session};
use super::listen::{self, SocketFile};
use super::transmission;

/// The most data that one request moves, as told to clients. It is what qemu takes for granted of a server
/// that says nothing.
pub const PAYLOAD_LEN_MAX: u32 = 32 << 20;

/// Requests of one connection that are not answered. The kernel's client queues up to 128.
pub const REQUESTS_MAX: usize = 128;

/// Extents in one reply to BLOCK_STATUS. Clients ask again from where a reply ends.
pub const EXTENTS_MAX: usize = 1024;

/// How long requests in flight may take to finish when the server stops.
const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// How long a closed connection's client may take to read what was sent before the socket goes. Closing with
/// unread input makes TCP reset the connection, which can take the last replies with it.
const LINGER: Duration = Duration::from_millis(500);

/// Pause after a failed accept: the usual cause, too many open files, does not go away by asking again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where to listen, and limits.
#[derive(Debug, Clone)]
pub struct Config {
    /// TCP addresses. Port 0 takes a free one.
    pub tcp: Vec<SocketAddr>,
    /// A unix socket.
    pub unix: Option<PathBuf>,
    /// Connections at once; more are closed on arrival. Default 1,024.
    pub connections_max: usize,
    /// Bytes that requests of all connections may hold, besides 32 KiB per connection and at most 16 MiB of
    /// read buffers. Default 48 MiB; at least what the largest request needs.
    pub payload_bytes_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { tcp: Vec::new(), unix: None, connections_max: 1024, payload_bytes_max: 48 << 20 }
    }
}

/// Why the server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A TCP address.
    #[error("cannot listen on {address} for NBD: {source}; choose another port or stop what uses it")]
    Bind {
        /// The address asked for.
        address: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The unix socket.
    #[error("cannot listen on {}: {source}", path.display())]
    Socket {
        /// The path asked for.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something else is at the unix socket's path.
    #[error("{} exists and is not a socket", .0.display())]
    NotASocket(PathBuf),
    /// Another server.
    #[error("another process listens on {}", .0.display())]
    InUse(PathBuf),
}

/// A running server. Dropping it cuts everything off; [`Server::stop`] is the civil way.
#[derive(Debug)]
pub struct Server {
    addresses: Vec<SocketAddr>,
    socket_file: Option<SocketFile>,
    tasks: TaskTracker,
    stop: CancellationToken,
    kill: DropGuard,
}

impl Server {
    /// Binds every listener, or none, and begins to serve.
    pub async fn start(config: Config, exports: Arc<dyn Exports>) -> Result<Self, StartError> {
        let mut listeners = Vec::with_capacity(config.tcp.len());
        for &address in &config.tcp {
            listeners.push(listen::bind_tcp(address).await?);
        }
        let mut addresses = Vec::with_capacity(listeners.len());
        for (listener, &address) in listeners.iter().zip(&config.tcp) {
            addresses.push(listener.local_addr().map_err(|source| StartError::Bind { address, source })?);
        }
        let unix = match &config.unix {
            Some(path) => Some(listen::bind_unix(path).await?),
            None => None,
        };
        let kill = CancellationToken::new();
        let acceptor = Acceptor {
            exports,
            budget: Budget::new(config.payload_bytes_max),
            connections: Arc::new(Semaphore::new(config.connections_max.min(Semaphore::MAX_PERMITS))),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
            kill: kill.clone(),
        };
        let tasks = acceptor.tasks.clone();
        let stop = acceptor.stop.clone();
        for listener in listeners {
            tasks.spawn(acceptor.clone().accept_tcp(listener));
        }
        let socket_file = unix.map(|(listener, file)| {
            tasks.spawn(acceptor.clone().accept_unix(listener));
            file
        });
        info!(?addresses, unix = ?config.unix, "serving NBD");
        Ok(Self { addresses, socket_file, tasks, stop, kill: kill.drop_guard() })
    }

    /// Where it listens, in the order of [`Config::tcp`], with the ports it was given.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops accepting, lets requests in flight finish and be answered, and closes each connection when
    /// nothing of it is in flight. What is not done after some seconds is cut off, without [`close`] being
    /// called: its requests still run, or never will.
    ///
    /// [`close`]: super::Export::close
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        if let Some(file) = self.socket_file {
            file.remove().await;
        }
        if timeout(STOP_DEADLINE, self.tasks.wait()).await.is_err() {
            warn!(tasks = self.tasks.len(), "cutting off NBD connections with requests in flight");
            drop(self.kill);
            self.tasks.wait().await;
        }
    }
}

/// What accepts, and what every connection gets a copy of.
#[derive(Clone)]
struct Acceptor {
    exports: Arc<dyn Exports>,
    budget: Arc<Budget>,
    connections: Arc<Semaphore>,
    tasks: TaskTracker,
    /// Finish what is in flight.
    stop: CancellationToken,
    /// Finish nothing.
    kill: CancellationToken,
}

impl Acceptor {
    async fn accept_tcp(self, listener: TcpListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
                () = self.kill.cancelled() => return,
            };
            let prepared = match accepted {
                Ok((stream, peer)) => listen::prepare(&stream).map(|()| (stream, peer)),
                Err(error) => Err(error),
            };
            match prepared {
                Ok((stream, peer)) => self.admit(stream, peer.to_string()),
                Err(error) => pause(&error).await,
            }
        }
    }

    async fn accept_unix(self, listener: UnixListener) {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.stop.cancelled() => return,
                () = self.kill.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => self.admit(stream, "unix".to_owned()),
                Err(error) => pause(&error).await,
            }
        }
    }

    /// Serves a connection, unless there are too many: then it is closed at once, which tells its client more
    /// than silence in the backlog would.
    fn admit<S>(&self, socket: S, peer: String)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() else {
            warn!(peer, "closing an NBD connection: there are too many");
            return;
        };
        let connection = self.clone();
        self.tasks.spawn(async move {
            // Dropping the future drops requests in flight; that is what `kill` means.
            tokio::select! {
                () = connection.serve(socket, ClientInfo { peer }) => {}
                () = connection.kill.cancelled() => {}
            }
            drop(permit);
        });
    }

    async fn serve<S>(&self, mut socket: S, client: ClientInfo)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let peer = &client.peer;
        let Some(Session { export, terms }) = self.negotiate(&mut socket, &client).await else {
            return linger(socket).await;
        };
        debug!(peer, export = export.info().name, "NBD export opened");
        // Boxed, so that what is idle in negotiation does not take the room of what is not.
        let served: BoxFuture<'_, _> = Box::pin(transmission::serve(
            &mut socket,
            export.as_ref(),
            terms,
            &self.budget,
            self.stop.clone(),
        ));
        if let Err(error) = served.await {
            let error = &error as &dyn std::error::Error;
            warn!(peer, export = export.info().name, error, "NBD connection dropped");
        }
        export.close().await;
        debug!(peer, export = export.info().name, "NBD export closed");
        linger(socket).await;
    }

    async fn negotiate<S>(&self, socket: &mut S, client: &ClientInfo) -> Option<Session>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send,
    {
        let negotiated: BoxFuture<'_, _> =
            Box::pin(handshake::negotiate(socket, self.exports.as_ref(), client));
        tokio::select! {
            negotiated = negotiated => negotiated.unwrap_or_else(|error| {
                // Port scanners and half-open clients are everyday life.
                debug!(peer = client.peer, error = &error as &dyn std::error::Error, "no NBD session");
                None
            }),
            // Nothing is open, or `Exports::open` undoes it when dropped.
            () = self.stop.cancelled() => None,
        }
    }
}

/// Says goodbye, and waits a little for the client to do so.
async fn linger<S>(mut socket: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let goodbye = async {
        socket.shutdown().await?;
        let mut scratch = [0; 1024];
        while socket.read(&mut scratch).await? > 0 {}
        io::Result::Ok(())
    };
    // Whether the client answers makes no difference any more.
    if let Ok(Err(error)) = timeout(LINGER, goodbye).await {
        debug!(%error, "an NBD client did not say goodbye");
    }
}

async fn pause(error: &io::Error) {
    warn!(%error, "accepting an NBD connection failed");
    sleep(ACCEPT_PAUSE).await;
}
