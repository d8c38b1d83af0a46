//! Making a Debian tree: archive, debootstrap, apt, and the clean-up before packing.

pub mod apt;
mod archive;
mod clean;
mod deb;
mod installed;
pub mod pool;
pub mod unpack;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::{Context as _, Result};

use self::apt::Apt;
pub use self::archive::{Archive, fetch_indexes, host_mirror, newest_index, package_cache};
pub use self::clean::clean;
pub use self::installed::{Ownership, installed_packages, is_older, name_of};
pub use self::pool::{Origin, Pool};
use crate::chroot::Chroot;
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::machine::{self, APT_GET};
use crate::profile::Environment;
use crate::run::{Invocation, Tool, check_interrupted};

const DEBOOTSTRAP: Tool = Tool { name: "debootstrap", package: "debootstrap" };
const DPKG: Tool = Tool { name: "dpkg", package: "dpkg" };
const GPGV: Tool = Tool { name: "gpgv", package: "gpgv" };
/// Programs on the host that a bootstrap needs.
pub const TOOLS: [&Tool; 4] = [&APT_GET, &DEBOOTSTRAP, &DPKG, &GPGV];

/// Debian's archive keys, on the host and in every environment.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where downloaded packages are kept inside an environment while apt runs.
const ARCHIVES: &str = "/var/cache/apt/archives";
/// User id of the environment's own user; a session gives it the application's.
pub const USER_UID: u32 = 1000;

/// The host's Debian architecture.
///
/// # Errors
/// When dpkg does not answer.
pub fn architecture() -> Result<String> {
    Ok(Invocation::of(&DPKG).arg("--print-architecture").output()?.trim().to_owned())
}

/// The debootstrap call that installs from an archive made of these packages alone.
#[must_use]
pub fn debootstrap(
    environment: &Environment,
    tree: &Path,
    epoch: i64,
    repository: &Path,
) -> Invocation {
    // Its files were compared with their hashes, which are what is trusted here.
    let mut call = Invocation::of(&DEBOOTSTRAP).args(["--variant=minbase", "--no-check-gpg"]);
    call = call.args(wishes(environment));
    call.arg(&environment.suite)
        .arg(tree)
        .arg(format!("file://{}", repository.display()))
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .contained()
}

