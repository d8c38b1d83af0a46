//! `farmctl bake`: an environment and a project become one node tarball.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::baking::{self, Baking, Found};
use super::{Context, SigningKey};
use crate::debian::{self, Archive as Mirror, apt};
use crate::error::{Exit, Mark as _};
use crate::kept::Step;
use crate::layout::START_SCRIPT;
use crate::locked::{self, Network};
use crate::manifest;
use crate::mount;
use crate::node::{Node, Object};
use crate::plan::Plan;
use crate::profile::When;
use crate::python::Choice;
use crate::run;
use crate::signature::Signature;
use crate::source::Source;
use crate::storage;
use crate::tarball::Archive;
use crate::ui;
use crate::undo;

/// Build a project into its environment and pack both as one node tarball
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl bake profiles/hello --output /srv/tarballs\n  farmctl bake profiles/hello --locked\n  farmctl bake profiles/hello --set-version 1.0.1 --serial 17 --sign"
)]
pub struct Args {
    /// The profile: its file, or a directory with a profile.toml
    profile: PathBuf,
    /// Directory the tarball is written to
    #[arg(long, value_name = "DIR", default_value = ".")]
    output: PathBuf,
    /// Bake as this version instead of the profile's
    #[arg(long, value_name = "VERSION")]
    set_version: Option<String>,
    /// Number that only rises from release to release: nodes refuse to go back
    #[arg(long, value_name = "N")]
    serial: Option<u64>,
    /// Last day on which it may be installed: 2027-01-31
    #[arg(long, value_name = "DATE", value_parser = parse_expires)]
    expires: Option<String>,
    /// Sign it with this machine's key, or the one of --key
    #[arg(long)]
    sign: bool,
    #[command(flatten)]
    key: SigningKey,
    /// Refuse whatever is not as in farmctl.lock: environment, requirements, mirror
    #[arg(long)]
    locked: bool,
    /// Build of what is locked and on this machine, with the network denied
    #[arg(long, conflicts_with = "locked")]
    offline: bool,
    /// If a step of the build fails, keep the tree as it is then, for a look
    #[arg(long)]
    keep: bool,
    /// Bake again although a tarball of the same inputs is there, and take nothing earlier bakes kept
    #[arg(long)]
    fresh: bool,
    /// Show what would be done, with the exact commands, and stop
    #[arg(long)]
    dry_run: bool,
}

/// What `--expires` takes.
fn parse_expires(text: &str) -> Result<String, String> {
    let wrong = |_| "it is neither a date, 2027-01-31, nor an RFC 3339 time".to_owned();
    manifest::parse_expiry(text).map(|_| text.to_owned()).map_err(wrong)
}

/// Carries the verb out; prints the tarball's path.
///
/// # Errors
/// When a step of the build fails; nothing of it is left then.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    run::require(&crate::chroot::TOOLS)?;
    let mut source = Source::read(&args.profile)?;
    if let Some(version) = &args.set_version {
        source.profile.set_version(version)?;
    }
    if args.locked && !args.dry_run {
        compare_mirror(&source, &node, context)?;
    }
    let baking = prepare(args, source, &node, context)?;
    let profile = &baking.source.profile;
    let what = format!("{} {}", profile.name, profile.version);
    if !args.fresh && is_baked(&baking)? {
        sign_baked(&baking, &node, context)?;
        context.ui.already(format!("{what} is baked already, from the same inputs"));
        context.ui.answer(baking.out.display().to_string());
        return Ok(Exit::Done);
    }
    if args.dry_run {
        context.show_plan(&plan(&baking)?);
        return Ok(Exit::Done);
    }
    let _lock = node.lock(&format!("env-{}", profile.name), "bake")?;
    super::check_unchanged(&baking.environment, &node)?;
    mount::private_namespace()?;
    baking.network.enforce()?;
    let packed = undo::attempt_unless(
        &node,
        "bake",
        &profile.name,
        &|error| baking.keeps(error),
        |transaction| baking::bake(&baking, &node, context, transaction),
    )
    .inspect_err(|error| {
        if baking.keeps(error) {
            let name = &profile.name;
            context.ui.warn(format!(
                "the tree is kept: farmctl shell {name} --kept enters it, farmctl gc removes it"
            ));
        }
    })
    .with_context(|| format!("baking {what}"))?;
    context.ui.done(format!(
        "baked {what}: {} of {}, sha256 {}",
        ui::size(packed.size),
        ui::size(packed.manifest.payload.content),
        &packed.identity[..12]
    ));
    context.ui.answer(baking.out.display().to_string());
    Ok(Exit::Done)
}

fn prepare(args: &Args, source: Source, node: &Node, context: &Context) -> Result<Baking> {
    let wanted = args.sign || args.key.key.is_some();
    let key = if wanted { Some(args.key.load(context)?) } else { None };
    let directory = args
        .output
        .canonicalize()
        .with_context(|| format!("finding the output directory {}", args.output.display()))
        .hint_with(|| format!("mkdir -p {}", args.output.display()))?;
    let strict = args.locked || args.offline;
    let mut baking = Baking::of(source, &directory, strict, Network::of(args.offline), node)?;
    baking.key = key;
    baking.reuse = !args.fresh;
    baking.keeps_trees = true;
    baking.keep = args.keep;
    baking.serial = args.serial;
    baking.expires.clone_from(&args.expires);
    Ok(baking)
}

