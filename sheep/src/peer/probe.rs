//! Whether somebody is there, asked with a connection that is closed again at once.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::net::Net;

/// How long a probe may take.
const PATIENCE: Duration = Duration::from_millis(300);

/// How a connection attempt to a node went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Nobody listens there, or something rejects in its place.
    Refused,
    /// Somebody listens.
    Accepted,
    /// No answer.
    Silent,
}

/// Connects to `address`, waiting 300 ms at most. Cancel safe.
pub(crate) async fn probe(net: &dyn Net, address: SocketAddr) -> Probe {
    match tokio::time::timeout(PATIENCE, net.connect(address)).await {
        Ok(Ok(_)) => Probe::Accepted,
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => Probe::Refused,
        Ok(Err(_)) | Err(_) => Probe::Silent,
    }
}
