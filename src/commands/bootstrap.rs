//! `farmctl bootstrap`: a minimal Debian environment on a volume, registered with schroot.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Context;
use crate::chroot::{self, Chroot};
use crate::debian::unpack::{self, Base};
use crate::debian::{self, Archive, Origin, pool};
use crate::error::{Exit, message, refuse};
use crate::file;
use crate::layout;
use crate::locked::{self, Fit, Network};
use crate::lockfile::Debian;
use crate::manifest::{InRelease, Package};
use crate::mount;
use crate::node::{self, Node, Object, Transaction};
use crate::plan::Plan;
use crate::profile::Environment;
use crate::release::EnvironmentRecord;
use crate::run;
use crate::schroot;
use crate::size::Size;
use crate::source::Source;
use crate::storage::{self, Access, Choice, Copies, Storage};
use crate::tarball;
use crate::ui;
use crate::undo;

/// Changes whenever this recipe makes another tree from the same inputs.
const RECIPE: u32 = 2;

/// Make a minimal Debian environment for a profile
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl bootstrap profiles/hello\n  farmctl bootstrap profiles/hello --offline\n\nIf farmctl.lock has the profile's Debian packages, they are what it is made of."
)]
pub struct Args {
    /// The profile: its file, or a directory with a profile.toml
    profile: PathBuf,
    /// Make it anew although nothing changed, from packages instead of the cache
    #[arg(long)]
    fresh: bool,
    /// Make it with debootstrap, which takes longer and makes the same
    #[arg(long)]
    debootstrap: bool,
    /// Make it of locked packages on this machine, with the network denied
    #[arg(long)]
    offline: bool,
    /// Storage backend for the environment's volume: auto, lvm-thin, lvm, btrfs, directory
    #[arg(long, value_name = "BACKEND", value_parser = super::parse_backend)]
    storage: Option<String>,
    /// Show what would be done, with the exact commands, and stop
    #[arg(long)]
    dry_run: bool,
}

/// What lies beside a cached tree.
#[derive(Serialize, Deserialize)]
struct Cached {
    epoch: i64,
    made: i64,
    releases: Vec<InRelease>,
}

struct Making {
    source: Source,
    archive: Archive,
    architecture: String,
    inputs: String,
    storage: Box<dyn Storage>,
    /// Why it is this one.
    why: String,
    /// Of the volume.
    size: Size,
    cached: Option<Cached>,
    /// What it is made of, unless that is what the mirror offers.
    lock: Option<Debian>,
    network: Network,
    /// Whether its base system is debootstrap's to make.
    debootstraps: bool,
}

/// Carries the verb out.
///
/// # Errors
/// When the environment cannot be made; nothing of it is left then.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    let node = if args.dry_run { node } else { node.settled()? };
    let mut tools = debian::TOOLS.to_vec();
    tools.extend(chroot::TOOLS);
    tools.extend(schroot::TOOLS);
    run::require(&tools)?;
    let making = prepare(args, &node, context)?;
    let name = &making.source.profile.name;
    let known = node.environment(name)?;
    if let Some(known) = known.as_ref().filter(|known| known.inputs == making.inputs && !args.fresh)
    {
        if known.storage == making.storage.name() && is_there(&making, &known.volume)? {
            context
                .ui
                .already(format!("environment {name} is there already, from the same inputs"));
            return Ok(Exit::Done);
        }
    }
    schroot::check_free(&layout::environment_chroot(name), node.id())?;
    if known.as_ref().is_none_or(|known| known.storage != making.storage.name()) {
        // Now, and not when all is made and the one before is gone.
        making.storage.check_new(&layout::environment_volume(name))?;
    }
    if args.dry_run {
        context.show_plan(&plan(&making)?);
        return Ok(Exit::Done);
    }
    let _lock = node.lock(&format!("env-{name}"), "bootstrap")?;
    mount::private_namespace()?;
    making.network.enforce()?;
    undo::attempt(&node, "bootstrap", name, |transaction| {
        make(&making, known.as_ref(), &node, context, transaction)
    })
    .with_context(|| format!("bootstrapping {name}"))?;
    context
        .ui
        .done(format!("bootstrapped {name}: {} {}", making.archive.suite, making.architecture));
    Ok(Exit::Done)
}

