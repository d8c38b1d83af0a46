//! The packages a lock names, kept on this machine, and an archive of just these, which
//! environments are made of, with or without a network.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::apt::{Apt, Offer, Progress};
use super::deb;
use super::installed::DPKG_DEB;
use crate::chroot::{BORROWED, Chroot};
use crate::error::refuse;
use crate::file;
use crate::lockfile::{Deb, Debian, Phase};
use crate::run::{Invocation, check_interrupted};

/// Where an archive made of a pool's packages has them.
const POOL: &str = "pool";
/// Name of the archive inside, beneath [`BORROWED`].
const REPOSITORY: &str = "repository";
/// How many packages an error names before it counts the rest.
const NAMED: usize = 10;

/// A directory of packages.
#[derive(Debug)]
pub struct Pool {
    directory: PathBuf,
}

impl Pool {
    /// The pool in this directory.
    #[must_use]
    pub fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Those of these packages that are not here with the bytes that were locked.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn missing<'a>(&self, debs: impl Iterator<Item = &'a Deb>) -> Result<Vec<&'a Deb>> {
        let mut missing = Vec::new();
        for deb in debs {
            check_interrupted()?;
            let path = self.directory.join(&deb.file);
            let same = fs::metadata(&path).is_ok_and(|known| known.len() == deb.size)
                && crate::hash::of_file(&path)? == deb.sha256;
            if !same {
                missing.push(deb);
            }
        }
        Ok(missing)
    }

    /// Fetches packages by way of `work`, an empty directory on this file system: none is
    /// here before its hash was checked.
    ///
    /// # Errors
    /// When one cannot be fetched.
    pub fn fetch(
        &self,
        offers: &[Offer],
        apt: &Apt,
        work: &Path,
        progress: Progress<'_>,
    ) -> Result<()> {
        apt.fetch(offers, work, progress)?;
        for Offer { deb, .. } in offers {
            let (from, to) = (work.join(&deb.file), self.directory.join(&deb.file));
            fs::rename(&from, &to).with_context(|| format!("keeping {}", to.display()))?;
        }
        Ok(())
    }

    /// A directory for [`Self::fetch`] that only this transaction uses.
    #[must_use]
    pub fn work(&self, transaction: &str) -> PathBuf {
        self.directory.join(format!(".{transaction}"))
    }

    /// Makes an archive of just these packages in the new directory `target`, signed by
    /// nobody: every file was compared with its hash in the lock ([`Self::missing`]).
    ///
    /// # Errors
    /// When a package is not here, or there is no room.
    pub fn publish(
        &self,
        lock: &Debian,
        suite: &str,
        architecture: &str,
        target: &Path,
    ) -> Result<()> {
        let pool = target.join(POOL);
        let index = target.join(format!("dists/{suite}/main/binary-{architecture}"));
        for directory in [&pool, &index] {
            file::make_directory(directory, 0o755)?;
        }
        let mut packages = String::new();
        for deb in &lock.packages {
            check_interrupted()?;
            let path = self.directory.join(&deb.file);
            let link = pool.join(published(deb));
            // Another file system has no link to it.
            fs::hard_link(&path, &link)
                .or_else(|_| fs::copy(&path, &link).map(drop))
                .with_context(|| format!("taking {}", path.display()))?;
            packages += &stanza(deb, &control(&link)?);
        }
        let write = |path: PathBuf, text: &str| {
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
        };
        write(index.join("Packages"), &packages)?;
        let date = jiff::Timestamp::from_second(lock.epoch)
            .context("reading the lock's epoch")?
            .strftime("%a, %d %b %Y %H:%M:%S UTC")
            .to_string();
        let release = format!(
            "Origin: farmctl\nSuite: {suite}\nCodename: {suite}\nDate: {date}\n\
             Architectures: {architecture}\nComponents: main\nSHA256:\n {} {} main/binary-{architecture}/Packages\n",
            crate::hash::sha256(packages.as_bytes()),
            packages.len()
        );
        write(target.join(format!("dists/{suite}/Release")), &release)
    }
}

/// Refuses because the pool lacks packages, naming them.
///
/// # Errors
/// Always, unless none is missing.
pub fn refuse_missing(missing: &[&Deb], hint: &str) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<String> =
        missing.iter().take(NAMED).map(|deb| format!("{} {}", deb.name, deb.version)).collect();
    let more = match missing.len().saturating_sub(NAMED) {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    refuse(format_args!("the pool lacks {}{more}", names.join(", ")), hint)
}

/// What a package says of itself.
fn control(file: &Path) -> Result<String> {
    if let Ok(control) = deb::control(file) {
        return Ok(control.text("control")?.to_owned());
    }
    // Compressed otherwise, as others' may be.
    Invocation::of(&DPKG_DEB).arg("--field").arg(file).output()
}

