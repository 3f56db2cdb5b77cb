//! What this node says of itself when a connection opens, and whom it does not speak to.

use std::net::SocketAddr;
use std::sync::Arc;

use wire::hello::{BootId, Hello, HelloReject, PROTOCOL_VERSIONS, RejectCode};

use super::Membership;
use crate::peer::Greeter;

/// Tells peers who we are, and refuses those who do not belong here.
pub(crate) struct MeshGreeter {
    pub(crate) membership: Arc<Membership>,
    pub(crate) address: SocketAddr,
}

impl Greeter for MeshGreeter {
    fn hello(&self) -> Hello {
        Hello {
            versions: PROTOCOL_VERSIONS,
            features: 0,
            cluster: self.membership.cluster(),
            session: self.membership.me.session(),
            boot: BootId(self.membership.me.boot.to_be_bytes()),
            address: self.address,
            class: 0,
        }
    }

    fn check(&self, theirs: &Hello) -> Result<(), HelloReject> {
        match (self.membership.cluster(), theirs.cluster) {
            (Some(ours), Some(other)) if ours != other => Err(HelloReject::new(
                RejectCode::Cluster,
                format!("this node belongs to ring {ours}, you to ring {other}"),
            )),
            _ => Ok(()),
        }
    }
}
