//! `farmctl upgrade`: another release serves, without losing a request.

mod in_place;

use std::path::Path;

use anyhow::{Context as _, Result};

use self::in_place::Revision;
use super::Context;
use super::incoming::{self, Arrival, Options};
use super::record::Subject;
use crate::error::{Exit, refuse};
use crate::history::{self, Outcome};
use crate::machine;
use crate::manifest::Manifest;
use crate::mount;
use crate::node::{self, Node};
use crate::plan::Plan;
use crate::profile::{Seconds, When};
use crate::release::App;
use crate::supervise::{self, Supervise};
use crate::switch::{self, Course, Ending};

/// Switch a running application to another release without losing a request
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl upgrade shop shop_1.4.3_amd64.tar.xz
  farmctl upgrade shop 1.4.3 --watch 1m
  farmctl upgrade shop 1.4.3 --preview
  farmctl upgrade shop 1.4.3 --confirm-within 5m
  farmctl upgrade shop --in-place 'django==5.2.8'

The new release is installed, begun in a session of its own and asked whether it serves, all \
beside the one that runs. Then one rename(2) leads requests to it. If one of its processes ends \
while it is watched, or more requests fail than before, they are led back. Whatever fails, the \
release before serves on.

With --preview it stops before the rename and prints an address to look at the new release; the \
same without leads requests to what was looked at, and farmctl stop NAME --preview ends it. With \
--confirm-within, the old processes stand by after that, and farmctl tend leads requests back to \
them unless farmctl confirm comes in time.

With --in-place nothing is switched: distributions are installed into a fork of the release that \
serves, the same files are changed in its session, and its processes are reloaded. If they do not \
take it up, all is as before. The fork is a release like any other, 1.4.2.p1: farmctl rollback \
leads back to 1.4.2.")]
pub struct Args {
    /// The application
    name: String,
    /// The new release's node tarball, or the version of one that is installed
    #[arg(required_unless_present = "in_place")]
    release: Option<String>,
    /// Install a requirement, or a Python project, wheel or sdist by its path, where it serves;
    /// may be given more than once
    #[arg(
        long,
        value_name = "REQUIREMENT|PATH",
        conflicts_with_all = [
            "release", "preview", "confirm_within", "watch", "drain", "storage",
            "allow_downgrade", "allow_expired",
        ]
    )]
    in_place: Vec<String>,
    /// How long the new release is watched: 30s, 5m
    #[arg(long, value_name = "TIME", default_value = "10s")]
    watch: Seconds,
    /// How long the last requests to the old release are waited for
    #[arg(long, value_name = "TIME", default_value = "1m")]
    drain: Seconds,
    /// Stop before requests are led to it, and print an address to look at it
    #[arg(long, conflicts_with_all = ["watch", "confirm_within"])]
    preview: bool,
    /// Go back to the old release unless farmctl confirm comes in this time
    #[arg(long, value_name = "TIME")]
    confirm_within: Option<Seconds>,
    #[command(flatten)]
    options: Options,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the new release cannot be installed, does not get ready, or does not prove itself:
