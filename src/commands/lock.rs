//! `farmctl lock`: resolves what a profile asks for, Debian packages and Python
//! distributions, and writes `farmctl.lock` beside it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::Context;
use crate::debian::apt::Apt;
use crate::debian::{self, Archive, Pool};
use crate::error::{Exit, Mark as _, message, refuse};
use crate::file;
use crate::locked::{self, Fit, Network};
use crate::lockfile::{self, Deb, Debian, LockFile, Locked, Python};
use crate::mount;
use crate::node::{Node, Object, Transaction};
use crate::plan::Plan;
use crate::python::{self, Choice, Installer, build};
use crate::release::EnvironmentRecord;
use crate::run;
use crate::source::Source;
use crate::stage::{self, Stage, built_project};
use crate::storage;
use crate::ui;
use crate::undo;

/// Write farmctl.lock: every package and distribution of a profile, by hash
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  farmctl lock profiles/hello\n  farmctl lock profiles/hello --update\n  farmctl lock profiles/hello --update openssl libssl3\n\nWithout --update, what is locked stays and what is missing is added."
)]
pub struct Args {
    /// The profile: its file, or a directory with a profile.toml
    profile: PathBuf,
    /// Packages and distributions that --update moves, instead of all
    #[arg(value_name = "PACKAGE", requires = "update")]
    packages: Vec<String>,
    /// Move on to what mirror and index offer now, and show what changed
    #[arg(long)]
    update: bool,
    /// Show what would be done and stop
    #[arg(long)]
    dry_run: bool,
}

/// What may get another version.
enum Moves {
    Nothing,
    All,
    These(Vec<String>),
}

impl Moves {
    fn of(args: &Args, lock: Option<&LockFile>, directory: &Path) -> Result<Self> {
        if !args.update {
            return Ok(Self::Nothing);
        }
        if args.packages.is_empty() {
            return Ok(Self::All);
        }
        let Some(lock) = lock else {
            return refuse(
                "there is no farmctl.lock yet",
                format!("farmctl lock {}", directory.display()),
            )
            .exit(Exit::Usage);
        };
        let unknown: Vec<&str> = args
            .packages
            .iter()
            .map(String::as_str)
            .filter(|name| {
                let python = distributions(lock).chain(build_distributions(lock));
                !packages(lock).chain(python).any(|(one, _)| one == *name)
            })
            .collect();
        if unknown.is_empty() {
            return Ok(Self::These(args.packages.clone()));
        }
        refuse(
            format_args!("farmctl.lock has no {}", unknown.join(", ")),
            "PACKAGE is a name in farmctl.lock, of a Debian package or a distribution",
        )
        .exit(Exit::Usage)
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::These(names) => names.iter().any(|one| one == name),
        }
    }
}

/// Debian packages of a lock with their versions.
fn packages(lock: &LockFile) -> impl Iterator<Item = (&str, &str)> {
    lock.debian.packages.iter().map(|deb| (deb.name.as_str(), deb.version.as_str()))
}

/// Python distributions of a lock with their versions.
fn distributions(lock: &LockFile) -> impl Iterator<Item = (&str, &str)> {
    lock.python.iter().flat_map(|python| &python.distributions).map(named)
}

/// Those a build takes.
fn build_distributions(lock: &LockFile) -> impl Iterator<Item = (&str, &str)> {
    lock.python.iter().flat_map(|python| &python.build).map(named)
}

fn named(one: &Locked) -> (&str, &str) {
    (one.name.as_str(), one.version.as_str())
}

struct Locking<'a> {
    source: Source,
    environment: EnvironmentRecord,
    archive: Archive,
    pool: Pool,
    choice: Option<Choice>,
    moves: Moves,
    node: &'a Node,
    context: &'a Context,
}

