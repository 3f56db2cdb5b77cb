//! Who has a VDI open, and taking it away from them.
//!
//! A VDI's owner learns of a connection with its first request, and a new owner of an idle one not at all.
//! So both are asked: the gateways, who know all of theirs, and the owner, who may have requests under way
//! of gateways that are gone.

use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use wire::admin::{AdminError, ErrorKind, Lock, LockListReply, LockUnlockReply};
use wire::id::{NodeId, VdiId};
use wire::peer::{ClientsRequest, OpenConnection};

use super::{Admin, NODES_AT_ONCE, error, request};
use crate::cluster::state::ClusterState;

/// A connection as it is shown; `None` if its VDI is gone.
fn lock(state: &ClusterState, open: &OpenConnection) -> Option<Lock> {
    let vdi = state.vdi(VdiId(open.vdi))?;
    let connection = &open.connection;
    Some(Lock {
        vdi: vdi.name.to_string(),
        vdi_id: vdi.id.0,
        client: connection.client.clone(),
        node: connection.gateway.node,
        attach_client: connection.attach_client.clone(),
        attach_generation: connection.attach_generation,
        opened_ms: open.opened_ms,
        read_only: open.read_only,
    })
}

impl Admin {
    /// The connections that all sheep serve to a VDI (id 0: to all), and who did not answer. With `revoke`
    /// they are withdrawn.
    pub(super) async fn connections(
        &self,
        vdi: VdiId,
        client: &str,
        revoke: bool,
    ) -> (Vec<OpenConnection>, Vec<NodeId>) {
        let state = self.gateway.context.view.state();
        let ask = ClientsRequest { to_start: 0, vdi: vdi.0, client: client.to_owned(), revoke };
        let (gateway, ask) = (&self.gateway, &ask);
        let ask_one = |session| async move { (session, gateway.clients_at(session, ask).await) }.boxed();
        let all: Vec<BoxFuture<'_, _>> =
            state.nodes().filter_map(|n| n.live_session()).map(ask_one).collect();
        let mut asked = futures::stream::iter(all).buffer_unordered(NODES_AT_ONCE);
        let (mut found, mut unanswered) = (Vec::new(), Vec::new());
        while let Some((session, reply)) = asked.next().await {
            match reply {
                Some(reply) => found.extend(reply.connections),
                // What died meanwhile serves nobody any more.
                None if !self.gateway.context.view.state().is_live(session) => {}
                None => unanswered.push(session.node),
            }
        }
        unanswered.sort();
        (found, unanswered)
    }

    /// Who has VDIs open; all VDIs for an empty name.
    pub(super) async fn lock_list(&self, name: &str) -> Result<LockListReply, AdminError> {
        self.host.view_settles().await;
        let state = self.gateway.context.view.state();
        request::formatted(&state)?;
        let vdi = if name.is_empty() { VdiId(0) } else { request::vdi(&state, name)?.id };
        let (open, unanswered) = self.connections(vdi, "", false).await;
        let state = self.gateway.context.view.state();
        let mut locks: Vec<Lock> = open.iter().filter_map(|c| lock(&state, c)).collect();
        locks.sort_by(|a, b| (&a.vdi, &a.client, a.node).cmp(&(&b.vdi, &b.client, b.node)));
        let unanswered = unanswered.into_iter().map(|id| id.0).collect();
        Ok(LockListReply { view: self.view(), locks, unanswered })
    }

    /// Withdraws connections. When it succeeds, nothing that they asked for can happen any more.
    pub(super) async fn lock_unlock(&self, name: &str, client: &str) -> Result<LockUnlockReply, AdminError> {
        let vdi = request::vdi(&self.gateway.context.view.state(), name)?;
        // First where they come from, so that nothing new is begun; then at the owner, which waits for what
        // was begun.
        let (closed, unanswered) = self.connections(vdi.id, client, true).await;
        let at_owner = self.gateway.unlock_at_owner(vdi.id, client).await;
        if let Some(node) = unanswered.first() {
            let state = self.gateway.context.view.state();
            return Err(self.silent(&state, *node));
        }
        let Some(at_owner) = at_owner else {
            let why = format!("VDI {name}: its owner does not answer, or requests are still under way");
            return Err(AdminError::new(ErrorKind::Unavailable, why)
                .hint("they are refused from now on; run it again to know when the last one has ended"));
        };
        let mut all: Vec<(u64, u64, u64)> = closed
            .iter()
            .map(|c| &c.connection)
            .chain(&at_owner)
            .map(|c| (c.gateway.node, c.gateway.start, c.connection))
            .collect();
        all.sort_unstable();
        all.dedup();
        if all.is_empty() && !client.is_empty() {
            return Err(error::no_client(name, client));
        }
        tracing::info!(vdi = name, client, connections = all.len(), "connections were withdrawn");
        Ok(LockUnlockReply { view: self.view(), closed: all.len() as u64 })
    }
}