/// Names of the packages of the base system: what debootstrap itself installs. By way of the
/// directory `work`, which debootstrap makes and removes.
///
/// # Errors
/// When the mirror does not answer, or lacks one that `include` names.
pub fn base_packages(
    environment: &Environment,
    archive: &Archive,
    apt: &Apt,
    work: &Path,
) -> Result<Vec<String>> {
    // Others' sources may call required what they like.
    if unpack::fits(environment) && environment.apt_sources.is_empty() {
        let base = apt.resolve(&unpack::wanted(archive), "the base system")?;
        return Ok(base.into_iter().map(|offer| offer.deb.name).collect());
    }
    let call = Invocation::of(&DEBOOTSTRAP)
        .args(["--print-debs", "--variant=minbase", "--force-check-gpg"])
        .arg(format!("--keyring={KEYRING}"))
        .arg(format!("--components={}", archive.components.join(",")))
        .args(wishes(environment));
    let call =
        machine::proxied(call).arg(&archive.suite).arg(work).arg(&archive.mirror).contained();
    let text = call.output().hint("are all packages of include in that suite?")?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

fn wishes(environment: &Environment) -> Vec<String> {
    let named = [("include", &environment.include), ("exclude", &environment.exclude)];
    let named = named.iter().filter(|(_, packages)| !packages.is_empty());
    named.map(|(name, packages)| format!("--{name}={}", packages.join(","))).collect()
}

/// Runs debootstrap into the empty `tree`; `line` gets its messages.
///
/// # Errors
/// With debootstrap's last lines, its own log included.
pub fn run_debootstrap(call: &Invocation, tree: &Path, line: impl FnMut(&str)) -> Result<()> {
    write_build_settings(tree)?;
    let Err(error) = call.run_lines(line) else { return Ok(()) };
    check_interrupted()?;
    let log = fs::read_to_string(tree.join("debootstrap/debootstrap.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let last: String =
        lines[lines.len().saturating_sub(8)..].iter().map(|line| format!("\n  | {line}")).collect();
    let hint = "are all packages of include in that suite? farmctl bootstrap -v shows the call";
    Err(anyhow::anyhow!("{error:#}{last}")).hint(hint)
}

/// dpkg settings of builds, beneath a tree; removed by [`clean()`].
const BUILD_DPKG: &str = "etc/dpkg/dpkg.cfg.d/farmctl-build";

/// Half of a bootstrap's time is dpkg's fsync, which protects a running system; a tree being
/// made is thrown away if anything interrupts it, and synced as a whole at the end.
fn write_build_settings(tree: &Path) -> Result<()> {
    let path = tree.join(BUILD_DPKG);
    file::make_directory(path.parent().unwrap_or(tree), 0o755)?;
    fs::write(&path, "force-unsafe-io\nforce-confdef\nforce-confold\n")
        .with_context(|| format!("writing {}", path.display()))
}

/// Arguments every apt-get call of ours begins with.
const APT_OPTIONS: [&str; 5] = [
    "--yes",
    "--no-install-recommends",
    "--option=Acquire::Retries=2",
    "--option=APT::Sandbox::User=root",
    "--option=Dpkg::Use-Pty=false",
];

/// An apt-get call inside.
#[must_use]
pub fn apt_get(chroot: &Chroot, origin: Origin, arguments: &[&str]) -> Invocation {
    // The lent archives are every build's of the suite, and apt waits for the lock on them
    // no moment. One process of it: what ends farmctl's child ends apt.
    let turn = format!("{ARCHIVES}/turn");
    chroot
        .downloading("flock")
        .args(["--no-fork", &turn, "apt-get"])
        .named("apt-get")
        .args(APT_OPTIONS)
        .args(pool::options(origin))
        .args(arguments)
}

/// Has apt install packages; `key` is where the profile names them. Each line apt prints is
/// passed on.
///
/// # Errors
/// When they cannot be: with those that do not go together, and what to do.
pub fn install(call: &Invocation, key: &str, show: &dyn Fn(&str)) -> Result<()> {
    resolve(call, key, show).map(drop)
}

/// Makes a call of apt that begins with resolving packages, and answers what it printed.
fn resolve(call: &Invocation, key: &str, show: &dyn Fn(&str)) -> Result<String> {
    // apt says it on its standard output, a line for each package, under this one.
    const TITLE: &str = "The following packages have unmet dependencies";
    let (mut below, mut unmet, mut printed) = (false, Vec::new(), String::new());
    let installed = call.run_lines(|line| {
        show(line);
        printed += line;
        printed.push('\n');
        below = line.starts_with(TITLE) || below && line.starts_with(' ');
        if below && line.starts_with(' ') {
            unmet.push(line.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    });
    let installed = match unmet.as_slice() {
        [] => installed,
        unmet => installed.with_context(|| unmet.join("; ")),
    };
    let text = installed.as_ref().map_or_else(|error| format!("{error:#}"), |()| String::new());
    installed.hint_with(|| {
        if !unmet.is_empty() || text.contains("held broken packages") {
            format!("some of {key} exclude each other, or want what no apt source has")
        } else if text.contains("dpkg returned an error") || text.contains("script subprocess") {
            "a maintainer script of the package failed: -vv shows all it printed".to_owned()
        } else if text.contains("Unable to locate") || text.contains("no installation candidate") {
            format!("are all packages of {key} in one of the environment's apt sources?")
        } else {
            "is the mirror reachable? -vv shows all that apt-get printed".to_owned()
        }
    })?;
    Ok(printed)
}

/// Writes the apt sources, pins and local packages of an environment.
///
/// # Errors
/// When a file cannot be written.
pub fn write_sources(chroot: &Chroot, archive: &Archive, environment: &Environment) -> Result<()> {
    let apt = chroot.outside("/etc/apt");
    file::remove_if_there(&apt.join("sources.list"))?;
    file::put(&apt.join("sources.list.d/debian.sources"), archive.sources().as_bytes(), 0o644)?;
    if !environment.apt_sources.is_empty() {
        let text = environment.apt_sources.join("\n\n");
        file::put(&apt.join("sources.list.d/profile.sources"), text.as_bytes(), 0o644)?;
    }
    if !environment.apt_preferences.is_empty() {
        let text = environment.apt_preferences.join("\n\n");
        file::put(&apt.join("preferences.d/profile"), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

/// Packages an environment needs beyond what debootstrap made: the profile's, and what
/// its locale and time zone need.
#[must_use]
pub fn extra_packages(environment: &Environment) -> Vec<String> {
    let mut packages = environment.packages.clone();
    if !environment.locale.starts_with("C.") {
        packages.push("locales".to_owned());
    }
    if environment.timezone != "UTC" {
        packages.push("tzdata".to_owned());
    }
    packages
}

/// Lends a host directory where apt keeps what it downloads.
///
/// # Errors
/// When it cannot be bound.
pub fn lend_archives(chroot: &mut Chroot, cache: &Path) -> Result<()> {
    file::make_directory(&cache.join("partial"), 0o755)?;
    chroot.lend_writable(cache, ARCHIVES)
}

/// Sets locale and time zone.
///
/// # Errors
/// When the locale cannot be generated or the time zone does not exist.
pub fn localize(chroot: &Chroot, environment: &Environment) -> Result<()> {
    let locale = &environment.locale;
    if !locale.starts_with("C.") {
        let charset = locale.rsplit_once('.').map_or("UTF-8", |(_, charset)| charset);
        fs::write(chroot.outside("/etc/locale.gen"), format!("{locale} {charset}\n"))
            .context("writing /etc/locale.gen")?;
        // Not into one archive: its layout depends on the order of writing.
        chroot
            .call("locale-gen")
            .arg("--no-archive")
            .run()
            .or_else(|_| chroot.call("locale-gen").run())
            .with_context(|| format!("generating the locale {locale}"))
            .hint("environment.locale is a name like de_DE.UTF-8")?;
    }
    file::put(
        &chroot.outside("/etc/default/locale"),
        format!("LANG={locale}\n").as_bytes(),
        0o644,
    )?;
    let zone = &environment.timezone;
    let data = format!("/usr/share/zoneinfo/{zone}");
    if chroot.outside(&data).is_file() {
        let localtime = chroot.outside("/etc/localtime");
        file::remove_if_there(&localtime)?;
        symlink(&data, &localtime).context("linking /etc/localtime")?;
    } else if zone != "UTC" {
        return refuse(
            format_args!("there is no time zone {zone}"),
            "environment.timezone is a name like Europe/Vienna",
        );
    }
    file::put(&chroot.outside("/etc/timezone"), format!("{zone}\n").as_bytes(), 0o644)
}

/// The call that makes the environment's own user from /etc/skel.
#[must_use]
pub fn useradd(chroot: &Chroot, user: &str) -> Invocation {
    chroot
        .call("useradd")
        .args([
            "--create-home",
            "--skel",
            "/etc/skel",
            "--key",
            "HOME_MODE=0700",
            "--shell",
            "/bin/bash",
            "--user-group",
            "--uid",
        ])
        .args([&USER_UID.to_string(), user])
}
