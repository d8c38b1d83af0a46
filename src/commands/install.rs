//! `farmctl install`: a node tarball becomes a release of this node.

use std::path::PathBuf;

use anyhow::Result;

use super::Context;
use super::incoming::{self, Arrival, Options};
use crate::error::Exit;
use crate::mount;

/// Install a node tarball as a release
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farmctl install hello_1.0.0_amd64.tar.xz")]
pub struct Args {
    /// The node tarball
    file: PathBuf,
    #[command(flatten)]
    options: Options,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the tarball is damaged or does not fit this node; nothing of it is left then.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let node = if args.dry_run { node } else { node.settled()? };
    let archive = incoming::open(&args.file, &node)?;
    let name = archive.manifest().name.clone();
    let what = format!("{name} {}", archive.manifest().version);
    let _lock = super::take_over_unless(args.dry_run, &node, &name, "install", context)?;
    let mut incoming = match incoming::arrive(archive, &args.options, &node)? {
        Arrival::Known => {
            context.ui.already(format!("{what} is installed already"));
            return Ok(Exit::Done);
        }
        Arrival::New(incoming) => incoming,
    };
    if args.dry_run {
        context.show_plan(&incoming.plan(&node)?);
        return Ok(Exit::Done);
    }
    mount::private_namespace()?;
    incoming.install(&node, context)?;
    let next = match node.app(&name)?.and_then(|app| app.session) {
        None => format!("farmctl start {name}"),
        Some(session) => format!(
            "{} runs on; farmctl upgrade {name} {} switches to it",
            session.version,
            incoming.manifest().version
        ),
    };
    context.ui.done(format!("installed {what}: {next}"));
    Ok(Exit::Done)
}
