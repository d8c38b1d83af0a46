//! `farmctl verify`: is a tarball whole, is an installed release what was installed?

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use schemars::JsonSchema;
use serde::Serialize;

use super::baking::{self, Baking};
use super::comparison::{render, side};
use super::{Context, Started};
use crate::diff::{self, Diff};
use crate::error::{Exit, Mark as _, refuse};
use crate::file;
use crate::locked::Network;
use crate::manifest::{FileIndex, Manifest, Owner};
use crate::mount;
use crate::node::Object;
use crate::parallel;
use crate::run;
use crate::schroot;
use crate::session;
use crate::source::Source;
use crate::storage::{self, Access};
use crate::tarball::{self, Archive, Difference};
use crate::trust::{self, Standing};
use crate::ui;
use crate::undo;

/// How many differences are printed before the rest is counted.
const SHOWN: usize = 50;

/// Check a node tarball, or an installed release against its file index
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl verify hello_1.0.0_amd64.tar.xz\n  farmctl verify hello\n  farmctl verify hello --session\n  farmctl verify hello_1.0.0_amd64.tar.xz --rebuild=profiles/hello\n\nExits 3 when it is not right."
)]
pub struct Args {
    /// A node tarball, or the name of an installed application
    what: String,
    /// The release of the application instead of the current one
    #[arg(long, value_name = "VERSION")]
    release: Option<String>,
    /// Compare the running session instead: what was written in it since it began
    #[arg(long, conflicts_with = "release")]
    session: bool,
    /// Bake a tarball again, of what it was baked from, and compare: the project's
    /// files are those of this profile [default: .]
    #[arg(
        long,
        value_name = "PROFILE",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ".",
        conflicts_with_all = ["release", "session"]
    )]
    rebuild: Option<PathBuf>,
    /// Print the differences as JSON
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Printed {
    /// How the tree differs from what was installed; nothing for a tarball, which is whole.
    Compared(Vec<Difference>),
    /// With `--rebuild`: how the new tarball differs from the one that was given.
    Rebuilt(Diff),
}

/// Carries the verb out.
///
/// # Errors
/// With [`Exit::NotRight`] when the tarball is damaged; when there is nothing to look at.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let path = Path::new(&args.what);
    if path.is_file() || args.what.contains(['/', '_']) {
        let exit = verify_file(path, context)?;
        if let Some(profile) = &args.rebuild {
            return rebuild(path, profile, args, context);
        }
        if args.json {
            context.ui.json(&Printed::Compared(Vec::new()));
        }
        return Ok(exit);
    }
    if args.rebuild.is_some() {
        return refuse(
            format_args!("{} is no node tarball", args.what),
            "--rebuild bakes a tarball again: farmctl verify FILE --rebuild=PROFILE",
        )
        .exit(Exit::Usage);
    }
    if args.session {
        return verify_session(args, context);
    }
    verify_release(args, context)
}

fn verify_file(path: &Path, context: &Context) -> Result<Exit> {
    if !path.exists() {
        return super::open_archive(path).map(|_| Exit::Done);
    }
    let check = || -> Result<(String, Standing)> {
        let keys = trust::keys(&context.layout)?;
        let archive = Archive::open(path)?;
        let standing = trust::require(&keys, archive.manifest_bytes(), archive.signature())
            .with_context(|| format!("verifying {}", path.display()))?;
        let threads = parallel::processors();
        let meter = context.ui.meter("verifying");
        archive.verify(threads, &|done, all| {
            meter.set(done, all);
            run::check_interrupted()
        })?;
        Ok((archive.identity().to_owned(), standing))
    };
    let checked = check();
    run::check_interrupted()?;
    let (identity, standing) = checked.hint(super::DAMAGED).exit(Exit::NotRight)?;
    let signed = match standing {
        Standing::Unsigned => String::new(),
        standing => format!(" and {standing}"),
    };
    context.ui.done(format!("{} is whole{signed}: sha256 {identity}", path.display()));
    Ok(Exit::Done)
}

/// Bakes a tarball again and says what differs, by whose it is.
fn rebuild(path: &Path, profile: &Path, args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    run::require(&crate::chroot::TOOLS)?;
    let what = path.display().to_string();
    let before = super::read_release(&what, context)?;
    let mut source = Source::read(profile)?;
    if source.profile.name != before.manifest.name {
        return refuse(
            format_args!("that profile is of {}", source.profile.name),
            format!("--rebuild=PROFILE is the profile {} was baked from", before.manifest.name),
        )
        .exit(Exit::Usage);
    }
    // Its own, with the version and the templates it had.
    source.profile = before.manifest.profile.clone();
    let name = before.manifest.name.clone();
    let _lock = node.lock(&format!("env-{name}"), "verify")?;
    mount::private_namespace()?;
    let after = undo::attempt(&node, "verify", &name, |transaction| {
        let out = node.layout().works().join(format!("{}.rebuilt", transaction.id()));
        transaction.intend(Object::Path { path: out.clone() })?;
        file::make_directory(&out, 0o700)?;
        let mut baking = Baking::of(source, &out, false, Network::Allowed, &node)?;
        // Also that the encoder gives the same bytes again is to be shown.
        baking.reuse = false;
        baking.serial = before.manifest.serial;
        baking.expires.clone_from(&before.manifest.expires);
        baking::bake(&baking, &node, context, transaction)?;
        let after = super::read_release(&baking.out.display().to_string(), context)?;
        storage::remove_tree(&out)?;
        Ok(after)
    })
    .with_context(|| format!("baking {name} {} again", before.manifest.version))?;
    let diff = diff::compare(side(&before), side(&after));
    if args.json {
        context.ui.json(&Printed::Rebuilt(diff.clone()));
    }
    if before.identity == after.identity {
        context
            .ui
            .done(format!("baked again, {what} has the same bytes: sha256 {}", after.identity));
        return Ok(Exit::Done);
    }
    if !args.json {
        context.ui.answer(render(&diff, false, context.ui.width()).trim_end());
    }
    context.ui.warn(format!(
        "baked again, {what} has other bytes: sha256 {} → {}",
        before.identity, after.identity
    ));
    Ok(Exit::NotRight)
}

