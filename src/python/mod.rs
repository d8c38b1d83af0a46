//! Virtualenvs: made with the environment's own interpreter, filled by uv or pip with
//! the same result, and normalised so that two bakes are equal.
//!
//! pip reaches its index through whatever the host is configured for: its certificates,
//! proxies, pip and uv settings are lent to the build on a tmpfs and cannot be packed.

pub mod build;
mod explain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::chroot::{BORROWED, Chroot};
use crate::error::refuse;
use crate::file;
use crate::lockfile::{self, Locked, parse_requirements};
use crate::manifest::Distribution;
use crate::profile;
use crate::run::{Invocation, Tool, check_interrupted};

pub use self::explain::explain;

const UV: Tool = Tool { name: "uv", package: "uv" };
/// The uv that is fetched from the package index when the host has none: version, and
/// the SHA-256 of its wheel for each Debian architecture.
const UV_VERSION: &str = "0.13.8";
const UV_WHEELS: [(&str, &str); 1] =
    [("amd64", "e18a57b8b352eb7c8feb317b9f6f533c8f0ad9673fd6cf34bbe3cf1a9f6a8984")];
/// The Debian package that brings pip as a wheel, without a compiler.
pub const PIP_PACKAGE: &str = "python3-venv";
/// Where Debian keeps the wheels `ensurepip` uses.
const PIP_WHEELS: &str = "/usr/share/python-wheels";
const NORMALISE: &str = include_str!("normalise.py");
const COMPILE: &str = include_str!("compile.py");

/// A program that installs distributions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installer {
    /// uv, at this path inside.
    Uv(String),
    /// pip, as this wheel inside.
    Pip(String),
}

/// What [`choose`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// uv, at this path on the host.
    Uv(PathBuf),
    /// uv is to be fetched with pip first.
    FetchUv,
    /// pip.
    Pip,
}

/// Decides between uv and pip. `auto` takes uv, unless the host names an index for pip
/// alone, which uv would not know.
///
/// # Errors
/// When the profile asks for uv and it cannot be had.
pub fn choose(
    wanted: profile::Installer,
    tools: &Path,
    architecture: &str,
    offline: bool,
) -> Result<Choice> {
    let fetched = fetched_uv(tools);
    let can_fetch = !offline && UV_WHEELS.iter().any(|(name, _)| *name == architecture);
    let found = UV.path().or_else(|| fetched.is_file().then_some(fetched));
    match (wanted, found) {
        (profile::Installer::Pip, _) => Ok(Choice::Pip),
        (profile::Installer::Auto, _) if index_for_pip_alone() => Ok(Choice::Pip),
        (_, Some(path)) => Ok(Choice::Uv(path)),
        (_, None) if can_fetch => Ok(Choice::FetchUv),
        (profile::Installer::Auto, None) => Ok(Choice::Pip),
        (profile::Installer::Uv, None) if offline => refuse(
            "uv is not on this machine",
            "a bake with a network fetches it; or set python.installer = \"pip\"",
        ),
        (profile::Installer::Uv, None) => refuse(
            format_args!(
                "uv is not installed, and farmctl knows no wheel of it for {architecture}"
            ),
            "install uv to /usr/local/bin, or set python.installer = \"pip\"",
        ),
    }
}

/// Configuration files of pip (pip's "Configuration" page) and uv on the host, the one
/// that wins first.
fn configuration(names: [&str; 4]) -> Option<PathBuf> {
    names.into_iter().map(PathBuf::from).find(|path| path.is_file())
}

fn pip_configuration() -> Option<PathBuf> {
    configuration([
        "/root/.config/pip/pip.conf",
        "/root/.pip/pip.conf",
        "/etc/pip.conf",
        "/etc/xdg/pip/pip.conf",
    ])
}

fn uv_configuration() -> Option<PathBuf> {
    configuration([
        "/root/.config/uv/uv.toml",
        "/etc/uv/uv.toml",
        "/etc/xdg/uv/uv.toml",
        "/usr/local/etc/uv/uv.toml",
    ])
}

fn index_for_pip_alone() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some();
    let pip = set("PIP_INDEX_URL")
        || pip_configuration().and_then(|path| fs::read_to_string(path).ok()).is_some_and(|text| {
            text.lines().any(|line| line.trim_start().starts_with("index-url"))
        });
    let uv = set("UV_INDEX_URL")
        || set("UV_DEFAULT_INDEX")
        || set("UV_INDEX")
        || uv_configuration().is_some();
    pip && !uv
}

