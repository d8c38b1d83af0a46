//! The place a bake works in: a fork of the environment's volume with the project's
//! files, the installer and the build packages in it.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::chroot::{BORROWED, Chroot};
use crate::debian::{self, Origin};
use crate::error::Mark as _;
use crate::file;
use crate::git;
use crate::kept::Kept;
use crate::layout::{self, Layout};
use crate::locked;
use crate::lockfile;
use crate::manifest::{Manifest, Package};
use crate::node::{Object, Transaction};
use crate::profile::{Profile, Python};
use crate::python::{self, Choice, Installer};
use crate::release::EnvironmentRecord;
use crate::source::{self, Source};
use crate::storage::{self, Access, Storage, Tree};

/// Where a fork that is kept has the project's files, on itself.
const KEPT: &str = "/var/tmp/farmctl-build";

/// A fork of an environment, entered.
#[derive(Debug)]
#[must_use = "the mounts end when this is dropped"]
pub struct Stage {
    /// The fork, entered.
    pub chroot: Chroot,
    /// SHA-256 over the project's files; empty until they are brought.
    pub project_sha256: String,
    /// Name of the volume.
    pub volume: String,
    /// The volume's tree; given back before the volume is removed.
    pub tree: Tree,
    /// The packages that were there before.
    pub before: Vec<Package>,
    origin: Origin,
    /// Where the host keeps packages that were fetched.
    archives: PathBuf,
}

impl Stage {
    /// Forks the environment, or a tree of it that is kept; lies over it only, unless it `stays`
    /// to be looked at when the other one may have gone.
    ///
    /// # Errors
    /// When there is no room.
    pub fn open(
        storage: &dyn Storage,
        environment: &EnvironmentRecord,
        kept: Option<&Kept>,
        stays: bool,
        layout: &Layout,
        transaction: &mut Transaction,
    ) -> Result<Self> {
        let volume = layout::stage_volume(transaction.id());
        transaction
            .intend(Object::Volume { storage: storage.name().to_owned(), name: volume.clone() })?;
        let from = kept.map_or(&environment.volume, |kept| &kept.volume);
        if stays {
            storage.fork(from, &volume, &transaction.mark())?;
        } else {
            storage.layer(from, &volume, &transaction.mark())?;
        }
        let tree = storage.open(&volume, Access::ReadWrite)?;
        let EnvironmentRecord { suite, architecture, epoch, .. } = environment;
        let mut stage = Self::enter(tree, volume, (suite, architecture), *epoch, layout)?;
        if let Some(kept) = kept {
            stage.before.clone_from(&kept.before);
        }
        Ok(stage)
    }

    /// Copies the project's files in.
    ///
    /// # Errors
    /// When they cannot be read, or there is no room.
    pub fn bring_project(&mut self, source: &Source) -> Result<()> {
        let project = self.chroot.outside(python::PROJECT);
        file::make_directory(&project, 0o755)?;
        let epoch = self.chroot.epoch();
        self.project_sha256 = source.copy_to(&project, epoch).context("copying the project")?;
        Ok(())
    }

    /// Makes a sealed volume of the tree as it is now. What was lent, and the project's files,
    /// must be brought again.
    ///
    /// # Errors
    /// When something in it still runs, or there is no room.
    pub fn fork(
        &mut self,
        storage: &dyn Storage,
        to: &str,
        transaction: &Transaction,
    ) -> Result<()> {
        let Self { chroot, volume, tree, .. } = self;
        self.origin = Origin::Mirror;
        chroot.suspended(|| {
            tree.suspended(|| {
                storage.fork(volume, to, &transaction.mark())?;
                storage.seal(to, Access::ReadOnly)?;
                storage.open(volume, Access::ReadWrite)
            })
        })?;
        debian::lend_archives(&mut self.chroot, &self.archives)
    }

    /// Enters a fork of a release instead.
    ///
    /// # Errors
    /// When it cannot be entered.
    pub fn of_release(
        tree: Tree,
        volume: String,
        manifest: &Manifest,
        layout: &Layout,
    ) -> Result<Self> {
        let debian = (manifest.profile.environment.suite.as_str(), &*manifest.architecture);
        Self::enter(tree, volume, debian, manifest.epoch, layout)
    }

    fn enter(
        tree: Tree,
        volume: String,
        (suite, architecture): (&str, &str),
        epoch: i64,
        layout: &Layout,
    ) -> Result<Self> {
        let mut chroot = Chroot::enter(tree.path(), epoch)?;
        let archives = debian::package_cache(&layout.cache(), suite, architecture);
        debian::lend_archives(&mut chroot, &archives)?;
        let before = debian::installed_packages(&chroot)?;
        let project_sha256 = String::new();
        let origin = Origin::Mirror;
        Ok(Self { chroot, project_sha256, volume, tree, before, origin, archives })
    }

