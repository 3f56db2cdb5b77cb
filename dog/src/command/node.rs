//! `dog node`: the sheep in the ring.

use serde::Serialize;
use wire::address::Address;
use wire::admin::{self, NodeStatus};
use wire::client::AdminClient;
use wire::id::NodeId;
use wire::size::HumanBytes;

use crate::cli::{Node, NodeRef};
use crate::exit::{Exit, Failure, Kind};
use crate::output::{Output, Record, Row, THINGS};
use crate::time::rfc3339;

use super::yes;

pub(super) async fn run(verb: Node, client: &mut AdminClient, output: &Output) -> Result<Exit, Failure> {
    match verb {
        Node::List => list(client, output).await,
        Node::Info { node } => info(node, client, output).await,
        Node::Recovery { pause, resume, limit } => {
            let paused = (pause || resume).then_some(pause);
            let reply = if paused.is_some() || limit.is_some() {
                let request = admin::SetRecoveryRequest { paused, limit_bytes_per_second: limit };
                client.node_set_recovery(request).await
            } else {
                client.node_recovery(admin::RecoveryRequest {}).await
            };
            recovery(reply.map_err(Failure::client("node recovery"))?, output)
        }
        Node::Stat { node } => stat(node, client, output).await,
        Node::Drain { node } => drain(&node, client, output).await,
        Node::Remove { node } => {
            let id = resolve("node remove", &node, client).await?;
            let reply = client.node_remove(admin::RemoveNodeRequest { node: id.0 }).await;
            reply.map_err(Failure::client(format!("node remove {id}")))?;
            output.done(&format!("node {id} removed"), &serde_json::json!({ "removed": id.to_string() }))?;
            Ok(Exit::Done)
        }
    }
}

/// The id of a node that may be named by its address.
async fn resolve(what: &str, node: &NodeRef, client: &mut AdminClient) -> Result<NodeId, Failure> {
    let address = match node {
        NodeRef::Id(id) => return Ok(*id),
        NodeRef::Address(address) => address,
    };
    let reply = client.node_list(admin::ListNodesRequest {}).await.map_err(Failure::client(what))?;
    // An address may have been another node's, which is dead and still listed.
    let mut found: Vec<_> = reply.nodes.iter().filter(|node| is_at(node, address)).collect();
    if found.iter().any(|node| node.status() != NodeStatus::Down) {
        found.retain(|node| node.status() != NodeStatus::Down);
    }
    let hint = "name it by its id, as `dog node list` shows it";
    match found[..] {
        [node] => Ok(NodeId(node.id)),
        [] => Err(Failure::new(Kind::NotFound, what, format!("no node listens at {address}")).hint(hint)),
        _ => {
            let why = format!("{} nodes have listened at {address}", found.len());
            Err(Failure::new(Kind::Refused, what, why).hint(hint))
        }
    }
}

fn is_at(node: &admin::Node, address: &Address) -> bool {
    node.host == address.host() && node.port == u32::from(address.port())
}

/// The id of a node, or 0, which asks about the sheep itself.
async fn resolve_or_self(
    what: &str,
    node: Option<NodeRef>,
    client: &mut AdminClient,
) -> Result<u64, Failure> {
    match node {
        Some(node) => Ok(resolve(what, &node, client).await?.0),
        None => Ok(0),
    }
}

async fn list(client: &mut AdminClient, output: &Output) -> Result<Exit, Failure> {
    let reply = client.node_list(admin::ListNodesRequest {}).await.map_err(Failure::client("node list"))?;
    output.view(reply.view.as_ref());
    let rows: Vec<NodeView> = reply.nodes.into_iter().map(NodeView::from).collect();
    output.list(&rows)?;
    Ok(Exit::Done)
}

async fn info(node: Option<NodeRef>, client: &mut AdminClient, output: &Output) -> Result<Exit, Failure> {
    let what = "node info";
    let node = resolve_or_self(what, node, client).await?;
    let info = client.node_info(admin::NodeInfoRequest { node }).await.map_err(Failure::client(what))?;
    output.view(info.view.as_ref());
    if !info.answered {
        output.warn("the node does not answer: this is what the ring knows of it");
    }
    output.record(&InfoView::from(info))?;
    Ok(Exit::Done)
}

