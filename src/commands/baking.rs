//! Baking, for the verb and for `verify --rebuild`.

mod filling;
mod keeping;

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Error, Result};

use self::filling::Build;
pub(super) use self::keeping::{Found, find};
use super::Context;
use crate::chroot::Chroot;
use crate::debian::{self, Ownership};
use crate::error::{Exit, Mark as _, exit_of, refuse};
use crate::file;
use crate::kept::Kept;
use crate::layout::START_SCRIPT;
use crate::locked::{self, Fit, Network};
use crate::lockfile::{Debian, Python};
use crate::manifest::{self, Hashed, Inputs, Manifest, Owner, Payload};
use crate::node::{Node, Object, Transaction};
use crate::parallel;
use crate::profile::{Profile, When};
use crate::python::{self, Choice};
use crate::release::EnvironmentRecord;
use crate::run;
use crate::signature::SecretKey;
use crate::source::Source;
use crate::stage::{self, Stage};
use crate::storage::{self, Storage};
use crate::tarball::{self, Archive, Scan, SegmentCache};
use crate::ui::{self, Ui};

/// What is to be baked, and of what.
pub(super) struct Baking {
    /// The key to sign with, if it is to be signed.
    pub key: Option<SecretKey>,
    pub serial: Option<u64>,
    pub expires: Option<String>,
    pub source: Source,
    pub environment: EnvironmentRecord,
    pub storage: Box<dyn Storage>,
    pub choice: Option<Choice>,
    pub out: PathBuf,
    /// The locked packages, if they are for this profile.
    pub lock: Option<Debian>,
    /// Whether whatever is not locked is refused.
    pub strict: bool,
    /// Whether trees and segments that earlier bakes kept are taken as they are.
    pub reuse: bool,
    /// Whether trees are kept for the next bake.
    pub keeps_trees: bool,
    /// Whether what fails is kept for a look.
    pub keep: bool,
    pub network: Network,
    /// Whether locked distributions are to be fetched first.
    pub fetch: bool,
}

impl Baking {
    /// Reads what a bake of this profile into this directory needs.
    ///
    /// # Errors
    /// When there is no environment, or it is to be strict and something is not as locked.
    pub(super) fn of(
        source: Source,
        directory: &Path,
        strict: bool,
        network: Network,
        node: &Node,
    ) -> Result<Self> {
        let environment = stage::environment(node, &source)?;
        let lock = lock_of(&source, &environment, strict, network)?;
        let wheels = locked::wheels(node.layout(), &environment.suite, &environment.architecture);
        if network == Network::Denied {
            locked::require_wheels(&source, &wheels)?;
        }
        let fetch = locked::python(&source).is_some_and(Python::has_builds)
            && !locked::missing_wheels(&source, &wheels)?.is_empty();
        let storage = storage::named(&environment.storage, &node.site())?;
        let choice = match &source.profile.python {
            Some(python) => Some(python::choose(
                python.installer,
                &node.layout().tools(),
                &environment.architecture,
                network == Network::Denied,
            )?),
            None => None,
        };
        let Profile { name, version, .. } = &source.profile;
        let out = directory.join(format!("{name}_{version}_{}.tar.xz", environment.architecture));
        Ok(Self {
            key: None,
            serial: None,
            expires: None,
            source,
            environment,
            storage,
            choice,
            out,
            lock,
            strict,
            reuse: true,
            keeps_trees: false,
            keep: false,
            network,
            fetch,
        })
    }

    /// Debian packages that are installed first and purged last.
    pub(super) fn build_packages(&self) -> Vec<String> {
        let choice = if self.fetch { Some(&Choice::Pip) } else { self.choice.as_ref() };
        stage::build_packages(&self.source.profile, choice)
    }

    /// The volume a bake forks, if it takes this tree that is kept.
    pub(super) fn begins_with<'a>(&'a self, kept: Option<&'a Kept>) -> &'a str {
        kept.map_or(&self.environment.volume, |kept| &kept.volume)
    }

    /// Whether the installer takes locked files alone, for builds as well.
    fn builds_locked(&self) -> bool {
        let has_builds = || locked::python(&self.source).is_some_and(Python::has_builds);
        self.network == Network::Denied || has_builds()
    }

