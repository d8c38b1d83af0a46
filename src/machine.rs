//! The machine as farmctl finds it: its kernel, its certificates, its Debian packages.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::error::Mark as _;
use crate::file;
use crate::layout::SYSTEMD_BOOTED;
use crate::run::{Invocation, Tool};

/// The host's own.
pub const APT_GET: Tool = Tool { name: "apt-get", package: "apt" };
const DPKG_QUERY: Tool = Tool { name: "dpkg-query", package: "dpkg" };
const UPDATE_CERTIFICATES: Tool =
    Tool { name: "update-ca-certificates", package: "ca-certificates" };

/// The certificates the host trusts, in one file (update-ca-certificates(8)).
pub const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Where an administrator puts those of the company.
const LOCAL_CERTIFICATES: &str = "/usr/local/share/ca-certificates";

/// Parts of the kernel that storage needs: what `/proc` calls it, and its module.
const FEATURES: [(&str, &str); 5] = [
    ("overlay", "overlay"),
    ("btrfs", "btrfs"),
    ("xfs", "xfs"),
    ("ext4", "ext4"),
    ("device-mapper", "dm-mod"),
];

/// Proxy variables (curl(1), wget(1)) of the caller that tools which download are given.
const PROXY_VARIABLES: [&str; 7] =
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// The kernel that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernel {
    /// As uname(1) says it.
    pub release: String,
    /// What it has, at once or as a module: `overlay`, `device-mapper`.
    pub has: Vec<&'static str>,
    /// What it lacks.
    pub lacks: Vec<&'static str>,
}

/// Whether systemd is PID 1: `sd_booted(3)`.
#[must_use]
pub fn systemd_is_init() -> bool {
    Path::new(SYSTEMD_BOOTED).is_dir()
}

/// The caller's proxies.
pub fn proxies() -> impl Iterator<Item = (&'static str, OsString)> {
    PROXY_VARIABLES.into_iter().filter_map(|name| Some((name, std::env::var_os(name)?)))
}

/// A call of a tool that downloads, by way of the caller's proxies.
#[must_use]
pub fn proxied(call: Invocation) -> Invocation {
    proxies().fold(call, |call, (name, value)| call.env(name, value))
}