    /// Takes packages from this archive of a lock's packages from now on.
    ///
    /// # Errors
    /// When it cannot be lent.
    pub fn follow(&mut self, repository: &Path, suite: &str) -> Result<()> {
        debian::pool::lend(&mut self.chroot, repository, suite)?;
        self.origin = Origin::Lock;
        Ok(())
    }

    /// Installs the build packages; nothing is fetched if there are none. Each line apt prints
    /// is passed on.
    ///
    /// # Errors
    /// When one does not exist or cannot be installed.
    pub fn install_build_packages(&self, packages: &[String], show: &dyn Fn(&str)) -> Result<()> {
        if packages.is_empty() {
            return Ok(());
        }
        let names: Vec<&str> = packages.iter().map(String::as_str).collect();
        // Else apt-get(8) succeeds without what it could not fetch.
        let strictly = "--option=APT::Update::Error-Mode=any";
        debian::apt_get(&self.chroot, self.origin, &["update", strictly])
            .run_lines(show)
            .context("reading the archive's indexes")
            .hint("is the mirror in the environment's /etc/apt reachable from here?")?;
        let call = debian::apt_get(&self.chroot, self.origin, &["install"]).args(names);
        debian::install(&call, "build.packages", show).context("installing the build packages")
    }

    /// Purges every package that was not in the environment before.
    ///
    /// # Errors
    /// When a package refuses to go.
    pub fn purge_build_packages(&self) -> Result<()> {
        let known: Vec<&str> = self.before.iter().map(|package| package.name.as_str()).collect();
        let now = debian::installed_packages(&self.chroot)?;
        let added: Vec<&str> = now
            .iter()
            .map(|package| package.name.as_str())
            .filter(|name| !known.contains(name))
            .collect();
        if added.is_empty() {
            return Ok(());
        }
        debian::apt_get(&self.chroot, self.origin, &["purge", "--allow-remove-essential"])
            .args(added)
            .run()
            .context("purging the build packages")
    }

    /// Runs a step of `build.before`, a line of sh, as root in the project's files.
    ///
    /// # Errors
    /// With its last lines when it does not exit with 0.
    pub fn run_step(&self, command: &str) -> Result<()> {
        let line = format!("cd {} && {command}", python::PROJECT);
        let step = self.chroot.downloading("/bin/sh").args(["-e", "-c", &line]);
        step.named(format!("\"{command}\"")).foreign().run().context("running build.before").hint(
            "build.before runs as root in a fork of the environment, in a copy of the profile's \
             directory: -vv shows all it prints, farmctl bake PROFILE --keep keeps it",
        )
    }

    /// The project's path inside: in its copied files, or a pinned commit lent from the host.
    ///
    /// # Errors
    /// When it is not there, or nothing that can be installed.
    pub fn fetch_project(
        &self,
        project: &str,
        epoch: i64,
        layout: &Layout,
        transaction: &mut Transaction,
    ) -> Result<String> {
        let Some(url) = project.strip_prefix("git+") else {
            let path = Path::new(python::PROJECT).join(project);
            let outside = self.chroot.outside(&path);
            python::build::require_installable(&outside, project)
                .hint("use [[copy]] for files that are no Python distribution")?;
            return Ok(path.to_string_lossy().into_owned());
        };
        let (url, commit) = url.rsplit_once('@').unwrap_or((url, ""));
        let work = locked::work(layout, transaction)?;
        let checkout = work.join("checkout");
        git::checkout(url, commit, &checkout).with_context(|| format!("fetching {project}"))?;
        let target = self.chroot.outside(format!("{BORROWED}/checkout"));
        source::copy_as_is(&checkout, &target, epoch)?;
        storage::remove_tree(&checkout)?;
        Ok(format!("{BORROWED}/checkout"))
    }

    /// Keeps the project's files, as the steps have left them, with the fork; if they were
    /// brought.
    ///
    /// # Errors
    /// When there is no room.
    pub fn keep_project(&self) -> Result<()> {
        let (from, to) = (self.chroot.outside(python::PROJECT), self.chroot.outside(KEPT));
        if !from.exists() {
            return Ok(());
        }
        source::copy_as_is(&from, &to, 0).context("keeping the project's files")
    }

    /// Leaves the fork and removes it.
    ///
    /// # Errors
    /// When something in it still runs.
    pub fn close(self, storage: &dyn Storage) -> Result<()> {
        self.chroot.leave()?;
        self.tree.close()?;
        storage.remove(&self.volume)
    }

