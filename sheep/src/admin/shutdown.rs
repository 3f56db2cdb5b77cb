//! Stopping the whole ring in order: every member is asked to, this one last.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use wire::admin::{AdminError, ShutdownReply};
use wire::frame::Payload;
use wire::id::NodeId;
use wire::peer::{Status, op};

use super::{Admin, NODES_AT_ONCE, nodes};
use crate::peer::Class;

/// How long a member may take to say that it stops.
const ASK_PATIENCE: Duration = Duration::from_secs(2);

impl Admin {
    pub(super) async fn shut_down(&self) -> Result<ShutdownReply, AdminError> {
        let state = self.gateway.context.view.state();
        self.shutting_down.store(true, Ordering::Release);
        let me = self.host.spec().session.node;
        // Voters last: the others still need the log, to release what they own.
        let voters = self.gateway.context.log.metrics().voters;
        let others = nodes::up(&state).into_iter().filter(|id| *id != me);
        let (last, first): (Vec<NodeId>, Vec<NodeId>) = others.partition(|id| voters.contains(id));
        for group in [first, last] {
            futures::stream::iter(group)
                .for_each_concurrent(NODES_AT_ONCE, |id| async move {
                    if !self.ask_to_stop(id).await {
                        tracing::warn!(node = %id, "a member did not answer that it stops");
                    }
                })
                .await;
        }
        let reply = ShutdownReply { view: self.view() };
        tracing::info!("the ring was asked to stop");
        self.host.shutdown();
        Ok(reply)
    }

    async fn ask_to_stop(&self, node: NodeId) -> bool {
        let peers = &self.gateway.context.peers;
        let call = peers.call(
            node,
            Class::Control,
            op::SHUTDOWN,
            Bytes::new(),
            Payload::empty(),
            Some(ASK_PATIENCE),
        );
        call.await.is_ok_and(|reply| reply.status == Status::Ok as u16)
    }
}
