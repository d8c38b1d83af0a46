//! `farmctl stop`: no process, mount or session of the application is left.

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::error::Exit;
use crate::node::Object;
use crate::plan::Plan;
use crate::schroot;
use crate::undo;

/// Stop an application and end its session; its data stays
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farmctl stop hello")]
pub struct Args {
    /// The application
    name: String,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When something of the session cannot be ended: saying what, for `farmctl gc`.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    let app = node.installed(&args.name)?;
    let Some(session) = &app.session else {
        context.ui.already(format!("{} is stopped already", app.name));
        return Ok(Exit::Done);
    };
    let what = format!("{} {}", app.name, session.version);
    if args.dry_run {
        let mut plan = Plan::new(format!("stop {what}"));
        plan.step("withdraw the vhost").step("stop the processes");
        plan.commands("end the session", vec![schroot::ending(&session.name).display()]);
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let _lock = super::take_over(&node, &args.name, "stop", context)?;
    let app = node.installed(&args.name)?;
    if app.session.is_none() {
        context.ui.already(format!("{} is stopped already", app.name));
        return Ok(Exit::Done);
    }
    let subject = Subject { context, node: &node, app: &app.name, verb: "stop" };
    subject.record(&session.version, || {
        let mut transaction = node.begin("stop", &app.name)?;
        for object in Object::serving(&app) {
            transaction.intend(object)?;
        }
        node.save_app(&app.clone().stopped())?;
        undo::remove_all(&node, transaction, &|object| {
            context.ui.step(format!("removing {}", object.named()));
        })
        .with_context(|| format!("stopping {what}"))
    })?;
    context.ui.done(format!("stopped {what}"));
    Ok(Exit::Done)
}
