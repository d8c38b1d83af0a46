//! `farmctl gc`: removes what unfinished work left, and nothing else.
//!
//! The states it repairs: a transaction whose farmctl was killed (its record lists what
//! it made or was about to make); a scratch directory without a record; the temporary of a
//! file or link that was about to be published; a session,
//! chroot or volume of ours, or processes known to the supervisor, that neither state
//! nor a record names are *orphans*, which are reported and only removed with
//! `--orphans`. Trees that bakes keep for the next one go with `--stages`. Besides, releases that
//! are old and not needed any more go; they are no fault, and `--check` only names them.

use anyhow::{Result, bail};
use schemars::JsonSchema;
use serde::Serialize;

use super::Context;
use super::record::Subject;
use crate::error::{Exit, Mark as _, message};
use crate::file;
use crate::kept::{Kept, Step};
use crate::layout;
use crate::node::{Node, Object, Transaction};
use crate::release::Release;
use crate::schroot;
use crate::storage;
use crate::supervise;
use crate::tarball::SegmentCache;
use crate::ui;
use crate::undo;

/// Remove what interrupted work left behind, and old releases
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  farmctl gc --check
  farmctl gc
  farmctl gc --stages

Of each application the newest three releases are kept (keep in node.toml), and those that run, \
stand by or ran before; of compressed segments 4G (segment-cache). What bakes keep for the next \
one stays, unless --stages is given: the next bake installs it again. Data directories are never \
touched.

An orphan is a volume, chroot, session, process or scratch directory of this node that its state \
does not know. It is named, and removed only with --orphans.

--check exits 3 when there are orphans, or interrupted work or a failed bake --keep left \
something. Old releases and what --stages removes are no fault.")]
pub struct Args {
    /// Only look, and exit 3 if interrupted work left something, or there are orphans
    #[arg(long, visible_alias = "dry-run")]
    check: bool,
    /// Also remove volumes, chroots, sessions and processes of ours unknown to the state
    #[arg(long)]
    orphans: bool,
    /// Also remove the trees that bakes keep for the next one
    #[arg(long)]
    stages: bool,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Default, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(super) struct Found {
    /// What transactions left that never finished, and files that were never published.
    rubbish: Vec<String>,
    /// What the state does not know.
    orphans: Vec<String>,
    /// Releases that are not kept.
    old: Vec<String>,
    /// Trees that bakes keep for the next one.
    stages: Vec<String>,
}

/// Carries the verb out.
///
/// # Errors
/// When the state cannot be read (nothing is removed then), or something cannot be removed.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let mut found = Found::default();
    // Reading all of the state first: what cannot be read refuses to be guessed about.
    node.apps()?;
    node.environments()?;
    let mut failed = Vec::new();
    for transaction in node.abandoned()? {
        let title = title(&transaction);
        let rubbish = undo::rubbish(&node, &transaction)?;
        found.rubbish.extend(rubbish.iter().map(|object| format!("{object} ({title})")));
        if rubbish.is_empty() {
            found.rubbish.push(format!("the record of an unfinished {title}"));
        }
        if !args.check {
            let finished = finish(&node, transaction, context);
            failed.extend(finished.err().map(|error| message(&error)));
        }
    }
    let unpublished = undo::unpublished(&node)?;
    found.rubbish.extend(unpublished.iter().map(|path| path.display().to_string()));
    if !args.check {
        let removed = undo::remove_unpublished(&node, &|text| context.ui.step(text));
        failed.extend(removed.err().map(|error| message(&error)));
    }
    let orphans = orphans(&node)?;
    found.orphans = orphans.iter().map(ToString::to_string).collect();
    if args.orphans && !args.check {
        for object in &orphans {
            match undo::remove(object, &node) {
                Ok(()) => context.ui.step(format!("removed the orphaned {object}")),
                Err(error) => failed.push(message(&error)),
            }
        }
    }
    for app in node.apps()? {
        let old = app.old_releases(node.settings().keep.get());
        let title = |release: &&Release| format!("release {} of {}", release.version, app.name);
        found.old.extend(old.iter().map(title));
        if !args.check && !old.is_empty() {
            failed.extend(retire(&app.name, &node, context).err().map(|it| message(&it)));
        }
    }
    for environment in node.environments()? {
        let title =
            |kept: &Kept| format!("{} of environment {}", kept.step.what(), environment.name);
        found.stages.extend(environment.kept.iter().map(title));
        if args.stages && !args.check && !environment.kept.is_empty() {
            let name = &environment.name;
            failed.extend(forget_stages(name, &node, context).err().map(|it| message(&it)));
        }
    }
    if !args.check {
        let removed = shrink_cache(&node).map(|removed| {
            if removed > 0 {
                let removed = ui::size(removed);
                context
                    .ui
                    .step(format!("removed {removed} of compressed segments, not used for long"));
            }
        });
        failed.extend(removed.err().map(|error| message(&error)));
    }
    report(args, &found, context);
    if !failed.is_empty() {
        let failure: Result<Exit> = (|| bail!("collecting garbage: {}", failed.join("; ")))();
        return failure.exit(Exit::Left).hint("end what still uses it, then farmctl gc");
    }
    let left =
        if args.check { !found.rubbish.is_empty() || !found.orphans.is_empty() } else { false };
    Ok(if left { Exit::NotRight } else { Exit::Done })
}