    /// The requirements file inside, if the profile has one, and its text with that of the
    /// files it includes: a lock is for all of it.
    ///
    /// # Errors
    /// When it is not there after the `before` steps.
    pub fn requirements(&self, python: &Python) -> Result<Option<(String, String)>> {
        let Some(file) = &python.requirements else { return Ok(None) };
        let inside = Path::new(python::PROJECT).join(file);
        let text = read_requirements(&self.chroot.outside(python::PROJECT), file)?;
        Ok(Some((inside.to_string_lossy().into_owned(), text)))
    }

    /// Puts requirements where the installer finds them, beside the project's own files, and
    /// answers the path inside.
    ///
    /// # Errors
    /// When there is no room.
    pub fn lend_requirements(&self, text: &str) -> Result<String> {
        let inside = format!("{BORROWED}/requirements.txt");
        let path = self.chroot.outside(&inside);
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        Ok(inside)
    }

    /// SHA-256 of what a bake builds, these sdists and the project, as far as it says what
    /// the build takes. Empty if nothing is built.
    ///
    /// # Errors
    /// When something of it cannot be read.
    pub fn build_request(&self, python: &Python, sdists: &[PathBuf]) -> Result<String> {
        let mut asked = Vec::new();
        for sdist in sdists {
            asked.push(crate::hash::of_file(sdist)?);
        }
        if let Some(project) = built_project(python) {
            // A commit is what it is.
            asked.push(project.to_owned());
            let path = self.chroot.outside(Path::new(python::PROJECT).join(project));
            let says = ["pyproject.toml", "setup.py", "setup.cfg"].map(|name| path.join(name));
            for file in [path].iter().chain(&says).filter(|file| file.is_file()) {
                asked.push(crate::hash::of_file(file)?);
            }
        }
        if asked.is_empty() {
            return Ok(String::new());
        }
        Ok(crate::hash::sha256(asked.join("\n").as_bytes()))
    }
}

/// The project, if it is one that is built.
#[must_use]
pub fn built_project(python: &Python) -> Option<&str> {
    python.project.as_deref().filter(|project| !python::build::is_wheel(Path::new(project)))
}

/// A requirements file in the project's directory, with the text of the files it includes.
///
/// # Errors
/// When one is not there.
pub fn read_requirements(directory: &Path, file: &Path) -> Result<String> {
    whole_requirements(directory, file, 0)
        .with_context(|| format!("reading python.requirements {}", file.display()))
        .hint("the path is relative to the profile; build.before may write the file")
}

/// How deep requirements files include others, at most.
const DEPTH: usize = 16;

/// A requirements file in a directory, with what `-r FILE` includes in its place and what
/// `-c FILE` names behind it, as a comment.
fn whole_requirements(directory: &Path, file: &Path, depth: usize) -> Result<String> {
    let text = std::fs::read_to_string(directory.join(file))
        .with_context(|| format!("reading {}", file.display()))?;
    if depth == DEPTH {
        return crate::error::refuse(
            format_args!("{} is included by files it includes", file.display()),
            "take one of the -r lines away",
        );
    }
    let mut whole = String::new();
    for line in text.split_inclusive('\n') {
        let beside = |name: &str| file.parent().unwrap_or(Path::new("")).join(name);
        match lockfile::included(line) {
            None => whole.push_str(line),
            Some(lockfile::Included::Requirements(name)) => {
                let inner = whole_requirements(directory, &beside(name), depth + 1)?;
                whole.push_str(inner.trim_end());
                whole.push('\n');
            }
            Some(lockfile::Included::Constraints(name)) => {
                let name = beside(name);
                let inner = whole_requirements(directory, &name, depth + 1)?;
                let _ = writeln!(whole, "-c {}", name.display());
                whole.extend(inner.lines().map(|line| format!("# {line}\n")));
            }
        }
    }
    Ok(whole)
}

/// Enters a fork that was kept, with the project's files where they were.
///
/// # Errors
/// When it cannot be entered.
pub fn enter_kept(tree: &Path, epoch: i64) -> Result<Chroot> {
    let mut chroot = Chroot::enter(tree, epoch)?;
    let kept = chroot.outside(KEPT);
    chroot.lend_writable(&kept, python::PROJECT)?;
    Ok(chroot)
}

/// The environment of a profile, bootstrapped.
///
/// # Errors
/// When it is not there.
pub fn environment(node: &crate::node::Node, source: &Source) -> Result<EnvironmentRecord> {
    let name = &source.profile.name;
    match node.environment(name)? {
        Some(environment) => Ok(environment),
        None => crate::error::refuse(
            format_args!("there is no environment {name}"),
            format!("farmctl bootstrap {}", source.directory.display()),
        ),
    }
}

