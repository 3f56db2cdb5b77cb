//! The cluster service: format, info, check, shutdown.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use tonic::{Request, Response, Status};
use wire::admin::cluster_service_server::ClusterService;
use wire::admin::{
    AdminError, CheckClusterRequest, CheckEvent, CheckSummary, ClusterInfo, ClusterInfoRequest,
    ClusterStatus, FormatReply, FormatRequest, Progress, RecoverEvent, RecoverRequest, ShutdownReply,
    ShutdownRequest, Space, check_event,
};

use wire::id::NodeId;

use super::check::Tally;
use super::stream::{Answers, Ended, Sink};
use super::{Admin, nodes, redundancy, request};
use crate::placement::SlotCount;

#[tonic::async_trait]
impl ClusterService for Admin {
    async fn format(&self, request: Request<FormatRequest>) -> Result<Response<FormatReply>, Status> {
        let request = request.into_inner();
        let copies = request::copies(request.copies)?.unwrap_or_else(|| self.host.default_copies());
        let slots = if request.slots == 0 { SlotCount::default().get() } else { request.slots };
        let again = self.gateway.context.view.state().format().is_some();
        self.host.format(copies, slots, request.force).await.map_err(AdminError::from)?;
        Ok(Response::new(FormatReply { cluster: Some(self.cluster_info().await), again }))
    }

    async fn info(&self, _: Request<ClusterInfoRequest>) -> Result<Response<ClusterInfo>, Status> {
        Ok(Response::new(self.cluster_info().await))
    }

    type CheckStream = Answers<CheckEvent>;

    async fn check(
        &self,
        request: Request<CheckClusterRequest>,
    ) -> Result<Response<Self::CheckStream>, Status> {
        let deep = request.into_inner().deep;
        self.host.view_settles().await;
        request::formatted(&self.gateway.context.view.state())?;
        self.stream(|admin, sink| async move { admin.check_cluster(&sink, deep).await })
    }

    type RecoverStream = Answers<RecoverEvent>;

    async fn recover(
        &self,
        request: Request<RecoverRequest>,
    ) -> Result<Response<Self::RecoverStream>, Status> {
        let request = request.into_inner();
        self.host.view_settles().await;
        request::formatted(&self.gateway.context.view.state())?;
        self.stream(|admin, sink| async move { admin.recover_without(&sink, request).await })
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownReply>, Status> {
        Ok(Response::new(self.shut_down().await?))
    }
}

impl Admin {
    async fn cluster_info(&self) -> ClusterInfo {
        self.host.view_settles().await;
        let applied = self.gateway.context.view.applied();
        let view = self.view();
        let state = &applied.state;
        let Some(format) = state.format() else {
            let known = self.host.known_nodes();
            let zones: BTreeSet<&str> = known.iter().map(|n| n.zone.as_str()).collect();
            return ClusterInfo {
                view,
                status: ClusterStatus::Waiting.into(),
                copies: self.host.default_copies().get().into(),
                nodes: u32::try_from(known.len()).unwrap_or(u32::MAX),
                zones: u32::try_from(zones.len()).unwrap_or(u32::MAX),
                driver: self.host.driver().to_owned(),
                ..ClusterInfo::default()
            };
        };
        let log = self.gateway.context.log.metrics();
        let counts = redundancy::count(state);
        let status = match () {
            () if self.shutting_down.load(Ordering::Acquire) => ClusterStatus::ShuttingDown,
            () if !self.host.view_is_fresh() => ClusterStatus::NoMajority,
            () if counts.degraded > 0 => ClusterStatus::Degraded,
            () => ClusterStatus::Ok,
        };
        let zones: BTreeSet<&str> =
            state.nodes().filter(|n| !n.spec.gateway).map(|n| n.spec.zone.as_str()).collect();
        let replies = nodes::ask(&*self.host, nodes::storing(state)).await;
        let sum = |part: fn(&Space) -> u64| {
            replies.values().map(|r| part(&nodes::space(r))).fold(0, u64::saturating_add)
        };
        ClusterInfo {
            view,
            status: status.into(),
            id: format.cluster.to_string(),
            created_ms: format.created_ms,
            copies: format.copies.get().into(),
            slots: format.slots,
            feature_level: format.feature_level,
            leader: log.leader.map_or(0, |id| id.0),
            voters: log.voters.iter().map(|id| id.0).collect(),
            nodes: u32::try_from(state.nodes().count()).unwrap_or(u32::MAX),
            nodes_up: u32::try_from(nodes::up(state).len()).unwrap_or(u32::MAX),
            zones: u32::try_from(zones.len()).unwrap_or(u32::MAX),
            vdis: state.vdis().count() as u64,
            slots_degraded: counts.degraded,
            space: Some(Space { total: sum(|s| s.total), free: sum(|s| s.free), used: sum(|s| s.used) }),
            driver: self.host.driver().to_owned(),
            silent: self.silent_voters().await.into_iter().map(|id| id.0).collect(),
        }
    }

    /// While there is no majority: the voters that do not answer.
    async fn silent_voters(&self) -> Vec<NodeId> {
        if self.host.view_is_fresh() {
            return Vec::new();
        }
        let me = self.host.spec().session.node;
        let voters = self.gateway.context.log.metrics().voters;
        let others: Vec<NodeId> = voters.into_iter().filter(|id| *id != me).collect();
        let replies = nodes::ask(&*self.host, others.clone()).await;
        others.into_iter().filter(|id| !replies.contains_key(id)).collect()
    }

    async fn check_cluster(&self, sink: &Sink<CheckEvent>, deep: bool) -> Result<(), Ended> {
        let state = self.gateway.context.view.state();
        let silent = self.silent_voters().await;
        if !silent.is_empty() {
            let finding = redundancy::no_majority(&silent);
            sink.send(CheckEvent { event: Some(check_event::Event::Finding(finding)) }).await?;
        }
        for finding in redundancy::findings(&state) {
            sink.send(CheckEvent { event: Some(check_event::Event::Finding(finding)) }).await?;
        }
        let mut tally = Tally::default();
        if deep {
            let mut vdis: Vec<_> = state.vdis().cloned().collect();
            vdis.sort_by(|a, b| a.name.cmp(&b.name));
            tally.expect(vdis.iter().map(|v| v.used_objects).sum());
            for vdi in vdis {
                match self.check_vdi(sink, &vdi, false, &mut tally).await {
                    Err(Ended::Failed(_)) if self.gateway.context.view.state().is_deleted(vdi.id) => {}
                    ended => ended?,
                }
            }
        } else {
            let progress = Progress::default();
            sink.send(CheckEvent { event: Some(check_event::Event::Progress(progress)) }).await?;
        }
        self.host.view_settles().await;
        let slots = redundancy::summary(&self.gateway.context.view.state());
        let worst = redundancy::worse(slots.worst(), tally.worst()).into();
        let summary = CheckSummary { view: self.view(), worst, ..tally.summary(slots) };
        sink.send(CheckEvent { event: Some(check_event::Event::Summary(summary)) }).await
    }
}
