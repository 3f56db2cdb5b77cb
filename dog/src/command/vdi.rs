//! `dog vdi`: virtual disks.

use serde::Serialize;
use wire::admin::{self, CopyState};
use wire::client::AdminClient;
use wire::id::{Birth, NodeId};
use wire::name::VdiName;
use wire::size::{HumanBytes, count};

use crate::cli::{IndexRange, Vdi};
use crate::exit::{Exit, Failure};
use crate::output::{Output, Record, Row, shortened};
use crate::time::rfc3339;

use super::{check, dash, lock, node_id, transfer};

pub(super) async fn run(verb: Vdi, client: &mut AdminClient, output: &Output) -> Result<Exit, Failure> {
    match verb {
        Vdi::Create { name, size, copies } => {
            let what = format!("vdi create {name}");
            let copies = copies.map_or(0, |copies| copies.get().into());
            let (name, size) = (name.into(), size.bytes());
            let request = admin::CreateVdiRequest { name, size, copies, ..Default::default() };
            let reply = client.vdi_create(request).await.map_err(Failure::client(what))?;
            let vdi = VdiView::from(reply.vdi.unwrap_or_default());
            let copies = count(vdi.copies, "copy", "copies");
            let text = format!("{} created: {}, {copies}", vdi.name, HumanBytes(vdi.size));
            output.done(&text, &vdi)?;
        }
        Vdi::Delete { name } => {
            let request = admin::DeleteVdiRequest { name: name.to_string(), ..Default::default() };
            let reply = client.vdi_delete(request).await;
            reply.map_err(Failure::client(format!("vdi delete {name}")))?;
            output.done(&format!("{name} deleted"), &serde_json::json!({ "deleted": name.as_str() }))?;
        }
        Vdi::List => list(client, output).await?,
        Vdi::Info { name } => {
            let what = format!("vdi info {name}");
            let request = admin::VdiInfoRequest { name: name.into() };
            let info = client.vdi_info(request).await.map_err(Failure::client(what))?;
            output.view(info.view.as_ref());
            output.record(&InfoView::from(info))?;
        }
        Vdi::Object { name, index } => object(&name, &index, client, output).await?,
        Vdi::Read(range) => transfer::read(range, client, output).await?,
        Vdi::Write(range) => transfer::write(range, client, output).await?,
        Vdi::Check { name, repair } => {
            let what = format!("vdi check {name}");
            let request = admin::CheckVdiRequest { name: name.into(), repair };
            let events = client.vdi_check(request).await.map_err(Failure::client(&what))?;
            return check::follow(&what, events, output).await;
        }
        Vdi::Lock(verb) => lock::run(verb, client, output).await?,
    }
    Ok(Exit::Done)
}

async fn list(client: &mut AdminClient, output: &Output) -> Result<(), Failure> {
    let what = "vdi list";
    let mut batches = client.vdi_list(admin::ListVdisRequest {}).await.map_err(Failure::client(what))?;
    let mut rows = Vec::new();
    let mut view = None;
    while let Some(batch) = batches.next().await.map_err(Failure::client(what))? {
        view = view.or(batch.view);
        rows.extend(batch.vdis.into_iter().map(VdiView::from));
    }
    output.view(view.as_ref());
    output.list(&rows)
}

async fn object(
    name: &VdiName,
    ranges: &[IndexRange],
    client: &mut AdminClient,
    output: &Output,
) -> Result<(), Failure> {
    let what = format!("vdi object {name}");
    let request = |first, count, allocated_only| admin::ObjectRequest {
        name: name.to_string(),
        first,
        count,
        allocated_only,
    };
    let requests = match ranges {
        [] => vec![request(0, 0, true)],
        ranges => {
            ranges.iter().map(|range| request(range.first, range.last - range.first + 1, false)).collect()
        }
    };
    let mut rows = Vec::new();
    let mut view = None;
    for request in requests {
        let mut batches = client.vdi_object(request).await.map_err(Failure::client(&what))?;
        while let Some(batch) = batches.next().await.map_err(Failure::client(&what))? {
            view = view.or(batch.view);
            rows.extend(batch.objects.into_iter().map(ObjectView::from));
        }
    }
    output.view(view.as_ref());
    output.list(&rows)
}

#[derive(Debug, Serialize)]
struct VdiView {
    id: u64,
    name: String,
    size: u64,
    used: u64,
    copies: u32,
    min_copies: u32,
    owner: Option<String>,
    created: Option<String>,
}