/// the one before serves then.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.name)?;
    let node = context.node()?;
    let mut app = node.installed(&args.name)?;
    let _lock = super::take_over_unless(args.dry_run, &node, &args.name, "upgrade", context)?;
    check_unconfirmed(args, &node.installed(&args.name)?)?;
    let Some(release) = &args.release else { return in_place(args, &node, context) };
    let version = install(args, release, &node, context)?;
    check_preview(&node.installed(&args.name)?, &version)?;
    app = if args.dry_run { app } else { node.installed(&args.name)? };
    let Some(session) = app.session.clone() else {
        let hint = format!("farmctl start {}", args.name);
        if args.dry_run {
            return refuse(format_args!("{} is not started", args.name), hint);
        }
        let manifest = super::manifest_of(&node, &app, &version)?;
        if let Some(job) = switch::upgrade_jobs(&manifest).next() {
            return refuse(
                format_args!(
                    "{} is not started, and the job {job} runs beside what serves",
                    args.name
                ),
                format!("{hint}, then farmctl upgrade {} {version}", args.name),
            );
        }
        node.save_app(&app.made_current(&version))?;
        context.ui.done(format!("{} {version} is next: {hint}", args.name));
        return Ok(Exit::Done);
    };
    if args.dry_run {
        context.show_plan(&plan(args, &session.version, &version));
        return Ok(Exit::Done);
    }
    let supervisor = supervise::detect(node.layout());
    let say = |text: &str| context.ui.step(text);
    let manifest_of = |version: &str| super::manifest_of(&node, &app, version);
    let subject = Subject { context, node: &node, app: &args.name, verb: "upgrade" };
    let settled = settle(args, &app, &subject, supervisor.as_ref())?;
    let serving = settled.session.clone().map(|session| session.version).unwrap_or_default();
    let what = format!("{} from {serving} to {version}", args.name);
    if serving == version {
        context.ui.already(format!("{} {version} serves already", args.name));
        return Ok(Exit::Done);
    }
    let course = Course {
        node: &node,
        supervisor: supervisor.as_ref(),
        moments: &[When::Upgrade, When::Start],
        watch: args.watch.duration(),
        drain: args.drain.duration(),
        confirm: args.confirm_within.map(Seconds::duration),
    };
    let (new, old) = (manifest_of(&version)?, manifest_of(&serving)?);
    if args.preview {
        return preview(args, &settled, &new, &course, context);
    }
    subject.record(&format!("from {serving} to {version}"), || {
        switch::to_release(&settled, &new, &old, &course, "upgrade", &say)
            .with_context(|| format!("upgrading {what}"))
    })?;
    context.ui.done(format!("upgraded {what}"));
    if let Some(within) = &args.confirm_within {
        let tended = if machine::systemd_is_init() { "" } else { ", if cron(8) runs farmctl tend" };
        context.ui.warn(format!(
            "{serving} serves again in {within}{tended}, unless: farmctl confirm {}",
            args.name
        ));
    }
    Ok(Exit::Done)
}

/// Ends what an upgrade that was interrupted left standing by.
fn settle(
    args: &Args,
    app: &App,
    subject: &Subject<'_>,
    supervisor: &dyn Supervise,
) -> Result<App> {
    let node = subject.node;
    let manifest_of = |version: &str| super::manifest_of(node, app, version);
    subject.record_steps(
        &history::who(),
        |_| Outcome::Done,
        |say| {
            let drain = args.drain.duration();
            Ending { node, supervisor, manifest_of: &manifest_of, drain, say }.settle(app.clone())
        },
    )
}

/// Changes what serves where it runs.
fn in_place(args: &Args, node: &Node, context: &Context) -> Result<Exit> {
    let started = super::started(node, &args.name)?;
    let supervisor = supervise::detect(node.layout());
    if let Some(preview) = &started.app.preview {
        return refuse(
            format_args!("{} has a preview of {}", args.name, preview.session.version),
            format!("farmctl stop {} --preview ends it", args.name),
        );
    }
    if !args.dry_run {
        let subject = Subject { context, node, app: &args.name, verb: "upgrade" };
        settle(args, &started.app, &subject, supervisor.as_ref())?;
    }
    let started = super::started(node, &args.name)?;
    let revision = Revision {
        node,
        supervisor: supervisor.as_ref(),
        started: &started,
        wanted: &args.in_place,
        context,
    };
    revision.check()?;
    if args.dry_run {
        context.show_plan(&revision.plan()?);
        return Ok(Exit::Done);
    }
    for job in switch::upgrade_jobs(&started.manifest) {
        context
            .ui
            .warn(format!("the job {job} is not run: only an upgrade to a release does that"));
    }
    let (name, from) = (&args.name, &started.manifest.version);
    match revision.carry_out()? {
        None => context.ui.already(format!("{name} {from} has that already")),
        Some((version, what)) => {
            context.ui.done(format!("upgraded {name} in place from {from} to {version}: {what}"));
        }
    }
    Ok(Exit::Done)
}