impl Installer {
    /// Makes the chosen program usable inside; [`PIP_PACKAGE`] must be installed there
    /// unless uv is on the host.
    ///
    /// # Errors
    /// When it cannot be fetched.
    pub fn prepare(
        chroot: &mut Chroot,
        choice: &Choice,
        tools: &Path,
        cache: &Path,
    ) -> Result<Self> {
        for (path, name) in [(pip_configuration(), "pip.conf"), (uv_configuration(), "uv.toml")] {
            if let Some(path) = path {
                chroot.lend(&path, name)?;
            }
        }
        match choice {
            Choice::Pip => {
                chroot.lend_writable(&cache.join("pip"), &format!("{BORROWED}/pip-cache"))?;
                Ok(Self::Pip(pip_wheel(chroot)?))
            }
            Choice::Uv(_) | Choice::FetchUv => {
                let fetched = fetched_uv(tools);
                let path = match choice {
                    Choice::Uv(path) => path.clone(),
                    // What was fetched it with may be gone by the second time.
                    _ if fetched.is_file() => fetched,
                    _ => fetch_uv(chroot, tools)?,
                };
                chroot.lend_writable(&cache.join("uv"), &format!("{BORROWED}/uv-cache"))?;
                Ok(Self::Uv(chroot.lend(&path, "uv")?))
            }
        }
    }

    /// Name for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uv(_) => "uv",
            Self::Pip(_) => "pip",
        }
    }

    /// A call of the program's pip interface.
    fn call(&self, chroot: &Chroot, virtualenv: &Path, verb: &str) -> Invocation {
        let interpreter = virtualenv.join("bin/python");
        match self {
            Self::Uv(path) => chroot
                .downloading(path)
                .env("UV_CACHE_DIR", format!("{BORROWED}/uv-cache"))
                .env("UV_LINK_MODE", "copy")
                .env("UV_PYTHON_DOWNLOADS", "never")
                .env("UV_NO_PROGRESS", "1")
                .envs_if(chroot, "uv.toml", "UV_CONFIG_FILE")
                .args(["pip", verb, "--python"])
                .arg(interpreter),
            Self::Pip(wheel) => chroot
                .downloading(&interpreter.to_string_lossy())
                .env("PIP_CACHE_DIR", format!("{BORROWED}/pip-cache"))
                .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
                .env("PIP_ROOT_USER_ACTION", "ignore")
                .env("PIP_NO_INPUT", "1")
                .envs_if(chroot, "pip.conf", "PIP_CONFIG_FILE")
                .arg(format!("{wheel}/pip"))
                .arg(verb),
        }
        .named(format!("{} {verb}", self.name()))
    }

    /// The call that installs a requirements file; `hashed` refuses anything not pinned.
    #[must_use]
    pub fn install_requirements(
        &self,
        chroot: &Chroot,
        virtualenv: &Path,
        file: &str,
        hashed: bool,
    ) -> Invocation {
        let mut call = self.installing(chroot, virtualenv);
        if hashed {
            call = call.arg("--require-hashes");
        }
        call.args(["-r", file])
    }

    /// The call that installs these requirements, or paths inside, with what they depend on.
    #[must_use]
    pub fn install(&self, chroot: &Chroot, virtualenv: &Path, wanted: &[String]) -> Invocation {
        self.installing(chroot, virtualenv).args(wanted)
    }

    /// The call that installs what is at a path inside, also if its version is there already.
    #[must_use]
    pub fn install_again(&self, chroot: &Chroot, virtualenv: &Path, path: &str) -> Invocation {
        // What was built before was built of other files.
        let call = self.installing(chroot, virtualenv);
        call.args(["--force-reinstall", "--no-cache-dir", "--no-deps", path])
    }

    /// The call that installs the project itself.
    #[must_use]
    pub fn install_project(&self, chroot: &Chroot, virtualenv: &Path, path: &str) -> Invocation {
        self.installing(chroot, virtualenv).args(["--no-deps", path])
    }

    fn installing(&self, chroot: &Chroot, virtualenv: &Path) -> Invocation {
        let mut call = self.call(chroot, virtualenv, "install");
        let wheels = format!("{BORROWED}/{POOL}");
        if chroot.outside(&wheels).exists() {
            call = call.args(["--no-index", "--find-links", &wheels]);
            // A wheel that was built before may be of another build's requirements, and the
            // host's settings may name more places.
            call = match self {
                Self::Uv(_) => call.args(["--offline", "--no-cache", "--no-config"]),
                Self::Pip(_) => call.arg("--no-cache-dir").env("PIP_CONFIG_FILE", "/dev/null"),
            };
        }
        match self {
            // Byte code is compiled afterwards, serially: compiled in parallel or with
            // paths of a build, it differs from run to run (python/cpython#129724).
            Self::Uv(_) => call,
            Self::Pip(_) => call.arg("--no-compile"),
        }
    }

    /// Resolves a requirements file for the virtualenv's interpreter, with hashes; what is
    /// in `kept` stays at its version.
    ///
    /// # Errors
    /// When it cannot be resolved: with the program's own words.
    pub fn resolve(
        &self,
        chroot: &Chroot,
        virtualenv: &Path,
        file: &str,
        kept: &[&Locked],
    ) -> Result<Vec<Locked>> {
        let pins = format!("{BORROWED}/kept.txt");
        let lines = kept.iter().map(|one| format!("{}=={}\n", one.name, one.version));
        fs::write(chroot.outside(&pins), lines.collect::<String>())
            .context("writing the versions that stay")?;
        match self {
            Self::Uv(_) => {
                // It keeps what its output file has, where the requirements let it.
                self.call(chroot, virtualenv, "compile")
                    .args([
                        "--quiet",
                        "--generate-hashes",
                        "--no-header",
                        "--no-annotate",
                        "--no-strip-extras",
                        "--output-file",
                        &pins,
                        file,
                    ])
                    .run()?;
                let text = fs::read_to_string(chroot.outside(&pins))
                    .context("reading what uv resolved")?;
                parse_requirements(&text)
            }
            Self::Pip(_) => {
                let report = |more: &[&str]| {
                    self.call(chroot, virtualenv, "install")
                        .args(["--quiet", "--dry-run", "--ignore-installed", "--report", "-"])
                        .args(more)
                        .args(["-r", file])
                        .output()
                };
                // A constraint is strict: what does not fit any more must move.
                let text = report(&["--constraint", &pins]).or_else(|error| {
                    check_interrupted()?;
                    if kept.is_empty() { Err(error) } else { report(&[]) }
                })?;
                parse_report(&text)
            }
        }
    }
}

