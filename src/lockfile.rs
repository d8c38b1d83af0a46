//! `farmctl.lock`, beside the profile: what a bake is built from, by hash.
//!
//! Pure values; written by `farmctl lock`, read by `farmctl bake`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::manifest::InRelease;

/// The newest schema this farmctl reads.
pub const SCHEMA: u32 = 1;
/// Its file name.
pub const FILE: &str = "farmctl.lock";

/// The lock of one profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct LockFile {
    /// Version of this format; 1.
    pub schema: u32,
    /// The archive.
    pub debian: Debian,
    /// The virtualenv.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub python: Option<Python>,
}

/// `[debian]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Debian {
    /// Newest date among the indexes, seconds since 1970.
    pub epoch: i64,
    /// SHA-256 of what the packages were resolved for: the profile's suite and packages.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub request_sha256: String,
    /// The signed indexes.
    #[serde(rename = "release")]
    pub releases: Vec<InRelease>,
    /// Every package an environment and a build install, by name. Empty in a lock of
    /// Python distributions alone.
    #[serde(default, rename = "package", skip_serializing_if = "Vec::is_empty")]
    pub packages: Vec<Deb>,
}

/// One Debian package.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Deb {
    /// Binary package name.
    pub name: String,
    /// Debian version.
    pub version: String,
    /// Architecture of the package.
    pub architecture: String,
    /// When it is installed.
    #[serde(default, skip_serializing_if = "Phase::is_environment")]
    pub phase: Phase,
    /// File name, as apt writes it: the `:` of an epoch is `%3a`.
    pub file: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256, hex.
    pub sha256: String,
}

/// When a locked package is installed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// First, as one of the base system.
    Base,
    /// Into the environment, by apt.
    #[default]
    Environment,
    /// By a bake, which purges it again.
    Build,
}

/// `[python]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Python {
    /// SHA-256 of the requirements file these distributions fulfil, hex.
    pub requirements_sha256: String,
    /// SHA-256 of what is built and was asked what its build takes: sdists and the project,
    /// hex. Empty if nothing is built.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub build_sha256: String,
    /// What is installed, by name.
    #[serde(rename = "distribution")]
    pub distributions: Vec<Locked>,
    /// What building takes and the virtualenv does not get, by name: wheels alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub build: Vec<Locked>,
}

/// One distribution.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Locked {
    /// Name, normalised (PEP 503).
    pub name: String,
    /// Version.
    pub version: String,
    /// SHA-256 of every file that may be installed, hex.
    pub sha256: Vec<String>,
}

impl LockFile {
    /// Reads a lock file's text.
    ///
    /// # Errors
    /// When it is not one, or from a newer farmctl.
    pub fn parse(text: &str) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let version: Version = toml::from_str(text).context("reading farmctl.lock")?;
        if version.schema > SCHEMA {
            bail!(
                "farmctl.lock was written by a newer farmctl (schema {}, this one reads {SCHEMA})",
                version.schema
            );
        }
        let lock: Self = toml::from_str(text).context("reading farmctl.lock")?;
        lock.validate()?;
        Ok(lock)
    }

    /// Checks what becomes part of a path or of a command: a lock travels with a project.
    fn validate(&self) -> Result<()> {
        for deb in &self.debian.packages {
            let named = Deb::parse_file_name(&deb.file);
            let said = (deb.name.clone(), deb.version.clone(), deb.architecture.clone());
            if named != Some(said) {
                bail!("{:?} is not the file of {} {}", deb.file, deb.name, deb.version);
            }
            if deb.sha256.len() != 64 || !deb.sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                bail!("the sha256 of {} is not one", deb.name);
            }
        }
        Ok(())
    }

    /// The lock file's text.
    ///
    /// # Errors
    /// Never for values that were parsed or made by `farmctl lock`.
    pub fn render(&self) -> Result<String> {
        let body = toml::to_string(self).context("writing farmctl.lock")?;
        Ok(format!("# Written by `farmctl lock`; do not edit.\n{body}"))
    }
}

