//! Making a Debian tree: archive, debootstrap, apt, and the clean-up before packing.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::chroot::{self, Chroot};
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::manifest::{InRelease, Package};
use crate::profile::Environment;
use crate::run::{Invocation, Tool, check_interrupted};

const APT_GET: Tool = Tool { name: "apt-get", package: "apt" };
const DEBOOTSTRAP: Tool = Tool { name: "debootstrap", package: "debootstrap" };
const DPKG: Tool = Tool { name: "dpkg", package: "dpkg" };
const GPGV: Tool = Tool { name: "gpgv", package: "gpgv" };
/// Programs on the host that a bootstrap needs.
pub const TOOLS: [&Tool; 4] = [&APT_GET, &DEBOOTSTRAP, &DPKG, &GPGV];

/// apt's own downloader: it honours the host's apt proxy and certificate settings.
const APT_HELPER: &str = "/usr/lib/apt/apt-helper";
/// Debian's archive keys, on the host and in every environment.
pub const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// Where downloaded packages are kept inside an environment while apt runs.
const ARCHIVES: &str = "/var/cache/apt/archives";
/// User id of the environment's own user; a session gives it the application's.
pub const USER_UID: u32 = 1000;

/// The archive an environment is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Archive {
    /// Suite: `bookworm`.
    pub suite: String,
    /// Mirror of the suite and its updates.
    pub mirror: String,
    /// Mirror of its security suite, if one is known.
    pub security: Option<String>,
    /// Components.
    pub components: Vec<String>,
}

impl Archive {
    /// What the profile names, else what the host's apt sources name, else debootstrap's
    /// built-in mirror.
    ///
    /// # Errors
    /// When no mirror can be found.
    pub fn of(environment: &Environment) -> Result<Self> {
        let host = host_mirrors()?;
        let mirror = match environment.mirror.clone().or(host.main) {
            Some(mirror) => mirror,
            None => builtin_mirror()?,
        };
        let security = environment.security_mirror.clone().or(host.security);
        Ok(Self {
            suite: environment.suite.clone(),
            mirror: mirror.trim_end_matches('/').to_owned(),
            security: security.map(|uri| uri.trim_end_matches('/').to_owned()),
            components: environment.components.clone(),
        })
    }

    /// Suites and their mirrors. Unstable has neither updates nor security.
    #[must_use]
    pub fn suites(&self) -> Vec<(String, &str)> {
        let mut suites = vec![(self.suite.clone(), self.mirror.as_str())];
        if !matches!(self.suite.as_str(), "sid" | "unstable" | "experimental") {
            suites.push((format!("{}-updates", self.suite), &self.mirror));
            if let Some(security) = &self.security {
                suites.push((format!("{}-security", self.suite), security));
            }
        }
        suites
    }

    /// The apt source of the environment, in deb822 (sources.list(5)).
    #[must_use]
    pub fn sources(&self) -> String {
        let components = self.components.join(" ");
        let stanza = |uri: &str, suites: &str| {
            format!(
                "Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {components}\nSigned-By: {KEYRING}\n"
            )
        };
        let suites = self.suites();
        let of = |uri: &str| -> String {
            let names: Vec<&str> = suites
                .iter()
                .filter(|(_, mirror)| *mirror == uri)
                .map(|(suite, _)| suite.as_str())
                .collect();
            names.join(" ")
        };
        let mut text = stanza(&self.mirror, &of(&self.mirror));
        if let Some(security) = self.security.as_deref().filter(|uri| *uri != self.mirror) {
            let names = of(security);
            if !names.is_empty() {
                text.push('\n');
                text.push_str(&stanza(security, &names));
            }
        }
        text
    }
}

/// Mirrors of Debian that the host's apt sources name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct HostMirrors {
    main: Option<String>,
    security: Option<String>,
}

fn host_mirrors() -> Result<HostMirrors> {
    let codename = host_codename()?;
    let text = Invocation::of(&APT_GET)
        .args([
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Identifier: Packages",
        ])
        .output()
        .context("reading the host's apt sources")?;
    Ok(parse_index_targets(&text, &codename))
}