/// Looks at the kernel.
///
/// # Errors
/// When /proc cannot be read.
pub fn kernel() -> Result<Kernel> {
    let read = |path: &str| fs::read_to_string(path).with_context(|| format!("reading {path}"));
    let release = read("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let mut known = read("/proc/filesystems")?;
    // Where device-mapper is listed; without it the file need not be there.
    known.push_str(&file::read_if_there(Path::new("/proc/misc"))?.unwrap_or_default());
    let modules = Path::new("/lib/modules").join(&release);
    let mut loadable = String::new();
    for list in ["modules.dep", "modules.builtin"] {
        loadable.push_str(&file::read_if_there(&modules.join(list))?.unwrap_or_default());
    }
    let there = |(name, module): &(&str, &str)| {
        known.lines().any(|line| line.split_whitespace().last() == Some(name))
            || loadable.contains(&format!("/{module}.ko"))
    };
    let (has, lacks): (Vec<_>, Vec<_>) = FEATURES.into_iter().partition(there);
    let names = |features: Vec<(&'static str, _)>| features.into_iter().map(|it| it.0).collect();
    Ok(Kernel { release, has: names(has), lacks: names(lacks) })
}

/// The host's certificates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificates {
    /// How many it trusts.
    pub count: usize,
    /// Files of the administrator's that are not among them.
    pub forgotten: Vec<PathBuf>,
}

/// Looks at the host's certificates; none without their file.
///
/// # Errors
/// When they cannot be read.
pub fn certificates() -> Result<Option<Certificates>> {
    let Some(bundle) = file::read_if_there(Path::new(CERTIFICATES))? else { return Ok(None) };
    let trusted = parse_certificates(&bundle);
    let mut forgotten = Vec::new();
    for path in local_certificates(Path::new(LOCAL_CERTIFICATES))? {
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let own = parse_certificates(&String::from_utf8_lossy(&bytes));
        if !own.is_subset(&trusted) {
            forgotten.push(path);
        }
    }
    Ok(Some(Certificates { count: trusted.len(), forgotten }))
}

/// Files `*.crt` in a directory and those beneath it, as update-ca-certificates(8) takes
/// them.
fn local_certificates(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for name in file::names_in(directory)? {
        let path = directory.join(&name);
        if path.is_dir() {
            found.extend(local_certificates(&path)?);
        } else if name.ends_with(".crt") {
            found.push(path);
        }
    }
    Ok(found)
}

/// The certificates of a PEM file (RFC 7468), each as its base64 without line ends.
fn parse_certificates(text: &str) -> BTreeSet<String> {
    text.split("-----BEGIN CERTIFICATE-----")
        .skip(1)
        .filter_map(|rest| rest.split_once("-----END CERTIFICATE-----"))
        .map(|(body, _)| body.split_whitespace().collect())
        .collect()
}

/// Has the host trust the certificates its administrator put down.
///
/// # Errors
/// When update-ca-certificates(8) fails.
pub fn update_certificates() -> Result<()> {
    Invocation::of(&UPDATE_CERTIFICATES).run().context("updating the host's certificates")
}

/// Versions of installed packages, `NAME VERSION` each; those not installed are left out.
///
/// # Errors
/// When dpkg-query cannot be started.
pub fn versions(packages: &[&str]) -> Result<Vec<String>> {
    let format = "${db:Status-Status} ${Package} ${Version}\\n";
    // It fails for those it does not know, and names the others nevertheless.
    let outcome =
        Invocation::of(&DPKG_QUERY).args(["--show", "--showformat", format]).args(packages);
    let said = outcome.outcome()?.stdout;
    Ok(said.lines().filter_map(|line| line.strip_prefix("installed ")).map(str::to_owned).collect())
}

/// Has apt read the indexes of the host's sources.
///
/// # Errors
/// With apt's last lines.
pub fn update_indexes() -> Result<()> {
    apt_get(&["update"])
        .run()
        .context("reading the indexes of the host's apt sources")
        .hint("apt-get update: mend the sources or the network until it succeeds")
}

/// Installs Debian packages on the host.
///
/// # Errors
/// With apt's last lines.
pub fn install(packages: &[&str]) -> Result<()> {
    let names = packages.join(" ");
    apt_get(&["install", "--yes", "--no-install-recommends"])
        .args(packages)
        .run()
        .with_context(|| format!("installing {names}"))
        .hint(format!("apt-get install {names}"))
}

/// A call of the host's apt-get: it asks nothing, and waits for another one that works.
fn apt_get(arguments: &[&str]) -> Invocation {
    let call = Invocation::of(&APT_GET)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=60"])
        .args(arguments);
    proxied(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_the_same_however_its_lines_are_broken() {
        let one = "-----BEGIN CERTIFICATE-----\nAAAA\nBBBB\n-----END CERTIFICATE-----\n";
        let same = "# mine\r\n-----BEGIN CERTIFICATE-----\r\nAAAABBBB\r\n-----END CERTIFICATE-----";
        assert_eq!(parse_certificates(one), parse_certificates(same));
        assert_eq!(parse_certificates(&format!("{one}{one}")).len(), 1);
        assert!(parse_certificates("-----BEGIN CERTIFICATE-----\nAAAA").is_empty(), "cut short");
    }

    #[test]
    fn a_kernel_has_a_feature_or_lacks_it() {
        let kernel = kernel().expect("this is Linux");
        assert_eq!(kernel.has.len() + kernel.lacks.len(), FEATURES.len());
        assert!(kernel.has.contains(&"overlay"), "these tests run on overlayfs: {kernel:?}");
    }

    #[test]
    fn versions_are_those_of_installed_packages() {
        let found = versions(&["dpkg", "no-such-package"]).expect("dpkg is there");
        assert!(found.len() == 1 && found[0].starts_with("dpkg 1."), "{found:?}");
    }
}
