//! The node service: list, info, recovery, stat, drain, remove.

use tonic::{Request, Response, Status};
use wire::admin::node_service_server::NodeService;
use wire::admin::{
    AdminError, Counter, DrainEvent, DrainRequest, ListNodesReply, ListNodesRequest, NodeInfo,
    NodeInfoRequest, NodeRecovery, Progress, RecoveryReply, RecoveryRequest, RecoverySettings,
    RemoveNodeReply, RemoveNodeRequest, SetRecoveryRequest, StatReply, StatRequest,
};
use wire::id::NodeId;
use wire::peer::NodeStatusReply;

use super::stream::Answers;
use super::{Admin, drain, nodes, request};
use crate::cluster::entry::{ClusterEntry, Refusal};

#[tonic::async_trait]
impl NodeService for Admin {
    async fn list(&self, _: Request<ListNodesRequest>) -> Result<Response<ListNodesReply>, Status> {
        self.host.view_settles().await;
        let state = self.gateway.context.view.state();
        let view = self.view();
        let nodes = nodes::list(&state, &*self.host).await;
        Ok(Response::new(ListNodesReply { view, nodes, formatted: state.format().is_some() }))
    }

    async fn info(&self, request: Request<NodeInfoRequest>) -> Result<Response<NodeInfo>, Status> {
        let id = self.node_meant(request.into_inner().node);
        Ok(Response::new(self.node_info(id).await?))
    }

    async fn recovery(&self, _: Request<RecoveryRequest>) -> Result<Response<RecoveryReply>, Status> {
        Ok(Response::new(self.recovery_state().await?))
    }

    async fn set_recovery(
        &self,
        request: Request<SetRecoveryRequest>,
    ) -> Result<Response<RecoveryReply>, Status> {
        let request = request.into_inner();
        let now = self.gateway.context.view.state().recovery();
        let limit = match request.limit_bytes_per_second {
            None => now.bytes_per_second,
            Some(0) => None,
            limit => limit,
        };
        let paused = request.paused.unwrap_or(now.paused);
        self.propose(ClusterEntry::SetRecovery { paused, limit }).await?;
        Ok(Response::new(self.recovery_state().await?))
    }

    async fn stat(&self, request: Request<StatRequest>) -> Result<Response<StatReply>, Status> {
        let id = self.node_meant(request.into_inner().node);
        let state = self.gateway.context.view.state();
        if id != self.host.spec().session.node {
            self.known(&state, id)?;
        }
        let reply = self.host.node_status(id).await.ok_or_else(|| self.silent(&state, id))?;
        Ok(Response::new(StatReply { node: id.0, started_ms: reply.started_ms, counters: counters(&reply) }))
    }

    type DrainStream = Answers<DrainEvent>;

    async fn drain(&self, request: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let id = NodeId(request.into_inner().node);
        let state = self.gateway.context.view.state();
        request::formatted(&state)?;
        drain::may_drain(&state, id)?;
        self.stream(move |admin, sink| async move { admin.drain_node(&sink, id).await })
    }

    async fn remove(&self, request: Request<RemoveNodeRequest>) -> Result<Response<RemoveNodeReply>, Status> {
        Ok(Response::new(self.remove_node(NodeId(request.into_inner().node)).await?))
    }
}

