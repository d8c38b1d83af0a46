//! Following a lock: the packages it names are fetched into this machine's pool once, by
//! hash, and installed from there, so that a mirror has no say in what a tree is made of.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};

use crate::debian::apt::{self, Apt, Offer, Progress};
use crate::debian::{self, Archive, Pool, pool};
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::layout::Layout;
use crate::lockfile::{Deb, Debian, Phase, Python};
use crate::manifest::{InRelease, Package};
use crate::node::{Object, Transaction};
use crate::profile::Profile;
use crate::python;
use crate::source::Source;
use crate::storage;

/// Whether what is not here may be fetched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Allowed,
    /// It may not: for tools, too.
    Denied,
}

impl Network {
    /// What `--offline` asks for.
    #[must_use]
    pub fn of(offline: bool) -> Self {
        if offline { Self::Denied } else { Self::Allowed }
    }

    /// Takes the network away from this process and what it starts from now on, if it is
    /// denied (`network_namespaces(7)`). To be called before any thread is started.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn enforce(self) -> Result<()> {
        match self {
            Self::Allowed => Ok(()),
            Self::Denied => {
                unshare(CloneFlags::CLONE_NEWNET).context("making an empty network namespace")
            }
        }
    }
}

/// Packages a bake of this profile installs first and purges last, with whichever
/// installer: what a lock has to hold.
#[must_use]
pub fn build_packages(profile: &Profile) -> Vec<String> {
    let mut packages = profile.build.packages.clone();
    if profile.python.is_some() {
        packages.push(python::PIP_PACKAGE.to_owned());
    }
    packages
}

/// SHA-256 of what a profile asks of the archive, which a lock was resolved for.
///
/// # Errors
/// When one of its own packages cannot be read.
pub fn request(source: &Source) -> Result<String> {
    let environment = &source.profile.environment;
    let all = serde_json::json!({
        "suite": environment.suite,
        "components": environment.components,
        "include": environment.include,
        "exclude": environment.exclude,
        "packages": debian::extra_packages(environment),
        "debs": source.deb_hashes()?,
        "apt-sources": environment.apt_sources,
        "apt-preferences": environment.apt_preferences,
        "build": build_packages(&source.profile),
    });
    Ok(crate::hash::sha256(all.to_string().as_bytes()))
}

/// What a profile's lock says about its packages.
#[derive(Clone, Copy, Debug)]
pub enum Fit<'a> {
    /// Nothing.
    None,
    /// What another state of the profile asked for.
    Stale,
    /// All that this one asks for.
    Whole(&'a Debian),
}

/// Looks whether a profile's lock can be followed.
///
/// # Errors
/// As [`request`].
pub fn fit(source: &Source) -> Result<Fit<'_>> {
    let Some((lock, _)) = &source.lock else { return Ok(Fit::None) };
    if !lock.debian.is_complete() {
        return Ok(Fit::None);
    }
    let same = lock.debian.request_sha256 == request(source)?;
    Ok(if same { Fit::Whole(&lock.debian) } else { Fit::Stale })
}

/// The lock of a profile's packages, where it must be followed.
///
/// # Errors
/// When there is none, or it is not for this profile any more.
pub fn require(source: &Source) -> Result<&Debian> {
    let hint = format!("farmctl lock {}", source.directory.display());
    match fit(source)? {
        Fit::Whole(lock) => Ok(lock),
        Fit::Stale => refuse("the profile has changed since farmctl.lock was written", hint),
        Fit::None => refuse("there is no farmctl.lock with the profile's Debian packages", hint),
    }
}

/// What identifies the packages of a lock: SHA-256, hex.
#[must_use]
pub fn identity(lock: &Debian) -> String {
    crate::hash::sha256(lock.canonical().as_bytes())
}

/// Refuses indexes older than the locked ones: a mirror that stands still or went back, be
/// it by accident or to keep a security update from being seen.
///
/// # Errors
/// Exactly then.
pub fn refuse_older(lock: &Debian, offered: &[InRelease]) -> Result<()> {
    let Some((locked, here)) = lock.older(offered) else { return Ok(()) };
    refuse(
        format_args!(
            "the mirror's index of {} is of {}, older than the locked one of {}",
            here.suite,
            time(here.date),
            time(locked.date)
        ),
        "it was frozen or rolled back: take another mirror, or farmctl bake --offline",
    )
}