/// Lines of `apt-get indextargets`: repository, release and component. Debian's own is
/// the first that carries the host's release with component `main`.
fn parse_index_targets(text: &str, codename: &str) -> HostMirrors {
    let mut found = HostMirrors::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(uri), Some(release), Some("main")) = (words.next(), words.next(), words.next())
        else {
            continue;
        };
        let slot = if release == codename {
            &mut found.main
        } else if release == format!("{codename}-security") {
            &mut found.security
        } else {
            continue;
        };
        if slot.is_none() {
            *slot = Some(uri.trim_end_matches('/').to_owned());
        }
    }
    found
}

fn host_codename() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.unwrap_or_default().trim_matches('"').to_owned())
}

/// The mirror debootstrap itself would take: `DEF_MIRROR` in its program text.
fn builtin_mirror() -> Result<String> {
    let path = DEBOOTSTRAP.path().context("looking for debootstrap")?;
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    match text.lines().find_map(|line| line.strip_prefix("DEF_MIRROR=")) {
        Some(mirror) => Ok(mirror.trim_matches('"').to_owned()),
        None => refuse("no Debian mirror is known", "set environment.mirror in the profile"),
    }
}

/// The host's Debian architecture.
///
/// # Errors
/// When dpkg does not answer.
pub fn architecture() -> Result<String> {
    Ok(Invocation::of(&DPKG).arg("--print-architecture").output()?.trim().to_owned())
}

/// Fetches the signed indexes of the archive's suites and checks their signatures.
///
/// # Errors
/// When a mirror does not answer, has no such suite, or a signature is not good.
pub fn fetch_indexes(archive: &Archive, work: &Path) -> Result<Vec<InRelease>> {
    if !Path::new(KEYRING).exists() {
        return refuse(
            format_args!("the keyring {KEYRING} is missing"),
            "apt-get install debian-archive-keyring",
        );
    }
    let mut indexes = Vec::new();
    for (suite, mirror) in archive.suites() {
        let target = work.join(format!("{suite}_InRelease"));
        download(&format!("{mirror}/dists/{suite}/InRelease"), &target)
            .with_context(|| format!("fetching the index of {suite} from {mirror}"))
            .hint_with(|| {
                format!("is \"{suite}\" a suite of that mirror, and is the mirror reachable?")
            })?;
        let plain = work.join(format!("{suite}_Release"));
        let verified = Invocation::of(&GPGV)
            .args(["--quiet", "--keyring", KEYRING, "--output"])
            .args([&plain, &target])
            .run();
        verified
            .with_context(|| format!("checking the signature of {suite} from {mirror}"))
            .hint("apt-get install --only-upgrade debian-archive-keyring")?;
        let text =
            fs::read_to_string(&plain).with_context(|| format!("reading {}", plain.display()))?;
        let bytes = fs::read(&target).with_context(|| format!("reading {}", target.display()))?;
        indexes.push(InRelease {
            suite,
            sha256: crate::hash::hex(&bytes),
            date: release_date(&text)?,
        });
    }
    Ok(indexes)
}

/// Seconds since 1970 of a Release file's `Date:`.
fn release_date(release: &str) -> Result<i64> {
    let date = release
        .lines()
        .find_map(|line| line.strip_prefix("Date:"))
        .context("the index has no Date")?;
    // RFC 2822 knows no "UTC"; Debian writes it nevertheless.
    let date = date.trim().replace(" UTC", " +0000");
    let parsed =
        jiff::fmt::rfc2822::parse(&date).with_context(|| format!("reading the date \"{date}\""))?;
    Ok(parsed.timestamp().as_second())
}

fn download(uri: &str, target: &Path) -> Result<()> {
    let mut call = Invocation::program(APT_HELPER)
        .args(["-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30", "download-file", uri])
        .arg(target);
    for (name, value) in chroot::proxies() {
        call = call.env(name, value);
    }
    call.run()
}