fn is_there(making: &Making, volume: &str) -> Result<bool> {
    Ok(making.storage.list()?.iter().any(|known| known.name == volume))
}

/// The locked packages, if they are to be followed.
fn lock_of(source: &Source, args: &Args, context: &Context) -> Result<Option<Debian>> {
    if args.offline {
        return locked::require(source).map(|lock| Some(lock.clone()));
    }
    match locked::fit(source)? {
        Fit::None => Ok(None),
        Fit::Whole(lock) => Ok(Some(lock.clone())),
        Fit::Stale => {
            context.ui.warn(format!(
                "the profile has changed since farmctl.lock was written, whose packages are not \
                 followed: farmctl lock {}",
                source.directory.display()
            ));
            Ok(None)
        }
    }
}

fn prepare(args: &Args, node: &Node, context: &Context) -> Result<Making> {
    let source = Source::read(&args.profile)?;
    let lock = lock_of(&source, args, context)?;
    let Choice { storage, why } = storage::choose(args.storage.as_deref(), &node.site())?;
    run::require(&storage.tools())?;
    storage.check()?;
    let size = source.profile.storage.volume_size.unwrap_or(node.settings().volume_size);
    let archive = Archive::of(&source.profile.environment)?;
    let architecture = debian::architecture()?;
    let debootstraps = args.debootstrap || !unpack::fits(&source.profile.environment);
    let inputs = inputs(&source, &archive, &architecture, lock.as_ref(), debootstraps)?;
    let record = node.layout().bootstrap_cache().join(format!("{inputs}.json"));
    let cached = match file::read_if_there(&record)? {
        // A record that cannot be read is a cache to be made again, no more.
        Some(text) if !args.fresh => serde_json::from_str(&text).ok(),
        _ => None,
    };
    Ok(Making {
        source,
        archive,
        architecture,
        inputs,
        storage,
        why,
        size,
        cached,
        lock,
        network: Network::of(args.offline),
        debootstraps,
    })
}

/// Hash of everything the tree is made from, but for the day's state of the mirror where
/// no lock says what it is.
fn inputs(
    source: &Source,
    archive: &Archive,
    architecture: &str,
    lock: Option<&Debian>,
    debootstraps: bool,
) -> Result<String> {
    let environment = &source.profile.environment;
    let mut all = serde_json::json!({
        "recipe": RECIPE,
        "debootstraps": debootstraps,
        "environment": environment,
        "sources": archive.sources(),
        "architecture": architecture,
        "debs": source.deb_hashes()?,
    });
    if let Some(lock) = lock {
        all["lock"] = locked::identity(lock).into();
    }
    Ok(crate::hash::sha256(all.to_string().as_bytes()))
}

fn plan(making: &Making) -> Result<Plan> {
    let name = &making.source.profile.name;
    let environment = &making.source.profile.environment;
    let volume = layout::environment_volume(name);
    let mut plan =
        Plan::new(format!("bootstrap {name} ({} {})", making.archive.suite, making.architecture));
    plan.commands(
        format!("make volume {volume}: {}, {}", making.storage.name(), making.why),
        making.storage.describe_create(&volume, making.size)?,
    );
    if making.cached.is_some() {
        plan.step("unpack the tree from the cache (--fresh makes it anew)");
    } else {
        let (tree, repository) = (Path::new("TREE"), Path::new("ARCHIVE"));
        let inside = |program: &str, arguments: &str| {
            chroot::invocation(tree, 0, program).args(arguments.split(' ')).display()
        };
        match (&making.lock, making.network) {
            (Some(_), Network::Allowed) => {
                plan.step("fetch the locked packages the pool lacks");
            }
            (Some(_), Network::Denied) => {
                plan.step("check that the pool has every locked package");
            }
            (None, _) => {
                let names = names(&making.archive).join(", ");
                plan.step(format!("fetch and verify the indexes of {names}"));
                plan.step(format!(
                    "resolve the packages; fetch from {} those the pool lacks",
                    making.archive.mirror
                ));
            }
        }
        plan.step("make an archive of them");
        if making.debootstraps {
            let epoch = making.lock.as_ref().map_or(0, |lock| lock.epoch);
            let call = debian::debootstrap(environment, tree, epoch, repository);
            plan.commands("bootstrap", vec![call.display()]);
        } else {
            plan.commands(
                "unpack the base system, side by side (--debootstrap lets debootstrap do it)",
                unpack::calls().iter().map(|arguments| inside("dpkg", arguments)).collect(),
            );
        }
        let mut commands = vec![inside("apt-get", "update")];
        let packages = debian::extra_packages(environment);
        if !packages.is_empty() {
            commands.push(inside("apt-get", &format!("install {}", packages.join(" "))));
        }
        for deb in &environment.debs {
            commands.push(inside("apt-get", &format!("install ./{}", deb.display())));
        }
        commands.push(inside(
            "useradd",
            &format!("--create-home --skel /etc/skel {}", environment.user),
        ));
        plan.commands("apt sources with updates and security, packages, user", commands);
        plan.step("clean up and keep the tree in the cache");
    }
    plan.step(format!("register {} with schroot", layout::environment_chroot(name)));
    Ok(plan)
}