/// Keeps the cache of compressed segments to its limit; answers how many bytes went.
fn shrink_cache(node: &Node) -> Result<u64> {
    let cache = SegmentCache::at(node.layout().segments());
    cache.shrink(node.settings().segment_cache.bytes())
}

/// Removes what interrupted work left, but for what is kept for a look.
pub(super) fn finish_abandoned(node: &Node, context: &Context) -> Result<()> {
    let mut abandoned = node.abandoned()?;
    abandoned.retain(|transaction| !transaction.is_kept());
    abandoned.into_iter().try_for_each(|transaction| finish(node, transaction, context))?;
    undo::remove_unpublished(node, &|text| context.ui.step(text))
}

fn finish(node: &Node, transaction: Transaction, context: &Context) -> Result<()> {
    let title = title(&transaction);
    for object in undo::finish(node, transaction)? {
        context.ui.step(format!("removed the {object} ({title})"));
    }
    Ok(())
}

fn title(transaction: &Transaction) -> String {
    let kept = if transaction.is_kept() { "kept " } else { "" };
    format!("{kept}{} of {}", transaction.verb(), transaction.subject())
}

/// Removes the old releases of an application.
fn retire(app: &str, node: &Node, context: &Context) -> Result<()> {
    let _lock = super::lock(node, app, "gc")?;
    // Changed meanwhile, perhaps.
    let Some(app) = node.app(app)? else { return Ok(()) };
    for release in app.old_releases(node.settings().keep.get()) {
        let subject = Subject { context, node, app: &app.name, verb: "gc" };
        let what = format!("old release {}", release.version);
        subject.record(&what, || {
            let mut transaction = node.begin("remove", &app.name)?;
            for object in Object::of_release(&app, release, node.layout()) {
                transaction.intend(object)?;
            }
            let Some(now) = node.app(&app.name)? else { return transaction.close() };
            node.save_app(&now.removed(&release.version))?;
            undo::remove_all(node, transaction, &|_| ())
        })?;
        context.ui.step(format!("removed the {what} of {}", app.name));
    }
    Ok(())
}

/// Removes the trees that are kept of an environment.
fn forget_stages(environment: &str, node: &Node, context: &Context) -> Result<()> {
    let subject = format!("env-{environment}");
    let _lock = super::lock(node, &subject, "gc")?;
    // Changed meanwhile, perhaps.
    let Some(mut record) = node.environment(environment)? else { return Ok(()) };
    let count = record.kept.len();
    undo::attempt(node, "gc", &subject, |transaction| {
        super::forget_kept(&mut record, Step::Packages, node, transaction)
    })?;
    if count > 0 {
        context.ui.step(format!("removed what bakes of {environment} kept for the next one"));
    }
    Ok(())
}

