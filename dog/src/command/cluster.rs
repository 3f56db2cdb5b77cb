//! `dog cluster`: the ring as a whole.

use serde::Serialize;
use wire::admin::{self, ClusterInfo, ClusterStatus};
use wire::client::AdminClient;
use wire::size::{HumanBytes, count};

use crate::cli::Cluster;
use crate::exit::{Exit, Failure};
use crate::output::{Output, Record};
use crate::time::rfc3339;

use super::node::SpaceView;
use super::{check, dash, node_id, recover};

pub(super) async fn run(verb: Cluster, client: &mut AdminClient, output: &Output) -> Result<Exit, Failure> {
    match verb {
        Cluster::Format { copies, slots, force } => {
            let request = admin::FormatRequest {
                copies: copies.map_or(0, |copies| copies.get().into()),
                slots: slots.unwrap_or(0),
                force,
            };
            let reply = client.cluster_format(request).await.map_err(Failure::client("cluster format"))?;
            let cluster = ClusterView::from(reply.cluster.unwrap_or_default());
            let text = format!(
                "ring {} {}: {}, {}, {} slots",
                dash(cluster.id.as_deref()),
                if reply.again { "formatted anew, its VDIs are gone" } else { "founded" },
                count(cluster.nodes, "node", "nodes"),
                count(cluster.copies, "copy", "copies"),
                cluster.slots
            );
            output.done(&text, &cluster)?;
            Ok(Exit::Done)
        }
        Cluster::Info => {
            let info = client.cluster_info(admin::ClusterInfoRequest {}).await;
            let info = info.map_err(Failure::client("cluster info"))?;
            output.view(info.view.as_ref());
            output.record(&ClusterView::from(info))?;
            Ok(Exit::Done)
        }
        Cluster::Check { deep } => {
            let what = "cluster check";
            let events = client.cluster_check(admin::CheckClusterRequest { deep }).await;
            check::follow(what, events.map_err(Failure::client(what))?, output).await
        }
        Cluster::Recover { force, nodes, yes } => recover::run(client, output, &nodes, force, yes).await,
        Cluster::Shutdown => {
            let reply = client.cluster_shutdown(admin::ShutdownRequest {}).await;
            reply.map_err(Failure::client("cluster shutdown"))?;
            output.done("the ring is stopping", &serde_json::json!({ "status": "shutting_down" }))?;
            Ok(Exit::Done)
        }
    }
}

#[derive(Debug, Serialize)]
struct ClusterView {
    status: &'static str,
    id: Option<String>,
    created: Option<String>,
    driver: String,
    copies: u32,
    slots: u32,
    slots_degraded: u64,
    epoch: u64,
    applied_index: u64,
    possibly_stale: bool,
    feature_level: u32,
    leader: Option<String>,
    voters: Vec<String>,
    /// The voters that do not answer, while there is no majority.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    silent: Vec<String>,
    nodes: u32,
    nodes_up: u32,
    zones: u32,
    vdis: u64,
    space: SpaceView,
}

impl From<ClusterInfo> for ClusterView {
    fn from(info: ClusterInfo) -> Self {
        let view = info.view.unwrap_or_default();
        Self {
            status: match info.status() {
                ClusterStatus::Unspecified => "unknown",
                ClusterStatus::Waiting => "waiting",
                ClusterStatus::Ok => "ok",
                ClusterStatus::Degraded => "degraded",
                ClusterStatus::NoMajority => "no_majority",
                ClusterStatus::ShuttingDown => "shutting_down",
            },
            id: (!info.id.is_empty()).then_some(info.id),
            created: rfc3339(info.created_ms),
            driver: info.driver,
            copies: info.copies,
            slots: info.slots,
            slots_degraded: info.slots_degraded,
            epoch: view.epoch,
            applied_index: view.applied_index,
            possibly_stale: view.possibly_stale,
            feature_level: info.feature_level,
            leader: node_id(info.leader),
            voters: info.voters.into_iter().filter_map(node_id).collect(),
            silent: info.silent.into_iter().filter_map(node_id).collect(),
            nodes: info.nodes,
            nodes_up: info.nodes_up,
            zones: info.zones,
            vdis: info.vdis,
            space: info.space.unwrap_or_default().into(),
        }
    }
}

impl Record for ClusterView {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![("Status", self.status.replace('_', " ")), ("Driver", self.driver.clone())];
        if self.id.is_none() {
            fields.push(("Nodes waiting", self.nodes.to_string()));
            return fields;
        }
        fields.extend([
            ("Id", dash(self.id.as_deref())),
            ("Created", dash(self.created.as_deref())),
            ("Copies", self.copies.to_string()),
            ("Slots", format!("{} ({} below full redundancy)", self.slots, self.slots_degraded)),
            ("Nodes", format!("{} ({} up, {} zones)", self.nodes, self.nodes_up, self.zones)),
            ("VDIs", self.vdis.to_string()),
            (
                "Space",
                format!(
                    "{} used, {} free of {}",
                    HumanBytes(self.space.used),
                    HumanBytes(self.space.free),
                    HumanBytes(self.space.total)
                ),
            ),
            ("Epoch", self.epoch.to_string()),
            ("Leader", dash(self.leader.as_deref())),
            ("Voters", self.voters.join(" ")),
            ("Feature level", self.feature_level.to_string()),
        ]);
        if !self.silent.is_empty() {
            fields.push((
                "Waits for",
                format!("a majority of the voters: silent are {}", self.silent.join(" ")),
            ));
        }
        fields
    }
}