impl From<admin::Vdi> for VdiView {
    fn from(vdi: admin::Vdi) -> Self {
        Self {
            id: vdi.id,
            name: vdi.name,
            size: vdi.size,
            used: vdi.used,
            copies: vdi.copies,
            min_copies: vdi.min_copies,
            owner: node_id(vdi.owner),
            created: rfc3339(vdi.created_ms),
        }
    }
}

impl Row for VdiView {
    const HEAD: &'static [&'static str] = &["Name", "Id", "Size", "Used", "Copies", "Owner", "Created"];

    fn cells(&self) -> Vec<String> {
        vec![
            shortened(&self.name),
            self.id.to_string(),
            HumanBytes(self.size).to_string(),
            HumanBytes(self.used).to_string(),
            self.copies.to_string(),
            dash(self.owner.as_deref()),
            dash(self.created.as_deref()),
        ]
    }
}

#[derive(Debug, Serialize)]
struct InfoView {
    #[serde(flatten)]
    vdi: VdiView,
    family: u64,
    generation: u64,
    objects_allocated: u64,
    objects_degraded: u64,
    map_pages: u64,
    connections: u64,
}

impl From<admin::VdiInfo> for InfoView {
    fn from(info: admin::VdiInfo) -> Self {
        Self {
            vdi: info.vdi.unwrap_or_default().into(),
            family: info.family,
            generation: info.generation,
            objects_allocated: info.objects_allocated,
            objects_degraded: info.objects_degraded,
            map_pages: info.map_pages,
            connections: info.connections,
        }
    }
}

impl Record for InfoView {
    fn fields(&self) -> Vec<(&'static str, String)> {
        let vdi = &self.vdi;
        vec![
            ("Name", vdi.name.clone()),
            ("Id", vdi.id.to_string()),
            ("Size", format!("{} ({} bytes)", HumanBytes(vdi.size), vdi.size)),
            ("Used", HumanBytes(vdi.used).to_string()),
            ("Copies", format!("{} (writes need {})", vdi.copies, vdi.min_copies)),
            ("Objects", format!("{} ({} degraded)", self.objects_allocated, self.objects_degraded)),
            ("Map pages", self.map_pages.to_string()),
            ("Family", self.family.to_string()),
            ("Owner", dash(vdi.owner.as_deref())),
            ("Generation", self.generation.to_string()),
            ("Connections", self.connections.to_string()),
            ("Created", dash(vdi.created.as_deref())),
        ]
    }
}

#[derive(Debug, Serialize)]
struct ObjectView {
    index: u64,
    allocated: bool,
    oid: Option<String>,
    birth: Option<String>,
    slot: u32,
    config: u64,
    copies: Vec<CopyView>,
}

#[derive(Debug, Serialize)]
struct CopyView {
    node: String,
    state: &'static str,
    up: bool,
}

impl From<admin::ObjectPlace> for ObjectView {
    fn from(object: admin::ObjectPlace) -> Self {
        let copy = |copy: admin::ObjectCopy| CopyView {
            node: NodeId(copy.node).to_string(),
            state: match copy.state() {
                CopyState::Unspecified => "unknown",
                CopyState::InSync => "in_sync",
                CopyState::CatchingUp => "catching_up",
            },
            up: copy.up,
        };
        Self {
            index: object.index,
            allocated: object.allocated,
            oid: object.allocated.then_some(object.oid),
            birth: object.allocated.then(|| Birth(object.birth).to_string()),
            slot: object.slot,
            config: object.config,
            copies: object.copies.into_iter().map(copy).collect(),
        }
    }
}

impl Row for ObjectView {
    const HEAD: &'static [&'static str] = &["Index", "Oid", "Birth", "Slot", "Copies"];

    fn cells(&self) -> Vec<String> {
        let copy = |copy: &CopyView| {
            let state = match copy.state {
                "in_sync" => String::new(),
                other => format!(" {}", other.replace('_', " ")),
            };
            let down = if copy.up { "" } else { " down" };
            format!("{}{state}{down}", copy.node)
        };
        vec![
            self.index.to_string(),
            dash(self.oid.as_deref()),
            dash(self.birth.as_deref()),
            self.slot.to_string(),
            self.copies.iter().map(copy).collect::<Vec<_>>().join(", "),
        ]
    }
}