fn recovery(reply: admin::RecoveryReply, output: &Output) -> Result<Exit, Failure> {
    output.view(reply.view.as_ref());
    let settings = reply.settings.unwrap_or_default();
    let view = RecoveryView {
        paused: settings.paused,
        limit_bytes_per_second: match settings.limit_bytes_per_second {
            0 => None,
            limit => Some(limit),
        },
        nodes: reply.nodes.into_iter().map(NodeRecoveryView::from).collect(),
    };
    if output.is_json() {
        output.json(&view)?;
        return Ok(Exit::Done);
    }
    let limit = view.limit_bytes_per_second.map(|n| format!(", at most {}/s into each node", HumanBytes(n)));
    let state = if view.paused { "paused" } else { "running" };
    output.line(&format!("recovery is {state}{}", limit.unwrap_or_default()))?;
    output.list(&view.nodes)?;
    Ok(Exit::Done)
}

async fn stat(node: Option<NodeRef>, client: &mut AdminClient, output: &Output) -> Result<Exit, Failure> {
    let what = "node stat";
    let node = resolve_or_self(what, node, client).await?;
    let reply = client.node_stat(admin::StatRequest { node }).await.map_err(Failure::client(what))?;
    let rows: Vec<CounterView> = reply
        .counters
        .into_iter()
        .map(|counter| CounterView {
            kind: if counter.gauge { "gauge" } else { "counter" },
            name: counter.name,
            value: counter.value,
        })
        .collect();
    if output.is_json() {
        let id = NodeId(reply.node).to_string();
        let started = rfc3339(reply.started_ms);
        output.json(&serde_json::json!({ "node": id, "started": started, "counters": rows }))?;
    } else {
        output.list(&rows)?;
    }
    Ok(Exit::Done)
}

async fn drain(node: &NodeRef, client: &mut AdminClient, output: &Output) -> Result<Exit, Failure> {
    let id = resolve("node drain", node, client).await?;
    let what = format!("node drain {id}");
    let request = admin::DrainRequest { node: id.0 };
    let mut events = client.node_drain(request).await.map_err(Failure::client(&what))?;
    let bar = output.progress(THINGS);
    while let Some(event) = events.next().await.map_err(Failure::client(&what))? {
        let done = event.slots_total.saturating_sub(event.slots_left);
        bar.set(done, event.slots_total, &event.waiting_for);
        if event.done {
            drop(bar);
            let text = format!("node {id} is empty; `dog node remove {id}` takes it out of the ring");
            output.done(&text, &serde_json::json!({ "node": id.to_string(), "drained": true }))?;
            return Ok(Exit::Done);
        }
    }
    let why = "the sheep stopped reporting before the node was empty";
    Err(Failure::new(Kind::Other, what, why).hint("the ring goes on with it: ask again to watch"))
}

#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct SpaceView {
    pub(super) total: u64,
    pub(super) free: u64,
    pub(super) used: u64,
}

impl From<admin::Space> for SpaceView {
    fn from(space: admin::Space) -> Self {
        Self { total: space.total, free: space.free, used: space.used }
    }
}

fn status(status: NodeStatus) -> &'static str {
    match status {
        NodeStatus::Unspecified => "unknown",
        NodeStatus::Waiting => "waiting",
        NodeStatus::Up => "up",
        NodeStatus::Down => "down",
        NodeStatus::Draining => "draining",
        NodeStatus::Drained => "drained",
        NodeStatus::Out => "out",
        NodeStatus::DiskFailed => "disk failed",
        NodeStatus::Starting => "starting",
    }
}

/// Exactly these keys are promised to scripts.
#[derive(Debug, Serialize)]
struct NodeView {
    id: String,
    host: String,
    port: u32,
    zone: String,
    vnodes: u32,
    space: SpaceView,
    status: &'static str,
    #[serde(rename = "self")]
    is_self: bool,
}

impl From<admin::Node> for NodeView {
    fn from(node: admin::Node) -> Self {
        Self {
            id: NodeId(node.id).to_string(),
            status: status(node.status()),
            host: node.host,
            port: node.port,
            zone: node.zone,
            vnodes: node.vnodes,
            space: node.space.unwrap_or_default().into(),
            is_self: node.self_,
        }
    }
}