fn names(archive: &Archive) -> Vec<String> {
    archive.suites().into_iter().map(|(suite, _)| suite).collect()
}

fn make(
    making: &Making,
    known: Option<&EnvironmentRecord>,
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<()> {
    let name = &making.source.profile.name;
    let storage = making.storage.as_ref();
    let stage = layout::stage_volume(transaction.id());
    let staged = Object::Volume { storage: storage.name().to_owned(), name: stage.clone() };
    transaction.intend(staged.clone())?;
    storage.create(&stage, making.size, &transaction.mark())?;
    let tree = storage.open(&stage, Access::ReadWrite)?;
    let cache = node.layout().bootstrap_cache();
    let saved = cache.join(format!("{}.tar", making.inputs));
    let restored = match &making.cached {
        Some(cached) => restore(cached, &saved, tree.path(), context)?,
        None => false,
    };
    let cached = match &making.cached {
        Some(cached) if restored => Cached { releases: cached.releases.clone(), ..*cached },
        _ => build(making, tree.path(), node, context, transaction)?,
    };
    tree.close()?;
    storage.seal(&stage, Access::ReadOnly)?;

    let volume = layout::environment_volume(name);
    let chroot = layout::environment_chroot(name);
    if let Some(known) = known {
        context.ui.step("replacing the environment made before");
        node.forget_environment(name)?;
        // Not always on the storage the new one is on.
        let is_volume = |object: &Object| matches!(object, Object::Volume { .. });
        let before: Vec<Object> =
            Object::of_environment(known).into_iter().filter(is_volume).collect();
        before.iter().try_for_each(|volume| transaction.intend(volume.clone()))?;
        before.iter().try_for_each(|volume| undo::remove(volume, node))?;
    }
    super::intend_volume(storage, &volume, transaction)?;
    storage.rename(&stage, &volume)?;
    transaction.release(&staged)?;
    transaction.intend(Object::Chroot { name: chroot.clone() })?;
    schroot::register(&schroot::Definition {
        name: chroot,
        description: format!("farmctl environment {name}: Debian {}", making.archive.suite),
        stanza: storage
            .stanza(&volume, Copies::of(&making.source.profile.storage, node.settings()))?,
        fstab: schroot::source_fstab(),
        grants: making.source.profile.schroot.clone(),
        source_clone: true,
        node: transaction.mark().node,
        transaction: transaction.id().to_owned(),
    })?;
    node.save_environment(&EnvironmentRecord {
        schema: crate::release::SCHEMA,
        name: name.clone(),
        inputs: making.inputs.clone(),
        storage: storage.name().to_owned(),
        volume,
        suite: making.archive.suite.clone(),
        architecture: making.architecture.clone(),
        epoch: cached.epoch,
        releases: cached.releases,
        locked: making.lock.as_ref().map(locked::identity).unwrap_or_default(),
        made: cached.made,
        kept: Vec::new(),
    })
}

/// Unpacks a cached tree; `false` if the cache turns out to be damaged, and it is then
/// made again.
fn restore(cached: &Cached, saved: &Path, tree: &Path, context: &Context) -> Result<bool> {
    let Ok(file) = File::open(saved) else { return Ok(false) };
    let made =
        jiff::Timestamp::from_second(cached.made).map(|time| time.strftime("%F").to_string());
    context.ui.step(format!(
        "unpacking the tree made on {} from the cache (--fresh makes it anew)",
        made.unwrap_or_else(|_| "an unknown day".to_owned())
    ));
    let meter = context.ui.meter("unpacking");
    let restored = tarball::restore_tree(&file, tree, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    });
    drop(meter);
    match restored {
        Ok(()) => Ok(true),
        Err(error) => {
            run::check_interrupted()?;
            if crate::error::is_no_space(&error) {
                return Err(error);
            }
            context
                .ui
                .warn(format!("the cache is damaged and is made again ({})", message(&error)));
            for name in file::names_in(tree)? {
                storage::remove_tree(&tree.join(name))?;
            }
            Ok(false)
        }
    }
}