impl Debian {
    /// Whether there is a package to be followed.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        !self.packages.is_empty()
    }

    /// What identifies all of it, hex SHA-256's input.
    #[must_use]
    pub fn canonical(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The packages of an environment, without those of a build.
    pub fn environment(&self) -> impl Iterator<Item = &Deb> {
        self.packages.iter().filter(|deb| deb.phase != Phase::Build)
    }

    /// The index of a suite that is older here than it was locked, if there is one: a
    /// mirror that was frozen or rolled back.
    #[must_use]
    pub fn older<'a>(&'a self, offered: &'a [InRelease]) -> Option<(&'a InRelease, &'a InRelease)> {
        self.releases.iter().find_map(|locked| {
            let here = offered.iter().find(|one| one.suite == locked.suite)?;
            (here.date < locked.date).then_some((locked, here))
        })
    }
}

impl Phase {
    fn is_environment(&self) -> bool {
        *self == Self::Environment
    }
}

impl Deb {
    /// Reads the name apt gives to a package's file: `name_version_architecture.deb`.
    #[must_use]
    pub fn parse_file_name(file: &str) -> Option<(String, String, String)> {
        let mut parts = file.strip_suffix(".deb")?.split('_');
        let (name, version, architecture) = (parts.next()?, parts.next()?, parts.next()?);
        // All that can be in a file's name: Debian policy, 5.6.1 and 5.6.12.
        let plain = |word: &str| {
            !word.is_empty()
                && !word.starts_with('.')
                && word
                    .bytes()
                    .all(|letter| letter.is_ascii_alphanumeric() || b".+-~%".contains(&letter))
        };
        if parts.next().is_some() || ![name, version, architecture].into_iter().all(plain) {
            return None;
        }
        Some((name.to_owned(), version.replace("%3a", ":"), architecture.to_owned()))
    }
}

/// What is not as it was between two locks: name, before, after, by name.
#[must_use]
pub fn changes<'a>(
    before: impl Iterator<Item = (&'a str, &'a str)>,
    after: impl Iterator<Item = (&'a str, &'a str)>,
) -> Vec<(String, Option<String>, Option<String>)> {
    let before: BTreeMap<&str, &str> = before.collect();
    let after: BTreeMap<&str, &str> = after.collect();
    let names: BTreeSet<&str> = before.keys().chain(after.keys()).copied().collect();
    names
        .into_iter()
        .map(|name| {
            let version = |side: &BTreeMap<&str, &str>| side.get(name).map(|one| (*one).to_owned());
            (name.to_owned(), version(&before), version(&after))
        })
        .filter(|(_, before, after)| before != after)
        .collect()
}

impl Python {
    /// Whether something of it is built.
    #[must_use]
    pub fn has_builds(&self) -> bool {
        !self.build_sha256.is_empty()
    }

    /// All that is installed, and all that building takes.
    pub fn all(&self) -> impl Iterator<Item = &Locked> {
        self.distributions.iter().chain(&self.build)
    }
}

/// Distributions as a requirements file with hashes.
#[must_use]
pub fn requirements(distributions: &[Locked]) -> String {
    let mut text = String::new();
    for distribution in distributions {
        let _ = write!(text, "{}=={}", distribution.name, distribution.version);
        for hash in &distribution.sha256 {
            let _ = write!(text, " \\\n    --hash=sha256:{hash}");
        }
        text.push('\n');
    }
    text
}