/// Whether the tarball is there and was made from the same inputs. What cannot be read
/// is baked again.
fn is_baked(baking: &Baking) -> Result<bool> {
    let Ok(archive) = Archive::open(&baking.out) else { return Ok(false) };
    let known = archive.manifest();
    let lock = baking.source.lock.as_ref().map_or("", |(_, sha256)| sha256);
    Ok(known.farmctl == env!("CARGO_PKG_VERSION")
        && known.profile == baking.source.profile
        && (known.serial, &known.expires) == (baking.serial, &baking.expires)
        && known.inputs.releases == baking.environment.releases
        && known.inputs.lock_sha256 == lock
        && known.inputs.packages_sha256 == baking.environment.locked
        && known.inputs.project_sha256 == baking.source.project_hash()?)
}

/// Signs what is baked already, unless it is by this key.
fn sign_baked(baking: &Baking, node: &Node, context: &Context) -> Result<()> {
    let Some(key) = &baking.key else { return Ok(()) };
    let archive = super::open_archive(&baking.out)?;
    let signature = archive.signature().and_then(|text| Signature::parse(text).ok());
    if signature.is_some_and(|one| key.public().verifies(archive.manifest_bytes(), &one)) {
        return Ok(());
    }
    undo::attempt(node, "bake", &baking.source.profile.name, |transaction| {
        let part = baking.out.with_extension("xz.part");
        transaction.intend(Object::Path { path: part.clone() })?;
        super::write_signed(&archive, key, &part)?;
        baking::publish(&part, &baking.out)
    })?;
    context.ui.step(format!("signed with {}", key.public().id()));
    Ok(())
}

/// Refuses if the mirror is older than the lock, or offers other packages than are locked.
fn compare_mirror(source: &Source, node: &Node, context: &Context) -> Result<()> {
    let lock = locked::require(source)?;
    let archive = Mirror::of(&source.profile.environment)?;
    context.ui.step(format!("comparing {} with farmctl.lock", archive.mirror));
    undo::attempt(node, "bake", &source.profile.name, |transaction| {
        let work = locked::work(node.layout(), transaction)?;
        let architecture = debian::architecture()?;
        let read = || locked::read_archive(source, &archive, &architecture, &[], &[], &work);
        // The profile's own sources have keys of their own, which apt knows to find.
        let plain = source.profile.environment.apt_sources.is_empty();
        let apt = if plain { None } else { Some(read()?) };
        let offered = match &apt {
            None => debian::fetch_indexes(&archive, &work)?,
            Some(apt) => apt.releases(&archive)?,
        };
        locked::refuse_older(lock, &offered)?;
        if offered != lock.releases {
            let apt = apt.map_or_else(read, Ok)?;
            let moved = apt.moved(&lock.packages.iter().collect::<Vec<_>>())?;
            apt::refuse_moved(&moved, &locked::update(source))?;
        }
        storage::remove_tree(&work)
    })
}

fn plan(baking: &Baking) -> Result<Plan> {
    let profile = &baking.source.profile;
    let tree = Path::new("TREE");
    let inside = |program: &str| crate::chroot::invocation(tree, baking.environment.epoch, program);
    let mut plan = Plan::new(format!("bake {} {}", profile.name, profile.version));
    let Found { kept, said } = baking::find(baking)?;
    let done = kept.as_ref().map(|kept| kept.step);
    let from = baking.begins_with(kept.as_ref());
    let (storage, stage) = (baking.storage.as_ref(), "fv-stage-…");
    let commands = match baking.keep {
        true => storage.describe_fork(from, stage)?,
        false => storage.describe_layer(from, stage)?,
    };
    plan.commands(format!("fork volume {from}"), commands);
    for line in said {
        plan.step(line);
    }
    let mut packages = baking.build_packages();
    packages.retain(|_| done < Some(Step::Packages));
    if !packages.is_empty() && baking.lock.is_some() {
        plan.step("make an archive of the locked packages, if the environment is of them");
    }
    if !packages.is_empty() {
        let install = inside("apt-get").arg("install").args(&packages).display();
        plan.commands("install the build packages", vec![install]);
    }
    plan.step(format!("copy the project {} in", baking.source.directory.display()));
    if !profile.build.before.is_empty() {
        plan.commands("run the steps of build.before", profile.build.before.clone());
    }
    if let (Some(python), Some(choice)) = (&profile.python, &baking.choice) {
        let with = match choice {
            Choice::Pip => "pip",
            Choice::Uv(_) | Choice::FetchUv => "uv",
        };
        let venv = inside(&python.interpreter)
            .args(["-m", "venv", "--without-pip"])
            .arg(profile.virtualenv());
        let is_filled = done >= Some(Step::Requirements);
        if !is_filled {
            plan.commands("make the virtualenv", vec![venv.display()]);
        }
        if let Some(file) = python.requirements.as_ref().filter(|_| !is_filled) {
            plan.step(format!("install {} with {with}, by hash", file.display()));
        }
        if let Some(project) = &python.project {
            plan.step(format!("install the project {project} with {with}"));
        }
    }
    for copied in &profile.copies {
        plan.step(format!("copy {} to {}", copied.from.display(), copied.to.display()));
    }
    for rendered in &profile.files {
        plan.step(format!("render {}", rendered.path.display()));
    }
    plan.step(format!("write the start script {START_SCRIPT}"));
    for job in profile.jobs.iter().filter(|job| job.when == When::Bake) {
        plan.commands(format!("run the job {}", job.name), vec![job.command.clone()]);
    }
    plan.step("purge the build packages, clean up");
    plan.step(format!("pack {}", baking.out.display()));
    if let Some(key) = &baking.key {
        plan.step(format!("sign it with {}", key.public().id()));
    }
    Ok(plan)
}