/// Makes the tree and keeps a copy in the cache.
fn build(
    making: &Making,
    tree: &Path,
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<Cached> {
    let work = locked::work(node.layout(), transaction)?;
    let lock = match &making.lock {
        Some(lock) => {
            fetch_locked(making, lock, &work, context, transaction)?;
            lock
        }
        None => &resolve(making, &work, context, transaction)?,
    };
    fill(making, lock, tree, &work, context)?;
    context.ui.step("cleaning up");
    debian::clean(tree)?;
    storage::remove_tree(&work)?;
    let cached = Cached { epoch: lock.epoch, made: node::now(), releases: lock.releases.clone() };
    keep(&cached, making, tree, node, context, transaction)?;
    Ok(cached)
}

/// What the mirror offers today, as if it had been locked, in the pool.
fn resolve(
    making: &Making,
    work: &Path,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<Debian> {
    let ui = &context.ui;
    let Making { source, archive, architecture, .. } = making;
    ui.step(format!("reading the indexes of {}", names(archive).join(", ")));
    // Their signatures, with more to say about what is wrong than apt has.
    let indexes = debian::fetch_indexes(archive, work)?;
    if archive.security.is_none() && indexes.len() > 1 {
        ui.warn("no mirror for security updates is known: set environment.security-mirror");
    }
    let apt = locked::read_archive(source, archive, architecture, &[], &[], work)?;
    let (lock, offers) = locked::resolve(source, archive, &apt, false, work)?;
    let pool = locked::pool(&context.layout, &archive.suite, architecture);
    let say = |count| {
        let packages = ui::count(count, "package");
        ui.step(format!("fetching {packages} from {}", archive.mirror));
    };
    let meter = ui.meter("fetching");
    let set = |done, all| meter.set(done, all);
    locked::fill_resolved(&lock, &offers, &pool, &apt, transaction, &say, &set)?;
    Ok(lock)
}

/// Sees to it that the locked packages are in the pool.
fn fetch_locked(
    making: &Making,
    lock: &Debian,
    work: &Path,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<()> {
    let ui = &context.ui;
    let Making { source, archive, architecture, .. } = making;
    let pool = locked::pool(&context.layout, &archive.suite, architecture);
    ui.step(format!("looking for {} locked packages in the pool", lock.packages.len()));
    let apt = || {
        ui.step(format!("fetching what it lacks from {}", archive.mirror));
        locked::read_archive(source, archive, architecture, &[], &[], work)
    };
    let meter = ui.meter("fetching");
    let set = |done, all| meter.set(done, all);
    locked::fill(lock, source, &pool, making.network, &apt, transaction, &set)
}

/// Makes the tree of packages in the pool, and nothing else.
fn fill(making: &Making, lock: &Debian, tree: &Path, work: &Path, context: &Context) -> Result<()> {
    let ui = &context.ui;
    let Making { source, archive, architecture, .. } = making;
    let environment = &source.profile.environment;
    let suite = &archive.suite;
    let pool = locked::pool(&context.layout, suite, architecture);
    let repository = locked::publish(lock, &pool, suite, architecture, work)?;
    let base = if making.debootstraps {
        ui.step(format!("debootstrapping {suite}"));
        let call = debian::debootstrap(environment, tree, lock.epoch, &repository);
        let spinner = ui.spinner("debootstrap");
        debian::run_debootstrap(&call, tree, |line| spinner.show(line))?;
        None
    } else {
        let base = pool::base_files(lock, &repository);
        ui.step(format!("unpacking the base system of {suite}: {} packages", base.len()));
        Some(Base::extract(tree, base)?)
    };
    let mut chroot = Chroot::enter(tree, lock.epoch)?;
    pool::lend(&mut chroot, &repository, suite)?;
    if let Some(base) = base {
        ui.step("configuring it");
        let spinner = ui.spinner("dpkg");
        base.configure(&chroot, pool::inside, |line| spinner.show(line))?;
    }
    let installed = configure(making, chroot, context)?;
    if making.lock.is_some() {
        return locked::compare_installed(lock, source, &installed);
    }
    match locked::difference(lock, source, &installed)? {
        None => Ok(()),
        Some(difference) => refuse(
            format_args!("the tree is not what was resolved: {difference}"),
            "does bootstrap --debootstrap get further?",
        ),
    }
}

/// Installs what the profile asks for and makes its user; answers what is installed then.
fn configure(making: &Making, mut chroot: Chroot, context: &Context) -> Result<Vec<Package>> {
    let ui = &context.ui;
    let environment: &Environment = &making.source.profile.environment;
    debian::write_sources(&chroot, &making.archive, environment)?;
    let apt_get = |arguments: &[&str]| debian::apt_get(&chroot, Origin::Lock, arguments);
    // There is one version of each, so nothing to upgrade.
    apt_get(&["update"]).run()?;
    let extra = debian::extra_packages(environment);
    if !extra.is_empty() {
        ui.step(format!("installing {}", extra.join(", ")));
        let spinner = ui.spinner("apt-get");
        let call = apt_get(&["install"]).args(&extra);
        debian::install(&call, "environment.packages", &|line| spinner.show(line))?;
    }
    if !environment.debs.is_empty() {
        let mut paths = Vec::new();
        for deb in &environment.debs {
            let name = deb.file_name().unwrap_or_default().to_string_lossy();
            paths.push(chroot.lend(&making.source.directory.join(deb), &name)?);
        }
        ui.step("installing local packages");
        let call = debian::apt_get(&chroot, Origin::Lock, &["install"]).args(&paths);
        let spinner = ui.spinner("apt-get");
        debian::install(&call, "environment.debs", &|line| spinner.show(line))
            .context("installing local packages")?;
    }
    debian::localize(&chroot, environment)?;
    ui.step(format!("making the user {}", environment.user));
    debian::useradd(&chroot, &environment.user).run()?;
    debian::apt_get(&chroot, Origin::Lock, &["autoremove", "--purge"]).run()?;
    let installed = debian::installed_packages(&chroot)?;
    chroot.leave()?;
    Ok(installed)
}

/// Keeps a copy of the tree in the cache: the tar first, its record last.
fn keep(
    cached: &Cached,
    making: &Making,
    tree: &Path,
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<()> {
    let directory = node.layout().bootstrap_cache();
    file::make_directory(&directory, 0o755)?;
    let temporary = directory.join(format!(".{}.{}", making.inputs, transaction.id()));
    transaction.intend(Object::Path { path: temporary.clone() })?;
    context.ui.step("keeping the tree in the cache");
    let mut out =
        File::create(&temporary).with_context(|| format!("making {}", temporary.display()))?;
    let meter = context.ui.meter("packing");
    tarball::save_tree(tree, &mut out, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    })?;
    let saved = directory.join(format!("{}.tar", making.inputs));
    std::fs::rename(&temporary, &saved).with_context(|| format!("keeping {}", saved.display()))?;
    transaction.release(&Object::Path { path: temporary })?;
    let text = serde_json::to_vec_pretty(cached).context("writing the cache's record")?;
    file::publish(&directory.join(format!("{}.json", making.inputs)), &text, 0o644)
}