/// A package's stanza in the index: debootstrap installs what is required first, and that
/// is what it installed when the lock was made.
fn stanza(deb: &Deb, control: &str) -> String {
    let mut text = String::new();
    let mut own = true;
    for line in control.lines().filter(|line| !line.is_empty()) {
        if !line.starts_with([' ', '\t']) {
            let name = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            own = !["priority", "filename", "size", "sha256"].contains(&name.as_str());
        }
        if own {
            text += line;
            text.push('\n');
        }
    }
    let priority = if deb.phase == Phase::Base { "required" } else { "optional" };
    let Deb { size, sha256, .. } = deb;
    let file = published(deb);
    text + &format!(
        "Priority: {priority}\nFilename: {POOL}/{file}\nSize: {size}\nSHA256: {sha256}\n\n"
    )
}

/// A package's file in the archive, without the epoch, as Debian has it: debootstrap and apt
/// do not agree on how a `%` is written in an address.
fn published(deb: &Deb) -> String {
    let version = deb.version.split_once(':').map_or(deb.version.as_str(), |(_, rest)| rest);
    format!("{}_{version}_{}.deb", deb.name, deb.architecture)
}

/// Where the packages of the base system are in the archive in `directory`.
#[must_use]
pub fn base_files(lock: &Debian, directory: &Path) -> Vec<PathBuf> {
    let base = lock.packages.iter().filter(|deb| deb.phase == Phase::Base);
    base.map(|deb| directory.join(POOL).join(published(deb))).collect()
}

/// Where a package of the archive is once that is lent to a tree.
#[must_use]
pub fn inside(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    format!("{BORROWED}/{REPOSITORY}/{POOL}/{name}")
}

/// Where apt inside takes packages from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The environment's own sources.
    Mirror,
    /// The archive made of a lock's packages.
    Lock,
}

/// Lends the archive in `directory` to a tree; apt inside finds it by [`options`].
///
/// # Errors
/// When it cannot be bound.
pub fn lend(chroot: &mut Chroot, directory: &Path, suite: &str) -> Result<()> {
    let inside = chroot.lend(directory, REPOSITORY)?;
    let list = chroot.outside(format!("{BORROWED}/locked.list"));
    fs::write(&list, format!("deb [trusted=yes check-date=no] file:{inside} {suite} main\n"))
        .with_context(|| format!("writing {}", list.display()))
}

/// Options of apt-get that make it take packages from this origin.
#[must_use]
pub fn options(origin: Origin) -> Vec<String> {
    match origin {
        Origin::Mirror => Vec::new(),
        // The lock has decided: no pin has a say in it.
        Origin::Lock => vec![
            format!("--option=Dir::Etc::sourcelist={BORROWED}/locked.list"),
            "--option=Dir::Etc::sourceparts=/dev/null".to_owned(),
            "--option=Dir::Etc::preferences=/dev/null".to_owned(),
            "--option=Dir::Etc::preferencesparts=/dev/null".to_owned(),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deb(phase: Phase) -> Deb {
        Deb {
            name: "a".to_owned(),
            version: "1:2".to_owned(),
            architecture: "all".to_owned(),
            phase,
            file: "a_1%3a2_all.deb".to_owned(),
            size: 3,
            sha256: crate::hash::sha256(b"deb"),
        }
    }

    #[test]
    fn a_stanza_says_what_the_lock_says() {
        let control =
            "Package: a\nVersion: 1:2\nPriority: required\nSHA256: 00\n 11\nDescription: b\n c\n";
        insta::assert_snapshot!(stanza(&deb(Phase::Build), control), @r"
        Package: a
        Version: 1:2
        Description: b
         c
        Priority: optional
        Filename: pool/a_2_all.deb
        Size: 3
        SHA256: 9cfa1468c93fc18652e34a000f0c6614b0fa18f6f4887477ad9b0d36ca6a7eaa
        ");
    }

    #[test]
    fn a_package_with_other_bytes_is_missing() {
        let directory = tempfile::tempdir().expect("there is room");
        let pool = Pool::at(directory.path().to_owned());
        let deb = deb(Phase::Base);
        let path = directory.path().join(&deb.file);
        assert_eq!(pool.missing([&deb].into_iter()).expect("readable").len(), 1);
        fs::write(&path, "deb").expect("there is room");
        assert_eq!(pool.missing([&deb].into_iter()).expect("readable").len(), 0);
        fs::write(&path, "dep").expect("there is room");
        let missing = pool.missing([&deb].into_iter()).expect("readable");
        let error = refuse_missing(&missing, "").expect_err("it has other bytes");
        assert_eq!(error.to_string(), "the pool lacks a 1:2");
    }
}