fn report(args: &Args, found: &Found, context: &Context) {
    if args.json {
        context.ui.json(found);
        return;
    }
    if args.check {
        for what in &found.rubbish {
            context.ui.answer(format!("rubbish: {what}"));
        }
    }
    for what in &found.orphans {
        if args.check || !args.orphans {
            context.ui.answer(format!("orphan: {what} (farmctl gc --orphans removes it)"));
        }
    }
    if args.check {
        for what in &found.old {
            context.ui.answer(format!("old: {what} (farmctl gc removes it)"));
        }
    }
    if args.check && args.stages {
        for what in &found.stages {
            context.ui.answer(format!("stage: {what} (farmctl gc --stages removes it)"));
        }
    }
    let stages = if args.stages { found.stages.len() } else { 0 };
    if found.rubbish.len() + found.orphans.len() + found.old.len() + stages == 0 {
        context.ui.already("nothing to collect");
    }
}

/// Things of this node that neither state nor a living or abandoned transaction names.
fn orphans(node: &Node) -> Result<Vec<Object>> {
    let Some(id) = node.id() else { return Ok(Vec::new()) };
    let known = known(node)?;
    let mut found = Vec::new();
    for session in schroot::sessions()? {
        if session.starts_with("fs-") && schroot::is_of_node(&session, id)? {
            found.push(Object::Session { storage: "directory".to_owned(), name: session });
        }
    }
    for session in supervise::detect(node.layout()).sessions()? {
        found.push(Object::Programs { session });
    }
    for chroot in schroot::registered()?.into_iter().filter(|chroot| chroot.node == id) {
        found.push(Object::Chroot { name: chroot.name });
    }
    // Every backend, not only the one that is set now.
    for held in storage::holdings(&node.site())? {
        let name = || held.storage.to_owned();
        for volume in held.volumes.into_iter().filter(|volume| volume.mark.node == id) {
            found.push(Object::Volume { storage: name(), name: volume.name });
        }
        // A copy whose session schroot has forgotten.
        for copy in held.copies {
            found.retain(
                |object| !matches!(object, Object::Session { name, .. } if *name == copy.session),
            );
            found.push(Object::Session { storage: name(), name: copy.session });
        }
    }
    for work in file::names_in(&node.layout().works())? {
        found.push(Object::Path { path: node.layout().work(&work) });
    }
    found.retain(|object| !known.iter().any(|known| is_same(known, object)));
    found.sort_by_key(turn);
    Ok(found)
}

/// Processes go before their session, or they are started again; sessions before chroots and
/// volumes, which they use.
fn turn(object: &Object) -> u8 {
    match object {
        Object::Programs { .. } => 0,
        Object::Session { .. } => 1,
        Object::Chroot { .. } => 2,
        _ => 3,
    }
}

/// A session is told by its name: what schroot knows of it does not say its storage.
fn is_same(one: &Object, other: &Object) -> bool {
    match (one, other) {
        (Object::Session { name: one, .. }, Object::Session { name: other, .. }) => one == other,
        _ => one == other,
    }
}

fn known(node: &Node) -> Result<Vec<Object>> {
    let mut known = node.journaled()?;
    for app in node.apps()? {
        for release in &app.releases {
            known.push(Object::Volume {
                storage: release.storage.clone(),
                name: release.volume.clone(),
            });
            known
                .push(Object::Chroot { name: layout::release_chroot(&app.name, &release.version) });
        }
        known.extend(Object::serving(&app));
    }
    for environment in node.environments()? {
        known.extend(Object::of_environment(&environment));
    }
    Ok(known)
}
