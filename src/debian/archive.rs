//! The archive an environment is made from: its mirrors and their signed indexes.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::{DEBOOTSTRAP, GPGV, KEYRING};
use crate::error::{Mark as _, refuse};
use crate::file;
use crate::machine::{self, APT_GET};
use crate::manifest::InRelease;
use crate::parallel;
use crate::profile::Environment;
use crate::run::Invocation;

/// apt's own downloader: it honours the host's apt proxy and certificate settings.
pub(super) const APT_HELPER: &str = "/usr/lib/apt/apt-helper";

/// Where the host's apt keeps the indexes it has read.
const APT_LISTS: &str = "/var/lib/apt/lists";

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

    /// The suite of security updates, and its apt source alone.
    #[must_use]
    pub fn security_source(&self) -> Option<(String, String)> {
        let name = format!("{}-security", self.suite);
        let suites = self.suites();
        let (suite, mirror) = suites.into_iter().find(|(suite, _)| *suite == name)?;
        let source = self.stanza(mirror, &suite);
        Some((suite, source))
    }

    fn stanza(&self, uri: &str, suites: &str) -> String {
        let components = self.components.join(" ");
        format!(
            "Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: {components}\nSigned-By: {KEYRING}\n"
        )
    }

    /// The apt source of the environment, in deb822 (sources.list(5)).
    #[must_use]
    pub fn sources(&self) -> String {
        let suites = self.suites();
        let of = |uri: &str| -> String {
            let names: Vec<&str> = suites
                .iter()
                .filter(|(_, mirror)| *mirror == uri)
                .map(|(suite, _)| suite.as_str())
                .collect();
            names.join(" ")
        };
        let mut text = self.stanza(&self.mirror, &of(&self.mirror));
        if let Some(security) = self.security.as_deref().filter(|uri| *uri != self.mirror) {
            let names = of(security);
            if !names.is_empty() {
                text.push('\n');
                text.push_str(&self.stanza(security, &names));
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

/// The mirror the host's own apt sources name for the host's release, once apt has read
/// its indexes.
///
/// # Errors
/// When apt does not answer.
pub fn host_mirror() -> Result<Option<String>> {
    Ok(host_mirrors()?.main)
}

/// When the newest of the indexes was made that the host's apt has read, in seconds since
/// 1970.
///
/// # Errors
/// When they cannot be read.
pub fn newest_index() -> Result<Option<i64>> {
    let mut newest = None;
    for name in file::names_in(Path::new(APT_LISTS))? {
        if !name.ends_with("_InRelease") && !name.ends_with("_Release") {
            continue;
        }
        let text = file::read_if_there(&Path::new(APT_LISTS).join(name))?.unwrap_or_default();
        // Somebody else's may be written otherwise.
        newest = newest.max(release_date(&text).ok());
    }
    Ok(newest)
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
    let suites = archive.suites();
    parallel::each(&suites, suites.len(), |(suite, mirror)| fetch_index(suite, mirror, work))
}

fn fetch_index(suite: &str, mirror: &str, work: &Path) -> Result<InRelease> {
    let target = work.join(format!("{suite}_InRelease"));
    let fetched = download(&format!("{mirror}/dists/{suite}/InRelease"), &target);
    explain(fetched, suite, mirror)
        .with_context(|| format!("fetching the index of {suite} from {mirror}"))?;
    let plain = work.join(format!("{suite}_Release"));
    let verified = Invocation::of(&GPGV)
        .args(["--quiet", "--keyring", KEYRING, "--output"])
        .args([&plain, &target])
        .run();
    explain_signature(verified)
        .with_context(|| format!("checking the signature of {suite} from {mirror}"))?;
    let text =
        fs::read_to_string(&plain).with_context(|| format!("reading {}", plain.display()))?;
    refuse_expired(&text, jiff::Timestamp::now().as_second())
        .with_context(|| format!("checking the index of {suite} from {mirror}"))?;
    let bytes = fs::read(&target).with_context(|| format!("reading {}", target.display()))?;
    let sha256 = crate::hash::sha256(&bytes);
    Ok(InRelease { suite: suite.to_owned(), sha256, date: release_date(&text)? })
}

/// What to do about an index that could not be fetched: apt-helper says why in words.
fn explain(fetched: Result<()>, suite: &str, mirror: &str) -> Result<()> {
    let text = fetched.as_ref().map_or_else(|error| format!("{error:#}"), |()| String::new());
    fetched.hint_with(|| {
        // As a word: a port has such digits, too.
        if [" 404 ", "File not found"].iter().any(|sign| text.contains(sign)) {
            format!("is \"{suite}\" a suite of that mirror? correct [environment] suite or mirror")
        } else {
            format!("is the mirror reachable? curl --head {mirror}/dists/{suite}/InRelease")
        }
    })
}

/// What to do about a signature that is not good: gpgv says why in words.
fn explain_signature(verified: Result<()>) -> Result<()> {
    let text = verified.as_ref().map_or_else(|error| format!("{error:#}"), |()| String::new());
    verified.hint(if text.contains("BAD signature") {
        "these are not the bytes that were signed: set [environment] mirror to another one"
    } else if text.contains("Expired signature") {
        "is the clock of this machine right (date)? else set [environment] mirror to another one"
    } else {
        "apt-get install --only-upgrade debian-archive-keyring"
    })
}

/// Refuses an index whose time is over: a mirror that has stopped, or is made to lag behind.
fn refuse_expired(release: &str, now: i64) -> Result<()> {
    match field(release, "Valid-Until") {
        Some(date) if parse_date(date)? < now => refuse(
            format_args!("it was valid until {date}"),
            "is the clock of this machine right (date)? else the mirror is not kept up to date: \
             set [environment] mirror",
        ),
        _ => Ok(()),
    }
}

fn field<'a>(release: &'a str, name: &str) -> Option<&'a str> {
    let value = |line: &'a str| line.strip_prefix(name)?.strip_prefix(':');
    release.lines().find_map(value).map(str::trim)
}

/// Seconds since 1970 of a Release file's `Date:`.
pub(super) fn release_date(release: &str) -> Result<i64> {
    parse_date(field(release, "Date").context("the index has no Date")?)
}

fn parse_date(date: &str) -> Result<i64> {
    // RFC 2822 knows no "UTC"; Debian writes it nevertheless.
    let date = date.replace(" UTC", " +0000");
    let parsed =
        jiff::fmt::rfc2822::parse(&date).with_context(|| format!("reading the date \"{date}\""))?;
    Ok(parsed.timestamp().as_second())
}

fn download(uri: &str, target: &Path) -> Result<()> {
    let call = Invocation::program(APT_HELPER)
        .args(["-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=30"])
        // Else it warns that _apt cannot read where it writes.
        .args(["-o", "APT::Sandbox::User=root", "download-file", uri])
        .arg(target);
    machine::proxied(call).run()
}

/// Where downloaded packages are kept on the host, per suite and architecture.
#[must_use]
pub fn package_cache(cache: &Path, suite: &str, architecture: &str) -> PathBuf {
    cache.join("debs").join(format!("{suite}_{architecture}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_is_not_there_is_told_from_a_mirror_that_is_not() {
        let hint = |words: &str| {
            let fetched = Err(anyhow::anyhow!("apt-helper: E: Failed to fetch {words}"));
            let error = explain(fetched, "bookworm", "http://a").expect_err("it is one");
            crate::error::hint_of(&error).expect("it has one").to_owned()
        };
        let suite = "is \"bookworm\" a suite of that mirror? correct [environment] suite or mirror";
        assert_eq!(hint("http://a:8080/x  404  Not Found [IP: 127.0.0.1 8080]"), suite);
        assert_eq!(hint("file:///srv/x  File not found - open"), suite);
        let mirror = "is the mirror reachable? curl --head http://a/dists/bookworm/InRelease";
        assert_eq!(hint("http://a:40423/x  Could not connect to 127.0.0.1:40423"), mirror);
    }

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
    fn an_index_is_good_until_its_time_is_over() {
        let release =
            "Date: Sat, 17 May 2025 09:20:54 UTC\nValid-Until: Sat, 24 May 2025 09:20:54 UTC\n";
        refuse_expired(release, 1_747_473_654).expect("it is new");
        let error = refuse_expired(release, 1_748_078_455).expect_err("it is over");
        assert_eq!(error.to_string(), "it was valid until Sat, 24 May 2025 09:20:54 UTC");
        refuse_expired("Date: Sat, 17 May 2025 09:20:54 UTC\n", i64::MAX).expect("it has none");
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