impl Row for NodeView {
    const HEAD: &'static [&'static str] = &["Id", "Host", "Port", "VNodes", "Zone", "Space", "Status"];

    fn cells(&self) -> Vec<String> {
        let space = format!("{}/{}", HumanBytes(self.space.used), HumanBytes(self.space.total));
        vec![
            self.id.clone(),
            self.host.clone(),
            self.port.to_string(),
            self.vnodes.to_string(),
            self.zone.clone(),
            space,
            self.status.to_owned(),
        ]
    }
}

#[derive(Debug, Serialize)]
struct InfoView {
    #[serde(flatten)]
    node: NodeView,
    gateway: bool,
    session: u64,
    since: Option<String>,
    version: String,
    mesh: String,
    nbd: Vec<String>,
    voter: bool,
    leader: bool,
    started: Option<String>,
    slots_in_sync: u64,
    slots_catching_up: u64,
    vdis_owned: u64,
    connections: u64,
    memory_bytes: u64,
    answered: bool,
}

impl From<admin::NodeInfo> for InfoView {
    fn from(info: admin::NodeInfo) -> Self {
        let node = info.node.unwrap_or_default();
        Self {
            gateway: node.gateway,
            session: node.session,
            since: rfc3339(node.since_ms),
            node: node.into(),
            version: info.version,
            mesh: info.mesh,
            nbd: info.nbd,
            voter: info.voter,
            leader: info.leader,
            started: rfc3339(info.started_ms),
            slots_in_sync: info.slots_in_sync,
            slots_catching_up: info.slots_catching_up,
            vdis_owned: info.vdis_owned,
            connections: info.connections,
            memory_bytes: info.memory_bytes,
            answered: info.answered,
        }
    }
}

impl Record for InfoView {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let labels = ["Id", "Host", "Port", "VNodes", "Zone", "Space", "Status"];
        let mut fields: Vec<_> = labels.into_iter().zip(self.node.cells()).collect();
        fields.extend([
            ("Gateway", yes(self.gateway)),
            ("Session", self.session.to_string()),
            ("In this status since", super::dash(self.since.as_deref())),
            ("Voter", yes(self.voter)),
            ("Leader", yes(self.leader)),
        ]);
        if self.answered {
            fields.extend([
                ("Version", self.version.clone()),
                ("Mesh", self.mesh.clone()),
                ("NBD", self.nbd.join(" ")),
                ("Started", super::dash(self.started.as_deref())),
                ("Slots", format!("{} in sync, {} catching up", self.slots_in_sync, self.slots_catching_up)),
                ("VDIs owned", self.vdis_owned.to_string()),
                ("Connections", self.connections.to_string()),
                ("Memory", HumanBytes(self.memory_bytes).to_string()),
            ]);
        }
        fields
    }
}

#[derive(Debug, Serialize)]
struct RecoveryView {
    paused: bool,
    limit_bytes_per_second: Option<u64>,
    nodes: Vec<NodeRecoveryView>,
}

#[derive(Debug, Serialize)]
struct NodeRecoveryView {
    node: String,
    slots_left: u64,
    objects_done: u64,
    objects_total: u64,
    bytes_done: u64,
    bytes_total: u64,
    waiting_for: Option<String>,
}

impl From<admin::NodeRecovery> for NodeRecoveryView {
    fn from(node: admin::NodeRecovery) -> Self {
        let progress = node.progress.unwrap_or_default();
        Self {
            node: NodeId(node.node).to_string(),
            slots_left: node.slots_left,
            objects_done: progress.objects_done,
            objects_total: progress.objects_total,
            bytes_done: progress.bytes_done,
            bytes_total: progress.bytes_total,
            waiting_for: (!node.waiting_for.is_empty()).then_some(node.waiting_for),
        }
    }
}

impl Row for NodeRecoveryView {
    const HEAD: &'static [&'static str] = &["Node", "Slots left", "Objects", "Bytes", "Waiting for"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.node.clone(),
            self.slots_left.to_string(),
            format!("{}/{}", self.objects_done, self.objects_total),
            format!("{}/{}", HumanBytes(self.bytes_done), HumanBytes(self.bytes_total)),
            super::dash(self.waiting_for.as_deref()),
        ]
    }
}

#[derive(Debug, Serialize)]
struct CounterView {
    name: String,
    value: u64,
    kind: &'static str,
}

impl Row for CounterView {
    const HEAD: &'static [&'static str] = &["Name", "Value"];

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.value.to_string()]
    }
}