    /// The lock that build packages are of, in an environment with these packages that was
    /// made of it, or of the same packages before they were locked; none if there is no lock.
    /// If it cannot be followed: how the environment is not as locked.
    fn followed(&self, before: &[manifest::Package]) -> Result<Followed<'_>> {
        let Some(lock) = &self.lock else { return Ok(Followed::None) };
        if self.environment.locked == locked::identity(lock) {
            return Ok(Followed::Lock(lock));
        }
        Ok(match locked::difference(lock, &self.source, before)? {
            None => Followed::Lock(lock),
            Some(difference) => Followed::Differs(difference),
        })
    }

    /// Whether what failed with this error is kept for a look.
    pub(super) fn keeps(&self, error: &Error) -> bool {
        self.keep && exit_of(error) != Exit::Interrupted
    }
}

/// Whether build packages are those of a lock.
enum Followed<'a> {
    /// There is none.
    None,
    /// They are.
    Lock(&'a Debian),
    /// The environment is not as locked, and so they are not.
    Differs(String),
}

impl<'a> Followed<'a> {
    fn lock(self) -> Option<&'a Debian> {
        match self {
            Self::Lock(lock) => Some(lock),
            Self::None | Self::Differs(_) => None,
        }
    }
}

/// The locked packages, if they are for this profile.
fn lock_of(
    source: &Source,
    environment: &EnvironmentRecord,
    strict: bool,
    network: Network,
) -> Result<Option<Debian>> {
    if strict {
        let lock = locked::require(source)?;
        if environment.locked != locked::identity(lock) {
            return refuse(
                "the environment was not made of the packages in farmctl.lock",
                bootstrap(source, network),
            );
        }
    }
    Ok(match locked::fit(source)? {
        Fit::Whole(lock) => Some(lock.clone()),
        Fit::None | Fit::Stale => None,
    })
}

/// What makes an environment of the locked packages.
fn bootstrap(source: &Source, network: Network) -> String {
    let offline = if network == Network::Denied { " --offline" } else { "" };
    format!("farmctl bootstrap {}{offline}", source.directory.display())
}

/// Bakes; the tarball is published at the end, or nothing is left.
///
/// # Errors
/// When a step of the build fails.
pub(super) fn bake(
    baking: &Baking,
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<tarball::Packed> {
    let ui = &context.ui;
    let Found { kept, said } = find(baking)?;
    said.into_iter().for_each(|line| ui.step(line));
    let from = baking.begins_with(kept.as_ref());
    ui.step(format!("forking volume {from}"));
    let storage = baking.storage.as_ref();
    let Baking { environment, keep, .. } = baking;
    let stage =
        Stage::open(storage, environment, kept.as_ref(), *keep, node.layout(), transaction)?;
    let done = kept.map(|kept| kept.step);
    let mut build = Build { baking, stage, done, node, ui, transaction: &mut *transaction };
    if let Err(error) = build.run() {
        if baking.keeps(&error) {
            build.stage.keep_project()?;
        }
        return Err(error);
    }
    let stage = build.stage;
    ui.step("purging build packages, cleaning up");
    stage.purge_build_packages()?;
    let packages = debian::installed_packages(&stage.chroot)?;
    let Stage { chroot, tree, project_sha256, volume, .. } = stage;
    chroot.leave()?;
    debian::clean(tree.path())?;

    let draft = draft(baking, tree.path(), packages, project_sha256)?;
    let packed = pack(baking, tree.path(), draft, node, context, transaction)?;
    tree.close()?;
    storage.remove(&volume)?;
    storage::remove_tree(&node.layout().work(transaction.id()))?;
    Ok(packed)
}

/// The manifest as far as it is known before packing.
fn draft(
    baking: &Baking,
    tree: &Path,
    packages: Vec<manifest::Package>,
    project_sha256: String,
) -> Result<Manifest> {
    let profile = &baking.source.profile;
    let distributions = match &profile.python {
        Some(_) => python::distributions(tree, &profile.virtualenv())?.0,
        None => Vec::new(),
    };
    Ok(Manifest {
        schema: manifest::SCHEMA,
        farmctl: env!("CARGO_PKG_VERSION").to_owned(),
        name: profile.name.clone(),
        version: profile.version.clone(),
        architecture: baking.environment.architecture.clone(),
        epoch: baking.environment.epoch,
        serial: baking.serial,
        expires: baking.expires.clone(),
        derived: None,
        profile: profile.clone(),
        inputs: Inputs {
            releases: baking.environment.releases.clone(),
            packages,
            packages_sha256: baking.environment.locked.clone(),
            distributions,
            project_sha256,
            lock_sha256: baking
                .source
                .lock
                .as_ref()
                .map(|(_, sha256)| sha256.clone())
                .unwrap_or_default(),
        },
        files: Hashed { size: 0, sha256: String::new() },
        payload: Payload { size: 0, sha256: String::new(), entries: 0, content: 0 },
        segments: Vec::new(),
        set_id: Vec::new(),
        capabilities: Vec::new(),
    })
}

fn pack(
    baking: &Baking,
    tree: &Path,
    draft: Manifest,
    node: &Node,
    context: &Context,
    transaction: &mut Transaction,
) -> Result<tarball::Packed> {
    let ui = &context.ui;
    let scan = scan(tree, &baking.source.profile, baking.environment.epoch, ui)?;
    let part = baking.out.with_extension("xz.part");
    transaction.intend(Object::Path { path: part.clone() })?;
    let threads = parallel::processors();
    ui.step(format!("packing {} with {}", ui::size(scan.content), ui::count(threads, "thread")));
    let meter = ui.meter("compressing");
    let cache = SegmentCache::at(node.layout().segments());
    let reused = baking.reuse.then_some(&cache);
    let packed = tarball::pack(tree, &scan, draft, &part, threads, reused, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    })?;
    drop(meter);
    cache.shrink(node.settings().segment_cache.bytes())?;
    let mut done = part;
    if let Some(key) = &baking.key {
        let signed = baking.out.with_extension("xz.signed.part");
        transaction.intend(Object::Path { path: signed.clone() })?;
        super::write_signed(&Archive::open(&done)?, key, &signed)?;
        fs::remove_file(&done).with_context(|| format!("removing {}", done.display()))?;
        done = signed;
        ui.step(format!("signed with {}", key.public().id()));
    }
    publish(&done, &baking.out)?;
    Ok(packed)
}