fn time(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
}

/// What to do about a lock the mirror has moved on from.
#[must_use]
pub fn update(source: &Source) -> String {
    format!("farmctl lock {} --update", source.directory.display())
}

/// What to do about a pool that lacks something.
fn with_network(source: &Source) -> String {
    let profile = source.directory.display();
    format!("farmctl lock {profile} fetches what is missing, with a network")
}

/// Where the packages of a lock are kept.
#[must_use]
pub fn pool(layout: &Layout, suite: &str, architecture: &str) -> Pool {
    Pool::at(debian::package_cache(&layout.cache(), suite, architecture))
}

/// Reads the archive of a profile with an apt of our own, in a directory of the
/// transaction's; `pins` hold packages at a version, `more` are more sources.
///
/// # Errors
/// When a mirror does not answer.
pub fn read_archive(
    source: &Source,
    archive: &Archive,
    architecture: &str,
    pins: &[String],
    more: &[String],
    work: &Path,
) -> Result<Apt> {
    let environment = &source.profile.environment;
    // Of two pins of one package the first counts.
    let preferences: Vec<String> =
        pins.iter().chain(&environment.apt_preferences).cloned().collect();
    let mut sources = apt::sources_of(archive, environment);
    sources.extend_from_slice(more);
    Apt::read(&work.join("apt"), &sources, &preferences, architecture)
        .context("reading the archive's indexes")
}

/// The scratch directory of a transaction, written down.
///
/// # Errors
/// When it cannot be made.
pub fn work(layout: &Layout, transaction: &mut Transaction) -> Result<PathBuf> {
    let work = layout.work(transaction.id());
    transaction.intend(Object::Path { path: work.clone() })?;
    file::make_directory(&work, 0o700)?;
    Ok(work)
}

/// What a profile's environment is made of, and what its bakes take if `builds`, as apt
/// resolves it today: the packages, and where each is to be had.
///
/// # Errors
/// When they cannot be installed together.
pub fn resolve(
    source: &Source,
    archive: &Archive,
    apt: &Apt,
    builds: bool,
    work: &Path,
) -> Result<(Debian, Vec<Offer>)> {
    let environment = &source.profile.environment;
    let releases = apt.releases(archive)?;
    let base = debian::base_packages(environment, archive, apt, &work.join("base"))?;
    let mut wanted = base.clone();
    wanted.extend(debian::extra_packages(environment));
    wanted.extend(own_paths(source)?);
    let environment = apt.resolve(&wanted, "environment.packages")?;
    let mut all = environment.clone();
    if builds {
        wanted.extend(build_packages(&source.profile));
        all = apt.resolve(&wanted, "build.packages")?;
    }
    let packages = phases(&all, &environment, &base, &own_packages(source)?);
    let epoch = releases.iter().map(|release| release.date).max().unwrap_or_default();
    let request_sha256 = request(source)?;
    Ok((Debian { epoch, request_sha256, releases, packages }, all))
}

/// What is to be locked of what apt would install: when it is installed, without the
/// profile's own packages, by name.
fn phases(all: &[Offer], environment: &[Offer], base: &[String], own: &[String]) -> Vec<Deb> {
    let mut packages: Vec<Deb> = all
        .iter()
        .map(|offer| &offer.deb)
        .filter(|deb| !own.contains(&deb.name))
        .map(|deb| {
            let phase = if base.contains(&deb.name) {
                Phase::Base
            } else if environment.iter().any(|offer| offer.deb.name == deb.name) {
                Phase::Environment
            } else {
                Phase::Build
            };
            Deb { phase, ..deb.clone() }
        })
        .collect();
    packages.sort();
    packages
}

