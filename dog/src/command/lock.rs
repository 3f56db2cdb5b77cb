//! `dog vdi lock`: who has virtual disks open.

use serde::Serialize;
use wire::admin;
use wire::client::AdminClient;
use wire::id::NodeId;
use wire::size::count;

use crate::cli::Lock;
use crate::exit::Failure;
use crate::output::{Output, Row, shortened};
use crate::time::rfc3339;

use super::{dash, yes};

pub(super) async fn run(verb: Lock, client: &mut AdminClient, output: &Output) -> Result<(), Failure> {
    match verb {
        Lock::List { name } => {
            let request = admin::LockListRequest { name: name.map(String::from).unwrap_or_default() };
            let reply = client.lock_list(request).await.map_err(Failure::client("vdi lock list"))?;
            output.view(reply.view.as_ref());
            for node in reply.unanswered {
                output.warn(&format!("node {} does not answer: its clients are not listed", NodeId(node)));
            }
            let rows: Vec<LockView> = reply.locks.into_iter().map(LockView::from).collect();
            output.list(&rows)?;
        }
        Lock::Unlock { name, client: who } => {
            let what = format!("vdi lock unlock {name}");
            let name = String::from(name);
            let request = admin::LockUnlockRequest { name: name.clone(), client: who.unwrap_or_default() };
            let reply = client.lock_unlock(request).await.map_err(Failure::client(what))?;
            let closed = count(reply.closed, "connection", "connections");
            let text = format!("{name}: {closed} closed");
            output.done(&text, &serde_json::json!({ "vdi": name, "closed": reply.closed }))?;
        }
    }
    Ok(())
}

#[derive(Debug, Serialize)]
struct LockView {
    vdi: String,
    vdi_id: u64,
    client: String,
    node: String,
    attach: Option<AttachView>,
    opened: Option<String>,
    read_only: bool,
}

#[derive(Debug, Serialize)]
struct AttachView {
    client: String,
    generation: u64,
}

impl From<admin::Lock> for LockView {
    fn from(lock: admin::Lock) -> Self {
        let generation = lock.attach_generation;
        let client = lock.attach_client;
        Self {
            vdi: lock.vdi,
            vdi_id: lock.vdi_id,
            client: lock.client,
            node: NodeId(lock.node).to_string(),
            attach: (!client.is_empty()).then_some(AttachView { client, generation }),
            opened: rfc3339(lock.opened_ms),
            read_only: lock.read_only,
        }
    }
}

impl Row for LockView {
    const HEAD: &'static [&'static str] = &["VDI", "Client", "Node", "Attach", "Opened", "Read-only"];

    fn cells(&self) -> Vec<String> {
        let attach = self.attach.as_ref().map(|attach| format!("{}:{}", attach.client, attach.generation));
        vec![
            shortened(&self.vdi),
            self.client.clone(),
            self.node.clone(),
            dash(attach.as_deref()),
            dash(self.opened.as_deref()),
            yes(self.read_only),
        ]
    }
}
