//! `farmctl doctor`: is this machine fit, and what to do if not.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::Context;
use crate::error::{self, Exit};
use crate::run::Tool;
use crate::{account, chroot, debian, front, schroot, storage, supervise, ui};

/// Room below which a warning is given, in bytes: a bootstrap and a bake of a small
/// application take about this much.
const ROOM: u64 = 2 << 30;

/// Check whether this machine has what farmctl needs
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  farmctl doctor\n\nExits 3 when something is missing; each line says what to do."
)]
pub struct Args {
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// One thing looked at.
#[derive(Serialize)]
struct Finding {
    what: &'static str,
    good: bool,
    detail: String,
}

/// Carries the verb out.
///
/// # Errors
/// When not root, or the node's files are damaged.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let choice = storage::choose(None, &node.site())?;
    let storage = &choice.storage;
    let supervisor = supervise::detect(node.layout());
    let mut findings = vec![
        tools("bootstrap and bake", debian::TOOLS.iter().chain(&chroot::TOOLS)),
        tools("sessions", schroot::TOOLS.iter().chain(&account::TOOLS)),
        tools("processes", supervisor.tools().iter()),
        tools("front", front::TOOLS.iter()),
        keyring(),
    ];
    // Missing programs are named already.
    if supervisor.tools().iter().all(|tool| tool.path().is_some()) {
        findings.push(match supervisor.check() {
            Ok(()) => good("supervisor", supervisor.describe()),
            Err(error) => bad("supervisor", explained(&supervisor.describe(), &error)),
        });
    }
    findings.push(match storage.check() {
        Ok(()) => good("storage", choice.to_string()),
        Err(error) => bad("storage", format!("{error:#}")),
    });
    let usage = storage.usage()?;
    let room = format!("{} free of {}", ui::size(usage.free), ui::size(usage.total));
    findings.push(if usage.free < ROOM {
        bad("space", format!("only {room}: farmctl gc, or a larger disk"))
    } else {
        good("space", room)
    });
    findings.push(match schroot::check() {
        Ok(()) => good("schroot", "its configuration can be read".to_owned()),
        Err(error) => bad("schroot", format!("{error:#}")),
    });
    findings.push(if schroot::is_guarded()? {
        good("guards", "in schroot's setup.d, as far as needed".to_owned())
    } else {
        bad("guards", "schroot's setup.d lacks them: farmctl tend puts them back".to_owned())
    });
    findings.push(match front::check() {
        Ok(()) => good("nginx", "its configuration is valid".to_owned()),
        Err(error) => bad("nginx", format!("{error:#}")),
    });
    let abandoned = node.abandoned()?.len();
    findings.push(if abandoned == 0 {
        good("leftovers", "none".to_owned())
    } else {
        bad("leftovers", format!("{abandoned} unfinished transactions: farmctl gc"))
    });
    let sound = findings.iter().all(|finding| finding.good);
    if args.json {
        context.ui.json(&findings);
    } else {
        let mark = |finding: &Finding| if finding.good { "good" } else { "bad" }.to_owned();
        let rows: Vec<Vec<String>> = findings
            .iter()
            .map(|finding| vec![mark(finding), finding.what.to_owned(), finding.detail.clone()])
            .collect();
        context.ui.answer(ui::table(&rows));
    }
    Ok(if sound { Exit::Done } else { Exit::NotRight })
}

/// What is wrong, and what to do about it, in one line.
fn explained(what: &str, error: &anyhow::Error) -> String {
    let hint = error::hint_of(error).map_or(String::new(), |hint| format!(": {hint}"));
    format!("{what}; {error:#}{hint}")
}

fn good(what: &'static str, detail: String) -> Finding {
    Finding { what, good: true, detail }
}

fn bad(what: &'static str, detail: String) -> Finding {
    Finding { what, good: false, detail }
}

fn tools<'a>(what: &'static str, tools: impl Iterator<Item = &'a &'a Tool>) -> Finding {
    let (there, missing): (Vec<&Tool>, Vec<&Tool>) =
        tools.copied().partition(|tool| tool.path().is_some());
    if missing.is_empty() {
        let names: Vec<&str> = there.iter().map(|tool| tool.name).collect();
        return good(what, names.join(", "));
    }
    let names: Vec<&str> = missing.iter().map(|tool| tool.name).collect();
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.dedup();
    bad(what, format!("missing {}: apt-get install {}", names.join(", "), packages.join(" ")))
}

fn keyring() -> Finding {
    if Path::new(debian::KEYRING).exists() {
        good("keyring", debian::KEYRING.to_owned())
    } else {
        bad("keyring", "missing: apt-get install debian-archive-keyring".to_owned())
    }
}