/// Debian packages a bake of this profile installs first and purges last.
#[must_use]
pub fn build_packages(profile: &Profile, choice: Option<&Choice>) -> Vec<String> {
    let mut packages = profile.build.packages.clone();
    if matches!(choice, Some(Choice::Pip | Choice::FetchUv)) {
        packages.push(python::PIP_PACKAGE.to_owned());
    }
    packages
}

/// Makes the virtualenv and an installer for it.
///
/// # Errors
/// When the interpreter is missing or the installer cannot be had.
pub fn make_virtualenv(
    stage: &mut Stage,
    python: &Python,
    virtualenv: &Path,
    choice: &Choice,
    layout: &Layout,
) -> Result<Installer> {
    let installer = prepare_installer(stage, choice, layout)?;
    python::make_virtualenv(&stage.chroot, &python.interpreter, virtualenv)
        .run()
        .hint_with(|| format!("add \"{}\" to environment.packages", python.interpreter))?;
    Ok(installer)
}

/// Makes the chosen installer usable in the stage.
///
/// # Errors
/// When it cannot be had.
pub fn prepare_installer(stage: &mut Stage, choice: &Choice, layout: &Layout) -> Result<Installer> {
    Installer::prepare(&mut stage.chroot, choice, &layout.tools(), &layout.cache())
}

/// The requirements a bake installs: the profile's file if all of it is hashed, else
/// what `farmctl.lock` locked for exactly that file. `Ok(None)`: as they are, unhashed.
///
/// # Errors
/// When they carry no hashes and the profile does not allow that.
pub fn hashed_requirements(source: &Source, python: &Python, text: &str) -> Result<Option<String>> {
    if lockfile::all_hashed(text) {
        return Ok(Some(text.to_owned()));
    }
    let locked = source.lock.as_ref().and_then(|(lock, _)| lock.python.as_ref());
    let hint = format!("farmctl lock {}", source.directory.display());
    match locked {
        Some(locked) if locked.requirements_sha256 == crate::hash::sha256(text.as_bytes()) => {
            Ok(Some(lockfile::requirements(&locked.distributions)))
        }
        _ if !python.require_hashes => Ok(None),
        Some(_) => crate::error::refuse(
            "the requirements have changed since farmctl.lock was written",
            hint,
        ),
        None => crate::error::refuse(
            "the requirements carry no hashes and there is no farmctl.lock",
            hint,
        ),
    }
}

/// Makes a virtualenv that was filled the same as any other that was filled so, with byte
/// code.
///
/// # Errors
/// When the interpreter fails.
pub fn finish_virtualenv(chroot: &Chroot, python: &Python, virtualenv: &Path) -> Result<()> {
    python::normalise(chroot, virtualenv)?;
    python::compile(chroot, &python.interpreter, &[virtualenv.to_owned()])
}

/// The interpreter whose byte code what is copied has.
#[must_use]
pub fn interpreter(profile: &Profile) -> &str {
    profile.python.as_ref().map_or("python3", |python| &python.interpreter)
}

/// Compiles byte code of what is copied, if the environment has a Python.
///
/// # Errors
/// When the interpreter fails.
pub fn compile_copied(chroot: &Chroot, profile: &Profile) -> Result<()> {
    let interpreter = interpreter(profile);
    let mut copied: Vec<PathBuf> = profile.copies.iter().map(|copy| copy.to.clone()).collect();
    copied.sort();
    let has_python = profile.python.is_some() || chroot.outside("/usr/bin/python3").exists();
    if copied.is_empty() || !has_python {
        return Ok(());
    }
    python::compile(chroot, interpreter, &copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn included_requirements_stand_where_they_are_included() {
        let root = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: &str| {
            std::fs::write(root.path().join(name), text).expect("it is writable");
        };
        std::fs::create_dir(root.path().join("needs")).expect("it is writable");
        write("all.txt", "-r needs/base.txt\ngunicorn\n");
        write("needs/base.txt", "flask  # yes\n-c pins.txt\n--requirement=more.txt");
        write("needs/pins.txt", "flask<4\n");
        write("needs/more.txt", "redis");
        let read = |name: &str| whole_requirements(root.path(), Path::new(name), 0);
        assert_eq!(
            read("all.txt").expect("all are there"),
            "flask  # yes\n-c needs/pins.txt\n# flask<4\nredis\ngunicorn\n"
        );
        write("needs/more.txt", "-r base.txt\n");
        let error = format!("{:#}", read("all.txt").expect_err("they go round"));
        assert!(error.contains("is included by files it includes"), "{error}");
        write("needs/more.txt", "-r none.txt\n");
        let error = format!("{:#}", read("all.txt").expect_err("there is none"));
        assert!(error.contains("reading needs/none.txt"), "{error}");
    }
}