/// Refuses another release than the one that is looked at.
fn check_preview(app: &App, version: &str) -> Result<()> {
    let name = &app.name;
    match &app.preview {
        Some(preview) if preview.session.version != version => refuse(
            format_args!("{name} has a preview of {}", preview.session.version),
            format!("farmctl stop {name} --preview ends it"),
        ),
        _ => Ok(()),
    }
}

/// Refuses an upgrade of what is not known to be right, and one that nobody could confirm.
fn check_unconfirmed(args: &Args, app: &App) -> Result<()> {
    let name = &args.name;
    match (&app.session, app.confirm_by) {
        (Some(session), Some(by)) if by > node::now() => refuse(
            format_args!("{name} {} waits to be confirmed", session.version),
            format!("farmctl confirm {name} keeps it, farmctl rollback {name} goes back"),
        ),
        (None, _) if args.confirm_within.is_some() || args.preview => refuse(
            format_args!("{name} is not started: there is nothing to go back to"),
            format!("farmctl start {name}"),
        ),
        _ => Ok(()),
    }
}

/// Begins a session of the release and makes it ready to be looked at; prints where.
fn preview(
    args: &Args,
    app: &App,
    manifest: &Manifest,
    course: &Course<'_>,
    context: &Context,
) -> Result<Exit> {
    let Course { node, supervisor, .. } = *course;
    let (name, version) = (&app.name, &manifest.version);
    let say = |text: &str| context.ui.step(text);
    let address = if app.preview.is_some() {
        switch::restore_preview(app, manifest, node, supervisor, &say)?
    } else {
        let subject = Subject { context, node, app: name, verb: "upgrade --preview" };
        subject.record(&format!("to {version}"), || {
            switch::preview(app, manifest, course, &say)
                .with_context(|| format!("upgrading {} to {version}", args.name))
        })?
    };
    let next = format!("farmctl upgrade {name} {version} leads requests to it");
    context.ui.done(format!("{name} {version} is ready: {next}"));
    if let Some(address) = address {
        context.ui.answer(address);
    }
    Ok(Exit::Done)
}

/// Installs the release if it is a tarball that is not installed yet; answers its version.
fn install(args: &Args, release: &str, node: &Node, context: &Context) -> Result<String> {
    let app = node.installed(&args.name)?;
    if app.release(release).is_some() {
        return Ok(release.to_owned());
    }
    let file = Path::new(release);
    if !file.exists() {
        return refuse(
            format_args!("{release} is neither a release of {} nor a file", args.name),
            format!("{}; or name a node tarball", releases(&app)),
        );
    }
    // What unpacks it alone is to see its volume mounted: the session is for the host.
    mount::in_private_namespace(|| {
        let archive = incoming::open(file, node)?;
        let (name, version) = (archive.manifest().name.clone(), archive.manifest().version.clone());
        if name != args.name {
            return refuse(
                format_args!("{release} is a release of {name}, not of {}", args.name),
                format!("farmctl upgrade {name} {release}"),
            );
        }
        match incoming::arrive(archive, &args.options, node)? {
            Arrival::New(incoming) if args.dry_run => context.show_plan(&incoming.plan(node)?),
            Arrival::New(mut incoming) => incoming.install(node, context)?,
            Arrival::Known => {}
        }
        Ok(version)
    })
}

fn releases(app: &App) -> String {
    let versions: Vec<&str> = app.releases.iter().map(|release| release.version.as_str()).collect();
    format!("installed are: {}", versions.join(", "))
}

fn plan(args: &Args, before: &str, version: &str) -> Plan {
    let mut plan = Plan::new(format!("upgrade {} from {before} to {version}", args.name));
    plan.step("begin a session of it and start its processes, beside those that serve");
    if args.preview {
        plan.step("print an address to look at it");
        return plan;
    }
    plan.step("lead requests to it: one rename(2)")
        .step(format!("watch it for {}, and lead requests back if it fails", args.watch))
        .step(match &args.confirm_within {
            None => format!("end the session of {before} when its last request is done"),
            Some(within) => format!("after {within} lead them back, unless farmctl confirm comes"),
        });
    plan
}
