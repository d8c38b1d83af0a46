//! `farmctl.lock`, beside the profile: what a bake is built from, by hash.
//!
//! Pure values; written by `farmctl lock`, read by `farmctl bake`.

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
    /// The signed indexes.
    #[serde(rename = "release")]
    pub releases: Vec<InRelease>,
}

/// `[python]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Python {
    /// SHA-256 of the requirements file these distributions fulfil, hex.
    pub requirements_sha256: String,
    /// What is installed, by name.
    #[serde(rename = "distribution")]
    pub distributions: Vec<Locked>,
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
        toml::from_str(text).context("reading farmctl.lock")
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

impl Python {
    /// The distributions as a requirements file with hashes.
    #[must_use]
    pub fn requirements(&self) -> String {
        let mut text = String::new();
        for distribution in &self.distributions {
            let _ = write!(text, "{}=={}", distribution.name, distribution.version);
            for hash in &distribution.sha256 {
                let _ = write!(text, " \\\n    --hash=sha256:{hash}");
            }
            text.push('\n');
        }
        text
    }
}

/// Reads hashed requirements (`name==version --hash=sha256:…`, lines continued with a
/// backslash), as `uv pip compile --generate-hashes` prints them.
///
/// # Errors
/// When a requirement is not pinned by version and hash.
pub fn parse_requirements(text: &str) -> Result<Vec<Locked>> {
    let mut found = Vec::new();
    for line in logical_lines(text) {
        let mut words = line.split_whitespace();
        let pin = words.next().unwrap_or_default();
        let Some((name, version)) = pin.split_once("==") else {
            bail!("the requirement \"{line}\" has no exact version");
        };
        let sha256: Vec<String> = words
            .filter_map(|word| word.strip_prefix("--hash=sha256:"))
            .map(str::to_owned)
            .collect();
        if sha256.is_empty() {
            bail!("the requirement \"{pin}\" has no hash");
        }
        let name = name.split('[').next().unwrap_or(name).to_owned();
        found.push(Locked { name, version: version.to_owned(), sha256 });
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

/// Lines with continuations joined and comments removed (pip's requirements format).
fn logical_lines(text: &str) -> Vec<String> {
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
        let python = Python { requirements_sha256: "00".to_owned(), distributions };
        assert_eq!(
            python.requirements(),
            "gunicorn==23.0.0 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n\
             packaging==24.1 \\\n    --hash=sha256:cc\n"
        );
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