/// Reads hashed requirements (`name==version --hash=sha256:…`, lines continued with a
/// backslash), as `uv pip compile --generate-hashes` prints them.
///
/// # Errors
/// When a requirement is not pinned by version and hash.
pub fn parse_requirements(text: &str) -> Result<Vec<Locked>> {
    let mut found = Vec::new();
    for line in logical_lines(text) {
        // `NAME [EXTRA, EXTRA] == VERSION ; MARKER --hash=…`, blanks or none between (PEP 508).
        let pin = line.split("--hash").next().unwrap_or(&line);
        let pin = pin.split(';').next().unwrap_or(pin).trim();
        let Some((name, version)) = pin.split_once("==") else {
            bail!("the requirement \"{pin}\" has no exact version");
        };
        let sha256: Vec<String> = line
            .split_whitespace()
            .filter_map(|word| word.strip_prefix("--hash=sha256:"))
            .map(str::to_owned)
            .collect();
        if sha256.is_empty() {
            bail!("the requirement \"{pin}\" has no hash");
        }
        let name = name.split('[').next().unwrap_or(name).trim().to_owned();
        found.push(Locked { name, version: version.trim().to_owned(), sha256 });
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

/// Whether every requirement of a requirements file carries a hash.
#[must_use]
pub fn all_hashed(text: &str) -> bool {
    logical_lines(text)
        .iter()
        .filter(|line| !line.starts_with('-'))
        .all(|line| line.contains("--hash=sha256:"))
}

/// Another file that a line of requirements names, relative to its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Included<'a> {
    /// `-r FILE`: its requirements are these, too.
    Requirements(&'a str),
    /// `-c FILE`: its versions are kept to.
    Constraints(&'a str),
}

/// The file a line of requirements includes. What lies elsewhere, at a URL or an absolute
/// path, is none of the project's.
#[must_use]
pub fn included(line: &str) -> Option<Included<'_>> {
    let line = line.trim();
    let after = |long: &str, short: &str| {
        let rest = match line.strip_prefix(long) {
            Some(rest) => rest.strip_prefix(['=', ' ', '\t'])?,
            None => line.strip_prefix(short)?,
        };
        let name = rest.split(" #").next().unwrap_or(rest).trim();
        let is_beside = !name.is_empty() && !name.starts_with('/') && !name.contains("://");
        (is_beside && !name.split('/').any(|part| part == "..")).then_some(name)
    };
    after("--requirement", "-r")
        .map(Included::Requirements)
        .or_else(|| after("--constraint", "-c").map(Included::Constraints))
}

/// Lines with continuations joined and comments removed (pip's requirements format).
#[must_use]
pub fn logical_lines(text: &str) -> Vec<String> {
    let joined = text.replace("\\\r\n", " ").replace("\\\n", " ");
    joined
        .lines()
        .map(|line| {
            let line = line.trim();
            let comment = if line.starts_with('#') { Some(0) } else { line.find(" #") };
            comment.map_or(line, |at| &line[..at]).trim().to_owned()
        })
        .filter(|line| !line.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compiled_requirements_become_locked_ones_and_back() {
        let text = "# by uv\ngunicorn==23.0.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n    # via -r x\n\
                    packaging==24.1 \\\n    --hash=sha256:cc\n";
        let distributions = parse_requirements(text).expect("all are pinned");
        assert_eq!(distributions[0].sha256, ["aa", "bb"]);
        assert_eq!(
            requirements(&distributions),
            "gunicorn==23.0.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n\
             packaging==24.1 \\\n    --hash=sha256:cc\n"
        );
    }

    #[test]
    fn a_packages_file_says_which_it_is_and_nothing_else() {
        let file = "bsdutils_1%3a2.38.1-5+deb12u3_amd64.deb";
        let (name, version, architecture) = Deb::parse_file_name(file).expect("it is one");
        assert_eq!((name.as_str(), version.as_str()), ("bsdutils", "1:2.38.1-5+deb12u3"));
        assert_eq!(architecture, "amd64");
        for other in
            ["a_1.deb", "../a_1_all.deb", "a_1_all", "a_1_all_b.deb", "_1_all.deb", "a_b/c_all.deb"]
        {
            assert_eq!(Deb::parse_file_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_lock_whose_file_is_another_packages_is_refused() {
        let text = |file: &str, sha256: &str| {
            format!(
                "schema = 1\n[debian]\nepoch = 1\nrelease = []\n[[debian.package]]\nname = \"a\"\n\
                 version = \"1:2\"\narchitecture = \"all\"\nfile = \"{file}\"\nsize = 1\nsha256 = \"{sha256}\"\n"
            )
        };
        let good = "0".repeat(64);
        let lock = LockFile::parse(&text("a_1%3a2_all.deb", &good)).expect("it is right");
        assert_eq!(lock.debian.packages[0].phase, Phase::Environment);
        assert_eq!(LockFile::parse(&lock.render().expect("plain")).expect("as written"), lock);
        LockFile::parse(&text("../a_1%3a2_all.deb", &good)).expect_err("it leads elsewhere");
        LockFile::parse(&text("a_1_all.deb", &good)).expect_err("it is another version");
        LockFile::parse(&text("a_1%3a2_all.deb", "SHA")).expect_err("it is no hash");
    }

    #[test]
    fn an_index_older_than_it_was_locked_is_found() {
        let index = |suite: &str, date: i64| InRelease {
            suite: suite.to_owned(),
            sha256: String::new(),
            date,
        };
        let locked = Debian {
            epoch: 9,
            request_sha256: String::new(),
            releases: vec![index("a", 5), index("b", 9)],
            packages: Vec::new(),
        };
        assert_eq!(locked.older(&[index("a", 5), index("b", 10)]), None);
        let offered = [index("a", 6), index("b", 8)];
        let (old, here) = locked.older(&offered).expect("b is older");
        assert_eq!((old.date, here.date), (9, 8));
    }

    #[test]
    fn changes_are_named_with_both_versions() {
        let before = [("a", "1"), ("b", "1"), ("c", "1")];
        let after = [("a", "1"), ("b", "2"), ("d", "1")];
        let found = changes(before.into_iter(), after.into_iter());
        let word = |text: &str| Some(text.to_owned());
        assert_eq!(
            found,
            [
                ("b".to_owned(), word("1"), word("2")),
                ("c".to_owned(), word("1"), None),
                ("d".to_owned(), None, word("1")),
            ]
        );
    }

    #[test]
    fn included_files_are_known_by_their_options() {
        for line in ["-r base.txt", "-rbase.txt", "--requirement=base.txt  # x", " -r\tbase.txt\n"]
        {
            assert_eq!(included(line), Some(Included::Requirements("base.txt")), "{line}");
        }
        assert_eq!(included("--constraint a/b.txt"), Some(Included::Constraints("a/b.txt")));
        for line in ["-r https://example.org/a.txt", "-r /etc/a", "-r ../a", "requests", "-e ."] {
            assert_eq!(included(line), None, "{line}");
        }
    }

    #[test]
    fn extras_and_markers_are_no_part_of_a_name_or_version() {
        let text = "titiler-extensions[cogeo, stac]==2.4.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n\
                    b==1;python_version<'4' --hash=sha256:cc\nc[x] == 3 ; os_name == 'posix' --hash=sha256:dd\n";
        let found = parse_requirements(text).expect("all are pinned");
        let words: Vec<(&str, &str, usize)> = found
            .iter()
            .map(|one| (one.name.as_str(), one.version.as_str(), one.sha256.len()))
            .collect();
        assert_eq!(words, [("b", "1", 1), ("c", "3", 1), ("titiler-extensions", "2.4.0", 2)]);
    }

    #[test]
    fn one_requirement_without_a_hash_is_enough_to_refuse() {
        assert!(all_hashed("a==1 --hash=sha256:00\n# a comment\n--only-binary :all:\n"));
        assert!(!all_hashed("a==1 --hash=sha256:00\nb==2\n"));
        assert_eq!(
            parse_requirements("b>=2\n").expect_err("b is not pinned").to_string(),
            "the requirement \"b>=2\" has no exact version"
        );
    }
}