/// Name inside of the wheels and sdists that are all an installer has, if they are lent
/// ([`build::lend_locked`]).
const POOL: &str = "wheels";

/// Downloads these distributions, by hash, to the directory `wheels` of the host, with the
/// environment's own pip: [`PIP_PACKAGE`] must be installed. Each line it prints is passed on.
///
/// # Errors
/// When one cannot be fetched, or has other hashes.
pub fn download(
    chroot: &mut Chroot,
    virtualenv: &Path,
    distributions: &[Locked],
    wheels: &Path,
    show: &dyn Fn(&str),
) -> Result<()> {
    let inside = format!("{BORROWED}/kept");
    if !chroot.outside(&inside).exists() {
        chroot.lend_writable(wheels, &inside)?;
    }
    let file = format!("{BORROWED}/locked.txt");
    fs::write(chroot.outside(&file), lockfile::requirements(distributions))
        .context("writing the requirements")?;
    let pip = Installer::Pip(pip_wheel(chroot)?);
    pip.call(chroot, virtualenv, "download")
        .args(["--progress-bar", "off", "--no-deps", "--require-hashes"])
        .args(["--dest", &inside, "-r", &file])
        .run_lines(show)
}

/// Names and versions of the distributions of which no locked file is in the directory.
///
/// # Errors
/// When it cannot be read.
pub fn missing(wheels: &Path, distributions: &[Locked]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for distribution in distributions {
        if build::files_of(wheels, distribution)?.is_empty() {
            missing.push(format!("{} {}", distribution.name, distribution.version));
        }
    }
    Ok(missing)
}