/// Carries the verb out.
///
/// # Errors
/// When something cannot be resolved; an existing lock file is then as it was.
pub fn run(args: &Args, context: &Context) -> Result<Exit> {
    let node = context.node()?;
    run::require(&[&crate::chroot::TOOLS[..], &debian::TOOLS[..]].concat())?;
    let source = Source::read(&args.profile)?;
    let name = source.profile.name.clone();
    let old = source.lock.as_ref().map(|(lock, _)| lock.clone());
    let moves = Moves::of(args, old.as_ref(), &source.directory)?;
    let environment = stage::environment(&node, &source)?;
    let choice = match &source.profile.python {
        Some(python) => Some(python::choose(
            python.installer,
            &node.layout().tools(),
            &environment.architecture,
            false,
        )?),
        None => None,
    };
    let archive = Archive::of(&source.profile.environment)?;
    let pool = locked::pool(node.layout(), &archive.suite, &environment.architecture);
    let locking =
        Locking { source, environment, archive, pool, choice, moves, node: &node, context };
    let path = locking.source.directory.join(lockfile::FILE);
    if args.dry_run {
        context.show_plan(&locking.plan(&path)?);
        return Ok(Exit::Done);
    }
    let _lock = node.lock(&format!("env-{name}"), "lock")?;
    super::check_unchanged(&locking.environment, &node)?;
    mount::private_namespace()?;
    let lock = undo::attempt(&node, "lock", &name, |transaction| locking.lock(transaction))
        .with_context(|| format!("locking {name}"))?;
    if let Some(old) = &old {
        show_changes(old, &lock, context);
    }
    let text = lock.render()?;
    if file::read_if_there(&path)?.is_some_and(|known| known == text) {
        context.ui.already(format!("{} is up to date", path.display()));
        return Ok(Exit::Done);
    }
    undo::attempt(&node, "lock", &name, |transaction| {
        transaction
            .intend(Object::Path { path: file::temporary_of(&std::path::absolute(&path)?) })?;
        file::publish(&path, text.as_bytes(), 0o644)
    })?;
    context.ui.done(format!(
        "wrote {}: {}, {}",
        path.display(),
        ui::count(packages(&lock).count(), "package"),
        ui::count(distributions(&lock).chain(build_distributions(&lock)).count(), "distribution")
    ));
    Ok(Exit::Done)
}

/// A line for each package and distribution that is not as it was. Packages that were not
/// locked at all before are no news one by one.
fn show_changes(old: &LockFile, new: &LockFile, context: &Context) {
    let mut changes = Vec::new();
    if old.debian.is_complete() {
        changes = lockfile::changes(packages(old), packages(new));
    }
    changes.extend(lockfile::changes(distributions(old), distributions(new)));
    let build = lockfile::changes(build_distributions(old), build_distributions(new));
    changes.extend(build.into_iter().map(|(name, old, new)| (format!("{name} (build)"), old, new)));
    let version = |side: &Option<String>| side.clone().unwrap_or_else(|| "none".to_owned());
    let rows: Vec<Vec<String>> = changes
        .iter()
        .map(|(name, old, new)| vec![name.clone(), format!("{} → {}", version(old), version(new))])
        .collect();
    if !rows.is_empty() {
        context.ui.answer(ui::folded(&rows, context.ui.width()));
    }
}

