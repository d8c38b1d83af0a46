//! Distributions that are built: what their builds ask for, and locked files as all an
//! installer has, for installing and for building.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use super::{Installer, POOL, make_virtualenv};
use crate::chroot::{BORROWED, Chroot};
use crate::file;
use crate::lockfile::{Locked, Python};

const ASKED: &str = include_str!("asked.py");

/// What a source asks for, by `asked.py`.
#[derive(serde::Deserialize)]
struct Asked {
    directory: String,
    requires: Vec<String>,
}

/// What the builds of these sdists and directories inside ask for, sorted: what their
/// `pyproject.toml` names, and what their backends then add. The backends are installed
/// for it and run, each in a virtualenv of its own.
///
/// # Errors
/// When a source is none, or a backend cannot be installed or run.
pub fn asked(
    chroot: &Chroot,
    installer: &Installer,
    interpreter: &str,
    sources: &[String],
) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (number, source) in sources.iter().enumerate() {
        let name = source.rsplit('/').next().unwrap_or(source);
        all.extend(
            asked_by(chroot, installer, interpreter, source, number)
                .with_context(|| format!("asking {name} what its build takes"))?,
        );
    }
    all.sort();
    all.dedup();
    Ok(all)
}

fn asked_by(
    chroot: &Chroot,
    installer: &Installer,
    interpreter: &str,
    source: &str,
    number: usize,
) -> Result<Vec<String>> {
    let ask = |python: &str, words: &[&str]| -> Result<Asked> {
        let call = chroot.call(python).args(["-I", "-c", ASKED]).args(words);
        let text = call.named("reading pyproject.toml").output()?;
        serde_json::from_str(&text).context("reading what it asks for")
    };
    let work = format!("{BORROWED}/asked-{number}");
    let unpacked = format!("{work}/source");
    file::make_directory(&chroot.outside(&unpacked), 0o755)?;
    let first = ask(interpreter, &["static", source, &unpacked])?;
    let builder = PathBuf::from(format!("{work}/builder"));
    make_virtualenv(chroot, interpreter, &builder).run()?;
    let wanted = format!("{work}/requirements.txt");
    write(&chroot.outside(&wanted), &first.requires)?;
    if !first.requires.is_empty() {
        installer.install_requirements(chroot, &builder, &wanted, false).run()?;
    }
    let python = builder.join("bin/python");
    let second = ask(&python.to_string_lossy(), &["dynamic", &first.directory])?;
    Ok([first.requires, second.requires].concat())
}

fn write(path: &Path, lines: &[String]) -> Result<()> {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>())
        .with_context(|| format!("writing {}", path.display()))
}

/// Resolves what builds ask for, with hashes, to wheels alone; what is in `kept` stays at
/// its version.
///
/// # Errors
/// When no set of wheels fits all of it.
pub fn resolve(
    chroot: &Chroot,
    installer: &Installer,
    virtualenv: &Path,
    asked: &[String],
    kept: &[&Locked],
) -> Result<Vec<Locked>> {
    let file = format!("{BORROWED}/asked.txt");
    let mut lines = vec!["--only-binary :all:".to_owned()];
    lines.extend_from_slice(asked);
    write(&chroot.outside(&file), &lines)?;
    installer.resolve(chroot, virtualenv, &file, kept)
}

/// The files in the directory that are locked for this distribution.
///
/// # Errors
/// When one cannot be read.
pub fn files_of(wheels: &Path, distribution: &Locked) -> Result<Vec<PathBuf>> {
    let plain = |name: &str| name.to_lowercase().replace(['_', '.'], "-");
    let begin = format!("{}-", plain(&distribution.name));
    let mut found = Vec::new();
    for name in file::names_in(wheels)?.iter().filter(|name| plain(name).starts_with(&begin)) {
        let path = wheels.join(name);
        if distribution.sha256.contains(&crate::hash::of_file(&path)?) {
            found.push(path);
        }
    }
    Ok(found)
}

/// The sdists in the directory that are locked, where there is no wheel instead.
///
/// # Errors
/// When one cannot be read.
pub fn sdists(wheels: &Path, distributions: &[Locked]) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for distribution in distributions {
        let files = files_of(wheels, distribution)?;
        if !files.iter().any(|path| is_wheel(path)) {
            found.extend(files);
        }
    }
    Ok(found)
}

/// Refuses a path an installer takes nothing from; `shown` is how it was named.
///
/// # Errors
/// Then.
pub fn require_installable(path: &Path, shown: &str) -> Result<()> {
    let says = |name: &str| path.join(name).is_file();
    if path.is_file() || ["pyproject.toml", "setup.py", "setup.cfg"].into_iter().any(says) {
        return Ok(());
    }
    bail!("{shown} is neither a wheel, an sdist, nor a directory with a pyproject.toml or setup.py")
}

/// Whether a file is ready to be installed, by its name.
#[must_use]
pub fn is_wheel(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "whl")
}

/// Lends the locked files, and nothing else that `wheels` has, to a build by way of the new
/// directory `target`: installers find these alone then, for builds as well, and so the
/// same ones every time.
///
/// # Errors
/// When there is no room.
pub fn lend_locked(
    chroot: &mut Chroot,
    wheels: &Path,
    lock: Option<&Python>,
    target: &Path,
) -> Result<()> {
    file::make_directory(target, 0o755)?;
    for distribution in lock.iter().flat_map(|lock| lock.all()) {
        for path in files_of(wheels, distribution)? {
            let link = target.join(path.file_name().unwrap_or_default());
            if link.exists() {
                continue;
            }
            // Another file system has no link to it.
            fs::hard_link(&path, &link)
                .or_else(|_| fs::copy(&path, &link).map(drop))
                .with_context(|| format!("taking {}", path.display()))?;
        }
    }
    chroot.lend(target, POOL).map(drop)
}
