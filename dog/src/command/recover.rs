//! `dog cluster recover`: going on without nodes that will never come back.

use std::io::{self, BufRead, IsTerminal, Write};

use serde::Serialize;
use wire::admin::recover_event::Event;
use wire::admin::{RecoverRequest, RecoverSummary, RiskRange, VdiAtRisk};
use wire::client::AdminClient;
use wire::id::NodeId;
use wire::size::{HumanBytes, count};

use crate::exit::{Exit, Failure, Kind};
use crate::output::Output;

use super::node_id;

const WHAT: &str = "cluster recover";
/// Ranges of a VDI that are shown to people.
const RANGES_SHOWN: usize = 5;

#[derive(Debug, Serialize)]
struct Report {
    nodes: Vec<String>,
    slots: u64,
    vdis: Vec<VdiView>,
    possibly_stale: bool,
    done: bool,
}

#[derive(Debug, Serialize)]
struct VdiView {
    name: String,
    bytes: u64,
    map: bool,
    ranges: Vec<RangeView>,
    ranges_left_out: u64,
}

#[derive(Debug, Serialize)]
struct RangeView {
    offset: u64,
    length: u64,
    /// What may be lost: `everything`, or what was written last.
    loss: &'static str,
}

impl From<RiskRange> for RangeView {
    fn from(range: RiskRange) -> Self {
        let loss = if range.everything { "everything" } else { "newest" };
        Self { offset: range.offset, length: range.length, loss }
    }
}

impl From<VdiAtRisk> for VdiView {
    fn from(risk: VdiAtRisk) -> Self {
        Self {
            name: risk.name,
            bytes: risk.bytes,
            map: risk.map,
            ranges: risk.ranges.into_iter().map(Into::into).collect(),
            ranges_left_out: risk.ranges_left_out,
        }
    }
}

impl VdiView {
    fn line(&self) -> String {
        let shown = self.ranges.iter().take(RANGES_SHOWN).map(|r| {
            let loss = if r.loss == "everything" { "all of it" } else { "what was written last" };
            format!("{} at {} ({loss})", HumanBytes(r.length), HumanBytes(r.offset))
        });
        let mut shown: Vec<String> = shown.collect();
        let more = (self.ranges.len() - shown.len()) as u64 + self.ranges_left_out;
        if more > 0 {
            shown.push(format!("and {}", count(more, "more range", "more ranges")));
        }
        if self.map {
            shown.push("parts of its object map".to_owned());
        }
        format!("{}: {} may be lost: {}", self.name, HumanBytes(self.bytes), shown.join(", "))
    }
}

pub(super) async fn run(
    client: &mut AdminClient,
    output: &Output,
    nodes: &[NodeId],
    force: bool,
    yes: bool,
) -> Result<Exit, Failure> {
    let nodes = nodes.iter().map(|node| node.0).collect();
    let (vdis, plan) = ask(client, RecoverRequest { nodes, force: false }).await?;
    output.view(plan.view.as_ref());
    let named: Vec<String> = plan.nodes.iter().copied().filter_map(node_id).collect();
    let mut report = Report {
        slots: plan.slots,
        possibly_stale: plan.view.is_some_and(|view| view.possibly_stale),
        nodes: named,
        vdis,
        done: false,
    };
    if plan.nodes.is_empty() {
        output.done("nobody is waited for: there is nothing to give up", &report)?;
        return Ok(if report.possibly_stale { Exit::Refused } else { Exit::Done });
    }
    for vdi in &report.vdis {
        output.line(&vdi.line())?;
    }
    let whom = report.nodes.join(", ");
    if !force {
        let text = format!(
            "without {whom}, {} may lose something, of {}. Start them again if there is any way to; else: dog cluster recover --force",
            count(report.slots, "slot", "slots"),
            count(report.vdis.len() as u64, "VDI", "VDIs"),
        );
        output.done(&text, &report)?;
        return Ok(Exit::Refused);
    }
    if !yes && !agreed(&whom).map_err(Failure::io(WHAT))? {
        return Err(Failure::new(Kind::Refused, WHAT, "nothing was done").hint("answer yes, or give --yes"));
    }
    let (_, done) = ask(client, RecoverRequest { nodes: plan.nodes, force: true }).await?;
    report.done = done.done;
    output.done(&format!("{whom} given up for good; the ring goes on with what is left"), &report)?;
    Ok(Exit::Done)
}

async fn ask(
    client: &mut AdminClient,
    request: RecoverRequest,
) -> Result<(Vec<VdiView>, RecoverSummary), Failure> {
    let mut events = client.cluster_recover(request).await.map_err(Failure::client(WHAT))?;
    let mut vdis = Vec::new();
    while let Some(event) = events.next().await.map_err(Failure::client(WHAT))? {
        match event.event {
            Some(Event::Vdi(vdi)) => vdis.push(vdi.into()),
            Some(Event::Summary(summary)) => return Ok((vdis, summary)),
            // An event of a newer sheep.
            None => {}
        }
    }
    Err(Failure::new(Kind::Other, WHAT, "the answer ended before its summary").hint("run it again"))
}

/// Asks on the terminal. Without one nobody agrees.
fn agreed(whom: &str) -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        return Ok(false);
    }
    eprint!("Give up {whom} for good? Their directories will be refused for ever. Type yes: ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(line.trim() == "yes")
}