/// Sees to it that every package of a lock is in the pool.
///
/// # Errors
/// When one is missing and there is no network, or it is not offered any more.
pub fn fill(
    lock: &Debian,
    source: &Source,
    pool: &Pool,
    network: Network,
    apt: &dyn Fn() -> Result<Apt>,
    transaction: &mut Transaction,
    progress: Progress<'_>,
) -> Result<()> {
    let missing = pool.missing(lock.packages.iter())?;
    if missing.is_empty() {
        return Ok(());
    }
    if network == Network::Denied {
        pool::refuse_missing(&missing, &with_network(source))?;
    }
    let apt = apt()?;
    let (offers, moved) = apt.find(&missing)?;
    apt::refuse_moved(&moved, &update(source))?;
    fetch(&offers, pool, &apt, transaction, progress)
}

/// Sees to it that every package that was just resolved is in the pool; `say` hears how many
/// are fetched, if any.
///
/// # Errors
/// When one cannot be fetched.
pub fn fill_resolved(
    lock: &Debian,
    offers: &[Offer],
    pool: &Pool,
    apt: &Apt,
    transaction: &mut Transaction,
    say: &dyn Fn(usize),
    progress: Progress<'_>,
) -> Result<()> {
    let missing = pool.missing(lock.packages.iter())?;
    if missing.is_empty() {
        return Ok(());
    }
    say(missing.len());
    let is_missing = |offer: &&Offer| missing.iter().any(|deb| deb.file == offer.deb.file);
    let offers: Vec<Offer> = offers.iter().filter(is_missing).cloned().collect();
    fetch(&offers, pool, apt, transaction, progress)
}

fn fetch(
    offers: &[Offer],
    pool: &Pool,
    apt: &Apt,
    transaction: &mut Transaction,
    progress: Progress<'_>,
) -> Result<()> {
    let fetched = pool.work(transaction.id());
    transaction.intend(Object::Path { path: fetched.clone() })?;
    file::make_directory(&fetched, 0o755)?;
    pool.fetch(offers, apt, &fetched, progress)?;
    storage::remove_tree(&fetched)
}

/// Makes the archive of a lock's packages in a transaction's scratch directory.
///
/// # Errors
/// When a package is not in the pool, or there is no room.
pub fn publish(
    lock: &Debian,
    pool: &Pool,
    suite: &str,
    architecture: &str,
    work: &Path,
) -> Result<PathBuf> {
    let repository = work.join("repository");
    if repository.exists() {
        storage::remove_tree(&repository)?;
    }
    pool.publish(lock, suite, architecture, &repository).context("reading the pool")?;
    Ok(repository)
}

/// How the packages in a tree, besides the profile's own, are not exactly the locked ones:
/// `tzdata is 2001a-1, not 2026b-1, and 3 more differ`.
///
/// # Errors
/// As [`own_packages`].
pub fn difference(lock: &Debian, source: &Source, installed: &[Package]) -> Result<Option<String>> {
    let own = own_packages(source)?;
    let locked = lock.environment().map(|deb| (deb.name.as_str(), deb.version.as_str()));
    let there = installed.iter().map(|one| (one.name.as_str(), one.version.as_str()));
    let mut changes = crate::lockfile::changes(locked, there);
    changes.retain(|(name, ..)| !own.contains(name));
    let Some((name, locked, there)) = changes.first() else { return Ok(None) };
    let word = |version: &Option<String>| version.clone().unwrap_or_else(|| "nothing".to_owned());
    let more = match changes.len() {
        1 => String::new(),
        2 => ", and 1 more differs".to_owned(),
        count => format!(", and {} more differ", count - 1),
    };
    Ok(Some(format!("{name} is {}, not {}{more}", word(there), word(locked))))
}

/// Refuses unless a tree has exactly the locked packages, besides those of its own.
///
/// # Errors
/// Naming the first one that differs.
pub fn compare_installed(lock: &Debian, source: &Source, installed: &[Package]) -> Result<()> {
    match difference(lock, source, installed)? {
        None => Ok(()),
        Some(difference) => {
            refuse(format_args!("the tree is not as locked: {difference}"), update(source))
        }
    }
}

