//! `farmctl stop`: no process, mount or session of the application is left.

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::error::{Exit, refuse};
use crate::front;
use crate::node::{Node, Object};
use crate::plan::Plan;
use crate::schroot;
use crate::switch;
use crate::undo;

/// Stop an application and end its session; its data stays
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl stop hello
  farmctl stop hello --preview

Its vhost stays and answers 503 with the page that [front] error-page names, until the application \
is started or removed, another one wants its address, or --withdraw is given.")]
pub struct Args {
    /// The application
    name: String,
    /// Only the preview of farmctl upgrade --preview
    #[arg(long)]
    preview: bool,
    /// Also take its vhost away, which answers 503 while the application is stopped
    #[arg(long, conflicts_with = "preview")]
    withdraw: bool,
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
    if args.preview {
        return stop_preview(args, &node, context);
    }
    let Some(session) = &app.session else {
        return stopped_already(args, &node, context);
    };
    let what = format!("{} {}", app.name, session.version);
    if args.dry_run {
        let mut plan = Plan::new(format!("stop {what}"));
        if args.withdraw {
            plan.step("take the vhost away");
        } else if front::has_vhost(&app.name) {
            plan.step("have the vhost answer 503");
        }
        plan.step("stop the processes");
        plan.commands("end the session", vec![schroot::ending(&session.name).display()]);
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let lock = super::take_over(&node, &args.name, "stop", context)?;
    let app = node.installed(&args.name)?;
    if app.session.is_none() {
        drop(lock);
        return stopped_already(args, &node, context);
    }
    let subject = Subject { context, node: &node, app: &app.name, verb: "stop" };
    subject.record(&session.version, || {
        let mut transaction = node.begin("stop", &app.name)?;
        let stays = |object: &Object| matches!(object, Object::Front { .. }) && !args.withdraw;
        for object in Object::serving(&app).into_iter().filter(|object| !stays(object)) {
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

fn stopped_already(args: &Args, node: &Node, context: &Context) -> Result<Exit> {
    let name = &args.name;
    if !args.withdraw || !front::has_vhost(name) {
        context.ui.already(format!("{name} is stopped already"));
        return Ok(Exit::Done);
    }
    if args.dry_run {
        let mut plan = Plan::new(format!("withdraw {name}"));
        plan.step("take the vhost away");
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let _lock = super::lock(node, name, "stop")?;
    if node.installed(name)?.session.is_some() {
        return refuse(
            format_args!("{name} has been started meanwhile"),
            format!("farmctl stop {name}"),
        );
    }
    let subject = Subject { context, node, app: name, verb: "stop" };
    subject.record("--withdraw", || front::withdraw(node.layout(), name))?;
    context.ui.done(format!("took the vhost of {name} away"));
    Ok(Exit::Done)
}

fn stop_preview(args: &Args, node: &Node, context: &Context) -> Result<Exit> {
    // Locked before it is looked at: another farmctl may be about to take it on.
    let _lock = super::take_over_unless(args.dry_run, node, &args.name, "stop", context)?;
    let app = node.installed(&args.name)?;
    let Some(session) = app.preview.as_ref().map(|preview| preview.session.clone()) else {
        context.ui.already(format!("{} has no preview", args.name));
        return Ok(Exit::Done);
    };
    let what = format!("the preview of {} {}", args.name, session.version);
    if args.dry_run {
        let mut plan = Plan::new(format!("stop {what}"));
        plan.step("withdraw its vhost").step("stop its processes");
        plan.commands("end its session", vec![schroot::ending(&session.name).display()]);
        context.show_plan(&plan);
        return Ok(Exit::Done);
    }
    let subject = Subject { context, node, app: &args.name, verb: "stop --preview" };
    subject.record(&session.version, || {
        switch::end_preview(app, node).with_context(|| format!("stopping {what}"))
    })?;
    context.ui.done(format!("stopped {what}"));
    Ok(Exit::Done)
}
