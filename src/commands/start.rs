//! `farmctl start`: a session of the current release, its processes, its vhost.

use anyhow::{Context as _, Result};

use super::Context;
use super::record::Subject;
use crate::error::{Exit, refuse};
use crate::front;
use crate::history::{self, Outcome};
use crate::layout;
use crate::manifest::Manifest;
use crate::node::{Node, Object, Transaction};
use crate::plan::Plan;
use crate::profile::When;
use crate::release::{App, Session};
use crate::run;
use crate::schroot;
use crate::serve::{self, Served};
use crate::supervise::{self, Supervise};
use crate::undo;

/// Start an installed application
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  farmctl start hello")]
pub struct Args {
    /// The application
    name: String,
    /// The release to run instead of the current one
    #[arg(long, value_name = "VERSION")]
    release: Option<String>,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out; prints the address the application answers on.
///
/// # Errors
/// When a process does not get ready: with its last lines, and nothing left running.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    let app = node.installed(&args.name)?;
    let version = super::installed_version(&app, args.release.as_deref())?;
    let manifest = super::manifest_of(&node, &app, &version)?;
    let supervisor = supervise::detect(node.layout());
    let mut tools = schroot::TOOLS.to_vec();
    tools.extend(supervisor.tools());
    if manifest.profile.front.is_some() {
        tools.extend(front::TOOLS);
    }
    run::require(&tools)?;
    if args.dry_run {
        context.show_plan(&plan(&app, &manifest, &node)?);
        return Ok(Exit::Done);
    }
    let _lock = super::take_over(&node, &args.name, "start", context)?;
    let app = node.installed(&args.name)?;
    if let Some(session) = &app.session {
        return again(&app, session, args.release.as_deref(), &node, supervisor.as_ref(), context);
    }
    let what = format!("{} {version}", app.name);
    let subject = Subject { context, node: &node, app: &app.name, verb: "start" };
    subject.record(&version, || {
        undo::attempt(&node, "start", &app.name, |transaction| {
            start(&app, &manifest, &node, supervisor.as_ref(), context, transaction)
        })
        .with_context(|| format!("starting {what}"))
    })?;
    context.ui.done(format!("started {what}"));
    answer(&manifest, context);
    Ok(Exit::Done)
}

/// An application that state says is started: brought back to that if it is not.
fn again(
    app: &App,
    session: &Session,
    asked: Option<&str>,
    node: &Node,
    supervisor: &dyn Supervise,
    context: &Context,
) -> Result<Exit> {
    if asked.is_some_and(|version| version != session.version) {
        return refuse(
            format_args!("{} runs release {}", app.name, session.version),
            format!("farmctl stop {} first", app.name),
        );
    }
    let manifest = super::manifest_of(node, app, &session.version)?;
    let what = format!("{} {}", app.name, session.version);
    let subject = Subject { context, node, app: &app.name, verb: "start" };
    let repaired = subject.record_steps(
        &history::who(),
        |_| Outcome::Done,
        |say| {
            Served { app, session, manifest: &manifest, node, supervisor }
                .restore(say)
                .with_context(|| format!("bringing {what} back"))
        },
    )?;
    if repaired {
        context.ui.done(format!("brought {what} back"));
    } else {
        context.ui.already(format!("{what} is started already"));
    }
    answer(&manifest, context);
    Ok(Exit::Done)
}

fn answer(manifest: &Manifest, context: &Context) {
    if let Some(front) = &manifest.profile.front {
        context.ui.answer(front::address(front));
    }
}

fn plan(app: &App, manifest: &Manifest, node: &Node) -> Result<Plan> {
    let chroot = layout::release_chroot(&app.name, &manifest.version);
    let mut plan = Plan::new(format!("start {} {}", app.name, manifest.version));
    let session = layout::session(&app.name, "…");
    plan.commands("begin a session", vec![schroot::beginning(&session, &chroot).display()]);
    for job in serve::jobs(manifest, &[When::Start]) {
        let call = serve::job_call(job, &session);
        plan.commands(format!("run the job {}", job.name), vec![call.display()]);
    }
    for process in &manifest.profile.processes {
        plan.commands(format!("run the process {}", process.name), vec![process.command.clone()]);
    }
    if manifest.profile.front.is_some() {
        plan.step(format!(
            "lead {} to the session's socket",
            node.layout().front_link(&app.name).display()
        ));
        plan.commands(
            format!("publish the vhost {}", layout::vhost(&app.name)),
            front::describe_take_up()?,
        );
    }
    Ok(plan)
}

fn start(
    app: &App,
    manifest: &Manifest,
    node: &Node,
    supervisor: &dyn Supervise,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<()> {
    let ui = &context.ui;
    let say = |text: &str| ui.step(text);
    let session = serve::raise(app, manifest, &[When::Start], node, supervisor, transaction, &say)?;
    if manifest.profile.front.is_some() {
        ui.step("publishing the vhost");
        // What was there when it was stopped stays.
        if !front::has_vhost(&app.name) {
            transaction.intend(Object::Front { app: app.name.clone() })?;
        }
        transaction.intend(Object::Way { app: app.name.clone() })?;
        let served = Served { app, session: &session, manifest, node, supervisor };
        let front = served.publish_front()?;
        for other in front.displaced {
            ui.warn(format!(
                "{other}, which is stopped, had its address: nothing answers for it now"
            ));
        }
        if front.started_nginx {
            ui.warn("nginx was not running and has been started");
        }
    }
    node.save_app(&app.clone().started(session))
}
