//! `farmctl tend`: the one thing that keeps watch: what state says runs, runs.

use std::time::Duration;

use anyhow::{Error, Result};

use super::Context;
use super::record::Subject;
use crate::error::{self, Exit, message};
use crate::front;
use crate::history::{self, Outcome};
use crate::manifest::Manifest;
use crate::node::{self, Node};
use crate::release::{App, Session};
use crate::run;
use crate::schroot;
use crate::serve::Served;
use crate::session;
use crate::storage::{self, Growth, Usage};
use crate::supervise::{self, Supervise};
use crate::switch::{self, Ending};
use crate::ui;
use crate::undo;

/// How long before storage is full its filling up is worth a warning, in seconds: a day.
const WARNED: i64 = 86_400;

/// How long the last requests to a session that stood by are waited for, when the farmctl
/// that would have is gone.
const DRAIN: Duration = Duration::from_secs(10);

/// Bring back every application that should run and does not
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl tend
  farmctl tend --every 30

It recovers sessions after a reboot, starts processes that are gone, and publishes vhosts that are \
missing. systemd runs it at boot and every 30 seconds; without systemd, run it from cron(8).")]
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
        let exit =
            if args.dry_run { look(&node, context)? } else { bring_all_back(&node, context)? };
        let Some(pause) = args.every else { return Ok(exit) };
        let waited = run::poll_until(Duration::from_secs(pause.max(1)), || Ok(None::<()>));
        if waited.is_err() {
            return Ok(Exit::Done);
        }
    }
}

/// Gives a session's snapshot more room ahead of need, and warns of storage that will be
/// full.
fn watch(app: &App, session: &Session, node: &Node, context: &Context) -> Result<()> {
    let name = &app.name;
    if let Some(Growth { from, to }) = session::grow(app, session, &node.site())? {
        let (from, to) = (ui::size(from), ui::size(to));
        context.ui.step(format!("{name}: snapshot of {} grown from {from} to {to}", session.name));
    }
    let Some(release) = app.release(&session.version) else { return Ok(()) };
    let storage = storage::named(&release.storage, &node.site())?;
    let usage = storage.usage()?;
    let copy = session::copy_of(app, session, &node.site())?;
    // One that can be given all it may ever need is no reason to worry.
    let scarce = copy.filter(|copy| copy.wanting > usage.free);
    if let Some((written, room)) = scarce.and_then(|copy| copy.written.zip(copy.room)) {
        let left = room.saturating_sub(written) + usage.free;
        match storage::lasts(written, node::now() - session.begun, left) {
            Some(seconds) if seconds < WARNED => context.ui.warn(format!(
                "{name}: session {} has filled its storage in about {} if it goes on writing",
                session.name,
                ui::span(seconds)
            )),
            _ => {}
        }
    }
    for shortage in shortages(&usage) {
        context.ui.warn(format!("{name}: {shortage}"));
    }
    Ok(())
}

/// What a thin pool is going to be short of; when it is full, every session in it fails.
fn shortages(usage: &Usage) -> Vec<String> {
    let Some(metadata) = usage.metadata_percent else { return Vec::new() };
    let mut found = Vec::new();
    if usage.free < usage.total / 5 {
        let (free, total) = (ui::size(usage.free), ui::size(usage.total));
        found.push(format!("only {free} of its thin pool's {total} are free"));
    }
    if metadata >= super::METADATA_WARNED {
        found.push(format!("the metadata of its thin pool is {metadata:.0} % full"));
    }
    found
}

/// Has the application run as state says, and finishes what a farmctl that was killed in
/// the middle of a switch left.
fn bring_back(
    app: App,
    session: &Session,
    manifest: &Manifest,
    node: &Node,
    supervisor: &dyn Supervise,
    say: &dyn Fn(&str),
) -> Result<Outcome> {
    undo::finish_all(node, &app.name, say)?;
    if let Some(preview) = &app.preview {
        let manifest = super::manifest_of(node, &app, &preview.session.version)?;
        switch::restore_preview(&app, &manifest, node, supervisor, say)?;
    }
    if app.standby.is_empty() {
        // Of a session that stood by and has been ended.
        front::set_backup(node.layout(), &session.name, None)?;
        Served { app: &app, session, manifest, node, supervisor }.restore(say)?;
        return Ok(Outcome::Done);
    }
    let known = app.clone();
    let manifest_of = |version: &str| super::manifest_of(node, &known, version);
    let settled =
        Ending { node, supervisor, manifest_of: &manifest_of, drain: DRAIN, say }.settle(app)?;
    let same = settled.session.as_ref() == Some(session);
    Ok(if same { Outcome::Done } else { Outcome::SwitchedBack })
}