/// Scans a tree that was made of a profile.
///
/// # Errors
/// When it holds what a release must not.
pub(super) fn scan(tree: &Path, profile: &Profile, epoch: i64, ui: &Ui) -> Result<Scan> {
    let packages = Ownership::read(tree)?;
    let mut distributions = HashMap::new();
    if profile.python.is_some() {
        distributions.extend(python::distributions(tree, &profile.virtualenv())?.1);
    }
    let copied: Vec<String> = profile
        .copies
        .iter()
        .map(|copied| copied.to.to_string_lossy().trim_start_matches('/').to_owned())
        .collect();
    let written: HashSet<&str> = profile
        .files
        .iter()
        .map(|rendered| rendered.path.as_path())
        .chain([Path::new(START_SCRIPT)])
        .filter_map(|path| path.strip_prefix("/").ok()?.to_str())
        .collect();
    let owner_of = |path: &str| -> Owner {
        if let Some(package) = packages.of(path) {
            Owner::Package(package.to_owned())
        } else if let Some(name) = distributions.get(path) {
            Owner::Distribution(name.clone())
        } else if written.contains(path)
            || copied.iter().any(|root| Path::new(path).starts_with(root))
        {
            Owner::Project
        } else {
            Owner::Generated
        }
    };
    ui.step("hashing the tree");
    let meter = ui.meter("hashing");
    tarball::scan(tree, epoch, &owner_of, &|done, all| {
        meter.set(done, all);
        run::check_interrupted()
    })
}

/// Runs the jobs of a bake, but not those whose result is there.
///
/// # Errors
/// When one fails: with its last lines.
pub(super) fn run_jobs(chroot: &Chroot, profile: &Profile, ui: &Ui) -> Result<()> {
    for job in profile.jobs.iter().filter(|job| job.when == When::Bake) {
        if job.creates.as_ref().is_some_and(|path| chroot.outside(path).exists()) {
            continue;
        }
        ui.step(format!("running the job {}", job.name));
        chroot
            .call(START_SCRIPT)
            .args(["job", &job.name])
            .named(format!("job {}", job.name))
            .foreign()
            .run()
            .hint_with(|| format!("its command is: {}", job.command))?;
    }
    Ok(())
}

/// Puts a finished tarball in its place.
///
/// # Errors
/// When the directory cannot be written.
pub(super) fn publish(part: &Path, out: &Path) -> Result<()> {
    fs::rename(part, out).with_context(|| format!("publishing {}", out.display()))?;
    file::sync_directory(out.parent().unwrap_or(Path::new("/")))
}