/// The debootstrap call.
#[must_use]
pub fn debootstrap(
    environment: &Environment,
    archive: &Archive,
    tree: &Path,
    epoch: i64,
    cache: &Path,
) -> Invocation {
    let mut call = Invocation::of(&DEBOOTSTRAP)
        .args(["--variant=minbase", "--force-check-gpg"])
        .arg(format!("--keyring={KEYRING}"))
        .arg(format!("--components={}", archive.components.join(",")))
        .arg(format!("--cache-dir={}", cache.display()));
    if !environment.include.is_empty() {
        call = call.arg(format!("--include={}", environment.include.join(",")));
    }
    if !environment.exclude.is_empty() {
        call = call.arg(format!("--exclude={}", environment.exclude.join(",")));
    }
    for (name, value) in chroot::proxies() {
        call = call.env(name, value);
    }
    call.arg(&archive.suite)
        .arg(tree)
        .arg(&archive.mirror)
        .env("SOURCE_DATE_EPOCH", epoch.to_string())
        .contained()
}

/// Runs debootstrap into the empty `tree`; `line` gets its messages.
///
/// # Errors
/// With debootstrap's last lines, its own log included.
pub fn run_debootstrap(
    call: &Invocation,
    tree: &Path,
    cache: &Path,
    line: impl FnMut(&str),
) -> Result<()> {
    file::make_directory(cache, 0o755)?;
    // Half of a bootstrap's time is dpkg's fsync, which protects a running system; this
    // tree is thrown away if anything interrupts it, and synced as a whole at the end.
    let configuration = tree.join(BUILD_DPKG);
    file::make_directory(configuration.parent().unwrap_or(tree), 0o755)?;
    fs::write(&configuration, "force-unsafe-io\nforce-confdef\nforce-confold\n")
        .with_context(|| format!("writing {}", configuration.display()))?;
    let Err(error) = call.run_lines(line) else { return Ok(()) };
    check_interrupted()?;
    let log = fs::read_to_string(tree.join("debootstrap/debootstrap.log")).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let last: String =
        lines[lines.len().saturating_sub(8)..].iter().map(|line| format!("\n  | {line}")).collect();
    let hint = "are all packages of include in that suite? farmctl bootstrap -v shows the call";
    Err(anyhow::anyhow!("{error:#}{last}")).hint(hint)
}

/// dpkg settings of builds, beneath a tree; removed by [`clean`].
const BUILD_DPKG: &str = "etc/dpkg/dpkg.cfg.d/farmctl-build";

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
pub fn apt_get(chroot: &Chroot, arguments: &[&str]) -> Invocation {
    chroot.downloading("apt-get").args(APT_OPTIONS).args(arguments)
}

/// Writes the apt sources, pins and local packages of an environment.
///
/// # Errors
/// When a file cannot be written.
pub fn write_sources(chroot: &Chroot, archive: &Archive, environment: &Environment) -> Result<()> {
    let apt = chroot.outside("/etc/apt");
    file::remove_if_there(&apt.join("sources.list"))?;
    file::publish(&apt.join("sources.list.d/debian.sources"), archive.sources().as_bytes(), 0o644)?;
    if !environment.apt_sources.is_empty() {
        let text = environment.apt_sources.join("\n\n");
        file::publish(&apt.join("sources.list.d/profile.sources"), text.as_bytes(), 0o644)?;
    }
    if !environment.apt_preferences.is_empty() {
        let text = environment.apt_preferences.join("\n\n");
        file::publish(&apt.join("preferences.d/profile"), text.as_bytes(), 0o644)?;
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
    file::publish(
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
    file::publish(&chroot.outside("/etc/timezone"), format!("{zone}\n").as_bytes(), 0o644)
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

/// Debian packages installed in a tree, by name.
///
/// # Errors
/// When dpkg does not answer.
pub fn installed_packages(chroot: &Chroot) -> Result<Vec<Package>> {
    let text = chroot
        .call("dpkg-query")
        .args([
            "--show",
            "--showformat",
            "${db:Status-Status} ${Package} ${Version} ${Architecture}\\n",
        ])
        .output()?;
    let mut packages: Vec<Package> = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("installed"), Some(name), Some(version), Some(architecture)) => {
                    Some(Package {
                        name: name.to_owned(),
                        version: version.to_owned(),
                        architecture: architecture.to_owned(),
                    })
                }
                _ => None,
            }
        })
        .collect();
    packages.sort();
    Ok(packages)
}