/// Says what is not as state says.
fn look(node: &Node, context: &Context) -> Result<Exit> {
    let supervisor = supervise::detect(node.layout());
    let mut exit = Exit::Done;
    for name in node.app_names()? {
        let troubles = || -> Result<Vec<String>> {
            let Some(app) = node.app(&name)? else { return Ok(Vec::new()) };
            let Some(session) = &app.session else { return Ok(Vec::new()) };
            let manifest = &super::manifest_of(node, &app, &session.version)?;
            let supervisor = supervisor.as_ref();
            Served { app: &app, session, manifest, node, supervisor }.troubles()
        };
        // What cannot be looked at is one of them.
        let troubles = troubles().or_else(|error| {
            run::check_interrupted()?;
            Ok::<_, Error>(vec![message(&error)])
        });
        for trouble in troubles? {
            context.ui.answer(format!("{name}: {trouble}"));
            exit = Exit::NotRight;
        }
    }
    Ok(exit)
}

/// Has all that should run run.
pub(super) fn bring_all_back(node: &Node, context: &Context) -> Result<Exit> {
    let supervisor = supervise::detect(node.layout());
    if let Some(ground) = node.ground()? {
        if storage::ground::attach(&ground, &node.site())? {
            context.ui.step(format!("attached {}", ground.base.path().display()));
        }
    }
    schroot::restore_guards()?;
    let mut exit = Exit::Done;
    for name in node.app_names()? {
        let tended = tend(&name, node, supervisor.as_ref(), context);
        for error in tended.unwrap_or_else(|error| vec![error]) {
            run::check_interrupted()?;
            context.ui.error(&error::render(&error.context(format!("tending {name}"))));
            exit = Exit::Failed;
        }
    }
    Ok(exit)
}

/// Has an application run as state says. Answers what is wrong with it nevertheless.
fn tend(
    name: &str,
    node: &Node,
    supervisor: &dyn Supervise,
    context: &Context,
) -> Result<Vec<Error>> {
    const NOTHING: Vec<Error> = Vec::new();
    if node.app(name)?.is_none_or(|app| app.session.is_none()) {
        return Ok(NOTHING);
    }
    // One that another farmctl is changing, perhaps by tending it, is that one's.
    let _lock = match node.lock(name, "tend") {
        Ok(lock) => lock,
        Err(error) => {
            context.ui.step(format!("left alone: {}", message(&error)));
            return Ok(NOTHING);
        }
    };
    // And one it has changed until now is not what it was.
    let Some(app) = node.app(name)? else { return Ok(NOTHING) };
    let Some(session) = app.session.clone() else { return Ok(NOTHING) };
    let manifest = super::manifest_of(node, &app, &session.version)?;
    // One that is short of room is to run all the same.
    let watched = watch(&app, &session, node, context);
    let subject = Subject { context, node, app: name, verb: "tend" };
    let restored = subject.record_steps(
        history::TEND,
        |outcome| *outcome,
        |say| bring_back(app.clone(), &session, &manifest, node, supervisor, say),
    );
    Ok([watched, restored.map(drop)].into_iter().filter_map(Result::err).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thin_pool_is_short_of_data_or_metadata_and_nothing_else_is() {
        let pool = |free: u64, metadata_percent| {
            shortages(&Usage { total: 10 << 30, free: free << 30, metadata_percent })
        };
        assert_eq!(pool(1, None), [""; 0]);
        assert_eq!(pool(2, Some(79.9)), [""; 0]);
        let data = "only 1.00 GiB of its thin pool's 10.00 GiB are free";
        let metadata = "the metadata of its thin pool is 80 % full";
        assert_eq!(pool(1, Some(10.0)), [data]);
        assert_eq!(pool(2, Some(80.0)), [metadata]);
        assert_eq!(pool(1, Some(80.4)), [data, metadata]);
    }
}
