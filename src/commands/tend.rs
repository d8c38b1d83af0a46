//! `farmctl tend`: the one thing that keeps watch: what state says runs, runs.

use std::time::Duration;

use anyhow::Result;

use super::Context;
use crate::error::{self, Exit};
use crate::node::Node;
use crate::run;
use crate::serve;
use crate::supervise;

/// Bring back every application that should run and does not
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl tend\n  farmctl tend --every 30\n\nIt recovers sessions after a reboot, starts processes that are gone, and publishes\nvhosts that are missing. systemd runs it at boot and every 30 seconds; without\nsystemd, run it from cron(8)."
)]
pub struct Args {
    /// Go on, looking every so many seconds
    #[arg(long, value_name = "SECONDS")]
    every: Option<u64>,
    /// Only say what is not as it should be, and exit 3 if something is
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When an application cannot be brought back; the others are tended nevertheless.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    loop {
        let node = context.node()?;
        let exit = look(args, &node, context)?;
        let Some(pause) = args.every else { return Ok(exit) };
        let waited = run::poll_until(Duration::from_secs(pause.max(1)), || Ok(None::<()>));
        if waited.is_err() {
            return Ok(Exit::Done);
        }
    }
}

fn look(args: &Args, node: &Node, context: &Context) -> Result<Exit> {
    let supervisor = supervise::detect(node.layout());
    let mut exit = Exit::Done;
    for app in node.apps()? {
        let Some(session) = app.session.clone() else { continue };
        let manifest = super::manifest_of(node, &app, &session.version)?;
        if args.dry_run {
            for trouble in serve::troubles(&app, &session, &manifest, node, supervisor.as_ref())? {
                context.ui.answer(format!("{}: {trouble}", app.name));
                exit = Exit::NotRight;
            }
            continue;
        }
        // An application another farmctl is changing is not to be tended now.
        let Ok(_lock) = node.lock(&app.name, "tend") else { continue };
        let say = |text: &str| context.ui.step(format!("{}: {text}", app.name));
        if let Err(error) =
            serve::restore(&app, &session, &manifest, node, supervisor.as_ref(), &say)
        {
            run::check_interrupted()?;
            context.ui.error(&error::render(&error.context(format!("tending {}", app.name))));
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}
