//! `farmctl confirm`: the new release is right, and the one before may go.

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::error::Exit;
use crate::plan::Plan;
use crate::profile::Seconds;
use crate::supervise;
use crate::switch::Ending;

/// Keep the release of an upgrade that waits to be confirmed
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl upgrade shop 1.4.3 --confirm-within 5m
  farmctl confirm shop

Without it, farmctl tend leads requests back to the release before when the time is over, also \
after a reboot.")]
pub struct Args {
    /// The application
    name: String,
    /// How long the last requests to the old release are waited for
    #[arg(long, value_name = "TIME", default_value = "1m")]
    drain: Seconds,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the application is not started, or the session that stood by cannot be ended.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    super::started(&node, &args.name)?;
    let _lock = super::take_over_unless(args.dry_run, &node, &args.name, "confirm", context)?;
    let started = super::started(&node, &args.name)?;
    let what = format!("{} {}", args.name, started.session.version);
    if started.app.confirm_by.is_none() {
        context.ui.already(format!("{what} serves, and nothing waits to be confirmed"));
        return Ok(Exit::Done);
    }
    if args.dry_run {
        let mut plan = Plan::new(format!("confirm {what}"));
        for session in &started.app.standby {
            let name = &session.name;
            plan.step(format!("end session {name} when its last request is done"));
        }
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let app = started.app.clone();
    let manifest_of = |version: &str| super::manifest_of(&node, &started.app, version);
    let subject = Subject { context, node: &node, app: &args.name, verb: "confirm" };
    subject.record(&started.session.version, || {
        let say = |text: &str| context.ui.step(text);
        let (supervisor, drain) = (supervise::detect(node.layout()), args.drain.duration());
        let (node, supervisor) = (&node, supervisor.as_ref());
        Ending { node, supervisor, manifest_of: &manifest_of, drain, say: &say }
            .confirm(app)
            .with_context(|| format!("confirming {what}"))
    })?;
    context.ui.done(format!("confirmed {what}"));
    Ok(Exit::Done)
}