impl Locking<'_> {
    fn plan(&self, path: &Path) -> Result<Plan> {
        let mut plan = Plan::new(format!("lock {}", self.source.profile.name));
        if self.known_debian()?.is_some() {
            plan.step("keep the Debian packages; fetch those the pool lacks");
        } else {
            let suites: Vec<String> =
                self.archive.suites().into_iter().map(|(suite, _)| suite).collect();
            plan.step(format!("read the archive's indexes: {}", suites.join(", ")));
            plan.step("resolve the Debian packages; fetch those the pool lacks");
        }
        if self.source.profile.python.is_some() {
            let storage = storage::named(&self.environment.storage, &self.node.site())?;
            plan.commands(
                format!("fork volume {}", self.environment.volume),
                storage.describe_layer(&self.environment.volume, "fv-stage-…")?,
            );
            plan.step("resolve the requirements for its Python; fetch what the pool lacks");
            if self.source.profile.python.as_ref().is_some_and(|one| built_project(one).is_some()) {
                plan.step("resolve what building the project takes; fetch what the pool lacks");
            }
        }
        plan.step(format!("write {}", path.display()));
        Ok(plan)
    }

    fn old(&self) -> Option<&LockFile> {
        self.source.lock.as_ref().map(|(lock, _)| lock)
    }

    /// The locked packages, if nothing is to be added to them and none is to move.
    fn known_debian(&self) -> Result<Option<&Debian>> {
        let Fit::Whole(known) = locked::fit(&self.source)? else { return Ok(None) };
        let moves = known.packages.iter().any(|deb| self.moves.has(&deb.name));
        Ok((!moves).then_some(known))
    }

    fn lock(&self, transaction: &mut Transaction) -> Result<LockFile> {
        let work = locked::work(self.node.layout(), transaction)?;
        let debian = if let Some(known) = self.known_debian()? {
            let apt = || self.read_archive(&[], &[], &work);
            let meter = self.context.ui.meter("fetching");
            let set = |done, all| meter.set(done, all);
            let network = Network::Allowed;
            locked::fill(known, &self.source, &self.pool, network, &apt, transaction, &set)?;
            known.clone()
        } else {
            self.resolve_packages(&work, transaction)?
        };
        let python = self.resolve_requirements(&debian, &work, transaction)?;
        storage::remove_tree(&work)?;
        Ok(LockFile { schema: lockfile::SCHEMA, debian, python })
    }

    fn read_archive(&self, pins: &[String], more: &[String], work: &Path) -> Result<Apt> {
        let architecture = &self.environment.architecture;
        self.context.ui.step(format!("reading the indexes of {}", self.archive.mirror));
        locked::read_archive(&self.source, &self.archive, architecture, pins, more, work)
    }

    fn resolve_packages(&self, work: &Path, transaction: &mut Transaction) -> Result<Debian> {
        let ui = &self.context.ui;
        let old = self.old().map(|lock| &lock.debian);
        let stays = |deb: &&Deb| !self.moves.has(&deb.name);
        let kept: Vec<&Deb> = old.iter().flat_map(|old| &old.packages).filter(stays).collect();
        let pins: Vec<String> = kept
            .iter()
            .map(|deb| {
                format!("Package: {}\nPin: version {}\nPin-Priority: 990\n", deb.name, deb.version)
            })
            .collect();
        let more = self.kept_archive(&kept, work)?;
        let apt = self.read_archive(&pins, &more, work)?;
        if let Some(old) = old {
            locked::refuse_older(old, &apt.releases(&self.archive)?)?;
        }
        ui.step("resolving the Debian packages");
        let resolved = locked::resolve(&self.source, &self.archive, &apt, true, work);
        let (lock, offers) = match kept.len() {
            0 => resolved?,
            kept => resolved.with_context(|| {
                let kept = ui::count(kept, "package");
                format!("keeping {kept} as locked (--update moves on)")
            })?,
        };
        ui.step(format!("keeping {} in the pool", ui::count(lock.packages.len(), "package")));
        let meter = ui.meter("fetching");
        let set = |done, all| meter.set(done, all);
        locked::fill_resolved(&lock, &offers, &self.pool, &apt, transaction, &|_| (), &set)?;
        Ok(lock)
    }

    /// An apt source with the packages that stay: the mirror may not have them any more.
    fn kept_archive(&self, kept: &[&Deb], work: &Path) -> Result<Vec<String>> {
        let missing = self.pool.missing(kept.iter().copied())?;
        let here: Vec<Deb> =
            kept.iter().filter(|deb| !missing.contains(deb)).map(|deb| (*deb).clone()).collect();
        if here.is_empty() {
            return Ok(Vec::new());
        }
        let suite = &self.archive.suite;
        let lock = Debian {
            epoch: 0,
            request_sha256: String::new(),
            releases: Vec::new(),
            packages: here,
        };
        let repository =
            locked::publish(&lock, &self.pool, suite, &self.environment.architecture, work)?;
        // Not file:, by which the profile's own packages are known.
        Ok(vec![format!(
            "Types: deb\nURIs: copy:{}\nSuites: {suite}\nComponents: main\nTrusted: yes\n",
            repository.display()
        )])
    }

    /// Resolves the requirements in a fork of the environment, by its own Python.
    fn resolve_requirements(
        &self,
        debian: &Debian,
        work: &Path,
        transaction: &mut Transaction,
    ) -> Result<Option<Python>> {
        let profile = &self.source.profile;
        let (Some(python), Some(choice)) = (&profile.python, &self.choice) else {
            return Ok(None);
        };
        let ui = &self.context.ui;
        let layout = self.node.layout();
        let storage = storage::named(&self.environment.storage, &self.node.site())?;
        ui.step(format!("forking volume {}", self.environment.volume));
        let mut stage =
            Stage::open(storage.as_ref(), &self.environment, None, false, layout, transaction)?;
        stage.bring_project(&self.source)?;
        self.follow(&mut stage, debian, work)?;
        let spinner = ui.spinner("apt-get");
        let packages = locked::build_packages(profile);
        stage.install_build_packages(&packages, &|line| spinner.show(line))?;
        drop(spinner);
        for command in &profile.build.before {
            ui.step(command);
            stage.run_step(command)?;
        }
        let virtualenv = profile.virtualenv();
        let installer = stage::make_virtualenv(&mut stage, python, &virtualenv, choice, layout)?;
        let mut locked = match stage.requirements(python)? {
            None => Python::default(),
            Some((file, text)) => {
                let requirements_sha256 = crate::hash::sha256(text.as_bytes());
                let old = self.old().and_then(|lock| lock.python.as_ref());
                let distributions: Vec<Locked> = if lockfile::all_hashed(&text) {
                    lockfile::parse_requirements(&text)?
                } else if let Some(known) = old.filter(|old| {
                    old.requirements_sha256 == requirements_sha256
                        && !old.distributions.iter().any(|one| self.moves.has(&one.name))
                }) {
                    known.distributions.clone()
                } else {
                    ui.step(format!("resolving {} with {}", file_name(&file), installer.name()));
                    let kept: Vec<&Locked> = old
                        .iter()
                        .flat_map(|old| &old.distributions)
                        .filter(|one| !self.moves.has(&one.name))
                        .collect();
                    let resolved = installer.resolve(&stage.chroot, &virtualenv, &file, &kept);
                    python::explain(resolved)?
                };
                Python { requirements_sha256, distributions, ..Python::default() }
            }
        };
        if self.keep_wheels(&locked.distributions, &mut stage)? {
            self.resolve_build(&mut locked, &installer, &mut stage, transaction)?;
            self.keep_wheels(&locked.build, &mut stage)?;
        }
        stage.close(storage.as_ref())?;
        Ok((locked != Python::default()).then_some(locked))
    }

    /// Locks what building takes, of the sdists in the pool and the project.
    fn resolve_build(
        &self,
        locked: &mut Python,
        installer: &Installer,
        stage: &mut Stage,
        transaction: &mut Transaction,
    ) -> Result<()> {
        let Some(python) = &self.source.profile.python else { return Ok(()) };
        let sdists = build::sdists(&self.wheels(), &locked.distributions)?;
        let request = stage.build_request(python, &sdists)?;
        if request.is_empty() {
            return Ok(());
        }
        let old = locked::python(&self.source);
        let stays = |one: &&Locked| !self.moves.has(&one.name);
        let same =
            |old: &&Python| old.build_sha256 == request && old.build.iter().all(|one| stays(&one));
        if let Some(old) = old.filter(same) {
            locked.build.clone_from(&old.build);
            locked.build_sha256 = request;
            return Ok(());
        }
        let ui = &self.context.ui;
        ui.step("asking sdists and the project what their builds take");
        let mut sources = Vec::new();
        for sdist in &sdists {
            let name = sdist.file_name().unwrap_or_default().to_string_lossy();
            sources.push(stage.chroot.lend(sdist, &name)?);
        }
        if let Some(project) = built_project(python) {
            let epoch = self.environment.epoch;
            sources.push(stage.fetch_project(project, epoch, self.node.layout(), transaction)?);
        }
        let asked = build::asked(&stage.chroot, installer, &python.interpreter, &sources);
        let asked = python::explain(asked)?;
        let kept: Vec<&Locked> = old.iter().flat_map(|old| &old.build).filter(stays).collect();
        let virtualenv = self.source.profile.virtualenv();
        let resolved = build::resolve(&stage.chroot, installer, &virtualenv, &asked, &kept);
        run::check_interrupted()?;
        match resolved {
            Ok(resolved) => {
                locked.build = resolved;
                locked.build_sha256 = request;
            }
            // With a network each is built with what fits it alone.
            Err(error) => ui.warn(format!(
                "no wheels fit all that is built, which is not locked then: {}",
                message(&error)
            )),
        }
        Ok(())
    }

    fn wheels(&self) -> PathBuf {
        let EnvironmentRecord { suite, architecture, .. } = &self.environment;
        locked::wheels(self.node.layout(), suite, architecture)
    }

    /// Has the stage take packages from the pool, if the environment is not newer than the
    /// lock: apt does not go back.
    fn follow(&self, stage: &mut Stage, debian: &Debian, work: &Path) -> Result<()> {
        let own = locked::own_packages(&self.source)?;
        let fits = stage.before.iter().all(|there| {
            let same = |deb: &Deb| (&deb.name, &deb.version) == (&there.name, &there.version);
            own.contains(&there.name) || debian.packages.iter().any(same)
        });
        if !fits {
            return Ok(());
        }
        let suite = &self.archive.suite;
        let architecture = &self.environment.architecture;
        let repository = locked::publish(debian, &self.pool, suite, architecture, work)?;
        stage.follow(&repository, suite)
    }

    /// Keeps a file of each distribution, for bakes without a network; answers whether the
    /// pool has all.
    fn keep_wheels(&self, distributions: &[Locked], stage: &mut Stage) -> Result<bool> {
        let wheels = self.wheels();
        if python::missing(&wheels, distributions)?.is_empty() {
            return Ok(true);
        }
        let ui = &self.context.ui;
        let count = ui::count(distributions.len(), "distribution");
        ui.step(format!("keeping {count} in the pool"));
        let virtualenv = self.source.profile.virtualenv();
        let spinner = ui.spinner("pip");
        let show = |line: &str| spinner.show(line);
        let kept = python::download(&mut stage.chroot, &virtualenv, distributions, &wheels, &show);
        drop(spinner);
        run::check_interrupted()?;
        let kept = python::explain(kept);
        if let Err(error) = &kept {
            // The lock is right without them.
            ui.warn(format!("bake --offline will lack distributions: {}", message(error)));
        }
        Ok(kept.is_ok())
    }
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}