impl Admin {
    async fn node_info(&self, id: NodeId) -> Result<NodeInfo, AdminError> {
        self.host.view_settles().await;
        let state = self.gateway.context.view.state();
        let view = self.view();
        let me = self.host.spec().session.node;
        let held = nodes::held(&state).get(&id).copied().unwrap_or_default();
        let (node, mesh) = match state.node(id) {
            Some(node) => (nodes::member(node, held, me), node.spec.mesh.clone()),
            None => {
                let known = self.host.known_nodes().into_iter().chain([self.host.spec()]);
                // A stranger is shown only as long as there is no ring, or if it is the one asked.
                let mut known = known.filter(|n| state.format().is_none() || n.session.node == me);
                let spec = known.find(|n| n.session.node == id).ok_or(Refusal::NoSuchNode(id))?;
                (nodes::described(&spec, me), spec.mesh)
            }
        };
        let log = self.gateway.context.log.metrics();
        let answer = self.host.node_status(id).await;
        let answered = answer.is_some();
        let space = answer.as_ref().filter(|_| !node.gateway).map(nodes::space);
        let said = answer.unwrap_or_default();
        let owned = state.vdis().filter(|v| v.owner.session.is_some_and(|s| s.node == id)).count();
        Ok(NodeInfo {
            view,
            node: Some(wire::admin::Node { space, ..node }),
            version: said.version,
            mesh,
            nbd: said.nbd,
            voter: log.voters.contains(&id),
            leader: log.leader == Some(id),
            started_ms: said.started_ms,
            slots_in_sync: held.in_sync,
            slots_catching_up: held.catching_up,
            vdis_owned: owned as u64,
            connections: said.connections,
            memory_bytes: said.memory_bytes,
            answered,
        })
    }

    async fn recovery_state(&self) -> Result<RecoveryReply, AdminError> {
        self.host.view_settles().await;
        let state = self.gateway.context.view.state();
        request::formatted(&state)?;
        let replies = nodes::ask(&*self.host, nodes::storing(&state)).await;
        let recovery = state.recovery();
        Ok(RecoveryReply {
            view: self.view(),
            settings: Some(RecoverySettings {
                paused: recovery.paused,
                limit_bytes_per_second: recovery.bytes_per_second.unwrap_or(0),
            }),
            nodes: replies.into_iter().map(|(id, reply)| recovery_of(id, reply, recovery.paused)).collect(),
        })
    }
}

fn recovery_of(id: NodeId, reply: NodeStatusReply, paused: bool) -> NodeRecovery {
    let left = reply.slots_left;
    let waiting_for = match () {
        () if left == 0 => String::new(),
        () if paused => "recovery is paused: `dog node recovery --resume` lets it go on".to_owned(),
        () => reply.waiting,
    };
    // How much there is to copy is only known once it has been compared: totals stay open.
    let progress =
        Progress { objects_done: reply.objects_done, bytes_done: reply.bytes_done, ..Progress::default() };
    let progress = if left == 0 { Progress::default() } else { progress };
    NodeRecovery { node: id.0, slots_left: left, progress: Some(progress), waiting_for }
}

/// Counters by name. What only grows ends in `_total`, as in the metrics.
fn counters(reply: &NodeStatusReply) -> Vec<Counter> {
    let mut all: Vec<Counter> = reply
        .counters
        .iter()
        .map(|(name, value)| Counter { name: name.clone(), value: *value, gauge: !name.ends_with("_total") })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_in_order_and_gauges_told_apart() {
        let named = [("sheep_b_requests_total", 1), ("sheep_a_open_connections", 2)];
        let counters_by_name = named.map(|(name, value)| (name.to_owned(), value)).into();
        let reply = NodeStatusReply { counters: counters_by_name, ..NodeStatusReply::default() };
        let found: Vec<_> = counters(&reply).into_iter().map(|c| (c.value, c.gauge)).collect();
        assert_eq!(found, [(2, true), (1, false)]);
    }

    #[test]
    fn a_node_with_nothing_to_recover_shows_no_progress() {
        let reply = NodeStatusReply { objects_done: 7, waiting: "x".into(), ..NodeStatusReply::default() };
        let idle = recovery_of(NodeId(1), reply.clone(), true);
        assert_eq!((idle.progress, idle.waiting_for.as_str()), (Some(Progress::default()), ""));
        let busy = recovery_of(NodeId(1), NodeStatusReply { slots_left: 2, ..reply.clone() }, false);
        assert_eq!((busy.progress.map(|p| p.objects_done), busy.waiting_for.as_str()), (Some(7), "x"));
        let paused = recovery_of(NodeId(1), NodeStatusReply { slots_left: 2, ..reply }, true);
        assert!(paused.waiting_for.contains("paused"));
    }
}