impl Invocation {
    /// Sets `variable` to a lent file's path if it was lent.
    fn envs_if(self, chroot: &Chroot, name: &str, variable: &str) -> Self {
        let path = format!("{BORROWED}/{name}");
        if chroot.outside(&path).exists() { self.env(variable, path) } else { self }
    }
}

/// pip's installation report (<https://pip.pypa.io/en/stable/reference/installation-report/>).
fn parse_report(text: &str) -> Result<Vec<Locked>> {
    #[derive(serde::Deserialize)]
    struct Report {
        install: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        metadata: Metadata,
        download_info: DownloadInfo,
    }
    #[derive(serde::Deserialize)]
    struct Metadata {
        name: String,
        version: String,
    }
    #[derive(serde::Deserialize)]
    struct DownloadInfo {
        archive_info: Option<ArchiveInfo>,
    }
    #[derive(serde::Deserialize)]
    struct ArchiveInfo {
        hash: Option<String>,
    }
    let report: Report = serde_json::from_str(text).context("reading pip's report")?;
    let mut found = Vec::new();
    for item in report.install {
        let name = item.metadata.name.to_lowercase().replace(['_', '.'], "-");
        let hash = item.download_info.archive_info.and_then(|info| info.hash);
        let Some(hash) = hash.as_deref().and_then(|hash| hash.strip_prefix("sha256=")) else {
            bail!("{name} comes from a place that gives no hash");
        };
        found.push(Locked { name, version: item.metadata.version, sha256: vec![hash.to_owned()] });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn pip_wheel(chroot: &Chroot) -> Result<String> {
    let names = file::names_in(&chroot.outside(PIP_WHEELS))?;
    let wheel = names.iter().find(|name| name.starts_with("pip-"));
    let wheel = wheel.with_context(|| format!("looking for pip in {PIP_WHEELS}"))?;
    Ok(format!("{PIP_WHEELS}/{wheel}"))
}

/// Where uv is on the host, if it was fetched.
fn fetched_uv(tools: &Path) -> PathBuf {
    tools.join(format!("uv-{UV_VERSION}")).join("uv")
}

/// Fetches uv's wheel with the environment's pip and keeps its program in the cache.
fn fetch_uv(chroot: &mut Chroot, tools: &Path) -> Result<PathBuf> {
    let wheel = pip_wheel(chroot)?;
    let hashes: String =
        UV_WHEELS.iter().map(|(_, hash)| format!(" --hash=sha256:{hash}")).collect();
    let requirement = chroot.outside(format!("{BORROWED}/uv.txt"));
    fs::write(&requirement, format!("uv=={UV_VERSION}{hashes}\n"))
        .context("writing uv's requirement")?;
    chroot.lend_writable(tools, &format!("{BORROWED}/tools"))?;
    let name = format!("uv-{UV_VERSION}");
    let inside = format!("{BORROWED}/tools/.{name}");
    let mut download = chroot
        .downloading("python3")
        .arg(format!("{wheel}/pip"))
        .args([
            "download",
            "--no-deps",
            "--only-binary",
            ":all:",
            "--require-hashes",
            "--dest",
            &inside,
        ])
        .args(["-r", &format!("{BORROWED}/uv.txt")])
        .named("pip download uv");
    download = download.envs_if(chroot, "pip.conf", "PIP_CONFIG_FILE");
    download.run().context("fetching uv")?;
    let script = "import glob, sys, zipfile\n\
                  wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/*.whl')[0])\n\
                  name = next(n for n in wheel.namelist() if n.endswith('.data/scripts/uv'))\n\
                  open(sys.argv[1] + '/uv', 'wb').write(wheel.read(name))\n";
    chroot.call("python3").args(["-c", script, &inside]).run().context("unpacking uv")?;
    let unpacked = tools.join(format!(".{name}"));
    fs::set_permissions(unpacked.join("uv"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .context("making uv executable")?;
    for leftover in file::names_in(&unpacked)?.iter().filter(|name| name.ends_with(".whl")) {
        file::remove_if_there(&unpacked.join(leftover))?;
    }
    fs::rename(&unpacked, tools.join(&name)).context("keeping uv")?;
    Ok(fetched_uv(tools))
}

/// The call that makes an empty virtualenv with the environment's interpreter.
#[must_use]
pub fn make_virtualenv(chroot: &Chroot, interpreter: &str, virtualenv: &Path) -> Invocation {
    chroot
        .call(interpreter)
        .args(["-m", "venv", "--without-pip"])
        .arg(virtualenv)
        .named("making the virtualenv")
}

/// Removes what differs between installers and runs (who installed, from where, locks
/// and caches) and writes every console script in one form.
///
/// # Errors
/// When the virtualenv's interpreter does not run.
pub fn normalise(chroot: &Chroot, virtualenv: &Path) -> Result<()> {
    let interpreter = virtualenv.join("bin/python");
    chroot
        .call(&interpreter.to_string_lossy())
        .args(["-I", "-c", NORMALISE])
        .arg(virtualenv)
        .named("normalising the virtualenv")
        .run()
}

/// Compiles byte code beneath these paths where there is none of the source as it is: in
/// one process, sorted, `checked-hash` (PEP 552), so that equal sources give equal bytes and
/// a source edited in a session is honoured on reload.
///
/// # Errors
/// When the interpreter cannot be run. A source with a syntax error is passed over, as
/// pip does: distributions ship templates and tests for other Pythons.
pub fn compile(chroot: &Chroot, interpreter: &str, paths: &[PathBuf]) -> Result<()> {
    compiling(chroot.call(interpreter), paths).run()
}

/// The call that compiles byte code as [`compile`] does, made of one of an interpreter.
#[must_use]
pub fn compiling(call: Invocation, paths: &[PathBuf]) -> Invocation {
    // Not -I: the seed of hashes is among the variables.
    call.args(["-c", COMPILE]).args(paths).named("compiling byte code")
}

/// A path of a tree, without leading slash, and the distribution that owns it.
pub type Owned = (String, String);

/// Distributions in a virtualenv by name, and whose each path is.
///
/// # Errors
/// When their records cannot be read.
pub fn distributions(tree: &Path, virtualenv: &Path) -> Result<(Vec<Distribution>, Vec<Owned>)> {
    let inside = virtualenv.strip_prefix("/").unwrap_or(virtualenv);
    let mut found = Vec::new();
    let mut owners = Vec::new();
    let lib = tree.join(inside).join("lib");
    for python in file::names_in(&lib)?.iter().filter(|name| name.starts_with("python3")) {
        let packages = inside.join("lib").join(python).join("site-packages");
        for name in file::names_in(&tree.join(&packages))? {
            let Some(stem) = name.strip_suffix(".dist-info") else { continue };
            let (name, version) = stem.split_once('-').unwrap_or((stem, ""));
            found.push(Distribution { name: name.to_owned(), version: version.to_owned() });
            let record = tree.join(&packages).join(format!("{stem}.dist-info/RECORD"));
            for line in file::read_if_there(&record)?.unwrap_or_default().lines() {
                let path = line.rsplitn(3, ',').nth(2).unwrap_or(line).trim_matches('"');
                owners.push((plain(&packages.join(path)), name.to_owned()));
            }
        }
    }
    found.sort();
    Ok((found, owners))
}

/// A path with its `..` resolved by name.
fn plain(path: &Path) -> String {
    let mut parts: Vec<&std::ffi::OsStr> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                parts.pop();
            }
            std::path::Component::Normal(name) => parts.push(name),
            _ => {}
        }
    }
    parts.iter().collect::<PathBuf>().to_string_lossy().into_owned()
}

/// The path of the project's copy inside while it is built.
pub const PROJECT: &str = "/run/farmctl-build/project";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pips_report_gives_names_versions_and_hashes() {
        let report = r#"{"version":"1","install":[{"download_info":{"url":"x","archive_info":
            {"hash":"sha256=ab"}},"metadata":{"name":"Foo_Bar","version":"1.0"}}]}"#;
        let locked = parse_report(report).expect("it is a report");
        assert_eq!(
            locked,
            [Locked {
                name: "foo-bar".to_owned(),
                version: "1.0".to_owned(),
                sha256: vec!["ab".to_owned()]
            }]
        );
    }

    #[test]
    fn recorded_paths_outside_site_packages_are_resolved() {
        assert_eq!(
            plain(Path::new("srv/x/venv/lib/python3.11/site-packages/../../../bin/gunicorn")),
            "srv/x/venv/bin/gunicorn"
        );
    }
}