/// Removes what must not be packed: keys, logs, apt's lists, history, identity, and
/// what differs between two builds of the same (`live-build`'s hooks 8000–8110 and
/// mmdebstrap list the same files).
///
/// # Errors
/// When something cannot be removed.
pub fn clean(tree: &Path) -> Result<()> {
    let removed = [
        "etc/.pwd.lock",
        "etc/debian_chroot",
        "etc/group-",
        "etc/gshadow-",
        "etc/passwd-",
        "etc/shadow-",
        "etc/subgid-",
        "etc/subuid-",
        "etc/adjtime",
        "etc/mtab.bak",
        "root/.bash_history",
        "root/.python_history",
        "root/.wget-hsts",
        "root/.rnd",
        "usr/sbin/policy-rc.d",
        "var/cache/apt/pkgcache.bin",
        "var/cache/apt/srcpkgcache.bin",
        "var/lib/dbus/machine-id",
        "var/lib/dpkg/available",
        "var/lib/dpkg/lock",
        "var/lib/dpkg/lock-frontend",
        "var/lib/dpkg/triggers/Lock",
        "var/lib/apt/lists/lock",
        "var/lib/apt/daily_lock",
        "var/cache/apt/archives/lock",
        "var/lib/systemd/random-seed",
        "var/lib/systemd/credential.secret",
        "var/lib/systemd/catalog/database",
        BUILD_DPKG,
    ];
    for path in removed {
        file::remove_if_there(&tree.join(path))?;
    }
    for directory in [
        "dev",
        "proc",
        "sys",
        "run",
        "tmp",
        "var/lib/apt/lists",
        "var/cache/apt/archives",
        "var/cache/ldconfig",
        "var/cache/man",
        "var/backups",
        "var/lib/apt/periodic",
        "root/.cache",
        "debootstrap",
    ] {
        empty(&tree.join(directory))?;
    }
    if tree.join("debootstrap").is_dir() {
        fs::remove_dir(tree.join("debootstrap")).context("removing /debootstrap")?;
    }
    // apt wants them back with its own modes.
    for partial in ["var/lib/apt/lists/partial", "var/cache/apt/archives/partial"] {
        file::make_directory(&tree.join(partial), 0o700)?;
    }
    file::make_directory(&tree.join("run/lock"), 0o1777)?;
    remove_logs(&tree.join("var/log"))?;
    for directory in ["etc/ssh", "var/lib/dpkg", "var/cache/debconf"] {
        for name in file::names_in(&tree.join(directory))? {
            let key = directory == "etc/ssh" && name.starts_with("ssh_host_");
            if key || (directory != "etc/ssh" && name.ends_with("-old")) {
                file::remove_if_there(&tree.join(directory).join(name))?;
            }
        }
    }
    let homes = tree.join("home");
    for home in file::names_in(&homes)? {
        for name in [".bash_history", ".python_history", ".wget-hsts"] {
            file::remove_if_there(&homes.join(&home).join(name))?;
        }
    }
    let temporary = tree.join("var/tmp");
    if !temporary.is_symlink() {
        empty(&temporary)?;
        if temporary.exists() {
            fs::remove_dir(&temporary).context("removing /var/tmp")?;
        }
        symlink("/tmp", &temporary).context("linking /var/tmp to /tmp")?;
    }
    // Fixed contents and modes where debootstrap copies the host's.
    file::publish(&tree.join("etc/machine-id"), b"", 0o444)?;
    file::publish(&tree.join("etc/hostname"), b"localhost\n", 0o644)?;
    file::publish(&tree.join("etc/resolv.conf"), b"", 0o644)?;
    file::publish(
        &tree.join("etc/hosts"),
        b"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n",
        0o644,
    )
}