fn verify_release(args: &Args, context: &Context) -> Result<Exit> {
    super::check_name(&args.what)?;
    let node = context.node()?;
    let app = node.installed(&args.what)?;
    let version = super::installed_version(&app, args.release.as_deref())?;
    let release = app.release(&version).context("looking for the release")?;
    let manifest = super::manifest_of(&node, &app, &version)?;
    let index = super::index_of(&node, &app, &version)?;
    mount::private_namespace()?;
    let tree =
        storage::named(&release.storage, &node.site())?.open(&release.volume, Access::ReadOnly)?;
    let differences = compare(tree.path(), &manifest, &index, context)?;
    tree.close()?;
    let what = format!("{} {version}", app.name);
    if report(&differences, args, context) {
        let derived = manifest
            .derived
            .as_ref()
            .map(|it| format!(", derived from {} by installing {}", it.from, it.by.join(", ")));
        let (paths, derived) = (ui::count(index.files.len(), "path"), derived.unwrap_or_default());
        context.ui.done(format!("{what} is as installed: {paths}{derived}"));
        return Ok(Exit::Done);
    }
    context.ui.warn(format!(
        "{what} differs from what was installed in {}",
        count_by_owner(&differences)
    ));
    Ok(Exit::NotRight)
}

/// Compares the running session's own file system, and nothing mounted in it, with the
/// index of its release.
fn verify_session(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let Started { app, session, manifest } = super::started(&node, &args.what)?;
    let index = super::index_of(&node, &app, &session.version)?;
    if !schroot::is_live(&session.name)? {
        return refuse(
            format_args!("session {} is not mounted", session.name),
            "farmctl tend brings it back",
        );
    }
    mount::private_namespace()?;
    let meter = context.ui.meter("comparing");
    let differences =
        session::compare(node.layout(), &session, &manifest, &index, &|done, all| {
            meter.set(done, all);
            run::check_interrupted()
        })?;
    drop(meter);
    let what = format!("session {} of {}", session.name, app.name);
    if report(&differences, args, context) {
        context.ui.done(format!("{what} is as its release {}", session.version));
        return Ok(Exit::Done);
    }
    let edited = session.edited.as_ref().map(|edited| {
        let count = ui::count(edited.paths.len(), "path");
        format!("; farmctl dev has {count} as in {}", edited.project.display())
    });
    context.ui.warn(format!(
        "{what} differs from its release {} in {}{}",
        session.version,
        count_by_owner(&differences),
        edited.unwrap_or_default()
    ));
    Ok(Exit::NotRight)
}

fn compare(
    tree: &Path,
    manifest: &Manifest,
    index: &FileIndex,
    context: &Context,
) -> Result<Vec<Difference>> {
    let meter = context.ui.meter("comparing");
    tarball::compare(tree, index, &manifest.capabilities, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    })
}

/// Prints the differences; answers whether there are none.
fn report(differences: &[Difference], args: &Args, context: &Context) -> bool {
    if args.json {
        context.ui.json(&Printed::Compared(differences.to_vec()));
    } else {
        for difference in differences.iter().take(SHOWN) {
            context.ui.answer(describe(difference));
        }
        if differences.len() > SHOWN {
            context.ui.answer(format!("… and {} more", differences.len() - SHOWN));
        }
    }
    differences.is_empty()
}

/// `5 paths: package openssl 2, project 1, not of the release 2`.
fn count_by_owner(differences: &[Difference]) -> String {
    let mut counts: BTreeMap<Option<&Owner>, usize> = BTreeMap::new();
    for difference in differences {
        *counts.entry(difference.owner()).or_default() += 1;
    }
    let mut words: Vec<String> = Vec::new();
    // What nobody owns comes last.
    let (none, some): (Vec<_>, Vec<_>) = counts.into_iter().partition(|(owner, _)| owner.is_none());
    for (owner, count) in some.into_iter().chain(none) {
        let whose = owner.map_or_else(|| "not of the release".to_owned(), diff::describe);
        words.push(format!("{whose} {count}"));
    }
    format!("{}: {}", ui::count(differences.len(), "path"), words.join(", "))
}

fn describe(difference: &Difference) -> String {
    let of = |owner: &Owner| match owner {
        Owner::Generated => String::new(),
        owner => format!(" ({})", diff::describe(owner)),
    };
    let line = crate::ui::one_line;
    match difference {
        Difference::Missing { path, owner } => format!("missing     /{}{}", line(path), of(owner)),
        Difference::Unexpected { path } => format!("unexpected  /{}", line(path)),
        Difference::Changed { path, what, owner } => {
            format!("changed     /{}: {what}{}", line(path), of(owner))
        }
    }
}