/// Where wheels and sdists of locks are kept: a suite has a Python of its own.
#[must_use]
pub fn wheels(layout: &Layout, suite: &str, architecture: &str) -> PathBuf {
    layout.cache().join("wheels").join(format!("{suite}_{architecture}"))
}

/// The locked distributions of a profile.
#[must_use]
pub fn python(source: &Source) -> Option<&Python> {
    source.lock.as_ref().and_then(|(lock, _)| lock.python.as_ref())
}

/// Names and versions of the locked distributions, of builds too, the pool has no file of.
///
/// # Errors
/// When it cannot be read.
pub fn missing_wheels(source: &Source, wheels: &Path) -> Result<Vec<String>> {
    let Some(python) = python(source) else { return Ok(Vec::new()) };
    let mut missing = python::missing(wheels, &python.distributions)?;
    missing.extend(python::missing(wheels, &python.build)?);
    missing.dedup();
    Ok(missing)
}

/// Refuses unless the pool has a file of every locked distribution.
///
/// # Errors
/// Naming those it has none of.
pub fn require_wheels(source: &Source, wheels: &Path) -> Result<()> {
    let missing = missing_wheels(source, wheels)?;
    if missing.is_empty() {
        return Ok(());
    }
    refuse(format_args!("the pool lacks {}", missing.join(", ")), with_network(source))
}

/// Names of a profile's own packages.
///
/// # Errors
/// When one is no package.
pub fn own_packages(source: &Source) -> Result<Vec<String>> {
    let debs = source.profile.environment.debs.iter();
    debs.map(|deb| {
        let path = source.directory.join(deb);
        debian::name_of(&path).hint("environment.debs are files of Debian packages")
    })
    .collect()
}

/// The absolute paths of a profile's own packages, for apt.
///
/// # Errors
/// When one is not there.
pub fn own_paths(source: &Source) -> Result<Vec<String>> {
    let debs = source.profile.environment.debs.iter();
    debs.map(|deb| {
        let path = fs::canonicalize(source.directory.join(deb))
            .with_context(|| format!("looking for {}", deb.display()))
            .hint("environment.debs are relative to the profile")?;
        Ok(path.to_string_lossy().into_owned())
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile;

    #[test]
    fn a_tree_of_the_locked_packages_is_known_by_what_is_installed() {
        let text =
            "schema = 1\nname = \"shop\"\nversion = \"1\"\n[environment]\nsuite = \"bookworm\"\n";
        let profile = profile::parse(text).expect("it is a profile");
        let source = Source { profile, directory: PathBuf::new(), lock: None };
        let deb = |name: &str, phase| Deb {
            name: name.to_owned(),
            version: "2".to_owned(),
            architecture: "all".to_owned(),
            phase,
            file: format!("{name}_2_all.deb"),
            size: 1,
            sha256: String::new(),
        };
        let lock = Debian {
            epoch: 0,
            request_sha256: String::new(),
            releases: Vec::new(),
            packages: vec![
                deb("base-files", Phase::Base),
                deb("gcc", Phase::Build),
                deb("tzdata", Phase::Environment),
            ],
        };
        let differs = |there: &[(&str, &str)]| {
            let there: Vec<Package> = there
                .iter()
                .map(|(name, version)| Package {
                    name: (*name).to_owned(),
                    version: (*version).to_owned(),
                    architecture: "all".to_owned(),
                })
                .collect();
            difference(&lock, &source, &there).expect("it has no packages of its own")
        };
        // What a build takes is not in it.
        assert_eq!(differs(&[("base-files", "2"), ("tzdata", "2")]), None);
        let says = |there: &[(&str, &str)]| differs(there).expect("it is another");
        assert_eq!(says(&[("base-files", "2"), ("tzdata", "1")]), "tzdata is 1, not 2");
        assert_eq!(says(&[("tzdata", "1")]), "base-files is nothing, not 2, and 1 more differs");
        let more = [("base-files", "3"), ("gcc", "2"), ("tzdata", "1")];
        assert_eq!(says(&more), "base-files is 3, not 2, and 2 more differ");
    }
}