/// Removes what is in a directory; the directory stays.
fn empty(directory: &Path) -> Result<()> {
    if let Some(point) = crate::mount::mounts_beneath(directory)?.first() {
        bail!("{} is still mounted", point.display());
    }
    for name in file::names_in(directory)? {
        let path = directory.join(name);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path).with_context(|| format!("removing {}", path.display()))?;
        } else {
            file::remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Removes log files; their directories stay, with the modes packages gave them.
fn remove_logs(directory: &Path) -> Result<()> {
    for name in file::names_in(directory)? {
        let path = directory.join(name);
        if path.is_dir() && !path.is_symlink() {
            remove_logs(&path)?;
        } else {
            file::remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Which package owns each path of a tree, from dpkg's file lists.
#[derive(Debug, Default)]
pub struct Ownership(std::collections::HashMap<String, String>);

impl Ownership {
    /// Reads `/var/lib/dpkg/info/*.list`. With a merged /usr the lists name `/bin/sh`
    /// where the tree has `/usr/bin/sh`.
    ///
    /// # Errors
    /// When a list cannot be read.
    pub fn read(tree: &Path) -> Result<Self> {
        let info = tree.join("var/lib/dpkg/info");
        let merged: Vec<&str> = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"]
            .into_iter()
            .filter(|name| tree.join(name).is_symlink())
            .collect();
        let mut owners = std::collections::HashMap::new();
        for name in file::names_in(&info)? {
            let Some(package) = name.strip_suffix(".list") else { continue };
            let package = package.split(':').next().unwrap_or(package);
            let path = info.join(&name);
            let list =
                fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
            for line in list.lines() {
                let path = line.trim_start_matches('/');
                let first = path.split('/').next().unwrap_or_default();
                let path = if merged.contains(&first) && path != first {
                    format!("usr/{path}")
                } else {
                    path.to_owned()
                };
                owners.entry(path).or_insert_with(|| package.to_owned());
            }
        }
        Ok(Self(owners))
    }

    /// The package that owns `path` (no leading slash).
    #[must_use]
    pub fn of(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }
}

/// Where downloaded packages are kept on the host, per suite and architecture.
#[must_use]
pub fn package_cache(cache: &Path, archive: &Archive, architecture: &str) -> PathBuf {
    cache.join("debs").join(format!("{}_{architecture}", archive.suite))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_mirror_is_the_one_that_carries_its_release() {
        let text = "https://example.org/other nodistro main\n\
                    http://mirror.example/debian/ bookworm contrib\n\
                    http://mirror.example/debian/ bookworm main\n\
                    http://mirror.example/debian/ bookworm-updates main\n\
                    http://security.example/debian-security/ bookworm-security main\n";
        let found = parse_index_targets(text, "bookworm");
        assert_eq!(found.main.as_deref(), Some("http://mirror.example/debian"));
        assert_eq!(found.security.as_deref(), Some("http://security.example/debian-security"));
        assert_eq!(parse_index_targets(text, "trixie"), HostMirrors::default());
    }

    #[test]
    fn a_release_date_is_read_as_debian_writes_it() {
        let date = release_date("Origin: Debian\nDate: Sat, 17 May 2025 09:20:54 UTC\n");
        assert_eq!(date.expect("it is a date"), 1_747_473_654);
    }

    #[test]
    fn the_apt_source_names_updates_and_security() {
        let archive = Archive {
            suite: "bookworm".to_owned(),
            mirror: "http://mirror.example/debian".to_owned(),
            security: Some("http://security.example/debian-security".to_owned()),
            components: vec!["main".to_owned()],
        };
        insta::assert_snapshot!(archive.sources(), @r"
        Types: deb
        URIs: http://mirror.example/debian
        Suites: bookworm bookworm-updates
        Components: main
        Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

        Types: deb
        URIs: http://security.example/debian-security
        Suites: bookworm-security
        Components: main
        Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
        ");
    }
}
